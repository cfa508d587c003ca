//! Drawing a plot on any plotters backend, at any scale.
//!
//! The layout is in nominal pixels; `Pen` multiplies by the scale. From top to bottom: title, legend, chart with its
//! axes, caption. The legend stands above the chart, so it never covers data.

use super::axis::Axis;
use super::font::text_width;
use super::pen::{
    self, AXIS, Drawing, GRID, LABEL, LEGEND_ROW, MARGIN, Pen, QUIET, SMALL, TEXT, TICK, TITLE, check_size,
};
use super::plot::{Plot, Series};
use super::{bitmap, error, palette};
use crate::error::{Remedy, Result};
use crate::format::number;
use plotters::chart::ChartBuilder;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::drawing::DrawingArea;
use plotters::element::{PathElement, Polygon, Rectangle, Text};
use plotters::prelude::DrawingBackend;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, RGBColor, WHITE};

impl Plot {
    /// The plot as an SVG document.
    ///
    /// # Errors
    /// Fails when there is no series, a series has no point, or no point can be shown.
    pub fn svg(&self) -> Result<String> {
        pen::svg(&PlotScene::new(self)?)
    }

    /// The plot as a PNG of twice its nominal width and height.
    ///
    /// # Errors
    /// As [`Plot::svg`].
    pub fn png(&self) -> Result<Vec<u8>> {
        bitmap::png(&PlotScene::new(self)?)
    }
}

/// Samples in the legend: a piece of a line, a marker alone.
const LINE: f64 = 30.0;
const MARK: f64 = 15.0;
/// Opacity of what is shaded around a curve.
const BAND: f64 = 0.18;
/// Points beyond which single markers are small circles.
const CROWD: usize = 200;
/// Bars get their values written above them up to this many.
const LABELLED_BARS: usize = 24;

/// The lower and upper ends of what is shaded around a series, where both can be shown.
fn bounds<'a>(plot: &'a Plot, series: &'a Series) -> impl Iterator<Item = [(f64, f64); 2]> + 'a {
    let ends = series.band.iter().map(|&(x, low, high)| [(x, low), (x, high)]);
    ends.filter(|ends| ends.iter().all(|end| plot.shows(*end)))
}

/// A plot that was checked and whose axes and legend are laid out.
pub(super) struct PlotScene<'a> {
    plot: &'a Plot,
    x: Axis,
    y: Axis,
    /// The value at which bars begin.
    floor: f64,
    legend: Vec<LegendEntry<'a>>,
    legend_rows: usize,
    /// True if points are so many that their markers must be small.
    crowded: bool,
    caption: String,
}

/// One place in the legend, in nominal pixels from the legend's corner.
struct LegendEntry<'a> {
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

impl<'a> PlotScene<'a> {
    pub(super) fn new(plot: &'a Plot) -> Result<PlotScene<'a>> {
        let title = &plot.title;
        if plot.series.is_empty() {
            return Err(error(format!("\"{title}\" has no series").remedy("add one")));
        }
        if let Some(empty) = plot.series.iter().find(|series| series.points.is_empty()) {
            return Err(error(format!("series \"{}\" of \"{title}\" has no points", empty.name)));
        }
        check_size(title, plot.size)?;
        let width = plot.size.0;
        let mut shown: Vec<(f64, f64)> =
            plot.series.iter().flat_map(|s| &s.points).copied().filter(|p| plot.shows(*p)).collect();
        if shown.is_empty() {
            return Err(error(format!("no point of \"{title}\" can be shown; {}", plot.caption())));
        }
        let crowded = shown.len() > CROWD;
        shown.extend(plot.series.iter().flat_map(|series| bounds(plot, series)).flatten());
        let baselines = plot.baselines.iter().map(|(_, y)| *y).filter(|y| plot.shows_y(*y));
        let mut floor = 0.0;
        if let Some(categories) = &plot.categories {
            if let Some(long) = plot.series.iter().find(|s| s.points.len() > categories.len()) {
                let (n, of) = (long.points.len(), categories.len());
                return Err(error(format!(
                    "series \"{}\" of \"{title}\" has {n} values for {of} categories",
                    long.name
                )));
            }
            if plot.y_scale.is_log() {
                floor = baselines.clone().next().ok_or_else(|| {
                    error(
                        format!("bars of \"{title}\" have no zero to rise from on a log axis").remedy("add a baseline"),
                    )
                })?;
            }
        }
        let bars = plot.categories.is_some().then_some(floor);
        let mut y = Axis::over(plot.y_scale, shown.iter().map(|p| p.1).chain(baselines).chain(bars));
        if bars.is_some() {
            // Values have room above the bars; from zero, bars stand on the axis.
            y.range.end += (y.range.end - y.range.start) * 0.03;
            if !plot.y_scale.is_log() && shown.iter().all(|p| p.1 >= floor) {
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
        Ok(PlotScene { plot, x, y, floor, legend, legend_rows, crowded, caption: plot.caption() })
    }

    fn draw_legend<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>, pen: &Pen, top: f64) -> Result<()> {
        for entry in &self.legend {
            let y = top + entry.row as f64 * LEGEND_ROW + LEGEND_ROW / 2.0;
            let (x0, x1) = (MARGIN + entry.x, MARGIN + entry.x + entry.swatch);
            let middle = (pen.px((x0 + x1) / 2.0), pen.px(y));
            match entry.key {
                Key::Baseline => pen.dashes(root, pen.px(x0), pen.px(x1), pen.px(y))?,
                Key::Series(series) if self.plot.categories.is_some() => {
                    let (half, color) = (pen.px(6.0), self.color(series));
                    let corners = [(middle.0 - half, middle.1 - half), (middle.0 + half, middle.1 + half)];
                    root.draw(&Rectangle::new(corners, color.filled())).map_err(error)?;
                }
                Key::Series(series) => {
                    if series.line {
                        let ends = vec![(pen.px(x0), pen.px(y)), (pen.px(x1), pen.px(y))];
                        root.draw(&PathElement::new(ends, pen.stroke(self.color(series), 2.5))).map_err(error)?;
                    }
                    pen.marker(root, middle, self.shape(series), self.color(series), self.outline(series))?;
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
        let baselines = self.plot.baselines.iter().filter(|(_, y)| self.plot.shows_y(*y));
        let draw_baselines = || -> Result<()> {
            for (_, y) in baselines {
                let place = (self.x.range.start, self.y.position(*y));
                pen.dashes(root, frame.start, frame.end - 1, chart.backend_coord(&place).1)?;
            }
            Ok(())
        };
        if self.plot.categories.is_some() {
            self.draw_bars(root, pen, at)?;
            return draw_baselines();
        }
        for series in &self.plot.series {
            let (low, high): (Vec<_>, Vec<_>) =
                bounds(self.plot, series).map(|[low, high]| (at(low), at(high))).unzip();
            if low.len() > 1 {
                let outline: Vec<_> = low.into_iter().chain(high.into_iter().rev()).collect();
                root.draw(&Polygon::new(outline, self.color(series).mix(BAND).filled())).map_err(error)?;
            }
        }
        draw_baselines()?;
        for series in &self.plot.series {
            let path: Vec<_> = series.points.iter().copied().filter(|p| self.plot.shows(*p)).map(at).collect();
            if series.line && path.len() > 1 {
                root.draw(&PathElement::new(path, pen.stroke(self.color(series), 2.5))).map_err(error)?;
            }
        }
        for series in &self.plot.series {
            for point in series.points.iter().copied().filter(|p| self.plot.shows(*p)).map(at) {
                pen.marker(root, point, self.shape(series), self.color(series), self.outline(series))?;
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
                root.draw(&Rectangle::new(corners, self.color(series).filled())).map_err(error)?;
                if bars <= LABELLED_BARS {
                    let text = if self.plot.y_scale.is_percent() { format!("{:.1}%", y * 100.0) } else { number(y) };
                    let (up, v_pos) = if y >= self.floor { (-5.0, VPos::Bottom) } else { (5.0, VPos::Top) };
                    let style = pen.style(SMALL, false, TEXT).pos(Pos::new(HPos::Center, v_pos));
                    let place = ((from.0 + to.0) / 2, to.1 + pen.px(up));
                    root.draw(&Text::new(text, place, style)).map_err(error)?;
                }
            }
        }
        Ok(())
    }

    /// In a crowd shapes are not made out any more, and circles are drawn fastest.
    fn shape(&self, series: &Series) -> usize {
        if self.crowded && !series.line { 0 } else { series.marker }
    }

    /// Radius of a series' hollow markers, smaller where there are many; `None` for the filled ones of a curve.
    fn outline(&self, series: &Series) -> Option<f64> {
        (!series.line).then_some(if self.crowded { 4.0 } else { 6.0 })
    }

    fn color(&self, series: &Series) -> RGBColor {
        if self.plot.ordered {
            palette::ordered(series.color, self.plot.series.len())
        } else {
            palette::kind(series.color)
        }
    }
}

impl Drawing for PlotScene<'_> {
    fn title(&self) -> &str {
        &self.plot.title
    }

    fn size(&self) -> (u32, u32) {
        // The chart keeps its height under a long legend.
        let more = LEGEND_ROW as u32 * self.legend_rows.saturating_sub(2) as u32;
        (self.plot.size.0, self.plot.size.1 + more)
    }

    fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>, scale: f64) -> Result<()> {
        let pen = Pen { scale };
        let (width, height) = (f64::from(self.size().0), f64::from(self.size().1));
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
fn legend(plot: &Plot, width: f64) -> Result<(Vec<LegendEntry<'_>>, usize)> {
    let series = plot.series.iter().map(|series| (Key::Series(series), series.name.clone()));
    let lines = plot.baselines.iter().filter(|(_, y)| plot.shows_y(*y));
    let lines = lines.map(|(name, y)| (Key::Baseline, format!("{name} ({})", number(*y))));
    let (mut x, mut row, mut entries) = (0.0, 0, Vec::new());
    for (key, name) in series.chain(lines) {
        let line = matches!(key, Key::Series(Series { line: true, .. }) if plot.categories.is_none());
        let swatch = if line || matches!(key, Key::Baseline) { LINE } else { MARK };
        let needed = swatch + 7.0 + text_width(&name, TICK, false)?;
        if x > 0.0 && x + needed > width {
            (x, row) = (0.0, row + 1);
        }
        entries.push(LegendEntry { key, name, x, row, swatch });
        x += needed + 22.0;
    }
    Ok((entries, row + 1))
}
