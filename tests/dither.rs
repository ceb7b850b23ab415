//! Steps from copies of steep neurons, against brute force.
//!
//! The emulation rounds with the crate `half`, from f32, and knows the target as a closure: it shares nothing with search or certifier.

use half::{bf16, f16};
use neurograft::activation::Activation;
use neurograft::arithmetic::rows;
use neurograft::certify::Domain;
use neurograft::dither::{Copies, Dither};
use proptest::prelude::*;

fn copies(row: &str, [lo, hi]: [f64; 2], delta: f64, sums: f64, count: usize) -> Copies {
    let target = "step(z - 2)".parse().unwrap();
    let dither = Dither {
        target: &target,
        source: &Activation::Silu,
        gated: true,
        domain: Domain::new(lo, hi).unwrap(),
        delta,
        arithmetic: rows(row).unwrap()[0],
        sums,
        idle_sums: 0.0,
        max_weight: 1_048_576.0,
        row: None,
    };
    dither.copies(count).unwrap().unwrap()
}

/// A real number, rounded once: to f32 by rounding to odd, and from there.
fn once(x: f64, round: impl Fn(f32) -> f32) -> f32 {
    let near = x as f32;
    let mut bits = near.to_bits();
    if f64::from(near) != x && bits & 1 == 0 {
        bits = if f64::from(near).abs() < x.abs() { bits + 1 } else { bits - 1 };
    }
    round(f32::from_bits(bits))
}

/// What an engine makes of them, each sum being off by `error` upwards or downwards as `sign` says of its neuron.
fn engine(c: &Copies, z: f64, round: impl Fn(f32) -> f32 + Copy, sign: impl Fn(f64) -> f64) -> f64 {
    c.ideal.neurons.iter().fold(0.0, |sum, n| {
        let (weight, bias, out) = (n.weight.to_f64(), n.bias.to_f64(), n.out.to_f64());
        let gate = once(weight * z + bias + sign(out), round);
        sum + out * f64::from(round(gate / (1.0 + (-gate).exp())))
    })
}

fn to_bf16(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

fn to_f16(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

/// The largest and the mean error on the grid of [2, 32], off the band.
fn seen(c: &Copies, delta: f64, round: impl Fn(f32) -> f32 + Copy) -> [f64; 2] {
    let grid = (0..=48_000).map(|k| 2.0 + 30.0 * f64::from(k) / 48_000.0).filter(|z| z - 2.0 > delta);
    let errors: Vec<f64> = grid.map(|z| (engine(c, z, round, |_| 0.0) - 1.0).abs()).collect();
    [errors.iter().copied().fold(0.0, f64::max), errors.iter().sum::<f64>() / errors.len() as f64]
}

/// A simulation of a construction without a search (θ = 2, z in [2, 32]): one pair that rises over 0.25 was off by 0.25 at most and by 0.002
/// on the average; 16 pairs with offsets spread over 0.117 more, by 0.03 to 0.06 at most and by 0.0005.
#[test]
fn a_search_beats_even_offsets() {
    // The same widths, and room for the knees. One pair is at its optimum: in the largest binade a height that is no even number of spacings is off by a
    // fifth of the step or more nearly everywhere, and one of two spacings by half a spacing around powers of two.
    for (count, delta, most, mean) in [(1, 0.13, 0.25, 0.002), (16, 0.19, 0.045, 6e-4)] {
        let c = copies("transformers-bf16", [-30.0, 32.0], delta, 0.0, count);
        let [worst, average] = seen(&c, delta, to_bf16);
        println!("{count} pairs: proved {:.4}, seen {worst:.4}, mean {average:.2e}", c.deviation.epsilon_outside);
        assert!(c.deviation.epsilon_outside <= most, "{:?}", c.deviation);
        assert!(average <= mean, "{average}");
        assert!(worst <= c.deviation.epsilon_outside);
        assert_eq!(c.deviation.leak, Some(0.0));
    }
}

/// On every number of the format, errors of sums pushed to their bounds.
#[test]
fn no_number_of_the_format_is_beyond_the_bound() {
    for (row, count, delta, sums, f16) in [
        ("transformers-bf16", 4, 0.5, 0.01, false),
        ("transformers-bf16", 16, 0.25, 0.004, false),
        ("transformers-bf16", 2, 0.25, 0.0, false),
        ("transformers-f16", 8, 0.3, 0.002, true),
    ] {
        let c = copies(row, [-30.0, 32.0], delta, sums, count);
        let error = sums * c.slope;
        let mut worst = 0f64;
        let numbers =
            (0..=u16::MAX).map(|b| if f16 { f16::from_bits(b).to_f64() } else { bf16::from_bits(b).to_f64() });
        for z in numbers.filter(|z| (-30.0..=32.0).contains(z) && (z - 2.0).abs() > delta) {
            for up in [1.0, -1.0] {
                let round = if f16 { to_f16 } else { to_bf16 };
                let got = engine(&c, z, round, |out| up * error * out.signum());
                worst = worst.max((got - f64::from(u8::from(z > 2.0))).abs());
            }
        }
        let proved = c.deviation.epsilon_outside;
        assert!(worst <= proved, "{row}, {count}: {worst} > {proved}");
        assert!(worst > 0.3 * proved, "{row}, {count}: {worst} of {proved}");
    }
}

#[test]
fn more_copies_are_better() {
    let errors: Vec<f64> = [1, 4, 16, 64]
        .iter()
        .map(|n| copies("transformers-bf16", [-30.0, 32.0], 0.5, 0.01, *n).deviation.epsilon_outside)
        .collect();
    // Beyond some number the errors of sums are all that is left, and a search is no proof of an optimum.
    assert!(errors.windows(2).all(|w| w[1] < 1.05 * w[0]) && errors[3] < 0.7 * errors[0], "{errors:?}");
}

#[test]
fn an_idle_cap_does_not_leak() {
    let target = "-relu(z - 20)".parse().unwrap();
    for sums in [0.0, 0.05] {
        let dither = Dither {
            target: &target,
            source: &Activation::Silu,
            gated: true,
            domain: Domain::new(-110.0, 140.0).unwrap(),
            delta: 0.0,
            arithmetic: rows("transformers-bf16").unwrap()[0],
            sums,
            idle_sums: 0.0,
            max_weight: 1_048_576.0,
            row: None,
        };
        let layouts = dither.layouts().unwrap().unwrap();
        // Half a spacing of 120/128 for one neuron.
        for (count, most) in [(1, 0.5), (4, 0.3), (16, 0.25)] {
            let c = layouts.copies(count).unwrap().unwrap();
            println!("{count} copies, sums off by {sums}: {:.3}", c.deviation.epsilon_outside);
            assert!(c.deviation.epsilon_outside <= most * 120.0 / 128.0 + 1.5 * sums, "{:?}", c.deviation);
            assert_eq!(c.deviation.leak, Some(0.0), "{count}");
            assert!(c.ideal.neurons.len() <= count);
        }
    }
}

#[test]
fn what_has_no_room_has_no_copies() {
    let target = "step(z - 2)".parse().unwrap();
    let curved = "z * z".parse().unwrap();
    let dither = |target, delta, domain| {
        Dither {
            target,
            source: &Activation::Silu,
            gated: true,
            domain,
            delta,
            arithmetic: rows("transformers-f16").unwrap()[0],
            sums: 0.01,
            idle_sums: 0.0,
            max_weight: 1_048_576.0,
            row: None,
        }
        .copies(4)
    };
    let here = Domain::new(-100.0, 100.0).unwrap();
    // In f16 slopes end before a knee is as narrow as this band.
    assert!(dither(&target, 0.02, here).unwrap().is_none());
    assert!(dither(&curved, 0.5, here).unwrap().is_none());
    assert!(dither(&target, 0.5, Domain::line()).unwrap_err().is_input());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// The error of a step is linear in its weights, as `src/dither/offsets.rs` uses it: with Σ n = 0 and K(y) what rounding adds at a distance y from
    /// a power of two (of spacing U above it, U/2 below), Σ n·fl(P + t + o) = Σ n·o + Σ n·K(t + o).
    #[test]
    fn the_error_of_a_step_is_linear(terms in prop::collection::vec((-96i32..=96, -8i32..=8), 2..12), at in -128i32..=128) {
        let rest: i32 = terms.iter().map(|t| t.1).sum();
        let terms = terms.into_iter().chain([(0, -rest)]);
        // Around 256 numbers of bf16 are 2 apart above, 1 below; offsets and places in multiples of 1/16.
        let t = f64::from(at) / 16.0;
        let k = |y: f64| if y >= 0.0 { 2.0 * (y / 2.0).round_ties_even() - y } else { y.round_ties_even() - y };
        let (mut sum, mut line, mut error) = (0.0, 0.0, 0.0);
        for (o, n) in terms {
            let (o, n) = (f64::from(o) / 16.0, f64::from(n));
            sum += n * f64::from(once(256.0 + t + o, to_bf16));
            line += n * o;
            error += n * k(t + o);
        }
        prop_assert_eq!(sum, line + error);
    }

    /// Hermite's identity, as docs/arithmetic.md uses it: within a binade the mean of N roundings with offsets k/N of a spacing is the rounding of their mean to
    /// a lattice N times as fine, but for ties.
    #[test]
    fn copies_refine_the_lattice(log in 1u32..7, at in 0.0f64..1.0) {
        let n = f64::from(1u32 << log);
        // In [160, 224) numbers of bf16 are whole.
        let x = 160.0 + 63.0 * at;
        let mean = (0..1u32 << log).map(|k| f64::from(once(x + f64::from(k) / n, to_bf16))).sum::<f64>() / n;
        let middle = x + (n - 1.0) / (2.0 * n);
        prop_assert!((mean - middle).abs() <= 0.5 / n + 1e-12, "{} {}", mean, middle);
    }
}
