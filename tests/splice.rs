//! Splicing into HuggingFace checkpoints: tiny random models, spliced by the binary and judged by a naive forward pass in f64
//! that shares nothing with the crate.

mod random;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use half::{bf16, f16};
use predicates::prelude::*;
use predicates::str::contains;
use proptest::prelude::*;
use random::Random;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

fn neurograft() -> Command {
    Command::new(env!("CARGO_BIN_EXE_neurograft"))
}

// ------------------------------------------------------------------------------------------------------ random models

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
    /// coordinates that nothing writes
    quiet: Vec<usize>,
    /// changes to the configuration; "absent" removes a field
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
            quiet: Vec::new(),
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
            let mut numbers: Vec<f64> = (0..n).map(|_| middle + size * random.next()).collect();
            let columns = *shape.last().unwrap();
            for j in &self.quiet {
                match () {
                    () if name.contains("embed_tokens") => {
                        numbers.iter_mut().skip(*j).step_by(columns).for_each(|x| *x = 0.0)
                    }
                    () if name.contains("o_proj.weight") || name.contains("down_proj.weight") => {
                        numbers[j * columns..(j + 1) * columns].fill(0.0);
                    }
                    () => {}
                }
            }
            out.push((name, shape.to_vec(), numbers.into_iter().flat_map(|x| store(self.dtype, x)).collect()));
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

/// With the mean square in f32, as every engine has it.
fn norm(m: &Loaded, name: &str, x: &[f64]) -> Vec<f64> {
    let gain = &m.tensors[&format!("{name}.weight")].1;
    let eps = m.config["rms_norm_eps"].as_f64().unwrap();
    let mean = x.iter().map(|v| (v * v) as f32).sum::<f32>() / x.len() as f32;
    let scale = f64::from((mean + eps as f32).sqrt());
    x.iter().zip(gain).map(|(v, g)| v / scale * g).collect()
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
            let relu = m.config["hidden_act"] == json!("relu");
            let act = |g: f64| if relu { g.max(0.0) } else { g / (1.0 + (-g).exp()) };
            let inner: Vec<f64> = gate.iter().zip(up).map(|(g, u)| act(*g) * u).collect();
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

    /// Does not read these coordinates.
    fn blind_to(mut self, coordinates: &[usize]) -> Features {
        coordinates.iter().for_each(|j| self.encoder[j * FEATURES..(j + 1) * FEATURES].fill(0.0));
        self
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
        let features = Features::new(model.hidden, 7).blind_to(&model.quiet);
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
            "sae": "sae", "interventions": interventions(), "budget": {"tolerance": 1e-4, "neurons": 6},
            "domain": {"range": [-40, 40], "norm": 60, "borrowed": 2},
        });
        change(&mut spec);
        fs::write(self.path("spec.json"), spec.to_string()).unwrap();
    }

    /// What `splice` leaves to be seen in the work directory: names and hashes of everything but the output.
    fn inputs(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut all = BTreeMap::new();
        let mut next = vec![self.dir.path().to_path_buf()];
        while let Some(dir) = next.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => next.push(path),
                    false => drop(all.insert(path.clone(), Sha256::digest(fs::read(&path).unwrap()).to_vec())),
                }
            }
        }
        all
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut c = neurograft();
        c.current_dir(self.dir.path()).args(["splice", "spec.json", "--model", "model"]).args(arguments);
        if !arguments.contains(&"--output") {
            c.args(["--output", "out"]);
        }
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

// ------------------------------------------------------------------------------------------------- what a splice does

/// The certified bound in the stream at the first site.
fn certified(out: &Path, layer: usize) -> f64 {
    let text = fs::read(out.join(format!("neurograft/site-{layer}/certificate.json"))).unwrap();
    let file: Value = serde_json::from_slice(&text).unwrap();
    file["total"]["outside"].as_f64().unwrap()
}

/// A model, the arguments, and how far all residuals and logits may be from those of the model with a hook.
fn compare(model: &Model, arguments: &[&str], inserted_within: f64, everything_within: f64) -> Work {
    let w = Work::new(model);
    w.command(arguments).assert().code(predicate::in_iter([0, 3])).stdout(contains("wrote out"));
    let (code, text) = w.check();
    assert_eq!(code, 0, "{text}");
    let (source, spliced) = (read(&w.path("model")), read(&w.path("out")));
    let d = model.hidden;
    let (seen, found) = forward(&spliced, &TOKENS, &|_, _| ());

    // The inserted layer is number 2: what it makes of the residuals that reach it.
    let mut by_hook = live(&seen[1], d);
    by_hook.iter_mut().for_each(|x| w.features.intervene(x));
    let error = largest(&live(&seen[2], d), &by_hook);
    let bound = certified(&w.path("out"), 1) + inserted_within;
    assert!(error <= bound, "the inserted layer: {error:e} > {bound:e}");
    assert!(largest(&by_hook, &live(&seen[1], d)) > 0.1, "the intervention does nothing");
    // Nothing is left in the padding, but for what f64 sees of f16's small constants.
    assert!(seen.iter().flatten().flat_map(|x| &x[d..]).all(|x| x.abs() < 1e-2), "{:?}", &seen[2][0][d..]);

    let hook = |l: usize, x: &mut [f64]| {
        if l == 1 {
            w.features.intervene(x)
        }
    };
    let (expected, logits) = forward(&source, &TOKENS, &hook);
    let errors = [
        largest(&live(&seen[0], d), &expected[0]),
        largest(&live(&seen[2], d), &expected[1]),
        largest(&live(&seen[3], d), &expected[2]),
        largest(&found, &logits),
    ];
    assert!(errors.iter().all(|e| *e <= everything_within), "{errors:?}");
    w
}

/// f32: the gains of the other norms are rounded to 24 bits, which moves residuals of size 10 by 1e-6 or so.
const F32: f64 = 2e-5;
/// Where coordinates are borrowed, the norm takes up to 2^-17 of what is read (‖C‖ = 2^8·‖x‖) and the layers behind multiply
/// that by ten or so.
const BORROWED: f64 = 2e-3;
/// … and its scale, no power of two, is rounded to f32.
const MEAN: f64 = 1e-5;
/// The same as [`F32`] for 8 and for 11 bits.
const BF16: f64 = 0.3;
const F16: f64 = 0.04;

#[test]
fn padded_f32() {
    compare(&Model::default(), &[], 1e-9, F32);
    compare(&Model { tied: true, shards: 3, ..Model::default() }, &["--carriers", "padded"], 1e-9, F32);
}

#[test]
fn padded_in_16_bits() {
    compare(&Model { dtype: Dtype::BF16, tied: true, ..Model::default() }, &[], 1e-9, BF16);
    compare(&Model { dtype: Dtype::BF16, shards: 2, ..Model::default() }, &[], 1e-9, BF16);
    // f16 holds no more than 2^15: the norm still sees x, to (‖x‖/‖C‖)²/2 = 1e-5 of it.
    compare(&Model { dtype: Dtype::F16, ..Model::default() }, &[], 2e-3, F16);
}

#[test]
fn padded_other_shapes() {
    let wide = Model { hidden: 96, heads: 6, key_heads: 3, inner: 80, head_dim: 16, ..Model::default() };
    compare(&wide, &[], 1e-9, F32);
    // Heads wider than hidden / heads, biases everywhere, another activation.
    compare(&Model { head_dim: 24, attention_bias: true, ..Model::default() }, &[], 1e-9, F32);
    compare(&Model { attention_bias: true, mlp_bias: true, ..Model::default() }, &[], 1e-9, F32);
    compare(&Model { config: json!({"hidden_act": "relu"}), ..Model::default() }, &[], 1e-9, F32);
}

#[test]
fn what_old_conversions_carry() {
    // A head beside tied embeddings is kept; rotary frequencies, in whatever format, are left out.
    let model = Model { dtype: Dtype::BF16, tied: true, ..Model::default() };
    let w = Work::new(&model);
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> =
        model.tensors().into_iter().map(|(n, s, b)| (n, Dtype::BF16, s, b)).collect();
    let table = tensors[0].clone();
    tensors.push(("lm_head.weight".into(), Dtype::BF16, table.2, table.3));
    let frequencies = (0..8).flat_map(|_| 1f32.to_le_bytes()).collect();
    tensors.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), Dtype::F32, vec![8], frequencies));
    let views = tensors.iter().map(|(n, t, s, b)| (n.clone(), TensorView::new(*t, s.clone(), b).unwrap()));
    fs::write(w.path("model/model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    w.command(&[]).assert().code(predicate::in_iter([0, 3])).stdout(contains("inv_freq"));
    assert_eq!(verdict(&w.path("out")), Ok(()));
    let out = read(&w.path("out"));
    assert!(out.tensors["lm_head.weight"] == out.tensors["model.embed_tokens.weight"]);
    assert!(!out.tensors.keys().any(|n| n.contains("inv_freq")));
}

#[test]
fn mistral_and_qwen2_become_llama() {
    for architecture in ["MistralForCausalLM", "Qwen2ForCausalLM"] {
        for carriers in ["padded", "borrowed"] {
            let model = Model { architecture, tied: true, quiet: vec![11], ..Model::default() };
            let w = compare(&model, &["--carriers", carriers], MEAN, BORROWED);
            let out = read(&w.path("out"));
            assert_eq!(out.config["architectures"], json!(["LlamaForCausalLM"]));
            assert_eq!(out.config["model_type"], "llama");
            assert_eq!(out.config["num_key_value_heads"], 2);
            for gone in ["sliding_window", "use_sliding_window", "max_window_layers"] {
                assert!(out.config.get(gone).is_none(), "{gone}");
            }
            for l in 0..4 {
                let bias = |p: &str| out.tensors[&format!("model.layers.{l}.self_attn.{p}_proj.bias")].1.clone();
                assert_eq!(bias("o").iter().any(|x| *x != 0.0), l == 2);
                assert_eq!(bias("q").iter().any(|x| *x != 0.0), l != 2 && architecture == "Qwen2ForCausalLM");
            }
        }
    }
}

#[test]
fn borrowed_f32() {
    let borrow = |more: &[&'static str]| [&["--carriers", "borrowed"], more].concat();
    let model = Model { quiet: vec![11], ..Model::default() };
    let w = compare(&model, &borrow(&[]), MEAN, BORROWED);
    assert!(certified(&w.path("out"), 1) < 0.2);
    let manifest: Value = serde_json::from_slice(&fs::read(w.path("out/neurograft/splice.json")).unwrap()).unwrap();
    let constants = manifest["carriers"]["constants"].as_array().unwrap();
    assert!(constants.len() == 1 && constants[0]["coordinate"] == 11, "the quiet one: {constants:?}");
    // 96 = 64 + 16 + 16
    let wide = Model { hidden: 96, heads: 6, key_heads: 3, quiet: vec![3, 50, 95], shards: 2, ..Model::default() };
    compare(&wide, &borrow(&["--borrow", "95,3,50"]), MEAN, BORROWED);

    // No tensor of another layer changes by a bit.
    let numbers = |dir: &str| read(&w.path(dir));
    let (source, out) = (numbers("model"), numbers("out"));
    for (name, tensor) in &source.tensors {
        let renamed = name.replace("layers.2.", "layers.3.");
        assert!(out.tensors[&renamed] == *tensor, "{name}");
    }
    assert_eq!(out.config["mlp_bias"], true);
    assert_eq!(out.config["hidden_size"], 64);
    assert_eq!(out.config["rms_norm_eps"], 1e-5);
}

#[test]
fn borrowed_coordinates_are_read() {
    // Every coordinate is loud, and the features read all of them.
    let w = Work::new(&Model::default());
    w.spec(|s| s["domain"] = json!({"range": [-40, 40], "norm": 60, "borrowed": 10}));
    w.command(&["--carriers", "borrowed"]).assert().code(predicate::in_iter([0, 3]));
    assert_eq!(w.check().0, 0, "{}", w.check().1);
    let (seen, _) = forward(&read(&w.path("out")), &TOKENS, &|_, _| ());
    let mut by_hook = seen[1].clone();
    by_hook.iter_mut().for_each(|x| w.features.intervene(x));
    let error = largest(&seen[2], &by_hook);
    assert!(error <= certified(&w.path("out"), 1) + MEAN, "{error:e}");
    let manifest: Value = serde_json::from_slice(&fs::read(w.path("out/neurograft/splice.json")).unwrap()).unwrap();
    let constants = manifest["carriers"]["constants"].as_array().unwrap();
    let borrowed: Vec<usize> = constants.iter().map(|c| c["coordinate"].as_u64().unwrap() as usize).collect();
    // What it would be if the coordinates that hold constants were not read.
    let mut unread = seen[1].clone();
    for x in &mut unread {
        let whole = x.clone();
        borrowed.iter().for_each(|j| x[*j] = 0.0);
        let before = x.clone();
        w.features.intervene(x);
        x.iter_mut().zip(whole).zip(before).for_each(|((x, whole), before)| *x += whole - before);
    }
    let careless = largest(&unread, &by_hook);
    // Seen: a hundredth. The rest is ⟨w, Ĉ⟩·⟨x, Ĉ⟩ and s − 1 on four features, in a model without quiet coordinates.
    assert!(error <= 0.05 * careless, "{error:e}, and {careless:e} without reading them");
}

#[test]
fn several_sites_each_with_its_own_features() {
    // After layers 0 and 2 of 3: an SAE each; the second file's hook is overruled by `layer`.
    let model = Model { layers: 4, shards: 3, quiet: vec![11], ..Model::default() };
    for (carriers, slack, everything) in [("padded", 1e-9, F32), ("borrowed", MEAN, BORROWED)] {
        let w = Work::new(&model);
        let other = Features::new(model.hidden, 99).blind_to(&model.quiet);
        w.features.write(&w.path("sae"), "blocks.0.hook_resid_post");
        other.write(&w.path("other"), "blocks.7.hook_resid_post");
        let spec = json!({
            "sites": [
                {"sae": "other", "layer": 2, "interventions": interventions(), "domain": {"range": [-50, 50], "norm": 80, "borrowed": 2}},
                {"sae": "sae", "interventions": interventions()},
            ],
            "budget": {"tolerance": 1e-4}, "domain": {"range": [-40, 40], "norm": 60, "borrowed": 2},
        });
        fs::write(w.path("spec.json"), spec.to_string()).unwrap();
        let said = contains("after layer 0").and(contains("after layer 2")).and(contains("inserted as 4"));
        w.command(&["--carriers", carriers]).assert().code(predicate::in_iter([0, 3])).stdout(said);
        assert_eq!(w.check().0, 0, "{}", w.check().1);
        let out = read(&w.path("out"));
        assert_eq!(out.config["num_hidden_layers"], 6);
        let manifest: Value = serde_json::from_slice(&fs::read(w.path("out/neurograft/splice.json")).unwrap()).unwrap();
        let places: Vec<_> =
            manifest["sites"].as_array().unwrap().iter().map(|s| (&s["layer"], &s["inserted"])).collect();
        assert_eq!(places, [(&json!(0), &json!([1])), (&json!(2), &json!([4]))]);

        let hook = |l: usize, x: &mut [f64]| match l {
            0 => w.features.intervene(x),
            2 => other.intervene(x),
            _ => {}
        };
        let (expected, logits) = forward(&read(&w.path("model")), &TOKENS, &hook);
        let (seen, found) = forward(&out, &TOKENS, &|_, _| ());
        let d = model.hidden;
        for (inserted, layer, features) in [(1, 0, &w.features), (4, 2, &other)] {
            let mut by_hook = live(&seen[inserted - 1], d);
            by_hook.iter_mut().for_each(|x| features.intervene(x));
            let error = largest(&live(&seen[inserted], d), &by_hook);
            assert!(error <= certified(&w.path("out"), layer) + slack, "{carriers} after layer {layer}: {error:e}");
        }
        let errors = [
            largest(&live(&seen[5], d), &expected[3]),
            largest(&live(&seen[4], d), &expected[2]),
            largest(&found, &logits),
        ];
        assert!(errors.iter().all(|e| *e <= everything), "{carriers}: {errors:?}");
    }
}

/// `sequence`: the interventions after layer 1 one after the other, each in a layer of its own, each reading what the one
/// before it has left.
#[test]
fn steps_after_one_layer() {
    let model = Model { layers: 4, shards: 3, ..Model::default() };
    let w = Work::new(&model);
    w.spec(|s| s["sequence"] = true.into());
    w.command(&[])
        .assert()
        .code(predicate::in_iter([0, 3]))
        .stdout(contains("inserted as 2").and(contains("inserted as 5")));
    let out = w.path("out");
    assert_eq!(w.check().0, 0, "{}", w.check().1);
    let spliced = read(&out);
    assert_eq!(spliced.config["num_hidden_layers"], 8);
    let manifest: Value = serde_json::from_slice(&fs::read(out.join("neurograft/splice.json")).unwrap()).unwrap();
    let sites = manifest["sites"].as_array().unwrap();
    let places: Vec<_> = sites.iter().map(|s| (s["directory"].as_str().unwrap(), &s["inserted"])).collect();
    let of = |k: usize| json!([k]);
    assert_eq!(places, [("site-1", &of(2)), ("site-1-2", &of(3)), ("site-1-3", &of(4)), ("site-1-4", &of(5))]);
    let card = fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("cap feature 1: z is feature 1; v is the decoder row of feature 1"), "{card}");

    // The steps of `Features::intervene`, one at a time.
    let step = |k: usize, x: &mut [f64]| {
        let a = w.features.z(k, x).max(0.0);
        let c = [-a, a.min(0.5) - a, -0.5 * a, 0.75][k];
        (0..model.hidden).for_each(|i| x[i] += c * w.features.decoder[k * model.hidden + i]);
    };
    let hook = |l: usize, x: &mut [f64]| {
        if l == 1 {
            (0..4).for_each(|k| step(k, x));
        }
    };
    let (expected, logits) = forward(&read(&w.path("model")), &TOKENS, &hook);
    let (seen, found) = forward(&spliced, &TOKENS, &|_, _| ());
    let d = model.hidden;
    for k in 0..4 {
        let mut by_hook = live(&seen[1 + k], d);
        by_hook.iter_mut().for_each(|x| step(k, x));
        let error = largest(&live(&seen[2 + k], d), &by_hook);
        // Steps are certified one by one; 1e-9 is f64's own.
        assert!(error <= 1e-4 + 1e-9, "step {k}: {error:e}");
    }
    let errors = [
        largest(&live(&seen[5], d), &expected[1]),
        largest(&live(&seen[7], d), &expected[3]),
        largest(&found, &logits),
    ];
    assert!(errors.iter().all(|e| *e <= F32), "{errors:?}");
    // In parallel it is another intervention.
    let together = |l: usize, x: &mut [f64]| {
        if l == 1 {
            w.features.intervene(x)
        }
    };
    let (parallel, _) = forward(&read(&w.path("model")), &TOKENS, &together);
    assert!(largest(&parallel[1], &expected[1]) > 1e-3);
}

/// What [`gated`] asks for, and how near the residual is to a boundary.
fn intervene_gated(features: &Features, x: &mut [f64]) -> f64 {
    let z: Vec<f64> = (0..FEATURES).map(|f| features.z(f, x)).collect();
    // ablate 0 where 1 is active; set 2 to 0.25 where it is active; add 0.75 along 3
    let c = [if z[1] > 0.0 { -z[0].max(0.0) } else { 0.0 }, 0.0, if z[2] > 0.0 { 0.25 - z[2] } else { 0.0 }, 0.75];
    for (f, c) in c.iter().enumerate() {
        (0..features.width).for_each(|i| x[i] += c * features.decoder[f * features.width + i]);
    }
    z[1].abs().min(z[2].abs())
}

fn gated() -> Value {
    json!([
        {"feature": 0, "action": "ablate", "gate": 1},
        {"feature": 2, "action": "clamp_when_active", "value": 0.25},
        {"feature": 3, "action": "add", "value": 0.75},
    ])
}

#[test]
fn gates_take_two_inserted_layers() {
    for (dtype, everything) in [(Dtype::F32, F32), (Dtype::BF16, BF16)] {
        let model = Model { dtype, shards: 2, ..Model::default() };
        let w = Work::new(&model);
        w.spec(|s| s["interventions"] = gated());
        w.command(&[])
            .assert()
            .code(predicate::in_iter([0, 3]))
            .stdout(contains("inserted as 2, 3").and(contains("guards")));
        assert_eq!(w.check().0, 0, "{}", w.check().1);
        let (source, out) = (read(&w.path("model")), read(&w.path("out")));
        let d = model.hidden;
        let (seen, found) = forward(&out, &TOKENS, &|_, _| ());
        let mut by_hook = live(&seen[1], d);
        let nearest: Vec<f64> = by_hook.iter_mut().map(|x| intervene_gated(&w.features, x)).collect();
        let after = live(&seen[3], d);
        let far = |x: &[Vec<f64>]| -> Vec<Vec<f64>> {
            x.iter().zip(&nearest).filter(|(_, n)| **n > 0.1).map(|(x, _)| x.clone()).collect()
        };
        assert!(far(&after).len() >= 6, "{nearest:?}");
        let (error, bound) = (largest(&far(&after), &far(&by_hook)), certified(&w.path("out"), 1));
        assert!(error <= bound + 1e-9, "{error:e} > {bound:e}");
        // Guards and constants are gone.
        assert!(seen[3].iter().flat_map(|x| &x[d..]).all(|x| x.abs() < 1e-3), "{:?}", &seen[3][0][d..]);
        if nearest.iter().all(|n| *n > 0.1) {
            let hook = |l: usize, x: &mut [f64]| {
                if l == 1 {
                    intervene_gated(&w.features, x);
                }
            };
            let (_, logits) = forward(&source, &TOKENS, &hook);
            let error = largest(&found, &logits);
            assert!(error <= everything, "{error:e}");
        }
        // The borrowed kind has nowhere to put a guard.
        w.command(&["--carriers", "borrowed", "--output", "never"]).assert().code(2).stderr(contains("two"));
        w.command(&["--layers", "1", "--output", "never"]).assert().code(2);
        assert!(!w.path("never").exists());
    }
}

#[test]
fn what_is_carried_over() {
    let config = json!({"layer_types": ["full_attention", "full_attention", "full_attention"], "unknown": {"a": [1.5]},
        "some_per_layer": [10, 11, 12], "rope_scaling": null});
    let w = Work::new(&Model { shards: 2, config, ..Model::default() });
    fs::create_dir(w.path("model/sub")).unwrap();
    fs::write(w.path("model/sub/file"), "x").unwrap();
    fs::write(w.path("model/consolidated.safetensors"), "the unspliced weights").unwrap();
    let before = w.inputs();
    w.command(&[]).assert().success();
    let after = w.inputs();
    assert!(before.iter().all(|(path, hash)| after[path] == *hash), "the source changed");

    let (source, out) = (read_config(&w.path("model")), read_config(&w.path("out")));
    let changed = [
        "hidden_size",
        "num_hidden_layers",
        "rms_norm_eps",
        "head_dim",
        "attention_bias",
        "layer_types",
        "some_per_layer",
    ];
    for (key, value) in source.as_object().unwrap() {
        assert!(changed.contains(&key.as_str()) || out[key] == *value, "{key}");
    }
    assert_eq!(out["some_per_layer"], json!([10, 11, 11, 12]));
    assert_eq!(out["layer_types"].as_array().unwrap().len(), 4);
    assert_eq!(out["eos_token_id"], json!([2, 3, 4]), "three tokens, not three layers");
    assert_eq!((&out["num_hidden_layers"], &out["head_dim"], &out["hidden_size"]), (&json!(4), &json!(16), &json!(72)));
    assert_eq!(out["rms_norm_eps"].as_f64().unwrap(), 1e-5 * (64.0 / 72.0));

    // Files: what belongs to the model is there, other copies of its weights and directories are not.
    let mut names: Vec<String> =
        fs::read_dir(w.path("out")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let shards =
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"];
    let others = ["README.md", "README.source.md", "config.json"];
    let expected: Vec<&str> = others.into_iter().chain(shards).chain(["neurograft", "tokenizer.json"]).collect();
    assert_eq!(names, expected);
    assert_eq!(fs::read(w.path("out/neurograft/spec.json")).unwrap(), fs::read(w.path("spec.json")).unwrap());
    let card = fs::read_to_string(w.path("out/README.md")).unwrap();
    for words in [
        "license: apache-2.0",
        "ablate feature 0",
        "`-relu(z)`",
        "`tiny`",
        "blocks.1.hook_resid_post",
        "o_proj.bias",
        "--check",
    ] {
        assert!(card.contains(words), "{words}\n{card}");
    }
    // Shards mirror those of the source; the inserted layer stands beside the layer that it follows.
    let index: Value = serde_json::from_slice(&fs::read(w.path("out/model.safetensors.index.json")).unwrap()).unwrap();
    let source: Value =
        serde_json::from_slice(&fs::read(w.path("model/model.safetensors.index.json")).unwrap()).unwrap();
    for (name, file) in source["weight_map"].as_object().unwrap() {
        assert_eq!(index["weight_map"][name.replace("layers.2.", "layers.3.")], *file, "{name}");
    }
    let home = &index["weight_map"]["model.layers.1.mlp.down_proj.weight"];
    assert_eq!(index["weight_map"]["model.layers.2.self_attn.o_proj.bias"], *home);
    let bytes: usize = read(&w.path("out")).tensors.values().map(|t| 4 * t.1.len()).sum();
    assert_eq!(index["metadata"]["total_size"], bytes);
    for shard in &shards[..2] {
        let file = fs::read(w.path("out").join(shard)).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&file).unwrap();
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    }
}

fn read_config(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap()
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let w = Work::new(&Model { shards: 2, ..Model::default() });
    w.command(&[]).assert().success();
    let hashes = |w: &Work| {
        let all = w.inputs().into_iter();
        all.filter(|(p, _)| p.starts_with(w.path("out"))).collect::<Vec<_>>()
    };
    let first = hashes(&w);
    // --force replaces what a splice wrote, and only that.
    w.command(&[]).assert().code(2).stderr(contains("is there already").and(contains("--force")));
    w.command(&["--force"]).assert().success();
    assert!(hashes(&w) == first);
    // What somebody has put there is not a splice's to remove; an engine might take a stray file for weights.
    fs::write(w.path("out/notes.txt"), "mine").unwrap();
    w.command(&["--force"]).assert().code(2).stderr(contains("holds notes.txt").and(contains("move it away")));
    assert_eq!(w.check().0, 0, "{}", w.check().1);
    fs::rename(w.path("out/notes.txt"), w.path("out/pytorch_model.bin")).unwrap();
    let (code, said) = w.check();
    assert!(code != 0 && said.contains("pytorch_model.bin is no part of the splice"), "{said}");
    fs::remove_dir_all(w.path("out")).unwrap();
    fs::create_dir(w.path("out")).unwrap();
    w.command(&["--force"]).assert().success();
    assert!(hashes(&w) == first);
    fs::remove_file(w.path("out/neurograft/splice.json")).unwrap();
    w.command(&["--force"]).assert().code(2).stderr(contains("not replaced"));
    assert!(w.path("out/model-00001-of-00002.safetensors").exists());
}

#[test]
fn a_dry_run_says_what_and_writes_nothing() {
    let w = Work::new(&Model::default());
    let before = w.inputs();
    let words = [
        "LlamaForCausalLM",
        "after layer 1",
        "inserted as 2",
        "padded",
        "2^40",
        "64 → 72",
        "of 96 hidden units",
        "key-value cache",
        "ablate feature 0",
    ];
    let mut assert = w.command(&["--dry-run"]).assert().success();
    for word in words {
        assert = assert.stdout(contains(word));
    }
    // Without an output as well.
    let mut c = neurograft();
    c.current_dir(w.dir.path()).args(["splice", "spec.json", "--model", "model", "--dry-run"]).assert().success();
    assert!(w.inputs() == before && !w.path("out").exists());
    // The plan's size is the files'.
    w.command(&[]).assert().success();
    let manifest: Value = serde_json::from_slice(&fs::read(w.path("out/neurograft/splice.json")).unwrap()).unwrap();
    let total: usize = read(&w.path("out")).tensors.values().map(|t| t.1.len()).sum();
    assert_eq!(manifest["cost"]["parameters"]["after"], total);
    assert_eq!(manifest["cost"]["bytes"]["after"], 4 * total);
}

#[test]
fn what_nobody_can_have_meant_is_noted() {
    let w = Work::new(&Model::default());
    w.spec(|s| drop(s["domain"].as_object_mut().unwrap().remove("borrowed")));
    let open = contains("without domain.borrowed the certificate allows for |x_j| up to 60");
    w.command(&["--dry-run", "--carriers", "borrowed"]).assert().success().stdout(open.and(contains("random tokens")));
    w.spec(|s| s["layer"] = 2.into());
    w.command(&["--dry-run"])
        .assert()
        .success()
        .stdout(contains("trained on the stream after layer 1, and the specification says layer = 2"));
    w.spec(|s| s["interventions"] = json!([{"feature": 0, "action": "floor", "value": -5}]));
    w.command(&["--dry-run"]).assert().success().stdout(contains("WARNING: floor feature 0 never changes anything"));
    w.spec(|_| ());
    w.command(&[]).assert().success().stdout(contains("is a splice itself").not());
    let mut c = neurograft();
    c.current_dir(w.dir.path()).args(["splice", "spec.json", "--model", "out", "--dry-run"]);
    // An SAE of the source does not fit a padded stream; borrowed carriers leave its width.
    c.assert().code(2).stderr(contains("width 64"));
}

// --------------------------------------------------------------------------------------------------------- bad input

/// Every case: exit code 2, the words, nothing written, nothing changed.
fn refused(model: &Model, words: &[&str], change: impl FnOnce(&Work) -> Vec<&'static str>) {
    let w = Work::new(model);
    let arguments = change(&w);
    let before = w.inputs();
    let output = w.command(&arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{words:?}: {text}");
    assert!(text.starts_with("error: ") && !text.contains("panicked"), "{text}");
    for word in words {
        assert!(text.contains(word), "'{word}' is not in: {text}");
    }
    assert!(w.inputs() == before, "{words:?}: files were written or changed");
    let left: Vec<_> = fs::read_dir(w.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|n| n.to_string_lossy().starts_with('.')), "{words:?}: {left:?}");
}

fn with_config(config: Value) -> Model {
    Model { config, ..Model::default() }
}

#[test]
fn checkpoints_that_are_refused() {
    let none = |_: &Work| Vec::new();
    refused(
        &Model { architecture: "Gemma2ForCausalLM", ..Model::default() },
        &["Gemma2ForCausalLM", "LlamaForCausalLM, MistralForCausalLM"],
        none,
    );
    refused(&with_config(json!({"model_type": "gpt2"})), &["model_type"], none);
    refused(&with_config(json!({"architectures": "absent"})), &["architectures"], none);
    refused(
        &with_config(json!({"quantization_config": {"quant_method": "gptq"}})),
        &["quantised", "original checkpoint"],
        none,
    );
    refused(&with_config(json!({"auto_map": {"AutoModelForCausalLM": "x.Y"}})), &["auto_map"], none);
    refused(&with_config(json!({"hidden_act": "swirl"})), &["swirl"], none);
    refused(
        &with_config(json!({"layer_types": ["full_attention", "sliding_attention", "full_attention"]})),
        &["sliding_attention"],
        none,
    );
    refused(&with_config(json!({"num_hidden_layers": 4})), &["model.layers.3", "missing", "4 layers"], none);
    refused(&with_config(json!({"num_hidden_layers": 2})), &["unexpected tensor", "model.layers.2"], none);
    refused(&with_config(json!({"intermediate_size": 95})), &["[96, 64]", "[95, 64]"], none);
    refused(&with_config(json!({"num_key_value_heads": 4})), &["k_proj", "shape"], none);
    refused(&with_config(json!({"num_key_value_heads": 3})), &["multiple"], none);
    refused(&with_config(json!({"hidden_size": -64})), &["hidden_size", "positive integer"], none);
    refused(&with_config(json!({"vocab_size": "absent"})), &["vocab_size", "missing"], none);
    refused(&with_config(json!({"attention_bias": true})), &["q_proj.bias", "missing"], none);
    refused(&with_config(json!({"torch_dtype": "float16"})), &["f16", "f32"], none);
    let mistral = |config: Value| Model { architecture: "MistralForCausalLM", config, ..Model::default() };
    refused(&mistral(json!({"sliding_window": 4096})), &["sliding window of 4096"], none);
    refused(&mistral(json!({"sliding_window": "absent"})), &["window of 4096", "null"], none);
    refused(&mistral(json!({"num_key_value_heads": "absent"})), &["num_key_value_heads"], none);
    let qwen = |config: Value| Model { architecture: "Qwen2ForCausalLM", config, ..Model::default() };
    refused(&qwen(json!({"use_sliding_window": true})), &["sliding window"], none);
    // Files.
    let remove = |name: &'static str| {
        move |w: &Work| {
            fs::remove_file(w.path(name)).unwrap();
            Vec::new()
        }
    };
    refused(&Model::default(), &["config.json"], remove("model/config.json"));
    refused(&Model::default(), &["no weights"], remove("model/model.safetensors"));
    refused(&Model { shards: 2, ..Model::default() }, &["no weights"], remove("model/model.safetensors.index.json"));
    refused(
        &Model { shards: 2, ..Model::default() },
        &["00002-of-00002"],
        remove("model/model-00002-of-00002.safetensors"),
    );
    refused(&Model::default(), &["convert it to safetensors"], |w| {
        fs::rename(w.path("model/model.safetensors"), w.path("model/pytorch_model.bin")).unwrap();
        Vec::new()
    });
    refused(&Model::default(), &["truncated"], |w| {
        let path = w.path("model/model.safetensors");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();
        Vec::new()
    });
    refused(&Model::default(), &["malformed JSON"], |w| {
        fs::write(w.path("model/config.json"), "{").unwrap();
        Vec::new()
    });
    // An index that leads out of the directory, that misses a tensor, that misplaces one.
    let edit = |change: fn(&mut Value)| {
        move |w: &Work| {
            let path = w.path("model/model.safetensors.index.json");
            let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            change(&mut index);
            fs::write(&path, index.to_string()).unwrap();
            Vec::new()
        }
    };
    let two = Model { shards: 2, ..Model::default() };
    refused(&two, &["no safetensors file"], edit(|i| i["weight_map"]["lm_head.weight"] = json!("../x.safetensors")));
    refused(
        &two,
        &["disagree", "model.norm.weight"],
        edit(|i| drop(i["weight_map"].as_object_mut().unwrap().remove("model.norm.weight"))),
    );
    refused(
        &two,
        &["disagree", "model.norm.weight"],
        edit(|i| i["weight_map"]["model.norm.weight"] = json!("model-00001-of-00002.safetensors")),
    );
    // One tensor more, one in another format, one that is no number.
    let with = |name: &'static str, dtype: Dtype, shape: &'static [usize]| {
        move |w: &Work| {
            let path = w.path("model/model.safetensors");
            let bytes = fs::read(&path).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let data = vec![0u8; shape.iter().product::<usize>() * dtype.bitsize() / 8];
            let mut tensors = file.tensors();
            tensors.retain(|t| t.0 != name);
            tensors.push((name.to_string(), TensorView::new(dtype, shape.to_vec(), &data).unwrap()));
            let all = safetensors::serialize(tensors, None).unwrap();
            fs::write(&path, all).unwrap();
            Vec::new()
        }
    };
    refused(
        &Model::default(),
        &["unexpected tensor", "q_norm"],
        with("model.layers.0.self_attn.q_norm.weight", Dtype::F32, &[16]),
    );
    refused(&Model::default(), &["several formats", "bf16"], with("model.norm.weight", Dtype::BF16, &[64]));
    refused(&Model::default(), &["model.norm.weight", "I32"], with("model.norm.weight", Dtype::I32, &[64]));
    refused(&Model::default(), &["model.norm.weight", "[63]", "[64]"], with("model.norm.weight", Dtype::F32, &[63]));
}

#[test]
fn requests_that_are_refused() {
    let model = Model::default();
    let spec = |change: fn(&mut Value)| {
        move |w: &Work| {
            w.spec(change);
            Vec::new()
        }
    };
    let hook = |hook: &'static str| {
        move |w: &Work| {
            w.features.write(&w.path("sae"), hook);
            Vec::new()
        }
    };
    refused(&model, &["no layer 3", "0 to 2"], hook("blocks.3.hook_resid_post"));
    refused(&model, &["blocks.0.hook_resid_pre", "not the stream after a layer"], hook("blocks.0.hook_resid_pre"));
    refused(&model, &["width 32", "64"], |w| {
        Features::new(32, 3).write(&w.path("sae"), "blocks.1.hook_resid_post");
        Vec::new()
    });
    refused(&model, &["no SAE"], spec(|s| s["sae"] = json!("nowhere")));
    refused(&model, &["no feature 9"], spec(|s| s["interventions"][0]["feature"] = json!(9)));
    refused(&Model { inner: 2, ..Model::default() }, &["hidden units", "have 2"], |_| Vec::new());
    // Carriers.
    refused(&model, &["borrowed carriers need domain.norm"], |w| {
        w.spec(|s| drop(s["domain"].as_object_mut().unwrap().remove("norm")));
        vec!["--carriers", "borrowed"]
    });
    refused(&model, &["couples", "padded carriers"], |w| {
        w.spec(|s| s["interventions"][0]["gate"] = json!(1));
        vec!["--carriers", "borrowed"]
    });
    refused(&model, &["no coordinate 64", "0 to 63"], |_| vec!["--borrow", "64"]);
    refused(&model, &["named twice"], |_| vec!["--borrow", "1,1"]);
    refused(&model, &["leave one of them out"], |_| vec!["--carriers", "padded", "--borrow", "1"]);
    let wide = Model { hidden: 96, heads: 6, key_heads: 3, ..Model::default() };
    refused(&wide, &["1 coordinates to borrow", "needs 3"], |_| vec!["--borrow", "1"]);
    let half = Model { dtype: Dtype::F16, ..Model::default() };
    refused(&half, &["f16", "domain.norm", "bf16"], spec(|s| s["domain"]["norm"] = json!(60_000)));
    refused(&half, &["give domain.norm"], spec(|s| drop(s["domain"].as_object_mut().unwrap().remove("norm"))));
    // Where to write.
    refused(&model, &["lies in the source"], |_| vec!["--output", "model/out"]);
    refused(&model, &["lies in the source"], |_| vec!["--output", "model", "--force"]);
    refused(&model, &["lies in the source"], |_| vec!["--output", ".", "--force"]);
    refused(&model, &["is there already"], |_| vec!["--output", "sae"]);
    refused(&model, &["not replaced"], |_| vec!["--output", "sae", "--force"]);
    refused(&model, &["is there already"], |_| vec!["--output", "spec.json"]);
    refused(&model, &["not replaced"], |_| vec!["--output", "spec.json", "--force"]);
    refused(&model, &["nowhere"], |_| vec!["--output", "nowhere/out"]);
    refused(&model, &["is no kind of carriers"], |_| vec!["--carriers", "none"]);
    let mut hub = neurograft();
    hub.args(["splice", "examples/ablate.toml", "--model", "someone/some-model", "--dry-run"]);
    hub.assert().code(2).stderr(contains("no checkpoint").and(contains("hf download")));
    neurograft().args(["splice", "--check", "/nowhere"]).assert().code(2).stderr(contains("splice.json"));
    neurograft().args(["splice", "spec.json"]).assert().code(2);
}

// ------------------------------------------------------------------------------------------------------ what check sees

/// `splice --check` in this process: its verdict, or an error that is no panic and no input error.
fn verdict(out: &Path) -> Result<(), String> {
    match neurograft::splice::check(out, &|_, _, _| ()) {
        Ok(_) => Ok(()),
        Err(e) => {
            assert!(e.is_disagreement() || e.is_io() || e.is_unsupported(), "{e}");
            Err(e.to_string())
        }
    }
}

/// Makes the manifest's hashes those of the files: what somebody does who knows how.
fn rehash(out: &Path) {
    edit(&out.join("neurograft/splice.json"), |m| {
        for (name, hash) in m["files"].as_object_mut().unwrap() {
            let digest = Sha256::digest(fs::read(out.join(name)).unwrap());
            *hash = json!(digest.iter().map(|b| format!("{b:02x}")).collect::<String>());
        }
    });
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, serde_json::to_string_pretty(&value).unwrap()).unwrap();
}

/// (file, tensor, first byte of its data, length) of all tensors.
fn spans(out: &Path) -> Vec<(PathBuf, String, Vec<usize>, usize, usize)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(out).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            let bytes = fs::read(&path).unwrap();
            let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
            for (name, info) in metadata.tensors() {
                let (start, end) = info.data_offsets;
                all.push((path.clone(), name, info.shape.clone(), 8 + header + start, end - start));
            }
        }
    }
    all.sort();
    all
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

#[test]
fn check_finds_every_changed_tensor() {
    let padded = Model { shards: 2, dtype: Dtype::BF16, ..Model::default() };
    let borrowed = Model { quiet: vec![11], ..Model::default() };
    for (model, carriers) in [(padded, "padded"), (borrowed, "borrowed")] {
        let w = Work::new(&model);
        w.command(&["--carriers", carriers]).assert().code(predicate::in_iter([0, 3]));
        let out = w.path("out");
        verdict(&out).unwrap();
        for (k, (path, name, shape, start, length)) in spans(&out).into_iter().enumerate() {
            // Anywhere: the hash tells.
            let at = start + (k * 7919) % length;
            flip(&path, at);
            let said = verdict(&out).expect_err(&name);
            flip(&path, at);
            // Where the source does not determine the number, the hash is not needed.
            let (source_layer, last) = (!name.contains("layers.2."), length - 1);
            let padding = carriers == "padded" && (shape.contains(&72));
            let zero_bias = name.ends_with(".bias");
            if !source_layer || padding || zero_bias {
                let at = start + if source_layer && !zero_bias { last } else { (k * 104_729) % length };
                flip(&path, at);
                rehash(&out);
                let said = verdict(&out).expect_err(&name);
                assert!(said.contains(&name) && said.contains("column"), "{said}");
                flip(&path, at);
                rehash(&out);
            } else {
                assert!(said.contains("SHA-256"), "{said}");
            }
        }
        verdict(&out).unwrap();
    }
}

#[test]
fn check_finds_every_changed_file() {
    let w = Work::new(&Model { shards: 2, ..Model::default() });
    w.command(&[]).assert().success();
    let out = w.path("out");
    verdict(&out).unwrap();
    let changed = |file: &str, about: &str, change: &dyn Fn(&mut Value)| {
        let path = out.join(file);
        let before = fs::read(&path).unwrap();
        edit(&path, |v| change(v));
        assert!(
            serde_json::from_slice::<Value>(&before).unwrap()
                != serde_json::from_slice::<Value>(&fs::read(&path).unwrap()).unwrap()
        );
        assert!(verdict(&out).is_err(), "{file}: {about} is not noticed");
        let (code, text) = w.check();
        assert!(code == 1 || code == 2, "{code} {text}");
        fs::write(&path, before).unwrap();
    };
    // Every entry of the configuration, changed, and removed; one more.
    let config = read_config(&out);
    for (key, value) in config.as_object().unwrap() {
        changed("config.json", key, &|c| {
            c[key] = match value {
                Value::Bool(b) => json!(!b),
                Value::Number(n) => json!(n.as_f64().unwrap() + 1.0),
                _ => json!("x"),
            }
        });
        changed("config.json", key, &|c| drop(c.as_object_mut().unwrap().remove(key)));
    }
    changed("config.json", "an entry more", &|c| c["mlp_bias"] = json!(true));
    changed("model.safetensors.index.json", "size", &|i| i["metadata"]["total_size"] = json!(1));
    changed("model.safetensors.index.json", "file", &|i| {
        i["weight_map"]["lm_head.weight"] = json!("model-00001-of-00002.safetensors")
    });
    changed("model.safetensors.index.json", "tensor", &|i| {
        drop(i["weight_map"].as_object_mut().unwrap().remove("lm_head.weight"))
    });
    changed("neurograft/config.source.json", "source", &|c| c["rope_theta"] = json!(5.0));
    // The manifest: every entry that says something about the checkpoint.
    let manifest = "neurograft/splice.json";
    changed(manifest, "version", &|m| m["version"] = json!(2));
    changed(manifest, "architecture", &|m| m["architecture"] = json!("MistralForCausalLM"));
    changed(manifest, "source", &|m| m["source_sha256"] = json!("00"));
    changed(manifest, "norm", &|m| m["sites"][0]["norm"] = json!(61.0));
    changed(manifest, "exponent", &|m| m["carriers"]["exponent"] = json!(39));
    changed(manifest, "constant", &|m| m["carriers"]["constants"][0]["coordinate"] = json!(71));
    changed(manifest, "a", &|m| m["carriers"]["constants"][0]["a"] = json!(4));
    changed(manifest, "live", &|m| m["carriers"]["live"] = json!(63));
    changed(manifest, "kind", &|m| m["carriers"]["kind"] = json!("borrowed"));
    for (key, value) in [("hidden_size", 65), ("intermediate_size", 95), ("layers", 4)] {
        changed(manifest, key, &|m| m["host"][key] = json!(value));
    }
    changed(manifest, "eps", &|m| m["host"]["norm_eps"] = json!(1e-6));
    changed(manifest, "stream", &|m| m["host"]["stream"] = json!("bf16"));
    changed(manifest, "weights", &|m| m["host"]["weights"] = json!("bf16"));
    changed(manifest, "source", &|m| m["host"]["source"] = json!("relu"));
    changed(manifest, "layer", &|m| m["sites"][0]["layer"] = json!(0));
    changed(manifest, "inserted", &|m| m["sites"][0]["inserted"] = json!([1]));
    changed(manifest, "directory", &|m| m["sites"][0]["directory"] = json!("../sae"));
    changed(manifest, "no sites", &|m| m["sites"] = json!([]));
    changed(manifest, "bytes", &|m| m["cost"]["bytes"]["after"] = json!(1));
    changed(manifest, "hash", &|m| m["files"]["model-00001-of-00002.safetensors"] = json!("00"));
    changed(manifest, "files", &|m| {
        drop(m["files"].as_object_mut().unwrap().remove("model-00001-of-00002.safetensors"))
    });
    changed(manifest, "unknown entry", &|m| m["comment"] = json!("x"));
    // A certificate that promises more, another block.
    changed("neurograft/site-1/certificate.json", "bound", &|c| c["total"]["outside"] = json!(0.0));
    flip(&out.join("neurograft/site-1/block.safetensors"), 600);
    assert!(verdict(&out).is_err());
    flip(&out.join("neurograft/site-1/block.safetensors"), 600);
    // Files that are gone.
    for file in [
        "config.json",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        manifest,
        "neurograft/site-1/certificate.json",
    ] {
        let away = w.path("away");
        fs::rename(out.join(file), &away).unwrap();
        assert!(verdict(&out).is_err(), "{file}");
        fs::rename(&away, out.join(file)).unwrap();
    }
    verdict(&out).unwrap();
    // A tensor more, by somebody who corrects hash and index.
    let path = out.join("model-00002-of-00002.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = [0u8; 64];
    let mut tensors = file.tensors();
    tensors.push(("model.layers.0.mlp.down_proj.bias".into(), TensorView::new(Dtype::F32, vec![16], &data).unwrap()));
    let all = safetensors::serialize(tensors, None).unwrap();
    fs::write(&path, all).unwrap();
    edit(&out.join("model.safetensors.index.json"), |i| {
        i["weight_map"]["model.layers.0.mlp.down_proj.bias"] = json!("model-00002-of-00002.safetensors");
    });
    rehash(&out);
    assert!(verdict(&out).unwrap_err().contains("unexpected tensor"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_configurations_are_read_or_refused(
        at in any::<prop::sample::Index>(),
        with in "\\PC?|[0-9{}\\[\\]\",:-]|999999999999|-1|null|1e400",
        qwen in any::<bool>(),
    ) {
        let model = if qwen { Model { architecture: "Qwen2ForCausalLM", ..Model::default() } } else { Model::default() };
        let w = Work::new(&model);
        let mut text: Vec<char> = model.config().to_string().chars().collect();
        let at = at.index(text.len());
        text.splice(at..at + 1, with.chars());
        fs::write(w.path("model/config.json"), text.into_iter().collect::<String>()).unwrap();
        let options = neurograft::splice::SpliceOptions { dry_run: true, ..Default::default() };
        let _ = neurograft::splice::splice(&w.path("spec.json"), &w.path("model"), None, &options, &|_, _, _| ());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_spliced_passes_and_any_change_is_seen(
        seed in any::<u64>(),
        (heads, key_heads) in prop_oneof![Just((4, 2)), Just((4, 1)), Just((2, 2)), Just((8, 4))],
        wide in any::<bool>(),
        layers in 2..5usize,
        inner in 40..90usize,
        dtype in prop_oneof![Just(Dtype::F32), Just(Dtype::BF16), Just(Dtype::F16)],
        architecture in prop_oneof![Just("LlamaForCausalLM"), Just("MistralForCausalLM"), Just("Qwen2ForCausalLM")],
        (tied, attention_bias, mlp_bias, borrowed) in any::<(bool, bool, bool, bool)>(),
        (shards, gates) in (1..4usize, any::<bool>()),
        at in any::<prop::sample::Index>(),
        tensor in any::<prop::sample::Index>(),
    ) {
        let hidden = if wide { 96 } else { 64 };
        let llama = architecture == "LlamaForCausalLM";
        let model = Model {
            architecture, hidden, inner, layers, heads, key_heads, head_dim: hidden / heads, dtype, tied, shards, seed,
            attention_bias: attention_bias && llama, mlp_bias: mlp_bias && llama, ..Model::default()
        };
        let w = Work::new(&model);
        if gates && !borrowed && dtype != Dtype::F16 {
            w.spec(|s| s["interventions"] = gated());
        }
        let carriers = if borrowed { "borrowed" } else { "padded" };
        w.command(&["--carriers", carriers]).assert().code(predicate::in_iter([0, 3]));
        let out = w.path("out");
        prop_assert_eq!(verdict(&out), Ok(()));
        let all = spans(&out);
        let (path, _, _, start, length) = tensor.get(&all);
        flip(path, start + at.index(*length));
        prop_assert!(verdict(&out).is_err());
    }
}

// ---------------------------------------------------------------------------------------------- memory, and full disks

/// Runs the binary under limits of a shell's `ulimit`.
#[cfg(target_os = "linux")]
fn limited(w: &Work, limits: &str) -> std::process::Output {
    let script = format!("trap '' XFSZ; {limits} && exec \"$0\" splice spec.json --model model --output out");
    std::process::Command::new("sh")
        .args(["-c", &script, env!("CARGO_BIN_EXE_neurograft")])
        .env("RAYON_NUM_THREADS", "2")
        .current_dir(w.dir.path())
        .output()
        .unwrap()
}

/// A table of 160 MB in an address space whose private part (heap and stacks; files that are mapped do not count) is
/// limited to 64 MB.
#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_grow_with_the_model() {
    let model = Model { vocabulary: 8, tied: true, ..Model::default() };
    let w = Work::new(&model);
    let rows = 625_000usize;
    let mut tensors = model.tensors();
    tensors.retain(|t| t.0 != "model.embed_tokens.weight");
    // The table comes last, as a hole: the source takes no space.
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, shape, bytes) in &tensors {
        header.insert(
            name.clone(),
            json!({"dtype": "F32", "shape": shape, "data_offsets": [data.len(), data.len() + bytes.len()]}),
        );
        data.extend(bytes);
    }
    let table = rows * 64 * 4;
    header.insert(
        "model.embed_tokens.weight".into(),
        json!({"dtype": "F32", "shape": [rows, 64], "data_offsets": [data.len(), data.len() + table]}),
    );
    let text = Value::Object(header).to_string();
    let bytes = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &data].concat();
    let path = w.path("model/model.safetensors");
    fs::write(&path, &bytes).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len((bytes.len() + table) as u64).unwrap();
    edit(&w.path("model/config.json"), |c| c["vocab_size"] = json!(rows));

    let output = limited(&w, "ulimit -d 65536");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(verdict(&w.path("out")), Ok(()));
    // The limit bites: a process that holds the table cannot live in it.
    let held = std::process::Command::new("sh")
        .args(["-c", "ulimit -d 65536 && head -c 100000000 /dev/zero | tail -c 99999999 >/dev/null"])
        .output()
        .unwrap();
    assert!(!held.status.success());
}

#[cfg(target_os = "linux")]
#[test]
fn a_write_that_fails_leaves_nothing_behind() {
    let w = Work::new(&Model::default());
    let before = w.inputs();
    // No file may be longer than 100 blocks of 512 bytes (or of 1024, with some shells).
    let output = limited(&w, "ulimit -f 100");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("cannot write") && text.contains("model.safetensors"), "{text}");
    assert!(w.inputs() == before && !w.path("out").exists());
    let left = fs::read_dir(w.dir.path()).unwrap().count();
    assert_eq!(left, 3, "model, sae, spec.json");
}

#[test]
fn what_cannot_be_read_is_no_disagreement() {
    let w = Work::new(&Model::default());
    w.command(&[]).assert().code(predicate::in_iter([0, 3]));
    let weights = w.path("out/model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 4]).unwrap();
    let (code, text) = w.check();
    assert_eq!(code, 2, "{text}");
    assert!(text.starts_with("error: out/model.safetensors: truncated"), "{text}");
}

/// Bounds on unbounded ranges grow with |z|: the card's table says by how much.
#[test]
fn the_card_says_what_grows_with_z() {
    let w = Work::new(&Model::default());
    w.spec(|s| {
        s["domain"] = json!({});
        s["budget"] = json!({"tolerance": 1e-4});
        // -0.7 is no number of f32.
        s["interventions"] =
            json!([{"feature": 2, "action": "scale", "value": 0.3}, {"feature": 3, "action": "add", "value": 1}]);
    });
    w.command(&[])
        .assert()
        .code(predicate::in_iter([0, 3]))
        .stdout(contains("per |z|").and(contains("real arithmetic")));
    let card = fs::read_to_string(w.path("out/README.md")).unwrap();
    let mut table = card.lines().skip_while(|l| !l.starts_with("| response |"));
    let head = table.next().unwrap();
    assert!(head.contains("per unit of \\|z\\|"), "{card}");
    // Escaped bars are no columns.
    let cells = |line: &str| line.replace("\\|", "").matches('|').count();
    assert!(table.take_while(|l| l.starts_with('|')).all(|l| cells(l) == cells(head)), "{card}");
}
