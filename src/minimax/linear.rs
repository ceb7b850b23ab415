//! The linear program of the exchange: least E with −E ≤ r + J·x ≤ E over a box, by a dense dual simplex.

/// min E subject to above_i + J_i·x ≤ E, below_i − J_i·x ≤ E, lower ≤ x ≤ upper.
///
/// `above` and `below` are f − hi and lo − f; for a plain target below = −above.
pub(super) struct Program {
    /// number of variables, E not counted
    pub n: usize,
    /// row-major, `above.len()` rows of `n`
    pub jacobian: Vec<f64>,
    pub above: Vec<f64>,
    pub below: Vec<f64>,
    pub lower: Vec<f64>,
    pub upper: Vec<f64>,
}

/// The minimiser as far as the pivots went, and the E of the rows that bind it: a lower bound of the program.
pub(super) struct Optimum {
    pub x: Vec<f64>,
    pub level: f64,
}

#[derive(Clone, Copy, PartialEq)]
enum Row {
    Above(usize),
    Below(usize),
    Upper(usize),
    Lower(usize),
}

struct Simplex<'a> {
    program: &'a Program,
    /// n + 1 binding rows; their matrix B has the columns x, E
    basis: Vec<Row>,
    /// B⁻¹, row-major
    inverse: Vec<f64>,
    /// y ≥ 0 with Σ y_k·(row k) = −(gradient of E)
    dual: Vec<f64>,
    /// (x, E), the vertex B·(x, E) = right-hand side
    vertex: Vec<f64>,
}

impl Program {
    fn row(&self, row: Row, out: &mut [f64]) -> f64 {
        let n = self.n;
        out.fill(0.0);
        match row {
            Row::Above(i) => {
                out[..n].copy_from_slice(&self.jacobian[i * n..(i + 1) * n]);
                out[n] = -1.0;
                -self.above[i]
            }
            Row::Below(i) => {
                for (o, j) in out.iter_mut().zip(&self.jacobian[i * n..(i + 1) * n]) {
                    *o = -j;
                }
                out[n] = -1.0;
                -self.below[i]
            }
            Row::Upper(j) => {
                out[j] = 1.0;
                self.upper[j]
            }
            Row::Lower(j) => {
                out[j] = -1.0;
                -self.lower[j]
            }
        }
    }

    /// Dual simplex: every basis is optimal for its own rows, so E only grows until no row is violated.
    pub fn solve(&self) -> Option<Optimum> {
        let (n, rows) = (self.n, self.above.len());
        if rows == 0 {
            return None;
        }
        let (mut first, mut worst) = (Row::Above(0), f64::NEG_INFINITY);
        for i in 0..rows {
            if self.above[i] > worst {
                (first, worst) = (Row::Above(i), self.above[i]);
            }
            if self.below[i] > worst {
                (first, worst) = (Row::Below(i), self.below[i]);
            }
        }
        // Dual feasible at once: y = 1 on the worst row (a, −1) and |a_j| on the box side that a pushes x_j towards.
        let mut a = vec![0.0; n + 1];
        self.row(first, &mut a);
        let mut simplex = Simplex {
            program: self,
            basis: (0..n).map(|j| if a[j] > 0.0 { Row::Lower(j) } else { Row::Upper(j) }).chain([first]).collect(),
            inverse: vec![0.0; (n + 1) * (n + 1)],
            dual: a[..n].iter().map(|v| v.abs()).chain([1.0]).collect(),
            vertex: vec![0.0; n + 1],
        };
        if !simplex.factor() {
            return None;
        }
        let limit = 60 + 12 * n;
        for pivot in 0..limit {
            let Some(row) = simplex.most_violated() else { break };
            if !simplex.exchange(row) {
                // The box is never empty and E is free, so only rounding leads here: start over from clean factors once.
                if !simplex.factor() || !simplex.exchange(row) {
                    break;
                }
            }
            if pivot % 48 == 47 && !simplex.factor() {
                break;
            }
        }
        let level = simplex.vertex[n];
        let mut x = simplex.vertex;
        x.truncate(n);
        if x.iter().any(|v| !v.is_finite()) || !level.is_finite() {
            return None;
        }
        for (v, (l, u)) in x.iter_mut().zip(self.lower.iter().zip(&self.upper)) {
            *v = v.clamp(*l, *u);
        }
        Some(Optimum { x, level })
    }
}

impl Simplex<'_> {
    /// B⁻¹ by Gauss–Jordan with partial pivoting, then the vertex.
    fn factor(&mut self) -> bool {
        let m = self.program.n + 1;
        let mut b = vec![0.0; m * m];
        let mut rhs = vec![0.0; m];
        for (k, row) in self.basis.iter().enumerate() {
            rhs[k] = self.program.row(*row, &mut b[k * m..(k + 1) * m]);
        }
        let inv = &mut self.inverse;
        inv.fill(0.0);
        for k in 0..m {
            inv[k * m + k] = 1.0;
        }
        for c in 0..m {
            let p = (c..m).max_by(|&i, &j| b[i * m + c].abs().total_cmp(&b[j * m + c].abs())).unwrap_or(c);
            if b[p * m + c].abs() < 1e-13 {
                return false;
            }
            if p != c {
                for k in 0..m {
                    b.swap(p * m + k, c * m + k);
                    inv.swap(p * m + k, c * m + k);
                }
            }
            let d = 1.0 / b[c * m + c];
            for k in 0..m {
                b[c * m + k] *= d;
                inv[c * m + k] *= d;
            }
            for i in 0..m {
                let f = b[i * m + c];
                if i != c && f != 0.0 {
                    for k in 0..m {
                        b[i * m + k] -= f * b[c * m + k];
                        inv[i * m + k] -= f * inv[c * m + k];
                    }
                }
            }
        }
        for i in 0..m {
            self.vertex[i] = (0..m).map(|k| inv[i * m + k] * rhs[k]).sum();
        }
        // Σ y_k·B_k = −e_E, so y = −(last row of B⁻¹), up to rounding.
        for k in 0..m {
            self.dual[k] = (-inv[(m - 1) * m + k]).max(0.0);
        }
        true
    }

    fn most_violated(&self) -> Option<Row> {
        let p = self.program;
        let n = p.n;
        let (x, level) = (&self.vertex[..n], self.vertex[n]);
        let mut best = (Row::Above(0), 0.0);
        // Box sides are in units of the trust region, residuals in those of E: bring both to a relative violation.
        let unit = 1.0 / level.abs().max(1e-300);
        for (i, j) in p.jacobian.chunks_exact(n.max(1)).enumerate() {
            let s: f64 = j.iter().zip(x).map(|(a, b)| a * b).sum();
            let (up, down) = (p.above[i] + s - level, p.below[i] - s - level);
            if up * unit > best.1 {
                best = (Row::Above(i), up * unit);
            }
            if down * unit > best.1 {
                best = (Row::Below(i), down * unit);
            }
        }
        if best.1 <= 1e-9 {
            best.1 = 0.0;
        }
        // A residual can wait while x is far outside the box, never the reverse: the box keeps the numbers small.
        let mut side = (Row::Upper(0), 1e-9);
        for (j, xj) in x.iter().enumerate() {
            let width = (p.upper[j] - p.lower[j]).max(1e-300);
            for (row, v) in [(Row::Upper(j), xj - p.upper[j]), (Row::Lower(j), p.lower[j] - xj)] {
                if v / width > side.1 {
                    side = (row, v / width);
                }
            }
        }
        let (row, relative) = if side.1 > 1e-9 && (best.1 == 0.0 || side.1 > 0.5) { side } else { best };
        (relative > 0.0).then_some(row)
    }

    /// Brings `row` into the basis; the ratio test y_k/α_k, with α·B = row, names the one that leaves.
    fn exchange(&mut self, row: Row) -> bool {
        let m = self.program.n + 1;
        let mut a = vec![0.0; m];
        let rhs = self.program.row(row, &mut a);
        let mut alpha = vec![0.0; m];
        for (i, ai) in a.iter().enumerate().filter(|(_, ai)| **ai != 0.0) {
            for (al, b) in alpha.iter_mut().zip(&self.inverse[i * m..(i + 1) * m]) {
                *al += ai * b;
            }
        }
        let size = alpha.iter().fold(0.0f64, |s, v| s.max(v.abs()));
        let floor = 1e-10 * size.max(1e-300);
        let ratio = |k: usize| self.dual[k].max(0.0) / alpha[k];
        let least = (0..m).filter(|&k| alpha[k] > floor).map(ratio).fold(f64::INFINITY, f64::min);
        if !least.is_finite() {
            return false;
        }
        // Among near ties the largest pivot keeps B⁻¹ accurate.
        let slack = least * (1.0 + 1e-9) + 1e-14;
        let Some(k) =
            (0..m).filter(|&k| alpha[k] > floor && ratio(k) <= slack).max_by(|&i, &j| alpha[i].total_cmp(&alpha[j]))
        else {
            return false;
        };
        let gap = rhs - a.iter().zip(&self.vertex).map(|(a, v)| a * v).sum::<f64>();
        let d = 1.0 / alpha[k];
        for (i, line) in self.inverse.chunks_exact_mut(m).enumerate() {
            let pivot = line[k] * d;
            if pivot != 0.0 {
                for (b, al) in line.iter_mut().zip(&alpha) {
                    *b -= al * pivot;
                }
            }
            line[k] = pivot;
            self.vertex[i] += pivot * gap;
        }
        let t = self.dual[k].max(0.0) * d;
        for (y, al) in self.dual.iter_mut().zip(&alpha) {
            *y -= t * al;
        }
        self.dual[k] = t;
        self.basis[k] = row;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_line_to_a_parabola() {
        // x² on [−1, 1]: best line is the constant 1/2 with error 1/2 (Chebyshev), touched at −1, 0, 1.
        let m = 201;
        let z: Vec<f64> = (0..m).map(|i| -1.0 + 2.0 * i as f64 / (m - 1) as f64).collect();
        let above: Vec<f64> = z.iter().map(|z| -z * z).collect();
        let program = Program {
            n: 2,
            jacobian: z.iter().flat_map(|z| [1.0, *z]).collect(),
            below: above.iter().map(|v| -v).collect(),
            above,
            lower: vec![-10.0; 2],
            upper: vec![10.0; 2],
        };
        let best = program.solve().unwrap();
        // The grid holds the three alternation points, so only rounding separates the two.
        assert!((best.level - 0.5).abs() < 1e-12 && (best.x[0] - 0.5).abs() < 1e-12 && best.x[1].abs() < 1e-12);
    }

    #[test]
    fn boxes_bind() {
        // As above with the constant held to at most 0.3: the error is 0.7 at the ends.
        let z: Vec<f64> = (0..=100).map(|i| -1.0 + f64::from(i) / 50.0).collect();
        let above: Vec<f64> = z.iter().map(|z| -z * z).collect();
        let program = Program {
            n: 2,
            jacobian: z.iter().flat_map(|z| [1.0, *z]).collect(),
            below: above.iter().map(|v| -v).collect(),
            above,
            lower: vec![-1.0; 2],
            upper: vec![0.3, 1.0],
        };
        let best = program.solve().unwrap();
        assert!((best.level - 0.7).abs() < 1e-12, "{}", best.level);
    }

    #[test]
    fn chebyshev_polynomial() {
        // Monic degree 8 on [−1, 1] has least sup norm 2^−7; a 4,001-point grid misses at most N⁴h²/8 ≈ 1.3e−4 of it.
        let m = 4001;
        let z: Vec<f64> = (0..m).map(|i| -1.0 + 2.0 * i as f64 / (m - 1) as f64).collect();
        let above: Vec<f64> = z.iter().map(|z| z.powi(8)).collect();
        let program = Program {
            n: 8,
            jacobian: z.iter().flat_map(|z| (0..8).map(|k| z.powi(k))).collect(),
            below: above.iter().map(|v| -v).collect(),
            above,
            lower: vec![-100.0; 8],
            upper: vec![100.0; 8],
        };
        let best = program.solve().unwrap();
        assert!((best.level * 128.0 - 1.0).abs() < 2e-4, "{}", best.level);
    }
}
