//! The specification file: which features to intervene on, for which host, within which budget, on which domain.
//!
//! TOML or JSON with the same names; `docs/spec.md` is the reference. Reading checks everything that can be judged from
//! the file alone; whether the features exist is for the SAE to say, whether a response compiles for the compiler.
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

use std::collections::BTreeSet;
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
use crate::sae::Architecture;
pub use crate::stack::Form;
use crate::tensors::{Format, quoted};

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
    /// `sae`: the directory of the SAE, in the SAELens layout. Required. A relative path is relative to the directory
    /// of the specification file; parsed from text, it is left as it is written.
    pub sae: PathBuf,
    /// `[[interventions]]`: at least one. All read the same, unmodified x, and their writes add up.
    pub interventions: Vec<Intervention>,
    /// `[host]`: what the MLP that runs the block can compute.
    pub host: Host,
    /// `[budget]`: what the block may cost, and how close it must come.
    pub budget: Budget,
    /// `[domain]`: where the certificate must hold.
    pub domain: Domain,
}

/// One `[[interventions]]` entry: x ← x + response · W_dec\[write\].
#[derive(Clone, Debug, PartialEq)]
pub struct Intervention {
    /// `feature`: the index of the feature whose pre-activation is `z`. Required.
    pub feature: usize,
    /// `action`, with its `value` or `expr`. Required.
    pub action: Action,
    /// `gate`: the index of another feature; the response then counts only where that one is active (its own z > θ,
    /// strictly). Default: none.
    pub gate: Option<usize>,
    /// `direction`: `"encoder"` or `"decoder"`: what the pre-activations of this entry read. Default: `"encoder"`.
    pub direction: Direction,
    /// `write`: the index of the feature whose decoder row is written. Default: `feature`.
    pub write: usize,
    /// `activation`: `"relu"` or `"jumprelu"`: how activity is gated, in place of the SAE's own way. Default: the SAE's.
    pub activation: Option<Gating>,
    /// `range`: `[lo, hi]`, the values that this entry's pre-activations take. Default: `domain.range`.
    pub range: Option<Interval>,
    /// `band`: this entry's own `budget.band`. Default: `budget.band`.
    pub band: Option<f64>,
}

/// What an intervention makes of the feature's activation a (a = relu(z), or z where z > θ).
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
    /// `"expr"`: the response itself, as text in `z` and `z_<index>`.
    Expr(String),
}

impl Action {
    /// Every name, in the order of the documentation.
    pub const NAMES: [&'static str; 9] =
        ["ablate", "clamp", "clamp_when_active", "cap", "floor", "scale", "add", "add_when_active", "expr"];

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
        }
    }

    /// Does the response depend on how the feature is gated?
    fn is_gated(&self) -> bool {
        !matches!(self, Action::Add(_) | Action::Expr(_))
    }
}

/// How a pre-activation becomes an activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gating {
    /// relu(z): active where z > 0
    Relu,
    /// z where z > θ, else 0: active where z > θ
    JumpRelu,
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
}

impl Default for Host {
    fn default() -> Self {
        Host { source: Activation::Silu, form: Form::Gated, format: Format::F32, biases: true }
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
}

impl Default for Domain {
    fn default() -> Self {
        Domain { range: Interval::ENTIRE, norm: None, borrowed: None }
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
            specs.iter_mut().for_each(|spec| spec.sae = dir.join(&spec.sae));
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

    /// The indices of all features that are read, written or gated on, ascending.
    ///
    /// # Errors
    /// As [`Intervention::variables`].
    pub fn features(&self) -> Result<Vec<usize>> {
        let mut all = BTreeSet::new();
        for intervention in &self.interventions {
            all.extend([intervention.feature, intervention.write]);
            all.extend(intervention.gate);
            all.extend(intervention.variables()?);
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
    /// The response as an expression in `z` (and `z_<index>`), for an SAE of this architecture and the feature's
    /// threshold; the gate is not part of it.
    ///
    /// # Errors
    /// If the entry asks for `jumprelu` and the SAE has no thresholds, or the threshold is not finite.
    pub fn response(&self, architecture: Architecture, threshold: f64) -> Result<String> {
        let gating = match (self.direction, self.activation) {
            (Direction::Decoder, _) => Gating::Relu,
            (Direction::Encoder, None) => architecture.into(),
            (Direction::Encoder, Some(Gating::JumpRelu)) if architecture == Architecture::Standard => {
                return Err(Error::input(
                    "activation = \"jumprelu\", but the SAE is a standard one: it has no thresholds",
                )
                .at(format!("feature {}", self.feature))
                .help("leave activation out, or write activation = \"relu\""));
            }
            (Direction::Encoder, Some(gating)) => gating,
        };
        let threshold = Number::from_f64(threshold)
            .ok_or_else(|| Error::input(format!("the threshold of feature {} is {threshold}", self.feature)))?;
        Ok(action_expr(&self.action, &threshold, gating))
    }

    /// 1 where the feature `gate` is active, as an expression in `z_<gate>`: above its threshold, or above 0 for an SAE
    /// without thresholds and where the entry reads decoder rows.
    ///
    /// # Errors
    /// If the threshold is not finite.
    pub fn gate_factor(&self, gate: usize, architecture: Architecture, threshold: f64) -> Result<String> {
        let threshold = match (self.direction, Gating::from(architecture)) {
            (Direction::Encoder, Gating::JumpRelu) => threshold,
            _ => 0.0,
        };
        let threshold = Number::from_f64(threshold)
            .ok_or_else(|| Error::input(format!("the threshold of feature {gate} is {threshold}")))?;
        Ok(format!("step({})", minus(&format!("z_{gate}"), &threshold)))
    }

    /// The indices k of all `z_<k>` in the entry's expression, ascending; empty for the other actions.
    ///
    /// # Errors
    /// If an index is too large for any SAE.
    pub fn variables(&self) -> Result<Vec<usize>> {
        match &self.action {
            Action::Expr(text) => variables(text),
            _ => Ok(Vec::new()),
        }
    }
}

/// The one site of a specification.
fn only(mut specs: Vec<Spec>) -> Result<Spec> {
    match specs.len() {
        1 => Ok(specs.remove(0)),
        n => Err(Error::input(format!("{n} sites where one is wanted"))
            .help("`splice` takes several sites; for `compile` and `explain` write one specification for each")),
    }
}

/// The response of an action, as an expression in `z`.
///
/// With a = `jumprelu(z, θ)`, or `relu(z)` and θ = 0 under [`Gating::Relu`]:
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
///
/// Every number is printed exactly.
pub fn action_expr(action: &Action, threshold: &Number, gating: Gating) -> String {
    let (a, active) = match gating {
        Gating::Relu => ("relu(z)".to_string(), "step(z)".to_string()),
        Gating::JumpRelu => (format!("jumprelu(z, {threshold})"), format!("step({})", minus("z", threshold))),
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

/// The indices k of all identifiers `z_<k>`.
fn variables(text: &str) -> Result<Vec<usize>> {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    let digits =
        words.filter_map(|w| w.strip_prefix("z_")).filter(|k| !k.is_empty() && k.bytes().all(|b| b.is_ascii_digit()));
    let indices: Result<BTreeSet<usize>> = digits
        .map(|k| {
            k.parse().map_err(|_| Error::input(format!("the index of {} is too large", quoted(&format!("z_{k}")))))
        })
        .collect();
    Ok(indices?.into_iter().collect())
}

/// An error of a parser; an unknown name is answered with the nearest known one.
fn malformed(message: &str, place: Option<String>) -> Error {
    // serde: unknown field `x`, expected one of `a`, `b`
    let mut names = message.split('`').skip(1).step_by(2);
    let help = match (message.starts_with("unknown field"), names.next()) {
        (true, Some(unknown)) => nearest(unknown, names).map(|near| format!("did you mean '{near}'?")),
        _ => None,
    };
    let error = Error::input(message.trim().replace('`', "'"))
        .help(help.unwrap_or_else(|| "docs/spec.md lists every field".into()));
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

fn range(field: &str, [Bound(lo), Bound(hi)]: [Bound; 2]) -> Result<Interval> {
    if lo < hi {
        return Ok(Interval::new(lo, hi));
    }
    let fault = if lo > hi { "is reversed" } else { "is empty" };
    Err(Error::input(format!("{field} = [{lo}, {hi}] {fault}"))
        .help("write [lo, hi] with lo < hi; \"-inf\" and \"inf\" for no bound"))
}

/// A number of a formula: an integer, a float that stands for its shortest decimal, or a string.
#[derive(Clone, Debug)]
struct Exact(Number);

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
    Exact,
    "a number, or a string that holds one (\"0.1\", \"1/3\")",
    // The shortest decimal that reads back as the same float: what was written, for up to 15 digits.
    |x| Number::from_str(&format!("{x:e}")).map(Exact),
    |s| Number::from_str(s).map(Exact)
);

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

/// The file's own structure, before it is checked.
mod raw {
    use super::*;

    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Spec {
        sae: Option<PathBuf>,
        interventions: Option<Vec<Intervention>>,
        layer: Option<u64>,
        layers: Option<Layers>,
        sites: Option<Vec<Site>>,
        #[serde(default)]
        host: Host,
        #[serde(default)]
        budget: Budget,
        #[serde(default)]
        domain: Domain,
    }

    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Site {
        sae: PathBuf,
        interventions: Vec<Intervention>,
        layer: Option<u64>,
        layers: Option<Layers>,
        domain: Option<Domain>,
    }

    #[derive(Clone, serde::Deserialize)]
    #[serde(untagged, expecting = "layers must be 1, 2 or \"auto\"")]
    enum Layers {
        Number(u64),
        Word(String),
    }

    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Intervention {
        feature: usize,
        action: String,
        value: Option<Exact>,
        expr: Option<String>,
        gate: Option<usize>,
        direction: Option<String>,
        write: Option<usize>,
        activation: Option<String>,
        range: Option<[Bound; 2]>,
        band: Option<f64>,
    }

    #[derive(Default, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Host {
        source: Option<String>,
        form: Option<String>,
        format: Option<String>,
        biases: Option<bool>,
    }

    #[derive(Default, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Budget {
        tolerance: Option<f64>,
        band: Option<f64>,
        neurons: Option<u64>,
        max_weight: Option<f64>,
        max_out: Option<f64>,
        max_total: Option<f64>,
        inert: Option<bool>,
    }

    #[derive(Clone, Default, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Domain {
        range: Option<[Bound; 2]>,
        norm: Option<f64>,
        borrowed: Option<f64>,
    }

    impl Spec {
        pub(super) fn check(self) -> Result<Vec<super::Spec>> {
            let host = self.host.check().at(|| "host".into())?;
            let budget = self.budget.check().at(|| "budget".into())?;
            let single = self.sae.is_some() || self.interventions.is_some() || self.layer.is_some();
            let sites = match (self.sites, self.sae) {
                (Some(_), _) if single => {
                    return Err(Error::input("sites stands beside sae, interventions or layer")
                        .help("with [[sites]], each site has its own sae, layer and interventions"));
                }
                (Some(sites), _) if sites.is_empty() => {
                    return Err(Error::input("sites is empty").help("write at least one [[sites]] entry"));
                }
                (Some(sites), _) => sites,
                (None, Some(sae)) => {
                    let missing =
                        || Error::input("missing field 'interventions'").help("write [[interventions]] entries");
                    let (interventions, layer) = (self.interventions.ok_or_else(missing)?, self.layer);
                    vec![Site { sae, interventions, layer, layers: None, domain: None }]
                }
                (None, None) => {
                    return Err(
                        Error::input("missing field 'sae'").help("name the directory of the SAE, sae = \"...\"")
                    );
                }
            };
            let several = sites.len() > 1;
            let mut specs = Vec::with_capacity(sites.len());
            for (k, site) in sites.into_iter().enumerate() {
                let layers = site.layers.clone().or(self.layers.clone());
                let domain = site.domain.clone().unwrap_or(self.domain.clone());
                let one = || -> Result<super::Spec> {
                    Ok(super::Spec {
                        layer: site.layer.map(layer).transpose()?,
                        layers: layers.map_or(Ok(Depth::default()), depth)?,
                        interventions: interventions(&site.sae, site.interventions)?,
                        sae: site.sae,
                        host: host.clone(),
                        budget: budget.clone(),
                        domain: domain.check().at(|| "domain".into())?,
                    })
                };
                let spec = one();
                specs.push(if several { spec.at(|| format!("site {}", k + 1))? } else { spec? });
            }
            let given: Vec<usize> = specs.iter().filter_map(|s| s.layer).collect();
            if let Some(l) = given.iter().enumerate().find_map(|(k, l)| given[..k].contains(l).then_some(l)) {
                return Err(Error::input(format!("two sites at layer {l}"))
                    .help("put all interventions at one layer into one site"));
            }
            specs.sort_by_key(|s| s.layer);
            Ok(specs)
        }
    }

    fn interventions(sae: &Path, raw: Vec<Intervention>) -> Result<Vec<super::Intervention>> {
        if sae.as_os_str().is_empty() {
            return Err(Error::input("sae is empty").help("name the directory of the SAE"));
        }
        if raw.is_empty() {
            return Err(Error::input("interventions is empty").help("write at least one [[interventions]] entry"));
        }
        let checked = raw.into_iter().enumerate().map(|(k, raw)| {
            let feature = raw.feature;
            raw.check().at(|| format!("intervention {} (feature {feature})", k + 1))
        });
        checked.collect()
    }

    fn layer(n: u64) -> Result<usize> {
        // More layers than any model has.
        usize::try_from(n).ok().filter(|n| *n < 10_000).ok_or_else(|| Error::input(format!("layer {n} is in no model")))
    }

    fn depth(layers: Layers) -> Result<Depth> {
        match &layers {
            Layers::Number(1) => Ok(Depth::One),
            Layers::Number(2) => Ok(Depth::Two),
            Layers::Number(n) => Err(Error::input(format!("layers = {n}")).help("write 1, 2 or \"auto\"")),
            Layers::Word(w) => word("layers", w, &[("auto", Depth::Auto), ("1", Depth::One), ("2", Depth::Two)]),
        }
    }

    impl Intervention {
        fn check(self) -> Result<super::Intervention> {
            let direction = match &self.direction {
                None => Direction::default(),
                Some(d) => word("direction", d, &[("encoder", Direction::Encoder), ("decoder", Direction::Decoder)])?,
            };
            let activation = match &self.activation {
                None => None,
                Some(a) => Some(word("activation", a, &[("relu", Gating::Relu), ("jumprelu", Gating::JumpRelu)])?),
            };
            let action = self.action()?;
            if activation.is_some() && !action.is_gated() {
                return Err(Error::input(format!(
                    "action = \"{}\" does not gate by the feature's activation",
                    action.name()
                ))
                .help("leave activation out"));
            }
            if direction == Direction::Decoder && activation == Some(Gating::JumpRelu) {
                return Err(Error::input(
                    "direction = \"decoder\" has no threshold, so activation cannot be \"jumprelu\"",
                )
                .help("leave activation out, or read with direction = \"encoder\""));
            }
            if self.gate == Some(self.feature) {
                return Err(Error::input("gate is the feature itself")
                    .help("ablate, scale and the ..._when_active actions are gated on their own feature already"));
            }
            Ok(super::Intervention {
                feature: self.feature,
                action,
                gate: self.gate,
                direction,
                write: self.write.unwrap_or(self.feature),
                activation,
                range: self.range.map(|r| super::range("range", r)).transpose()?,
                band: self.band.map(band).transpose()?,
            })
        }

        fn action(&self) -> Result<Action> {
            type WithValue = fn(Number) -> Action;
            enum Kind {
                Plain,
                Value(WithValue),
                Expr,
            }
            let kind = match self.action.as_str() {
                "ablate" => Kind::Plain,
                "clamp" => Kind::Value(Action::Clamp),
                "clamp_when_active" => Kind::Value(Action::ClampWhenActive),
                "cap" => Kind::Value(Action::Cap),
                "floor" => Kind::Value(Action::Floor),
                "scale" => Kind::Value(Action::Scale),
                "add" => Kind::Value(Action::Add),
                "add_when_active" => Kind::Value(Action::AddWhenActive),
                "expr" => Kind::Expr,
                other => {
                    return Err(word("action", other, &Action::NAMES.map(|n| (n, ())))
                        .err()
                        .unwrap_or_else(|| Error::input("unknown action")));
                }
            };
            let name = &self.action;
            let superfluous = |field: &str| {
                Error::input(format!("action = \"{name}\" takes no {field}")).help(format!("leave {field} out"))
            };
            match (&kind, &self.value, &self.expr) {
                (Kind::Plain | Kind::Expr, Some(_), _) => return Err(superfluous("value")),
                (Kind::Plain | Kind::Value(_), _, Some(_)) => return Err(superfluous("expr")),
                _ => {}
            }
            match (kind, &self.value, &self.expr) {
                (Kind::Plain, ..) => Ok(Action::Ablate),
                (Kind::Value(make), Some(Exact(value)), _) => Ok(make(value.clone())),
                (Kind::Value(_), None, _) => Err(Error::input(format!("action = \"{name}\" needs a value"))
                    .help("add value = ..., a number in the unit of the feature's activation (for scale, a factor)")),
                (Kind::Expr, _, Some(text)) if !text.trim().is_empty() => {
                    variables(text).at(|| "expr".into())?;
                    Ok(Action::Expr(text.trim().to_string()))
                }
                (Kind::Expr, ..) => Err(Error::input("action = \"expr\" needs an expression")
                    .help("add expr = \"...\", the response as a function of z, as in expr = \"-relu(z - 2)\"")),
            }
        }
    }

    impl Host {
        fn check(self) -> Result<super::Host> {
            let default = super::Host::default();
            Ok(super::Host {
                source: self.source.map_or(Ok(default.source), |s| s.parse().at(|| "source".into()))?,
                form: match &self.form {
                    None => default.form,
                    Some(f) => word("form", f, &[("gated", Form::Gated), ("plain", Form::Plain)])?,
                },
                format: match &self.format {
                    None => default.format,
                    Some(f) => word(
                        "format",
                        f,
                        &[("f64", Format::F64), ("f32", Format::F32), ("f16", Format::F16), ("bf16", Format::Bf16)],
                    )?,
                },
                biases: self.biases.unwrap_or(default.biases),
            })
        }
    }

    impl Budget {
        fn check(self) -> Result<super::Budget> {
            let default = super::Budget::default();
            let neurons = self.neurons.map_or(Some(default.neurons), |n| usize::try_from(n).ok());
            let positive = |field, x| bounded(field, x, |x| x > 0.0, "positive and finite");
            Ok(super::Budget {
                tolerance: bounded(
                    "tolerance",
                    self.tolerance.unwrap_or(default.tolerance),
                    |x| x >= 0.0,
                    "finite and at least 0",
                )?,
                band: band(self.band.unwrap_or(default.band))?,
                neurons: neurons.filter(|n| (1..=MAX_NEURONS).contains(n)).ok_or_else(|| {
                    Error::input(format!(
                        "neurons must be 1 to {MAX_NEURONS}, not {}",
                        self.neurons.unwrap_or_default()
                    ))
                })?,
                max_weight: positive("max_weight", self.max_weight.unwrap_or(default.max_weight))?,
                max_out: positive("max_out", self.max_out.unwrap_or(default.max_out))?,
                max_total: positive("max_total", self.max_total.unwrap_or(default.max_total))?,
                inert: self.inert.unwrap_or(default.inert),
            })
        }
    }

    impl Domain {
        fn check(self) -> Result<super::Domain> {
            Ok(super::Domain {
                range: self.range.map_or(Ok(super::Domain::default().range), |r| super::range("range", r))?,
                norm: self.norm.map(|x| bounded("norm", x, |x| x > 0.0, "positive and finite")).transpose()?,
                borrowed: self
                    .borrowed
                    .map(|x| bounded("borrowed", x, |x| x > 0.0, "positive and finite"))
                    .transpose()?,
            })
        }
    }

    fn band(x: f64) -> Result<f64> {
        bounded("band", x, |x| x >= 0.0, "finite and at least 0")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn number(text: &str) -> Number {
        text.parse().unwrap()
    }

    fn one(entry: &str) -> Result<Intervention> {
        Spec::parse_toml(&format!("sae = 's'\n[[interventions]]\nfeature = 7\n{entry}"))
            .map(|s| s.interventions[0].clone())
    }

    fn refusal(text: &str) -> String {
        let e = Spec::parse_toml(text).expect_err(text);
        assert!(e.is_input(), "{e}");
        e.to_string()
    }

    #[test]
    fn toml_and_json_say_the_same() {
        let toml = r#"
            sae = "sae"

            [[interventions]]
            feature = 228
            action = "clamp_when_active"
            value = 0.1
            gate = 477
            range = ["-inf", 60]
            band = 0.5

            [[interventions]]
            feature = 3
            action = "expr"
            expr = "-relu(z) * step(z_12 - 1/3)"
            write = 4
            direction = "decoder"

            [host]
            source = "gelu_tanh"
            form = "plain"
            format = "bf16"
            biases = false

            [budget]
            tolerance = 1e-2
            band = 0
            neurons = 8
            max_weight = 1024
            max_out = 2.5
            max_total = 40
            inert = true

            [domain]
            range = [-100, 140.5]
            norm = 250
        "#;
        let json = r#"{
            "sae": "sae",
            "interventions": [
                {"feature": 228, "action": "clamp_when_active", "value": 0.1, "gate": 477, "range": ["-inf", 60], "band": 0.5},
                {"feature": 3, "action": "expr", "expr": "-relu(z) * step(z_12 - 1/3)", "write": 4, "direction": "decoder"}
            ],
            "host": {"source": "gelu_tanh", "form": "plain", "format": "bf16", "biases": false},
            "budget": {"tolerance": 0.01, "band": 0, "neurons": 8, "max_weight": 1024, "max_out": 2.5, "max_total": 40, "inert": true},
            "domain": {"range": [-100, 140.5], "norm": 250}
        }"#;
        let spec = Spec::parse_toml(toml).unwrap();
        assert_eq!(spec, Spec::parse_json(json).unwrap());
        let [first, second] = &spec.interventions[..] else { panic!("two entries") };
        assert_eq!(first.action, Action::ClampWhenActive(Number::ratio(1, 10)));
        assert_eq!((first.gate, first.write, first.activation), (Some(477), 228, None));
        assert_eq!((spec.range_of(first), spec.band_of(first)), (Interval::new(f64::NEG_INFINITY, 60.0), 0.5));
        assert_eq!((spec.range_of(second), spec.band_of(second)), (Interval::new(-100.0, 140.5), 0.0));
        assert_eq!((second.write, second.direction), (4, Direction::Decoder));
        assert_eq!(spec.features().unwrap(), [3, 4, 12, 228, 477]);
        assert_eq!(
            spec.host,
            Host { source: Activation::GeluTanh, form: Form::Plain, format: Format::Bf16, biases: false }
        );
        let limits = Budget { max_weight: 1024.0, max_out: 2.5, max_total: 40.0, ..Budget::default() };
        assert_eq!(spec.budget, Budget { tolerance: 0.01, band: 0.0, neurons: 8, inert: true, ..limits });
        assert_eq!(spec.domain.norm, Some(250.0));
    }

    #[test]
    fn defaults() {
        let spec = Spec::parse_toml("sae = 's'\ninterventions = [{ feature = 1, action = 'ablate' }]").unwrap();
        assert_eq!((spec.host, spec.budget, spec.domain), (Host::default(), Budget::default(), Domain::default()));
        assert_eq!(spec.interventions[0].write, 1);
    }

    #[test]
    fn values_are_what_was_written() {
        for (written, exact) in [
            ("0.1", "1/10"),
            ("'0.1'", "1/10"),
            ("38.6", "193/5"),
            ("-3", "-3"),
            ("1e-7", "1/10000000"),
            ("1e300", "1e300"),
            ("'1/3'", "1/3"),
            ("'0.12345678901234567890'", "0.1234567890123456789"),
        ] {
            assert_eq!(one(&format!("action = 'cap'\nvalue = {written}")).unwrap().action, Action::Cap(number(exact)));
        }
        for written in ["nan", "inf", "-inf", "'abc'", "true", "[1]", "'1/0'", "'1e999'", "{}"] {
            assert!(one(&format!("action = 'cap'\nvalue = {written}")).is_err(), "{written}");
        }
    }

    #[test]
    fn responses() {
        let v = || number("8");
        let theta = Number::from_f64(0.75).unwrap();
        for (action, jumprelu, relu) in [
            (Action::Ablate, "-(jumprelu(z, 0.75))", "-(relu(z))"),
            (Action::Clamp(v()), "8 - jumprelu(z, 0.75)", "8 - relu(z)"),
            (Action::ClampWhenActive(v()), "(8 - z) * step(z - 0.75)", "(8 - z) * step(z)"),
            (Action::Cap(v()), "-(relu(jumprelu(z, 0.75) - 8))", "-(relu(relu(z) - 8))"),
            (Action::Cap(number("-1/3")), "-(relu(jumprelu(z, 0.75) + 1/3))", "-(relu(relu(z) + 1/3))"),
            (Action::Floor(v()), "relu(8 - jumprelu(z, 0.75))", "relu(8 - relu(z))"),
            (Action::Scale(number("0.1")), "(-0.9) * jumprelu(z, 0.75)", "(-0.9) * relu(z)"),
            (Action::Add(number("-2.5")), "-2.5", "-2.5"),
            (Action::AddWhenActive(number("1/3")), "(1/3) * step(z - 0.75)", "(1/3) * step(z)"),
            (Action::Expr("z_4".into()), "z_4", "z_4"),
        ] {
            assert_eq!(action_expr(&action, &theta, Gating::JumpRelu), jumprelu);
            assert_eq!(action_expr(&action, &theta, Gating::Relu), relu);
        }
        let step = |theta: &str| action_expr(&Action::AddWhenActive(v()), &number(theta), Gating::JumpRelu);
        assert_eq!((step("0"), step("-1.5")), ("(8) * step(z)".into(), "(8) * step(z + 1.5)".into()));
    }

    #[test]
    fn thresholds_are_printed_exactly() {
        let ablate = one("action = 'ablate'").unwrap();
        let theta = f64::from(1.733_91_f32);
        let text = ablate.response(Architecture::JumpRelu, theta).unwrap();
        let printed: Number = text["-(jumprelu(z, ".len()..text.len() - 2].parse().unwrap();
        assert_eq!(printed, Number::from_f64(theta).unwrap());
    }

    #[test]
    fn gating_follows_the_entry_then_the_sae() {
        let response = |entry: &str, a| one(entry).unwrap().response(a, 0.5).map_err(|e| e.to_string());
        use Architecture::*;
        assert_eq!(response("action = 'ablate'", JumpRelu).unwrap(), "-(jumprelu(z, 0.5))");
        assert_eq!(response("action = 'ablate'", Standard).unwrap(), "-(relu(z))");
        assert_eq!(response("action = 'ablate'\nactivation = 'relu'", JumpRelu).unwrap(), "-(relu(z))");
        assert_eq!(response("action = 'ablate'\ndirection = 'decoder'", JumpRelu).unwrap(), "-(relu(z))");
        assert!(
            response("action = 'ablate'\nactivation = 'jumprelu'", Standard).unwrap_err().contains("no thresholds")
        );
        assert!(one("action = 'ablate'").unwrap().response(JumpRelu, f64::NAN).is_err());
    }

    #[test]
    fn variables_of_expressions() {
        assert_eq!(variables("z_477*relu(z) + z_3-z_477 + xz_5 + z_x1 + z_").unwrap(), [3, 477]);
        assert!(variables("z_99999999999999999999999").unwrap_err().to_string().contains("too large"));
    }

    #[test]
    fn entries_that_contradict_themselves() {
        for (entry, said) in [
            ("action = 'cap'", "needs a value"),
            ("action = 'ablate'\nvalue = 1", "takes no value"),
            ("action = 'expr'", "needs an expression"),
            ("action = 'expr'\nexpr = ' '", "needs an expression"),
            ("action = 'expr'\nexpr = 'z'\nvalue = 1", "takes no value"),
            ("action = 'cap'\nvalue = 1\nexpr = 'z'", "takes no expr"),
            ("action = 'expr'\nexpr = 'z_99999999999999999999'", "too large"),
            ("action = 'ablat'", "did you mean \"ablate\"?"),
            ("action = 'quux'", "admissible: \"ablate\""),
            ("action = 'ablate'\ndirection = 'decodr'", "did you mean \"decoder\"?"),
            ("action = 'ablate'\nactivation = 'topk'", "activation = 'topk' is not known"),
            ("action = 'add'\nvalue = 1\nactivation = 'relu'", "leave activation out"),
            ("action = 'ablate'\ndirection = 'decoder'\nactivation = 'jumprelu'", "has no threshold"),
            ("action = 'ablate'\ngate = 7", "gate is the feature itself"),
            ("action = 'ablate'\nrange = [2, 1]", "range = [2, 1] is reversed"),
            ("action = 'ablate'\nrange = [1, 1]", "range = [1, 1] is empty"),
            ("action = 'ablate'\nrange = ['inf', 'inf']", "is empty"),
            ("action = 'ablate'\nband = -1", "band must be finite and at least 0, not -1"),
            ("action = 'ablate'\nband = nan", "not NaN"),
        ] {
            let e = one(entry).expect_err(entry);
            assert!(e.is_input() && e.to_string().contains(said), "{e}");
            assert!(e.to_string().starts_with("intervention 1 (feature 7): "), "{e}");
        }
    }

    #[test]
    fn tables_with_impossible_numbers() {
        let entry = "sae = 's'\n[[interventions]]\nfeature = 1\naction = 'ablate'\n";
        for (table, said) in [
            ("[budget]\ntolerance = -1e-3", "budget: tolerance must be finite and at least 0, not -0.001"),
            ("[budget]\ntolerance = nan", "not NaN"),
            ("[budget]\nneurons = 0", "budget: neurons must be 1 to 65536, not 0"),
            ("[budget]\nneurons = 9000000000000000000", "neurons must be 1 to"),
            ("[budget]\nmax_weight = 0", "max_weight must be positive"),
            ("[budget]\nmax_out = inf", "max_out must be positive and finite, not inf"),
            ("[domain]\nrange = [1, -1]", "domain: range = [1, -1] is reversed"),
            ("[domain]\nrange = [nan, 1]", "NaN"),
            ("[domain]\nrange = ['minus', 1]", "'minus' is no number"),
            ("[domain]\nnorm = 0", "domain: norm must be positive and finite, not 0"),
            ("[host]\nsource = 'sillu'", "did you mean 'silu'?"),
            ("[host]\nform = 'gate'", "did you mean \"gated\"?"),
            ("[host]\nformat = 'fp8'", "host: format = 'fp8' is not known"),
        ] {
            let text = refusal(&format!("{entry}{table}"));
            assert!(text.contains(said), "{text}");
        }
    }

    #[test]
    fn unknown_and_missing_fields() {
        let text = refusal("sae = 's'\n[[interventions]]\nfeature = 1\nacton = 'ablate'\n");
        assert!(
            text.starts_with("line 4, column 1: unknown field 'acton'") && text.contains("did you mean 'action'?"),
            "{text}"
        );
        assert!(refusal("sea = 's'\ninterventions = []").contains("did you mean 'sae'?"));
        assert!(refusal("interventions = []").contains("missing field 'sae'"));
        assert!(refusal("sae = 's'").contains("missing field 'interventions'"));
        assert!(refusal("sae = 's'\ninterventions = []").contains("interventions is empty"));
        assert!(refusal("sae = ''\ninterventions = []").contains("sae is empty"));
        assert!(refusal("sae = 's'\n[[interventions]]\nfeature = -1\naction = 'ablate'").contains("-1"));
        assert!(refusal("sae = [").contains("line 1"));
        let json = Spec::parse_json("{\"sae\": \"s\",\n \"budgt\": {}}").unwrap_err().to_string();
        assert!(
            json.starts_with("line 2, column ") && json.contains("did you mean 'budget'?") && !json.contains("at line"),
            "{json}"
        );
        assert!(Spec::parse_json(&"[".repeat(100_000)).is_err());
        assert!(Spec::parse_toml(&format!("a = {}", "[".repeat(100_000))).is_err());
    }

    #[test]
    fn files() {
        let dir = tempfile::tempdir().unwrap();
        let text = "sae = 'data/sae'\ninterventions = [{ feature = 1, action = 'ablate' }]";
        let path = dir.path().join("a.toml");
        std::fs::write(&path, text).unwrap();
        assert_eq!(Spec::read(&path).unwrap().sae, dir.path().join("data/sae"));
        let absolute = std::env::temp_dir().join("sae");
        std::fs::write(&path, text.replace("data/sae", &absolute.display().to_string())).unwrap();
        assert_eq!(Spec::read(&path).unwrap().sae, absolute);
        assert!(Spec::read(dir.path().join("none.json")).unwrap_err().is_io());
        assert!(Spec::read(dir.path().join("a.yaml")).unwrap_err().to_string().contains(".toml or .json"));
        std::fs::write(&path, [0xff]).unwrap();
        assert!(Spec::read(&path).unwrap_err().to_string().contains("not UTF-8"));
    }

    const SEED: &str = "sae = 's'\n[[interventions]]\nfeature = 7\naction = 'cap'\nvalue = 0.1\nrange = ['-inf', 60]\n[budget]\nneurons = 8\n";

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn damaged_specifications_are_read_or_refused(at in any::<prop::sample::Index>(), with in "\\PC?|[0-9\\[\\]\"'=.e\n-]{0,3}") {
            let mut text = SEED.to_string();
            let at = at.index(text.len());
            text.replace_range(at..=at, &with);
            if let Ok(spec) = Spec::parse_toml(&text) {
                let _ = (spec.features(), spec.interventions[0].response(Architecture::JumpRelu, 1.0));
            }
            let _ = Spec::parse_json(&text);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,80}") {
            let _ = (Spec::parse_toml(&text), Spec::parse_json(&text), variables(&text));
        }

        #[test]
        fn floats_mean_their_shortest_decimal(x in proptest::num::f64::NORMAL) {
            let spec = one(&format!("action = 'add'\nvalue = {x:e}")).unwrap();
            let Action::Add(v) = spec.action else { panic!("add") };
            prop_assert_eq!(v.to_f64(), x);
            prop_assert_eq!(v, format!("{x:e}").parse().unwrap());
        }
    }
}
