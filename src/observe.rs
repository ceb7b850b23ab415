//! A block beside the intervention that it stands for, on given residuals: what the error really is.

use nalgebra::DMatrix;

use crate::compile::{Compiled, Target};
use crate::error::Result;
use crate::ridge::split;
use crate::solve::Values;

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
    let written = compiled.block.forward(x);
    let mut wanted = DMatrix::zeros(x.nrows(), x.ncols());
    let (mut active, mut banded, mut outside) =
        (vec![false; x.ncols()], vec![false; x.ncols()], vec![false; x.ncols()]);
    let mut in_band = 0;
    let mut k = 0;
    for r in &target.responses {
        for (index, part) in split(&r.expr)? {
            let Some(pre) = r.pre_activations.get(index) else {
                continue;
            };
            let proof = &compiled.proof.responses[k];
            k += 1;
            let values = Values::new(&part, crate::certify::Domain::line())?;
            let jumps = crate::certify::jumps(&part, crate::certify::Domain::line())?;
            let reach = proof.figures().delta + proof.rounding.as_ref().map_or(0.0, |r| r.delta_rows);
            for t in 0..x.ncols() {
                let z = pre.b + pre.w.iter().zip(x.column(t).iter()).map(|(a, b)| a * b).sum::<f64>();
                let c = values.at(z);
                active[t] |= c != 0.0;
                outside[t] |= !r.domain.contains(z);
                if jumps.iter().any(|j| (z - j).abs() <= reach) {
                    banded[t] = true;
                    in_band += 1;
                }
                for (i, v) in r.write.iter().enumerate() {
                    wanted[(i, t)] += c * v;
                }
            }
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
