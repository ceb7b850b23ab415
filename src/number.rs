//! Exact constants: rational numbers that print, parse and convert without rounding.
//!
//! `0.1` in a specification is the number one tenth, not its binary neighbour, so that a bound holds for what was
//! written. A float is the dyadic rational that it is.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Signed, ToPrimitive, Zero};

use crate::error::{Error, Result};
use crate::interval::Interval;
use crate::rational::Rational;

/// Decimal exponents beyond this are refused: no float is that large or that small.
const MAX_EXPONENT: i64 = 400;

/// An exact rational number with the tightest enclosure by floats.
#[derive(Clone)]
pub struct Number {
    exact: Rational,
    enclosure: Interval,
    nearest: f64,
}

impl Number {
    /// The exact rational `p/q`.
    ///
    /// # Panics
    /// If `q` is 0.
    pub fn ratio(p: i64, q: i64) -> Self {
        Self::from(Rational::new(p, q))
    }

    /// The dyadic rational that the float is; `None` for NaN and infinities.
    pub fn from_f64(x: f64) -> Option<Self> {
        let x = if x == 0.0 { 0.0 } else { x };
        Some(Number { exact: Rational::from_float(x)?, enclosure: Interval::point(x), nearest: x })
    }

    /// 0.
    pub fn zero() -> Self {
        Self::ratio(0, 1)
    }

    /// 1.
    pub fn one() -> Self {
        Self::ratio(1, 1)
    }

    /// The exact value.
    pub fn exact(&self) -> &Rational {
        &self.exact
    }

    /// The tightest interval of floats that holds the number: a point where it is a float.
    pub fn enclosure(&self) -> Interval {
        self.enclosure
    }

    /// The nearest float, ties to even.
    pub fn to_f64(&self) -> f64 {
        self.nearest
    }

    /// Is the number itself a float?
    pub fn is_f64(&self) -> bool {
        self.enclosure.is_point()
    }

    /// Is it 0?
    pub fn is_zero(&self) -> bool {
        self.exact.is_zero()
    }

    /// Is it 1?
    pub fn is_one(&self) -> bool {
        self.exact.is_one()
    }

    /// −1, 0 or 1.
    pub fn signum(&self) -> i32 {
        self.exact.signum()
    }

    /// 1/x; `None` for 0.
    pub fn recip(&self) -> Option<Self> {
        (!self.is_zero()).then(|| Self::from(self.exact.recip()))
    }
}

impl From<Rational> for Number {
    fn from(exact: Rational) -> Self {
        if let Some((lo, hi, nearest)) = exact.between_floats() {
            return Number { exact, enclosure: Interval::new(lo, hi), nearest };
        }
        let enclosure = enclose(&exact);
        let nearest = nearest(&exact, enclosure);
        Number { exact, enclosure, nearest }
    }
}

impl From<i64> for Number {
    fn from(x: i64) -> Self {
        Self::from(Rational::from(x))
    }
}

/// The end of the enclosure that is nearer, the even one of two that are as near; the finite one beyond the largest float.
fn nearest(x: &Rational, enclosure: Interval) -> f64 {
    let (lo, hi) = (enclosure.lo(), enclosure.hi());
    if lo == hi || !hi.is_finite() {
        return lo;
    }
    if !lo.is_finite() {
        return hi;
    }
    let (l, h) = (Rational::from_float(lo).expect("finite"), Rational::from_float(hi).expect("finite"));
    let even = if lo.to_bits().is_multiple_of(2) { lo } else { hi };
    match (x - l).cmp(&(h - x)) {
        Ordering::Less => lo,
        Ordering::Equal => even,
        Ordering::Greater => hi,
    }
}

fn enclose(x: &Rational) -> Interval {
    if let Some(exact) = x.as_float() {
        return Interval::point(exact);
    }
    let Some(near) = x.to_big().to_f64().filter(|v| v.is_finite()) else {
        return if x.is_negative() {
            Interval::new(f64::NEG_INFINITY, f64::MIN)
        } else {
            Interval::new(f64::MAX, f64::INFINITY)
        };
    };
    // The conversion is only a guess; exact comparison moves the ends to where they belong.
    let below = |v: f64| v == f64::NEG_INFINITY || Rational::from_float(v).is_some_and(|v| v <= *x);
    let above = |v: f64| v == f64::INFINITY || Rational::from_float(v).is_some_and(|v| v >= *x);
    let (mut lo, mut hi) = (near, near);
    while !below(lo) {
        lo = lo.next_down();
    }
    while !above(hi) {
        hi = hi.next_up();
    }
    Interval::new(if lo == 0.0 { 0.0 } else { lo }, if hi == 0.0 { 0.0 } else { hi })
}

macro_rules! operator {
    ($trait:ident, $method:ident, $op:tt) => {
        impl std::ops::$trait for &Number {
            type Output = Number;
            fn $method(self, o: &Number) -> Number {
                Number::from(&self.exact $op &o.exact)
            }
        }
        impl std::ops::$trait for Number {
            type Output = Number;
            fn $method(self, o: Number) -> Number {
                &self $op &o
            }
        }
    };
}
operator!(Add, add, +);
operator!(Sub, sub, -);
operator!(Mul, mul, *);

impl std::ops::Neg for &Number {
    type Output = Number;
    fn neg(self) -> Number {
        Number { exact: -&self.exact, enclosure: -self.enclosure, nearest: -self.nearest }
    }
}

impl std::ops::Neg for Number {
    type Output = Number;
    fn neg(self) -> Number {
        -&self
    }
}

impl PartialEq for Number {
    fn eq(&self, o: &Self) -> bool {
        self.exact == o.exact
    }
}
impl Eq for Number {}
impl Hash for Number {
    fn hash<H: Hasher>(&self, h: &mut H) {
        self.exact.hash(h);
    }
}
impl PartialOrd for Number {
    fn partial_cmp(&self, o: &Self) -> Option<Ordering> {
        Some(self.cmp(o))
    }
}
impl Ord for Number {
    fn cmp(&self, o: &Self) -> Ordering {
        self.exact.cmp(&o.exact)
    }
}

/// Finite decimals print as decimals, other rationals as `p/q`.
impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = self.exact.to_big();
        let (twos, fives) = match factors_of_ten(exact.denom()) {
            Some(k) => k,
            None => return write!(f, "{}/{}", exact.numer(), exact.denom()),
        };
        let places = twos.max(fives);
        let scaled =
            exact.numer() * BigInt::from(2).pow((places - twos) as u32) * BigInt::from(5).pow((places - fives) as u32);
        let sign = if scaled.is_negative() { "-" } else { "" };
        let digits = scaled.abs().to_string();
        if places == 0 {
            let trimmed = digits.trim_end_matches('0');
            return match digits.len() - trimmed.len() {
                zeros if zeros > 15 && !trimmed.is_empty() => write!(f, "{sign}{trimmed}e{zeros}"),
                _ => write!(f, "{sign}{digits}"),
            };
        }
        let leading_zeros = places.saturating_sub(digits.len());
        if leading_zeros > 6 {
            return write!(f, "{sign}{digits}e-{places}");
        }
        let digits = format!(
            "{}{digits}",
            "0".repeat(places.saturating_sub(digits.len()) + usize::from(places >= digits.len()))
        );
        let (whole, fraction) = digits.split_at(digits.len() - places);
        write!(f, "{sign}{whole}.{fraction}")
    }
}

impl fmt::Debug for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The exponents of 2 and 5 if the number has no other prime factor.
fn factors_of_ten(denominator: &BigInt) -> Option<(usize, usize)> {
    let twos = denominator.trailing_zeros().unwrap_or(0) as usize;
    let mut rest = denominator >> twos;
    let mut fives = 0;
    let five = BigInt::from(5);
    while !rest.is_one() {
        if !(&rest % &five).is_zero() {
            return None;
        }
        rest /= &five;
        fives += 1;
    }
    Some((twos, fives))
}

/// Decimals (`-1.5`, `2e-3`) and quotients of two of them (`1/3`), read exactly.
impl FromStr for Number {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        match text.split_once('/') {
            None => decimal(text),
            Some((p, q)) => {
                let q = decimal(q.trim())?.recip().ok_or_else(|| Error::input(format!("'{text}' divides by zero")))?;
                Ok(&decimal(p.trim())? * &q)
            }
        }
    }
}

fn decimal(text: &str) -> Result<Number> {
    let bad = || {
        Error::input(format!("'{text}' is not a finite number"))
            .help("write a decimal (1.5, -2e-3) or a quotient (1/3)")
    };
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(k) => (&text[..k], text[k + 1..].parse::<i64>().map_err(|_| bad())?),
        None => (text, 0),
    };
    let (negative, unsigned) = match mantissa.as_bytes().first() {
        Some(b'-') => (true, &mantissa[1..]),
        Some(b'+') => (false, &mantissa[1..]),
        _ => (false, mantissa),
    };
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || digits.len() > 1100 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    if exponent.abs() > MAX_EXPONENT + 800 {
        return Err(bad());
    }
    let value = BigInt::from_str(&digits).map_err(|_| bad())?;
    let power = exponent - fraction.len() as i64;
    let ten = BigInt::from(10).pow(power.unsigned_abs() as u32);
    let mut exact = if power >= 0 { BigRational::from_integer(value * ten) } else { BigRational::new(value, ten) };
    if negative {
        exact = -exact;
    }
    let number = Number::from(Rational::from(exact));
    if number.enclosure.is_finite() { Ok(number) } else { Err(bad()) }
}

impl serde::Serialize for Number {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Number {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn prints_and_reads_exactly() {
        for text in ["0", "1", "-1.5", "0.01", "1.702", "1/3", "-7/12", "1e20", "0.0000001", "123.456"] {
            let n: Number = text.parse().unwrap();
            assert_eq!(n.to_string().parse::<Number>().unwrap(), n, "{text}");
        }
        assert_eq!("0.01".parse::<Number>().unwrap(), Number::ratio(1, 100));
        assert_eq!("2e-3".parse::<Number>().unwrap(), Number::ratio(1, 500));
        assert_eq!(Number::ratio(1, 3).to_string(), "1/3");
        assert_eq!("1.50".parse::<Number>().unwrap().to_string(), "1.5");
        assert!(!Number::ratio(1, 10).is_f64() && Number::ratio(3, 8).is_f64());
    }

    #[test]
    fn refuses_what_is_no_finite_number() {
        for text in ["", "nan", "inf", "1e999", "1/0", "--1", "1.2.3", "0x10", "1e", "e5", ".", "1e-99999999999"] {
            assert!(text.parse::<Number>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_float_survives_the_round_trip(bits in any::<u64>()) {
            let x = f64::from_bits(bits);
            prop_assume!(x.is_finite());
            let n = Number::from_f64(x).unwrap();
            let m: Number = n.to_string().parse().unwrap();
            prop_assert_eq!(&m, &n);
            prop_assert_eq!(m.enclosure(), Interval::point(if x == 0.0 { 0.0 } else { x }));
        }

        #[test]
        fn enclosures_of_rationals_are_one_float_wide(p in any::<i64>(), q in 1..i64::MAX) {
            let n = Number::ratio(p, q);
            let e = n.enclosure();
            prop_assert!(BigRational::from_float(e.lo()).unwrap() <= n.exact().to_big());
            prop_assert!(BigRational::from_float(e.hi()).unwrap() >= n.exact().to_big());
            prop_assert!(e.is_point() || e.lo().next_up() == e.hi());
        }
    }
}
