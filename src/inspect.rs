//! What a file or a directory is, in a few lines: SAEs, vectors, blocks with their certificates, checkpoints, specifications.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use crate::certificate::{BLOCK_FILE, CERTIFICATE_FILE, CertificateFile, FIRST_BLOCK_FILE};
use crate::compile::Depth;
use crate::error::{Error, Result};
use crate::explain::{bound, conditions, counted, part_name, payload, scope, short};
use crate::gguf::GgufFile;
use crate::sae::{Architecture, Sae, SaeOptions};
use crate::spec::Spec;
use crate::splice::{self, FOLDER, MANIFEST_FILE, Manifest, ManifestSite, hf};
use crate::tensors::{Bytes, TensorFile};
use crate::vectors::{Listed, VectorFile};

/// Tensors and responses that are listed; what is more is counted.
const SHOWN: usize = 20;

/// Says what lies at a path.
///
/// # Errors
/// If there is nothing, it cannot be read, or it is nothing that is known.
pub fn inspect(path: &Path) -> Result<String> {
    let text = if path.is_dir() { directory(path) } else { file(path) }?;
    Ok(format!("{}: {text}", path.display()))
}

fn directory(dir: &Path) -> Result<String> {
    if dir.join(CERTIFICATE_FILE).is_file() {
        return block(dir);
    }
    if Sae::is_at(dir) {
        return sae(dir);
    }
    if dir.join(hf::CONFIG_FILE).is_file() {
        return checkpoint(dir);
    }
    // The error says which layouts of SAEs are known.
    Sae::open(dir).map(|_| String::new())
}

fn file(path: &Path) -> Result<String> {
    let parent = crate::files::folder_of(path);
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    if !path.exists() {
        return Err(Error::input("there is nothing of that name").at(path.display().to_string()));
    }
    match extension.as_str() {
        _ if [CERTIFICATE_FILE, BLOCK_FILE, FIRST_BLOCK_FILE].contains(&name.as_str()) => block(parent),
        "json" if ["cfg.json", "hyperparams.json", hf::CONFIG_FILE].contains(&name.as_str()) => directory(parent),
        "json" if name == MANIFEST_FILE => {
            let mut out = "the manifest of a splice\n".to_string();
            let checkpoint = match parent.extension() {
                // OUT.neurograft stands beside OUT.gguf.
                Some(_) => parent.with_extension("gguf"),
                None => crate::files::folder_of(parent).to_path_buf(),
            };
            spliced(&mut out, parent, &checkpoint);
            Ok(out)
        }
        "toml" | "json" => spec(path),
        "gguf" => gguf(path),
        "safetensors" | "npz" | "pt" | "pth" if Sae::is_at(path) => sae(path).or_else(|e| {
            // The name said that it is an SAE, what is in it may be anything.
            let list = VectorFile::open(path).map_err(|_| e)?.list();
            Ok(listed("tensors, but no SAE that is known", &list))
        }),
        _ => Ok(listed("vectors or other tensors", &VectorFile::open(path)?.list())),
    }
}

/// One line of a table of facts.
fn fact(out: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = writeln!(out, "  {name:<15} {value}");
}

fn sae(path: &Path) -> Result<String> {
    let sae = match Sae::open(path) {
        Ok(sae) => sae,
        // A top-k is an SAE all the same: with a threshold the rest of it can be shown.
        Err(e) if e.is_unsupported() => {
            let options = SaeOptions { threshold: Some(0.0), ..SaeOptions::default() };
            let Ok(sae) = Sae::open_with(path, &options) else { return Err(e) };
            return Ok(facts(&sae, false)? + &format!("\nas it is it cannot be used: {e}\n"));
        }
        Err(e) => return Err(e),
    };
    facts(&sae, true)
}

fn facts(sae: &Sae, thresholds: bool) -> Result<String> {
    let mut out = format!("an SAE in the layout {}\n", sae.layout());
    let shown = match sae.architecture() {
        Architecture::JumpRelu if sae.kind() != Architecture::JumpRelu.name() => {
            format!("{}, read as jumprelu", sae.kind())
        }
        _ => sae.kind().to_string(),
    };
    fact(&mut out, "architecture", shown);
    fact(&mut out, "stream", format!("{} wide", sae.d_in()));
    fact(&mut out, "features", sae.d_sae());
    if let Some(format) = sae.format() {
        fact(&mut out, "number format", format);
    }
    fact(&mut out, "model", sae.model_name().unwrap_or("not said"));
    fact(&mut out, "reads", sae.hook_name().unwrap_or("not said: write layer = N in the specification"));
    let bias =
        if sae.applies_decoder_bias_to_input() { "subtracted from the input" } else { "not subtracted from the input" };
    fact(&mut out, "decoder bias", bias);
    if sae.input_scale() != 1.0 {
        fact(&mut out, "input", format!("times {}, folded into the rows", short(sae.input_scale())));
    }
    if thresholds && sae.architecture() == Architecture::JumpRelu {
        let mut all = sae.thresholds()?;
        all.sort_by(f64::total_cmp);
        let at = |q: f64| short(all[((all.len() - 1) as f64 * q).round() as usize]);
        let marks =
            [("min", 0.0), ("5%", 0.05), ("25%", 0.25), ("median", 0.5), ("75%", 0.75), ("95%", 0.95), ("max", 1.0)];
        let quantiles = marks.map(|(name, q)| format!("{name} {}", at(q)));
        let all_equal = all.first() == all.last();
        fact(
            &mut out,
            "thresholds",
            if all_equal { format!("{} for all features", at(0.0)) } else { quantiles.join(", ") },
        );
    }
    fact(&mut out, "weights", format!("{}, {}", sae.weights().display(), size(&sae.weights())));
    Ok(out)
}

fn block(dir: &Path) -> Result<String> {
    let file = CertificateFile::read(&dir.join(CERTIFICATE_FILE))?;
    let mut out = format!("a block and its certificate (`neurograft verify {}` derives it anew)\n", dir.display());
    fact(&mut out, "MLP", format!("{} of {} in {}", file.form, file.source, file.format));
    for name in [FIRST_BLOCK_FILE, BLOCK_FILE] {
        let path = dir.join(name);
        if path.is_file() {
            let tensors = TensorFile::open(&path)?;
            let down = tensors.shape("down_proj.weight").map_or(String::new(), |s| format!(", down_proj {s:?}"));
            fact(&mut out, name, format!("{}{down}", size(&path)));
        }
    }
    scope(&file).into_iter().for_each(|line| {
        let _ = writeln!(out, "  {line}");
    });
    for r in file.responses.iter().take(SHOWN) {
        let f = &r.certificate;
        let grows = if f.eta > 0.0 { format!(" + {}·|z|", bound(f.eta)) } else { String::new() };
        let error = bound(f.epsilon_outside.unwrap_or(f.epsilon)) + &grows;
        let _ =
            writeln!(out, "  {}: {:?}, error ≤ {error}, {}, {}", r.name, f.status, counted(r.neurons.len()), r.target);
    }
    let terms = file.gates.as_ref().map_or(&[][..], |g| &g.terms);
    for t in terms.iter().take(SHOWN) {
        let (status, error) = (t.figures.status, bound(t.figures.outside));
        let _ = writeln!(
            out,
            "  {}: {status:?}, ‖error‖ ≤ {error}, {} where {}",
            part_name(&file, t),
            payload(t),
            conditions(t)
        );
    }
    let hidden = file.responses.len().saturating_sub(SHOWN) + terms.len().saturating_sub(SHOWN);
    if hidden > 0 {
        let _ = writeln!(out, "  and {hidden} more");
    }
    Ok(out)
}

fn checkpoint(dir: &Path) -> Result<String> {
    let place = dir.join(hf::CONFIG_FILE);
    let io = |e| Error::io(format!("{}: cannot read the configuration", place.display()), e);
    let config: serde_json::Value =
        serde_json::from_slice(Bytes::map(&place, "a checkpoint holds config.json")?.as_slice())
            .map_err(|e| Error::input(format!("malformed JSON: {e}")).at(place.display().to_string()))?;
    let mut out = "a HuggingFace checkpoint\n".to_string();
    let names = [
        ("model type", "model_type"),
        ("layers", "num_hidden_layers"),
        ("stream", "hidden_size"),
        ("MLP", "intermediate_size"),
        ("activation", "hidden_act"),
        ("number format", "torch_dtype"),
        ("number format", "dtype"),
    ];
    for (name, field) in names {
        if let Some(value) = config.get(field).filter(|v| !v.is_null()) {
            fact(&mut out, name, value.as_str().map_or_else(|| value.to_string(), str::to_string));
        }
    }
    let mut shards: Vec<_> = std::fs::read_dir(dir)
        .map_err(io)?
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    shards.sort();
    let mut kinds = BTreeMap::new();
    for shard in &shards {
        let file = TensorFile::open(shard)?;
        for name in file.names() {
            *kinds.entry(file.format_name(&name).unwrap_or_default()).or_insert(0usize) += 1;
        }
    }
    fact(&mut out, "weights", format!("{} of safetensors, tensors: {}", files(shards.len()), counts(&kinds)));
    spliced(&mut out, &dir.join(FOLDER), dir);
    Ok(out)
}

/// What the splicer wrote beside a checkpoint, if it did.
fn spliced(out: &mut String, folder: &Path, checkpoint: &Path) {
    if !folder.join(MANIFEST_FILE).is_file() {
        return;
    }
    let verifies = format!("`neurograft splice --check {}` verifies it", checkpoint.display());
    let sites = Manifest::read(folder).map(|m| m.sites).unwrap_or_default();
    let site = |s: &ManifestSite| {
        let inserted: Vec<String> = s.inserted.iter().map(usize::to_string).collect();
        let layers = if inserted.len() == 1 { "layer" } else { "layers" };
        format!("{layers} {} inserted (after layer {} of the source)", inserted.join(", "), s.layer)
    };
    let said: Vec<String> = sites.iter().map(site).chain([verifies]).collect();
    fact(out, "spliced", said.join("; "));
}

fn gguf(path: &Path) -> Result<String> {
    let file = GgufFile::open(path)?;
    let text = |key: &str| file.value(key).and_then(|v| v.as_text().map(str::to_string));
    let architecture = text("general.architecture").unwrap_or_else(|| "not said".into());
    if architecture == "controlvector" {
        let hint = text("controlvector.model_hint").unwrap_or_else(|| "any model".into());
        return Ok(listed(&format!("a control vector for {hint}"), &VectorFile::open(path)?.list()));
    }
    let mut out = format!("a GGUF checkpoint, version {}\n", file.version());
    fact(&mut out, "architecture", &architecture);
    if let Some(name) = text("general.name") {
        fact(&mut out, "name", name);
    }
    for (name, key) in [("layers", "block_count"), ("stream", "embedding_length"), ("MLP", "feed_forward_length")] {
        if let Some(n) = file.value(&format!("{architecture}.{key}")).and_then(|v| v.as_u64()) {
            fact(&mut out, name, n);
        }
    }
    let mut kinds = BTreeMap::new();
    for t in file.tensors() {
        *kinds.entry(t.format.name.to_string()).or_insert(0usize) += 1;
    }
    fact(&mut out, "tensors", counts(&kinds));
    fact(&mut out, "size", size(path));
    let folder = splice::gguf::folder(path);
    spliced(&mut out, &folder, path);
    if !folder.join(MANIFEST_FILE).is_file() {
        // Its metadata does not tell, but what llama.cpp reads as the constants' writer stands in inserted layers only.
        let layer = |name: &str| Some(name.strip_prefix("blk.")?.strip_suffix(".attn_output.bias")?.to_string());
        let biased: Vec<String> = file.tensors().iter().filter_map(|t| layer(&t.name)).collect();
        if architecture == "llama" && !biased.is_empty() {
            let missing = folder.display();
            let what = format!(
                "perhaps: layers {} have an attn_output.bias, as inserted ones do; {missing} is not there",
                biased.join(", ")
            );
            fact(&mut out, "spliced", what);
        }
    }
    Ok(out)
}

fn spec(path: &Path) -> Result<String> {
    let specs = Spec::read_all(path)?;
    let mut out = "a specification\n".to_string();
    for spec in &specs {
        if specs.len() > 1 {
            let _ = writeln!(out, "  site");
        }
        if let Some(sae) = &spec.sae {
            fact(&mut out, "SAE", sae.display());
        }
        for (name, vector) in &spec.vectors {
            fact(&mut out, "vector", format!("{name}, of {}", vector.file.display()));
        }
        if let Some(layer) = spec.layer {
            fact(&mut out, "layer", layer);
        }
        if spec.layers != Depth::Auto {
            fact(&mut out, "layers", spec.layers.to_string());
        }
        for i in spec.interventions.iter().take(SHOWN) {
            fact(&mut out, "intervention", i.label());
        }
        if spec.interventions.len() > SHOWN {
            let _ = writeln!(out, "  and {} more", spec.interventions.len() - SHOWN);
        }
    }
    let (host, budget) = (&specs[0].host, &specs[0].budget);
    fact(&mut out, "host", format!("{} of {} in {}", host.form, host.source, host.format));
    fact(&mut out, "tolerance", short(budget.tolerance));
    if let Some(norm) = specs[0].domain.norm {
        fact(&mut out, "for", format!("‖x‖ ≤ {}", short(norm)));
    }
    Ok(out)
}

fn listed(what: &str, tensors: &[Listed]) -> String {
    let mut out = format!("{what}\n");
    for t in tensors.iter().take(SHOWN) {
        let layer = t.layer.map_or(String::new(), |n| format!(", after layer {n}"));
        let _ = writeln!(out, "  {} {:?} {}{layer}", t.name.escape_debug(), t.shape, t.format);
    }
    if tensors.len() > SHOWN {
        let _ = writeln!(out, "  and {} more", tensors.len() - SHOWN);
    }
    out
}

/// `28 bf16, 3 f32`
fn counts(kinds: &BTreeMap<String, usize>) -> String {
    kinds.iter().map(|(kind, n)| format!("{n} {kind}")).collect::<Vec<_>>().join(", ")
}

fn files(n: usize) -> String {
    if n == 1 { "1 file".into() } else { format!("{n} files") }
}

/// A file's size for people.
fn size(path: &Path) -> String {
    let bytes = std::fs::metadata(path).map_or(0, |m| m.len());
    const UNITS: [(&str, u64); 3] = [("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)];
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} bytes"),
    }
}
