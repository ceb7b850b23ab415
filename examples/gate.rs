//! Two inserted layers: ablate one feature, but only where another is active.
//!
//! One layer cannot do this: its hidden units see one pre-activation at a time. Two can. The first finds out where both
//! conditions hold; the second lets the ablation through there, and nowhere else.

use nalgebra::DMatrix;
use neurograft::certify::Domain;
use neurograft::{Options, PreActivation, Response, Target, compile};

fn main() -> Result<(), neurograft::Error> {
    let response = Response {
        name: "ablate where the other is on".into(),
        // −z·1[z > 0.75]·1[z_1 > 2]
        expr: "-jumprelu(z, 0.75) * step(z_1 - 2)".parse()?,
        pre_activations: vec![
            PreActivation { w: vec![0.6, 0.8, 0.0, 0.0], b: -0.5 },
            PreActivation { w: vec![0.0, 0.0, 1.0, 0.0], b: 0.0 },
        ],
        write: vec![0.6, 0.8, 0.0, 0.0],
        domain: Domain::new(-30.0, 30.0)?,
        band: 0.01,
    };
    let options = Options { norm: Some(20.0), ..Options::default() };
    let compiled = compile(&Target { responses: vec![response] }, &options)?;
    let bound = compiled.proof.total.as_ref().expect("a norm was given").outside;
    println!("layers: {}", compiled.insertion().blocks.len());
    println!(
        "certified: error at most {bound:.1e}, off a band of {:.4} around each threshold",
        compiled.gates[0].bands[0]
    );

    // The same z = 4.5, with the other feature on, off, and just off.
    for other in [5.0, -5.0, 1.9] {
        let x = DMatrix::from_column_slice(4, 1, &[3.0, 4.0, other, 1.0]);
        let added = compiled.forward(&x);
        println!("z_1 = {other:>4}: the layers add {:+.6} along v", added[0] * 0.6 + added[1] * 0.8);
        let wanted = if other > 2.0 { -4.5 } else { 0.0 };
        assert!((added[0] * 0.6 + added[1] * 0.8 - wanted).abs() <= bound + 1e-12);
    }
    Ok(())
}
