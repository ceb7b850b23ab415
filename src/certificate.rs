//! The certificate's file: everything that a stranger needs in order to check a block. `docs/certificate.md` defines it.

use std::path::Path;

use base64::Engine;
use serde::{Deserialize, Serialize};

use crate::activation::Activation;
use crate::certify::{Domain, Figures};
use crate::deployed::Deployed;
use crate::derive::{BlockProof, PreActivation, Reading, ResponseClaim, Rounding, Total};
use crate::error::{At, Error, Result};
use crate::expr::Expr;
use crate::format::Format;
use crate::gated::{GateFigures, GatedClaim, TwoLayerClaim, TwoLayerProof};
use crate::gates::{Term, decompose};
use crate::number::Number;
use crate::ridge::split;
use crate::stack::{Form, Neuron, Stack};
use crate::tensors::Bytes;
use crate::tokens::Calibration;

/// The version of the file format.
pub const VERSION: u32 = 1;
/// File names inside an output directory.
pub const CERTIFICATE_FILE: &str = "certificate.json";
/// The weights.
pub const BLOCK_FILE: &str = "block.safetensors";
/// The weights of the first of two layers.
pub const FIRST_BLOCK_FILE: &str = "first_block.safetensors";
/// The picture.
pub const REPORT_FILE: &str = "report.svg";

/// `certificate.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateFile {
    /// 1
    pub version: u32,
    /// the arithmetic that the bounds speak of: "real"
    pub arithmetic: String,
    /// σ
    pub source: Activation,
    /// "gated" or "plain"
    pub form: Form,
    /// the number format of the weights
    pub format: Format,
    /// d
    pub hidden_size: usize,
    /// g: coordinates between two layers; 0 for one layer
    pub between: usize,
    /// h (of two layers, the second's)
    pub intermediate_size: usize,
    /// R: the bounds hold for ‖x‖ ≤ R; null: they speak of the pre-activations only
    pub norm: Option<f64>,
    /// what stands between the stream and the block
    pub reading: Reading,
    /// SHA-256 of block.safetensors, in hexadecimal
    pub block_sha256: String,
    /// SHA-256 of first_block.safetensors; null for one layer
    pub first_block_sha256: Option<String>,
    /// what the block does; of two layers, what the second does without a gate, then what the first does for a gate
    pub responses: Vec<ResponseFile>,
    /// what two layers do with gates; null for one layer
    pub gates: Option<GatesFile>,
    /// the sum over the responses; null without a norm
    pub total: Option<Total>,
    /// what the block does in the arithmetics of engines, as far as that was asked for
    pub deployed: Vec<Deployed>,
    /// bounds on functionals of x that `deployed` rests on; null: on ‖x‖ ≤ R alone
    pub calibration: Option<Calibration>,
}

/// One response in the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResponseFile {
    /// in words
    pub name: String,
    /// is it what the first of two layers computes for a gate?
    pub carried: bool,
    /// the response as asked for, possibly of several pre-activations; of two layers, the part of it without a gate
    pub expression: Expr,
    /// the index of the pre-activation that this entry is about
    pub pre_activation: usize,
    /// the part of `expression` that depends on it, in z
    pub target: Expr,
    /// z = ⟨w, x⟩ + b
    pub w: Array,
    /// z = ⟨w, x⟩ + b
    pub b: f64,
    /// the write direction
    pub v: Array,
    /// the values of z for which this holds
    pub domain: Ends,
    /// the tolerance asked for
    pub tolerance: Option<f64>,
    /// the first hidden unit; the neurons follow one another
    pub first_unit: usize,
    /// the output constant (in `down_proj.bias`, times v)
    pub constant: f64,
    /// the neurons as functions of z
    pub neurons: Vec<NeuronFile<f64>>,
    /// constant and neurons before rounding, exact rationals; null for fits
    pub ideal: Option<IdealFile>,
    /// what is proved about the neurons
    pub certificate: Figures,
    /// what is proved about the rounding of the rows and columns; null without a norm
    pub rounding: Option<Rounding>,
}

/// What two layers do with gates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatesFile {
    /// K of each guard σ(−K·ℓ)
    pub slopes: Vec<f64>,
    /// the responses as asked for, in order; terms and ungated responses are parts of them
    pub expressions: Vec<ExpressionFile>,
    /// the gated terms
    pub terms: Vec<TermFile>,
    /// bound on the norm of what passes between the layers
    pub reach: f64,
}

/// A response as asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpressionFile {
    /// in words
    pub name: String,
    /// in z, z_1, …
    pub expression: Expr,
}

/// A pre-activation ⟨w, x⟩ + b.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreActivationFile {
    /// w, of length d
    pub w: Array,
    /// b
    pub b: f64,
}

impl PreActivationFile {
    /// As it stands in a file.
    pub fn new(p: &PreActivation) -> Self {
        PreActivationFile { w: Array::new(&p.w), b: p.b }
    }
}

/// A payload behind conditions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TermFile {
    /// in words
    pub name: String,
    /// affine in z, z_1, …; all > 0
    pub conditions: Vec<Expr>,
    /// in z, z_1, …
    pub payload: Expr,
    /// z, z_1, …
    pub pre_activations: Vec<PreActivationFile>,
    /// the write direction, of length d
    pub v: Array,
    /// the values of every pre-activation for which this holds
    pub domain: Ends,
    /// the band around a condition's boundary, before rounding
    pub delta: f64,
    /// the tolerance asked for
    pub tolerance: Option<f64>,
    /// the guard of each condition
    pub guards: Vec<usize>,
    /// the coordinate (after the d live ones) that holds the payload; null for an affine one
    pub carried: Option<usize>,
    /// the first hidden unit in the second block
    pub first_unit: usize,
    /// how many units
    pub units: usize,
    /// c: the gate is c − Σ guards
    pub open: f64,
    /// what is proved
    pub figures: GateFigures,
}

/// A stack before rounding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdealFile {
    /// output constant
    pub constant: Number,
    /// neurons
    pub neurons: Vec<NeuronFile<Number>>,
}

/// A neuron in a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum NeuronFile<T> {
    /// out·σ(gate_weight·z + gate_bias)·(up_weight·z + up_bias)
    Gated {
        /// gate
        gate_weight: T,
        /// gate
        gate_bias: T,
        /// up
        up_weight: T,
        /// up
        up_bias: T,
        /// output
        out: T,
    },
    /// out·σ(weight·z + bias)
    Plain {
        /// inner weight
        weight: T,
        /// inner bias
        bias: T,
        /// output
        out: T,
    },
}

impl<T: Clone> NeuronFile<T> {
    /// As it stands in a file.
    pub fn new(n: &Neuron<T>) -> Self {
        let (weight, bias, out) = (n.weight.clone(), n.bias.clone(), n.out.clone());
        match n.up.clone() {
            Some((up_weight, up_bias)) => {
                NeuronFile::Gated { gate_weight: weight, gate_bias: bias, up_weight, up_bias, out }
            }
            None => NeuronFile::Plain { weight, bias, out },
        }
    }

    /// The neuron.
    pub fn neuron(&self) -> Neuron<T> {
        match self.clone() {
            NeuronFile::Gated { gate_weight, gate_bias, up_weight, up_bias, out } => {
                Neuron { weight: gate_weight, bias: gate_bias, out, up: Some((up_weight, up_bias)) }
            }
            NeuronFile::Plain { weight, bias, out } => Neuron { weight, bias, out, up: None },
        }
    }
}

/// The ends of an interval; infinite ones are the strings "-inf" and "inf".
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ends(End, End);

#[derive(Clone, Copy, Debug, PartialEq)]
struct End(f64);

impl Serialize for End {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        match self.0 {
            f64::INFINITY => s.serialize_str("inf"),
            f64::NEG_INFINITY => s.serialize_str("-inf"),
            x => s.serialize_f64(x),
        }
    }
}

impl<'de> Deserialize<'de> for End {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(f64),
            Text(String),
        }
        match Either::deserialize(d)? {
            Either::Number(x) => Ok(End(x)),
            Either::Text(t) if t == "inf" => Ok(End(f64::INFINITY)),
            Either::Text(t) if t == "-inf" => Ok(End(f64::NEG_INFINITY)),
            Either::Text(t) => {
                Err(serde::de::Error::custom(format!("'{t}' is neither a number nor \"-inf\" nor \"inf\"")))
            }
        }
    }
}

impl From<Domain> for Ends {
    fn from(d: Domain) -> Self {
        Ends(End(d.lo()), End(d.hi()))
    }
}

impl Ends {
    /// As a domain. Errors: ends that are none.
    pub fn domain(self) -> Result<Domain> {
        Domain::new(self.0.0, self.1.0)
    }
}

/// A vector of floats: little-endian bytes in base64.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Array {
    /// "f32" or "f64"
    dtype: Format,
    /// number of elements
    len: usize,
    /// base64 (standard alphabet, padded)
    data: String,
}

impl Array {
    /// Packs a vector, in f32 where that loses nothing.
    pub fn new(values: &[f64]) -> Self {
        let narrow = values.iter().all(|x| f64::from(*x as f32).to_bits() == x.to_bits());
        let dtype = if narrow { Format::F32 } else { Format::F64 };
        let mut bytes = vec![0; values.len() * dtype.bytes()];
        dtype.put(values, &mut bytes);
        Array { dtype, len: values.len(), data: base64::engine::general_purpose::STANDARD.encode(bytes) }
    }

    /// Unpacks. Errors: broken base64, another length than stated, a number that is not finite.
    pub fn values(&self) -> Result<Vec<f64>> {
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(&self.data)
            .map_err(|e| Error::input(format!("broken base64: {e}")))?;
        let size = self.dtype.bytes();
        if Some(bytes.len()) != self.len.checked_mul(size) {
            return Err(Error::input(format!(
                "{} bytes where {} elements of {} are stated",
                bytes.len(),
                self.len,
                self.dtype
            )));
        }
        let values: Vec<f64> = bytes.chunks_exact(size).filter_map(|b| self.dtype.read(b)).collect();
        match values.iter().position(|x| !x.is_finite()) {
            Some(k) => Err(Error::input(format!("element {k} is {}", values[k]))),
            None => Ok(values),
        }
    }
}

impl CertificateFile {
    /// Reads the file. Errors: it is missing, malformed, of another version or arithmetic.
    pub fn read(path: &Path) -> Result<Self> {
        let place = || path.display().to_string();
        // Mapped: a file that is no certificate is not read to its end.
        let bytes = Bytes::map(path, "name a certificate.json")?;
        let file: CertificateFile = serde_json::from_slice(bytes.as_slice())
            .map_err(|e| Error::input(format!("not a certificate: {e}")))
            .at(place)?;
        if file.version != VERSION {
            return Err(Error::unsupported(format!(
                "certificate version {}, this program knows {VERSION}",
                file.version
            ))
            .at(place()));
        }
        if file.arithmetic != "real" {
            return Err(
                Error::unsupported(format!("arithmetic '{}', this program knows 'real'", file.arithmetic)).at(place())
            );
        }
        Ok(file)
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        let mut text =
            serde_json::to_string_pretty(self).expect("a certificate has no map with other keys than strings");
        text.push('\n');
        text
    }

    /// What the file claims of each response, ready for derivation.
    ///
    /// Errors: an array or a domain is malformed, or a target is not the part of its expression that it claims to be.
    pub fn claims(&self) -> Result<Vec<ResponseClaim>> {
        let mut rest = &self.responses[..];
        while let Some(first) = rest.first() {
            // An expression's parts follow one another, all of them.
            let parts = split(&first.expression).at(|| first.name.clone())?;
            for (k, (index, target)) in parts.iter().enumerate() {
                let found = rest.get(k).filter(|r| r.expression == first.expression);
                if found.is_none_or(|r| r.pre_activation != *index || r.target != *target) {
                    return Err(Error::disagreement(format!(
                        "no entry for the part {target} (pre-activation {index}) of {}",
                        first.expression
                    ))
                    .at(first.name.clone()));
                }
            }
            if rest[..parts.len()].iter().any(|r| r.v != first.v) {
                return Err(Error::disagreement("the parts of one response are written along different directions")
                    .at(first.name.clone()));
            }
            rest = &rest[parts.len()..];
        }
        self.responses.iter().map(|r| self.claim(r).at(|| r.name.clone())).collect()
    }

    /// What the file claims of two blocks, ready for derivation.
    ///
    /// Errors: as [`CertificateFile::claims`]; terms that are not those of the expressions.
    pub fn two_layer_claim(&self, gates: &GatesFile) -> Result<TwoLayerClaim> {
        let responses = self.claims()?;
        let (carried, free): (Vec<_>, Vec<_>) =
            responses.into_iter().zip(&self.responses).partition(|(_, r)| r.carried);
        let strip = |x: Vec<(ResponseClaim, &ResponseFile)>| x.into_iter().map(|(c, _)| c).collect::<Vec<_>>();
        // The expressions' ungated parts and terms, in order, are all that there is; the parts of one expression read the
        // same pre-activations and write along the same direction.
        let (mut ungated, mut terms) = (free.iter().peekable(), gates.terms.iter());
        let width = self.hidden_size + self.between;
        let wide = |v: &Array| -> Result<Vec<f64>> {
            let mut v = v.values()?;
            v.resize(width, 0.0);
            Ok(v)
        };
        for e in &gates.expressions {
            let (rest, own) = decompose(&e.expression).at(|| e.name.clone())?;
            let wrong = |what: String| Error::disagreement(what).at(e.name.clone());
            let mut first: Option<&TermFile> = None;
            for t in own {
                let found = terms.next().filter(|f| f.conditions == t.conditions && f.payload == t.payload);
                let found =
                    found.ok_or_else(|| wrong(format!("no entry for the term {} of {}", t.payload, e.expression)))?;
                let of = *first.get_or_insert(found);
                if of.pre_activations != found.pre_activations || of.v != found.v || of.domain != found.domain {
                    return Err(wrong(format!("the terms of {} read or write different things", e.expression)));
                }
            }
            let Some(rest) = rest else { continue };
            for (index, _) in split(&rest)? {
                let found = ungated.next().filter(|(_, r)| r.expression == rest && r.pre_activation == index);
                let Some((claim, _)) = found else {
                    return Err(wrong(format!("no entry for the ungated part {rest} of {}", e.expression)));
                };
                if let Some(t) = first {
                    let same = match t.pre_activations.get(index) {
                        Some(p) => wide(&p.w)? == claim.w && p.b == claim.b,
                        // A constant is a function of a pre-activation that nobody gave.
                        None => claim.w.iter().all(|w| *w == 0.0),
                    };
                    if !same || wide(&t.v)? != claim.v {
                        return Err(wrong(format!("the parts of {} read or write different things", e.expression)));
                    }
                }
            }
        }
        if terms.next().is_some() || ungated.next().is_some() {
            return Err(Error::disagreement("terms or responses that belong to no expression"));
        }
        let gated = gates.terms.iter().map(|t| gated_claim(t).at(|| t.name.clone()));
        Ok(TwoLayerClaim {
            live: self.hidden_size,
            guards: gates.slopes.clone(),
            gated: gated.collect::<Result<_>>()?,
            carried: strip(carried),
            free: strip(free),
        })
    }

    /// Compares the figures in the file with derived ones. Error: the first that differs, with both values.
    pub fn agrees_with_two(&self, gates: &GatesFile, proof: &TwoLayerProof) -> Result<()> {
        let responses = proof.free.iter().chain(&proof.carried).cloned().collect();
        self.agrees_with(&BlockProof { responses, total: Some(proof.total.clone()) })?;
        for (t, f) in gates.terms.iter().zip(&proof.gated) {
            differ("figures", &t.figures, f).at(|| t.name.clone())?;
        }
        differ("reach", &gates.reach, &proof.reach)
    }

    /// Compares what is said of engines with what was derived. Error: the first figure that differs.
    pub fn agrees_with_deployed(&self, deployed: &[Deployed], calibration: &Option<Calibration>) -> Result<()> {
        for (claimed, derived) in self.deployed.iter().zip(deployed) {
            differ("deployed", claimed, derived).at(|| claimed.arithmetic.clone())?;
        }
        differ("deployed: the number of arithmetics", &self.deployed.len(), &deployed.len())?;
        differ("calibration", &self.calibration, calibration)
    }

    fn claim(&self, r: &ResponseFile) -> Result<ResponseClaim> {
        let end =
            r.first_unit.checked_add(r.neurons.len()).ok_or_else(|| Error::input("hidden units beyond all bounds"))?;
        let ideal = r.ideal.as_ref().map(|i| Stack {
            source: self.source.clone(),
            constant: i.constant.clone(),
            neurons: i.neurons.iter().map(NeuronFile::neuron).collect(),
        });
        Ok(ResponseClaim {
            name: r.name.clone(),
            target: r.target.clone(),
            w: r.w.values().at(|| "w".into())?,
            b: r.b,
            v: r.v.values().at(|| "v".into())?,
            domain: r.domain.domain()?,
            delta: r.certificate.delta,
            tolerance: r.tolerance,
            units: r.first_unit..end,
            stack: Stack {
                source: self.source.clone(),
                constant: r.constant,
                neurons: r.neurons.iter().map(NeuronFile::neuron).collect(),
            },
            ideal,
        })
    }

    /// Compares the figures in the file with derived ones. Error: the first that differs, with both values.
    pub fn agrees_with(&self, proof: &BlockProof) -> Result<()> {
        for (r, p) in self.responses.iter().zip(&proof.responses) {
            differ("certificate", &r.certificate, p.figures()).at(|| r.name.clone())?;
            differ("rounding", &r.rounding, &p.rounding).at(|| r.name.clone())?;
        }
        if self.responses.len() != proof.responses.len() {
            return Err(Error::disagreement("another number of responses"));
        }
        differ("total", &self.total, &proof.total)
    }
}

fn gated_claim(t: &TermFile) -> Result<GatedClaim> {
    let end = t.first_unit.checked_add(t.units).ok_or_else(|| Error::input("hidden units beyond all bounds"))?;
    let pre = |p: &PreActivationFile| Ok(PreActivation { w: p.w.values().at(|| "w".into())?, b: p.b });
    Ok(GatedClaim {
        name: t.name.clone(),
        pre_activations: t.pre_activations.iter().map(pre).collect::<Result<_>>()?,
        term: Term { conditions: t.conditions.clone(), payload: t.payload.clone() },
        v: t.v.values().at(|| "v".into())?,
        domain: t.domain.domain()?,
        delta: t.delta,
        tolerance: t.tolerance,
        guards: t.guards.clone(),
        carried: t.carried,
        units: t.first_unit..end,
        open: t.open,
    })
}

fn differ<T: PartialEq + Serialize>(what: &str, claimed: &T, derived: &T) -> Result<()> {
    if claimed == derived {
        return Ok(());
    }
    let text = |x: &T| serde_json::to_string(x).unwrap_or_default();
    Err(Error::disagreement(format!("{what}: the file says {}\n  but derived is {}", text(claimed), text(derived))))
}

/// All files of an output directory.
pub const FILES: [&str; 4] = [BLOCK_FILE, FIRST_BLOCK_FILE, CERTIFICATE_FILE, REPORT_FILE];
