//! SAELens: `cfg.json` and `sae_weights.safetensors`, version 6 (nested metadata) and before (flat).
//!
//! Source: SAELens's `sae_lens/saes/{sae,standard_sae,jumprelu_sae,gated_sae,topk_sae}.py` and
//! `sae_lens/loading/pretrained_sae_loaders.py`; for `finetuning_scaling_factor`, `sae_lens/sae.py` of version 5. With
//! W_enc \[d, F\], W_dec \[F, d\] and x' = x − b_dec (x without `apply_b_dec_to_input`):
//!
//! | architecture | activation |
//! |---|---|
//! | `standard` | relu(x'·W_enc + b_enc) |
//! | `jumprelu` | relu(z)·\[z > threshold\], z = x'·W_enc + b_enc |
//! | `gated` | \[x'·W_enc + b_gate > 0\]·relu(x'·(W_enc·exp(r_mag)) + b_mag) |
//!
//! Gated: with u = ⟨w, x'⟩ and r = exp(r_mag) > 0 the magnitude is z = r·u + b_mag, and the gate u + b_gate > 0 says
//! r·u > −r·b_gate, which is z > b_mag − r·b_gate. So the feature is a `jumprelu` one of the row r·w with that threshold.
//!
//! `normalize_activations = expected_average_only_in`: the input is s·x. SAELens folds the factor with W_enc·s, W_dec/s,
//! b_dec/s, and b_enc and thresholds as they are (`fold_activation_norm_scaling_factor`).

use serde_json::Value;

use super::cfg::{Fields, wrong_type};
use super::{Architecture, CFG_FILE, Gate, Layout, Matrix, Norms, Recipe, SaeOptions};
use crate::error::{At, Error, Result};
use crate::tensors::{Format, TensorFile, quoted};

/// Where SAELens keeps the factor of a training run's input.
pub(super) const SCALER_FILE: &str = "activation_scaler.json";

/// Reads a configuration. `scaler` is the file of the input's factor, if there is one.
pub(super) fn recipe(
    cfg: &Fields,
    scaler: Option<&Fields>,
    weights: &TensorFile,
    options: &SaeOptions,
) -> Result<Recipe> {
    let metadata = cfg.inside("metadata").unwrap_or_default();
    let described = |name: &str| metadata.described(name).or_else(|| cfg.described(name));
    let hook_name = described("hook_name").or_else(|| described("hook_point"));
    refuse(cfg, hook_name.as_deref())?;

    let dimensions = (cfg.dimension("d_in")?, cfg.dimension("d_sae")?);
    let matrix = |name: &str, rows| Matrix { name: name.into(), rows };
    let mut recipe = Recipe::plain(Layout::SaeLens, dimensions, matrix("W_enc", false), matrix("W_dec", true));
    recipe.bias = Some("b_enc".into());
    recipe.b_dec = Some("b_dec".into());
    // The default of every SAELens version.
    recipe.shift = if cfg.flag("apply_b_dec_to_input")?.unwrap_or(true) { 1.0 } else { 0.0 };
    architecture(&mut recipe, cfg, weights, options)?;
    if let Some(s) = scaling_factor(cfg, scaler, options)? {
        recipe.fold(s);
    }
    recipe.factors = finetuning(cfg, weights)?;
    recipe.hook_name = hook_name;
    recipe.model_name = described("model_name");
    same_format(cfg, &recipe, weights)?;
    Ok(recipe)
}

fn architecture(recipe: &mut Recipe, cfg: &Fields, weights: &TensorFile, options: &SaeOptions) -> Result<()> {
    // Files from before the field existed are standard.
    let mut name = cfg.text("architecture")?.unwrap_or("standard").to_ascii_lowercase();
    for field in ["activation_fn", "activation_fn_str"] {
        match cfg.text(field)? {
            None | Some("relu") => {}
            Some("topk") => name = "topk".into(),
            Some(other) => {
                return Err(Error::unsupported(format!(
                    "{field} = {} is not supported: features are gated by relu or jumprelu only",
                    quoted(other)
                ))
                .help("use an SAE with that activation"));
            }
        }
    }
    let refuse = |why: &str, help: &str| {
        Err(Error::unsupported(format!("SAEs of architecture {} cannot be read: {why}", quoted(&name)))
            .help(help.to_string()))
    };
    match name.as_str() {
        "standard" => {
            // With thresholds beside it, one of the two files is not this SAE's.
            if weights.contains("threshold") {
                return Err(Error::input("the weights hold a tensor 'threshold', which a standard SAE has none of")
                    .at(weights.place())
                    .help(format!("if it is a JumpReLU SAE, write \"architecture\": \"jumprelu\" in {CFG_FILE}")));
            }
        }
        "jumprelu" => recipe.gate = Gate::Thresholds("threshold".into()),
        "gated" => {
            recipe.bias = Some("b_mag".into());
            recipe.gate = Gate::Gated { r_mag: "r_mag".into(), b_gate: "b_gate".into() };
        }
        "topk" | "batchtopk" | "matryoshka_batchtopk" => {
            // With the flag, top-k compares z·‖W_dec‖, and that is the activation.
            if cfg.flag("rescale_acts_by_decoder_norm")? == Some(true) {
                recipe.norms = Norms::Unit(1.0);
            }
            recipe.top_k(&format!("a SAELens SAE of architecture {}", quoted(&name)), options, None)?;
        }
        "matching_pursuit" => {
            return refuse("features are picked one after the other at each token", "use a jumprelu or standard SAE");
        }
        _ if name.contains("transcoder") || name.contains("clt") => {
            return refuse(
                "it writes at another place than it reads",
                "use a standard or jumprelu SAE that was trained on the residual stream",
            );
        }
        _ => return refuse("it is not known here", "known architectures: standard, jumprelu, gated"),
    }
    if options.threshold.is_some() && !name.contains("topk") {
        return Err(Error::input(format!("a threshold is given, but the SAE is of architecture {}", quoted(&name)))
            .help("leave threshold out: it stands in place of a top-k"));
    }
    recipe.kind = name;
    if recipe.kind == Architecture::Standard.name() {
        recipe.gate = Gate::Relu;
    }
    Ok(())
}

/// The factor s of the SAE's input, where it has one.
fn scaling_factor(cfg: &Fields, scaler: Option<&Fields>, options: &SaeOptions) -> Result<Option<f64>> {
    let refuse = |value: &str, why: &str, help: &str| {
        Err(Error::unsupported(format!("normalize_activations = {} is not supported: {why}", quoted(value))).help(help))
    };
    let name = match cfg.get("normalize_activations") {
        None | Some(Value::Bool(false)) => "none",
        Some(Value::Bool(true)) => "expected_average_only_in",
        Some(Value::String(name)) => name,
        Some(other) => return Err(wrong_type("normalize_activations", other, "a string")),
    };
    if name == "none" {
        return match options.norm_scaling_factor {
            None => Ok(None),
            Some(_) => Err(Error::input("norm_scaling_factor is given, but normalize_activations is none")
                .help("leave it out: the weights read the stream as it is")),
        };
    }
    if name != "expected_average_only_in" {
        return refuse(
            name,
            "it divides by each token's own norm, so no pre-activation is affine in x",
            "use an SAE with normalize_activations = none",
        );
    }
    let saved = scaler.map(|s| s.number("scaling_factor")).transpose().at(|| SCALER_FILE.into())?.flatten();
    match options.norm_scaling_factor.or(saved) {
        Some(s) if s > 0.0 => Ok(Some(s)),
        Some(s) => Err(Error::input(format!("the input's scaling factor is {s}, not positive"))),
        None => refuse(
            name,
            "the factor is not part of the files",
            "give it, sae = { path = \"...\", norm_scaling_factor = S } with S = sqrt(d_in) / the average norm of the \
             SAE's training activations, listed in SAELens's pretrained_saes.yaml for known releases (1 if it has been folded into the weights already), or fold it in SAELens \
             (fold_activation_norm_scaling_factor) and save the SAE again",
        ),
    }
}

/// The tensor of factors that multiply the activations behind the gate, in SAEs finetuned with SAELens before version 6.
fn finetuning(cfg: &Fields, weights: &TensorFile) -> Result<Option<String>> {
    let name = ["finetuning_scaling_factor", "scaling_factor"].into_iter().find(|n| weights.contains(n));
    let (Some(name), asked) = (name, cfg.flag("finetuning_scaling_factor")?.unwrap_or(false)) else { return Ok(None) };
    if asked {
        return Ok(Some(name.into()));
    }
    // SAELens wrote ones for a time; anything else contradicts the configuration.
    if weights.tensor(name)?.values()?.iter().all(|x| (x - 1.0).abs() <= 1e-5) {
        return Ok(None);
    }
    Err(Error::input(format!("the weights hold a tensor '{name}', but finetuning_scaling_factor is false"))
        .at(weights.place())
        .help(format!("write \"finetuning_scaling_factor\": true in {CFG_FILE}, or remove the tensor")))
}

/// The weights are in the number format that the configuration names, or one that it holds.
fn same_format(cfg: &Fields, recipe: &Recipe, weights: &TensorFile) -> Result<()> {
    let Some(name) = cfg.text("dtype")? else { return Ok(()) };
    let format: Format = name.parse::<Format>().at(|| "dtype".into())?;
    for (name, _, _) in recipe.expected() {
        let tensor = weights.tensor(name)?;
        if !format.holds(tensor.format()) {
            let what = format!("tensor '{name}' holds {}, but {CFG_FILE} says dtype {format}", tensor.format());
            return Err(Error::input(what).at(weights.place()).help(format!(
                "SAELens would round the weights on loading: write dtype {} in {CFG_FILE}, or convert the weights",
                tensor.format()
            )));
        }
    }
    Ok(())
}

/// Settings that change what a feature computes, and cannot be expressed.
fn refuse(cfg: &Fields, hook: Option<&str>) -> Result<()> {
    let reshape = cfg.text("reshape_activations")?;
    if reshape.unwrap_or("none") != "none" || (reshape.is_none() && hook.unwrap_or_default().ends_with("hook_z")) {
        return Err(Error::unsupported(format!(
            "reshape_activations = {} is not supported: the SAE reads attention heads, not the residual stream",
            quoted(reshape.unwrap_or("hook_z"))
        ))
        .help("use an SAE that was trained on the residual stream"));
    }
    Ok(())
}
