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
//! gain is multiplied by √(d/H) and its eps by d/H (the mean is over H coordinates, of which H − d are 0). A gain of 1/a_i
//! turns the carrier into an exact 1, which feeds biases: no bias tensor is needed but the writer's.
//!
//! *Borrowed* carriers are coordinates of the model itself, so that no other layer changes. (x_j + C_j) − C_j loses the low
//! bits of x_j, and with Ĉ = C/‖C‖ the norm now divides by
//!
//! ```text
//! s⁻² = ‖x + C‖²/‖C‖² + eps/4^k = 1 + 2·⟨x, Ĉ⟩/‖C‖ + ‖x‖²/‖C‖² + eps/4^k
//! ```
//!
//! A row w hands on s·⟨w, x + C⟩. Its part along Ĉ is lost to first order, s·⟨x + C, Ĉ⟩ = ‖C‖ + O(‖x‖²/‖C‖), whatever x is: so rows
//! are written without it ([`Carriers::project`]), ⟨w, C⟩ = 0, and what is left out of z is ⟨w, Ĉ⟩·⟨x, Ĉ⟩. That is small where
//! many quiet coordinates share the constants, with signs such that every row that is read is nearly orthogonal to Ĉ already
//! ([`Carriers::borrowed`] searches for them). All constants are powers of two times 2^k, exact in every format.

use nalgebra::{DMatrix, DVector};
use rayon::prelude::*;
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
    /// a: a power of two up to 256, negative only where it is borrowed
    pub a: i32,
}

/// Coordinates of the model that may be borrowed, and how loud they are.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// n of them, quietest first
    pub coordinates: Vec<usize>,
    /// the second moments of the stream there, up to a factor: [n, n]
    pub moments: DMatrix<f64>,
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
/// At least how many coordinates share borrowed constants: more of them leave the search more freedom, and sum up more of what x
/// holds there.
const SHARES: [usize; 3] = [1, 8, 32];
/// Searches for coordinates and signs, and how often each is kicked in vain before it ends. Annealing found worse ones.
const STARTS: u64 = 4;
const KICKS: usize = 1500;

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
            powers.iter().enumerate().map(|(i, a)| Constant { coordinate: live + i, a: *a as i32 }).collect();
        let first_guard = live + constants.len();
        let exponent = exponent(stream, largest, unit(stream, hidden_size, least), norm, reach)?;
        let guards = (first_guard..first_guard + guards).collect();
        Ok(Carriers { kind: Kind::Padded, live, hidden_size, exponent, constants, guards })
    }

    /// Some of the model's own coordinates, out of a pool; with signs, such that the rows that are read are nearly orthogonal to C,
    /// and x too.
    ///
    /// ½(‖x‖/‖C‖)² of z is lost to the norm, and ‖C‖·2^−p of the stream to rounding, p its bits: the sum is least at
    /// ‖C‖ = 2^(p/3)·‖x‖. (A typical z is smaller and would do with less; but tokens beyond the domain, a sequence's first one
    /// above all, are read the better the larger C is.)
    ///
    /// Errors: a pool with fewer coordinates than the hidden size has squares; a stream that cannot hold the constants.
    pub fn borrowed(hidden_size: usize, pool: &Pool, rows: &[&[f64]], stream: Format, norm: f64) -> Result<Carriers> {
        // Few squares or many: one silent coordinate may be best, or the signs of many.
        let mut shares: Vec<Vec<u32>> = SHARES.iter().filter_map(|count| powers_of_four(hidden_size, *count)).collect();
        shares.dedup();
        let least = shares.first().map_or(0, Vec::len);
        shares.retain(|powers| powers.len() <= pool.coordinates.len());
        if shares.is_empty() {
            return Err(Error::input(format!(
                "{} coordinates to borrow, a hidden size of {hidden_size} needs {least} at least",
                pool.coordinates.len()
            )));
        }
        let dominant = f64::exp2(bits(stream) / 3.0);
        let ideal = (dominant * norm / (hidden_size as f64).sqrt()).log2().round();
        let largest = shares.iter().flatten().copied().max().unwrap_or(1);
        let most = most_exponent(stream, largest);
        let exponent = ideal.clamp(0.0, f64::from(MOST_EXPONENT)) as u32;
        if exponent > most {
            let size = f64::exp2(f64::from(most)) * (hidden_size as f64).sqrt();
            return Err(too_large(stream, size / dominant));
        }
        let size = f64::exp2(f64::from(exponent)) * (hidden_size as f64).sqrt();
        let mut constants = orthogonal(&shares, pool, rows, norm / size);
        constants.sort_unstable_by_key(|c| c.coordinate);
        Ok(Carriers { kind: Kind::Borrowed, live: hidden_size, hidden_size, exponent, constants, guards: Vec::new() })
    }

    /// Checks what the type does not: coordinates in place and distinct, Σ a² = H.
    pub fn check(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::input(format!("carriers: {text}")));
        // No power of two above 256 is planned; the bound keeps the sum from overflowing.
        let good = |a: i32| a.unsigned_abs().is_power_of_two() && a.unsigned_abs() <= 256;
        if let Some(c) = self.constants.iter().find(|c| !good(c.a) || (self.kind == Kind::Padded && c.a < 0)) {
            return wrong(format!("the constant {} of coordinate {} is no admissible power of two", c.a, c.coordinate));
        }
        let sum: usize = self.constants.iter().map(|c| (c.a.unsigned_abs() as usize).pow(2)).sum();
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

    /// The gain of the neutralised norm: \[H\]; 2^k on what is read, 1/a on padded constants, which feed biases, else 0.
    pub fn gain(&self) -> Vec<f64> {
        let mut gain = vec![0.0; self.hidden_size];
        let scale = f64::exp2(f64::from(self.exponent));
        gain[..self.live].fill(scale);
        self.guards.iter().for_each(|g| gain[*g] = scale);
        if self.kind == Kind::Padded {
            self.constants.iter().for_each(|c| gain[c.coordinate] = 1.0 / f64::from(c.a));
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
        let least = self.constants.iter().map(|c| c.a.unsigned_abs()).min().unwrap_or(0);
        unit(stream, self.hidden_size, least) * f64::exp2(f64::from(self.exponent)) / margin(stream)
    }

    /// A row of the MLP as it is written: borrowed carriers take out its part along C, in the format of the weights. \[d\]
    ///
    /// Of all rows that do not read C it is the nearest: g − ⟨g, C⟩/‖C‖²·C.
    pub fn project(&self, row: &mut [f64], format: Format) {
        if self.kind == Kind::Padded {
            return;
        }
        let along = self.constants.iter().map(|c| row[c.coordinate] * f64::from(c.a)).sum::<f64>();
        let share = along / self.hidden_size as f64;
        self.constants.iter().for_each(|c| {
            let x = &mut row[c.coordinate];
            *x = format.round(*x - share * f64::from(c.a));
        });
    }

    /// ⟨row, C⟩ of a row of the MLP: what borrowed carriers add to what it reads. 0 with padded ones, which are apart.
    pub fn constant(&self, row: &[f64]) -> f64 {
        match self.kind {
            Kind::Padded => 0.0,
            Kind::Borrowed => self.constants.iter().map(|c| row[c.coordinate] * self.value(c)).sum(),
        }
    }

    /// What the MLP is handed where ‖x‖ ≤ `norm`, |x_j| ≤ `borrowed` in borrowed coordinates, and the norm is computed in f32.
    ///
    /// Padded carriers are planned so that it is x itself. Borrowed ones: for s see [`Carriers::scale`]. With p the bits of the
    /// stream, and as long as x_j and what is written to it stay below |C_j|, a power of two, each rounding of what stands in
    /// the coordinate is at most 2^−p·|C_j|. The MLP's reading is rounded twice (the sum, the norm's output); the stream three
    /// times (the sum, the bias that removes C_j, the MLP's output with it).
    ///
    /// Errors: coordinates that may outgrow their constants.
    pub fn reading(&self, stream: Format, norm: f64, borrowed: Option<f64>, eps: f64) -> Result<Reading> {
        if self.kind == Kind::Padded {
            return Ok(Reading::exact());
        }
        let bound = borrowed.unwrap_or(norm).min(norm);
        if let Some(c) = self.constants.iter().find(|c| !(2.0 * bound <= self.value(c).abs())) {
            return Err(Error::unsupported(format!(
                "coordinate {} may reach {bound}, too much for its constant {}",
                c.coordinate,
                self.value(c)
            ))
            .help("give domain.borrowed, a bound on the borrowed coordinates, or use padded carriers"));
        }
        let s = self.scale(norm, 0.0, bound, eps);
        let unit = f64::exp2(-bits(stream));
        let lost = Interval::point(3.0 * unit) * self.size();
        Ok(Reading {
            scale: [s.lo(), s.hi()],
            constants: self.constants.iter().map(|c| (c.coordinate, self.value(c))).collect(),
            bound,
            rounding: 2.0 * unit,
            residue: lost.hi(),
        })
    }

    /// ‖C‖ = √H·2^k
    fn size(&self) -> Interval {
        Interval::point(self.hidden_size as f64).sqrt() * Interval::point(f64::exp2(f64::from(self.exponent)))
    }

    /// s: the MLP sees s·x, in real arithmetic, for ‖x‖ ≤ `norm`, ‖h‖ ≤ `reach` and |x_j| ≤ `borrowed` in borrowed coordinates.
    ///
    /// With borrowed coordinates Σ (x_j + C_j)² replaces Σ C_j²: see the module's head; |⟨x, C⟩| is at most Σ |C_j|·|x_j| and ‖x‖·‖C‖.
    pub fn scale(&self, norm: f64, reach: f64, borrowed: f64, eps: f64) -> Interval {
        let point = Interval::point;
        let quarter = point(f64::exp2(-2.0 * f64::from(self.exponent)));
        let size = point(self.hidden_size as f64);
        let t = (point(norm).sqr() + point(reach).sqr()) * quarter / size + point(eps) * quarter;
        let cross = match self.kind {
            Kind::Padded => Interval::ZERO,
            Kind::Borrowed => {
                let sum = self.constants.iter().fold(Interval::ZERO, |sum, c| sum + point(self.value(c).abs()));
                let most = (sum * point(borrowed)).hi().min((point(norm) * self.size()).hi());
                point(2.0) * point(most) * quarter / size
            }
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
    .help(match stream {
        Format::F16 => "give a smaller domain.norm and exclude the tokens beyond it, or use a checkpoint in bf16 or f32",
        _ => "give a smaller domain.norm: residuals have norms of some hundreds, a sequence's first token tens of thousands",
    })
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

/// Which coordinates of the pool take which a of one of the `shares`, with which sign: such that with c = a/√H and all rows ŵ of length 1
///
/// ```text
/// (Σ_f ⟨ŵ_f, c⟩² + ε)·E⟨x, c⟩²
/// ```
///
/// is small. The first factor is what rows lose for each unit of ⟨x, c⟩, ε what s − 1 costs them (a typical |z| is a sixteenth of
/// the largest). Found by exchanges. `ratio`: ‖x‖/‖C‖.
fn orthogonal(shares: &[Vec<u32>], pool: &Pool, rows: &[&[f64]], ratio: f64) -> Vec<Constant> {
    let n = pool.coordinates.len();
    let size =
        shares.iter().flatten().map(|a| f64::from(*a).powi(2)).sum::<f64>().sqrt() / (shares.len() as f64).sqrt();
    let mut read = DMatrix::<f64>::zeros(n, n);
    for row in rows {
        let length = row.iter().map(|w| w * w).sum::<f64>().sqrt();
        if length > 0.0 {
            let part = DVector::from_iterator(n, pool.coordinates.iter().map(|j| row[*j] / length));
            read.ger(1.0, &part, &part, 1.0);
        }
    }
    let floors = [
        rows.len().max(1) as f64 * (ratio / 16.0).powi(2),
        // Where nothing writes to the pool, rows still count.
        1e-9 * pool.moments.trace() / n as f64 + f64::MIN_POSITIVE,
    ];
    let starts: Vec<_> = shares.iter().flat_map(|powers| (0..STARTS).map(move |seed| (powers, seed))).collect();
    let found: Vec<Exchange<'_>> = starts
        .into_par_iter()
        .map(|(powers, seed)| {
            // The quietest coordinates, with random signs.
            let mut random = fastrand::Rng::with_seed(seed);
            let mut at =
                |i: usize| powers.get(i).map_or(0.0, |a| f64::from(*a) / size * [1.0, -1.0][random.usize(..2)]);
            let c = DVector::from_fn(n, |i, _| at(i));
            Exchange::new([&read, &pool.moments], floors, c).descended().kicked(&mut random)
        })
        .collect();
    let best = found.into_iter().min_by(|a, b| a.cost().total_cmp(&b.cost()));
    let chosen = best.map_or_else(|| DVector::zeros(n), |b| b.c);
    let constant = |(c, j): (&f64, &usize)| Constant { coordinate: *j, a: (c * size).round() as i32 };
    chosen.iter().zip(&pool.coordinates).map(constant).filter(|c| c.a != 0).collect()
}

/// The state of [`orthogonal`]'s search (iterated local search: Lourenço, Martin, Stützle 2003): c, and two quadratic forms whose product is to be small.
struct Exchange<'a> {
    forms: [&'a DMatrix<f64>; 2],
    floors: [f64; 2],
    c: DVector<f64>,
    /// form·c
    images: [DVector<f64>; 2],
    /// c·form·c
    values: [f64; 2],
}

impl<'a> Exchange<'a> {
    fn new(forms: [&'a DMatrix<f64>; 2], floors: [f64; 2], c: DVector<f64>) -> Self {
        let images = forms.map(|f| f * &c);
        let values = [images[0].dot(&c), images[1].dot(&c)];
        Exchange { forms, floors, c, images, values }
    }

    /// At a local minimum.
    fn descended(mut self) -> Self {
        while self.sweep() {}
        self
    }

    /// The best of a chain of local minima, each after a few random exchanges of the best before.
    fn kicked(mut self, random: &mut fastrand::Rng) -> Self {
        let mut idle = 0;
        while idle < KICKS {
            idle += 1;
            let mut c = self.c.clone();
            for _ in 0..3 {
                let (i, k) = (random.usize(..c.len()), random.usize(..c.len()));
                c.swap_rows(i, k);
                c[i] = -c[i];
            }
            let next = Exchange::new(self.forms, self.floors, c).descended();
            if next.cost() < self.cost() * (1.0 - 1e-9) {
                self = next;
                idle = 0;
            }
        }
        self
    }

    fn cost(&self) -> f64 {
        self.of(self.values)
    }

    fn of(&self, values: [f64; 2]) -> f64 {
        (values[0].max(0.0) + self.floors[0]) * (values[1].max(0.0) + self.floors[1])
    }

    /// Puts x and y in the places i and k if that is better by more than rounding.
    fn attempt(&mut self, i: usize, k: usize, x: f64, y: f64) {
        let (dx, dy) = (x - self.c[i], if i == k { 0.0 } else { y - self.c[k] });
        let value = |q: usize| {
            let (f, image) = (self.forms[q], &self.images[q]);
            self.values[q]
                + 2.0 * (dx * image[i] + dy * image[k])
                + dx * dx * f[(i, i)]
                + dy * dy * f[(k, k)]
                + 2.0 * dx * dy * f[(i, k)]
        };
        let values = [value(0), value(1)];
        if self.of(values) < self.cost() * (1.0 - 1e-9) {
            self.values = values;
            self.c[i] += dx;
            self.c[k] += dy;
            for (image, form) in self.images.iter_mut().zip(self.forms) {
                image.axpy(dx, &form.column(i), 1.0);
                image.axpy(dy, &form.column(k), 1.0);
            }
        }
    }

    /// Tries every change of a sign and every exchange of two places, with either sign. Was one better?
    fn sweep(&mut self) -> bool {
        let before = self.cost();
        for i in 0..self.c.len() {
            for k in i..self.c.len() {
                if i == k {
                    self.attempt(i, i, -self.c[i], 0.0);
                }
                for (p, q) in [(1.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (-1.0, -1.0)] {
                    if i != k && (self.c[i] != 0.0 || self.c[k] != 0.0) {
                        self.attempt(i, k, p * self.c[k], q * self.c[i]);
                    }
                }
            }
        }
        self.cost() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_add_up() {
        for n in [1, 576, 640, 648, 896, 2048, 2304, 4096, 4128, 5120, 8192, 65_536] {
            for count in 1..=9 {
                if let Some(p) = powers_of_four(n, count) {
                    assert!(p.len() >= count && p.iter().all(|a| a.is_power_of_two()));
                    assert_eq!(p.iter().map(|a| (*a as usize).pow(2)).sum::<usize>(), n);
                }
            }
        }
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

    /// A pool of equally loud, independent coordinates.
    fn evenly(coordinates: Vec<usize>) -> Pool {
        Pool { moments: DMatrix::identity(coordinates.len(), coordinates.len()), coordinates }
    }

    #[test]
    fn the_scale_encloses_what_a_norm_computes() {
        let pool = evenly((100..164).collect());
        let c = Carriers::borrowed(576, &pool, &[], Format::F32, 240.0).unwrap();
        c.check().unwrap();
        let s = c.scale(240.0, 0.0, 3.0, 1e-5);
        // x: norm 240, of it 3 (with the constant's sign, or against it) in every borrowed coordinate
        for sign in [3.0, -3.0, 0.0] {
            let borrowed: f64 = c.constants.iter().map(|k| (c.value(k) + sign * f64::from(k.a.signum())).powi(2)).sum();
            let rest = 240.0_f64.powi(2) - c.constants.len() as f64 * sign * sign;
            let seen = f64::exp2(f64::from(c.exponent)) / ((borrowed + rest) / 576.0 + 1e-5).sqrt();
            assert!(s.contains(seen), "{seen} is not in {s:?}");
        }
    }

    #[test]
    fn borrowed_constants_are_orthogonal_to_the_rows() {
        // Rows without structure: the fractional parts of multiples of irrational numbers.
        let row = |f: usize| -> Vec<f64> {
            (0..576).map(|j| ((j * j + 7 * j) as f64 * (f as f64 + 2.0).sqrt()).fract() - 0.5).collect()
        };
        let rows: Vec<Vec<f64>> = (0..8).map(row).collect();
        let rows: Vec<&[f64]> = rows.iter().map(Vec::as_slice).collect();
        let pool = evenly((0..64).map(|j| 9 * j).collect());
        let c = Carriers::borrowed(576, &pool, &rows, Format::F32, 240.0).unwrap();
        c.check().unwrap();
        assert!(c.constants.len() >= 16 && c.constants.iter().any(|k| k.a < 0));
        for row in &rows {
            let length = row.iter().map(|w| w * w).sum::<f64>().sqrt();
            let size = 24.0 * f64::exp2(f64::from(c.exponent));
            // A direction without choice makes about 1/24 = 4e-2 with each row; the search reaches a tenth of it for all eight.
            assert!((c.constant(row) / length / size).abs() < 4e-3);
            let mut projected = row.to_vec();
            c.project(&mut projected, Format::F32);
            assert!(c.constant(&projected).abs() <= 1e-7 * length * size);
        }
    }

    #[test]
    fn a_pool_without_choice_is_taken_whole() {
        // 576 = 2·256 + 64
        let pool = evenly(vec![95, 3, 50]);
        let c = Carriers::borrowed(576, &pool, &[], Format::F32, 240.0).unwrap();
        c.check().unwrap();
        assert_eq!(c.constants.iter().map(|k| k.coordinate).collect::<Vec<_>>(), [3, 50, 95]);
        assert!(Carriers::borrowed(576, &evenly(vec![95, 3]), &[], Format::F32, 240.0).is_err());
    }
}
