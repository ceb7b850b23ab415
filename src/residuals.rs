//! Residual samples in a file, read in pieces.

use std::path::Path;

use nalgebra::DMatrix;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::tensors::{Tensor, TensorFile, some_of};

/// So many tokens are read at a time.
const PIECE: usize = 512;

/// A file of residuals [tokens, d].
#[derive(Debug)]
pub struct Residuals {
    file: TensorFile,
    name: String,
}

impl Residuals {
    /// Opens safetensors or `.npy`, of f16, bf16, f32 or f64. `tensor`: which one; without it, the one called `residuals`, or
    /// the only one.
    ///
    /// Errors: a file that cannot be read, no such tensor, one that is not a matrix, no tokens.
    pub fn open(path: &Path, tensor: Option<&str>) -> Result<Residuals> {
        let file = TensorFile::open_any(path)?;
        let mut names = file.names();
        let name = match tensor {
            Some(name) => name.to_string(),
            None if names.len() == 1 => names.remove(0),
            None if file.contains("residuals") => "residuals".into(),
            None => {
                return Err(Error::input(format!(
                    "the file holds {} tensors, none is called 'residuals'",
                    names.len()
                ))
                .at(file.place())
                .help(format!("say which: --tensor, one of {}", some_of(&names))));
            }
        };
        match *file.tensor(&name)?.shape() {
            [tokens, d] if tokens > 0 && d > 0 => Ok(Residuals { file, name }),
            ref shape => Err(Error::input(format!("tensor '{}' has shape {shape:?}", name.escape_debug()))
                .at(file.place())
                .help("residuals are a matrix: a token a row, a coordinate a column")),
        }
    }

    /// How many tokens there are.
    pub fn tokens(&self) -> usize {
        self.file.shape(&self.name).map_or(0, |s| s[0])
    }

    /// The width of the stream.
    pub fn width(&self) -> usize {
        self.file.shape(&self.name).map_or(0, |s| s[1])
    }

    /// Where they are, for errors and reports.
    pub fn place(&self) -> &str {
        self.file.place()
    }

    /// The tensor's name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All of them: [d, tokens], a token a column.
    ///
    /// Errors: a file that was cut since it was opened, numbers that are not finite.
    pub fn matrix(&self) -> Result<DMatrix<f64>> {
        let tensor = self.file.tensor(&self.name)?;
        Ok(DMatrix::from_vec(self.width(), self.tokens(), tensor.values()?))
    }

    /// Folds the tokens, piece by piece and in parallel: `found` takes a token's residual, `join` combines pieces in any order,
    /// `progress` hears of so many tokens more.
    pub fn each<T: Default + Send>(
        &self,
        progress: &(dyn Fn(u64) + Sync),
        found: impl Fn(&mut T, Vec<f64>) -> Result<()> + Sync,
        join: impl Fn(T, T) -> T + Sync + Send,
    ) -> Result<T> {
        let tensor = self.file.tensor(&self.name)?;
        let tokens = self.tokens();
        let piece = |k: usize| -> Result<T> {
            let rows = k * PIECE..tokens.min((k + 1) * PIECE);
            let count = rows.len() as u64;
            let mut all = T::default();
            rows.map(|row| Tensor::row(&tensor, row)).try_for_each(|x| found(&mut all, x?))?;
            progress(count);
            Ok(all)
        };
        let pieces = (0..tokens.div_ceil(PIECE)).into_par_iter().map(piece);
        pieces.try_reduce(T::default, |a, b| Ok(join(a, b)))
    }
}
