//! Expressions of one pre-activation, cut at their knots; on each piece a smooth form that can be enclosed.
//!
//! Part of the trusted base. Between knots every conditional is decided once, by exact rational arithmetic, so that a
//! piece is a normal form ([`Normal`]) wherever the expression allows one, and a small tree of them elsewhere.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::activation::Jet;
use crate::algebra::{Atom, Enclosures, Normal, Poly, enclose, of_activation};
use crate::atom::Kind;
use crate::error::{Error, Result};
use crate::expr::Expr;
use crate::interval::Interval;
use crate::rational::Rational;

/// More pieces than this are refused.
const MAX_PIECES: usize = 20_000;

/// An expression on one piece.
#[derive(Clone, Debug)]
pub enum Form {
    /// A polynomial plus polynomials times atoms.
    Normal(Normal),
    /// A sum.
    Add(Box<Form>, Box<Form>),
    /// A product.
    Mul(Box<Form>, Box<Form>),
    /// A maximum whose decision changes somewhere inside the piece.
    Max(Box<Form>, Box<Form>),
    /// A minimum likewise.
    Min(Box<Form>, Box<Form>),
}

impl Form {
    /// A constant.
    pub fn constant(c: Rational) -> Form {
        Form::Normal(Poly::constant(c).into())
    }

    /// The normal form, where there is one.
    pub fn as_normal(&self) -> Option<&Normal> {
        match self {
            Form::Normal(n) => Some(n),
            _ => None,
        }
    }

    /// Is it known to be identically 0?
    pub fn is_zero(&self) -> bool {
        self.as_normal().is_some_and(Normal::is_zero)
    }

    fn add(self, o: Form) -> Form {
        match (self, o) {
            (Form::Normal(a), Form::Normal(b)) => Form::Normal(a.plus(b)),
            (a, b) => Form::Add(Box::new(a), Box::new(b)),
        }
    }

    fn scale(self, k: &Rational) -> Form {
        match self {
            Form::Normal(n) => Form::Normal(n.scale(k)),
            f => Form::Mul(Box::new(Form::constant(k.clone())), Box::new(f)),
        }
    }

    /// Difference.
    #[must_use]
    pub fn minus(self, o: Form) -> Form {
        self.add(o.scale(&-Rational::one()))
    }

    fn mul(self, o: Form) -> Form {
        if let (Form::Normal(a), Form::Normal(b)) = (&self, &o)
            && let Some(p) = a.mul(b)
        {
            return Form::Normal(p);
        }
        Form::Mul(Box::new(self), Box::new(o))
    }

    /// Where atoms' arguments change sign, and how far from there they change by 1.
    pub fn centres(&self, out: &mut Vec<(f64, f64)>) {
        match self {
            Form::Normal(n) => out.extend(n.centres()),
            Form::Add(a, b) | Form::Mul(a, b) | Form::Max(a, b) | Form::Min(a, b) => {
                a.centres(out);
                b.centres(out);
            }
        }
    }
}

/// The part of the line on which an expression is resolved.
#[derive(Clone, Copy, Debug)]
pub enum Region<'a> {
    /// An open interval; `None` is an infinite end.
    Open(Option<&'a Rational>, Option<&'a Rational>),
    /// A single point.
    Point(&'a Rational),
}

impl Region<'_> {
    /// The sign of a·z + b on the region; the root, if it lies inside.
    fn sign(self, a: &Rational, b: &Rational) -> std::result::Result<Ordering, Rational> {
        let of = |x: &Rational| x.signum().cmp(&0);
        if a.is_zero() {
            return Ok(of(b));
        }
        match self {
            Region::Point(z) => Ok(of(&(a * z + b))),
            Region::Open(lo, hi) => {
                let root = -(b / a);
                if lo.is_some_and(|lo| *lo >= root) {
                    Ok(of(a))
                } else if hi.is_some_and(|hi| *hi <= root) {
                    Ok(of(a).reverse())
                } else {
                    Err(root)
                }
            }
        }
    }
}

/// A knot that resolution came upon.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Knot {
    /// where
    pub at: Rational,
    /// may the expression jump there?
    pub jump: bool,
}

/// Resolves an expression of one pre-activation on a region. Knots inside the region are collected in `found`; the
/// result is meaningful only if none was.
///
/// Errors: the expression has several pre-activations, or a discontinuous conditional on something that is not affine.
pub fn resolve(e: &Expr, region: Region<'_>, found: &mut Vec<Knot>) -> Result<Form> {
    let mut sub = |e: &Expr| resolve(e, region, found);
    Ok(match e {
        Expr::Const(c) => Form::constant(c.exact().clone()),
        Expr::Pre(0) => Form::Normal(Poly::line(Rational::one(), Rational::zero()).into()),
        Expr::Pre(k) => {
            return Err(Error::unsupported(format!("the expression depends on z_{k} as well as on z")));
        }
        Expr::Add(a, b) => sub(a)?.add(sub(b)?),
        Expr::Neg(a) => sub(a)?.scale(&-Rational::one()),
        Expr::Scale(k, a) => sub(a)?.scale(k.exact()),
        Expr::Mul(a, b) => sub(a)?.mul(sub(b)?),
        Expr::Relu(a) => {
            let a = sub(a)?;
            larger(a, Form::constant(Rational::zero()), region, found)
        }
        Expr::Max(a, b) => {
            let (a, b) = (sub(a)?, sub(b)?);
            larger(a, b, region, found)
        }
        Expr::Min(a, b) => {
            let (a, b) = (sub(a)?, sub(b)?);
            smaller(a, b, region, found)
        }
        Expr::Clamp(a, lo, hi) => {
            let a = sub(a)?;
            let a = larger(a, Form::constant(lo.exact().clone()), region, found);
            smaller(a, Form::constant(hi.exact().clone()), region, found)
        }
        Expr::Step(a) => {
            let cond = sub(a)?;
            let on = positive(&cond, e, region, found)?;
            Form::constant(if on { Rational::one() } else { Rational::zero() })
        }
        Expr::JumpRelu(a, theta) => {
            let a = sub(a)?;
            let cond = a.clone().minus(Form::constant(theta.exact().clone()));
            if positive(&cond, e, region, found)? { a } else { Form::constant(Rational::zero()) }
        }
        Expr::Select(c, a, b) => {
            let (c, a, b) = (sub(c)?, sub(a)?, sub(b)?);
            if positive(&c, e, region, found)? { a } else { b }
        }
        Expr::Act(sigma, argument) => {
            let form = sub(argument)?;
            let line = form.as_normal().and_then(Normal::as_poly).and_then(Poly::as_line);
            let Some((a, b)) = line else {
                return Err(Error::unsupported(format!("{e}: the argument is not affine in one pre-activation")));
            };
            // Count the knots that lie below the argument: that is the branch.
            let mut branch = 0;
            for knot in sigma.knots() {
                match region.sign(&a, &(&b - knot.exact())) {
                    Ok(Ordering::Greater) => branch += 1,
                    Ok(_) => {}
                    Err(root) => found.push(Knot { at: root, jump: false }),
                }
            }
            Form::Normal(of_activation(sigma, branch, &a, &b))
        }
    })
}

/// The sign of a − b on the region, where it is one sign.
fn decide(a: &Form, b: &Form, region: Region<'_>, found: &mut Vec<Knot>) -> Option<Ordering> {
    let difference = a.clone().minus(b.clone());
    let (slope, constant) = difference.as_normal()?.as_poly()?.as_line()?;
    match region.sign(&slope, &constant) {
        Ok(sign) => Some(sign),
        Err(root) => {
            found.push(Knot { at: root, jump: false });
            Some(Ordering::Greater)
        }
    }
}

fn larger(a: Form, b: Form, region: Region<'_>, found: &mut Vec<Knot>) -> Form {
    match decide(&a, &b, region, found) {
        Some(Ordering::Less) => b,
        Some(_) => a,
        None => Form::Max(Box::new(a), Box::new(b)),
    }
}

fn smaller(a: Form, b: Form, region: Region<'_>, found: &mut Vec<Knot>) -> Form {
    match decide(&a, &b, region, found) {
        Some(Ordering::Greater) => b,
        Some(_) => a,
        None => Form::Min(Box::new(a), Box::new(b)),
    }
}

/// Is the condition of a discontinuous conditional strictly positive on the region?
fn positive(cond: &Form, whole: &Expr, region: Region<'_>, found: &mut Vec<Knot>) -> Result<bool> {
    let line = cond.as_normal().and_then(Normal::as_poly).and_then(Poly::as_line);
    let Some((a, b)) = line else {
        return Err(Error::unsupported(format!(
            "{whole}: the condition is not piecewise linear, so its jump cannot be located exactly"
        ))
        .help("put the threshold on the pre-activation itself, as in step(z - 2)"));
    };
    Ok(match region.sign(&a, &b) {
        Ok(sign) => sign == Ordering::Greater,
        Err(root) => {
            found.push(Knot { at: root, jump: true });
            true
        }
    })
}

/// One piece of several expressions that were cut together.
#[derive(Clone, Debug)]
pub struct Piece {
    /// left end; `None` is −∞
    pub lo: Option<Rational>,
    /// right end; `None` is +∞
    pub hi: Option<Rational>,
    /// the expressions on the piece, in the order given
    pub forms: Vec<Form>,
}

/// Cuts expressions at all of their knots inside (lo, hi) and at the given points. Returns the pieces from left to
/// right, and the knots at which one of the expressions may jump.
pub fn cut(
    exprs: &[&Expr],
    lo: Option<&Rational>,
    hi: Option<&Rational>,
    points: &[Rational],
) -> Result<(Vec<Piece>, Vec<Rational>)> {
    let inside = |z: &Rational| lo.is_none_or(|lo| lo < z) && hi.is_none_or(|hi| z < hi);
    let mut cuts: Vec<Rational> = points.iter().filter(|z| inside(z)).cloned().collect();
    let mut jumps: Vec<Rational> = Vec::new();
    let mut pieces: Vec<Piece> = Vec::with_capacity(cuts.len() + 1);
    // Where pieces that are still to be resolved end, the leftmost last.
    cuts.sort_by(|a, b| b.cmp(a));
    cuts.dedup();
    let mut ends: Vec<Option<Rational>> = std::iter::once(hi.cloned()).chain(cuts.into_iter().map(Some)).collect();
    while let Some(end) = ends.pop() {
        let start = pieces.last().map_or(lo, |p| p.hi.as_ref());
        let region = Region::Open(start, end.as_ref());
        let mut found = Vec::new();
        let forms = exprs.iter().map(|e| resolve(e, region, &mut found)).collect::<Result<_>>()?;
        if found.is_empty() {
            pieces.push(Piece { lo: start.cloned(), hi: end, forms });
            continue;
        }
        jumps.extend(found.iter().filter(|k| k.jump).map(|k| k.at.clone()));
        let mut knots: Vec<Rational> = found.into_iter().map(|k| k.at).collect();
        knots.sort_by(|a, b| b.cmp(a));
        knots.dedup();
        ends.push(end);
        ends.extend(knots.into_iter().map(Some));
        if pieces.len() + ends.len() > MAX_PIECES {
            return Err(Error::unsupported(format!("an expression with more than {MAX_PIECES} pieces")));
        }
    }
    // A condition that is 0 on a whole piece (relu(z + 1) left of −1) has no root inside any piece.
    let cuts = pieces.iter().skip(1).filter_map(|p| p.lo.as_ref());
    jumps.extend(cuts.filter(|z| exprs.iter().any(|e| switches_at(e, z))).cloned());
    jumps.sort();
    jumps.dedup();
    Ok((pieces, jumps))
}

/// Is a condition of a discontinuous conditional exactly 0 at z?
fn switches_at(e: &Expr, z: &Rational) -> bool {
    let is = |cond: &Expr, level: &Rational| {
        let value = resolve(cond, Region::Point(z), &mut Vec::new()).ok();
        value.and_then(|v| v.as_normal().and_then(|n| n.exact_value(z))).is_some_and(|v| v == *level)
    };
    let here = match e {
        Expr::Step(c) | Expr::Select(c, _, _) => is(c, &Rational::zero()),
        Expr::JumpRelu(c, theta) => is(c, theta.exact()),
        _ => false,
    };
    here || e.children().any(|c| switches_at(c, z))
}

/// A form compiled for enclosure by floats near one point.
#[derive(Clone, Debug)]
pub enum Program {
    /// Σ c_k z^k + Σ (Σ c_k z^k)·A(a·z + b)
    Sum(Enclosures, Arc<[Term]>),
    /// a sum
    Add(Box<Program>, Box<Program>),
    /// a product
    Mul(Box<Program>, Box<Program>),
    /// a maximum
    Max(Box<Program>, Box<Program>),
    /// a minimum
    Min(Box<Program>, Box<Program>),
}

/// A polynomial times an atom: c(z)·A(az + b), or times a difference of two atoms whose arguments nearly agree.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    coefficients: Enclosures,
    kind: Kind,
    a: Interval,
    b: Interval,
    /// Where set, to (p, q): c(z)·(A(u + pz + q) − A(u)) with u = az + b, evaluated without cancellation.
    step: Option<(Interval, Interval)>,
}

impl Term {
    /// By the mean value theorem A(u + s) − A(u) = s·A′(ξ), and with u′ = a, s′ = p its derivative is
    /// (a + p)·A′(u + s) − a·A′(u) = p·A′(ξ) + a·s·A″(ξ′), for ξ, ξ′ between u and u + s.
    fn jet(&self, z: Interval) -> Jet {
        let u = self.a * z + self.b;
        let atom = match self.step {
            None => {
                let j = self.kind.jet(u);
                Jet { v: j.v, d1: self.a * j.d1, d2: self.a.sqr() * j.d2 }
            }
            Some((p, q)) => {
                let s = p * z + q;
                let j = self.kind.jet(u.hull(u + s));
                Jet { v: s * j.d1, d1: p * j.d1 + self.a * s * j.d2, d2: Interval::ENTIRE }
            }
        };
        product(horner(&self.coefficients, z), atom)
    }

    fn value(&self, z: Interval) -> Interval {
        let u = self.a * z + self.b;
        let atom = match self.step {
            None => self.kind.value(u),
            Some((p, q)) => {
                let s = p * z + q;
                s * self.kind.jet(u.hull(u + s)).d1
            }
        };
        horner_value(&self.coefficients, z) * atom
    }
}

/// Two terms of one kind whose arguments and, up to sign, coefficients agree to this relative degree cancel almost all of
/// each other: rounding of a construction's weights leaves such pairs.
const NEARLY: f64 = 1e-4;

/// The terms of a normal form, each near-cancelling pair c₁A(u₁) + c₂A(u₂) written as (c₁ + c₂)A(u₁) + c₂(A(u₂) − A(u₁)).
fn terms(n: &Normal) -> Vec<Term> {
    let mut left: Vec<(&Atom, &Poly)> = n.terms.iter().collect();
    // Floats tell nearly all pairs apart that do not agree; exact differences are for the rest.
    let mut sizes: Vec<(f64, f64)> = left.iter().map(|(t, _)| (enclose(&t.a).mid(), enclose(&t.b).mid())).collect();
    let mut out = Vec::new();
    let plain = |atom: &Atom, c: &Poly| Term {
        coefficients: c.enclosures(),
        kind: atom.kind,
        a: enclose(&atom.a),
        b: enclose(&atom.b),
        step: None,
    };
    while let Some((first, c1)) = left.pop() {
        let (a, b) = sizes.pop().expect("one for each term");
        let offset = a.abs().max(b.abs());
        let close = |k: usize| {
            let far = |x: f64, y: f64, scale: f64| (x - y).abs() > 2.0 * NEARLY * scale;
            !far(a, sizes[k].0, a.abs()) && !far(b, sizes[k].1, offset)
        };
        let partner = (0..left.len()).find(|k| close(*k) && nearly_cancel((first, c1), left[*k]));
        let Some(k) = partner else {
            out.push(plain(first, c1));
            continue;
        };
        let (second, c2) = left.remove(k);
        sizes.remove(k);
        let sum = c1.plus(c2);
        if !sum.is_zero() {
            out.push(plain(first, &sum));
        }
        let step = (enclose(&(&second.a - &first.a)), enclose(&(&second.b - &first.b)));
        out.push(Term { coefficients: c2.enclosures(), step: Some(step), ..plain(first, c1) });
    }
    out
}

fn nearly_cancel((first, c1): (&Atom, &Poly), (second, c2): (&Atom, &Poly)) -> bool {
    let near = |x: &Rational, y: &Rational, scale: f64| enclose(&(x - y)).mag() <= NEARLY * scale;
    let size = |x: &Rational| enclose(x).mag();
    let offset = size(&first.b).max(size(&first.a));
    let largest = c1.enclosures().iter().map(|c| c.mag()).fold(0.0, f64::max);
    first.kind == second.kind
        && near(&first.a, &second.a, size(&first.a))
        && near(&first.b, &second.b, offset)
        && c1.plus(c2).enclosures().iter().all(|c| c.mag() <= NEARLY * largest)
}

impl Program {
    /// Compiles a form, each atom oriented so that it is small near `centre`.
    pub fn new(form: &Form, centre: &Rational) -> Program {
        let p = |f: &Form| Box::new(Program::new(f, centre));
        match form {
            Form::Normal(n) => {
                let n = n.oriented(centre);
                Program::Sum(n.poly.enclosures(), terms(&n).into())
            }
            Form::Add(a, b) => Program::Add(p(a), p(b)),
            Form::Mul(a, b) => Program::Mul(p(a), p(b)),
            Form::Max(a, b) => Program::Max(p(a), p(b)),
            Form::Min(a, b) => Program::Min(p(a), p(b)),
        }
    }

    /// [`Program::new`] of several forms. Where they differ from the first in their polynomials only, they share its terms.
    pub fn all<'f>(forms: impl IntoIterator<Item = &'f Form>, centre: &Rational) -> Vec<Program> {
        let mut forms = forms.into_iter();
        let Some(first) = forms.next() else { return Vec::new() };
        let Form::Normal(model) = first else {
            return std::iter::once(first).chain(forms).map(|f| Program::new(f, centre)).collect();
        };
        let oriented = model.oriented(centre);
        let shared: Arc<[Term]> = terms(&oriented).into();
        // What turning atoms round adds to the polynomial depends on the atoms alone.
        let turned = oriented.poly.plus(&model.poly.scale(&-Rational::one()));
        let like = |f: &Form| match f {
            Form::Normal(n) if n.terms == model.terms => {
                Program::Sum(n.poly.plus(&turned).enclosures(), Arc::clone(&shared))
            }
            other => Program::new(other, centre),
        };
        let rest: Vec<Program> = forms.map(like).collect();
        std::iter::once(Program::Sum(oriented.poly.enclosures(), shared)).chain(rest).collect()
    }

    /// The terms of programs that differ in their polynomials only, if they do: what costs most is then evaluated once.
    pub fn common<'p>(programs: impl Iterator<Item = &'p Program>) -> Option<&'p [Term]> {
        let mut terms = programs.map(|p| match p {
            Program::Sum(_, terms) => Some(terms),
            _ => None,
        });
        let first = terms.next()??;
        let same = |t: &Arc<[Term]>| Arc::ptr_eq(t, first) || t == first;
        terms.all(|t| t.is_some_and(same)).then_some(first)
    }

    /// [`Program::jet`] of a sum whose terms have this jet.
    pub fn jet_with(&self, terms: Jet, z: Interval) -> Jet {
        match self {
            Program::Sum(poly, _) => plus(horner(poly, z), terms),
            other => other.jet(z),
        }
    }

    /// [`Program::value`] of a sum whose terms have this value.
    pub fn value_with(&self, terms: Interval, z: Interval) -> Interval {
        match self {
            Program::Sum(poly, _) => horner_value(poly, z) + terms,
            other => other.value(z),
        }
    }

    /// Enclosures of the value and the first two derivatives over `z`.
    pub fn jet(&self, z: Interval) -> Jet {
        match self {
            Program::Sum(poly, terms) => plus(horner(poly, z), jet_of(terms, z)),
            Program::Add(a, b) => plus(a.jet(z), b.jet(z)),
            Program::Mul(a, b) => product(a.jet(z), b.jet(z)),
            Program::Max(a, b) => choose(a.jet(z), b.jet(z), 1.0),
            Program::Min(a, b) => choose(a.jet(z), b.jet(z), -1.0),
        }
    }

    /// Does the program hold a difference of atoms that all but cancel, as rounding leaves them?
    pub fn is_rounding(&self) -> bool {
        matches!(self, Program::Sum(_, terms) if terms.iter().any(|t| t.step.is_some()))
    }

    /// Enclosure of the value only.
    pub fn value(&self, z: Interval) -> Interval {
        match self {
            Program::Sum(poly, terms) => horner_value(poly, z) + value_of(terms, z),
            Program::Add(a, b) => a.value(z) + b.value(z),
            Program::Mul(a, b) => a.value(z) * b.value(z),
            Program::Max(a, b) => a.value(z).max(b.value(z)),
            Program::Min(a, b) => a.value(z).min(b.value(z)),
        }
    }
}

/// The sum of terms: enclosures of its value and derivatives.
pub fn jet_of(terms: &[Term], z: Interval) -> Jet {
    let zero = Jet { v: Interval::ZERO, d1: Interval::ZERO, d2: Interval::ZERO };
    terms.iter().fold(zero, |sum, t| plus(sum, t.jet(z)))
}

/// The same of its value only.
pub fn value_of(terms: &[Term], z: Interval) -> Interval {
    terms.iter().fold(Interval::ZERO, |sum, t| sum + t.value(z))
}

fn horner_value(c: &[Interval], z: Interval) -> Interval {
    match c {
        [c0, c1] => *c1 * z + *c0,
        _ => c.iter().rev().fold(Interval::ZERO, |acc, c| acc * z + *c),
    }
}

/// Value and derivatives of a polynomial: (p, p′, p″/2) by repeated synthetic division.
fn horner(c: &[Interval], z: Interval) -> Jet {
    // Most are lines.
    if let [_, slope] = c {
        return Jet { v: horner_value(c, z), d1: *slope, d2: Interval::ZERO };
    }
    let (mut v, mut d1, mut half_d2) = (Interval::ZERO, Interval::ZERO, Interval::ZERO);
    for c in c.iter().rev() {
        half_d2 = half_d2 * z + d1;
        d1 = d1 * z + v;
        v = v * z + *c;
    }
    Jet { v, d1, d2: Interval::point(2.0) * half_d2 }
}

fn plus(a: Jet, b: Jet) -> Jet {
    Jet { v: a.v + b.v, d1: a.d1 + b.d1, d2: a.d2 + b.d2 }
}

fn product(a: Jet, b: Jet) -> Jet {
    Jet { v: a.v * b.v, d1: a.d1 * b.v + a.v * b.d1, d2: a.d2 * b.v + Interval::point(2.0) * a.d1 * b.d1 + a.v * b.d2 }
}

/// max(a, b) for sign 1, min(a, b) for sign −1. Where the decision is open the result is Lipschitz, not smooth.
fn choose(a: Jet, b: Jet, sign: f64) -> Jet {
    let gap = Interval::point(sign) * (a.v - b.v);
    if gap.lo() >= 0.0 {
        a
    } else if gap.hi() <= 0.0 {
        b
    } else {
        let v = if sign > 0.0 { a.v.max(b.v) } else { a.v.min(b.v) };
        Jet { v, d1: a.d1.hull(b.d1), d2: Interval::ENTIRE }
    }
}

/// The exact supremum of a polynomial of degree at most 2 over [lo, hi]; `None` for higher degrees.
pub fn quadratic_supremum(p: &Poly, lo: &Rational, hi: &Rational) -> Option<Rational> {
    if p.degree() > 2 {
        return None;
    }
    let mut best = p.value(lo).max(p.value(hi));
    let c2 = p.coefficient(2);
    if c2.is_negative() {
        // The vertex −c1/(2·c2).
        let vertex = -(p.coefficient(1) / (&c2 + &c2));
        if *lo < vertex && vertex < *hi {
            best = best.max(p.value(&vertex));
        }
    }
    Some(best)
}
