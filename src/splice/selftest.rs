//! The self-test that travels with a spliced checkpoint: what an engine must find, judged by the *source's* weights with the
//! exact intervention in f64 between its layers, not by the spliced weights.
//!
//! Two kinds of evidence. *Prompts*: token ids, with the log-probabilities that follow the last one and one token's stream
//! after the last inserted layer. *Pairs*: a residual at which a response is active, and what the inserted layers make of it.
//! Tokens outside of what is certified (a sequence's first one has a huge norm, often) get what the inserted layers'
//! weights make of them in f64: there the intervention promises nothing, and the engine must compute the weights all the
//! same.

use std::ops::Range;
use std::path::Path;

use base64::Engine;
use nalgebra::DMatrix;
use serde::{Deserialize, Serialize};

use crate::compile::{Response, Target};
use crate::error::{Error, Result};
use crate::eval::value;
use crate::files::write_whole;
use crate::format::Format;
use crate::reference::{Model, Stream};

use super::{Plan, PlannedSite};

/// The file of inputs and expected outputs.
pub const FILE: &str = "selftest.json";
/// The program that runs them.
pub const SCRIPT: &str = "selftest.py";
const PROGRAM: &str = include_str!("selftest.py");

/// Above so many bytes of weights the test is made only if it is asked for: it reads them all, in f64.
pub const USUAL_LIMIT: u64 = 3_000_000_000;

/// Lengths of candidate prompts; those with the most active tokens are kept.
const LENGTHS: [usize; 10] = [8, 12, 16, 20, 24, 10, 14, 18, 22, 16];
const KEPT: usize = 4;
const TOP: usize = 10;
/// So many coordinates of the stream are written down.
const SHOWN: usize = 8;
/// Bytes of residuals in the file, as base64.
const ROOM: usize = 120_000;

/// Whether to make one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// unless the weights have more than [`USUAL_LIMIT`] bytes
    #[default]
    Usual,
    /// whatever it takes
    Always,
    /// no
    Never,
}

/// `selftest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelfTest {
    /// 1
    pub version: u32,
    /// d: coordinates of the stream that are the model's own
    pub live: usize,
    /// decoder layers of the spliced model
    pub layers: u64,
    /// the number format that the inserted layers' weights were made for
    pub weights: Format,
    /// why there are no prompts, where there are none
    pub no_prompts: Option<String>,
    /// what follows prompts
    pub prompts: Vec<Prompt>,
    /// residuals through inserted layers
    pub pairs: Vec<Pair>,
}

/// A prompt and what follows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompt {
    /// token ids
    pub tokens: Vec<u32>,
    /// tokens that a response changes, over all sites
    pub active: usize,
    /// tokens outside of what is certified
    pub uncovered: usize,
    /// tokens so near to a threshold that rounding decides
    pub doubtful: usize,
    /// the most likely next tokens, from the model with the intervention
    pub expected: Vec<Next>,
    /// log-probabilities of the same tokens, from the model without it
    pub unmodified: Vec<f64>,
    /// one token's stream after the last inserted layer
    pub stream: Digest,
}

/// A possible next token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Next {
    /// its id
    pub token: usize,
    /// its logit
    pub logit: f64,
    /// its log-probability
    pub logprob: f64,
}

/// A stream in a few numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Digest {
    /// the inserted layer after which it is seen
    pub layer: usize,
    /// the token: the one that the last site changes most, relative to its norm; the last one if it changes none
    pub position: usize,
    /// norm of the live coordinates
    pub norm: f64,
    /// the largest change of a coordinate at the last site, relative to the norm
    pub changed: f64,
    /// the coordinates that change most, and their values
    pub coordinates: Vec<(usize, f64)>,
    /// the last site's first inserted layer
    pub first: usize,
    /// the values of the same coordinates as they enter it: what they are off by is none of the inserted layers' doing
    pub before: Vec<f64>,
}

/// A residual and what the inserted layers of a site make of it: live coordinates in f32, little-endian, base64.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// the response that is active
    pub response: String,
    /// the first and the last inserted layer
    pub layers: [usize; 2],
    /// ‖y − x‖/‖y‖
    pub changed: f64,
    /// x
    pub x: String,
    /// x + Σ c·v
    pub y: String,
}

/// What an intervention does to one residual.
struct Effect {
    /// c·v added up
    change: Vec<f64>,
    active: bool,
    covered: bool,
    doubtful: bool,
}

/// Pre-activations that rounding may move by this much: of their own size, and at least.
const DOUBT: (f64, f64) = (1e-2, 1e-3);

fn effect(target: &Target, norm: Option<f64>, x: &[f64]) -> Result<Effect> {
    let mut effect = Effect {
        change: vec![0.0; x.len()],
        active: false,
        covered: norm.is_none_or(|r| length(x) <= r),
        doubtful: false,
    };
    for r in &target.responses {
        let mut z = pre_activations(r, x);
        let c = value(&r.expr, &z)?;
        effect.change.iter_mut().zip(&r.write).for_each(|(sum, v)| *sum += c * v);
        effect.active |= c != 0.0;
        effect.covered &= z.iter().all(|z| r.domain.contains(*z));
        for k in 0..z.len() {
            let (at, by) = (z[k], r.band + DOUBT.1.max(DOUBT.0 * z[k].abs()));
            for moved in [at - by, at + by] {
                z[k] = moved;
                // What is continuous moves about as far as its argument.
                effect.doubtful |= !((value(&r.expr, &z)? - c).abs() <= 8.0 * by);
            }
            z[k] = at;
        }
    }
    Ok(effect)
}

fn pre_activations(r: &Response, x: &[f64]) -> Vec<f64> {
    r.pre_activations.iter().map(|p| p.b + p.w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>()).collect()
}

/// splitmix64: the same tokens for the same model, whoever makes the test.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Makes the test for a plan. `source`: the checkpoint before splicing.
///
/// Where the model cannot be run here (a rotary embedding or a number format that is not known) the test says so, and has
/// pairs only.
pub fn make(source: &Path, plan: &Plan) -> Result<SelfTest> {
    let (prompts, no_prompts) = match prompts(source, plan) {
        Ok(prompts) => (prompts, None),
        Err(e) if e.is_io() => return Err(e),
        Err(e) => (Vec::new(), Some(e.to_string())),
    };
    Ok(SelfTest {
        version: 1,
        live: plan.carriers.live,
        layers: plan.cost.layers.after,
        weights: plan.host.weights,
        no_prompts,
        prompts,
        pairs: pairs(plan)?,
    })
}

impl SelfTest {
    /// Writes the file and the program that runs it.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self).expect("finite numbers");
        text.push('\n');
        write_whole(&folder.join(FILE), text.as_bytes())?;
        write_whole(&folder.join(SCRIPT), PROGRAM.as_bytes())
    }
}

impl std::fmt::Display for SelfTest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tokens: usize = self.prompts.iter().map(|p| p.tokens.len()).sum();
        let active: usize = self.prompts.iter().map(|p| p.active).sum();
        match &self.no_prompts {
            None => write!(
                f,
                "self-test: {} prompts ({tokens} tokens, {active} of them changed), {} residuals",
                self.prompts.len(),
                self.pairs.len()
            ),
            Some(why) => {
                let why = why.lines().next().unwrap_or_default();
                write!(f, "self-test: {} residuals, no prompts: {why}", self.pairs.len())
            }
        }
    }
}

/// The stream twice: untouched, and for the intervention.
struct Twice {
    stream: Stream,
    /// prompts before the copy
    count: usize,
}

fn prompts(source: &Path, plan: &Plan) -> Result<Vec<Prompt>> {
    let model = Model::open(source)?;
    let vocabulary = model.vocabulary()? as u64;
    let mut random = Random::new(vocabulary);
    let candidates: Vec<Vec<u32>> = LENGTHS
        .iter()
        .map(|n| {
            let tokens = (0..*n).map(|_| (random.next() % vocabulary.max(1)) as u32);
            model.first_token().into_iter().chain(tokens).take(*n).collect()
        })
        .collect();
    let Some(site) = plan.sites.first() else { return Ok(Vec::new()) };
    // As far as the first site all candidates, from there the best.
    let mut stream = model.embed(&candidates)?;
    (0..=site.layer).try_for_each(|k| model.layer(k, &mut stream))?;
    let kept = best(&stream, site)?;
    let tokens: Vec<Vec<u32>> = kept.iter().map(|k| candidates[*k].clone()).collect();
    let mut twice = Twice::new(&stream, &kept);
    let mut counts = vec![[0; 3]; kept.len()];
    let mut digests = Vec::new();
    for layer in site.layer..model.layers() {
        if layer > site.layer {
            model.layer(layer, &mut twice.stream)?;
        }
        for site in plan.sites.iter().filter(|s| s.layer == layer) {
            digests = twice.intervene(site, plan, &mut counts)?;
        }
    }
    let last: Vec<usize> = twice.stream.prompts.iter().map(|p| p.end - 1).collect();
    let n = kept.len();
    let mut found = vec![Ranking::default(); n];
    model.logits_by_piece(&twice.stream, &last, |first, piece| {
        for (k, ranking) in found.iter_mut().enumerate() {
            (0..piece.ncols()).for_each(|j| ranking.add(first + j, piece[(k, j)], piece[(n + k, j)]));
        }
    })?;
    let prompts =
        tokens.into_iter().zip(counts).zip(digests).zip(found).map(|(((tokens, counts), stream), ranking)| {
            let [active, uncovered, doubtful] = counts;
            let (before, after) = (ranking.before.value(), ranking.after.value());
            let expected = ranking.best.iter().map(|(token, _, logit)| Next {
                token: *token,
                logit: short(*logit),
                logprob: short(logit - after),
            });
            let unmodified = ranking.best.iter().map(|(_, logit, _)| short(logit - before)).collect();
            Prompt { tokens, active, uncovered, doubtful, expected: expected.collect(), unmodified, stream }
        });
    let prompts: Vec<Prompt> = prompts.collect();
    let finite = |p: &Prompt| p.expected.iter().map(|n| n.logprob).chain(p.unmodified.clone()).all(f64::is_finite);
    if prompts.iter().all(finite) { Ok(prompts) } else { Err(Error::input("the source's logits are not finite")) }
}

/// ln Σ exp(x) of numbers that come one by one.
#[derive(Clone, Copy)]
struct LogSum {
    largest: f64,
    sum: f64,
}

impl LogSum {
    fn add(&mut self, x: f64) {
        if x > self.largest {
            self.sum *= (self.largest - x).exp();
            self.largest = x;
        }
        self.sum += (x - self.largest).exp();
    }

    fn value(self) -> f64 {
        self.largest + self.sum.ln()
    }
}

/// The likeliest next tokens of a prompt, from the logits of a whole vocabulary that come one by one.
#[derive(Clone)]
struct Ranking {
    before: LogSum,
    after: LogSum,
    /// token, logit before and after, best first
    best: Vec<(usize, f64, f64)>,
}

impl Default for Ranking {
    fn default() -> Self {
        let empty = LogSum { largest: f64::NEG_INFINITY, sum: 0.0 };
        Ranking { before: empty, after: empty, best: Vec::new() }
    }
}

impl Ranking {
    fn add(&mut self, token: usize, before: f64, after: f64) {
        self.before.add(before);
        self.after.add(after);
        let place = self.best.partition_point(|b| b.2 >= after);
        if place < TOP {
            self.best.insert(place, (token, before, after));
            self.best.truncate(TOP);
        }
    }
}

/// Enough digits for a test, and a short file.
fn short(x: f64) -> f64 {
    format!("{x:.6e}").parse().unwrap_or(x)
}

/// The prompts with the most active tokens; none that is doubtful, if there are others.
fn best(stream: &Stream, site: &PlannedSite) -> Result<Vec<usize>> {
    let mut scores = Vec::new();
    for (k, prompt) in stream.prompts.iter().enumerate() {
        let (mut active, mut doubtful) = (0usize, 0usize);
        for row in prompt.clone() {
            let e = effect(&site.target, site.compiled.certificate.norm, &residual(stream, row))?;
            active += usize::from(e.active && e.covered);
            doubtful += usize::from(e.doubtful && e.covered);
        }
        scores.push((doubtful, std::cmp::Reverse(active), k));
    }
    scores.sort_unstable();
    let mut kept: Vec<usize> = scores.into_iter().take(KEPT).map(|s| s.2).collect();
    kept.sort_unstable();
    Ok(kept)
}

fn residual(stream: &Stream, row: usize) -> Vec<f64> {
    stream.x.row(row).iter().copied().collect()
}

impl Twice {
    fn new(stream: &Stream, kept: &[usize]) -> Twice {
        let rows: Vec<usize> = kept.iter().flat_map(|k| stream.prompts[*k].clone()).collect();
        let twice: Vec<usize> = rows.iter().chain(&rows).copied().collect();
        let mut start = 0;
        let ranges: Vec<Range<usize>> = kept
            .iter()
            .chain(kept)
            .map(|k| {
                start += stream.prompts[*k].len();
                start - stream.prompts[*k].len()..start
            })
            .collect();
        Twice { stream: Stream { x: stream.x.select_rows(&twice), prompts: ranges }, count: kept.len() }
    }

    /// Applies a site to the second copy; says what then is to be seen. `counts`: a prompt's active, uncovered and doubtful
    /// tokens.
    fn intervene(&mut self, site: &PlannedSite, plan: &Plan, counts: &mut [[usize; 3]]) -> Result<Vec<Digest>> {
        let prompts = self.stream.prompts[self.count..].to_vec();
        let mut digests = Vec::new();
        for (prompt, counts) in prompts.into_iter().zip(counts) {
            let mut shown = (prompt.len() - 1, vec![0.0; self.stream.x.ncols()]);
            let mut most = 0.0;
            for row in prompt.clone() {
                let x = residual(&self.stream, row);
                let e = effect(&site.target, site.compiled.certificate.norm, &x)?;
                counts[0] += usize::from(e.active);
                counts[1] += usize::from(!e.covered);
                counts[2] += usize::from(e.doubtful && e.covered);
                let y = if e.covered {
                    x.iter().zip(&e.change).map(|(x, c)| x + c).collect()
                } else {
                    by_weights(site, plan, &x)
                };
                self.stream.x.row_mut(row).iter_mut().zip(y).for_each(|(x, y)| *x = y);
                let changed = length(&e.change) / length(&x);
                if e.active && e.covered && !e.doubtful && changed > most {
                    (most, shown) = (changed, (row - prompt.start, e.change));
                }
            }
            digests.push(self.digest(prompt.start + shown.0, shown.0, &shown.1, &site.inserted));
        }
        Ok(digests)
    }

    fn digest(&self, row: usize, position: usize, change: &[f64], inserted: &Range<usize>) -> Digest {
        let x = residual(&self.stream, row);
        let norm = length(&x);
        let mut order: Vec<usize> = (0..x.len()).collect();
        order.sort_by(|a, b| change[*b].abs().total_cmp(&change[*a].abs()));
        let changed = order.first().map_or(0.0, |k| change[*k].abs()) / norm;
        order.truncate(SHOWN);
        Digest {
            layer: inserted.end - 1,
            position,
            norm: short(norm),
            changed: short(changed),
            coordinates: order.iter().map(|k| (*k, short(x[*k]))).collect(),
            first: inserted.start,
            before: order.iter().map(|k| short(x[*k] - change[*k])).collect(),
        }
    }
}

fn length(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// What the inserted layers' weights make of a residual.
fn by_weights(site: &PlannedSite, plan: &Plan, x: &[f64]) -> Vec<f64> {
    let eps = plan.host.norm_eps * plan.carriers.other_eps();
    let mut stream = DMatrix::from_column_slice(x.len(), 1, x).resize_vertically(plan.carriers.hidden_size, 0.0);
    for layer in &site.layers {
        stream = layer.forward(&stream, eps);
    }
    stream.column(0).iter().take(x.len()).copied().collect()
}

/// Residuals at which responses are active, as many as there is room for.
fn pairs(plan: &Plan) -> Result<Vec<Pair>> {
    let each = 2 * (plan.carriers.live * 4).div_ceil(3) * 4;
    let room = (ROOM / each.max(1)).clamp(1, 4);
    let mut all = Vec::new();
    // The first response of every site, then the second ones.
    let most = plan.sites.iter().map(|s| s.target.responses.len()).max().unwrap_or(0);
    for k in 0..most {
        for site in &plan.sites {
            let Some(r) = site.target.responses.get(k).filter(|_| all.len() < room) else { continue };
            all.extend(pair(site, plan, r)?);
        }
    }
    Ok(all)
}

/// A residual that a response changes, clear of every threshold: noise, moved along w until z is what it should be.
fn pair(site: &PlannedSite, plan: &Plan, r: &Response) -> Result<Option<Pair>> {
    let norm = site.compiled.certificate.norm;
    let (d, mut random) = (plan.carriers.live, Random(7));
    let Some(p) = r.pre_activations.first() else { return Ok(None) };
    let square: f64 = p.w.iter().map(|w| w * w).sum();
    // A few sizes from below 1 to beyond the usual thresholds.
    for wanted in (0..48).map(|k| f64::exp2(f64::from(k / 4) - 1.0)) {
        let size = norm.unwrap_or(4.0 * wanted.max(1.0)) / 4.0 / (d as f64).sqrt();
        let noise = (0..d).map(|_| ((random.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0) * size);
        let mut x: Vec<f64> = noise.collect();
        let z = pre_activations(r, &x)[0];
        x.iter_mut().zip(&p.w).for_each(|(x, w)| *x = f64::from((*x + (wanted - z) / square * w) as f32));
        let e = effect(&site.target, norm, &x)?;
        let own = value(&r.expr, &pre_activations(r, &x))?;
        if own != 0.0 && e.covered && !e.doubtful && x.iter().all(|x| x.is_finite()) {
            let y: Vec<f64> = x.iter().zip(&e.change).map(|(x, c)| x + c).collect();
            let layers = [site.inserted.start, site.inserted.end - 1];
            let changed = short(length(&e.change) / length(&y));
            return Ok(Some(Pair { response: r.name.clone(), layers, changed, x: encoded(&x), y: encoded(&y) }));
        }
    }
    Ok(None)
}

fn encoded(x: &[f64]) -> String {
    let bytes: Vec<u8> = x.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect();
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
