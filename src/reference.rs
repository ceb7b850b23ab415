//! A forward pass of Llama-family decoders in f64, layer by layer, for short prompts: what an engine should compute.
//!
//! Reads HuggingFace checkpoints (`model_type` llama, mistral, qwen2) and GGUF files of architecture `llama`, a piece of
//! one matrix at a time from mapped files. The caller walks through the layers and may change the stream between them:
//!
//! ```no_run
//! # use neurograft::reference::Model;
//! let model = Model::open("SmolLM2-135M-Instruct")?;
//! let mut stream = model.embed(&[vec![1, 42, 7]])?;
//! for layer in 0..model.layers() {
//!     model.layer(layer, &mut stream)?;
//!     // stream.x is what a hook after this layer sees
//! }
//! let logits = model.logits(&stream, &[2])?;
//! # Ok::<(), neurograft::Error>(())
//! ```

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use nalgebra::DMatrix;
use rayon::prelude::*;
use serde_json::Value as Json;

use crate::activation::Activation;
use crate::error::{At, Error, Result};
use crate::gguf::{GgufFile, Value};
use crate::tensors::{TensorFile, quoted};

/// A decoder, its weights in mapped files.
#[derive(Debug)]
pub struct Model {
    shape: Shape,
    weights: Weights,
}

#[derive(Debug)]
struct Shape {
    hidden_size: usize,
    layers: usize,
    heads: usize,
    key_heads: usize,
    head_size: usize,
    source: Activation,
    norm_eps: f64,
    /// radians a position turns each pair of a head by
    frequencies: Vec<f64>,
    /// pairs are neighbours (GGUF), or half a head apart (HuggingFace)
    neighbours: bool,
    first_token: Option<u32>,
}

#[derive(Debug)]
enum Weights {
    HuggingFace { files: Vec<TensorFile>, index: HashMap<String, usize> },
    Gguf(GgufFile),
}

/// The residual stream of a batch of prompts.
#[derive(Clone, Debug, PartialEq)]
pub struct Stream {
    /// [tokens, d]: a token's residual a row
    pub x: DMatrix<f64>,
    /// each prompt's rows
    pub prompts: Vec<Range<usize>>,
}

/// A tensor's name in the two kinds of checkpoints, without its layer and without `.weight`.
struct Name {
    hf: &'static str,
    gguf: &'static str,
}

const EMBEDDING: Name = Name { hf: "model.embed_tokens", gguf: "token_embd" };
const LAST_NORM: Name = Name { hf: "model.norm", gguf: "output_norm" };
const HEAD: Name = Name { hf: "lm_head", gguf: "output" };
const FIRST_NORM: Name = Name { hf: "input_layernorm", gguf: "attn_norm" };
const Q: Name = Name { hf: "self_attn.q_proj", gguf: "attn_q" };
const K: Name = Name { hf: "self_attn.k_proj", gguf: "attn_k" };
const V: Name = Name { hf: "self_attn.v_proj", gguf: "attn_v" };
const O: Name = Name { hf: "self_attn.o_proj", gguf: "attn_output" };
const SECOND_NORM: Name = Name { hf: "post_attention_layernorm", gguf: "ffn_norm" };
const GATE: Name = Name { hf: "mlp.gate_proj", gguf: "ffn_gate" };
const UP: Name = Name { hf: "mlp.up_proj", gguf: "ffn_up" };
const DOWN: Name = Name { hf: "mlp.down_proj", gguf: "ffn_down" };

/// So many values of a matrix are held as f64 at a time and thread.
const PIECE: usize = 1 << 19;

impl Model {
    /// Opens a checkpoint: a directory of HuggingFace's, or a GGUF file.
    ///
    /// # Errors
    /// If it cannot be read, is of another family, or has rotary embeddings that are not known here.
    pub fn open(path: impl AsRef<Path>) -> Result<Model> {
        let path = path.as_ref();
        if path.is_dir() { hugging_face(path).at(|| path.display().to_string()) } else { gguf(path) }
    }

    /// Decoder layers.
    pub fn layers(&self) -> usize {
        self.shape.layers
    }

    /// d
    pub fn hidden_size(&self) -> usize {
        self.shape.hidden_size
    }

    /// The token that texts begin with, where the checkpoint names one.
    pub fn first_token(&self) -> Option<u32> {
        self.shape.first_token
    }

    /// How many tokens there are.
    ///
    /// # Errors
    /// If there are no embeddings.
    pub fn vocabulary(&self) -> Result<usize> {
        Ok(self.weights.dimensions(&self.weights.name(&EMBEDDING, None, "weight"))?.0)
    }

    /// The stream before the first layer.
    ///
    /// # Errors
    /// A token beyond the vocabulary; what [`Model::layer`] says.
    pub fn embed(&self, prompts: &[Vec<u32>]) -> Result<Stream> {
        let name = self.weights.name(&EMBEDDING, None, "weight");
        let d = self.shape.hidden_size;
        let (known, width) = self.weights.dimensions(&name)?;
        if width != d {
            return Err(Error::input(format!("tensor {} has rows of {width}, expected {d}", quoted(&name))));
        }
        let tokens = prompts.concat();
        let mut x = DMatrix::zeros(tokens.len(), d);
        for (row, token) in tokens.iter().map(|t| *t as usize).enumerate() {
            if token >= known {
                return Err(Error::input(format!("token {token} of a vocabulary of {known}")));
            }
            let values = self.weights.rows(&name, token..token + 1)?;
            values.iter().enumerate().for_each(|(k, v)| x[(row, k)] = *v);
        }
        let mut start = 0;
        let ranges = prompts.iter().map(|p| {
            start += p.len();
            start - p.len()..start
        });
        Ok(Stream { x, prompts: ranges.collect() })
    }

    /// Applies one decoder layer.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape than the others say, or in a number format that is not read here.
    pub fn layer(&self, layer: usize, stream: &mut Stream) -> Result<()> {
        let at = Some(layer);
        let normed = self.norm(&stream.x, &FIRST_NORM, at)?;
        let (q, k, v) =
            (self.project(&normed, &Q, at)?, self.project(&normed, &K, at)?, self.project(&normed, &V, at)?);
        let mixed = self.attention(q, k, &v, &stream.prompts)?;
        stream.x += self.project(&mixed, &O, at)?;
        let normed = self.norm(&stream.x, &SECOND_NORM, at)?;
        let mut hidden = self.project(&normed, &GATE, at)?;
        hidden.apply(|g| *g = self.shape.source.value(*g));
        let up = self.project(&normed, &UP, at)?;
        if up.shape() != hidden.shape() {
            return Err(Error::input(format!("layer {layer}: gate and up projections of different sizes")));
        }
        hidden.component_mul_assign(&up);
        let down = self.project(&hidden, &DOWN, at)?;
        if down.shape() != stream.x.shape() {
            return Err(Error::input(format!("layer {layer}: the MLP writes {} coordinates", down.ncols())));
        }
        stream.x += down;
        Ok(())
    }

    /// Logits [tokens, vocabulary] of some of the stream's rows, after the last layer.
    ///
    /// # Errors
    /// As [`Model::layer`].
    pub fn logits(&self, stream: &Stream, tokens: &[usize]) -> Result<DMatrix<f64>> {
        let mut all = DMatrix::zeros(tokens.len(), self.vocabulary()?);
        self.logits_by_piece(stream, tokens, |first, piece| all.columns_mut(first, piece.ncols()).copy_from(piece))?;
        Ok(all)
    }

    /// The same, a piece of the vocabulary at a time: its first token, and the logits [tokens, piece].
    ///
    /// # Errors
    /// As [`Model::layer`].
    pub fn logits_by_piece(
        &self,
        stream: &Stream,
        tokens: &[usize],
        each: impl FnMut(usize, &DMatrix<f64>),
    ) -> Result<()> {
        let normed = self.norm(&stream.x.select_rows(tokens), &LAST_NORM, None)?;
        let head = self.weights.name(&HEAD, None, "weight");
        let tied = || self.weights.name(&EMBEDDING, None, "weight");
        self.pieces(&normed, &if self.weights.contains(&head) { head } else { tied() }, each)
    }

    fn norm(&self, x: &DMatrix<f64>, name: &Name, layer: Option<usize>) -> Result<DMatrix<f64>> {
        let gain = self.weights.vector(&self.weights.name(name, layer, "weight"), x.ncols())?;
        let mut y = x.clone();
        for mut row in y.row_iter_mut() {
            let mean = row.norm_squared() / row.len() as f64;
            row /= (mean + self.shape.norm_eps).sqrt();
            row.iter_mut().zip(&gain).for_each(|(y, g)| *y *= g);
        }
        Ok(y)
    }

    /// x·Wᵀ, some of W's rows at a time: (first row, [n, rows]), in order.
    fn pieces(&self, x: &DMatrix<f64>, weight: &str, mut each: impl FnMut(usize, &DMatrix<f64>)) -> Result<()> {
        let (rows, width) = self.weights.dimensions(weight)?;
        if width != x.ncols() {
            return Err(Error::input(format!("tensor {} has rows of {width}, expected {}", quoted(weight), x.ncols())));
        }
        let piece = (PIECE / width.max(1)).max(1);
        let starts: Vec<usize> = (0..rows).step_by(piece).collect();
        for together in starts.chunks(rayon::current_num_threads()) {
            // A matrix that is stored row by row is its transpose stored column by column.
            let parts = together.par_iter().map(|start| {
                let range = *start..rows.min(start + piece);
                Ok(x * DMatrix::from_vec(width, range.len(), self.weights.rows(weight, range)?))
            });
            let parts = parts.collect::<Result<Vec<_>>>()?;
            together.iter().zip(&parts).for_each(|(start, part)| each(*start, part));
        }
        Ok(())
    }

    /// x·Wᵀ + b: [n, in] → [n, out]
    fn project(&self, x: &DMatrix<f64>, name: &Name, layer: Option<usize>) -> Result<DMatrix<f64>> {
        let weight = self.weights.name(name, layer, "weight");
        let mut y = DMatrix::zeros(x.nrows(), self.weights.dimensions(&weight)?.0);
        self.pieces(x, &weight, |first, part| y.columns_mut(first, part.ncols()).copy_from(part))?;
        let bias = self.weights.name(name, layer, "bias");
        if self.weights.contains(&bias) {
            let bias = self.weights.vector(&bias, y.ncols())?;
            y.column_iter_mut().zip(bias).for_each(|(mut c, b)| c.add_scalar_mut(b));
        }
        Ok(y)
    }

    fn attention(
        &self,
        mut q: DMatrix<f64>,
        mut k: DMatrix<f64>,
        v: &DMatrix<f64>,
        prompts: &[Range<usize>],
    ) -> Result<DMatrix<f64>> {
        let s = &self.shape;
        let (wide, narrow) = (s.heads * s.head_size, s.key_heads * s.head_size);
        if (q.ncols(), k.ncols(), v.ncols()) != (wide, narrow, narrow) {
            return Err(Error::input(format!(
                "projections to {}, {} and {}, expected {wide}, {narrow} and {narrow}",
                q.ncols(),
                k.ncols(),
                v.ncols()
            )));
        }
        prompts.iter().for_each(|p| (s.rotate(&mut q, p), s.rotate(&mut k, p)).0);
        let scale = 1.0 / (s.head_size as f64).sqrt();
        let mut out = DMatrix::zeros(q.nrows(), wide);
        for prompt in prompts {
            for head in 0..s.heads {
                let key_head = head / (s.heads / s.key_heads);
                let part = |m: &DMatrix<f64>, head: usize| {
                    m.view((prompt.start, head * s.head_size), (prompt.len(), s.head_size)).into_owned()
                };
                let mut scores = part(&q, head) * part(&k, key_head).transpose() * scale;
                for (i, mut row) in scores.row_iter_mut().enumerate() {
                    let largest = row.columns(0, i + 1).max();
                    row.iter_mut().enumerate().for_each(|(j, s)| *s = if j <= i { (*s - largest).exp() } else { 0.0 });
                    let sum = row.sum();
                    row /= sum;
                }
                let mixed = scores * part(v, key_head);
                out.view_mut((prompt.start, head * s.head_size), mixed.shape()).copy_from(&mixed);
            }
        }
        Ok(out)
    }
}

impl Shape {
    /// Rotary positions, counted from the start of the prompt.
    fn rotate(&self, x: &mut DMatrix<f64>, prompt: &Range<usize>) {
        let half = self.head_size / 2;
        for (position, row) in prompt.clone().enumerate() {
            for head in 0..x.ncols() / self.head_size {
                for (i, f) in self.frequencies.iter().enumerate() {
                    let (a, b) = if self.neighbours { (2 * i, 2 * i + 1) } else { (i, i + half) };
                    let (a, b) = (head * self.head_size + a, head * self.head_size + b);
                    let (sin, cos) = (position as f64 * f).sin_cos();
                    let (u, w) = (x[(row, a)], x[(row, b)]);
                    x[(row, a)] = u * cos - w * sin;
                    x[(row, b)] = w * cos + u * sin;
                }
            }
        }
    }

    fn check(self) -> Result<Shape> {
        let sizes = [self.hidden_size, self.layers, self.heads, self.key_heads, self.head_size];
        let whole = sizes.iter().all(|n| *n > 0) && self.heads.is_multiple_of(self.key_heads.max(1));
        let turns = self.frequencies.iter().all(|f| f.is_finite());
        if whole && turns && self.head_size.is_multiple_of(2) && self.norm_eps.is_finite() {
            return Ok(self);
        }
        Err(Error::input(format!(
            "{} layers of {} heads of {}, {} of keys: no decoder",
            self.layers, self.heads, self.head_size, self.key_heads
        )))
    }
}

impl Weights {
    fn name(&self, name: &Name, layer: Option<usize>, part: &str) -> String {
        match (self, layer) {
            (Weights::HuggingFace { .. }, Some(k)) => format!("model.layers.{k}.{}.{part}", name.hf),
            (Weights::HuggingFace { .. }, None) => format!("{}.{part}", name.hf),
            (Weights::Gguf(_), Some(k)) => format!("blk.{k}.{}.{part}", name.gguf),
            (Weights::Gguf(_), None) => format!("{}.{part}", name.gguf),
        }
    }

    fn contains(&self, name: &str) -> bool {
        match self {
            Weights::HuggingFace { index, .. } => index.contains_key(name),
            Weights::Gguf(file) => file.contains(name),
        }
    }

    fn file(&self, name: &str) -> Result<&TensorFile> {
        let Weights::HuggingFace { files, index } = self else { unreachable!("asked for HuggingFace's only") };
        index.get(name).map(|k| &files[*k]).ok_or_else(|| Error::input(format!("no tensor {}", quoted(name))))
    }

    /// Rows, and values of a row.
    fn dimensions(&self, name: &str) -> Result<(usize, usize)> {
        if let Weights::Gguf(file) = self {
            let info = file.tensor(name)?.info();
            return Ok((info.rows(), info.width()));
        }
        let tensor = self.file(name)?.tensor(name)?;
        match *tensor.shape() {
            [rows, width] => Ok((rows, width)),
            [width] => Ok((1, width)),
            _ => Err(Error::input(format!("tensor {} is no matrix", quoted(name)))),
        }
    }

    fn rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f64>> {
        let values = match self {
            Weights::Gguf(file) => file.tensor(name)?.rows(rows)?,
            Weights::HuggingFace { .. } => {
                let width = self.dimensions(name)?.1;
                let tensor = self.file(name)?.tensor(name)?;
                let (format, size) = (tensor.format(), tensor.format().bytes());
                let data = &tensor.data()[rows.start * width * size..rows.end * width * size];
                data.chunks_exact(size).filter_map(|b| format.read(b)).collect()
            }
        };
        if values.iter().all(|x| x.is_finite()) {
            Ok(values)
        } else {
            Err(Error::input(format!("tensor {} holds numbers that are not finite", quoted(name))))
        }
    }

    fn vector(&self, name: &str, length: usize) -> Result<Vec<f64>> {
        let (rows, width) = self.dimensions(name)?;
        if (rows, width) != (1, length) {
            return Err(Error::input(format!("tensor {} is [{rows}, {width}], not [{length}]", quoted(name))));
        }
        self.rows(name, 0..1)
    }
}

/// A size that a decoder can have.
fn plausible(n: u64) -> Option<usize> {
    usize::try_from(n).ok().filter(|n| *n <= 1 << 24)
}

/// θ^(−2i/n)
fn frequencies(theta: f64, head_size: usize) -> Vec<f64> {
    (0..head_size / 2).map(|i| theta.powf(-2.0 * i as f64 / head_size as f64)).collect()
}

fn hugging_face(dir: &Path) -> Result<Model> {
    let json = |name: &str| -> Result<Json> {
        let path = dir.join(name);
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(format!("cannot read {name}"), e))?;
        serde_json::from_str(&text).map_err(|e| Error::input(format!("{name}: {e}")))
    };
    let config = json("config.json")?;
    let (files, index) = if dir.join("model.safetensors").is_file() {
        let file = TensorFile::open(dir.join("model.safetensors"))?;
        let index = file.names().into_iter().map(|n| (n, 0)).collect();
        (vec![file], index)
    } else {
        let map = json("model.safetensors.index.json")?;
        let map = map["weight_map"].as_object().ok_or_else(|| Error::input("the index has no weight_map"))?;
        let (mut files, mut names, mut index) = (Vec::new(), Vec::new(), HashMap::new());
        for (tensor, shard) in map {
            let shard = shard.as_str().filter(|s| !s.contains(['/', '\\'])).unwrap_or_default();
            let known = names.iter().position(|n| n == shard);
            if known.is_none() {
                files.push(TensorFile::open(dir.join(shard))?);
                names.push(shard.to_string());
            }
            index.insert(tensor.clone(), known.unwrap_or(files.len() - 1));
        }
        (files, index)
    };
    Ok(Model { shape: shape(&config).at(|| "config.json".into())?, weights: Weights::HuggingFace { files, index } })
}

fn shape(config: &Json) -> Result<Shape> {
    let family = config["model_type"].as_str().unwrap_or_default();
    if !["llama", "mistral", "qwen2"].contains(&family) {
        return Err(Error::unsupported(format!("model_type {}: no forward pass of this family", quoted(family))));
    }
    let size = |key: &str| config[key].as_u64().and_then(plausible);
    let need = |key: &str| size(key).ok_or_else(|| Error::input(format!("no size {key}")));
    let (hidden_size, heads) = (need("hidden_size")?, need("num_attention_heads")?);
    let head_size = size("head_dim").unwrap_or(hidden_size / heads.max(1));
    let source = config["hidden_act"].as_str().unwrap_or("silu").parse()?;
    let norm_eps = config["rms_norm_eps"].as_f64().ok_or_else(|| Error::input("no rms_norm_eps"))?;
    let first = &config["bos_token_id"];
    Shape {
        hidden_size,
        layers: need("num_hidden_layers")?,
        heads,
        key_heads: size("num_key_value_heads").unwrap_or(heads),
        head_size,
        source,
        norm_eps,
        frequencies: rotary(config, head_size)?,
        neighbours: false,
        first_token: first.as_u64().or_else(|| first[0].as_u64()).and_then(|t| u32::try_from(t).ok()),
    }
    .check()
}

/// The rotary embedding, as transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`) write it.
fn rotary(config: &Json, head_size: usize) -> Result<Vec<f64>> {
    let newer = &config["rope_parameters"];
    let scaling = if newer.is_object() { newer } else { &config["rope_scaling"] };
    let kind = scaling["rope_type"].as_str().or(scaling["type"].as_str()).unwrap_or("default");
    let number = |key: &str| scaling[key].as_f64().filter(|x| *x > 0.0);
    let need = |key: &str| number(key).ok_or_else(|| Error::input(format!("rotary embedding '{kind}' without {key}")));
    let theta = number("rope_theta").or(config["rope_theta"].as_f64()).unwrap_or(10_000.0);
    if config["partial_rotary_factor"].as_f64().or(number("partial_rotary_factor")).is_some_and(|f| f != 1.0) {
        return Err(Error::unsupported("a rotary embedding of a part of each head"));
    }
    let mut frequencies = frequencies(theta, head_size);
    match kind {
        "default" => {}
        "linear" => {
            let factor = need("factor")?;
            frequencies.iter_mut().for_each(|f| *f /= factor);
        }
        "llama3" => {
            let (factor, context) = (need("factor")?, need("original_max_position_embeddings")?);
            let (low, high) = (need("low_freq_factor")?, need("high_freq_factor")?);
            for f in &mut frequencies {
                // How often the pair turns within the original context: slow ones are stretched, fast ones kept.
                let turns = context * *f / std::f64::consts::TAU;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                *f *= kept + (1.0 - kept) / factor;
            }
        }
        _ => return Err(Error::unsupported(format!("the rotary embedding {}", quoted(kind)))),
    }
    Ok(frequencies)
}

fn gguf(path: &Path) -> Result<Model> {
    let file = GgufFile::open(path)?;
    let shape = gguf_shape(&file).at(|| file.place().to_string())?;
    Ok(Model { shape, weights: Weights::Gguf(file) })
}

fn gguf_shape(file: &GgufFile) -> Result<Shape> {
    let architecture = file.value("general.architecture");
    let architecture = architecture.as_ref().and_then(Value::as_text).unwrap_or_default();
    if architecture != "llama" {
        return Err(Error::unsupported(format!("architecture {}: no forward pass of it", quoted(architecture))));
    }
    let size = |key: &str| file.value(key).and_then(|v| v.as_u64()).and_then(plausible);
    let need = |key: &str| size(key).ok_or_else(|| Error::input(format!("no size {key}")));
    let number = |key: &str| file.value(key).and_then(|v| v.as_f64());
    let (hidden_size, heads) = (need("llama.embedding_length")?, need("llama.attention.head_count")?);
    let head_size = size("llama.attention.key_length").unwrap_or(hidden_size / heads.max(1));
    let eps = "llama.attention.layer_norm_rms_epsilon";
    let norm_eps = number(eps).ok_or_else(|| Error::input(format!("no number {eps}")))?;
    let mut frequencies = frequencies(number("llama.rope.freq_base").unwrap_or(10_000.0), head_size);
    let scaling = file.value("llama.rope.scaling.type");
    match scaling.as_ref().and_then(Value::as_text).unwrap_or("none") {
        "none" | "linear" => {
            let factor = number("llama.rope.scaling.factor").or(number("llama.rope.scale_linear"));
            let factor = factor.filter(|f| *f > 0.0).unwrap_or(1.0);
            frequencies.iter_mut().for_each(|f| *f /= factor);
        }
        other => return Err(Error::unsupported(format!("the rotary embedding {}", quoted(other)))),
    }
    // Llama 3's stretching of slow pairs.
    if file.contains("rope_freqs.weight") {
        let factors = file.tensor("rope_freqs.weight")?.values()?;
        frequencies.iter_mut().zip(factors).for_each(|(f, by)| *f /= by);
    }
    Shape {
        hidden_size,
        layers: need("llama.block_count")?,
        heads,
        key_heads: size("llama.attention.head_count_kv").unwrap_or(heads),
        head_size,
        source: Activation::Silu,
        norm_eps,
        frequencies,
        neighbours: true,
        first_token: size("tokenizer.ggml.bos_token_id").and_then(|t| u32::try_from(t).ok()),
    }
    .check()
}
