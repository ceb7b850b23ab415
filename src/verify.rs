//! Re-derives every bound of an output directory from its files alone.

use std::path::Path;

use crate::block::Block;
use crate::certificate::{BLOCK_FILE, CERTIFICATE_FILE, CertificateFile, FIRST_BLOCK_FILE, sha256};
use crate::deployed::{Blocks, deploy_all};
use crate::derive::derive;
use crate::error::{At, Error, Result};
use crate::gated::derive_two;
use crate::host::Insertion;
use crate::tensors::TensorFile;
use crate::tokens::Tokens;

/// Files that agree with one another and with what was derived from them.
#[derive(Clone, Debug)]
pub struct Verified {
    /// the certificate, all of its figures derived anew
    pub file: CertificateFile,
    /// one block, or two that follow one another
    pub blocks: Vec<Block>,
}

/// Reads the certificate and the block, derives all bounds anew, and compares them with those in the file.
///
/// Errors: a file is missing or malformed; [`Error::is_disagreement`] where the files contradict each other in anything.
pub fn verify(dir: &Path) -> Result<Verified> {
    let file = CertificateFile::read(&dir.join(CERTIFICATE_FILE))?;
    let place = || dir.display().to_string();
    let block = read_block(dir, BLOCK_FILE, &file.block_sha256, &file)?;
    if (block.hidden_size(), block.intermediate_size()) != (file.hidden_size + file.between, file.intermediate_size) {
        return Err(Error::disagreement("the block's shape is not that in the certificate").at(place()));
    }
    // Whatever cannot be derived from the files is a contradiction in them.
    let contradiction = |e: Error| if e.is_disagreement() { e } else { Error::disagreement(e.to_string()) };
    let (Some(gates), Some(hash), Some(norm)) = (&file.gates, &file.first_block_sha256, file.norm) else {
        let carried = file.responses.iter().any(|r| r.carried);
        if file.gates.is_some() || file.first_block_sha256.is_some() || file.between > 0 || carried {
            return Err(Error::disagreement("gates, a first block and a norm go together").at(place()));
        }
        let derived = file.claims().and_then(|claims| derive(&block, &claims, file.norm, &file.reading));
        let proof = derived.map_err(contradiction).at(place)?;
        file.agrees_with(&proof).at(place)?;
        check_deployed(&file, Blocks::One(&block, &file.claims()?)).map_err(contradiction).at(place)?;
        return Ok(Verified { blocks: vec![block], file });
    };
    let first = read_block(dir, FIRST_BLOCK_FILE, hash, &file)?;
    let derived = file.two_layer_claim(gates).and_then(|claim| derive_two(&first, &block, &claim, norm, &file.reading));
    let proof = derived.map_err(contradiction).at(place)?;
    file.agrees_with_two(gates, &proof).at(place)?;
    let claim = file.two_layer_claim(gates)?;
    check_deployed(&file, Blocks::Two(&first, &block, &claim)).map_err(contradiction).at(place)?;
    Ok(Verified { blocks: vec![first, block], file })
}

/// Derives what is said of engines anew.
fn check_deployed(file: &CertificateFile, blocks: Blocks<'_>) -> Result<()> {
    if file.deployed.is_empty() && file.calibration.is_none() {
        return Ok(());
    }
    let norm = file.norm.ok_or_else(|| Error::disagreement("deployed arithmetic without a norm"))?;
    let names: Vec<String> = file.deployed.iter().map(|d| d.arithmetic.clone()).collect();
    let tokens = || {
        Ok(match &file.calibration {
            Some(calibration) => Tokens::recorded(norm, calibration),
            None => Tokens::ball(norm),
        })
    };
    let (deployed, calibration) = deploy_all(blocks, &names, &file.reading, tokens)?;
    file.agrees_with_deployed(&deployed, &calibration)
}

fn read_block(dir: &Path, name: &str, hash: &str, file: &CertificateFile) -> Result<Block> {
    let path = dir.join(name);
    let place = || path.display().to_string();
    // What is no block is refused before it is read.
    TensorFile::open(&path)?;
    let bytes = std::fs::read(&path).map_err(|e| Error::io("cannot read", e)).at(place)?;
    if sha256(&bytes) != hash {
        return Err(Error::disagreement("the weights are not those that the certificate speaks of (SHA-256 differs)")
            .at(place()));
    }
    let tensors = TensorFile::from_bytes(place(), bytes)?;
    Block::from_safetensors(&tensors, file.source.clone(), file.form, file.format)
}

impl Verified {
    /// What is inserted.
    pub fn insertion(&self) -> Insertion {
        Insertion {
            live: self.file.hidden_size,
            guards: self.file.between,
            reach: self.file.gates.as_ref().map_or(0.0, |g| g.reach),
            blocks: self.blocks.clone(),
        }
    }
}
