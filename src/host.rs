//! Decoder layers as hosts: what an insertion needs of one, and the tensors that it becomes there.
//!
//! Knows nothing of files: [`lower`] maps blocks over the stream to the weights of decoder layers whose norm is
//! neutralised by [`Carriers`].
//!
//! With *padded* carriers no MLP bias is needed. Some coordinates are exactly 1 after the norm; a bias b is the sum of
//! weights on them, b = b_1 + b_2 + …, each part a number of the format, so that 16-bit weights lose nothing of it. What
//! is added to every token (an output bias, and −C, which removes the constants) comes from hidden units of constant
//! value: gate 128 and up 1 make σ(128)·1 = 128 in every format for every σ that approaches the identity.
//! With *borrowed* carriers, whose normed value is not constant, biases stand in bias tensors; rows have been written so that they
//! read next to nothing of the constants ([`Carriers::project`]), and biases take out the rest.

use nalgebra::{DMatrix, DVector};
use serde::{Deserialize, Serialize};

use crate::activation::Activation;
use crate::block::Block;
use crate::carriers::{Carriers, Kind};
use crate::error::{Error, Result};
use crate::format::Format;
use crate::interval::Interval;
use crate::stack::Form;

/// What a decoder offers to an inserted layer.
///
/// Pre-norm layers: x ← x + attention(norm(x)), then x ← x + mlp(norm(x)); both norms are RMSNorm with a gain, computed in
/// f32 or better, and the attention's output projection can have a bias.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// d
    pub hidden_size: usize,
    /// hidden units of every MLP
    pub intermediate_size: usize,
    /// decoder layers
    pub layers: usize,
    /// the MLP's σ
    pub source: Activation,
    /// gated or plain
    pub form: Form,
    /// eps of the norms
    pub norm_eps: f64,
    /// the number format of the weights
    pub weights: Format,
    /// the number format of the norms' gains
    pub gains: Format,
    /// the number format of the residual stream in the engines that run the checkpoint
    pub stream: Format,
    /// hidden sizes must be a multiple of this (attention heads; blocks of quantised rows)
    pub multiple: usize,
}

impl Host {
    /// How many numbers of the weights' format make up a bias exactly: a bias is an f32 at most (or 22 bits of f16).
    pub fn bias_parts(&self) -> usize {
        bias_parts(self.weights)
    }
}

/// See [`Host::bias_parts`].
pub fn bias_parts(weights: Format) -> usize {
    match weights {
        Format::Bf16 => 3,
        Format::F16 => 2,
        Format::F32 | Format::F64 => 1,
    }
}

/// What is inserted at one place: one MLP, or two that follow one another.
///
/// The blocks' coordinates are the `live` ones of the stream, then `guards` more that are 0 before and after, and through
/// which the first block speaks to the second.
#[derive(Clone, Debug, PartialEq)]
pub struct Insertion {
    /// d
    pub live: usize,
    /// coordinates between the two blocks
    pub guards: usize,
    /// bound on the norm of what the first block writes there, for the residuals of the domain
    pub reach: f64,
    /// one or two
    pub blocks: Vec<Block>,
}

impl Insertion {
    /// One MLP over the stream.
    pub fn single(block: Block) -> Insertion {
        Insertion { live: block.hidden_size(), guards: 0, reach: 0.0, blocks: vec![block] }
    }

    /// What is added to the stream, in f64, where nothing stands between the stream and the blocks: [d, n] → [d, n].
    pub fn forward(&self, x: &DMatrix<f64>) -> DMatrix<f64> {
        let mut stream = x.clone().resize_vertically(self.live + self.guards, 0.0);
        let mut added = DMatrix::zeros(self.live, x.ncols());
        for block in &self.blocks {
            let written = block.forward(&stream);
            added += written.rows(0, self.live);
            stream += written;
        }
        added
    }
}

/// The weights of an inserted decoder layer that are not 0. Matrices are [out, in]; H is the spliced hidden size.
#[derive(Clone, Debug, PartialEq)]
pub struct InsertedLayer {
    /// `self_attn.o_proj.bias`, \[H\]; all other attention weights are 0
    pub writer: Vec<f64>,
    /// `post_attention_layernorm.weight`, \[H\]
    pub gain: Vec<f64>,
    /// the MLP, over H coordinates; biases only with borrowed carriers
    pub mlp: Block,
}

/// The value of a constant hidden unit: beyond the knee of every σ that approaches the identity, a power of two.
const CONSTANT: f64 = 128.0;

/// The weights of the decoder layers that an insertion becomes.
///
/// Errors: two blocks with borrowed carriers; an activation that has no constant units; weights beyond the format.
pub fn lower(insertion: &Insertion, carriers: &Carriers, weights: Format) -> Result<Vec<InsertedLayer>> {
    carriers.check()?;
    if carriers.live != insertion.live {
        return Err(Error::input(format!(
            "the insertion has hidden size {}, the host {}",
            insertion.live, carriers.live
        )));
    }
    if insertion.guards > carriers.guards.len() {
        return Err(Error::unsupported("two inserted layers need padded carriers: a guard's value must not meet x")
            .help("choose padded carriers, or layers = 1"));
    }
    let last = insertion.blocks.len() - 1;
    insertion
        .blocks
        .iter()
        .enumerate()
        .map(|(k, block)| {
            // The first layer writes the constants, the last one removes them.
            let writer = if k == 0 { carriers.writer_bias() } else { vec![0.0; carriers.hidden_size] };
            let removes = k == last;
            let mlp = match carriers.kind {
                Kind::Padded => padded(block, insertion, carriers, weights, removes)?,
                Kind::Borrowed => borrowed(block, carriers, weights, removes)?,
            };
            let numbers = mlp.gate.iter().chain(mlp.up.iter().flat_map(|m| m.iter())).chain(mlp.down.iter());
            if numbers.chain(&writer).any(|x| !x.is_finite()) {
                return Err(Error::unsupported(format!(
                    "a weight of the inserted layer is beyond the range of {weights}"
                ))
                .help("use a wider number format or smaller limits in [budget]"));
            }
            Ok(InsertedLayer { writer, gain: carriers.gain(), mlp })
        })
        .collect()
}

/// b as a sum of numbers of a format, largest first.
///
/// Errors: b is no such sum of `count` parts.
pub fn parts(b: f64, format: Format, count: usize) -> Result<Vec<f64>> {
    let mut rest = b;
    let out: Vec<f64> = (0..count)
        .map(|_| {
            let part = format.round(rest);
            rest -= part;
            part
        })
        .collect();
    if rest != 0.0 {
        return Err(Error::unsupported(format!("{b:e} is not a sum of {count} numbers of {format}"))
            .help("use a checkpoint in f32 or bf16"));
    }
    Ok(out)
}

fn padded(block: &Block, insertion: &Insertion, c: &Carriers, weights: Format, removes: bool) -> Result<Block> {
    let (h, size) = (block.intermediate_size(), c.hidden_size);
    let ones: Vec<usize> = c.constants.iter().map(|k| k.coordinate).collect();
    let count = bias_parts(weights).min(ones.len());
    // Columns of the block → coordinates of the stream.
    let coordinate = |k: usize| if k < insertion.live { k } else { c.guards[k - insertion.live] };
    // What every token gets: the output bias in parts, and −C.
    let mut constants: Vec<Vec<f64>> = Vec::new();
    let mut add = |part: usize, row: usize, x: f64| {
        if x != 0.0 {
            while constants.len() <= part {
                constants.push(vec![0.0; size]);
            }
            constants[part][row] += x / CONSTANT;
        }
    };
    if removes {
        c.constants.iter().for_each(|k| add(0, k.coordinate, -c.value(k)));
    }
    if let Some(bias) = &block.down_bias {
        for (k, b) in bias.iter().enumerate() {
            parts(*b, weights, count)?.into_iter().enumerate().for_each(|(p, x)| add(p, coordinate(k), x));
        }
    }
    if !constants.is_empty() && !approaches_identity(&block.source) {
        return Err(Error::unsupported(format!(
            "{} has no hidden units of constant value that can be scaled",
            block.source
        ))
        .help("padded carriers need an activation that approaches the identity, as relu, silu and gelu do"));
    }
    let m = h + constants.len();
    let mut gate = DMatrix::zeros(m, size);
    let mut up = block.up.as_ref().map(|_| DMatrix::zeros(m, size));
    let mut down = DMatrix::zeros(size, m);
    let widen = |to: &mut DMatrix<f64>, from: &DMatrix<f64>, bias: &Option<DVector<f64>>| -> Result<()> {
        for i in 0..h {
            (0..from.ncols()).for_each(|k| to[(i, coordinate(k))] = from[(i, k)]);
            if let Some(b) = bias {
                parts(b[i], weights, count)?.into_iter().zip(&ones).for_each(|(x, one)| to[(i, *one)] = x);
            }
        }
        Ok(())
    };
    widen(&mut gate, &block.gate, &block.gate_bias)?;
    if let (Some(to), Some(from)) = (&mut up, &block.up) {
        widen(to, from, &block.up_bias)?;
    }
    for k in 0..block.hidden_size() {
        (0..h).for_each(|i| down[(coordinate(k), i)] = block.down[(k, i)]);
    }
    for (i, column) in constants.iter().enumerate() {
        gate[(h + i, ones[0])] = CONSTANT;
        if let Some(up) = &mut up {
            up[(h + i, ones[0])] = 1.0;
        }
        column.iter().enumerate().for_each(|(k, x)| down[(k, h + i)] = weights.round(*x));
    }
    let (source, form) = (block.source.clone(), block.form);
    Ok(Block {
        source,
        form,
        format: weights,
        bias_format: weights,
        gate,
        gate_bias: None,
        up,
        up_bias: None,
        down,
        down_bias: None,
    })
}

fn borrowed(block: &Block, c: &Carriers, weights: Format, removes: bool) -> Result<Block> {
    let mut mlp = block.clone();
    let mut bias = block.down_bias.clone().unwrap_or_else(|| DVector::zeros(block.hidden_size()));
    if removes {
        c.constants.iter().for_each(|k| bias[k.coordinate] -= c.value(k));
    }
    mlp.down_bias = Some(bias.map(|b| weights.round(b)));
    // The borrowed coordinates hold x_j + C_j there: what a row reads of C is taken out of its bias.
    let compensated = |rows: &DMatrix<f64>, bias: &Option<DVector<f64>>| {
        let of_row = |i: usize| {
            let row: Vec<f64> = rows.row(i).iter().copied().collect();
            weights.round(bias.as_ref().map_or(0.0, |b| b[i]) - c.constant(&row))
        };
        DVector::from_fn(rows.nrows(), |i, _| of_row(i))
    };
    mlp.gate_bias = Some(compensated(&block.gate, &block.gate_bias));
    mlp.up_bias = block.up.as_ref().map(|up| compensated(up, &block.up_bias));
    mlp.bias_format = weights;
    Ok(mlp)
}

/// Is σ(128) = 128 to a part in 10^15?
fn approaches_identity(source: &Activation) -> bool {
    let value = source.jet(Interval::point(CONSTANT)).v;
    (value.lo() - CONSTANT).abs().max((value.hi() - CONSTANT).abs()) <= CONSTANT * 1e-15
}

impl InsertedLayer {
    /// The layer: [H, n] → [H, n], one token a column; in f64, but for the norm, whose mean square is found in f32 as
    /// engines do it (that is what makes constants dominate).
    pub fn forward(&self, x: &DMatrix<f64>, eps: f64) -> DMatrix<f64> {
        let mut stream = x.clone();
        stream.column_iter_mut().for_each(|mut c| c += DVector::from_column_slice(&self.writer));
        let mut normed = stream.clone();
        let gain = DVector::from_column_slice(&self.gain);
        normed.column_iter_mut().for_each(|mut c| {
            let mean = c.iter().map(|x| (*x as f32) * (*x as f32)).sum::<f32>() / c.len() as f32;
            c /= f64::from(mean + eps as f32).sqrt();
            c.component_mul_assign(&gain);
        });
        stream + self.mlp.forward(&normed)
    }
}
