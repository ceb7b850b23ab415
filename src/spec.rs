//! The specification file: which features to intervene on, for which host, within which budget, on which domain.
//!
//! TOML or JSON with the same names; `docs/spec.md` is the reference. Reading checks everything that can be judged from
//! the file alone; whether the features exist is for the SAE to say, whether a response compiles for the compiler.
//!
//! [`condition`] reads what `when` says; what no inserted layer can do is refused with the reason.
//!
//! Numbers that go into formulas are exact. `value = 0.1` means one tenth: a TOML or JSON float stands for the shortest
//! decimal that reads back as the same f64, which is what a person wrote unless it had more than 15 digits. A string
//! (`"1/3"`, `"0.12345678901234567890"`) is exact always.
//!
//! ```
//! use neurograft::spec::{Action, Spec};
//!
//! let spec = Spec::parse_toml(r#"
//!     sae = "sae"
//!
//!     [[interventions]]
//!     feature = 228
//!     action = "cap"
//!     value = 38.6
//! "#)?;
//! assert_eq!(spec.interventions[0].action, Action::Cap("38.6".parse()?));
//! # Ok::<(), neurograft::error::Error>(())
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, Visitor};

use crate::activation::Activation;
use crate::compile::Depth;
use crate::error::{At, Error, Result, nearest};
use crate::interval::Interval;
use crate::number::Number;
use crate::sae::{Architecture, SaeOptions};
pub use crate::stack::Form;
use crate::tensors::{Format, quoted};

pub mod condition;
mod overlap;
mod raw;
mod refusals;
mod sae;

/// No specification is this long; what is longer is not read.
const MAX_BYTES: u64 = 16 << 20;

/// The largest `budget.neurons`: more than the hidden units of any MLP layer in use.
pub const MAX_NEURONS: usize = 1 << 16;

/// A checked specification of one place in the model. A file that names several (`[[sites]]`) holds several of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// `layer`: the decoder layer, counted from 0, whose output is read and written. Default: what the SAE's own
    /// configuration says (`blocks.N.hook_resid_post`).
    pub layer: Option<usize>,
    /// `layers`: how many layers may be inserted: 1, 2 or `"auto"`, the fewest that meet the tolerance. Default: `"auto"`.
    pub layers: Depth,
    /// `sequence`: which of several steps after the same layer this is, counted from 0; each reads what the one before it
    /// has left. Default: one step, 0.
    pub step: usize,
    /// `sae`: the SAE's directory or file of weights. Required where an intervention names features. A relative path is relative to the
    /// directory of the specification file; parsed from text, it is left as it is written.
    pub sae: Option<PathBuf>,
    /// What the SAE's files leave open, where `sae` is a table: `layout`, `threshold`, `norm_scaling_factor`.
    pub sae_options: SaeOptions,
    /// `[vectors.NAME]`: directions that are no features: probes, steering vectors.
    pub vectors: BTreeMap<String, VectorEntry>,
    /// `[[interventions]]`: at least one. All read the same, unmodified x, and their writes add up.
    pub interventions: Vec<Intervention>,
    /// `[host]`: what the MLP that runs the block can compute.
    pub host: Host,
    /// `[budget]`: what the block may cost, and how close it must come.
    pub budget: Budget,
    /// `[domain]`: where the certificate must hold.
    pub domain: Domain,
}

/// A `[vectors.NAME]` table: a direction v in a file, read as z = ⟨v, x⟩ + bias.
#[derive(Clone, Debug, PartialEq)]
pub struct VectorEntry {
    /// `file`: where it is. Required. A relative path is relative to the directory of the specification file.
    pub file: PathBuf,
    /// `tensor`: its name in the file. Default: the only tensor.
    pub tensor: Option<String>,
    /// `row`: which row, where the tensor has several. Default: the only row.
    pub row: Option<usize>,
    /// `unit`: is it scaled to norm 1? Default: `false`.
    pub unit: bool,
    /// `bias`: of z. Default: 0.
    pub bias: f64,
    /// `bias_tensor`: a tensor of the same file that holds the bias, in place of `bias`: its only number, or that of `row`.
    pub bias_tensor: Option<String>,
    /// `threshold`: the vector counts as active where z > threshold, and its activation is z there, else 0. Default:
    /// none; its activation is z itself.
    pub threshold: Option<Number>,
}

/// What an intervention reads or writes along.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// a feature of the SAE, by its index
    Feature(usize),
    /// a vector of `[vectors]`, by its name
    Vector(String),
    /// the whole SAE (action `reconstruct`)
    Sae,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Feature(index) => write!(f, "feature {index}"),
            Subject::Vector(name) => write!(f, "vector {name}"),
            Subject::Sae => f.write_str("the SAE"),
        }
    }
}

/// One `[[interventions]]` entry: x ← x + response · v.
#[derive(Clone, Debug, PartialEq)]
pub struct Intervention {
    /// `name`: what reports call it. Default: made of the entry's other fields.
    pub name: Option<String>,
    /// `feature` or `vector`: what z reads. Required.
    pub subject: Subject,
    /// `action`, with its `value` or `expr`. Required.
    pub action: Action,
    /// `when`, and `gate = k`, which means `when = "a_k > 0"`: the response counts only where this holds. Default: always.
    pub when: Option<String>,
    /// `direction`: `"encoder"` or `"decoder"`: what the features' pre-activations of this entry read. Default: `"encoder"`.
    pub direction: Direction,
    /// `bias`: do they have the SAE's bias? Default: `true`; decoder rows have none.
    pub bias: bool,
    /// `unit`: are decoder rows scaled to norm 1, where this entry reads or writes them? Default: `false`.
    pub unit: bool,
    /// `write`: what is written along, the feature's decoder row or the vector. Default: the subject.
    pub write: Subject,
    /// `activation`: `"relu"`, `"jumprelu"` or `"linear"`: how a depends on z. Default: as the SAE has it; linear for a
    /// vector without threshold, jumprelu for one with.
    pub activation: Option<Gating>,
    /// `range`: `[lo, hi]`, the values that this entry's pre-activations take. Default: `domain.range`.
    pub range: Option<Interval>,
    /// `band`: this entry's own `budget.band`. Default: `budget.band`.
    pub band: Option<f64>,
}

/// What an intervention makes of the activation a (a = relu(z), z where z > θ, or z itself: [`Gating`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// `"ablate"`: a becomes 0.
    Ablate,
    /// `"clamp"`: a becomes `value`, always.
    Clamp(Number),
    /// `"clamp_when_active"`: a becomes `value` where the feature is active.
    ClampWhenActive(Number),
    /// `"cap"`: a becomes min(a, `value`).
    Cap(Number),
    /// `"floor"`: a becomes max(a, `value`).
    Floor(Number),
    /// `"scale"`: a becomes `value`·a.
    Scale(Number),
    /// `"add"`: a becomes a + `value`, always: a constant steering vector.
    Add(Number),
    /// `"add_when_active"`: a becomes a + `value` where the feature is active.
    AddWhenActive(Number),
    /// `"expr"`: the response itself, as text in `z`, `a`, and `z_k`, `a_k` for a feature k or a vector k.
    Expr(String),
    /// `"reconstruct"`: x becomes the SAE's reconstruction of it, Σ_f a_f·W_dec\[f\] + b_dec.
    Reconstruct,
}

impl Action {
    /// Every name, in the order of the documentation.
    pub const NAMES: [&'static str; 10] = [
        "ablate",
        "clamp",
        "clamp_when_active",
        "cap",
        "floor",
        "scale",
        "add",
        "add_when_active",
        "expr",
        "reconstruct",
    ];

    /// Its name in the specification.
    pub fn name(&self) -> &'static str {
        match self {
            Action::Ablate => "ablate",
            Action::Clamp(_) => "clamp",
            Action::ClampWhenActive(_) => "clamp_when_active",
            Action::Cap(_) => "cap",
            Action::Floor(_) => "floor",
            Action::Scale(_) => "scale",
            Action::Add(_) => "add",
            Action::AddWhenActive(_) => "add_when_active",
            Action::Expr(_) => "expr",
            Action::Reconstruct => "reconstruct",
        }
    }

    /// Does the response depend on how z becomes an activation?
    fn is_gated(&self) -> bool {
        match self {
            Action::Add(_) => false,
            Action::Expr(text) => words(text).any(|w| w == "a"),
            _ => true,
        }
    }

    /// Does it change the component of x along what it reads, if it writes along the same?
    pub fn is_projection(&self) -> bool {
        !matches!(self, Action::Add(_) | Action::AddWhenActive(_) | Action::Expr(_) | Action::Reconstruct)
    }
}

/// How a pre-activation becomes an activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gating {
    /// relu(z): active where z > 0
    Relu,
    /// z where z > θ, else 0: active where z > θ
    JumpRelu,
    /// z itself: active where z > θ
    Linear,
}

impl From<Architecture> for Gating {
    fn from(architecture: Architecture) -> Self {
        match architecture {
            Architecture::Standard => Gating::Relu,
            Architecture::JumpRelu => Gating::JumpRelu,
        }
    }
}

/// What a pre-activation reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Direction {
    /// z = ⟨W_enc\[:, f\], x⟩ + b: the SAE's own pre-activation
    #[default]
    Encoder,
    /// z = ⟨W_dec\[f\], x⟩: the decoder row as a plain direction, without bias and without threshold
    Decoder,
}

/// The `[host]` table.
#[derive(Clone, Debug, PartialEq)]
pub struct Host {
    /// `source`: the host's activation σ, a name of the catalogue. Default: `"silu"`.
    pub source: Activation,
    /// `form`: `"gated"` or `"plain"`. Default: `"gated"`.
    pub form: Form,
    /// `format`: the number format of the weights, `"f64"`, `"f32"`, `"f16"` or `"bf16"`. Default: `"f32"`.
    pub format: Format,
    /// `biases`: may the MLP's projections have biases? Default: `true`.
    pub biases: bool,
    /// `arithmetic`: a name of [`crate::arithmetic`], or a list of them, to certify the block for. Default: none.
    pub arithmetic: Vec<String>,
}

impl Default for Host {
    fn default() -> Self {
        Host { source: Activation::Silu, form: Form::Gated, format: Format::F32, biases: true, arithmetic: Vec::new() }
    }
}

/// The `[budget]` table.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// `tolerance`: the largest error ε of a response, in the unit of activations; 0 asks for an exact construction.
    /// Finite, at least 0. Default: `1e-3`.
    pub tolerance: f64,
    /// `band`: the radius δ around a jump of the response, in the unit of pre-activations, inside of which the block may
    /// be anywhere between the two sides. Responses without jumps ignore it. Finite, at least 0. Default: `0.01`.
    pub band: f64,
    /// `neurons`: the most neurons for one response, 1 to [`MAX_NEURONS`]. Default: `32`.
    pub neurons: usize,
    /// `max_weight`: the largest magnitude of a gate or up weight relative to the pre-activation's row (a slope).
    /// Finite, positive. Default: 2^20.
    pub max_weight: f64,
    /// `max_out`: the largest magnitude of a down weight relative to the write direction. Finite, positive.
    /// Default: 2^20.
    pub max_out: f64,
    /// `max_total`: the largest sum of the down weights' magnitudes, relative to the write direction, of a minimax fit.
    /// Finite, positive. Default: 2^20.
    pub max_total: f64,
    /// `inert`: prefer stacks that vanish where the response does. Default: false.
    pub inert: bool,
}

impl Default for Budget {
    fn default() -> Self {
        let large = f64::from(1 << 20);
        Budget {
            tolerance: 1e-3,
            band: 0.01,
            neurons: 32,
            max_weight: large,
            max_out: large,
            max_total: large,
            inert: false,
        }
    }
}

/// The `[domain]` table.
#[derive(Clone, Debug, PartialEq)]
pub struct Domain {
    /// `range`: `[lo, hi]`, lo < hi: the values that pre-activations take; `"-inf"` and `"inf"` for no bound.
    /// Default: `["-inf", "inf"]`.
    pub range: Interval,
    /// `norm`: a bound on the Euclidean norm of x. Finite, positive. Default: none; certificates then speak of the
    /// responses only, not of x.
    pub norm: Option<f64>,
    /// `borrowed`: a bound on the magnitude of a coordinate of x that a splice borrows for its constants. Finite, positive.
    /// Default: `norm`.
    pub borrowed: Option<f64>,
    /// `samples`: a file of residuals [tokens, d], safetensors or `.npy`, that narrow the tokens for which `host.arithmetic` is
    /// certified. Default: none; not without an arithmetic.
    pub samples: Option<PathBuf>,
    /// `margin`: how far beyond the samples the certificate is to hold, a factor of at least 1. Default: 2.
    pub margin: f64,
}

impl Default for Domain {
    fn default() -> Self {
        Domain { range: Interval::ENTIRE, norm: None, borrowed: None, samples: None, margin: 2.0 }
    }
}

impl Spec {
    /// Reads a specification file of one site; its extension, `.toml` or `.json`, says which language it is in.
    ///
    /// # Errors
    /// If it cannot be read, is malformed, asks for something impossible, or names several sites.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        only(Self::read_all(path)?).at(|| path.display().to_string())
    }

    /// Reads a specification file: one specification for each site, by increasing layer where layers are given.
    ///
    /// # Errors
    /// If it cannot be read, is malformed, or asks for something impossible.
    pub fn read_all(path: impl AsRef<Path>) -> Result<Vec<Self>> {
        let path = path.as_ref();
        let place = path.display().to_string();
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        let parse = match extension.as_str() {
            "toml" => Self::parse_all_toml,
            "json" => Self::parse_all_json,
            _ => {
                return Err(Error::input(format!(
                    "a specification file ends in .toml or .json, not in {}",
                    quoted(&extension)
                ))
                .at(place)
                .help("rename it after the language that it is written in"));
            }
        };
        let io = |e| Error::io(format!("{place}: cannot read the specification"), e);
        let mut bytes = Vec::new();
        File::open(path).map_err(io)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(Error::input(format!("longer than {MAX_BYTES} bytes: no specification")).at(place));
        }
        let text = String::from_utf8(bytes).map_err(|e| Error::input(format!("not UTF-8: {e}")).at(place.clone()))?;
        let mut specs = parse(&text).at(|| place)?;
        if let Some(dir) = path.parent() {
            // An absolute path stays what it is.
            for spec in &mut specs {
                spec.sae = spec.sae.as_ref().map(|sae| dir.join(sae));
                spec.vectors.values_mut().for_each(|v| v.file = dir.join(&v.file));
                spec.domain.samples = spec.domain.samples.as_ref().map(|s| dir.join(s));
            }
        }
        Ok(specs)
    }

    /// Parses TOML that names one site.
    ///
    /// # Errors
    /// If it is malformed, asks for something impossible, or names several sites.
    pub fn parse_toml(text: &str) -> Result<Self> {
        only(Self::parse_all_toml(text)?)
    }

    /// Parses JSON that names one site.
    ///
    /// # Errors
    /// If it is malformed, asks for something impossible, or names several sites.
    pub fn parse_json(text: &str) -> Result<Self> {
        only(Self::parse_all_json(text)?)
    }

    /// Parses TOML: one specification for each site.
    ///
    /// # Errors
    /// If it is malformed, or asks for something impossible.
    pub fn parse_all_toml(text: &str) -> Result<Vec<Self>> {
        let raw: raw::Spec = toml::from_str(text).map_err(|e| {
            let place = e.span().map(|span| {
                let before = text.get(..span.start).unwrap_or(text);
                let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
                format!("line {}, column {column}", before.matches('\n').count() + 1)
            });
            malformed(e.message(), place)
        })?;
        raw.check()
    }

    /// Parses JSON: one specification for each site.
    ///
    /// # Errors
    /// If it is malformed, or asks for something impossible.
    pub fn parse_all_json(text: &str) -> Result<Vec<Self>> {
        let raw: raw::Spec = serde_json::from_str(text).map_err(|e| {
            let message = e.to_string();
            let place = (e.line() > 0).then(|| format!("line {}, column {}", e.line(), e.column()));
            // serde_json repeats the place at the end of its message.
            let end = message.rfind(" at line ").unwrap_or(message.len());
            malformed(&message[..end], place)
        })?;
        raw.check()
    }

    /// The indices of all features that are read, written or gated on, ascending; not those that `reconstruct` reads.
    ///
    /// # Errors
    /// As [`Intervention::subjects`].
    pub fn features(&self) -> Result<Vec<usize>> {
        let mut all = BTreeSet::new();
        for intervention in &self.interventions {
            all.extend(intervention.subjects()?.into_iter().filter_map(|s| match s {
                Subject::Feature(f) => Some(f),
                _ => None,
            }));
        }
        Ok(all.into_iter().collect())
    }

    /// The range of an intervention's pre-activations: its own, or the domain's.
    pub fn range_of(&self, intervention: &Intervention) -> Interval {
        intervention.range.unwrap_or(self.domain.range)
    }

    /// The radius δ around an intervention's jumps: its own, or the budget's.
    pub fn band_of(&self, intervention: &Intervention) -> f64 {
        intervention.band.unwrap_or(self.budget.band)
    }
}

impl Intervention {
    /// Everything that the entry reads, writes or gates on.
    ///
    /// # Errors
    /// If an index is too large for any SAE.
    pub fn subjects(&self) -> Result<BTreeSet<Subject>> {
        let mut all = self.reads()?;
        all.insert(self.write.clone());
        Ok(all)
    }

    /// What the entry's pre-activations read.
    ///
    /// # Errors
    /// If an index is too large for any SAE.
    pub fn reads(&self) -> Result<BTreeSet<Subject>> {
        let mut all = BTreeSet::from([self.subject.clone()]);
        if let Action::Expr(text) = &self.action {
            all.extend(variables(text).at(|| "expr".into())?);
        }
        if let Some(text) = &self.when {
            all.extend(variables(text).at(|| "when".into())?);
        }
        Ok(all)
    }

    /// What reports call it: its `name`, or what it does, to what, when.
    pub fn label(&self) -> String {
        if let Some(name) = &self.name {
            return name.clone();
        }
        let mut label = format!("{} {}", self.action.name(), self.subject);
        if self.direction == Direction::Decoder {
            label += " (decoder row)";
        }
        if self.write != self.subject {
            label += &format!(" along {}", self.write);
        }
        if let Some(when) = &self.when {
            label += &format!(" when {}", one_line(when));
        }
        label
    }
}

/// The one site of a specification.
fn only(mut specs: Vec<Spec>) -> Result<Spec> {
    match specs.len() {
        1 => Ok(specs.remove(0)),
        n => {
            let what = if specs.iter().any(|s| s.step > 0) { "steps of a sequence" } else { "sites" };
            Err(Error::input(format!("{n} {what} where one is wanted")).help(format!(
                "`splice` takes several {what}; for `compile` and `explain` write one specification for each"
            )))
        }
    }
}

/// The response of an action, as an expression in `z`.
///
/// With a = `jumprelu(z, θ)`, `relu(z)` and θ = 0 under [`Gating::Relu`], or `z` under [`Gating::Linear`]:
///
/// | action | response |
/// |---|---|
/// | ablate | −a |
/// | clamp v | v − a |
/// | clamp_when_active v | (v − z)·step(z − θ) |
/// | cap v | −relu(a − v) |
/// | floor v | relu(v − a) |
/// | scale v | (v − 1)·a |
/// | add v | v |
/// | add_when_active v | v·step(z − θ) |
/// | expr | the text itself |
/// | reconstruct | 1 (it is made of many responses, see [`crate::intervention`]) |
///
/// Every number is printed exactly.
pub fn action_expr(action: &Action, threshold: &Number, gating: Gating) -> String {
    let (a, active) = match gating {
        Gating::Relu => ("relu(z)".to_string(), "step(z)".to_string()),
        Gating::JumpRelu => (format!("jumprelu(z, {threshold})"), format!("step({})", minus("z", threshold))),
        Gating::Linear => ("z".to_string(), format!("step({})", minus("z", threshold))),
    };
    match action {
        Action::Ablate => format!("-({a})"),
        Action::Clamp(v) => format!("{v} - {a}"),
        Action::ClampWhenActive(v) => format!("({v} - z) * {active}"),
        Action::Cap(v) => format!("-(relu({}))", minus(&a, v)),
        Action::Floor(v) => format!("relu({v} - {a})"),
        Action::Scale(v) => format!("({}) * {a}", v - &Number::one()),
        Action::Add(v) => v.to_string(),
        Action::AddWhenActive(v) => format!("({v}) * {active}"),
        Action::Expr(text) => text.clone(),
        Action::Reconstruct => "1".to_string(),
    }
}

/// `e - x`, without a double sign.
fn minus(e: &str, x: &Number) -> String {
    match x.signum() {
        0 => e.to_string(),
        1 => format!("{e} - {x}"),
        _ => format!("{e} + {}", -x),
    }
}

/// Without line breaks and other white space than single blanks.
fn one_line(text: &str) -> String {
    text.split_whitespace().map(|w| w.replace(char::is_control, "")).collect::<Vec<_>>().join(" ")
}

/// The words of an expression.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
}

/// What the identifiers `z_k` and `a_k` of an expression stand for, k being an index or a name.
fn variables(text: &str) -> Result<BTreeSet<Subject>> {
    words(text).filter_map(|w| variable(w).transpose()).collect()
}

/// The k of `z_k` or `a_k`.
pub(crate) fn variable(word: &str) -> Result<Option<Subject>> {
    let Some(k) = word.strip_prefix("z_").or(word.strip_prefix("a_")).filter(|k| !k.is_empty()) else {
        return Ok(None);
    };
    if k.bytes().all(|b| b.is_ascii_digit()) {
        let index = k.parse().map_err(|_| Error::input(format!("the index of {} is too large", quoted(word))))?;
        return Ok(Some(Subject::Feature(index)));
    }
    Ok(is_name(k).then(|| Subject::Vector(k.to_string())))
}

/// Letters, digits and underscores, a letter first.
fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// An error of a parser; an unknown name is answered with the reason why there is none, or the nearest known one.
fn malformed(message: &str, place: Option<String>) -> Error {
    // serde: unknown field `x`, expected one of `a`, `b`
    let mut names = message.split('`').skip(1).step_by(2);
    let unknown = if message.starts_with("unknown field") { names.next() } else { None };
    let known: Vec<&str> = names.collect();
    let vector = known.contains(&"tensor");
    let near = unknown.and_then(|unknown| match unknown {
        "normalize" | "normalise" | "norm" | "normalized" if vector => Some("unit"),
        _ => nearest(unknown, known.iter().copied()),
    });
    if message.contains("expected struct Spec") {
        return Error::input("a specification is a table of fields")
            .help("sae = \"...\" and [[interventions]], or the same in JSON: {...}");
    }
    let error = match unknown.filter(|_| known.contains(&"action")).and_then(refusals::field) {
        Some(refusal) => refusal,
        None => {
            let error = Error::input(message.trim().replace('`', "'"));
            match near {
                Some(near) => error.help(format!("did you mean '{near}'?")),
                None if message.contains("field") => error.help("docs/spec.md lists every field"),
                None => error,
            }
        }
    };
    match place {
        Some(place) => error.at(place),
        None => error,
    }
}

/// One of a few words.
fn word<T: Copy>(field: &str, text: &str, known: &[(&str, T)]) -> Result<T> {
    if let Some((_, value)) = known.iter().find(|(name, _)| *name == text) {
        return Ok(*value);
    }
    let names: Vec<String> = known.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    let help = match nearest(text, known.iter().map(|k| k.0)) {
        Some(near) => format!("did you mean \"{near}\"? ({})", names.join(", ")),
        None => format!("admissible: {}", names.join(", ")),
    };
    Err(Error::input(format!("{field} = {} is not known", quoted(text))).help(help))
}

/// A number within its bounds, or what is wrong with it.
fn bounded(field: &str, x: f64, is_good: impl Fn(f64) -> bool, wanted: &str) -> Result<f64> {
    if x.is_finite() && is_good(x) { Ok(x) } else { Err(Error::input(format!("{field} must be {wanted}, not {x}"))) }
}

fn range(field: &str, ends: &[Bound]) -> Result<Interval> {
    let &[Bound(lo), Bound(hi)] = ends else {
        return Err(Error::input(format!("{field} has {} ends", ends.len())).help("write [lo, hi], two numbers"));
    };
    if lo < hi {
        return Ok(Interval::new(lo, hi));
    }
    let fault = if lo > hi { "is reversed" } else { "is empty" };
    Err(Error::input(format!("{field} = [{lo}, {hi}] {fault}"))
        .help("write [lo, hi] with lo < hi; \"-inf\" and \"inf\" for no bound"))
}

/// A number of a formula: an integer, a float that stands for its shortest decimal, or a string; or what stands in its place.
#[derive(Clone, Debug)]
enum Amount {
    Number(Number),
    Word(String),
}

/// A whole number from 0.
#[derive(Clone, Copy, Debug)]
struct Whole(u64);

/// A number.
#[derive(Clone, Copy, Debug)]
struct Real(f64);

/// An end of a range: a number that is not NaN, or `"inf"`, `"-inf"`.
#[derive(Clone, Copy, Debug)]
struct Bound(f64);

macro_rules! number_like {
    ($name:ident, $expecting:literal, |$float:ident| $from_float:expr, |$text:ident| $from_text:expr) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
                struct V;
                impl Visitor<'_> for V {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }
                    fn visit_i64<E: de::Error>(self, x: i64) -> std::result::Result<$name, E> {
                        self.visit_str(&x.to_string())
                    }
                    fn visit_u64<E: de::Error>(self, x: u64) -> std::result::Result<$name, E> {
                        self.visit_str(&x.to_string())
                    }
                    fn visit_f64<E: de::Error>(self, $float: f64) -> std::result::Result<$name, E> {
                        $from_float.map_err(E::custom)
                    }
                    fn visit_str<E: de::Error>(self, $text: &str) -> std::result::Result<$name, E> {
                        $from_text.map_err(E::custom)
                    }
                }
                d.deserialize_any(V)
            }
        }
    };
}

number_like!(
    Amount,
    "a number, or a string that holds one (\"0.1\", \"1/3\")",
    // The shortest decimal that reads back as the same float: what was written, for up to 15 digits.
    |x| Number::from_str(&format!("{x:e}")).map(Amount::Number).map_err(|_| format!("{x} is no finite number")),
    |s| Ok::<_, String>(Number::from_str(s).map_or_else(|_| Amount::Word(s.to_string()), Amount::Number))
);

/// The error of a number that stands as a string.
fn no_string(text: &str, wanted: &str) -> String {
    format!("{} is a string, {wanted} is wanted: write it without quotes", quoted(text))
}

number_like!(
    Whole,
    "a whole number from 0",
    |x| Err(format!("{x} is no whole number from 0")),
    // An integer arrives as its digits.
    |s| s.parse().map(Whole).map_err(|_| match s.parse::<i128>() {
        Ok(x) => format!("{x} is no whole number from 0"),
        Err(_) => no_string(s, "a whole number"),
    })
);

number_like!(Real, "a number", |x| Ok::<_, String>(Real(x)), |s| match s.parse::<i128>() {
    Ok(x) => Ok(Real(x as f64)),
    Err(_) => Err(no_string(s, "a number")),
});

number_like!(
    Bound,
    "a number, \"-inf\" or \"inf\"",
    |x| if x.is_nan() { Err("a range cannot end in NaN".to_string()) } else { Ok(Bound(x)) },
    |s| match s.trim() {
        "inf" | "+inf" => Ok(Bound(f64::INFINITY)),
        "-inf" => Ok(Bound(f64::NEG_INFINITY)),
        s => Number::from_str(s)
            .map(|x| Bound(x.to_f64()))
            .map_err(|_| format!("{} is no number, \"-inf\" or \"inf\"", quoted(s))),
    }
);

#[cfg(test)]
mod tests;
