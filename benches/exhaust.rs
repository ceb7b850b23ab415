//! How long it takes to visit every cell of a stack in 16 bits: 34 neurons over (nearly) all of bf16, and over a usual range.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use neurograft::activation::Activation;
use neurograft::arithmetic::rows;
use neurograft::certify::Domain;
use neurograft::exhaust::{Question, Sums, Unit, exhaust};

fn stacks(c: &mut Criterion) {
    let units: Vec<Unit> = (0..17)
        .flat_map(|k| {
            let gamma = -1024.0 - 64.0 * f64::from(k) / 17.0;
            [(gamma + 128.0, 1.0), (gamma, -1.0)].map(|(bias, sign)| Unit {
                weight: 512.0,
                bias,
                out: sign / (128.0 * 17.0),
                up: Some((0.0, 1.0)),
                gate_error: 0.5,
                up_error: 0.0,
            })
        })
        .collect();
    let target = "step(z - 2)".parse().unwrap();
    let whole = f64::from(half::bf16::MAX.to_f32()) / 1024.0;
    for (name, lo, hi) in [("34 neurons, all of bf16", -whole, whole), ("34 neurons, z in [-110, 140]", -110.0, 140.0)]
    {
        let question = Question {
            target: &target,
            source: &Activation::Silu,
            constant: 0.0,
            units: &units,
            domain: Domain::new(lo, hi).unwrap(),
            delta: 0.25,
            arithmetic: rows("transformers-bf16").unwrap()[0],
            sums: Sums::Independent,
        };
        let d = exhaust(&question).unwrap();
        assert!(d.epsilon_outside.is_finite() && d.leak.is_some_and(|l| l < 1e-3));
        c.bench_function(name, |b| b.iter(|| exhaust(black_box(&question))));
    }
}

criterion_group! { name = benches; config = Criterion::default().sample_size(10); targets = stacks }
criterion_main!(benches);
