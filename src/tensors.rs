//! Safetensors files, memory-mapped: vectors and matrices of floats, read as `f64` one value at a time.
//!
//! Knows nothing of SAEs. Opening parses the header only; nothing is read of a tensor until it is asked for, and no
//! allocation is sized by a number that the file merely claims: the header must lie inside the file and must account
//! for every byte that follows it.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use safetensors::tensor::Metadata;

use crate::error::{Error, Result, nearest};
pub use crate::format::Format;

/// Bytes before the header: its length as a little-endian u64.
const LENGTH_BYTES: usize = 8;

/// The largest header that is parsed, the format's own limit.
const MAX_HEADER_BYTES: usize = 100_000_000;

/// Text of a file for a message: control characters escaped, never long.
pub(crate) fn quoted(text: &str) -> String {
    const LONGEST: usize = 60;
    let mut short: String = text.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if text.chars().nth(LONGEST).is_some() {
        short.push_str("...");
    }
    format!("'{short}'")
}

/// An open safetensors file.
#[derive(Debug)]
pub struct TensorFile {
    place: String,
    bytes: Bytes,
    data_start: usize,
    metadata: Metadata,
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
    /// Maps a file and parses its header.
    ///
    /// The file must not be shortened or rewritten while it is open, as with every memory-mapped file.
    ///
    /// # Errors
    /// If the file cannot be opened, or is no safetensors file, or is not complete.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(path.display().to_string(), Bytes::map(path, "name a .safetensors file")?)
    }

    /// A file that is in memory already; `place` names it in messages.
    ///
    /// # Errors
    /// If the bytes are no complete safetensors file.
    pub fn from_bytes(place: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Result<Self> {
        Self::parse(place.into(), Bytes::Owned(bytes.into()))
    }

    fn parse(place: String, bytes: Bytes) -> Result<Self> {
        match header(bytes.as_slice()) {
            Ok((data_start, metadata)) => Ok(TensorFile { place, bytes, data_start, metadata }),
            Err(e) => Err(e.at(place)),
        }
    }

    /// What the file is called in messages: its path.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The tensors' names, in the order of their data.
    pub fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// Is there a tensor of that name?
    pub fn contains(&self, name: &str) -> bool {
        self.metadata.info(name).is_some()
    }

    /// A tensor of floats.
    ///
    /// # Errors
    /// If there is none of that name, or it does not hold f16, bf16, f32 or f64.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        self.find(name).map_err(|e| e.at(self.place.clone()))
    }

    fn find(&self, name: &str) -> Result<Tensor<'_>> {
        let Some(info) = self.metadata.info(name) else {
            return Err(self.missing(name));
        };
        let Some(format) = Format::of(info.dtype) else {
            return Err(Error::input(format!("tensor {} holds {:?}", quoted(name), info.dtype))
                .help("convert it to F16, BF16, F32 or F64"));
        };
        let (start, end) = info.data_offsets;
        let data = self.bytes.as_slice().get(self.data_start..).and_then(|data| data.get(start..end));
        let data = data.ok_or_else(|| Error::input(format!("tensor {} lies outside of the file", quoted(name))))?;
        Ok(Tensor { file: self, name: name.to_string(), format, shape: &info.shape, data })
    }

    /// Where a tensor's bytes lie in the file: for those who copy them without holding them.
    pub fn span(&self, name: &str) -> Option<Range<u64>> {
        let (start, end) = self.metadata.info(name)?.data_offsets;
        Some((self.data_start + start) as u64..(self.data_start + end) as u64)
    }

    fn missing(&self, name: &str) -> Error {
        const SHOWN: usize = 8;
        let names = self.names();
        let error = Error::input(format!("no tensor {}", quoted(name)));
        if names.is_empty() {
            return error.help("the file holds no tensors at all");
        }
        if let Some(near) = nearest(name, names.iter().map(String::as_str).filter(|n| n.len() < 200)) {
            return error.help(format!("did you mean {}?", quoted(near)));
        }
        let mut list = names.iter().take(SHOWN).map(|n| quoted(n)).collect::<Vec<_>>().join(", ");
        if names.len() > SHOWN {
            list.push_str(&format!(" and {} more", names.len() - SHOWN));
        }
        error.help(format!("the file holds {list}"))
    }
}

/// Where the data starts, and what the header says of it.
fn header(bytes: &[u8]) -> Result<(usize, Metadata)> {
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(Error::input("a Git LFS pointer, not the file it stands for").help("run 'git lfs pull' first"));
    }
    let short = || Error::input(format!("truncated: {} bytes are no safetensors file", bytes.len()));
    let length = bytes.first_chunk::<LENGTH_BYTES>().ok_or_else(short)?;
    let claimed = u64::from_le_bytes(*length);
    let rest = &bytes[LENGTH_BYTES..];
    let length = usize::try_from(claimed).ok().filter(|n| *n <= rest.len()).ok_or_else(|| {
        Error::input(format!(
            "the header claims {claimed} bytes, {} follow: truncated or no safetensors file",
            rest.len()
        ))
    })?;
    if length > MAX_HEADER_BYTES {
        return Err(Error::input(format!("the header has {length} bytes, more than the format's {MAX_HEADER_BYTES}")));
    }
    let (text, data) = rest.split_at(length);
    // The parse checks that shapes, number formats and offsets agree and that tensors neither overlap nor leave gaps.
    let metadata: Metadata =
        serde_json::from_slice(text).map_err(|e| Error::input(format!("malformed header: {e}")))?;
    let promised = metadata.data_len();
    if promised > data.len() {
        return Err(Error::input(format!("truncated: {} of {promised} bytes of tensor data are there", data.len()))
            .help("download or copy the file again"));
    }
    if promised < data.len() {
        return Err(Error::input(format!("{} bytes follow the last tensor", data.len() - promised))
            .help("the header does not describe this file: download or write it again"));
    }
    Ok((LENGTH_BYTES + length, metadata))
}

/// One tensor of a [`TensorFile`].
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    file: &'a TensorFile,
    name: String,
    format: Format,
    shape: &'a [usize],
    data: &'a [u8],
}

impl Tensor<'_> {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its dimensions, slowest first.
    pub fn shape(&self) -> &[usize] {
        self.shape
    }

    /// Its number format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The number of its values.
    pub fn len(&self) -> usize {
        self.data.len() / self.format.bytes()
    }

    /// Its bytes, little-endian, the last axis running fastest.
    pub fn data(&self) -> &[u8] {
        self.data
    }

    /// Has it no values?
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// Insists on a shape; `meaning` says what its dimensions are, as in `[d_in, d_sae]`.
    ///
    /// # Errors
    /// If the shape is another.
    pub fn expect_shape(&self, shape: &[usize], meaning: &str) -> Result<()> {
        if self.shape == shape {
            return Ok(());
        }
        let what = format!("tensor {} has shape {}, not {meaning} = {shape:?}", quoted(&self.name), self.shape_text());
        Err(Error::input(what).at(self.file.place.clone()))
    }

    /// The value at a position in row-major order, exactly.
    ///
    /// # Errors
    /// If the position is past the end, or the value is NaN or infinite.
    pub fn get(&self, position: usize) -> Result<f64> {
        let size = self.format.bytes();
        let bytes = position.checked_mul(size).and_then(|start| self.data.get(start..start.checked_add(size)?));
        let value = bytes.and_then(|b| self.format.read(b));
        match value {
            Some(v) if v.is_finite() => Ok(v),
            Some(v) => Err(self
                .error(format!("tensor {}{:?} is {v}", quoted(&self.name), self.coordinates(position)))
                .help("every value that is used must be finite: repair or replace the file")),
            None => Err(self.error(format!(
                "tensor {} has {} values, none at position {position}",
                quoted(&self.name),
                self.len()
            ))),
        }
    }

    /// All values of a one-dimensional tensor; dimensions of length 1 are ignored.
    ///
    /// # Errors
    /// If it has more than one dimension that is longer than 1, or a value is not finite.
    pub fn vector(&self) -> Result<Vec<f64>> {
        if self.shape.iter().filter(|n| **n != 1).count() > 1 {
            let what = format!("tensor {} has shape {}, not that of a vector", quoted(&self.name), self.shape_text());
            return Err(self.error(what).help("name a tensor of one dimension, or take a row of this one"));
        }
        (0..self.len()).map(|k| self.get(k)).collect()
    }

    /// All values, the last axis running fastest.
    ///
    /// # Errors
    /// If a value is not finite.
    pub fn values(&self) -> Result<Vec<f64>> {
        (0..self.len()).map(|k| self.get(k)).collect()
    }

    /// One row of a two-dimensional tensor.
    ///
    /// # Errors
    /// If it is not two-dimensional, there is no such row, or a value is not finite.
    pub fn row(&self, row: usize) -> Result<Vec<f64>> {
        let &[rows, columns] = self.shape else {
            let what = format!("tensor {} has shape {}, not that of a matrix", quoted(&self.name), self.shape_text());
            return Err(self.error(what));
        };
        if row >= rows {
            let what = format!("tensor {} has no row {row}", quoted(&self.name));
            return Err(self.error(what).help(valid_range("rows", rows)));
        }
        (row * columns..(row + 1) * columns).map(|k| self.get(k)).collect()
    }

    fn error(&self, what: String) -> Error {
        Error::input(what).at(self.file.place.clone())
    }

    fn coordinates(&self, position: usize) -> Vec<usize> {
        let mut rest = position;
        let mut coordinates: Vec<usize> = (self.shape.iter().rev())
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
        match self.shape.get(..SHOWN) {
            Some(first) if self.shape.len() > SHOWN => {
                format!("{first:?} and {} dimensions more", self.shape.len() - SHOWN)
            }
            _ => format!("{:?}", self.shape),
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
    use half::{bf16, f16};
    use safetensors::tensor::Dtype;

    use super::*;
    use proptest::prelude::*;
    use safetensors::tensor::{TensorView, serialize};

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
    fn exercise(bytes: Vec<u8>) {
        let Ok(f) = TensorFile::from_bytes("x", bytes) else { return };
        for name in f.names() {
            if let Ok(t) = f.tensor(&name) {
                let _ = (t.vector(), t.row(0), t.get(t.len()), t.expect_shape(&[1], "[1]"));
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
