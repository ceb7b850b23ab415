//! A spliced checkpoint read back: what must hold, tensor by tensor.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::carriers::Kind;
use crate::error::{At, Error, Result};
use crate::files::{sha256, sha256_of};
use crate::format::Format;
use crate::host::InsertedLayer;
use crate::tensors::TensorFile;

use super::super::{Checked, FOLDER, Manifest, Progress, contradiction, origins};
use super::layout::{self, Layout};
use super::shard::{Content, Entry, grid};
use super::{CONFIG_FILE, Files, INDEX_FILE, SOURCE_CONFIG_FILE, entries, index, is_weights, names, object};

/// Verifies a spliced checkpoint from its files alone. In order:
///
/// 1. every site's certificate, derived anew; the manifest in itself; the carriers removed;
/// 2. `config.json` is the source's with exactly the changes of a splice;
/// 3. exactly the tensors that it calls for, in the files that the index names;
/// 4. the inserted layers, bit for bit what the certified blocks lower to; biases that the source has none of are 0, and so is
///    all padding;
/// 5. the files' SHA-256, and no other file of weights beside them.
pub fn check(output: &Path, progress: Progress<'_>) -> Result<Checked> {
    let folder = output.join(FOLDER);
    let manifest = Manifest::read(&folder)?;
    let sites = manifest.sites(&folder)?;
    // What cannot be read at all contradicts nothing.
    for name in names(output)?.iter().filter(|n| n.ends_with(".safetensors")) {
        TensorFile::open(output.join(name))?;
    }
    // From here on whatever is wrong contradicts the manifest.
    let verdict = || -> Result<usize> {
        let (text, source) = object(&folder.join(SOURCE_CONFIG_FILE))?;
        if sha256(&text) != manifest.source_sha256 {
            return Err(Error::disagreement(format!("{SOURCE_CONFIG_FILE} is not the one of the manifest")));
        }
        let mut from = Layout::parse(&source)?;
        let carriers = &manifest.carriers;
        let inserted = sites.iter().map(|s| s.layers.len()).sum();
        let files = Files::open(output)?;
        from.head |= files.holder.contains_key("lm_head.weight");
        host_agrees(&manifest, &from)?;
        let to = from.spliced(carriers.hidden_size, inserted, carriers.kind == Kind::Borrowed);
        let counts: Vec<(usize, usize)> = sites.iter().map(|s| (s.layer, s.layers.len())).collect();
        let eps = from.eps * carriers.other_eps();
        let expected = layout::config(&source, &from, &to, eps, &origins(from.layers, &counts));
        let (_, config) = object(&output.join(CONFIG_FILE))?;
        same(&config, &expected, CONFIG_FILE)?;
        files.expect(&to, &[], CONFIG_FILE)?;
        let layers: Vec<(usize, &[InsertedLayer])> = sites.iter().map(|s| (s.layer, &s.layers[..])).collect();
        let entries = entries(&from, &to, carriers, &layers);
        if let Some(found) = &files.index {
            let map = files.holder.iter().map(|(t, s)| (t.clone(), Value::from(files.shards[*s].0.as_str())));
            same(found, &index(found, map.collect(), &manifest.cost), INDEX_FILE)?;
        }
        let total = entries.iter().map(|(e, _)| bytes(e, manifest.host.weights)).sum::<u64>();
        let mut done = 0;
        for (entry, _) in &entries {
            tensor(entry, &files, &from, manifest.host.weights).at(|| entry.name.clone())?;
            done += bytes(entry, manifest.host.weights);
            progress("bytes compared", done, total);
        }
        let found = hashes(&files, output, progress)?;
        if let Some((name, _)) = manifest.files.iter().find(|(n, h)| found.get(*n) != Some(h)) {
            return Err(Error::disagreement(format!("{name} is not the file that was written (SHA-256 differs)")));
        }
        if found.len() != manifest.files.len() {
            return Err(Error::disagreement("another number of files of weights"));
        }
        let strange = |n: &String| is_weights(n) && !manifest.files.contains_key(n) && n != INDEX_FILE;
        if let Some(name) = names(output)?.into_iter().find(strange) {
            return Err(Error::disagreement(format!("{name} is no part of the splice, and an engine may load it")));
        }
        if total != manifest.cost.bytes.after {
            return Err(Error::disagreement("the weights have another size than the manifest says"));
        }
        Ok(entries.len())
    };
    let tensors = verdict().map_err(|e| contradiction(e, output))?;
    Ok(Checked { manifest, sites, tensors })
}

fn bytes(entry: &Entry<'_>, format: Format) -> u64 {
    (entry.shape.iter().product::<usize>() * format.bytes()) as u64
}

/// Does the manifest's host describe the source's configuration?
fn host_agrees(manifest: &Manifest, from: &Layout) -> Result<()> {
    let h = &manifest.host;
    let same = (h.hidden_size, h.intermediate_size, h.layers) == (from.hidden, from.intermediate, from.layers)
        && h.source == from.activation
        && h.norm_eps == from.eps
        && h.stream == from.dtype.unwrap_or(h.weights)
        && manifest.architecture == from.family.architecture();
    if same { Ok(()) } else { Err(Error::disagreement("the manifest's host is not the source's configuration")) }
}

/// The first field that differs.
fn same(found: &serde_json::Map<String, Value>, expected: &serde_json::Map<String, Value>, file: &str) -> Result<()> {
    let keys = found.keys().chain(expected.keys());
    for key in keys {
        let (f, e) = (found.get(key), expected.get(key));
        if f != e {
            let text =
                |v: Option<&Value>| v.map_or("nothing".to_string(), |v| v.to_string().chars().take(80).collect());
            return Err(Error::disagreement(format!("{key} is {}, a splice leaves {}", text(f), text(e))).at(file));
        }
    }
    Ok(())
}

/// One tensor: format, and every number that is known.
fn tensor(entry: &Entry<'_>, files: &Files, from: &Layout, format: Format) -> Result<()> {
    let source = files.find(&entry.name)?;
    let found = source.header().tensor(&entry.name)?.format();
    if found != format {
        return Err(Error::disagreement(format!("is {found}, the others are {format}")));
    }
    let (_, columns) = grid(&entry.shape);
    let width = columns * format.bytes();
    // How many rows and bytes of a row the source determines.
    let free = match &entry.content {
        Content::Source { name, .. } => {
            let places = from.places();
            let shape = places.iter().find(|p| p.name() == *name).map(|p| from.shape(p.slot)).unwrap_or_default();
            let (rows, columns) = grid(&shape);
            (rows, columns * format.bytes())
        }
        _ => (0, 0),
    };
    if free == (grid(&entry.shape).0, width) {
        return Ok(());
    }
    let mut line = Vec::with_capacity(width);
    source.rows(&entry.name, |first, bytes| {
        for (k, row) in bytes.chunks_exact(width.max(1)).enumerate() {
            let (r, known) = (first + k, if first + k < free.0 { free.1 } else { 0 });
            line.clear();
            if let Content::Numbers(m) = &entry.content
                && r < m.nrows()
            {
                m.row(r).iter().for_each(|x| format.write(*x, &mut line));
            }
            line.resize(width, 0);
            if row[known..] != line[known..] {
                let byte = known + row[known..].iter().zip(&line[known..]).position(|(a, b)| a != b).unwrap_or(0);
                let column = byte / format.bytes();
                let value = |l: &[u8]| l.chunks_exact(format.bytes()).nth(column).and_then(|b| format.read(b));
                let (f, e) = (value(row).unwrap_or(f64::NAN), value(&line).unwrap_or(f64::NAN));
                return Err(Error::disagreement(format!("is {f} in row {r}, column {column}, not {e}")));
            }
        }
        Ok(())
    })
}

/// SHA-256 of every file of weights.
fn hashes(files: &Files, dir: &Path, progress: Progress<'_>) -> Result<BTreeMap<String, String>> {
    let size = |name: &String| fs::metadata(dir.join(name)).map_or(0, |m| m.len());
    let total = files.shards.iter().map(|(name, _)| size(name)).sum();
    let mut before = 0;
    let mut named = BTreeMap::new();
    for (name, _) in &files.shards {
        let read = || sha256_of(fs::File::open(dir.join(name))?, |done| progress("bytes hashed", before + done, total));
        named.insert(name.clone(), read().map_err(|e| Error::io(format!("cannot read {name}"), e))?);
        before += size(name);
    }
    Ok(named)
}
