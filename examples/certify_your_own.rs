//! The certifier judges any stack, whoever made it: here one typed in by hand, and a claim that is false.

use neurograft::Error;
use neurograft::certify::{Claim, Domain, Status, certify};
use neurograft::expr::Expr;
use neurograft::stack::{Neuron, Stack};

fn main() -> Result<(), Error> {
    // A step of height 1 at z = 2 as a ramp from 1.75 to 2.25, made of two relu neurons.
    let neuron = |bias, out| Neuron { weight: 4.0, bias, out, up: None };
    let stack = Stack { source: "relu".parse()?, constant: 0.0, neurons: vec![neuron(-7.0, 0.5), neuron(-9.0, -0.5)] };
    let target: Expr = "step(z - 2)".parse()?;
    let judge = |stack: &Stack<f64>, delta| {
        let domain = Domain::new(-8.0, 8.0)?;
        certify(&Claim { target: &target, stack, ideal: None, domain, delta, tolerance: Some(0.01) })
    };

    let wide = judge(&stack, 0.25)?;
    println!("δ = 0.25:   {:?}, ε = {}", wide.status(), wide.epsilon());
    assert_eq!((wide.status(), wide.epsilon()), (Status::ExactOutside, 0.0));

    // The ramp is wider than this band: a quarter of the step sticks out.
    let narrow = judge(&stack, 0.125)?;
    println!("δ = 0.125:  {:?}, ε = {}", narrow.status(), narrow.epsilon());
    assert_eq!((narrow.status(), narrow.epsilon()), (Status::BestEffort, 0.25));

    // Without a band there is nothing to certify: no continuous function follows a jump.
    let none = judge(&stack, 0.0).expect_err("a jump without a band");
    println!("δ = 0:      {none}");
    assert!(none.is_input());
    Ok(())
}
