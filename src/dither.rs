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
//! So a rise of W spacings loses 1/(2W²) of the step at powers of two, whatever N is, and 1/(N·h) elsewhere. U/β, the spacing in units of z, is
//! least where the largest G is just below a power of two. Offsets that are moved one by one do better than even ones.
//!
//! Search: nothing here is trusted. Offsets are judged on a grid, by what rounding does to them where sums err as much as they may, and the best by
//! [`crate::exhaust`].

use crate::activation::Activation;
use crate::arithmetic::{Arithmetic, Lattice, lattice};
use crate::canonical::{Canonical, PiecewisePolynomial};
use crate::certify::Domain;
use crate::error::{Error, Result};
use crate::exhaust::{Question, Sums, Unit, exhaust};
use crate::expr::Expr;
use crate::format::Format;
use crate::landscape::Deviation;
use crate::number::Number;
use crate::rational::Rational;
use crate::stack::{IdealStack, Neuron};

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
    /// the largest β
    pub max_weight: f64,
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
    /// of jumps; empty where there are none
    pub rise: Rise,
}

/// Something that a neuron, or a pair of them, adds to the right of z (to its left, if mirrored).
struct Bend {
    at: Rational,
    mirrored: bool,
    /// of a jump, or a change of slope
    amount: Rational,
    jump: bool,
}

/// What the mean error counts in comparison with the largest.
const AVERAGE: f64 = 4.0;
/// Offsets are whole multiples of this part of a spacing.
const QUANTUM: f64 = 1.0 / 1024.0;
/// Where a smooth σ is saturated in value, to the rounding of 16 bits.
const KNEE: f64 = 20.0;
/// bf16 has room beyond measure: a knee of this part of a band, or of the domain, is none.
const NARROW: f64 = 1.0 / 4096.0;

impl Dither<'_> {
    /// The best stack found with so many copies of each neuron; `None` where the target has no such stack, or no room for it.
    ///
    /// Errors: no 16-bit stream, an unbounded domain, a target that cannot be cut.
    pub fn copies(&self, count: usize) -> Result<Option<Copies>> {
        if !self.domain.is_bounded() || self.arithmetic.stream.bytes() != 2 || count == 0 {
            return Err(Error::input("copies of neurons are for bounded domains, in 16 bits"));
        }
        let Some((constant, bends)) = self.bends()? else { return Ok(None) };
        let jumps = bends.iter().any(|b| b.jump);
        let mut best: Option<Copies> = None;
        for slope in self.slopes(&bends) {
            let spacing = lattice(self.arithmetic.stream).spacing(slope * self.reach(&bends));
            let rises = if jumps { self.rises(slope, spacing, count, &bends) } else { vec![Rise::default()] };
            for rise in rises {
                let plan = Plan { slope, spacing, rise, count };
                let ideal = self.stack(&constant, &bends, &plan);
                // What overflows is no candidate.
                let Ok(deviation) = self.judge(&ideal, slope) else { continue };
                let found = Copies { ideal, deviation, slope, rise: plan.rise };
                if best.as_ref().is_none_or(|b| found.cost() < b.cost()) {
                    best = Some(found);
                }
            }
        }
        Ok(best)
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
        // Eight bits: what rows keep of it.
        let short = |x: f64| lattice(Format::Bf16).nearest(x * (1.0 - 1.0 / 256.0));
        let mut slopes = vec![short(top / reach), f64::exp2((top / reach).log2().floor())];
        slopes.retain(|s| *s > 0.0 && s.is_finite());
        slopes.dedup();
        slopes
    }

    /// Offsets for the pairs of a step, within the band; none if that has no room for σ's knee.
    fn rises(&self, slope: f64, spacing: f64, count: usize, bends: &[Bend]) -> Vec<Rise> {
        let knee = if *self.source == Activation::Relu { 0.0 } else { KNEE };
        let quantum = QUANTUM * spacing;
        let whole = |x: f64| (x / quantum).floor() * quantum;
        let room = 2.0 * whole((self.delta - self.sums) * slope - knee);
        if !(room > 0.0) {
            return Vec::new();
        }
        let grid = Grid::new(self, slope, spacing, room, bends);
        let even = |[height, spread]: [f64; 2]| {
            let low: Vec<f64> = (0..count).map(|k| -0.5 * room + whole(spread * k as f64 / count as f64)).collect();
            grid.rise(low.iter().map(|x| x + height).collect(), low)
        };
        if count == 1 {
            // Lemma 1: whole multiples of twice the spacing.
            let heights = [2.0, 1.0].map(|k| (room / (k * spacing)).floor() * k * spacing);
            let heights = heights.into_iter().chain([whole(room)]).filter(|h| *h > 0.0);
            return heights.map(|h| even([h, 0.0])).collect();
        }
        let last = (count as f64 - 1.0) / count as f64;
        let parts = (1..=6).map(|k| room * f64::from(k) / 8.0);
        let spreads = parts.chain([1.0, 2.0, 3.0, 4.0].map(|p| p * spacing));
        let shapes = spreads.map(|s| [whole(room - s * last), s]).filter(|[h, _]| *h > 0.0);
        let least = |rises: &mut dyn Iterator<Item = Rise>| rises.min_by(|a, b| a.error.total_cmp(&b.error));
        let free = least(&mut shapes.map(even)).map(|r| grid.improved(r, room, spacing, false));
        // Lemma 1 again: heights that are exact in each binade, whatever the offsets.
        let exact = (1..=4).map(|k| 2.0 * f64::from(k) * spacing).filter(|h| *h < room);
        let exact = least(&mut exact.map(|h| even([h, (room - h) / last])));
        let exact = exact.map(|r| grid.improved(r, room, spacing, true));
        free.into_iter().chain(exact).collect()
    }

    fn stack(&self, constant: &Rational, bends: &[Bend], plan: &Plan) -> IdealStack {
        let neurons = bends.iter().flat_map(|b| plan.neurons(b)).map(|(weight, bias, out)| Neuron {
            weight: weight.into(),
            bias: bias.into(),
            out: out.into(),
            up: self.gated.then(|| (Number::zero(), Number::one())),
        });
        IdealStack { source: self.source.clone(), constant: constant.clone().into(), neurons: neurons.collect() }
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

/// A step as a sum of ±σ(G + offset), over the sum of the differences.
#[derive(Clone, Debug, Default)]
pub struct Rise {
    /// of the neurons that are added, in units of β·z
    pub high: Vec<f64>,
    /// of those that are taken away
    pub low: Vec<f64>,
    /// the largest error seen on the grid, relative to the step, where sums err as much as they may
    pub error: f64,
    /// the mean error where they do not, in the largest binade
    pub mean: f64,
}

impl Rise {
    /// What the sum of all is to be divided by.
    fn total(&self) -> f64 {
        self.high.iter().sum::<f64>() - self.low.iter().sum::<f64>()
    }
}

/// Places at which offsets are judged: around the two largest powers of two, and all over the largest binade.
struct Grid {
    points: Vec<f64>,
    /// the points from here on lie all over the largest binade
    even_from: usize,
    lattice: Lattice,
    /// how far each sum may be off
    error: f64,
}

/// Points around each power of two, and elsewhere.
const POINTS: u32 = 384;
/// Between two points roundings change over: sums are taken to be off by this part of a spacing at least.
const BETWEEN: f64 = 1.0 / 128.0;
/// Offsets are tried at so many places, so often.
const PLACES: u32 = 24;
const ROUNDS: usize = 3;

impl Grid {
    fn new(dither: &Dither<'_>, slope: f64, spacing: f64, room: f64, bends: &[Bend]) -> Grid {
        let lattice = lattice(dither.arithmetic.stream);
        let end = slope * dither.reach(bends);
        let top = f64::exp2(end.log2().floor());
        let width = 0.5 * room + spacing;
        let between = |lo: f64, hi: f64| (0..=POINTS).map(move |k| lo + (hi - lo) * f64::from(k) / f64::from(POINTS));
        let windows = [top, 0.5 * top].into_iter().flat_map(|p| between(p - width, p + width));
        // Beyond the rise, where all neurons are saturated.
        let least = 0.5 * room + 2.0 * KNEE;
        let here = |g: &f64| *g > least && *g <= end;
        let mut points: Vec<f64> = windows.chain(between(end - 2.0 * spacing, end)).filter(here).collect();
        let even_from = points.len();
        points.extend(between(0.5 * top, end).filter(here));
        Grid { points, even_from, lattice, error: (dither.sums * slope).max(BETWEEN * spacing) }
    }

    /// How large and how small a neuron's part can be at each point.
    fn rounded(&self, offset: f64, sign: f64) -> impl Iterator<Item = [f64; 2]> + '_ {
        let error = sign * self.error;
        let near = move |x: f64| sign * self.lattice.nearest(x);
        self.points.iter().map(move |g| [near(g + offset + error), near(g + offset - error)])
    }

    /// Adds neurons' parts, or takes them away again.
    fn add(&self, sums: &mut [[f64; 2]], parts: &[(f64, f64)], factor: f64) {
        for (offset, sign) in parts {
            for (s, r) in sums.iter_mut().zip(self.rounded(*offset, *sign)) {
                *s = [s[0] + factor * r[0], s[1] + factor * r[1]];
            }
        }
    }

    fn error(sums: &[[f64; 2]], total: f64) -> f64 {
        sums.iter().fold(0.0, |e: f64, [most, least]| e.max(most / total - 1.0).max(1.0 - least / total))
    }

    fn sums(&self, rise: &Rise) -> Vec<[f64; 2]> {
        let mut sums = vec![[0.0; 2]; self.points.len()];
        let parts: Vec<_> = rise.high.iter().map(|o| (*o, 1.0)).chain(rise.low.iter().map(|o| (*o, -1.0))).collect();
        self.add(&mut sums, &parts, 1.0);
        sums
    }

    fn rise(&self, high: Vec<f64>, low: Vec<f64>) -> Rise {
        let rise = Rise { high, low, error: 0.0, mean: 0.0 };
        Rise { error: Grid::error(&self.sums(&rise), rise.total()), mean: self.mean(&rise), ..rise }
    }

    /// The mean of |error| over the largest binade, without errors of sums.
    fn mean(&self, rise: &Rise) -> f64 {
        let points = &self.points[self.even_from..];
        let sum = |offsets: &[f64], g: f64| offsets.iter().map(|o| self.lattice.nearest(g + o)).sum::<f64>();
        let error = |g: &f64| ((sum(&rise.high, *g) - sum(&rise.low, *g)) / rise.total() - 1.0).abs();
        points.iter().map(error).sum::<f64>() / points.len().max(1) as f64
    }

    /// Moves one offset after the other to the best of its places; `paired`: the two of a pair together.
    fn improved(&self, mut best: Rise, room: f64, spacing: f64, paired: bool) -> Rise {
        let quantum = QUANTUM * spacing;
        let mut sums = self.sums(&best);
        for round in 0..ROUNDS {
            let before = best.error;
            for i in 0..if paired { 1 } else { 2 } * best.low.len() {
                let (k, which) = if paired { (i, Moved::Both) } else { (i / 2, [Moved::High, Moved::Low][i % 2]) };
                let mut rest = sums;
                self.add(&mut rest, &best.parts(k, which), -1.0);
                let start = best.clone();
                // Anywhere in the room at first, then nearer and nearer.
                let reach = room * f64::exp2(-2.0 * round as f64);
                for place in 0..=PLACES {
                    let by = reach * (f64::from(place) / f64::from(PLACES) - 0.5);
                    let Some(moved) = start.moved(k, which, (by / quantum).round() * quantum, 0.5 * room) else {
                        continue;
                    };
                    let mut sums = rest.clone();
                    self.add(&mut sums, &moved.parts(k, which), 1.0);
                    let error = Grid::error(&sums, moved.total());
                    if error < best.error {
                        best = Rise { error, ..moved };
                    }
                }
                self.add(&mut rest, &best.parts(k, which), 1.0);
                sums = rest;
            }
            if !(best.error < 0.98 * before) {
                break;
            }
        }
        Rise { mean: self.mean(&best), ..best }
    }
}

/// Which neuron of a pair.
#[derive(Clone, Copy, PartialEq)]
enum Moved {
    High,
    Low,
    Both,
}

impl Rise {
    /// Offset and sign of the neurons of pair k that are meant.
    fn parts(&self, k: usize, which: Moved) -> Vec<(f64, f64)> {
        let all = [(Moved::High, (self.high[k], 1.0)), (Moved::Low, (self.low[k], -1.0))];
        all.into_iter().filter(|(w, _)| which == Moved::Both || *w == which).map(|(_, part)| part).collect()
    }

    /// With them moved; `None` if that leaves the room, or no rise.
    fn moved(&self, k: usize, which: Moved, by: f64, half: f64) -> Option<Rise> {
        let mut moved = self.clone();
        if which != Moved::Low {
            moved.high[k] += by;
        }
        if which != Moved::High {
            moved.low[k] += by;
        }
        let inside = moved.high[k].abs() <= half && moved.low[k].abs() <= half;
        (inside && moved.total() > 0.0).then_some(moved)
    }
}

/// The numbers of a layout.
struct Plan {
    /// β
    slope: f64,
    /// U at the largest G
    spacing: f64,
    /// of jumps
    rise: Rise,
    /// N
    count: usize,
}

impl Plan {
    /// (weight, bias, out) of a bend's neurons.
    fn neurons(&self, bend: &Bend) -> Vec<(Rational, Rational, Rational)> {
        let number = |x: f64| Rational::from_float(x).expect("a finite number");
        let quantum = QUANTUM * self.spacing;
        let whole = |x: f64| (x / quantum).round() * quantum;
        let n = self.count as f64;
        let sign = if bend.mirrored { -1.0 } else { 1.0 };
        let weight = number(sign * self.slope);
        // Differences of biases are then exact.
        let place = whole(sign * self.slope * Number::from(bend.at.clone()).to_f64());
        let neuron = |offset: f64, out: Rational| (weight.clone(), number(offset - place), out);
        if !bend.jump {
            // Spread over a spacing, with a mean of 0.
            let offset = |k: usize| whole(self.spacing * (k as f64 - (n - 1.0) / 2.0) / n);
            let out = &bend.amount / (number(self.slope) * number(n));
            return (0..self.count).map(|k| neuron(offset(k), out.clone())).collect();
        }
        let out = &bend.amount / number(self.rise.total());
        let high = self.rise.high.iter().map(|o| neuron(*o, out.clone()));
        high.chain(self.rise.low.iter().map(|o| neuron(*o, -out.clone()))).collect()
    }
}

impl Copies {
    /// What is proved, and what is seen on the average: sums hardly ever err as much as they may.
    fn cost(&self) -> f64 {
        self.deviation.epsilon_outside.max(self.deviation.overshoot) + AVERAGE * self.rise.mean
    }
}
