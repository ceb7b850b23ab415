//! The oracle itself against mpmath: `tests/oracle/reference.py` made the table.

mod oracle;

use oracle::Big;
use proptest::prelude::*;

/// |x − y| ≤ 10^−44·|y|: the table has 45 digits.
fn agree(x: &Big, y: &Big) -> bool {
    (x - y).abs() <= y.abs() * Big::parse("1e-44")
}

#[test]
fn agrees_with_mpmath_in_every_digit_of_the_table() {
    let table = include_str!("oracle/reference.txt");
    for line in table.lines() {
        let [name, t, rest @ ..] = &line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let t = Big::exact(t.parse().unwrap());
        let ours = match *name {
            "erfc" => [t.erfc(), t.exp_m1(), t.abs().ln_1p()],
            name => oracle::jet(name, &t),
        };
        assert_eq!(rest.len(), 3, "{line}");
        for (x, y) in ours.iter().zip(rest) {
            let good = if *y == "0" { x.abs() < Big::parse("1e-690") } else { agree(x, &Big::parse(y)) };
            assert!(good, "{line}\n{x}");
        }
    }
    assert_eq!(table.lines().count(), 478);
}

#[test]
fn published_constants() {
    // π, e, ln 2 and erfc 1
    for (x, digits) in [
        (oracle::pi(), "3.14159265358979323846264338327950288419716939937510"),
        (Big::from(1).exp(), "2.71828182845904523536028747135266249775724709369995"),
        (Big::from(1).ln_1p(), "0.69314718055994530941723212145817656807550013436025"),
        (Big::from(1).erfc(), "0.157299207050285130658779364917390740703933002034"),
    ] {
        assert!(agree(&x, &Big::parse(digits)), "{x} {digits}");
    }
}

#[test]
fn both_forms_of_erfc_agree_where_they_meet() {
    let below = 4f64.next_down();
    // erfc falls by erfc′(4)·2^−50.. between the neighbours: 2/√π e^−16 times the distance.
    let slope = Big::from(2) / oracle::pi().sqrt() * Big::exact(-16.0).exp();
    let (a, b) = (Big::exact(below).erfc(), Big::exact(4.0).erfc());
    let h = Big::exact(4.0 - below);
    let curvature = Big::from(4) * &slope * h.sqr();
    let gap = &a - &b - &slope * &h - curvature;
    assert!(gap.abs() < b.abs() * Big::parse("1e-38"), "{gap}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn floats_convert_exactly(x in any::<f64>(), k in -1080i32..-1000) {
        for x in [x, 2f64.powi(k), f64::MAX, f64::MIN_POSITIVE, 0.0, x * 2f64.powi(k)] {
            if x.is_finite() {
                let b = Big::exact(x);
                prop_assert_eq!(b.bracket(), (x, x));
                prop_assert_eq!(b.to_f64(), x);
                if x.abs() > 1e-250 {
                    continue;
                }
                let above = &b + Big::exact(1e-300) * Big::exact(1e-30);
                prop_assert!(above > x && above.within(x, x.next_up()) && !above.within(x.next_down(), x));
                prop_assert_eq!(above.bracket(), (x, x.next_up()));
            }
        }
    }
}
