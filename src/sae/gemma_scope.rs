//! Gemma Scope: `params.npz`; Gemma Scope 2: `params.safetensors` and `config.json`.
//!
//! Source: the tutorial of <https://huggingface.co/google/gemma-scope>, class `JumpReLUSAE`: with W_enc \[d, F\] and W_dec
//! \[F, d\], z = x·W_enc + b_enc, activation relu(z)·\[z > threshold\], reconstruction a·W_dec + b_dec. The decoder bias is
//! not subtracted from the input. Gemma Scope 2 has the names in lower case. Neither file says which layer it reads; the
//! folder does (`layer_12/width_16k/...`), and `hf_hook_point_in` of Gemma Scope 2.

use std::path::Path;

use super::cfg::Fields;
use super::layout::{CONFIG_FILE, Found};
use super::{Gate, Layout, Matrix, Recipe, dimensions};
use crate::error::{At, Error, Result};
use crate::tensors::{TensorFile, quoted};

pub(super) fn open(found: &Found) -> Result<(Recipe, TensorFile)> {
    let weights = TensorFile::open_any(&found.weights)?;
    let place = found.dir.join(CONFIG_FILE);
    let cfg = Fields::read_if_there(&place)?.unwrap_or_default();
    let recipe = recipe(&cfg, &weights, &found.dir).at(|| found.weights.display().to_string())?;
    Ok((recipe, weights))
}

fn recipe(cfg: &Fields, weights: &TensorFile, dir: &Path) -> Result<Recipe> {
    match cfg.text("architecture")? {
        None | Some("jump_relu" | "jumprelu") => {}
        Some(other) => {
            return Err(Error::unsupported(format!("a Gemma Scope SAE of architecture {}", quoted(other)))
                .help("known: jump_relu"));
        }
    }
    let (input, output) = (cfg.described("hf_hook_point_in"), cfg.described("hf_hook_point_out"));
    let elsewhere = input.is_some() && output.is_some() && input != output;
    if elsewhere || cfg.flag("affine_connection")? == Some(true) {
        return Err(Error::unsupported("a transcoder: it writes at another place than it reads")
            .help("use one of the SAEs on the residual stream (resid_post)"));
    }
    let name = |name: &str| {
        let lower = name.to_ascii_lowercase();
        if weights.contains(name) { name.to_string() } else { lower }
    };
    let encoder = Matrix { name: name("W_enc"), rows: false };
    let decoder = Matrix { name: name("W_dec"), rows: true };
    let mut recipe = Recipe::plain(Layout::GemmaScope, dimensions(weights, &encoder)?, encoder, decoder);
    recipe.kind = "jumprelu".into();
    recipe.bias = Some("b_enc".into());
    recipe.b_dec = Some("b_dec".into());
    recipe.gate = Gate::Thresholds("threshold".into());
    recipe.hook_name = match input {
        Some(input) => layer_of_hook(&input),
        None => layer_of_folder(dir),
    }
    .map(|layer| format!("blocks.{layer}.hook_resid_post"));
    recipe.model_name = cfg.described("model_name");
    Ok(recipe)
}

/// `model.layers.12.output`: the stream after layer 12.
fn layer_of_hook(hook: &str) -> Option<usize> {
    let inside = hook.strip_prefix("model.").unwrap_or(hook);
    inside.strip_prefix("layers.")?.strip_suffix(".output")?.parse().ok()
}

/// `.../layer_12/width_16k/average_l0_82`: layer 12, unless a folder's name says that it is no residual stream.
fn layer_of_folder(dir: &Path) -> Option<usize> {
    let absolute = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    // Below that come the repository and what it lies in.
    const FOLDERS: usize = 4;
    let parts = absolute.components().rev().take(FOLDERS).map(|c| c.as_os_str().to_string_lossy().into_owned());
    let parts: Vec<String> = parts.collect();
    let other = |p: &String| ["-mlp", "-att", "transcoder", "mlp_out", "attn_out"].iter().any(|w| p.contains(w));
    if parts.iter().any(other) {
        return None;
    }
    parts.iter().find_map(|p| p.strip_prefix("layer_")?.split('_').next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_told_by_hooks_and_folders() {
        assert_eq!(layer_of_hook("model.layers.9.output"), Some(9));
        assert_eq!(layer_of_hook("model.layers.9.self_attn.o_proj.input"), None);
        for (dir, layer) in [
            ("gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82", Some(12)),
            ("resid_post_all/layer_9_width_16k_l0_small", Some(9)),
            ("gemma-scope-2b-pt-mlp/layer_12/width_16k/average_l0_82", None),
            ("attn_out/layer_9_width_16k_l0_small", None),
            ("embedding/width_4k/average_l0_6", None),
        ] {
            assert_eq!(layer_of_folder(Path::new(dir)), layer, "{dir}");
        }
    }
}
