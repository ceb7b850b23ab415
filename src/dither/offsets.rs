//! Offsets and weights of copies: a linear program, then whole numbers.
//!
//! Let copies σ(G + o), saturated, have outer weights D(o) for offsets o on a grid. With fl the rounding to the format's lattice and
//! K_g(o) = fl⁺(g + o) − g (fl⁺ = max(fl, 0): dead neurons), their sum at G = g is
//!
//! ```text
//! Σ D(o)·fl⁺(g + o) = g·Σ D(o) + Σ D(o)·K_g(o)
//! step    Σ D = 0, Σ o·D = 1    ⟹ the sum is 1 but for rounding:  f(g) = Σ D(o)·K_g(o) − 1
//! kink    Σ D = 1, Σ o·D = 0    ⟹ the sum is g but for rounding:  f(g) = Σ D(o)·K_g(o)
//! ```
//!
//! f is linear in D, so the least sup|f| over places g is a linear program. Sums that err by up to ±e on their own keep it one: with D = D⁺ − D⁻ and
//! K∓ the least and the largest K over [g − e, g + e],
//!
//! ```text
//! Σ D⁺·K⁺ − D⁻·K⁻ − goal ≤ m,    Σ D⁺·K⁻ − D⁻·K⁺ − goal ≥ −m
//! ```
//!
//! The places are those at which roundings change over and those between them, around powers of two (fl has spacing U above the largest, U/2 below)
//! and over a stretch without one, where f is periodic; and for a kink its foot. Between them f is constant.
//!
//! Columns are D(o)·v in the host's format, and G is large, so columns must be exact multiples of one another: whole numbers over one denominator,
//! each a sum of few ± powers of two (non-adjacent form), one neuron each. Roundings of the program's optimum at many scales, and plain pairs, are starts for a search
//! that moves weight from one offset to another, as far as the number of neurons goes. Among heights h of pairs, even multiples of U are exact where there is no power of
//! two (Lemma 1 of `docs/arithmetic.md`).

use rayon::prelude::*;

use crate::arithmetic::Lattice;
use crate::linear_program::{Row, minimise};

/// What copies add up to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Shape {
    /// 0, then 1
    Step,
    /// 0, then g
    Kink,
}

/// Where copies are to be good. All lengths are in units of G.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Frame {
    pub shape: Shape,
    pub lattice: Lattice,
    /// offsets lie in it
    pub room: [f64; 2],
    /// U, at the largest G
    pub spacing: f64,
    /// e
    pub error: f64,
    /// G takes values up to this one
    pub end: f64,
    /// the place from which f counts
    pub start: f64,
    /// what the mean error counts in comparison with the largest
    pub average: f64,
}

/// Offsets with whole weights.
#[derive(Clone, Debug)]
pub(super) struct Weighted {
    /// (offset, its weight)
    pub terms: Vec<(f64, i32)>,
    /// what the weights are relative to: Σ n for a kink, Σ n·o for a step
    pub total: f64,
    /// sup|f| at the places; of a kink in units of U
    pub error: f64,
    /// mean |f|, sums erring half as much as they may
    pub mean: f64,
}

/// Offsets are whole multiples of this part of a spacing.
pub(super) const QUANTUM: f64 = 1.0 / 1024.0;
/// At most so many atoms and places in a program.
const MOST_ATOMS: f64 = 40.0;
const MOST_PAIRS: f64 = 64.0;
const MOST_PLACES: usize = 1200;
/// Pairs are at most so fine a part of a spacing apart.
const FINEST: f64 = 16.0;
/// Against optima that are not unique: what Σ|D| counts.
const THIN: f64 = 1e-4;
/// So many starts are improved, by so many sweeps at most; so many results are handed on.
const STARTS: usize = 3;
const SWEEPS: usize = 8;
const RESULTS: usize = 2;

impl Weighted {
    /// What searches compare.
    pub fn cost(&self, average: f64) -> f64 {
        self.error + average * self.mean
    }

    /// (offset, ± a power of two) of each neuron.
    pub fn neurons(&self) -> impl Iterator<Item = (f64, i32)> + '_ {
        self.terms.iter().flat_map(|(o, n)| digits(*n).map(|d| (*o, d)))
    }
}

/// The non-adjacent form of |n|, as bits of its positive and of its negative digits, twice as large: bits of 3n that n has not, and the other way round
/// (Reitwiesner 1960).
fn signed_bits(n: i32) -> [i32; 2] {
    let (n, triple) = (n.abs(), 3 * n.abs());
    [triple & !n, n & !triple]
}

/// ± powers of two that add up to n, as few as possible.
fn digits(n: i32) -> impl Iterator<Item = i32> {
    let [plus, minus] = signed_bits(n);
    let bit = move |k: i32| (((plus >> k) & 1) - ((minus >> k) & 1)) * (1 << (k - 1)) * n.signum();
    (1..31).map(bit).filter(|d| *d != 0)
}

/// How many they are.
fn digit_count(n: i32) -> usize {
    signed_bits(n).iter().map(|bits| bits.count_ones() as usize).sum()
}

/// The sums of the positive ones and of the negative ones, without sign.
fn sides(n: i32) -> [f64; 2] {
    let [plus, minus] = signed_bits(n).map(|bits| f64::from(bits / 2));
    if n < 0 { [minus, plus] } else { [plus, minus] }
}

/// The programs' optima for one frame: what is common to all numbers of neurons.
pub(super) struct Search {
    /// as the frame has it
    pub average: f64,
    grids: Vec<(Grid, Option<Vec<f64>>)>,
}

impl Search {
    pub fn new(frame: &Frame) -> Search {
        let wide = (frame.room[1] - frame.room[0]) / frame.spacing;
        let singles = [1.0, 2.0, 4.0, 8.0, 16.0].into_iter().filter(|k| k * wide <= MOST_ATOMS);
        let mut kinds: Vec<(f64, Option<f64>)> = singles.map(|k| (1.0 / k, None)).collect();
        if frame.shape == Shape::Step {
            // Heights that are exact where there is no power of two, around half of the room.
            let exact = [0.0, 2.0].map(|by| 2.0 * (0.25 * wide).floor() + by);
            // Where sums err, higher ones cost less than they gain.
            let high = [0.75, 0.875].map(|part| (part * wide * FINEST).floor() / FINEST);
            let high = high.into_iter().filter(|_| frame.error > 0.0);
            for height in exact.into_iter().chain(high).filter(|h| *h > 0.0 && *h < wide) {
                // An odd number of sixteenths, so that no lattice has all of them in one phase.
                let least = ((wide - height) / MOST_PAIRS * FINEST).ceil();
                let odd = least + f64::from(u8::from(least % 2.0 == 0.0));
                let even = (wide - height) / 8.0;
                kinds.push((odd / FINEST, Some(height)));
                kinds.push(((even * FINEST).round().max(1.0) / FINEST, Some(height)));
            }
        }
        let grids = kinds.into_par_iter().map(|(step, height)| Grid::new(frame, step * frame.spacing, height));
        Search { average: frame.average, grids: grids.map(|g| (g.optimum(), g)).map(|(d, g)| (g, d)).collect() }
    }

    /// The best of at most so many neurons, in order; none if there is no room.
    pub fn best(&self, neurons: usize) -> Vec<Weighted> {
        let found = self.grids.par_iter().filter_map(|(grid, optimum)| grid.best(optimum.as_deref(), neurons));
        let mut found: Vec<Weighted> = found.collect();
        found.sort_by(|a, b| a.cost(self.average).total_cmp(&b.cost(self.average)));
        found.truncate(RESULTS);
        found
    }
}

/// A place at which f is judged.
struct Place {
    g: f64,
    /// of all G: what the mean counts it for
    share: f64,
    /// do roundings change over here?
    tie: bool,
}

/// What is given a weight: one copy, or a pair of them.
struct Atom {
    /// (offset, sign), in units of U
    copies: Vec<(f64, i32)>,
    /// K⁺ and K⁻ in units of U at each place
    parts: Vec<[f64; 2]>,
}

impl Atom {
    fn sum(&self) -> f64 {
        self.copies.iter().map(|(_, sign)| f64::from(*sign)).sum()
    }

    fn moment(&self) -> f64 {
        self.copies.iter().map(|(o, sign)| o * f64::from(*sign)).sum()
    }
}

struct Grid {
    shape: Shape,
    average: f64,
    spacing: f64,
    atoms: Vec<Atom>,
    shares: Vec<f64>,
    /// places between ties, whose f a program bounds
    open: Vec<usize>,
}

/// Whole weights, and the sums that they make at each place.
#[derive(Clone)]
struct State {
    weights: Vec<i32>,
    sums: Vec<[f64; 2]>,
}

impl Grid {
    /// Copies that are `step` apart; with a height in units of U, pairs of them.
    fn new(frame: &Frame, step: f64, height: Option<f64>) -> Grid {
        let Frame { shape, lattice, room, spacing, average, .. } = *frame;
        let quantum = QUANTUM * spacing;
        let rise = height.unwrap_or(0.0) * spacing;
        // From the right: a kink's foot is there.
        let last = ((room[1] - rise) / quantum).floor() * quantum;
        let count = ((last - room[0]) / step).floor().max(-1.0) as i32;
        let places = places(frame, last + rise, step);
        // A boundary itself counts on both sides.
        let error = if frame.error > 0.0 { frame.error + quantum / 16.0 } else { 0.0 };
        let near = |x: f64, g: f64| (lattice.nearest(x).max(0.0) - g) / spacing;
        let part = |o: f64, g: f64| [near(g + o + error, g), near(g + o - error, g)];
        let atom = |o: f64| match height {
            None => Atom { copies: vec![(o / spacing, 1)], parts: places.iter().map(|p| part(o, p.g)).collect() },
            Some(height) => {
                let parts = places.iter().map(|p| {
                    let ([high, least_high], [low, least_low]) = (part(o + rise, p.g), part(o, p.g));
                    [high - least_low, least_high - low]
                });
                Atom { copies: vec![(o / spacing, -1), (o / spacing + height, 1)], parts: parts.collect() }
            }
        };
        let atoms = (0..=count).rev().map(|k| atom(last - f64::from(k) * step)).collect();
        let shares = places.iter().map(|p| p.share).collect();
        let open = (0..places.len()).filter(|p| !places[*p].tie).collect();
        Grid { shape, average, spacing, atoms, shares, open }
    }

    /// D of the linear program, in units of 1/U for a step.
    fn optimum(&self) -> Option<Vec<f64>> {
        let n = self.atoms.len();
        if n < 2 {
            return None;
        }
        let goal = if self.shape == Shape::Step { 1.0 } else { 0.0 };
        // D⁺, D⁻, m, and the largest |f| where nothing changes: it is nearly the mean.
        let mut objective = vec![THIN; 2 * n];
        objective.extend([1.0, 0.5 * self.average]);
        let signed = |f: &dyn Fn(&Atom) -> f64| -> Vec<f64> {
            let plus = self.atoms.iter().map(f);
            plus.chain(self.atoms.iter().map(|a| -f(a))).chain([0.0, 0.0]).collect()
        };
        let mut equal = vec![(signed(&Atom::moment), goal)];
        if self.atoms[0].sum() != 0.0 {
            equal.push((signed(&Atom::sum), 1.0 - goal));
        }
        let mut limits: Vec<Row> = Vec::new();
        let flat = self.shares.last().copied();
        for p in self.open.iter().copied() {
            let row = |high: usize, sign: f64, bounds: [f64; 2]| -> Vec<f64> {
                let plus = self.atoms.iter().map(|a| sign * a.parts[p][high]);
                let minus = self.atoms.iter().map(|a| -sign * a.parts[p][1 - high]);
                plus.chain(minus).chain(bounds.map(|b| -b)).collect()
            };
            limits.extend([(row(0, 1.0, [1.0, 0.0]), goal), (row(1, -1.0, [1.0, 0.0]), -goal)]);
            if Some(self.shares[p]) == flat {
                limits.extend([(row(0, 1.0, [0.0, 1.0]), goal), (row(1, -1.0, [0.0, 1.0]), -goal)]);
            }
        }
        let x = minimise(&objective, &equal, &limits)?;
        Some((0..n).map(|i| x[i] - x[n + i]).collect())
    }

    fn best(&self, optimum: Option<&[f64]>, neurons: usize) -> Option<Weighted> {
        let scaled = optimum.map_or(Vec::new(), |d| self.scaled(d, neurons));
        let mut starts: Vec<(f64, State)> = scaled
            .into_iter()
            .chain(self.plain(neurons))
            .map(|w| self.state(w))
            .filter_map(|s| Some((self.judged(&s).map(|j| self.cost(j))?, s)))
            .collect();
        starts.sort_by(|a, b| a.0.total_cmp(&b.0));
        starts.dedup_by(|a, b| a.1.weights == b.1.weights);
        let improved = starts.into_iter().take(STARTS).map(|(cost, s)| self.improved(cost, s, neurons));
        let (_, state) = improved.min_by(|a, b| a.0.total_cmp(&b.0))?;
        let [error, mean] = self.judged(&state)?;
        let (total, shift) = self.total(&state.weights);
        // Of a kink, so that Σ o·D = 0.
        let whole = |x: f64| (x / QUANTUM).ceil() * QUANTUM;
        let (total, shift) = match self.shape {
            Shape::Step => (total * self.spacing, 0.0),
            Shape::Kink => (total, whole(shift)),
        };
        let terms = self.atoms.iter().zip(&state.weights).filter(|(_, n)| **n != 0);
        let terms = terms.flat_map(|(a, n)| a.copies.iter().map(move |(o, s)| ((o - shift) * self.spacing, s * n)));
        Some(Weighted { terms: terms.collect(), total, error, mean })
    }

    /// How many neurons whole weights take.
    fn count(&self, weights: &[i32]) -> usize {
        let copies = self.atoms.first().map_or(0, |a| a.copies.len());
        copies * weights.iter().map(|n| digit_count(*n)).sum::<usize>()
    }

    /// Whole multiples of the optimum, at all scales at which there are neurons enough.
    fn scaled(&self, optimum: &[f64], neurons: usize) -> Vec<Vec<i32>> {
        let largest = optimum.iter().fold(0.0f64, |a, d| a.max(d.abs()));
        let mut found = Vec::new();
        for k in 4..512 {
            let scale = 0.125 * f64::from(k) / largest;
            let mut whole: Vec<i32> = optimum.iter().map(|d| (scale * d).round() as i32).collect();
            if self.shape == Shape::Step && self.atoms[0].sum() != 0.0 {
                balance(&mut whole, optimum, scale);
            }
            let count = self.count(&whole);
            if count <= neurons && found.last() != Some(&whole) {
                found.push(whole);
            }
            if count > 2 * neurons {
                break;
            }
        }
        found
    }

    /// One neuron, a pair of each height, or pairs of one height that are evenly spread.
    fn plain(&self, neurons: usize) -> Vec<Vec<i32>> {
        let n = self.atoms.len();
        let weights = |at: &[(usize, i32)]| {
            let mut w = vec![0; n];
            at.iter().for_each(|(i, by)| w[*i] += by);
            w
        };
        let paired = self.atoms.first().is_some_and(|a| a.copies.len() == 2);
        let all: Vec<Vec<i32>> = match self.shape {
            Shape::Kink => (0..n).rev().take(1).map(|i| weights(&[(i, 1)])).collect(),
            Shape::Step if paired => [1, 2, 4, 8, 16, 32, 64]
                .into_iter()
                .filter(|pairs| *pairs <= n)
                .map(|pairs| (0..pairs).map(|k| ((2 * k + 1) * n / (2 * pairs), 1)).collect::<Vec<_>>())
                .map(|at| weights(&at))
                .collect(),
            Shape::Step => {
                (1..n).map(|h| ((n - h) / 2, h)).map(|(low, h)| weights(&[(low, -1), (low + h, 1)])).collect()
            }
        };
        all.into_iter().filter(|w| self.count(w) <= neurons).collect()
    }

    fn state(&self, weights: Vec<i32>) -> State {
        let none = State { weights: vec![0; weights.len()], sums: vec![[0.0; 2]; self.shares.len()] };
        weights.iter().enumerate().fold(none, |s, (i, w)| self.moved(&s, &[(i, *w)]))
    }

    /// With other weights for some offsets.
    fn moved(&self, state: &State, changes: &[(usize, i32)]) -> State {
        let mut next = state.clone();
        for (i, w) in changes {
            let ([plus, minus], [old_plus, old_minus]) = (sides(*w), sides(next.weights[*i]));
            let (plus, minus) = (plus - old_plus, minus - old_minus);
            for (s, k) in next.sums.iter_mut().zip(&self.atoms[*i].parts) {
                *s = [s[0] + plus * k[0] - minus * k[1], s[1] + plus * k[1] - minus * k[0]];
            }
            next.weights[*i] = *w;
        }
        next
    }

    /// What the changes cost, if that is less than `limit`.
    fn tried(&self, state: &State, changes: [(usize, i32); 2], limit: f64) -> Option<f64> {
        let mut weights = state.weights.clone();
        let changes = changes.map(|(i, w)| {
            let (new, old) = (sides(w), sides(weights[i]));
            weights[i] = w;
            (&self.atoms[i].parts, new[0] - old[0], new[1] - old[1])
        });
        let (total, goal) = self.total(&weights);
        if !(total > 0.0) {
            return None;
        }
        let (mut error, mut mean) = (0f64, 0.0);
        for (p, (s, share)) in state.sums.iter().zip(&self.shares).enumerate() {
            let s = changes.iter().fold(*s, |s, (k, plus, minus)| {
                let [most, least] = k[p];
                [s[0] + plus * most - minus * least, s[1] + plus * least - minus * most]
            });
            let f = s.map(|s| s / total - goal);
            error = error.max(f[0]).max(-f[1]);
            mean += share * (0.5 * (f[0] + f[1])).abs();
            if !(self.cost([error, mean]) < limit) {
                return None;
            }
        }
        Some(self.cost([error, mean]))
    }

    /// What weights are relative to, and Σ o·D of a kink where that is a shift to the right. In units of U.
    fn total(&self, weights: &[i32]) -> (f64, f64) {
        let moment = self.atoms.iter().zip(weights).map(|(a, n)| a.moment() * f64::from(*n)).sum::<f64>();
        match self.shape {
            Shape::Step => (moment, 1.0),
            Shape::Kink => {
                let total = f64::from(weights.iter().sum::<i32>());
                // Shifted to the right, its foot would leave the room.
                (total, (moment / total).max(0.0))
            }
        }
    }

    /// sup|f| and the mean of |f|.
    fn judged(&self, state: &State) -> Option<[f64; 2]> {
        let (total, goal) = self.total(&state.weights);
        let f = |s: f64| s / total - goal;
        let both = |[e, m]: [f64; 2], (s, share): (&[f64; 2], &f64)| {
            [e.max(f(s[0])).max(-f(s[1])), m + share * f(0.5 * (s[0] + s[1])).abs()]
        };
        (total > 0.0).then(|| state.sums.iter().zip(&self.shares).fold([0.0; 2], both))
    }

    fn cost(&self, [error, mean]: [f64; 2]) -> f64 {
        error + self.average * mean
    }

    /// Moves weight from offset to offset as long as that pays.
    fn improved(&self, mut cost: f64, mut state: State, neurons: usize) -> (f64, State) {
        let n = self.atoms.len();
        for _ in 0..SWEEPS {
            let before = cost;
            for i in 0..n {
                for j in (0..n).filter(|j| *j != i) {
                    let (a, b) = (state.weights[i], state.weights[j]);
                    // One unit, or all there is.
                    for by in [1, a] {
                        let used = self.count(&state.weights) + self.count(&[a - by, b + by]) - self.count(&[a, b]);
                        if used > neurons || by == 0 || (by == a && a == 1) {
                            continue;
                        }
                        let changes = [(i, a - by), (j, b + by)];
                        if let Some(found) = self.tried(&state, changes, 0.9999 * cost) {
                            (cost, state) = (found, self.moved(&state, &changes));
                            break;
                        }
                    }
                }
            }
            if !(cost < 0.999 * before) {
                break;
            }
        }
        (cost, state)
    }
}

/// Makes whole weights add up to 0, where that changes the least.
fn balance(whole: &mut [i32], optimum: &[f64], scale: f64) {
    while let sum @ (1.. | ..=-1) = whole.iter().sum::<i32>() {
        let sign = -sum.signum();
        let gain = |i: &usize| f64::from(sign) * (scale * optimum[*i] - f64::from(whole[*i]));
        let Some(best) = (0..whole.len()).max_by(|a, b| gain(a).total_cmp(&gain(b))) else { return };
        whole[best] += sign;
    }
}

/// Where f is judged. Windows lie around powers of two P = top/2^j, down to where fl's spacing above P is no coarser than `step`: copies above P then all have one error
/// and those below another, and f only shrinks as P does.
///
/// Copies with offsets `anchor` + k·`step` on a lattice of spacing λ change over at multiples of λ/2 and of `step`, from P − `anchor` on. Sums that agree are judged at
/// these places and between them; others where those that change over are ambiguous, up to a distance e.
fn places(frame: &Frame, anchor: f64, step: f64) -> Vec<Place> {
    let Frame { spacing, end, start, .. } = *frame;
    let top = f64::exp2(end.log2().floor());
    let width = frame.room[1] - frame.room[0] + 2.0 * spacing;
    let shifts = if frame.error > 0.0 { [-frame.error, frame.error] } else { [0.0, 0.5] };
    let mut all = Vec::new();
    // What is a multiple of both.
    let finest = FINEST.recip() * spacing;
    let step = if (step / finest).log2().fract() == 0.0 { step } else { finest };
    let mut add = |from: f64, width: f64, least: f64, share: f64| {
        let gap = step.min(0.5 * least);
        let count = (width / gap).ceil() as i32;
        let share = share / (2.0 * f64::from(count));
        for (k, shift) in (0..count).flat_map(|k| shifts.map(|s| (k, s))) {
            let by = if frame.error > 0.0 { shift } else { shift * gap };
            let g = from + f64::from(k) * gap + by;
            if g > start && g <= end {
                all.push(Place { g, share, tie: shift == 0.0 });
            }
        }
    };
    let part = (width / end).min(1.0);
    for j in 0..=(spacing / step).log2().round() as i32 {
        let scale = f64::exp2(f64::from(-j));
        add(scale * top - anchor - spacing, width, 0.5 * spacing * scale, part);
    }
    if frame.shape == Shape::Kink {
        // Its foot.
        add(start - anchor % step, width, spacing, 0.0);
    }
    // A stretch without powers of two, of two periods.
    let middle = if 1.5 * top < end { 1.5 * top } else { 0.75 * top };
    add(middle - anchor, 2.0 * spacing, spacing, (1.0 - 2.0 * part).max(0.0));
    // An odd stride, so that places of both kinds are left.
    let stride = (all.len() / MOST_PLACES) | 1;
    let last = all.len();
    all.into_iter().enumerate().filter(|(k, _)| k % stride == 0 || k + 1 == last).map(|(_, p)| p).collect()
}

#[cfg(test)]
mod tests {
    use super::{digit_count, digits, sides};

    #[test]
    fn digits_add_up() {
        for n in -2000i32..=2000 {
            let all: Vec<i32> = digits(n).collect();
            assert_eq!(all.iter().sum::<i32>(), n);
            assert_eq!(all.len(), digit_count(n));
            assert!(all.iter().all(|d| d.unsigned_abs().is_power_of_two()));
            let side = |sign: i32| all.iter().map(|d| (sign * d).max(0)).sum::<i32>();
            assert_eq!(sides(n), [1, -1].map(|sign| f64::from(side(sign))));
            // No two neighbours: then there are no fewer.
            assert!(all.windows(2).all(|w| w[1].abs() >= 4 * w[0].abs()));
        }
    }
}
