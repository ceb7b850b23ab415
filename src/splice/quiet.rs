//! Which coordinates of the stream may carry constants: the quietest ones, by what the model itself makes of random tokens.

use std::path::Path;

use nalgebra::{DMatrix, DVector};

use crate::carriers::Pool;
use crate::error::{Error, Result};
use crate::reference::{Model, Stream};
use crate::tensors::valid_range;

use super::selftest::{Random, USUAL_LIMIT};
use super::{Checkpoint, Progress, Site};

/// How many coordinates are looked at.
const POOL: usize = 64;
/// Prompts of random tokens, and their length: enough samples for the second moments of a pool.
const PROMPTS: usize = 10;
const LENGTH: usize = 32;
/// The first tokens of a text are a law unto themselves.
const SKIPPED: usize = 2;

/// The coordinates that may be borrowed (those that the user names, or the quietest), what the stream does there, and a note
/// where that is only judged by the weights.
///
/// Errors: coordinates that are not there, or are named twice; weights that cannot be read.
pub(super) fn pool(
    checkpoint: &Checkpoint,
    sites: &[Site<'_>],
    borrow: &[usize],
    progress: Progress<'_>,
) -> Result<(Pool, Option<String>)> {
    let d = checkpoint.host().hidden_size;
    let mut named = borrow.to_vec();
    named.sort_unstable();
    if let Some(j) = named.iter().find(|j| **j >= d) {
        return Err(Error::input(format!("there is no coordinate {j} to borrow")).help(valid_range("coordinates", d)));
    }
    if named.windows(2).any(|w| w[0] == w[1]) {
        return Err(Error::input("a coordinate to borrow is named twice"));
    }
    let quietest = |squares: &DVector<f64>| {
        let mut order: Vec<usize> = (0..d).collect();
        order.sort_by(|a, b| squares[*a].total_cmp(&squares[*b]));
        order.truncate(POOL);
        if named.is_empty() { order } else { named.clone() }
    };
    let small = checkpoint.bytes() <= USUAL_LIMIT;
    if let Some(x) = small.then(|| samples(checkpoint.path(), sites, progress)).transpose()?.flatten() {
        let squares = DVector::from_fn(d, |j, _| x.column(j).norm_squared());
        let coordinates = quietest(&squares);
        let part = x.select_columns(&coordinates);
        return Ok((Pool { moments: part.tr_mul(&part) / x.nrows() as f64, coordinates }, None));
    }
    let mut loudness = DVector::zeros(d);
    for site in sites {
        loudness += DVector::from_vec(checkpoint.loudness(site.layer)?);
    }
    let coordinates = quietest(&loudness);
    let moments = DMatrix::from_diagonal(&loudness.select_rows(&coordinates));
    let note = "the coordinates to borrow were chosen by the weights that write them, which is a poor guide: name quiet ones of \
                your own residuals with --borrow";
    Ok((Pool { coordinates, moments }, named.is_empty().then(|| note.into())))
}

/// Residuals after every site's layer, [samples, d]; none where the model cannot be run here or every residual is beyond what
/// the specification speaks of.
fn samples(path: &Path, sites: &[Site<'_>], progress: Progress<'_>) -> Result<Option<DMatrix<f64>>> {
    match run(path, sites, progress) {
        Ok(x) => Ok(Some(x).filter(|x| x.nrows() >= PROMPTS)),
        Err(e) if e.is_io() => Err(e),
        Err(_) => Ok(None),
    }
}

fn run(path: &Path, sites: &[Site<'_>], progress: Progress<'_>) -> Result<DMatrix<f64>> {
    let model = Model::open(path)?;
    let vocabulary = model.vocabulary()?.max(1) as u64;
    let mut random = Random::new(vocabulary);
    let mut token = || (random.next() % vocabulary) as u32;
    let prompts: Vec<Vec<u32>> =
        (0..PROMPTS).map(|_| model.first_token().into_iter().chain((0..LENGTH).map(|_| token())).collect()).collect();
    let mut stream = model.embed(&prompts)?;
    let last = sites.iter().map(|s| s.layer).max().unwrap_or(0);
    let mut rows = Vec::new();
    for layer in 0..=last {
        progress("layers run for the carriers", layer as u64 + 1, last as u64 + 1);
        model.layer(layer, &mut stream)?;
        for site in sites.iter().filter(|s| s.layer == layer) {
            rows.extend(usual(&stream, site.spec.domain.norm));
        }
    }
    Ok(DMatrix::from_rows(&rows))
}

/// The residuals that a site's certificate speaks of.
fn usual(stream: &Stream, norm: Option<f64>) -> impl Iterator<Item = nalgebra::RowDVector<f64>> {
    let rows = stream.prompts.iter().flat_map(|p| p.clone().skip(SKIPPED));
    let rows = rows.map(|r| stream.x.row(r).into_owned());
    rows.filter(move |x| norm.is_none_or(|norm| x.norm() <= norm))
}
