//! EleutherAI's sparsify: `cfg.json` and `sae.safetensors`.
//!
//! Source: `sparsify/sparse_coder.py` and `sparsify/config.py`. With encoder.weight \[F, d\] and W_dec \[F, d\],
//! z = (x − b_dec)·encoder.weightᵀ + encoder.bias, then relu and the k largest (`activation` = `topk`), or the largest of
//! each of k groups (`groupmax`); reconstruction a·W_dec + b_dec. All of them are top-k SAEs, so all need a threshold of the
//! user's to be read as features of their own.

use super::cfg::Fields;
use super::layout::Found;
use super::{CFG_FILE, Layout, Matrix, Recipe, SaeOptions};
use crate::error::{At, Error, Result};
use crate::tensors::{TensorFile, quoted};

pub(super) fn open(found: &Found, options: &SaeOptions) -> Result<(Recipe, TensorFile)> {
    let place = found.dir.join(CFG_FILE);
    let cfg = Fields::read(&place)?;
    let folder = found.dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let recipe = recipe(&cfg, &folder, options).at(|| place.display().to_string())?;
    Ok((recipe, TensorFile::open(&found.weights)?))
}

fn recipe(cfg: &Fields, folder: &str, options: &SaeOptions) -> Result<Recipe> {
    if cfg.flag("transcode")? == Some(true) || cfg.flag("skip_connection")? == Some(true) {
        return Err(Error::unsupported("a transcoder: it writes at another place than it reads")
            .help("use an SAE that was trained without transcode and skip_connection"));
    }
    let d_in = cfg.dimension("d_in")?;
    // 0 stands for the multiple of d_in.
    let d_sae = match cfg.count("num_latents")? {
        Some(n) if n > 0 => n,
        _ => d_in
            .checked_mul(cfg.dimension("expansion_factor")?)
            .ok_or_else(|| Error::input("d_in times expansion_factor overflows"))?,
    };
    let matrix = |name: &str| Matrix { name: name.into(), rows: true };
    let mut recipe = Recipe::plain(Layout::Sparsify, (d_in, d_sae), matrix("encoder.weight"), matrix("W_dec"));
    recipe.bias = Some("encoder.bias".into());
    recipe.b_dec = Some("b_dec".into());
    recipe.shift = 1.0;
    // Folders are named after the model's modules: `layers.12` is the stream after layer 12, `layers.12.mlp` an MLP.
    let layer: Option<usize> = folder.strip_prefix("layers.").and_then(|n| n.parse().ok());
    recipe.hook_name = layer.map(|n| format!("blocks.{n}.hook_resid_post"));
    let k = cfg.count("k")?.map_or("k".into(), |k| k.to_string());
    let activation = cfg.text("activation")?.unwrap_or("topk");
    let why = match activation {
        "topk" if cfg.flag("signed")? == Some(true) => {
            return Err(Error::unsupported("signed = true: the k largest magnitudes, of either sign")
                .help("use an SAE whose activations are not negative"));
        }
        "topk" => format!("a sparsify SAE keeps the {k} largest activations of a token"),
        "groupmax" => format!("a sparsify SAE keeps the largest activation of each of {k} groups"),
        other => return Err(Error::unsupported(format!("activation = {} is not known", quoted(other)))),
    };
    recipe.kind = activation.into();
    recipe.top_k(&why, options, None)?;
    Ok(recipe)
}
