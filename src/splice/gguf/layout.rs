//! What a head says of a decoder, what each tensor is to it, and what a splice makes of both.

use std::borrow::Cow;
use std::collections::BTreeSet;

use nalgebra::{DMatrix, DVector};

use crate::carriers::{Carriers, Kind};
use crate::error::{Error, Result};
use crate::gguf::{GgmlType, GgufFile, TensorInfo, Value};
use crate::host::InsertedLayer;
use crate::tensors::quoted;

const ARCHITECTURE: &str = "general.architecture";
const LAYERS: &str = "llama.block_count";
const HIDDEN: &str = "llama.embedding_length";
const EPS: &str = "llama.attention.layer_norm_rms_epsilon";
/// What is the hidden size over the number of heads where it is not given.
const HEAD_SIZES: [&str; 3] =
    ["llama.attention.key_length", "llama.attention.value_length", "llama.rope.dimension_count"];

/// Sizes of a decoder of architecture `llama`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Layout {
    pub(super) layers: usize,
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    pub(super) heads: usize,
    pub(super) key_heads: usize,
    pub(super) head_size: usize,
    pub(super) eps: f64,
}

/// What becomes of a tensor where the hidden size grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// it reads the stream: blocks of zeros at the end of each row
    Reader,
    /// it writes the stream: rows of zeros at the end
    Writer,
    /// a norm's gain: scaled, zeros at the end
    Gain,
    /// it is added to the stream: zeros at the end
    Bias,
    /// it knows nothing of the stream
    Other,
}

/// Tensors of every layer, but for queries, keys and values.
const REQUIRED: [&str; 6] = [
    "attn_norm.weight",
    "attn_output.weight",
    "ffn_norm.weight",
    "ffn_gate.weight",
    "ffn_up.weight",
    "ffn_down.weight",
];

/// The layer that a tensor belongs to, and its name there.
pub(super) fn split(name: &str) -> (Option<usize>, &str) {
    let parts = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    match parts.and_then(|(layer, stem)| layer.parse().ok().map(|layer| (layer, stem))) {
        Some((layer, stem)) => (Some(layer), stem),
        None => (None, name),
    }
}

impl Layout {
    /// Reads the sizes and checks that the tensors are those of such a decoder.
    ///
    /// Errors: another architecture, a mixture of experts, sizes that differ from layer to layer, a part of a split file,
    /// tensors that are missing or of another shape.
    pub(super) fn parse(head: &GgufFile) -> Result<Layout> {
        let architecture = head.need(ARCHITECTURE, "a text", |v| v.as_text().map(String::from))?;
        if architecture != "llama" {
            return Err(Error::unsupported(format!("architecture {}", quoted(&architecture))).help(
                "GGUF files of architecture 'llama' can be spliced: llama.cpp reads the inserted layer's biases there",
            ));
        }
        let number = |key: &str| head.value(key).and_then(|v| uniform(&v)).and_then(|n| usize::try_from(n).ok());
        if let Some(parts) = number("split.count").filter(|n| *n > 1) {
            return Err(Error::unsupported(format!("one of {parts} parts of a split file"))
                .help("merge them first: llama-gguf-split --merge"));
        }
        if number("llama.expert_count").is_some_and(|n| n > 0) {
            return Err(Error::unsupported("a mixture of experts: every layer's MLP would have to be one"));
        }
        let need = |key: &str| {
            let size = number(key).filter(|n| (1..=1 << 24).contains(n));
            size.ok_or_else(|| Error::input(format!("no metadata {key} that holds one size, the same for all layers")))
        };
        let (hidden, heads) = (need(HIDDEN)?, need("llama.attention.head_count")?);
        let layout = Layout {
            layers: need(LAYERS)?,
            hidden,
            intermediate: need("llama.feed_forward_length")?,
            heads,
            key_heads: number("llama.attention.head_count_kv").unwrap_or(heads),
            head_size: number(HEAD_SIZES[0]).unwrap_or(hidden / heads),
            eps: head.need(EPS, "a number", |v| v.as_f64())?,
        };
        if HEAD_SIZES.iter().filter_map(|key| number(key)).any(|n| n != layout.head_size) {
            return Err(Error::unsupported("keys, values and rotary embeddings of different sizes"));
        }
        layout.expect(head)?;
        Ok(layout)
    }

    fn expect(&self, head: &GgufFile) -> Result<()> {
        let names: BTreeSet<&str> = head.tensors().iter().map(|t| t.name.as_str()).collect();
        let missing = |name: String| Err(Error::input(format!("tensor {} is missing", quoted(&name))));
        for layer in 0..self.layers {
            let has = |stem: &str| names.contains(format!("blk.{layer}.{stem}").as_str());
            let queries: &[&str] =
                if has("attn_qkv.weight") { &[] } else { &["attn_q.weight", "attn_k.weight", "attn_v.weight"] };
            if let Some(stem) = REQUIRED.iter().chain(queries).find(|stem| !has(stem)) {
                return missing(format!("blk.{layer}.{stem}"));
            }
        }
        if let Some(name) = ["token_embd.weight", "output_norm.weight"].iter().find(|n| !names.contains(**n)) {
            return missing(name.to_string());
        }
        for t in head.tensors() {
            let (layer, stem) = split(&t.name);
            if layer.is_some_and(|l| l >= self.layers) {
                return Err(Error::input(format!("tensor {} of a model of {} layers", quoted(&t.name), self.layers)));
            }
            let Some((_, dims)) = self.slot(stem) else { continue };
            // A vocabulary has any size.
            let free = ["token_embd.weight", "output.weight"].contains(&stem);
            if t.dims.len() != dims.len() || t.dims.iter().zip(&dims).any(|(a, b)| a != b && !(free && *b == 0)) {
                let what = format!("tensor {} is {:?}, the metadata say {dims:?}", quoted(&t.name), t.dims);
                return Err(Error::input(what));
            }
        }
        Ok(())
    }

    /// What a tensor is, and its dimensions, fastest first; 0 is the vocabulary. `None`: unknown here.
    pub(super) fn slot(&self, stem: &str) -> Option<(Role, Vec<usize>)> {
        let (d, m) = (self.hidden, self.intermediate);
        let (q, k) = (self.heads * self.head_size, self.key_heads * self.head_size);
        Some(match stem {
            "token_embd.weight" | "output.weight" => (Role::Reader, vec![d, 0]),
            "output_norm.weight" | "attn_norm.weight" | "ffn_norm.weight" => (Role::Gain, vec![d]),
            "attn_q.weight" => (Role::Reader, vec![d, q]),
            "attn_k.weight" | "attn_v.weight" => (Role::Reader, vec![d, k]),
            "attn_qkv.weight" => (Role::Reader, vec![d, q + 2 * k]),
            "attn_q.bias" => (Role::Other, vec![q]),
            "attn_k.bias" | "attn_v.bias" => (Role::Other, vec![k]),
            "attn_qkv.bias" => (Role::Other, vec![q + 2 * k]),
            "attn_output.weight" => (Role::Writer, vec![q, d]),
            "ffn_gate.weight" | "ffn_up.weight" => (Role::Reader, vec![d, m]),
            "ffn_gate.bias" | "ffn_up.bias" => (Role::Other, vec![m]),
            "ffn_down.weight" => (Role::Writer, vec![m, d]),
            "attn_output.bias" | "ffn_down.bias" => (Role::Bias, vec![d]),
            "rope_freqs.weight" => (Role::Other, vec![self.head_size / 2]),
            _ => return None,
        })
    }

    /// What a tensor is where the hidden size grows. Scales of a whole tensor and rotary factors do not change.
    fn role(&self, stem: &str) -> Option<Role> {
        let other = ["scale", "input_scale"].iter().any(|end| stem.ends_with(&format!(".{end}")))
            || stem.starts_with("rope_factors");
        self.slot(stem).map(|s| s.0).or(other.then_some(Role::Other))
    }

    /// The layout of the spliced model.
    pub(super) fn spliced(&self, carriers: &Carriers, inserted: usize) -> Layout {
        let eps = f64::from((self.eps * carriers.other_eps()) as f32);
        let eps = if carriers.kind == Kind::Padded { eps } else { self.eps };
        Layout { layers: self.layers + inserted, hidden: carriers.hidden_size, eps, ..*self }
    }

    /// Rows that grow must remain whole blocks.
    pub(super) fn multiple(&self, head: &GgufFile) -> usize {
        let reads = |t: &&TensorInfo| self.role(split(&t.name).1) == Some(Role::Reader);
        // Every block size but 1 is a multiple of 32 and a power of two: the largest serves all.
        head.tensors().iter().filter(reads).map(|t| t.format.block).max().unwrap_or(1).max(32)
    }
}

/// A number, or the number that all elements of an array are.
fn uniform(value: &Value<'_>) -> Option<u64> {
    let Some(elements) = value.elements() else { return value.as_u64() };
    let first = elements.first()?.as_u64()?;
    elements.iter().all(|e| e.as_u64() == Some(first)).then_some(first)
}

/// The metadata of the spliced file, in the source's order. `origins`: the source's layer that each layer is or follows.
pub(super) fn metadata<'a>(
    head: &'a GgufFile,
    from: &Layout,
    to: &Layout,
    origins: &[usize],
) -> Result<Vec<(Cow<'a, str>, Value<'a>)>> {
    let mut out = Vec::new();
    for (key, value) in head.metadata() {
        let per_layer = key.starts_with("llama.") && value.len() == Some(from.layers as u64);
        let value = match key {
            LAYERS => Value::u32(to.layers as u32),
            HIDDEN => Value::u32(to.hidden as u32),
            EPS if to.hidden != from.hidden => Value::f32(to.eps as f32),
            _ if per_layer => {
                value.select(origins).ok_or_else(|| Error::input(format!("metadata {} cannot be read", quoted(key))))?
            }
            _ => value,
        };
        out.push((Cow::Borrowed(key), value));
        // What was the hidden size over the number of heads must be said now.
        if key == HIDDEN && to.hidden != from.hidden {
            let absent = HEAD_SIZES.iter().filter(|key| head.value(key).is_none());
            out.extend(absent.map(|key| (Cow::Borrowed(*key), Value::u32(from.head_size as u32))));
        }
    }
    Ok(out)
}

/// What a tensor of the spliced file holds.
#[derive(Clone, Debug)]
pub(super) enum Content<'a> {
    /// a tensor of the source; in zeros where it is wider or longer
    Source { name: String, role: Role, width: usize, rows: usize },
    /// numbers of an inserted layer, in F32; zeros beyond
    Matrix(&'a DMatrix<f64>),
    /// the same
    Vector(Cow<'a, [f64]>),
    /// zeros
    Zeros,
}

/// One tensor of the spliced file.
#[derive(Clone, Debug)]
pub(super) struct Entry<'a> {
    pub(super) info: TensorInfo,
    pub(super) content: Content<'a>,
}

impl Entry<'_> {
    /// How many bytes at the start of a row come from the source.
    pub(super) fn copied(&self, row: usize) -> usize {
        match &self.content {
            Content::Source { width, rows, .. } if row < *rows => {
                width / self.info.format.block * self.info.format.bytes
            }
            _ => 0,
        }
    }

    /// The bytes of a row that the source does not determine.
    pub(super) fn rest(&self, row: usize, out: &mut Vec<u8>) {
        out.clear();
        let mut add = |x: f64| out.extend((x as f32).to_le_bytes());
        match &self.content {
            Content::Matrix(m) if row < m.nrows() => m.row(row).iter().for_each(|x| add(*x)),
            Content::Vector(v) => v.iter().for_each(|x| add(*x)),
            _ => {}
        }
        out.resize(self.info.row_bytes() - self.copied(row), 0);
    }
}

/// Every tensor of the spliced file: the source's in its order, an inserted layer's after those of the layer that it
/// follows. `layers`: what each layer is, a layer of the source or an inserted one.
///
/// Errors: padding, where a tensor's part in it is not known or a gain is not F32.
pub(super) fn entries<'a>(
    head: &GgufFile,
    from: &Layout,
    to: &Layout,
    sites: &[(usize, &'a [InsertedLayer])],
) -> Result<Vec<Entry<'a>>> {
    let inserted_before = |layer: usize| sites.iter().filter(|s| s.0 < layer).map(|s| s.1.len()).sum::<usize>();
    let last = |layer: usize| head.tensors().iter().rposition(|t| split(&t.name).0 == Some(layer));
    let mut entries = Vec::new();
    for (k, info) in head.tensors().iter().enumerate() {
        let (layer, stem) = split(&info.name);
        let name = match layer {
            Some(l) => format!("blk.{}.{stem}", l + inserted_before(l)),
            None => info.name.clone(),
        };
        entries.push(source(info, name, from, to)?);
        let here = sites.iter().filter(|s| last(s.0) == Some(k));
        for (k, (layer, inserted)) in here.flat_map(|(layer, all)| all.iter().map(move |l| (*layer, l))).enumerate() {
            entries.extend(insert(layer + inserted_before(layer) + 1 + k, inserted, to));
        }
    }
    Ok(entries)
}

/// A tensor of the source in the spliced file.
fn source(info: &TensorInfo, name: String, from: &Layout, to: &Layout) -> Result<Entry<'static>> {
    let (width, rows) = (info.width(), info.rows());
    let mut spliced = TensorInfo { name, ..info.clone() };
    let mut role = Role::Other;
    if from.hidden != to.hidden {
        let stem = split(&info.name).1;
        role = from.role(stem).ok_or_else(|| {
            Error::unsupported(format!("tensor {}: what padding makes of it is not known", quoted(&info.name)))
                .help("use --carriers borrowed, which leaves it as it is")
        })?;
        match role {
            Role::Reader => spliced.dims[0] = to.hidden,
            Role::Writer => spliced.dims[1] = to.hidden,
            Role::Bias => spliced.dims[0] = to.hidden,
            Role::Gain if info.format == GgmlType::F32 => spliced.dims[0] = to.hidden,
            Role::Gain => {
                return Err(Error::unsupported(format!(
                    "gains {} in {}: padding rescales them, and that takes F32",
                    quoted(&info.name),
                    info.format.name
                ))
                .help("use --carriers borrowed, which leaves them as they are"));
            }
            Role::Other => {}
        }
    }
    Ok(Entry { info: spliced, content: Content::Source { name: info.name.clone(), role, width, rows } })
}

/// The tensors of an inserted layer: those that every layer has, and the biases that it needs.
fn insert<'a>(layer: usize, inserted: &'a InsertedLayer, to: &Layout) -> Vec<Entry<'a>> {
    let mlp = &inserted.mlp;
    let slice = |v: &'a Option<DVector<f64>>| v.as_ref().map(|v| Content::Vector(v.as_slice().into()));
    let writes = inserted.writer.iter().any(|x| *x != 0.0);
    let tensors = [
        // Its attention is 0: any gain would do, and 1 is plain.
        ("attn_norm.weight", Some(Content::Vector(vec![1.0; to.hidden].into()))),
        ("attn_q.weight", Some(Content::Zeros)),
        ("attn_k.weight", Some(Content::Zeros)),
        ("attn_v.weight", Some(Content::Zeros)),
        ("attn_output.weight", Some(Content::Zeros)),
        ("attn_output.bias", writes.then(|| Content::Vector(inserted.writer.as_slice().into()))),
        ("ffn_norm.weight", Some(Content::Vector(inserted.gain.as_slice().into()))),
        ("ffn_gate.weight", Some(Content::Matrix(&mlp.gate))),
        ("ffn_gate.bias", slice(&mlp.gate_bias)),
        ("ffn_up.weight", mlp.up.as_ref().map(Content::Matrix)),
        ("ffn_up.bias", slice(&mlp.up_bias)),
        ("ffn_down.weight", Some(Content::Matrix(&mlp.down))),
        ("ffn_down.bias", slice(&mlp.down_bias)),
    ];
    let entry = |(stem, content): (&str, Option<Content<'a>>)| {
        let dims = to.slot(stem)?.1;
        Some(Entry {
            info: TensorInfo { name: format!("blk.{layer}.{stem}"), dims, format: GgmlType::F32 },
            content: content?,
        })
    };
    tensors.into_iter().filter_map(entry).collect()
}
