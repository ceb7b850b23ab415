"""The problems, and activations as each contender needs them: for torch, for NumPy, for intervals, for Sollya."""

import math
import resource
import time
from dataclasses import dataclass

import numpy as np
import torch

DOMAIN = (-8.0, 8.0)
MAX_WEIGHT = 16.0


class Watch:
    """Processor seconds of this process and of those that it started: what else the machine does counts less."""

    def __enter__(self):
        self.start = self.now()
        return self

    def __exit__(self, *_):
        self.seconds = self.now() - self.start

    @staticmethod
    def now() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime


@dataclass(frozen=True)
class Problem:
    target: str
    source: str
    neurons: int

    def __str__(self):
        return f"{self.target} from {self.source}, {self.neurons}"


PROBLEMS = [
    Problem("gelu", "silu", 1),
    Problem("gelu", "silu", 2),
    Problem("gelu", "silu", 4),
    Problem("silu", "gelu", 2),
    Problem("silu", "gelu", 4),
    Problem("tanh", "silu", 2),
    Problem("tanh", "silu", 4),
    Problem("sigmoid", "gelu", 2),
    Problem("sigmoid", "gelu", 4),
    Problem("softplus", "silu", 4),
]


@dataclass
class Stack:
    """constant + Σ out·σ(weight·z + bias)"""

    constant: float
    weight: np.ndarray
    bias: np.ndarray
    out: np.ndarray


TORCH = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": torch.nn.functional.softplus,
}


def value(name: str, z: np.ndarray) -> np.ndarray:
    return TORCH[name](torch.from_numpy(z)).numpy()


def error(problem: Problem, s: Stack, z: np.ndarray) -> np.ndarray:
    sums = sum(a * value(problem.source, w * z + b) for w, b, a in zip(s.weight, s.bias, s.out, strict=True))
    return s.constant + sums - value(problem.target, z)


def supremum(problem: Problem, s: Stack) -> float:
    """The largest error seen: a dense grid, then two finer ones around each of its local maxima."""
    z = np.linspace(*DOMAIN, 200_001)
    e = np.abs(error(problem, s, z))
    best = e.max()
    inner = np.flatnonzero((e[1:-1] >= e[:-2]) & (e[1:-1] >= e[2:]) & (e[1:-1] > 0.9 * best)) + 1
    step = z[1] - z[0]
    for k in inner:
        fine = np.linspace(z[k] - step, z[k] + step, 401).clip(*DOMAIN)
        best = max(best, np.abs(error(problem, s, fine)).max())
    return float(best)


# Intervals as pairs of arrays, rounded to nearest: nothing here is directed, as in most code of this kind.


def add(a, b):
    return a[0] + b[0], a[1] + b[1]


def scale(k, a):
    return (k * a[0], k * a[1]) if k >= 0 else (k * a[1], k * a[0])


def times(a, b):
    products = [x * y for x in a for y in b]
    return np.minimum.reduce(products), np.maximum.reduce(products)


def rising(f, u):
    return f(u[0]), f(u[1])


def bell(u):
    """The standard normal density."""
    phi = lambda x: np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    ends = phi(u[0]), phi(u[1])
    top = np.where((u[0] <= 0) & (u[1] >= 0), phi(0.0), np.maximum(*ends))
    return np.minimum(*ends), top


def cdf(x):
    return 0.5 * torch.erfc(torch.from_numpy(-x / math.sqrt(2))).numpy()


def enclosure(name: str, u):
    """σ and σ′ over u by natural extension."""
    sigmoid = rising(lambda x: value("sigmoid", x), u)
    complement = 1 - sigmoid[1], 1 - sigmoid[0]
    slope = times(sigmoid, complement)
    if name == "sigmoid":
        return sigmoid, slope
    if name == "silu":
        return times(u, sigmoid), add(sigmoid, times(u, slope))
    if name == "softplus":
        return rising(lambda x: value("softplus", x), u), sigmoid
    if name == "tanh":
        tanh = rising(np.tanh, u)
        squares = times(tanh, tanh)
        return tanh, (1 - squares[1], np.minimum(1 - squares[0], 1.0))
    phi = rising(cdf, u)
    return times(u, phi), add(phi, times(u, bell(u)))


SOLLYA = {
    "silu": "(({u}) / (1 + exp(-({u}))))",
    "gelu": "(({u}) * erfc(-({u}) / sqrt(2)) / 2)",
    "tanh": "tanh({u})",
    "sigmoid": "(1 / (1 + exp(-({u}))))",
    "softplus": "log(1 + exp({u}))",
}


def sollya(problem: Problem, s: Stack) -> str:
    terms = [f"({a!r}) * " + SOLLYA[problem.source].format(u=f"({w!r}) * x + ({b!r})")
             for w, b, a in zip(s.weight.tolist(), s.bias.tolist(), s.out.tolist(), strict=True)]
    return " + ".join([f"({s.constant!r})", *terms]) + " - " + SOLLYA[problem.target].format(u="x")
