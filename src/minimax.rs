//! Free-knot fits: a stack of few neurons that stays close to a scalar target, in the sup norm.
//!
//! Pure search in floating point. It claims nothing: whoever needs a bound certifies the neurons it returns.
//!
//! Piecewise-linear sources get the globally optimal polyline (`polyline`, `kinks`). Everything else goes through
//! `search`: for 1, 2, … neurons, many starts are fitted by variable projection (`varpro`), the best go through sequential
//! linear programming (`descend`, `linear`) on an exchange set of extrema, and end with Newton's method on the
//! extremal points (`polish`).
//!
//! Results are a function of the problem alone: fixed seeds, and parallel results are collected in order.

mod descend;
mod kinks;
mod linear;
mod model;
mod polish;
mod polyline;
mod samples;
mod search;
mod sigma;
mod starts;
mod varpro;

use std::ops::ControlFlow;

use crate::activation::Activation;
use kinks::Polylines;
use model::Stack;
use polish::{Extremum, alternations};
use samples::Samples;
use search::Search;
use sigma::Source;

/// Best stack of at most `neurons` neurons for a scalar target.
#[derive(Clone, Copy)]
pub struct Problem<'a> {
    /// the host's activation
    pub source: &'a Activation,
    /// out·σ(wz + b)·(up_weight·z + up_bias) rather than out·σ(wz + b); on infinite domains up_weight stays 0
    pub gated: bool,
    /// ends may be infinite
    pub domain: (f64, f64),
    /// z → [lo, hi] that the fit should stay within: lo = hi where a value is asked, wider inside a jump's band
    pub target: &'a (dyn Fn(f64) -> (f64, f64) + Sync),
    /// where the target is not smooth, band edges included
    pub knots: &'a [f64],
    /// left and right asymptote (slope, offset), needed for infinite ends
    pub tails: [Option<(f64, f64)>; 2],
    /// largest number of neurons
    pub neurons: usize,
    /// bound on |inner weight|
    pub max_weight: f64,
    /// bound on |out|·|inner weight|
    pub max_out: f64,
    /// bound on Σ|out|; infinite for none
    pub max_total: f64,
    /// is a free output constant allowed
    pub constant: bool,
    /// how many times the usual number of starts; 1 is what `solve` uses
    pub effort: usize,
}

/// One neuron: out·σ(weight·z + bias), times (up_weight·z + up_bias) in gated form, where the larger of the two is ±1.
#[derive(Clone, Debug, PartialEq)]
pub struct Neuron {
    /// inner weight
    pub weight: f64,
    /// inner bias
    pub bias: f64,
    /// outer weight
    pub out: f64,
    /// (up_weight, up_bias) in gated form
    pub up: Option<(f64, f64)>,
}

/// A stack and what the search saw of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// output constant
    pub constant: f64,
    /// the neurons, at most as many as asked
    pub neurons: Vec<Neuron>,
    /// sup distance to the hull seen on samples: an estimate, never a bound
    pub estimate: f64,
    /// evidence of local optimality
    pub alternation: Alternation,
}

/// How often the error of a fit alternates between its extremes: evidence of local optimality, no proof.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alternation {
    /// as seen on samples
    pub seen: usize,
    /// numbers of the stack that no limit holds
    pub parameters: usize,
}

impl Alternation {
    /// How often the error of a best approximation by as many parameters alternates, if they were linear and formed a
    /// Chebyshev system.
    pub fn full(&self) -> usize {
        self.parameters + 1
    }
}

impl Fit {
    /// Σ|out|
    pub fn total(&self) -> f64 {
        self.neurons.iter().map(|n| n.out.abs()).sum()
    }

    /// The largest |inner weight|.
    pub fn max_weight(&self) -> f64 {
        self.neurons.iter().map(|n| n.weight.abs()).fold(0.0, f64::max)
    }

    /// The stack's value.
    pub fn value(&self, source: &Activation, z: f64) -> f64 {
        self.neurons.iter().fold(self.constant, |s, n| {
            let up = n.up.map_or(1.0, |(a, b)| a * z + b);
            s + n.out * source.value(n.weight * z + n.bias) * up
        })
    }
}

/// The best stack of at most `problem.neurons` neurons that the search finds.
///
/// `None` only where no finite error is possible: an asymptote that no stack of that size has, or a target that is not
/// finite on the domain.
pub fn fit(problem: &Problem) -> Option<Fit> {
    let samples = Sampled::new(problem)?;
    let mut engine = Engine::new(problem, &samples)?;
    let mut best = engine.constant();
    for n in 1..=problem.neurons {
        let found = engine.fit(n, if n == problem.neurons { f64::INFINITY } else { 0.0 });
        best = better(best, found);
    }
    // Fewer neurons, passed over so far, may have come closer.
    for n in 1..problem.neurons {
        best = engine.revisit(n, best);
    }
    best
}

/// The best stacks of each of these numbers of neurons, in ascending order, handed to `visit` until it has enough. One search
/// serves all: it goes on from the stacks of fewer neurons.
pub fn at_each(problem: &Problem, counts: &[usize], mut visit: impl FnMut(Fit) -> ControlFlow<()>) {
    let Some(samples) = Sampled::new(problem) else { return };
    let Some(mut engine) = Engine::new(problem, &samples) else { return };
    for n in 1..=problem.neurons {
        let wanted = counts.contains(&n);
        let found = engine.fit(n, if wanted { f64::INFINITY } else { 0.0 });
        if let Some(fit) = found.filter(|_| wanted)
            && visit(fit).is_break()
        {
            return;
        }
    }
}

/// The best stacks of 1, 2, … neurons, each handed to `visit` until it has enough. Numbers of neurons whose first tries
/// stay far above `tolerance` are passed over.
pub fn growing(problem: &Problem, tolerance: f64, mut visit: impl FnMut(Fit) -> ControlFlow<()>) {
    let Some(samples) = Sampled::new(problem) else { return };
    let Some(mut engine) = Engine::new(problem, &samples) else { return };
    for n in 1..=problem.neurons {
        let limit = if n == problem.neurons { f64::INFINITY } else { tolerance };
        if let Some(fit) = engine.fit(n, limit)
            && visit(fit).is_break()
        {
            return;
        }
    }
}

/// Neurons beyond which a piecewise-linear source is left to the polylines.
const SEARCHED_KINKS: usize = 4;

fn better(a: Option<Fit>, b: Option<Fit>) -> Option<Fit> {
    match (a, b) {
        // Of equals, the one with fewer neurons.
        (Some(a), Some(b)) => Some(if b.estimate < a.estimate * (1.0 - 1e-6) { b } else { a }),
        (a, b) => a.or(b),
    }
}

/// A problem's samples: many to judge by, and those of the polylines.
struct Sampled {
    source: Source,
    fine: Samples,
    tube: Option<Samples>,
}

impl Sampled {
    fn new(problem: &Problem) -> Option<Self> {
        Some(Sampled {
            source: Source::new(problem.source),
            fine: Samples::new(problem, 3000)?,
            tube: Samples::new(problem, 240 + 24 * problem.neurons),
        })
    }
}

/// Fits of one problem, one neuron more at a time.
struct Engine<'a> {
    problem: &'a Problem<'a>,
    samples: &'a Sampled,
    polylines: Option<Polylines<'a>>,
    /// gates at the target's knots, of all numbers of neurons
    gates: Vec<Stack>,
    search: Search<'a>,
}

impl<'a> Engine<'a> {
    fn new(problem: &'a Problem<'a>, samples: &'a Sampled) -> Option<Self> {
        let polylines = samples.tube.as_ref().and_then(|s| Polylines::new(problem, s, &samples.fine));
        let search = Search::new(problem, &samples.source, &samples.fine)?;
        let mut gates = starts::steep(problem, &samples.source);
        gates.extend(starts::cleared(problem, &samples.source));
        Some(Engine { problem, samples, polylines, gates, search })
    }

    /// No neurons at all.
    fn constant(&mut self) -> Option<Fit> {
        let (stack, _) = self.search.finish(0)?;
        let fit = self.measured(assemble(self.problem, &stack));
        fit.estimate.is_finite().then_some(fit)
    }

    fn measured(&self, mut fit: Fit) -> Fit {
        measure(self.problem, &self.samples.source, &self.samples.fine, &mut fit);
        if fit.total() > self.problem.max_total * (1.0 + 1e-9) {
            fit.estimate = f64::INFINITY;
        }
        fit
    }

    /// The best with n neurons, called for n = 1, 2, … in turn; `None` too where a first look stays far above `wanted`.
    fn fit(&mut self, n: usize, wanted: f64) -> Option<Fit> {
        /// How far a first look may be off.
        const PROMISING: f64 = 30.0;
        let (problem, source) = (self.problem, &self.samples.source);
        let mut candidates = Vec::new();
        let mut starts: Vec<Stack> = self.gates.iter().filter(|s| s.w.len() == n).cloned().collect();
        let mut first_look = f64::INFINITY;
        if let Some(lines) = &self.polylines {
            if wanted > 0.0 {
                candidates.extend(lines.fits(n).into_iter().map(|f| self.measured(f)));
            }
            if n <= SEARCHED_KINKS {
                starts.extend(lines.knots(n).map(|p| starts::kinked(problem, &p)).filter(|s| s.w.len() == n));
            }
        }
        let reached = |s: &Stack| Some(assemble(problem, s)).filter(|f| reaches(problem, source, f));
        let mut direct: Vec<(Fit, &Stack)> =
            starts.iter().filter_map(|s| Some((self.measured(reached(s)?), s))).collect();
        direct.sort_by(|a, b| a.0.estimate.total_cmp(&b.0.estimate));
        // The search may lose sight of a start that is good as it stands.
        if let (Some((_, best)), true) = (direct.first(), wanted > 0.0) {
            candidates.extend(reached(&self.search.polished(best)).map(|f| self.measured(f)));
        }
        candidates.extend(direct.into_iter().map(|d| d.0));
        if self.polylines.is_none() || n <= SEARCHED_KINKS {
            let last = wanted == f64::INFINITY;
            first_look = self.search.grow(starts.clone(), !last);
            if !last && first_look <= PROMISING * wanted {
                first_look = self.search.deepen(starts);
            }
            if first_look <= PROMISING * wanted {
                candidates.extend(self.search.finish(n).map(|(stack, _)| self.measured(assemble(problem, &stack))));
            }
        }
        if candidates.is_empty() && first_look > PROMISING * wanted {
            return None;
        }
        candidates.into_iter().filter(|f| f.estimate.is_finite()).min_by(|a, b| a.estimate.total_cmp(&b.estimate))
    }

    /// What the search had on its way past n neurons, polished now where it promises more than the best.
    fn revisit(&mut self, n: usize, best: Option<Fit>) -> Option<Fit> {
        if self.search.coarse_error(n) < best.as_ref().map_or(f64::INFINITY, |b| b.estimate) {
            let found = self.search.finish(n).map(|(stack, _)| self.measured(assemble(self.problem, &stack)));
            return better(best, found.filter(|f| f.estimate.is_finite()));
        }
        best
    }
}

/// Does the stack have the asymptotes of an infinite domain?
fn reaches(problem: &Problem, source: &Source, fit: &Fit) -> bool {
    let tails = source.tails;
    [(0, problem.domain.0), (1, problem.domain.1)].into_iter().filter(|(_, end)| end.is_infinite()).all(|(side, _)| {
        let Some((slope, _)) = problem.tails[side] else { return false };
        let own: f64 =
            fit.neurons.iter().map(|n| n.out * n.weight * tails[if n.weight > 0.0 { side } else { 1 - side }][1]).sum();
        (own - slope).abs() <= 1e-12 * (1.0 + slope.abs())
    })
}

/// Neurons from p and q: out = p/w in plain form, max(|p|, |q|)/w times a normalised up row in gated form.
fn assemble(problem: &Problem, stack: &Stack) -> Fit {
    let neurons = (0..stack.w.len())
        .filter(|&i| stack.p[i] != 0.0 || stack.q[i] != 0.0)
        .map(|i| {
            let (weight, bias, p, q) = (stack.w[i], stack.b[i], stack.p[i], stack.q[i]);
            if problem.gated {
                let size = p.abs().max(q.abs());
                Neuron { weight, bias, out: size / weight, up: Some((q / size, p / size)) }
            } else {
                Neuron { weight, bias, out: p / weight, up: None }
            }
        })
        .collect();
    Fit { constant: stack.constant, neurons, estimate: f64::INFINITY, alternation: Alternation::default() }
}

/// Sets the estimate: the fine samples and knees, their local maxima refined by golden section, and the offsets at infinity.
fn measure(problem: &Problem, source: &Source, fine: &Samples, fit: &mut Fit) {
    let points = fine.beside(problem, fit.neurons.iter().map(|n| (n.weight, n.bias)));
    let value = |z: f64| {
        fit.neurons.iter().fold(fit.constant, |s, n| {
            s + n.out * source.at(n.weight * z + n.bias).0 * n.up.map_or(1.0, |(a, b)| a * z + b)
        })
    };
    let excess = |z: f64| {
        let (lo, hi) = (problem.target)(z);
        let f = value(z);
        if f.is_finite() { (f - hi).max(lo - f) } else { f64::INFINITY }
    };
    let e: Vec<f64> = points
        .z
        .iter()
        .zip(points.lo.iter().zip(&points.hi))
        .map(|(z, (lo, hi))| {
            let f = value(*z);
            if f.is_finite() { (f - hi).max(lo - f) } else { f64::INFINITY }
        })
        .collect();
    let mut worst = e.iter().copied().fold(0.0, f64::max);
    let top = worst;
    let mut extrema: Vec<Extremum> = Vec::new();
    for i in 0..e.len() {
        let (l, r) = (i.saturating_sub(1), (i + 1).min(e.len() - 1));
        // Between samples it rises less than it does to the higher of them: a summit may hide between two that are in their band.
        let highest = 2.0 * e[i] - e[l].min(e[r]);
        if !(highest > 0.95 * top) || e[l] > e[i] || e[r] >= e[i] && r > i {
            continue;
        }
        let (mut a, mut b) = (points.z[l], points.z[r]);
        let mut summit = e[i];
        for _ in 0..24 {
            let (p, q) = (a + 0.381_966 * (b - a), a + 0.618_034 * (b - a));
            let (x, y) = (excess(p), excess(q));
            summit = summit.max(x).max(y);
            if x > y { b = q } else { a = p }
        }
        worst = worst.max(summit);
        if summit <= 0.95 * top {
            continue;
        }
        let sign = if value(points.z[i]) > points.hi[i] { 1.0 } else { -1.0 };
        extrema.push(Extremum { z: points.z[i], sign, error: summit });
    }
    // Offsets at infinity, where the slopes agree.
    for side in 0..2 {
        if let Some((lo, hi, _)) = fine.beyond[side] {
            let offset = fit.neurons.iter().fold(fit.constant, |s, n| {
                let [c0, c1, c2] = source.tails[if n.weight > 0.0 { side } else { 1 - side }];
                s + n.out * (c0 + n.bias * (c1 + n.bias * c2)) * n.up.map_or(1.0, |(_, b)| b)
            });
            worst = worst.max(offset - hi).max(lo - offset);
        }
    }
    fit.estimate = worst;
    fit.alternation = Alternation { seen: alternations(&extrema), parameters: parameters(problem, source, fit) };
}

/// The numbers of a stack that may move either way.
fn parameters(problem: &Problem, source: &Source, fit: &Fit) -> usize {
    let infinite = [problem.domain.0, problem.domain.1].into_iter().filter(|end| end.is_infinite()).count();
    // Slopes at infinity are given, and where σ grows like a square that there is no square left.
    let asymptotes = infinite * (1..3).filter(|d| source.tails.iter().any(|t| t[*d] != 0.0)).count();
    let below = |x: f64, limit: f64| usize::from(x < limit * (1.0 - 1e-6));
    let of = |n: &Neuron| {
        let steepness = if source.homogeneous { 0 } else { below(n.weight.abs(), problem.max_weight) };
        let up = usize::from(n.up.is_some() && infinite == 0);
        1 + steepness + below((n.out * n.weight).abs(), problem.max_out) + up
    };
    let all: usize = fit.neurons.iter().map(of).sum::<usize>() + usize::from(problem.constant);
    all.saturating_sub(asymptotes + 1 - below(fit.total(), problem.max_total))
}

/// A small fixed-seed generator (SplitMix64: Steele, Lea, Flood 2014).
pub(crate) struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::Side;

    const LINE: (f64, f64) = (f64::NEG_INFINITY, f64::INFINITY);

    struct Case {
        target: Activation,
        source: Activation,
        knots: Vec<f64>,
    }

    impl Case {
        fn new(target: &str, source: &str) -> Self {
            let target: Activation = target.parse().unwrap();
            let knots = target.knots().iter().map(|k| k.to_f64()).collect();
            Case { target, source: source.parse().unwrap(), knots }
        }

        fn with<T>(&self, neurons: usize, domain: (f64, f64), max_weight: f64, use_it: impl Fn(&Problem) -> T) -> T {
            let target = |z: f64| {
                let v = self.target.value(z);
                (v, v)
            };
            let tails = [Side::Left, Side::Right].map(|s| {
                let [c0, c1, _] = self.target.tail(s).asymptote;
                Some((c1.to_f64(), c0.to_f64()))
            });
            use_it(&Problem {
                source: &self.source,
                gated: false,
                domain,
                target: &target,
                knots: &self.knots,
                tails,
                neurons,
                max_weight,
                max_out: 1e3,
                max_total: f64::INFINITY,
                constant: true,
                effort: 1,
            })
        }
    }

    fn error(target: &str, source: &str, neurons: usize, domain: (f64, f64), max_weight: f64) -> f64 {
        Case::new(target, source).with(neurons, domain, max_weight, |p| fit(p).map_or(f64::INFINITY, |f| f.estimate))
    }

    #[test]
    fn polylines_are_optimal() {
        // Least errors of continuous polylines with `links` pieces, computed with the narrowest-tube algorithm and dense
        // check. `links` ReLU neurons and a constant reach them on an interval, links − 1 on the line.
        let table = [
            ("silu", (-8.0, 8.0), 2, 1.3901803374e-1),
            ("silu", (-8.0, 8.0), 3, 4.9703665191e-2),
            ("silu", (-8.0, 8.0), 8, 9.7469738770e-3),
            ("silu", (-4.0, 4.0), 5, 1.4519448452e-2),
            ("gelu", (-4.0, 4.0), 3, 3.3121779870e-2),
            ("gelu", (-16.0, 16.0), 16, 2.1115637650e-3),
            ("silu", LINE, 2, 1.3923227137e-1),
            ("silu", LINE, 5, 4.7095736137e-2),
            ("silu", LINE, 9, 1.4519448456e-2),
            ("gelu", LINE, 17, 1.7314138190e-3),
        ];
        for (target, domain, links, optimum) in table {
            let neurons = if domain == LINE { links - 1 } else { links };
            let e = error(target, "relu", neurons, domain, 16.0);
            // The exchange stops at 1e−5 relative, or after its rounds a few 1e−4 short.
            assert!(e <= 1.0005 * optimum, "{target} {domain:?} {links}: {e}");
            // One neuron more than links may still be used by a polyline of links + 1 pieces, hence no lower bound there.
            if domain == LINE {
                assert!(e >= optimum * (1.0 - 1e-6), "{target} {domain:?} {links}: {e} beats the optimum {optimum}");
            }
        }
    }

    #[test]
    fn smooth_fits_reach_known_errors() {
        // What the search reached when it was written; 2 % over it absorb other roundings of exp, which may send the search
        // to another vertex of the same valley. The last column is a figure that an earlier prototype had reached.
        let table = [
            ("gelu", "silu", 1, 1.3212e-2, 1.33e-2),
            ("gelu", "silu", 2, 3.5590e-3, 3.6e-3),
            ("gelu", "silu", 4, 2.9729e-4, 7.0e-4),
            ("silu", "gelu", 2, 1.5304e-3, 1.53e-3 * 1.0005),
            ("silu", "gelu", 4, 9.9406e-6, 6.2e-5),
            ("tanh", "silu", 2, 3.8635e-2, 3.95e-2),
            ("tanh", "silu", 4, 1.8812e-3, 2.2e-3),
            ("sigmoid", "gelu", 2, 1.3415e-2, 1.36e-2),
            ("sigmoid", "gelu", 4, 2.9803e-4, 3.1e-4),
            ("softplus", "silu", 4, 5.9886e-7, 5.4e-6),
        ];
        for (target, source, neurons, known, earlier) in table {
            let e = error(target, source, neurons, (-8.0, 8.0), 16.0);
            assert!(e <= 1.02 * known && e <= earlier, "{target} from {source}, {neurons}: {e}");
        }
    }

    #[test]
    fn weight_limited_relu() {
        // relu − silu ≤ 0.27846, halved by a constant; everything scales as 1/W. The others are below the figures of an
        // earlier search: 0.1145 and 0.0899 (|out·weight| ≤ 1,000), 0.0642 (≤ 10).
        for (neurons, weight, out, known) in [
            (1, 1.0, 1e3, 0.13924),
            (1, 16.0, 1e3, 0.13924),
            (2, 1.0, 1e3, 0.1137),
            (3, 1.0, 1e3, 0.0668),
            (3, 1.0, 10.0, 0.0807),
            (5, 1.0, 10.0, 0.0603),
        ] {
            let fit = Case::new("relu", "silu")
                .with(neurons, LINE, weight, |p| fit(&Problem { max_out: out, ..*p }).unwrap());
            assert!(fit.estimate * weight <= known * 1.001, "{neurons} {weight}: {}", fit.estimate);
        }
    }

    #[test]
    fn a_limit_on_the_sum_of_outputs_costs_little() {
        // Without a limit two neurons cancel: Σ|out| near 600 for 3.559e−3. A sum of 3 costs 1.5 %.
        for (total, known) in [(100.0, 3.5590e-3), (3.0, 3.6106e-3), (2.0, 3.6795e-3)] {
            let fit = Case::new("gelu", "silu")
                .with(2, (-8.0, 8.0), 16.0, |p| fit(&Problem { max_total: total, ..*p }).unwrap());
            assert!(fit.total() <= total && fit.estimate <= 1.001 * known, "{total}: {} {}", fit.total(), fit.estimate);
        }
    }

    #[test]
    fn scaled_copies_are_exact() {
        // One neuron: quick_gelu(z) = silu(1.702z)/1.702, tanh z = 2·sigmoid(2z) − 1. The last gains are below what the
        // descent counts as progress: 1e−9 of the scale.
        for (target, source) in [("quick_gelu", "silu"), ("tanh", "sigmoid"), ("sigmoid", "tanh"), ("elu", "celu")] {
            let e = error(target, source, 1, (-8.0, 8.0), 16.0);
            assert!(e < 1e-8, "{target} from {source}: {e}");
        }
    }

    #[test]
    fn unreachable_asymptotes_have_no_fit() {
        for (target, source, neurons) in [("gelu", "sigmoid", 4), ("identity", "silu", 1), ("abs", "relu", 1)] {
            assert!(Case::new(target, source).with(neurons, LINE, 8.0, fit).is_none(), "{target} from {source}");
        }
        assert!(error("identity", "silu", 2, LINE, 8.0) < 1e-12);
    }

    #[test]
    fn limits_hold_and_estimates_are_true() {
        for (target, source, gated, constant) in [
            ("gelu", "silu", false, false),
            ("tanh", "gelu", false, true),
            ("relu", "softplus", false, true),
            ("softsign", "elu", false, true),
            ("gelu", "relu", true, true),
            ("mish", "silu", true, false),
            ("gelu", "hardtanh", false, false),
            ("silu", "leaky_relu", false, true),
        ] {
            let case = Case::new(target, source);
            case.with(3, (-6.0, 7.0), 4.0, |p| {
                let p = Problem { gated, constant, max_out: 20.0, ..*p };
                let f = fit(&p).unwrap();
                assert!(f.neurons.len() <= 3 && (constant || f.constant == 0.0));
                for n in &f.neurons {
                    // out is p/w rounded: the product may exceed the box by an ulp or two.
                    assert!(n.weight.abs() <= 4.0 && (n.out * n.weight).abs() <= 20.0 * (1.0 + 1e-12));
                    assert_eq!(n.up.is_some(), gated);
                    assert!(n.up.is_none_or(|(a, b)| a.abs().max(b.abs()) == 1.0));
                }
                let dense = (0..=40_000).map(|i| -6.0 + 13.0 * f64::from(i) / 40_000.0);
                let seen = dense.map(|z| (f.value(&case.source, z) - case.target.value(z)).abs()).fold(0.0, f64::max);
                // Both sample the same curve, one of them refined at its extrema.
                assert!(seen <= f.estimate * 1.001 + 1e-12, "{target} from {source}: {seen} {}", f.estimate);
                assert!(seen >= f.estimate * 0.99, "{target} from {source}: {seen} {}", f.estimate);
            });
        }
    }

    #[test]
    fn a_jump_costs_nothing_inside_its_band() {
        let source = Activation::Silu;
        let step = |z: f64| match z {
            z if z < 0.75 => (0.0, 0.0),
            z if z <= 1.25 => (0.0, 1.0),
            _ => (1.0, 1.0),
        };
        for domain in [(-8.0, 8.0), LINE] {
            let problem = Problem {
                source: &source,
                gated: false,
                domain,
                target: &step,
                knots: &[0.75, 1.25],
                tails: [Some((0.0, 0.0)), Some((0.0, 1.0))],
                neurons: 2,
                max_weight: 64.0,
                max_out: 1e3,
                max_total: f64::INFINITY,
                constant: false,
                effort: 1,
            };
            let f = fit(&problem).unwrap();
            // Two gates of weight 64 half a unit apart: (silu(64t) − relu(64t))/32 is at most 0.2785/32 = 8.7e−3.
            assert!(f.estimate < 8.8e-3, "{domain:?}: {}", f.estimate);
            // The same band with a piecewise-linear source: exact up to rounding of the slopes.
            let exact = fit(&Problem { source: &Activation::Relu, ..problem }).unwrap();
            assert!(exact.estimate < 1e-9, "{domain:?}: {}", exact.estimate);
        }
    }

    /// jumprelu(z, 1), free within 1/8 of the jump.
    fn jump(z: f64) -> (f64, f64) {
        let inside = (z - 1.0).abs() <= 0.125;
        if inside {
            (0.0, z + 0.125)
        } else {
            let v = if z > 1.0 { z } else { 0.0 };
            (v, v)
        }
    }

    fn with_jump<T>(source: &str, neurons: usize, max_weight: f64, use_it: impl Fn(&Problem) -> T) -> T {
        use_it(&Problem {
            source: &source.parse().unwrap(),
            gated: false,
            domain: (-8.0, 8.0),
            target: &jump,
            knots: &[0.875, 1.0, 1.125],
            tails: [Some((0.0, 0.0)), Some((1.0, 0.0))],
            neurons,
            max_weight,
            max_out: 1e3,
            max_total: 100.0,
            constant: true,
            effort: 1,
        })
    }

    #[test]
    fn three_neurons_cross_a_band_without_a_trace() {
        // A pair of neurons for the foot, whose dips cancel, and one for the head. Rounding is what is left: 8·2⁻⁵² and more.
        for source in ["silu", "gelu", "gelu_tanh"] {
            for neurons in [3, 4] {
                let fit = with_jump(source, neurons, 1024.0, |p| fit(p).unwrap());
                assert!(fit.estimate < 1e-12 && fit.neurons.len() <= neurons, "{source} {neurons}: {}", fit.estimate);
            }
        }
    }

    #[test]
    fn steep_neurons_hide_nothing_between_samples() {
        // A dip of a few thousandths of a unit within the band: the estimate of four neurons was 1.9e−14, and their error 1.1e−3.
        // Three of silu touched the band's lower side: 5e−14 for 1.7e−7.
        for (source, neurons, max_weight) in
            [("silu", 3, 1024.0), ("gelu", 4, 1024.0), ("gelu", 2, 1024.0), ("silu", 2, 64.0), ("silu", 3, 256.0)]
        {
            let (fit, activation) = with_jump(source, neurons, max_weight, |p| (fit(p).unwrap(), p.source.clone()));
            let dense = (0..=1_600_000).map(|i| -8.0 + f64::from(i) * 1e-5);
            let seen = dense.map(|z| (fit.value(&activation, z), jump(z)));
            let seen = seen.map(|(f, (lo, hi))| (f - hi).max(lo - f)).fold(0.0, f64::max);
            assert!(seen <= 1.01 * fit.estimate + 1e-12, "{source} {neurons} {max_weight}: {seen} {}", fit.estimate);
        }
    }

    #[test]
    fn fewer_neurons_are_never_closer() {
        let errors: Vec<f64> =
            (1..=5).map(|n| with_jump("silu", n, 128.0, |p| fit(p).map_or(f64::INFINITY, |f| f.estimate))).collect();
        // A search that passes through n neurons on its way looks less closely there than one that ends with them.
        assert!(errors.windows(2).all(|e| e[1] <= 1.05 * e[0] + 1e-12), "{errors:?}");
    }

    #[test]
    fn kinks_scale_with_the_weight_limit() {
        // 0.0667/W, whatever W: 1,024 was 9.0e−5 when samples were too far apart for it.
        for weight in [1.0, 64.0, 1024.0] {
            let e = error("relu", "silu", 3, LINE, weight);
            let narrow = error("relu", "silu", 3, (-8.0, 8.0), weight);
            assert!(e * weight <= 0.0668 && (weight < 8.0 || narrow * weight <= 0.068), "{weight}: {e} {narrow}");
        }
    }

    #[test]
    fn threads_do_not_matter() {
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| Case::new("sigmoid", "gelu").with(3, (-8.0, 8.0), 16.0, fit))
        };
        assert_eq!(run(1), run(3));
    }
}
