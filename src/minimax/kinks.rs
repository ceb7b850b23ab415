//! Piecewise-linear sources: an optimal polyline, and the neurons that realise it.

use rayon::prelude::*;

use super::polyline::{Polyline, Tube};
use super::samples::Samples;
use super::{Fit, Neuron, Problem};

/// The first kink of a piecewise-linear σ: σ(u) = value + left·(u − at) before it, value + right·(u − at) for `room` after.
struct Kink {
    at: f64,
    value: f64,
    left: f64,
    right: f64,
    room: f64,
}

fn kink(problem: &Problem) -> Option<Kink> {
    let (knots, pieces) = problem.source.polynomial_pieces()?;
    if knots.is_empty() || pieces.iter().any(|p| !p[2].is_zero()) {
        return None;
    }
    let at = knots[0].to_f64();
    let [c, right] = [pieces[1][0].to_f64(), pieces[1][1].to_f64()];
    let room = knots.get(1).map_or(f64::INFINITY, |k| k.to_f64() - at);
    let infinite = problem.domain.0.is_infinite() || problem.domain.1.is_infinite();
    if infinite && room.is_finite() {
        return None;
    }
    Some(Kink { at, value: c + right * at, left: pieces[0][1].to_f64(), right, room })
}

/// The polyline engine for one problem.
pub(super) struct Polylines<'a> {
    problem: &'a Problem<'a>,
    kink: Kink,
    tube: Tube,
    slopes: (Option<f64>, Option<f64>),
    core: (f64, f64),
    fine: &'a Samples,
}

#[derive(Clone, Copy, PartialEq)]
enum Variant {
    Free,
    /// first slope 0
    FlatStart,
    /// last slope 0
    FlatEnd,
    /// first link identically 0
    ZeroStart,
    /// last link identically 0
    ZeroEnd,
}

impl<'a> Polylines<'a> {
    pub fn new(problem: &'a Problem<'a>, samples: &Samples, fine: &'a Samples) -> Option<Self> {
        if problem.gated {
            return None;
        }
        let kink = kink(problem)?;
        let slope = |side: usize| samples.beyond[side].map(|b| b.2);
        let (mut z, mut lo, mut hi) = (samples.z.clone(), samples.lo.clone(), samples.hi.clone());
        // The offsets at infinity stand at the outermost samples.
        let last = z.len() - 1;
        for (side, i) in [(0, 0), (1, last)] {
            if let Some((a, b, m)) = samples.beyond[side] {
                (lo[i], hi[i]) = (a + m * z[i], b + m * z[i]);
            }
        }
        z.dedup();
        lo.truncate(z.len());
        hi.truncate(z.len());
        let tube = Tube { z, lo, hi, first: None, last: None, pinned: None };
        Some(Polylines { problem, kink, tube, slopes: (slope(0), slope(1)), core: samples.core, fine })
    }

    fn optimum(&self, variant: Variant, links: usize) -> Option<Polyline> {
        use Variant::*;
        let mut tube = self.tube.clone();
        (tube.first, tube.last) = self.slopes;
        match variant {
            Free => {}
            FlatStart => tube.first = Some(0.0),
            ZeroStart => (tube.first, tube.pinned) = (Some(0.0), Some(0.0)),
            FlatEnd | ZeroEnd => tube.last = Some(0.0),
        }
        // An asymptote that rises leaves no room for a flat outer link.
        let clash = |own: Option<f64>, used: Option<f64>| own.is_some() && own != used;
        if clash(self.slopes.0, tube.first) || clash(self.slopes.1, tube.last) {
            return None;
        }
        let mirror = variant == ZeroEnd;
        if mirror {
            tube = tube.mirrored();
            tube.pinned = Some(0.0);
        }
        // Exchange: the narrowest tube on a few samples, then its path's worst points on the fine samples join them. The
        // tube on fewer samples is never wider, and the path found is feasible at its own error: both ends of a bracket.
        let size = self.fine.hi.iter().zip(&self.fine.lo).fold(1e-300f64, |s, (h, l)| s.max(h.abs()).max(l.abs()));
        let target = |z: f64| (self.problem.target)(if mirror { -z } else { z });
        let mut bracket = None;
        let mut best: Option<(f64, Polyline)> = None;
        let m = self.fine.z.len();
        for round in 0..40 {
            let (eps, p) = tube.narrowest(links, bracket, if round < 2 { 1e-3 } else { 1e-6 })?;
            let excess = |z: f64, (lo, hi): (f64, f64)| {
                let f = p.value(z);
                (f - hi).max(lo - f)
            };
            let at = |k: usize| {
                let i = if mirror { m - 1 - k } else { k };
                let z = if mirror { -self.fine.z[i] } else { self.fine.z[i] };
                (z, excess(z, (self.fine.lo[i], self.fine.hi[i])))
            };
            let e: Vec<(f64, f64)> = (0..m).map(at).collect();
            let mut added: Vec<(f64, f64, f64)> = Vec::new();
            let mut worst = eps;
            for k in 0..m {
                let (l, r) = (k.saturating_sub(1), (k + 1).min(m - 1));
                if e[k].1 <= 0.97 * eps || e[l].1 > e[k].1 || (r > k && e[r].1 >= e[k].1) {
                    continue;
                }
                let (mut a, mut b) = (e[l].0, e[r].0);
                let mut top = e[k];
                for _ in 0..14 {
                    let (x, y) = (a + 0.381_966 * (b - a), a + 0.618_034 * (b - a));
                    let (u, v) = (excess(x, target(x)), excess(y, target(y)));
                    if u > top.1 {
                        top = (x, u);
                    }
                    if v > top.1 {
                        top = (y, v);
                    }
                    if u > v { b = y } else { a = x }
                }
                worst = worst.max(top.1);
                if top.1 > eps * (1.0 + 1e-7) {
                    let (lo, hi) = target(top.0);
                    added.push((top.0, lo, hi));
                }
            }
            // A kink between samples may stick out, and it moves from round to round: samples close in around it.
            if !added.is_empty() {
                for (i, &k) in p.knots.iter().enumerate() {
                    let l = if i > 0 { p.knots[i - 1] } else { self.core.0 };
                    let r = p.knots.get(i + 1).copied().unwrap_or(self.core.1);
                    let spread = 0.6f64.powi(round);
                    for d in [0.0, 0.01, -0.01, 0.04, -0.04, 0.12, -0.12] {
                        let z = k + spread * d * if d > 0.0 { r - k } else { k - l };
                        if z > tube.z[0] && z < tube.z[tube.z.len() - 1] {
                            let (lo, hi) = target(z);
                            added.push((z, lo, hi));
                        }
                    }
                }
            }
            if best.as_ref().is_none_or(|b| worst < b.0) {
                best = Some((worst, p));
            }
            let upper = best.as_ref().map_or(worst, |b| b.0);
            if added.is_empty() || upper <= eps * (1.0 + 1e-5) || upper <= 1e-14 * size {
                break;
            }
            bracket = Some((eps * (1.0 - if round < 2 { 2e-3 } else { 2e-6 }), upper * (1.0 + 1e-9)));
            let mut all: Vec<(f64, f64, f64)> =
                tube.z.iter().zip(tube.lo.iter().zip(&tube.hi)).map(|(z, (l, h))| (*z, *l, *h)).collect();
            all.extend(added);
            all.sort_by(|a, b| a.0.total_cmp(&b.0));
            all.dedup_by(|a, b| a.0 == b.0);
            tube.z = all.iter().map(|p| p.0).collect();
            tube.lo = all.iter().map(|p| p.1).collect();
            tube.hi = all.iter().map(|p| p.2).collect();
        }
        let (_, p) = best?;
        Some(if mirror { p.mirrored() } else { p })
    }

    /// Every polyline that n neurons may realise, each with its neurons.
    pub fn fits(&self, n: usize) -> Vec<Fit> {
        use Variant::*;
        let mut tries = vec![(Free, n), (Free, n + 1)];
        if self.kink.left == 0.0 {
            tries.extend(if self.problem.constant {
                [(FlatStart, n + 1), (FlatEnd, n + 1)]
            } else {
                [(ZeroStart, n + 1), (ZeroEnd, n + 1)]
            });
        }
        if n >= 2 && (!self.problem.constant || self.slopes.0.is_some() || self.slopes.1.is_some()) {
            tries.push((Free, n - 1));
        }
        tries
            .into_par_iter()
            .filter(|t| t.1 > 0)
            .filter_map(|(variant, links)| {
                let p = self.optimum(variant, links)?;
                self.realise(&p, n)
            })
            .collect()
    }

    /// Knots of the best polyline with n kinks, whatever its outer slopes: starts for the search.
    pub fn knots(&self, n: usize) -> Option<Polyline> {
        self.optimum(Variant::Free, n + 1)
    }

    fn neuron(&self, right_facing: bool, t: f64, jump: f64) -> Neuron {
        let k = &self.kink;
        let size = self.problem.max_weight.abs().min(1.0).min(k.room / (self.core.1 - self.core.0));
        let weight = if right_facing { size } else { -size };
        Neuron { weight, bias: k.at - weight * t, out: jump / (size * (k.right - k.left)), up: None }
    }

    fn value(&self, neuron: &Neuron, z: f64) -> f64 {
        let k = &self.kink;
        let u = neuron.weight * z + neuron.bias - k.at;
        neuron.out * (k.value + if u > 0.0 { k.right } else { k.left } * u)
    }

    /// At most n neurons for the polyline: one a kink, facing either way, and what the affine rest needs.
    fn realise(&self, p: &Polyline, n: usize) -> Option<Fit> {
        let k = &self.kink;
        let count = p.knots.len();
        if count > n {
            return None;
        }
        let jumps: Vec<f64> = p.links.windows(2).map(|w| w[1].2 - w[0].2).collect();
        let total: f64 = jumps.iter().map(|j| j.abs()).sum::<f64>() + p.links[0].2.abs();
        let mut best: Option<(usize, f64, Fit)> = None;
        // All subsets face left where there are few kinks; otherwise those left of some knot.
        let few = count <= 8;
        for code in 0..if few { 1usize << count } else { count + 1 } {
            let left = |i: usize| if few { code >> i & 1 == 1 } else { i < code };
            let mut neurons: Vec<Neuron> = (0..count).map(|i| self.neuron(!left(i), p.knots[i], jumps[i])).collect();
            // The rest: slope and value at a point of the first link.
            let z0 = p.knots.first().copied().unwrap_or(p.links[0].0);
            let slope = p.links[0].2
                - neurons.iter().map(|q| q.out * q.weight * if q.weight > 0.0 { k.left } else { k.right }).sum::<f64>();
            let value = p.value(z0) - neurons.iter().map(|q| self.value(q, z0)).sum::<f64>();
            let slope = if slope.abs() <= 1e-12 * total { 0.0 } else { slope };
            let Some((constant, rest)) = self.affine(slope, value, z0) else { continue };
            neurons.extend(rest);
            let limit = self.problem.max_out.abs() * (1.0 + 1e-12);
            if neurons.len() > n || neurons.iter().any(|q| (q.out * q.weight).abs() > limit) {
                continue;
            }
            let size: f64 = neurons.iter().map(|q| (q.out * q.weight).abs()).sum();
            if best.as_ref().is_none_or(|b| (neurons.len(), size) < (b.0, b.1)) {
                let fit =
                    Fit { constant, neurons, estimate: f64::INFINITY, alternation: super::Alternation::default() };
                best = Some((fit.neurons.len(), size, fit));
            }
        }
        best.map(|b| b.2)
    }

    /// value + slope·(z − z0) from a constant and neurons without a kink in the domain.
    fn affine(&self, slope: f64, value: f64, z0: f64) -> Option<(f64, Vec<Neuron>)> {
        let k = &self.kink;
        let (a, b) = self.core;
        let tiny = 1e-12 * (value.abs() + slope.abs() * (b - a));
        let problem = self.problem;
        let infinite = self.slopes.0.is_some() || self.slopes.1.is_some();
        if slope == 0.0 && (problem.constant || value.abs() <= tiny || value.abs() < 1e-300) {
            return Some((value, vec![]));
        }
        // A line that is `out`·(linear piece of σ), its kink at t: right-facing with slope right.
        let line = |t: f64, right_facing: bool, m: f64| {
            let mut q = self.neuron(right_facing, t, 0.0);
            q.out = m / (q.weight * k.right);
            q
        };
        if !infinite {
            if problem.constant {
                let q = line(a, true, slope);
                return Some((value - self.value(&q, z0), vec![q]));
            }
            if slope != 0.0 {
                // The piece vanishes at u = zero; the line vanishes at z = cross; both must meet with the kinks outside.
                let zero = k.at - k.value / k.right;
                let cross = z0 - value / slope;
                for sign in [1.0, -1.0] {
                    let (lo, hi) = if sign > 0.0 { (a - cross, b - cross) } else { (cross - b, cross - a) };
                    let mut size = problem.max_weight.abs().min(1.0);
                    if hi > 0.0 {
                        size = size.min((k.at + k.room - zero) / hi);
                    }
                    if lo < 0.0 {
                        size = size.min((zero - k.at) / -lo);
                    }
                    if size > 1e-9 / (b - a) {
                        let weight = sign * size;
                        return Some((
                            0.0,
                            vec![Neuron {
                                weight,
                                bias: zero - weight * cross,
                                out: slope / (weight * k.right),
                                up: None,
                            }],
                        ));
                    }
                }
            }
            if k.room.is_infinite() && k.value == 0.0 {
                // Two parallel pieces with kinks at a and at a − width: A(z − a) + B(z − a + width).
                let at_a = value + slope * (a - z0);
                let second = at_a / (b - a);
                return Some((0.0, vec![line(a, true, slope - second), line(a - (b - a), true, second)]));
            }
            return None;
        }
        // Everywhere: m·(σ(z − t) − σ(t − z))/(left + right) = m(z − t).
        if slope != 0.0 && k.value == 0.0 && (k.left + k.right).abs() > 1e-12 {
            let t = if problem.constant { z0 } else { z0 - value / slope };
            let mut pair = [self.neuron(true, t, 0.0), self.neuron(false, t, 0.0)];
            let size = pair[0].weight;
            pair[0].out = slope / ((k.left + k.right) * size);
            pair[1].out = -pair[0].out;
            return Some((if problem.constant { value } else { 0.0 }, pair.to_vec()));
        }
        None
    }
}
