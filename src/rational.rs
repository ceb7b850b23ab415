//! Exact rationals with a fast path: most numbers here are floats, and sums and products of floats are dyadic.
//!
//! Part of the trusted base. A number m·2^e is kept as such, with an i128 for m where it fits and a big integer otherwise, and needs
//! no greatest common divisors; everything else is a `BigRational`. The representation is canonical, so that equality is that of the
//! parts.

use std::cmp::Ordering;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Signed, ToPrimitive, Zero};

/// Significands stay below 2^126, so that one carry never overflows.
const MAX_BITS: u32 = 126;
/// Exponents of dyadic numbers stay within ± this.
const MAX_EXPONENT: i32 = 1 << 20;

/// An exact rational number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rational(Repr);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Repr {
    /// m·2^e, m odd, or 0·2^0
    Dyadic(i128, i32),
    /// the same with an odd m of more than [`MAX_BITS`] bits
    Wide(Box<BigInt>, i32),
    /// whatever is not of that form
    Big(Box<BigRational>),
}

use Repr::{Big, Dyadic, Wide};

fn bits(m: i128) -> u32 {
    128 - m.unsigned_abs().leading_zeros()
}

/// m·2^e in canonical form, if its exponent is in range.
fn dyadic(m: i128, e: i32) -> Option<Rational> {
    if m == 0 {
        return Some(Rational(Dyadic(0, 0)));
    }
    let zeros = m.trailing_zeros();
    let e = e + zeros as i32;
    (bits(m >> zeros) <= MAX_BITS && e.abs() <= MAX_EXPONENT).then_some(Rational(Dyadic(m >> zeros, e)))
}

/// m·2^e in canonical form.
fn wide(m: BigInt, e: i64) -> Rational {
    let zeros = m.trailing_zeros().unwrap_or(0);
    let (odd, e) = (if zeros == 0 { m } else { m >> zeros }, e + zeros as i64);
    if odd.is_zero() {
        return Rational::zero();
    }
    if e.unsigned_abs() > MAX_EXPONENT as u64 {
        let power = BigInt::one() << e.unsigned_abs();
        return Rational(Big(Box::new(if e > 0 {
            BigRational::from_integer(odd * power)
        } else {
            BigRational::new_raw(odd, power)
        })));
    }
    let small = if odd.bits() <= u64::from(MAX_BITS) { odd.to_i128() } else { None };
    Rational(match small {
        Some(m) => Dyadic(m, e as i32),
        None => Wide(Box::new(odd), e as i32),
    })
}

/// Both significands at the smaller exponent, if they fit.
fn align((m, e): (i128, i32), (n, f): (i128, i32)) -> Option<(i128, i128, i32)> {
    if m == 0 {
        return Some((0, n, f));
    }
    if n == 0 {
        return Some((m, 0, e));
    }
    let low = e.min(f);
    let raise = |m: i128, e: i32| {
        let shift = (e - low) as u32;
        (bits(m) + shift <= MAX_BITS).then(|| m << shift)
    };
    Some((raise(m, e)?, raise(n, f)?, low))
}

impl Rational {
    /// 0
    pub fn zero() -> Self {
        Rational(Dyadic(0, 0))
    }

    /// 1
    pub fn one() -> Self {
        Rational(Dyadic(1, 0))
    }

    /// p/q.
    ///
    /// # Panics
    /// If q is 0.
    pub fn new(p: i64, q: i64) -> Self {
        if q > 0 && q & (q - 1) == 0 {
            return dyadic(i128::from(p), -(q.trailing_zeros() as i32)).expect("64 bits fit");
        }
        BigRational::new(p.into(), q.into()).into()
    }

    /// The dyadic rational that a float is; `None` for NaN and infinities.
    pub fn from_float(x: f64) -> Option<Self> {
        if !x.is_finite() {
            return None;
        }
        let bits = x.to_bits();
        let field = (bits >> 52 & 0x7ff) as i32;
        let fraction = (bits & ((1 << 52) - 1)) as i128;
        // Subnormals share the exponent of the smallest normal numbers, without the leading bit.
        let (m, e) = if field == 0 { (fraction, -1074) } else { (fraction | 1 << 52, field - 1075) };
        dyadic(if x < 0.0 { -m } else { m }, e)
    }

    /// The float that the number is, away from the ends of the range; `None` if it is none, or might be none.
    pub fn as_float(&self) -> Option<f64> {
        match self.0 {
            Dyadic(m, e) if bits(m) <= 53 && e.abs() <= 900 => Some(m as f64 * 2f64.powi(e)),
            _ => None,
        }
    }

    /// As numerator and denominator.
    pub fn to_big(&self) -> BigRational {
        match &self.0 {
            Dyadic(m, e) if *e >= 0 => BigRational::from_integer(BigInt::from(*m) << *e),
            Dyadic(m, e) => BigRational::new_raw(BigInt::from(*m), BigInt::one() << -*e),
            Wide(m, e) if *e >= 0 => BigRational::from_integer((**m).clone() << *e),
            Wide(m, e) => BigRational::new_raw((**m).clone(), BigInt::one() << -*e),
            Big(x) => (**x).clone(),
        }
    }

    /// m and e of a number m·2^e.
    fn significand(&self) -> Option<(BigInt, i64)> {
        match &self.0 {
            Dyadic(m, e) => Some((BigInt::from(*m), i64::from(*e))),
            Wide(m, e) => Some(((**m).clone(), i64::from(*e))),
            Big(_) => None,
        }
    }

    /// Of a number m·2^e that is no float, and away from the ends of the range: the floats below and above, and the nearer of
    /// the two (the even one if both are as near).
    pub fn between_floats(&self) -> Option<(f64, f64, f64)> {
        let (m, e) = match &self.0 {
            Dyadic(m, e) => (m.unsigned_abs(), i64::from(*e)),
            Wide(m, e) => {
                // The leading 120 bits, and a last one for what follows: m is odd, so there is something.
                let dropped = m.bits() - 120;
                ((m.magnitude() >> dropped).to_u128()? << 1 | 1, i64::from(*e) + dropped as i64 - 1)
            }
            Big(_) => return None,
        };
        let length = 128 - m.leading_zeros();
        if length <= 53 {
            return None;
        }
        let dropped = length - 53;
        let exponent = e + i64::from(dropped);
        if exponent.abs() > 900 {
            return None;
        }
        let (head, tail, half) = (m >> dropped, m & ((1 << dropped) - 1), 1 << (dropped - 1));
        let unit = 2f64.powi(exponent as i32);
        let (inner, outer) = (head as f64 * unit, (head + 1) as f64 * unit);
        let near = if tail < half || tail == half && head % 2 == 0 { inner } else { outer };
        Some(if self.is_negative() { (-outer, -inner, -near) } else { (inner, outer, near) })
    }

    /// Is it 0?
    pub fn is_zero(&self) -> bool {
        matches!(self.0, Dyadic(0, _))
    }
    /// Is it 1?
    pub fn is_one(&self) -> bool {
        matches!(self.0, Dyadic(1, 0))
    }
    /// −1, 0 or 1.
    pub fn signum(&self) -> i32 {
        match &self.0 {
            Dyadic(m, _) => m.signum() as i32,
            Wide(m, _) => {
                if m.is_negative() {
                    -1
                } else {
                    1
                }
            }
            Big(x) => {
                if x.is_negative() {
                    -1
                } else {
                    1
                }
            }
        }
    }
    /// Is it above 0?
    pub fn is_positive(&self) -> bool {
        self.signum() > 0
    }
    /// Is it below 0?
    pub fn is_negative(&self) -> bool {
        self.signum() < 0
    }
    /// Absolute value.
    #[must_use]
    pub fn abs(&self) -> Self {
        if self.is_negative() { -self } else { self.clone() }
    }
    /// 1/x.
    ///
    /// # Panics
    /// If x is 0.
    #[must_use]
    pub fn recip(&self) -> Self {
        &Rational::one() / self
    }
}

impl From<BigRational> for Rational {
    fn from(x: BigRational) -> Self {
        let twos = x.denom().trailing_zeros().unwrap_or(0);
        if x.denom().bits() == twos + 1 && twos <= MAX_EXPONENT as u64 {
            return wide(x.numer().clone(), -(twos as i64));
        }
        Rational(Big(Box::new(x)))
    }
}

impl Default for Rational {
    /// 0
    fn default() -> Self {
        Rational::zero()
    }
}

impl From<i64> for Rational {
    fn from(x: i64) -> Self {
        dyadic(i128::from(x), 0).expect("64 bits fit")
    }
}

impl Ord for Rational {
    fn cmp(&self, o: &Self) -> Ordering {
        if let (Dyadic(m, e), Dyadic(n, f)) = (&self.0, &o.0)
            && let Some((a, b, _)) = align((*m, *e), (*n, *f))
        {
            return a.cmp(&b);
        }
        match self.signum().cmp(&o.signum()) {
            Ordering::Equal if self.significand().is_some() && o.significand().is_some() => (self - o).signum().cmp(&0),
            // Cross-multiplication: faster than the library's continued fractions at these sizes.
            Ordering::Equal => {
                let (a, b) = (self.to_big(), o.to_big());
                (a.numer() * b.denom()).cmp(&(b.numer() * a.denom()))
            }
            unequal => unequal,
        }
    }
}

impl PartialOrd for Rational {
    fn partial_cmp(&self, o: &Self) -> Option<Ordering> {
        Some(self.cmp(o))
    }
}

impl Neg for &Rational {
    type Output = Rational;
    fn neg(self) -> Rational {
        match &self.0 {
            Dyadic(m, e) => Rational(Dyadic(-m, *e)),
            Wide(m, e) => Rational(Wide(Box::new(-&**m), *e)),
            Big(x) => Rational(Big(Box::new(-&**x))),
        }
    }
}

impl Neg for Rational {
    type Output = Rational;
    fn neg(self) -> Rational {
        -&self
    }
}

fn add(a: &Rational, b: &Rational) -> Rational {
    if let (Dyadic(m, e), Dyadic(n, f)) = (&a.0, &b.0)
        && let Some((x, y, low)) = align((*m, *e), (*n, *f))
        && let Some(r) = dyadic(x + y, low)
    {
        return r;
    }
    if let (Some((m, e)), Some((n, f))) = (a.significand(), b.significand()) {
        let low = e.min(f);
        return wide((m << (e - low)) + (n << (f - low)), low);
    }
    (a.to_big() + b.to_big()).into()
}

fn mul(a: &Rational, b: &Rational) -> Rational {
    if let (Dyadic(m, e), Dyadic(n, f)) = (&a.0, &b.0)
        && bits(*m) + bits(*n) <= MAX_BITS
        && let Some(r) = dyadic(m * n, e + f)
    {
        return r;
    }
    if let (Some((m, e)), Some((n, f))) = (a.significand(), b.significand()) {
        return wide(m * n, e + f);
    }
    (a.to_big() * b.to_big()).into()
}

fn div(a: &Rational, b: &Rational) -> Rational {
    assert!(!b.is_zero(), "division by zero");
    if let (Dyadic(m, e), Dyadic(n, f)) = (&a.0, &b.0)
        && m % n == 0
        && let Some(r) = dyadic(m / n, e - f)
    {
        return r;
    }
    if let (Some((m, e)), Dyadic(n @ (1 | -1), f)) = (a.significand(), &b.0) {
        return wide(m * *n, e - i64::from(*f));
    }
    (a.to_big() / b.to_big()).into()
}

macro_rules! operator {
    ($trait:ident, $method:ident, $assign:ident, $assign_method:ident, $f:expr) => {
        impl $trait<&Rational> for &Rational {
            type Output = Rational;
            fn $method(self, o: &Rational) -> Rational {
                $f(self, o)
            }
        }
        impl $trait<Rational> for Rational {
            type Output = Rational;
            fn $method(self, o: Rational) -> Rational {
                $f(&self, &o)
            }
        }
        impl $trait<&Rational> for Rational {
            type Output = Rational;
            fn $method(self, o: &Rational) -> Rational {
                $f(&self, o)
            }
        }
        impl $trait<Rational> for &Rational {
            type Output = Rational;
            fn $method(self, o: Rational) -> Rational {
                $f(self, &o)
            }
        }
        impl $assign<Rational> for Rational {
            fn $assign_method(&mut self, o: Rational) {
                *self = $f(self, &o);
            }
        }
        impl $assign<&Rational> for Rational {
            fn $assign_method(&mut self, o: &Rational) {
                *self = $f(self, o);
            }
        }
    };
}
operator!(Add, add, AddAssign, add_assign, add);
operator!(Sub, sub, SubAssign, sub_assign, |a: &Rational, b: &Rational| add(a, &-b));
operator!(Mul, mul, MulAssign, mul_assign, mul);
operator!(Div, div, DivAssign, div_assign, div);

impl Sum for Rational {
    fn sum<I: Iterator<Item = Rational>>(iter: I) -> Rational {
        iter.fold(Rational::zero(), |a, b| a + b)
    }
}

impl<'a> Sum<&'a Rational> for Rational {
    fn sum<I: Iterator<Item = &'a Rational>>(iter: I) -> Rational {
        iter.fold(Rational::zero(), |a, b| a + b)
    }
}

#[cfg(test)]
mod tests {
    use num_traits::Zero;

    use super::*;
    use proptest::prelude::*;

    fn number() -> impl Strategy<Value = Rational> {
        prop_oneof![
            any::<f64>().prop_filter_map("finite", Rational::from_float),
            (-8.0..8.0f64).prop_filter_map("finite", Rational::from_float),
            (any::<i64>(), 1..i64::MAX).prop_map(|(p, q)| Rational::new(p, q)),
            (-20i64..20, 1i64..20).prop_map(|(p, q)| Rational::new(p, q)),
            (any::<i128>(), -300i32..300).prop_filter_map("in range", |(m, e)| dyadic(m, e)),
            (any::<i128>(), any::<i128>(), -300i64..300).prop_map(|(m, n, e)| wide(BigInt::from(m) * n, e)),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_the_library(a in number(), b in number()) {
            let (x, y) = (a.to_big(), b.to_big());
            prop_assert_eq!(Rational::from(x.clone()), a.clone());
            prop_assert_eq!(&a + &b, Rational::from(&x + &y));
            prop_assert_eq!(&a - &b, Rational::from(&x - &y));
            prop_assert_eq!(&a * &b, Rational::from(&x * &y));
            if !b.is_zero() {
                prop_assert_eq!(&a / &b, Rational::from(&x / &y));
            }
            prop_assert_eq!(a.cmp(&b), x.cmp(&y));
            prop_assert_eq!(a == b, x == y);
            prop_assert_eq!(a.is_zero(), x.is_zero());
            prop_assert_eq!(a.is_negative(), x.is_negative());
            prop_assert_eq!((-&a).to_big(), -x);
        }

        #[test]
        fn floats_are_what_they_are(x in any::<f64>()) {
            let r = Rational::from_float(x);
            prop_assert_eq!(r.as_ref().map(Rational::to_big), BigRational::from_float(x));
            if let Some(y) = r.and_then(|r| r.as_float()) {
                prop_assert_eq!(x, y);
            }
        }

        #[test]
        fn floats_on_both_sides(a in number()) {
            if let Some((lo, hi, nearest)) = a.between_floats() {
                let [l, h] = [lo, hi].map(|x| Rational::from_float(x).unwrap());
                prop_assert!(l < a && a < h && lo.next_up() == hi);
                prop_assert_eq!(nearest, if &a - &l <= &h - &a { lo } else { hi });
            }
        }
    }
}
