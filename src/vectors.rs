//! Plain vectors for probes and steering directions: safetensors, NumPy's `.npy`, and GGUF control vectors.
//!
//! A file holds named tensors of one or two dimensions; a vector is a tensor of one dimension or a row of one of two.
//!
//! | file | names | shapes |
//! |---|---|---|
//! | safetensors | the file's | \[d\] or \[rows, d\] |
//! | `.npy` | the file's name without `.npy` | \[d\] or \[rows, d\] |
//! | GGUF control vector | `direction.N` | \[d\]; N is the decoder layer, from 0, after which llama.cpp adds it |
//!
//! Control vectors are written by repeng (`repeng/extract.py`, `export_gguf`) and llama.cpp's `cvector-generator`. llama.cpp
//! keeps `direction.N` at the offset of layer N − 1 (`common/common.cpp`, `common_control_vector_load_one`) and reads it from
//! there for layer N (`src/llama-adapter.cpp`): it is added to the output of the layer with index N, so a stream's first
//! layer cannot be named. Other GGUF files are read as well, if their tensors are plain floats or blocks that [`crate::gguf`] reads.

use std::path::Path;

use crate::error::{Error, Result};
use crate::gguf::GgufFile;
use crate::tensors::{Bytes, TensorFile, quoted, some_of, valid_range};

/// An open file of vectors.
#[derive(Debug)]
pub struct VectorFile {
    holds: Holds,
}

#[derive(Debug)]
enum Holds {
    Tensors(TensorFile),
    Gguf(GgufFile),
}

/// What a file says of one of its tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// its name
    pub name: String,
    /// its dimensions, slowest first
    pub shape: Vec<usize>,
    /// the name of its number format
    pub format: String,
    /// the decoder layer, from 0, after which it is added, if the name says so (`direction.N` in a GGUF control vector)
    pub layer: Option<usize>,
}

impl VectorFile {
    /// Maps a file; its first bytes say which kind it is. Nothing is read of a tensor until it is asked for.
    ///
    /// # Errors
    /// If the file cannot be opened, or is not one of those kinds, or is not complete.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = Bytes::map(path, "name a .safetensors, .npy or .gguf file")?;
        Self::parse(path.display().to_string(), bytes)
    }

    /// A file that is in memory already; `place` names it in messages.
    ///
    /// # Errors
    /// As [`VectorFile::open`].
    pub fn from_bytes(place: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Result<Self> {
        Self::parse(place.into(), Bytes::Owned(bytes.into()))
    }

    fn parse(place: String, bytes: Bytes) -> Result<Self> {
        let holds = if bytes.as_slice().starts_with(b"GGUF") {
            Holds::Gguf(GgufFile::parse(place, bytes)?)
        } else {
            Holds::Tensors(TensorFile::any(place, bytes)?)
        };
        Ok(VectorFile { holds })
    }

    /// What the file is called in messages: its path.
    pub fn place(&self) -> &str {
        match &self.holds {
            Holds::Tensors(file) => file.place(),
            Holds::Gguf(file) => file.place(),
        }
    }

    /// All tensors, in the file's order, whether their values can be read or not.
    pub fn list(&self) -> Vec<Listed> {
        match &self.holds {
            Holds::Tensors(file) => {
                let listed = |name: String| Listed {
                    shape: file.shape(&name).unwrap_or_default().to_vec(),
                    format: file.format_name(&name).unwrap_or_default(),
                    layer: None,
                    name,
                };
                file.names().into_iter().map(listed).collect()
            }
            Holds::Gguf(file) => {
                let listed = |t: &crate::gguf::TensorInfo| Listed {
                    name: t.name.clone(),
                    shape: t.dims.iter().rev().copied().collect(),
                    format: t.format.name.to_ascii_lowercase(),
                    layer: t.name.strip_prefix("direction.").and_then(|n| n.parse().ok()),
                };
                file.tensors().iter().map(listed).collect()
            }
        }
    }

    /// One vector. `name` may be left out where the file holds one tensor only, `row` where the tensor has one row only.
    ///
    /// # Errors
    /// If there is no such tensor or row, more than one that could be meant, or a value is not finite.
    ///
    /// ```
    /// # use safetensors::tensor::{Dtype, TensorView, serialize};
    /// # let bytes: Vec<u8> = [1.0f32, -2.5, 0.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    /// # let view = TensorView::new(Dtype::F32, vec![2, 2], &bytes).unwrap();
    /// # let bytes = serialize([("refusal", view)], None).unwrap();
    /// use neurograft::vectors::VectorFile;
    ///
    /// let file = VectorFile::from_bytes("probes.safetensors", bytes)?;
    /// assert_eq!(file.vector(Some("refusal"), Some(1))?, [0.0, 4.0]);
    /// assert_eq!(file.vector(None, Some(0))?, [1.0, -2.5]);
    /// assert!(file.vector(None, None).is_err()); // two rows: which one?
    /// # Ok::<(), neurograft::error::Error>(())
    /// ```
    pub fn vector(&self, name: Option<&str>, row: Option<usize>) -> Result<Vec<f64>> {
        let listed = self.one(name)?;
        let (rows, width) = self.grid(&listed)?;
        let row = match row {
            Some(row) if row < rows => row,
            Some(row) => {
                return Err(self
                    .error(format!("tensor {} has no row {row}", quoted(&listed.name)))
                    .help(valid_range("rows", rows)));
            }
            None if rows == 1 => 0,
            None => {
                return Err(self
                    .error(format!("tensor {} has {rows} rows: which one?", quoted(&listed.name)))
                    .help("name a row, counted from 0"));
            }
        };
        let values = match &self.holds {
            Holds::Gguf(file) => file.tensor(&listed.name)?.rows(row..row + 1)?,
            Holds::Tensors(file) => {
                let tensor = file.tensor(&listed.name)?;
                (row * width..(row + 1) * width).map(|k| tensor.get(k)).collect::<Result<_>>()?
            }
        };
        match values.iter().position(|x| !x.is_finite()) {
            Some(k) => Err(self.error(format!("tensor {}[{row}, {k}] is {}", quoted(&listed.name), values[k]))),
            None => Ok(values),
        }
    }

    /// The tensor of a name, or the only one.
    fn one(&self, name: Option<&str>) -> Result<Listed> {
        let mut all = self.list();
        let Some(name) = name else {
            return match all.len() {
                0 => Err(self.error("the file holds no tensors".into())),
                1 => Ok(all.remove(0)),
                n => Err(self.error(format!("the file holds {n} tensors: which one?")).help(names(&all))),
            };
        };
        match all.iter().position(|t| t.name == name) {
            Some(k) => Ok(all.swap_remove(k)),
            None => {
                let near = crate::error::nearest(name, all.iter().map(|t| t.name.as_str()).filter(|n| n.len() < 200));
                let help = near.map_or_else(|| names(&all), |n| format!("did you mean {}?", quoted(n)));
                Err(self.error(format!("no tensor {}", quoted(name))).help(help))
            }
        }
    }

    /// Rows, and values of a row. Axes of length 1 in front count for nothing.
    fn grid(&self, listed: &Listed) -> Result<(usize, usize)> {
        match listed.shape.iter().skip_while(|n| **n == 1).copied().collect::<Vec<_>>()[..] {
            [] => Ok((1, 1)),
            [width] => Ok((1, width)),
            [rows, width] => Ok((rows, width)),
            _ => {
                let what = format!("tensor {} has {} dimensions", quoted(&listed.name), listed.shape.len());
                Err(self.error(what).help("a vector is a tensor of one dimension, or a row of one of two"))
            }
        }
    }

    fn error(&self, what: String) -> Error {
        Error::input(what).at(self.place())
    }
}

/// The first few names, for a message.
fn names(all: &[Listed]) -> String {
    format!("the file holds {}", some_of(&all.iter().map(|t| t.name.clone()).collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{GgmlType, TensorInfo, Value, Writer};

    /// A control vector as repeng writes it.
    fn control(values: &[f32]) -> Vec<u8> {
        let tensor = |n: usize| TensorInfo { name: format!("direction.{n}"), dims: vec![2], format: GgmlType::F32 };
        let metadata = [("general.architecture".into(), Value::text("controlvector"))];
        let mut w = Writer::new(Vec::new(), 3, &metadata, vec![tensor(1), tensor(12)]).unwrap();
        for half in values.chunks(2) {
            w.append(&half.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>()).unwrap();
        }
        w.finish().0
    }

    #[test]
    fn control_vectors_name_their_layers() {
        let file = VectorFile::from_bytes("c.gguf", control(&[1.0, 2.0, 3.0, f32::NAN])).unwrap();
        let listed = file.list();
        assert_eq!(listed.iter().map(|t| t.layer).collect::<Vec<_>>(), [Some(1), Some(12)]);
        assert_eq!((listed[1].shape.as_slice(), listed[1].format.as_str()), (&[2][..], "f32"));
        assert_eq!(file.vector(Some("direction.1"), None).unwrap(), [1.0, 2.0]);
        let text = file.vector(Some("direction.12"), None).unwrap_err().to_string();
        assert!(text.contains("c.gguf: tensor 'direction.12'[0, 1] is NaN"), "{text}");
    }

    #[test]
    fn what_could_be_meant_must_be_one() {
        let file = VectorFile::from_bytes("c.gguf", control(&[0.0; 4])).unwrap();
        let refusal = |name, row| file.vector(name, row).unwrap_err().to_string();
        assert!(
            refusal(None, None).contains("2 tensors: which one?\n  help: the file holds 'direction.1', 'direction.12'")
        );
        assert!(refusal(Some("direction.2"), None).contains("did you mean 'direction.1'?"));
        assert!(refusal(Some("direction.1"), Some(1)).contains("no row 1"));
    }
}
