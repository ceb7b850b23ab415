//! The certifier: what is guaranteed about a stack, proved from the target and the rounded weights alone.
//!
//! The trusted part of the crate. It sees the original expression, the rounded weights, the domain and δ; it knows
//! nothing of the solver, the rewriter or the exact constructions, and no other module can make a [`Certificate`].
//!
//! For a target φ and a stack φ̂ on a domain D it proves (δ, ε, η) with, for all z in D,
//!
//! ```text
//! φ̂(z) ∈ hull{ φ(z') : |z' − z| ≤ δ, z' ∈ D } + [−(ε + η|z|), +(ε + η|z|)]
//! ```
//!
//! Method. Target and stack are cut at all of their knots, in exact rational arithmetic; on each piece the error is a
//! normal form, in which all that cancels has cancelled exactly ([`crate::algebra`]).
//! * A polynomial error of degree ≤ 2 has its supremum at an end or at the vertex: exact rational arithmetic.
//! * Otherwise branch and bound in outward-rounded intervals (`suprema`).
//! * The hull's ends are enclosed through members of it: φ(z), φ(z ± δ) and the values at φ's special points within δ.
//!   Each member bounds the hull from inside, so any choice is sound; these make it tight.
//! * Towards ±∞ the normal form is a polynomial plus atoms that vanish at a known rate ([`crate::atom`]).

mod suprema;

use serde::{Deserialize, Serialize};

use self::suprema::{Candidate, Stretch, distinct, supremum};
use crate::algebra::{Normal, enclose};
use crate::atom::Decay;
use crate::error::{Error, Result};
use crate::expr::Expr;
use crate::interval::Interval;
use crate::number::Number;
use crate::piecewise::{Form, Piece, Program, Region, cut, resolve};
use crate::rational::Rational;
use crate::stack::{IdealStack, Stack};

/// Branch and bound stops when the upper bound is within this factor of a value that is attained.
const RELATIVE_GAP: f64 = 2e-7;
/// The same for targets with jumps.
const BANDED_GAP: f64 = 1e-4;
/// Beyond this argument an atom counts as a remainder; e^−60 ≈ 9e−27.
const TAIL_ARGUMENT: f64 = 60.0;
/// The same for atoms that vanish like 1/u.
const TAIL_ARGUMENT_RECIPROCAL: f64 = 1e12;

/// Where a certificate holds: a closed interval, ends possibly infinite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Domain {
    lo: f64,
    hi: f64,
}

impl Domain {
    /// `[lo, hi]`. Error: an end is NaN, or the interval is empty, reversed or a single point.
    pub fn new(lo: f64, hi: f64) -> Result<Self> {
        if !(lo < hi) || lo == f64::INFINITY || hi == f64::NEG_INFINITY {
            return Err(Error::input(format!("domain from {lo} to {hi}: the lower end must lie below the upper end"))
                .help("for example -8 8, or -inf inf"));
        }
        Ok(Domain { lo, hi })
    }
    /// All of R.
    pub fn line() -> Self {
        Domain { lo: f64::NEG_INFINITY, hi: f64::INFINITY }
    }
    /// Lower end.
    pub fn lo(self) -> f64 {
        self.lo
    }
    /// Upper end.
    pub fn hi(self) -> f64 {
        self.hi
    }
    /// Are both ends finite?
    pub fn is_bounded(self) -> bool {
        self.lo.is_finite() && self.hi.is_finite()
    }
    /// Is z inside?
    pub fn contains(self, z: f64) -> bool {
        self.lo <= z && z <= self.hi
    }
    fn ends(self) -> (Option<Rational>, Option<Rational>) {
        (Rational::from_float(self.lo), Rational::from_float(self.hi))
    }
}

/// How good a certified stack is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// φ̂ = φ on the whole domain, an algebraic identity of the weights before rounding.
    Exact,
    /// The same at distance > δ from the jumps of φ.
    ExactOutside,
    /// Bounds hold, and a tolerance, if one was asked for, is met.
    Within,
    /// Bounds hold; the tolerance asked for was missed.
    BestEffort,
}

impl Status {
    /// `Exact` or `ExactOutside`
    pub fn is_exact(self) -> bool {
        matches!(self, Status::Exact | Status::ExactOutside)
    }
}

/// The figures of a certificate, as they stand in a file: a claim, until a certifier has derived it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    /// exactness, and whether the tolerance is met
    pub status: Status,
    /// how far the pre-activation may be off
    pub delta: f64,
    /// absolute bound
    pub epsilon: f64,
    /// bound relative to |z|; 0 on bounded domains
    pub eta: f64,
    /// sup of |φ̂ − φ| − η|z| at distance > δ from every jump; absent where δ = 0
    pub epsilon_outside: Option<f64>,
    /// how far φ̂ leaves the hull at distance < δ from a jump; absent where δ = 0
    pub overshoot: Option<f64>,
    /// sup of |φ̂| − η|z| where φ vanishes on all of [z − δ, z + δ]; absent where no such z is recognised (a minimum,
    /// maximum or product of activations may hide one)
    pub leak: Option<f64>,
}

/// A proved statement about a stack. Only [`certify`] makes one.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Certificate(Figures);

impl Certificate {
    /// What was proved.
    pub fn figures(&self) -> &Figures {
        &self.0
    }
    /// The status.
    pub fn status(&self) -> Status {
        self.0.status
    }
    /// The shift δ of the pre-activation that the bound allows.
    pub fn delta(&self) -> f64 {
        self.0.delta
    }
    /// The absolute bound ε.
    pub fn epsilon(&self) -> f64 {
        self.0.epsilon
    }
    /// The bound η relative to |z|.
    pub fn eta(&self) -> f64 {
        self.0.eta
    }
}

/// What is to be proved.
#[derive(Clone, Debug)]
pub struct Claim<'a> {
    /// φ, a function of the one pre-activation z
    pub target: &'a Expr,
    /// φ̂, rounded
    pub stack: &'a Stack<f64>,
    /// the stack before rounding, where a construction claims to be exact
    pub ideal: Option<&'a IdealStack>,
    /// D
    pub domain: Domain,
    /// δ
    pub delta: f64,
    /// the tolerance that was asked for on ε, and on η
    pub tolerance: Option<f64>,
}

/// Where the target jumps inside the domain, in increasing order, rounded to nearest.
///
/// Errors: the target is no function of one pre-activation, or a jump cannot be located.
pub fn jumps(target: &Expr, domain: Domain) -> Result<Vec<f64>> {
    let (lo, hi) = domain.ends();
    let (pieces, candidates) = cut(&[target], lo.as_ref(), hi.as_ref(), &[])?;
    Ok(true_jumps(target, &pieces, candidates)?.iter().map(|z| Number::from(z.clone()).to_f64()).collect())
}

/// Proves what can be proved about a stack.
///
/// Errors: the target is outside of what can be certified (several pre-activations, a jump that cannot be located, no
/// finite bound on an unbounded domain), it jumps and δ is 0, or a number of the stack is not finite.
pub fn certify(claim: &Claim<'_>) -> Result<Certificate> {
    let Claim { target, stack, ideal, domain, delta, tolerance } = claim;
    if !(*delta >= 0.0 && delta.is_finite()) {
        return Err(Error::input(format!("the band is {delta}; it must be a finite number ≥ 0")));
    }
    let exact_stack = stack.exact()?;
    let approximation = exact_stack.expr();
    let shift = Rational::from_float(*delta).expect("finite");
    let problem = Problem::new(target, &approximation, *domain, shift)?;
    let figures = problem.figures()?;
    // The stack may be exact itself; else it is as exact as what it was rounded from.
    let mut exactness = problem.exactness(target, &approximation)?;
    if let (Exactness::None, Some(ideal)) = (&exactness, ideal)
        && is_rounding_of(&exact_stack, ideal, *domain)
    {
        exactness = problem.exactness(target, &ideal.expr())?;
    }
    let missed = tolerance.is_some_and(|t| !(figures.epsilon <= t && figures.eta <= t));
    let status = match exactness {
        _ if missed => Status::BestEffort,
        Exactness::Everywhere => Status::Exact,
        Exactness::OutsideBands => Status::ExactOutside,
        Exactness::None => Status::Within,
    };
    Ok(Certificate(Figures { status, ..figures }))
}

/// Can a stack be what rounding makes of an ideal one? An identity of the ideal says nothing about any other stack.
///
/// The coarsest format, bf16, rounds by 2^−9 of a number; columns and rows add a little. A bias is rounded as part of
/// weight·b + bias, where b is a value that the pre-activation takes.
fn is_rounding_of(stack: &IdealStack, ideal: &IdealStack, domain: Domain) -> bool {
    let part = Rational::new(1, 128);
    let reach = if domain.is_bounded() { domain.lo.abs().max(domain.hi.abs()).max(1.0) } else { 64.0 };
    let reach = Rational::from_float(reach).expect("finite");
    let near =
        |x: &Number, y: &Number, more: Rational| (x.exact() - y.exact()).abs() <= (y.exact().abs() + more) * &part;
    let close = |x: &Number, y: &Number| near(x, y, Rational::zero());
    let offset = |x: &Number, y: &Number, slope: &Number| near(x, y, slope.exact().abs() * &reach);
    let neurons = stack.neurons.iter().zip(&ideal.neurons);
    stack.source == ideal.source
        && stack.neurons.len() == ideal.neurons.len()
        && close(&stack.constant, &ideal.constant)
        && neurons.into_iter().all(|(s, i)| {
            let up = match (&s.up, &i.up) {
                (None, None) => true,
                (Some((p, q)), Some((ip, iq))) => close(p, ip) && offset(q, iq, ip),
                _ => false,
            };
            up && close(&s.weight, &i.weight) && close(&s.out, &i.out) && offset(&s.bias, &i.bias, &i.weight)
        })
}

enum Exactness {
    Everywhere,
    OutsideBands,
    None,
}

/// Target and stack, cut together.
struct Problem<'a> {
    target: &'a Expr,
    approximation: &'a Expr,
    domain: Domain,
    delta: Rational,
    jumps: Vec<Rational>,
    /// The target alone, cut at its own knots.
    target_pieces: Vec<Piece>,
}

impl<'a> Problem<'a> {
    fn new(target: &'a Expr, approximation: &'a Expr, domain: Domain, delta: Rational) -> Result<Self> {
        let (lo, hi) = domain.ends();
        let (target_pieces, candidates) = cut(&[target], lo.as_ref(), hi.as_ref(), &[])?;
        let jumps = true_jumps(target, &target_pieces, candidates)?;
        if let Some(first) = jumps.first()
            && delta.is_zero()
        {
            return Err(Error::input(format!(
                "the target jumps at z = {}, and no continuous block can follow a jump",
                Number::from(first.clone())
            ))
            .help("allow a band around the jump (--band, or `band` in the specification)"));
        }
        Ok(Problem { target, approximation, domain, delta, jumps, target_pieces })
    }

    /// Is z (a point of a piece's interior) within δ of a jump?
    fn in_band(&self, z: &Rational) -> bool {
        self.jumps.iter().any(|j| (z - j).abs() <= self.delta)
    }

    fn figures(&self) -> Result<Figures> {
        let mut reach = TAIL_ARGUMENT;
        loop {
            let figures = self.figures_with(reach)?;
            // A remainder that matters beside the supremum deserves a longer finite part.
            if self.domain.is_bounded() || reach > 700.0 || figures.1 <= figures.0.epsilon * 1e-7 {
                return Ok(figures.0);
            }
            reach *= 4.0;
        }
    }

    /// The figures, and the largest tail remainder that went into them.
    fn figures_with(&self, reach: f64) -> Result<(Figures, f64)> {
        let special = self.special_points()?;
        let banded = !self.delta.is_zero();
        let (lo, hi) = self.domain.ends();
        let mut points: Vec<Rational> =
            special.iter().flat_map(|p| [p - &self.delta, p.clone(), p + &self.delta]).collect();
        if banded {
            points.extend([&lo, &hi].into_iter().flatten().flat_map(|p| [p - &self.delta, p + &self.delta]));
        }
        let (left, right);
        let mut exprs = vec![self.approximation, self.target];
        if banded {
            let moved =
                |d: Rational| self.target.substitute(&|_| Expr::z().plus(Expr::constant(Number::from(d.clone()))));
            (left, right) = (moved(-&self.delta), moved(self.delta.clone()));
            exprs.extend([&left, &right]);
        }
        let (pieces, _) = cut(&exprs, lo.as_ref(), hi.as_ref(), &points)?;

        let mut parts = Parts::default();
        let zero_set = self.zero_set();
        // Constants of the hull: one-sided limits at special points.
        let constants = if banded { self.hull_constants(&special) } else { Vec::new() };
        let mut tails = Vec::new();
        for piece in &pieces {
            let mut piece = piece.clone();
            let mut finite_ends = (piece.lo.clone(), piece.hi.clone());
            for (side, end) in [(Side::Left, &mut finite_ends.0), (Side::Right, &mut finite_ends.1)] {
                if end.is_none() {
                    let tail = Tail::new(&piece, side, reach)?;
                    *end = Some(tail.start.clone());
                    tails.push((tail, side));
                }
            }
            let (Some(l), Some(h)) = finite_ends else { unreachable!("both ends were set") };
            let middle = (&l + &h) / Rational::from(2);
            let in_band = banded && self.in_band(&middle);
            let difference = |k: usize| piece.forms[0].clone().minus(piece.forms[k].clone());
            let plain = Candidate { form: difference(1), upper: true, lower: true };
            if zero_set.contains(&l, &h, &self.delta) {
                let form = piece.forms[0].clone();
                parts.leak.push(Stretch {
                    lo: l.clone(),
                    hi: h.clone(),
                    candidates: vec![Candidate { form, upper: true, lower: true }],
                });
                parts.leak_seen = true;
            } else if !in_band {
                // Where the target vanishes the error is the leak, which is counted once.
                parts.outside.push(Stretch { lo: l.clone(), hi: h.clone(), candidates: vec![plain.clone()] });
            }
            if banded {
                let mut candidates = vec![plain];
                if lo.as_ref().is_none_or(|lo| &l - &self.delta >= *lo) {
                    candidates.push(Candidate { form: difference(2), upper: true, lower: true });
                }
                if hi.as_ref().is_none_or(|hi| &h + &self.delta <= *hi) {
                    candidates.push(Candidate { form: difference(3), upper: true, lower: true });
                }
                for c in &constants {
                    if &h - &c.at <= self.delta && &c.at - &l <= self.delta {
                        candidates.extend(c.candidates(&piece.forms[0]));
                    }
                }
                piece.forms.clear();
                let stretch = Stretch { lo: l, hi: h, candidates: distinct(candidates) };
                if in_band { parts.bands.push(stretch) } else { parts.hull.push(stretch) }
            }
        }
        self.isolated_values(&constants, &mut parts)?;
        if banded {
            self.window_ends(&special, &constants, &mut parts)?;
        }

        // η first: the slope that is left over at infinity.
        let mut eta = 0f64;
        for (tail, _) in &tails {
            eta = eta.max(tail.error[0].slope_mag()?);
        }
        let (mut tail_outside, mut tail_hull, mut tail_leak, mut remainder) = (0f64, 0f64, 0f64, 0f64);
        for (tail, side) in &tails {
            let sup = |t: &Asymptote| t.sup_abs(eta);
            tail_outside = tail_outside.max(sup(&tail.error[0])?);
            // Upper and lower side each take the most favourable member of the hull.
            let mut up = f64::INFINITY;
            let mut down = f64::INFINITY;
            for t in &tail.error {
                let (u, d) = t.sup_sides(eta)?;
                (up, down) = (up.min(u), down.min(d));
            }
            tail_hull = tail_hull.max(up.max(down));
            remainder = remainder.max(tail.error.iter().map(|t| t.remainder).fold(0.0, f64::max));
            if zero_set.reaches_infinity(*side) {
                tail_leak = tail_leak.max(sup(&tail.approximation)?);
                parts.leak_seen = true;
            }
        }
        // Bands are wide beside what a fifth digit says.
        let gap = if banded { BANDED_GAP } else { RELATIVE_GAP };
        let supremum = |stretches: &[Stretch], floor: f64| supremum(stretches, eta, floor, gap);
        let leak = parts.leak_seen.then(|| supremum(&parts.leak, 0.0).max(tail_leak));
        let outside = supremum(&parts.outside, tail_outside.max(leak.unwrap_or(0.0)));
        let delta = Number::from(self.delta.clone()).to_f64();
        let nil = Status::Within;
        let figures = if banded {
            let overshoot = supremum(&parts.bands, 0.0);
            let ends = supremum(&parts.ends, overshoot);
            // What is below the overshoot anyway is not worth a search of its own: off the bands φ itself is in the hull.
            let below = outside <= ends * (1.0 + gap);
            let hull = if below { outside } else { supremum(&parts.hull, ends.max(tail_hull)).min(outside) };
            Figures {
                status: nil,
                delta,
                epsilon: hull.max(ends),
                eta,
                epsilon_outside: Some(outside),
                overshoot: Some(overshoot),
                leak,
            }
        } else {
            Figures { status: nil, delta, epsilon: outside, eta, epsilon_outside: None, overshoot: None, leak }
        };
        if !figures.epsilon.is_finite() || !figures.eta.is_finite() || !outside.is_finite() {
            return Err(Error::unsupported("no finite bound on the error could be proved on this domain")
                .help("choose a bounded domain on which the target is finite"));
        }
        Ok((figures, remainder))
    }

    /// Knots of the target, and where it is stationary between them: members of the hull that may be extreme.
    fn special_points(&self) -> Result<Vec<Rational>> {
        if self.delta.is_zero() {
            // Only the knots matter then, and `cut` finds those.
            return Ok(Vec::new());
        }
        let mut points = self.knots();
        for piece in &self.target_pieces {
            let smooth = piece.forms[0].as_normal().is_none_or(|n| !n.terms.is_empty() || n.poly.degree() > 1);
            if !smooth {
                continue;
            }
            // Any point serves; a scan finds the stationary ones well enough.
            let l = piece.lo.as_ref().map_or(-64.0, |z| enclose(z).lo());
            let h = piece.hi.as_ref().map_or(64.0, |z| enclose(z).hi());
            if !(l < h) {
                continue;
            }
            let middle = Rational::from_float(0.5 * l + 0.5 * h).expect("finite");
            let program = Program::new(&piece.forms[0], &middle);
            let slope = |z: f64| program.jet(Interval::point(z)).d1.mid();
            const SCAN: usize = 64;
            let at = |k: usize| l + (h - l) * (k as f64 / SCAN as f64);
            for k in 0..SCAN {
                let (mut a, mut b) = (at(k), at(k + 1));
                let rising = slope(a) > 0.0;
                if rising == (slope(b) > 0.0) {
                    continue;
                }
                for _ in 0..50 {
                    let m = 0.5 * (a + b);
                    if (slope(m) > 0.0) == rising { a = m } else { b = m }
                }
                points.extend(Rational::from_float(a));
            }
        }
        points.sort();
        points.dedup();
        Ok(points)
    }

    /// Limits and values of the target at its special points, enclosed.
    fn hull_constants(&self, special: &[Rational]) -> Vec<HullConstant> {
        let mut out = Vec::new();
        for at in special {
            for piece in self.touching(at) {
                out.extend(HullConstant::new(&piece.forms[0], at));
            }
        }
        out
    }

    /// Knots of the target and ends of the domain.
    fn knots(&self) -> Vec<Rational> {
        let right_end = self.target_pieces.last().and_then(|p| p.hi.clone());
        self.target_pieces.iter().filter_map(|p| p.lo.clone()).chain(right_end).collect()
    }

    /// A target may take a value at a knot, or at an end of the domain, that no side approaches; such points are checked
    /// one by one.
    fn isolated_values(&self, constants: &[HullConstant], parts: &mut Parts) -> Result<()> {
        if self.jumps.is_empty() && !has_conditional(self.target) {
            return Ok(());
        }
        for at in self.knots() {
            let value = resolve(self.target, Region::Point(&at), &mut Vec::new())?;
            if self.touching(&at).any(|p| vanishes_at(&value.clone().minus(p.forms[0].clone()), &at)) {
                continue;
            }
            let near = constants.iter().filter(|c| (&c.at - &at).abs() < self.delta);
            let hull = self.point(&at, value, near)?;
            if self.in_band(&at) {
                parts.bands.push(hull);
            } else {
                let own = vec![hull.candidates[0].clone()];
                parts.outside.push(Stretch { lo: at.clone(), hi: at.clone(), candidates: own });
                parts.hull.push(hull);
            }
        }
        Ok(())
    }

    /// Where the window of an end of the domain ends on a special point, only the value there and the limit from the
    /// inside belong to the hull. (Inside the domain continuity of φ̂ carries the neighbours' bound over to such points.)
    fn window_ends(&self, special: &[Rational], constants: &[HullConstant], parts: &mut Parts) -> Result<()> {
        let (lo, hi) = self.domain.ends();
        for end in [lo, hi].into_iter().flatten() {
            let mut last = Vec::new();
            for at in special.iter().filter(|at| (*at - &end).abs() == self.delta) {
                last.extend(HullConstant::new(&resolve(self.target, Region::Point(at), &mut Vec::new())?, at));
                let inner = self
                    .target_pieces
                    .iter()
                    .find(|p| if end < *at { p.hi.as_ref() == Some(at) } else { p.lo.as_ref() == Some(at) });
                last.extend(inner.and_then(|p| HullConstant::new(&p.forms[0], at)));
            }
            if !last.is_empty() {
                let value = resolve(self.target, Region::Point(&end), &mut Vec::new())?;
                let near = constants.iter().filter(|c| (&c.at - &end).abs() < self.delta);
                parts.ends.push(self.point(&end, value, near.chain(&last))?);
            }
        }
        Ok(())
    }

    /// The single point `at`, where the target has a value and the hull these members.
    fn point<'c>(
        &self,
        at: &Rational,
        value: Form,
        constants: impl Iterator<Item = &'c HullConstant>,
    ) -> Result<Stretch> {
        let approximation = resolve(self.approximation, Region::Point(at), &mut Vec::new())?;
        let mut candidates = vec![Candidate { form: approximation.clone().minus(value), upper: true, lower: true }];
        constants.for_each(|c| candidates.extend(c.candidates(&approximation)));
        Ok(Stretch { lo: at.clone(), hi: at.clone(), candidates })
    }

    fn touching<'p>(&'p self, at: &'p Rational) -> impl Iterator<Item = &'p Piece> {
        let touches =
            move |p: &&Piece| p.lo.as_ref().is_none_or(|lo| lo <= at) && p.hi.as_ref().is_none_or(|hi| at <= hi);
        self.target_pieces.iter().filter(touches)
    }

    /// Where the target is identically 0.
    fn zero_set(&self) -> ZeroSet {
        let mut runs: Vec<(Option<Rational>, Option<Rational>)> = Vec::new();
        let mut open = false;
        for piece in &self.target_pieces {
            if piece.forms[0].is_zero() {
                let continues = open
                    && piece.lo.as_ref().is_some_and(|at| {
                        let value = resolve(self.target, Region::Point(at), &mut Vec::new());
                        value.is_ok_and(|v| v.as_normal().and_then(|n| n.exact_value(at)).is_some_and(|v| v.is_zero()))
                    });
                match runs.last_mut() {
                    Some(run) if continues => run.1 = piece.hi.clone(),
                    _ => runs.push((piece.lo.clone(), piece.hi.clone())),
                }
                open = true;
            } else {
                open = false;
            }
        }
        let (lo, hi) = self.domain.ends();
        ZeroSet { runs, lo, hi }
    }

    /// Does `candidate` differ from the target left of its first knot and off the bands? False where that takes a closer look.
    fn differs_on_the_left(&self, candidate: &Expr) -> Result<bool> {
        let first = &self.target_pieces[0];
        let edge = match (&first.hi, self.jumps.first()) {
            (Some(hi), Some(jump)) => Some(hi.clone().min(jump - &self.delta)),
            (hi, _) => hi.clone(),
        };
        if first.lo.as_ref().zip(edge.as_ref()).is_some_and(|(lo, hi)| lo >= hi) {
            return Ok(false);
        }
        let mut knots = Vec::new();
        let form = resolve(candidate, Region::Open(first.lo.as_ref(), edge.as_ref()), &mut knots)?;
        Ok(knots.is_empty() && !form.minus(first.forms[0].clone()).is_zero())
    }

    /// Is `candidate` equal to the target, as an identity of normal forms?
    fn exactness(&self, target: &Expr, candidate: &Expr) -> Result<Exactness> {
        if self.differs_on_the_left(candidate)? {
            return Ok(Exactness::None);
        }
        let (lo, hi) = self.domain.ends();
        let edges: Vec<Rational> = self.jumps.iter().flat_map(|j| [j - &self.delta, j + &self.delta]).collect();
        let (pieces, _) = cut(&[candidate, target], lo.as_ref(), hi.as_ref(), &edges)?;
        let mut result = Exactness::Everywhere;
        for piece in pieces {
            let [a, b] = &piece.forms[..] else { unreachable!("two expressions were cut") };
            if a.clone().minus(b.clone()).is_zero() {
                continue;
            }
            let inside = match (&piece.lo, &piece.hi) {
                (Some(l), Some(h)) => self.in_band(&((l + h) / Rational::from(2))),
                _ => false,
            };
            if !inside {
                return Ok(Exactness::None);
            }
            result = Exactness::OutsideBands;
        }
        // Single points, where the target may have a value of its own.
        for at in self.knots().into_iter().filter(|_| has_conditional(target)) {
            let [a, b] = [candidate, target].map(|e| resolve(e, Region::Point(&at), &mut Vec::new()));
            if !vanishes_at(&a?.minus(b?), &at) {
                if !self.in_band(&at) {
                    return Ok(Exactness::None);
                }
                result = Exactness::OutsideBands;
            }
        }
        Ok(result)
    }
}

fn has_conditional(e: &Expr) -> bool {
    matches!(e, Expr::Step(_) | Expr::JumpRelu(..) | Expr::Select(..)) || e.children().any(has_conditional)
}

/// Of the knots at which a conditional switches, those where the two sides really differ.
fn true_jumps(target: &Expr, pieces: &[Piece], candidates: Vec<Rational>) -> Result<Vec<Rational>> {
    let mut out = Vec::new();
    for at in candidates {
        let left = pieces.iter().find(|p| p.hi.as_ref() == Some(&at));
        let right = pieces.iter().find(|p| p.lo.as_ref() == Some(&at));
        let (Some(left), Some(right)) = (left, right) else { continue };
        let gap = right.forms[0].clone().minus(left.forms[0].clone());
        let jump = match gap.as_normal().and_then(|n| n.exact_value(&at)) {
            Some(v) => !v.is_zero(),
            None => {
                let v = enclose_at(&gap, &at);
                if v.contains(0.0) {
                    return Err(Error::unsupported(format!(
                        "cannot decide whether {target} jumps at z = {}: its two sides agree to within {:e}",
                        Number::from(at),
                        v.mag()
                    )));
                }
                true
            }
        };
        if jump {
            out.push(at);
        }
    }
    Ok(out)
}

/// Encloses a form's value at an exact point.
fn enclose_at(form: &Form, at: &Rational) -> Interval {
    if let Some(v) = form.as_normal().and_then(|n| n.exact_value(at)) {
        return enclose(&v);
    }
    Program::new(form, at).value(enclose(at))
}

/// Is a form known to be 0 at a point?
fn vanishes_at(form: &Form, at: &Rational) -> bool {
    form.as_normal().is_some_and(|n| n.is_zero() || n.exact_value(at).is_some_and(|v| v.is_zero()))
}

struct HullConstant {
    at: Rational,
    least: Rational,
    greatest: Rational,
}

impl HullConstant {
    /// A form's value at a point, exactly or enclosed; `None` if it is not finite.
    fn new(form: &Form, at: &Rational) -> Option<Self> {
        if let Some(v) = form.as_normal().and_then(|n| n.exact_value(at)) {
            return Some(HullConstant { at: at.clone(), least: v.clone(), greatest: v });
        }
        let value = enclose_at(form, at);
        let (least, greatest) = (Rational::from_float(value.lo())?, Rational::from_float(value.hi())?);
        Some(HullConstant { at: at.clone(), least, greatest })
    }

    /// φ̂ minus the constant: its least value bounds from above, its greatest from below.
    fn candidates(&self, approximation: &Form) -> [Candidate; 2] {
        let form = |v: &Rational| approximation.clone().minus(Form::constant(v.clone()));
        [
            Candidate { form: form(&self.least), upper: true, lower: false },
            Candidate { form: form(&self.greatest), upper: false, lower: true },
        ]
    }
}

struct ZeroSet {
    runs: Vec<(Option<Rational>, Option<Rational>)>,
    lo: Option<Rational>,
    hi: Option<Rational>,
}

impl ZeroSet {
    /// Is [z − δ, z + δ] ∩ D inside the zero set for all z in [l, h]?
    fn contains(&self, l: &Rational, h: &Rational, delta: &Rational) -> bool {
        self.runs.iter().any(|(a, b)| {
            let left = a.as_ref().is_none_or(|a| Some(a) == self.lo.as_ref() || a + delta <= *l);
            let right = b.as_ref().is_none_or(|b| Some(b) == self.hi.as_ref() || *h <= b - delta);
            let inside = a.as_ref().is_none_or(|a| a <= l) && b.as_ref().is_none_or(|b| h <= b);
            left && right && inside
        })
    }

    fn reaches_infinity(&self, side: Side) -> bool {
        self.runs.iter().any(|(a, b)| match side {
            Side::Left => a.is_none(),
            Side::Right => b.is_none(),
        })
    }
}

#[derive(Default)]
struct Parts {
    /// |φ̂ − φ| off the bands
    outside: Vec<Stretch>,
    /// distance from the hull off the bands
    hull: Vec<Stretch>,
    /// distance from the hull in the bands
    bands: Vec<Stretch>,
    /// distance from the hull at ends of the domain
    ends: Vec<Stretch>,
    /// |φ̂| where φ vanishes
    leak: Vec<Stretch>,
    leak_seen: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

/// A function near infinity: constant + slope·z + remainder.
struct Asymptote {
    constant: Interval,
    slope: Interval,
    higher: bool,
    remainder: f64,
}

impl Asymptote {
    fn check(&self) -> Result<()> {
        if self.higher || !self.constant.is_finite() || !self.slope.is_finite() || !self.remainder.is_finite() {
            return Err(Error::unsupported(
                "the error grows faster than |z| towards infinity: no finite bound exists on this domain",
            )
            .help("choose a bounded domain"));
        }
        Ok(())
    }

    fn slope_mag(&self) -> Result<f64> {
        self.check()?;
        Ok(self.slope.mag())
    }

    /// Upper bounds of F − η|z| and −F − η|z|.
    fn sup_sides(&self, eta: f64) -> Result<(f64, f64)> {
        self.check()?;
        if self.slope.mag() > eta {
            return Ok((f64::INFINITY, f64::INFINITY));
        }
        let r = Interval::point(self.remainder);
        Ok(((self.constant + r).hi().max(0.0), (r - self.constant).hi().max(0.0)))
    }

    fn sup_abs(&self, eta: f64) -> Result<f64> {
        self.sup_sides(eta).map(|(a, b)| a.max(b))
    }
}

/// The part of an infinite piece beyond a point where all atoms are small.
struct Tail {
    start: Rational,
    /// φ̂ − φ, and φ̂ − φ(z ∓ δ) where there are bands
    error: Vec<Asymptote>,
    approximation: Asymptote,
}

impl Tail {
    fn new(piece: &Piece, side: Side, reach: f64) -> Result<Tail> {
        let mut forms: Vec<Form> =
            (1..piece.forms.len()).map(|k| piece.forms[0].clone().minus(piece.forms[k].clone())).collect();
        forms.push(piece.forms[0].clone());
        let normals: Vec<&Normal> = forms
            .iter()
            .map(|f| {
                f.as_normal().ok_or_else(|| {
                    Error::unsupported(
                        "the target's behaviour towards infinity is not known for products or extrema of activations",
                    )
                    .help("choose a bounded domain")
                })
            })
            .collect::<Result<_>>()?;
        // Far enough that every atom's argument is beyond `reach`, and |z|^j·e^(−|a z|) decreases for all powers j that occur.
        let sign = if side == Side::Left { -1.0 } else { 1.0 };
        let edge = match side {
            Side::Left => piece.hi.as_ref().map_or(0.0, |z| (-enclose(z)).hi()),
            Side::Right => piece.lo.as_ref().map_or(0.0, |z| enclose(z).hi()),
        };
        let mut start = edge.max(0.0) + 1.0;
        for n in &normals {
            for (atom, coefficient) in n.terms.iter().filter(|(t, _)| !t.a.is_zero()) {
                let degree = coefficient.degree().max(8) as f64;
                let far = if atom.kind == crate::atom::Kind::Recip { TAIL_ARGUMENT_RECIPROCAL } else { reach };
                let (a, b) = (enclose(&atom.a).mig().max(f64::MIN_POSITIVE), enclose(&atom.b).mag());
                start = start.max((far + b) / a).max(degree / a);
            }
        }
        start *= 1.0 + 1e-9;
        let at = Rational::from_float(sign * start).ok_or_else(|| {
            Error::unsupported("weights too small for an unbounded domain").help("choose a bounded domain")
        })?;
        let mut asymptotes: Vec<Asymptote> = normals.iter().map(|n| asymptote(n, &at, start, sign)).collect();
        let approximation = asymptotes.pop().expect("at least one");
        Ok(Tail { start: at, error: asymptotes, approximation })
    }
}

/// Splits a normal form into its asymptote beyond `at` = sign·start and a bound on the rest.
fn asymptote(n: &Normal, at: &Rational, start: f64, sign: f64) -> Asymptote {
    let n = n.oriented(at);
    let mut c = n.poly.enclosures();
    c.resize(c.len().max(2), Interval::ZERO);
    let mut remainder = Interval::ZERO;
    let z = Interval::point(start);
    for (atom, coefficient) in n.terms.iter() {
        if atom.a.is_zero() {
            // A constant atom: part of the polynomial, with an enclosure for coefficients.
            let v = atom.kind.jet(enclose(&atom.b)).v;
            for (k, x) in coefficient.enclosures().into_iter().enumerate() {
                if k >= c.len() {
                    c.push(Interval::ZERO);
                }
                c[k] = c[k] + x * v;
            }
            continue;
        }
        // Towards this side the argument runs to −∞ (grows = false) or +∞.
        let grows = atom.a.is_positive() == (sign > 0.0);
        let u = enclose(&atom.a) * Interval::point(sign) * z + enclose(&atom.b);
        let size = match atom.kind.decay() {
            Decay::Left { factor, from } if !grows && u.hi() <= -from => Interval::point(factor) * u.exp(),
            Decay::Right { factor, from } if grows && u.lo() >= from => Interval::point(factor) * (-u).exp(),
            Decay::Reciprocal if grows && u.lo() > 0.0 && coefficient.degree() == 0 => Interval::ONE / u,
            _ => Interval::ENTIRE,
        };
        let mut power = Interval::ONE;
        for x in coefficient.enclosures() {
            remainder = remainder + Interval::point(x.mag()) * power * Interval::point(size.hi());
            power = power * z;
        }
    }
    Asymptote {
        constant: c[0],
        slope: c[1],
        higher: c[2..].iter().any(|x| *x != Interval::ZERO),
        remainder: remainder.hi(),
    }
}

/// Upper bound of |φ| on a bounded domain.
///
/// Errors: the target cannot be cut, or the domain is unbounded.
pub fn value_bound(target: &Expr, domain: Domain) -> Result<f64> {
    bounds_over_pieces(target, domain, |jet| [jet.v.mag()]).map(|[value]| value)
}

/// Upper bound of |φ′| off the jumps of φ, on a bounded domain.
///
/// Errors: the target cannot be cut, or the domain is unbounded.
pub fn slope_bound(target: &Expr, domain: Domain) -> Result<f64> {
    bounds_over_pieces(target, domain, |jet| [jet.d1.mag()]).map(|[slope]| slope)
}

/// [`value_bound`] and [`slope_bound`].
///
/// Errors: those of either.
pub fn value_and_slope_bounds(target: &Expr, domain: Domain) -> Result<[f64; 2]> {
    bounds_over_pieces(target, domain, |jet| [jet.v.mag(), jet.d1.mag()])
}

/// Splitting pieces this often brings natural extension close to the true range.
const BOUND_SPLITS: u32 = 64;

fn bounds_over_pieces<const N: usize>(
    target: &Expr,
    domain: Domain,
    f: impl Fn(&crate::activation::Jet) -> [f64; N],
) -> Result<[f64; N]> {
    if !domain.is_bounded() {
        return Err(Error::input("a bound on the target's size needs a bounded domain"));
    }
    let (lo, hi) = domain.ends();
    let (pieces, _) = cut(&[target], lo.as_ref(), hi.as_ref(), &[])?;
    let mut bounds = [0f64; N];
    for piece in &pieces {
        let (Some(l), Some(h)) = (&piece.lo, &piece.hi) else { unreachable!("the domain is bounded") };
        let middle = (l + h) / Rational::from(2);
        let program = Program::new(&piece.forms[0], &middle);
        let (l, h) = (enclose(l).lo(), enclose(h).hi());
        // A line needs no splitting.
        let line = piece.forms[0].as_normal().and_then(Normal::as_poly).is_some_and(|p| p.degree() <= 1);
        let n = if line { 1 } else { BOUND_SPLITS };
        let at = |k: u32| if k == n { h } else { l + (h - l) * f64::from(k) / f64::from(n) };
        for k in 0..n {
            let sizes = f(&program.jet(Interval::new(at(k).min(h), at(k + 1).min(h))));
            if !sizes.iter().all(|x| x.is_finite()) {
                return Err(Error::unsupported("the target is not bounded on the domain"));
            }
            bounds.iter_mut().zip(sizes).for_each(|(b, x)| *b = b.max(x));
        }
    }
    Ok(bounds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::Activation;
    use crate::stack::Neuron;

    fn stack(source: &str, constant: f64, neurons: &[(f64, f64, f64)]) -> Stack<f64> {
        Stack {
            source: source.parse().unwrap(),
            constant,
            neurons: neurons.iter().map(|&(weight, bias, out)| Neuron { weight, bias, out, up: None }).collect(),
        }
    }

    fn figures(target: &str, stack: &Stack<f64>, lo: f64, hi: f64, delta: f64) -> Figures {
        let target: Expr = target.parse().unwrap();
        let claim =
            Claim { target: &target, stack, ideal: None, domain: Domain::new(lo, hi).unwrap(), delta, tolerance: None };
        certify(&claim).unwrap().figures().clone()
    }

    const INF: f64 = f64::INFINITY;

    #[test]
    fn relu_from_a_steep_silu() {
        // sup |relu(t) − silu(t)| = 0.2784645427610738 (mpmath, 40 digits), divided by the slope.
        let s = stack("silu", 0.0, &[(64.0, 0.0, 1.0 / 64.0)]);
        for (lo, hi) in [(-8.0, 8.0), (-INF, INF)] {
            let f = figures("relu(z)", &s, lo, hi, 0.0);
            assert!(f.epsilon >= 0.278_464_542_761_073_8 / 64.0, "{f:?}");
            assert!(f.epsilon <= 0.278_464_542_761_074 / 64.0 * (1.0 + 1e-6), "{f:?}");
            assert_eq!((f.eta, f.delta, f.status), (0.0, 0.0, Status::Within));
            assert!(f.leak.unwrap() <= f.epsilon && f.leak.unwrap() >= f.epsilon * 0.999);
        }
    }

    #[test]
    fn identities_are_recognised_and_errors_are_zero() {
        let two = |source| stack(source, 0.0, &[(1.0, 0.0, 1.0), (-1.0, 0.0, -1.0)]);
        for source in ["relu", "silu", "gelu", "gelu_tanh", "quick_gelu", "softplus", "hardswish", "swish:1.5"] {
            let f = figures("z", &two(source), -INF, INF, 0.0);
            assert_eq!((f.status, f.epsilon, f.eta), (Status::Exact, 0.0, 0.0), "{source}");
        }
        for source in ["mish", "elu", "selu", "celu", "sigmoid", "tanh", "softsign", "relu2"] {
            assert_ne!(figures("z", &two(source), -1.0, 1.0, 0.0).status, Status::Exact, "{source}");
        }
        let f = figures("silu(2 * z) + 1", &stack("swish:2", 1.0, &[(1.0, 0.0, 2.0)]), -INF, INF, 0.0);
        assert_eq!((f.status, f.epsilon), (Status::Exact, 0.0));
        let f = figures("tanh(z)", &stack("sigmoid", -1.0, &[(2.0, 0.0, 2.0)]), -INF, INF, 0.0);
        assert_eq!((f.status, f.epsilon), (Status::Exact, 0.0));
    }

    #[test]
    fn a_step_from_relus_is_exact_outside_its_band() {
        let s = stack("relu", 0.0, &[(4.0, -7.0, 0.5), (4.0, -9.0, -0.5)]);
        let f = figures("step(z - 2)", &s, -8.0, 8.0, 0.25);
        assert_eq!(f.status, Status::ExactOutside);
        assert_eq!((f.epsilon, f.epsilon_outside, f.overshoot, f.leak), (0.0, Some(0.0), Some(0.0), Some(0.0)));
        // A narrower band than the ramp needs: half of what sticks out is 1/4 of the step.
        let f = figures("step(z - 2)", &s, -8.0, 8.0, 0.125);
        assert_eq!(f.epsilon, 0.25);
        assert_eq!(f.epsilon_outside, Some(0.25));
    }

    #[test]
    fn jumps_need_a_band() {
        let target: Expr = "jumprelu(z, 2)".parse().unwrap();
        let s = stack("relu", 0.0, &[(1.0, 0.0, 1.0)]);
        let claim =
            Claim { target: &target, stack: &s, ideal: None, domain: Domain::line(), delta: 0.0, tolerance: None };
        assert!(certify(&claim).unwrap_err().is_input());
        // jumprelu with threshold 0 does not jump.
        assert_eq!(figures("jumprelu(z, 0)", &s, -INF, INF, 0.0).status, Status::Exact);
    }

    #[test]
    fn what_grows_differently_has_no_bound_on_the_line() {
        let target: Expr = "gelu(z)".parse().unwrap();
        let s = stack("tanh", 0.0, &[(1.0, 0.0, 1.0)]);
        let claim =
            Claim { target: &target, stack: &s, ideal: None, domain: Domain::line(), delta: 0.0, tolerance: None };
        let f = certify(&claim).unwrap().figures().clone();
        assert_eq!(f.eta, 1.0);
        let target: Expr = "z * z".parse().unwrap();
        let claim = Claim { target: &target, ..claim };
        assert!(certify(&claim).unwrap_err().is_unsupported());
    }

    #[test]
    fn isolated_values_are_not_forgotten() {
        // At z = 0 exactly neither condition holds: the value is 5 there and 0 elsewhere.
        let s = stack("relu", 0.0, &[(0.0, 0.0, 0.0)]);
        let f = figures("select(z, 0, select(-z, 0, 5))", &s, -1.0, 1.0, 0.0);
        assert_eq!(f.epsilon, 5.0);
    }

    #[test]
    fn speed_and_tightness_of_the_floors() {
        let s = stack("silu", 0.0, &[(64.0, 0.0, 1.0 / 64.0)]);
        let start = std::time::Instant::now();
        for _ in 0..100 {
            figures("relu(z)", &s, -8.0, 8.0, 0.0);
        }
        eprintln!("one neuron: {:?}", start.elapsed() / 100);
        let many: Vec<_> =
            (0..18).map(|k| (3.0 + f64::from(k), -8.0 + f64::from(k) * 0.9, 0.1 * (-1f64).powi(k))).collect();
        let s = stack("silu", 0.0, &many);
        let start = std::time::Instant::now();
        eprintln!("{:?}", figures("gelu(z)", &s, -8.0, 8.0, 0.0));
        eprintln!("18 neurons: {:?}", start.elapsed());
        let _ = Activation::catalogue();
    }
}
