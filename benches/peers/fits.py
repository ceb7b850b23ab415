"""Fits: Neurograft's, and what one would write with PyTorch: Adam, then L-BFGS, from ten random starts."""

import json
import math
import os
import subprocess

import numpy as np
import torch

from problems import DOMAIN, MAX_WEIGHT, TORCH, Problem, Stack, Watch, supremum

RESTARTS = 10
POINTS = 1001
ADAM_STEPS = 2000
# Of the norm that stands in for the supremum, one after the other.
EXPONENTS = [2, 8, 32, 128]
LBFGS_STEPS = 200


def neurograft(problem: Problem) -> tuple[Stack, float, str]:
    """The stack, seconds of the whole command (the proof included), and its line of JSON."""
    command = [os.environ["NEUROGRAFT"], "fit", "--json", f"--target={problem.target}", f"--source={problem.source}"]
    command += ["--neurons", str(problem.neurons), "--max-weight", str(MAX_WEIGHT), "--domain", *map(str, DOMAIN)]
    with Watch() as watch:
        line = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    fit = json.loads(line)
    columns = [np.array([n[key] for n in fit["neurons"]]) for key in ("weight", "bias", "out")]
    return Stack(fit["constant"], *columns), watch.seconds, line


def line(problem: Problem, s: Stack) -> str:
    """A stack as certify_lines reads it."""
    keys = ("weight", "bias", "out")
    neurons = [dict(zip(keys, n, strict=True)) for n in zip(s.weight.tolist(), s.bias.tolist(), s.out.tolist(), strict=True)]
    fit = {"target": problem.target, "source": problem.source, "domain": DOMAIN, "constant": s.constant, "neurons": neurons}
    return json.dumps(fit) + "\n"


def pytorch(problem: Problem) -> tuple[Stack, float]:
    """The best of ten restarts, and the seconds of all."""
    start = Watch.now()
    torch.manual_seed(1)
    source, n = TORCH[problem.source], problem.neurons
    z = torch.linspace(*DOMAIN, POINTS, dtype=torch.float64)
    y = TORCH[problem.target](z)
    # Weights within their limit, knees over the domain.
    weight = torch.randn(RESTARTS, n, dtype=torch.float64)
    knee = (torch.rand(RESTARTS, n, dtype=torch.float64) - 0.5) * 8
    parameters = [weight, -weight * knee, torch.randn(RESTARTS, n, dtype=torch.float64) / math.sqrt(n)]
    parameters.append(torch.zeros(RESTARTS, dtype=torch.float64))

    def errors(p):
        w = p[0].clamp(-MAX_WEIGHT, MAX_WEIGHT)
        return (source(w[..., None] * z + p[1][..., None]) * p[2][..., None]).sum(-2) + p[3][..., None] - y

    # All restarts at once: their losses add up, their gradients do not meet.
    parameters = [p.requires_grad_() for p in parameters]
    adam = torch.optim.Adam(parameters, lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, ADAM_STEPS)
    for _ in range(ADAM_STEPS):
        adam.zero_grad()
        errors(parameters).square().mean(-1).sum().backward()
        adam.step()
        schedule.step()
    best, least = None, math.inf
    for k in range(RESTARTS):
        own = [p[k].detach().clone().requires_grad_() for p in parameters]
        for exponent in EXPONENTS:
            lbfgs = torch.optim.LBFGS(own, max_iter=LBFGS_STEPS, line_search_fn="strong_wolfe", history_size=20,
                                      tolerance_grad=1e-12, tolerance_change=1e-14)

            def closure(own=own, exponent=exponent, lbfgs=lbfgs):
                lbfgs.zero_grad()
                e = errors(own).abs()
                # The p-norm, scaled so that powers stay in range; its logarithm has slopes of size 1.
                top = e.detach().max().clamp_min(1e-300)
                loss = torch.log(top) + torch.log((e / top).pow(exponent).mean()) / exponent
                loss.backward()
                return loss

            lbfgs.step(closure)
        if not all(p.isfinite().all() for p in own):
            continue
        w, b, a, c = (p.detach().numpy() for p in own)
        stack = Stack(float(c), w.clip(-MAX_WEIGHT, MAX_WEIGHT), b, a)
        seen = supremum(problem, stack)
        if seen < least:
            best, least = stack, seen
    return best, Watch.now() - start
