//! Entries that do one thing twice: all read the same x, so two that replace one activation take it away twice.

use std::collections::BTreeMap;

use super::{Action, Intervention, Spec, Subject};

impl Spec {
    /// Pairs of entries of one step that replace the same activation, in words.
    pub fn overlaps(&self) -> Vec<String> {
        let mut before: BTreeMap<(&Subject, &Subject), Vec<usize>> = BTreeMap::new();
        let mut out = Vec::new();
        for (k, i) in self.interventions.iter().enumerate().filter(|(_, i)| replaces(&i.action)) {
            let alike = before.entry((&i.subject, &i.write)).or_default();
            for first in alike.iter().filter(|j| doubles(&self.interventions[**j], i)) {
                out.push(format!(
                    "interventions {} and {} both replace the activation of {}: they read the same x and their changes add up, so that it is \
                     taken away twice. Say it in one entry, give them conditions that exclude one another, or set sequence = true (splice)",
                    first + 1,
                    k + 1,
                    i.subject
                ));
            }
            alike.push(k);
        }
        out
    }
}

fn replaces(action: &Action) -> bool {
    use Action::*;
    match action {
        Ablate | Clamp(_) | ClampWhenActive(_) | Cap(_) | Floor(_) | Scale(_) => true,
        Add(_) | AddWhenActive(_) | Expr(_) | Reconstruct => false,
    }
}

/// A cap and a floor go together, and so may what different conditions choose between.
fn doubles(a: &Intervention, b: &Intervention) -> bool {
    let ends =
        matches!((&a.action, &b.action), (Action::Cap(_), Action::Floor(_)) | (Action::Floor(_), Action::Cap(_)));
    !ends && (a.when == b.when || a.when.is_none() || b.when.is_none())
}
