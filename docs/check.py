#!/usr/bin/env python3
"""Checks what `neurograft compile` or `neurograft fit --json` wrote, by sampling in 60 digits.

    python3 docs/check.py DIR        a directory with certificate.json and block.safetensors
    python3 docs/check.py -          lines of `fit --json` on standard input

Written from docs/certificate.md alone; shares no code with the compiler. It can refute a certificate, not prove it.
Exit code: 0 nothing found, 1 a claim is violated, 2 the input cannot be read.
"""

import base64
import hashlib
import json
import math
import operator
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

mp.dps = 60
SLACK = mpf(10) ** -40  # relative, for the 60 digits themselves
RANDOM_POINTS = 300
RESIDUALS = 3
TERM_RESIDUALS = 48
AT_MOST = 400  # residuals


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
    """The value at a Fraction z, or at several, indexed: a Fraction where it is rational by construction, else an mpf."""
    op = e[0]
    if op == "const":
        return e[1]
    if op == "z":
        return z if isinstance(z, Fraction) else z[e[1]]
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
        """found ≤ bound, up to the 60 digits."""
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
    fields = {"version", "target", "source", "form", "format", "domain", "constant", "neurons", "certificate"}
    if set(fit) - {"alternations", "alternations_in_full"} != fields:
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

NULLABLE = {"calibration", "norm", "first_block_sha256", "gates", "total", "tolerance", "ideal", "rounding", "epsilon_outside", "overshoot", "leak"}
TOP = "version arithmetic source form format hidden_size between intermediate_size norm reading block_sha256 first_block_sha256 gates responses total deployed calibration"
RESPONSE = "name carried expression pre_activation target w b v domain tolerance first_unit constant neurons ideal certificate rounding"
TERM = "name conditions payload pre_activations v domain tolerance delta guards carried first_unit units open figures"


def fields(o, names, place):
    names = set(names.split())
    may_be_absent = NULLABLE | ({"carried"} if "payload" in names else set())
    if not isinstance(o, dict) or set(o) - names or names - set(o) - may_be_absent:
        raise Bad(f"{place}: the fields {sorted(o) if isinstance(o, dict) else o!r}")
    for k in names & may_be_absent:
        o.setdefault(k, None)
    for k in names - may_be_absent:
        if o[k] is None:
            raise Bad(f"{place}: {k} is null")


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


class Vec:
    """An exact vector, integers n over one integer q: Python multiplies integers faster than mpmath does numbers."""

    def __init__(self, n, q):
        self.n, self.q = n, q

    @staticmethod
    def of(floats):
        ratios = [float(x).as_integer_ratio() for x in floats]
        q = max((q for _, q in ratios), default=1)
        return Vec([p * (q // r) for p, r in ratios], q)

    def dot(self, other):
        return Fraction(sum(map(operator.mul, self.n, other.n)), self.q * other.q)

    def norm(self):
        return mp.sqrt(real(self.dot(self)))

    def part(self, a, b=None):
        return Vec(self.n[a:b], self.q)

    def short(self):
        """Rounded, for what need not be exact."""
        return Vec([(a << 170) // self.q for a in self.n], 1 << 170)

    def padded(self, n):
        return Vec(self.n + [0] * (n - len(self.n)), self.q)


FINE = 1 << 240  # the units of what is irrational: hidden units, directions


def snap(x):
    """A real number as a multiple of 1/FINE."""
    return x if isinstance(x, Fraction) else Fraction(int(mp.nint(x * FINE)), FINE)


def combine(pairs, d):
    """Σ c·v for the Vecs v of length d; real c are snapped."""
    pairs = [(snap(c), v) for c, v in pairs if c]
    q = math.lcm(1, *(c.denominator * v.q for c, v in pairs))
    n = [0] * d
    for c, v in pairs:
        k = c.numerator * (q // (c.denominator * v.q))
        n = [a + k * b for a, b in zip(n, v.n)]
    return Vec(n, q)


def less(a, b):
    return combine([(Fraction(1), a), (Fraction(-1), b)], len(a.n))


class Block:
    """One safetensors file."""

    def __init__(self, path, sha, report, c, h):
        place = os.path.basename(path)
        with open(path, "rb") as f:
            raw = f.read()
        report.true(place, "SHA-256", hashlib.sha256(raw).hexdigest() == sha)
        tensors = safetensors(raw)
        d, gated, fmt = c["hidden_size"] + c["between"], c["form"] == "gated", c["format"].upper()
        h = tensors["gate_proj.weight"][1][0] if h is None else h
        shapes = {"gate_proj.weight": [h, d], "gate_proj.bias": [h], "down_proj.weight": [d, h], "down_proj.bias": [d]}
        if gated:
            shapes |= {"up_proj.weight": [h, d], "up_proj.bias": [h]}
        biases = {dtype for name, (dtype, *_) in tensors.items() if name.endswith("bias")}
        due = [name for name in shapes if biases or not name.endswith("bias")]
        wide = {fmt, "F32"} if fmt in ("F16", "BF16") else {fmt}
        report.true(place, "the biases have one dtype", len(biases) < 2 and biases <= wide)
        for name in {*due, *tensors}:
            dtype, shape, values = tensors.get(name, (None, None, ()))
            good = name in shapes and shape == shapes[name] and (dtype == fmt or name.endswith("bias"))
            report.true(place, "tensor names, shapes, formats", good)
            if not good:
                raise Bad(f"{place}: {name} is {dtype} {shape}")
            report.true(place, "finite weights", all(map(math.isfinite, values)))
        flat = lambda name, n: tensors[name][2] if name in tensors else (0.0,) * n
        rows = lambda name: [Vec.of(flat(name, h * d)[i * d : (i + 1) * d]) for i in range(h)]
        self.h, self.d, self.sigma, self.up = h, d, Activation(c["source"]), None
        self.gate, self.gate_bias = rows("gate_proj.weight"), [Fraction(q) for q in flat("gate_proj.bias", h)]
        if gated:
            self.up, self.up_bias = rows("up_proj.weight"), [Fraction(q) for q in flat("up_proj.bias", h)]
        self.down = [Vec.of(flat("down_proj.weight", d * h)[i::h]) for i in range(h)]
        self.down_bias = Vec.of(flat("down_proj.bias", d))

    def hidden(self, x):
        out = [self.sigma(g.dot(x) + p) for g, p in zip(self.gate, self.gate_bias)]
        if self.up:
            out = [mul(s, u.dot(x) + q) for s, u, q in zip(out, self.up, self.up_bias)]
        return [snap(real(s)) for s in out]

    def change(self, hidden):
        return combine([(Fraction(1), self.down_bias), *zip(hidden, self.down)], self.d)


def check_dir(path, rng):
    with open(os.path.join(path, "certificate.json"), encoding="utf-8") as f:
        c = json.load(f)
    report = Report()
    fields(c, TOP, "certificate.json")
    if c["version"] != 1 or c["arithmetic"] != "real":
        raise Bad("another version or arithmetic")
    d, g, h, R, gated = c["hidden_size"], c["between"], c["intermediate_size"], c["norm"], c["form"] == "gated"
    two = c["gates"] is not None
    report.true("certificate.json", "one layer or two", two == (g > 0) == (c["first_block_sha256"] is not None))
    report.true("certificate.json", "total is null exactly without a norm", (c["total"] is None) == (R is None))
    fields(c["reading"], "scale constants bound rounding residue", "reading")
    if two and (R is None or c["reading"] != {"scale": [1, 1], "constants": [], "bound": 0, "rounding": 0, "residue": 0}):
        raise Bad("two layers without a norm, or with a reading")
    blocks = [Block(os.path.join(path, "block.safetensors"), c["block_sha256"], report, c, h)]
    if two:
        blocks.append(Block(os.path.join(path, "first_block.safetensors"), c["first_block_sha256"], report, c, None))
    sigma, entries, nxt = blocks[0].sigma, [], [0, 0]
    for r in c["responses"]:
        place = r["name"]
        fields(r, RESPONSE, place)
        e = Parser(r["target"]).parse()
        w, v, b = Vec.of(array(r["w"], d + g, place)), Vec.of(array(r["v"], d + g, place)), Fraction(r["b"])
        between = sorted(v.n) == [0] * (d + g - 1) + [v.q] and any(v.part(d).n)
        report.true(place, "w reads nothing between the layers; v writes there if carried", not any(w.n[d:]) and (between if r["carried"] else not any(v.n[d:])))
        report.true(place, "carried is false for one layer", two or not r["carried"])
        stack = Stack(sigma, r["constant"], r["neurons"], gated)
        layer = int(r["carried"])
        report.true(place, "hidden units follow on", r["first_unit"] == nxt[layer])
        units = range(nxt[layer], nxt[layer] + len(stack.neurons))
        nxt[layer] = units.stop
        lo, hi = (end(x) for x in r["domain"])
        f, rounding = r["certificate"], r["rounding"]
        report.true(place, "rounding is null exactly without a norm", (rounding is None) == (R is None))
        dlo, dhi = lo, hi
        if R is not None:
            fields(rounding, "delta_rows epsilon_rows column_error outside hull", place)
            reach = Fraction(float(w.norm() * R + abs(real(b))))
            delta_rows = Fraction(rounding["delta_rows"])
            dlo = (-reach if lo is None else max(lo, -reach)) - delta_rows
            dhi = (reach if hi is None else min(hi, reach)) + delta_rows
        target = Target(e, dlo, dhi)
        check_figures(report, place, target, stack, f, rng)
        ideal = stack
        if r["ideal"] is not None:
            ideal = Stack(sigma, r["ideal"]["constant"], r["ideal"]["neurons"], gated)
        check_status(report, place, target, ideal, f, rng)
        missed = r["tolerance"] is not None and not max(f["epsilon"], f["eta"]) <= r["tolerance"]
        report.true(place, "BestEffort exactly where the tolerance is missed", (f["status"] == "BestEffort") == missed)
        entries.append(dict(place=place, r=r, w=w, v=v, b=b, stack=stack, units=units, target=target, lo=lo, hi=hi, layer=layer))
    groups = check_parts(report, entries, rng)
    terms = []
    if two:
        terms = read_gates(report, c, entries, groups, blocks, nxt, rng)
    else:
        report.true("block", "every hidden unit has a response", nxt[0] == h)
    if R is not None:
        check_rounding(report, c, entries, terms, blocks, rng)
    check_deployed(report, c, entries, terms)
    layers = f"two layers with {g} coordinates between, {len(terms)} terms, " if two else ""
    return report.show(f"{path}: {layers}{len(entries)} responses, {h} hidden units, {c['form']} {c['source']} in {c['format']}, norm {R}")


ROUNDOFF = {"bf16": 2.0**-8, "f16": 2.0**-11, "f32": 2.0**-24}
DEPLOYED_RESPONSE = "delta_rows delta_sums epsilon epsilon_outside agreeing overshoot leak outside hull"
DEPLOYED_TERM = "bands factor payload_error outside hull off"


def check_deployed(report, c, entries, terms):
    """What follows from an entry's own figures: that they add up. How each came about, from the rounding inside a stack, is not checked here."""
    for entry in c["deployed"]:
        fields(entry, "arithmetic responses terms total", "deployed")
        place = f"deployed, {entry['arithmetic']}"
        report.true(place, "deployed: an object for each response and term", len(entry["responses"]) == len(entries) and len(entry["terms"]) == len(terms))
        outside = hull = leaks = mpf(0)
        silent = True
        for e, r in zip(entries, entry["responses"]):
            for name in set(DEPLOYED_RESPONSE.split()) ^ set(r):
                if name not in ("agreeing", "leak") or name in r:
                    raise Bad(f"{place}: the field {name}")
            length = e["v"].norm()
            report.check(place, "deployed: a response's epsilon_outside, times the norm of v", r["epsilon_outside"] * length, r["outside"])
            report.check(place, "deployed: a response's epsilon, times the norm of v", r["epsilon"] * length, r["hull"])
            report.check(place, "deployed: epsilon_outside and overshoot within epsilon", mpf(max(r["epsilon_outside"], r["overshoot"])), r["epsilon"])
            if not e["layer"]:
                outside, hull = outside + mpf(r["outside"]), hull + mpf(r["hull"])
                silent = silent and r.get("leak") is not None
                leaks += (r.get("leak") or 0) * length
        for t in entry["terms"]:
            fields(t, DEPLOYED_TERM, place)
            outside, hull, leaks = outside + mpf(t["outside"]), hull + mpf(t["hull"]), leaks + mpf(t["off"])
        total = entry["total"]
        if set(total) - {"quiet"} != set("outside hull summing rounding residual".split()):
            raise Bad(f"{place}: the fields of total")
        after = mpf(total["summing"]) + mpf(total["rounding"]) + mpf(total["residual"])
        report.check(place, "deployed: the parts of outside", outside + after, total["outside"])
        report.check(place, "deployed: the parts of hull", hull + after, total["hull"])
        unit = ROUNDOFF[entry["arithmetic"].rsplit("-", 1)[1]]
        report.check(place, "deployed: half a unit of the norm, added", mpf(unit) * c["norm"], total["residual"])
        report.true(place, "deployed: quiet is null where some response is 0 nowhere", (total.get("quiet") is not None) == silent)
        if silent:
            report.check(place, "deployed: twice what leaks", 2 * leaks, total["quiet"])


# ---- expressions of several pre-activations ------------------------------------------------------------------------


def variables(e):
    return {e[1]} if e[0] == "z" else set().union(*(variables(x) for x in e[1:] if isinstance(x, tuple)))


def form(e, n):
    """([coefficients of z, z_1, ...], offset) of an expression that is affine by its shape, else None."""
    if e[0] == "const":
        return [Fraction(0)] * n, e[1]
    if e[0] == "z":
        return [Fraction(i == e[1]) for i in range(n)], Fraction(0)
    if e[0] not in ("add", "mul"):
        return None
    a, b = form(e[1], n), form(e[2], n)
    if a is None or b is None or (e[0] == "mul" and any(a[0]) and any(b[0])):
        return None
    if e[0] == "add":
        return [x + y for x, y in zip(a[0], b[0])], a[1] + b[1]
    return [x * b[1] + y * a[1] for x, y in zip(a[0], b[0])], a[1] * b[1]


def at(form_, z):
    return sum((k * x for k, x in zip(form_[0], z)), form_[1])


def draw(lo, hi, rng):
    """A point of [lo, hi], often a small one."""
    lo, hi = (float(hi or 0) - 64 if lo is None else float(lo)), (float(lo or 0) + 64 if hi is None else float(hi))
    return Fraction(rng.choice((rng.uniform(lo, hi), min(max(rng.gauss(0, 4), lo), hi))))


def close(report, place, claim, a, b):
    a, b = real(a), real(b)
    report.check(place, claim, abs(a - b), mpf(10) ** -30 * (1 + abs(a)))


def check_parts(report, entries, rng):
    """The entries of each expression add up to it. Gives them in groups, one for each expression."""
    groups = []
    for e in entries:
        r, last = e["r"], groups[-1][-1]["r"] if groups else None
        same = last and all(last[k] == r[k] for k in ("name", "expression", "carried")) and last["pre_activation"] < r["pre_activation"]
        groups[-1].append(e) if same else groups.append([e])
    for group in groups:
        whole = Parser(group[0]["r"]["expression"]).parse()
        n = 1 + max(variables(whole) | {e["r"]["pre_activation"] for e in group})
        report.true(group[0]["place"], "the entries of an expression write the same v", all(not any(less(e["v"], group[0]["v"]).n) for e in group))
        for _ in range(30):
            z = [draw(group[0]["lo"], group[0]["hi"], rng) for _ in range(n)]
            parts = mp.fsum(real(value(Parser(e["r"]["target"]).parse(), z[e["r"]["pre_activation"]])) for e in group)
            close(report, group[0]["place"], "the entries add up to the expression", value(whole, z), parts)
    return groups


# ---- two layers ----------------------------------------------------------------------------------------------------


def read_gates(report, c, entries, groups, blocks, nxt, rng):
    gates, d, h = c["gates"], c["hidden_size"], c["intermediate_size"]
    fields(gates, "slopes expressions terms reach", "gates")
    n = len(gates["slopes"])
    report.true("gates", "slopes are positive", all(k > 0 for k in gates["slopes"]))
    report.true("gates", "the first block is the carried entries and the guards", nxt[1] + n == blocks[1].h)
    terms, used = [], set(range(nxt[0]))
    for t in gates["terms"]:
        fields(t, TERM, "a term")
        fields(t["figures"], "status bands payload factor overshoot outside hull", "a term")
        place, f, before = f"a term of {t['name']}", t["figures"], len(report.violations)
        m = len(t["pre_activations"])
        conditions, payload = [form(Parser(x).parse(), m) for x in t["conditions"]], Parser(t["payload"]).parse()
        if None in conditions or max(variables(payload), default=0) >= m:
            raise Bad(f"{place}: a condition is not affine, or a pre-activation is missing")
        for p in t["pre_activations"]:
            fields(p, "w b", place)
        ws, bs = [Vec.of(array(p["w"], d, place)) for p in t["pre_activations"]], [Fraction(p["b"]) for p in t["pre_activations"]]
        v, units = Vec.of(array(t["v"], d, place)), range(t["first_unit"], t["first_unit"] + t["units"])
        report.true(place, "one guard and one band for each condition", len(conditions) == len(t["guards"]) == len(f["bands"]))
        report.true(place, "its guards are there", all(0 <= q < n for q in t["guards"]))
        report.true(place, "its units are its own", t["units"] in (1, 2, 3) and not used & set(units) and units.stop <= h)
        report.true(place, "delta > 0; open is a power of two", t["delta"] > 0 and math.frexp(t["open"])[0] == 0.5)
        report.true(place, "the payload is affine or of one pre-activation", form(payload, m) is not None or len(variables(payload)) == 1)
        used |= set(units)
        sound = len(report.violations) == before
        met = t["tolerance"] is None or f["outside"] <= t["tolerance"] * v.norm() * (1 + mpf(10) ** -15)
        report.true(place, "Within exactly where the tolerance is met", f["status"] == ("Within" if met else "BestEffort"))
        if not sound:
            raise Bad(report.violations[before])
        term = dict(place=place, t=t, f=f, conditions=conditions, payload=payload, ws=ws, bs=bs, v=v, units=units)
        term["lo"], term["hi"] = (end(x) for x in t["domain"])
        if t["carried"] is not None:
            report.true(place, "an entry carries its payload", any(carries(e, term, d, rng) for e in entries))
        terms.append(term)
    check_sums(report, gates, terms, groups, rng)
    return terms


def carries(entry, term, d, rng):
    """Is the entry's target the term's payload, of the same pre-activation?"""
    k = min(variables(term["payload"]), default=0)
    if not entry["layer"] or not entry["v"].n[d + term["t"]["carried"]] or entry["b"] != term["bs"][k]:
        return False
    if any(less(entry["w"].part(0, d), term["ws"][k]).n):
        return False
    points = [draw(term["lo"], term["hi"], rng) for _ in range(30)]
    return all(abs(real(value(term["payload"], {k: z})) - entry["target"].at(z)) < mpf(10) ** -30 * (1 + abs(z)) for z in points)


def check_sums(report, gates, terms, groups, rng):
    """The terms and an ungated group of entries, in order, add up to each expression."""
    groups = [g for g in groups if not g[0]["layer"]]

    def adds_up(whole, some, group):
        if not some and not group:
            return not variables(whole) and value(whole, Fraction(0)) == 0
        lo, hi = (some[0]["lo"], some[0]["hi"]) if some else (group[0]["lo"], group[0]["hi"])
        n = 1 + max(variables(whole) | {len(t["ws"]) - 1 for t in some})
        if any(len(t["ws"]) != n or t["v"].n != some[0]["v"].n for t in some):
            return False
        for e in group if some else []:
            k = e["r"]["pre_activation"]
            if any(less(e["v"], some[0]["v"].padded(len(e["v"].n))).n):
                return False
            if k >= n or e["b"] != some[0]["bs"][k] or any(less(e["w"].part(0, len(some[0]["ws"][k].n)), some[0]["ws"][k]).n):
                return False
        rest = Parser(group[0]["r"]["expression"]).parse() if group else ("const", Fraction(0))
        if max(variables(rest), default=0) >= n:
            return False
        for i in range(80):
            z = [draw(lo, hi, rng) for _ in range(n)]
            if i % 2 and some:
                # On a condition's edge, or near.
                ell = rng.choice(rng.choice(some)["conditions"])
                k = rng.choice([k for k in range(n) if ell[0][k]] or [None])
                if k is not None:
                    z[k] += (rng.choice((-1, 0, 1)) * Fraction(1, 10**6) - at(ell, z)) / ell[0][k]
            have = real(value(rest, z)) + mp.fsum(real(value(t["payload"], z)) for t in some if all(at(x, z) > 0 for x in t["conditions"]))
            if abs(have - real(value(whole, z))) > mpf(10) ** -30 * (1 + abs(have)):
                return False
        return True

    def explain(j, i, g):
        """Can expressions from j on be made of the terms from i on and the groups from g on?"""
        if j == len(gates["expressions"]):
            return i == len(terms)
        e = gates["expressions"][j]
        whole = Parser(e["expression"]).parse()
        for stop in range(i, len(terms) + 1):
            if stop > i and terms[stop - 1]["t"]["name"] != e["name"]:
                break
            for k in [None, *(k for k in range(g, len(groups)) if groups[k][0]["r"]["name"] == e["name"])]:
                group = [] if k is None else groups[k]
                if adds_up(whole, terms[i:stop], group) and explain(j + 1, stop, g if k is None else k + 1):
                    return True
        return False

    for e in gates["expressions"]:
        fields(e, "name expression", "gates.expressions")
    report.true("gates", "terms and ungated parts add up to the expressions", explain(0, 0, 0))


# ---- claims about x ------------------------------------------------------------------------------------------------


class Frame:
    """Residuals on which affine functions of x, (row, offset) in order of importance, take wanted values."""

    def __init__(self, functions, fills, R, d):
        self.R, self.d, self.basis, self.lines = mpf(R), d, [], []
        for row, offset in functions:
            inner, left = self.split(row)
            size = left.norm()
            # A function that depends on those before it is left to them.
            dependent = size <= mpf(10) ** -9 * row.norm()
            self.lines.append((inner, None if dependent else size, real(offset)))
            if not dependent:
                self.basis.append(combine([(1 / size, left)], d).short())
        rest = [self.split(f)[1] for f in fills]
        self.fills = [combine([(1 / f.norm(), f)], d).short() for f in rest if f.norm() > 0]

    def split(self, row):
        """Coordinates in the basis, and what is left."""
        inner, left = [], row
        for q in self.basis:
            inner.append(left.dot(q))
            left = combine([(Fraction(1), left), (-real(inner[-1]), q)], self.d)
            left = left if left.q < 1 << 600 else Vec([(a << 500) // left.q for a in left.n], 1 << 500)
        return [real(x) for x in inner], left

    def residual(self, wanted, fill, share=1):
        """x with the functions at `wanted` as far as R allows; the rest of the norm along a fill, by its number or ~number for its negative."""
        c, room = [], self.R**2 * (1 - mpf(10) ** -30)
        for (inner, size, offset), t in zip(self.lines, wanted):
            if size is None:
                continue
            k = (real(t) - offset - mp.fsum(a * b for a, b in zip(inner, c))) / size
            k = max(min(k, mp.sqrt(room)), -mp.sqrt(room))
            c.append(k)
            room = max(room - k * k, mpf(0)) * (1 - mpf(10) ** -30)
        pairs = list(zip(c, self.basis))
        if self.fills and fill is not None:
            sign, fill = (-1, ~fill) if fill < 0 else (1, fill)
            pairs.append((sign * share * mp.sqrt(room), self.fills[fill % len(self.fills)]))
        return combine(pairs, self.d).short()


def check_rounding(report, c, entries, terms, blocks, rng):
    """The claims about x: on residuals with ‖x‖ ≤ R that reach into every response's range, its bands and knees."""
    R, d, g = c["norm"], c["hidden_size"], c["between"]
    fields(c["total"], "constant_error outside hull", "total")
    constant = combine([(e["stack"].constant, e["v"]) for e in entries if not e["layer"]], d + g)
    report.check("total", "constant_error", less(blocks[0].down_bias, constant).norm(), mpf(c["total"]["constant_error"]))
    for e in entries:
        block, k = blocks[e["layer"]], None
        reads = [row for i in e["units"] for row in ([block.gate[i], block.up[i]] if block.up else [block.gate[i]])]
        report.true(e["place"], "its rows read nothing between the layers", not any(any(row.n[d:]) for row in reads))
        for i, (w, *_) in enumerate(e["stack"].neurons):
            if w and (k is None or abs(w) >= abs(e["stack"].neurons[k][0])):
                k = i
        e["shift"] = Vec([0] * d, 1)
        if k is not None:
            beta = float(e["stack"].neurons[k][0])
            row = [Fraction(a, block.gate[e["units"][k]].q) for a in block.gate[e["units"][k]].n[:d]]
            e["shift"] = Vec.of([(float(a) - beta * float(Fraction(w, e["w"].q))) / beta for a, w in zip(row, e["w"].n)])
        there = [j for j, _ in c["reading"]["constants"]]
        n = e["shift"].n
        elsewhere = Vec([0 if j in there else a for j, a in enumerate(n)], e["shift"].q).norm() * R
        apart = elsewhere + mpf(c["reading"]["bound"]) * real(Fraction(sum(abs(n[j]) for j in there), e["shift"].q))
        report.check(e["place"], "delta_rows", min(e["shift"].norm() * R, apart), mpf(e["r"]["rounding"]["delta_rows"]))
    scale = [Fraction(s) for s in c["reading"]["scale"]]
    constants = [(j, Fraction(C)) for j, C in c["reading"]["constants"]]
    bound, rounding = Fraction(c["reading"]["bound"]), Fraction(c["reading"]["rounding"])
    chosen = list(residuals(c, entries, terms, blocks, rng))
    if len(chosen) > AT_MOST:
        chosen = rng.sample(chosen, AT_MOST)
    for x in chosen:
        if real(x.dot(x)) > mpf(R) ** 2:
            raise AssertionError("a residual beyond the norm")
        n, s = list(x.n), rng.choice([*scale, scale[0] + (scale[1] - scale[0]) * Fraction(rng.random())])
        for j, _ in constants:
            n[j] = max(min(n[j], math.floor(bound * x.q)), math.ceil(-bound * x.q))
        x = Vec(n, x.q)
        # s(x + C + tau) - C: what a row reads of C is taken out of its bias.
        handed = combine([(s, x)], d)
        if constants:
            extra = {j: (s - 1) * C + s * rng.choice((-1, 0, 1)) * rounding * abs(C) for j, C in constants}
            q = math.lcm(*(e.denominator for e in extra.values()))
            extra = Vec([int(extra.get(j, 0) * q) for j in range(d)], q)
            handed = combine([(Fraction(1), handed), (Fraction(1), extra)], d)
        check_at(report, c, entries, terms, blocks, x, handed)


def residuals(c, entries, terms, blocks, rng):
    R, d = c["norm"], c["hidden_size"]
    noise = lambda: Vec.of([rng.gauss(0, 1) for _ in range(d)])
    random_end = lambda lo, hi: rng.choice((lo, hi, draw(lo, hi, rng)))

    def bound(w, b, lo, hi):
        """What z can be, in the domain and within the norm."""
        least_, most = real(b) - mpf(R) * w.norm(), real(b) + mpf(R) * w.norm()
        return float(least_ if lo is None else max(least_, real(lo))), float(most if hi is None else min(most, real(hi)))

    yield Vec([0] * d, 1)
    for e in entries:
        lo, hi = e["target"].lo, e["target"].hi
        w = e["w"].part(0, d)
        if not any(w.n):
            yield Frame([], [noise()], R, d).residual([], 0)
            continue
        # The rest of the norm: noise, or a direction in which rounding hurts most.
        block = blocks[e["layer"]]
        rows = [less(block.gate[i].part(0, d), combine([(n[0], w)], d)) for i, n in zip(e["units"], e["stack"].neurons)]
        frame = Frame([(w, e["b"])], [noise(), e["shift"], *rows], R, d)
        band = Fraction(e["r"]["certificate"]["delta"]) + Fraction(e["r"]["rounding"]["delta_rows"])
        wanted = [lo, hi, *e["target"].knots]
        wanted += [j + s * band * k for j in e["target"].jumps for s in (-1, 1) for k in (1 + Fraction(1, 10**9), 2, Fraction(rng.random()))]
        wanted += [Fraction(rng.uniform(float(lo), float(hi))) for _ in range(RESIDUALS)]
        wanted += [Fraction(float((u - n[1]) / n[0])) for n in e["stack"].neurons if n[0] for u in (-1, 1)]
        for z in wanted:
            fill = rng.randrange(len(frame.fills))
            yield frame.residual([z], fill)
            yield frame.residual([z], ~fill)
    for t in terms:
        ws, slopes = t["ws"], [Fraction(c["gates"]["slopes"][q]) for q in t["t"]["guards"]]
        conditions = [(combine(list(zip(k, ws)), d), at((k, o), t["bs"])) for k, o in t["conditions"]]
        used = sorted(range(len(ws)), key=lambda k: k not in variables(t["payload"]))
        functions = conditions + [(ws[k], t["bs"][k]) for k in used]
        first = blocks[1].h - len(c["gates"]["slopes"])
        fills = [less(blocks[1].gate[first + q].part(0, d), combine([(-s, row)], d)) for q, s, (row, _) in zip(t["t"]["guards"], slopes, conditions)]
        up = form(t["payload"], len(ws))
        if up is not None:
            row = combine(list(zip(up[0], ws)), d)
            fills += [less(combine([(Fraction(t["t"]["open"]), combine([(Fraction(1), blocks[0].up[i].part(0, d))], d))], d), row) for i in t["units"][:1]]
        frame = Frame(functions, [noise(), *fills], R, d)
        ranges = [bound(w, b, t["lo"], t["hi"]) for w, b in functions[len(conditions) :]]
        for i in range(TERM_RESIDUALS):
            wanted, on = [], i
            for (row, o), s, band in zip(conditions, slopes, t["f"]["bands"]):
                sign, on = (1, on // 2) if on % 2 == 0 else (-1, on // 2)
                knee, near = Fraction(t["t"]["open"]) / s, Fraction(rng.uniform(0.5, 1.5)) / s  # where σ has its minimum
                inside = rng.choice((knee * Fraction(2 * rng.random()), knee / 2, near if sign > 0 else knee + near))
                edge = Fraction(band) * (1 + Fraction(1, 10**9)) if band else inside
                wanted.append(sign * rng.choice((edge, edge, edge, inside, inside, Fraction(band) * Fraction(rng.random()), Fraction(10 ** rng.uniform(-3, 2)))))
            for lo, hi in ranges:
                wanted.append(random_end(lo, hi))
            fill = rng.randrange(len(frame.fills))
            yield frame.residual(wanted, rng.choice((fill, ~fill)), rng.choice((1, 1, 1, mpf(rng.random()))))


def check_at(report, c, entries, terms, blocks, x, handed):
    d, g, total = c["hidden_size"], c["between"], c["total"]
    one, X = Fraction(1), handed.padded(d + g)
    inputs, hidden, changed = {}, {}, Vec([0] * (d + g), 1)
    for layer in reversed(range(len(blocks))):
        inputs[layer], hidden[layer] = X, blocks[layer].hidden(X)
        change = blocks[layer].change(hidden[layer])
        changed = combine([(one, changed), (one, change)], d + g)
        X = combine([(one, X), (one, change)], d + g)
    inside_all, off_all, wish, segments = True, True, [], []
    for e in entries:
        claim, sigma_units = e["r"]["rounding"], hidden[e["layer"]]
        z = e["w"].part(0, d).dot(x) + e["b"]
        if (e["lo"] is not None and z < e["lo"]) or (e["hi"] is not None and e["hi"] < z):
            inside_all = False
            continue
        a0, outs = e["stack"].constant, [n[2] for n in e["stack"].neurons]
        scalar = a0 + sum((a * sigma_units[i] for a, i in zip(outs, e["units"])), Fraction(0))
        response = combine([(a0, e["v"]), *((sigma_units[i], blocks[e["layer"]].down[i]) for i in e["units"])], d + g)
        shifted = e["w"].part(0, d).dot(handed) + e["b"] + e["shift"].dot(handed)
        report.check(e["place"], "delta_rows, at a residual", abs(real(shifted - z)), mpf(claim["delta_rows"]))
        report.check(e["place"], "epsilon_rows", abs(real(scalar) - e["stack"](shifted)), mpf(claim["epsilon_rows"]))
        report.check(e["place"], "column_error", combine([(one, response), (-scalar, e["v"])], d + g).norm(), mpf(claim["column_error"]))
        cz = snap(e["target"].at(z))
        band = Fraction(e["r"]["certificate"]["delta"]) + Fraction(claim["delta_rows"])
        far = e["target"].distance(z)
        off = far is None or far > band
        error = combine([(one, response), (-cz, e["v"])], d + g).norm()
        if off:
            report.check(e["place"], "rounding.outside", error, mpf(claim["outside"]))
        low = high = real(cz)
        if error > claim["hull"] or not off:
            low, high = e["target"].hull(z, band)
            vv = e["v"].dot(e["v"])
            t = snap(min(max(real(response.dot(e["v"]) / vv) if vv else mpf(0), low), high))
            report.check(e["place"], "rounding.hull", combine([(one, response), (-t, e["v"])], d + g).norm(), mpf(claim["hull"]))
        if not e["layer"]:
            off_all &= off
            wish.append((cz, e["v"]))
            segments.append((low, high, e["v"]))
    y = inputs[0].part(d)
    for t in terms:
        f, place = t["f"], t["place"]
        z = [w.dot(x) + b for w, b in zip(t["ws"], t["bs"])]
        if any((t["lo"] is not None and q < t["lo"]) or (t["hi"] is not None and t["hi"] < q) for q in z):
            inside_all = False
            continue
        ells = [at(q, z) for q in t["conditions"]]
        on, off = all(q > 0 for q in ells), all(abs(q) > band for q, band in zip(ells, f["bands"]) if band)
        p, v = snap(real(value(t["payload"], z))), t["v"].padded(d + g)
        report.check(place, "payload", abs(real(p)), mpf(f["payload"]))
        written = combine([(hidden[0][i], blocks[0].down[i]) for i in t["units"]], d + g)
        error = combine([(one, written), (-p if on else Fraction(0), v)], d + g).norm()
        if off:
            report.check(place, "a term's outside", error, mpf(f["outside"]))
        vv = v.dot(v)
        along = written.dot(v) / vv if vv else Fraction(0)
        along = min(max(along, min(p, 0)), max(p, 0))
        report.check(place, "a term's hull", combine([(one, written), (-along, v)], d + g).norm(), mpf(f["hull"]))
        opening = Fraction(t["t"]["open"])
        factor = real(blocks[0].sigma(opening - sum(Fraction(y.n[q], y.q) for q in t["t"]["guards"]))) / real(opening)
        report.check(place, "overshoot of the factor", max(-factor, factor - 1, mpf(0)), mpf(f["overshoot"]))
        # Near a condition without a band the factor is no indicator.
        if off and any(f["bands"]) and all(abs(q) * s > 2 * opening + 128 for q, s in zip(ells, (Fraction(c["gates"]["slopes"][q]) for q in t["t"]["guards"]))):
            report.check(place, "factor", abs(factor - on), mpf(f["factor"]))
        off_all &= off
        wish.append((p if on else Fraction(0), v))
        segments.append((min(real(p), mpf(0)), max(real(p), mpf(0)), v))
    if not inside_all:
        return
    if terms:
        report.check("gates", "reach", y.norm(), mpf(c["gates"]["reach"]))
        leak = abs(real(blocks[0].sigma(Fraction(128))) / 128 - 1)
        report.check("gates", "y is 0 again", X.part(d).norm(), y.norm() * (leak + mpf(10) ** -50))
    error = less(changed.part(0, d), combine(wish, d + g).part(0, d)).norm()
    if off_all:
        report.check("total", "total.outside", error, mpf(total["outside"]))
    if error > total["hull"]:
        error = distance(changed.part(0, d), [(low, high, v.part(0, d)) for low, high, v in segments], d)
    report.check("total", "total.hull", error, mpf(total["hull"]))


def distance(point, segments, d):
    """A lower bound of the distance from the sum of the segments { t·v : low ≤ t ≤ high }: that along one direction."""
    t = [low for low, _, _ in segments]
    gram = [[float(a.dot(b)) for _, _, b in segments] for _, _, a in segments]
    to = [float(point.dot(v)) for _, _, v in segments]
    for _ in range(300):
        for i, (low, high, _) in enumerate(segments):
            if gram[i][i]:
                pull = to[i] - sum(float(t[j]) * gram[i][j] for j in range(len(t)) if j != i)
                t[i] = max(min(mpf(pull / gram[i][i]), high), low)
    left = combine([(Fraction(1), point), *((-q, v) for q, (_, _, v) in zip(t, segments))], d)
    if not any(left.n):
        return mpf(0)
    most = mp.fsum(max(low * k, high * k) for low, high, k in ((low, high, real(left.dot(v))) for low, high, v in segments))
    return (real(left.dot(point)) - most) / left.norm()


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
