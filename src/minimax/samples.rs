//! Where the target is sampled: uniformly, densely where it bends, clustered at knots, geometrically towards infinity.

use std::borrow::Cow;
use std::collections::BinaryHeap;

use super::Problem;
use super::model::Points;
use super::starts::bands;

/// The target on a set of points.
pub(super) struct Samples {
    pub points: Points,
    pub z: Vec<f64>,
    pub lo: Vec<f64>,
    pub hi: Vec<f64>,
    /// the part of the domain where things happen: all of it where it is bounded
    pub core: (f64, f64),
    /// left and right, where infinite: hull of the offset, slope
    pub beyond: [Option<(f64, f64, f64)>; 2],
}

/// Samples reach this many core widths out on infinite sides.
const FAR: f64 = 1e4;

impl Samples {
    /// About `size` points, half of them uniform; None where a target value is not finite or a tail is missing.
    pub fn new(problem: &Problem, size: usize) -> Option<Self> {
        let core = core(problem)?;
        let (a, b) = core;
        let width = b - a;
        let mut z: Vec<f64> = (0..=size / 2).map(|i| a + width * i as f64 / (size / 2) as f64).collect();
        let knots: Vec<f64> = problem.knots.iter().copied().filter(|k| *k > a && *k < b).collect();
        // Neurons of every slope bend at knots, so distances from them go in geometric steps, down to the steepest ones' knee.
        let far = width / 16.0;
        let least = (0.02 / problem.max_weight.abs().max(1e-9)).clamp(1e-9 * width, far);
        let octaves = (far / least).log2();
        let near = (octaves * (size as f64 / 64.0).min(8.0)).min(size as f64 / knots.len().max(1) as f64);
        let ratio = (-octaves / near * std::f64::consts::LN_2).exp();
        for &k in &knots {
            z.push(k);
            z.extend([k - 1e-9 * width, k + 1e-9 * width]);
            for i in 0..near as usize {
                let d = far * ratio.powi(i as i32);
                z.extend([k - d, k + d]);
            }
        }
        // Within a band a fit may do anything that its slopes allow.
        let bands = bands(problem);
        for &(l, r) in bands.iter().filter(|_| bands.len() <= 16) {
            let count = (size / 10).max(24);
            z.extend((1..count).map(|i| l + (r - l) * i as f64 / count as f64));
        }
        z.retain(|v| (a..=b).contains(v));
        z.sort_by(f64::total_cmp);
        z.dedup();
        let value = |z: f64| {
            let (lo, hi) = (problem.target)(z);
            (lo.is_finite() && hi.is_finite()).then_some((lo.min(hi), hi.max(lo)))
        };
        let mut known: Vec<(f64, f64, f64)> = Vec::with_capacity(size * 2);
        for &z in &z {
            let (lo, hi) = value(z)?;
            known.push((z, lo, hi));
        }
        // Bisect where the middle is furthest from the chord.
        let mut heap = BinaryHeap::new();
        let mid = |l: &(f64, f64, f64), r: &(f64, f64, f64)| -> Option<Segment> {
            let m = 0.5 * (l.0 + r.0);
            let (lo, hi) = value(m)?;
            let bend = (0.5 * (l.1 + r.1) - lo).abs().max((0.5 * (l.2 + r.2) - hi).abs());
            let bend = if r.0 - l.0 > 1e-9 * width { bend } else { 0.0 };
            Some(Segment { bend, left: *l, middle: (m, lo, hi), right: *r })
        };
        for w in known.windows(2) {
            heap.push(mid(&w[0], &w[1])?);
        }
        for _ in 0..size / 2 {
            let Some(s) = heap.pop() else { break };
            if s.bend <= 0.0 {
                break;
            }
            known.push(s.middle);
            heap.push(mid(&s.left, &s.middle)?);
            heap.push(mid(&s.middle, &s.right)?);
        }
        let mut beyond = [None, None];
        let growth = 1.0 + 24.0 / size as f64;
        for (side, seen) in beyond.iter_mut().enumerate() {
            let (end, sign) = if side == 0 { (problem.domain.0, -1.0) } else { (problem.domain.1, 1.0) };
            if end.is_finite() {
                continue;
            }
            let (slope, offset) = problem.tails[side]?;
            let edge = if side == 0 { a } else { b };
            let (mut d, mut last) = (width / size as f64 * 2.0, (0.0, 0.0, 0.0));
            let mut step = d;
            while d < FAR * width {
                let z = edge + sign * d;
                let (lo, hi) = value(z)?;
                last = (z, lo, hi);
                known.push(last);
                step *= growth;
                d += step;
            }
            let drift = slope * last.0;
            // The hull that the target still has out there, and the offset itself.
            *seen = Some((offset.min(last.1 - drift), offset.max(last.2 - drift), slope));
            if (last.1 - drift - offset).abs().max((last.2 - drift - offset).abs())
                < 1e-6 * (offset.abs() + slope.abs() * width)
            {
                *seen = Some((offset, offset, slope));
            }
        }
        known.sort_by(|p, q| p.0.total_cmp(&q.0));
        known.dedup_by(|p, q| p.0 == q.0);
        let z: Vec<f64> = known.iter().map(|p| p.0).collect();
        let lo: Vec<f64> = known.iter().map(|p| p.1).collect();
        let hi: Vec<f64> = known.iter().map(|p| p.2).collect();
        // Least squares sees the far samples less the further out they are.
        let weight = z
            .iter()
            .map(|z| {
                let out = ((a - z).max(z - b).max(0.0)) / width;
                1.0 / (1.0 + 10.0 * out).powi(2)
            })
            .collect();
        let points = Points { z: z.clone(), lo: lo.clone(), hi: hi.clone(), weight };
        Some(Samples { points, z, lo, hi, core, beyond })
    }
}

impl Samples {
    /// The points, and more of them about the knees of steep neurons (weight, bias) that bend between two of them.
    pub fn beside(&self, problem: &Problem, neurons: impl Iterator<Item = (f64, f64)>) -> Cow<'_, Points> {
        /// Units of u = wz + b between points that leave nothing unseen.
        const SEEN: f64 = 0.5;
        const AROUND: [f64; 15] = [-8.0, -5.0, -3.0, -2.0, -1.3, -0.8, -0.4, 0.0, 0.4, 0.8, 1.3, 2.0, 3.0, 5.0, 8.0];
        let z = &self.points.z;
        let mut more: Vec<f64> = Vec::new();
        for (w, b) in neurons {
            let knee = -b / w;
            let k = z.partition_point(|z| *z < knee);
            let gap = if k == 0 || k == z.len() { 0.0 } else { z[k] - z[k - 1] };
            if gap * w.abs() > SEEN {
                more.extend(AROUND.map(|u| (u - b) / w).into_iter().filter(|z| self.core.0 < *z && *z < self.core.1));
            }
        }
        if more.is_empty() {
            return Cow::Borrowed(&self.points);
        }
        more.sort_by(f64::total_cmp);
        let old = &self.points;
        let mut all = Points::default();
        let (mut i, mut more) = (0, more.into_iter().peekable());
        while i < z.len() || more.peek().is_some() {
            match more.peek() {
                Some(new) if i == z.len() || *new < z[i] => {
                    let (lo, hi) = (problem.target)(*new);
                    all.push(*new, lo, hi, 1.0);
                    more.next();
                }
                _ => {
                    all.push(z[i], old.lo[i], old.hi[i], old.weight[i]);
                    i += 1;
                }
            }
        }
        Cow::Owned(all)
    }
}

impl Points {
    fn push(&mut self, z: f64, lo: f64, hi: f64, weight: f64) {
        self.z.push(z);
        self.lo.push(lo);
        self.hi.push(hi);
        self.weight.push(weight);
    }
}

/// The bounded part: up to where the target follows its asymptotes and a neuron of the largest weight has saturated.
fn core(problem: &Problem) -> Option<(f64, f64)> {
    let (a, b) = problem.domain;
    if a.is_finite() && b.is_finite() {
        return (a < b).then_some((a, b));
    }
    let knots = problem.knots;
    let (first, last) =
        (knots.iter().copied().fold(f64::INFINITY, f64::min), knots.iter().copied().fold(f64::NEG_INFINITY, f64::max));
    let (first, last) = if knots.is_empty() { (0.0, 0.0) } else { (first, last) };
    let from = [if a.is_finite() { a } else { first.min(b) }, if b.is_finite() { b } else { last.max(a) }];
    let neuron = 12.0 / problem.max_weight.abs().clamp(1e-6, 1e6);
    let mut reach = neuron.max(0.5 * (from[1] - from[0]));
    for (side, sign) in [(0, -1.0), (1, 1.0)] {
        if (if side == 0 { a } else { b }).is_finite() {
            continue;
        }
        let (slope, offset) = problem.tails[side]?;
        let distance = |r: f64| {
            let z = from[side] + sign * r;
            let (lo, hi) = (problem.target)(z);
            let t = offset + slope * z;
            ((t - hi).max(lo - t).max(0.0), t.abs())
        };
        let mut needed = 0.0f64;
        let scale = (0..40).map(|k| distance(2f64.powi(k - 16)).0).fold(0.0, f64::max);
        for k in -16..20 {
            for s in [1.0, 1.3, 1.7] {
                let r = 2f64.powi(k) * s;
                let (d, size) = distance(r);
                if d > 1e-6 * scale + 1e-13 * size {
                    needed = needed.max(1.25 * r);
                }
            }
        }
        reach = reach.max(needed.min(1e4 * neuron.max(1.0)));
    }
    Some((if a.is_finite() { a } else { from[0] - reach }, if b.is_finite() { b } else { from[1] + reach }))
}

struct Segment {
    bend: f64,
    left: (f64, f64, f64),
    middle: (f64, f64, f64),
    right: (f64, f64, f64),
}

impl PartialEq for Segment {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Segment {}
impl PartialOrd for Segment {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Segment {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // Ties in a fixed order, so that the samples do not depend on the heap's internals.
        self.bend.total_cmp(&other.bend).then(other.middle.0.total_cmp(&self.middle.0))
    }
}
