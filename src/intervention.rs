//! From a specification, its SAE and its vectors to an intervention: which directions are read, written, and by which
//! response.

use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;

use crate::certify::Domain;
use crate::compile::{Options, PreActivation, Response, Samples, Target};
use crate::error::{At, Error, Result, in_order};
use crate::expr::Expr;
use crate::interval::Interval;
use crate::number::Number;
use crate::residuals::Residuals;
use crate::ridge::{indices, split};
use crate::sae::{Architecture, Feature, Sae};
use crate::solve::Budget;
use crate::spec::condition::Condition;
use crate::spec::{Action, Direction, Gating, Intervention, Spec, Subject, VectorEntry, action_expr, variable};
use crate::vectors::VectorFile;

/// How far from 1 the norm of a direction may be, which is to be a unit vector: what rounding to bf16 does, and more.
const UNIT: f64 = 0.01;
/// A reconstruction has a response for every feature and every coordinate, each with two vectors in the certificate: no
/// more numbers than this.
const MOST_NUMBERS: usize = 1 << 23;

/// The options that a specification asks for.
pub fn options(spec: &Spec) -> Options {
    Options {
        source: spec.host.source.clone(),
        form: spec.host.form,
        format: spec.host.format,
        biases: spec.host.biases,
        bias_parts: 1,
        depth: spec.layers,
        budget: Budget {
            neurons: spec.budget.neurons,
            max_weight: spec.budget.max_weight,
            max_out: spec.budget.max_out,
            max_total: spec.budget.max_total,
            inert: spec.budget.inert,
            tolerance: Some(spec.budget.tolerance),
            band: spec.budget.band,
            constant: spec.host.biases,
            bias_format: None,
        },
        norm: spec.domain.norm,
        arithmetic: spec.host.arithmetic.clone(),
        copies: Options::default().copies,
        samples: None,
    }
}

/// The samples of the residual stream that a specification names and an arithmetic needs, if any.
///
/// Errors: as [`Residuals::open`]; samples of another width than d.
pub fn samples(spec: &Spec, d: usize) -> Result<Option<Samples>> {
    let Some(path) = spec.domain.samples.as_ref().filter(|_| !spec.host.arithmetic.is_empty()) else {
        return Ok(None);
    };
    let file = Residuals::open(path, None)?;
    if file.width() != d {
        return Err(Error::input(format!("the samples are of width {}, expected {d}", file.width())).at(file.place()));
    }
    let residuals = file.matrix()?;
    if residuals.iter().all(|x| *x == 0.0) {
        return Err(Error::input("all samples are 0: they bound nothing").at(file.place()));
    }
    Ok(Some(Samples { residuals, margin: spec.domain.margin }))
}

/// Opens the SAE that a specification names, if it names one.
///
/// Errors: as [`Sae::open_with`].
pub fn open(spec: &Spec) -> Result<Option<Sae>> {
    spec.sae.as_ref().map(|path| Sae::open_with(path, &spec.sae_options)).transpose()
}

/// Reads the features and vectors that a specification names and states the intervention. A specification without features
/// needs no SAE: `target(&spec, None)`.
///
/// Errors: a feature that the SAE does not have, a vector that cannot be read, an expression that does not parse, a threshold
/// outside of the range of pre-activations, a condition that never holds, a response that no layers compute.
pub fn target<'a>(spec: &Spec, sae: impl Into<Option<&'a Sae>>) -> Result<Target> {
    let responses = read(spec, sae.into())?.into_iter().map(|r| r.response).collect();
    Ok(Target { responses })
}

/// The intervention, and for each entry what its z, z_1, … and its write direction are, in words.
///
/// Errors: as [`target`].
pub fn described<'a>(spec: &Spec, sae: impl Into<Option<&'a Sae>>) -> Result<(Target, Vec<String>)> {
    let read = read(spec, sae.into())?;
    let mut legend: Vec<String> = read.iter().map(|r| r.legend.clone()).collect();
    legend.dedup();
    Ok((Target { responses: read.into_iter().map(|r| r.response).collect() }, legend))
}

/// A response, and what it reads and writes in words.
struct Read {
    response: Response,
    legend: String,
}

fn read(spec: &Spec, sae: Option<&Sae>) -> Result<Vec<Read>> {
    let sources = Sources::read(spec, sae)?;
    let one = |(k, i): (usize, &Intervention)| {
        let place = || format!("intervention {} ({})", k + 1, i.label());
        match i.subject {
            Subject::Sae => sources.reconstruction(spec, i).at(place),
            _ => Ok(vec![sources.response(spec, i).at(place)?]),
        }
    };
    Ok(in_order(spec.interventions.par_iter().enumerate().map(one))?.into_iter().flatten().collect())
}

fn feature(subject: &Subject) -> Option<usize> {
    if let Subject::Feature(f) = subject { Some(*f) } else { None }
}

/// A vector as it is read: z = ⟨v, x⟩ + b.
struct Vector {
    v: Vec<f64>,
    b: f64,
    threshold: Option<Number>,
}

impl Vector {
    fn read(entry: &VectorEntry) -> Result<Vector> {
        let file = VectorFile::open(&entry.file)?;
        let mut v = file.vector(entry.tensor.as_deref(), entry.row)?;
        if v.iter().all(|x| *x == 0.0) {
            return Err(Error::input("all its coordinates are 0").at(file.place()));
        }
        if entry.unit {
            v = unit(&v);
        }
        let b = match &entry.bias_tensor {
            None => entry.bias,
            Some(name) => bias(&file, name, entry.row.unwrap_or(0))?,
        };
        Ok(Vector { v, b, threshold: entry.threshold.clone() })
    }
}

/// The only number of a tensor, or the one at a place.
fn bias(file: &VectorFile, name: &str, at: usize) -> Result<f64> {
    let all = file.vector(Some(name), Some(0))?;
    match &all[..] {
        [only] => Ok(*only),
        several => several.get(at).copied().ok_or_else(|| {
            Error::input(format!("bias_tensor = \"{}\" holds {} numbers, none at {at}", name.escape_debug(), all.len()))
                .at(file.place())
        }),
    }
}

fn norm(v: &[f64]) -> f64 {
    v.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// v/‖v‖, v ≠ 0
fn unit(v: &[f64]) -> Vec<f64> {
    let length = norm(v);
    v.iter().map(|x| x / length).collect()
}

/// What a specification's entries read.
struct Sources<'a> {
    sae: Option<&'a Sae>,
    features: HashMap<usize, Feature>,
    vectors: BTreeMap<String, Vector>,
}

impl<'a> Sources<'a> {
    fn read(spec: &Spec, sae: Option<&'a Sae>) -> Result<Sources<'a>> {
        let indices = spec.features()?;
        let features = match (sae, indices.is_empty()) {
            (_, true) => HashMap::new(),
            (Some(sae), false) => indices.iter().copied().zip(sae.features(&indices)?).collect(),
            (None, false) => return Err(Error::input("features are named, but no SAE").help("sae = \"...\"")),
        };
        let dead = |row: &[f64]| row.iter().all(|x| *x == 0.0);
        for (k, i) in spec.interventions.iter().enumerate() {
            let place = || format!("intervention {} ({})", k + 1, i.label());
            for s in i.reads()?.iter().filter(|_| i.direction == Direction::Encoder) {
                if let Some(f) = feature(s).filter(|f| features.get(f).is_some_and(|x: &Feature| dead(&x.w))) {
                    return Err(Error::input(format!("feature {f} is dead: the encoder's numbers for it are all 0"))
                        .at(place()));
                }
            }
            for s in i.subjects()?.iter().filter(|s| **s == i.write || i.direction == Direction::Decoder) {
                if let Some(f) = feature(s).filter(|f| features.get(f).is_some_and(|x: &Feature| dead(&x.d))) {
                    return Err(Error::input(format!("feature {f} is dead: its decoder row is all 0")).at(place()));
                }
            }
        }
        let mut vectors = BTreeMap::new();
        let mut width = sae.filter(|_| !features.is_empty()).map(|sae| (sae.d_in(), "the SAE reads".to_string()));
        // Those that nothing uses are looked at too: a name that is misspelt is found sooner.
        for (name, file) in &spec.vectors {
            let vector = Vector::read(file).at(|| format!("vector {name}"))?;
            match &width {
                Some((d, whose)) if vector.v.len() != *d => {
                    return Err(Error::input(format!("vector {name} has {} coordinates, {whose} {d}", vector.v.len()))
                        .help("all must be of the same model's stream"));
                }
                Some(_) => {}
                None => width = Some((vector.v.len(), format!("vector {name} has"))),
            }
            vectors.insert(name.clone(), vector);
        }
        Ok(Sources { sae, features, vectors })
    }

    fn knows(&self, subject: &Subject) -> bool {
        match subject {
            Subject::Feature(f) => self.features.contains_key(f),
            Subject::Vector(name) => self.vectors.contains_key(name),
            Subject::Sae => false,
        }
    }

    fn architecture(&self) -> Architecture {
        self.sae.map_or(Architecture::Standard, Sae::architecture)
    }

    /// The row and bias of a subject's pre-activation.
    fn row(&self, i: &Intervention, subject: &Subject) -> PreActivation {
        match (subject, i.direction) {
            (Subject::Feature(f), Direction::Encoder) => {
                let f = &self.features[f];
                PreActivation { w: f.w.clone(), b: if i.bias { f.b } else { 0.0 } }
            }
            (Subject::Vector(name), _) => PreActivation { w: self.vectors[name].v.clone(), b: self.vectors[name].b },
            _ => PreActivation { w: self.column(i, subject), b: 0.0 },
        }
    }

    /// What is written along: a decoder row or a vector.
    fn column(&self, i: &Intervention, subject: &Subject) -> Vec<f64> {
        match subject {
            Subject::Feature(f) if i.unit => unit(&self.features[f].d),
            Subject::Feature(f) => self.features[f].d.clone(),
            Subject::Vector(name) => self.vectors[name].v.clone(),
            Subject::Sae => Vec::new(),
        }
    }

    /// How a subject's z becomes its activation, and its threshold.
    fn gating(&self, i: &Intervention, subject: &Subject) -> Result<(Gating, Number)> {
        // An entry's `activation` is about its own z.
        let asked = i.activation.filter(|_| *subject == i.subject);
        match subject {
            Subject::Feature(_) if i.direction == Direction::Decoder => {
                Ok((asked.unwrap_or(Gating::Relu), Number::zero()))
            }
            Subject::Feature(f) => {
                if asked == Some(Gating::JumpRelu) && self.architecture() == Architecture::Standard {
                    let what = "activation = \"jumprelu\", but the SAE is a standard one: it has no thresholds";
                    return Err(Error::input(what).help("leave activation out, or write activation = \"relu\""));
                }
                let threshold = self.features[f].threshold;
                let threshold = Number::from_f64(threshold)
                    .ok_or_else(|| Error::input(format!("the threshold of feature {f} is {threshold}")))?;
                Ok((asked.unwrap_or(self.architecture().into()), threshold))
            }
            Subject::Vector(name) => {
                let threshold = self.vectors[name].threshold.clone();
                let usual = if threshold.is_some() { Gating::JumpRelu } else { Gating::Linear };
                Ok((asked.unwrap_or(usual), threshold.unwrap_or(Number::zero())))
            }
            Subject::Sae => Ok((Gating::Linear, Number::zero())),
        }
    }

    /// An expression in z, a, z_k and a_k, over the pre-activations of `order`, to which it appends.
    fn expr(&self, i: &Intervention, text: &str, order: &mut Vec<Subject>) -> Result<Expr> {
        // Every name becomes a symbol: a pre-activation by its place in the order, or its activation.
        let mut symbols: Vec<(usize, bool)> = Vec::new();
        let parsed = Expr::parse_with(text, |name| {
            let subject = match name {
                "z" | "a" => i.subject.clone(),
                name => variable(name).ok()?.filter(|s| self.knows(s))?,
            };
            let at = order.iter().position(|s| *s == subject).unwrap_or_else(|| {
                order.push(subject);
                order.len() - 1
            });
            symbols.push((at, name.starts_with('a')));
            Some(symbols.len() - 1)
        })?;
        let meaning = |(at, active): &(usize, bool)| -> Result<Expr> {
            let z = Expr::Pre(*at);
            if !active {
                return Ok(z);
            }
            let (gating, threshold) = self.gating(i, &order[*at])?;
            Ok(match gating {
                Gating::Linear => z,
                Gating::Relu => Expr::Relu(Box::new(z)),
                Gating::JumpRelu => Expr::JumpRelu(Box::new(z), threshold),
            })
        };
        let meanings: Vec<Expr> = symbols.iter().map(meaning).collect::<Result<_>>()?;
        let expr = parsed.substitute(&|k| meanings[k].clone());
        // Activations of the catalogue take affine forms only, and `a` may be none.
        expr.to_string().parse::<Expr>()?;
        Ok(expr)
    }

    fn response(&self, spec: &Spec, i: &Intervention) -> Result<Read> {
        let (gating, threshold) = self.gating(i, &i.subject)?;
        self.must_be_unit(i, gating)?;
        let range = spec.range_of(i);
        let mut order = vec![i.subject.clone()];
        let mut expr = self.expr(i, &action_expr(&i.action, &threshold, gating), &mut order)?;
        if let Some(when) = &i.when {
            let condition = Condition::parse(when, &mut |sum| self.expr(i, sum, &mut order))?;
            condition.check(range).at(|| "when".into())?;
            expr = Expr::Mul(Box::new(expr), Box::new(condition.expr()));
        }
        // What the response does not read bounds nothing.
        let used = indices(&expr);
        let domain = if used.is_empty() { Domain::line() } else { Domain::new(range.lo(), range.hi())? };
        if !used.is_empty() {
            expr = expr.substitute(&|k| Expr::Pre(used.iter().position(|u| *u == k).unwrap_or(k)));
            order = used.iter().map(|k| order[*k].clone()).collect();
        }
        let names = named(&order);
        check_conditions(&expr, range).map_err(|e| if order.len() > 1 { e.at(format!("with {names}")) } else { e })?;
        let response = Response {
            name: i.label(),
            expr,
            pre_activations: order.iter().map(|s| self.row(i, s)).collect(),
            write: self.column(i, &i.write),
            domain,
            band: spec.band_of(i),
        };
        let rows = if i.direction == Direction::Decoder { " (features' decoder rows)" } else { "" };
        let bias = if i.bias { "" } else { ", without the SAE's biases" };
        let along = match &i.write {
            Subject::Feature(f) if i.unit => format!("the decoder row of feature {f}, scaled to norm 1"),
            Subject::Feature(f) => format!("the decoder row of feature {f}"),
            other => other.to_string(),
        };
        let legend = format!("{}: {names}{rows}{bias}; v is {along}", response.name);
        Ok(Read { response, legend })
    }

    /// Actions on the component of x along a direction mean ⟨v, x⟩ only if v is a unit vector.
    fn must_be_unit(&self, i: &Intervention, gating: Gating) -> Result<()> {
        let direction = match &i.subject {
            Subject::Vector(_) => true,
            Subject::Feature(_) => i.direction == Direction::Decoder && gating == Gating::Linear,
            Subject::Sae => false,
        };
        if !(direction && i.action.is_projection() && i.write == i.subject) {
            return Ok(());
        }
        let length = norm(&self.column(i, &i.write));
        if (length - 1.0).abs() <= UNIT {
            return Ok(());
        }
        let place = if matches!(i.subject, Subject::Vector(_)) { "in its [vectors] table" } else { "in this entry" };
        Err(Error::input(format!(
            "{} has norm {length:.4}, so that <v, x> is not the component of x along it, which {} changes",
            i.subject,
            i.action.name()
        ))
        .help(format!(
            "write unit = true {place}; if this is meant, write the response yourself with action = \"expr\""
        )))
    }

    /// x + (Σ_f a_f·W_dec\[f\] + b_dec − x): a response for every feature, one for the bias, and −x_j for every coordinate.
    fn reconstruction(&self, spec: &Spec, i: &Intervention) -> Result<Vec<Read>> {
        let Some(sae) = self.sae else { return Err(Error::input("there is no SAE").help("sae = \"...\"")) };
        let (d, all) = (sae.d_in(), sae.d_sae());
        if (d + all) * d > MOST_NUMBERS {
            return Err(Error::unsupported(format!(
                "a reconstruction from {all} features of a stream of width {d} takes {} responses and some {} hidden units",
                d + all,
                2 * (d + all)
            ))
            .help("inserted layers replace small SAEs; to change some features and keep the error term, name those features"));
        }
        let architecture: Gating = sae.architecture().into();
        let range = spec.range_of(i);
        let (domain, band) = (Domain::new(range.lo(), range.hi())?, spec.band_of(i));
        // A coordinate is no larger than ‖x‖.
        let coordinate = spec.domain.norm.map_or(Ok(Domain::line()), |r| Domain::new(-r, r))?;
        let (label, legend) = (
            i.label(),
            format!(
                "{}: z is each feature in turn, or a coordinate of x; v its decoder row, or minus that coordinate",
                i.label()
            ),
        );
        let mut out = Vec::with_capacity(d + all + 1);
        let mut add =
            |name: String, expr: &str, pre: Vec<PreActivation>, write: Vec<f64>, domain: Domain| -> Result<()> {
                let response = Response {
                    name: format!("{label}: {name}"),
                    expr: expr.parse()?,
                    pre_activations: pre,
                    write,
                    domain,
                    band,
                };
                out.push(Read { response, legend: legend.clone() });
                Ok(())
            };
        for f in sae.features(&(0..all).collect::<Vec<_>>())? {
            let threshold = Number::from_f64(f.threshold)
                .ok_or_else(|| Error::input(format!("the threshold of feature {} is {}", f.index, f.threshold)))?;
            // A scale by 2 adds a once.
            let text = action_expr(&Action::Scale(2.into()), &threshold, architecture);
            check_conditions(&text.parse()?, range).at(|| format!("feature {}", f.index))?;
            add(format!("feature {}", f.index), &text, vec![PreActivation { w: f.w, b: f.b }], f.d, domain)?;
        }
        let coordinate_row = |j: usize| {
            let mut e = vec![0.0; d];
            e[j] = 1.0;
            e
        };
        // A constant reads nothing; it is filed under some pre-activation.
        let any = PreActivation { w: coordinate_row(0), b: 0.0 };
        add("decoder bias".into(), "1", vec![any], sae.decoder_bias()?, coordinate)?;
        for j in 0..d {
            let e = coordinate_row(j);
            add(format!("minus x[{j}]"), "-z", vec![PreActivation { w: e.clone(), b: 0.0 }], e, coordinate)?;
        }
        Ok(out)
    }
}

/// "z is feature 5, z_1 is vector probe"
fn named(order: &[Subject]) -> String {
    let names = order.iter().enumerate().map(|(k, s)| format!("{} is {s}", Expr::Pre(k)));
    names.collect::<Vec<_>>().join(", ")
}

/// Refuses what switches nowhere inside of the range, and what no layers compute.
fn check_conditions(e: &Expr, range: Interval) -> Result<()> {
    let outside = |what: String| {
        Err(Error::input(format!("{what} of the range {} to {} of pre-activations", range.lo(), range.hi()))
            .help("widen `range`, in [domain] or for this intervention"))
    };
    let thresholds = match thresholds(e) {
        Ok(found) => found,
        Err(error) => {
            // What is settled may be why.
            check_steps(e, range)?;
            return Err(error);
        }
    };
    for at in thresholds {
        if !(range.lo() < at && at < range.hi()) {
            return outside(format!("the threshold {at} does not lie inside"));
        }
    }
    check_steps(e, range)
}

/// Refuses steps, thresholds and selections that are settled while pre-activations lie in the range, and products of steps that
/// exclude one another.
fn check_steps(e: &Expr, range: Interval) -> Result<()> {
    let switch = |e: &Expr| {
        let c = match e {
            Expr::Step(c) | Expr::Select(c, ..) => (**c).clone(),
            Expr::JumpRelu(a, t) => (**a).clone().minus(Expr::Const(t.clone())),
            _ => return None,
        };
        let text = format!("{c} > 0");
        Some(Condition::Positive(c, text))
    };
    let mut factors = vec![e];
    while let Some(at) = factors.iter().position(|f| matches!(f, Expr::Mul(..))) {
        factors.extend(factors[at].children());
        factors.swap_remove(at);
    }
    if let Some(all) = Condition::all(factors.iter().filter_map(|f| switch(f)).collect()) {
        all.check(range)?;
    }
    factors.iter().flat_map(|f| f.children()).try_for_each(|e| check_steps(e, range))
}

/// Where the response switches, as far as it is a pre-activation that passes a number there.
fn thresholds(e: &Expr) -> Result<Vec<f64>> {
    if let Ok(parts) = split(e) {
        let jumps = parts.iter().map(|(_, part)| crate::certify::jumps(part, Domain::line()));
        return Ok(jumps.collect::<Result<Vec<_>>>()?.concat());
    }
    let (_, gated) = crate::gates::decompose(e)?;
    let roots = gated.iter().flat_map(|t| &t.conditions).filter_map(|c| {
        let form = c.affine()?;
        let mut coefficients = form.coefficients.values();
        let (Some(slope), None) = (coefficients.next(), coefficients.next()) else { return None };
        Some(Number::from(-(&form.constant / slope)).to_f64())
    });
    Ok(roots.collect())
}
