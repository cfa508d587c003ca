//! Pictures of any kind, for reports and notebook cells.

use super::bitmap::base64;
use super::heatmap::HeatMap;
use super::mask_map::MaskMap;
use super::plot::Plot;
use crate::display::{Bundle, Rich, mime, shown_in_cells};
use crate::error::Result;

/// A picture that a report can hold: [`Report::plot`](super::Report::plot) takes anything that becomes one.
#[derive(Clone)]
pub enum Figure {
    /// Curves, points or bars.
    Plot(Box<Plot>),
    /// A matrix in colours.
    HeatMap(Box<HeatMap>),
    /// A mask from afar and from near.
    MaskMap(Box<MaskMap>),
}

crate::debug::one_line!(rich Figure, |figure| format!("Figure({})", figure.summary()));

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

impl From<MaskMap> for Figure {
    fn from(map: MaskMap) -> Figure {
        Figure::MaskMap(Box::new(map))
    }
}

impl Figure {
    pub(super) fn summary(&self) -> String {
        match self {
            Figure::Plot(plot) => plot.summary(),
            Figure::HeatMap(map) => map.summary(),
            Figure::MaskMap(map) => map.summary(),
        }
    }

    pub(crate) fn svg(&self) -> Result<String> {
        match self {
            Figure::Plot(plot) => plot.svg(),
            Figure::HeatMap(map) => map.svg(),
            Figure::MaskMap(map) => map.svg(),
        }
    }

    pub(crate) fn png(&self) -> Result<Vec<u8>> {
        match self {
            Figure::Plot(plot) => plot.png(),
            Figure::HeatMap(map) => map.png(),
            Figure::MaskMap(map) => map.png(),
        }
    }
}

/// The representations of a picture in a notebook, by MIME type.
pub(super) fn bundle(summary: String, svg: String, png: &[u8]) -> Bundle {
    vec![(mime::PLAIN, summary), (mime::SVG, svg), (mime::PNG, base64(png))]
}

impl Rich for Figure {
    fn bundle(&self) -> Result<Bundle> {
        Ok(bundle(self.summary(), self.svg()?, &self.png()?))
    }
}

impl Rich for Plot {
    fn bundle(&self) -> Result<Bundle> {
        self.bundle()
    }
}

impl Rich for HeatMap {
    fn bundle(&self) -> Result<Bundle> {
        self.bundle()
    }
}

impl Rich for MaskMap {
    fn bundle(&self) -> Result<Bundle> {
        Ok(bundle(self.summary(), self.svg()?, &self.png()?))
    }
}

shown_in_cells!(Figure, Plot, HeatMap, MaskMap);
