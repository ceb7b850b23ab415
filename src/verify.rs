//! Re-derives every bound of an output directory from its files alone.

use std::path::Path;

use crate::block::Block;
use crate::certificate::{BLOCK_FILE, CERTIFICATE_FILE, CertificateFile, sha256};
use crate::derive::{BlockProof, derive};
use crate::error::{At, Error, Result};
use crate::tensors::TensorFile;

/// Reads the certificate and the block, derives all bounds anew, and compares them with those in the file.
///
/// Errors: a file is missing or malformed; [`Error::is_disagreement`] where the files contradict each other in anything.
pub fn verify(dir: &Path) -> Result<(CertificateFile, BlockProof)> {
    let file = CertificateFile::read(&dir.join(CERTIFICATE_FILE))?;
    let path = dir.join(BLOCK_FILE);
    let place = || path.display().to_string();
    let bytes = std::fs::read(&path).map_err(|e| Error::io("cannot read", e)).at(place)?;
    if sha256(&bytes) != file.block_sha256 {
        return Err(Error::disagreement("the weights are not those that the certificate speaks of (SHA-256 differs)")
            .at(place()));
    }
    let tensors = TensorFile::from_bytes(place(), bytes)?;
    let block = Block::from_safetensors(&tensors, file.source.clone(), file.form, file.format)?;
    if (block.hidden_size(), block.intermediate_size()) != (file.hidden_size, file.intermediate_size) {
        return Err(Error::disagreement("the block's shape is not that in the certificate").at(place()));
    }
    // Whatever cannot be derived from the files is a contradiction in them.
    let proof = file
        .claims()
        .and_then(|claims| derive(&block, &claims, file.norm))
        .map_err(|e| if e.is_disagreement() { e } else { Error::disagreement(e.to_string()) })
        .at(|| dir.display().to_string())?;
    file.agrees_with(&proof).at(|| dir.display().to_string())?;
    Ok((file, proof))
}
