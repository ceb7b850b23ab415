//! Stacks of smooth neurons as the search sees them: values, derivatives and limits.
//!
//! A neuron is (p + q·z)·σ(u)/w with u = wz + b, so that p is its contribution to the slope where σ′ = 1 and the limit on
//! |out·w| is a box. Its derivatives, with u = w(z − t) + c for a fixed t near the knee (so that w turns about t):
//!
//! ∂p = σ/w, ∂q = zσ/w, ∂w = (p + qz)((z − t)σ′ − σ/w)/w, ∂c = (p + qz)σ′/w.

use super::Problem;
use super::samples::Samples;
use super::sigma::{REACH, Source};

/// The parameters of a stack.
#[derive(Clone, Debug, Default)]
pub(super) struct Stack {
    pub constant: f64,
    pub w: Vec<f64>,
    pub b: Vec<f64>,
    pub p: Vec<f64>,
    /// zeros in plain form
    pub q: Vec<f64>,
}

impl Stack {
    pub fn push(&mut self, w: f64, b: f64, p: f64, q: f64) {
        self.w.push(w);
        self.b.push(b);
        self.p.push(p);
        self.q.push(q);
    }

    /// (w, b) of the neurons.
    pub fn inner(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        self.w.iter().copied().zip(self.b.iter().copied())
    }

    /// (w, b, p) of a neuron.
    pub fn neuron(&self, i: usize) -> (f64, f64, f64) {
        (self.w[i], self.b[i], self.p[i])
    }
}

/// What the fit is measured on: samples, and for infinite sides the rows for offset, slope and curvature at infinity.
#[derive(Clone, Default)]
pub(super) struct Points {
    pub z: Vec<f64>,
    pub lo: Vec<f64>,
    pub hi: Vec<f64>,
    /// weights of the least-squares phase
    pub weight: Vec<f64>,
}

/// The problem in the form that the search uses.
pub(super) struct Model<'a> {
    pub source: &'a Source,
    /// has each neuron a z·σ coefficient
    pub linear_up: bool,
    pub constant: bool,
    pub max_weight: f64,
    pub min_weight: f64,
    pub max_out: f64,
    /// bound on |out·σ| over the core
    pub cancellation: f64,
    /// bound on Σ|out|
    pub max_total: f64,
    /// the part of the domain where things happen
    pub core: (f64, f64),
    /// largest |target|, and its rise per unit
    pub scale: f64,
    pub slope: f64,
    /// rows at infinity: (side, degree, target low, target high)
    pub infinite: Vec<(usize, usize, f64, f64)>,
    pub problem: &'a Problem<'a>,
}

/// Slope mismatch at infinity counts this many core widths.
pub(super) const HEAVY: f64 = 1e6;

impl<'a> Model<'a> {
    pub fn new(problem: &'a Problem<'a>, source: &'a Source, samples: &Samples) -> Self {
        let core = samples.core;
        let width = core.1 - core.0;
        let infinite_domain = problem.domain.0 == f64::NEG_INFINITY || problem.domain.1 == f64::INFINITY;
        let (mut low, mut high, mut slope) = (f64::INFINITY, f64::NEG_INFINITY, 0.0f64);
        for (z, (l, h)) in samples.z.iter().zip(samples.lo.iter().zip(&samples.hi)) {
            if *z >= core.0 && *z <= core.1 {
                (low, high) = (low.min(*l), high.max(*h));
            }
        }
        let scale = low.abs().max(high.abs()).max(1e-300);
        slope = slope.max((high - low) / width).max(1e-3 * scale / width);
        let mut infinite = Vec::new();
        for side in 0..2 {
            if let Some((lo, hi, m)) = samples.beyond[side] {
                slope = slope.max(m.abs());
                infinite.push((side, 0, lo, hi));
                infinite.push((side, 1, m, m));
                if source.tails.iter().any(|t| t[2] != 0.0) {
                    infinite.push((side, 2, 0.0, 0.0));
                }
            }
        }
        Model {
            linear_up: problem.gated && !infinite_domain,
            constant: problem.constant,
            max_weight: problem.max_weight.abs().min(2f64.powi(20) / width.clamp(1e-9, 1.0)),
            min_weight: (1e-3 / width).min(problem.max_weight.abs()),
            max_out: problem.max_out.abs(),
            cancellation: 1e3,
            // The linear programs keep to it up to 1e−6.
            max_total: problem.max_total * (1.0 - 2e-6),
            core,
            scale,
            slope,
            infinite,
            source,
            problem,
        }
    }

    pub fn per_neuron(&self) -> usize {
        if self.linear_up { 4 } else { 3 }
    }

    pub fn variables(&self, n: usize) -> usize {
        n * self.per_neuron() + usize::from(self.constant)
    }

    pub fn width(&self) -> f64 {
        self.core.1 - self.core.0
    }

    /// The fixed point t that the weight of a neuron turns about: its knee, kept in the core.
    pub fn turn(&self, w: f64, b: f64) -> f64 {
        (-b / w).clamp(self.core.0, self.core.1)
    }

    /// Largest |p| of a neuron: the limit on |out·w|, and the limit on cancellation |p/w|·max|σ|.
    pub fn box_p(&self, w: f64, b: f64) -> f64 {
        let (l, r) = (self.source.at(w * self.core.0 + b).0.abs(), self.source.at(w * self.core.1 + b).0.abs());
        (self.cancellation * self.scale * w.abs() / l.max(r).max(0.1)).min(self.max_out)
    }

    /// One neuron at infinity: coefficient of z^degree.
    pub fn at_infinity(&self, (w, b, p): (f64, f64, f64), side: usize, degree: usize) -> (f64, f64, f64, f64) {
        // σ(u) = c0 + c1·u + c2·u², u = wz + b, times p/w; the side that u goes to is mirrored where w < 0.
        let [c0, c1, c2] = self.source.tails[if w > 0.0 { side } else { 1 - side }];
        let g = c0 + c1 * b + c2 * b * b;
        match degree {
            0 => (p * g / w, g / w, -p * g / (w * w), p * (c1 + 2.0 * c2 * b) / w),
            1 => (p * (c1 + 2.0 * c2 * b), c1 + 2.0 * c2 * b, 0.0, 2.0 * p * c2),
            _ => (p * w * c2, w * c2, p * c2, 0.0),
        }
    }

    pub fn heavy(&self, degree: usize, unit: f64) -> f64 {
        (unit * self.width()).powi(degree as i32)
    }

    pub fn rows(&self, points: &Points) -> usize {
        points.z.len() + self.infinite.len()
    }

    /// f at the points, then at the rows at infinity.
    pub fn values(&self, stack: &Stack, points: &Points, heavy: f64, out: &mut Vec<f64>) {
        out.clear();
        out.resize(points.z.len(), stack.constant);
        for i in 0..stack.w.len() {
            let (w, b, p, q) = (stack.w[i], stack.b[i], stack.p[i] / stack.w[i], stack.q[i] / stack.w[i]);
            if q == 0.0 {
                for (o, z) in out.iter_mut().zip(&points.z) {
                    *o += p * self.source.at(w * z + b).0;
                }
            } else {
                for (o, z) in out.iter_mut().zip(&points.z) {
                    *o += (p + q * z) * self.source.at(w * z + b).0;
                }
            }
        }
        for &(side, degree, _, _) in &self.infinite {
            let sum: f64 = (0..stack.w.len()).map(|i| self.at_infinity(stack.neuron(i), side, degree).0).sum();
            out.push((sum + if degree == 0 { stack.constant } else { 0.0 }) * self.heavy(degree, heavy));
        }
    }

    /// Row-major Jacobian; columns p, (q,) w, c of each neuron, then the constant.
    pub fn jacobian(&self, stack: &Stack, points: &Points, heavy: f64, out: &mut Vec<f64>) {
        let (n, k) = (stack.w.len(), self.per_neuron());
        let cols = self.variables(n);
        out.clear();
        out.resize(self.rows(points) * cols, 0.0);
        for i in 0..n {
            let (w, b, p, q) = (stack.w[i], stack.b[i], stack.p[i], stack.q[i]);
            let t = self.turn(w, b);
            let inv = 1.0 / w;
            for (row, z) in out.chunks_exact_mut(cols).zip(&points.z) {
                let (v, d) = self.source.at(w * z + b);
                let amplitude = (p + q * z) * inv;
                row[i * k] = v * inv;
                if self.linear_up {
                    row[i * k + 1] = z * v * inv;
                }
                row[i * k + k - 2] = amplitude * ((z - t) * d - v * inv);
                row[i * k + k - 1] = amplitude * d;
            }
            for (row, &(side, degree, _, _)) in out.chunks_exact_mut(cols).skip(points.z.len()).zip(&self.infinite) {
                let (_, dp, dw, db) = self.at_infinity(stack.neuron(i), side, degree);
                let s = self.heavy(degree, heavy);
                row[i * k] = dp * s;
                // b = c − wt
                row[i * k + k - 2] = (dw - t * db) * s;
                row[i * k + k - 1] = db * s;
            }
        }
        if self.constant {
            for row in out.chunks_exact_mut(cols).take(points.z.len()) {
                row[cols - 1] = 1.0;
            }
            for (row, &(_, degree, _, _)) in out.chunks_exact_mut(cols).skip(points.z.len()).zip(&self.infinite) {
                row[cols - 1] = if degree == 0 { 1.0 } else { 0.0 };
            }
        }
    }

    /// By how much f (left in `values`) exceeds the hull's upper end, and falls short of its lower end, row by row.
    pub fn excess(&self, stack: &Stack, points: &Points, values: &mut Vec<f64>) -> (Vec<f64>, Vec<f64>) {
        self.values(stack, points, HEAVY, values);
        let sides = |(row, f): (usize, &f64)| {
            let (lo, hi) = self.hull(points, row, HEAVY);
            (f - hi, lo - f)
        };
        values.iter().enumerate().map(sides).unzip()
    }

    pub fn hull(&self, points: &Points, row: usize, heavy: f64) -> (f64, f64) {
        let m = points.z.len();
        if row < m {
            (points.lo[row], points.hi[row])
        } else {
            let (_, degree, lo, hi) = self.infinite[row - m];
            let s = self.heavy(degree, heavy);
            (lo * s, hi * s)
        }
    }

    /// Sup distance to the hull over all rows.
    pub fn error(&self, stack: &Stack, points: &Points, scratch: &mut Vec<f64>) -> f64 {
        self.values(stack, points, HEAVY, scratch);
        let mut worst = self.excess_total(stack).max(0.0);
        for (row, f) in scratch.iter().enumerate() {
            let (lo, hi) = self.hull(points, row, HEAVY);
            let e = (f - hi).max(lo - f);
            if e.is_nan() {
                return f64::INFINITY;
            }
            worst = worst.max(e);
        }
        worst
    }

    /// How much Σ|out| beyond its limit counts as error.
    pub fn excess_total(&self, stack: &Stack) -> f64 {
        if self.max_total.is_infinite() {
            return 0.0;
        }
        HEAVY * self.scale * (self.total(stack) / self.max_total - 1.0)
    }

    /// Does the stack keep to the limits on outer weights?
    pub fn within_limits(&self, stack: &Stack) -> bool {
        let n = stack.w.len();
        let boxes = (0..n).all(|i| stack.p[i].abs().max(stack.q[i].abs()) <= self.box_p(stack.w[i], stack.b[i]));
        boxes && self.total(stack) <= self.max_total
    }

    /// Σ|out|
    pub fn total(&self, stack: &Stack) -> f64 {
        (0..stack.w.len()).map(|i| (stack.p[i].abs().max(stack.q[i].abs()) / stack.w[i]).abs()).sum()
    }

    /// Middle of the core.
    pub fn middle(&self) -> f64 {
        0.5 * (self.core.0 + self.core.1)
    }

    /// Puts x + step into the stack, within all boxes; no step at all for an empty one.
    pub fn moved(&self, stack: &Stack, step: &[f64]) -> Stack {
        let k = self.per_neuron();
        let mut s = stack.clone();
        for i in 0..s.w.len() {
            let d = step.get(i * k..(i + 1) * k).unwrap_or(&[0.0; 4][..k]);
            let (w, b) = (s.w[i], s.b[i]);
            let t = self.turn(w, b);
            let c = b + w * t + d[k - 1];
            let (lo, hi) = self.box_w(w);
            s.w[i] = (w + d[k - 2]).clamp(lo, hi);
            let limit = self.box_b(s.w[i]);
            s.b[i] = (c - s.w[i] * t).clamp(-limit, limit);
            let limit = self.box_p(s.w[i], s.b[i]);
            s.p[i] = (s.p[i] + d[0]).clamp(-limit, limit);
            if self.linear_up {
                s.q[i] = (s.q[i] + d[1]).clamp(-limit, limit);
            }
        }
        if self.constant {
            s.constant += step.last().copied().unwrap_or(0.0);
        }
        s
    }

    pub fn box_w(&self, w: f64) -> (f64, f64) {
        if w > 0.0 { (self.min_weight, self.max_weight) } else { (-self.max_weight, -self.min_weight) }
    }

    /// A knee further out than this is a tail that the table does not tell from its asymptote.
    pub fn box_b(&self, w: f64) -> f64 {
        w.abs() * self.core.0.abs().max(self.core.1.abs()) + 2.0 * REACH
    }
}
