//! Splits a response of several pre-activations into a sum of responses of one each.
//!
//! Part of the trusted base: sums, differences and multiples only, so that the terms add up to the expression by its
//! shape. What couples pre-activations in any other way (a gate of one on another, a product) is refused.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::expr::Expr;
use crate::number::Number;

/// The terms (index of the pre-activation, function of `z`) whose sum is the expression, by increasing index. Constants
/// go with the first pre-activation; a constant expression is a function of pre-activation 0.
///
/// Error: a part of the expression couples several pre-activations.
pub fn split(e: &Expr) -> Result<Vec<(usize, Expr)>> {
    let mut terms = BTreeMap::new();
    let mut constants = Vec::new();
    collect(e, &Number::one(), &mut terms, &mut constants)?;
    let first = terms.keys().next().copied().unwrap_or(0);
    for c in constants {
        push(&mut terms, first, c);
    }
    Ok(terms.into_iter().collect())
}

fn push(terms: &mut BTreeMap<usize, Expr>, k: usize, e: Expr) {
    let sum = match terms.remove(&k) {
        Some(old) => old.plus(e),
        None => e,
    };
    terms.insert(k, sum);
}

fn collect(e: &Expr, factor: &Number, terms: &mut BTreeMap<usize, Expr>, constants: &mut Vec<Expr>) -> Result<()> {
    let used = indices(e);
    if used.len() <= 1 {
        let own = if factor.is_one() { e.clone() } else { e.clone().scale(factor.clone()) };
        match used.first() {
            None => constants.push(own),
            Some(k) => push(terms, *k, own.substitute(&|_| Expr::z())),
        }
        return Ok(());
    }
    match e {
        Expr::Add(a, b) => {
            collect(a, factor, terms, constants)?;
            collect(b, factor, terms, constants)
        }
        Expr::Neg(a) => collect(a, &-factor, terms, constants),
        Expr::Scale(k, a) => collect(a, &(factor * k), terms, constants),
        _ => {
            let names: Vec<String> = used.iter().map(|k| Expr::Pre(*k).to_string()).collect();
            Err(Error::unsupported(format!("{e} couples the pre-activations {}", names.join(" and ")))
                .help("one inserted layer adds up responses of one pre-activation each; gates across features take two layers"))
        }
    }
}

/// The pre-activations that occur, by increasing index.
pub fn indices(e: &Expr) -> Vec<usize> {
    let mut out = Vec::new();
    let mut open = vec![e];
    while let Some(e) = open.pop() {
        if let Expr::Pre(k) = e {
            out.push(*k);
        }
        open.extend(e.children());
    }
    out.sort_unstable();
    out.dedup();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_split_and_gates_do_not() {
        let e: Expr = "relu(z) - 2 * (step(z_1 - 1) + z_2) + 3".parse().unwrap();
        let terms = split(&e).unwrap();
        let text: Vec<_> = terms.iter().map(|(k, e)| format!("{k}: {e}")).collect();
        assert_eq!(text, ["0: relu(z) + 3", "1: -2 * step(z - 1)", "2: -2 * z"]);
        assert!(split(&"step(z) * z_1".parse().unwrap()).unwrap_err().is_unsupported());
        assert_eq!(split(&"5".parse().unwrap()).unwrap().len(), 1);
        // A single pre-activation that is not the first keeps its index.
        assert_eq!(split(&"relu(z_3)".parse().unwrap()).unwrap()[0].0, 3);
    }
}
