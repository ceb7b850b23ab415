//! The symbolic intermediate representation: responses as expressions over pre-activations.
//!
//! An [`Expr`] is a function R^m → R of the pre-activations `z, z_1, …, z_{m−1}`. Constants are exact rationals.
//! `Display` and `FromStr` are inverse to each other, and serde writes the same text.
//!
//! ```
//! use neurograft::expr::Expr;
//! let cap: Expr = "-relu(jumprelu(z, 1.5) - 8)".parse()?;
//! assert_eq!(cap.to_string().parse::<Expr>()?, cap);
//! assert_eq!(cap.arity(), 1);
//! # Ok::<(), neurograft::Error>(())
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::activation::{Activation, NAMES};
use crate::error::{Error, Result, nearest};
use crate::number::Number;
use crate::rational::Rational;

/// Deeper nesting is refused, so that no text exhausts the stack.
const MAX_DEPTH: usize = 120;
/// Longer texts are refused: a chain of operators nests as deep as it is long.
const MAX_TOKENS: usize = 2000;

/// A response: an expression over pre-activations.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expr {
    /// A constant.
    Const(Number),
    /// The pre-activation with this index; `z` is index 0.
    Pre(usize),
    /// a + b
    Add(Box<Expr>, Box<Expr>),
    /// a·b
    Mul(Box<Expr>, Box<Expr>),
    /// −a
    Neg(Box<Expr>),
    /// k·a
    Scale(Number, Box<Expr>),
    /// max(a, 0)
    Relu(Box<Expr>),
    /// 1 where a > 0 (strictly), else 0
    Step(Box<Expr>),
    /// a where a > θ (strictly), else 0
    JumpRelu(Box<Expr>, Number),
    /// min(max(a, lo), hi), lo ≤ hi
    Clamp(Box<Expr>, Number, Number),
    /// min(a, b)
    Min(Box<Expr>, Box<Expr>),
    /// max(a, b)
    Max(Box<Expr>, Box<Expr>),
    /// b where a > 0 (strictly), else c
    Select(Box<Expr>, Box<Expr>, Box<Expr>),
    /// An activation of the catalogue (other than relu) applied to an affine form.
    Act(Activation, Box<Expr>),
}

/// An affine form Σ_k c_k·z_k + constant; zero coefficients are absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affine {
    /// Coefficients by the pre-activation's index.
    pub coefficients: BTreeMap<usize, Rational>,
    /// The constant term.
    pub constant: Rational,
}

impl Affine {
    fn constant(c: Rational) -> Self {
        Affine { coefficients: BTreeMap::new(), constant: c }
    }
    fn scaled(mut self, k: &Rational) -> Self {
        self.coefficients.values_mut().for_each(|c| *c *= k);
        self.coefficients.retain(|_, c| !c.is_zero());
        self.constant *= k;
        self
    }
    fn plus(mut self, o: Affine) -> Self {
        for (k, c) in o.coefficients {
            *self.coefficients.entry(k).or_insert_with(Rational::zero) += c;
        }
        self.coefficients.retain(|_, c| !c.is_zero());
        self.constant += o.constant;
        self
    }
}

impl Expr {
    /// The pre-activation `z`.
    pub fn z() -> Expr {
        Expr::Pre(0)
    }

    /// A constant.
    pub fn constant(c: Number) -> Expr {
        Expr::Const(c)
    }

    /// `activation(argument)`. Error: the argument is not an affine form.
    pub fn act(activation: Activation, argument: Expr) -> Result<Expr> {
        match activation {
            Activation::Relu => Ok(Expr::Relu(Box::new(argument))),
            _ if argument.affine().is_some() => Ok(Expr::Act(activation, Box::new(argument))),
            _ => Err(Error::input(format!(
                "{activation}({argument}): the argument is not an affine form of the pre-activations"
            ))
            .help("activations apply to sums of constants and scaled pre-activations, as in silu(2 * z - 1)")),
        }
    }

    /// The activation itself, as a response: `activation(z)`.
    pub fn of(activation: Activation) -> Expr {
        Expr::act(activation, Expr::z()).expect("z is affine")
    }

    /// a + b
    #[must_use]
    pub fn plus(self, o: Expr) -> Expr {
        Expr::Add(Box::new(self), Box::new(o))
    }

    /// a − b
    #[must_use]
    pub fn minus(self, o: Expr) -> Expr {
        Expr::Add(Box::new(self), Box::new(Expr::Neg(Box::new(o))))
    }

    /// k·a
    #[must_use]
    pub fn scale(self, k: Number) -> Expr {
        Expr::Scale(k, Box::new(self))
    }

    /// How many pre-activations there must be: 1 + the largest index that occurs.
    pub fn arity(&self) -> usize {
        let mut n = 0;
        self.visit(&mut |e| {
            if let Expr::Pre(k) = e {
                n = n.max(k + 1);
            }
        });
        n
    }

    /// The operands, in order.
    pub fn children(&self) -> impl Iterator<Item = &Expr> {
        use Expr::*;
        let operands: [Option<&Expr>; 3] = match self {
            Const(_) | Pre(_) => [None; 3],
            Neg(a) | Scale(_, a) | Relu(a) | Step(a) | JumpRelu(a, _) | Clamp(a, _, _) | Act(_, a) => {
                [Some(a), None, None]
            }
            Add(a, b) | Mul(a, b) | Min(a, b) | Max(a, b) => [Some(a), Some(b), None],
            Select(a, b, c) => [Some(a), Some(b), Some(c)],
        };
        operands.into_iter().flatten()
    }

    fn visit(&self, f: &mut impl FnMut(&Expr)) {
        f(self);
        self.children().for_each(|c| c.visit(f));
    }

    /// The same expression with every pre-activation replaced.
    #[must_use]
    pub fn substitute(&self, f: &impl Fn(usize) -> Expr) -> Expr {
        use Expr::*;
        let s = |e: &Expr| Box::new(e.substitute(f));
        match self {
            Const(c) => Const(c.clone()),
            Pre(k) => f(*k),
            Add(a, b) => Add(s(a), s(b)),
            Mul(a, b) => Mul(s(a), s(b)),
            Neg(a) => Neg(s(a)),
            Scale(k, a) => Scale(k.clone(), s(a)),
            Relu(a) => Relu(s(a)),
            Step(a) => Step(s(a)),
            JumpRelu(a, t) => JumpRelu(s(a), t.clone()),
            Clamp(a, l, h) => Clamp(s(a), l.clone(), h.clone()),
            Min(a, b) => Min(s(a), s(b)),
            Max(a, b) => Max(s(a), s(b)),
            Select(a, b, c) => Select(s(a), s(b), s(c)),
            Act(act, a) => Act(act.clone(), s(a)),
        }
    }

    /// The affine form that the expression is by its shape, if it is one.
    pub fn affine(&self) -> Option<Affine> {
        use Expr::*;
        Some(match self {
            Const(c) => Affine::constant(c.exact().clone()),
            Pre(k) => Affine { coefficients: [(*k, Number::one().exact().clone())].into(), constant: Rational::zero() },
            Add(a, b) => a.affine()?.plus(b.affine()?),
            Neg(a) => a.affine()?.scaled(Number::from(-1).exact()),
            Scale(k, a) => a.affine()?.scaled(k.exact()),
            Mul(a, b) => {
                let (a, b) = (a.affine()?, b.affine()?);
                if a.coefficients.is_empty() {
                    b.scaled(&a.constant)
                } else if b.coefficients.is_empty() {
                    a.scaled(&b.constant)
                } else {
                    return None;
                }
            }
            Act(Activation::Identity, a) => a.affine()?,
            _ => return None,
        })
    }

    /// Parses with names of one's own for the pre-activations: `resolve` maps a name to an index.
    pub fn parse_with(text: &str, resolve: impl FnMut(&str) -> Option<usize>) -> Result<Expr> {
        let tokens = tokenize(text)?;
        if tokens.len() > MAX_TOKENS {
            return Err(Error::input(format!("an expression of more than {MAX_TOKENS} tokens")));
        }
        let mut parser = Parser { text, tokens, at: 0, depth: 0, resolve };
        let e = parser.sum()?;
        match parser.peek() {
            None => Ok(e),
            Some(t) => Err(parser.unexpected(t.text, "an operator or the end")),
        }
    }
}

/// `z`, `z_0` (the same), `z_1`, …
fn default_name(name: &str) -> Option<usize> {
    match name.strip_prefix("z_") {
        Some(k) => k.parse().ok().filter(|k| *k < 10_000),
        None => (name == "z").then_some(0),
    }
}

impl FromStr for Expr {
    type Err = Error;
    fn from_str(text: &str) -> Result<Expr> {
        Expr::parse_with(text, default_name)
    }
}

#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Level {
    Sum,
    Product,
    Unary,
}

impl Expr {
    fn level(&self) -> Level {
        match self {
            Expr::Add(..) => Level::Sum,
            Expr::Mul(..) | Expr::Scale(..) => Level::Product,
            // A quotient binds like a product.
            Expr::Const(c) if c.to_string().contains('/') => Level::Product,
            _ => Level::Unary,
        }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, least: Level) -> fmt::Result {
        if self.level() < least {
            return write!(f, "({self})");
        }
        write!(f, "{self}")
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Expr::*;
        match self {
            Const(c) => write!(f, "{c}"),
            Pre(0) => f.write_str("z"),
            Pre(k) => write!(f, "z_{k}"),
            Add(a, b) => {
                a.write(f, Level::Sum)?;
                match &**b {
                    Neg(b) => {
                        f.write_str(" - ")?;
                        b.write(f, Level::Product)
                    }
                    b => {
                        f.write_str(" + ")?;
                        b.write(f, Level::Product)
                    }
                }
            }
            Mul(a, b) => {
                // A bare literal on the left would read as a scale.
                if matches!(**a, Const(_)) {
                    write!(f, "({a})")?
                } else {
                    a.write(f, Level::Product)?
                }
                f.write_str(" * ")?;
                b.write(f, Level::Unary)
            }
            Scale(k, a) => {
                write!(f, "{k} * ")?;
                a.write(f, Level::Unary)
            }
            Neg(a) => {
                f.write_str("-")?;
                // −(3) is a negation, −3 a literal.
                if matches!(**a, Const(_)) { write!(f, "({a})") } else { a.write(f, Level::Unary) }
            }
            Relu(a) => write!(f, "relu({a})"),
            Step(a) => write!(f, "step({a})"),
            JumpRelu(a, t) => write!(f, "jumprelu({a}, {t})"),
            Clamp(a, l, h) => write!(f, "clamp({a}, {l}, {h})"),
            Min(a, b) => write!(f, "min({a}, {b})"),
            Max(a, b) => write!(f, "max({a}, {b})"),
            Select(a, b, c) => write!(f, "select({a}, {b}, {c})"),
            Act(act, a) => write!(f, "{act}({a})"),
        }
    }
}

impl serde::Serialize for Expr {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Expr {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Number,
    Name,
    Symbol,
}

#[derive(Clone, Copy)]
struct Token<'a> {
    kind: Kind,
    text: &'a str,
    column: usize,
}

fn tokenize(text: &str) -> Result<Vec<Token<'_>>> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let mut i = 0;
    while i < bytes.len() {
        let start = i;
        let kind = match bytes[i] {
            b' ' | b'\t' | b'\n' | b'\r' => {
                i += 1;
                continue;
            }
            b'0'..=b'9' | b'.' => {
                while i < bytes.len() {
                    let exponent_sign =
                        matches!(bytes[i], b'+' | b'-') && matches!(bytes[i - 1], b'e' | b'E') && i > start;
                    if bytes[i].is_ascii_digit() || matches!(bytes[i], b'.' | b'e' | b'E') || exponent_sign {
                        i += 1;
                    } else {
                        break;
                    }
                }
                Kind::Number
            }
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => {
                while i < bytes.len() && (bytes[i].is_ascii_alphanumeric() || bytes[i] == b'_') {
                    i += 1;
                }
                // An activation's parameter belongs to its name: leaky_relu:0.2, swish:3/2, elu:1e-3.
                if bytes.get(i) == Some(&b':') {
                    i += 1;
                    while i < bytes.len()
                        && (bytes[i].is_ascii_digit()
                            || matches!(bytes[i], b'.' | b'e' | b'E' | b'/')
                            || matches!(bytes[i], b'+' | b'-') && matches!(bytes[i - 1], b':' | b'e' | b'E'))
                    {
                        i += 1;
                    }
                }
                Kind::Name
            }
            b'+' | b'-' | b'*' | b'/' | b'(' | b')' | b',' => {
                i += 1;
                Kind::Symbol
            }
            _ => {
                let c = text[i..].chars().next().unwrap_or('?');
                return Err(Error::input(format!("unexpected character '{c}' at column {}", i + 1))
                    .at(format!("expression '{}'", shorten(text))));
            }
        };
        tokens.push(Token { kind, text: &text[start..i], column: start + 1 });
    }
    Ok(tokens)
}

fn shorten(text: &str) -> String {
    if text.chars().count() <= 80 { text.into() } else { text.chars().take(77).collect::<String>() + "..." }
}

struct Parser<'a, R> {
    text: &'a str,
    tokens: Vec<Token<'a>>,
    at: usize,
    depth: usize,
    resolve: R,
}

impl<'a, R: FnMut(&str) -> Option<usize>> Parser<'a, R> {
    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).copied()
    }

    fn take(&mut self, symbol: &str) -> bool {
        let found = self.peek().is_some_and(|t| t.kind == Kind::Symbol && t.text == symbol);
        self.at += usize::from(found);
        found
    }

    fn place(&self) -> String {
        format!("expression '{}'", shorten(self.text))
    }

    fn unexpected(&self, found: &str, wanted: &str) -> Error {
        let column = self.peek().map_or(self.text.len() + 1, |t| t.column);
        Error::input(format!("found {found} at column {column}, expected {wanted}")).at(self.place())
    }

    fn expect(&mut self, symbol: &str) -> Result<()> {
        if self.take(symbol) {
            return Ok(());
        }
        let found = self.peek().map_or("the end".to_string(), |t| format!("'{}'", t.text));
        Err(self.unexpected(&found, &format!("'{symbol}'")))
    }

    fn sum(&mut self) -> Result<Expr> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Error::input(format!("nested deeper than {MAX_DEPTH} levels")).at(self.place()));
        }
        let mut e = self.product()?;
        loop {
            e = if self.take("+") {
                e.plus(self.product()?)
            } else if self.take("-") {
                e.minus(self.product()?)
            } else {
                break;
            };
        }
        self.depth -= 1;
        Ok(e)
    }

    fn product(&mut self) -> Result<Expr> {
        let mut bare = self.literal_ahead();
        let mut e = self.unary()?;
        loop {
            if self.take("*") {
                let right = self.unary()?;
                e = match e {
                    Expr::Const(k) if bare => right.scale(k),
                    e => Expr::Mul(Box::new(e), Box::new(right)),
                };
                bare = false;
            } else if self.take("/") {
                let right = self.unary()?;
                let Expr::Const(d) = right else {
                    return Err(Error::input("only constants can be divided by").at(self.place()));
                };
                let Some(k) = d.recip() else {
                    return Err(Error::input("division by zero").at(self.place()));
                };
                e = match e {
                    Expr::Const(c) if bare => Expr::Const(&c * &k),
                    e => e.scale(k),
                };
            } else {
                return Ok(e);
            }
        }
    }

    /// Does a literal, possibly signed, come next?
    fn literal_ahead(&self) -> bool {
        let sign = usize::from(self.peek().is_some_and(|t| t.text == "-"));
        self.tokens.get(self.at + sign).is_some_and(|t| t.kind == Kind::Number)
    }

    fn unary(&mut self) -> Result<Expr> {
        if !self.take("-") {
            return self.primary();
        }
        if self.peek().is_some_and(|t| t.kind == Kind::Number) {
            let Expr::Const(c) = self.primary()? else { unreachable!("a number token is a constant") };
            return Ok(Expr::Const(-c));
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Error::input(format!("nested deeper than {MAX_DEPTH} levels")).at(self.place()));
        }
        let e = self.unary()?;
        self.depth -= 1;
        Ok(Expr::Neg(Box::new(e)))
    }

    fn number(&mut self) -> Result<Number> {
        let e = self.product()?;
        match e.affine() {
            Some(a) if a.coefficients.is_empty() => Ok(Number::from(a.constant)),
            _ => Err(Error::input(format!("'{e}' must be a constant here")).at(self.place())),
        }
    }

    fn primary(&mut self) -> Result<Expr> {
        let Some(token) = self.peek() else {
            return Err(self.unexpected("the end", "a number, a pre-activation, a function or '('"));
        };
        match token.kind {
            Kind::Number => {
                self.at += 1;
                token.text.parse().map(Expr::Const).map_err(|e| e.at(self.place()))
            }
            Kind::Symbol if self.take("(") => {
                let e = self.sum()?;
                self.expect(")")?;
                Ok(e)
            }
            Kind::Symbol => {
                Err(self.unexpected(&format!("'{}'", token.text), "a number, a pre-activation, a function or '('"))
            }
            Kind::Name => {
                self.at += 1;
                if self.take("(") { self.call(token) } else { self.variable(token) }
            }
        }
    }

    fn variable(&mut self, token: Token<'a>) -> Result<Expr> {
        if let Some(k) = (self.resolve)(token.text) {
            return Ok(Expr::Pre(k));
        }
        let known = FUNCTIONS.into_iter().chain(NAMES).find(|n| *n == token.text.split(':').next().unwrap_or(""));
        let help = match known {
            Some(f) => format!("{f} is a function: write {f}(z)"),
            None => "the pre-activation is written z, further ones z_1, z_2, ...".into(),
        };
        Err(Error::input(format!("unknown name '{}' at column {}", token.text, token.column))
            .help(help)
            .at(self.place()))
    }

    fn call(&mut self, token: Token<'a>) -> Result<Expr> {
        let e = Box::new(self.sum()?);
        let result = match token.text {
            "relu" => Expr::Relu(e),
            "step" => Expr::Step(e),
            "jumprelu" => {
                self.expect(",")?;
                Expr::JumpRelu(e, self.number()?)
            }
            "clamp" => {
                self.expect(",")?;
                let lo = self.number()?;
                self.expect(",")?;
                let hi = self.number()?;
                if lo > hi {
                    return Err(
                        Error::input(format!("clamp from {lo} to {hi}: the bounds are reversed")).at(self.place())
                    );
                }
                Expr::Clamp(e, lo, hi)
            }
            "min" | "max" | "select" => {
                self.expect(",")?;
                let second = Box::new(self.sum()?);
                match token.text {
                    "min" => Expr::Min(e, second),
                    "max" => Expr::Max(e, second),
                    _ => {
                        self.expect(",")?;
                        Expr::Select(e, second, Box::new(self.sum()?))
                    }
                }
            }
            name => {
                let activation = name.parse::<Activation>().map_err(|error| {
                    match nearest(name, FUNCTIONS.into_iter().chain(NAMES)) {
                        Some(n) => Error::input(format!("unknown function '{name}' at column {}", token.column))
                            .help(format!("did you mean '{n}'?")),
                        None => error,
                    }
                    .at(self.place())
                })?;
                Expr::act(activation, *e).map_err(|e| e.at(self.place()))?
            }
        };
        self.expect(")")?;
        Ok(result)
    }
}

/// The functions that are not activations.
const FUNCTIONS: [&str; 7] = ["relu", "step", "jumprelu", "clamp", "min", "max", "select"];

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Expr {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn reads_what_people_write() {
        assert_eq!(read("step(z - 2)").to_string(), "step(z - 2)");
        assert_eq!(read("-relu(z)").to_string(), "-relu(z)");
        assert_eq!(read("z/3").to_string(), "1/3 * z");
        assert_eq!(read("1/3 * z"), Expr::z().scale(Number::ratio(1, 3)));
        assert_eq!(read("(8 - z) * step(z - 1.5)").to_string(), "(8 - z) * step(z - 1.5)");
        assert_eq!(read("leaky_relu:0.2(z)").to_string(), "leaky_relu:0.2(z)");
        assert_eq!(read("elu:1e-3(2*z+1)").to_string(), "elu:0.001(2 * z + 1)");
        assert_eq!(read("gelu_new(z)").to_string(), "gelu_tanh(z)");
        assert_eq!(read("clamp(z_3, -1, 1/2)").arity(), 4);
        assert_eq!(read("relu(silu(z) - 1)").arity(), 1);
    }

    #[test]
    fn says_where_and_what_would_work() {
        for (text, part) in [
            ("relu(z", "expected ')'"),
            ("gleu(z)", "did you mean 'gelu'?"),
            ("silu(z*z)", "not an affine form"),
            ("y + 1", "unknown name 'y' at column 1"),
            ("relu", "relu is a function"),
            ("z / z", "only constants"),
            ("z / 0", "division by zero"),
            ("clamp(z, 2, 1)", "reversed"),
            ("z ? 1", "unexpected character '?'"),
            ("jumprelu(z, z)", "must be a constant"),
            ("", "found the end"),
            ("1 2", "expected an operator"),
            ("elu:-1(z)", "must be positive"),
        ] {
            let error = text.parse::<Expr>().unwrap_err();
            assert!(error.is_input() && error.to_string().contains(part), "{text}: {error}");
        }
        assert!("(".repeat(100_000).parse::<Expr>().is_err());
        assert!("-".repeat(100_000).parse::<Expr>().is_err());
        assert!("relu(".repeat(100_000).parse::<Expr>().is_err());
    }

    #[test]
    fn affine_forms_are_recognised() {
        let a = read("2 * (z - 3) + z * 4 - z_1/2").affine().unwrap();
        assert_eq!(Number::from(a.constant), Number::from(-6));
        assert_eq!(Number::from(a.coefficients[&0].clone()), Number::from(6));
        assert_eq!(Number::from(a.coefficients[&1].clone()), Number::ratio(-1, 2));
        assert!(read("z - z").affine().unwrap().coefficients.is_empty());
        assert!(read("z * z").affine().is_none());
    }
}
