//! Tensors on their way from file to file: row by row, never whole.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use nalgebra::DMatrix;

use crate::error::{Error, Result};
use crate::files::Hashing;
use crate::format::Format;
use crate::tensors::{TensorFile, safetensors};

/// Bytes that are in memory at once, but for a single row that is longer.
const BUFFER: usize = 1 << 20;

/// What a tensor of the spliced checkpoint holds.
#[derive(Clone, Debug)]
pub(super) enum Content<'a> {
    /// a tensor of the source, times `scale`; zeros beyond its shape
    Source { name: String, scale: Option<f64> },
    /// numbers of an inserted layer, each representable in the format; zeros beyond
    Numbers(Cow<'a, DMatrix<f64>>),
    /// zeros
    Zeros,
}

impl Content<'_> {
    /// A vector's numbers.
    pub(super) fn vector(values: &[f64]) -> Content<'static> {
        Content::Numbers(Cow::Owned(DMatrix::from_row_slice(1, values.len(), values)))
    }
}

/// One tensor of the spliced checkpoint.
#[derive(Clone, Debug)]
pub(super) struct Entry<'a> {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) content: Content<'a>,
}

/// Rows and columns; a vector is one row.
pub(super) fn grid(shape: &[usize]) -> (usize, usize) {
    match shape {
        [columns] => (1, *columns),
        [rows, columns] => (*rows, *columns),
        _ => (1, shape.iter().product()),
    }
}

/// A safetensors file whose tensors are read through a buffer: a mapped file would stay in memory, page by page.
#[derive(Debug)]
pub(super) struct Source {
    header: TensorFile,
    file: File,
}

impl Source {
    pub(super) fn open(path: &Path) -> Result<Source> {
        let header = TensorFile::open(path)?;
        let file = File::open(path).map_err(|e| Error::io(format!("{}: cannot open the file", path.display()), e))?;
        Ok(Source { header, file })
    }

    pub(super) fn header(&self) -> &TensorFile {
        &self.header
    }

    /// Hands out a tensor's bytes from the beginning, whole rows at a time: (first row, bytes of one or more rows).
    pub(super) fn rows(&self, name: &str, mut each: impl FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
        let failed = |e| Error::io(format!("{}: cannot read tensor '{name}'", self.header.place()), e);
        let tensor = self.header.tensor(name)?;
        let (rows, columns) = grid(tensor.shape());
        let width = columns * tensor.format().bytes();
        let span = self.header.span(name).unwrap_or(0..0);
        let mut file = &self.file;
        file.seek(SeekFrom::Start(span.start)).map_err(failed)?;
        let together = (BUFFER / width.max(1)).max(1);
        let mut buffer = vec![0; together.min(rows.max(1)) * width];
        for first in (0..rows).step_by(together) {
            let bytes = &mut buffer[..together.min(rows - first) * width];
            file.read_exact(bytes).map_err(failed)?;
            each(first, bytes)?;
        }
        Ok(())
    }

    /// As [`Source::rows`], one row of numbers at a time. Errors: a number that is not finite.
    pub(super) fn numbers(&self, name: &str, mut each: impl FnMut(usize, &[f64])) -> Result<()> {
        let tensor = self.header.tensor(name)?;
        let (format, (_, columns)) = (tensor.format(), grid(tensor.shape()));
        let width = (columns * format.bytes()).max(1);
        let mut row = vec![0.0; columns];
        self.rows(name, |first, bytes| {
            for (k, line) in bytes.chunks_exact(width).enumerate() {
                for (x, b) in row.iter_mut().zip(line.chunks_exact(format.bytes())) {
                    *x = format.read(b).unwrap_or(f64::NAN);
                }
                if let Some(c) = row.iter().position(|x| !x.is_finite()) {
                    let what = format!("tensor '{name}' is {} in row {}, column {c}", row[c], first + k);
                    return Err(Error::input(what).at(self.header.place()));
                }
                each(first + k, &row);
            }
            Ok(())
        })
    }
}

/// Writes a safetensors file; returns its SHA-256. `find` opens the source of a tensor; `progress` hears of bytes.
pub(super) fn write<'s>(
    path: &Path,
    entries: &[Entry<'_>],
    format: Format,
    find: &dyn Fn(&str) -> Result<&'s Source>,
    progress: &mut dyn FnMut(u64),
) -> Result<String> {
    let failed = |e| Error::io(format!("cannot write {}", path.display()), e);
    let file = File::create_new(path).map_err(failed)?;
    let mut out = Hashing::new(BufWriter::with_capacity(BUFFER, file));
    // Transformers insists on this entry.
    let tensors = entries.iter().map(|e| (e.name.clone(), format, e.shape.clone()));
    out.write_all(&safetensors::head(tensors, ["format", "pt"])?).map_err(failed)?;
    for entry in entries {
        let before = out.written();
        write_entry(&mut out, entry, format, find, &failed)?;
        progress(out.written() - before);
    }
    let (inner, hash) = out.finish();
    inner.into_inner().map_err(|e| failed(e.into_error()))?;
    Ok(hash)
}

fn write_entry<'s>(
    out: &mut impl Write,
    entry: &Entry<'_>,
    format: Format,
    find: &dyn Fn(&str) -> Result<&'s Source>,
    failed: &dyn Fn(std::io::Error) -> Error,
) -> Result<()> {
    let (rows, columns) = grid(&entry.shape);
    let width = columns * format.bytes();
    // Rows that are there already; what is missing is zeros.
    let given = match &entry.content {
        Content::Zeros => 0,
        Content::Numbers(m) => {
            let mut line = Vec::with_capacity(width);
            for r in 0..m.nrows() {
                line.clear();
                m.row(r).iter().for_each(|x| format.write(*x, &mut line));
                line.resize(width, 0);
                out.write_all(&line).map_err(failed)?;
            }
            m.nrows()
        }
        Content::Source { name, scale } => {
            let source = find(name)?;
            let tensor = source.header().tensor(name)?;
            let (there, narrow) = grid(tensor.shape());
            let narrow = narrow * format.bytes();
            let mut line = Vec::with_capacity(width);
            source.rows(name, |_, bytes| {
                if narrow == width && scale.is_none() {
                    return out.write_all(bytes).map_err(failed);
                }
                for row in bytes.chunks_exact(narrow.max(1)) {
                    line.clear();
                    match scale {
                        None => line.extend_from_slice(row),
                        Some(s) => row.chunks_exact(format.bytes()).for_each(|b| {
                            format.write(format.read(b).unwrap_or(f64::NAN) * s, &mut line);
                        }),
                    }
                    line.resize(width, 0);
                    out.write_all(&line).map_err(failed)?;
                }
                Ok(())
            })?;
            there
        }
    };
    let zeros = vec![0; BUFFER.min((rows - given) * width)];
    let mut left = (rows - given) * width;
    while left > 0 {
        let n = left.min(zeros.len());
        out.write_all(&zeros[..n]).map_err(failed)?;
        left -= n;
    }
    Ok(())
}
