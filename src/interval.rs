//! Outward-rounded interval arithmetic and enclosures of the elementary functions.
//!
//! Part of the trusted base. An [`Interval`] is a closed, non-empty set `[lo, hi]` of reals, ends possibly infinite.
//! Every operation returns a superset of the exact image. Sums, products, quotients and square roots are rounded
//! outward only when they are inexact (the sign of the error comes from an error-free transformation: Knuth's TwoSum,
//! and the fused multiply-add residual of Ogita, Rump, Oishi 2005), so exact arithmetic stays a point.
//!
//! Elementary functions come from the crate `pxfm`, whose results are within 0.5001 ulp of the true value; they are
//! widened by [`WIDEN_ULPS`] on either side. `tests/elementary.rs` checks that assumption against arbitrary precision.

use std::fmt;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// How many floats an elementary function's result is widened by on either side.
/// The library's error is below one ulp, so one float suffices; the second is margin.
pub const WIDEN_ULPS: u32 = 2;

/// Products below this magnitude may have lost their residual to underflow: treat them as inexact.
const RESIDUAL_SAFE: f64 = f64::MIN_POSITIVE * (1u64 << 60) as f64;

/// A closed interval of reals, never empty, never NaN.
#[derive(Clone, Copy, PartialEq)]
pub struct Interval {
    lo: f64,
    hi: f64,
}

#[inline]
fn add_down(a: f64, b: f64) -> f64 {
    let s = a + b;
    if s.is_finite() {
        // An intermediate result of TwoSum can overflow where s itself does not (an operand within an ulp of the largest
        // float: Boldo, Graillat, Muller 2017); then the sign of the error is unknown.
        if (0.0..f64::INFINITY).contains(&two_sum_error(a, b, s)) { s } else { s.next_down() }
    } else {
        overflow_down(s, a.is_finite() && b.is_finite())
    }
}

#[inline]
fn two_sum_error(a: f64, b: f64, s: f64) -> f64 {
    let bb = s - a;
    (a - (s - bb)) + (b - bb)
}

/// `s` is infinite or NaN: the result of an overflow when both operands were finite.
fn overflow_down(s: f64, operands_finite: bool) -> f64 {
    if s.is_nan() {
        f64::NEG_INFINITY
    } else if operands_finite && s > 0.0 {
        f64::MAX
    } else {
        s
    }
}

#[inline]
fn mul_down(a: f64, b: f64) -> f64 {
    // An end point 0 times an infinite end point is 0: infinity is a limit, never an element.
    if a == 0.0 || b == 0.0 {
        return 0.0;
    }
    let p = a * b;
    if !p.is_finite() {
        return overflow_down(p, a.is_finite() && b.is_finite());
    }
    if p.abs() < RESIDUAL_SAFE {
        // The exact product is not 0; rounding to nearest is off by less than one float.
        return if p == 0.0 && (a > 0.0) == (b > 0.0) { 0.0 } else { p.next_down() };
    }
    if a.mul_add(b, -p) < 0.0 { p.next_down() } else { p }
}

fn div_down(a: f64, b: f64) -> f64 {
    if a == 0.0 || b.is_infinite() && a.is_finite() {
        // a/±inf is a limit 0, approached from the quotient's own side.
        return if a == 0.0 || (a > 0.0) == (b > 0.0) { 0.0 } else { -f64::from_bits(1) };
    }
    let q = a / b;
    if !q.is_finite() {
        return overflow_down(q, a.is_finite() && b.is_finite() && b != 0.0);
    }
    if q.abs() < RESIDUAL_SAFE || a.abs() < RESIDUAL_SAFE {
        return if q == 0.0 && (a > 0.0) == (b > 0.0) { 0.0 } else { q.next_down() };
    }
    // a − q·b is exact (Markstein): its sign over that of b says on which side of q the true quotient lies.
    let r = (-q).mul_add(b, a);
    if (r < 0.0) != (b < 0.0) && r != 0.0 { q.next_down() } else { q }
}

#[inline]
fn add_up(a: f64, b: f64) -> f64 {
    -add_down(-a, -b)
}
#[inline]
fn mul_up(a: f64, b: f64) -> f64 {
    -mul_down(-a, b)
}
fn div_up(a: f64, b: f64) -> f64 {
    -div_down(-a, b)
}

impl Interval {
    /// The real line.
    pub const ENTIRE: Interval = Interval { lo: f64::NEG_INFINITY, hi: f64::INFINITY };
    /// The number 0.
    pub const ZERO: Interval = Interval { lo: 0.0, hi: 0.0 };
    /// The number 1.
    pub const ONE: Interval = Interval { lo: 1.0, hi: 1.0 };

    /// `[lo, hi]`; the real line if an end is NaN or the ends are out of order (unknown, hence nothing is claimed).
    pub const fn new(lo: f64, hi: f64) -> Self {
        if lo <= hi && lo < f64::INFINITY && hi > f64::NEG_INFINITY { Interval { lo, hi } } else { Self::ENTIRE }
    }

    /// The single number `x`; the real line if `x` is not finite.
    #[inline]
    pub const fn point(x: f64) -> Self {
        if x.is_finite() { Interval { lo: x, hi: x } } else { Self::ENTIRE }
    }

    /// `[-r, r]` for `r ≥ 0`.
    pub fn symmetric(r: f64) -> Self {
        Self::new(-r, r)
    }

    /// Lower end.
    pub fn lo(self) -> f64 {
        self.lo
    }
    /// Upper end.
    pub fn hi(self) -> f64 {
        self.hi
    }
    /// A float inside, near the middle.
    pub fn mid(self) -> f64 {
        if self.lo == f64::NEG_INFINITY && self.hi == f64::INFINITY {
            0.0
        } else if self.lo == f64::NEG_INFINITY {
            f64::MIN.max(self.hi.min(0.0) * 2.0 - 1.0)
        } else if self.hi == f64::INFINITY {
            f64::MAX.min(self.lo.max(0.0) * 2.0 + 1.0)
        } else {
            let m = 0.5 * self.lo + 0.5 * self.hi;
            m.clamp(self.lo, self.hi)
        }
    }
    /// Upper bound of the width.
    pub fn width(self) -> f64 {
        add_up(self.hi, -self.lo)
    }
    /// Largest absolute value.
    pub fn mag(self) -> f64 {
        self.lo.abs().max(self.hi.abs())
    }
    /// Smallest absolute value.
    pub fn mig(self) -> f64 {
        if self.contains(0.0) { 0.0 } else { self.lo.abs().min(self.hi.abs()) }
    }
    /// Is `x` inside?
    pub fn contains(self, x: f64) -> bool {
        self.lo <= x && x <= self.hi
    }
    /// Is every element of `self` inside `other`?
    pub fn is_subset(self, other: Interval) -> bool {
        other.lo <= self.lo && self.hi <= other.hi
    }
    /// Is it one number?
    pub fn is_point(self) -> bool {
        self.lo == self.hi
    }
    /// Are both ends finite?
    pub fn is_finite(self) -> bool {
        self.lo.is_finite() && self.hi.is_finite()
    }
    /// The smallest interval that holds both.
    pub fn hull(self, other: Interval) -> Interval {
        Interval { lo: self.lo.min(other.lo), hi: self.hi.max(other.hi) }
    }
    /// The common part, if any.
    pub fn intersect(self, other: Interval) -> Option<Interval> {
        let (lo, hi) = (self.lo.max(other.lo), self.hi.min(other.hi));
        (lo <= hi).then_some(Interval { lo, hi })
    }
    /// Of two valid enclosures of one quantity, what both allow.
    pub fn tighten(self, other: Interval) -> Interval {
        self.intersect(other).unwrap_or(self)
    }
    /// Pointwise maximum.
    pub fn max(self, other: Interval) -> Interval {
        Interval { lo: self.lo.max(other.lo), hi: self.hi.max(other.hi) }
    }
    /// Pointwise minimum.
    pub fn min(self, other: Interval) -> Interval {
        Interval { lo: self.lo.min(other.lo), hi: self.hi.min(other.hi) }
    }
    /// Absolute value.
    pub fn abs(self) -> Interval {
        Interval { lo: self.mig(), hi: self.mag() }
    }
    /// Square; never negative.
    pub fn sqr(self) -> Interval {
        let (a, b) = (self.mig(), self.mag());
        Interval { lo: mul_down(a, a), hi: mul_up(b, b) }
    }
    /// Square root of the non-negative part; the real line where there is none.
    pub fn sqrt(self) -> Interval {
        if self.hi < 0.0 {
            return Self::ENTIRE;
        }
        let down = |x: f64| {
            let s = x.sqrt();
            if x == 0.0 || x.is_infinite() {
                s
            } else if x < RESIDUAL_SAFE || s.mul_add(s, -x) > 0.0 {
                s.next_down()
            } else {
                s
            }
        };
        let up = |x: f64| {
            let s = x.sqrt();
            if x == 0.0 || x.is_infinite() {
                s
            } else if x < RESIDUAL_SAFE || s.mul_add(s, -x) < 0.0 {
                s.next_up()
            } else {
                s
            }
        };
        Interval { lo: down(self.lo.max(0.0)), hi: up(self.hi) }
    }
    /// Enlarged by `r ≥ 0` on either side.
    pub fn inflate(self, r: f64) -> Interval {
        self + Interval::symmetric(r)
    }

    /// e^x. Domain: R; range: [0, ∞).
    pub fn exp(self) -> Interval {
        increasing(self, pxfm::f_exp, 0.0, f64::INFINITY)
    }
    /// e^x − 1. Domain: R; range: [−1, ∞).
    pub fn exp_m1(self) -> Interval {
        increasing(self, pxfm::f_expm1, -1.0, f64::INFINITY)
    }
    /// ln(1 + x). Domain: x > −1 (the real line otherwise); range: R.
    pub fn ln_1p(self) -> Interval {
        if self.lo <= -1.0 {
            return Self::ENTIRE;
        }
        increasing(self, pxfm::f_log1p, f64::NEG_INFINITY, f64::INFINITY)
    }
    /// tanh x. Domain: R; range: [−1, 1].
    pub fn tanh(self) -> Interval {
        increasing(self, pxfm::f_tanh, -1.0, 1.0)
    }
    /// erfc x = 1 − erf x. Domain: R; range: [0, 2]; decreasing.
    pub fn erfc(self) -> Interval {
        increasing(-self, |x| pxfm::f_erfc(-x), 0.0, 2.0)
    }
}

/// Image of an increasing function that the library computes to below one ulp, clipped to its range.
fn increasing(x: Interval, f: impl Fn(f64) -> f64, inf: f64, sup: f64) -> Interval {
    let (mut lo, mut hi) = (f(x.lo), f(x.hi));
    if lo.is_nan() || hi.is_nan() {
        return Interval::new(inf, sup);
    }
    for _ in 0..WIDEN_ULPS {
        lo = lo.next_down();
        hi = hi.next_up();
    }
    Interval::new(lo.clamp(inf, sup), hi.clamp(inf, sup))
}

impl Add for Interval {
    type Output = Interval;
    #[inline]
    fn add(self, o: Interval) -> Interval {
        let s = self.lo + o.lo;
        // Of two points the sum and its error are needed once.
        if self.lo == self.hi && o.lo == o.hi && s.is_finite() {
            let error = two_sum_error(self.lo, o.lo, s);
            return match error {
                0.0 => Interval { lo: s, hi: s },
                e if e > 0.0 && e < f64::INFINITY => Interval { lo: s, hi: s.next_up() },
                e if e < 0.0 && e > f64::NEG_INFINITY => Interval { lo: s.next_down(), hi: s },
                _ => Interval { lo: s.next_down(), hi: s.next_up() },
            };
        }
        Interval { lo: add_down(self.lo, o.lo), hi: add_up(self.hi, o.hi) }
    }
}

impl Neg for Interval {
    type Output = Interval;
    fn neg(self) -> Interval {
        Interval { lo: -self.hi, hi: -self.lo }
    }
}

impl Sub for Interval {
    type Output = Interval;
    fn sub(self, o: Interval) -> Interval {
        self + -o
    }
}

impl Mul for Interval {
    type Output = Interval;
    #[inline]
    fn mul(self, o: Interval) -> Interval {
        let (a, b) = (self, o);
        let p = a.lo * b.lo;
        // Of two points the product and its error are needed once.
        if a.lo == a.hi && b.lo == b.hi && p.is_finite() && p.abs() >= RESIDUAL_SAFE {
            let error = a.lo.mul_add(b.lo, -p);
            return Interval {
                lo: if error < 0.0 { p.next_down() } else { p },
                hi: if error > 0.0 { p.next_up() } else { p },
            };
        }
        if a.lo >= 0.0 {
            let lo = if b.lo >= 0.0 { a.lo } else { a.hi };
            let hi = if b.hi >= 0.0 { a.hi } else { a.lo };
            Interval { lo: mul_down(lo, b.lo), hi: mul_up(hi, b.hi) }
        } else if a.hi <= 0.0 {
            -(-a * b)
        } else if b.lo >= 0.0 || b.hi <= 0.0 {
            b * a
        } else {
            Interval {
                lo: mul_down(a.lo, b.hi).min(mul_down(a.hi, b.lo)),
                hi: mul_up(a.lo, b.lo).max(mul_up(a.hi, b.hi)),
            }
        }
    }
}

impl Div for Interval {
    type Output = Interval;
    fn div(self, o: Interval) -> Interval {
        if o.contains(0.0) {
            return if self == Self::ZERO && !o.is_point() { Self::ZERO } else { Self::ENTIRE };
        }
        let (a, b) = if o.lo > 0.0 { (self, o) } else { (-self, -o) };
        let lo = if a.lo >= 0.0 { b.hi } else { b.lo };
        let hi = if a.hi >= 0.0 { b.lo } else { b.hi };
        Interval { lo: div_down(a.lo, lo), hi: div_up(a.hi, hi) }
    }
}

impl From<f64> for Interval {
    fn from(x: f64) -> Self {
        Interval::point(x)
    }
}

impl fmt::Debug for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:e}, {:e}]", self.lo, self.hi)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use num_bigint::BigInt;
    use num_rational::BigRational;
    use proptest::prelude::*;

    fn exact(x: f64) -> BigRational {
        BigRational::from_float(x).expect("finite")
    }

    /// Floats of every magnitude, small ones and neighbours of powers of two included.
    fn any_float() -> impl Strategy<Value = f64> {
        prop_oneof![
            any::<f64>().prop_filter("finite", |x| x.is_finite()),
            -1e3..1e3f64,
            (-40i32..40).prop_map(|k| 2f64.powi(k).next_up()),
            (-1080i32..-900).prop_map(|k| 2f64.powi(k)),
            Just(0.0),
        ]
    }

    fn encloses(i: Interval, x: &BigRational) -> bool {
        (i.lo == f64::NEG_INFINITY || exact(i.lo) <= *x) && (i.hi == f64::INFINITY || *x <= exact(i.hi))
    }

    /// At most one float wide unless the result overflows or its residual underflowed.
    fn tight(i: Interval) -> bool {
        i.lo == i.hi || i.lo.next_up() >= i.hi || i.lo.next_up().next_up() >= i.hi && i.mag() < RESIDUAL_SAFE
    }

    proptest! {
        #[test]
        fn point_operations_enclose_the_exact_result_tightly(a in any_float(), b in any_float()) {
            let (x, y) = (Interval::point(a), Interval::point(b));
            for (i, e) in [(x + y, exact(a) + exact(b)), (x - y, exact(a) - exact(b)), (x * y, exact(a) * exact(b))] {
                prop_assert!(encloses(i, &e), "{a:e} {b:e} {i:?}");
                prop_assert!(tight(i), "{a:e} {b:e} {i:?}");
            }
            if b != 0.0 {
                let i = x / y;
                prop_assert!(encloses(i, &(exact(a) / exact(b))), "{a:e} / {b:e} {i:?}");
            }
            let s = Interval::point(a.abs()).sqrt();
            prop_assert!(exact(s.lo) * exact(s.lo) <= exact(a.abs()) && exact(a.abs()) <= exact(s.hi) * exact(s.hi));
        }

        #[test]
        fn operations_on_intervals_contain_those_on_their_points(
            a in any_float(), b in any_float(), c in any_float(), d in any_float(), s in 0.0..=1.0f64, t in 0.0..=1.0f64,
        ) {
            let (x, y) = (Interval::new(a.min(b), a.max(b)), Interval::new(c.min(d), c.max(d)));
            let at = |i: Interval, s: f64| (i.lo + s * (i.hi / 2.0 - i.lo / 2.0) * 2.0).clamp(i.lo, i.hi);
            let (p, q) = (at(x, s), at(y, t));
            prop_assume!(p.is_finite() && q.is_finite());
            prop_assert!(encloses(x + y, &(exact(p) + exact(q))));
            prop_assert!(encloses(x - y, &(exact(p) - exact(q))));
            prop_assert!(encloses(x * y, &(exact(p) * exact(q))), "{x:?} {y:?} {p:e} {q:e}");
            prop_assert!(encloses(x.sqr(), &(exact(p) * exact(p))));
            if q != 0.0 {
                prop_assert!(encloses(x / y, &(exact(p) / exact(q))));
            }
        }
    }

    /// Where intermediate results of the error-free transformations overflow or underflow.
    #[test]
    fn point_operations_enclose_at_the_edges_of_the_range() {
        let mut edges = vec![0.0, 1.0, 3.0, f64::MIN_POSITIVE, RESIDUAL_SAFE, f64::from_bits(1), 1.0f64.next_down()];
        for k in [-1074, -1022, -1021, -962, -537, -481, -53, 53, 511, 969, 970, 971, 1022, 1023] {
            edges.extend([2f64.powi(k), 2f64.powi(k).next_up(), 2f64.powi(k).next_down(), 2f64.powi(k) * 1.5]);
        }
        edges.extend([f64::MAX, f64::MAX.next_down(), f64::MAX / 2.0, f64::MAX / 3.0]);
        let signed: Vec<f64> = edges.iter().flat_map(|&x| [x, -x]).collect();
        for &a in &signed {
            for &b in &signed {
                let (x, y) = (Interval::point(a), Interval::point(b));
                assert!(encloses(x + y, &(exact(a) + exact(b))), "{a:e} + {b:e}: {:?}", x + y);
                assert!(encloses(x * y, &(exact(a) * exact(b))), "{a:e} * {b:e}: {:?}", x * y);
                if b != 0.0 {
                    assert!(encloses(x / y, &(exact(a) / exact(b))), "{a:e} / {b:e}: {:?}", x / y);
                }
            }
            let s = Interval::point(a.abs()).sqrt();
            assert!(
                exact(s.lo) * exact(s.lo) <= exact(a.abs()) && exact(a.abs()) <= exact(s.hi) * exact(s.hi),
                "√{a:e}"
            );
        }
    }

    #[test]
    fn regression_two_sum_overflows_although_the_sum_does_not() {
        // MAX − 3/2 ulp rounds to MAX − ulp, and (MAX − ulp) + 3/2 ulp overflows.
        let (a, b) = (-1.5 * 2f64.powi(971), f64::MAX);
        let sum = Interval::point(a) + Interval::point(b);
        assert!(encloses(sum, &(exact(a) + exact(b))), "{sum:?}");
        assert!(encloses(-sum, &(exact(-a) + exact(-b))), "{sum:?}");
    }

    #[test]
    fn exact_operations_stay_points() {
        assert!((Interval::point(0.5) + Interval::point(0.25)).is_point());
        assert!((Interval::point(3.0) * Interval::point(0.125)).is_point());
        assert!((Interval::point(3.0) / Interval::point(8.0)).is_point());
        assert!(!(Interval::ONE / Interval::point(3.0)).is_point());
        assert!(encloses(Interval::ONE / Interval::point(3.0), &BigRational::new(BigInt::from(1), BigInt::from(3))));
    }

    #[test]
    fn unknown_is_the_real_line() {
        assert_eq!(Interval::new(f64::NAN, 1.0), Interval::ENTIRE);
        assert_eq!(Interval::new(2.0, 1.0), Interval::ENTIRE);
        assert_eq!(Interval::ONE / Interval::ZERO, Interval::ENTIRE);
        assert_eq!(Interval::point(f64::INFINITY), Interval::ENTIRE);
        assert_eq!(Interval::new(-3.0, -2.0).ln_1p(), Interval::ENTIRE);
        assert_eq!((Interval::point(f64::MAX) + Interval::point(f64::MAX)).hi(), f64::INFINITY);
        assert_eq!((Interval::point(f64::MAX) + Interval::point(f64::MAX)).lo(), f64::MAX);
    }
}
