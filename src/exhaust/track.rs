//! A neuron's way through the numbers of a format as z grows.

use std::collections::BTreeMap;
use std::sync::Arc;

use rayon::prelude::*;

use super::{Question, Sums, Unit};
use crate::arithmetic::{Arithmetic, Rounded, lattice};
use crate::interval::Interval;
use crate::landscape::Landscape;

/// Neighbouring lattice values that count as one, and what σ makes of them.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// boundaries of rounding: arguments in [lo, hi] may lead here
    pub(super) lo: f64,
    hi: f64,
    /// is the first value's index even? Then an argument of exactly `lo` leads here.
    pub(super) first_is_even: bool,
    pub(super) values: Interval,
}

/// A pre-activation's way through its lattice as z grows.
pub(super) struct Track {
    pub(super) blocks: Arc<[Block]>,
    pub(super) slope: f64,
    offset: f64,
    error: f64,
    sums: Sums,
}

/// What a neuron with a constant up row contributes where its gate is in a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given {
    pub(super) value: Interval,
    /// its distance from out·up·(β·z + γ) at most, and from 0
    off: [f64; 2],
}

/// A neuron: its gate's track and its up row's, if that moves; and what each gate block contributes, if it does not.
pub(super) struct Neuron {
    pub(super) gate: Track,
    pub(super) up: Option<Track>,
    pub(super) constant_up: Interval,
    pub(super) out: f64,
    pub(super) fixed: Arc<[Given]>,
    /// out·up: what a saturated σ's argument is worth
    scale: f64,
}

/// Which blocks of a track count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) first: usize,
    pub(super) last: usize,
}

/// Contributions whose hull is no wider than this, relative to the target's size, may count as one ...
pub(super) const GRAIN: f64 = 1.0 / (1u64 << 17) as f64;
/// ... if they are within this factor of one another, so that what is next to nothing stays so.
const RATIO: f64 = 2.0;
/// Values within this part of the error count as one: windows then hold few blocks.
const PART_OF_ERROR: f64 = 1.0 / 8.0;

/// All neurons. Those that differ in nothing but their offsets share their blocks.
pub(super) fn neurons(question: &Question<'_>, landscape: &Landscape) -> Vec<Neuron> {
    let z = Interval::new(question.domain.lo(), question.domain.hi());
    let grain = landscape.size().max(f64::MIN_POSITIVE) * GRAIN / question.units.len() as f64;
    let largest = question.units.iter().map(|u| largest(u, z)).fold(f64::MIN_POSITIVE, f64::max);
    let maker = Maker { question, z, grain, table: Table::new(question, z, grain / largest) };
    let mut kinds: BTreeMap<Kind, &Unit> = BTreeMap::new();
    for unit in question.units {
        kinds.entry(maker.kind(unit)).or_insert(unit);
    }
    let shared: Vec<_> = kinds.values().collect::<Vec<_>>().into_par_iter().map(|u| maker.blocks(u)).collect();
    let shared: BTreeMap<_, _> = kinds.keys().zip(shared).collect();
    question.units.iter().map(|u| maker.neuron(u, &shared[&maker.kind(u)])).collect()
}

/// Units of one kind have the same blocks and contributions: the numbers that these depend on, and is it gated?
type Kind = ([u64; 5], Option<u64>, bool);

type Shared = (Arc<[Block]>, Arc<[Given]>);

struct Maker<'a> {
    question: &'a Question<'a>,
    z: Interval,
    grain: f64,
    table: Table,
}

impl Maker<'_> {
    fn error(&self, e: f64) -> f64 {
        if self.question.sums == Sums::Agreeing { 0.0 } else { e }
    }

    fn constant_up(&self, unit: &Unit) -> Interval {
        let a = self.question.arithmetic;
        unit.up.map_or(Interval::ONE, |(_, q)| a.round(a.gate, Interval::point(q).inflate(self.error(unit.up_error))))
    }

    fn kind(&self, unit: &Unit) -> Kind {
        let (p, q) = unit.up.unwrap_or((0.0, 1.0));
        let numbers = [unit.out, p, q, unit.gate_error, unit.up_error].map(f64::to_bits);
        // Where z does not move the gate, its reach is its own.
        (numbers, (unit.weight == 0.0).then(|| unit.bias.to_bits()), unit.up.is_some())
    }

    fn blocks(&self, unit: &Unit) -> Shared {
        let a = self.question.arithmetic;
        let largest = largest(unit, self.z);
        let alike = |x: Interval, y: Interval| {
            let hull = x.hull(y);
            let width = hull.width() * largest;
            width <= f64::MIN_POSITIVE || (width <= self.grain && hull.mag() <= RATIO * hull.mig())
        };
        let error = self.error(unit.gate_error);
        let blocks = if unit.weight == 0.0 {
            // Where z does not move the gate, its reach is its own.
            let (first, last) = reach(a, self.z, unit);
            let runs = (first..=last).map(|k| Run { first: k, last: k, values: sigma(self.question, None, k, k) });
            blocks(self.question, runs, error, &alike)
        } else {
            blocks(self.question, self.table.runs.iter().copied(), error, &alike)
        };
        if unit.up.is_some_and(|(p, _)| p != 0.0) {
            return (blocks, Arc::new([]));
        }
        let (up, scale) = (self.constant_up(unit), scale(unit));
        let given = |b: &Block| {
            let value = contribution(self.question, unit, b.values, up);
            let line = Interval::new(b.lo, b.hi).inflate(error) * Interval::point(scale);
            Given { value, off: [(value - line).mag(), value.mag()] }
        };
        let given = blocks.iter().map(given).collect();
        (blocks, given)
    }

    fn neuron(&self, unit: &Unit, (blocks_of_gate, fixed): &Shared) -> Neuron {
        let a = self.question.arithmetic;
        let up = unit.up.filter(|(p, _)| *p != 0.0).map(|(p, q)| {
            let row = Unit { weight: p, bias: q, gate_error: unit.up_error, ..unit.clone() };
            let error = self.error(unit.up_error);
            let (first, last) = reach(a, self.z, &row);
            let runs = (first..=last).map(|k| Run { first: k, last: k, values: a.round(a.gate, cell(a, k, k)) });
            let blocks = blocks(self.question, runs, error, &|_, _| false);
            Track { blocks, slope: p, offset: q, error, sums: self.question.sums }
        });
        Neuron {
            gate: Track {
                blocks: blocks_of_gate.clone(),
                slope: unit.weight,
                offset: unit.bias,
                error: self.error(unit.gate_error),
                sums: self.question.sums,
            },
            up,
            constant_up: self.constant_up(unit),
            out: unit.out,
            fixed: fixed.clone(),
            scale: scale(unit),
        }
    }
}

/// What σ's value is worth at most: times the up row, times the output weight.
fn largest(unit: &Unit, z: Interval) -> f64 {
    let up = unit.up.map_or(1.0, |(p, q)| (Interval::point(p) * z + Interval::point(q)).mag());
    up * unit.out.abs()
}

fn scale(unit: &Unit) -> f64 {
    unit.out * unit.up.map_or(1.0, |(_, q)| q)
}

fn contribution(question: &Question<'_>, unit: &Unit, s: Interval, up: Interval) -> Interval {
    let a = question.arithmetic;
    // A plain unit's hidden value is σ's, rounded in any case before it is multiplied.
    let hidden = if unit.up.is_some() { a.product(s, up) } else { a.round(Rounded::Yes, s) };
    Interval::point(unit.out) * hidden
}

/// The numbers that rounding takes to the lattice's k-th up to its l-th.
fn cell(a: &Arithmetic, k: i64, l: i64) -> Interval {
    let numbers = lattice(a.stream);
    match a.gate {
        Rounded::Yes => Interval::new(numbers.value(k), numbers.value(l)),
        _ => Interval::new(numbers.boundary(k - 1), numbers.boundary(l)),
    }
}

/// σ on them; `ends` as [`Arithmetic::saturation`] says, which saves most of the work.
fn sigma(question: &Question<'_>, ends: Option<[f64; 2]>, first: i64, last: i64) -> Interval {
    let a = question.arithmetic;
    let t = cell(a, first, last);
    let value = match ends {
        Some([low, _]) if t.hi() <= low => Interval::ZERO,
        Some([_, high]) if t.lo() >= high => t,
        _ => a.sigma(question.source, t),
    };
    a.round(a.sigma, value)
}

/// Neighbouring lattice values, from the first to the last, and what becomes of them.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: i64,
    last: i64,
    values: Interval,
}

/// σ's value, rounded or not, on every lattice value that some neuron can reach.
struct Table {
    runs: Vec<Run>,
}

impl Table {
    /// Values nearer to 0 than `fine`, on one side of it, count as one.
    fn new(question: &Question<'_>, z: Interval, fine: f64) -> Table {
        let a = question.arithmetic;
        let l = lattice(a.stream);
        let ends = question.units.iter().map(|u| reach(a, z, u));
        let (first, last) = ends.fold((i64::MAX, i64::MIN), |(f, l), (a, b)| (f.min(a), l.max(b)));
        let near = l.index(l.nearest(fine.min(1.0))).max(1);
        let single = |k: i64| (k, k);
        let parts = (first..=last.min(-near - 1)).map(single).chain([(-near, -1), (0, 0), (1, near)]);
        let parts = parts.chain((first.max(near + 1)..=last).map(single));
        let all: Vec<(i64, i64)> = parts.map(|(a, b)| (a.max(first), b.min(last))).filter(|(a, b)| a <= b).collect();
        let ends = a.saturation(question.source);
        let run = |(first, last)| Run { first, last, values: sigma(question, ends, first, last) };
        Table { runs: all.into_par_iter().map(run).collect() }
    }
}

/// The first and the last lattice index that a unit's gate may be rounded to.
fn reach(a: &Arithmetic, z: Interval, unit: &Unit) -> (i64, i64) {
    let l = lattice(a.stream);
    let all = (Interval::point(unit.weight) * z + Interval::point(unit.bias)).inflate(unit.gate_error);
    let index = |x: f64| {
        let x = l.nearest(x);
        if x.is_finite() { l.index(x) } else { (l.last() + 1) * if x < 0.0 { -1 } else { 1 } }
    };
    (index(all.lo()), index(all.hi()))
}

fn blocks(
    question: &Question<'_>,
    runs: impl Iterator<Item = Run>,
    error: f64,
    alike: &dyn Fn(Interval, Interval) -> bool,
) -> Arc<[Block]> {
    let l = lattice(question.arithmetic.stream);
    let narrow = error * PART_OF_ERROR;
    let mut blocks: Vec<Block> = Vec::new();
    for Run { first, last, values } in runs {
        let (lo, hi) = (l.boundary(first - 1), l.boundary(last));
        if let Some(b) = blocks.last_mut()
            && (alike(b.values, values) || hi - b.lo <= narrow)
        {
            b.hi = hi;
            b.values = b.values.hull(values);
        } else {
            blocks.push(Block { lo, hi, first_is_even: first % 2 == 0, values });
        }
    }
    blocks.into()
}

impl Track {
    /// Block k of the way (in the order of growing z), from the left or from the right of the lattice.
    fn index(&self, k: usize) -> usize {
        if self.slope < 0.0 { self.blocks.len() - 1 - k } else { k }
    }

    /// Where block k of the way may first be met, and where block k − 1 may last be: rounded outward. Where sums agree these are
    /// places on the axis of β·z, and equal where they are numbers of f64.
    pub(super) fn between(&self, k: usize) -> [f64; 2] {
        if self.slope == 0.0 {
            return [f64::NEG_INFINITY, f64::INFINITY];
        }
        let b = &self.blocks[self.index(k)];
        let m = if self.slope < 0.0 { b.hi } else { b.lo };
        if self.sums == Sums::Agreeing {
            let place = Interval::point(m) - Interval::point(self.offset);
            return [place.lo(), place.hi()];
        }
        // Each operation is off by half a float at most.
        let centre = m - self.offset;
        let (a, b) = ((centre.next_down() - self.error).next_down(), (centre.next_up() + self.error).next_up());
        let (a, b) = (a / self.slope, b / self.slope);
        [a.min(b).next_down(), a.max(b).next_up()]
    }

    /// Does an argument exactly between block k − 1 and block k lead to the latter? Only asked where sums agree: the slope is positive.
    pub(super) fn is_even(&self, k: usize) -> bool {
        self.blocks[k].first_is_even
    }

    /// How many of the blocks 1, 2, … of the way fulfil what all do up to one, and none from there on.
    fn count(&self, holds: impl Fn(usize) -> bool) -> usize {
        let (mut below, mut above) = (0, self.blocks.len());
        while above - below > 1 {
            let middle = below.midpoint(above);
            if holds(middle) { below = middle } else { above = middle }
        }
        below
    }

    /// The blocks that are met right of `lo`; with `at`, at that place too.
    pub(super) fn start(&self, lo: f64, at: bool) -> Window {
        if self.slope == 0.0 {
            return Window { first: 0, last: self.blocks.len() - 1 };
        }
        let last = self.count(|k| self.between(k)[0] <= lo);
        let first = self.count(|k| self.between(k)[1] < lo || (!at && self.between(k)[1] == lo));
        Window { first: first.min(last), last }
    }

    /// The blocks that are entered, or whose forerunners are left, in (lo, hi].
    pub(super) fn changes(&self, [lo, hi]: [f64; 2]) -> std::ops::Range<usize> {
        if self.slope == 0.0 {
            return 0..0;
        }
        // Blocks are entered before their forerunners are left.
        1 + self.count(|k| self.between(k)[1] <= lo)..1 + self.count(|k| self.between(k)[0] <= hi)
    }

    pub(super) fn values(&self, w: Window) -> Interval {
        let hull = (w.first..=w.last).map(|k| self.blocks[self.index(k)].values).reduce(Interval::hull);
        hull.unwrap_or(Interval::ENTIRE)
    }
}

impl Neuron {
    /// What it contributes where its gate is in a window, its up row being constant.
    pub(super) fn given(&self, w: Window) -> Interval {
        let hull = (w.first..=w.last).map(|k| self.fixed[self.gate.index(k)].value).reduce(Interval::hull);
        hull.unwrap_or(Interval::ENTIRE)
    }

    /// A line that its contribution is near to on a stretch of z.
    pub(super) fn coarse(&self, ends: [f64; 2]) -> Coarse {
        if self.up.is_some() {
            return Coarse { line: [Interval::ZERO; 2], off: f64::INFINITY, mass: f64::INFINITY };
        }
        let (first, last) = (self.gate.start(ends[0], true).first, self.gate.start(ends[1], true).last);
        let (mut off, mut mass) = ([0f64; 2], 0f64);
        for k in first..=last {
            let g = &self.fixed[self.gate.index(k)];
            off = [off[0].max(g.off[0]), off[1].max(g.off[1])];
            mass = mass.max(g.value.mag());
        }
        let scale = Interval::point(self.scale);
        let line = [self.gate.offset, self.gate.slope].map(|c| scale * Interval::point(c));
        // A dead neuron is near 0, a saturated one near its line.
        if off[0] < off[1] {
            Coarse { line, off: off[0], mass }
        } else {
            Coarse { line: [Interval::ZERO; 2], off: off[1], mass }
        }
    }
}

/// On a stretch of z something is within `off` of c0 + c1·z, and no larger than `mass`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Coarse {
    /// c0 and c1
    pub(super) line: [Interval; 2],
    pub(super) off: f64,
    pub(super) mass: f64,
}
