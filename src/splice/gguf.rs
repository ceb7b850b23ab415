//! GGUF files of architecture `llama`.
//!
//! Inserted layers are F32; everything else keeps its number format. With borrowed carriers all other tensors keep their
//! bytes, with padded ones rows grow by whole blocks of zero bytes, which stand for zeros in every format, so that all
//! values stay what they were but the norms' gains, which are rescaled in F32. Rows are copied through a buffer: memory
//! does not grow with the model. What travels with `OUT.gguf` lies in the directory `OUT.neurograft` beside it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::activation::Activation;
use crate::carriers::{Carriers, Kind};
use crate::certificate::sha256;
use crate::error::{At, Error, Result};
use crate::files::{Hashing, WholeDirectory, WholeFile, folder_of, write_whole};
use crate::format::Format;
use crate::gguf::{GgufFile, TensorInfo, Value, Writer, head_bytes};
use crate::host::{Host, InsertedLayer};
use crate::stack::Form;

use super::{Change, Cost, MANIFEST_FILE, Plan, PlannedSite, Progress, card, has_room, origins};

mod check;
mod layout;

pub use check::check;
use layout::{Content, Entry, Layout, Role, entries, metadata};

/// The source's head without its tokenizer, beside the manifest: what the spliced head is compared with.
pub const SOURCE_HEAD_FILE: &str = "head.source.gguf";
/// The extension of the directory that travels with a spliced file.
const FOLDER_EXTENSION: &str = "neurograft";
const README: &str = "README.md";
/// Bytes that are in memory at once, but for a single row that is longer.
const BUFFER: usize = 1 << 20;

/// The directory that travels with a spliced file.
pub fn folder(output: &Path) -> PathBuf {
    output.with_extension(FOLDER_EXTENSION)
}

/// An open file.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    head: GgufFile,
    layout: Layout,
    host: Host,
}

impl Checkpoint {
    /// Maps a file and checks that its metadata and its tensors describe a decoder that can be spliced.
    ///
    /// Errors: no GGUF file; another architecture than `llama`; metadata and tensors that contradict each other.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        let head = GgufFile::open(path)?;
        let layout = Layout::parse(&head).at(|| path.display().to_string())?;
        let host = host(&layout, &head);
        Ok(Checkpoint { path: path.to_path_buf(), head, layout, host })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of its files of weights.
    pub(super) fn bytes(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |m| m.len())
    }

    /// What its decoder offers.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its architecture's name.
    pub fn architecture(&self) -> &str {
        "llama"
    }

    /// The mean square of each coordinate in what writes it (embedding, attn_output and ffn_down up to a layer), relative to
    /// the writer's average, averaged over the writers that can be read.
    pub(super) fn loudness(&self, layer: usize) -> Result<Vec<f64>> {
        let d = self.layout.hidden;
        let (mut total, mut writers) = (vec![0.0; d], 0.0);
        let matrices =
            (0..=layer).flat_map(|l| [format!("blk.{l}.attn_output.weight"), format!("blk.{l}.ffn_down.weight")]);
        for name in std::iter::once("token_embd.weight".to_string()).chain(matrices) {
            let tensor = self.head.tensor(&name)?;
            if !tensor.is_readable() {
                continue;
            }
            let mut square = vec![0.0; d];
            for r in 0..tensor.info().rows() {
                let row = tensor.rows(r..r + 1)?;
                if name.starts_with("token") {
                    square.iter_mut().zip(&row).for_each(|(s, x)| *s += x * x);
                } else {
                    square[r] = row.iter().map(|x| x * x).sum();
                }
            }
            let mean = square.iter().sum::<f64>() / d as f64;
            if mean > 0.0 {
                total.iter_mut().zip(&square).for_each(|(t, s)| *t += s / mean);
                writers += 1.0;
            }
        }
        if writers == 0.0 {
            return Err(Error::unsupported(
                "which coordinates are quiet cannot be told: no weights in a format that is read",
            )
            .help("name the coordinates with --borrow, or use padded carriers"));
        }
        Ok(total.into_iter().map(|x| x / writers).collect())
    }

    /// What a splice costs.
    pub(super) fn cost(&self, carriers: &Carriers, sites: &[PlannedSite]) -> Result<Cost> {
        let sites = inserted(sites);
        let to = self.spliced(carriers, &sites);
        let after = entries(&self.head, &self.layout, &to, &sites)?;
        let infos = (self.head.tensors().iter().collect::<Vec<_>>(), after.iter().map(|e| &e.info).collect::<Vec<_>>());
        let change =
            |f: &dyn Fn(&[&TensorInfo]) -> usize| Change { before: f(&infos.0) as u64, after: f(&infos.1) as u64 };
        // Of a table that is no head as well, a token reads one row.
        let head = self.head.contains("output.weight");
        let read = |t: &&TensorInfo| if head && t.name == "token_embd.weight" { t.row_bytes() } else { t.bytes() };
        let layers = Change { before: self.layout.layers as u64, after: to.layers as u64 };
        // llama.cpp keeps keys and values in f16 unless told otherwise.
        let cache = (2 * self.layout.key_heads * self.layout.head_size * Format::F16.bytes()) as u64;
        Ok(Cost {
            layers,
            hidden_size: Change { before: self.layout.hidden as u64, after: to.hidden as u64 },
            parameters: change(&|all| all.iter().map(|t| t.width() * t.rows()).sum()),
            bytes: change(&|all| all.iter().map(|t| t.bytes()).sum()),
            read: change(&|all| all.iter().map(read).sum()),
            cache: Change { before: layers.before * cache, after: layers.after * cache },
        })
    }

    /// What whoever runs the result should know.
    pub(super) fn notes(&self, carriers: &Carriers) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        let formats = self.head.tensors().iter().filter(|t| t.format.block > 1).map(|t| t.format.name);
        if let Some(name) = formats.clone().next() {
            notes.push(format!(
                "weights are quantised ({name}, …): llama.cpp rounds what enters each product to 8 bits a block, so that differences \
                 of 1e-7 change roundings, even those that a layer without effect makes; judge by logits, not by greedy text"
            ));
        }
        if carriers.kind == Kind::Padded {
            notes.push(format!(
                "padding multiplies the gains of the model's norms by √({}/{}), rounded to f32; blocks of zeros are appended to rows",
                carriers.live, carriers.hidden_size
            ));
        }
        notes.push("the inserted layers are F32, whatever the other layers are".into());
        Ok(notes)
    }

    fn spliced(&self, carriers: &Carriers, sites: &[(usize, &[InsertedLayer])]) -> Layout {
        self.layout.spliced(carriers, sites.iter().map(|s| s.1.len()).sum())
    }

    /// Refuses an output that must not be written to.
    pub(super) fn vacant(&self, output: &Path, force: bool, kept: &[&Path]) -> Result<()> {
        let place = || output.display().to_string();
        let real = |p: &Path| fs::canonicalize(p).map_err(|e| Error::io(format!("cannot find {}", p.display()), e));
        let (source, parent) = (real(&self.path)?, real(folder_of(output))?);
        let name = output.file_name().ok_or_else(|| Error::input("no file's name").at(place()))?;
        if output.extension().is_none_or(|e| e != "gguf") {
            return Err(Error::input("a spliced GGUF file is a GGUF file").at(place()).help("name it OUT.gguf"));
        }
        if parent.join(name) == source || real(output).is_ok_and(|p| p == source) {
            return Err(Error::input("the output is the source")
                .at(place())
                .help("the source is only read: name another file"));
        }
        let folder = folder(output);
        let there = [output, &folder].into_iter().find(|p| fs::symlink_metadata(p).is_ok());
        let Some(there) = there.map(|p| p.display().to_string()) else { return Ok(()) };
        if !force {
            return Err(Error::input("is there already")
                .at(there)
                .help("name another file, or replace an earlier splice with --force"));
        }
        if !folder.join(MANIFEST_FILE).is_file() || fs::symlink_metadata(output).is_ok_and(|m| !m.is_file()) {
            return Err(Error::input(format!("{} holds no {MANIFEST_FILE}: not replaced", folder.display()))
                .at(there)
                .help("--force replaces what `neurograft splice` has written, nothing else"));
        }
        let inside = |p: &&&Path| real(p).ok().zip(real(&folder).ok()).is_some_and(|(p, f)| p.starts_with(f));
        match kept.iter().find(inside) {
            Some(p) => Err(Error::input(format!("{} lies in it: it would be lost", p.display())).at(there)),
            None => Ok(()),
        }
    }

    /// Writes the spliced file, and the directory that travels with it.
    ///
    /// Errors: a disk that is full or fails; nothing is left behind then.
    pub(super) fn write(&self, plan: &Plan, spec: &Path, output: &Path, progress: Progress<'_>) -> Result<()> {
        let sites = inserted(&plan.sites);
        let to = self.spliced(&plan.carriers, &sites);
        let entries = entries(&self.head, &self.layout, &to, &sites)?;
        let counts: Vec<(usize, usize)> = sites.iter().map(|s| (s.0, s.1.len())).collect();
        let metadata = metadata(&self.head, &self.layout, &to, &origins(self.layout.layers, &counts))?;
        has_room(output, plan.cost.bytes.after)?;

        let mut whole = WholeFile::new(output)?;
        let hash = self.write_file(whole.file(), &metadata, &entries, plan, progress).map_err(|e| match e {
            Failure::Read(e) => Error::io(format!("cannot read {}", self.path.display()), e),
            Failure::Write(e) => Error::io(format!("cannot write {}", output.display()), e),
        })?;
        let travels = WholeDirectory::new(&folder(output))?;
        let dir = travels.path();
        let head = source_head(&self.head);
        let name = output.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let manifest = plan.manifest(sha256(&head), BTreeMap::from([(name.clone(), hash)]));
        plan.write_folder(dir, spec, &manifest)?;
        write_whole(&dir.join(SOURCE_HEAD_FILE), &head)?;
        let id = self.head.value("general.name").and_then(|v| v.as_text().map(String::from));
        write_whole(&dir.join(README), card::gguf_card(plan, &name, id.as_deref()).as_bytes())?;
        // The file comes last: where it is, everything is.
        travels.persist()?;
        whole.persist().inspect_err(|_| drop(fs::remove_dir_all(folder(output))))
    }

    fn write_file(
        &self,
        file: &mut File,
        metadata: &[(Cow<'_, str>, Value<'_>)],
        entries: &[Entry<'_>],
        plan: &Plan,
        progress: Progress<'_>,
    ) -> std::result::Result<String, Failure> {
        let out = Hashing::new(BufWriter::with_capacity(BUFFER, file));
        let infos = entries.iter().map(|e| e.info.clone()).collect();
        let mut out = Writer::new(out, self.head.version(), metadata, infos).map_err(Failure::Write)?;
        let mut source = File::open(&self.path).map_err(Failure::Read)?;
        let (mut done, mut rest) = (0, Vec::new());
        for entry in entries {
            let rows = entry.info.rows();
            let narrow = entry.copied(0);
            if let Content::Source { name, .. } = &entry.content {
                let start = self.head.span(name).map_or(0, |s| s.start);
                source.seek(SeekFrom::Start(start)).map_err(Failure::Read)?;
            }
            let scale =
                matches!(entry.content, Content::Source { role: Role::Gain, .. }).then(|| plan.carriers.other_gains());
            let together = (BUFFER / entry.info.row_bytes().max(1)).max(1);
            let mut buffer = vec![0; together.min(rows) * narrow];
            for first in (0..rows).step_by(together) {
                let last = rows.min(first + together);
                let copied: usize = (first..last).map(|r| entry.copied(r)).sum();
                let bytes = &mut buffer[..copied];
                source.read_exact(bytes).map_err(Failure::Read)?;
                if let Some(scale) = scale {
                    rescale(bytes, scale);
                }
                let mut from = 0;
                for r in first..last {
                    let n = entry.copied(r);
                    entry.rest(r, &mut rest);
                    out.append(&bytes[from..from + n]).and_then(|()| out.append(&rest)).map_err(Failure::Write)?;
                    from += n;
                }
            }
            done += entry.info.bytes() as u64;
            progress("bytes written", done, plan.cost.bytes.after);
        }
        let (buffer, hash) = out.finish().0.finish();
        buffer.into_inner().map_err(|e| Failure::Write(e.into_error()))?;
        Ok(hash)
    }
}

/// The inserted layers and where they go.
fn inserted(sites: &[PlannedSite]) -> Vec<(usize, &[InsertedLayer])> {
    sites.iter().map(|s| (s.layer, &s.layers[..])).collect()
}

enum Failure {
    Read(std::io::Error),
    Write(std::io::Error),
}

/// f32 numbers times a factor.
fn rescale(bytes: &mut [u8], factor: f64) {
    for b in bytes.chunks_exact_mut(4) {
        let x = Format::F32.read(b).unwrap_or(f64::NAN) * factor;
        b.copy_from_slice(&(x as f32).to_le_bytes());
    }
}

/// Everything of architecture `llama` is SwiGLU; llama.cpp's stream and norms are f32.
fn host(layout: &Layout, head: &GgufFile) -> Host {
    Host {
        hidden_size: layout.hidden,
        intermediate_size: layout.intermediate,
        layers: layout.layers,
        source: Activation::Silu,
        form: Form::Gated,
        norm_eps: layout.eps,
        weights: Format::F32,
        gains: Format::F32,
        stream: Format::F32,
        multiple: layout.multiple(head),
    }
}

/// A head that says what the source's says, but for its tokenizer, which a splice leaves as it is.
fn source_head(head: &GgufFile) -> Vec<u8> {
    let kept: Vec<_> = head.metadata().filter(|(k, _)| !is_tokenizer(k)).map(|(k, v)| (Cow::Borrowed(k), v)).collect();
    head_bytes(head.version(), &kept, head.tensors())
}

fn is_tokenizer(key: &str) -> bool {
    key.starts_with("tokenizer.")
}
