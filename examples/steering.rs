//! Steering only where a probe fires: x ← x + 3·v where ⟨w, x⟩ − 1 > 0.5, and nothing elsewhere.

use nalgebra::DMatrix;
use neurograft::certify::Domain;
use neurograft::{Error, Options, PreActivation, Response, Target, compile};

fn main() -> Result<(), Error> {
    let (w, v) = (vec![0.6, 0.8, 0.0, 0.0], vec![0.0, 0.0, 1.0, -1.0]);
    let response = Response {
        name: "steer".into(),
        expr: "3 * step(z - 0.5)".parse()?,
        pre_activations: vec![PreActivation { w, b: -1.0 }],
        write: v,
        domain: Domain::new(-20.0, 20.0)?,
        // Within 0.01 of the threshold the block may add any part of the vector.
        band: 0.01,
    };
    let compiled = compile(&Target { responses: vec![response] }, &Options { norm: Some(16.0), ..Options::default() })?;
    let total = compiled.proof.total.as_ref().expect("a norm was given");
    let leak = compiled.proof.responses[0].figures().leak.expect("the response is 0 somewhere");
    println!(
        "off the band ‖error‖ ≤ {:.2e}; where the probe is silent the response is at most {leak:.2e}",
        total.outside
    );

    // z = 0.6·x0 + 0.8·x1 − 1 on three tokens, one a column: far off, just below the band, just above it.
    let tokens = [[0.0, 0.0, 1.0, 1.0], [2.0, 0.36, 0.0, 0.0], [2.0, 0.4, 0.0, 0.0]];
    let x = DMatrix::from_column_slice(4, 3, &tokens.concat());
    let added = compiled.block.forward(&x);
    for (column, wanted) in added.column_iter().zip([0.0, 0.0, 3.0]) {
        println!("  added ({:.6}, {:.6}, {:.6}, {:.6})", column[0], column[1], column[2], column[3]);
        let error = ((column[2] - wanted).powi(2) + (column[3] + wanted).powi(2)).sqrt();
        assert!(error <= total.outside && column[0] == 0.0 && column[1] == 0.0);
    }
    assert!(compiled.met() && leak < 1e-6);
    Ok(())
}
