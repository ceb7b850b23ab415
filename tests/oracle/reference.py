#!/usr/bin/env python3
"""Prints tests/oracle/reference.txt: activations and their derivatives to 45 digits, for checking the oracle itself.

    python3 tests/oracle/reference.py > tests/oracle/reference.txt     (mpmath 1.3, some seconds)

The values come from the textbook formulas alone, at 800 digits so that the cancellation in the tails does no harm;
the derivatives are numerical (mpmath.diff), so that no formula for a derivative is shared with anything it checks.
A line is: name[:parameter]  t  value  first derivative  second derivative; every t is a float, written exactly.
What is below 1e-700 prints as 0.
"""

from mpmath import *

mp.dps = 800
Q = lambda p, q=1: mpf(p) / mpf(q)


def relu6(t):
    return min(max(t, mpf(0)), mpf(6))


def elu(alpha, gamma=mpf(1), scale=mpf(1)):
    return lambda t: scale * t if t > 0 else scale * alpha * (exp(t / gamma) - 1)


def swish(beta):
    return lambda t: t / (1 + exp(-beta * t))


FUNCTIONS = {
    "relu": lambda t: max(t, mpf(0)),
    "leaky_relu:0.01": lambda t: max(t, t * Q(1, 100)),
    "relu2": lambda t: max(t, mpf(0)) ** 2,
    "relu6": relu6,
    "hardtanh": lambda t: min(max(t, mpf(-1)), mpf(1)),
    "hardsigmoid": lambda t: relu6(t + 3) / 6,
    "hardswish": lambda t: t * relu6(t + 3) / 6,
    "silu": swish(mpf(1)),
    "swish:2.5": swish(Q(5, 2)),
    "quick_gelu": swish(Q(1702, 1000)),
    "gelu": lambda t: t * erfc(-t / sqrt(2)) / 2,
    "gelu_tanh": lambda t: t * (1 + tanh(sqrt(2 / pi) * (t + Q(44715, 1000000) * t ** 3))) / 2,
    "mish": lambda t: t * tanh(log(1 + exp(t))),
    "softplus": lambda t: log(1 + exp(t)),
    "elu:1": elu(mpf(1)),
    "elu:0.3": elu(Q(3, 10)),
    "selu": elu(mpf("1.6732632423543772848170429916717"), mpf(1), mpf("1.0507009873554804934193349852946")),
    "celu:0.7": elu(Q(7, 10), Q(7, 10)),
    "sigmoid": lambda t: 1 / (1 + exp(-t)),
    "tanh": tanh,
    "softsign": lambda t: t / (1 + abs(t)),
    "abs": abs,
    "identity": lambda t: t,
}

POINTS = ["-600", "-37", "-20.5", "-8", "-4.25", "-2.75", "-1.1875", "-0.71875", "-0.125", "-0x1p-20", "0x1p-40",
          "0.0625", "0.65625", "1.4375", "2.25", "5.5", "7.75", "13", "36.5", "250"]


def point(text):
    return mpf(float.fromhex(text)) if "0x" in text else mpf(text)


if __name__ == "__main__":
    tiny = mpf(10) ** -700  # below, 800 digits leave only the noise of cancellation
    for name, f in FUNCTIONS.items():
        for text in POINTS:
            t = point(text)
            # Steps far below the distance to a knot, so that the difference quotient stays on one branch.
            row = [f(t), diff(f, t, 1), diff(f, t, 2)]
            print(name, float(t), *[nstr(x, 45, strip_zeros=True) if abs(x) > tiny else "0" for x in row])
    for x in POINTS:
        if abs(point(x)) < 40:
            print("erfc", float(point(x)), *[nstr(y, 45) for y in (erfc(point(x)), expm1(point(x)), log1p(abs(point(x))))])
