//! Normal forms: polynomials with exact rational coefficients, and sums of polynomials times atoms.
//!
//! Part of the trusted base: two functions are equal on an interval if the normal form of their difference is empty.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::activation::Activation;
use crate::atom::Kind;
use crate::interval::Interval;
use crate::number::Number;
use crate::rational::Rational;

fn ratio(p: i64, q: i64) -> Rational {
    Rational::new(p, q)
}

/// A polynomial in z, coefficients from the constant term upwards, without trailing zeros.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Poly(SmallVec<[Rational; 2]>);

/// Coefficients by their enclosures. Most polynomials are lines: two of either stand in place, not on the heap.
pub type Enclosures = SmallVec<[Interval; 2]>;

impl Poly {
    /// From coefficients c0, c1, …
    pub fn new(c: impl IntoIterator<Item = Rational>) -> Self {
        Poly::trimmed(c.into_iter().collect())
    }
    fn trimmed(mut c: SmallVec<[Rational; 2]>) -> Self {
        while c.last().is_some_and(Rational::is_zero) {
            c.pop();
        }
        Poly(c)
    }
    /// A constant.
    pub fn constant(c: Rational) -> Self {
        Poly::new([c])
    }
    /// a·z + b
    pub fn line(a: Rational, b: Rational) -> Self {
        Poly::trimmed(SmallVec::from_buf([b, a]))
    }
    /// Coefficients c0, c1, … without trailing zeros.
    pub fn coefficients(&self) -> &[Rational] {
        &self.0
    }
    /// Is it 0?
    pub fn is_zero(&self) -> bool {
        self.0.is_empty()
    }
    /// The degree; 0 for constants.
    pub fn degree(&self) -> usize {
        self.0.len().saturating_sub(1)
    }
    /// The coefficient of z^k.
    pub fn coefficient(&self, k: usize) -> Rational {
        self.0.get(k).cloned().unwrap_or_else(Rational::zero)
    }
    /// The exact value.
    pub fn value(&self, z: &Rational) -> Rational {
        self.0.iter().rev().fold(Rational::zero(), |acc, c| acc * z + c)
    }
    /// (slope, constant) if the degree is at most 1.
    pub fn as_line(&self) -> Option<(Rational, Rational)> {
        (self.0.len() <= 2).then(|| (self.coefficient(1), self.coefficient(0)))
    }
    /// Enclosures of the coefficients.
    pub fn enclosures(&self) -> Enclosures {
        self.0.iter().map(enclose).collect()
    }
    /// Sum.
    #[must_use]
    pub fn plus(&self, o: &Poly) -> Poly {
        let n = self.0.len().max(o.0.len());
        let sum = |k| match (self.0.get(k), o.0.get(k)) {
            (Some(a), Some(b)) => a + b,
            (a, b) => a.or(b).cloned().unwrap_or_default(),
        };
        Poly::new((0..n).map(sum))
    }
    /// Multiple.
    #[must_use]
    pub fn scale(&self, k: &Rational) -> Poly {
        if k.is_one() {
            return self.clone();
        }
        Poly::new(self.0.iter().map(|c| c * k))
    }
    fn mul(&self, o: &Poly) -> Poly {
        if self.is_zero() || o.is_zero() {
            return Poly::default();
        }
        let mut c = vec![Rational::zero(); self.0.len() + o.0.len() - 1];
        for (i, a) in self.0.iter().enumerate() {
            for (j, b) in o.0.iter().enumerate() {
                c[i + j] += a * b;
            }
        }
        Poly::new(c)
    }
}

/// The tightest enclosure by floats.
pub fn enclose(x: &Rational) -> Interval {
    Number::from(x.clone()).enclosure()
}

/// An atom of an affine argument: A(a·z + b).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Atom {
    /// which function
    pub kind: Kind,
    /// slope of the argument
    pub a: Rational,
    /// offset of the argument
    pub b: Rational,
}

/// Atoms with their coefficients, none of them 0, by ascending atom. Copies share them: most forms that are compared differ
/// in their polynomials only.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Terms(Option<Arc<Vec<(Atom, Poly)>>>);

impl Terms {
    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// By ascending atom.
    pub fn iter(&self) -> impl Iterator<Item = (&Atom, &Poly)> {
        self.0.iter().flat_map(|list| list.iter()).map(|(atom, c)| (atom, c))
    }

    fn add(&mut self, atom: Atom, c: &Poly) {
        if c.is_zero() {
            return;
        }
        let list = Arc::make_mut(self.0.get_or_insert_default());
        match list.binary_search_by(|(a, _)| a.cmp(&atom)) {
            Err(k) => list.insert(k, (atom, c.clone())),
            Ok(k) => {
                list[k].1 = list[k].1.plus(c);
                if list[k].1.is_zero() {
                    list.remove(k);
                }
            }
        }
        if list.is_empty() {
            self.0 = None;
        }
    }

    /// Other coefficients, none of them 0.
    fn map(&self, f: impl Fn(&Poly) -> Poly) -> Terms {
        let list = self.0.as_ref().map(|list| list.iter().map(|(atom, c)| (atom.clone(), f(c))).collect());
        Terms(list.map(Arc::new))
    }
}

/// poly + Σ coefficient·atom
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Normal {
    /// The polynomial part.
    pub poly: Poly,
    /// The atoms with their coefficients.
    pub terms: Terms,
}

impl From<Poly> for Normal {
    fn from(poly: Poly) -> Self {
        Normal { poly, terms: Terms::default() }
    }
}

impl Normal {
    /// Is it identically 0?
    pub fn is_zero(&self) -> bool {
        self.poly.is_zero() && self.terms.is_empty()
    }

    /// The polynomial, if there are no atoms.
    pub fn as_poly(&self) -> Option<&Poly> {
        self.terms.is_empty().then_some(&self.poly)
    }

    /// Sum.
    #[must_use]
    pub fn plus(mut self, o: Normal) -> Normal {
        self.poly = self.poly.plus(&o.poly);
        if self.terms.is_empty() {
            self.terms = o.terms;
        } else {
            o.terms.iter().for_each(|(atom, c)| self.add_term(atom.clone(), c));
        }
        self
    }

    /// Difference.
    #[must_use]
    pub fn minus(self, o: Normal) -> Normal {
        self.plus(o.scale(&-Rational::one()))
    }

    /// Multiple.
    #[must_use]
    pub fn scale(self, k: &Rational) -> Normal {
        if k.is_one() {
            return self;
        }
        if k.is_zero() {
            return Normal::default();
        }
        Normal { poly: self.poly.scale(k), terms: self.terms.map(|c| c.scale(k)) }
    }

    /// Product with a polynomial.
    #[must_use]
    pub fn times(&self, p: &Poly) -> Normal {
        if p.is_zero() {
            return Normal::default();
        }
        Normal { poly: self.poly.mul(p), terms: self.terms.map(|c| c.mul(p)) }
    }

    /// Product, where one factor is a polynomial.
    pub fn mul(&self, o: &Normal) -> Option<Normal> {
        if let Some(p) = o.as_poly() { Some(self.times(p)) } else { self.as_poly().map(|p| o.times(p)) }
    }

    fn add_term(&mut self, atom: Atom, c: &Poly) {
        self.terms.add(atom, c);
    }

    /// Adds coefficient·A(az + b), with the argument brought to its canonical sign (a > 0, or a = 0 and b > 0).
    pub fn push(&mut self, kind: Kind, a: Rational, b: Rational, coefficient: &Poly) {
        let negative = a.is_negative() || a.is_zero() && b.is_negative();
        let fixed = if a.is_zero() && b.is_zero() { value_at_zero(kind) } else { None };
        if let Some(v) = fixed {
            self.poly = self.poly.plus(&coefficient.scale(&v));
        } else if negative {
            self.push_mirrored(kind, a, b, coefficient);
        } else {
            self.add_term(Atom { kind, a, b }, coefficient);
        }
    }

    /// Adds coefficient·A(u), u = az + b, written with A(−u) where a relation allows it.
    fn push_mirrored(&mut self, kind: Kind, a: Rational, b: Rational, c: &Poly) {
        let minus = c.scale(&-Rational::one());
        match kind {
            // A(u) = 1 − A(−u)
            Kind::Sigmoid | Kind::Phi | Kind::Cubic => {
                self.poly = self.poly.plus(c);
                self.add_term(Atom { kind, a: -a, b: -b }, &minus);
            }
            // A(u) = u + A(−u)
            Kind::Softplus => {
                self.poly = self.poly.plus(&c.mul(&Poly::line(a.clone(), b.clone())));
                self.add_term(Atom { kind, a: -a, b: -b }, c);
            }
            // A(u) = 1 − rest(u), whatever the sign of u
            Kind::MishRest => {
                self.poly = self.poly.plus(c);
                self.add_term(Atom { kind: Kind::Mish, a, b }, &minus);
            }
            Kind::Mish | Kind::Exp | Kind::Recip => self.add_term(Atom { kind, a, b }, c),
        }
    }

    /// The same function with each atom written so that it is small near `z`: what cancels is then cancelled exactly,
    /// in the polynomial part.
    #[must_use]
    pub fn oriented(&self, z: &Rational) -> Normal {
        let mut out = Normal::from(self.poly.clone());
        for (atom, c) in self.terms.iter() {
            let u = &atom.a * z + &atom.b;
            let Atom { kind, a, b } = atom.clone();
            if !u.is_positive() {
                out.add_term(atom.clone(), c);
            } else if kind == Kind::Mish {
                out.poly = out.poly.plus(c);
                out.add_term(Atom { kind: Kind::MishRest, a, b }, &c.scale(&-Rational::one()));
            } else {
                out.push_mirrored(kind, a, b, c);
            }
        }
        out
    }

    /// Where the atoms' arguments change sign, to a float, and how far from there they change by 1.
    pub fn centres(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        let float = |x: &Rational| Number::from(x.clone()).to_f64();
        let of = move |t: &Atom| (-(float(&t.b) / float(&t.a)), float(&t.a).abs().recip());
        self.terms
            .iter()
            .map(|(t, _)| t)
            .filter(|t| !t.a.is_zero())
            .map(of)
            .filter(|(c, w)| c.is_finite() && w.is_finite())
    }

    /// The exact value at a rational point, if every atom that contributes has a rational value there.
    pub fn exact_value(&self, z: &Rational) -> Option<Rational> {
        let mut sum = self.poly.value(z);
        for (atom, c) in self.terms.iter() {
            let c = c.value(z);
            if c.is_zero() {
                continue;
            }
            if !(&atom.a * z + &atom.b).is_zero() {
                return None;
            }
            sum += c * value_at_zero(atom.kind)?;
        }
        Some(sum)
    }
}

/// A(0) where it is rational.
fn value_at_zero(kind: Kind) -> Option<Rational> {
    match kind {
        Kind::Sigmoid | Kind::Phi | Kind::Cubic => Some(ratio(1, 2)),
        // tanh(ln 2) = (4 − 1)/(4 + 1)
        Kind::Mish => Some(ratio(3, 5)),
        Kind::MishRest => Some(ratio(2, 5)),
        Kind::Exp | Kind::Recip => Some(Rational::one()),
        Kind::Softplus => None,
    }
}

/// σ(az + b) on one of its branches (`Activation::branch` counts them), as a normal form in z.
pub fn of_activation(sigma: &Activation, branch: usize, a: &Rational, b: &Rational) -> Normal {
    use Activation::*;
    let u = Poly::line(a.clone(), b.clone());
    let one = || Poly::constant(Rational::one());
    let mut out = Normal::default();
    if let Some((_, pieces)) = sigma.polynomial_pieces() {
        let [c0, c1, c2] = &pieces[branch];
        let square = u.mul(&u).scale(c2.exact());
        out.poly = Poly::constant(c0.exact().clone()).plus(&u.scale(c1.exact())).plus(&square);
        return out;
    }
    match sigma {
        // u·sigmoid(βu)
        Silu | Swish(_) | QuickGelu => {
            let beta = sigma.swish_beta().expect("swish family");
            out.push(Kind::Sigmoid, a * beta.exact(), b * beta.exact(), &u);
        }
        Gelu => out.push(Kind::Phi, a.clone(), b.clone(), &u),
        GeluTanh => out.push(Kind::Cubic, a.clone(), b.clone(), &u),
        Mish => out.push(Kind::Mish, a.clone(), b.clone(), &u),
        Softplus => out.push(Kind::Softplus, a.clone(), b.clone(), &one()),
        Sigmoid => out.push(Kind::Sigmoid, a.clone(), b.clone(), &one()),
        // tanh u = 2·sigmoid(2u) − 1
        Tanh => {
            out.poly = Poly::constant(ratio(-1, 1));
            out.push(Kind::Sigmoid, a * ratio(2, 1), b * ratio(2, 1), &Poly::constant(ratio(2, 1)));
        }
        // scale·u on the right; scale·α·(e^(u/γ) − 1) on the left
        Elu(_) | Selu | Celu(_) => {
            let (scale, alpha, gamma) = sigma.elu_parameters().expect("elu family");
            if branch == 1 {
                out.poly = u.scale(scale.exact());
            } else {
                let sa = scale.exact() * alpha.exact();
                out.poly = Poly::constant(-sa.clone());
                out.push(Kind::Exp, a / gamma.exact(), b / gamma.exact(), &Poly::constant(sa));
            }
        }
        // u/(1 + |u|) = ±(1 − 1/(1 + |u|))
        Softsign => {
            let sign = if branch == 1 { ratio(1, 1) } else { ratio(-1, 1) };
            out.poly = Poly::constant(sign.clone());
            out.push(Kind::Recip, a * &sign, b * &sign, &Poly::constant(-sign));
        }
        _ => unreachable!("piecewise polynomials are handled above"),
    }
    out
}
