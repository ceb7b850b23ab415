//! Fronts: the best stack for each number of neurons, and what fewer neurons or lighter weights cost.
//!
//! All figures are the certifier's.

use super::{Budget, Field, Request, Solution, Wanted, band, construct, fit, inert, most_fitted, size};
use crate::error::{Error, Result};

/// Numbers of neurons that [`pareto`] looks at, and the budget's own.
const COUNTS: [usize; 9] = [1, 2, 3, 4, 6, 8, 12, 16, 32];
/// Largest |weight| and Σ|out| that it tries, as parts of what the best stacks take.
const GENTLER: [f64; 3] = [1.0, 0.5, 0.25];
const LIGHTER: [f64; 4] = [1.0, 0.1, 0.01, 0.001];
/// Differences below this part are no gain.
const SAME: f64 = 1e-6;

/// The best certified stack of at most n neurons, for each n of `counts`, which take the place of the budget's number; `None`
/// where nothing keeps to the limits. One search serves all of them, and more neurons are never worse.
///
/// Errors: those of [`solve`](super::solve), but for a budget that nothing keeps to.
pub fn by_neurons(request: &Request<'_>, counts: &[usize]) -> Result<Vec<Option<Solution>>> {
    let Some(most) = counts.iter().copied().max() else { return Ok(Vec::new()) };
    let request = &Request { budget: Budget { neurons: most, ..request.budget }, ..request.clone() };
    request.budget.check()?;
    let (jumps, delta) = band(request)?;
    let mut field = Field { all: Some(Vec::new()), ..Field::new(request, delta) };
    construct(&mut field, &jumps)?;
    if request.budget.inert && !field.is_inert() {
        inert::construct(&mut field)?;
    }
    let scale = size(request.target, request.domain)?;
    let mut open: Vec<usize> = Vec::new();
    for n in counts {
        field.best = field.best_of(*n);
        if field.wants_fit(scale, *n)? {
            open.push((*n).min(most_fitted(request)));
        }
    }
    field.best = field.best_of(most);
    open.sort_unstable();
    open.dedup();
    if !open.is_empty() {
        fit(request, delta, &jumps, &mut field, Wanted::Each(&open))?;
    }
    Ok(counts.iter().map(|n| field.best_of(*n)).collect())
}

/// The front over (neurons, largest |weight|, Σ|out|, certified error): no other stack found is better in one of these and
/// no worse in the others. `progress` is told how many of how many searches are done.
///
/// Errors: those of [`solve`](super::solve).
pub fn pareto(request: &Request<'_>, progress: &dyn Fn(usize, usize)) -> Result<Vec<Solution>> {
    let most = request.budget.neurons;
    let counts: Vec<usize> = COUNTS.into_iter().filter(|n| *n < most).chain([most]).collect();
    let searches = GENTLER.len() * LIGHTER.len();
    let mut found: Vec<Solution> = by_neurons(request, &counts)?.into_iter().flatten().collect();
    progress(1, searches);
    let (weight, total) = found.iter().fold((0.0f64, 0.0f64), |m, s| (m.0.max(s.max_weight()), m.1.max(s.total())));
    if found.is_empty() || !(weight > 0.0 && total > 0.0) {
        return if found.is_empty() { Err(nothing(request)) } else { Ok(front(found)) };
    }
    let parts = GENTLER.iter().flat_map(|g| LIGHTER.iter().map(move |l| (g, l))).skip(1);
    for (k, (gentler, lighter)) in parts.enumerate() {
        let budget = Budget { max_weight: gentler * weight, max_total: lighter * total, ..request.budget };
        let limited = by_neurons(&Request { budget, ..request.clone() }, &counts)?;
        found.extend(limited.into_iter().flatten());
        progress(k + 2, searches);
    }
    Ok(front(found))
}

fn nothing(request: &Request<'_>) -> Error {
    Error::unsupported(format!("no stack of {} neurons for {} within the limits", request.source, request.target))
        .help("choose a bounded domain, or another source")
}

/// What is beaten by none, by neurons, then by error.
fn front(found: Vec<Solution>) -> Vec<Solution> {
    let cost = |s: &Solution| [s.stack.neurons.len() as f64, s.max_weight(), s.total(), s.error()];
    let no_worse = |a: &[f64; 4], b: &[f64; 4]| a.iter().zip(b).all(|(a, b)| *a <= b * (1.0 + SAME));
    let mut front: Vec<Solution> = Vec::new();
    for (i, s) in found.iter().enumerate() {
        let own = cost(s);
        // Of equals the first stays.
        let beaten = |(k, other): (usize, &Solution)| {
            let other = cost(other);
            k != i && no_worse(&other, &own) && (k < i || !no_worse(&own, &other))
        };
        if !found.iter().enumerate().any(beaten) {
            front.push(s.clone());
        }
    }
    front.sort_by(|a, b| a.stack.neurons.len().cmp(&b.stack.neurons.len()).then(a.error().total_cmp(&b.error())));
    front
}

impl Field<'_> {
    /// The best so far with at most n neurons.
    fn best_of(&self, n: usize) -> Option<Solution> {
        let within = self.all.iter().flatten().filter(|s| s.stack.neurons.len() <= n);
        within.min_by(|a, b| self.rank(a).partial_cmp(&self.rank(b)).unwrap_or(std::cmp::Ordering::Equal)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certify::Domain;
    use crate::expr::Expr;
    use crate::format::Format;
    use crate::stack::Form;

    fn with<T>(target: &str, source: &str, budget: Budget, f: impl Fn(&Request<'_>) -> T) -> T {
        let (target, source): (Expr, _) = (target.parse().unwrap(), source.parse().unwrap());
        let domain = Domain::new(-8.0, 8.0).unwrap();
        f(&Request { target: &target, source: &source, form: Form::Plain, format: Format::F64, domain, budget })
    }

    #[test]
    fn more_neurons_are_never_worse() {
        let budget = Budget { max_weight: 16.0, max_total: 100.0, ..Budget::default() };
        // gelu: fits; 2z: two neurons are exact, one is a fit; relu: a steep neuron is as good as any.
        for (target, counts, known) in [
            ("gelu(z)", [1, 2, 4], [1.33e-2, 3.6e-3, 7.0e-4]),
            ("2 * z", [1, 2, 3], [0.5, 1e-14, 1e-14]),
            ("relu(z)", [1, 2, 3], [0.1393 / 16.0, 0.1145 / 16.0, 0.0899 / 16.0]),
        ] {
            let found = with(target, "silu", budget, |r| by_neurons(r, &counts).unwrap());
            let errors: Vec<f64> = found.iter().map(|s| s.as_ref().unwrap().error()).collect();
            for (k, n) in counts.into_iter().enumerate() {
                assert!(found[k].as_ref().unwrap().stack.neurons.len() <= n);
                assert!(errors[k] <= known[k], "{target} {n}: {errors:?}");
                // Errors within 2 % are one and the same to the ranking, where fewer neurons win.
                assert!(k == 0 || errors[k] <= 1.03 * errors[k - 1], "{target}: {errors:?}");
            }
        }
    }

    #[test]
    fn nothing_on_the_front_is_beaten() {
        let budget = Budget { neurons: 2, max_weight: 16.0, ..Budget::default() };
        let front = with("gelu(z)", "silu", budget, |r| pareto(r, &|_, _| ()).unwrap());
        let cost = |s: &Solution| [s.stack.neurons.len() as f64, s.max_weight(), s.total(), s.error()];
        for (i, a) in front.iter().enumerate() {
            for b in &front[i + 1..] {
                let (a, b) = (cost(a), cost(b));
                let below = |x: &[f64; 4], y: &[f64; 4]| x.iter().zip(y).all(|(x, y)| *x <= *y);
                assert!(!below(&a, &b) && !below(&b, &a), "{a:?} {b:?}");
            }
        }
        let least = |n| front.iter().filter(|s| s.stack.neurons.len() == n).map(Solution::error).fold(1.0, f64::min);
        assert!(least(2) <= 3.56e-3 && least(1) <= 1.3212e-2 * 1.001, "{} {}", least(1), least(2));
        assert!(front.iter().all(|s| s.alternation.is_some()));
    }
}
