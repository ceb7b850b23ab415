//! Variable projection: least squares over the inner weights, the outer ones being solved for at every step.
//!
//! min over θ of ‖y − A(θ)A(θ)⁺y‖. With A = QR and the outer weights p, the residual r = y − QQᵀy has the derivative
//! −(I − QQᵀ)(∂A)p, up to a term that is small where r is (L. Kaufman, BIT 15, 1975; G. Golub, V. Pereyra, SIAM J. Numer.
//! Anal. 10, 1973). Reweighting towards the sup norm: C. L. Lawson (1961).
//!
//! Rows μ·p/w below A keep the outer weights small: they count where a valley is flat, and are raised where a limit binds.

use nalgebra::{DMatrix, DVector};

use super::model::{Model, Points, Stack};

/// Which neurons share their inner weights: neuron i has (s·w, t·b) of unit `members[i].0`, b being counted from `centre`.
#[derive(Clone, Debug)]
pub(super) struct Ties {
    /// unit, s, t
    members: Vec<(usize, f64, f64)>,
    /// units whose b stays 0
    centred: Vec<bool>,
    centre: f64,
}

impl Ties {
    /// Every neuron on its own.
    pub fn free(n: usize) -> Self {
        Ties { members: (0..n).map(|i| (i, 1.0, 1.0)).collect(), centred: vec![false; n], centre: 0.0 }
    }

    /// Pairs (w, b), (s·w, −s·b), mirror images about `centre`, and `single` neurons with their knees there; n − single is
    /// even.
    pub fn mirrored(n: usize, single: usize, centre: f64, s: f64) -> Self {
        let pairs = (n - single) / 2;
        let mut members: Vec<_> = (0..pairs).flat_map(|unit| [(unit, 1.0, 1.0), (unit, s, -s)]).collect();
        members.extend((0..single).map(|k| (pairs + k, 1.0, 1.0)));
        let centred = (0..pairs + single).map(|unit| unit >= pairs).collect();
        Ties { members, centred, centre }
    }

    pub fn units(&self) -> usize {
        self.centred.len()
    }

    /// The stack with these inner weights, b counted from the centre, and outer weights 0.
    pub fn stack(&self, units: &[(f64, f64)]) -> Stack {
        let mut stack = Stack::default();
        for &(unit, s, t) in &self.members {
            let (w, b) = units[unit];
            let b = if self.centred[unit] { 0.0 } else { b };
            stack.push(s * w, t * b - s * w * self.centre, 0.0, 0.0);
        }
        stack
    }

    fn units_of(&self, stack: &Stack) -> Vec<(f64, f64)> {
        let mut units = vec![(0.0, 0.0); self.units()];
        for (i, &(unit, s, t)) in self.members.iter().enumerate().rev() {
            let (w, b) = (stack.w[i], stack.b[i]);
            units[unit] = (s * w, t * (b + w * self.centre));
        }
        units
    }
}

/// Rows at infinity count this many core widths here.
const HEAVY: f64 = 30.0;
/// Times the target's size: with outer weights of 1,000 this row is 1e−4 of a value.
const RIDGE: f64 = 1e-7;
/// Where the rows make up this part of what is left, and no limit asks for them, they are made lighter.
const HELD: f64 = 0.1;
const LIGHTER: f64 = 0.03;
/// Times the target's size: what σ itself resolves.
const LEAST_RIDGE: f64 = 1e-13;

/// A(θ), factored, and what it leaves of y.
struct Projected {
    /// σ and σ′ of each neuron at the points
    jets: Vec<Vec<(f64, f64)>>,
    /// orthonormal columns
    q: Vec<Vec<f64>>,
    /// p (and q) of each neuron, then the constant
    outer: Vec<f64>,
    residual: Vec<f64>,
    cost: f64,
    rows: Rows,
}

/// What least squares asks of the rows: y, and the square root of a row's weight.
#[derive(Clone, PartialEq)]
struct Rows {
    target: Vec<f64>,
    weight: Vec<f64>,
}

struct Problem<'a> {
    model: &'a Model<'a>,
    points: &'a Points,
    ties: &'a Ties,
    /// square roots of the rows' weights
    weight: Vec<f64>,
    ridge: f64,
    /// does some row leave room between its bounds
    banded: bool,
}

impl Problem<'_> {
    fn linear(&self) -> usize {
        if self.model.linear_up { 2 } else { 1 }
    }

    fn rows(&self) -> usize {
        self.points.z.len() + self.model.infinite.len()
    }

    fn columns(&self, stack: &Stack, jets: &[Vec<(f64, f64)>], weight: &[f64]) -> Vec<Vec<f64>> {
        let (m, n, k) = (self.rows(), stack.w.len(), self.linear());
        let mut columns = Vec::with_capacity(n * k + 1);
        for i in 0..n {
            let (w, b) = (stack.w[i], stack.b[i]);
            let mut column = vec![0.0; m + n * k];
            for ((c, jet), s) in column.iter_mut().zip(&jets[i]).zip(weight) {
                *c = s * jet.0 / w;
            }
            let up = (k == 2).then(|| {
                let mut up = column.clone();
                up.iter_mut().zip(&self.points.z).for_each(|(c, z)| *c *= z);
                up[m + i * k + 1] = self.ridge * self.model.width() / w;
                up
            });
            self.at_infinity(&mut column, weight, |side, degree| self.model.at_infinity((w, b, 1.0), side, degree).1);
            column[m + i * k] = self.ridge / w;
            columns.push(column);
            columns.extend(up);
        }
        if self.model.constant {
            let mut column = vec![0.0; m + n * k];
            column[..self.points.z.len()].copy_from_slice(&weight[..self.points.z.len()]);
            self.at_infinity(&mut column, weight, |_, degree| if degree == 0 { 1.0 } else { 0.0 });
            columns.push(column);
        }
        columns
    }

    fn at_infinity(&self, column: &mut [f64], weight: &[f64], f: impl Fn(usize, usize) -> f64) {
        let base = self.points.z.len();
        for (r, &(side, degree, _, _)) in self.model.infinite.iter().enumerate() {
            column[base + r] = weight[base + r] * self.model.heavy(degree, HEAVY) * f(side, degree);
        }
    }

    /// The best outer weights, from the rows that `before` saw off their bounds. The squared distance from the bounds is convex
    /// and piecewise quadratic: Newton's method goes from one set of rows off their bounds to the next.
    fn project(&self, stack: &Stack, before: Option<&Projected>) -> Option<Projected> {
        /// How many sets of rows to try.
        const SETS: usize = 6;
        let at = |(w, b): (&f64, &f64)| self.points.z.iter().map(|z| self.model.source.at(w * z + b)).collect();
        let jets: Vec<Vec<(f64, f64)>> = stack.w.iter().zip(&stack.b).map(at).collect();
        let bounds = |row| self.model.hull(self.points, row, HEAVY);
        let middle = |row| 0.5 * (bounds(row).0 + bounds(row).1);
        let first = before.map(|p| p.rows.clone());
        let mut rows = first
            .unwrap_or_else(|| Rows { target: (0..self.rows()).map(middle).collect(), weight: self.weight.clone() });
        let mut best: Option<Projected> = None;
        for _ in 0..SETS {
            let mut next = self.factored(stack, &jets, &rows)?;
            if !self.banded {
                return Some(Projected { jets, ..next });
            }
            let values = self.values(stack, &jets, &next.outer);
            let mut seen = rows.clone();
            let mut cost: f64 = next.residual[self.rows()..].iter().map(|r| r * r).sum();
            for (row, f) in values.iter().enumerate() {
                let (lo, hi) = bounds(row);
                let inside = lo < hi && lo <= *f && *f <= hi;
                seen.target[row] = f.clamp(lo, hi);
                seen.weight[row] = if inside { 0.0 } else { self.weight[row] };
                cost += (self.weight[row] * (f - seen.target[row])).powi(2);
            }
            next.cost = cost;
            let settled = seen == rows;
            if best.as_ref().is_none_or(|b| cost < b.cost) {
                best = Some(next);
            }
            if settled {
                break;
            }
            rows = seen;
        }
        best.map(|b| Projected { jets, ..b })
    }

    /// f at the rows, as `Model::values` has it.
    fn values(&self, stack: &Stack, jets: &[Vec<(f64, f64)>], outer: &[f64]) -> Vec<f64> {
        let k = self.linear();
        let constant = if self.model.constant { outer[stack.w.len() * k] } else { 0.0 };
        let mut out = vec![constant; self.points.z.len()];
        for (i, jet) in jets.iter().enumerate() {
            let (p, q) = (outer[i * k] / stack.w[i], if k == 2 { outer[i * k + 1] / stack.w[i] } else { 0.0 });
            out.iter_mut().zip(&self.points.z).zip(jet).for_each(|((f, z), (v, _))| *f += (p + q * z) * v);
        }
        for &(side, degree, _, _) in &self.model.infinite {
            let of = |i: usize| self.model.at_infinity((stack.w[i], stack.b[i], outer[i * k]), side, degree).0;
            let sum: f64 = (0..stack.w.len()).map(of).sum::<f64>() + if degree == 0 { constant } else { 0.0 };
            out.push(sum * self.model.heavy(degree, HEAVY));
        }
        out
    }

    /// Gram–Schmidt, twice, then the residual.
    fn factored(&self, stack: &Stack, jets: &[Vec<(f64, f64)>], rows: &Rows) -> Option<Projected> {
        let columns = self.columns(stack, jets, &rows.weight);
        let count = columns.len();
        let mut r = vec![0.0; count * count];
        let mut q: Vec<Vec<f64>> = Vec::with_capacity(count);
        for (j, mut c) in columns.into_iter().enumerate() {
            for _ in 0..2 {
                for (i, o) in q.iter().enumerate() {
                    let d = dot(&c, o);
                    r[i * count + j] += d;
                    subtract(&mut c, d, o);
                }
            }
            let norm = dot(&c, &c).sqrt();
            if !(norm > 0.0 && norm.is_finite()) {
                return None;
            }
            r[j * count + j] = norm;
            c.iter_mut().for_each(|v| *v /= norm);
            q.push(c);
        }
        let mut residual: Vec<f64> = rows.target.iter().zip(&rows.weight).map(|(y, s)| y * s).collect();
        residual.resize(q.first().map_or(residual.len(), Vec::len), 0.0);
        let mut outer: Vec<f64> = Vec::with_capacity(count);
        for o in &q {
            let d = dot(&residual, o);
            subtract(&mut residual, d, o);
            outer.push(d);
        }
        for j in (0..count).rev() {
            outer[j] /= r[j * count + j];
            for i in 0..j {
                outer[i] -= r[i * count + j] * outer[j];
            }
        }
        let cost = dot(&residual, &residual);
        (cost.is_finite() && outer.iter().all(|v| v.is_finite())).then_some(Projected {
            jets: Vec::new(),
            q,
            outer,
            residual,
            cost,
            rows: rows.clone(),
        })
    }

    /// −∂r/∂(ln w, κ) of each unit, where b = κ − wτ and τ is the knee; also τ.
    fn derivatives(&self, stack: &Stack, units: &[(f64, f64)], p: &Projected) -> (Vec<Vec<f64>>, Vec<f64>) {
        let (m, k) = (self.rows(), self.linear());
        let total = p.residual.len();
        let core = self.model.core;
        let c0 = self.ties.centre;
        let knees: Vec<f64> = units.iter().map(|(w, b)| (-b / w).clamp(core.0 - c0, core.1 - c0)).collect();
        let mut out = vec![vec![0.0; total]; 2 * units.len()];
        for (i, &(unit, s, t)) in self.ties.members.iter().enumerate() {
            let (w, b, knee) = (stack.w[i], stack.b[i], knees[unit]);
            let (a, up) = (p.outer[i * k] / w, if k == 2 { p.outer[i * k + 1] / w } else { 0.0 });
            let [dw, dk] = &mut out[2 * unit..2 * unit + 2] else { unreachable!("two for each unit") };
            let size = units[unit].0;
            let rows = self.points.z.iter().zip(&p.rows.weight).zip(&p.jets[i]).zip(dw.iter_mut().zip(dk.iter_mut()));
            for (((z, weight), (v, d)), (dw, dk)) in rows {
                let amplitude = weight * (a + up * z);
                *dw += size * amplitude * (d * (s * (z - c0) - t * knee) - v * s / w);
                *dk += amplitude * d * t;
            }
            for (r, &(side, degree, _, _)) in self.model.infinite.iter().enumerate() {
                let j = self.points.z.len() + r;
                let (_, _, to_w, to_b) = self.model.at_infinity((w, b, p.outer[i * k]), side, degree);
                let weight = p.rows.weight[j] * self.model.heavy(degree, HEAVY);
                dw[j] += size * weight * (to_w * s - to_b * (t * knee + s * c0));
                dk[j] += weight * to_b * t;
            }
            dw[m + i * k] -= size * s * self.ridge * a / w;
        }
        for column in &mut out {
            for o in &p.q {
                let d = dot(column, o);
                subtract(column, d, o);
            }
        }
        (out, knees)
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    // Four sums at a time, which the compiler keeps in one register.
    let mut s = [0.0; 4];
    let (a4, b4) = (a.chunks_exact(4), b.chunks_exact(4));
    let rest: f64 = a4.remainder().iter().zip(b4.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a4.zip(b4) {
        for l in 0..4 {
            s[l] += x[l] * y[l];
        }
    }
    s[0] + s[1] + s[2] + s[3] + rest
}

fn subtract(a: &mut [f64], d: f64, b: &[f64]) {
    a.iter_mut().zip(b).for_each(|(x, y)| *x -= d * y);
}

impl Model<'_> {
    /// Least squares from the start's inner weights, at most `steps`, then `rounds` of reweighting towards the sup norm.
    pub fn least_squares(&self, start: &Stack, ties: &Ties, points: &Points, (steps, rounds): (usize, usize)) -> Stack {
        let weight: Vec<f64> =
            points.weight.iter().copied().chain(self.infinite.iter().map(|_| 1.0)).map(f64::sqrt).collect();
        let banded = (0..points.z.len()).any(|j| points.lo[j] < points.hi[j]);
        let ridge = RIDGE * self.scale * (points.z.len() as f64).sqrt();
        let mut problem = Problem { model: self, points, ties, weight, ridge, banded };
        let mut units = ties.units_of(start);
        let mut best = (start.clone(), f64::INFINITY);
        for round in 0..=rounds {
            let Some((stack, residual)) = problem.minimise(&mut units, if round == 0 { steps } else { 16 }) else {
                break;
            };
            let worst = residual.iter().zip(&problem.weight).take(points.z.len());
            let worst = worst.map(|(r, s)| (r / s).abs()).fold(0.0, f64::max);
            if worst < best.1 {
                best = (stack.clone(), worst);
            }
            if !(worst > 0.0) || round == rounds {
                break;
            }
            let mut sum = 0.0;
            for (r, s) in residual.iter().zip(&mut problem.weight).take(points.z.len()) {
                *s = (*s * (0.02 + (r / *s).abs() / worst).sqrt()).max(3e-5);
                sum += *s * *s;
            }
            let unit = (points.z.len() as f64 / sum).sqrt();
            problem.weight[..points.z.len()].iter_mut().for_each(|s| *s *= unit);
        }
        best.0
    }
}

impl Problem<'_> {
    /// Levenberg–Marquardt in ln w and κ; the stack with its outer weights, and the weighted residual.
    fn minimise(&mut self, units: &mut Vec<(f64, f64)>, steps: usize) -> Option<(Stack, Vec<f64>)> {
        let model = self.model;
        units.iter_mut().for_each(|u| *u = self.kept(*u));
        let mut current = self.project(&self.ties.stack(units), None)?;
        let cols = 2 * units.len();
        let (mut lambda, mut slow, mut raised) = (1e-2, 0, 0);
        let mut taken = 0;
        while taken < steps {
            taken += 1;
            let stack = self.with_outer(units, &current);
            // A limit on the outer weights that is overstepped asks for heavier rows.
            if raised < 6 && !model.within_limits(&stack) {
                self.ridge *= 12.0;
                raised += 1;
                current = self.project(&stack, Some(&current))?;
            }
            let (v, knees) = self.derivatives(&stack, units, &current);
            let gradient: Vec<f64> = v.iter().map(|c| -dot(c, &current.residual)).collect();
            let frozen: Vec<bool> = (0..cols)
                .map(|j| {
                    let w = units[j / 2].0.abs();
                    let outward =
                        (w >= model.max_weight && gradient[j] < 0.0) || (w <= model.min_weight && gradient[j] > 0.0);
                    if j % 2 == 0 { outward } else { self.ties.centred[j / 2] }
                })
                .collect();
            let triangle = Triangle::new(v, &frozen, &current.residual);
            let mut gain = 0.0;
            for tries in 0..7 {
                let Some(step) = triangle.step(&frozen, lambda) else {
                    lambda *= 10.0;
                    continue;
                };
                let trial: Vec<(f64, f64)> = (0..units.len())
                    .map(|u| {
                        let ((w, b), tau) = (units[u], knees[u]);
                        let kappa = b + w * tau;
                        let reach = 1.0 + 0.5 * kappa.abs();
                        let moved = w * step[2 * u].clamp(-0.7, 0.7).exp();
                        self.kept((moved, kappa + step[2 * u + 1].clamp(-reach, reach) - moved * tau))
                    })
                    .collect();
                let Some(next) = self.project(&self.ties.stack(&trial), Some(&current)) else {
                    lambda *= 10.0;
                    continue;
                };
                if next.cost < current.cost {
                    gain = 1.0 - next.cost / current.cost;
                    (*units, current) = (trial, next);
                    lambda =
                        (lambda * if tries == 0 && lambda < 1e-4 && !self.banded { 0.02 } else { 0.15 }).max(1e-24);
                    break;
                }
                lambda *= 8.0;
            }
            slow = if gain < 1e-3 { slow + 1 } else { 0 };
            if gain == 0.0 || slow >= 3 {
                // Rows that hold outer weights down for nothing give way; inside of a band what is left says nothing.
                let held: f64 = current.residual[self.rows()..].iter().map(|r| r * r).sum();
                if self.banded || raised > 0 || !(held > HELD * current.cost) || self.ridge < LEAST_RIDGE * model.scale
                {
                    break;
                }
                self.ridge *= LIGHTER;
                current = self.project(&self.ties.stack(units), Some(&current))?;
                (lambda, slow) = (1e-4, 0);
            }
        }
        Some((self.with_outer(units, &current), current.residual))
    }

    fn with_outer(&self, units: &[(f64, f64)], p: &Projected) -> Stack {
        let mut stack = self.ties.stack(units);
        let k = self.linear();
        for i in 0..stack.w.len() {
            stack.p[i] = p.outer[i * k];
            if k == 2 {
                stack.q[i] = p.outer[i * k + 1];
            }
        }
        if self.model.constant {
            stack.constant = p.outer[stack.w.len() * k];
        }
        stack
    }

    /// Inner weights within their limits.
    fn kept(&self, (w, b): (f64, f64)) -> (f64, f64) {
        let size = w.abs().clamp(self.model.min_weight, self.model.max_weight).copysign(w);
        let limit = self.model.box_b(size);
        // The knee stays where it was.
        (size, (b * size / w).clamp(-limit, limit))
    }
}

/// The derivatives in orthonormal columns times an upper triangle: small steps, which the normal equations would lose to
/// rounding, stay.
struct Triangle {
    r: DMatrix<f64>,
    /// what the columns hold of the residual
    rhs: DVector<f64>,
    sizes: Vec<f64>,
}

impl Triangle {
    fn new(mut columns: Vec<Vec<f64>>, frozen: &[bool], residual: &[f64]) -> Self {
        let n = columns.len();
        let (mut r, mut rhs) = (DMatrix::zeros(n, n), DVector::zeros(n));
        let sizes: Vec<f64> = columns.iter().map(|c| dot(c, c).sqrt()).collect();
        for j in (0..n).filter(|j| !frozen[*j]) {
            let (before, rest) = columns.split_at_mut(j);
            let column = &mut rest[0];
            for _ in 0..2 {
                for (i, o) in before.iter().enumerate().filter(|(i, _)| !frozen[*i]) {
                    let d = dot(column, o);
                    r[(i, j)] += d;
                    subtract(column, d, o);
                }
            }
            let norm = dot(column, column).sqrt();
            r[(j, j)] = norm;
            if norm > 0.0 {
                column.iter_mut().for_each(|v| *v /= norm);
            }
            rhs[j] = dot(column, residual);
        }
        Triangle { r, rhs, sizes }
    }

    /// The step s that minimises ‖residual − V·s‖² + λ·Σ(‖v_j‖·s_j)²; frozen variables stay.
    fn step(&self, frozen: &[bool], lambda: f64) -> Option<Vec<f64>> {
        let n = self.sizes.len();
        let top = self.sizes.iter().copied().fold(0.0, f64::max);
        let mut a = DMatrix::zeros(2 * n, n);
        a.view_mut((0, 0), (n, n)).copy_from(&self.r);
        for j in 0..n {
            a[(n + j, j)] = if frozen[j] { 1.0 } else { lambda.sqrt() * self.sizes[j] + 1e-15 * top + 1e-145 };
        }
        let mut b = DVector::zeros(2 * n);
        b.rows_mut(0, n).copy_from(&self.rhs);
        let qr = a.qr();
        qr.q_tr_mul(&mut b);
        let step = qr.unpack_r().solve_upper_triangular(&b.rows(0, n))?;
        step.iter().all(|v| v.is_finite()).then(|| step.iter().copied().collect())
    }
}
