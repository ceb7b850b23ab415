"""vLLM on the CPU: the same checkpoints, run by vllm_worker.py in an environment of its own."""

import json
import subprocess
import time
from pathlib import Path

import torch
from safetensors import safe_open

import hf
from cases import ADD, ADD_WHEN_ACTIVE, CLAMP, GATE, JUMPRELU, RELU, Case
from oracle import Intervention, judge
from run_transformers import STREAM, Hook, floors
from splice import Failed, remove, splice
from table import Checks, Table
from weights import checkpoint

PLAN: list[tuple[Case, list[tuple[str, str]]]] = [
    (RELU, [("padded", "f32"), ("padded", "bf16"), ("borrowed", "f32")]),
    (JUMPRELU, [("padded", "f32"), ("padded", "bf16")]),
    (CLAMP, [("padded", "f32")]),
    (ADD, [("padded", "f32")]),
    (ADD_WHEN_ACTIVE, [("padded", "f32")]),
    (GATE, [("padded", "f32")]),
]
LOGITS = [
    "case", "layers", "carriers", "format", "KL mean", "KL max", "top-1", "hook's KL", "hook's top-1", "crossed",
    "log-probabilities", "greedy",
]  # fmt: skip
DTYPES = {"f32": "float32", "bf16": "bfloat16"}


def run(work: Path, scratch: Path, checks: Checks) -> list[Table]:
    weights = {format: checkpoint(work, format) for format in DTYPES}
    texts = hf.Texts(weights["f32"])
    base = {format: hf.load(path) for format, path in weights.items()}
    streams = Table(f"vLLM, residual stream over {texts.count} tokens, errors as parts of ‖x‖", STREAM)
    logits = Table("vLLM, logits against the hook in transformers in f32", LOGITS)
    given = scratch / "texts.json"
    given.write_text(json.dumps({"texts": texts.texts, "prompts": texts.prompts, "new_tokens": hf.NEW_TOKENS}))
    for case, runs in PLAN:
        hooks = {format: Hook(base[format], case, texts) for format in {"f32", *(format for _, format in runs)}}
        for carriers, format in runs:
            output = scratch / "spliced"
            label = f"vLLM, {case.name}, {case.layers} layers, {carriers}, {format}"
            start = time.monotonic()
            try:
                note = splice(case, weights[format], output, carriers)
                seen = worker(work, scratch, given, output, format, case)
                one(case, carriers, format, output, note, seen, texts, hooks, streams, logits, checks, label)
            except Failed as error:
                checks.check(f"{label}: ran", False, str(error), known=False)
            finally:
                remove(output)
            print(f"  ({case.name}, {carriers}, {format}: {time.monotonic() - start:.0f} s)", flush=True)
    return [streams, logits]


def worker(work: Path, scratch: Path, given: Path, model: Path, format: str, case: Case) -> dict:
    python = work.parent / "venv-vllm/bin/python"
    site = case.sites[0]
    result = scratch / "seen.pt"
    command = [python, Path(__file__).with_name("vllm_worker.py"), model, DTYPES[format], site.layer + 1, site.layer + case.layers]
    run = subprocess.run([*map(str, command), str(given), str(result)], capture_output=True, text=True)
    if run.returncode != 0:
        raise Failed(f"vllm_worker.py: exit code {run.returncode}\n{(run.stdout + run.stderr)[-3000:]}")
    seen = torch.load(result)
    result.unlink()
    return seen


def one(case, carriers, format, output, note, seen, texts, hooks, streams, logits, checks, label):
    site = case.sites[0]
    intervention = Intervention(site)
    before, after = torch.cat(seen["before"]), torch.cat(seen["after"])
    starts = torch.tensor([i == 0 for text in texts.texts for i in range(len(text))])
    first = judge(intervention, before[starts], after[starts])
    rest = ~starts if carriers == "borrowed" else torch.ones_like(starts)
    verdict = judge(intervention, before[rest], after[rest])
    streams.add(
        case.name, case.layers, carriers, format + (f", {note}" if note else ""), verdict.tokens, verdict.changed,
        verdict.near, verdict.mean, verdict.max, verdict.hook_mean, verdict.hook_max, verdict.over, verdict.idle,
        verdict.disturbed, verdict.padding, max(first.max, first.idle_max),
    )  # fmt: skip
    floors(verdict, carriers, format, checks, label)
    with safe_open(output / "model.safetensors", "pt") as file:
        head = file.get_tensor("model.embed_tokens.weight")
    out = [(final @ head.T).float() for final in seen["final"]]
    reference = hooks["f32"].logits
    divergence = hf.kl(reference, out)
    crossed, hook_divergence, hook_top = "", "", ""
    if format == "bf16":
        sides = hf.same_sides(case, hooks["f32"].read, {site: before})
        hook_sides = hf.same_sides(case, hooks["f32"].read, hooks[format].read)
        crossed = f"{int((~sides).sum())} ({int((~hook_sides).sum())})"
        divergence = divergence[sides & hook_sides]
        hook_divergence = hf.kl(reference, hooks[format].logits)[sides & hook_sides].mean().item()
        hook_top = hf.agreement(reference, hooks[format].logits)
        checks.at_most(f"{label}: mean KL against the hook in f32", divergence.mean().item(), 1.5 * hook_divergence)
    # what any user of vLLM sees: the log-probability of every token of the text
    largest = 0.0
    for text, row, reported in zip(texts.texts, reference, seen["reported"]):
        expected = row[:-1].double().log_softmax(-1)[range(len(text) - 1), text[1:]]
        largest = max(largest, (expected - torch.tensor(reported[1:], dtype=torch.float64)).abs().max().item())
    greedy = ""
    top = hf.agreement(reference, out)
    if format == "f32":
        equal = sum(a == b for a, b in zip(seen["greedy"], hooks["f32"].text))
        greedy = f"{equal}/{len(texts.prompts)}"
        if carriers == "padded":
            checks.check(f"{label}: greedy text is the hook's", equal == len(texts.prompts), greedy)
            checks.check(f"{label}: top-1 is the hook's", top == 1.0, f"on {top:.4f} of the tokens")
            checks.at_most(f"{label}: log-probabilities of the texts", largest, 2e-3)
    logits.add(
        case.name, case.layers, carriers, format, divergence.mean().item(), divergence.max().item(), top,
        hook_divergence, hook_top, crossed, largest, greedy,
    )  # fmt: skip
