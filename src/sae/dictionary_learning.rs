//! dictionary_learning: `ae.pt`, a state dictionary, and `config.json`.
//!
//! Source: `dictionary_learning/dictionary.py` and `trainers/{top_k,batch_top_k,matryoshka_batch_top_k}.py`; the classes
//! are told apart by their tensors, and by `dict_class` where these are the same. With x' = x − bias where one is subtracted:
//!
//! | class | subtracts | activation |
//! |---|---|---|
//! | AutoEncoder | `bias` | relu(encoder(x')); its `from_pretrained` divides decoder columns by their norms and multiplies activations by them, and so does this reader |
//! | AutoEncoderNew | nothing | relu(encoder(x)) |
//! | GatedAutoEncoder | `decoder_bias` | \[u + gate_bias > 0\]·relu(exp(r_mag)·u + mag_bias), u = encoder(x'), as in `sae/saelens.rs` |
//! | JumpReluAutoEncoder | nothing | relu(z·\[z > threshold\]), z = x·W_enc + b_enc |
//! | BatchTopKSAE, MatryoshkaBatchTopKSAE | `b_dec` | relu(z)·\[relu(z) > threshold\], one threshold for all features |
//! | AutoEncoderTopK | `b_dec` | the k largest; its `threshold` serves on request (`use_threshold`) |
//!
//! AutoEncoderNew without a `config.json` is also the layout of other SAEs that are a bare pair of `torch.nn.Linear`.

use super::cfg::Fields;
use super::layout::{CONFIG_FILE, Found};
use super::{Gate, Layout, Matrix, Norms, Recipe, SaeOptions, dimensions};
use crate::error::{At, Error, Result};
use crate::tensors::{TensorFile, quoted};

pub(super) fn open(found: &Found, options: &SaeOptions) -> Result<(Recipe, TensorFile)> {
    let weights = TensorFile::open_any(&found.weights)?;
    let place = found.dir.join(CONFIG_FILE);
    let cfg = Fields::read_if_there(&place)?.unwrap_or_default();
    let trainer = cfg.inside("trainer").unwrap_or_default();
    let recipe = recipe(&trainer, &weights, options).at(|| found.weights.display().to_string())?;
    Ok((recipe, weights))
}

fn recipe(trainer: &Fields, weights: &TensorFile, options: &SaeOptions) -> Result<Recipe> {
    let has = |name: &str| weights.contains(name);
    let named = trainer.text("dict_class")?;
    let class = match named {
        _ if has("gate_bias") && has("mag_bias") => "GatedAutoEncoder",
        _ if has("group_sizes") => "MatryoshkaBatchTopKSAE",
        _ if has("W_enc") => "JumpReluAutoEncoder",
        Some(class @ ("AutoEncoderTopK" | "BatchTopKSAE")) if has("k") => class,
        _ if has("k") => "AutoEncoderTopK",
        _ if has("decoder.bias") => "AutoEncoderNew",
        _ if has("encoder.weight") => "AutoEncoder",
        _ => {
            return Err(Error::input("no SAE of dictionary_learning: neither encoder.weight nor W_enc").help(
                "known are AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder and the top-k classes",
            ));
        }
    };
    if let Some(named) = named.filter(|n| *n != class) {
        return Err(Error::input(format!(
            "{CONFIG_FILE} says dict_class {}, the tensors are those of {class}",
            quoted(named)
        ))
        .help("one of the two files is not this SAE's, or the class is not known here"));
    }
    let own = matches!(class, "JumpReluAutoEncoder" | "MatryoshkaBatchTopKSAE");
    let (encoder, decoder) = if own { ("W_enc", "W_dec") } else { ("encoder.weight", "decoder.weight") };
    // torch.nn.Linear keeps [out, in]: features are rows of the encoder and columns of the decoder.
    let encoder = Matrix { name: encoder.into(), rows: !own };
    let decoder = Matrix { name: decoder.into(), rows: own };
    let mut recipe = Recipe::plain(Layout::DictionaryLearning, dimensions(weights, &encoder)?, encoder, decoder);
    recipe.kind = class.into();
    recipe.bias = Some(if own { "b_enc".into() } else { "encoder.bias".into() });
    let (b_dec, subtracts) = match class {
        "AutoEncoder" => ("bias", true),
        "AutoEncoderNew" => ("decoder.bias", false),
        "GatedAutoEncoder" => ("decoder_bias", true),
        "JumpReluAutoEncoder" => ("b_dec", false),
        _ => ("b_dec", true),
    };
    recipe.b_dec = Some(b_dec.into());
    recipe.shift = if subtracts { 1.0 } else { 0.0 };
    gate(&mut recipe, class, named.is_some(), weights, options)?;
    let layer = trainer.count("layer")?;
    let residual = trainer.described("submodule_name").is_none_or(|n| n.contains("resid"));
    recipe.hook_name = layer.filter(|_| residual).map(|n| format!("blocks.{n}.hook_resid_post"));
    recipe.model_name = trainer.described("lm_name");
    Ok(recipe)
}

fn gate(recipe: &mut Recipe, class: &str, named: bool, weights: &TensorFile, options: &SaeOptions) -> Result<()> {
    match class {
        "AutoEncoder" => recipe.norms = Norms::NearlyUnit,
        "AutoEncoderNew" => {}
        "GatedAutoEncoder" => {
            recipe.bias = Some("mag_bias".into());
            recipe.gate = Gate::Gated { r_mag: "r_mag".into(), b_gate: "gate_bias".into() };
        }
        "AutoEncoderTopK" => {
            let saved = if weights.contains("threshold") { Some(weights.tensor("threshold")?.get(0)?) } else { None };
            let why = if named {
                "an AutoEncoderTopK keeps the k largest activations of a token".to_string()
            } else {
                format!(
                    "without {CONFIG_FILE}, an AutoEncoderTopK (the k largest of a token) and a BatchTopKSAE look the same"
                )
            };
            return recipe.top_k(&why, options, saved.filter(|t| *t >= 0.0));
        }
        _ => recipe.gate = Gate::Thresholds("threshold".into()),
    }
    if options.threshold.is_some() {
        return Err(Error::input(format!("a threshold is given, but the SAE is a {class}"))
            .help("leave threshold out: it stands in place of a top-k"));
    }
    Ok(())
}
