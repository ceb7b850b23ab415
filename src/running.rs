//! What a stack computes in f32 arithmetic: a running error analysis with directed bounds.
//!
//! Part of the trusted base, without I/O. f32 numbers are too many to visit. On each of many small cells of z, neuron i's hidden value
//! is off by at most
//!
//! ```text
//! E_s = sup|σ′|·E + error of σ in f32          its gate being off by E (accumulation; rounding of rows)
//! E_h = |u|·E_s + |σ|·E_u + E_s·E_u + 2^−24·(|σ| + E_s)·(|u| + E_u)
//! ```
//!
//! and φ̂ by Σ|a|·E_h. That is how neurons that cancel lose accuracy: |a|·2^−24·|σ(G)| each, however small their sum. Products with
//! an up row that is a power of two, exactly, lose nothing. Source of the method: Higham, *Accuracy and Stability of Numerical
//! Algorithms*, 2nd ed., §3.3.

use crate::activation::Activation;
use crate::arithmetic::{Arithmetic, unit_roundoff};
use crate::exhaust::Unit;
use crate::interval::Interval;
use crate::landscape::{Landscape, Suprema};

/// Cells of each region of the target. What varies is smooth on that scale, but for knees: there a cell takes the worse side.
const CELLS: u32 = 256;

/// Suprema of |computed − exact| for the sum of the neurons, and of Σ|out·h|.
pub fn running(units: &[Unit], source: &Activation, arithmetic: &Arithmetic, landscape: &Landscape) -> Suprema {
    landscape.suprema(CELLS, |z| {
        let sum = units
            .iter()
            .map(|u| hidden(u, source, arithmetic, z))
            .fold([Interval::ZERO; 2], |[e, m], [x, y]| [e + x, m + y]);
        sum.map(|s| s.hi())
    })
}

/// |out|·E_h and |out|·(|h| + E_h) of one neuron.
fn hidden(unit: &Unit, source: &Activation, arithmetic: &Arithmetic, z: Interval) -> [Interval; 2] {
    let point = Interval::point;
    let times =
        |a: Interval, b: Interval| if a == Interval::ZERO || b == Interval::ZERO { Interval::ZERO } else { a * b };
    let gate = (point(unit.weight) * z + point(unit.bias)).inflate(unit.gate_error);
    let sigma = source.jet(gate);
    let value = point(sigma.v.mag());
    let moved = times(point(sigma.d1.mag()), point(unit.gate_error));
    let off = moved + point(arithmetic.sigma_error(source, gate));
    let (up, up_error, exact) = match unit.up {
        None => (Interval::ONE, Interval::ZERO, true),
        Some((p, q)) => {
            let power = p == 0.0 && unit.up_error == 0.0 && q.abs().log2().fract() == 0.0;
            (point((point(p) * z + point(q)).mag()), point(unit.up_error), power)
        }
    };
    let size = (value + off) * (up + up_error);
    let rounding = if exact { Interval::ZERO } else { size * point(unit_roundoff(arithmetic.stream)) };
    let error = times(up, off) + times(value, up_error) + times(off, up_error) + rounding;
    let out = point(unit.out.abs());
    [times(out, error), times(out, size + rounding)]
}
