//! Linear programs over variables that are not negative, by an interior-point method.
//!
//! Search in floating point: nothing it says is used as a bound.

use clarabel::algebra::CscMatrix;
use clarabel::solver::{DefaultSettingsBuilder, DefaultSolver, IPSolver, NonnegativeConeT, SolverStatus, ZeroConeT};

/// A dense row and its right-hand side.
pub type Row = (Vec<f64>, f64);

/// minimise ⟨objective, x⟩ subject to row·x = b for the `equal`, row·x ≤ b for the `limits`, x ≥ 0; `None` if the solver found nothing.
/// Where it stopped short of the optimum, so does x.
pub fn minimise(objective: &[f64], equal: &[Row], limits: &[Row]) -> Option<Vec<f64>> {
    let n = objective.len();
    let dense = equal.len() + limits.len();
    let rows = || equal.iter().chain(limits);
    let mut b: Vec<f64> = rows().map(|row| row.1).collect();
    b.resize(dense + n, 0.0);
    // Column by column: the dense rows, then −x ≤ 0.
    let (mut starts, mut at, mut values) = (vec![0], Vec::new(), Vec::new());
    for j in 0..n {
        for (i, (row, _)) in rows().enumerate().filter(|(_, (row, _))| row[j] != 0.0) {
            at.push(i);
            values.push(row[j]);
        }
        at.push(dense + j);
        values.push(-1.0);
        starts.push(at.len());
    }
    let constraints = CscMatrix::new(dense + n, n, starts, at, values);
    let cones = [ZeroConeT(equal.len()), NonnegativeConeT(limits.len() + n)];
    let settings = DefaultSettingsBuilder::default().verbose(false).max_threads(1).build().ok()?;
    let nothing = CscMatrix::<f64>::zeros((n, n));
    let mut solver = DefaultSolver::new(&nothing, objective, &constraints, &b, &cones, settings).ok()?;
    solver.solve();
    let usable = matches!(
        solver.solution.status,
        SolverStatus::Solved
            | SolverStatus::AlmostSolved
            | SolverStatus::InsufficientProgress
            | SolverStatus::MaxIterations
    );
    let x = &solver.solution.x;
    (usable && x.iter().all(|v| v.is_finite())).then(|| x.clone())
}

#[cfg(test)]
mod tests {
    use super::minimise;

    /// max x + y, x + 2y ≤ 4, 3x + y ≤ 6: at (1.6, 1.2). With x = y: at (4/3, 4/3).
    #[test]
    fn a_textbook_program() {
        let limits = [(vec![1.0, 2.0], 4.0), (vec![3.0, 1.0], 6.0)];
        let near = |x: Option<Vec<f64>>, y: [f64; 2]| {
            // The solver's tolerance is 1e-8.
            x.is_some_and(|x| x.iter().zip(y).all(|(a, b)| (a - b).abs() < 1e-6))
        };
        assert!(near(minimise(&[-1.0, -1.0], &[], &limits), [1.6, 1.2]));
        assert!(near(minimise(&[-1.0, -1.0], &[(vec![1.0, -1.0], 0.0)], &limits), [4.0 / 3.0, 4.0 / 3.0]));
        assert!(minimise(&[1.0], &[(vec![1.0], -1.0)], &[]).is_none());
    }
}
