//! The header of a NumPy array file: numpy's `numpy/lib/_format_impl.py` (format versions 1.0 to 3.0).
//!
//! After the magic bytes and the version stands the length of a Python dictionary literal with three keys: `descr` (the
//! number format, as in `'<f4'`), `fortran_order` (does the first axis run fastest?) and `shape`.

use super::{Entry, quoted, row_major};
use crate::error::{Error, Result};
use crate::format::Format;

/// Longer headers are refused; numpy itself writes at most a few hundred bytes for a plain array.
const MAX_HEADER_BYTES: usize = 1 << 16;

/// The array that starts at byte `at` and ends with the bytes.
pub(super) fn entry(name: String, bytes: &[u8], at: usize) -> Result<Entry> {
    let truncated = || Error::input("truncated: no whole .npy header").help("download or copy the file again");
    let file = bytes.get(at..).ok_or_else(truncated)?;
    let length = |wide: bool| -> Option<(usize, usize)> {
        Some(match wide {
            false => (10, u16::from_le_bytes(file.get(8..10)?.try_into().ok()?).into()),
            true => (12, usize::try_from(u32::from_le_bytes(file.get(8..12)?.try_into().ok()?)).ok()?),
        })
    };
    let (start, length) = match file.get(..8).ok_or_else(truncated)? {
        [0x93, b'N', b'U', b'M', b'P', b'Y', major @ 1..=3, _] => length(*major > 1).ok_or_else(truncated)?,
        [0x93, b'N', b'U', b'M', b'P', b'Y', major, minor] => {
            return Err(Error::unsupported(format!(".npy files of version {major}.{minor} are not known here")));
        }
        _ => return Err(Error::input("no .npy file: it does not begin with \\x93NUMPY")),
    };
    if length > MAX_HEADER_BYTES {
        return Err(Error::input(format!("the .npy header claims {length} bytes, more than {MAX_HEADER_BYTES}")));
    }
    let text = file.get(start..start + length).ok_or_else(truncated)?;
    let text = std::str::from_utf8(text).map_err(|_| Error::input("the .npy header is no text"))?;
    let header = Header::parse(text)?;
    let data = at + start + length;
    let count = header.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    let needed = count.and_then(|n| n.checked_mul(header.size));
    let end = needed.and_then(|n| data.checked_add(n)).filter(|end| *end <= bytes.len()).ok_or_else(|| {
        let what =
            format!("truncated: shape {:?} does not fit into {} bytes of data", header.shape, bytes.len() - data);
        Error::input(what).help("download or copy the file again")
    })?;
    let overflow = || Error::input("the array's dimensions overflow");
    let strides = if header.fortran {
        let reversed: Vec<usize> = header.shape.iter().rev().copied().collect();
        row_major(&reversed).map(|s| s.into_iter().rev().collect())
    } else {
        row_major(&header.shape)
    };
    let strides = strides.ok_or_else(overflow)?;
    Ok(Entry { name, format: header.format, shape: header.shape, strides, span: data..end })
}

struct Header {
    format: std::result::Result<Format, String>,
    /// bytes of a value
    size: usize,
    fortran: bool,
    shape: Vec<usize>,
}

impl Header {
    fn parse(text: &str) -> Result<Header> {
        let malformed = |what: &str| Error::input(format!("malformed .npy header: {what}: {}", quoted(text.trim())));
        let inside = text.trim().strip_prefix('{').and_then(|t| t.strip_suffix('}'));
        let mut rest = inside.ok_or_else(|| malformed("no dictionary"))?.trim();
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        while !rest.is_empty() {
            let (key, after) = string(rest).ok_or_else(|| malformed("no key"))?;
            let value =
                after.trim_start().strip_prefix(':').ok_or_else(|| malformed("no ':' after a key"))?.trim_start();
            let after = match key {
                "descr" if value.starts_with('[') => {
                    return Err(Error::unsupported("a structured array: only plain floats are read here")
                        .help("save one field of it"));
                }
                "descr" => string(value).map(|(d, after)| {
                    descr = Some(d);
                    after
                }),
                "fortran_order" => word(value).map(|(w, after)| {
                    fortran = Some(w);
                    after
                }),
                "shape" => tuple(value).map(|(s, after)| {
                    shape = Some(s);
                    after
                }),
                _ => None,
            };
            let after = after.ok_or_else(|| malformed(&format!("a bad value of {}", quoted(key))))?.trim_start();
            rest = match after.strip_prefix(',') {
                Some(next) => next.trim_start(),
                None if after.is_empty() => after,
                None => return Err(malformed("no ',' between entries")),
            };
        }
        match (descr, fortran, shape) {
            (Some(descr), Some(fortran), Some(shape)) => {
                let (format, size) = number_format(descr)?;
                Ok(Header { format, size, fortran, shape })
            }
            _ => Err(malformed("descr, fortran_order or shape is missing")),
        }
    }
}

/// A quoted string without escapes, and what follows it.
fn string(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| ['\'', '"'].contains(c))?;
    let (inside, after) = text[1..].split_once(quote)?;
    (!inside.contains('\\')).then_some((inside, after))
}

/// `True` or `False`, and what follows it.
fn word(text: &str) -> Option<(bool, &str)> {
    text.strip_prefix("True").map(|t| (true, t)).or_else(|| text.strip_prefix("False").map(|t| (false, t)))
}

/// A tuple of integers, and what follows it.
fn tuple(text: &str) -> Option<(Vec<usize>, &str)> {
    let (inside, after) = text.strip_prefix('(')?.split_once(')')?;
    let inside = inside.trim();
    let inside = inside.strip_suffix(',').unwrap_or(inside);
    if inside.trim().is_empty() {
        return Some((Vec::new(), after));
    }
    // Python 2 wrote long integers with an L.
    let numbers = inside.split(',').map(|n| n.trim().trim_end_matches('L').parse().ok());
    Some((numbers.collect::<Option<_>>()?, after))
}

/// A number format from numpy's `descr`, and its bytes.
fn number_format(descr: &str) -> Result<(std::result::Result<Format, String>, usize)> {
    let bad = || Error::input(format!("the .npy header names the number format {}", quoted(descr)));
    let mut signs = descr.chars();
    let (order, kind) = (signs.next().ok_or_else(bad)?, signs.next().ok_or_else(bad)?);
    let size: usize = signs.as_str().parse().map_err(|_| {
        if kind == 'O' {
            Error::unsupported("an array of Python objects: only plain floats are read here")
        } else {
            bad()
        }
    })?;
    if order == '>' && size > 1 {
        let little = format!("<{kind}{size}");
        return Err(Error::unsupported("a big-endian array")
            .help(format!("save it again: numpy.save(FILE, numpy.load(FILE).astype('{little}'))")));
    }
    Ok(match (kind, size) {
        ('f', 2) => (Ok(Format::F16), 2),
        ('f', 4) => (Ok(Format::F32), 4),
        ('f', 8) => (Ok(Format::F64), 8),
        _ => (Err(quoted(descr)), size),
    })
}

#[cfg(test)]
mod tests {
    use crate::tensors::TensorFile;
    use proptest::prelude::*;

    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn floats(n: u8) -> Vec<u8> {
        (0..n).flat_map(|x| f32::from(x).to_le_bytes()).collect()
    }

    fn open(bytes: Vec<u8>) -> crate::error::Result<TensorFile> {
        TensorFile::any_from_bytes("dir/x.npy", bytes)
    }

    #[test]
    fn both_orders_are_read() {
        let c = open(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }  \n", &floats(6))).unwrap();
        let f = open(npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }\n", &floats(6))).unwrap();
        assert_eq!(c.names(), ["x"]);
        let (c, f) = (c.tensor("x").unwrap(), f.tensor("x").unwrap());
        assert_eq!((c.shape(), f.shape()), (&[2, 3][..], &[2, 3][..]));
        assert_eq!((c.row(1).unwrap(), f.row(1).unwrap()), (vec![3.0, 4.0, 5.0], vec![1.0, 3.0, 5.0]));
        assert_eq!(c.columns(&[2, 0]).unwrap(), [[2.0, 5.0], [0.0, 3.0]]);
        assert_eq!(f.columns(&[2, 0]).unwrap(), [[4.0, 5.0], [0.0, 1.0]]);
        assert_eq!(c.values().unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(f.values().unwrap(), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
    }

    #[test]
    fn scalars_and_vectors() {
        let one = open(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (), }", &floats(1))).unwrap();
        assert_eq!(one.tensor("x").unwrap().values().unwrap(), [0.0]);
        let two = open(npy("{\"shape\": (2L,), 'fortran_order': False, 'descr': '<f2'}", &[0, 60, 0, 64])).unwrap();
        assert_eq!(two.tensor("x").unwrap().vector().unwrap(), [1.0, 2.0]);
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        for (header, said) in [
            ("{'descr': '>f4', 'fortran_order': False, 'shape': (1,)}", "big-endian"),
            ("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", "Python objects"),
            ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", "structured"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", "does not fit into 4 bytes"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (18446744073709551615, 3)}", "does not fit"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 18446744073709551615, 3)}", "overflow"),
            ("{'descr': '<f4', 'fortran_order': False}", "is missing"),
            ("{'descr': '<f4', 'fortran_order': 0, 'shape': ()}", "bad value of 'fortran_order'"),
            ("{'descr': '<f4', 'other': 0}", "bad value of 'other'"),
            ("[]", "no dictionary"),
            ("{'descr': 'é', 'fortran_order': False, 'shape': ()}", "number format"),
            (&"(".repeat(60_000), "no dictionary"),
        ] {
            let e = open(npy(header, &floats(1))).expect_err(header);
            assert!(!e.is_io() && e.to_string().contains(said), "{e}");
        }
        let e = open(npy("{'descr': '<i4', 'fortran_order': False, 'shape': (1,)}", &floats(1))).unwrap();
        assert!(e.tensor("x").unwrap_err().to_string().contains("'<i4'"));
        assert!(open(b"\x93NUMPY\x01".to_vec()).is_err());
        assert!(open(b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}".to_vec()).is_err());
        assert!(open(b"\x93NUMPY\x07\x00\x02\x00{}".to_vec()).unwrap_err().is_unsupported());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn damaged_arrays_are_read_or_refused(at in any::<prop::sample::Index>(), with in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let mut bytes = npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }", &floats(6));
            let at = at.index(bytes.len());
            bytes[at] = with;
            crate::tensors::tests::exercise(bytes.clone());
            bytes.truncate(cut.index(bytes.len()));
            crate::tensors::tests::exercise(bytes);
        }
    }
}
