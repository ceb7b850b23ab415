"""Certified bounds in engines' arithmetic beside what transformers and llama.cpp compute: no token may be beyond its bound."""

import json
import time
from dataclasses import replace
from pathlib import Path

import torch

import hf
from cases import CLAMP, JUMPRELU, RELU
from oracle import Intervention
from run_llama_cpp import spliced_model
from splice import Failed, remove, splice
from table import Checks, Table
from weights import checkpoint, gguf_f32

# The first token of a text, of norm 25,000, is none of these certificates' tokens.
NORM = 250
COLUMNS = [
    "case", "layers", "arithmetic", "tokens", "off the bands", "error", "bound", "bound / error", "quiet", "moved", "bound on that",
]  # fmt: skip


def run(work: Path, scratch: Path, checks: Checks) -> list[Table]:
    table = Table(f"certified in the engine's arithmetic, ‖x‖ ≤ {NORM}: ‖x_out − (x + Δ(x))‖ and, where Δ is 0 all around, ‖x_out − x‖", COLUMNS)
    texts = hf.Texts(checkpoint(work, "f32"))
    for case in (RELU, JUMPRELU, CLAMP):
        for engine in ("transformers-bf16", "transformers-f32", "llama.cpp-f32"):
            start = time.monotonic()
            asked = replace(case, options={**case.options, "host": {"arithmetic": f'"{engine}"'}, "domain": {"norm": NORM}})
            label = f"bounds, {case.name}, {engine}"
            try:
                before, after, certificate = streams(work, scratch, asked, engine, texts)
            except (Failed, RuntimeError) as error:
                checks.check(f"{label}: spliced", False, str(error), known=False)
                continue
            compare(case, engine, before, after, certificate, table, checks, label)
            print(f"  ({label}: {time.monotonic() - start:.0f} s)", flush=True)
    return [table]


def streams(work: Path, scratch: Path, case, engine: str, texts):
    """What the engine's stream is before and after the inserted layers, and the certificate that travels with them."""
    layer = case.sites[0].layer
    if engine.startswith("llama.cpp"):
        output = scratch / "spliced.gguf"
        try:
            splice(case, gguf_f32(work), output, "padded")
            certificate = read(output.with_suffix(".neurograft"))
            model = spliced_model(output, case)
            model.logits(texts.texts)
            before, after = model.stream(layer), model.stream(layer + case.layers)
            model.close()
        finally:
            remove(output)
        return before, after, certificate
    output = scratch / "spliced"
    try:
        splice(case, checkpoint(work, engine.rsplit("-", 1)[1]), output, "padded")
        certificate = read(output)
        model = hf.load(output)
        stream = hf.Streams(model, case)
        hf.logits(model, texts.texts)
        stream.close()
        site = case.sites[0]
        return hf.flat(stream.before[site], texts.texts), hf.flat(stream.after[site], texts.texts), certificate
    finally:
        remove(output)


def read(folder: Path) -> dict:
    (path,) = folder.rglob("certificate.json")
    return json.loads(path.read_text())


def band(certificate: dict, proved: dict) -> float:
    """How far from every jump z is off the bands, whichever it is."""
    stacks = [
        c["certificate"]["delta"] + d["delta_rows"] for c, d in zip(certificate["responses"], proved["responses"]) if c["certificate"]["delta"] > 0
    ]
    return max([0.0, *stacks, *(b for term in proved["terms"] for b in term["bands"])])


def compare(case, engine: str, before, after, certificate: dict, table: Table, checks: Checks, label: str):
    (proved,) = [d for d in certificate["deployed"] if d["arithmetic"] == engine]
    intervention = Intervention(case.sites[0])
    d = intervention.sae.w.shape[1]
    x, y = before[:, :d].double(), after[:, :d].double()
    inside = x.norm(dim=1) <= NORM
    width = band(certificate, proved)
    # In float64 no slack for rounded rows: the certificate's band has it.
    near = intervention.near(x, torch.float64, width)
    off = inside & ~near
    error = (y - intervention.apply(x)).norm(dim=1)
    shift = max([0.0, *(r["delta_rows"] for r in proved["responses"])])
    quiet = off & ~intervention.changed(x) & ~intervention.near(x, torch.float64, max(width, shift))
    moved = (y - x).norm(dim=1)
    worst = error[off].max().item() if off.any() else 0.0
    least = moved[quiet].max().item() if quiet.any() else 0.0
    total = proved["total"]
    allowed = float("inf") if total["quiet"] is None else total["quiet"]
    table.add(
        case.name, case.layers, engine, int(inside.sum()), int(off.sum()), worst, total["outside"], total["outside"] / worst if worst else "",
        int(quiet.sum()), least, allowed,
    )  # fmt: skip
    checks.check(f"{label}: tokens to judge", int(off.sum()) >= 50, f"{int(off.sum())}", known=False)
    checks.at_most(f"{label}: never above its bound", worst, total["outside"])
    checks.at_most(f"{label}: quiet tokens, never above their bound", least, allowed)
