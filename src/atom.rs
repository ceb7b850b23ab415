//! The transcendental building blocks that smooth activations reduce to, and their enclosures.
//!
//! Part of the trusted base. Every activation of the catalogue is, between its knots, a polynomial plus polynomials
//! times *atoms* A(at + b): silu(u) = u·sigmoid(u), gelu(u) = u·Φ(u), tanh(u) = 2·sigmoid(2u) − 1, and so on
//! (`algebra::of_activation`). Atoms of different kind or argument are linearly independent over the polynomials, so an
//! identity between stacks is an identity between their coefficients.
//!
//! | kind | A(u) | relation used | decay |
//! |---|---|---|---|
//! | Sigmoid | s = 1/(1 + e^−u) | A(u) = 1 − A(−u) | ≤ e^u |
//! | Phi | Φ(u) | A(u) = 1 − A(−u) | ≤ e^u for u ≤ −2 |
//! | Cubic | sigmoid(2√(2/π)(u + 0.044715u³)) | A(u) = 1 − A(−u) | ≤ e^u for u ≤ 0 |
//! | Mish | tanh(softplus(u)) | A(u) = 1 − MishRest(u) | ≤ 1.5e^u for u ≤ 0 |
//! | MishRest | 1 − tanh(softplus(u)) | | ≤ 2e^−u for u ≥ 0 |
//! | Softplus | ln(1 + e^u) | A(u) = u + A(−u) | ≤ e^u |
//! | Exp | e^u | | = e^u |
//! | Recip | 1/(1 + u), u > −1 | | ≤ 1/u for u > 0 |

use crate::activation::{Jet, mish_gate, normal, sigmoids, sigmoids_and_bell, softplus_value, tanh_gate_argument};
use crate::interval::Interval;

/// The kinds of atoms; the table above defines them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// 1/(1 + e^−u)
    Sigmoid,
    /// the normal distribution function
    Phi,
    /// the gate of gelu_tanh
    Cubic,
    /// tanh(softplus(u))
    Mish,
    /// 1 − tanh(softplus(u))
    MishRest,
    /// ln(1 + e^u)
    Softplus,
    /// e^u
    Exp,
    /// 1/(1 + u) for u > −1
    Recip,
}

/// In which direction of its argument an atom vanishes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decay {
    /// |A(u)| ≤ factor·e^u for u ≤ −from
    Left {
        /// the factor
        factor: f64,
        /// the start of the range, ≥ 0
        from: f64,
    },
    /// |A(u)| ≤ factor·e^−u for u ≥ from
    Right {
        /// the factor
        factor: f64,
        /// the start of the range, ≥ 0
        from: f64,
    },
    /// |A(u)| ≤ 1/u for u > 0
    Reciprocal,
}

impl Kind {
    /// Where and how fast the atom vanishes; each line of the table in the module's head.
    pub fn decay(self) -> Decay {
        match self {
            Kind::Sigmoid | Kind::Cubic | Kind::Softplus | Kind::Exp => Decay::Left { factor: 1.0, from: 0.0 },
            // Φ(u) ≤ φ(u)/|u| (Gordon 1941) ≤ e^(−u²/2)·0.2 ≤ e^u for u ≤ −2.
            Kind::Phi => Decay::Left { factor: 1.0, from: 2.0 },
            // n/(n + 2) ≤ n/2 = e^u(1 + e^u/2), n = e^2u + 2e^u.
            Kind::Mish => Decay::Left { factor: 1.5, from: 0.0 },
            // 2/(n + 2) ≤ 2e^−2u.
            Kind::MishRest => Decay::Right { factor: 2.0, from: 0.0 },
            Kind::Recip => Decay::Reciprocal,
        }
    }

    /// Enclosure of A over `u`.
    pub fn value(self, u: Interval) -> Interval {
        match self {
            Kind::Sigmoid => sigmoids(u).0,
            Kind::Phi => normal(u).0,
            Kind::Cubic => sigmoids(tanh_gate_argument(u).0).0,
            Kind::Mish => mish_gate(u).0,
            Kind::MishRest => mish_gate(u).1,
            Kind::Softplus => softplus_value(u),
            Kind::Exp => u.exp(),
            Kind::Recip => self.jet(u).v,
        }
    }

    /// Enclosures of A, A′, A″ over `u`.
    pub fn jet(self, u: Interval) -> Jet {
        let p = Interval::point;
        match self {
            Kind::Sigmoid => {
                // s′ = s·s̄ ≤ 1/4, |s″| = |s·s̄·(s̄ − s)| ≤ √3/18 < 0.09623.
                let (s, c, d1) = sigmoids_and_bell(u);
                Jet { v: s, d1, d2: (d1 * (c - s)).tighten(Interval::symmetric(0.09623)) }
            }
            Kind::Phi => {
                // Φ′ = φ, Φ″ = −uφ, |uφ(u)| ≤ φ(1) < 0.24198.
                let (cdf, pdf) = normal(u);
                Jet { v: cdf, d1: pdf, d2: (-(u * pdf)).tighten(Interval::symmetric(0.24198)) }
            }
            Kind::Cubic => {
                // With q the argument of the sigmoid: s·s̄·q′ and s·s̄·((s̄ − s)q′² + q″).
                let (q, q1, q2) = tanh_gate_argument(u);
                let (s, c, sc) = sigmoids_and_bell(q);
                Jet { v: s, d1: sc * q1, d2: sc * ((c - s) * q1.sqr() + q2) }
            }
            Kind::Mish | Kind::MishRest => {
                // w = tanh(softplus u): w′ = r·s, w″ = r·s·(s̄ − 2ws) with r = 1 − w².
                let (w, rest, r) = mish_gate(u);
                let (s, c) = sigmoids(u);
                let (d1, d2) = (r * s, r * s * (c - p(2.0) * w * s));
                if self == Kind::Mish { Jet { v: w, d1, d2 } } else { Jet { v: rest, d1: -d1, d2: -d2 } }
            }
            Kind::Softplus => {
                let (s, _, bell) = sigmoids_and_bell(u);
                Jet { v: softplus_value(u), d1: s, d2: bell }
            }
            Kind::Exp => {
                let e = u.exp();
                Jet { v: e, d1: e, d2: e }
            }
            Kind::Recip => {
                let q = Interval::ONE + u;
                if q.lo() <= 0.0 {
                    return Jet { v: Interval::ENTIRE, d1: Interval::ENTIRE, d2: Interval::ENTIRE };
                }
                let r = Interval::ONE / q;
                Jet { v: r, d1: -r.sqr(), d2: p(2.0) * r.sqr() * r }
            }
        }
    }
}
