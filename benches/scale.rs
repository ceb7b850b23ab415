//! Whole SAEs: every feature of a synthetic JumpReLU SAE ablated, its rows read from disk, in blocks of growing size.
//!
//! `cargo bench --bench scale` prints a time for each size, and the share of a feature; `-- 4096` runs that size alone, `-- --test`
//! the smallest.

use std::path::Path;
use std::time::Instant;

use neurograft::certify::Status;
use neurograft::spec::Spec;
use neurograft::{compile, intervention};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

const D: usize = 576;
const SIZES: [usize; 5] = [64, 1024, 4096, 8192, 16384];

/// Numbers in [−1, 1) from a counter (SplitMix64).
fn noise(k: u64) -> f32 {
    let mut z = k.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f32 / 8_388_608.0 - 1.0
}

fn bytes(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(f32::to_le_bytes).collect()
}

/// A SAELens directory: unit decoder rows, encoder rows of norm about 1, thresholds between 0.5 and 3.
fn write_sae(dir: &Path, features: usize) {
    let scale = (3.0 / D as f32).sqrt();
    let encoder = bytes((0..D * features).map(|k| scale * noise(k as u64)));
    let decoder: Vec<f32> = (0..D * features).map(|k| noise((1 << 40) + k as u64)).collect();
    let decoder = bytes(decoder.chunks(D).flat_map(|row| {
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        row.iter().map(move |x| x / norm)
    }));
    let biases = bytes((0..features).map(|k| noise((2 << 40) + k as u64)));
    let zeros = bytes((0..D).map(|_| 0.0));
    let thresholds = bytes((0..features).map(|k| 1.75 + 1.25 * noise((3 << 40) + k as u64)));
    let view = |shape: Vec<usize>, data| TensorView::new(Dtype::F32, shape, data).unwrap();
    let tensors = [
        ("W_enc", view(vec![D, features], &encoder)),
        ("W_dec", view(vec![features, D], &decoder)),
        ("b_enc", view(vec![features], &biases)),
        ("b_dec", view(vec![D], &zeros)),
        ("threshold", view(vec![features], &thresholds)),
    ];
    serialize_to_file(tensors, None, &dir.join("sae_weights.safetensors")).unwrap();
    let cfg = format!(r#"{{"architecture": "jumprelu", "d_in": {D}, "d_sae": {features}, "dtype": "float32"}}"#);
    std::fs::write(dir.join("cfg.json"), cfg).unwrap();
}

fn main() {
    let test = std::env::args().any(|a| a == "--test");
    let asked: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let sizes = match (test, asked.is_empty()) {
        (true, _) => &SIZES[..1],
        (false, true) => &SIZES[..],
        (false, false) => &asked[..],
    };
    let dir = tempfile::tempdir().unwrap();
    write_sae(dir.path(), sizes[sizes.len() - 1]);
    println!("{:>9} {:>9} {:>12}", "features", "seconds", "ms a feature");
    for &features in sizes {
        let entries: Vec<String> =
            (0..features).map(|k| format!(r#"{{"feature": {k}, "action": "ablate"}}"#)).collect();
        let text = format!(
            r#"{{"sae": ".", "interventions": [{}], "budget": {{"tolerance": 0.01, "band": 0.05}}, "domain": {{"range": [-110, 140], "norm": 250}}}}"#,
            entries.join(", ")
        );
        let path = dir.path().join("spec.json");
        std::fs::write(&path, text).unwrap();
        let start = Instant::now();
        let spec = Spec::read(&path).unwrap();
        let sae = intervention::open(&spec).unwrap();
        let target = intervention::target(&spec, sae.as_ref()).unwrap();
        let read = start.elapsed().as_secs_f64();
        let compiled = compile(&target, &intervention::options(&spec)).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        assert_eq!(compiled.proof.responses.len(), features);
        for r in &compiled.proof.responses {
            let f = r.figures();
            assert!(f.status == Status::Within && f.epsilon_outside.unwrap() <= 0.01, "{f:?}");
        }
        let each = 1e3 * seconds / features as f64;
        println!("{features:>9} {seconds:>9.2} {each:>12.3}   ({read:.2} s to read)");
    }
}
