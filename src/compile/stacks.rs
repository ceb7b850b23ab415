//! A stack for every response, each solved as few times as need be.
//!
//! What a response depends on are a few constants. The first response of each shape is solved; the others of that shape take
//! over its construction with their own constants, and keep it where their own proof meets the tolerance. The first ones are
//! first in the order of the specification, so that the number of threads changes nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::{Options, Part, engines, lower};
use crate::certify::Status;
use crate::derive::{Reading, ResponseProof, derive_each};
use crate::error::{At, Result};
use crate::rational::Rational;
use crate::scaling;
use crate::solve::{Budget, Method, Request, Solution, constructed, judged, laid_out, like, solve};

/// A stack, and what was derived of its rows and columns where there is a bound on ‖x‖.
type Solved = (Solution, Option<ResponseProof>);

/// A stack for every part, in their order.
pub(super) fn solve_all(
    parts: &[Part<'_>],
    options: &Options,
    hidden_size: usize,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Vec<Solved>> {
    let solver = Solver { options, hidden_size };
    let done = AtomicUsize::new(0);
    let counted = |part: &Part<'_>, solved: Result<Solved>| {
        progress(1 + done.fetch_add(1, Ordering::Relaxed), parts.len());
        solved.at(|| part.response.name.clone())
    };
    progress(0, parts.len());
    let shapes: Vec<String> = parts.par_iter().map(|p| solver.shape(p)).collect();
    let mut first: BTreeMap<&str, usize> = BTreeMap::new();
    shapes.iter().enumerate().for_each(|(k, s)| {
        first.entry(s).or_insert(k);
    });
    let leaders: BTreeMap<usize, Solved> = first
        .values()
        .copied()
        .collect::<Vec<_>>()
        .into_par_iter()
        .map(|k| Ok((k, counted(&parts[k], solver.solve(&parts[k]))?)))
        .collect::<Result<_>>()?;
    let follow = |(k, part): (usize, &Part<'_>)| {
        let leader = &leaders[&first[shapes[k].as_str()]];
        if leaders.contains_key(&k) {
            return Ok(leaders[&k].clone());
        }
        let solved = match solver.like(part, &leader.0) {
            Ok(Some(solved)) => Ok(solved),
            Ok(None) => solver.solve(part),
            Err(e) => Err(e),
        };
        counted(part, solved)
    };
    parts.par_iter().enumerate().map(follow).collect()
}

/// A better rounding must be worth another row.
const WORTH: f64 = 0.98;

pub(super) struct Solver<'a> {
    pub options: &'a Options,
    pub hidden_size: usize,
}

impl Solver<'_> {
    pub(super) fn request<'p>(&'p self, part: &'p Part<'_>) -> Request<'p> {
        let options = self.options;
        // Rows β·w and biases β·b + γ must stay within the format's range, γ being at most β times what z takes.
        let pre = part.response.pre_activations.get(part.index);
        let widest = pre.map_or(0.0, |p| p.w.iter().fold(p.b.abs(), |a, w| a.max(w.abs())));
        let ends = [part.response.domain.lo(), part.response.domain.hi()];
        let reach = ends.into_iter().filter(|z| z.is_finite()).fold(64.0, |a: f64, z| a.max(z.abs()));
        // Beyond a million nobody's features reach; what overflows all the same is refused.
        let steepest = options.format.largest() / (2.0 * (widest + reach.min(1e6)));
        Request {
            target: &part.target,
            source: &options.source,
            form: options.form,
            format: options.format,
            domain: part.response.domain,
            budget: Budget {
                band: part.response.band,
                constant: options.biases,
                bias_format: Some(options.bias_format()),
                max_weight: options.budget.max_weight.min(steepest),
                ..options.budget
            },
        }
    }

    /// The response without its numbers, its domain, its band and how steep its neurons may be.
    fn shape(&self, part: &Part<'_>) -> String {
        let request = self.request(part);
        let text = request.target.to_string();
        let mut shape = String::with_capacity(text.len());
        let mut number = false;
        for c in text.chars() {
            let digit = c.is_ascii_digit() || c == '.';
            if !digit {
                shape.push(c);
            } else if !number {
                shape.push('#');
            }
            number = digit;
        }
        let (domain, budget) = (request.domain, &request.budget);
        let steepest = budget.max_weight.log2().floor();
        format!("{shape} {:?} {:?} {:?} {steepest}", domain.lo(), domain.hi(), budget.band)
    }

    /// ‖error‖ per unit of the write direction off the bands, once rows and columns are rounded, and the proof of it.
    fn lowered(&self, part: &Part<'_>, solution: &Solution) -> Result<(f64, ResponseProof)> {
        let one = std::slice::from_ref(part);
        let (block, claims) = lower(one, std::slice::from_ref(solution), self.options, self.hidden_size)?;
        let units = block.intermediate_size();
        let proof = derive_each(&block, &claims, units, self.options.norm, &Reading::exact())?.swap_remove(0);
        let length = part.response.write.iter().map(|x| x * x).sum::<f64>().sqrt();
        Ok((proof.rounding.as_ref().map_or(f64::INFINITY, |r| r.outside / length), proof))
    }

    /// The best certified stack for one response, in real arithmetic and in the engines' that are asked for.
    fn solve(&self, part: &Part<'_>) -> Result<Solved> {
        let (best, proof) = self.for_rounding(part)?;
        let request = self.request(part);
        let limit = [self.options.copies];
        let copies =
            match engines::choose(part, &request, &best, self.options, self.hidden_size, &limit)?.pop().flatten() {
                Some(stack) => judged(&request, stack, Method::Copies)?,
                None => None,
            };
        match copies {
            Some(copies) => {
                let (_, proof) = self.lowered(part, &copies)?;
                Ok((copies, Some(proof)))
            }
            None => Ok((best, proof)),
        }
    }

    /// The best stack for one response in real arithmetic. Where its rows and columns, once rounded, miss the tolerance in the stream, the other
    /// constructions are lowered too: a pair of equal and opposite columns survives rounding better than a shorter stack.
    pub(super) fn for_rounding(&self, part: &Part<'_>) -> Result<Solved> {
        let (solution, proof) = self.least_rounding(part)?;
        match proof {
            Some(proof) => self.well_scaled(part, solution, proof).map(|(s, p)| (s, Some(p))),
            None => Ok((solution, None)),
        }
    }

    fn least_rounding(&self, part: &Part<'_>) -> Result<Solved> {
        let request = self.request(part);
        let best = solve(&request)?;
        let (Some(_), Some(tolerance)) = (self.options.norm, self.options.budget.tolerance) else {
            return Ok((best, None));
        };
        let (mut least, mut proof) = self.lowered(part, &best)?;
        if least <= tolerance || best.method == Method::Fit {
            return Ok((best, Some(proof)));
        }
        let mut chosen = best;
        for other in constructed(&request)? {
            let (error, own) = self.lowered(part, &other)?;
            // A neuron more must gain more than noise.
            if error < 0.9 * least {
                (least, proof) = (error, own);
                chosen = Solution { binding: chosen.binding.clone(), ..other };
            }
        }
        Ok((chosen, Some(proof)))
    }

    /// The same stack with the inner weights that the number format rounds best, where that is worth something: in 16 bits, where σ(fu) = f^d·σ(u), or
    /// nearly so. Nothing else changes, so that all rows keep their ratios.
    fn well_scaled(
        &self,
        part: &Part<'_>,
        solution: Solution,
        proof: ResponseProof,
    ) -> Result<(Solution, ResponseProof)> {
        let degree = match solution.method {
            Method::Construction => self.options.source.homogeneity(),
            Method::Steep => Some(self.options.source.homogeneity().unwrap_or(1)),
            _ => None,
        };
        let steepest = solution.stack.neurons.iter().map(|n| n.weight.abs()).fold(0.0, f64::max);
        let pre = part.response.pre_activations.get(part.index);
        let short = self.options.format.bytes() == 2 && steepest > 0.0;
        let (Some(degree), Some(pre), Some(ideal), true) = (degree, pre, &solution.ideal, short) else {
            return Ok((solution, proof));
        };
        let request = self.request(part);
        let least = if 2.0 * steepest <= request.budget.max_weight { 1.0 } else { 0.5 };
        let row: Vec<f64> = pre.w.iter().map(|w| steepest * w).collect();
        let factor = Rational::from_float(scaling::best(&row, self.options.format, [least, 2.0 * least]))
            .unwrap_or_else(Rational::one);
        let ideal = ideal.scaled(&factor, degree);
        let Some(stack) = laid_out(&request, &ideal)? else { return Ok((solution, proof)) };
        // The other's certificate stands in until this one's own is there; `lower` reads its band only.
        let scaled = Solution { stack, ideal: Some(ideal), ..solution.clone() };
        let (_, own) = self.lowered(part, &scaled)?;
        let outside = |p: &ResponseProof| p.rounding.as_ref().map_or(f64::INFINITY, |r| r.outside);
        // What rounding costs is not all: lattices of pre-activations matter as well.
        let engines =
            |s: &Solution| engines::deployed_part(part, s, self.options, self.hidden_size).map(|d| engines::bound(&d));
        let gains = outside(&own) < WORTH * outside(&proof)
            && (self.options.short_rows().next().is_none() || engines(&scaled)? < engines(&solution)?);
        Ok(if gains { (Solution { certificate: own.certificate.clone(), ..scaled }, own) } else { (solution, proof) })
    }

    /// The leader's construction with this part's constants, if it is proved to meet the tolerance as the leader did.
    fn like(&self, part: &Part<'_>, leader: &Solution) -> Result<Option<Solved>> {
        let (Some(_), Some(tolerance), Some(recipe)) =
            (self.options.norm, self.options.budget.tolerance, &leader.recipe)
        else {
            return Ok(None);
        };
        // Copies are placed on each row's own lattice.
        let own = self.options.short_rows().next().is_some();
        if own || leader.certificate.status() == Status::BestEffort {
            return Ok(None);
        }
        let Some((ideal, stack)) = like(&self.request(part), recipe)? else { return Ok(None) };
        // The leader's certificate stands in until this part's own is there; `lower` reads its band only.
        let draft = Solution { stack, ideal: Some(ideal), ..leader.clone() };
        let (error, proof) = self.lowered(part, &draft)?;
        if !(error <= tolerance) || proof.figures().status == Status::BestEffort {
            return Ok(None);
        }
        let own = Solution { certificate: proof.certificate.clone(), ..draft };
        self.well_scaled(part, own, proof).map(|(s, p)| Some((s, Some(p))))
    }
}
