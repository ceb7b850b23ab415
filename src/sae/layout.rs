//! Whose files these are: the layouts, and how they are told apart.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::{CFG_FILE, WEIGHTS_FILE};
use crate::error::{Error, Result, nearest};
use crate::files::folder_of;
use crate::tensors::quoted;

/// Whose files an SAE is kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Layout {
    /// SAELens: `cfg.json` and `sae_weights.safetensors`
    SaeLens,
    /// Gemma Scope: `params.npz`; Gemma Scope 2: `params.safetensors`
    GemmaScope,
    /// EleutherAI's sparsify: `cfg.json` and `sae.safetensors`
    Sparsify,
    /// OpenMOSS's Language-Model-SAEs (Llama Scope): `hyperparams.json` or `config.json`, and weights
    OpenMoss,
    /// dictionary_learning: `ae.pt` and `config.json`
    DictionaryLearning,
}

impl Layout {
    /// All of them, in the order of the documentation.
    pub const ALL: [Layout; 5] =
        [Layout::SaeLens, Layout::GemmaScope, Layout::Sparsify, Layout::OpenMoss, Layout::DictionaryLearning];

    /// Its name in a specification.
    pub fn name(self) -> &'static str {
        match self {
            Layout::SaeLens => "saelens",
            Layout::GemmaScope => "gemma_scope",
            Layout::Sparsify => "sparsify",
            Layout::OpenMoss => "openmoss",
            Layout::DictionaryLearning => "dictionary_learning",
        }
    }

    /// The weights in a directory of this layout, if it is one.
    fn weights_in(self, dir: &Path) -> Option<PathBuf> {
        let first = |names: &[&str]| names.iter().map(|n| dir.join(n)).find(|p| p.is_file());
        let has = |name: &str| dir.join(name).is_file();
        match self {
            Layout::SaeLens => first(&[WEIGHTS_FILE]).filter(|_| has(CFG_FILE)),
            Layout::Sparsify => first(&["sae.safetensors"]).filter(|_| has(CFG_FILE)),
            Layout::GemmaScope => first(&["params.npz", "params.safetensors"]),
            // The order of the project's own search.
            Layout::OpenMoss => first(&[
                WEIGHTS_FILE,
                "sae_weights.pt",
                "checkpoints/pruned.safetensors",
                "checkpoints/pruned.pt",
                "checkpoints/final.safetensors",
                "checkpoints/final.pt",
            ])
            .filter(|_| has(HYPERPARAMS_FILE) || has(CONFIG_FILE)),
            Layout::DictionaryLearning => first(&["ae.pt"]),
        }
    }
}

/// The configuration of OpenMOSS's SAEs of 2024.
pub(super) const HYPERPARAMS_FILE: &str = "hyperparams.json";

/// The configuration of OpenMOSS's later SAEs, of Gemma Scope 2 and of dictionary_learning.
pub(super) const CONFIG_FILE: &str = "config.json";

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Layout {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let names = Layout::ALL.map(Layout::name);
        Layout::ALL.into_iter().find(|l| l.name() == text).ok_or_else(|| {
            let help = match nearest(text, names) {
                Some(near) => format!("did you mean '{near}'?"),
                None => format!("known layouts: {}", names.join(", ")),
            };
            Error::input(format!("unknown layout {}", quoted(text))).help(help)
        })
    }
}

/// Where an SAE's files are.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) layout: Layout,
    pub(super) dir: PathBuf,
    pub(super) weights: PathBuf,
}

/// Tells the layout of what a path names: a directory, or a file in one.
pub(super) fn find(path: &Path, wanted: Option<Layout>) -> Result<Found> {
    if path.is_dir() {
        return in_directory(path, wanted);
    }
    if !path.exists() {
        return Err(Error::input("no SAE: there is nothing of that name")
            .at(path.display().to_string())
            .help("name a directory that holds an SAE, or its file of weights"));
    }
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let parent = folder_of(path);
    let dir = if parent.ends_with("checkpoints") { folder_of(parent) } else { parent };
    if [CFG_FILE, CONFIG_FILE, HYPERPARAMS_FILE].contains(&name) {
        return in_directory(dir, wanted);
    }
    let beside = Layout::ALL.into_iter().filter(|l| l.weights_in(dir).as_deref() == Some(path));
    let by_name = match Path::new(name).extension().and_then(|e| e.to_str()) {
        Some("npz") => Some(Layout::GemmaScope),
        Some("pt" | "pth") => Some(Layout::DictionaryLearning),
        _ => None,
    };
    let candidates: Vec<Layout> = wanted.map_or_else(|| beside.collect(), |l| vec![l]);
    let layout = one(&candidates, path)?.or(by_name).ok_or_else(|| {
        Error::input("the layout of this SAE cannot be told from the names of its files")
            .at(path.display().to_string())
            .help(format!("say it: sae = {{ path = \"...\", layout = \"...\" }} with one of {}", names(&Layout::ALL)))
    })?;
    Ok(Found { layout, dir: dir.to_path_buf(), weights: path.to_path_buf() })
}

fn in_directory(dir: &Path, wanted: Option<Layout>) -> Result<Found> {
    let mut there: Vec<(Layout, PathBuf)> =
        Layout::ALL.into_iter().filter_map(|l| Some((l, l.weights_in(dir)?))).collect();
    if let Some(wanted) = wanted {
        there.retain(|(l, _)| *l == wanted);
    }
    let layouts: Vec<Layout> = there.iter().map(|(l, _)| *l).collect();
    match one(&layouts, dir)? {
        Some(layout) => {
            let (_, weights) = there.swap_remove(0);
            Ok(Found { layout, dir: dir.to_path_buf(), weights })
        }
        None => Err(nothing(dir, wanted)),
    }
}

/// The only one of several layouts.
fn one(layouts: &[Layout], path: &Path) -> Result<Option<Layout>> {
    match layouts {
        [] => Ok(None),
        [layout] => Ok(Some(*layout)),
        several => Err(Error::input(format!("several layouts fit the files: {}", names(several)))
            .at(path.display().to_string())
            .help("say which: sae = { path = \"...\", layout = \"...\" }")),
    }
}

/// What is missing in a directory.
fn nothing(dir: &Path, wanted: Option<Layout>) -> Error {
    let inside = |d: &Path| Layout::ALL.into_iter().any(|l| l.weights_in(d).is_some());
    let mut below: Vec<String> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|p| p.is_dir() && inside(p))
        .filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned()))
        .collect();
    below.sort();
    const SHOWN: usize = 5;
    let more = if below.len() > SHOWN { ", ..." } else { "" };
    let help = if !below.is_empty() {
        let shown: Vec<String> = below.iter().take(SHOWN).map(|n| quoted(n)).collect();
        format!("it holds directories of SAEs, name one: {}{more}", shown.join(", "))
    } else if dir.join(CFG_FILE).is_file() {
        format!("{CFG_FILE} is there, but neither {WEIGHTS_FILE} nor sae.safetensors")
    } else {
        format!(
            "known: {CFG_FILE} with {WEIGHTS_FILE} (SAELens) or sae.safetensors (sparsify); params.npz (Gemma Scope); \
             hyperparams.json with checkpoints/final.safetensors (Llama Scope); ae.pt (dictionary_learning)"
        )
    };
    let what = match wanted {
        Some(layout) => format!("no SAE in the layout {layout} in this directory"),
        None => "no SAE in this directory".into(),
    };
    Error::input(what).at(dir.display().to_string()).help(help)
}

fn names(layouts: &[Layout]) -> String {
    layouts.iter().map(|l| l.name()).collect::<Vec<_>>().join(", ")
}
