//! MLP weight blocks, plain and gated: matrices in a number format, safetensors files, forward evaluation.
//!
//! Axis order is PyTorch's: a projection is [out, in]. With d the hidden size and h the number of hidden units:
//! `gate_proj.weight` \[h, d\] (`up_proj.weight` \[h, d\] when gated), `down_proj.weight` \[d, h\], biases \[h\], \[h\],
//! \[d\].
//!
//! plain: y = down·σ(gate·x + gate_bias) + down_bias
//! gated: y = down·(σ(gate·x + gate_bias) ⊙ (up·x + up_bias)) + down_bias

use std::collections::HashMap;

use nalgebra::{DMatrix, DVector};
use rayon::prelude::*;
use safetensors::tensor::TensorView;

use crate::activation::Activation;
use crate::error::{At, Error, Result};
use crate::format::Format;
use crate::stack::Form;
use crate::tensors::TensorFile;

/// Names of the tensors of a block file.
pub const TENSORS: [&str; 6] =
    ["gate_proj.weight", "gate_proj.bias", "up_proj.weight", "up_proj.bias", "down_proj.weight", "down_proj.bias"];

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

    /// The file's bytes. The tensors' shapes and what the block is stand in its metadata.
    pub fn to_safetensors(&self) -> Result<Vec<u8>> {
        let row_major = |m: &DMatrix<f64>| {
            /// Rows that a thread writes at a time: what it reads of each column lies together in memory.
            const TOGETHER: usize = 64;
            let (size, row) = (self.format.bytes(), m.ncols() * self.format.bytes());
            let mut bytes = vec![0; m.nrows() * row];
            bytes.par_chunks_mut((TOGETHER * row).max(1)).enumerate().for_each(|(k, out)| {
                let rows = k * TOGETHER..m.nrows().min((k + 1) * TOGETHER);
                for (c, column) in m.column_iter().enumerate() {
                    for (x, line) in column.as_slice()[rows.clone()].iter().zip(out.chunks_exact_mut(row)) {
                        self.format.put(*x, &mut line[c * size..(c + 1) * size]);
                    }
                }
            });
            (vec![m.nrows(), m.ncols()], bytes)
        };
        let vector = |v: &DVector<f64>| {
            let mut bytes = Vec::with_capacity(v.len() * self.bias_format.bytes());
            v.iter().for_each(|x| self.bias_format.write(*x, &mut bytes));
            (vec![v.len()], bytes)
        };
        let parts = [
            Some(row_major(&self.gate)),
            self.gate_bias.as_ref().map(vector),
            self.up.as_ref().map(row_major),
            self.up_bias.as_ref().map(vector),
            Some(row_major(&self.down)),
            self.down_bias.as_ref().map(vector),
        ];
        let named: Vec<_> = TENSORS.into_iter().zip(&parts).filter_map(|(n, p)| p.as_ref().map(|p| (n, p))).collect();
        let mut views = Vec::new();
        for (name, (shape, bytes)) in &named {
            let format = if name.ends_with("bias") { self.bias_format } else { self.format };
            let view = TensorView::new(format.dtype(), shape.clone(), bytes)
                .map_err(|e| Error::input(format!("tensor {name}: {e}")))?;
            views.push((*name, view));
        }
        // One entry only: the library keeps metadata in a hash map, whose order would differ from run to run.
        let about = format!("version 1; source {}; form {}; weights are [out, in]", self.source, self.form);
        let metadata = HashMap::from([("neurograft_block".to_string(), about)]);
        safetensors::serialize(views, Some(metadata)).map_err(|e| Error::input(format!("block: {e}")))
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
