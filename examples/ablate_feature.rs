//! From SAE features to a certified block, through the library: the example that is inside the program.

use neurograft::{Error, compile, embedded, intervention};

fn main() -> Result<(), Error> {
    // A specification, six features of a real SAE, and 64 real residuals.
    let (spec, sae, residuals) = embedded::load()?;
    let target = intervention::target(&spec, &sae)?;
    let compiled = compile(&target, &intervention::options(&spec))?;

    let block = &compiled.block;
    println!("{} hidden units on a stream of width {}", block.intermediate_size(), block.hidden_size());
    for (response, proof) in compiled.certificate.responses.iter().zip(&compiled.proof.responses) {
        let figures = proof.figures();
        let error = figures.epsilon_outside.unwrap_or(figures.epsilon);
        println!("  {:<28} {} neurons, error ≤ {error:.2e}", response.name, response.neurons.len());
    }
    assert!(compiled.met());

    // What the block adds to each token, beside what the certificate allows.
    let seen = neurograft::observe::observe(&target, &compiled, &residuals)?;
    let bound = compiled.proof.total.as_ref().expect("the specification gives a norm").outside;
    println!("largest error on {} tokens {:.2e}, certified {bound:.2e}", seen.tokens, seen.largest);
    assert!(seen.largest <= bound && seen.active > 0 && seen.excluded == 0);
    Ok(())
}
