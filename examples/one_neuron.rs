//! One steep silu neuron is nearly a relu: silu(βz)/β, off by at most 0.27846…/β on all of R.

use neurograft::Error;
use neurograft::activation::Activation;
use neurograft::certify::{Claim, Domain, Status, certify};
use neurograft::expr::Expr;
use neurograft::stack::{Neuron, Stack};

/// sup |relu(t) − silu(t)|, rounded up; attained at t = ±1.2784…
const KNEE: f64 = 0.278_464_542_761_074;

fn main() -> Result<(), Error> {
    let target: Expr = "relu(z)".parse()?;
    println!("relu(z) ≈ silu(βz)/β on the whole line");
    for exponent in [0, 4, 8, 12, 16, 20] {
        let beta = 2f64.powi(exponent);
        let neuron = Neuron { weight: beta, bias: 0.0, out: 1.0 / beta, up: None };
        let stack = Stack { source: Activation::Silu, constant: 0.0, neurons: vec![neuron] };
        let claim =
            Claim { target: &target, stack: &stack, ideal: None, domain: Domain::line(), delta: 0.0, tolerance: None };
        let certificate = certify(&claim)?;
        println!("  β = 2^{exponent:<2}  certified error {:.9e}", certificate.epsilon());
        // A true bound, and hardly more than the supremum itself.
        assert!((0.999_999..1.000_001).contains(&(certificate.epsilon() * beta / KNEE)));
        assert_eq!((certificate.eta(), certificate.status()), (0.0, Status::Within));
    }
    Ok(())
}
