//! Free-knot fits: a stack of few neurons that stays close to a scalar target, in the sup norm.
//!
//! Pure search in floating point. It claims nothing: whoever needs a bound certifies the neurons it returns.
//!
//! Piecewise-linear sources get the globally optimal polyline (`polyline`, `kinks`). Everything else goes through
//! `smooth`: for 1, 2, … neurons, the best stacks of one neuron less grow by atoms that explain the residual, are fitted
//! by reweighted least squares, and end in sequential linear programming (`linear`) on an exchange set of extrema.
//!
//! Results are a function of the problem alone: fixed seeds, and parallel results are collected in order.

mod kinks;
mod linear;
mod polyline;
mod samples;
mod smooth;

use crate::activation::Activation;
use kinks::Polylines;
use samples::Samples;
use smooth::{Search, Stack};

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
    /// is a free output constant allowed
    pub constant: bool,
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
    /// samples that bind the last linear program (for a polyline, extrema seen): the optimality one can hope for
    pub alternations: usize,
}

impl Fit {
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
    run(problem, false).into_iter().min_by(|a, b| a.estimate.total_cmp(&b.estimate))
}

/// The best stacks of 1, 2, …, `problem.neurons` neurons, without those that a smaller stack equals.
pub fn pareto(problem: &Problem) -> Vec<Fit> {
    let mut front: Vec<Fit> = Vec::new();
    for fit in run(problem, true) {
        // A gain that the samples cannot tell from rounding does not pay for a neuron.
        if front.last().is_none_or(|best| fit.estimate < best.estimate * (1.0 - 1e-6)) {
            front.push(fit);
        }
    }
    front
}

/// Neurons beyond which a piecewise-linear source is left to the polylines.
const SEARCHED_KINKS: usize = 4;

fn run(problem: &Problem, every: bool) -> Vec<Fit> {
    let size = 112 + 16 * problem.neurons.min(24);
    let (Some(coarse), Some(fine)) = (Samples::new(problem, size), Samples::new(problem, 3000)) else {
        return Vec::new();
    };
    let polylines = Samples::new(problem, 240 + 24 * problem.neurons).and_then(|s| Polylines::new(problem, &s, &fine));
    let mut search = Search::new(problem, &coarse, &fine);
    let mut found: Vec<Fit> = Vec::new();
    if problem.neurons == 0 {
        if let Some((stack, _, active)) = search.finish() {
            found.push(assemble(problem, &stack, active));
        }
    }
    for n in 1..=problem.neurons {
        let wanted = every || n == problem.neurons;
        let mut candidates = Vec::new();
        let mut starts = steep(problem);
        starts.retain(|s| s.w.len() == n);
        if let Some(lines) = &polylines {
            if wanted {
                candidates.extend(lines.fits(n));
            }
            if n <= SEARCHED_KINKS {
                starts.extend(lines.knots(n).map(|p| kinked(&p)).filter(|s| s.w.len() == n));
            }
        }
        if polylines.is_none() || n <= SEARCHED_KINKS {
            let direct: Vec<Fit> = starts.iter().filter(|_| wanted).map(|s| assemble(problem, s, 0)).collect();
            candidates.extend(direct.into_iter().filter(|f| reaches(problem, f)));
            search.grow(starts);
            if wanted {
                candidates.extend(search.finish().map(|(stack, _, active)| assemble(problem, &stack, active)));
            }
        }
        for fit in &mut candidates {
            measure(problem, &fine, fit);
        }
        let best =
            candidates.into_iter().filter(|f| f.estimate.is_finite()).min_by(|a, b| a.estimate.total_cmp(&b.estimate));
        found.extend(best);
    }
    found
}

/// Steep gates: a source with asymptotes 0 and κt is within O(1/W) of a ReLU, σ(Wz)/(κW), at every knot.
fn steep(problem: &Problem) -> Vec<Stack> {
    let tails = smooth::Source::new(problem.source).tails;
    let kappa = tails[1][1] - tails[0][1];
    if kappa == 0.0 || tails.iter().any(|t| t[2] != 0.0) || problem.knots.len() > 64 {
        return Vec::new();
    }
    let w = problem.max_weight.abs().min(2f64.powi(20));
    let f = |z: f64| {
        let (lo, hi) = (problem.target)(z);
        0.5 * (lo + hi)
    };
    let mut starts = Vec::new();
    // One gate a knot, with the slope jump seen nearby; facing right, then left.
    for facing in [1.0, -1.0] {
        let mut s = Stack::default();
        for (i, &k) in problem.knots.iter().enumerate() {
            let before = if i > 0 { problem.knots[i - 1] } else { problem.domain.0.max(k - 2.0) };
            let after = problem.knots.get(i + 1).copied().unwrap_or(problem.domain.1.min(k + 2.0));
            let h = 0.25 * (k - before).min(after - k);
            if !(h > 0.0) {
                continue;
            }
            let jump = ((f(k + 2.0 * h) - f(k + h)) - (f(k - h) - f(k - 2.0 * h))) / h;
            if jump.is_finite() && jump.abs() > 1e-9 && jump.abs() / kappa.abs() <= problem.max_out {
                s.push(facing * w, -facing * w * k, jump / kappa, 0.0);
                // p is out·w
                let last = s.p.len() - 1;
                s.p[last] *= facing;
            }
        }
        if !s.w.is_empty() {
            let z = if problem.domain.0.is_finite() { problem.domain.0 } else { problem.knots[0] - 1.0 };
            if problem.constant && facing > 0.0 {
                s.constant = f(z);
            }
            starts.push(s);
        }
    }
    starts
}

/// The kinks of a polyline as unit-weight neurons facing right.
fn kinked(p: &polyline::Polyline) -> Stack {
    let mut s = Stack::default();
    for (k, w) in p.knots.iter().zip(p.links.windows(2)) {
        s.push(1.0, -k, w[1].2 - w[0].2, 0.0);
    }
    s.constant = p.links[0].1;
    s
}

/// Does the stack have the asymptotes of an infinite domain?
fn reaches(problem: &Problem, fit: &Fit) -> bool {
    let tails = smooth::Source::new(problem.source).tails;
    [(0, problem.domain.0), (1, problem.domain.1)].into_iter().filter(|(_, end)| end.is_infinite()).all(|(side, _)| {
        let Some((slope, _)) = problem.tails[side] else { return false };
        let own: f64 =
            fit.neurons.iter().map(|n| n.out * n.weight * tails[if n.weight > 0.0 { side } else { 1 - side }][1]).sum();
        (own - slope).abs() <= 1e-12 * (1.0 + slope.abs())
    })
}

/// Neurons from p and q: out = p/w in plain form, max(|p|, |q|)/w times a normalised up row in gated form.
fn assemble(problem: &Problem, stack: &Stack, alternations: usize) -> Fit {
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
    Fit { constant: stack.constant, neurons, estimate: f64::INFINITY, alternations }
}

/// Sets the estimate: the fine samples, their local maxima refined by golden section, and the offsets at infinity.
fn measure(problem: &Problem, fine: &Samples, fit: &mut Fit) {
    let source = smooth::Source::new(problem.source);
    let value = |z: f64| {
        fit.neurons.iter().fold(fit.constant, |s, n| {
            s + n.out * source.at(n.weight * z + n.bias).0 * n.up.map_or(1.0, |(a, b)| a * z + b)
        })
    };
    let excess = |z: f64| {
        let (lo, hi) = (problem.target)(z);
        let f = value(z);
        if f.is_finite() { (f - hi).max(lo - f).max(0.0) } else { f64::INFINITY }
    };
    let e: Vec<f64> = fine
        .z
        .iter()
        .zip(fine.lo.iter().zip(&fine.hi))
        .map(|(z, (lo, hi))| {
            let f = value(*z);
            if f.is_finite() { (f - hi).max(lo - f).max(0.0) } else { f64::INFINITY }
        })
        .collect();
    let mut worst = e.iter().copied().fold(0.0, f64::max);
    let top = worst;
    let mut extrema = 0;
    for i in 0..e.len() {
        let (l, r) = (i.saturating_sub(1), (i + 1).min(e.len() - 1));
        if !(e[i] > 0.95 * top) || e[l] > e[i] || e[r] >= e[i] && r > i {
            continue;
        }
        extrema += usize::from(e[i] > 0.999 * top);
        let (mut a, mut b) = (fine.z[l], fine.z[r]);
        for _ in 0..24 {
            let (p, q) = (a + 0.381_966 * (b - a), a + 0.618_034 * (b - a));
            let (x, y) = (excess(p), excess(q));
            worst = worst.max(x).max(y);
            if x > y { b = q } else { a = p }
        }
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
    if fit.alternations == 0 {
        fit.alternations = extrema;
    }
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

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}
