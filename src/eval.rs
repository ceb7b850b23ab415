//! What an expression means: its value at a point, and an enclosure of its values over a box.
//!
//! Part of the trusted base. Every expression is total: its domain is all of R^m, m = [`Expr::arity`] or more. Step,
//! JumpReLU and select are strict: at their threshold they take the value of the left side.

use crate::error::{Error, Result};
use crate::expr::Expr;
use crate::interval::Interval;

/// The value at a point, in floating point (round to nearest throughout).
///
/// Error: there are fewer pre-activations than the expression reads.
pub fn value(e: &Expr, z: &[f64]) -> Result<f64> {
    check(e, z.len())?;
    Ok(point(e, z))
}

/// An enclosure of the values over a box: the natural interval extension, outward rounded. Where a discontinuous
/// condition is open both sides count.
///
/// Error: there are fewer pre-activations than the expression reads.
pub fn range(e: &Expr, z: &[Interval]) -> Result<Interval> {
    check(e, z.len())?;
    Ok(enclose(e, z))
}

fn check(e: &Expr, given: usize) -> Result<()> {
    if e.arity() > given {
        return Err(Error::input(format!("{e} reads {} pre-activations, {given} are given", e.arity())));
    }
    Ok(())
}

fn point(e: &Expr, z: &[f64]) -> f64 {
    let at = |e: &Expr| point(e, z);
    match e {
        Expr::Const(c) => c.to_f64(),
        Expr::Pre(k) => z[*k],
        Expr::Add(a, b) => at(a) + at(b),
        Expr::Mul(a, b) => at(a) * at(b),
        Expr::Neg(a) => -at(a),
        Expr::Scale(k, a) => k.to_f64() * at(a),
        Expr::Relu(a) => at(a).max(0.0),
        Expr::Step(a) => f64::from(u8::from(at(a) > 0.0)),
        Expr::JumpRelu(a, theta) => {
            let v = at(a);
            if v > theta.to_f64() { v } else { 0.0 }
        }
        Expr::Clamp(a, lo, hi) => at(a).max(lo.to_f64()).min(hi.to_f64()),
        Expr::Min(a, b) => at(a).min(at(b)),
        Expr::Max(a, b) => at(a).max(at(b)),
        Expr::Select(c, a, b) => {
            if at(c) > 0.0 {
                at(a)
            } else {
                at(b)
            }
        }
        Expr::Act(sigma, a) => sigma.value(at(a)),
    }
}

fn enclose(e: &Expr, z: &[Interval]) -> Interval {
    let at = |e: &Expr| enclose(e, z);
    // Both sides of a strict condition `c > 0`, as far as its enclosure leaves them open.
    let either = |c: Interval, on: Interval, off: Interval| match (c.hi() > 0.0, c.lo() > 0.0) {
        (_, true) => on,
        (false, _) => off,
        _ => on.hull(off),
    };
    match e {
        Expr::Const(c) => c.enclosure(),
        Expr::Pre(k) => z[*k],
        Expr::Add(a, b) => at(a) + at(b),
        Expr::Mul(a, b) => at(a) * at(b),
        Expr::Neg(a) => -at(a),
        Expr::Scale(k, a) => k.enclosure() * at(a),
        Expr::Relu(a) => at(a).max(Interval::ZERO),
        Expr::Step(a) => either(at(a), Interval::ONE, Interval::ZERO),
        Expr::JumpRelu(a, theta) => {
            let v = at(a);
            // Where it is on, v exceeds θ.
            let on = v.max(theta.enclosure());
            either(v - theta.enclosure(), on, Interval::ZERO)
        }
        Expr::Clamp(a, lo, hi) => at(a).max(lo.enclosure()).min(hi.enclosure()),
        Expr::Min(a, b) => at(a).min(at(b)),
        Expr::Max(a, b) => at(a).max(at(b)),
        Expr::Select(c, a, b) => either(at(c), at(a), at(b)),
        Expr::Act(sigma, a) => sigma.jet(at(a)).v,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_conditions_take_the_left_side_at_their_threshold() {
        let at = |text: &str, z: f64| value(&text.parse().unwrap(), &[z]).unwrap();
        assert_eq!((at("step(z - 2)", 2.0), at("step(z - 2)", 2.0f64.next_up())), (0.0, 1.0));
        assert_eq!((at("jumprelu(z, 2)", 2.0), at("jumprelu(z, 2)", 3.0)), (0.0, 3.0));
        assert_eq!((at("select(z, 5, 7)", 0.0), at("select(z, 5, 7)", 1.0)), (7.0, 5.0));
        assert_eq!(at("clamp(z, -1, 1/2)", 3.0), 0.5);
    }

    #[test]
    fn an_open_condition_counts_both_sides() {
        let over = |text: &str, lo, hi| range(&text.parse().unwrap(), &[Interval::new(lo, hi)]).unwrap();
        assert_eq!(over("step(z - 2)", 1.0, 3.0), Interval::new(0.0, 1.0));
        assert_eq!(over("step(z - 2)", 1.0, 2.0), Interval::ZERO);
        assert_eq!(over("jumprelu(z, 2)", 1.0, 3.0), Interval::new(0.0, 3.0));
        assert_eq!(over("jumprelu(z, 2)", 2.5, 3.0), Interval::new(2.5, 3.0));
        assert_eq!(over("relu(z)", -1.0, 1.0), Interval::new(0.0, 1.0));
    }

    #[test]
    fn several_pre_activations_are_counted() {
        let e: Expr = "z * z_2".parse().unwrap();
        assert_eq!(value(&e, &[2.0, 0.0, 3.0]).unwrap(), 6.0);
        assert!(value(&e, &[2.0, 3.0]).unwrap_err().is_input());
    }
}
