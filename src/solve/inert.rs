//! Stacks that vanish where the target does: steep neurons with their knees moved into the part that is not 0.
//!
//! A steep neuron leaks on the far side of its knee: silu(βt)/β ≈ −|t|e^(−β|t|), at most 0.28/β. With the knee moved by
//! s into the active part the leak at the old place is below s·e^(−βs), and the response is late by s: an error of s times
//! its slope. s = 40/β leaves e^−40 ≈ 4e−18.

use super::{Field, Method, Values, radii, steep_stacks, steepnesses};
use crate::certify::jumps;
use crate::error::Result;
use crate::expr::Expr;
use crate::number::Number;

/// Knees move by this over β.
const MARGIN: f64 = 40.0;

/// Enters steep stacks for the target drawn in from the ends of its zero set.
pub(super) fn construct(field: &mut Field<'_>) -> Result<()> {
    let request = field.request;
    let Some((left, right)) = active(&Values::new(request.target, request.domain)?) else { return Ok(()) };
    let jumps = jumps(request.target, request.domain)?;
    for beta in steepnesses(request, &jumps) {
        let Some(target) = drawn_in(request.target, left, right, MARGIN / beta) else { continue };
        for radius in radii(field.delta) {
            for ideal in steep_stacks(request, &target, beta, radius)? {
                field.enter_ideal(ideal, Method::Steep)?;
            }
        }
        if field.is_inert() {
            break;
        }
    }
    Ok(())
}

/// The part of the line outside of which the target is 0, where there is such a part and a 0 outside of it.
fn active(values: &Values) -> Option<(f64, f64)> {
    let knots: Vec<f64> = values.knots().collect();
    let zero = |a: f64, b: f64| (0..=8).all(|k| values.at(a + (b - a) * f64::from(k) / 8.0) == 0.0);
    let first = *knots.first()?;
    let last = *knots.last()?;
    let gap = |k: usize| zero(knots[k].next_up(), knots[k + 1]);
    let mut left = f64::NEG_INFINITY;
    if zero(first - 64.0, first) {
        left = first;
        let mut k = 0;
        while k + 1 < knots.len() && gap(k) {
            left = knots[k + 1];
            k += 1;
        }
    }
    let mut right = f64::INFINITY;
    if zero(last.next_up(), last + 64.0) {
        right = last;
        let mut k = knots.len() - 1;
        while k > 0 && gap(k - 1) {
            right = knots[k - 1];
            k -= 1;
        }
    }
    ((left.is_finite() || right.is_finite()) && left < right).then_some((left, right))
}

/// φ on [left + s, right − s] as it is on [left, right]: shifted, or shrunk where both ends are finite.
fn drawn_in(target: &Expr, left: f64, right: f64, s: f64) -> Option<Expr> {
    let (slope, offset) = match (left.is_finite(), right.is_finite()) {
        (true, false) => (1.0, -s),
        (false, true) => (1.0, s),
        _ => {
            let slope = (right - left) / (right - left - 2.0 * s);
            (slope, left - slope * (left + s))
        }
    };
    let (slope, offset) = (Number::from_f64(slope)?, Number::from_f64(offset)?);
    (slope.signum() > 0)
        .then(|| target.substitute(&|_| Expr::z().scale(slope.clone()).plus(Expr::constant(offset.clone()))))
}
