//! Plots: what to show. How it is drawn is in `draw`.

use super::axis::AxisScale;
use super::error;
use super::figure;
use super::labels::Labels;
use super::numbers::{Number, Point};
use super::table::Table;
use crate::error::{Remedy, Result};
use crate::format::number;
use crate::frames::Frames;
use crate::record::Record;
use crate::settings::Zeros;
use crate::stats::Interval;
use polars::prelude::DataFrame;

/// Curves, points or grouped bars, as SVG and PNG. The same plot gives the same bytes.
///
/// ```
/// # fn main() -> lacuna::Result<()> {
/// use lacuna::report::Plot;
/// let mine = Plot::line("sparsity", "perplexity").series("wanda", [(0.1, 9.3), (0.5, 12.7)]);
/// assert!(mine.svg()?.contains("perplexity against sparsity"));
///
/// let plot = Plot::curves("Perplexity against sparsity")
///     .x("Sparsity (% of weights that are zero)")
///     .percent_x()
///     .y("Perplexity (exp of nats per token)")
///     .log_y()
///     .series("wanda", [(0.1, 25.4), (0.5, 41.0), (0.9, 3100.0)])
///     .baseline("dense", 25.3);
/// assert!(plot.svg()?.contains("wanda"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Plot {
    pub(super) title: String,
    pub(super) x_label: String,
    pub(super) y_label: String,
    pub(super) x_scale: AxisScale,
    pub(super) y_scale: AxisScale,
    pub(super) size: (u32, u32),
    pub(super) series: Vec<Series>,
    pub(super) baselines: Vec<(String, f64)>,
    /// True if colours follow the order of the series.
    pub(super) ordered: bool,
    /// Names of the groups of bars; `None` for curves.
    pub(super) categories: Option<Vec<String>>,
}

crate::debug::one_line!(rich Plot, |plot| format!("Plot({})", plot.summary()));

/// One named set of points.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
    /// The shaded band around a curve: `(x, low, high)`, by x.
    pub(super) band: Vec<(f64, f64, f64)>,
    /// Joined by a line, with filled markers; otherwise hollow markers alone.
    pub(super) line: bool,
    /// Index into the colours.
    pub(super) color: usize,
    /// Index into the marker shapes.
    pub(super) marker: usize,
}

super::figure::figure!(Plot);

impl Plot {
    /// An empty plot of curves, 800 by 500 pixels, with linear axes.
    pub fn curves(title: impl Into<String>) -> Plot {
        Plot {
            title: title.into(),
            x_label: String::new(),
            y_label: String::new(),
            x_scale: AxisScale::Linear,
            y_scale: AxisScale::Linear,
            size: (800, 500),
            series: Vec::new(),
            baselines: Vec::new(),
            ordered: false,
            categories: None,
        }
    }

    /// An empty plot of `y` against `x`, which name its axes and its title; their units belong in them: `"time (s)"`. Curves come
    /// with [`Plot::series`].
    pub fn line(x: impl Into<String>, y: impl Into<String>) -> Plot {
        let (x, y) = (x.into(), y.into());
        // `time (s)` is called time.
        let name = |label: &str| label.split(" (").next().unwrap_or_default().trim().to_owned();
        Plot::curves(format!("{} against {}", name(&y), name(&x))).x(x).y(y)
    }

    /// Points `(x, y)` that no line joins; `x` and `y` name the axes, with their units. More come with [`Plot::points`], each in a
    /// colour of its own.
    pub fn scatter(
        x: impl Into<String>,
        y: impl Into<String>,
        name: impl Into<String>,
        points: impl IntoIterator<Item = impl Point>,
    ) -> Plot {
        Plot::line(x, y).points(name, points)
    }

    /// A curve through two columns of a frame, and one for each text in the column `by`, if it is given, in the order of the rows.
    /// Columns name the axes, as they would head a table: `nll_nats` is `nll (nats)`. Rows without a number are left out.
    ///
    /// # Errors
    /// Fails when there is no such column, or x or y is not of numbers.
    pub fn from_frame(frame: &DataFrame, x: &str, y: &str, by: Option<&str>) -> Result<Plot> {
        let table = Table::from(frame.clone());
        let head = |name: &str| {
            let at = frame.columns().iter().position(|column| column.name() == name);
            at.map_or_else(|| name.to_owned(), |at| table.columns[at].title())
        };
        let mut found: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
        frame.filtered(|row| {
            let name = by.map_or_else(|| Ok(head(y).into()), |by| row.text(by))?;
            let point = (row.number(x)?, row.number(y)?);
            if !(row.is_missing(x)? || row.is_missing(y)?) {
                match found.iter_mut().find(|(other, _)| *other == name) {
                    Some((_, points)) => points.push(point),
                    None => found.push((name.into_owned(), vec![point])),
                }
            }
            Ok(false)
        })?;
        let plot = Plot::line(head(x), head(y));
        Ok(found.into_iter().fold(plot, |plot, (name, points)| plot.series(name, points)))
    }

    /// Sets the title.
    pub fn title(mut self, title: impl Into<String>) -> Plot {
        self.title = title.into();
        self
    }

    /// An empty plot of grouped bars: one group per category, one bar per series in each.
    pub fn bars(title: impl Into<String>, categories: impl IntoIterator<Item = impl Into<String>>) -> Plot {
        Plot { categories: Some(categories.into_iter().map(Into::into).collect()), ..Plot::curves(title) }
    }

    /// Names the x axis; the unit belongs in it.
    pub fn x(mut self, label: impl Into<String>) -> Plot {
        self.x_label = label.into();
        self
    }

    /// Names the y axis; the unit belongs in it.
    pub fn y(mut self, label: impl Into<String>) -> Plot {
        self.y_label = label.into();
        self
    }

    /// Labels the x axis, whose values are fractions, in percent.
    pub fn percent_x(mut self) -> Plot {
        self.x_scale = self.x_scale.with_percent();
        self
    }

    /// Labels the y axis, whose values are fractions, in percent.
    pub fn percent_y(mut self) -> Plot {
        self.y_scale = self.y_scale.with_percent();
        self
    }

    /// Makes the y axis logarithmic. Values that are not positive are left out, and the caption says so.
    pub fn log_y(mut self) -> Plot {
        self.y_scale = self.y_scale.with_log();
        self
    }

    /// Makes the x axis logarithmic. Values that are not positive are left out, and the caption says so.
    pub fn log_x(mut self) -> Plot {
        self.x_scale = self.x_scale.with_log();
        self
    }

    /// Colours the series from dark to light in their order: layers of a model, say, of which there may be many.
    pub fn ordered(mut self) -> Plot {
        self.ordered = true;
        self
    }

    /// Sets the nominal size in pixels; a PNG has twice as many along each side. A legend of more than two rows adds to
    /// the height.
    pub fn size(mut self, width: u32, height: u32) -> Plot {
        self.size = (width, height);
        self
    }

    /// Adds a curve through `(x, y)` points, which are sorted by x.
    pub fn series(self, name: impl Into<String>, points: impl IntoIterator<Item = impl Point>) -> Plot {
        let next = self.series.len();
        self.add(name.into(), points.into_iter().map(Point::point).collect(), true, next, next)
    }

    /// Shades a range of y around the curve that was added last, such as a confidence interval: `(x, low, high)`.
    pub fn band(mut self, bounds: impl IntoIterator<Item = (f64, f64, f64)>) -> Plot {
        if let Some(series) = self.series.last_mut() {
            series.band = bounds.into_iter().collect();
            series.band.sort_by(|a, b| a.0.total_cmp(&b.0));
        }
        self
    }

    /// Adds single points `(x, y)`, shown as hollow markers that no line joins.
    pub fn points(self, name: impl Into<String>, points: impl IntoIterator<Item = impl Point>) -> Plot {
        let next = self.series.len();
        self.add(name.into(), points.into_iter().map(Point::point).collect(), false, next, next)
    }

    /// Adds one bar per category, in the order of the categories. A value that is not finite leaves a gap.
    pub fn values(self, name: impl Into<String>, values: impl IntoIterator<Item = impl Number>) -> Plot {
        let next = self.series.len();
        let points = values.into_iter().enumerate().map(|(i, v)| (i as f64, v.number())).collect();
        self.add(name.into(), points, false, next, next)
    }

    /// Adds a dashed horizontal line; its value is shown beside its name.
    pub fn baseline(mut self, name: impl Into<String>, y: f64) -> Plot {
        self.baselines.push((name.into(), y));
        self
    }

    fn add(mut self, name: String, mut points: Vec<(f64, f64)>, line: bool, color: usize, marker: usize) -> Plot {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        self.series.push(Series { name, points, band: Vec::new(), line, color, marker });
        self
    }

    /// Perplexity (log scale) against measured sparsity: a curve per method for unstructured pruning, hollow markers
    /// for N:M patterns, a dashed line per dense model. Where records have intervals, curves have bands. Settings that
    /// vary among the records are named in the legend.
    ///
    /// # Errors
    /// Fails when no record is both pruned and evaluated.
    pub fn perplexity_vs_sparsity(records: &[Record]) -> Result<Plot> {
        let labels = Labels::of(records);
        let mut plot = Plot::curves("Perplexity against sparsity")
            .x("Sparsity (% of the pruned layers' weights that are zero)")
            .percent_x()
            .y("Perplexity (exp of nats per token)")
            .log_y();
        // Name, method, pattern, points with intervals: the colour tells the method, the marker the pattern.
        type Found = (String, String, Zeros, Vec<(f64, f64, Option<Interval>)>);
        let mut found: Vec<Found> = Vec::new();
        for record in records {
            let Some(evaluation) = &record.evaluation else { continue };
            let Some(pruning) = &record.pruning else {
                let name = labels.of_record(record);
                if !plot.baselines.iter().any(|(other, y)| *other == name && *y == evaluation.perplexity) {
                    plot = plot.baseline(name, evaluation.perplexity);
                }
                continue;
            };
            let name = labels.of_record(record);
            let sparsity = if record.tensors.is_empty() { pruning.sparsity } else { record.sparsity() };
            let point = (sparsity, evaluation.perplexity, evaluation.perplexity_interval);
            match found.iter_mut().find(|(other, ..)| *other == name) {
                Some((.., points)) => points.push(point),
                None => found.push((name, pruning.method.to_string(), pruning.pattern, vec![point])),
            }
        }
        if found.is_empty() {
            return Err(error(
                "no record is both pruned and evaluated, so there is no curve".remedy("evaluate the pruned models"),
            ));
        }
        // Curves first, so that their legend comes first and they own the colours.
        found.sort_by_key(|(_, _, zeros, _)| *zeros != Zeros::UNSTRUCTURED);
        let mut methods: Vec<String> = Vec::new();
        let mut patterns: Vec<Zeros> = Vec::new();
        let curves = found.iter().filter(|(_, _, zeros, _)| *zeros == Zeros::UNSTRUCTURED).count();
        for (i, (name, method, pattern, measured)) in found.into_iter().enumerate() {
            let points = measured.iter().map(|&(x, y, _)| (x, y)).collect();
            if pattern == Zeros::UNSTRUCTURED {
                methods.push(method);
                let bounds = measured.iter().filter_map(|&(x, _, interval)| interval.map(|i| (x, i.low, i.high)));
                plot = plot.add(name, points, true, i, i).band(bounds);
            } else {
                let color = position_or_push(&mut methods, method);
                let marker = curves + position_or_push(&mut patterns, pattern);
                plot = plot.add(name, points, false, color, marker);
            }
        }
        Ok(plot)
    }

    /// Perplexity (log scale) of each pattern at one target sparsity: a bar per method, unstructured first. Settings that vary among the
    /// records are named in the legend; of two with the same place the later counts.
    ///
    /// # Errors
    /// Fails when no record was pruned to `sparsity` and evaluated.
    pub fn perplexity_by_pattern(records: &[Record], sparsity: f64) -> Result<Plot> {
        let labels = Labels::of(records);
        let (mut patterns, mut methods): (Vec<Zeros>, Vec<String>) = (Vec::new(), Vec::new());
        let mut found: Vec<(usize, usize, f64)> = Vec::new(); // pattern, method, perplexity
        for record in records {
            if let (Some(pruning), Some(evaluation)) = (&record.pruning, &record.evaluation)
                && (pruning.sparsity - sparsity).abs() < 1e-9
            {
                let pattern = position_or_push(&mut patterns, pruning.pattern);
                found.push((pattern, position_or_push(&mut methods, labels.of_method(record)), evaluation.perplexity));
            }
        }
        if found.is_empty() {
            return Err(error(format!("no record was pruned to a sparsity of {sparsity} and evaluated")));
        }
        let title = format!("Perplexity with {}% of the weights gone", (sparsity * 1000.0).round() / 10.0);
        let mut plot = Plot::bars(title, patterns.iter().map(Zeros::to_string))
            .x("Pattern (N:M keeps N of M)")
            .y("Perplexity (exp of nats per token)")
            .log_y();
        for (method, name) in methods.iter().enumerate() {
            let value =
                |pattern| found.iter().rev().find(|(p, m, _)| (*p, *m) == (pattern, method)).map_or(f64::NAN, |f| f.2);
            plot = plot.values(name.as_str(), (0..patterns.len()).map(value));
        }
        for record in records.iter().filter(|record| record.pruning.is_none()) {
            if let Some(evaluation) = &record.evaluation {
                plot = plot.baseline(labels.of_record(record), evaluation.perplexity);
            }
        }
        Ok(plot)
    }

    /// Lists the points that the plot does not show: one line per series with points that are not finite, or not
    /// positive on a log axis. Empty when everything is shown.
    pub fn caption(&self) -> String {
        let mut notes = Vec::new();
        for series in &self.series {
            let dropped = series.points.len() - series.points.iter().filter(|p| self.shows(**p)).count();
            if dropped > 0 {
                let of = series.points.len();
                notes.push(format!("{}: {dropped} of {of} points", series.name));
            }
        }
        for (name, y) in self.baselines.iter().filter(|(_, y)| !self.shows_y(*y)) {
            notes.push(format!("{name}: {}", number(*y)));
        }
        if notes.is_empty() {
            return String::new();
        }
        let reason =
            if self.x_scale.is_log() || self.y_scale.is_log() { "not finite or not positive" } else { "not finite" };
        format!("Not shown ({reason}): {}.", notes.join("; "))
    }

    /// Returns whether a point has a place on the axes.
    pub(super) fn shows(&self, (x, y): (f64, f64)) -> bool {
        x.is_finite() && (!self.x_scale.is_log() || x > 0.0) && self.shows_y(y)
    }

    /// Returns whether `y` has a place on its axis.
    pub(super) fn shows_y(&self, y: f64) -> bool {
        y.is_finite() && (!self.y_scale.is_log() || y > 0.0)
    }

    /// One line that says what the plot shows.
    pub fn summary(&self) -> String {
        let points = |n: usize| if n == 1 { "1 point".to_owned() } else { format!("{n} points") };
        let names: Vec<_> = self.series.iter().map(|s| format!("{} ({})", s.name, points(s.points.len()))).collect();
        let lines: Vec<_> = self.baselines.iter().map(|(name, y)| format!("{name} at {}", number(*y))).collect();
        let all = [names, lines].concat().join(", ");
        let caption = self.caption();
        format!("{}: {all}{}{caption}", self.title, if caption.is_empty() { "" } else { ". " })
    }

    /// The representations in a notebook, by MIME type; the PNG is in base64.
    ///
    /// # Errors
    /// As [`Plot::svg`].
    pub fn bundle(&self) -> Result<Vec<(&'static str, String)>> {
        figure::bundle(self)
    }
}

fn position_or_push<T: PartialEq>(seen: &mut Vec<T>, name: T) -> usize {
    seen.iter().position(|other| *other == name).unwrap_or_else(|| {
        seen.push(name);
        seen.len() - 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_any_type_are_plotted() {
        let owned = [(0.1f32, 1u32), (0.2, 2)];
        let plot = Plot::line("sparsity", "time (s)")
            .series("f32", owned.as_slice())
            .series("mixed", vec![(1, 2.5), (2, 3.5)])
            .points("borrowed", [1.0, 2.0].iter().zip(&[3usize, 4]));
        assert_eq!((&*plot.title, &*plot.x_label, &*plot.y_label), ("time against sparsity", "sparsity", "time (s)"));
        assert_eq!(plot.series[1].points, [(1.0, 2.5), (2.0, 3.5)]);
        assert_eq!(plot.series[2].points, [(1.0, 3.0), (2.0, 4.0)]);
        assert!(!plot.series[2].line && plot.svg().is_ok());
        let scatter = Plot::scatter("a (bytes)", "b", "runs", [(1, 2), (3, 4)]).title("Mine");
        assert!(scatter.title == "Mine" && !scatter.series[0].line);
        assert_eq!(Plot::bars("t", ["a", "b"]).values("v", [1, 2]).series[0].points, [(0.0, 1.0), (1.0, 2.0)]);
    }

    #[test]
    fn columns_of_a_frame_are_curves() {
        let frame = polars::df![
            "sparsity" => [Some(0.5), Some(0.6), None, Some(0.5)],
            "nll_nats" => [2.0, 3.0, 9.0, 4.0],
            "method" => ["wanda", "wanda", "wanda", "random"],
        ];
        let frame = frame.unwrap();
        let plot = Plot::from_frame(&frame, "sparsity", "nll_nats", Some("method")).unwrap();
        assert_eq!(plot.y_label, "nll (nats)");
        assert_eq!(plot.series[0].points, [(0.5, 2.0), (0.6, 3.0)]);
        assert_eq!((&*plot.series[1].name, plot.series.len()), ("random", 2));
        assert_eq!(Plot::from_frame(&frame, "sparsity", "nll_nats", None).unwrap().series[0].points.len(), 3);
        assert!(Plot::from_frame(&frame, "method", "nll_nats", None).unwrap_err().to_string().contains("numbers"));
        assert!(Plot::from_frame(&frame, "sparsity", "loss", None).unwrap_err().to_string().contains("there is none"));
    }
}
