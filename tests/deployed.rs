//! Certificates of deployed arithmetic against an emulation of every engine, on real residuals.
//!
//! The emulation is a naive forward pass: rounding by the crate `half`, σ by the standard library's f32 functions, sums of products in
//! several orders, one of them truncated as tensor cores do. It shares no code with the certifier. The intervention is evaluated in
//! f64. `cargo test --release --test deployed -- --nocapture` prints the tables that `docs/arithmetic.md` holds.

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use nalgebra::DMatrix;
use neurograft::block::Block;
use neurograft::certify::jumps;
use neurograft::compile::{Compiled, Samples};
use neurograft::deployed::Deployed;
use neurograft::embedded::residuals;
use neurograft::eval::value;
use neurograft::intervention::{options, target};
use neurograft::sae::Sae;
use neurograft::spec::Spec;
use neurograft::tensors::TensorFile;
use neurograft::{Options, Target, compile};

const NORM: f64 = 250.0;

#[derive(Clone, Copy, PartialEq)]
enum Short {
    Bf16,
    F16,
    F32,
}

impl Short {
    fn round(self, x: f32) -> f32 {
        match self {
            Short::Bf16 => bf16::from_f32(x).to_f32(),
            Short::F16 => f16::from_f32(x).to_f32(),
            Short::F32 => x,
        }
    }
}

/// How an engine adds up products.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    Forward,
    Backward,
    Lanes(usize),
    /// blocks of 8, aligned to the largest term and truncated to 24 bits
    TensorCore,
    /// the same in 4 parts, whose sums are rounded to the stream's format and added there
    Split,
}

fn sum(products: &[f32], order: Order, stream: Short) -> f32 {
    match order {
        Order::Forward => products.iter().fold(0.0, |s, p| s + p),
        Order::Backward => products.iter().rev().fold(0.0, |s, p| s + p),
        Order::Lanes(n) => {
            let mut lanes = vec![0f32; n];
            products.iter().enumerate().for_each(|(i, p)| lanes[i % n] += p);
            lanes.iter().fold(0.0, |s, p| s + p)
        }
        Order::TensorCore => products.chunks(8).fold(0f32, |s, block| {
            let terms: Vec<f64> = block.iter().map(|p| f64::from(*p)).chain([f64::from(s)]).collect();
            let largest = terms.iter().fold(0f64, |a, t| a.max(t.abs()));
            let unit = (largest.max(1e-38).log2().floor() - 23.0).exp2();
            let total: f64 = terms.iter().map(|t| (t / unit).trunc() * unit).sum();
            // The sum itself is truncated to f32.
            let near = total as f32;
            if f64::from(near).abs() > total.abs() { f32::from_bits(near.to_bits() - 1) } else { near }
        }),
        Order::Split => products
            .chunks(products.len().div_ceil(4).max(1))
            .map(|part| stream.round(sum(part, Order::TensorCore, stream)))
            .fold(0.0, |s, p| stream.round(s + p)),
    }
}

#[derive(Clone, Copy)]
struct Engine {
    stream: Short,
    order: Order,
    round_gate: bool,
    round_sigma: bool,
}

fn silu(t: f32) -> f32 {
    t / (1.0 + (-t).exp())
}

impl Engine {
    /// All ways in which the engine of a row may compute.
    fn of(row: &str) -> Vec<Engine> {
        let stream = if row.ends_with("bf16") {
            Short::Bf16
        } else if row.ends_with("f16") {
            Short::F16
        } else {
            Short::F32
        };
        let orders: &[Order] = match () {
            _ if row.contains("split") => &[Order::Split],
            _ if row.contains("cuda") && stream != Short::F32 => &[Order::TensorCore],
            _ if row.starts_with("flashinfer") || row.starts_with("inductor") => &[Order::TensorCore],
            _ if row.starts_with("llama.cpp") => &[Order::Lanes(32), Order::Lanes(8), Order::Lanes(4)],
            _ => &[Order::Forward, Order::Backward, Order::Lanes(16)],
        };
        let roundings: &[(bool, bool)] = match () {
            _ if row.starts_with("inductor") => &[(true, true), (true, false), (false, false)],
            _ if row.starts_with("vllm-cpu") || row.starts_with("flashinfer") => &[(true, false)],
            _ => &[(true, true)],
        };
        let all = orders.iter().flat_map(|o| roundings.iter().map(move |r| (*o, *r)));
        all.map(|(order, (round_gate, round_sigma))| Engine { stream, order, round_gate, round_sigma }).collect()
    }

    /// A row's sum in f32; the bias is split into numbers of the format, which come last, as weights on exact ones.
    fn dot(&self, row: impl Iterator<Item = f64>, x: &[f32], bias: f64) -> f32 {
        let mut products: Vec<f32> = row.zip(x).map(|(w, x)| w as f32 * x).collect();
        let mut rest = bias;
        while rest != 0.0 {
            let part = f64::from(self.stream.round(rest as f32));
            products.push(part as f32);
            rest -= part;
        }
        sum(&products, self.order, self.stream)
    }

    /// What the MLP adds, rounded to the stream.
    fn mlp(&self, block: &Block, x: &[f32]) -> Vec<f32> {
        let bias = |b: &Option<nalgebra::DVector<f64>>, i: usize| b.as_ref().map_or(0.0, |b| b[i]);
        let round = |on: bool, x: f32| if on { self.stream.round(x) } else { x };
        let hidden: Vec<f32> = (0..block.intermediate_size())
            .map(|i| {
                let row = |m: &DMatrix<f64>| m.row(i).iter().copied().collect::<Vec<f64>>().into_iter();
                let gate = round(self.round_gate, self.dot(row(&block.gate), x, bias(&block.gate_bias, i)));
                let s = round(self.round_sigma, silu(gate));
                match &block.up {
                    Some(up) => {
                        let up = round(self.round_gate, self.dot(row(up), x, bias(&block.up_bias, i)));
                        self.stream.round(s * up)
                    }
                    None => self.stream.round(s),
                }
            })
            .collect();
        (0..block.hidden_size())
            .map(|k| {
                let row = block.down.row(k).iter().copied().collect::<Vec<f64>>();
                self.stream.round(self.dot(row.into_iter(), &hidden, bias(&block.down_bias, k)))
            })
            .collect()
    }

    /// The stream after the inserted layers.
    fn layers(&self, blocks: &[&Block], x: &[f32]) -> Vec<f32> {
        let mut stream = x.to_vec();
        stream.resize(blocks[0].hidden_size(), 0.0);
        for b in blocks {
            let out = self.mlp(b, &stream);
            stream.iter_mut().zip(out).for_each(|(x, o)| *x = self.stream.round(*x + o));
        }
        stream.truncate(x.len());
        stream
    }
}

struct Data {
    dir: PathBuf,
    sae: Sae,
    x: DMatrix<f64>,
}

fn data() -> Data {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/smollm2-l15");
    let file = TensorFile::open(dir.join("residuals.safetensors")).unwrap();
    Data { sae: Sae::open(&dir).unwrap(), x: residuals(&file, "residuals").unwrap(), dir }
}

const INTERVENTIONS: &str = r#"
    [[interventions]]
    feature = 20
    action = "ablate"
    [[interventions]]
    feature = 2
    action = "cap"
    value = 20
    [[interventions]]
    feature = 6
    action = "clamp_when_active"
    value = 12.5
"#;

fn compiled(data: &Data, format: &str, layers: &str, samples: bool) -> (Target, Compiled) {
    let (target, compiled) = try_compile(data, format, layers, samples);
    (target, compiled.unwrap())
}

fn try_compile(
    data: &Data,
    format: &str,
    layers: &str,
    samples: bool,
) -> (Target, Result<Compiled, neurograft::Error>) {
    let band = if format == "f32" { 0.05 } else { 0.5 };
    let text = format!(
        "sae = '{}'\nlayers = {layers}\n{INTERVENTIONS}\n[host]\nformat = '{format}'\narithmetic = 'any-{format}'\n[budget]\nband = {band}\n[domain]\nrange = [-110, 140]\nnorm = {NORM}",
        data.dir.display()
    );
    let spec = Spec::parse_toml(&text).unwrap();
    let target = target(&spec, &data.sae).unwrap();
    let samples = samples.then(|| Samples { residuals: data.x.clone(), margin: 2.0 });
    // Splices into 16-bit checkpoints have biases in parts.
    let options = Options { samples, bias_parts: if format == "bf16" { 3 } else { 1 }, ..options(&spec) };
    let compiled = compile(&target, &options);
    (target, compiled)
}

/// What a token's pre-activations allow to be said.
#[derive(Clone, Copy, PartialEq)]
struct Place {
    /// off all bands
    outside: bool,
    /// every response is 0 all around
    quiet: bool,
}

fn pre(w: &[f64], b: f64, x: &[f64]) -> f64 {
    b + w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>()
}

fn place(c: &Compiled, d: &Deployed, x: &[f64]) -> Place {
    let mut place = Place { outside: true, quiet: true };
    let claims: Vec<_> = c.certificate.responses.iter().zip(&d.responses).filter(|(r, _)| !r.carried).collect();
    for (r, figures) in claims {
        let z = pre(&r.w.values().unwrap(), r.b, x);
        let reach = r.certificate.delta + figures.delta_rows;
        let found = jumps(&r.target, neurograft::certify::Domain::line()).unwrap();
        place.outside &= found.iter().all(|j| (z - j).abs() > reach);
        let zero = |z: f64| value(&r.target, &[z]).unwrap() == 0.0;
        place.quiet &= (-20..=20).all(|k| zero(z + reach * 1.001 * f64::from(k) / 20.0));
    }
    let terms = c.certificate.gates.iter().flat_map(|g| &g.terms).zip(&d.terms);
    for (t, figures) in terms {
        let z: Vec<f64> = t.pre_activations.iter().map(|p| pre(&p.w.values().unwrap(), p.b, x)).collect();
        let l: Vec<f64> = t.conditions.iter().map(|e| value(e, &z).unwrap()).collect();
        let banded = || l.iter().zip(&figures.bands).filter(|(_, b)| **b > 0.0);
        place.outside &= banded().all(|(l, b)| l.abs() > *b);
        place.quiet &= banded().any(|(l, b)| *l < -b);
    }
    place
}

fn wanted(target: &Target, x: &[f64]) -> Vec<f64> {
    let mut out = x.to_vec();
    for r in &target.responses {
        let z: Vec<f64> = r.pre_activations.iter().map(|p| pre(&p.w, p.b, x)).collect();
        let c = value(&r.expr, &z).unwrap();
        out.iter_mut().zip(&r.write).for_each(|(o, v)| *o += c * v);
    }
    out
}

/// Tokens for every engine: all of them would take minutes.
const EVERY: usize = 4;

fn bounds_hold(format: &str, layers: &str, samples: bool) {
    let data = data();
    let (target, c) = compiled(&data, format, layers, samples);
    let blocks: Vec<&Block> = c.first.iter().chain([&c.block]).collect();
    let label = if samples { "calibrated" } else { "ball" };
    println!(
        "| arithmetic | layers, tokens | off the bands: largest | certified | quiet tokens: largest | certified | unchanged |"
    );
    println!("|---|---|---|---|---|---|---|");
    for d in &c.certificate.deployed {
        let (mut outside, mut quiet, mut untouched, mut quiets) = (0f64, 0f64, 0, 0);
        for engine in Engine::of(&d.arithmetic) {
            for t in (0..data.x.ncols()).step_by(EVERY) {
                let x: Vec<f32> = data.x.column(t).iter().map(|x| engine.stream.round(*x as f32)).collect();
                let exact: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
                let place = place(&c, d, &exact);
                if !place.outside && !place.quiet {
                    continue;
                }
                let got = engine.layers(&blocks, &x);
                let far =
                    |goal: &[f64]| got.iter().zip(goal).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum::<f64>().sqrt();
                if place.outside {
                    outside = outside.max(far(&wanted(&target, &exact)));
                }
                if place.quiet {
                    quiets += 1;
                    untouched += usize::from(got == x);
                    quiet = quiet.max(far(&exact));
                }
            }
        }
        let bound = d.total.quiet;
        println!(
            "| {} | {}, {label} | {outside:.2e} | {:.2e} | {quiet:.2e} | {} | {untouched} of {quiets} |",
            d.arithmetic,
            blocks.len(),
            d.total.outside,
            bound.map_or("-".into(), |q| format!("{q:.2e}"))
        );
        // The intervention itself is evaluated in f64: 1e-9 is far above its own rounding.
        assert!(outside <= d.total.outside + 1e-9, "{}: {outside} > {}", d.arithmetic, d.total.outside);
        assert!(quiet <= bound.unwrap_or(f64::INFINITY), "{}: {quiet} > {bound:?}", d.arithmetic);
        assert!(outside.is_finite() && d.total.outside.is_finite());
    }
    // The first figure is seen to be no accident of an empty set.
    assert!(c.certificate.deployed.len() >= 5);
}

#[test]
fn one_layer_in_bf16() {
    bounds_hold("bf16", "1", false);
    bounds_hold("bf16", "1", true);
}

#[test]
fn two_layers_in_bf16() {
    bounds_hold("bf16", "2", true);
}

#[test]
fn one_layer_in_f32() {
    bounds_hold("f32", "1", true);
}

#[test]
fn two_layers_in_f32() {
    bounds_hold("f32", "2", false);
}

/// Guards of two layers end at f16's range: their gates would shut too late to be of use.
#[test]
fn two_layers_in_f16_are_refused() {
    let e = try_compile(&data(), "f16", "2", true).1.unwrap_err();
    assert!(e.is_unsupported() && e.to_string().contains("the gate does not shut within the band"), "{e}");
}

/// Bound and observation in two parts: the pre-activation, and what follows from it.
#[test]
fn how_sharp_the_bounds_are() {
    let data = data();
    println!(
        "| arithmetic | response | z: seen | certified (ball) | certified (calibrated) | after z: seen | certified | if sums agree |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for format in ["bf16", "f32"] {
        let ball = compiled(&data, format, "1", false).1;
        let (_, c) = compiled(&data, format, "1", true);
        for row in ["transformers-", "transformers-cuda-"].map(|r| format!("{r}{format}")) {
            let find = |c: &Compiled| c.certificate.deployed.iter().find(|d| d.arithmetic == row).unwrap().clone();
            let (wide, d) = (find(&ball), find(&c));
            for ((r, figures), wide) in c.certificate.responses.iter().zip(&d.responses).zip(&wide.responses) {
                let w = r.w.values().unwrap();
                let steepest = (0..r.neurons.len())
                    .max_by(|a, b| slope(&r.neurons[*a]).abs().total_cmp(&slope(&r.neurons[*b]).abs()))
                    .unwrap();
                let unit = r.first_unit + steepest;
                let beta = slope(&r.neurons[steepest]);
                let (mut seen, mut after) = (0f64, 0f64);
                for engine in Engine::of(&row) {
                    for t in 0..data.x.ncols() {
                        let x: Vec<f32> = data.x.column(t).iter().map(|x| engine.stream.round(*x as f32)).collect();
                        let exact: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
                        let z = pre(&w, r.b, &exact);
                        let bias = c.block.gate_bias.as_ref().unwrap()[unit];
                        let row = || c.block.gate.row(unit).iter().copied().collect::<Vec<f64>>().into_iter();
                        let sum = f64::from(engine.dot(row(), &x, bias));
                        let meant = beta * z + offset(&r.neurons[steepest]);
                        seen = seen.max(((sum - meant) / beta).abs());
                        // With the exact sums of the rounded rows: what rounding alone does, as a function of ẑ.
                        let own: f64 = row().zip(&exact).map(|(g, x)| g * x).sum::<f64>() + bias;
                        let shifted = z + (own - meant) / beta;
                        let reach = r.certificate.delta;
                        let found = jumps(&r.target, neurograft::certify::Domain::line()).unwrap();
                        if found.iter().all(|j| (shifted - j).abs() > reach) {
                            let hidden = |k: usize| {
                                let unit = r.first_unit + k;
                                let dot = |m: &DMatrix<f64>, b: &Option<nalgebra::DVector<f64>>| {
                                    let row = m.row(unit).iter().copied().collect::<Vec<f64>>().into_iter();
                                    engine.stream.round(engine.dot(row, &x, b.as_ref().map_or(0.0, |b| b[unit])))
                                };
                                let s = engine.stream.round(silu(dot(&c.block.gate, &c.block.gate_bias)));
                                let up = c.block.up.as_ref().map_or(1.0, |m| dot(m, &c.block.up_bias));
                                f64::from(engine.stream.round(s * up))
                            };
                            let got: f64 =
                                r.constant + r.neurons.iter().enumerate().map(|(k, n)| out(n) * hidden(k)).sum::<f64>();
                            after = after.max((got - value(&r.target, &[shifted]).unwrap()).abs());
                        }
                    }
                }
                println!(
                    "| {row} | {} | {seen:.2e} | {:.2e} | {:.2e} | {after:.2e} | {:.2e} | {} |",
                    r.name,
                    wide.delta_rows + wide.delta_sums,
                    figures.delta_rows + figures.delta_sums,
                    figures.epsilon_outside,
                    figures.agreeing.map_or("-".into(), |a| format!("{a:.2e}"))
                );
                assert!(seen <= figures.delta_rows + figures.delta_sums + 1e-12);
                assert!(after <= figures.epsilon_outside + 1e-9, "{after} > {}", figures.epsilon_outside);
            }
        }
    }
}

fn slope(n: &neurograft::certificate::NeuronFile<f64>) -> f64 {
    match n {
        neurograft::certificate::NeuronFile::Gated { gate_weight, .. } => *gate_weight,
        neurograft::certificate::NeuronFile::Plain { weight, .. } => *weight,
    }
}

fn offset(n: &neurograft::certificate::NeuronFile<f64>) -> f64 {
    match n {
        neurograft::certificate::NeuronFile::Gated { gate_bias, .. } => *gate_bias,
        neurograft::certificate::NeuronFile::Plain { bias, .. } => *bias,
    }
}

fn out(n: &neurograft::certificate::NeuronFile<f64>) -> f64 {
    match n {
        neurograft::certificate::NeuronFile::Gated { out, .. } => *out,
        neurograft::certificate::NeuronFile::Plain { out, .. } => *out,
    }
}
