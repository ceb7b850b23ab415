//! What people ask for that no inserted layer can do, or that is spelled differently here: the reason, and what would work.
//!
//! An inserted layer sees one token's residual at a time, and its weights are the same for every token, prompt and request.

use crate::error::Error;

/// Names that mean the same wish, why it cannot be had, and the nearest thing that works.
struct Refusal {
    names: &'static [&'static str],
    why: &'static str,
    instead: &'static str,
}

const TOP_K: Refusal = Refusal {
    names: &["top_k", "topk", "k", "batch_topk", "batchtopk", "k_sparse"],
    why: "whether a feature is among the k largest depends on all the others at that token: no function of a few pre-activations",
    instead: "use thresholds: an SAE saved as jumprelu (SAELens saves a trained batchtopk SAE that way), or when = \"z > t\" with \
              the smallest activation that passed top-k",
};

const GROUP_MAX: Refusal = Refusal {
    names: &["group_max", "max_pool", "maxpool", "group", "groups", "feature_group", "argmax", "softmax"],
    why: "a maximum over many features needs a comparison of each with each, not a sum of responses",
    instead: "gate on each feature and join them: when = \"a_12 > 0 or a_477 > 0\"; max(z, z_477) of two works in `expr`",
};

const NORM: Refusal = Refusal {
    names: &[
        "norm_preserving",
        "preserve_norm",
        "constant_norm",
        "normalize",
        "normalise",
        "normalize_activations",
        "renormalize",
        "rescale",
        "relative",
        "norm_fraction",
        "layer_norm",
        "layernorm",
        "rms_norm",
        "rmsnorm",
        "cosine",
        "spherical",
        "rotate",
    ],
    why: "dividing by the norm of each token's own residual is a function of all coordinates, not of a few pre-activations",
    instead: "give an absolute `value`; `neurograft calibrate` shows the norms that residuals have, so that a fraction of the \
              typical norm can be written as a number (for a vector of norm 1: unit = true)",
};

const POSITIONS: Refusal = Refusal {
    names: &[
        "positions",
        "position",
        "pos",
        "token_positions",
        "token_position",
        "tokens",
        "token",
        "token_ids",
        "token_indices",
        "last_token",
        "last",
        "first_token",
        "min_token_index",
        "skip_bos",
        "generated_only",
        "prompt_only",
        "start",
        "end",
        "role",
        "mask",
    ],
    why: "an inserted layer's MLP does not know which token, role or position it handles, only the residual",
    instead: "gate on what tells such tokens apart in the residual: a feature or a probe, when = \"z_probe > 2\" (a sequence's first \
              token has a norm of its own: a domain.norm leaves it out of the certificate)",
};

const PROMPT: Refusal = Refusal {
    names: &[
        "any_token",
        "any",
        "prompt",
        "per_prompt",
        "prompt_gate",
        "sequence_gate",
        "once",
        "sticky",
        "history",
        "condition_vector",
        "condition_threshold",
        "context",
        "until",
        "after",
    ],
    why: "whether some token of the prompt fired is known to other tokens only through attention, which the inserted layer does not use",
    instead: "gate each token on its own residual, when = \"z_probe > 2\", with a probe that was trained on the tokens to be changed; \
              or make two checkpoints and let the caller choose",
};

const REQUEST: Refusal = Refusal {
    names: &["request", "per_request", "runtime", "dynamic", "variable", "schedule", "decay", "ramp", "anneal"],
    why: "weights are the same for all requests of a served model",
    instead: "write a number, and splice a checkpoint for each strength that is wanted (inserted layers are small), or serve the \
              steering as an adapter",
};

const STRENGTH: Refusal = Refusal {
    names: &["strength", "coefficient", "coeff", "coefficients", "multiplier", "strength_multiplier", "alpha", "scale"],
    why: "the strength of an intervention is its `value`, a number: weights are the same for all requests of a served model",
    instead: "write value = ... (with max_activation = m it is a multiple of m), and splice a checkpoint for each strength that is \
              wanted",
};

const ALL: [&Refusal; 7] = [&TOP_K, &GROUP_MAX, &NORM, &POSITIONS, &PROMPT, &REQUEST, &STRENGTH];

/// What other tools call an action.
const OTHER_NAMES: [(&[&str], &str); 8] = [
    (&["set", "pin", "clamp_always", "replace", "fix"], "action = \"clamp\" sets a to the value on every token"),
    (
        &["nudge", "steer", "steering", "addition", "additive", "add_always"],
        "action = \"add\" adds value·v on every token",
    ),
    (&["mul", "multiply", "amplify", "boost", "suppress", "dampen"], "action = \"scale\" multiplies a by the value"),
    (
        &[
            "erase",
            "project",
            "project_out",
            "projection",
            "directional_ablation",
            "abliterate",
            "orthogonalize",
            "remove",
        ],
        "a vector with unit = true and action = \"ablate\" removes its component: x - <v, x>v",
    ),
    (&["zero", "zero_ablate", "zero_ablation", "delete"], "action = \"ablate\" sets a to 0"),
    (&["mean_ablate", "mean_ablation"], "action = \"clamp\" with the mean activation as its value"),
    (&["capping", "ceil", "ceiling", "min", "activation_capping"], "action = \"cap\" makes a min(a, value)"),
    (&["max", "at_least", "raise"], "action = \"floor\" makes a max(a, value)"),
];

fn same(name: &str, known: &str) -> bool {
    name.eq_ignore_ascii_case(known) || name.replace('-', "_").eq_ignore_ascii_case(known)
}

fn find(name: &str) -> Option<&'static Refusal> {
    ALL.into_iter().find(|r| r.names.iter().any(|n| same(name, n)))
}

fn error(written: &str, r: &Refusal) -> Error {
    Error::unsupported(format!("{written}: {}", r.why)).help(r.instead)
}

/// The refusal of a field that is not one of an intervention's, where its name says what is wished for.
pub(super) fn field(name: &str) -> Option<Error> {
    find(name).map(|r| error(name, r))
}

/// The refusal of a word in place of a number or a name: `strength = "request"`, `value = "request"`.
pub(super) fn word(field: &str, text: &str) -> Option<Error> {
    let wish = [&TOP_K, &GROUP_MAX, &NORM, &POSITIONS, &PROMPT, &REQUEST];
    let found = wish.into_iter().find(|r| r.names.iter().any(|n| same(text, n)))?;
    Some(error(&format!("{field} = \"{text}\""), found))
}

/// The refusal of an action that is none.
pub(super) fn action(name: &str) -> Option<Error> {
    let other = OTHER_NAMES.iter().find(|(names, _)| names.iter().any(|n| same(name, n)));
    if let Some((_, here)) = other {
        return Some(Error::input(format!("action = \"{name}\" has another name here")).help(*here));
    }
    find(name).filter(|r| !std::ptr::eq(*r, &STRENGTH)).map(|r| error(&format!("action = \"{name}\""), r))
}

/// The refusal of a name in an expression or a condition, where it says what is wished for.
pub(super) fn name_in(text: &str) -> Option<Error> {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    // Words of the expressions' own language are none of these.
    words.filter(|w| !["any", "max", "min", "k"].contains(w)).find_map(|w| word_in_expression(w, text))
}

fn word_in_expression(name: &str, text: &str) -> Option<Error> {
    let wish = [&TOP_K, &GROUP_MAX, &NORM, &POSITIONS, &PROMPT, &REQUEST];
    let found = wish.into_iter().find(|r| r.names.iter().any(|n| same(name, n)))?;
    Some(error(&format!("'{name}' in '{text}'"), found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_has_two_meanings() {
        let mut names: Vec<&str> = ALL.iter().flat_map(|r| r.names).copied().collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn help_names_what_exists() {
        for r in ALL {
            assert!(r.names.iter().all(|n| field(n).is_some()));
        }
        assert!(field("Norm-Preserving").is_some() && field("feature").is_none());
        assert!(action("topk").unwrap().is_unsupported() && action("erase").unwrap().is_input());
        assert!(
            word("value", "0.5").is_none() && word("value", "request").unwrap().to_string().contains("all requests")
        );
        assert!(name_in("z_probe > 2 and max(z, 1) > 3").is_none());
        assert!(name_in("position > 2").unwrap().to_string().contains("'position' in 'position > 2'"));
    }
}
