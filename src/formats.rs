//! What each number format and engine can guarantee of a response: in one layer with more and more copies of steep neurons, and in two.

use std::fmt;

use rayon::prelude::*;
use serde::Serialize;

use crate::arithmetic::rows;
use crate::block::Block;
use crate::compile::{Depth, LayoutBounds, Options, Response, Target, compile, one_layer_bounds};
use crate::deployed::{Deployed, DeployedResponse};
use crate::error::{Error, Result};
use crate::format::Format;
use crate::host::bias_parts;

/// At most so many copies are allowed, in turn.
pub const COPIES: [usize; 4] = [1, 4, 16, 64];
/// Errors beyond this are those of a hidden unit that overflows.
const UNBOUNDED: f64 = 1e30;
const FORMATS: [Format; 3] = [Format::Bf16, Format::F16, Format::F32];

/// One response, under every engine.
#[derive(Clone, Debug, Serialize)]
pub struct Guarantees {
    /// the response
    pub name: String,
    /// c(z)
    pub expression: String,
    /// ‖v‖
    pub length: f64,
    /// what was compiled for each format, and what it guarantees
    pub layouts: Vec<Layout>,
}

/// One way to compile the response for one format.
#[derive(Clone, Debug, Serialize)]
pub struct Layout {
    /// of weights and stream
    pub format: Format,
    /// 1 or 2
    pub layers: usize,
    /// how many copies were allowed; null where that changes nothing (32 bits, two layers)
    pub copies: Option<usize>,
    /// hidden units of all layers; 0 if there is no block
    pub neurons: usize,
    /// for each engine of the format
    pub engines: Vec<Engine>,
    /// why there is none
    pub refused: Option<String>,
}

/// What one engine is proved to do.
#[derive(Clone, Debug, Serialize)]
pub struct Engine {
    /// the arithmetic's name
    pub arithmetic: &'static str,
    /// δ: how far z is from where the response jumps, at least, for `error` to hold
    pub band: f64,
    /// what rounded rows move z by; part of `band`. Of two layers the largest of the responses that are written at once, 0 if there are none
    pub delta_rows: f64,
    /// what accumulation moves a pre-activation by, in units of z, likewise; part of `error`
    pub delta_sums: f64,
    /// bound on ‖written − c(z)·v‖/‖v‖ there, before the residual addition
    pub error: f64,
    /// bound on ‖x_out − (x + c(z)·v)‖, residual addition included
    pub stream: f64,
    /// bound on ‖x_out − x‖ where c is 0 all around; null where there is no such x
    pub quiet: Option<f64>,
    /// does no other layout have as few neurons and layers, as narrow a band and as small an error?
    pub on_front: bool,
}

/// Tabulates one response. `options` give σ, form, limits, the norm and samples; format, depth, copies and arithmetic are chosen here, and
/// the number of neurons is free.
///
/// Errors: no bound on ‖x‖. What cannot be compiled is a row that says so.
pub fn guarantees(response: &Response, options: &Options) -> Result<Guarantees> {
    if options.norm.is_none() {
        return Err(Error::input("what an engine computes depends on how large x is")
            .help("give domain.norm in the specification"));
    }
    let length = response.write.iter().map(|x| x * x).sum::<f64>().sqrt();
    let asked: Vec<(Format, usize)> = FORMATS.into_iter().flat_map(|f| [(f, 1), (f, 2)]).collect();
    let found: Vec<Vec<Layout>> =
        asked.into_par_iter().map(|(f, layers)| layouts_of(response, options, f, layers, length)).collect();
    let mut layouts = found.concat();
    mark(&mut layouts);
    Ok(Guarantees { name: response.name.clone(), expression: response.expr.to_string(), length, layouts })
}

fn layouts_of(r: &Response, options: &Options, format: Format, layers: usize, length: f64) -> Vec<Layout> {
    let mut options = Options {
        format,
        depth: if layers == 2 { Depth::Two } else { Depth::One },
        bias_parts: bias_parts(format),
        arithmetic: vec![format!("any-{format}")],
        ..options.clone()
    };
    options.budget.neurons = options.budget.neurons.max(1024);
    let limits: &[usize] = if layers == 1 && format.bytes() == 2 { &COPIES } else { &COPIES[..1] };
    let empty = |k: usize| Layout {
        format,
        layers,
        copies: (limits.len() > 1).then(|| limits[k]),
        neurons: 0,
        engines: Vec::new(),
        refused: None,
    };
    let target = Target { responses: vec![r.clone()] };
    let bounds = if layers == 1 {
        one_layer_bounds(&target, &options, limits)
    } else {
        compile(&target, &options).map(|c| {
            let neurons = c.block.intermediate_size() + c.first.as_ref().map_or(0, Block::intermediate_size);
            let free = c.certificate.responses.iter().filter(|r| !r.carried);
            let deltas = free.map(|r| r.certificate.delta).collect();
            vec![LayoutBounds { neurons, deltas, deployed: c.certificate.deployed }]
        })
    };
    match bounds {
        Ok(all) => all
            .iter()
            .enumerate()
            .map(|(k, b)| {
                let engines = b.deployed.iter().filter_map(|d| engine(d, &b.deltas, length)).collect();
                Layout { neurons: b.neurons, engines, ..empty(k) }
            })
            .collect(),
        Err(e) => (0..limits.len()).map(|k| Layout { refused: Some(e.to_string()), ..empty(k) }).collect(),
    }
}

/// `deltas` of the responses that are written to the stream, which come first.
fn engine(d: &Deployed, deltas: &[f64], length: f64) -> Option<Engine> {
    let row = rows(&d.arithmetic).ok()?.into_iter().next()?;
    let free = || d.responses.iter().zip(deltas);
    let written: f64 = free().map(|(r, _)| r.outside).chain(d.terms.iter().map(|t| t.outside)).sum();
    let bands = free().filter(|(_, delta)| **delta > 0.0).map(|(r, delta)| delta + r.delta_rows);
    let band = bands.chain(d.terms.iter().flat_map(|t| t.bands.iter().copied())).fold(0.0, f64::max);
    let error = if length > 0.0 { written / length } else { 0.0 };
    let most = |f: fn(&DeployedResponse) -> f64| free().map(|(r, _)| f(r)).fold(0.0, f64::max);
    let (delta_rows, delta_sums) = (most(|r| r.delta_rows), most(|r| r.delta_sums));
    Some(Engine {
        arithmetic: row.name,
        band,
        delta_rows,
        delta_sums,
        error,
        stream: d.total.outside,
        quiet: d.total.quiet,
        on_front: false,
    })
}

/// Marks what no other layout of the same engine beats in neurons, layers, band and error.
fn mark(layouts: &mut [Layout]) {
    let all: Vec<(usize, usize, Engine)> =
        layouts.iter().flat_map(|l| l.engines.iter().map(|e| (l.neurons, l.layers, e.clone()))).collect();
    for l in layouts {
        let (neurons, layers) = (l.neurons, l.layers);
        for e in &mut l.engines {
            let beaten = |(n, d, o): &(usize, usize, Engine)| {
                let no_worse = *n <= neurons && *d <= layers && o.band <= e.band && o.error <= e.error;
                let better = *n < neurons || *d < layers || o.band < e.band || o.error < e.error;
                o.arithmetic == e.arithmetic && no_worse && better
            };
            e.on_front = e.error <= UNBOUNDED && !all.iter().any(beaten);
        }
    }
}

impl Guarantees {
    /// The layouts of a format, and the engines that they were compiled for.
    fn of(&self, format: Format) -> (Vec<&Layout>, Vec<&'static str>) {
        let layouts: Vec<&Layout> = self.layouts.iter().filter(|l| l.format == format).collect();
        let names = rows(&format!("any-{format}")).unwrap_or_default().iter().map(|r| r.name).collect();
        (layouts, names)
    }
}

impl fmt::Display for Guarantees {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: c(z) = {}, ‖v‖ = {:.3}", self.name, self.expression, self.length)?;
        for format in FORMATS {
            let (layouts, names) = self.of(format);
            let title = |l: &Layout| match (l.layers, l.copies) {
                (2, _) => "two layers".to_string(),
                (_, Some(1)) => "one layer".to_string(),
                (_, Some(n)) => format!("{n} copies"),
                (_, None) => "one layer".to_string(),
            };
            write!(f, "\n  {:<30}", format!("error off the band in {format}"))?;
            layouts.iter().try_for_each(|l| write!(f, " {:>11}", title(l)))?;
            writeln!(f, "   band: one, two layers   where 0: one, two layers")?;
            for name in names {
                let found = |l: &&Layout| l.engines.iter().find(|e| e.arithmetic == name).cloned();
                write!(f, "  {name:<30}")?;
                for l in &layouts {
                    let text = found(l).map_or("- ".into(), |e| match e.error <= UNBOUNDED {
                        true => format!("{:.2e}{}", e.error, if e.on_front { "*" } else { " " }),
                        false => "overflow ".into(),
                    });
                    write!(f, " {text:>11}")?;
                }
                let last = |n: usize| layouts.iter().filter(|l| l.layers == n).filter_map(found).next_back();
                let cell = |x: Option<f64>| x.map_or("-".into(), |x| format!("{x:.2e}"));
                let ends = [last(1), last(2)];
                let bands = ends.clone().map(|e| cell(e.map(|e| e.band)));
                let quiet = ends.map(|e| cell(e.and_then(|e| e.quiet)));
                writeln!(f, "   {:>9} {:>9}          {:>9} {:>9}", bands[0], bands[1], quiet[0], quiet[1])?;
            }
            write!(f, "  {:<30}", "neurons")?;
            layouts.iter().try_for_each(|l| {
                write!(f, " {:>10} ", if l.neurons == 0 { "-".into() } else { l.neurons.to_string() })
            })?;
            writeln!(f)?;
            for l in &layouts {
                if let Some(reason) = &l.refused {
                    writeln!(f, "  {}: {reason}", title(l))?;
                }
            }
        }
        Ok(())
    }
}
