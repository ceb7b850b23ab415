//! Plain vectors against files that NumPy, safetensors and gguf wrote (`tests/fixtures/vectors.py`).

use std::path::PathBuf;

use neurograft::vectors::VectorFile;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vectors").join(name)
}

fn expected(name: &str) -> Vec<Vec<f64>> {
    let text = std::fs::read_to_string(fixture("expected.json")).unwrap();
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(all[name].clone()).unwrap()
}

#[test]
fn every_kind_of_file_holds_the_same_rows() {
    let rows = expected("rows");
    for name in ["rows.npy", "columns.npy"] {
        let file = VectorFile::open(fixture(name)).unwrap();
        let listed = file.list();
        assert_eq!((listed[0].name.as_str(), &listed[0].shape[..]), (&name[..name.len() - 4], &[3, 5][..]));
        for (k, row) in rows.iter().enumerate() {
            assert_eq!(file.vector(None, Some(k)).unwrap(), *row, "{name}");
        }
    }
    assert_eq!(VectorFile::open(fixture("double.npy")).unwrap().vector(None, None).unwrap(), rows[2]);
    let file = VectorFile::open(fixture("probes.safetensors")).unwrap();
    assert_eq!(file.vector(Some("probes"), Some(2)).unwrap(), rows[2]);
    assert_eq!(file.vector(Some("one"), None).unwrap(), rows[1]);
    assert_eq!(file.vector(Some("half"), Some(0)).unwrap(), expected("half")[0]);
    let file = VectorFile::open(fixture("control.gguf")).unwrap();
    for (listed, (k, row)) in file.list().iter().zip(rows.iter().enumerate()) {
        assert_eq!(listed.layer, Some(k + 1));
        assert_eq!(file.vector(Some(&listed.name), None).unwrap(), *row);
    }
}
