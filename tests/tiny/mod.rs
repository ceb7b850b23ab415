//! A writer of GGUF files that knows nothing of the crate's, and takes anything.

#![allow(dead_code)]

/// A metadata value.
#[derive(Clone, Debug)]
pub enum Meta {
    U32(u32),
    F32(f32),
    Text(String),
    U32s(Vec<u32>),
    Texts(Vec<String>),
    /// a kind's number, and its bytes
    Raw(u32, Vec<u8>),
}

/// What a file is to hold.
#[derive(Clone, Debug)]
pub struct Tiny {
    pub version: u32,
    pub alignment: Option<u32>,
    pub metadata: Vec<(String, Meta)>,
    /// name, dimensions (fastest first), format, bytes
    pub tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
    /// instead of the right ones
    pub offsets: Option<Vec<u64>>,
}

impl Default for Tiny {
    fn default() -> Self {
        Tiny { version: 3, alignment: None, metadata: Vec::new(), tensors: Vec::new(), offsets: None }
    }
}

pub fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn text(out: &mut Vec<u8>, t: &str) {
    out.extend((t.len() as u64).to_le_bytes());
    out.extend(t.as_bytes());
}

impl Tiny {
    pub fn bytes(&self) -> Vec<u8> {
        let mut metadata = self.metadata.clone();
        if let Some(a) = self.alignment {
            metadata.push(("general.alignment".into(), Meta::U32(a)));
        }
        let alignment = self.alignment.unwrap_or(32) as usize;
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in &metadata {
            text(&mut out, key);
            match value {
                Meta::U32(x) => out.extend([4u32.to_le_bytes(), x.to_le_bytes()].concat()),
                Meta::F32(x) => out.extend([6u32.to_le_bytes(), x.to_le_bytes()].concat()),
                Meta::Text(t) => {
                    out.extend(8u32.to_le_bytes());
                    text(&mut out, t);
                }
                Meta::U32s(v) => {
                    out.extend([9u32.to_le_bytes(), 4u32.to_le_bytes()].concat());
                    out.extend((v.len() as u64).to_le_bytes());
                    v.iter().for_each(|x| out.extend(x.to_le_bytes()));
                }
                Meta::Texts(v) => {
                    out.extend([9u32.to_le_bytes(), 8u32.to_le_bytes()].concat());
                    out.extend((v.len() as u64).to_le_bytes());
                    v.iter().for_each(|t| text(&mut out, t));
                }
                Meta::Raw(kind, bytes) => {
                    out.extend(kind.to_le_bytes());
                    out.extend(bytes);
                }
            }
        }
        let mut offset = 0;
        for (k, (name, dims, format, data)) in self.tensors.iter().enumerate() {
            text(&mut out, name);
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(format.to_le_bytes());
            let given = self.offsets.as_ref().map_or(offset as u64, |o| o[k]);
            out.extend(given.to_le_bytes());
            offset += data.len().next_multiple_of(alignment);
        }
        out.resize(out.len().next_multiple_of(alignment), 0);
        for (_, _, _, data) in &self.tensors {
            out.extend(data);
            let start = out.len().next_multiple_of(alignment);
            out.resize(start, 0);
        }
        out
    }
}

/// A file read back by a parser that shares nothing with the crate's: metadata as (kind, bytes), tensors as they lie there.
#[derive(Debug, PartialEq)]
pub struct Read {
    pub metadata: Vec<(String, u32, Vec<u8>)>,
    /// name, dimensions, format, data
    pub tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

impl Read {
    pub fn tensor(&self, name: &str) -> &(String, Vec<u64>, u32, Vec<u8>) {
        self.tensors.iter().find(|t| t.0 == name).unwrap_or_else(|| panic!("no {name}"))
    }

    pub fn f32s(&self, name: &str) -> Vec<f32> {
        let t = self.tensor(name);
        assert_eq!(t.2, 0, "{name}");
        t.3.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn u32(&self, key: &str) -> Option<u32> {
        let m = self.metadata.iter().find(|m| m.0 == key)?;
        assert_eq!(m.1, 4, "{key}");
        Some(u32::from_le_bytes(m.2.clone().try_into().unwrap()))
    }
}

/// Values and bytes of a block.
pub fn block(format: u32) -> (usize, usize) {
    match format {
        0 => (1, 4),
        1 => (1, 2),
        2 => (32, 18),
        3 => (32, 20),
        8 => (32, 34),
        12 => (256, 144),
        14 => (256, 210),
        _ => panic!("format {format}"),
    }
}

pub fn read(bytes: &[u8]) -> Read {
    let mut at = 0;
    let mut take = |n: usize| {
        at += n;
        &bytes[at - n..at]
    };
    let number = |b: &[u8]| b.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
    assert_eq!(take(4), b"GGUF");
    take(4);
    let (tensors, values) = (number(take(8)), number(take(8)));
    let mut read = Read { metadata: Vec::new(), tensors: Vec::new() };
    let sizes = [1usize, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];
    for _ in 0..values {
        let n = number(take(8)) as usize;
        let key = String::from_utf8(take(n).to_vec()).unwrap();
        let kind = number(take(4)) as u32;
        let mut value = Vec::new();
        if kind == 8 {
            let n = number(take(8)) as usize;
            value.extend(take(n));
        } else if kind == 9 {
            let head = take(12).to_vec();
            let (of, count) = (number(&head[..4]) as usize, number(&head[4..]));
            value.extend(&head);
            for _ in 0..count {
                let n = if of == 8 { number(take(8)) as usize } else { sizes[of] };
                value.extend(take(n));
                value.push(b'|');
            }
        } else {
            value.extend(take(sizes[kind as usize]));
        }
        read.metadata.push((key, kind, value));
    }
    let mut infos = Vec::new();
    for _ in 0..tensors {
        let n = number(take(8)) as usize;
        let name = String::from_utf8(take(n).to_vec()).unwrap();
        let count = number(take(4));
        let dims: Vec<u64> = (0..count).map(|_| number(take(8))).collect();
        let (format, offset) = (number(take(4)) as u32, number(take(8)) as usize);
        infos.push((name, dims, format, offset));
    }
    let start = at.next_multiple_of(32);
    let mut expected = 0;
    for (name, dims, format, offset) in infos {
        // llama.cpp insists on one tensor after the other.
        assert_eq!(offset, expected, "{name}");
        let (values, size) = block(format);
        let length = dims.iter().product::<u64>() as usize / values * size;
        expected = (offset + length).next_multiple_of(32);
        read.tensors.push((name, dims, format, bytes[start + offset..start + offset + length].to_vec()));
    }
    assert_eq!(bytes.len(), start + expected);
    read
}
