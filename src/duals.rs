//! The data of lower bounds: points, multipliers and chains that [`crate::lower`] then judges.
//!
//! Search in floating point; nothing it says is used as a bound. Multipliers solve the dual of the minimax problem,
//!
//! ```text
//! maximise Σ λ_j φ(z_j) − A·t   subject to   Σ|λ_j| ≤ 1, Σ λ_j = 0, |Σ_j λ_j g(z_j)| ≤ t for all g
//! ```
//!
//! a linear program, with the g of one stack (t = 0), or with those of all neurons within a weight limit, which are added where
//! they are violated (cutting planes).

use nalgebra::{DMatrix, DVector};

use crate::activation::Activation;
use crate::certify::Domain;
use crate::linear_program::{Row, minimise};
use crate::lower::{Family, Triple, Witness};
use crate::stack::Stack;

/// A slope, and the points q and p of the line that has it.
type Line = (f64, usize, usize);
/// A target in floating point.
type Target<'a> = &'a (dyn Fn(f64) -> f64 + Sync);

/// Points to look at: uniform on the part where things happen, clustered at knots, geometric towards infinity.
pub fn points(domain: Domain, knots: &[f64], count: usize) -> Vec<f64> {
    let furthest = knots.iter().fold(0.0f64, |s, k| s.max(k.abs()));
    let (a, b) = (domain.lo().max(-furthest - 16.0), domain.hi().min(furthest + 16.0));
    let mut z: Vec<f64> = (0..=count).map(|k| a + (b - a) * k as f64 / count as f64).collect();
    z.extend(knots.iter().filter(|k| a < **k && **k < b));
    // Half-way points next to knots, down to a thousandth of the spacing.
    let h = (b - a) / count as f64;
    z.extend(knots.iter().flat_map(|k| (0..10).flat_map(move |j| [k - h * 0.5f64.powi(j), k + h * 0.5f64.powi(j)])));
    let far = (1..=60).map(|k| 16.0 * (1.25f64.powi(k) - 1.0));
    if domain.lo() < a {
        z.extend(far.clone().map(|d| a - d));
    }
    if domain.hi() > b {
        z.extend(far.map(|d| b + d));
    }
    z.retain(|x| domain.contains(*x));
    z.sort_by(f64::total_cmp);
    z.dedup();
    z
}

// ------------------------------------------------------------------------------------------------------- polylines

/// A chain that proves much about polylines of at most `kinks` kinks; `None` where they fit. The points are a start.
pub fn chain(target: Target, points: &[f64], kinks: usize) -> Option<Vec<Triple>> {
    let mut points = points.to_vec();
    let (mut e, mut found) = best_chain(target, &points, kinks, None)?;
    for _ in 0..4 {
        // Closer points around those that count.
        let around = |z: f64| {
            let i = points.partition_point(|p| *p < z);
            let (l, r) = (points[i.saturating_sub(1)], points[(i + 1).min(points.len() - 1)]);
            (1..6).flat_map(move |k| [l, r].map(|end| z + (end - z) * f64::from(k) / 6.0))
        };
        let closer: Vec<f64> = found.iter().flat_map(|t| [t.q, t.p, t.e]).flat_map(around).collect();
        points.extend(closer);
        points.sort_by(f64::total_cmp);
        points.dedup();
        if let Some(better) = best_chain(target, &points, kinks, Some(e)) {
            (e, found) = better;
        }
    }
    Some(found)
}

/// By bisection on e; `proved`: an e that fewer points proved.
fn best_chain(target: Target, points: &[f64], kinks: usize, proved: Option<f64>) -> Option<(f64, Vec<Triple>)> {
    let values: Vec<f64> = points.iter().map(|z| target(*z)).collect();
    let size = values.iter().fold(0.0f64, |s, v| s.max(v.abs()));
    let (mut low, mut high) = proved.map_or((0.0, 2.0 * size), |e| (e, 1.05 * e));
    let mut best = None;
    for _ in 0..60 {
        if high - low <= 1e-8 * high {
            break;
        }
        let e = if high > 8.0 * low { (low.max(1e-15 * size) * high).sqrt() } else { 0.5 * (low + high) };
        match greedy(points, &values, e, kinks + 1) {
            Some(chain) => (low, best) = (e, Some((e, chain))),
            None => high = e,
        }
    }
    best
}

/// From left to right, the first three points that no line meets within e, then on from there, `count` times.
fn greedy(z: &[f64], f: &[f64], e: f64, count: usize) -> Option<Vec<Triple>> {
    let mut chain = Vec::with_capacity(count);
    // Points that bound the current line from above and from below.
    let (mut above, mut below): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
    // The steepest line still possible, and the least steep: slope, the points q, p.
    let (mut most, mut least): (Option<Line>, Option<Line>) = (None, None);
    let mut i = 0;
    while i < z.len() {
        let over = most.filter(|(m, _, p)| f[i] - e > f[*p] + e + m * (z[i] - z[*p]));
        let under = least.filter(|(m, _, p)| f[i] + e < f[*p] - e + m * (z[i] - z[*p]));
        if let Some(((_, q, p), sign)) = over.map(|t| (t, 1.0)).or(under.map(|t| (t, -1.0))) {
            chain.push(Triple { sign, q: z[q], p: z[p], e: z[i] });
            if chain.len() == count {
                return Some(chain);
            }
            (above, below) = if sign > 0.0 { (vec![p], vec![]) } else { (vec![], vec![p]) };
            (most, least) = (None, None);
        }
        for &q in &below {
            let slope = (f[i] + e - (f[q] - e)) / (z[i] - z[q]);
            if most.is_none_or(|m| slope < m.0) {
                most = Some((slope, q, i));
            }
        }
        for &q in &above {
            let slope = (f[i] - e - (f[q] + e)) / (z[i] - z[q]);
            if least.is_none_or(|m| slope > m.0) {
                least = Some((slope, q, i));
            }
        }
        above.push(i);
        below.push(i);
        i += 1;
    }
    None
}

// ----------------------------------------------------------------------------------------------------- multipliers

/// Multipliers for a stack's inner weights: as if its outer weights had no limits.
pub fn given_inner(target: Target, stack: &Stack<f64>, points: &[f64]) -> Option<Witness> {
    let error = |z: f64| stack.value(z) - target(z);
    let e: Vec<f64> = points.iter().map(|z| error(*z)).collect();
    let worst = e.iter().fold(0.0f64, |s, v| s.max(v.abs()));
    // Extrema of the error carry the multipliers of the best outer weights; where the stack's are not those, others may.
    let extreme = |i: usize| {
        let near = |k: usize| e.get(k).is_none_or(|v| v.abs() <= e[i].abs() || v * e[i] < 0.0);
        e[i].abs() > 0.3 * worst && (i == 0 || near(i - 1)) && near(i + 1)
    };
    let step = (points.len() / 150).max(1);
    let chosen: Vec<f64> = (0..points.len()).filter(|&i| i % step == 0 || extreme(i)).map(|i| points[i]).collect();
    let phi: Vec<f64> = chosen.iter().map(|z| target(*z)).collect();
    let columns: Vec<Vec<f64>> = std::iter::once(vec![1.0; chosen.len()])
        .chain(stack.neurons.iter().map(|n| {
            let hidden = |z: &f64| stack.source.value(n.weight * z + n.bias) * n.up.map_or(1.0, |(w, b)| w * z + b);
            chosen.iter().map(hidden).collect()
        }))
        .collect();
    let basis = orthonormal(&columns);
    let lambda = solve(&phi, &basis, &[], 0.0)?.0;
    // Only the larger ones, put right so that they annihilate the columns to the last digit.
    let largest = lambda.iter().fold(0.0f64, |s, l| s.max(l.abs()));
    let kept: Vec<usize> = (0..lambda.len()).filter(|j| lambda[*j].abs() > 1e-6 * largest).collect();
    let reduced: Vec<Vec<f64>> = columns.iter().map(|c| kept.iter().map(|j| c[*j]).collect()).collect();
    let mut multipliers = DVector::from_iterator(kept.len(), kept.iter().map(|j| lambda[*j]));
    for _ in 0..3 {
        for q in orthonormal(&reduced) {
            let q = DVector::from_vec(q);
            let part = q.dot(&multipliers);
            multipliers -= q * part;
        }
    }
    Some(witness(kept.iter().map(|j| chosen[*j]), multipliers.iter().copied()))
}

/// Multipliers against every stack of a family.
pub fn all_stacks(target: Target, source: &Activation, family: Family, points: &[f64]) -> Option<Witness> {
    /// Steps of the grid of neurons over w and over b.
    const GRID: (usize, usize) = (48, 160);
    const ROUNDS: usize = 40;
    let phi: Vec<f64> = points.iter().map(|z| target(*z)).collect();
    let reach = points.iter().fold(0.0f64, |s, z| s.max(z.abs()));
    let w_max = family.max_weight;
    let response = |(w, b): (f64, f64)| -> Vec<f64> { points.iter().map(|z| source.value(w * z + b)).collect() };
    // Knees at every point, slopes in equal and in geometric steps.
    let weights = (1..=GRID.0).flat_map(|k| {
        let w = w_max * k as f64 / GRID.0 as f64;
        [w, -w]
    });
    let grid: Vec<(f64, f64)> = weights
        .flat_map(|w| {
            let edge = w.abs() * reach.min(32.0) + 8.0;
            (0..=GRID.1).map(move |k| (w, -edge + 2.0 * edge * k as f64 / GRID.1 as f64))
        })
        .collect();
    let atoms: Vec<Vec<f64>> = {
        use rayon::prelude::*;
        grid.par_iter().map(|p| response(*p)).collect()
    };
    let ones = orthonormal(&[vec![1.0; points.len()]]);
    let mut rows: Vec<Vec<f64>> = grid.iter().step_by(97).map(|p| response(*p)).collect();
    let mut best: Option<(f64, Vec<f64>)> = None;
    for _ in 0..ROUNDS {
        let (lambda, t) = solve(&phi, &ones, &rows, family.max_total)?;
        let value = |g: &[f64]| g.iter().zip(&lambda).map(|(g, l)| g * l).sum::<f64>();
        let mut violated: Vec<(f64, usize)> = {
            use rayon::prelude::*;
            atoms.par_iter().enumerate().map(|(k, g)| (value(g).abs(), k)).collect()
        };
        violated.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        // The best neurons of the grid, moved to where they do most.
        let mut added: Vec<(f64, f64)> = Vec::new();
        let mut sup = violated[0].0;
        for (_, k) in violated.iter().take(400) {
            let (w, b) = grid[*k];
            let near = |p: &&(f64, f64)| (p.0 - w).abs() < 0.06 * w_max && (p.1 - b).abs() < 0.6;
            if added.iter().find(near).is_some() {
                continue;
            }
            let (s, at) = climbed((w, b), w_max, |p| value(&response(p)).abs());
            sup = sup.max(s);
            if s > t * (1.0 + 1e-4) {
                added.push(at);
            }
            if added.len() == 16 {
                break;
            }
        }
        let proved = phi.iter().zip(&lambda).map(|(f, l)| f * l).sum::<f64>() - family.max_total * sup;
        if best.as_ref().is_none_or(|b| proved > b.0) {
            best = Some((proved, lambda));
        }
        if added.is_empty() || sup <= t * (1.0 + 1e-3) {
            break;
        }
        rows.extend(added.into_iter().map(response));
    }
    let (_, lambda) = best?;
    let largest = lambda.iter().fold(0.0f64, |s, l| s.max(l.abs()));
    let kept: Vec<usize> = (0..lambda.len()).filter(|j| lambda[*j].abs() > 1e-7 * largest).collect();
    Some(witness(kept.iter().map(|j| points[*j]), kept.iter().map(|j| lambda[*j])))
}

/// Pattern search for a local maximum over w and b.
fn climbed(start: (f64, f64), w_max: f64, f: impl Fn((f64, f64)) -> f64) -> (f64, (f64, f64)) {
    let (mut at, mut best) = (start, f(start));
    let mut step = (0.02 * w_max, 0.2);
    while step.1 > 1e-4 {
        let moves = [(step.0, 0.0), (-step.0, 0.0), (0.0, step.1), (0.0, -step.1)];
        let next = moves
            .into_iter()
            .map(|(dw, db)| ((at.0 + dw).clamp(-w_max, w_max), at.1 + db))
            .map(|p| (f(p), p))
            .max_by(|a, b| a.0.total_cmp(&b.0));
        match next {
            Some((v, p)) if v > best => (best, at) = (v, p),
            _ => step = (0.5 * step.0, 0.5 * step.1),
        }
    }
    (best, at)
}

/// maximise φᵀλ − A·t, Σ|λ| ≤ 1, q·λ = 0 for the `equal`, |g·λ| ≤ t for the `rows`: (λ, t).
fn solve(phi: &[f64], equal: &[Vec<f64>], rows: &[Vec<f64>], total: f64) -> Option<(Vec<f64>, f64)> {
    let m = phi.len();
    // Variables λ⁺, λ⁻ ≥ 0 and t.
    let split = |g: &[f64], sign: f64, t: f64| -> Vec<f64> {
        g.iter().map(|x| sign * x).chain(g.iter().map(|x| -sign * x)).chain([t]).collect()
    };
    let equal: Vec<Row> = equal.iter().map(|q| (split(q, 1.0, 0.0), 0.0)).collect();
    let mut sum = vec![1.0; 2 * m + 1];
    sum[2 * m] = 0.0;
    let mut limits: Vec<Row> = vec![(sum, 1.0)];
    limits.extend(rows.iter().flat_map(|g| [(split(g, 1.0, -1.0), 0.0), (split(g, -1.0, -1.0), 0.0)]));
    let objective: Vec<f64> = phi.iter().map(|f| -f).chain(phi.iter().copied()).chain([total]).collect();
    // Short of the optimum the multipliers still prove something.
    let x = minimise(&objective, &equal, &limits)?;
    Some(((0..m).map(|j| x[j] - x[m + j]).collect(), x[2 * m].max(0.0)))
}

/// An orthonormal basis of the columns: raw ones mislead solvers.
fn orthonormal(columns: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let (rows, count) = (columns[0].len(), columns.len());
    let matrix = DMatrix::from_fn(rows, count, |i, j| {
        let size = columns[j].iter().fold(1e-300f64, |s, v| s.max(v.abs()));
        columns[j][i] / size
    });
    let q = matrix.qr().q();
    q.column_iter().map(|c| c.iter().copied().collect()).collect()
}

/// The multipliers in multiples of 2^−50, where they add up to 0 exactly.
fn witness(points: impl Iterator<Item = f64>, multipliers: impl Iterator<Item = f64>) -> Witness {
    let unit = 2f64.powi(50);
    let mut whole: Vec<f64> = multipliers.map(|l| (l * unit).round()).collect();
    // Sums of whole numbers below 2^53 are exact.
    let rest: f64 = whole.iter().sum();
    if let Some(largest) = whole.iter_mut().max_by(|a, b| a.abs().total_cmp(&b.abs())) {
        *largest -= rest;
    }
    Witness { points: points.collect(), multipliers: whole.iter().map(|l| l / unit).collect() }
}
