//! A target in floating point, for search.

use crate::certify::Domain;
use crate::error::Result;
use crate::expr::Expr;
use crate::number::Number;
use crate::piecewise::{Program, cut};
use crate::rational::Rational;

/// A target in floating point.
pub(crate) struct Values {
    /// (right end, program) from left to right
    pieces: Vec<(f64, Program)>,
}

impl Values {
    pub(crate) fn new(target: &Expr, domain: Domain) -> Result<Self> {
        let (lo, hi) = (Rational::from_float(domain.lo()), Rational::from_float(domain.hi()));
        let (pieces, _) = cut(&[target], lo.as_ref(), hi.as_ref(), &[])?;
        let float = |z: &Rational| Number::from(z.clone()).to_f64();
        let pieces = pieces.iter().map(|p| {
            let l = p.lo.as_ref().map_or(f64::NEG_INFINITY, float);
            let h = p.hi.as_ref().map_or(f64::INFINITY, float);
            let middle = match (l.is_finite(), h.is_finite()) {
                (true, true) => 0.5 * (l + h),
                (true, false) => l + 1.0,
                (false, true) => h - 1.0,
                (false, false) => 0.0,
            };
            (h, Program::new(&p.forms[0], &Rational::from_float(middle).expect("finite")))
        });
        Ok(Values { pieces: pieces.collect() })
    }

    /// Where pieces meet.
    pub(crate) fn knots(&self) -> impl Iterator<Item = f64> + '_ {
        self.pieces.iter().map(|(h, _)| *h).filter(|h| h.is_finite())
    }

    /// φ(z); the left limit at knots.
    pub(crate) fn at(&self, z: f64) -> f64 {
        let piece = self.pieces.iter().find(|(h, _)| z <= *h).or(self.pieces.last());
        piece.map_or(f64::NAN, |(_, p)| p.value(crate::interval::Interval::point(z)).mid())
    }

    /// The least and greatest value on [l, h], as far as samples and both sides of knots inside tell.
    pub(crate) fn range(&self, l: f64, h: f64) -> (f64, f64) {
        let mut points = vec![l, h];
        points.extend((1..16).map(|k| l + (h - l) * f64::from(k) / 16.0));
        for (end, _) in &self.pieces {
            if l <= *end && *end <= h {
                points.extend([*end, end.next_up()]);
            }
        }
        points
            .into_iter()
            .map(|z| self.at(z))
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)))
    }
}
