//! Certified error against neurons, for every pair of activations and for the responses of interventions: a report.
//!
//! `cargo bench --bench tradeoff` prints a table and writes `tradeoff.csv`, `tradeoff.md` and the figures to
//! `target/tradeoff`, or to `DIR` with `-- --into DIR`; `-- --most N` stops at N neurons. `-- --test` runs a few cells and
//! writes nothing.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use neurograft::activation::Activation;
use neurograft::certify::Domain;
use neurograft::expr::Expr;
use neurograft::format::Format;
use neurograft::lower::{self, Family};
use neurograft::report::log_plot;
use neurograft::solve::{Budget, Request, Solution, solve};
use neurograft::stack::Form;
use neurograft::{duals, eval};

/// Smooth ones first; the others have kinks, or like elu only one derivative.
const TARGETS: [&str; 13] = [
    "silu",
    "gelu",
    "gelu_tanh",
    "quick_gelu",
    "mish",
    "softplus",
    "sigmoid",
    "tanh",
    "elu",
    "relu",
    "leaky_relu",
    "hardswish",
    "relu6",
];
const SOURCES: [&str; 8] = ["relu", "silu", "gelu", "gelu_tanh", "relu2", "softplus", "tanh", "sigmoid"];
/// Sources that every smooth target should be within [`GOAL`] of.
const ABLE: [&str; 4] = ["silu", "gelu", "gelu_tanh", "softplus"];
const GOAL: (f64, usize) = (1e-3, 8);
const NEURONS: [usize; 8] = [1, 2, 3, 4, 6, 8, 12, 16];
/// What interventions add: relu, a step, a JumpReLU feature, a threshold clamp, a cap.
const RESPONSES: [(&str, &str); 5] = [
    ("relu", "relu(z)"),
    ("step", "step(z - 1)"),
    ("jumprelu", "jumprelu(z, 1)"),
    ("clamp", "(3 - z) * step(z - 1)"),
    ("cap", "-relu(z - 2)"),
];
const RESPONSE_SOURCES: [&str; 4] = ["relu", "silu", "gelu", "sigmoid"];
const RESPONSE_NEURONS: [usize; 5] = [1, 2, 3, 4, 6];
const RESPONSE_WEIGHTS: [f64; 2] = [16.0, 1024.0];
const MAX_WEIGHT: f64 = 16.0;
const MAX_TOTAL: f64 = 100.0;
const DOMAIN: (f64, f64) = (-8.0, 8.0);
const BAND: f64 = 0.125;

struct Cell {
    target: String,
    source: &'static str,
    max_weight: f64,
    allowed: usize,
    seconds: f64,
    /// `None` where nothing keeps to the limits
    found: Option<Found>,
}

struct Found {
    used: usize,
    /// off the bands, or the overshoot inside, whichever is larger
    error: f64,
    exact: bool,
    status: String,
    /// no stack with these inner weights (relu: no polyline with as many kinks) is better
    lower: Option<f64>,
    weight: f64,
    total: f64,
}

fn cell(name: &str, target: &Expr, source: &'static str, allowed: usize, max_weight: f64) -> Cell {
    let activation: Activation = source.parse().unwrap();
    let budget = Budget { neurons: allowed, max_weight, max_total: MAX_TOTAL, band: BAND, ..Budget::default() };
    let domain = Domain::new(DOMAIN.0, DOMAIN.1).unwrap();
    let request = Request { target, source: &activation, form: Form::Plain, format: Format::F64, domain, budget };
    let start = Instant::now();
    let solution = solve(&request).ok();
    let seconds = start.elapsed().as_secs_f64();
    let found = solution.map(|s| {
        let f = s.certificate.figures();
        let error = f.epsilon_outside.unwrap_or(f.epsilon).max(f.overshoot.unwrap_or(0.0));
        assert!(error >= 0.0 && error.is_finite());
        let exact = f.status.is_exact();
        let lower = if exact { None } else { lower_bound(target, &activation, domain, allowed, &s) };
        assert!(lower.is_none_or(|l| l <= error), "{name} from {source}: {lower:?} above {error}");
        Found {
            used: s.stack.neurons.len(),
            error,
            exact,
            status: format!("{:?}", f.status),
            lower,
            weight: s.stack.neurons.iter().map(|n| n.weight.abs()).fold(0.0, f64::max),
            total: s.stack.neurons.iter().map(|n| n.out.abs()).sum(),
        }
    });
    Cell { target: name.into(), source, max_weight, allowed, seconds, found }
}

fn lower_bound(target: &Expr, source: &Activation, domain: Domain, kinks: usize, s: &Solution) -> Option<f64> {
    if s.certificate.delta() > 0.0 {
        return None;
    }
    let value = |z: f64| eval::value(target, &[z]).unwrap();
    let points = duals::points(domain, &[0.0], 1000);
    let bound = if *source == Activation::Relu {
        lower::polyline(target, domain, &duals::chain(&value, &points, kinks)?)
    } else {
        let limits: Vec<f64> = s.stack.neurons.iter().map(|_| MAX_TOTAL).collect();
        lower::given_inner(target, domain, &s.stack, &limits, &duals::given_inner(&value, &s.stack, &points)?)
    };
    bound.ok().map(|b| b.value())
}

/// The floor for any number of neurons: (target, source, W, A, bound).
fn floors(test: bool) -> Vec<(&'static str, &'static str, Family, f64)> {
    let cases = [
        ("relu(z)", "silu", 1.0, 10.0),
        ("relu(z)", "silu", 1.0, 100.0),
        ("relu(z)", "gelu", 1.0, 10.0),
        ("relu(z)", "gelu", 1.0, 100.0),
        ("gelu(z)", "silu", 1.0, 4.0),
        ("gelu(z)", "silu", 1.0, 16.0),
        ("silu(z)", "gelu", 0.5, 4.0),
        ("silu(z)", "gelu", 0.5, 16.0),
    ];
    let shown = if test { 0 } else { cases.len() };
    let floor = |&(target, source, max_weight, max_total): &(&'static str, &'static str, f64, f64)| {
        let (expr, activation): (Expr, Activation) = (target.parse().unwrap(), source.parse().unwrap());
        let family = Family { max_weight, max_total };
        let domain = Domain::new(-24.0, 24.0).unwrap();
        let value = |z: f64| eval::value(&expr, &[z]).unwrap();
        let witness = duals::all_stacks(&value, &activation, family, &duals::points(domain, &[0.0], 72))?;
        let bound = lower::all_stacks(&expr, domain, &activation, family, &witness).ok()?.value();
        Some((target, source, family, bound))
    };
    cases[..shown].iter().filter_map(floor).collect()
}

fn shown(c: &Cell) -> String {
    match &c.found {
        None => "-".into(),
        Some(f) if f.exact => "exact".into(),
        Some(f) => format!("{:.1e}", f.error),
    }
}

fn csv(cells: &[Cell]) -> String {
    let mut out = String::from(
        "target,source,max_weight,neurons_allowed,neurons_used,certified_error,status,lower_bound,largest_weight,sum_out,seconds\n",
    );
    for c in cells {
        let head = format!("{},{},{},{}", c.target, c.source, c.max_weight, c.allowed);
        match &c.found {
            Some(f) => {
                let lower = f.lower.map_or(String::new(), |l| format!("{l:.6e}"));
                let Found { used, error, status, weight, total, .. } = f;
                writeln!(out, "{head},{used},{error:.6e},{status},{lower},{weight:.6},{total:.6},{:.3}", c.seconds)
            }
            None => writeln!(out, "{head},,,,,,,{:.3}", c.seconds),
        }
        .unwrap();
    }
    out
}

/// Targets down, sources across.
fn table(cells: &[Cell], neurons: usize) -> String {
    let mut out = format!("| | {} |\n|---|{}\n", SOURCES.join(" | "), "---|".repeat(SOURCES.len()));
    for target in TARGETS {
        write!(out, "| {target} |").unwrap();
        for source in SOURCES {
            let c = cells.iter().find(|c| c.target == target && c.source == source && c.allowed == neurons);
            write!(out, " {} |", c.map_or("".into(), shown)).unwrap();
        }
        out.push('\n');
    }
    out
}

fn figure(cells: &[Cell], target: &str, max_weight: f64, sources: &[&str]) -> String {
    let series = |source: &&str| {
        let of = cells.iter().filter(|c| c.target == target && c.source == *source && c.max_weight == max_weight);
        let at = |c: &Cell| c.found.as_ref().map(|f| (c.allowed as f64, if f.exact { 0.0 } else { f.error }));
        (source.to_string(), of.filter_map(at).collect::<Vec<_>>())
    };
    let lines: Vec<_> = sources.iter().map(series).filter(|s| !s.1.is_empty()).collect();
    log_plot(&format!("{target}: certified error on [−8, 8], weights ≤ {max_weight}"), "neurons", &lines).unwrap()
}

fn page(matrix: &[Cell], responses: &[Cell], floors: &[(&str, &str, Family, f64)], machine: &str) -> String {
    let mut out = format!(
        "# Error against neurons\n\nWritten by `cargo bench --bench tradeoff` ({machine}). Certified errors on [−8, 8] of plain stacks in f64 with an output\n\
         constant, inner weights at most {MAX_WEIGHT} and Σ|out| at most {MAX_TOTAL} for fits. *exact*: proved as an identity of the numbers before rounding. All\n\
         cells, with lower bounds, weights and times: [tradeoff.csv](tradeoff.csv).\n"
    );
    for n in [4, 8] {
        write!(out, "\n## {n} neurons (targets down, sources across)\n\n{}", table(matrix, n)).unwrap();
    }
    let (bound, most) = GOAL;
    let reached = |target: &str, source: &str| {
        let ok = |c: &&Cell| {
            let good = c.found.as_ref().is_some_and(|f| f.error <= bound && f.total <= MAX_TOTAL);
            c.target == target && c.source == source && c.allowed <= most && good
        };
        matrix.iter().filter(ok).map(|c| c.allowed).min()
    };
    write!(out, "\n## The goal: {bound:e} with at most {most} neurons and Σ|out| ≤ {MAX_TOTAL}\n\nFewest neurons of the table that reach it.\n\n").unwrap();
    write!(out, "| | {} |\n|---|{}\n", ABLE.join(" | "), "---|".repeat(ABLE.len())).unwrap();
    for target in TARGETS {
        let cells: Vec<String> =
            ABLE.iter().map(|s| reached(target, s).map_or("missed".into(), |n| n.to_string())).collect();
        writeln!(out, "| {target} | {} |", cells.join(" | ")).unwrap();
    }
    out += "\nThe first eight rows are smooth. elu has a jump in its second derivative at 0; relu, leaky_relu, hardswish and relu6 have kinks. There the\n\
            weight limit decides: near a kink everything scales, so that the error times the weight limit has a floor for any number of neurons\n\
            (below; 0.05/16 = 3e-3), and the goal is out of reach at this limit. Without it one steep neuron a kink reaches 3e-7.\n\
            tanh and sigmoid are bounded: a slope over [−8, 8] is a difference of wide neurons, and what Σ|out| allows decides; relu2 has no\n\
            asymptote that the smooth targets share. Lower bounds in the CSV are proved: for relu over all polylines with as many kinks; otherwise over all outer\n\
            weights with |out| ≤ 100 for the inner weights found, which leaves other inner weights open.\n";
    if !floors.is_empty() {
        out += "\n## Floors\n\nNo stack of any number of neurons with |weight| ≤ W and Σ|out| ≤ A, whatever its biases and constant, is closer on [−24, 24]: proved by branch and\n\
                bound over all (weight, bias). relu scales: under W its floor is that of W = 1, divided by W, at A·W.\n\n| target | source | W | A | floor |\n|---|---|---|---|---|\n";
        for (target, source, family, bound) in floors {
            writeln!(out, "| {target} | {source} | {} | {} | {bound:.4e} |", family.max_weight, family.max_total)
                .unwrap();
        }
    }
    out += "\n## Responses of interventions\n\nThe larger of the error off the bands and the overshoot inside; jumps at 1 have a band of radius 0.125.\n";
    for limit in RESPONSE_WEIGHTS {
        let counts = RESPONSE_NEURONS.map(|n| n.to_string()).join(" | ");
        write!(
            out,
            "\n| weights ≤ {limit} | source | {counts} |\n|---|---|{}\n",
            "---|".repeat(RESPONSE_NEURONS.len())
        )
        .unwrap();
        for (name, text) in RESPONSES {
            for source in RESPONSE_SOURCES {
                write!(out, "| `{text}` | {source} |").unwrap();
                for c in responses.iter().filter(|c| c.target == name && c.source == source && c.max_weight == limit) {
                    write!(out, " {} |", shown(c)).unwrap();
                }
                out.push('\n');
            }
        }
    }
    out += "\n## Figures\n\n";
    TARGETS.iter().for_each(|t| writeln!(out, "![{t}](tradeoff/{t}.svg)").unwrap());
    for (name, _) in RESPONSES {
        RESPONSE_WEIGHTS
            .iter()
            .for_each(|w| writeln!(out, "![{name}, weights ≤ {w}](tradeoff/response-{name}-{w}.svg)").unwrap());
    }
    out
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let test = arguments.iter().any(|a| a == "--test");
    let after = |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1)).cloned();
    let most = after("--most").map_or(usize::MAX, |n| n.parse().expect("a number"));
    let counts: Vec<usize> = NEURONS.into_iter().filter(|n| *n <= if test { 2 } else { most }).collect();
    let (targets, sources) = if test { (&TARGETS[1..2], &SOURCES[..2]) } else { (&TARGETS[..], &SOURCES[..]) };
    let mut matrix = Vec::new();
    for target in targets {
        let expr = Expr::of(target.parse().unwrap());
        for source in sources.iter().filter(|s| *s != target) {
            for n in &counts {
                matrix.push(cell(target, &expr, source, *n, MAX_WEIGHT));
            }
            let line: Vec<String> = matrix.iter().rev().take(counts.len()).rev().map(shown).collect();
            println!("{target:<12} {source:<10} {}", line.join("  "));
        }
    }
    let mut responses = Vec::new();
    for (name, text) in &RESPONSES[..if test { 1 } else { RESPONSES.len() }] {
        let expr: Expr = text.parse().unwrap();
        for limit in RESPONSE_WEIGHTS {
            for source in &RESPONSE_SOURCES[..if test { 2 } else { RESPONSE_SOURCES.len() }] {
                for n in &RESPONSE_NEURONS[..if test { 2 } else { RESPONSE_NEURONS.len() }] {
                    responses.push(cell(name, &expr, source, *n, limit));
                }
                let line: Vec<String> =
                    responses.iter().filter(|c| c.target == *name && c.source == *source).map(shown).collect();
                println!("{name:<12} {source:<10} ≤ {limit}: {}", line.join("  "));
            }
        }
    }
    let floors = floors(test);
    // More neurons should never be worse; where the search had no luck, say so.
    for w in matrix.windows(2).filter(|w| w[0].target == w[1].target && w[0].source == w[1].source) {
        if let [Some(a), Some(b)] = [&w[0].found, &w[1].found]
            && b.error > a.error * 1.01 + 1e-12
            && !a.exact
        {
            println!("{} from {}: {} neurons are worse than {}", w[0].target, w[0].source, w[1].allowed, w[0].allowed);
        }
    }
    if test {
        return;
    }
    let target_dir = std::env::var_os("CARGO_TARGET_DIR")
        .map_or(Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from);
    let dir = after("--into").map_or(target_dir.join("tradeoff"), PathBuf::from);
    let machine = after("--machine").unwrap_or_else(|| {
        format!("{} cores, {}", std::thread::available_parallelism().map_or(1, |n| n.get()), std::env::consts::ARCH)
    });
    std::fs::create_dir_all(dir.join("tradeoff")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
    let all: Vec<Cell> = matrix;
    write("tradeoff.md", &page(&all, &responses, &floors, &machine));
    for target in TARGETS {
        write(&format!("tradeoff/{target}.svg"), &figure(&all, target, MAX_WEIGHT, &SOURCES));
    }
    for (name, _) in RESPONSES {
        for limit in RESPONSE_WEIGHTS {
            write(
                &format!("tradeoff/response-{name}-{limit}.svg"),
                &figure(&responses, name, limit, &RESPONSE_SOURCES),
            );
        }
    }
    let rows = csv(&all) + csv(&responses).split_once('\n').expect("a head").1;
    write("tradeoff.csv", &rows);
    println!("wrote {}", dir.display());
}
