//! MLP weight blocks, plain and gated: matrices in a number format, safetensors files, forward evaluation.
//!
//! Axis order is PyTorch's: a projection is [out, in]. With d the hidden size and h the number of hidden units:
//! `gate_proj.weight` \[h, d\] (`up_proj.weight` \[h, d\] when gated), `down_proj.weight` \[d, h\], biases \[h\], \[h\],
//! \[d\].
//!
//! plain: y = down·σ(gate·x + gate_bias) + down_bias
//! gated: y = down·(σ(gate·x + gate_bias) ⊙ (up·x + up_bias)) + down_bias

use std::io::Write;

use nalgebra::{DMatrix, DVector};
use rayon::prelude::*;

use crate::activation::Activation;
use crate::error::{At, Error, Result};
use crate::files::Hashing;
use crate::format::Format;
use crate::stack::Form;
use crate::tensors::TensorFile;
use crate::tensors::safetensors::head;

/// Names of the tensors of a block file.
pub const TENSORS: [&str; 6] =
    ["gate_proj.weight", "gate_proj.bias", "up_proj.weight", "up_proj.bias", "down_proj.weight", "down_proj.bias"];

/// The numbers of a tensor.
enum Numbers<'a> {
    Matrix(&'a DMatrix<f64>),
    Vector(&'a DVector<f64>),
}

/// Writes a matrix row by row.
fn write_rows(m: &DMatrix<f64>, format: Format, out: &mut impl Write) -> std::io::Result<()> {
    /// Bytes that are made before they are written, in a buffer that stays in the cache.
    const AT_ONCE: usize = 1 << 23;
    /// Rows of a task: what it reads of each column lies together in memory.
    const ROWS: usize = 32;
    /// Columns that are turned into rows at a time: what is written of each row lies together as well.
    const COLUMNS: usize = 16;
    let (size, row) = (format.bytes(), m.ncols() * format.bytes());
    if row == 0 {
        return Ok(());
    }
    let band = (AT_ONCE / row).max(1).next_multiple_of(ROWS).min(m.nrows());
    let mut bytes = vec![0; band * row];
    for start in (0..m.nrows()).step_by(band.max(1)) {
        let bytes = &mut bytes[..band.min(m.nrows() - start) * row];
        bytes.par_chunks_mut(ROWS * row).enumerate().for_each(|(k, lines)| {
            let (first, count) = (start + k * ROWS, lines.len() / row);
            let mut tile = [0.0; ROWS * COLUMNS];
            for from in (0..m.ncols()).step_by(COLUMNS) {
                let columns = from..m.ncols().min(from + COLUMNS);
                for (c, column) in columns.clone().enumerate() {
                    let numbers = &m.as_slice()[column * m.nrows() + first..][..count];
                    numbers.iter().enumerate().for_each(|(i, x)| tile[i * COLUMNS + c] = *x);
                }
                let places = columns.start * size..columns.end * size;
                for (line, numbers) in lines.chunks_exact_mut(row).zip(tile.chunks_exact(COLUMNS)) {
                    format.put(&numbers[..columns.len()], &mut line[places.clone()]);
                }
            }
        });
        out.write_all(bytes)?;
    }
    Ok(())
}

/// The weights of one MLP, every number representable in its format.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// σ
    pub source: Activation,
    /// plain or gated
    pub form: Form,
    /// the format that the matrices' numbers are of
    pub format: Format,
    /// the format that the biases' numbers are of: wider than `format` where a host sums them up from several weights
    pub bias_format: Format,
    /// [h, d]
    pub gate: DMatrix<f64>,
    /// \[h\]; `None` is a projection without bias
    pub gate_bias: Option<DVector<f64>>,
    /// [h, d]; `Some` when gated
    pub up: Option<DMatrix<f64>>,
    /// \[h\]
    pub up_bias: Option<DVector<f64>>,
    /// [d, h]
    pub down: DMatrix<f64>,
    /// \[d\]
    pub down_bias: Option<DVector<f64>>,
}

impl Block {
    /// d, the width of the residual stream.
    pub fn hidden_size(&self) -> usize {
        self.down.nrows()
    }

    /// h, the number of hidden units.
    pub fn intermediate_size(&self) -> usize {
        self.gate.nrows()
    }

    /// Number of weights and biases.
    pub fn parameters(&self) -> usize {
        let vectors = [&self.gate_bias, &self.up_bias, &self.down_bias];
        self.gate.len()
            + self.up.as_ref().map_or(0, DMatrix::len)
            + self.down.len()
            + vectors.into_iter().flatten().map(|v| v.len()).sum::<usize>()
    }

    /// The MLP's output, in f64, for a batch of residuals: [d, n] → [d, n], one token a column. This is what the block
    /// adds to the stream.
    ///
    /// # Panics
    /// If x does not have d rows.
    pub fn forward(&self, x: &DMatrix<f64>) -> DMatrix<f64> {
        let project = |weight: &DMatrix<f64>, bias: &Option<DVector<f64>>| {
            let mut y = weight * x;
            if let Some(b) = bias {
                y.column_iter_mut().for_each(|mut c| c += b);
            }
            y
        };
        let mut hidden = project(&self.gate, &self.gate_bias);
        hidden.apply(|g| *g = self.source.value(*g));
        if let Some(up) = &self.up {
            hidden.component_mul_assign(&project(up, &self.up_bias));
        }
        let mut y = &self.down * hidden;
        if let Some(b) = &self.down_bias {
            y.column_iter_mut().for_each(|mut c| c += b);
        }
        y
    }

    /// Writes the file. The tensors' shapes and what the block is stand in its metadata.
    ///
    /// Errors: a shape that a file cannot hold, or what `out` fails with, which `failed` makes an error of.
    pub fn write(&self, out: &mut impl Write, failed: impl Fn(std::io::Error) -> Error) -> Result<()> {
        let mut tensors = Vec::new();
        let matrices = [Some(&self.gate), self.up.as_ref(), Some(&self.down)];
        let vectors = [&self.gate_bias, &self.up_bias, &self.down_bias];
        for (k, (matrix, vector)) in matrices.into_iter().zip(vectors).enumerate() {
            tensors
                .extend(matrix.map(|m| (TENSORS[2 * k], self.format, vec![m.nrows(), m.ncols()], Numbers::Matrix(m))));
            tensors.extend(
                vector.as_ref().map(|v| (TENSORS[2 * k + 1], self.bias_format, vec![v.len()], Numbers::Vector(v))),
            );
        }
        // The order of the library's own writer: what is aligned to more bytes first.
        tensors.sort_by(|a, b| b.1.dtype().cmp(&a.1.dtype()).then(a.0.cmp(b.0)));
        let about = format!("version 1; source {}; form {}; weights are [out, in]", self.source, self.form);
        let listed = tensors.iter().map(|(name, format, shape, _)| (name.to_string(), *format, shape.clone()));
        out.write_all(&head(listed, ["neurograft_block", &about])?).map_err(&failed)?;
        for (_, format, _, numbers) in tensors {
            match numbers {
                Numbers::Matrix(m) => write_rows(m, format, out),
                Numbers::Vector(v) => {
                    let mut bytes = vec![0; v.len() * format.bytes()];
                    format.put(v.as_slice(), &mut bytes);
                    out.write_all(&bytes)
                }
            }
            .map_err(&failed)?;
        }
        Ok(())
    }

    /// The file's bytes: see [`Block::write`].
    pub fn to_safetensors(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.write(&mut bytes, |e| Error::io("cannot keep a block in memory", e))?;
        Ok(bytes)
    }

    /// The SHA-256 of the file.
    pub fn sha256(&self) -> Result<String> {
        let mut hash = Hashing::new(std::io::sink());
        self.write(&mut hash, |e| Error::io("cannot hash a block", e))?;
        Ok(hash.finish().1)
    }

    /// Reads a block from an opened file. `source`, `form` and `format` come from the certificate beside it.
    ///
    /// Errors: a tensor is missing, superfluous, of another shape or format than the others say, or holds NaN.
    pub fn from_safetensors(file: &TensorFile, source: Activation, form: Form, format: Format) -> Result<Block> {
        let biases = TENSORS.iter().filter(|n| n.ends_with("bias") && file.contains(n));
        let bias_format = match biases.map(|n| file.tensor(n).map(|t| t.format())).next() {
            Some(f) => f?,
            None => format,
        };
        let place = || file.place().to_string();
        let gated = form == Form::Gated;
        let known = |name: &String| TENSORS.contains(&name.as_str()) && (gated || !name.starts_with("up_proj"));
        if let Some(name) = file.names().iter().find(|n| !known(n)) {
            return Err(Error::input(format!("unexpected tensor '{name}' in a {form} block")).at(place()));
        }
        let matrix = |name: &str| -> Result<DMatrix<f64>> {
            let t = file.tensor(name)?;
            if t.format() != format {
                return Err(Error::input(format!("tensor '{name}' is {}, the block is {format}", t.format())));
            }
            let [rows, columns] = t.shape() else {
                return Err(Error::input(format!("tensor '{name}' has {} axes, expected 2", t.shape().len())));
            };
            Ok(DMatrix::from_row_slice(*rows, *columns, &t.values()?))
        };
        let vector = |name: &str, len: usize| -> Result<Option<DVector<f64>>> {
            if !file.contains(name) {
                return Ok(None);
            }
            let t = file.tensor(name)?;
            if t.format() != bias_format {
                return Err(Error::input(format!("tensor '{name}' is {}, other biases are {bias_format}", t.format())));
            }
            t.expect_shape(&[len], "a bias")?;
            Ok(Some(DVector::from_vec(t.vector()?)))
        };
        let read = || -> Result<Block> {
            let gate = matrix(TENSORS[0])?;
            let (h, d) = gate.shape();
            let up = if gated { Some(matrix(TENSORS[2])?) } else { None };
            let down = matrix(TENSORS[4])?;
            if up.as_ref().is_some_and(|u| u.shape() != (h, d)) || down.shape() != (d, h) {
                return Err(Error::input(format!(
                    "the projections' shapes do not fit: gate [{h}, {d}], down {:?}",
                    down.shape()
                )));
            }
            Ok(Block {
                source: source.clone(),
                form,
                format,
                bias_format,
                gate,
                gate_bias: vector(TENSORS[1], h)?,
                up,
                up_bias: if gated { vector(TENSORS[3], h)? } else { None },
                down,
                down_bias: vector(TENSORS[5], d)?,
            })
        };
        read().at(place)
    }
}
