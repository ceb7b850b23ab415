//! The example inside the program: a specification, a slice of a real SAE, and real residuals.

use nalgebra::DMatrix;

use crate::error::Result;
use crate::sae::Sae;
use crate::spec::Spec;
use crate::tensors::TensorFile;

const SPEC: &str = include_str!("../examples/ablate.toml");
const CFG: &str = include_str!("../examples/data/cfg.json");
const WEIGHTS: &[u8] = include_bytes!("../examples/data/sae_weights.safetensors");
const RESIDUALS: &[u8] = include_bytes!("../examples/data/residuals.safetensors");

/// The specification of `examples/ablate.toml`, its SAE, and residuals [d, tokens].
pub fn load() -> Result<(Spec, Sae, DMatrix<f64>)> {
    let file = TensorFile::from_bytes("embedded residuals", RESIDUALS)?;
    Ok((Spec::parse_toml(SPEC)?, Sae::from_bytes(CFG, WEIGHTS)?, residuals(&file, "residuals")?))
}

/// A tensor [tokens, d] as a matrix [d, tokens].
pub fn residuals(file: &TensorFile, name: &str) -> Result<DMatrix<f64>> {
    let tensor = file.tensor(name)?;
    let &[tokens, d] = tensor.shape() else {
        return Err(crate::error::Error::input(format!("tensor '{name}' is not a matrix")));
    };
    Ok(DMatrix::from_vec(d, tokens, tensor.values()?))
}
