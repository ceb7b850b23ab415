//! Stacks of smooth neurons: structured starts, damped Gauss–Newton, then sequential linear programming.
//!
//! A neuron is (p + q·z)·σ(u)/w with u = wz + b, so that p is its contribution to the slope where σ′ = 1 and the limit on
//! |out·w| is a box. Its derivatives, with u = w(z − t) + c for a fixed t near the knee (so that w turns about t):
//!
//! ∂p = σ/w, ∂q = zσ/w, ∂w = (p + qz)((z − t)σ′ − σ/w)/w, ∂c = (p + qz)σ′/w.
//!
//! Sequential LP for nonlinear minimax: K. Madsen, "An algorithm for minimax solution of overdetermined systems of
//! non-linear equations", J. Inst. Maths Applics 16 (1975). Reweighting towards the sup norm: C. L. Lawson (1961).

use rayon::prelude::*;

use super::linear::Program;
use super::samples::Samples;
use super::{Problem, Random};
use crate::activation::{Activation, Side};

/// σ and σ′ fast enough for search: a quintic Hermite table where σ is costly.
pub(super) struct Source {
    kind: Kind,
    /// c0, c1, c2 of both tails
    pub tails: [[f64; 3]; 2],
}

enum Kind {
    /// σ(t) = table(rate·t)/rate within ±REACH
    Table {
        rate: f64,
        coefficients: Vec<[f64; 6]>,
    },
    /// scale·t for t ≥ 0, scale·alpha·(e^(rate·t) − 1) before
    Elu {
        scale: f64,
        alpha: f64,
        rate: f64,
    },
    Pieces {
        knots: Vec<f64>,
        pieces: Vec<[f64; 3]>,
    },
    Softsign,
}

/// Beyond it every exponential tail of the catalogue is below 1e−15.
const REACH: f64 = 40.0;
/// Panels per unit; the quintic's error h⁶/46080·|σ⁽⁶⁾| is below 1e−12 for the catalogue.
const PANELS: f64 = 32.0;

impl Source {
    pub fn new(activation: &Activation) -> Self {
        let tails = [Side::Left, Side::Right].map(|s| activation.tail(s).asymptote.map(|c| c.to_f64()));
        let kind = match activation {
            Activation::Softsign => Kind::Softsign,
            _ => match activation.polynomial_pieces() {
                Some((knots, pieces)) => Kind::Pieces {
                    knots: knots.iter().map(|k| k.to_f64()).collect(),
                    pieces: pieces.iter().map(|p| [p[0].to_f64(), p[1].to_f64(), p[2].to_f64()]).collect(),
                },
                None => match (activation.elu_parameters(), activation.swish_beta()) {
                    (Some((scale, alpha, gamma)), _) => {
                        Kind::Elu { scale: scale.to_f64(), alpha: alpha.to_f64(), rate: 1.0 / gamma.to_f64() }
                    }
                    // The swish family shares silu's table.
                    (_, Some(beta)) => Kind::Table { rate: beta.to_f64(), coefficients: table(&Activation::Silu) },
                    _ => Kind::Table { rate: 1.0, coefficients: table(activation) },
                },
            },
        };
        Source { kind, tails }
    }

    pub fn at(&self, t: f64) -> (f64, f64) {
        match &self.kind {
            Kind::Table { rate, coefficients } => {
                let x = (t * rate + REACH) * PANELS;
                if (0.0..2.0 * REACH * PANELS).contains(&x) {
                    let k = x as usize;
                    let s = x - k as f64;
                    let [a, b, c, d, e, f] = coefficients[k];
                    let v = a + s * (b + s * (c + s * (d + s * (e + s * f))));
                    let d1 = b + s * (2.0 * c + s * (3.0 * d + s * (4.0 * e + s * 5.0 * f)));
                    (v / rate, d1 * PANELS)
                } else {
                    let [a, b, c] = self.tails[usize::from(t > 0.0)];
                    (a + t * (b + t * c), b + 2.0 * t * c)
                }
            }
            Kind::Elu { scale, alpha, rate } => {
                if t >= 0.0 {
                    (scale * t, *scale)
                } else {
                    let e = (rate * t).exp_m1();
                    (scale * alpha * e, scale * alpha * rate * (e + 1.0))
                }
            }
            Kind::Pieces { knots, pieces } => {
                let [a, b, c] = pieces[knots.iter().filter(|k| **k <= t).count()];
                (a + t * (b + t * c), b + 2.0 * t * c)
            }
            Kind::Softsign => {
                let r = 1.0 / (1.0 + t.abs());
                (t * r, r * r)
            }
        }
    }
}

/// Quintic Hermite coefficients in s ∈ [0, 1) of each panel.
fn table(activation: &Activation) -> Vec<[f64; 6]> {
    let h = 1.0 / PANELS;
    let panels = (2.0 * REACH * PANELS) as usize;
    let scaled = |t: f64| {
        let [v, d, e] = activation.derivatives(t);
        [v, d * h, e * h * h]
    };
    (0..panels)
        .map(|k| {
            let [v0, d0, e0] = scaled(k as f64 * h - REACH);
            let [v1, d1, e1] = scaled((k + 1) as f64 * h - REACH);
            let (r, s, q) = (v1 - v0 - d0 - 0.5 * e0, d1 - d0 - e0, e1 - e0);
            [v0, d0, 0.5 * e0, 10.0 * r - 4.0 * s + 0.5 * q, -15.0 * r + 7.0 * s - q, 6.0 * r - 3.0 * s + 0.5 * q]
        })
        .collect()
}

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
}

/// What the fit is measured on: samples, and for infinite sides the rows for offset, slope and curvature at infinity.
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
    /// the part of the domain where things happen
    pub core: (f64, f64),
    /// largest |target|, and its rise per unit
    pub scale: f64,
    pub slope: f64,
    /// rows at infinity: (side, degree, target low, target high)
    pub infinite: Vec<(usize, usize, f64, f64)>,
    problem: &'a Problem<'a>,
}

/// Slope mismatch at infinity counts this many core widths.
const HEAVY: f64 = 1e6;

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
            core,
            scale,
            slope,
            infinite,
            source,
            problem,
        }
    }

    fn per_neuron(&self) -> usize {
        if self.linear_up { 4 } else { 3 }
    }

    fn variables(&self, n: usize) -> usize {
        n * self.per_neuron() + usize::from(self.constant)
    }

    fn width(&self) -> f64 {
        self.core.1 - self.core.0
    }

    /// The fixed point t that the weight of a neuron turns about: its knee, kept in the core.
    fn turn(&self, w: f64, b: f64) -> f64 {
        (-b / w).clamp(self.core.0, self.core.1)
    }

    /// Largest |p| of a neuron: the limit on |out·w|, and the limit on cancellation |p/w|·max|σ|.
    fn box_p(&self, w: f64, b: f64) -> f64 {
        let (l, r) = (self.source.at(w * self.core.0 + b).0.abs(), self.source.at(w * self.core.1 + b).0.abs());
        (self.cancellation * self.scale * w.abs() / l.max(r).max(0.1)).min(self.max_out)
    }

    /// One neuron at infinity: coefficient of z^degree.
    fn at_infinity(&self, stack: &Stack, i: usize, side: usize, degree: usize) -> (f64, f64, f64, f64) {
        // σ(u) = c0 + c1·u + c2·u², u = wz + b, times p/w; the side that u goes to is mirrored where w < 0.
        let (w, b, p) = (stack.w[i], stack.b[i], stack.p[i]);
        let [c0, c1, c2] = self.source.tails[if w > 0.0 { side } else { 1 - side }];
        let g = c0 + c1 * b + c2 * b * b;
        match degree {
            0 => (p * g / w, g / w, -p * g / (w * w), p * (c1 + 2.0 * c2 * b) / w),
            1 => (p * (c1 + 2.0 * c2 * b), c1 + 2.0 * c2 * b, 0.0, 2.0 * p * c2),
            _ => (p * w * c2, w * c2, p * c2, 0.0),
        }
    }

    fn heavy(&self, degree: usize, unit: f64) -> f64 {
        (unit * self.width()).powi(degree as i32)
    }

    fn rows(&self, points: &Points) -> usize {
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
            let sum: f64 = (0..stack.w.len()).map(|i| self.at_infinity(stack, i, side, degree).0).sum();
            out.push((sum + if degree == 0 { stack.constant } else { 0.0 }) * self.heavy(degree, heavy));
        }
    }

    /// Row-major Jacobian; columns p, (q,) w, c of each neuron, then the constant.
    fn jacobian(&self, stack: &Stack, points: &Points, heavy: f64, out: &mut Vec<f64>) {
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
                let (_, dp, dw, db) = self.at_infinity(stack, i, side, degree);
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
    fn excess(&self, stack: &Stack, points: &Points, values: &mut Vec<f64>) -> (Vec<f64>, Vec<f64>) {
        self.values(stack, points, HEAVY, values);
        let sides = |(row, f): (usize, &f64)| {
            let (lo, hi) = self.hull(points, row, HEAVY);
            (f - hi, lo - f)
        };
        values.iter().enumerate().map(sides).unzip()
    }

    fn hull(&self, points: &Points, row: usize, heavy: f64) -> (f64, f64) {
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
        let mut worst = 0.0f64;
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

    /// Puts x + step into the stack, within all boxes.
    fn moved(&self, stack: &Stack, step: &[f64]) -> Stack {
        let k = self.per_neuron();
        let mut s = stack.clone();
        for i in 0..s.w.len() {
            let d = &step[i * k..(i + 1) * k];
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
            s.constant += step[step.len() - 1];
        }
        s
    }

    fn box_w(&self, w: f64) -> (f64, f64) {
        if w > 0.0 { (self.min_weight, self.max_weight) } else { (-self.max_weight, -self.min_weight) }
    }

    /// A knee further out than this is a tail that the table does not tell from its asymptote.
    fn box_b(&self, w: f64) -> f64 {
        w.abs() * self.core.0.abs().max(self.core.1.abs()) + 2.0 * REACH
    }

    /// Damped Gauss–Newton on Σ weight·residual², with Lawson's reweighting towards the sup norm.
    fn least_squares(&self, start: Stack, points: &Points, rounds: usize) -> Stack {
        let n = start.w.len();
        let cols = self.variables(n);
        let rows = self.rows(points);
        let heavy = 30.0;
        let mut weight: Vec<f64> = points.weight.iter().copied().chain(self.infinite.iter().map(|_| 1.0)).collect();
        let mut stack = self.moved(&start, &vec![0.0; cols]);
        let (mut jac, mut f, mut r) = (Vec::new(), Vec::new(), vec![0.0; rows]);
        let residual = |f: &[f64], r: &mut [f64]| {
            for (row, (f, r)) in f.iter().zip(r).enumerate() {
                let (lo, hi) = self.hull(points, row, heavy);
                *r = if *f > hi {
                    f - hi
                } else if *f < lo {
                    f - lo
                } else {
                    0.0
                };
            }
        };
        let norm = |r: &[f64], w: &[f64]| r.iter().zip(w).map(|(r, w)| w * r * r).sum::<f64>();
        let mut lambda = 1e-2;
        let (mut normal, mut gradient, mut step) = (vec![0.0; cols * cols], vec![0.0; cols], vec![0.0; cols]);
        let (mut best, mut best_error) = (stack.clone(), f64::INFINITY);
        for round in 0..rounds {
            self.values(&stack, points, heavy, &mut f);
            residual(&f, &mut r);
            let mut cost = norm(&r, &weight);
            for _ in 0..if round == 0 { 25 } else { 8 } {
                self.jacobian(&stack, points, heavy, &mut jac);
                normal.fill(0.0);
                gradient.fill(0.0);
                for ((row, r), w) in jac.chunks_exact(cols).zip(&r).zip(&weight) {
                    if *r == 0.0 {
                        continue;
                    }
                    for a in 0..cols {
                        let s = w * row[a];
                        gradient[a] += s * r;
                        for (o, v) in normal[a * cols..a * cols + a + 1].iter_mut().zip(row) {
                            *o += s * v;
                        }
                    }
                }
                // Parameters at a bound that the step would cross stay out of it.
                let frozen = self.frozen(&stack, &gradient);
                let mut improved = false;
                for _ in 0..6 {
                    if !solve_damped(&normal, &gradient, &frozen, lambda, &mut step) {
                        lambda *= 10.0;
                        continue;
                    }
                    let trial = self.moved(&stack, &step);
                    self.values(&trial, points, heavy, &mut f);
                    let mut tr = r.clone();
                    residual(&f, &mut tr);
                    let c = norm(&tr, &weight);
                    if c < cost {
                        improved = c < cost * (1.0 - 1e-4);
                        (stack, cost, r) = (trial, c, tr);
                        lambda = (lambda * 0.2).max(1e-12);
                        break;
                    }
                    lambda *= 8.0;
                }
                if !improved {
                    break;
                }
            }
            let worst = r.iter().take(points.z.len()).fold(0.0f64, |s, v| s.max(v.abs()));
            if worst < best_error {
                (best, best_error) = (stack.clone(), worst);
            }
            if worst <= 0.0 || worst.is_nan() {
                break;
            }
            let m = points.z.len();
            let mut total = 0.0;
            for i in 0..m {
                weight[i] = (weight[i] * (0.02 + r[i].abs() / worst)).max(1e-9);
                total += weight[i];
            }
            weight[..m].iter_mut().for_each(|w| *w *= m as f64 / total);
        }
        best
    }

    fn frozen(&self, stack: &Stack, gradient: &[f64]) -> Vec<bool> {
        let k = self.per_neuron();
        let mut frozen = vec![false; gradient.len()];
        for i in 0..stack.w.len() {
            let (w, b) = (stack.w[i], stack.b[i]);
            let (lo, hi) = self.box_w(w);
            let g = gradient[i * k + k - 2];
            frozen[i * k + k - 2] = (w >= hi && g < 0.0) || (w <= lo && g > 0.0);
            let limit = self.box_p(w, b);
            let outward = |v: f64, g: f64| (v >= limit && g < 0.0) || (v <= -limit && g > 0.0);
            frozen[i * k] = outward(stack.p[i], gradient[i * k]);
            if self.linear_up {
                frozen[i * k + 1] = outward(stack.q[i], gradient[i * k + 1]);
            }
        }
        frozen
    }

    /// Sequential linear programming on `points`, judged on `judge`; stops on relative gains below `tolerance`.
    fn descend(
        &self,
        start: Stack,
        points: &mut Points,
        judge: Option<&Samples>,
        steps: usize,
        tolerance: f64,
    ) -> (Stack, f64, usize) {
        let n = start.w.len();
        let (k, cols) = (self.per_neuron(), self.variables(n));
        let mut scratch = Vec::new();
        let mut stack = self.moved(&start, &vec![0.0; cols]);
        let base = points.z.len();
        let measure = |s: &Stack, points: &mut Points, scratch: &mut Vec<f64>| match judge {
            None => self.error(s, points, scratch),
            Some(fine) => self.exchange(s, points, base, fine, scratch),
        };
        let mut error = measure(&stack, points, &mut scratch);
        let mut radius = 0.25;
        let mut active = 0;
        let mut stalled = 0;
        let mut jac = Vec::new();
        for _ in 0..steps {
            if error <= 1e-15 * self.scale || !error.is_finite() {
                break;
            }
            self.jacobian(&stack, points, HEAVY, &mut jac);
            let (above, below) = self.excess(&stack, points, &mut scratch);
            // Each variable in units of its own trust region.
            let top = stack.p.iter().chain(&stack.q).fold(self.slope, |s, v| s.max(v.abs()));
            let mut unit = vec![0.0; cols];
            let (mut lower, mut upper) = (vec![-1.0f64; cols], vec![1.0f64; cols]);
            for i in 0..n {
                let (w, b) = (stack.w[i], stack.b[i]);
                let c = b + w * self.turn(w, b);
                let limit = self.box_p(w, b);
                for (j, v) in [(i * k, stack.p[i]), (i * k + 1, stack.q[i])].into_iter().take(k - 2) {
                    unit[j] = radius * (2.0 * v.abs() + 0.2 * top);
                    (lower[j], upper[j]) =
                        (lower[j].max((-limit - v) / unit[j]).min(0.0), upper[j].min((limit - v) / unit[j]).max(0.0));
                }
                let j = i * k + k - 2;
                unit[j] = radius * (w.abs() + 0.3 / self.width());
                let (lo, hi) = self.box_w(w);
                (lower[j], upper[j]) =
                    (lower[j].max((lo - w) / unit[j]).min(0.0), upper[j].min((hi - w) / unit[j]).max(0.0));
                unit[j + 1] = radius * (1.0 + 0.5 * c.abs());
            }
            if self.constant {
                unit[cols - 1] = radius * (self.scale + 10.0 * error);
            }
            for row in jac.chunks_exact_mut(cols) {
                row.iter_mut().zip(&unit).for_each(|(j, u)| *j *= u);
            }
            let program = Program { n: cols, jacobian: std::mem::take(&mut jac), above, below, lower, upper };
            let Some(optimum) = program.solve() else {
                radius *= 0.25;
                if radius < 1e-9 {
                    break;
                }
                continue;
            };
            let step: Vec<f64> = optimum.x.iter().zip(&unit).map(|(x, u)| x * u).collect();
            jac = program.jacobian;
            let predicted = error - optimum.level;
            let mut trial = self.moved(&stack, &step);
            let mut trial_error = measure(&trial, points, &mut scratch);
            if trial_error > error - 0.5 * predicted {
                // The product terms p·w of the step are put right by solving for the linear parameters alone.
                if let Some(better) = self.linear_only(&trial, points, trial_error) {
                    let e = measure(&better, points, &mut scratch);
                    if e < trial_error {
                        (trial, trial_error) = (better, e);
                    }
                }
            }
            let gain = error - trial_error;
            if gain > 0.0 {
                if gain > 0.7 * predicted {
                    radius = (radius * 2.0).min(1.0);
                } else if gain < 0.25 * predicted {
                    radius *= 0.5;
                }
                stalled = if gain < tolerance * error { stalled + 1 } else { 0 };
                (stack, error, active) = (trial, trial_error, optimum.active);
            } else {
                radius *= 0.25;
            }
            if stalled >= 3 || radius < 1e-8 || predicted < 0.02 * tolerance * error {
                break;
            }
        }
        (stack, error, active)
    }

    /// The best p, q and constant near the stack's, w and b fixed.
    fn linear_only(&self, stack: &Stack, points: &Points, error: f64) -> Option<Stack> {
        let n = stack.w.len();
        let (k, cols) = (self.per_neuron(), self.variables(n));
        let linear: Vec<usize> = (0..cols).filter(|j| *j == n * k || j % k < k - 2).collect();
        let (mut jac, mut f) = (Vec::new(), Vec::new());
        self.jacobian(stack, points, HEAVY, &mut jac);
        let (above, below) = self.excess(stack, points, &mut f);
        let top = stack.p.iter().chain(&stack.q).fold(self.slope, |s, v| s.max(v.abs()));
        let (mut unit, mut lower, mut upper) = (Vec::new(), Vec::new(), Vec::new());
        for &j in &linear {
            if j == n * k {
                unit.push(self.scale + 10.0 * error);
                lower.push(-1.0);
                upper.push(1.0);
            } else {
                let v = if j % k == 0 { stack.p[j / k] } else { stack.q[j / k] };
                let limit = self.box_p(stack.w[j / k], stack.b[j / k]);
                let u = 0.3 * v.abs() + 0.05 * top;
                unit.push(u);
                lower.push(((-limit - v) / u).clamp(-1.0, 0.0));
                upper.push(((limit - v) / u).clamp(0.0, 1.0));
            }
        }
        let jacobian =
            jac.chunks_exact(cols).flat_map(|row| linear.iter().zip(&unit).map(|(&j, u)| row[j] * u)).collect();
        let optimum = Program { n: linear.len(), jacobian, above, below, lower, upper }.solve()?;
        let mut step = vec![0.0; cols];
        for ((j, x), u) in linear.iter().zip(&optimum.x).zip(&unit) {
            step[*j] = x * u;
        }
        Some(self.moved(stack, &step))
    }

    /// The error on the fine samples; its local maxima replace the points beyond the first `base`.
    fn exchange(&self, stack: &Stack, points: &mut Points, base: usize, fine: &Samples, scratch: &mut Vec<f64>) -> f64 {
        self.values(stack, &fine.points, HEAVY, scratch);
        let m = fine.points.z.len();
        let e = |i: usize| (scratch[i] - fine.points.hi[i]).max(fine.points.lo[i] - scratch[i]);
        let mut worst = 0.0f64;
        for (row, f) in scratch.iter().enumerate() {
            let (lo, hi) = self.hull(&fine.points, row, HEAVY);
            let v = (f - hi).max(lo - f);
            if v.is_nan() {
                return f64::INFINITY;
            }
            worst = worst.max(v);
        }
        // Keep what the last step bound too, or the points would cycle.
        let keep = base + 12 * (stack.w.len() + 2);
        if points.z.len() > keep {
            let excess = points.z.len() - keep;
            for v in [&mut points.z, &mut points.lo, &mut points.hi, &mut points.weight] {
                v.drain(base..base + excess);
            }
        }
        for i in 0..m {
            let v = e(i);
            let (left, right) = (if i > 0 { e(i - 1) } else { -1.0 }, if i + 1 < m { e(i + 1) } else { -1.0 });
            if v > 0.5 * worst && v >= left && v > right && !points.z[base..].contains(&fine.points.z[i]) {
                points.z.push(fine.points.z[i]);
                points.lo.push(fine.points.lo[i]);
                points.hi.push(fine.points.hi[i]);
                points.weight.push(1.0);
            }
        }
        worst
    }

    /// Makes the slopes at infinity exact to rounding by the least change of p; false where they cannot be.
    fn close(&self, stack: &mut Stack) -> bool {
        let rows: Vec<_> = self.infinite.iter().filter(|r| r.1 > 0).collect();
        if rows.is_empty() {
            return true;
        }
        let n = stack.w.len();
        for _ in 0..3 {
            // Row by row (Kaczmarz on orthogonalised rows), so that dependent rows do no harm.
            let mut basis: Vec<(Vec<f64>, f64)> = Vec::new();
            for &&(side, degree, target, _) in &rows {
                let parts: Vec<_> = (0..n).map(|i| self.at_infinity(stack, i, side, degree)).collect();
                let mut g: Vec<f64> = parts.iter().map(|v| v.1).collect();
                let size: f64 = g.iter().map(|v| v * v).sum::<f64>();
                let mut gap = target - parts.iter().map(|v| v.0).sum::<f64>();
                for (o, og) in &basis {
                    let dot: f64 = g.iter().zip(o).map(|(a, b)| a * b).sum();
                    g.iter_mut().zip(o).for_each(|(a, b)| *a -= dot * b);
                    gap -= dot * og;
                }
                let norm: f64 = g.iter().map(|v| v * v).sum::<f64>();
                if norm > 1e-16 * size && norm > 0.0 {
                    let s = norm.sqrt();
                    basis.push((g.iter().map(|v| v / s).collect(), gap / s));
                }
            }
            for (o, og) in &basis {
                stack.p.iter_mut().zip(o).for_each(|(p, v)| *p += og * v);
            }
        }
        let total: f64 = stack.p.iter().map(|p| p.abs()).sum::<f64>() + self.slope;
        rows.iter().all(|&&(side, degree, target, _)| {
            let sum: f64 = (0..n).map(|i| self.at_infinity(stack, i, side, degree).0).sum();
            (sum - target).abs() <= 1e-12 * total * if degree == 2 { self.max_weight } else { 1.0 }
        }) && stack.p.iter().all(|p| p.abs() <= self.max_out * (1.0 + 1e-9))
    }
}

/// (A + λ·diag A)·step = −gradient over the free variables, by Cholesky; `normal` holds the lower triangle.
fn solve_damped(normal: &[f64], gradient: &[f64], frozen: &[bool], lambda: f64, step: &mut [f64]) -> bool {
    let n = gradient.len();
    let mut l = normal.to_vec();
    let floor = (0..n).map(|i| normal[i * n + i]).fold(0.0, f64::max) * 1e-15 + 1e-290;
    for i in 0..n {
        if frozen[i] {
            for j in 0..n {
                l[i.max(j) * n + i.min(j)] = 0.0;
            }
            l[i * n + i] = 1.0;
        } else {
            l[i * n + i] += lambda * normal[i * n + i] + floor;
        }
    }
    for i in 0..n {
        for j in 0..=i {
            let mut s = l[i * n + j];
            for k in 0..j {
                s -= l[i * n + k] * l[j * n + k];
            }
            if i == j {
                if s <= 0.0 || s.is_nan() {
                    return false;
                }
                l[i * n + i] = s.sqrt();
            } else {
                l[i * n + j] = s / l[j * n + j];
            }
        }
    }
    for i in 0..n {
        let mut s = if frozen[i] { 0.0 } else { -gradient[i] };
        for k in 0..i {
            s -= l[i * n + k] * step[k];
        }
        step[i] = s / l[i * n + i];
    }
    for i in (0..n).rev() {
        let mut s = step[i];
        for k in i + 1..n {
            s -= l[k * n + i] * step[k];
        }
        step[i] = s / l[i * n + i];
    }
    step.iter().all(|v| v.is_finite())
}

/// One neuron of the dictionary with its values at the coarse points.
struct Atom {
    w: f64,
    b: f64,
    values: Vec<f64>,
}

/// Levels of the search: the elites of each number of neurons are the starts of the next.
pub(super) struct Search<'a> {
    pub model: Model<'a>,
    coarse: Points,
    fine: &'a Samples,
    atoms: Vec<Atom>,
    /// elites per number of neurons, best first: stack and coarse error
    levels: Vec<Vec<(Stack, f64)>>,
    /// the same per number of mirrored pairs
    paired: Vec<Vec<(Stack, f64)>>,
    random: Random,
}

impl<'a> Search<'a> {
    pub fn new(problem: &'a Problem<'a>, source: &'a Source, coarse: &Samples, fine: &'a Samples) -> Self {
        let model = Model::new(problem, source, fine);
        let coarse = coarse.points_only();
        let mut search = Search {
            model,
            coarse,
            fine,
            atoms: Vec::new(),
            levels: Vec::new(),
            paired: Vec::new(),
            random: Random::new(0x6e65_7572),
        };
        search.dictionary();
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
        search.paired.push(vec![(empty.clone(), error)]);
        search.levels.push(vec![(empty, error)]);
        search
    }

    /// Weights in geometric steps, knees over the core and a little beyond, both orientations; the steepest at the knots.
    fn dictionary(&mut self) {
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
        for &knot in m.problem.knots.iter().take(24) {
            for s in [1.0, 0.6, 0.3] {
                pairs.push((m.max_weight * s, knot));
                for d in [0.5, 1.0, 2.0] {
                    pairs.push((m.max_weight * s, knot + d / m.max_weight));
                    pairs.push((m.max_weight * s, knot - d / m.max_weight));
                }
            }
        }
        self.atoms = pairs
            .into_iter()
            .flat_map(|(w, t)| [(w, -w * t), (-w, w * t)])
            .map(|(w, b)| Atom { w, b, values: self.coarse.z.iter().map(|z| m.source.at(w * z + b).0).collect() })
            .collect();
    }

    /// Extends `base` by atoms that reduce its squared residual most, in groups of `group` (a mirrored pair for 2).
    fn extensions(&self, base: &Stack, group: usize, count: usize) -> Vec<Stack> {
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
        let mid = 0.5 * (m.core.0 + m.core.1);
        let known = q.len();
        let mut scored: Vec<(f64, usize)> = Vec::new();
        for (index, atom) in self.atoms.iter().enumerate() {
            if group == 2 && atom.w < 0.0 {
                continue;
            }
            q.truncate(known);
            let mut columns = vec![atom.values.clone()];
            if group == 2 {
                let b = atom.b + 2.0 * mid * atom.w;
                columns.push(points.z.iter().map(|z| m.source.at(b - atom.w * z).0).collect());
            }
            for c in columns {
                if m.linear_up {
                    push(c.iter().zip(&points.z).map(|(g, z)| g * z).collect(), &mut q);
                }
                push(c, &mut q);
            }
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
                if group == 2 {
                    s.push(-atom.w, atom.b + 2.0 * mid * atom.w, 0.0, 0.0);
                }
                self.outer(&mut s);
                s
            })
            .collect()
    }

    /// Ridge least squares for p, q and the constant.
    fn outer(&self, stack: &mut Stack) {
        let m = &self.model;
        let n = stack.w.len();
        let (k, cols) = (m.per_neuron(), m.variables(n));
        let (mut jac, mut f) = (Vec::new(), Vec::new());
        let heavy = 30.0;
        m.jacobian(stack, &self.coarse, heavy, &mut jac);
        m.values(stack, &self.coarse, heavy, &mut f);
        let mut normal = vec![0.0; cols * cols];
        let mut gradient = vec![0.0; cols];
        for (row, (j, f)) in jac.chunks_exact(cols).zip(&f).enumerate() {
            let (lo, hi) = m.hull(&self.coarse, row, heavy);
            let w = self.coarse.weight.get(row).copied().unwrap_or(1.0);
            let r = f - 0.5 * (lo + hi);
            for a in 0..cols {
                gradient[a] += w * j[a] * r;
                for b in 0..=a {
                    normal[a * cols + b] += w * j[a] * j[b];
                }
            }
        }
        let frozen: Vec<bool> = (0..cols).map(|j| j != n * k && j % k >= k - 2).collect();
        let mut step = vec![0.0; cols];
        if solve_damped(&normal, &gradient, &frozen, 1e-7, &mut step) {
            *stack = m.moved(stack, &step);
        }
    }

    /// Adds the elites of one more neuron. `extra` are starts from elsewhere.
    pub fn grow(&mut self, extra: Vec<Stack>) {
        let n = self.levels.len();
        let wide = n <= 6;
        let mut starts = extra;
        let mut jobs: Vec<(Stack, usize, usize)> = Vec::new();
        let take = if wide { 5 } else { 3 };
        for (s, _) in self.levels[n - 1].iter().take(take) {
            jobs.push((
                s.clone(),
                1,
                if n == 1 {
                    16
                } else if wide {
                    5
                } else {
                    4
                },
            ));
        }
        if n >= 3 && n % 2 == 1 {
            for (s, _) in self.levels[n - 2].iter().take(if wide { 2 } else { 1 }) {
                jobs.push((s.clone(), 2, 4));
            }
        }
        let grown: Vec<Vec<Stack>> =
            jobs.par_iter().map(|(s, group, count)| self.extensions(s, *group, *count)).collect();
        starts.extend(grown.into_iter().flatten());
        for _ in 0..if n == 1 {
            0
        } else if wide {
            12
        } else {
            4
        } {
            let mut s = Stack::default();
            for _ in 0..n {
                let atom = &self.atoms[self.random.below(self.atoms.len())];
                s.push(atom.w, atom.b, 0.0, 0.0);
            }
            self.outer(&mut s);
            starts.push(s);
        }
        let mut level = self.settle(starts, if wide { 8 } else { 5 });
        if n.is_multiple_of(2) {
            // A line of its own for stacks of mirrored pairs: symmetric targets often want them, and they grow only so.
            let pairs: Vec<Vec<Stack>> = self.paired[n / 2 - 1]
                .par_iter()
                .take(3)
                .map(|(s, _)| self.extensions(s, 2, if n == 2 { 12 } else { 5 }))
                .collect();
            let pairs = self.settle(pairs.into_iter().flatten().collect(), 5);
            level.extend(pairs.iter().cloned());
            level = distinct(&self.model, &self.coarse, level, 6);
            self.paired.push(pairs);
        }
        // Trade neurons: drop each of the best stacks' neurons in turn and grow another one.
        let settled = level.first().is_some_and(|b| b.1 <= 1e-8 * self.model.scale);
        if n >= 2 && !settled && (n <= 4 || n.is_multiple_of(2)) {
            let mut jobs: Vec<Stack> = Vec::new();
            for (s, _) in level.iter().take(if wide { 3 } else { 1 }) {
                for i in 0..n {
                    let mut t = s.clone();
                    for v in [&mut t.w, &mut t.b, &mut t.p, &mut t.q] {
                        v.remove(i);
                    }
                    self.outer(&mut t);
                    jobs.push(t);
                }
            }
            let traded: Vec<Vec<Stack>> = jobs.par_iter().map(|s| self.extensions(s, 1, 3)).collect();
            level.extend(self.settle(traded.into_iter().flatten().collect(), if wide { 6 } else { 4 }));
            level = distinct(&self.model, &self.coarse, level, 6);
        }
        self.levels.push(level);
    }

    /// Least squares from every start, then sequential linear programming for the `keep` best.
    fn settle(&self, starts: Vec<Stack>, keep: usize) -> Vec<(Stack, f64)> {
        let model = &self.model;
        let coarse = &self.coarse;
        let fitted: Vec<(Stack, f64)> = starts
            .into_par_iter()
            .map(|s| {
                let s = model.least_squares(s, coarse, 4);
                let e = model.error(&s, coarse, &mut Vec::new());
                (s, e)
            })
            .collect();
        let polished: Vec<(Stack, f64)> = distinct(model, coarse, fitted, keep)
            .into_par_iter()
            .map(|(s, _)| {
                let (s, e, _) = model.descend(s, &mut coarse.copy(), None, 14, 3e-3);
                (s, e)
            })
            .collect();
        distinct(model, coarse, polished, 6)
    }

    /// The best stack of the last level, polished on the fine samples: (stack, error there, alternations).
    pub fn finish(&mut self) -> Option<(Stack, f64, usize)> {
        let level = self.levels.last()?;
        let n = self.levels.len() - 1;
        let model = &mut self.model;
        if n == 0 {
            let mut stack = level[0].0.clone();
            let e = model.error(&stack, &self.fine.points, &mut Vec::new());
            return model.close(&mut stack).then_some((stack, e, 1));
        }
        let polish = |model: &Model, s: &Stack, steps: usize| {
            let (mut s, _, active) = model.descend(s.clone(), &mut self.coarse.copy(), Some(self.fine), steps, 2e-6);
            let ok = model.close(&mut s);
            let e = if ok { model.error(&s, &self.fine.points, &mut Vec::new()) } else { f64::INFINITY };
            (s, e, active)
        };
        let mut done: Vec<_> = level.par_iter().take(3).map(|(s, _)| polish(model, s, 60)).collect();
        done.sort_by(|a, b| a.1.total_cmp(&b.1));
        let mut best = done.into_iter().next()?;
        // Larger cancellation only where it pays.
        model.cancellation = 1e6;
        let wider = polish(model, &best.0, 20);
        model.cancellation = 1e3;
        if wider.1 < 0.999 * best.1 {
            best = wider;
        }
        if best.1.is_finite() {
            // The polished one leads the level that the next one grows from.
            let e = self.model.error(&best.0, &self.coarse, &mut Vec::new());
            if let Some(level) = self.levels.last_mut() {
                level.insert(0, (best.0.clone(), e));
                level.truncate(6);
            }
            Some(best)
        } else {
            None
        }
    }
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
