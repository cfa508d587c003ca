//! Drawing a heat map on any plotters backend, at any scale.
//!
//! From top to bottom: title; legend of the marks and what the colours measure; cells with their axes, and the bar of
//! colours to their right. Cell borders fall on the backend's pixels, so that no seams show.

use super::axis::Axis;
use super::font::text_width;
use super::heatmap::HeatMap;
use super::paths::merge_shapes;
use super::pen::{self, AXIS, Drawing, LABEL, LEGEND_ROW, MARGIN, Pen, SMALL, TEXT, TICK, TITLE, check_size};
use super::{bitmap, error, palette};
use crate::error::{Remedy, Result};
use plotters::coord::Shift;
use plotters::drawing::DrawingArea;
use plotters::element::{PathElement, Polygon, Rectangle, Text};
use plotters::prelude::DrawingBackend;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontTransform, RGBColor, WHITE};

impl HeatMap {
    /// The map as an SVG document.
    ///
    /// # Errors
    /// Fails when there is no value, rows differ in length, a value is not finite (or, on a log scale, not positive),
    /// names or marks do not fit the cells, or the size cannot be drawn.
    pub fn svg(&self) -> Result<String> {
        Ok(merge_shapes(&pen::svg(&HeatMapScene::new(self)?)?))
    }

    /// The map as a PNG of twice its nominal width and height.
    ///
    /// # Errors
    /// As [`HeatMap::svg`].
    pub fn png(&self) -> Result<Vec<u8>> {
        bitmap::png(&HeatMapScene::new(self)?)
    }
}

/// Distinct colours, in the cells and in the bar.
const LEVELS: usize = 128;
/// Cells get their values written into them up to this many, where there is room.
const LABELLED_CELLS: usize = 100;
/// Distinct kinds of marks.
const MARKS: usize = 3;
/// The colour of a cell without a value.
const BLANK: RGBColor = RGBColor(240, 240, 240);
/// Width of the bar of colours, and the air before it, in nominal pixels.
const BAR: f64 = 16.0;
const BAR_GAP: f64 = 20.0;
const TICK_MARK: f64 = 4.0;

/// A map that was checked and laid out.
pub(super) struct HeatMapScene<'a> {
    map: &'a HeatMap,
    columns: usize,
    colors: Axis,
    row_names: Vec<String>,
    column_names: Vec<String>,
    /// Every so many rows and columns have a label.
    row_step: usize,
    column_step: usize,
    /// True if values are written in the cells.
    labelled: bool,
    /// Left, top, right, bottom of the cells, in nominal pixels.
    frame: [f64; 4],
}

impl<'a> HeatMapScene<'a> {
    pub(super) fn new(map: &'a HeatMap) -> Result<HeatMapScene<'a>> {
        let title = &map.title;
        check_size(title, map.pixels())?;
        let (rows, columns) = (map.values.len(), map.values.first().map_or(0, Vec::len));
        if columns == 0 {
            return Err(error(format!("\"{title}\" has no cells").remedy("give it at least one row and one column")));
        }
        let (low, high) = range(map, columns)?;
        for (what, names, of) in [("row", &map.row_names, rows), ("column", &map.column_names, columns)] {
            if let Some(n) = names.as_ref().map(Vec::len).filter(|n| *n != of) {
                return Err(error(format!("\"{title}\" has {n} {what} names for {of} {what}s")));
            }
        }
        if map.marks.len() > MARKS {
            return Err(error(
                format!("\"{title}\" has {} kinds of marks", map.marks.len())
                    .remedy(format!("there are signs for {MARKS}")),
            ));
        }
        for (name, cells) in &map.marks {
            if let Some((row, column)) = cells.iter().find(|(row, column)| *row >= rows || *column >= columns) {
                return Err(error(
                    format!("mark \"{name}\" of \"{title}\" is on row {row}, column {column}")
                        .remedy(format!("there are {rows} rows and {columns} columns")),
                ));
            }
        }
        let names = |names: &Option<Vec<String>>, of: usize| -> Vec<String> {
            names.clone().unwrap_or_else(|| (0..of).map(|i| i.to_string()).collect())
        };
        let mut scene = HeatMapScene {
            map,
            columns,
            colors: Axis::tight(map.scale, low, high),
            row_names: names(&map.row_names, rows),
            column_names: names(&map.column_names, columns),
            row_step: 1,
            column_step: 1,
            labelled: false,
            frame: [0.0; 4],
        };
        scene.lay_out()?;
        Ok(scene)
    }

    fn lay_out(&mut self) -> Result<()> {
        let (map, rows) = (self.map, self.map.values.len());
        let (width, height) = (f64::from(map.pixels().0), f64::from(map.pixels().1));
        let named = |label: &str| if label.is_empty() { 0.0 } else { LABEL + 12.0 };
        let head = if map.marks.is_empty() && map.unit.is_empty() { 4.0 } else { LEGEND_ROW + 8.0 };
        let left = MARGIN + named(&map.row_label) + widest(&self.row_names)? + TICK_MARK + 5.0;
        let top = MARGIN + TITLE + 12.0 + head;
        let bar_labels: Vec<String> = self.colors.ticks.iter().map(|(_, label)| label.clone()).collect();
        let right = width - MARGIN - widest(&bar_labels)? - TICK_MARK - 5.0 - BAR - BAR_GAP;
        let bottom = height - MARGIN / 2.0 - named(&map.column_label) - TICK - TICK_MARK - 5.0;
        if right - left < 40.0 || bottom - top < 20.0 {
            return Err(error(
                format!("\"{}\" leaves no room for its cells", map.title).remedy("make it larger or names shorter"),
            ));
        }
        self.frame = [left, top, right, bottom];
        let (cell_width, cell_height) = ((right - left) / self.columns as f64, (bottom - top) / rows as f64);
        let step = |room: f64, needed: f64| ((needed / room).ceil().max(1.0) as usize).next_power_of_two();
        self.row_step = step(cell_height, TICK + 2.0);
        self.column_step = step(cell_width, widest(&self.column_names)? + 8.0);
        // The ticks of a short bar are thinned.
        let room = (bottom - top) / (TICK + 4.0);
        let every = (self.colors.ticks.len() as f64 / room).ceil().max(1.0) as usize;
        let mut i = 0..;
        self.colors.ticks.retain(|_| i.next().is_some_and(|i: usize| i.is_multiple_of(every)));

        if rows * self.columns <= LABELLED_CELLS && cell_height >= SMALL + 6.0 {
            let mut needed = 0f64;
            for value in map.values.iter().flatten().flatten() {
                needed = needed.max(text_width(&map.written(*value), SMALL, false)?);
            }
            self.labelled = needed + 6.0 <= cell_width;
        }
        Ok(())
    }

    /// Left, top, right, bottom of a cell in the backend's pixels.
    fn cell(&self, pen: &Pen, row: usize, column: usize) -> [i32; 4] {
        let [left, top, right, bottom] = self.frame;
        let x = |column: usize| pen.px(left + (right - left) * column as f64 / self.columns as f64);
        let y = |row: usize| pen.px(top + (bottom - top) * row as f64 / self.map.values.len() as f64);
        [x(column), y(row), x(column + 1), y(row + 1)]
    }

    fn level(&self, value: f64) -> usize {
        ((self.colors.share(value) * LEVELS as f64) as usize).min(LEVELS - 1)
    }

    /// Cells, level by level, so that those of one colour follow one another.
    fn draw_cells<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>, pen: &Pen) -> Result<()> {
        let mut cells: Vec<(Option<usize>, usize, usize)> = Vec::new();
        for (row, values) in self.map.values.iter().enumerate() {
            cells.extend(values.iter().enumerate().map(|(column, value)| (value.map(|v| self.level(v)), row, column)));
        }
        cells.sort_unstable();
        // Large cells stand apart by a hair.
        let [x0, y0, x1, y1] = self.cell(pen, 0, 0);
        let gap = if (x1 - x0).min(y1 - y0) >= pen.px(9.0) { pen.px(1.0) } else { 0 };
        for (level, row, column) in cells {
            let [x0, y0, x1, y1] = self.cell(pen, row, column);
            let color = level.map_or(BLANK, level_color);
            fill(root, [x0, y0, x1 - gap, y1 - gap], color)?;
        }
        Ok(())
    }

    fn draw_values<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>, pen: &Pen) -> Result<()> {
        for (row, values) in self.map.values.iter().enumerate() {
            for (column, value) in values.iter().enumerate() {
                let Some(value) = value else { continue };
                let [x0, y0, x1, y1] = self.cell(pen, row, column);
                let color = ink(level_color(self.level(*value)));
                let style = pen.style(SMALL, false, color).pos(Pos::new(HPos::Center, VPos::Center));
                let place = ((x0 + x1) / 2, (y0 + y1) / 2);
                root.draw(&Text::new(self.map.written(*value), place, style)).map_err(error)?;
            }
        }
        Ok(())
    }

    fn draw_marks<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>, pen: &Pen) -> Result<()> {
        let color = |&(row, column): &(usize, usize)| {
            self.map.values[row][column].map_or(TEXT, |value| ink(level_color(self.level(value))))
        };
        for (i, (_, cells)) in self.map.marks.iter().enumerate() {
            // Colour by colour, as the cells.
            for pass in [TEXT, WHITE] {
                for cell in cells.iter().filter(|cell| color(cell) == pass) {
                    let [x0, y0, x1, y1] = self.cell(pen, cell.0, cell.1);
                    if self.labelled {
                        // Beside a value, in the corner.
                        let inset = pen.px(9.0);
                        mark(root, pen, i, (x1 - inset, y0 + inset), pen.px(4.0), pass)?;
                    } else {
                        let radius = (f64::from((x1 - x0).min(y1 - y0)) * 0.3) as i32;
                        mark(root, pen, i, ((x0 + x1) / 2, (y0 + y1) / 2), radius.min(pen.px(6.0)), pass)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn draw_axes<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>, pen: &Pen) -> Result<()> {
        let [left, top, right, bottom] = self.frame;
        let (tick, air) = (pen.px(TICK_MARK), pen.px(3.0));
        for (row, name) in self.row_names.iter().enumerate().step_by(self.row_step) {
            let [x, y0, _, y1] = self.cell(pen, row, 0);
            let y = (y0 + y1) / 2;
            line(root, pen, (x - tick, y), (x, y))?;
            let style = pen.style(TICK, false, TEXT).pos(Pos::new(HPos::Right, VPos::Center));
            root.draw(&Text::new(name.clone(), (x - tick - air, y), style)).map_err(error)?;
        }
        for (column, name) in self.column_names.iter().enumerate().step_by(self.column_step) {
            let [x0, _, x1, y] = self.cell(pen, self.map.values.len() - 1, column);
            let x = (x0 + x1) / 2;
            line(root, pen, (x, y), (x, y + tick))?;
            let style = pen.style(TICK, false, TEXT).pos(Pos::new(HPos::Center, VPos::Top));
            root.draw(&Text::new(name.clone(), (x, y + tick + air), style)).map_err(error)?;
        }
        let middle = pen.px((left + right) / 2.0);
        let style = pen.style(LABEL, false, TEXT).pos(Pos::new(HPos::Center, VPos::Top));
        let place = (middle, pen.px(bottom + TICK_MARK + TICK + 9.0));
        root.draw(&Text::new(self.map.column_label.clone(), place, style)).map_err(error)?;
        let style = pen.style(LABEL, false, TEXT).transform(FontTransform::Rotate270);
        let style = style.pos(Pos::new(HPos::Center, VPos::Top));
        let place = (pen.px(MARGIN), pen.px((top + bottom) / 2.0));
        root.draw(&Text::new(self.map.row_label.clone(), place, style)).map_err(error)
    }

    fn draw_bar<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>, pen: &Pen) -> Result<()> {
        let [_, top, right, bottom] = self.frame;
        let (x0, x1) = (pen.px(right + BAR_GAP), pen.px(right + BAR_GAP + BAR));
        let y = |share: f64| pen.px(bottom - (bottom - top) * share);
        for level in 0..LEVELS {
            let (from, to) = (level as f64 / LEVELS as f64, (level + 1) as f64 / LEVELS as f64);
            fill(root, [x0, y(to), x1, y(from)], level_color(level))?;
        }
        for (at, label) in &self.colors.ticks {
            let range = &self.colors.range;
            let y = y(((at - range.start) / (range.end - range.start)).clamp(0.0, 1.0));
            line(root, pen, (x1, y), (x1 + pen.px(TICK_MARK), y))?;
            let style = pen.style(TICK, false, TEXT).pos(Pos::new(HPos::Left, VPos::Center));
            root.draw(&Text::new(label.clone(), (x1 + pen.px(TICK_MARK + 3.0), y), style)).map_err(error)?;
        }
        Ok(())
    }

    /// Marks to the left, what the colours measure to the right, above its bar.
    fn draw_legend<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>, pen: &Pen) -> Result<()> {
        let middle = MARGIN + TITLE + 12.0 + LEGEND_ROW / 2.0;
        let mut x = MARGIN;
        for (i, (name, _)) in self.map.marks.iter().enumerate() {
            let (half, y, center) = (pen.px(8.0), pen.px(middle), pen.px(x + 8.0));
            let color = palette::scale(0.2);
            fill(root, [center - half, y - half, center + half, y + half], color)?;
            mark(root, pen, i, (center, y), pen.px(4.0), ink(color))?;
            let style = pen.style(TICK, false, TEXT).pos(Pos::new(HPos::Left, VPos::Center));
            root.draw(&Text::new(name.clone(), (pen.px(x + 23.0), y), style)).map_err(error)?;
            x += 23.0 + text_width(name, TICK, false)? + 22.0;
        }
        let style = pen.style(LABEL, false, TEXT).pos(Pos::new(HPos::Right, VPos::Center));
        let place = (pen.px(f64::from(self.map.pixels().0) - MARGIN), pen.px(middle));
        root.draw(&Text::new(self.map.unit.clone(), place, style)).map_err(error)
    }
}

impl Drawing for HeatMapScene<'_> {
    fn title(&self) -> &str {
        &self.map.title
    }

    fn size(&self) -> (u32, u32) {
        self.map.pixels()
    }

    fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>, scale: f64) -> Result<()> {
        let pen = Pen { scale };
        root.fill(&WHITE).map_err(error)?;
        pen.text(root, &self.map.title, (MARGIN, MARGIN - 2.0), TITLE, true, TEXT)?;
        self.draw_legend(root, &pen)?;
        self.draw_cells(root, &pen)?;
        if self.labelled {
            self.draw_values(root, &pen)?;
        }
        self.draw_marks(root, &pen)?;
        self.draw_axes(root, &pen)?;
        self.draw_bar(root, &pen)
    }
}

/// The smallest and the largest value of a map whose rows have `columns` cells each.
fn range(map: &HeatMap, columns: usize) -> Result<(f64, f64)> {
    let (title, mut low, mut high) = (&map.title, f64::INFINITY, f64::NEG_INFINITY);
    for (row, values) in map.values.iter().enumerate() {
        if values.len() != columns {
            let n = values.len();
            return Err(error(
                format!("row {row} of \"{title}\" has {n} cells, row 0 has {columns}").remedy("make them equal"),
            ));
        }
        for (column, value) in values.iter().enumerate() {
            let Some(value) = *value else { continue };
            if !value.is_finite() || (map.scale.is_log() && value <= 0.0) {
                let needed = if map.scale.is_log() { "positive and finite" } else { "finite" };
                return Err(error(
                    format!("row {row}, column {column} of \"{title}\" is {value}, which has no colour")
                        .remedy(format!("values must be {needed}, or None for a blank cell")),
                ));
            }
            (low, high) = (low.min(value), high.max(value));
        }
    }
    if low > high {
        return Err(error(format!("no cell of \"{title}\" has a value")));
    }
    Ok((low, high))
}

fn widest(names: &[String]) -> Result<f64> {
    names
        .iter()
        .map(|name| text_width(name, TICK, false))
        .try_fold(0.0, |a: f64, width| width.map(|width| a.max(width)))
}

fn level_color(level: usize) -> RGBColor {
    palette::scale((level as f64 + 0.5) / LEVELS as f64)
}

/// A text colour that is readable on `color`.
fn ink(color: RGBColor) -> RGBColor {
    if palette::is_dark(color) { WHITE } else { TEXT }
}

fn fill<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, corners: [i32; 4], color: RGBColor) -> Result<()> {
    let [x0, y0, x1, y1] = corners;
    root.draw(&Rectangle::new([(x0, y0), (x1, y1)], color.filled())).map_err(error)
}

fn line<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, pen: &Pen, from: (i32, i32), to: (i32, i32)) -> Result<()> {
    root.draw(&PathElement::new(vec![from, to], pen.stroke(AXIS, 1.0))).map_err(error)
}

/// The sign of the `i`-th mark: a cross, a diamond, a triangle, and so on.
fn mark<DB: DrawingBackend>(
    root: &DrawingArea<DB, Shift>,
    pen: &Pen,
    i: usize,
    (x, y): (i32, i32),
    radius: i32,
    color: RGBColor,
) -> Result<()> {
    let r = radius.max(1);
    let outline = match i {
        0 => {
            // Strokes in proportion, so that small crosses stay open.
            let stroke = color.stroke_width((r / 3).clamp(1, pen.px(1.5)) as u32);
            for ends in [[(x - r, y - r), (x + r, y + r)], [(x - r, y + r), (x + r, y - r)]] {
                root.draw(&PathElement::new(ends.to_vec(), stroke)).map_err(error)?;
            }
            return Ok(());
        }
        1 => vec![(x, y - r), (x + r, y), (x, y + r), (x - r, y)],
        _ => vec![(x, y - r), (x + r, y + r), (x - r, y + r)],
    };
    root.draw(&Polygon::new(outline, color.filled())).map_err(error)
}
