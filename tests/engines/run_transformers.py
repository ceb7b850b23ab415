"""transformers on the CPU: spliced checkpoints in f32 and bf16 against a forward hook and the intervention in float64."""

import time
from pathlib import Path

import torch

import hf
from cases import ADD, ADD_WHEN_ACTIVE, CLAMP, GATE, JUMPRELU, RELU, SITES, STEPS, Case
from oracle import Intervention, judge
from splice import Failed, remove, splice
from table import Checks, Table
from weights import checkpoint

PLAN: list[tuple[Case, list[tuple[str, str]]]] = [
    (RELU, [("padded", "f32"), ("padded", "bf16"), ("borrowed", "f32")]),
    (JUMPRELU, [("padded", "f32"), ("padded", "bf16")]),
    (CLAMP, [("padded", "f32"), ("padded", "bf16")]),
    (ADD, [("padded", "f32"), ("padded", "bf16"), ("borrowed", "f32")]),
    (ADD_WHEN_ACTIVE, [("padded", "f32"), ("padded", "bf16")]),
    (GATE, [("padded", "f32"), ("padded", "bf16")]),
    (SITES, [("padded", "f32")]),
    (STEPS, [("padded", "f32")]),
]

STREAM = [
    "case", "layers", "carriers", "format", "tokens", "changed", "near", "mean", "max", "hook mean", "hook max", "over",
    "idle", "disturbed", "padding", "first token",
]  # fmt: skip
LOGITS = ["case", "layers", "carriers", "format", "KL mean", "KL max", "top-1", "hook's KL", "hook's top-1", "crossed", "greedy"]


def run(work: Path, scratch: Path, checks: Checks) -> list[Table]:
    weights = {format: checkpoint(work, format) for format in ("f32", "bf16")}
    texts = hf.Texts(weights["f32"])
    base = {format: hf.load(path) for format, path in weights.items()}
    streams = Table(f"transformers, residual stream over {texts.count} tokens, errors as parts of ‖x‖", STREAM)
    logits = Table("transformers, logits against the hook in f32", LOGITS)
    for case, runs in PLAN:
        start = time.monotonic()
        hooks = {format: Hook(base[format], case, texts) for format in {"f32", *(format for _, format in runs)}}
        for carriers, format in runs:
            output = scratch / "spliced"
            label = f"transformers, {case.name}, {case.layers} layers, {carriers}, {format}"
            try:
                note = splice(case, weights[format], output, carriers)
                one(case, carriers, format, output, note, texts, hooks, base, streams, logits, checks, label)
            except Failed as error:
                checks.check(f"{label}: spliced", False, str(error), known=False)
            finally:
                remove(output)
        print(f"  ({case.name}: {time.monotonic() - start:.0f} s)", flush=True)
    return [streams, logits]


class Hook:
    """The unmodified model with the hook: logits, greedy text (f32), and what the hook read."""

    def __init__(self, model, case: Case, texts: hf.Texts):
        with hf.hooked(model, case) as read:
            self.logits = hf.logits(model, texts.texts)
            self.read = {site: hf.flat(stream, texts.texts) for site, stream in read.items()}
            self.text = hf.greedy(model, texts.prompts) if model.dtype == torch.float32 else None


def one(case, carriers, format, output, note, texts, hooks, base, streams, logits, checks, label):
    model = hf.load(output)
    added = model.config.num_hidden_layers - base[format].config.num_hidden_layers
    if not checks.check(f"{label}: number of layers", added == case.layers * len(case.sites), f"{added} added", known=False):
        return
    stream = hf.Streams(model, case)
    out = hf.logits(model, texts.texts)
    stream.close()
    starts = torch.tensor([i == 0 for text in texts.texts for i in range(len(text))])
    for step, site in enumerate(case.sites, 1):
        before, after = (hf.flat(side[site], texts.texts) for side in (stream.before, stream.after))
        intervention = Intervention(site)
        first = judge(intervention, before[starts], after[starts])
        place = f", {step}" if case.sequence else f", layer {site.layer}"
        where = case.name + (place if len(case.sites) > 1 else "")
        if carriers == "borrowed":
            verdict = judge(intervention, before[~starts], after[~starts])
        else:
            verdict = judge(intervention, before, after)
        streams.add(
            where, case.layers, carriers, format + (f", {note}" if note else ""), verdict.tokens, verdict.changed,
            verdict.near, verdict.mean, verdict.max, verdict.hook_mean, verdict.hook_max, verdict.over, verdict.idle,
            verdict.disturbed, verdict.padding, max(first.max, first.idle_max),
        )  # fmt: skip
        floors(verdict, carriers, format, checks, label + place)
    reference = hooks["f32"].logits
    divergence = hf.kl(reference, out)
    top = hf.agreement(reference, out)
    read = {site: hf.flat(stream.before[site], texts.texts) for site in case.sites}
    sides = hf.same_sides(case, hooks["f32"].read, read)
    crossed, hook_divergence, hook_top = "", "", ""
    if format == "bf16":
        # a token whose bf16 stream lies on the other side of a jump gets another answer, from hook and checkpoint alike
        hook_sides = hf.same_sides(case, hooks["f32"].read, hooks[format].read)
        crossed = f"{int((~sides).sum())} ({int((~hook_sides).sum())})"
        divergence = divergence[sides & hook_sides]
        hook_divergence = hf.kl(reference, hooks[format].logits)[sides & hook_sides].mean().item()
        hook_top = hf.agreement(reference, hooks[format].logits)
        checks.at_most(f"{label}: mean KL against the hook in f32", divergence.mean().item(), 1.5 * hook_divergence)
    same = ""
    if format == "f32":
        generated = hf.greedy(model, texts.prompts)
        equal = sum(a == b for a, b in zip(generated, hooks["f32"].text))
        same = f"{equal}/{len(generated)}"
        if carriers == "padded":
            checks.check(f"{label}: greedy text is the hook's", equal == len(generated), same)
            checks.check(f"{label}: top-1 is the hook's", top == 1.0, f"on {top:.4f} of the tokens")
    logits.add(
        case.name, case.layers, carriers, format, divergence.mean().item(), divergence.max().item(), top,
        hook_divergence, hook_top, crossed, same,
    )  # fmt: skip


def floors(verdict, carriers, format, checks: Checks, label: str):
    if carriers == "borrowed":
        checks.at_most(f"{label}: mean error", max(verdict.mean, verdict.idle_mean), 2e-5)
        checks.at_most(f"{label}: max error", max(verdict.max, verdict.idle_max), 2e-4)
        return
    factor = 1.5 if format == "f32" else 2
    checks.check(f"{label}: enough tokens", verdict.changed >= 20 and verdict.tokens >= 400, f"{verdict}")
    checks.at_most(f"{label}: mean error of changed tokens", verdict.mean, factor * verdict.hook_mean)
    checks.at_most(f"{label}: max error of changed tokens", verdict.max, factor * verdict.hook_max)
    if format == "f32":
        # token by token the order of the sums is luck: one in fifty may be above
        checks.check(f"{label}: changed tokens one by one", verdict.over <= 0.02 * verdict.changed, f"{verdict.over} of {verdict.changed} over")
    checks.check(f"{label}: idle tokens come out bit for bit", verdict.disturbed == 0, f"{verdict.disturbed} of {verdict.idle} do not, by up to {verdict.idle_max:.2e}")
    # exactly 0 but for traces of h = silu(-large), whose squares no norm in float32 can see
    checks.at_most(f"{label}: what is left in padded coordinates", verdict.padding, 1e-20)
