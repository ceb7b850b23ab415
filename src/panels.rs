//! What the report draws of a compiled block: samples of target, stack and error.

use crate::certify::{Domain, jumps};
use crate::compile::Compiled;
use crate::error::Result;
use crate::explain::{counted, short};
use crate::report::Panel;
use crate::solve::Values;

/// Points of a curve.
const SAMPLES: usize = 900;
/// What is shown of an unbounded domain.
const SHOWN: f64 = 16.0;

/// One panel for each response.
pub fn panels(compiled: &Compiled) -> Result<Vec<Panel>> {
    let claims = compiled.certificate.claims()?;
    claims.iter().zip(&compiled.proof.responses).map(|(c, p)| panel(c, p)).collect()
}

fn panel(c: &crate::derive::ResponseClaim, p: &crate::derive::ResponseProof) -> Result<Panel> {
    let f = p.figures();
    let at = jumps(&c.target, c.domain)?;
    let knots: Vec<f64> = Values::new(&c.target, c.domain)?.knots().filter(|z| *z < c.domain.hi()).collect();
    let far = at.iter().chain(&knots).map(|z| z.abs()).fold(SHOWN, |a, b| a.max(2.0 * b));
    let (lo, hi) = (c.domain.lo().max(-far), c.domain.hi().min(far));
    let (lo, hi) = if lo < hi { (lo, hi) } else { (c.domain.lo().max(-1e6), c.domain.hi().min(1e6)) };
    let values = Values::new(&c.target, Domain::new(lo, hi)?)?;
    let bands: Vec<(f64, f64)> = at.iter().map(|j| (j - f.delta, j + f.delta)).collect();
    let mut z: Vec<f64> = (0..=SAMPLES).map(|k| lo + (hi - lo) * (k as f64 / SAMPLES as f64)).collect();
    // A jump is drawn as a gap, a band by many points.
    for j in &at {
        z.extend([*j, j.next_up()]);
        z.extend((0..=40).map(|k| j - 2.0 * f.delta + 4.0 * f.delta * f64::from(k) / 40.0));
    }
    z.retain(|z| lo <= *z && *z <= hi);
    z.sort_by(f64::total_cmp);
    z.dedup();
    let mut target = Vec::with_capacity(z.len());
    let (mut block, mut error) = (Vec::with_capacity(z.len()), Vec::with_capacity(z.len()));
    for z in z {
        let (t, b) = (values.at(z), c.stack.value(z));
        target.push((z, t));
        if at.contains(&z) {
            target.push((z, f64::NAN));
        }
        block.push((z, b));
        let banded = bands.iter().any(|(l, h)| *l <= z && z <= *h);
        error.push((z, if banded { f64::NAN } else { b - t }));
    }
    Ok(Panel {
        title: c.name.clone(),
        subtitle: format!(
            "{:?}, {}, c(z) = {}",
            f.status,
            counted(c.stack.neurons.len()),
            abbreviated(&c.target.to_string())
        ),
        domain: (lo, hi),
        target,
        block,
        error,
        epsilon: f.epsilon_outside.unwrap_or(f.epsilon)
            + if f.eta > 0.0 { f.eta * lo.abs().max(hi.abs()) } else { 0.0 },
        bands,
        hull_error: false,
    })
}

/// Long decimals, shortened for a caption.
fn abbreviated(text: &str) -> String {
    let mut out = String::new();
    let mut digits = String::new();
    for ch in text.chars().chain([' ']) {
        if ch.is_ascii_digit() || ch == '.' {
            digits.push(ch);
            continue;
        }
        if !digits.is_empty() {
            out += &if digits.len() > 8 { digits.parse().map_or(digits.clone(), short) } else { digits.clone() };
            digits.clear();
        }
        out.push(ch);
    }
    out.trim_end().to_string()
}
