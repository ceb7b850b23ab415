//! Blocks: forward evaluation against naive loops, files, rejections.

use approx::assert_relative_eq;
use nalgebra::{DMatrix, DVector};
use neurograft::activation::Activation;
use neurograft::block::Block;
use neurograft::format::Format;
use neurograft::stack::Form;
use neurograft::tensors::TensorFile;
use proptest::prelude::*;

const FORMATS: [Format; 4] = [Format::F64, Format::F32, Format::F16, Format::Bf16];

fn block(form: Form, format: Format, biases: bool, source: &str, (h, d): (usize, usize), numbers: &[f64]) -> Block {
    let mut next = numbers.iter().cycle().map(|x| format.round(*x));
    let mut take = move || next.next().expect("a cycle has no end");
    let mut matrix = |r, c| DMatrix::from_fn(r, c, |_, _| take());
    let (gate, up, down) = (matrix(h, d), matrix(h, d), matrix(d, h));
    let vector = |m: DMatrix<f64>| DVector::from_iterator(m.len(), m.iter().copied());
    let (gate_bias, up_bias, down_bias) = (vector(matrix(h, 1)), vector(matrix(h, 1)), vector(matrix(d, 1)));
    let gated = form == Form::Gated;
    Block {
        source: source.parse().expect("a catalogue name"),
        form,
        format,
        bias_format: format,
        gate,
        gate_bias: biases.then_some(gate_bias),
        up: gated.then_some(up),
        up_bias: (gated && biases).then_some(up_bias),
        down,
        down_bias: biases.then_some(down_bias),
    }
}

/// The formulas of the module's head, written as loops.
fn naive(b: &Block, x: &[f64]) -> Vec<f64> {
    let (h, d) = (b.intermediate_size(), b.hidden_size());
    let row = |m: &DMatrix<f64>, bias: &Option<DVector<f64>>, i: usize| {
        (0..d).map(|k| m[(i, k)] * x[k]).sum::<f64>() + bias.as_ref().map_or(0.0, |b| b[i])
    };
    let hidden: Vec<f64> = (0..h)
        .map(|i| {
            let g = b.source.value(row(&b.gate, &b.gate_bias, i));
            b.up.as_ref().map_or(g, |up| g * row(up, &b.up_bias, i))
        })
        .collect();
    (0..d)
        .map(|k| (0..h).map(|i| b.down[(k, i)] * hidden[i]).sum::<f64>() + b.down_bias.as_ref().map_or(0.0, |b| b[k]))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn forward_is_the_formula_and_files_keep_every_bit(
        form in prop_oneof![Just(Form::Gated), Just(Form::Plain)],
        format in prop::sample::select(&FORMATS[..]),
        biases in any::<bool>(),
        source in prop::sample::select(vec!["relu", "silu", "gelu", "tanh", "relu2"]),
        shape in (1usize..6, 1usize..6),
        numbers in prop::collection::vec(-4.0..4.0f64, 7..40),
        tokens in 1usize..4,
    ) {
        let b = block(form, format, biases, source, shape, &numbers);
        let x = DMatrix::from_fn(shape.1, tokens, |r, c| numbers[(3 * r + c) % numbers.len()]);
        let y = b.forward(&x);
        for t in 0..tokens {
            let column: Vec<f64> = x.column(t).iter().copied().collect();
            for (k, expected) in naive(&b, &column).into_iter().enumerate() {
                // Sums of at most 6 terms below 1e5 in another order: a few roundings of 1e-16 relative to the terms.
                assert_relative_eq!(y[(k, t)], expected, epsilon = 1e-9, max_relative = 1e-12);
            }
        }
        let bytes = b.to_safetensors().unwrap();
        prop_assert_eq!(&bytes, &b.to_safetensors().unwrap());
        let file = TensorFile::from_bytes("memory", bytes).unwrap();
        prop_assert_eq!(Block::from_safetensors(&file, b.source.clone(), form, format).unwrap(), b);
    }
}

#[test]
fn files_are_those_of_the_library() {
    // Rows and columns beyond what is turned round at a time, and no multiples of it.
    for ((h, d), format) in [(70, 45), (33, 100), (1, 1)].into_iter().zip(FORMATS) {
        let numbers: Vec<f64> = (0..997).map(|k| (f64::from(k) * 0.37).sin() * 3.0).collect();
        let b = Block { bias_format: Format::F32, ..block(Form::Gated, format, true, "silu", (h, d), &numbers) };
        let bytes = |numbers: Vec<f64>, format: Format| {
            let mut bytes = Vec::new();
            numbers.iter().for_each(|x| format.write(*x, &mut bytes));
            bytes
        };
        let matrix = |m: &DMatrix<f64>| {
            let rows = (0..m.nrows()).flat_map(|r| (0..m.ncols()).map(move |c| m[(r, c)])).collect();
            (format, vec![m.nrows(), m.ncols()], bytes(rows, format))
        };
        let vector = |v: &Option<DVector<f64>>| {
            let v: Vec<f64> = v.as_ref().unwrap().iter().copied().collect();
            (Format::F32, vec![v.len()], bytes(v, Format::F32))
        };
        let tensors = [
            ("gate_proj.weight", matrix(&b.gate)),
            ("gate_proj.bias", vector(&b.gate_bias)),
            ("up_proj.weight", matrix(b.up.as_ref().unwrap())),
            ("up_proj.bias", vector(&b.up_bias)),
            ("down_proj.weight", matrix(&b.down)),
            ("down_proj.bias", vector(&b.down_bias)),
        ];
        let views = tensors.iter().map(|(name, (f, shape, data))| {
            (name.to_string(), safetensors::tensor::TensorView::new(f.dtype(), shape.clone(), data).unwrap())
        });
        let about = "version 1; source silu; form gated; weights are [out, in]".to_string();
        let about = std::collections::HashMap::from([("neurograft_block".to_string(), about)]);
        let expected = safetensors::serialize(views, Some(about)).unwrap();
        assert_eq!(b.to_safetensors().unwrap(), expected);
        assert_eq!(b.sha256().unwrap(), neurograft::files::sha256(&expected));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let b = block(Form::Gated, Format::F32, true, "silu", (3, 2), &[0.5, -1.0, 2.0]);
    let file = |b: &Block| TensorFile::from_bytes("memory", b.to_safetensors().unwrap()).unwrap();
    let read = |b: &Block, form, format| Block::from_safetensors(&file(b), Activation::Silu, form, format);
    let message = |r: Result<Block, neurograft::Error>| r.unwrap_err().to_string();
    assert!(message(read(&b, Form::Plain, Format::F32)).contains("unexpected tensor 'up_proj"));
    assert!(message(read(&b, Form::Gated, Format::Bf16)).contains("is f32, the block is bf16"));
    let plain = Block { up: None, up_bias: None, form: Form::Plain, ..b.clone() };
    assert!(message(read(&plain, Form::Gated, Format::F32)).contains("up_proj.weight"));
    let skewed = Block { down: DMatrix::zeros(2, 4), ..b.clone() };
    assert!(message(read(&skewed, Form::Gated, Format::F32)).contains("shapes do not fit"));
    let mut broken = b.clone();
    broken.gate[(1, 1)] = f64::NAN;
    assert!(message(read(&broken, Form::Gated, Format::F32)).contains("gate_proj.weight"));
    let short = Block { gate_bias: Some(DVector::zeros(2)), ..b };
    assert!(read(&short, Form::Gated, Format::F32).unwrap_err().is_input());
}
