//! Optimal continuous polylines with free knots: the narrowest tube and the minimum-link path in it.
//!
//! H. Imai and M. Iri, "Polygonal approximations of a curve", 1988; the greedy path and its windows as in S. Suri,
//! "A linear time algorithm for minimum link paths", 1986. Bisection on the tube's half-width is globally optimal.

/// A continuous polyline: `lines[k]` = (slope, value at `anchor[k]`), joined at `knots`.
#[derive(Clone, Debug)]
pub(super) struct Polyline {
    /// (anchor, value there, slope) of each link
    pub links: Vec<(f64, f64, f64)>,
    /// where consecutive links meet
    pub knots: Vec<f64>,
}

impl Polyline {
    pub fn mirrored(self) -> Polyline {
        Polyline {
            links: self.links.into_iter().rev().map(|(a, v, m)| (-a, v, -m)).collect(),
            knots: self.knots.into_iter().rev().map(|k| -k).collect(),
        }
    }

    pub fn value(&self, z: f64) -> f64 {
        let (anchor, v, m) = self.links[self.knots.partition_point(|k| *k <= z)];
        v + m * (z - anchor)
    }
}

/// Windows lo_i ≤ y ≤ hi_i at increasing z_i, and slopes that the outer links must have.
#[derive(Clone)]
pub(super) struct Tube {
    pub z: Vec<f64>,
    pub lo: Vec<f64>,
    pub hi: Vec<f64>,
    pub first: Option<f64>,
    pub last: Option<f64>,
    /// value of the first link at z[0]
    pub pinned: Option<f64>,
}

/// The feasible lines v + m(z − anchor) of one link, as the vertices (m, v) of a convex polygon.
struct Lines {
    anchor: f64,
    vertices: Vec<(f64, f64)>,
    spare: Vec<(f64, f64)>,
    excess: Vec<f64>,
}

impl Lines {
    fn new(anchor: f64, values: (f64, f64), slopes: (f64, f64)) -> Self {
        let ((v0, v1), (m0, m1)) = (values, slopes);
        let vertices = vec![(m0, v0), (m1, v0), (m1, v1), (m0, v1)];
        Lines { anchor, vertices, spare: Vec::new(), excess: Vec::new() }
    }

    /// Keeps the lines with sign·(value at z) ≤ sign·bound; false, and no change, where none is left.
    fn clip(&mut self, z: f64, bound: f64, sign: f64) -> bool {
        let x = z - self.anchor;
        self.excess.clear();
        self.excess.extend(self.vertices.iter().map(|(m, v)| sign * (v + m * x - bound)));
        let (low, high) =
            self.excess.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |s, e| (s.0.min(*e), s.1.max(*e)));
        if low > 0.0 {
            return false;
        }
        if high > 0.0 {
            self.spare.clear();
            let count = self.vertices.len();
            for k in 0..count {
                let l = if k + 1 < count { k + 1 } else { 0 };
                let (p, q, a, b) = (self.vertices[k], self.vertices[l], self.excess[k], self.excess[l]);
                if a <= 0.0 {
                    self.spare.push(p);
                }
                if (a > 0.0) != (b > 0.0) {
                    let s = a / (a - b);
                    self.spare.push((p.0 + s * (q.0 - p.0), p.1 + s * (q.1 - p.1)));
                }
            }
            std::mem::swap(&mut self.vertices, &mut self.spare);
        }
        true
    }

    /// The line that is extreme at z towards `sign`.
    fn extreme(&self, z: f64, sign: f64) -> (f64, f64) {
        let x = z - self.anchor;
        let key = |p: &(f64, f64)| sign * (p.1 + p.0 * x);
        *self.vertices.iter().max_by(|p, q| key(p).total_cmp(&key(q))).expect("a polygon has vertices")
    }

    fn centre(&self) -> (f64, f64) {
        let c = self.vertices.len() as f64;
        let (m, v) = self.vertices.iter().fold((0.0, 0.0), |s, p| (s.0 + p.0, s.1 + p.1));
        (m / c, v / c)
    }
}

impl Tube {
    /// A polyline of at most `limit` links in the tube widened by `eps`, if there is one.
    fn path(&self, eps: f64, limit: usize, steepest: f64) -> Option<Polyline> {
        let n = self.z.len();
        let (lo, hi) = (|i: usize| self.lo[i] - eps, |i: usize| self.hi[i] + eps);
        let free = (-steepest, steepest);
        let mut links: Vec<(f64, f64, f64)> = Vec::new();
        // The next link obeys the upper bound from `from_hi` on and the lower one from `from_lo` on.
        let (mut from_lo, mut from_hi) = (0, 0);
        loop {
            let start = from_lo.max(from_hi);
            let fixed = |m: Option<f64>| m.map_or(free, |m| (m, m));
            let mut whole_last = None;
            let mut failed: Option<(usize, f64)> = None;
            // With a prescribed last slope: does a line of that slope already reach the end from here?
            let want_last =
                self.last.filter(|_| !(links.is_empty() && self.first.is_some_and(|f| Some(f) != self.last)));
            let attempts: &[bool] = if want_last.is_some() { &[true, false] } else { &[false] };
            let mut lines = Lines::new(self.z[start], (lo(start), hi(start)), free);
            for &as_last in attempts {
                if want_last.is_some() && !as_last && links.len() + 1 >= limit {
                    return None;
                }
                let slopes = if as_last {
                    fixed(want_last)
                } else if links.is_empty() {
                    fixed(self.first)
                } else {
                    free
                };
                let values = match self.pinned {
                    Some(v) if links.is_empty() => (v, v),
                    _ => (lo(start), hi(start)),
                };
                lines = Lines::new(self.z[start], values, slopes);
                failed = None;
                for i in from_hi.min(from_lo)..n {
                    if i >= from_hi && !lines.clip(self.z[i], hi(i), 1.0) {
                        failed = Some((i, -1.0));
                        break;
                    }
                    if i >= from_lo && !lines.clip(self.z[i], lo(i), -1.0) {
                        failed = Some((i, 1.0));
                        break;
                    }
                }
                if as_last && failed.is_none() {
                    whole_last = Some(lines.centre());
                    break;
                }
            }
            let anchor = lines.anchor;
            if let Some((m, v)) = whole_last {
                links.push((anchor, v, m));
                break;
            }
            let Some((exit, sign)) = failed else {
                // Covers everything, with a free slope.
                match self.last {
                    None => {
                        let (m, v) = lines.centre();
                        links.push((anchor, v, m));
                        break;
                    }
                    Some(slope) => {
                        // The last link only starts at the end of the samples.
                        let (m, v) = lines.centre();
                        links.push((anchor, v, m));
                        links.push((self.z[n - 1], v + m * (self.z[n - 1] - anchor), slope));
                        break;
                    }
                }
            };
            if links.len() + 1 >= limit {
                return None;
            }
            // Every line misses the window at `exit`: on its low side (sign = 1) or its high side. The one that comes
            // closest bounds what is reachable; the next link crosses it between its last contact P with the far side
            // and the exit, hence obeys the far side from P on and the near side from the exit on.
            let (m, v) = lines.extreme(self.z[exit], sign);
            links.push((anchor, v, m));
            let gap = |i: usize| if sign > 0.0 { hi(i) } else { lo(i) } - (v + m * (self.z[i] - anchor));
            let begin = if sign > 0.0 { from_hi } else { from_lo };
            let touch =
                (begin..exit).min_by(|&i, &j| gap(i).abs().total_cmp(&gap(j).abs()).then(j.cmp(&i))).unwrap_or(exit);
            // A link that is not allowed to leave its contact (prescribed slope) still makes progress.
            let touch = touch.min(exit);
            if sign > 0.0 {
                (from_hi, from_lo) = (touch, exit);
            } else {
                (from_lo, from_hi) = (touch, exit);
            }
        }
        if links.len() > limit {
            return None;
        }
        let mut knots = Vec::new();
        let mut kept: Vec<(f64, f64, f64)> = Vec::new();
        for link in links {
            let Some(&(a, v, m)) = kept.last() else {
                kept.push(link);
                continue;
            };
            let (b, u, k) = link;
            if (k - m).abs() <= 1e-13 * (k.abs() + m.abs()) {
                continue;
            }
            // v + m(z − a) = u + k(z − b), solved about b.
            let z = b + (v + m * (b - a) - u) / (k - m);
            knots.push(z);
            kept.push(link);
        }
        knots.windows(2).all(|w| w[0] <= w[1]).then_some(Polyline { links: kept, knots })
    }

    /// The tube of z → −z.
    pub fn mirrored(&self) -> Tube {
        let back = |v: &[f64]| v.iter().rev().copied().collect::<Vec<f64>>();
        Tube {
            z: self.z.iter().rev().map(|z| -z).collect(),
            lo: back(&self.lo),
            hi: back(&self.hi),
            first: self.last.map(|m| -m),
            last: self.first.map(|m| -m),
            pinned: None,
        }
    }

    /// The narrowest tube that a polyline of at most `limit` links fits: (half-width, polyline).
    ///
    /// `bracket`: half-widths known to be too small and large enough. The result is within `tolerance`, relative.
    pub fn narrowest(&self, limit: usize, bracket: Option<(f64, f64)>, tolerance: f64) -> Option<(f64, Polyline)> {
        if limit == 0 || self.z.len() < 2 {
            return None;
        }
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        let mut steepest = 0.0f64;
        for i in 0..self.z.len() {
            (low, high) = (low.min(self.lo[i]), high.max(self.hi[i]));
            if i > 0 {
                let h = (self.z[i] - self.z[i - 1]).max(1e-300);
                let rise = (self.hi[i] - self.lo[i - 1]).abs().max((self.lo[i] - self.hi[i - 1]).abs());
                steepest = steepest.max(rise / h);
            }
        }
        let outer = self.first.unwrap_or(0.0).abs().max(self.last.unwrap_or(0.0).abs());
        let steepest = 16.0 * (steepest + outer) + 1e-3;
        let size = (high - low).max(low.abs()).max(high.abs()).max(1e-300);
        let (mut a, mut b) = bracket.unwrap_or((0.0, size));
        let mut best = None;
        for _ in 0..4 {
            best = self.path(b, limit, steepest);
            if best.is_some() {
                break;
            }
            a = b;
            b *= 4.0;
        }
        best.as_ref()?;
        while b - a > tolerance * b + 1e-15 * size {
            // Geometric middle while the bracket spans magnitudes.
            let mid = if b > 8.0 * a { (a.max(1e-17 * size) * b).sqrt() } else { 0.5 * (a + b) };
            match self.path(mid, limit, steepest) {
                Some(p) => (b, best) = (mid, Some(p)),
                None => a = mid,
            }
        }
        best.map(|p| (b, p))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tube(f: impl Fn(f64) -> f64, a: f64, b: f64, m: usize) -> Tube {
        let z: Vec<f64> = (0..m).map(|i| a + (b - a) * i as f64 / (m - 1) as f64).collect();
        let y: Vec<f64> = z.iter().map(|z| f(*z)).collect();
        Tube { z, lo: y.clone(), hi: y, first: None, last: None, pinned: None }
    }

    #[test]
    fn parabola() {
        // n links for x² on an interval of length l: error (l/n)²/8, equal pieces.
        for n in 1..=6 {
            let (eps, p) = tube(|x| x * x, -1.0, 1.0, 4001).narrowest(n, None, 1e-8).unwrap();
            let exact = (2.0 / n as f64).powi(2) / 8.0;
            // A kink between samples h = 5e−4 apart sticks out by at most a quarter of h times its jump, 4/n.
            let slack = 5e-4 / n as f64;
            assert!(eps <= exact * (1.0 + 1e-7) && eps >= exact - slack, "{n}: {eps} {exact}");
            assert_eq!(p.links.len(), n);
            let worst = (0..=5000).map(|i| -1.0 + f64::from(i) / 2500.0).map(|x| (p.value(x) - x * x).abs());
            assert!(worst.fold(0.0, f64::max) <= exact + slack);
        }
    }

    #[test]
    fn an_exact_polyline_is_found() {
        let f = |x: f64| (x + 1.3).max(0.0) - 2.0 * (x - 0.4).max(0.0);
        let (eps, p) = tube(f, -3.0, 3.0, 6001).narrowest(3, None, 1e-8).unwrap();
        // All knots are samples, so only rounding of values of size 3 keeps the tube open.
        assert!(eps < 1e-9, "{eps}");
        assert_eq!(p.links.len(), 3);
    }
}
