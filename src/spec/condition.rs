//! Conditions: what `when` says. Comparisons of expressions, joined by `and`, `or`, `not` and parentheses.
//!
//! ```text
//! condition  = all { "or" all }
//! all        = one { "and" one }
//! one        = "not" one | "(" condition ")" | sum compare sum { compare sum }
//! compare    = ">" | "<" | ">=" | "<="
//! ```
//!
//! `1 < z < 5` means `1 < z and z < 5`. Sums are those of [`crate::expr`].
//!
//! As an expression a condition is 1 where it holds, else 0:
//!
//! ```text
//! a > b: step(a − b)      not c: 1 − c      c and d: c·d      c or d: c + d − c·d
//! a ≥ b: not (b > a)
//! ```
//!
//! What is said of one pre-activation is brought together first: see `condition/set.rs`.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::expr::Expr;
use crate::interval::Interval;
use crate::number::Number;

mod set;

use set::Set;

/// Deeper nesting is refused, so that no text exhausts the stack.
const MAX_DEPTH: usize = 60;

/// What must hold for an intervention to count.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition {
    /// the expression is > 0, strictly; with the comparison as it is written
    Positive(Expr, String),
    /// the condition does not hold
    Not(Box<Condition>),
    /// all of them hold
    All(Vec<Condition>),
    /// one of them holds, or several
    Any(Vec<Condition>),
}

/// Whether a condition can hold, over a box of pre-activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Truth {
    Always,
    Never,
    Open,
}

impl Condition {
    /// Parses a condition. `read` makes an expression of a sum's text.
    ///
    /// # Errors
    /// What does not parse, comparisons by `==` and `!=`, and whatever `read` refuses.
    pub fn parse(text: &str, read: &mut dyn FnMut(&str) -> Result<Expr>) -> Result<Condition> {
        match foreign(text) {
            Some(found) => Err(Error::input(format!("{found} in '{text}' joins nothing here")).help(EXAMPLE)),
            None => disjunction(text, 0, read),
        }
    }

    /// Several conditions of which all must hold.
    pub fn all(conditions: Vec<Condition>) -> Option<Condition> {
        let mut flat = Vec::with_capacity(conditions.len());
        for c in conditions {
            match c {
                Condition::All(inner) => flat.extend(inner),
                c => flat.push(c),
            }
        }
        if flat.len() > 1 { Some(Condition::All(flat)) } else { flat.pop() }
    }

    /// a > b, strictly. What compares an activation relu(p) or jumprelu(p, t) of an affine p with a constant becomes a
    /// condition on p itself:
    ///
    /// ```text
    /// relu(p) > c ≥ 0      p > c                  c > relu(p), c > 0          c > p
    /// jumprelu(p, t) > c   p > max(c, t)          c > jumprelu(p, t), c > t   c > p
    ///   with c, t ≥ 0                               with 0 < c ≤ t            not (p > t)
    /// ```
    pub fn greater(a: Expr, b: Expr, text: &str) -> Condition {
        let zero = Number::zero();
        let positive = |e: Expr| Condition::Positive(e, text.to_string());
        let above = |p: &Expr, c: &Number| positive(less(p.clone(), c));
        match (activity(&a), constant(&b)) {
            (Some((p, t)), Some(c)) if t >= zero && c >= zero => return above(p, if c > t { &c } else { &t }),
            _ => {}
        }
        match (constant(&a), activity(&b)) {
            (Some(c), Some((p, t))) if t >= zero && c > t => {
                return positive(Expr::Const(c).minus(p.clone()));
            }
            (Some(c), Some((p, t))) if c > zero && t >= c => return Condition::Not(Box::new(above(p, &t))),
            _ => {}
        }
        match constant(&b) {
            Some(c) => positive(less(a, &c)),
            None => positive(a.minus(b)),
        }
    }

    /// 1 where the condition holds, else 0.
    pub fn expr(&self) -> Expr {
        if let Some((_, set)) = self.set() {
            return set.expr();
        }
        match self {
            Condition::Positive(e, _) => Expr::Step(Box::new(e.clone())),
            Condition::Not(c) => Expr::Const(Number::one()).minus(c.expr()),
            Condition::All(all) => {
                grouped(all, Set::and).into_iter().reduce(times).unwrap_or(Expr::Const(Number::one()))
            }
            Condition::Any(any) => {
                let either = |a: Expr, b: Expr| a.clone().plus(b.clone()).minus(times(a, b));
                grouped(any, Set::or).into_iter().reduce(either).unwrap_or(Expr::Const(Number::zero()))
            }
        }
    }

    /// Where it holds, if it is about one pre-activation alone, and about which.
    fn set(&self) -> Option<(usize, Set)> {
        let all = |list: &[Condition], join: fn(Set, Set) -> Set| {
            let sets: Vec<(usize, Set)> = list.iter().map(Condition::set).collect::<Option<_>>()?;
            let same = |a: (usize, Set), b: (usize, Set)| (a.0 == b.0).then(|| (a.0, join(a.1, b.1)));
            let mut sets = sets.into_iter();
            let first = sets.next()?;
            sets.try_fold(first, same)
        };
        match self {
            Condition::Positive(e, _) => Set::positive(e),
            Condition::Not(c) => c.set().map(|(k, set)| (k, set.complement())),
            Condition::All(list) => all(list, Set::and),
            Condition::Any(list) => all(list, Set::or),
        }
    }

    /// Refuses comparisons that hold everywhere or nowhere while every pre-activation lies in the range, and conjunctions that
    /// contradict themselves.
    ///
    /// # Errors
    /// Names the comparison, or those that exclude one another.
    pub fn check(&self, range: Interval) -> Result<()> {
        match self {
            Condition::Positive(_, text) => match self.truth(range) {
                Truth::Never => Err(settled(text, "never holds", range)),
                Truth::Always => Err(settled(text, "always holds", range)),
                Truth::Open => Ok(()),
            },
            Condition::Not(c) => c.check(range),
            Condition::All(list) | Condition::Any(list) => {
                list.iter().try_for_each(|c| c.check(range))?;
                match self.truth(range) {
                    Truth::Never => Err(settled(&self.to_string(), "never holds", range)),
                    Truth::Always => Err(settled(&self.to_string(), "always holds", range)),
                    Truth::Open => Ok(()),
                }
            }
        }
    }

    fn truth(&self, range: Interval) -> Truth {
        let truths = |list: &[Condition], join: fn(Set, Set) -> Set| -> Vec<Truth> {
            let (sets, others) = by_pre_activation(list, join);
            sets.values().map(|s| s.truth(range)).chain(others.iter().map(|c| c.truth(range))).collect()
        };
        match self {
            Condition::Positive(e, _) => match values(e, range) {
                Some(v) if !(v.hi() > 0.0) => Truth::Never,
                Some(v) if v.lo() > 0.0 => Truth::Always,
                _ => Truth::Open,
            },
            Condition::Not(c) => match c.truth(range) {
                Truth::Always => Truth::Never,
                Truth::Never => Truth::Always,
                Truth::Open => Truth::Open,
            },
            Condition::All(list) => match truths(list, Set::and) {
                t if t.contains(&Truth::Never) => Truth::Never,
                t if t.iter().all(|t| *t == Truth::Always) => Truth::Always,
                _ => Truth::Open,
            },
            Condition::Any(list) => match truths(list, Set::or) {
                t if t.contains(&Truth::Always) => Truth::Always,
                t if t.iter().all(|t| *t == Truth::Never) => Truth::Never,
                _ => Truth::Open,
            },
        }
    }
}

impl std::fmt::Display for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let joined = |list: &[Condition], word: &str| {
            let parts: Vec<String> = list
                .iter()
                .map(|c| match c {
                    Condition::All(_) | Condition::Any(_) => format!("({c})"),
                    c => c.to_string(),
                })
                .collect();
            parts.join(word)
        };
        match self {
            Condition::Positive(_, text) => f.write_str(text),
            Condition::Not(c) => write!(f, "not ({c})"),
            Condition::All(list) => f.write_str(&joined(list, " and ")),
            Condition::Any(list) => f.write_str(&joined(list, " or ")),
        }
    }
}

fn settled(text: &str, how: &str, range: Interval) -> Error {
    Error::input(format!("'{text}' {how} while pre-activations range from {} to {}", range.lo(), range.hi()))
        .help("change it, or widen `range` (in [domain] or for this intervention) if pre-activations do go beyond")
}

/// The values of an affine form over a box, or of a sum with activations.
fn values(e: &Expr, range: Interval) -> Option<Interval> {
    if let Some(form) = e.affine() {
        let constant = Number::from(form.constant).enclosure();
        let terms = form.coefficients.into_values().map(|c| Number::from(c).enclosure() * range);
        return Some(terms.fold(constant, |sum, t| sum + t));
    }
    if let Some((p, t)) = activity(e) {
        let t = t.enclosure();
        let v = values(p, range)?;
        let on = Interval::new(v.lo().max(t.lo()), v.hi().max(t.lo()));
        // 0 below the threshold, p above it.
        return Some(if v.lo() > t.hi() {
            v
        } else if v.hi() <= t.lo() {
            Interval::ZERO
        } else {
            on.hull(Interval::ZERO)
        });
    }
    match e {
        Expr::Add(a, b) => Some(values(a, range)? + values(b, range)?),
        Expr::Neg(a) => Some(-values(a, range)?),
        Expr::Scale(c, a) => Some(c.enclosure() * values(a, range)?),
        _ => None,
    }
}

/// Brings together what is said of each pre-activation alone; the others as they are.
fn by_pre_activation(list: &[Condition], join: fn(Set, Set) -> Set) -> (BTreeMap<usize, Set>, Vec<&Condition>) {
    let (mut sets, mut others) = (BTreeMap::new(), Vec::new());
    for c in list {
        match c.set() {
            Some((k, set)) => {
                let set = match sets.remove(&k) {
                    Some(before) => join(before, set),
                    None => set,
                };
                sets.insert(k, set);
            }
            None => others.push(c),
        }
    }
    (sets, others)
}

/// The expressions of a list of conditions, those of one pre-activation as one.
fn grouped(list: &[Condition], join: fn(Set, Set) -> Set) -> Vec<Expr> {
    let (sets, others) = by_pre_activation(list, join);
    sets.values().map(Set::expr).chain(others.into_iter().map(Condition::expr)).collect()
}

/// p and t, where the expression is jumprelu(p, t) or relu(p), which is jumprelu(p, 0), and p is affine.
fn activity(e: &Expr) -> Option<(&Expr, Number)> {
    match e {
        Expr::Relu(p) if p.affine().is_some() => Some((p, Number::zero())),
        Expr::JumpRelu(p, t) if p.affine().is_some() => Some((p, t.clone())),
        _ => None,
    }
}

fn constant(e: &Expr) -> Option<Number> {
    e.affine().filter(|a| a.coefficients.is_empty()).map(|a| a.constant.into())
}

/// e − c, without a double sign.
fn less(e: Expr, c: &Number) -> Expr {
    match c.signum() {
        0 => e,
        1 => e.minus(Expr::Const(c.clone())),
        _ => e.plus(Expr::Const(-c)),
    }
}

fn times(a: Expr, b: Expr) -> Expr {
    Expr::Mul(Box::new(a), Box::new(b))
}

type Read<'a> = &'a mut dyn FnMut(&str) -> Result<Expr>;

fn disjunction(text: &str, depth: usize, read: Read<'_>) -> Result<Condition> {
    let mut parts =
        joined(text, "or").into_iter().map(|part| conjunction(part, depth, read)).collect::<Result<Vec<_>>>()?;
    Ok(if parts.len() == 1 { parts.remove(0) } else { Condition::Any(parts) })
}

fn conjunction(text: &str, depth: usize, read: Read<'_>) -> Result<Condition> {
    let parts = joined(text, "and").into_iter().map(|part| one(part, depth, read)).collect::<Result<Vec<_>>>()?;
    Condition::all(parts).ok_or_else(|| Error::input("an empty condition"))
}

fn one(text: &str, depth: usize, read: Read<'_>) -> Result<Condition> {
    let text = text.trim();
    if depth > MAX_DEPTH {
        return Err(Error::input(format!("nested deeper than {MAX_DEPTH} levels")));
    }
    if text.is_empty() {
        return Err(Error::input("a condition is missing").help(EXAMPLE));
    }
    if let Some(rest) = text.strip_prefix("not").filter(|r| !r.starts_with(|c: char| c.is_alphanumeric() || c == '_')) {
        return Ok(Condition::Not(Box::new(one(rest, depth + 1, read)?)));
    }
    let signs = comparisons(text)?;
    if signs.is_empty() {
        return match enclosed(text) {
            Some(inner) => disjunction(inner, depth + 1, read),
            None => Err(Error::input(format!("'{text}' compares nothing")).help(EXAMPLE)),
        };
    }
    let mut ends: Vec<usize> = signs.iter().map(|s| s.0).collect();
    ends.push(text.len());
    let starts = std::iter::once(0).chain(signs.iter().map(|s| s.0 + s.1.len()));
    let sums: Vec<&str> = starts.zip(ends).map(|(start, end)| text[start..end].trim()).collect();
    if let Some(k) = sums.iter().position(|sum| sum.is_empty()) {
        let (side, sign) = if k == 0 { ("left", signs[0].1) } else { ("right", signs[k - 1].1) };
        return Err(Error::input(format!("nothing stands to the {side} of '{sign}' in '{text}'")).help(EXAMPLE));
    }
    let chain = signs.iter().zip(sums.windows(2)).map(|((_, sign), pair)| {
        let (a, b) = (read(pair[0])?, read(pair[1])?);
        let written = format!("{} {sign} {}", pair[0], pair[1]);
        Ok(match *sign {
            ">" => Condition::greater(a, b, &written),
            "<" => Condition::greater(b, a, &written),
            sign => {
                let opposite = if sign == ">=" { ["<", ">"] } else { [">", "<"] };
                let written = format!("{} {} {}", pair[0], opposite[0], pair[1]);
                let (big, small) = if sign == ">=" { (b, a) } else { (a, b) };
                Condition::Not(Box::new(Condition::greater(big, small, &written)))
            }
        })
    });
    Condition::all(chain.collect::<Result<_>>()?).ok_or_else(|| Error::input("an empty condition"))
}

const EXAMPLE: &str = "write comparisons, joined by and, or, not: when = \"z_477 > 2 and not (a_12 > 0)\"";

/// A connective of another language: `AND`, `&&`, `!`. No name of an expression is one.
fn foreign(text: &str) -> Option<String> {
    let of_name = |c: char| c.is_alphanumeric() || c == '_';
    let other = |w: &&str| ["and", "or", "not"].iter().any(|known| w.eq_ignore_ascii_case(known) && w != known);
    let word = text.split(|c| !of_name(c)).find(other);
    let sign = ["&&", "||", "&", "|"].into_iter().find(|s| text.contains(s));
    let not = text.match_indices('!').any(|(i, _)| !text[i + 1..].starts_with('=')).then_some("!");
    word.or(sign).or(not).map(|found| format!("'{found}'"))
}

/// The text at depth 0 of parentheses, position by position.
fn outside(text: &str) -> impl Iterator<Item = usize> + '_ {
    let mut depth = 0usize;
    text.char_indices().filter_map(move |(i, c)| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        (depth == 0 && c != ')').then_some(i)
    })
}

/// The parts between a word that stands by itself, outside of parentheses.
fn joined<'a>(text: &'a str, word: &str) -> Vec<&'a str> {
    let of_name = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let (mut parts, mut start) = (Vec::new(), 0);
    for i in outside(text) {
        let stands = i >= start
            && text[i..].starts_with(word)
            && !of_name(text[..i].chars().next_back())
            && !of_name(text[i + word.len()..].chars().next());
        if stands {
            parts.push(&text[start..i]);
            start = i + word.len();
        }
    }
    parts.push(&text[start..]);
    parts
}

/// Positions and signs of comparisons outside of parentheses.
fn comparisons(text: &str) -> Result<Vec<(usize, &str)>> {
    let mut found: Vec<(usize, &str)> = Vec::new();
    for i in outside(text) {
        if found.last().is_some_and(|(at, sign)| i < at + sign.len()) {
            continue;
        }
        let rest = &text[i..];
        if ["==", "!=", "="].iter().any(|s| rest.starts_with(s)) {
            return Err(Error::input(format!("'{text}' asks for equality, which no pre-activation hits"))
                .help("say how near: when = \"1.9 < z_477 < 2.1\""));
        }
        if let Some(sign) = [">=", "<=", ">", "<"].into_iter().find(|s| rest.starts_with(s)) {
            found.push((i, &rest[..sign.len()]));
        }
    }
    Ok(found)
}

/// What one pair of parentheses holds, if it holds everything.
fn enclosed(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('(')?.strip_suffix(')')?;
    let mut depth = 0i32;
    let closes_early = inner.chars().any(|c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        depth < 0
    });
    (!closes_early && depth == 0).then_some(inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::eval::value;

    fn read(text: &str) -> Result<Condition> {
        Condition::parse(text, &mut |sum| sum.parse())
    }

    fn holds(text: &str, z: &[f64]) -> bool {
        value(&read(text).unwrap_or_else(|e| panic!("{text}: {e}")).expr(), z).unwrap() == 1.0
    }

    #[test]
    fn conditions_are_strict_where_they_say_so() {
        for (text, z, expected) in [
            ("z > 2", 2.0, false),
            ("z >= 2", 2.0, true),
            ("z < 2", 2.0, false),
            ("z <= 2", 2.0, true),
            ("2 < z", 2.5, true),
            ("1 < z < 5", 5.0, false),
            ("1 < z <= 5", 5.0, true),
            ("not z > 2", 2.0, true),
            ("not (z > 2 or z < -2)", 0.0, true),
            ("relu(z) > 0", 0.0, false),
            ("jumprelu(z, 2) > 1", 1.5, false),
            ("jumprelu(z, 2) > 3", 2.5, false),
            ("jumprelu(z, 2) < 1", 1.5, true),
            ("jumprelu(z, 2) < 1", 2.5, false),
            ("jumprelu(z, 2) <= 3", 3.0, true),
            ("(z + 1) * 2 > 6", 2.5, true),
            ("((z > 1) and ((z < 3)))", 2.0, true),
            ("not not z > 1", 2.0, true),
        ] {
            assert_eq!(holds(text, &[z]), expected, "{text} at {z}");
        }
        assert!(holds("z > 1 and z_1 > 1 or z_2 > 1", &[0.0, 0.0, 2.0]), "and binds stronger than or");
        assert!(!holds("z > 1 and (z_1 > 1 or z_2 > 1)", &[0.0, 0.0, 2.0]));
    }

    #[test]
    fn activity_becomes_a_condition_on_the_pre_activation() {
        for (text, expr) in [
            ("jumprelu(z, 0.75) > 0", "step(z - 0.75)"),
            ("jumprelu(z, 0.75) > 2", "step(z - 2)"),
            ("relu(z) > 0", "step(z)"),
            ("2 > relu(z)", "step(2 - z)"),
            ("z > -1", "step(z + 1)"),
            ("z > z_1", "step(z - z_1)"),
        ] {
            assert_eq!(read(text).unwrap().expr().to_string(), expr);
        }
    }

    #[test]
    fn what_is_settled_is_refused() {
        let range = Interval::new(-10.0, 10.0);
        for (text, said) in [
            ("z > 10", "'z > 10' never holds while pre-activations range from -10 to 10"),
            ("z > -11", "'z > -11' always holds"),
            ("z + z_1 > 25", "'z + z_1 > 25' never holds"),
            ("z > 5 and z < 3", "'z > 5 and z < 3' never holds"),
            ("z_1 > 0 or z > 5 and not z > 4", "never holds"),
            ("5 < z < 2", "never holds"),
            ("relu(z_1) >= 0", "'relu(z_1) < 0' never holds"),
            ("jumprelu(z, 2) > -1", "'jumprelu(z, 2) > -1' always holds"),
            ("jumprelu(z, 2) < 0", "never holds"),
            ("relu(z) + relu(z_1) > 25", "never holds"),
            ("jumprelu(z, 12) > 0", "never holds"),
        ] {
            let e = read(text).unwrap().check(range).expect_err(text);
            assert!(e.is_input() && e.to_string().contains(said), "{text}: {e}");
        }
        for text in [
            "jumprelu(z, 2) <= 0",
            "relu(z) + relu(z_1) > 15",
            "z > 5 or z < 3",
            "z > 5 and z_1 < 3",
            "z + z_1 > 15",
            "not (z > 5)",
            "z - z_1 > 15",
        ] {
            read(text).unwrap().check(range).unwrap();
        }
        read("z > 500").unwrap().check(Interval::ENTIRE).unwrap();
    }

    #[test]
    fn what_is_no_condition_is_refused() {
        for (text, said) in [
            ("", "a condition is missing"),
            ("z > 1 and", "a condition is missing"),
            ("z", "'z' compares nothing"),
            ("(z + 1)", "compares nothing"),
            ("z == 2", "asks for equality"),
            ("z != 2", "asks for equality"),
            ("z = 2", "asks for equality"),
            ("z > ", "nothing stands to the right of '>'"),
            ("z >> 1", "nothing stands to the right of '>'"),
            ("z > 1 AND z < 2", "'AND'"),
            ("z > 1) or (z < 2", "expected"),
            ("z > 1 or (z < 2", "'(z < 2' compares nothing"),
        ] {
            let e = read(text).expect_err(text).to_string();
            assert!(e.contains(said), "{text}: {e}");
        }
        assert!(read(&"(".repeat(100_000)).is_err());
        assert!(read(&"not ".repeat(100_000)).is_err());
        assert!(
            read(&format!("{}z > 1{}", "(".repeat(100), ")".repeat(100))).unwrap_err().to_string().contains("deeper")
        );
    }

    /// A condition with its meaning, by naive evaluation.
    #[derive(Clone, Debug)]
    enum Naive {
        Compare(usize, &'static str, i32, bool),
        Not(Box<Naive>),
        And(Box<Naive>, Box<Naive>),
        Or(Box<Naive>, Box<Naive>),
    }

    impl Naive {
        fn text(&self) -> String {
            match self {
                Naive::Compare(k, sign, c, true) => format!("jumprelu(z_{k}, 1) {sign} {c}"),
                Naive::Compare(k, sign, c, false) => format!("z_{k} {sign} {c}"),
                Naive::Not(a) => format!("not ({})", a.text()),
                Naive::And(a, b) => format!("({}) and ({})", a.text(), b.text()),
                Naive::Or(a, b) => format!("({}) or ({})", a.text(), b.text()),
            }
        }

        fn holds(&self, z: &[f64]) -> bool {
            match self {
                Naive::Compare(k, sign, c, active) => {
                    let a = if *active && z[*k] <= 1.0 { 0.0 } else { z[*k] };
                    let c = f64::from(*c);
                    match *sign {
                        ">" => a > c,
                        "<" => a < c,
                        ">=" => a >= c,
                        _ => a <= c,
                    }
                }
                Naive::Not(a) => !a.holds(z),
                Naive::And(a, b) => a.holds(z) && b.holds(z),
                Naive::Or(a, b) => a.holds(z) || b.holds(z),
            }
        }
    }

    fn naive() -> impl Strategy<Value = Naive> {
        let sign = prop::sample::select(vec![">", "<", ">=", "<="]);
        let leaf = (0usize..3, sign, -3i32..4, any::<bool>()).prop_map(|(k, s, c, a)| Naive::Compare(k, s, c, a));
        leaf.prop_recursive(3, 8, 2, |inner| {
            let (a, b, c) = (inner.clone(), inner.clone(), inner.clone());
            prop_oneof![
                a.prop_map(|a| Naive::Not(Box::new(a))),
                (b.clone(), b).prop_map(|(a, b)| Naive::And(Box::new(a), Box::new(b))),
                (c.clone(), c).prop_map(|(a, b)| Naive::Or(Box::new(a), Box::new(b))),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        // Quarters hit the thresholds exactly.
        #[test]
        fn conditions_mean_what_they_say(c in naive(), z in prop::array::uniform3(-20i32..20)) {
            let z = z.map(|z| f64::from(z) / 4.0);
            let parsed = read(&c.text()).unwrap();
            prop_assert_eq!(value(&parsed.expr(), &z).unwrap(), f64::from(u8::from(c.holds(&z))), "{}", c.text());
            match parsed.truth(Interval::new(-5.0, 5.0)) {
                Truth::Always => prop_assert!(c.holds(&z)),
                Truth::Never => prop_assert!(!c.holds(&z)),
                Truth::Open => {}
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[zano<>=() .1-9rtd_\u{e4}-]{0,40}") {
            let _ = read(&text);
        }
    }
}
