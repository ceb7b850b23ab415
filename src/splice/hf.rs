//! HuggingFace checkpoints: `config.json` and safetensors, Llama and what can be written as Llama without loss.
//!
//! Shards are mirrored one by one, tensors copied row by row: memory does not grow with the model. Inserted layers go into
//! the shard of the layer that they follow. Everything is written to a directory beside the output, which is then renamed.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use nalgebra::DMatrix;
use serde_json::{Map, Value, json};

use crate::activation::Activation;
use crate::carriers::{Carriers, Kind};
use crate::certificate::sha256;
use crate::error::{At, Error, Result};
use crate::files::{WholeDirectory, folder_of, write_whole};
use crate::format::Format;
use crate::host::{Host, InsertedLayer};
use crate::stack::Form;
use crate::tensors::quoted;

use super::{Change, Cost, FOLDER, MANIFEST_FILE, Manifest, Plan, Progress, card, origins};

mod check;
mod layout;
mod shard;

pub use check::check;
use layout::{ATTENTION_NORM, DOWN_WEIGHT, EMBEDDING, Layout, MLP_NORM, O_BIAS, O_WEIGHT, Place, layer_name};
use shard::{Content, Entry, Source};

/// The configuration.
pub const CONFIG_FILE: &str = "config.json";
/// The weights, where they are in one file.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Which file holds which tensor, where they are in several.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// A copy of the source's configuration, beside the manifest.
pub const SOURCE_CONFIG_FILE: &str = "config.source.json";
const README: &str = "README.md";
const SOURCE_README: &str = "README.source.md";

/// No configuration or index is this long; what is longer is not read.
const MAX_JSON_BYTES: u64 = 256 << 20;
/// Rows of 16-bit numbers should begin at multiples of 16 bytes: kernels (and vLLM's norm on CPUs) insist.
const ALIGNMENT: usize = 8;
/// Weights in other formats: a copy of them would be the unspliced model.
const OTHER_WEIGHTS: [&str; 11] =
    ["safetensors", "bin", "pt", "pth", "ckpt", "gguf", "h5", "msgpack", "onnx", "ot", "tflite"];

/// An open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    config_text: Vec<u8>,
    config: Map<String, Value>,
    layout: Layout,
    host: Host,
    files: Files,
    /// tensors that are functions of the configuration and are not carried over
    derived: Vec<String>,
}

/// The files of weights of a checkpoint.
#[derive(Debug)]
struct Files {
    /// by name, in the order of their names
    shards: Vec<(String, Source)>,
    /// which shard holds a tensor
    holder: BTreeMap<String, usize>,
    /// the index file's content, where there is one
    index: Option<Map<String, Value>>,
}

impl Files {
    /// Opens what transformers would load: one file if it is there, else the shards of the index.
    fn open(dir: &Path) -> Result<Files> {
        let (names, index) = if dir.join(WEIGHTS_FILE).exists() {
            (vec![WEIGHTS_FILE.to_string()], None)
        } else if dir.join(INDEX_FILE).exists() {
            let (_, index) = object(&dir.join(INDEX_FILE))?;
            let place = || dir.join(INDEX_FILE).display().to_string();
            (shard_names(&index).at(place)?, Some(index))
        } else {
            let place = dir.display().to_string();
            let missing = Error::input(format!("no weights: neither {WEIGHTS_FILE} nor {INDEX_FILE}")).at(place);
            let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().any(|n| dir.join(n).exists());
            return Err(if pickled {
                missing.help(
                    "pytorch_model.bin is not read: convert it to safetensors (save_pretrained of transformers does)",
                )
            } else {
                missing
            });
        };
        let mut files = Files { shards: Vec::new(), holder: BTreeMap::new(), index };
        for name in names {
            let source = Source::open(&dir.join(&name))?;
            for tensor in source.header().names() {
                if let Some(other) = files.holder.insert(tensor.clone(), files.shards.len()) {
                    let first = files.shards.get(other).map_or("", |s| &s.0);
                    let what = format!("tensor {} is in {first} as well", quoted(&tensor));
                    return Err(Error::input(what).at(source.header().place()));
                }
            }
            files.shards.push((name, source));
        }
        if let Some(map) = files.index.as_ref().and_then(|i| i.get("weight_map")).and_then(Value::as_object) {
            let listed = map.iter().map(|(t, f)| (t.as_str(), f.as_str().unwrap_or_default()));
            let held = files.holder.iter().map(|(t, s)| (t.as_str(), files.shards[*s].0.as_str()));
            if let Some(difference) = first_difference(listed.collect(), held.collect()) {
                let what = format!("the index and the files disagree about tensor {}", quoted(difference));
                return Err(Error::input(what).at(dir.join(INDEX_FILE).display().to_string()));
            }
        }
        Ok(files)
    }

    fn find(&self, name: &str) -> Result<&Source> {
        let at = self.holder.get(name).and_then(|k| self.shards.get(*k));
        at.map(|s| &s.1).ok_or_else(|| Error::input(format!("no tensor {}", quoted(name))))
    }

    /// The number formats that there are, each with a tensor that has it.
    fn formats(&self, derived: &[String]) -> Result<BTreeMap<Format, String>> {
        let mut formats = BTreeMap::new();
        for name in self.holder.keys().filter(|n| !derived.contains(n)) {
            formats.entry(self.find(name)?.header().tensor(name)?.format()).or_insert_with(|| name.clone());
        }
        Ok(formats)
    }

    /// Are there exactly the tensors of this layout, in these shapes? `owner` names the configuration in errors.
    fn expect(&self, layout: &Layout, derived: &[String], owner: &str) -> Result<()> {
        let mut names = Vec::new();
        for place in layout.places() {
            let name = place.name();
            let Some(shard) = self.holder.get(&name) else {
                return Err(Error::input(format!("tensor {} is missing", quoted(&name)))
                    .help(format!("{owner} says that the model has it: {} layers", layout.layers)));
            };
            let header = self.shards[*shard].1.header();
            header.tensor(&name)?.expect_shape(&layout.shape(place.slot), &format!("what {owner} says"))?;
            names.push(name);
        }
        names.sort_unstable();
        let known = |n: &&String| names.binary_search(n).is_ok() || derived.contains(n);
        match self.holder.keys().find(|n| !known(n)) {
            Some(name) => Err(Error::input(format!("unexpected tensor {}", quoted(name)))
                .help(format!("a model as {owner} describes it has no such tensor: nothing may be lost by splicing"))),
            None => Ok(()),
        }
    }
}

/// The first name that stands in one of two lists only, or with another value; both ascending.
fn first_difference<'a>(a: Vec<(&'a str, &'a str)>, b: Vec<(&'a str, &'a str)>) -> Option<&'a str> {
    match a.iter().zip(&b).find(|(x, y)| x != y) {
        Some((x, y)) => Some(x.0.min(y.0)),
        None if a.len() == b.len() => None,
        None => a.get(b.len()).or(b.get(a.len())).map(|x| x.0),
    }
}

/// The files that an index names, sorted.
fn shard_names(index: &Map<String, Value>) -> Result<Vec<String>> {
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| Error::input("no weight_map: not an index of safetensors files"))?;
    let mut names = Vec::new();
    for file in map.values() {
        // A name, no path: nothing outside of the directory is read.
        let name = file.as_str().filter(|n| n.ends_with(".safetensors") && !n.contains(['/', '\\']));
        let name = name.ok_or_else(|| Error::input(format!("{} is no safetensors file", quoted(&file.to_string()))))?;
        names.push(name.to_string());
    }
    names.sort_unstable();
    names.dedup();
    if names.is_empty() { Err(Error::input("the index names no files")) } else { Ok(names) }
}

/// A JSON object and its text.
fn object(path: &Path) -> Result<(Vec<u8>, Map<String, Value>)> {
    let place = path.display().to_string();
    let failed = |e| Error::io("cannot read", e);
    let mut text = Vec::new();
    let file = fs::File::open(path).map_err(failed).at(|| place.clone())?;
    file.take(MAX_JSON_BYTES + 1).read_to_end(&mut text).map_err(failed).at(|| place.clone())?;
    if text.len() as u64 > MAX_JSON_BYTES {
        return Err(Error::input(format!("longer than {MAX_JSON_BYTES} bytes")).at(place));
    }
    match serde_json::from_slice(&text) {
        Ok(Value::Object(map)) => Ok((text, map)),
        Ok(_) => Err(Error::input("not a JSON object").at(place)),
        Err(e) => Err(Error::input(format!("malformed JSON: {e}")).at(place)),
    }
}

/// What stands in a directory, in order; names that are no UTF-8 aside.
fn names(dir: &Path) -> Result<Vec<String>> {
    let failed = |e| Error::io(format!("cannot read {}", dir.display()), e);
    let entries = fs::read_dir(dir).map_err(failed)?.collect::<std::io::Result<Vec<_>>>().map_err(failed)?;
    let mut names: Vec<String> = entries.iter().filter_map(|e| e.file_name().to_str().map(String::from)).collect();
    names.sort_unstable();
    Ok(names)
}

/// Would an engine take a file of that name for weights?
fn is_weights(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|e| e.to_str()).unwrap_or_default();
    OTHER_WEIGHTS.contains(&extension) || name.ends_with(".index.json")
}

fn pretty(map: &Map<String, Value>) -> Vec<u8> {
    let mut text = serde_json::to_string_pretty(map).expect("JSON that was read can be written");
    text.push('\n');
    text.into_bytes()
}

impl Checkpoint {
    /// Reads the configuration and the headers of the weights, and checks that they agree in everything.
    ///
    /// Errors: a family that is not Llama's and cannot be written as Llama, quantised weights, tensors that are missing,
    /// superfluous, of another shape, or of several number formats.
    pub fn open(dir: &Path) -> Result<Checkpoint> {
        let (config_text, config) = object(&dir.join(CONFIG_FILE)).map_err(|e| match e.is_io() {
            true => e.help("a HuggingFace checkpoint is a directory with config.json and weights in safetensors"),
            false => e,
        })?;
        let place = || dir.join(CONFIG_FILE).display().to_string();
        let mut layout = Layout::parse(&config).at(place)?;
        let files = Files::open(dir)?;
        layout.head |= files.holder.contains_key("lm_head.weight");
        // Old conversions carry the rotary frequencies: engines compute them from the configuration.
        let derived = files.holder.keys().filter(|n| n.ends_with("rotary_emb.inv_freq")).cloned().collect::<Vec<_>>();
        files.expect(&layout, &derived, CONFIG_FILE).at(|| dir.display().to_string())?;
        let mut formats = files.formats(&derived)?.into_iter();
        let weights = match (formats.next(), formats.next()) {
            (Some((f, _)), None) => f,
            (Some((f, a)), Some((g, b))) => {
                return Err(Error::unsupported(format!("weights in several formats: {a} is {f}, {b} is {g}"))
                    .at(dir.display().to_string())
                    .help("convert all of them to one of f32, bf16 and f16"));
            }
            (None, _) => return Err(Error::input("no tensors").at(dir.display().to_string())),
        };
        if weights == Format::F64 {
            return Err(Error::unsupported("f64 weights").at(dir.display().to_string()).help("convert them to f32"));
        }
        let stream = layout.dtype.unwrap_or(weights);
        if !stream.holds(weights) {
            return Err(Error::input(format!("the weights are {weights}, and config.json asks for {stream}"))
                .at(place())
                .help(format!("engines would convert them on loading: write dtype {weights} in config.json")));
        }
        let host = Host {
            hidden_size: layout.hidden,
            intermediate_size: layout.intermediate,
            layers: layout.layers,
            source: layout.activation.clone(),
            form: Form::Gated,
            norm_eps: layout.eps,
            weights,
            gains: weights,
            stream,
            multiple: lcm(layout.heads, ALIGNMENT),
        };
        Ok(Checkpoint { dir: dir.to_path_buf(), config_text, config, layout, host, files, derived })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.dir
    }

    /// Bytes of its files of weights.
    pub(super) fn bytes(&self) -> u64 {
        let size = |(name, _): &(String, _)| fs::metadata(self.dir.join(name)).map_or(0, |m| m.len());
        self.files.shards.iter().map(size).sum()
    }

    /// What its decoder offers.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its architecture's name.
    pub fn architecture(&self) -> &str {
        self.layout.family.architecture()
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The mean square of each coordinate's rows in what writes it (embedding, o_proj and down_proj up to a layer), relative to
    /// the writer's average, averaged over the writers.
    pub(super) fn loudness(&self, layer: usize) -> Result<Vec<f64>> {
        let d = self.layout.hidden;
        let mut total = vec![0.0; d];
        let mut writers = 0.0;
        let mut add = |mut square: Vec<f64>| {
            let mean = square.iter().sum::<f64>() / d as f64;
            if mean > 0.0 {
                square.iter_mut().for_each(|x| *x /= mean);
                total.iter_mut().zip(&square).for_each(|(t, x)| *t += x);
                writers += 1.0;
            }
        };
        let mut square = vec![0.0; d];
        self.files.find(EMBEDDING.name)?.numbers(EMBEDDING.name, |_, row| {
            square.iter_mut().zip(row).for_each(|(s, x)| *s += x * x);
        })?;
        add(square);
        for slot in (0..=layer).flat_map(|l| [layer_name(l, O_WEIGHT), layer_name(l, DOWN_WEIGHT)]) {
            let mut square = vec![0.0; d];
            self.files.find(&slot)?.numbers(&slot, |k, row| square[k] = row.iter().map(|x| x * x).sum())?;
            add(square);
        }
        Ok(total.into_iter().map(|x| x / f64::max(writers, 1.0)).collect())
    }

    fn spliced(&self, carriers: &Carriers, inserted: usize) -> Layout {
        self.layout.spliced(carriers.hidden_size, inserted, carriers.kind == Kind::Borrowed)
    }

    /// What a splice costs.
    pub(super) fn cost(&self, carriers: &Carriers, inserted: usize) -> Cost {
        let (from, to) = (&self.layout, &self.spliced(carriers, inserted));
        let change = |f: &dyn Fn(&Layout) -> u64| Change { before: f(from), after: f(to) };
        let size = self.host.weights.bytes() as u64;
        let numbers = |l: &Layout| l.places().iter().map(|p| l.numbers(p.slot)).sum::<u64>();
        Cost {
            layers: change(&|l| l.layers as u64),
            hidden_size: change(&|l| l.hidden as u64),
            parameters: change(&numbers),
            bytes: change(&|l| size * numbers(l)),
            // Of a table that is no head as well, a token reads one row.
            read: change(&|l| size * (numbers(l) - if l.head { l.numbers(&EMBEDDING) - l.hidden as u64 } else { 0 })),
            cache: change(&|l| (l.layers * 2 * l.key_heads * l.head_dim * self.host.stream.bytes()) as u64),
        }
    }

    /// What whoever runs the result should know.
    pub(super) fn notes(&self, carriers: &Carriers) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        if self.architecture() != "LlamaForCausalLM" {
            notes.push(format!("{} is written as LlamaForCausalLM, which computes the same", self.architecture()));
        }
        if !self.derived.is_empty() {
            notes.push("rotary frequencies (inv_freq) are left out: engines compute them from config.json".into());
        }
        if self.host.source != Activation::Silu {
            notes.push(format!("vLLM's Llama knows silu only, not {}", self.host.source));
        }
        if carriers.kind == Kind::Padded {
            let (mean, largest) = self.gain_rounding(carriers.other_gains())?;
            notes.push(format!(
                "padding multiplies the gains of the model's norms by √({}/{}); rounded to {}, they are off by {mean:.1e} on average and {largest:.1e} at most, relatively",
                carriers.live, carriers.hidden_size, self.host.gains
            ));
        }
        Ok(notes)
    }

    /// The relative rounding of all norms' scaled gains: root mean square, largest.
    fn gain_rounding(&self, scale: f64) -> Result<(f64, f64)> {
        let (mut sum, mut count, mut largest) = (0.0, 0.0, 0.0f64);
        for place in self.layout.places().iter().filter(|p| p.slot.is_gain()) {
            let name = place.name();
            self.files.find(&name)?.numbers(&name, |_, row| {
                for exact in row.iter().map(|g| g * scale).filter(|g| *g != 0.0) {
                    let error = (self.host.gains.round(exact) / exact - 1.0).abs();
                    sum += error * error;
                    count += 1.0;
                    largest = largest.max(error);
                }
            })?;
        }
        Ok(((sum / f64::max(count, 1.0)).sqrt(), largest))
    }

    /// Refuses an output that must not be written to.
    pub(super) fn vacant(&self, output: &Path, force: bool, kept: &[&Path]) -> Result<()> {
        let place = || output.display().to_string();
        if output.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            return Err(Error::input("a HuggingFace checkpoint becomes a directory, not a GGUF file")
                .at(place())
                .help("name a directory; a GGUF file is spliced from a GGUF file"));
        }
        let parent = folder_of(output);
        let real = |p: &Path| fs::canonicalize(p).map_err(|e| Error::io(format!("cannot find {}", p.display()), e));
        let (source, parent) = (real(&self.dir)?, real(parent)?);
        let target = match fs::canonicalize(output) {
            Ok(path) => path,
            Err(_) => parent.join(output.file_name().ok_or_else(|| Error::input("no directory's name").at(place()))?),
        };
        if target.starts_with(&source) || source.starts_with(&target) {
            return Err(Error::input("the output lies in the source, or the source in it")
                .at(place())
                .help("name another directory: the source is only read"));
        }
        if fs::symlink_metadata(output).is_err() {
            return Ok(());
        }
        if !force {
            return Err(Error::input("is there already")
                .at(place())
                .help("name another directory, or replace an earlier splice with --force"));
        }
        let empty = || fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_none());
        let ours = output.join(FOLDER).join(MANIFEST_FILE).is_file();
        if !output.is_dir() || fs::symlink_metadata(output).is_ok_and(|m| m.is_symlink()) || !(ours || empty()) {
            return Err(Error::input(format!("is not empty and holds no {FOLDER}/{MANIFEST_FILE}: not replaced"))
                .at(place())
                .help("--force replaces what `neurograft splice` has written, nothing else"));
        }
        if let Some(p) = kept.iter().find(|p| real(p).is_ok_and(|p| p.starts_with(&target))) {
            return Err(Error::input(format!("{} lies in it: it would be lost", p.display())).at(place()));
        }
        match self.strangers(output)?.first() {
            Some(name) => Err(Error::input(format!("holds {name}, which is no part of a splice: it would be lost"))
                .at(place())
                .help("move it away, or name another directory")),
            None => Ok(()),
        }
    }

    /// What stands in an earlier splice's directory that a splice of this checkpoint does not write.
    fn strangers(&self, output: &Path) -> Result<Vec<String>> {
        let mut known: BTreeSet<String> = self.others()?.into_iter().collect();
        known.extend([CONFIG_FILE, INDEX_FILE, README, SOURCE_README, FOLDER].map(String::from));
        if let Ok(manifest) = Manifest::read(&output.join(FOLDER)) {
            known.extend(manifest.files.into_keys());
        }
        let mut names = names(output)?;
        names.retain(|n| !known.contains(n));
        Ok(names)
    }

    /// Writes the spliced checkpoint.
    ///
    /// Errors: a disk that is full or fails; nothing is left behind then.
    pub(super) fn write(&self, plan: &Plan, spec: &Path, output: &Path, progress: Progress<'_>) -> Result<()> {
        let to = self.spliced(&plan.carriers, plan.inserted());
        let layers: Vec<(usize, &[InsertedLayer])> = plan.sites.iter().map(|s| (s.layer, &s.layers[..])).collect();
        let entries = entries(&self.layout, &to, &plan.carriers, &layers);
        let others = self.others()?;
        self.has_room(plan, &others, output)?;

        let whole = WholeDirectory::new(output)?;
        let dir = whole.path();
        let files = self.write_weights(dir, entries, plan, progress)?;
        write_whole(&dir.join(CONFIG_FILE), &pretty(&self.spliced_config(plan, &to)))?;
        for name in &others {
            let to = if name == README { SOURCE_README } else { name };
            let copied = fs::copy(self.dir.join(name), dir.join(to));
            copied.map_err(|e| Error::io(format!("cannot copy {name} to {}", output.display()), e))?;
        }
        let readme = fs::read_to_string(self.dir.join(README)).unwrap_or_default();
        let id = self.config.get("_name_or_path").and_then(Value::as_str);
        write_whole(&dir.join(README), card::model_card(plan, &readme, id).as_bytes())?;
        let folder = dir.join(FOLDER);
        let manifest = plan.manifest(sha256(&self.config_text), files);
        plan.write_folder(&folder, spec, &manifest)?;
        write_whole(&folder.join(SOURCE_CONFIG_FILE), &self.config_text)?;
        whole.persist()
    }

    fn spliced_config(&self, plan: &Plan, to: &Layout) -> Map<String, Value> {
        let counts: Vec<(usize, usize)> = plan.sites.iter().map(|s| (s.layer, s.layers.len())).collect();
        let eps = self.host.norm_eps * plan.carriers.other_eps();
        layout::config(&self.config, &self.layout, to, eps, &origins(self.layout.layers, &counts))
    }

    /// Writes every shard and the index; returns the hashes of the shards.
    fn write_weights(
        &self,
        dir: &Path,
        entries: Vec<(Entry<'_>, String)>,
        plan: &Plan,
        progress: Progress<'_>,
    ) -> Result<BTreeMap<String, String>> {
        let mut shards: Vec<Vec<Entry<'_>>> = self.files.shards.iter().map(|_| Vec::new()).collect();
        let mut map = Map::new();
        for (entry, beside) in entries {
            let shard = self.files.holder.get(&beside).copied().unwrap_or_default();
            map.insert(entry.name.clone(), json!(self.files.shards[shard].0));
            shards[shard].push(entry);
        }
        let mut files = BTreeMap::new();
        let mut done = 0;
        for ((name, _), entries) in self.files.shards.iter().zip(&shards) {
            let find = |tensor: &str| self.files.find(tensor);
            let mut advance = |bytes| {
                done += bytes;
                progress("bytes written", done, plan.cost.bytes.after);
            };
            let hash = shard::write(&dir.join(name), entries, self.host.weights, &find, &mut advance)?;
            files.insert(name.clone(), hash);
        }
        if let Some(source) = &self.files.index {
            write_whole(&dir.join(INDEX_FILE), &pretty(&index(source, map, &plan.cost)))?;
        }
        Ok(files)
    }

    /// The source's other files, by name.
    fn others(&self) -> Result<Vec<String>> {
        let mut names = names(&self.dir)?;
        // A link in a cache counts as what it points to.
        names.retain(|name| fs::metadata(self.dir.join(name)).is_ok_and(|m| m.is_file()));
        names.retain(|name| !is_weights(name) && ![CONFIG_FILE, "params.json", SOURCE_README].contains(&name.as_str()));
        Ok(names)
    }

    fn has_room(&self, plan: &Plan, others: &[String], output: &Path) -> Result<()> {
        let size = |name: &String| fs::metadata(self.dir.join(name)).map_or(0, |m| m.len());
        // Headers and what travels in the folder take a few megabytes.
        let need = plan.cost.bytes.after + others.iter().map(size).sum::<u64>() + (16 << 20);
        super::has_room(output, need)
    }
}

/// Every tensor of the spliced checkpoint, and the source's tensor whose file it goes to.
fn entries<'a>(
    from: &Layout,
    to: &Layout,
    carriers: &Carriers,
    sites: &[(usize, &'a [InsertedLayer])],
) -> Vec<(Entry<'a>, String)> {
    let counts: Vec<(usize, usize)> = sites.iter().map(|(l, s)| (*l, s.len())).collect();
    let origins = origins(from.layers, &counts);
    let scale = (carriers.hidden_size != carriers.live).then(|| carriers.other_gains());
    let entry = |place: &Place| {
        let (content, beside) = match place.layer {
            None => source(*place, from, scale),
            Some(layer) => {
                let origin = origins[layer];
                // The layer itself comes first, then those that were inserted after it.
                let k = layer - origins.partition_point(|o| *o < origin);
                let mut inserted = sites.iter().filter(|s| s.0 == origin).flat_map(|s| s.1);
                match k.checked_sub(1).and_then(|k| inserted.nth(k)) {
                    None => source(Place { layer: Some(origin), ..*place }, from, scale),
                    Some(inserted) => (content(inserted, place.slot.name, carriers), layer_name(origin, DOWN_WEIGHT)),
                }
            }
        };
        (Entry { name: place.name(), shape: to.shape(place.slot), content }, beside)
    };
    to.places().iter().map(entry).collect()
}

/// What a tensor of the source becomes, or zeros where the source has no such tensor, and which of its tensors it stays with.
fn source(place: Place, from: &Layout, scale: Option<f64>) -> (Content<'static>, String) {
    let name = place.name();
    if !from.has(place.slot) {
        let weight = name.strip_suffix(".bias").map_or(name.clone(), |n| format!("{n}.weight"));
        return (Content::Zeros, weight);
    }
    (Content::Source { name: name.clone(), scale: scale.filter(|_| place.slot.is_gain()) }, name)
}

/// A tensor of an inserted layer.
fn content<'a>(inserted: &'a InsertedLayer, slot: &str, carriers: &Carriers) -> Content<'a> {
    let mlp = &inserted.mlp;
    let bias =
        |v: &Option<nalgebra::DVector<f64>>| v.as_ref().map_or(Content::Zeros, |v| Content::vector(v.as_slice()));
    let matrix = |m: &'a DMatrix<f64>| Content::Numbers(Cow::Borrowed(m));
    match slot {
        // Its attention is 0: any gain would do, and 1 is plain.
        ATTENTION_NORM => Content::vector(&vec![1.0; carriers.live]),
        O_BIAS => Content::vector(&inserted.writer),
        MLP_NORM => Content::vector(&inserted.gain),
        "mlp.gate_proj.weight" => matrix(&mlp.gate),
        "mlp.up_proj.weight" => mlp.up.as_ref().map_or(Content::Zeros, matrix),
        DOWN_WEIGHT => matrix(&mlp.down),
        "mlp.gate_proj.bias" => bias(&mlp.gate_bias),
        "mlp.up_proj.bias" => bias(&mlp.up_bias),
        "mlp.down_proj.bias" => bias(&mlp.down_bias),
        _ => Content::Zeros,
    }
}

/// The index of the spliced checkpoint.
fn index(source: &Map<String, Value>, map: Map<String, Value>, cost: &Cost) -> Map<String, Value> {
    let mut index = source.clone();
    let mut metadata = index.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    metadata.insert("total_size".into(), json!(cost.bytes.after));
    if metadata.contains_key("total_parameters") {
        metadata.insert("total_parameters".into(), json!(cost.parameters.after));
    }
    index.insert("metadata".into(), Value::Object(metadata));
    index.insert("weight_map".into(), Value::Object(map));
    index
}

fn lcm(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}
