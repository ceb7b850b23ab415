//! Splicing into HuggingFace checkpoints: tiny random models, spliced by the binary and judged by a naive forward pass in f64
//! that shares nothing with the crate.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use half::{bf16, f16};
use predicates::prelude::*;
use predicates::str::contains;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

fn neurograft() -> Command {
    Command::new(env!("CARGO_BIN_EXE_neurograft"))
}

// ------------------------------------------------------------------------------------------------------ random models

/// Numbers in [−1, 1), the same for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

/// A tiny model, and how it is stored.
#[derive(Clone)]
struct Model {
    architecture: &'static str,
    hidden: usize,
    inner: usize,
    layers: usize,
    heads: usize,
    key_heads: usize,
    head_dim: usize,
    vocabulary: usize,
    dtype: Dtype,
    tied: bool,
    shards: usize,
    attention_bias: bool,
    mlp_bias: bool,
    seed: u64,
    config: Value,
}

impl Default for Model {
    fn default() -> Self {
        Model {
            architecture: "LlamaForCausalLM",
            hidden: 64,
            inner: 96,
            layers: 3,
            heads: 4,
            key_heads: 2,
            head_dim: 16,
            vocabulary: 40,
            dtype: Dtype::F32,
            tied: false,
            shards: 1,
            attention_bias: false,
            mlp_bias: false,
            seed: 1,
            config: json!({}),
        }
    }
}

type Tensors = Vec<(String, Vec<usize>, Vec<u8>)>;

fn store(dtype: Dtype, x: f64) -> Vec<u8> {
    match dtype {
        Dtype::F32 => (x as f32).to_le_bytes().to_vec(),
        Dtype::BF16 => bf16::from_f64(x).to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f64(x).to_le_bytes().to_vec(),
        _ => unreachable!(),
    }
}

fn load(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    match dtype {
        Dtype::F32 => bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
        Dtype::BF16 => bytes.chunks(2).map(|b| bf16::from_le_bytes(b.try_into().unwrap()).to_f64()).collect(),
        Dtype::F16 => bytes.chunks(2).map(|b| f16::from_le_bytes(b.try_into().unwrap()).to_f64()).collect(),
        _ => unreachable!(),
    }
}

impl Model {
    fn tensors(&self) -> Tensors {
        let mut random = Random(self.seed);
        let mut out: Tensors = Vec::new();
        let mut add = |name: String, shape: &[usize], middle: f64, size: f64| {
            let n: usize = shape.iter().product();
            let bytes = (0..n).flat_map(|_| store(self.dtype, middle + size * random.next())).collect();
            out.push((name, shape.to_vec(), bytes));
        };
        let (d, q, k) = (self.hidden, self.heads * self.head_dim, self.key_heads * self.head_dim);
        let weight = 1.0 / (d as f64).sqrt();
        add("model.embed_tokens.weight".into(), &[self.vocabulary, d], 0.0, 1.0);
        for l in 0..self.layers {
            let name = |n: &str| format!("model.layers.{l}.{n}");
            add(name("input_layernorm.weight"), &[d], 1.0, 0.3);
            add(name("post_attention_layernorm.weight"), &[d], 1.0, 0.3);
            let qkv = self.attention_bias || self.architecture == "Qwen2ForCausalLM";
            for (p, rows, columns, bias) in [
                ("self_attn.q_proj", q, d, qkv),
                ("self_attn.k_proj", k, d, qkv),
                ("self_attn.v_proj", k, d, qkv),
                ("self_attn.o_proj", d, q, self.attention_bias),
                ("mlp.gate_proj", self.inner, d, self.mlp_bias),
                ("mlp.up_proj", self.inner, d, self.mlp_bias),
                ("mlp.down_proj", d, self.inner, self.mlp_bias),
            ] {
                add(name(&format!("{p}.weight")), &[rows, columns], 0.0, 1.5 * weight);
                if bias {
                    add(name(&format!("{p}.bias")), &[rows], 0.0, 0.2);
                }
            }
        }
        add("model.norm.weight".into(), &[d], 1.0, 0.3);
        if !self.tied {
            add("lm_head.weight".into(), &[self.vocabulary, d], 0.0, weight);
        }
        out
    }

    fn config(&self) -> Value {
        let model_type = match self.architecture {
            "MistralForCausalLM" => "mistral",
            "Qwen2ForCausalLM" => "qwen2",
            _ => "llama",
        };
        let dtype = match self.dtype {
            Dtype::BF16 => "bfloat16",
            Dtype::F16 => "float16",
            _ => "float32",
        };
        let mut config = json!({
            "architectures": [self.architecture], "model_type": model_type, "hidden_size": self.hidden,
            "intermediate_size": self.inner, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads, "vocab_size": self.vocabulary, "rms_norm_eps": 1e-5,
            "hidden_act": "silu", "tie_word_embeddings": self.tied, "torch_dtype": dtype, "rope_theta": 10000.0,
            "max_position_embeddings": 128, "eos_token_id": [2, 3, 4], "attention_dropout": 0.0,
        });
        if self.attention_bias {
            config["attention_bias"] = json!(true);
        }
        if self.mlp_bias {
            config["mlp_bias"] = json!(true);
        }
        if self.head_dim * self.heads != self.hidden {
            config["head_dim"] = json!(self.head_dim);
        }
        match self.architecture {
            "MistralForCausalLM" => config["sliding_window"] = Value::Null,
            "Qwen2ForCausalLM" => {
                config["use_sliding_window"] = json!(false);
                config["sliding_window"] = json!(64);
                config["max_window_layers"] = json!(3);
                config["layer_types"] = json!(vec!["full_attention"; self.layers]);
            }
            _ => {}
        }
        for (key, value) in self.config.as_object().unwrap() {
            match value {
                Value::String(s) if s == "absent" => drop(config.as_object_mut().unwrap().remove(key)),
                v => config[key] = v.clone(),
            }
        }
        config
    }

    fn write(&self, dir: &Path) {
        self.write_with(dir, &self.tensors());
    }

    fn write_with(&self, dir: &Path, tensors: &Tensors) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("config.json"), self.config().to_string()).unwrap();
        fs::write(dir.join("tokenizer.json"), "{\"tokens\": 40}").unwrap();
        fs::write(dir.join("README.md"), "---\nlicense: apache-2.0\nlanguage:\n- en\n---\n\nA tiny model.\n").unwrap();
        let names: Vec<String> = match self.shards {
            1 => vec!["model.safetensors".into()],
            n => (1..=n).map(|k| format!("model-{k:05}-of-{n:05}.safetensors")).collect(),
        };
        let mut map = serde_json::Map::new();
        let part = tensors.len().div_ceil(self.shards);
        for (name, some) in names.iter().zip(tensors.chunks(part)) {
            let views = some.iter().map(|(n, s, b)| (n.clone(), TensorView::new(self.dtype, s.clone(), b).unwrap()));
            let about = [("format".to_string(), "pt".to_string())].into();
            fs::write(dir.join(name), safetensors::serialize(views, Some(about)).unwrap()).unwrap();
            some.iter().for_each(|t| drop(map.insert(t.0.clone(), json!(name))));
        }
        if self.shards > 1 {
            let size: usize = tensors.iter().map(|t| t.2.len()).sum();
            let index = json!({"metadata": {"total_size": size}, "weight_map": map});
            fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
        }
    }
}

// ----------------------------------------------------------------------------------------------- a naive forward pass

/// A checkpoint read back: configuration and tensors by name, as numbers.
struct Loaded {
    config: Value,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
}

fn read(dir: &Path) -> Loaded {
    let config = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
    let mut tensors = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            let bytes = fs::read(&path).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            for (name, view) in file.tensors() {
                tensors.insert(name, (view.shape().to_vec(), load(view.dtype(), view.data())));
            }
        }
    }
    Loaded { config, tensors }
}

/// y = Wx + b
fn linear(m: &Loaded, name: &str, x: &[f64]) -> Vec<f64> {
    let (shape, w) = &m.tensors[&format!("{name}.weight")];
    assert_eq!(shape[1], x.len(), "{name}");
    let bias = m.tensors.get(&format!("{name}.bias"));
    (0..shape[0])
        .map(|r| {
            let sum: f64 = w[r * shape[1]..(r + 1) * shape[1]].iter().zip(x).map(|(a, b)| a * b).sum();
            sum + bias.map_or(0.0, |b| b.1[r])
        })
        .collect()
}

fn norm(m: &Loaded, name: &str, x: &[f64]) -> Vec<f64> {
    let gain = &m.tensors[&format!("{name}.weight")].1;
    let eps = m.config["rms_norm_eps"].as_f64().unwrap();
    let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    x.iter().zip(gain).map(|(v, g)| v / (mean + eps).sqrt() * g).collect()
}

/// Rotates the halves of every head, as transformers does.
fn rotate(x: &mut [f64], head_dim: usize, position: usize, theta: f64) {
    for head in x.chunks_mut(head_dim) {
        let half = head_dim / 2;
        for i in 0..half {
            let angle = position as f64 * theta.powf(-2.0 * i as f64 / head_dim as f64);
            let (a, b) = (head[i], head[i + half]);
            head[i] = a * angle.cos() - b * angle.sin();
            head[i + half] = b * angle.cos() + a * angle.sin();
        }
    }
}

type Hook<'a> = &'a dyn Fn(usize, &mut [f64]);

/// Residuals after every layer ([layer][token]), and logits. `hook` may change the residual after a layer.
fn forward(m: &Loaded, tokens: &[usize], hook: Hook<'_>) -> (Vec<Vec<Vec<f64>>>, Vec<Vec<f64>>) {
    let number = |key: &str| m.config[key].as_u64().map(|n| n as usize);
    let (d, heads, key_heads) = (
        number("hidden_size").unwrap(),
        number("num_attention_heads").unwrap(),
        number("num_key_value_heads").unwrap(),
    );
    let head_dim = number("head_dim").unwrap_or(d / heads);
    let theta = m.config["rope_theta"].as_f64().unwrap();
    let (shape, table) = &m.tensors["model.embed_tokens.weight"];
    assert_eq!(shape[1], d);
    let mut x: Vec<Vec<f64>> = tokens.iter().map(|t| table[t * d..(t + 1) * d].to_vec()).collect();
    let mut seen = Vec::new();
    for l in 0..number("num_hidden_layers").unwrap() {
        let name = |n: &str| format!("model.layers.{l}.{n}");
        let normed: Vec<_> = x.iter().map(|x| norm(m, &name("input_layernorm"), x)).collect();
        let project = |n: &str| normed.iter().map(|x| linear(m, &name(n), x)).collect::<Vec<_>>();
        let (mut q, mut k, v) = (project("self_attn.q_proj"), project("self_attn.k_proj"), project("self_attn.v_proj"));
        for (p, (q, k)) in q.iter_mut().zip(&mut k).enumerate() {
            rotate(q, head_dim, p, theta);
            rotate(k, head_dim, p, theta);
        }
        for t in 0..x.len() {
            let mut mixed = vec![0.0; heads * head_dim];
            for h in 0..heads {
                let (at, from) = (h * head_dim, h / (heads / key_heads) * head_dim);
                let dot = |s: usize| (0..head_dim).map(|i| q[t][at + i] * k[s][from + i]).sum::<f64>();
                let scores: Vec<f64> = (0..=t).map(|s| dot(s) / (head_dim as f64).sqrt()).collect();
                let top = scores.iter().copied().fold(f64::MIN, f64::max);
                let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
                for (s, score) in scores.iter().enumerate() {
                    let w = (score - top).exp() / total;
                    (0..head_dim).for_each(|i| mixed[at + i] += w * v[s][from + i]);
                }
            }
            let out = linear(m, &name("self_attn.o_proj"), &mixed);
            x[t].iter_mut().zip(out).for_each(|(x, o)| *x += o);
        }
        for x in &mut x {
            let normed = norm(m, &name("post_attention_layernorm"), x);
            let gate = linear(m, &name("mlp.gate_proj"), &normed);
            let up = linear(m, &name("mlp.up_proj"), &normed);
            let inner: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            let out = linear(m, &name("mlp.down_proj"), &inner);
            x.iter_mut().zip(out).for_each(|(x, o)| *x += o);
            hook(l, x);
        }
        seen.push(x.clone());
    }
    let tied = m.config["tie_word_embeddings"] == json!(true);
    let head = if tied { "model.embed_tokens" } else { "lm_head" };
    let logits = x.iter().map(|x| linear(m, head, &norm(m, "model.norm", x))).collect();
    (seen, logits)
}

// -------------------------------------------------------------------------------------------- features, specifications

const FEATURES: usize = 5;

/// W_enc [d, n], W_dec [n, d], b_enc, as numbers.
struct Features {
    encoder: Vec<f64>,
    decoder: Vec<f64>,
    bias: Vec<f64>,
    width: usize,
}

impl Features {
    fn new(width: usize, seed: u64) -> Features {
        let mut random = Random(seed);
        let mut numbers = |n: usize, size: f64| (0..n).map(|_| f64::from((size * random.next()) as f32)).collect();
        Features {
            encoder: numbers(width * FEATURES, 0.4),
            decoder: numbers(FEATURES * width, 0.3),
            bias: numbers(FEATURES, 0.5),
            width,
        }
    }

    fn write(&self, dir: &Path, hook: &str) {
        fs::create_dir_all(dir).unwrap();
        let f32s = |values: &[f64]| values.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect::<Vec<u8>>();
        let tensors = [
            ("W_enc", vec![self.width, FEATURES], f32s(&self.encoder)),
            ("W_dec", vec![FEATURES, self.width], f32s(&self.decoder)),
            ("b_enc", vec![FEATURES], f32s(&self.bias)),
            ("b_dec", vec![self.width], f32s(&vec![0.0; self.width])),
        ];
        let views = tensors.iter().map(|(n, s, b)| (*n, TensorView::new(Dtype::F32, s.clone(), b).unwrap()));
        fs::write(dir.join("sae_weights.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
        let cfg = json!({
            "architecture": "standard", "d_in": self.width, "d_sae": FEATURES, "dtype": "float32",
            "apply_b_dec_to_input": false, "normalize_activations": "none",
            "metadata": {"hook_name": hook, "model_name": "tiny"},
        });
        fs::write(dir.join("cfg.json"), cfg.to_string()).unwrap();
    }

    fn z(&self, f: usize, x: &[f64]) -> f64 {
        let dot: f64 = (0..self.width).map(|i| self.encoder[i * FEATURES + f] * x[i]).sum();
        dot + self.bias[f]
    }

    /// What [`interventions`] asks for, on the residual in place.
    fn intervene(&self, x: &mut [f64]) {
        let a: Vec<f64> = (0..FEATURES).map(|f| self.z(f, x).max(0.0)).collect();
        // ablate 0, cap 1 at 0.5, halve 2, add 0.75 along 3
        let c = [-a[0], a[1].min(0.5) - a[1], -0.5 * a[2], 0.75];
        for (f, c) in c.iter().enumerate() {
            (0..self.width).for_each(|i| x[i] += c * self.decoder[f * self.width + i]);
        }
    }
}

fn interventions() -> Value {
    json!([
        {"feature": 0, "action": "ablate"},
        {"feature": 1, "action": "cap", "value": 0.5},
        {"feature": 2, "action": "scale", "value": 0.5},
        {"feature": 3, "action": "add", "value": 0.75},
    ])
}

/// A directory with a model, an SAE at its layer 1, and a specification.
struct Work {
    dir: tempfile::TempDir,
    features: Features,
}

impl Work {
    fn new(model: &Model) -> Work {
        let dir = tempfile::tempdir().unwrap();
        model.write(&dir.path().join("model"));
        let features = Features::new(model.hidden, 7);
        features.write(&dir.path().join("sae"), "blocks.1.hook_resid_post");
        let work = Work { dir, features };
        work.spec(|_| ());
        work
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn spec(&self, change: impl FnOnce(&mut Value)) {
        let mut spec = json!({
            "sae": "sae", "interventions": interventions(), "budget": {"tolerance": 1e-4},
            "domain": {"range": [-40, 40], "norm": 60},
        });
        change(&mut spec);
        fs::write(self.path("spec.json"), spec.to_string()).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut c = neurograft();
        c.current_dir(self.dir.path()).args(["splice", "spec.json", "--model", "model", "--output", "out"]);
        c.args(arguments);
        c
    }

    fn check(&self) -> (i32, String) {
        let out = neurograft().current_dir(self.dir.path()).args(["splice", "--check", "out"]).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(!text.contains("panicked"), "{text}");
        (out.status.code().unwrap(), text)
    }
}

const TOKENS: [usize; 9] = [5, 1, 33, 2, 2, 17, 39, 0, 8];

fn largest(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    let all = a.iter().zip(b).flat_map(|(a, b)| a.iter().zip(b));
    all.map(|(x, y)| (x - y).abs()).fold(0.0, |m, e| if e <= m { m } else { e })
}

/// The first `d` coordinates: the model's own.
fn live(x: &[Vec<f64>], d: usize) -> Vec<Vec<f64>> {
    x.iter().map(|x| x[..d].to_vec()).collect()
}

#[test]
fn a_spliced_model_is_the_model_with_the_intervention() {
    let model = Model::default();
    let w = Work::new(&model);
    w.command(&[]).assert().code(predicate::in_iter([0, 3])).stdout(contains("wrote out"));
    let (code, text) = w.check();
    assert_eq!(code, 0, "{text}");
    let (source, spliced) = (read(&w.path("model")), read(&w.path("out")));
    let hook = |l: usize, x: &mut [f64]| {
        if l == 1 {
            w.features.intervene(x)
        }
    };
    let (expected, logits) = forward(&source, &TOKENS, &hook);
    let (seen, found) = forward(&spliced, &TOKENS, &|_, _| ());
    let d = model.hidden;
    println!(
        "{} {} {}",
        largest(&live(&seen[1], d), &forward(&source, &TOKENS, &|_, _| ()).0[1]),
        largest(&live(&seen[2], d), &expected[1]),
        largest(&found, &logits)
    );
    println!("{text}\n{}", fs::read_to_string(w.path("out/README.md")).unwrap());
    let _ = (Sha256::digest(b""), contains("").and(contains("")));
}
