//! From gated claims to bounds: what two blocks that follow one another compute.
//!
//! Part of the trusted base, without I/O. Coordinates are the d live ones of the stream, then g *between* the two blocks.
//!
//! The first block leaves the live ones alone. It writes a guard h_q = σ(−K_q·ℓ_q) for each condition ℓ_q > 0, and a
//! payload p_j for each continuous response behind a gate. The second block reads both:
//!
//! ```text
//! gated unit     σ(c − Σ h_q)·(A/c)·v    A = the payload: affine in x, or p_j
//! removal unit   σ(128)·(h/128)·(−1)     takes the coordinate back to 0
//! ```
//!
//! With F = σ(c − Σ h_q)/c the factor on the payload, at distance > δ_q from every ℓ_q = 0:
//! all conditions hold: h_q ∈ σ((−∞, −K_q·δ_q]), next to 0, F = 1 ± e_on;
//! one fails: h_q ≥ inf σ([K_q·δ_q, ∞)), the others ≥ inf σ, so that the gate is far below 0 and |F| ≤ e_off.
//! In between F ∈ σ((−∞, c − n·inf σ])/c, which leaves \[0, 1\] by the overshoot.
//!
//! Where the payload vanishes with a condition (A = α·ℓ, as in relu), the response is continuous there and no band is needed:
//! with t = K·ℓ, |A·(F − 1\[t > 0\])| ≤ |α|/K · sup_t |t·(F(t) − 1\[t > 0\])|, found by an interval sweep.
//!
//! Rounded rows shift ℓ by ‖ρ‖R + |s| (counted in δ), the payload's row likewise (times F, counted in the error). In 16-bit
//! formats three units carry one payload: rows û = û₁ + û₂ and columns ŷ = ŷ₁ + ŷ₂ in high and low parts, all products but
//! û₂·ŷ₂.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::activation::{Activation, Side};
use crate::algebra::enclose;
use crate::block::Block;
use crate::certify::{Domain, Status, value_bound};
use crate::derive::{
    BlockProof, PreActivation, Reading, ResponseClaim, ResponseProof, Total, derive_units, norm_of, point, total, upper,
};
use crate::error::{At, Error, Result};
use crate::expr::{Affine, Expr};
use crate::gates::{Term, ratio};
use crate::interval::Interval;
use crate::ridge::indices;
use crate::stack::Form;

/// The gate of a removal unit, and its reciprocal weight.
pub const REMOVAL: f64 = 128.0;

/// One gated term and where it is in the blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct GatedClaim {
    /// for messages
    pub name: String,
    /// z, z_1, …; w has length d
    pub pre_activations: Vec<PreActivation>,
    /// what is computed
    pub term: Term,
    /// the write direction, \[d\]
    pub v: Vec<f64>,
    /// the values of every pre-activation for which the certificate is to hold
    pub domain: Domain,
    /// the band's radius around a condition's boundary, before rounding
    pub delta: f64,
    /// the tolerance asked for
    pub tolerance: Option<f64>,
    /// for each condition, its guard: coordinate d + q
    pub guards: Vec<usize>,
    /// a payload that the first block computes: coordinate d + q
    pub carried: Option<usize>,
    /// hidden units of the second block
    pub units: Range<usize>,
    /// c, a power of two
    pub open: f64,
}

/// Two blocks and what they are claimed to do.
#[derive(Clone, Debug, PartialEq)]
pub struct TwoLayerClaim {
    /// d
    pub live: usize,
    /// K of each guard; guard q is coordinate d + q and, after the payloads' units, unit q of the first block
    pub guards: Vec<f64>,
    /// payloads, in the first block's first units; payload j is coordinate d + guards + j
    pub carried: Vec<ResponseClaim>,
    /// responses without a gate, in the second block's first units
    pub free: Vec<ResponseClaim>,
    /// gated terms, in the units that follow; the removal units come last
    pub gated: Vec<GatedClaim>,
}

/// What was proved about a gated term, for ‖x‖ ≤ R.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateFigures {
    /// is the tolerance met off the bands?
    pub status: Status,
    /// for each condition ℓ > 0, the radius of the band |ℓ| ≤ δ in which the term may be on or off; 0 where the term is
    /// continuous there
    pub bands: Vec<f64>,
    /// sup of the payload
    pub payload: f64,
    /// bound on |factor − 0 or 1| off the bands
    pub factor: f64,
    /// how far the factor leaves \[0, 1\] within a band
    pub overshoot: f64,
    /// bound on ‖written − c·v‖ off the bands
    pub outside: f64,
    /// bound on the distance from the segment {0, c}·v, wherever x is
    pub hull: f64,
}

/// What was proved about two blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct TwoLayerProof {
    /// the payloads
    pub carried: Vec<ResponseProof>,
    /// the responses without a gate
    pub free: Vec<ResponseProof>,
    /// the gated terms
    pub gated: Vec<GateFigures>,
    /// the sum
    pub total: Total,
    /// bound on the norm of what is in the coordinates between the blocks
    pub reach: f64,
}

/// Proves what two blocks do for the claims, for all x with ‖x‖ ≤ `norm`.
///
/// Errors: blocks that are not built as the module's head says; what [`mod@crate::derive`] refuses; a reading other than x
/// itself.
pub fn derive_two(
    first: &Block,
    second: &Block,
    claim: &TwoLayerClaim,
    norm: f64,
    reading: &Reading,
) -> Result<TwoLayerProof> {
    if !reading.is_exact() {
        return Err(Error::unsupported("two inserted layers need a norm that hands over x itself: padded carriers"));
    }
    if !(norm > 0.0 && norm.is_finite()) {
        return Err(Error::input(format!(
            "the bound on the residual's norm is {norm}; it must be positive and finite"
        )));
    }
    structure(first, second, claim)?;
    let units = |claims: &[ResponseClaim]| claims.iter().map(|c| c.units.len()).sum::<usize>();
    let own = |block: &Block, claims: &[ResponseClaim]| derive_units(block, claims, units(claims), Some(norm), reading);
    let carried = own(first, &claim.carried)?;
    let free = own(second, &claim.free)?;
    let rows = claim.guard_rows(first, norm)?;
    let gated: Vec<GateFigures> = claim
        .gated
        .iter()
        .map(|g| gate(second, claim, g, &rows, &carried, norm).at(|| g.name.clone()))
        .collect::<Result<_>>()?;
    let mut sum = total(second, &claim.free, &free.responses, reading);
    let add = |f: &dyn Fn(&GateFigures) -> f64| gated.iter().fold(Interval::ZERO, |s, g| s + point(f(g)));
    sum.outside = upper(point(sum.outside) + add(&|g| g.outside));
    sum.hull = upper(point(sum.hull) + add(&|g| g.hull));
    let reach = reach(first, claim, &rows, &carried, norm)?;
    Ok(TwoLayerProof { carried: carried.responses, free: free.responses, gated, total: sum, reach })
}

/// What a rounded guard row does: sup |ℓ| and by how much ℓ is off, for the condition that it stands for.
struct GuardRow {
    off: f64,
    largest: f64,
}

impl TwoLayerClaim {
    /// g
    pub fn between(&self) -> usize {
        self.guards.len() + self.carried.len()
    }

    /// Every guard with the conditions that use it: one row may serve several terms, if they mean the same by it.
    fn guard_rows(&self, first: &Block, norm: f64) -> Result<Vec<GuardRow>> {
        let mut rows: Vec<Option<GuardRow>> = self.guards.iter().map(|_| None).collect();
        let offset: usize = self.carried.iter().map(|c| c.units.len()).sum();
        for g in &self.gated {
            for (condition, q) in g.term.conditions.iter().zip(&g.guards) {
                let condition = affine(condition)?;
                let unit = offset + q;
                let k = -self.guards[*q];
                let gate = &first.gate;
                let row = |i: usize| gate[(unit, i)];
                let bias = first.gate_bias.as_ref().map_or(0.0, |b| b[unit]);
                let (rest, s) = row_error(&row, bias, k, &condition, &g.pre_activations, self.live);
                let off = upper((point(rest) * point(norm) + point(s)) / point(k.abs()));
                let largest = size(&condition, &g.pre_activations, g.domain, norm)?;
                let seen = GuardRow { off, largest };
                rows[*q] = Some(match rows[*q].take() {
                    Some(old) => GuardRow { off: old.off.max(seen.off), largest: old.largest.max(seen.largest) },
                    None => seen,
                });
            }
        }
        let all: Option<Vec<GuardRow>> = rows.into_iter().collect();
        all.ok_or_else(|| Error::input("a guard that no term uses"))
    }
}

pub(crate) fn affine(e: &Expr) -> Result<Affine> {
    e.affine().ok_or_else(|| Error::input(format!("{e} is not affine in the pre-activations")))
}

/// (‖ĝ − k·Σ c_j w_j‖, |p̂ − k·(Σ c_j b_j + constant)|), upper bounds, for a row ĝ with bias p̂.
fn row_error(
    row: &dyn Fn(usize) -> f64,
    bias: f64,
    k: f64,
    form: &Affine,
    pre: &[PreActivation],
    live: usize,
) -> (f64, f64) {
    let k = point(k);
    let terms: Vec<(Interval, &PreActivation)> =
        form.coefficients.iter().map(|(j, c)| (enclose(c), &pre[*j])).collect();
    let rest = (0..live).map(|i| {
        let wanted = terms.iter().fold(Interval::ZERO, |sum, (c, p)| sum + *c * point(p.w[i]));
        point(row(i)) - k * wanted
    });
    let constant = terms.iter().fold(enclose(&form.constant), |sum, (c, p)| sum + *c * point(p.b));
    (norm_of(rest), upper((point(bias) - k * constant).abs()))
}

/// sup |form| over the domain and ‖x‖ ≤ norm.
pub(crate) fn size(form: &Affine, pre: &[PreActivation], domain: Domain, norm: f64) -> Result<f64> {
    let mut sum = enclose(&form.constant);
    for (j, c) in &form.coefficients {
        sum = sum + enclose(c) * range(&pre[*j], domain, norm)?;
    }
    Ok(sum.mag())
}

/// What a pre-activation can be.
fn range(p: &PreActivation, domain: Domain, norm: f64) -> Result<Interval> {
    let reach = point(norm_of(p.w.iter().map(|x| point(*x)))) * point(norm);
    let all = point(p.b) + Interval::symmetric(reach.hi());
    all.intersect(Interval::new(domain.lo(), domain.hi()))
        .ok_or_else(|| Error::input("the range of pre-activations does not meet what the norm allows"))
}

/// σ on (−∞, k]: its enclosure, and its tail bound where it dies out.
fn left(sigma: &Activation, k: f64) -> Interval {
    let all = sigma.jet(Interval::new(f64::NEG_INFINITY, k)).v;
    let tail = sigma.tail(Side::Left);
    let dies = tail.asymptote.iter().all(|c| c.signum() == 0);
    let rest = if k < 0.0 && dies { tail.remainder(-k, 0) } else { f64::INFINITY };
    all.intersect(Interval::symmetric(rest)).unwrap_or(all)
}

/// The factor F = σ(c − Σ h)/c in its three regimes.
struct Factor {
    error: f64,
    overshoot: f64,
    largest: f64,
}

/// `arguments`: K·δ of the conditions with a band; `others`: how many more there are, whose guards may be anything.
fn factor(sigma: &Activation, c: f64, arguments: &[f64], others: usize) -> Factor {
    let value = |x: Interval| sigma.jet(x).v;
    let least = value(Interval::ENTIRE).lo().min(0.0);
    let far = |k: f64| left(sigma, k);
    let n = (arguments.len() + others) as f64;
    // All conditions hold.
    let tails = arguments.iter().fold(Interval::ZERO, |sum, a| sum + far(-a));
    let on = (value(point(c) - tails) / point(c) - point(1.0)).mag();
    // One fails, the others may be anything.
    let rest = point(n - 1.0) * point(-least);
    let off = arguments.iter().map(|a| {
        let shut = point(c) - point(value(Interval::new(*a, f64::INFINITY)).lo()) + rest;
        (far(shut.hi()) / point(c)).mag()
    });
    let off = off.fold(0.0, f64::max);
    let all = far((point(c) + point(n) * point(-least)).hi()) / point(c);
    Factor {
        // Without a band there is nothing but what `soft` speaks of.
        error: if arguments.is_empty() { 0.0 } else { on.max(off) },
        overshoot: upper((-all).max(all - point(1.0)).max(Interval::ZERO)),
        largest: all.mag(),
    }
}

/// sup_t |t·(F(t) − 1[t > 0])| with F(t) = σ(c − σ(−t) − others)/c, others the tails of the other conditions' guards.
fn soft(sigma: &Activation, c: f64, others: &[f64], largest: f64) -> f64 {
    let value = |x: Interval| sigma.jet(x).v;
    let far = |k: f64| left(sigma, k);
    let tails = others.iter().fold(Interval::ZERO, |sum, a| sum + far(-a));
    let open = point(c) - tails;
    let at = |t: Interval, goal: f64| {
        let f = value(open - value(-t)) / point(c);
        (t.abs().mag() * (f - point(goal)).mag()).next_up()
    };
    const CELLS: u32 = 8192;
    let end = 2.0 * c + 1024.0;
    let mut bound = 0f64;
    for k in 0..CELLS {
        let (lo, hi) = (end * f64::from(k) / f64::from(CELLS), end * f64::from(k + 1) / f64::from(CELLS));
        bound = bound.max(at(Interval::new(lo, hi), 1.0)).max(at(Interval::new(-hi, -lo), 0.0));
    }
    // Beyond the sweep |t| ≤ largest.
    if largest > end {
        let on = (value(open - far(-end)) / point(c) - point(1.0)).mag();
        let shut = (open - point(value(Interval::new(end, f64::INFINITY)).lo())).hi();
        let off = (far(shut) / point(c)).mag();
        bound = bound.max((point(largest) * point(on.max(off))).hi());
    }
    bound
}

fn gate(
    second: &Block,
    claim: &TwoLayerClaim,
    g: &GatedClaim,
    rows: &[GuardRow],
    carried: &BlockProof,
    norm: f64,
) -> Result<GateFigures> {
    let sigma = &second.source;
    let c = g.open;
    let payload = g.term.payload.affine().filter(|_| g.carried.is_none());
    // The condition with which an affine payload vanishes, if there is one.
    let vanishing = payload
        .as_ref()
        .and_then(|p| g.term.conditions.iter().enumerate().find_map(|(i, e)| Some((i, ratio(p, &e.affine()?)?))));
    let scale = |q: usize| claim.guards[q];
    // K·δ for conditions with a band; ẑ leaves the band of radius δ + off only if the shifted one leaves δ.
    let banded: Vec<usize> = (0..g.guards.len()).filter(|i| vanishing.as_ref().is_none_or(|(k, _)| k != i)).collect();
    let arguments: Vec<f64> =
        banded.iter().map(|i| (point(scale(g.guards[*i])) * point(g.delta)).lo().max(0.0)).collect();
    let f = factor(sigma, c, &arguments, usize::from(vanishing.is_some()));
    if !(f.error.is_finite() && f.overshoot.is_finite() && f.largest.is_finite()) {
        return Err(Error::unsupported(format!("{sigma} does not die out on its left, as gates need"))
            .help("relu, silu, gelu and their kind do; or layers = 1"));
    }
    let mut bands = vec![0.0; g.guards.len()];
    for i in &banded {
        bands[*i] = upper(point(g.delta) + point(rows[g.guards[*i]].off));
    }
    let v_norm = norm_of(g.v.iter().map(|x| point(*x)));
    let (size_of_payload, payload_error) = match g.carried {
        Some(q) => {
            let j = q - claim.guards.len();
            let proof = &carried.responses[j];
            let rounding = proof.rounding.as_ref().ok_or_else(|| Error::input("a payload without a norm"))?;
            let target = &claim.carried[j];
            let index = indices(&g.term.payload).first().copied().unwrap_or(0);
            let z = g.pre_activations.get(index).map_or(Ok(Interval::ZERO), |p| range(p, g.domain, norm))?;
            let bound = value_bound(&target.target, Domain::new(z.lo(), z.hi().max(z.lo().next_up()))?)?;
            let constants = carried.total.as_ref().map_or(0.0, |t| t.constant_error);
            (bound, upper(point(rounding.outside) + point(constants)))
        }
        None => {
            let p = payload.as_ref().ok_or_else(|| Error::input("a payload that is not affine is carried"))?;
            (size(p, &g.pre_activations, g.domain, norm)?, 0.0)
        }
    };
    // The payload's row, scaled by c, and the column.
    let parts = unit_parts(second, claim, g)?;
    let (mut row_off, mut low_row) = (payload_error, Interval::ZERO);
    if let (None, Some(up)) = (g.carried, &payload) {
        let u = &parts;
        let row = |i: usize| u.row_high[i] + u.row_low[i];
        // The sum of two parts is exact only as an interval: compare part by part.
        let exact_sum = (0..claim.live).all(|i| exact_add(u.row_high[i], u.row_low[i]));
        if !exact_sum || !exact_add(u.bias_high, u.bias_low) {
            return Err(Error::input("the parts of a payload's row do not add up exactly"));
        }
        let (rest, s) = row_error(&row, u.bias_high + u.bias_low, 1.0 / c, up, &g.pre_activations, claim.live);
        row_off = upper((point(rest) * point(norm) + point(s)) * point(c));
        low_row =
            (point(norm_of(u.row_low.iter().map(|x| point(*x)))) * point(norm) + point(u.bias_low.abs())) * point(c);
    }
    let kappa = norm_of(
        parts.column_high.iter().zip(&parts.column_low).zip(&g.v).map(|((a, b), v)| point(*a) + point(*b) - point(*v)),
    );
    let low_column = norm_of(parts.column_low.iter().map(|x| point(*x)));
    // The product of the low parts, which no unit computes; 0 where there is only one of them.
    let low = low_row * point(low_column);
    let sup = point(size_of_payload) + point(row_off);
    let rounding =
        point(f.largest.max(1.0)) * (point(row_off) * (point(v_norm) + point(kappa)) + sup * point(kappa) + low);
    let soft_error = match &vanishing {
        None => Interval::ZERO,
        Some((i, alpha)) => {
            let q = g.guards[*i];
            let k = scale(q);
            let reach = (point(k) * (point(rows[q].largest) + point(rows[q].off))).hi();
            let alpha = point(enclose(alpha).mag());
            alpha * (point(soft(sigma, c, &arguments, reach)) / point(k) + point(rows[q].off) * point(f.largest + 1.0))
        }
    };
    let outside = upper((point(f.error) * sup + soft_error) * point(v_norm) + rounding);
    let hull = upper((point(f.overshoot.max(f.error)) * sup + soft_error) * point(v_norm) + rounding);
    let met = g.tolerance.is_none_or(|t| outside <= (point(t) * point(v_norm)).lo());
    Ok(GateFigures {
        status: if met { Status::Within } else { Status::BestEffort },
        bands,
        payload: size_of_payload,
        factor: f.error,
        overshoot: f.overshoot,
        outside,
        hull,
    })
}

/// Is a + b a number of f64 without rounding? (Knuth's two-sum: the error is 0.)
pub(crate) fn exact_add(a: f64, b: f64) -> bool {
    let sum = a + b;
    let bb = sum - a;
    (a - (sum - bb)) + (b - bb) == 0.0
}

/// A gated term's rows and columns, in high and low parts.
pub(crate) struct UnitParts {
    pub(crate) row_high: Vec<f64>,
    pub(crate) row_low: Vec<f64>,
    pub(crate) bias_high: f64,
    pub(crate) bias_low: f64,
    pub(crate) column_high: Vec<f64>,
    pub(crate) column_low: Vec<f64>,
}

/// The parts of a term's units: one (no low parts), two (columns in parts), or three (rows and columns in parts).
pub(crate) fn unit_parts(second: &Block, claim: &TwoLayerClaim, g: &GatedClaim) -> Result<UnitParts> {
    let d = claim.live;
    let up = second.up.as_ref().ok_or_else(|| Error::input("a gated term in a plain block"))?;
    let row = |u: usize| (0..d).map(|i| up[(u, i)]).collect::<Vec<f64>>();
    let bias = |u: usize| second.up_bias.as_ref().map_or(0.0, |b| b[u]);
    let column = |u: usize| (0..d).map(|i| second.down[(i, u)]).collect::<Vec<f64>>();
    let u = g.units.start;
    let none = || vec![0.0; d];
    let (row_low, bias_low, column_low) = match g.units.len() {
        1 => (none(), 0.0, none()),
        2 => (none(), 0.0, column(u + 1)),
        3 => (row(u + 2), bias(u + 2), column(u + 1)),
        n => return Err(Error::input(format!("{n} hidden units for one gated term"))),
    };
    if g.units.len() >= 2 && (row(u) != row(u + 1) || bias(u) != bias(u + 1)) {
        return Err(Error::input("the units of a gated term differ in their payload"));
    }
    if g.units.len() == 3 && column(u) != column(u + 2) {
        return Err(Error::input("the units of a gated term differ in their column"));
    }
    Ok(UnitParts { row_high: row(u), row_low, bias_high: bias(u), bias_low, column_high: column(u), column_low })
}

fn reach(first: &Block, claim: &TwoLayerClaim, rows: &[GuardRow], carried: &BlockProof, norm: f64) -> Result<f64> {
    let mut squares = Interval::ZERO;
    for (row, k) in rows.iter().zip(&claim.guards) {
        let end = (point(*k) * (point(row.largest) + point(row.off))).hi();
        squares = squares + point(first.source.jet(Interval::symmetric(end)).v.mag()).sqr();
    }
    for (c, p) in claim.carried.iter().zip(&carried.responses) {
        let pre = PreActivation { w: c.w.clone(), b: c.b };
        let z = range(&pre, c.domain, norm)?;
        let value = value_bound(&c.target, Domain::new(z.lo(), z.hi().max(z.lo().next_up()))?)?;
        let off = p.rounding.as_ref().map_or(0.0, |r| r.hull);
        squares = squares + (point(value) + point(off)).sqr();
    }
    Ok(upper(squares.sqrt()))
}

/// Everything that the bounds take for granted, exactly.
pub(crate) fn structure(first: &Block, second: &Block, claim: &TwoLayerClaim) -> Result<()> {
    let (d, g) = (claim.live, claim.between());
    let wrong = |text: String| Err(Error::input(text));
    if first.form != Form::Gated || second.form != Form::Gated || first.source != second.source {
        return wrong("two inserted layers are gated and have one activation".into());
    }
    // Else what stands between the layers would not be removed.
    let constant = first.source.jet(point(REMOVAL)).v;
    if (constant - point(REMOVAL)).mag() > REMOVAL * 1e-12 {
        return Err(Error::unsupported(format!("{} does not approach the identity, as gates need", first.source))
            .help("relu, silu, gelu and their kind do; or layers = 1"));
    }
    if first.hidden_size() != d + g || second.hidden_size() != d + g {
        return wrong(format!("the blocks' width is not {d} + {g}"));
    }
    let (Some(first_up), Some(second_up)) = (&first.up, &second.up) else {
        return wrong("a gated block without up rows".into());
    };
    if claim.guards.iter().any(|k| !(*k > 0.0 && k.is_finite())) {
        return wrong("a guard's slope is not positive".into());
    }
    let bias = |b: &Option<nalgebra::DVector<f64>>, i: usize| b.as_ref().map_or(0.0, |b| b[i]);
    // The first block.
    let carried_units: usize = claim.carried.iter().map(|c| c.units.len()).sum();
    if first.intermediate_size() != carried_units + claim.guards.len() {
        return wrong("hidden units of the first block that nothing is said of".into());
    }
    let written = |u: usize| -> Result<usize> {
        if u >= carried_units {
            return Ok(d + u - carried_units);
        }
        let owner = claim.carried.iter().position(|c| c.units.contains(&u));
        owner.map(|j| d + claim.guards.len() + j).ok_or_else(|| Error::input("a unit of no payload"))
    };
    for u in 0..first.intermediate_size() {
        let to = written(u)?;
        if (0..d + g).any(|i| i != to && first.down[(i, u)] != 0.0) {
            return wrong(format!("unit {u} of the first block writes elsewhere than to coordinate {to}"));
        }
        if (d..d + g).any(|k| first.gate[(u, k)] != 0.0 || first_up[(u, k)] != 0.0) {
            return wrong(format!("unit {u} of the first block reads what it is to write"));
        }
        let guard = u >= carried_units;
        if guard
            && (first.down[(to, u)] != 1.0 || bias(&first.up_bias, u) != 1.0 || (0..d).any(|k| first_up[(u, k)] != 0.0))
        {
            return wrong(format!("unit {u} of the first block is no guard"));
        }
    }
    for (j, c) in claim.carried.iter().enumerate() {
        let own = d + claim.guards.len() + j;
        if c.v.iter().enumerate().any(|(i, x)| *x != if i == own { 1.0 } else { 0.0 }) {
            return wrong(format!("payload {j} is not written to its coordinate"));
        }
    }
    // A payload's constant, if any, is added to its own coordinate; `derive` accounts for it.
    if (0..d + claim.guards.len()).any(|i| bias(&first.down_bias, i) != 0.0) {
        return wrong("the first block adds a constant".into());
    }
    // The second block.
    let free_units: usize = claim.free.iter().map(|c| c.units.len()).sum();
    let mut next = free_units;
    for t in &claim.gated {
        if t.units.start != next || t.guards.len() != t.term.conditions.len() || t.guards.is_empty() {
            return wrong(format!("{}: hidden units or guards do not fit", t.name));
        }
        next = t.units.end;
        if t.v.len() != d || t.pre_activations.iter().any(|p| p.w.len() != d) {
            return wrong(format!("{}: a vector is not of length {d}", t.name));
        }
        let arity = t.term.conditions.iter().chain([&t.term.payload]).map(Expr::arity).max().unwrap_or(0);
        if t.pre_activations.len() < arity {
            return wrong(format!("{}: {arity} pre-activations are needed", t.name));
        }
        if t.guards.iter().any(|q| *q >= claim.guards.len())
            || t.carried.is_some_and(|q| !(claim.guards.len()..g).contains(&q))
        {
            return wrong(format!("{}: no such coordinate between the layers", t.name));
        }
        if !(t.open > 0.0 && t.open.is_finite() && t.open.log2().fract() == 0.0) {
            return wrong(format!("{}: c = {} is no power of two", t.name, t.open));
        }
        if !(t.delta > 0.0 && t.delta.is_finite()) {
            return wrong(format!("{}: the band is {}; it must be positive", t.name, t.delta));
        }
        if let Some(q) = t.carried {
            let c = &claim.carried[q - claim.guards.len()];
            let index = indices(&t.term.payload).first().copied().unwrap_or(0);
            let same = t.pre_activations.get(index).is_some_and(|p| p.w[..] == c.w[..d] && p.b == c.b)
                && c.w[d..].iter().all(|x| *x == 0.0)
                && t.term.payload.substitute(&|_| Expr::z()) == c.target;
            if !same || c.domain != t.domain {
                return wrong(format!("{}: the payload is not what the first block carries", t.name));
            }
        }
        for u in t.units.clone() {
            let gate_is_good = (0..d).all(|k| second.gate[(u, k)] == 0.0)
                && (0..g).all(|q| second.gate[(u, d + q)] == if t.guards.contains(&q) { -1.0 } else { 0.0 })
                && bias(&second.gate_bias, u) == t.open;
            let up_is_good = match t.carried {
                None => (d..d + g).all(|k| second_up[(u, k)] == 0.0),
                Some(own) => {
                    (0..d).all(|k| second_up[(u, k)] == 0.0)
                        && (0..g).all(|q| second_up[(u, d + q)] == if q == own { 1.0 / t.open } else { 0.0 })
                        && bias(&second.up_bias, u) == 0.0
                }
            };
            if !gate_is_good || !up_is_good || (d..d + g).any(|i| second.down[(i, u)] != 0.0) {
                return wrong(format!("{}: unit {u} of the second block is no gate on its conditions", t.name));
            }
        }
    }
    for u in 0..free_units {
        let apart =
            (d..d + g).all(|k| second.gate[(u, k)] == 0.0 && second_up[(u, k)] == 0.0 && second.down[(k, u)] == 0.0);
        if !apart {
            return wrong(format!("unit {u} of the second block meets what is between the layers"));
        }
    }
    if second.intermediate_size() != next + g {
        return wrong("hidden units of the second block that nothing is said of".into());
    }
    for q in 0..g {
        let u = next + q;
        let good = (0..d + g).all(|k| {
            second.gate[(u, k)] == 0.0
                && second_up[(u, k)] == if k == d + q { 1.0 / REMOVAL } else { 0.0 }
                && second.down[(k, u)] == if k == d + q { -1.0 } else { 0.0 }
        });
        if !good || bias(&second.gate_bias, u) != REMOVAL || bias(&second.up_bias, u) != 0.0 {
            return wrong(format!("unit {u} of the second block does not remove coordinate {}", d + q));
        }
    }
    if (d..d + g).any(|i| bias(&second.down_bias, i) != 0.0) {
        return wrong("the second block adds a constant between the layers".into());
    }
    Ok(())
}
