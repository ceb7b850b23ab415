//! OpenMOSS's Language-Model-SAEs: Llama Scope and later.
//!
//! Source: the project's own code, which changed. Both have z = s·x·Wᵀ + b with s = sqrt(d) / (average norm of the
//! dataset's activations), norm_activation = `dataset-wise`; `inference` says that s is folded in already.
//!
//! `hyperparams.json` (2024, Llama Scope: `src/lm_saes/sae.py` at the time of its release). Loading rescales everything to
//! the stream's units: encoder.bias/s, decoder.bias/s, decoder.weight·s_in/s_out; then to decoder columns of norm 1 if
//! `sparsity_include_decoder_norm`; the scalar `jump_relu_threshold` is compared with what comes out. A `topk` SAE that has
//! such a threshold is a `jumprelu` one. SAELens reads the same files in units of s·x: its activations are s times those here.
//!
//! `config.json` (`src/llamascopium/models/sae.py`, before that `src/lm_saes/sae.py`): nothing is rescaled. Activations are in
//! units of s·x; thresholds are exp(log_jumprelu_threshold), compared with z·‖d‖ if `sparsity_include_decoder_norm`; the
//! decoder writes in units of s_out·x.
//!
//! Matrices: encoder.weight \[F, d\] and decoder.weight \[d, F\] (`torch.nn.Linear`), or W_E \[d, F\] and W_D \[F, d\].

use super::cfg::Fields;
use super::layout::{CONFIG_FILE, Found, HYPERPARAMS_FILE};
use super::{Gate, Layout, Matrix, Norms, Recipe, SaeOptions, dimensions};
use crate::error::{At, Error, Result};
use crate::tensors::{TensorFile, quoted};

const NORM: &str = "dataset_average_activation_norm";

pub(super) fn open(found: &Found, options: &SaeOptions) -> Result<(Recipe, TensorFile)> {
    let weights = TensorFile::open_any(&found.weights)?;
    let old = found.dir.join(HYPERPARAMS_FILE);
    let (place, old) = if old.is_file() { (old, true) } else { (found.dir.join(CONFIG_FILE), false) };
    let cfg = Fields::read(&place)?;
    let recipe = recipe(&cfg, &weights, old, options).at(|| place.display().to_string())?;
    Ok((recipe, weights))
}

fn recipe(cfg: &Fields, weights: &TensorFile, old: bool, options: &SaeOptions) -> Result<Recipe> {
    let mut recipe = matrices(weights)?;
    refuse(cfg)?;
    let d_model = cfg.dimension("d_model")?;
    if d_model != recipe.d_in {
        return Err(Error::input(format!(
            "d_model is {d_model}, but the weights read a stream of width {}",
            recipe.d_in
        )));
    }
    let (input, output) = scales(cfg, weights, d_model, options)?;
    let include_norm = cfg.flag("sparsity_include_decoder_norm")?.unwrap_or(true);
    if old {
        // In the stream's units: z = <e, x> + b / s, with x - b_dec / s_out where the decoder bias is subtracted.
        (recipe.bias_gain, recipe.output, recipe.b_dec_output) = (1.0 / input, input / output, 1.0 / output);
        if cfg.flag("apply_decoder_bias_to_pre_encoder")? == Some(true) {
            recipe.shift = 1.0 / output;
        }
        if include_norm {
            recipe.norms = Norms::Unit(input / output);
        }
    } else {
        (recipe.input, recipe.output, recipe.b_dec_output) = (input, 1.0 / output, 1.0 / output);
        if include_norm {
            recipe.norms = Norms::Threshold;
        }
    }
    gate(&mut recipe, cfg, weights, old, options)?;
    let hook = cfg.described("hook_point_in");
    recipe.hook_name = hook;
    recipe.model_name = cfg.described("model_name");
    Ok(recipe)
}

fn matrices(weights: &TensorFile) -> Result<Recipe> {
    // A `.pt` file keeps the state dictionary under the key "sae".
    let prefix = if weights.names().iter().any(|n| n.starts_with("sae.")) { "sae." } else { "" };
    let name = |n: &str| format!("{prefix}{n}");
    let there = |n: &str| Some(name(n)).filter(|n| weights.contains(n));
    let linear = weights.contains(&name("encoder.weight"));
    let (encoder, decoder, bias, b_dec) = if linear {
        let encoder = Matrix { name: name("encoder.weight"), rows: true };
        (encoder, Matrix { name: name("decoder.weight"), rows: false }, "encoder.bias", "decoder.bias")
    } else {
        let encoder = Matrix { name: name("W_E"), rows: false };
        (encoder, Matrix { name: name("W_D"), rows: true }, "b_E", "b_D")
    };
    let mut recipe = Recipe::plain(Layout::OpenMoss, dimensions(weights, &encoder)?, encoder, decoder);
    recipe.bias = Some(name(bias));
    recipe.b_dec = there(b_dec);
    Ok(recipe)
}

/// (s_in, s_out): what the SAE's input and output are multiplied by.
fn scales(cfg: &Fields, weights: &TensorFile, d_model: usize, options: &SaeOptions) -> Result<(f64, f64)> {
    match cfg.text("norm_activation")?.unwrap_or("dataset-wise") {
        "inference" => {
            if options.norm_scaling_factor.is_some() {
                return Err(Error::input("norm_scaling_factor is given, but norm_activation is 'inference'")
                    .help("leave it out: it is folded into the weights"));
            }
            Ok((1.0, 1.0))
        }
        "dataset-wise" => {
            if let Some(s) = options.norm_scaling_factor {
                return Ok((s, s));
            }
            let of = |name: &str| -> Result<Option<f64>> {
                if let Some(norm) = cfg.inside(NORM).map(|n| n.number(name)).transpose()?.flatten() {
                    return Ok(Some(norm));
                }
                let hook = cfg.described(&format!("hook_point_{name}")).unwrap_or_default();
                let tensor = format!("{NORM}.{hook}");
                if weights.contains(&tensor) { weights.tensor(&tensor)?.get(0).map(Some) } else { Ok(None) }
            };
            let (norm_in, norm_out) = (of("in")?, of("out")?);
            let Some(norm_in) = norm_in else {
                return Err(Error::input(format!("norm_activation is 'dataset-wise', but {NORM} is missing"))
                    .help("give the factor: sae = { path = \"...\", norm_scaling_factor = S }, S = sqrt(d_model) / average norm"));
            };
            let scale = |norm: f64| {
                if norm > 0.0 {
                    Ok((d_model as f64).sqrt() / norm)
                } else {
                    Err(Error::input(format!("{NORM} is {norm}, not positive")))
                }
            };
            Ok((scale(norm_in)?, scale(norm_out.unwrap_or(norm_in))?))
        }
        other => Err(Error::unsupported(format!(
            "norm_activation = {} is not supported: it divides by each token's own norm, or a batch's",
            quoted(other)
        ))
        .help("use an SAE with norm_activation = dataset-wise or inference")),
    }
}

fn gate(recipe: &mut Recipe, cfg: &Fields, weights: &TensorFile, old: bool, options: &SaeOptions) -> Result<()> {
    let name = cfg.text("act_fn")?.unwrap_or("relu").to_ascii_lowercase();
    let scalar = cfg.number("jump_relu_threshold")?.unwrap_or(0.0);
    recipe.kind = name.clone();
    match name.as_str() {
        "relu" => {}
        "jumprelu" | "topk" if old && (name == "jumprelu" || scalar > 0.0) => {
            if scalar < 0.0 {
                return Err(Error::unsupported(format!(
                    "jump_relu_threshold = {scalar}: below 0 it lets negative activations through"
                )));
            }
            recipe.kind = "jumprelu".into();
            recipe.gate = Gate::Fixed(scalar);
        }
        "jumprelu" => {
            const LOG: &str = "log_jumprelu_threshold";
            let found = weights.names().into_iter().find(|n| n == LOG || n.ends_with(&format!(".{LOG}")));
            recipe.gate = Gate::Logarithms(found.unwrap_or_else(|| LOG.into()));
        }
        "topk" | "batchtopk" | "batchlayertopk" | "layertopk" => {
            // The top-k compares z·‖d‖ where the norm is included.
            recipe.top_k(&format!("act_fn = {}", quoted(&name)), options, None)?;
            return Ok(());
        }
        other => return Err(Error::unsupported(format!("act_fn = {} is not known", quoted(other)))),
    }
    if options.threshold.is_some() {
        return Err(Error::input(format!("a threshold is given, but act_fn is {}", quoted(&name)))
            .help("leave threshold out: it stands in place of a top-k"));
    }
    Ok(())
}

/// Settings that cannot be expressed.
fn refuse(cfg: &Fields) -> Result<()> {
    if cfg.flag("use_glu_encoder")? == Some(true) {
        return Err(Error::unsupported("use_glu_encoder: each pre-activation is multiplied by a sigmoid of another")
            .help("use an SAE without it"));
    }
    let (input, output) = (cfg.described("hook_point_in"), cfg.described("hook_point_out"));
    if input.is_some() && output.is_some() && input != output {
        return Err(Error::unsupported("a transcoder: it writes at another place than it reads")
            .help("use an SAE with hook_point_in = hook_point_out"));
    }
    match cfg.text("sae_type")? {
        None | Some("sae") => Ok(()),
        Some(other) => Err(Error::unsupported(format!("sae_type = {} is not an SAE of one place", quoted(other)))),
    }
}
