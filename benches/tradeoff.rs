//! Certified error against neurons: a report, not a timing.
//!
//! `cargo bench --bench tradeoff` prints a table and writes `target/tradeoff/tradeoff.csv` and `tradeoff.svg`; with
//! `-- --test` it runs a few pairs only and writes nothing.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use neurograft::certify::Domain;
use neurograft::expr::Expr;
use neurograft::format::Format;
use neurograft::report::log_plot;
use neurograft::solve::{Budget, Request, solve};
use neurograft::stack::Form;

const TARGETS: [(&str, &str); 8] = [
    ("relu", "relu(z)"),
    ("step", "step(z - 1)"),
    ("jumprelu", "jumprelu(z, 1)"),
    ("clamp", "clamp(z, -1, 2)"),
    ("gelu", "gelu(z)"),
    ("silu", "silu(z)"),
    ("tanh", "tanh(z)"),
    ("softplus", "softplus(z)"),
];
const SOURCES: [&str; 4] = ["silu", "gelu", "relu", "tanh"];
const NEURONS: [usize; 6] = [1, 2, 3, 4, 6, 8];
const LIMITS: [f64; 2] = [16.0, 1_048_576.0];
const DOMAIN: (f64, f64) = (-8.0, 8.0);
const BAND: f64 = 0.125;

/// The certified error off the bands and the overshoot inside, whichever is larger; `None` where nothing keeps to the
/// limits.
fn error(target: &str, source: &str, neurons: usize, max_weight: f64) -> Option<(f64, usize, String)> {
    let target: Expr = target.parse().unwrap();
    let source = source.parse().unwrap();
    let budget = Budget { neurons, max_weight, band: BAND, ..Budget::default() };
    let domain = Domain::new(DOMAIN.0, DOMAIN.1).unwrap();
    let request = Request { target: &target, source: &source, form: Form::Plain, format: Format::F64, domain, budget };
    let s = solve(&request).ok()?;
    let f = s.certificate.figures();
    let error = f.epsilon_outside.unwrap_or(f.epsilon).max(f.overshoot.unwrap_or(0.0));
    assert!(error >= 0.0 && error.is_finite());
    Some((error, s.stack.neurons.len(), format!("{:?}", f.status)))
}

/// A name and its (neurons, error).
type Series = (String, Vec<(f64, f64)>);

fn main() {
    let test = std::env::args().any(|a| a == "--test");
    let (targets, sources, counts) =
        if test { (&TARGETS[..2], &SOURCES[..1], &NEURONS[..2]) } else { (&TARGETS[..], &SOURCES[..], &NEURONS[..]) };
    let mut csv = String::from("target,source,max_weight,neurons_allowed,neurons_used,certified_error,status\n");
    let mut table = format!("{:<10} {:<6} {:>8}", "target", "source", "weights");
    counts.iter().for_each(|n| write!(table, " {:>9}", format!("n = {n}")).unwrap());
    table.push('\n');
    let mut plots = LIMITS.map(|l| (l, Vec::<Series>::new()));
    let mut rises = Vec::new();
    for (name, target) in targets {
        for source in sources.iter().filter(|s| *s != name) {
            for (limit, series) in &mut plots {
                write!(table, "{name:<10} {source:<6} {:>8}", format!("≤ 2^{}", limit.log2())).unwrap();
                let mut line = Vec::new();
                for n in counts {
                    match error(target, source, *n, *limit) {
                        Some((e, used, status)) => {
                            write!(table, " {e:>9.2e}").unwrap();
                            writeln!(csv, "{name},{source},{limit},{n},{used},{e:e},{status}").unwrap();
                            line.push((*n as f64, e));
                        }
                        None => table.push_str("         -"),
                    }
                }
                table.push('\n');
                // More neurons should never be worse; where the search had no luck, say so.
                for w in line.windows(2) {
                    if w[1].1 > w[0].1 * 1.01 + 1e-12 {
                        rises.push(format!(
                            "{name} from {source}, ≤ 2^{}: {} neurons are worse than {}",
                            limit.log2(),
                            w[1].0,
                            w[0].0
                        ));
                    }
                }
                series.push((format!("{name} from {source}"), line));
            }
        }
    }
    print!("{table}");
    println!("(certified error on [{}, {}], f64, plain form; jumps have a band of radius {BAND})", DOMAIN.0, DOMAIN.1);
    rises.iter().for_each(|r| println!("{r}"));
    if test {
        return;
    }
    let dir = std::env::var_os("CARGO_TARGET_DIR")
        .map_or(Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from);
    let dir = dir.join("tradeoff");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("tradeoff.csv"), csv).unwrap();
    // What a picture can show: the smooth and jumping targets from silu under either limit.
    let shown: Vec<Series> = plots
        .into_iter()
        .flat_map(|(limit, series)| {
            let from_silu = series.into_iter().filter(|(name, _)| name.ends_with("from silu"));
            from_silu.map(move |(name, line)| (format!("{name}, ≤ 2^{}", limit.log2()), line))
        })
        .collect();
    let svg = log_plot("Certified error against neurons", "neurons", &shown).unwrap();
    std::fs::write(dir.join("tradeoff.svg"), svg).unwrap();
    println!("wrote {0}/tradeoff.csv and {0}/tradeoff.svg", dir.display());
}
