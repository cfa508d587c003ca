//! Tables, plots, and reports that bundle them; with the feature `report`.

mod axis;
mod bitmap;
mod document;
mod draw;
mod experts;
mod figure;
mod font;
mod heatmap;
mod heatmap_draw;
mod histogram;
mod labels;
mod mask_map;
mod masks;
mod numbers;
mod palette;
mod paths;
mod pen;
mod plot;
mod render;
mod rows;
mod table;

pub use document::Report;
pub use figure::Figure;
pub use heatmap::HeatMap;
pub use mask_map::MaskMap;
pub use numbers::{MaybeNumber, Number, Point};
pub use plot::Plot;
pub use rows::{Cell, Row};
pub use table::{Format, Table};

#[cfg(test)]
pub(super) use document::Document;
pub(crate) use render::escape_html;

use crate::error::{Error, Problem};

/// An [`Error::Report`] about a plot.
fn error(problem: impl Into<Problem>) -> Error {
    Error::report("drawing a plot", problem)
}
