//! The forward pass beside that of transformers, from HuggingFace checkpoints and from GGUF files.

mod tiny;

use std::path::{Path, PathBuf};

use neurograft::reference::Model;
use neurograft::tensors::TensorFile;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value as Json, json};
use tiny::{Meta, Tiny};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama")
}

fn read(name: &str) -> Json {
    serde_json::from_str(&std::fs::read_to_string(data().join(name)).unwrap()).unwrap()
}

/// The tiny checkpoint with another configuration; without biases where the family has none.
fn checkpoint(dir: &Path, change: &Json, biases: bool) {
    let mut config = read("config.json");
    for (key, value) in change.as_object().unwrap() {
        config[key] = value.clone();
    }
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let file = TensorFile::open(data().join("model.safetensors")).unwrap();
    let names: Vec<String> = file.names().into_iter().filter(|n| biases || !n.ends_with("bias")).collect();
    let tensors: Vec<_> = names.iter().map(|n| file.tensor(n).unwrap()).collect();
    let views = names
        .iter()
        .zip(&tensors)
        .map(|(n, t)| (n.as_str(), TensorView::new(Dtype::BF16, t.shape().to_vec(), t.data()).unwrap()));
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
}

fn numbers(values: &Json) -> Vec<f64> {
    values.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// The last token's stream after the first layer, and its logits.
fn run(model: &Model, prompt: &[u32]) -> (Vec<f64>, Vec<f64>) {
    // A second prompt beside it must change nothing.
    let mut stream = model.embed(&[vec![3, 4, 5], prompt.to_vec()]).unwrap();
    let last = stream.x.nrows() - 1;
    model.layer(0, &mut stream).unwrap();
    let first = stream.x.row(last).iter().copied().collect();
    (1..model.layers()).for_each(|k| model.layer(k, &mut stream).unwrap());
    (first, model.logits(&stream, &[last]).unwrap().iter().copied().collect())
}

fn close(a: &[f64], b: &[f64], what: &str) {
    assert_eq!(a.len(), b.len());
    for (k, (x, y)) in a.iter().zip(b).enumerate() {
        // transformers computes norms and softmax in f32.
        assert!((x - y).abs() < 1e-5, "{what} {k}: {x}, transformers {y}");
    }
}

#[test]
fn agrees_with_transformers() {
    let expected = read("expected.json");
    let prompt: Vec<u32> = serde_json::from_value(expected["prompt"].clone()).unwrap();
    for (name, case) in expected["cases"].as_object().unwrap() {
        let dir = tempfile::tempdir().unwrap();
        checkpoint(dir.path(), &case["config"], case["biases"].as_bool().unwrap());
        let model = Model::open(dir.path()).unwrap();
        assert_eq!((model.layers(), model.hidden_size(), model.vocabulary().unwrap()), (2, 16, 40));
        assert_eq!(model.first_token(), Some(1));
        let (stream, logits) = run(&model, &prompt);
        close(&stream, &numbers(&case["stream"]), name);
        close(&logits, &numbers(&case["logits"]), name);
    }
}

/// The tiny checkpoint as a GGUF file in F32. Pairs of the rotary embedding become neighbours.
fn as_gguf(stretched: Option<Vec<f32>>) -> Tiny {
    let file = TensorFile::open(data().join("model.safetensors")).unwrap();
    let names = [
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
    ];
    let mut t = Tiny::default();
    for name in file.names() {
        let tensor = file.tensor(&name).unwrap();
        let width: usize = tensor.shape()[1..].iter().product();
        let rows: Vec<Vec<f32>> =
            tensor.values().unwrap().chunks(width).map(|r| r.iter().map(|x| *x as f32).collect()).collect();
        let rotated = name.contains("q_proj") || name.contains("k_proj");
        let order: Vec<usize> = if rotated {
            (0..rows.len()).map(|r| r / 6 * 6 + r % 2 * 3 + r % 6 / 2).collect()
        } else {
            (0..rows.len()).collect()
        };
        let values: Vec<f32> = order.iter().flat_map(|r| rows[*r].clone()).collect();
        let dims = tensor.shape().iter().rev().map(|n| *n as u64).collect();
        let short = names.iter().fold(name.clone(), |n, (from, to)| n.replace(from, to));
        t.tensors.push((short, dims, 0, tiny::f32s(&values)));
    }
    let text = |x: &str| Meta::Text(x.into());
    for (key, value) in [
        ("general.architecture", text("llama")),
        ("llama.block_count", Meta::U32(2)),
        ("llama.embedding_length", Meta::U32(16)),
        ("llama.feed_forward_length", Meta::U32(24)),
        ("llama.attention.head_count", Meta::U32(4)),
        ("llama.attention.head_count_kv", Meta::U32(2)),
        ("llama.attention.key_length", Meta::U32(6)),
        ("llama.attention.value_length", Meta::U32(6)),
        ("llama.rope.dimension_count", Meta::U32(6)),
        ("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-5)),
        ("tokenizer.ggml.bos_token_id", Meta::U32(1)),
    ] {
        t.metadata.push((key.into(), value));
    }
    match stretched {
        Some(factors) => {
            t.metadata.push(("llama.rope.freq_base".into(), Meta::F32(500.0)));
            t.tensors.push(("rope_freqs.weight".into(), vec![3], 0, tiny::f32s(&factors)));
        }
        None => t.metadata.push(("llama.rope.freq_base".into(), Meta::F32(100.0))),
    }
    t
}

#[test]
fn a_gguf_file_gives_the_same() {
    let expected = read("expected.json");
    let prompt: Vec<u32> = serde_json::from_value(expected["prompt"].clone()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    let mut linear = as_gguf(None);
    linear.metadata.push(("llama.rope.scaling.type".into(), Meta::Text("linear".into())));
    linear.metadata.push(("llama.rope.scaling.factor".into(), Meta::F32(4.0)));
    // The pairs make 5.1, 0.64 and 0.08 turns within the original 32 positions: more than 4 are kept, less than 1 stretched.
    let stretched = as_gguf(Some(vec![1.0, 8.0, 8.0]));
    for (name, file) in [("default", as_gguf(None)), ("linear", linear), ("llama3", stretched)] {
        std::fs::write(&path, file.bytes()).unwrap();
        let (stream, logits) = run(&Model::open(&path).unwrap(), &prompt);
        close(&stream, &numbers(&expected["cases"][name]["stream"]), name);
        close(&logits, &numbers(&expected["cases"][name]["logits"]), name);
    }
}

#[test]
fn sharded_checkpoints_are_read() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path(), &json!({"rope_theta": 100.0}), true);
    let whole = run(&Model::open(dir.path()).unwrap(), &[1, 2]);
    let names = TensorFile::open(dir.path().join("model.safetensors")).unwrap().names();
    std::fs::rename(dir.path().join("model.safetensors"), dir.path().join("a.safetensors")).unwrap();
    let map: serde_json::Map<_, _> = names.into_iter().map(|n| (n, json!("a.safetensors"))).collect();
    let index = dir.path().join("model.safetensors.index.json");
    std::fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
    assert_eq!(run(&Model::open(dir.path()).unwrap(), &[1, 2]), whole);
    std::fs::write(&index, json!({"weight_map": {"x": "../../secrets"}}).to_string()).unwrap();
    assert!(Model::open(dir.path()).is_err());
}

#[test]
fn what_is_not_known_is_refused_in_words() {
    let refused = |change: Json| {
        let dir = tempfile::tempdir().unwrap();
        checkpoint(dir.path(), &change, true);
        Model::open(dir.path()).unwrap_err().to_string()
    };
    assert!(refused(json!({"model_type": "gemma2"})).contains("gemma2"));
    assert!(refused(json!({"rope_scaling": {"type": "yarn", "factor": 4.0}})).contains("yarn"));
    assert!(refused(json!({"rope_scaling": {"rope_type": "linear"}})).contains("without factor"));
    assert!(refused(json!({"partial_rotary_factor": 0.5})).contains("part of each head"));
    assert!(refused(json!({"head_dim": 5})).contains("no decoder"));
    assert!(refused(json!({"num_attention_heads": 0})).contains("no decoder"));
    assert!(refused(json!({"head_dim": 1u64 << 60, "num_key_value_heads": 3})).contains("no decoder"));
    assert!(refused(json!({"hidden_act": "sinc"})).contains("sinc"));
    assert!(refused(json!({"rms_norm_eps": "small"})).contains("rms_norm_eps"));
    let mut other = as_gguf(None);
    other.metadata[0].1 = Meta::Text("gemma".into());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    std::fs::write(&path, other.bytes()).unwrap();
    assert!(Model::open(&path).unwrap_err().to_string().contains("'gemma'"));
}

#[test]
fn tokens_and_tensors_that_are_not_there() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path(), &json!({}), true);
    let model = Model::open(dir.path()).unwrap();
    assert!(model.embed(&[vec![40]]).unwrap_err().to_string().contains("vocabulary of 40"));
    let mut stream = model.embed(&[vec![1]]).unwrap();
    assert!(model.layer(2, &mut stream).unwrap_err().to_string().contains("model.layers.2.input_layernorm.weight"));
    checkpoint(dir.path(), &json!({"num_key_value_heads": 4}), true);
    let e = Model::open(dir.path()).unwrap().layer(0, &mut stream).unwrap_err();
    assert!(e.to_string().contains("expected 24, 24 and 24"), "{e}");
    checkpoint(dir.path(), &json!({"hidden_size": 8}), true);
    assert!(Model::open(dir.path()).unwrap().embed(&[vec![1]]).unwrap_err().to_string().contains("expected 8"));
}
