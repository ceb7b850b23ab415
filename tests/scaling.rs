//! By which factor a row is rounded best, against a scan of its own.

use std::path::Path;

use half::bf16;
use neurograft::activation::Activation;
use neurograft::certify::Domain;
use neurograft::format::Format;
use neurograft::sae::Sae;
use neurograft::scaling::{best, candidates, error};
use neurograft::{Options, PreActivation, Response, Target, compile};
use proptest::prelude::*;

/// ‖fl(f·w)/f − w‖ by the crate `half`, from numbers of f32, which it rounds once.
fn naive(row: &[f32], factor: f32) -> f64 {
    let off = |w: &f32| {
        let x = f64::from(factor) * f64::from(*w);
        (bf16::from_f32(factor * w).to_f64() - x) / f64::from(factor)
    };
    row.iter().map(|w| off(w).powi(2)).sum::<f64>().sqrt()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Rows and factors of twelve bits have exact products in f32.
    #[test]
    fn no_factor_of_a_scan_is_better(row in prop::collection::vec(-2047i32..=2047, 1..40), lo in 256u32..=400) {
        let row: Vec<f32> = row.into_iter().map(|k| k as f32 / 1024.0).collect();
        let wide: Vec<f64> = row.iter().map(|w| f64::from(*w)).collect();
        let range = [f64::from(lo) / 256.0, 2.0];
        let found = best(&wide, Format::Bf16, range);
        prop_assert!(found >= range[0] && found <= range[1]);
        let least = error(&wide, Format::Bf16, found);
        // 2 is a power of two: rounding commutes with it, so this is the error of the row itself.
        prop_assert!(least <= error(&wide, Format::Bf16, 1.0));
        for f in candidates(range) {
            let short = f as f32;
            // Those of eleven bits, on which the two agree to the last bits of their sums.
            if f64::from(short) == f && (f * 2048.0).fract() == 0.0 {
                prop_assert!(least <= naive(&row, short) * (1.0 + 1e-12) + 1e-300, "{} {}", found, f);
            }
        }
    }
}

/// Rows of a real SAE: the table of docs/arithmetic.md.
#[test]
fn real_rows_gain_little() {
    let sae = Sae::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/smollm2-l15")).unwrap();
    let all: Vec<usize> = (0..sae.d_sae()).collect();
    println!("| format | factors | gain: least | median | most |\n|---|---|---|---|---|");
    for format in [Format::Bf16, Format::F16] {
        for (name, range) in [("1 to 2", [1.0, 2.0]), ("within 3 % of a given one", [0.97, 1.0])] {
            let gain = |row: &[f64]| 1.0 - error(row, format, best(row, format, range)) / error(row, format, range[1]);
            let mut gains: Vec<f64> = sae.features(&all).unwrap().iter().map(|f| gain(&f.w)).collect();
            gains.sort_by(f64::total_cmp);
            let [least, median, most] = [0, gains.len() / 2, gains.len() - 1].map(|k| 100.0 * gains[k]);
            println!("| {format} | {name} | {least:.1} % | {median:.1} % | {most:.1} % |");
            assert!(least >= 0.0);
        }
    }
}

#[test]
fn dyadic_rows_stay_exact() {
    let row = [0.5, -0.25, 1.0, 0.0];
    assert_eq!(error(&row, Format::Bf16, best(&row, Format::Bf16, [1.3, 1.35])), 0.0);
}

/// Hosts whose inner weights are free, relu exactly and silu nearly: the certificate's own δ_rows, against rows that are rounded as they are.
#[test]
fn rows_of_free_scale_are_rounded_well() {
    let sae = Sae::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/smollm2-l15")).unwrap();
    let features: Vec<usize> = (0..sae.d_sae()).collect();
    let norm = 250.0;
    for source in [Activation::Relu, Activation::Silu] {
        let mut gains = Vec::new();
        for f in sae.features(&features).unwrap() {
            let plain = norm * error(&f.w, Format::Bf16, 1.0);
            let pre = PreActivation { w: f.w, b: f.b };
            let response = Response {
                name: "ablate".into(),
                expr: "-relu(z)".parse().unwrap(),
                pre_activations: vec![pre],
                write: f.d,
                domain: Domain::new(-110.0, 140.0).unwrap(),
                band: 0.0,
            };
            let options = Options {
                source: source.clone(),
                format: Format::Bf16,
                norm: Some(norm),
                bias_parts: 3,
                ..Options::default()
            };
            let compiled = compile(&Target { responses: vec![response] }, &options).unwrap();
            let rounding = compiled.proof.responses[0].rounding.as_ref().unwrap();
            // Norms are bounded from above, by a few units in the last place.
            assert!(rounding.delta_rows <= plain * (1.0 + 1e-12), "{} {plain}", rounding.delta_rows);
            gains.push(1.0 - rounding.delta_rows / plain);
        }
        gains.sort_by(f64::total_cmp);
        let [least, median, most] = [0, gains.len() / 2, gains.len() - 1].map(|k| 100.0 * gains[k]);
        println!("| bf16 | as compiled, host {source} | {least:.1} % | {median:.1} % | {most:.1} % |");
        assert!(median > 5.0);
    }
}
