//! A stack: the neurons that realise one scalar response, and the function that they compute.

use serde::{Deserialize, Serialize};

use crate::activation::Activation;
use crate::error::{Error, Result};
use crate::expr::Expr;
use crate::number::Number;
use crate::rational::Rational;

/// The host MLP's shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Σ σ(gate)·up·down, as in Llama
    #[default]
    Gated,
    /// Σ σ(gate)·down, as in GPT-2
    Plain,
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Form::Gated => "gated",
            Form::Plain => "plain",
        })
    }
}

impl std::str::FromStr for Form {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "gated" => Ok(Form::Gated),
            "plain" => Ok(Form::Plain),
            _ => Err(Error::input(format!("unknown form '{}'", text.escape_debug())).help("'gated' or 'plain'")),
        }
    }
}

/// One hidden unit as a function of a pre-activation z: out·σ(weight·z + bias), times (up.0·z + up.1) when gated.
#[derive(Clone, Debug, PartialEq)]
pub struct Neuron<T> {
    /// slope of σ's argument (the gate's, when gated)
    pub weight: T,
    /// offset of σ's argument
    pub bias: T,
    /// output weight
    pub out: T,
    /// (up weight, up bias) of a gated neuron
    pub up: Option<(T, T)>,
}

/// φ̂(z) = constant + Σ neurons; all gated or all plain.
#[derive(Clone, Debug, PartialEq)]
pub struct Stack<T> {
    /// the host's activation σ
    pub source: Activation,
    /// the output constant
    pub constant: T,
    /// the neurons
    pub neurons: Vec<Neuron<T>>,
}

/// A stack of exact rationals: what a construction means before rounding.
pub type IdealStack = Stack<Number>;

impl<T> Stack<T> {
    /// The same stack with every number converted.
    pub fn try_map<U, E>(
        &self,
        mut f: impl FnMut(&T) -> std::result::Result<U, E>,
    ) -> std::result::Result<Stack<U>, E> {
        let neurons = self.neurons.iter().map(|n| {
            let up = match &n.up {
                Some((w, b)) => Some((f(w)?, f(b)?)),
                None => None,
            };
            Ok(Neuron { weight: f(&n.weight)?, bias: f(&n.bias)?, out: f(&n.out)?, up })
        });
        Ok(Stack {
            source: self.source.clone(),
            neurons: neurons.collect::<std::result::Result<_, E>>()?,
            constant: f(&self.constant)?,
        })
    }
}

impl IdealStack {
    /// Inner weights times f > 0 and outer weights over f^degree: the same function where σ is homogeneous of that degree.
    #[must_use]
    pub fn scaled(&self, factor: &Rational, degree: u32) -> IdealStack {
        let outer: Rational = (0..degree).fold(Rational::one(), |p, _| p * factor);
        let times = |x: &Number, f: &Rational| Number::from(x.exact() * f);
        let neurons = self.neurons.iter().map(|n| Neuron {
            weight: times(&n.weight, factor),
            bias: times(&n.bias, factor),
            out: Number::from(n.out.exact() / &outer),
            up: n.up.clone(),
        });
        IdealStack { source: self.source.clone(), constant: self.constant.clone(), neurons: neurons.collect() }
    }

    /// The function that the stack computes, as an expression in z.
    pub fn expr(&self) -> Expr {
        let line = |w: &Number, b: &Number| Expr::z().scale(w.clone()).plus(Expr::constant(b.clone()));
        let mut sum = Expr::constant(self.constant.clone());
        for n in &self.neurons {
            let hidden = Expr::act(self.source.clone(), line(&n.weight, &n.bias)).expect("an affine argument");
            let hidden = match &n.up {
                Some((w, b)) => Expr::Mul(Box::new(hidden), Box::new(line(w, b))),
                None => hidden,
            };
            sum = sum.plus(hidden.scale(n.out.clone()));
        }
        sum
    }
}

impl Stack<f64> {
    /// The same stack with its floats as exact rationals. Error: a number is NaN or infinite.
    pub fn exact(&self) -> Result<IdealStack> {
        self.try_map(|x| {
            Number::from_f64(*x).ok_or_else(|| {
                Error::input(format!("a neuron's number is {x}")).help("weights, biases and outputs must be finite")
            })
        })
    }

    /// φ̂(z) in floating point: for search and plots, never for a bound.
    pub fn value(&self, z: f64) -> f64 {
        self.neurons.iter().fold(self.constant, |sum, n| {
            let up = n.up.map_or(1.0, |(w, b)| w * z + b);
            sum + n.out * self.source.value(n.weight * z + n.bias) * up
        })
    }
}
