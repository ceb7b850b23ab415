//! Every layout of SAEs against what its project's own formulas give (`tests/fixtures/saes.py`), and what is refused.

use std::path::{Path, PathBuf};

use neurograft::Error;
use neurograft::sae::{Architecture, Layout, Sae, SaeOptions};
use neurograft::tensors::TensorFile;
use serde_json::Value;

/// Both sides work in f64 on the same numbers; they differ in the order of sums and in where factors are applied.
const TOLERANCE: f64 = 1e-12;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn matrix(value: &Value) -> Vec<Vec<f64>> {
    serde_json::from_value(value.clone()).unwrap()
}

fn expected() -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixtures().join("saes/expected.json")).unwrap()).unwrap()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[test]
fn every_layout_computes_what_its_project_does() {
    let expected = expected();
    let x = matrix(&expected["x"]);
    let mut layouts = std::collections::BTreeSet::new();
    for (name, case) in expected["saes"].as_object().unwrap() {
        let options = SaeOptions { threshold: case["threshold"].as_f64(), ..SaeOptions::default() };
        let sae =
            Sae::open_with(fixtures().join("saes").join(name), &options).unwrap_or_else(|e| panic!("{name}: {e}"));
        layouts.insert(sae.layout());
        assert_eq!((sae.d_in(), sae.d_sae()), (6, 5), "{name}");
        assert_eq!(sae.hook_name(), case["hook"].as_str(), "{name}");
        let features = sae.features(&[0, 1, 2, 3, 4]).unwrap();
        assert_eq!(features[3], sae.feature(3).unwrap());
        let thresholds: Vec<f64> = features.iter().map(|f| f.threshold).collect();
        assert_eq!(sae.thresholds().unwrap(), thresholds, "{name}");
        let b_dec = sae.decoder_bias().unwrap();
        let (acts, recon) = (matrix(&case["activations"]), matrix(&case["reconstruction"]));
        let mut active = 0;
        for (t, x) in x.iter().enumerate() {
            let mut sum = b_dec.clone();
            for (f, wanted) in features.iter().zip(&acts[t]) {
                let z = dot(&f.w, x) + f.b;
                let a = if z > f.threshold { z } else { 0.0 };
                assert!((a - wanted).abs() <= TOLERANCE * (1.0 + wanted.abs()) * 10.0, "{name}: {a} for {wanted}");
                active += usize::from(a != 0.0);
                sum.iter_mut().zip(&f.d).for_each(|(s, d)| *s += a * d);
            }
            for (got, wanted) in sum.iter().zip(&recon[t]) {
                assert!((got - wanted).abs() <= TOLERANCE * (1.0 + wanted.abs()) * 100.0, "{name}: {got} for {wanted}");
            }
        }
        // A fixture in which nothing or everything is active would test no threshold.
        assert!((10..50).contains(&active), "{name}: {active} of 60 active");
    }
    assert_eq!(layouts.len(), Layout::ALL.len());
}

#[test]
fn a_scaled_input_needs_its_factor() {
    let from = fixtures().join("saes/saelens/v6-scaled");
    let dir = tempfile::tempdir().unwrap();
    for name in ["cfg.json", "sae_weights.safetensors"] {
        std::fs::copy(from.join(name), dir.path().join(name)).unwrap();
    }
    let e = Sae::open(dir.path()).unwrap_err();
    assert!(e.is_unsupported() && e.to_string().contains("norm_scaling_factor = S"), "{e}");
    let with = |s| SaeOptions { norm_scaling_factor: Some(s), ..SaeOptions::default() };
    let given = Sae::open_with(dir.path(), &with(0.375)).unwrap();
    let saved = Sae::open(&from).unwrap();
    assert_eq!((given.feature(2).unwrap(), given.input_scale()), (saved.feature(2).unwrap(), 0.375));
    // 1: it is folded in already.
    let folded = Sae::open_with(dir.path(), &with(1.0)).unwrap().feature(2).unwrap();
    let w = saved.feature(2).unwrap().w;
    folded.w.iter().zip(w).for_each(|(a, b)| assert_eq!(a * 0.375, b));
}

fn refusal(name: &str, options: SaeOptions) -> Error {
    Sae::open_with(fixtures().join("saes").join(name), &options).expect_err(name)
}

#[test]
fn a_top_k_is_refused_with_what_would_work() {
    for name in ["sparsify/layers.3", "saelens/v6-topk", "dictionary_learning/top_k"] {
        let e = refusal(name, SaeOptions::default());
        assert!(e.is_unsupported(), "{e}");
        assert!(e.to_string().contains("depends on all the others") && e.to_string().contains("threshold = "), "{e}");
    }
    assert!(refusal("dictionary_learning/top_k", SaeOptions::default()).to_string().contains("threshold = 0.625"));
    let relu = SaeOptions { threshold: Some(0.0), ..SaeOptions::default() };
    let sae = Sae::open_with(fixtures().join("saes/sparsify/layers.3"), &relu).unwrap();
    assert_eq!(sae.architecture(), Architecture::Standard);
}

#[test]
fn options_that_do_not_apply_are_errors() {
    let threshold = SaeOptions { threshold: Some(1.0), ..SaeOptions::default() };
    let scale = SaeOptions { norm_scaling_factor: Some(0.5), ..SaeOptions::default() };
    for name in [
        "saelens/v6-standard",
        "saelens/v6-jumprelu",
        "saelens/v5-gated",
        "openmoss/llama_scope",
        "dictionary_learning/new",
        "gemma_scope_2/layer_3_width_16k_l0_small",
    ] {
        let e = refusal(name, threshold.clone());
        assert!(e.is_input() && e.to_string().contains("leave"), "{e}");
    }
    for name in ["saelens/v6-standard", "sparsify/layers.3", "dictionary_learning/new"] {
        assert!(refusal(name, scale.clone()).is_input());
    }
    let layout = SaeOptions { layout: Some(Layout::Sparsify), ..SaeOptions::default() };
    assert!(refusal("saelens/v6-standard", layout).to_string().contains("no SAE in the layout sparsify"));
}

#[test]
fn files_and_their_directories_are_the_same_sae() {
    let saes = fixtures().join("saes");
    for (dir, file) in [
        ("saelens/v6-standard", "sae_weights.safetensors"),
        ("saelens/v6-standard", "cfg.json"),
        ("openmoss/llama_scope", "checkpoints/final.safetensors"),
        ("openmoss/llama_scope", "hyperparams.json"),
        ("gemma_scope_2/layer_3_width_16k_l0_small", "params.safetensors"),
        ("dictionary_learning/new", "ae.pt"),
    ] {
        let (a, b) = (Sae::open(saes.join(dir)).unwrap(), Sae::open(saes.join(dir).join(file)).unwrap());
        assert_eq!((a.layout(), a.hook_name()), (b.layout(), b.hook_name()), "{dir}");
        assert_eq!(a.feature(1).unwrap(), b.feature(1).unwrap());
    }
    let text = |p: &str| Sae::open(saes.join(p)).unwrap_err().to_string();
    assert!(text("saelens").contains("name one: 'v5-finetuned', 'v5-gated'"), "{}", text("saelens"));
    assert!(text("../vectors").contains("help: known: cfg.json with"), "{}", text("../vectors"));
    assert!(text("none").contains("nothing of that name"));
    assert!(text("expected.json").contains("cannot be told"));
}

#[test]
fn a_directory_of_two_layouts_asks_which() {
    let dir = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &str| std::fs::copy(fixtures().join("saes").join(from), dir.path().join(to)).unwrap();
    copy("saelens/v6-standard/cfg.json", "cfg.json");
    copy("saelens/v6-standard/sae_weights.safetensors", "sae_weights.safetensors");
    copy("dictionary_learning/new/ae.pt", "ae.pt");
    let e = Sae::open(dir.path()).unwrap_err().to_string();
    assert!(e.contains("several layouts fit the files: saelens, dictionary_learning"), "{e}");
    let options = SaeOptions { layout: Some(Layout::DictionaryLearning), ..SaeOptions::default() };
    assert_eq!(Sae::open_with(dir.path(), &options).unwrap().kind(), "AutoEncoderNew");
}

#[test]
fn pickles_are_read_and_never_executed() {
    let open = |name: &str| TensorFile::open_any(fixtures().join("tensors").join(name));
    let nested = open("nested.pt").unwrap();
    assert_eq!(nested.names(), ["nested.sae.w"]);
    let w = nested.tensor("nested.sae.w").unwrap();
    assert_eq!((w.values().unwrap(), w.row(1).unwrap()), (vec![1.0, 2.0, 4.0, 5.0], vec![4.0, 5.0]));
    let text = |name| open(name).unwrap_err().to_string();
    assert!(text("calls.pt").contains("the pickle calls '__builtin__.print'"), "{}", text("calls.pt"));
    assert!(text("expanded.pt").contains("more values than its storage"), "{}", text("expanded.pt"));
    assert!(text("legacy.pt").contains("before version 1.6"), "{}", text("legacy.pt"));
    assert!(text("compressed.npz").contains("compressed") && text("compressed.npz").contains("numpy.savez"));
}

/// Asks for everything that an SAE claims to hold.
fn exercise(path: &Path, options: &SaeOptions) {
    if let Ok(sae) = Sae::open_with(path, options) {
        let _ = (sae.feature(0), sae.features(&[0, sae.d_sae() - 1]), sae.decoder_bias(), sae.thresholds());
    }
}

/// A small generator of reproducible numbers (Steele, Lea and Flood's SplitMix64).
fn next(state: &mut u64) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) as usize
}

#[test]
fn damaged_files_are_read_or_refused() {
    let mut state = 6;
    for name in expected()["saes"].as_object().unwrap().keys() {
        let options = SaeOptions { threshold: Some(1.0), ..SaeOptions::default() };
        let from = fixtures().join("saes").join(name);
        let mut files = Vec::new();
        for dir in [from.clone(), from.join("checkpoints")].iter().filter(|d| d.is_dir()) {
            files.extend(std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file()));
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("checkpoints")).unwrap();
        let place = |p: &Path| dir.path().join(p.strip_prefix(&from).unwrap());
        for file in &files {
            std::fs::copy(file, place(file)).unwrap();
        }
        for file in &files {
            let bytes = std::fs::read(file).unwrap();
            for _ in 0..40 {
                let mut damaged = bytes.clone();
                for _ in 0..1 + next(&mut state) % 3 {
                    let at = next(&mut state) % damaged.len();
                    damaged[at] = [0, 0xff, b'9', next(&mut state) as u8][next(&mut state) % 4];
                }
                if next(&mut state).is_multiple_of(4) {
                    damaged.truncate(next(&mut state) % bytes.len());
                }
                std::fs::write(place(file), damaged).unwrap();
                exercise(dir.path(), &options);
                exercise(dir.path(), &SaeOptions::default());
            }
            std::fs::write(place(file), bytes).unwrap();
        }
    }
}
