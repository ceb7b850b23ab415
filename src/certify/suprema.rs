//! Suprema of errors: best-first branch and bound in outward-rounded intervals.
//!
//! Part of the trusted base. On a box of width h a function F satisfies
//!
//! * F ≤ max(F(l), F(r)) + h²/8·max(0, −inf F″), the error of linear interpolation;
//! * F ≤ max(F(l), F(r)) where 0 ∉ F′;
//! * F ≤ (F(l) + F(r))/2 + h/2·sup|F′|;
//! * F ≤ F(x) + F′(x)²/(2m) for any x of the box, where F″ ≤ −m < 0;
//! * F ≤ sup F by natural extension;
//!
//! and the least of these counts.

use std::cell::OnceCell;
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::rc::Rc;

use smallvec::SmallVec;

use crate::activation::Jet;
use crate::algebra::{Normal, Poly, enclose};
use crate::interval::Interval;
use crate::piecewise::{Form, Program, Term, jet_of, quadratic_supremum, value_of};
use crate::rational::Rational;

/// The same for errors at rounding level, which converge more slowly: still inside a tightness of 1.001.
const ROUNDING_GAP: f64 = 3e-4;
/// … or after this many boxes: the bound is then valid but wider.
const MAX_BOXES: usize = 400_000;
/// Boxes first end at this argument of an atom on either side of 0: e^−40 ≈ 4e−18.
const KNEE: f64 = 40.0;

/// φ̂ minus one member of the hull.
#[derive(Clone)]
pub(super) struct Candidate {
    pub form: Form,
    /// does it bound φ̂ from above the hull (sup of the form)?
    pub upper: bool,
    /// … and from below (sup of minus the form)?
    pub lower: bool,
}

/// Candidates that are the same function count once.
pub(super) fn distinct(candidates: Vec<Candidate>) -> Vec<Candidate> {
    let mut out: Vec<Candidate> = Vec::with_capacity(candidates.len());
    for c in candidates {
        let twin = out.iter_mut().find(|o| match (&o.form, &c.form) {
            (Form::Normal(a), Form::Normal(b)) => a == b,
            _ => false,
        });
        match twin {
            Some(twin) => (twin.upper, twin.lower) = (twin.upper || c.upper, twin.lower || c.lower),
            None => out.push(c),
        }
    }
    out
}

/// A finite closed interval with the candidates that are valid on all of it.
pub(super) struct Stretch {
    pub lo: Rational,
    pub hi: Rational,
    pub candidates: Vec<Candidate>,
}

impl Stretch {
    /// The same with η|z| taken off: a line on either side of 0, so that what grows like η|z| cancels exactly. (Bounded
    /// apart, η|z| would leave a plateau that takes boxes without end.)
    fn tilted(&self, eta: f64) -> Vec<Stretch> {
        let eta = Rational::from_float(eta).expect("finite");
        let zero = Rational::zero();
        let mut ends = vec![self.lo.clone(), self.hi.clone()];
        if self.lo < zero && zero < self.hi {
            ends.insert(1, zero.clone());
        }
        let part = |e: &[Rational]| {
            let slope = if e[1] <= zero { -&eta } else { eta.clone() };
            let line = |slope: Rational| Form::Normal(Poly::line(slope, zero.clone()).into());
            let tilt = |c: &Candidate| {
                let up = Candidate { form: c.form.clone().minus(line(slope.clone())), upper: true, lower: false };
                let down = Candidate { form: c.form.clone().minus(line(-&slope)), upper: false, lower: true };
                [c.upper.then_some(up), c.lower.then_some(down)].into_iter().flatten()
            };
            Stretch { lo: e[0].clone(), hi: e[1].clone(), candidates: self.candidates.iter().flat_map(tilt).collect() }
        };
        ends.windows(2).map(part).collect()
    }
}

/// Upper bound of max(`floor`, sup over the stretches of max(min_upper F, min_lower −F) − η|z|), floor ≥ 0.
pub(super) fn supremum(stretches: &[Stretch], eta: f64, floor: f64, gap: f64) -> f64 {
    let tilted: Vec<Stretch>;
    let stretches = if eta == 0.0 {
        stretches
    } else {
        tilted = stretches.iter().flat_map(|s| s.tilted(eta)).collect();
        &tilted
    };
    let mut search = Search { best: 0.0, exact: floor, heap: BinaryHeap::new(), sections: Vec::new(), gap };
    for s in stretches {
        let (up_done, down_done) = search.exact_side(s);
        if !(up_done && down_done) {
            search.add(s, !up_done, !down_done);
        }
    }
    search.run()
}

/// One of each program: few, so that they stand in place.
type Values = SmallVec<[Interval; 4]>;

/// Programs that share one smooth piece.
struct Section {
    programs: Vec<(Program, bool, bool)>,
    /// have all the same terms?
    common: bool,
    /// of the stretch that it is a part of
    knees: Rc<Knees>,
}

/// Where the atoms of a stretch bend.
struct Knees {
    /// where atoms' arguments change sign
    centres: Vec<f64>,
    /// over what width the steepest atom's argument changes by 1
    width: f64,
}

impl Knees {
    fn new(centres: &[(f64, f64)]) -> Knees {
        let width = centres.iter().map(|c| c.1).fold(f64::INFINITY, f64::min);
        Knees { centres: centres.iter().map(|c| c.0).collect(), width }
    }

    fn distance(&self, z: f64) -> f64 {
        self.centres.iter().map(|c| (c - z).abs()).fold(f64::INFINITY, f64::min)
    }
}

impl Section {
    fn new(programs: Vec<(Program, bool, bool)>, knees: Rc<Knees>) -> Section {
        let common = Program::common(programs.iter().map(|p| &p.0)).is_some();
        Section { programs, common, knees }
    }

    fn jet(&self, k: usize, terms: Option<Jet>, z: Interval) -> Jet {
        let program = &self.programs[k].0;
        terms.map_or_else(|| program.jet(z), |t| program.jet_with(t, z))
    }

    /// A bound on the supremum over [l, r] of program k (of minus it, unless `upper`), and the place that it comes from; `None` where
    /// the second derivative over the box, `curvature`, does not show it to be concave.
    ///
    /// Where F″ ≤ −m < 0, Taylor's F(z) ≤ F(x) + F′(x)(z − x) − m/2·(z − x)² is at most F(x) + F′(x)²/(2m). Any x will do; a
    /// step of Newton's method from the middle makes F′(x) small.
    /// `middles` keeps the terms' jet in the middle, for the programs that share them.
    fn apex(
        &self,
        k: usize,
        (l, r): (f64, f64),
        curvature: Interval,
        upper: bool,
        middles: &OnceCell<Option<Jet>>,
    ) -> Option<(f64, f64)> {
        let oriented = |x: Interval| if upper { x } else { -x };
        let least = -oriented(curvature).hi();
        if !(least > 0.0 && least.is_finite()) {
            return None;
        }
        let terms_at = |x: f64| self.terms().map(|t| jet_of(t, Interval::point(x)));
        let middle = 0.5 * l + 0.5 * r;
        let there = self.jet(k, *middles.get_or_init(|| terms_at(middle)), Interval::point(middle));
        let step = there.d1.mid() / there.d2.mid();
        let x = if step.is_nan() { middle } else { (middle - step).clamp(l, r) };
        let here = self.jet(k, terms_at(x), Interval::point(x));
        let slope = Interval::point(here.d1.mag());
        let bound = oriented(here.v) + slope.sqr() / (Interval::point(2.0) * Interval::point(least));
        Some((bound.hi(), x))
    }

    fn terms(&self) -> Option<&[Term]> {
        if self.common { Program::common(self.programs.iter().take(1).map(|p| &p.0)) } else { None }
    }

    fn values(&self, z: Interval) -> Values {
        let terms = self.terms().map(|t| value_of(t, z));
        let value = |p: &Program| terms.map_or_else(|| p.value(z), |t| p.value_with(t, z));
        self.programs.iter().map(|p| value(&p.0)).collect()
    }
}

struct Box1 {
    bound: f64,
    /// Width of the enclosures at the ends: splitting cannot resolve less.
    noise: f64,
    section: usize,
    l: f64,
    r: f64,
    at_l: Values,
    at_r: Values,
    /// is it what was left of a box when a knee at its end was cut off?
    rest: bool,
}

/// Boxes wider than this many widths of an atom are cut towards where they are likely to be large …
const WIDE: f64 = 8.0;
/// … and of those wider than this, that much is cut off.
const FAR: f64 = 16.0;

impl Box1 {
    /// Where to cut it, and which of its parts is a rest. What vanishes exponentially is large near one end only: of a box
    /// far wider than that, a part is cut off there, once. Else wide boxes are cut near the nearest centre of an atom.
    fn cut(&self, knees: &Knees) -> (f64, [bool; 2]) {
        let (l, r) = (self.l, self.r);
        let (length, width) = (r - l, knees.width);
        let size = |values: &[Interval]| values.first().map_or(0.0, |v| v.mag());
        if !self.rest && length > 4.0 * FAR * width {
            let left = size(&self.at_l) > size(&self.at_r);
            if left { (l + FAR * width, [false, true]) } else { (r - FAR * width, [true, false]) }
        } else if !self.rest && length > WIDE * width {
            (if knees.distance(l) < knees.distance(r) { l + length / 8.0 } else { r - length / 8.0 }, [false, false])
        } else {
            (0.5 * l + 0.5 * r, [false, false])
        }
    }
}

impl PartialEq for Box1 {
    fn eq(&self, o: &Self) -> bool {
        self.cmp(o) == Ordering::Equal
    }
}
impl Eq for Box1 {}
impl PartialOrd for Box1 {
    fn partial_cmp(&self, o: &Self) -> Option<Ordering> {
        Some(self.cmp(o))
    }
}
impl Ord for Box1 {
    fn cmp(&self, o: &Self) -> Ordering {
        self.bound.total_cmp(&o.bound).then_with(|| o.l.total_cmp(&self.l))
    }
}

struct Search {
    /// A value that is attained (up to the enclosure of a point).
    best: f64,
    /// Supremum of what exact arithmetic has settled, and of what is known from elsewhere.
    exact: f64,
    heap: BinaryHeap<Box1>,
    sections: Vec<Section>,
    /// relative distance to an attained value at which to stop
    gap: f64,
}

impl Search {
    /// Settles sides by exact arithmetic: a single quadratic candidate, or any one that stays on the right side of 0.
    fn exact_side(&mut self, s: &Stretch) -> (bool, bool) {
        let mut settle = |upper: bool| {
            let relevant: Vec<&Candidate> =
                s.candidates.iter().filter(|c| if upper { c.upper } else { c.lower }).collect();
            let mut least: Option<Rational> = None;
            for c in &relevant {
                let Some(p) = c.form.as_normal().and_then(Normal::as_poly) else { continue };
                let p = if upper { p.clone() } else { Poly::new(p.coefficients().iter().map(|c| -c)) };
                if let Some(v) = quadratic_supremum(&p, &s.lo, &s.hi) {
                    least = Some(least.map_or(v.clone(), |l| l.min(v)));
                }
            }
            match least {
                Some(v) if !v.is_positive() => true,
                Some(v) if relevant.len() == 1 => {
                    self.exact = self.exact.max(enclose(&v).hi());
                    true
                }
                _ => false,
            }
        };
        (settle(true), settle(false))
    }

    fn add(&mut self, s: &Stretch, up: bool, down: bool) {
        // Where an atom's argument changes sign its orientation changes: cut there too.
        let mut centres = Vec::new();
        s.candidates.iter().for_each(|c| c.form.centres(&mut centres));
        centres.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (lo, hi) = (enclose(&s.lo).lo(), enclose(&s.hi).hi());
        let mut cuts: Vec<f64> = centres.iter().map(|c| c.0).filter(|z| lo < *z && *z < hi).collect();
        // Between centres that all but coincide the orientations would disagree, for nothing.
        cuts.dedup_by(|next, last| *next - *last <= 1e-9 * next.abs().max(last.abs()).max(1e-9));
        cuts.insert(0, lo);
        cuts.push(hi);
        // Boxes end where knees do: bisection would need a step for each factor 2 between a knee and the domain.
        let knees = centres.iter().flat_map(|(c, w)| [c - KNEE * w, c + KNEE * w]);
        let mut edges: Vec<f64> = knees.filter(|z| lo < *z && *z < hi).chain(cuts.iter().copied()).collect();
        edges.sort_by(f64::total_cmp);
        edges.dedup();
        let bends = Rc::new(Knees::new(&centres));
        for ends in cuts.windows(2) {
            let middle = Rational::from_float(0.5 * ends[0] + 0.5 * ends[1]).unwrap_or_default();
            let candidates = || s.candidates.iter().filter(|c| c.upper && up || c.lower && down);
            let programs = Program::all(candidates().map(|c| &c.form), &middle);
            let sides = candidates().map(|c| (c.upper && up, c.lower && down));
            let programs: Vec<_> = programs.into_iter().zip(sides).map(|(p, (u, d))| (p, u, d)).collect();
            if programs.iter().any(|(p, _, _)| p.is_rounding()) {
                self.gap = ROUNDING_GAP;
            }
            self.sections.push(Section::new(programs, Rc::clone(&bends)));
            let section = self.sections.len() - 1;
            let inside = edges.iter().copied().filter(|z| ends[0] <= *z && *z <= ends[1]);
            let mut values = inside.map(|z| (z, self.values(section, z))).collect::<Vec<_>>().into_iter();
            let Some(mut last) = values.next() else { unreachable!("the ends are among the edges") };
            if ends[0] == ends[1] {
                self.push(section, (last.0, last.0), last.1.clone(), last.1.clone(), false);
            }
            for next in values {
                self.push(section, (last.0, next.0), last.1, next.1.clone(), false);
                last = next;
            }
        }
    }

    fn values(&mut self, section: usize, z: f64) -> Values {
        let values = self.sections[section].values(Interval::point(z));
        // What is attained here: the least over the candidates, per side.
        let (mut up, mut down) = (f64::INFINITY, f64::INFINITY);
        for ((_, u, d), v) in self.sections[section].programs.iter().zip(&values) {
            if *u {
                up = up.min(v.lo());
            }
            if *d {
                down = down.min(-v.hi());
            }
        }
        for side in [up, down] {
            if side.is_finite() && side > self.best {
                self.best = side;
            }
        }
        values
    }

    fn push(&mut self, section: usize, (l, r): (f64, f64), at_l: Values, at_r: Values, rest: bool) {
        let z = Interval::new(l, r);
        let (mut up, mut down) = (f64::INFINITY, f64::INFINITY);
        let (mut wanted_up, mut wanted_down) = (false, false);
        let goal = self.best.max(self.exact);
        let section_of = &self.sections[section];
        let terms = section_of.terms().map(|t| jet_of(t, z));
        let (mut apexes, middles) = (SmallVec::<[f64; 4]>::new(), OnceCell::new());
        for (k, (_, u, d)) in section_of.programs.iter().enumerate() {
            // One member of the hull that settles a side is enough.
            let (u, d) = (*u && !(up <= goal), *d && !(down <= goal));
            if !u && !d {
                continue;
            }
            let (ends_hi, ends_lo) = (at_l[k].hi().max(at_r[k].hi()), at_l[k].lo().min(at_r[k].lo()));
            let jet = section_of.jet(k, terms, z);
            wanted_up |= u;
            wanted_down |= d;
            let (rise, fall) = excess(z, jet);
            let mut least = |bound: f64, ends: f64, upper: bool| {
                if !(bound > goal * (1.0 + self.gap) && bound > ends) {
                    return bound.max(ends);
                }
                let apex = section_of.apex(k, (l, r), jet.d2, upper, &middles);
                apexes.extend(apex.map(|a| a.1));
                apex.map_or(bound, |a| bound.min(a.0)).max(ends)
            };
            if u {
                let lipschitz = lipschitz_bound(z, jet, at_l[k].hi(), at_r[k].hi());
                let bound = (Interval::point(ends_hi) + rise).hi().min(lipschitz).min(jet.v.hi());
                up = up.min(least(bound, ends_hi, true));
            }
            if d {
                let lipschitz = lipschitz_bound(z, jet, -at_l[k].lo(), -at_r[k].lo());
                let bound = (Interval::point(-ends_lo) + fall).hi().min(lipschitz).min(-jet.v.lo());
                down = down.min(least(bound, -ends_lo, false));
            }
        }
        // What is attained there counts.
        apexes.into_iter().for_each(|x| drop(self.values(section, x)));
        let mut bound = f64::NEG_INFINITY;
        for (wanted, side) in [(wanted_up, up), (wanted_down, down)] {
            if wanted {
                // NaN must not look small.
                bound = if side.is_nan() { f64::INFINITY } else { bound.max(side) };
            }
        }
        if bound > 0.0 {
            let noise = at_l.iter().chain(&at_r).map(|v| v.width()).fold(0.0, f64::max);
            self.heap.push(Box1 { bound, noise, section, l, r, at_l, at_r, rest });
        }
    }

    fn run(mut self) -> f64 {
        let mut settled = self.exact;
        let mut boxes = 0;
        while let Some(top) = self.heap.pop() {
            let goal = self.best.max(self.exact);
            if top.bound <= goal * (1.0 + self.gap) || top.bound <= settled {
                settled = settled.max(top.bound);
                break;
            }
            let (m, rest) = top.cut(&self.sections[top.section].knees);
            boxes += 1;
            let resolved = top.bound <= goal + 8.0 * top.noise;
            if resolved || !(top.l < m && m < top.r) || boxes > MAX_BOXES {
                // Rounding hides the rest, or no float lies between the ends, or too much work: this bound stands.
                settled = settled.max(top.bound);
                if boxes > MAX_BOXES {
                    break;
                }
                continue;
            }
            let at_m = self.values(top.section, m);
            self.push(top.section, (top.l, m), top.at_l, at_m.clone(), rest[0]);
            self.push(top.section, (m, top.r), at_m, top.at_r, rest[1]);
        }
        settled
    }
}

/// By how much a function can exceed the larger, or undercut the smaller, of its end values on the box.
fn excess(z: Interval, jet: Jet) -> (Interval, Interval) {
    let monotone = jet.d1.lo() >= 0.0 || jet.d1.hi() <= 0.0;
    if monotone && jet.d1.is_finite() {
        return (Interval::ZERO, Interval::ZERO);
    }
    // Linear interpolation: F(x) − L(x) = −F″(ξ)(x − l)(r − x)/2, and (x − l)(r − x) ≤ h²/4.
    let h = Interval::point(z.width());
    let eighth = h.sqr() * Interval::point(0.125);
    let side = |curvature: f64| {
        if curvature == 0.0 {
            Interval::ZERO
        } else if curvature.is_finite() {
            Interval::new(0.0, (eighth * Interval::point(curvature)).hi())
        } else {
            Interval::new(0.0, f64::INFINITY)
        }
    };
    (side((-jet.d2.lo()).max(0.0)), side(jet.d2.hi().max(0.0)))
}

/// F ≤ F(l) + s(x − l) and F ≤ F(r) + s(r − x) with s = sup|F′| give F ≤ (F(l) + F(r))/2 + s·h/2.
fn lipschitz_bound(z: Interval, jet: Jet, at_l: f64, at_r: f64) -> f64 {
    if !jet.d1.is_finite() {
        return f64::INFINITY;
    }
    let half = Interval::point(0.5);
    let mean = half * (Interval::point(at_l) + Interval::point(at_r));
    (mean + half * Interval::point(z.width()) * Interval::point(jet.d1.mag())).hi()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expr::Expr;
    use crate::piecewise::{Region, resolve};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        /// Against values on a grid: no bound is below one, and near a maximum the bound is as good as the square of the distance.
        #[test]
        fn concave_boxes_are_bounded_by_their_apex(
            slope in 0.5..8.0f64, shift in -2.0..2.0f64, line in -1.0..1.0f64, l in -3.0..3.0f64, h in 0.01..1.0f64,
        ) {
            let text = format!("gelu({slope} * z + {shift}) - {line} * z - silu({slope} * z)");
            let target: Expr = text.parse().unwrap();
            let form = resolve(&target, Region::Open(None, None), &mut Vec::new()).unwrap();
            let r = l + h;
            let programs = Program::all([&form], &Rational::from_float(0.5 * (l + r)).unwrap());
            let section = Section::new(programs.into_iter().map(|p| (p, true, true)).collect(), Rc::new(Knees::new(&[])));
            let curvature = section.jet(0, None, Interval::new(l, r)).d2;
            for upper in [true, false] {
                let Some((bound, at)) = section.apex(0, (l, r), curvature, upper, &OnceCell::new()) else { continue };
                prop_assert!(l <= at && at <= r);
                let value = |z: f64| {
                    let v = section.values(Interval::point(z))[0];
                    if upper { v.lo() } else { -v.hi() }
                };
                for k in 0..=200 {
                    let z = l + (r - l) * f64::from(k) / 200.0;
                    prop_assert!(value(z.clamp(l, r)) <= bound, "{text} on [{l}, {r}]: at {z}");
                }
            }
        }
    }

    #[test]
    fn equal_candidates_count_once() {
        let form = |text: &str| resolve(&text.parse().unwrap(), Region::Open(None, None), &mut Vec::new()).unwrap();
        let one = |text: &str, upper| Candidate { form: form(text), upper, lower: !upper };
        let all = vec![one("silu(z) - 1", true), one("silu(z)", true), one("silu(z) - 1", false)];
        let left = distinct(all);
        assert_eq!(left.len(), 2);
        assert!(left[0].upper && left[0].lower && left[1].upper && !left[1].lower);
    }
}
