//! The tokens that a certificate of deployed arithmetic speaks of: a ball, or a ball and what was seen on samples.
//!
//! Rounded rows shift a pre-activation by ⟨r, x⟩. Over a ball that is ‖r‖R, which no real token comes near. A *calibrated*
//! certificate says less: it holds for the tokens x with ‖x‖ ≤ R on which each functional that the proof needs, |⟨r, x⟩| or
//! Σ|g_k·x_k|, stays below a bound of its own. The bounds are `margin` times the largest value on samples of the residual stream.
//! They stand in the certificate in the order in which the proof asks for them, and whoever checks it checks with them, not
//! with the samples.

use nalgebra::DMatrix;
use serde::{Deserialize, Serialize};

use crate::derive::{norm_of, point, upper};
use crate::error::{Error, Result};
use crate::interval::Interval;

/// Bounds on functionals of x, in the order in which the proof asks for them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// on how many tokens the functionals were seen
    pub samples: usize,
    /// the bounds are so many times what was seen
    pub margin: f64,
    /// the bounds
    pub ranges: Vec<f64>,
}

/// Where bounds come from.
enum Source<'a> {
    Ball,
    /// [d, tokens]: bounds are taken from them and recorded
    Samples {
        samples: &'a DMatrix<f64>,
        margin: f64,
        ranges: Vec<f64>,
    },
    /// recorded bounds, and how many have been used
    Recorded {
        calibration: &'a Calibration,
        used: usize,
    },
}

/// Tokens, and bounds on what rows make of them.
pub struct Tokens<'a> {
    norm: f64,
    source: Source<'a>,
}

impl<'a> Tokens<'a> {
    /// ‖x‖ ≤ R
    pub fn ball(norm: f64) -> Tokens<'a> {
        Tokens { norm, source: Source::Ball }
    }

    /// ‖x‖ ≤ R, and within `margin` times what the samples [d, tokens] show.
    ///
    /// Errors: no samples, or a margin below 1.
    pub fn sampled(norm: f64, samples: &'a DMatrix<f64>, margin: f64) -> Result<Tokens<'a>> {
        if samples.ncols() == 0 || !(margin >= 1.0 && margin.is_finite()) {
            return Err(Error::input(format!("{} samples with a margin of {margin}", samples.ncols()))
                .help("at least one sample, and a margin of 1 or more"));
        }
        Ok(Tokens { norm, source: Source::Samples { samples, margin, ranges: Vec::new() } })
    }

    /// ‖x‖ ≤ R, and within recorded bounds.
    pub fn recorded(norm: f64, calibration: &'a Calibration) -> Tokens<'a> {
        Tokens { norm, source: Source::Recorded { calibration, used: 0 } }
    }

    /// R
    pub fn norm(&self) -> f64 {
        self.norm
    }

    /// What has been recorded, if samples were given.
    ///
    /// Error: recorded bounds that the proof did not ask for.
    pub fn calibration(&self) -> Result<Option<Calibration>> {
        match &self.source {
            Source::Ball => Ok(None),
            Source::Samples { samples, margin, ranges } => {
                Ok(Some(Calibration { samples: samples.ncols(), margin: *margin, ranges: ranges.clone() }))
            }
            Source::Recorded { calibration, used } if calibration.ranges.len() == *used => {
                Ok(Some((*calibration).clone()))
            }
            Source::Recorded { .. } => Err(Error::disagreement("bounds on functionals that no proof asks for")),
        }
    }

    /// Bound on |⟨r, x⟩|.
    pub fn inner(&mut self, r: &[Interval]) -> f64 {
        let ball = upper(point(norm_of(r.iter().copied())) * point(self.norm));
        self.least(ball, |x| r.iter().zip(x).map(|(r, x)| r.mid() * x).sum::<f64>().abs())
    }

    /// Bound on Σ|g_k·x_k|.
    pub fn terms(&mut self, g: &[Interval]) -> f64 {
        let ball = upper(point(norm_of(g.iter().copied())) * point(self.norm));
        self.least(ball, |x| g.iter().zip(x).map(|(g, x)| (g.mid() * x).abs()).sum())
    }

    fn least(&mut self, ball: f64, of: impl Fn(&[f64]) -> f64) -> f64 {
        match &mut self.source {
            Source::Ball => ball,
            Source::Samples { samples, margin, ranges } => {
                let d = samples.nrows();
                let seen = samples.column_iter().map(|x| of(&x.as_slice()[..d])).fold(0.0, f64::max);
                ranges.push((seen * *margin).min(ball));
                ranges[ranges.len() - 1]
            }
            Source::Recorded { calibration, used } => {
                *used += 1;
                // A bound is part of what is claimed; one that is missing or no number is none.
                calibration.ranges.get(*used - 1).copied().filter(|x| *x >= 0.0).unwrap_or(ball).min(ball)
            }
        }
    }
}
