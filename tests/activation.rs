//! The catalogue of activations against the oracle: enclosures, tails, identities, names.

mod oracle;

use neurograft::activation::{Activation, Jet, NAMES, Side};
use neurograft::interval::Interval;
use oracle::Big;
use proptest::prelude::*;

const PARAMETERS: [&str; 9] = [
    "leaky_relu:0.3",
    "leaky_relu:0",
    "swish:2.5",
    "swish:1/7",
    "swish:40",
    "elu:0.3",
    "elu:3",
    "celu:0.7",
    "celu:5/3",
];

fn everything() -> Vec<&'static str> {
    NAMES.into_iter().chain(PARAMETERS).collect()
}

fn of(name: &str) -> Activation {
    name.parse().unwrap()
}

/// Is x inside, up to the oracle's own rounding?
fn holds(i: Interval, x: &Big) -> bool {
    let slack = x.abs() * Big::parse("1e-85");
    x + &slack >= i.lo() && x - &slack <= i.hi()
}

/// Value, slope and curvature at the point are inside (curvature off the knots only).
fn encloses(name: &str, jet: Jet, t: f64, exact: &[Big; 3]) -> Result<(), TestCaseError> {
    for (k, i) in [jet.v, jet.d1, jet.d2].into_iter().enumerate() {
        prop_assert!(holds(i, &exact[k]), "{name}, derivative {k} at {t:e}: {:?} is not in {i:?}", exact[k]);
    }
    Ok(())
}

fn check_at(name: &str, t: f64, inside: Interval) -> Result<(), TestCaseError> {
    let (a, b) = (of(name), Big::exact(t));
    let jet = a.jet(inside);
    let exact = oracle::jet(name, &b);
    if !oracle::knots(name).contains(&t) {
        encloses(name, jet, t, &exact)?;
        return encloses(name, a.branch_jet(a.branch(t), Interval::point(t)), t, &exact);
    }
    let left = oracle::jet_from_left(name, &b);
    let branch = a.branch(t);
    encloses(name, a.branch_jet(branch, Interval::point(t)), t, &exact)?;
    encloses(name, a.branch_jet(branch - 1, Interval::point(t)), t, &left)?;
    for (side, e) in
        [(inside.lo() <= t && inside.hi() > t, &exact), (inside.lo() < t, &left), (inside.is_point(), &left)]
    {
        if side {
            prop_assert!(
                holds(jet.v, &e[0]) && holds(jet.d1, &e[1]),
                "{name} at its knot {t}, over {inside:?}: {jet:?}"
            );
        }
    }
    Ok(())
}

fn centre() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => -10.0..10.0f64,
        2 => -60.0..60.0f64,
        1 => -1000.0..1000.0f64,
        1 => (-30..=30i32).prop_map(|k| f64::from(k) / 2.0),
        1 => (-1074f64..0.0, any::<bool>()).prop_map(|(e, s)| if s { e.exp2() } else { -e.exp2() }),
        1 => (0f64..1023.0, any::<bool>()).prop_map(|(e, s)| if s { e.exp2() } else { -e.exp2() }),
    ]
}

/// An interval of any width around the centre, and a point of it.
fn box_and_point() -> impl Strategy<Value = (Interval, f64)> {
    (centre(), 0..7usize, 0.0..=1.0f64, 0.0..=1.0f64).prop_map(|(c, kind, r, s)| {
        let w = [0.0, 1e-12, 1e-3, 1.0, 1000.0, 1.0, 1.0][kind] * r;
        let (lo, hi) = (c - w * s, c + w * (1.0 - s));
        let inside = match kind {
            5 => Interval::new(f64::NEG_INFINITY, hi),
            6 => Interval::new(lo, f64::INFINITY),
            _ => Interval::new(lo, hi),
        };
        (inside, c.clamp(inside.lo(), inside.hi()))
    })
}

fn decimal() -> impl Strategy<Value = String> {
    prop_oneof![
        (1..5000i64).prop_map(|k| format!("{}.{:03}", k / 1000, k % 1000)),
        (1..30i64, 1..30i64).prop_map(|(p, q)| format!("{p}/{q}"))
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(250))]
    #[test]
    fn jets_hold_the_true_value_and_derivatives((inside, t) in box_and_point()) {
        for name in everything() {
            check_at(name, t, inside)?;
        }
    }

    #[test]
    fn jets_hold_for_random_parameters((inside, t) in box_and_point(), p in decimal(), slope in 0..1000i64) {
        for name in ["swish", "elu", "celu"] {
            check_at(&format!("{name}:{p}"), t, inside)?;
        }
        check_at(&format!("leaky_relu:{slope}/1000"), t, inside)?;
    }

    #[test]
    fn jets_of_boxes_hold_those_of_their_parts((outer, t) in box_and_point(), w in 0.0..2.0f64) {
        let inner = Interval::new(t - w, t + w).intersect(outer).unwrap();
        for name in everything() {
            let (i, o) = (of(name).jet(inner), of(name).jet(outer));
            // Enclosures of a part need not be subsets to the last float, but what both hold overlaps.
            for (i, o) in [(i.v, o.v), (i.d1, o.d1), (i.d2, o.d2)] {
                prop_assert!(i.intersect(o).is_some(), "{name} {inner:?} {outer:?}: {i:?} {o:?}");
            }
        }
    }

    #[test]
    fn tails_stay_below_their_bounds(t0 in prop_oneof![0.0..60.0f64, 0.0..4.0f64, Just(0.0), Just(2.0), Just(3.0), Just(6.0)], further in prop_oneof![Just(0.0), 0.0..1.0f64, 0.0..100.0f64]) {
        for name in everything() {
            for side in [Side::Left, Side::Right] {
                let tail = of(name).tail(side);
                let size = t0 + further;
                let t = Big::exact(if side == Side::Right { size } else { -size });
                let [c0, c1, c2] = tail.asymptote.clone().map(|c| Big::parse(&c.to_string()));
                let v = oracle::activation(name, &t);
                // The difference loses at most 320 bits' worth of the asymptote: allow for that.
                let noise = (v.abs() + t.sqr() + Big::from(10)) * Big::parse("1e-90");
                let rest = (v - c0 - c1 * &t - c2 * t.sqr()).abs() - noise;
                let mut rest = rest;
                for k in 0..=2 {
                    let bound = tail.remainder(t0, k);
                    prop_assert!(rest <= bound, "{name} {side:?} {t0:e} {size:e} k = {k}: {rest:?} > {bound:e}");
                    rest = rest * t.abs();
                }
                let known = tail.remainder(200.0, 0);
                prop_assert!(known.is_finite() && (known < 0.2), "{name} {side:?}: {known}");
            }
        }
    }

    #[test]
    fn floating_derivatives_agree(t in prop_oneof![-60.0..60.0f64, -5.0..5.0f64, -1e5..1e5f64]) {
        for name in everything() {
            let exact = oracle::jet(name, &Big::exact(t));
            for (ours, exact) in of(name).derivatives(t).into_iter().zip(&exact) {
                let exact = exact.to_f64();
                prop_assert!((ours - exact).abs() <= 2e-12 * exact.abs().max(1.0), "{name} {t:e}: {ours:e} {exact:e}");
            }
        }
    }

    #[test]
    fn odd_parts_are_identities(t in -40.0..40.0f64) {
        for name in everything() {
            let t = Big::exact(t);
            let odd = oracle::activation(name, &t) - oracle::activation(name, &-&t);
            if let Some(kappa) = of(name).odd_part() {
                let gap = odd - Big::parse(&kappa.to_string()) * &t;
                prop_assert!(gap.abs() <= Big::parse("1e-90") * (t.abs() + Big::from(1)), "{name}: {gap:?}");
            }
        }
    }
}

/// The bounds that hold on all of R, as the enclosure over R states them, against a scan with spacing 1/512.
#[test]
fn global_bounds_hold_on_a_dense_scan() {
    for name in ["silu", "gelu", "gelu_tanh", "mish", "sigmoid", "tanh", "softplus"] {
        let bounds = of(name).jet(Interval::ENTIRE);
        let bounds = [bounds.v, bounds.d1, bounds.d2];
        let mut seen = [Interval::ZERO; 3];
        for k in -4096..=4096 {
            let t = f64::from(k) / 512.0;
            for (order, x) in oracle::jet(name, &Big::exact(t)).iter().enumerate() {
                assert!(holds(bounds[order], x), "{name} {t} derivative {order}: {x:?} not in {:?}", bounds[order]);
                seen[order] = seen[order].hull(Interval::point(x.to_f64()));
            }
        }
        // What is bounded is bounded closely.
        for order in 1..3 {
            let (b, s) = (bounds[order], seen[order]);
            assert!(b.lo() >= s.lo() - 1e-3 && b.hi() <= s.hi() + 1e-3, "{name} {order}: {b:?} seen {s:?}");
        }
    }
}

/// At a point: values to a relative 1e-13 everywhere; derivatives to an absolute 1e-13 for |t| < 8, where their terms cancel at
/// the roots of σ′ and σ″, and to a relative 1e-13 beyond. The gelus' tails fall as e^(−t²/2) and e^(−t³/14), which magnifies
/// the rounding of the exponent: there the relative width is allowed to grow with the exponent.
#[test]
fn enclosures_at_points_are_tight() {
    for name in everything() {
        for k in -4000..=4000 {
            let t = f64::from(k) / 100.0 + 0.001;
            let jet = of(name).jet(Interval::point(t));
            let exponent = match name {
                "gelu" if !(0.0..=8.0).contains(&t) => t * t / 2.0,
                "gelu_tanh" if !(0.0..=8.0).contains(&t) => (t * t * t).abs() / 14.0 + t.abs() * 1.6,
                _ if name.starts_with("swish:40") => 40.0 * t.abs(),
                _ => 2.5 * t.abs(),
            };
            let far = if name == "swish:1/7" { 56.0 } else { 8.0 };
            let allowed = 1e-13_f64.max(2e-15 * exponent);
            for (order, i) in [jet.v, jet.d1, jet.d2].into_iter().enumerate() {
                let size = if order == 0 || t.abs() > far { i.mag() } else { i.mag().max(1.0) };
                assert!(
                    i.mag() < 1e-290 || i.width() <= allowed * size,
                    "{name} {t} {order}: {:e} {i:?}",
                    i.width() / size
                );
            }
        }
    }
}

#[test]
fn enclosures_over_narrow_boxes_are_close_to_the_range() {
    for name in everything() {
        for k in -80..80 {
            let (lo, hi) = (f64::from(k) / 8.0 + 0.01, f64::from(k) / 8.0 + 0.02);
            let v = of(name).jet(Interval::new(lo, hi)).v;
            let ends = [lo, hi].map(|x| oracle::activation(name, &Big::exact(x)).to_f64());
            let range = (ends[1] - ends[0]).abs();
            let curvature = if let Some(beta) = name.strip_prefix("swish:") { Big::parse(beta).to_f64() } else { 1.0 };
            assert!(v.width() <= range + 1e-3 * curvature.max(5.0), "{name} [{lo}, {hi}]: {v:?} {ends:?}");
        }
    }
}

#[test]
fn knots_pieces_and_flags_are_true() {
    for name in everything() {
        let a = of(name);
        let knots: Vec<f64> = a.knots().iter().map(|k| k.to_f64()).collect();
        assert_eq!(knots, oracle::knots(name), "{name}");
        let mut c1 = true;
        for &knot in &knots {
            let (l, r) = (oracle::jet_from_left(name, &Big::exact(knot)), oracle::jet(name, &Big::exact(knot)));
            let near = |k: usize| (&l[k] - &r[k]).abs() < Big::parse("1e-90");
            assert!(near(0), "{name} jumps");
            c1 &= near(1);
            assert!(!near(1) || !near(2) || !name.contains(':') && name != "identity", "{name}: {knot} is no knot");
        }
        assert_eq!(a.is_c1(), c1, "{name}");
        let far = [-1e9, 1e9].map(|t| oracle::activation(name, &Big::exact(t)).abs().to_f64());
        assert_eq!(a.is_bounded(), far.iter().all(|v| *v < 10.0), "{name} {far:?}");
        if let Some((knots, pieces)) = a.polynomial_pieces() {
            assert_eq!(pieces.len(), knots.len() + 1);
            for k in -80..=80 {
                let t = Big::exact(f64::from(k) / 8.0);
                let branch = knots.iter().filter(|x| t >= x.to_f64()).count();
                assert_eq!(branch, a.branch(f64::from(k) / 8.0));
                let [c0, c1, c2] = pieces[branch].clone().map(|c| Big::parse(&c.to_string()));
                let gap = c0 + c1 * &t + c2 * t.sqr() - oracle::activation(name, &t);
                assert!(gap.abs() < Big::parse("1e-90"), "{name} {k}");
            }
        }
    }
}

#[test]
fn regression_a_point_at_a_kink_has_both_slopes() {
    let jet = of("relu").jet(Interval::ZERO);
    assert_eq!((jet.d1.lo(), jet.d1.hi()), (0.0, 1.0));
    let jet = of("hardtanh").jet(Interval::ONE);
    assert!(jet.d1.contains(0.0) && jet.d1.contains(1.0) && jet.v == Interval::ONE);
    // A box that only touches the knot stays on its side.
    assert_eq!(of("relu").jet(Interval::new(0.0, 1.0)).d1, Interval::ONE);
}

#[test]
fn regression_softsign_continued_across_its_pole_claims_nothing() {
    // The right branch t/(1 + t) on [−3, 0] is unbounded: 1/(1 + t) was once clipped at t = −1/2.
    let jet = of("softsign").branch_jet(1, Interval::new(-3.0, 0.0));
    assert_eq!(jet.v, Interval::ENTIRE);
    let jet = of("softsign").branch_jet(1, Interval::point(-0.75));
    assert!(jet.v.contains(-3.0) && jet.d1.contains(16.0), "{jet:?}");
}

#[test]
fn regression_floating_gelu_tanh_is_finite_everywhere() {
    for t in [1e77, 1e103, 1e160, 1e300] {
        assert_eq!(of("gelu_tanh").derivatives(t), [t, 1.0, 0.0]);
        assert_eq!(of("gelu_tanh").derivatives(-t), [0.0; 3]);
    }
}

#[test]
fn names_print_and_parse() {
    for name in everything() {
        let a = of(name);
        assert_eq!(of(&a.to_string()), a);
        assert_eq!(serde_json::from_str::<Activation>(&serde_json::to_string(&a).unwrap()).unwrap(), a);
        assert!(a.to_string().starts_with(name.split(':').next().unwrap()), "{name} prints {a}");
    }
    assert_eq!(Activation::catalogue().len(), NAMES.len());
    for (alias, name) in
        [("gelu_new", "gelu_tanh"), ("GELU_python", "gelu"), ("swiglu", "silu"), ("linear", "identity")]
    {
        assert_eq!(of(alias), of(name));
    }
    assert_eq!(of("leaky_relu:1/5"), of(" leaky_relu:0.20 "));
    assert_eq!(of("leaky_relu:0.01").to_string(), "leaky_relu");
    for (bad, hint) in
        [("gleu", "gelu"), ("sillu", "silu"), ("leaky_rlu:0.1", "leaky_relu"), ("hard_swich", "hard_swish")]
    {
        let e = bad.parse::<Activation>().unwrap_err();
        assert!(e.is_input() && e.to_string().contains(&format!("did you mean '{hint}'?")), "{e}");
    }
    for bad in
        ["", "nonsense_altogether", "relu:1", "leaky_relu:1", "leaky_relu:-0.1", "swish:0", "elu:-1", "celu:x", "elu:"]
    {
        assert!(bad.parse::<Activation>().unwrap_err().is_input(), "{bad}");
    }
}
