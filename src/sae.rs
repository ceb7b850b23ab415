//! Sparse autoencoders as they are on disk: the layouts of SAELens, Gemma Scope, EleutherAI's sparsify, OpenMOSS (Llama
//! Scope) and dictionary_learning. `docs/sae.md` lists their files, formulas and what is refused.
//!
//! Whatever the layout, feature f comes out as a row w, a bias b, a threshold θ and a decoder row d, in the stream's own
//! units. With z = ⟨w, x⟩ + b it has the activation
//!
//! | architecture | activation |
//! |---|---|
//! | `standard` | relu(z) |
//! | `jumprelu` | z where z > θ, else 0 (strict; θ = [`Feature::threshold`]) |
//!
//! and writes along d. A gated SAE is a `jumprelu` one: its gate and its magnitude are affine functions of the same ⟨w, x⟩
//! (`sae/saelens.rs` has the derivation). What is no function of its own pre-activation is refused: a top-k feature, unless a
//! threshold is given in its place, and whatever divides by each token's own norm.
//!
//! Opening reads configurations and headers; [`Sae::features`] reads the asked features' numbers only, from the mapped file.

mod cfg;
mod dictionary_learning;
mod gemma_scope;
mod layout;
mod openmoss;
mod saelens;
mod sparsify;

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use self::cfg::Fields;
pub use self::layout::Layout;
use crate::error::{At, Error, Result, in_order};
use crate::tensors::{Format, Tensor, TensorFile, valid_range};

/// The name of the configuration in an SAE's directory, in the layouts of SAELens and sparsify.
pub const CFG_FILE: &str = "cfg.json";

/// The name of the weights in an SAE's directory, in the layout of SAELens.
pub const WEIGHTS_FILE: &str = "sae_weights.safetensors";

/// How features are gated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// relu(z)
    Standard,
    /// z where z > θ, else 0
    JumpRelu,
}

impl Architecture {
    /// Its name in SAELens's `cfg.json`.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Standard => "standard",
            Architecture::JumpRelu => "jumprelu",
        }
    }
}

/// What the files of an SAE leave open.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SaeOptions {
    /// The layout, where the names of the files do not tell. Default: told by the files.
    pub layout: Option<Layout>,
    /// A threshold in place of a top-k: each feature is then active where its own z is above it (0: relu). An error for
    /// SAEs that have an activation of their own. Finite, at least 0. Default: none.
    pub threshold: Option<f64>,
    /// The factor s by which the SAE's input was multiplied (sqrt(d) / average norm), where the files say that there is
    /// one and do not hold it. Finite, positive. Default: none.
    pub norm_scaling_factor: Option<f64>,
}

/// One feature's numbers, in the units of the stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Feature {
    /// Its index in the SAE.
    pub index: usize,
    /// The encoder's row: `d_in` values, those of the file, times a factor where the layout has one (in f64).
    pub w: Vec<f64>,
    /// The bias of the pre-activation z = ⟨w, x⟩ + b: the file's, less ⟨w, b_dec⟩ where the SAE subtracts its decoder bias
    /// from its input. That difference is accumulated in twice the precision of f64 and then rounded to f64: from here
    /// on, the rounded number is the bias.
    pub b: f64,
    /// The decoder's row: `d_in` values, those of the file, times a factor where the layout has one (in f64).
    pub d: Vec<f64>,
    /// θ: the feature is active where z > θ. 0 for `standard`; the file's threshold for `jumprelu`, or 0 where that is
    /// negative: a relu stands before the gate, which no threshold below 0 changes.
    pub threshold: f64,
}

/// An open SAE.
#[derive(Debug)]
pub struct Sae {
    recipe: Recipe,
    weights: TensorFile,
}

/// How a layout's tensors make features.
///
/// With e and d the rows of `encoder` and `decoder`, β the value of `bias`, n the factor of [`Norms`], r = exp(r_mag) of a
/// gated SAE and 1 otherwise, and φ the value of `factors` (1 without):
///
/// ```text
///     w = (input · r · n) · e        b = (bias_gain · n) · β − (shift · r · n) · ⟨e, b_dec⟩
///     d = (output · φ / n) · d
/// ```
#[derive(Clone, Debug)]
struct Recipe {
    layout: Layout,
    /// what the files call it
    kind: String,
    d_in: usize,
    d_sae: usize,
    encoder: Matrix,
    decoder: Matrix,
    bias: Option<String>,
    b_dec: Option<String>,
    factors: Option<String>,
    gate: Gate,
    norms: Norms,
    input: f64,
    shift: f64,
    bias_gain: f64,
    output: f64,
    /// what the decoder bias is multiplied by in the reconstruction
    b_dec_output: f64,
    hook_name: Option<String>,
    model_name: Option<String>,
}

/// A matrix of one vector a feature.
#[derive(Clone, Debug)]
struct Matrix {
    name: String,
    /// Are features its rows? Otherwise its columns.
    rows: bool,
}

/// What decides whether a feature is active.
#[derive(Clone, Debug)]
enum Gate {
    Relu,
    /// a tensor of one threshold a feature, or of one for all
    Thresholds(String),
    /// the same, as natural logarithms
    Logarithms(String),
    Fixed(f64),
    /// r = exp(`r_mag`); active where ⟨e, x − b_dec⟩ + `b_gate` > 0
    Gated {
        r_mag: String,
        b_gate: String,
    },
}

/// What the norm ‖d‖ of a decoder row in the file is for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Norms {
    /// nothing: n = 1
    Plain,
    /// activations are those of a decoder whose rows have norm 1: n = factor · ‖d‖
    Unit(f64),
    /// the same, but a norm within 1e-5 of 1 counts as 1
    NearlyUnit,
    /// thresholds are compared with z · ‖d‖; n = 1
    Threshold,
}

impl Recipe {
    /// relu, no gains, no input bias: for the layouts to start from.
    fn plain(layout: Layout, (d_in, d_sae): (usize, usize), encoder: Matrix, decoder: Matrix) -> Recipe {
        Recipe {
            layout,
            kind: Architecture::Standard.name().into(),
            d_in,
            d_sae,
            encoder,
            decoder,
            bias: None,
            b_dec: None,
            factors: None,
            gate: Gate::Relu,
            norms: Norms::Plain,
            input: 1.0,
            shift: 0.0,
            bias_gain: 1.0,
            output: 1.0,
            b_dec_output: 1.0,
            hook_name: None,
            model_name: None,
        }
    }

    /// The encoder reads s·x, and the decoder writes in units of s·x (SAELens's `fold_activation_norm_scaling_factor`).
    fn fold(&mut self, s: f64) {
        (self.input, self.output, self.b_dec_output) = (s, 1.0 / s, 1.0 / s);
    }

    /// Takes the threshold that was given in place of a top-k, or refuses.
    fn top_k(&mut self, why: &str, options: &SaeOptions, hint: Option<f64>) -> Result<()> {
        match options.threshold {
            Some(threshold) => {
                self.gate = if threshold > 0.0 { Gate::Fixed(threshold) } else { Gate::Relu };
                Ok(())
            }
            None => Err(top_k(why, hint)),
        }
    }

    /// Every tensor, with the shape that it must have and what that means.
    fn expected(&self) -> Vec<(&str, Vec<usize>, &'static str)> {
        let (d, f) = (self.d_in, self.d_sae);
        let matrix = |m: &Matrix| if m.rows { vec![f, d] } else { vec![d, f] };
        let meaning = |m: &Matrix| if m.rows { "[d_sae, d_in]" } else { "[d_in, d_sae]" };
        let mut all = vec![
            (self.encoder.name.as_str(), matrix(&self.encoder), meaning(&self.encoder)),
            (self.decoder.name.as_str(), matrix(&self.decoder), meaning(&self.decoder)),
        ];
        all.extend(self.b_dec.iter().map(|name| (name.as_str(), vec![d], "[d_in]")));
        all.extend([&self.bias, &self.factors].into_iter().flatten().map(|name| (name.as_str(), vec![f], "[d_sae]")));
        match &self.gate {
            Gate::Gated { r_mag, b_gate } => all.extend([r_mag, b_gate].map(|n| (n.as_str(), vec![f], "[d_sae]"))),
            Gate::Thresholds(name) | Gate::Logarithms(name) => all.push((name, vec![f], "[d_sae]")),
            Gate::Relu | Gate::Fixed(_) => {}
        }
        all
    }
}

/// Refuses a top-k.
fn top_k(why: &str, hint: Option<f64>) -> Error {
    let value = hint.map_or("T".into(), |t| t.to_string());
    let said = hint.map_or(String::new(), |_| " (the file's own)".into());
    Error::unsupported(format!("{why}: whether a feature is active depends on all the others at that token")).help(format!(
        "give a threshold in place of the top-k, sae = {{ path = \"...\", threshold = {value} }}{said}: a feature is then \
         active where its own z is above it (0: relu). SAELens saves a trained batchtopk SAE as jumprelu, with thresholds"
    ))
}

impl Sae {
    /// Opens a directory or a file of weights; the names of the files tell the layout.
    ///
    /// The weights are memory-mapped: they must not be rewritten while the SAE is in use.
    ///
    /// # Errors
    /// If a file is missing or malformed, two contradict each other, or the SAE is of a kind that is not supported.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, &SaeOptions::default())
    }

    /// As [`Sae::open`], told what the files leave open.
    ///
    /// # Errors
    /// As [`Sae::open`]; if an option does not apply to this SAE.
    pub fn open_with(path: impl AsRef<Path>, options: &SaeOptions) -> Result<Self> {
        let found = layout::find(path.as_ref(), options.layout)?;
        let fits = |option, layouts: &[Layout]| match option {
            Some((name, _)) if !layouts.contains(&found.layout) => {
                Err(Error::input(format!("{name} does not apply to the layout {}", found.layout)).help("leave it out"))
            }
            _ => Ok(()),
        };
        fits(options.norm_scaling_factor.map(|s| ("norm_scaling_factor", s)), &[Layout::SaeLens, Layout::OpenMoss])?;
        fits(
            options.threshold.map(|t| ("threshold", t)),
            &[Layout::SaeLens, Layout::Sparsify, Layout::OpenMoss, Layout::DictionaryLearning],
        )?;
        let sae = match found.layout {
            Layout::SaeLens => {
                let cfg_path = found.dir.join(CFG_FILE);
                let cfg = Fields::read(&cfg_path)?;
                let scaler = Fields::read_if_there(&found.dir.join(saelens::SCALER_FILE))?;
                let weights = TensorFile::open(&found.weights)?;
                saelens::recipe(&cfg, scaler.as_ref(), &weights, options)
                    .at(|| cfg_path.display().to_string())
                    .map(|recipe| (recipe, weights))
            }
            Layout::Sparsify => sparsify::open(&found, options),
            Layout::OpenMoss => openmoss::open(&found, options),
            Layout::DictionaryLearning => dictionary_learning::open(&found, options),
            Layout::GemmaScope => gemma_scope::open(&found),
        };
        let (recipe, weights) = sae?;
        Self::new(recipe, weights)
    }

    /// An SAE in the layout of SAELens that is in memory already: the text of its `cfg.json` and its weights file.
    ///
    /// # Errors
    /// As [`Sae::open`].
    pub fn from_bytes(cfg: &str, weights: impl Into<Vec<u8>>) -> Result<Self> {
        let options = SaeOptions::default();
        let weights = TensorFile::from_bytes(WEIGHTS_FILE, weights)?;
        let recipe = Fields::parse(cfg)
            .and_then(|cfg| saelens::recipe(&cfg, None, &weights, &options))
            .at(|| CFG_FILE.into())?;
        Self::new(recipe, weights)
    }

    fn new(recipe: Recipe, weights: TensorFile) -> Result<Self> {
        for (name, shape, meaning) in recipe.expected() {
            let tensor = weights.tensor(name)?;
            if matches!(recipe.gate, Gate::Thresholds(ref n) | Gate::Logarithms(ref n) if n == name)
                && tensor.len() == 1
            {
                continue;
            }
            tensor.expect_shape(&shape, meaning).map_err(|e| {
                e.help(format!("the SAE's files give d_in = {} and d_sae = {}", recipe.d_in, recipe.d_sae))
            })?;
        }
        let gains = [recipe.input, recipe.shift, recipe.bias_gain, recipe.output, recipe.b_dec_output];
        if !gains.iter().all(|x| x.is_finite()) {
            return Err(Error::input("a scaling factor of the SAE's input is 0 or not finite"));
        }
        Ok(Sae { recipe, weights })
    }

    /// Whose files these are.
    pub fn layout(&self) -> Layout {
        self.recipe.layout
    }

    /// What the files call the architecture: `standard`, `jumprelu`, `gated`, `BatchTopKSAE`, ...
    pub fn kind(&self) -> &str {
        &self.recipe.kind
    }

    /// The number format of the encoder's weights.
    pub fn format(&self) -> Option<Format> {
        self.weights.tensor(&self.recipe.encoder.name).ok().map(|t| t.format())
    }

    /// Does an SAE lie there, whether it can be read or not?
    pub fn is_at(path: &Path) -> bool {
        layout::find(path, None).is_ok()
    }

    /// The file that holds the weights.
    pub fn weights(&self) -> PathBuf {
        PathBuf::from(self.weights.place())
    }

    /// The width of the residual stream.
    pub fn d_in(&self) -> usize {
        self.recipe.d_in
    }

    /// The number of features.
    pub fn d_sae(&self) -> usize {
        self.recipe.d_sae
    }

    /// How features are gated.
    pub fn architecture(&self) -> Architecture {
        match self.recipe.gate {
            Gate::Relu => Architecture::Standard,
            _ => Architecture::JumpRelu,
        }
    }

    /// Is the decoder bias subtracted from the input? ([`Feature::b`] has it folded in.)
    pub fn applies_decoder_bias_to_input(&self) -> bool {
        self.recipe.shift != 0.0
    }

    /// The factor by which the SAE's input is multiplied, folded into [`Feature::w`] and [`Feature::d`]; 1 for most.
    pub fn input_scale(&self) -> f64 {
        self.recipe.input
    }

    /// The decoder layer after which the SAE reads the stream, if its files say so in TransformerLens' words.
    pub fn layer(&self) -> Option<usize> {
        layer_of(self.hook_name()?)
    }

    /// Where in the model the SAE reads, as in `blocks.15.hook_resid_post`, if the files say so.
    pub fn hook_name(&self) -> Option<&str> {
        self.recipe.hook_name.as_deref()
    }

    /// The model it was trained on, if the files say so.
    pub fn model_name(&self) -> Option<&str> {
        self.recipe.model_name.as_deref()
    }

    /// One feature. For several, [`Sae::features`] is faster where the file has features in columns.
    ///
    /// # Errors
    /// If there is no such feature, or one of its numbers is not finite.
    pub fn feature(&self, index: usize) -> Result<Feature> {
        self.features(&[index])?.pop().ok_or_else(|| Error::input("no feature was asked for"))
    }

    /// Features in the order asked for. A matrix that has features in columns is passed over once, at these columns only.
    ///
    /// # Errors
    /// If there is no such feature, or one of their numbers is not finite.
    pub fn features(&self, indices: &[usize]) -> Result<Vec<Feature>> {
        if let Some(index) = indices.iter().find(|i| **i >= self.recipe.d_sae) {
            return Err(Error::input(format!("the SAE has no feature {index}"))
                .at(self.weights.place())
                .help(valid_range("features", self.recipe.d_sae)));
        }
        let encoder = self.vectors(&self.recipe.encoder, indices)?;
        let decoder = self.vectors(&self.recipe.decoder, indices)?;
        let b_dec = match &self.recipe.b_dec {
            Some(name) if self.recipe.shift != 0.0 => Some(self.weights.tensor(name)?.vector()?),
            _ => None,
        };
        let rows = indices.par_iter().zip(encoder).zip(decoder);
        let one = |((&f, e), d)| self.assemble(f, e, d, b_dec.as_deref()).at(|| format!("feature {f}"));
        in_order(rows.map(one))
    }

    /// The asked features' vectors in a matrix.
    fn vectors(&self, matrix: &Matrix, indices: &[usize]) -> Result<Vec<Vec<f64>>> {
        let tensor = self.weights.tensor(&matrix.name)?;
        if matrix.rows {
            return in_order(indices.par_iter().map(|&f| tensor.row(f).at(|| format!("feature {f}"))));
        }
        tensor.columns(indices).map_err(|e| match indices.iter().find(|f| tensor.columns(&[**f]).is_err()) {
            Some(f) => e.at(format!("feature {f}")),
            None => e,
        })
    }

    /// A feature from its rows in the file, as [`Recipe`] says.
    fn assemble(&self, f: usize, mut e: Vec<f64>, mut d: Vec<f64>, b_dec: Option<&[f64]>) -> Result<Feature> {
        let recipe = &self.recipe;
        let at = |name: &Option<String>, without: f64| -> Result<f64> {
            name.as_ref().map_or(Ok(without), |name| self.weights.tensor(name)?.get(f))
        };
        let norm = if recipe.norms == Norms::Plain { 1.0 } else { d.iter().map(|x| x * x).sum::<f64>().sqrt() };
        let n = match recipe.norms {
            Norms::Unit(factor) => factor * norm,
            Norms::NearlyUnit if (norm - 1.0).abs() > 1e-5 => norm,
            _ => 1.0,
        };
        if !(n > 0.0) {
            return Err(Error::input("its decoder row is 0, and activations are in units of its norm"));
        }
        let beta = at(&recipe.bias, 0.0)?;
        let (r, threshold) = match &recipe.gate {
            Gate::Relu => (1.0, 0.0),
            Gate::Fixed(threshold) => (1.0, *threshold),
            Gate::Thresholds(name) => (1.0, self.threshold(name, f)?),
            Gate::Logarithms(name) => (1.0, self.threshold(name, f)?.exp()),
            // Active where u + b_gate > 0 with u = <e, x - b_dec>; z = r u + b_mag, so where z > b_mag - r b_gate.
            Gate::Gated { r_mag, b_gate } => {
                let r = self.weights.tensor(r_mag)?.get(f)?.exp();
                (r, minus_dot(beta, &[r], &[self.weights.tensor(b_gate)?.get(f)?]))
            }
        };
        let threshold = if recipe.norms == Norms::Threshold { threshold / norm } else { threshold };
        let bias = recipe.bias_gain * n * beta;
        let b = match b_dec {
            None => bias,
            Some(b_dec) => {
                let gain = recipe.shift * r * n;
                let scaled: Vec<f64> = e.iter().map(|x| gain * x).collect();
                minus_dot(bias, &scaled, b_dec)
            }
        };
        let (input, output) = (recipe.input * r * n, recipe.output * at(&recipe.factors, 1.0)? / n);
        e.iter_mut().for_each(|x| *x *= input);
        d.iter_mut().for_each(|x| *x *= output);
        if !(b.is_finite() && threshold.is_finite() && e.iter().chain(&d).all(|x| x.is_finite())) {
            return Err(Error::input("its rows, bias or threshold overflow").at(self.weights.place()));
        }
        Ok(Feature { index: f, w: e, b, d, threshold: threshold.max(0.0) })
    }

    /// A feature's entry of a tensor of thresholds.
    fn threshold(&self, name: &str, f: usize) -> Result<f64> {
        let tensor = self.weights.tensor(name)?;
        tensor.get(if tensor.len() == 1 { 0 } else { f })
    }

    /// All features' thresholds, θ of z: 0 for `standard`.
    ///
    /// # Errors
    /// If one is not finite.
    pub fn thresholds(&self) -> Result<Vec<f64>> {
        match &self.recipe.gate {
            Gate::Relu => Ok(vec![0.0; self.recipe.d_sae]),
            Gate::Fixed(threshold) => Ok(vec![*threshold; self.recipe.d_sae]),
            Gate::Thresholds(name) | Gate::Logarithms(name) => {
                let log = matches!(self.recipe.gate, Gate::Logarithms(_));
                let tensor = self.weights.tensor(name)?;
                let norms = if self.recipe.norms == Norms::Threshold { Some(self.decoder_norms()?) } else { None };
                let of = |f: usize| {
                    let t = tensor.get(if tensor.len() == 1 { 0 } else { f })?;
                    let t = if log { t.exp() } else { t };
                    Ok((t / norms.as_ref().map_or(1.0, |n| n[f])).max(0.0))
                };
                (0..self.recipe.d_sae).map(of).collect()
            }
            Gate::Gated { r_mag, b_gate } => {
                let Some(b_mag) = &self.recipe.bias else { return Err(Error::input("a gated SAE without b_mag")) };
                let (r, gate, mag) =
                    (self.weights.tensor(r_mag)?, self.weights.tensor(b_gate)?, self.weights.tensor(b_mag)?);
                let of = |f| Ok(minus_dot(mag.get(f)?, &[r.get(f)?.exp()], &[gate.get(f)?]).max(0.0));
                (0..self.recipe.d_sae).map(of).collect()
            }
        }
    }

    /// The norm of every decoder row in the file, in one pass over it.
    fn decoder_norms(&self) -> Result<Vec<f64>> {
        let tensor = self.weights.tensor(&self.recipe.decoder.name)?;
        if self.recipe.decoder.rows {
            let norm = |f| Ok(tensor.row(f)?.iter().map(|x| x * x).sum::<f64>().sqrt());
            return (0..self.recipe.d_sae).map(norm).collect();
        }
        let mut squares = vec![0.0; self.recipe.d_sae];
        for coordinate in 0..self.recipe.d_in {
            squares.iter_mut().zip(tensor.row(coordinate)?).for_each(|(s, x)| *s += x * x);
        }
        Ok(squares.into_iter().map(f64::sqrt).collect())
    }

    /// The decoder bias in the stream's units, `d_in` values: the reconstruction is Σ_f a_f·d_f plus this. 0 where the SAE
    /// has none.
    ///
    /// # Errors
    /// If one of them is not finite.
    pub fn decoder_bias(&self) -> Result<Vec<f64>> {
        let Some(name) = &self.recipe.b_dec else { return Ok(vec![0.0; self.recipe.d_in]) };
        let mut values = self.weights.tensor(name)?.vector()?;
        values.iter_mut().for_each(|x| *x *= self.recipe.b_dec_output);
        Ok(values)
    }
}

/// The dimensions of a matrix of features: (d_in, d_sae).
fn dimensions(weights: &TensorFile, matrix: &Matrix) -> Result<(usize, usize)> {
    let tensor: Tensor<'_> = weights.tensor(&matrix.name)?;
    match *tensor.shape() {
        [f, d] if matrix.rows && f > 0 && d > 0 => Ok((d, f)),
        [d, f] if !matrix.rows && f > 0 && d > 0 => Ok((d, f)),
        _ => {
            Err(Error::input(format!("tensor '{}' has shape {:?}, not that of a matrix", matrix.name, tensor.shape()))
                .at(weights.place()))
        }
    }
}

/// c − ⟨a, b⟩ as if in twice the precision of f64, then rounded (Ogita, Rump and Oishi's Dot2).
fn minus_dot(c: f64, a: &[f64], b: &[f64]) -> f64 {
    let (mut sum, mut rest) = (c, 0.0);
    for (x, y) in a.iter().zip(b) {
        let product = -x * y;
        let product_error = (-x).mul_add(*y, -product);
        let next = sum + product;
        let shadow = next - sum;
        let sum_error = (sum - (next - shadow)) + (product - shadow);
        sum = next;
        rest += product_error + sum_error;
    }
    sum + rest
}

/// The decoder layer after which a TransformerLens hook reads the stream; `None` for hooks elsewhere.
pub fn layer_of(hook: &str) -> Option<usize> {
    let number = |text: &str| text.parse::<usize>().ok();
    match hook.split('.').collect::<Vec<_>>()[..] {
        ["blocks", n, "hook_resid_post"] => number(n),
        ["blocks", n, "hook_resid_pre"] => number(n)?.checked_sub(1),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
