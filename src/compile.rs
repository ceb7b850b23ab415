//! The pipeline: an intervention becomes a block with its certificate.

mod engines;
mod stacks;
mod two_layers;

use std::cell::LazyCell;
use std::path::Path;

use nalgebra::{DMatrix, DVector};
use rayon::prelude::*;

use crate::activation::Activation;
use crate::arithmetic::{Arithmetic, rows};
use crate::block::Block;
use crate::carriers::{Carriers, Kind};
use crate::certificate::{
    Array, BLOCK_FILE, CERTIFICATE_FILE, CertificateFile, ExpressionFile, FIRST_BLOCK_FILE, GatesFile, IdealFile,
    NeuronFile, PreActivationFile, ResponseFile, TermFile, VERSION,
};
use crate::certify::{Domain, Status};
use crate::deployed::{Blocks, Deployed, deploy_all};
pub use crate::derive::PreActivation;
use crate::derive::{BlockProof, Reading, ResponseClaim, ResponseProof, Total, derive, total};
use crate::error::{At, Error, Result};
use crate::expr::Expr;
use crate::files::{WholeFile, persist_together, staged, write_failed};
use crate::format::Format;
use crate::gated::GateFigures;
use crate::host::Insertion;
use crate::ridge::split;
use crate::solve::{Budget, Solution};
use crate::stack::{Form, Neuron, Stack};
use crate::tokens::{Calibration, Tokens};
pub use engines::{LayoutBounds, one_layer_bounds};
use stacks::solve_all;

/// A scalar function of pre-activations, and the direction that it is added along.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// for people
    pub name: String,
    /// c(z, z_1, …)
    pub expr: Expr,
    /// z, z_1, …
    pub pre_activations: Vec<PreActivation>,
    /// v, \[d\]
    pub write: Vec<f64>,
    /// the values of the pre-activations for which the certificate is to hold
    pub domain: Domain,
    /// radius of the band around jumps
    pub band: f64,
}

/// An intervention: x ← x + Σ_j c_j(z)·v_j, all reading the same x.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Target {
    /// at least one
    pub responses: Vec<Response>,
}

/// How many layers to insert.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Depth {
    /// one: responses add up, each of one pre-activation; a jump has a band that is crossed by steep neurons
    One,
    /// two: the first finds out where conditions hold, the second gates on them
    Two,
    /// one where that meets the tolerance, else two where that helps
    #[default]
    Auto,
}

impl std::fmt::Display for Depth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Depth::One => "1",
            Depth::Two => "2",
            Depth::Auto => "auto",
        })
    }
}

impl std::str::FromStr for Depth {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "1" => Ok(Depth::One),
            "2" => Ok(Depth::Two),
            "auto" => Ok(Depth::Auto),
            _ => Err(Error::input(format!("'{}' layers", text.escape_debug())).help("1, 2 or auto")),
        }
    }
}

/// What the host can compute, what the block may cost, and where the certificate is to hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// the host's activation σ
    pub source: Activation,
    /// the host's form
    pub form: Form,
    /// the number format of the weights
    pub format: Format,
    /// do the projections have biases?
    pub biases: bool,
    /// how many numbers of `format` make up a bias: a host that has exact ones in its stream sums a bias up from several
    /// weights, see [`crate::host`]. 1: a bias is a number of `format`; more: an f32.
    pub bias_parts: usize,
    /// how many layers may be inserted, one after the other
    pub depth: Depth,
    /// limits for each response (its band is the response's own)
    pub budget: Budget,
    /// R: the certificate holds for ‖x‖ ≤ R; without it, it speaks of the pre-activations only
    pub norm: Option<f64>,
    /// arithmetics of engines to certify as well, by name ([`crate::arithmetic`]); they also decide between one layer and two
    pub arithmetic: Vec<String>,
    /// the most copies of each steep neuron, in arithmetics of 16 bits ([`crate::dither`]); fewer where more do not pay
    pub copies: usize,
    /// samples of the residual stream that narrow the tokens for which `arithmetic` is certified
    pub samples: Option<Samples>,
}

/// Samples of the residual stream, see [`crate::tokens`].
#[derive(Clone, Debug, PartialEq)]
pub struct Samples {
    /// [d, tokens]
    pub residuals: DMatrix<f64>,
    /// how far beyond what they show the certificate is to hold
    pub margin: f64,
}

impl Default for Options {
    /// A Llama-style MLP with f32 weights, biases, and a tolerance of 1e-3 per response.
    fn default() -> Self {
        Options {
            source: Activation::Silu,
            form: Form::Gated,
            format: Format::F32,
            biases: true,
            bias_parts: 1,
            depth: Depth::default(),
            budget: Budget { tolerance: Some(1e-3), ..Budget::default() },
            norm: None,
            arithmetic: Vec::new(),
            copies: engines::MOST_COPIES,
            samples: None,
        }
    }
}

impl Options {
    /// The format of the block's biases.
    pub fn bias_format(&self) -> Format {
        if self.bias_parts > 1 { Format::F32 } else { self.format }
    }

    /// The arithmetics of 16 bits that are asked for.
    fn short_rows(&self) -> impl Iterator<Item = &'static Arithmetic> {
        self.arithmetic.iter().flat_map(|name| rows(name).unwrap_or_default()).filter(|r| r.stream.bytes() == 2)
    }

    /// What `arithmetic` asks for of blocks.
    ///
    /// Errors: no bound on ‖x‖; those of [`deploy_all`].
    fn deploy(&self, blocks: Blocks<'_>, reading: &Reading) -> Result<(Vec<Deployed>, Option<Calibration>)> {
        if self.arithmetic.is_empty() {
            return Ok((Vec::new(), None));
        }
        let norm = self.norm.ok_or_else(|| {
            Error::input("deployed arithmetic needs a bound on ‖x‖: its errors grow with x").help("give domain.norm")
        })?;
        // Samples beyond the norm are no tokens of the certificate.
        let within = self.samples.as_ref().map(|s| {
            let kept: Vec<usize> = (0..s.residuals.ncols()).filter(|t| s.residuals.column(*t).norm() <= norm).collect();
            (s.residuals.select_columns(&kept), s.margin)
        });
        deploy_all(blocks, &self.arithmetic, reading, || match &within {
            Some((samples, margin)) => Tokens::sampled(norm, samples, *margin),
            None => Ok(Tokens::ball(norm)),
        })
    }

    /// A bias that the host can realise exactly: the sum of `bias_parts` numbers of the format, within f32.
    fn round_bias(&self, x: f64) -> f64 {
        let mut rest = self.bias_format().round(x);
        (0..self.bias_parts.max(1)).fold(0.0, |sum, _| {
            let part = self.format.round(rest);
            rest -= part;
            sum + part
        })
    }
}

/// A certified block, or two that follow one another.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// the weights; of two layers, the second's
    pub block: Block,
    /// of two layers, the first's; both then have the stream's coordinates and `between` more, see [`crate::gated`]
    pub first: Option<Block>,
    /// what is proved of them
    pub proof: BlockProof,
    /// what is proved of gated terms (two layers), in the order of the certificate's
    pub gates: Vec<GateFigures>,
    /// bound on the norm of what passes between two layers
    pub reach: f64,
    /// the same, as a file
    pub certificate: CertificateFile,
    /// how each response came about, in the order of the certificate's responses
    pub solutions: Vec<Solution>,
}

/// Weights that are found, before it is known through which norm they will read the stream.
#[derive(Clone, Debug)]
pub struct Draft {
    options: Options,
    hidden_size: usize,
    lowered: Lowered,
}

#[derive(Clone, Debug)]
struct OneLayer {
    block: Block,
    claims: Vec<ResponseClaim>,
    /// for each claim: the expression that it is a part of, and its pre-activation
    origins: Vec<(Expr, usize)>,
    solutions: Vec<Solution>,
    /// what is proved where x is read as it is, once that has been asked for
    proof: Option<BlockProof>,
}

#[derive(Clone, Debug)]
enum Lowered {
    One(Box<OneLayer>),
    Two { layers: Box<two_layers::TwoLayers>, responses: Vec<ExpressionFile> },
}

/// One response of one pre-activation.
#[derive(Clone)]
struct Part<'a> {
    response: &'a Response,
    index: usize,
    target: Expr,
}

/// Compiles an intervention into a block.
///
/// spec → intervention → expression → canonical form → solve → round → certify → lower, then certify once more what was
/// lowered: the certificate speaks of the block's own numbers.
///
/// Errors: vectors of different lengths, numbers that are not finite, budgets impossible by their own terms, a response
/// that jumps without a band, a response that one layer cannot compute. A missed tolerance is not an error: see
/// [`Compiled::met`].
///
/// ```
/// use neurograft::{Options, PreActivation, Response, Target, compile};
/// use neurograft::certify::{Domain, Status};
///
/// // Ablate a feature that fires above 0.75: x ← x − z·1[z > 0.75]·v with z = ⟨w, x⟩ − 0.5.
/// let response = Response {
///     name: "ablate".into(),
///     expr: "-jumprelu(z, 0.75)".parse()?,
///     pre_activations: vec![PreActivation { w: vec![0.6, 0.8], b: -0.5 }],
///     write: vec![1.0, 0.0],
///     domain: Domain::new(-20.0, 20.0)?,
///     band: 0.01,
/// };
/// let options = Options { norm: Some(20.0), ..Options::default() };
/// let compiled = compile(&Target { responses: vec![response] }, &options)?;
///
/// assert!(compiled.met());
/// let figures = compiled.proof.responses[0].figures();
/// assert_eq!(figures.status, Status::Within);
/// assert!(figures.epsilon_outside.unwrap() < 1e-3);
/// # Ok::<(), neurograft::Error>(())
/// ```
pub fn compile(target: &Target, options: &Options) -> Result<Compiled> {
    compile_with_progress(target, options, &|_, _| {})
}

/// [`compile`], reporting (responses done, responses in all) from the start on and as it goes.
pub fn compile_with_progress(
    target: &Target,
    options: &Options,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Compiled> {
    draft(target, options, progress)?.prove(&Reading::exact())
}

/// The weights for an intervention, in as many layers as [`Options::depth`] allows and the tolerance needs.
///
/// Errors: as [`compile`].
pub fn draft(target: &Target, options: &Options, progress: &(dyn Fn(usize, usize) + Sync)) -> Result<Draft> {
    let hidden_size = check(target)?;
    let one = || one_layer(target, options, hidden_size, progress);
    let two = || two_layers(target, options, hidden_size, progress);
    match options.depth {
        Depth::One => one(),
        Depth::Two => two(),
        Depth::Auto => match one() {
            Ok(draft) if !two_layers::wanted(target) => Ok(draft),
            Ok(mut draft) => {
                let single = draft.judge()?;
                // In 16 bits what rounding does to rows, which no tolerance judges, may be more than what it allows.
                let rounded = options.format.bytes() == 2 && !(single.bound <= draft.allowed());
                if single.met && options.arithmetic.is_empty() && !rounded {
                    return Ok(draft);
                }
                let Ok(mut other) = two() else { return Ok(draft) };
                let double = other.judge()?;
                // Where both miss the tolerance (16 bits), a layer more must be worth it.
                let better = double.bound < 0.9 * single.bound;
                Ok(if (double.met && !single.met) || better { other } else { draft })
            }
            // Where one layer might have served, its reason says more than that a second is impossible.
            Err(e) if e.is_unsupported() && two_layers::wanted(target) => {
                let couples = target.responses.iter().any(|r| split(&r.expr).is_err());
                if couples || two_layers::admits(options) { two() } else { Err(e) }
            }
            Err(e) => Err(e),
        },
    }
}

fn one_layer(
    target: &Target,
    options: &Options,
    hidden_size: usize,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Draft> {
    let parts = parts(target)?;
    let (solutions, proofs): (Vec<Solution>, Vec<_>) =
        solve_all(&parts, options, hidden_size, progress)?.into_iter().unzip();
    let (block, claims) = lower(&parts, &solutions, options, hidden_size)?;
    let origins = parts.iter().map(|p| (p.response.expr.clone(), p.index)).collect();
    // Each response was derived from the very numbers that its rows and columns have in the block.
    let responses: Option<Vec<ResponseProof>> = proofs.into_iter().collect();
    let proof = responses.filter(|_| options.norm.is_some()).map(|responses| {
        let total = Some(total(&block, &claims, &responses, &Reading::exact()));
        BlockProof { responses, total }
    });
    let lowered = Lowered::One(Box::new(OneLayer { block, claims, origins, solutions, proof }));
    Ok(Draft { options: options.clone(), hidden_size, lowered })
}

fn two_layers(
    target: &Target,
    options: &Options,
    hidden_size: usize,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Draft> {
    let layers = Box::new(two_layers::compile(target, options, hidden_size, progress)?);
    let expression = |r: &Response| ExpressionFile { name: r.name.clone(), expression: r.expr.clone() };
    let responses = target.responses.iter().map(expression).collect();
    Ok(Draft { options: options.clone(), hidden_size, lowered: Lowered::Two { layers, responses } })
}

/// What the choice between drafts goes by.
struct Judged {
    /// is every tolerance met?
    met: bool,
    /// on ‖error‖ in the stream; infinite without a bound on ‖x‖
    bound: f64,
}

/// Is every tolerance met?
fn met<'a>(stacks: impl IntoIterator<Item = &'a ResponseProof>, gates: &[GateFigures]) -> bool {
    stacks.into_iter().all(|r| r.figures().status != Status::BestEffort)
        && gates.iter().all(|g| g.status != Status::BestEffort)
}

/// The worst bound on ‖x_out − (x + Δ(x))‖ under the arithmetics asked for, if any were.
fn worst(options: &Options, blocks: Blocks<'_>) -> Result<Option<f64>> {
    let deployed = match options.deploy(blocks, &Reading::exact()) {
        Ok((deployed, _)) => deployed,
        // What cannot be certified (an overflow in 16 bits) is the worst of choices, not the end.
        Err(e) if e.is_unsupported() => return Ok(Some(f64::INFINITY)),
        Err(e) => return Err(e),
    };
    Ok(deployed.iter().map(|d| d.total.outside).reduce(f64::max))
}

impl Draft {
    /// Proves what it does where x is read as it is, and keeps the proof for [`Draft::prove`].
    fn judge(&mut self) -> Result<Judged> {
        let outside = |t: Option<&Total>| t.map_or(f64::INFINITY, |t| t.outside);
        match &mut self.lowered {
            Lowered::One(layer) => {
                let proof = match layer.proof.take() {
                    Some(proof) => proof,
                    None => derive(&layer.block, &layer.claims, self.options.norm, &Reading::exact())?,
                };
                let blocks = Blocks::One(&layer.block, &layer.claims);
                let bound = worst(&self.options, blocks)?.unwrap_or(outside(proof.total.as_ref()));
                let judged = Judged { met: met(&proof.responses, &[]), bound };
                layer.proof = Some(proof);
                Ok(judged)
            }
            Lowered::Two { layers, .. } => {
                let p = &layers.proof;
                let bound = worst(&self.options, Blocks::Two(&layers.first, &layers.second, &layers.claim))?;
                let bound = bound.unwrap_or(p.total.outside);
                Ok(Judged { met: met(p.free.iter().chain(&p.carried), &p.gated), bound })
            }
        }
    }

    /// What the tolerances come to in the stream: Σ tolerance·‖v‖ over what is written by one layer.
    fn allowed(&self) -> f64 {
        let Lowered::One(layer) = &self.lowered else { return f64::INFINITY };
        let of = |c: &ResponseClaim| c.tolerance.map_or(f64::INFINITY, |t| t * DVector::from_column_slice(&c.v).norm());
        layer.claims.iter().map(of).sum()
    }

    /// How many layers it takes.
    pub fn layers(&self) -> usize {
        match &self.lowered {
            Lowered::One(_) => 1,
            Lowered::Two { .. } => 2,
        }
    }

    /// What is inserted.
    pub fn insertion(&self) -> Insertion {
        match &self.lowered {
            Lowered::One(layer) => Insertion::single(layer.block.clone()),
            Lowered::Two { layers, .. } => Insertion {
                live: self.hidden_size,
                guards: layers.claim.between(),
                reach: layers.proof.reach,
                blocks: vec![layers.first.clone(), layers.second.clone()],
            },
        }
    }

    /// Writes the rows of one layer as the carriers need them: see [`Carriers::project`].
    pub fn project(&mut self, carriers: &Carriers) {
        if let (Lowered::One(layer), Kind::Borrowed) = (&mut self.lowered, carriers.kind) {
            let Block { format, gate, up, .. } = &mut layer.block;
            for rows in std::iter::once(gate).chain(up) {
                for i in 0..rows.nrows() {
                    let mut row: Vec<f64> = rows.row(i).iter().copied().collect();
                    carriers.project(&mut row, *format);
                    rows.row_mut(i).copy_from_slice(&row);
                }
            }
            layer.proof = None;
        }
    }

    /// Proves what the weights do where the norm before them hands over `reading` in place of x.
    ///
    /// Errors: two layers where the reading is not x itself; whatever cannot be derived.
    pub fn prove(self, reading: &Reading) -> Result<Compiled> {
        let Draft { options, hidden_size, lowered } = self;
        let file = |blocks: [&Block; 2], between: usize| -> Result<CertificateFile> {
            let [first, last] = blocks;
            Ok(CertificateFile {
                version: VERSION,
                arithmetic: "real".into(),
                source: last.source.clone(),
                form: last.form,
                format: last.format,
                hidden_size,
                between,
                intermediate_size: last.intermediate_size(),
                norm: options.norm,
                reading: reading.clone(),
                block_sha256: last.sha256()?,
                first_block_sha256: if between > 0 { Some(first.sha256()?) } else { None },
                responses: Vec::new(),
                gates: None,
                total: None,
                deployed: Vec::new(),
                calibration: None,
            })
        };
        match lowered {
            Lowered::One(layer) => {
                let OneLayer { block, claims, origins, solutions, proof } = *layer;
                let proof = match proof.filter(|_| reading.is_exact()) {
                    Some(proof) => proof,
                    None => derive(&block, &claims, options.norm, reading)?,
                };
                // Hashing the block is a matter of one thread.
                let (certificate, responses) = rayon::join(
                    || file([&block, &block], 0),
                    || describe(claims.iter(), &origins, &proof.responses, claims.len()),
                );
                let mut certificate = certificate?;
                certificate.responses = responses;
                certificate.total = proof.total.clone();
                (certificate.deployed, certificate.calibration) =
                    options.deploy(Blocks::One(&block, &claims), reading)?;
                Ok(Compiled { block, first: None, proof, gates: Vec::new(), reach: 0.0, certificate, solutions })
            }
            Lowered::Two { layers, responses } => {
                if !reading.is_exact() {
                    return Err(Error::unsupported("two inserted layers must read the stream as it is")
                        .help("use padded carriers"));
                }
                let stacks: Vec<_> = layers.stacks().cloned().collect();
                let two_layers::TwoLayers { first, second, claim, proof, origins, solutions } = *layers;
                let mut certificate = file([&first, &second], claim.between())?;
                let proofs: Vec<_> = proof.free.iter().chain(&proof.carried).cloned().collect();
                certificate.responses = describe(stacks.iter(), &origins, &proofs, claim.free.len());
                certificate.total = Some(proof.total.clone());
                (certificate.deployed, certificate.calibration) =
                    options.deploy(Blocks::Two(&first, &second, &claim), reading)?;
                let term = |(t, f): (&crate::gated::GatedClaim, &GateFigures)| TermFile {
                    name: t.name.clone(),
                    conditions: t.term.conditions.clone(),
                    payload: t.term.payload.clone(),
                    pre_activations: t.pre_activations.iter().map(PreActivationFile::new).collect(),
                    v: Array::new(&t.v),
                    domain: t.domain.into(),
                    delta: t.delta,
                    tolerance: t.tolerance,
                    guards: t.guards.clone(),
                    carried: t.carried,
                    first_unit: t.units.start,
                    units: t.units.len(),
                    open: t.open,
                    figures: f.clone(),
                };
                certificate.gates = Some(GatesFile {
                    slopes: claim.guards.clone(),
                    expressions: responses,
                    terms: claim.gated.iter().zip(&proof.gated).map(term).collect(),
                    reach: proof.reach,
                });
                Ok(Compiled {
                    block: second,
                    first: Some(first),
                    proof: BlockProof { responses: proofs, total: Some(proof.total) },
                    gates: proof.gated,
                    reach: proof.reach,
                    certificate,
                    solutions,
                })
            }
        }
    }
}

impl Compiled {
    /// Is every tolerance met?
    pub fn met(&self) -> bool {
        met(&self.proof.responses, &self.gates)
    }

    /// What is inserted.
    pub fn insertion(&self) -> Insertion {
        let blocks = self.first.iter().chain([&self.block]).cloned().collect();
        Insertion { live: self.certificate.hidden_size, guards: self.certificate.between, reach: self.reach, blocks }
    }

    /// What is added to the stream, in f64, for a batch of residuals: [d, n] → [d, n], one token a column.
    pub fn forward(&self, x: &DMatrix<f64>) -> DMatrix<f64> {
        self.insertion().forward(x)
    }

    /// Writes `block.safetensors` (of two layers, `first_block.safetensors` too) and `certificate.json` into a directory,
    /// which is made if it is not there. The files are written beside their places, and then renamed, once all of them are.
    pub fn write(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io(format!("cannot make {}", dir.display()), e))?;
        let block = |block: &Block, place: &Path| {
            let (mut file, failed) = (WholeFile::new(place)?, write_failed(place));
            block.write(file.file(), failed)?;
            Ok::<_, Error>(file)
        };
        let first = dir.join(FIRST_BLOCK_FILE);
        let mut files = vec![block(&self.block, &dir.join(BLOCK_FILE))?];
        if let Some(before) = &self.first {
            files.push(block(before, &first)?);
        }
        files.push(staged(&dir.join(CERTIFICATE_FILE), self.certificate.to_json().as_bytes())?);
        persist_together(files)?;
        // What an earlier run left must not be taken for a part of this one.
        if self.first.is_none() && first.exists() {
            std::fs::remove_file(&first).map_err(|e| Error::io(format!("cannot remove {}", first.display()), e))?;
        }
        Ok(())
    }
}

/// Checks lengths and numbers; returns the hidden size.
fn check(target: &Target) -> Result<usize> {
    let Some(first) = target.responses.first() else {
        return Err(Error::input("an intervention without responses").help("name at least one"));
    };
    let d = first.write.len();
    if d == 0 {
        return Err(Error::input("a write direction of length 0").at(first.name.clone()));
    }
    // The first that is wrong is the one that is reported.
    let wrong = target.responses.par_iter().find_map_first(|r| check_response(r, d).at(|| r.name.clone()).err());
    wrong.map_or(Ok(d), Err)
}

fn check_response(r: &Response, d: usize) -> Result<()> {
    let need = r.expr.arity();
    if r.pre_activations.len() < need {
        return Err(Error::input(format!(
            "{} needs {need} pre-activations, {} are given",
            r.expr,
            r.pre_activations.len()
        )));
    }
    let vectors = r.pre_activations.iter().map(|p| ("w", &p.w)).chain([("the write direction", &r.write)]);
    for (what, v) in vectors {
        if v.len() != d {
            return Err(Error::input(format!("{what} has length {}, expected {d}", v.len())));
        }
        if let Some(k) = v.iter().position(|x| !x.is_finite()) {
            return Err(Error::input(format!("{what} is {} at coordinate {k}", v[k])));
        }
    }
    match r.pre_activations.iter().find(|p| !p.b.is_finite()) {
        Some(p) => Err(Error::input(format!("a bias is {}", p.b))),
        None => Ok(()),
    }
}

/// Splits every response into parts of one pre-activation each.
fn parts(target: &Target) -> Result<Vec<Part<'_>>> {
    let mut out = Vec::new();
    for response in &target.responses {
        for (index, target) in split(&response.expr).at(|| response.name.clone())? {
            if index >= response.pre_activations.len() && !response.pre_activations.is_empty() {
                return Err(Error::input(format!("no pre-activation {index}")).at(response.name.clone()));
            }
            out.push(Part { response, index, target });
        }
    }
    Ok(out)
}

/// Lays the stacks out as rows and columns in the number format, and says what each row then means.
fn lower(
    parts: &[Part<'_>],
    solutions: &[Solution],
    options: &Options,
    d: usize,
) -> Result<(Block, Vec<ResponseClaim>)> {
    let round = |x: f64| options.format.round(x);
    let gated = options.form == Form::Gated;
    let zero = LazyCell::new(|| PreActivation { w: vec![0.0; d], b: 0.0 });
    // Rows are rounded once, from the numbers before rounding where there are such.
    let nominal: Vec<Stack<f64>> = solutions
        .par_iter()
        .map(|s| match &s.ideal {
            Some(ideal) => ideal.try_map(|x| Ok::<f64, Error>(x.to_f64())),
            None => Ok(s.stack.clone()),
        })
        .collect::<Result<_>>()?;
    let pres: Vec<&PreActivation> =
        parts.iter().map(|p| p.response.pre_activations.get(p.index).unwrap_or_else(|| &*zero)).collect();
    let all = || parts.iter().zip(&pres).zip(&nominal);
    let units: Vec<(&Neuron<f64>, &PreActivation, &[f64])> = all()
        .flat_map(|((part, pre), stack)| stack.neurons.iter().map(|n| (n, *pre, &part.response.write[..])))
        .collect();
    let h = units.len();
    let rows = |slope: &(dyn Fn(&Neuron<f64>) -> f64 + Sync)| {
        by_rows(h, d, |i, from, out| {
            let (n, pre, _) = units[i];
            let slope = slope(n);
            out.iter_mut().zip(&pre.w[from..]).for_each(|(x, w)| *x = round(slope * w));
        })
    };
    let gate = rows(&|n| n.weight);
    let gate_bias =
        DVector::from_iterator(h, units.iter().map(|(n, p, _)| options.round_bias(n.weight * p.b + n.bias)));
    let (slope, offset) = (|n: &Neuron<f64>| n.up.map_or(0.0, |u| u.0), |n: &Neuron<f64>| n.up.map_or(0.0, |u| u.1));
    let constant_ups = units.iter().all(|(n, ..)| slope(n) == 0.0);
    let up = match (gated, constant_ups) {
        (true, false) => rows(&slope),
        (true, true) => zeros(h, d),
        (false, _) => zeros(0, d),
    };
    let up_bias = units.iter().map(|(n, p, _)| options.round_bias(slope(n) * p.b + offset(n)));
    let up_bias = DVector::from_vec(if gated { up_bias.collect() } else { Vec::new() });
    let mut down = zeros(d, h);
    down.as_mut_slice().par_chunks_mut(d).zip(&units).with_min_len(AT_LEAST / d).for_each(|(column, (n, _, v))| {
        column.iter_mut().zip(*v).for_each(|(y, x)| *y = round(n.out * x));
    });
    let mut constant = vec![0.0; d];
    for ((part, _), stack) in all().filter(|(_, s)| s.constant != 0.0) {
        constant.iter_mut().zip(&part.response.write).for_each(|(c, x)| *c += stack.constant * x);
    }
    let firsts = nominal.iter().scan(0, |next, s| {
        let first = *next;
        *next += s.neurons.len();
        Some(first)
    });
    let firsts: Vec<usize> = firsts.collect();
    let claim = |k: usize| {
        let (part, pre, stack, solution) = (&parts[k], pres[k], &nominal[k], &solutions[k]);
        let v = &part.response.write;
        let units = firsts[k]..firsts[k] + stack.neurons.len();
        let neuron = |(unit, n): (usize, &Neuron<f64>)| Neuron {
            weight: n.weight,
            bias: gate_bias[unit] - n.weight * pre.b,
            out: coefficient(down.column(unit).as_slice(), v, n.out),
            up: n.up.map(|(p, _)| (p, up_bias[unit] - p * pre.b)),
        };
        let neurons = units.clone().zip(&stack.neurons).map(neuron).collect();
        ResponseClaim {
            name: part.response.name.clone(),
            target: part.target.clone(),
            w: pre.w.clone(),
            b: pre.b,
            v: v.clone(),
            domain: part.response.domain,
            delta: solution.certificate.delta(),
            tolerance: options.budget.tolerance,
            units,
            stack: Stack { source: options.source.clone(), constant: stack.constant, neurons },
            // What is known not to be an identity need not be asked again.
            ideal: solution.ideal.clone().filter(|_| solution.certificate.status() != Status::Within),
        }
    };
    let claims = (0..parts.len()).into_par_iter().map(claim).collect();
    let down_bias = DVector::from_iterator(d, constant.into_iter().map(|x| options.round_bias(x)));
    let finite = |name: &str, ok: bool| {
        if ok {
            Ok(())
        } else {
            Err(Error::unsupported(format!("{name} exceeds the range of {}", options.format))
                .help("choose a wider number format, or a smaller weight limit"))
        }
    };
    let all_finite = |m: &DMatrix<f64>, b: &DVector<f64>| {
        m.as_slice().par_chunks(AT_LEAST).all(|part| part.iter().all(|x| x.is_finite()))
            && b.iter().all(|x| x.is_finite())
    };
    finite("a row of gate_proj", all_finite(&gate, &gate_bias))?;
    finite("a row of up_proj", all_finite(&up, &up_bias))?;
    finite("down_proj", all_finite(&down, &down_bias))?;
    let biased = |v: DVector<f64>, name: &str| {
        if options.biases {
            Ok(Some(v))
        } else if v.iter().all(|x| *x == 0.0) {
            Ok(None)
        } else {
            Err(Error::unsupported(format!("this intervention needs {name}, and the host has no biases")).help(
                "set biases = true, or give x a coordinate that is constant and fold the biases into its weights",
            ))
        }
    };
    let block = Block {
        source: options.source.clone(),
        form: options.form,
        format: options.format,
        bias_format: options.bias_format(),
        gate,
        gate_bias: biased(gate_bias, "gate biases")?,
        up: gated.then_some(up),
        up_bias: if gated { biased(up_bias, "up biases")? } else { None },
        down,
        down_bias: biased(down_bias, "an output bias")?,
    };
    Ok((block, claims))
}

/// A matrix of zeros whose memory is not touched: threads that fill it then share the work of the operating system.
fn zeros(rows: usize, columns: usize) -> DMatrix<f64> {
    DMatrix::from_vec(rows, columns, vec![0.0; rows * columns])
}

/// Numbers that are worth a task of their own.
const AT_LEAST: usize = 1 << 16;

/// A matrix from its rows: `fill(i, from, out)` writes row i from column `from` on. Columns are what lies together in memory, so
/// threads take a few columns each, of all rows.
fn by_rows(rows: usize, columns: usize, fill: impl Fn(usize, usize, &mut [f64]) + Sync) -> DMatrix<f64> {
    /// Columns at a time: what is read of a row lies together as well.
    const TOGETHER: usize = 32;
    /// Rows at a time. Where the number of rows is a power of two, one row's numbers compete for the same lines of the cache: they are
    /// put together elsewhere first.
    const BAND: usize = 32;
    let mut m = zeros(rows, columns);
    if rows > 0 {
        let least = 1 + AT_LEAST / (TOGETHER * rows);
        let parts = m.as_mut_slice().par_chunks_mut(TOGETHER * rows).with_min_len(least).enumerate();
        parts.for_each_init(
            || [0.0; TOGETHER * BAND],
            |band, (k, part)| {
                let width = part.len() / rows;
                for first in (0..rows).step_by(BAND) {
                    let lines = band.chunks_exact_mut(width).take(BAND.min(rows - first));
                    lines.enumerate().for_each(|(i, line)| fill(first + i, k * TOGETHER, line));
                    for (c, column) in part.chunks_exact_mut(rows).enumerate() {
                        let numbers = band.iter().skip(c).step_by(width);
                        column[first..].iter_mut().take(BAND).zip(numbers).for_each(|(to, x)| *to = *x);
                    }
                }
            },
        );
    }
    m
}

/// The multiple of v that is nearest to a rounded column.
fn coefficient(column: &[f64], v: &[f64], nominal: f64) -> f64 {
    let exact = column.iter().zip(v).all(|(y, x)| *y == nominal * x);
    let square: f64 = v.iter().map(|x| x * x).sum();
    if exact || square == 0.0 { nominal } else { column.iter().zip(v).map(|(y, x)| y * x).sum::<f64>() / square }
}

/// The responses that have a stack: `free` of them in the last block, the others in the first of two.
fn describe<'a>(
    claims: impl Iterator<Item = &'a ResponseClaim>,
    origins: &[(Expr, usize)],
    proofs: &[ResponseProof],
    free: usize,
) -> Vec<ResponseFile> {
    let all: Vec<_> = claims.zip(origins).zip(proofs).enumerate().collect();
    let described = all.into_par_iter().map(|(k, ((c, (expression, index)), p))| ResponseFile {
        name: c.name.clone(),
        carried: k >= free,
        expression: expression.clone(),
        pre_activation: *index,
        target: c.target.clone(),
        w: Array::new(&c.w),
        b: c.b,
        v: Array::new(&c.v),
        domain: c.domain.into(),
        tolerance: c.tolerance,
        first_unit: c.units.start,
        constant: c.stack.constant,
        neurons: c.stack.neurons.iter().map(NeuronFile::new).collect(),
        // The numbers before rounding prove exactness, and nothing else.
        ideal: c.ideal.as_ref().filter(|_| p.figures().status.is_exact()).map(|i| IdealFile {
            constant: i.constant.clone(),
            neurons: i.neurons.iter().map(NeuronFile::new).collect(),
        }),
        certificate: p.figures().clone(),
        rounding: p.rounding.clone(),
    });
    described.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_from_rows_are_those_rows() {
        // Beyond what is put together at a time, and no multiples of it.
        for (rows, columns) in [(0, 3), (1, 1), (2, 576), (70, 45), (33, 32), (200, 33)] {
            let number = |i: usize, k: usize| (1000 * i + k) as f64;
            let fill = |i: usize, from: usize, out: &mut [f64]| {
                out.iter_mut().enumerate().for_each(|(k, x)| *x = number(i, from + k));
            };
            assert_eq!(by_rows(rows, columns, fill), DMatrix::from_fn(rows, columns, number));
        }
    }
}
