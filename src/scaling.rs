//! By which factor a row is rounded best.
//!
//! A row f·w whose factor f is free (a column takes 1/f) is rounded to r = fl(f·w), and z = ⟨w, x⟩ moves by ⟨r/f − w, x⟩, at most
//!
//! ```text
//! ‖r/f − w‖·‖x‖ = ‖fl(f·w) − f·w‖/f·‖x‖
//! ```
//!
//! which has period 2 in log f: powers of two change nothing. In 16 bits each entry's relative error is up to 2^−9 (bf16) and depends on where f·w_k falls between two numbers; over a
//! few hundred entries that averages to much the same for every f, but not quite. In 32 bits nothing is worth the search.
//!
//! Search: the certificate is about the rounded rows, whatever the factor.

use crate::format::Format;

/// So many factors are tried, evenly spaced, besides those of eight significant bits (which keep dyadic rows exact).
const TRIED: u32 = 128;

/// ‖fl(f·w) − f·w‖/f.
pub fn error(row: &[f64], format: Format, factor: f64) -> f64 {
    let off = |w: &f64| {
        let x = factor * w;
        format.round(x) - x
    };
    row.iter().map(|w| off(w).powi(2)).sum::<f64>().sqrt() / factor
}

/// The factors that are tried between two positive ones, both ends included.
pub fn candidates([lo, hi]: [f64; 2]) -> Vec<f64> {
    let even = (0..=TRIED).map(|k| lo + (hi - lo) * f64::from(k) / f64::from(TRIED));
    // Eight bits: multiples of 2^(e − 7) in the binade of `lo` and those above.
    let unit = f64::exp2(lo.log2().floor() - 7.0);
    let count = ((hi / unit).floor() - (lo / unit).ceil()).clamp(-1.0, f64::from(2 * TRIED)) as i32;
    let first = (lo / unit).ceil();
    let short = (0..=count).map(|k| (first + f64::from(k)) * unit);
    even.chain(short).collect()
}

/// The factor of least error between two positive ones, the largest of equals.
pub fn best(row: &[f64], format: Format, range: [f64; 2]) -> f64 {
    let judged = candidates(range).into_iter().map(|f| (error(row, format, f), f));
    judged.min_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1))).map_or(range[1], |j| j.1)
}
