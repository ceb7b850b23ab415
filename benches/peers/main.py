"""Runs every contender on every problem, one after the other, and prints two tables."""

import importlib.metadata
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch

import fits
from problems import DOMAIN, MAX_WEIGHT, PROBLEMS, supremum
from proofs import PROVERS


def fit_table(results) -> list[str]:
    out = ["| target, source, neurons | Neurograft: certified error | seconds, proof included | PyTorch: error seen | seconds | "
           "its error, certified by Neurograft |", "|---|---|---|---|---|---|"]
    for r in results:
        out.append(f"| {r['problem']} | {r['ours']:.4e} | {r['our_seconds']:.2f} | {r['theirs']:.4e} | {r['their_seconds']:.1f} "
                   f"| {r['their_proof']:.4e} |")
    return out


def proof_table(results) -> list[str]:
    # Who proves nothing at all gets a line below.
    shown = [name for name in PROVERS if any(not isinstance(r["proofs"][name], str) for r in results)]
    out = ["| target, source, neurons | " + " | ".join(shown) + " |", "|---|" + "---|" * len(shown)]
    for r in results:
        cells = []
        for bound in (r["proofs"][name] for name in shown):
            if isinstance(bound, str):
                cells.append(bound)
            else:
                cells.append(f"{bound[0] / r['seen']:.6f}, {bound[1]:.3g} s")
        out.append(f"| {r['problem']} | " + " | ".join(cells) + " |")
    for name in PROVERS:
        if name not in shown:
            out += ["", f"{name}: {results[0]['proofs'][name]}."]
    return out


def main():
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    results = []
    for problem in PROBLEMS:
        stack, seconds, line = fits.neurograft(problem)
        peer, peer_seconds = fits.pytorch(problem)
        seen = supremum(problem, stack)
        proofs = {name: prove(problem, stack, line, seen) for name, prove in PROVERS.items()}
        result = {
            "problem": problem,
            "ours": proofs["Neurograft"][0],
            "our_seconds": seconds,
            "theirs": supremum(problem, peer),
            "their_seconds": peer_seconds,
            "their_proof": PROVERS["Neurograft"](problem, peer, fits.line(problem, peer), seen)[0],
            "seen": seen,
            "proofs": proofs,
        }
        # What no bound may be: below an error that is attained (f64 evaluates to about 1e-15 of what is summed up).
        for name, bound in proofs.items():
            if not isinstance(bound, str) and not bound[0] >= seen * (1 - 1e-6) - 1e-13:
                print(f"{problem}: {name} claims {bound[0]}, {seen} was seen", file=sys.stderr)
        results.append(result)
        print(*fit_table([result])[2:], *proof_table([result])[2:], sep="\n", flush=True)
    try:
        lirpa = f"auto_LiRPA {importlib.metadata.version('auto_LiRPA')}"
    except importlib.metadata.PackageNotFoundError:
        lirpa = "no auto_LiRPA"
    versions = f"torch {torch.__version__}, NumPy {np.__version__}, {lirpa}"
    machine = f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {platform.machine()}, {versions}"
    page = [
        "# Against what people would use instead",
        "",
        f"Written by `benches/peers/run docs/peers.md` ({machine}): all contenders in one run on one machine; seconds are processor seconds.",
        "",
        f"Plain stacks on [{DOMAIN[0]:g}, {DOMAIN[1]:g}] with an output constant and inner weights at most {MAX_WEIGHT:g}.",
        "",
        "## Fits at equal numbers of neurons",
        "",
        f"`neurograft fit`, certified, against PyTorch in f64: {fits.RESTARTS} random starts, Adam on the mean square ({fits.ADAM_STEPS} steps), then "
        f"L-BFGS on p-norms with p = {', '.join(map(str, fits.EXPONENTS))}; the best of them, its error as seen on a dense grid.",
        "",
        *fit_table(results),
        "",
        "## Proofs",
        "",
        "Bounds on the error of Neurograft's stacks, as multiples of the largest error seen on a dense grid (which may be short of the supremum by 1e-7), and the time they "
        "take. Interval subdivision (mean value forms on a uniform grid) and CROWN stop where they are within 1.001, after a minute, or at some millions of boxes; neither rounds outward. "
        "auto_LiRPA's relaxation of GELU does not narrow with the box at an inflection, so that its bounds do not close in where GELU occurs (the column shows it).",
        "",
        *proof_table(results),
        "",
    ]
    text = "\n".join(page)
    print(text)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text)


if __name__ == "__main__":
    main()
