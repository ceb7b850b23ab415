//! Minimax fits: rounded, certified, and as light as the number format asks for.

use std::ops::ControlFlow;

use super::{Candidate, Field, Method, Request, Values, size};
use crate::activation::Side;
use crate::certify::Domain;
use crate::error::Result;
use crate::format::Format;
use crate::minimax;
use crate::stack::{Form, Neuron, Stack};

/// Fits of more neurons than this are not tried: polylines come at no cost, but the search over smooth neurons takes
/// seconds from here on, and rounding decides soon after.
const MOST_KINKS: usize = 64;
const MOST_SMOOTH: usize = 16;
/// Where rounding more than doubles the error, lighter fits are tried: Σ|out| divided by this, as often as that helps.
const LIGHTER: f64 = 8.0;
/// In formats that round much, so many numbers of neurons without gain end the search.
const IDLE: usize = 3;

/// Relative gains that more neurons must bring at the last digits: beyond [`NEAR_FLOOR`] two numbers of neurons without end it.
const GAIN: f64 = 0.9;
const NEAR_FLOOR: f64 = 1e-8;
/// What the search's own σ resolves.
const FLOOR: f64 = 1e-11;

/// Which stacks the search is for.
pub(super) enum Wanted<'a> {
    /// the best within the budget, or the smallest that meets the tolerance
    Best,
    /// the best of each of these numbers of neurons, ascending
    Each(&'a [usize]),
}

/// Runs the minimax search over growing numbers of neurons, until the tolerance is met or the budget is spent.
pub(super) fn fit(
    request: &Request<'_>,
    delta: f64,
    jumps: &[f64],
    field: &mut Field<'_>,
    wanted: Wanted<'_>,
) -> Result<()> {
    let Request { target, source, form, format, domain, budget } = request;
    let values = Values::new(target, *domain)?;
    let hull = |z: f64| {
        if delta == 0.0 {
            let v = values.at(z);
            return (v, v);
        }
        // Off the bands the value itself is asked for; inside, anything that the hull holds.
        if jumps.iter().all(|j| (z - j).abs() > delta) {
            let v = values.at(z);
            return (v, v);
        }
        values.range((z - delta).max(domain.lo()), (z + delta).min(domain.hi()))
    };
    let mut knots: Vec<f64> = values.knots().filter(|h| *h < domain.hi()).collect();
    knots.extend(jumps.iter().flat_map(|j| [j - delta, j + delta]).filter(|z| domain.contains(*z)));
    knots.sort_by(f64::total_cmp);
    knots.dedup();
    let problem = minimax::Problem {
        source,
        gated: *form == Form::Gated,
        domain: (domain.lo(), domain.hi()),
        target: &hull,
        knots: &knots,
        tails: [Side::Left, Side::Right].map(|side| asymptote(&values, *domain, side)),
        neurons: budget.neurons.min(most_fitted(request)),
        max_weight: budget.max_weight.min(format.largest()),
        max_out: budget.max_out,
        max_total: budget.max_total,
        constant: budget.constant,
        effort: 1,
    };
    // One fit, and lighter ones while the format makes more of its error. True: that is enough.
    let (mut best, mut without_gain) = (f64::INFINITY, 0);
    let mut enter = |problem: &minimax::Problem, fit: minimax::Fit| -> Result<bool> {
        let (mut fit, mut least) = (fit, f64::INFINITY);
        loop {
            let stack = rounded(request, &fit);
            let alternation = Some(fit.alternation);
            let error = field.enter(Candidate { stack, ideal: None, method: Method::Fit, alternation })?;
            least = least.min(error.unwrap_or(f64::INFINITY));
            let spoilt = *format != Format::F64 && error.is_some_and(|e| e > 2.0 * fit.estimate) && fit.total() > 1.0;
            if field.met() || !spoilt {
                break;
            }
            let lighter = minimax::Problem { max_total: fit.total() / LIGHTER, neurons: fit.neurons.len(), ..*problem };
            match minimax::fit(&lighter) {
                Some(next) if next.estimate < least => fit = next,
                _ => break,
            }
        }
        without_gain = if least < GAIN * best { 0 } else { without_gain + 1 };
        best = best.min(least);
        Ok(field.met() || *format != Format::F64 && without_gain >= IDLE)
    };
    let mut outcome = Ok(());
    let mut visit = |fit: minimax::Fit| match enter(&problem, fit) {
        Ok(true) => ControlFlow::Break(()),
        Ok(false) => ControlFlow::Continue(()),
        Err(e) => {
            outcome = Err(e);
            ControlFlow::Break(())
        }
    };
    match (wanted, budget.tolerance) {
        (Wanted::Each(counts), _) => {
            let scale = size(target, *domain)?;
            let (mut least, mut idle) = (f64::INFINITY, 0);
            minimax::at_each(&problem, counts, |fit| {
                idle = if fit.estimate < GAIN * least { 0 } else { idle + 1 };
                least = least.min(fit.estimate);
                let done = least < FLOOR * scale || idle == 2 && least < NEAR_FLOOR * scale;
                if visit(fit).is_break() || done { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
        }
        (Wanted::Best, None) => {
            let _ = minimax::fit(&problem).map(visit);
        }
        (Wanted::Best, Some(tolerance)) => minimax::growing(&problem, tolerance, visit),
    }
    outcome
}

/// The fit in the numbers of the format, within the limits.
fn rounded(request: &Request<'_>, fit: &minimax::Fit) -> Stack<f64> {
    let Request { source, form, format, budget, .. } = request;
    let (round, biases) = (|x: f64| format.round(x), request.bias_format());
    let neuron = |n: &minimax::Neuron| {
        let weight = toward_zero_within(round(n.weight), budget.max_weight, *format);
        Neuron {
            weight,
            bias: biases.round(n.bias),
            out: toward_zero_within(round(n.out), budget.max_out / weight.abs() * (1.0 - f64::EPSILON), *format),
            up: match form {
                Form::Gated => Some(n.up.map_or((0.0, 1.0), |(w, b)| (round(w), biases.round(b)))),
                Form::Plain => None,
            },
        }
    };
    Stack {
        source: (*source).clone(),
        constant: biases.round(fit.constant),
        neurons: fit.neurons.iter().map(neuron).collect(),
    }
}

/// How many neurons a fit may have at most.
pub(super) fn most_fitted(request: &Request<'_>) -> usize {
    let linear =
        request.source.polynomial_pieces().is_some_and(|(_, p)| p.iter().all(|[_, _, square]| square.is_zero()));
    if linear && request.form == Form::Plain { MOST_KINKS } else { MOST_SMOOTH }
}

/// Rounding may carry a weight over its limit; the largest number of the format within it will do.
fn toward_zero_within(x: f64, limit: f64, format: Format) -> f64 {
    if x.abs() <= limit {
        return x;
    }
    // Steps that grow: a fixed one may be smaller than half a unit of the format, and never get anywhere.
    let mut y = format.round(limit);
    let mut step = 2f64.powi(-24);
    while y > limit {
        y = format.round(limit * (1.0 - step));
        step *= 2.0;
    }
    y.copysign(x)
}

/// (slope, offset) towards an infinite end, from two far values.
fn asymptote(values: &Values, domain: Domain, side: Side) -> Option<(f64, f64)> {
    let (end, sign) = match side {
        Side::Left => (domain.lo(), -1.0),
        Side::Right => (domain.hi(), 1.0),
    };
    if end.is_finite() {
        return None;
    }
    let (a, b) = (sign * 4096.0, sign * 8192.0);
    let slope = (values.at(b) - values.at(a)) / (b - a);
    Some((slope, values.at(a) - slope * a))
}
