//! Certifies stacks of anybody's making: lines of JSON as `neurograft fit --json` prints them (plain stacks) on standard input,
//! for each the certified error and the seconds that it took on standard output. Figures in the input are ignored.
//!
//! `neurograft fit --target gelu --source silu --neurons 2 --domain -8 8 --json | cargo run --release --example certify_lines`

use std::io::BufRead;
use std::time::Instant;

use neurograft::Error;
use neurograft::activation::Activation;
use neurograft::certify::{Claim, Domain, certify};
use neurograft::expr::Expr;
use neurograft::stack::{Neuron, Stack};
use serde_json::Value;

fn main() -> Result<(), Error> {
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| Error::io("standard input".to_string(), e))?;
        let bad = |what: &str| Error::input(format!("{what} is missing or of another type")).at(line.clone());
        let value: Value = serde_json::from_str(&line).map_err(|e| Error::input(e.to_string()))?;
        let number = |v: &Value, key: &str| v[key].as_f64().ok_or_else(|| bad(key));
        let text = |key: &str| value[key].as_str().ok_or_else(|| bad(key));
        let neurons = value["neurons"].as_array().ok_or_else(|| bad("neurons"))?.iter().map(|n| {
            Ok(Neuron { weight: number(n, "weight")?, bias: number(n, "bias")?, out: number(n, "out")?, up: None })
        });
        let stack = Stack {
            source: text("source")?.parse()?,
            constant: number(&value, "constant")?,
            neurons: neurons.collect::<Result<_, Error>>()?,
        };
        let target = text("target")?;
        let target: Expr = target.parse::<Activation>().map_or_else(|_| target.parse(), |a| Ok(Expr::of(a)))?;
        let end = |k: usize| value["domain"][k].as_f64().ok_or_else(|| bad("domain"));
        let domain = Domain::new(end(0)?, end(1)?)?;
        let start = Instant::now();
        let claim = Claim { target: &target, stack: &stack, ideal: None, domain, delta: 0.0, tolerance: None };
        let certificate = certify(&claim)?;
        println!("{:e} {:e}", certificate.epsilon(), start.elapsed().as_secs_f64());
    }
    Ok(())
}
