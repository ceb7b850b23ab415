//! The table of what formats and engines can guarantee.

use assert_cmd::Command;
use neurograft::certify::Domain;
use neurograft::formats::{COPIES, guarantees};
use neurograft::{Options, PreActivation, Response};
use predicates::str::contains;

fn response() -> Response {
    Response {
        name: "step".into(),
        expr: "2 * step(z - 1)".parse().unwrap(),
        pre_activations: vec![PreActivation { w: vec![0.5, 0.25, -1.0], b: 0.5 }],
        write: vec![1.0, 0.5, 0.0],
        domain: Domain::new(-8.0, 8.0).unwrap(),
        band: 0.25,
    }
}

#[test]
fn every_engine_has_a_row() {
    let table = guarantees(&response(), &Options { norm: Some(8.0), ..Options::default() }).unwrap();
    // Two formats of 16 bits with all numbers of copies and two layers, one of 32 bits with one layer and two.
    assert_eq!(table.layouts.len(), 2 * (COPIES.len() + 1) + 2);
    let text = table.to_string();
    for row in neurograft::arithmetic::ROWS {
        let found: Vec<_> =
            table.layouts.iter().filter(|l| l.engines.iter().any(|e| e.arithmetic == row.name)).collect();
        assert!(found.len() >= 2 && found.iter().all(|l| l.refused.is_none() && l.neurons > 0), "{}", row.name);
        assert!(text.contains(row.name));
        let errors: Vec<f64> = found
            .iter()
            .filter(|l| l.layers == 1)
            .map(|l| l.engines.iter().find(|e| e.arithmetic == row.name).unwrap().error)
            .collect();
        if row.name == "transformers-bf16" {
            // Weights, dyadic here, cost nothing: what is left is the construction.
            assert!(errors[2] < 0.6 * errors[0], "{errors:?}");
        }
    }
    for l in table.layouts.iter().filter(|l| l.layers == 2) {
        assert!(l.engines.iter().all(|e| e.band >= 0.25), "{l:?}");
        assert!(l.format.bytes() == 2 || l.engines.iter().all(|e| e.error < 1e-4), "{l:?}");
    }
    // Of every engine something is on the front.
    for row in neurograft::arithmetic::ROWS {
        let all = table.layouts.iter().flat_map(|l| &l.engines).filter(|e| e.arithmetic == row.name);
        assert!(all.into_iter().any(|e| e.on_front), "{}", row.name);
    }
    let json = serde_json::to_value(&table).unwrap();
    assert_eq!(json["layouts"][0]["engines"][0]["arithmetic"], "transformers-bf16");
    assert_eq!(json["layouts"][1]["copies"], 4);
}

#[test]
fn the_norm_is_asked_for() {
    assert!(guarantees(&response(), &Options::default()).unwrap_err().is_input());
    let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data");
    let dir = tempfile::tempdir().unwrap();
    let spec = dir.path().join("spec.toml");
    let text = format!("sae = '{}'\n[[interventions]]\nfeature = 0\naction = 'cap'\nvalue = 20\n", data.display());
    std::fs::write(&spec, text).unwrap();
    let mut run = Command::cargo_bin("neurograft").unwrap();
    run.arg("formats").arg(&spec).assert().code(2).stderr(contains("give domain.norm"));
}
