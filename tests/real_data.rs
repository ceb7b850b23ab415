//! The committed data, the example specification and the reference's own examples, read through the public interface.

use std::path::{Path, PathBuf};

use neurograft::intervention;
use neurograft::sae::{Architecture, Sae};
use neurograft::spec::{Action, Spec};
use neurograft::tensors::TensorFile;
use serde_json::Value;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// On how many residuals each feature is active, by the naive formula.
fn active(dir: &Path) -> Vec<usize> {
    let sae = Sae::open(dir).unwrap();
    let file = TensorFile::open(dir.join("residuals.safetensors")).unwrap();
    let x = file.tensor("residuals").unwrap();
    let rows: Vec<Vec<f64>> = (0..x.shape()[0]).map(|k| x.row(k).unwrap()).collect();
    let all: Vec<usize> = (0..sae.d_sae()).collect();
    let z = |w: &[f64], x: &[f64]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
    let is_active = |f: &neurograft::sae::Feature, x: &[f64]| z(&f.w, x) + f.b > f.threshold;
    (sae.features(&all).unwrap().iter()).map(|f| rows.iter().filter(|x| is_active(f, x)).count()).collect()
}

#[test]
fn slice_of_a_real_sae() {
    let dir = root().join("tests/data/smollm2-l15");
    let sae = Sae::open(&dir).unwrap();
    assert_eq!((sae.d_in(), sae.d_sae(), sae.architecture()), (576, 24, Architecture::JumpRelu));
    assert_eq!(sae.hook_name(), Some("blocks.15.hook_resid_post"));
    let described = json(&dir.join("features.json"));
    for entry in described["features"].as_array().unwrap() {
        let f = sae.feature(entry["feature"].as_u64().unwrap() as usize).unwrap();
        assert_eq!(f.threshold, entry["threshold"].as_f64().unwrap());
        let norm = f.d.iter().map(|d| d * d).sum::<f64>().sqrt();
        assert!((norm - 1.0).abs() < 1e-6, "decoder rows are unit vectors, not {norm}");
    }
    for (name, case) in json(&dir.join("cases.json")).as_object().unwrap() {
        let of = |k: &Value| &described["features"][k.as_u64().unwrap() as usize]["original"];
        match case.get("feature") {
            Some(feature) => assert_eq!(of(feature), &case["original_feature"], "{name}"),
            None => assert_eq!(of(&case["features"][1]), &case["original_features"][1], "{name}"),
        }
    }
    // As a float64 computation outside of this crate counted them; no pre-activation is within 0.01 of its threshold.
    let counted = [18, 28, 57, 70, 1, 16, 53, 30, 23, 11, 2, 54, 14, 36, 23, 15, 59, 31, 29, 35, 30, 16, 22, 49];
    assert_eq!(active(&dir), counted);
}

#[test]
fn example_specification() {
    let spec = Spec::read(root().join("examples/ablate.toml")).unwrap();
    let dir = spec.sae.clone().unwrap();
    let sae = Sae::open(&dir).unwrap();
    let features = sae.features(&spec.features().unwrap()).unwrap();
    assert_eq!(features.iter().map(|f| f.index).collect::<Vec<_>>(), [0, 2, 3, 5]);
    assert_eq!(spec.interventions[2].action, Action::Scale("1/2".parse().unwrap()));
    let target = intervention::target(&spec, &sae).unwrap();
    assert_eq!(target.responses[0].expr.to_string(), "-jumprelu(z, 2.7233097553253173828125)");
    assert_eq!(active(&dir), [18, 18, 1, 16, 2, 17]);
}

#[test]
fn the_reference_shows_valid_specifications() {
    let text = std::fs::read_to_string(root().join("docs/spec.md")).unwrap();
    let block = |language: &str| {
        let start = text.find(&format!("```{language}\n")).unwrap() + language.len() + 4;
        &text[start..start + text[start..].find("```").unwrap()]
    };
    assert_eq!(Spec::parse_toml(block("toml")).unwrap().interventions.len(), 3);
    let spec = Spec::parse_json(block("json")).unwrap();
    assert_eq!(spec.features().unwrap(), [139, 228, 314, 477, 883]);
    for name in Action::NAMES {
        assert!(text.contains(&format!("| `{name}` |")), "docs/spec.md does not describe {name}");
    }
}
