//! What another neuron buys: gelu from relu (piecewise linear) and from silu (smooth), on [−8, 8].

use neurograft::Error;
use neurograft::activation::Activation;
use neurograft::certify::Domain;
use neurograft::expr::Expr;
use neurograft::format::Format;
use neurograft::solve::{Budget, Request, solve};
use neurograft::stack::Form;

fn main() -> Result<(), Error> {
    let target = Expr::of(Activation::Gelu);
    println!("certified error of gelu(z) on [-8, 8]");
    println!("  neurons  from relu  from silu");
    let mut last = [f64::INFINITY; 2];
    for neurons in [1, 2, 4, 8] {
        let mut errors = [0.0; 2];
        for (error, source) in errors.iter_mut().zip([Activation::Relu, Activation::Silu]) {
            let budget = Budget { neurons, ..Budget::default() };
            let domain = Domain::new(-8.0, 8.0)?;
            let request =
                Request { target: &target, source: &source, form: Form::Plain, format: Format::F64, domain, budget };
            *error = solve(&request)?.certificate.epsilon();
        }
        println!("  {neurons:>7}  {:>9.3e}  {:>9.3e}", errors[0], errors[1]);
        // A fit is a search: more neurons may come out worse by a fraction of a percent.
        assert!(errors.iter().zip(last).all(|(now, before)| *now <= 1.01 * before));
        last = errors;
    }
    assert!(last[1] < last[0]);
    Ok(())
}
