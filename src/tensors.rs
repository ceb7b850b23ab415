//! Files of named tensors, memory-mapped: safetensors, NumPy's `.npy` and `.npz`, PyTorch's `.pt`. Vectors and matrices of
//! floats are read as `f64`, one value, row or column at a time.
//!
//! Knows nothing of SAEs. Opening parses headers only; nothing is read of a tensor until it is asked for, and no
//! allocation is sized by a number that the file merely claims: every tensor must lie inside of the file.
//!
//! | file | told by | header |
//! |---|---|---|
//! | safetensors | | `tensors/safetensors.rs` |
//! | `.npy` | `\x93NUMPY` | `tensors/npy.rs` |
//! | `.npz`, stored and not compressed | `PK\x03\x04` | `tensors/zip.rs`, `tensors/npy.rs` |
//! | `.pt`, a state dictionary | the same, with a `data.pkl` | `tensors/zip.rs`, `tensors/torch.rs` |

mod npy;
pub(crate) mod safetensors;
mod torch;
mod zip;

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;

use crate::error::{Error, Result, in_order, nearest};
pub use crate::format::Format;

/// Rows of a matrix that one thread reads columns of before the next takes its turn.
const ROWS_TOGETHER: usize = 64;

/// Text of a file for a message: control characters escaped, never long.
pub(crate) fn quoted(text: &str) -> String {
    const LONGEST: usize = 60;
    let mut short: String = text.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if text.chars().nth(LONGEST).is_some() {
        short.push_str("...");
    }
    format!("'{short}'")
}

/// An open file of named tensors.
#[derive(Debug)]
pub struct TensorFile {
    place: String,
    bytes: Bytes,
    entries: Vec<Entry>,
    index: HashMap<String, usize>,
}

/// What a header says of a tensor. Whoever makes one has checked that it lies inside of the file.
#[derive(Clone, Debug)]
struct Entry {
    name: String,
    /// Its number format, or the name of one that is not read here.
    format: std::result::Result<Format, String>,
    /// Dimensions, and for each the distance between neighbours, in values. The product of the dimensions does not overflow.
    shape: Vec<usize>,
    strides: Vec<usize>,
    /// Where its bytes lie in the file.
    span: Range<usize>,
}

/// Distances between neighbours where the last axis runs fastest. `None` if the number of values overflows.
fn row_major(shape: &[usize]) -> Option<Vec<usize>> {
    let mut strides = vec![1; shape.len()];
    let mut count = 1usize;
    for (stride, n) in strides.iter_mut().zip(shape).rev() {
        *stride = count;
        count = count.checked_mul((*n).max(1))?;
    }
    Some(strides)
}

/// A file's bytes.
#[derive(Debug)]
pub(crate) enum Bytes {
    Mapped(memmap2::Mmap),
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps a file; `help` says what to name where it is none.
    pub(crate) fn map(path: &Path, help: &str) -> Result<Bytes> {
        let place = path.display().to_string();
        let io = |what: &str, e| Error::io(format!("{place}: cannot {what}"), e);
        let file = File::open(path).map_err(|e| io("open the file", e))?;
        let info = file.metadata().map_err(|e| io("read the file's size", e))?;
        if !info.is_file() {
            return Err(Error::input("not a regular file").at(place).help(help));
        }
        // An empty file cannot be mapped everywhere, and has nothing to map.
        if info.len() == 0 {
            return Ok(Bytes::Owned(Vec::new()));
        }
        // SAFETY: the map is read-only, and its readers take any bytes. That nobody changes the file meanwhile is the
        // caller's part, documented where files are opened.
        Ok(Bytes::Mapped(unsafe { memmap2::Mmap::map(&file) }.map_err(|e| io("map the file", e))?))
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}

impl TensorFile {
    /// Maps a safetensors file and parses its header.
    ///
    /// The file must not be shortened or rewritten while it is open, as with every memory-mapped file.
    ///
    /// # Errors
    /// If the file cannot be opened, or is no safetensors file, or is not complete.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(path.display().to_string(), Bytes::map(path, "name a .safetensors file")?, safetensors::entries)
    }

    /// As [`TensorFile::open`] for a file of any kind that is read here; its first bytes say which it is.
    ///
    /// # Errors
    /// As [`TensorFile::open`].
    pub fn open_any(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::any(
            path.display().to_string(),
            Bytes::map(path, "name a file of tensors: .safetensors, .npy, .npz or .pt")?,
        )
    }

    /// A safetensors file that is in memory already; `place` names it in messages.
    ///
    /// # Errors
    /// If the bytes are no complete safetensors file.
    pub fn from_bytes(place: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Result<Self> {
        Self::parse(place.into(), Bytes::Owned(bytes.into()), safetensors::entries)
    }

    /// A file of any kind that is in memory already; `place` names it in messages.
    ///
    /// # Errors
    /// If the bytes are no complete file of tensors.
    pub fn any_from_bytes(place: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Result<Self> {
        Self::any(place.into(), Bytes::Owned(bytes.into()))
    }

    pub(crate) fn any(place: String, bytes: Bytes) -> Result<Self> {
        let stem = Path::new(&place).file_stem().map_or("array".into(), |s| s.to_string_lossy().into_owned());
        Self::parse(place, bytes, |bytes| match bytes {
            [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => Ok(vec![npy::entry(stem, bytes, 0)?]),
            _ if bytes.starts_with(zip::MAGIC) => archive(bytes),
            _ if bytes.starts_with(torch::LEGACY) => Err(torch::legacy()),
            _ => safetensors::entries(bytes),
        })
    }

    fn parse(place: String, bytes: Bytes, entries: impl FnOnce(&[u8]) -> Result<Vec<Entry>>) -> Result<Self> {
        match entries(bytes.as_slice()) {
            Ok(entries) => {
                let index = entries.iter().enumerate().map(|(k, e)| (e.name.clone(), k)).collect();
                Ok(TensorFile { place, bytes, entries, index })
            }
            Err(e) => Err(e.at(place)),
        }
    }

    /// What the file is called in messages: its path.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The tensors' names, in the order of their data.
    pub fn names(&self) -> Vec<String> {
        self.entries.iter().map(|e| e.name.clone()).collect()
    }

    /// Is there a tensor of that name?
    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// A tensor's dimensions, slowest first, whatever its number format.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.entries[*self.index.get(name)?].shape)
    }

    /// The name of a tensor's number format, also of one that is not read here.
    pub fn format_name(&self, name: &str) -> Option<String> {
        Some(match &self.entries[*self.index.get(name)?].format {
            Ok(format) => format.to_string(),
            Err(other) => other.clone(),
        })
    }

    /// A tensor of floats.
    ///
    /// # Errors
    /// If there is none of that name, or it does not hold f16, bf16, f32 or f64.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        self.find(name).map_err(|e| e.at(self.place.clone()))
    }

    fn find(&self, name: &str) -> Result<Tensor<'_>> {
        let Some(entry) = self.index.get(name).map(|k| &self.entries[*k]) else {
            return Err(self.missing(name));
        };
        let format = entry.format.as_ref().map_err(|other| {
            Error::input(format!("tensor {} holds {other}", quoted(name))).help("convert it to F16, BF16, F32 or F64")
        })?;
        let data = self.bytes.as_slice().get(entry.span.clone());
        let data = data.ok_or_else(|| Error::input(format!("tensor {} lies outside of the file", quoted(name))))?;
        Ok(Tensor { file: self, entry, format: *format, data })
    }

    /// Where a tensor's bytes lie in the file: for those who copy them without holding them.
    pub fn span(&self, name: &str) -> Option<Range<u64>> {
        let span = &self.entries[*self.index.get(name)?].span;
        Some(span.start as u64..span.end as u64)
    }

    fn missing(&self, name: &str) -> Error {
        let names = self.names();
        let error = Error::input(format!("no tensor {}", quoted(name)));
        if names.is_empty() {
            return error.help("the file holds no tensors at all");
        }
        if let Some(near) = nearest(name, names.iter().map(String::as_str).filter(|n| n.len() < 200)) {
            return error.help(format!("did you mean {}?", quoted(near)));
        }
        error.help(format!("the file holds {}", some_of(&names)))
    }
}

/// The first few names, and how many more there are.
pub(crate) fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut list = names.iter().take(SHOWN).map(|n| quoted(n)).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        list.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    list
}

/// The tensors of an `.npz` or a `.pt` file.
fn archive(bytes: &[u8]) -> Result<Vec<Entry>> {
    let files = zip::entries(bytes)?;
    if let Some(pickle) = torch::pickle(&files) {
        return torch::entries(bytes, &files, pickle);
    }
    let arrays = files.iter().filter_map(|f| Some((f.name.strip_suffix(".npy")?, f)));
    let entries: Vec<Entry> =
        arrays.map(|(name, f)| npy::entry(name.into(), &bytes[..f.span.end], f.span.start)).collect::<Result<_>>()?;
    if entries.is_empty() {
        return Err(Error::input("the archive holds neither NumPy arrays nor a PyTorch state dictionary"));
    }
    Ok(entries)
}

/// One tensor of a [`TensorFile`].
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    file: &'a TensorFile,
    entry: &'a Entry,
    format: Format,
    data: &'a [u8],
}

impl<'a> Tensor<'a> {
    /// Its name.
    pub fn name(&self) -> &'a str {
        &self.entry.name
    }

    /// Its dimensions, slowest first.
    pub fn shape(&self) -> &'a [usize] {
        &self.entry.shape
    }

    /// Its number format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The number of its values.
    pub fn len(&self) -> usize {
        self.shape().iter().product()
    }

    /// Has it no values?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its bytes, little-endian, as they lie in the file: in a safetensors file with the last axis running fastest.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Insists on a shape; `meaning` says what its dimensions are, as in `[d_in, d_sae]`.
    ///
    /// # Errors
    /// If the shape is another.
    pub fn expect_shape(&self, shape: &[usize], meaning: &str) -> Result<()> {
        if self.shape() == shape {
            return Ok(());
        }
        let what = format!("tensor {} has shape {}, not {meaning} = {shape:?}", quoted(self.name()), self.shape_text());
        Err(self.error(what))
    }

    /// The value at a position in row-major order, exactly.
    ///
    /// # Errors
    /// If the position is past the end, or the value is NaN or infinite.
    pub fn get(&self, position: usize) -> Result<f64> {
        if position >= self.len() {
            let what = format!("tensor {} has {} values, none at position {position}", quoted(self.name()), self.len());
            return Err(self.error(what));
        }
        self.at(self.offset(position), || self.coordinates(position))
    }

    /// How many values behind the first the one at a position in row-major order lies.
    fn offset(&self, position: usize) -> usize {
        let mut rest = position;
        let axes = self.shape().iter().zip(&self.entry.strides).rev();
        axes.map(|(n, stride)| {
            let k = rest % n;
            rest /= n;
            k * stride
        })
        .sum()
    }

    /// The value that lies so many values behind the first in the file.
    fn at(&self, offset: usize, coordinates: impl Fn() -> Vec<usize>) -> Result<f64> {
        let size = self.format.bytes();
        let bytes = offset.checked_mul(size).and_then(|start| self.data.get(start..start.checked_add(size)?));
        match bytes.and_then(|b| self.format.read(b)) {
            Some(v) if v.is_finite() => Ok(v),
            Some(v) => Err(self
                .error(format!("tensor {}{:?} is {v}", quoted(self.name()), coordinates()))
                .help("every value that is used must be finite: repair or replace the file")),
            None => {
                Err(self.error(format!("tensor {}{:?} lies outside of the file", quoted(self.name()), coordinates())))
            }
        }
    }

    /// All values of a one-dimensional tensor; dimensions of length 1 are ignored.
    ///
    /// # Errors
    /// If it has more than one dimension that is longer than 1, or a value is not finite.
    pub fn vector(&self) -> Result<Vec<f64>> {
        if self.shape().iter().filter(|n| **n != 1).count() > 1 {
            let what = format!("tensor {} has shape {}, not that of a vector", quoted(self.name()), self.shape_text());
            return Err(self.error(what).help("name a tensor of one dimension, or take a row of this one"));
        }
        self.values()
    }

    /// All values, the last axis running fastest.
    ///
    /// # Errors
    /// If a value is not finite.
    pub fn values(&self) -> Result<Vec<f64>> {
        let in_order = row_major(self.shape()).is_some_and(|s| s == self.entry.strides);
        let offset = |k| if in_order { k } else { self.offset(k) };
        (0..self.len()).map(|k| self.at(offset(k), || self.coordinates(k))).collect()
    }

    /// One row of a two-dimensional tensor.
    ///
    /// # Errors
    /// If it is not two-dimensional, there is no such row, or a value is not finite.
    pub fn row(&self, row: usize) -> Result<Vec<f64>> {
        let (rows, columns) = self.matrix()?;
        self.has("row", row, rows)?;
        let (down, across) = (self.entry.strides[0], self.entry.strides[1]);
        // Collecting results would grow the vector step by step.
        let mut values = Vec::with_capacity(columns);
        for k in 0..columns {
            values.push(self.at(row * down + k * across, || vec![row, k])?);
        }
        Ok(values)
    }

    /// Some columns of a two-dimensional tensor, in the order asked for: one pass over the rows, at the asked columns only.
    ///
    /// # Errors
    /// If it is not two-dimensional, there is no such column, or a value is not finite.
    pub fn columns(&self, columns: &[usize]) -> Result<Vec<Vec<f64>>> {
        let (rows, width) = self.matrix()?;
        columns.iter().try_for_each(|c| self.has("column", *c, width))?;
        let (down, across) = (self.entry.strides[0], self.entry.strides[1]);
        let at = |row: usize, column: usize| self.at(row * down + column * across, || vec![row, column]);
        if down <= across {
            return columns.iter().map(|&c| (0..rows).map(|row| at(row, c)).collect()).collect();
        }
        // Every page of the matrix that holds an asked value is touched. Several threads wait for the disk at once, each in
        // the order of the file.
        let mut order: Vec<usize> = (0..columns.len()).collect();
        order.sort_by_key(|k| columns[*k]);
        let starts: Vec<usize> = (0..rows).step_by(ROWS_TOGETHER).collect();
        let read = |start: &usize| -> Result<Vec<f64>> {
            let rows = *start..rows.min(start + ROWS_TOGETHER);
            let mut values = Vec::with_capacity(rows.len() * order.len());
            for row in rows {
                for k in &order {
                    values.push(at(row, columns[*k])?);
                }
            }
            Ok(values)
        };
        let parts = in_order(starts.par_iter().map(read))?;
        // Neighbouring columns lie in the same cache lines of the parts: a thread takes many in a row.
        let column = |k: usize| {
            let mut values = Vec::with_capacity(rows);
            parts.iter().for_each(|p| values.extend(p.iter().skip(k).step_by(columns.len())));
            values
        };
        let sorted: Vec<Vec<f64>> = (0..columns.len()).into_par_iter().with_min_len(64).map(column).collect();
        let mut out = vec![Vec::new(); columns.len()];
        order.into_iter().zip(sorted).for_each(|(k, c)| out[k] = c);
        Ok(out)
    }

    fn matrix(&self) -> Result<(usize, usize)> {
        match *self.shape() {
            [rows, columns] => Ok((rows, columns)),
            _ => {
                let what =
                    format!("tensor {} has shape {}, not that of a matrix", quoted(self.name()), self.shape_text());
                Err(self.error(what))
            }
        }
    }

    fn has(&self, what: &str, index: usize, count: usize) -> Result<()> {
        if index < count {
            return Ok(());
        }
        let text = format!("tensor {} has no {what} {index}", quoted(self.name()));
        Err(self.error(text).help(valid_range(&format!("{what}s"), count)))
    }

    fn error(&self, what: String) -> Error {
        Error::input(what).at(self.file.place.clone())
    }

    fn coordinates(&self, position: usize) -> Vec<usize> {
        let mut rest = position;
        let mut coordinates: Vec<usize> = (self.shape().iter().rev())
            .map(|&n| {
                let k = rest % n.max(1);
                rest /= n.max(1);
                k
            })
            .collect();
        coordinates.reverse();
        coordinates
    }

    fn shape_text(&self) -> String {
        const SHOWN: usize = 6;
        match self.shape().get(..SHOWN) {
            Some(first) if self.shape().len() > SHOWN => {
                format!("{first:?} and {} dimensions more", self.shape().len() - SHOWN)
            }
            _ => format!("{:?}", self.shape()),
        }
    }
}

/// What indices there are.
pub(crate) fn valid_range(what: &str, count: usize) -> String {
    match count {
        0 => format!("there are no {what}"),
        _ => format!("valid {what} are 0 to {}", count - 1),
    }
}

/// Reads a vector by name: a probe, a steering direction.
///
/// # Errors
/// As [`TensorFile::open`], [`TensorFile::tensor`] and [`Tensor::vector`].
///
/// ```
/// # use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("probes.safetensors");
/// # let bytes: Vec<u8> = [1.0f32, -2.5].iter().flat_map(|x| x.to_le_bytes()).collect();
/// # let view = TensorView::new(Dtype::F32, vec![2], &bytes).unwrap();
/// # serialize_to_file([("refusal", view)], None, &path).unwrap();
/// let direction = neurograft::tensors::read_vector(&path, "refusal")?;
/// assert_eq!(direction, [1.0, -2.5]);
/// # Ok::<(), neurograft::error::Error>(())
/// ```
pub fn read_vector(path: impl AsRef<Path>, name: &str) -> Result<Vec<f64>> {
    TensorFile::open(path)?.tensor(name)?.vector()
}

#[cfg(test)]
pub(crate) mod tests {
    use ::safetensors::tensor::{Dtype, TensorView, serialize};
    use half::{bf16, f16};

    use super::*;
    use proptest::prelude::*;

    /// A safetensors file from (name, number format, shape, bytes).
    pub(crate) fn file(tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> Vec<u8> {
        let views = tensors.iter().map(|(n, t, s, b)| (*n, TensorView::new(*t, s.clone(), b).expect("consistent")));
        serialize(views, None).expect("serializable")
    }

    pub(crate) fn f32s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    fn refusal(bytes: Vec<u8>) -> String {
        let e = TensorFile::from_bytes("x.safetensors", bytes).expect_err("malformed");
        assert!(e.is_input(), "{e}");
        e.to_string()
    }

    #[test]
    fn reads_every_number_format_exactly() {
        let values = [1.5f64, -0.25, 0.0];
        let bytes = file(&[
            ("a", Dtype::F16, vec![3], values.iter().flat_map(|x| f16::from_f64(*x).to_le_bytes()).collect()),
            ("b", Dtype::BF16, vec![3], values.iter().flat_map(|x| bf16::from_f64(*x).to_le_bytes()).collect()),
            ("c", Dtype::F32, vec![1, 3], f32s(&values.map(|x| x as f32))),
            ("d", Dtype::F64, vec![3, 1], values.iter().flat_map(|x| x.to_le_bytes()).collect()),
        ]);
        let f = TensorFile::from_bytes("x", bytes).unwrap();
        for name in ["a", "b", "c", "d"] {
            assert_eq!(f.tensor(name).unwrap().vector().unwrap(), values, "{name}");
        }
        assert_eq!(f.tensor("d").unwrap().row(1).unwrap(), [-0.25]);
        assert!(f.contains("a") && !f.contains("e"));
        assert!(Format::F32.holds(Format::Bf16) && !Format::F16.holds(Format::Bf16));
    }

    #[test]
    fn says_which_value_is_not_finite() {
        let bytes = file(&[("w", Dtype::F32, vec![2, 2], f32s(&[0.0, 1.0, f32::NAN, f32::INFINITY]))]);
        let f = TensorFile::from_bytes("x.safetensors", bytes).unwrap();
        let w = f.tensor("w").unwrap();
        assert_eq!(w.row(0).unwrap(), [0.0, 1.0]);
        assert!(w.get(2).unwrap_err().to_string().starts_with("x.safetensors: tensor 'w'[1, 0] is NaN"));
        assert!(w.get(3).unwrap_err().to_string().contains("'w'[1, 1] is inf"));
        assert!(w.get(4).unwrap_err().is_input() && w.get(usize::MAX).unwrap_err().is_input());
        assert!(w.row(2).unwrap_err().to_string().contains("valid rows are 0 to 1"));
        assert!(w.vector().unwrap_err().to_string().contains("[2, 2]"));
    }

    #[test]
    fn names_what_is_missing_or_of_another_kind() {
        let bytes = file(&[("W_enc", Dtype::F32, vec![1], f32s(&[0.0])), ("n", Dtype::I32, vec![1], vec![0; 4])]);
        let f = TensorFile::from_bytes("x", bytes).unwrap();
        assert!(f.tensor("W_emc").unwrap_err().to_string().contains("did you mean 'W_enc'?"));
        assert!(f.tensor("something else").unwrap_err().to_string().contains("the file holds"));
        assert!(f.tensor("n").unwrap_err().to_string().contains("I32"));
        let e = f.tensor("W_enc").unwrap().expect_shape(&[2, 3], "[d_in, d_sae]").unwrap_err();
        assert!(e.to_string().contains("has shape [1], not [d_in, d_sae] = [2, 3]"), "{e}");
    }

    #[test]
    fn refuses_hostile_headers() {
        assert!(refusal(vec![]).contains("truncated"));
        assert!(refusal(vec![1, 2, 3]).contains("truncated"));
        assert!(refusal(u64::MAX.to_le_bytes().to_vec()).contains("claims 18446744073709551615 bytes, 0 follow"));
        assert!(refusal(with_header("{", &[])).contains("malformed header"));
        assert!(refusal(with_header(&"[".repeat(100_000), &[])).contains("malformed header"));
        assert!(refusal(b"version https://git-lfs.github.com/spec/v1\n".to_vec()).contains("git lfs pull"));
        let tensor = |shape: &str, offsets: &str| {
            format!(r#"{{"w":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        assert!(refusal(with_header(&tensor("[4]", "[0,16]"), &[0; 12])).contains("truncated: 12 of 16"));
        assert!(refusal(with_header(&tensor("[2]", "[0,8]"), &[0; 12])).contains("4 bytes follow"));
        for (shape, offsets) in [
            ("[4]", "[0,12]"),
            ("[4]", "[16,0]"),
            ("[1]", "[4,8]"),
            ("[18446744073709551615,18446744073709551615]", "[0,4]"),
            ("[4611686018427387905]", "[0,4]"),
            ("[-1]", "[0,4]"),
            ("[1e30]", "[0,4]"),
        ] {
            assert!(refusal(with_header(&tensor(shape, offsets), &[0; 16])).contains("malformed header"), "{shape}");
        }
    }

    #[test]
    fn files_that_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        assert!(TensorFile::open(dir.path().join("none")).unwrap_err().is_io());
        assert!(TensorFile::open(dir.path()).unwrap_err().is_input());
        let empty = dir.path().join("empty.safetensors");
        std::fs::write(&empty, b"").unwrap();
        assert!(TensorFile::open(&empty).unwrap_err().to_string().contains("truncated"));
    }

    /// Asks for everything that a file claims to hold.
    pub(crate) fn exercise(bytes: Vec<u8>) {
        let Ok(f) = TensorFile::any_from_bytes("x", bytes) else { return };
        for name in f.names() {
            let _ = (f.shape(&name), f.format_name(&name), f.span(&name));
            if let Ok(t) = f.tensor(&name) {
                let _ = (t.vector(), t.row(0), t.get(t.len()), t.expect_shape(&[1], "[1]"));
                let _ = (t.values(), t.columns(&[0]));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            exercise(bytes);
        }

        #[test]
        fn damaged_files_are_read_or_refused(at in any::<prop::sample::Index>(), with in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let mut bytes = file(&[
                ("w", Dtype::F32, vec![2, 2], f32s(&[0.0, 1.0, 2.0, 3.0])),
                ("b", Dtype::F16, vec![2], vec![0; 4]),
            ]);
            let at = at.index(bytes.len());
            bytes[at] = with;
            exercise(bytes.clone());
            bytes.truncate(cut.index(bytes.len()));
            exercise(bytes);
        }

        #[test]
        fn any_header_is_read_or_refused(
            dtype in "F32|F64|BF16|F4|U8|F33",
            shape in proptest::collection::vec(prop_oneof![0..5usize, any::<usize>()], 0..4),
            start in prop_oneof![0..5usize, any::<usize>()],
            end in prop_oneof![0..40usize, any::<usize>()],
        ) {
            let header = format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}}}"#);
            exercise(with_header(&header, &[0; 32]));
        }
    }
}
