//! The binary from outside: every command, exit codes, the JSON of `fit`, and what `verify` says of files that were
//! tampered with, by someone who knows how to recompute a checksum.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::{Value, json};

fn neurograft() -> Command {
    Command::new(env!("CARGO_BIN_EXE_neurograft"))
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

// ---------------------------------------------------------------------------------------------------- a small SAE

/// Three features in five dimensions, no number 0.
fn sae(dir: &Path) {
    sae_with(dir, |_, _| ());
}

/// An SAE whose tensors may be changed before they are written.
fn sae_with(dir: &Path, change: impl Fn(&str, &mut Vec<u8>)) {
    fs::create_dir_all(dir).unwrap();
    let (d, n) = (5usize, 3usize);
    let number = |k: usize| ((k * 37 + 11) % 64) as f32 / 64.0 - 0.507;
    let bytes = |from: usize, len: usize| (from..from + len).flat_map(|k| number(k).to_le_bytes()).collect::<Vec<u8>>();
    let thresholds: Vec<u8> = [0.75f32, 0.3, 1.3].iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut tensors = [
        ("W_enc", vec![d, n], bytes(0, d * n)),
        ("W_dec", vec![n, d], bytes(40, n * d)),
        ("b_enc", vec![n], bytes(80, n)),
        ("b_dec", vec![d], bytes(90, d)),
        ("threshold", vec![n], thresholds),
    ];
    tensors.iter_mut().for_each(|(name, _, bytes)| change(name, bytes));
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (*name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    fs::write(dir.join("sae_weights.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    let cfg = json!({
        "architecture": "jumprelu", "d_in": d, "d_sae": n, "dtype": "float32", "apply_b_dec_to_input": false,
        "normalize_activations": "none", "device": "cpu", "reshape_activations": "none",
        "metadata": {"hook_name": "blocks.0.hook_resid_post", "model_name": "none"},
    });
    fs::write(dir.join("cfg.json"), cfg.to_string()).unwrap();
}

/// A directory with an SAE and a specification.
struct Work {
    dir: tempfile::TempDir,
}

impl Work {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        sae(&dir.path().join("sae"));
        Work { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn spec(&self, change: impl FnOnce(&mut Value)) -> PathBuf {
        let mut spec = json!({
            "sae": "sae",
            "interventions": [
                {"feature": 0, "action": "ablate"},
                {"feature": 1, "action": "cap", "value": 2},
                {"feature": 2, "action": "add", "value": 0.7},
            ],
            "host": {"source": "silu", "form": "gated", "format": "f32"},
            "budget": {"tolerance": 0.01, "band": 0.05},
            "domain": {"range": [-9, 9], "norm": 20},
        });
        change(&mut spec);
        let path = self.path("spec.json");
        fs::write(&path, spec.to_string()).unwrap();
        path
    }

    fn compile(&self, change: impl FnOnce(&mut Value)) -> PathBuf {
        let out = self.path("out");
        neurograft().arg("compile").arg(self.spec(change)).arg("-o").arg(&out).arg("--force").assert().success();
        out
    }
}

/// Runs `verify`: never a panic; the exit code and what it said.
fn verify(dir: &Path) -> (i32, String) {
    let Output { status, stdout, stderr } = neurograft().arg("verify").arg(dir).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    let code = status.code().expect("no signal");
    assert!((0..=2).contains(&code) && !text.contains("panicked"), "{code}: {text}");
    assert!(code == 0 || text.starts_with("error: ") && text.len() > 20, "{code}: {text}");
    (code, text)
}

fn rejected(dir: &Path, about: &str) {
    let (code, text) = verify(dir);
    assert!(code != 0, "{about}: accepted\n{text}");
}

// -------------------------------------------------------------------------------------------------------- commands

#[test]
fn inspect_says_what_things_are() {
    let inspect = |path: &str| neurograft().arg("inspect").arg(root(path)).assert().success();
    let sae = |layout: &str| format!("an SAE in the layout {layout}");
    inspect("examples/data").stdout(contains(sae("saelens")).and(contains("576 wide")).and(contains("median 2.7233")));
    inspect("tests/fixtures/saes/saelens/v5-gated").stdout(contains("gated, read as jumprelu"));
    inspect("tests/fixtures/saes/openmoss/llama_scope")
        .stdout(contains("0.875 for all features").and(contains("bf16")));
    inspect("tests/fixtures/saes/dictionary_learning/new/ae.pt").stdout(contains(sae("dictionary_learning")));
    inspect("tests/fixtures/saes/sparsify/layers.3")
        .stdout(contains(sae("sparsify")).and(contains("cannot be used")).and(contains("threshold = ")));
    inspect("tests/fixtures/vectors/control.gguf").stdout(contains("direction.2 [5] f32, after layer 2"));
    inspect("tests/fixtures/vectors/probes.safetensors").stdout(contains("probes [3, 5] f32"));
    inspect("tests/fixtures/tensors/quantised.gguf").stdout(contains("1 Q4_K"));
    inspect("tests/data/tiny-llama").stdout(contains("a HuggingFace checkpoint").and(contains("35 bf16")));
    inspect("tests/fixtures/tensors/nested.pt").stdout(contains("nested.sae.w [2, 2] f64"));
    inspect("examples/ablate.toml").stdout(contains("ablate feature 5"));
    let w = Work::new();
    let out = w.compile(|_| ());
    neurograft()
        .arg("inspect")
        .arg(out.join("block.safetensors"))
        .assert()
        .success()
        .stdout(contains("ablate feature 0"));
    let refused = |path: &str| neurograft().arg("inspect").arg(root(path)).assert().code(2).stderr(contains("error: "));
    refused("tests/fixtures/saes").stderr(contains("no SAE in this directory"));
    refused("nothing").stderr(contains("nothing of that name"));
    refused("README.md");
}

#[test]
fn completions_for_every_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let done = neurograft().args(["completions", shell]).assert().success();
        done.stdout(contains("neurograft").and(contains("splice")).and(contains("carriers")));
    }
    neurograft().args(["completions", "csh"]).assert().code(2);
}

#[test]
fn errors_show_the_line_of_the_specification() {
    let w = Work::new();
    let spec = w.path("a.toml");
    let refused = |text: &str| {
        fs::write(&spec, format!("sae = \"sae\"\n\n[[interventions]]\nfeature = 1\n{text}\n")).unwrap();
        neurograft().arg("explain").arg(&spec).assert().code(2)
    };
    refused("action = \"ablte\"")
        .stderr(contains("a.toml:5:10").and(contains("^^^^^^^")).and(contains("help: did you mean")));
    refused("acton = 1").stderr(contains("a.toml:5:1").and(contains("unknown field 'acton'")));
    // What only the compiler sees: the expression, the threshold (0.3) outside of the range.
    refused("action = \"expr\"\nexpr = \"z +* 2\"").stderr(contains("a.toml:6:8").and(contains("found '*'")));
    refused("action = \"ablate\"\nrange = [1, 9]").stderr(contains("a.toml:6:9").and(contains("0.3")));
    refused("action = \"ablate\"\n\n[[interventions]]\nfeature = 2\naction = \"ablate\"\ngate = 3")
        .stderr(contains("a.toml:10:8").and(contains("no feature 3")));
    refused("action = \"ablate\"\nwhen = \"z_2 > z_31\"").stderr(contains("a.toml:6:8").and(contains("no feature 31")));
    refused("action = \"ablate\"\nwhen = \"a_2 >= 0\"").stderr(contains("a.toml:6:8").and(contains("never holds")));
    fs::rename(w.path("sae"), w.path("elsewhere")).unwrap();
    refused("action = \"ablate\"").stderr(contains("a.toml:1:7").and(contains("nothing of that name")));
    fs::rename(w.path("elsewhere"), w.path("sae")).unwrap();
    let text = w.spec(|s| s["budget"]["neurons"] = 0.into());
    neurograft()
        .arg("explain")
        .arg(&text)
        .assert()
        .code(2)
        .stderr(contains("spec.json:1:").and(contains("neurons must be")));
}

#[test]
fn an_sae_that_leaves_something_open_is_told_in_the_specification() {
    let w = Work::new();
    let sae = root("tests/fixtures/saes/sparsify/layers.3");
    let refused = w.spec(|s| s["sae"] = json!(sae));
    neurograft().arg("explain").arg(&refused).assert().code(2).stderr(contains("depends on all the others"));
    let table = json!({"path": sae, "layout": "sparsify", "threshold": 0.75});
    let explained = neurograft().arg("explain").arg(w.spec(|s| s["sae"] = table.clone())).assert().success();
    explained.stdout(contains("jumprelu(z, 0.75)"));
}

#[test]
fn help_and_usage() {
    neurograft().arg("--help").assert().success().stdout(contains("Exit codes"));
    neurograft().arg("--version").assert().success().stdout(contains("neurograft"));
    neurograft().arg("frobnicate").assert().code(2);
    neurograft().arg("compile").assert().code(2);
    for command in ["compile", "verify", "fit", "splice", "explain"] {
        neurograft().args([command, "--help"]).assert().success();
    }
}

#[test]
fn the_example_runs_without_arguments() {
    let dir = tempfile::tempdir().unwrap();
    let run = || neurograft().current_dir(dir.path()).assert().success().stdout(contains("agrees"));
    run();
    let file = |name: &str| dir.path().join("neurograft-example").join(name);
    let first = fs::read(file("certificate.json")).unwrap();
    assert_eq!(verify(&dir.path().join("neurograft-example")).0, 0);
    assert!(fs::read_to_string(file("report.svg")).unwrap().starts_with("<svg"));
    // Once more: the same bytes.
    run();
    assert_eq!(fs::read(file("certificate.json")).unwrap(), first);
}

#[test]
fn compile_and_verify() {
    let w = Work::new();
    let (spec, out) = (w.spec(|_| ()), w.path("deep/out"));
    let compile = |force: bool| {
        let mut c = neurograft();
        c.arg("compile").arg(&spec).arg("--output").arg(&out);
        if force {
            c.arg("--force");
        }
        c.assert()
    };
    compile(false).success().stdout(contains("ablate feature 0").and(contains("‖error‖ ≤")));
    let files = ["block.safetensors", "certificate.json", "report.svg"];
    let bytes = || files.map(|f| fs::read(out.join(f)).unwrap());
    let before = bytes();
    let (code, text) = verify(&out);
    assert!(code == 0 && text.contains("3 responses") && text.contains("all bounds derived anew"), "{text}");
    // Not overwritten, whichever of the files is there.
    compile(false).code(2).stderr(contains("--force"));
    for f in files {
        let away = out.join("away");
        fs::create_dir(&away).unwrap();
        files.iter().filter(|g| **g != f).for_each(|g| fs::rename(out.join(g), away.join(g)).unwrap());
        compile(false).code(2).stderr(contains(f).and(contains("is there already")));
        files.iter().filter(|g| **g != f).for_each(|g| fs::rename(away.join(g), out.join(g)).unwrap());
        fs::remove_dir(&away).unwrap();
    }
    // The same specification gives the same bytes.
    compile(true).success();
    assert!(bytes() == before);
}

#[test]
fn a_missed_tolerance_has_its_own_exit_code() {
    let w = Work::new();
    let spec = w.spec(|s| s["budget"]["tolerance"] = json!(0));
    let out = w.path("out");
    let words = contains("the tolerance is missed");
    neurograft().arg("compile").arg(&spec).arg("-o").arg(&out).assert().code(3).stdout(words);
    assert_eq!(verify(&out).0, 0, "the best block is written, with a certificate");
    neurograft().arg("explain").arg(&spec).assert().code(3);
}

#[test]
fn explain_shows_every_response() {
    let w = Work::new();
    let shown = contains("ablate feature 0").and(contains("cap feature 1")).and(contains("add feature 2"));
    neurograft().arg("explain").arg(w.spec(|_| ())).assert().success().stdout(shown.and(contains("silu")));
    neurograft().arg("explain").arg(root("examples/ablate.toml")).assert().success().stdout(contains("feature 5"));
}

/// What can never change a token is compiled, and said: a wrong sign or unit looks like that.
#[test]
fn what_does_nothing_is_said() {
    let nothing = || contains("never changes anything, for pre-activations from -9 to 9");
    for (entry, idle) in [
        (json!({"feature": 0, "action": "ablate", "when": "not a > 0"}), true),
        (json!({"feature": 0, "action": "cap", "value": 1e300}), true),
        (json!({"feature": 0, "action": "floor", "value": -5}), true),
        (json!({"feature": 0, "action": "floor", "value": 5}), false),
    ] {
        let w = Work::new();
        let spec = w.spec(|s| s["interventions"] = json!([entry]));
        for command in ["explain", "compile"] {
            let mut c = neurograft();
            c.current_dir(w.dir.path()).arg(command).arg(&spec);
            if command == "compile" {
                c.args(["-o", "out"]);
            }
            let out = c.assert().success();
            if idle {
                out.stdout(nothing())
            } else {
                out.stdout(nothing().not())
            };
        }
    }
}

/// Intervals joined by `or` have no condition in common that could be impossible, and thresholds of one feature are one.
/// Runs, and returns what it says on standard error; the exit code is 2.
fn refused(command: &[&str], path: &Path) -> String {
    let output = neurograft().args(command).arg(path).assert().code(2).get_output().clone();
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn text_in_place_of_tensors_is_called_text() {
    let w = Work::new();
    fs::write(w.path("probe.safetensors"), "# a note\n[table]\nx = 1\n").unwrap();
    let vectors = |s: &mut Value| {
        s["vectors"] = json!({"probe": {"file": "probe.safetensors"}});
        s["interventions"] = json!([{"vector": "probe", "action": "ablate", "activation": "linear"}]);
    };
    let said = "this is text, not a file of tensors: it begins with '# a note'";
    assert!(refused(&["explain"], &w.spec(vectors)).contains(said));
    // A vector that is declared and not used is looked at as well.
    let unused = |s: &mut Value| s["vectors"] = json!({"probe": {"file": "probe.safetensors"}});
    assert!(refused(&["explain"], &w.spec(unused)).contains(said));
    let spec = w.spec(|_| ());
    let text = refused(&["calibrate", spec.to_str().unwrap(), "--residuals"], &w.path("probe.safetensors"));
    assert!(text.contains(said) && text.starts_with("error: --residuals: "), "{text}");
}

#[test]
fn errors_name_what_is_at_fault() {
    let w = Work::new();
    // The residuals lie beside the SAE: that is no reason to point at `sae`.
    let spec = w.spec(|_| ());
    let command = ["calibrate", spec.to_str().unwrap(), "--tensor", "nothing", "--residuals"];
    let text = refused(&command, &w.path("sae/sae_weights.safetensors"));
    assert!(text.contains("--tensor") && text.contains("no tensor 'nothing'") && !text.contains("-->"), "{text}");
    // Gates on another feature need a gated host: which entry asks for one, and what would work.
    let spec = w.spec(|s| {
        s["interventions"] = json!([{"feature": 1, "action": "ablate"}, {"feature": 0, "action": "ablate", "gate": 2}]);
        s["host"]["form"] = json!("plain");
    });
    let text = refused(&["explain"], &spec);
    assert!(text.contains("ablate feature 0 when a_2 > 0: two inserted layers need a gated host"), "{text}");
    assert!(text.contains("form is plain") && text.contains("help: set form = \"gated\""), "{text}");
}

/// A file with one matrix, no row of it 0.
fn matrix(path: &Path, rows: usize, columns: usize) {
    let bytes: Vec<u8> = (0..rows * columns).flat_map(|k| (((k * 7) % 11) as f32 - 5.5).to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![rows, columns], &bytes).unwrap();
    fs::write(path, safetensors::serialize([("residuals", view)], None).unwrap()).unwrap();
}

#[test]
fn a_layer_that_the_model_lacks_is_pointed_at() {
    let w = Work::new();
    matrix(&w.path("probe.safetensors"), 1, 16);
    let spec = "layer = 77\n[vectors.p]\nfile = 'probe.safetensors'\n[[interventions]]\nvector = 'p'\naction = 'add_when_active'\nvalue = 1\n\
                [domain]\nnorm = 20\nrange = [-9, 9]\n";
    fs::write(w.path("spec.toml"), spec).unwrap();
    let model = root("tests/data/tiny-llama");
    let text = refused(&["splice", "--dry-run", "--model", model.to_str().unwrap()], &w.path("spec.toml"));
    assert!(
        text.contains("the model has no layer 77")
            && text.contains("spec.toml:1:9")
            && text.contains("valid layers are 0 to 1"),
        "{text}"
    );
}

#[test]
fn what_is_no_splice_is_no_disagreement() {
    let w = Work::new();
    fs::create_dir_all(w.path("model/neurograft")).unwrap();
    assert!(refused(&["splice", "--check"], &w.path("nothing")).contains("cannot read the manifest"));
    for text in ["", "no JSON"] {
        fs::write(w.path("model/neurograft/splice.json"), text).unwrap();
        assert!(refused(&["splice", "--check"], &w.path("model")).contains("not a manifest"));
    }
}

#[test]
fn calibrate_takes_what_the_files_of_an_sae_leave_open() {
    let w = Work::new();
    let sae = root("tests/fixtures/saes/sparsify/layers.3");
    let residuals = w.path("residuals.safetensors");
    matrix(&residuals, 3, 6);
    let calibrate = |more: &[&str]| {
        let mut command = neurograft();
        command.arg("calibrate").arg("--sae").arg(&sae).arg("--residuals").arg(&residuals).args(more);
        command.assert()
    };
    calibrate(&["--feature", "0"]).code(2).stderr(contains("top-k"));
    let output = w.path("calibrated.toml");
    calibrate(&["--feature", "0", "--threshold", "0.5", "--layout", "sparsify", "-o", output.to_str().unwrap()])
        .success();
    let text = fs::read_to_string(&output).unwrap();
    assert!(text.contains("threshold = 0.5") && text.contains("layout = \"sparsify\""), "{text}");
    neurograft().arg("explain").arg(&output).assert().stdout(contains("ablate feature 0"));
    calibrate(&["--threshold", "-1"]).code(2);
    neurograft().args(["calibrate", "x.toml", "--residuals", "y", "--threshold", "1"]).assert().code(2);
}

#[test]
fn conditions_joined_by_or() {
    let w = Work::new();
    let explained = |when: &str| {
        let entry = json!({"feature": 0, "action": "add", "value": 1, "when": when, "name": "x"});
        let spec = w.spec(|s| s["interventions"] = json!([entry]));
        let out = neurograft().arg("explain").arg(&spec).assert().code(predicate::in_iter([0, 3]));
        String::from_utf8(out.get_output().stdout.clone()).unwrap()
    };
    for when in ["0 < z < 1 or 4 < z < 5", "1 < a < 2 or 4 < a < 5", "1 < z_1 < 2 or 4 < z_1 < 5"] {
        assert!(explained(when).contains("certified"), "{when}");
    }
    let many: Vec<String> = (0..144).map(|k| format!("a > {}", 2.0 + f64::from(k) / 64.0)).collect();
    let (one, all) = (explained("a > 2"), explained(&many.join(" or ")));
    assert_eq!(one.lines().skip(3).collect::<Vec<_>>(), all.lines().skip(3).collect::<Vec<_>>());
}

/// A dead feature does nothing, whatever is asked of it.
#[test]
fn dead_features_are_refused() {
    for (tensor, said) in
        [("W_enc", "feature 1 is dead: the encoder's"), ("W_dec", "feature 1 is dead: its decoder row")]
    {
        let w = Work::new();
        sae_with(&w.path("sae"), |name, bytes| {
            // W_enc [5, 3] has features in columns, W_dec [3, 5] in rows.
            let places: Vec<usize> =
                if name == "W_enc" { (0..5).map(|k| 3 * k + 1).collect() } else { (5..10).collect() };
            if name == tensor {
                places.iter().for_each(|k| bytes[4 * k..4 * k + 4].fill(0));
            }
        });
        let cap = json!({"feature": 1, "action": "cap", "value": 2});
        let spec = w.spec(|s| s["interventions"] = json!([cap]));
        neurograft().arg("explain").arg(&spec).assert().code(2).stderr(contains(said));
        let spec = w.spec(|s| s["interventions"] = json!([{"feature": 0, "action": "ablate"}]));
        neurograft().arg("explain").arg(&spec).assert().success();
    }
}

/// Two layers in bf16: the term names all its units and says what keeps it from its tolerance.
#[test]
fn a_gated_term_says_what_limits_it() {
    let w = Work::new();
    let spec = w.spec(|s| {
        s["layers"] = 2.into();
        s["interventions"] = json!([{"feature": 0, "action": "ablate"}]);
        s["host"]["format"] = "bf16".into();
        s["budget"]["tolerance"] = 1e-6.into();
    });
    let said = contains("units 0 to 2: ").and(contains("what limits it: the number format (bf16)"));
    neurograft().arg("explain").arg(&spec).assert().code(3).stdout(said);
    let missed = contains("ablate feature 0: the tolerance is missed; what limits it is the number format (bf16)");
    neurograft().arg("compile").arg(&spec).arg("-o").arg(w.path("out")).assert().code(3).stdout(missed);
}

#[test]
fn bad_specifications() {
    let w = Work::new();
    let bad = |what: &str, change: &dyn Fn(&mut Value)| {
        let spec = w.spec(|s| change(s));
        for command in ["compile", "explain"] {
            let mut c = neurograft();
            c.arg(command).arg(&spec);
            if command == "compile" {
                c.arg("-o").arg(w.path("never"));
            }
            c.assert().code(2).stderr(contains(what).and(contains("error: ")));
        }
    };
    bad("interventionz", &|s| s["interventionz"] = json!([]));
    bad("wight", &|s| s["budget"]["wight"] = json!(1));
    bad("gpt", &|s| s["host"]["source"] = json!("gpt"));
    bad("form", &|s| s["host"]["form"] = json!("round"));
    bad("f8", &|s| s["host"]["format"] = json!("f8"));
    bad("action", &|s| s["interventions"][0]["action"] = json!("delete"));
    bad("value", &|s| s["interventions"][1] = json!({"feature": 1, "action": "cap"}));
    bad("99", &|s| s["interventions"][0]["feature"] = json!(99));
    bad("range", &|s| s["domain"]["range"] = json!([9, -9]));
    bad("neurons", &|s| s["budget"]["neurons"] = json!(0));
    bad("samples narrow what host.arithmetic is certified for", &|s| s["domain"]["samples"] = json!("x.npy"));
    bad("tolerance", &|s| s["budget"]["tolerance"] = json!(-1));
    bad("norm", &|s| s["domain"]["norm"] = json!(0));
    bad("two inserted layers need a bound", &|s| {
        s["interventions"][0]["gate"] = json!(1);
        s["domain"].as_object_mut().unwrap().remove("norm");
    });
    bad("two inserted layers need a gated host", &|s| {
        s["interventions"][0]["gate"] = json!(1);
        s["host"]["form"] = json!("plain");
    });
    bad("needs gate biases", &|s| s["host"]["biases"] = json!(false));
    bad("range has 3 ends", &|s| s["domain"]["range"] = json!([-9, 9, 10]));
    bad("leaves nothing of the range", &|s| s["budget"]["band"] = json!(9));
    bad("the same as intervention 1", &|s| s["interventions"][1] = json!({"feature": 0, "action": "ablate"}));
    bad("layers", &|s| s["layers"] = json!(3));
    bad("a table of fields", &|s| *s = json!([]));
    bad("layers", &|s| s["layers"] = json!("many"));
    bad("sites stands beside", &|s| s["sites"] = json!([]));
    bad("nowhere", &|s| s["sae"] = json!("nowhere"));
    bad("jumps", &|s| s["budget"]["band"] = json!(0));
    bad("biases", &|s| s["host"]["biases"] = json!(false));
    assert!(!w.path("never").exists());
    let missing = w.path("none.json");
    neurograft().arg("explain").arg(&missing).assert().code(2).stderr(contains("none.json"));
    fs::write(w.path("spec.toml"), "sae = \n").unwrap();
    neurograft().arg("explain").arg(w.path("spec.toml")).assert().code(2).stderr(contains("spec.toml"));
    fs::write(w.path("spec.txt"), "").unwrap();
    neurograft().arg("explain").arg(w.path("spec.txt")).assert().code(2).stderr(contains(".toml"));
}

// ------------------------------------------------------------------------------------------------------------- fit

fn fit(args: &str) -> Command {
    let mut c = neurograft();
    // Words in single quotes hold spaces.
    let words = args.split('\'').enumerate().flat_map(|(k, part)| match k % 2 {
        0 => part.split_whitespace().map(String::from).collect::<Vec<_>>(),
        _ => vec![part.to_string()],
    });
    c.arg("fit").args(words);
    c
}

fn keys(v: &Value) -> Vec<&str> {
    let mut k: Vec<&str> = v.as_object().unwrap().keys().map(String::as_str).collect();
    k.sort_unstable();
    k
}

#[test]
fn fit_in_json() {
    for (args, code, plain) in [
        ("--target gelu --source silu --neurons 2 --domain -8 8 --json", 0, true),
        ("--target relu --source silu --neurons 1 --domain -inf inf --json", 0, true),
        ("--target 'step(z - 2)' --source relu --neurons 2 --domain -8 8 --band 0.125 --form gated --json", 0, false),
        ("--target gelu --source relu --neurons 2 --domain -8 8 --tolerance 1e-9 --json", 3, true),
        ("--target 'z * z' --source silu --neurons 2 --domain 0 inf --form gated --format f32 --json", 0, false),
    ] {
        let output = fit(args).assert().code(code).get_output().clone();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        // The order of the fields, too.
        let order = [
            "version",
            "target",
            "source",
            "form",
            "format",
            "domain",
            "constant",
            "neurons",
            "certificate",
            "alternations",
            "alternations_in_full",
        ];
        let at: Vec<usize> = order.iter().map(|k| text.find(&format!("\"{k}\":")).unwrap()).collect();
        assert!(at.is_sorted() && at[0] == 1, "{text}");
        let v: Value = serde_json::from_str(&text).unwrap();
        let mut sorted = order;
        sorted.sort_unstable();
        assert_eq!(keys(&v), sorted);
        assert_eq!(v["version"], json!(1));
        assert_eq!(v["form"], json!(if plain { "plain" } else { "gated" }));
        for k in ["target", "source", "format"] {
            assert!(v[k].is_string());
        }
        let domain = v["domain"].as_array().unwrap();
        assert_eq!(domain.len(), 2);
        for (end, infinite) in domain.iter().zip(["-inf", "inf"]) {
            assert!(end.is_f64() || *end == json!(infinite), "{end}");
        }
        assert!(v["constant"].is_f64());
        let neurons = v["neurons"].as_array().unwrap();
        assert!(!neurons.is_empty());
        for n in neurons {
            let expected: &[&str] = if plain {
                &["bias", "out", "weight"]
            } else {
                &["gate_bias", "gate_weight", "out", "up_bias", "up_weight"]
            };
            assert_eq!(keys(n), expected);
            assert!(n.as_object().unwrap().values().all(Value::is_f64));
        }
        let c = &v["certificate"];
        assert_eq!(keys(c), ["delta", "epsilon", "epsilon_outside", "eta", "leak", "overshoot", "status"]);
        let status = ["Exact", "ExactOutside", "Within", "BestEffort"];
        assert!(status.contains(&c["status"].as_str().unwrap()));
        assert!(c["delta"].is_f64() && c["epsilon"].is_f64() && c["eta"].is_f64());
        for k in ["epsilon_outside", "overshoot"] {
            assert_eq!(c[k].is_f64(), c["delta"] != json!(0.0), "{k}");
        }
        assert_eq!((code == 3), c["status"] == json!("BestEffort"));
        // Constructions have no alternations to report.
        assert!(v["alternations"].is_null() || v["alternations"].as_u64().unwrap() > 0);
        assert_eq!(v["alternations"].is_u64(), args.contains("gelu"), "{args}");
        assert_eq!(v["alternations_in_full"].is_u64(), args.contains("gelu"), "{args}");
    }
}

#[test]
fn fronts() {
    let args = "--target gelu --source silu --neurons 2 --domain -8 8 --max-weight 16 --pareto";
    let output = fit(&format!("{args} --json")).assert().success().get_output().clone();
    let lines: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let neurons = |v: &Value| v["neurons"].as_array().unwrap().len();
    assert!(lines.len() > 2 && lines.iter().all(|v| (1..=2).contains(&neurons(v))));
    let table = String::from_utf8(fit(args).assert().success().get_output().stdout.clone()).unwrap();
    assert_eq!(table.lines().count(), lines.len() + 1, "{table}");
    fit(&format!("{args} --tolerance 1e-3")).assert().code(2).stderr(contains("cannot be used with"));
}

#[test]
fn evidence_of_a_local_optimum_is_told_from_what_is_proved() {
    // Three numbers a neuron and the output constant: 13 free parameters, none of them at a limit.
    let said = "alternates 14 times between its extremes (13 free parameters: 14 in full)";
    let args = "--target gelu --source silu --neurons 4 --domain -8 8 --max-weight 16";
    fit(args)
        .assert()
        .success()
        .stdout(contains(format!("evidence of a local optimum, no proof: before rounding the error {said}")));

    let work = Work::new();
    let spec = work.spec(|v| {
        v["interventions"] = json!([
            {"feature": 0, "action": "expr", "expr": "gelu(z)", "name": "a gelu"}, {"feature": 1, "action": "add", "value": 0.7},
        ]);
        v["domain"]["range"] = json!([-8, 8]);
        v["host"] = json!({"form": "plain"});
        v["budget"] = json!({"tolerance": 1e-3, "neurons": 4, "max_weight": 16});
    });
    let explained = neurograft().arg("explain").arg(&spec).assert().get_output().clone();
    let explained = String::from_utf8(explained.stdout).unwrap();
    assert_eq!(explained.matches("evidence of a local optimum, no proof").count(), 1, "{explained}");
    let compiled = neurograft().args(["compile", "-o"]).arg(work.path("out")).arg(&spec).assert().get_output().clone();
    let summary = String::from_utf8(compiled.stdout).unwrap();
    assert!(summary.contains("a gelu: a fit; before rounding its error alternates "), "{summary}");
    assert_eq!(summary.matches("a fit; before rounding").count(), 1, "{summary}");
    // The certificate holds what is proved, and nothing else.
    let text = fs::read_to_string(work.path("out/certificate.json")).unwrap();
    assert!(!text.contains("alternat"), "{text}");
}

#[test]
fn fit_in_words() {
    fit("--target gelu --source silu --neurons 1 --domain -8 8").assert().success().stdout(contains("error ≤"));
    let missed = contains("the tolerance").and(contains("is missed"));
    fit("--target gelu --source silu --neurons 1 --domain -8 8 --tolerance 1e-6").assert().code(3).stdout(missed);
}

#[test]
fn fit_refuses() {
    for (args, what) in [
        ("--target gleu --source silu --neurons 2 --domain -8 8", "did you mean 'gelu'"),
        ("--target gelu --source sulu --neurons 2 --domain -8 8", "did you mean '"),
        ("--target gelu --source silu --neurons 2 --domain 8 -8", "lower end"),
        ("--target gelu --source silu --neurons 2 --domain 8 8", "lower end"),
        ("--target gelu --source silu --neurons 2 --domain nan 8", "nan"),
        ("--target gelu --source silu --neurons 2 --domain -8 x", "'x'"),
        ("--target gelu --source silu --neurons 2", "--domain"),
        ("--target gelu --source silu --neurons 0 --domain -8 8", "0 neurons"),
        ("--target gelu --source silu --neurons -1 --domain -8 8", "-1"),
        ("--target gelu --source silu --neurons 70000 --domain -8 8", "at most 65536"),
        ("--target gelu --source silu --neurons 2 --domain -8 8 --tolerance -1", "tolerance"),
        ("--target gelu --source silu --neurons 2 --domain -8 8 --tolerance nan", "tolerance"),
        ("--target gelu --source silu --neurons 2 --domain -8 8 --max-weight 0", "weight"),
        ("--target gelu --source silu --neurons 2 --domain -8 8 --max-weight nan", "weight"),
        ("--target gelu --source silu --neurons 2 --domain -8 8 --max-out -inf", "output"),
        ("--target gelu --source silu --neurons 2 --domain -8 8 --band -0.1", "band"),
        ("--target gelu --source silu --neurons 2 --domain -8 8 --form square", "square"),
        ("--target gelu --source silu --neurons 2 --domain -8 8 --format f8", "f8"),
        ("--target 'step(z - 2)' --source silu --neurons 2 --domain -8 8", "--band"),
        ("--target 'z * z_1' --source silu --neurons 2 --domain -8 8", "z_1"),
        ("--target 'relu(z' --source silu --neurons 2 --domain -8 8", "expected ')'"),
        ("--target 'step(z * z - 2)' --source silu --neurons 2 --domain -8 8 --band 0.1", "threshold"),
        ("--target 'z * z' --source relu --neurons 2 --domain -inf inf", "error: "),
        ("--target '1e5 + relu(z)' --source relu --neurons 2 --domain -8 8 --format f16", "error: "),
    ] {
        let quiet = contains("panicked").not();
        fit(args).assert().code(2).stderr(contains(what).and(contains("rror: ")).and(quiet));
    }
}

// ------------------------------------------------------------------------------------------------------- tampering

const BLOCK: &str = "block.safetensors";
const CERTIFICATE: &str = "certificate.json";

fn read_certificate(out: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(out.join(CERTIFICATE)).unwrap()).unwrap()
}

fn write_certificate(out: &Path, v: &Value) {
    fs::write(out.join(CERTIFICATE), serde_json::to_string(v).unwrap()).unwrap();
}

/// Writes other weights, and the checksum that goes with them.
fn write_block(out: &Path, certificate: &Value, bytes: &[u8]) {
    fs::write(out.join(BLOCK), bytes).unwrap();
    let mut v = certificate.clone();
    v["block_sha256"] = neurograft::files::sha256(bytes).into();
    write_certificate(out, &v);
}

#[test]
fn flipped_bits_are_found() {
    let w = Work::new();
    let out = w.compile(|_| ());
    let block = fs::read(out.join(BLOCK)).unwrap();
    let certificate = read_certificate(&out);
    let header = 8 + u64::from_le_bytes(block[..8].try_into().unwrap()) as usize;
    let tensors = safetensors::SafeTensors::deserialize(&block).unwrap();
    let names = tensors.names();
    assert_eq!(names.len(), 6);
    for name in names {
        let data = tensors.tensor(name).unwrap().data();
        let start = data.as_ptr() as usize - block.as_ptr() as usize;
        assert!(start >= header);
        for k in (0..data.len()).step_by(4) {
            // A bit in the middle of an f32's fraction.
            let mut changed = block.clone();
            changed[start + k + 1] ^= 0x80;
            fs::write(out.join(BLOCK), &changed).unwrap();
            write_certificate(&out, &certificate);
            let (code, text) = verify(&out);
            assert!(code == 1 && text.contains("SHA-256"), "{name} {k}: {text}");
            // The tamperer recomputes the checksum: the bounds are other ones then. A 0 becomes a subnormal number that
            // no bound notices, for the bounds of the changed block are the same.
            let was_zero = f32::from_le_bytes(data[k..k + 4].try_into().unwrap()) == 0.0;
            write_block(&out, &certificate, &changed);
            let (code, text) = verify(&out);
            assert!(code == 1 || was_zero && code == 0, "{name} {k}: {text}");
            // The sign.
            let mut changed = block.clone();
            changed[start + k + 3] ^= 0x80;
            write_block(&out, &certificate, &changed);
            let (code, text) = verify(&out);
            assert!(code == 1 || was_zero, "{name} {k}, sign: {text}");
            // NaN
            changed[start + k..start + k + 4].copy_from_slice(&f32::NAN.to_le_bytes());
            write_block(&out, &certificate, &changed);
            rejected(&out, "NaN");
        }
    }
}

#[test]
fn truncated_and_missing_files_are_found() {
    let w = Work::new();
    let out = w.compile(|_| ());
    let block = fs::read(out.join(BLOCK)).unwrap();
    let text = fs::read(out.join(CERTIFICATE)).unwrap();
    let certificate = read_certificate(&out);
    for (k, n) in [0, 1, 7, 8, 9, block.len() / 2, block.len() - 4, block.len() - 1].into_iter().enumerate() {
        fs::write(out.join(BLOCK), &block[..n]).unwrap();
        fs::write(out.join(CERTIFICATE), &text).unwrap();
        rejected(&out, &format!("{k}: {n} bytes of the block"));
        write_block(&out, &certificate, &block[..n]);
        rejected(&out, &format!("{k}: {n} bytes of the block, checksum recomputed"));
    }
    let longer = [&block[..], &[0; 4]].concat();
    write_block(&out, &certificate, &longer);
    rejected(&out, "a longer block");
    fs::write(out.join(BLOCK), &block).unwrap();
    for n in [0, 1, text.len() / 3, text.len() / 2, text.len() - 3] {
        fs::write(out.join(CERTIFICATE), &text[..n]).unwrap();
        rejected(&out, "a truncated certificate");
    }
    fs::write(out.join(CERTIFICATE), [&text[..], b"{}"].concat()).unwrap();
    rejected(&out, "a longer certificate");
    fs::write(out.join(CERTIFICATE), [0xff; 64]).unwrap();
    rejected(&out, "not even text");
    fs::write(out.join(CERTIFICATE), &text).unwrap();
    assert_eq!(verify(&out).0, 0);
    for file in [BLOCK, CERTIFICATE] {
        let away = w.path("away");
        fs::rename(out.join(file), &away).unwrap();
        let (code, said) = verify(&out);
        assert!(code == 2 && said.contains(file), "{said}");
        fs::rename(&away, out.join(file)).unwrap();
    }
    // The picture is not part of what is verified.
    fs::remove_file(out.join("report.svg")).unwrap();
    assert_eq!(verify(&out).0, 0);
    assert_eq!(verify(&w.path("nowhere")).0, 2);
}

/// Paths of all leaves, as JSON pointers.
fn leaves(v: &Value, at: &str, out: &mut Vec<String>) {
    match v {
        Value::Object(m) => m.iter().for_each(|(k, v)| leaves(v, &format!("{at}/{k}"), out)),
        Value::Array(a) => a.iter().enumerate().for_each(|(k, v)| leaves(v, &format!("{at}/{k}"), out)),
        _ => out.push(at.to_string()),
    }
}

/// Other values for a leaf: near and far ones of its own type, and other types.
fn others(v: &Value) -> Vec<Value> {
    let mut out = vec![json!([]), json!({}), json!(true)];
    match v {
        Value::Number(n) if n.is_u64() => {
            let k = n.as_u64().unwrap();
            out.extend([json!(k + 1), json!(k.wrapping_sub(1)), json!(u64::MAX), json!(-1), json!(0.5), Value::Null]);
        }
        Value::Number(n) => {
            let x = n.as_f64().unwrap();
            out.extend([
                json!(x + 1.0),
                json!(x * 1.001),
                json!(-x),
                json!(0.0),
                json!(1e308),
                json!(-1e308),
                json!(5e-324),
            ]);
        }
        Value::String(s) => {
            out.extend([json!(""), json!(format!("{s}!")), json!("(".repeat(300)), json!(0)]);
            for k in [0, s.len() / 2, s.len().saturating_sub(2)] {
                let mut bytes = s.clone().into_bytes();
                if let Some(b) = bytes.get_mut(k) {
                    *b = if b.is_ascii_digit() {
                        b'0' + (*b - b'0' + 1) % 10
                    } else if *b == b'A' {
                        b'B'
                    } else {
                        b'A'
                    };
                }
                out.push(json!(String::from_utf8(bytes).unwrap()));
            }
        }
        _ => out.extend([json!(1), json!(0.5), json!("x")]),
    }
    out.retain(|o| o != v && o.as_f64().is_none_or(|x| Some(x) != v.as_f64()));
    out
}

#[test]
fn every_leaf_of_a_certificate_counts() {
    let w = Work::new();
    for (source, form) in [("silu", "gated"), ("relu", "plain")] {
        let out = w.compile(|s| s["host"] = json!({"source": source, "form": form, "format": "f32"}));
        let certificate = read_certificate(&out);
        let mut paths = Vec::new();
        leaves(&certificate, "", &mut paths);
        assert!(paths.len() > 60, "{}", paths.len());
        let mut tried = 0;
        for path in &paths {
            for other in others(certificate.pointer(path).unwrap()) {
                let mut v = certificate.clone();
                *v.pointer_mut(path).unwrap() = other.clone();
                write_certificate(&out, &v);
                let (code, text) = verify(&out);
                tried += 1;
                if code != 0 {
                    continue;
                }
                // What may change is what nobody proves (the name, the tolerance asked for), and what the statement is
                // about (range, norm, band), as long as every bound is the same there: `verify` has derived them all
                // for the changed statement, so it is as true as the first.
                let free = path.ends_with("/name") && other.is_string()
                    || path.ends_with("/tolerance") && (other.is_number() || other.is_null())
                    || (path.contains("/domain/") || path == "/norm" || path.ends_with("/certificate/delta"))
                        && other.is_number();
                // A response that does not depend on z says nothing of w and b.
                let constant =
                    |k: &str| certificate["responses"][k.parse::<usize>().unwrap()]["target"] == json!("0.7");
                let parts: Vec<&str> = path.split('/').collect();
                let free = free || parts.len() > 3 && matches!(parts[3], "w" | "b") && constant(parts[2]);
                assert!(free, "{path} = {other} is accepted\n{text}");
            }
        }
        assert!(tried > 400, "{tried}");
        // Without any one of its fields.
        write_certificate(&out, &certificate);
        assert_eq!(verify(&out).0, 0);
        // (An absent field is a null one.)
        for key in keys(&certificate).into_iter().filter(|k| !certificate[k].is_null()) {
            let mut v = certificate.clone();
            v.as_object_mut().unwrap().remove(key);
            write_certificate(&out, &v);
            rejected(&out, &format!("without {key}"));
        }
        // A response forgotten, doubled, or moved.
        for change in [
            |r: &mut Vec<Value>| drop(r.pop()),
            |r: &mut Vec<Value>| r.push(r[0].clone()),
            |r: &mut Vec<Value>| r.swap(0, 1),
            |r: &mut Vec<Value>| r.clear(),
        ] {
            let mut v = certificate.clone();
            change(v["responses"].as_array_mut().unwrap());
            write_certificate(&out, &v);
            rejected(&out, "other responses");
        }
    }
}

// ---------------------------------------------------------------------------------------------------- what is printed is true

fn said(args: &[&str], path: &Path) -> String {
    let out = neurograft().args(args).arg(path).output().unwrap();
    String::from_utf8(out.stdout).unwrap() + &String::from_utf8(out.stderr).unwrap()
}

/// Compiles a specification anew; the exit code, what it said, and the certificate.
fn compiled(work: &Work, change: impl FnOnce(&mut Value)) -> (i32, String, Value) {
    let out = work.path("out");
    let run = neurograft().arg("compile").arg(work.spec(change)).arg("-o").arg(&out).arg("--force").output().unwrap();
    let text = String::from_utf8(run.stdout).unwrap() + &String::from_utf8(run.stderr).unwrap();
    let certificate = serde_json::from_slice(&fs::read(out.join("certificate.json")).unwrap()).unwrap();
    (run.status.code().unwrap(), text, certificate)
}

#[test]
fn bounds_on_unbounded_ranges_come_with_their_share_of_z() {
    let work = Work::new();
    let (_, table, certificate) = compiled(&work, |s| {
        s["interventions"] = json!([{"feature": 0, "action": "ablate"}]);
        s["domain"] = json!({});
    });
    let eta = certificate["responses"][0]["certificate"]["eta"].as_f64().unwrap();
    assert!(eta > 0.0);
    let head: Vec<&str> = table.lines().next().unwrap().split("  ").map(str::trim).filter(|c| !c.is_empty()).collect();
    assert!(table.starts_with("response") && head.concat().contains("per |z|"), "{table}");
    let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    // ablate feature 0, units, status, error, per |z|
    let slope: f64 = row[6].parse().unwrap();
    assert!(slope >= eta && slope <= 1.01 * eta, "{table}");
    assert!(table.contains("no domain.norm"), "{table}");
    let front = "fit --target 0.3*relu(z) --source silu --neurons 1 --domain -inf inf --format f32 --pareto";
    neurograft().args(front.split(' ')).assert().stdout(contains("beyond, they grow by at most"));
    let out = work.path("out");
    for text in [said(&["verify"], &out), said(&["inspect"], &out), said(&["explain"], &work.path("spec.json"))] {
        assert!(text.contains("·|z|") && text.contains("no domain.norm"), "{text}");
        assert!(text.contains("real arithmetic"), "{text}");
    }
}

/// Ablates a real feature in bf16, whose rows are rounded by more than the band: the stack's ε is 6.4e-3, the bound in the stream 1.08
/// in one layer and 7.3e-3 in two. The tolerance lies between.
fn coarse(s: &mut Value, layers: Value) {
    s["sae"] = json!(root("examples/data"));
    s["interventions"] = json!([{"feature": 5, "action": "ablate"}]);
    s["layers"] = layers;
    s["host"]["format"] = json!("bf16");
    s["budget"] = json!({"tolerance": 0.1, "band": 0.05});
    s["domain"] = json!({"range": [-110, 140], "norm": 250});
}

/// The radius printed before "from the jump" must be δ + δ_rows, or the claim must be about the z that the rows compute.
#[test]
fn bands_are_as_wide_as_rounded_rows_make_them() {
    let work = Work::new();
    let (code, table, certificate) = compiled(&work, |s| coarse(s, json!(1)));
    let r = &certificate["responses"][0];
    let number = |x: &Value| x.as_f64().unwrap();
    let (delta, rows) = (number(&r["certificate"]["delta"]), number(&r["rounding"]["delta_rows"]));
    assert!(rows > delta, "the case is to be one where rounding widens the band: {r}");
    let out = work.path("out");
    for text in [said(&["verify"], &out), said(&["explain"], &work.path("spec.json"))] {
        let stream = text.lines().find(|l| l.contains("in the stream, farther than")).expect(&text);
        let radius: f64 = stream.split("farther than ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!(radius >= delta + rows, "{text}");
        assert!(text.contains("of z as the rounded rows compute it, off by at most"), "{text}");
        assert!(text.contains("for ‖x‖ ≤ 250") && text.contains("z in [-110, 140]"), "{text}");
    }
    // The tolerance is met by the stack alone: both are said.
    assert_eq!((code, r["certificate"]["status"].as_str().unwrap()), (0, "Within"));
    assert!(table.contains("is met at the z that the rounded rows compute, but in the stream"), "{table}");
    assert!(table.contains("warning: ablate feature 5: rounded rows widen its band from 0.05 to"), "{table}");
}

#[test]
fn in_16_bits_auto_takes_the_layout_that_comes_closer_in_the_stream() {
    let work = Work::new();
    let run = |layers: Value| {
        let (_, _, certificate) = compiled(&work, |s| coarse(s, layers));
        certificate["total"]["outside"].as_f64().unwrap()
    };
    let (one, two, auto) = (run(json!(1)), run(json!(2)), run(json!("auto")));
    assert!(two < 0.9 * one, "the case is to be one where two layers come closer: {one} {two}");
    assert_eq!(auto, two);
}

#[test]
fn a_band_that_takes_up_the_range_is_warned_of() {
    let work = Work::new();
    let run = |band: f64, layers: u32| {
        let (code, text, _) = compiled(&work, |s| {
            s["interventions"] = json!([{"feature": 0, "action": "ablate"}]);
            s["budget"]["band"] = json!(band);
            s["layers"] = json!(layers);
        });
        assert_eq!(code, 0, "{text}");
        text
    };
    for layers in [1, 2] {
        let text = run(3.0, layers);
        assert!(text.contains("its bands take up 33 % of its range [-9, 9]"), "{text}");
        assert!(!run(0.05, layers).contains("warning"));
    }
}

#[test]
fn a_response_without_jumps_has_no_talk_of_one() {
    let work = Work::new();
    let out = work.compile(|s| s["interventions"] = json!([{"feature": 1, "action": "cap", "value": 2}]));
    let text = said(&["verify"], &out);
    assert!(!text.contains("jump") && text.contains("  in the stream: ‖error‖ ≤"), "{text}");
    let fit = "fit --target relu(z) --source silu --neurons 1 --domain -8 8";
    neurograft().args(fit.split(' ')).assert().stdout(contains("certified, no tolerance asked for"));
}

#[test]
fn what_the_letters_stand_for_is_said() {
    let work = Work::new();
    let two = |s: &mut Value| {
        let when = "a > 1 and not (z_2 > 3)";
        s["interventions"] = json!([{"feature": 1, "action": "add", "value": 3, "when": when, "name": "both"}]);
    };
    let (_, text, _) = compiled(&work, two);
    assert!(text.contains("both: z is feature 1, z_1 is feature 2; v is the decoder row of feature 1"), "{text}");
    assert!(text.contains("both (1 of 2)") && text.contains("both (2 of 2)") && text.contains("-3 where"), "{text}");
    assert!(said(&["explain"], &work.path("spec.json")).contains("z_1 is feature 2"));
    let residuals = work.path("residuals.safetensors");
    matrix(&residuals, 6, 5);
    let residuals = residuals.to_str().unwrap();
    let measured = said(&["calibrate", "--residuals", residuals], &work.path("spec.json"));
    assert!(measured.contains("z is feature 1, z_1 is feature 2"), "{measured}");
    let verified = said(&["verify"], &work.path("out"));
    assert!(verified.contains("from z - 1 = 0 and farther than"), "{verified}");
}

// ---------------------------------------------------------------------------------------------------- what is wrong is shown where it is

/// A specification in TOML with a vector `steer`; what `explain` says of it.
fn refused_toml(work: &Work, head: &str, entry: &str) -> String {
    let path = work.path("spec.toml");
    fs::write(work.path("steer.npy"), b"").unwrap();
    let vector = "[vectors.steer]\nfile = 'steer.npy'\n\n";
    fs::write(&path, format!("sae = 'sae'\n\n{vector}{head}[[interventions]]\n{entry}\n")).unwrap();
    let text = said(&["explain"], &path);
    assert!(text.starts_with("error: "), "{text}");
    text
}

#[test]
fn conditions_that_do_not_parse_say_what_is_missing() {
    let work = Work::new();
    for (when, part) in [
        ("a >> 20", "nothing stands to the right of '>' in 'a >> 20'"),
        ("a >", "nothing stands to the right of '>'"),
        ("> 3", "nothing stands to the left of '>'"),
        ("a > 1 AND a < 3", "'AND' in 'a > 1 AND a < 3'"),
        ("a > 1 && a < 3", "'&&'"),
        ("a > 1 & a < 3", "'&'"),
        ("a > 1 | a < 3", "'|'"),
        ("!(a > 1)", "'!'"),
    ] {
        let text = refused_toml(&work, "", &format!("feature = 1\naction = 'ablate'\nwhen = '{when}'"));
        assert!(text.contains(part) && text.contains("joined by and, or, not"), "{when}: {text}");
        assert!(text.contains("spec.toml:9:8"), "{when}: {text}");
    }
}

#[test]
fn the_field_that_names_what_is_not_there_is_underlined() {
    let work = Work::new();
    for (entry, line, near) in [
        ("vector = 'steer'\naction = 'add'\nvalue = 1\nwhen = 'a_steeer > 6'", ":10:8", "did you mean 'steer'?"),
        ("feature = 1\naction = 'add'\nvalue = 1\nwrite = 'ster'", ":10:9", "did you mean 'steer'?"),
        ("feature = 1\naction = 'expr'\nexpr = 'z_massive + 1'", ":9:8", "there is no vector 'massive'"),
        ("feature = 1\naction = 'cap'\nvalue = inf", ":9:9", "inf is no finite number"),
        ("feature = 1\naction = 'cap'\nvalue = nan", ":9:9", "no finite number"),
    ] {
        let text = refused_toml(&work, "", entry);
        assert!(text.contains(line) && text.contains(near), "{entry}: {text}");
        assert!(text.matches("help:").count() <= 1, "{entry}: {text}");
    }
    let text = refused_toml(&work, "[host]\nsource = 'slu'\n\n", "feature = 1\naction = 'ablate'");
    assert!(text.contains(":7:10") && text.contains("did you mean 'silu'?"), "{text}");
}

#[test]
fn what_verify_cannot_take_is_pointed_elsewhere() {
    let work = Work::new();
    let out = work.compile(|_| ());
    let (code, text) = verify(&out.join("certificate.json"));
    assert!(code == 2 && text.contains(&format!("help: neurograft verify {}", out.display())), "{text}");
    let splice = work.path("spliced");
    fs::create_dir_all(splice.join("neurograft")).unwrap();
    fs::write(splice.join("neurograft/splice.json"), "{}").unwrap();
    let (code, text) = verify(&splice);
    assert!(code == 2 && text.contains("neurograft splice --check"), "{text}");
    assert!(said(&["inspect"], &splice.join("neurograft/splice.json")).contains("the manifest of a splice"));
    neurograft().arg("splice").assert().code(2).stderr(contains("neurograft splice --check <OUTPUT>"));
    let margin = ["calibrate", "x.toml", "--residuals", "y", "--margin", "-1"];
    neurograft().args(margin).assert().code(2).stderr(contains("-- -1").not());
}

#[test]
fn long_lists_of_tensors_are_cut() {
    let work = Work::new();
    let path = work.path("many.safetensors");
    let bytes = 1f32.to_le_bytes();
    let views = (0..40).map(|k| {
        (format!("t{k}"), safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &bytes).unwrap())
    });
    fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    let spec = work.spec(|_| ());
    let run = |more: &[&str]| {
        let mut command = neurograft();
        command.arg("calibrate").arg(&spec).arg("--residuals").arg(&path).args(more);
        command.assert().code(2).stderr(contains("and 32 more"));
    };
    run(&[]);
    run(&["--tensor", "nothing like it"]);
}

#[test]
fn what_is_taken_away_twice_is_warned_of() {
    let work = Work::new();
    let both = |second: Value| {
        let entries = json!([{"feature": 0, "action": "ablate"}, second]);
        compiled(&work, |s| s["interventions"] = entries).1
    };
    let twice = "warning: interventions 1 and 2 both replace the activation of feature 0";
    assert!(both(json!({"feature": 0, "action": "clamp_when_active", "value": 2})).contains(twice));
    assert!(!both(json!({"feature": 0, "action": "add_when_active", "value": 2})).contains("warning"));
    assert!(!both(json!({"feature": 1, "action": "ablate"})).contains("warning"));
}
