//! A block beside the intervention that it stands for, on given residuals: what the error really is.

use nalgebra::DMatrix;

use crate::compile::{Compiled, PreActivation, Target};
use crate::error::Result;
use crate::eval::value;

/// What was seen on a batch of residuals, in f64.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// tokens looked at
    pub tokens: usize,
    /// tokens on which some response that can be 0 is not
    pub active: usize,
    /// pre-activations within δ (and what the rows are off by) of a jump
    pub in_band: usize,
    /// tokens beyond the norm or a range of pre-activations: nothing is certified there, and they do not count below
    pub excluded: usize,
    /// largest ‖block − intervention‖ over tokens off all bands
    pub largest: f64,
    /// the certified bound for it
    pub bound: Option<f64>,
}

/// Applies the block and the intervention to residuals [d, tokens], both in f64.
///
/// Error: a response that cannot be evaluated (the compiled ones can).
pub fn observe(target: &Target, compiled: &Compiled, x: &DMatrix<f64>) -> Result<Observation> {
    let written = compiled.forward(x);
    let mut wanted = DMatrix::zeros(x.nrows(), x.ncols());
    let (mut active, mut banded, mut outside) =
        (vec![false; x.ncols()], vec![false; x.ncols()], vec![false; x.ncols()]);
    let mut in_band = 0;
    for r in &target.responses {
        // Constants are functions of a pre-activation that nobody gave.
        let pre = |t: usize| -> Vec<f64> {
            let value = |p: &PreActivation| p.b + p.w.iter().zip(x.column(t).iter()).map(|(a, b)| a * b).sum::<f64>();
            r.pre_activations.iter().map(value).chain([0.0; 1]).collect()
        };
        for t in 0..x.ncols() {
            let z = pre(t);
            let c = value(&r.expr, &z)?;
            active[t] |= c != 0.0;
            outside[t] |= z[..r.pre_activations.len()].iter().any(|z| !r.domain.contains(*z));
            for (i, v) in r.write.iter().enumerate() {
                wanted[(i, t)] += c * v;
            }
        }
    }
    // Distances to jumps, within which the certificate says nothing about the error.
    let mut near = |preactivation: &dyn Fn(usize) -> f64, at: f64, reach: f64| {
        for t in (0..x.ncols()).filter(|t| (preactivation(*t) - at).abs() <= reach) {
            banded[t] = true;
            in_band += 1;
        }
    };
    for (c, p) in compiled.certificate.claims()?.iter().zip(&compiled.proof.responses) {
        let reach = p.figures().delta + p.rounding.as_ref().map_or(0.0, |r| r.delta_rows);
        let z = |t: usize| c.b + c.w.iter().zip(x.column(t).iter()).map(|(a, b)| a * b).sum::<f64>();
        for j in crate::certify::jumps(&c.target, crate::certify::Domain::line())? {
            near(&z, j, reach);
        }
    }
    for t in compiled.certificate.gates.iter().flat_map(|g| &g.terms) {
        let rows: Vec<(Vec<f64>, f64)> =
            t.pre_activations.iter().map(|p| Ok((p.w.values()?, p.b))).collect::<Result<_>>()?;
        for (condition, band) in t.conditions.iter().zip(&t.figures.bands) {
            let at = |token: usize| {
                let dot = |(w, b): &(Vec<f64>, f64)| {
                    b + w.iter().zip(x.column(token).iter()).map(|(a, b)| a * b).sum::<f64>()
                };
                value(condition, &rows.iter().map(dot).collect::<Vec<_>>()).unwrap_or(0.0)
            };
            near(&at, 0.0, *band);
        }
    }
    let (mut largest, mut excluded) = (0f64, 0);
    for t in 0..x.ncols() {
        let beyond = compiled.certificate.norm.is_some_and(|r| x.column(t).norm() > r);
        if outside[t] || beyond {
            excluded += 1;
        } else if !banded[t] {
            largest = largest.max((written.column(t) - wanted.column(t)).norm());
        }
    }
    Ok(Observation {
        tokens: x.ncols(),
        active: active.iter().filter(|a| **a).count(),
        in_band,
        excluded,
        largest,
        bound: compiled.proof.total.as_ref().map(|t| t.outside),
    })
}
