//! One layer for engines of 16 bits: which stack has the lowest bounds in their arithmetic.

use rayon::prelude::*;

use super::stacks::Solver;
use super::{Options, Part, Solution, Target, check, lower, parts};
use crate::certify::Domain;
use crate::deployed::{Blocks, Deployed};
use crate::derive::Reading;
use crate::dither::Dither;
use crate::error::{Error, Result};
use crate::solve::{Request, within};
use crate::stack::{Form, Stack};

/// Copies of steep neurons, where they have lower bounds in the arithmetics of 16 bits that are asked for than `best`; before rounding.
pub(super) fn choose(
    part: &Part<'_>,
    request: &Request<'_>,
    best: &Solution,
    options: &Options,
    hidden_size: usize,
    limits: &[usize],
) -> Result<Vec<Option<Stack<f64>>>> {
    let (Some(domain), Some(arithmetic)) = (bounded(part, options.norm), options.short_rows().next()) else {
        return Ok(vec![None; limits.len()]);
    };
    let first = deployed_part(part, best, options, hidden_size)?;
    let mut least = bound(&first);
    // Steps are laid out for the engine whose sums err least, and silent in the one in the middle too: one that nothing helps must not decide.
    let mut sums: Vec<f64> = first.iter().flat_map(|d| &d.responses).map(|r| r.delta_sums).collect();
    sums.sort_by(f64::total_cmp);
    let dither = Dither {
        target: &part.target,
        source: &options.source,
        gated: options.form == Form::Gated,
        domain,
        delta: best.certificate.delta(),
        arithmetic,
        sums: sums.first().copied().unwrap_or(0.0),
        idle_sums: sums.get(sums.len() / 2).copied().unwrap_or(0.0),
        max_weight: request.budget.max_weight,
        row: part.response.pre_activations.get(part.index).map(|p| &p.w[..]),
    };
    // The best with 1 copy, with up to 2, …
    let mut found: Vec<(usize, Stack<f64>)> = Vec::new();
    let most = limits.iter().copied().max().unwrap_or(0);
    let Some(layouts) = dither.layouts()? else { return Ok(vec![None; limits.len()]) };
    for count in COPIES.into_iter().filter(|n| *n <= most) {
        let Some(copies) = layouts.copies(count)? else { break };
        let stack = copies.ideal.try_map(|x| Ok::<f64, Error>(x.to_f64()))?;
        if !within(&stack, &request.budget) {
            break;
        }
        // The certificate is of another stack; only its δ is read here.
        let other = Solution { stack, ideal: None, ..best.clone() };
        let bound = bound(&deployed_part(part, &other, options, hidden_size)?);
        // Neurons more must gain more than noise.
        if bound < 0.97 * least {
            least = bound;
            found.push((count, other.stack));
        }
    }
    let allowed = |limit: &usize| found.iter().rev().find(|(count, _)| count <= limit).map(|(_, stack)| stack.clone());
    Ok(limits.iter().map(allowed).collect())
}

/// The geometric mean over engines of a response's bounds: one that nothing helps must not decide.
pub(super) fn bound(all: &[Deployed]) -> f64 {
    let logs = all.iter().map(|d| d.responses[0].outside.max(f64::MIN_POSITIVE).ln());
    if all.is_empty() { f64::INFINITY } else { (logs.sum::<f64>() / all.len() as f64).exp() }
}

/// One response under the arithmetics asked for; none if one of them overflows.
pub(super) fn deployed_part(
    part: &Part<'_>,
    s: &Solution,
    options: &Options,
    hidden_size: usize,
) -> Result<Vec<Deployed>> {
    let (block, claims) = lower(std::slice::from_ref(part), std::slice::from_ref(s), options, hidden_size)?;
    match options.deploy(Blocks::One(&block, &claims), &Reading::exact()) {
        Ok((deployed, _)) => Ok(deployed),
        Err(e) if e.is_unsupported() => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// What a layout is proved to do under the arithmetics asked for.
#[derive(Clone, Debug)]
pub struct LayoutBounds {
    /// hidden units
    pub neurons: usize,
    /// δ of each response's certificate
    pub deltas: Vec<f64>,
    /// one for each arithmetic
    pub deployed: Vec<Deployed>,
}

/// The bounds alone, for each limit of copies in turn, without the certificate in real arithmetic, which costs far more where there are many copies.
///
/// Errors: as [`compile`](super::compile).
pub fn one_layer_bounds(target: &Target, options: &Options, limits: &[usize]) -> Result<Vec<LayoutBounds>> {
    let hidden_size = check(target)?;
    let parts = parts(target)?;
    let solutions = |part: &Part<'_>| -> Result<Vec<Solution>> {
        let solver = Solver { options, hidden_size };
        let (best, _) = solver.for_rounding(part)?;
        let copies = choose(part, &solver.request(part), &best, options, hidden_size, limits)?;
        let solution = |stack: Option<Stack<f64>>| match stack {
            Some(stack) => Solution { stack, ideal: None, ..best.clone() },
            None => best.clone(),
        };
        Ok(copies.into_iter().map(solution).collect())
    };
    let all: Vec<Vec<Solution>> = parts.par_iter().map(solutions).collect::<Result<_>>()?;
    (0..limits.len())
        .into_par_iter()
        .map(|k| {
            let solutions: Vec<Solution> = all.iter().map(|s| s[k].clone()).collect();
            let (block, claims) = lower(&parts, &solutions, options, hidden_size)?;
            let (deployed, _) = options.deploy(Blocks::One(&block, &claims), &Reading::exact())?;
            let deltas = claims.iter().map(|c| c.delta).collect();
            Ok(LayoutBounds { neurons: block.intermediate_size(), deltas, deployed })
        })
        .collect()
}

/// How many copies of a neuron are tried.
const COPIES: [usize; 7] = [1, 2, 4, 8, 16, 32, MOST_COPIES];
/// Beyond it the rise's width decides, and the sums.
pub(super) const MOST_COPIES: usize = 64;

/// What z can be for ‖x‖ ≤ `norm`.
fn bounded(part: &Part<'_>, norm: Option<f64>) -> Option<Domain> {
    let norm = norm?;
    let pre = part.response.pre_activations.get(part.index)?;
    let reach = pre.w.iter().map(|w| w * w).sum::<f64>().sqrt() * norm + pre.b.abs();
    let domain = part.response.domain;
    Domain::new(domain.lo().max(-reach), domain.hi().min(reach)).ok()
}
