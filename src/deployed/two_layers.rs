//! Two layers in an engine's arithmetic: guards, gates and payloads.
//!
//! What they compute stands in [`crate::gated`]. In an engine, with fl the rounding to the stream:
//!
//! ```text
//! guard      h = fl σ̂(fl(−K·ℓ̂))·1, |ℓ̂ − ℓ| ≤ |⟨ρ, x⟩|/K + |s|/K + γ·(…)/K =: off; it passes the stream unharmed (0 + h)
//! gate       s = fl σ̂(fl(c − Σ h)), the sum off by γ·(c + Σ|h|)
//! payload    U = fl(⟨û, x⟩ + q̂)
//! written    Σ ŷ·fl(s·U)
//! ```
//!
//! Rounding is monotone, so enclosures of h, s and the factor F = s/c follow from their ends. At distance > δ + off from every
//! boundary: guards of conditions that hold are fl σ̂ of (−∞, −Kδ], an exact 0 as a rule, and s = c; one that fails shuts the gate, and
//! s is an exact 0. Then nothing is written, and x stays what it is.

use serde::{Deserialize, Serialize};

use super::{Deployed, Part, Sum, check, down_factor, parts, times};
use crate::activation::Activation;
use crate::algebra::enclose;
use crate::arithmetic::{Arithmetic, Rounded, unit_roundoff};
use crate::block::Block;
use crate::derive::{PreActivation, Reading, norm_of, point, upper};
use crate::error::{At, Error, Result};
use crate::expr::Affine;
use crate::gated::{GatedClaim, TwoLayerClaim, affine, exact_add, size, structure, unit_parts};
use crate::gates::ratio;
use crate::interval::Interval;
use crate::tokens::Tokens;

/// What was proved of a gated term in one arithmetic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeployedTerm {
    /// for each condition, the radius of the band around its boundary; 0 where the term is continuous there
    pub bands: Vec<f64>,
    /// bound on |factor − 0 or 1| off the bands
    pub factor: f64,
    /// the payload is off by at most this
    pub payload_error: f64,
    /// bound on ‖written − c·v‖ off the bands, before the sum over hidden units and what follows
    pub outside: f64,
    /// bound on the distance from the segment {0, c}·v, wherever x is
    pub hull: f64,
    /// bound on ‖written‖ where a condition fails, off the bands
    pub off: f64,
}

/// Proves what two blocks do in an engine's arithmetic, for the tokens named.
///
/// Errors: as [`super::deploy`]; blocks that are not built as [`crate::gated`] says.
pub fn deploy_two(
    first: &Block,
    second: &Block,
    claim: &TwoLayerClaim,
    tokens: &mut Tokens<'_>,
    arithmetic: &Arithmetic,
) -> Result<Deployed> {
    check(first, &Reading::exact(), arithmetic)?;
    structure(first, second, claim)?;
    let carried = parts(first, &claim.carried, tokens, arithmetic)?;
    let free = parts(second, &claim.free, tokens, arithmetic)?;
    let guards = guards(first, claim, tokens, arithmetic)?;
    let mut sum = Sum::new(second, &claim.free, &free, arithmetic);
    let mut terms = Vec::with_capacity(claim.gated.len());
    for g in &claim.gated {
        let known = Known { first, second, claim, guards: &guards, carried: &carried, arithmetic };
        let term = known.term(g, tokens).at(|| g.name.clone())?;
        let factor = point(down_factor(second, arithmetic));
        sum.outside = sum.outside + point(term.proof.outside);
        sum.hull = sum.hull + point(term.proof.hull);
        sum.size = sum.size + point(term.size);
        sum.quiet = sum.quiet.map(|q| q + point(term.proof.off));
        sum.summing[0] = sum.summing[0] + times(factor, point(term.mass));
        sum.summing[1] = sum.summing[1] + times(factor, point(term.proof.off));
        terms.push(term.proof);
    }
    let total = sum.total(claim.live, tokens.norm(), arithmetic);
    let responses = free.into_iter().chain(carried).map(|p| p.proof).collect();
    Ok(Deployed { arithmetic: arithmetic.name.into(), responses, terms, total })
}

/// A factor that is off by more than this at a band's edge makes no gate.
const AJAR: f64 = 0.25;

/// A guard's row in the engine.
struct Guard {
    /// by how much ℓ is off
    off: f64,
    /// sup|ℓ|
    largest: f64,
}

fn guards(
    first: &Block,
    claim: &TwoLayerClaim,
    tokens: &mut Tokens<'_>,
    arithmetic: &Arithmetic,
) -> Result<Vec<Guard>> {
    let mut all: Vec<Guard> = claim.guards.iter().map(|_| Guard { off: 0.0, largest: 0.0 }).collect();
    let units: usize = claim.carried.iter().map(|c| c.units.len()).sum();
    for g in &claim.gated {
        for (condition, q) in g.term.conditions.iter().zip(&g.guards) {
            let form = affine(condition)?;
            let unit = units + q;
            let row: Vec<f64> = (0..claim.live).map(|i| first.gate[(unit, i)]).collect();
            let bias = first.gate_bias.as_ref().map_or(0.0, |b| b[unit]);
            let k = claim.guards[*q];
            let row = Row { row: &row, bias, slope: -k };
            let off = upper(row.error(&form, &g.pre_activations, tokens, arithmetic) / point(k));
            all[*q].off = all[*q].off.max(off);
            all[*q].largest = all[*q].largest.max(size(&form, &g.pre_activations, g.domain, tokens.norm())?);
        }
    }
    Ok(all)
}

/// A row that is claimed to be slope·(an affine form of pre-activations).
struct Row<'a> {
    row: &'a [f64],
    bias: f64,
    slope: f64,
}

impl Row<'_> {
    /// Bound on |the engine's sum, before rounding − slope·form|.
    fn error(
        &self,
        form: &Affine,
        pre: &[PreActivation],
        tokens: &mut Tokens<'_>,
        arithmetic: &Arithmetic,
    ) -> Interval {
        let slope = point(self.slope);
        let terms: Vec<(Interval, &PreActivation)> =
            form.coefficients.iter().map(|(j, c)| (enclose(c), &pre[*j])).collect();
        let rest: Vec<Interval> = self
            .row
            .iter()
            .enumerate()
            .map(|(i, g)| point(*g) - slope * terms.iter().fold(Interval::ZERO, |s, (c, p)| s + *c * point(p.w[i])))
            .collect();
        let constant = terms.iter().fold(enclose(&form.constant), |s, (c, p)| s + *c * point(p.b));
        let s = (point(self.bias) - slope * constant).abs();
        point(tokens.inner(&rest)) + s + self.sums(tokens, arithmetic)
    }

    /// What accumulating it costs.
    fn sums(&self, tokens: &mut Tokens<'_>, arithmetic: &Arithmetic) -> Interval {
        let products = self.row.iter().filter(|g| **g != 0.0).count();
        if products == 0 {
            return Interval::ZERO;
        }
        let row: Vec<Interval> = self.row.iter().map(|g| point(*g)).collect();
        // The bias is up to three products more, see the head of `deployed`.
        let size = point(tokens.terms(&row)) + point(self.bias.abs()) * point(1.0 + 1.0 / 64.0);
        point(arithmetic.accumulation.factor(products + 3, arithmetic.stream)) * size
    }
}

/// The factor F = s/c in its regimes.
struct Factor {
    on: f64,
    off: f64,
    overshoot: f64,
    largest: f64,
    /// is s exactly c where all conditions hold? Products with it are exact then.
    exact: bool,
}

/// The engine's gate.
struct Gate<'a> {
    sigma: &'a Activation,
    arithmetic: &'a Arithmetic,
    open: f64,
}

impl Gate<'_> {
    /// What a hidden unit with that pre-activation and the up row 1 holds.
    fn guard(&self, t: Interval) -> Interval {
        let a = self.arithmetic;
        a.product(self.sigma(t), Interval::ONE)
    }

    fn sigma(&self, t: Interval) -> Interval {
        let a = self.arithmetic;
        // Infinite ends stay what they are.
        let rounded = match a.gate {
            Rounded::No => t,
            _ => {
                let r = a.round(Rounded::Yes, Interval::new(t.lo().max(-1e30), t.hi().min(1e30)));
                let ends = (if t.lo() < -1e30 { t.lo() } else { r.lo() }, if t.hi() > 1e30 { t.hi() } else { r.hi() });
                let r = Interval::new(ends.0, ends.1);
                if a.gate == Rounded::Perhaps { r.hull(t) } else { r }
            }
        };
        let s = a.sigma(self.sigma, rounded);
        if s.is_finite() { a.round(a.sigma, s) } else { s }
    }

    /// s, where the guards are in `h`.
    fn value(&self, h: &[Interval]) -> Interval {
        let sum = h.iter().fold(point(self.open), |sum, h| sum - *h);
        let zeros = h.iter().all(|h| *h == Interval::ZERO);
        let sum = if zeros {
            // Zeros add nothing, in any order.
            sum
        } else {
            let size = h.iter().fold(self.open, |s, h| s + h.mag()).next_up();
            let factor = self.arithmetic.accumulation.factor(h.len() + 3, self.arithmetic.stream);
            if size.is_finite() {
                sum.inflate((point(size) * point(factor)).hi())
            } else {
                // What grows without bound only shuts the gate: −h + γ·h = −(1 − γ)·h.
                let grown = h.iter().fold(point(self.open) * point(1.0 + factor), |s, h| {
                    let least =
                        if h.lo() > 0.0 { h.lo() * (1.0 - factor) * (1.0 - 1e-12) } else { h.lo() * (1.0 + factor) };
                    s - point(least)
                });
                Interval::new(f64::NEG_INFINITY, grown.hi())
            }
        };
        self.sigma(sum)
    }

    /// `arguments`: K·δ of the conditions with a band; `others`: how many more there are.
    fn factor(&self, arguments: &[f64], others: usize) -> Factor {
        let any = self.guard(Interval::new(f64::NEG_INFINITY, f64::INFINITY));
        let least = any.lo().min(0.0);
        let anything = Interval::new(least, f64::INFINITY);
        let shut = |a: f64| Interval::new(self.guard(Interval::new(a, f64::INFINITY)).lo(), f64::INFINITY);
        let held = |a: f64| self.guard(Interval::new(f64::NEG_INFINITY, -a));
        let c = point(self.open);
        let on = self.value(&arguments.iter().map(|a| held(*a)).collect::<Vec<_>>());
        let off = (0..arguments.len()).map(|i| {
            let h: Vec<Interval> =
                (0..arguments.len() + others).map(|j| if j == i { shut(arguments[i]) } else { anything }).collect();
            (self.value(&h) / c).mag()
        });
        let all = self.value(&vec![anything; (arguments.len() + others).max(1)]) / c;
        Factor {
            on: if arguments.is_empty() { 0.0 } else { (on / c - Interval::ONE).mag() },
            off: off.fold(0.0, f64::max),
            overshoot: upper((-all).max(all - Interval::ONE).max(Interval::ZERO)),
            largest: all.mag(),
            exact: on == c && others == 0,
        }
    }

    /// sup_t |t·(F(t) − 1[t > 0])|, the other conditions holding; up to |t| = `largest`.
    fn soft(&self, others: &[f64], largest: f64) -> f64 {
        let rest: Vec<Interval> = others.iter().map(|a| self.guard(Interval::new(f64::NEG_INFINITY, -a))).collect();
        let c = point(self.open);
        let at = |t: Interval, goal: f64| {
            let mut h = rest.clone();
            h.push(self.guard(-t));
            (point(t.mag()) * point((self.value(&h) / c - point(goal)).mag())).hi()
        };
        const CELLS: u32 = 8192;
        let end = 2.0 * self.open + 1024.0;
        let mut bound = 0f64;
        for k in 0..CELLS {
            let edge = |k: u32| end * f64::from(k) / f64::from(CELLS);
            bound = bound.max(at(Interval::new(edge(k), edge(k + 1)), 1.0));
            bound = bound.max(at(Interval::new(-edge(k + 1), -edge(k)), 0.0));
        }
        if largest > end {
            // Beyond the sweep the factor is what it is at its end, or nearer.
            let far = |t: Interval, goal: f64| {
                let mut h = rest.clone();
                h.push(self.guard(-t));
                point(largest) * point((self.value(&h) / c - point(goal)).mag())
            };
            let on = far(Interval::new(end, f64::INFINITY), 1.0);
            let off = far(Interval::new(f64::NEG_INFINITY, -end), 0.0);
            bound = bound.max(on.hi()).max(off.hi());
        }
        bound
    }
}

struct Known<'a> {
    first: &'a Block,
    second: &'a Block,
    claim: &'a TwoLayerClaim,
    guards: &'a [Guard],
    carried: &'a [Part],
    arithmetic: &'a Arithmetic,
}

struct Term {
    proof: DeployedTerm,
    /// sup‖c·v‖
    size: f64,
    /// Σ‖ŷ·h‖
    mass: f64,
}

impl Known<'_> {
    fn term(&self, g: &GatedClaim, tokens: &mut Tokens<'_>) -> Result<Term> {
        let Known { claim, guards, arithmetic, .. } = self;
        let u = point(unit_roundoff(arithmetic.stream));
        let gate = Gate { sigma: &self.second.source, arithmetic, open: g.open };
        let payload = g.term.payload.affine().filter(|_| g.carried.is_none());
        let vanishing = payload
            .as_ref()
            .and_then(|p| g.term.conditions.iter().enumerate().find_map(|(i, e)| Some((i, ratio(p, &e.affine()?)?))));
        let banded: Vec<usize> =
            (0..g.guards.len()).filter(|i| vanishing.as_ref().is_none_or(|(k, _)| k != i)).collect();
        let arguments: Vec<f64> =
            banded.iter().map(|i| (point(claim.guards[g.guards[*i]]) * point(g.delta)).lo().max(0.0)).collect();
        let f = gate.factor(&arguments, usize::from(vanishing.is_some()));
        if !(f.on.is_finite() && f.off.is_finite() && f.largest.is_finite()) {
            return Err(Error::unsupported(format!("the gate is not bounded in {}", arithmetic.name)));
        }
        if f.on > AJAR || f.off > AJAR {
            return Err(Error::unsupported(format!(
                "in {} the gate does not shut within the band of {}: its factor is off by {:.2} there, where it should be 0 or 1",
                arithmetic.name,
                g.delta,
                f.on.max(f.off)
            ))
            .help("guards grow like their slope times ‖x‖, and f16 ends at 65,504: choose bf16 or f32, a smaller domain.norm or a wider band"));
        }
        let mut bands = vec![0.0; g.guards.len()];
        for i in &banded {
            bands[*i] = upper(point(g.delta) + point(guards[g.guards[*i]].off));
        }
        let v_norm = point(norm_of(g.v.iter().map(|x| point(*x))));
        let parts = unit_parts(self.second, claim, g)?;
        let kappa = norm_of(
            parts
                .column_high
                .iter()
                .zip(&parts.column_low)
                .zip(&g.v)
                .map(|((a, b), v)| point(*a) + point(*b) - point(*v)),
        );
        let kappa = point(kappa);
        let low_column = point(norm_of(parts.column_low.iter().map(|x| point(*x))));
        let c = point(g.open);
        let (payload_size, error, low_row) = match (g.carried, &payload) {
            (Some(q), _) => self.carried(q - claim.guards.len()),
            (None, Some(form)) => {
                let norm = tokens.norm();
                let sup = size(form, &g.pre_activations, g.domain, norm)?;
                let exact_sum = (0..claim.live).all(|i| exact_add(parts.row_high[i], parts.row_low[i]));
                if !exact_sum || !exact_add(parts.bias_high, parts.bias_low) {
                    return Err(Error::input("the parts of a payload's row do not add up exactly"));
                }
                let whole: Vec<f64> = parts.row_high.iter().zip(&parts.row_low).map(|(a, b)| a + b).collect();
                let whole = Row { row: &whole, bias: parts.bias_high + parts.bias_low, slope: 1.0 / g.open };
                let high = Row { row: &parts.row_high, bias: parts.bias_high, slope: 1.0 };
                let low = Row { row: &parts.row_low, bias: parts.bias_low, slope: 1.0 };
                // The whole row's own sum counts once too often: it is not formed.
                let rows = whole.error(form, &g.pre_activations, tokens, arithmetic);
                let low_terms: Vec<Interval> = parts.row_low.iter().map(|x| point(*x)).collect();
                let low_size = point(tokens.terms(&low_terms)) + point(parts.bias_low.abs());
                let sums = high.sums(tokens, arithmetic) + low.sums(tokens, arithmetic);
                let off = (rows + sums) * c;
                let low_size = low_size * c;
                // Rounding of the up rows' values to the stream, in units of the payload.
                let rounding = u * (point(sup) + off + low_size + low_size) * point(1.0 + 1.0 / 64.0);
                (point(sup), off + rounding, low_size)
            }
            (None, None) => return Err(Error::input("a payload that is not affine is carried")),
        };
        let sup = payload_size + error;
        let along = v_norm + kappa + low_column + low_column;
        // s·U is rounded, unless s is a power of two: then where all conditions hold it is exact.
        let product = |exact: bool| if exact { Interval::ZERO } else { u * (sup + low_row) * along };
        let written = error * (v_norm + kappa) + sup * kappa + low_row * low_column;
        let soft = match &vanishing {
            None => Interval::ZERO,
            Some((i, alpha)) => {
                let q = g.guards[*i];
                let k = point(claim.guards[q]);
                let reach = (k * (point(guards[q].largest) + point(guards[q].off))).hi();
                point(enclose(alpha).mag())
                    * (point(gate.soft(&arguments, reach)) / k + point(guards[q].off) * point(f.largest + 1.0))
            }
        };
        let on = point(1.0 + f.on) * written + product(f.exact) + point(f.on) * payload_size * v_norm;
        let off = point(f.off) * (sup * along + product(false));
        let softly = if vanishing.is_some() {
            point(f.largest.max(1.0)) * (written + product(false)) + soft * v_norm
        } else {
            Interval::ZERO
        };
        let outside = upper(on.max(off).max(softly));
        let banding = point(f.largest.max(1.0)) * (written + product(false));
        let hull = upper((banding + point(f.overshoot) * sup * v_norm + soft * v_norm).max(point(outside)));
        // Where a condition with a band fails nothing is let through; one without lets through what vanishes with it.
        let off = upper(if vanishing.is_some() { off.max(softly) } else { off });
        let mass = upper(point(f.largest.max(1.0)) * (sup + low_row) * along);
        let size = upper(payload_size * v_norm);
        let proof = DeployedTerm { bands, factor: f.on.max(f.off), payload_error: upper(error), outside, hull, off };
        Ok(Term { proof, size, mass })
    }

    /// A payload that the first layer computed: its size, and what it is off by in its coordinate.
    fn carried(&self, j: usize) -> (Interval, Interval, Interval) {
        let part = &self.carried[j];
        let arithmetic = self.arithmetic;
        let constants = crate::derive::total(self.first, &self.claim.carried, &[], &Reading::exact()).constant_error;
        let summing = times(point(down_factor(self.first, arithmetic)), point(part.mass[0]) + point(part.size));
        let off = point(part.proof.outside) + point(constants) + summing;
        let rounding = point(unit_roundoff(arithmetic.stream)) * (point(part.size) + off);
        (point(part.size), off + rounding, Interval::ZERO)
    }
}
