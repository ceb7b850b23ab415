//! What a block does to the stream in an engine's arithmetic: from stacks to vectors.
//!
//! Part of the trusted base, without I/O. [`mod@crate::derive`] proves what a block does in real arithmetic; here every rounding of
//! [`crate::arithmetic`] is counted, up to the residual addition. x is in the stream's format, ‖x‖ ≤ R.
//!
//! Rows. Hidden unit i has the row ĝ = β(w + r) + ρ, one shift r for the whole stack (that of its steepest neuron), and its
//! bias is off by s. The engine's pre-activation, before it is rounded, is
//!
//! ```text
//! β·ẑ + γ + e,   ẑ = z + ⟨r, x⟩,   |e| ≤ E = |⟨ρ, x⟩| + |s| + γ_n·(|β|·Σ|(w + r)_k·x_k| + Σ|ρ_k·x_k| + |p̂|)
//! ```
//!
//! with γ_n the accumulation's factor for the row's n products. In 16 bits [`mod@crate::exhaust`] bounds what the stack makes of that; in f32
//! its certificate in real arithmetic and [`mod@crate::running`] do.
//!
//! Columns and the stream. ŷ = a(v + k) + κ. With O a bound on the norm of all that is added, u the stream's unit roundoff and
//! mass = Σ|a·h|:
//!
//! ```text
//! written    Σ_j (ε_outside + sup|c′|·δ_rows)·‖v‖ + sup|Σ a·h|·‖k‖ + Σ|h|·‖κ‖, and the constants' rounding
//! summing    γ_n·Σ_j mass·(‖v + k‖ + max ‖κ‖/|a|)
//! rounding   u·O + √d·underflow
//! residual   u·(R + O)
//! ```
//!
//! Where every response is 0 all around (*quiet*), what is added has a norm Q that the leaks bound, and since x is a number of the
//! format, |fl(x + o) − x| ≤ 2|o|: rounding to nearest moves x + o by no more than the distance |o| to x. So x moves
//! by at most 2Q, and not at all if Q = 0.

mod two_layers;

use serde::{Deserialize, Serialize};

pub use two_layers::{DeployedTerm, deploy_two};

use crate::activation::Activation;
use crate::arithmetic::{Arithmetic, Rounded, underflow, unit_roundoff};
use crate::block::Block;
use crate::certify::{Claim, Domain, certify, slope_bound};
use crate::derive::{Reading, ResponseClaim, norm_of, point, upper};
use crate::error::{At, Error, Result};
use crate::exhaust::{Question, Sums, Unit, exhaust};
use crate::gated::TwoLayerClaim;
use crate::interval::Interval;
use crate::landscape::{Deviation, Landscape};
use crate::running::running;
use crate::stack::Neuron;
use crate::tokens::{Calibration, Tokens};

/// What was proved of one response in one arithmetic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeployedResponse {
    /// the shift of z by the rounding of rows
    pub delta_rows: f64,
    /// what accumulation adds to a pre-activation at most, in units of z
    pub delta_sums: f64,
    /// distance from the hull, as a function of the shifted z
    pub epsilon: f64,
    /// |φ̂ − c| at distance > δ from the jumps, as a function of the shifted z
    pub epsilon_outside: f64,
    /// the same, if the errors of all of its neurons' sums agree (a shift of `delta_sums` at most, then); null where that
    /// cannot be said
    pub agreeing: Option<f64>,
    /// beyond the two sides of a jump
    pub overshoot: f64,
    /// where c = 0 all around; null where there is no such z
    pub leak: Option<f64>,
    /// bound on ‖written − c(z)·v‖ off the bands, before the sum over hidden units and what follows
    pub outside: f64,
    /// bound on the distance from the hull, wherever z is
    pub hull: f64,
}

/// What was proved of the stream in one arithmetic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeployedTotal {
    /// bound on ‖x_out − (x + Δ(x))‖, every z off its bands
    pub outside: f64,
    /// bound on the distance of x_out from x + the hulls
    pub hull: f64,
    /// bound on ‖x_out − x‖ where every response is 0 all around; null where there is no such x
    pub quiet: Option<f64>,
    /// the part of `outside` that accumulating the output costs
    pub summing: f64,
    /// the part of `outside` that rounding the output to the stream's format costs
    pub rounding: f64,
    /// the part of `outside` that the residual addition costs
    pub residual: f64,
}

/// What was proved of a block in one arithmetic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deployed {
    /// the arithmetic's name
    pub arithmetic: String,
    /// one for each response
    pub responses: Vec<DeployedResponse>,
    /// of two layers, one for each gated term
    pub terms: Vec<DeployedTerm>,
    /// the sum, through the residual addition
    pub total: DeployedTotal,
}

/// Proves what a block does in an engine's arithmetic, for the tokens named.
///
/// Errors: weights that are no numbers of the stream's format; an arithmetic in which nothing can be certified; what
/// [`crate::exhaust::exhaust`] and [`certify`] refuse.
pub fn deploy(
    block: &Block,
    claims: &[ResponseClaim],
    tokens: &mut Tokens<'_>,
    reading: &Reading,
    arithmetic: &Arithmetic,
) -> Result<Deployed> {
    check(block, reading, arithmetic)?;
    let parts = parts(block, claims, tokens, arithmetic)?;
    let total = Sum::new(block, claims, &parts, arithmetic).total(block.hidden_size(), tokens.norm(), arithmetic);
    let responses = parts.into_iter().map(|p| p.proof).collect();
    Ok(Deployed { arithmetic: arithmetic.name.into(), responses, terms: Vec::new(), total })
}

/// One block, or two that follow one another, and what is claimed of them.
#[derive(Clone, Copy, Debug)]
pub enum Blocks<'a> {
    /// one layer
    One(&'a Block, &'a [ResponseClaim]),
    /// two
    Two(&'a Block, &'a Block, &'a TwoLayerClaim),
}

/// Proves what blocks do in each of the arithmetics named ([`crate::arithmetic::rows`]; a row that several names stand for counts once), for
/// ‖x‖ ≤ `norm`. `tokens` makes the tokens anew for each.
///
/// Errors: an unknown name; those of [`deploy`] and [`deploy_two`].
pub fn deploy_all<'a>(
    blocks: Blocks<'_>,
    names: &[String],
    reading: &Reading,
    tokens: impl Fn() -> Result<Tokens<'a>>,
) -> Result<(Vec<Deployed>, Option<Calibration>)> {
    let mut rows: Vec<&Arithmetic> = Vec::new();
    for name in names {
        rows.extend(crate::arithmetic::rows(name)?);
    }
    let mut seen: Vec<&str> = Vec::new();
    rows.retain(|r| {
        let new = !seen.contains(&r.name);
        seen.push(r.name);
        new
    });
    let mut all: Vec<Deployed> = Vec::with_capacity(rows.len());
    let mut calibration = None;
    for (k, row) in rows.iter().enumerate() {
        // Engines that differ in nothing but their names.
        if let Some(same) = rows[..k].iter().position(|r| r.computes_as(row)) {
            all.push(Deployed { arithmetic: row.name.into(), ..all[same].clone() });
            continue;
        }
        let mut tokens = tokens()?;
        all.push(match blocks {
            Blocks::One(block, claims) => deploy(block, claims, &mut tokens, reading, row),
            Blocks::Two(first, second, claim) => deploy_two(first, second, claim, &mut tokens, row),
        }?);
        // Every arithmetic asks for the same functionals.
        calibration = tokens.calibration()?;
    }
    Ok((all, calibration))
}

fn check(block: &Block, reading: &Reading, arithmetic: &Arithmetic) -> Result<()> {
    if !reading.is_exact() {
        return Err(Error::unsupported("deployed arithmetic is certified where the norm hands over x itself")
            .help("choose padded carriers, or leave out host.arithmetic"));
    }
    if !arithmetic.stream.holds(block.format) {
        return Err(Error::input(format!("{} has no {} weights", arithmetic.name, block.format))
            .help("choose an arithmetic of the host's number format"));
    }
    Ok(())
}

fn parts(
    block: &Block,
    claims: &[ResponseClaim],
    tokens: &mut Tokens<'_>,
    arithmetic: &Arithmetic,
) -> Result<Vec<Part>> {
    claims.iter().map(|c| Part::new(block, c, tokens, arithmetic).at(|| c.name.clone())).collect()
}

/// A response and what its sum over hidden units is relative to.
struct Part {
    proof: DeployedResponse,
    /// norm of what is written where the response is 0 all around
    quiet: Option<f64>,
    /// bounds on Σ‖ŷ·h‖: anywhere, and where the response is 0 all around
    mass: [f64; 2],
    /// sup‖c·v‖
    size: f64,
}

/// Rows of one stack as the engine sees them.
struct Rows {
    units: Vec<Unit>,
    delta: f64,
    delta_sums: f64,
}

/// A number without which nothing is said of a token.
fn times(a: Interval, b: Interval) -> Interval {
    if a == Interval::ZERO || b == Interval::ZERO { Interval::ZERO } else { a * b }
}

/// A row claimed to be β·w with the bias β·b + γ: how far the engine's sum is from β·ẑ + γ, and how much of it is accumulation.
#[expect(clippy::too_many_arguments, reason = "one row's numbers")]
fn row_error(
    row: &[f64],
    bias: f64,
    (slope, offset): (f64, f64),
    c: &ResponseClaim,
    shift: &[f64],
    terms: f64,
    tokens: &mut Tokens<'_>,
    arithmetic: &Arithmetic,
) -> [f64; 2] {
    let rest: Vec<Interval> =
        row.iter().zip(&c.w).zip(shift).map(|((g, w), r)| point(*g) - point(slope) * (point(*w) + point(*r))).collect();
    let s = point(bias) - point(slope) * point(c.b) - point(offset);
    let exact = rest.iter().all(|x| *x == Interval::ZERO);
    let (moved, rest_terms) = if exact { (0.0, 0.0) } else { (tokens.inner(&rest), tokens.terms(&rest)) };
    let products = row.iter().filter(|g| **g != 0.0).count();
    // A bias of one number that is all there is arrives as it is; else it counts as up to three products.
    let alone = products == 0 && arithmetic.stream.round(bias) == bias;
    let count = if alone { 0 } else { products + 3 };
    // Its parts add up to at most this in magnitude, each being at most half a unit of the one before.
    let bias_size = point(bias.abs()) * point(1.0 + 1.0 / 64.0);
    let size = times(point(slope.abs()), point(terms)) + point(rest_terms) + bias_size;
    let sums = times(point(arithmetic.accumulation.factor(count, arithmetic.stream)), size);
    [upper(point(moved) + s.abs() + sums), upper(sums)]
}

impl Rows {
    fn new(block: &Block, c: &ResponseClaim, tokens: &mut Tokens<'_>, arithmetic: &Arithmetic) -> Result<Rows> {
        let row = |m: &nalgebra::DMatrix<f64>, k: usize| m.row(c.units.start + k).iter().copied().collect::<Vec<f64>>();
        let neurons = &c.stack.neurons;
        let steepest = neurons.iter().enumerate().max_by(|a, b| a.1.weight.abs().total_cmp(&b.1.weight.abs()));
        // Any shift would be sound.
        let shift: Vec<f64> = match steepest {
            Some((k, n)) if n.weight != 0.0 => {
                row(&block.gate, k).iter().zip(&c.w).map(|(g, w)| (g - n.weight * w) / n.weight).collect()
            }
            _ => vec![0.0; c.w.len()],
        };
        let shifts: Vec<Interval> = shift.iter().map(|r| point(*r)).collect();
        let shifted: Vec<Interval> = c.w.iter().zip(&shift).map(|(w, r)| point(*w) + point(*r)).collect();
        let moved = if shift.iter().all(|r| *r == 0.0) { 0.0 } else { tokens.inner(&shifts) };
        let terms = tokens.terms(&shifted);
        let mut units = Vec::with_capacity(neurons.len());
        let mut delta_sums = 0f64;
        for (k, n) in neurons.iter().enumerate() {
            let unit = c.units.start + k;
            let bias = |b: &Option<nalgebra::DVector<f64>>| b.as_ref().map_or(0.0, |b| b[unit]);
            let mut error = |m, b, line| row_error(&row(m, k), bias(b), line, c, &shift, terms, tokens, arithmetic);
            let [gate_error, sums] = error(&block.gate, &block.gate_bias, (n.weight, n.bias));
            if n.weight != 0.0 {
                delta_sums = delta_sums.max((point(sums) / point(n.weight.abs())).hi());
            }
            let up_error = match (&block.up, n.up) {
                (Some(m), Some(line)) => error(m, &block.up_bias, line)[0],
                (None, None) => 0.0,
                _ => return Err(Error::input("a gated neuron in a plain block, or a plain one in a gated block")),
            };
            units.push(unit_of(n, gate_error, up_error));
        }
        Ok(Rows { units, delta: moved, delta_sums })
    }
}

fn unit_of(n: &Neuron<f64>, gate_error: f64, up_error: f64) -> Unit {
    Unit { weight: n.weight, bias: n.bias, out: n.out, up: n.up, gate_error, up_error }
}

impl Part {
    fn new(block: &Block, c: &ResponseClaim, tokens: &mut Tokens<'_>, arithmetic: &Arithmetic) -> Result<Part> {
        let rows = Rows::new(block, c, tokens, arithmetic)?;
        let domain = domain(c, tokens.norm(), rows.delta)?;
        let landscape = Landscape::new(&c.target, domain, c.delta)?;
        let deviation = deviation(c, &rows.units, domain, &landscape, arithmetic)?;
        let agreeing = agreeing(c, &rows, domain, arithmetic);
        let v_norm = norm_of(c.v.iter().map(|x| point(*x)));
        let columns = Columns::new(block, c, &rows.units, domain, arithmetic);
        // sup|Σ a·h|: within ε of the hull of c, less the constant.
        let whole = point(landscape.size()) + point(deviation.epsilon) + point(c.stack.constant.abs());
        let column = times(whole, point(columns.tilt)) + columns.rest(deviation.mass);
        let steep = if rows.delta == 0.0 { 0.0 } else { slope_bound(&c.target, domain)? };
        let moved = times(point(steep), point(rows.delta));
        let outside = upper((point(deviation.epsilon_outside) + moved) * point(v_norm) + column);
        let hull = upper(point(deviation.epsilon) * point(v_norm) + column);
        let quiet = deviation.leak.map(|leak| {
            let sum = point(leak) + point(c.stack.constant.abs());
            upper(point(leak) * point(v_norm) + times(sum, point(columns.tilt)) + columns.rest(deviation.mass_quiet))
        });
        let along = point(v_norm) + point(columns.tilt) + point(columns.steepest);
        let mass = [deviation.mass, deviation.mass_quiet].map(|m| upper(times(point(m), along)));
        let size = upper(point(landscape.size()) * point(v_norm));
        let proof = DeployedResponse {
            delta_rows: rows.delta,
            delta_sums: rows.delta_sums,
            epsilon: deviation.epsilon,
            epsilon_outside: deviation.epsilon_outside,
            agreeing,
            overshoot: deviation.overshoot,
            leak: deviation.leak,
            outside,
            hull,
        };
        Ok(Part { proof, quiet, mass, size })
    }
}

/// What the shifted z can be: the claimed range, and |z| ≤ ‖w‖R + |b|; a little more.
fn domain(c: &ResponseClaim, norm: f64, delta: f64) -> Result<Domain> {
    let size = point(norm_of(c.w.iter().map(|x| point(*x)))) * point(norm);
    let reach = (size + point(c.b.abs())).hi();
    let lo = (point(c.domain.lo().max(-reach)) - point(delta)).lo();
    let hi = (point(c.domain.hi().min(reach)) + point(delta)).hi();
    Domain::new(lo, hi).map_err(|e| e.help("the range of pre-activations does not meet what the norm allows"))
}

fn deviation(
    c: &ResponseClaim,
    units: &[Unit],
    domain: Domain,
    landscape: &Landscape,
    arithmetic: &Arithmetic,
) -> Result<Deviation> {
    if arithmetic.stream.bytes() == 2 {
        return exhaust(&question(c, units, domain, arithmetic, Sums::Independent));
    }
    let claim = Claim { target: &c.target, stack: &c.stack, ideal: None, domain, delta: c.delta, tolerance: None };
    let real = certify(&claim)?;
    let real = real.figures();
    let own = running(units, &c.stack.source, arithmetic, landscape);
    let plus = |a: f64, b: f64| upper(point(a) + point(b));
    let epsilon_outside = plus(real.epsilon_outside.unwrap_or(real.epsilon), own.outside);
    let overshoot = real.overshoot.map_or(0.0, |o| plus(o, own.banded));
    Ok(Deviation {
        epsilon: plus(real.epsilon, own.outside.max(own.banded)),
        epsilon_outside,
        overshoot,
        leak: real.leak.map(|l| plus(l, own.quiet)),
        mass: own.mass,
        mass_quiet: own.mass_quiet,
    })
}

fn question<'a>(
    c: &'a ResponseClaim,
    units: &'a [Unit],
    domain: Domain,
    arithmetic: &'a Arithmetic,
    sums: Sums,
) -> Question<'a> {
    Question {
        target: &c.target,
        source: &c.stack.source,
        constant: c.stack.constant,
        units,
        domain,
        delta: c.delta,
        arithmetic,
        sums,
    }
}

/// ε_outside if all of the stack's sums err by the same: their errors are a shift of z then, and rounding is all that is left.
fn agreeing(c: &ResponseClaim, rows: &Rows, domain: Domain, arithmetic: &Arithmetic) -> Option<f64> {
    let slope = rows.units.first()?.weight.abs();
    // What is not accumulation must vanish: equal rows, exact biases.
    let sums = (point(rows.delta_sums) * point(slope)).hi();
    let exact: Vec<Unit> = rows
        .units
        .iter()
        .map(|u| {
            let rest = if u.weight.abs() == slope && u.gate_error <= sums { 0.0 } else { u.gate_error };
            Unit { gate_error: rest, ..u.clone() }
        })
        .collect();
    let lo = (point(domain.lo()) - point(rows.delta_sums)).lo();
    let hi = (point(domain.hi()) + point(rows.delta_sums)).hi();
    let domain = Domain::new(lo, hi).ok()?;
    if arithmetic.stream.bytes() == 2 {
        return exhaust(&question(c, &exact, domain, arithmetic, Sums::Agreeing)).ok().map(|d| d.epsilon_outside);
    }
    let landscape = Landscape::new(&c.target, domain, c.delta).ok()?;
    deviation(c, &exact, domain, &landscape, arithmetic).ok().map(|d| d.epsilon_outside)
}

/// ŷ = a(v + k) + κ with one neuron's k for all: that with which the least is left.
struct Columns {
    /// ‖k‖
    tilt: f64,
    /// max ‖κ‖/|a|
    steepest: f64,
    /// Σ sup|h|·‖κ‖
    rest: f64,
}

impl Columns {
    fn new(block: &Block, c: &ResponseClaim, units: &[Unit], domain: Domain, arithmetic: &Arithmetic) -> Columns {
        let sizes: Vec<f64> = units.iter().map(|u| largest(u, &c.stack.source, arithmetic, domain)).collect();
        // Columns that are ± the same have the same k.
        let mut outs: Vec<f64> = Vec::new();
        let mut candidates = Vec::new();
        for (k, n) in c.stack.neurons.iter().enumerate().filter(|(_, n)| n.out != 0.0) {
            if !outs.contains(&n.out.abs()) && outs.len() < MOST_COLUMNS {
                outs.push(n.out.abs());
                candidates.push(Columns::tilted(block, c, &sizes, Some(k)));
            }
        }
        let least = candidates.into_iter().min_by(|a, b| a.rest.total_cmp(&b.rest));
        least.unwrap_or_else(|| Columns::tilted(block, c, &sizes, None))
    }

    /// With the k of one neuron.
    fn tilted(block: &Block, c: &ResponseClaim, sizes: &[f64], like: Option<usize>) -> Columns {
        let column = |k: usize| block.down.column(c.units.start + k);
        let tilt: Vec<f64> = match like {
            Some(k) => {
                let out = c.stack.neurons[k].out;
                column(k).iter().zip(&c.v).map(|(y, v)| (y - out * v) / out).collect()
            }
            None => vec![0.0; c.v.len()],
        };
        let (mut steepest, mut rest) = (0f64, Interval::ZERO);
        for (k, n) in c.stack.neurons.iter().enumerate() {
            let kappa = norm_of(
                column(k)
                    .iter()
                    .zip(&c.v)
                    .zip(&tilt)
                    .map(|((y, v), t)| point(*y) - point(n.out) * (point(*v) + point(*t))),
            );
            if kappa != 0.0 {
                steepest = steepest.max((point(kappa) / point(n.out.abs())).hi());
                rest = rest + times(point(sizes[k]), point(kappa));
            }
        }
        Columns { tilt: norm_of(tilt.iter().map(|x| point(*x))), steepest, rest: upper(rest) }
    }

    /// Bound on Σ|h|·‖κ‖ where Σ|a·h| ≤ `mass`.
    fn rest(&self, mass: f64) -> Interval {
        point(upper(times(point(mass), point(self.steepest))).min(self.rest))
    }
}

/// So many different columns are tried as the one that the others are compared with.
const MOST_COLUMNS: usize = 4;

/// Bound on |h| over the domain.
fn largest(unit: &Unit, source: &Activation, arithmetic: &Arithmetic, domain: Domain) -> f64 {
    let z = Interval::new(domain.lo(), domain.hi());
    let line =
        |(p, q): (f64, f64), error: f64| arithmetic.round(arithmetic.gate, (point(p) * z + point(q)).inflate(error));
    let gate = line((unit.weight, unit.bias), unit.gate_error);
    let s = arithmetic.round(arithmetic.sigma, arithmetic.sigma(source, gate));
    match unit.up {
        Some(up) => arithmetic.product(s, line(up, unit.up_error)).mag(),
        None => arithmetic.round(Rounded::Yes, s).mag(),
    }
}

/// What is added to the stream, before it is summed over hidden units and rounded.
struct Sum {
    outside: Interval,
    hull: Interval,
    quiet: Option<Interval>,
    /// γ·Σ‖ŷ·h‖: anywhere, and where all is quiet
    summing: [Interval; 2],
    size: Interval,
}

impl Sum {
    fn new(block: &Block, claims: &[ResponseClaim], parts: &[Part], arithmetic: &Arithmetic) -> Sum {
        let constants = point(crate::derive::total(block, claims, &[], &Reading::exact()).constant_error);
        let bias = point(norm_of(block.down_bias.iter().flat_map(|b| b.iter()).map(|b| point(*b))));
        let add = |f: &dyn Fn(&Part) -> f64| parts.iter().fold(Interval::ZERO, |s, p| s + point(f(p)));
        let factor = point(down_factor(block, arithmetic));
        let quiet = parts.iter().map(|p| p.quiet).collect::<Option<Vec<f64>>>();
        Sum {
            outside: add(&|p| p.proof.outside) + constants,
            hull: add(&|p| p.proof.hull) + constants,
            quiet: quiet.map(|q| q.iter().fold(constants, |s, q| s + point(*q))),
            summing: [0, 1].map(|k| times(factor, add(&|p| p.mass[k]) + bias)),
            size: add(&|p| p.size),
        }
    }

    /// Through the rounding of the output and the residual addition; d coordinates, ‖x‖ ≤ `norm`.
    fn total(&self, d: usize, norm: f64, arithmetic: &Arithmetic) -> DeployedTotal {
        let u = point(unit_roundoff(arithmetic.stream));
        let least = point(underflow(arithmetic.stream)) * point(d as f64).sqrt();
        let added = self.size + self.hull + self.summing[0];
        let rounding = u * added + least;
        let residual = u * (point(norm) + added + rounding);
        let after = self.summing[0] + rounding + residual;
        let quiet = self.quiet.map(|q| {
            let leaks = q + self.summing[1];
            // Zeros add up to 0, and x + 0 = x.
            let rounded = if leaks.hi() == 0.0 { leaks } else { leaks + u * leaks + least };
            upper(point(2.0) * rounded)
        });
        DeployedTotal {
            outside: upper(self.outside + after),
            hull: upper(self.hull + after),
            quiet,
            summing: upper(self.summing[0]),
            rounding: upper(rounding),
            residual: upper(residual),
        }
    }
}

/// γ of the down projection. The output bias comes from at most three constant units.
fn down_factor(block: &Block, arithmetic: &Arithmetic) -> f64 {
    arithmetic.accumulation.factor(block.intermediate_size() + 3, arithmetic.stream)
}
