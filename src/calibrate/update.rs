//! A specification with the ranges and norms that a calibration found: TOML keeps its comments and its order, JSON gets
//! its names in alphabetical order.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};
use toml_edit::{Array, DocumentMut, Item, Table, TableLike, Value, value};

use super::Calibration;
use crate::error::{At, Error, Result};
use crate::files::{folder_of, write_whole};
use crate::intervention;
use crate::sae::{Sae, SaeOptions};
use crate::spec::Spec;

/// What begins the line that says how ranges came about; an older one is replaced.
const MARK: &str = "# Calibrated: ";

/// Without a list of features, all are measured, if they have no more numbers than this.
const MOST_NUMBERS: usize = 1 << 26;

/// A specification that is calibrated, with its text.
#[derive(Clone, Debug)]
pub struct Source {
    /// the steps of one place
    pub specs: Vec<Spec>,
    text: String,
    is_json: bool,
    site: Option<usize>,
    folder: PathBuf,
}

impl Source {
    /// Reads a specification file. `layer`: which site, where there are several.
    ///
    /// Errors: as [`Spec::read_all`]; several sites and no layer, or none of that layer.
    pub fn read(path: &Path, layer: Option<usize>) -> Result<Source> {
        let place = || path.display().to_string();
        let mut specs = Spec::read_all(path)?;
        let unnamed = specs.iter().filter(|s| s.layer.is_none() && s.step == 0).count();
        let mut named = specs.iter().filter_map(|s| s.layer).collect::<Vec<_>>();
        for spec in specs.iter_mut().filter(|s| s.layer.is_none() && layer.is_some()) {
            spec.layer = intervention::open(spec)?.and_then(|sae| sae.layer());
        }
        let mut layers: Vec<Option<usize>> = specs.iter().map(|s| s.layer).collect();
        let several = specs.iter().filter(|s| s.step == 0).count() > 1;
        layers.dedup();
        let of_layer = |l: Option<usize>| l.map_or("what the SAE says".into(), |l| l.to_string());
        let listed = || layers.iter().map(|l| of_layer(*l)).collect::<Vec<_>>().join(", ");
        match layer {
            None if several => {
                return Err(Error::input("several sites: residuals are of one")
                    .at(place())
                    .help(format!("--layer, one of {}", listed())));
            }
            Some(l) if several || layers != [None] => {
                specs.retain(|s| s.layer == Some(l));
                if specs.is_empty() {
                    return Err(Error::input(format!("no site after layer {l}"))
                        .at(place())
                        .help(format!("one of {}", listed())));
                }
            }
            _ => {}
        }
        let text =
            std::fs::read_to_string(path).map_err(|e| Error::io(format!("cannot read {}", path.display()), e))?;
        let is_json = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
        named.retain(|l| layer == Some(*l));
        if layer.is_some() && named.is_empty() && unnamed > 1 {
            return Err(Error::input("several sites leave their layer to their SAEs")
                .at(place())
                .help("write layer = N into each of them"));
        }
        let site = site(&text, is_json, named.first().copied()).at(place)?;
        Ok(Source { specs, text, is_json, site, folder: folder_of(path).to_path_buf() })
    }

    /// A specification that ablates features of an SAE, all of them if none are named.
    ///
    /// Errors: an SAE that cannot be opened, or that is too large for all of its features.
    pub fn features(sae: &Path, options: &SaeOptions, features: &[usize]) -> Result<Source> {
        let open = Sae::open_with(sae, options)?;
        let features = match features {
            [] if open.d_sae().saturating_mul(open.d_in()) > MOST_NUMBERS => {
                return Err(
                    Error::input(format!("the SAE has {} features", open.d_sae())).help("say which: --feature 5,17")
                );
            }
            [] => (0..open.d_sae()).collect(),
            features => features.to_vec(),
        };
        let mut document = DocumentMut::new();
        let path = sae.display().to_string();
        document["sae"] = if *options == SaeOptions::default() {
            value(path)
        } else {
            let mut table = Table::new();
            table["path"] = value(path);
            options.layout.iter().for_each(|l| table["layout"] = value(l.to_string()));
            options.threshold.iter().for_each(|t| table["threshold"] = value(*t));
            options.norm_scaling_factor.iter().for_each(|s| table["norm_scaling_factor"] = value(*s));
            Item::Table(table)
        };
        let entry = |f: usize| {
            let mut table = Table::new();
            table["feature"] = value(i64::try_from(f).unwrap_or(i64::MAX));
            table["action"] = value("ablate");
            table
        };
        document["interventions"] = Item::ArrayOfTables(features.into_iter().map(entry).collect());
        let text = document.to_string();
        Ok(Source { specs: Spec::parse_all_toml(&text)?, text, is_json: false, site: None, folder: PathBuf::from(".") })
    }

    /// Refuses a name that a specification in this language cannot have.
    ///
    /// Errors: a name that does not end in `.toml`, or `.json` if the source is JSON.
    pub fn admits(&self, output: &Path) -> Result<()> {
        let language = if self.is_json { "json" } else { "toml" };
        if output.extension().is_some_and(|e| e.eq_ignore_ascii_case(language)) {
            return Ok(());
        }
        Err(Error::input(format!("what is written is {}, as the given specification is", language.to_uppercase()))
            .at(output.display().to_string())
            .help(format!("name a file that ends in .{language}")))
    }

    /// Writes the specification with what was found to a file, whole or not at all.
    ///
    /// Errors: as [`toml()`], [`json()`] and [`Source::admits`]; a file that cannot be written.
    pub fn write(&self, found: &Calibration, output: &Path) -> Result<()> {
        self.admits(output)?;
        let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
        let folder = (!same(&self.folder, folder_of(output))).then_some(&*self.folder);
        let place = Place { site: self.site, folder };
        let text = if self.is_json { json(&self.text, place, found)? } else { toml(&self.text, place, found)? };
        // What does not read back must not be written.
        if self.is_json {
            Spec::parse_all_json(&text)?
        } else {
            Spec::parse_all_toml(&text)?
        };
        write_whole(output, text.as_bytes())
    }
}

/// Which of the file's `[[sites]]` is the one after a layer.
fn site(text: &str, is_json: bool, layer: Option<usize>) -> Result<Option<usize>> {
    let layers: Option<Vec<Option<usize>>> = if is_json {
        let document: Json = serde_json::from_str(text).map_err(|e| Error::input(e.to_string()))?;
        let of = |s: &Json| s.get("layer").and_then(Json::as_u64).and_then(|l| usize::try_from(l).ok());
        document.get("sites").and_then(Json::as_array).map(|sites| sites.iter().map(of).collect())
    } else {
        let mut document: DocumentMut = text.parse().map_err(|e: toml_edit::TomlError| Error::input(e.to_string()))?;
        let has = document.contains_key("sites");
        let of =
            |s: &mut dyn TableLike| s.get("layer").and_then(Item::as_integer).and_then(|l| usize::try_from(l).ok());
        has.then(|| tables(document.get_mut("sites")).into_iter().map(of).collect())
    };
    Ok(layers.map(|all| all.iter().position(|l| *l == layer).unwrap_or(0)))
}

/// Where in a file the calibrated entries stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// which of `[[sites]]`, counted from 0; `None`: the file has none
    pub site: Option<usize>,
    /// the folder that relative paths start at, if they are to become absolute
    pub folder: Option<&'a Path>,
}

/// A specification in TOML, with every entry's `range` and the place's `domain.norm`.
///
/// Errors: a text that is no TOML, entries that are not those that were calibrated.
pub fn toml(text: &str, place: Place<'_>, found: &Calibration) -> Result<String> {
    let mut document: DocumentMut = text.parse().map_err(|e: toml_edit::TomlError| Error::input(e.to_string()))?;
    let root = document.as_table_mut();
    if let Some(folder) = place.folder {
        toml_paths(root, folder);
    }
    // A site without a domain of its own has the file's, which is other sites' too: it gets a copy.
    let mut shared = root.get("domain").cloned().unwrap_or_else(|| Item::Table(Table::new()));
    if let Some(table) = shared.as_table_mut() {
        table.set_position(None);
        table.decor_mut().clear();
    }
    let site: &mut dyn TableLike = match place.site {
        None => root,
        Some(k) => tables(root.get_mut("sites")).into_iter().nth(k).ok_or_else(|| missing("sites"))?,
    };
    let entries = tables(site.get_mut("interventions"));
    if entries.len() != found.entries.len() {
        return Err(missing("interventions"));
    }
    for (table, entry) in entries.into_iter().zip(&found.entries) {
        let ends: Array = [entry.range.lo(), entry.range.hi()].into_iter().collect();
        set(table, "range", ends.into());
    }
    if !site.contains_key("domain") {
        site.insert("domain", shared);
    }
    let domain = site.get_mut("domain").ok_or_else(|| missing("domain"))?;
    if let Some(table) = domain.as_table_mut() {
        let prefix = table.decor().prefix().and_then(|p| p.as_str()).unwrap_or("\n").to_string();
        let kept: String = prefix.split_inclusive('\n').filter(|l| !l.starts_with(MARK)).collect();
        let kept = if kept.trim().is_empty() { "\n".to_string() } else { kept };
        table.decor_mut().set_prefix(format!("{kept}{MARK}{}\n", found.how().replace(['\n', '\r'], " ")));
    }
    let table = domain.as_table_like_mut().ok_or_else(|| missing("domain"))?;
    set(table, "norm", found.norm.into());
    Ok(document.to_string())
}

fn missing(what: &str) -> Error {
    Error::input(format!("the file's {what} are not those that were calibrated"))
}

/// Sets a value and leaves the comment behind it.
fn set(table: &mut dyn TableLike, key: &str, new: Value) {
    match table.get_mut(key) {
        Some(Item::Value(old)) => {
            let decor = old.decor().clone();
            *old = new;
            *old.decor_mut() = decor;
        }
        _ => {
            table.insert(key, value(new));
        }
    }
}

/// The tables of an array, written as `[[name]]` or inline.
fn tables(item: Option<&mut Item>) -> Vec<&mut dyn TableLike> {
    match item {
        Some(Item::ArrayOfTables(all)) => all.iter_mut().map(|t| t as &mut dyn TableLike).collect(),
        Some(Item::Value(Value::Array(all))) => {
            all.iter_mut().filter_map(|v| v.as_inline_table_mut()).map(|t| t as &mut dyn TableLike).collect()
        }
        _ => Vec::new(),
    }
}

fn toml_paths(root: &mut Table, folder: &Path) {
    let absolute = |item: Option<&mut Item>| {
        // An SAE may be a table of a path and more.
        let is_table = item.as_ref().is_some_and(|i| i.is_table_like());
        let item = if is_table { item.and_then(|i| i.as_table_like_mut()?.get_mut("path")) } else { item };
        if let Some(Item::Value(v)) = item
            && let Some(path) = v.as_str()
        {
            let decor = v.decor().clone();
            *v = join(folder, path).into();
            *v.decor_mut() = decor;
        }
    };
    absolute(root.get_mut("sae"));
    let samples = |item: Option<&mut Item>| absolute(item.and_then(|i| i.as_table_like_mut()?.get_mut("samples")));
    samples(root.get_mut("domain"));
    for site in tables(root.get_mut("sites")) {
        absolute(site.get_mut("sae"));
        samples(site.get_mut("domain"));
    }
    if let Some(vectors) = root.get_mut("vectors").and_then(Item::as_table_like_mut) {
        for (_, vector) in vectors.iter_mut() {
            absolute(vector.as_table_like_mut().and_then(|t| t.get_mut("file")));
        }
    }
}

fn join(folder: &Path, path: &str) -> String {
    let joined = folder.join(path);
    std::path::absolute(&joined).unwrap_or(joined).display().to_string()
}

/// The same for a specification in JSON.
///
/// Errors: as [`toml()`].
pub fn json(text: &str, place: Place<'_>, found: &Calibration) -> Result<String> {
    let mut document: Json = serde_json::from_str(text).map_err(|e| Error::input(e.to_string()))?;
    if let Some(folder) = place.folder {
        json_paths(&mut document, folder);
    }
    let root = document.as_object_mut().ok_or_else(|| missing("fields"))?;
    let shared = root.get("domain").cloned().unwrap_or_else(|| Map::new().into());
    let site = match place.site {
        None => &mut *root,
        Some(k) => root.get_mut("sites").and_then(|s| s.get_mut(k)?.as_object_mut()).ok_or_else(|| missing("sites"))?,
    };
    let entries = site.get_mut("interventions").and_then(Json::as_array_mut).ok_or_else(|| missing("interventions"))?;
    if entries.len() != found.entries.len() {
        return Err(missing("interventions"));
    }
    for (table, entry) in entries.iter_mut().zip(&found.entries) {
        let table = table.as_object_mut().ok_or_else(|| missing("interventions"))?;
        table.insert("range".into(), vec![entry.range.lo(), entry.range.hi()].into());
    }
    let domain = site.entry("domain").or_insert(shared);
    domain.as_object_mut().ok_or_else(|| missing("domain"))?.insert("norm".into(), found.norm.into());
    let mut text = serde_json::to_string_pretty(&document).expect("a document that was read");
    text.push('\n');
    Ok(text)
}

fn json_paths(document: &mut Json, folder: &Path) {
    let absolute = |v: Option<&mut Json>| {
        let is_table = v.as_ref().is_some_and(|v| v.is_object());
        let v = if is_table { v.and_then(|v| v.get_mut("path")) } else { v };
        if let Some(Json::String(path)) = v {
            *path = join(folder, path);
        }
    };
    let samples = |v: Option<&mut Json>| absolute(v.and_then(|v| v.get_mut("samples")));
    absolute(document.get_mut("sae"));
    samples(document.get_mut("domain"));
    if let Some(sites) = document.get_mut("sites").and_then(Json::as_array_mut) {
        for site in sites {
            absolute(site.get_mut("sae"));
            samples(site.get_mut("domain"));
        }
    }
    if let Some(vectors) = document.get_mut("vectors").and_then(Json::as_object_mut) {
        vectors.values_mut().for_each(|v| absolute(v.get_mut("file")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::{Entry, Settings};
    use crate::interval::Interval;
    use crate::spec::Spec;

    fn found(ranges: &[(f64, f64)]) -> Calibration {
        let entry = |(lo, hi): &(f64, f64)| Entry {
            label: "ablate feature 1".into(),
            letters: String::new(),
            rows: Vec::new(),
            range: Interval::new(*lo, *hi),
            outside: 0,
            massive_outside: 0,
            switches: Vec::new(),
            active: 0,
        };
        Calibration {
            settings: Settings::default(),
            source: "residuals.npy (residuals)".into(),
            tokens: 512,
            massive: 2,
            massive_norms: None,
            median: 168.0,
            largest: 238.0,
            norm: 262.0,
            beyond_norm: 0,
            entries: ranges.iter().map(entry).collect(),
        }
    }

    const TEXT: &str = "# why\nsae = 's' # which\n\n[[interventions]]\nfeature = 1 # eggs\naction = 'ablate'\nrange = [0, 1]  # a guess\n\n\
                        [[interventions]]\naction = 'ablate'\nfeature = 2\n\n# where\n[domain]\nrange = [-110, 140]\nnorm = 250 # of x\n";

    #[test]
    fn comments_stay() {
        let place = Place { site: None, folder: None };
        let once = toml(TEXT, place, &found(&[(-5.5, 20.0), (-1.0, 3.0)])).unwrap();
        for kept in [
            "# why\n",
            "# which",
            "# eggs",
            "range = [-5.5, 20.0]  # a guess",
            "# where\n",
            "norm = 262.0 # of x",
            "range = [-110, 140]",
        ] {
            assert!(once.contains(kept), "{kept} in {once}");
        }
        assert!(once.contains(
            "# Calibrated: the least and the greatest of 510 tokens of residuals.npy (residuals), widened by 10 %; 2"
        ));
        let spec = Spec::parse_toml(&once).unwrap();
        assert_eq!(spec.interventions[1].range, Some(Interval::new(-1.0, 3.0)));
        assert_eq!((spec.domain.norm, spec.domain.range), (Some(262.0), Interval::new(-110.0, 140.0)));
        let twice = toml(&once, place, &found(&[(-5.5, 20.0), (-1.0, 3.0)])).unwrap();
        assert_eq!(once, twice);
    }

    #[test]
    fn sites_inline_tables_and_absent_domains() {
        let text = "sites = [{ sae = { path = 'a' }, layer = 3, interventions = [{ feature = 1, action = 'ablate' }] }, { sae = '/b', layer = 5, interventions = [{ feature = 2, action = 'ablate' }] }]\n[vectors.v]\nfile = 'v.npy'";
        let place = Place { site: Some(1), folder: Some(Path::new("/folder")) };
        let specs = Spec::parse_all_toml(&toml(text, place, &found(&[(-1.0, 2.0)])).unwrap()).unwrap();
        assert_eq!(
            (specs[0].interventions[0].range, specs[1].interventions[0].range),
            (None, Some(Interval::new(-1.0, 2.0)))
        );
        assert_eq!((specs[0].domain.norm, specs[1].domain.norm), (None, Some(262.0)));
        assert_eq!(
            (specs[0].sae.as_deref(), specs[1].sae.as_deref()),
            (Some(Path::new("/folder/a")), Some(Path::new("/b")))
        );
        assert_eq!(specs[0].vectors["v"].file, Path::new("/folder/v.npy"));
        assert!(toml(text, place, &found(&[])).is_err());
        assert!(toml(text, Place { site: None, folder: None }, &found(&[(0.0, 1.0)])).is_err());
    }

    /// What one site's residuals say is no business of another's.
    #[test]
    fn a_shared_domain_stays_what_it_is() {
        let text = "[domain]\nrange = [-110, 140]\nnorm = 250 # of x\nsamples = 'x.npy'\n[host]\narithmetic = 'any-bf16'\n\
                    [[sites]]\nsae = 'a'\nlayer = 3\n[[sites.interventions]]\nfeature = 1\naction = 'ablate'\n\
                    [[sites]]\nsae = 'b'\nlayer = 5\n[[sites.interventions]]\nfeature = 2\naction = 'ablate'\n";
        let place = Place { site: Some(0), folder: Some(Path::new("/f")) };
        let judge = |specs: Vec<Spec>| {
            let norms: Vec<_> = specs.iter().map(|s| s.domain.norm).collect();
            assert_eq!(norms, [Some(262.0), Some(250.0)]);
            for domain in specs.iter().map(|s| &s.domain) {
                assert_eq!(domain.range, Interval::new(-110.0, 140.0));
                assert_eq!(domain.samples.as_deref(), Some(Path::new("/f/x.npy")));
            }
        };
        let written = toml(text, place, &found(&[(-1.0, 2.0)])).unwrap();
        judge(Spec::parse_all_toml(&written).unwrap());
        assert!(written.contains("norm = 250 # of x"), "{written}");
        let text = r#"{"domain": {"range": [-110, 140], "norm": 250, "samples": "x.npy"}, "host": {"arithmetic": "any-bf16"}, "sites": [
            {"sae": "a", "layer": 3, "interventions": [{"feature": 1, "action": "ablate"}]},
            {"sae": "b", "layer": 5, "interventions": [{"feature": 2, "action": "ablate"}]}]}"#;
        judge(Spec::parse_all_json(&json(text, place, &found(&[(-1.0, 2.0)])).unwrap()).unwrap());
    }

    #[test]
    fn json_says_the_same() {
        let text = r#"{"sae": {"path": "s"}, "sites": null, "interventions": [{"feature": 1, "action": "cap", "value": 0.1}], "domain": {"norm": 1}}"#;
        let written = json(text, Place { site: None, folder: Some(Path::new("/f")) }, &found(&[(-1.0, 2.0)])).unwrap();
        let spec = Spec::parse_json(&written).unwrap();
        assert_eq!((spec.interventions[0].range, spec.domain.norm), (Some(Interval::new(-1.0, 2.0)), Some(262.0)));
        assert_eq!(spec.sae.as_deref(), Some(Path::new("/f/s")));
        assert_eq!(spec.interventions[0].action, crate::spec::Action::Cap("0.1".parse().unwrap()));
    }
}
