//! The command line.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use annotate_snippets::Renderer;
use clap::{CommandFactory, Parser, Subcommand};
use serde::Serialize;

use neurograft::activation::Activation;
use neurograft::calibrate::{self, Settings};
use neurograft::certificate::{Ends, NeuronFile, REPORT_FILE};
use neurograft::certify::{Domain, Figures, Status};
use neurograft::compile::{Compiled, Depth, compile_with_progress};
use neurograft::explain::{
    bound, counted, engines, evidence, explain, figures, formula, gate_figures, missed, part_name, response_figures,
    rows, scope, short, table, warnings,
};
use neurograft::expr::Expr;
use neurograft::format::Format;
use neurograft::inspect::inspect;
use neurograft::panels::panels;
use neurograft::report;
use neurograft::residuals::Residuals;
use neurograft::sae::{Layout, Sae, SaeOptions};
use neurograft::solve::{Budget, DEFAULT_LIMIT, Request, Solution, pareto, solve};
use neurograft::spec::{MAX_NEURONS, Spec};
use neurograft::splice::selftest::Wish;
use neurograft::splice::{self, Choice, SpliceOptions};
use neurograft::stack::Form;
use neurograft::{Error, Options, Target, embedded, files, intervention, source, verify};

/// Compile interventions on a language model's residual stream into certified MLP weights.
///
/// Without a command, compiles an example on real features and says what it made.
///
/// Exit codes: 0 done, and every tolerance met; 1 verification found a disagreement; 2 bad input or usage, or something
/// that cannot be compiled; 3 compiled, but a tolerance was missed (the best block found is written all the same).
#[derive(Parser)]
#[command(version, about, long_about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Compile a specification file into block.safetensors, certificate.json and report.svg
    Compile {
        /// The specification, TOML or JSON (docs/spec.md)
        spec: PathBuf,
        /// Where to write; made if it is not there
        #[arg(short, long, value_name = "DIR")]
        output: PathBuf,
        /// Overwrite the three files if they are there
        #[arg(long)]
        force: bool,
    },
    /// Re-derive every bound in a directory from its files alone
    Verify {
        /// What `compile` wrote
        dir: PathBuf,
    },
    /// Compile one scalar response and print its neurons with their certificate
    Fit(Fit),
    /// Insert a specification's blocks into a checkpoint as decoder layers, or check a spliced checkpoint
    Splice(Splice),
    /// Tabulate what each number format and engine can guarantee of each response (docs/arithmetic.md)
    Formats {
        /// The specification, TOML or JSON; what it says of format, arithmetic, layers and neurons is not used
        spec: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Measure residual samples: ranges and norms for a specification, and how many tokens lie in bands and outside of ranges
    Calibrate(Calibrate),
    /// Say what a file or directory is: an SAE, vectors, a block, a checkpoint, a specification
    Inspect {
        /// What to look at
        path: PathBuf,
    },
    /// Print a shell's completions: `neurograft completions bash > ~/.local/share/bash-completion/completions/neurograft`
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Show how each response of a specification is realised, neuron by neuron
    Explain {
        /// The specification, TOML or JSON
        spec: PathBuf,
    },
}

#[derive(clap::Args)]
struct Fit {
    /// A name of the catalogue (gelu) or an expression in z ("step(z - 2)")
    #[arg(long, allow_hyphen_values = true)]
    target: String,
    /// The activation to build from
    #[arg(long)]
    source: String,
    /// The most neurons
    #[arg(long)]
    neurons: usize,
    /// Where the certificate must hold, two numbers without `=` before them; -inf and inf are welcome
    #[arg(long, num_args = 2, value_names = ["LO", "HI"], allow_hyphen_values = true, required = true)]
    domain: Vec<String>,
    /// plain: out·σ(weight·z + bias); gated: times (up_weight·z + up_bias)
    #[arg(long, default_value = "plain")]
    form: String,
    /// f64, f32, f16 or bf16
    #[arg(long, default_value = "f64")]
    format: String,
    /// The largest |weight| (gate weight when gated)
    #[arg(long, default_value_t = DEFAULT_LIMIT, allow_hyphen_values = true)]
    max_weight: f64,
    /// The largest |out|·|weight|
    #[arg(long, default_value_t = DEFAULT_LIMIT, allow_hyphen_values = true)]
    max_out: f64,
    /// The largest Σ|out| of a minimax fit
    #[arg(long, default_value_t = DEFAULT_LIMIT, allow_hyphen_values = true)]
    max_total: f64,
    /// Prefer stacks that vanish where the target does
    #[arg(long)]
    inert: bool,
    /// No output constant
    #[arg(long)]
    no_constant: bool,
    /// The error to reach; without it, the smallest that is found
    #[arg(long, allow_hyphen_values = true)]
    tolerance: Option<f64>,
    /// Radius around jumps of the target within which the pre-activation may be off
    #[arg(long, default_value_t = 0.0, allow_hyphen_values = true)]
    band: f64,
    /// Trade neurons, weights and error: every stack found that no other beats, instead of the one with the least error
    #[arg(long, conflicts_with = "tolerance")]
    pareto: bool,
    /// Print JSON, one line a stack
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[command(
    override_usage = "neurograft splice <SPEC> --model <DIR|FILE> --output <DIR|FILE> [OPTIONS]\n       neurograft splice --check <OUTPUT>"
)]
struct Splice {
    /// The specification, TOML or JSON (docs/spec.md)
    #[arg(required_unless_present = "check")]
    spec: Option<PathBuf>,
    /// The checkpoint: a HuggingFace directory with config.json and safetensors, or a GGUF file. It is only read
    #[arg(long, value_name = "DIR|FILE", required_unless_present = "check")]
    model: Option<PathBuf>,
    /// Where to write the spliced checkpoint, a directory or OUT.gguf as the source is; must not be there yet
    #[arg(short, long, value_name = "DIR|FILE")]
    output: Option<PathBuf>,
    /// Where the constants go that make the norm harmless: auto, padded or borrowed (docs/splice.md)
    #[arg(long, default_value = "auto", value_parser = Choice::from_str)]
    carriers: Choice,
    /// How many layers an intervention may take: auto, 1 or 2; without it, what the specification says
    #[arg(long, value_name = "N", value_parser = Depth::from_str)]
    layers: Option<Depth>,
    /// Coordinates that may be borrowed; without it the program chooses among quiet ones
    #[arg(long, value_name = "J", value_delimiter = ',')]
    borrow: Vec<usize>,
    /// Print the plan and its cost; write nothing
    #[arg(long)]
    dry_run: bool,
    /// Replace the output if it is an earlier splice with nothing of yours in it
    #[arg(long)]
    force: bool,
    /// Make no self-test
    #[arg(long, conflicts_with = "selftest")]
    no_selftest: bool,
    /// Make a self-test however large the weights are; without it, up to 3 GB
    #[arg(long)]
    selftest: bool,
    /// Verify a spliced checkpoint: certificates, inserted weights, and everything that a splice leaves as it was
    #[arg(long, value_name = "OUTPUT", conflicts_with_all = ["spec", "model", "output", "dry_run", "force", "borrow", "layers"])]
    check: Option<PathBuf>,
}

#[derive(clap::Args)]
struct Calibrate {
    /// The specification whose ranges and norm are wanted
    #[arg(required_unless_present = "sae", conflicts_with = "sae")]
    spec: Option<PathBuf>,
    /// In place of a specification: an SAE, whose features are measured
    #[arg(long, value_name = "DIR")]
    sae: Option<PathBuf>,
    /// With --sae: the features; without it, all
    #[arg(long, value_name = "F", value_delimiter = ',', requires = "sae", conflicts_with = "spec")]
    feature: Vec<usize>,
    /// With --sae: whose files these are: saelens, gemma_scope, sparsify, openmoss or dictionary_learning
    #[arg(long, value_name = "NAME", requires = "sae", value_parser = Layout::from_str)]
    layout: Option<Layout>,
    /// With --sae: in place of a top-k, features are active where z > T (docs/sae.md)
    #[arg(long, value_name = "T", requires = "sae", allow_hyphen_values = true)]
    threshold: Option<f64>,
    /// With --sae: the factor of the SAE's input, where its files leave it open (docs/sae.md)
    #[arg(long, value_name = "S", requires = "sae", allow_hyphen_values = true)]
    norm_scaling_factor: Option<f64>,
    /// Residuals at the place of the intervention: safetensors or .npy, a token a row, f16, bf16, f32 or f64
    #[arg(long, value_name = "FILE")]
    residuals: PathBuf,
    /// The tensor that holds them; without it, `residuals` or the only one
    #[arg(long, value_name = "NAME")]
    tensor: Option<String>,
    /// Which site, in a specification of several: the one after this layer
    #[arg(long, value_name = "N", conflicts_with = "sae")]
    layer: Option<usize>,
    /// The quantile q: at most 1 - q of the tokens lie beyond each end of a range, before it is widened
    #[arg(long, value_name = "Q", allow_hyphen_values = true, default_value_t = Settings::default().quantile)]
    quantile: f64,
    /// How much a range is widened on each side, relative to its width
    #[arg(long, value_name = "M", allow_hyphen_values = true, default_value_t = Settings::default().margin)]
    margin: f64,
    /// Tokens with norms above so many times the median are counted apart (a sequence's first tokens)
    #[arg(long, value_name = "TIMES", allow_hyphen_values = true, default_value_t = Settings::default().massive)]
    massive: f64,
    /// Where to write the specification with ranges and norm filled in, in the language of the given one
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Overwrite the output if it is there
    #[arg(long)]
    force: bool,
}

const MISSED: u8 = 3;

/// A program that is told to end leaves nothing half-written behind, and ends as it would have.
#[cfg(unix)]
fn tidy_on_signals() {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]) else { return };
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if files::abandon() {
                let _ = writeln!(std::io::stderr(), "\ninterrupted: what was half-written is removed");
            }
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    });
}

#[cfg(not(unix))]
fn tidy_on_signals() {}

fn main() -> ExitCode {
    tidy_on_signals();
    let command = Cli::parse().command;
    let spec = command.as_ref().and_then(Command::spec).map(Path::to_path_buf);
    let outcome = match command {
        None => example(),
        Some(Command::Compile { spec, output, force }) => compile_spec(&spec, &output, force),
        Some(Command::Verify { dir }) => verify_dir(&dir),
        Some(Command::Fit(fit)) => fit.run(),
        Some(Command::Splice(splice)) => splice.run(),
        Some(Command::Formats { spec, json }) => formats(&spec, json),
        Some(Command::Calibrate(calibrate)) => calibrate.run(),
        Some(Command::Inspect { path }) => inspect(&path).map(|text| {
            say(&text);
            ExitCode::SUCCESS
        }),
        Some(Command::Completions { shell }) => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "neurograft", &mut text);
            say(&String::from_utf8_lossy(&text));
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Explain { spec }) => load(&spec).map(|(c, legend)| {
            say(&explain(&c));
            legend.iter().for_each(|line| say(&format!("{line}\n")));
            outcome_of(&c)
        }),
    };
    outcome.unwrap_or_else(|e| {
        let text = spec.and_then(|path| picture(&e, &path)).unwrap_or_else(|| format!("error: {e}"));
        let _ = writeln!(std::io::stderr(), "{text}");
        ExitCode::from(if e.is_disagreement() { 1 } else { 2 })
    })
}

type Outcome = Result<ExitCode, Error>;

impl Command {
    /// The specification that a command reads.
    fn spec(&self) -> Option<&Path> {
        match self {
            Command::Compile { spec, .. } | Command::Explain { spec } | Command::Formats { spec, .. } => Some(spec),
            Command::Splice(splice) => splice.spec.as_deref(),
            Command::Calibrate(calibrate) => calibrate.spec.as_deref(),
            Command::Inspect { path } => Some(path),
            Command::Verify { .. } | Command::Fit(_) | Command::Completions { .. } => None,
        }
    }
}

/// An error with the lines of the specification that it is about.
fn picture(error: &Error, spec: &Path) -> Option<String> {
    // What `inspect` is given may be any file.
    let short = |path: &Path| std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() < 1 << 20);
    let language = spec.extension().and_then(|e| e.to_str()).filter(|e| ["toml", "json"].contains(e));
    if language.is_none() || error.is_io() || !short(spec) {
        return None;
    }
    let text = std::fs::read_to_string(spec).ok()?;
    let coloured = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let renderer = if coloured { Renderer::styled() } else { Renderer::plain() };
    source::shown(error, &spec.display().to_string(), &text, &renderer)
}

/// Writes to standard output; a reader that has gone away is no error.
fn say(text: &str) {
    let mut out = std::io::stdout();
    if let Err(e) = out.write_all(text.as_bytes()).and_then(|()| out.flush())
        && e.kind() != std::io::ErrorKind::BrokenPipe
    {
        let _ = writeln!(std::io::stderr(), "error: cannot write to standard output: {e}");
        std::process::exit(2);
    }
}

fn outcome_of(c: &Compiled) -> ExitCode {
    if c.met() { ExitCode::SUCCESS } else { ExitCode::from(MISSED) }
}

/// A compiled specification, and what its z, z_1, … and its v are, in words.
fn compile_target(spec: &Spec, sae: Option<&Sae>) -> Result<(Compiled, Vec<String>), Error> {
    let (target, legend) = intervention::described(spec, sae)?;
    let options = options(spec, &target)?;
    let compiled = shown(|progress| {
        compile_with_progress(&target, &options, &|done, all| progress("responses", done as u64, all as u64))
    })?;
    // What the entries do to one another.
    Ok((compiled, legend.into_iter().chain(spec.overlaps().into_iter().map(|w| format!("warning: {w}"))).collect()))
}

/// What the letters stand for where several pre-activations are read.
fn letters(legend: &[String]) -> String {
    let several = legend.iter().filter(|l| l.contains("z_1 is ") || l.starts_with("warning: "));
    several.map(|l| format!("{l}\n")).collect()
}

fn options(spec: &Spec, target: &Target) -> Result<Options, Error> {
    let width = target.responses.first().map_or(0, |r| r.write.len());
    let samples = intervention::samples(spec, width)?;
    Ok(Options { samples, ..intervention::options(spec) })
}

fn load(path: &Path) -> Result<(Compiled, Vec<String>), Error> {
    let spec = Spec::read(path)?;
    compile_target(&spec, intervention::open(&spec)?.as_ref())
}

fn summary(c: &Compiled) -> String {
    let mut out = table(&rows(&c.certificate));
    out += &format!("\n{}\n", scope(&c.certificate).join("\n"));
    let deployed = engines(&c.certificate);
    if !deployed.is_empty() {
        out += &format!("\n{}\n\n", deployed.join("\n"));
    }
    out += &fits(c);
    if let Some(first) = &c.first {
        out += &format!(
            "two layers of {} and {} hidden units, {} coordinates between them: guards, payloads, and what removes them again\n",
            first.intermediate_size(),
            c.block.intermediate_size(),
            c.certificate.between
        );
    }
    for line in missed(c) {
        out += &format!("{line}\n");
    }
    for warning in warnings(c) {
        out += &format!("warning: {warning}\n");
    }
    out
}

/// What the search saw of responses that are fits; nothing where all are constructed.
fn fits(c: &Compiled) -> String {
    let found = c.certificate.responses.iter().zip(&c.solutions);
    let mut out = String::new();
    for (r, s, a) in found.filter_map(|(r, s)| Some((r, s, s.alternation?))) {
        out += &format!(
            "{}: a fit; before rounding its error alternates {} times, in full {} ({} free parameters); |weight| ≤ {}, Σ|out| = {}\n",
            r.name,
            a.seen,
            a.full(),
            a.parameters,
            short(s.max_weight()),
            short(s.total())
        );
    }
    if !out.is_empty() {
        out = format!(
            "\n{out}(alternations between the extremes of the error: evidence of a local optimum, no proof; docs/mathematics.md)\n"
        );
    }
    out
}

fn write_all(c: &Compiled, dir: &Path, heading: &str) -> Result<(), Error> {
    c.write(dir)?;
    report::write_svg(dir.join(REPORT_FILE), heading, &panels(c)?)
}

fn compile_spec(spec: &Path, output: &Path, force: bool) -> Outcome {
    let present = neurograft::certificate::FILES.iter().find(|f| output.join(f).exists());
    if let (Some(file), false) = (present, force) {
        return Err(Error::input(format!("{} is there already", output.join(file).display()))
            .help("name another directory, or overwrite with --force"));
    }
    files::writable(output)?;
    let (compiled, legend) = load(spec)?;
    write_all(&compiled, output, &spec.display().to_string())?;
    say(&(summary(&compiled) + &letters(&legend)));
    say(&format!("\nwrote {}\n", output.display()));
    Ok(outcome_of(&compiled))
}

/// What each number format and engine can guarantee of each response.
fn formats(path: &Path, json: bool) -> Outcome {
    let spec = Spec::read(path)?;
    let target = intervention::target(&spec, intervention::open(&spec)?.as_ref())?;
    let options = options(&spec, &target)?;
    let count = target.responses.len() as u64;
    let all = shown(|progress| {
        let one = |(done, response)| {
            progress("responses", done, count);
            neurograft::formats::guarantees(response, &options)
        };
        (0..).zip(&target.responses).map(one).collect::<Result<Vec<_>, Error>>()
    })?;
    if json {
        say(&(serde_json::to_string_pretty(&all).expect("finite numbers") + "\n"));
    } else {
        all.iter().for_each(|g| say(&format!("{g}\n")));
        say(
            "error: bound on ‖written − c(z)·v‖/‖v‖ farther than the band from where c jumps; * nothing has fewer neurons and layers, a narrower \
             band and a smaller error\nwhere 0: bound on ‖x_out − x‖ where c is 0 all around; -: no such x, or nothing proved\n\
             the engines' own rounding is part of these bounds; those that `compile` prints are in real arithmetic on the weights, unless host.arithmetic names an engine\n",
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// What else was meant by a path that `verify` cannot take.
fn not_a_block(path: &Path) -> Option<Error> {
    use neurograft::certificate::CERTIFICATE_FILE;
    let error = |what: &str| Error::input(what.to_string()).at(path.display().to_string());
    let gguf = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    if gguf || path.join(splice::FOLDER).is_dir() && !path.join(CERTIFICATE_FILE).exists() {
        let check = format!("`neurograft splice --check {}` verifies a spliced checkpoint", path.display());
        return Some(error("a checkpoint, not a directory that `compile` wrote").help(check));
    }
    path.is_file().then(|| {
        let folder = files::folder_of(path);
        error("a file, where the directory that `compile` wrote is wanted")
            .help(format!("neurograft verify {}", folder.display()))
    })
}

fn verify_dir(dir: &Path) -> Outcome {
    if let Some(error) = not_a_block(dir) {
        return Err(error);
    }
    let verified = verify::verify(dir)?;
    let file = &verified.file;
    let hidden: usize = verified.blocks.iter().map(|b| b.intermediate_size()).sum();
    let terms = file.gates.as_ref().map_or(&[][..], |g| &g.terms);
    say(&format!(
        "{}: {} responses, {hidden} hidden units, all bounds derived anew and equal\n",
        dir.display(),
        file.responses.len() + terms.len()
    ));
    let described = file.responses.iter().map(|r| (r.name.clone(), response_figures(r)));
    for (name, lines) in described.chain(terms.iter().map(|t| (part_name(file, t), gate_figures(t)))) {
        say(&format!("{name}\n"));
        lines.iter().for_each(|line| say(&format!("  {line}\n")));
    }
    scope(file).into_iter().chain(engines(file)).for_each(|line| say(&format!("{line}\n")));
    Ok(ExitCode::SUCCESS)
}

impl Splice {
    fn run(&self) -> Outcome {
        if let Some(output) = &self.check {
            return check_splice(output);
        }
        let (Some(spec), Some(model)) = (&self.spec, &self.model) else {
            return Err(Error::input("a specification and --model are needed").help("or --check OUTPUT"));
        };
        let options = SpliceOptions {
            carriers: self.carriers,
            borrow: self.borrow.clone(),
            depth: self.layers,
            dry_run: self.dry_run,
            force: self.force,
            selftest: match (self.no_selftest, self.selftest) {
                (true, _) => Wish::Never,
                (_, true) => Wish::Always,
                _ => Wish::Usual,
            },
        };
        let plan = shown(|progress| splice::splice(spec, model, self.output.as_deref(), &options, progress))?;
        say(&plan.to_string());
        if let (Some(output), false) = (&self.output, self.dry_run) {
            say(&format!("\nwrote {0}; `neurograft splice --check {0}` verifies it\n", output.display()));
        }
        Ok(if plan.met() { ExitCode::SUCCESS } else { ExitCode::from(MISSED) })
    }
}

impl Calibrate {
    fn run(&self) -> Outcome {
        if let Some(output) = self.output.as_ref().filter(|o| o.exists() && !self.force) {
            return Err(Error::input(format!("{} is there already", output.display()))
                .help("name another file, or overwrite with --force"));
        }
        let settings = Settings { quantile: self.quantile, margin: self.margin, massive: self.massive };
        let source = self.source()?;
        self.output.as_deref().map_or(Ok(()), |output| source.admits(output))?;
        let option = if self.tensor.is_some() { "--residuals, --tensor" } else { "--residuals" };
        let residuals = Residuals::open(&self.residuals, self.tensor.as_deref()).map_err(|e| e.at(option))?;
        let found = shown(|progress| {
            calibrate::calibrate(&source.specs, &residuals, settings, &|done, all| progress("tokens", done, all))
        })?;
        say(&found.to_string());
        if let Some(output) = &self.output {
            source.write(&found, output)?;
            say(&format!("\nwrote {}\n", output.display()));
        }
        Ok(ExitCode::SUCCESS)
    }

    fn source(&self) -> Result<calibrate::update::Source, Error> {
        match (&self.spec, &self.sae) {
            (Some(spec), _) => calibrate::update::Source::read(spec, self.layer),
            (None, Some(sae)) => {
                let options = SaeOptions {
                    layout: self.layout,
                    threshold: self.threshold,
                    norm_scaling_factor: self.norm_scaling_factor,
                };
                calibrate::update::Source::features(sae, &options, &self.feature)
            }
            (None, None) => Err(Error::input("a specification or --sae is needed")),
        }
    }
}

fn check_splice(output: &Path) -> Outcome {
    let checked = shown(|progress| splice::check(output, progress))?;
    let inserted: usize = checked.sites.iter().map(|s| s.layers.len()).sum();
    let layers = if inserted == 1 { "1 inserted layer".into() } else { format!("{inserted} inserted layers") };
    say(&format!(
        "{}: {} tensors, {layers}; certificates derived anew, inserted weights equal to the certified blocks, the rest as a splice leaves it\n",
        output.display(),
        checked.tensors
    ));
    Ok(ExitCode::SUCCESS)
}

/// Runs with a progress bar on standard error, unless that is piped.
fn shown<T>(run: impl FnOnce(splice::Progress<'_>) -> Result<T, Error>) -> Result<T, Error> {
    let bar =
        if std::io::stderr().is_terminal() { indicatif::ProgressBar::new(0) } else { indicatif::ProgressBar::hidden() };
    let counted = indicatif::ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, {elapsed}").expect("a template");
    let bytes = indicatif::ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {msg}, {bytes_per_sec}")
        .expect("a template");
    let result = run(&|stage, done, all| {
        bar.set_length(all);
        if bar.message() != stage.trim_start_matches("bytes ") {
            bar.set_style(if stage.starts_with("bytes") { bytes.clone() } else { counted.clone() });
            bar.set_message(stage.trim_start_matches("bytes ").to_string());
            // The time runs on where one step takes long.
            bar.enable_steady_tick(std::time::Duration::from_millis(200));
        }
        bar.set_position(done);
    });
    bar.finish_and_clear();
    result
}

/// Without a command: the whole way on the embedded example.
fn example() -> Outcome {
    let (spec, sae, x) = embedded::load()?;
    say(
        "Four interventions on features of SmolLM2-135M-Instruct, layer 15 (examples/ablate.toml), as an MLP block.\n\n",
    );
    let (compiled, _) = compile_target(&spec, Some(&sae))?;
    let dir = Path::new("neurograft-example");
    write_all(&compiled, dir, "examples/ablate.toml")?;
    say(&summary(&compiled));
    let target = intervention::target(&spec, &sae)?;
    let seen = neurograft::observe::observe(&target, &compiled, &x)?;
    say(&format!(
        "\non {} real residuals: {} with a feature on; largest ‖error‖ off the bands {:.2e} (certified {}); {} pre-activations within a band\n",
        seen.tokens,
        seen.active,
        seen.largest,
        bound(seen.bound.unwrap_or(f64::INFINITY)),
        seen.in_band
    ));
    verify::verify(dir)?;
    say(&format!(
        "\nwrote {0}/block.safetensors, certificate.json, report.svg; `neurograft verify {0}` agrees\n",
        dir.display()
    ));
    Ok(outcome_of(&compiled))
}

/// The output of `fit --json`; checkers outside of the project read it.
#[derive(Serialize)]
struct FitOutput<'a> {
    version: u32,
    target: &'a str,
    source: String,
    form: Form,
    format: Format,
    domain: Ends,
    constant: f64,
    neurons: Vec<NeuronFile<f64>>,
    certificate: &'a Figures,
    alternations: Option<usize>,
    alternations_in_full: Option<usize>,
}

impl Fit {
    fn run(&self) -> Outcome {
        let text = self.target.trim();
        let target = target(text)?;
        let source: Activation = self.source.parse().map_err(|e: Error| e.at("--source"))?;
        let form: Form = self.form.parse().map_err(|e: Error| e.at("--form"))?;
        let format: Format = self.format.parse().map_err(|e: Error| e.at("--format"))?;
        let [lo, hi] = &self.domain[..] else {
            return Err(Error::input("--domain LO HI is missing").help("for example --domain -8 8"));
        };
        let domain = Domain::new(end(lo)?, end(hi)?).map_err(|e| e.at("--domain"))?;
        if self.neurons > MAX_NEURONS {
            return Err(Error::input(format!("{} neurons", self.neurons))
                .at("--neurons")
                .help(format!("at most {MAX_NEURONS}")));
        }
        let budget = Budget {
            neurons: self.neurons,
            max_weight: self.max_weight,
            max_out: self.max_out,
            max_total: self.max_total,
            inert: self.inert,
            tolerance: self.tolerance,
            band: self.band,
            constant: !self.no_constant,
            bias_format: None,
        };
        let request = Request { target: &target, source: &source, form, format, domain, budget };
        let solutions = if self.pareto { front(&request)? } else { vec![single(&request)?] };
        if self.json {
            for s in &solutions {
                let output = FitOutput {
                    version: 1,
                    target: text,
                    source: source.to_string(),
                    form,
                    format,
                    domain: domain.into(),
                    constant: s.stack.constant,
                    neurons: s.stack.neurons.iter().map(NeuronFile::new).collect(),
                    certificate: s.certificate.figures(),
                    alternations: s.alternation.map(|a| a.seen),
                    alternations_in_full: s.alternation.map(|a| a.full()),
                };
                say(&format!("{}\n", serde_json::to_string(&output).expect("finite numbers")));
            }
        } else if self.pareto {
            say(&front_table(&solutions));
        } else {
            say(&self.words(&solutions[0], text));
        }
        let missed = solutions.iter().any(|s| s.certificate.status() == Status::BestEffort);
        Ok(if missed { ExitCode::from(MISSED) } else { ExitCode::SUCCESS })
    }

    fn words(&self, s: &Solution, target: &str) -> String {
        let mut out = format!("{target} from {} of {}\n", counted(s.stack.neurons.len()), s.stack.source);
        out += &format!("  constant {}\n", s.stack.constant);
        for n in &s.stack.neurons {
            out += &format!("  {}\n", formula(n, &s.stack.source));
        }
        for line in figures(s.certificate.figures(), self.tolerance).into_iter().chain(evidence(s)) {
            out += &format!("{line}\n");
        }
        if let Some(b) = &s.binding {
            out += &format!("what limits it: {b}\n");
        }
        if let Some(t) = self.tolerance.filter(|_| s.certificate.status() == Status::BestEffort) {
            out += &format!("the tolerance {} is missed\n", short(t));
        }
        out
    }
}

/// The best stack of a request; how long it takes is seen on standard error.
fn single(request: &Request<'_>) -> Result<Solution, Error> {
    shown(|progress| {
        progress("responses", 0, 1);
        solve(request)
    })
}

/// The front of a request, with progress on standard error.
fn front(request: &Request<'_>) -> Result<Vec<Solution>, Error> {
    shown(|progress| pareto(request, &|done, all| progress("searches", done as u64, all as u64)))
}

/// One line for each stack of a front.
fn front_table(solutions: &[Solution]) -> String {
    let mut out = format!(
        "{:>7} {:>12} {:>12} {:>12} {:>12}  {}\n",
        "neurons", "error ≤", "max |weight|", "Σ|out|", "alternations", "status"
    );
    for s in solutions {
        out += &format!(
            "{:>7} {:>12} {:>12} {:>12} {:>12}  {:?}\n",
            s.stack.neurons.len(),
            bound(s.error()),
            short(s.max_weight()),
            short(s.total()),
            s.alternation.map_or("-".into(), |a| format!("{} of {}", a.seen, a.full())),
            s.certificate.status()
        );
    }
    let eta = solutions.iter().map(|s| s.certificate.eta()).fold(0.0, f64::max);
    if eta > 0.0 {
        out += &format!(
            "(errors are those for |z| ≤ 1; beyond, they grow by at most {} for each unit of |z|)\n",
            bound(eta)
        );
    }
    out
}

/// A catalogue name or an expression.
fn target(text: &str) -> Result<Expr, Error> {
    let name = text.chars().all(|c| c.is_ascii_alphanumeric() || "_:./+-".contains(c))
        && text.starts_with(|c: char| c.is_ascii_alphabetic());
    if name && text != "z" && !text.contains(['+', '-']) || text.contains(':') && name {
        return text.parse::<Activation>().map(Expr::of).map_err(|e| e.at("--target"));
    }
    text.parse::<Expr>().map_err(|e| e.at("--target"))
}

fn end(text: &str) -> Result<f64, Error> {
    let bad =
        || Error::input(format!("'{text}' is not an end of a domain")).help("a number, -inf or inf").at("--domain");
    let x: f64 = text.trim().parse().map_err(|_| bad())?;
    if x.is_nan() || x.is_infinite() && !text.to_ascii_lowercase().contains("inf") { Err(bad()) } else { Ok(x) }
}
