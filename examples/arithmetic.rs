//! Steps in 16 bits: the figures of docs/arithmetic.md.
//!
//!     cargo run --release --example arithmetic -- docs

use neurograft::activation::Activation;
use neurograft::arithmetic::rows;
use neurograft::certify::Domain;
use neurograft::dither::{Copies, Dither};
use neurograft::expr::Expr;
use neurograft::report::{Panel, log_plot, svg};

const NUMBERS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// What bf16 makes of the copies: σ in f32, every value rounded.
fn engine(c: &Copies, z: f64) -> f64 {
    // Once, from f64: to 8 bits.
    let round = |x: f64| {
        let unit = f64::exp2(x.abs().max(f64::MIN_POSITIVE).log2().floor() - 7.0);
        (x / unit).round_ties_even() * unit
    };
    c.ideal.neurons.iter().fold(0.0, |sum, n| {
        let gate = round(n.weight.to_f64() * z + n.bias.to_f64()) as f32;
        sum + n.out.to_f64() * round((gate / (1.0 + (-gate).exp())).into())
    })
}

fn dither<'a>(target: &'a Expr, row: &str, delta: f64, sums: f64) -> Result<Dither<'a>, neurograft::Error> {
    Ok(Dither {
        target,
        source: &Activation::Silu,
        gated: true,
        domain: Domain::new(-30.0, 32.0)?,
        delta,
        arithmetic: rows(row)?[0],
        sums,
        idle_sums: 0.0,
        max_weight: 1_048_576.0,
        row: None,
    })
}

/// A step's block and its error, and a line of what was proved and seen.
fn panel(target: &Expr, count: usize, delta: f64) -> Result<Panel, neurograft::Error> {
    let copies = dither(target, "transformers-bf16", delta, 0.0)?.copies(count)?.expect("room for a rise");
    let goal = |z: f64| f64::from(u8::from(z > 2.0));
    let off = |z: f64| (z - 2.0).abs() > delta;
    let grid: Vec<f64> = (0..=48_000).map(|k| 1.0 + 31.0 * f64::from(k) / 48_000.0).collect();
    let errors: Vec<f64> = grid.iter().filter(|z| off(**z)).map(|z| (engine(&copies, *z) - goal(*z)).abs()).collect();
    let (mean, most) =
        (errors.iter().sum::<f64>() / errors.len() as f64, errors.iter().fold(0.0, |a: f64, b| a.max(*b)));
    let proved = copies.deviation.epsilon_outside;
    println!("| {count} | {delta} | {proved:.3} | {most:.3} | {mean:.1e} |");
    let every = |f: &dyn Fn(f64) -> f64| grid.iter().step_by(16).map(|z| (*z, f(*z))).collect::<Vec<_>>();
    Ok(Panel {
        title: format!("{count} pair{} of silu in bf16", if count == 1 { "" } else { "s" }),
        subtitle: format!("step at 2, band ±{delta}; off the band at most {proved:.3}"),
        domain: (1.0, 32.0),
        target: every(&goal),
        block: every(&|z| engine(&copies, z)),
        error: every(&|z| if off(z) { engine(&copies, z) - goal(z) } else { f64::NAN }),
        epsilon: proved,
        bands: vec![(2.0 - delta, 2.0 + delta)],
        hull_error: false,
    })
}

fn main() -> Result<(), neurograft::Error> {
    let folder = std::env::args().nth(1).unwrap_or("docs".into());
    let target: Expr = "step(z - 2)".parse()?;
    println!("| pairs | band | proved | seen | mean |\n|---|---|---|---|---|");
    let panels = [(1, 0.13), (16, 0.19), (64, 0.5)].map(|(count, delta)| panel(&target, count, delta));
    let panels = panels.into_iter().collect::<Result<Vec<_>, _>>()?;

    println!("\n| format, band, sums | {} |", NUMBERS.map(|n| n.to_string()).join(" | "));
    println!("|---|{}", "---|".repeat(NUMBERS.len()));
    let mut series = Vec::new();
    for (format, sums, what) in
        [("bf16", 0.0, "sums agree"), ("bf16", 0.01, "sums off by 0.01"), ("f16", 0.0, "sums agree")]
    {
        for delta in [0.25, 0.5, 1.0] {
            let dither = dither(&target, &format!("transformers-{format}"), delta, sums)?;
            let layouts = dither.layouts()?.expect("a step has layouts");
            let mut points = Vec::new();
            for n in NUMBERS {
                points.extend(layouts.copies(n)?.map(|c| (n as f64, c.deviation.epsilon_outside)));
            }
            let cells: Vec<String> = points.iter().map(|p| format!("{:.3}", p.1)).collect();
            println!("| {format}, ±{delta}, {what} | {} |", cells.join(" | "));
            series.push((format!("{format}, ±{delta}, {what}"), points));
        }
    }
    let write = |name: &str, text: String| {
        neurograft::files::write_whole(&std::path::Path::new(&folder).join(name), text.as_bytes())
    };
    write("arithmetic-steps.svg", svg("A step in bf16: exact, but for windows at powers of two", &panels)?)?;
    write("arithmetic-pairs.svg", log_plot("Error of a step on [−30, 32] off its band, proved", "pairs", &series)?)
}
