//! What a stack computes in 16-bit arithmetic, by visiting every combination of rounded values that one z can produce.
//!
//! Part of the trusted base, without I/O. After its pre-activation is rounded, a neuron is a function on a finite set. The
//! points at which some neuron's pre-activation rounds differently cut the domain into cells; on each cell every neuron takes
//! one of few values, and φ̂ lies in the sum of their hulls. Nothing is estimated between cells, and no cell is left out.
//!
//! Neuron i has the pre-activation β·z + γ + e before it is rounded, |e| ≤ E. Identical rows with different biases need not
//! have equal errors e in every engine, so there are two certificates ([`Sums`]):
//!
//! * *Independent*: every e is anything up to its own bound E. A lattice value v counts on all z for which some e leads there: on
//!   [(m⁻ − γ − E)/β, (m⁺ − γ + E)/β], m∓ the boundaries of rounding to v. Ends are rounded outward.
//! * *Agreeing*: E = 0 for all neurons, which share one β (`docs/arithmetic.md` says when an engine's sums do). Boundaries are
//!   compared as exact numbers m − γ, and at a boundary itself the even neighbour counts, as in IEEE 754. So neurons
//!   whose biases differ by multiples of twice the spacing change over at the same z, and what cancels, cancels.
//!
//! Sums of contributions are formed exactly, in integers of two limbs; contributions are rounded outward to a unit of 2^−100 of the
//! target's size.
//!
//! The domain is swept in stretches. On a stretch a neuron's contribution is within D of a line: of out·up·(β·z + γ) where σ is
//! saturated (D is half a spacing and E, times out·up), or of 0 where it is dead. The sum of the lines, ± ΣD, encloses φ̂; a stretch on
//! which that cannot raise any figure above what was found on others is passed over. So errors of 2^100, at the end of bf16,
//! spare the search for one of 2^−4.

mod track;

use rayon::prelude::*;

use crate::activation::Activation;
use crate::arithmetic::Arithmetic;
use crate::certify::Domain;
use crate::error::{Error, Result};
use crate::expr::Expr;
use crate::interval::Interval;
use crate::landscape::{Deviation, Landscape};
use track::{Coarse, GRAIN, Neuron, Track, Window, neurons};

/// A hidden unit: out·σ(weight·z + bias)·(up.0·z + up.1), its pre-activations off by up to the given bounds before rounding.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    /// β
    pub weight: f64,
    /// γ
    pub bias: f64,
    /// output weight
    pub out: f64,
    /// (p, q) of a gated unit
    pub up: Option<(f64, f64)>,
    /// E, for the gate (the only pre-activation of a plain unit)
    pub gate_error: f64,
    /// the same for the up row
    pub up_error: f64,
}

/// How the errors of different neurons' sums are related.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sums {
    /// not at all
    Independent,
    /// they are equal: taken to be 0, the common error is a shift of z
    Agreeing,
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// φ, a function of the one pre-activation z
    pub target: &'a Expr,
    /// σ
    pub source: &'a Activation,
    /// output constant
    pub constant: f64,
    /// the neurons
    pub units: &'a [Unit],
    /// D, bounded
    pub domain: Domain,
    /// δ
    pub delta: f64,
    /// of a 16-bit stream
    pub arithmetic: &'a Arithmetic,
    /// what is known of sums
    pub sums: Sums,
}

/// Proves how far the stack is from the target, in that arithmetic, for every z of the domain.
///
/// Errors: an unbounded domain, a stream of more than 16 bits, a neuron that overflows; agreeing sums of neurons that have
/// different slopes, an up row that depends on z, or errors.
pub fn exhaust(question: &Question<'_>) -> Result<Deviation> {
    let Question { target, units, domain, delta, arithmetic, sums, .. } = question;
    if arithmetic.stream.bytes() != 2 {
        return Err(Error::input(format!("{} numbers cannot be visited one by one", arithmetic.stream)));
    }
    if !domain.is_bounded() {
        return Err(Error::input("a certificate in 16-bit arithmetic needs a bounded domain")
            .help("give range, or domain.norm"));
    }
    let landscape = Landscape::new(target, *domain, *delta)?;
    if units.is_empty() {
        let constant = Interval::point(question.constant);
        let mut deviation = landscape.start();
        landscape.visit(&mut deviation, 0, domain.lo(), domain.hi(), constant, 0.0);
        return Ok(deviation);
    }
    let scale = match sums {
        Sums::Independent => 1.0,
        Sums::Agreeing => common_slope(units)?,
    };
    let neurons = neurons(question, &landscape);
    Sweep::new(question, &neurons, &landscape, scale)?.run()
}

/// β, if all neurons have it and agree otherwise.
fn common_slope(units: &[Unit]) -> Result<f64> {
    let slope = units[0].weight;
    let same = units
        .iter()
        .all(|u| u.weight == slope && u.up.is_none_or(|(p, _)| p == 0.0) && u.gate_error == 0.0 && u.up_error == 0.0);
    if same && slope > 0.0 {
        return Ok(slope);
    }
    Err(Error::unsupported("sums that agree are of neurons with one positive slope and constant up rows"))
}

/// Something changes at `at`: a track's window gains its next block, or loses its last.
#[derive(Clone, Copy, Debug)]
struct Event {
    at: f64,
    kind: Kind,
    neuron: u32,
    gains: bool,
    loses: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// from the place itself on
    Enter,
    /// beyond it
    Leave,
}

/// A part of the domain, and what cannot be exceeded there; ends are scale·z.
struct Stretch {
    ends: [f64; 2],
    most: Deviation,
}

struct Sweep<'a> {
    question: &'a Question<'a>,
    neurons: &'a [Neuron],
    landscape: &'a Landscape,
    /// events are at scale·z
    scale: f64,
    /// contributions are integers times this
    unit: f64,
}

/// So many stretches are swept before the others are looked at again.
const BATCH: usize = 16;
/// Powers of two between which stretches lie, for the steepest neuron's pre-activation.
const BINADES: std::ops::RangeInclusive<i32> = -4..=128;

impl<'a> Sweep<'a> {
    fn new(
        question: &'a Question<'a>,
        neurons: &'a [Neuron],
        landscape: &'a Landscape,
        scale: f64,
    ) -> Result<Sweep<'a>> {
        let largest = |n: &Neuron| -> f64 {
            let all = |t: &Track| t.blocks.iter().map(|b| b.values).reduce(Interval::hull).unwrap_or(Interval::ENTIRE);
            let up = n.up.as_ref().map_or(n.constant_up, all);
            (all(&n.gate) * up * Interval::point(n.out)).mag() * (1.0 + GRAIN)
        };
        let sum = neurons.iter().map(largest).sum::<f64>() + question.constant.abs();
        if !(sum < f64::MAX / 4.0) {
            return Err(Error::unsupported(format!("a hidden unit overflows {}", question.arithmetic.stream))
                .help("a narrower range or a smaller norm, or smaller weights"));
        }
        // Two limbs of 118 bits each, so that 127 hold every intermediate sum.
        let needed = sum.max(f64::MIN_POSITIVE).log2().ceil() - 2.0 * f64::from(LIMB);
        let wanted = landscape.size().max(1e-200).log2().floor() - 100.0;
        Ok(Sweep { question, neurons, landscape, scale, unit: f64::exp2(needed.max(wanted)) })
    }

    fn integers(&self, x: Interval) -> [Fixed; 2] {
        // Its reciprocal is a power of two too.
        let per = 1.0 / self.unit;
        [Fixed::new(x.lo() * per, f64::floor), Fixed::new(x.hi() * per, f64::ceil)]
    }

    fn run(&self) -> Result<Deviation> {
        let mut deviation = self.landscape.start();
        let mut rest = self.stretches();
        // The domain's end itself: what would be left there counts.
        if let Some(first) = rest.first() {
            let at = first.ends[0];
            self.visit(&mut deviation, 0, [at, at], &State::new(self, at, true));
        }
        // The worst first; the result does not depend on the order.
        rest.sort_by(|a, b| b.most.epsilon.total_cmp(&a.most.epsilon));
        while !rest.is_empty() {
            rest.retain(|s| !deviation.covers(&s.most));
            let batch: Vec<Stretch> = rest.drain(..rest.len().min(BATCH)).collect();
            let found: Vec<Deviation> = batch.par_iter().map(|s| self.sweep(s.ends, deviation.clone())).collect();
            found.iter().for_each(|d| deviation.include(d));
        }
        Ok(deviation)
    }

    /// The domain in parts: between quarters of binades of the steepest neuron, and between the target's regions.
    fn stretches(&self) -> Vec<Stretch> {
        let domain = self.question.domain;
        let all = Interval::new(domain.lo(), domain.hi());
        let all = if self.scale == 1.0 { all } else { all * Interval::point(self.scale) };
        let steepest = self.question.units.iter().max_by(|a, b| a.weight.abs().total_cmp(&b.weight.abs()));
        let (weight, bias) = steepest.map_or((1.0, 0.0), |u| (u.weight, u.bias));
        let quarters = BINADES.flat_map(|k| [4.0, 5.0, 6.0, 7.0].map(|q| q * f64::from(k - 2).exp2()));
        let slope = if self.scale == 1.0 { weight } else { 1.0 };
        let mut cuts: Vec<f64> = quarters.flat_map(|g| [(g - bias) / slope, (-g - bias) / slope]).collect();
        // Just beyond the regions' ends, so that a stretch does not touch the next region.
        cuts.extend(self.landscape.ends().flat_map(|[lo, hi]| {
            let [lo, hi] = [lo, hi].map(|z| z * self.scale);
            [lo.next_down().next_down(), hi.next_up().next_up()]
        }));
        cuts.retain(|x| all.lo() < *x && *x < all.hi());
        cuts.extend([all.lo(), all.hi()]);
        cuts.sort_by(f64::total_cmp);
        cuts.dedup();
        if cuts.len() == 1 {
            cuts.push(cuts[0]);
        }
        let ends: Vec<[f64; 2]> = cuts.windows(2).map(|w| [w[0], w[1]]).collect();
        ends.into_par_iter().map(|ends| Stretch { ends, most: self.most(ends) }).collect()
    }

    /// What cannot be exceeded on a stretch.
    fn most(&self, ends: [f64; 2]) -> Deviation {
        let none = Coarse { line: [Interval::point(self.question.constant), Interval::ZERO], off: 0.0, mass: 0.0 };
        let up = |a: f64, b: f64| (Interval::point(a) + Interval::point(b)).hi();
        let sum = self.neurons.iter().fold(none, |sum, n| {
            let c = n.coarse(ends);
            let line = [sum.line[0] + c.line[0], sum.line[1] + c.line[1]];
            Coarse { line, off: up(sum.off, c.off), mass: up(sum.mass, c.mass) }
        });
        let [lo, hi] = self.unscaled(ends);
        self.landscape.coarse([lo, hi], sum.line, sum.off, sum.mass)
    }

    /// Visits every cell right of a stretch's left end.
    fn sweep(&self, ends: [f64; 2], mut deviation: Deviation) -> Deviation {
        let mut state = State::new(self, ends[0], false);
        let events = self.events(ends);
        let (mut region, mut from, mut k) = (0, ends[0], 0);
        while k < events.len() {
            let at = events[k].at;
            region = self.visit(&mut deviation, region, [from, at], &state);
            while k < events.len() && events[k].at == at && events[k].kind == Kind::Enter {
                state.apply(self, events[k]);
                k += 1;
            }
            // The place itself: what enters here counts, what leaves here does too.
            let mixed = k < events.len() && events[k].at == at;
            if mixed || self.question.sums == Sums::Agreeing {
                region = self.visit(&mut deviation, region, [at, at], &state);
            }
            while k < events.len() && events[k].at == at {
                state.apply(self, events[k]);
                k += 1;
            }
            from = at;
        }
        self.visit(&mut deviation, region, [from, ends[1]], &state);
        deviation
    }

    /// Ends in units of z, outward.
    fn unscaled(&self, ends: [f64; 2]) -> [f64; 2] {
        if self.scale == 1.0 {
            return ends;
        }
        let [lo, hi] = ends.map(|y| Interval::point(y) / Interval::point(self.scale));
        let (lo, hi) = (lo.lo().max(self.question.domain.lo()), hi.hi().min(self.question.domain.hi()));
        [lo, hi.max(lo)]
    }

    /// Hands one cell over; its ends are scale·z.
    fn visit(&self, d: &mut Deviation, region: usize, ends: [f64; 2], state: &State) -> usize {
        let [lo, hi] = self.unscaled(ends);
        let constant = self.question.constant;
        let near = [state.lo, state.hi, state.mass].map(|x| (x.high as f64 * RADIX + x.low as f64) * self.unit);
        let value = [near[0] + constant, near[1] + constant];
        if let Some(next) = self.landscape.no_news(d, region, lo, hi, value, near[2]) {
            return next;
        }
        let value = self.real(state.lo).hull(self.real(state.hi)) + Interval::point(constant);
        self.landscape.visit(d, region, lo, hi, value, self.real(state.mass).hi())
    }

    fn real(&self, x: Fixed) -> Interval {
        let unit = Interval::point(self.unit);
        if x.high == 0 { whole(x.low) * unit } else { (whole(x.high) * Interval::point(RADIX) + whole(x.low)) * unit }
    }

    /// All events inside (lo, hi], in order.
    fn events(&self, ends: [f64; 2]) -> Vec<Event> {
        let count = self.neurons.len();
        let mut events = Vec::new();
        for (i, n) in self.neurons.iter().enumerate() {
            for (track, id) in [(Some(&n.gate), i), (n.up.as_ref(), i + count)] {
                let Some(track) = track else { continue };
                for k in track.changes(ends) {
                    let [enter, leave] = track.between(k);
                    let mut push = |at: f64, kind: Kind, [gains, loses]: [bool; 2]| {
                        if at > ends[0] && at <= ends[1] {
                            events.push(Event { at, kind, neuron: id as u32, gains, loses });
                        }
                    };
                    if enter == leave {
                        // An exact place, where rounding to even decides.
                        push(enter, if track.is_even(k) { Kind::Enter } else { Kind::Leave }, [true, true]);
                    } else {
                        push(enter, Kind::Enter, [true, false]);
                        push(leave, Kind::Leave, [false, true]);
                    }
                }
            }
        }
        // The order of total_cmp, as integers.
        let key = |x: f64| {
            let k = x.to_bits() as i64;
            k ^ (((k >> 63) as u64) >> 1) as i64
        };
        events.sort_unstable_by_key(|e| (key(e.at), e.kind, e.neuron));
        events
    }
}

/// Where every neuron is, and the sums of what they contribute.
struct State {
    gates: Vec<Window>,
    ups: Vec<Window>,
    contributions: Vec<[Fixed; 2]>,
    lo: Fixed,
    hi: Fixed,
    mass: Fixed,
}

/// high·2^118 + low, a whole number; sums of a few hundred need no carries.
#[derive(Clone, Copy, Debug, Default)]
struct Fixed {
    high: i128,
    low: i128,
}

const LIMB: u32 = 118;
const RADIX: f64 = (1u128 << LIMB) as f64;

impl Fixed {
    /// A float, rounded to a whole number.
    fn new(x: f64, round: impl Fn(f64) -> f64) -> Fixed {
        let high = (x * (1.0 / RADIX)).trunc();
        // Truncated, so that the remainder is exact.
        Fixed { high: high as i128, low: round(x - high * RADIX) as i128 }
    }
    fn plus(self, o: Fixed) -> Fixed {
        Fixed { high: self.high + o.high, low: self.low + o.low }
    }
    fn minus(self, o: Fixed) -> Fixed {
        Fixed { high: self.high - o.high, low: self.low - o.low }
    }
    fn is_negative(self) -> bool {
        self.high + (self.low >> LIMB) < 0
    }
}

/// A whole number as an interval of floats.
fn whole(k: i128) -> Interval {
    let nearest = k as f64;
    // 128 bits do not always fit 53.
    if nearest as i128 == k { Interval::point(nearest) } else { Interval::new(nearest.next_down(), nearest.next_up()) }
}

/// The larger magnitude of two ends.
fn magnitude([lo, hi]: [Fixed; 2]) -> Fixed {
    if lo.plus(hi).is_negative() { Fixed::default().minus(lo) } else { hi }
}

impl State {
    /// Right of `lo`; with `at`, at that place too.
    fn new(sweep: &Sweep<'_>, lo: f64, at: bool) -> State {
        let gates = sweep.neurons.iter().map(|n| n.gate.start(lo, at)).collect();
        let none = Window { first: 0, last: 0 };
        let ups = sweep.neurons.iter().map(|n| n.up.as_ref().map_or(none, |t| t.start(lo, at))).collect();
        let none_yet = Fixed::default();
        let mut state = State { gates, ups, contributions: Vec::new(), lo: none_yet, hi: none_yet, mass: none_yet };
        state.contributions = (0..sweep.neurons.len()).map(|i| state.contribution(sweep, i)).collect();
        for c in &state.contributions {
            state.lo = state.lo.plus(c[0]);
            state.hi = state.hi.plus(c[1]);
            state.mass = state.mass.plus(magnitude(*c));
        }
        state
    }

    fn contribution(&self, sweep: &Sweep<'_>, i: usize) -> [Fixed; 2] {
        let n = &sweep.neurons[i];
        let window = self.gates[i];
        let value = match &n.up {
            None => n.given(window),
            Some(up) => {
                let hidden = sweep.question.arithmetic.product(n.gate.values(window), up.values(self.ups[i]));
                Interval::point(n.out) * hidden
            }
        };
        sweep.integers(value)
    }

    fn apply(&mut self, sweep: &Sweep<'_>, event: Event) {
        let count = self.gates.len();
        let id = event.neuron as usize;
        let (i, window) = if id < count { (id, &mut self.gates[id]) } else { (id - count, &mut self.ups[id - count]) };
        window.last += usize::from(event.gains);
        window.first += usize::from(event.loses);
        let old = self.contributions[i];
        let new = self.contribution(sweep, i);
        self.lo = self.lo.plus(new[0]).minus(old[0]);
        self.hi = self.hi.plus(new[1]).minus(old[1]);
        self.mass = self.mass.plus(magnitude(new)).minus(magnitude(old));
        self.contributions[i] = new;
    }
}
