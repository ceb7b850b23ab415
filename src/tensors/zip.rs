//! The central directory of a ZIP archive whose entries are stored as they are: `.npz` files and PyTorch's `.pt`.
//!
//! Source: PKWARE's APPNOTE.TXT, sections 4.3 (layout) and 4.5.3 (Zip64). An archive ends with a record that says where its
//! central directory lies; each entry of the directory says where its data lies. Nothing is decompressed: entries are read
//! where they lie in the mapped file, so that rows can be read without reading the rest. No allocation is sized by a count
//! that the archive claims.

use std::ops::Range;

use super::quoted;
use crate::error::{Error, Result};

/// Every archive begins with the record of its first entry.
pub(super) const MAGIC: &[u8] = b"PK\x03\x04";

const END: &[u8] = b"PK\x05\x06";
const END_BYTES: usize = 22;
const END64: &[u8] = b"PK\x06\x06";
const LOCATOR64: &[u8] = b"PK\x06\x07";
const LOCATOR64_BYTES: usize = 20;
const CENTRAL: &[u8] = b"PK\x01\x02";
const CENTRAL_BYTES: usize = 46;
const LOCAL_BYTES: usize = 30;
/// The extra field that holds 64-bit sizes.
const ZIP64: u16 = 1;

/// An entry whose bytes lie in the archive as they are.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) name: String,
    pub(super) span: Range<usize>,
}

/// The files of an archive, in the order of its directory.
pub(super) fn entries(bytes: &[u8]) -> Result<Vec<Stored>> {
    let (start, count) = directory(bytes).ok_or_else(|| {
        Error::input("truncated or damaged: the archive has no central directory")
            .help("download or copy the file again")
    })?;
    let mut found = Vec::new();
    let mut at = start;
    // Each turn consumes bytes of the file, whatever `count` claims.
    for _ in 0..count {
        let (entry, next) = entry(bytes, at)?;
        if !entry.name.ends_with('/') {
            found.push(entry);
        }
        at = next;
    }
    Ok(found)
}

/// Where the directory starts, and how many entries it claims.
fn directory(bytes: &[u8]) -> Option<(usize, u64)> {
    // The last record is followed by a comment of at most 65,535 bytes.
    let earliest = bytes.len().saturating_sub(END_BYTES + usize::from(u16::MAX));
    let latest = bytes.len().checked_sub(END_BYTES)?;
    let end = (earliest..=latest).rev().find(|&k| bytes[k..].starts_with(END))?;
    let (count, start) = (u16_at(bytes, end + 10)?, u32_at(bytes, end + 16)?);
    if count < u16::MAX && start < u32::MAX {
        return Some((start.try_into().ok()?, count.into()));
    }
    let locator = end.checked_sub(LOCATOR64_BYTES).filter(|&k| bytes[k..].starts_with(LOCATOR64));
    let Some(locator) = locator else { return Some((start.try_into().ok()?, count.into())) };
    let end64 = usize::try_from(u64_at(bytes, locator + 8)?).ok()?;
    if !bytes.get(end64..)?.starts_with(END64) {
        return None;
    }
    Some((usize::try_from(u64_at(bytes, end64 + 48)?).ok()?, u64_at(bytes, end64 + 32)?))
}

/// The directory's entry at a position, and where the next one stands.
fn entry(bytes: &[u8], at: usize) -> Result<(Stored, usize)> {
    let damaged = || Error::input(format!("truncated or damaged: no entry of the archive's directory at byte {at}"));
    let head = bytes.get(at..).filter(|b| b.len() >= CENTRAL_BYTES && b.starts_with(CENTRAL)).ok_or_else(damaged)?;
    let (name_bytes, extra_bytes, comment_bytes) = read_lengths(head).ok_or_else(damaged)?;
    let name = head.get(CENTRAL_BYTES..CENTRAL_BYTES + name_bytes).ok_or_else(damaged)?;
    let name = std::str::from_utf8(name).map_err(|_| Error::input("the archive holds a name that is not UTF-8"))?;
    let extra_at = CENTRAL_BYTES + name_bytes;
    let extra = head.get(extra_at..extra_at + extra_bytes).ok_or_else(damaged)?;
    let next = at + extra_at + extra_bytes + comment_bytes;

    let flags = u16_at(head, 8).ok_or_else(damaged)?;
    let method = u16_at(head, 10).ok_or_else(damaged)?;
    if flags & 1 != 0 || method != 0 {
        let how = if flags & 1 != 0 { "encrypted" } else { "compressed" };
        return Err(Error::unsupported(format!(
            "the archive's {} is {how}; it could not be read in place",
            quoted(name)
        ))
        .help("save it again without compression: numpy.savez (not savez_compressed), torch.save"));
    }
    let sizes = sizes(head, extra).ok_or_else(damaged)?;
    let outside =
        || Error::input(format!("truncated or damaged: the archive's {} lies outside of the file", quoted(name)));
    let span = local_data(bytes, sizes.offset, sizes.size).ok_or_else(outside)?;
    Ok((Stored { name: name.to_string(), span }, next))
}

/// The lengths of an entry's name, extra fields and comment.
fn read_lengths(head: &[u8]) -> Option<(usize, usize, usize)> {
    Some((u16_at(head, 28)?.into(), u16_at(head, 30)?.into(), u16_at(head, 32)?.into()))
}

struct Sizes {
    size: u64,
    offset: u64,
}

/// An entry's stored size and the offset of its record; where 32 bits are too few, they stand in the Zip64 field, which
/// holds those that are all ones, in this order: size, stored size, offset.
fn sizes(head: &[u8], extra: &[u8]) -> Option<Sizes> {
    let (stored, size, offset) = (u32_at(head, 20)?, u32_at(head, 24)?, u32_at(head, 42)?);
    let mut wide = field(extra, ZIP64).unwrap_or_default();
    let mut next = |narrow: u32| -> Option<u64> {
        if narrow != u32::MAX {
            return Some(narrow.into());
        }
        let value = u64_at(wide, 0)?;
        wide = &wide[8..];
        Some(value)
    };
    let (size, stored, offset) = (next(size)?, next(stored)?, next(offset)?);
    // What is not compressed has one size.
    (size == stored).then_some(Sizes { size, offset })
}

/// The extra field of a kind.
fn field(mut extra: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16_at(extra, 2)?);
        let data = extra.get(4..4 + length)?;
        if u16_at(extra, 0)? == kind {
            return Some(data);
        }
        extra = &extra[4 + length..];
    }
}

/// Where an entry's data lies: behind its own record, whose name and extra fields have lengths of their own.
fn local_data(bytes: &[u8], offset: u64, size: u64) -> Option<Range<usize>> {
    let record = bytes.get(usize::try_from(offset).ok()?..)?;
    if !record.starts_with(MAGIC) {
        return None;
    }
    let before = LOCAL_BYTES + usize::from(u16_at(record, 26)?) + usize::from(u16_at(record, 28)?);
    let start = usize::try_from(offset).ok()?.checked_add(before)?;
    let end = start.checked_add(usize::try_from(size).ok()?)?;
    (end <= bytes.len()).then_some(start..end)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}
