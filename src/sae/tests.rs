use super::*;
use crate::tensors::tests::{f32s, file};
use proptest::prelude::*;
use safetensors::tensor::Dtype;

const CFG: &str = r#"{"architecture": "jumprelu", "d_in": 2, "d_sae": 3, "dtype": "float32",
    "apply_b_dec_to_input": false, "normalize_activations": "none",
    "metadata": {"model_name": "m", "hook_name": "blocks.0.hook_resid_post"}}"#;

type Tensors = Vec<(&'static str, Dtype, Vec<usize>, Vec<u8>)>;

fn tensors() -> Tensors {
    vec![
        ("W_enc", Dtype::F32, vec![2, 3], f32s(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
        ("b_enc", Dtype::F32, vec![3], f32s(&[0.5, -0.5, 0.25])),
        ("W_dec", Dtype::F32, vec![3, 2], f32s(&[1.0, 0.0, 0.0, 1.0, -1.0, 2.0])),
        ("b_dec", Dtype::F32, vec![2], f32s(&[0.125, 10.0])),
        ("threshold", Dtype::F32, vec![3], f32s(&[0.75, -1.0, 2.0])),
    ]
}

fn with(name: &'static str, dtype: Dtype, shape: Vec<usize>, bytes: Vec<u8>) -> Tensors {
    let mut all = tensors();
    all.retain(|t| t.0 != name);
    all.push((name, dtype, shape, bytes));
    all
}

fn open(cfg: &str, tensors: &Tensors) -> Result<Sae> {
    Sae::from_bytes(cfg, file(tensors))
}

fn refusal(cfg: &str, tensors: &Tensors) -> String {
    let e = open(cfg, tensors).expect_err("malformed");
    assert!(e.is_input(), "{e}");
    e.to_string()
}

#[test]
fn reads_features() {
    let sae = open(CFG, &tensors()).unwrap();
    assert_eq!((sae.d_in(), sae.d_sae(), sae.architecture()), (2, 3, Architecture::JumpRelu));
    assert_eq!((sae.hook_name(), sae.model_name()), (Some("blocks.0.hook_resid_post"), Some("m")));
    let two = Feature { index: 2, w: vec![3.0, 6.0], b: 0.25, d: vec![-1.0, 2.0], threshold: 2.0 };
    assert_eq!(sae.feature(2).unwrap(), two);
    let batch = sae.features(&[2, 0, 2]).unwrap();
    assert_eq!(batch.iter().map(|f| f.index).collect::<Vec<_>>(), [2, 0, 2]);
    assert_eq!(batch[2], two);
    assert_eq!(batch[1], sae.feature(0).unwrap());
    assert_eq!(sae.feature(1).unwrap().threshold, 0.0, "a negative threshold gates nothing that relu does not");
    assert_eq!(sae.decoder_bias().unwrap(), [0.125, 10.0]);
    assert!(sae.features(&[]).unwrap().is_empty());
}

#[test]
fn folds_the_decoder_bias() {
    let cfg = CFG.replace("false", "true");
    // 0.25 - (3 * 0.125 + 6 * 10)
    assert_eq!(open(&cfg, &tensors()).unwrap().feature(2).unwrap().b, -60.125);
    // The default, in a flat file from before version 6.
    let flat =
        r#"{"architecture": "standard", "d_in": 2, "d_sae": 3, "activation_fn_str": "relu", "dtype": "torch.float32"}"#;
    let mut standard = tensors();
    standard.pop();
    let sae = open(flat, &standard).unwrap();
    let f = sae.feature(2).unwrap();
    assert_eq!((f.b, f.threshold, sae.architecture()), (-60.125, 0.0, Architecture::Standard));
    assert!(sae.applies_decoder_bias_to_input() && sae.hook_name().is_none());
}

#[test]
fn the_fold_keeps_what_a_plain_sum_would_lose() {
    assert_eq!(minus_dot(1.0, &[1e17, -1e17, 1.0], &[1.0, 1.0, -0.5]), 1.5);
}

#[test]
fn out_of_range_features_name_the_range() {
    let e = open(CFG, &tensors()).unwrap().features(&[0, 3]).unwrap_err();
    assert!(e.is_input());
    assert!(e.to_string().contains("no feature 3") && e.to_string().contains("0 to 2"), "{e}");
}

#[test]
fn refuses_weights_that_contradict_the_configuration() {
    for (name, _, _, _) in tensors() {
        let mut missing = tensors();
        missing.retain(|t| t.0 != name);
        assert!(refusal(CFG, &missing).contains(&format!("no tensor '{name}'")));
    }
    let transposed = with("W_enc", Dtype::F32, vec![3, 2], f32s(&[0.0; 6]));
    let text = refusal(CFG, &transposed);
    assert!(text.contains("'W_enc' has shape [3, 2], not [d_in, d_sae] = [2, 3]"), "{text}");
    let text = refusal(&CFG.replace("\"d_sae\": 3", "\"d_sae\": 4"), &tensors());
    assert!(text.contains("[2, 3]") && text.contains("d_sae = 4"), "{text}");
    assert!(refusal(CFG, &with("b_enc", Dtype::I32, vec![3], vec![0; 12])).contains("'b_enc' holds I32"));
    assert!(refusal(&CFG.replace("float32", "bfloat16"), &tensors()).contains("dtype bf16"));
    assert!(refusal(&CFG.replace("jumprelu", "standard"), &tensors()).contains("'threshold'"));
    assert!(open(&CFG.replace("float32", "float64"), &tensors()).is_ok());
    let mut cut = file(&tensors());
    cut.pop();
    assert!(Sae::from_bytes(CFG, cut).unwrap_err().to_string().contains("truncated"));
}

#[test]
fn names_the_value_that_is_not_finite() {
    let nan = f32::NAN;
    let of = |name, shape: Vec<usize>, values: &[f32]| open(CFG, &with(name, Dtype::F32, shape, f32s(values))).unwrap();
    let w = of("W_enc", vec![2, 3], &[0.0, 0.0, 0.0, 0.0, nan, 0.0]);
    assert!(w.features(&[0, 2]).is_ok(), "only what is asked for is read");
    let e = w.feature(1).unwrap_err();
    assert!(
        e.is_input() && e.to_string().starts_with("feature 1: sae_weights.safetensors: tensor 'W_enc'[1, 1] is NaN"),
        "{e}"
    );
    let text = |sae: Sae| sae.feature(1).unwrap_err().to_string();
    assert!(text(of("W_dec", vec![3, 2], &[0.0, 0.0, f32::INFINITY, 0.0, 0.0, 0.0])).contains("'W_dec'[1, 0] is inf"));
    assert!(text(of("b_enc", vec![3], &[0.0, nan, 0.0])).contains("'b_enc'[1] is NaN"));
    assert!(text(of("threshold", vec![3], &[0.0, -f32::INFINITY, 0.0])).contains("'threshold'[1] is -inf"));
    let sae = of("b_dec", vec![2], &[0.0, nan]);
    assert!(sae.feature(0).is_ok() && sae.decoder_bias().unwrap_err().to_string().contains("'b_dec'[1]"));
}

#[test]
fn refuses_what_it_does_not_model() {
    let standard = CFG.replace("\"none\"", "\"none\", \"activation_fn\": \"relu\"");
    assert!(open(&standard, &tensors()).is_ok());
    for (from, to) in [
        ("\"jumprelu\"", "\"topk\""),
        ("\"jumprelu\"", "\"transcoder\""),
        ("\"jumprelu\"", "\"something\""),
        ("\"none\"", "\"layer_norm\""),
        ("\"none\"", "\"expected_average_only_in\""),
        ("\"none\"", "true"),
        ("\"none\"", "\"none\", \"activation_fn_str\": \"topk\""),
        ("\"none\"", "\"none\", \"reshape_activations\": \"hook_z\""),
        ("hook_resid_post", "attn.hook_z"),
    ] {
        let e = open(&CFG.replace(from, to), &tensors()).expect_err(to);
        assert!(e.is_unsupported() && e.to_string().contains("help:"), "{e}");
    }
}

#[test]
fn refuses_malformed_configurations() {
    for (from, to, said) in [
        ("\"d_in\": 2,", "", "d_in is missing"),
        ("\"d_in\": 2", "\"d_in\": -2", "d_in must be a positive integer"),
        ("\"d_in\": 2", "\"d_in\": 0", "d_in must be a positive integer"),
        ("\"d_in\": 2", "\"d_in\": \"2\"", "d_in must be a positive integer"),
        ("\"d_in\": 2", "\"d_in\": 18446744073709551615", "[18446744073709551615, 3]"),
        ("float32", "int8", "unknown number format 'int8'"),
        ("false", "0", "apply_b_dec_to_input must be true or false"),
        ("\"jumprelu\"", "7", "architecture must be a string"),
        ("{", "", "cfg.json: malformed JSON"),
    ] {
        let text = refusal(&CFG.replacen(from, to, 1), &tensors());
        assert!(text.contains(said), "{text}");
    }
    assert!(refusal("[]", &tensors()).contains("not a JSON object"));
}

#[test]
fn opens_directories() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Sae::open(dir.path().join("none")).unwrap_err().to_string().contains("nothing of that name"));
    assert!(Sae::open(dir.path()).unwrap_err().to_string().contains("no SAE in this directory"));
    std::fs::write(dir.path().join(CFG_FILE), CFG).unwrap();
    assert!(Sae::open(dir.path()).unwrap_err().to_string().contains(WEIGHTS_FILE));
    std::fs::write(dir.path().join(WEIGHTS_FILE), file(&tensors())).unwrap();
    assert_eq!(Sae::open(dir.path()).unwrap().feature(0).unwrap().w, [1.0, 4.0]);
    std::fs::write(dir.path().join(CFG_FILE), [0xff, 0xfe]).unwrap();
    assert!(Sae::open(dir.path()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn damaged_configurations_are_read_or_refused(at in any::<prop::sample::Index>(), with in "\\PC?|[0-9{}\\[\\]\",:-]") {
        let mut cfg = CFG.to_string();
        let at = at.index(cfg.len());
        cfg.replace_range(at..=at, &with);
        if let Ok(sae) = open(&cfg, &tensors()) {
            let _ = (sae.features(&[0, 1]), sae.decoder_bias());
        }
    }

    #[test]
    fn damaged_weights_are_read_or_refused(at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let mut bytes = file(&tensors());
        let at = at.index(bytes.len());
        bytes[at] = with;
        if let Ok(sae) = Sae::from_bytes(CFG, bytes) {
            let _ = (sae.features(&[0, 1, 2]), sae.decoder_bias());
        }
    }
}
