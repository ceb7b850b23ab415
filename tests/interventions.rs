//! Every intervention of `docs/interventions.md`: its specification against the naive formula on real residuals, and the
//! compiled block against its certificate.
//!
//! `cargo test --release --test interventions -- --ignored write_the_table` writes the page's table.

use std::path::{Path, PathBuf};

use nalgebra::DMatrix;
use neurograft::certify::Status;
use neurograft::compile;
use neurograft::embedded::residuals;
use neurograft::eval::value;
use neurograft::intervention::{options, target};
use neurograft::observe::observe;
use neurograft::sae::{Feature, Sae};
use neurograft::spec::Spec;
use neurograft::tensors::TensorFile;
use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

/// What f64 may be off by for one token: sums of 577 products of magnitude 250 at most, through slopes of 2^20 at most
/// (`tests/truth.rs` derives 8e-8 for the worst of these).
const ARITHMETIC: f64 = 2e-7;

/// Features and vectors, with nothing of the library's own arithmetic.
struct World {
    features: Vec<Feature>,
    b_dec: Vec<f64>,
    /// a difference of means, not of unit length
    axis: Vec<f64>,
    /// the mean of some tokens
    mean: Vec<f64>,
    probe: Vec<f64>,
    x: DMatrix<f64>,
    dir: tempfile::TempDir,
    sae: Sae,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn scaled(v: &[f64], c: f64) -> Vec<f64> {
    v.iter().map(|v| v * c).collect()
}

fn plus(a: Vec<f64>, b: Vec<f64>) -> Vec<f64> {
    a.into_iter().zip(b).map(|(a, b)| a + b).collect()
}

fn unit(v: &[f64]) -> Vec<f64> {
    scaled(v, 1.0 / dot(v, v).sqrt())
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/smollm2-l15")
}

fn world() -> World {
    let sae = Sae::open(data()).unwrap();
    let features = sae.features(&(0..sae.d_sae()).collect::<Vec<_>>()).unwrap();
    let x = residuals(&TensorFile::open(data().join("residuals.safetensors")).unwrap(), "residuals").unwrap();
    let dir = tempfile::tempdir().unwrap();
    // Where feature 4 is active against where it is not: a difference of means, as steering vectors are made.
    let on = |t: usize| dot(&features[4].w, x.column(t).as_slice()) + features[4].b > features[4].threshold;
    let mean = |wanted: bool| {
        let tokens: Vec<usize> = (0..x.ncols()).filter(|t| on(*t) == wanted).collect();
        let sum = tokens.iter().fold(vec![0.0; 576], |sum, t| plus(sum, x.column(*t).as_slice().to_vec()));
        // As a file holds them.
        sum.into_iter().map(|s| f64::from((s / tokens.len() as f64) as f32)).collect::<Vec<_>>()
    };
    let (there, elsewhere) = (mean(true), mean(false));
    let axis: Vec<f64> = there.iter().zip(&elsewhere).map(|(a, b)| f64::from((a - b) as f32)).collect();
    let probe: Vec<f64> = scaled(&unit(&axis), 0.25).into_iter().map(|x| f64::from(x as f32)).collect();
    let bytes = |v: &[f64]| v.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect::<Vec<u8>>();
    let held =
        [("axis", bytes(&axis)), ("mean", bytes(&elsewhere)), ("probe", bytes(&probe)), ("bias", bytes(&[-4.0]))];
    let views = held.iter().map(|(name, b)| (*name, TensorView::new(Dtype::F32, vec![b.len() / 4], b).unwrap()));
    serialize_to_file(views, None, &dir.path().join("v.safetensors")).unwrap();
    let b_dec = sae.decoder_bias().unwrap();
    World { features, b_dec, axis, mean: elsewhere, probe, x, dir, sae }
}

impl World {
    fn z(&self, f: usize, x: &[f64]) -> f64 {
        dot(&self.features[f].w, x) + self.features[f].b
    }

    fn a(&self, f: usize, x: &[f64]) -> f64 {
        if self.on(f, x) { self.z(f, x) } else { 0.0 }
    }

    fn on(&self, f: usize, x: &[f64]) -> bool {
        self.z(f, x) > self.features[f].threshold
    }

    fn d(&self, f: usize, c: f64) -> Vec<f64> {
        scaled(&self.features[f].d, c)
    }

    /// The component along the axis.
    fn p(&self, x: &[f64]) -> f64 {
        dot(&unit(&self.axis), x)
    }

    fn along(&self, c: f64) -> Vec<f64> {
        scaled(&unit(&self.axis), c)
    }

    fn probed(&self, x: &[f64]) -> f64 {
        dot(&self.probe, x) - 4.0
    }

    fn spec(&self, entries: &str, more: &str) -> Spec {
        let vectors = "axis = { file = 'v.safetensors', tensor = 'axis', unit = true }\n\
                       steer = { file = 'v.safetensors', tensor = 'axis' }\n\
                       mean = { file = 'v.safetensors', tensor = 'mean' }\n\
                       probe = { file = 'v.safetensors', tensor = 'probe', bias_tensor = 'bias', threshold = 1.5 }\n\
                       shifted = { file = 'v.safetensors', tensor = 'axis', unit = true, bias = 2.5 }";
        let text = format!(
            "sae = '{}'\ninterventions = [{entries}]\n{more}\n[domain]\nrange = [-160, 160]\nnorm = 250\n[budget]\nband = 0.02\n[vectors]\n{vectors}",
            data().display()
        );
        let path = self.dir.path().join("spec.toml");
        std::fs::write(&path, text).unwrap();
        Spec::read(&path).unwrap_or_else(|e| panic!("{entries}: {e}"))
    }
}

type Change = fn(&World, &[f64]) -> Vec<f64>;

struct Case {
    name: &'static str,
    formula: &'static str,
    /// the entries, as a specification writes them
    spec: &'static str,
    source: &'static str,
    change: Change,
}

fn when(c: bool, v: Vec<f64>) -> Vec<f64> {
    if c { v } else { vec![0.0; v.len()] }
}

const SAELENS: &str = "SAELens, TransformerLens hooks";
const GOODFIRE: &str = "Goodfire";
const REFUSAL: &str = "refusal direction";
const AXIS: &str = "assistant axis";
const VECTORS: &str = "steering-vectors";

fn cases() -> Vec<Case> {
    let case = |name, formula, spec, source, change: Change| Case { name, formula, spec, source, change };
    vec![
        // ------------------------------------------------------------------------------------- features of an SAE
        case(
            "constant addition",
            "x + v d",
            "{ feature = 3, action = \"add\", value = 40 }",
            "SAELens, Neuronpedia `SIMPLE_ADDITIVE`",
            |w, _| w.d(3, 40.0),
        ),
        case(
            "addition when active",
            "x + v 1[a > 0] d",
            "{ feature = 3, action = \"add_when_active\", value = 40 }",
            SAELENS,
            |w, x| when(w.on(3, x), w.d(3, 40.0)),
        ),
        case(
            "clamp when active",
            "x + (v − a) 1[a > 0] d",
            "{ feature = 3, action = \"clamp_when_active\", value = 151 }",
            "Scaling Monosemanticity, SAELens hooks",
            |w, x| when(w.on(3, x), w.d(3, 151.0 - w.a(3, x))),
        ),
        case(
            "clamp above a threshold",
            "x + (v − a) 1[a > θ] d",
            "{ feature = 3, action = \"clamp\", value = 5, when = \"a > 20\" }",
            SAELENS,
            |w, x| when(w.a(3, x) > 20.0, w.d(3, 5.0 - w.a(3, x))),
        ),
        case(
            "clamp always (set, pin)",
            "x + (v − a) d",
            "{ feature = 3, action = \"clamp\", value = 8 }",
            "Golden Gate Claude, Goodfire `pin`",
            |w, x| w.d(3, 8.0 - w.a(3, x)),
        ),
        case(
            "scale (mul)",
            "x + (k − 1) a d",
            "{ feature = 3, action = \"scale\", value = 3 }",
            "Goodfire `mul`",
            |w, x| w.d(3, 2.0 * w.a(3, x)),
        ),
        case("cap", "x − relu(a − c) d", "{ feature = 3, action = \"cap\", value = 38.6 }", SAELENS, |w, x| {
            w.d(3, -(w.a(3, x) - 38.6).max(0.0))
        }),
        case("floor", "x + relu(c − a) d", "{ feature = 3, action = \"floor\", value = 8 }", SAELENS, |w, x| {
            w.d(3, (8.0 - w.a(3, x)).max(0.0))
        }),
        case("ablate", "x − a d", "{ feature = 3, action = \"ablate\" }", SAELENS, |w, x| w.d(3, -w.a(3, x))),
        case(
            "ablate, ReLU in place of the threshold",
            "x − relu(z) d",
            "{ feature = 3, action = \"ablate\", activation = \"relu\" }",
            SAELENS,
            |w, x| w.d(3, -w.z(3, x).max(0.0)),
        ),
        case(
            "nudge",
            "x + v d",
            "{ feature = 3, action = \"add\", value = 0.5, max_activation = 75.5 }",
            "Goodfire `nudge`",
            |w, _| w.d(3, 37.75),
        ),
        case(
            "set to another feature",
            "x + (a₇ − a₃) d",
            "{ feature = 3, action = \"expr\", expr = \"a_7 - a\" }",
            GOODFIRE,
            |w, x| w.d(3, w.a(7, x) - w.a(3, x)),
        ),
        case(
            "a multiple of the largest activation",
            "x + (k m − a) 1[a > 0] d",
            "{ feature = 3, action = \"clamp_when_active\", value = 2, max_activation = 75.5 }",
            "Scaling Monosemanticity",
            |w, x| when(w.on(3, x), w.d(3, 151.0 - w.a(3, x))),
        ),
        case(
            "without the encoder's bias",
            "x − ⟨w, x⟩ 1[⟨w, x⟩ > θ] d",
            "{ feature = 3, action = \"ablate\", bias = false }",
            SAELENS,
            |w, x| {
                let z = dot(&w.features[3].w, x);
                when(z > w.features[3].threshold, w.d(3, -z))
            },
        ),
        case(
            "decoder row of norm 1",
            "x + v d/‖d‖",
            "{ feature = 3, action = \"add\", value = 40, unit = true }",
            "Neuronpedia `normalize_steering`",
            |w, _| scaled(&unit(&w.features[3].d), 40.0),
        ),
        case(
            "two features at once",
            "x − a₃ d₃ − a₆ d₆",
            "{ feature = 3, action = \"ablate\" }, { feature = 6, action = \"ablate\" }",
            SAELENS,
            |w, x| plus(w.d(3, -w.a(3, x)), w.d(6, -w.a(6, x))),
        ),
        // ---------------------------------------------------------------------------------------- across features
        case(
            "ablate where another is active",
            "x − a₁₉ 1[a₇ > 0] d₁₉",
            "{ feature = 19, action = \"ablate\", when = \"a_7 > 0\" }",
            "Goodfire `when`",
            |w, x| when(w.on(7, x), w.d(19, -w.a(19, x))),
        ),
        case(
            "set where another exceeds",
            "x + (v − a₃) 1[a₇ > θ] d₃",
            "{ feature = 3, action = \"clamp\", value = 12, when = \"a_7 > 10\" }",
            "Goodfire `when`, `pin`",
            |w, x| when(w.a(7, x) > 10.0, w.d(3, 12.0 - w.a(3, x))),
        ),
        case(
            "nudge where another is low",
            "x + v 1[a₇ < θ] d₃",
            "{ feature = 3, action = \"add\", value = 6, when = \"a_7 < 10\" }",
            "Goodfire `when`, `nudge`",
            |w, x| when(w.a(7, x) < 10.0, w.d(3, 6.0)),
        ),
        case(
            "scale where both are active",
            "x + (k − 1) a₁₉ 1[a₆ > 0 and a₇ > 0] d₁₉",
            "{ feature = 19, action = \"scale\", value = 3, when = \"a_6 > 0 and a_7 > 0\" }",
            "Goodfire `&`, `mul`",
            |w, x| when(w.on(6, x) && w.on(7, x), w.d(19, 2.0 * w.a(19, x))),
        ),
        case(
            "ablate where one of two is active",
            "x − a₁₉ 1[a₇ > 0 or a₁₂ > 0] d₁₉",
            "{ feature = 19, action = \"ablate\", when = \"a_7 > 0 or a_12 > 0\" }",
            GOODFIRE,
            |w, x| when(w.on(7, x) || w.on(12, x), w.d(19, -w.a(19, x))),
        ),
        case(
            "ablate where another is not active",
            "x − a₁₉ 1[a₇ = 0] d₁₉",
            "{ feature = 19, action = \"ablate\", when = \"not a_7 > 0\" }",
            GOODFIRE,
            |w, x| when(!w.on(7, x), w.d(19, -w.a(19, x))),
        ),
        // ---------------------------------------------------------------------------------- vectors and projections
        case(
            "steering vector",
            "x + k v",
            "{ vector = \"steer\", action = \"add\", value = 0.5 }",
            "repeng, ActAdd, CAA, steering-vectors `addition_operator`",
            |w, _| scaled(&w.axis, 0.5),
        ),
        case(
            "steering vector above a threshold",
            "x + k v 1[⟨v̂, x⟩ > θ]",
            "{ vector = \"steer\", action = \"add\", value = 0.5, when = \"z_axis > 12\" }",
            "conditional steering",
            |w, x| when(w.p(x) > 12.0, scaled(&w.axis, 0.5)),
        ),
        case(
            "probe-gated addition",
            "x + k v 1[⟨w, x⟩ + b > θ]",
            "{ vector = \"steer\", action = \"add\", value = 0.5, when = \"z_probe > 0.5\" }",
            "probes, after CAST",
            |w, x| when(w.probed(x) > 0.5, scaled(&w.axis, 0.5)),
        ),
        case(
            "probe-gated clamp of a feature",
            "x + (v − a) 1[⟨w, x⟩ + b > θ] d",
            "{ feature = 3, action = \"clamp\", value = 8, when = \"z_probe > 0.5\" }",
            "probes",
            |w, x| when(w.probed(x) > 0.5, w.d(3, 8.0 - w.a(3, x))),
        ),
        case(
            "a probe of its own threshold",
            "x + k v 1[⟨w, x⟩ + b > θ]",
            "{ vector = \"probe\", action = \"add_when_active\", value = 0.5, write = \"steer\" }",
            "probes",
            |w, x| when(w.probed(x) > 1.5, scaled(&w.axis, 0.5)),
        ),
        case(
            "projection erased",
            "x − ⟨v̂, x⟩ v̂",
            "{ vector = \"axis\", action = \"ablate\" }",
            "refusal direction `direction_ablation`, abliteration, steering-vectors `ablation_operator`",
            |w, x| w.along(-w.p(x)),
        ),
        case(
            "component replaced",
            "x + (c − ⟨v̂, x⟩) v̂",
            "{ vector = \"axis\", action = \"clamp\", value = 3 }",
            "refusal direction `directional_patching`, steering-vectors `ablation_then_addition_operator`",
            |w, x| w.along(3.0 - w.p(x)),
        ),
        case(
            "mean ablation",
            "x − ⟨v̂, x⟩ v̂ + m",
            "{ vector = \"axis\", action = \"ablate\" }, { vector = \"mean\", action = \"add\", value = 1 }",
            "assistant axis `mean_ablation`",
            |w, x| plus(w.along(-w.p(x)), w.mean.clone()),
        ),
        case(
            "component scaled",
            "x + (k − 1) ⟨v̂, x⟩ v̂",
            "{ vector = \"axis\", action = \"scale\", value = 0.5 }",
            "Neuronpedia `ORTHOGONAL_DECOMP`",
            |w, x| w.along(-0.5 * w.p(x)),
        ),
        case(
            "projection capped",
            "x − relu(⟨v̂, x⟩ − c) v̂",
            "{ vector = \"axis\", action = \"cap\", value = 12 }",
            AXIS,
            |w, x| w.along(-(w.p(x) - 12.0).max(0.0)),
        ),
        case(
            "projection floored",
            "x + relu(c − ⟨v̂, x⟩) v̂",
            "{ vector = \"axis\", action = \"floor\", value = 1 }",
            AXIS,
            |w, x| w.along((1.0 - w.p(x)).max(0.0)),
        ),
        case(
            "one-sided ablation",
            "x − relu(⟨v̂, x⟩ + c) v̂",
            "{ vector = \"shifted\", action = \"ablate\", activation = \"relu\" }",
            VECTORS,
            |w, x| w.along(-(w.p(x) + 2.5).max(0.0)),
        ),
        case(
            "one-sided ablation of a decoder row",
            "x − relu(⟨d, x⟩) d",
            "{ feature = 3, action = \"ablate\", direction = \"decoder\" }",
            SAELENS,
            |w, x| w.d(3, -dot(&w.features[3].d, x).max(0.0)),
        ),
        case(
            "decoder row erased",
            "x − ⟨d̂, x⟩ d̂",
            "{ feature = 3, action = \"ablate\", direction = \"decoder\", activation = \"linear\", unit = true }",
            REFUSAL,
            |w, x| {
                let d = unit(&w.features[3].d);
                scaled(&d, -dot(&d, x))
            },
        ),
        case(
            "projection erased where a probe fires",
            "x − ⟨v̂, x⟩ v̂ 1[⟨w, x⟩ + b > θ]",
            "{ vector = \"axis\", action = \"ablate\", when = \"a_probe > 0\" }",
            "probes",
            |w, x| when(w.probed(x) > 1.5, w.along(-w.p(x))),
        ),
        case(
            "projection into an interval",
            "x + (clamp(⟨v̂, x⟩, l, h) − ⟨v̂, x⟩) v̂",
            "{ vector = \"axis\", action = \"expr\", expr = \"clamp(z, 1, 12) - z\" }",
            AXIS,
            |w, x| w.along(w.p(x).clamp(1.0, 12.0) - w.p(x)),
        ),
        // ------------------------------------------------------------------------------------------ the whole SAE
        case(
            "reconstruction by a small SAE",
            "Σ_f a_f d_f + b_dec",
            "{ action = \"reconstruct\" }",
            SAELENS,
            |w, x| {
                let mut sum = plus(w.b_dec.clone(), scaled(x, -1.0));
                for f in 0..w.features.len() {
                    sum = plus(sum, w.d(f, w.a(f, x)));
                }
                sum
            },
        ),
    ]
}

/// The largest difference between the specification's responses and the naive change, over all tokens; and on how many tokens
/// something changes.
fn meaning(w: &World, case: &Case, spec: &Spec) -> (f64, usize) {
    let target = target(spec, &w.sae).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let (mut worst, mut changed) = (0f64, 0);
    for column in w.x.column_iter() {
        let x = column.as_slice();
        let wanted = (case.change)(w, x);
        changed += usize::from(wanted.iter().any(|c| *c != 0.0));
        let mut got = vec![0.0; x.len()];
        for r in &target.responses {
            let z: Vec<f64> = r.pre_activations.iter().map(|p| dot(&p.w, x) + p.b).chain([0.0]).collect();
            got = plus(got, scaled(&r.write, value(&r.expr, &z).unwrap()));
        }
        worst = worst.max(got.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max));
    }
    (worst, changed)
}

#[test]
fn specifications_mean_the_naive_formulas() {
    let w = world();
    for case in cases() {
        let spec = w.spec(case.spec, "");
        let (worst, changed) = meaning(&w, &case, &spec);
        // Sums of 577 products of magnitude 250 in f64, in another order.
        assert!(worst <= 1e-10, "{}: {worst:e}", case.name);
        assert!(changed > 0 && (changed < 512 || !case.formula.contains("1[")), "{}: {changed} tokens", case.name);
    }
}

/// What compiling and running a case shows.
struct Row {
    neurons: usize,
    layers: usize,
    status: String,
    certified: f64,
    seen: f64,
    in_band: usize,
}

fn run(w: &World, case: &Case) -> Row {
    let spec = w.spec(case.spec, "");
    let target = target(&spec, &w.sae).unwrap();
    let compiled = compile(&target, &options(&spec)).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    assert!(compiled.met(), "{}: tolerance missed", case.name);
    let seen = observe(&target, &compiled, &w.x).unwrap();
    let bound = seen.bound.unwrap();
    assert_eq!((seen.tokens, seen.excluded), (512, 0), "{}", case.name);
    assert!(seen.largest <= bound + ARITHMETIC, "{}: {:e} > {bound:e}", case.name, seen.largest);
    let order = [Status::Exact, Status::ExactOutside, Status::Within, Status::BestEffort];
    let all =
        compiled.proof.responses.iter().map(|r| r.figures().status).chain(compiled.gates.iter().map(|g| g.status));
    let worst = all.max_by_key(|s| order.iter().position(|o| o == s)).unwrap_or(Status::Exact);
    let blocks = compiled.insertion().blocks;
    Row {
        neurons: blocks.iter().map(|b| b.intermediate_size()).sum(),
        layers: blocks.len(),
        status: format!("{worst:?}"),
        certified: bound,
        seen: seen.largest,
        in_band: seen.in_band,
    }
}

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/interventions.md")
}

#[test]
fn blocks_do_what_is_certified_and_the_page_says_so() {
    let w = world();
    let text = std::fs::read_to_string(page()).unwrap();
    for case in cases() {
        let row = run(&w, &case);
        let start = format!("| {} | {} |", case.name, case.formula);
        let line =
            text.lines().find(|l| l.starts_with(&start)).unwrap_or_else(|| panic!("the page has no row {start}"));
        let cost = format!("| {} | {} | {} |", row.status, row.neurons, row.layers);
        assert!(line.contains(case.spec) && line.contains(&cost), "{line}\n{cost}");
    }
}

#[test]
#[ignore = "writes the table of docs/interventions.md"]
fn write_the_table() {
    let w = world();
    let mut table = String::from(
        "| intervention | x becomes | entries of the specification | source | status | neurons | layers | certified | seen | in a band |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    for case in cases() {
        let r = run(&w, &case);
        table += &format!(
            "| {} | {} | `{}` | {} | {} | {} | {} | {:.1e} | {:.1e} | {} |\n",
            case.name,
            case.formula,
            case.spec,
            case.source,
            r.status,
            r.neurons,
            r.layers,
            r.certified,
            r.seen,
            r.in_band
        );
    }
    let text = std::fs::read_to_string(page()).unwrap();
    let (head, rest) = text.split_once("<!-- table -->\n").unwrap();
    let (_, tail) = rest.split_once("<!-- end -->\n").unwrap();
    std::fs::write(page(), format!("{head}<!-- table -->\n{table}<!-- end -->\n{tail}")).unwrap();
}

/// Steps after one layer: the second reads what the first leaves.
#[test]
fn a_sequence_is_one_specification_a_step() {
    let w = world();
    let entries = "{ feature = 3, action = \"clamp\", value = 30 }, { feature = 6, action = \"ablate\" }";
    w.spec(entries, "");
    let text = std::fs::read_to_string(w.dir.path().join("spec.toml")).unwrap();
    let specs = Spec::parse_all_toml(&format!("sequence = true\n{text}")).unwrap();
    assert_eq!(specs.iter().map(|s| (s.step, s.interventions.len())).collect::<Vec<_>>(), [(0, 1), (1, 1)]);
    let refused = Spec::parse_toml(&format!("sequence = true\n{text}")).unwrap_err().to_string();
    assert!(refused.contains("2 steps of a sequence where one is wanted"), "{refused}");
}

fn refusal(w: &World, entries: &str) -> String {
    w.spec("{ feature = 3, action = \"ablate\" }", "");
    let text = std::fs::read_to_string(w.dir.path().join("spec.toml")).unwrap();
    let text = text.replace("{ feature = 3, action = \"ablate\" }", entries);
    let path = w.dir.path().join("wrong.toml");
    std::fs::write(&path, text).unwrap();
    let read = Spec::read(&path).and_then(|spec| target(&spec, &w.sae).map(|t| (spec, t)));
    let done = read.and_then(|(spec, t)| compile(&t, &options(&spec)));
    done.map(|_| ()).expect_err(entries).to_string()
}

/// (entry, what the error says, what it says would work)
const REFUSED: [(&str, &str, &str); 49] = [
    (
        "{ feature = 3, action = 'ablate', top_k = 32 }",
        "among the k largest depends on all the others",
        "use thresholds",
    ),
    ("{ feature = 3, action = 'top_k' }", "among the k largest depends on all the others", "jumprelu"),
    ("{ feature = 3, action = 'ablate', activation = 'topk' }", "among the k largest", "use thresholds"),
    ("{ feature = 3, action = 'ablate', group_max = true }", "a maximum over many features", "join them"),
    (
        "{ feature = 3, action = 'add', value = 1, norm_preserving = true }",
        "the norm of each token's own residual",
        "neurograft calibrate",
    ),
    ("{ feature = 3, action = 'rescale' }", "the norm of each token's own residual", "absolute `value`"),
    ("{ feature = 3, action = 'layer_norm' }", "a function of all coordinates", "absolute `value`"),
    (
        "{ feature = 3, action = 'add', value = 1, positions = [0] }",
        "which token, role or position",
        "gate on what tells such tokens apart",
    ),
    ("{ feature = 3, action = 'add', value = 1, last_token = true }", "which token, role or position", "z_probe > 2"),
    (
        "{ feature = 3, action = 'add', value = 1, when = 'position > 3' }",
        "which token, role or position",
        "a feature or a probe",
    ),
    ("{ feature = 3, action = 'add', value = 1, any_token = true }", "only through attention", "gate each token"),
    (
        "{ feature = 3, action = 'add', value = 1, condition_threshold = 0.2 }",
        "only through attention",
        "two checkpoints",
    ),
    (
        "{ feature = 3, action = 'add', strength = 'request' }",
        "weights are the same for all requests",
        "write value = ...",
    ),
    (
        "{ feature = 3, action = 'add', value = 'request' }",
        "weights are the same for all requests",
        "splice a checkpoint for each",
    ),
    ("{ feature = 3, action = 'add', value = 'abc' }", "value = 'abc' is no number", "1/3"),
    ("{ feature = 3, action = 'pin', value = 1 }", "has another name here", "action = \"clamp\""),
    ("{ feature = 3, action = 'nudge', value = 1 }", "has another name here", "action = \"add\""),
    ("{ vector = 'axis', action = 'erase' }", "has another name here", "unit = true"),
    ("{ feature = 3, action = 'clmp', value = 1 }", "is not known", "did you mean \"clamp\"?"),
    ("{ feature = 3, action = 'ablate', when = 'a_7 == 0' }", "asks for equality", "say how near"),
    ("{ feature = 3, action = 'ablate', when = 'a_7' }", "'a_7' compares nothing", "write comparisons"),
    ("{ feature = 3, action = 'ablate', when = 'z_prob > 1' }", "there is no vector 'prob'", "did you mean 'probe'?"),
    (
        "{ feature = 3, action = 'ablate', when = 'z_7 > 500' }",
        "'z_7 > 500' never holds while pre-activations range from -160 to 160",
        "widen `range`",
    ),
    ("{ feature = 3, action = 'ablate', when = 'z_7 > 5 and z_7 < 3' }", "never holds", "change it"),
    ("{ feature = 3, action = 'ablate', when = 'z + z_7 > 400' }", "'z + z_7 > 400' never holds", "widen"),
    (
        "{ feature = 3, action = 'expr', expr = 'z * step(z_7 - 500)' }",
        "with z is feature 3, z_1 is feature 7: the threshold 500 does not lie inside of the range",
        "widen",
    ),
    ("{ feature = 3, action = 'expr', expr = 'z * step(z + z_7 - 400)' }", "never holds", "widen"),
    ("{ feature = 3, action = 'expr', expr = 'step(0 * z_7 - 1) * z' }", "never holds", "change it"),
    ("{ feature = 3, action = 'expr', expr = 'step(z_7 - z_7) * z' }", "never holds", "change it"),
    ("{ feature = 3, action = 'expr', expr = 'step(-1) * z' }", "'-1 > 0' never holds", "change it"),
    ("{ feature = 3, action = 'expr', expr = 'step(z_7 - 5) * z * step(3 - z_7)' }", "never holds", "change it"),
    ("{ feature = 3, action = 'expr', expr = 'step(z - 5) * step(3 - z)' }", "never holds", "change it"),
    ("{ feature = 3, action = 'expr', expr = 'z * z_7' }", "with z is feature 3, z_1 is feature 7", "affine"),
    ("{ feature = 3, action = 'ablate', when = 'a > a_7' }", "not affine", "gates switch where"),
    ("{ vector = 'steer', action = 'ablate' }", "vector steer has norm", "unit = true in its [vectors] table"),
    ("{ feature = 3, vector = 'axis', action = 'ablate' }", "both feature and vector", "write = ..."),
    ("{ action = 'ablate' }", "neither feature nor vector", "say what z reads"),
    ("{ feature = 3, action = 'reconstruct' }", "the whole SAE", "leave feature and vector out"),
    ("{ action = 'reconstruct', when = 'z_7 > 0' }", "takes none of when", "leave them out"),
    (
        "{ vector = 'axis', action = 'ablate', activation = 'jumprelu' }",
        "vector axis has no threshold",
        "threshold = ...",
    ),
    ("{ vector = 'axis', action = 'ablate', bias = false }", "are about features", "[vectors] table"),
    ("{ vector = 'axis', action = 'ablate', unit = true }", "about decoder rows", "[vectors] table"),
    (
        "{ feature = 3, action = 'ablate', direction = 'decoder', bias = false }",
        "decoder rows have no bias",
        "leave bias out",
    ),
    ("{ feature = 3, action = 'scale', value = 2, max_activation = 3 }", "takes no max_activation", "leave"),
    ("{ feature = 3, action = 'add', value = 2, max_activation = 0 }", "max_activation must be positive", ""),
    ("{ feature = 'three', action = 'ablate' }", "'three' is a string, a whole number is wanted", ""),
    ("{ feature = -3, action = 'ablate' }", "-3 is no whole number from 0", ""),
    ("{ feature = 3, action = 'ablate', band = 'wide' }", "'wide' is a string, a number is wanted", ""),
    ("{ feature = 3, action = 'ablate', write = -1 }", "the index of a feature or the name of a vector", ""),
];

#[test]
fn what_cannot_be_had_is_refused_with_the_reason() {
    let w = world();
    for (entry, why, instead) in REFUSED {
        let said = refusal(&w, entry);
        assert!(said.contains(why) && said.contains(instead), "{entry}\n{said}");
        assert!(!said.contains("usize") && !said.contains("u64") && !said.contains("f64"), "{said}");
    }
}

/// Every example of the reference is a specification.
#[test]
fn examples_of_the_reference_are_read() {
    let text = std::fs::read_to_string(page().with_file_name("spec.md")).unwrap();
    let examples: Vec<&str> = text.split("```toml\n").skip(1).map(|e| e.split("```").next().unwrap()).collect();
    assert_eq!(examples.len(), 2);
    let specs: Vec<Spec> =
        examples.iter().map(|e| Spec::parse_toml(e).unwrap_or_else(|x| panic!("{x}\n{e}"))).collect();
    assert_eq!(specs[1].vectors.len(), 3);
    let labels: Vec<String> = specs[1].interventions.iter().map(neurograft::spec::Intervention::label).collect();
    assert_eq!(labels, ["cap vector axis", "calm down"]);
}

/// What overflows the number format says so, and not that parts do not add up.
#[test]
fn what_exceeds_the_format_says_so() {
    let w = world();
    for (format, entry) in [
        ("f16", "{ feature = 3, action = 'expr', expr = '1e9 * z * step(z_7 - 1)' }"),
        ("bf16", "{ feature = 3, action = 'expr', expr = '1e45 * z * step(z_7 - 1)' }"),
        ("f32", "{ feature = 3, action = 'expr', expr = '1e45 * z * step(z_7 - 1)' }"),
        ("f16", "{ feature = 3, action = 'add', value = 1e9 }"),
    ] {
        let spec = w.spec(entry, &format!("[host]\nformat = '{format}'"));
        let e = compile(&target(&spec, &w.sae).unwrap(), &options(&spec)).unwrap_err();
        assert!(e.is_unsupported() && e.to_string().contains("the range of"), "{format} {entry}: {e}");
    }
}

/// A vector without an SAE, and one without anything.
#[test]
fn vectors_need_no_sae() {
    let w = world();
    let file = w.dir.path().join("v.safetensors").display().to_string();
    let spec = |entry: &str, more: &str| {
        Spec::parse_toml(&format!(
            "layer = 15\ninterventions = [{entry}]\n[vectors]\naxis = {{ file = '{file}', tensor = 'axis', unit = true }}\n{more}"
        ))
    };
    let cap = spec("{ vector = 'axis', action = 'cap', value = 12 }", "").unwrap();
    let t = target(&cap, None).unwrap();
    assert_eq!(
        (t.responses[0].name.as_str(), t.responses[0].expr.to_string().as_str()),
        ("cap vector axis", "-relu(z - 12)")
    );
    let short = format!("short = {{ file = '{file}', tensor = 'bias' }}");
    let all = format!("all = {{ file = '{file}' }}");
    for (entry, more, said) in [
        (
            "{ vector = 'axis', action = 'ablate', write = 'short' }",
            &short,
            "vector short has 1 coordinates, vector axis has 576",
        ),
        ("{ vector = 'all', action = 'add', value = 1 }", &all, "holds 4 tensors"),
        // Used or not.
        ("{ vector = 'axis', action = 'ablate' }", &all, "holds 4 tensors"),
    ] {
        let e = target(&spec(entry, more).unwrap(), None).unwrap_err().to_string();
        assert!(e.contains(said), "{e}");
    }
    let e = spec("{ feature = 1, action = 'ablate' }", "").unwrap_err().to_string();
    assert!(e.contains("missing field 'sae': feature 1 is one of an SAE"), "{e}");
}

fn labels(w: &World, entries: &str) -> Vec<String> {
    w.spec(entries, "").interventions.iter().map(neurograft::spec::Intervention::label).collect()
}

#[test]
fn responses_are_called_what_was_written() {
    let w = world();
    for (entry, label) in [
        ("{ feature = 3, action = 'ablate' }", "ablate feature 3"),
        ("{ feature = 3, action = 'ablate', gate = 7 }", "ablate feature 3 when a_7 > 0"),
        ("{ feature = 3, action = 'ablate', gate = 7, when = 'z < 9' }", "ablate feature 3 when a_7 > 0 and (z < 9)"),
        ("{ feature = 3, action = 'add', value = 1, write = 'steer' }", "add feature 3 along vector steer"),
        ("{ feature = 3, action = 'ablate', direction = 'decoder' }", "ablate feature 3 (decoder row)"),
        ("{ vector = 'axis', action = 'cap', value = 2, name = \"no\\n\\tdrift \" }", "no drift"),
    ] {
        assert_eq!(labels(&w, entry), [label]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    // Formulas over random pre-activations: the expression of every action, gating and condition against arithmetic.
    #[test]
    fn actions_are_their_formulas(
        action in 0usize..8, gating in 0usize..3, tenths in -300i32..300, threshold in 1i32..40, z in prop::array::uniform2(-80i32..80),
        above in -60i32..60, strict in any::<bool>(),
    ) {
        let (v, t) = (f64::from(tenths) / 10.0, f64::from(threshold) / 4.0);
        let z = z.map(|z| f64::from(z) / 4.0);
        let names = ["ablate", "clamp", "clamp_when_active", "cap", "floor", "scale", "add", "add_when_active"];
        let a = match gating {
            0 => if z[0] > t { z[0] } else { 0.0 },
            1 => z[0].max(0.0),
            _ => z[0],
        };
        let active = z[0] > if gating == 1 { 0.0 } else { t };
        let wanted = match names[action] {
            "ablate" => -a,
            "clamp" => v - a,
            "clamp_when_active" => if active { v - z[0] } else { 0.0 },
            "cap" => -(a - v).max(0.0),
            "floor" => (v - a).max(0.0),
            "scale" => (v - 1.0) * a,
            "add" => v,
            _ => if active { v } else { 0.0 },
        };
        let c = f64::from(above) / 4.0;
        let holds = if strict { z[1] > c } else { z[1] >= c };
        let wanted = if holds { wanted } else { 0.0 };
        // Two coordinates, each a vector's.
        let dir = tempfile::tempdir().unwrap();
        let rows: Vec<u8> = [1f32, 0.0, 0.0, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F32, vec![2, 2], &rows).unwrap();
        serialize_to_file([("v", view)], None, &dir.path().join("v.safetensors")).unwrap();
        let value_field = if names[action] == "ablate" { String::new() } else { format!("value = {v:?}, ") };
        let activation = if names[action] == "add" { "" } else { ["activation = 'jumprelu', ", "activation = 'relu', ", "activation = 'linear', "][gating] };
        let (name, file, sign) = (names[action], dir.path().join("v.safetensors"), if strict { ">" } else { ">=" });
        let file = file.display();
        let text = format!(
            "interventions = [{{ vector = 'p', {value_field}{activation}action = '{name}', when = 'z_q {sign} {c:?}' }}]\n\
             [vectors]\np = {{ file = '{file}', row = 0, threshold = {t:?} }}\nq = {{ file = '{file}', row = 1 }}"
        );
        let spec = Spec::parse_toml(&text).unwrap();
        let t = target(&spec, None).unwrap();
        // x is (z_p, z_q); a response may read one of them only.
        let read: Vec<f64> = t.responses[0].pre_activations.iter().map(|p| dot(&p.w, &z) + p.b).collect();
        let got = value(&t.responses[0].expr, &read).unwrap();
        prop_assert!((got - wanted).abs() <= 1e-12 * (1.0 + wanted.abs()), "{}: {got}, not {wanted}, at {z:?}", t.responses[0].expr);
    }
}
