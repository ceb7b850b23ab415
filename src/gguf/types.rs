//! ggml's number formats: sizes of blocks, and the values of those that need no tables of their own.
//!
//! Numbers and sizes are those of `enum ggml_type` in ggml's `ggml.h` and of the structs in its `ggml-common.h`; the
//! layout inside of a block is that of `ggml-quants.c` (`dequantize_row_*`).

use half::f16;

use crate::format::Format;

/// A number format of ggml: blocks of [`block`](Self::block) values in [`bytes`](Self::bytes) bytes.
///
/// Every format's block of zero bytes stands for zeros: each value is a multiple of the block's scales, and zero bytes
/// are scales of 0 (MXFP4: a smallest scale, times the 0 of its table).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GgmlType {
    /// its number in files
    pub id: u32,
    /// its name
    pub name: &'static str,
    /// values of a block
    pub block: usize,
    /// bytes of a block
    pub bytes: usize,
}

const fn row(id: u32, name: &'static str, block: usize, bytes: usize) -> GgmlType {
    GgmlType { id, name, block, bytes }
}

/// All that a file may hold today. 4, 5, 31 to 33 and 36 to 38 have been withdrawn.
const TYPES: [GgmlType; 35] = [
    row(0, "F32", 1, 4),
    row(1, "F16", 1, 2),
    row(2, "Q4_0", 32, 18),
    row(3, "Q4_1", 32, 20),
    row(6, "Q5_0", 32, 22),
    row(7, "Q5_1", 32, 24),
    row(8, "Q8_0", 32, 34),
    row(9, "Q8_1", 32, 36),
    row(10, "Q2_K", 256, 84),
    row(11, "Q3_K", 256, 110),
    row(12, "Q4_K", 256, 144),
    row(13, "Q5_K", 256, 176),
    row(14, "Q6_K", 256, 210),
    row(15, "Q8_K", 256, 292),
    row(16, "IQ2_XXS", 256, 66),
    row(17, "IQ2_XS", 256, 74),
    row(18, "IQ3_XXS", 256, 98),
    row(19, "IQ1_S", 256, 50),
    row(20, "IQ4_NL", 32, 18),
    row(21, "IQ3_S", 256, 110),
    row(22, "IQ2_S", 256, 82),
    row(23, "IQ4_XS", 256, 136),
    row(24, "I8", 1, 1),
    row(25, "I16", 1, 2),
    row(26, "I32", 1, 4),
    row(27, "I64", 1, 8),
    row(28, "F64", 1, 8),
    row(29, "IQ1_M", 256, 56),
    row(30, "BF16", 1, 2),
    row(34, "TQ1_0", 256, 54),
    row(35, "TQ2_0", 256, 66),
    row(39, "MXFP4", 32, 17),
    row(40, "NVFP4", 64, 36),
    row(41, "Q1_0", 128, 18),
    row(42, "Q2_0", 64, 18),
];

/// The values of a block, exactly, from its bytes.
pub(super) type Decoder = fn(&[u8], &mut [f64]);

impl GgmlType {
    /// IEEE binary32
    pub const F32: GgmlType = TYPES[0];

    /// The format of a number in a file.
    pub fn of(id: u32) -> Option<GgmlType> {
        TYPES.iter().find(|t| t.id == id).copied()
    }

    /// Is the format one of plain floating-point numbers?
    pub fn format(self) -> Option<Format> {
        match self.name {
            "F16" => Some(Format::F16),
            "BF16" => Some(Format::Bf16),
            "F32" => Some(Format::F32),
            "F64" => Some(Format::F64),
            _ => None,
        }
    }

    /// How blocks are read; `None` for formats with large tables (IQ1 to IQ3), rare ones, and integers.
    pub(super) fn decoder(self) -> Option<Decoder> {
        Some(match self.name {
            "F32" => |b, y| y[0] = Format::F32.read(b).unwrap_or(f64::NAN),
            "F16" => |b, y| y[0] = Format::F16.read(b).unwrap_or(f64::NAN),
            "BF16" => |b, y| y[0] = Format::Bf16.read(b).unwrap_or(f64::NAN),
            "F64" => |b, y| y[0] = Format::F64.read(b).unwrap_or(f64::NAN),
            "Q4_0" => |b, y| halves(y, |j, high| half(b, 0) * (nibble(b[2 + j], high) - 8.0)),
            "Q4_1" => |b, y| halves(y, |j, high| half(b, 0) * nibble(b[4 + j], high) + half(b, 2)),
            "Q5_0" => {
                |b, y| halves(y, |j, high| half(b, 0) * (nibble(b[6 + j], high) + fifth(&b[2..], j, high) - 16.0))
            }
            "Q5_1" => {
                |b, y| halves(y, |j, high| half(b, 0) * (nibble(b[8 + j], high) + fifth(&b[4..], j, high)) + half(b, 2))
            }
            "Q8_0" => |b, y| fill(y, |i| half(b, 0) * signed(b[2 + i])),
            "IQ4_NL" => |b, y| halves(y, |j, high| half(b, 0) * NON_LINEAR[nibble(b[2 + j], high) as usize]),
            "MXFP4" => |b, y| halves(y, |j, high| power(b[0]) * FOUR_BITS[nibble(b[1 + j], high) as usize]),
            "Q2_K" => q2_k,
            "Q3_K" => q3_k,
            "Q4_K" => q4_k,
            "Q5_K" => q5_k,
            "Q6_K" => q6_k,
            "IQ4_XS" => iq4_xs,
            _ => return None,
        })
    }
}

/// IQ4's values.
const NON_LINEAR: [f64; 16] =
    [-127., -104., -83., -65., -49., -35., -22., -10., 1., 13., 25., 38., 53., 69., 89., 113.];
/// Twice the values of E2M1.
const FOUR_BITS: [f64; 16] = [0., 1., 2., 3., 4., 6., 8., 12., 0., -1., -2., -3., -4., -6., -8., -12.];

fn half(b: &[u8], at: usize) -> f64 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f64()
}

/// Half of the scale 2^(e − 127), as the table above is twice its values.
fn power(e: u8) -> f64 {
    f64::exp2(f64::from(e) - 128.0)
}

fn nibble(byte: u8, high: bool) -> f64 {
    f64::from(if high { byte >> 4 } else { byte & 15 })
}

fn signed(byte: u8) -> f64 {
    f64::from(byte as i8)
}

/// 16 where the fifth bit of a value is set.
fn fifth(bits: &[u8], j: usize, high: bool) -> f64 {
    let bit = if high { j + 16 } else { j };
    f64::from((bits[bit / 8] >> (bit % 8) & 1) * 16)
}

fn fill(y: &mut [f64], value: impl Fn(usize) -> f64) {
    y.iter_mut().enumerate().for_each(|(i, y)| *y = value(i));
}

/// Low nibbles are the first half of a block, high ones the second.
fn halves(y: &mut [f64], value: impl Fn(usize, bool) -> f64) {
    let middle = y.len() / 2;
    fill(y, |i| value(i % middle, i >= middle));
}

fn q2_k(b: &[u8], y: &mut [f64]) {
    let (scales, quants, d, least) = (&b[..16], &b[16..80], half(b, 80), half(b, 82));
    fill(y, |i| {
        let scale = scales[i / 16];
        let q = quants[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        d * nibble(scale, false) * f64::from(q) - least * nibble(scale, true)
    });
}

fn q3_k(b: &[u8], y: &mut [f64]) {
    let (mask, quants, scales, d) = (&b[..32], &b[32..96], &b[96..108], half(b, 108));
    fill(y, |i| {
        let s = i / 16;
        let low = if s < 8 { scales[s] & 15 } else { scales[s - 8] >> 4 };
        let scale = f64::from(low | (scales[8 + s % 4] >> (s / 4 * 2) & 3) << 4) - 32.0;
        let q = f64::from(quants[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3);
        let third = mask[i % 32] >> (i / 32) & 1 == 1;
        d * scale * if third { q } else { q - 4.0 }
    });
}

/// The scale and the minimum of a sub-block, six bits each, of the twelve bytes that Q4_K and Q5_K have them in.
fn scale_and_least(s: usize, b: &[u8]) -> (f64, f64) {
    let (scale, least) = if s < 4 {
        (b[s] & 63, b[s + 4] & 63)
    } else {
        (b[s + 4] & 15 | b[s - 4] >> 6 << 4, b[s + 4] >> 4 | b[s] >> 6 << 4)
    };
    (scale.into(), least.into())
}

fn q4_k(b: &[u8], y: &mut [f64]) {
    let (d, least, scales, quants) = (half(b, 0), half(b, 2), &b[4..16], &b[16..]);
    fill(y, |i| {
        let (scale, m) = scale_and_least(i / 32, scales);
        d * scale * nibble(quants[i / 64 * 32 + i % 32], i / 32 % 2 == 1) - least * m
    });
}

fn q5_k(b: &[u8], y: &mut [f64]) {
    let (d, least, scales, bits, quants) = (half(b, 0), half(b, 2), &b[4..16], &b[16..48], &b[48..]);
    fill(y, |i| {
        let (scale, m) = scale_and_least(i / 32, scales);
        let fifth = f64::from((bits[i % 32] >> (i / 32) & 1) * 16);
        d * scale * (nibble(quants[i / 64 * 32 + i % 32], i / 32 % 2 == 1) + fifth) - least * m
    });
}

fn q6_k(b: &[u8], y: &mut [f64]) {
    let (low, high, scales, d) = (&b[..128], &b[128..192], &b[192..208], half(b, 208));
    fill(y, |i| {
        let (half, quarter, l) = (i / 128, i % 128 / 32, i % 32);
        let bits = high[half * 32 + l] >> (2 * quarter) & 3;
        let q = nibble(low[half * 64 + quarter % 2 * 32 + l], quarter >= 2) + f64::from(bits << 4) - 32.0;
        d * signed(scales[i / 16]) * q
    });
}

fn iq4_xs(b: &[u8], y: &mut [f64]) {
    let (d, high, low, quants) = (half(b, 0), u16::from_le_bytes([b[2], b[3]]), &b[4..8], &b[8..]);
    fill(y, |i| {
        let s = i / 32;
        let scale = nibble(low[s / 2], s % 2 == 1) + f64::from((high >> (2 * s) & 3) << 4) - 32.0;
        d * scale * NON_LINEAR[nibble(quants[s * 16 + i % 16], i % 32 >= 16) as usize]
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_bytes_are_zeros() {
        for t in TYPES {
            let Some(decode) = t.decoder() else { continue };
            let mut y = vec![1.0; t.block];
            decode(&vec![0; t.bytes], &mut y);
            assert!(y.iter().all(|y| *y == 0.0), "{}", t.name);
        }
    }

    #[test]
    fn any_block_is_read() {
        for t in TYPES {
            let Some(decode) = t.decoder() else { continue };
            decode(&vec![255; t.bytes], &mut vec![0.0; t.block]);
        }
    }
}
