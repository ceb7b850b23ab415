//! Conditions on one pre-activation, as the sets of numbers where they hold.
//!
//! A set is a list of cuts where membership changes. A comparison a·z + c > 0 has one, at t = −c/a: just after t if a > 0
//! (z > t), at t itself if a < 0 (z < t). Between two cuts all members are alike, so `and`, `or` and `not` are merges of lists,
//! and what is left has no condition twice and none that contradicts another:
//!
//! ```text
//! z > 6 or z > 7                    z > 6                       step(z − 6)
//! 0 < z < 1 or 4 < z < 5            two intervals               step(z)·step(1 − z) + step(z − 4)·step(5 − z)
//! ```
//!
//! With s₊ = step(a·z + c), a > 0, and s₋ the same with a < 0, a set's indicator is right of a cut s₊ or 1 − s₋, left of it
//! 1 − s₊ or s₋, and on an interval, where both hold, their product: right + left − 1, as one of the two is always 1.

use crate::expr::Expr;
use crate::interval::Interval;
use crate::number::Number;
use crate::rational::Rational;

use super::Truth;

/// Where membership changes.
#[derive(Clone, Debug, PartialEq)]
struct Cut {
    /// t
    at: Rational,
    /// does t itself belong to what is left of the cut?
    after: bool,
    /// the affine form whose step turns here: it rises through 0 if `after`, else it falls
    form: Expr,
}

impl Cut {
    fn place(&self) -> (&Rational, bool) {
        (&self.at, self.after)
    }

    /// 1 right of the cut: a step, or one minus a step.
    fn right(&self) -> Side {
        Side { step: Expr::Step(Box::new(self.form.clone())), negated: !self.after }
    }

    /// 1 left of it.
    fn left(&self) -> Side {
        Side { negated: self.after, ..self.right() }
    }
}

/// step, or 1 − step
struct Side {
    step: Expr,
    negated: bool,
}

impl Side {
    fn expr(self) -> Expr {
        if self.negated { one().minus(self.step) } else { self.step }
    }
}

fn one() -> Expr {
    Expr::Const(Number::one())
}

/// The numbers at which a condition on one pre-activation holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Set {
    /// does it hold left of every cut?
    first: bool,
    /// ascending
    cuts: Vec<Cut>,
}

impl Set {
    /// Where an affine form of one pre-activation is > 0, and which pre-activation that is.
    pub(super) fn positive(e: &Expr) -> Option<(usize, Set)> {
        let form = e.affine()?;
        let mut coefficients = form.coefficients.iter();
        let (Some((k, slope)), None) = (coefficients.next(), coefficients.next()) else { return None };
        let after = slope.is_positive();
        let cut = Cut { at: -(&form.constant / slope), after, form: e.clone() };
        Some((*k, Set { first: !after, cuts: vec![cut] }))
    }

    /// Everything else.
    pub(super) fn complement(self) -> Set {
        Set { first: !self.first, ..self }
    }

    /// The numbers for which `both` says so, of their memberships in the two sets.
    fn merged(self, other: Set, both: fn(bool, bool) -> bool) -> Set {
        let (mut a, mut b) = (self.first, other.first);
        let mut set = Set { first: both(a, b), cuts: Vec::new() };
        let (mut left, mut right) = (self.cuts.into_iter().peekable(), other.cuts.into_iter().peekable());
        let mut now = set.first;
        loop {
            let order = match (left.peek(), right.peek()) {
                (Some(l), Some(r)) => l.place().cmp(&r.place()),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (None, None) => return set,
            };
            let cut = match order {
                std::cmp::Ordering::Less => left.next().inspect(|_| a = !a),
                std::cmp::Ordering::Greater => right.next().inspect(|_| b = !b),
                std::cmp::Ordering::Equal => {
                    (a, b) = (!a, !b);
                    right.next();
                    left.next()
                }
            };
            if both(a, b) != now {
                now = !now;
                set.cuts.extend(cut);
            }
        }
    }

    pub(super) fn and(self, other: Set) -> Set {
        self.merged(other, |a, b| a && b)
    }

    pub(super) fn or(self, other: Set) -> Set {
        self.merged(other, |a, b| a || b)
    }

    /// Does it hold for all or none of the numbers in a range?
    pub(super) fn truth(&self, range: Interval) -> Truth {
        // Is the number left of the cut?
        let below = |x: &Rational, cut: &Cut| if cut.after { *x <= cut.at } else { *x < cut.at };
        let (lo, hi) = (Rational::from_float(range.lo()), Rational::from_float(range.hi()));
        let passed = self.cuts.iter().filter(|c| lo.as_ref().is_some_and(|lo| !below(lo, c))).count();
        let within = |c: &&Cut| hi.as_ref().is_none_or(|hi| !below(hi, c));
        match self.cuts[passed..].iter().find(within) {
            Some(_) => Truth::Open,
            None if self.first != (passed % 2 == 1) => Truth::Always,
            None => Truth::Never,
        }
    }

    /// 1 on the set, else 0.
    pub(super) fn expr(&self) -> Expr {
        let ends: Vec<Option<&Cut>> =
            self.first.then_some(None).into_iter().chain(self.cuts.iter().map(Some)).collect();
        let mut intervals = ends.chunks(2).map(|ends| interval(ends[0], ends.get(1).copied().flatten()));
        let first = intervals.next().unwrap_or(Expr::Const(Number::zero()));
        intervals.fold(first, Expr::plus)
    }
}

/// 1 right of one cut and left of another.
fn interval(lo: Option<&Cut>, hi: Option<&Cut>) -> Expr {
    match (lo.map(Cut::right), hi.map(Cut::left)) {
        (None, None) => one(),
        (Some(side), None) | (None, Some(side)) => side.expr(),
        (Some(l), Some(h)) => match (l.negated, h.negated) {
            (false, false) => super::times(l.step, h.step),
            (false, true) => l.step.minus(h.step),
            (true, false) => h.step.minus(l.step),
            (true, true) => one().minus(l.step).minus(h.step),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::eval::value;

    /// A condition on z as a tree, judged by its definition.
    #[derive(Clone, Debug)]
    enum Tree {
        More(i64, i64),
        Not(Box<Tree>),
        And(Box<Tree>, Box<Tree>),
        Or(Box<Tree>, Box<Tree>),
    }

    impl Tree {
        fn set(&self) -> Set {
            match self {
                Tree::More(slope, c) => {
                    let e: Expr = format!("{slope} * z + ({c})").parse().unwrap();
                    Set::positive(&e).unwrap().1
                }
                Tree::Not(a) => a.set().complement(),
                Tree::And(a, b) => a.set().and(b.set()),
                Tree::Or(a, b) => a.set().or(b.set()),
            }
        }

        fn holds(&self, z: f64) -> bool {
            match self {
                Tree::More(slope, c) => *slope as f64 * z + *c as f64 > 0.0,
                Tree::Not(a) => !a.holds(z),
                Tree::And(a, b) => a.holds(z) && b.holds(z),
                Tree::Or(a, b) => a.holds(z) || b.holds(z),
            }
        }
    }

    fn trees() -> impl Strategy<Value = Tree> {
        let leaf = (prop::sample::select(vec![-2i64, -1, 1, 2]), -6i64..=6).prop_map(|(s, c)| Tree::More(s, c));
        leaf.prop_recursive(5, 40, 2, |inner| {
            prop_oneof![
                inner.clone().prop_map(|a| Tree::Not(Box::new(a))),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| Tree::And(Box::new(a), Box::new(b))),
                (inner.clone(), inner).prop_map(|(a, b)| Tree::Or(Box::new(a), Box::new(b))),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Thresholds are multiples of 1/2 within ±6: these points meet every piece and every end.
        #[test]
        fn a_set_is_the_condition(tree in trees(), from in -14i64..14, width in 1i64..14) {
            let set = tree.set();
            let expr = set.expr();
            let points = (-28..=28).map(|k| f64::from(k) / 4.0);
            for z in points {
                prop_assert_eq!(value(&expr, &[z]).unwrap() == 1.0, tree.holds(z), "{} at {}", expr, z);
            }
            let (lo, hi) = (from as f64 / 2.0, (from + width) as f64 / 2.0);
            let inside: Vec<bool> = (0..=4 * width).map(|k| tree.holds(lo + k as f64 / 8.0)).collect();
            let expected = match (inside.contains(&true), inside.contains(&false)) {
                (true, false) => Truth::Always,
                (false, true) => Truth::Never,
                _ => Truth::Open,
            };
            prop_assert_eq!(set.truth(Interval::new(lo, hi)), expected);
        }
    }
}
