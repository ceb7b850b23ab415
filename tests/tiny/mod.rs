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
