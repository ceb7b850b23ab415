//! Norm neutralisation: constants in a few coordinates of the stream make the norm before an inserted MLP a known scale.
//!
//! RMSNorm divides x by its own root mean square, so a threshold on z = ⟨w, x⟩ would move from token to token. Let the
//! inserted layer's attention (zero weights, an output bias) write constants C_i = a_i·2^k into *carrier* coordinates with
//! Σ a_i² = H. The norm then sees the mean square
//!
//! ```text
//! (Σ C_i² + ‖x‖² + ‖h‖²)/H + eps = 4^k·(1 + t),   t = (‖x‖² + ‖h‖²)/(H·4^k) + eps/4^k
//! ```
//!
//! (h: the values that a first inserted layer leaves for a second one in *guard* coordinates), and its output, with gain
//! 2^k, is s·x with s = (1 + t)^(−1/2), between (1 + t_max)^(−1/2) and 1. An engine that sums squares in f32, in whatever
//! order, finds 4^k exactly as soon as ‖x‖² + ‖h‖² + H·eps < 2^−25·min C_i²: a partial sum that holds some C_i² has units
//! of 2^−23·C_i² or more, so nothing else ever moves it. Then s = 1 and x arrives as it is ([`Carriers::exact_up_to`]).
//!
//! *Padded* carriers are new coordinates: the hidden size grows from d to H, and every other norm keeps its meaning if its
//! gain is multiplied by √(d/H) and its eps by d/H (the mean is over H coordinates, of which H − d are 0). Each a_i is a
//! power of two, so that a gain of 1/a_i turns the carrier into an exact 1, which feeds biases: no bias tensor is needed
//! but the writer's. *Borrowed* carriers are coordinates of the model itself: (x_j + C) − C loses the low bits of x_j, and
//! x_j is not read, so that no other layer changes.

use serde::{Deserialize, Serialize};

use crate::derive::Reading;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::interval::Interval;

/// Where the constants go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// new coordinates at the end of the stream
    Padded,
    /// coordinates of the model itself
    Borrowed,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Padded => "padded",
            Kind::Borrowed => "borrowed",
        })
    }
}

/// One constant of the stream: C = a·2^k.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constant {
    /// its coordinate in the spliced model's stream
    pub coordinate: usize,
    /// a, from 1 to 256; a power of two where the carrier is padded
    pub a: u32,
}

/// The plan of a neutralised norm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Carriers {
    /// padded or borrowed
    pub kind: Kind,
    /// d, the hidden size of the model before splicing: coordinates 0 to d − 1 are the model's own
    pub live: usize,
    /// H, the hidden size of the spliced model
    pub hidden_size: usize,
    /// k
    pub exponent: u32,
    /// Σ a² = H
    pub constants: Vec<Constant>,
    /// coordinates that carry values from a first inserted layer to a second one
    pub guards: Vec<usize>,
}

/// f32 squares must stay finite: H·4^k < 2^127 for H ≤ 2^16.
const MOST_EXPONENT: u32 = 54;
/// 2^40·√H outgrows every residual seen by far, and its squares (2^88) are far from overflow.
const USUAL_EXPONENT: u32 = 40;

impl Carriers {
    /// New coordinates: the smallest hidden size that is a multiple of `multiple` and has room.
    ///
    /// `ones`: how many exact constants the biases need. `stream`: the format that the engine keeps x in. `norm`: the
    /// largest ‖x‖, where one is known; `reach`: the largest value in a guard.
    ///
    /// Errors: f16 streams that cannot hold constants large enough for `norm`.
    pub fn padded(
        live: usize,
        multiple: usize,
        ones: usize,
        guards: usize,
        stream: Format,
        norm: Option<f64>,
        reach: f64,
    ) -> Result<Carriers> {
        let multiple = multiple.max(1);
        let mut hidden_size = (live / multiple + 1) * multiple;
        let powers = loop {
            // More than 2^24 coordinates are no exact f32 count.
            if hidden_size > 1 << 24 {
                return Err(Error::unsupported(format!("a hidden size of {live}: no admissible padding")));
            }
            let room = hidden_size - live;
            if let Some(powers) = powers_of_four(hidden_size, ones.max(1))
                && powers.len() + guards <= room
                && reciprocal_is_exact(hidden_size)
            {
                break powers;
            }
            hidden_size += multiple;
        };
        let (largest, least) = (powers.first().copied().unwrap_or(1), powers.last().copied().unwrap_or(1));
        let constants: Vec<Constant> =
            powers.iter().enumerate().map(|(i, a)| Constant { coordinate: live + i, a: *a }).collect();
        let first_guard = live + constants.len();
        let exponent = exponent(stream, largest, unit(stream, hidden_size, least), norm, reach)?;
        let guards = (first_guard..first_guard + guards).collect();
        Ok(Carriers { kind: Kind::Padded, live, hidden_size, exponent, constants, guards })
    }

    /// The model's own coordinates, best first: as many as the hidden size needs squares, at most four.
    ///
    /// ½(‖x‖/‖C‖)² of the read values is lost to the norm, and ‖C‖·2^−p of x_j to rounding, p the stream's bits: the sum is
    /// least at ‖C‖ = 2^(p/3)·‖x‖.
    ///
    /// Errors: fewer candidates than squares; a stream that cannot hold the constants.
    pub fn borrowed(hidden_size: usize, candidates: &[usize], stream: Format, norm: f64) -> Result<Carriers> {
        let squares = squares(hidden_size);
        if candidates.len() < squares.len() {
            return Err(Error::input(format!(
                "{} coordinates to borrow, a hidden size of {hidden_size} needs {}",
                candidates.len(),
                squares.len()
            )));
        }
        let precision = bits(stream);
        let ideal = (f64::exp2(precision / 3.0) * norm / (hidden_size as f64).sqrt()).log2().round();
        let largest = squares.iter().copied().max().unwrap_or(1);
        let most = most_exponent(stream, largest);
        let exponent = ideal.clamp(0.0, f64::from(MOST_EXPONENT)) as u32;
        if exponent > most {
            let size = f64::exp2(f64::from(most)) * (hidden_size as f64).sqrt();
            return Err(too_large(stream, size / f64::exp2(precision / 3.0)));
        }
        let constants = squares.iter().zip(candidates).map(|(a, c)| Constant { coordinate: *c, a: *a }).collect();
        Ok(Carriers { kind: Kind::Borrowed, live: hidden_size, hidden_size, exponent, constants, guards: Vec::new() })
    }

    /// Checks what the type does not: coordinates in place and distinct, Σ a² = H.
    pub fn check(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::input(format!("carriers: {text}")));
        let sum: usize = self.constants.iter().map(|c| (c.a as usize).pow(2)).sum();
        if sum != self.hidden_size {
            return wrong(format!("the squares add up to {sum}, the hidden size is {}", self.hidden_size));
        }
        if self.exponent > MOST_EXPONENT {
            return wrong(format!("2^{} overflows in the sum of squares", self.exponent));
        }
        let range = match self.kind {
            Kind::Padded => self.live..self.hidden_size,
            Kind::Borrowed => 0..self.live,
        };
        if self.kind == Kind::Borrowed && (self.live != self.hidden_size || !self.guards.is_empty()) {
            return wrong("borrowed carriers neither pad nor guard".into());
        }
        let mut all: Vec<usize> = self.constants.iter().map(|c| c.coordinate).chain(self.guards.clone()).collect();
        if let Some(c) = all.iter().find(|c| !range.contains(c)) {
            return wrong(format!("coordinate {c} is not in {range:?}"));
        }
        all.sort_unstable();
        if all.windows(2).any(|w| w[0] == w[1]) {
            return wrong("a coordinate is used twice".into());
        }
        if self.kind == Kind::Padded && self.constants.iter().any(|c| !c.a.is_power_of_two()) {
            return wrong("a padded constant is no power of two".into());
        }
        Ok(())
    }

    /// C of a constant.
    pub fn value(&self, c: &Constant) -> f64 {
        f64::from(c.a) * f64::exp2(f64::from(self.exponent))
    }

    /// What the writer's bias is: \[H\].
    pub fn writer_bias(&self) -> Vec<f64> {
        let mut bias = vec![0.0; self.hidden_size];
        self.constants.iter().for_each(|c| bias[c.coordinate] = self.value(c));
        bias
    }

    /// The gain of the neutralised norm: \[H\]; 2^k on what is read, 1/a on the constants that feed biases, else 0.
    pub fn gain(&self) -> Vec<f64> {
        let mut gain = vec![0.0; self.hidden_size];
        let scale = f64::exp2(f64::from(self.exponent));
        gain[..self.live].fill(scale);
        self.guards.iter().for_each(|g| gain[*g] = scale);
        for c in &self.constants {
            gain[c.coordinate] = match self.kind {
                Kind::Padded => 1.0 / f64::from(c.a),
                Kind::Borrowed => 0.0,
            };
        }
        gain
    }

    /// √(d/H): what every other norm's gain is multiplied by.
    pub fn other_gains(&self) -> f64 {
        (self.live as f64 / self.hidden_size as f64).sqrt()
    }

    /// d/H: what every other norm's eps is multiplied by.
    pub fn other_eps(&self) -> f64 {
        self.live as f64 / self.hidden_size as f64
    }

    /// Padded carriers: the norm of (x, h) up to which an engine hands x and h to the MLP exactly, in a stream of that
    /// format, with the norm computed in f32.
    pub fn exact_up_to(&self, stream: Format) -> f64 {
        let least = self.constants.iter().map(|c| c.a).min().unwrap_or(0);
        unit(stream, self.hidden_size, least) * f64::exp2(f64::from(self.exponent)) / margin(stream)
    }

    /// What the MLP is handed where ‖x‖ ≤ `norm`, |x_j| ≤ `borrowed` in borrowed coordinates, and the norm is computed in f32.
    ///
    /// Padded carriers are planned so that it is x itself. Borrowed ones: see [`Carriers::scale`]; the borrowed coordinates
    /// are not read, and x_j + C − C is rounded twice to units of 2^(1−p)·2C at most.
    pub fn reading(&self, stream: Format, norm: f64, borrowed: Option<f64>, eps: f64) -> Reading {
        if self.kind == Kind::Padded {
            return Reading::exact();
        }
        let bound = borrowed.unwrap_or(norm).min(norm);
        let s = self.scale(norm, 0.0, bound, eps);
        let lost = self.constants.iter().fold(Interval::ZERO, |sum, c| {
            let largest = Interval::point(self.value(c)) + Interval::point(bound);
            sum + (largest * Interval::point(f64::exp2(1.0 - bits(stream)))).sqr()
        });
        Reading {
            scale: [s.lo(), s.hi()],
            dropped: self.constants.iter().map(|c| (c.coordinate, bound)).collect(),
            residue: lost.sqrt().hi(),
        }
    }

    /// s: the MLP sees s·x, in real arithmetic, for ‖x‖ ≤ `norm`, ‖h‖ ≤ `reach` and |x_j| ≤ `borrowed` in borrowed coordinates.
    ///
    /// With borrowed coordinates Σ (x_j + C_j)² replaces Σ C_j²: the mean square changes by at most
    /// Σ (2·C_j·|x_j| + x_j²)/H, in either direction.
    pub fn scale(&self, norm: f64, reach: f64, borrowed: f64, eps: f64) -> Interval {
        let point = Interval::point;
        let quarter = point(f64::exp2(-2.0 * f64::from(self.exponent)));
        let size = point(self.hidden_size as f64);
        let t = (point(norm).sqr() + point(reach).sqr()) * quarter / size + point(eps) * quarter;
        let cross = match self.kind {
            Kind::Padded => Interval::ZERO,
            Kind::Borrowed => self.constants.iter().fold(Interval::ZERO, |sum, c| {
                sum + point(2.0) * point(self.value(c)) * point(borrowed.min(norm)) * quarter / size
            }),
        };
        let most = point(1.0) + t + cross;
        let least = (point(1.0) - cross).max(Interval::ZERO);
        (point(1.0) / point(most.hi()).sqrt()).hull(if least.lo() > 0.0 {
            point(1.0) / point(least.lo()).sqrt()
        } else {
            Interval::new(0.0, f64::INFINITY)
        })
    }
}

/// p, the significant bits of a format.
fn bits(format: Format) -> f64 {
    match format {
        Format::F64 => 53.0,
        Format::F32 => 24.0,
        Format::F16 => 11.0,
        Format::Bf16 => 8.0,
    }
}

/// The largest k with a·2^k representable.
fn most_exponent(stream: Format, largest: u32) -> u32 {
    match stream {
        // 2^15 is the largest power of two of f16.
        Format::F16 => 15u32.saturating_sub(32 - (largest - 1).leading_zeros()),
        _ => MOST_EXPONENT,
    }
}

/// 2^12.5 and what the squares of f32 need: see the module's head. f16 rounds the norm's output to 11 bits, and its
/// constants end at 2^15: it needs t < 2^−12, that is C ≥ 2^6·‖x‖.
fn margin(stream: Format) -> f64 {
    if stream == Format::F16 { 64.0 } else { 5800.0 }
}

/// What the margin is relative to, over 2^k: the least constant where sums of squares must be exact, all of them together
/// where only the norm's output must be.
fn unit(stream: Format, hidden_size: usize, least: u32) -> f64 {
    if stream == Format::F16 { (hidden_size as f64).sqrt() } else { f64::from(least) }
}

fn exponent(stream: Format, largest: u32, unit: f64, norm: Option<f64>, reach: f64) -> Result<u32> {
    let most = most_exponent(stream, largest);
    let serves = f64::exp2(f64::from(most)) * unit / margin(stream);
    let Some(norm) = norm.or((stream != Format::F16).then_some(0.0)) else {
        return Err(Error::unsupported("an f16 stream holds no constant that dominates every residual").help(format!(
            "give domain.norm, at most {serves:.0}; tokens of larger norm (a sequence's first one, often) are then excluded"
        )));
    };
    let size = norm.hypot(reach);
    if size > serves {
        return Err(too_large(stream, serves));
    }
    let need = (size * margin(stream) / unit).log2().ceil().max(0.0);
    Ok(USUAL_EXPONENT.max(need as u32).min(most))
}

fn too_large(stream: Format, serves: f64) -> Error {
    Error::unsupported(format!(
        "constants that dominate residuals of this norm are beyond an {stream} stream, which serves norms up to {serves:.0}"
    ))
    .help("give a smaller domain.norm and exclude the tokens beyond it, or use a checkpoint in bf16 or f32")
}

/// n as a sum of at least `count` powers of four, as few as possible; their square roots. None where there are too few units.
fn powers_of_four(n: usize, count: usize) -> Option<Vec<u32>> {
    let mut roots = Vec::new();
    let mut rest = n;
    // No root above 256: all are exact in bf16 anyway, and smaller ones keep f16 in range.
    for power in (0..=8).rev() {
        let square = 1usize << (2 * power);
        roots.extend(std::iter::repeat_n(1u32 << power, rest / square));
        rest %= square;
    }
    while roots.len() < count {
        // 4^p = 4·4^(p−1): split the largest.
        let (at, largest) = roots.iter().copied().enumerate().max_by_key(|(_, a)| *a)?;
        if largest == 1 {
            return None;
        }
        roots[at] = largest / 2;
        roots.extend([largest / 2; 3]);
    }
    roots.sort_unstable_by(|a, b| b.cmp(a));
    Some(roots)
}

/// Engines that multiply by 1/H in f32, where others divide by H, must find a mean square of exactly 4^k as well.
fn reciprocal_is_exact(n: usize) -> bool {
    n as f32 * (1.0 / n as f32) == 1.0
}

/// n as a sum of as few squares of integers up to 256 as possible, largest first (Lagrange: four suffice up to 4·256²).
fn squares(n: usize) -> Vec<u32> {
    fn search(n: usize, count: usize, most: usize, found: &mut Vec<u32>) -> bool {
        if count == 0 {
            return n == 0;
        }
        for a in (1..=most.min(n.isqrt())).rev() {
            if a * a * count < n {
                break;
            }
            found.push(a as u32);
            if search(n - a * a, count - 1, a, found) {
                return true;
            }
            found.pop();
        }
        false
    }
    (1..=64)
        .find_map(|count| {
            let mut found = Vec::new();
            search(n, count, 256, &mut found).then_some(found)
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_add_up() {
        for n in [1, 576, 640, 648, 896, 2048, 2304, 4096, 4128, 5120, 8192, 65_536] {
            let s = squares(n);
            assert!((1..=4).contains(&s.len()), "{n}: {s:?}");
            assert_eq!(s.iter().map(|a| (*a as usize).pow(2)).sum::<usize>(), n);
            for count in 1..=9 {
                if let Some(p) = powers_of_four(n, count) {
                    assert!(p.len() >= count && p.iter().all(|a| a.is_power_of_two()));
                    assert_eq!(p.iter().map(|a| (*a as usize).pow(2)).sum::<usize>(), n);
                }
            }
        }
        assert_eq!(squares(576), [24]);
    }

    #[test]
    fn plans_hold_their_invariants() {
        for live in [64, 576, 896, 2048, 2560, 3584, 4096, 8192, 16_384] {
            for (multiple, ones, guards) in [(1, 1, 0), (9, 3, 2), (32, 3, 4), (256, 1, 0), (7, 3, 40)] {
                let c = Carriers::padded(live, multiple, ones, guards, Format::Bf16, Some(25_057.0), 1e7).unwrap();
                c.check().unwrap();
                assert_eq!(c.hidden_size % multiple, 0);
                assert!(c.constants.len() >= ones && c.guards.len() == guards);
                assert!(c.exact_up_to(Format::Bf16) >= 1e7f64.hypot(25_057.0));
                let s = c.scale(25_057.0, 1e7, 0.0, 1e-5);
                assert!(s.lo() > 1.0 - f64::exp2(-25.0) && s.hi() >= 1.0 && s.hi() < 1.0 + 1e-12, "{s:?}");
            }
        }
    }

    #[test]
    fn f16_streams_hold_what_they_can() {
        let plan = |norm| Carriers::padded(576, 9, 2, 0, Format::F16, norm, 0.0);
        let c = plan(Some(240.0)).unwrap();
        assert!(c.constants.iter().all(|k| c.value(k) <= 65_504.0));
        assert!(plan(Some(25_057.0)).unwrap_err().to_string().contains("norms up to"));
        assert!(plan(None).is_err());
    }

    #[test]
    fn the_scale_encloses_what_a_norm_computes() {
        let c = Carriers::borrowed(576, &[226], Format::F32, 240.0).unwrap();
        c.check().unwrap();
        let s = c.scale(240.0, 0.0, 3.0, 1e-5);
        // x: norm 240, 3 of it (or −3) in the borrowed coordinate
        for x in [3.0, -3.0, 0.0] {
            let carried: f64 = x + c.value(&c.constants[0]);
            let mean = (carried * carried + 240.0_f64.powi(2) - x * x) / 576.0 + 1e-5;
            let seen = f64::exp2(f64::from(c.exponent)) / mean.sqrt();
            assert!(s.contains(seen), "{seen} is not in {s:?}");
        }
    }
}
