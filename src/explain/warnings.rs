//! What a tolerance that is met does not say, and why one is missed.

use crate::certificate::{CertificateFile, ResponseFile, TermFile};
use crate::certify::{Domain, Status, jumps};
use crate::compile::Compiled;
use crate::derive::Rounding;
use crate::format::Format;
use crate::number::Number;

use super::bounds::{band, bound, length};
use super::{limit, rounding, short};

/// Bands that take up this share of a range are worth a word.
const WIDE: f64 = 0.1;

/// What a compiled intervention does that nobody can have meant, or that its status does not show.
pub fn warnings(compiled: &Compiled) -> Vec<String> {
    let file = &compiled.certificate;
    let written = || file.responses.iter().filter(|r| !r.carried);
    let idle = written().filter(|r| r.neurons.is_empty() && r.constant == 0.0 && r.certificate.epsilon == 0.0);
    let rounded = written().filter_map(|r| beyond(file, r, r.rounding.as_ref()?));
    let wider = written().filter_map(|r| {
        let delta = r.certificate.delta;
        widened(&r.name, delta, band(&r.certificate, r.rounding.as_ref())?, file.format)
    });
    let gates = || file.gates.iter().flat_map(|g| &g.terms);
    let gates_wider = gates()
        .filter_map(|t| widened(&t.name, t.delta, t.figures.bands.iter().copied().reduce(f64::max)?, file.format));
    let covered = written().filter_map(covered);
    let gates_covered = gates().filter_map(gate_covered);
    let mut out: Vec<String> = idle.map(never).collect();
    out.extend(rounded.chain(wider).chain(gates_wider).chain(covered).chain(gates_covered));
    out
}

fn never(r: &ResponseFile) -> String {
    let range = match r.domain.domain() {
        Ok(d) if d.is_bounded() => format!("pre-activations from {} to {}", d.lo(), d.hi()),
        _ => "any pre-activation".into(),
    };
    format!("{} never changes anything, for {range}: look at its value, its condition and its range", r.name)
}

/// The tolerance is met by the stack, and not by what is written to the stream.
fn beyond(file: &CertificateFile, r: &ResponseFile, rounding: &Rounding) -> Option<String> {
    let tolerance = r.tolerance.filter(|_| r.certificate.status != Status::BestEffort)?;
    let most = tolerance * r.v.values().ok()?.iter().map(|x| x * x).sum::<f64>().sqrt();
    let jumps = r.certificate.epsilon_outside.is_some();
    let two = if jumps { ", layers = 2" } else { "" };
    (rounding.outside > most).then(|| {
        format!(
            "{}: the tolerance {} is met at the z that the rounded rows compute, but in the stream the error is up to {}: {} rounds rows and \
             columns. A smaller domain.norm{two} or a wider format comes closer",
            r.name,
            short(tolerance),
            bound(rounding.outside),
            file.format
        )
    })
}

/// Rounding makes the band more than twice as wide.
fn widened(name: &str, asked: f64, band: f64, format: Format) -> Option<String> {
    (asked > 0.0 && band > 2.0 * asked).then(|| {
        format!(
            "{name}: rounded rows widen its band from {} to {} ({format}, and domain.norm)",
            short(asked),
            bound(band)
        )
    })
}

/// The share of a range that lies within a band.
fn share(at: &[f64], radius: f64, d: Domain) -> f64 {
    let mut bands: Vec<[f64; 2]> = at.iter().map(|j| [(j - radius).max(d.lo()), (j + radius).min(d.hi())]).collect();
    bands.sort_by(|a, b| a[0].total_cmp(&b[0]));
    let (mut covered, mut end) = (0.0, d.lo());
    for [lo, hi] in bands {
        covered += (hi - lo.max(end)).max(0.0);
        end = end.max(hi);
    }
    covered / (d.hi() - d.lo())
}

fn wide(name: &str, share: f64, d: Domain) -> Option<String> {
    (share >= WIDE).then(|| {
        format!(
            "{name}: its bands take up {:.0} % of its range [{}, {}], and within a band the block may be anywhere between the two sides. \
             `neurograft calibrate` counts the tokens there",
            100.0 * share,
            short(d.lo()),
            short(d.hi())
        )
    })
}

/// Bands around the jumps of a response, in its range or what the norm leaves of it.
fn covered(r: &ResponseFile) -> Option<String> {
    let d = r.domain.domain().ok().filter(|d| d.is_bounded())?;
    let radius = band(&r.certificate, r.rounding.as_ref())?;
    // So narrow a band takes more than a hundred jumps, which are not looked for in vain in thousands of responses.
    if 200.0 * radius < WIDE * (d.hi() - d.lo()) {
        return None;
    }
    wide(&r.name, share(&jumps(&r.target, d).ok()?, radius, d), d)
}

/// Bands around the boundaries of conditions on one pre-activation.
fn gate_covered(t: &TermFile) -> Option<String> {
    let d = t.domain.domain().ok().filter(|d| d.is_bounded())?;
    let value = |x: crate::rational::Rational| Number::from(x).to_f64();
    let of = |(c, band): (&crate::expr::Expr, &f64)| {
        let form = c.affine()?;
        let mut slopes = form.coefficients.into_values();
        let (slope, None) = (value(slopes.next()?), slopes.next()) else { return None };
        Some(share(&[-value(form.constant) / slope], band / slope.abs(), d))
    };
    let most = t.conditions.iter().zip(&t.figures.bands).filter_map(of).fold(0.0, f64::max);
    wide(&t.name, most, d)
}

/// What kept a gated term from its tolerance, if it missed it.
pub fn gate_limit(t: &TermFile, format: Format) -> Option<String> {
    let f = &t.figures;
    // What the factor's error does not explain is rounding.
    let said = match (2.0 * f.factor * f.payload * length(t) < f.outside, format) {
        (true, _) => rounding(format),
        (false, Format::F16) => {
            "the gate: guards grow like their slope times ‖x‖, f16 ends at 65,504, and slopes below that do not shut it within the band. bf16 \
             or f32, a smaller domain.norm or a wider band help"
                .into()
        }
        (false, _) => "the gate: more of its guards' tails is left than the tolerance allows; a wider band helps".into(),
    };
    (f.status == Status::BestEffort).then_some(said)
}

/// One line for each response that missed its tolerance, with the reason.
pub fn missed(c: &Compiled) -> Vec<String> {
    let file = &c.certificate;
    let responses = file.responses.iter().zip(&c.solutions);
    let limits = responses.map(|(r, s)| (&r.name, limit(&r.certificate, s, file.format)));
    let gates = file.gates.iter().flat_map(|g| &g.terms).map(|t| (&t.name, gate_limit(t, file.format)));
    let said = |(name, limit): (&String, Option<String>)| {
        Some(format!("{name}: the tolerance is missed; what limits it is {}", limit?))
    };
    limits.chain(gates).filter_map(said).collect()
}
