//! Two inserted layers: guards and payloads in the first, gates and what needs none in the second.
//!
//! What each of them computes, and why that is the intervention, stands in [`crate::gated`].

use nalgebra::{DMatrix, DVector};

use super::stacks::solve_all;
use super::{Options, Part, PreActivation, Response, Target, lower, parts};
use crate::block::Block;
use crate::derive::{Reading, ResponseClaim};
use crate::error::{At, Error, Result};
use crate::expr::{Affine, Expr};
use crate::format::Format;
use crate::gated::{GatedClaim, REMOVAL, TwoLayerClaim, TwoLayerProof, derive_two};
use crate::gates::{Term, decompose, ratio};
use crate::ridge::split;
use crate::solve::Solution;
use crate::stack::Form;

/// Two blocks with what is proved of them.
#[derive(Clone, Debug)]
pub(super) struct TwoLayers {
    pub(super) first: Block,
    pub(super) second: Block,
    pub(super) claim: TwoLayerClaim,
    pub(super) proof: TwoLayerProof,
    /// for the free claims, then the carried ones: the expression that each is a part of, and its pre-activation
    pub(super) origins: Vec<(Expr, usize)>,
    /// likewise
    pub(super) solutions: Vec<Solution>,
}

/// The steepest guard. Beyond it the transition is narrower than what f32 resolves of a pre-activation of 100.
const STEEPEST: f64 = (1u32 << 20) as f64;
/// The largest value in a guard: constants of the stream, 2^54 at most, must dominate it by 2^12.5.
const LARGEST_GUARD: f64 = (1u64 << 38) as f64;
/// Bounds on c, the gate where every condition holds: σ must be saturated there, and σ's dip below 0 overshoots by 0.28/c.
const OPEN: [f64; 2] = [32.0, 1024.0];

/// Has the intervention anything that a second layer serves?
pub(super) fn wanted(target: &Target) -> bool {
    target.responses.iter().any(|r| decompose(&r.expr).is_ok_and(|(_, gated)| !gated.is_empty()))
}

/// Can the host's MLPs compute gates at all?
pub(super) fn admits(options: &Options) -> bool {
    options.form == Form::Gated && options.biases
}

/// Compiles an intervention into two blocks.
///
/// Errors: a host that is not gated, has no biases, or no bound on ‖x‖; responses that have no gated terms; stream
/// formats that cannot hold the guards.
pub(super) fn compile(
    target: &Target,
    options: &Options,
    d: usize,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<TwoLayers> {
    let Some(norm) = options.norm else {
        return Err(Error::unsupported("two inserted layers need a bound on ‖x‖: what passes between them grows with x")
            .help("give domain.norm (residuals have norms of some hundreds, a sequence's first token often tens of thousands)"));
    };
    if !admits(options) {
        let lacks = if options.form == Form::Plain { "form is plain" } else { "biases is false" };
        let error = Error::unsupported(format!("two inserted layers need a gated host with biases, and {lacks}")).help(
            "set form = \"gated\" and biases = true in [host], if the model is like that; else ask for conditions on the entry's own \
             pre-activation only, which one layer can do",
        );
        // What one layer cannot do at all says more than a jump that it can.
        let couples = target.responses.iter().find(|r| split(&r.expr).is_err());
        return Err(match couples {
            Some(r) => error.at(r.name.clone()),
            None => error,
        });
    }
    let mut free = Target::default();
    let mut terms: Vec<(&Response, Term)> = Vec::new();
    for r in &target.responses {
        let (ungated, gated) = decompose(&r.expr).at(|| r.name.clone())?;
        free.responses.extend(ungated.map(|expr| Response { expr, ..r.clone() }));
        terms.extend(gated.into_iter().map(|t| (r, t)));
    }
    if let Some((r, _)) = terms.iter().find(|(r, _)| r.band <= 0.0) {
        return Err(Error::input("a gate needs a band around its threshold").help("give band > 0").at(r.name.clone()));
    }
    let guards = Guards::new(&terms, options, norm)?;
    let mut payloads = Payloads::default();
    let carried_by: Vec<Option<usize>> = terms.iter().map(|(r, t)| payloads.add(r, t)).collect();
    let (n, g) = (guards.rows.len(), guards.rows.len() + payloads.responses.len());

    // Payloads are responses of the first block that write to coordinates of their own.
    for (j, r) in payloads.responses.iter_mut().enumerate() {
        r.pre_activations.iter_mut().for_each(|p| p.w.resize(d + g, 0.0));
        r.write = vec![0.0; d + g];
        r.write[d + n + j] = 1.0;
    }
    let carried = Target { responses: payloads.responses };
    let (carried_parts, free_parts) = (parts(&carried)?, parts(&free)?);
    let all = carried_parts.len() + free_parts.len();
    let stacks = |found: Vec<(Solution, _)>| found.into_iter().map(|f| f.0).collect::<Vec<_>>();
    let carried_solutions = stacks(solve_all(&carried_parts, options, d + g, &|k, _| progress(k, all))?);
    let free_solutions = stacks(solve_all(&free_parts, options, d, &|k, _| progress(carried_parts.len() + k, all))?);
    let (first, carried_claims) = lower(&carried_parts, &carried_solutions, options, d + g)?;
    let (second, mut free_claims) = lower(&free_parts, &free_solutions, options, d)?;
    for c in &mut free_claims {
        c.w.resize(d + g, 0.0);
        c.v.resize(d + g, 0.0);
    }

    let first = guards.append(&first, options, d, g);
    let (second, gated) = gates(second, &terms, &guards, &carried_by, options, d, g)?;
    if let Some(name) =
        [("first", &first), ("second", &second)].iter().find(|(_, b)| !is_finite(b)).map(|(name, _)| name)
    {
        return Err(Error::unsupported(format!(
            "a weight of the {name} of two layers exceeds the range of {}",
            options.format
        ))
        .help("choose a wider number format, or smaller values"));
    }
    let claim = TwoLayerClaim {
        live: d,
        guards: guards.rows.iter().map(|r| r.slope).collect(),
        carried: carried_claims,
        free: free_claims,
        gated,
    };
    let proof = derive_two(&first, &second, &claim, norm, &Reading::exact())?;
    if proof.reach > options.format.largest() / 2.0 {
        return Err(Error::unsupported(format!("the guards reach {:.0}, beyond {}", proof.reach, options.format))
            .help("exclude tokens of large norm: give a smaller domain.norm"));
    }
    let origin = |p: &Part<'_>| (p.response.expr.clone(), p.index);
    let origins = free_parts.iter().chain(&carried_parts).map(origin).collect();
    let solutions = free_solutions.into_iter().chain(carried_solutions).collect();
    Ok(TwoLayers { first, second, claim, proof, origins, solutions })
}

/// Continuous payloads that are not affine, each once.
#[derive(Default)]
struct Payloads {
    responses: Vec<Response>,
}

impl Payloads {
    /// The index of the payload that a term needs carried.
    fn add(&mut self, r: &Response, t: &Term) -> Option<usize> {
        if t.payload.affine().is_some() {
            return None;
        }
        let index = crate::ridge::indices(&t.payload).first().copied().unwrap_or(0);
        let expr = t.payload.substitute(&|_| Expr::z());
        let pre_activations: Vec<PreActivation> = r.pre_activations.get(index).cloned().into_iter().collect();
        let same = |q: &Response| q.expr == expr && q.pre_activations == pre_activations && q.domain == r.domain;
        Some(self.responses.iter().position(same).unwrap_or_else(|| {
            let name = format!("{} (behind a gate)", r.name);
            self.responses.push(Response {
                name,
                expr,
                pre_activations,
                write: Vec::new(),
                domain: r.domain,
                band: 0.0,
            });
            self.responses.len() - 1
        }))
    }
}

/// ℓ(x) = ⟨w, x⟩ + b, the slope of its guard, and which terms' conditions it is.
struct Guard {
    w: Vec<f64>,
    b: f64,
    slope: f64,
}

struct Guards {
    rows: Vec<Guard>,
    /// for each term, the guards of its conditions
    used: Vec<Vec<usize>>,
}

impl Guards {
    fn new(terms: &[(&Response, Term)], options: &Options, norm: f64) -> Result<Guards> {
        let mut rows: Vec<Guard> = Vec::new();
        let mut used = Vec::with_capacity(terms.len());
        for (r, t) in terms {
            let mut own = Vec::with_capacity(t.conditions.len());
            for c in &t.conditions {
                let form = c.affine().ok_or_else(|| Error::input(format!("{c} is not affine")))?;
                let (w, b) = combine(&form, &r.pre_activations);
                let slope = slope(&form, r, options, norm);
                let q = rows.iter().position(|g| g.w == w && g.b == b).unwrap_or_else(|| {
                    rows.push(Guard { w, b, slope });
                    rows.len() - 1
                });
                rows[q].slope = rows[q].slope.min(slope);
                own.push(q);
            }
            used.push(own);
        }
        Ok(Guards { rows, used })
    }

    /// Appends the guards' hidden units: gate −K·ℓ, up 1, written to coordinate d + q.
    fn append(&self, block: &Block, options: &Options, d: usize, g: usize) -> Block {
        let mut units = Units::new(block, d + g);
        for (q, guard) in self.rows.iter().enumerate() {
            let gate: Vec<f64> = guard.w.iter().map(|w| options.format.round(-guard.slope * w)).collect();
            let gate_bias = options.round_bias(-guard.slope * guard.b);
            units.push(&gate, gate_bias, &[], 1.0, &[(d + q, 1.0)]);
        }
        units.block(block, options)
    }
}

/// Σ c_k·(w_k, b_k) + constant
fn combine(form: &Affine, pre: &[PreActivation]) -> (Vec<f64>, f64) {
    let d = pre.first().map_or(0, |p| p.w.len());
    let (mut w, mut b) = (vec![0.0; d], crate::number::Number::from(form.constant.clone()).to_f64());
    for (k, c) in &form.coefficients {
        let c = crate::number::Number::from(c.clone()).to_f64();
        w.iter_mut().zip(&pre[*k].w).for_each(|(w, x)| *w += c * x);
        b += c * pre[*k].b;
    }
    (w, b)
}

/// The largest admissible K, a power of two: rows within the format, guards within what the stream's constants dominate.
fn slope(form: &Affine, r: &Response, options: &Options, norm: f64) -> f64 {
    let (w, b) = combine(form, &r.pre_activations);
    let widest = w.iter().fold(b.abs(), |a, x| a.max(x.abs()));
    let length = w.iter().map(|x| x * x).sum::<f64>().sqrt();
    let reach = length * norm + b.abs();
    let most = if options.format == Format::F16 { options.format.largest() / 128.0 } else { LARGEST_GUARD };
    let limits = [
        STEEPEST,
        options.budget.max_weight,
        most / reach.max(1e-30),
        options.format.largest() / (2.0 * widest.max(1e-30)),
    ];
    f64::exp2(limits.into_iter().fold(f64::INFINITY, f64::min).log2().floor())
}

/// Appends gated units and removal units to the block of the ungated responses.
fn gates(
    free: Block,
    terms: &[(&Response, Term)],
    guards: &Guards,
    carried_by: &[Option<usize>],
    options: &Options,
    d: usize,
    g: usize,
) -> Result<(Block, Vec<GatedClaim>)> {
    let n = guards.rows.len();
    let mut units = Units::new(&free, d + g);
    let mut claims = Vec::with_capacity(terms.len());
    // In 16 bits rows and columns come in a high and a low part.
    let in_parts = options.format.bytes() == 2;
    let split = |x: f64| {
        let high = options.format.round(x);
        (high, if in_parts { options.format.round(x - high) } else { 0.0 })
    };
    for (((r, t), own), carried) in terms.iter().zip(&guards.used).zip(carried_by) {
        let steepness = own.iter().map(|q| guards.rows[*q].slope).fold(f64::INFINITY, f64::min);
        // A large c overshoots less in a band; a small one bends less where the payload vanishes with its condition.
        let payload = t.payload.affine();
        let vanishes = |c: &Expr| payload.as_ref().is_some_and(|p| c.affine().is_some_and(|c| ratio(p, &c).is_some()));
        let most = if t.conditions.iter().any(vanishes) { OPEN[0] } else { OPEN[1] };
        let open = f64::exp2((steepness * r.band / 4.0).log2().floor()).clamp(OPEN[0], most);
        let carried = carried.map(|j| n + j);
        let mut gate = vec![0.0; d + g];
        own.iter().for_each(|q| gate[d + q] = -1.0);
        let (columns, low_columns): (Vec<f64>, Vec<f64>) = r.write.iter().map(|v| split(*v)).unzip();
        let columns: Vec<(usize, f64)> = columns.into_iter().enumerate().collect();
        let low_columns: Vec<(usize, f64)> = low_columns.into_iter().enumerate().collect();
        let start = units.len();
        match carried {
            Some(q) => {
                let mut up = vec![0.0; d + g];
                up[d + q] = 1.0 / open;
                units.push(&gate, open, &up, 0.0, &columns);
                if in_parts {
                    units.push(&gate, open, &up, 0.0, &low_columns);
                }
            }
            None => {
                let form = t.payload.affine().ok_or_else(|| Error::input(format!("{} is not affine", t.payload)))?;
                let (w, b) = combine(&form, &r.pre_activations);
                let (row, low_row): (Vec<f64>, Vec<f64>) = w.iter().map(|w| split(w / open)).unzip();
                let bias = options.round_bias(b / open);
                units.push(&gate, open, &row, bias, &columns);
                if in_parts {
                    units.push(&gate, open, &row, bias, &low_columns);
                    units.push(&gate, open, &low_row, 0.0, &columns);
                }
            }
        }
        claims.push(GatedClaim {
            name: r.name.clone(),
            pre_activations: r.pre_activations.clone(),
            term: t.clone(),
            v: r.write.clone(),
            domain: r.domain,
            delta: r.band,
            tolerance: options.budget.tolerance,
            guards: own.clone(),
            carried,
            units: start..units.len(),
            open,
        });
    }
    for q in 0..g {
        let mut up = vec![0.0; d + g];
        up[d + q] = 1.0 / REMOVAL;
        units.push(&[], REMOVAL, &up, 0.0, &[(d + q, -1.0)]);
    }
    Ok((units.block(&free, options), claims))
}

fn is_finite(b: &Block) -> bool {
    let rows = [Some(&b.gate), b.up.as_ref(), Some(&b.down)];
    let biases = [&b.gate_bias, &b.up_bias, &b.down_bias];
    rows.into_iter().flatten().all(|m| m.iter().all(|x| x.is_finite()))
        && biases.into_iter().flatten().all(|v| v.iter().all(|x| x.is_finite()))
}

/// Hidden units in the making.
struct Units {
    gate: Vec<Vec<f64>>,
    gate_bias: Vec<f64>,
    up: Vec<Vec<f64>>,
    up_bias: Vec<f64>,
    down: Vec<Vec<f64>>,
    width: usize,
}

impl Units {
    /// Those of a block that is no wider.
    fn new(block: &Block, width: usize) -> Units {
        let rows = |m: &DMatrix<f64>| -> Vec<Vec<f64>> {
            m.row_iter().map(|r| padded(r.iter().copied().collect(), width)).collect()
        };
        let bias = |b: &Option<DVector<f64>>| {
            b.as_ref().map_or(vec![0.0; block.intermediate_size()], |b| b.iter().copied().collect())
        };
        Units {
            gate: rows(&block.gate),
            gate_bias: bias(&block.gate_bias),
            up: block.up.as_ref().map(rows).unwrap_or_default(),
            up_bias: bias(&block.up_bias),
            down: block.down.column_iter().map(|c| padded(c.iter().copied().collect(), width)).collect(),
            width,
        }
    }

    fn len(&self) -> usize {
        self.gate.len()
    }

    fn push(&mut self, gate: &[f64], gate_bias: f64, up: &[f64], up_bias: f64, column: &[(usize, f64)]) {
        self.gate.push(padded(gate.to_vec(), self.width));
        self.gate_bias.push(gate_bias);
        self.up.push(padded(up.to_vec(), self.width));
        self.up_bias.push(up_bias);
        let mut down = vec![0.0; self.width];
        column.iter().for_each(|(k, x)| down[*k] = *x);
        self.down.push(down);
    }

    fn block(self, like: &Block, options: &Options) -> Block {
        let (h, width) = (self.len(), self.width);
        let rows = |m: &[Vec<f64>]| DMatrix::from_fn(h, width, |i, k| m[i][k]);
        let constant = like.down_bias.as_ref().map_or(Vec::new(), |b| b.iter().copied().collect());
        Block {
            source: options.source.clone(),
            form: Form::Gated,
            format: options.format,
            bias_format: options.bias_format(),
            gate: rows(&self.gate),
            gate_bias: Some(DVector::from_vec(self.gate_bias)),
            up: Some(rows(&self.up)),
            up_bias: Some(DVector::from_vec(self.up_bias)),
            down: DMatrix::from_fn(width, h, |k, i| self.down[i][k]),
            down_bias: Some(DVector::from_vec(padded(constant, width))),
        }
    }
}

fn padded(mut v: Vec<f64>, width: usize) -> Vec<f64> {
    v.resize(width, 0.0);
    v
}

impl TwoLayers {
    /// Everything that has a stack, in the order of `origins`: first the free responses, then the payloads.
    pub(super) fn stacks(&self) -> impl Iterator<Item = &ResponseClaim> {
        self.claim.free.iter().chain(&self.claim.carried)
    }
}
