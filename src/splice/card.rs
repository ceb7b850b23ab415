//! A splice in words: the plan, and the model card that travels with the result.

use std::fmt::Write;

use nalgebra::DVector;

use crate::carriers::{Carriers, Kind};
use crate::explain::{Row, bound, engines, missed, rows, scope, table, warnings};
use crate::host::Host;

use super::{Change, Cost, FOLDER, Plan, PlannedSite};

/// A number of bytes for people.
pub fn bytes(n: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let (mut x, mut k) = (n as f64, 0);
    while x >= 1000.0 && k + 1 < units.len() {
        x /= 1000.0;
        k += 1;
    }
    let digits = if x < 10.0 { 2 } else { 1 };
    if k == 0 { format!("{n} B") } else { format!("{x:.digits$} {}", units[k]) }
}

fn grows(c: Change, text: impl Fn(u64) -> String) -> String {
    if c.before == c.after {
        text(c.before)
    } else {
        format!("{} → {} ({:+.2} %)", text(c.before), text(c.after), 100.0 * c.growth())
    }
}

/// What whoever runs the result should know of the carriers.
pub(super) fn notes(c: &Carriers, host: &Host, sites: &[PlannedSite]) -> Vec<String> {
    let mut notes = Vec::new();
    if c.kind == Kind::Borrowed {
        let all = "the certificate allows for all of |x_j| up to domain.borrowed, or domain.norm without it";
        notes.push(format!(
            "borrowed coordinates lose their low bits, and what x has along the constants is not read: {all}"
        ));
    }
    for site in sites {
        notes.push(match site.norm {
            Some(r) => format!(
                "after layer {}: certified for residuals with ‖x‖ ≤ {r}; tokens beyond it (a sequence's first one, often) are not covered",
                site.layer
            ),
            None => format!(
                "after layer {}: no domain.norm, so the certificate speaks of the pre-activations only, not of x",
                site.layer
            ),
        });
        notes.extend(missed(&site.compiled));
        notes.extend(warnings(&site.compiled).into_iter().map(|w| format!("WARNING: {w}")));
    }
    if c.kind == Kind::Padded {
        notes.push(format!(
            "the constants leave every x as it is in {} up to ‖x‖ = {:.1e}",
            host.stream,
            c.exact_up_to(host.stream)
        ));
        if host.stream == crate::format::Format::F16 {
            notes.push(
                "WARNING: in f16 a token beyond that norm may overflow in the inserted layers, and infinities spread to all later \
                 tokens through attention. A sequence's first token often has a norm of tens of thousands: run the self-test, \
                 or splice a bf16 or f32 checkpoint"
                    .into(),
            );
        }
    }
    notes
}

/// What to do about a certificate that allows for all that a borrowed coordinate could be.
pub(super) fn unbounded(c: &Carriers, norm: f64, largest: &DVector<f64>, tokens: usize) -> String {
    let seen = c.constants.iter().map(|k| largest[k.coordinate]).fold(0.0, f64::max);
    format!(
        "without domain.borrowed the certificate allows for |x_j| up to {norm} in the borrowed coordinates; on {tokens} random tokens they reach \
         {}: with domain.borrowed = {}, if that holds for your residuals, the bound comes down with it",
        short(seen),
        short(2.0 * seen)
    )
}

fn list(numbers: impl IntoIterator<Item = usize>) -> String {
    numbers.into_iter().map(|n| n.to_string()).collect::<Vec<_>>().join(", ")
}

fn constants(c: &Carriers) -> String {
    let mut values: Vec<i32> = c.constants.iter().map(|k| k.a).collect();
    values.sort_unstable_by_key(|a| -a);
    values.dedup();
    let share = |a: &i32| {
        let at: Vec<usize> = c.constants.iter().filter(|k| k.a == *a).map(|k| k.coordinate).collect();
        let several = if at.len() > 1 { "s" } else { "" };
        format!("{a}·2^{} in coordinate{several} {}", c.exponent, list(at))
    };
    values.iter().map(share).collect::<Vec<_>>().join("; ")
}

fn carriers(c: &Carriers) -> String {
    let guards = if c.guards.is_empty() { String::new() } else { format!("; guards {}", list(c.guards.clone())) };
    format!("{} ({}{guards})", c.kind, constants(c))
}

fn costs(cost: &Cost) -> Vec<(&'static str, String)> {
    vec![
        ("layers", grows(cost.layers, |n| n.to_string())),
        ("hidden size", grows(cost.hidden_size, |n| n.to_string())),
        ("parameters", grows(cost.parameters, |n| n.to_string())),
        ("weights", grows(cost.bytes, bytes)),
        ("read for a token at batch 1", grows(cost.read, bytes)),
        ("key-value cache for a token", grows(cost.cache, bytes)),
    ]
}

fn latency(cost: &Cost) -> String {
    format!(
        "{:+.2} % where reading weights is the limit, {:+.2} % where the number of layers is",
        100.0 * cost.read.growth(),
        100.0 * cost.layers.growth()
    )
}

/// A bound or a radius, to three digits.
fn short(x: f64) -> String {
    let digits = format!("{x:.2e}");
    let plain = digits.parse::<f64>().unwrap_or(x).to_string();
    if plain.len() <= 6 { plain } else { digits }
}

/// The plan as a text.
pub(super) fn plan(plan: &Plan) -> String {
    let mut out = String::new();
    let h = &plan.host;
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "{name:<28} {text}");
    };
    line(
        "model",
        format!(
            "{}, {} layers, {} {} units, inserted weights {}, stream {}",
            plan.architecture, h.layers, h.intermediate_size, h.source, h.weights, h.stream
        ),
    );
    for site in &plan.sites {
        line(
            &format!("after layer {}", site.layer),
            format!("inserted as {}; {}", list(site.inserted.clone()), units(site, h.intermediate_size)),
        );
    }
    line("carriers", carriers(&plan.carriers));
    for (name, text) in costs(&plan.cost) {
        line(name, text);
    }
    line("added time, in theory", latency(&plan.cost));
    for note in &plan.notes {
        let _ = writeln!(out, "note: {note}");
    }
    for site in &plan.sites {
        let from = site.origin.sae.as_ref().map_or("vectors".into(), |sae| sae.display().to_string());
        let _ = writeln!(out, "\nafter layer {}, from {from}:", site.layer);
        out += &table(&written(site));
        for line in scope(&site.compiled.certificate) {
            let _ = writeln!(out, "{line}");
        }
        let reading = &site.compiled.certificate.reading;
        if !reading.is_exact() {
            let [lo, hi] = reading.scale;
            let residue = short(reading.residue);
            let _ = writeln!(out, "of this, the carriers: x is read {lo} to {hi} times, and {residue} is left behind");
        }
        for line in engines(&site.compiled.certificate) {
            let _ = writeln!(out, "{line}");
        }
    }
    out
}

fn units(site: &PlannedSite, all: usize) -> String {
    let used: Vec<String> = site.layers.iter().map(|l| l.mlp.intermediate_size().to_string()).collect();
    format!("{} of {all} hidden units used", used.join(" and "))
}

/// What the last layer writes; payloads between two layers are no responses of their own.
fn written(site: &PlannedSite) -> Vec<Row> {
    rows(&site.compiled.certificate).into_iter().filter(|r| !r.carried).collect()
}

/// What a card says of the kind of checkpoint that it travels with.
struct About {
    /// the YAML head
    front: String,
    /// what the checkpoint is, and of which source
    introduction: String,
    /// how to verify it
    check: String,
    /// how to run the self-test
    selftest: String,
    /// what an engine must do
    engines: Vec<String>,
}

/// The model card of a HuggingFace checkpoint. `source`: the source's own card; `id`: its name on the hub, if it says so.
pub(super) fn model_card(plan: &Plan, source: &str, id: Option<&str>) -> String {
    let mut engines = vec![
        "The engine must honour `attention_bias`: the constants are the inserted layer's `self_attn.o_proj.bias`. An engine that \
         drops a bias it does not know, as vLLM does for classes without it, does so without a word."
            .to_string(),
        match plan.carriers.kind {
            Kind::Padded => {
                "No MLP bias is used (`mlp_bias` as in the source): engines whose Llama MLP has none, such as SGLang, need \
                 only the attention's."
            }
            Kind::Borrowed => {
                "The MLP's biases are used as well (`mlp_bias`): engines whose Llama MLP has none, such as SGLang, cannot run \
                 it."
            }
        }
        .into(),
        NORMS.into(),
    ];
    engines.push(format!(
        "Load it with dtype {}: vLLM's default for f32 checkpoints is a 16-bit format.",
        match plan.host.stream {
            crate::format::Format::Bf16 => "bfloat16",
            crate::format::Format::F16 => "float16",
            _ => "float32",
        }
    ));
    engines.push(
        "candle's Llama has no biases and takes head_dim for hidden / heads: it cannot run this checkpoint.".into(),
    );
    let about = About {
        front: front_matter(source, id),
        introduction: format!(
            "This checkpoint is {} with {} inserted. {SAME}{}",
            id.map_or(format!("a {}", plan.architecture), |id| format!("`{id}` ({})", plan.architecture)),
            decoder_layers(plan),
            if source.is_empty() { "" } else { " The source's own card is README.source.md." }
        ),
        selftest: format!(
            "`python {FOLDER}/selftest.py transformers . --dtype {}` (or `vllm .`, or `openai http://HOST:PORT/v1` for a server)",
            match plan.host.weights {
                crate::format::Format::Bf16 => "bfloat16",
                crate::format::Format::F16 => "float16",
                _ => "float32",
            }
        ),
        check: format!("`neurograft splice --check DIR` derives every certificate anew from `{FOLDER}/`"),
        engines,
    };
    card(plan, about)
}

/// The model card of a GGUF file. `file`: its name; `name`: what its source calls itself.
pub(super) fn gguf_card(plan: &Plan, file: &str, name: Option<&str>) -> String {
    let about = About {
        front: front_matter("", None),
        introduction: format!(
            "`{file}` is a GGUF file of architecture {}{} with {} inserted. {SAME}",
            plan.architecture,
            name.map_or(String::new(), |n| format!(" (`{n}`)")),
            decoder_layers(plan)
        ),
        selftest: format!("`llama-server -m {file}` and `python selftest.py openai http://127.0.0.1:8080/v1 --dtype quantised` (float32 if the file is F32)"),
        check: format!("`neurograft splice --check {file}` derives every certificate anew from this directory"),
        engines: vec![
            format!(
                "llama.cpp runs it as it is: architecture `llama` reads `blk.N.attn_output.bias`{}, layer by layer, where they \
                 are. An engine that does not read them computes something else.",
                match plan.carriers.kind {
                    Kind::Padded => "",
                    Kind::Borrowed => " and `blk.N.ffn_{gate,up,down}.bias`",
                }
            ),
            match plan.carriers.kind {
                Kind::Padded => {
                    "The hidden size is no multiple of the heads' size: the engine must take `llama.attention.key_length`, as \
                     llama.cpp does."
                }
                Kind::Borrowed => "All tensors but the inserted layers' have the bytes that they had.",
            }
            .into(),
            NORMS.into(),
        ],
    };
    card(plan, about)
}

const SAME: &str = "Stock engines run it unchanged: what an intervention on the residual stream (a forward hook) would do is \
                    done by the weights of the inserted layers.";
const NORMS: &str = "The norm must be computed in f32 or better: squares reach 2^88.";

fn decoder_layers(plan: &Plan) -> String {
    match plan.inserted() {
        1 => "one decoder layer".to_string(),
        n => format!("{n} decoder layers"),
    }
}

fn card(plan: &Plan, about: About) -> String {
    let mut out = about.front;
    let mut add = |text: &str| {
        out.push_str(text);
        out.push('\n');
    };
    add("# Spliced with Neurograft\n");
    add(&format!("{}\n", about.introduction));
    add("## What was inserted\n");
    for site in &plan.sites {
        add(&format!(
            "After layer {} of the source, as {} {}: x ← x + Σ c(z)·v with z a pre-activation of {}{}{}; {}.\n",
            site.layer,
            if site.layers.len() == 1 { "layer" } else { "layers" },
            list(site.inserted.clone()),
            site.origin.sae.as_ref().map_or("vectors".into(), |sae| format!("the SAE `{}`", sae.display())),
            site.origin.model.as_ref().map_or(String::new(), |m| format!(", trained on `{m}`")),
            site.origin.hook.as_ref().map_or(String::new(), |h| format!(" at `{h}`")),
            units(site, plan.host.intermediate_size)
        ));
        let written = written(site);
        let grows = written.iter().any(|r| r.slope.is_some());
        let (head, rule) = if grows { (" per unit of \\|z\\| |", "---|") } else { ("", "") };
        add(&format!(
            "| response | c(z) | z in | status | band | error off the band |{head} overshoot in the band | leak where c = 0 | in the stream |"
        ));
        add(&format!("|---|---|---|---|---|---|{rule}---|---|---|"));
        for r in written {
            let name = cell(&r.name);
            let slope = if grows { format!(" {} |", r.slope.as_deref().unwrap_or("-")) } else { String::new() };
            let about = format!("| {name} | `{}` | {} | {} | {}", r.response, r.domain, r.status, r.band);
            add(&format!("{about} | {} |{slope} {} | {} | {} |", r.error, r.overshoot, r.leak, r.stream));
        }
        add(
            "\nError, overshoot and leak are those of c at the z that the rounded rows compute; the stream's column counts the rest.",
        );
        if grows {
            add("For z far out they are larger by \\|z\\| times the column beside the error: the rounding of slopes.");
        }
        add("\nThe rows of this table add up; what reads and writes which direction:\n");
        site.legend.iter().for_each(|line| add(&format!("* {}", cell(line))));
        add("");
        if let Some(total) = &site.compiled.proof.total {
            add(&format!(
                "In the stream, with no pre-activation in its band: ‖block − intervention‖ ≤ {}, for ‖x‖ ≤ {}.\n",
                bound(total.outside),
                site.norm.map_or("∞".into(), |n| n.to_string())
            ));
        }
        if let Some((head, lines)) = engines(&site.compiled.certificate).split_first() {
            add(&format!("Proved {head}\n"));
            lines.iter().for_each(|line| add(&format!("* {}", line.split_whitespace().collect::<Vec<_>>().join(" "))));
            add("");
        }
    }
    add(
        "Bounds are proved, not measured. They hold in real arithmetic on the stored weights, for pre-activations and norms in \
         the stated ranges; an engine's own rounding comes on top, unless the engine is named above. Statuses: Exact and ExactOutside (an identity, outside of \
         bands), Within (the tolerance is met), BestEffort (it is missed; the bound holds all the same). Figures are rounded up \
         here; certificate.json has them in full, and its w, b and v are what z, z_1, … and the writes are.\n",
    );
    add("## Carriers and cost\n");
    let c = &plan.carriers;
    add(&match c.kind {
        Kind::Padded => format!(
            "The hidden size grew from {} to {}. New coordinates carry constants ({}) through the inserted layers, which makes \
             their norm a known scale; they are 0 everywhere else. The gains of all other norms are multiplied by √({}/{}) and \
             their eps by {}/{}, which undoes the padding.\n",
            c.live,
            c.hidden_size,
            constants(c),
            c.live,
            c.hidden_size,
            c.live,
            c.hidden_size
        ),
        Kind::Borrowed => format!(
            "Coordinates of the model itself carry constants ({}) through the inserted layers, which makes their norm a known \
             scale. The constants are removed again, and with them the low bits of those coordinates. All other layers are as \
             they were.\n",
            constants(c)
        ),
    });
    add("| | |\n|---|---|");
    costs(&plan.cost).into_iter().for_each(|(name, text)| add(&format!("| {name} | {text} |")));
    add(&format!("| added time, in theory | {} |\n", latency(&plan.cost)));
    plan.notes.iter().for_each(|n| add(&format!("* {n}")));
    add("");
    add("## Checking\n");
    add(&format!(
        "{}, lowers the certified blocks once more, and compares with the inserted layers bit for bit.\n",
        about.check
    ));
    if plan.selftest.is_some() {
        add("## Self-test\n");
        add(&format!(
            "{} compares an engine with what the source's weights and the exact intervention give in f64. It finds a bias that was \
             dropped without a word.\n",
            about.selftest
        ));
    }
    add("## Engines\n");
    about.engines.iter().for_each(|text| add(&format!("* {text}")));
    out
}

/// A name of somebody's own in Markdown.
fn cell(text: &str) -> String {
    text.replace('\\', "\\\\").replace('|', "\\|").replace('<', "&lt;")
}

/// The YAML head of the card: what the source's card says of its licence and language, and what it is derived from.
fn front_matter(source: &str, id: Option<&str>) -> String {
    let mut out = String::from("---\n");
    let head: Vec<&str> = match source.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---")) {
        Some((head, _)) => head.lines().collect(),
        None => Vec::new(),
    };
    // A key and the lines that belong to it.
    let field = |key: &str| {
        let at = head.iter().position(|l| l.strip_prefix(key).is_some_and(|r| r.starts_with(':')))?;
        let more = head[at + 1..].iter().take_while(|l| l.starts_with([' ', '-'])).count();
        Some(head[at..=at + more].join("\n"))
    };
    let keys = ["license", "license_name", "license_link", "language", "library_name", "pipeline_tag"];
    for text in keys.into_iter().filter_map(field) {
        out += &format!("{text}\n");
    }
    // A name on the hub is "owner/name"; a path is nobody's.
    let hub = id.filter(|id| id.split('/').count() == 2 && !id.starts_with(['.', '/', '~']));
    match (hub, field("base_model")) {
        (Some(id), _) => out += &format!("base_model: {id}\n"),
        (None, Some(text)) => out += &format!("{text}\n"),
        (None, None) => {}
    }
    out + "tags:\n- neurograft\n---\n\n"
}
