//! What the fuzz targets do with a file: read it, ask for everything that it claims to hold, and neither panic nor hang.
//!
//! `cargo +nightly fuzz run TARGET -- -max_total_time=60` runs one; `tests/fuzz.rs` runs all of them on a stable compiler, over
//! the committed corpus and simple mutations of it.

use std::fs;

use neurograft::Error;
use neurograft::certificate::CertificateFile;
use neurograft::expr::Expr;
use neurograft::gguf::GgufFile;
use neurograft::sae::{Sae, SaeOptions};
use neurograft::spec::Spec;
use neurograft::tensors::TensorFile;
use neurograft::vectors::VectorFile;

/// Safetensors, `.npy`, `.npz` and `.pt` files.
pub fn tensors(data: &[u8]) {
    let Ok(file) = TensorFile::any_from_bytes("x", data) else { return };
    for name in file.names() {
        let _ = (file.shape(&name), file.format_name(&name), file.span(&name));
        if let Ok(t) = file.tensor(&name) {
            let _ = (t.values(), t.vector(), t.row(0), t.columns(&[0]), t.get(t.len()), t.data().len());
        }
    }
}

/// Files of vectors, GGUF control vectors among them.
pub fn vectors(data: &[u8]) {
    let Ok(file) = VectorFile::from_bytes("x", data) else { return };
    let _ = (file.vector(None, None), file.vector(None, Some(1)));
    for listed in file.list().iter().take(16) {
        let _ = (file.vector(Some(&listed.name), None), file.vector(Some(&listed.name), Some(0)));
    }
}

/// GGUF files.
pub fn gguf(data: &[u8]) {
    let Ok(file) = GgufFile::from_bytes("x", data) else { return };
    for (_, value) in file.metadata() {
        let _ = (value.as_u64(), value.as_f64(), value.as_text().map(str::len), value.elements().map(|e| e.len()));
    }
    for info in file.tensors() {
        if let Ok(t) = file.tensor(&info.name) {
            let _ = (t.values(), t.rows(0..1), file.span(&info.name));
        }
    }
}

/// The names of the files of each layout: configuration, weights.
const LAYOUTS: [(&str, &str); 9] = [
    ("cfg.json", "sae_weights.safetensors"),
    ("cfg.json", "sae.safetensors"),
    ("config.json", "params.npz"),
    ("config.json", "params.safetensors"),
    ("hyperparams.json", "checkpoints/final.safetensors"),
    ("config.json", "sae_weights.safetensors"),
    ("config.json", "sae_weights.pt"),
    ("config.json", "ae.pt"),
    ("hyperparams.json", "checkpoints/final.pt"),
];

/// SAEs. The first byte says which layout, the next two how long the configuration is; weights follow.
pub fn sae(data: &[u8]) {
    let [layout, low, high, rest @ ..] = data else { return };
    let (cfg, weights) = LAYOUTS[usize::from(*layout) % LAYOUTS.len()];
    let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
    let Ok(dir) = tempfile::tempdir() else { return };
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("a directory")).and_then(|()| fs::write(path, bytes)).expect("written")
    };
    write(cfg, &rest[..length]);
    write(weights, &rest[length..]);
    for threshold in [None, Some(1.0)] {
        let options = SaeOptions { threshold, ..SaeOptions::default() };
        if let Ok(sae) = Sae::open_with(dir.path(), &options) {
            let _ = (sae.features(&[sae.d_sae() - 1, 0]), sae.decoder_bias(), sae.thresholds(), sae.format());
        }
    }
}

/// Specifications in TOML and JSON, and the pictures of what is wrong with them.
pub fn spec(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let draw = |path: &str, error: Error| {
        let _ = neurograft::source::shown(&error.at(path), path, text, &annotate_snippets::Renderer::plain());
    };
    match Spec::parse_all_toml(text) {
        Ok(specs) => drop(specs.iter().map(Spec::features).collect::<Vec<_>>()),
        Err(e) => draw("x.toml", e),
    }
    match Spec::parse_all_json(text) {
        Ok(specs) => drop(specs.iter().map(Spec::features).collect::<Vec<_>>()),
        Err(e) => draw("x.json", e),
    }
}

/// Expressions: what is parsed is printed, and parsed to the same.
pub fn expr(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(e) = text.parse::<Expr>() {
        let printed = e.to_string();
        assert_eq!(printed.parse::<Expr>().expect("what is printed is parsed"), e, "{printed}");
    }
}

/// Certificates.
pub fn certificate(data: &[u8]) {
    if let Ok(file) = serde_json::from_slice::<CertificateFile>(data) {
        let _ = (file.claims(), file.to_json());
    }
}
