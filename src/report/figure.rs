//! Pictures of any kind, for reports and notebook cells.

use super::bitmap::base64;
use super::heatmap::HeatMap;
use super::plot::Plot;
use crate::{Result, notebook};

/// A picture that a report can hold: [`Report::plot`](super::Report::plot) takes anything that becomes one.
#[derive(Clone, Debug)]
pub enum Figure {
    /// Curves, points or bars.
    Plot(Box<Plot>),
    /// A matrix in colours.
    HeatMap(Box<HeatMap>),
}

impl From<Plot> for Figure {
    fn from(plot: Plot) -> Figure {
        Figure::Plot(Box::new(plot))
    }
}

impl From<HeatMap> for Figure {
    fn from(map: HeatMap) -> Figure {
        Figure::HeatMap(Box::new(map))
    }
}

impl Figure {
    pub(super) fn summary(&self) -> String {
        match self {
            Figure::Plot(plot) => plot.summary(),
            Figure::HeatMap(map) => map.summary(),
        }
    }

    pub(super) fn svg(&self) -> Result<String> {
        match self {
            Figure::Plot(plot) => plot.svg(),
            Figure::HeatMap(map) => map.svg(),
        }
    }

    pub(super) fn png(&self) -> Result<Vec<u8>> {
        match self {
            Figure::Plot(plot) => plot.png(),
            Figure::HeatMap(map) => map.png(),
        }
    }
}

/// What a notebook shows, by MIME type.
pub(super) fn bundle(summary: String, svg: String, png: &[u8]) -> Vec<(&'static str, String)> {
    vec![("text/plain", summary), ("image/svg+xml", svg), ("image/png", base64(png))]
}

/// Shows a picture as a cell's value; panics with the reason where there is none to show.
pub(super) fn display(bundle: Result<Vec<(&'static str, String)>>) {
    match bundle {
        Ok(bundle) => notebook::emit(&bundle.iter().map(|(mime, text)| (*mime, text.as_str())).collect::<Vec<_>>()),
        Err(error) => panic!("{error}"),
    }
}
