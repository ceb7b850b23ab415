//! σ and σ′ for the search: fast, and good to 1e−12.

use crate::activation::{Activation, Side};

/// σ and σ′ fast enough for search: a quintic Hermite table where σ is costly.
pub(super) struct Source {
    kind: Kind,
    /// c0, c1, c2 of both tails
    pub tails: [[f64; 3]; 2],
    /// σ(κt) = κ^d·σ(t) for κ > 0: of the weight only the sign matters
    pub homogeneous: bool,
}

enum Kind {
    /// σ(t) = table(rate·t)/rate within ±REACH
    Table {
        rate: f64,
        coefficients: Vec<[f64; 6]>,
    },
    /// scale·t for t ≥ 0, scale·alpha·(e^(rate·t) − 1) before
    Elu {
        scale: f64,
        alpha: f64,
        rate: f64,
    },
    Pieces {
        knots: Vec<f64>,
        pieces: Vec<[f64; 3]>,
    },
    Softsign,
}

/// Beyond it every exponential tail of the catalogue is below 1e−15.
pub(super) const REACH: f64 = 40.0;
/// Panels per unit; the quintic's error h⁶/46080·|σ⁽⁶⁾| is below 1e−12 for the catalogue.
const PANELS: f64 = 32.0;

impl Source {
    pub fn new(activation: &Activation) -> Self {
        let tails = [Side::Left, Side::Right].map(|s| activation.tail(s).asymptote.map(|c| c.to_f64()));
        let kind = match activation {
            Activation::Softsign => Kind::Softsign,
            _ => match activation.polynomial_pieces() {
                Some((knots, pieces)) => Kind::Pieces {
                    knots: knots.iter().map(|k| k.to_f64()).collect(),
                    pieces: pieces.iter().map(|p| [p[0].to_f64(), p[1].to_f64(), p[2].to_f64()]).collect(),
                },
                None => match (activation.elu_parameters(), activation.swish_beta()) {
                    (Some((scale, alpha, gamma)), _) => {
                        Kind::Elu { scale: scale.to_f64(), alpha: alpha.to_f64(), rate: 1.0 / gamma.to_f64() }
                    }
                    // The swish family shares silu's table.
                    (_, Some(beta)) => Kind::Table { rate: beta.to_f64(), coefficients: table(&Activation::Silu) },
                    _ => Kind::Table { rate: 1.0, coefficients: table(activation) },
                },
            },
        };
        let homogeneous = activation.homogeneity().is_some();
        Source { kind, tails, homogeneous }
    }

    /// Where σ has its least value on the left, as u ≥ 0 with σ(−u) least; 0 where it rises throughout.
    pub fn least(&self) -> f64 {
        let (mut a, mut b) = (-8.0, 0.0);
        for _ in 0..60 {
            let m = 0.5 * (a + b);
            if self.at(m).1 < 0.0 { a = m } else { b = m }
        }
        if a == -8.0 { 0.0 } else { -b }
    }

    pub fn at(&self, t: f64) -> (f64, f64) {
        match &self.kind {
            Kind::Table { rate, coefficients } => {
                let x = (t * rate + REACH) * PANELS;
                if (0.0..2.0 * REACH * PANELS).contains(&x) {
                    let k = x as usize;
                    let s = x - k as f64;
                    let [a, b, c, d, e, f] = coefficients[k];
                    let v = a + s * (b + s * (c + s * (d + s * (e + s * f))));
                    let d1 = b + s * (2.0 * c + s * (3.0 * d + s * (4.0 * e + s * 5.0 * f)));
                    (v / rate, d1 * PANELS)
                } else {
                    let [a, b, c] = self.tails[usize::from(t > 0.0)];
                    (a + t * (b + t * c), b + 2.0 * t * c)
                }
            }
            Kind::Elu { scale, alpha, rate } => {
                if t >= 0.0 {
                    (scale * t, *scale)
                } else {
                    let e = (rate * t).exp_m1();
                    (scale * alpha * e, scale * alpha * rate * (e + 1.0))
                }
            }
            Kind::Pieces { knots, pieces } => {
                let [a, b, c] = pieces[knots.iter().filter(|k| **k <= t).count()];
                (a + t * (b + t * c), b + 2.0 * t * c)
            }
            Kind::Softsign => {
                let r = 1.0 / (1.0 + t.abs());
                (t * r, r * r)
            }
        }
    }
}

/// Quintic Hermite coefficients in s ∈ [0, 1) of each panel.
fn table(activation: &Activation) -> Vec<[f64; 6]> {
    let h = 1.0 / PANELS;
    let panels = (2.0 * REACH * PANELS) as usize;
    let scaled = |t: f64| {
        let [v, d, e] = activation.derivatives(t);
        [v, d * h, e * h * h]
    };
    (0..panels)
        .map(|k| {
            let [v0, d0, e0] = scaled(k as f64 * h - REACH);
            let [v1, d1, e1] = scaled((k + 1) as f64 * h - REACH);
            let (r, s, q) = (v1 - v0 - d0 - 0.5 * e0, d1 - d0 - e0, e1 - e0);
            [v0, d0, 0.5 * e0, 10.0 * r - 4.0 * s + 0.5 * q, -15.0 * r + 7.0 * s - q, 6.0 * r - 3.0 * s + 0.5 * q]
        })
        .collect()
}
