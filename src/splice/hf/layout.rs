//! What a configuration says of a checkpoint's tensors: their names, their shapes, and which of them there are.
//!
//! One table serves reading, padding, inserting and checking.

use serde_json::{Map, Value, json};

use crate::activation::Activation;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::tensors::quoted;

/// Decoders whose layers compute what a Llama layer computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Mistral,
    Qwen2,
}

const FAMILIES: [(&str, &str, Family); 3] = [
    ("LlamaForCausalLM", "llama", Family::Llama),
    ("MistralForCausalLM", "mistral", Family::Mistral),
    ("Qwen2ForCausalLM", "qwen2", Family::Qwen2),
];

impl Family {
    pub(super) fn architecture(self) -> &'static str {
        FAMILIES.iter().find(|f| f.2 == self).map_or("", |f| f.0)
    }
}

/// What an axis of a tensor counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Axis {
    Vocabulary,
    Hidden,
    Intermediate,
    Query,
    Key,
}
use Axis::{Hidden, Intermediate, Key, Query, Vocabulary};

/// On what a tensor's presence depends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    Nothing,
    QkvBias,
    OutputBias,
    MlpBias,
    Head,
}

/// A kind of tensor.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) name: &'static str,
    pub(super) axes: &'static [Axis],
    needs: Needs,
}

impl Slot {
    /// Is it the gain of a norm?
    pub(super) fn is_gain(&self) -> bool {
        self.name.ends_with("norm.weight")
    }
}

const fn slot(name: &'static str, axes: &'static [Axis], needs: Needs) -> Slot {
    Slot { name, axes, needs }
}

pub(super) const EMBEDDING: Slot = slot("model.embed_tokens.weight", &[Vocabulary, Hidden], Needs::Nothing);
const FINAL_NORM: Slot = slot("model.norm.weight", &[Hidden], Needs::Nothing);
const HEAD: Slot = slot("lm_head.weight", &[Vocabulary, Hidden], Needs::Head);

pub(super) const O_BIAS: &str = "self_attn.o_proj.bias";
pub(super) const O_WEIGHT: &str = "self_attn.o_proj.weight";
pub(super) const MLP_NORM: &str = "post_attention_layernorm.weight";
pub(super) const ATTENTION_NORM: &str = "input_layernorm.weight";
pub(super) const DOWN_WEIGHT: &str = "mlp.down_proj.weight";

const LAYER: [Slot; 16] = [
    slot(ATTENTION_NORM, &[Hidden], Needs::Nothing),
    slot("self_attn.q_proj.weight", &[Query, Hidden], Needs::Nothing),
    slot("self_attn.q_proj.bias", &[Query], Needs::QkvBias),
    slot("self_attn.k_proj.weight", &[Key, Hidden], Needs::Nothing),
    slot("self_attn.k_proj.bias", &[Key], Needs::QkvBias),
    slot("self_attn.v_proj.weight", &[Key, Hidden], Needs::Nothing),
    slot("self_attn.v_proj.bias", &[Key], Needs::QkvBias),
    slot(O_WEIGHT, &[Hidden, Query], Needs::Nothing),
    slot(O_BIAS, &[Hidden], Needs::OutputBias),
    slot(MLP_NORM, &[Hidden], Needs::Nothing),
    slot("mlp.gate_proj.weight", &[Intermediate, Hidden], Needs::Nothing),
    slot("mlp.gate_proj.bias", &[Intermediate], Needs::MlpBias),
    slot("mlp.up_proj.weight", &[Intermediate, Hidden], Needs::Nothing),
    slot("mlp.up_proj.bias", &[Intermediate], Needs::MlpBias),
    slot(DOWN_WEIGHT, &[Hidden, Intermediate], Needs::Nothing),
    slot("mlp.down_proj.bias", &[Hidden], Needs::MlpBias),
];

/// One tensor of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Place {
    pub(super) layer: Option<usize>,
    pub(super) slot: &'static Slot,
}

impl Place {
    pub(super) fn name(&self) -> String {
        match self.layer {
            Some(layer) => layer_name(layer, self.slot.name),
            None => self.slot.name.to_string(),
        }
    }
}

pub(super) fn layer_name(layer: usize, slot: &str) -> String {
    format!("model.layers.{layer}.{slot}")
}

/// The shape of a model.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Layout {
    pub(super) family: Family,
    pub(super) vocabulary: usize,
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) key_heads: usize,
    pub(super) head_dim: usize,
    pub(super) activation: Activation,
    pub(super) eps: f64,
    pub(super) tied: bool,
    /// is there an lm_head.weight? Where it is tied there need not be one.
    pub(super) head: bool,
    pub(super) qkv_bias: bool,
    pub(super) output_bias: bool,
    pub(super) mlp_bias: bool,
    /// the number format that the configuration asks engines to load the model in
    pub(super) dtype: Option<Format>,
}

/// A configuration's fields, read with care.
struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    /// null counts as absent, as it does in Python.
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|v| !v.is_null())
    }

    fn count(&self, name: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            // Far more than any model has, and products stay in range.
            Some(n) if (1..=1 << 24).contains(&n) => Ok(Some(n)),
            _ => Err(Error::input(format!("{name} must be a positive integer, not {}", quoted(&value.to_string())))),
        }
    }

    fn needed(&self, name: &str) -> Result<usize> {
        self.count(name)?.ok_or_else(|| Error::input(format!("{name} is missing")))
    }

    fn flag(&self, name: &str) -> Result<bool> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(b)) => Ok(*b),
            Some(v) => Err(Error::input(format!("{name} must be true or false, not {}", quoted(&v.to_string())))),
        }
    }

    fn text(&self, name: &str) -> Result<Option<&str>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(v) => Err(Error::input(format!("{name} must be a string, not {}", quoted(&v.to_string())))),
        }
    }
}

impl Layout {
    /// Reads a configuration. Errors: another family, whatever is not a plain Llama layer, fields that contradict each other.
    pub(super) fn parse(config: &Map<String, Value>) -> Result<Layout> {
        let fields = Fields(config);
        let family = family(&fields)?;
        for (name, what) in [
            ("quantization_config", "the weights are quantised (quantization_config)"),
            ("compression_config", "the weights are compressed (compression_config)"),
            ("auto_map", "the model brings code of its own (auto_map)"),
        ] {
            if fields.get(name).is_some() {
                let help = match name {
                    "auto_map" => "only the stock architectures can be spliced: what other code computes is not known",
                    _ => {
                        "splice the original checkpoint in f32, bf16 or f16, and quantise the result if you must; where the \
                         weights are dequantised already, remove the entry from config.json"
                    }
                };
                return Err(Error::unsupported(what).help(help));
            }
        }
        if let Some(types) = fields.get("layer_types").and_then(Value::as_array)
            && let Some(other) = types.iter().find(|t| t.as_str() != Some("full_attention"))
        {
            return Err(Error::unsupported(format!("a layer of type {other}: only full attention can be relabelled")));
        }
        let layers = fields.needed("num_hidden_layers")?;
        if layers > 10_000 {
            return Err(Error::input(format!("num_hidden_layers = {layers} is no model's")));
        }
        let heads = fields.needed("num_attention_heads")?;
        let hidden = fields.needed("hidden_size")?;
        let head_dim = match fields.count("head_dim")? {
            Some(n) => n,
            None if hidden % heads == 0 => hidden / heads,
            None => return Err(Error::input(format!("hidden_size {hidden} is no multiple of {heads} heads"))),
        };
        let key_heads = match (fields.count("num_key_value_heads")?, family) {
            (Some(n), _) => n,
            (None, Family::Llama) => heads,
            // Their defaults are constants of other models.
            (None, _) => return Err(Error::input("num_key_value_heads is missing")),
        };
        if heads % key_heads != 0 {
            return Err(Error::input(format!(
                "{heads} attention heads are no multiple of {key_heads} key and value heads"
            )));
        }
        let activation: Activation = fields.text("hidden_act")?.unwrap_or("silu").parse()?;
        let eps = match fields.get("rms_norm_eps") {
            None => 1e-6,
            Some(v) => v
                .as_f64()
                .filter(|x| (0.0..1.0).contains(x))
                .ok_or_else(|| Error::input(format!("rms_norm_eps = {v} is no small positive number")))?,
        };
        let dtype = match (fields.text("dtype")?, fields.text("torch_dtype")?) {
            (None, None) | (Some("auto"), _) | (None, Some("auto")) => None,
            (Some(t), _) | (None, Some(t)) => Some(t.parse::<Format>()?),
        };
        let attention_bias = fields.flag("attention_bias")?;
        if attention_bias && family != Family::Llama {
            return Err(Error::unsupported(format!("attention_bias in a {}", family.architecture())));
        }
        Ok(Layout {
            family,
            vocabulary: fields.needed("vocab_size")?,
            hidden,
            intermediate: fields.needed("intermediate_size")?,
            layers,
            heads,
            key_heads,
            head_dim,
            activation,
            eps,
            tied: fields.flag("tie_word_embeddings")?,
            head: !fields.flag("tie_word_embeddings")?,
            qkv_bias: attention_bias || family == Family::Qwen2,
            output_bias: attention_bias,
            mlp_bias: family == Family::Llama && fields.flag("mlp_bias")?,
            dtype,
        })
    }

    /// The same model with `inserted` layers more, for a hidden size that may have grown.
    pub(super) fn spliced(&self, hidden: usize, inserted: usize, mlp_bias: bool) -> Layout {
        Layout {
            family: Family::Llama,
            hidden,
            layers: self.layers + inserted,
            qkv_bias: true,
            output_bias: true,
            mlp_bias: self.mlp_bias || mlp_bias,
            ..self.clone()
        }
    }

    /// Every tensor, in the model's own order.
    pub(super) fn places(&self) -> Vec<Place> {
        let top = |slot: &'static Slot| Place { layer: None, slot };
        let layers = (0..self.layers).flat_map(|l| LAYER.iter().map(move |slot| Place { layer: Some(l), slot }));
        let all = std::iter::once(top(&EMBEDDING)).chain(layers).chain([top(&FINAL_NORM), top(&HEAD)]);
        all.filter(|p| self.has(p.slot)).collect()
    }

    /// Does a layer of this model have such a tensor?
    pub(super) fn has(&self, slot: &Slot) -> bool {
        match slot.needs {
            Needs::Nothing => true,
            Needs::QkvBias => self.qkv_bias,
            Needs::OutputBias => self.output_bias,
            Needs::MlpBias => self.mlp_bias,
            Needs::Head => self.head,
        }
    }

    /// A tensor's shape.
    pub(super) fn shape(&self, slot: &Slot) -> Vec<usize> {
        let length = |axis: &Axis| match axis {
            Vocabulary => self.vocabulary,
            Hidden => self.hidden,
            Intermediate => self.intermediate,
            Query => self.heads * self.head_dim,
            Key => self.key_heads * self.head_dim,
        };
        slot.axes.iter().map(length).collect()
    }

    /// Numbers of a tensor.
    pub(super) fn numbers(&self, slot: &Slot) -> u64 {
        self.shape(slot).iter().map(|n| *n as u64).product()
    }
}

/// The family, if a layer of this configuration computes what a Llama layer does.
fn family(fields: &Fields<'_>) -> Result<Family> {
    let known = || {
        let names: Vec<&str> = FAMILIES.iter().map(|f| f.0).collect();
        format!("checkpoints that can be spliced: {}", names.join(", "))
    };
    let architecture = match fields.get("architectures").and_then(Value::as_array).map(Vec::as_slice) {
        Some([Value::String(a)]) => a,
        _ => return Err(Error::input("architectures does not name one architecture").help(known())),
    };
    let Some((_, model_type, family)) = FAMILIES.iter().find(|f| f.0 == architecture) else {
        return Err(Error::unsupported(format!("the architecture {}", quoted(architecture))).help(known()));
    };
    if fields.text("model_type")?.is_some_and(|t| t != *model_type) {
        return Err(Error::input(format!("architecture {architecture}, but another model_type")).help(known()));
    }
    match family {
        Family::Llama => {}
        Family::Mistral => match fields.0.get("sliding_window") {
            Some(Value::Null) => {}
            // Transformers' own default is a window of 4096.
            None => {
                return Err(Error::unsupported("a Mistral model without sliding_window has a window of 4096")
                    .help("where the model has none, write \"sliding_window\": null in config.json"));
            }
            Some(window) => {
                return Err(Error::unsupported(format!("attention with a sliding window of {window}"))
                    .help("Llama layers attend to everything: only models without a window can be written as Llama"));
            }
        },
        Family::Qwen2 => {
            if fields.flag("use_sliding_window")? {
                return Err(Error::unsupported("attention with a sliding window (use_sliding_window)")
                    .help("Llama layers attend to everything: only models without a window can be written as Llama"));
            }
        }
    }
    Ok(*family)
}

/// The spliced checkpoint's configuration. `origins`: for each of its layers, the source's layer that it is or follows.
pub(super) fn config(
    source: &Map<String, Value>,
    from: &Layout,
    to: &Layout,
    eps: f64,
    origins: &[usize],
) -> Map<String, Value> {
    let mut config = source.clone();
    for (name, value) in &mut config {
        // Whatever has one entry a layer; lists of token ids may have that length by chance.
        let tokens = name.contains("token") || name.ends_with("_ids") || name == "architectures";
        if let (Value::Array(entries), false) = (value, tokens)
            && entries.len() == from.layers
        {
            *entries = origins.iter().map(|l| entries[*l].clone()).collect();
        }
    }
    let mut set = |name: &str, value: Value| config.insert(name.into(), value);
    set("num_hidden_layers", json!(to.layers));
    set("attention_bias", json!(true));
    if to.mlp_bias {
        set("mlp_bias", json!(true));
    }
    if to.hidden != from.hidden {
        set("hidden_size", json!(to.hidden));
        set("head_dim", json!(from.head_dim));
        set("rms_norm_eps", json!(eps));
    }
    if from.family != Family::Llama {
        set("architectures", json!(["LlamaForCausalLM"]));
        set("model_type", json!("llama"));
        // What Llama's defaults would change is written out.
        set("num_key_value_heads", json!(from.key_heads));
        set("head_dim", json!(from.head_dim));
        set("tie_word_embeddings", json!(from.tied));
        set("rms_norm_eps", json!(eps));
        ["sliding_window", "use_sliding_window", "max_window_layers"].iter().for_each(|n| {
            config.remove(*n);
        });
        let positions = if from.family == Family::Mistral { 131_072 } else { 32_768 };
        config.entry("max_position_embeddings").or_insert(json!(positions));
        if from.family == Family::Qwen2 {
            ["bos_token_id", "eos_token_id", "pad_token_id"].iter().for_each(|n| {
                config.entry(*n).or_insert(Value::Null);
            });
        }
    }
    config
}
