//! Splicing into GGUF files: tiny random models, spliced by the binary, read back by an independent parser, and judged by the
//! forward pass in f64 against the source with the intervention applied between its layers.

mod random;
mod tiny;

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use half::f16;
use neurograft::reference::Model;
use random::Random;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value as Json, json};
use tiny::{Meta, Tiny};

fn neurograft() -> Command {
    Command::new(env!("CARGO_BIN_EXE_neurograft"))
}

impl Random {
    /// A block of a format with values of about the given size.
    fn block(&mut self, format: u32, size: f64) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..tiny::block(format).1).map(|_| self.bits() as u8).collect();
        let half = |x: f64| f16::from_f64(x).to_le_bytes();
        match format {
            0 => bytes = ((size * self.next()) as f32).to_le_bytes().to_vec(),
            1 => bytes = half(size * self.next()).to_vec(),
            2 => bytes[..2].copy_from_slice(&half(size / 8.0)),
            3 => {
                bytes[..2].copy_from_slice(&half(size / 8.0));
                bytes[2..4].copy_from_slice(&half(-size));
            }
            8 => bytes[..2].copy_from_slice(&half(size / 128.0)),
            12 => {
                bytes[..2].copy_from_slice(&half(size / 300.0));
                bytes[2..4].copy_from_slice(&half(size / 40.0));
            }
            14 => bytes[208..].copy_from_slice(&half(size / 2000.0)),
            _ => panic!("format {format}"),
        }
        bytes
    }
}

/// A tiny model.
#[derive(Clone)]
struct Host {
    hidden: usize,
    inner: usize,
    layers: usize,
    heads: usize,
    key_heads: usize,
    head_size: usize,
    vocabulary: usize,
    /// formats of the embedding, of what else reads the stream, of what writes it
    formats: [u32; 3],
    tied: bool,
    /// all head sizes in the metadata, and biases of queries, keys and values
    plain: bool,
    /// coordinates that nothing writes
    quiet: Vec<usize>,
}

impl Default for Host {
    fn default() -> Self {
        Host {
            hidden: 64,
            inner: 96,
            layers: 3,
            heads: 4,
            key_heads: 2,
            head_size: 16,
            vocabulary: 40,
            formats: [8, 3, 2],
            tied: true,
            plain: false,
            quiet: vec![],
        }
    }
}

impl Host {
    fn file(&self) -> Tiny {
        let mut random = Random(5);
        let mut t = Tiny::default();
        let text = |x: &str| Meta::Text(x.into());
        let number = |x: usize| Meta::U32(x as u32);
        for (key, value) in [
            ("general.architecture", text("llama")),
            ("general.name", text("tiny")),
            ("llama.block_count", number(self.layers)),
            ("llama.context_length", number(128)),
            ("llama.embedding_length", number(self.hidden)),
            ("llama.feed_forward_length", number(self.inner)),
            ("llama.attention.head_count", number(self.heads)),
            ("llama.attention.head_count_kv", number(self.key_heads)),
            ("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-5)),
            ("general.file_type", number(3)),
            ("llama.something_per_layer", Meta::U32s((0..self.layers as u32).map(|l| 70 + l).collect())),
            ("tokenizer.ggml.tokens", Meta::Texts((0..self.vocabulary).map(|k| format!("token {k}")).collect())),
            ("tokenizer.ggml.scores_of_as_many_as_layers", Meta::U32s(vec![1; self.layers])),
            ("tokenizer.ggml.bos_token_id", number(1)),
        ] {
            t.metadata.push((key.into(), value));
        }
        if self.plain {
            for key in ["attention.key_length", "attention.value_length", "rope.dimension_count"] {
                t.metadata.push((format!("llama.{key}"), number(self.head_size)));
            }
        }
        let (d, q, k) = (self.hidden, self.heads * self.head_size, self.key_heads * self.head_size);
        let [embedding, reads, writes] = self.formats;
        let mut add = |name: String, width: usize, rows: usize, format: u32, size: f64| {
            let (values, bytes) = tiny::block(format);
            let mut data: Vec<u8> = (0..width / values * rows).flat_map(|_| random.block(format, size)).collect();
            let row = width / values * bytes;
            let writes = name.contains("attn_output") || name.contains("ffn_down");
            for j in &self.quiet {
                match format {
                    _ if writes => data[j * row..(j + 1) * row].fill(0),
                    8 if name.starts_with("token_embd") => {
                        (0..rows).for_each(|r| data[r * row + j / 32 * 34 + 2 + j % 32] = 0);
                    }
                    0 if name.starts_with("token_embd") => {
                        (0..rows).for_each(|r| data[r * row + j * 4..][..4].fill(0));
                    }
                    _ => {}
                }
            }
            if name.contains("norm") {
                let gains = data.chunks_exact(4).map(|b| 1.0 + f32::from_le_bytes(b.try_into().unwrap()));
                data = gains.collect::<Vec<f32>>().iter().flat_map(|x| x.to_le_bytes()).collect();
            }
            let dims = if rows == 1 { vec![width as u64] } else { vec![width as u64, rows as u64] };
            t.tensors.push((name, dims, format, data));
        };
        let weight = 1.0 / (d as f64).sqrt();
        add("token_embd.weight".into(), d, self.vocabulary, embedding, 1.0);
        for l in 0..self.layers {
            let name = |stem: &str| format!("blk.{l}.{stem}");
            add(name("attn_norm.weight"), d, 1, 0, 0.3);
            add(name("ffn_down.weight"), self.inner, d, writes, weight);
            add(name("ffn_gate.weight"), d, self.inner, reads, weight);
            add(name("ffn_up.weight"), d, self.inner, reads, weight);
            add(name("ffn_norm.weight"), d, 1, 0, 0.3);
            add(name("attn_k.weight"), d, k, reads, weight);
            add(name("attn_output.weight"), q, d, writes, weight);
            add(name("attn_q.weight"), d, q, reads, weight);
            add(name("attn_v.weight"), d, k, reads, weight);
            if self.plain {
                add(name("attn_q.bias"), q, 1, 0, 0.2);
                add(name("attn_k.bias"), k, 1, 0, 0.2);
                add(name("attn_v.bias"), k, 1, 0, 0.2);
            }
        }
        add("output_norm.weight".into(), d, 1, 0, 0.3);
        if !self.tied {
            add("output.weight".into(), d, self.vocabulary, reads, weight);
        }
        t
    }
}

const FEATURES: usize = 5;

/// W_enc [d, n], W_dec [n, d], b_enc.
struct Features {
    encoder: Vec<f64>,
    decoder: Vec<f64>,
    bias: Vec<f64>,
    width: usize,
}

impl Features {
    fn new(width: usize) -> Features {
        let mut random = Random(7);
        let mut numbers = |n: usize, size: f64| (0..n).map(|_| f64::from((size * random.next()) as f32)).collect();
        Features {
            encoder: numbers(width * FEATURES, 0.4),
            decoder: numbers(FEATURES * width, 0.3),
            bias: numbers(FEATURES, 0.5),
            width,
        }
    }

    fn write(&self, dir: &Path) {
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
            "metadata": {"hook_name": "blocks.1.hook_resid_post", "model_name": "tiny"},
        });
        fs::write(dir.join("cfg.json"), cfg.to_string()).unwrap();
    }

    /// What is added along each decoder row: ablate 0, cap 1 at 0.5, halve 2, add 0.75 along 3.
    fn changes(&self, x: &[f64]) -> [f64; 4] {
        let z = |f: usize| (0..self.width).map(|i| self.encoder[i * FEATURES + f] * x[i]).sum::<f64>() + self.bias[f];
        let a = [0, 1, 2].map(|f| z(f).max(0.0));
        [-a[0], a[1].min(0.5) - a[1], -0.5 * a[2], 0.75]
    }

    fn step(&self, f: usize, x: &mut [f64]) {
        let c = self.changes(x)[f];
        (0..self.width).for_each(|i| x[i] += c * self.decoder[f * self.width + i]);
    }

    /// All at once.
    fn intervene(&self, x: &mut [f64]) {
        for (f, c) in self.changes(x).iter().enumerate() {
            (0..self.width).for_each(|i| x[i] += c * self.decoder[f * self.width + i]);
        }
    }
}

/// A directory with a model, an SAE at its layer 1, and a specification.
struct Work {
    dir: tempfile::TempDir,
    features: Features,
    hidden: usize,
}

impl Work {
    fn new(host: &Host) -> Work {
        Work::with(host, &host.file())
    }

    fn with(host: &Host, file: &Tiny) -> Work {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("model.gguf"), file.bytes()).unwrap();
        let features = Features::new(host.hidden);
        features.write(&dir.path().join("sae"));
        let spec = json!({
            "sae": "sae", "budget": {"tolerance": 1e-4}, "domain": {"range": [-40, 40], "norm": 60},
            "interventions": [
                {"feature": 0, "action": "ablate"},
                {"feature": 1, "action": "cap", "value": 0.5},
                {"feature": 2, "action": "scale", "value": 0.5},
                {"feature": 3, "action": "add", "value": 0.75},
            ],
        });
        fs::write(dir.path().join("spec.json"), spec.to_string()).unwrap();
        Work { dir, features, hidden: host.hidden }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> tiny::Read {
        tiny::read(&fs::read(self.path(name)).unwrap())
    }

    /// Exit code and everything that was said.
    fn run(&self, arguments: &[&str]) -> (i32, String) {
        let out = neurograft().current_dir(self.dir.path()).arg("splice").args(arguments).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(!text.contains("panicked"), "{text}");
        (out.status.code().unwrap(), text)
    }

    fn splice(&self, more: &[&str]) -> (i32, String) {
        self.run(&[&["spec.json", "--model", "model.gguf", "--output", "out.gguf"], more].concat())
    }

    fn check(&self) -> (i32, String) {
        self.run(&["--check", "out.gguf"])
    }

    /// (largest difference of the stream after the insertion, of the logits) between the spliced file and the source with
    /// the intervention between its layers, both in f64
    fn compare(&self) -> (f64, f64) {
        self.compare_at(2, &|x| self.features.intervene(x))
    }

    /// The same where `last` is the last inserted layer and `hook` the intervention.
    fn compare_at(&self, last: usize, hook: &dyn Fn(&mut [f64])) -> (f64, f64) {
        let prompts = [vec![5, 1, 33, 2, 2, 17], vec![39, 0, 8]];
        let run = |name: &str, after: usize, hook: &dyn Fn(&mut [f64])| {
            let model = Model::open(self.path(name)).unwrap();
            let mut stream = model.embed(&prompts).unwrap();
            let mut seen = None;
            for k in 0..model.layers() {
                model.layer(k, &mut stream).unwrap();
                if k == after {
                    for mut row in stream.x.row_iter_mut() {
                        let mut x: Vec<f64> = row.iter().copied().collect();
                        hook(&mut x);
                        row.iter_mut().zip(x).for_each(|(r, x)| *r = x);
                    }
                    seen = Some(stream.x.columns(0, self.hidden).into_owned());
                }
            }
            (seen.unwrap(), model.logits(&stream, &[5, 8]).unwrap())
        };
        let source = run("model.gguf", 1, hook);
        let spliced = run("out.gguf", last, &|_| ());
        ((source.0 - spliced.0).abs().max(), (source.1 - spliced.1).abs().max())
    }
}

/// What every splice must leave, padded or not.
fn invariants(w: &Work, host: &Host, more: &[&str]) -> (tiny::Read, tiny::Read) {
    let before = fs::read(w.path("model.gguf")).unwrap();
    let (code, said) = w.splice(more);
    assert_eq!(code, 0, "{said}");
    assert_eq!(fs::read(w.path("model.gguf")).unwrap(), before, "the source is only read");
    let (code, said) = w.check();
    assert_eq!(code, 0, "{said}");
    let (source, out) = (w.read("model.gguf"), w.read("out.gguf"));
    assert_eq!(out.u32("llama.block_count"), Some(host.layers as u32 + 1));
    // All metadata stand where they stood, and only those that must differ do.
    let changed = [
        "llama.block_count",
        "llama.embedding_length",
        "llama.attention.layer_norm_rms_epsilon",
        "llama.something_per_layer",
        "llama.attention.key_length",
        "llama.attention.value_length",
        "llama.rope.dimension_count",
    ];
    let others =
        |r: &tiny::Read| r.metadata.iter().filter(|m| !changed.contains(&m.0.as_str())).cloned().collect::<Vec<_>>();
    assert_eq!(others(&source), others(&out));
    let layers = &out.metadata.iter().find(|m| m.0 == "llama.something_per_layer").unwrap().2;
    let numbers: Vec<u8> = layers[12..].chunks(5).map(|c| c[0]).collect();
    assert_eq!(numbers, [70, 71].into_iter().chain(71..70 + host.layers as u8).collect::<Vec<_>>());
    (source, out)
}

fn renumbered(name: &str) -> String {
    let parts: Vec<&str> = name.splitn(3, '.').collect();
    match (parts[0], parts.get(1).and_then(|n| n.parse::<usize>().ok())) {
        ("blk", Some(l)) if l > 1 => format!("blk.{}.{}", l + 1, parts[2]),
        _ => name.to_string(),
    }
}

fn kinds() -> Vec<Host> {
    vec![
        Host { quiet: vec![11], ..Host::default() },
        Host { formats: [0, 0, 0], tied: false, plain: true, quiet: vec![11, 40], ..Host::default() },
        Host {
            hidden: 256,
            inner: 256,
            head_size: 64,
            layers: 2,
            formats: [8, 12, 14],
            tied: false,
            quiet: vec![11],
            ..Host::default()
        },
    ]
}

/// `sequence`: each intervention in a layer of its own, each reading what the one before it has left.
#[test]
fn steps_after_one_layer() {
    let host = Host::default();
    let w = Work::new(&host);
    let mut spec: Json = serde_json::from_slice(&fs::read(w.path("spec.json")).unwrap()).unwrap();
    spec["sequence"] = true.into();
    fs::write(w.path("spec.json"), spec.to_string()).unwrap();
    let (code, said) = w.splice(&["--carriers", "padded"]);
    assert_eq!(code, 0, "{said}");
    let (code, said) = w.check();
    assert_eq!(code, 0, "{said}");
    let (source, out) = (w.read("model.gguf"), w.read("out.gguf"));
    assert_eq!(out.u32("llama.block_count"), Some(host.layers as u32 + 4));
    let inspect = || {
        let output = neurograft().arg("inspect").arg(w.path("out.gguf")).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(inspect().contains("layer 2 inserted (after layer 1 of the source)"), "{}", inspect());
    fs::rename(w.path("out.neurograft"), w.path("elsewhere")).unwrap();
    assert!(inspect().contains("perhaps: layers 2, 3, 4, 5 have an attn_output.bias"), "{}", inspect());
    fs::rename(w.path("elsewhere"), w.path("out.neurograft")).unwrap();
    // The layer itself, then the steps, then the next one: each has its tensors once.
    let own = source.tensors.iter().filter(|t| t.0.starts_with("blk.2.")).count();
    assert_eq!(out.tensors.iter().filter(|t| t.0.starts_with("blk.6.")).count(), own);
    let (stream, logits) = w.compare_at(5, &|x| (0..4).for_each(|k| w.features.step(k, x)));
    // Four layers of padding's rounded gains.
    assert!(stream < 1e-4 && logits < 1e-3, "{stream:e} {logits:e}");
    let (parallel, _) = w.compare_at(5, &|x| w.features.intervene(x));
    assert!(parallel > 1e-3, "{parallel:e}");
}

#[test]
fn borrowed_leaves_every_other_byte() {
    for host in kinds() {
        let w = Work::new(&host);
        let quiet = host.quiet.iter().map(|j| j.to_string()).collect::<Vec<_>>().join(",");
        let (source, out) = invariants(&w, &host, &["--carriers", "borrowed", "--borrow", &quiet]);
        assert_eq!(out.tensors.len(), source.tensors.len() + 13);
        for (name, dims, format, data) in &source.tensors {
            let found = out.tensor(&renumbered(name));
            assert_eq!((dims, format, data), (&found.1, &found.2, &found.3), "{name}");
        }
        assert_eq!(out.u32("llama.embedding_length"), Some(host.hidden as u32));
        let inserted: Vec<_> = out.tensors.iter().filter(|t| t.0.starts_with("blk.2.")).collect();
        assert!(inserted.iter().all(|t| t.2 == 0), "F32");
        assert!(out.f32s("blk.2.attn_q.weight").iter().all(|x| *x == 0.0));
        let (stream, logits) = w.compare();
        // A carrier makes its norm a known scale up to ½(‖x‖/‖C‖)².
        assert!(stream < 5e-3 && logits < 2e-2, "{stream:e} {logits:e}");
    }
}

#[test]
fn padded_appends_zeros_and_nothing_else() {
    for host in kinds() {
        let w = Work::new(&host);
        let (source, out) = invariants(&w, &host, &["--carriers", "padded"]);
        let wide = out.u32("llama.embedding_length").unwrap() as usize;
        let block = if host.hidden == 256 { 256 } else { 32 };
        assert!(wide > host.hidden && wide.is_multiple_of(block), "{wide}");
        for key in ["attention.key_length", "attention.value_length", "rope.dimension_count"] {
            assert_eq!(out.u32(&format!("llama.{key}")), Some(host.head_size as u32), "{key}");
        }
        let scale = (host.hidden as f64 / wide as f64).sqrt();
        for (name, dims, format, data) in &source.tensors {
            let found = out.tensor(&renumbered(name));
            assert_eq!(*format, found.2, "{name}");
            let stem = name.rsplit_once("blk.").map_or(name.as_str(), |_| name.splitn(3, '.').nth(2).unwrap());
            let (values, bytes) = tiny::block(*format);
            let rows = dims.get(1).copied().unwrap_or(1) as usize;
            let (from, to) = (dims[0] as usize / values * bytes, found.1[0] as usize / values * bytes);
            match stem {
                "attn_norm.weight" | "ffn_norm.weight" | "output_norm.weight" => {
                    for (k, (a, b)) in source.f32s(name).iter().zip(out.f32s(&found.0)).enumerate() {
                        assert_eq!((f64::from(*a) * scale) as f32, b, "{name}[{k}]");
                    }
                    assert!(out.f32s(&found.0)[host.hidden..].iter().all(|x| *x == 0.0));
                }
                "attn_output.weight" | "ffn_down.weight" => {
                    assert_eq!((found.1[0], found.1[1] as usize), (dims[0], wide), "{name}");
                    assert!(found.3.starts_with(data) && found.3[data.len()..].iter().all(|b| *b == 0), "{name}");
                }
                "attn_q.bias" | "attn_k.bias" | "attn_v.bias" => assert_eq!(*data, found.3, "{name}"),
                _ => {
                    assert_eq!((found.1[0] as usize, found.1[1]), (wide, dims[1]), "{name}");
                    for r in 0..rows {
                        let row = &found.3[r * to..(r + 1) * to];
                        assert_eq!(row[..from], data[r * from..(r + 1) * from], "{name} row {r}");
                        assert!(row[from..].iter().all(|b| *b == 0), "{name} row {r}");
                    }
                }
            }
        }
        // The one bias that padded carriers need.
        let biases: Vec<_> =
            out.tensors.iter().filter(|t| t.0.starts_with("blk.2.") && t.0.ends_with("bias")).collect();
        assert_eq!(biases.len(), 1);
        let writer = out.f32s("blk.2.attn_output.bias");
        assert!(writer[..host.hidden].iter().all(|x| *x == 0.0) && writer[host.hidden..].iter().any(|x| *x > 1e12));
        let (stream, logits) = w.compare();
        assert!(stream < 3e-4 && logits < 1e-3, "{stream:e} {logits:e}");
    }
}

#[test]
fn what_is_not_a_llama_of_one_file_is_refused_in_words() {
    fn set(t: &mut Tiny, key: &str, value: Meta) {
        match t.metadata.iter_mut().find(|m| m.0 == key) {
            Some(m) => m.1 = value,
            None => t.metadata.push((key.into(), value)),
        }
    }
    type Change = fn(&mut Tiny);
    let table: Vec<(&str, Change)> = vec![
        ("architecture 'gemma2'", |t| set(t, "general.architecture", Meta::Text("gemma2".into()))),
        ("llama-gguf-split --merge", |t| set(t, "split.count", Meta::U32(2))),
        ("mixture of experts", |t| set(t, "llama.expert_count", Meta::U32(8))),
        ("llama.feed_forward_length", |t| set(t, "llama.feed_forward_length", Meta::U32s(vec![96, 96, 64]))),
        ("llama.embedding_length", |t| set(t, "llama.embedding_length", Meta::Text("64".into()))),
        ("llama.block_count", |t| set(t, "llama.block_count", Meta::U32(0))),
        ("'blk.3.attn_norm.weight' is missing", |t| set(t, "llama.block_count", Meta::U32(4))),
        ("of a model of 2 layers", |t| set(t, "llama.block_count", Meta::U32(2))),
        ("different sizes", |t| set(t, "llama.rope.dimension_count", Meta::U32(8))),
        ("layer_norm_rms_epsilon", |t| set(t, "llama.attention.layer_norm_rms_epsilon", Meta::U32(1))),
        ("the metadata say [64, 32]", shrink),
        ("'token_embd.weight' is missing", |t| drop(t.tensors.remove(0))),
        ("the SAE reads a stream of width", |t| *t = Host { hidden: 32, head_size: 8, ..Host::default() }.file()),
    ];
    for (words, change) in table {
        let host = Host::default();
        let mut file = host.file();
        change(&mut file);
        let w = Work::with(&host, &file);
        let (code, said) = w.splice(&[]);
        assert!(code == 2 && said.contains(words), "{words}: {said}");
        assert!(!w.path("out.gguf").exists() && !w.path("out.neurograft").exists());
    }
}

/// Gives the first layer's keys a row less.
fn shrink(t: &mut Tiny) {
    let k = t.tensors.iter_mut().find(|t| t.0 == "blk.0.attn_k.weight").unwrap();
    k.1[1] -= 1;
    k.3.truncate(k.3.len() - 40);
}

#[test]
fn what_padding_cannot_treat_is_refused_and_borrowing_leaves_it() {
    let host = Host { quiet: vec![11], ..Host::default() };
    let mut odd = host.file();
    odd.tensors.push(("blk.1.attn_sub_norm.weight".into(), vec![64], 0, vec![0; 256]));
    let w = Work::with(&host, &odd);
    let (code, said) = w.splice(&["--carriers", "padded"]);
    assert!(code == 2 && said.contains("attn_sub_norm") && said.contains("--carriers borrowed"), "{said}");
    let (code, said) = w.splice(&["--carriers", "borrowed", "--borrow", "11"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(w.read("out.gguf").tensor("blk.1.attn_sub_norm.weight").3, vec![0; 256]);

    let mut half = host.file();
    let gain = half.tensors.iter_mut().find(|t| t.0 == "blk.0.ffn_norm.weight").unwrap();
    (gain.2, gain.3) = (1, vec![0; 128]);
    let (code, said) = Work::with(&host, &half).splice(&["--carriers", "padded"]);
    assert!(code == 2 && said.contains("in F16"), "{said}");
}

#[test]
fn outputs_that_must_not_be_written() {
    let w = Work::new(&Host::default());
    let to = |output: &str, more: &[&str]| {
        w.run(&[&["spec.json", "--model", "model.gguf", "--output", output], more].concat())
    };
    let refused =
        |(code, said): (i32, String), words: &str| assert!(code == 2 && said.contains(words), "{words}: {said}");
    refused(to("model.gguf", &["--force"]), "the output is the source");
    refused(to("out", &[]), "name it OUT.gguf");
    refused(to("nowhere/out.gguf", &[]), "nowhere");
    fs::write(w.path("out.gguf"), b"somebody's").unwrap();
    refused(to("out.gguf", &[]), "is there already");
    refused(to("out.gguf", &["--force"]), "not replaced");
    fs::remove_file(w.path("out.gguf")).unwrap();
    fs::create_dir(w.path("out.neurograft")).unwrap();
    refused(to("out.gguf", &[]), "is there already");
    refused(to("out.gguf", &["--force"]), "not replaced");
    fs::remove_dir(w.path("out.neurograft")).unwrap();
    assert_eq!(w.splice(&[]).0, 0);
    let first = fs::read(w.path("out.gguf")).unwrap();
    refused(w.splice(&[]), "is there already");
    assert_eq!(w.splice(&["--force"]).0, 0);
    assert_eq!(fs::read(w.path("out.gguf")).unwrap(), first, "the same input gives the same bytes");
    let left = fs::read_dir(w.dir.path()).unwrap().count();
    assert_eq!(left, 5, "model.gguf, sae, spec.json, out.gguf, out.neurograft");
}

#[test]
fn a_dry_run_writes_nothing() {
    let w = Work::new(&Host::default());
    let (code, said) = w.run(&["spec.json", "--model", "model.gguf", "--dry-run"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("64 → 96") && said.contains("3 → 4"), "{said}");
    assert_eq!(fs::read_dir(w.dir.path()).unwrap().count(), 3);
}

#[test]
fn check_finds_what_was_changed() {
    let host = Host { quiet: vec![11], ..Host::default() };
    for carriers in [&["--carriers", "padded"][..], &["--carriers", "borrowed", "--borrow", "11"]] {
        let w = Work::new(&host);
        assert_eq!(w.splice(carriers).0, 0);
        let whole = fs::read(w.path("out.gguf")).unwrap();
        let out = w.read("out.gguf");
        let rehash = || {
            let path = w.path("out.neurograft/splice.json");
            let mut manifest: Json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            manifest["files"]["out.gguf"] = json!(neurograft::files::sha256(&fs::read(w.path("out.gguf")).unwrap()));
            fs::write(&path, manifest.to_string()).unwrap();
        };
        let start = whole.len() - out.tensors.iter().map(|t| t.3.len().next_multiple_of(32)).sum::<usize>();
        let mut at = start;
        for (k, t) in out.tensors.iter().enumerate() {
            let mut changed = whole.clone();
            changed[at + (k * 7919) % t.3.len()] ^= 1;
            fs::write(w.path("out.gguf"), &changed).unwrap();
            let (code, said) = w.check();
            assert_eq!(code, 1, "{}: {said}", t.0);
            if t.0.starts_with("blk.2.") {
                // Where the source does not determine the number, the hash is not needed.
                rehash();
                let (code, said) = w.check();
                assert!(code == 1 && said.contains(&t.0), "{said}");
            } else {
                assert!(said.contains("SHA-256") || said.contains(&t.0), "{said}");
            }
            at += t.3.len().next_multiple_of(32);
        }
        // Metadata and names of tensors.
        for (k, byte) in (24..start).step_by(97).enumerate() {
            let mut changed = whole.clone();
            changed[byte] ^= 1 << (k % 8);
            fs::write(w.path("out.gguf"), &changed).unwrap();
            assert_eq!(w.check().0, 1, "byte {byte}");
        }
        fs::write(w.path("out.gguf"), &whole).unwrap();
        rehash();
        assert_eq!(w.check().0, 0);
        for file in ["head.source.gguf", "splice.json", "site-1/certificate.json", "site-1/block.safetensors"] {
            let path = w.path("out.neurograft").join(file);
            let kept = fs::read(&path).unwrap();
            let mut changed = kept.clone();
            let at = kept.len() / 2;
            changed[at] ^= 1;
            fs::write(&path, &changed).unwrap();
            assert_eq!(w.check().0, 1, "{file}");
            fs::write(&path, &kept).unwrap();
        }
        fs::remove_dir_all(w.path("out.neurograft")).unwrap();
        assert_eq!(w.check().0, 2);
    }
}

fn selftest(w: &Work) -> Json {
    serde_json::from_slice(&fs::read(w.path("out.neurograft/selftest.json")).unwrap()).unwrap()
}

fn decoded(text: &Json) -> Vec<f64> {
    use base64::Engine;
    let bytes = base64::engine::general_purpose::STANDARD.decode(text.as_str().unwrap()).unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect()
}

#[test]
fn the_selftest_says_what_the_spliced_model_computes() {
    for host in kinds() {
        let w = Work::new(&host);
        let (code, said) = w.splice(&["--carriers", "padded"]);
        assert!(code == 0 && said.contains("self-test: 4 prompts"), "{said}");
        assert!(w.path("out.neurograft/selftest.py").exists());
        let test = selftest(&w);
        assert_eq!((&test["live"], &test["layers"]), (&json!(host.hidden), &json!(host.layers + 1)));
        let model = Model::open(w.path("out.gguf")).unwrap();
        for prompt in test["prompts"].as_array().unwrap() {
            let tokens: Vec<u32> = serde_json::from_value(prompt["tokens"].clone()).unwrap();
            assert!((8..=24).contains(&tokens.len()) && tokens[0] == 1, "{tokens:?}");
            // One response is a constant.
            assert_eq!(prompt["active"], json!(tokens.len()));
            let mut stream = model.embed(&[tokens]).unwrap();
            let seen = &prompt["stream"];
            for k in 0..model.layers() {
                if json!(k) == seen["first"] {
                    let row = stream.x.row(seen["position"].as_u64().unwrap() as usize);
                    let places =
                        seen["coordinates"].as_array().unwrap().iter().map(|c| c[0].as_u64().unwrap() as usize);
                    for (at, known) in places.zip(seen["before"].as_array().unwrap()) {
                        assert!((row[at] - known.as_f64().unwrap()).abs() < 1e-3, "{} {known}", row[at]);
                    }
                }
                model.layer(k, &mut stream).unwrap();
                if json!(k) == seen["layer"] {
                    let row = stream.x.row(seen["position"].as_u64().unwrap() as usize);
                    for c in seen["coordinates"].as_array().unwrap() {
                        let (found, known) = (row[c[0].as_u64().unwrap() as usize], c[1].as_f64().unwrap());
                        assert!((found - known).abs() < 1e-3, "{found} {known}");
                    }
                }
            }
            let logits = model.logits(&stream, &[stream.x.nrows() - 1]).unwrap();
            let total = logits.iter().map(|x| x.exp()).sum::<f64>().ln();
            let expected = prompt["expected"].as_array().unwrap();
            assert_eq!(expected.len(), 10);
            let mut moved = 0f64;
            for (next, before) in expected.iter().zip(prompt["unmodified"].as_array().unwrap()) {
                let found = logits[next["token"].as_u64().unwrap() as usize] - total;
                let known = next["logprob"].as_f64().unwrap();
                assert!((found - known).abs() < 1e-3, "{found} {known}");
                moved = moved.max((known - before.as_f64().unwrap()).abs());
            }
            assert!(moved > 1e-2, "the intervention is seen in the logits");
        }
        let pairs = test["pairs"].as_array().unwrap();
        assert_eq!(pairs.len(), 4);
        for pair in pairs {
            assert_eq!(pair["layers"], json!([2, 2]));
            let mut x = decoded(&pair["x"]);
            w.features.intervene(&mut x);
            let y = decoded(&pair["y"]);
            assert!(x.iter().zip(&y).all(|(a, b)| (a - b).abs() < 1e-5), "{}", pair["response"]);
            assert!(pair["changed"].as_f64().unwrap() > 1e-3);
        }
    }
}

#[test]
fn a_selftest_without_prompts_says_why() {
    let host = Host::default();
    let mut file = host.file();
    file.metadata.push(("llama.rope.scaling.type".into(), Meta::Text("yarn".into())));
    let w = Work::with(&host, &file);
    let (code, said) = w.splice(&[]);
    assert!(code == 0 && said.contains("no prompts") && said.contains("yarn"), "{said}");
    let test = selftest(&w);
    assert!(test["no_prompts"].as_str().unwrap().contains("yarn"));
    assert_eq!((test["prompts"].as_array().unwrap().len(), test["pairs"].as_array().unwrap().len()), (0, 4));

    let w = Work::new(&host);
    assert_eq!(w.splice(&["--no-selftest"]).0, 0);
    assert!(!w.path("out.neurograft/selftest.json").exists());
    assert_eq!(w.check().0, 0);
}

#[cfg(target_os = "linux")]
mod limits {
    use super::*;

    fn limited(w: &Work, limits: &str) -> std::process::Output {
        let script =
            format!("trap '' XFSZ; {limits} && exec \"$0\" splice spec.json --model model.gguf --output out.gguf");
        std::process::Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_neurograft")])
            .env("RAYON_NUM_THREADS", "2")
            .current_dir(w.dir.path())
            .output()
            .unwrap()
    }

    /// A table of 200 MB in an address space whose private part is limited to 64 MB.
    #[test]
    fn memory_does_not_grow_with_the_model() {
        let host = Host { vocabulary: 8, ..Host::default() };
        let mut file = host.file();
        // The table comes last, as a hole: the source takes no space.
        let mut table = file.tensors.remove(0);
        table.1[1] = 780_000;
        let size = 780_000 * 2 * 34;
        let small = Tiny { tensors: [file.tensors.clone(), vec![table.clone()]].concat(), ..file };
        let mut bytes = small.bytes();
        bytes.truncate(bytes.len() - table.3.len().next_multiple_of(32));
        let w = Work::new(&host);
        let path = w.path("model.gguf");
        let length = (bytes.len() + size) as u64;
        fs::write(&path, bytes).unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length).unwrap();
        let output = limited(&w, "ulimit -d 65536");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(w.check().0, 0);
    }

    #[test]
    fn a_write_that_fails_leaves_nothing_behind() {
        let w = Work::new(&Host::default());
        let output = limited(&w, "ulimit -f 100");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("cannot write") && text.contains("out.gguf"), "{text}");
        assert_eq!(fs::read_dir(w.dir.path()).unwrap().count(), 3);
    }
}
