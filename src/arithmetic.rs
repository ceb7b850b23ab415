//! The arithmetic of engines, as data: number formats as lattices, and one row for each engine that runs a block.
//!
//! Part of the trusted base, without I/O. A row states what an engine is assumed to do; a certificate under it holds as far
//! as the row is true. A new engine is a new row of [`ROWS`]. `docs/arithmetic.md` says where each figure comes from.
//!
//! All rows share one shape, that of an MLP in a pre-norm decoder layer, over a stream of format F with unit roundoff u_F:
//!
//! ```text
//! gate   = ⟨g, x⟩ + p        f32 accumulation in some order, |error| ≤ γ·(Σ|g_k·x_k| + |p|); then rounded to F
//! up     = ⟨u, x⟩ + q        likewise
//! s      = σ(gate)           evaluated in f32 to a stated error; rounded to F, or not
//! h      = s·up              rounded to F
//! out    = Σ y_i·h_i         f32 accumulation; rounded to F
//! x      ← x + out           rounded to F
//! ```
//!
//! γ = m·u/(1 − m·u) with m roundings of unit u on the way of each term, whatever the order (Higham, *Accuracy and Stability of
//! Numerical Algorithms*, 2nd ed., §3.1 and §4.2): n products and n − 1 sums give m = n.

use crate::activation::Activation;
use crate::error::{Error, Result, nearest as nearest_name};
use crate::format::Format;
use crate::interval::Interval;

/// Is a value rounded to the stream's format at some place?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounded {
    /// always
    Yes,
    /// it stays in f32
    No,
    /// a compiler decides: both must be covered
    Perhaps,
}

/// How sums of products are formed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Accumulation {
    /// u of a rounding: 2^−24 to nearest, 2^−23 where sums are truncated
    pub unit: f64,
    /// roundings per term of the longest path
    pub per_term: f64,
    /// the terms are spread over at least so many accumulators (1: unknown order)
    pub lanes: usize,
    /// roundings whatever the length: combining accumulators, leftovers
    pub extra: f64,
    /// roundings of partial sums to the stream's format on the way of a term
    pub stream_roundings: u32,
}

/// How σ is evaluated in f32: its relative error is at most (ulps + ulps_per_unit·|t|)·2^−23 at argument t.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// at 0
    pub ulps: f64,
    /// growth with |t|
    pub ulps_per_unit: f64,
}

/// One engine's arithmetic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arithmetic {
    /// as in certificates and specifications
    pub name: &'static str,
    /// the residual stream's format; weights have it too (or one that it holds)
    pub stream: Format,
    /// sums of products
    pub accumulation: Accumulation,
    /// σ
    pub evaluation: Evaluation,
    /// is a pre-activation rounded to the stream's format?
    pub gate: Rounded,
    /// is σ's value?
    pub sigma: Rounded,
    /// what is assumed, and where it was read
    pub source: &'static str,
}

/// f32 sums in an unknown order.
const ANY_ORDER: Accumulation =
    Accumulation { unit: F32_UNIT, per_term: 1.0, lanes: 1, extra: 0.0, stream_roundings: 0 };
/// Block fused multiply-adds of k ≥ 4 products: terms are aligned to the largest and truncated to 24 bits, the sum is
/// truncated once more: k + 2 roundings of 2^−23 for k terms.
const TENSOR_CORE: Accumulation =
    Accumulation { unit: 2.0 * F32_UNIT, per_term: 1.5, lanes: 1, extra: 2.0, stream_roundings: 0 };
/// The same, in up to [`SPLITS`] parts whose sums are reduced in the stream's format.
const SPLIT: Accumulation = Accumulation { stream_roundings: SPLITS, ..TENSOR_CORE };
/// At least four lanes; at most 64 products are left over or lanes combined.
const GGML: Accumulation = Accumulation { lanes: 4, extra: 64.0, ..ANY_ORDER };

/// How often a partial sum is assumed to be rounded to the stream's format where PyTorch allows reduced-precision reductions.
/// The documentation says "a few truncations".
pub const SPLITS: u32 = 4;

/// expf and division to nearest, each within 2 ulp and half an ulp: t/(1 + e^−t) within 4.
const LIBM: Evaluation = Evaluation { ulps: 4.0, ulps_per_unit: 0.0 };
/// `__expf`: "2 + floor(abs(1.173 * x))" ulp (CUDA C++ Programming Guide, table of intrinsic functions).
const FAST_EXP: Evaluation = Evaluation { ulps: 5.0, ulps_per_unit: 1.25 };

const F32_UNIT: f64 = 1.0 / (1u64 << 24) as f64;

const EAGER_CPU: &str = "transformers models/llama/modeling_llama.py, LlamaMLP: act_fn(gate_proj(x))·up_proj(x), one rounding each; \
     aten/src/ATen/native/cpu/Activation.cpp, silu_kernel: x/(1 + exp(−x)) in f32 (SLEEF expf, 1 ulp)";
const EAGER_CUDA: &str = "as on CPUs; ATen/native/cuda/ActivationSiluKernel.cu: opmath f32, expf (2 ulp); tensor cores: Fasi, Higham, \
     Mikaitis, Pranesh, PeerJ Comput. Sci. 7:e330 (2021): products exact, sums truncated to 24 bits or more; \
     allow_{bf16,fp16}_reduced_precision_reduction = False";
const EAGER_SPLIT: &str = "as above with PyTorch's default allow_{bf16,fp16}_reduced_precision_reduction = True (notes/numerical_accuracy: \"a few \
     truncations of the intermediate accumulation results to the reduced precision\"); at most 4 assumed";
const VLLM_CUDA: &str = "csrc/activation_kernels.cu, silu_kernel and compute: σ in f32, rounded to the format, then the product rounded; \
     sums as transformers on CUDA with reduced-precision reductions off";
const VLLM_CPU: &str = "csrc/cpu/activation.cpp: σ and product in f32, one rounding";
const FLASHINFER: &str = "include/flashinfer/activation.cuh, act_and_mul_kernel: σ and product in f32, one rounding; flashinfer/jit/activation.py: \
     silu with __expf; sums as transformers on CUDA with reduced-precision reductions off";
const INDUCTOR: &str = "torch/_inductor/config.py, emulate_precision_casts: roundings between fused operations are elided or not, and epilogues may \
     be fused into the product of matrices (epilogue_fusion)";
const LLAMA_CPP: &str = "ggml/src/ggml-cpu/vec.cpp, ggml_vec_dot_f32: 16 lanes or more, leftovers one after the other; llamafile/sgemm.cpp: 4 \
     lanes or more; vec.h, ggml_v_silu: expf within 2 ulp. For f32 weights, which inserted layers have: with f16, bf16 or quantised weights \
     ggml-cpu.c (type_traits_cpu) rounds activations to the weights' vec_dot_type";

const fn row(
    name: &'static str,
    stream: Format,
    accumulation: Accumulation,
    evaluation: Evaluation,
    (gate, sigma): (Rounded, Rounded),
    source: &'static str,
) -> Arithmetic {
    Arithmetic { name, stream, accumulation, evaluation, gate, sigma, source }
}

const EACH: (Rounded, Rounded) = (Rounded::Yes, Rounded::Yes);
const ONCE: (Rounded, Rounded) = (Rounded::Yes, Rounded::No);
const FUSED: (Rounded, Rounded) = (Rounded::Perhaps, Rounded::Perhaps);

/// Every engine.
pub const ROWS: [Arithmetic; 19] = [
    row("transformers-bf16", Format::Bf16, ANY_ORDER, LIBM, EACH, EAGER_CPU),
    row("transformers-cuda-bf16", Format::Bf16, TENSOR_CORE, LIBM, EACH, EAGER_CUDA),
    row("transformers-cuda-split-bf16", Format::Bf16, SPLIT, LIBM, EACH, EAGER_SPLIT),
    row("vllm-cuda-bf16", Format::Bf16, TENSOR_CORE, LIBM, EACH, VLLM_CUDA),
    row("vllm-cpu-bf16", Format::Bf16, ANY_ORDER, LIBM, ONCE, VLLM_CPU),
    row("flashinfer-bf16", Format::Bf16, TENSOR_CORE, FAST_EXP, ONCE, FLASHINFER),
    row("inductor-bf16", Format::Bf16, TENSOR_CORE, LIBM, FUSED, INDUCTOR),
    row("transformers-f16", Format::F16, ANY_ORDER, LIBM, EACH, EAGER_CPU),
    row("transformers-cuda-f16", Format::F16, TENSOR_CORE, LIBM, EACH, EAGER_CUDA),
    row("transformers-cuda-split-f16", Format::F16, SPLIT, LIBM, EACH, EAGER_SPLIT),
    row("vllm-cuda-f16", Format::F16, TENSOR_CORE, LIBM, EACH, VLLM_CUDA),
    row("vllm-cpu-f16", Format::F16, ANY_ORDER, LIBM, ONCE, VLLM_CPU),
    row("flashinfer-f16", Format::F16, TENSOR_CORE, FAST_EXP, ONCE, FLASHINFER),
    row("inductor-f16", Format::F16, TENSOR_CORE, LIBM, FUSED, INDUCTOR),
    row("transformers-f32", Format::F32, ANY_ORDER, LIBM, EACH, EAGER_CPU),
    row(
        "transformers-cuda-f32",
        Format::F32,
        ANY_ORDER,
        LIBM,
        EACH,
        "as on CPUs; FP32 products, TF32 off as is PyTorch's default",
    ),
    row("vllm-cuda-f32", Format::F32, ANY_ORDER, LIBM, EACH, VLLM_CUDA),
    row("vllm-cpu-f32", Format::F32, ANY_ORDER, LIBM, EACH, VLLM_CPU),
    row("llama.cpp-f32", Format::F32, GGML, LIBM, EACH, LLAMA_CPP),
];

/// The rows that a name stands for: one, or with `any-bf16`, `any-f16`, `any-f32` all of a format.
///
/// Error: no such name.
pub fn rows(name: &str) -> Result<Vec<&'static Arithmetic>> {
    let chosen: Vec<_> = match name.strip_prefix("any-") {
        Some(format) => ROWS.iter().filter(|r| r.stream.to_string() == format).collect(),
        None => ROWS.iter().filter(|r| r.name == name).collect(),
    };
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    let help = match nearest_name(name, names()) {
        Some(n) => format!("did you mean '{n}'?"),
        None => format!("known: {}", names().collect::<Vec<_>>().join(", ")),
    };
    Err(Error::input(format!("unknown arithmetic '{}'", name.escape_debug())).help(help))
}

/// Every name that [`rows`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    ["any-bf16", "any-f16", "any-f32"].into_iter().chain(ROWS.iter().map(|r| r.name))
}

/// u of a format: half the distance from 1 to the next larger number.
pub fn unit_roundoff(format: Format) -> f64 {
    format.unit() / 2.0
}

/// Half the least positive number of a format: what a rounding to nearest loses at most besides u times the value.
pub fn underflow(format: Format) -> f64 {
    lattice(format).spacing(0.0) / 2.0
}

impl Accumulation {
    /// γ: |computed − exact| ≤ γ·Σ|terms| for a sum of n products.
    pub fn factor(&self, n: usize, stream: Format) -> f64 {
        let gamma = |m: f64, unit: f64| {
            let mu = Interval::point(m) * Interval::point(unit);
            let room = Interval::ONE - mu;
            if room.lo() > 0.0 { (mu / room).hi() } else { f64::INFINITY }
        };
        // A lane has no more products than there are.
        let longest = n.div_ceil(self.lanes) as f64 * self.per_term + self.extra;
        let m = if self.lanes > 1 { longest.min(n as f64 * self.per_term) } else { longest };
        if n == 0 {
            return 0.0;
        }
        let (own, split) = (gamma(m, self.unit), gamma(f64::from(self.stream_roundings), unit_roundoff(stream)));
        let [own, split] = [own, split].map(Interval::point);
        (own + split + own * split).hi()
    }
}

impl Arithmetic {
    /// Are the two the same but for name and source?
    pub fn computes_as(&self, other: &Arithmetic) -> bool {
        Arithmetic { name: other.name, source: other.source, ..*self } == *other
    }

    /// What the engine's σ, before any rounding to the stream's format, can be for arguments in t.
    ///
    /// silu and its kind are t/(1 + e^−βt) in f32. For βt ≤ −104 e^−βt overflows in f32 and the quotient is an exact 0; for
    /// βt ≥ 20 the denominator is an exact 1. In between the relative error is as the row states, up to a subnormal.
    /// gelu is t/2·(1 + erf) (tanh, for its approximation): the sum has an absolute error. It is an exact 0 below −16, where
    /// erf and tanh are −1 in f32, and an exact t above 16. Others: relative to 1 + |t|.
    pub fn sigma(&self, source: &Activation, t: Interval) -> Interval {
        let inside = |t: Interval| {
            let v = source.jet(t).v;
            v.inflate(self.error(source, t, v.mag()))
        };
        let (low, high) = match saturation(source) {
            Saturation::Exact => return source.jet(t).v,
            Saturation::Never => return inside(t),
            Saturation::At { low, high, .. } => (low, high),
        };
        if t.lo() >= high {
            return t;
        }
        let parts = [
            (t.lo() <= low).then_some(Interval::ZERO),
            t.intersect(Interval::new(low, high)).filter(|_| t.hi() > low && t.lo() < high).map(inside),
            t.intersect(Interval::new(high, f64::INFINITY)),
        ];
        parts.into_iter().flatten().reduce(Interval::hull).unwrap_or(Interval::ENTIRE)
    }

    /// Up to where its σ is an exact 0, and from where on exactly its argument; `None` where it never is.
    pub fn saturation(&self, source: &Activation) -> Option<[f64; 2]> {
        match saturation(source) {
            Saturation::At { low, high, .. } => Some([low, high]),
            Saturation::Exact | Saturation::Never => None,
        }
    }

    /// Bound on |computed − σ(t)| for arguments in t: see [`Arithmetic::sigma`].
    pub fn sigma_error(&self, source: &Activation, t: Interval) -> f64 {
        let full = |t: Interval| self.error(source, t, source.jet(t).v.mag());
        let Saturation::At { low, high, beta } = saturation(source) else { return full(t) };
        // Beyond the ends the engine is off by the tail: |σ(t) − relu(t)| ≤ |t|·e^(−β|t|), decreasing there.
        let tail = |end: f64| {
            let end = Interval::point(end.abs());
            (end * (-(end * beta)).exp()).hi()
        };
        let parts = [
            (t.lo() <= low).then(|| tail(low.min(t.hi()))),
            t.intersect(Interval::new(low, high)).filter(|_| t.hi() > low && t.lo() < high).map(full),
            (t.hi() >= high).then(|| tail(high.max(t.lo()))),
        ];
        parts.into_iter().flatten().fold(0.0, f64::max)
    }

    /// The error where σ is computed in full, its values being up to `size`.
    fn error(&self, source: &Activation, t: Interval, size: f64) -> f64 {
        if matches!(saturation(source), Saturation::Exact) {
            return 0.0;
        }
        let relative = |ulps: f64| {
            let ulps = Interval::point(ulps) + Interval::point(self.evaluation.ulps_per_unit) * t.abs();
            ulps * Interval::point(2.0 * F32_UNIT)
        };
        match source.swish_beta() {
            Some(_) => (Interval::point(size) * relative(self.evaluation.ulps) + Interval::point(SUBNORMAL)).hi(),
            // Twice the ulps: erf and tanh are longer computations.
            None => ((Interval::ONE + Interval::point(t.mag())) * relative(2.0 * self.evaluation.ulps)).hi(),
        }
    }

    /// What a value becomes where it is rounded to the stream's format, or not, or perhaps.
    pub fn round(&self, how: Rounded, x: Interval) -> Interval {
        match how {
            Rounded::No => x,
            Rounded::Yes => lattice(self.stream).round(x),
            Rounded::Perhaps => x.hull(lattice(self.stream).round(x)),
        }
    }

    /// A hidden unit's value: the product of what σ and the up row gave, rounded.
    pub fn product(&self, s: Interval, up: Interval) -> Interval {
        let exact = s * up;
        let power = |x: Interval| x.is_point() && x.mag() >= 1.0 && x.mag().log2().fract() == 0.0;
        // Numbers of 16 bits have exact products in f32, and so have 0 and powers of two; others are rounded there first.
        let short = self.sigma == Rounded::Yes && self.stream.bytes() == 2;
        if short || exact == Interval::ZERO || power(up) || power(s) {
            return lattice(self.stream).round(exact);
        }
        let f32 = exact * Interval::new(1.0 - F32_UNIT, 1.0 + F32_UNIT) + Interval::symmetric(SUBNORMAL);
        lattice(self.stream).round(f32)
    }
}

/// Where an engine's σ is exactly 0, and exactly its argument.
enum Saturation {
    /// σ is computed without error everywhere
    Exact,
    /// 0 for t ≤ low, t for t ≥ high; σ's tails fall like e^(−β|t|)
    At {
        low: f64,
        high: f64,
        beta: Interval,
    },
    Never,
}

fn saturation(source: &Activation) -> Saturation {
    use Activation::{Abs, Gelu, GeluTanh, Identity, Relu};
    match source {
        Relu | Abs | Identity => Saturation::Exact,
        Gelu | GeluTanh => Saturation::At { low: -16.0, high: 16.0, beta: Interval::ONE },
        _ => match source.swish_beta() {
            Some(beta) => {
                let beta = beta.enclosure();
                let low = (Interval::point(-104.0) / beta).lo();
                Saturation::At { low, high: (Interval::point(20.0) / beta).hi(), beta }
            }
            None => Saturation::Never,
        },
    }
}

/// Below this f32 may be subnormal, and engines may flush it: more than f32's least normal number times any |t| ≤ 128.
const SUBNORMAL: f64 = 1.0 / ((1u128 << 119) as f64);

/// The numbers of a format of at most 32 bits, in order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lattice {
    /// significant bits
    bits: i32,
    /// exponent of the least positive number
    least: i32,
    /// the largest finite number
    largest: f64,
    /// index of it: 0 is index 0, its successors 1, 2, ...
    last: i64,
}

/// The numbers of a format. f64 is taken for f32.
pub const fn lattice(format: Format) -> Lattice {
    const fn of(bits: i32, least: i32, largest: f64, last: i64) -> Lattice {
        Lattice { bits, least, largest, last }
    }
    match format {
        Format::F16 => of(11, -24, 65_504.0, 0x7bff),
        Format::Bf16 => of(8, -133, 255.0 * (1u128 << 120) as f64, 0x7f7f),
        Format::F32 | Format::F64 => of(24, -149, f32::MAX as f64, 0x7f7f_ffff),
    }
}

/// 2^e for e within f64's normal range.
fn exp2(e: i32) -> f64 {
    f64::from_bits(((e + 1023) as u64) << 52)
}

impl Lattice {
    /// Exponent of the distance between numbers around x.
    fn exponent(&self, x: f64) -> i32 {
        // Numbers of f64's subnormal range are below every least number here.
        let e = ((x.abs().to_bits() >> 52) as i32) - 1023;
        (e - self.bits + 1).max(self.least)
    }

    /// The distance between neighbours from x on, away from 0.
    pub fn spacing(&self, x: f64) -> f64 {
        exp2(self.exponent(x))
    }

    /// The nearest number, ties to even; infinite beyond the range, as IEEE 754 rounds.
    pub fn nearest(&self, x: f64) -> f64 {
        if !x.is_finite() {
            return x;
        }
        // Scaling by powers of two is exact: at most 2^149 upwards.
        let e = self.exponent(x);
        let rounded = (x * exp2(-e)).round_ties_even() * exp2(e);
        if rounded.abs() <= self.largest { rounded } else { f64::INFINITY.copysign(x) }
    }

    /// Rounds both ends: what rounding makes of any number between them lies between the results. Unknown on overflow.
    pub fn round(&self, x: Interval) -> Interval {
        Interval::new(self.nearest(x.lo()), self.nearest(x.hi()))
    }

    /// The place of a number of the lattice: 0 for 0, negative for negative ones.
    pub fn index(&self, x: f64) -> i64 {
        let e = self.exponent(x);
        let steps = (x.abs() * exp2(-e)) as i64;
        // Every binade above the least has 2^(bits−1) numbers.
        let index = steps + i64::from(e - self.least) * (1i64 << (self.bits - 1));
        if x < 0.0 { -index } else { index }
    }

    /// The number at a place. Inverse of [`Lattice::index`]; infinite beyond the last.
    pub fn value(&self, index: i64) -> f64 {
        let half = 1i64 << (self.bits - 1);
        let k = index.abs();
        if k > self.last {
            return if index < 0 { f64::NEG_INFINITY } else { f64::INFINITY };
        }
        let binade = (k / half - 1).max(0);
        let magnitude = (k - binade * half) as f64 * exp2(self.least + binade as i32);
        if index < 0 { -magnitude } else { magnitude }
    }

    /// Between the numbers at `index` and `index + 1`: where rounding changes over. Exact.
    pub fn boundary(&self, index: i64) -> f64 {
        let (a, b) = (self.value(index), self.value(index + 1));
        if a.is_infinite() || b.is_infinite() {
            // IEEE 754 rounds to infinity from the largest number plus half a spacing on.
            let end = self.largest + self.spacing(self.largest) / 2.0;
            return if a.is_infinite() { -end } else { end };
        }
        a / 2.0 + b / 2.0
    }

    /// The index of the last finite number.
    pub fn last(&self) -> i64 {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    /// The numbers of a 16-bit format from their bit patterns, in order.
    fn all(of: impl Fn(u16) -> f64) -> Vec<f64> {
        let mut all: Vec<f64> = (0..=u16::MAX).map(of).filter(|x| x.is_finite()).collect();
        all.sort_by(f64::total_cmp);
        all.dedup();
        all
    }

    #[test]
    fn lattices_are_the_formats_numbers() {
        for (format, numbers) in
            [(Format::Bf16, all(|b| bf16::from_bits(b).to_f64())), (Format::F16, all(|b| f16::from_bits(b).to_f64()))]
        {
            let l = lattice(format);
            assert_eq!(numbers.len() as i64, 2 * l.last() + 1);
            for (k, x) in (-l.last()..).zip(&numbers) {
                assert_eq!((l.index(*x), l.value(k), l.nearest(*x)), (k, *x, *x), "{format} {k}");
            }
            for (k, w) in (-l.last()..).zip(numbers.windows(2)) {
                let m = l.boundary(k);
                assert_eq!(m - w[0], w[1] - m);
                let even = if k % 2 == 0 { w[0] } else { w[1] };
                assert_eq!((l.nearest(m.next_down()), l.nearest(m), l.nearest(m.next_up())), (w[0], even, w[1]));
            }
            assert_eq!(l.nearest(l.boundary(l.last())), f64::INFINITY);
        }
        for x in [0.0, 1.0, -1.5, 3.4e38, 1e-45, 0.1f32.into(), f64::from(f32::MAX)] {
            let l = lattice(Format::F32);
            assert_eq!(l.nearest(x), f64::from(x as f32));
            assert_eq!(l.value(l.index(l.nearest(x))), f64::from(x as f32));
        }
    }

    #[test]
    fn names_are_unique_and_found() {
        for (k, r) in ROWS.iter().enumerate() {
            assert!(ROWS[..k].iter().all(|o| o.name != r.name) && r.name.ends_with(&r.stream.to_string()));
            assert_eq!(rows(r.name).unwrap(), [r]);
        }
        assert_eq!(
            rows("any-bf16").unwrap().len() + rows("any-f16").unwrap().len() + rows("any-f32").unwrap().len(),
            ROWS.len()
        );
        assert!(rows("vllm-bf16").unwrap_err().to_string().contains("did you mean"));
        assert!(rows("any-f64").is_err());
    }

    #[test]
    fn accumulation_factors() {
        let f = |a: Accumulation, n| a.factor(n, Format::Bf16);
        assert_eq!(f(ANY_ORDER, 0), 0.0);
        assert!((f(ANY_ORDER, 576) / (576.0 * F32_UNIT) - 1.0).abs() < 1e-4);
        assert!((f(TENSOR_CORE, 576) / (1732.0 * F32_UNIT) - 1.0).abs() < 2e-4);
        assert!(f(SPLIT, 576) > 4.0 / 256.0);
        assert!(f(GGML, 576) < f(ANY_ORDER, 576) / 2.0 && f(GGML, 10) == f(ANY_ORDER, 10));
    }

    #[test]
    fn silu_is_exact_where_it_is_saturated() {
        let row = rows("flashinfer-bf16").unwrap()[0];
        let s = |t: f64| row.sigma(&Activation::Silu, Interval::point(t));
        assert_eq!(
            (s(-104.0), s(-1e30), s(20.0), s(1e30)),
            (Interval::ZERO, Interval::ZERO, Interval::point(20.0), Interval::point(1e30))
        );
        for t in [-90.0f64, -5.0, -0.1, 0.0, 0.3, 7.0, 19.0] {
            let computed = (t as f32) / (1.0 + (-t as f32).exp());
            assert!(s(t).contains(computed.into()), "{t}: {computed} not in {:?}", s(t));
        }
    }
}
