//! Starts that are known to be good: gates at the knots of the target, and the kinks of polylines.

use super::Problem;
use super::model::Stack;
use super::polyline::Polyline;
use super::sigma::Source;

/// Where the target leaves room, as around jumps: the ends of each such stretch between knots.
pub(super) fn bands(problem: &Problem) -> Vec<(f64, f64)> {
    let mut bands: Vec<(f64, f64)> = Vec::new();
    for k in problem.knots.windows(2) {
        let (lo, hi) = (problem.target)(0.5 * (k[0] + k[1]));
        match bands.last_mut() {
            _ if !(lo < hi) => (),
            Some(band) if band.1 == k[0] => band.1 = k[1],
            _ => bands.push((k[0], k[1])),
        }
    }
    bands
}

/// Steep gates: a source with asymptotes 0 and κt is within O(1/W) of a ReLU, σ(Wz)/(κW), at every knot.
pub(super) fn steep(problem: &Problem, source: &Source) -> Vec<Stack> {
    let tails = source.tails;
    let kappa = tails[1][1] - tails[0][1];
    if kappa == 0.0 || tails.iter().any(|t| t[2] != 0.0) || problem.knots.len() > 64 {
        return Vec::new();
    }
    let w = problem.max_weight.abs().min(2f64.powi(20));
    let f = |z: f64| {
        let (lo, hi) = (problem.target)(z);
        0.5 * (lo + hi)
    };
    // The slope beside knot i; across a band that of the ramp from one side to the other.
    let slope = |i: usize, side: f64, h: f64| {
        let k = problem.knots[i];
        let (lo, hi) = (problem.target)(k + side * h);
        let other = if side > 0.0 { problem.knots.get(i + 1) } else { i.checked_sub(1).map(|j| &problem.knots[j]) };
        match other {
            Some(other) if lo < hi => {
                let out = 1e-3 * h * side;
                (f(other + out) - f(k - out)) / (other - k)
            }
            _ => (f(k + 2.0 * side * h) - f(k + side * h)) / (side * h),
        }
    };
    let mut starts = Vec::new();
    // One gate a knot, with the slope jump seen nearby; facing right, then left.
    for facing in [1.0, -1.0] {
        let mut s = Stack::default();
        for (i, &k) in problem.knots.iter().enumerate() {
            let before = if i > 0 { problem.knots[i - 1] } else { problem.domain.0.max(k - 2.0) };
            let after = problem.knots.get(i + 1).copied().unwrap_or(problem.domain.1.min(k + 2.0));
            let h = 0.25 * (k - before).min(after - k);
            if h <= 0.0 {
                continue;
            }
            let jump = slope(i, 1.0, h) - slope(i, -1.0, h);
            if jump.is_finite() && jump.abs() > 1e-9 && jump.abs() / kappa.abs() <= problem.max_out {
                s.push(facing * w, -facing * w * k, jump / kappa, 0.0);
                // p is out·w
                let last = s.p.len() - 1;
                s.p[last] *= facing;
            }
        }
        if !s.w.is_empty() {
            let z = if problem.domain.0.is_finite() { problem.domain.0 } else { problem.knots[0] - 1.0 };
            if problem.constant && facing > 0.0 {
                s.constant = f(z);
            }
            starts.push(s);
        }
    }
    starts
}

/// Ramps across the bands that stay between their two sides: gates in pairs, whose dips cancel.
///
/// Let σ have its least value at −u, fall before and rise after it. For every v and 0 < ρ < 1 the number ρv − u lies between
/// v − u and −u, so that σ(v − u) ≥ σ(ρv − u): the kink
///
/// (σ(v − u) − σ(ρv − u))/((1 − ρ)w),    v = w(z − t)
///
/// is nowhere negative and has the asymptotes 0 and z − t of relu(z − t). Where σ(t) − σ(−t) is linear, σ(v + u) − σ(ρv + u)
/// likewise bends a ramp down to a level that it never exceeds. Knees stand a part of the band away from its ends, for what is
/// left of the tails beyond them falls with e^(−ρv).
pub(super) fn cleared(problem: &Problem, source: &Source) -> Vec<Stack> {
    /// ρ
    const RATIO: f64 = 0.5;
    /// Knees' distance from the ends of a band, as parts of its width.
    const MARGINS: [f64; 3] = [0.15, 0.25, 0.35];
    /// Slopes that cross a band in so many units of v.
    const CROSSED: [f64; 3] = [32.0, 96.0, 320.0];
    let tails = source.tails;
    let kappa = tails[1][1] - tails[0][1];
    let dip = source.least();
    let bands = bands(problem);
    if kappa == 0.0 || tails.iter().any(|t| t[2] != 0.0) || dip == 0.0 || bands.is_empty() || bands.len() > 8 {
        return Vec::new();
    }
    let narrowest = bands.iter().map(|(a, b)| b - a).fold(f64::INFINITY, f64::min);
    let mut slopes: Vec<f64> = CROSSED.map(|c| (c / narrowest).min(problem.max_weight.abs())).to_vec();
    slopes.dedup();
    let ramps = |w: f64, margin: f64, paired: [bool; 2]| {
        let mut s = Stack::default();
        if problem.constant {
            s.constant = (problem.target)(problem.domain.0.max(bands[0].0 - 1.0)).0;
        }
        for &(a, b) in &bands {
            let kinks = ramp(problem, (a, b), margin * (b - a));
            for (((jump, t), paired), side) in kinks.into_iter().zip(paired).zip([-1.0, 1.0]) {
                // p is out·w
                let p = jump / kappa;
                if paired {
                    s.push(w, side * dip - w * t, p / (1.0 - RATIO), 0.0);
                    s.push(RATIO * w, side * dip - RATIO * w * t, -RATIO * p / (1.0 - RATIO), 0.0);
                } else {
                    s.push(w, -w * t, p, 0.0);
                }
            }
        }
        s
    };
    let mut starts = Vec::new();
    for &w in &slopes {
        for margin in MARGINS {
            let ends = [[true, false], [false, true], [true, true]];
            starts.extend(ends.map(|paired| ramps(w, margin, paired)));
        }
    }
    starts.retain(|s| s.p.iter().all(|p| p.is_finite() && p.abs() <= problem.max_out));
    starts
}

/// The kinks (jump of the slope, place) of a ramp across the band (a, b), `margin` away from its ends, between the lines that
/// the target follows on both sides.
fn ramp(problem: &Problem, (a, b): (f64, f64), margin: f64) -> [(f64, f64); 2] {
    let line = |z: f64, out: f64| {
        let (near, far) = ((problem.target)(z + 1e-3 * out).0, (problem.target)(z + 0.1 * out).0);
        let slope = (far - near) / (0.099 * out);
        (slope, near - slope * (z + 1e-3 * out))
    };
    let (left, right) = (line(a, a - b), line(b, b - a));
    let (from, to) = (a + margin, b - margin);
    let rise = (right.0 * to + right.1 - left.0 * from - left.1) / (to - from);
    [(rise - left.0, from), (right.0 - rise, to)]
}

/// The kinks of a polyline as unit-weight neurons facing right.
pub(super) fn kinked(problem: &Problem, p: &Polyline) -> Stack {
    let mut s = Stack::default();
    for (k, w) in p.knots.iter().zip(p.links.windows(2)) {
        s.push(1.0, -k, w[1].2 - w[0].2, 0.0);
    }
    // The search never touches a constant that may not be.
    if problem.constant {
        s.constant = p.links[0].1;
    }
    s
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::Activation;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn kinks_of_two_neurons_are_nowhere_negative(v in -60.0f64..60.0, ratio in 0.05f64..0.95, which in 0usize..5) {
            let activation: Activation = ["silu", "gelu", "gelu_tanh", "quick_gelu", "mish"][which].parse().unwrap();
            let dip = Source::new(&activation).least();
            prop_assert!(dip > 0.5 && dip < 2.0);
            // σ at its least value is flat: u found by bisection is off by 1e−12 at most, and costs less than rounding.
            let value = activation.value(v - dip) - activation.value(ratio * v - dip);
            prop_assert!(value >= -1e-12, "{} at {v}: {value}", activation);
        }
    }

    #[test]
    fn bands_are_whole() {
        let target = |z: f64| if (z - 1.0).abs() <= 0.125 || (z + 2.0).abs() < 0.5 { (0.0, 1.0) } else { (0.0, 0.0) };
        let problem = Problem {
            source: &Activation::Silu,
            gated: false,
            domain: (-8.0, 8.0),
            target: &target,
            knots: &[-2.5, -1.5, 0.875, 1.0, 1.125],
            tails: [None, None],
            neurons: 2,
            max_weight: 64.0,
            max_out: 1e3,
            max_total: 100.0,
            constant: true,
            effort: 1,
        };
        assert_eq!(bands(&problem), [(-2.5, -1.5), (0.875, 1.125)]);
    }
}
