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

use rayon::prelude::*;

use crate::activation::Activation;
use crate::arithmetic::{Arithmetic, Rounded, lattice};
use crate::certify::Domain;
use crate::error::{Error, Result};
use crate::expr::Expr;
use crate::interval::Interval;
use crate::landscape::{Deviation, Landscape};

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
    let tracks = tracks(question, &landscape)?;
    Sweep::new(question, &tracks, landscape.size(), scale)?.run(&landscape)
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

/// Neighbouring lattice values that count as one, and what σ makes of them.
#[derive(Clone, Debug)]
struct Block {
    /// boundaries of rounding: arguments in [lo, hi] may lead here
    lo: f64,
    hi: f64,
    /// is the first value's index even? Then an argument of exactly `lo` leads here.
    first_is_even: bool,
    values: Interval,
}

/// A pre-activation's way through its lattice as z grows.
struct Track {
    blocks: Vec<Block>,
    slope: f64,
    offset: f64,
    error: f64,
}

/// A neuron: its gate's track and its up row's, if that moves; and what each gate block contributes, if it does not.
struct Neuron {
    gate: Track,
    up: Option<Track>,
    constant_up: Interval,
    out: f64,
    fixed: Vec<Interval>,
}

/// Contributions whose hull is no wider than this, relative to the target's size, may count as one ...
const GRAIN: f64 = 1.0 / (1u64 << 24) as f64;
/// ... if they are within this factor of one another, so that what is next to nothing stays so.
const RATIO: f64 = 2.0;
/// No block is wider than this part of the error: windows then hold few blocks.
const PART_OF_ERROR: f64 = 1.0 / 16.0;

fn tracks(question: &Question<'_>, landscape: &Landscape) -> Result<Vec<Neuron>> {
    let z = Interval::new(question.domain.lo(), question.domain.hi());
    let grain = landscape.size().max(f64::MIN_POSITIVE) * GRAIN / question.units.len() as f64;
    let table = Table::new(question, z);
    question.units.par_iter().map(|unit| neuron(unit, question, z, grain, &table)).collect()
}

fn neuron(unit: &Unit, question: &Question<'_>, z: Interval, grain: f64, table: &Table) -> Result<Neuron> {
    let a = question.arithmetic;
    let error = |e: f64| if question.sums == Sums::Agreeing { 0.0 } else { e };
    let moving = unit.up.filter(|(p, _)| *p != 0.0);
    let constant_up = match unit.up {
        None => Interval::ONE,
        Some((_, q)) => a.round(a.gate, Interval::point(q).inflate(error(unit.up_error))),
    };
    let up = moving.map(|(p, q)| {
        let values = |k: i64| a.round(a.gate, cell(a, k));
        track(question, z, (p, q, error(unit.up_error)), &values, &|_, _, _| false)
    });
    // What σ's value is worth at most: times the up row, times the output weight.
    let largest = unit.up.map_or(1.0, |(p, q)| (Interval::point(p) * z + Interval::point(q)).mag()) * unit.out.abs();
    let alike = |x: Interval, y: Interval| {
        let hull = x.hull(y);
        let width = hull.width() * largest;
        width <= f64::MIN_POSITIVE || (width <= grain && hull.mag() <= RATIO * hull.mig())
    };
    // Where sums agree boundaries must be exact. Next to 0, where they are not, the lattice is too fine to matter.
    let exact = |m: f64| (Interval::point(m) - Interval::point(unit.bias)).is_point();
    let merge = |m: f64, x: Interval, y: Interval| match question.sums {
        Sums::Independent => alike(x, y),
        Sums::Agreeing => x == y || (!exact(m) && m.abs() <= unit.bias.abs() * GRAIN),
    };
    let gate = track(question, z, (unit.weight, unit.bias, error(unit.gate_error)), &|k| table.at(k), &merge);
    let fixed = match &up {
        Some(_) => Vec::new(),
        None => gate.blocks.iter().map(|b| contribution(question, unit.out, b.values, constant_up, unit.up)).collect(),
    };
    Ok(Neuron { gate, up, constant_up, out: unit.out, fixed })
}

fn contribution(question: &Question<'_>, out: f64, s: Interval, up: Interval, gated: Option<(f64, f64)>) -> Interval {
    let a = question.arithmetic;
    // A plain unit's hidden value is σ's, rounded in any case before it is multiplied.
    let hidden = if gated.is_some() { a.product(s, up) } else { a.round(Rounded::Yes, s) };
    Interval::point(out) * hidden
}

/// The numbers that rounding takes to the lattice's k-th.
fn cell(a: &Arithmetic, k: i64) -> Interval {
    let l = lattice(a.stream);
    match a.gate {
        Rounded::Yes => Interval::point(l.value(k)),
        _ => Interval::new(l.boundary(k - 1), l.boundary(k)),
    }
}

/// σ's value, rounded or not, on every lattice value that some neuron can reach.
struct Table {
    first: i64,
    values: Vec<Interval>,
}

impl Table {
    fn new(question: &Question<'_>, z: Interval) -> Table {
        let a = question.arithmetic;
        let ends = question.units.iter().map(|u| reach(a, z, u.weight, u.bias, u.gate_error));
        let (first, last) = ends.fold((i64::MAX, i64::MIN), |(f, l), (a, b)| (f.min(a), l.max(b)));
        let values = (first..=last).into_par_iter();
        let values = values.map(|k| a.round(a.sigma, a.sigma(question.source, cell(a, k)))).collect();
        Table { first, values }
    }

    fn at(&self, k: i64) -> Interval {
        self.values[(k - self.first) as usize]
    }
}

/// The first and the last lattice index that slope·z + offset, off by the error, may be rounded to.
fn reach(a: &Arithmetic, z: Interval, slope: f64, offset: f64, error: f64) -> (i64, i64) {
    let l = lattice(a.stream);
    let all = (Interval::point(slope) * z + Interval::point(offset)).inflate(error);
    let index = |x: f64| {
        let x = l.nearest(x);
        if x.is_finite() { l.index(x) } else { (l.last() + 1) * if x < 0.0 { -1 } else { 1 } }
    };
    (index(all.lo()), index(all.hi()))
}

fn track(
    question: &Question<'_>,
    z: Interval,
    (slope, offset, error): (f64, f64, f64),
    values: &dyn Fn(i64) -> Interval,
    alike: &dyn Fn(f64, Interval, Interval) -> bool,
) -> Track {
    let l = lattice(question.arithmetic.stream);
    let (first, last) = reach(question.arithmetic, z, slope, offset, error);
    let narrow = error * PART_OF_ERROR;
    let mut blocks: Vec<Block> = Vec::new();
    for k in first..=last {
        let (lo, hi, v) = (l.boundary(k - 1), l.boundary(k), values(k));
        if let Some(b) = blocks.last_mut()
            && (alike(lo, b.values, v) || hi - b.lo <= narrow)
        {
            b.hi = hi;
            b.values = b.values.hull(v);
        } else {
            blocks.push(Block { lo, hi, first_is_even: k % 2 == 0, values: v });
        }
    }
    Track { blocks, slope, offset, error }
}

/// Something changes at `at`: a track's window gains its next block, or loses its last.
#[derive(Clone, Copy, Debug)]
struct Event {
    at: f64,
    neuron: u32,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// the window grows; or, where sums agree, moves on at the boundary itself
    Enter,
    /// the window shrinks; or, where sums agree, moves on beyond the boundary
    Leave,
}

/// Which blocks of a track count.
#[derive(Clone, Copy, Debug)]
struct Window {
    first: usize,
    last: usize,
}

struct Sweep<'a> {
    question: &'a Question<'a>,
    neurons: &'a [Neuron],
    /// events are at scale·z
    scale: f64,
    /// contributions are integers times this
    unit: f64,
}

impl<'a> Sweep<'a> {
    fn new(question: &'a Question<'a>, neurons: &'a [Neuron], size: f64, scale: f64) -> Result<Sweep<'a>> {
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
        let wanted = size.max(1e-200).log2().floor() - 100.0;
        Ok(Sweep { question, neurons, scale, unit: f64::exp2(needed.max(wanted)) })
    }

    fn integers(&self, x: Interval) -> [Fixed; 2] {
        // Its reciprocal is a power of two too.
        let per = 1.0 / self.unit;
        [Fixed::new(x.lo() * per, f64::floor), Fixed::new(x.hi() * per, f64::ceil)]
    }

    fn run(&self, landscape: &Landscape) -> Result<Deviation> {
        let domain = self.question.domain;
        let (lo, hi) = match self.question.sums {
            Sums::Independent => (domain.lo(), domain.hi()),
            Sums::Agreeing => {
                let all = Interval::new(domain.lo(), domain.hi()) * Interval::point(self.scale);
                (all.lo(), all.hi())
            }
        };
        let mut state = State::new(self, lo)?;
        let events = self.events(lo, hi)?;
        let mut deviation = landscape.start();
        let mut region = 0;
        let mut from = lo;
        let mut k = 0;
        while k < events.len() {
            let at = events[k].at;
            region = self.visit(landscape, &mut deviation, region, [from, at], &state);
            while k < events.len() && events[k].at == at && events[k].kind == Kind::Enter {
                state.apply(self, events[k]);
                k += 1;
            }
            // The point itself: what enters here counts, what leaves here does too.
            let mixed = k < events.len() && events[k].at == at;
            if mixed || self.question.sums == Sums::Agreeing {
                region = self.visit(landscape, &mut deviation, region, [at, at], &state);
            }
            while k < events.len() && events[k].at == at {
                state.apply(self, events[k]);
                k += 1;
            }
            from = at;
        }
        self.visit(landscape, &mut deviation, region, [from, hi], &state);
        Ok(deviation)
    }

    /// Hands one cell over; its ends are scale·z.
    fn visit(&self, landscape: &Landscape, d: &mut Deviation, region: usize, ends: [f64; 2], state: &State) -> usize {
        let [lo, hi] = if self.scale == 1.0 {
            ends
        } else {
            let [lo, hi] = ends.map(|y| Interval::point(y) / Interval::point(self.scale));
            [lo.lo().max(self.question.domain.lo()), hi.hi().min(self.question.domain.hi())]
        };
        let constant = self.question.constant;
        let near = [state.lo, state.hi, state.mass].map(|x| (x.high as f64 * RADIX + x.low as f64) * self.unit);
        if let Some(next) = landscape.no_news(d, region, lo, hi, [near[0] + constant, near[1] + constant], near[2]) {
            return next;
        }
        let value = self.real(state.lo).hull(self.real(state.hi)) + Interval::point(constant);
        landscape.visit(d, region, lo, hi.max(lo), value, self.real(state.mass).hi())
    }

    fn real(&self, x: Fixed) -> Interval {
        let unit = Interval::point(self.unit);
        if x.high == 0 { whole(x.low) * unit } else { (whole(x.high) * Interval::point(RADIX) + whole(x.low)) * unit }
    }

    /// All events inside (lo, hi], in order.
    fn events(&self, lo: f64, hi: f64) -> Result<Vec<Event>> {
        let per_neuron: Vec<Vec<Event>> =
            self.neurons.par_iter().enumerate().map(|(i, n)| self.events_of(i, n, lo, hi)).collect::<Result<_>>()?;
        let mut events = per_neuron.concat();
        // The order of total_cmp, as integers.
        let key = |x: f64| {
            let k = x.to_bits() as i64;
            k ^ (((k >> 63) as u64) >> 1) as i64
        };
        events.par_sort_unstable_by_key(|e| (key(e.at), e.kind, e.neuron));
        Ok(events)
    }

    fn events_of(&self, i: usize, n: &Neuron, lo: f64, hi: f64) -> Result<Vec<Event>> {
        let count = self.neurons.len();
        let mut events = Vec::new();
        for (track, id) in [(Some(&n.gate), i), (n.up.as_ref(), i + count)] {
            let Some(track) = track else { continue };
            for k in 1..track.blocks.len() {
                let mut push = |at: f64, kind: Kind| {
                    if at > lo && at <= hi {
                        events.push(Event { at, neuron: id as u32, kind });
                    }
                };
                match self.question.sums {
                    Sums::Independent => {
                        let [enter, leave] = track.between(k);
                        push(enter, Kind::Enter);
                        push(leave, Kind::Leave);
                    }
                    Sums::Agreeing => {
                        let b = &track.blocks[k];
                        let at = track.boundary_exactly(b.lo)?;
                        push(at, if b.first_is_even { Kind::Enter } else { Kind::Leave });
                    }
                }
            }
        }
        Ok(events)
    }
}

impl Track {
    /// Block k of the way (in the order of growing z), from the left or from the right of the lattice.
    fn on_the_way(&self, k: usize) -> &Block {
        if self.slope < 0.0 { &self.blocks[self.blocks.len() - 1 - k] } else { &self.blocks[k] }
    }

    /// Where block k of the way may first be met, and where block k − 1 may last be: rounded outward.
    fn between(&self, k: usize) -> [f64; 2] {
        if self.slope == 0.0 {
            return [f64::NEG_INFINITY, f64::INFINITY];
        }
        let b = self.on_the_way(k);
        let m = if self.slope < 0.0 { b.hi } else { b.lo };
        // Each operation is off by half a float at most.
        let centre = m - self.offset;
        let (a, b) = ((centre.next_down() - self.error).next_down(), (centre.next_up() + self.error).next_up());
        let (a, b) = (a / self.slope, b / self.slope);
        [a.min(b).next_down(), a.max(b).next_up()]
    }

    /// m − γ, if that is a number of f64.
    fn boundary_exactly(&self, m: f64) -> Result<f64> {
        let difference = Interval::point(m) - Interval::point(self.offset);
        if difference.is_point() {
            return Ok(difference.lo());
        }
        Err(Error::unsupported("a boundary of rounding, less a bias, is no number of f64"))
    }

    /// The window at the left end of the domain (scaled).
    fn start(&self, lo: f64, sums: Sums) -> Result<Window> {
        if self.slope == 0.0 {
            return Ok(Window { first: 0, last: self.blocks.len() - 1 });
        }
        let (mut first, mut last) = (0, 0);
        for k in 1..self.blocks.len() {
            match sums {
                Sums::Independent => {
                    let [enter, leave] = self.between(k);
                    last = if enter <= lo { k } else { last };
                    first = if leave <= lo { k } else { first };
                }
                Sums::Agreeing => {
                    let at = self.boundary_exactly(self.blocks[k].lo)?;
                    last = if at <= lo { k } else { last };
                    first = if at < lo { k } else { first };
                }
            }
        }
        // On the boundary itself both neighbours count: the domain's end is no number that must be tight.
        Ok(Window { first: first.min(last), last })
    }

    fn values(&self, w: Window) -> Interval {
        (w.first..=w.last).map(|k| self.on_the_way(k).values).reduce(Interval::hull).unwrap_or(Interval::ENTIRE)
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
    fn new(sweep: &Sweep<'_>, lo: f64) -> Result<State> {
        let sums = sweep.question.sums;
        let gates = sweep.neurons.iter().map(|n| n.gate.start(lo, sums)).collect::<Result<_>>()?;
        let none = Window { first: 0, last: 0 };
        let ups = sweep.neurons.iter().map(|n| n.up.as_ref().map_or(Ok(none), |t| t.start(lo, sums)));
        let ups = ups.collect::<Result<_>>()?;
        let none_yet = Fixed::default();
        let mut state = State { gates, ups, contributions: Vec::new(), lo: none_yet, hi: none_yet, mass: none_yet };
        state.contributions = (0..sweep.neurons.len()).map(|i| state.contribution(sweep, i)).collect();
        for c in &state.contributions {
            state.lo = state.lo.plus(c[0]);
            state.hi = state.hi.plus(c[1]);
            state.mass = state.mass.plus(magnitude(*c));
        }
        Ok(state)
    }

    fn contribution(&self, sweep: &Sweep<'_>, i: usize) -> [Fixed; 2] {
        let n = &sweep.neurons[i];
        let window = self.gates[i];
        let value = match &n.up {
            None => {
                let block = |k: usize| if n.gate.slope < 0.0 { n.fixed[n.fixed.len() - 1 - k] } else { n.fixed[k] };
                (window.first..=window.last).map(block).reduce(Interval::hull).unwrap_or(Interval::ENTIRE)
            }
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
        match (sweep.question.sums, event.kind) {
            (Sums::Independent, Kind::Enter) => window.last += 1,
            (Sums::Independent, Kind::Leave) => window.first += 1,
            (Sums::Agreeing, _) => {
                window.last += 1;
                window.first = window.last;
            }
        }
        let old = self.contributions[i];
        let new = self.contribution(sweep, i);
        self.lo = self.lo.plus(new[0]).minus(old[0]);
        self.hi = self.hi.plus(new[1]).minus(old[1]);
        self.mass = self.mass.plus(magnitude(new)).minus(magnitude(old));
        self.contributions[i] = new;
    }
}
