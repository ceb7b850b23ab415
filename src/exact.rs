//! Closed-form constructions: stacks that equal the target, or differ from it only in the knees of a steep activation.
//!
//! Every function returns stacks of exact rationals. Nothing here is trusted: the certifier proves exactness anew.
//!
//! The identities used, with u = wz + b:
//! * σ(u) − σ(−u) = κu for relu, silu, swish, gelu, gelu_tanh, quick_gelu, softplus, hardswish (κ = 1), leaky_relu
//!   (κ = 1 + α): affine responses from two neurons; gated, σ(g)·v − σ(−g)·v = κ·g·v: quadratic ones.
//! * A kink source σ with slopes α (left) and 1 (right): a·σ(z − t) + b·σ(t − z) changes slope by (a + b)(1 − α) at t and
//!   has slope aα − b on its left: every continuous piecewise-linear response.
//! * A saturating ramp (hardtanh, relu6, hardsigmoid): one neuron for each segment that is not constant.
//! * relu²: σ(u) + σ(−u) = u²; C¹ piecewise quadratics, and with three neurons a knot all piecewise quadratics, outside of the
//!   knots' neighbourhoods. Kink sources gated: (z − t)₊(αz + β), continuous piecewise quadratics.
//! * The source itself, scaled: k·σ(βz + γ), and its relatives (quick_gelu(z) = silu(1.702z)/1.702, tanh(z) = 2·sigmoid(2z) − 1).

use crate::activation::Activation;
use crate::algebra::{Atom, Poly, enclose};
use crate::atom::Kind;
use crate::canonical::{Canonical, PiecewisePolynomial};
use crate::certify::Domain;
use crate::error::Result;
use crate::expr::Expr;
use crate::number::Number;
use crate::rational::Rational;
use crate::stack::{IdealStack, Neuron};

/// More kinks than this are not tried for an orientation that saves a neuron: 2^k subsets.
const MAX_SUBSET: usize = 12;

/// What a construction may use.
#[derive(Clone, Debug)]
pub struct Setting<'a> {
    /// the host's activation
    pub source: &'a Activation,
    /// is the host gated?
    pub gated: bool,
    /// may there be an output constant?
    pub constant: bool,
    /// where the response is wanted
    pub domain: Domain,
    /// slope of the neurons whose slope is free, a power of two
    pub unit: Rational,
    /// half the width of the ramps that replace jumps; 0 if there are none
    pub radius: Rational,
    /// must quotients be exact? Where nothing is an identity anyhow, floats keep all numbers dyadic, which is much cheaper
    pub exact: bool,
}

fn q(p: i64, d: i64) -> Rational {
    Rational::new(p, d)
}

type Units = Vec<Neuron<Rational>>;

fn plain(weight: Rational, bias: Rational, out: Rational) -> Neuron<Rational> {
    Neuron { weight, bias, out, up: None }
}

fn gated(weight: Rational, bias: Rational, out: Rational, up: (Rational, Rational)) -> Neuron<Rational> {
    Neuron { weight, bias, out, up: Some(up) }
}

/// Neurons and a constant, as exact rationals without enclosures.
#[derive(Clone, Debug, Default)]
struct Draft {
    units: Units,
    constant: Rational,
}

impl Setting<'_> {
    /// x/y, or a float next to it.
    fn quotient(&self, x: &Rational, y: &Rational) -> Rational {
        let rounded = if self.exact { None } else { Rational::from_float((enclose(x) / enclose(y)).mid()) };
        rounded.unwrap_or_else(|| x / y)
    }

    fn bounded(&self) -> bool {
        self.domain.is_bounded()
    }

    /// Turns a draft into a stack of the host's form, replacing the constant by neurons where none is allowed.
    fn finish(&self, mut draft: Draft) -> Option<IdealStack> {
        if !self.constant && !draft.constant.is_zero() {
            draft.units.extend(self.constant_units(&draft.constant)?);
            draft.constant = Rational::zero();
        }
        draft.units.retain(|n| !n.out.is_zero());
        if self.kink().is_some() && !self.unit.is_one() {
            // σ(u) = σ(wu)/w for w > 0
            for n in &mut draft.units {
                n.weight *= &self.unit;
                n.bias *= &self.unit;
                n.out /= &self.unit;
            }
        }
        let number = |x: Rational| Number::from(x);
        let neurons = draft.units.into_iter().map(|n| {
            let up = match (n.up, self.gated) {
                (Some((w, b)), _) => Some((number(w), number(b))),
                (None, true) => Some((Number::zero(), Number::one())),
                (None, false) => None,
            };
            Neuron { weight: number(n.weight), bias: number(n.bias), out: number(n.out), up }
        });
        Some(IdealStack {
            source: self.source.clone(),
            constant: Number::from(draft.constant),
            neurons: neurons.collect(),
        })
    }

    /// (argument, value) where σ has a rational value that is not 0.
    fn rational_value(&self) -> Option<(Rational, Rational)> {
        use Activation::*;
        match self.source {
            Sigmoid => Some((q(0, 1), q(1, 2))),
            Hardsigmoid => Some((q(3, 1), q(1, 1))),
            Softsign => Some((q(1, 1), q(1, 2))),
            Selu => Some((q(1, 1), Activation::selu_constants().0.exact().clone())),
            Hardswish => Some((q(3, 1), q(3, 1))),
            Relu | LeakyRelu(_) | Relu2 | Relu6 | Hardtanh | Elu(_) | Celu(_) | Abs | Identity => {
                Some((q(1, 1), q(1, 1)))
            }
            _ => None,
        }
    }

    /// Neurons whose sum is the constant c.
    fn constant_units(&self, c: &Rational) -> Option<Units> {
        if let Some((argument, value)) = self.rational_value() {
            return Some(vec![plain(q(0, 1), argument, c / value)]);
        }
        // σ(1) − σ(−1) = κ
        let kappa = self.source.odd_part()?.exact().clone();
        let out = c / kappa;
        Some(vec![plain(q(0, 1), q(1, 1), out.clone()), plain(q(0, 1), q(-1, 1), -out)])
    }

    /// A polynomial of degree ≤ 1, or ≤ 2 where the host allows it.
    fn polynomial(&self, p: &Poly) -> Option<Draft> {
        let (c0, c1, c2) = (p.coefficient(0), p.coefficient(1), p.coefficient(2));
        if p.degree() == 0 {
            return Some(Draft { units: vec![], constant: c0 });
        }
        if p.degree() > 2 {
            return None;
        }
        if self.gated
            && p.degree() == 1
            && let Some((argument, value)) = self.rational_value()
        {
            // A gate that is constant leaves the affine up row.
            let units = vec![gated(q(0, 1), argument, value.recip(), (c1, c0))];
            return Some(Draft { units, constant: q(0, 1) });
        }
        if self.gated
            && let Some(kappa) = self.source.odd_part()
        {
            // p(z) = p(0) + z·(c2·z + c1), from σ(z)·v − σ(−z)·v = κ·z·v.
            let out = kappa.exact().recip();
            let up = (c2, c1);
            if let (Some((knot, slope)), Some(lo)) = (self.linear_branch(), self.lo()) {
                // On a bounded domain one neuron whose gate stays on its linear branch will do.
                let tau = &lo - q(1, 1);
                let at_tau = p.value(&tau);
                let (gate_bias, up) = (&knot - &tau, (p.coefficient(2), p.coefficient(2) * &tau + p.coefficient(1)));
                // slope·(z − τ) + knot-value: only sources whose branch passes through (knot, 0).
                if knot.is_zero() {
                    let units = vec![gated(q(1, 1), gate_bias, slope.recip(), up)];
                    return Some(Draft { units, constant: at_tau });
                }
            }
            let (w, out) = (self.unit.clone(), out / &self.unit);
            let units = vec![gated(w.clone(), q(0, 1), out.clone(), up.clone()), gated(-w, q(0, 1), -out, up)];
            return Some(Draft { units, constant: c0 });
        }
        if *self.source == Activation::Relu2 {
            return self.quadratic_from_squares(&c0, &c1, &c2);
        }
        if p.degree() == 2 {
            return None;
        }
        if let (Some((knot, slope)), Some(lo)) = (self.linear_branch(), self.lo()) {
            // One neuron on its linear branch: σ(z − lo + knot) = slope·(z − lo) + σ(knot).
            let out = &c1 / &slope;
            let units = vec![plain(q(1, 1), &knot - &lo, out.clone())];
            let at_lo = p.value(&lo);
            let value = self.value_at(&knot)?;
            return Some(Draft { units, constant: at_lo - out * value });
        }
        if let Some(kappa) = self.source.odd_part() {
            let (w, out) = (self.unit.clone(), c1 / kappa.exact() / &self.unit);
            let units = vec![plain(w.clone(), q(0, 1), out.clone()), plain(-w, q(0, 1), -out)];
            return Some(Draft { units, constant: c0 });
        }
        None
    }

    fn lo(&self) -> Option<Rational> {
        if self.bounded() { Rational::from_float(self.domain.lo()) } else { None }
    }

    /// (knot, slope) of an unbounded linear branch on the right, if σ has one.
    fn linear_branch(&self) -> Option<(Rational, Rational)> {
        use Activation::*;
        match self.source {
            Relu | LeakyRelu(_) | Elu(_) | Celu(_) | Abs | Identity => Some((q(0, 1), q(1, 1))),
            Selu => Some((q(0, 1), Activation::selu_constants().0.exact().clone())),
            Hardswish => Some((q(3, 1), q(1, 1))),
            _ => None,
        }
    }

    /// σ at its own knot of `linear_branch`.
    fn value_at(&self, knot: &Rational) -> Option<Rational> {
        match self.source {
            Activation::Hardswish => Some(knot.clone()),
            _ => Some(q(0, 1)),
        }
    }

    /// relu²: c2·u² = c2(σ(u) + σ(−u)), u = z + c1/(2c2); 4z = (z + 1)² − (z − 1)².
    fn quadratic_from_squares(&self, c0: &Rational, c1: &Rational, c2: &Rational) -> Option<Draft> {
        let (lo, hi) = (Rational::from_float(self.domain.lo()), Rational::from_float(self.domain.hi()));
        let square = |h: &Rational, out: &Rational, units: &mut Units| {
            // (z + h)² on the domain: one neuron if z + h keeps its sign there.
            if lo.as_ref().is_some_and(|lo| !(lo + h).is_negative()) {
                units.push(plain(q(1, 1), h.clone(), out.clone()));
            } else if hi.as_ref().is_some_and(|hi| !(hi + h).is_positive()) {
                units.push(plain(q(-1, 1), -h, out.clone()));
            } else {
                units.push(plain(q(1, 1), h.clone(), out.clone()));
                units.push(plain(q(-1, 1), -h, out.clone()));
            }
        };
        let mut units = Vec::new();
        if c2.is_zero() {
            // c1·z = c1/(4s)·((z + m + s)² − (z + m − s)²) − c1·m, both squares kept on one side where the domain allows.
            let m = lo.as_ref().map_or(q(0, 1), |lo| q(1, 1) - lo);
            let out = c1 / q(4, 1);
            square(&(&m + q(1, 1)), &out, &mut units);
            square(&(&m - q(1, 1)), &-&out, &mut units);
            return Some(Draft { units, constant: c0 - c1 * m });
        }
        let h = c1 / (q(2, 1) * c2);
        square(&h, c2, &mut units);
        Some(Draft { units, constant: c0 - c2 * &h * &h })
    }

    /// Slope on the left of a source with a single kink at 0 and slope 1 on its right.
    fn kink(&self) -> Option<Rational> {
        match self.source {
            Activation::Relu => Some(q(0, 1)),
            Activation::LeakyRelu(a) => Some(a.exact().clone()),
            Activation::Abs => Some(q(-1, 1)),
            _ => None,
        }
    }

    /// Continuous piecewise-linear responses from a kink source.
    fn kinks(&self, p: &PiecewisePolynomial) -> Option<Draft> {
        let alpha = self.kink()?;
        let (one, zero) = (q(1, 1), q(0, 1));
        let gap = &one - &alpha;
        let jumps: Vec<Rational> = p.polys.windows(2).map(|w| w[1].coefficient(1) - w[0].coefficient(1)).collect();
        let amounts: Vec<Rational> = jumps.iter().map(|j| j / &gap).collect();
        let k = amounts.len();
        let mut left_facing = vec![false; k];
        // Slope that is still missing left of all kinks, with every neuron facing right.
        let total: Rational = amounts.iter().sum();
        let mut missing = p.polys[0].coefficient(1) - &alpha * total;
        if !missing.is_zero() && k <= MAX_SUBSET && alpha != q(-1, 1) {
            // Turning neuron i around lowers the left slope by amount·(1 + α): more is missing then.
            let turn: Vec<Rational> = amounts.iter().map(|a| a * (&one + &alpha)).collect();
            for subset in 1u32..1 << k {
                let sum: Rational = (0..k).filter(|i| subset >> i & 1 == 1).map(|i| turn[i].clone()).sum();
                if (&missing + &sum).is_zero() {
                    left_facing.iter_mut().enumerate().for_each(|(i, l)| *l = subset >> i & 1 == 1);
                    missing = zero.clone();
                    break;
                }
            }
        }
        let mut units: Units = Vec::new();
        for i in 0..k {
            let t = &p.knots[i];
            units.push(if left_facing[i] {
                plain(-&one, t.clone(), amounts[i].clone())
            } else {
                plain(one.clone(), -t, amounts[i].clone())
            });
        }
        let mut floating = None;
        if !missing.is_zero() {
            if let Some(lo) = self.lo() {
                floating = Some(units.len());
                units.push(plain(one.clone(), -lo, missing));
            } else if alpha == q(-1, 1) {
                return None;
            } else {
                // a·σ(z − t) + b·σ(t − z) with a + b fixed: the left slope falls by b(1 + α).
                let b = -(missing / (&one + &alpha));
                let t = p.knots.first().cloned().unwrap_or_else(|| zero.clone());
                if k > 0 {
                    units[0].out -= &b;
                } else {
                    units.push(plain(one.clone(), -&t, -&b));
                }
                units.push(plain(-&one, t, b));
            }
        }
        // The constant: compare at a point.
        let at = self.lo().or_else(|| p.knots.first().cloned()).unwrap_or(zero);
        let sigma = |u: &Rational| if u.is_positive() { u.clone() } else { u * &alpha };
        let have: Rational = units.iter().map(|n| &n.out * sigma(&(&n.weight * &at + &n.bias))).sum();
        let piece = p.knots.iter().filter(|t| **t < at).count();
        let mut constant = p.polys[piece].value(&at) - have;
        if let (Some(i), false) = (floating, self.constant) {
            // Its knot may lie anywhere left of the domain: let it carry the constant where the sign allows.
            let shift = &constant / &units[i].out;
            if !shift.is_negative() {
                units[i].bias += shift;
                constant = q(0, 1);
            }
        }
        Some(Draft { units, constant })
    }

    /// (left knot, right knot, value left, value right) of a saturating piecewise-linear source.
    fn ramp(&self) -> Option<(Rational, Rational, Rational, Rational)> {
        match self.source {
            Activation::Relu6 => Some((q(0, 1), q(6, 1), q(0, 1), q(6, 1))),
            Activation::Hardtanh => Some((q(-1, 1), q(1, 1), q(-1, 1), q(1, 1))),
            Activation::Hardsigmoid => Some((q(-3, 1), q(3, 1), q(0, 1), q(1, 1))),
            _ => None,
        }
    }

    /// Continuous piecewise-linear responses from saturating ramps: one for each segment that is not constant.
    fn segments(&self, p: &PiecewisePolynomial) -> Option<Draft> {
        let (l, r, low, high) = self.ramp()?;
        let mut units: Units = Vec::new();
        for (k, poly) in p.polys.iter().enumerate() {
            let slope = poly.coefficient(1);
            if slope.is_zero() {
                continue;
            }
            // An outer segment that does not end cannot come from a bounded source.
            let a = if k == 0 { p.ends.0.clone()? } else { p.knots[k - 1].clone() };
            let b = if k == p.knots.len() { p.ends.1.clone()? } else { p.knots[k].clone() };
            let weight = (&r - &l) / (&b - &a);
            let bias = &l - &weight * &a;
            let out = slope * (&b - &a) / (&high - &low);
            units.push(plain(weight, bias, out));
        }
        let at = p.knots.first().cloned().or_else(|| p.ends.0.clone()).unwrap_or_else(|| q(0, 1));
        let sigma = |u: Rational| {
            let u = u.max(l.clone()).min(r.clone());
            &low + (u - &l) * (&high - &low) / (&r - &l)
        };
        let have: Rational = units.iter().map(|n| &n.out * sigma(&n.weight * &at + &n.bias)).sum();
        let piece = p.knots.iter().filter(|t| **t < at).count();
        Some(Draft { units, constant: p.polys[piece].value(&at) - have })
    }

    /// Piecewise quadratics from relu². At a knot P₊ − P₋ = c + b·u + a·u², u = z − t. For u ≥ h that is
    ///
    /// A₋(u + h)² + A₀u² + A₊(u − h)²,   A₋ + A₊ = c/h²,   A₋ − A₊ = b/(2h),   A₀ = a − c/h²
    ///
    /// (compare coefficients), and 0 for u ≤ −h: one neuron for each of the three that is not 0. In between it is a C¹ spline.
    /// Jumps (c ≠ 0) have h = `radius`; kinks (b ≠ 0) have h = `knee`, and are off by |b|·h/4 at most, at u = 0.
    fn squares(&self, p: &PiecewisePolynomial, knee: Option<&Rational>) -> Option<Draft> {
        if *self.source != Activation::Relu2 || p.degree() > 2 {
            return None;
        }
        let mut units: Units = Vec::new();
        for (k, t) in p.knots.iter().enumerate() {
            let d: Vec<Rational> = (0..3).map(|j| p.polys[k + 1].coefficient(j) - p.polys[k].coefficient(j)).collect();
            let a = d[2].clone();
            let b = &d[1] + q(2, 1) * &a * t;
            let c = &d[0] + t * (&d[1] + &a * t);
            if b.is_zero() && c.is_zero() {
                units.push(plain(q(1, 1), -t, a));
                continue;
            }
            let h = if c.is_zero() { knee? } else { &self.radius };
            if !h.is_positive() {
                return None;
            }
            let (even, odd) = (&c / (h * h), &b / (q(2, 1) * h));
            units.push(plain(q(1, 1), h - t, (&even + &odd) / q(2, 1)));
            units.push(plain(q(1, 1), -t, a - &even));
            units.push(plain(q(1, 1), -(h + t), (even - odd) / q(2, 1)));
        }
        let rest = self.polynomial(&p.polys[0])?;
        units.extend(rest.units);
        Some(Draft { units, constant: rest.constant })
    }

    /// Continuous piecewise quadratics from a gated kink source: one neuron a knot, and the leftmost quadratic.
    fn gated_kinks(&self, p: &PiecewisePolynomial) -> Option<Draft> {
        let alpha = self.kink()?;
        if !self.gated || p.degree() > 2 {
            return None;
        }
        let gap = q(1, 1) - &alpha;
        let mut units: Units = Vec::new();
        let mut first = p.polys[0].coefficients().to_vec();
        first.resize(3, q(0, 1));
        for (k, t) in p.knots.iter().enumerate() {
            // P₊ − P₋ = (z − t)(a·z + b), continuous at t; σ(z − t) contributes α(z − t)(…) on its left.
            let d: Vec<Rational> = (0..3).map(|j| p.polys[k + 1].coefficient(j) - p.polys[k].coefficient(j)).collect();
            let a = &d[2] / &gap;
            let b = (&d[1] + &d[2] * t) / &gap;
            if !(&d[0] + t * (&d[1] + &d[2] * t)).is_zero() {
                return None;
            }
            first[2] -= &alpha * &a;
            first[1] -= &alpha * (&b - &a * t);
            first[0] += &alpha * &b * t;
            units.push(gated(q(1, 1), -t, q(1, 1), (a, b)));
        }
        let rest = self.polynomial(&Poly::new(first))?;
        units.extend(rest.units);
        Some(Draft { units, constant: rest.constant })
    }

    /// Continuous piecewise polynomials from whatever the source offers, best first.
    fn continuous(&self, p: &PiecewisePolynomial) -> Vec<Draft> {
        if p.knots.is_empty() {
            return [self.polynomial(&p.polys[0]), self.segments_if_linear(p)].into_iter().flatten().collect();
        }
        let linear = p.degree() <= 1;
        let options = [
            if linear { self.kinks(p) } else { None },
            self.segments_if_linear(p),
            self.squares(p, None),
            self.gated_kinks(p),
        ];
        options.into_iter().flatten().collect()
    }

    fn segments_if_linear(&self, p: &PiecewisePolynomial) -> Option<Draft> {
        if p.degree() <= 1 { self.segments(p) } else { None }
    }

    /// Piecewise polynomials, jumps included: ramps replace them.
    fn piecewise(&self, p: &PiecewisePolynomial) -> Vec<Draft> {
        if p.jumps().is_empty() {
            return self.continuous(p);
        }
        if !self.radius.is_positive() {
            return vec![];
        }
        if *self.source == Activation::Relu2 {
            return self.squares(p, None).into_iter().collect();
        }
        let mut out = self.continuous(&p.ramped(&self.radius, &|x, y| self.quotient(x, y)));
        // Pairs of equal outer weights for the steps, and the continuous rest: one neuron more a jump, but in floating
        // point the large slopes of a pair cancel exactly.
        for mut rest in self.continuous(&p.without_jumps()) {
            for (theta, height) in p.jumps() {
                match (self.kink(), self.ramp()) {
                    (Some(alpha), _) if alpha != q(-1, 1) => {
                        let out = self.quotient(&height, &(q(2, 1) * &self.radius * (q(1, 1) - &alpha)));
                        rest.units.push(plain(q(1, 1), &self.radius - &theta, out.clone()));
                        rest.units.push(plain(q(1, 1), -&self.radius - &theta, -&out));
                        // α of both slopes cancels; what stays is the constant 2·radius·α·out.
                        rest.constant -= q(2, 1) * &self.radius * alpha * out;
                    }
                    (_, Some((l, r, low, high))) => {
                        let weight = (&r - &l) / (q(2, 1) * &self.radius);
                        let bias = &l - &weight * (&theta - &self.radius);
                        let out = &height / (&high - &low);
                        rest.constant -= &out * &low;
                        rest.units.push(plain(weight, bias, out));
                    }
                    _ => return out,
                }
            }
            out.push(rest);
        }
        out
    }

    /// Neurons of the source that carry the target's atoms, if their kinds fit.
    fn relatives(&self, atom: &Atom, c: &Poly) -> Vec<Neuron<Rational>> {
        let Atom { kind, a, b } = atom;
        let u = (a.clone(), b.clone());
        let scaled = |k: &Rational| (&u.0 * k, &u.1 * k);
        // c(z) = (az + b)·(p·z + r), or nothing.
        let divided = || -> Option<(Rational, Rational)> {
            if a.is_zero() || c.degree() > 2 {
                return None;
            }
            let p = c.coefficient(2) / a;
            let r = (c.coefficient(1) - &p * b) / a;
            (c.coefficient(0) == &r * b).then_some((p, r))
        };
        let make = |(weight, bias): (Rational, Rational), factor: Rational, up: (Rational, Rational)| {
            if up.0.is_zero() && !self.gated {
                vec![plain(weight, bias, factor * up.1)]
            } else if self.gated {
                if up.0.is_zero() {
                    vec![gated(weight, bias, factor * up.1, (q(0, 1), q(1, 1)))]
                } else {
                    vec![gated(weight, bias, factor, up)]
                }
            } else {
                vec![]
            }
        };
        let line = || (c.degree() <= 1).then(|| (c.coefficient(1), c.coefficient(0)));
        let one = q(1, 1);
        use Activation::*;
        match (self.source, kind) {
            // σ(v) = v·sigmoid(βv), v = u/β: (u/β)·sigmoid(u).
            (Silu | Swish(_) | QuickGelu, Kind::Sigmoid) => {
                let beta = self.source.swish_beta().expect("swish family").exact().clone();
                divided().map_or(vec![], |up| make(scaled(&beta.recip()), beta, up))
            }
            (Gelu, Kind::Phi) | (GeluTanh, Kind::Cubic) | (Mish, Kind::Mish) => {
                divided().map_or(vec![], |up| make(u, one, up))
            }
            (Sigmoid, Kind::Sigmoid) | (Softplus, Kind::Softplus) => line().map_or(vec![], |up| make(u, one, up)),
            // tanh(u/2) = 2·sigmoid(u) − 1
            (Tanh, Kind::Sigmoid) => line().map_or(vec![], |up| make(scaled(&q(1, 2)), q(1, 2), up)),
            // scale·α·e^(v/γ), v = γu
            (Elu(_) | Selu | Celu(_), Kind::Exp) => {
                let (scale, alpha, gamma) = self.source.elu_parameters().expect("elu family");
                let factor = (scale.exact() * alpha.exact()).recip();
                line().map_or(vec![], |up| make(scaled(gamma.exact()), factor, up))
            }
            // ±(1 − 1/(1 + |u|)): either orientation, the rest decides.
            (Softsign, Kind::Recip) => line().map_or(vec![], |up| make(u, -one, up)),
            _ => vec![],
        }
    }
}

/// Stacks that equal the target (outside of ramps of the given radius around its jumps), best first.
pub fn constructions(target: &Expr, setting: &Setting<'_>) -> Result<Vec<IdealStack>> {
    Ok(drafts(target, setting)?.into_iter().filter_map(|d| setting.finish(d)).collect())
}

fn drafts(target: &Expr, setting: &Setting<'_>) -> Result<Vec<Draft>> {
    let canonical = Canonical::new(target, setting.domain)?;
    if let Some(p) = canonical.polynomial() {
        return Ok(setting.piecewise(&p));
    }
    // Take the source's own atoms out; what is left must be a piecewise polynomial.
    let mut units = Vec::new();
    let mut seen: Vec<Atom> = Vec::new();
    for (atom, c) in canonical.atoms() {
        // ±(az + b) of one reciprocal belong to one neuron.
        if atom.kind == Kind::Recip && seen.iter().any(|s| s.a == -&atom.a && s.b == -&atom.b) {
            continue;
        }
        units.extend(setting.relatives(&atom, &c));
        seen.push(atom);
    }
    if units.is_empty() {
        return Ok(vec![]);
    }
    let draft = Draft { units: units.clone(), constant: Rational::zero() };
    let unlimited = Setting { constant: true, ..setting.clone() };
    let Some(own) = unlimited.finish(draft) else { return Ok(vec![]) };
    let rest = Canonical::new(&target.clone().minus(own.expr()), setting.domain)?;
    let mut drafts = rest.polynomial().map_or(vec![], |p| setting.piecewise(&p));
    drafts.iter_mut().for_each(|d| d.units.splice(0..0, units.iter().cloned()).for_each(drop));
    Ok(drafts)
}

/// The target with every kink made of a steep neuron: relu(u) ≈ σ(βu)/(β·slope). For sources that look like relu from
/// afar; the error is the knee's, max|σ − relu|/β per unit of slope change, and decays exponentially away from it. From relu²
/// a kink is (σ(βu + 1) − σ(βu − 1))/(4β), off by 1/(4β) at u = 0 and by nothing for |u| ≥ 1/β.
pub fn steep(target: &Expr, setting: &Setting<'_>, beta: &Number) -> Result<Vec<IdealStack>> {
    use Activation::*;
    let source = setting.source;
    if *source == Relu2 {
        let Some(p) = Canonical::new(target, setting.domain)?.polynomial() else { return Ok(vec![]) };
        let Some(mut draft) = setting.squares(&p, Some(&beta.exact().recip())) else { return Ok(vec![]) };
        // σ(u) = σ(βu)/β²
        for n in draft.units.iter_mut().filter(|n| n.up.is_none()) {
            n.weight *= beta.exact();
            n.bias *= beta.exact();
            n.out /= beta.exact() * beta.exact();
        }
        return Ok(setting.finish(draft).into_iter().collect());
    }
    if !matches!(
        source,
        Silu | Swish(_) | QuickGelu | Gelu | GeluTanh | Mish | Softplus | Elu(_) | Selu | Celu(_) | Hardswish
    ) {
        return Ok(vec![]);
    }
    let relu = Setting { source: &Relu, constant: true, unit: q(1, 1), exact: false, ..setting.clone() };
    let slope = source.tail(crate::activation::Side::Right).asymptote[1].exact().clone();
    let left = source.tail(crate::activation::Side::Left).asymptote[0].exact().clone();
    let scale = (beta.exact() * &slope).recip();
    let mut stacks = Vec::new();
    for relus in drafts(target, &relu)? {
        let mut draft = Draft { units: vec![], constant: relus.constant };
        for n in relus.units.into_iter().filter(|n| !n.out.is_zero()) {
            let out = n.out * &scale;
            // elu and its kin tend to a constant on the left, not to 0.
            match &n.up {
                Some((w, b)) if w.is_zero() => draft.constant -= &out * &left * b,
                None => draft.constant -= &out * &left,
                Some(_) if left.is_zero() => {}
                Some(_) => return Ok(stacks),
            }
            draft.units.push(Neuron { weight: n.weight * beta.exact(), bias: n.bias * beta.exact(), out, up: n.up });
        }
        stacks.extend(setting.finish(draft));
    }
    Ok(stacks)
}

/// Piecewise-constant targets (gated: piecewise affine) from steep sigmoids: one neuron a jump.
pub fn steep_steps(target: &Expr, setting: &Setting<'_>, beta: &Number) -> Result<Vec<IdealStack>> {
    use Activation::*;
    let (low, high) = match setting.source {
        Sigmoid => (q(0, 1), q(1, 1)),
        Tanh | Softsign => (q(-1, 1), q(1, 1)),
        _ => return Ok(vec![]),
    };
    let Some(p) = Canonical::new(target, setting.domain)?.polynomial() else { return Ok(vec![]) };
    if p.degree() > usize::from(setting.gated) || p.knots.is_empty() {
        return Ok(vec![]);
    }
    let span = &high - &low;
    let mut units = Vec::new();
    // σ = low + span·step: what the low side adds belongs to the polynomial that is always there.
    let mut always = p.polys[0].coefficients().to_vec();
    always.resize(2, q(0, 1));
    for (k, t) in p.knots.iter().enumerate() {
        let d: Vec<Rational> =
            (0..2).map(|j| (p.polys[k + 1].coefficient(j) - p.polys[k].coefficient(j)) / &span).collect();
        always[0] -= &low * &d[0];
        always[1] -= &low * &d[1];
        let (weight, bias) = (beta.exact().clone(), -(beta.exact() * t));
        units.push(if setting.gated {
            gated(weight, bias, Rational::one(), (d[1].clone(), d[0].clone()))
        } else {
            plain(weight, bias, d[0].clone())
        });
    }
    let Some(rest) = setting.polynomial(&Poly::new(always)) else { return Ok(vec![]) };
    units.extend(rest.units);
    Ok(setting.finish(Draft { units, constant: rest.constant }).into_iter().collect())
}
