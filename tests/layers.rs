//! The shape of the code: who may import whom, and what the trusted part abstains from.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Every module, in reading order. A module imports from those above it, never from those below.
const ORDER: [&str; 58] = [
    "error",
    "interval",
    "rational",
    "number",
    "activation",
    "atom",
    "algebra",
    "expr",
    "eval",
    "ridge",
    "piecewise",
    "stack",
    "certify",
    "lower",
    "gates",
    "canonical",
    "exact",
    "minimax",
    "linear_program",
    "duals",
    "format",
    "arithmetic",
    "landscape",
    "exhaust",
    "running",
    "scaling",
    "dither",
    "solve",
    "files",
    "tensors",
    "gguf",
    "vectors",
    "residuals",
    "block",
    "derive",
    "gated",
    "tokens",
    "deployed",
    "carriers",
    "host",
    "reference",
    "certificate",
    "compile",
    "sae",
    "spec",
    "source",
    "intervention",
    "verify",
    "formats",
    "explain",
    "splice",
    "inspect",
    "embedded",
    "observe",
    "calibrate",
    "report",
    "panels",
    "main",
];

/// What a certificate's truth rests on: no `unsafe`, no files, no output.
const TRUSTED: [&str; 18] = [
    "interval",
    "rational",
    "number",
    "activation",
    "atom",
    "algebra",
    "expr",
    "eval",
    "piecewise",
    "stack",
    "certify",
    "lower",
    "arithmetic",
    "landscape",
    "exhaust",
    "running",
    "tokens",
    "deployed",
];

/// What the certifier must not know, not even through others.
const SOLVERS: [&str; 8] = ["canonical", "exact", "minimax", "linear_program", "duals", "scaling", "dither", "solve"];

/// The one module with `unsafe`: it maps files into memory.
const MAPS_MEMORY: &str = "tensors";

/// The tokens of every module's files; `src/minimax/start.rs` belongs to `minimax`. `lib.rs` only lists the modules.
fn modules() -> BTreeMap<String, Vec<String>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut modules: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in rust_files(&src) {
        let inside = path.strip_prefix(&src).unwrap();
        let first = inside.iter().next().unwrap().to_str().unwrap();
        let module = first.strip_suffix(".rs").unwrap_or(first);
        if module != "lib" {
            modules.entry(module.to_string()).or_default().extend(tokens(&fs::read_to_string(&path).unwrap()));
        }
    }
    modules
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Words and single signs (`::` is one), without comments, strings, characters and lifetimes.
fn tokens(text: &str) -> Vec<String> {
    let s: Vec<char> = text.chars().collect();
    let starts = |i: usize, p: &str| p.chars().enumerate().all(|(k, c)| s.get(i + k) == Some(&c));
    let find = |i: usize, p: &str| (i..s.len()).find(|&j| starts(j, p)).map_or(s.len(), |j| j + p.chars().count());
    let (mut out, mut i) = (Vec::new(), 0);
    while i < s.len() {
        if starts(i, "//") {
            i = find(i, "\n");
        } else if starts(i, "/*") {
            let mut depth = 0;
            loop {
                if starts(i, "/*") {
                    depth += 1;
                    i += 2;
                } else if starts(i, "*/") {
                    depth -= 1;
                    i += 2;
                } else {
                    i += 1;
                }
                if depth == 0 || i >= s.len() {
                    break;
                }
            }
        } else if s[i] == '"' {
            i += 1;
            while i < s.len() && s[i] != '"' {
                i += if s[i] == '\\' { 2 } else { 1 };
            }
            i += 1;
        } else if s[i] == '\'' {
            // A character is closed by a quote; a lifetime is a word.
            i = match (s.get(i + 1), s.get(i + 2)) {
                (Some('\\'), _) => find(i + 3, "'"),
                (_, Some('\'')) => i + 3,
                _ => (i + 1..s.len()).find(|&j| !is_word(s[j])).unwrap_or(s.len()),
            };
        } else if is_word(s[i]) {
            let end = (i..s.len()).find(|&j| !is_word(s[j])).unwrap_or(s.len());
            let word: String = s[i..end].iter().collect();
            let hashes = s[end..].iter().take_while(|c| **c == '#').count();
            if ["r", "br", "cr"].contains(&word.as_str()) && s.get(end + hashes) == Some(&'"') {
                i = find(end + hashes + 1, &format!("\"{}", "#".repeat(hashes)));
            } else {
                out.push(word);
                i = end;
            }
        } else if starts(i, "::") {
            out.push("::".to_string());
            i += 2;
        } else {
            if !s[i].is_whitespace() {
                out.push(s[i].to_string());
            }
            i += 1;
        }
    }
    out
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The first segments of all paths from the crate's root: `crate::a`, `neurograft::a`, `crate::{a::B, c}`.
fn imports(tokens: &[String]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (i, pair) in tokens.windows(2).enumerate() {
        if !["crate", "neurograft"].contains(&pair[0].as_str()) || pair[1] != "::" {
            continue;
        }
        let rest = &tokens[i + 2..];
        if rest.first().is_none_or(|t| t != "{") {
            found.extend(rest.first().cloned());
            continue;
        }
        let mut depth = 0;
        for (k, token) in rest.iter().enumerate() {
            match token.as_str() {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ if depth == 1 && ["{", ","].contains(&rest[k - 1].as_str()) => {
                    found.insert(token.clone());
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    // From a module of the first level, `super` is the root as well; a test module's `super::*` names no module.
    let sibling = tokens.windows(3).filter(|w| w[0] == "super" && w[1] == "::").map(|w| w[2].clone());
    found.extend(sibling.filter(|name| ORDER.contains(&name.as_str())));
    found
}

fn rank(module: &str) -> Option<usize> {
    ORDER.iter().position(|m| *m == module)
}

#[test]
fn every_module_has_its_place() {
    for module in modules().keys() {
        assert!(rank(module).is_some(), "src/{module}.rs has no place in the reading order of tests/layers.rs");
    }
}

#[test]
fn modules_import_from_those_above_them() {
    let mut wrong = Vec::new();
    for (module, tokens) in modules() {
        for import in imports(&tokens) {
            // The command line stands below everything and may use the names that the root re-exports.
            if import == module || (module == "main" && rank(&import).is_none()) {
                continue;
            }
            match rank(&import) {
                Some(r) if rank(&module).is_some_and(|own| r < own) => {}
                Some(_) => wrong.push(format!("{module} imports {import}, which stands below it")),
                None => wrong.push(format!("{module} imports crate::{import}: name the module that it comes from")),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// All modules that one rests on, itself among them. No solver may be.
fn without_solvers(module: &str) -> BTreeSet<String> {
    let modules = modules();
    let (mut seen, mut next) = (BTreeSet::new(), vec![module.to_string()]);
    while let Some(module) = next.pop() {
        if let (true, Some(tokens)) = (seen.insert(module.clone()), modules.get(&module)) {
            next.extend(imports(tokens));
        }
    }
    for solver in SOLVERS {
        assert!(!seen.contains(solver), "{module} imports {solver}, perhaps through others: {seen:?}");
    }
    seen
}

#[test]
fn the_certifier_knows_no_solver() {
    let seen = without_solvers("certify");
    let trusted: BTreeSet<_> = TRUSTED.into_iter().chain(["error"]).map(String::from).collect();
    assert!(seen.is_subset(&trusted), "the certifier rests on a module that is not trusted: {seen:?}");
}

#[test]
fn lower_bounds_know_no_solver() {
    let seen = without_solvers("lower");
    let trusted: BTreeSet<_> = TRUSTED.into_iter().chain(["error"]).map(String::from).collect();
    assert!(seen.is_subset(&trusted), "lower bounds rest on a module that is not trusted: {seen:?}");
}

#[test]
fn certificates_of_deployed_arithmetic_know_no_solver() {
    without_solvers("deployed");
}

#[test]
fn unsafe_stands_in_one_module() {
    for (module, tokens) in modules() {
        assert!(module == MAPS_MEMORY || !tokens.iter().any(|t| t == "unsafe"), "unsafe in {module}");
    }
}

#[test]
fn the_trusted_part_neither_reads_nor_writes() {
    for (module, tokens) in modules().into_iter().filter(|(m, _)| TRUSTED.contains(&m.as_str())) {
        let tokens = without_tests(&tokens);
        let outside = ["fs", "io", "net", "process", "env"];
        let prints = ["println", "print", "eprintln", "eprint", "dbg"];
        for w in tokens.windows(3) {
            let [a, b, c] = [&w[0], &w[1], &w[2]].map(String::as_str);
            assert!(!(a == "std" && b == "::" && outside.contains(&c)), "{module} uses std::{c}");
            assert!(
                !(a == "std" && b == "::" && c == "{"),
                "{module}: one `use std::…` a line, so that this test sees it"
            );
            assert!(!(prints.contains(&a) && b == "!"), "{module} calls {a}!");
        }
    }
}

/// What is built into the library: all but `#[cfg(test)] mod … { … }`.
fn without_tests(tokens: &[String]) -> Vec<String> {
    let (mut kept, mut i) = (Vec::new(), 0);
    while i < tokens.len() {
        if tokens[i..].starts_with(&["#", "[", "cfg", "(", "test", ")", "]", "mod"].map(String::from)) {
            let mut depth = 0;
            while i < tokens.len() {
                depth += i32::from(tokens[i] == "{") - i32::from(tokens[i] == "}");
                i += 1;
                if depth == 0 && ["}", ";"].contains(&tokens[i - 1].as_str()) {
                    break;
                }
            }
        } else {
            kept.push(tokens[i].clone());
            i += 1;
        }
    }
    kept
}

#[test]
fn this_test_reads_rust() {
    let text = r##"
        //! [`crate::solve`]
        /* use crate::exact; /* nested */ unsafe */
        use crate::{error::{Error, Result}, number::Number};
        use crate::interval::Interval;
        fn f<'a>(x: &'a str) -> char { let _ = ("crate::block \" unsafe", r#"crate::sae " "#, '"', '\'', b'\\'); 'x' }
        fn g() { super::certify::h(crate :: stack :: new()) }
    "##;
    let found: Vec<String> = imports(&tokens(text)).into_iter().collect();
    assert_eq!(found, ["certify", "error", "interval", "number", "stack"]);
    assert!(!tokens(text).contains(&"unsafe".to_string()));
    let text = "fn a() {} #[cfg(test)] mod tests { fn t() { println!(\"{\") } } fn b() {}";
    assert_eq!(without_tests(&tokens(text)).join(" "), "fn a ( ) { } fn b ( ) { }");
}

/// The anchor that GitHub gives a heading: lower case, blanks as hyphens, no punctuation.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn links_between_documents_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).unwrap().map(|e| e.unwrap().path());
    let files = docs.filter(|p| p.extension().is_some_and(|e| e == "md")).chain([root.join("README.md")]);
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { file.clone() } else { file.parent().unwrap().join(path) };
            assert!(target.exists(), "{}: {link}", file.display());
            if !fragment.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                let mut headings = text.lines().filter(|l| l.starts_with('#')).map(|l| l.trim_start_matches('#'));
                assert!(headings.any(|h| anchor(h) == fragment), "{}: {link}", file.display());
            }
        }
    }
}
