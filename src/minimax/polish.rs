//! The last digits: Newton's method on the optimality conditions of the minimax problem, on the extremal points.
//!
//! At a local minimum x of max |e(z; x)| there are extrema z_k with signs s_k and multipliers λ_k ≥ 0, Σ λ_k = 1, with
//!
//! e(z_k; x) = s_k·E,    Σ λ_k s_k ∇e(z_k; x) = 0
//!
//! and as many free parameters as conditions. With more parameters than extrema linear programming crawls along a curved
//! valley; Newton's step sees its curvature: ∇²e along extrema that move, by finite differences of ∇e(z_k(x); x).

use nalgebra::{DMatrix, DVector};

use super::model::{HEAVY, Model, Points, Stack};
use super::samples::Samples;

/// A local maximum of the error: where, on which side of the hull (+1 above), and how far off.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extremum {
    pub z: f64,
    pub sign: f64,
    pub error: f64,
}

/// An extremum counts as reached by the largest error from here on.
const NEAR: f64 = 0.999;
/// Finite differences: relative step.
const STEP: f64 = 1e-3;

/// How often the error alternates between its largest and its least value: n + 2 times at the best approximation by n
/// parameters, if they are linear and form a Chebyshev system.
pub(super) fn alternations(extrema: &[Extremum]) -> usize {
    let worst = extrema.iter().map(|e| e.error).fold(0.0, f64::max);
    let mut signs: Vec<f64> = extrema.iter().filter(|e| e.error >= NEAR * worst).map(|e| e.sign).collect();
    signs.dedup();
    signs.len()
}

impl Model<'_> {
    /// Signed distance from the hull: (excess, side).
    fn off(&self, stack: &Stack, z: f64) -> (f64, f64) {
        let (lo, hi) = (self.problem.target)(z);
        let f = self.value(stack, z);
        if f - hi >= lo - f { (f - hi, 1.0) } else { (lo - f, -1.0) }
    }

    fn value(&self, stack: &Stack, z: f64) -> f64 {
        let neuron =
            |i: usize| (stack.p[i] + stack.q[i] * z) / stack.w[i] * self.source.at(stack.w[i] * z + stack.b[i]).0;
        stack.constant + (0..stack.w.len()).map(neuron).sum::<f64>()
    }

    /// The local maxima of the error that come within half of the largest, from left to right.
    pub fn extrema(&self, stack: &Stack, fine: &Samples) -> Vec<Extremum> {
        let mut f = Vec::new();
        let fine = fine.beside(self.problem, stack.inner());
        self.values(stack, &fine, HEAVY, &mut f);
        let m = fine.z.len();
        let e: Vec<f64> = (0..m).map(|i| (f[i] - fine.hi[i]).max(fine.lo[i] - f[i])).collect();
        let top = e.iter().copied().fold(0.0, f64::max);
        let mut found: Vec<Extremum> = Vec::new();
        for i in 0..m {
            let (l, r) = (i.saturating_sub(1), (i + 1).min(m - 1));
            // A summit may hide between two samples that are in their band.
            let highest = 2.0 * e[i] - e[l].min(e[r]);
            if !(highest > 0.5 * top) || e[l] > e[i] || r > i && e[r] >= e[i] {
                continue;
            }
            let mut at = (fine.z[i], e[i]);
            if l < i && i < r {
                at = self.summit(stack, fine.z[l], at, fine.z[r]);
            }
            if at.1 > 0.5 * top {
                found.push(Extremum { z: at.0, sign: self.off(stack, at.0).1, error: at.1 });
            }
        }
        found
    }

    /// The maximum in (l, r) by successive parabolas, never below where it started.
    fn summit(&self, stack: &Stack, mut l: f64, mut at: (f64, f64), mut r: f64) -> (f64, f64) {
        for _ in 0..4 {
            let (el, er) = (self.off(stack, l).0, self.off(stack, r).0);
            let (a, b) = (at.0 - l, r - at.0);
            let (sl, sr) = ((at.1 - el) / a, (er - at.1) / b);
            let z = 0.5 * (l + at.0) + 0.5 * (a + b) * sl / (sl - sr);
            if !(l < z && z < r) || z == at.0 {
                break;
            }
            let e = self.off(stack, z).0;
            let (near, far) = if z < at.0 { (z, at.0) } else { (at.0, z) };
            if e > at.1 {
                // The new point is the summit so far; the old one closes the bracket on its side.
                if z < at.0 {
                    r = far
                } else {
                    l = near
                }
                at = (z, e);
            } else if z < at.0 {
                l = z;
            } else {
                r = z;
            }
        }
        at
    }

    /// ∇e at z in (p, (q,) w, b) of each neuron and the constant.
    fn gradient(&self, stack: &Stack, z: f64) -> Vec<f64> {
        let mut out = Vec::new();
        for i in 0..stack.w.len() {
            let (w, b) = (stack.w[i], stack.b[i]);
            let (v, d) = self.source.at(w * z + b);
            let a = (stack.p[i] + stack.q[i] * z) / w;
            out.push(v / w);
            if self.linear_up {
                out.push(z * v / w);
            }
            out.extend([a * (z * d - v / w), a * d]);
        }
        if self.constant {
            out.push(1.0);
        }
        out
    }

    fn shifted(&self, stack: &Stack, step: &[f64]) -> Stack {
        let k = self.per_neuron();
        let mut s = stack.clone();
        for i in 0..s.w.len() {
            s.p[i] += step[i * k];
            if self.linear_up {
                s.q[i] += step[i * k + 1];
            }
            s.w[i] += step[i * k + k - 2];
            s.b[i] += step[i * k + k - 1];
        }
        if self.constant {
            s.constant += step[step.len() - 1];
        }
        s
    }

    /// The largest error: extrema, and what is asked for at infinity.
    pub fn supremum(&self, stack: &Stack, fine: &Samples) -> f64 {
        let none = Points { z: vec![], lo: vec![], hi: vec![], weight: vec![] };
        let far = self.error(stack, &none, &mut Vec::new());
        self.extrema(stack, fine).iter().map(|e| e.error).fold(far, f64::max)
    }

    /// Units of the parameters, and which of them a limit holds.
    fn scales(&self, stack: &Stack) -> (Vec<f64>, Vec<bool>) {
        let (mut unit, mut held) = (Vec::new(), Vec::new());
        let top = stack.p.iter().chain(&stack.q).fold(self.slope, |s, v| s.max(v.abs()));
        for i in 0..stack.w.len() {
            let (w, b) = (stack.w[i], stack.b[i]);
            let limit = (1.0 - 1e-9) * self.box_p(w, b);
            for v in [stack.p[i], stack.q[i]].into_iter().take(self.per_neuron() - 2) {
                unit.push(v.abs() + 0.05 * top);
                held.push(v.abs() >= limit);
            }
            unit.extend([w.abs() + 0.1 / self.width(), 1.0 + 0.3 * b.abs()]);
            held.extend([w.abs() >= (1.0 - 1e-12) * self.max_weight || w.abs() <= self.min_weight, false]);
        }
        if self.constant {
            unit.push(self.scale);
            held.push(false);
        }
        (unit, held)
    }

    /// Newton steps while they reduce the error.
    pub fn polish(&self, start: Stack, fine: &Samples, steps: usize) -> (Stack, f64) {
        let mut stack = start;
        let mut error = self.supremum(&stack, fine);
        // Rows at infinity and a total that binds are left to the linear programs.
        if !self.infinite.is_empty() || self.total(&stack) > 0.999 * self.max_total {
            return (stack, error);
        }
        let mut damping = 0.0;
        for _ in 0..steps {
            if !(error > 1e-14 * self.scale) || !error.is_finite() {
                break;
            }
            let before = error;
            let Some(system) = System::new(self, &stack, fine) else { break };
            for _ in 0..6 {
                let trial = system.step(damping).map(|step| self.shifted(&stack, &step));
                let trial = trial.filter(|t| self.allowed(t));
                let e = trial.as_ref().map_or(f64::INFINITY, |t| self.supremum(t, fine));
                if let (Some(trial), true) = (trial, e < error) {
                    (stack, error) = (trial, e);
                    damping = if damping < 1e-3 { 0.0 } else { 0.1 * damping };
                    break;
                }
                damping = if damping == 0.0 { 1e-3 } else { 10.0 * damping };
            }
            if !(error < before * (1.0 - 1e-9)) {
                break;
            }
        }
        (stack, error)
    }

    fn allowed(&self, stack: &Stack) -> bool {
        let weights = stack.w.iter().all(|w| (self.min_weight..=self.max_weight).contains(&w.abs()));
        weights && self.within_limits(stack) && stack.b.iter().all(|b| b.is_finite())
    }
}

/// The conditions at one stack, in scaled variables, those at a limit left out.
struct System {
    /// parameters that may move, and their units
    free: Vec<usize>,
    unit: Vec<f64>,
    /// rows s_k·∇e(z_k), in units
    rows: Vec<Vec<f64>>,
    errors: Vec<f64>,
    /// for each extremum, s_k·∇²e along it
    curvature: Vec<DMatrix<f64>>,
}

impl System {
    fn new(model: &Model, stack: &Stack, fine: &Samples) -> Option<Self> {
        let (unit, held) = model.scales(stack);
        let free: Vec<usize> = (0..unit.len()).filter(|j| !held[*j]).collect();
        let mut extrema = model.extrema(stack, fine);
        let worst = extrema.iter().map(|e| e.error).fold(0.0, f64::max);
        extrema.retain(|e| e.error >= 0.9 * worst);
        extrema.sort_by(|a, b| b.error.total_cmp(&a.error));
        // Of a symmetric stack there are up to twice as many as of conditions.
        extrema.truncate(2 * (free.len() + 1));
        let rows = |s: &Stack, e: &Extremum, z: f64| -> Vec<f64> {
            let g = model.gradient(s, z);
            free.iter().map(|&j| e.sign * g[j] * unit[j]).collect()
        };
        let n = free.len();
        let first: Vec<Vec<f64>> = extrema.iter().map(|e| rows(stack, e, e.z)).collect();
        let mut curvature = vec![DMatrix::zeros(n, n); extrema.len()];
        for (c, &j) in free.iter().enumerate() {
            let mut step = vec![0.0; unit.len()];
            step[j] = STEP * unit[j];
            let moved = model.shifted(stack, &step);
            for (k, e) in extrema.iter().enumerate() {
                let z = model.followed(&moved, e);
                for (r, (new, old)) in rows(&moved, e, z).iter().zip(&first[k]).enumerate() {
                    curvature[k][(r, c)] = (new - old) / STEP;
                }
            }
        }
        let errors = extrema.iter().map(|e| e.error).collect();
        (!extrema.is_empty()).then_some(System { free, unit, rows: first, errors, curvature })
    }

    /// The Newton step with ∇² + damping·E; extrema whose multipliers come out negative are let go.
    fn step(&self, damping: f64) -> Option<Vec<f64>> {
        let n = self.free.len();
        let mut kept: Vec<usize> = (0..self.rows.len()).collect();
        let mut weights = vec![1.0 / kept.len() as f64; self.rows.len()];
        let worst = self.errors.iter().copied().fold(0.0, f64::max);
        for _ in 0..8 {
            let m = kept.len();
            let size = n + 1 + m;
            let mut a = DMatrix::zeros(size, size);
            let mut b = DVector::zeros(size);
            let mut hessian = DMatrix::zeros(n, n);
            for &k in &kept {
                hessian += &self.curvature[k] * weights[k];
            }
            for i in 0..n {
                for j in 0..n {
                    a[(i, j)] = 0.5 * (hessian[(i, j)] + hessian[(j, i)]);
                }
                a[(i, i)] += damping * worst;
            }
            for (r, &k) in kept.iter().enumerate() {
                for i in 0..n {
                    a[(i, n + 1 + r)] = self.rows[k][i];
                    a[(n + 1 + r, i)] = self.rows[k][i];
                }
                a[(n, n + 1 + r)] = -1.0;
                a[(n + 1 + r, n)] = -1.0;
                b[n + 1 + r] = -self.errors[k];
            }
            b[n] = -1.0;
            let x = a.svd(true, true).solve(&b, 1e-13).ok()?;
            let multipliers: Vec<f64> = (0..m).map(|r| x[n + 1 + r]).collect();
            let (least, at) =
                multipliers.iter().zip(&kept).map(|(l, k)| (*l, *k)).min_by(|p, q| p.0.total_cmp(&q.0))?;
            if least < -1e-9 && kept.len() > 1 {
                kept.retain(|k| *k != at);
                continue;
            }
            let settled = kept.iter().zip(&multipliers).all(|(k, l)| (weights[*k] - l).abs() <= 0.1 * l.abs() + 1e-3);
            weights = vec![0.0; self.rows.len()];
            kept.iter().zip(&multipliers).for_each(|(k, l)| weights[*k] = *l);
            if !settled {
                continue;
            }
            let mut step = vec![0.0; self.unit.len()];
            for (i, &j) in self.free.iter().enumerate() {
                step[j] = x[i].clamp(-0.5, 0.5) * self.unit[j];
            }
            return step.iter().all(|v| v.is_finite()).then_some(step);
        }
        None
    }
}

impl Model<'_> {
    /// Where an extremum has gone after a small change; ends and knots stay.
    fn followed(&self, stack: &Stack, e: &Extremum) -> f64 {
        let h = 1e-3 * self.width();
        let (l, m, r) = (self.off(stack, e.z - h).0, self.off(stack, e.z).0, self.off(stack, e.z + h).0);
        let inside = e.z - h > self.core.0 && e.z + h < self.core.1;
        let curvature = (l - 2.0 * m + r) / (h * h);
        let slope = (r - l) / (2.0 * h);
        if !inside || !(curvature < 0.0) || slope.abs() > -curvature * h {
            return e.z;
        }
        e.z - slope / curvature
    }
}
