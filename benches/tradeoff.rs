//! Certified error against neurons, for every pair of activations and for the responses of interventions: a report.
//!
//! `cargo bench --bench tradeoff` prints a line for each pair and writes `tradeoff.csv`, `tradeoff.md` and the figures to
//! `target/tradeoff`, or to `DIR` with `-- --into DIR`; `-- --most N` stops at N neurons. `-- --test` runs a few cells and
//! writes nothing.
//!
//! The page has three parts: the cells (`tradeoff.csv`), the floors (`tradeoff/floors.csv`) and the restarts
//! (`tradeoff/restarts.csv`). `-- --only cells`, `--only floors` and `--only restarts` measure one part anew and take the others
//! from the files in `DIR`; `--only page` measures nothing. What was measured when is in `tradeoff/measured.csv`, and on the page.
//!
//! Pairs that are done stand in `target/tradeoff/rows.csv`, from where an interrupted run goes on; `-- --fresh` begins anew.
//! Pairs run side by side, each on one thread, whose time is what is reported.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use cpu_time::ThreadTime;
use neurograft::activation::{Activation, Side};
use neurograft::certify::Domain;
use neurograft::expr::Expr;
use neurograft::format::Format;
use neurograft::lower::{self, Family};
use neurograft::minimax::{self, Alternation};
use neurograft::report::log_plot;
use neurograft::solve::{Budget, Request, Solution, by_neurons, solve};
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

/// One row of a table: a target from a source, with every number of neurons.
struct Job {
    /// matrix or response
    part: &'static str,
    name: String,
    target: Expr,
    source: String,
    max_weight: f64,
    counts: Vec<usize>,
    commit: String,
}

#[derive(Clone, Debug, PartialEq)]
struct Cell {
    part: String,
    target: String,
    source: String,
    max_weight: f64,
    allowed: usize,
    /// of one core's time, for all numbers of neurons together
    seconds: f64,
    /// `None` where nothing keeps to the limits
    found: Option<Found>,
    /// of the program
    commit: String,
}

#[derive(Clone, Debug, PartialEq)]
struct Found {
    used: usize,
    /// off the bands, or the overshoot inside, whichever is larger
    error: f64,
    status: String,
    /// no stack with these inner weights (relu: no polyline with as many kinks) is better
    lower: Option<f64>,
    weight: f64,
    total: f64,
    /// evidence of local optimality, of fits
    alternations: Option<usize>,
}

impl Found {
    fn exact(&self) -> bool {
        self.status.starts_with("Exact")
    }
}

impl Job {
    fn run(&self) -> Vec<Cell> {
        let source: Activation = self.source.parse().unwrap();
        let budget = Budget { max_weight: self.max_weight, max_total: MAX_TOTAL, band: BAND, ..Budget::default() };
        let domain = Domain::new(DOMAIN.0, DOMAIN.1).unwrap();
        let target = &self.target;
        let request = Request { target, source: &source, form: Form::Plain, format: Format::F64, domain, budget };
        let start = ThreadTime::now();
        let solutions = by_neurons(&request, &self.counts).unwrap_or_else(|_| vec![None; self.counts.len()]);
        let seconds = start.elapsed().as_secs_f64();
        let found = |s: Solution, allowed: usize| {
            let error = s.error();
            assert!(error >= 0.0 && error.is_finite());
            let exact = s.certificate.status().is_exact();
            let lower = if exact { None } else { lower_bound(target, &source, domain, allowed, &s) };
            assert!(lower.is_none_or(|l| l <= error), "{} from {source}: {lower:?} above {error}", self.name);
            Found {
                used: s.stack.neurons.len(),
                error,
                status: format!("{:?}", s.certificate.status()),
                lower,
                weight: s.max_weight(),
                total: s.total(),
                alternations: s.alternation.map(|a| a.seen),
            }
        };
        let cell = |(s, allowed): (Option<Solution>, &usize)| Cell {
            part: self.part.into(),
            target: self.name.clone(),
            source: self.source.clone(),
            max_weight: self.max_weight,
            allowed: *allowed,
            seconds,
            found: s.map(|s| found(s, *allowed)),
            commit: self.commit.clone(),
        };
        solutions.into_iter().zip(&self.counts).map(cell).collect()
    }

    fn is(&self, c: &Cell) -> bool {
        (&c.target, &c.source, c.max_weight) == (&self.name, &self.source, self.max_weight) && c.part == self.part
    }
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

/// No stack of any number of neurons within the limits is closer.
struct Floor {
    target: String,
    source: String,
    max_weight: f64,
    max_total: f64,
    bound: f64,
    /// what a fit of [`REACHING`] neurons within the limits is certified to reach
    reached: f64,
}

const REACHING: usize = 8;
const FLOORS: &str = "target,source,max_weight,max_total,floor,reached";

impl Floor {
    fn row(&self) -> String {
        let Floor { target, source, max_weight, max_total, bound, reached } = self;
        format!("{target},{source},{max_weight},{max_total},{bound:e},{reached:e}")
    }

    fn read(line: &str) -> Option<Self> {
        let f: Vec<&str> = line.split(',').collect();
        let [target, source, numbers @ ..] = &f[..] else { return None };
        let numbers: Vec<f64> = numbers.iter().filter_map(|x| x.parse().ok()).collect();
        let [max_weight, max_total, bound, reached] = numbers[..] else { return None };
        Some(Floor { target: target.to_string(), source: source.to_string(), max_weight, max_total, bound, reached })
    }
}

fn floors() -> Vec<Floor> {
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
    let floor = |&(target, source, max_weight, max_total): &(&'static str, &'static str, f64, f64)| {
        let (expr, activation): (Expr, Activation) = (target.parse().unwrap(), source.parse().unwrap());
        let family = Family { max_weight, max_total };
        let domain = Domain::new(-24.0, 24.0).unwrap();
        let value = |z: f64| eval::value(&expr, &[z]).unwrap();
        let witness = duals::all_stacks(&value, &activation, family, &duals::points(domain, &[0.0], 72))?;
        let bound = lower::all_stacks(&expr, domain, &activation, family, &witness).ok()?.value();
        let budget = Budget { neurons: REACHING, max_weight, max_total, ..Budget::default() };
        let request =
            Request { target: &expr, source: &activation, form: Form::Plain, format: Format::F64, domain, budget };
        let reached = solve(&request).ok()?.error();
        assert!(bound <= reached, "{target} from {source}: {bound} above {reached}");
        let floor = Floor { target: target.into(), source: source.into(), max_weight, max_total, bound, reached };
        println!("{}", floor.row());
        Some(floor)
    };
    cases.iter().filter_map(floor).collect()
}

/// Does more search find more? The usual number of starts against [`MORE`] times as many.
struct Restarts {
    target: String,
    source: String,
    neurons: usize,
    /// error seen, alternations and those in full, seconds on all threads: with the usual starts, with more
    found: [(f64, usize, usize, f64); 2],
}

const MORE: usize = 4;
const RESTARTS: &str =
    "target,source,neurons,error,alternations,in_full,seconds,error_more,alternations_more,in_full_more,seconds_more";
const RESTARTED: [(&str, &str, usize); 16] = [
    ("gelu", "silu", 2),
    ("gelu", "silu", 4),
    ("gelu", "silu", 6),
    ("gelu", "silu", 8),
    ("silu", "gelu", 4),
    ("silu", "gelu", 6),
    ("silu", "gelu", 8),
    ("tanh", "silu", 4),
    ("tanh", "silu", 8),
    ("mish", "gelu", 8),
    ("sigmoid", "gelu", 6),
    ("silu", "tanh", 6),
    ("gelu", "softplus", 6),
    ("silu", "relu2", 8),
    ("hardswish", "silu", 6),
    ("relu", "silu", 3),
];

impl Restarts {
    fn run((target, source, neurons): (&str, &str, usize)) -> Option<Self> {
        let (function, activation): (Activation, Activation) = (target.parse().unwrap(), source.parse().unwrap());
        let knots: Vec<f64> = function.knots().iter().map(|k| k.to_f64()).collect();
        let value = |z: f64| (function.value(z), function.value(z));
        let asymptote = |side| {
            let [c0, c1, _] = function.tail(side).asymptote;
            Some((c1.to_f64(), c0.to_f64()))
        };
        let found = |effort: usize| {
            let problem = minimax::Problem {
                source: &activation,
                gated: false,
                domain: DOMAIN,
                target: &value,
                knots: &knots,
                tails: [Side::Left, Side::Right].map(asymptote),
                neurons,
                max_weight: MAX_WEIGHT,
                max_out: Budget::default().max_out,
                max_total: MAX_TOTAL,
                constant: true,
                effort,
            };
            let start = Instant::now();
            let fit = minimax::fit(&problem)?;
            let alternation: Alternation = fit.alternation;
            Some((fit.estimate, alternation.seen, alternation.full(), start.elapsed().as_secs_f64()))
        };
        let found = [found(1)?, found(MORE)?];
        let restarts = Restarts { target: target.into(), source: source.into(), neurons, found };
        println!("{}", restarts.row());
        Some(restarts)
    }

    fn row(&self) -> String {
        let cells = self.found.map(|(error, seen, full, seconds)| format!(",{error:e},{seen},{full},{seconds:.2}"));
        format!("{},{},{}{}", self.target, self.source, self.neurons, cells.concat())
    }

    fn read(line: &str) -> Option<Self> {
        let f: Vec<&str> = line.split(',').collect();
        let [target, source, neurons, rest @ ..] = &f[..] else { return None };
        let cells = |k: usize| {
            let c: &[&str] = rest.get(4 * k..4 * k + 4)?;
            Some((c[0].parse().ok()?, c[1].parse().ok()?, c[2].parse().ok()?, c[3].parse().ok()?))
        };
        let (neurons, found) = (neurons.parse().ok()?, [cells(0)?, cells(1)?]);
        Some(Restarts { target: target.to_string(), source: source.to_string(), neurons, found })
    }
}

fn restarts_table(restarts: &[Restarts]) -> String {
    let mut out = format!(
        "\n## Restarts\n\nWould more search find more? Errors as the search sees them of single fits (`neurograft fit`, Σ|out| ≤ {MAX_TOTAL}) with the usual random starts and with {MORE} times as many,\n\
         how often they alternate between their extremes of how often in full, and seconds on all threads.\n\n\
         | target, source, neurons | error | alternates | seconds | {MORE} times the starts | alternates | seconds | gain |\n|---|---|---|---|---|---|---|---|\n"
    );
    for Restarts { target, source, neurons, found: [one, more] } in restarts {
        writeln!(
            out,
            "| {target} from {source}, {neurons} | {:.3e} | {} of {} | {:.1} | {:.3e} | {} of {} | {:.1} | {:.2} |",
            one.0,
            one.1,
            one.2,
            one.3,
            more.0,
            more.1,
            more.2,
            more.3,
            one.0 / more.0
        )
        .unwrap();
    }
    let at_least = |factor: f64, from: usize| {
        restarts.iter().filter(|r| r.neurons >= from && r.found[0].0 >= factor * r.found[1].0).count()
    };
    let (few, many): (Vec<&Restarts>, Vec<&Restarts>) = restarts.iter().partition(|r| r.neurons <= 4);
    writeln!(
        out,
        "\nUp to 4 neurons more starts gain at most {:.1} %. Beyond, {} of {} gain more than 2 %, {} more than a half: there the search is not\n\
         exhausted, and another seed may do better or worse by as much.",
        100.0 * (few.iter().map(|r| r.found[0].0 / r.found[1].0).fold(1.0, f64::max) - 1.0),
        at_least(1.02, 5),
        many.len(),
        at_least(1.5, 5)
    )
    .unwrap();
    out
}

fn command(program: &str, arguments: &[&str]) -> Option<String> {
    let done = std::process::Command::new(program).args(arguments).output().ok()?;
    Some(String::from_utf8_lossy(&done.stdout).trim().to_string()).filter(|t| !t.is_empty())
}

/// Asked for before anything is measured: that of the program.
fn commit() -> String {
    command("git", &["describe", "--always", "--dirty", "--exclude", "*"]).unwrap_or("unknown".into())
}

/// What the page says of its parts, by name: when, where and of which commit they were measured.
type Measured = BTreeMap<String, String>;

/// The commits of cells, each with its targets.
fn commits(cells: &[Cell]) -> String {
    let mut by: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for c in cells {
        let targets = by.entry(&c.commit).or_default();
        if !targets.contains(&&c.target[..]) {
            targets.push(&c.target);
        }
    }
    let said = by.iter().map(|(commit, targets)| format!("{commit} ({})", targets.join(", ")));
    said.collect::<Vec<_>>().join("; ")
}

fn shown(c: &Cell) -> String {
    match &c.found {
        None => "-".into(),
        Some(f) if f.exact() => "exact".into(),
        Some(f) => format!("{:.1e}", f.error),
    }
}

const HEAD: &str = "part,target,source,max_weight,neurons_allowed,seconds,neurons_used,certified_error,status,lower_bound,largest_weight,sum_out,alternations,commit";

/// A cell as a line of the file; numbers that read back as they are.
fn row(c: &Cell) -> String {
    let mut out = format!("{},{},{},{},{},{:.3}", c.part, c.target, c.source, c.max_weight, c.allowed, c.seconds);
    if let Some(Found { used, error, status, lower, weight, total, alternations }) = &c.found {
        let lower = lower.map_or(String::new(), |l| format!("{l:e}"));
        let alternations = alternations.map_or(String::new(), |k| k.to_string());
        write!(out, ",{used},{error:e},{status},{lower},{weight},{total},{alternations}").unwrap();
    } else {
        out += ",,,,,,,";
    }
    write!(out, ",{}", c.commit).unwrap();
    out
}

/// What [`row`] wrote; `None` of a line that was cut off.
fn read(line: &str) -> Option<Cell> {
    let f: Vec<&str> = line.split(',').collect();
    if f.len() != HEAD.split(',').count() {
        return None;
    }
    let found = || {
        Some(Found {
            used: f[6].parse().ok()?,
            error: f[7].parse().ok()?,
            status: f[8].into(),
            lower: f[9].parse().ok(),
            weight: f[10].parse().ok()?,
            total: f[11].parse().ok()?,
            alternations: f[12].parse().ok(),
        })
    };
    Some(Cell {
        part: f[0].into(),
        target: f[1].into(),
        source: f[2].into(),
        max_weight: f[3].parse().ok()?,
        allowed: f[4].parse().ok()?,
        seconds: f[5].parse().ok()?,
        found: if f[6].is_empty() { None } else { Some(found()?) },
        commit: f[13].into(),
    })
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
        let at = |c: &Cell| c.found.as_ref().map(|f| (c.allowed as f64, if f.exact() { 0.0 } else { f.error }));
        (source.to_string(), of.filter_map(at).collect::<Vec<_>>())
    };
    let lines: Vec<_> = sources.iter().map(series).filter(|s| !s.1.is_empty()).collect();
    log_plot(&format!("{target}: certified error on [−8, 8], weights ≤ {max_weight}"), "neurons", &lines).unwrap()
}

/// What the run took.
fn hours(matrix: &[Cell], responses: &[Cell]) -> String {
    let of = |cells: &[Cell]| -> f64 {
        let rows = cells.iter().map(|c| ((&c.target, &c.source, c.max_weight.to_bits()), c.seconds));
        rows.collect::<BTreeMap<_, _>>().into_values().sum()
    };
    let (m, r) = (of(matrix) / 60.0, of(responses) / 60.0);
    format!("The searches took {m:.1} minutes of one thread for the matrix and {r:.1} for the responses below.\n")
}

fn page(matrix: &[Cell], responses: &[Cell], floors: &[Floor], restarts: &[Restarts], measured: &Measured) -> String {
    let mut out = format!(
        "# Error against neurons\n\nWritten by `cargo bench --bench tradeoff -- --into docs`, one part at a time by `--only cells`, `--only floors` and `--only restarts`\n(`--only cells --targets gelu,silu`: of these targets). The CSV has the commit of each row.\n\n\
         | part | measured |\n|---|---|\n{}\n\
         Certified errors on [−8, 8] of plain stacks in f64 with an output constant, inner weights at most {MAX_WEIGHT} and Σ|out| at most {MAX_TOTAL} for fits. *exact*: proved as an identity of the numbers before rounding. All\n\
         cells, with lower bounds, weights, alternations and times (of one thread, for all numbers of neurons of a pair together):\n\
         [tradeoff.csv](tradeoff.csv). Against what people would use instead: [peers.md](peers.md).\n",
        measured.iter().map(|(part, when)| format!("| {part} | {when} |\n")).collect::<String>()
    );
    out += &hours(matrix, responses);
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
        let cells: Vec<String> = ABLE
            .iter()
            .map(|s| reached(target, s).map_or(if *s == target { "" } else { "missed" }.into(), |n| n.to_string()))
            .collect();
        writeln!(out, "| {target} | {} |", cells.join(" | ")).unwrap();
    }
    out += "\nThe first eight rows are smooth. elu has a jump in its second derivative at 0, relu, leaky_relu, hardswish and relu6 have kinks. At a kink the\n\
            weight limit decides: nearby everything scales, so that the error times the weight limit has a floor for any number of neurons\n\
            (below; 0.05/16 = 3e-3), and the goal is out of reach at this limit. Without it one steep neuron a kink reaches 3e-7.\n\
            tanh and sigmoid as sources are bounded: a slope over [−8, 8] is a difference of wide neurons, and what Σ|out| allows decides. Stacks of relu2\n\
            are piecewise quadratics, whose error falls with the cube of the number of pieces at best. Below 1e-8 the search, not the number of neurons,\n\
            decides. Lower bounds in the CSV are proved: for relu over all polylines with as many kinks; otherwise over all outer\n\
            weights with |out| ≤ 100 for the inner weights found, which leaves other inner weights open. From relu the two meet: 8 neurons are within\n\
            1.5306e-2 of hardswish, and no polyline with as many kinks is within 1.5297e-2.\n";
    out += &restarts_table(restarts);
    out += "\n## Floors\n\nNo stack of any number of neurons with |weight| ≤ W and Σ|out| ≤ A, whatever its biases and constant, is closer on [−24, 24]: proved by branch and\n\
            bound over all (weight, bias). relu scales: under W its floor is that of W = 1, divided by W, at A·W.\n\
            Beside it what 8 neurons within the limits are certified to reach; where that is small there is little floor to find:\n\
            gelu from 8 neurons of silu within W = 1 and A = 16 is certified to 3.2724e-6 on [−24, 24] (`neurograft fit`), so that a floor of 0 is off by no more.\n\n\
            | target | source | W | A | floor | 8 neurons |\n|---|---|---|---|---|---|\n";
    for Floor { target, source, max_weight, max_total, bound, reached } in floors {
        let reached = if reached.is_finite() { format!("{reached:.4e}") } else { "-".into() };
        writeln!(out, "| {target} | {source} | {max_weight} | {max_total} | {bound:.4e} | {reached} |").unwrap();
    }
    out += "\n## Responses of interventions\n\nThe larger of the error off the bands and the overshoot inside; jumps at 1 have a band of radius 0.125.\n\
            Where weights times the band's width are above a hundred, silu and gelu cross it without a trace: pairs of neurons whose dips cancel\n\
            ([mathematics.md](mathematics.md)), four neurons for a step, three or fewer for the others.\n";
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

fn jobs(test: bool, most: usize, commit: &str) -> Vec<Job> {
    let up_to = |counts: &[usize]| -> Vec<usize> {
        counts.iter().copied().filter(|n| *n <= if test { 2 } else { most }).collect()
    };
    let mut jobs = Vec::new();
    let (targets, sources) = if test { (&TARGETS[1..2], &SOURCES[..2]) } else { (&TARGETS[..], &SOURCES[..]) };
    for target in targets {
        for source in sources.iter().filter(|s| *s != target) {
            jobs.push(Job {
                part: "matrix",
                name: target.to_string(),
                target: Expr::of(target.parse().unwrap()),
                source: source.to_string(),
                max_weight: MAX_WEIGHT,
                counts: up_to(&NEURONS),
                commit: commit.into(),
            });
        }
    }
    for (name, text) in &RESPONSES[..if test { 1 } else { RESPONSES.len() }] {
        for max_weight in RESPONSE_WEIGHTS {
            for source in &RESPONSE_SOURCES[..if test { 2 } else { RESPONSE_SOURCES.len() }] {
                jobs.push(Job {
                    part: "response",
                    name: name.to_string(),
                    target: text.parse().unwrap(),
                    source: source.to_string(),
                    max_weight,
                    counts: up_to(&RESPONSE_NEURONS),
                    commit: commit.into(),
                });
            }
        }
    }
    jobs
}

/// All jobs' cells, in their order; those in `done` are not run again, the others handed to `finished` as they come.
fn run(jobs: &[Job], done: &[Cell], finished: impl Fn(&[Cell]) + Sync) -> Vec<Cell> {
    let (next, count) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let all: Mutex<BTreeMap<usize, Vec<Cell>>> = Mutex::new(BTreeMap::new());
    let known = |job: &Job| -> Option<Vec<Cell>> {
        let cells: BTreeMap<usize, &Cell> = done.iter().filter(|c| job.is(c)).map(|c| (c.allowed, c)).collect();
        job.counts.iter().map(|n| cells.get(n).copied().cloned()).collect()
    };
    let work = || {
        // A pool of one thread for each job keeps other jobs' work out of its time.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        while let Some((k, job)) = Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|k| Some((k, jobs.get(k)?))) {
            let cells = known(job).unwrap_or_else(|| {
                let cells = pool.install(|| job.run());
                finished(&cells);
                cells
            });
            let line: Vec<String> = cells.iter().map(shown).collect();
            let done = 1 + count.fetch_add(1, Ordering::Relaxed);
            let Job { name, source, max_weight, .. } = job;
            println!(
                "{done:>3}/{} {name:<12} {source:<10} ≤ {max_weight:<5} {:>6.1} s  {}",
                jobs.len(),
                cells[0].seconds,
                line.join("  ")
            );
            all.lock().unwrap().insert(k, cells);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |n| n.get()) {
            scope.spawn(work);
        }
    });
    all.into_inner().unwrap().into_values().flatten().collect()
}

/// A head and lines.
fn file(head: &str, rows: impl Iterator<Item = String>) -> String {
    std::iter::once(head.to_string()).chain(rows).map(|line| line + "\n").collect()
}

/// All jobs' cells; what stands in `rows` is not run again, unless everything is to be.
fn measured_cells(jobs: &[Job], rows: &Path, fresh: bool) -> Vec<Cell> {
    if fresh {
        let _ = std::fs::remove_file(rows);
    }
    let done: Vec<Cell> = std::fs::read_to_string(rows).unwrap_or_default().lines().filter_map(read).collect();
    let file = Mutex::new(std::fs::OpenOptions::new().create(true).append(true).open(rows).unwrap());
    run(jobs, &done, |cells| {
        let text: String = cells.iter().map(|c| row(c) + "\n").collect();
        file.lock().unwrap().write_all(text.as_bytes()).unwrap();
    })
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let has = |name: &str| arguments.iter().any(|a| a == name);
    let after = |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1)).cloned();
    let test = has("--test");
    let most = after("--most").map_or(usize::MAX, |n| n.parse().expect("a number"));
    let commit = commit();
    let jobs = jobs(test, most, &commit);
    if test {
        for cell in run(&jobs, &[], |_| ()) {
            let back = read(&row(&cell)).unwrap();
            assert_eq!(Cell { seconds: 0.0, ..back }, Cell { seconds: 0.0, ..cell });
        }
        return;
    }
    let target_dir = std::env::var_os("CARGO_TARGET_DIR")
        .map_or(Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from)
        .join("tradeoff");
    std::fs::create_dir_all(&target_dir).unwrap();
    let dir = after("--into").map_or(target_dir.clone(), PathBuf::from);
    std::fs::create_dir_all(dir.join("tradeoff")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
    let lines = |name: &str| -> Vec<String> {
        let text = std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        text.lines().skip(1).map(String::from).collect()
    };
    let machine = after("--machine").unwrap_or_else(|| {
        format!("{} cores, {}", std::thread::available_parallelism().map_or(1, |n| n.get()), std::env::consts::ARCH)
    });
    let date = command("date", &["+%Y-%m-%d"]).unwrap_or_default();
    let only = after("--only");
    let wanted = |part: &str| only.as_deref().is_none_or(|o| o == part);
    let parts = ["cells", "floors", "restarts"];
    assert!(only.iter().all(|o| parts.contains(&&o[..]) || o == "page"), "--only cells, floors, restarts or page");
    let targets = after("--targets");
    let targeted = |job: &Job| targets.as_ref().is_none_or(|t| t.split(',').any(|t| t == job.name));
    let before: Vec<Cell> = lines("tradeoff.csv").iter().filter_map(|l| read(l)).collect();
    let cells = if wanted("cells") {
        let (now, later): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(targeted);
        let mut cells = measured_cells(&now, &target_dir.join("rows.csv"), has("--fresh"));
        cells.extend(before.into_iter().filter(|c| later.iter().any(|j| j.is(c))));
        cells
    } else {
        before
    };
    write("tradeoff.csv", &file(HEAD, cells.iter().map(row)));
    if wanted("floors") {
        write("tradeoff/floors.csv", &file(FLOORS, floors().iter().map(Floor::row)));
    }
    if wanted("restarts") {
        let all = RESTARTED.into_iter().filter_map(Restarts::run).collect::<Vec<_>>();
        write("tradeoff/restarts.csv", &file(RESTARTS, all.iter().map(Restarts::row)));
    }
    let before = lines("tradeoff/measured.csv");
    let mut measured: Measured =
        before.iter().filter_map(|l| l.split_once(',')).map(|(p, w)| (p.into(), w.trim_matches('"').into())).collect();
    for part in parts.into_iter().filter(|p| wanted(p)) {
        let of = if part == "cells" { commits(&cells) } else { commit.clone() };
        measured.insert(part.into(), format!("{date}, {machine}, commit {of}"));
    }
    write("tradeoff/measured.csv", &file("part,measured", measured.iter().map(|(p, w)| format!("{p},\"{w}\""))));
    let (matrix, responses): (Vec<Cell>, Vec<Cell>) = cells.into_iter().partition(|c| c.part == "matrix");
    let floors: Vec<Floor> = lines("tradeoff/floors.csv").iter().filter_map(|l| Floor::read(l)).collect();
    let restarts: Vec<Restarts> = lines("tradeoff/restarts.csv").iter().filter_map(|l| Restarts::read(l)).collect();
    write("tradeoff.md", &page(&matrix, &responses, &floors, &restarts, &measured));
    for target in TARGETS {
        write(&format!("tradeoff/{target}.svg"), &figure(&matrix, target, MAX_WEIGHT, &SOURCES));
    }
    for (name, _) in RESPONSES {
        for limit in RESPONSE_WEIGHTS {
            write(
                &format!("tradeoff/response-{name}-{limit}.svg"),
                &figure(&responses, name, limit, &RESPONSE_SOURCES),
            );
        }
    }
    println!("wrote {}", dir.display());
}
