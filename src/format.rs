//! Number formats of weights: sizes, ranges, rounding.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};
use safetensors::tensor::Dtype;

use crate::error::{Error, Result, nearest};

/// A floating-point number format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    /// IEEE binary16: 11 significant bits, largest value 65,504
    F16,
    /// bfloat16: 8 significant bits, the range of f32
    Bf16,
    /// IEEE binary32
    F32,
    /// IEEE binary64
    F64,
}

impl Format {
    const ALL: [Format; 4] = [Format::F16, Format::Bf16, Format::F32, Format::F64];

    /// Its size in bytes.
    pub fn bytes(self) -> usize {
        match self {
            Format::F16 | Format::Bf16 => 2,
            Format::F32 => 4,
            Format::F64 => 8,
        }
    }

    /// Is every number of `other` one of this format too?
    pub fn holds(self, other: Format) -> bool {
        self == other || self.bytes() > other.bytes()
    }

    /// The distance from 1 to the next larger number.
    pub fn unit(self) -> f64 {
        f64::exp2(match self {
            Format::F16 => -10.0,
            Format::Bf16 => -7.0,
            Format::F32 => -23.0,
            Format::F64 => -52.0,
        })
    }

    /// Its least positive number.
    pub fn least(self) -> f64 {
        match self {
            Format::F16 => f64::exp2(-24.0),
            Format::Bf16 => f64::exp2(-133.0),
            Format::F32 => f64::exp2(-149.0),
            Format::F64 => f64::from_bits(1),
        }
    }

    /// The nearest number of the format (ties to even); infinite beyond its range.
    pub fn round(self, x: f64) -> f64 {
        match self {
            Format::F16 => f16::from_f32(to_odd(x)).to_f64(),
            Format::Bf16 => bf16::from_f32(to_odd(x)).to_f64(),
            Format::F32 => f64::from(x as f32),
            Format::F64 => x,
        }
    }

    /// Its largest finite number.
    pub fn largest(self) -> f64 {
        match self {
            Format::F16 => f16::MAX.to_f64(),
            Format::Bf16 => bf16::MAX.to_f64(),
            Format::F32 => f64::from(f32::MAX),
            Format::F64 => f64::MAX,
        }
    }

    /// A number from its little-endian bytes; `None` if there are not as many as the format has.
    pub fn read(self, bytes: &[u8]) -> Option<f64> {
        Some(match self {
            Format::F16 => f16::from_le_bytes(bytes.try_into().ok()?).to_f64(),
            Format::Bf16 => bf16::from_le_bytes(bytes.try_into().ok()?).to_f64(),
            Format::F32 => f32::from_le_bytes(bytes.try_into().ok()?).into(),
            Format::F64 => f64::from_le_bytes(bytes.try_into().ok()?),
        })
    }

    /// Appends a number's little-endian bytes, rounded to the format.
    pub fn write(self, x: f64, out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + self.bytes(), 0);
        self.put(&[x], &mut out[start..]);
    }

    /// Writes numbers' little-endian bytes, rounded to the format, to as many places of [`Format::bytes`] bytes.
    pub fn put(self, numbers: &[f64], out: &mut [u8]) {
        fn each<const N: usize>(numbers: &[f64], out: &mut [u8], bytes: impl Fn(f64) -> [u8; N]) {
            numbers.iter().zip(out.chunks_exact_mut(N)).for_each(|(x, place)| place.copy_from_slice(&bytes(*x)));
        }
        match self {
            Format::F16 => each(numbers, out, |x| f16::from_f32(to_odd(x)).to_le_bytes()),
            Format::Bf16 => each(numbers, out, |x| bf16::from_f32(to_odd(x)).to_le_bytes()),
            Format::F32 => each(numbers, out, |x| (x as f32).to_le_bytes()),
            Format::F64 => each(numbers, out, f64::to_le_bytes),
        }
    }

    /// The format of a safetensors tensor, if it is a floating-point format known here.
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F16 => Some(Format::F16),
            Dtype::BF16 => Some(Format::Bf16),
            Dtype::F32 => Some(Format::F32),
            Dtype::F64 => Some(Format::F64),
            _ => None,
        }
    }

    /// Its name in safetensors files.
    pub fn dtype(self) -> Dtype {
        match self {
            Format::F16 => Dtype::F16,
            Format::Bf16 => Dtype::BF16,
            Format::F32 => Dtype::F32,
            Format::F64 => Dtype::F64,
        }
    }
}

/// An f64 as an f32 from which it can be rounded to a shorter format as if at once: what is inexact becomes the neighbour with an odd last bit,
/// which is no tie of a shorter format. (Boldo, Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using
/// rounding to odd", IEEE Transactions on Computers 57, 2008.) half 2.7.1's own conversions from f64 drop the low bits first.
fn to_odd(x: f64) -> f32 {
    let near = x as f32;
    let bits = near.to_bits();
    if f64::from(near) == x || bits & 1 == 1 || !near.is_finite() {
        return near;
    }
    f32::from_bits(if f64::from(near).abs() < x.abs() { bits + 1 } else { bits - 1 })
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::F16 => "f16",
            Format::Bf16 => "bf16",
            Format::F32 => "f32",
            Format::F64 => "f64",
        })
    }
}

impl FromStr for Format {
    type Err = Error;

    /// `f16`, `bf16`, `f32`, `f64`, or PyTorch's name for it (`float16`, `torch.bfloat16`, ...).
    fn from_str(text: &str) -> Result<Self> {
        let lower = text.trim().to_ascii_lowercase();
        let name = lower.strip_prefix("torch.").unwrap_or(&lower);
        Ok(match name {
            "f16" | "float16" | "half" => Format::F16,
            "bf16" | "bfloat16" => Format::Bf16,
            "f32" | "float32" | "float" => Format::F32,
            "f64" | "float64" | "double" => Format::F64,
            _ => {
                let names: Vec<String> = Format::ALL.iter().map(Format::to_string).collect();
                let help = match nearest(name, names.iter().map(String::as_str)) {
                    Some(n) => format!("did you mean '{n}'?"),
                    None => format!("known number formats: {}", names.join(", ")),
                };
                return Err(Error::input(format!("unknown number format '{}'", text.escape_debug())).help(help));
            }
        })
    }
}

impl serde::Serialize for Format {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Format {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Just beyond a tie; half 2.7.1 rounds its f64 to the even neighbour, 1.
    #[test]
    fn a_tie_and_a_little_more_is_rounded_up() {
        for (format, unit) in [(Format::Bf16, f64::exp2(-7.0)), (Format::F16, f64::exp2(-10.0))] {
            for little in [f64::exp2(-30.0), f64::exp2(-44.0), f64::EPSILON] {
                assert_eq!(format.round(1.0 + unit / 2.0 + little), 1.0 + unit, "{format} {little}");
                assert_eq!(format.round(1.0 + 1.5 * unit - little), 1.0 + unit, "{format} {little}");
            }
            assert_eq!((format.round(1.0 + unit / 2.0), format.round(1.0 + 1.5 * unit)), (1.0, 1.0 + 2.0 * unit));
            assert_eq!((format.round(1e40), format.round(-0.0).is_sign_negative()), (f64::INFINITY, true));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// No number of the format is nearer: among the neighbours by bit pattern.
        #[test]
        fn no_neighbour_is_nearer(bits in any::<u16>(), part in 0.0f64..1.0, at in 0usize..6) {
            for bf in [true, false] {
                let of = |b: u16| if bf { bf16::from_bits(b).to_f64() } else { f16::from_bits(b).to_f64() };
                let (a, b) = (of(bits & 0x7fff), of((bits & 0x7fff).wrapping_add(1)));
                prop_assume!(a.is_finite() && b.is_finite());
                let middle = a / 2.0 + b / 2.0;
                let x = [a + part * (b - a), middle, middle.next_up(), middle.next_down(), a.next_up(), a][at];
                let even = if bits & 1 == 0 { a } else { b };
                let want = if x < middle { a } else if x > middle { b } else { even };
                let format = if bf { Format::Bf16 } else { Format::F16 };
                prop_assert_eq!(format.round(x), want);
                prop_assert_eq!(format.round(-x), -want);
                let mut bytes = Vec::new();
                format.write(x, &mut bytes);
                prop_assert_eq!(format.read(&bytes), Some(want));
            }
        }
    }
}
