"""The intervention by its definition, and the judgement of an engine's residuals against it.

Shares nothing with Neurograft but the SAE's file: z = x W_enc + b_enc, thresholds strict, all terms read the same x.
In float64 this is the judge, in float32 it is the forward hook.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from cases import SAE, Site, Term

# How far from a threshold the checkpoint may lie between the two sides: the specification's default band, and room for the
# rounding of z.
TRANSITION = 0.01 + 1e-3
# The part of ||x|| that a forward hook in float32 may lose at any token.
HOOK_F32 = 1.3e-7
# In float32 a pre-activation depends on the order of its sum, and so does what a hook loses: up to twice as much when it is
# one column of a wide matrix product as when it is a product of two vectors. What follows are three ways to write a hook.
WAYS = ("vectors", "matmul", "linear")
WIDE = 1024  # features of an SAE of usual size: decides which kernel a matrix product takes
EPS = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9}


class Sae:
    def __init__(self, directory: Path):
        config = json.loads((directory / "cfg.json").read_text())
        assert config["architecture"] == "jumprelu", config
        tensors = load_file(directory / "sae_weights.safetensors")
        self.w = tensors["W_enc"].T.contiguous()  # [features, d]
        self.b = tensors["b_enc"]
        self.d = tensors["W_dec"]
        self.threshold = tensors["threshold"]


@cache
def sae(directory: Path = SAE) -> Sae:
    return Sae(directory)


class Intervention:
    """What a hook does at one site."""

    def __init__(self, site: Site, source: Sae | None = None):
        self.terms = site.terms
        self.layer = site.layer
        self.sae = source or sae()

    def _row(self, feature: int, dtype):
        return self.sae.w[feature].to(dtype), self.sae.b[feature].to(dtype), self.sae.threshold[feature].to(dtype)

    def _z(self, x, feature: int, way: str = "vectors"):
        w, b, _ = self._row(feature, x.dtype)
        if way == "vectors":
            return x @ w + b
        copies = -(-WIDE // len(self.sae.w))
        rows, biases = self.sae.w.to(x.dtype).repeat(copies, 1), self.sae.b.to(x.dtype).repeat(copies)
        if way == "matmul":
            return (x @ rows.T)[..., feature] + b
        return torch.nn.functional.linear(x, rows, biases)[..., feature]

    def _response(self, x, term: Term, way: str = "vectors"):
        z = self._z(x, term.feature, way)
        zero = torch.zeros_like(z)
        threshold = self._row(term.feature, x.dtype)[2]
        if term.activation == "relu":
            threshold = torch.zeros_like(threshold)
        on = z > threshold
        a = torch.where(on, z, zero)
        v = term.value
        response = {
            "ablate": lambda: -a,
            "clamp_when_active": lambda: torch.where(on, v - z, zero),
            "cap": lambda: -torch.relu(a - v),
            "add": lambda: torch.full_like(z, v),
            "add_when_active": lambda: torch.where(on, torch.full_like(z, v), zero),
        }[term.action]()
        if term.gate is not None:
            gate = self._z(x, term.gate, way) > self._row(term.gate, x.dtype)[2]
            response = torch.where(gate, response, zero)
        return response

    def apply(self, x, way: str = "vectors"):
        """x + delta in x's own precision; 16-bit streams are computed in float32 and rounded once."""
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        responses = torch.stack([self._response(wide, term, way) for term in self.terms], dim=-1)
        rows = torch.stack([self.sae.d[term.feature].to(wide.dtype) for term in self.terms])
        return (wide + responses @ rows).to(x.dtype)

    def changed(self, x):
        """Tokens where some response is not 0; x in float64."""
        return torch.stack([self._response(x, term) != 0 for term in self.terms]).any(dim=0)

    def sides(self, x):
        """On which side of every jump each token lies, [..., jumps]."""
        x = x.double()
        sides = [self._z(x, f) > position for term in self.terms for f, position, jumps in self._knots(term) if jumps]
        return torch.stack(sides, dim=-1) if sides else torch.zeros(*x.shape[:-1], 0, dtype=torch.bool)

    def _knots(self, term: Term):
        """(feature, position, does the response jump there?)"""
        knots = []
        if term.action == "cap":
            knots.append((term.feature, term.value, False))
        if term.action != "add":
            relu = term.activation == "relu"
            position = 0.0 if relu else float(self.sae.threshold[term.feature].double())
            knots.append((term.feature, position, not relu or term.action.endswith("when_active") or term.gate is not None))
        if term.gate is not None:
            knots.append((term.gate, float(self.sae.threshold[term.gate].double()), True))
        return knots

    def near(self, x, weights: torch.dtype, band: float | None = None):
        """Tokens with a pre-activation in the transition of one of its knots; x in float64.

        In 16-bit checkpoints the rows are rounded too; that moves z by about sum w_i x_i r_i with |r_i| <= 2^-9, here
        taken at five standard deviations.
        """
        band = TRANSITION if band is None else band
        near = torch.zeros(x.shape[:-1], dtype=torch.bool)
        for term in self.terms:
            for feature, position, _ in self._knots(term):
                w, b, _ = self._row(feature, x.dtype)
                slack = 2 * EPS[torch.bfloat16] * ((x * w) ** 2).sum(-1).sqrt() if weights == torch.bfloat16 else 0.0
                z = x @ w + b
                near |= (z - position).abs() <= band + slack
        return near


@dataclass
class Verdict:
    """One site of one run: every figure is a part of ||x||, token by token."""

    tokens: int
    changed: int
    near: int
    mean: float
    max: float
    hook_mean: float
    hook_max: float
    over: int  # changed tokens with an error above 1.5 times what a hook may lose there
    idle: int  # tokens that must come out bit for bit
    disturbed: int  # of those, how many did not
    idle_mean: float
    idle_max: float
    padding: float  # the largest |value| in a padded coordinate before and after the insertion


def judge(intervention: Intervention, before, after, band: float | None = None) -> Verdict:
    """`before` and `after`: the stream as captured in the engine, [tokens, hidden size of the spliced model]."""
    d = intervention.sae.w.shape[1]
    dtype = before.dtype
    padding = max((t[:, d:].abs().max().item() if t.shape[1] > d else 0.0) for t in (before, after))
    before, after = before[:, :d], after[:, :d]
    x, y = before.double(), after.double()
    exact = intervention.apply(x)
    norm = x.norm(dim=1)
    if dtype == torch.float32:
        losses = [(intervention.apply(before, way).double() - exact).norm(dim=1) for way in WAYS]
        hook = torch.stack(losses).amax(dim=0)
        allowed = 1.5 * torch.maximum(hook, HOOK_F32 * norm)
    else:
        hook = (exact.to(dtype).double() - exact).norm(dim=1)
        allowed = 2 * hook.max().expand_as(hook)
    error = (y - exact).norm(dim=1)
    near = intervention.near(x, dtype, band)
    changed = intervention.changed(x)
    judged = changed & ~near
    idle = ~changed & ~near
    relative, relative_hook = error / norm, hook / norm

    def mean(values, mask):
        return values[mask].mean().item() if mask.any() else 0.0

    def largest(values, mask):
        return values[mask].max().item() if mask.any() else 0.0

    if not torch.isfinite(after).all():
        relative = torch.full_like(relative, float("inf"))
        error = torch.full_like(error, float("inf"))
    return Verdict(
        tokens=len(x),
        changed=int(judged.sum()),
        near=int(near.sum()),
        mean=mean(relative, judged),
        max=largest(relative, judged),
        hook_mean=mean(relative_hook, judged),
        hook_max=largest(relative_hook, judged),
        over=int((error > allowed)[judged].sum()),
        idle=int(idle.sum()),
        disturbed=int((before != after).any(dim=1)[idle].sum()),
        idle_mean=mean(relative, idle),
        idle_max=largest(relative, idle),
        padding=padding,
    )
