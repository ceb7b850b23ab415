//! A spliced file read back: what must hold, tensor by tensor.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::error::{At, Error, Result};
use crate::files::{sha256, sha256_of};
use crate::gguf::GgufFile;
use crate::host::InsertedLayer;
use crate::tensors::quoted;

use super::super::{Checked, Manifest, Progress, contradiction, origins};
use super::layout::{Entry, Layout, entries, metadata};
use super::{BUFFER, SOURCE_HEAD_FILE, folder, host, is_tokenizer};

/// Verifies a spliced file from itself and the directory beside it. In order:
///
/// 1. every site's certificate, derived anew; the manifest in itself; the carriers removed;
/// 2. the metadata is the source's with exactly the changes of a splice;
/// 3. exactly the source's tensors and those of the inserted layers, in their formats and shapes;
/// 4. the inserted layers, bit for bit what the certified blocks lower to; all padding is 0;
/// 5. the file's SHA-256, which speaks for everything else.
pub fn check(output: &Path, progress: Progress<'_>) -> Result<Checked> {
    let folder = folder(output);
    let manifest = Manifest::read(&folder)?;
    let sites = manifest.sites(&folder)?;
    // From here on whatever is wrong contradicts the manifest.
    let verdict = || -> Result<usize> {
        let wrong = |text: String| Err(Error::disagreement(text));
        let bytes = std::fs::read(folder.join(SOURCE_HEAD_FILE))
            .map_err(|e| Error::io(format!("cannot read {SOURCE_HEAD_FILE}"), e))?;
        if sha256(&bytes) != manifest.source_sha256 {
            return wrong(format!("{SOURCE_HEAD_FILE} is not the one of the manifest"));
        }
        let source = GgufFile::from_head(SOURCE_HEAD_FILE, bytes)?;
        let from = Layout::parse(&source)?;
        if manifest.host != host(&from, &source) || manifest.architecture != "llama" {
            return wrong("the manifest's host is not the source".into());
        }
        let layers: Vec<(usize, &[InsertedLayer])> = sites.iter().map(|s| (s.layer, &s.layers[..])).collect();
        let counts: Vec<(usize, usize)> = layers.iter().map(|s| (s.0, s.1.len())).collect();
        let to = from.spliced(&manifest.carriers, counts.iter().map(|c| c.1).sum());
        let file = GgufFile::open(output)?;
        same_metadata(&file, &source, &from, &to, &origins(from.layers, &counts))?;
        let entries = entries(&source, &from, &to, &layers)?;
        for (expected, found) in entries.iter().zip(file.tensors()) {
            if expected.info != *found {
                let (f, e) = (found, &expected.info);
                return wrong(format!(
                    "tensor {} ({}, {:?}) where a splice leaves {} ({}, {:?})",
                    quoted(&f.name),
                    f.format.name,
                    f.dims,
                    quoted(&e.name),
                    e.format.name,
                    e.dims
                ));
            }
        }
        if entries.len() != file.tensors().len() {
            return wrong(format!("{} tensors where a splice leaves {}", file.tensors().len(), entries.len()));
        }
        let total = entries.iter().map(|e| e.info.bytes() as u64).sum();
        if total != manifest.cost.bytes.after {
            return wrong("the weights have another size than the manifest says".into());
        }
        let mut reader = File::open(output).map_err(|e| Error::io("cannot open", e))?;
        let mut done = 0;
        for entry in &entries {
            let start = file.span(&entry.info.name).map_or(0, |s| s.start);
            tensor(entry, &mut reader, start).at(|| entry.info.name.clone())?;
            done += entry.info.bytes() as u64;
            progress("bytes compared", done, total);
        }
        let hash = hash(&mut reader, progress)?;
        let name = output.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        // The file may have another name by now, not another content.
        match manifest.files.values().collect::<Vec<_>>()[..] {
            [known] if *known == hash => Ok(entries.len()),
            _ => wrong(format!("{name} is not the file that was written (SHA-256 differs)")),
        }
    };
    let tensors = verdict().map_err(|e| contradiction(e, output))?;
    Ok(Checked { manifest, sites, tensors })
}

fn same_metadata(file: &GgufFile, source: &GgufFile, from: &Layout, to: &Layout, origins: &[usize]) -> Result<()> {
    let expected = metadata(source, from, to, origins)?;
    let found: Vec<_> = file.metadata().filter(|(key, _)| !is_tokenizer(key)).collect();
    if let Some(((_, _), (key, _))) = found.iter().zip(&expected).find(|(f, e)| f.0 != e.0 || f.1 != e.1) {
        return Err(Error::disagreement(format!("metadata {} is not what a splice leaves", quoted(key))));
    }
    if found.len() != expected.len() {
        return Err(Error::disagreement(format!("{} metadata, a splice leaves {}", found.len(), expected.len())));
    }
    Ok(())
}

/// Every byte of a tensor that is known without the source.
fn tensor(entry: &Entry<'_>, reader: &mut File, start: u64) -> Result<()> {
    let failed = |e| Error::io("cannot read", e);
    let (rows, width) = (entry.info.rows(), entry.info.row_bytes());
    if (0..rows).all(|r| entry.copied(r) == width) {
        return Ok(());
    }
    reader.seek(SeekFrom::Start(start)).map_err(failed)?;
    let together = (BUFFER / width.max(1)).max(1);
    let (mut buffer, mut rest) = (vec![0; together.min(rows) * width], Vec::new());
    for first in (0..rows).step_by(together) {
        let bytes = &mut buffer[..together.min(rows - first) * width];
        reader.read_exact(bytes).map_err(failed)?;
        for (k, row) in bytes.chunks_exact(width).enumerate() {
            entry.rest(first + k, &mut rest);
            let known = &row[entry.copied(first + k)..];
            if known != rest {
                let byte = known.iter().zip(&rest).position(|(a, b)| a != b).unwrap_or(0);
                return Err(Error::disagreement(format!(
                    "row {} is not what a splice leaves, from byte {} on",
                    first + k,
                    entry.copied(first + k) + byte
                )));
            }
        }
    }
    Ok(())
}

fn hash(reader: &mut File, progress: Progress<'_>) -> Result<String> {
    let failed = |e| Error::io("cannot read", e);
    let total = reader.metadata().map_err(failed)?.len();
    reader.seek(SeekFrom::Start(0)).map_err(failed)?;
    sha256_of(reader, |done| progress("bytes hashed", done, total)).map_err(failed)
}
