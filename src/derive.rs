//! From certified stacks to a certified block: what the rounding of rows, biases and columns costs.
//!
//! Part of the trusted base, without I/O: compiling and verifying both call [`derive()`], on the block's matrices and
//! the claims about them.
//!
//! For a response c(z)·v with z = ⟨w, x⟩ + b, hidden unit i has a gate row ĝ, bias p̂, (up row û, bias q̂,) and a column
//! ŷ in the number format, and is claimed to be the neuron (β, γ, a[, p, q]) of a stack φ̂. All in real arithmetic:
//!
//! * ⟨ĝ, x⟩ + p̂ = βz + γ + ⟨ρ, x⟩ + s with ρ = ĝ − βw, s = p̂ − βb − γ, and likewise for the up row.
//! * One shift r for the whole stack, r = ρ/β of its steepest neuron: ẑ = z + ⟨r, x⟩, |ẑ − z| ≤ ‖r‖·R =: δ_rows. What
//!   differs between neurons, e = ⟨ρ − βr, x⟩ + s, costs |a|·(sup|σ′|·|e|·sup|u| + (sup|σ| + sup|σ′|·|e|)·|f|) each (f is
//!   the same for the up row u): ε_rows. Rows that are power-of-two multiples of one another differ by nothing.
//! * ŷ = a(v + k) + κ with one k for the stack: the write direction is v + k. The column's error is
//!   sup|φ̂|·‖k‖ + Σ sup|h|·‖κ‖, h the hidden unit's value: `column_error`, a norm in the stream.
//!
//! Together, for ‖x‖ ≤ R, z in D, and z at distance > δ + δ_rows from the jumps of c:
//!
//! ```text
//! ‖response − c(z)·v‖ ≤ (ε_outside + η·sup|z| + sup|c′|·δ_rows + ε_rows)·‖v‖ + column_error
//! ```
//!
//! and for every z of D, jumps or not, the response lies within (ε + η·sup|z| + ε_rows)·‖v‖ + column_error of the segment
//! hull{c(z') : |z' − z| ≤ δ + δ_rows}·v.
//!
//! Between the stream and the MLP stands a norm. What it hands over ([`Reading`]) is s·(x + C + τ), s near 1, C constants in some
//! of the model's own coordinates, τ the rounding of x_j + C_j there; a bias is then written as the rounded p̂ − ⟨ĝ, C⟩. A unit's
//! argument moves by
//!
//! ```text
//! (s − 1)·⟨ĝ, x⟩ + (s − 1)·⟨ĝ, C⟩ + s·⟨ĝ, τ⟩ + κ,   |κ| ≤ u·(|p̂| + |⟨ĝ, C⟩|)
//! ```
//!
//! With ĝ = β(w + r) + rest, what multiplies β is a shift of z that all units share, and is counted in δ_rows; what is left, of the
//! rest and κ, is the unit's own and is counted in e. In the coordinates that hold constants |x_j| has a bound of its own:
//! there a row's deviation ρ costs Σ |ρ_j|·bound in place of its norm's part.

use std::ops::Range;

use nalgebra::{Const, DVectorView, Dyn, MatrixView1xX};
use serde::{Deserialize, Serialize};

use crate::block::Block;
use crate::certify::{Certificate, Claim, Domain, Figures, certify, value_and_slope_bounds};
use crate::error::{At, Error, Result};
use crate::expr::Expr;
use crate::format::Format;
use crate::interval::Interval;
use crate::stack::{IdealStack, Stack};

/// z = ⟨w, x⟩ + b
#[derive(Clone, Debug, PartialEq)]
pub struct PreActivation {
    /// \[d\]
    pub w: Vec<f64>,
    /// offset
    pub b: f64,
}

/// What the norm before the MLP hands to it, where the stream is x: s·(x + C + τ), see the module's head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reading {
    /// the least and the largest s
    pub scale: [f64; 2],
    /// C: (j, C_j) of the model's own coordinates that hold a constant
    pub constants: Vec<(usize, f64)>,
    /// bound on |x_j| in those coordinates
    pub bound: f64,
    /// |τ_j| ≤ rounding·|C_j|
    pub rounding: f64,
    /// bound on the norm of what writing and removing the constants leaves behind in the stream, in its number format
    pub residue: f64,
}

impl Reading {
    /// x itself.
    pub fn exact() -> Reading {
        Reading { scale: [1.0, 1.0], constants: Vec::new(), bound: 0.0, rounding: 0.0, residue: 0.0 }
    }

    /// Is it x itself?
    pub fn is_exact(&self) -> bool {
        *self == Reading::exact()
    }

    /// Checks the numbers. Errors: a scale that is not positive and finite, a bound that is negative or not a number, constants
    /// that are not finite or not in ascending order of their coordinates, all below `hidden_size`.
    pub fn check(&self, hidden_size: usize) -> Result<()> {
        let [lo, hi] = self.scale;
        if !(0.0 < lo && lo <= hi && hi.is_finite()) {
            return Err(Error::input(format!(
                "the norm hands over a multiple of x between {lo} and {hi}: nothing follows from that"
            ))
            .help("give a smaller domain.norm, or padded carriers"));
        }
        let bound = |x: f64| x >= 0.0 && x.is_finite();
        let ascending = self.constants.windows(2).all(|w| w[0].0 < w[1].0);
        let fits = self.constants.iter().all(|(j, c)| *j < hidden_size && c.is_finite());
        // Without constants there is nothing to bound.
        let idle = !self.constants.is_empty() || (self.bound == 0.0 && self.rounding == 0.0);
        if ascending && fits && idle && bound(self.bound) && bound(self.rounding) && bound(self.residue) {
            return Ok(());
        }
        Err(Error::input("the constants that the norm reads, or their bounds, are not in order"))
    }

    /// ⟨v, C⟩, of a vector given by enclosures.
    fn constant(&self, v: impl Fn(usize) -> Interval) -> Interval {
        self.constants.iter().fold(Interval::ZERO, |sum, (j, c)| sum + v(*j) * point(*c))
    }

    /// sup |⟨v, s·x⟩| where ‖x‖ ≤ `radius`, of a vector of d numbers given by enclosures.
    fn of_stream(&self, d: usize, v: impl Fn(usize) -> Interval, radius: f64) -> Interval {
        let all = point(norm_of((0..d).map(&v))) * point(radius);
        if self.constants.is_empty() {
            return point(self.scale[1]) * point(all.hi());
        }
        let carries = |j: usize| self.constants.binary_search_by_key(&j, |c| c.0).is_ok();
        let elsewhere = (0..d).filter(|j| !carries(*j)).map(&v);
        let there = self.constants.iter().fold(Interval::ZERO, |sum, (j, _)| sum + v(*j).abs() * point(self.bound));
        let apart = point(norm_of(elsewhere)) * point(radius) + there;
        point(self.scale[1]) * point(all.hi().min(apart.hi()))
    }

    /// sup |(s − 1)·⟨v, C⟩ + s·⟨v, τ⟩|
    fn of_constants(&self, v: impl Fn(usize) -> Interval) -> Interval {
        let rounded = self.constants.iter().fold(Interval::ZERO, |sum, (j, c)| sum + v(*j).abs() * point(c.abs()));
        self.off() * point(self.constant(v).mag()) + point(self.scale[1]) * point(self.rounding) * rounded
    }

    /// sup |s − 1|
    fn off(&self) -> Interval {
        point((point(1.0) - Interval::new(self.scale[0], self.scale[1])).mag())
    }

    /// sup |κ|: the error of a bias p − ⟨v, C⟩ that is written in `format`.
    fn of_bias(&self, v: impl Fn(usize) -> Interval, p: f64, format: Format) -> Interval {
        let products = self.constants.iter().fold(Interval::ZERO, |sum, (j, c)| sum + v(*j).abs() * point(c.abs()));
        // Without constants a bias stands as it is, perhaps as a sum of several numbers of the format.
        if self.constants.is_empty() || products.hi() == 0.0 && format.round(p) == p {
            return Interval::ZERO;
        }
        let size = point(p.abs()) + point(self.constant(v).mag());
        // Half a unit in the last place, half the least subnormal, and the f64 sum of the products.
        point(format.unit() / 2.0) * size + point(format.least()) + products * point(f64::exp2(-40.0))
    }
}

/// One response and what the block is claimed to do for it.
#[derive(Clone, Debug, PartialEq)]
pub struct ResponseClaim {
    /// for messages
    pub name: String,
    /// c, a function of z
    pub target: Expr,
    /// z = ⟨w, x⟩ + b
    pub w: Vec<f64>,
    /// z = ⟨w, x⟩ + b
    pub b: f64,
    /// the write direction
    pub v: Vec<f64>,
    /// the values of z for which the certificate is to hold
    pub domain: Domain,
    /// the band's radius around jumps (0 where there are none)
    pub delta: f64,
    /// the tolerance that was asked for
    pub tolerance: Option<f64>,
    /// the hidden units of this response
    pub units: Range<usize>,
    /// the stack that these units are
    pub stack: Stack<f64>,
    /// the stack before rounding, where it is exact
    pub ideal: Option<IdealStack>,
}

/// What was proved about one response in the block.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ResponseProof {
    /// the stack, as a function of the pre-activation that the rounded rows compute
    pub certificate: Certificate,
    /// what the rounding of this response's weights costs; absent without a bound on ‖x‖
    pub rounding: Option<Rounding>,
}

/// What was proved about a block.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BlockProof {
    /// one for each response
    pub responses: Vec<ResponseProof>,
    /// the sum over the responses; absent without a bound on ‖x‖
    pub total: Option<Total>,
}

/// The cost of rounding, for ‖x‖ ≤ R.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rounding {
    /// the rounded rows compute a pre-activation that is off by at most this
    pub delta_rows: f64,
    /// … and the neurons' arguments differ among themselves by what costs at most this in the response
    pub epsilon_rows: f64,
    /// error of the write direction, a norm in the stream
    pub column_error: f64,
    /// bound on ‖response − c(z)·v‖ at distance > δ + δ_rows from the jumps
    pub outside: f64,
    /// bound on the distance of the response from hull{c over [z − δ − δ_rows, z + δ + δ_rows]}·v, wherever z is
    pub hull: f64,
}

/// Bounds on ‖Δ̂(x) − Δ(x)‖ for ‖x‖ ≤ R.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Total {
    /// no pre-activation within its response's band
    pub outside: f64,
    /// the sum of the distances from the hulls, wherever the pre-activations are
    pub hull: f64,
    /// rounding of the constant that is added to every token
    pub constant_error: f64,
}

/// Proves what a block does for the claimed responses, for all x with ‖x‖ ≤ `norm`.
///
/// Errors: shapes or unit ranges that do not fit, hidden units that belong to no response or to several, a stack that
/// cannot be certified.
pub fn derive(block: &Block, claims: &[ResponseClaim], norm: Option<f64>, reading: &Reading) -> Result<BlockProof> {
    derive_units(block, claims, block.intermediate_size(), norm, reading)
}

/// [`derive()`] for the first `units` hidden units of a block, whose others are accounted for elsewhere.
pub(crate) fn derive_units(
    block: &Block,
    claims: &[ResponseClaim],
    h: usize,
    norm: Option<f64>,
    reading: &Reading,
) -> Result<BlockProof> {
    let responses = derive_each(block, claims, h, norm, reading)?;
    let total = norm.map(|_| total(block, claims, &responses, reading));
    Ok(BlockProof { responses, total })
}

/// [`derive_units`] without the sum.
pub(crate) fn derive_each(
    block: &Block,
    claims: &[ResponseClaim],
    h: usize,
    norm: Option<f64>,
    reading: &Reading,
) -> Result<Vec<ResponseProof>> {
    let d = block.hidden_size();
    reading.check(d)?;
    if let Some(r) = norm
        && !(r > 0.0 && r.is_finite())
    {
        return Err(Error::input(format!("the bound on the residual's norm is {r}; it must be positive and finite")));
    }
    let mut next = 0;
    for c in claims {
        if c.w.len() != d || c.v.len() != d {
            return Err(Error::input(format!(
                "vectors of length {} and {}, the block has hidden size {d}",
                c.w.len(),
                c.v.len()
            ))
            .at(c.name.clone()));
        }
        if c.units.start != next || c.units.len() != c.stack.neurons.len() || c.units.end > h {
            return Err(Error::input(format!(
                "hidden units {:?} do not follow on {next} or are not {} of {h}",
                c.units,
                c.stack.neurons.len()
            ))
            .at(c.name.clone()));
        }
        if c.stack.source != block.source {
            return Err(Error::input(format!("neurons of {}, the block has {}", c.stack.source, block.source))
                .at(c.name.clone()));
        }
        next = c.units.end;
    }
    if next != h {
        return Err(Error::input(format!("hidden units {next} to {} belong to no response", h - 1)));
    }
    // Responses are independent of one another.
    use rayon::prelude::*;
    claims.par_iter().map(|c| derive_response(block, c, norm, reading).at(|| c.name.clone())).collect()
}

pub(crate) fn point(x: f64) -> Interval {
    Interval::point(x)
}

/// The upper end; 0 without a sign.
pub(crate) fn upper(x: Interval) -> f64 {
    x.hi() + 0.0
}

/// Upper bound of the norm of a vector given by enclosures.
///
/// Of s, the sum of n squares in floating point, u = 2^−53: each square is off by a factor 1 ± u and by 2^−1075 where it
/// underflows, each of the n additions of what is ≥ 0 by a factor 1 ± u. So the exact sum is at most
/// (s + n·2^−1074)/(1 − u)^(n + 1), and 1/(1 − u)^(n + 1) ≤ 1 + 2(n + 1)u while (n + 1)u ≤ 1/2.
pub(crate) fn norm_of(v: impl Iterator<Item = Interval>) -> f64 {
    norm_of_floats(v.map(Interval::mag))
}

/// The same of a vector of floats; infinite if one of them is no number.
pub(crate) fn norm_of_floats(v: impl Iterator<Item = f64>) -> f64 {
    let (mut s, mut n, mut zero) = (0.0f64, 0u32, true);
    for x in v {
        s += x * x;
        zero &= x == 0.0;
        n += 1;
    }
    if zero {
        return 0.0;
    }
    let rounding = point(1.0) + point(f64::EPSILON) * point(f64::from(n) + 1.0);
    upper(((point(s) + point(f64::from(n)) * point(2f64.powi(-1074))) * rounding).sqrt())
}

fn derive_response(block: &Block, c: &ResponseClaim, norm: Option<f64>, reading: &Reading) -> Result<ResponseProof> {
    let Some(radius) = norm else {
        let certificate = certify(&Claim {
            target: &c.target,
            stack: &c.stack,
            ideal: c.ideal.as_ref(),
            domain: c.domain,
            delta: c.delta,
            tolerance: c.tolerance,
        })?;
        return Ok(ResponseProof { certificate, rounding: None });
    };
    let steepest = c.stack.neurons.iter().enumerate().max_by(|a, b| a.1.weight.abs().total_cmp(&b.1.weight.abs()));
    // The common shift r; any vector would be sound, this one is near the best.
    let shift: Vec<f64> = match steepest {
        Some((k, n)) if n.weight != 0.0 => {
            let row = block.gate.row(c.units.start + k);
            row.iter().zip(&c.w).map(|(g, w)| (g - n.weight * w) / n.weight).collect()
        }
        _ => vec![0.0; c.w.len()],
    };
    let size = upper(point(norm_of_floats(c.w.iter().copied())) * point(radius));
    let shifted = |j: usize| point(c.w[j]) + point(shift[j]);
    let scaled = reading.off() * point(size);
    let moved = reading.of_stream(shift.len(), |j| point(shift[j]), radius);
    let delta_rows = upper(moved + scaled + reading.of_constants(shifted));
    // What z can be: the claimed range, and |z| ≤ ‖w‖R + |b|; the shifted ẑ a little more.
    let reach = (point(size) + point(c.b.abs())).hi();
    let lo = (point(c.domain.lo().max(-reach)) - point(delta_rows)).lo();
    let hi = (point(c.domain.hi().min(reach)) + point(delta_rows)).hi();
    let domain =
        Domain::new(lo, hi).map_err(|e| e.help("the range of pre-activations does not meet what the norm allows"))?;
    let certificate = certify(&Claim {
        target: &c.target,
        stack: &c.stack,
        ideal: c.ideal.as_ref(),
        domain,
        delta: c.delta,
        tolerance: c.tolerance,
    })?;

    let z = Interval::new(lo, hi);
    let (mut epsilon_rows, mut spread) = (Interval::ZERO, Interval::ZERO);
    let column_reference = c.stack.neurons.iter().enumerate().max_by(|a, b| a.1.out.abs().total_cmp(&b.1.out.abs()));
    // k: the relative error of the column of the neuron with the largest output weight.
    let tilt: Vec<f64> = match column_reference {
        Some((k, n)) if n.out != 0.0 => {
            let column = block.down.column(c.units.start + k);
            column.iter().zip(&c.v).map(|(y, v)| (y - n.out * v) / n.out).collect()
        }
        _ => vec![0.0; c.v.len()],
    };
    let rows = || Rows { c, shift: &shift, reading, radius, format: block.format, last: None };
    let (mut gates, mut ups, mut columns) = (rows(), rows(), Columns { v: &c.v, tilt: &tilt, last: None });
    for (k, n) in c.stack.neurons.iter().enumerate() {
        let unit = c.units.start + k;
        let e = gates.error(block.gate.row(unit), block.gate_bias.as_ref().map(|b| b[unit]), n.weight, n.bias);
        let gate = (point(n.weight) * z + point(n.bias)).inflate(e);
        let sigma = block.source.jet(gate);
        let (value, slope) = (sigma.v.mag(), sigma.d1.mag());
        let (up, f) = match (&block.up, n.up) {
            (Some(m), Some((p, q))) => {
                let f = ups.error(m.row(unit), block.up_bias.as_ref().map(|b| b[unit]), p, q);
                ((point(p) * z + point(q)).mag(), f)
            }
            (None, None) => (1.0, 0.0),
            _ => return Err(Error::input("a gated neuron in a plain block, or a plain one in a gated block")),
        };
        // Zero deviations cost nothing, however large the other factors.
        let times = |a: f64, b: f64| if a == 0.0 || b == 0.0 { Interval::ZERO } else { point(a) * point(b) };
        let first = times((times(slope, e)).hi(), up);
        let second = times((point(value) + times(slope, e)).hi(), f);
        epsilon_rows = epsilon_rows + times(n.out.abs(), (first + second).hi());
        let hidden = times(value, (point(up) + point(f)).hi());
        let kappa = columns.rest(block.down.column(unit), n.out);
        spread = spread + times(hidden.hi(), kappa);
    }
    let epsilon_rows = upper(epsilon_rows);
    let v_norm = norm_of_floats(c.v.iter().copied());
    let figures = certificate.figures();
    let [largest, steep] = value_and_slope_bounds(&c.target, domain)?;
    let moved = if delta_rows == 0.0 { Interval::ZERO } else { point(steep) * point(delta_rows) };
    let eta = point(figures.eta) * point(z.mag());
    let bound = |epsilon: f64| point(epsilon) + eta + point(epsilon_rows);
    // φ̂ lies within ε of the hull, so it is no larger than the target's largest value and ε; its constant is written apart.
    let size = bound(figures.epsilon) + point(largest) + point(c.stack.constant.abs());
    let column_error = {
        let tilt_norm = norm_of_floats(tilt.iter().copied());
        let tilted = if tilt_norm == 0.0 { Interval::ZERO } else { size * point(tilt_norm) };
        upper(tilted + spread)
    };
    let length = point(v_norm);
    let outside = bound(figures.epsilon_outside.unwrap_or(figures.epsilon)) + moved;
    let outside = upper(outside * length + point(column_error));
    let hull = upper(bound(figures.epsilon) * length + point(column_error));
    Ok(ResponseProof {
        rounding: Some(Rounding { delta_rows, epsilon_rows, column_error, outside, hull }),
        certificate,
    })
}

/// Upper bound of |y − a·(v + k)|.
///
/// e₁ = fl(y − a·v) and e₂ = fl(e₁ − a·k) are rounded once each (a fused multiply-add), by at most u|e₁| and u|e₂|, u = 2^−53, or by
/// 2^−1075 where they underflow: |y − a·(v + k)| ≤ |e₂|(1 + u) + |e₁|u + 2^−1074. Four times u makes up for the rounding of this sum.
fn deviation(y: f64, a: f64, [v, k]: [f64; 2]) -> f64 {
    let first = (-a).mul_add(v, y);
    let second = (-a).mul_add(k, first);
    // A zero is exact unless a product of what is not zero has lost bits.
    let lost = |x: f64| (a * x).abs() < f64::MIN_POSITIVE * (1u64 << 60) as f64 && a != 0.0 && x != 0.0;
    let tiny = if lost(v) || lost(k) { f64::from_bits(2) } else { 0.0 };
    second.abs() + 2.0 * f64::EPSILON * (first.abs() + second.abs()) + tiny
}

/// What the rows of one response's units differ by.
struct Rows<'a> {
    c: &'a ResponseClaim,
    /// r
    shift: &'a [f64],
    reading: &'a Reading,
    radius: f64,
    format: Format,
    /// the row before, its slope, and what it differs by without its bias: the neurons of a step have equal rows
    last: Option<(Row<'a>, f64, Interval)>,
}

/// A hidden unit's row in a block.
type Row<'a> = MatrixView1xX<'a, f64, Const<1>, Dyn>;

impl<'a> Rows<'a> {
    /// sup |⟨ρ − βr, x⟩ + s| of a row and a bias that are claimed to be β·z + γ.
    fn error(&mut self, row: Row<'a>, bias: Option<f64>, slope: f64, offset: f64) -> f64 {
        let known = self.last.as_ref().filter(|(g, b, _)| *b == slope && g.iter().eq(row.iter()));
        let own = match known {
            Some((_, _, own)) => *own,
            None => {
                let own = if slope == 0.0 && row.iter().all(|g| *g == 0.0) {
                    Interval::ZERO
                } else if self.reading.constants.is_empty() {
                    let size =
                        row.iter().zip(&self.c.w).zip(self.shift).map(|((g, w), r)| deviation(*g, slope, [*w, *r]));
                    point(self.reading.scale[1]) * point(norm_of_floats(size)) * point(self.radius)
                } else {
                    let rest = |j: usize| point(row[j]) - point(slope) * (point(self.c.w[j]) + point(self.shift[j]));
                    self.reading.of_stream(row.len(), rest, self.radius) + self.reading.of_constants(rest)
                };
                self.last = Some((row, slope, own));
                own
            }
        };
        let bias = bias.unwrap_or(0.0);
        let s = point(bias) - point(slope) * point(self.c.b) - point(offset);
        (own + s.abs() + self.reading.of_bias(|j| point(row[j]), bias, self.format)).hi()
    }
}

/// What the columns of one response's units differ by.
struct Columns<'a> {
    v: &'a [f64],
    /// k
    tilt: &'a [f64],
    /// the column before, its coefficient, and what was found of it: those of a step are equal or opposite
    last: Option<(DVectorView<'a, f64>, f64, f64)>,
}

impl<'a> Columns<'a> {
    /// Upper bound of ‖ŷ − a(v + k)‖.
    fn rest(&mut self, column: DVectorView<'a, f64>, out: f64) -> f64 {
        let known = self.last.as_ref().filter(|(y, a, _)| {
            *a == out && y.iter().eq(column.iter()) || *a == -out && y.iter().zip(&column).all(|(y, c)| *y == -c)
        });
        if let Some((_, _, rest)) = known {
            return *rest;
        }
        let parts = column.iter().zip(self.v).zip(self.tilt);
        let rest = norm_of_floats(parts.map(|((y, v), k)| deviation(*y, out, [*v, *k])));
        self.last = Some((column, out, rest));
        rest
    }
}

pub(crate) fn total(block: &Block, claims: &[ResponseClaim], proofs: &[ResponseProof], reading: &Reading) -> Total {
    let d = block.hidden_size();
    let mut sum = vec![Interval::ZERO; d];
    for c in claims.iter().filter(|c| c.stack.constant != 0.0) {
        for (s, v) in sum.iter_mut().zip(&c.v) {
            *s = *s + point(c.stack.constant) * point(*v);
        }
    }
    let written = |i: usize| block.down_bias.as_ref().map_or(0.0, |b| b[i]);
    let constant_error = norm_of(sum.iter().enumerate().map(|(i, s)| point(written(i)) - *s));
    let add = |f: &dyn Fn(&Rounding) -> f64| {
        let parts = proofs.iter().filter_map(|p| p.rounding.as_ref());
        upper(parts.fold(Interval::ZERO, |s, r| s + point(f(r))) + point(constant_error) + point(reading.residue))
    };
    Total { outside: add(&|r| r.outside), hull: add(&|r| r.hull), constant_error }
}

impl ResponseProof {
    /// The stack's figures.
    pub fn figures(&self) -> &Figures {
        self.certificate.figures()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rational::Rational;
    use proptest::prelude::*;

    fn exact(x: f64) -> Rational {
        Rational::from_float(x).unwrap()
    }

    /// Numbers of all sizes, of few bits and of many, zero included.
    fn number() -> impl Strategy<Value = f64> {
        let any = (-1.0..1.0f64, -1060i32..200).prop_map(|(x, e)| x * 2f64.powi(e));
        prop_oneof![any, -4.0..4.0f64, (-4.0..4.0f32).prop_map(f64::from), Just(0.0), Just(1.0)]
    }

    proptest! {
        #[test]
        fn deviations_are_bounded_from_above_and_closely(
            a in number(), v in number(), k in number(), noise in prop_oneof![Just(0.0), -1e-6..1e-6f64], far in any::<bool>(), y in number(),
        ) {
            // Nearly a·(v + k), as rounding leaves it, or something else.
            let y = if far { y } else { a * (v + k) * (1.0 + noise) };
            let true_size = (exact(y) - exact(a) * (exact(v) + exact(k))).abs();
            let bound = deviation(y, a, [v, k]);
            prop_assert!(exact(bound) >= true_size, "{bound:e}");
            // A few units of what the first step leaves, and the least float.
            let first = (exact(y) - exact(a) * exact(v)).abs();
            let slack = (first + true_size.clone()) * exact(8.0 * f64::EPSILON) + exact(2f64.powi(-1072));
            prop_assert!(exact(bound) <= true_size + slack, "{bound:e}");
        }
    }

    #[test]
    fn norms_are_bounded_from_above_and_closely() {
        let square = |x: f64| exact(x) * exact(x);
        let long: Vec<f64> = (0..1000).map(|k| (f64::from(k) * 0.7).sin() * 2f64.powi(k % 40 - 20)).collect();
        for v in [vec![3.0, -4.0], vec![0.1; 7], vec![1e-200, 2e-200], vec![5e-324], long] {
            let bound = norm_of(v.iter().map(|x| point(*x)));
            let sum: Rational = v.iter().map(|x| square(*x)).sum();
            assert!(square(bound) >= sum, "{v:?}: {bound}");
            // n + 1 roundings of half an ulp; where squares underflow the root of n·2^−1074, which rounding up may double.
            let slack = 1.0 + (v.len() as f64 + 4.0) * f64::EPSILON;
            let floor = (v.len() as f64 * 2f64.powi(-1074)).sqrt();
            assert!(square(bound) <= sum * square(slack) + square(2.0 * floor), "{v:?}: {bound}");
        }
        assert_eq!(norm_of([0.0, -0.0].map(point).into_iter()), 0.0);
        assert_eq!(norm_of([f64::MAX, f64::MAX].map(point).into_iter()), f64::INFINITY);
    }

    #[test]
    fn a_bias_costs_nothing_where_no_constants_are_read() {
        // 0.1 is no bf16 number: with padded carriers it is written as a sum of three.
        let row = [point(1.0), point(-2.0)];
        assert_eq!(Reading::exact().of_bias(|j| row[j], 0.1, Format::Bf16).hi(), 0.0);
        let borrowed = Reading { constants: vec![(1, 64.0)], ..Reading::exact() };
        assert!(borrowed.of_bias(|j| row[j], 0.1, Format::Bf16).hi() >= 128.0 * 2f64.powi(-8));
    }
}
