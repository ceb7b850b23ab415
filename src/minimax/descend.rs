//! Sequential linear programming for the minimax problem, from a stack that is near.
//!
//! K. Madsen, "An algorithm for minimax solution of overdetermined systems of non-linear equations", J. Inst. Maths
//! Applics 16 (1975). At a strongly unique minimum, which alternates as often as there are parameters, the steps are Newton's.

use super::linear::Program;
use super::model::{HEAVY, Model, Points, Stack};
use super::samples::Samples;

impl Model<'_> {
    /// Sequential linear programming on `points`, judged on `judge`; stops on relative gains below `tolerance`.
    pub fn descend(
        &self,
        start: Stack,
        points: &mut Points,
        judge: Option<&Samples>,
        steps: usize,
        tolerance: f64,
    ) -> (Stack, f64) {
        let n = start.w.len();
        let (k, cols) = (self.per_neuron(), self.variables(n));
        let mut scratch = Vec::new();
        let mut stack = self.moved(&start, &[]);
        let base = points.z.len();
        let measure = |s: &Stack, points: &mut Points, scratch: &mut Vec<f64>| match judge {
            None => self.error(s, points, scratch),
            Some(fine) => self.exchange(s, points, base, fine, scratch),
        };
        let mut error = measure(&stack, points, &mut scratch);
        let mut radius = 0.25;
        let mut stalled = 0;
        let mut jac = Vec::new();
        for _ in 0..steps {
            if error <= 1e-15 * self.scale || !error.is_finite() {
                break;
            }
            self.jacobian(&stack, points, HEAVY, &mut jac);
            let (mut above, mut below) = self.excess(&stack, points, &mut scratch);
            self.bound_total(&stack, &mut jac, &mut above, &mut below);
            // Each variable in units of its own trust region.
            let top = stack.p.iter().chain(&stack.q).fold(self.slope, |s, v| s.max(v.abs()));
            let mut unit = vec![0.0; cols];
            let (mut lower, mut upper) = (vec![-1.0f64; cols], vec![1.0f64; cols]);
            for i in 0..n {
                let (w, b) = (stack.w[i], stack.b[i]);
                let c = b + w * self.turn(w, b);
                let limit = self.box_p(w, b);
                for (j, v) in [(i * k, stack.p[i]), (i * k + 1, stack.q[i])].into_iter().take(k - 2) {
                    // |out| is linear on one side of 0 only; what is small may change sides.
                    let one_sided = (v / w).abs() > 1e-3 * self.max_total;
                    unit[j] = radius * (2.0 * v.abs() + 0.2 * top);
                    (lower[j], upper[j]) =
                        (lower[j].max((-limit - v) / unit[j]).min(0.0), upper[j].min((limit - v) / unit[j]).max(0.0));
                    if one_sided {
                        let zero = -v / unit[j];
                        if v > 0.0 { lower[j] = lower[j].max(zero) } else { upper[j] = upper[j].min(zero) }
                    }
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
                (stack, error) = (trial, trial_error);
            } else {
                radius *= 0.25;
            }
            if stalled >= 3 || radius < 1e-8 || predicted < 0.02 * tolerance * error {
                break;
            }
        }
        (stack, error)
    }

    /// One more row of the linear program: Σ|out|, where it is limited, as a bound on p and w.
    fn bound_total(&self, stack: &Stack, jac: &mut Vec<f64>, above: &mut Vec<f64>, below: &mut Vec<f64>) {
        if self.max_total.is_infinite() {
            return;
        }
        let (n, k) = (stack.w.len(), self.per_neuron());
        let base = jac.len();
        jac.resize(base + self.variables(n), 0.0);
        let unit = HEAVY * self.scale / self.max_total;
        for i in 0..n {
            let (p, q, w) = (stack.p[i], stack.q[i], stack.w[i]);
            let (j, v) = if q.abs() > p.abs() { (1, q) } else { (0, p) };
            let sign = if v < 0.0 { -1.0 } else { 1.0 };
            jac[base + i * k + j] = unit * sign / w.abs();
            jac[base + i * k + k - 2] = -unit * v.abs() / (w.abs() * w);
        }
        above.push(self.excess_total(stack));
        // The row has one side.
        below.push(f64::NEG_INFINITY);
    }

    /// The best p, q and constant near the stack's, w and b fixed.
    fn linear_only(&self, stack: &Stack, points: &Points, error: f64) -> Option<Stack> {
        let n = stack.w.len();
        let (k, cols) = (self.per_neuron(), self.variables(n));
        let linear: Vec<usize> = (0..cols).filter(|j| *j == n * k || j % k < k - 2).collect();
        let (mut jac, mut f) = (Vec::new(), Vec::new());
        self.jacobian(stack, points, HEAVY, &mut jac);
        let (mut above, mut below) = self.excess(stack, points, &mut f);
        self.bound_total(stack, &mut jac, &mut above, &mut below);
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
    pub fn exchange(
        &self,
        stack: &Stack,
        points: &mut Points,
        base: usize,
        fine: &Samples,
        scratch: &mut Vec<f64>,
    ) -> f64 {
        let fine = fine.beside(self.problem, stack.inner());
        self.values(stack, &fine, HEAVY, scratch);
        let m = fine.z.len();
        let e = |i: usize| (scratch[i] - fine.hi[i]).max(fine.lo[i] - scratch[i]);
        let mut worst = self.excess_total(stack).max(0.0);
        for (row, f) in scratch.iter().enumerate() {
            let (lo, hi) = self.hull(&fine, row, HEAVY);
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
            if v > 0.5 * worst && v >= left && v > right && !points.z[base..].contains(&fine.z[i]) {
                points.z.push(fine.z[i]);
                points.lo.push(fine.lo[i]);
                points.hi.push(fine.hi[i]);
                points.weight.push(1.0);
            }
        }
        worst
    }

    /// Makes the slopes at infinity exact to rounding by the least change of p; false where they cannot be.
    pub fn close(&self, stack: &mut Stack) -> bool {
        let rows: Vec<_> = self.infinite.iter().filter(|r| r.1 > 0).collect();
        if rows.is_empty() {
            return true;
        }
        let n = stack.w.len();
        for _ in 0..3 {
            // Row by row (Kaczmarz on orthogonalised rows), so that dependent rows do no harm.
            let mut basis: Vec<(Vec<f64>, f64)> = Vec::new();
            for &&(side, degree, target, _) in &rows {
                let parts: Vec<_> = (0..n).map(|i| self.at_infinity(stack.neuron(i), side, degree)).collect();
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
            let sum: f64 = (0..n).map(|i| self.at_infinity(stack.neuron(i), side, degree).0).sum();
            (sum - target).abs() <= 1e-12 * total * if degree == 2 { self.max_weight } else { 1.0 }
        }) && stack.p.iter().all(|p| p.abs() <= self.max_out * (1.0 + 1e-9))
    }
}
