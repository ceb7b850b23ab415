//! A target as the certificates of deployed arithmetic look at it: regions in each of which it is smooth, in a band or not,
//! and quiet (0 all around) or not.
//!
//! Part of the trusted base, without I/O. It knows nothing of stacks: enclosures of what a stack computes are handed over
//! cell by cell, in any fineness, and [`Deviation`] keeps the suprema.

use crate::certify::{Domain, jumps, value_bound};
use crate::error::{Error, Result};
use crate::expr::Expr;
use crate::interval::Interval;
use crate::number::Number;
use crate::piecewise::{Piece, Program, cut};
use crate::rational::Rational;

/// How far a stack is from its target φ, with the meaning of `docs/certificate.md`; all are suprema over the domain.
#[derive(Clone, Debug, PartialEq)]
pub struct Deviation {
    /// from the hull of φ over [z − δ, z + δ]: the larger of the next two
    pub epsilon: f64,
    /// |φ̂ − φ| at distance > δ from every jump
    pub epsilon_outside: f64,
    /// from the hull within δ of a jump; 0 without jumps
    pub overshoot: f64,
    /// |φ̂| where φ = 0 on all of [z − δ, z + δ]; null where there is no such z
    pub leak: Option<f64>,
    /// Σ|out·h| over the neurons: what accumulating them costs is relative to it
    pub mass: f64,
    /// the same where φ = 0 on all of [z − δ, z + δ]
    pub mass_quiet: f64,
}

/// Suprema over parts of the domain: off the bands, within them, where the target is 0 all around.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Suprema {
    /// of the error, off the bands
    pub outside: f64,
    /// of the error, within
    pub banded: f64,
    /// of the error, where φ = 0 on all of [z − δ, z + δ]
    pub quiet: f64,
    /// of the mass
    pub mass: f64,
    /// of the mass, where φ = 0 on all of [z − δ, z + δ]
    pub mass_quiet: f64,
}

impl Deviation {
    /// Is no figure of another, on the same landscape, beyond these? NaN is.
    pub fn covers(&self, other: &Deviation) -> bool {
        let leak = match (self.leak, other.leak) {
            (Some(own), Some(other)) => other <= own,
            (own, other) => own == other,
        };
        leak && other.epsilon <= self.epsilon
            && other.epsilon_outside <= self.epsilon_outside
            && other.overshoot <= self.overshoot
            && other.mass <= self.mass
            && other.mass_quiet <= self.mass_quiet
    }

    /// The larger of each figure.
    pub fn include(&mut self, other: &Deviation) {
        self.epsilon = self.epsilon.max(other.epsilon);
        self.epsilon_outside = self.epsilon_outside.max(other.epsilon_outside);
        self.overshoot = self.overshoot.max(other.overshoot);
        self.leak = self.leak.zip(other.leak).map(|(a, b)| a.max(b));
        self.mass = self.mass.max(other.mass);
        self.mass_quiet = self.mass_quiet.max(other.mass_quiet);
    }
}

/// A part of the domain.
struct Region {
    lo: f64,
    hi: f64,
    target: Program,
    /// (c0, c1) where φ = c0 + c1·z
    line: Option<(Interval, Interval)>,
    /// values in the hull all over the region: one-sided limits at special points within δ. Empty off the bands.
    members: Vec<Interval>,
    banded: bool,
    quiet: bool,
}

/// A target on a bounded domain, with a band of radius δ around each of its jumps.
pub struct Landscape {
    regions: Vec<Region>,
    size: f64,
}

impl Landscape {
    /// Errors: a target that cannot be cut; jumps without a band; an unbounded domain.
    pub fn new(target: &Expr, domain: Domain, delta: f64) -> Result<Landscape> {
        let rational = |x: f64| {
            Rational::from_float(x).ok_or_else(|| Error::input(format!("{x} is no number to divide a domain at")))
        };
        let (lo, hi, radius) = (rational(domain.lo())?, rational(domain.hi())?, rational(delta)?);
        let (pieces, candidates) = cut(&[target], Some(&lo), Some(&hi), &[])?;
        let rounded = jumps(target, domain)?;
        let jumps: Vec<Rational> =
            candidates.into_iter().filter(|z| rounded.contains(&Number::from(z.clone()).to_f64())).collect();
        if !jumps.is_empty() && !(delta > 0.0) {
            return Err(
                Error::input("the target jumps, and no continuous block can follow a jump").help("allow a band")
            );
        }
        let knots: Vec<&Rational> = pieces.iter().filter_map(|p| p.hi.as_ref()).collect();
        let mut points: Vec<Rational> = Vec::new();
        for k in &knots {
            points.extend([*k - &radius, (*k).clone(), *k + &radius]);
        }
        let (fine, _) = cut(&[target], Some(&lo), Some(&hi), &points)?;
        let regions = fine.iter().map(|p| Region::new(p, &pieces, &jumps, &radius)).collect();
        Ok(Landscape { regions, size: value_bound(target, domain)? })
    }

    /// sup |φ|
    pub fn size(&self) -> f64 {
        self.size
    }

    /// Nothing seen yet.
    pub fn start(&self) -> Deviation {
        let leak = self.regions.iter().any(|r| r.quiet).then_some(0.0);
        Deviation { epsilon: 0.0, epsilon_outside: 0.0, overshoot: 0.0, leak, mass: 0.0, mass_quiet: 0.0 }
    }

    /// Suprema of an error and of a mass that are enclosed cell by cell, each region being divided into `parts`.
    pub fn suprema(&self, parts: u32, at: impl Fn(Interval) -> [f64; 2]) -> Suprema {
        let mut s = Suprema::default();
        for r in &self.regions {
            let end = |k: u32| r.lo + (r.hi - r.lo) * (f64::from(k) / f64::from(parts));
            for k in 0..parts {
                let cell = Interval::new(end(k).next_down(), if k + 1 == parts { r.hi } else { end(k + 1).next_up() });
                let [error, mass] = at(cell);
                let sup = if r.banded { &mut s.banded } else { &mut s.outside };
                *sup = sup.max(error);
                s.mass = s.mass.max(mass);
                if r.quiet {
                    s.quiet = s.quiet.max(error);
                    s.mass_quiet = s.mass_quiet.max(mass);
                }
            }
        }
        s
    }

    /// The regions' ends, from left to right.
    pub fn ends(&self) -> impl Iterator<Item = [f64; 2]> + '_ {
        self.regions.iter().map(|r| [r.lo, r.hi])
    }

    /// What no figure can exceed where, on [lo, hi], the stack's value is within `off` of a line c0 + c1·z and Σ|out·h| ≤ `mass`.
    pub fn coarse(&self, [lo, hi]: [f64; 2], line: [Interval; 2], off: f64, mass: f64) -> Deviation {
        let mut d = self.start();
        d.mass = mass;
        for r in self.regions.iter().filter(|r| r.lo <= hi && lo <= r.hi) {
            r.coarse(&mut d, [lo.max(r.lo), hi.min(r.hi)], line, off, mass);
        }
        d
    }

    /// A cheap test of what [`Landscape::visit`] would do: if the stack's value is within float rounding of `value` (its ends), and
    /// Σ|out·h| of `mass`, and no figure can change, the region for the next cell.
    pub fn no_news(&self, d: &Deviation, from: usize, lo: f64, hi: f64, value: [f64; 2], mass: f64) -> Option<usize> {
        let r = &self.regions[from];
        if !(r.lo < lo && hi < r.hi && !r.banded && mass * (1.0 + SLACK) <= d.mass) {
            return None;
        }
        let largest = value[0].abs().max(value[1].abs());
        // The sum of the neurons was rounded relative to its own size; the constant may have cancelled that.
        let quiet =
            !r.quiet || (d.leak.is_some_and(|l| largest + SLACK * mass <= l) && mass * (1.0 + SLACK) <= d.mass_quiet);
        let wide = [value[0] - SLACK * mass, value[1] + SLACK * mass];
        (quiet && r.is_near(d.epsilon_outside, lo, hi, wide)).then_some(from)
    }

    /// On [lo, hi] the stack's value is in `value`, and Σ|out·h| ≤ `mass`. `from` is a region that does not begin beyond lo (0
    /// will do); returns one for a cell that begins where this one ends.
    pub fn visit(&self, d: &mut Deviation, from: usize, lo: f64, hi: f64, value: Interval, mass: f64) -> usize {
        let mut k = from;
        while k + 1 < self.regions.len() && self.regions[k].hi < lo {
            k += 1;
        }
        let next = k;
        d.mass = d.mass.max(mass);
        while k < self.regions.len() && self.regions[k].lo <= hi {
            self.regions[k].see(d, lo, hi, value, mass);
            k += 1;
        }
        next
    }
}

impl Region {
    fn new(piece: &Piece, all: &[Piece], jumps: &[Rational], radius: &Rational) -> Region {
        let (Some(l), Some(h)) = (&piece.lo, &piece.hi) else { unreachable!("the domain is bounded") };
        let middle = (l + h) / Rational::from(2);
        let ends = |x: &Rational| Number::from(x.clone()).enclosure();
        let near = |x: &Rational| (&middle - x).abs() <= *radius;
        let banded = jumps.iter().any(near);
        let limit = |p: &Piece, at: &Rational| Program::new(&p.forms[0], at).value(ends(at));
        let mut members = Vec::new();
        if banded {
            for p in all {
                for end in [&p.lo, &p.hi].into_iter().flatten().filter(|x| near(x)) {
                    members.push(limit(p, end));
                }
            }
        }
        // φ = 0 on every piece that comes within δ of the region (a point of one is enough to spoil it).
        let reach = |p: &Piece| {
            let (Some(a), Some(b)) = (&p.lo, &p.hi) else { return true };
            *a < h + radius && *b > l - radius
        };
        let quiet = all.iter().filter(|p| reach(p)).all(|p| p.forms[0].is_zero());
        let poly = piece.forms[0].as_normal().and_then(|n| n.as_poly()).filter(|p| p.degree() <= 1);
        let line = poly.map(|p| {
            let c = |k: usize| Number::from(p.coefficient(k)).enclosure();
            (c(0), c(1))
        });
        Region {
            lo: ends(l).lo(),
            hi: ends(h).hi(),
            target: Program::new(&piece.forms[0], &middle),
            line,
            members,
            banded,
            quiet,
        }
    }

    fn see(&self, d: &mut Deviation, lo: f64, hi: f64, value: Interval, mass: f64) {
        let z = Interval::new(lo.max(self.lo), hi.min(self.hi).max(lo.max(self.lo)));
        if self.quiet {
            d.leak = d.leak.map(|l| l.max(value.mag()));
            d.mass_quiet = d.mass_quiet.max(mass);
        }
        let own = match self.line {
            Some((c0, c1)) => c1 * z + c0,
            None => self.target.value(z),
        };
        // The hull's upper end is at least every member's least value; its lower end at most every member's largest.
        let top = self.members.iter().map(|m| m.lo()).fold(own.lo(), f64::max);
        let bottom = self.members.iter().map(|m| m.hi()).fold(own.hi(), f64::min);
        let gap = |x: f64, y: f64| (Interval::point(x) - Interval::point(y)).hi().max(0.0);
        let distance = gap(value.hi(), top).max(gap(bottom, value.lo()));
        let distance = if value.is_finite() { distance } else { f64::INFINITY };
        let sup = if self.banded { &mut d.overshoot } else { &mut d.epsilon_outside };
        *sup = sup.max(distance);
        d.epsilon = d.epsilon.max(distance);
    }

    /// A line's distance from another is largest at an end.
    fn coarse(&self, d: &mut Deviation, ends: [f64; 2], [c0, c1]: [Interval; 2], off: f64, mass: f64) {
        let at = |c0: Interval, c1: Interval| ends.map(|z| c0 + c1 * Interval::point(z));
        let largest = |[a, b]: [Interval; 2]| (Interval::point(a.mag().max(b.mag())) + Interval::point(off)).hi();
        let value = at(c0, c1);
        if self.quiet {
            let leak = if off.is_finite() { largest(value) } else { f64::INFINITY };
            d.leak = d.leak.map(|l| l.max(leak));
            d.mass_quiet = d.mass_quiet.max(mass);
        }
        let distance = match self.line {
            Some((t0, t1)) if off.is_finite() => largest(at(c0 - t0, c1 - t1)),
            _ => f64::INFINITY,
        };
        // Within a band, from the members of the hull.
        let value = value[0].hull(value[1]).inflate(off);
        let top = self.members.iter().map(|m| m.lo()).fold(f64::NEG_INFINITY, f64::max);
        let bottom = self.members.iter().map(|m| m.hi()).fold(f64::INFINITY, f64::min);
        let gap = |x: f64, y: f64| (Interval::point(x) - Interval::point(y)).hi().max(0.0);
        let apart = if self.members.is_empty() || !value.is_finite() {
            f64::INFINITY
        } else {
            gap(value.hi(), top).max(gap(bottom, value.lo()))
        };
        let distance = distance.min(apart);
        let sup = if self.banded { &mut d.overshoot } else { &mut d.epsilon_outside };
        *sup = sup.max(distance);
        d.epsilon = d.epsilon.max(distance);
    }

    /// Cheaply: is the distance certainly no more than `known`?
    fn is_near(&self, known: f64, lo: f64, hi: f64, [bottom, top]: [f64; 2]) -> bool {
        let Some((c0, c1)) = self.line else { return false };
        let (z0, z1) = (lo.max(self.lo), hi.min(self.hi));
        let (a, b) = (c0.lo() + c1.lo() * z0, c0.lo() + c1.lo() * z1);
        let distance = (top - a.min(b)).max(a.max(b) - bottom);
        let size = c0.mag() + c1.mag() * z0.abs().max(z1.abs()) + bottom.abs() + top.abs();
        distance + size * SLACK <= known
    }
}

/// Far more, relative to what went into it, than a handful of operations on floats can be off by.
const SLACK: f64 = 1e-13;
