"""Bounds on the error of one stack: Neurograft's certifier, interval subdivision, auto_LiRPA, Sollya.

Each returns (bound, seconds), or a reason in words. Of these only Neurograft and Sollya round outward.
"""

import os
import re
import shutil
import subprocess

import numpy as np

from problems import DOMAIN, Problem, Stack, Watch, add, enclosure, error, scale, sollya

LIMIT = 60  # seconds for each proof
TIGHT = 1.001


def neurograft(problem: Problem, s: Stack, line: str, seen: float):
    command = [os.environ["CERTIFY_LINES"]]
    out = subprocess.run(command, input=line, check=True, capture_output=True, text=True).stdout.split()
    return float(out[0]), float(out[1])


def subdivision(problem: Problem, s: Stack, line: str, seen: float):
    """Mean value forms on a uniform grid, doubled until the bound is tight."""
    start = Watch.now()
    boxes, bound = 1 << 10, np.inf
    while bound > TIGHT * seen and boxes <= 1 << 22 and Watch.now() - start < LIMIT:
        boxes *= 4
        ends = np.linspace(*DOMAIN, boxes + 1)
        z = ends[:-1], ends[1:]
        centre = 0.5 * (z[0] + z[1])
        slope = scale(-1.0, enclosure(problem.target, z)[1])
        for w, b, a in zip(s.weight, s.bias, s.out, strict=True):
            u = add(scale(w, z), (b, b))
            slope = add(slope, scale(a * w, enclosure(problem.source, u)[1]))
        radius = 0.5 * (z[1] - z[0])
        bound = float((np.abs(error(problem, s, centre)) + radius * np.maximum(np.abs(slope[0]), np.abs(slope[1]))).max())
    return bound, Watch.now() - start


def auto_lirpa(problem: Problem, s: Stack, line: str, seen: float):
    """CROWN on a uniform split."""
    try:
        import torch
        from auto_LiRPA import BoundedModule, BoundedTensor
        from auto_LiRPA.perturbations import PerturbationLpNorm
    except Exception as reason:  # whatever its import trips over
        return f"does not import: {reason}"

    class Gelu(torch.autograd.Function):
        """As auto_LiRPA knows it: its graph has no erf."""

        @staticmethod
        def symbolic(graph, u):
            return graph.op("custom::Gelu", u)

        @staticmethod
        def forward(ctx, u):
            return torch.nn.functional.gelu(u)

    # Of softplus as one operation it has no relaxation.
    forms = {"silu": lambda u: u * torch.sigmoid(u), "gelu": Gelu.apply, "softplus": lambda u: torch.log(1 + torch.exp(u))}
    forms |= {"tanh": torch.tanh, "sigmoid": torch.sigmoid}

    class Difference(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = torch.nn.Linear(1, len(s.weight)), torch.nn.Linear(len(s.weight), 1)
            self.inner.weight.data = torch.tensor(s.weight, dtype=torch.float64)[:, None]
            self.inner.bias.data = torch.tensor(s.bias, dtype=torch.float64)
            self.outer.weight.data = torch.tensor(s.out, dtype=torch.float64)[None, :]
            self.outer.bias.data = torch.tensor([s.constant], dtype=torch.float64)

        def forward(self, x):
            return self.outer(forms[problem.source](self.inner(x))) - forms[problem.target](x)

    start = Watch.now()
    boxes, bound = 1 << 10, np.inf
    try:
        while bound > TIGHT * seen and boxes <= 1 << 18 and Watch.now() - start < LIMIT:
            boxes *= 4
            ends = torch.linspace(*DOMAIN, boxes + 1, dtype=torch.float64)[:, None]
            low, high = ends[:-1], ends[1:]
            centre = 0.5 * (low + high)
            model = BoundedModule(Difference(), centre)
            ball = PerturbationLpNorm(norm=np.inf, x_L=low, x_U=high)
            below, above = model.compute_bounds(x=(BoundedTensor(centre, ball),), method="CROWN")
            bound = float(torch.maximum(-below, above).detach().max())
    except Exception as reason:
        return f"fails: {type(reason).__name__}: {reason}"
    return bound, Watch.now() - start


def by_sollya(call: str):
    def run(problem: Problem, s: Stack, line: str, seen: float):
        if not shutil.which("sollya"):
            return "not installed"
        lo, hi = DOMAIN
        program = f"prec = 165!; display = decimal!; f = {sollya(problem, s)}; print({call.format(range=f'[{lo};{hi}]')});\n"
        with Watch() as watch:
            # By the wall, and the machine may have other things to do.
            try:
                done = subprocess.run(["sollya", "--warnonstderr"], input=program, capture_output=True, text=True, timeout=3 * LIMIT)
            except subprocess.TimeoutExpired:
                return f"more than {LIMIT} s"
        numbers = [float(x) for x in re.findall(r"[0-9.]+(?:e[+-]?[0-9]+)?", done.stdout) if x.strip(".")]
        return (max(numbers), watch.seconds) if numbers else "refuses"

    return run


PROVERS = {
    "Neurograft": neurograft,
    "interval subdivision (NumPy)": subdivision,
    "auto_LiRPA, CROWN": auto_lirpa,
    "Sollya supnorm": by_sollya("sup(supnorm(0, f, {range}, absolute, 1b-10))"),
    "Sollya infnorm": by_sollya("sup(infnorm(f, {range}))"),
}
