"""llama.cpp on the CPU: GGUF to GGUF. Exactness on an F32 file, noise on the quantised one."""

import time
from pathlib import Path

import torch

import hf
from cases import ADD, GATE, JUMPRELU, NO_OP, RELU, Case
from llama_cpp import Model
from oracle import Intervention, judge
from run_transformers import STREAM, floors
from splice import Failed, remove, splice
from table import Checks, Table
from weights import checkpoint, gguf_f32, gguf_q4

EXACT: list[tuple[Case, list[str]]] = [
    (RELU, ["padded", "borrowed"]),
    (JUMPRELU, ["padded"]),
    (ADD, ["padded"]),
    (GATE, ["padded"]),
]
QUANTISED: list[tuple[Case, list[str]]] = [
    (NO_OP, ["padded", "borrowed"]),
    (RELU, ["padded", "borrowed"]),
    (JUMPRELU, ["padded"]),
]
GREEDY = 3  # prompts that llama.cpp continues one token at a time


def run(work: Path, scratch: Path, checks: Checks) -> list[Table]:
    source = checkpoint(work, "f32")
    texts = hf.Texts(source)
    return [*exact(work, scratch, source, texts, checks), quantised(work, scratch, texts, checks)]


def spliced_model(path: Path, case: Case) -> Model:
    model = Model(path)
    model.capture(case.sites[0].layer, case.sites[0].layer + case.layers)
    return model


def hooked_logits(model: Model, case: Case, texts: hf.Texts):
    """The unmodified file with the hook, inside llama.cpp."""
    model.hook({site.layer: Intervention(site).apply for site in case.sites})
    out = model.logits(texts.texts)
    model.hook({})
    return out


def exact(work: Path, scratch: Path, source: Path, texts: hf.Texts, checks: Checks) -> list[Table]:
    file = gguf_f32(work)
    transformers, base = hf.load(source), Model(file)
    streams = Table(f"llama.cpp, F32 GGUF, residual stream over {texts.count} tokens, errors as parts of ‖x‖", STREAM)
    logits = Table(
        "llama.cpp, F32 GGUF, logits against the hook",
        ["case", "layers", "carriers", "KL mean, hook in transformers", "max", "top-1", "KL mean, hook in llama.cpp", "max", "greedy"],
    )
    for case, carriers_list in EXACT:
        start = time.monotonic()
        with hf.hooked(transformers, case):
            reference = hf.logits(transformers, texts.texts)
            text = hf.greedy(transformers, texts.prompts[:GREEDY])
        inside = hooked_logits(base, case, texts)
        for carriers in carriers_list:
            label = f"llama.cpp, F32, {case.name}, {case.layers} layers, {carriers}"
            output = scratch / "spliced.gguf"
            try:
                note = splice(case, file, output, carriers)
                model = spliced_model(output, case)
            except (Failed, RuntimeError) as error:
                checks.check(f"{label}: spliced", False, str(error), known=False)
                continue
            finally:
                # the loaded file stays mapped
                remove(output)
            checks.check(f"{label}: number of layers", model.layers == base.layers + case.layers, f"{model.layers}", known=False)
            out = model.logits(texts.texts)
            layer = case.sites[0].layer
            before, after = model.stream(layer), model.stream(layer + case.layers)
            starts = torch.tensor([i == 0 for text in texts.texts for i in range(len(text))])
            intervention = Intervention(case.sites[0])
            first = judge(intervention, before[starts], after[starts])
            rest = ~starts if carriers == "borrowed" else torch.ones_like(starts)
            verdict = judge(intervention, before[rest], after[rest])
            streams.add(
                case.name, case.layers, carriers, "F32" + (f", {note}" if note else ""), verdict.tokens, verdict.changed,
                verdict.near, verdict.mean, verdict.max, verdict.hook_mean, verdict.hook_max, verdict.over, verdict.idle,
                verdict.disturbed, verdict.padding, max(first.max, first.idle_max),
            )  # fmt: skip
            floors(verdict, carriers, "f32", checks, label)
            outer, inner = hf.kl(reference, out), hf.kl(inside, out)
            top = hf.agreement(reference, out)
            generated = [model.greedy(prompt, hf.NEW_TOKENS) for prompt in texts.prompts[:GREEDY]]
            equal = sum(a == b for a, b in zip(generated, text))
            model.close()
            logits.add(
                case.name, case.layers, carriers, outer.mean().item(), outer.max().item(), top, inner.mean().item(),
                inner.max().item(), f"{equal}/{GREEDY}",
            )  # fmt: skip
            if carriers == "padded":
                checks.check(f"{label}: top-1 is the hook's", top == 1.0, f"on {top:.4f} of the tokens")
                checks.check(f"{label}: greedy text is the hook's", equal == GREEDY, f"{equal}/{GREEDY}")
                checks.at_most(f"{label}: mean KL against the hook in transformers", outer.mean().item(), 1e-5)
        print(f"  ({case.name}: {time.monotonic() - start:.0f} s)", flush=True)
    base.close()
    return [streams, logits]


def quantised(work: Path, scratch: Path, texts: hf.Texts, checks: Checks) -> Table:
    file = gguf_q4(work)
    base = Model(file)
    table = Table(
        "llama.cpp, Q4_1 GGUF: KL against the unspliced file with the hook inside llama.cpp (for the no-op: without)",
        ["case", "layers", "carriers", "KL mean", "KL max", "no-op's mean", "no-op's max", "top-1", "greedy drift"],
    )
    noise = {}
    for case, carriers_list in QUANTISED:
        reference = hooked_logits(base, case, texts)
        text = [base.greedy(prompt, hf.NEW_TOKENS) for prompt in texts.prompts[:GREEDY]] if case is NO_OP else None
        for carriers in carriers_list:
            label = f"llama.cpp, Q4_1, {case.name}, {case.layers} layers, {carriers}"
            output = scratch / "spliced.gguf"
            try:
                splice(case, file, output, carriers)
                model = spliced_model(output, case)
            except (Failed, RuntimeError) as error:
                checks.check(f"{label}: spliced", False, str(error), known=False)
                continue
            finally:
                remove(output)
            out = model.logits(texts.texts)
            drift = ""
            if text:
                generated = [model.greedy(prompt, hf.NEW_TOKENS) for prompt in texts.prompts[:GREEDY]]
                drift = f"{sum(a != b for a, b in zip(generated, text))}/{GREEDY}"
            model.close()
            divergence = hf.kl(reference, out)
            if case is NO_OP:
                noise[carriers] = divergence
            floor = noise.get(carriers, torch.full((1,), float("nan")))
            table.add(
                case.name, case.layers, carriers, divergence.mean().item(), divergence.max().item(), floor.mean().item(),
                floor.max().item(), hf.agreement(reference, out), drift,
            )  # fmt: skip
            if case is not NO_OP:
                # two samples of the same noise
                checks.at_most(f"{label}: mean KL", divergence.mean().item(), 1.25 * floor.mean().item())
    base.close()
    return table
