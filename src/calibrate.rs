//! Calibration: which pre-activations and norms real residuals have, and what ranges a specification should therefore name.
//!
//! Residuals are read in pieces, three times, and never held:
//!
//! 1. norms, as a histogram, whose median tells a sequence's first tokens (norms of tens of thousands) from the others;
//! 2. the extremes of every pre-activation, from which ranges and the norm follow;
//! 3. how many tokens lie beyond those, and how many within a band, where a certificate promises less.
//!
//! The quantile q of n numbers is an order statistic: at most (1 − q)·n of them lie beyond it, none is interpolated. A range is
//! the quantiles q and 1 − q, widened by a margin on each side and rounded outwards to three digits.

use std::collections::BTreeMap;

use crate::certify::{Domain, jumps};
use crate::compile::{PreActivation, Response, Target};
use crate::error::{Error, Result};
use crate::eval::value;
use crate::expr::Expr;
use crate::gates::decompose;
use crate::interval::Interval;
use crate::intervention;
use crate::number::Number;
use crate::residuals::Residuals;
use crate::ridge::split;
use crate::sae::Sae;
use crate::spec::{Spec, Subject};

mod text;
pub mod update;

/// More numbers than this are not kept beyond the quantiles.
const MOST_KEPT: usize = 1 << 24;

/// How ranges are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// q: at most (1 − q) of the tokens lie beyond each end of a range, before it is widened
    pub quantile: f64,
    /// what is added on each side, relative to the range's width (to the norm itself)
    pub margin: f64,
    /// tokens whose norm is above so many times the median are counted apart
    pub massive: f64,
}

impl Default for Settings {
    /// All tokens, a tenth more on each side; norms above 8 times the median are a first token's.
    fn default() -> Self {
        Settings { quantile: 1.0, margin: 0.1, massive: 8.0 }
    }
}

impl Settings {
    fn check(&self) -> Result<()> {
        if !(self.quantile > 0.5 && self.quantile <= 1.0) {
            return Err(Error::input(format!("the quantile is {}", self.quantile)).help("above 0.5, at most 1"));
        }
        if !(self.margin >= 0.0 && self.margin.is_finite()) {
            return Err(Error::input(format!("the margin is {}", self.margin)).help("at least 0, as in 0.1"));
        }
        if !(self.massive > 1.0) {
            return Err(Error::input(format!("massive tokens begin at {} times the median", self.massive))
                .help("above 1, as in 8; inf counts none apart"));
        }
        Ok(())
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// how it was done
    pub settings: Settings,
    /// where the residuals are from
    pub source: String,
    /// all tokens
    pub tokens: u64,
    /// those with norms above `settings.massive` times the median
    pub massive: u64,
    /// their norms
    pub massive_norms: Option<(f64, f64)>,
    /// of all tokens, to 2^-15 of itself
    pub median: f64,
    /// the largest of the others
    pub largest: f64,
    /// what `domain.norm` should be
    pub norm: f64,
    /// tokens that are not massive and beyond it
    pub beyond_norm: u64,
    /// by entry
    pub entries: Vec<Entry>,
}

/// What was found of one entry of a specification.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// what the entry is called
    pub label: String,
    /// what z, z_1, … and v are, in words; empty for a whole SAE
    pub letters: String,
    /// its pre-activations
    pub rows: Vec<Row>,
    /// what its range should be
    pub range: Interval,
    /// tokens, massive ones aside, with a pre-activation outside of it
    pub outside: u64,
    /// massive tokens outside of it
    pub massive_outside: u64,
    /// where the response switches
    pub switches: Vec<Switch>,
    /// tokens, massive ones aside, on which the response is not 0
    pub active: u64,
}

/// One pre-activation, massive tokens aside.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// its name in the response
    pub name: String,
    /// the smallest value
    pub least: f64,
    /// the largest value
    pub most: f64,
    /// the quantiles
    pub quantiles: (f64, f64),
}

/// A condition of the response, and its band.
#[derive(Clone, Debug, PartialEq)]
pub struct Switch {
    /// an affine form of the pre-activations: the response switches where it passes 0
    pub form: Expr,
    /// within so much of 0 it is in the band
    pub radius: f64,
    /// tokens, massive ones aside, in it
    pub inside: u64,
    /// tokens, massive ones aside, beyond it on the positive side
    pub above: u64,
}

/// What is measured for one entry.
struct Probe {
    label: String,
    letters: String,
    names: Vec<String>,
    rows: Vec<PreActivation>,
    responses: Vec<Response>,
    switches: Vec<(Expr, f64)>,
}

/// The extremes of one quantity.
#[derive(Clone, Debug, Default)]
struct Extremes {
    /// ascending
    least: Vec<f64>,
    /// descending
    most: Vec<f64>,
}

impl Extremes {
    fn add(&mut self, x: f64, keep: usize) {
        if self.least.len() < keep || self.least.last().is_some_and(|l| x < *l) {
            self.least.insert(self.least.partition_point(|l| *l <= x), x);
            self.least.truncate(keep);
        }
        if self.most.len() < keep || self.most.last().is_some_and(|m| x > *m) {
            self.most.insert(self.most.partition_point(|m| *m >= x), x);
            self.most.truncate(keep);
        }
    }

    fn join(mut self, other: Extremes, keep: usize) -> Extremes {
        self.least.extend(other.least);
        self.most.extend(other.most);
        self.least.sort_by(f64::total_cmp);
        self.most.sort_by(|a, b| b.total_cmp(a));
        self.least.truncate(keep);
        self.most.truncate(keep);
        self
    }
}

/// Measures a specification's entries on residuals. `specs`: the steps of one place, usually one; a later step sees what the
/// ones before it leave.
///
/// Errors: residuals of another width, numbers that are not finite, specifications that cannot be read.
pub fn calibrate(
    specs: &[Spec],
    residuals: &Residuals,
    settings: Settings,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Calibration> {
    settings.check()?;
    let mut steps = Vec::with_capacity(specs.len());
    for spec in specs {
        let sae = intervention::open(spec)?;
        steps.push(probes(spec, sae.as_ref())?);
    }
    let width = steps.iter().flatten().flat_map(|p| &p.rows).map(|r| r.w.len()).next().unwrap_or(residuals.width());
    if width != residuals.width() {
        return Err(Error::input(format!(
            "the residuals have {} coordinates, the intervention reads {width}",
            residuals.width()
        ))
        .help("take residuals of the layer and model that the SAE or the vectors are for"));
    }
    measure(&steps, residuals, settings, progress)
}

fn measure(
    steps: &[Vec<Probe>],
    residuals: &Residuals,
    settings: Settings,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Calibration> {
    let tokens = residuals.tokens() as u64;
    let done = std::sync::atomic::AtomicU64::new(0);
    let progress = |n: u64| progress(done.fetch_add(n, std::sync::atomic::Ordering::Relaxed) + n, 3 * tokens);

    let histogram = residuals.each(
        &progress,
        |all: &mut BTreeMap<u32, u64>, x| {
            // Fifteen bits behind the leading one are enough.
            *all.entry((length(&x) as f32).to_bits() >> 8).or_default() += 1;
            Ok(())
        },
        |mut a, b| {
            b.into_iter().for_each(|(k, n)| *a.entry(k).or_default() += n);
            a
        },
    )?;
    let median = middle(&histogram, tokens);
    let massive = settings.massive * median;

    let all: Vec<&Probe> = steps.iter().flatten().collect();
    let count: usize = all.iter().map(|p| p.rows.len()).sum();
    let keep = ((1.0 - settings.quantile) * tokens as f64).floor() as usize + 1;
    if keep.saturating_mul(2 * (count + 1)) > MOST_KEPT {
        return Err(Error::unsupported(format!(
            "{keep} values beyond the quantile of each of {count} pre-activations would be held"
        ))
        .help("a quantile nearer to 1, or fewer features at a time"));
    }
    let seen = residuals.each(
        &progress,
        |seen: &mut Seen, x| {
            let norm = length(&x);
            if norm > massive {
                seen.massive.add(norm, 1);
                seen.massive_tokens += 1;
                return Ok(());
            }
            seen.norms.add(norm, keep);
            seen.rows.resize(count, Extremes::default());
            each_row(steps, x, |k, z| {
                seen.rows[k].add(z, keep);
                Ok(())
            })
        },
        |a, b| a.join(b, keep),
    )?;
    let ordinary = tokens - seen.massive_tokens;
    let beyond = ((1.0 - settings.quantile) * ordinary as f64).floor() as usize;
    let norms = quantiles(&seen.norms, beyond);
    let norm = outward(norms.1 * (1.0 + settings.margin), f64::ceil);
    if !(norm > 0.0) {
        return Err(Error::input("all residuals are 0").at(residuals.place()));
    }
    let mut entries = Vec::with_capacity(all.len());
    let mut next = 0;
    for probe in &all {
        let rows: Vec<Row> = (probe.names.iter().zip(&seen.rows[next..]))
            .map(|(name, e)| Row {
                name: name.clone(),
                least: e.least[0],
                most: e.most[0],
                quantiles: quantiles(e, beyond),
            })
            .collect();
        next += probe.rows.len();
        entries.push(Entry {
            label: probe.label.clone(),
            letters: probe.letters.clone(),
            range: range(&rows, probe, settings.margin),
            rows,
            outside: 0,
            massive_outside: 0,
            switches: probe
                .switches
                .iter()
                .map(|(form, radius)| Switch { form: form.clone(), radius: *radius, inside: 0, above: 0 })
                .collect(),
            active: 0,
        });
    }

    let counts = residuals.each(
        &progress,
        |counts: &mut Counts, x| counts.add(steps, &entries, x, massive, norm),
        Counts::join,
    )?;
    for (entry, found) in entries.iter_mut().zip(counts.entries) {
        (entry.outside, entry.massive_outside, entry.active) = (found.outside, found.massive_outside, found.active);
        for (switch, (inside, above)) in entry.switches.iter_mut().zip(found.switches) {
            (switch.inside, switch.above) = (inside, above);
        }
    }
    Ok(Calibration {
        settings,
        source: format!("{} ({})", residuals.place(), residuals.name()),
        tokens,
        massive: seen.massive_tokens,
        massive_norms: seen.massive.least.first().zip(seen.massive.most.first()).map(|(a, b)| (*a, *b)),
        median,
        largest: seen.norms.most[0],
        norm,
        beyond_norm: counts.beyond_norm,
        entries,
    })
}

/// What the second pass finds.
#[derive(Default)]
struct Seen {
    massive_tokens: u64,
    massive: Extremes,
    norms: Extremes,
    rows: Vec<Extremes>,
}

impl Seen {
    fn join(self, other: Seen, keep: usize) -> Seen {
        let (mut rows, mut more) = (self.rows, other.rows);
        let count = rows.len().max(more.len());
        rows.resize(count, Extremes::default());
        more.resize(count, Extremes::default());
        Seen {
            massive_tokens: self.massive_tokens + other.massive_tokens,
            massive: self.massive.join(other.massive, 1),
            norms: self.norms.join(other.norms, keep),
            rows: rows.into_iter().zip(more).map(|(a, b)| a.join(b, keep)).collect(),
        }
    }
}

/// What the third pass finds.
#[derive(Default)]
struct Counts {
    beyond_norm: u64,
    entries: Vec<EntryCounts>,
}

#[derive(Clone, Default)]
struct EntryCounts {
    outside: u64,
    massive_outside: u64,
    active: u64,
    /// in the band, above it
    switches: Vec<(u64, u64)>,
}

impl Counts {
    fn add(&mut self, steps: &[Vec<Probe>], entries: &[Entry], mut x: Vec<f64>, massive: f64, norm: f64) -> Result<()> {
        self.entries.resize(entries.len(), EntryCounts::default());
        let length = length(&x);
        let is_massive = length > massive;
        self.beyond_norm += u64::from(!is_massive && length > norm);
        let mut k = 0;
        for (s, step) in steps.iter().enumerate() {
            for probe in step {
                let (entry, own) = (&entries[k], &mut self.entries[k]);
                k += 1;
                let z = probe.values(&x);
                let outside = z.iter().any(|z| !entry.range.contains(*z));
                if is_massive {
                    own.massive_outside += u64::from(outside);
                    continue;
                }
                own.outside += u64::from(outside);
                own.switches.resize(entry.switches.len(), (0, 0));
                for (switch, (inside, above)) in entry.switches.iter().zip(&mut own.switches) {
                    let at = value(&switch.form, &z)?;
                    *inside += u64::from(at.abs() <= switch.radius);
                    *above += u64::from(at > switch.radius);
                }
                own.active += u64::from(probe.active(&x)?);
            }
            if s + 1 < steps.len() {
                apply(step, &mut x)?;
            }
        }
        Ok(())
    }

    fn join(self, other: Counts) -> Counts {
        let (mut a, mut b) = (self.entries, other.entries);
        let count = a.len().max(b.len());
        a.resize(count, EntryCounts::default());
        b.resize(count, EntryCounts::default());
        let pair = |(a, b): (EntryCounts, EntryCounts)| {
            let (mut s, mut t) = (a.switches, b.switches);
            let most = s.len().max(t.len());
            s.resize(most, (0, 0));
            t.resize(most, (0, 0));
            EntryCounts {
                outside: a.outside + b.outside,
                massive_outside: a.massive_outside + b.massive_outside,
                active: a.active + b.active,
                switches: s.into_iter().zip(t).map(|(a, b)| (a.0 + b.0, a.1 + b.1)).collect(),
            }
        };
        Counts { beyond_norm: self.beyond_norm + other.beyond_norm, entries: a.into_iter().zip(b).map(pair).collect() }
    }
}

impl Probe {
    fn values(&self, x: &[f64]) -> Vec<f64> {
        self.rows.iter().map(|p| pre_activation(p, x)).collect()
    }

    fn active(&self, x: &[f64]) -> Result<bool> {
        for r in &self.responses {
            if response(r, x)? != 0.0 {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn pre_activation(p: &PreActivation, x: &[f64]) -> f64 {
    p.b + p.w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>()
}

fn response(r: &Response, x: &[f64]) -> Result<f64> {
    // Constants are functions of a pre-activation that nobody gave.
    let z: Vec<f64> = r.pre_activations.iter().map(|p| pre_activation(p, x)).chain([0.0]).collect();
    value(&r.expr, &z)
}

/// x ← x + Σ_j c_j·v_j
fn apply(step: &[Probe], x: &mut [f64]) -> Result<()> {
    let mut change = vec![0.0; x.len()];
    for r in step.iter().flat_map(|p| &p.responses) {
        let c = response(r, x)?;
        change.iter_mut().zip(&r.write).for_each(|(sum, v)| *sum += c * v);
    }
    x.iter_mut().zip(change).for_each(|(x, c)| *x += c);
    Ok(())
}

/// All pre-activations of all steps, one after the other.
fn each_row(steps: &[Vec<Probe>], mut x: Vec<f64>, mut found: impl FnMut(usize, f64) -> Result<()>) -> Result<()> {
    let mut k = 0;
    for (s, step) in steps.iter().enumerate() {
        for z in step.iter().flat_map(|p| p.values(&x)) {
            found(k, z)?;
            k += 1;
        }
        if s + 1 < steps.len() {
            apply(step, &mut x)?;
        }
    }
    Ok(())
}

/// What to measure for a specification's entries. Their ranges are what is to be found: they play no part.
fn probes(spec: &Spec, sae: Option<&Sae>) -> Result<Vec<Probe>> {
    let mut wide = spec.clone();
    wide.domain.range = Interval::ENTIRE;
    wide.interventions.iter_mut().for_each(|i| i.range = None);
    let mut out = Vec::with_capacity(wide.interventions.len());
    for i in &wide.interventions {
        let one = Spec { interventions: vec![i.clone()], ..wide.clone() };
        let (Target { mut responses }, legend) = intervention::described(&one, sae)?;
        let band = wide.band_of(i);
        let whole = i.subject == Subject::Sae;
        // A reconstruction reads every feature; the coordinates that it erases are bounded by the norm.
        let count = if whole { sae.map_or(0, Sae::d_sae) } else { responses.len() };
        let all = if whole { responses.clone() } else { Vec::new() };
        responses.truncate(count);
        let (mut rows, mut names, mut switches) = (Vec::new(), Vec::new(), Vec::new());
        for (k, r) in responses.iter().enumerate() {
            let first = rows.len();
            let shift = |e: &Expr| e.substitute(&|k| Expr::Pre(first + k));
            switches.extend(conditions(&r.expr)?.iter().map(|c| (shift(c), band * spread(c))));
            let own = |j: usize| if whole { format!("feature {k}") } else { Expr::Pre(j).to_string() };
            names.extend((0..r.pre_activations.len()).map(own));
            rows.extend(r.pre_activations.iter().cloned());
        }
        let responses = if whole { all } else { responses };
        let letters = legend.first().and_then(|l| l.strip_prefix(&format!("{}: ", i.label()))).filter(|_| !whole);
        let letters = letters.unwrap_or_default().to_string();
        out.push(Probe { label: i.label(), letters, names, rows, responses, switches });
    }
    Ok(out)
}

/// Where a response switches: affine forms that pass 0 there.
fn conditions(e: &Expr) -> Result<Vec<Expr>> {
    if let Ok(parts) = split(e) {
        let mut all = Vec::new();
        for (k, part) in parts {
            for at in jumps(&part, Domain::line())? {
                let at = Number::from_f64(at).ok_or_else(|| Error::input(format!("a threshold is {at}")))?;
                all.push(match at.signum() {
                    0 => Expr::Pre(k),
                    1 => Expr::Pre(k).minus(Expr::Const(at)),
                    _ => Expr::Pre(k).plus(Expr::Const(-at)),
                });
            }
        }
        return Ok(all);
    }
    let mut all: Vec<Expr> = Vec::new();
    for c in decompose(e)?.1.into_iter().flat_map(|t| t.conditions) {
        if !all.contains(&c) {
            all.push(c);
        }
    }
    Ok(all)
}

/// Σ|c_k|: what an affine form moves by, where its pre-activations move by 1 each.
fn spread(e: &Expr) -> f64 {
    let coefficients = e.affine().map(|a| a.coefficients).unwrap_or_default();
    coefficients.into_values().map(|c| Number::from(c).to_f64().abs()).sum()
}

/// The quantiles, widened; with every threshold inside, which a certificate needs.
fn range(rows: &[Row], probe: &Probe, margin: f64) -> Interval {
    let (mut lo, mut hi) = (f64::INFINITY, f64::NEG_INFINITY);
    for r in rows {
        (lo, hi) = (lo.min(r.quantiles.0), hi.max(r.quantiles.1));
    }
    if !(lo <= hi) {
        return Interval::new(-1.0, 1.0);
    }
    for (form, radius) in &probe.switches {
        let Some(form) = form.affine().filter(|f| f.coefficients.len() == 1) else { continue };
        let Some(slope) = form.coefficients.values().next() else { continue };
        let at = Number::from(-(&form.constant / slope)).to_f64();
        (lo, hi) = (lo.min(at - 2.0 * radius), hi.max(at + 2.0 * radius));
    }
    let wider = margin * (hi - lo) + f64::MIN_POSITIVE;
    Interval::new(outward(lo - wider, f64::floor), outward(hi + wider, f64::ceil))
}

/// Three digits.
fn outward(x: f64, to: fn(f64) -> f64) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let digits = 2 - x.abs().log10().floor() as i32;
    // Dividing by a whole power of ten rounds to what the decimal says.
    if digits >= 0 {
        let scale = 10f64.powi(digits);
        to(x * scale) / scale
    } else {
        let scale = 10f64.powi(-digits);
        to(x / scale) * scale
    }
}

/// The values that `beyond` others exceed.
fn quantiles(e: &Extremes, beyond: usize) -> (f64, f64) {
    let at = |sorted: &[f64]| sorted.get(beyond.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0.0);
    (at(&e.least), at(&e.most))
}

fn middle(histogram: &BTreeMap<u32, u64>, tokens: u64) -> f64 {
    let mut below = 0;
    for (bits, n) in histogram {
        below += n;
        if 2 * below >= tokens {
            return f64::from(f32::from_bits(bits << 8));
        }
    }
    0.0
}

fn length(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn three_digits_outwards() {
        for (x, down, up) in [
            (123.4, 123.0, 124.0),
            (-123.4, -124.0, -123.0),
            (0.01234, 0.0123, 0.0124),
            (25_057.0, 25_000.0, 25_100.0),
            (0.0, 0.0, 0.0),
            (100.0, 100.0, 100.0),
        ] {
            assert_eq!((outward(x, f64::floor), outward(x, f64::ceil)), (down, up), "{x}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn extremes_are_order_statistics(mut x in prop::collection::vec(-1e3f64..1e3, 1..60), keep in 1usize..8, cut in 0usize..60) {
            let cut = cut.min(x.len());
            let part = |x: &[f64]| {
                let mut e = Extremes::default();
                x.iter().for_each(|x| e.add(*x, keep));
                e
            };
            let e = part(&x[..cut]).join(part(&x[cut..]), keep);
            x.sort_by(f64::total_cmp);
            for beyond in 0..keep.min(x.len()) {
                prop_assert_eq!(quantiles(&e, beyond), (x[beyond], x[x.len() - 1 - beyond]));
            }
        }

        #[test]
        fn outward_is_outward(x in prop_oneof![-1e6f64..1e6, -1e-3f64..1e-3]) {
            prop_assert!(outward(x, f64::floor) <= x * (1.0 + 1e-15 * -x.signum()) && outward(x, f64::ceil) >= x * (1.0 - 1e-15 * x.signum()));
            prop_assert!((outward(x, f64::ceil) - x).abs() <= x.abs() / 99.0 + 1e-300);
        }
    }
}
