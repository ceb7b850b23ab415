//! Whatever the certifier proves must hold for a judge in 320-bit arithmetic that shares no code with it.
//!
//! Targets, stacks, domains and bands are random, and the stacks are not the solver's: the certifier may not rely on
//! being handed sensible ones. Seeds are fixed; `PROPTEST_RNG_SEED` and `PROPTEST_CASES` widen the search.

mod oracle;

use neurograft::canonical::Canonical;
use neurograft::certify::{Certificate, Claim, Domain, Figures, Status, certify};
use neurograft::expr::Expr;
use neurograft::format::Format;
use neurograft::number::Number;
use neurograft::rational::Rational;
use neurograft::ridge::split;
use neurograft::solve::{Budget, Request, solve};
use neurograft::stack::{Form, Neuron, Stack};
use oracle::Big;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

fn config(cases: u32) -> ProptestConfig {
    let wide = std::env::var("PROPTEST_CASES").is_ok();
    let mut c = ProptestConfig { failure_persistence: None, max_shrink_iters: 600, ..ProptestConfig::default() };
    if !wide {
        c.cases = cases;
    }
    if std::env::var("PROPTEST_RNG_SEED").is_err() {
        c.rng_seed = RngSeed::Fixed(0x6e65_7572_6f67_7261);
    }
    c
}

// ------------------------------------------------------------------------------------------------------- evaluation

fn big(n: &Number) -> Big {
    // Decimals are rounded in the last of 320 bits; floats need not be.
    if n.is_f64() { Big::exact(n.to_f64()) } else { Big::parse(&n.to_string()) }
}

/// φ(z), by the definitions in the documentation of `Expr`.
fn value(e: &Expr, z: &[Big]) -> Big {
    let v = |e: &Expr| value(e, z);
    let zero = || Big::from(0);
    match e {
        Expr::Const(c) => big(c),
        Expr::Pre(k) => z[*k].clone(),
        Expr::Add(a, b) => v(a) + v(b),
        Expr::Mul(a, b) => v(a) * v(b),
        Expr::Neg(a) => -v(a),
        Expr::Scale(k, a) => big(k) * v(a),
        Expr::Relu(a) => v(a).max(&zero()),
        Expr::Step(a) => Big::from(i64::from(v(a) > 0.0)),
        Expr::JumpRelu(a, t) => {
            let x = v(a);
            if x > big(t) { x } else { zero() }
        }
        Expr::Clamp(a, lo, hi) => v(a).max(&big(lo)).min(&big(hi)),
        Expr::Min(a, b) => v(a).min(&v(b)),
        Expr::Max(a, b) => v(a).max(&v(b)),
        Expr::Select(c, a, b) => {
            if v(c) > 0.0 {
                v(a)
            } else {
                v(b)
            }
        }
        Expr::Act(act, a) => oracle::activation(&act.to_string(), &v(a)),
    }
}

fn at(e: &Expr, z: &Big) -> Big {
    value(e, std::slice::from_ref(z))
}

/// φ̂(z), and the sum of the terms' magnitudes.
fn stack_at(s: &Stack<f64>, z: &Big) -> (Big, Big) {
    let name = s.source.to_string();
    let mut sum = Big::exact(s.constant);
    let mut size = sum.abs();
    for n in &s.neurons {
        let mut term = Big::exact(n.out) * oracle::activation(&name, &(Big::exact(n.weight) * z + Big::exact(n.bias)));
        if let Some((p, q)) = n.up {
            term = term * (Big::exact(p) * z + Big::exact(q));
        }
        size = size + term.abs();
        sum = sum + term;
    }
    (sum, size)
}

/// Where the expression can have a knot: a superset. Every affine part meets every constant, and every knot of the
/// activation that it is the argument of.
fn knots(e: &Expr) -> Vec<Big> {
    fn walk(e: &Expr, lines: &mut Vec<(Big, Big)>, levels: &mut Vec<Big>) {
        let text = |r: &Rational| big(&Number::from(r.clone()));
        match e {
            Expr::Const(c) | Expr::Scale(c, _) | Expr::JumpRelu(_, c) => levels.push(big(c)),
            Expr::Clamp(_, a, b) => levels.extend([big(a), big(b)]),
            Expr::Act(act, _) => levels.extend(oracle::knots(&act.to_string()).iter().map(|k| Big::exact(*k))),
            _ => {}
        }
        if let Expr::Min(a, b) | Expr::Max(a, b) = e
            && let Some(line) = (**a).clone().minus((**b).clone()).affine()
            && let Some(slope) = line.coefficients.get(&0)
        {
            lines.push((text(slope), text(&line.constant)));
        }
        match e.affine() {
            Some(line) => {
                if let Some(slope) = line.coefficients.get(&0) {
                    lines.push((text(slope), text(&line.constant)));
                } else {
                    levels.push(text(&line.constant));
                }
            }
            None => e.children().for_each(|c| walk(c, lines, levels)),
        }
    }
    let (mut lines, mut levels) = (Vec::new(), vec![Big::from(0)]);
    walk(e, &mut lines, &mut levels);
    let mut out: Vec<Big> = Vec::new();
    for (a, b) in &lines {
        for c in levels.iter().flat_map(|c| [c.clone(), -c]) {
            out.push((c - b) / a.clone());
        }
    }
    out.sort_by(|a, b| a.partial_cmp(b).unwrap());
    out.dedup();
    out
}

/// Nothing in the tests happens at this distance from a knot but what happens at the knot.
fn hair() -> Big {
    Big::exact(2f64.powi(-200))
}

/// The knots inside the domain where the two sides differ.
fn jumps(e: &Expr, domain: Domain, knots: &[Big]) -> Vec<Big> {
    let jumping = |k: &&Big| {
        let (l, r) = (*k - &hair(), *k + &hair());
        l >= domain.lo() && r <= domain.hi() && (at(e, &l) - at(e, &r)).abs() > 2f64.powi(-150)
    };
    knots.iter().filter(jumping).cloned().collect()
}

/// May the expression vanish in a way that its pieces do not show?
fn hides(e: &Expr) -> bool {
    fn curved(e: &Expr) -> bool {
        matches!(e, Expr::Act(..)) || e.children().into_iter().any(curved)
    }
    let mixes = matches!(e, Expr::Min(..) | Expr::Max(..) | Expr::Mul(..) | Expr::Relu(_) | Expr::Clamp(..));
    mixes && e.children().into_iter().any(curved) || e.children().into_iter().any(hides)
}

struct Judge<'a> {
    target: &'a Expr,
    stack: &'a Stack<f64>,
    domain: Domain,
    knots: Vec<Big>,
    jumps: Vec<Big>,
}

impl<'a> Judge<'a> {
    fn new(target: &'a Expr, stack: &'a Stack<f64>, domain: Domain) -> Self {
        let knots = knots(target);
        let jumps = jumps(target, domain, &knots);
        Judge { target, stack, domain, knots, jumps }
    }

    fn window(&self, z: &Big, delta: f64) -> (Big, Big) {
        let d = Big::exact(delta);
        let (mut l, mut h) = (z - &d, z + &d);
        if l < self.domain.lo() {
            l = Big::exact(self.domain.lo());
        }
        if h > self.domain.hi() {
            h = Big::exact(self.domain.hi());
        }
        (l, h)
    }

    /// Values of the target on [l, h] at `n` + 1 even points, and at and beside all knots.
    fn samples(&self, l: &Big, h: &Big, n: i64) -> Vec<(Big, Big)> {
        let mut points: Vec<Big> = (0..=n).map(|k| l + (h - l) * Big::from(k) / Big::from(n)).collect();
        for k in &self.knots {
            points.extend([k - &hair(), k.clone(), k + &hair()]);
        }
        points.retain(|z| z >= l && z <= h);
        points.into_iter().map(|z| (z.clone(), at(self.target, &z))).collect()
    }

    /// By how much φ̂ leaves the hull of φ over the window: from samples, zooming in where they say "outside".
    fn outside_hull(&self, z: &Big, y: &Big, delta: f64, allowed: &Big) -> Big {
        let (l, h) = self.window(z, delta);
        let excess = |s: &[(Big, Big)]| {
            let least =
                s.iter().map(|p| &p.1).fold(None::<&Big>, |m, v| Some(m.map_or(v, |m| if v < m { v } else { m })));
            let most =
                s.iter().map(|p| &p.1).fold(None::<&Big>, |m, v| Some(m.map_or(v, |m| if v > m { v } else { m })));
            (least.unwrap() - y).max(&(y - most.unwrap()))
        };
        let mut samples = self.samples(&l, &h, 12);
        if excess(&samples) <= *allowed {
            return Big::from(0);
        }
        samples = self.samples(&l, &h, 400);
        let mut width = (&h - &l) / Big::from(400);
        for _ in 0..140 {
            let now = excess(&samples);
            if now <= *allowed {
                break;
            }
            // The sample nearest to y is where the hull's end must be.
            let near = samples.iter().min_by(|a, b| (&a.1 - y).abs().partial_cmp(&(&b.1 - y).abs()).unwrap()).unwrap();
            let (a, b) = (near.0.clone() - &width, near.0.clone() + &width);
            let (a, b) = (a.max(&l), b.min(&h));
            let more = self.samples(&a, &b, 8);
            samples.extend(more);
            width = width / Big::from(3);
        }
        excess(&samples).max(&Big::from(0))
    }

    /// Everything that the figures say about one point.
    fn check(&self, z: f64, f: &Figures) -> Result<(), String> {
        let zb = Big::exact(z);
        let (y, size) = stack_at(self.stack, &zb);
        let phi = at(self.target, &zb);
        let slack = (size + phi.abs() + Big::from(1)) * Big::parse("1e-60");
        let relative = Big::exact(f.eta) * zb.abs() + &slack;
        let plain = (&y - &phi).abs();
        let bound = Big::exact(f.epsilon) + &relative;
        let say = |what: &str, seen: &Big, claimed: f64| {
            let (y, p) = (y.to_f64(), phi.to_f64());
            Err(format!(
                "{what} at z = {z:e}: {:e} where {claimed:e} is claimed; block {y:e}, target {p:e}",
                seen.to_f64()
            ))
        };
        if plain > bound {
            if f.delta == 0.0 {
                return say("error", &plain, f.epsilon);
            }
            let out = self.outside_hull(&zb, &y, f.delta, &bound);
            if out > bound {
                return say("distance from the hull", &out, f.epsilon);
            }
        }
        if f.delta > 0.0 {
            let delta = Big::exact(f.delta);
            let outside = f.epsilon_outside.ok_or("no epsilon_outside")?;
            let overshoot = f.overshoot.ok_or("no overshoot")?;
            // At a distance of exactly δ the hull alone is claimed.
            let nearest = |least: bool, j: &Big| if least { (&zb - j).abs() > delta } else { (&zb - j).abs() < delta };
            if self.jumps.iter().all(|j| nearest(true, j)) {
                if plain > Big::exact(outside) + &relative {
                    return say("error off the bands", &plain, outside);
                }
            } else if self.jumps.iter().any(|j| nearest(false, j)) {
                let allowed = Big::exact(overshoot) + &relative;
                if plain > allowed {
                    let out = self.outside_hull(&zb, &y, f.delta, &allowed);
                    if out > allowed {
                        return say("overshoot", &out, overshoot);
                    }
                }
            }
        }
        if phi == 0.0 {
            let (l, h) = self.window(&zb, f.delta);
            if self.samples(&l, &h, 8).iter().all(|s| s.1 == 0.0) {
                match f.leak {
                    None => {
                        // At a single point where a smooth target is 0 there is nothing to speak of.
                        let wide = |d: f64| {
                            let (l, h) = self.window(&zb, f.delta + d);
                            self.samples(&l, &h, 16).iter().all(|s| s.1 == 0.0)
                        };
                        // Far out, 320 bits take e^z for 0 beside 1.
                        if wide(1e-3) && z.abs() < 50.0 && !hides(self.target) {
                            return say("leak is not stated", &y.abs(), 0.0);
                        }
                    }
                    Some(leak) if y.abs() > Big::exact(leak) + &relative => {
                        // A lone zero of a smooth target is no zero set.
                        if f.delta > 0.0
                            || self
                                .samples(&(zb.clone() - Big::exact(1e-6)), &(zb.clone() + Big::exact(1e-6)), 4)
                                .iter()
                                .all(|s| s.1 == 0.0)
                        {
                            return say("leak", &y.abs(), leak);
                        }
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(())
    }

    /// Where it may hurt: ends, knots, band edges, the neurons' knees, far out, and `extra`.
    fn points(&self, delta: f64, extra: &[f64]) -> Vec<f64> {
        let d = self.domain;
        let mut out = vec![d.lo(), d.hi()];
        for end in [d.lo(), d.hi()].into_iter().filter(|e| e.is_finite()) {
            out.extend([end.next_up(), end.next_down(), end + delta, end - delta]);
        }
        for k in self.knots.iter().map(Big::to_f64).filter(|k| d.contains(*k)) {
            out.extend([k, k.next_up(), k.next_down(), k + 1e-9, k - 1e-9]);
        }
        for j in self.jumps.iter().map(Big::to_f64) {
            for e in [j - delta, j + delta] {
                out.extend([e, e.next_up(), e.next_down()]);
            }
            out.extend([0.03, 0.4, 0.97].iter().flat_map(|u| [j + u * delta, j - u * delta]));
        }
        for n in self.stack.neurons.iter().filter(|n| n.weight != 0.0) {
            let c = -n.bias / n.weight;
            out.extend([0.0, 0.3, -0.3, 1.0, -1.0, 2.5, -2.5, 8.0].iter().map(|u| c + u / n.weight));
        }
        out.extend([1e3, -1e3, 1e6, -1e6, 1e12, -1e12, 65.0, -65.0]);
        for u in extra {
            // u in [−1, 1]
            let (l, h) = (d.lo().max(-30.0), d.hi().min(30.0));
            out.push(if l < h { l + (h - l) * (u + 1.0) / 2.0 } else { d.lo().max(d.hi().min(0.0)) + u.abs() });
        }
        out.retain(|z| z.is_finite() && d.contains(*z));
        out
    }

    fn check_all(&self, f: &Figures, extra: &[f64]) -> Result<(), String> {
        for z in self.points(f.delta, extra) {
            self.check(z, f).map_err(|e| {
                format!(
                    "{e}\n  target {}\n  stack {:?}\n  domain {:?}\n  figures {f:?}",
                    self.target, self.stack, self.domain
                )
            })?;
        }
        Ok(())
    }
}

// -------------------------------------------------------------------------------------------------------- strategies

const ACTIVATIONS: [&str; 27] = [
    "relu",
    "leaky_relu",
    "leaky_relu:0.2",
    "relu2",
    "relu6",
    "hardtanh",
    "hardsigmoid",
    "hardswish",
    "silu",
    "swish:3/2",
    "swish:0.3",
    "gelu",
    "gelu_tanh",
    "quick_gelu",
    "mish",
    "softplus",
    "elu",
    "elu:1/3",
    "selu",
    "celu:2",
    "celu",
    "sigmoid",
    "tanh",
    "softsign",
    "abs",
    "identity",
    "swish:7",
];

fn name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(ACTIVATIONS.to_vec())
}

fn eighth(reach: i32) -> impl Strategy<Value = f64> {
    (-reach..=reach).prop_map(|k| f64::from(k) / 8.0)
}

fn line() -> impl Strategy<Value = String> {
    let slope = prop::sample::select(vec![1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 4.0, 3.0, 1.0, 1.0]);
    (slope, eighth(32)).prop_map(|(a, b)| format!("({a} * z + {b})"))
}

fn part(smooth: bool) -> BoxedStrategy<String> {
    let act = (name(), line()).prop_map(|(n, l)| format!("{n}{l}")).boxed();
    let continuous = prop_oneof![
        4 => act.clone(),
        1 => line().prop_map(|l| format!("relu{l}")),
        1 => (line(), eighth(24), 1..40i32).prop_map(|(l, a, w)| format!("clamp({l}, {a}, {})", a + f64::from(w) / 8.0)),
        1 => (line(), line()).prop_map(|(a, b)| format!("min({a}, {b})")),
        1 => (line(), line()).prop_map(|(a, b)| format!("max({a}, {b})")),
        1 => (act.clone(), line()).prop_map(|(a, b)| format!("max({a}, {b})")),
        1 => (act.clone(), act.clone()).prop_map(|(a, b)| format!("min({a}, {b})")),
        1 => (line(), line()).prop_map(|(a, b)| format!("{a} * {b}")),
        1 => (line(), act.clone()).prop_map(|(a, b)| format!("{a} * {b}")),
        1 => (act.clone(), act.clone()).prop_map(|(a, b)| format!("{a} * {b}")),
    ];
    if smooth {
        return continuous.boxed();
    }
    prop_oneof![
        6 => continuous,
        2 => line().prop_map(|l| format!("step{l}")),
        2 => (line(), eighth(24)).prop_map(|(l, t)| format!("jumprelu({l}, {t})")),
        1 => (line(), line(), line()).prop_map(|(a, b, c)| format!("select({a}, {b}, {c})")),
        1 => (line(), act.clone(), line()).prop_map(|(a, b, c)| format!("select({a}, {b}, {c})")),
        1 => (line(), line()).prop_map(|(a, b)| format!("{a} * step{b}")),
        1 => (act.clone(), line()).prop_map(|(a, b)| format!("{a} * step{b}")),
        1 => (eighth(24), eighth(24)).prop_map(|(t, c)| format!("relu(jumprelu(z, {t}) - {c})")),
        1 => (eighth(24), eighth(24)).prop_map(|(t, c)| format!("min(jumprelu(z, {t}), {c})")),
        1 => (prop::sample::select(vec!["hardtanh", "relu6", "abs"]), line(), eighth(9))
            .prop_map(|(n, l, c)| format!("step({n}{l} - {c})")),
        1 => (line(), line(), eighth(9)).prop_map(|(a, b, c)| format!("select({a}, {c}, select({b}, {c}, 1))")),
    ]
    .boxed()
}

fn target(smooth: bool) -> impl Strategy<Value = Expr> {
    let term = (prop::sample::select(vec![1.0, -1.0, 0.5, -2.0, 3.0]), part(smooth));
    prop::collection::vec(term, 1..=3).prop_map(|terms| {
        let text: Vec<String> =
            terms.into_iter().map(|(k, p)| if k == 1.0 { p } else { format!("{k} * ({p})") }).collect();
        let text = text.join(" + ");
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    })
}

/// ± 2^e·m, now and then 0.
fn weight(lo: i32, hi: i32) -> impl Strategy<Value = f64> {
    (lo..=hi, 0..8u32, any::<bool>(), 0..40u32).prop_map(|(e, m, negative, zero)| {
        let x = 2f64.powi(e) * (1.0 + f64::from(m) / 8.0);
        if zero == 0 {
            0.0
        } else if negative {
            -x
        } else {
            x
        }
    })
}

fn neuron(gated: bool) -> impl Strategy<Value = Neuron<f64>> {
    let slope = prop_oneof![6 => weight(-3, 4), 2 => weight(5, 20), 1 => weight(-20, -4), 1 => weight(30, 60)];
    (slope, -8.0..8.0f64, weight(-4, 3), any::<bool>(), weight(-3, 3), -3.0..3.0f64, 0..3u32).prop_map(
        move |(weight, knot, out, scaled, p, q, kind)| {
            let knot = if kind == 0 { (knot * 8.0).round() / 8.0 } else { knot };
            let out = if scaled && weight != 0.0 { out / weight.abs() } else { out };
            Neuron { weight, bias: -weight * knot, out, up: gated.then_some((if kind == 1 { 0.0 } else { p }, q)) }
        },
    )
}

fn stack() -> impl Strategy<Value = Stack<f64>> {
    (name(), any::<bool>()).prop_flat_map(|(source, gated)| {
        (prop::collection::vec(neuron(gated), 1..=4), prop_oneof![Just(0.0), -4.0..4.0f64])
            .prop_map(move |(neurons, constant)| Stack { source: source.parse().unwrap(), constant, neurons })
    })
}

fn domain() -> impl Strategy<Value = Domain> {
    let end = || prop_oneof![eighth(64), -9.0..9.0f64];
    prop_oneof![
        5 => (end(), end()).prop_filter_map("empty", |(a, b)| Domain::new(a.min(b), a.max(b)).ok()),
        1 => end().prop_map(|a| Domain::new(a, f64::INFINITY).unwrap()),
        1 => end().prop_map(|a| Domain::new(f64::NEG_INFINITY, a).unwrap()),
        1 => (-3.0..0.0f64).prop_map(|a| Domain::new(1e3 * a - 1.0, 2e3).unwrap()),
        2 => Just(Domain::line()),
    ]
}

fn proved(target: &Expr, stack: &Stack<f64>, domain: Domain, delta: f64) -> neurograft::error::Result<Certificate> {
    certify(&Claim { target, stack, ideal: None, domain, delta, tolerance: None })
}

/// Errors say why; what is neither is a bug.
fn acceptable(e: &neurograft::Error) -> bool {
    e.is_unsupported() || e.is_input()
}

proptest! {
    #![proptest_config(config(700))]
    #[test]
    fn what_is_certified_holds(
        target in target(false), stack in stack(), domain in domain(),
        delta in prop_oneof![2 => Just(0.0), 1 => Just(0.125), 1 => Just(0.5), 2 => 0.001..1.5f64],
        extra in prop::collection::vec(-1.0..1.0f64, 12),
    ) {
        match proved(&target, &stack, domain, delta) {
            Ok(c) => {
                let judge = Judge::new(&target, &stack, domain);
                let verdict = judge.check_all(c.figures(), &extra);
                prop_assert!(verdict.is_ok(), "{}", verdict.unwrap_err());
            }
            Err(e) => prop_assert!(acceptable(&e), "{e}"),
        }
    }
}

// -------------------------------------------------------------------------------------------------------- tightness

/// The largest error that a search in floats finds, judged in 320 bits.
fn attained(target: &Expr, stack: &Stack<f64>, domain: Domain) -> (f64, f64) {
    let judge = Judge::new(target, stack, domain);
    let (l, h) = (domain.lo(), domain.hi());
    let mut z: Vec<f64> = (0..=600).map(|k| l + (h - l) * f64::from(k) / 600.0).collect();
    z.extend(judge.points(0.0, &[]));
    for n in stack.neurons.iter().filter(|n| n.weight != 0.0) {
        let c = -n.bias / n.weight;
        z.extend((-48..=48).map(|k| c + f64::from(k) / (6.0 * n.weight)));
        z.extend((-60..0).flat_map(|k| [c + (h - l) * 2f64.powi(k), c - (h - l) * 2f64.powi(k)]));
    }
    z.retain(|z| domain.contains(*z));
    z.sort_by(f64::total_cmp);
    z.dedup();
    let fast = |z: f64| (stack.value(z) - fast(target, z)).abs();
    let mut scored: Vec<(f64, usize)> = z.iter().enumerate().map(|(k, z)| (fast(*z), k)).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut best = (0f64, l);
    for (_, k) in scored.iter().take(6) {
        let (mut a, mut b) = (z[k.saturating_sub(1)], z[(k + 1).min(z.len() - 1)]);
        for _ in 0..60 {
            let (p, q) = (a + (b - a) / 3.0, b - (b - a) / 3.0);
            if fast(p) < fast(q) { a = p } else { b = q }
        }
        for z in [z[*k], a, b] {
            let zb = Big::exact(z);
            let e = (stack_at(stack, &zb).0 - at(target, &zb)).abs().to_f64();
            if e > best.0 {
                best = (e, z);
            }
        }
    }
    best
}

fn fast(e: &Expr, z: f64) -> f64 {
    let v = |e: &Expr| fast(e, z);
    match e {
        Expr::Const(c) => c.to_f64(),
        Expr::Pre(_) => z,
        Expr::Add(a, b) => v(a) + v(b),
        Expr::Mul(a, b) => v(a) * v(b),
        Expr::Neg(a) => -v(a),
        Expr::Scale(k, a) => k.to_f64() * v(a),
        Expr::Relu(a) => v(a).max(0.0),
        Expr::Clamp(a, lo, hi) => v(a).max(lo.to_f64()).min(hi.to_f64()),
        Expr::Min(a, b) => v(a).min(v(b)),
        Expr::Max(a, b) => v(a).max(v(b)),
        Expr::Act(act, a) => act.value(v(a)),
        Expr::Step(_) | Expr::JumpRelu(..) | Expr::Select(..) => panic!("continuous targets only"),
    }
}

proptest! {
    #![proptest_config(config(300))]
    #[test]
    fn bounds_are_tight(
        target in target(true), stack in stack(),
        ends in (eighth(64), eighth(64)).prop_filter("empty", |(a, b)| a != b),
    ) {
        let domain = Domain::new(ends.0.min(ends.1), ends.0.max(ends.1)).unwrap();
        // Steeper neurons do between two floats what a search in floats cannot see.
        let visible = stack.neurons.iter().all(|n| n.weight.abs() < 2f64.powi(22));
        if let (true, Ok(c)) = (visible, proved(&target, &stack, domain, 0.0)) {
            let f = c.figures();
            prop_assert_eq!((f.delta, f.eta, f.epsilon_outside, f.overshoot), (0.0, 0.0, None, None));
            let size = [domain.lo(), domain.hi(), 0.5 * (domain.lo() + domain.hi())]
                .iter().map(|z| stack_at(&stack, &Big::exact(*z)).1.to_f64()).fold(1.0, f64::max);
            if f.epsilon > 1e-10 * size {
                let (seen, z) = attained(&target, &stack, domain);
                prop_assert!(seen >= f.epsilon / 1.001,
                    "certified {:e}, seen {:e} at {}\n  {}\n  {:?} on {:?}", f.epsilon, seen, z, target, stack, domain);
                prop_assert!(seen <= f.epsilon, "{seen:e} > {:e}", f.epsilon);
            }
        }
    }
}

// ----------------------------------------------------------------------------------------------------------- solver

proptest! {
    #![proptest_config(config(60))]
    #[test]
    fn solutions_keep_to_their_budget(
        target in prop::sample::select(vec![
            "relu(z)", "jumprelu(z, 1.5)", "clamp(z, -1, 2)", "step(z - 2)", "gelu(z)", "silu(z)", "tanh(z)", "-relu(z - 3)",
            "(8 - z) * step(z - 1.5)", "quick_gelu(z) + 1/3 * z", "abs(z) - 1/3", "z * z", "softplus(z)", "hardswish(z)",
            "relu(3 - jumprelu(z, 2))", "sigmoid(2 * z)", "z + 1", "elu(z)", "0.1 * z - 0.7",
        ]),
        source in prop::sample::select(vec!["relu", "silu", "gelu", "tanh", "softplus", "quick_gelu", "leaky_relu", "relu2", "elu"]),
        gated in any::<bool>(),
        format in prop::sample::select(vec![Format::F64, Format::F32, Format::F16, Format::Bf16]),
        wide in prop::sample::select(vec![(-8.0, 8.0), (-20.0, 40.0), (f64::NEG_INFINITY, f64::INFINITY), (0.0, 6.0)]),
        neurons in 1..=4usize,
        max_weight in prop::sample::select(vec![1_048_576.0, 16.0, 100.3, 0.7]),
        max_out in prop::sample::select(vec![1_048_576.0, 9.7]),
        tolerance in prop::sample::select(vec![None, None, Some(1e-3), Some(0.05)]),
        constant in any::<bool>(),
        extra in prop::collection::vec(-1.0..1.0f64, 12),
    ) {
        let expr: Expr = target.parse().unwrap();
        let activation = source.parse().unwrap();
        let form = if gated { Form::Gated } else { Form::Plain };
        let domain = Domain::new(wide.0, wide.1).unwrap();
        let budget = Budget { neurons, max_weight, max_out, tolerance, band: 0.125, constant, ..Budget::default() };
        let request = Request { target: &expr, source: &activation, form, format, domain, budget };
        match solve(&request) {
            Err(e) => prop_assert!(e.is_unsupported(), "{target} from {source}: {e}"),
            Ok(s) => {
                let about = format!("{target} from {source} {form} {format} {budget:?} {domain:?}\n{s:?}");
                prop_assert!((1..=neurons).contains(&s.stack.neurons.len()) || s.stack.neurons.is_empty(), "{}", about);
                prop_assert!(constant || s.stack.constant == 0.0, "{}", about);
                let mut numbers = vec![s.stack.constant];
                for n in &s.stack.neurons {
                    prop_assert!(n.weight.abs() <= max_weight, "{}", about);
                    prop_assert!((n.out * n.weight).abs() <= max_out, "{}", about);
                    prop_assert_eq!(n.up.is_some(), gated);
                    numbers.extend([n.weight, n.bias, n.out]);
                    numbers.extend(n.up.into_iter().flat_map(|(a, b)| [a, b]));
                }
                prop_assert!(numbers.iter().all(|x| x.is_finite() && format.round(*x) == *x), "{}", about);
                let f = s.certificate.figures();
                let verdict = Judge::new(&expr, &s.stack, domain).check_all(f, &extra);
                prop_assert!(verdict.is_ok(), "{}\n{}", verdict.unwrap_err(), about);
                // Exact: what is left is the rounding of the weights. bf16 has 8 significant bits.
                if f.status == Status::Exact && domain.is_bounded() {
                    let unit = match format { Format::F64 => 1e-14, Format::F32 => 1e-5, Format::F16 => 0.03, Format::Bf16 => 0.2 };
                    let reach = domain.lo().abs().max(domain.hi().abs());
                    prop_assert!(f.epsilon <= unit * (1.0 + reach) * (1.0 + reach), "{}", about);
                }
                if let Some(t) = tolerance {
                    prop_assert_eq!(f.status == Status::BestEffort, !(f.epsilon <= t && f.eta <= t), "{}", about);
                }
            }
        }
    }
}

// --------------------------------------------------------------------------------------------------------- rewriting

fn many() -> impl Strategy<Value = Expr> {
    let term = (prop::sample::select(vec![1.0, -1.0, 0.5, -2.0]), part(false), 0..3usize, any::<bool>());
    prop::collection::vec(term, 1..=4).prop_map(|terms| {
        let mut sum: Option<Expr> = None;
        for (k, text, index, negate) in terms {
            let e: Expr = text.parse().unwrap();
            let e = e.substitute(&|_| Expr::Pre(index)).scale(Number::from_f64(k).unwrap());
            sum = Some(match sum {
                None => e,
                Some(s) if negate => s.minus(e),
                Some(s) => s.plus(e).scale(Number::ratio(-3, 2)),
            });
        }
        sum.unwrap()
    })
}

proptest! {
    #![proptest_config(config(200))]
    #[test]
    fn split_parts_add_up(e in many(), z in prop::collection::vec(-9.0..9.0f64, 3)) {
        let z: Vec<Big> = z.into_iter().map(Big::exact).collect();
        let parts = split(&e).unwrap();
        let sum = parts.iter().fold(Big::from(0), |s, (k, part)| s + at(part, &z[*k]));
        let whole = value(&e, &z);
        prop_assert!((&sum - &whole).abs() <= Big::parse("1e-70") * (whole.abs() + Big::from(1)), "{e}");
        prop_assert!(parts.windows(2).all(|p| p[0].0 < p[1].0));
        // Text and back.
        prop_assert_eq!(e.to_string().parse::<Expr>().unwrap(), e);
    }

    #[test]
    fn canonical_polynomials_are_the_target(e in target(false), domain in domain(), u in prop::collection::vec(-1.0..1.0f64, 8)) {
        let Ok(canonical) = Canonical::new(&e, domain) else { return Ok(()) };
        let Some(p) = canonical.polynomial() else { return Ok(()) };
        let stack = Stack { source: "relu".parse().unwrap(), constant: 0.0, neurons: vec![] };
        let judge = Judge::new(&e, &stack, domain);
        for z in judge.points(0.25, &u) {
            // A knot may have a value of its own.
            if judge.knots.iter().any(|k| *k == z) {
                continue;
            }
            let exact = Rational::from_float(z).unwrap();
            let on_knot = p.knots.contains(&exact) || z == domain.lo() || z == domain.hi();
            // Beside a constant, 320 bits take a subnormal number for 0.
            if on_knot || z.abs() > 1e4 || z.abs() < 1e-60 {
                continue;
            }
            let k = p.knots.iter().filter(|t| **t < exact).count();
            let ours = p.polys[k].value(&exact);
            let ours = Big::parse(&format!("{}/{}", ours.to_big().numer(), ours.to_big().denom()));
            let whole = at(&e, &Big::exact(z));
            // A knot that no float is may lie between z and its neighbour.
            let near = p.knots.iter().any(|t| (Number::from(t.clone()).to_f64() - z).abs() <= 1e-12);
            prop_assert!(near || (&ours - &whole).abs() <= Big::parse("1e-60") * (whole.abs() + Big::from(1)), "{} at {}: {:?} {:?}", e, z, ours, whole);
        }
    }
}

// ------------------------------------------------------------------------------------------------- found by hunting

fn plain(source: &str, constant: f64, neurons: &[(f64, f64, f64)]) -> Stack<f64> {
    let neurons = neurons.iter().map(|&(weight, bias, out)| Neuron { weight, bias, out, up: None }).collect();
    Stack { source: source.parse().unwrap(), constant, neurons }
}

fn judged(target: &str, stack: &Stack<f64>, lo: f64, hi: f64, delta: f64) -> Figures {
    let target: Expr = target.parse().unwrap();
    let domain = Domain::new(lo, hi).unwrap();
    let c = proved(&target, stack, domain, delta).unwrap_or_else(|e| panic!("{target}: {e}"));
    let verdict = Judge::new(&target, stack, domain).check_all(c.figures(), &[-0.9, -0.3, 0.2, 0.7]);
    assert!(verdict.is_ok(), "{}", verdict.unwrap_err());
    c.figures().clone()
}

/// A strict step that switches at the domain's right end has a value there that the piece to the left knows nothing of.
#[test]
fn values_at_the_right_end_count() {
    let one = plain("relu", 1.0, &[]);
    assert_eq!(judged("step(8 - z)", &one, -8.0, 8.0, 0.0).epsilon, 1.0);
    assert_eq!(judged("step(z + 8)", &one, -8.0, 8.0, 0.0).epsilon, 1.0);
}

/// An isolated value that differs from its neighbours by little still differs.
#[test]
fn isolated_values_count_however_near() {
    let one = plain("relu", 1.0, &[]);
    let f = judged("select(z, 1, select(-z, 1, 1.0000000000001))", &one, -1.0, 1.0, 0.0);
    assert!(f.epsilon >= 1e-13 && f.status != Status::Exact, "{f:?}");
}

/// An identity between pieces is none where a single point has a value of its own.
#[test]
fn exact_means_every_point() {
    let nothing = plain("relu", 0.0, &[]);
    let f = judged("select(z, 0, select(-z, 0, 5))", &nothing, -1.0, 1.0, 0.0);
    assert_eq!(f.epsilon, 5.0);
    assert_ne!(f.status, Status::Exact);
}

/// The condition of a step may be 0 on a whole piece beside the jump, so that no root of it is ever inside a piece.
#[test]
fn jumps_where_a_condition_leaves_zero() {
    for text in ["step(hardtanh(z) + 1)", "step(relu(z + 1))", "step(1 - hardtanh(-z))", "select(relu(z + 1), 1, 0)"] {
        let target: Expr = text.parse().unwrap();
        let at = neurograft::certify::jumps(&target, Domain::line()).unwrap();
        assert_eq!(at, [-1.0], "{text}");
        let ramp = plain("relu", 0.0, &[(4.0, 5.0, 0.5), (4.0, 3.0, -0.5)]);
        let f = judged(text, &ramp, -8.0, 8.0, 0.25);
        assert_eq!((f.status, f.epsilon_outside), (Status::ExactOutside, Some(0.0)), "{text}");
    }
}

/// At z = lo = jump − δ the window ends on the jump: the value beyond it is not in the hull.
#[test]
fn a_window_that_ends_on_a_jump() {
    let one = plain("relu", 1.0, &[]);
    assert_eq!(judged("step(z - 2)", &one, 1.5, 8.0, 0.5).epsilon, 1.0);
    let nothing = plain("relu", 0.0, &[]);
    assert_eq!(judged("1 - step(2 - z)", &nothing, -1.0, 2.5, 0.5).epsilon, 1.0);
}

/// z^80·e^−z still grows where e^−z alone has become small.
#[test]
fn tails_of_high_powers() {
    let power = vec!["z"; 80].join(" * ");
    let target: Expr = format!("({power}) * sigmoid(z)").parse().unwrap();
    let stack = plain("relu", 0.0, &[]);
    let domain = Domain::new(f64::NEG_INFINITY, 0.0).unwrap();
    if let Ok(c) = proved(&target, &stack, domain, 0.0) {
        let judge = Judge::new(&target, &stack, domain);
        for z in [-60.0, -75.0, -80.0, -85.0, -100.0] {
            judge.check(z, c.figures()).unwrap();
        }
    }
}

/// A limit that the format does not have: the number below it must be found, whatever the format's spacing.
#[test]
fn limits_between_numbers_of_the_format() {
    let target: Expr = "abs(z) - 1/3".parse().unwrap();
    for format in [Format::F16, Format::Bf16] {
        let budget = Budget { neurons: 4, max_weight: 0.7, max_out: 9.7, constant: false, ..Budget::default() };
        let source = "relu2".parse().unwrap();
        let domain = Domain::new(-20.0, 40.0).unwrap();
        let s =
            solve(&Request { target: &target, source: &source, form: Form::Plain, format, domain, budget }).unwrap();
        assert!(s.stack.neurons.iter().all(|n| n.weight.abs() <= 0.7), "{:?}", s.stack);
    }
}

/// A constant that is not allowed must not come in by a starting point of the search.
#[test]
fn forbidden_constants_stay_away() {
    for (target, source, neurons, domain) in [
        ("softplus(z)", "relu", 1, Domain::line()),
        ("hardswish(z)", "relu", 1, Domain::new(-8.0, 8.0).unwrap()),
        ("gelu(z)", "leaky_relu", 3, Domain::new(-8.0, 8.0).unwrap()),
    ] {
        let (expr, source): (Expr, _) = (target.parse().unwrap(), source.parse().unwrap());
        let budget = Budget { neurons, constant: false, ..Budget::default() };
        let request =
            Request { target: &expr, source: &source, form: Form::Plain, format: Format::F64, domain, budget };
        assert_eq!(solve(&request).unwrap().stack.constant, 0.0, "{target}");
    }
}

/// Without a bound on z an error that grows with |z| meets no tolerance on the error.
#[test]
fn relative_errors_miss_absolute_tolerances() {
    let target: Expr = "gelu(z)".parse().unwrap();
    let stack = plain("tanh", 0.0, &[(1.0, 0.0, 1.0)]);
    let claim = Claim {
        target: &target,
        stack: &stack,
        ideal: None,
        domain: Domain::line(),
        delta: 0.0,
        tolerance: Some(10.0),
    };
    assert_eq!(certify(&claim).unwrap().status(), Status::Within);
    let claim = Claim { tolerance: Some(0.9), ..claim };
    let f = certify(&claim).unwrap().figures().clone();
    assert!(f.eta == 1.0 && f.status == Status::BestEffort, "{f:?}");
}

/// An exact ideal says nothing about a stack that is not its rounding.
#[test]
fn an_ideal_of_another_stack_proves_nothing() {
    let target: Expr = "relu(z)".parse().unwrap();
    let ideal = plain("relu", 0.0, &[(1.0, 0.0, 1.0)]).exact().unwrap();
    for other in [
        plain("relu", 0.0, &[(1.0, 0.0, 0.5)]),
        plain("relu", 3.0, &[(1.0, 0.0, 1.0)]),
        plain("relu", 0.0, &[(1.0, -4.0, 1.0)]),
        plain("relu", 0.0, &[]),
        plain("silu", 0.0, &[(1.0, 0.0, 1.0)]),
    ] {
        let domain = Domain::new(-8.0, 8.0).unwrap();
        let claim = Claim { target: &target, stack: &other, ideal: Some(&ideal), domain, delta: 0.0, tolerance: None };
        let f = certify(&claim).unwrap().figures().clone();
        assert!(f.epsilon > 0.2 && f.status == Status::Within, "{other:?}: {f:?}");
    }
}
