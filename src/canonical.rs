//! The solver's view of a target: pieces between knots, where it jumps, and what is left once activations are taken out.
//!
//! Nothing here is trusted: a wrong rewrite costs accuracy, the certifier sees the original expression.

use crate::algebra::{Atom, Normal, Poly};
use crate::certify::Domain;
use crate::error::Result;
use crate::expr::Expr;
use crate::piecewise::{Piece, cut};
use crate::rational::Rational;

/// A target cut at its knots.
#[derive(Clone, Debug)]
pub struct Canonical {
    /// Left to right; they cover the domain.
    pub pieces: Vec<Piece>,
    /// Knots at which a conditional switches (candidates for jumps).
    pub switches: Vec<Rational>,
    /// The domain's ends; `None` is infinite.
    pub ends: (Option<Rational>, Option<Rational>),
}

impl Canonical {
    /// Cuts a target on a domain. Errors: those of [`cut`].
    pub fn new(target: &Expr, domain: Domain) -> Result<Self> {
        let ends = (Rational::from_float(domain.lo()), Rational::from_float(domain.hi()));
        let (pieces, switches) = cut(&[target], ends.0.as_ref(), ends.1.as_ref(), &[])?;
        Ok(Canonical { pieces, switches, ends })
    }

    /// The polynomials of all pieces, if every piece is one.
    pub fn polynomial(&self) -> Option<PiecewisePolynomial> {
        let polys: Option<Vec<Poly>> =
            self.pieces.iter().map(|p| p.forms[0].as_normal().and_then(Normal::as_poly).cloned()).collect();
        let knots = self.pieces.iter().skip(1).filter_map(|p| p.lo.clone()).collect();
        Some(PiecewisePolynomial { knots, polys: polys?, ends: self.ends.clone() }.merged())
    }

    /// All atoms that occur, with their coefficient on the first piece where they do.
    pub fn atoms(&self) -> Vec<(Atom, Poly)> {
        let mut out: Vec<(Atom, Poly)> = Vec::new();
        for normal in self.pieces.iter().filter_map(|p| p.forms[0].as_normal()) {
            for (atom, c) in normal.terms.iter() {
                if !out.iter().any(|(a, _)| a == atom) {
                    out.push((atom.clone(), c.clone()));
                }
            }
        }
        out
    }
}

/// Polynomials between knots.
#[derive(Clone, Debug)]
pub struct PiecewisePolynomial {
    /// increasing
    pub knots: Vec<Rational>,
    /// one more than knots
    pub polys: Vec<Poly>,
    /// the domain's ends; `None` is infinite
    pub ends: (Option<Rational>, Option<Rational>),
}

impl PiecewisePolynomial {
    /// Drops knots at which nothing changes.
    fn merged(mut self) -> Self {
        let mut k = 0;
        while k < self.knots.len() {
            if self.polys[k] == self.polys[k + 1] {
                self.knots.remove(k);
                self.polys.remove(k + 1);
            } else {
                k += 1;
            }
        }
        self
    }

    /// The largest degree.
    pub fn degree(&self) -> usize {
        self.polys.iter().map(Poly::degree).max().unwrap_or(0)
    }

    /// (knot, height) of the jumps.
    pub fn jumps(&self) -> Vec<(Rational, Rational)> {
        let gap = |k: usize, z: &Rational| self.polys[k + 1].value(z) - self.polys[k].value(z);
        let all = self.knots.iter().enumerate().map(|(k, z)| (z.clone(), gap(k, z)));
        all.filter(|(_, h)| !h.is_zero()).collect()
    }

    /// The same function with each jump replaced by a straight ramp over [θ − radius, θ + radius]; jumps whose ramps
    /// would overlap share one. `quotient` makes a ramp's slope, exactly or nearly.
    #[must_use]
    pub fn ramped(
        &self,
        radius: &Rational,
        quotient: &dyn Fn(&Rational, &Rational) -> Rational,
    ) -> PiecewisePolynomial {
        let jumps = self.jumps();
        let mut groups: Vec<(Rational, Rational)> = Vec::new();
        for (z, _) in &jumps {
            match groups.last_mut() {
                Some((_, end)) if z - &*end <= radius + radius => *end = z.clone(),
                _ => groups.push((z.clone(), z.clone())),
            }
        }
        let mut knots = Vec::new();
        let mut polys = vec![];
        let at = |z: &Rational, from_left: bool| {
            // The piece to the left (right) of z.
            let k = self.knots.iter().filter(|t| if from_left { *t < z } else { *t <= z }).count();
            self.polys[k].clone()
        };
        let mut k = 0;
        let ramps: Vec<_> = groups.iter().map(|(a, b)| (a - radius, b + radius)).collect();
        polys.push(self.polys[0].clone());
        for (l, h) in &ramps {
            while k < self.knots.len() && self.knots[k] < *l {
                knots.push(self.knots[k].clone());
                polys.push(self.polys[k + 1].clone());
                k += 1;
            }
            while k < self.knots.len() && self.knots[k] <= *h {
                k += 1;
            }
            let (left, right) = (at(l, true), at(h, false));
            let (a, b) = (left.value(l), right.value(h));
            let slope = quotient(&(&b - &a), &(h - l));
            let offset = &a - &slope * l;
            *polys.last_mut().expect("not empty") = left;
            knots.push(l.clone());
            polys.push(Poly::line(slope, offset));
            knots.push(h.clone());
            polys.push(right);
        }
        while k < self.knots.len() {
            knots.push(self.knots[k].clone());
            polys.push(self.polys[k + 1].clone());
            k += 1;
        }
        PiecewisePolynomial { knots, polys, ends: self.ends.clone() }.merged()
    }

    /// The same function with its jumps taken out: φ − Σ height·1{z > θ}, continuous.
    #[must_use]
    pub fn without_jumps(&self) -> PiecewisePolynomial {
        let mut sum = Rational::zero();
        let mut polys = vec![self.polys[0].clone()];
        for (k, z) in self.knots.iter().enumerate() {
            sum += self.polys[k + 1].value(z) - self.polys[k].value(z);
            let mut c = self.polys[k + 1].coefficients().to_vec();
            c.resize(c.len().max(1), Rational::zero());
            c[0] -= &sum;
            polys.push(Poly::new(c));
        }
        PiecewisePolynomial { knots: self.knots.clone(), polys, ends: self.ends.clone() }.merged()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::number::Number;

    fn of(text: &str) -> PiecewisePolynomial {
        Canonical::new(&text.parse().unwrap(), Domain::line()).unwrap().polynomial().unwrap()
    }

    #[test]
    fn ramps_meet_both_sides() {
        let p = of("jumprelu(z, 2)").ramped(Number::ratio(1, 4).exact(), &|x, y| x / y);
        assert_eq!(p.knots.len(), 2);
        assert!(p.jumps().is_empty());
        assert_eq!(Number::from(p.polys[1].coefficient(1)), Number::ratio(9, 2));
        // Two jumps closer than their ramps share one.
        let p = of("step(z) - step(z - 1/4)").ramped(Number::ratio(1, 4).exact(), &|x, y| x / y);
        assert!(p.jumps().is_empty() && p.knots.is_empty(), "{p:?}");
    }

    #[test]
    fn a_cap_is_a_jump_and_a_kink() {
        let p = of("-relu(jumprelu(z, 2) - 8)");
        assert_eq!((p.knots.len(), p.jumps().len()), (1, 0));
        let p = of("-relu(jumprelu(z, 9) - 8)");
        assert_eq!((p.knots.len(), p.jumps().len()), (1, 1));
        assert!(p.without_jumps().jumps().is_empty());
    }
}
