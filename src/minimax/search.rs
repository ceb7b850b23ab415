//! The search over stacks of smooth neurons: structured starts, variable projection, then sequential linear programming.
//!
//! For 1, 2, … neurons: the best stacks of one neuron less grow by atoms that explain the residual; random stacks have
//! their knees where the target bends; where the target is symmetric, stacks of mirrored pairs have half the parameters.
//! All are fitted by least squares, the best by linear programming, and then trade single neurons while that helps.

use rayon::prelude::*;

use super::model::{Model, Points, Stack};
use super::samples::Samples;
use super::sigma::Source;
use super::starts::bands;
use super::varpro::Ties;
use super::{Problem, Random};

/// One neuron of the dictionary with its values at the coarse points.
struct Atom {
    w: f64,
    b: f64,
    values: Vec<f64>,
}

/// Where the target is not smooth, and the slopes that serve there.
struct Knot {
    at: f64,
    least: f64,
    most: f64,
    /// is it a kink or in a band: does the target jump, or its slope?
    sharp: bool,
}

impl Knot {
    /// Those inside of the core. At a kink everything scales: the steeper the better. A band around a jump is as wide as it is:
    /// slopes that cross it in a few units of u = wz, up to those whose tails are over within it.
    fn all(model: &Model) -> Vec<Knot> {
        /// e^−48 is 1e−21.
        const CROSSED: [f64; 2] = [2.0, 96.0];
        let problem = model.problem;
        let bands = bands(problem);
        let kinked = |k: f64| {
            let h = 1e-5 * model.width();
            let f = |z: f64| (problem.target)(z).0;
            let jump = (f(k + 2.0 * h) - f(k + h) - f(k - h) + f(k - 2.0 * h)) / h;
            jump.abs() > 1e-3 * model.slope
        };
        let knot = |at: f64| match bands.iter().find(|(a, b)| (*a..=*b).contains(&at)) {
            Some((a, b)) => {
                let [least, most] = CROSSED.map(|c| (c / (b - a)).clamp(model.min_weight, model.max_weight));
                Knot { at, least, most, sharp: true }
            }
            None => {
                let least = (0.1 * model.max_weight).max(model.min_weight);
                Knot { at, least, most: model.max_weight, sharp: kinked(at) }
            }
        };
        problem.knots.iter().copied().filter(|k| *k > model.core.0 && *k < model.core.1).map(knot).collect()
    }
}

/// Levels of the search: the elites of each number of neurons are the starts of the next.
pub(super) struct Search<'a> {
    pub model: Model<'a>,
    coarse: Points,
    fine: &'a Samples,
    atoms: Vec<Atom>,
    /// elites per number of neurons, best first: stack and coarse error
    levels: Vec<Vec<(Stack, f64)>>,
    /// where the target bends, as often as it bends
    bends: Vec<f64>,
    /// where it is not smooth, inside of the core
    knots: Vec<Knot>,
    /// symmetries of the target about the middle: mirrored neurons (w, b), (s·w, −s·b) for these s
    mirrors: Vec<f64>,
}

/// Elites kept for each number of neurons.
const ELITES: usize = 6;

/// How much is tried for n neurons.
struct Effort {
    extensions: usize,
    random: usize,
    pairs: usize,
    kept: usize,
    trades: usize,
    traders: usize,
}

impl Effort {
    /// `passing`: only a step towards more neurons; `mirrored`: the target is symmetric, and symmetric stacks are the ones that
    /// come closest.
    fn of(n: usize, passing: bool, mirrored: bool) -> Self {
        match n {
            _ if passing => Effort { extensions: 4, random: 6, pairs: 4, kept: 5, trades: 0, traders: 0 },
            0..=4 if mirrored => Effort { extensions: 6, random: 96, pairs: 80, kept: 30, trades: 4, traders: 5 },
            0..=4 => Effort { extensions: 6, random: 256, pairs: 0, kept: 30, trades: 4, traders: 5 },
            5 => Effort { extensions: 6, random: 80, pairs: 64, kept: 30, trades: 3, traders: 4 },
            6..=8 if mirrored => Effort { extensions: 5, random: 8, pairs: 150, kept: 9, trades: 2, traders: 1 },
            6..=8 => Effort { extensions: 5, random: 120, pairs: 0, kept: 9, trades: 2, traders: 1 },
            _ => Effort { extensions: 4, random: 8, pairs: 12, kept: 6, trades: 1, traders: 1 },
        }
    }

    fn times(self, k: usize) -> Self {
        Effort { random: k * self.random, pairs: k * self.pairs, kept: k * self.kept, ..self }
    }
}

impl<'a> Search<'a> {
    /// `None`: the target is not finite.
    pub fn new(problem: &'a Problem<'a>, source: &'a Source, fine: &'a Samples) -> Option<Self> {
        let model = Model::new(problem, source, fine);
        let coarse = coarse(problem, 1)?;
        let (bends, mirrors) = (bends(&coarse), mirrors(&model, problem));
        let knots = Knot::all(&model);
        let mut search = Search { model, coarse, fine, atoms: Vec::new(), levels: Vec::new(), bends, knots, mirrors };
        search.atoms = search.dictionary();
        let mut empty = Stack::default();
        if search.model.constant {
            let (lo, hi) = search
                .coarse
                .lo
                .iter()
                .zip(&search.coarse.hi)
                .fold((f64::INFINITY, f64::NEG_INFINITY), |s, (l, h)| (s.0.min(*h), s.1.max(*l)));
            empty.constant = 0.5 * (lo + hi);
            if !search.model.infinite.is_empty() {
                empty.constant = search.model.infinite[0].2;
            }
        }
        let error = search.model.error(&empty, &search.coarse, &mut Vec::new());
        search.levels.push(vec![(empty, error)]);
        Some(search)
    }

    /// Weights in geometric steps, knees over the core and a little beyond, both orientations; the steepest at the knots.
    fn dictionary(&self) -> Vec<Atom> {
        let m = &self.model;
        let a = m.core.0;
        let width = m.width();
        let mut pairs: Vec<(f64, f64)> = Vec::new();
        let top = m.max_weight.min(400.0 / width);
        let mut w = (0.5 / width).max(m.min_weight).min(top);
        loop {
            let reach = (3.0 / w).min(0.6 * width);
            let count = 20;
            for i in 0..=count {
                let t = a - reach + (width + 2.0 * reach) * i as f64 / count as f64;
                pairs.push((w, t));
            }
            if w >= top {
                break;
            }
            w = (w * 1.7).min(top);
        }
        for knot in self.knots.iter().take(24) {
            let mut w = knot.most;
            for _ in 0..12 {
                for d in [0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0, 4.0, -4.0] {
                    pairs.push((w, knot.at + d / w));
                }
                w *= 0.6;
                if w < knot.least {
                    break;
                }
            }
        }
        pairs
            .into_iter()
            .flat_map(|(w, t)| [(w, -w * t), (-w, w * t)])
            .map(|(w, b)| Atom { w, b, values: self.coarse.z.iter().map(|z| m.source.at(w * z + b).0).collect() })
            .collect()
    }

    /// Extends `base` by atoms that reduce its squared residual most.
    fn extensions(&self, base: &Stack, count: usize) -> Vec<Stack> {
        let m = &self.model;
        let points = &self.coarse;
        let rows = points.z.len();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).zip(&points.weight).map(|((a, b), w)| a * b * w).sum::<f64>();
        // Weighted orthonormal basis of the linear columns.
        let mut q: Vec<Vec<f64>> = Vec::new();
        let push = |mut g: Vec<f64>, q: &mut Vec<Vec<f64>>| -> bool {
            let size = dot(&g, &g);
            for _ in 0..2 {
                for o in q.iter() {
                    let d = dot(&g, o);
                    g.iter_mut().zip(o).for_each(|(a, b)| *a -= d * b);
                }
            }
            let norm = dot(&g, &g);
            if norm > 1e-10 * size && norm > 0.0 {
                let s = norm.sqrt().recip();
                g.iter_mut().for_each(|v| *v *= s);
                q.push(g);
                true
            } else {
                false
            }
        };
        if m.constant {
            push(vec![1.0; rows], &mut q);
        }
        for i in 0..base.w.len() {
            let g: Vec<f64> = points.z.iter().map(|z| m.source.at(base.w[i] * z + base.b[i]).0).collect();
            if m.linear_up {
                push(g.iter().zip(&points.z).map(|(g, z)| g * z).collect(), &mut q);
            }
            push(g, &mut q);
        }
        let mut f = Vec::new();
        m.values(base, points, 1.0, &mut f);
        let mut r: Vec<f64> = (0..rows)
            .map(|i| {
                if f[i] > points.hi[i] {
                    f[i] - points.hi[i]
                } else if f[i] < points.lo[i] {
                    f[i] - points.lo[i]
                } else {
                    0.0
                }
            })
            .collect();
        for o in &q {
            let d = dot(&r, o);
            r.iter_mut().zip(o).for_each(|(a, b)| *a -= d * b);
        }
        let known = q.len();
        let mut scored: Vec<(f64, usize)> = Vec::new();
        for (index, atom) in self.atoms.iter().enumerate() {
            q.truncate(known);
            if m.linear_up {
                push(atom.values.iter().zip(&points.z).map(|(g, z)| g * z).collect(), &mut q);
            }
            push(atom.values.clone(), &mut q);
            let score: f64 = q[known..].iter().map(|o| dot(&r, o).powi(2)).sum();
            if score > 0.0 {
                scored.push((score, index));
            }
        }
        scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut chosen: Vec<usize> = Vec::new();
        for (_, index) in scored {
            let atom = &self.atoms[index];
            let near = |&c: &usize| {
                let o = &self.atoms[c];
                o.w * atom.w > 0.0
                    && (o.w / atom.w).ln().abs() < 0.6
                    && (o.b / o.w - atom.b / atom.w).abs() < 0.12 * m.width().min(20.0 / atom.w.abs())
            };
            if chosen.iter().any(near) {
                continue;
            }
            chosen.push(index);
            if chosen.len() == count {
                break;
            }
        }
        chosen
            .into_iter()
            .map(|index| {
                let atom = &self.atoms[index];
                let mut s = base.clone();
                s.push(atom.w, atom.b, 0.0, 0.0);
                s
            })
            .collect()
    }

    /// Adds the elites of one more neuron. `extra` are starts from elsewhere; `passing`: more neurons will follow.
    ///
    /// Returns the least error on the coarse samples.
    pub fn grow(&mut self, extra: Vec<Stack>, passing: bool) -> f64 {
        let n = self.levels.len();
        if let Some(points) = coarse(self.model.problem, n) {
            self.coarse = points;
            self.atoms = self.dictionary();
        }
        let effort = Effort::of(n, passing, !self.mirrors.is_empty()).times(self.model.problem.effort);
        let mut starts: Vec<(Stack, Ties)> = extra.into_iter().map(|s| (s, Ties::free(n))).collect();
        let best = &self.levels[n - 1];
        let grown: Vec<Vec<Stack>> = best
            .par_iter()
            .take(5)
            .map(|(s, _)| self.extensions(s, if n == 1 { 16 } else { effort.extensions }))
            .collect();
        starts.extend(grown.into_iter().flatten().map(|s| (s, Ties::free(n))));
        let mut random = Random::new(0x6e65_812a + n as u64);
        if n > 1 {
            for _ in 0..effort.random {
                let units = self.scattered(n, &mut random);
                let ties = Ties::free(n);
                starts.push((ties.stack(&units), ties));
            }
            for (k, sign) in self.mirrors.iter().flat_map(|s| std::iter::repeat_n(*s, effort.pairs)).enumerate() {
                // Half of them with as few neurons at the centre as there can be, the others with more.
                let single = n % 2 + if k % 2 == 0 { 0 } else { 2 * (k / 2 % (n / 2) + 1) };
                let ties = Ties::mirrored(n, single, self.model.middle(), sign);
                {
                    let units: Vec<_> = self
                        .scattered(ties.units(), &mut random)
                        .into_iter()
                        .map(|(w, b)| (w, b + w * self.model.middle()))
                        .collect();
                    starts.push((ties.stack(&units), ties.clone()));
                }
            }
        }
        starts.extend(self.centred(n));
        let mut level = self.settle(starts, effort.kept);
        // Trade neurons: drop each of the best stacks' neurons in turn and grow another one.
        for _ in 0..effort.trades {
            let Some(before) = level.first().map(|b| b.1).filter(|e| *e > 1e-9 * self.model.scale && n > 1) else {
                break;
            };
            let mut jobs: Vec<Stack> = Vec::new();
            for (s, _) in level.iter().take(effort.traders) {
                for i in 0..n {
                    let mut t = s.clone();
                    for v in [&mut t.w, &mut t.b, &mut t.p, &mut t.q] {
                        v.remove(i);
                    }
                    jobs.push(self.model.least_squares(&t, &Ties::free(n - 1), &self.coarse, (12, 0)));
                }
            }
            let traded: Vec<Vec<Stack>> = jobs.par_iter().map(|s| self.extensions(s, 2)).collect();
            let mut traded: Vec<_> = traded.into_iter().flatten().map(|s| (s, Ties::free(n))).collect();
            // The same with neurons from anywhere.
            for (s, _) in level.iter().take(effort.traders) {
                for i in (0..n).chain(0..n) {
                    let mut t = s.clone();
                    (t.w[i], t.b[i]) = self.scattered(1, &mut random)[0];
                    traded.push((t, Ties::free(n)));
                }
            }
            level.extend(self.settle(traded, effort.kept / 2));
            level = distinct(&self.model, &self.coarse, level, ELITES);
            if !(level[0].1 < 0.98 * before) {
                break;
            }
        }
        let error = level.first().map_or(f64::INFINITY, |l| l.1);
        self.levels.push(level);
        error
    }

    /// Where the target is symmetric: stacks with all knees in the middle and weights in geometric steps, and those of one neuron
    /// less spread over one more. As n grows such stacks keep their range of weights and fill it more densely.
    fn centred(&self, n: usize) -> Vec<(Stack, Ties)> {
        let m = &self.model;
        if self.mirrors.is_empty() || n < 2 {
            return Vec::new();
        }
        let middle = m.middle();
        let ties = Ties::mirrored(n, n, middle, 1.0);
        let kept = |w: f64| w.clamp(m.min_weight, m.max_weight);
        let start = |weights: &dyn Fn(f64) -> f64| {
            let units: Vec<_> = (0..n).map(|k| (kept(weights(k as f64 / (n - 1) as f64)), 0.0)).collect();
            (ties.stack(&units), ties.clone())
        };
        let mut out = Vec::new();
        for (lo, ratio) in [1.0, 2.0, 4.0, 8.0].into_iter().flat_map(|lo| [4.0, 8.0, 16.0].map(|r| (lo, r))) {
            out.push(start(&|t: f64| lo / m.width() * f64::powf(ratio, t)));
        }
        for (stack, _) in &self.levels[n - 1] {
            let mut w: Vec<f64> = stack.w.iter().map(|w| w.abs()).collect();
            let all = stack.w.iter().zip(&stack.b).all(|(w, b)| (b + w * middle).abs() < 1e-3);
            if !all || w.len() < 2 {
                continue;
            }
            w.sort_by(f64::total_cmp);
            out.push(start(&|t: f64| {
                let at = t * (w.len() - 1) as f64;
                let k = (at as usize).min(w.len() - 2);
                w[k] * (w[k + 1] / w[k]).powf(at - k as f64)
            }));
        }
        out
    }

    /// The last level once more, with full effort.
    pub fn deepen(&mut self, mut extra: Vec<Stack>) -> f64 {
        let found = self.levels.pop().unwrap_or_default();
        extra.extend(found.into_iter().map(|l| l.0));
        self.grow(extra, false)
    }

    /// Random neurons: slopes in geometric steps, knees mostly where the target bends; where it has knots, every other time
    /// about them, with slopes that are alike.
    fn scattered(&self, count: usize, random: &mut Random) -> Vec<(f64, f64)> {
        let m = &self.model;
        let width = m.width();
        let least = (2.0 / width).max(m.min_weight).min(m.max_weight);
        let most = m.max_weight.min(64.0 / width).max(least);
        let geometric = |lo: f64, hi: f64, random: &mut Random| lo * (hi / lo).powf(random.unit());
        // Knots of one kind go together.
        let sharp: Vec<&Knot> = self.knots.iter().filter(|k| k.sharp).collect();
        let steep = (!sharp.is_empty() && random.unit() < 0.5).then(|| {
            let knot = sharp[random.below(sharp.len())];
            geometric(knot.least, knot.most, random)
        });
        let mut neuron = || {
            // Where a limit binds, it binds many neurons.
            let bound = most == m.max_weight && random.unit() < 0.3;
            let local = steep.filter(|_| random.unit() < 0.8);
            let w = match local {
                Some(w) => geometric(0.5 * w, 2.0 * w, random).clamp(m.min_weight, m.max_weight),
                None if bound => most,
                None => geometric(least, most, random),
            };
            let knee = if local.is_some() {
                sharp[random.below(sharp.len())].at + (random.unit() - 0.5) * 6.0 / w
            } else if random.unit() < 0.3 {
                m.core.0 + width * (1.2 * random.unit() - 0.1)
            } else {
                self.bends[random.below(self.bends.len())] + (random.unit() - 0.5) * 4.0 / w
            };
            let w = if random.unit() < 0.5 { w } else { -w };
            (w, -w * knee)
        };
        (0..count).map(|_| neuron()).collect()
    }

    /// Least squares from every start, then sequential linear programming for the `keep` best.
    fn settle(&self, starts: Vec<(Stack, Ties)>, keep: usize) -> Vec<(Stack, f64)> {
        let model = &self.model;
        let coarse = &self.coarse;
        // A few steps tell valleys that are worth a descent.
        let fit = |(s, ties): (Stack, Ties), effort: (usize, usize)| {
            let s = model.moved(&model.least_squares(&s, &ties, coarse, effort), &[]);
            let e = model.error(&s, coarse, &mut Vec::new());
            (s, ties, e)
        };
        // A few steps tell valleys that are worth more of them; the last digits take many.
        let mut tried: Vec<(Stack, Ties, f64)> = starts.into_par_iter().map(|s| fit(s, (10, 1))).collect();
        for (most, effort) in [(3 * keep, (40, 2)), (keep + keep / 2, (200, 4))] {
            tried.sort_by(|a, b| a.2.total_cmp(&b.2));
            tried.truncate(most);
            tried = tried.into_par_iter().map(|(s, ties, _)| fit((s, ties), effort)).collect();
        }
        let fitted = tried.into_iter().map(|(s, _, e)| (s, e)).collect();
        let polished: Vec<(Stack, f64)> = distinct(model, coarse, fitted, keep)
            .into_par_iter()
            .map(|(s, _)| model.descend(s, &mut coarse.clone(), None, 14, 3e-3))
            .collect();
        distinct(model, coarse, polished, ELITES)
    }

    /// The least error of n neurons on the coarse samples.
    pub fn coarse_error(&self, n: usize) -> f64 {
        self.levels.get(n).and_then(|l| l.first()).map_or(f64::INFINITY, |l| l.1)
    }

    /// The last digits of a stack that is good as it stands.
    pub fn polished(&self, stack: &Stack) -> Stack {
        polished(&self.model, stack, (&self.coarse, self.fine), 60).0
    }

    /// The best stack of n neurons, polished on the fine samples, and its error there.
    pub fn finish(&mut self, n: usize) -> Option<(Stack, f64)> {
        let level = self.levels.get(n)?;
        let model = &mut self.model;
        if n == 0 {
            let mut stack = level[0].0.clone();
            let e = model.error(&stack, &self.fine.points, &mut Vec::new());
            return model.close(&mut stack).then_some((stack, e));
        }
        let polish = |model: &Model, s: &Stack, steps: usize| polished(model, s, (&self.coarse, self.fine), steps);
        let mut done: Vec<_> = level.par_iter().take(3).map(|(s, _)| polish(model, s, 60)).collect();
        done.sort_by(|a, b| a.1.total_cmp(&b.1));
        let mut best = done.into_iter().next()?;
        // Larger cancellation only where it pays.
        model.cancellation = 1e6;
        let wider = polish(model, &best.0, 20);
        model.cancellation = 1e3;
        if wider.1 < 0.9 * best.1 {
            best = wider;
        }
        if !best.1.is_finite() {
            return None;
        }
        // The polished one leads the level that the next one grows from.
        let e = self.model.error(&best.0, &self.coarse, &mut Vec::new());
        let level = &mut self.levels[n];
        level.insert(0, (best.0.clone(), e));
        level.truncate(ELITES);
        Some(best)
    }
}

/// The last digits of a stack, and its error on the fine samples.
fn polished(model: &Model, stack: &Stack, (coarse, fine): (&Points, &Samples), steps: usize) -> (Stack, f64) {
    let (mut stack, _) = model.descend(stack.clone(), &mut coarse.clone(), Some(fine), steps, 2e-6);
    if model.close(&mut stack) { model.polish(stack, fine, 30) } else { (stack, f64::INFINITY) }
}

/// What n neurons are fitted on: some ten points for each extremum of the error.
fn coarse(problem: &Problem, n: usize) -> Option<Points> {
    Samples::new(problem, 112 + 16 * n.min(24)).map(|s| s.points)
}

/// Best first, dropping what is the same function to a hundredth of its error: elites from one valley are worth one.
fn distinct(model: &Model, points: &Points, list: Vec<(Stack, f64)>, keep: usize) -> Vec<(Stack, f64)> {
    let mut list = list;
    list.retain(|s| s.1.is_finite());
    list.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut seen: Vec<Vec<f64>> = Vec::new();
    let mut kept = Vec::new();
    for (stack, error) in list {
        let mut f = Vec::new();
        model.values(&stack, points, 1.0, &mut f);
        f.truncate(points.z.len());
        let same = |g: &Vec<f64>| f.iter().zip(g).all(|(a, b)| (a - b).abs() <= 0.01 * error);
        if seen.iter().any(same) {
            continue;
        }
        seen.push(f);
        kept.push((stack, error));
        if kept.len() == keep {
            break;
        }
    }
    kept
}

/// Sample points, each as often as the target bends there: |f″|^(1/3) is how densely free knots lie at the optimum.
fn bends(points: &Points) -> Vec<f64> {
    const PARTS: usize = 64;
    let middle = |i: usize| 0.5 * (points.lo[i] + points.hi[i]);
    let (mut at, mut total, mut sums) = (Vec::new(), 0.0, Vec::new());
    for i in 1..points.z.len().saturating_sub(1) {
        let (l, r) = (points.z[i] - points.z[i - 1], points.z[i + 1] - points.z[i]);
        let bend = ((middle(i + 1) - middle(i)) / r - (middle(i) - middle(i - 1)) / l) / (0.5 * (l + r));
        if bend.is_finite() {
            total += bend.abs().cbrt() * 0.5 * (l + r) * points.weight[i];
            at.push(points.z[i]);
            sums.push(total);
        }
    }
    if !(total > 0.0) {
        return vec![points.z[points.z.len() / 2]];
    }
    let quantile = |k: usize| sums.partition_point(|s| *s < total * (k as f64 + 0.5) / PARTS as f64);
    (0..PARTS).map(|k| at[quantile(k).min(at.len() - 1)]).collect()
}

/// The symmetries to try: f(c + x) − f(c − x) linear, or f(c + x) + f(c − x) constant, about the middle c.
fn mirrors(model: &Model, problem: &Problem) -> Vec<f64> {
    let (a, b) = model.core;
    let c = model.middle();
    let f = |z: f64| {
        let (lo, hi) = (problem.target)(z);
        0.5 * (lo + hi)
    };
    let h = 0.5 * (b - a);
    let steps = (1..=16).map(|k| h * f64::from(k) / 16.0);
    let slope = (f(b) - f(a)) / (b - a);
    let small = 1e-6 * model.scale.max(slope.abs() * h);
    let even = steps.clone().all(|x| (f(c + x) - f(c - x) - 2.0 * slope * x).abs() <= small);
    let odd = steps.clone().all(|x| (f(c + x) + f(c - x) - f(a) - f(b)).abs() <= small);
    // Mirrored neurons face each other; where σ(t) − σ(−t) is linear they may as well face the same way.
    if even || odd { vec![1.0, -1.0] } else { Vec::new() }
}
