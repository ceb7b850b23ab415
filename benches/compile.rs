//! Times of the steps from a response to a certified block; each result is checked before it is timed.
//!
//! `cargo bench --bench compile`, or once through with `cargo bench --bench compile -- --test`.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use neurograft::certify::{Claim, Domain, Figures, Status, certify};
use neurograft::expr::Expr;
use neurograft::format::Format;
use neurograft::solve::{Budget, Request, solve};
use neurograft::stack::{Form, Neuron, Stack};
use neurograft::{Options, PreActivation, Response, Target, compile};

fn stack(source: &str, neurons: impl IntoIterator<Item = (f64, f64, f64)>) -> Stack<f64> {
    let neurons = neurons.into_iter().map(|(weight, bias, out)| Neuron { weight, bias, out, up: None });
    Stack { source: source.parse().unwrap(), constant: 0.0, neurons: neurons.collect() }
}

fn proved(target: &Expr, stack: &Stack<f64>) -> Figures {
    let domain = Domain::new(-8.0, 8.0).unwrap();
    let claim = Claim { target, stack, ideal: None, domain, delta: 0.0, tolerance: None };
    certify(&claim).unwrap().figures().clone()
}

fn certifying(c: &mut Criterion) {
    let (target, one) = ("relu(z)".parse().unwrap(), stack("silu", [(64.0, 0.0, 1.0 / 64.0)]));
    // sup |relu(z) − silu(64z)/64| = 0.27846…/64
    let epsilon = proved(&target, &one).epsilon;
    assert!((epsilon * 64.0 - 0.278_464_54).abs() < 1e-7, "{epsilon}");
    c.bench_function("certify one silu neuron", |b| b.iter(|| proved(black_box(&target), &one)));

    let target = "gelu(z)".parse().unwrap();
    let many = (0..18).map(|k| (3.0 + f64::from(k), -8.0 + f64::from(k) * 0.9, 0.1 * (-1f64).powi(k)));
    let many = stack("silu", many);
    let epsilon = proved(&target, &many).epsilon;
    let seen = (0..=100_000).map(|k| -8.0 + f64::from(k) * 1.6e-4);
    let gelu: neurograft::activation::Activation = "gelu".parse().unwrap();
    let seen = seen.map(|z| (many.value(z) - gelu.value(z)).abs()).fold(0.0, f64::max);
    assert!(seen <= epsilon && epsilon <= seen * 1.001, "{seen} {epsilon}");
    c.bench_function("certify 18 silu neurons", |b| b.iter(|| proved(black_box(&target), &many)));
}

fn solving(c: &mut Criterion) {
    let real = (f64::NEG_INFINITY, f64::INFINITY);
    let jobs = [
        (
            "jumprelu from relu, exact",
            "jumprelu(z, 1.5)",
            "relu",
            real,
            Budget { band: 0.25, ..Budget::default() },
            1e-14,
        ),
        ("quick_gelu from silu, exact", "quick_gelu(z)", "silu", real, Budget::default(), 1e-14),
        (
            "gelu from four silu neurons, fitted",
            "gelu(z)",
            "silu",
            (-8.0, 8.0),
            Budget { neurons: 4, max_weight: 16.0, ..Budget::default() },
            1e-3,
        ),
    ];
    for (name, target, source, (lo, hi), budget, bound) in jobs {
        let (target, source): (Expr, _) = (target.parse().unwrap(), source.parse().unwrap());
        let domain = Domain::new(lo, hi).unwrap();
        let request =
            Request { target: &target, source: &source, form: Form::Plain, format: Format::F64, domain, budget };
        let figures = solve(&request).unwrap().certificate.figures().clone();
        let error = figures.epsilon_outside.unwrap_or(figures.epsilon);
        assert!(error <= bound && figures.eta <= 1e-15, "{name}: {figures:?}");
        assert_eq!(figures.status.is_exact(), name.ends_with("exact"), "{name}: {figures:?}");
        c.bench_function(&format!("solve {name}"), |b| b.iter(|| solve(black_box(&request)).unwrap()));
    }
}

/// Deterministic rows of norm about 1.
fn row(seed: u64, d: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // An f32, like a row of a real SAE.
        f64::from(((state >> 40) as f32 / 8_388_608.0 - 1.0) / (d as f32 / 3.0).sqrt())
    };
    (0..d).map(|_| next()).collect()
}

fn blocks(c: &mut Criterion) {
    const D: usize = 576;
    let responses = (0..1000u64).map(|k| Response {
        name: format!("ablate {k}"),
        expr: format!("-jumprelu(z, {})", 1.0 + (k % 64) as f64 / 16.0).parse().unwrap(),
        pre_activations: vec![PreActivation { w: row(2 * k + 1, D), b: -((k % 7) as f64) / 4.0 }],
        write: row(2 * k + 2, D),
        domain: Domain::new(-110.0, 140.0).unwrap(),
        band: 0.0625,
    });
    let target = Target { responses: responses.collect() };
    let options =
        Options { source: "relu".parse().unwrap(), form: Form::Plain, norm: Some(250.0), ..Options::default() };
    let compiled = compile(&target, &options).unwrap();
    assert_eq!(compiled.block.intermediate_size(), 2000);
    for r in &compiled.proof.responses {
        let f = r.figures();
        assert!(f.status == Status::ExactOutside && f.epsilon_outside.unwrap() <= 1e-3, "{f:?}");
    }
    let outside = compiled.proof.total.as_ref().unwrap().outside;
    assert!(outside > 0.0 && outside < 1.0, "{outside}");
    let mut group = c.benchmark_group("block");
    group.sample_size(10);
    group.bench_function("1,000 ablations at d = 576", |b| b.iter(|| compile(black_box(&target), &options).unwrap()));
    group.finish();
}

criterion_group!(benches, certifying, solving, blocks);
criterion_main!(benches);
