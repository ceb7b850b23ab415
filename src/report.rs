//! Pictures: target, block and error of each response, and error against neurons. SVG text, deterministic, no fonts.
//!
//! Knows nothing of expressions, stacks or solvers: it draws the points and the bound that it is handed. What cannot be
//! drawn (NaN, infinities, an empty list) leaves a gap or a note; it never panics, and an axis is never cut silently.

use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;

use plotters::chart::ChartContext;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::error::{Error, Result};
use crate::files::write_whole;

/// One response of a report.
#[derive(Clone, Debug, Default)]
pub struct Panel {
    /// First line, bold.
    pub title: String,
    /// Second line: status, neurons, domain.
    pub subtitle: String,
    /// The finite part of the domain that is shown.
    pub domain: (f64, f64),
    /// The target as a polyline of `(z, value)`; a NaN value breaks the line (a jump).
    pub target: Vec<(f64, f64)>,
    /// The block, likewise.
    pub block: Vec<(f64, f64)>,
    /// Block minus target, likewise.
    pub error: Vec<(f64, f64)>,
    /// The certified bound on the error.
    pub epsilon: f64,
    /// Intervals of z to shade: where the pre-activation may be off by δ across a jump.
    pub bands: Vec<(f64, f64)>,
    /// Is `error` the distance to the target's hull over ±δ, not to the target itself?
    pub hull_error: bool,
}

/// More panels than this make a picture nobody looks at; the rest is counted in a note.
const MAX_PANELS: usize = 24;
/// The same for the lines of [`log_plot`].
const MAX_SERIES: usize = 16;
/// Larger magnitudes count as infinite: sums and differences of drawable values stay far from overflow.
const LIMIT: f64 = 1e150;
/// The backend's coordinates are whole numbers, so everything is drawn this much larger than it is shown.
const SCALE: i32 = 8;

const WHITE_PAPER: RGBColor = RGBColor(255, 255, 255);
const INK: RGBColor = RGBColor(28, 36, 48);
const FAINT_INK: RGBColor = RGBColor(94, 104, 118);
const AXIS: RGBColor = RGBColor(150, 158, 168);
const GRID: RGBColor = RGBColor(232, 235, 239);
const TARGET: RGBColor = RGBColor(132, 196, 240);
const BLOCK: RGBColor = RGBColor(20, 40, 80);
const ERROR: RGBColor = RGBColor(190, 48, 32);
const BOUND: RGBColor = RGBColor(46, 125, 80);
const BAND: RGBColor = RGBColor(252, 236, 196);
/// Okabe and Ito's colours, which the colour-blind can tell apart; the yellow is left out (too light on white).
const SERIES: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(40, 40, 40),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Scale, Scale>>;

/// The report's picture: a grid of panels, each the target under the block, and their error inside ±ε.
///
/// ```
/// use neurograft::report::{Panel, svg};
/// let line: Vec<(f64, f64)> = (0..=10).map(|i| (i as f64, i as f64)).collect();
/// let panel = Panel { title: "a line".into(), domain: (0.0, 10.0), target: line, epsilon: 1e-6, ..Panel::default() };
/// assert!(svg("Example", &[panel])?.starts_with("<svg"));
/// # Ok::<(), neurograft::Error>(())
/// ```
pub fn svg(heading: &str, panels: &[Panel]) -> Result<String> {
    let shown = &panels[..panels.len().min(MAX_PANELS)];
    let columns = match shown.len() {
        0 | 1 => 1,
        2..=4 => 2,
        _ => 3,
    };
    let (panel_width, panel_height, top) = (if columns == 1 { 640 } else { 440 }, 372, 64);
    let left_out = panels.len() - shown.len();
    let rows = shown.len().div_ceil(columns).max(1) as i32;
    let footer = if left_out > 0 { 28 } else { 6 };
    let size = (columns as i32 * panel_width, top + rows * panel_height + footer);
    render(heading, size, |root| {
        text(root, heading, (16, 14), 19, INK, true, HPos::Left, size.0 - 32)?;
        legend(root, shown)?;
        if shown.is_empty() {
            text(root, "nothing to show", (16, top + 30), 13, FAINT_INK, false, HPos::Left, size.0 - 32)?;
        }
        for (i, panel) in shown.iter().enumerate() {
            let (row, column) = ((i / columns) as i32, (i % columns) as i32);
            draw_panel(root, panel, (column * panel_width, top + row * panel_height), (panel_width, panel_height))?;
        }
        if left_out > 0 {
            let note = format!("… and {left_out} more");
            text(root, &note, (16, size.1 - 24), 13, FAINT_INK, false, HPos::Left, size.0 - 32)?;
        }
        Ok(())
    })
}

/// Writes [`svg`]'s picture, whole or not at all.
pub fn write_svg(path: impl AsRef<Path>, heading: &str, panels: &[Panel]) -> Result<()> {
    write_whole(path.as_ref(), svg(heading, panels)?.as_bytes())
}

/// Error against neurons: one line a series, logarithmic in the error, and in x where x spans a factor of 16 or more.
/// An error of exactly 0 has no logarithm: it is a hollow marker on the lower edge, and the picture says so.
pub fn log_plot(title: &str, x_label: &str, series: &[(String, Vec<(f64, f64)>)]) -> Result<String> {
    let shown = &series[..series.len().min(MAX_SERIES)];
    let points: Vec<Vec<(f64, f64)>> = shown.iter().map(|(_, p)| plottable(p)).collect();
    let xs = || points.iter().flatten().map(|p| p.0);
    let x_log = xs().all(|x| x > 0.0) && xs().fold(0.0, f64::max) >= 16.0 * xs().fold(LIMIT, f64::min);
    let along = |x: f64| if x_log { x.log2() } else { x };
    let x_range = padded(extent(xs().map(along)).unwrap_or((0.0, 1.0)), 0.04);
    let x_scale = if x_log {
        Scale { ticks: whole_ticks(&x_range, 10), range: x_range, labels: Labels::PowersOfTwo }
    } else {
        Scale::linear(x_range, 8)
    };

    let positive = points.iter().flatten().map(|p| p.1).filter(|y| *y > 0.0).map(f64::log10);
    let (lo, hi) = extent(positive).unwrap_or((-1.0, 0.0));
    let y_range = (lo - 0.15).floor()..(hi + 0.05).ceil().max((lo - 0.15).floor() + 1.0);
    let floor = y_range.start;
    let y_scale = Scale { ticks: whole_ticks(&y_range, 10), range: y_range, labels: Labels::PowersOfTen };
    let any_exact = points.iter().flatten().any(|p| p.1 == 0.0);

    let (plot_width, key_width, size) = (580, 220, (800, 480));
    render(title, size, |root| {
        text(root, title, (16, 14), 17, INK, true, HPos::Left, size.0 - 32)?;
        let y_name = "error (log scale)";
        text(root, y_name, (16, 42), 12, FAINT_INK, false, HPos::Left, plot_width)?;
        let x_name = if x_log { format!("{x_label} (log scale)") } else { x_label.to_string() };
        let size_of_chart = (plot_width - 10, size.1 - 62 - 8);
        let mut chart = chart(root, (10, 62), size_of_chart, x_scale, y_scale, &x_name, &[])?;
        for (i, points) in points.iter().enumerate() {
            let (color, at) = (SERIES[i % SERIES.len()], |p: &(f64, f64)| (along(p.0), p.1.log10()));
            let line: Vec<(f64, f64)> = points.iter().filter(|p| p.1 > 0.0).map(at).collect();
            draw_curve(&mut chart, &line, color.stroke_width(px(2)))?;
            for p in points {
                let (x, exact) = (along(p.0), p.1 == 0.0);
                let y = if exact { floor } else { p.1.log10() };
                let center = chart.backend_coord(&(x, y));
                marker(root, i, center, exact)?;
            }
        }
        let mut y = 74;
        for (i, (name, _)) in shown.iter().enumerate() {
            let x = plot_width + 14;
            line(root, (x, y), (x + 26, y), SERIES[i % SERIES.len()], 2)?;
            marker(root, i, (px_i(x + 13), px_i(y)), false)?;
            text(root, name, (x + 34, y - 7), 12, INK, false, HPos::Left, key_width - 52)?;
            y += 20;
        }
        let note =
            |y: i32, s: &str| text(root, s, (plot_width + 14, y), 12, FAINT_INK, false, HPos::Left, key_width - 18);
        if series.len() > shown.len() {
            note(y - 7, &format!("… and {} more", series.len() - shown.len()))?;
            y += 20;
        }
        if any_exact {
            note(y, "hollow, on the lower edge:")?;
            note(y + 16, "the error is exactly 0")?;
        }
        if points.iter().all(Vec::is_empty) {
            text(root, "no finite data", (plot_width / 2, size.1 / 2), 13, FAINT_INK, false, HPos::Center, 200)?;
        }
        Ok(())
    })
}

// ---------------------------------------------------------------------------------------------------------- panels

fn draw_panel(root: &Area, panel: &Panel, (x, y): (i32, i32), (width, height): (i32, i32)) -> Result<()> {
    let inner = width - 32;
    text(root, &panel.title, (x + 16, y + 4), 14, INK, true, HPos::Left, inner)?;
    text(root, &panel.subtitle, (x + 16, y + 23), 12, FAINT_INK, false, HPos::Left, inner)?;

    let range = shown_domain(panel);
    let z = Scale::linear(range, 8);
    let bands: Vec<(f64, f64)> = visible_bands(panel, &z.range);
    let (chart_x, chart_width) = (x + 8, width - 22);
    let (upper_y, upper_height, caption, lower_y) = (y + 46, 176, y + 228, y + 244);

    // Target and block.
    let values = panel.target.iter().chain(&panel.block).filter(|p| z.range.start <= p.0 && p.0 <= z.range.end);
    let found = extent(values.map(|p| p.1));
    let range = padded(found.unwrap_or((0.0, 1.0)), 0.07);
    let (at, size) = ((chart_x, upper_y), (chart_width, upper_height));
    let silent = Scale { labels: Labels::None, ..z.clone() };
    let value_count = if found.is_some() { 5 } else { 0 };
    let mut upper = chart(root, at, size, silent, Scale::linear(range, value_count), "", &bands)?;
    draw_curve(&mut upper, &panel.target, TARGET.stroke_width(px(5)))?;
    draw_curve(&mut upper, &panel.block, ShapeStyle { stroke_width: 11, ..BLOCK.stroke_width(1) })?;
    if found.is_none() {
        let middle = (x + width / 2, upper_y + upper_height / 2 - 8);
        text(root, "no finite data", middle, 13, FAINT_INK, false, HPos::Center, inner)?;
    }

    // The error, inside ±ε.
    let view = ErrorView::new(panel, &z.range);
    let mut error = Scale::linear(-view.reach..view.reach, 5);
    if view.empty {
        error.ticks = vec![0.0];
    }
    let what = if panel.hull_error { "distance to the target's hull" } else { "block − target" };
    let what = match view.off_scale {
        Some(peak) => format!("{what} (off scale up to {})", number(peak, 2)),
        None => what.to_string(),
    };
    text(root, &what, (x + 62, caption), 11, ERROR, false, HPos::Left, width - 62 - 130)?;
    text(root, &bound_text(panel.epsilon), (x + width - 18, caption), 11, BOUND, true, HPos::Right, 120)?;
    let (at, size) = ((chart_x, lower_y), (chart_width, height - (lower_y - y) - 8));
    let (lo, hi) = (z.range.start, z.range.end);
    let mut lower = chart(root, at, size, z, error, "z", &bands)?;
    if (0.0..=LIMIT).contains(&panel.epsilon) {
        let strip = Rectangle::new([(lo, -panel.epsilon), (hi, panel.epsilon)], BOUND.mix(0.16).filled());
        lower.draw_series([strip]).map_err(drawing)?;
        for edge in [-panel.epsilon, panel.epsilon] {
            draw_curve(&mut lower, &[(lo, edge), (hi, edge)], BOUND.stroke_width(px(1)))?;
        }
    }
    draw_curve(&mut lower, &panel.error, ShapeStyle { stroke_width: 11, ..ERROR.stroke_width(1) })
}

/// The bound's text; rounded upwards, as a bound must be.
fn bound_text(epsilon: f64) -> String {
    if (0.0..=LIMIT).contains(&epsilon) {
        format!("±ε,  ε = {}", number_up(epsilon))
    } else if epsilon > LIMIT {
        "ε: unbounded".to_string()
    } else {
        "no bound".to_string()
    }
}

/// How far the error's axis reaches.
struct ErrorView {
    reach: f64,
    /// The largest error of the bands, where the axis does not reach it.
    off_scale: Option<f64>,
    /// Neither an error nor a bound other than 0.
    empty: bool,
}

impl ErrorView {
    /// Across a jump the plain error is as large as the jump: the axis then serves what is outside of the bands.
    fn new(panel: &Panel, z: &Range<f64>) -> Self {
        let inside = |x: f64| !panel.hull_error && panel.bands.iter().any(|b| b.0 <= x && x <= b.1);
        let bound = if panel.epsilon > 0.0 && panel.epsilon <= LIMIT { panel.epsilon } else { 0.0 };
        let (mut outside, mut banded) = (bound, 0.0f64);
        for (x, e) in &panel.error {
            if z.contains(x) && e.abs() <= LIMIT {
                let slot = if inside(*x) { &mut banded } else { &mut outside };
                *slot = slot.max(e.abs());
            }
        }
        let peak = if outside > 0.0 { outside } else { banded };
        let empty = peak == 0.0;
        // A subnormal reach has no ticks; nothing certified is that small.
        let reach = if empty { 1.0 } else { (peak * 1.25).max(1e-300) };
        ErrorView { reach, off_scale: (banded > reach).then_some(banded), empty }
    }
}

fn shown_domain(panel: &Panel) -> Range<f64> {
    let (lo, hi) = panel.domain;
    if lo < hi && lo.abs() <= LIMIT && hi.abs() <= LIMIT {
        return lo..hi;
    }
    let curves = panel.target.iter().chain(&panel.block).chain(&panel.error);
    padded(extent(curves.map(|p| p.0)).unwrap_or((-1.0, 1.0)), 0.0)
}

/// The bands inside the domain, each wide enough to be seen.
fn visible_bands(panel: &Panel, z: &Range<f64>) -> Vec<(f64, f64)> {
    let least = (z.end - z.start) / 250.0;
    let inside = panel.bands.iter().filter(|b| b.0 <= b.1 && b.0 < z.end && b.1 > z.start);
    let widened = inside.map(|&(a, b)| {
        let more = ((least - (b - a)) / 2.0).max(0.0);
        ((a - more).max(z.start), (b + more).min(z.end))
    });
    widened.collect()
}

fn legend(root: &Area, panels: &[Panel]) -> Result<()> {
    let mut x = 16;
    let y = 49;
    let has = |f: fn(&Panel) -> bool| panels.iter().any(f);
    let strokes = [
        (has(|p| !p.target.is_empty()), "target", TARGET, 5),
        (has(|p| !p.block.is_empty()), "block", BLOCK, 1),
        (has(|p| !p.error.is_empty()), "error", ERROR, 1),
    ];
    for (_, name, color, width) in strokes.into_iter().filter(|s| s.0) {
        line(root, (x, y), (x + 26, y), color, width)?;
        text(root, name, (x + 33, y - 7), 12, INK, false, HPos::Left, 80)?;
        x += 33 + 52;
    }
    let fills = [
        (has(|p| (0.0..=LIMIT).contains(&p.epsilon)), "certified ±ε", BOUND.mix(0.16), Some(BOUND), 94),
        (has(|p| !p.bands.is_empty()), "within δ of a jump", BAND.mix(1.0), None, 140),
    ];
    for (_, name, fill, edge, room) in fills.into_iter().filter(|f| f.0) {
        rectangle(root, (x, y - 6), (x + 26, y + 6), fill)?;
        if let Some(edge) = edge {
            line(root, (x, y - 6), (x + 26, y - 6), edge, 1)?;
            line(root, (x, y + 6), (x + 26, y + 6), edge, 1)?;
        }
        text(root, name, (x + 33, y - 7), 12, INK, false, HPos::Left, room)?;
        x += 33 + room;
    }
    Ok(())
}

// ------------------------------------------------------------------------------------------------------ primitives

/// An axis: what it spans, where it has ticks and how they read.
#[derive(Clone)]
struct Scale {
    range: Range<f64>,
    ticks: Vec<f64>,
    labels: Labels,
}

#[derive(Clone, Copy)]
enum Labels {
    None,
    Values,
    /// The axis holds exponents.
    PowersOfTwo,
    PowersOfTen,
}

impl Scale {
    fn linear(range: Range<f64>, count: usize) -> Self {
        Scale { ticks: if count == 0 { Vec::new() } else { ticks(&range, count) }, range, labels: Labels::Values }
    }
}

impl Ranged for Scale {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;
    fn map(&self, v: &f64, limit: (i32, i32)) -> i32 {
        let share = (v - self.range.start) / (self.range.end - self.range.start);
        (f64::from(limit.0) + share * f64::from(limit.1 - limit.0)).round() as i32
    }
    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }
    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Scale {
    fn format_ext(&self, v: &f64) -> String {
        match self.labels {
            Labels::None => String::new(),
            Labels::Values => tick_label(*v, &self.range),
            Labels::PowersOfTwo => number(v.exp2(), 4),
            Labels::PowersOfTen => decade(*v),
        }
    }
}

/// Sets up axes at a place on the page, with the bands shaded under the grid.
fn chart<'a, 'b>(
    root: &Area<'b>,
    at: (i32, i32),
    size: (i32, i32),
    x: Scale,
    y: Scale,
    x_name: &str,
    bands: &[(f64, f64)],
) -> Result<Chart<'a, 'b>> {
    let area = root.clone().shrink((px(at.0), px(at.1)), (px(size.0), px(size.1)));
    let (bottom, top) = (y.range.start, y.range.end);
    let mut chart = ChartBuilder::on(&area)
        .margin_top(px(4))
        .margin_right(px(4))
        .set_label_area_size(LabelAreaPosition::Left, px(54))
        .set_label_area_size(LabelAreaPosition::Bottom, px(if x_name.is_empty() { 4 } else { 32 }))
        .build_cartesian_2d(x, y)
        .map_err(drawing)?;
    let shade = |&(a, b): &(f64, f64)| Rectangle::new([(a, bottom), (b, top)], BAND.filled());
    chart.draw_series(bands.iter().map(shade)).map_err(drawing)?;
    let style = ("sans-serif", px(11)).into_font().color(&FAINT_INK);
    chart
        .configure_mesh()
        .bold_line_style(GRID.stroke_width(px(1)))
        .light_line_style(TRANSPARENT)
        .axis_style(AXIS.stroke_width(px(1)))
        .set_all_tick_mark_size(px(3))
        .label_style(style.clone())
        .axis_desc_style(style)
        .x_desc(printable(x_name, size.0 - 60, 11))
        .draw()
        .map_err(drawing)?;
    Ok(chart)
}

/// Draws a polyline, clipped to the chart; NaN and infinities break it. A lone point is a dot.
fn draw_curve(chart: &mut Chart, points: &[(f64, f64)], style: ShapeStyle) -> Result<()> {
    let (xs, ys) = (chart.x_range(), chart.y_range());
    let columns = f64::from(chart.plotting_area().dim_in_pixel().0) / f64::from(SCALE) * 4.0;
    for run in runs(points) {
        if let [(x, y)] = run[..] {
            if (xs.start..=xs.end).contains(&x) && (ys.start..=ys.end).contains(&y) {
                let dot = Circle::new((x, y), style.stroke_width.max(px(3)) / 2, style.color.filled());
                chart.draw_series([dot]).map_err(drawing)?;
            }
            continue;
        }
        let pieces = clip(&thinned(&run, &xs, columns), &xs, &ys);
        chart.draw_series(pieces.into_iter().map(|p| PathElement::new(p, style))).map_err(drawing)?;
    }
    Ok(())
}

/// The maximal runs of drawable points.
fn runs(points: &[(f64, f64)]) -> Vec<Vec<(f64, f64)>> {
    let drawable = |p: &(f64, f64)| p.0.abs() <= LIMIT && p.1.abs() <= LIMIT;
    let pieces = points.split(|p| !drawable(p)).filter(|run| !run.is_empty());
    pieces.map(<[_]>::to_vec).collect()
}

/// Of the points that share one of `columns` columns, the first, the last and the extremes: the picture is the same.
fn thinned(run: &[(f64, f64)], xs: &Range<f64>, columns: f64) -> Vec<(f64, f64)> {
    let column = |p: &(f64, f64)| ((p.0 - xs.start) / (xs.end - xs.start) * columns).floor();
    let mut kept = Vec::new();
    for group in run.chunk_by(|a, b| column(a) == column(b)) {
        let by_value = |a: &&usize, b: &&usize| group[**a].1.total_cmp(&group[**b].1);
        let indices: Vec<usize> = (0..group.len()).collect();
        let mut keep: Vec<usize> = vec![0, group.len() - 1];
        keep.extend(indices.iter().min_by(by_value));
        keep.extend(indices.iter().max_by(by_value));
        keep.sort_unstable();
        keep.dedup();
        kept.extend(keep.into_iter().map(|i| group[i]));
    }
    kept
}

/// The parts of a polyline inside a rectangle (Liang and Barsky's method, segment by segment).
fn clip(points: &[(f64, f64)], xs: &Range<f64>, ys: &Range<f64>) -> Vec<Vec<(f64, f64)>> {
    let mut pieces: Vec<Vec<(f64, f64)>> = Vec::new();
    let mut open = false;
    for pair in points.windows(2) {
        let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
        let (dx, dy) = (x1 - x0, y1 - y0);
        let (mut enter, mut leave) = (0.0f64, 1.0f64);
        for (d, room) in [(-dx, x0 - xs.start), (dx, xs.end - x0), (-dy, y0 - ys.start), (dy, ys.end - y0)] {
            if d == 0.0 && room < 0.0 {
                leave = -1.0;
            } else if d < 0.0 {
                enter = enter.max(room / d);
            } else if d > 0.0 {
                leave = leave.min(room / d);
            }
        }
        if enter > leave {
            open = false;
            continue;
        }
        let at = |t: f64| ((x0 + t * dx).clamp(xs.start, xs.end), (y0 + t * dy).clamp(ys.start, ys.end));
        match pieces.last_mut() {
            Some(piece) if open => piece.push(at(leave)),
            _ => pieces.push(vec![at(enter), at(leave)]),
        }
        open = leave == 1.0;
    }
    pieces
}

/// The points of a series of [`log_plot`] that have a place: x finite, error finite and not negative; by x.
fn plottable(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut kept: Vec<_> =
        points.iter().copied().filter(|p| p.0.abs() <= LIMIT && (0.0..=LIMIT).contains(&p.1)).collect();
    kept.sort_by(|a, b| a.0.total_cmp(&b.0));
    kept
}

/// Least and greatest of the drawable values.
fn extent(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|v| v.abs() <= LIMIT).fold(None, |e, v| match e {
        None => Some((v, v)),
        Some((lo, hi)) => Some((lo.min(v), hi.max(v))),
    })
}

/// A range with some room on both sides, and never so narrow that its labels could not differ.
fn padded((lo, hi): (f64, f64), share: f64) -> Range<f64> {
    let size = lo.abs().max(hi.abs());
    let least = if size > 0.0 { size * 1e-6 } else { 1.0 };
    let flat = if size > 0.0 { size * 0.1 } else { 1.0 };
    let room = if hi - lo >= least { (hi - lo) * share } else { flat };
    (lo - room)..(hi + room)
}

/// About `count` round numbers inside the range.
fn ticks(range: &Range<f64>, count: usize) -> Vec<f64> {
    let raw = (range.end - range.start) / count as f64;
    let power = 10f64.powi(raw.log10().floor() as i32);
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= raw * 0.999).unwrap_or(raw);
    let (first, last) = ((range.start / step).ceil(), (range.end / step).floor());
    // Ticks closer than the numbers are dense: the ends will do.
    let tells_apart = last - first <= 4.0 * count as f64 && first.abs().max(last.abs()) <= 1e9;
    if !tells_apart {
        return vec![range.start, range.end];
    }
    (first as i64..=last as i64).map(|k| k as f64 * step).collect()
}

/// Whole numbers inside the range, at most about `count`.
fn whole_ticks(range: &Range<f64>, count: usize) -> Vec<f64> {
    let (first, last) = (range.start.ceil() as i64, range.end.floor() as i64);
    let step = (last - first).max(0) as usize / count + 1;
    (first..=last).step_by(step).map(|k| k as f64).collect()
}

/// A tick's text: all digits that tell it from its neighbours, no more.
fn tick_label(v: f64, range: &Range<f64>) -> String {
    let (size, span) = (range.start.abs().max(range.end.abs()), range.end - range.start);
    let digits = ((size / span).log10().ceil() + 2.0).clamp(2.0, 12.0);
    if v.abs() < span * 1e-9 { "0".to_string() } else { number(v, digits as usize) }
}

/// A number with so many significant digits, without trailing zeros; powers of ten outside of [1e-3, 1e5).
fn number(v: f64, digits: usize) -> String {
    if v == 0.0 || !v.is_finite() {
        return if v == 0.0 { "0".to_string() } else { v.to_string() };
    }
    tidy(&format!("{v:.*e}", digits - 1))
}

/// Three significant digits, never below `v`.
fn number_up(v: f64) -> String {
    let text = format!("{v:.2e}");
    if text.parse::<f64>().is_ok_and(|shown| shown >= v) {
        return tidy(&text);
    }
    let exponent: i32 = text.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    let mantissa: f64 = text.split_once('e').and_then(|(m, _)| m.parse().ok()).unwrap_or(0.0);
    tidy(&format!("{:.2e}", format!("{:.2}e{exponent}", mantissa + 0.01).parse().unwrap_or(v)))
}

/// `1.50e-2` as `0.015`, `-2.00e-7` as `−2e-7`.
fn tidy(scientific: &str) -> String {
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let decimals = mantissa.split_once('.').map_or(0, |(_, d)| d.len()) as i32;
    let trim = |s: &str| {
        let short = if s.contains('.') { s.trim_end_matches('0').trim_end_matches('.') } else { s };
        short.replace('-', "−")
    };
    if (-3..5).contains(&exponent) {
        let value: f64 = scientific.parse().unwrap_or(0.0);
        return trim(&format!("{value:.*}", (decimals - exponent).max(0) as usize));
    }
    format!("{}e{exponent}", trim(mantissa))
}

/// The label of a power of ten.
fn decade(exponent: f64) -> String {
    match exponent as i32 {
        0 => "1".to_string(),
        1 => "10".to_string(),
        e => format!("1e{e}"),
    }
}

fn px(n: i32) -> u32 {
    px_i(n).max(0) as u32
}
fn px_i(n: i32) -> i32 {
    n * SCALE
}

fn line(root: &Area, from: (i32, i32), to: (i32, i32), color: RGBColor, width: i32) -> Result<()> {
    let ends = [from, to].map(|(x, y)| (px_i(x), px_i(y)));
    root.draw(&PathElement::new(ends, color.stroke_width(px(width)))).map_err(drawing)
}

fn rectangle(root: &Area, from: (i32, i32), to: (i32, i32), color: RGBAColor) -> Result<()> {
    let corners = [from, to].map(|(x, y)| (px_i(x), px_i(y)));
    root.draw(&Rectangle::new(corners, color.filled())).map_err(drawing)
}

/// The marker of the i-th series: shapes tell the lines apart where colours do not.
fn marker(root: &Area, i: usize, (x, y): (i32, i32), hollow: bool) -> Result<()> {
    let (color, r) = (SERIES[i % SERIES.len()], px_i(4));
    let shape = match (i % SERIES.len() + i / SERIES.len()) % 4 {
        0 => (0..32).map(|k| f64::from(k) * std::f64::consts::TAU / 32.0).map(|a| (a.cos(), a.sin())).collect(),
        1 => vec![(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        2 => vec![(0.0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
        _ => vec![(0.0, -1.25), (1.25, 0.0), (0.0, 1.25), (-1.25, 0.0)],
    };
    let place = |&(a, b): &(f64, f64)| (x + (a * f64::from(r)) as i32, y + (b * f64::from(r)) as i32);
    let mut outline: Vec<(i32, i32)> = shape.iter().map(place).collect();
    let fill = if hollow { WHITE_PAPER } else { color };
    root.draw(&Polygon::new(outline.clone(), fill.filled())).map_err(drawing)?;
    outline.push(outline[0]);
    let rim = if hollow { color } else { WHITE_PAPER };
    root.draw(&PathElement::new(outline, rim.stroke_width(px(if hollow { 2 } else { 1 })))).map_err(drawing)
}

#[allow(clippy::too_many_arguments)]
fn text(
    root: &Area,
    s: &str,
    (x, y): (i32, i32),
    size: i32,
    color: RGBColor,
    bold: bool,
    anchor: HPos,
    width: i32,
) -> Result<()> {
    let weight = if bold { FontStyle::Bold } else { FontStyle::Normal };
    let style =
        TextStyle::from(("sans-serif", px(size), weight).into_font()).color(&color).pos(Pos::new(anchor, VPos::Top));
    root.draw(&Text::new(printable(s, width, size), (px_i(x), px_i(y)), style)).map_err(drawing)
}

/// The text on one line, without what XML forbids, shortened to about `width` at this font size.
fn printable(s: &str, width: i32, size: i32) -> String {
    let room = (f64::from(width) / (0.54 * f64::from(size))).max(1.0) as usize;
    let clean = |c: char| match c {
        '\n' | '\r' | '\t' => ' ',
        '\u{fffe}' | '\u{ffff}' => char::REPLACEMENT_CHARACTER,
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    if s.chars().count() <= room {
        return s.chars().map(clean).collect();
    }
    s.chars().take(room - 1).map(clean).chain(['…']).collect()
}

/// Runs the drawing on white paper and returns the text.
fn render(name: &str, (width, height): (i32, i32), draw: impl FnOnce(&Area) -> Result<()>) -> Result<String> {
    let mut body = String::new();
    {
        let root = SVGBackend::with_string(&mut body, (px(width), px(height))).into_drawing_area();
        root.fill(&WHITE_PAPER).map_err(drawing)?;
        draw(&root)?;
        root.present().map_err(drawing)?;
    }
    // The backend knows one size; the page is shown SCALE times smaller than its coordinates.
    let start = body.find(" viewBox").unwrap_or(0);
    let inside = body.find(">\n").map_or(start, |i| i + 2);
    let mut text = String::with_capacity(body.len() + 200);
    write!(text, r#"<svg width="{width}" height="{height}" role="img" stroke-linejoin="round""#).map_err(drawing)?;
    text.push_str(&body[start..inside]);
    let escaped = printable(name, i32::MAX, 1).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    writeln!(text, "<title>{escaped}</title>").map_err(drawing)?;
    text.push_str(&body[inside..]);
    Ok(text)
}

fn drawing(e: impl std::fmt::Display) -> Error {
    Error::io("drawing failed", std::io::Error::other(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(f: impl Fn(f64) -> f64, lo: f64, hi: f64) -> Vec<(f64, f64)> {
        (0..=400).map(|i| lo + (hi - lo) * f64::from(i) / 400.0).map(|z| (z, f(z))).collect()
    }

    fn smooth(title: &str) -> Panel {
        Panel {
            title: title.into(),
            subtitle: "Within · 2 neurons · z in [−4, 4]".into(),
            domain: (-4.0, 4.0),
            target: sample(f64::sin, -4.0, 4.0),
            block: sample(|z| z.sin() + 1e-3 * (9.0 * z).cos(), -4.0, 4.0),
            error: sample(|z| 1e-3 * (9.0 * z).cos(), -4.0, 4.0),
            epsilon: 1.004e-3,
            ..Panel::default()
        }
    }

    /// Checks what the backend could get wrong: tags that close in order, quoted attributes, no stray `<` or `&`.
    fn assert_well_formed(text: &str) {
        let mut open: Vec<&str> = Vec::new();
        let mut rest = text;
        let mut roots = 0;
        while let Some(start) = rest.find('<') {
            assert_text(&rest[..start]);
            let end = start + rest[start..].find('>').expect("a tag ends");
            let tag = &rest[start + 1..end];
            assert!(!tag.contains('<'), "{tag}");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name));
            } else {
                assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
                tag.split('"').skip(1).step_by(2).for_each(assert_text);
                roots += usize::from(open.is_empty());
                if !tag.ends_with('/') {
                    open.push(tag.split_whitespace().next().unwrap());
                }
            }
            rest = &rest[end + 1..];
        }
        assert!(open.is_empty() && rest.trim().is_empty());
        assert_eq!(roots, 1);
    }

    fn assert_text(s: &str) {
        assert!(s.chars().all(|c| c == '\n' || !c.is_control()), "{s:?}");
        for part in s.split('&').skip(1) {
            let entity = part.split(';').next().unwrap();
            assert!(["amp", "lt", "gt", "quot", "apos"].contains(&entity), "{s:?}");
        }
        assert!(!s.contains("NaN") && !s.contains("inf"), "{s:?}");
    }

    #[test]
    fn titles_stand_in_the_picture_escaped() {
        let picture = svg("a < b & \u{1} c", &[smooth("relu(z) <&> 1"), smooth("plain")]).unwrap();
        assert_well_formed(&picture);
        assert!(picture.contains("relu(z) &lt;&amp;&gt; 1"));
        assert!(picture.contains("<title>a &lt; b &amp; \u{fffd} c</title>"));
        assert!(picture.contains("ε = 0.00101"), "the bound is printed, and rounded upwards");
        assert_eq!(picture.matches("certified ±ε").count(), 1, "one legend for all panels");
    }

    #[test]
    fn same_input_same_picture() {
        let panels = [smooth("a"), smooth("b"), smooth("c")];
        assert_eq!(svg("h", &panels).unwrap(), svg("h", &panels).unwrap());
    }

    #[test]
    fn the_page_is_white_paper() {
        let picture = svg("h", &[smooth("a")]).unwrap();
        let first = picture.split_once("</title>").unwrap().1.trim_start();
        assert!(
            first.starts_with("<rect x=\"0\" y=\"0\"") && first[..200].contains("fill=\"#FFFFFF\""),
            "{first:.200}"
        );
    }

    #[test]
    fn degenerate_input_is_drawn_or_noted() {
        let nan = f64::NAN;
        let inf = f64::INFINITY;
        let extremes = [0.0, -0.0, 1.0, 5e-324, 1e-300, 1e16, 1e149, f64::MAX, inf, -inf, nan];
        let mut panels = vec![Panel::default()];
        for &a in &extremes {
            for &b in &extremes {
                let points = vec![(a, b), (b, a), (0.5, nan), (0.6, b), (0.7, 2.0), (nan, nan), (0.9, a)];
                panels.push(Panel {
                    title: "\u{0}\n".into(),
                    domain: (a, b),
                    target: points.clone(),
                    block: vec![(0.0, a), (1.0, a)],
                    error: points,
                    epsilon: b,
                    bands: vec![(a, b), (b, a)],
                    ..Panel::default()
                });
            }
        }
        for chunk in panels.chunks(MAX_PANELS) {
            assert_well_formed(&svg("", chunk).unwrap());
        }
        assert_well_formed(&svg("empty", &[]).unwrap());
        let series: Vec<_> = extremes
            .iter()
            .flat_map(|&a| extremes.map(|b| ("s".to_string(), vec![(a, b), (b, a), (1.0, b), (2.0, a)])))
            .collect();
        for chunk in series.chunks(3) {
            assert_well_formed(&log_plot("t", "x", chunk).unwrap());
        }
        assert_well_formed(&log_plot("t", "x", &series).unwrap());
        assert_well_formed(&log_plot("", "", &[]).unwrap());
    }

    #[test]
    fn many_panels_are_counted_not_drawn() {
        let panels = vec![smooth("p"); MAX_PANELS + 3];
        let picture = svg("h", &panels).unwrap();
        assert!(picture.contains("… and 3 more"));
        assert_eq!(picture.matches("block − target").count(), MAX_PANELS);
    }

    #[test]
    fn an_axis_that_is_cut_says_so() {
        let step = |z: f64| if z > 0.0 { 1.0 } else { 0.0 };
        let ramp = |z: f64| (0.5 + z).clamp(0.0, 1.0);
        let mut panel = smooth("step");
        panel.error = sample(|z| ramp(z) - step(z), -4.0, 4.0);
        panel.bands = vec![(-0.5, 0.5)];
        assert!(svg("h", &[panel.clone()]).unwrap().contains("off scale up to 0.5"));
        panel.hull_error = true;
        assert!(!svg("h", &[panel]).unwrap().contains("off scale"));
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(number(0.015, 3), "0.015");
        assert_eq!(number(-12000.0, 3), "−12000");
        assert_eq!(number(2e-7, 3), "2e-7");
        assert_eq!(number(1.5e20, 3), "1.5e20");
        assert_eq!(number_up(1.0001e-5), "1.01e-5");
        assert_eq!(number_up(9.999e-5), "1e-4");
        assert_eq!(number_up(0.27846), "0.279");
        assert_eq!(number_up(1.0), "1");
        assert_eq!(number_up(0.0), "0");
        assert_eq!(ticks(&(-4.0..4.0), 8), [-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn lines_are_clipped_where_they_leave() {
        let pieces = clip(&[(-1.0, 0.5), (2.0, 0.5), (2.0, 0.7), (0.5, 0.7)], &(0.0..1.0), &(0.0..1.0));
        assert_eq!(pieces, [vec![(0.0, 0.5), (1.0, 0.5)], vec![(1.0, 0.7), (0.5, 0.7)]]);
    }

    #[test]
    fn thinning_keeps_ends_and_peaks() {
        let mut run: Vec<(f64, f64)> = (0..100_000).map(|i| (f64::from(i) / 1e5, 0.0)).collect();
        run[54_321].1 = 9.0;
        let kept = thinned(&run, &(0.0..1.0), 100.0);
        assert!(kept.len() <= 400 && kept.contains(&run[54_321]));
        assert_eq!((kept[0], kept[kept.len() - 1]), (run[0], run[99_999]));
    }

    #[test]
    fn a_picture_replaces_the_old_one_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.svg");
        std::fs::write(&path, "old").unwrap();
        write_svg(&path, "h", &[smooth("a")]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), svg("h", &[smooth("a")]).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(write_svg(folder.path().join("no/such/folder.svg"), "h", &[]).unwrap_err().is_io());
    }
}
