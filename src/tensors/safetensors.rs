//! The header of a safetensors file: <https://github.com/huggingface/safetensors>, section Format.

use std::collections::HashMap;

use safetensors::tensor::{Metadata, TensorInfo};

use super::{Entry, quoted, row_major};
use crate::error::{Error, Result};
use crate::format::Format;

/// Bytes before the header: its length as a little-endian u64.
const LENGTH_BYTES: usize = 8;

/// The largest header that is parsed, the format's own limit.
const MAX_HEADER_BYTES: usize = 100_000_000;

/// What a file begins with that holds tensors in this order and one entry of metadata: length, header, and spaces up to a multiple
/// of 8. (The library keeps metadata in a hash map, whose order would differ from run to run.)
pub(crate) fn head(
    tensors: impl IntoIterator<Item = (String, Format, Vec<usize>)>,
    about: [&str; 2],
) -> Result<Vec<u8>> {
    let mut end = 0;
    let info = |(name, format, shape): (String, Format, Vec<usize>)| {
        let start = end;
        end += shape.iter().product::<usize>() * format.bytes();
        (name, TensorInfo { dtype: format.dtype(), shape, data_offsets: (start, end) })
    };
    let infos = tensors.into_iter().map(info).collect();
    let about = HashMap::from([about.map(String::from).into()]);
    let malformed = |e: &dyn std::fmt::Display| Error::input(format!("safetensors header: {e}"));
    let metadata = Metadata::new(Some(about), infos).map_err(|e| malformed(&e))?;
    let mut text = serde_json::to_vec(&metadata).map_err(|e| malformed(&e))?;
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut text);
    Ok(bytes)
}

/// The tensors, in the order of their data.
pub(super) fn entries(bytes: &[u8]) -> Result<Vec<Entry>> {
    let (data_start, metadata) = header(bytes)?;
    let entry = |name: String| {
        let info = metadata.info(&name)?;
        let (start, end) = info.data_offsets;
        let format = Format::of(info.dtype).ok_or_else(|| format!("{:?}", info.dtype));
        let strides = row_major(&info.shape)?;
        Some(Entry { name, format, shape: info.shape.clone(), strides, span: data_start + start..data_start + end })
    };
    // `None`: an empty tensor whose other dimensions overflow.
    let overflow = || Error::input("malformed header: a tensor's dimensions overflow");
    metadata.offset_keys().into_iter().map(|name| entry(name).ok_or_else(overflow)).collect()
}

/// The first line of a file that is text. The length of a header, in the first bytes of a safetensors file, has zeros.
fn text(bytes: &[u8]) -> Option<&str> {
    const SEEN: usize = 256;
    let start = &bytes[..bytes.len().min(SEEN)];
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        // A character may be cut off at the end.
        Err(e) if e.error_len().is_none() => std::str::from_utf8(&start[..e.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    let plain = text.chars().all(|c| !c.is_control() || c.is_whitespace());
    text.lines().map(str::trim).find(|l| !l.is_empty()).filter(|_| plain)
}

/// Where the data starts, and what the header says of it.
fn header(bytes: &[u8]) -> Result<(usize, Metadata)> {
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(Error::input("a Git LFS pointer, not the file it stands for").help("run 'git lfs pull' first"));
    }
    if let Some(line) = text(bytes) {
        return Err(Error::input(format!("this is text, not a file of tensors: it begins with {}", quoted(line)))
            .help("name a .safetensors, .npy, .npz or .pt file"));
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
