//! Lower bounds: what no stack can reach, proved from a few points of the domain.
//!
//! Trusted like the certifier, and as ignorant of the search: the points and multipliers that prove a bound are data,
//! whoever found them, and poor ones prove less.
//!
//! **Multipliers** (de la Vallée-Poussin). With points z_j, numbers λ_j, Σ λ_j = 0, and φ̂ = a_0 + Σ a_i·g_i,
//!
//! ```text
//! sup|φ − φ̂|·Σ|λ_j| ≥ |Σ λ_j (φ − φ̂)(z_j)| ≥ |Σ λ_j φ(z_j)| − Σ_i |a_i|·|Σ_j λ_j g_i(z_j)|
//! ```
//!
//! [`given_inner`] takes the g_i of one stack's inner weights and |a_i| ≤ A_i. [`all_stacks`] takes every σ(wz + b) with
//! |w| ≤ W and Σ|a_i| ≤ A, so that the last sum is at most A·sup|S|, S(w, b) = Σ_j λ_j σ(w·z_j + b). That supremum is
//! found by branch and bound over w and b: on a box with centre c and half widths r, s
//!
//! ```text
//! |S| ≤ |S(c)| + r·|∂S/∂w(c)| + s·|∂S/∂b(c)| + ½ Σ|λ_j|·sup|σ″|·(|z_j|·r + s)²
//! ```
//!
//! (Taylor), and beyond |b| = W·max|z_j| + T every argument is in a tail of σ, where Σ λ_j = 0 leaves
//! |c_1|·W·|Σ λ_j z_j| + Σ|λ_j|·|R(T)| of its asymptote c_0 + c_1·t + R.
//!
//! **Chains** for polylines with free knots. If three points q < p < e and a sign s have s·(chord of φ from q to e, at p) −
//! s·φ(p) > 2E, no line is within E of φ at all three ([`polyline`]).

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::activation::{Activation, Side};
use crate::certify::{Domain, jumps};
use crate::error::{Error, Result};
use crate::eval::range;
use crate::expr::Expr;
use crate::interval::Interval;
use crate::rational::Rational;
use crate::stack::Stack;

/// A proved lower bound on a sup-norm error. Only this module makes one.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct LowerBound(f64);

impl LowerBound {
    /// The bound; 0 where the data prove nothing.
    pub fn value(self) -> f64 {
        self.0
    }
}

/// Points of the domain and the multipliers of the error there; the multipliers add up to exactly 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Witness {
    /// z_j
    pub points: Vec<f64>,
    /// λ_j
    pub multipliers: Vec<f64>,
}

/// What all stacks of a family keep to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Family {
    /// W: |weight| ≤ W
    pub max_weight: f64,
    /// A: Σ|out| ≤ A
    pub max_total: f64,
}

/// No line within E of φ at q, p and e: φ at p is on the `sign` side of what lines through the other two leave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Triple {
    /// +1: φ(p) is below the chord from q to e; −1: above
    pub sign: f64,
    /// left
    pub q: f64,
    /// middle
    pub p: f64,
    /// right
    pub e: f64,
}

fn point(x: f64) -> Interval {
    Interval::point(x)
}

/// φ at points of the domain. Errors: a point outside of it, a jump of φ.
fn values(target: &Expr, domain: Domain, points: impl Iterator<Item = f64>) -> Result<Vec<Interval>> {
    if let Some(at) = jumps(target, domain)?.first() {
        return Err(Error::unsupported(format!(
            "the target jumps at z = {at}: lower bounds are for continuous targets"
        )));
    }
    points
        .map(|z| {
            if z.is_finite() && domain.contains(z) {
                range(target, &[point(z)])
            } else {
                Err(Error::input(format!("the point {z} is not in the domain")))
            }
        })
        .collect()
}

impl Witness {
    /// (z_j, λ_j) with finite multipliers that add up to 0 exactly.
    fn checked(&self) -> Result<Vec<(f64, f64)>> {
        if self.points.len() != self.multipliers.len() {
            return Err(Error::input("a witness needs one multiplier for each point"));
        }
        let mut sum = Rational::zero();
        for x in &self.multipliers {
            sum += Rational::from_float(*x).ok_or_else(|| Error::input(format!("a multiplier is {x}")))?;
        }
        if !sum.is_zero() {
            return Err(Error::input("the multipliers of a witness must add up to 0 exactly")
                .help("round them to multiples of one power of two"));
        }
        Ok(self.points.iter().copied().zip(self.multipliers.iter().copied()).collect())
    }
}

/// (|Σ λ_j φ(z_j)| − cost)/Σ|λ_j|, rounded down; 0 where that is not positive.
fn quotient(phi: &[Interval], witness: &[(f64, f64)], cost: Interval) -> LowerBound {
    let sum = phi.iter().zip(witness).fold(Interval::ZERO, |s, (v, (_, l))| s + point(*l) * *v);
    let size = witness.iter().fold(Interval::ZERO, |s, (_, l)| s + point(l.abs()));
    let bound = (point(sum.mig()) - cost) / size;
    LowerBound(if bound.lo() > 0.0 && bound.lo().is_finite() { bound.lo() } else { 0.0 })
}

/// A lower bound on sup|φ − φ̂| over all stacks with this one's inner weights, any output constant, and |out_i| ≤ `limits[i]`.
///
/// Errors: a target that jumps, points outside of the domain, multipliers that do not add up to 0, limits that are missing
/// or infinite.
pub fn given_inner(
    target: &Expr,
    domain: Domain,
    stack: &Stack<f64>,
    limits: &[f64],
    witness: &Witness,
) -> Result<LowerBound> {
    let pairs = witness.checked()?;
    let phi = values(target, domain, witness.points.iter().copied())?;
    if limits.len() != stack.neurons.len() || !limits.iter().all(|a| *a >= 0.0 && a.is_finite()) {
        return Err(Error::input("a finite limit is needed for each output weight"));
    }
    let mut cost = Interval::ZERO;
    for (n, limit) in stack.neurons.iter().zip(limits) {
        let hidden = |z: f64| {
            let up = n.up.map_or(Interval::ONE, |(w, b)| point(w) * point(z) + point(b));
            stack.source.jet(point(n.weight) * point(z) + point(n.bias)).v * up
        };
        let sum = pairs.iter().fold(Interval::ZERO, |s, (z, l)| s + point(*l) * hidden(*z));
        cost = cost + point(*limit) * point(sum.mag());
    }
    Ok(quotient(&phi, &pairs, cost))
}

/// A lower bound on sup|φ − φ̂| over all plain stacks of a family, of any number of neurons and with any output constant.
///
/// Errors: as [`given_inner`]; a source with a kink, or one that grows faster than |t|.
pub fn all_stacks(
    target: &Expr,
    domain: Domain,
    source: &Activation,
    family: Family,
    witness: &Witness,
) -> Result<LowerBound> {
    let Family { max_weight, max_total } = family;
    if !(max_weight > 0.0 && max_weight.is_finite() && max_total >= 0.0 && max_total.is_finite()) {
        return Err(Error::input("both limits must be finite"));
    }
    let pairs = witness.checked()?;
    let phi = values(target, domain, witness.points.iter().copied())?;
    let largest = supremum(source, &pairs, max_weight)?;
    Ok(quotient(&phi, &pairs, point(max_total) * point(largest)))
}

/// Where tails begin: silu's is 6e−16 there, gelu's 0.
const TAIL: f64 = 38.0;
/// The supremum is found to this, relative to a value that is attained.
const GAP: f64 = 1e-3;
/// … or after this many boxes, when the largest bound left stands.
const MAX_BOXES: usize = 400_000;

/// A box in (w, b) by its ends, with a bound on |S|.
struct Cell {
    bound: f64,
    w: (f64, f64),
    b: (f64, f64),
}

impl PartialEq for Cell {
    fn eq(&self, o: &Self) -> bool {
        self.cmp(o) == Ordering::Equal
    }
}
impl Eq for Cell {}
impl PartialOrd for Cell {
    fn partial_cmp(&self, o: &Self) -> Option<Ordering> {
        Some(self.cmp(o))
    }
}
impl Ord for Cell {
    fn cmp(&self, o: &Self) -> Ordering {
        let key = |c: &Cell| [c.w.0, c.b.0];
        self.bound
            .total_cmp(&o.bound)
            .then_with(|| key(o)[0].total_cmp(&key(self)[0]))
            .then_with(|| key(o)[1].total_cmp(&key(self)[1]))
    }
}

/// Upper bound of |Σ λ_j σ(w·z_j + b)| over |w| ≤ W and all b.
fn supremum(source: &Activation, pairs: &[(f64, f64)], max_weight: f64) -> Result<f64> {
    if !source.is_c1() {
        return Err(Error::unsupported(format!(
            "{source} has a kink: lower bounds over all stacks need a smooth source"
        ))
        .help("polylines have bounds of their own"));
    }
    let reach = pairs.iter().map(|p| p.0.abs()).fold(0.0, f64::max);
    let edge = (point(max_weight) * point(reach) + point(TAIL)).hi();
    let tail = tails(source, pairs, max_weight)?;
    let mut attained = tail;
    let mut heap = BinaryHeap::new();
    let push = |heap: &mut BinaryHeap<Cell>, attained: &mut f64, w: (f64, f64), b: (f64, f64)| {
        let (bound, centre) = cell(source, pairs, w, b);
        *attained = attained.max(centre);
        heap.push(Cell { bound, w, b });
    };
    push(&mut heap, &mut attained, (-max_weight, max_weight), (-edge, edge));
    for _ in 0..MAX_BOXES {
        let Some(top) = heap.pop() else { break };
        if top.bound <= attained * (1.0 + GAP) {
            return Ok(top.bound.max(tail));
        }
        let (w, b) = (0.5 * top.w.0 + 0.5 * top.w.1, 0.5 * top.b.0 + 0.5 * top.b.1);
        // The side that moves the arguments more.
        if (top.w.1 - top.w.0) * reach > top.b.1 - top.b.0 {
            push(&mut heap, &mut attained, (top.w.0, w), top.b);
            push(&mut heap, &mut attained, (w, top.w.1), top.b);
        } else {
            push(&mut heap, &mut attained, top.w, (top.b.0, b));
            push(&mut heap, &mut attained, top.w, (b, top.b.1));
        }
    }
    Ok(heap.peek().map_or(tail, |c| c.bound).max(tail))
}

/// Bound on |S| where every argument is in a tail.
fn tails(source: &Activation, pairs: &[(f64, f64)], max_weight: f64) -> Result<f64> {
    let size = pairs.iter().fold(Interval::ZERO, |s, (_, l)| s + point(l.abs()));
    let moment = pairs.iter().fold(Interval::ZERO, |s, (z, l)| s + point(*l) * point(*z)).mag();
    let mut bound = 0f64;
    for side in [Side::Left, Side::Right] {
        let tail = source.tail(side);
        let [_, slope, square] = &tail.asymptote;
        if !square.is_zero() {
            return Err(Error::unsupported(format!("{source} grows faster than its argument")));
        }
        let line = slope.enclosure().abs() * point(max_weight) * point(moment);
        bound = bound.max((line + size * point(tail.remainder(TAIL, 0))).hi());
    }
    if bound.is_finite() { Ok(bound) } else { Err(Error::unsupported(format!("no bound on the tails of {source}"))) }
}

/// (bound over the box, a lower bound on |S| at its centre).
fn cell(source: &Activation, pairs: &[(f64, f64)], w: (f64, f64), b: (f64, f64)) -> (f64, f64) {
    let (cw, cb) = (0.5 * w.0 + 0.5 * w.1, 0.5 * b.0 + 0.5 * b.1);
    // Half widths from the rounded centre.
    let half = |(lo, hi): (f64, f64), c: f64| (point(hi) - point(c)).hi().max((point(c) - point(lo)).hi());
    let (r, s) = (point(half(w, cw)), point(half(b, cb)));
    let (mut value, mut to_w, mut to_b, mut curved) = (Interval::ZERO, Interval::ZERO, Interval::ZERO, Interval::ZERO);
    for (z, l) in pairs {
        let (z, l) = (point(*z), point(*l));
        let at = source.jet(point(cw) * z + point(cb));
        value = value + l * at.v;
        to_b = to_b + l * at.d1;
        to_w = to_w + l * at.d1 * z;
        let moved = z.abs() * r + s;
        let around = point(cw) * z + point(cb) + Interval::symmetric(moved.hi());
        curved = curved + l.abs() * point(source.jet(around).d2.mag()) * moved.sqr();
    }
    let bound = point(value.mag()) + r * point(to_w.mag()) + s * point(to_b.mag()) + point(0.5) * curved;
    (if bound.hi().is_nan() { f64::INFINITY } else { bound.hi() }, value.mig())
}

/// A lower bound on sup|φ − f| over all continuous polylines f with fewer than `chain.len()` kinks, wherever they are.
///
/// Let E be below the bound that each triple gives, and f within E of φ. No line is within E of φ at q, p and e, so there is
/// a kink strictly between q and e. More follows: *at least k kinks lie left of e_k*, where q_{k+1} is e_k or right of it, or
/// q_{k+1} = p_k with the other sign, and p_{k+1} is never left of e_k. By induction: let only k kinks lie left of e_{k+1}.
/// They lie left of e_k, and one line L continues from there to e_{k+1}. If q_{k+1} ≥ e_k that contradicts the triple.
/// Let q_{k+1} = p_k and s_k = 1 (−1 likewise). If the last kink x lies left of p_k, L passes all three points. Otherwise
/// p_k < x < e_k; the kink before x lies left of e_{k−1} ≤ p_k, so the line before x is within E of φ at p_k, and at q_k (or, by the same argument, on the side of
/// φ + E or φ − E there that its triple needs), so that beyond p_k it stays below the line ℓ through (q_k, φ − E) and (p_k, φ + E),
/// and ℓ(e_k) < φ(e_k) − E. L starts on it below ℓ and must end above ℓ, so L is below ℓ at p_k: L(p_k) < φ(p_k) + E, which is all
/// that the next triple needs to know of L there.
///
/// Errors: a target that jumps, points outside of the domain, triples that do not follow on one another.
pub fn polyline(target: &Expr, domain: Domain, chain: &[Triple]) -> Result<LowerBound> {
    let mut bound = f64::INFINITY;
    let mut last: Option<&Triple> = None;
    let points = chain.iter().flat_map(|t| [t.q, t.p, t.e]);
    let phi = values(target, domain, points)?;
    for (t, phi) in chain.iter().zip(phi.chunks_exact(3)) {
        let follows = last.is_none_or(|l| {
            let fresh = t.q >= l.e;
            let shared = t.q == l.p && t.sign == -l.sign && t.p >= l.e;
            fresh || shared
        });
        if !(t.q < t.p && t.p < t.e && t.sign.abs() == 1.0 && follows) {
            return Err(Error::input(format!("the triple {t:?} does not follow on {last:?}")));
        }
        let share = (point(t.p) - point(t.q)) / (point(t.e) - point(t.q));
        let chord = phi[0] + share * (phi[2] - phi[0]);
        bound = bound.min((point(0.5 * t.sign) * (chord - phi[1])).lo());
        last = Some(t);
    }
    Ok(LowerBound(if bound > 0.0 && bound.is_finite() { bound } else { 0.0 }))
}
