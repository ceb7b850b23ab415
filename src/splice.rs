//! Splicing: certified blocks become extra decoder layers of a checkpoint.
//!
//! [`splice`] reads as this list:
//!
//! ```text
//! checkpoint → host → sites (where, which SAE, which responses) → blocks with certificates → carriers
//!            → decoder layers → a plan and its cost → files
//! ```
//!
//! What a checkpoint's files look like is known to the containers only ([`hf`], [`mod@gguf`]); what is here serves them all: the plan,
//! the manifest that travels with a spliced checkpoint, and [`check`], which derives everything anew from it.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nalgebra::DMatrix;
use serde::{Deserialize, Serialize};

use crate::carriers::{Carriers, Kind};
use crate::certificate::CertificateFile;
use crate::compile::{Compiled, Depth, Draft, Options, Target, draft};
use crate::derive::Reading;
use crate::error::{At, Error, Result};
use crate::files::{folder_of, write_whole};
use crate::format::Format;
use crate::host::{Host, InsertedLayer, lower};
use crate::intervention;
use crate::sae::{Sae, layer_of};
use crate::spec::Spec;
use crate::tensors::valid_range;
use crate::verify::verify;

pub mod card;
pub mod gguf;
pub mod hf;
mod quiet;
pub mod selftest;

/// The directory of a spliced checkpoint that holds what travels with it.
pub const FOLDER: &str = "neurograft";
/// The manifest's name in it.
pub const MANIFEST_FILE: &str = "splice.json";
/// The version of the manifest.
pub const VERSION: u32 = 1;

/// Which carriers to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// padded; borrowed where padding is impossible and the stream is f32
    #[default]
    Auto,
    /// new coordinates
    Padded,
    /// coordinates of the model itself
    Borrowed,
}

impl FromStr for Choice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Choice::Auto),
            "padded" => Ok(Choice::Padded),
            "borrowed" => Ok(Choice::Borrowed),
            _ => Err(Error::input(format!("'{}' is no kind of carriers", text.escape_debug()))
                .help("auto, padded or borrowed")),
        }
    }
}

/// How to splice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SpliceOptions {
    /// which carriers
    pub carriers: Choice,
    /// the coordinates to borrow, best first; empty: the program chooses
    pub borrow: Vec<usize>,
    /// how many layers a site may take; `None`: as the specification says
    pub depth: Option<Depth>,
    /// plan only
    pub dry_run: bool,
    /// replace an earlier splice
    pub force: bool,
    /// make a self-test that travels with the result
    pub selftest: selftest::Wish,
}

/// Hears (stage, done, all) as the work goes on.
pub type Progress<'a> = &'a (dyn Fn(&str, u64, u64) + Sync);

/// One insertion, ready to be written.
#[derive(Clone, Debug)]
pub struct PlannedSite {
    /// the layer of the source whose output is intervened on
    pub layer: usize,
    /// the numbers that the inserted layers get
    pub inserted: Range<usize>,
    /// the SAE as the specification names it, its model and its hook
    pub origin: Origin,
    /// the intervention
    pub target: Target,
    /// what each entry reads and writes, in words
    pub legend: Vec<String>,
    /// bound on ‖x‖ for which the certificate speaks
    pub norm: Option<f64>,
    /// the certified block, or two
    pub compiled: Compiled,
    /// the same, as weights of decoder layers
    pub layers: Vec<InsertedLayer>,
}

/// Where a site's features come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// the SAE's path in the specification, if it names one
    pub sae: Option<PathBuf>,
    /// the model that the SAE was trained on
    pub model: Option<String>,
    /// where in it
    pub hook: Option<String>,
}

/// A quantity in the source and in the spliced checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// in the source
    pub before: u64,
    /// in the spliced checkpoint
    pub after: u64,
}

impl Change {
    /// after/before − 1
    pub fn growth(&self) -> f64 {
        self.after as f64 / self.before.max(1) as f64 - 1.0
    }
}

/// What a splice costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// decoder layers
    pub layers: Change,
    /// hidden size
    pub hidden_size: Change,
    /// weights and biases
    pub parameters: Change,
    /// their bytes in the files
    pub bytes: Change,
    /// bytes of weights that one token reads at batch 1: its growth is the time that is added where memory is the limit
    pub read: Change,
    /// bytes of keys and values that one token leaves in the cache, in the stream's format
    pub cache: Change,
}

/// All that is decided before anything is written.
#[derive(Clone, Debug)]
pub struct Plan {
    /// the source's architecture, by its own name
    pub architecture: String,
    /// what its decoder offers
    pub host: Host,
    /// how the norm is neutralised, the same for all sites
    pub carriers: Carriers,
    /// ascending
    pub sites: Vec<PlannedSite>,
    /// what it costs
    pub cost: Cost,
    /// what whoever runs the result should know
    pub notes: Vec<String>,
    /// what an engine must find
    pub selftest: Option<selftest::SelfTest>,
}

impl Plan {
    /// Is every tolerance met?
    pub fn met(&self) -> bool {
        self.sites.iter().all(|s| s.compiled.met())
    }

    /// How many layers are inserted.
    pub fn inserted(&self) -> usize {
        self.sites.iter().map(|s| s.layers.len()).sum()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&card::plan(self))
    }
}

/// `neurograft/splice.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// 1
    pub version: u32,
    /// the version of the program that wrote it
    pub neurograft: String,
    /// the source's architecture
    pub architecture: String,
    /// SHA-256 of the source's configuration (config.json; the metadata of a GGUF file)
    pub source_sha256: String,
    /// what the source's decoder offers
    pub host: Host,
    /// how the norm is neutralised
    pub carriers: Carriers,
    /// ascending
    pub sites: Vec<ManifestSite>,
    /// what it costs
    pub cost: Cost,
    /// SHA-256 of the checkpoint's files of weights
    pub files: BTreeMap<String, String>,
}

/// One insertion in the manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestSite {
    /// the layer of the source whose output is intervened on
    pub layer: usize,
    /// the numbers of the inserted layers
    pub inserted: Vec<usize>,
    /// bound on ‖x‖ for which the certificate speaks
    pub norm: Option<f64>,
    /// where block and certificate are, beside the manifest
    pub directory: String,
    /// where the features come from
    pub origin: Origin,
}

/// A checkpoint, by what it is kept in.
enum Checkpoint {
    HuggingFace(Box<hf::Checkpoint>),
    Gguf(Box<gguf::Checkpoint>),
}

/// The same question to either kind.
macro_rules! ask {
    ($checkpoint:expr, $c:ident => $answer:expr) => {
        match $checkpoint {
            Checkpoint::HuggingFace($c) => $answer,
            Checkpoint::Gguf($c) => $answer,
        }
    };
}

impl Checkpoint {
    /// A directory is a HuggingFace checkpoint, a file a GGUF file.
    fn open(path: &Path) -> Result<Checkpoint> {
        if path.is_dir() {
            return hf::Checkpoint::open(path).map(|c| Checkpoint::HuggingFace(Box::new(c)));
        }
        if path.is_file() && !is_gguf(path) {
            return Err(Error::input(format!("no checkpoint: {} is no GGUF file", path.display()))
                .help("name a .gguf file, or the directory that holds config.json and the weights in safetensors"));
        }
        if !path.exists() && !is_gguf(path) {
            return Err(Error::io(format!("no checkpoint: {}", path.display()), std::io::ErrorKind::NotFound.into())
                .help("name a directory or a .gguf file; a model of a hub is downloaded first (hf download MODEL --local-dir DIR)"));
        }
        gguf::Checkpoint::open(path).map(|c| Checkpoint::Gguf(Box::new(c)))
    }

    fn host(&self) -> &Host {
        ask!(self, c => c.host())
    }

    fn architecture(&self) -> &str {
        ask!(self, c => c.architecture())
    }

    /// How loud each coordinate of the stream is after a layer, relative to the average, judged by the weights that write it.
    fn loudness(&self, layer: usize) -> Result<Vec<f64>> {
        ask!(self, c => c.loudness(layer))
    }

    /// The directory, or the file.
    fn path(&self) -> &Path {
        ask!(self, c => c.path())
    }

    /// Where the manifest of a splice would be.
    fn folder(&self) -> PathBuf {
        match self {
            Checkpoint::HuggingFace(_) => self.path().join(FOLDER),
            Checkpoint::Gguf(_) => gguf::folder(self.path()),
        }
    }

    /// Bytes of weights.
    fn bytes(&self) -> u64 {
        ask!(self, c => c.bytes())
    }

    fn cost(&self, carriers: &Carriers, sites: &[PlannedSite]) -> Result<Cost> {
        match self {
            Checkpoint::HuggingFace(c) => Ok(c.cost(carriers, sites.iter().map(|s| s.layers.len()).sum())),
            Checkpoint::Gguf(c) => c.cost(carriers, sites),
        }
    }

    fn notes(&self, carriers: &Carriers) -> Result<Vec<String>> {
        ask!(self, c => c.notes(carriers))
    }

    /// Refuses an output that must not be written to, before any work is done.
    fn vacant(&self, output: &Path, force: bool, kept: &[&Path]) -> Result<()> {
        ask!(self, c => c.vacant(output, force, kept))
    }

    fn write(&self, plan: &Plan, spec: &Path, output: &Path, progress: Progress<'_>) -> Result<()> {
        ask!(self, c => c.write(plan, spec, output, progress))
    }
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

/// The source's layer that each layer of the spliced model is or follows. `sites`: layers, and how many follow each.
fn origins(layers: usize, sites: &[(usize, usize)]) -> Vec<usize> {
    let inserted = |l: usize| sites.iter().filter(|s| s.0 == l).map(|s| s.1).sum::<usize>();
    (0..layers).flat_map(|l| std::iter::repeat_n(l, 1 + inserted(l))).collect()
}

/// Refuses an output that the disk has no room for.
fn has_room(output: &Path, need: u64) -> Result<()> {
    match fs4::available_space(folder_of(output)) {
        Ok(free) if free < need => Err(Error::io(
            format!("{}: {} needed, {} free", output.display(), card::bytes(need), card::bytes(free)),
            std::io::ErrorKind::StorageFull.into(),
        )),
        // Where the system does not say, writing will.
        _ => Ok(()),
    }
}

/// Splices a specification's blocks into a checkpoint: plans, and writes unless it is a dry run.
///
/// Errors: whatever makes the specification, the checkpoint or the two together impossible; an output that is there
/// already. The source is only read, and nothing half-written stays behind.
pub fn splice(
    spec_path: &Path,
    model: &Path,
    output: Option<&Path>,
    options: &SpliceOptions,
    progress: Progress<'_>,
) -> Result<Plan> {
    let specs = Spec::read_all(spec_path)?;
    let checkpoint = Checkpoint::open(model)?;
    let output = match output {
        Some(output) => {
            let inputs =
                |s: &Spec| s.sae.iter().chain(s.vectors.values().map(|v| &v.file)).cloned().collect::<Vec<_>>();
            let inputs: Vec<PathBuf> = specs.iter().flat_map(inputs).collect();
            let kept: Vec<&Path> = inputs.iter().map(|p| &**p).chain([spec_path]).collect();
            checkpoint.vacant(output, options.force, &kept)?;
            Some(output)
        }
        None if options.dry_run => None,
        None => return Err(Error::input("no output is named").help("--output, or --dry-run for a plan")),
    };
    let again = checkpoint.folder().join(MANIFEST_FILE).is_file();
    let mut plan = plan(&specs, &checkpoint, options, progress).map_err(|e| match again {
        true if e.is_input() => e.at(format!("{} is a splice itself", model.display())),
        _ => e,
    })?;
    plan.notes.extend(plan.sites.iter().filter_map(|s| another_model(s, model)));
    plan.notes.extend(plan.sites.iter().filter_map(another_layer));
    plan.notes.extend(specs.iter().flat_map(Spec::overlaps).map(|w| format!("WARNING: {w}")));
    if again {
        plan.notes.push(
            "the checkpoint is a splice itself: its layers are counted with those inserted before, and its own certificates say \
             nothing of the new one"
                .into(),
        );
    }
    let mut said = std::collections::BTreeSet::new();
    plan.notes.retain(|note| said.insert(note.clone()));
    // Whoever gets the result has no use for the path of our specification.
    for site in &mut plan.sites {
        if let Some(sae) = &mut site.origin.sae
            && let Ok(written) = sae.strip_prefix(folder_of(spec_path))
        {
            *sae = written.to_path_buf();
        }
    }
    if let (Some(output), false) = (output, options.dry_run) {
        let size = plan.cost.bytes.before;
        match options.selftest {
            selftest::Wish::Never => {}
            selftest::Wish::Usual if size > selftest::USUAL_LIMIT => plan.notes.push(format!(
                "no self-test: it would read {} of weights in f64; --selftest makes one all the same",
                card::bytes(size)
            )),
            _ => {
                progress("self-test", 0, 1);
                let test = selftest::make(model, &plan)?;
                plan.notes.push(test.to_string());
                plan.selftest = Some(test);
            }
        }
        checkpoint.write(&plan, spec_path, output, progress)?;
    }
    Ok(plan)
}

/// One place of a specification: the layer and what is done after it.
struct Site<'a> {
    spec: &'a Spec,
    layer: usize,
    origin: Origin,
    target: Target,
    legend: Vec<String>,
}

/// Decides everything: compiles the blocks, chooses the carriers, lowers.
fn plan(specs: &[Spec], checkpoint: &Checkpoint, options: &SpliceOptions, progress: Progress<'_>) -> Result<Plan> {
    let host = checkpoint.host();
    let sites = sites(specs, host)?;
    let kinds: &[Kind] = match (options.carriers, options.borrow.is_empty()) {
        (Choice::Padded, false) => {
            return Err(Error::input("coordinates to borrow, and carriers = padded").help("leave one of them out"));
        }
        (Choice::Padded, true) => &[Kind::Padded],
        (Choice::Borrowed, _) | (Choice::Auto, false) => &[Kind::Borrowed],
        // In 16 bits borrowing costs a hundredth of x_j: nobody should get that without asking.
        (Choice::Auto, true) if host.stream == Format::F32 && sites.iter().all(|s| s.spec.domain.norm.is_some()) => {
            &[Kind::Padded, Kind::Borrowed]
        }
        (Choice::Auto, true) => &[Kind::Padded],
    };
    let mut refusals = Vec::new();
    for kind in kinds {
        match insertions(checkpoint, &sites, *kind, options, progress) {
            Ok((carriers, planned, note)) => {
                let mut notes = checkpoint.notes(&carriers)?;
                notes.extend(note);
                notes.extend(refusals.iter().map(|e: &Error| format!("padded carriers are impossible here: {e}")));
                notes.extend(card::notes(&carriers, host, &planned));
                return Ok(Plan {
                    architecture: checkpoint.architecture().to_string(),
                    host: host.clone(),
                    cost: checkpoint.cost(&carriers, &planned)?,
                    carriers,
                    sites: planned,
                    notes,
                    selftest: None,
                });
            }
            Err(e) if e.is_unsupported() => refusals.push(e),
            Err(e) => return Err(e),
        }
    }
    Err(refusals.swap_remove(0))
}

/// Where a specification intervenes, ascending, each with its target.
fn sites<'a>(specs: &'a [Spec], host: &Host) -> Result<Vec<Site<'a>>> {
    let mut sites = specs.iter().map(|spec| site(spec, host)).collect::<Result<Vec<_>>>()?;
    sites.sort_by_key(|s| s.layer);
    // The steps of a sequence follow one another after the same layer.
    match sites.windows(2).find(|w| w[0].layer == w[1].layer && w[1].spec.step == 0) {
        Some(w) => Err(Error::input(format!("two sites after layer {}", w[0].layer))
            .help("put all interventions at one layer into one site")),
        None => Ok(sites),
    }
}

fn site<'a>(spec: &'a Spec, host: &Host) -> Result<Site<'a>> {
    let sae = intervention::open(spec)?;
    let place = || spec.sae.as_ref().map_or("the specification".into(), |sae| sae.display().to_string());
    let (target, legend) = intervention::described(spec, sae.as_ref())?;
    let width = target.responses.first().map_or(host.hidden_size, |r| r.write.len());
    if width != host.hidden_size {
        return Err(Error::input(format!(
            "the {} a stream of width {width}, the model's is {}",
            if sae.is_some() { "SAE reads" } else { "vectors are of" },
            host.hidden_size
        ))
        .at(place())
        .help(format!(
            "use one that was made for this model{}",
            if host.hidden_size > width { "; if this checkpoint is a splice, whose stream is wider, name its source, and all interventions at once: [[sites]], or sequence = true" } else { "" }
        )));
    }
    let layer = match (spec.layer, &sae) {
        (Some(layer), _) => layer,
        (None, Some(sae)) => own_layer(sae.hook_name()).at(place)?,
        (None, None) => {
            return Err(Error::input("vectors do not say which layer they are for")
                .help("write layer = N in the specification: the layer after which to intervene"));
        }
    };
    if layer >= host.layers {
        let error = Error::input(format!("layer {layer}: the model has no layer {layer}"));
        let error = error.help(valid_range("layers", host.layers));
        // Whose fault it is: the specification's, or what the SAE says of itself.
        return Err(if spec.layer.is_some() { error } else { error.at(place()) });
    }
    let said = |of: fn(&Sae) -> Option<&str>| sae.as_ref().and_then(of).map(String::from);
    let origin = Origin { sae: spec.sae.clone(), model: said(Sae::model_name), hook: said(Sae::hook_name) };
    Ok(Site { spec, layer, origin, target, legend })
}

/// A hint where an SAE was trained on a model that the checkpoint's path does not name.
fn another_model(site: &PlannedSite, model: &Path) -> Option<String> {
    let letters = |text: &str| text.to_lowercase().chars().filter(|c| c.is_alphanumeric()).collect::<String>();
    let named = site.origin.model.as_deref()?;
    let short = letters(named.rsplit('/').next().unwrap_or(named));
    let path = model.canonicalize().ok()?;
    let last = letters(&path.file_stem()?.to_string_lossy());
    if letters(&path.to_string_lossy()).contains(&short) || short.contains(&last) {
        return None;
    }
    Some(format!(
        "the SAE at layer {} was trained on {}, which the checkpoint's name does not say: features of one model mean \
         nothing in another",
        site.layer,
        named.escape_debug()
    ))
}

/// A hint where an SAE says that it was trained on the stream after another layer.
fn another_layer(site: &PlannedSite) -> Option<String> {
    let own = layer_of(site.origin.hook.as_deref()?).filter(|own| *own != site.layer)?;
    Some(format!(
        "the SAE was trained on the stream after layer {own}, and the specification says layer = {}: its features may mean \
         nothing there",
        site.layer
    ))
}

/// The layer after which an SAE reads the stream.
fn own_layer(hook: Option<&str>) -> Result<usize> {
    hook.and_then(layer_of).ok_or_else(|| {
        Error::input(match hook {
            Some(h) => format!("the hook '{}' is not the stream after a layer", h.escape_debug()),
            None => "the SAE does not say which layer it reads".into(),
        })
        .help("write layer = N in the specification: the layer after which to intervene")
    })
}

/// One site's weights under a host.
fn compile_site(
    site: &Site<'_>,
    host: &Host,
    kind: Kind,
    depth: Option<Depth>,
    progress: Progress<'_>,
) -> Result<Draft> {
    let samples = intervention::samples(site.spec, host.hidden_size)?;
    let asked = Options { samples, ..intervention::options(site.spec) };
    let depth = match (kind, depth.unwrap_or(asked.depth)) {
        // What passes between two layers must not meet x.
        (Kind::Borrowed, Depth::Auto) => Depth::One,
        (Kind::Borrowed, Depth::Two) => {
            return Err(Error::unsupported("two inserted layers need padded carriers").help("or layers = 1"));
        }
        (_, depth) => depth,
    };
    let options = Options {
        source: host.source.clone(),
        form: host.form,
        format: host.weights,
        biases: true,
        // With padded carriers a bias is a sum of weights on exact ones.
        bias_parts: if kind == Kind::Padded { host.bias_parts() } else { 1 },
        depth,
        ..asked
    };
    let drafted = draft(&site.target, &options, &|done, all| progress("responses", done as u64, all as u64));
    drafted.map_err(|e| match kind {
        Kind::Borrowed if e.is_unsupported() => e.help("use padded carriers, which serve two inserted layers as well"),
        _ => e,
    })
}

/// All sites under one kind of carriers, and what should be known of how those were chosen.
fn insertions(
    checkpoint: &Checkpoint,
    sites: &[Site<'_>],
    kind: Kind,
    options: &SpliceOptions,
    progress: Progress<'_>,
) -> Result<(Carriers, Vec<PlannedSite>, Option<String>)> {
    let host = checkpoint.host();
    let mut note = None;
    let place = |s: &Site<'_>| format!("layer {}", s.layer);
    let drafts = sites
        .iter()
        .map(|s| compile_site(s, host, kind, options.depth, progress).at(|| place(s)))
        .collect::<Result<Vec<Draft>>>()?;
    // The same carriers serve all sites: those that the largest residual needs.
    let norms = sites.iter().map(|s| s.spec.domain.norm).collect::<Option<Vec<f64>>>();
    let norm = norms.map(|n| n.into_iter().fold(0.0, f64::max));
    let carriers = match kind {
        Kind::Padded => {
            let insertions: Vec<_> = drafts.iter().map(Draft::insertion).collect();
            let guards = insertions.iter().map(|i| i.guards).max().unwrap_or(0);
            let reach = insertions.iter().map(|i| i.reach).fold(0.0, f64::max);
            Carriers::padded(host.hidden_size, host.multiple, host.bias_parts(), guards, host.stream, norm, reach)?
        }
        Kind::Borrowed => {
            let norm = norm.ok_or_else(|| {
                Error::input("borrowed carriers need domain.norm: their size is a compromise that depends on ‖x‖")
                    .help("give domain.norm, a bound on the norm of the residuals, or use padded carriers")
            })?;
            let quiet = quiet::pool(checkpoint, sites, &options.borrow, progress)?;
            let read = sites.iter().flat_map(|s| &s.target.responses).flat_map(|r| &r.pre_activations);
            let rows: Vec<&[f64]> = read.map(|p| p.w.as_slice()).collect();
            let carriers = Carriers::borrowed(host.hidden_size, &quiet.pool, &rows, host.stream, norm)?;
            note = quiet.note.or_else(|| {
                let open = sites.iter().any(|s| s.spec.domain.borrowed.is_none());
                let (largest, tokens) = quiet.seen.filter(|_| open)?;
                Some(card::unbounded(&carriers, norm, &largest, tokens))
            });
            carriers
        }
    };
    let mut next = 1;
    let mut planned = Vec::with_capacity(sites.len());
    for (site, mut draft) in sites.iter().zip(drafts) {
        let norm = site.spec.domain.norm;
        let reading = reading(&carriers, host, norm, site.spec.domain.borrowed).at(|| place(site))?;
        draft.project(&carriers);
        let compiled = draft.prove(&reading).at(|| place(site))?;
        let layers = lower(&compiled.insertion(), &carriers, host.weights).at(|| place(site))?;
        if let Some(l) = layers.iter().find(|l| l.mlp.intermediate_size() > host.intermediate_size) {
            return Err(Error::unsupported(format!(
                "the block needs {} hidden units, the model's MLPs have {}",
                l.mlp.intermediate_size(),
                host.intermediate_size
            ))
            .at(place(site))
            .help("intervene on fewer features, or lower budget.neurons"));
        }
        let first = site.layer + next;
        next += layers.len();
        planned.push(PlannedSite {
            layer: site.layer,
            inserted: first..first + layers.len(),
            origin: site.origin.clone(),
            target: site.target.clone(),
            legend: site.legend.clone(),
            norm,
            compiled,
            layers,
        });
    }
    Ok((carriers, planned, note))
}

/// What the neutralised norm hands to an MLP in place of x. Without a bound on ‖x‖ a certificate speaks of the pre-activations
/// that are read.
fn reading(carriers: &Carriers, host: &Host, norm: Option<f64>, borrowed: Option<f64>) -> Result<Reading> {
    let eps = host.norm_eps * carriers.other_eps();
    norm.map_or(Ok(Reading::exact()), |norm| carriers.reading(host.stream, norm, borrowed, eps))
}

impl Plan {
    /// The manifest of this plan.
    pub fn manifest(&self, source_sha256: String, files: BTreeMap<String, String>) -> Manifest {
        Manifest {
            version: VERSION,
            neurograft: env!("CARGO_PKG_VERSION").into(),
            architecture: self.architecture.clone(),
            source_sha256,
            host: self.host.clone(),
            carriers: self.carriers.clone(),
            sites: self
                .sites
                .iter()
                .map(|s| ManifestSite {
                    layer: s.layer,
                    inserted: s.inserted.clone().collect(),
                    norm: s.norm,
                    directory: directory(
                        s.layer,
                        self.sites.iter().take_while(|t| !std::ptr::eq(*t, s)).filter(|t| t.layer == s.layer).count(),
                    ),
                    origin: s.origin.clone(),
                })
                .collect(),
            cost: self.cost,
            files,
        }
    }

    /// Writes what travels with a spliced checkpoint into its folder: manifest, specification as given, and every site's
    /// block and certificate.
    pub fn write_folder(&self, folder: &Path, spec: &Path, manifest: &Manifest) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(format!("cannot make {}", folder.display()), e))?;
        let extension = spec.extension().and_then(|e| e.to_str()).unwrap_or("toml").to_ascii_lowercase();
        let text = std::fs::read(spec).map_err(|e| Error::io(format!("cannot read {}", spec.display()), e))?;
        write_whole(&folder.join(format!("spec.{extension}")), &text)?;
        for (site, entry) in self.sites.iter().zip(&manifest.sites) {
            site.compiled.write(&folder.join(&entry.directory))?;
        }
        if let Some(test) = &self.selftest {
            test.write(folder)?;
        }
        write_whole(&folder.join(MANIFEST_FILE), manifest.to_json().as_bytes())
    }
}

impl Manifest {
    /// The file's text.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a manifest has no map with other keys than strings");
        text.push('\n');
        text
    }

    /// Reads the manifest of a folder. Errors: it is missing, malformed, or of another version.
    pub fn read(folder: &Path) -> Result<Manifest> {
        let path = folder.join(MANIFEST_FILE);
        let place = || path.display().to_string();
        let text = std::fs::read_to_string(&path).map_err(|e| {
            Error::io("cannot read the manifest of a splice", e)
                .at(place())
                .help("name what `neurograft splice` has written")
        })?;
        let manifest: Manifest = serde_json::from_str(&text).map_err(|e| not_a_manifest(&e)).at(place)?;
        if manifest.version != VERSION {
            return Err(Error::unsupported(format!(
                "manifest version {}, this program knows {VERSION}",
                manifest.version
            ))
            .at(place()));
        }
        Ok(manifest)
    }

    /// The sites with their certificates verified and their blocks lowered anew.
    ///
    /// Errors: a disagreement between certificate, block and manifest.
    pub fn sites(&self, folder: &Path) -> Result<Vec<CheckedSite>> {
        let wrong = |text: String| Error::disagreement(text).at(folder.join(MANIFEST_FILE).display().to_string());
        let derived = |e: Error| if e.is_disagreement() || e.is_io() { e } else { Error::disagreement(e.to_string()) };
        self.carriers.check().map_err(derived)?;
        if self.carriers.live != self.host.hidden_size {
            return Err(wrong(format!("carriers for a stream of {}", self.carriers.live)));
        }
        let (mut next, mut step) = (0, 0);
        let mut shift = 0;
        let mut sites = Vec::new();
        for entry in &self.sites {
            // Steps after the same layer follow one another.
            step = if entry.layer + 1 == next { step + 1 } else { 0 };
            if entry.layer + 1 < next || entry.layer >= self.host.layers {
                return Err(wrong(format!("layer {} is out of order or out of range", entry.layer)));
            }
            next = entry.layer + 1;
            if entry.directory != directory(entry.layer, step) {
                return Err(wrong(format!("the site of layer {} is kept in {}", entry.layer, entry.directory)));
            }
            let dir = folder.join(&entry.directory);
            let verified = verify(&dir).map_err(derived)?;
            let (certificate, insertion) = (&verified.file, verified.insertion());
            let borrowed = Some(certificate.reading.bound);
            let read = reading(&self.carriers, &self.host, entry.norm, borrowed).map_err(derived)?;
            if (&certificate.source, certificate.form, certificate.format)
                != (&self.host.source, self.host.form, self.host.weights)
                || certificate.norm != entry.norm
                || certificate.reading != read
            {
                return Err(wrong(format!("the certificate of layer {} is for another host", entry.layer)));
            }
            let size = entry.norm.unwrap_or(0.0).hypot(insertion.reach);
            if self.carriers.kind == Kind::Padded && !(size <= self.carriers.exact_up_to(self.host.stream)) {
                return Err(wrong(format!("the constants do not dominate what layer {} handles", entry.layer)));
            }
            let layers = lower(&insertion, &self.carriers, self.host.weights).map_err(derived)?;
            let first = entry.layer + 1 + shift;
            shift += layers.len();
            if entry.inserted != (first..first + layers.len()).collect::<Vec<_>>() {
                return Err(wrong(format!("the layers inserted after layer {} have other numbers", entry.layer)));
            }
            removes(&layers, &self.carriers, entry.norm, &self.host)?;
            sites.push(CheckedSite { layer: entry.layer, certificate: verified.file, layers });
        }
        if sites.is_empty() {
            return Err(wrong("no layer is inserted".into()));
        }
        Ok(sites)
    }
}

/// Where a site's block and certificate are: that of the layer, or of a further step after it.
fn directory(layer: usize, step: usize) -> String {
    if step == 0 { format!("site-{layer}") } else { format!("site-{layer}-{}", step + 1) }
}

/// A site whose certificate has been verified.
#[derive(Clone, Debug)]
pub struct CheckedSite {
    /// the layer of the source whose output is intervened on
    pub layer: usize,
    /// its certificate, all figures derived anew
    pub certificate: CertificateFile,
    /// the weights of the inserted layers, lowered anew
    pub layers: Vec<InsertedLayer>,
}

/// Do the carriers leave a site's layers as they came, in f64, whatever x is?
fn removes(layers: &[InsertedLayer], c: &Carriers, norm: Option<f64>, host: &Host) -> Result<()> {
    let eps = host.norm_eps * c.other_eps();
    // Residuals of small and of the largest admissible norm; a fixed pattern is as good as a random one.
    let largest = norm.unwrap_or(1e3);
    let mut x = DMatrix::from_fn(c.hidden_size, 8, |i, t| {
        if i >= c.live { 0.0 } else { ((i * 7919 + t * 104_729) % 2003) as f64 / 1001.0 - 1.0 }
    });
    for (t, mut column) in x.column_iter_mut().enumerate() {
        let length = column.norm();
        column *= largest * f64::exp2(-(t as f64)) / length.max(f64::MIN_POSITIVE);
    }
    let y = layers.iter().fold(x.clone(), |x, layer| layer.forward(&x, eps));
    let left = |i: usize| (0..x.ncols()).map(|t| (y[(i, t)] - x[(i, t)]).abs()).fold(0.0, f64::max);
    let largest = c.constants.iter().map(|k| c.value(k).abs()).fold(0.0, f64::max);
    let (all, limit): (Vec<usize>, f64) = match c.kind {
        // Nothing but f64's own rounding of σ(128)·C; in f16, whose rounding of the norm's output is not simulated here, t.
        Kind::Padded => {
            let t = if host.stream == Format::F16 { f64::exp2(-11.0) } else { 1e-12 };
            ((c.live..c.hidden_size).collect(), largest * t)
        }
        // There the block writes as well.
        Kind::Borrowed => (c.constants.iter().map(|k| k.coordinate).collect(), largest * 0.5),
    };
    match all.into_iter().find(|i| !(left(*i) <= limit)) {
        None => Ok(()),
        Some(i) => Err(Error::disagreement(format!(
            "what stands in coordinate {i} between the layers is not removed: {:e} stays",
            left(i)
        ))),
    }
}

/// What [`check`] found in order.
#[derive(Clone, Debug)]
pub struct Checked {
    /// the manifest
    pub manifest: Manifest,
    /// every site
    pub sites: Vec<CheckedSite>,
    /// how many tensors were compared
    pub tensors: usize,
}

/// What is no JSON is no manifest; what is JSON and differs from one was changed.
fn not_a_manifest(e: &serde_json::Error) -> Error {
    let what = format!("not a manifest: {e}");
    if e.is_data() { Error::disagreement(what) } else { Error::input(what) }
}

/// Whatever is found wrong in an output contradicts its manifest, unless the system could not read it. Its place is named once.
fn contradiction(e: Error, output: &Path) -> Error {
    let e = if e.is_disagreement() || e.is_io() { e } else { Error::disagreement(e.to_string()) };
    let place = output.display().to_string();
    if e.to_string().starts_with(&place) { e } else { e.at(place) }
}

/// Reads a spliced checkpoint back and verifies certificates, inserted weights and every invariant of the rest.
///
/// Errors: [`Error::is_disagreement`] where anything is not as a splice leaves it.
pub fn check(output: &Path, progress: Progress<'_>) -> Result<Checked> {
    if is_gguf(output) { gguf::check(output, progress) } else { hf::check(output, progress) }
}
