//! Drawing a plot on any plotters backend, at any scale.
//!
//! The layout is in nominal pixels; `Pen` multiplies by the scale. From top to bottom: title, legend, chart with its
//! axes, caption. The legend stands above the chart, so it never covers data.

use super::axis::{Axis, Scale};
use super::bitmap::{FAMILY, SIZE_PER_EM, text_width};
use super::format::number;
use super::plot::{Plot, Series};
use crate::{Error, Result};
use plotters::chart::ChartBuilder;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, PathElement, Polygon, Rectangle, Text};
use plotters::prelude::{DrawingBackend, SVGBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontDesc, FontFamily, FontStyle, RGBColor, ShapeStyle, TextStyle, WHITE};
use std::fmt::Display;

/// Okabe and Ito's colours, which colour-blind readers tell apart, without the yellow that white paper swallows.
const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(110, 110, 110),
];
const TEXT: RGBColor = RGBColor(40, 40, 40);
const QUIET: RGBColor = RGBColor(95, 95, 95);
const GRID: RGBColor = RGBColor(228, 228, 228);
const AXIS: RGBColor = RGBColor(120, 120, 120);
const BASELINE: RGBColor = RGBColor(70, 70, 70);

/// Sizes in nominal pixels; text sizes are ems.
const MARGIN: f64 = 18.0;
const TITLE: f64 = 18.0;
const LABEL: f64 = 14.0;
const TICK: f64 = 13.0;
const SMALL: f64 = 11.5;
const LEGEND_ROW: f64 = 22.0;
/// Samples in the legend: a piece of a line, a marker alone.
const LINE: f64 = 30.0;
const MARK: f64 = 15.0;
/// Bars get their values written above them up to this many.
const LABELLED_BARS: usize = 24;

/// An [`Error::Report`] about a plot.
pub(super) fn error(problem: impl Display) -> Error {
    Error::Report { doing: "drawing a plot".into(), problem: problem.to_string() }
}

/// A plot that was checked and whose axes and legend are laid out.
pub(super) struct Scene<'a> {
    plot: &'a Plot,
    x: Axis,
    y: Axis,
    /// Where bars begin.
    floor: f64,
    legend: Vec<Entry<'a>>,
    legend_rows: usize,
    caption: String,
}

/// One place in the legend, in nominal pixels from the legend's corner.
struct Entry<'a> {
    key: Key<'a>,
    name: String,
    x: f64,
    row: usize,
    /// Width of the sample beside the name.
    swatch: f64,
}

enum Key<'a> {
    Series(&'a Series),
    Baseline,
}

impl<'a> Scene<'a> {
    pub(super) fn new(plot: &'a Plot) -> Result<Scene<'a>> {
        let title = &plot.title;
        if plot.series.is_empty() {
            return Err(error(format!("\"{title}\" has no series; add one")));
        }
        if let Some(empty) = plot.series.iter().find(|series| series.points.is_empty()) {
            return Err(error(format!("series \"{}\" of \"{title}\" has no points", empty.name)));
        }
        let (width, height) = plot.size;
        if !(320..=4000).contains(&width) || !(200..=4000).contains(&height) {
            return Err(error(format!(
                "\"{title}\" is {width} x {height} pixels; 320 x 200 to 4000 x 4000 can be drawn"
            )));
        }
        let shown: Vec<(f64, f64)> =
            plot.series.iter().flat_map(|s| &s.points).copied().filter(|p| plot.shows(*p)).collect();
        if shown.is_empty() {
            return Err(error(format!("no point of \"{title}\" can be shown; {}", plot.caption())));
        }
        let baselines = plot.baselines.iter().map(|(_, y)| *y).filter(|y| plot.shows((0.0, *y)));
        let mut floor = 0.0;
        if let Some(categories) = &plot.categories {
            if let Some(long) = plot.series.iter().find(|s| s.points.len() > categories.len()) {
                let (n, of) = (long.points.len(), categories.len());
                return Err(error(format!(
                    "series \"{}\" of \"{title}\" has {n} values for {of} categories",
                    long.name
                )));
            }
            if plot.y_scale == Scale::Log {
                floor = baselines.clone().next().ok_or_else(|| {
                    error(format!("bars of \"{title}\" have no zero to rise from on a log axis; add a baseline"))
                })?;
            }
        }
        let bars = plot.categories.is_some().then_some(floor);
        let mut y = Axis::over(plot.y_scale, shown.iter().map(|p| p.1).chain(baselines).chain(bars));
        if bars.is_some() {
            // Values have room above the bars; from zero, bars stand on the axis.
            y.range.end += (y.range.end - y.range.start) * 0.03;
            if plot.y_scale != Scale::Log && shown.iter().all(|p| p.1 >= floor) {
                y.range.start = y.position(floor);
                y.ticks.retain(|(at, _)| *at >= y.range.start);
            }
        }
        let x = match &plot.categories {
            None => Axis::over(plot.x_scale, shown.iter().map(|p| p.0)),
            Some(names) => {
                let widest =
                    names.iter().map(|n| text_width(n, TICK, false)).try_fold(0.0, |a: f64, w| w.map(|w| a.max(w)))?;
                let room = (f64::from(width) - 120.0) / names.len() as f64;
                Axis::categories(names, ((widest + 8.0) / room).ceil() as usize)
            }
        };
        let (legend, legend_rows) = legend(plot, f64::from(width) - 2.0 * MARGIN)?;
        Ok(Scene { plot, x, y, floor, legend, legend_rows, caption: plot.caption() })
    }

    /// The scene as SVG: drawn at twice the size, so that coordinates have half-pixel precision.
    pub(super) fn svg(&self, (width, height): (u32, u32)) -> Result<String> {
        let mut body = String::new();
        {
            let root = SVGBackend::with_string(&mut body, (width * 2, height * 2)).into_drawing_area();
            self.draw(&root, 2.0)?;
            root.present().map_err(error)?;
        }
        let (w, h) = (width * 2, height * 2);
        let opening = format!(r#"<svg width="{w}" height="{h}" "#);
        let sized = format!(r#"<svg role="img" width="{width}" height="{height}" "#);
        let title: String = escape(&self.plot.title);
        let rest = body.strip_prefix(&opening).ok_or_else(|| error("plotters began an SVG in an unknown way"))?;
        let (attributes, content) = rest.split_once('\n').ok_or_else(|| error("plotters wrote an empty SVG"))?;
        Ok(format!("{sized}{attributes}\n<title>{title}</title>\n{content}"))
    }

    /// Draws everything onto `root`, whose size is the plot's times `scale`.
    pub(super) fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>, scale: f64) -> Result<()> {
        let pen = Pen { scale };
        let (width, height) = (f64::from(self.plot.size.0), f64::from(self.plot.size.1));
        root.fill(&WHITE).map_err(error)?;
        pen.text(root, &self.plot.title, (MARGIN, MARGIN - 2.0), TITLE, true, TEXT)?;
        let legend_top = MARGIN + TITLE + 12.0;
        self.draw_legend(root, &pen, legend_top)?;
        let top = legend_top + self.legend_rows as f64 * LEGEND_ROW + 8.0;
        let caption = if self.caption.is_empty() { 0.0 } else { SMALL + 8.0 };
        let bottom = height - MARGIN + 4.0 - caption;
        if !self.caption.is_empty() {
            pen.text(root, &self.caption, (MARGIN, bottom + 8.0), SMALL, false, QUIET)?;
        }
        let area =
            root.clone().shrink((pen.px(MARGIN), pen.px(top)), (pen.px(width - 2.0 * MARGIN), pen.px(bottom - top)));
        self.draw_chart(root, &area, &pen)
    }

    fn draw_legend<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>, pen: &Pen, top: f64) -> Result<()> {
        for entry in &self.legend {
            let y = top + entry.row as f64 * LEGEND_ROW + LEGEND_ROW / 2.0;
            let (x0, x1) = (MARGIN + entry.x, MARGIN + entry.x + entry.swatch);
            let middle = (pen.px((x0 + x1) / 2.0), pen.px(y));
            match entry.key {
                Key::Baseline => pen.dashes(root, pen.px(x0), pen.px(x1), pen.px(y))?,
                Key::Series(series) if self.plot.categories.is_some() => {
                    let (half, color) = (pen.px(6.0), color(series));
                    let corners = [(middle.0 - half, middle.1 - half), (middle.0 + half, middle.1 + half)];
                    root.draw(&Rectangle::new(corners, color.filled())).map_err(error)?;
                }
                Key::Series(series) => {
                    if series.line {
                        let ends = vec![(pen.px(x0), pen.px(y)), (pen.px(x1), pen.px(y))];
                        root.draw(&PathElement::new(ends, pen.stroke(color(series), 2.5))).map_err(error)?;
                    }
                    pen.marker(root, middle, series)?;
                }
            }
            let style = pen.style(TICK, false, TEXT).pos(Pos::new(HPos::Left, VPos::Center));
            root.draw(&Text::new(entry.name.clone(), (pen.px(x1 + 7.0), pen.px(y)), style)).map_err(error)?;
        }
        Ok(())
    }

    fn draw_chart<DB: DrawingBackend>(
        &self,
        root: &DrawingArea<DB, Shift>,
        area: &DrawingArea<DB, Shift>,
        pen: &Pen,
    ) -> Result<()> {
        let mut widest = 0f64;
        for (_, label) in &self.y.ticks {
            widest = widest.max(text_width(label, TICK, false)?);
        }
        let y_title = if self.plot.y_label.is_empty() { 0.0 } else { LABEL + 12.0 };
        let x_title = if self.plot.x_label.is_empty() { 0.0 } else { LABEL + 12.0 };
        let mut chart = ChartBuilder::on(area)
            .margin_right(pen.px(8.0))
            .y_label_area_size(pen.px(widest + y_title + 12.0))
            .x_label_area_size(pen.px(TICK + x_title + 9.0))
            .build_cartesian_2d(Placed::of(&self.x), Placed::of(&self.y))
            .map_err(error)?;
        let label = |axis: &Axis, at: f64| {
            axis.ticks.iter().find(|(tick, _)| *tick == at).map(|(_, label)| label.clone()).unwrap_or_default()
        };
        let (x_label, y_label) = (|at: &f64| label(&self.x, *at), |at: &f64| label(&self.y, *at));
        let mut mesh = chart.configure_mesh();
        mesh.bold_line_style(pen.stroke(GRID, 1.0))
            .max_light_lines(0)
            .axis_style(pen.stroke(AXIS, 1.0))
            .label_style(pen.style(TICK, false, TEXT))
            .axis_desc_style(pen.style(LABEL, false, TEXT))
            .x_label_formatter(&x_label)
            .y_label_formatter(&y_label)
            .x_desc(&self.plot.x_label)
            .y_desc(&self.plot.y_label)
            .set_all_tick_mark_size(pen.px(4.0));
        if self.plot.categories.is_some() {
            mesh.disable_x_mesh();
        }
        mesh.draw().map_err(error)?;

        let at = |(x, y): (f64, f64)| chart.backend_coord(&(self.x.position(x), self.y.position(y)));
        let frame = chart.plotting_area().get_pixel_range().0;
        let baselines = self.plot.baselines.iter().filter(|(_, y)| self.plot.shows((0.0, *y)));
        let draw_baselines = || -> Result<()> {
            for (_, y) in baselines {
                pen.dashes(root, frame.start, frame.end - 1, at((self.middle_x(), *y)).1)?;
            }
            Ok(())
        };
        if self.plot.categories.is_some() {
            self.draw_bars(root, pen, at)?;
            return draw_baselines();
        }
        draw_baselines()?;
        for series in &self.plot.series {
            let path: Vec<_> = series.points.iter().copied().filter(|p| self.plot.shows(*p)).map(at).collect();
            if series.line && path.len() > 1 {
                root.draw(&PathElement::new(path, pen.stroke(color(series), 2.5))).map_err(error)?;
            }
        }
        for series in &self.plot.series {
            for point in series.points.iter().copied().filter(|p| self.plot.shows(*p)).map(at) {
                pen.marker(root, point, series)?;
            }
        }
        Ok(())
    }

    fn draw_bars<DB: DrawingBackend>(
        &self,
        root: &DrawingArea<DB, Shift>,
        pen: &Pen,
        at: impl Fn((f64, f64)) -> (i32, i32),
    ) -> Result<()> {
        let bars: usize = self.plot.series.iter().map(|series| series.points.len()).sum();
        let width = 0.8 / self.plot.series.len() as f64;
        for (i, series) in self.plot.series.iter().enumerate() {
            for &(x, y) in series.points.iter().filter(|p| self.plot.shows(**p)) {
                let left = x - 0.4 + i as f64 * width;
                let (from, to) = (at((left + 0.06 * width, self.floor)), at((left + 0.94 * width, y)));
                let corners = [(from.0, from.1.min(to.1)), (to.0, from.1.max(to.1))];
                root.draw(&Rectangle::new(corners, color(series).filled())).map_err(error)?;
                if bars <= LABELLED_BARS {
                    let text =
                        if self.plot.y_scale == Scale::Percent { format!("{:.1}%", y * 100.0) } else { number(y) };
                    let (up, v_pos) = if y >= self.floor { (-5.0, VPos::Bottom) } else { (5.0, VPos::Top) };
                    let style = pen.style(SMALL, false, TEXT).pos(Pos::new(HPos::Center, v_pos));
                    let place = ((from.0 + to.0) / 2, to.1 + pen.px(up));
                    root.draw(&Text::new(text, place, style)).map_err(error)?;
                }
            }
        }
        Ok(())
    }

    /// Any x inside the axis.
    fn middle_x(&self) -> f64 {
        (self.x.range.start + self.x.range.end) / 2.0
    }
}

/// An axis as plotters wants it: linear in positions, labelled at the ticks only.
struct Placed {
    range: std::ops::Range<f64>,
    ticks: Vec<f64>,
}

impl Placed {
    fn of(axis: &Axis) -> Placed {
        Placed { range: axis.range.clone(), ticks: axis.ticks.iter().map(|(at, _)| *at).collect() }
    }
}

impl Ranged for Placed {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (low, high): (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        low + (share * f64::from(high - low)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.range.clone()
    }
}

/// Lays the legend out in rows of at most `width`.
fn legend(plot: &Plot, width: f64) -> Result<(Vec<Entry<'_>>, usize)> {
    let series = plot.series.iter().map(|series| (Key::Series(series), series.name.clone()));
    let lines = plot.baselines.iter().filter(|(_, y)| plot.shows((0.0, *y)));
    let lines = lines.map(|(name, y)| (Key::Baseline, format!("{name} ({})", number(*y))));
    let (mut x, mut row, mut entries) = (0.0, 0, Vec::new());
    for (key, name) in series.chain(lines) {
        let line = matches!(key, Key::Series(Series { line: true, .. }) if plot.categories.is_none());
        let swatch = if line || matches!(key, Key::Baseline) { LINE } else { MARK };
        let needed = swatch + 7.0 + text_width(&name, TICK, false)?;
        if x > 0.0 && x + needed > width {
            (x, row) = (0.0, row + 1);
        }
        entries.push(Entry { key, name, x, row, swatch });
        x += needed + 22.0;
    }
    Ok((entries, row + 1))
}

fn color(series: &Series) -> RGBColor {
    COLORS[series.color % COLORS.len()]
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Nominal pixels to the backend's.
struct Pen {
    scale: f64,
}

impl Pen {
    fn px(&self, nominal: f64) -> i32 {
        (nominal * self.scale).round() as i32
    }

    fn stroke(&self, color: RGBColor, width: f64) -> ShapeStyle {
        color.stroke_width(self.px(width).max(1) as u32)
    }

    fn style(&self, em: f64, bold: bool, color: RGBColor) -> TextStyle<'static> {
        let weight = if bold { FontStyle::Bold } else { FontStyle::Normal };
        FontDesc::new(FontFamily::Name(FAMILY), em * self.scale * SIZE_PER_EM, weight).color(&color)
    }

    fn text<DB: DrawingBackend>(
        &self,
        root: &DrawingArea<DB, Shift>,
        text: &str,
        (x, y): (f64, f64),
        em: f64,
        bold: bool,
        color: RGBColor,
    ) -> Result<()> {
        let style = self.style(em, bold, color);
        root.draw(&Text::new(text.to_owned(), (self.px(x), self.px(y)), style)).map_err(error)
    }

    fn dashes<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>, from: i32, to: i32, y: i32) -> Result<()> {
        let (dash, gap) = (self.px(7.0), self.px(5.0));
        for start in (from..to).step_by((dash + gap).max(1) as usize) {
            let ends = vec![(start, y), ((start + dash).min(to), y)];
            root.draw(&PathElement::new(ends, self.stroke(BASELINE, 1.5))).map_err(error)?;
        }
        Ok(())
    }

    /// A filled marker with a thin white rim for a curve; an outline, which hides no other, for single points.
    fn marker<DB: DrawingBackend>(
        &self,
        root: &DrawingArea<DB, Shift>,
        center: (i32, i32),
        series: &Series,
    ) -> Result<()> {
        let color = color(series);
        if series.line {
            self.shape(root, center, series.marker, 6.5, WHITE.filled())?;
            self.shape(root, center, series.marker, 5.0, color.filled())
        } else {
            self.shape(root, center, series.marker, 6.0, self.stroke(color, 2.0))
        }
    }

    /// One of eight shapes, `radius` nominal pixels large.
    fn shape<DB: DrawingBackend>(
        &self,
        root: &DrawingArea<DB, Shift>,
        (cx, cy): (i32, i32),
        shape: usize,
        radius: f64,
        style: ShapeStyle,
    ) -> Result<()> {
        // Unit outlines of about equal area; y points down.
        const SQUARE: &[(f64, f64)] = &[(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)];
        const UP: &[(f64, f64)] = &[(0.0, -1.2), (1.1, 0.75), (-1.1, 0.75)];
        const DIAMOND: &[(f64, f64)] = &[(0.0, -1.25), (1.25, 0.0), (0.0, 1.25), (-1.25, 0.0)];
        const DOWN: &[(f64, f64)] = &[(0.0, 1.2), (1.1, -0.75), (-1.1, -0.75)];
        const PENTAGON: &[(f64, f64)] = &[(0.0, -1.15), (1.09, -0.36), (0.68, 0.93), (-0.68, 0.93), (-1.09, -0.36)];
        const LEFT: &[(f64, f64)] = &[(-1.2, 0.0), (0.75, -1.1), (0.75, 1.1)];
        const RIGHT: &[(f64, f64)] = &[(1.2, 0.0), (-0.75, -1.1), (-0.75, 1.1)];
        let outline = match shape % 8 {
            0 => {
                let radius = self.px(radius);
                return root.draw(&Circle::new((cx, cy), radius, style)).map_err(error);
            }
            1 => SQUARE,
            2 => UP,
            3 => DIAMOND,
            4 => DOWN,
            5 => PENTAGON,
            6 => LEFT,
            _ => RIGHT,
        };
        let points: Vec<_> =
            outline.iter().map(|(x, y)| (cx + self.px(x * radius), cy + self.px(y * radius))).collect();
        if style.filled {
            return root.draw(&Polygon::new(points, style)).map_err(error);
        }
        // Edge by edge with round corners: plotters fills a thick closed path by the even-odd rule, with holes.
        for (i, corner) in points.iter().enumerate() {
            root.draw(&PathElement::new(vec![*corner, points[(i + 1) % points.len()]], style)).map_err(error)?;
            root.draw(&Circle::new(*corner, style.stroke_width / 2, style.filled())).map_err(error)?;
        }
        Ok(())
    }
}
