//! GGUF files, versions 2 and 3, little-endian: a memory-mapped reader and a streaming writer.
//!
//! Knows nothing of models. Opening parses the head only: no allocation is sized by a number that the file merely claims,
//! and every tensor must lie inside of the file, apart from the others. Metadata values keep the bytes that they have in
//! the file, so that what is copied stays what it was.

mod types;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::ops::Range;
use std::path::Path;

use self::types::Decoder;
pub use self::types::GgmlType;
use crate::error::{Error, Result, nearest};
use crate::tensors::{Bytes, quoted};

const MAGIC: &[u8] = b"GGUF";

/// Where `general.alignment` is not given.
const USUAL_ALIGNMENT: usize = 32;

/// ggml's own limits.
const MOST_DIMENSIONS: u32 = 4;
const LONGEST_NAME: usize = 63;

/// No vocabulary is larger; stepping over texts takes time.
const MOST_TEXTS: u64 = 1 << 24;

/// The kinds of metadata values; their numbers in files are their places here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs)]
pub enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    const ALL: [Kind; 13] = [
        Kind::U8,
        Kind::I8,
        Kind::U16,
        Kind::I16,
        Kind::U32,
        Kind::I32,
        Kind::F32,
        Kind::Bool,
        Kind::Text,
        Kind::Array,
        Kind::U64,
        Kind::I64,
        Kind::F64,
    ];

    /// Bytes of a value; `None` where they vary.
    fn bytes(self) -> Option<usize> {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => Some(1),
            Kind::U16 | Kind::I16 => Some(2),
            Kind::U32 | Kind::I32 | Kind::F32 => Some(4),
            Kind::U64 | Kind::I64 | Kind::F64 => Some(8),
            Kind::Text | Kind::Array => None,
        }
    }
}

/// A metadata value: what it is, and its bytes as they stand in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value<'a> {
    kind: Kind,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Value<'a> {
    fn new(kind: Kind, bytes: impl Into<Vec<u8>>) -> Value<'a> {
        Value { kind, bytes: Cow::Owned(bytes.into()) }
    }

    /// An unsigned number.
    pub fn u32(x: u32) -> Value<'a> {
        Value::new(Kind::U32, x.to_le_bytes())
    }

    /// A floating-point number.
    pub fn f32(x: f32) -> Value<'a> {
        Value::new(Kind::F32, x.to_le_bytes())
    }

    /// A text.
    pub fn text(x: &str) -> Value<'a> {
        Value::new(Kind::Text, [&(x.len() as u64).to_le_bytes(), x.as_bytes()].concat())
    }

    /// An array from its elements' bytes.
    pub fn array(of: Kind, elements: &[&[u8]]) -> Value<'a> {
        let head = [&(of as u32).to_le_bytes()[..], &(elements.len() as u64).to_le_bytes()].concat();
        Value::new(Kind::Array, [head, elements.concat()].concat())
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// An integer that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        let b = &self.bytes[..];
        match self.kind {
            Kind::U8 => Some(b[0].into()),
            Kind::U16 => b.try_into().ok().map(|b| u16::from_le_bytes(b).into()),
            Kind::U32 => b.try_into().ok().map(|b| u32::from_le_bytes(b).into()),
            Kind::U64 => b.try_into().ok().map(u64::from_le_bytes),
            Kind::I8 => u64::try_from(b[0] as i8).ok(),
            Kind::I16 => b.try_into().ok().and_then(|b| i16::from_le_bytes(b).try_into().ok()),
            Kind::I32 => b.try_into().ok().and_then(|b| i32::from_le_bytes(b).try_into().ok()),
            Kind::I64 => b.try_into().ok().and_then(|b| i64::from_le_bytes(b).try_into().ok()),
            _ => None,
        }
    }

    /// A floating-point number.
    pub fn as_f64(&self) -> Option<f64> {
        match self.kind {
            Kind::F32 => self.bytes[..].try_into().ok().map(|b| f32::from_le_bytes(b).into()),
            Kind::F64 => self.bytes[..].try_into().ok().map(f64::from_le_bytes),
            _ => None,
        }
    }

    /// A text, if it is UTF-8.
    pub fn as_text(&self) -> Option<&str> {
        if self.kind != Kind::Text {
            return None;
        }
        std::str::from_utf8(self.bytes.get(8..)?).ok()
    }

    /// The number of an array's elements.
    pub fn len(&self) -> Option<u64> {
        if self.kind != Kind::Array {
            return None;
        }
        self.bytes.get(4..12)?.try_into().ok().map(u64::from_le_bytes)
    }

    /// Is it an array without elements?
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// An array's elements.
    pub fn elements(&self) -> Option<Vec<Value<'_>>> {
        let count = self.len()?;
        let mut cursor = Cursor { bytes: &self.bytes, at: 0 };
        let of = cursor.kind("an array").ok()?;
        cursor.u64("an array").ok()?;
        (0..count).map(|_| cursor.value(of, "an array").ok()).collect()
    }

    /// The array of the elements at the given places.
    pub fn select(&self, places: &[usize]) -> Option<Value<'static>> {
        let elements = self.elements()?;
        let picked: Option<Vec<&[u8]>> = places.iter().map(|k| elements.get(*k).map(|e| &e.bytes[..])).collect();
        let of = Cursor { bytes: &self.bytes, at: 0 }.kind("an array").ok()?;
        Some(Value::array(of, &picked?))
    }
}

/// What a file says of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// its name
    pub name: String,
    /// its dimensions, *fastest first*: a matrix [out, in] of PyTorch's is \[in, out\] here
    pub dims: Vec<usize>,
    /// its number format
    pub format: GgmlType,
}

impl TensorInfo {
    /// Values of a row, the fastest dimension.
    pub fn width(&self) -> usize {
        self.dims.first().copied().unwrap_or(1)
    }

    /// Rows: the product of the other dimensions.
    pub fn rows(&self) -> usize {
        self.dims.iter().skip(1).product()
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.width() / self.format.block * self.format.bytes
    }

    /// Bytes of the tensor.
    pub fn bytes(&self) -> usize {
        self.row_bytes() * self.rows()
    }

    /// The same as a checked number: dimensions whose product overflows, and rows that are no whole blocks, have none.
    fn checked_bytes(&self) -> Option<usize> {
        let values = self.dims.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
        let whole = values > 0 && self.width().is_multiple_of(self.format.block);
        if whole { (values / self.format.block).checked_mul(self.format.bytes) } else { None }
    }
}

/// An open GGUF file.
#[derive(Debug)]
pub struct GgufFile {
    place: String,
    bytes: Bytes,
    head: Head,
}

#[derive(Debug, Default)]
struct Head {
    version: u32,
    alignment: usize,
    metadata: Vec<(String, Kind, Range<usize>)>,
    tensors: Vec<TensorInfo>,
    /// where each tensor's data lies in the file
    ranges: Vec<Range<usize>>,
    index: HashMap<String, usize>,
}

impl GgufFile {
    /// Maps a file and parses its head.
    ///
    /// The file must not be shortened or rewritten while it is open, as with every memory-mapped file.
    ///
    /// # Errors
    /// If the file cannot be opened, is no GGUF file of version 2 or 3, big-endian, not complete, or contradicts itself.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(path.display().to_string(), Bytes::map(path, "name a .gguf file")?)
    }

    /// A file that is in memory already; `place` names it in messages.
    ///
    /// # Errors
    /// As [`GgufFile::open`].
    pub fn from_bytes(place: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Result<Self> {
        Self::parse(place.into(), Bytes::Owned(bytes.into()))
    }

    /// The head of a file whose data is kept elsewhere: its tensors have no values.
    ///
    /// # Errors
    /// As [`GgufFile::open`], but for what concerns the data.
    pub fn from_head(place: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Result<Self> {
        let (place, bytes) = (place.into(), bytes.into());
        match head(&bytes) {
            Ok((mut head, _)) => {
                head.ranges = vec![0..0; head.tensors.len()];
                Ok(GgufFile { place, bytes: Bytes::Owned(bytes), head })
            }
            Err(e) => Err(e.at(place)),
        }
    }

    pub(crate) fn parse(place: String, bytes: Bytes) -> Result<Self> {
        let parsed = head(bytes.as_slice()).and_then(|(mut head, data)| {
            head.ranges = ranges(&head, &data, bytes.as_slice().len())?;
            Ok(head)
        });
        match parsed {
            Ok(head) => Ok(GgufFile { place, bytes, head }),
            Err(e) => Err(e.at(place)),
        }
    }

    /// What the file is called in messages: its path.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The version of the file format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.head.version
    }

    /// Tensors start at multiples of this.
    pub fn alignment(&self) -> usize {
        self.head.alignment
    }

    /// All metadata, in the file's order.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.head.metadata.iter().map(|(key, kind, range)| {
            let bytes = Cow::Borrowed(&self.bytes.as_slice()[range.clone()]);
            (key.as_str(), Value { kind: *kind, bytes })
        })
    }

    /// A metadata value.
    pub fn value(&self, key: &str) -> Option<Value<'_>> {
        self.metadata().find(|(k, _)| *k == key).map(|(_, value)| value)
    }

    /// A metadata value that must be there, read as something.
    ///
    /// # Errors
    /// If it is missing, or of another kind.
    pub fn need<T>(&self, key: &str, what: &str, read: impl Fn(&Value<'_>) -> Option<T>) -> Result<T> {
        let wrong = |text: String| Error::input(text).at(self.place.clone());
        let value = self.value(key).ok_or_else(|| wrong(format!("no metadata {}", quoted(key))))?;
        read(&value).ok_or_else(|| wrong(format!("metadata {} is {:?}, not {what}", quoted(key), value.kind())))
    }

    /// What the file says of its tensors, in its order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.head.tensors
    }

    /// Is there a tensor of that name?
    pub fn contains(&self, name: &str) -> bool {
        self.head.index.contains_key(name)
    }

    /// Where a tensor's bytes lie in the file: for those who copy them without holding them.
    pub fn span(&self, name: &str) -> Option<Range<u64>> {
        let range = self.head.ranges.get(*self.head.index.get(name)?)?;
        Some(range.start as u64..range.end as u64)
    }

    /// A tensor.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        if let Some(k) = self.head.index.get(name) {
            let data = &self.bytes.as_slice()[self.head.ranges[*k].clone()];
            return Ok(Tensor { info: &self.head.tensors[*k], data, place: &self.place });
        }
        let error = Error::input(format!("no tensor {}", quoted(name))).at(self.place.clone());
        Err(match nearest(name, self.head.tensors.iter().map(|t| t.name.as_str())) {
            Some(near) => error.help(format!("did you mean {}?", quoted(near))),
            None => error.help(format!("the file holds {} tensors, none of a name like this", self.head.tensors.len())),
        })
    }
}

/// One tensor of a [`GgufFile`].
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    info: &'a TensorInfo,
    data: &'a [u8],
    place: &'a str,
}

impl<'a> Tensor<'a> {
    /// What the file says of it.
    pub fn info(&self) -> &'a TensorInfo {
        self.info
    }

    /// Its bytes.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Can its values be read here?
    pub fn is_readable(&self) -> bool {
        self.info.format.decoder().is_some()
    }

    /// The values of some of its rows, exactly.
    ///
    /// # Errors
    /// If there are no such rows, or the number format is one that is not read here.
    pub fn rows(&self, rows: Range<usize>) -> Result<Vec<f64>> {
        let wrong = |e: Error| e.at(self.info.name.clone()).at(self.place);
        let decode: Decoder = self.info.format.decoder().ok_or_else(|| {
            wrong(Error::unsupported(format!("values of {} are not read here", self.info.format.name)))
        })?;
        let (row, format) = (self.info.row_bytes(), self.info.format);
        let data = (rows.start.checked_mul(row).zip(rows.end.checked_mul(row)))
            .and_then(|(start, end)| self.data.get(start..end))
            .ok_or_else(|| wrong(Error::input(format!("rows {rows:?} of {}", self.info.rows()))))?;
        let mut out = vec![0.0; data.len() / format.bytes * format.block];
        data.chunks_exact(format.bytes).zip(out.chunks_exact_mut(format.block)).for_each(|(b, y)| decode(b, y));
        Ok(out)
    }

    /// All values, the fastest dimension running fastest.
    ///
    /// # Errors
    /// As [`Tensor::rows`].
    pub fn values(&self) -> Result<Vec<f64>> {
        self.rows(0..self.info.rows())
    }
}

/// Reads a head from front to back, never beyond the end.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8]> {
        let Some(count) = usize::try_from(count).ok().filter(|n| *n <= self.left()) else {
            return Err(Error::input(format!(
                "truncated or damaged: {what} at byte {} claims {count} bytes, {} are left",
                self.at,
                self.left()
            ))
            .help("download or copy the file again"));
        };
        let taken = &self.bytes[self.at..self.at + count];
        self.at += count;
        Ok(taken)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take(4, what)?.try_into().expect("4 bytes")))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take(8, what)?.try_into().expect("8 bytes")))
    }

    /// The number of things of which each has at least so many bytes.
    fn count(&mut self, each: u64, what: &str) -> Result<u64> {
        let n = self.u64(what)?;
        let most = self.left() as u64 / each;
        if n > most {
            return Err(Error::input(format!("truncated or damaged: {n} {what} are claimed, at most {most} fit")));
        }
        Ok(n)
    }

    fn text(&mut self, what: &str) -> Result<&'a [u8]> {
        let length = self.u64(what)?;
        self.take(length, what)
    }

    fn name(&mut self, what: &str) -> Result<String> {
        let bytes = self.text(what)?;
        let text = std::str::from_utf8(bytes).ok().filter(|t| !t.is_empty());
        text.map(String::from).ok_or_else(|| Error::input(format!("{what} before byte {} is no text", self.at)))
    }

    fn kind(&mut self, what: &str) -> Result<Kind> {
        let id = self.u32(what)?;
        let kind = usize::try_from(id).ok().and_then(|id| Kind::ALL.get(id).copied());
        kind.ok_or_else(|| Error::input(format!("{what} has a value of unknown kind {id}")))
    }

    /// Steps over a value.
    fn value(&mut self, kind: Kind, what: &str) -> Result<Value<'a>> {
        let start = self.at;
        match (kind, kind.bytes()) {
            (_, Some(size)) => drop(self.take(size as u64, what)?),
            (Kind::Text, _) => drop(self.text(what)?),
            _ => {
                let of = self.kind(what)?;
                match of.bytes() {
                    Some(size) => {
                        let n = self.count(size as u64, "elements of an array")?;
                        self.take(n * size as u64, what)?;
                    }
                    None if of == Kind::Text => {
                        let n = self.count(8, "texts of an array")?;
                        if n > MOST_TEXTS {
                            return Err(Error::unsupported(format!("{what} has {n} texts, more than {MOST_TEXTS}")));
                        }
                        for _ in 0..n {
                            self.text(what)?;
                        }
                    }
                    None => return Err(Error::unsupported(format!("{what} is an array of arrays"))),
                }
            }
        }
        Ok(Value { kind, bytes: Cow::Borrowed(&self.bytes[start..self.at]) })
    }
}

/// Where the data starts, and each tensor's offset from there.
struct Data {
    start: usize,
    offsets: Vec<u64>,
}

fn head(bytes: &[u8]) -> Result<(Head, Data)> {
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(Error::input("a Git LFS pointer, not the file it stands for").help("run 'git lfs pull' first"));
    }
    let mut c = Cursor { bytes, at: 0 };
    if c.take(4, "the magic number")? != MAGIC {
        return Err(Error::input(format!("no GGUF file: it starts with {:02x?}", &bytes[..4])));
    }
    let version = c.u32("the version")?;
    // A version below 2^16 leaves no other explanation for empty low bytes.
    if version & 0xffff == 0 {
        return Err(Error::unsupported("a big-endian GGUF file").help("convert it with gguf-py's gguf-convert-endian"));
    }
    if !(2..=3).contains(&version) {
        return Err(Error::unsupported(format!("GGUF version {version}")).help("versions 2 and 3 are read"));
    }
    // A tensor has a name's length, dimensions' count, one dimension, a format and an offset; a value at least a byte.
    let tensor_count = c.count(8 + 4 + 8 + 4 + 8, "tensors")?;
    let value_count = c.count(8 + 4 + 1, "metadata values")?;
    let mut head = Head { version, alignment: USUAL_ALIGNMENT, ..Head::default() };
    let mut keys = HashSet::new();
    for _ in 0..value_count {
        let key = c.name("a metadata key")?;
        let what = format!("metadata {}", quoted(&key));
        let kind = c.kind(&what)?;
        let start = c.at;
        let value = c.value(kind, &what)?;
        if key == "general.alignment" {
            let alignment = value.as_u64().and_then(|a| usize::try_from(a).ok()).filter(|a| a.is_power_of_two());
            head.alignment = alignment.ok_or_else(|| Error::input(format!("{what} is no power of two")))?;
        }
        if !keys.insert(key.clone()) {
            return Err(Error::input(format!("{what} stands there twice")));
        }
        head.metadata.push((key, kind, start..c.at));
    }
    let mut offsets = Vec::new();
    for k in 0..tensor_count {
        let (info, offset) = tensor_info(&mut c)?;
        if head.index.insert(info.name.clone(), k as usize).is_some() {
            return Err(Error::input(format!("tensor {} stands there twice", quoted(&info.name))));
        }
        head.tensors.push(info);
        offsets.push(offset);
    }
    // Data starts at the next multiple of the alignment.
    let start = c.at.checked_next_multiple_of(head.alignment).unwrap_or(usize::MAX);
    Ok((head, Data { start, offsets }))
}

/// Where each tensor lies in a file of a given size.
fn ranges(head: &Head, data: &Data, size: usize) -> Result<Vec<Range<usize>>> {
    let mut ranges = Vec::new();
    for (info, offset) in head.tensors.iter().zip(&data.offsets) {
        let wrong = |text: String| Error::input(format!("tensor {}: {text}", quoted(&info.name)));
        if offset % head.alignment as u64 != 0 {
            return Err(wrong(format!("its data starts at {offset}, no multiple of {}", head.alignment)));
        }
        let range = usize::try_from(*offset)
            .ok()
            .and_then(|o| data.start.checked_add(o))
            .and_then(|from| from.checked_add(info.bytes()).map(|to| from..to));
        ranges.push(range.filter(|r| r.end <= size).ok_or_else(|| {
            wrong(format!("its {} bytes at {offset} do not lie in the file of {size}", info.bytes()))
                .help("truncated or damaged: download or copy the file again")
        })?);
    }
    let mut order: Vec<usize> = (0..ranges.len()).collect();
    order.sort_by_key(|k| ranges[*k].start);
    if let Some(w) = order.windows(2).find(|w| ranges[w[0]].end > ranges[w[1]].start) {
        let name = |k: usize| quoted(&head.tensors[k].name);
        return Err(Error::input(format!("tensors {} and {} overlap", name(w[0]), name(w[1]))));
    }
    Ok(ranges)
}

fn tensor_info(c: &mut Cursor<'_>) -> Result<(TensorInfo, u64)> {
    let name = c.name("a tensor's name")?;
    let wrong = |text: String| Error::input(format!("tensor {}: {text}", quoted(&name)));
    if name.len() > LONGEST_NAME {
        return Err(wrong(format!("a name of {} bytes, ggml's longest has {LONGEST_NAME}", name.len())));
    }
    let count = c.u32("a tensor's dimensions")?;
    if !(1..=MOST_DIMENSIONS).contains(&count) {
        return Err(wrong(format!("{count} dimensions, 1 to {MOST_DIMENSIONS} are possible")));
    }
    let mut dims = Vec::new();
    for _ in 0..count {
        let n = c.u64("a tensor's dimension")?;
        dims.push(usize::try_from(n).map_err(|_| wrong(format!("a dimension of {n}")))?);
    }
    let id = c.u32("a tensor's format")?;
    let format = GgmlType::of(id).ok_or_else(|| {
        wrong(format!("ggml's number format {id} is unknown here")).help("is the file newer than this?")
    })?;
    let offset = c.u64("a tensor's offset")?;
    let info = TensorInfo { name: name.clone(), dims, format };
    if info.checked_bytes().is_none() {
        return Err(wrong(format!(
            "dimensions {:?} are no whole number of {}'s blocks of {}",
            info.dims, format.name, format.block
        )));
    }
    Ok((info, offset))
}

/// A head, up to where the data starts, and the alignment that its metadata ask for.
fn encode(version: u32, metadata: &[(Cow<'_, str>, Value<'_>)], tensors: &[TensorInfo]) -> (Vec<u8>, usize) {
    let alignment = metadata
        .iter()
        .find(|(key, _)| key == "general.alignment")
        .and_then(|(_, value)| value.as_u64())
        .map_or(USUAL_ALIGNMENT, |a| a as usize);
    let mut head = MAGIC.to_vec();
    let text = |head: &mut Vec<u8>, text: &str| {
        head.extend((text.len() as u64).to_le_bytes());
        head.extend(text.as_bytes());
    };
    head.extend(version.to_le_bytes());
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut head, key);
        head.extend((value.kind as u32).to_le_bytes());
        head.extend(&value.bytes[..]);
    }
    let mut offset = 0;
    for t in tensors {
        text(&mut head, &t.name);
        head.extend((t.dims.len() as u32).to_le_bytes());
        t.dims.iter().for_each(|d| head.extend((*d as u64).to_le_bytes()));
        head.extend(t.format.id.to_le_bytes());
        head.extend((offset as u64).to_le_bytes());
        offset = (offset + t.bytes()).next_multiple_of(alignment);
    }
    head.resize(head.len().next_multiple_of(alignment), 0);
    (head, alignment)
}

/// The bytes of a head without data: see [`GgufFile::from_head`].
pub fn head_bytes(version: u32, metadata: &[(Cow<'_, str>, Value<'_>)], tensors: &[TensorInfo]) -> Vec<u8> {
    encode(version, metadata, tensors).0
}

/// Writes a GGUF file from front to back: the head first, then the data of all tensors in their order, as it comes.
pub struct Writer<W: Write> {
    out: W,
    alignment: usize,
    tensors: std::vec::IntoIter<TensorInfo>,
    /// the tensor that is being written, and the bytes that it still needs
    current: Option<(TensorInfo, usize)>,
    written: u64,
}

impl<W: Write> Writer<W> {
    /// Writes the head. `general.alignment` of the metadata holds, if it is there.
    ///
    /// # Errors
    /// What `out` says.
    pub fn new(
        mut out: W,
        version: u32,
        metadata: &[(Cow<'_, str>, Value<'_>)],
        tensors: Vec<TensorInfo>,
    ) -> std::io::Result<Self> {
        let (head, alignment) = encode(version, metadata, &tensors);
        out.write_all(&head)?;
        let mut tensors = tensors.into_iter();
        let current = tensors.next().map(|t| (t.bytes(), t)).map(|(n, t)| (t, n));
        Ok(Writer { out, alignment, tensors, current, written: head.len() as u64 })
    }

    /// The tensor whose data is next, and how many bytes of it are still to come.
    pub fn current(&self) -> Option<(&TensorInfo, usize)> {
        self.current.as_ref().map(|(t, n)| (t, *n))
    }

    /// The next bytes of the current tensor. Padding between tensors comes by itself.
    ///
    /// # Errors
    /// What the file says.
    ///
    /// # Panics
    /// If there are more bytes than the tensor has.
    pub fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let (tensor, left) = self.current.as_mut().expect("bytes beyond the last tensor");
        assert!(bytes.len() <= *left, "{}: bytes beyond its end", tensor.name);
        self.out.write_all(bytes)?;
        *left -= bytes.len();
        self.written += bytes.len() as u64;
        if *left == 0 {
            let padding = self.written.next_multiple_of(self.alignment as u64) - self.written;
            self.out.write_all(&vec![0; padding as usize])?;
            self.written += padding;
            self.current = self.tensors.next().map(|t| (t.bytes(), t)).map(|(n, t)| (t, n));
        }
        Ok(())
    }

    /// Gives the file back, and how many bytes it has.
    ///
    /// # Panics
    /// If a tensor is not complete.
    pub fn finish(self) -> (W, u64) {
        assert!(self.current.is_none(), "a tensor is not complete");
        (self.out, self.written)
    }
}
