//! The file's own structure, before it is checked.

use super::*;

use super::condition::Condition;
use crate::expr::Expr;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spec {
    sae: Option<sae::Sae>,
    #[serde(default)]
    vectors: BTreeMap<String, Vector>,
    interventions: Option<Vec<Intervention>>,
    layer: Option<Whole>,
    layers: Option<Layers>,
    sequence: Option<bool>,
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
    sae: Option<sae::Sae>,
    interventions: Vec<Intervention>,
    layer: Option<Whole>,
    layers: Option<Layers>,
    sequence: Option<bool>,
    domain: Option<Domain>,
}

#[derive(Clone, serde::Deserialize)]
#[serde(untagged, expecting = "layers must be 1, 2 or \"auto\"")]
enum Layers {
    Number(u64),
    Word(String),
}

#[derive(Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    file: PathBuf,
    tensor: Option<String>,
    row: Option<Whole>,
    unit: Option<bool>,
    bias: Option<Real>,
    bias_tensor: Option<String>,
    threshold: Option<Amount>,
}

/// What is written along.
#[derive(Clone, serde::Deserialize)]
#[serde(untagged, expecting = "write must be the index of a feature or the name of a vector")]
enum Written {
    Feature(u64),
    Vector(String),
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Intervention {
    name: Option<String>,
    feature: Option<Whole>,
    vector: Option<String>,
    action: String,
    value: Option<Amount>,
    max_activation: Option<Amount>,
    expr: Option<String>,
    when: Option<String>,
    gate: Option<Whole>,
    direction: Option<String>,
    bias: Option<bool>,
    unit: Option<bool>,
    write: Option<Written>,
    activation: Option<String>,
    range: Option<Vec<Bound>>,
    band: Option<Real>,
}

/// One name, or several.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Names {
    One(String),
    Several(Vec<String>),
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Host {
    source: Option<String>,
    form: Option<String>,
    format: Option<String>,
    biases: Option<bool>,
    arithmetic: Option<Names>,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Budget {
    tolerance: Option<Real>,
    band: Option<Real>,
    neurons: Option<Whole>,
    max_weight: Option<Real>,
    max_out: Option<Real>,
    max_total: Option<Real>,
    inert: Option<bool>,
}

#[derive(Clone, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Domain {
    range: Option<Vec<Bound>>,
    norm: Option<Real>,
    borrowed: Option<Real>,
    samples: Option<PathBuf>,
    margin: Option<Real>,
}

impl Spec {
    pub(super) fn check(self) -> Result<Vec<super::Spec>> {
        let host = self.host.check().at(|| "host".into())?;
        let budget = self.budget.check().at(|| "budget".into())?;
        let vectors = vectors(self.vectors)?;
        let single = self.sae.is_some() || self.interventions.is_some() || self.layer.is_some();
        let sites = match (self.sites, self.interventions) {
            (Some(_), _) if single => {
                return Err(Error::input("sites stands beside sae, interventions or layer")
                    .help("with [[sites]], each site has its own sae, layer and interventions"));
            }
            (Some(sites), _) if sites.is_empty() => {
                return Err(Error::input("sites is empty").help("write at least one [[sites]] entry"));
            }
            (Some(sites), _) => sites,
            (None, Some(interventions)) => {
                let (sae, layer) = (self.sae, self.layer);
                vec![Site { sae, interventions, layer, layers: None, sequence: None, domain: None }]
            }
            (None, None) => {
                return Err(Error::input("missing field 'interventions'").help("write [[interventions]] entries"));
            }
        };
        let several = sites.len() > 1;
        let mut specs: Vec<super::Spec> = Vec::with_capacity(sites.len());
        for (k, site) in sites.into_iter().enumerate() {
            let layers = site.layers.clone().or(self.layers.clone());
            let domain = site.domain.clone().unwrap_or(self.domain.clone());
            let sequence = site.sequence.or(self.sequence).unwrap_or(false);
            let one = || -> Result<super::Spec> {
                let (sae, sae_options) = site.sae.map(sae::Sae::check).transpose()?.unzip();
                if domain.samples.is_some() && host.arithmetic.is_empty() {
                    return Err(Error::input(
                        "samples narrow what host.arithmetic is certified for, and none is named",
                    )
                    .at("domain")
                    .help("name one, as in [host] arithmetic = \"any-bf16\", or leave samples out"));
                }
                Ok(super::Spec {
                    layer: site.layer.map(layer).transpose()?,
                    layers: layers.map_or(Ok(Depth::default()), depth)?,
                    step: 0,
                    interventions: interventions(sae.is_some(), &vectors, site.interventions)?,
                    sae,
                    sae_options: sae_options.unwrap_or_default(),
                    vectors: vectors.clone(),
                    host: host.clone(),
                    budget: budget.clone(),
                    domain: domain.check().at(|| "domain".into())?,
                })
            };
            let spec = one().and_then(|spec| sensible(spec, sequence));
            let spec = if several { spec.at(|| format!("site {}", k + 1))? } else { spec? };
            if let Some(l) = spec.layer.filter(|l| specs.iter().any(|s| s.layer == Some(*l))) {
                return Err(Error::input(format!("two sites at layer {l}"))
                    .help("put all interventions at one layer into one site (sequence = true applies them one after the other)"));
            }
            specs.extend(if sequence { steps(spec) } else { vec![spec] });
        }
        specs.sort_by_key(|s| s.layer);
        Ok(specs)
    }
}

/// Refuses what is said twice, and bands that leave nothing of a range.
fn sensible(spec: super::Spec, sequence: bool) -> Result<super::Spec> {
    // Entries that are the same have the same subject: thousands of features are not compared with one another.
    let mut before: BTreeMap<&Subject, Vec<usize>> = BTreeMap::new();
    for (k, i) in spec.interventions.iter().enumerate() {
        let place = || format!("intervention {} ({})", k + 1, i.label());
        let (range, band) = (spec.range_of(i), spec.band_of(i));
        if range.is_finite() && 2.0 * band >= range.hi() - range.lo() {
            return Err(Error::input(format!(
                "band = {band} leaves nothing of the range from {} to {}",
                range.lo(),
                range.hi()
            ))
            .at(place())
            .help("within a band of a jump nothing is promised: it should be small beside the range, as 0.01 is"));
        }
        // Steps may repeat; what is done at once would be done twice over.
        let alike = before.entry(&i.subject).or_default();
        if let Some(first) = alike.iter().find(|j| spec.interventions[**j] == *i).filter(|_| !sequence) {
            return Err(Error::input(format!("the same as intervention {}", first + 1))
                .at(place())
                .help("all interventions read the same x and their writes add up; say twice the effect in one entry"));
        }
        alike.push(k);
    }
    Ok(spec)
}

/// One specification for each intervention.
fn steps(spec: super::Spec) -> Vec<super::Spec> {
    let one =
        |(step, i): (usize, &super::Intervention)| super::Spec { step, interventions: vec![i.clone()], ..spec.clone() };
    spec.interventions.iter().enumerate().map(one).collect()
}

fn vectors(raw: BTreeMap<String, Vector>) -> Result<BTreeMap<String, VectorEntry>> {
    let checked = raw.into_iter().map(|(name, v)| {
        let checked = v.check(&name).at(|| format!("vector {}", name.escape_debug()))?;
        Ok((name, checked))
    });
    checked.collect()
}

impl Vector {
    fn check(self, name: &str) -> Result<VectorEntry> {
        if !is_name(name) {
            return Err(Error::input("a vector's name is made of letters, digits and underscores, a letter first")
                .help("expressions call it z_NAME"));
        }
        if self.file.as_os_str().is_empty() {
            return Err(Error::input("file is empty").help("name the file that holds the vector"));
        }
        if self.bias.is_some() && self.bias_tensor.is_some() {
            return Err(Error::input("both bias and bias_tensor are given").help("leave one of them out"));
        }
        Ok(VectorEntry {
            file: self.file,
            tensor: self.tensor,
            row: self.row.map(index).transpose()?,
            unit: self.unit.unwrap_or(false),
            bias: bounded("bias", self.bias.map_or(0.0, |b| b.0), |_| true, "finite")?,
            bias_tensor: self.bias_tensor,
            threshold: self.threshold.map(|t| t.number("threshold")).transpose()?,
        })
    }
}

impl Amount {
    fn number(&self, field: &str) -> Result<Number> {
        match self {
            Amount::Number(x) => Ok(x.clone()),
            Amount::Word(text) => Err(refusals::word(field, text).unwrap_or_else(|| {
                Error::input(format!("{field} = {} is no number", quoted(text)))
                    .help("write a number, or a string that holds one (\"0.1\", \"1/3\")")
            })),
        }
    }
}

fn interventions(
    has_sae: bool,
    vectors: &BTreeMap<String, VectorEntry>,
    raw: Vec<Intervention>,
) -> Result<Vec<super::Intervention>> {
    if raw.is_empty() {
        return Err(Error::input("interventions is empty").help("write at least one [[interventions]] entry"));
    }
    let checked = raw.into_iter().enumerate().map(|(k, raw)| {
        let place = raw.place(k + 1);
        let one = || {
            let checked = raw.check(vectors)?;
            for subject in checked.subjects()? {
                match subject {
                    Subject::Vector(name) if !vectors.contains_key(&name) => {
                        let error = undefined(&name, vectors);
                        return Err(match checked.field_of(&name) {
                            Some(field) => error.at(field),
                            None => error,
                        });
                    }
                    Subject::Feature(_) | Subject::Sae if !has_sae => {
                        return Err(Error::input(format!("missing field 'sae': {subject} is one of an SAE"))
                            .help("name the directory of the SAE, sae = \"...\""));
                    }
                    _ => {}
                }
            }
            Ok(checked)
        };
        one().at(|| place)
    });
    checked.collect()
}

fn undefined(name: &str, vectors: &BTreeMap<String, VectorEntry>) -> Error {
    let error = Error::input(format!("there is no vector {}", quoted(name)));
    match nearest(name, vectors.keys().map(String::as_str)) {
        Some(near) => error.help(format!("did you mean {}?", quoted(near))),
        None => error.help(format!("define it: [vectors.{name}] with file = \"...\"")),
    }
}

fn index(n: Whole) -> Result<usize> {
    usize::try_from(n.0).map_err(|_| Error::input(format!("{} is too large", n.0)))
}

fn layer(n: Whole) -> Result<usize> {
    // More layers than any model has.
    index(n).ok().filter(|n| *n < 10_000).ok_or_else(|| Error::input(format!("layer {} is in no model", n.0)))
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
    fn place(&self, number: usize) -> String {
        match (&self.feature, &self.vector) {
            (Some(f), _) => format!("intervention {number} (feature {})", f.0),
            (None, Some(v)) => format!("intervention {number} (vector {})", v.escape_debug()),
            (None, None) => format!("intervention {number}"),
        }
    }

    fn check(self, vectors: &BTreeMap<String, VectorEntry>) -> Result<super::Intervention> {
        let action = self.action()?;
        let subject = self.subject(&action)?;
        let checked = super::Intervention {
            direction: match &self.direction {
                None => Direction::default(),
                Some(d) => word("direction", d, &[("encoder", Direction::Encoder), ("decoder", Direction::Decoder)])?,
            },
            activation: self.activation.as_deref().map(activation).transpose()?,
            when: self.condition(&subject)?,
            bias: self.bias.unwrap_or(true),
            unit: self.unit.unwrap_or(false),
            write: match self.write {
                None => subject.clone(),
                Some(Written::Feature(f)) => Subject::Feature(index(Whole(f))?),
                Some(Written::Vector(name)) => Subject::Vector(name),
            },
            range: self.range.map(|r| super::range("range", &r)).transpose()?,
            band: self.band.map(|b| band(b.0)).transpose()?,
            name: self.name.map(|n| one_line(&n)).filter(|n| !n.is_empty()),
            subject,
            action,
        };
        checked.agrees(vectors)?;
        Ok(checked)
    }

    fn subject(&self, action: &Action) -> Result<Subject> {
        match (&self.feature, &self.vector, action) {
            (None, None, Action::Reconstruct) => Ok(Subject::Sae),
            (_, _, Action::Reconstruct) => {
                Err(Error::input("action = \"reconstruct\" is about the whole SAE")
                    .help("leave feature and vector out"))
            }
            (Some(f), None, _) => index(*f).map(Subject::Feature),
            (None, Some(v), _) => Ok(Subject::Vector(v.clone())),
            (Some(_), Some(_), _) => Err(Error::input("both feature and vector are given")
                .help("z reads one of them; write = ... says what is written along, when = ... what it depends on")),
            (None, None, _) => Err(Error::input("neither feature nor vector is given")
                .help("say what z reads: feature = 12 or vector = \"name\"")),
        }
    }

    /// `gate` and `when` as one condition.
    fn condition(&self, subject: &Subject) -> Result<Option<String>> {
        let gate = self.gate.map(index).transpose()?;
        if gate.is_some_and(|g| *subject == Subject::Feature(g)) {
            return Err(Error::input("gate is the feature itself")
                .help("ablate, scale and the ..._when_active actions are gated on their own feature already"));
        }
        if let Some(when) = &self.when {
            Condition::parse(when, &mut syntax)
                .map_err(|e| refusals::name_in(when).unwrap_or(e))
                .at(|| "when".into())?;
        }
        Ok(match (gate, self.when.as_deref().map(str::trim)) {
            (None, None) => None,
            (Some(g), None) => Some(format!("a_{g} > 0")),
            (None, Some(when)) => Some(when.to_string()),
            (Some(g), Some(when)) => Some(format!("a_{g} > 0 and ({when})")),
        })
    }

    fn action(&self) -> Result<Action> {
        type WithValue = fn(Number) -> Action;
        enum Kind {
            Plain(Action),
            Value(WithValue),
            Expr,
        }
        let kind = match self.action.as_str() {
            "ablate" => Kind::Plain(Action::Ablate),
            "reconstruct" => Kind::Plain(Action::Reconstruct),
            "clamp" => Kind::Value(Action::Clamp),
            "clamp_when_active" => Kind::Value(Action::ClampWhenActive),
            "cap" => Kind::Value(Action::Cap),
            "floor" => Kind::Value(Action::Floor),
            "scale" => Kind::Value(Action::Scale),
            "add" => Kind::Value(Action::Add),
            "add_when_active" => Kind::Value(Action::AddWhenActive),
            "expr" => Kind::Expr,
            other => {
                return Err(refusals::action(other).unwrap_or_else(|| {
                    let unknown = word("action", other, &Action::NAMES.map(|n| (n, ())));
                    unknown.err().unwrap_or_else(|| Error::input("unknown action"))
                }));
            }
        };
        let name = &self.action;
        let superfluous = |field: &str| {
            Error::input(format!("action = \"{name}\" takes no {field}")).help(format!("leave {field} out"))
        };
        match (&kind, &self.value, &self.expr) {
            (Kind::Plain(_) | Kind::Expr, Some(_), _) => return Err(superfluous("value")),
            (Kind::Plain(_) | Kind::Value(_), _, Some(_)) => return Err(superfluous("expr")),
            _ => {}
        }
        if self.max_activation.is_some() && (self.value.is_none() || name == "scale") {
            return Err(superfluous("max_activation"));
        }
        match (kind, &self.value, &self.expr) {
            (Kind::Plain(action), ..) => Ok(action),
            (Kind::Value(make), Some(value), _) => Ok(make(self.absolute(value)?)),
            (Kind::Value(_), None, _) => Err(Error::input(format!("action = \"{name}\" needs a value"))
                .help("add value = ..., a number in the unit of the feature's activation (for scale, a factor)")),
            (Kind::Expr, _, Some(text)) if !text.trim().is_empty() => {
                variables(text).at(|| "expr".into())?;
                syntax(text).map_err(|e| refusals::name_in(text).unwrap_or(e)).at(|| "expr".into())?;
                Ok(Action::Expr(text.trim().to_string()))
            }
            (Kind::Expr, ..) => Err(Error::input("action = \"expr\" needs an expression")
                .help("add expr = \"...\", the response as a function of z, as in expr = \"-relu(z - 2)\"")),
        }
    }

    /// The value in the unit of activations.
    fn absolute(&self, value: &Amount) -> Result<Number> {
        let value = value.number("value")?;
        let Some(most) = &self.max_activation else { return Ok(value) };
        let most = most.number("max_activation")?;
        if most.signum() <= 0 {
            return Err(Error::input(format!("max_activation must be positive, not {most}")));
        }
        Ok(&value * &most)
    }
}

/// Reads an expression for its form alone: whatever could name a pre-activation or an activation does.
fn syntax(text: &str) -> Result<Expr> {
    Expr::parse_with(text, |name| {
        let known = name == "z" || name == "a" || matches!(variable(name), Ok(Some(_)));
        known.then_some(0)
    })
}

fn activation(text: &str) -> Result<Gating> {
    let known = [("relu", Gating::Relu), ("jumprelu", Gating::JumpRelu), ("linear", Gating::Linear)];
    let found = word("activation", text, &known);
    found.map_err(|e| refusals::word("activation", text).unwrap_or(e))
}

impl super::Intervention {
    /// The field that names a vector, if it is not `vector`.
    fn field_of(&self, name: &str) -> Option<&'static str> {
        let named = Subject::Vector(name.to_string());
        let reads = |text: &str| variables(text).is_ok_and(|all| all.contains(&named));
        match &self.action {
            _ if self.subject == named => None,
            _ if self.write == named => Some("write"),
            Action::Expr(text) if reads(text) => Some("expr"),
            _ if self.when.as_deref().is_some_and(reads) => Some("when"),
            _ => None,
        }
    }

    /// Refuses fields that contradict one another.
    fn agrees(&self, vectors: &BTreeMap<String, VectorEntry>) -> Result<()> {
        let input = |what: String, help: &str| Err(Error::input(what).help(help.to_string()));
        let action = self.action.name();
        if self.subject == Subject::Sae {
            let changed = self.when.is_some() || self.activation.is_some() || self.write != Subject::Sae || self.unit;
            if changed || self.direction == Direction::Decoder || !self.bias {
                let what =
                    format!("action = \"{action}\" takes none of when, gate, write, direction, activation, bias, unit");
                return input(what, "leave them out; range and band are for the SAE's features");
            }
            return Ok(());
        }
        if self.activation.is_some() && !self.action.is_gated() {
            let what = format!("action = \"{action}\" does not gate by an activation");
            return input(what, "leave activation out");
        }
        let reads_features = self.reads()?.iter().any(|s| matches!(s, Subject::Feature(_)));
        if self.direction == Direction::Decoder {
            if self.activation == Some(Gating::JumpRelu) && matches!(self.subject, Subject::Feature(_)) {
                let what = "direction = \"decoder\" has no threshold, so activation cannot be \"jumprelu\"";
                return input(what.into(), "leave activation out, or read with direction = \"encoder\"");
            }
            if !self.bias {
                return input("bias = false, but decoder rows have no bias".into(), "leave bias out");
            }
        }
        if !reads_features && (self.direction == Direction::Decoder || !self.bias) {
            let what = "direction and bias are about features, and this entry reads none";
            return input(what.into(), "leave them out; a vector's bias stands in its [vectors] table");
        }
        let decoder =
            self.direction == Direction::Decoder && reads_features || matches!(self.write, Subject::Feature(_));
        if self.unit && !decoder {
            let what = "unit = true is about decoder rows, and this entry reads and writes none";
            return input(what.into(), "for a vector, write unit = true in its [vectors] table");
        }
        match &self.subject {
            Subject::Vector(name) if self.activation == Some(Gating::JumpRelu) => match vectors.get(name) {
                Some(VectorEntry { threshold: None, .. }) => input(
                    format!("activation = \"jumprelu\", but vector {name} has no threshold"),
                    "write threshold = ... in its [vectors] table",
                ),
                _ => Ok(()),
            },
            _ => Ok(()),
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
            arithmetic: self.arithmetic.map_or(Ok(default.arithmetic), |names| {
                let names = match names {
                    Names::One(name) => vec![name],
                    Names::Several(names) => names,
                };
                names.iter().try_for_each(|n| crate::arithmetic::rows(n).map(|_| ())).at(|| "arithmetic".into())?;
                Ok::<_, Error>(names)
            })?,
        })
    }
}

impl Budget {
    fn check(self) -> Result<super::Budget> {
        let default = super::Budget::default();
        let neurons = self.neurons.map_or(Some(default.neurons), |n| usize::try_from(n.0).ok());
        let positive = |field, x| bounded(field, x, |x| x > 0.0, "positive and finite");
        Ok(super::Budget {
            tolerance: bounded(
                "tolerance",
                self.tolerance.map_or(default.tolerance, |x| x.0),
                |x| x >= 0.0,
                "finite and at least 0",
            )?,
            band: band(self.band.map_or(default.band, |x| x.0))?,
            neurons: neurons.filter(|n| (1..=MAX_NEURONS).contains(n)).ok_or_else(|| {
                Error::input(format!("neurons must be 1 to {MAX_NEURONS}, not {}", self.neurons.map_or(0, |n| n.0)))
            })?,
            max_weight: positive("max_weight", self.max_weight.map_or(default.max_weight, |x| x.0))?,
            max_out: positive("max_out", self.max_out.map_or(default.max_out, |x| x.0))?,
            max_total: positive("max_total", self.max_total.map_or(default.max_total, |x| x.0))?,
            inert: self.inert.unwrap_or(default.inert),
        })
    }
}

impl Domain {
    fn check(self) -> Result<super::Domain> {
        Ok(super::Domain {
            range: self.range.map_or(Ok(super::Domain::default().range), |r| super::range("range", &r))?,
            norm: self.norm.map(|x| bounded("norm", x.0, |x| x > 0.0, "positive and finite")).transpose()?,
            borrowed: self
                .borrowed
                .map(|x| bounded("borrowed", x.0, |x| x > 0.0, "positive and finite"))
                .transpose()?,
            samples: self.samples,
            margin: bounded("margin", self.margin.map_or(2.0, |x| x.0), |x| x >= 1.0, "finite and at least 1")?,
        })
    }
}

fn band(x: f64) -> Result<f64> {
    bounded("band", x, |x| x >= 0.0, "finite and at least 0")
}
