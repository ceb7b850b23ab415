//! Two inserted layers against the intervention they stand for, computed naively from the specification.

use nalgebra::{DMatrix, DVector};
use neurograft::certify::Domain;
use neurograft::compile::Depth;
use neurograft::format::Format;
use neurograft::{Compiled, Options, PreActivation, Response, Target, compile};
use proptest::prelude::*;

/// Numbers of a fixed sequence, uniform in (−1, 1).
fn numbers(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

/// A response over three pre-activations of a stream of width 12, in closed form beside its expression.
struct Case {
    expr: &'static str,
    value: fn(&[f64]) -> f64,
    /// where it may be on or off: distances to thresholds
    boundary: fn(&[f64]) -> f64,
}

fn on(x: f64) -> f64 {
    if x > 0.0 { 1.0 } else { 0.0 }
}

const CASES: [Case; 8] = [
    Case { expr: "-jumprelu(z, 0.75)", value: |z| -z[0] * on(z[0] - 0.75), boundary: |z| (z[0] - 0.75).abs() },
    Case {
        expr: "(3 - z) * step(z - 0.5)",
        value: |z| (3.0 - z[0]) * on(z[0] - 0.5),
        boundary: |z| (z[0] - 0.5).abs(),
    },
    Case {
        expr: "-relu(z) * step(z_1 - 0.25)",
        value: |z| -z[0].max(0.0) * on(z[1] - 0.25),
        boundary: |z| (z[1] - 0.25).abs(),
    },
    Case {
        expr: "-jumprelu(z, 1) * step(z_1 - 0.25) * step(z_2 + 1)",
        value: |z| -z[0] * on(z[0] - 1.0) * on(z[1] - 0.25) * on(z[2] + 1.0),
        boundary: |z| (z[0] - 1.0).abs().min((z[1] - 0.25).abs()).min((z[2] + 1.0).abs()),
    },
    Case {
        expr: "(step(z) + step(z_1) - step(z) * step(z_1)) * (2 - z_2)",
        value: |z| on(z[0]).max(on(z[1])) * (2.0 - z[2]),
        boundary: |z| z[0].abs().min(z[1].abs()),
    },
    Case { expr: "relu(z - z_1)", value: |z| (z[0] - z[1]).max(0.0), boundary: |_| f64::INFINITY },
    Case {
        expr: "sigmoid(z) * step(z_1 - 0.5) + relu(2 - jumprelu(z_2, 1))",
        value: |z| on(z[1] - 0.5) / (1.0 + (-z[0]).exp()) + (2.0 - z[2] * on(z[2] - 1.0)).max(0.0),
        boundary: |z| (z[1] - 0.5).abs().min((z[2] - 1.0).abs()),
    },
    Case {
        expr: "select(z_1 - 1, -relu(z), 0.5 * z)",
        value: |z| if z[1] > 1.0 { -z[0].max(0.0) } else { 0.5 * z[0] },
        boundary: |z| (z[1] - 1.0).abs(),
    },
];

const WIDTH: usize = 12;
const NORM: f64 = 40.0;

fn case(k: usize, seed: u64, format: Format, source: &str) -> (Target, Compiled) {
    let mut next = numbers(seed);
    let mut vector = || {
        let v: Vec<f64> = (0..WIDTH).map(|_| f64::from(next() as f32)).collect();
        let length = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        v.into_iter().map(|x| f64::from((x / length) as f32)).collect::<Vec<f64>>()
    };
    let response = Response {
        name: format!("case {k}"),
        expr: CASES[k].expr.parse().unwrap(),
        pre_activations: (0..3).map(|j| PreActivation { w: vector(), b: 0.125 * f64::from(j) - 0.1 }).collect(),
        write: vector(),
        domain: Domain::new(-50.0, 50.0).unwrap(),
        band: 0.02,
    };
    let target = Target { responses: vec![response] };
    let options = Options {
        source: source.parse().unwrap(),
        format,
        bias_parts: if format == Format::Bf16 { 3 } else { 1 },
        depth: Depth::Two,
        norm: Some(NORM),
        ..Options::default()
    };
    let compiled = compile(&target, &options).unwrap_or_else(|e| panic!("{}: {e}", CASES[k].expr));
    (target, compiled)
}

/// Residuals of norms up to NORM, some with a pre-activation near a threshold.
fn residuals(target: &Target, seed: u64, tokens: usize) -> DMatrix<f64> {
    let mut next = numbers(seed ^ 0xABCD);
    DMatrix::from_columns(
        &(0..tokens)
            .map(|t| {
                let mut x = DVector::from_fn(WIDTH, |_, _| next());
                x *= NORM * next().abs() / x.norm();
                let p = &target.responses[0].pre_activations[t % 3];
                if t % 4 == 0 {
                    // Move z close to one of the thresholds.
                    let w = DVector::from_column_slice(&p.w);
                    let goal = [0.75, 0.5, 0.25, 1.0, -1.0, 0.0][t / 4 % 6] + 0.1 * next();
                    let z = w.dot(&x) + p.b;
                    let moved = &x + &w * ((goal - z) / w.norm_squared());
                    if moved.norm() <= NORM {
                        x = moved;
                    }
                }
                x
            })
            .collect::<Vec<_>>(),
    )
}

fn check(k: usize, seed: u64, format: Format, source: &str) {
    let (target, compiled) = case(k, seed, format, source);
    let r = &target.responses[0];
    let x = residuals(&target, seed, 600);
    let written = compiled.forward(&x);
    let total = compiled.proof.total.as_ref().unwrap();
    // Every band: δ and what the rounding of rows adds.
    let gates = compiled.gates.iter().flat_map(|g| &g.bands);
    let stacks = compiled.proof.responses.iter().map(|p| p.figures().delta + p.rounding.as_ref().unwrap().delta_rows);
    let band = gates.copied().chain(stacks).fold(0.0, f64::max);
    let v = DVector::from_column_slice(&r.write);
    let mut seen = 0;
    for t in 0..x.ncols() {
        let z: Vec<f64> =
            r.pre_activations.iter().map(|p| p.b + DVector::from_column_slice(&p.w).dot(&x.column(t))).collect();
        if (CASES[k].boundary)(&z) <= band {
            continue;
        }
        seen += 1;
        let error = (written.column(t) - &v * (CASES[k].value)(&z)).norm();
        // f64 evaluates sums of some hundred: 1e-12.
        assert!(
            error <= total.outside + 1e-12,
            "{} in {format}, z = {z:?}: {error:e} > {:e}",
            CASES[k].expr,
            total.outside
        );
    }
    assert!(seen > 300, "{seen} tokens off the bands");
}

#[test]
fn every_case_keeps_its_bound() {
    for k in 0..CASES.len() {
        for (format, source) in
            [(Format::F32, "silu"), (Format::F32, "relu"), (Format::Bf16, "silu"), (Format::F32, "gelu")]
        {
            check(k, 7 + k as u64, format, source);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn bounds_hold_for_random_directions(k in 0..CASES.len(), seed in 1u64..1 << 40, sixteen in any::<bool>()) {
        check(k, seed, if sixteen { Format::Bf16 } else { Format::F32 }, "silu");
    }
}

#[test]
fn in_f32_two_layers_are_exact_off_the_bands() {
    for (k, this) in CASES.iter().enumerate() {
        let (_, compiled) = case(k, 3, Format::F32, "silu");
        assert!(compiled.met(), "{}", this.expr);
        let outside = compiled.proof.total.as_ref().unwrap().outside;
        // Rounding of f32 rows and columns, ‖x‖ = 40; steep kinks cost 0.28/K.
        assert!(outside < 1e-4, "{}: {outside:e}", this.expr);
    }
}

#[test]
fn within_a_band_the_factor_hardly_leaves_the_segment() {
    let (target, compiled) = case(0, 5, Format::F32, "silu");
    let r = &target.responses[0];
    let p = &r.pre_activations[0];
    let w = DVector::from_column_slice(&p.w);
    let v = DVector::from_column_slice(&r.write);
    let hull = compiled.proof.total.as_ref().unwrap().hull;
    for i in 0..4000 {
        let z = 0.75 + 0.02 * (f64::from(i) / 2000.0 - 1.0);
        let x = &w * ((z - p.b) / w.norm_squared());
        let written = compiled.forward(&DMatrix::from_columns(&[x])).column(0).clone_owned();
        let c = written.dot(&v) / v.norm_squared();
        let beyond = (c - 0.0).max(-z - c).max(0.0);
        assert!(beyond <= hull, "z = {z}: {c} is {beyond:e} beyond the segment [-z, 0], bound {hull:e}");
    }
}

#[test]
fn auto_takes_the_fewest_layers_that_meet_the_tolerance() {
    let layers = |expr: &str, format: Format| {
        let (target, _) = case(0, 3, Format::F32, "silu");
        let mut r = target.responses[0].clone();
        r.expr = expr.parse().unwrap();
        let parts = if format == Format::Bf16 { 3 } else { 1 };
        let options = Options { format, bias_parts: parts, norm: Some(NORM), ..Options::default() };
        let compiled = compile(&Target { responses: vec![r] }, &options).unwrap();
        if compiled.first.is_some() { 2 } else { 1 }
    };
    assert_eq!(layers("-relu(z)", Format::F32), 1);
    assert_eq!(layers("-jumprelu(z, 0.75)", Format::F32), 1);
    assert_eq!(layers("-jumprelu(z, 0.75) * step(z_1)", Format::F32), 2);
    // In 16 bits a band of 0.02 is out of reach of one layer.
    assert_eq!(layers("-jumprelu(z, 0.75)", Format::Bf16), 2);
    assert_eq!(layers("-relu(z)", Format::Bf16), 1);
}

#[test]
fn what_two_layers_need_is_said() {
    let (target, _) = case(3, 3, Format::F32, "silu");
    let two = Options { depth: Depth::Two, norm: Some(NORM), ..Options::default() };
    let refused = |target: &Target, options: Options, words: &str| {
        let e = compile(target, &options).unwrap_err();
        assert!(e.to_string().contains(words), "{e}");
    };
    refused(&target, Options { norm: None, ..two.clone() }, "domain.norm");
    refused(&target, Options { biases: false, ..two.clone() }, "biases");
    let sigmoid = "sigmoid".parse().unwrap();
    refused(&target, Options { source: sigmoid, ..two.clone() }, "does not approach the identity");
    let mut without = target.clone();
    without.responses[0].band = 0.0;
    refused(&without, two.clone(), "band");
    let mut product = target.clone();
    product.responses[0].expr = "z * z_1".parse().unwrap();
    refused(&product, two, "several pre-activations");
}

#[test]
fn files_of_two_layers_verify_and_every_change_is_noticed() {
    let (_, compiled) = case(6, 11, Format::F32, "silu");
    let dir = tempfile::tempdir().unwrap();
    compiled.write(dir.path()).unwrap();
    let verified = neurograft::verify::verify(dir.path()).unwrap();
    assert_eq!(verified.insertion(), compiled.insertion());
    let path = dir.path().join("certificate.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut paths = Vec::new();
    numbers_in(&value, String::new(), &mut paths);
    assert!(paths.len() > 50);
    for p in paths {
        // The range and the tolerance may change where no bound does: the claims stay true.
        // A term says nothing of a pre-activation that does not occur in it (z_2 in the first, z and z_1 in the second).
        let unused = ["terms/0/pre_activations/2", "terms/1/pre_activations/0", "terms/1/pre_activations/1"];
        if ["/domain", "/tolerance", "/name"].iter().chain(&unused).any(|free| p.contains(free)) {
            continue;
        }
        let mut changed = value.clone();
        let leaf = changed.pointer_mut(&p).unwrap();
        *leaf = match leaf.as_f64() {
            Some(x) => serde_json::json!(if x == 0.0 { 0.5 } else { x * 1.25 }),
            None => serde_json::json!("z + 17"),
        };
        std::fs::write(&path, changed.to_string()).unwrap();
        assert!(neurograft::verify::verify(dir.path()).is_err(), "{p} can be changed");
    }
    // Another weight.
    std::fs::write(&path, &text).unwrap();
    let block = dir.path().join("first_block.safetensors");
    let mut bytes = std::fs::read(&block).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&block, bytes).unwrap();
    assert!(neurograft::verify::verify(dir.path()).unwrap_err().is_disagreement());
}

fn numbers_in(v: &serde_json::Value, at: String, out: &mut Vec<String>) {
    match v {
        serde_json::Value::Object(m) => m.iter().for_each(|(k, v)| numbers_in(v, format!("{at}/{k}"), out)),
        serde_json::Value::Array(a) => a.iter().enumerate().for_each(|(k, v)| numbers_in(v, format!("{at}/{k}"), out)),
        serde_json::Value::Null | serde_json::Value::Bool(_) => {}
        _ => out.push(at),
    }
}
