//! Sparse autoencoders as they are on disk: SAELens directories (`cfg.json` and `sae_weights.safetensors`).
//!
//! With z = x·W_enc + b (b as in [`Feature::b`]), feature f has the activation
//!
//! | architecture | activation |
//! |---|---|
//! | `standard` | relu(z) |
//! | `jumprelu` | z where z > θ, else 0 (strict; θ = [`Feature::threshold`]) |
//!
//! and writes along its decoder row d = W_dec\[f\]. Other architectures are refused: a top-k feature is no function of
//! its own pre-activation, and the input normalisations make z depend on each token's norm.
//!
//! Opening reads `cfg.json` and the header of the weights; [`Sae::features`] reads the asked features' numbers only.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{At, Error, Result};
use crate::tensors::{Format, Tensor, TensorFile, quoted, valid_range};

/// The name of the configuration in an SAE's directory.
pub const CFG_FILE: &str = "cfg.json";

/// The name of the weights in an SAE's directory.
pub const WEIGHTS_FILE: &str = "sae_weights.safetensors";

/// No configuration is this long; what is longer is not read.
const MAX_CFG_BYTES: u64 = 16 << 20;

/// How features are gated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// relu(z)
    Standard,
    /// z where z > θ, else 0
    JumpRelu,
}

impl Architecture {
    /// Its name in `cfg.json`.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Standard => "standard",
            Architecture::JumpRelu => "jumprelu",
        }
    }
}

/// One feature's numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Feature {
    /// Its index in the SAE.
    pub index: usize,
    /// The encoder's column W_enc\[:, index\]: `d_in` values, exactly those of the file.
    pub w: Vec<f64>,
    /// The bias of the pre-activation z = ⟨w, x⟩ + b: `b_enc[index]`, less ⟨w, b_dec⟩ where the SAE subtracts its
    /// decoder bias from its input (`apply_b_dec_to_input`). That difference is accumulated in twice the precision of
    /// f64 and then rounded to f64: from here on, the rounded number is the bias.
    pub b: f64,
    /// The decoder's row W_dec\[index\]: `d_in` values, exactly those of the file.
    pub d: Vec<f64>,
    /// θ: the feature is active where z > θ. 0 for `standard`; the file's threshold for `jumprelu`, or 0 where that is
    /// negative: SAELens gates relu(z), which no threshold below 0 changes.
    pub threshold: f64,
}

/// An open SAE.
#[derive(Debug)]
pub struct Sae {
    cfg: Cfg,
    weights: TensorFile,
}

#[derive(Debug)]
struct Cfg {
    architecture: Architecture,
    d_in: usize,
    d_sae: usize,
    apply_b_dec_to_input: bool,
    format: Option<Format>,
    hook_name: Option<String>,
    model_name: Option<String>,
}

impl Sae {
    /// Opens a directory that holds `cfg.json` and `sae_weights.safetensors`.
    ///
    /// The weights are memory-mapped: they must not be rewritten while the SAE is in use.
    ///
    /// # Errors
    /// If a file is missing or malformed, the two contradict each other, or the SAE is of a kind that is not supported.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let cfg_path = dir.join(CFG_FILE);
        let place = cfg_path.display().to_string();
        if !dir.is_dir() {
            return Err(Error::input(format!("no SAE: {} is not a directory", dir.display()))
                .help(format!("name the directory that holds {CFG_FILE} and {WEIGHTS_FILE}")));
        }
        let file = File::open(&cfg_path).map_err(|e| {
            let help = format!("an SAE directory in the SAELens layout holds {CFG_FILE} and {WEIGHTS_FILE}");
            Error::io(format!("{place}: cannot open the SAE's configuration"), e).help(help)
        })?;
        let mut text = String::new();
        (file.take(MAX_CFG_BYTES + 1).read_to_string(&mut text))
            .map_err(|e| Error::io(format!("{place}: cannot read the SAE's configuration"), e))?;
        let cfg = Cfg::parse(&text).at(|| place)?;
        Self::new(cfg, TensorFile::open(dir.join(WEIGHTS_FILE))?)
    }

    /// An SAE that is in memory already: the text of its `cfg.json` and its weights file.
    ///
    /// # Errors
    /// As [`Sae::open`].
    pub fn from_bytes(cfg: &str, weights: impl Into<Vec<u8>>) -> Result<Self> {
        let cfg = Cfg::parse(cfg).at(|| CFG_FILE.into())?;
        Self::new(cfg, TensorFile::from_bytes(WEIGHTS_FILE, weights)?)
    }

    fn new(cfg: Cfg, weights: TensorFile) -> Result<Self> {
        let sae = Sae { cfg, weights };
        let (d_in, d_sae) = (sae.cfg.d_in, sae.cfg.d_sae);
        let mut expected = vec![
            ("W_enc", vec![d_in, d_sae], "[d_in, d_sae]"),
            ("b_enc", vec![d_sae], "[d_sae]"),
            ("W_dec", vec![d_sae, d_in], "[d_sae, d_in]"),
            ("b_dec", vec![d_in], "[d_in]"),
        ];
        match sae.cfg.architecture {
            Architecture::JumpRelu => expected.push(("threshold", vec![d_sae], "[d_sae]")),
            // With thresholds beside it, one of the two files is not this SAE's.
            Architecture::Standard if sae.weights.contains("threshold") => {
                return Err(Error::input("the weights hold a tensor 'threshold', which a standard SAE has none of")
                    .at(sae.weights.place())
                    .help(format!("if it is a JumpReLU SAE, write \"architecture\": \"jumprelu\" in {CFG_FILE}")));
            }
            Architecture::Standard => {}
        }
        for (name, shape, meaning) in expected {
            let tensor = sae.weights.tensor(name)?;
            tensor
                .expect_shape(&shape, meaning)
                .map_err(|e| e.help(format!("{CFG_FILE} gives d_in = {d_in} and d_sae = {d_sae}")))?;
            match sae.cfg.format {
                Some(format) if !format.holds(tensor.format()) => {
                    let what = format!("tensor '{name}' holds {}, but {CFG_FILE} says dtype {format}", tensor.format());
                    return Err(Error::input(what).at(sae.weights.place()).help(format!(
                        "SAELens would round the weights on loading: write dtype {} in {CFG_FILE}, or convert the weights",
                        tensor.format()
                    )));
                }
                _ => {}
            }
        }
        Ok(sae)
    }

    /// The width of the residual stream.
    pub fn d_in(&self) -> usize {
        self.cfg.d_in
    }

    /// The number of features.
    pub fn d_sae(&self) -> usize {
        self.cfg.d_sae
    }

    /// How features are gated.
    pub fn architecture(&self) -> Architecture {
        self.cfg.architecture
    }

    /// Is the decoder bias subtracted from the input? ([`Feature::b`] has it folded in.)
    pub fn applies_decoder_bias_to_input(&self) -> bool {
        self.cfg.apply_b_dec_to_input
    }

    /// Where in the model the SAE reads, as in `blocks.15.hook_resid_post`, if the configuration says so.
    pub fn hook_name(&self) -> Option<&str> {
        self.cfg.hook_name.as_deref()
    }

    /// The model it was trained on, if the configuration says so.
    pub fn model_name(&self) -> Option<&str> {
        self.cfg.model_name.as_deref()
    }

    /// One feature. For several, [`Sae::features`] is faster: W_enc has them in columns.
    ///
    /// # Errors
    /// If there is no such feature, or one of its numbers is not finite.
    pub fn feature(&self, index: usize) -> Result<Feature> {
        self.features(&[index])?.pop().ok_or_else(|| Error::input("no feature was asked for"))
    }

    /// Features in the order asked for. W_enc is read row by row, at the asked columns only.
    ///
    /// # Errors
    /// If there is no such feature, or one of their numbers is not finite.
    pub fn features(&self, indices: &[usize]) -> Result<Vec<Feature>> {
        let (d_in, d_sae) = (self.cfg.d_in, self.cfg.d_sae);
        if let Some(index) = indices.iter().find(|i| **i >= d_sae) {
            return Err(Error::input(format!("the SAE has no feature {index}"))
                .at(self.weights.place())
                .help(valid_range("features", d_sae)));
        }
        let [w_enc, b_enc, w_dec] =
            [self.weights.tensor("W_enc")?, self.weights.tensor("b_enc")?, self.weights.tensor("W_dec")?];
        let threshold = match self.cfg.architecture {
            Architecture::JumpRelu => Some(self.weights.tensor("threshold")?),
            Architecture::Standard => None,
        };
        let b_dec = if self.cfg.apply_b_dec_to_input { Some(self.decoder_bias()?) } else { None };

        let read = |t: &Tensor<'_>, position, f| t.get(position).at(|| format!("feature {f}"));
        let mut columns = vec![Vec::with_capacity(d_in); indices.len()];
        for coordinate in 0..d_in {
            for (column, &f) in columns.iter_mut().zip(indices) {
                column.push(read(&w_enc, coordinate * d_sae + f, f)?);
            }
        }
        let feature = |(&index, w): (&usize, Vec<f64>)| {
            let b_enc = read(&b_enc, index, index)?;
            let b = match &b_dec {
                None => b_enc,
                Some(b_dec) => minus_dot(b_enc, &w, b_dec),
            };
            if !b.is_finite() {
                return Err(Error::input("b_enc - <W_enc, b_dec> overflows")
                    .at(format!("feature {index}"))
                    .at(self.weights.place()));
            }
            let d = w_dec.row(index).at(|| format!("feature {index}"))?;
            let threshold = match &threshold {
                None => 0.0,
                Some(t) => Some(read(t, index, index)?).filter(|t| *t > 0.0).unwrap_or(0.0),
            };
            Ok(Feature { index, w, b, d, threshold })
        };
        indices.iter().zip(columns).map(feature).collect()
    }

    /// The decoder bias b_dec: `d_in` values.
    ///
    /// # Errors
    /// If one of them is not finite.
    pub fn decoder_bias(&self) -> Result<Vec<f64>> {
        self.weights.tensor("b_dec")?.vector()
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

impl Cfg {
    fn parse(text: &str) -> Result<Self> {
        if text.len() as u64 > MAX_CFG_BYTES {
            return Err(Error::input(format!("longer than {MAX_CFG_BYTES} bytes: no SAE configuration")));
        }
        let value: Value = serde_json::from_str(text).map_err(|e| Error::input(format!("malformed JSON: {e}")))?;
        let Value::Object(top) = value else {
            return Err(Error::input("not a JSON object").help("a configuration is an object: { \"d_in\": ... }"));
        };
        // Version 6 moved what describes the model into an object of its own; older files are flat.
        let fields = Fields { metadata: top.get("metadata").and_then(Value::as_object), top: &top };
        let architecture = architecture(&fields)?;
        refuse_unsupported(&fields)?;
        Ok(Cfg {
            architecture,
            d_in: fields.dimension("d_in")?,
            d_sae: fields.dimension("d_sae")?,
            // The default of every SAELens version.
            apply_b_dec_to_input: fields.flag("apply_b_dec_to_input")?.unwrap_or(true),
            format: fields.text("dtype")?.map(|name| name.parse::<Format>().at(|| "dtype".into())).transpose()?,
            hook_name: fields.described("hook_name").or(fields.described("hook_point")),
            model_name: fields.described("model_name"),
        })
    }
}

fn architecture(fields: &Fields<'_>) -> Result<Architecture> {
    let named = fields.text("architecture")?;
    // Files from before the field existed are standard.
    let name = named.unwrap_or("standard").to_ascii_lowercase();
    let refuse = |why: &str, help: &str| {
        Err(Error::unsupported(format!("SAEs of architecture {} cannot be read: {why}", quoted(&name)))
            .help(help.to_string()))
    };
    match name.as_str() {
        "standard" => Ok(Architecture::Standard),
        "jumprelu" => Ok(Architecture::JumpRelu),
        "topk" | "batchtopk" | "matryoshka_batchtopk" | "matching_pursuit" => refuse(
            "whether a feature is active depends on all the others at that token",
            "use a jumprelu or standard SAE (SAELens saves a trained batchtopk SAE as jumprelu, with thresholds)",
        ),
        "gated" => refuse("activity and magnitude are two different pre-activations", "use a standard or jumprelu SAE"),
        _ if name.contains("transcoder") || name.contains("clt") => refuse(
            "it writes at another place than it reads",
            "use a standard or jumprelu SAE that was trained on the residual stream",
        ),
        _ => refuse("it is not known here", "known architectures: standard, jumprelu"),
    }
}

/// Settings that change what a feature computes, and are not modelled.
fn refuse_unsupported(fields: &Fields<'_>) -> Result<()> {
    let setting = |name: &str, value: &str, why: &str, help: &str| {
        Err(Error::unsupported(format!("{name} = {} is not supported: {why}", quoted(value))).help(help.to_string()))
    };
    match fields.top.get("normalize_activations") {
        None | Some(Value::Null | Value::Bool(false)) => {}
        Some(Value::String(s)) if s == "none" => {}
        Some(Value::String(s)) if s != "expected_average_only_in" => {
            return setting(
                "normalize_activations",
                s,
                "it divides by each token's own norm, so no pre-activation is affine in x",
                "use an SAE with normalize_activations = none",
            );
        }
        Some(Value::String(_) | Value::Bool(true)) => {
            return setting(
                "normalize_activations",
                "expected_average_only_in",
                "the factor is not part of the file",
                "fold it into the weights (fold_activation_norm_scaling_factor in SAELens) and save the SAE again",
            );
        }
        Some(other) => return Err(wrong_type("normalize_activations", other, "a string")),
    }
    for name in ["activation_fn", "activation_fn_str"] {
        match fields.text(name)? {
            None | Some("relu") => {}
            Some(s) => {
                return setting(
                    name,
                    s,
                    "features are gated by relu or jumprelu only",
                    "use an SAE with that activation",
                );
            }
        }
    }
    let reshape = fields.text("reshape_activations")?;
    let hook = fields.described("hook_name").or(fields.described("hook_point")).unwrap_or_default();
    if reshape.unwrap_or("none") != "none" || (reshape.is_none() && hook.ends_with("hook_z")) {
        return setting(
            "reshape_activations",
            reshape.unwrap_or("hook_z"),
            "the SAE reads attention heads, not the residual stream",
            "use an SAE that was trained on the residual stream",
        );
    }
    if fields.flag("finetuning_scaling_factor")? == Some(true) {
        return setting(
            "finetuning_scaling_factor",
            "true",
            "the factors scale the activations after the gate",
            "multiply the rows of W_dec by them, set finetuning_scaling_factor to false and save the SAE again",
        );
    }
    Ok(())
}

/// The fields of a configuration, each with the type that it must have.
struct Fields<'a> {
    top: &'a Map<String, Value>,
    metadata: Option<&'a Map<String, Value>>,
}

impl<'a> Fields<'a> {
    fn dimension(&self, name: &str) -> Result<usize> {
        let Some(value) = self.top.get(name) else {
            return Err(Error::input(format!("the field {name} is missing"))
                .help(format!("write \"{name}\": a positive integer")));
        };
        let n = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        n.ok_or_else(|| wrong_type(name, value, "a positive integer"))
    }

    fn text(&self, name: &str) -> Result<Option<&'a str>> {
        match self.top.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(wrong_type(name, other, "a string")),
        }
    }

    fn flag(&self, name: &str) -> Result<Option<bool>> {
        match self.top.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(wrong_type(name, other, "true or false")),
        }
    }

    /// What only describes: never an error.
    fn described(&self, name: &str) -> Option<String> {
        let value = self.metadata.and_then(|m| m.get(name)).or_else(|| self.top.get(name))?;
        value.as_str().map(str::to_string)
    }
}

fn wrong_type(name: &str, value: &Value, wanted: &str) -> Error {
    Error::input(format!("the field {name} must be {wanted}, not {}", quoted(&value.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensors::tests::{f32s, file};
    use proptest::prelude::*;
    use safetensors::tensor::Dtype;

    const CFG: &str = r#"{"architecture": "jumprelu", "d_in": 2, "d_sae": 3, "dtype": "float32",
        "apply_b_dec_to_input": false, "normalize_activations": "none",
        "metadata": {"model_name": "m", "hook_name": "blocks.0.hook_resid_post"}}"#;

    type Tensors = Vec<(&'static str, Dtype, Vec<usize>, Vec<u8>)>;

    fn tensors() -> Tensors {
        vec![
            ("W_enc", Dtype::F32, vec![2, 3], f32s(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
            ("b_enc", Dtype::F32, vec![3], f32s(&[0.5, -0.5, 0.25])),
            ("W_dec", Dtype::F32, vec![3, 2], f32s(&[1.0, 0.0, 0.0, 1.0, -1.0, 2.0])),
            ("b_dec", Dtype::F32, vec![2], f32s(&[0.125, 10.0])),
            ("threshold", Dtype::F32, vec![3], f32s(&[0.75, -1.0, 2.0])),
        ]
    }

    fn with(name: &'static str, dtype: Dtype, shape: Vec<usize>, bytes: Vec<u8>) -> Tensors {
        let mut all = tensors();
        all.retain(|t| t.0 != name);
        all.push((name, dtype, shape, bytes));
        all
    }

    fn open(cfg: &str, tensors: &Tensors) -> Result<Sae> {
        Sae::from_bytes(cfg, file(tensors))
    }

    fn refusal(cfg: &str, tensors: &Tensors) -> String {
        let e = open(cfg, tensors).expect_err("malformed");
        assert!(e.is_input(), "{e}");
        e.to_string()
    }

    #[test]
    fn reads_features() {
        let sae = open(CFG, &tensors()).unwrap();
        assert_eq!((sae.d_in(), sae.d_sae(), sae.architecture()), (2, 3, Architecture::JumpRelu));
        assert_eq!((sae.hook_name(), sae.model_name()), (Some("blocks.0.hook_resid_post"), Some("m")));
        let two = Feature { index: 2, w: vec![3.0, 6.0], b: 0.25, d: vec![-1.0, 2.0], threshold: 2.0 };
        assert_eq!(sae.feature(2).unwrap(), two);
        let batch = sae.features(&[2, 0, 2]).unwrap();
        assert_eq!(batch.iter().map(|f| f.index).collect::<Vec<_>>(), [2, 0, 2]);
        assert_eq!(batch[2], two);
        assert_eq!(batch[1], sae.feature(0).unwrap());
        assert_eq!(sae.feature(1).unwrap().threshold, 0.0, "a negative threshold gates nothing that relu does not");
        assert_eq!(sae.decoder_bias().unwrap(), [0.125, 10.0]);
        assert!(sae.features(&[]).unwrap().is_empty());
    }

    #[test]
    fn folds_the_decoder_bias() {
        let cfg = CFG.replace("false", "true");
        // 0.25 - (3 * 0.125 + 6 * 10)
        assert_eq!(open(&cfg, &tensors()).unwrap().feature(2).unwrap().b, -60.125);
        // The default, in a flat file from before version 6.
        let flat = r#"{"architecture": "standard", "d_in": 2, "d_sae": 3, "activation_fn_str": "relu", "dtype": "torch.float32"}"#;
        let mut standard = tensors();
        standard.pop();
        let sae = open(flat, &standard).unwrap();
        let f = sae.feature(2).unwrap();
        assert_eq!((f.b, f.threshold, sae.architecture()), (-60.125, 0.0, Architecture::Standard));
        assert!(sae.applies_decoder_bias_to_input() && sae.hook_name().is_none());
    }

    #[test]
    fn the_fold_keeps_what_a_plain_sum_would_lose() {
        assert_eq!(minus_dot(1.0, &[1e17, -1e17, 1.0], &[1.0, 1.0, -0.5]), 1.5);
    }

    #[test]
    fn out_of_range_features_name_the_range() {
        let e = open(CFG, &tensors()).unwrap().features(&[0, 3]).unwrap_err();
        assert!(e.is_input());
        assert!(e.to_string().contains("no feature 3") && e.to_string().contains("0 to 2"), "{e}");
    }

    #[test]
    fn refuses_weights_that_contradict_the_configuration() {
        for (name, _, _, _) in tensors() {
            let mut missing = tensors();
            missing.retain(|t| t.0 != name);
            assert!(refusal(CFG, &missing).contains(&format!("no tensor '{name}'")));
        }
        let transposed = with("W_enc", Dtype::F32, vec![3, 2], f32s(&[0.0; 6]));
        let text = refusal(CFG, &transposed);
        assert!(text.contains("'W_enc' has shape [3, 2], not [d_in, d_sae] = [2, 3]"), "{text}");
        let text = refusal(&CFG.replace("\"d_sae\": 3", "\"d_sae\": 4"), &tensors());
        assert!(text.contains("[2, 3]") && text.contains("d_sae = 4"), "{text}");
        assert!(refusal(CFG, &with("b_enc", Dtype::I32, vec![3], vec![0; 12])).contains("'b_enc' holds I32"));
        assert!(refusal(&CFG.replace("float32", "bfloat16"), &tensors()).contains("dtype bf16"));
        assert!(refusal(&CFG.replace("jumprelu", "standard"), &tensors()).contains("'threshold'"));
        assert!(open(&CFG.replace("float32", "float64"), &tensors()).is_ok());
        let mut cut = file(&tensors());
        cut.pop();
        assert!(Sae::from_bytes(CFG, cut).unwrap_err().to_string().contains("truncated"));
    }

    #[test]
    fn names_the_value_that_is_not_finite() {
        let nan = f32::NAN;
        let of =
            |name, shape: Vec<usize>, values: &[f32]| open(CFG, &with(name, Dtype::F32, shape, f32s(values))).unwrap();
        let w = of("W_enc", vec![2, 3], &[0.0, 0.0, 0.0, 0.0, nan, 0.0]);
        assert!(w.features(&[0, 2]).is_ok(), "only what is asked for is read");
        let e = w.feature(1).unwrap_err();
        assert!(
            e.is_input()
                && e.to_string().starts_with("feature 1: sae_weights.safetensors: tensor 'W_enc'[1, 1] is NaN"),
            "{e}"
        );
        let text = |sae: Sae| sae.feature(1).unwrap_err().to_string();
        assert!(
            text(of("W_dec", vec![3, 2], &[0.0, 0.0, f32::INFINITY, 0.0, 0.0, 0.0])).contains("'W_dec'[1, 0] is inf")
        );
        assert!(text(of("b_enc", vec![3], &[0.0, nan, 0.0])).contains("'b_enc'[1] is NaN"));
        assert!(text(of("threshold", vec![3], &[0.0, -f32::INFINITY, 0.0])).contains("'threshold'[1] is -inf"));
        let sae = of("b_dec", vec![2], &[0.0, nan]);
        assert!(sae.feature(0).is_ok() && sae.decoder_bias().unwrap_err().to_string().contains("'b_dec'[1]"));
    }

    #[test]
    fn refuses_what_it_does_not_model() {
        let standard = CFG.replace("\"none\"", "\"none\", \"activation_fn\": \"relu\"");
        assert!(open(&standard, &tensors()).is_ok());
        for (from, to) in [
            ("\"jumprelu\"", "\"topk\""),
            ("\"jumprelu\"", "\"gated\""),
            ("\"jumprelu\"", "\"transcoder\""),
            ("\"jumprelu\"", "\"something\""),
            ("\"none\"", "\"layer_norm\""),
            ("\"none\"", "\"expected_average_only_in\""),
            ("\"none\"", "true"),
            ("\"none\"", "\"none\", \"activation_fn_str\": \"topk\""),
            ("\"none\"", "\"none\", \"reshape_activations\": \"hook_z\""),
            ("\"none\"", "\"none\", \"finetuning_scaling_factor\": true"),
            ("hook_resid_post", "attn.hook_z"),
        ] {
            let e = open(&CFG.replace(from, to), &tensors()).expect_err(to);
            assert!(e.is_unsupported() && e.to_string().contains("help:"), "{e}");
        }
    }

    #[test]
    fn refuses_malformed_configurations() {
        for (from, to, said) in [
            ("\"d_in\": 2,", "", "d_in is missing"),
            ("\"d_in\": 2", "\"d_in\": -2", "d_in must be a positive integer"),
            ("\"d_in\": 2", "\"d_in\": 0", "d_in must be a positive integer"),
            ("\"d_in\": 2", "\"d_in\": \"2\"", "d_in must be a positive integer"),
            ("\"d_in\": 2", "\"d_in\": 18446744073709551615", "[18446744073709551615, 3]"),
            ("float32", "int8", "unknown number format 'int8'"),
            ("false", "0", "apply_b_dec_to_input must be true or false"),
            ("\"jumprelu\"", "7", "architecture must be a string"),
            ("{", "", "cfg.json: malformed JSON"),
        ] {
            let text = refusal(&CFG.replacen(from, to, 1), &tensors());
            assert!(text.contains(said), "{text}");
        }
        assert!(refusal("[]", &tensors()).contains("not a JSON object"));
    }

    #[test]
    fn opens_directories() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Sae::open(dir.path().join("none")).unwrap_err().to_string().contains("is not a directory"));
        assert!(Sae::open(dir.path()).unwrap_err().is_io());
        std::fs::write(dir.path().join(CFG_FILE), CFG).unwrap();
        assert!(Sae::open(dir.path()).unwrap_err().to_string().contains(WEIGHTS_FILE));
        std::fs::write(dir.path().join(WEIGHTS_FILE), file(&tensors())).unwrap();
        assert_eq!(Sae::open(dir.path()).unwrap().feature(0).unwrap().w, [1.0, 4.0]);
        std::fs::write(dir.path().join(CFG_FILE), [0xff, 0xfe]).unwrap();
        assert!(Sae::open(dir.path()).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn damaged_configurations_are_read_or_refused(at in any::<prop::sample::Index>(), with in "\\PC?|[0-9{}\\[\\]\",:-]") {
            let mut cfg = CFG.to_string();
            let at = at.index(cfg.len());
            cfg.replace_range(at..=at, &with);
            if let Ok(sae) = open(&cfg, &tensors()) {
                let _ = (sae.features(&[0, 1]), sae.decoder_bias());
            }
        }

        #[test]
        fn damaged_weights_are_read_or_refused(at in any::<prop::sample::Index>(), with in any::<u8>()) {
            let mut bytes = file(&tensors());
            let at = at.index(bytes.len());
            bytes[at] = with;
            if let Ok(sae) = Sae::from_bytes(CFG, bytes) {
                let _ = (sae.features(&[0, 1, 2]), sae.decoder_bias());
            }
        }
    }
}
