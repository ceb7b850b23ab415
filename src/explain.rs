//! How each response is realised, neuron by neuron, in words.

mod bounds;
mod warnings;

use std::fmt::Write;

use crate::activation::Activation;
use crate::certificate::{CertificateFile, NeuronFile, ResponseFile, TermFile};
use crate::certify::{Figures, Status};
use crate::compile::Compiled;
use crate::deployed::{Deployed, DeployedResponse};
use crate::format::Format;
use crate::number::Number;
use crate::solve::{Method, Solution};
use crate::stack::Neuron;

pub use bounds::{Row, band, bound, figures, gate_figures, response_figures, rows, scope, table};
pub use warnings::{gate_limit, missed, warnings};

/// The whole block.
pub fn explain(compiled: &Compiled) -> String {
    let mut out = String::new();
    let file = &compiled.certificate;
    let _ = writeln!(
        out,
        "A {} block of {} neurons in {}, {} hidden units for a stream of width {}.\n",
        file.form, file.source, file.format, file.intermediate_size, file.hidden_size
    );
    if let (Some(gates), Some(first)) = (&file.gates, &compiled.first) {
        let _ = writeln!(
            out,
            "A first layer of {} hidden units stands before it: {} guards σ(−K·ℓ), one for each condition ℓ > 0, and {} payloads.\n",
            first.intermediate_size(),
            gates.slopes.len(),
            file.between - gates.slopes.len()
        );
    }
    for (r, s) in file.responses.iter().zip(&compiled.solutions) {
        let _ = writeln!(out, "{}", r.name);
        let verb = if r.carried { "carries c(z) to the second layer" } else { "adds c(z)·v" };
        let _ = writeln!(out, "  {verb} with c(z) = {}", r.target);
        let _ = writeln!(out, "  {}", method(s, &r.certificate));
        if r.constant != 0.0 {
            let _ = writeln!(out, "  constant {} (in the output bias)", r.constant);
        }
        // The neurons as the rounded rows, biases and columns make them.
        for (k, n) in r.neurons.iter().map(NeuronFile::neuron).enumerate() {
            let _ = writeln!(out, "  unit {}: {}", r.first_unit + k, formula(&n, &file.source));
            let _ = writeln!(out, "          {}", neuron(&n, &file.source));
        }
        for line in response_figures(r).into_iter().chain(evidence(s)) {
            let _ = writeln!(out, "  {line}");
        }
        if let Some(limit) = limit(&r.certificate, s, file.format) {
            let _ = writeln!(out, "  what limits it: {limit}");
        }
        let _ = writeln!(out);
    }
    for t in file.gates.iter().flat_map(|g| &g.terms) {
        let _ = writeln!(out, "{}", part_name(file, t));
        let _ = writeln!(out, "  adds c·v with c = {} where {}", payload(t), conditions(t));
        let guards: Vec<String> = t.guards.iter().map(|q| format!("h_{q}")).collect();
        let units = match t.units {
            1 => format!("unit {}", t.first_unit),
            n => format!("units {} to {}", t.first_unit, t.first_unit + n - 1),
        };
        let _ = writeln!(
            out,
            "  {units}: {}({} - {})·payload/{}{}",
            file.source,
            short(t.open),
            guards.join(" - "),
            short(t.open),
            if t.units > 1 { ", rows and columns in high and low parts" } else { "" }
        );
        for line in gate_figures(t) {
            let _ = writeln!(out, "  {line}");
        }
        if let Some(limit) = gate_limit(t, file.format) {
            let _ = writeln!(out, "  what limits it: {limit}");
        }
        let _ = writeln!(out);
    }
    for line in scope(file).into_iter().chain(engines(file)) {
        let _ = writeln!(out, "{line}");
    }
    for warning in warnings(compiled) {
        let _ = writeln!(out, "warning: {warning}");
    }
    out
}

/// What is proved of engines' arithmetic, in words; nothing if none was asked for.
pub fn engines(file: &CertificateFile) -> Vec<String> {
    if file.deployed.is_empty() {
        return Vec::new();
    }
    let norm = file.norm.map_or("∞".into(), |n| n.to_string());
    let tokens = file
        .calibration
        .as_ref()
        .map_or(String::new(), |c| format!(" and within {} times what {} samples show", short(c.margin), c.samples));
    let head = format!("in engines' arithmetic, through the residual addition, for ‖x‖ ≤ {norm}{tokens}:");
    let lines = file.deployed.iter().map(|d| {
        let quiet = d
            .total
            .quiet
            .map_or(String::new(), |q| format!("; where nothing is asked for, ‖x_out − x‖ ≤ {}", bound(q)));
        format!("  {:<30} off the bands ‖error‖ ≤ {}{quiet}", d.arithmetic, bound(d.total.outside))
    });
    std::iter::once(head).chain(lines).chain(limits(file)).collect()
}

/// What limits each response that one layer writes, under the engine with the largest bound: number format, accumulation, construction.
fn limits(file: &CertificateFile) -> Vec<String> {
    let worst = file.deployed.iter().max_by(|a, b| a.total.outside.total_cmp(&b.total.outside));
    let split = |d: &Deployed| -> Vec<String> {
        let pairs = file.responses.iter().zip(&d.responses).filter(|(r, _)| !r.carried);
        let line = |(r, f): (&ResponseFile, &DeployedResponse)| {
            let band = if r.certificate.delta > 0.0 {
                format!(" ± {} (band)", bound(r.certificate.delta))
            } else {
                String::new()
            };
            format!(
                "    {:<28} z ± {} (rounded rows) ± {} (accumulation){band}, then ± {} (construction)",
                r.name,
                bound(f.delta_rows),
                bound(f.delta_sums),
                bound(f.epsilon_outside)
            )
        };
        let lines: Vec<String> = pairs.map(line).collect();
        let head = (!lines.is_empty()).then(|| format!("  of that, under {}:", d.arithmetic));
        head.into_iter().chain(lines).collect()
    };
    worst.map_or(Vec::new(), split)
}

/// A term's name, with its number where its response has several.
pub fn part_name(file: &CertificateFile, t: &TermFile) -> String {
    let same: Vec<&TermFile> =
        file.gates.iter().flat_map(|g| &g.terms).filter(|o| o.name == t.name && o.v == t.v).collect();
    match same.iter().position(|o| std::ptr::eq(*o, t)) {
        Some(k) if same.len() > 1 => format!("{} ({} of {})", t.name, k + 1, same.len()),
        _ => t.name.clone(),
    }
}

/// What a gated term adds where it counts.
pub fn payload(t: &TermFile) -> String {
    match t.payload.affine() {
        Some(a) if a.coefficients.is_empty() => Number::from(a.constant).to_string(),
        _ => t.payload.to_string(),
    }
}

/// When a gated term counts.
pub fn conditions(t: &TermFile) -> String {
    let all: Vec<String> = t.conditions.iter().map(|c| format!("{c} > 0")).collect();
    all.join(" and ")
}

fn method(s: &Solution, f: &Figures) -> String {
    let n = s.stack.neurons.len();
    let count = counted(n);
    match (s.method, f.status) {
        (_, _) if n == 0 => "a constant needs no neuron".into(),
        (Method::Construction, Status::Exact) => format!("{count}: an identity, exact up to the rounding of weights"),
        (Method::Construction, Status::ExactOutside) => {
            format!("{count}: exact up to the rounding of weights, except within {} of the jump", f.delta)
        }
        (Method::Construction, _) => format!("{count}: an identity before rounding"),
        (Method::Steep, _) => format!("{count}: steep enough to look like a kink from where it matters"),
        (Method::Copies, _) => format!("{count}: steep, in copies whose roundings average out"),
        (Method::Fit, _) => format!("{count}: a minimax fit, nothing exact exists"),
    }
}

/// What speaks for a fit being the best there is nearby; nothing of this is proved.
pub fn evidence(s: &Solution) -> Option<String> {
    let a = s.alternation?;
    Some(format!(
        "evidence of a local optimum, no proof: before rounding the error alternates {} times between its extremes \
         ({} free parameters: {} in full)",
        a.seen,
        a.parameters,
        a.full()
    ))
}

/// What kept a response from its tolerance, if it missed it.
pub fn limit(f: &Figures, s: &Solution, format: Format) -> Option<String> {
    (f.status == Status::BestEffort).then(|| s.binding.clone().unwrap_or_else(|| rounding(format)))
}

fn rounding(format: Format) -> String {
    format!("the number format ({format}), in which the rows, biases and columns are rounded")
}

/// "1 neuron", "2 neurons", …
pub fn counted(neurons: usize) -> String {
    if neurons == 1 { "1 neuron".into() } else { format!("{neurons} neurons") }
}

/// The neuron as a formula.
pub fn formula(n: &Neuron<f64>, sigma: &Activation) -> String {
    let line = |w: f64, b: f64| match (w, b) {
        (0.0, b) => format!("{b}"),
        (w, 0.0) => format!("{w}·z"),
        (w, b) if b < 0.0 => format!("{w}·z − {}", -b),
        (w, b) => format!("{w}·z + {b}"),
    };
    let up = match n.up {
        None | Some((0.0, 1.0)) => String::new(),
        Some((w, b)) => format!(" · ({})", line(w, b)),
    };
    format!("{} · {sigma}({}){up}", n.out, line(n.weight, n.bias))
}

fn neuron(n: &Neuron<f64>, sigma: &Activation) -> String {
    use Activation::*;
    if n.weight == 0.0 {
        return match n.up {
            Some((w, _)) if w != 0.0 => "its gate is constant: it passes its up row on".into(),
            _ => "a constant".into(),
        };
    }
    let at = short(0.0 - n.bias / n.weight);
    let (on, off) = if n.weight > 0.0 { ("above", "below") } else { ("below", "above") };
    let slope = short((n.out * n.weight).abs() * n.up.map_or(1.0, |u| if u.0 == 0.0 { u.1.abs() } else { 1.0 }));
    let rising = (n.out * n.weight.signum() > 0.0) == (n.up.is_none_or(|u| u.1 >= 0.0));
    let times = if n.up.is_some_and(|u| u.0 != 0.0) { ", times its up row" } else { "" };
    match sigma {
        Relu | Silu | Swish(_) | Gelu | GeluTanh | QuickGelu | Mish | Softplus | Elu(_) | Selu | Celu(_)
        | Hardswish => {
            let knee = 10.0 / n.weight.abs();
            let soft = match sigma {
                Relu => String::new(),
                _ => format!(" (its knee is {} wide)", short(knee)),
            };
            format!(
                "silent {off} z = {at}, then {} by {slope} per unit of z{times}{soft}",
                if rising { "climbs" } else { "falls" }
            )
        }
        Sigmoid | Tanh | Softsign | Hardtanh | Hardsigmoid | Relu6 => {
            format!(
                "moves from one level to another around z = {at}, over about {}{times}",
                short(6.0 / n.weight.abs())
            )
        }
        Relu2 => format!("silent {off} z = {at}, grows like a square {on} it{times}"),
        LeakyRelu(_) | Abs | Identity => format!("bends at z = {at}, steeper {on} it{times}"),
    }
}

/// A number for reading, not for computing.
pub fn short(x: f64) -> String {
    let text = format!("{x:.4e}");
    match text.parse::<f64>() {
        Ok(y) if y == 0.0 || (1e-3..1e6).contains(&y.abs()) => format!("{y}"),
        Ok(y) => format!("{y:e}"),
        Err(_) => text,
    }
}
