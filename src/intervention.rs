//! From a specification and an SAE to an intervention: which directions are read, written, and by which response.

use std::collections::HashMap;

use crate::certify::Domain;
use crate::compile::{Options, PreActivation, Response, Target};
use crate::error::{At, Error, Result};
use crate::expr::Expr;
use crate::sae::{Feature, Sae};
use crate::solve::Budget;
use crate::spec::{Direction, Intervention, Spec};

/// The options that a specification asks for.
pub fn options(spec: &Spec) -> Options {
    Options {
        source: spec.host.source.clone(),
        form: spec.host.form,
        format: spec.host.format,
        biases: spec.host.biases,
        bias_parts: 1,
        depth: spec.layers,
        budget: Budget {
            neurons: spec.budget.neurons,
            max_weight: spec.budget.max_weight,
            max_out: spec.budget.max_out,
            max_total: spec.budget.max_total,
            inert: spec.budget.inert,
            tolerance: Some(spec.budget.tolerance),
            band: spec.budget.band,
            constant: spec.host.biases,
            bias_format: None,
        },
        norm: spec.domain.norm,
    }
}

/// Reads the features that a specification names and states the intervention.
///
/// Errors: a feature that the SAE does not have, an expression that does not parse, a threshold outside of the range of
/// pre-activations, a response that no layers compute.
pub fn target(spec: &Spec, sae: &Sae) -> Result<Target> {
    let indices = spec.features()?;
    let features: HashMap<usize, Feature> = indices.iter().copied().zip(sae.features(&indices)?).collect();
    let responses = spec.interventions.iter().enumerate().map(|(k, i)| {
        response(spec, sae, i, &features)
            .at(|| format!("intervention {} ({} feature {})", k + 1, i.action.name(), i.feature))
    });
    Ok(Target { responses: responses.collect::<Result<_>>()? })
}

fn response(spec: &Spec, sae: &Sae, i: &Intervention, features: &HashMap<usize, Feature>) -> Result<Response> {
    let own = &features[&i.feature];
    let mut text = i.response(sae.architecture(), own.threshold)?;
    if let Some(gate) = i.gate {
        text = format!("({text}) * {}", i.gate_factor(gate, sae.architecture(), features[&gate].threshold)?);
    }
    // z is the feature's own pre-activation; z_<index> any feature's.
    let mut order = vec![i.feature];
    let expr = Expr::parse_with(&text, |name| {
        let feature = match name.strip_prefix("z_") {
            Some(index) => index.parse().ok().filter(|f| features.contains_key(f))?,
            None if name == "z" => i.feature,
            None => return None,
        };
        Some(order.iter().position(|f| *f == feature).unwrap_or_else(|| {
            order.push(feature);
            order.len() - 1
        }))
    })?;
    let range = spec.range_of(i);
    let domain = Domain::new(range.lo(), range.hi())?;
    for at in thresholds(&expr)? {
        if !(domain.lo() < at && at < domain.hi()) {
            return Err(Error::input(format!(
                "the threshold {at} does not lie inside of the range {} to {} of pre-activations",
                domain.lo(),
                domain.hi()
            ))
            .help("widen `range`, in [domain] or for this intervention"));
        }
    }
    let pre_activations = order
        .iter()
        .map(|f| {
            let f = &features[f];
            match i.direction {
                Direction::Encoder => PreActivation { w: f.w.clone(), b: f.b },
                Direction::Decoder => PreActivation { w: f.d.clone(), b: 0.0 },
            }
        })
        .collect();
    Ok(Response {
        name: format!("{} feature {}", i.action.name(), i.feature),
        expr,
        pre_activations,
        write: features[&i.write].d.clone(),
        domain,
        band: spec.band_of(i),
    })
}

/// Where the response switches, as far as it is a pre-activation that passes a number there.
fn thresholds(e: &Expr) -> Result<Vec<f64>> {
    if let Ok(parts) = crate::ridge::split(e) {
        let jumps = parts.iter().map(|(_, part)| crate::certify::jumps(part, Domain::line()));
        return Ok(jumps.collect::<Result<Vec<_>>>()?.concat());
    }
    let (_, gated) = crate::gates::decompose(e)?;
    let roots = gated.iter().flat_map(|t| &t.conditions).filter_map(|c| {
        let form = c.affine()?;
        let mut coefficients = form.coefficients.values();
        let (Some(slope), None) = (coefficients.next(), coefficients.next()) else { return None };
        Some(crate::number::Number::from(-(&form.constant / slope)).to_f64())
    });
    Ok(roots.collect())
}
