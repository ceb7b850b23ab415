//! What is certified, in words and in tables. What is printed is a bound itself: digits are rounded up, unbounded ranges have
//! their share of |z|, bands are as wide as rounded rows make them.

use std::fmt::Write;

use crate::certificate::{CertificateFile, Ends, ResponseFile, TermFile};
use crate::certify::{Figures, Status};
use crate::derive::Rounding;

use super::{conditions, part_name, payload, short};

/// A bound for reading, `digits` after the first: not below x.
fn up(x: f64, digits: usize) -> f64 {
    let text = format!("{x:.digits$e}");
    match text.parse::<f64>() {
        Ok(y) if y < x => {
            // One more in the last place; what carries over stays a decimal of so many digits.
            let exponent: i32 = text.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
            let step: f64 = format!("1e{}", exponent - digits as i32).parse().unwrap_or(f64::MIN_POSITIVE);
            let above = format!("{:.digits$e}", y + step);
            above.parse().ok().filter(|z| *z >= x).unwrap_or(x)
        }
        Ok(y) => y,
        Err(_) => x,
    }
}

/// A bound in words, five digits.
pub fn bound(x: f64) -> String {
    short(up(x, 4))
}

/// A bound in a table, three digits.
fn cell(x: f64) -> String {
    format!("{:.2e}", up(x, 2))
}

/// How near to a jump of its target a response may be off: the band, and what rounded rows move z by.
pub fn band(f: &Figures, rounding: Option<&Rounding>) -> Option<f64> {
    f.epsilon_outside.map(|_| match rounding.map_or(0.0, |r| r.delta_rows) {
        rows if rows > 0.0 => (f.delta + rows).next_up(),
        _ => f.delta,
    })
}

/// One line of a table of responses.
#[derive(Clone, Debug)]
pub struct Row {
    /// of the response
    pub name: String,
    /// is it a payload that the first of two layers computes?
    pub carried: bool,
    /// hidden units
    pub units: usize,
    /// of the certificate
    pub status: String,
    /// off the bands, what the tolerance judges: of c, at the z that the rounded rows compute
    pub error: String,
    /// what error, overshoot and leak grow by for each unit of |z|
    pub slope: Option<String>,
    /// radius around jumps, rounded rows included
    pub band: String,
    /// within a band
    pub overshoot: String,
    /// where c is 0
    pub leak: String,
    /// off the bands, ‖written − c(z)·v‖
    pub stream: String,
    /// c(z)
    pub response: String,
    /// the range of its pre-activations
    pub domain: String,
}

/// The responses of a certificate, then what two layers do with gates.
pub fn rows(file: &CertificateFile) -> Vec<Row> {
    let some = |x: Option<f64>| x.map_or("-".into(), cell);
    let response = |r: &ResponseFile| {
        let (f, rounding) = (&r.certificate, r.rounding.as_ref());
        Row {
            name: r.name.clone(),
            carried: r.carried,
            units: r.neurons.len(),
            status: format!("{:?}", f.status),
            error: cell(f.epsilon_outside.unwrap_or(f.epsilon)),
            slope: (f.eta > 0.0).then(|| cell(f.eta)),
            band: some(band(f, rounding)),
            overshoot: some(f.overshoot),
            leak: some(f.leak),
            stream: some(rounding.map(|r| r.outside)),
            response: r.target.to_string(),
            domain: range(&r.domain),
        }
    };
    let term = |t: &TermFile| {
        let f = &t.figures;
        Row {
            name: part_name(file, t),
            carried: false,
            units: t.units,
            status: format!("{:?}", f.status),
            error: cell(f.outside / length(t)),
            slope: None,
            band: some(f.bands.iter().copied().reduce(f64::max)),
            overshoot: cell(f.overshoot * f.payload),
            leak: "-".into(),
            stream: cell(f.outside),
            response: format!("{} where {}", payload(t), conditions(t)),
            domain: range(&t.domain),
        }
    };
    file.responses.iter().map(response).chain(file.gates.iter().flat_map(|g| &g.terms).map(term)).collect()
}

/// The rows as a text, with what the columns mean.
pub fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|r| r.name.chars().count()).max().unwrap_or(0).clamp(28, 60);
    let grows = rows.iter().any(|r| r.slope.is_some());
    let mut out = String::new();
    let mut line = |name: &str, cells: [&str; 7], slope: &str, response: &str| {
        let [units, status, error, band, overshoot, leak, stream] = cells;
        let slope = if grows { format!(" {slope:>9}") } else { String::new() };
        let _ = writeln!(
            out,
            "{name:<width$} {units:>6} {status:<12} {error:>9}{slope} {band:>9} {overshoot:>9} {leak:>9} {stream:>9}  {response}"
        );
    };
    line("response", ["units", "status", "error", "band", "overshoot", "leak", "in stream"], "per |z|", "c(z)");
    for r in rows {
        let cells = [&r.units.to_string(), &r.status, &r.error, &r.band, &r.overshoot, &r.leak, &r.stream];
        line(&r.name, cells.map(String::as_str), r.slope.as_deref().unwrap_or("-"), &r.response);
    }
    out += LEGEND;
    if grows {
        out +=
            "(per |z|: on a range without end error, overshoot and leak are this much larger for each unit of |z|)\n";
    }
    out
}

const LEGEND: &str = "\
(error: off the jumps, what the tolerance judges; band: how near to one, rounded rows included; overshoot: beyond its two sides there;
leak: where c(z) is 0; all three at the z that the rounded rows compute. in stream: ‖written − c(z)·v‖ off the bands)
";

/// [lo, hi]
fn range(d: &Ends) -> String {
    match d.domain() {
        Ok(d) => format!("[{}, {}]", d.lo(), d.hi()),
        Err(_) => "?".into(),
    }
}

/// ‖v‖
pub(super) fn length(t: &TermFile) -> f64 {
    t.v.values().map_or(f64::NAN, |v| v.iter().map(|x| x * x).sum::<f64>().sqrt())
}

/// What the bounds of a certificate hold for, and what they come to in the stream.
pub fn scope(file: &CertificateFile) -> Vec<String> {
    let engine = match file.deployed.is_empty() {
        true => "; an engine's own rounding comes on top: `neurograft formats` and docs/arithmetic.md say how much",
        false => "; engines' below",
    };
    let mut out = vec![format!("bounds hold in real arithmetic on these weights{engine}")];
    out.push(match (file.norm, &file.total) {
        (Some(norm), Some(t)) => format!(
            "in the stream, for ‖x‖ ≤ {norm} and pre-activations in range and off the bands: ‖error‖ ≤ {}",
            cell(t.outside)
        ),
        _ => "no domain.norm: nothing is said of the stream, where rounded rows move z by what grows with ‖x‖".into(),
    });
    out
}

fn status(status: Status, tolerance: Option<f64>) -> String {
    match (status, tolerance) {
        (Status::Within, None) => "certified, no tolerance asked for".into(),
        (Status::Within | Status::BestEffort, Some(t)) => format!("certified: {status:?} (tolerance {})", short(t)),
        _ => format!("certified: {status:?}"),
    }
}

/// The figures of a stack in words.
pub fn figures(f: &Figures, tolerance: Option<f64>) -> Vec<String> {
    let grows = if f.eta > 0.0 { format!(" + {}·|z|", bound(f.eta)) } else { String::new() };
    let mut out = vec![status(f.status, tolerance)];
    match (f.epsilon_outside, f.overshoot) {
        (Some(outside), Some(overshoot)) => {
            out.push(format!("  farther than {} from the jump: error ≤ {}{grows}", bound(f.delta), bound(outside)));
            out.push(format!("  nearer: between the two sides, give or take {}{grows}", bound(overshoot)));
        }
        _ => out.push(format!("  error ≤ {}{grows}", bound(f.epsilon))),
    }
    if let Some(leak) = f.leak {
        out.push(format!("  where the response is 0 the block adds at most {}{grows}", bound(leak)));
    }
    if f.eta > 0.0 {
        out.push("  (what grows with |z|: the rounding of slopes, on a range without end)".into());
    }
    out
}

/// The figures of a response in the block, in words.
pub fn response_figures(r: &ResponseFile) -> Vec<String> {
    let f = &r.certificate;
    let mut out = figures(f, r.tolerance);
    out[0] += &format!(", z in {}", range(&r.domain));
    let Some(rounding) = &r.rounding else { return out };
    if rounding.delta_rows > 0.0 {
        let moved = bound(rounding.delta_rows);
        out.insert(1, format!("  of z as the rounded rows compute it, off by at most {moved}:"));
        out[2..].iter_mut().for_each(|line| line.insert_str(0, "  "));
    }
    let off = band(f, Some(rounding)).map_or(String::new(), |b| format!(", farther than {} from the jump", bound(b)));
    let verb = if r.carried { "between the layers" } else { "in the stream" };
    out.push(format!("  {verb}{off}: ‖error‖ ≤ {}", bound(rounding.outside)));
    out
}

/// The figures of a gated term in words.
pub fn gate_figures(t: &TermFile) -> Vec<String> {
    let f = &t.figures;
    let far = |(c, b): (&crate::expr::Expr, &f64)| format!("farther than {} from {c} = 0", bound(*b));
    let bands: Vec<String> = t.conditions.iter().zip(&f.bands).filter(|(_, b)| **b > 0.0).map(far).collect();
    let off = if bands.is_empty() { String::new() } else { format!("{}: ", bands.join(" and ")) };
    let mut out = vec![
        format!("{}, every z in {}", status(f.status, t.tolerance), range(&t.domain)),
        format!("  {off}‖error‖ ≤ {}", bound(f.outside)),
    ];
    if !bands.is_empty() {
        out.push(format!(
            "  nearer: the factor on the payload is between 0 and 1, give or take {}",
            bound(f.overshoot)
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn digits_are_rounded_up() {
        assert_eq!(cell(1.541e-5), "1.55e-5");
        assert_eq!(cell(9.991), "1.00e1");
        assert_eq!(cell(0.25), "2.50e-1");
        assert_eq!(bound(0.893_270_139), "0.89328");
        assert_eq!(bound(0.05), "0.05");
        assert_eq!(bound(0.0), "0");
        assert_eq!(bound(f64::INFINITY), "inf");
    }

    proptest! {
        #[test]
        fn what_is_printed_is_no_less(x in proptest::num::f64::POSITIVE | proptest::num::f64::SUBNORMAL) {
            let x = x.abs();
            for text in [cell(x), bound(x)] {
                let y: f64 = text.parse().unwrap();
                prop_assert!(y >= x, "{x:e} is printed as {text}");
                prop_assert!(y <= x * 1.011 || y - x < 1e-321, "{x:e} is printed as {text}");
            }
        }
    }
}
