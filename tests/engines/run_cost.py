"""Tokens per second of the unmodified model, with a hook, and spliced: one run, interleaved, same prompts, same batch.

A ratio is the median over the repeats of a pair that ran next to each other. In theory time goes with the weights that
are multiplied: decoding reads all of them once a step, the embedding as the tied head.
"""

import os
import statistics
import time
from pathlib import Path

import gguf
from safetensors import safe_open

import hf
from cases import JUMPRELU, RELU
from llama_cpp import Model
from splice import remove, splice
from table import Checks, Table
from weights import checkpoint, gguf_f32, gguf_q4

REPEATS = int(os.environ.get("REPEATS", "5"))
NEW_TOKENS = 16
TEXTS = 4  # of texts.json, for prefill
VARIANTS = [(RELU, "borrowed"), (RELU, "padded"), (JUMPRELU, "padded")]


def run(work: Path, scratch: Path, checks: Checks) -> list[Table]:
    columns = ["variant", "decode, tokens/s", "time, ratio", "prefill, tokens/s", "time, ratio", "theory"]
    tables = []
    source = checkpoint(work, "f32")
    texts = hf.Texts(source)
    base = hf.load(source)
    outputs = []
    contenders = {"unmodified": (base, None), "hook, ablate (relu)": (base, RELU), "hook, ablate (jumprelu)": (base, JUMPRELU)}
    theory = {name: 1.0 for name in contenders}
    for case, carriers in VARIANTS:
        name = f"spliced, {case.name}, {case.layers} layers, {carriers}"
        outputs.append(scratch / f"spliced-{len(outputs)}")
        splice(case, source, outputs[-1], carriers)
        contenders[name] = (hf.load(outputs[-1]), None)
        theory[name] = multiplied(outputs[-1]) / multiplied(source)
    new = NEW_TOKENS * len(texts.prompts)
    some = texts.texts[:TEXTS]
    count = sum(map(len, some))

    def decode(name):
        model, case = contenders[name]
        return with_hook(model, case, lambda: hf.greedy(model, texts.prompts, NEW_TOKENS))

    def prefill(name):
        model, case = contenders[name]
        return with_hook(model, case, lambda: hf.logits(model, some))

    table = Table(f"transformers, f32, batch of {len(texts.prompts)}, {REPEATS} repeats", columns)
    report(table, contenders, theory, (decode, new), (prefill, count))
    tables.append(table)
    del contenders
    for output in outputs:
        remove(output)

    for title, file in (("F32", gguf_f32(work)), ("Q4_1", gguf_q4(work))):
        models = {"unmodified": Model(file)}
        theory = {"unmodified": 1.0}
        for case, carriers in VARIANTS:
            name = f"spliced, {case.name}, {case.layers} layers, {carriers}"
            output = scratch / "spliced.gguf"
            splice(case, file, output, carriers)
            models[name] = Model(output)
            theory[name] = size(output) / size(file)
            remove(output)
        prompt, new = texts.prompts[0], 2 * NEW_TOKENS
        table = Table(f"llama.cpp, {title} GGUF, one sequence, {REPEATS} repeats", columns)
        report(
            table,
            models,
            theory,
            (lambda name: timed(lambda: models[name].greedy(prompt, new)), new),
            (lambda name: timed(lambda: models[name].logits(some)), count),
        )
        for model in models.values():
            model.close()
        tables.append(table)
    checks.check("cost: measured", True)
    return tables


def report(table: Table, contenders, theory, decode, prefill):
    """Every contender after every other, again and again; the first round warms up."""
    seconds = {name: ([], []) for name in contenders}
    for repeat in range(REPEATS + 1):
        for name in contenders:
            times = decode[0](name), prefill[0](name)
            if repeat > 0:
                for kept, one in zip(seconds[name], times):
                    kept.append(one)
    for name in contenders:
        cells = []
        for kind, (_, tokens) in enumerate((decode, prefill)):
            own, unmodified = seconds[name][kind], seconds["unmodified"][kind]
            cells += [tokens / statistics.median(own), statistics.median(a / b for a, b in zip(own, unmodified))]
        table.add(name, *cells, theory[name])


def with_hook(model, case, work) -> float:
    if case is None:
        return timed(work)
    with hf.hooked(model, case):
        return timed(work)


def timed(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def multiplied(path: Path) -> int:
    """Elements of all matrices of a checkpoint with tied embeddings."""
    with safe_open(path / "model.safetensors", "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]
    return sum(shape[0] * shape[1] for shape in shapes if len(shape) == 2)


def size(path: Path) -> int:
    """Bytes of all tensors of a GGUF."""
    return sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors)
