//! The base of every picture: sizes, text colours, a pen in nominal pixels, and the way to an SVG document.

use super::error;
use super::font::{self, FAMILY, SIZE_PER_EM};
use crate::error::{Remedy, Result};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, PathElement, Polygon, Text};
use plotters::prelude::{DrawingBackend, SVGBackend};
use plotters::style::{Color, FontDesc, FontFamily, FontStyle, RGBColor, ShapeStyle, TextStyle, WHITE};

pub(super) const TEXT: RGBColor = RGBColor(40, 40, 40);
pub(super) const QUIET: RGBColor = RGBColor(95, 95, 95);
pub(super) const GRID: RGBColor = RGBColor(228, 228, 228);
pub(super) const AXIS: RGBColor = RGBColor(120, 120, 120);
pub(super) const BASELINE: RGBColor = RGBColor(70, 70, 70);

// Sizes in nominal pixels; text sizes are ems.
pub(super) const MARGIN: f64 = 18.0;
pub(super) const TITLE: f64 = 18.0;
pub(super) const LABEL: f64 = 14.0;
pub(super) const TICK: f64 = 13.0;
pub(super) const SMALL: f64 = 11.5;
pub(super) const LEGEND_ROW: f64 = 22.0;

/// Fails for sizes that cannot be drawn.
pub(super) fn check_size(title: &str, (width, height): (u32, u32)) -> Result<()> {
    if !(320..=4000).contains(&width) || !(200..=4000).contains(&height) {
        return Err(error(
            format!("\"{title}\" is {width} x {height} pixels").remedy("320 x 200 to 4000 x 4000 can be drawn"),
        ));
    }
    Ok(())
}

/// A picture that was checked and laid out, to be drawn on any backend at any scale.
pub(super) trait Drawing {
    /// Its heading.
    fn title(&self) -> &str;

    /// Width and height in nominal pixels.
    fn size(&self) -> (u32, u32);

    /// Draws everything onto `root`, which has `scale` pixels to a nominal one.
    fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>, scale: f64) -> Result<()>;
}

/// The picture as SVG: drawn at twice the size, so that coordinates have half-pixel precision.
pub(super) fn svg(drawing: &impl Drawing) -> Result<String> {
    font::register()?;
    let (width, height) = drawing.size();
    let (w, h) = (width * 2, height * 2);
    let mut body = String::new();
    {
        let root = SVGBackend::with_string(&mut body, (w, h)).into_drawing_area();
        drawing.draw(&root, 2.0)?;
        root.present().map_err(error)?;
    }
    let opening = format!(r#"<svg width="{w}" height="{h}" "#);
    let sized = format!(r#"<svg role="img" width="{width}" height="{height}" "#);
    let title = escape(drawing.title());
    let rest = body.strip_prefix(&opening).ok_or_else(|| error("plotters began an SVG in an unknown way"))?;
    let (attributes, content) = rest.split_once('\n').ok_or_else(|| error("plotters wrote an empty SVG"))?;
    Ok(format!("{sized}{attributes}\n<title>{title}</title>\n{content}"))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Nominal pixels to the backend's.
pub(super) struct Pen {
    pub(super) scale: f64,
}

impl Pen {
    pub(super) fn px(&self, nominal: f64) -> i32 {
        (nominal * self.scale).round() as i32
    }

    pub(super) fn stroke(&self, color: RGBColor, width: f64) -> ShapeStyle {
        color.stroke_width(self.px(width).max(1) as u32)
    }

    pub(super) fn style(&self, em: f64, bold: bool, color: RGBColor) -> TextStyle<'static> {
        let weight = if bold { FontStyle::Bold } else { FontStyle::Normal };
        FontDesc::new(FontFamily::Name(FAMILY), em * self.scale * SIZE_PER_EM, weight).color(&color)
    }

    pub(super) fn text<DB: DrawingBackend>(
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

    pub(super) fn dashes<DB: DrawingBackend>(
        &self,
        root: &DrawingArea<DB, Shift>,
        from: i32,
        to: i32,
        y: i32,
    ) -> Result<()> {
        let (dash, gap) = (self.px(7.0), self.px(5.0));
        for start in (from..to).step_by((dash + gap).max(1) as usize) {
            let ends = vec![(start, y), ((start + dash).min(to), y)];
            root.draw(&PathElement::new(ends, self.stroke(BASELINE, 1.5))).map_err(error)?;
        }
        Ok(())
    }

    /// A filled marker with a thin white rim for a curve; an outline, which hides no other, for single points, whose
    /// radius is given.
    pub(super) fn marker<DB: DrawingBackend>(
        &self,
        root: &DrawingArea<DB, Shift>,
        center: (i32, i32),
        shape: usize,
        color: RGBColor,
        outline: Option<f64>,
    ) -> Result<()> {
        match outline {
            None => {
                self.shape(root, center, shape, 6.5, WHITE.filled())?;
                self.shape(root, center, shape, 5.0, color.filled())
            }
            Some(radius) => self.shape(root, center, shape, radius, self.stroke(color, radius / 3.0)),
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
