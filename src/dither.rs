//! Stacks for 16-bit arithmetic: copies of steep neurons whose roundings average out.
//!
//! A saturated neuron returns its pre-activation G = β(z − θ) + offset, rounded to the format's lattice of spacing U. A kink is one such
//! neuron, a jump a pair [σ(G + h) − σ(G)]/h, and both are off by what rounding leaves. With N copies whose offsets are spread over one
//! spacing, Hermite's identity
//!
//! ```text
//! Σ_{k<N} ⌊x + k/N⌋ = ⌊N·x⌋
//! ```
//!
//! says that their mean is G rounded to a lattice of spacing U/N. That holds in each binade of G (of spacing U/2, U/4, … too, N being a
//! power of two), but not where a power of two P lies among the copies: those above it have spacing U, those below U/2, and
//! neither is a whole period. With e the error of rounding, e(t) = U-periodic for t > 0, U/2-periodic for t < 0 from P, the mean over offsets
//! spread evenly over s is off by [E(b) − E(b − s)]/s with E = ∫e, 0 ≤ −E ≤ U²/8: at most U²/(8s), over a step's height h:
//!
//! ```text
//! error ≤ U²/(8·s·h) + U/(N·h)        the rise is s + h ≤ 2δβ wide: s = h is best, U²/(2·(s + h)²)
//! ```
//!
//! Offsets that are not even, with outer weights that are not equal, do far better: `dither/offsets.rs` finds both. U/β, the spacing in units of z, is
//! least where the largest G is just below a power of two; near there β is free, and taken such that β·w rounds well ([`crate::scaling`]).
//!
//! An idle feature must not leak: copies of a kink lie on its active side, and all copies so far from where they must be silent that errors of sums do
//! not wake them.
//!
//! Search: nothing here is trusted. Offsets are judged by what rounding does to them where sums err as much as they may, and the best by
//! [`crate::exhaust`].

mod offsets;

use rayon::prelude::*;

use crate::activation::Activation;
use crate::arithmetic::{Arithmetic, lattice};
use crate::canonical::{Canonical, PiecewisePolynomial};
use crate::certify::Domain;
use crate::error::{Error, Result};
use crate::exhaust::{Question, Sums, Unit, exhaust};
use crate::expr::Expr;
use crate::format::Format;
use crate::landscape::Deviation;
use crate::number::Number;
use crate::rational::Rational;
use crate::scaling;
use crate::stack::{IdealStack, Neuron};
use offsets::{Frame, QUANTUM, Search, Shape, Weighted};

/// What is to be laid out.
#[derive(Clone, Copy, Debug)]
pub struct Dither<'a> {
    /// φ, piecewise linear and constant somewhere
    pub target: &'a Expr,
    /// σ, which approaches the identity on the right and 0 on the left
    pub source: &'a Activation,
    /// is the host gated? The up row is then the constant 1
    pub gated: bool,
    /// the values of z; bounded
    pub domain: Domain,
    /// δ: rises stay within θ ± δ
    pub delta: f64,
    /// of a 16-bit stream
    pub arithmetic: &'a Arithmetic,
    /// what accumulation adds to a pre-activation at most, in units of z; 0: sums agree
    pub sums: f64,
    /// the same where copies must be silent: of more engines, so that an idle feature leaks in none of them
    pub idle_sums: f64,
    /// the largest β
    pub max_weight: f64,
    /// w, if rows are β·w rounded to the stream's format: β is then one that rounds them well
    pub row: Option<&'a [f64]>,
}

/// A stack, and what is proved of it under [`Dither::sums`].
#[derive(Clone, Debug)]
pub struct Copies {
    /// before rounding to the format of rows and columns
    pub ideal: IdealStack,
    /// ε and the rest
    pub deviation: Deviation,
    /// β
    pub slope: f64,
    /// an estimate of the mean error, as much as it counts
    pub mean: f64,
}

/// Something that a neuron, or a pair of them, adds to the right of z (to its left, if mirrored).
struct Bend {
    at: Rational,
    mirrored: bool,
    /// of a jump, or a change of slope
    amount: Rational,
    jump: bool,
}

/// Where a smooth σ is saturated in value, to the rounding of 16 bits.
const KNEE: f64 = 20.0;
/// Where silu is exactly 0 in f32; the other σ are sooner.
const SILENT: f64 = 104.0;
/// bf16 has room beyond measure: a knee of this part of a band, or of the domain, is none.
const NARROW: f64 = 1.0 / 4096.0;
/// β gives up so much of its size at most, where a row rounds better.
const NEARLY: f64 = 0.97;
/// Copies of a kink lie within so many spacings.
const SPAN: f64 = 4.0;

/// Everything that does not depend on how many copies there are.
pub struct Layouts<'a> {
    dither: &'a Dither<'a>,
    constant: Rational,
    bends: Vec<Bend>,
    lines: Vec<Line>,
}

/// One choice of β.
struct Line {
    slope: f64,
    /// U at the largest G
    spacing: f64,
    /// what copies of each bend add up to, and where they may lie: an index of `searches` for each bend
    kinds: Vec<usize>,
    searches: Vec<Search>,
}

impl Dither<'_> {
    /// The best stack found with so many copies of each neuron; `None` where the target has no such stack, or no room for it.
    ///
    /// Errors: no 16-bit stream, an unbounded domain, a target that cannot be cut.
    pub fn copies(&self, count: usize) -> Result<Option<Copies>> {
        self.layouts()?.map_or(Ok(None), |l| l.copies(count))
    }

    /// What all numbers of copies have in common; `None` and errors as [`Dither::copies`].
    pub fn layouts(&self) -> Result<Option<Layouts<'_>>> {
        if !self.domain.is_bounded() || self.arithmetic.stream.bytes() != 2 {
            return Err(Error::input("copies of neurons are for bounded domains, in 16 bits"));
        }
        let Some((constant, bends)) = self.bends()? else { return Ok(None) };
        let lines: Vec<Line> = self.slopes(&bends).into_iter().filter_map(|s| self.line(s, &bends)).collect();
        Ok((!lines.is_empty()).then_some(Layouts { dither: self, constant, bends, lines }))
    }

    /// With one slope; none if the band has no room for σ's knee.
    fn line(&self, slope: f64, bends: &[Bend]) -> Option<Line> {
        let end = slope * self.reach(bends);
        let spacing = lattice(self.arithmetic.stream).spacing(end);
        let frames: Vec<Frame> = bends.iter().map(|b| self.frame(b, bends, slope)).collect::<Option<_>>()?;
        let mut different: Vec<&Frame> = Vec::new();
        let kinds = frames.iter().map(|f| match different.iter().position(|d| *d == f) {
            Some(k) => k,
            None => {
                different.push(f);
                different.len() - 1
            }
        });
        let kinds = kinds.collect();
        let searches = different.into_par_iter().map(Search::new).collect();
        Some(Line { slope, spacing, kinds, searches })
    }

    /// Where a bend's copies may lie, and where they must be good.
    fn frame(&self, bend: &Bend, bends: &[Bend], slope: f64) -> Option<Frame> {
        let lattice = lattice(self.arithmetic.stream);
        let end = slope * self.reach(bends);
        let spacing = lattice.spacing(end);
        let error = self.sums * slope;
        let smooth = *self.source != Activation::Relu;
        let silent = if smooth { SILENT.min(spacing / 64.0) } else { 0.0 };
        let knee = if smooth { KNEE.max(silent) } else { 0.0 };
        let idle = self.idle_sums.max(self.sums) * slope;
        // Saturated beyond the band on one side, silent on the other.
        let (lo, hi) = (self.delta * slope - error - knee, self.delta * slope - idle - knee);
        let banded = bends.iter().any(|b| b.jump && b.at == bend.at);
        let (shape, room) = match (bend.jump, banded) {
            (true, _) => (Shape::Step, [-lo, hi]),
            (false, true) => (Shape::Kink, [hi - SPAN * spacing, hi]),
            (false, false) => (Shape::Kink, [-idle - silent - SPAN * spacing, -idle - silent]),
        };
        // Where sums agree a step is off around powers of two only, and the mean says more than the largest error.
        let average = match shape {
            Shape::Kink => 0.5,
            Shape::Step if error > 0.0 => 4.0,
            Shape::Step => 32.0,
        };
        // Between two changes of roundings a kink's f is no constant: both sides of each are looked at.
        let error = if shape == Shape::Kink { error.max(spacing / 16_384.0) } else { error };
        // Beyond a rise all neurons are saturated; a kink without a band counts from its foot.
        let start = if banded { self.delta * slope + KNEE } else { 0.0 };
        let end = end - slope * self.delta;
        (!banded || hi > 0.0).then_some(Frame { shape, lattice, room, spacing, error, end, start, average })
    }

    /// φ as a constant, jumps and kinks: what lies left of a place where it is constant is mirrored.
    fn bends(&self) -> Result<Option<(Rational, Vec<Bend>)>> {
        use Activation::{Gelu, GeluTanh, QuickGelu, Relu, Silu, Swish};
        if !matches!(self.source, Relu | Silu | Swish(_) | QuickGelu | Gelu | GeluTanh) {
            return Ok(None);
        }
        let Some(p) = Canonical::new(self.target, self.domain)?.polynomial() else { return Ok(None) };
        if p.degree() > 1 {
            return Ok(None);
        }
        let Some(flat) = p.polys.iter().position(|q| q.degree() == 0) else { return Ok(None) };
        let bends = p.knots.iter().enumerate().flat_map(|(k, t)| bends_at(&p, k, t, k < flat)).collect();
        Ok(Some((p.polys[flat].coefficient(0), bends)))
    }

    /// The largest |z − θ| on the side where a neuron is not dead.
    fn reach(&self, bends: &[Bend]) -> f64 {
        let far = |b: &Bend| {
            let at = Number::from(b.at.clone()).to_f64();
            self.delta + if b.mirrored { at - self.domain.lo() } else { self.domain.hi() - at }
        };
        bends.iter().map(far).fold(f64::MIN_POSITIVE, f64::max)
    }

    /// β: the largest G just below a power of two, or β one itself.
    fn slopes(&self, bends: &[Bend]) -> Vec<f64> {
        let reach = self.reach(bends);
        // f16 ends at 65,504; hidden units are multiples of pre-activations by 1.
        let wide = if self.arithmetic.stream == Format::F16 { 32_768.0 } else { f64::MAX };
        let scale = if self.delta > 0.0 { self.delta } else { reach / 256.0 };
        let most = wide.min(KNEE / (scale * NARROW) * reach).min(self.max_weight * reach);
        let top = f64::exp2(most.log2().floor());
        let below = (top / reach) * (1.0 - 1.0 / 1024.0);
        let just_below = match self.row {
            Some(w) => scaling::best(w, self.arithmetic.stream, [NEARLY * below, below]),
            // Eight bits.
            None => lattice(Format::Bf16).nearest(below * (1.0 - 3.0 / 1024.0)),
        };
        let mut slopes = vec![just_below, f64::exp2((top / reach).log2().floor())];
        slopes.retain(|s| *s > 0.0 && s.is_finite());
        slopes.dedup();
        slopes
    }

    fn judge(&self, ideal: &IdealStack, slope: f64) -> Result<Deviation> {
        let stack = ideal.try_map(|x| Ok::<f64, Error>(x.to_f64()))?;
        let gate_error = self.sums * slope;
        let unit =
            |n: &Neuron<f64>| Unit { weight: n.weight, bias: n.bias, out: n.out, up: n.up, gate_error, up_error: 0.0 };
        let units: Vec<Unit> = stack.neurons.iter().map(unit).collect();
        let agree = self.sums == 0.0 && units.iter().all(|u| u.weight > 0.0);
        exhaust(&Question {
            target: self.target,
            source: self.source,
            constant: stack.constant,
            units: &units,
            domain: self.domain,
            delta: self.delta,
            arithmetic: self.arithmetic,
            sums: if agree { Sums::Agreeing } else { Sums::Independent },
        })
    }
}

/// What changes at a knot, in terms of what grows away from the constant piece.
fn bends_at(p: &PiecewisePolynomial, k: usize, at: &Rational, mirrored: bool) -> Vec<Bend> {
    let (left, right) = (&p.polys[k], &p.polys[k + 1]);
    let sign = Rational::from(if mirrored { -1 } else { 1 });
    let jump = (right.value(at) - left.value(at)) * &sign;
    // Mirrored, a slope counts leftwards, and what is added is the left side less the right one.
    let kink = right.coefficient(1) - left.coefficient(1);
    let bend = |amount: Rational, jump: bool| Bend { at: at.clone(), mirrored, amount, jump };
    [bend(jump, true), bend(kink, false)].into_iter().filter(|b| !b.amount.is_zero()).collect()
}

impl Layouts<'_> {
    /// The best stack found with so many copies of each neuron; `None` where there is no room.
    ///
    /// Errors: no copies at all.
    pub fn copies(&self, count: usize) -> Result<Option<Copies>> {
        if count == 0 {
            return Err(Error::input("0 copies of a neuron"));
        }
        let found: Vec<Copies> = self.lines.par_iter().flat_map(|line| self.laid(line, count)).collect();
        Ok(found.into_iter().min_by(|a, b| a.cost().total_cmp(&b.cost())))
    }

    /// With one slope: a pair for each copy of a jump, a neuron for each of a kink. The best by the places looked at, and the second best.
    fn laid(&self, line: &Line, count: usize) -> Vec<Copies> {
        let neurons = |b: &Bend| if b.jump { 2 * count } else { count };
        let mut found: Vec<Vec<Weighted>> = vec![Vec::new(); line.searches.len()];
        for (b, kind) in self.bends.iter().zip(&line.kinds) {
            if found[*kind].is_empty() {
                found[*kind] = line.searches[*kind].best(neurons(b));
            }
        }
        let most = found.iter().map(Vec::len).max().unwrap_or(0);
        (0..most).filter_map(|rank| self.ranked(line, &found, rank)).collect()
    }

    fn ranked(&self, line: &Line, found: &[Vec<Weighted>], rank: usize) -> Option<Copies> {
        let chosen = line.kinds.iter().map(|k| found[*k].get(rank).or(found[*k].last()));
        let chosen: Vec<&Weighted> = chosen.collect::<Option<_>>()?;
        let neurons = self.bends.iter().zip(&chosen).flat_map(|(b, w)| line.neurons(b, w));
        let gated = self.dither.gated;
        let neurons = neurons.map(|[weight, bias, out]| Neuron {
            weight: weight.into(),
            bias: bias.into(),
            out: out.into(),
            up: gated.then(|| (Number::zero(), Number::one())),
        });
        let neurons = neurons.collect();
        let ideal = IdealStack { source: self.dither.source.clone(), constant: self.constant.clone().into(), neurons };
        // What overflows is no candidate.
        let deviation = self.dither.judge(&ideal, line.slope).ok()?;
        let mean = self.bends.iter().zip(&chosen).zip(&line.kinds).map(|((b, w), kind)| {
            let unit = if b.jump { 1.0 } else { line.spacing / line.slope };
            w.mean * line.searches[*kind].average * unit * Number::from(b.amount.clone()).to_f64().abs()
        });
        Some(Copies { ideal, deviation, slope: line.slope, mean: mean.sum() })
    }
}

impl Line {
    /// [weight, bias, out] of a bend's neurons.
    fn neurons(&self, bend: &Bend, copies: &Weighted) -> Vec<[Rational; 3]> {
        let number = |x: f64| Rational::from_float(x).expect("a finite number");
        let quantum = QUANTUM * self.spacing;
        let sign = if bend.mirrored { -1.0 } else { 1.0 };
        let weight = number(sign * self.slope);
        // Differences of biases are then exact.
        let at = sign * self.slope * Number::from(bend.at.clone()).to_f64();
        let place = (at / quantum).round() * quantum;
        let total = number(copies.total) * if bend.jump { Rational::one() } else { number(self.slope) };
        let out = &bend.amount / total;
        let neuron = |(offset, digit): (f64, i32)| {
            [weight.clone(), number(offset - place), &out * &Rational::from(i64::from(digit))]
        };
        copies.neurons().map(neuron).collect()
    }
}

impl Copies {
    /// What is proved, and what is seen on the average: sums hardly ever err as much as they may.
    fn cost(&self) -> f64 {
        self.deviation.epsilon_outside.max(self.deviation.overshoot) + self.mean
    }
}
