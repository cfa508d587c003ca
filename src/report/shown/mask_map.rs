//! A picture of a mask: the whole of it as a map of densities, and one corner weight by weight.

use super::paths::merge_shapes;
use super::pen::{self, Drawing, MARGIN, Pen, QUIET, SMALL, TEXT, TITLE, check_size};
use super::{bitmap, error, palette};
use crate::error::Result;
use crate::mask::Mask;
use plotters::coord::Shift;
use plotters::drawing::DrawingArea;
use plotters::element::Rectangle;
use plotters::prelude::DrawingBackend;
use plotters::style::{Color, RGBColor};

/// Most rows and columns of the map.
const MAP: (usize, usize) = (48, 64);
/// Most rows and columns of the corner.
const CORNER: (usize, usize) = (24, 32);
const WIDTH: u32 = 760;
/// Side of a weight in the corner, and the air between groups of N:M, in nominal pixels.
const WEIGHT: f64 = 9.0;
const GROUP_GAP: f64 = 3.0;
/// The colour of a pruned weight.
const GONE: RGBColor = RGBColor(226, 226, 226);
/// Positions of the parts, in nominal pixels.
const TOP: f64 = 74.0;
const MAP_SIDE: (f64, f64) = (320.0, 240.0);
const CORNER_LEFT: f64 = MARGIN + MAP_SIDE.0 + 40.0;

/// A mask from afar and from near. N:M shows in the corner, where groups stand apart; rows and columns that lose more than
/// others show as stripes on the map. As SVG and PNG; the same mask gives the same bytes.
///
/// ```
/// # fn main() -> lacuna::Result<()> {
/// use lacuna::{mask::Mask, report::MaskMap};
/// let mask = Mask::from_fn(64, 128, |row, col| (row + col) % 4 < 2);
/// let map = MaskMap::new("Two of four", &mask).groups_of(4);
/// assert_eq!(map.summary(), "Two of four: 64 × 128 weights, 50.0% pruned");
/// assert!(map.svg()?.contains("The first 24 rows × 32 columns, in groups of 4"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq)]
pub struct MaskMap {
    title: String,
    shape: (usize, usize),
    sparsity: f64,
    /// Share of pruned weights in each block of the mask.
    density: Vec<Vec<f64>>,
    /// For each weight of the corner, true if it is pruned.
    corner: Vec<Vec<bool>>,
    group: Option<usize>,
}

crate::debug::one_line!(rich MaskMap, |map| format!("MaskMap({})", map.summary()));

super::figure::figure!(MaskMap);

impl MaskMap {
    /// A picture of `mask`.
    pub fn new(title: impl Into<String>, mask: &Mask) -> MaskMap {
        let (rows, cols) = mask.shape();
        let (blocks, across) = (rows.min(MAP.0), cols.min(MAP.1));
        let mut pruned = vec![vec![0u64; across]; blocks];
        mask.for_each_pruned(|index| {
            pruned[index / cols * blocks / rows][index % cols * across / cols] += 1;
        });
        // The number of positions that fall into part `i` of `of` parts of `n`.
        let part = |i: usize, of: usize, n: usize| ((i + 1) * n).div_ceil(of) - (i * n).div_ceil(of);
        let share = |(i, row): (usize, Vec<u64>)| -> Vec<f64> {
            let cells = |j| part(i, blocks, rows) * part(j, across, cols);
            row.iter().enumerate().map(|(j, &count)| count as f64 / cells(j).max(1) as f64).collect()
        };
        let corner = |row| (0..cols.min(CORNER.1)).map(|col| mask.is_pruned(row, col)).collect();
        MaskMap {
            title: title.into(),
            shape: (rows, cols),
            sparsity: mask.sparsity(),
            density: pruned.into_iter().enumerate().map(share).collect(),
            corner: (0..rows.min(CORNER.0)).map(corner).collect(),
            group: None,
        }
    }

    /// Sets groups of `m` inputs apart.
    pub fn groups_of(self, m: usize) -> MaskMap {
        MaskMap { group: Some(m).filter(|&m| m > 0), ..self }
    }

    /// Least and largest density on the map; at least 0.2 apart, so that chance does not look like structure.
    fn range(&self) -> (f64, f64) {
        let all = || self.density.iter().flatten().copied();
        let (low, high) = (all().fold(1.0, f64::min), all().fold(0.0, f64::max));
        let middle = f64::midpoint(low, high).clamp(0.1, 0.9);
        ((low.min(middle - 0.1)).max(0.0), (high.max(middle + 0.1)).min(1.0))
    }

    /// The picture as an SVG document.
    ///
    /// # Errors
    /// Fails when the mask has no weights.
    pub fn svg(&self) -> Result<String> {
        self.check()?;
        Ok(merge_shapes(&pen::svg(self)?))
    }

    /// The picture as a PNG of twice its nominal width and height.
    ///
    /// # Errors
    /// As [`MaskMap::svg`].
    pub fn png(&self) -> Result<Vec<u8>> {
        self.check()?;
        bitmap::png(self)
    }

    /// One line that says what the picture shows.
    pub fn summary(&self) -> String {
        let (rows, cols) = self.shape;
        format!("{}: {rows} × {cols} weights, {:.1}% pruned", self.title, self.sparsity * 100.0)
    }

    fn check(&self) -> Result<()> {
        if self.density.is_empty() || self.corner[0].is_empty() {
            return Err(error(format!("\"{}\" has no weights to draw", self.title)));
        }
        check_size(&self.title, self.size())
    }

    /// Left and right of column `col` of the corner, in nominal pixels.
    fn column(&self, col: usize) -> (f64, f64) {
        let gaps = self.group.map_or(0, |m| col / m) as f64 * GROUP_GAP;
        let left = CORNER_LEFT + col as f64 * WEIGHT + gaps;
        (left, left + WEIGHT - 1.0)
    }
}

impl Drawing for MaskMap {
    fn title(&self) -> &str {
        &self.title
    }

    fn size(&self) -> (u32, u32) {
        // Groups of two need more room than those of four.
        let right = self.corner.first().map_or(0.0, |row| self.column(row.len().saturating_sub(1)).1);
        (WIDTH.max((right + MARGIN) as u32), (TOP + MAP_SIDE.1 + 40.0) as u32)
    }

    fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>, scale: f64) -> Result<()> {
        root.fill(&plotters::style::WHITE).map_err(error)?;
        let pen = Pen { scale };
        let fill = |[x0, y0, x1, y1]: [f64; 4], color: RGBColor| {
            let corners = [(pen.px(x0), pen.px(y0)), (pen.px(x1), pen.px(y1))];
            root.draw(&Rectangle::new(corners, color.filled())).map_err(error)
        };
        let say = |text: &str, x: f64, y: f64, color| pen.text(root, text, (x, y), SMALL, false, color);
        pen.text(root, &self.title, (MARGIN, MARGIN), TITLE, true, TEXT)?;

        let ((rows, cols), (low, high)) = (self.shape, self.range());
        let (down, across) = (self.density.len(), self.density[0].len());
        say(&format!("All {rows} × {cols} weights: share pruned"), MARGIN, TOP - 18.0, TEXT)?;
        let (width, height) = (MAP_SIDE.0 / across as f64, MAP_SIDE.1 / down as f64);
        for (i, row) in self.density.iter().enumerate() {
            for (j, &density) in row.iter().enumerate() {
                let (x, y) = (MARGIN + j as f64 * width, TOP + i as f64 * height);
                // As many colours as are distinct, so that neighbours of one colour become one shape.
                let share = ((density - low) / (high - low) * 32.0).round() / 32.0;
                fill([x, y, x + width, y + height], palette::scale(share))?;
            }
        }
        let bar = (TOP + MAP_SIDE.1 + 12.0, 120.0 / 32.0);
        for step in 0..32 {
            let x = MARGIN + 40.0 + f64::from(step) * bar.1;
            fill([x, bar.0, x + bar.1, bar.0 + 10.0], palette::scale(f64::from(step) / 31.0))?;
        }
        let label = |share: f64| format!("{:.0}%", share * 100.0);
        say(&label(low), MARGIN, bar.0 - 1.0, QUIET)?;
        say(&label(high), MARGIN + 40.0 + 126.0, bar.0 - 1.0, QUIET)?;

        let (near, wide) = (self.corner.len(), self.corner[0].len());
        let groups = self.group.map_or(String::new(), |m| format!(", in groups of {m}"));
        say(&format!("The first {near} rows × {wide} columns{groups}"), CORNER_LEFT, TOP - 18.0, TEXT)?;
        for (i, row) in self.corner.iter().enumerate() {
            for (j, &gone) in row.iter().enumerate() {
                let ((x0, x1), y) = (self.column(j), TOP + i as f64 * (WEIGHT + 1.0));
                fill([x0, y, x1, y + WEIGHT], if gone { GONE } else { palette::kind(0) })?;
            }
        }
        fill([CORNER_LEFT, bar.0, CORNER_LEFT + 10.0, bar.0 + 10.0], palette::kind(0))?;
        say("kept", CORNER_LEFT + 16.0, bar.0 - 1.0, QUIET)?;
        fill([CORNER_LEFT + 60.0, bar.0, CORNER_LEFT + 70.0, bar.0 + 10.0], GONE)?;
        say("pruned", CORNER_LEFT + 76.0, bar.0 - 1.0, QUIET)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn densities_add_up_whatever_the_shape() {
        for (rows, cols) in [(1, 1), (3, 5), (48, 64), (49, 65), (100, 1000)] {
            let mask = Mask::from_fn(rows, cols, |row, col| (row * 7 + col * 3) % 5 < 2);
            let map = MaskMap::new("m", &mask);
            assert!(map.density.iter().flatten().all(|share| (0.0..=1.0).contains(share)));
            assert!(map.svg().is_ok(), "{rows} x {cols}");
            let full = MaskMap::new("m", &mask.or(&mask.not()).unwrap());
            assert!(full.density.iter().flatten().all(|&share| share == 1.0), "{rows} x {cols}");
        }
        assert!(MaskMap::new("m", &Mask::none(0, 4)).svg().unwrap_err().to_string().contains("no weights"));
    }

    #[test]
    fn groups_stand_apart() {
        let map = MaskMap::new("m", &Mask::none(4, 32)).groups_of(4);
        assert_eq!(map.column(4).0 - map.column(3).1, 1.0 + GROUP_GAP);
        assert_eq!(map.column(3).0 - map.column(2).1, 1.0);
    }
}
