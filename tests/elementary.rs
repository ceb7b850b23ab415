//! The seam's assumption: the elementary functions of `pxfm`, widened by two floats, enclose the true value.

mod oracle;

use neurograft::interval::Interval;
use oracle::Big;
use proptest::prelude::*;

struct Function {
    name: &'static str,
    enclose: fn(Interval) -> Interval,
    truth: fn(&Big) -> Big,
    /// where its results leave the ordinary: overflow, underflow, saturation, zeros
    edges: &'static [f64],
    domain: (f64, f64),
}

const FUNCTIONS: [Function; 5] = [
    Function {
        name: "exp",
        enclose: Interval::exp,
        truth: Big::exp,
        edges: &[
            709.782712893384,
            -708.3964185322641,
            -744.4400719213812,
            -745.1332191019411,
            -745.1332191019412,
            -746.0,
            // e^x = 1 + x + x²/2 + … lies extremely close to the middle of two floats.
            7.541752774995959e-10,
            std::f64::consts::LN_2,
        ],
        domain: (-760.0, 720.0),
    },
    Function {
        name: "expm1",
        enclose: Interval::exp_m1,
        truth: Big::exp_m1,
        edges: &[
            709.782712893384,
            -37.42994775023705,
            -36.73680056967711,
            -38.0,
            std::f64::consts::LN_2,
            -0.28768207245178,
        ],
        domain: (-60.0, 720.0),
    },
    Function {
        name: "log1p",
        enclose: Interval::ln_1p,
        truth: Big::ln_1p,
        edges: &[-0.9999999999999999, -0.5, 1.718281828459045, 9007199254740992.0, 1e308, -0.29289321881345254],
        domain: (-1.0, f64::MAX),
    },
    Function {
        name: "tanh",
        enclose: Interval::tanh,
        truth: Big::tanh,
        edges: &[18.714973875118524, 19.061547465398498, 19.4, 22.0, 0.5493061443340549, 0.881373587019543],
        domain: (-25.0, 25.0),
    },
    Function {
        name: "erfc",
        enclose: Interval::erfc,
        truth: Big::erfc,
        edges: &[
            26.5432584306323,
            26.543258454250037,
            27.226017111108366,
            27.22601711110837,
            27.3,
            26.0,
            0.4769362762044699,
            -5.863584748755167,
            -6.0,
            -5.9215871957945065,
        ],
        domain: (-7.0, 28.0),
    },
];

/// The value is inside, and the interval is at most five floats wide (two on either side of a nearest float).
fn check(f: &Function, x: f64) -> Result<(), TestCaseError> {
    let (enclosure, truth) = ((f.enclose)(Interval::point(x)), (f.truth)(&Big::exact(x)));
    prop_assert!(truth.within(enclosure.lo(), enclosure.hi()), "{}({x:e}) = {truth:?} is not in {enclosure:?}", f.name);
    // Without the margin of one float it would hold too: the library errs by less than one.
    let inner = Interval::new(enclosure.lo().next_up(), enclosure.hi().next_down());
    let clipped = enclosure.mag() == f64::INFINITY || [0.0, 1.0, -1.0, 2.0].iter().any(|&e| enclosure.contains(e));
    prop_assert!(clipped || truth.within(inner.lo(), inner.hi()), "{}({x:e}): the margin is used up", f.name);
    let mut width = 0;
    let mut at = enclosure.lo();
    while at < enclosure.hi() && width <= 5 {
        (at, width) = (at.next_up(), width + 1);
    }
    prop_assert!(width <= 4, "{}({x:e}) is {width} floats wide: {enclosure:?}", f.name);
    Ok(())
}

#[test]
fn edges_and_their_neighbours() {
    for f in &FUNCTIONS {
        for &edge in f.edges.iter().chain(&[0.0, 5e-324, f64::MIN_POSITIVE, 1e-300, 1e-17, 1e-8, 1e-5, 0.125, 1.0, 2.0])
        {
            for x in [edge, -edge] {
                let (mut up, mut down) = (x, x);
                for _ in 0..20 {
                    for y in [up, down] {
                        if (f.name == "log1p" && y > -1.0) || (f.name != "log1p" && y.abs() < 1e5) {
                            check(f, y).unwrap();
                        }
                    }
                    (up, down) = (up.next_up(), down.next_down());
                }
            }
        }
    }
}

#[test]
fn arguments_with_short_mantissas() {
    // Hard cases cluster where the result is close to a short number: multiples of small powers of two.
    for f in &FUNCTIONS {
        for k in -320..=320 {
            let x = f64::from(k) / 16.0;
            if f.name != "log1p" || x > -1.0 {
                check(f, x).unwrap();
            }
        }
        for k in -60..10 {
            for m in [1.0, 1.5, 1.25, 1.0 + f64::EPSILON, 1.0 - f64::EPSILON / 2.0] {
                for x in [m * 2f64.powi(k), -m * 2f64.powi(k)] {
                    if f.name != "log1p" || x > -1.0 {
                        check(f, x).unwrap();
                    }
                }
            }
        }
    }
}

#[test]
fn infinite_ends_and_saturation() {
    let (inf, min) = (f64::INFINITY, f64::NEG_INFINITY);
    for f in &FUNCTIONS {
        let all = (f.enclose)(Interval::ENTIRE);
        let right = (f.enclose)(Interval::new(0.5, inf));
        let left = (f.enclose)(Interval::new(min, -0.5));
        let (range, after, before) = match f.name {
            "exp" => ((0.0, inf), (1.6, inf), (0.0, 0.7)),
            "expm1" => ((-1.0, inf), (0.6, inf), (-1.0, -0.3)),
            "log1p" => ((min, inf), (0.4, inf), (min, inf)),
            "tanh" => ((-1.0, 1.0), (0.4, 1.0), (-1.0, -0.4)),
            _ => ((0.0, 2.0), (0.0, 0.5), (1.5, 2.0)),
        };
        assert_eq!((all.lo(), all.hi()), range, "{}", f.name);
        for (image, (lo, hi)) in [(right, after), (left, before)] {
            assert!(image.lo() >= lo && image.hi() <= hi, "{} {image:?}", f.name);
            assert!(lo.is_finite() || image.lo() == lo, "{} {image:?}", f.name);
            assert!(hi.is_finite() || image.hi() == hi, "{} {image:?}", f.name);
        }
        for x in [800.0, 1e5, 1e300, f64::MAX] {
            for image in [(f.enclose)(Interval::point(x)), (f.enclose)(Interval::point(-x))] {
                assert!(
                    image.lo() <= image.hi() && image.lo() >= range.0 && image.hi() <= range.1,
                    "{} {image:?}",
                    f.name
                );
            }
        }
    }
    let beyond = Interval::point(1e5);
    assert!(beyond.exp().lo() > 1e308 && beyond.exp().hi() == inf && beyond.exp_m1().hi() == inf);
    assert!((-beyond).exp().hi() < 1e-320 && beyond.erfc().hi() < 1e-320);
    assert!(beyond.tanh().contains(1.0) && (-beyond).exp_m1().contains(-1.0) && (-beyond).erfc().contains(2.0));
}

fn argument(domain: (f64, f64)) -> impl Strategy<Value = f64> {
    let (lo, hi) = domain;
    prop_oneof![
        2 => lo.max(-800.0)..hi.min(800.0),
        2 => lo.max(-6.0)..hi.min(6.0),
        1 => (-1074f64..10.0, any::<bool>()).prop_map(|(e, s)| if s { e.exp2() } else { -e.exp2() }),
        1 => (0f64..1000.0).prop_map(f64::exp2),
    ]
    .prop_filter("inside", move |x| lo < *x && *x < hi)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn random_arguments_of_every_magnitude(
        e in argument(FUNCTIONS[0].domain),
        m in argument(FUNCTIONS[1].domain),
        l in argument(FUNCTIONS[2].domain),
        t in argument(FUNCTIONS[3].domain),
        c in argument(FUNCTIONS[4].domain),
    ) {
        for (f, x) in FUNCTIONS.iter().zip([e, m, l, t, c]) {
            check(f, x)?;
        }
    }

    #[test]
    fn images_of_intervals_hold_the_images_of_points(a in -30.0..30.0f64, b in -30.0..30.0f64, s in 0.0..=1.0f64) {
        let (lo, hi) = (a.min(b), a.max(b));
        let x = (lo + s * (hi - lo)).clamp(lo, hi);
        for f in FUNCTIONS.iter().filter(|f| f.name != "log1p" || lo > -1.0) {
            let image = (f.enclose)(Interval::new(lo, hi));
            prop_assert!((f.enclose)(Interval::point(x)).is_subset(image), "{} {lo:e} {x:e} {hi:e}", f.name);
        }
    }
}
