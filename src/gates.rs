//! Gated terms: a response of several pre-activations as a sum of continuous payloads, each counted only where some
//! affine conditions hold.
//!
//! ```text
//! c(z_0, z_1, …) = p_0 + Σ_j 1[ℓ_j1 > 0]·1[ℓ_j2 > 0]···p_j
//! ```
//!
//! with ℓ affine in the pre-activations, and every p either affine in them or a continuous function of one. Part of the
//! trusted base: the terms add up to the expression by its shape, and where a function of one pre-activation is taken
//! apart at its jumps, by exact arithmetic on its pieces.
//!
//! Two inserted layers compute a term (`docs/mathematics.md`): the first writes h_i = σ(−K·ℓ_i), huge where a condition
//! fails and next to nothing where it holds; the second has the gate c − Σ h_i, saturated or shut, and the payload as its up
//! row.

use crate::algebra::{Normal, Poly};
use crate::certify::{Domain, jumps};
use crate::error::{Error, Result};
use crate::expr::{Affine, Expr};
use crate::number::Number;
use crate::piecewise::cut;
use crate::rational::Rational;
use crate::ridge::indices;

/// A payload behind conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// all must be > 0, strictly; affine
    pub conditions: Vec<Expr>,
    /// affine, or a continuous function of one pre-activation
    pub payload: Expr,
}

/// More terms than this are refused: products of sums multiply.
const MOST_TERMS: usize = 1024;

fn too_many() -> Error {
    Error::unsupported(format!("more than {MOST_TERMS} gated terms"))
        .help("n features joined by `or` take 2^n - 1 terms: join at most ten, or split them over several entries")
}

/// The ungated part of an expression (absent if it is 0) and its gated terms.
///
/// Errors: a condition that is not affine, a payload that multiplies several pre-activations, a jump that is not one of
/// lines.
pub fn decompose(e: &Expr) -> Result<(Option<Expr>, Vec<Term>)> {
    let mut free: Option<Expr> = None;
    let mut gated: Vec<Term> = Vec::new();
    for term in terms(e)? {
        if !payload_is_good(&term.payload) {
            return Err(Error::unsupported(format!("{} multiplies or couples several pre-activations", term.payload))
                .help("what a gate lets through is affine in the pre-activations, or a function of one of them"));
        }
        if is_zero(&term.payload) {
            continue;
        }
        if term.conditions.is_empty() {
            free = Some(match free {
                Some(sum) => sum.plus(term.payload),
                None => term.payload,
            });
        } else if let Some(same) = gated
            .iter_mut()
            .find(|t| t.conditions == term.conditions && payload_is_good(&t.payload.clone().plus(term.payload.clone())))
        {
            same.payload = same.payload.clone().plus(term.payload);
        } else {
            gated.push(term);
        }
    }
    Ok((free, gated))
}

fn payload_is_good(p: &Expr) -> bool {
    p.affine().is_some() || indices(p).len() <= 1
}

fn is_zero(p: &Expr) -> bool {
    p.affine().is_some_and(|a| a.coefficients.is_empty() && a.constant.is_zero())
}

fn single(payload: Expr) -> Vec<Term> {
    vec![Term { conditions: Vec::new(), payload }]
}

/// Expressions are no deeper than the parser allows, so recursion is bounded.
fn terms(e: &Expr) -> Result<Vec<Term>> {
    let used = indices(e);
    if e.affine().is_some() {
        return Ok(single(e.clone()));
    }
    if used.len() == 1 && jumps(&e.substitute(&|_| Expr::z()), Domain::line()).is_ok_and(|j| j.is_empty()) {
        return Ok(single(e.clone()));
    }
    match by_shape(e) {
        Ok(terms) => Ok(terms),
        Err(_) if used.len() == 1 => at_jumps(e, used[0]),
        Err(e) => Err(e),
    }
}

fn by_shape(e: &Expr) -> Result<Vec<Term>> {
    let condition = |c: &Expr| -> Result<Expr> {
        if c.affine().is_some() {
            return Ok(c.clone());
        }
        Err(Error::unsupported(format!("{e} switches on {c}, which is not affine in the pre-activations"))
            .help("gates switch where a sum of scaled pre-activations and constants passes 0"))
    };
    let behind = |c: Expr, terms: Vec<Term>| {
        let add = |mut t: Term| {
            if !t.conditions.contains(&c) {
                t.conditions.push(c.clone());
            }
            t
        };
        terms.into_iter().map(add).collect::<Vec<_>>()
    };
    let negated = |terms: Vec<Term>| {
        let minus = |t: Term| Term { payload: Expr::Neg(Box::new(t.payload)), ..t };
        terms.into_iter().map(minus).collect::<Vec<_>>()
    };
    // relu(a) = a·1[a > 0]
    let relu = |a: Expr| -> Result<Vec<Term>> { Ok(vec![Term { conditions: vec![condition(&a)?], payload: a }]) };
    Ok(match e {
        Expr::Add(a, b) => {
            let all = [terms(a)?, terms(b)?].concat();
            if all.len() > MOST_TERMS {
                return Err(too_many());
            }
            all
        }
        Expr::Neg(a) => negated(terms(a)?),
        Expr::Scale(k, a) => {
            let scaled = |t: Term| Term { payload: t.payload.scale(k.clone()), ..t };
            terms(a)?.into_iter().map(scaled).collect()
        }
        Expr::Mul(a, b) => {
            let (a, b) = (terms(a)?, terms(b)?);
            if a.len() * b.len() > MOST_TERMS {
                return Err(too_many());
            }
            let mut out = Vec::with_capacity(a.len() * b.len());
            for (s, t) in a.iter().flat_map(|s| b.iter().map(move |t| (s, t))) {
                let mut conditions = s.conditions.clone();
                conditions.extend(t.conditions.iter().filter(|c| !s.conditions.contains(c)).cloned());
                out.push(Term { conditions, payload: product(&s.payload, &t.payload) });
            }
            out
        }
        Expr::Step(c) => vec![Term { conditions: vec![condition(c)?], payload: Expr::Const(Number::one()) }],
        Expr::JumpRelu(a, theta) => {
            let above = (**a).clone().minus(Expr::Const(theta.clone()));
            vec![Term { conditions: vec![condition(&above)?], payload: (**a).clone() }]
        }
        Expr::Select(c, a, b) => {
            let c = condition(c)?;
            let otherwise = terms(b)?;
            [behind(c.clone(), terms(a)?), otherwise.clone(), negated(behind(c, otherwise))].concat()
        }
        Expr::Relu(a) => relu((**a).clone())?,
        // max(a, b) = b + relu(a − b), min(a, b) = a − relu(a − b)
        Expr::Max(a, b) => [terms(b)?, relu((**a).clone().minus((**b).clone()))?].concat(),
        Expr::Min(a, b) => [terms(a)?, negated(relu((**a).clone().minus((**b).clone()))?)].concat(),
        Expr::Clamp(a, lo, hi) => {
            let beyond = |x: &Number| relu((**a).clone().minus(Expr::Const(x.clone())));
            [single(Expr::Const(lo.clone())), beyond(lo)?, negated(beyond(hi)?)].concat()
        }
        Expr::Act(..) | Expr::Const(_) | Expr::Pre(_) => single(e.clone()),
    })
}

fn product(a: &Expr, b: &Expr) -> Expr {
    let constant = |e: &Expr| e.affine().filter(|x| x.coefficients.is_empty()).map(|x| x.constant);
    match (constant(a), constant(b)) {
        (Some(k), _) if k == Rational::one() => b.clone(),
        (_, Some(k)) if k == Rational::one() => a.clone(),
        (Some(k), _) => b.clone().scale(k.into()),
        (_, Some(k)) => a.clone().scale(k.into()),
        _ => Expr::Mul(Box::new(a.clone()), Box::new(b.clone())),
    }
}

/// A function of pre-activation k: at each jump t, the difference of the lines on its two sides goes behind z > t; what
/// remains is continuous.
fn at_jumps(e: &Expr, k: usize) -> Result<Vec<Term>> {
    let unsupported = || {
        Error::unsupported(format!("{e} jumps between curves that are not lines"))
            .help("write the jump as a factor, as in step(z - 1) * sigmoid(z)")
    };
    let own = e.substitute(&|_| Expr::z());
    let (pieces, knots) = cut(&[&own], None, None, &[])?;
    let mut out = Vec::new();
    let mut rest = own.clone();
    for t in knots {
        let line = |at_left: bool| {
            let piece = pieces.iter().find(|p| if at_left { p.hi.as_ref() } else { p.lo.as_ref() } == Some(&t))?;
            piece.forms[0].as_normal().and_then(Normal::as_poly).and_then(Poly::as_line)
        };
        let (Some((a, b)), Some((c, d))) = (line(true), line(false)) else { return Err(unsupported()) };
        let (slope, offset) = (c - a, d - b);
        if slope.is_zero() && offset.is_zero() || (&slope * &t + &offset).is_zero() {
            continue;
        }
        let above = Expr::z().minus(Expr::Const(t.into()));
        let jump = line_expr(slope, offset);
        rest = rest.minus(Expr::Mul(Box::new(jump.clone()), Box::new(Expr::Step(Box::new(above.clone())))));
        out.push(Term { conditions: vec![above], payload: jump });
    }
    if !jumps(&rest, Domain::line())?.is_empty() {
        return Err(unsupported());
    }
    let (pieces, _) = cut(&[&rest], None, None, &[])?;
    if !pieces.iter().all(|p| p.forms[0].is_zero()) {
        out.extend(single(rest));
    }
    let back = |e: Expr| e.substitute(&|_| Expr::Pre(k));
    Ok(out
        .into_iter()
        .map(|t| Term { conditions: t.conditions.into_iter().map(back).collect(), payload: back(t.payload) })
        .collect())
}

/// slope·z + offset, without what is 0.
fn line_expr(slope: Rational, offset: Rational) -> Expr {
    let constant = Expr::Const(offset.clone().into());
    if slope.is_zero() {
        return constant;
    }
    let slope: Number = slope.into();
    let line = match (slope.is_one(), (-&slope).is_one()) {
        (true, _) => Expr::z(),
        (_, true) => Expr::Neg(Box::new(Expr::z())),
        _ => Expr::z().scale(slope),
    };
    if offset.is_zero() { line } else { line.plus(constant) }
}

/// α with a = α·b, where there is one.
pub fn ratio(a: &Affine, b: &Affine) -> Option<Rational> {
    let (k, c) = b.coefficients.iter().next()?;
    let alpha = a.coefficients.get(k)? / c;
    let scaled = b.coefficients.iter().map(|(k, c)| (*k, c * &alpha)).collect();
    (a.coefficients == scaled && a.constant == &b.constant * &alpha).then_some(alpha)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::value;

    fn sum(free: &Option<Expr>, gated: &[Term], z: &[f64]) -> f64 {
        let at = |e: &Expr| value(e, z).unwrap();
        free.as_ref().map_or(0.0, at)
            + gated.iter().filter(|t| t.conditions.iter().all(|c| at(c) > 0.0)).map(|t| at(&t.payload)).sum::<f64>()
    }

    #[test]
    fn terms_add_up() {
        let cases = [
            ("-jumprelu(z, 0.75)", 1, false),
            ("(8 - z) * step(z - 0.75)", 1, false),
            ("8 - jumprelu(z, 0.75)", 1, true),
            ("relu(8 - jumprelu(z, 0.75))", 1, true),
            ("-relu(jumprelu(z, 0.75) - 8)", 0, true),
            ("-jumprelu(z, 0.75) * step(z_1 - 2)", 1, false),
            ("-relu(z) * step(z_1 - 2)", 1, false),
            ("(step(z) + step(z_1) - step(z) * step(z_1)) * (1 - z_2)", 3, false),
            ("select(z_1 - 1, -relu(z), 3 * z)", 1, true),
            ("relu(z - z_1)", 1, false),
            ("max(z, z_1) + min(z, 2 - z_1)", 2, true),
            ("clamp(z + z_1, -1, 1)", 2, true),
            ("silu(z) * step(z_1)", 1, false),
            ("sigmoid(2 * z) * step(z - 1)", 1, false),
            ("step(relu(z) - 3) * z_1", 1, false),
        ];
        for (text, count, has_free) in cases {
            let e: Expr = text.parse().unwrap();
            let (free, gated) = decompose(&e).unwrap_or_else(|x| panic!("{text}: {x}"));
            assert_eq!((gated.len(), free.is_some()), (count, has_free), "{text}: {gated:?} {free:?}");
            for i in 0..4000 {
                // Low-discrepancy points, and the knots themselves.
                let u = |k: f64| (f64::from(i) * k).fract() * 24.0 - 12.0;
                let mut z = [u(0.754_877), u(0.569_840), u(0.443_3)];
                if i % 5 == 0 {
                    z = z.map(|x| (x * 4.0).round() / 4.0);
                }
                let (got, want) = (sum(&free, &gated, &z), value(&e, &z).unwrap());
                assert!((got - want).abs() <= 1e-12 * (1.0 + want.abs()), "{text} at {z:?}: {got} and {want}");
            }
        }
    }

    #[test]
    fn what_has_no_terms_is_refused() {
        let many = ["(step(z_1 - 1) + step(z_2 - 2))"; 40].join(" * ");
        for text in ["z * z_1", "step(z * z_1)", &many, "step(z) * z * z_1", "step(silu(z) - z_1)"] {
            assert!(decompose(&text.parse().unwrap()).unwrap_err().is_unsupported(), "{text}");
        }
    }

    #[test]
    fn ratios_of_affine_forms() {
        let affine = |t: &str| t.parse::<Expr>().unwrap().affine().unwrap();
        assert_eq!(ratio(&affine("2 * z - 3"), &affine("z - 1.5")), Some(Rational::from(2)));
        assert_eq!(ratio(&affine("2 * z - 3"), &affine("z - 1")), None);
        assert_eq!(ratio(&affine("z"), &affine("z + z_1")), None);
    }
}
