#!/usr/bin/env python3
"""Checks what `neurograft compile` or `neurograft fit --json` wrote, by sampling in 50 digits.

    python3 docs/check.py DIR        a directory with certificate.json and block.safetensors
    python3 docs/check.py -          lines of `fit --json` on standard input

Written from docs/certificate.md alone; shares no code with the compiler. It can refute a certificate, not prove it.
Exit code: 0 nothing found, 1 a claim is violated, 2 the input cannot be read.
"""

import base64
import hashlib
import json
import math
import os
import random
import re
import struct
import sys
from fractions import Fraction

try:
    from mpmath import mp, mpf
except ImportError:
    sys.exit("mpmath is needed: pip install mpmath")

mp.dps = 50
SLACK = mpf(10) ** -40  # relative, for the 50 digits themselves
RANDOM_POINTS = 300
RESIDUALS = 3


class Bad(Exception):
    """The files do not say what docs/certificate.md says that they say."""


def real(x):
    """A Fraction or a float as an mpf."""
    return mpf(x.numerator) / x.denominator if isinstance(x, Fraction) else mpf(x)


def add(a, b):
    return a + b if isinstance(a, Fraction) and isinstance(b, Fraction) else real(a) + real(b)


def mul(a, b):
    return a * b if isinstance(a, Fraction) and isinstance(b, Fraction) else real(a) * real(b)


# ---- exact numbers and activations -------------------------------------------------------------------------------

DECIMAL = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


def exact(text):
    parts = text.strip().split("/")
    if len(parts) > 2 or not all(re.fullmatch(r"[+-]?" + DECIMAL, p.strip()) for p in parts):
        raise Bad(f"not an exact number: {text!r}")
    p, q = Fraction(parts[0].strip()), Fraction(parts[1].strip()) if len(parts) == 2 else Fraction(1)
    return p / q


ALIASES = {
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_python": "gelu",
    "gelu_erf": "gelu", "gelu_none": "gelu", "relu_squared": "relu2", "relu_2": "relu2", "hard_swish": "hardswish",
    "hard_sigmoid": "hardsigmoid", "hard_tanh": "hardtanh", "linear": "identity", "leakyrelu": "leaky_relu",
    "swiglu": "silu",
}
LAMBDA = Fraction("1.0507009873554804934193349852946")
ALPHA = Fraction("1.6732632423543772848170429916717")


def clamp(t, lo, hi):
    return min(max(t, Fraction(lo)), Fraction(hi))


def over(t, d):
    return mul(t, 1 / Fraction(d))


def swish(t, beta):
    u = real(mul(t, beta))
    return real(t) / (1 + mp.exp(-u)) if u > 0 else real(t) * mp.exp(u) / (1 + mp.exp(u))


def softplus(t):
    t = real(t)
    return t + mp.log1p(mp.exp(-t)) if t > 0 else mp.log1p(mp.exp(t))


def elu(t, scale, alpha, gamma):
    return mul(t, scale) if t > 0 else real(scale * alpha) * mp.expm1(real(t) / real(gamma))


def mish(t):
    """tanh(ln(1 + e^t)) = n/(n + 2), n = e^2t + 2e^t, without cancellation."""
    t = real(t)
    if t > 0:
        e = mp.exp(-t)
        return t * (1 + 2 * e) / (1 + 2 * e + 2 * e * e)
    n = mp.exp(t) * (mp.exp(t) + 2)
    return t * n / (n + 2)


def gelu_tanh(t):
    u = real(add(t, mul(Fraction("0.044715"), mul(t, mul(t, t)))))
    q = 2 * mp.sqrt(2 / mp.pi) * u  # (1 + tanh(q/2))/2 = sigmoid(q)
    return real(t) / (1 + mp.exp(-q)) if q > 0 else real(t) * mp.exp(q) / (1 + mp.exp(q))


def sigmoid(t):
    t = real(t)
    return 1 / (1 + mp.exp(-t)) if t > 0 else mp.exp(t) / (1 + mp.exp(t))


def tanh(t):
    t = real(t)
    return mp.sign(t) * -mp.expm1(-2 * abs(t)) / (1 + mp.exp(-2 * abs(t)))


class Activation:
    """A name of the table, with its parameter: callable, with its knots."""

    def __init__(self, text):
        name, _, parameter = text.strip().partition(":")
        name = ALIASES.get(name.lower(), name.lower())
        p = exact(parameter) if parameter else None
        default = lambda x: Fraction(x) if p is None else p
        zero = Fraction(0)
        table = {
            "relu": (lambda t: max(t, zero), [0]),
            "leaky_relu": (lambda t: t if t > 0 else mul(t, default("0.01")), [0]),
            "relu2": (lambda t: mul(max(t, zero), max(t, zero)), [0]),
            "relu6": (lambda t: clamp(t, 0, 6), [0, 6]),
            "hardtanh": (lambda t: clamp(t, -1, 1), [-1, 1]),
            "hardsigmoid": (lambda t: over(clamp(add(t, Fraction(3)), 0, 6), 6), [-3, 3]),
            "hardswish": (lambda t: over(mul(t, clamp(add(t, Fraction(3)), 0, 6)), 6), [-3, 3]),
            "silu": (lambda t: swish(t, Fraction(1)), []),
            "swish": (lambda t: swish(t, default(1)), []),
            "quick_gelu": (lambda t: swish(t, Fraction("1.702")), []),
            "gelu": (lambda t: real(t) * mp.erfc(-real(t) / mp.sqrt(2)) / 2, []),
            "gelu_tanh": (gelu_tanh, []),
            "mish": (mish, []),
            "softplus": (softplus, []),
            "elu": (lambda t: elu(t, Fraction(1), default(1), Fraction(1)), [0]),
            "selu": (lambda t: elu(t, LAMBDA, ALPHA, Fraction(1)), [0]),
            "celu": (lambda t: elu(t, Fraction(1), default(1), default(1)), [0]),
            "sigmoid": (sigmoid, []),
            "tanh": (tanh, []),
            "softsign": (lambda t: real(t) / (1 + abs(real(t))), [0]),
            "abs": (lambda t: abs(t), [0]),
            "identity": (lambda t: t, []),
        }
        if name not in table:
            raise Bad(f"unknown activation {text!r}")
        self.f, self.knots = table[name]

    def __call__(self, t):
        return self.f(t)


# ---- expressions -------------------------------------------------------------------------------------------------

TOKEN = re.compile(rf"\s*(?:({DECIMAL})|([A-Za-z_]\w*(?::[+-]?[\d.eE/+-]*)?)|([-+*/(),]))")


def tokens(text):
    out, at = [], 0
    text = text.rstrip()
    while at < len(text):
        m = TOKEN.match(text, at)
        if not m:
            raise Bad(f"unexpected {text[at:at + 8]!r} in {text!r}")
        kind = "number" if m.group(1) else "name" if m.group(2) else "symbol"
        out.append((kind, m.group(m.lastindex)))
        at = m.end()
    return out


class Parser:
    """Tuples: ('const', q), ('z', k), ('add'|'mul'|'min'|'max', a, b), ('relu'|'step', a), ('jumprelu', a, t),
    ('clamp', a, lo, hi), ('select', c, a, b), ('act', σ, a)."""

    def __init__(self, text):
        self.text, self.t, self.i = text, tokens(text), 0

    def parse(self):
        e = self.sum()
        if self.i != len(self.t):
            raise Bad(f"trailing {self.t[self.i][1]!r} in {self.text!r}")
        return e

    def take(self, s):
        hit = self.i < len(self.t) and self.t[self.i] == ("symbol", s)
        self.i += hit
        return hit

    def expect(self, s):
        if not self.take(s):
            raise Bad(f"expected {s!r} at token {self.i} of {self.text!r}")

    def sum(self):
        e = self.product()
        while True:
            if self.take("+"):
                e = ("add", e, self.product())
            elif self.take("-"):
                e = ("add", e, ("mul", ("const", Fraction(-1)), self.product()))
            else:
                return e

    def product(self):
        e = self.unary()
        while True:
            if self.take("*"):
                e = ("mul", e, self.unary())
            elif self.take("/"):
                e = ("mul", ("const", 1 / constant(self.unary())), e)
            else:
                return e

    def unary(self):
        return ("mul", ("const", Fraction(-1)), self.unary()) if self.take("-") else self.primary()

    def primary(self):
        if self.take("("):
            e = self.sum()
            self.expect(")")
            return e
        if self.i >= len(self.t) or self.t[self.i][0] == "symbol":
            raise Bad(f"expected an operand at token {self.i} of {self.text!r}")
        kind, text = self.t[self.i]
        self.i += 1
        if kind == "number":
            return ("const", exact(text))
        if self.take("("):
            e = self.call(text)
            self.expect(")")
            return e
        if text == "z" or re.fullmatch(r"z_\d+", text):
            return ("z", int(text[2:] or 0))
        raise Bad(f"unknown name {text!r} in {self.text!r}")

    def call(self, name):
        args, literal = {"jumprelu": (1, 1), "clamp": (1, 2), "min": (2, 0), "max": (2, 0), "select": (3, 0)}.get(name, (1, 0))
        out = [self.sum()]
        for _ in range(args - 1):
            self.expect(",")
            out.append(self.sum())
        for _ in range(literal):
            self.expect(",")
            out.append(constant(self.product()))
        if name in ("relu", "step", "jumprelu", "clamp", "min", "max", "select"):
            return (name, *out)
        return ("act", Activation(name), out[0])


def constant(e):
    line = affine(e)
    if line is None or line[0]:
        raise Bad("a constant is expected")
    return line[1]


def affine(e):
    """(slope, offset) of an affine expression in z, by its shape."""
    if e[0] == "const":
        return (Fraction(0), e[1])
    if e[0] == "z":
        return (Fraction(1), Fraction(0))
    if e[0] in ("add", "mul"):
        a, b = affine(e[1]), affine(e[2])
        if a is None or b is None:
            return None
        if e[0] == "add":
            return (a[0] + b[0], a[1] + b[1])
        if a[0] and b[0]:
            return None
        return (a[1] * b[0] + b[1] * a[0], a[1] * b[1])
    return None


def value(e, z):
    """The value at a Fraction z: a Fraction where it is rational by construction, else an mpf."""
    op = e[0]
    if op == "const":
        return e[1]
    if op == "z":
        return z
    if op == "add":
        return add(value(e[1], z), value(e[2], z))
    if op == "mul":
        return mul(value(e[1], z), value(e[2], z))
    if op == "act":
        return e[1](value(e[2], z))
    a = value(e[1], z)
    if op == "relu":
        return a if a > 0 else Fraction(0)
    if op == "step":
        return Fraction(1 if a > 0 else 0)
    if op == "jumprelu":
        return a if greater(a, e[2]) else Fraction(0)
    if op == "clamp":
        return least(greatest(a, e[2]), e[3])
    if op == "select":
        return value(e[2] if a > 0 else e[3], z)
    b = value(e[2], z)
    return least(a, b) if op == "min" else greatest(a, b)


def greater(a, b):
    return a > b if isinstance(a, Fraction) and isinstance(b, Fraction) else real(a) > real(b)


def greatest(a, b):
    return a if greater(a, b) else b


def least(a, b):
    return b if greater(a, b) else a


def knots(e, lo, hi):
    """All points of (lo, hi) at which a condition on a piecewise affine form changes, in order."""
    cuts = []
    while True:
        found, ends = set(), [lo, *cuts, hi]
        for a, b in zip(ends, ends[1:]):
            line_on(e, a, b, found)
        found -= set(cuts)
        if not found:
            return cuts
        cuts = sorted(set(cuts) | found)


def line_on(e, lo, hi, found):
    """(slope, offset) of e on (lo, hi), where it is affine there; roots of conditions inside go into `found`."""

    def positive(line):
        """Is the line > 0 on (lo, hi)? None where it is no line."""
        if line is None:
            return None
        m, c = line
        if m:
            root = -c / m
            if (lo is None or lo < root) and (hi is None or root < hi):
                found.add(root)
                return True
            return (m > 0) == (lo is not None and root <= lo)
        return c > 0

    def minus(a, b):
        return None if a is None or b is None else (a[0] - b[0], a[1] - b[1])

    op = e[0]
    if op in ("const", "z"):
        return affine(e)
    sub = [line_on(x, lo, hi, found) for x in e[1:] if isinstance(x, tuple)]
    flat = lambda c: (Fraction(0), c)
    if op in ("add", "mul"):
        a, b = sub
        if a is None or b is None or (op == "mul" and a[0] and b[0]):
            return None
        return (a[0] + b[0], a[1] + b[1]) if op == "add" else (a[1] * b[0] + b[1] * a[0], a[1] * b[1])
    if op == "act":
        for k in e[1].knots:
            positive(minus(sub[0], flat(Fraction(k))))
        return None
    pick = lambda test, a, b: None if test is None else a if test else b
    a = sub[0]
    if op == "relu":
        return pick(positive(a), a, flat(Fraction(0)))
    if op == "step":
        return pick(positive(a), flat(Fraction(1)), flat(Fraction(0)))
    if op == "jumprelu":
        return pick(positive(minus(a, flat(e[2]))), a, flat(Fraction(0)))
    if op == "select":
        return pick(positive(a), sub[1], sub[2])
    if op == "clamp":
        a = pick(positive(minus(a, flat(e[2]))), a, flat(e[2]))
        return pick(positive(minus(a, flat(e[3]))), flat(e[3]), a)
    return pick(positive(minus(a, sub[1])), *((sub[1], a) if op == "min" else (a, sub[1])))


# ---- a scalar response -------------------------------------------------------------------------------------------

TINY = Fraction(1, 10**45)


class Target:
    """c on an interval (ends None where infinite): values, one-sided limits, jumps, hulls."""

    def __init__(self, e, lo, hi):
        self.e, self.lo, self.hi = e, lo, hi
        self.knots = knots(e, lo, hi)
        self.limits = {}
        self.jumps = []
        for k in self.knots:
            near = [value(e, k + s * TINY * max(1, abs(k))) for s in (-1, 1)]
            self.limits[k] = [*near, value(e, k)]
            if abs(real(near[0]) - real(near[1])) > mpf(10) ** -30:
                self.jumps.append(k)

    def at(self, z):
        return real(self.limits[z][2] if z in self.limits else value(self.e, z))

    def distance(self, z):
        """To the nearest jump; None without jumps."""
        return min((abs(z - j) for j in self.jumps), default=None)

    def hull(self, z, delta, fine=16):
        """Least and greatest of c over [z − delta, z + delta] in the interval, from inside, refined around extrema."""
        a, b = z - delta, z + delta
        a = a if self.lo is None else max(a, self.lo)
        b = b if self.hi is None else min(b, self.hi)
        inside = [k for k in self.knots if a <= k <= b]
        seen = [real(x) for k in inside for x in self.limits[k]]
        if a >= b:
            return min([*seen, self.at(z)]), max([*seen, self.at(z)])
        points = sorted({a + (b - a) * i / fine for i in range(fine + 1)} | {z})
        values = [real(value(self.e, p)) for p in points]
        for sign in (1, -1):
            k = max(range(len(points)), key=lambda i: sign * values[i])
            l, r = points[max(k - 1, 0)], points[min(k + 1, len(points) - 1)]
            for _ in range(40):
                p, q = l + (r - l) * Fraction(382, 1000), l + (r - l) * Fraction(618, 1000)
                vp, vq = real(value(self.e, p)), real(value(self.e, q))
                seen += [vp, vq]
                l, r = (l, q) if sign * vp > sign * vq else (p, r)
                l, r = Fraction(float(l)), Fraction(float(r))  # short numbers again
                if l >= r or (r - l) < Fraction(1, 10**12) * max(1, abs(r)):
                    break
                l, r = max(l, a), min(r, b)
        seen += values
        return min(seen), max(seen)


def neuron(n, gated):
    names = ("gate_weight", "gate_bias", "out", "up_weight", "up_bias") if gated else ("weight", "bias", "out")
    if set(n) != set(names):
        raise Bad(f"a neuron with the fields {sorted(n)}")
    return [exact(n[k]) if isinstance(n[k], str) else Fraction(n[k]) for k in names]


class Stack:
    def __init__(self, sigma, constant_, neurons, gated):
        self.sigma = sigma
        self.constant = exact(constant_) if isinstance(constant_, str) else Fraction(constant_)
        self.neurons = [neuron(n, gated) for n in neurons]

    def __call__(self, z):
        total = self.constant
        for w, b, out, *up in self.neurons:
            h = self.sigma(w * z + b)
            if up:
                h = mul(h, up[0] * z + up[1])
            total = add(total, mul(out, h))
        return real(total)


class Report:
    def __init__(self):
        self.counts, self.worst, self.violations = {}, {}, []

    def check(self, place, claim, found, bound):
        """found ≤ bound, up to the 50 digits."""
        self.counts[claim] = self.counts.get(claim, 0) + 1
        if bound > 0:
            self.worst[claim] = max(self.worst.get(claim, mpf(0)), found / bound)
        if not found <= bound + SLACK * (1 + abs(bound)):
            self.violations.append(f"{place}: {claim} {mp.nstr(found, 12)} > {mp.nstr(mpf(bound), 12)}")

    def true(self, place, claim, holds):
        self.counts[claim] = self.counts.get(claim, 0) + 1
        if not holds:
            self.violations.append(f"{place}: {claim}")

    def show(self, title):
        print(title)
        for claim, n in self.counts.items():
            worst = f", largest found/claimed {mp.nstr(self.worst[claim], 8)}" if claim in self.worst else ""
            print(f"  {claim}: {n} checks{worst}")
        shown = self.violations[:10]
        for v in shown:
            print(f"  VIOLATED {v}")
        if len(self.violations) > len(shown):
            print(f"  ... and {len(self.violations) - len(shown)} more")
        return not self.violations


def end(x):
    if isinstance(x, str):
        if x not in ("inf", "-inf"):
            raise Bad(f"an end of a domain is {x!r}")
        return None
    return Fraction(x)


def sample_points(target, stack, delta, rng):
    """Ends, knots, band edges, knees of the neurons, a grid, random points."""
    lo, hi = target.lo, target.hi
    special = set(target.knots)
    for w, b, *_ in stack.neurons:
        if w:
            for u in (0, -3, 3, -1, 1, 6, -20, 20, Fraction(3, 2), Fraction(-3, 2)):
                special.add(Fraction(float((u - b) / w)))
    edges = {k + s * delta for k in special for s in (-1, 1)} if delta else set()
    near = {k + s * Fraction(1, 10**6) for k in special | edges for s in (-1, 1)}
    points = special | edges | near
    a = lo if lo is not None else min([p for p in special] + [hi if hi is not None else Fraction(0)]) - 16
    b = hi if hi is not None else max([p for p in special] + [lo if lo is not None else Fraction(0)]) + 16
    points |= {a, b} | {a + (b - a) * i / 200 for i in range(201)}
    points |= {Fraction(rng.uniform(float(a), float(b))) for _ in range(RANDOM_POINTS)}
    for k in list(special)[:8]:
        points |= {k + s * Fraction(10) ** rng.randint(-9, 0) * rng.randint(1, 9) for s in (-1, 1) for _ in range(8)}
        if delta:
            points |= {k + delta * Fraction(rng.uniform(-1, 1)) for _ in range(16)}
    for sign, infinite in ((-1, lo is None), (1, hi is None)):
        if infinite:
            points |= {sign * Fraction(10) ** i * m for i in range(0, 13) for m in (1, 3)}
    return sorted(p for p in points if (lo is None or lo <= p) and (hi is None or p <= hi))


def check_figures(report, place, target, stack, figures, rng):
    fields = {"status", "delta", "epsilon", "eta", "epsilon_outside", "overshoot", "leak"}
    if set(figures) != fields:
        raise Bad(f"{place}: a certificate with the fields {sorted(figures)}")
    delta = Fraction(figures["delta"])
    eps, eta, outside, over_, leak = (None if figures[k] is None else mpf(figures[k]) for k in ("epsilon", "eta", "epsilon_outside", "overshoot", "leak"))
    report.true(place, "delta is 0 exactly where epsilon_outside and overshoot are null", (delta == 0) == (outside is None) == (over_ is None))
    report.true(place, "no jump without a band", delta > 0 or not target.jumps)
    if target.lo is not None and target.hi is not None:
        report.true(place, "eta is 0 on a bounded domain", eta == 0)
    for z in sample_points(target, stack, delta, rng):
        have, want = stack(z), target.at(z)
        allowed = eta * abs(real(z))
        error = abs(have - want)
        far = target.distance(z)
        if delta == 0:
            report.check(place, "epsilon", error - allowed, eps)
        else:
            if far is None or far > delta:
                report.check(place, "epsilon_outside", error - allowed, outside)
            off = mpf(0)
            if error - allowed > min(eps, over_) / 2:
                low, high = target.hull(z, delta)
                off = max(low - have, have - high, mpf(0))
            report.check(place, "epsilon (distance from the hull)", off - allowed, eps)
            if far is not None and far < delta:
                report.check(place, "overshoot", off - allowed, over_)
        if leak is not None and want == 0:
            low, high = target.hull(z, delta)
            inside = [k for k in target.knots if abs(k - z) <= delta]
            if low == high == 0 and all(real(x) == 0 for k in inside for x in target.limits[k]):
                report.check(place, "leak", abs(have) - allowed, leak)


def check_status(report, place, target, ideal, figures, rng):
    status = figures["status"]
    if status not in ("Exact", "ExactOutside", "Within", "BestEffort"):
        raise Bad(f"{place}: status {status!r}")
    if status in ("Exact", "ExactOutside"):
        delta = Fraction(figures["delta"]) if status == "ExactOutside" else Fraction(0)
        for z in sample_points(target, ideal, delta, rng):
            far = target.distance(z)
            if z not in target.limits and (status == "Exact" or far is None or far > delta):
                want = target.at(z)
                error = abs(ideal(z) - want)
                report.check(place, f"{status}: the stack before rounding", error, mpf(10) ** -30 * (1 + abs(want) + abs(real(z))))


# ---- fit --json ---------------------------------------------------------------------------------------------------

FORMATS = {"f64": ("<d", 53, -1074), "f32": ("<f", 24, -149), "f16": ("<e", 11, -24), "bf16": (None, 8, -133)}


def representable(x, name):
    """Is the float one of the format's numbers? (Beyond its range is for the reader of the format to notice.)"""
    _, bits, smallest = FORMATS[name]
    q = Fraction(x)
    if q == 0:
        return True
    exponent = max(math.frexp(x)[1] - bits, smallest)
    return (q / Fraction(2) ** exponent).denominator == 1


def check_fit(line, rng):
    fit = json.loads(line)
    if set(fit) != {"version", "target", "source", "form", "format", "domain", "constant", "neurons", "certificate"}:
        raise Bad(f"a fit with the fields {sorted(fit)}")
    if fit["version"] != 1:
        raise Bad(f"version {fit['version']}")
    text = fit["target"]
    try:
        e = ("act", Activation(text), ("z", 0))
    except (Bad, ValueError):
        e = Parser(text).parse()
    gated = fit["form"] == "gated"
    target = Target(e, *(end(x) for x in fit["domain"]))
    stack = Stack(Activation(fit["source"]), fit["constant"], fit["neurons"], gated)
    report = Report()
    numbers = [fit["constant"], *(x for n in fit["neurons"] for x in n.values())]
    report.true("fit", f"every number is one of {fit['format']}", all(representable(x, fit["format"]) for x in numbers))
    check_figures(report, "fit", target, stack, fit["certificate"], rng)
    c = fit["certificate"]
    title = f"{text} from {len(fit['neurons'])} neurons of {fit['source']}, {fit['form']} {fit['format']} on {fit['domain']}: {c['status']}, epsilon {c['epsilon']:.3e}"
    return report.show(title)


# ---- a directory --------------------------------------------------------------------------------------------------


def array(a, d, place):
    if set(a) != {"dtype", "len", "data"} or a["dtype"] not in ("f32", "f64"):
        raise Bad(f"{place}: not an array")
    raw = base64.b64decode(a["data"], validate=True)
    code, size = {"f32": ("f", 4), "f64": ("d", 8)}[a["dtype"]]
    if a["len"] != d or len(raw) != d * size:
        raise Bad(f"{place}: {len(raw)} bytes for {a['len']} numbers, {d} are due")
    return list(struct.unpack(f"<{d}{code}", raw))


def safetensors(raw):
    (n,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + n])
    data, out = raw[8 + n :], {}
    for name, t in header.items():
        if name == "__metadata__":
            continue
        a, b = t["data_offsets"]
        count = math.prod(t["shape"])
        code = {"F64": "d", "F32": "f", "F16": "e", "BF16": "H"}[t["dtype"]]
        values = struct.unpack(f"<{count}{code}", data[a:b])
        if code == "H":
            values = struct.unpack(f"<{count}f", b"".join(struct.pack("<I", x << 16) for x in values))
        out[name] = (t["dtype"], t["shape"], values)
    return out


def dot(a, b):
    return mp.fdot(a, b)


def norm(a):
    return mp.sqrt(mp.fdot(a, a))


def check_dir(path, rng):
    with open(os.path.join(path, "certificate.json"), encoding="utf-8") as f:
        c = json.load(f)
    with open(os.path.join(path, "block.safetensors"), "rb") as f:
        raw = f.read()
    report = Report()
    if c["version"] != 1 or c["arithmetic"] != "real":
        raise Bad("another version or arithmetic")
    report.true("block", "SHA-256", hashlib.sha256(raw).hexdigest() == c["block_sha256"])
    d, h, gated, fmt = c["hidden_size"], c["intermediate_size"], c["form"] == "gated", c["format"]
    shapes = {"gate_proj.weight": [h, d], "gate_proj.bias": [h], "down_proj.weight": [d, h], "down_proj.bias": [d]}
    if gated:
        shapes |= {"up_proj.weight": [h, d], "up_proj.bias": [h]}
    tensors = safetensors(raw)
    for name, (dtype, shape, _) in tensors.items():
        report.true("block", "tensor names, shapes, formats", shapes.get(name) == shape and dtype == fmt.upper())
    needed = [n for n in shapes if n.endswith("weight")]
    report.true("block", "tensor names, shapes, formats", all(n in tensors for n in needed))
    flat = lambda name, n: tensors[name][2] if name in tensors else (0.0,) * n
    rows = lambda name, n, m: [flat(name, n * m)[i * m : (i + 1) * m] for i in range(n)]
    gate, gate_bias = rows("gate_proj.weight", h, d), flat("gate_proj.bias", h)
    up, up_bias = (rows("up_proj.weight", h, d), flat("up_proj.bias", h)) if gated else (None, None)
    down = list(zip(*rows("down_proj.weight", d, h))) if h else []
    down_bias = flat("down_proj.bias", d)
    sigma = Activation(c["source"])

    entries, nxt = [], 0
    R = c["norm"]
    for r in c["responses"]:
        place = r["name"]
        e = Parser(r["target"]).parse()
        Parser(r["expression"]).parse()
        w, v, b = array(r["w"], d, place), array(r["v"], d, place), r["b"]
        stack = Stack(sigma, r["constant"], r["neurons"], gated)
        report.true(place, "hidden units follow on", r["first_unit"] == nxt)
        units = range(nxt, nxt + len(stack.neurons))
        nxt = units.stop
        lo, hi = (end(x) for x in r["domain"])
        f, rounding = r["certificate"], r["rounding"]
        report.true(place, "rounding is null exactly without a norm", (rounding is None) == (R is None))
        dlo, dhi = lo, hi
        if R is not None:
            reach = Fraction(float(norm(w) * R + abs(b)))
            delta_rows = Fraction(rounding["delta_rows"])
            dlo = (-reach if lo is None else max(lo, -reach)) - delta_rows
            dhi = (reach if hi is None else min(hi, reach)) + delta_rows
        target = Target(e, dlo, dhi)
        check_figures(report, place, target, stack, f, rng)
        ideal = stack
        if r["ideal"] is not None:
            ideal = Stack(sigma, r["ideal"]["constant"], r["ideal"]["neurons"], gated)
        check_status(report, place, target, ideal, f, rng)
        missed = r["tolerance"] is not None and not f["epsilon"] <= r["tolerance"]
        report.true(place, "BestEffort exactly where the tolerance is missed", (f["status"] == "BestEffort") == missed)
        entries.append(dict(place=place, r=r, w=w, v=v, b=b, stack=stack, units=units, target=target, lo=lo, hi=hi))
    report.true("block", "every hidden unit has a response", nxt == h)
    if R is not None:
        check_rounding(report, c, entries, (gate, gate_bias, up, up_bias, down, down_bias), sigma, rng)
    return report.show(f"{path}: {len(entries)} responses, {h} hidden units, {c['form']} {c['source']} in {fmt}, norm {R}")


def check_rounding(report, c, entries, block, sigma, rng):
    """The claims about x: on residuals with ‖x‖ ≤ R that reach into every response's range, its bands and knees."""
    gate, gate_bias, up, up_bias, down, down_bias = block
    R, d = mpf(c["norm"]), c["hidden_size"]
    constant = [mp.fsum(mpf(e["r"]["constant"]) * e["v"][i] for e in entries) for i in range(d)]
    gap = norm([mpf(down_bias[i]) - constant[i] for i in range(d)])
    report.check("total", "constant_error", gap, mpf(c["total"]["constant_error"]))
    for e in entries:
        k = None
        for i, (w, *_) in enumerate(e["stack"].neurons):
            if w and (k is None or abs(w) >= abs(e["stack"].neurons[k][0])):
                k = i
        e["shift"] = [0.0] * d
        if k is not None:
            beta = float(e["stack"].neurons[k][0])
            e["shift"] = [(g - beta * w) / beta for g, w in zip(gate[e["units"][k]], e["w"])]
        report.check(e["place"], "delta_rows", norm(e["shift"]) * R, mpf(e["r"]["rounding"]["delta_rows"]))

    residuals = []
    for e in entries:
        ww = dot(e["w"], e["w"])
        if ww == 0:
            residuals.append([mpf(rng.gauss(0, 1)) for _ in range(d)])
            continue
        lo, hi = e["target"].lo, e["target"].hi
        delta = Fraction(e["r"]["certificate"]["delta"])
        wanted = [lo, hi, *e["target"].knots, *(j + s * 2 * delta for j in e["target"].jumps for s in (-1, 1))]
        wanted += [Fraction(rng.uniform(float(lo), float(hi))) for _ in range(RESIDUALS)]
        wanted += [Fraction(float((u - n[1]) / n[0])) for n in e["stack"].neurons if n[0] for u in (-1, 1)]
        for z in wanted:
            along = (real(z) - e["b"]) / ww
            x = [along * w for w in e["w"]]
            room = R * R - along * along * ww
            if room < 0:
                x = [xi * R / norm(x) * (1 - mpf(10) ** -30) for xi in x]
            else:
                # The rest of the norm: noise, or the direction in which rounding hurts most.
                y = [mpf(rng.gauss(0, 1)) for _ in range(d)] if rng.random() < 0.5 or norm(e["shift"]) == 0 else [mpf(s) for s in e["shift"]]
                t = dot(y, e["w"]) / ww
                y = [yi - t * w for yi, w in zip(y, e["w"])]
                size = norm(y)
                if size > 0:
                    x = [xi + yi * mp.sqrt(room) / size * (1 - mpf(10) ** -30) for xi, yi in zip(x, y)]
            residuals.append(x)
    for x in residuals:
        size = norm(x)
        if size > R:
            x = [xi * R / size * (1 - mpf(10) ** -30) for xi in x]
        all_in, all_off, whole, wish = True, True, [mpf(q) for q in down_bias], [mpf(0)] * d
        for e in entries:
            r = e["r"]
            z = dot(e["w"], x) + e["b"]
            exact_z = Fraction(int(z * 10**60), 10**60)
            inside = (e["lo"] is None or e["lo"] <= exact_z) and (e["hi"] is None or exact_z <= e["hi"])
            hidden = []
            for i in e["units"]:
                value_ = real(sigma(dot(gate[i], x) + gate_bias[i]))
                hidden.append(value_ * (dot(up[i], x) + up_bias[i]) if up else value_)
            outs = [real(n[2]) for n in e["stack"].neurons]
            scalar = real(e["stack"].constant) + mp.fsum(a * q for a, q in zip(outs, hidden))
            columns = [down[i] for i in e["units"]]
            written = [mp.fsum(q * col[k] for q, col in zip(hidden, columns)) for k in range(d)]
            whole = [a + b for a, b in zip(whole, written)]
            all_in &= inside
            if not inside:
                continue
            claim = r["rounding"]
            shifted = z + dot(e["shift"], x)
            report.check(e["place"], "delta_rows, at a residual", abs(shifted - z), mpf(claim["delta_rows"]))
            there = e["stack"](Fraction(int(shifted * 10**60), 10**60))
            report.check(e["place"], "epsilon_rows", abs(scalar - there), mpf(claim["epsilon_rows"]))
            tilt = [written[k] - (scalar - real(e["stack"].constant)) * e["v"][k] for k in range(d)]
            report.check(e["place"], "column_error", norm(tilt), mpf(claim["column_error"]))
            cz = e["target"].at(exact_z)
            wish = [a + cz * b for a, b in zip(wish, e["v"])]
            response = [written[k] + real(e["stack"].constant) * e["v"][k] for k in range(d)]
            reach = Fraction(r["certificate"]["delta"]) + Fraction(claim["delta_rows"])
            far = e["target"].distance(exact_z)
            off = far is None or far > reach
            all_off &= off
            if off:
                error = norm([response[k] - cz * e["v"][k] for k in range(d)])
                report.check(e["place"], "rounding.outside", error, mpf(claim["outside"]))
            low, high = e["target"].hull(exact_z, reach)
            vv = dot(e["v"], e["v"])
            t = min(max(dot(response, e["v"]) / vv if vv else mpf(0), low), high)
            report.check(e["place"], "rounding.hull", norm([response[k] - t * e["v"][k] for k in range(d)]), mpf(claim["hull"]))
        if all_in and all_off:
            report.check("total", "total.outside", norm([a - b for a, b in zip(whole, wish)]), mpf(c["total"]["outside"]))


def main():
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__.strip())
        return 2
    rng = random.Random(0)
    try:
        if sys.argv[1] != "-":
            return 0 if check_dir(sys.argv[1], rng) else 1
        good, lines = True, [line for line in sys.stdin if line.strip()]
        if not lines:
            raise Bad("nothing on standard input")
        for line in lines:
            good &= check_fit(line, rng)
        return 0 if good else 1
    except (Bad, OSError, ValueError, KeyError, TypeError, struct.error) as e:
        print(f"error: {type(e).__name__}: {e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
