//! Heat maps: what to show. How it is drawn is in `heatmap_draw`.

use super::axis::AxisScale;
use super::figure;
use super::numbers::MaybeNumber;
use crate::error::Result;
use crate::format::{number, thousands};

/// A matrix in colours, from dark (low) to light (high), with a bar that tells which colour is which number; as SVG and
/// PNG. A cell without a value stays grey. The same map gives the same bytes.
///
/// ```
/// # fn main() -> lacuna::Result<()> {
/// use lacuna::report::HeatMap;
/// let map = HeatMap::new("Where tokens go", [[0.2, 0.1, 0.7], [0.3, 0.4, 0.3]])
///     .rows("Layer")
///     .columns("Expert")
///     .unit("Share of tokens (%)")
///     .percent()
///     .mark("dropped", [(0, 1), (1, 0)]);
/// assert!(map.svg()?.contains("dropped"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct HeatMap {
    pub(super) title: String,
    pub(super) values: Vec<Vec<Option<f64>>>,
    pub(super) row_label: String,
    pub(super) column_label: String,
    pub(super) row_names: Option<Vec<String>>,
    pub(super) column_names: Option<Vec<String>>,
    pub(super) unit: String,
    pub(super) scale: AxisScale,
    pub(super) marks: Vec<(String, Vec<(usize, usize)>)>,
    size: Option<(u32, u32)>,
}

crate::debug::one_line!(rich HeatMap, |map| format!("HeatMap({})", map.summary()));

super::figure::figure!(HeatMap);

impl HeatMap {
    /// A map of `values`, row by row, the first row on top; `None` is a cell without a value. Rows of a tensor are
    /// `tensor.to_vec2::<f32>()?`; of a large one, [`HeatMap::coarse`] makes a map that can be read.
    pub fn new<R, V>(title: impl Into<String>, values: impl IntoIterator<Item = R>) -> HeatMap
    where
        R: IntoIterator<Item = V>,
        V: MaybeNumber,
    {
        HeatMap {
            title: title.into(),
            values: values.into_iter().map(|row| row.into_iter().map(MaybeNumber::maybe_number).collect()).collect(),
            row_label: String::new(),
            column_label: String::new(),
            row_names: None,
            column_names: None,
            unit: String::new(),
            scale: AxisScale::Linear,
            marks: Vec::new(),
            size: None,
        }
    }

    /// Says what a row is; rows are numbered from 0 unless [`HeatMap::row_names`] names them.
    pub fn rows(mut self, label: impl Into<String>) -> HeatMap {
        self.row_label = label.into();
        self
    }

    /// Says what a column is; columns are numbered from 0 unless [`HeatMap::column_names`] names them.
    pub fn columns(mut self, label: impl Into<String>) -> HeatMap {
        self.column_label = label.into();
        self
    }

    /// Names every row.
    pub fn row_names(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> HeatMap {
        self.row_names = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// Names every column.
    pub fn column_names(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> HeatMap {
        self.column_names = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// Says what the colours measure; the unit belongs in it.
    pub fn unit(mut self, label: impl Into<String>) -> HeatMap {
        self.unit = label.into();
        self
    }

    /// Writes the values, which are fractions, in percent.
    pub fn percent(mut self) -> HeatMap {
        self.scale = self.scale.with_percent();
        self
    }

    /// Spaces the colours by the logarithm. Every value must then be positive.
    pub fn log(mut self) -> HeatMap {
        self.scale = self.scale.with_log();
        self
    }

    /// Makes a map of at most `rows` by `columns` cells, each the mean of a rectangle of cells (of those that have a value), named
    /// by its first row and column, and says so beside the labels of rows and columns, which come first. Marks move with
    /// their cells. A map that is small enough stays as it is.
    pub fn coarse(mut self, rows: usize, columns: usize) -> HeatMap {
        let (height, width) = (self.values.len(), self.values.iter().map(Vec::len).max().unwrap_or(0));
        let (down, across) = (height.div_ceil(rows.max(1)).max(1), width.div_ceil(columns.max(1)).max(1));
        if down == 1 && across == 1 {
            return self;
        }
        let mean = |band: &[Vec<Option<f64>>], left: usize| {
            let cells = band.iter().flat_map(|row| row.iter().skip(left).take(across)).flatten();
            let (sum, count) = cells.fold((0.0, 0u32), |(sum, count), value| (sum + value, count + 1));
            (count > 0).then(|| sum / f64::from(count))
        };
        let coarse = |band: &[Vec<Option<f64>>]| (0..width).step_by(across).map(|left| mean(band, left)).collect();
        self.values = self.values.chunks(down).map(coarse).collect();
        let named = |names: Option<Vec<String>>, of: usize, step: usize| {
            let names = names.unwrap_or_else(|| (0..of).map(|i| i.to_string()).collect());
            Some(names.into_iter().step_by(step).collect())
        };
        self.row_names = named(self.row_names, height, down);
        self.column_names = named(self.column_names, width, across);
        for (label, step) in [(&mut self.row_label, down), (&mut self.column_label, across)] {
            if step > 1 {
                *label = format!("{label} (means of {step})").trim_start().to_owned();
            }
        }
        for (_, cells) in &mut self.marks {
            for (row, column) in cells {
                (*row, *column) = (*row / down, *column / across);
            }
        }
        self
    }

    /// Marks cells `(row, column)`; each of at most three calls has a sign of its own, which the legend explains.
    pub fn mark(mut self, name: impl Into<String>, cells: impl IntoIterator<Item = (usize, usize)>) -> HeatMap {
        self.marks.push((name.into(), cells.into_iter().collect()));
        self
    }

    /// Sets the nominal size in pixels, which otherwise follows from the number of rows and columns; a PNG has twice as
    /// many along each side.
    pub fn size(mut self, width: u32, height: u32) -> HeatMap {
        self.size = Some((width, height));
        self
    }

    /// The nominal size in pixels.
    pub(super) fn pixels(&self) -> (u32, u32) {
        self.size.unwrap_or_else(|| {
            let (rows, columns) = (self.values.len().max(1), self.values.first().map_or(0, Vec::len));
            let row = (420 / rows).clamp(11, 48);
            let legend = if self.marks.is_empty() && self.unit.is_empty() { 0 } else { 22 };
            let height = ((rows * row).max(96) + 108 + legend).min(4000);
            (if columns > 64 { 960 } else { 800 }, height as u32)
        })
    }

    /// `value` as cells and the summary write it.
    pub(super) fn written(&self, value: f64) -> String {
        match self.scale {
            scale if scale.is_percent() => format!("{:.1}%", value * 100.0),
            _ if value.fract() == 0.0 && value.abs() < 1e9 => thousands(value as i128),
            _ => number(value),
        }
    }

    /// One line that says what the map shows.
    pub fn summary(&self) -> String {
        let (rows, columns) = (self.values.len(), self.values.first().map_or(0, Vec::len));
        let values = || self.values.iter().flatten().flatten().copied();
        let range = values().reduce(f64::min).zip(values().reduce(f64::max));
        let range = range.map_or("no values".into(), |(low, high)| {
            let unit = if self.unit.is_empty() { String::new() } else { format!("{} ", self.unit) };
            format!("{unit}from {} to {}", self.written(low), self.written(high))
        });
        let cells = |n: usize| if n == 1 { "1 cell".to_owned() } else { format!("{n} cells") };
        let marks: String = self.marks.iter().map(|(name, at)| format!(", {} {name}", cells(at.len()))).collect();
        format!("{}: {rows} × {columns} cells, {range}{marks}", self.title)
    }

    /// The representations in a notebook, by MIME type; the PNG is in base64.
    ///
    /// # Errors
    /// As [`HeatMap::svg`].
    pub fn bundle(&self) -> Result<Vec<(&'static str, String)>> {
        figure::bundle(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coarse_map_has_means_and_says_so() {
        let values: Vec<Vec<f32>> =
            (0..5).map(|row| (0..7).map(|column| (10 * row + column) as f32).collect()).collect();
        let map = HeatMap::new("m", &values).rows("Output").columns("Input").mark("here", [(4, 6)]).coarse(3, 4);
        assert_eq!(map.values[0], [Some(5.5), Some(7.5), Some(9.5), Some(11.0)]);
        assert_eq!(map.values[2], [Some(40.5), Some(42.5), Some(44.5), Some(46.0)]);
        assert_eq!(map.row_names.as_deref(), Some(&["0", "2", "4"].map(String::from)[..]));
        assert_eq!((&*map.row_label, &*map.column_label), ("Output (means of 2)", "Input (means of 2)"));
        assert_eq!(map.marks[0].1, [(2, 3)]);
        assert!(map.svg().is_ok());
        let holes = HeatMap::new("m", [[Some(1.0), None], [None, None]]).coarse(2, 1);
        assert_eq!(holes.values, [[Some(1.0)], [None]]);
        assert_eq!(HeatMap::new("m", [[1, 2]]).coarse(9, 9).values, [[Some(1.0), Some(2.0)]]);
        assert!(HeatMap::new("m", Vec::<Vec<f64>>::new()).coarse(2, 2).svg().is_err());
    }
}
