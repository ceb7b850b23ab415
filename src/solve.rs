//! The strategy: constructions first, fits where nothing can be constructed, and the certifier's word on each.
//!
//! ```text
//! target → exact constructions → steep ones → fits → rounded to the format → certified → the best within the budgets
//! ```
//!
//! Candidates are compared by what the certifier proved about the rounded weights, never by what a search believed.

mod fits;
mod fronts;
mod inert;
mod values;

use argmin::core::{CostFunction, Executor};
use argmin::solver::brent::BrentOpt;

use crate::activation::Activation;
use crate::certify::{Certificate, Claim, Domain, Figures, Status, certify, jumps};
use crate::error::{Error, Result};
use crate::exact::{Setting, constructions, steep, steep_steps};
use crate::expr::Expr;
use crate::format::Format;
use crate::minimax::Alternation;
use crate::number::Number;
use crate::rational::Rational;
use crate::stack::{Form, IdealStack, Stack};
use fits::{Wanted, fit, most_fitted};
pub use fronts::{by_neurons, pareto};
pub(crate) use values::Values;

/// The default limit of weights and outputs.
pub const DEFAULT_LIMIT: f64 = 1_048_576.0;
/// What counts as vanishing, where [`Budget::inert`] asks for it.
pub const INERT: f64 = 1e-12;
/// A construction this close (relative to the target's size) leaves nothing for a fit to gain.
const GOOD_ENOUGH: f64 = 1e-5;

/// What a stack may cost and how close it must come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// the most neurons
    pub neurons: usize,
    /// the largest |weight| (gate weight when gated)
    pub max_weight: f64,
    /// the largest |out|·|weight|
    pub max_out: f64,
    /// the largest Σ|out| of a fit, constructions being what they are
    pub max_total: f64,
    /// prefer stacks that vanish, to within [`INERT`], where the target does (and as far from it as the band is wide)
    pub inert: bool,
    /// ε to reach; `None` asks for the smallest
    pub tolerance: Option<f64>,
    /// δ around jumps; targets without jumps ignore it
    pub band: f64,
    /// may there be an output constant?
    pub constant: bool,
    /// the format of biases and of the output constant, where it is not that of the weights
    pub bias_format: Option<Format>,
}

impl Default for Budget {
    fn default() -> Self {
        Budget {
            neurons: 32,
            max_weight: DEFAULT_LIMIT,
            max_out: DEFAULT_LIMIT,
            max_total: DEFAULT_LIMIT,
            inert: false,
            tolerance: None,
            band: 0.0,
            constant: true,
            bias_format: None,
        }
    }
}

impl Budget {
    /// Refuses budgets that are impossible by their own terms.
    pub fn check(&self) -> Result<()> {
        let positive = |name: &str, x: f64| {
            if x > 0.0 && x.is_finite() {
                Ok(())
            } else {
                Err(Error::input(format!("{name} is {x}; it must be a positive, finite number")))
            }
        };
        if self.neurons == 0 {
            return Err(Error::input("a budget of 0 neurons").help("allow at least 1"));
        }
        positive("the weight limit", self.max_weight)?;
        positive("the output limit", self.max_out)?;
        positive("the limit on the sum of outputs", self.max_total)?;
        for (name, x) in [("the tolerance", self.tolerance.unwrap_or(0.0)), ("the band", self.band)] {
            if !(x >= 0.0 && x.is_finite()) {
                return Err(Error::input(format!("{name} is {x}; it must be a finite number, at least 0")));
            }
        }
        Ok(())
    }
}

/// One scalar problem.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// φ, a function of z
    pub target: &'a Expr,
    /// the host's activation
    pub source: &'a Activation,
    /// the host's form
    pub form: Form,
    /// the format of the weights
    pub format: Format,
    /// where the certificate must hold
    pub domain: Domain,
    /// limits
    pub budget: Budget,
}

impl Request<'_> {
    fn bias_format(&self) -> Format {
        self.budget.bias_format.unwrap_or(self.format)
    }

    fn setting(&self, radius: Rational) -> Setting<'_> {
        Setting {
            source: self.source,
            gated: self.form == Form::Gated,
            constant: self.budget.constant,
            domain: self.domain,
            unit: power_of_two(self.budget.max_weight.min(1.0)),
            radius,
            exact: true,
        }
    }
}

/// How a stack came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// an algebraic identity
    Construction,
    /// an identity of relu, with a steep smooth activation in its place
    Steep,
    /// steep neurons in copies, whose roundings in 16 bits average out
    Copies,
    /// a minimax fit
    Fit,
}

/// A certified stack.
#[derive(Clone, Debug)]
pub struct Solution {
    /// rounded to the format
    pub stack: Stack<f64>,
    /// before rounding, where it is a construction
    pub ideal: Option<IdealStack>,
    /// what was proved
    pub certificate: Certificate,
    /// how it was found
    pub method: Method,
    /// of a fit: how often its error was seen to alternate between its extremes before rounding
    pub alternation: Option<Alternation>,
    /// which budget kept a better candidate out, in words
    pub binding: Option<String>,
    /// how to construct the like of it
    pub(crate) recipe: Option<Recipe>,
}

/// Which of the constructions a stack is: the same one serves responses that differ in their constants only.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Recipe {
    /// slope of the steep neurons; `None`: an exact construction
    beta: Option<f64>,
    radius: Rational,
    ordinal: usize,
}

struct Candidate {
    stack: Stack<f64>,
    ideal: Option<IdealStack>,
    method: Method,
    alternation: Option<Alternation>,
}

impl Solution {
    /// The largest |weight|.
    pub fn max_weight(&self) -> f64 {
        self.stack.neurons.iter().map(|n| n.weight.abs()).fold(0.0, f64::max)
    }

    /// Σ|out|
    pub fn total(&self) -> f64 {
        self.stack.neurons.iter().map(|n| n.out.abs()).sum()
    }

    /// The error that solutions are compared by: off the bands or the overshoot inside them, whichever is larger, and η.
    pub fn error(&self) -> f64 {
        let f = self.certificate.figures();
        f.epsilon_outside.unwrap_or(f.epsilon).max(f.overshoot.unwrap_or(0.0)) + f.eta
    }
}

/// The best certified stack within the budgets.
///
/// Errors: a budget that is impossible by its own terms, a target that jumps without a band, a target or a domain that
/// cannot be certified, or no stack at all within the limits. A tolerance that is missed is `Status::BestEffort`.
pub fn solve(request: &Request<'_>) -> Result<Solution> {
    request.budget.check()?;
    let Request { target, source, domain, .. } = request;
    let (jumps, delta) = band(request)?;
    let mut field = Field::new(request, delta);
    construct(&mut field, &jumps)?;
    if request.budget.inert && !field.is_inert() {
        inert::construct(&mut field)?;
    }
    if field.wants_fit(size(target, *domain)?, request.budget.neurons)? {
        fit(request, delta, &jumps, &mut field, Wanted::Best)?;
    }
    let binding = field.binding.take();
    let Some(mut solution) = field.best else {
        return Err(Error::unsupported(format!("no stack of {source} neurons for {target} within the limits")).help(
            binding.map_or_else(
                || "choose a bounded domain, or another source".to_string(),
                |b| format!("what stands in the way: {b}"),
            ),
        ));
    };
    let missed = solution.certificate.status() == Status::BestEffort;
    solution.binding =
        if missed || binding.is_some() { binding.or_else(|| Some(blame(request, &solution))) } else { None };
    Ok(solution)
}

/// Every certified construction within the budgets, exact or steep, in the order of their discovery: for callers whose
/// own rounding decides which serves best.
///
/// Errors: those of [`solve`].
pub fn constructed(request: &Request<'_>) -> Result<Vec<Solution>> {
    request.budget.check()?;
    let (jumps, delta) = band(request)?;
    let mut field = Field { all: Some(Vec::new()), ..Field::new(request, delta) };
    construct(&mut field, &jumps)?;
    // Nothing at all: where a format ruins every construction, the constant in the middle may be the best.
    let (lo, hi) =
        Values::new(request.target, request.domain)?.range(request.domain.lo().max(-1e6), request.domain.hi().min(1e6));
    let constant = if request.budget.constant { request.bias_format().round(0.5 * (lo + hi)) } else { 0.0 };
    if constant.is_finite() {
        let stack = Stack { source: request.source.clone(), constant, neurons: vec![] };
        field.enter(Candidate { stack, ideal: None, method: Method::Construction, alternation: None })?;
    }
    Ok(field.all.unwrap_or_default())
}

/// Does a stack keep to the limits?
pub fn within(stack: &Stack<f64>, budget: &Budget) -> bool {
    over_limit(stack, budget).is_none()
}

/// A stack of a caller's own, certified before it is rounded; `None` where it exceeds the budgets, or nothing can be proved of it.
///
/// Errors: those of [`solve`].
pub fn judged(request: &Request<'_>, stack: Stack<f64>, method: Method) -> Result<Option<Solution>> {
    request.budget.check()?;
    let (_, delta) = band(request)?;
    let mut field = Field::new(request, delta);
    field.enter(Candidate { stack, ideal: None, method, alternation: None })?;
    Ok(field.best)
}

/// The target's jumps, and the band that they are given.
fn band(request: &Request<'_>) -> Result<(Vec<f64>, f64)> {
    let jumps = jumps(request.target, request.domain)?;
    if let (Some(at), true) = (jumps.first(), request.budget.band == 0.0) {
        return Err(Error::input(format!("the target jumps at z = {at}, and no continuous block can follow a jump"))
            .help("allow a band around the jump (--band 0.1, or `band` in the specification)"));
    }
    let delta = if jumps.is_empty() { 0.0 } else { request.budget.band };
    Ok((jumps, delta))
}

/// Enters exact constructions, and steep ones where nothing is exact.
fn construct(field: &mut Field<'_>, jumps: &[f64]) -> Result<()> {
    let (request, delta) = (field.request, field.delta);
    for radius in radii(delta) {
        let found = constructions(request.target, &request.setting(radius.clone()))?;
        for (ordinal, ideal) in found.into_iter().enumerate() {
            field.recipe = Some(Recipe { beta: None, radius: radius.clone(), ordinal });
            field.enter_ideal(ideal, Method::Construction)?;
        }
        if field.best.as_ref().is_some_and(|b| matches!(b.certificate.status(), Status::Exact)) {
            break;
        }
    }
    field.recipe = None;
    if field.has_exact() {
        return Ok(());
    }
    for beta in steepnesses(request, jumps) {
        // Half of the band at most is left to the knee's tail (it reaches about 40/β).
        let margin = (40.0 / beta).min(0.5 * delta);
        for radius in radii(delta - margin) {
            enter_steep(field, beta, radius)?;
        }
        // Where the knee is as wide as the band, its share of the band is worth a search.
        if beta * delta < 100.0 && delta > 0.0 {
            enter_best_radius(field, beta, delta)?;
        }
        if request.format == Format::F64 || field.met() {
            break;
        }
    }
    Ok(())
}

/// Constructions for relu (or a step) with steep neurons of slope β in their place, ramps of the given half width.
fn steep_stacks(request: &Request<'_>, target: &Expr, beta: f64, radius: Rational) -> Result<Vec<IdealStack>> {
    let setting = request.setting(radius);
    let beta = Number::from_f64(beta).expect("finite");
    let mut out = steep(target, &setting, &beta)?;
    out.extend(steep_steps(target, &setting, &beta)?);
    Ok(out)
}

fn enter_steep(field: &mut Field<'_>, beta: f64, radius: Rational) -> Result<()> {
    for (ordinal, ideal) in
        steep_stacks(field.request, field.request.target, beta, radius.clone())?.into_iter().enumerate()
    {
        field.recipe = Some(Recipe { beta: Some(beta), radius: radius.clone(), ordinal });
        field.enter_ideal(ideal, Method::Steep)?;
    }
    field.recipe = None;
    Ok(())
}

/// The stack that a recipe gives for another response, rounded but not certified: for callers that certify what they
/// make of it. `None` where it gives none within the limits.
pub(crate) fn like(request: &Request<'_>, recipe: &Recipe) -> Result<Option<(IdealStack, Stack<f64>)>> {
    let radius = recipe.radius.clone();
    let found = match recipe.beta {
        None => constructions(request.target, &request.setting(radius))?,
        Some(beta) => steep_stacks(request, request.target, beta, radius)?,
    };
    let Some(ideal) = found.into_iter().nth(recipe.ordinal) else { return Ok(None) };
    Ok(laid_out(request, &ideal)?.map(|stack| (ideal, stack)))
}

/// A construction in the numbers of the format, if it keeps to the limits.
pub(crate) fn laid_out(request: &Request<'_>, ideal: &IdealStack) -> Result<Option<Stack<f64>>> {
    let stack = rounded(request, ideal)?;
    Ok(over_limit(&stack, &request.budget).is_none().then_some(stack))
}

/// A construction in the numbers of the format.
fn rounded(request: &Request<'_>, ideal: &IdealStack) -> Result<Stack<f64>> {
    let (format, biases) = (request.format, request.bias_format());
    let mut stack = ideal.try_map(|x| Ok::<f64, Error>(x.to_f64()))?;
    stack.constant = biases.round(stack.constant);
    for n in &mut stack.neurons {
        (n.weight, n.bias, n.out) = (format.round(n.weight), biases.round(n.bias), format.round(n.out));
        n.up = n.up.map(|(w, b)| (format.round(w), biases.round(b)));
    }
    Ok(stack)
}

/// How bad a ramp of half width `radius` turns out: a narrow one overshoots, a wide one leaks out of the band.
struct RampError<'a, 'b> {
    field: &'a Field<'b>,
    beta: f64,
}

impl CostFunction for RampError<'_, '_> {
    type Param = f64;
    type Output = f64;

    fn cost(&self, radius: &f64) -> std::result::Result<f64, argmin::core::Error> {
        let radius = Rational::from_float(*radius).unwrap_or_default();
        let errors = steep_stacks(self.field.request, self.field.request.target, self.beta, radius)?
            .into_iter()
            .filter_map(|ideal| {
                let stack = ideal.try_map(|x| Ok::<f64, Error>(x.to_f64())).ok()?;
                let f = self.field.certificate(&stack, None).ok()?.figures().clone();
                Some(f.epsilon_outside.unwrap_or(f.epsilon).max(f.overshoot.unwrap_or(0.0)))
            });
        Ok(errors.fold(f64::MAX, f64::min))
    }
}

/// Brent's search for the ramp's half width in (0, δ].
fn enter_best_radius(field: &mut Field<'_>, beta: f64, delta: f64) -> Result<()> {
    const EVALUATIONS: u64 = 24;
    let problem = RampError { field, beta };
    let search = BrentOpt::new(0.02 * delta, delta);
    let found = Executor::new(problem, search).configure(|state| state.max_iters(EVALUATIONS)).run();
    let radius = found.ok().and_then(|r| r.state.best_param).and_then(Rational::from_float);
    match radius {
        Some(radius) if radius.is_positive() => enter_steep(field, beta, radius),
        _ => Ok(()),
    }
}

/// In words: what would have to give for a smaller error.
fn blame(request: &Request<'_>, solution: &Solution) -> String {
    if request.format != Format::F64 && solution.method != Method::Fit {
        format!("the number format ({})", request.format)
    } else if solution.method == Method::Steep || solution.max_weight() >= 0.99 * request.budget.max_weight {
        format!("the weight limit ({})", request.budget.max_weight)
    } else if solution.stack.neurons.len() < request.budget.neurons {
        format!(
            "the search, which found nothing better with up to {} neurons",
            request.budget.neurons.min(most_fitted(request))
        )
    } else {
        format!("the number of neurons ({})", request.budget.neurons)
    }
}

/// Half widths of the ramps to try: a power of two (whose slopes are exact in every format), and the whole band.
fn radii(delta: f64) -> Vec<Rational> {
    if delta <= 0.0 {
        return vec![Rational::zero()];
    }
    let exact = |x: f64| Rational::from_float(x).expect("finite");
    let power = power_of_two_below(delta);
    if power == delta { vec![exact(delta)] } else { vec![exact(power), exact(delta)] }
}

fn power_of_two_below(x: f64) -> f64 {
    2f64.powi(x.log2().floor() as i32).min(x)
}

fn power_of_two(x: f64) -> Rational {
    Rational::from_float(power_of_two_below(x)).expect("finite")
}

/// Slopes for steep neurons: the largest power of two that the limits and the format's range allow, and gentler ones
/// for formats whose small numbers run out.
fn steepnesses(request: &Request<'_>, jumps: &[f64]) -> Vec<f64> {
    let furthest = jumps.iter().map(|j| j.abs()).fold(1.0, f64::max) + request.budget.band;
    let top = request.budget.max_weight.min(request.format.largest() / (4.0 * furthest));
    if !(top > 0.0) {
        return vec![];
    }
    let top = power_of_two_below(top);
    if request.format == Format::F64 { vec![top] } else { [1.0, 16.0, 256.0, 4096.0].map(|k| top / k).to_vec() }
}

/// The largest |φ| seen on the domain (its central part, if infinite): for relative judgements only.
fn size(target: &Expr, domain: Domain) -> Result<f64> {
    let (l, h) = (domain.lo().max(-64.0), domain.hi().min(64.0));
    let (l, h) = if l < h { (l, h) } else { (domain.lo().max(-1e6), domain.hi().min(1e6)) };
    let values = Values::new(target, domain)?;
    Ok((0..=256).map(|k| values.at(l + (h - l) * f64::from(k) / 256.0).abs()).fold(0.0, f64::max))
}

/// The candidates so far.
struct Field<'a> {
    request: &'a Request<'a>,
    delta: f64,
    best: Option<Solution>,
    binding: Option<String>,
    certified: usize,
    /// everything that was certified, where a caller wants to choose
    all: Option<Vec<Solution>>,
    /// of the construction that is entered
    recipe: Option<Recipe>,
    /// the steepest construction, before rounding
    steepest: Option<IdealStack>,
}

impl<'a> Field<'a> {
    fn new(request: &'a Request<'a>, delta: f64) -> Self {
        Field { request, delta, best: None, binding: None, certified: 0, all: None, recipe: None, steepest: None }
    }

    fn has_exact(&self) -> bool {
        self.best.as_ref().is_some_and(|b| b.ideal.is_some() && b.method == Method::Construction)
    }

    fn enter_ideal(&mut self, ideal: IdealStack, method: Method) -> Result<()> {
        let stack = rounded(self.request, &ideal)?;
        if method == Method::Steep && over_limit(&stack, &self.request.budget).is_none() {
            self.steepest.get_or_insert_with(|| ideal.clone());
        }
        self.enter(Candidate { stack, ideal: Some(ideal), method, alternation: None })?;
        Ok(())
    }

    fn certificate(&self, stack: &Stack<f64>, ideal: Option<&IdealStack>) -> Result<Certificate> {
        let Request { target, domain, budget, .. } = self.request;
        certify(&Claim { target, stack, ideal, domain: *domain, delta: self.delta, tolerance: budget.tolerance })
    }

    /// Is a tolerance asked for, and met by the best so far?
    fn met(&self) -> bool {
        let met = |b: &Solution| b.certificate.status() != Status::BestEffort;
        self.request.budget.tolerance.is_some() && self.best.as_ref().is_some_and(met)
    }

    /// Certifies a candidate that keeps to the limits, and keeps it if it is the best; its ε, where it was certified.
    fn enter(&mut self, candidate: Candidate) -> Result<Option<f64>> {
        let budget = &self.request.budget;
        let Candidate { stack, ideal, method, alternation } = candidate;
        if let Some(reason) = over_limit(&stack, budget) {
            self.binding.get_or_insert(reason);
            return Ok(None);
        }
        // More neurons than one that meets the tolerance needs are never better.
        if self.all.is_none()
            && self.best.as_ref().is_some_and(|b| self.meets(b) && b.stack.neurons.len() < stack.neurons.len())
        {
            return Ok(None);
        }
        let certificate = match self.certificate(&stack, ideal.as_ref()) {
            Ok(c) => c,
            // No finite bound for this candidate: another may have one.
            Err(e) if e.is_unsupported() && self.certified > 0 => return Ok(None),
            Err(e) if e.is_unsupported() => {
                self.binding.get_or_insert(e.to_string());
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        self.certified += 1;
        let epsilon = certificate.epsilon();
        let recipe = self.recipe.clone().filter(|_| ideal.is_some());
        let solution = Solution { stack, ideal, certificate, method, alternation, binding: None, recipe };
        if let Some(all) = &mut self.all {
            all.push(solution.clone());
        }
        let better = self.best.as_ref().is_none_or(|b| self.rank(&solution) < self.rank(b));
        if better {
            self.best = Some(solution);
        }
        Ok(Some(epsilon))
    }

    /// Smaller is better: first what meets the tolerance with the fewest neurons, else the smallest error.
    fn rank(&self, s: &Solution) -> (bool, u8, Rank, Rank) {
        let f = s.certificate.figures();
        let leaks = self.request.budget.inert && !vanishes(f);
        let outside = s.error();
        let neurons = s.stack.neurons.len() as f64;
        match self.request.budget.tolerance {
            Some(t) if outside <= t => (leaks, 0, Rank(neurons), Rank(outside)),
            Some(t) if f.epsilon <= t => (leaks, 1, Rank(outside), Rank(neurons)),
            // Errors that differ by 2 %, or by less than rounding, are the same: then fewer neurons win.
            _ => (leaks, 2, Rank((outside.max(1e-13).log2() * 32.0).floor()), Rank(neurons + outside.min(1.0))),
        }
    }

    /// Is it all that was asked for?
    fn meets(&self, s: &Solution) -> bool {
        let rank = self.rank(s);
        !rank.0 && rank.1 == 0
    }

    /// Does the best so far vanish where the target does?
    fn is_inert(&self) -> bool {
        self.best.as_ref().is_some_and(|b| vanishes(b.certificate.figures()))
    }

    /// Is a fit of up to so many neurons worth a search?
    fn wants_fit(&self, scale: f64, neurons: usize) -> Result<bool> {
        let Some(best) = &self.best else { return Ok(true) };
        // Fits come close to 0 where the target is 0, and no closer than elsewhere.
        if self.request.budget.inert && self.is_inert() {
            return Ok(false);
        }
        if self.met() || self.has_exact() {
            return Ok(false);
        }
        // What is off because of the format, a fit cannot mend: judge constructions before rounding, the best one and, since
        // a format may prefer a gentler one, the steepest.
        let enough = self.request.budget.tolerance.unwrap_or(0.0).max(GOOD_ENOUGH * scale);
        for ideal in best.ideal.iter().chain(&self.steepest) {
            let unrounded = ideal.try_map(|x| Ok::<f64, Error>(x.to_f64()))?;
            if unrounded.neurons.len() <= neurons && self.certificate(&unrounded, None)?.epsilon() <= enough {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Is what is left where the target is 0 next to nothing?
fn vanishes(f: &Figures) -> bool {
    f.leak.is_none_or(|leak| leak <= INERT)
}

/// A float ordered as a number.
#[derive(PartialEq, PartialOrd)]
struct Rank(f64);

fn over_limit(stack: &Stack<f64>, budget: &Budget) -> Option<String> {
    if !stack.constant.is_finite() {
        return Some("the range of the number format".into());
    }
    if stack.neurons.len() > budget.neurons {
        return Some(format!("the number of neurons ({} where {} are needed)", budget.neurons, stack.neurons.len()));
    }
    if !budget.constant && stack.constant != 0.0 {
        return Some("the output constant, which is not allowed".into());
    }
    for n in &stack.neurons {
        let numbers = [n.weight, n.bias, n.out, n.up.map_or(0.0, |u| u.0), n.up.map_or(0.0, |u| u.1)];
        if numbers.iter().any(|x| !x.is_finite()) {
            return Some("the range of the number format".into());
        }
        if n.weight.abs() > budget.max_weight {
            return Some(format!("the weight limit ({} where {} is needed)", budget.max_weight, n.weight.abs()));
        }
        if n.out.abs() * n.weight.abs() > budget.max_out {
            return Some(format!("the output limit ({} where {} is needed)", budget.max_out, (n.out * n.weight).abs()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn solved(target: &str, source: &str, form: Form, domain: (f64, f64), budget: Budget) -> Solution {
        let target: Expr = target.parse().unwrap();
        let source: Activation = source.parse().unwrap();
        let domain = Domain::new(domain.0, domain.1).unwrap();
        let request = Request { target: &target, source: &source, form, format: Format::F64, domain, budget };
        solve(&request).unwrap_or_else(|e| panic!("{target} from {source}: {e}"))
    }

    const R: (f64, f64) = (f64::NEG_INFINITY, f64::INFINITY);
    const B: (f64, f64) = (-8.0, 8.0);

    #[test]
    fn what_can_be_constructed_is_constructed() {
        use Form::{Gated, Plain};
        // target, source, form, domain, neurons, status: the rows of the table of exact constructions
        for (target, source, form, domain, neurons, status) in [
            ("relu(z)", "relu", Plain, R, 1, Status::Exact),
            ("leaky_relu(z)", "relu", Plain, R, 2, Status::Exact),
            ("abs(z)", "relu", Plain, R, 2, Status::Exact),
            ("z", "relu", Plain, R, 2, Status::Exact),
            ("z", "relu", Plain, B, 1, Status::Exact),
            ("relu6(z)", "relu", Plain, R, 2, Status::Exact),
            ("hardtanh(z)", "relu", Plain, R, 2, Status::Exact),
            ("hardsigmoid(z)", "relu", Plain, R, 2, Status::Exact),
            ("clamp(z, -1, 2)", "relu", Plain, R, 2, Status::Exact),
            ("-relu(z - 3)", "leaky_relu", Plain, B, 2, Status::Exact),
            ("relu(z)", "leaky_relu", Plain, R, 2, Status::Exact),
            ("relu(z)", "abs", Plain, B, 2, Status::Exact),
            ("hardtanh(z)", "relu6", Plain, R, 1, Status::Exact),
            ("relu(z)", "hardtanh", Plain, B, 1, Status::Exact),
            ("3 * z - 1", "silu", Plain, R, 2, Status::Exact),
            ("z", "gelu", Plain, R, 2, Status::Exact),
            ("z", "gelu_tanh", Plain, R, 2, Status::Exact),
            ("z", "quick_gelu", Plain, R, 2, Status::Exact),
            ("z", "softplus", Plain, R, 2, Status::Exact),
            ("z", "hardswish", Plain, R, 2, Status::Exact),
            ("z", "elu", Plain, B, 1, Status::Exact),
            ("z * z", "relu2", Plain, R, 2, Status::Exact),
            ("z", "relu2", Plain, R, 4, Status::Exact),
            ("relu2(z - 1) + z * z", "relu2", Plain, R, 3, Status::Exact),
            ("z * z - z", "silu", Gated, R, 2, Status::Exact),
            ("hardswish(z)", "relu", Gated, R, 2, Status::Exact),
            ("relu2(z)", "relu", Gated, R, 1, Status::Exact),
            ("silu(z)", "sigmoid", Gated, R, 1, Status::Exact),
            ("z * sigmoid(2 * z)", "silu", Plain, R, 1, Status::Exact),
            ("quick_gelu(z)", "silu", Plain, R, 1, Status::Exact),
            ("silu(z)", "quick_gelu", Plain, R, 1, Status::Exact),
            ("swish:3(z)", "silu", Plain, R, 1, Status::Exact),
            ("tanh(z)", "sigmoid", Plain, R, 1, Status::Exact),
            ("sigmoid(z)", "tanh", Plain, R, 1, Status::Exact),
            ("celu:2(z)", "elu", Plain, R, 1, Status::Exact),
            ("selu(z)", "elu:1.6732632423543772848170429916717", Plain, R, 1, Status::Exact),
            ("softsign(2 * z)", "softsign", Plain, R, 1, Status::Exact),
            ("mish(z) + 1", "mish", Plain, R, 1, Status::Exact),
            ("2 * silu(z) - silu(3 * z - 1) + z", "silu", Plain, R, 4, Status::Exact),
            ("step(z - 2)", "relu", Plain, R, 2, Status::ExactOutside),
            ("jumprelu(z, 1.5)", "relu", Plain, R, 2, Status::ExactOutside),
            ("(8 - z) * step(z - 1.5)", "relu", Gated, R, 2, Status::ExactOutside),
            ("step(z - 2)", "hardtanh", Plain, R, 1, Status::ExactOutside),
            ("step(z - 2)", "leaky_relu", Plain, R, 2, Status::ExactOutside),
            ("step(z - 2)", "relu2", Plain, R, 3, Status::ExactOutside),
            ("jumprelu(z, 1.5)", "relu2", Plain, R, 3, Status::ExactOutside),
            ("z * z * step(z - 1)", "relu2", Plain, R, 3, Status::ExactOutside),
            ("(8 - z) * step(z - 1.5)", "relu2", Gated, R, 3, Status::ExactOutside),
        ] {
            let budget = Budget { neurons: 8, band: 0.25, ..Budget::default() };
            let s = solved(target, source, form, domain, budget);
            let f = s.certificate.figures();
            assert_eq!(
                (f.status, s.stack.neurons.len()),
                (status, neurons),
                "{target} from {source}: {f:?} {:?}",
                s.stack
            );
            let worst = f.epsilon_outside.unwrap_or(f.epsilon);
            assert!(worst <= 1e-13 && f.eta <= 1e-15, "{target} from {source}: {f:?}");
        }
    }

    #[test]
    fn without_a_constant_neurons_carry_it() {
        for (target, source, neurons) in
            [("hardtanh(z)", "relu", 3), ("z + 1", "silu", 4), ("z + 1", "relu", 3), ("1/3", "sigmoid", 1)]
        {
            let budget = Budget { constant: false, ..Budget::default() };
            let s = solved(target, source, Form::Plain, R, budget);
            assert_eq!(
                (s.certificate.status(), s.stack.neurons.len(), s.stack.constant),
                (Status::Exact, neurons, 0.0),
                "{target}"
            );
        }
    }

    #[test]
    fn steep_neurons_and_fits_are_certified() {
        for (target, source, form, domain, neurons, constant, bound) in [
            ("gelu(z)", "silu", Form::Plain, B, 1, false, 0.0145),
            ("gelu(z)", "relu", Form::Plain, B, 8, true, 8e-3),
            ("relu(z)", "silu", Form::Plain, R, 1, true, 0.2785 / DEFAULT_LIMIT),
            ("relu(z)", "relu2", Form::Plain, R, 2, true, 0.25 / DEFAULT_LIMIT),
            ("relu6(z)", "relu2", Form::Plain, R, 4, true, 0.25 / DEFAULT_LIMIT),
            ("z * relu(z - 1)", "relu2", Form::Gated, R, 3, true, 0.25 / DEFAULT_LIMIT),
            ("jumprelu(z, 1.5)", "silu", Form::Gated, (-110.0, 140.0), 3, true, 1e-3),
            ("jumprelu(z, 1.5)", "gelu", Form::Plain, (-110.0, 140.0), 3, true, 1e-3),
            ("step(z - 2)", "sigmoid", Form::Plain, R, 1, true, 1e-9),
            ("silu(z) * step(z - 2)", "silu", Form::Plain, B, 6, true, 0.2),
        ] {
            let budget = Budget { neurons, constant, band: 0.1, ..Budget::default() };
            let s = solved(target, source, form, domain, budget);
            let f = s.certificate.figures();
            assert!(f.epsilon <= bound, "{target} from {source}: {f:?} by {:?}", s.method);
        }
    }

    #[test]
    fn impossible_budgets_are_errors_and_missed_tolerances_are_not() {
        let target: Expr = "gelu(z)".parse().unwrap();
        let request = |budget| Request {
            target: &target,
            source: &Activation::Silu,
            form: Form::Plain,
            format: Format::F64,
            domain: Domain::new(-8.0, 8.0).unwrap(),
            budget,
        };
        let base = Budget::default();
        for bad in [
            Budget { neurons: 0, ..base },
            Budget { max_weight: 0.0, ..base },
            Budget { max_out: f64::NAN, ..base },
            Budget { tolerance: Some(-1.0), ..base },
            Budget { band: f64::INFINITY, ..base },
        ] {
            assert!(solve(&request(bad)).unwrap_err().is_input());
        }
        let s = solve(&request(Budget { neurons: 1, tolerance: Some(1e-9), ..base })).unwrap();
        assert_eq!(s.certificate.status(), Status::BestEffort);
        assert!(s.binding.unwrap().contains("number of neurons"));
    }
}
