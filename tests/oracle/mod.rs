//! An oracle in 320-bit arithmetic (`astro-float`) that shares no code with the crate.
//!
//! It evaluates every activation of the catalogue and its first two derivatives from the textbook formulas, in forms that keep
//! their relative accuracy however small the result is. About 280 bits are good; `tests/reference.rs` checks it against mpmath.
//!
//! [`Big`] is a number with the four operations, exact conversion from a float, and comparison with floats, so that tests can
//! evaluate whole stacks Σ out·σ(weight·z + bias): `out * &oracle::activation("silu", &(weight * z + bias))`.

// Every test crate that includes the module uses a part of it.
#![allow(dead_code)]

use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::ops::{Add, Div, Mul, Neg, Sub};

use astro_float::{BigFloat, Consts, Radix, RoundingMode, Sign};

/// Working precision in bits.
pub const PRECISION: usize = 320;

const P: usize = PRECISION;
const RM: RoundingMode = RoundingMode::ToEven;

/// Beyond this, e^x is not evaluated but replaced by e^±LARGE: far outside the range of floats, far inside that of [`Big`].
const LARGE: f64 = 1e6;

thread_local! {
    static CONSTANTS: RefCell<Consts> = RefCell::new(Consts::new().expect("memory"));
    static PARSED: RefCell<HashMap<String, Big>> = RefCell::default();
}

fn with<T>(f: impl FnOnce(&mut Consts) -> T) -> T {
    CONSTANTS.with(|c| f(&mut c.borrow_mut()))
}

/// A real number in [`PRECISION`] bits. Never NaN in the tests' use: operations that make one panic.
#[derive(Clone)]
pub struct Big(BigFloat);

impl Big {
    fn checked(x: BigFloat) -> Self {
        assert!(!x.is_nan(), "the oracle's number is NaN");
        Big(x)
    }

    /// The number that the finite float is, exactly.
    pub fn exact(x: f64) -> Self {
        assert!(x.is_finite(), "{x} is no number");
        let bits = x.to_bits();
        let field = ((bits >> 52) & 0x7ff) as i32;
        let fraction = bits & ((1 << 52) - 1);
        let (mantissa, exponent) = if field == 0 { (fraction, -1074) } else { (fraction | (1 << 52), field - 1075) };
        if mantissa == 0 {
            return Big::from(0);
        }
        let mut big = BigFloat::from_u64(mantissa, P);
        big.set_exponent(big.exponent().expect("finite") + exponent);
        if bits >> 63 == 1 {
            big.inv_sign();
        }
        Big::checked(big)
    }

    /// A decimal (`-1.5e-3`) or a quotient of two (`1/3`), rounded to [`PRECISION`] bits.
    pub fn parse(text: &str) -> Self {
        if let Some(known) = PARSED.with(|m| m.borrow().get(text).cloned()) {
            return known;
        }
        let decimal = |s: &str| Big::checked(with(|c| BigFloat::parse(s.trim(), Radix::Dec, P, RM, c)));
        let value = match text.split_once('/') {
            Some((p, q)) => decimal(p) / decimal(q),
            None => decimal(text),
        };
        PARSED.with(|m| m.borrow_mut().insert(text.to_owned(), value.clone()));
        value
    }

    /// The number in `astro-float`'s own type.
    pub fn as_big_float(&self) -> &BigFloat {
        &self.0
    }

    /// The largest float ≤ the number and the smallest float ≥ it (equal where the number is a float).
    pub fn bracket(&self) -> (f64, f64) {
        if self.0.is_zero() {
            return (0.0, 0.0);
        }
        // A guess from the leading 64 bits, then exact comparison.
        let (words, _, sign, exponent, _) = self.0.as_raw_parts().expect("finite");
        let top = words[words.len() - 1] as f64 / 2f64.powi(64);
        let scale = |k: i32| 2f64.powi(k.clamp(-1100, 1023));
        let size = (top * scale(exponent / 2) * scale(exponent - exponent / 2)).min(f64::MAX);
        let guess = if sign == Sign::Neg { -size } else { size };
        let (mut lo, mut hi) = (guess, guess);
        while lo.is_finite() && *self < lo {
            lo = lo.next_down();
        }
        while hi.is_finite() && *self > hi {
            hi = hi.next_up();
        }
        while lo.next_up().is_finite() && *self >= lo.next_up() {
            lo = lo.next_up();
        }
        while hi.next_down().is_finite() && *self <= hi.next_down() {
            hi = hi.next_down();
        }
        (lo, hi)
    }

    /// A nearest float; infinite beyond the largest one by more than a float.
    pub fn to_f64(&self) -> f64 {
        let (lo, hi) = self.bracket();
        if lo == hi || hi == f64::INFINITY {
            return lo;
        }
        if lo == f64::NEG_INFINITY || self - &Big::exact(lo) > &Big::exact(hi) - self { hi } else { lo }
    }

    /// Does it lie between the floats (infinite ends allowed)?
    pub fn within(&self, lo: f64, hi: f64) -> bool {
        *self >= lo && *self <= hi
    }

    /// |x|
    pub fn abs(&self) -> Big {
        Big(self.0.abs())
    }
    /// max(x, o)
    pub fn max(&self, o: &Big) -> Big {
        if self >= o { self.clone() } else { o.clone() }
    }
    /// min(x, o)
    pub fn min(&self, o: &Big) -> Big {
        if self <= o { self.clone() } else { o.clone() }
    }
    /// −1, 0 or 1
    pub fn signum(&self) -> i32 {
        i32::from(*self > 0.0) - i32::from(*self < 0.0)
    }
    /// x²
    pub fn sqr(&self) -> Big {
        self * self
    }
    /// √x
    pub fn sqrt(&self) -> Big {
        Big::checked(self.0.sqrt(P, RM))
    }

    /// e^x
    pub fn exp(&self) -> Big {
        let x = self.max(&Big::exact(-LARGE)).min(&Big::exact(LARGE));
        Big::checked(with(|c| x.0.exp(P, RM, c)))
    }

    /// e^x − 1
    pub fn exp_m1(&self) -> Big {
        if self.abs() > 1.0 / 64.0 {
            return self.exp() - Big::from(1);
        }
        // Σ x^k/k!
        let (mut term, mut sum) = (self.clone(), self.clone());
        for k in 2..60 {
            term = &(&term * self) / &Big::from(k);
            sum = sum + term.clone();
        }
        sum
    }

    /// ln(1 + x)
    pub fn ln_1p(&self) -> Big {
        if self.abs() > 0.25 {
            let y = Big::from(1) + self.clone();
            return Big::checked(with(|c| y.0.ln(P, RM, c)));
        }
        // 2 artanh(x/(2 + x)) = 2 Σ u^(2k+1)/(2k + 1), |u| ≤ 1/7
        let u = self / &(Big::from(2) + self.clone());
        let square = u.sqr();
        let (mut power, mut sum) = (u.clone(), u);
        for k in 1..64 {
            power = &power * &square;
            sum = sum + &power / &Big::from(2 * k + 1);
        }
        sum.clone() + sum
    }

    /// tanh x = (e^2x − 1)/(e^2x + 1)
    pub fn tanh(&self) -> Big {
        let m = (self + self).exp_m1();
        &m / &(m.clone() + Big::from(2))
    }

    /// 1 − erf x
    pub fn erfc(&self) -> Big {
        if *self < 0.0 {
            return Big::from(2) - (-self).erfc();
        }
        let square = self.sqr();
        if *self < 4.0 {
            // erf x = 2/√π e^(−x²) Σ 2^k x^(2k+1)/(2k+1)!!: positive terms; 1 − erf x loses less than 26 bits.
            let (mut term, mut sum) = (self.clone(), self.clone());
            let double = &square + &square;
            let enough = self * &Big::exact(2f64.powi(-330));
            for k in 1.. {
                term = &(&term * &double) / &Big::from(2 * k + 1);
                sum = sum + term.clone();
                if k > 32 && term <= enough {
                    break;
                }
            }
            return Big::from(1) - &(&(Big::from(2) / pi().sqrt()) * &(-square).exp()) * &sum;
        }
        // Legendre's continued fraction e^(−x²)/√π · 1/(x + (1/2)/(x + 1/(x + (3/2)/(x + …)))), by its convergents from
        // the tail; the number of terms for 290 bits grows as 1/x².
        let terms = 40 + (5600.0 / square.to_f64()) as i64;
        let mut tail = self.clone();
        for k in (1..=terms).rev() {
            tail = self + &(&(Big::from(k) / Big::from(2)) / &tail);
        }
        (-square).exp() / (tail * pi().sqrt())
    }
}

/// π
pub fn pi() -> Big {
    Big(with(|c| c.pi(P, RM)))
}

impl From<i64> for Big {
    fn from(x: i64) -> Self {
        Big(BigFloat::from_i64(x, P))
    }
}

impl From<f64> for Big {
    fn from(x: f64) -> Self {
        Big::exact(x)
    }
}

macro_rules! operator {
    ($trait:ident, $method:ident) => {
        impl $trait for &Big {
            type Output = Big;
            fn $method(self, o: &Big) -> Big {
                Big::checked(BigFloat::$method(&self.0, &o.0, P, RM))
            }
        }
        impl $trait for Big {
            type Output = Big;
            fn $method(self, o: Big) -> Big {
                $trait::$method(&self, &o)
            }
        }
        impl $trait<&Big> for Big {
            type Output = Big;
            fn $method(self, o: &Big) -> Big {
                $trait::$method(&self, o)
            }
        }
        impl $trait<Big> for &Big {
            type Output = Big;
            fn $method(self, o: Big) -> Big {
                $trait::$method(self, &o)
            }
        }
    };
}
operator!(Add, add);
operator!(Sub, sub);
operator!(Mul, mul);
operator!(Div, div);

impl Neg for &Big {
    type Output = Big;
    fn neg(self) -> Big {
        Big(BigFloat::neg(&self.0))
    }
}
impl Neg for Big {
    type Output = Big;
    fn neg(self) -> Big {
        -&self
    }
}

impl PartialEq for Big {
    fn eq(&self, o: &Big) -> bool {
        self.0.cmp(&o.0) == Some(0)
    }
}
impl PartialOrd for Big {
    fn partial_cmp(&self, o: &Big) -> Option<Ordering> {
        self.0.cmp(&o.0).map(|c| c.cmp(&0))
    }
}
impl PartialEq<f64> for Big {
    fn eq(&self, o: &f64) -> bool {
        self.partial_cmp(o) == Some(Ordering::Equal)
    }
}
/// Exact; infinite floats lie beyond every number.
impl PartialOrd<f64> for Big {
    fn partial_cmp(&self, o: &f64) -> Option<Ordering> {
        match *o {
            f64::INFINITY => Some(Ordering::Less),
            f64::NEG_INFINITY => Some(Ordering::Greater),
            o if o.is_nan() => None,
            o => self.partial_cmp(&Big::exact(o)),
        }
    }
}

impl fmt::Display for Big {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
impl fmt::Debug for Big {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (lo, hi) = self.bracket();
        write!(f, "{lo:e}..{hi:e}")
    }
}

/// σ(t); `name` as in the catalogue, with its parameter after a colon (the catalogue's default without).
pub fn activation(name: &str, t: &Big) -> Big {
    jet(name, t)[0].clone()
}

/// σ′(t), at knots from the right.
pub fn derivative(name: &str, t: &Big) -> Big {
    jet(name, t)[1].clone()
}

/// σ″(t), at knots from the right.
pub fn second_derivative(name: &str, t: &Big) -> Big {
    jet(name, t)[2].clone()
}

/// [σ(t), σ′(t), σ″(t)], at knots from the right.
pub fn jet(name: &str, t: &Big) -> [Big; 3] {
    one_sided(name, t, *t >= 0.0, |knot| *t >= knot)
}

/// The same, at knots from the left.
pub fn jet_from_left(name: &str, t: &Big) -> [Big; 3] {
    one_sided(name, t, *t > 0.0, |knot| *t > knot)
}

/// The points where σ is not twice continuously differentiable.
pub fn knots(name: &str) -> &'static [f64] {
    match name.split(':').next().unwrap_or(name) {
        "relu" | "leaky_relu" | "relu2" | "elu" | "selu" | "celu" | "softsign" | "abs" => &[0.0],
        "relu6" => &[0.0, 6.0],
        "hardtanh" => &[-1.0, 1.0],
        "hardsigmoid" | "hardswish" => &[-3.0, 3.0],
        _ => &[],
    }
}

fn one_sided(name: &str, t: &Big, positive: bool, beyond: impl Fn(f64) -> bool) -> [Big; 3] {
    let (name, parameter) = name.split_once(':').unwrap_or((name, ""));
    let n = |k: i64| Big::from(k);
    let parameter = |default: &str| Big::parse(if parameter.is_empty() { default } else { parameter });
    let line = |slope: Big| [&slope * t, slope, n(0)];
    let constant = |c: i64| [n(c), n(0), n(0)];
    match name {
        "relu" => line(n(i64::from(positive))),
        "leaky_relu" => line(if positive { n(1) } else { parameter("0.01") }),
        "relu2" if positive => [t.sqr(), n(2) * t, n(2)],
        "relu2" => constant(0),
        "relu6" if beyond(6.0) => constant(6),
        "relu6" => line(n(i64::from(positive))),
        "hardtanh" if beyond(1.0) => constant(1),
        "hardtanh" if beyond(-1.0) => line(n(1)),
        "hardtanh" => constant(-1),
        "hardsigmoid" if beyond(3.0) => constant(1),
        "hardsigmoid" if beyond(-3.0) => [(t + n(3)) / n(6), n(1) / n(6), n(0)],
        "hardsigmoid" => constant(0),
        "hardswish" if beyond(3.0) => line(n(1)),
        "hardswish" if beyond(-3.0) => [t * (t + n(3)) / n(6), (n(2) * t + n(3)) / n(6), n(1) / n(3)],
        "hardswish" => constant(0),
        "silu" => swish(&n(1), t),
        "swish" => swish(&parameter("1"), t),
        "quick_gelu" => swish(&parameter("1.702"), t),
        "gelu" => {
            // (tΦ)′ = Φ + tφ, (tΦ)″ = 2φ + tφ′ with φ′ = −tφ
            let cdf = (-t / n(2).sqrt()).erfc() / n(2);
            let pdf = (-(t.sqr()) / n(2)).exp() / (n(2) * pi()).sqrt();
            let slope = -(t * &pdf);
            [t * &cdf, cdf + t * &pdf, n(2) * pdf + t * slope]
        }
        "gelu_tanh" => {
            // With T = tanh u, S = 1 − T²: v = t(1 + T)/2, v′ = (1 + T)/2 + tSu′/2, v″ = Su′ + t(Su″ − 2TSu′²)/2;
            // 1 + T = 2/(1 + e^−2u) and S = 4e^−2|u|/(1 + e^−2|u|)² lose no digits.
            let a = Big::parse("0.044715");
            let root = (n(2) / pi()).sqrt();
            let u = &root * (t + &a * t.sqr() * t);
            let u1 = &root * (n(1) + n(3) * &a * t.sqr());
            let u2 = &root * (n(6) * &a * t);
            let one_plus = n(2) / (n(1) + (n(-2) * &u).exp());
            let s = sech_squared(&u);
            let tanh = u.tanh();
            let d1 = &one_plus / n(2) + t * &s * &u1 / n(2);
            let d2 = &s * &u1 + t * (&s * u2 - n(2) * tanh * &s * u1.sqr()) / n(2);
            [t * one_plus / n(2), d1, d2]
        }
        "mish" => {
            // tanh ln(1 + E) = ((1 + E)² − 1)/((1 + E)² + 1) = 1 − 2/D with E = e^t, D = E² + 2E + 2:
            // w′ = 2D′/D², w″ = (2D″D − 4D′²)/D³, and D″D − 2D′² = −2E(2E³ + 3E² − 2E − 2).
            let e = t.exp();
            let d = e.sqr() + n(2) * &e + n(2);
            let d_prime = n(2) * e.sqr() + n(2) * &e;
            let w = (e.sqr() + n(2) * &e) / &d;
            let w1 = n(2) * d_prime / d.sqr();
            let w2 = n(-4) * &e * (n(2) * &e * e.sqr() + n(3) * e.sqr() - n(2) * &e - n(2)) / (d.sqr() * &d);
            [t * &w, &w + t * &w1, n(2) * w1 + t * w2]
        }
        "softplus" => {
            let e = (-t.abs()).exp();
            let v = t.max(&n(0)) + e.ln_1p();
            let d2 = &e / (n(1) + &e).sqr();
            [v, logistic(t), d2]
        }
        "elu" => elu(positive, t, &n(1), &parameter("1"), &n(1)),
        "celu" => elu(positive, t, &n(1), &parameter("1"), &parameter("1")),
        "selu" => {
            let scale = Big::parse("1.0507009873554804934193349852946");
            elu(positive, t, &scale, &Big::parse("1.6732632423543772848170429916717"), &n(1))
        }
        "sigmoid" => {
            // s′ = E/(1 + E)², s″ = E(E − 1)/(1 + E)³ with E = e^−t
            let e = (-t).exp();
            let q = n(1) + &e;
            [logistic(t), &e / q.sqr(), &e * (&e - n(1)) / (q.sqr() * &q)]
        }
        "tanh" => {
            let (v, s) = (t.tanh(), sech_squared(t));
            [v.clone(), s.clone(), n(-2) * v * s]
        }
        "softsign" => {
            let q = n(1) + t.abs();
            let sign = n(if positive { 1 } else { -1 });
            [t / &q, n(1) / q.sqr(), n(-2) * sign / (q.sqr() * &q)]
        }
        "abs" => line(n(if positive { 1 } else { -1 })),
        "identity" => line(n(1)),
        _ => panic!("the oracle knows no activation '{name}'"),
    }
}

fn logistic(t: &Big) -> Big {
    Big::from(1) / (Big::from(1) + (-t).exp())
}

/// 1 − tanh² u = 4E/(1 + E)², E = e^(−2|u|)
fn sech_squared(u: &Big) -> Big {
    let e = (Big::from(-2) * u.abs()).exp();
    Big::from(4) * &e / (Big::from(1) + &e).sqr()
}

/// v = t/(1 + E), v′ = (1 + E + βtE)/(1 + E)², v″ = βE(2 + 2E + βt(E − 1))/(1 + E)³, E = e^(−βt)
fn swish(beta: &Big, t: &Big) -> [Big; 3] {
    let x = beta * t;
    let e = (-&x).exp();
    let q = Big::from(1) + &e;
    let d1 = (&q + &x * &e) / q.sqr();
    let d2 = beta * &e * (Big::from(2) * &q + &x * (&e - Big::from(1))) / (q.sqr() * &q);
    [t / &q, d1, d2]
}

/// scale·t, or scale·α(e^(t/γ) − 1)
fn elu(positive: bool, t: &Big, scale: &Big, alpha: &Big, gamma: &Big) -> [Big; 3] {
    if positive {
        return [scale * t, scale.clone(), Big::from(0)];
    }
    let x = t / gamma;
    let e = scale * alpha * x.exp();
    let d1 = &e / gamma;
    let d2 = &d1 / gamma;
    [scale * alpha * x.exp_m1(), d1, d2]
}
