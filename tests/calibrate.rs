//! `calibrate` against naive counts on real residuals, in every format, and what it writes.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use half::{bf16, f16};
use nalgebra::DMatrix;
use neurograft::calibrate::update::Source;
use neurograft::calibrate::{Calibration, Settings, calibrate};
use neurograft::embedded::residuals;
use neurograft::residuals::Residuals;
use neurograft::sae::{Feature, Sae};
use neurograft::spec::Spec;
use neurograft::tensors::TensorFile;
use predicates::prelude::*;
use predicates::str::contains;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

fn neurograft() -> Command {
    Command::new(env!("CARGO_BIN_EXE_neurograft"))
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/smollm2-l15")
}

/// 512 tokens and the two first ones of a sequence.
fn samples() -> DMatrix<f64> {
    let file = TensorFile::open(data().join("residuals.safetensors")).unwrap();
    let (x, first) = (residuals(&file, "residuals").unwrap(), residuals(&file, "first_tokens").unwrap());
    let columns: Vec<_> = x.column_iter().chain(first.column_iter()).collect();
    DMatrix::from_columns(&columns)
}

fn write(path: &Path, dtype: Dtype, x: &DMatrix<f64>) -> DMatrix<f64> {
    let number = |x: f64| -> (f64, Vec<u8>) {
        match dtype {
            Dtype::BF16 => (bf16::from_f64(x).to_f64(), bf16::from_f64(x).to_le_bytes().to_vec()),
            Dtype::F16 => (f16::from_f64(x).to_f64(), f16::from_f64(x).to_le_bytes().to_vec()),
            _ => (f64::from(x as f32), (x as f32).to_le_bytes().to_vec()),
        }
    };
    let bytes: Vec<u8> = x.iter().flat_map(|x| number(*x).1).collect();
    let shape = vec![x.ncols(), x.nrows()];
    if path.extension().is_some_and(|e| e == "npy") {
        let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", shape[0], shape[1]);
        while (header.len() + 11) % 64 != 0 {
            header.push(' ');
        }
        let mut all = b"\x93NUMPY\x01\x00".to_vec();
        all.extend((header.len() as u16 + 1).to_le_bytes());
        all.extend(header.bytes());
        all.push(b'\n');
        all.extend(bytes);
        fs::write(path, all).unwrap();
    } else {
        let view = TensorView::new(dtype, shape, &bytes).unwrap();
        serialize_to_file([("x", view)], None, path).unwrap();
    }
    x.map(|x| number(x).0)
}

fn z(f: &Feature, x: &[f64]) -> f64 {
    f.w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + f.b
}

/// Ablates 3, caps 7 where 19 is active.
fn spec(dir: &Path) -> PathBuf {
    let text = format!(
        "# what for\nsae = '{}'\n\n[[interventions]] # the first\nfeature = 3\naction = 'ablate'\nband = 0.75\n\n[[interventions]]\nfeature = 7\n\
         action = 'cap'\nvalue = 1\nwhen = 'a_19 > 0'\nband = 0.5\nrange = [-1, 2] # wrong\n",
        data().display()
    );
    let path = dir.join("spec.toml");
    fs::write(&path, text).unwrap();
    path
}

fn run(spec: &Path, file: &Path, settings: Settings) -> Calibration {
    let source = Source::read(spec, None).unwrap();
    calibrate(&source.specs, &Residuals::open(file, None).unwrap(), settings, &|_, _| ()).unwrap()
}

/// The numbers from `from` on of what is sorted.
fn sorted(mut x: Vec<f64>) -> Vec<f64> {
    x.sort_by(f64::total_cmp);
    x
}

#[test]
fn ranges_and_counts_are_the_naive_ones() {
    let dir = tempfile::tempdir().unwrap();
    let path = spec(dir.path());
    let sae = Sae::open(data()).unwrap();
    let features = sae.features(&[3, 7, 19]).unwrap();
    for (name, dtype) in [
        ("a.safetensors", Dtype::F32),
        ("b.safetensors", Dtype::BF16),
        ("c.safetensors", Dtype::F16),
        ("x.npy", Dtype::F32),
    ] {
        let file = dir.path().join(name);
        let x = write(&file, dtype, &samples());
        for quantile in [1.0, 0.99] {
            let settings = Settings { quantile, margin: 0.25, ..Settings::default() };
            let c = run(&path, &file, settings);
            let ordinary: Vec<_> = x.column_iter().filter(|x| x.norm() < 1000.0).collect();
            assert_eq!((c.tokens, c.massive, ordinary.len()), (514, 1, 513), "{name}");
            assert!((c.massive_norms.unwrap().0 - x.column(512).norm()).abs() < 1e-6);
            // A sum in another order; quantiles leave floor((1 − q)·513) tokens on each side.
            let beyond = if quantile == 1.0 { 0 } else { 5 };
            let norms = sorted(ordinary.iter().map(|x| x.norm()).collect());
            let norm = norms[512 - beyond];
            assert!(c.norm >= 1.25 * norm * (1.0 - 1e-12) && c.norm <= 1.25 * norm * 1.01 + 1.0, "{} {norm}", c.norm);
            assert_eq!(c.beyond_norm, norms.iter().filter(|n| **n > c.norm).count() as u64);
            assert!((c.median / norms[256] - 1.0).abs() < 0.01);

            let values = |k: usize| ordinary.iter().map(|x| z(&features[k], x.as_slice())).collect::<Vec<_>>();
            let all = [values(0), values(1), values(2)];
            for (entry, of) in [(0, vec![0]), (1, vec![1, 2])] {
                let e = &c.entries[entry];
                assert_eq!(e.rows.len(), of.len());
                let mut ends = (f64::INFINITY, f64::NEG_INFINITY);
                for (row, k) in e.rows.iter().zip(&of) {
                    let s = sorted(all[*k].clone());
                    assert!((row.least - s[0]).abs() < 1e-9 && (row.most - s[512]).abs() < 1e-9, "{name}");
                    assert!(
                        (row.quantiles.0 - s[beyond]).abs() < 1e-9 && (row.quantiles.1 - s[512 - beyond]).abs() < 1e-9
                    );
                    ends = (ends.0.min(s[beyond]), ends.1.max(s[512 - beyond]));
                }
                let width = ends.1 - ends.0;
                let (lo, hi) = (e.range.lo(), e.range.hi());
                assert!(lo <= ends.0 - 0.25 * width && lo > ends.0 - 0.27 * width - 1.0, "{lo} {ends:?}");
                assert!(hi >= ends.1 + 0.25 * width && hi < ends.1 + 0.27 * width + 1.0, "{hi} {ends:?}");
                let outside = |t: &usize| of.iter().any(|k| !(lo..=hi).contains(&all[*k][*t]));
                assert_eq!(e.outside, (0..513).filter(outside).count() as u64);
                assert_eq!(e.massive_outside, 1);
            }
            let count = |holds: &dyn Fn(usize) -> bool| (0..513).filter(|t| holds(*t)).count() as u64;
            let theta = features[0].threshold;
            let ablate = &c.entries[0].switches[0];
            assert_eq!(ablate.inside, count(&|t| (all[0][t] - theta).abs() <= 0.75));
            assert_eq!(ablate.above, count(&|t| all[0][t] - theta > 0.75));
            assert_eq!(c.entries[0].active, count(&|t| all[0][t] > theta));
            let gate = features[2].threshold;
            assert_eq!(
                c.entries[1].active,
                count(&|t| all[1][t] > 1.0 && all[2][t] > gate && all[1][t] > features[1].threshold)
            );
            let on_gate = c.entries[1].switches.iter().find(|s| s.form.to_string().starts_with("z_1")).unwrap();
            assert_eq!(on_gate.inside, count(&|t| (all[2][t] - gate).abs() <= 0.5));
        }
    }
}

/// A later step reads what the one before it has left.
#[test]
fn steps_are_measured_on_what_they_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.safetensors");
    write(&file, Dtype::F32, &samples().columns(0, 512).into_owned());
    let path = dir.path().join("steps.toml");
    let text = |sequence: bool| {
        format!(
            "sae = '{}'\nsequence = {sequence}\ninterventions = [{{ feature = 3, action = 'ablate', direction = 'decoder', activation = 'linear', unit = true }}, \
             {{ feature = 3, action = 'ablate', direction = 'decoder' }}]",
            data().display()
        )
    };
    fs::write(&path, text(true)).unwrap();
    let c = run(&path, &file, Settings::default());
    // Nothing is left along d.
    assert!(c.entries[0].rows[0].most > 10.0 && c.entries[1].rows[0].most.abs() < 1e-9, "{c}");
    fs::write(&path, text(false)).unwrap();
    let c = run(&path, &file, Settings::default());
    // Read as they are, rows differ by their norm alone.
    assert!((c.entries[0].rows[0].most / c.entries[1].rows[0].most - 1.0).abs() < 1e-5);
}

#[test]
fn the_specification_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = spec(dir.path());
    let file = dir.path().join("x.safetensors");
    write(&file, Dtype::F32, &samples());
    let before = fs::read(&path).unwrap();
    fs::create_dir(dir.path().join("elsewhere")).unwrap();
    let run = |output: &str| {
        let mut c = neurograft();
        c.current_dir(dir.path()).args(["calibrate", "spec.toml", "--residuals", "x.safetensors", "-o", output]);
        c
    };
    let said =
        contains("514 tokens of x.safetensors (x)").and(contains("apart: 1 of them")).and(contains("wrote new.toml"));
    run("new.toml").assert().success().stdout(said);
    let text = fs::read_to_string(dir.path().join("new.toml")).unwrap();
    for kept in [
        "# what for",
        "# the first",
        "# wrong",
        "# Calibrated: the least and the greatest of 513 tokens of x.safetensors (x), widened by 10 %; 1 with norms above 8",
    ] {
        assert!(text.contains(kept), "{kept}: {text}");
    }
    let spec = Spec::read(dir.path().join("new.toml")).unwrap();
    assert!(spec.domain.norm.unwrap() > 200.0 && spec.interventions[1].range.unwrap().hi() > 20.0);
    // It is there already; with --force the same again.
    run("new.toml").assert().code(2).stderr(contains("is there already"));
    run("new.toml").arg("--force").assert().success();
    assert_eq!(fs::read_to_string(dir.path().join("new.toml")).unwrap(), text);
    // What is written compiles.
    neurograft().current_dir(dir.path()).args(["compile", "new.toml", "-o", "out"]).assert().success();
    assert_eq!(fs::read(&path).unwrap(), before);
    // Elsewhere, relative paths still lead to the same files; JSON stays JSON.
    let relative = r#"{"vectors": {"v": {"file": "x.npy", "row": 0}}, "layer": 15, "interventions": [{"vector": "v", "action": "add", "value": 1}]}"#;
    fs::write(dir.path().join("v.json"), relative).unwrap();
    write(&dir.path().join("x.npy"), Dtype::F32, &samples());
    let mut c = neurograft();
    c.current_dir(dir.path())
        .args(["calibrate", "v.json", "--residuals", "x.npy", "--layer", "15", "-o", "elsewhere/v.json"])
        .assert()
        .success();
    let moved = Spec::read(dir.path().join("elsewhere/v.json")).unwrap();
    assert!(moved.vectors["v"].file.is_absolute() && moved.vectors["v"].file.exists(), "{:?}", moved.vectors);
    // Features without a specification.
    let sae = data().display().to_string();
    let mut c = neurograft();
    c.current_dir(dir.path()).args([
        "calibrate",
        "--sae",
        &sae,
        "--feature",
        "3,19",
        "--residuals",
        "x.safetensors",
        "-o",
        "started.toml",
    ]);
    c.assert().success().stdout(contains("ablate feature 19"));
    let started = Spec::read(dir.path().join("started.toml")).unwrap();
    assert_eq!((started.interventions.len(), started.domain.norm), (2, spec.domain.norm));
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = spec(dir.path());
    let x = samples();
    write(&dir.path().join("x.safetensors"), Dtype::F32, &x);
    write(&dir.path().join("narrow.safetensors"), Dtype::F32, &x.rows(0, 99).into_owned());
    let mut broken = x.clone();
    broken[(5, 7)] = f64::NAN;
    write(&dir.path().join("nan.safetensors"), Dtype::F32, &broken);
    write(&dir.path().join("zero.safetensors"), Dtype::F32, &(x.clone() * 0.0));
    let sites = "sites = [{ layer = 1, sae = 's', interventions = [{ feature = 1, action = 'ablate' }] }, { layer = 2, sae = 's', interventions = [{ feature = 1, action = 'ablate' }] }]";
    fs::write(dir.path().join("sites.toml"), sites).unwrap();
    let spec = path.display().to_string();
    let real = data().join("residuals.safetensors").display().to_string();
    let sae = data().display().to_string();
    for (arguments, said) in [
        (
            vec![&*spec, "--residuals", "narrow.safetensors"],
            "the residuals have 99 coordinates, the intervention reads 576",
        ),
        (vec![&*spec, "--residuals", "nan.safetensors"], "NaN"),
        (vec![&*spec, "--residuals", "zero.safetensors"], "all residuals are 0"),
        (vec![&*spec, "--residuals", "none.safetensors"], "none.safetensors"),
        (vec![&*spec, "--residuals", &real, "--tensor", "last_tokens"], "no tensor 'last_tokens'"),
        (vec![&*spec, "--residuals", "x.safetensors", "--quantile", "0.3"], "the quantile is 0.3"),
        (vec![&*spec, "--residuals", "x.safetensors", "--margin", "nan"], "the margin is NaN"),
        (vec![&*spec, "--residuals", "x.safetensors", "--massive", "1"], "massive tokens begin at 1"),
        (vec!["sites.toml", "--residuals", "x.safetensors"], "several sites: residuals are of one"),
        (vec!["sites.toml", "--residuals", "x.safetensors", "--layer", "7"], "no site after layer 7"),
        (vec!["--sae", &sae, "--feature", "99", "--residuals", "x.safetensors"], "the SAE has no feature 99"),
        (vec!["--residuals", "x.safetensors"], "required"),
        (vec![&*spec, "--residuals", "x.safetensors", "--layer", "99"], "no site after layer 99"),
        (vec![&*spec, "--residuals", "x.safetensors", "--feature", "3"], "cannot be used with"),
        (vec![&*spec, "--residuals", "x.safetensors", "-o", "new.json"], "name a file that ends in .toml"),
        (vec![&*spec, "--residuals", "x.safetensors", "-o", "new"], "name a file that ends in .toml"),
    ] {
        let mut c = neurograft();
        c.current_dir(dir.path()).arg("calibrate").args(&arguments);
        if !arguments.contains(&"-o") {
            c.args(["-o", "new.toml"]);
        }
        c.assert().code(2).stderr(contains(said));
        assert!(["new.toml", "new.json", "new"].iter().all(|f| !dir.path().join(f).exists()), "{arguments:?}");
    }
}
