//! The catalogue of activations: values, derivatives, enclosures, asymptotes with tail bounds, knots, identities.
//!
//! Part of the trusted base. Names, formulas and default parameters are PyTorch's (`torch.nn.functional`) and those of
//! `transformers/src/transformers/activations.py`; constants are exact rationals.
//!
//! Writing s = sigmoid(t) = 1/(1 + e^−t) and s̄ = 1 − s = sigmoid(−t), so that s′ = s·s̄:
//!
//! | name | σ(t) |
//! |---|---|
//! | relu, leaky_relu:α, relu2, relu6 | max(t, 0); t or αt; max(t, 0)²; min(max(t, 0), 6) |
//! | hardtanh, hardsigmoid, hardswish | clamp(t, −1, 1); relu6(t + 3)/6; t·relu6(t + 3)/6 |
//! | silu, swish:β, quick_gelu | t·sigmoid(t); t·sigmoid(βt); t·sigmoid(1.702t) |
//! | gelu, gelu_tanh | t·Φ(t); t·(1 + tanh(√(2/π)(t + 0.044715t³)))/2 |
//! | mish, softplus | t·tanh(softplus(t)); ln(1 + e^t) |
//! | elu:α, selu, celu:α | t or α(e^t − 1); λ·elu(t; α*); t or α(e^(t/α) − 1) |
//! | sigmoid, tanh, softsign | s; tanh t; t/(1 + \|t\|) |
//! | abs, identity | \|t\|; t |

use std::f64::consts::{FRAC_1_SQRT_2, PI};
use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result, nearest};
use crate::interval::Interval;
use crate::number::Number;

/// One activation function of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Activation {
    /// max(t, 0)
    Relu,
    /// t for t > 0, αt otherwise; 0 ≤ α < 1
    LeakyRelu(Number),
    /// max(t, 0)²
    Relu2,
    /// min(max(t, 0), 6)
    Relu6,
    /// clamp(t, −1, 1)
    Hardtanh,
    /// relu6(t + 3)/6
    Hardsigmoid,
    /// t·relu6(t + 3)/6
    Hardswish,
    /// t·sigmoid(t)
    Silu,
    /// t·sigmoid(βt), β > 0
    Swish(Number),
    /// t·Φ(t), Φ the normal distribution function
    Gelu,
    /// the tanh approximation of gelu
    GeluTanh,
    /// t·sigmoid(1.702t)
    QuickGelu,
    /// t·tanh(softplus(t))
    Mish,
    /// ln(1 + e^t)
    Softplus,
    /// t for t > 0, α(e^t − 1) otherwise; α > 0
    Elu(Number),
    /// λ·elu(t; α*) with the constants of Klambauer et al. 2017
    Selu,
    /// t for t > 0, α(e^(t/α) − 1) otherwise; α > 0
    Celu(Number),
    /// 1/(1 + e^−t)
    Sigmoid,
    /// tanh t
    Tanh,
    /// t/(1 + |t|)
    Softsign,
    /// |t|
    Abs,
    /// t
    Identity,
}

/// Every name of the catalogue, in the order of the documentation; parameters at their defaults.
pub const NAMES: [&str; 22] = [
    "relu",
    "leaky_relu",
    "relu2",
    "relu6",
    "hardtanh",
    "hardsigmoid",
    "hardswish",
    "silu",
    "swish",
    "gelu",
    "gelu_tanh",
    "quick_gelu",
    "mish",
    "softplus",
    "elu",
    "selu",
    "celu",
    "sigmoid",
    "tanh",
    "softsign",
    "abs",
    "identity",
];

const ALIASES: [(&str, &str); 14] = [
    ("gelu_new", "gelu_tanh"),
    ("gelu_pytorch_tanh", "gelu_tanh"),
    ("gelu_fast", "gelu_tanh"),
    ("gelu_python", "gelu"),
    ("gelu_erf", "gelu"),
    ("gelu_none", "gelu"),
    ("relu_squared", "relu2"),
    ("relu_2", "relu2"),
    ("hard_swish", "hardswish"),
    ("hard_sigmoid", "hardsigmoid"),
    ("hard_tanh", "hardtanh"),
    ("linear", "identity"),
    ("leakyrelu", "leaky_relu"),
    ("swiglu", "silu"),
];

/// The direction of a tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// t → −∞
    Left,
    /// t → +∞
    Right,
}

/// σ(t) = c0 + c1·t + c2·t² + R(t) towards one side, with |R(t)| ≤ amplitude·|t|^power·e^(−rate·|t|) for |t| ≥ from
/// (or ≤ amplitude/(1 + |t|) where `algebraic`).
#[derive(Clone, Debug)]
pub struct Tail {
    /// c0, c1, c2
    pub asymptote: [Number; 3],
    amplitude: f64,
    power: i32,
    rate: f64,
    from: f64,
    algebraic: bool,
}

impl Tail {
    /// Upper bound of |t|^k·|R(t)| over all t of this side with |t| ≥ t0; infinite where none is known.
    pub fn remainder(&self, t0: f64, k: i32) -> f64 {
        let inside = t0 >= self.from;
        if !inside {
            return f64::INFINITY;
        }
        if self.amplitude == 0.0 {
            return 0.0;
        }
        let t = Interval::point(t0);
        if self.algebraic {
            // |t|^k/(1 + |t|) decreases for k = 0, stays below 1 for k = 1, grows for k ≥ 2.
            return match k {
                0 => (Interval::point(self.amplitude) / (Interval::ONE + t)).hi(),
                1 => self.amplitude,
                _ => f64::INFINITY,
            };
        }
        // |t|^m e^(−r|t|) decreases where |t| ≥ m/r.
        let m = self.power + k;
        let decreases = t0 * self.rate >= f64::from(m) + 1e-9;
        if !decreases {
            return f64::INFINITY;
        }
        let mut bound = Interval::point(self.amplitude) * (-(Interval::point(self.rate) * t)).exp();
        for _ in 0..m {
            bound = bound * t;
        }
        bound.hi()
    }
}

/// Enclosures of a function, its derivative and its second derivative over one box.
///
/// Where the box straddles a kink, `d1` is the hull of the one-sided derivatives and `d2` the real line; where it
/// straddles a jump, `d1` is the real line too.
#[derive(Clone, Copy, Debug)]
pub struct Jet {
    /// the values
    pub v: Interval,
    /// the first derivatives
    pub d1: Interval,
    /// the second derivatives
    pub d2: Interval,
}

impl Activation {
    /// Every activation at its default parameters.
    pub fn catalogue() -> Vec<Activation> {
        NAMES.iter().map(|n| n.parse().expect("a catalogue name parses")).collect()
    }

    /// λ and α* of selu, as PyTorch states them.
    pub fn selu_constants() -> (Number, Number) {
        let read = |s: &str| s.parse().expect("a literal");
        (read("1.0507009873554804934193349852946"), read("1.6732632423543772848170429916717"))
    }

    /// β of the family t·sigmoid(βt), if σ belongs to it.
    pub fn swish_beta(&self) -> Option<Number> {
        match self {
            Activation::Silu => Some(Number::one()),
            Activation::QuickGelu => Some(Number::ratio(1702, 1000)),
            Activation::Swish(beta) => Some(beta.clone()),
            _ => None,
        }
    }

    /// (scale, α, γ) where σ(t) = scale·t for t > 0 and scale·α(e^(t/γ) − 1) otherwise.
    pub fn elu_parameters(&self) -> Option<(Number, Number, Number)> {
        match self {
            Activation::Elu(a) => Some((Number::one(), a.clone(), Number::one())),
            Activation::Celu(a) => Some((Number::one(), a.clone(), a.clone())),
            Activation::Selu => {
                let (scale, a) = Self::selu_constants();
                Some((scale, a, Number::one()))
            }
            _ => None,
        }
    }

    /// d where σ(κt) = κ^d·σ(t) for all t and κ > 0: of an inner weight only the sign matters then.
    pub fn homogeneity(&self) -> Option<u32> {
        let (knots, pieces) = self.polynomial_pieces()?;
        let powers = |d: usize| pieces.iter().all(|p| (0..3).all(|k| k == d || p[k].is_zero()));
        [1, 2].into_iter().find(|d| knots.iter().all(Number::is_zero) && powers(*d as usize))
    }

    /// κ where σ(t) − σ(−t) = κt for all t: the identity behind exact linear responses.
    pub fn odd_part(&self) -> Option<Number> {
        use Activation::*;
        match self {
            Relu | Silu | Swish(_) | Gelu | GeluTanh | QuickGelu | Softplus | Hardswish => Some(Number::one()),
            LeakyRelu(a) => Some(&Number::one() + a),
            Identity => Some(Number::from(2)),
            _ => None,
        }
    }

    /// Knots and, between them, the coefficients [c0, c1, c2] of σ; `None` unless σ is a piecewise polynomial.
    pub fn polynomial_pieces(&self) -> Option<(Vec<Number>, Vec<[Number; 3]>)> {
        use Activation::*;
        let n = |p: i64, q: i64| Number::ratio(p, q);
        let poly = |a: Number, b: Number, c: Number| [a, b, c];
        let zero = || poly(n(0, 1), n(0, 1), n(0, 1));
        let constant = |c: Number| poly(c, n(0, 1), n(0, 1));
        let line = |a: Number, b: Number| poly(a, b, n(0, 1));
        let t = || line(n(0, 1), n(1, 1));
        Some(match self {
            Relu => (vec![n(0, 1)], vec![zero(), t()]),
            LeakyRelu(a) => (vec![n(0, 1)], vec![line(n(0, 1), a.clone()), t()]),
            Relu2 => (vec![n(0, 1)], vec![zero(), poly(n(0, 1), n(0, 1), n(1, 1))]),
            Relu6 => (vec![n(0, 1), n(6, 1)], vec![zero(), t(), constant(n(6, 1))]),
            Hardtanh => (vec![n(-1, 1), n(1, 1)], vec![constant(n(-1, 1)), t(), constant(n(1, 1))]),
            Hardsigmoid => (vec![n(-3, 1), n(3, 1)], vec![zero(), line(n(1, 2), n(1, 6)), constant(n(1, 1))]),
            Hardswish => (vec![n(-3, 1), n(3, 1)], vec![zero(), poly(n(0, 1), n(1, 2), n(1, 6)), t()]),
            Abs => (vec![n(0, 1)], vec![line(n(0, 1), n(-1, 1)), t()]),
            Identity => (vec![], vec![t()]),
            _ => return None,
        })
    }

    /// Where σ is not twice continuously differentiable, in increasing order.
    pub fn knots(&self) -> Vec<Number> {
        match self {
            Activation::Elu(_) | Activation::Selu | Activation::Celu(_) | Activation::Softsign => vec![Number::zero()],
            _ => self.polynomial_pieces().map(|(knots, _)| knots).unwrap_or_default(),
        }
    }

    /// Is σ continuously differentiable at its knots?
    pub fn is_c1(&self) -> bool {
        match self {
            Activation::Celu(_) | Activation::Softsign | Activation::Relu2 => true,
            Activation::Elu(a) => a.is_one(),
            _ => self.knots().is_empty(),
        }
    }

    /// Is σ bounded on all of R?
    pub fn is_bounded(&self) -> bool {
        use Activation::*;
        matches!(self, Relu6 | Hardtanh | Hardsigmoid | Sigmoid | Tanh | Softsign)
    }

    /// Asymptote and remainder towards one side. Each bound is derived beside it.
    pub fn tail(&self, side: Side) -> Tail {
        use Activation::*;
        let zero = Number::zero;
        let (c0, c1, c2);
        let (mut amplitude, mut power, mut rate, mut from, mut algebraic) = (0.0, 0, 1.0, 0.0, false);
        let right = side == Side::Right;
        if let Some((knots, pieces)) = self.polynomial_pieces() {
            let [a, b, c] = if right { pieces[pieces.len() - 1].clone() } else { pieces[0].clone() };
            (c0, c1, c2) = (a, b, c);
            from = knots.iter().map(|k| k.enclosure().mag()).fold(0.0, f64::max);
        } else {
            let identity_or_zero = |right: bool| (zero(), if right { Number::one() } else { zero() }, zero());
            match self {
                Silu | Swish(_) | QuickGelu => {
                    // t − t·sigmoid(βt) = t/(1 + e^βt) ≤ t·e^(−βt) for t > 0, and the mirror image for t < 0.
                    (c0, c1, c2) = identity_or_zero(right);
                    let beta = self.swish_beta().expect("swish family");
                    (amplitude, power, rate) = (1.0, 1, beta.enclosure().lo());
                }
                Gelu => {
                    // |t|·Φ(−|t|) ≤ φ(t) (Mills' ratio, Gordon 1941) ≤ 0.4·e^(−t²/2) ≤ 0.4·e^(−|t|) for |t| ≥ 2.
                    (c0, c1, c2) = identity_or_zero(right);
                    (amplitude, from) = (0.4, 2.0);
                }
                GeluTanh => {
                    // (1 + tanh(p/2))/2 = sigmoid(p) with |p| = 2√(2/π)(|t| + 0.044715|t|³) ≥ 1.59|t|: remainder ≤ |t|·e^−|t|.
                    (c0, c1, c2) = identity_or_zero(right);
                    (amplitude, power) = (1.0, 1);
                }
                Mish => {
                    // tanh(softplus(t)) = n/(n + 2), n = e^2t + 2e^t. For t > 0: 1 − n/(n+2) = 2/(n+2) ≤ 2e^−2t ≤ 2e^−t;
                    // for t < 0: n/(n+2) ≤ n/2 = e^t(e^t/2 + 1) ≤ 1.5·e^t. Times |t|.
                    (c0, c1, c2) = identity_or_zero(right);
                    (amplitude, power) = (2.0, 1);
                }
                Softplus => {
                    // softplus(t) − t = softplus(−t) = ln(1 + e^−t) ≤ e^−t for t > 0; softplus(t) ≤ e^t for t < 0.
                    (c0, c1, c2) = identity_or_zero(right);
                    amplitude = 1.0;
                }
                Elu(_) | Selu | Celu(_) => {
                    // Linear on the right; scale·α·(e^(t/γ) − 1) on the left.
                    let (scale, alpha, gamma) = self.elu_parameters().expect("elu family");
                    if right {
                        (c0, c1, c2) = (zero(), scale, zero());
                    } else {
                        let sa = &scale * &alpha;
                        amplitude = sa.enclosure().hi();
                        rate = (Interval::ONE / gamma.enclosure()).lo();
                        (c0, c1, c2) = (-sa, zero(), zero());
                    }
                }
                Sigmoid => {
                    // 1 − sigmoid(t) = sigmoid(−t) ≤ e^−t.
                    (c0, c1, c2) = (if right { Number::one() } else { zero() }, zero(), zero());
                    amplitude = 1.0;
                }
                Tanh => {
                    // 1 − tanh t = 2/(e^2t + 1) ≤ 2e^−2t.
                    (c0, c1, c2) = (if right { Number::one() } else { Number::from(-1) }, zero(), zero());
                    (amplitude, rate) = (2.0, 2.0);
                }
                Softsign => {
                    // 1 − t/(1 + t) = 1/(1 + t).
                    (c0, c1, c2) = (if right { Number::one() } else { Number::from(-1) }, zero(), zero());
                    (amplitude, algebraic) = (1.0, true);
                }
                _ => unreachable!("piecewise polynomials are handled above"),
            }
        }
        Tail { asymptote: [c0, c1, c2], amplitude, power, rate, from, algebraic }
    }

    /// The knots as floats: all of them are integers. Equal to [`knots`](Self::knots), without its allocations.
    fn float_knots(&self) -> &'static [f64] {
        use Activation::*;
        match self {
            Relu | LeakyRelu(_) | Relu2 | Abs | Elu(_) | Selu | Celu(_) | Softsign => &[0.0],
            Relu6 => &[0.0, 6.0],
            Hardtanh => &[-1.0, 1.0],
            Hardsigmoid | Hardswish => &[-3.0, 3.0],
            _ => &[],
        }
    }

    /// The index of the smooth branch that the open interval around `t` (no knot inside) belongs to.
    pub fn branch(&self, t: f64) -> usize {
        self.float_knots().iter().filter(|&&k| k <= t).count()
    }

    /// Enclosures of σ, σ′, σ″ over `t`. A point at a knot belongs to both branches.
    pub fn jet(&self, t: Interval) -> Jet {
        let knots = self.float_knots();
        let first = knots.iter().filter(|&&k| k <= t.lo()).count();
        let last = knots.iter().filter(|&&k| k < t.hi()).count();
        if first == last {
            return self.branch_jet(first, t);
        }
        // Clip to each branch, then join: σ is continuous. At a point on a knot, the branch to its left has the lower index.
        let (first, last) = (first.min(last), first.max(last));
        let clip = |k: usize| {
            let lo = if k == 0 { t.lo() } else { t.lo().max(knots[k - 1]) };
            let hi = if k == knots.len() { t.hi() } else { t.hi().min(knots[k]) };
            Interval::new(lo, hi)
        };
        let mut jet = self.branch_jet(first, clip(first));
        for k in first + 1..=last {
            let next = self.branch_jet(k, clip(k));
            jet = Jet { v: jet.v.hull(next.v), d1: jet.d1.hull(next.d1), d2: jet.d2.hull(next.d2) };
        }
        if !self.is_c1() {
            jet.d2 = Interval::ENTIRE;
        }
        jet
    }

    /// Enclosures over `t` of the smooth function that σ is on one branch (continued beyond the branch's ends).
    pub fn branch_jet(&self, branch: usize, t: Interval) -> Jet {
        use Activation::*;
        let p = Interval::point;
        let jet = |v, d1, d2| Jet { v, d1, d2 };
        let zero = Interval::ZERO;
        let constant = |c: f64| jet(p(c), zero, zero);
        let line = |slope: Interval| jet(slope * t, slope, zero);
        match self {
            Relu | Relu6 | Relu2 if branch == 0 => constant(0.0),
            Relu6 if branch == 2 => constant(6.0),
            Relu | Relu6 | Identity => jet(t, Interval::ONE, zero),
            Relu2 => jet(t.sqr(), p(2.0) * t, p(2.0)),
            LeakyRelu(a) => line(if branch == 0 { a.enclosure() } else { Interval::ONE }),
            Abs => line(p(if branch == 0 { -1.0 } else { 1.0 })),
            Hardtanh if branch == 1 => jet(t, Interval::ONE, zero),
            Hardtanh => constant(branch as f64 - 1.0),
            Hardsigmoid if branch == 1 => jet((t + p(3.0)) / p(6.0), Interval::ONE / p(6.0), zero),
            Hardsigmoid => constant(branch as f64 / 2.0),
            Hardswish if branch == 0 => constant(0.0),
            Hardswish if branch == 2 => jet(t, Interval::ONE, zero),
            Hardswish => {
                // t(t + 3)/6 = (t + 3/2)²/6 − 3/8: the product is sharp at points, the square over wide boxes.
                let square = (t + p(1.5)).sqr() / p(6.0) - p(0.375);
                let v = (t * (t + p(3.0)) / p(6.0)).tighten(square);
                jet(v, t / p(3.0) + p(0.5), Interval::ONE / p(3.0))
            }
            Silu => swish_jet(t),
            QuickGelu => scaled_swish_jet(QUICK_GELU_BETA, t),
            Swish(beta) => scaled_swish_jet(beta.enclosure(), t),
            Gelu => gelu_jet(t),
            GeluTanh => gelu_tanh_jet(t),
            Mish => mish_jet(t),
            Softplus => {
                let (s, _, bell) = sigmoids_and_bell(t);
                jet(softplus_value(t), s, bell)
            }
            Elu(_) | Selu | Celu(_) => {
                let one = Interval::ONE;
                let (scale, alpha, gamma) = match self {
                    Elu(a) => (one, a.enclosure(), one),
                    Celu(a) => (one, a.enclosure(), a.enclosure()),
                    _ => (SELU_SCALE, SELU_ALPHA, one),
                };
                if branch == 1 {
                    return jet(scale * t, scale, zero);
                }
                let e = (t / gamma).exp();
                let sa = scale * alpha;
                jet(sa * (t / gamma).exp_m1(), sa / gamma * e, sa / gamma.sqr() * e)
            }
            Sigmoid => {
                let (s, c, d1) = sigmoids_and_bell(t);
                // |s s̄ (s̄ − s)| ≤ √3/18 < 0.09623.
                jet(s, d1, (d1 * (c - s)).tighten(Interval::symmetric(0.09623)))
            }
            Tanh => {
                // sech² t = 4·sigmoid(2t)·sigmoid(−2t) keeps its relative accuracy in the tails; |2 tanh sech²| ≤ 4√3/9 < 0.7699.
                let double = p(2.0) * t;
                let (_, _, bell) = sigmoids_and_bell(double);
                let v = t.tanh();
                let d1 = p(4.0) * bell;
                jet(v, d1, (p(-2.0) * v * d1).tighten(Interval::symmetric(0.7699)))
            }
            Softsign => {
                // On the right branch t/(1 + t), on the left t/(1 − t); both continue beyond 0 (the real line at the pole).
                let sign = if branch == 1 { 1.0 } else { -1.0 };
                let q = Interval::ONE + p(sign) * t;
                let r = Interval::ONE / q;
                // t/(1 + |t|) = sign·(1 − 1/(1 + |t|)), increasing; near 0 the quotient itself keeps relative accuracy.
                let v = (p(sign) * (Interval::ONE - r)).tighten(t / q);
                jet(v, r.sqr(), p(-2.0 * sign) * r.sqr() * r)
            }
        }
    }

    /// σ(t) in floating point: for search, never for a bound.
    pub fn value(&self, t: f64) -> f64 {
        self.derivatives(t)[0]
    }

    /// [σ(t), σ′(t), σ″(t)] in floating point (right-hand limits at knots): for search, never for a bound.
    pub fn derivatives(&self, t: f64) -> [f64; 3] {
        use Activation::*;
        let sigmoid = |t: f64| if t >= 0.0 { 1.0 / (1.0 + (-t).exp()) } else { t.exp() / (1.0 + t.exp()) };
        let swish = |beta: f64| {
            let (s, c) = (sigmoid(beta * t), sigmoid(-beta * t));
            [t * s, s + beta * t * s * c, beta * s * c * (2.0 + beta * t * (c - s))]
        };
        let step = |x: [f64; 3]| if t >= 0.0 { x } else { [0.0; 3] };
        match self {
            Relu => step([t, 1.0, 0.0]),
            LeakyRelu(a) => {
                if t >= 0.0 {
                    [t, 1.0, 0.0]
                } else {
                    let a = a.to_f64();
                    [a * t, a, 0.0]
                }
            }
            Relu2 => step([t * t, 2.0 * t, 2.0]),
            Relu6 => {
                if t < 6.0 {
                    step([t, 1.0, 0.0])
                } else {
                    [6.0, 0.0, 0.0]
                }
            }
            Hardtanh => {
                if t < -1.0 {
                    [-1.0, 0.0, 0.0]
                } else if t < 1.0 {
                    [t, 1.0, 0.0]
                } else {
                    [1.0, 0.0, 0.0]
                }
            }
            Hardsigmoid => {
                if t < -3.0 {
                    [0.0; 3]
                } else if t < 3.0 {
                    [t / 6.0 + 0.5, 1.0 / 6.0, 0.0]
                } else {
                    [1.0, 0.0, 0.0]
                }
            }
            Hardswish => {
                if t < -3.0 {
                    [0.0; 3]
                } else if t < 3.0 {
                    [t * (t + 3.0) / 6.0, t / 3.0 + 0.5, 1.0 / 3.0]
                } else {
                    [t, 1.0, 0.0]
                }
            }
            Silu => swish(1.0),
            QuickGelu => swish(1.702),
            Swish(b) => swish(b.to_f64()),
            Gelu => {
                let pdf = (-0.5 * t * t).exp() / (2.0 * PI).sqrt();
                let cdf = 0.5 * pxfm::f_erfc(-t * FRAC_1_SQRT_2);
                [t * cdf, cdf + t * pdf, pdf * (2.0 - t * t)]
            }
            GeluTanh => {
                if t.abs() > 100.0 {
                    // Saturated, and the powers of t below would overflow.
                    return if t > 0.0 { [t, 1.0, 0.0] } else { [0.0; 3] };
                }
                let k = 2.0 * (2.0 / PI).sqrt();
                let (q, q1, q2) = (k * (t + 0.044715 * t * t * t), k * (1.0 + 0.134145 * t * t), k * 0.26829 * t);
                let (s, c) = (sigmoid(q), sigmoid(-q));
                [t * s, s + t * s * c * q1, s * c * (2.0 * q1 + t * ((c - s) * q1 * q1 + q2))]
            }
            Mish => {
                let (s, c) = (sigmoid(t), sigmoid(-t));
                let w = if t > 20.0 {
                    1.0
                } else {
                    let n = t.exp() * (t.exp() + 2.0);
                    n / (n + 2.0)
                };
                let r = if t > 20.0 {
                    0.0
                } else {
                    let n = t.exp() * (t.exp() + 2.0);
                    4.0 * (n + 1.0) / ((n + 2.0) * (n + 2.0))
                };
                let (w1, w2) = (r * s, r * s * (c - 2.0 * w * s));
                [t * w, w + t * w1, 2.0 * w1 + t * w2]
            }
            Softplus => {
                [if t > 0.0 { t + (-t).exp().ln_1p() } else { t.exp().ln_1p() }, sigmoid(t), sigmoid(t) * sigmoid(-t)]
            }
            Elu(_) | Selu | Celu(_) => {
                let (scale, alpha, gamma) = match self {
                    Elu(a) => (1.0, a.to_f64(), 1.0),
                    Celu(a) => (1.0, a.to_f64(), a.to_f64()),
                    _ => (SELU_SCALE.lo(), SELU_ALPHA.lo(), 1.0),
                };
                if t >= 0.0 {
                    [scale * t, scale, 0.0]
                } else {
                    let e = (t / gamma).exp();
                    [
                        scale * alpha * (t / gamma).exp_m1(),
                        scale * alpha / gamma * e,
                        scale * alpha / (gamma * gamma) * e,
                    ]
                }
            }
            Sigmoid => {
                let (s, c) = (sigmoid(t), sigmoid(-t));
                [s, s * c, s * c * (c - s)]
            }
            Tanh => {
                let d = 4.0 * sigmoid(2.0 * t) * sigmoid(-2.0 * t);
                [t.tanh(), d, -2.0 * t.tanh() * d]
            }
            Softsign => {
                let r = 1.0 / (1.0 + t.abs());
                [t * r, r * r, -2.0 * t.signum() * r * r * r]
            }
            Abs => {
                if t >= 0.0 {
                    [t, 1.0, 0.0]
                } else {
                    [-t, -1.0, 0.0]
                }
            }
            Identity => [t, 1.0, 0.0],
        }
    }
}

/// 1.702, 0.044715, and λ and α* of selu, between adjacent floats; a test compares them with the exact rationals.
const QUICK_GELU_BETA: Interval = Interval::new(1.702, 1.7020000000000002);
const GELU_TANH_CUBIC: Interval = Interval::new(0.044715, 0.044715000000000005);
const SELU_SCALE: Interval = Interval::new(1.0507009873554805, 1.0507009873554807);
const SELU_ALPHA: Interval = Interval::new(1.6732632423543772, 1.6732632423543774);

/// sigmoid(x) and sigmoid(−x) at a point, each with its own relative accuracy.
fn sigmoids_at(x: f64) -> (Interval, Interval) {
    // For x ≤ 0: e^x/(1 + e^x) and 1/(1 + e^x); mirrored for x > 0. No overflow either way.
    let e = if x.is_infinite() { Interval::ZERO } else { Interval::point(-x.abs()).exp() };
    let big = Interval::ONE / (Interval::ONE + e);
    let small = e * big;
    if x <= 0.0 { (small, big) } else { (big, small) }
}

/// sigmoid(t) and sigmoid(−t); both monotone.
pub(crate) fn sigmoids(t: Interval) -> (Interval, Interval) {
    let (s, c, _) = sigmoids_and_bell(t);
    (s, c)
}

/// s = sigmoid(t), s̄ = sigmoid(−t), and s·s̄, which is even and decreases in |t|: its ends lie at those of |t|.
pub(crate) fn sigmoids_and_bell(t: Interval) -> (Interval, Interval, Interval) {
    let unit = Interval::new(0.0, 1.0);
    let (s_lo, c_lo) = sigmoids_at(t.lo());
    let (s_hi, c_hi) = if t.is_point() { (s_lo, c_lo) } else { sigmoids_at(t.hi()) };
    let (at_lo, at_hi) = (s_lo * c_lo, s_hi * c_hi);
    let (near, far) = if t.lo().abs() <= t.hi().abs() { (at_lo, at_hi) } else { (at_hi, at_lo) };
    let top = if t.contains(0.0) { 0.25 } else { near.hi().min(0.25) };
    let bell = Interval::new(far.lo().max(0.0).min(top), top);
    (s_lo.hull(s_hi).tighten(unit), c_lo.hull(c_hi).tighten(unit), bell)
}

/// Sharpens enclosures (v, v′, v″) over `t` by the values of v and v′ at its middle (mean value theorem) and by bounds of v′
/// (from `d1_bound`) and v (from below, by `least`) on all of R.
fn mean_value(
    t: Interval,
    natural: Jet,
    least: f64,
    d1_bound: Interval,
    at_mid: impl FnOnce(Interval) -> (Interval, Interval),
) -> Jet {
    let Jet { mut v, d1, d2 } = natural;
    let mut d1 = d1.tighten(d1_bound);
    if !t.is_point() && t.is_finite() {
        let m = Interval::point(t.mid());
        let (v_mid, d1_mid) = at_mid(m);
        let offset = t - m;
        d1 = d1.tighten(d1_mid + d2 * offset);
        v = v.tighten(v_mid + d1 * offset);
    }
    Jet { v: v.tighten(Interval::new(least, f64::INFINITY)), d1, d2 }
}

/// silu: v = t·s, v′ = s(1 + t·s̄), v″ = s·s̄(2 + t(s̄ − s)); v ≥ −0.27847, −0.0999 ≤ v′ ≤ 1.0999, −0.037 ≤ v″ ≤ 1/2.
fn swish_jet(t: Interval) -> Jet {
    let p = Interval::point;
    let (s, c) = sigmoids(t);
    let d2 = (s * c * (p(2.0) + t * (c - s))).tighten(Interval::new(-0.037, 0.5));
    let natural = Jet { v: t * s, d1: s * (Interval::ONE + t * c), d2 };
    mean_value(t, natural, -0.27847, Interval::new(-0.0999, 1.0999), |m| {
        let (s, c) = sigmoids(m);
        (m * s, s * (Interval::ONE + m * c))
    })
}

/// t·sigmoid(βt) = silu(βt)/β
fn scaled_swish_jet(beta: Interval, t: Interval) -> Jet {
    let j = swish_jet(beta * t);
    Jet { v: j.v / beta, d1: j.d1, d2: beta * j.d2 }
}

/// Φ(t) and the density φ(t).
pub(crate) fn normal(t: Interval) -> (Interval, Interval) {
    // 1/√2 and 1/√(2π) lie between adjacent floats of these literals.
    let r = Interval::new(FRAC_1_SQRT_2.next_down(), FRAC_1_SQRT_2.next_up());
    let k = Interval::new(0.398_942_280_401_432_6, 0.398_942_280_401_432_8);
    let half = Interval::point(0.5);
    (half * (-(t * r)).erfc(), k * (-(half * t.sqr())).exp())
}

/// gelu: v = tΦ, v′ = Φ + tφ, v″ = φ(2 − t²); v ≥ −0.16998, −0.129 ≤ v′ ≤ 1.129, −0.108 ≤ v″ ≤ 0.798.
fn gelu_jet(t: Interval) -> Jet {
    let (cdf, pdf) = normal(t);
    let d2 = (pdf * (Interval::point(2.0) - t.sqr())).tighten(Interval::new(-0.108, 0.798));
    let natural = Jet { v: t * cdf, d1: cdf + t * pdf, d2 };
    mean_value(t, natural, -0.16998, Interval::new(-0.129, 1.129), |m| {
        let (cdf, pdf) = normal(m);
        (m * cdf, cdf + m * pdf)
    })
}

/// The argument q = 2√(2/π)(t + at³) of gelu_tanh's gate, a = 0.044715 (exact), with q′ and q″. q increases.
pub(crate) fn tanh_gate_argument(t: Interval) -> (Interval, Interval, Interval) {
    let p = Interval::point;
    // 2√(2/π) = 1.59576912160573071… lies between these two floats.
    let k = Interval::new(1.595_769_121_605_730_6, 1.595_769_121_605_730_9);
    let a = GELU_TANH_CUBIC;
    let at = |t: Interval| k * (t + a * t * t.sqr());
    // An infinite end is its own image.
    let end = |x: f64| if x.is_finite() { at(p(x)) } else { Interval::ENTIRE };
    let q = if t.is_point() { at(t) } else { Interval::new(end(t.lo()).lo(), end(t.hi()).hi()) };
    (q, k * (Interval::ONE + p(3.0) * a * t.sqr()), k * p(6.0) * a * t)
}

/// gelu_tanh with the gate's argument q and s = sigmoid(q): v = t·s, v′ = s + t·s·s̄·q′,
/// v″ = s·s̄(2q′ + t((s̄ − s)q′² + q″)); v ≥ −0.17005, −0.129 ≤ v′ ≤ 1.129, −0.108 ≤ v″ ≤ 0.798.
fn gelu_tanh_jet(t: Interval) -> Jet {
    let p = Interval::point;
    let (q, q1, q2) = tanh_gate_argument(t);
    let (s, c) = sigmoids(q);
    let sc = (s * c).min(p(0.25));
    let d2 = (sc * (p(2.0) * q1 + t * ((c - s) * q1.sqr() + q2))).tighten(Interval::new(-0.108, 0.798));
    let natural = Jet { v: t * s, d1: s + t * sc * q1, d2 };
    mean_value(t, natural, -0.17005, Interval::new(-0.129, 1.129), |m| {
        let (q, q1, _) = tanh_gate_argument(m);
        let (s, c) = sigmoids(q);
        (m * s, s + m * s * c * q1)
    })
}

/// softplus over an interval; increasing.
pub(crate) fn softplus_value(t: Interval) -> Interval {
    let at = |x: f64| {
        let x = Interval::point(x);
        // ln(1 + e^x) = x + ln(1 + e^−x): the form whose exponential does not overflow.
        if x.lo() > 0.0 { x + (-x).exp().ln_1p() } else { x.exp().ln_1p() }
    };
    let lo = if t.lo() == f64::NEG_INFINITY { 0.0 } else { at(t.lo()).lo().max(0.0) };
    let hi = if t.hi() == f64::INFINITY { f64::INFINITY } else { at(t.hi()).hi() };
    Interval::new(lo, hi)
}

/// w = tanh(softplus(t)) = n/(n + 2) with n = e^2t + 2e^t, 1 − w = 2/(n + 2), and r = 1 − w² = 4(n + 1)/(n + 2)²,
/// each with its own relative accuracy. w increases; 1 − w and r decrease (w ≥ 0).
pub(crate) fn mish_gate(t: Interval) -> (Interval, Interval, Interval) {
    let p = Interval::point;
    let one = Interval::ONE;
    let at = |x: f64| {
        if x.is_infinite() {
            return if x < 0.0 { (Interval::ZERO, one, one) } else { (one, Interval::ZERO, Interval::ZERO) };
        }
        let e = p(-x.abs()).exp();
        if x > 0.0 {
            // Numerators and denominators divided by e^2t: n + 2 becomes d = 1 + 2e + 2e², e = e^−t.
            let q = e.sqr();
            let d = one + p(2.0) * e + p(2.0) * q;
            (one - p(2.0) * q / d, p(2.0) * q / d, p(4.0) * q * (one + p(2.0) * e + q) / d.sqr())
        } else {
            let n = e.sqr() + p(2.0) * e;
            let d = n + p(2.0);
            (n / d, p(2.0) / d, p(4.0) * (n + one) / d.sqr())
        }
    };
    let lo = at(t.lo());
    let hi = if t.is_point() { lo } else { at(t.hi()) };
    let unit = Interval::new(0.0, 1.0);
    (lo.0.hull(hi.0).tighten(unit), lo.1.hull(hi.1).tighten(unit), lo.2.hull(hi.2).tighten(unit))
}

/// mish: v = tw, v′ = w + tw′, v″ = 2w′ + tw″ with w′ = r·s, w″ = r·s(s̄ − 2ws); v ≥ −0.30885,
/// −0.1126 ≤ v′ ≤ 1.0886, −0.0591 ≤ v″ ≤ 0.6443.
fn mish_jet(t: Interval) -> Jet {
    let p = Interval::point;
    let (w, _, r) = mish_gate(t);
    let (s, c) = sigmoids(t);
    let d2 = (r * s * (p(2.0) + t * (c - p(2.0) * w * s))).tighten(Interval::new(-0.0591, 0.6443));
    let natural = Jet { v: t * w, d1: w + t * r * s, d2 };
    mean_value(t, natural, -0.30885, Interval::new(-0.1126, 1.0886), |m| {
        let (w, _, r) = mish_gate(m);
        (m * w, w + m * r * sigmoids(m).0)
    })
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Activation::*;
        let name = match self {
            Relu => "relu",
            LeakyRelu(a) if *a == Number::ratio(1, 100) => "leaky_relu",
            LeakyRelu(a) => return write!(f, "leaky_relu:{a}"),
            Relu2 => "relu2",
            Relu6 => "relu6",
            Hardtanh => "hardtanh",
            Hardsigmoid => "hardsigmoid",
            Hardswish => "hardswish",
            Silu => "silu",
            Swish(b) => return write!(f, "swish:{b}"),
            Gelu => "gelu",
            GeluTanh => "gelu_tanh",
            QuickGelu => "quick_gelu",
            Mish => "mish",
            Softplus => "softplus",
            Elu(a) if a.is_one() => "elu",
            Elu(a) => return write!(f, "elu:{a}"),
            Selu => "selu",
            Celu(a) if a.is_one() => "celu",
            Celu(a) => return write!(f, "celu:{a}"),
            Sigmoid => "sigmoid",
            Tanh => "tanh",
            Softsign => "softsign",
            Abs => "abs",
            Identity => "identity",
        };
        f.write_str(name)
    }
}

impl FromStr for Activation {
    type Err = Error;

    /// A catalogue name, an alias, or a name with its parameter (`leaky_relu:0.2`).
    fn from_str(text: &str) -> Result<Self> {
        use Activation::*;
        let text = text.trim();
        let (name, parameter) = match text.split_once(':') {
            Some((name, p)) => (name, Some(p.parse::<Number>().map_err(|e| e.at(format!("activation '{text}'")))?)),
            None => (text, None),
        };
        let lower = name.to_ascii_lowercase();
        let canonical = ALIASES.iter().find(|(alias, _)| *alias == lower).map_or(lower.as_str(), |(_, n)| n);
        let positive = |default: Number| match &parameter {
            None => Ok(default),
            Some(p) if p.signum() > 0 => Ok(p.clone()),
            Some(p) => Err(Error::input(format!("'{text}': the parameter must be positive, not {p}"))),
        };
        let plain = match canonical {
            "leaky_relu" => {
                let a = parameter.unwrap_or_else(|| Number::ratio(1, 100));
                return if a.signum() >= 0 && a < Number::one() {
                    Ok(LeakyRelu(a))
                } else {
                    Err(Error::input(format!("'{text}': the negative slope must lie in [0, 1), not {a}")))
                };
            }
            "swish" => return positive(Number::one()).map(Swish),
            "elu" => return positive(Number::one()).map(Elu),
            "celu" => return positive(Number::one()).map(Celu),
            "relu" => Relu,
            "relu2" => Relu2,
            "relu6" => Relu6,
            "hardtanh" => Hardtanh,
            "hardsigmoid" => Hardsigmoid,
            "hardswish" => Hardswish,
            "silu" => Silu,
            "gelu" => Gelu,
            "gelu_tanh" => GeluTanh,
            "quick_gelu" => QuickGelu,
            "mish" => Mish,
            "softplus" => Softplus,
            "selu" => Selu,
            "sigmoid" => Sigmoid,
            "tanh" => Tanh,
            "softsign" => Softsign,
            "abs" => Abs,
            "identity" => Identity,
            _ => {
                let help = match nearest(&lower, NAMES.into_iter().chain(ALIASES.iter().map(|a| a.0))) {
                    Some(n) => format!("did you mean '{n}'?"),
                    None => format!("known names: {}", NAMES.join(", ")),
                };
                return Err(Error::input(format!("unknown activation '{name}'")).help(help));
            }
        };
        match parameter {
            None => Ok(plain),
            Some(_) => Err(Error::input(format!("'{text}': {canonical} takes no parameter"))
                .help("leaky_relu, swish, elu and celu take one, as in leaky_relu:0.2")),
        }
    }
}

impl serde::Serialize for Activation {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Activation {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_the_enclosures_of_the_exact_rationals() {
        let (scale, alpha) = Activation::selu_constants();
        assert_eq!(scale.enclosure(), SELU_SCALE);
        assert_eq!(alpha.enclosure(), SELU_ALPHA);
        assert_eq!(Number::ratio(44715, 1_000_000).enclosure(), GELU_TANH_CUBIC);
        assert_eq!(Activation::QuickGelu.swish_beta().expect("a swish").enclosure(), QUICK_GELU_BETA);
        for a in Activation::catalogue() {
            let exact: Vec<Interval> = a.knots().iter().map(Number::enclosure).collect();
            let floats: Vec<Interval> = a.float_knots().iter().copied().map(Interval::point).collect();
            assert_eq!(exact, floats, "{a}");
        }
    }

    /// The branches in closed form against the exact table, at points and over a box.
    #[test]
    fn branches_agree_with_the_polynomial_pieces() {
        let names = Activation::catalogue().into_iter().chain(["leaky_relu:0.3".parse().expect("a name")]);
        for a in names {
            let Some((_, pieces)) = a.polynomial_pieces() else { continue };
            for (branch, [c0, c1, c2]) in pieces.iter().enumerate() {
                for x in [-7.5, -2.9, -0.3, 0.0, 0.1, 2.2, 5.75] {
                    let t = Number::from_f64(x).expect("finite");
                    let v = &(c0 + &(c1 * &t)) + &(c2 * &(&t * &t));
                    let d1 = c1 + &(&(&Number::from(2) * c2) * &t);
                    let d2 = &Number::from(2) * c2;
                    for t in [Interval::point(x), Interval::new(x - 1.0, x + 0.5)] {
                        let jet = a.branch_jet(branch, t);
                        for (i, exact) in [(jet.v, &v), (jet.d1, &d1), (jet.d2, &d2)] {
                            assert!(
                                exact.enclosure().lo() >= i.lo() && exact.enclosure().hi() <= i.hi(),
                                "{a} {x} {i:?}"
                            );
                            assert!(!t.is_point() || i.width() <= 1e-15 * (1.0 + x * x), "{a} {x} {i:?}");
                        }
                    }
                }
            }
        }
    }
}
