//! Pixels: text on a bitmap, PNG.
//!
//! plotters' own `ab_glyph` text drops each glyph's side bearing and snaps to whole pixels, which shows as uneven
//! letters. Here text is set at sub-pixel positions, at the places where the SVG backend anchors it.

use super::error;
use super::font::{Fonts, SIZE_PER_EM, advance, fonts, register, scale};
use super::pen::Drawing;
use crate::error::{Error, Result};
use ab_glyph::{Font, ScaleFont, point};
use plotters::backend::{BitMapBackend, DrawingBackend};
use plotters::prelude::IntoDrawingArea;
use plotters::style::FontStyle;
use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingErrorKind};

/// [`BitMapBackend`] with text of its own; everything else is passed on.
struct Bitmap<'a> {
    pixels: BitMapBackend<'a>,
    fonts: &'static Fonts,
}

type DrawingError = <BitMapBackend<'static> as DrawingBackend>::ErrorType;
type Drawn = Result<(), DrawingErrorKind<DrawingError>>;

impl DrawingBackend for Bitmap<'_> {
    type ErrorType = DrawingError;

    fn get_size(&self) -> (u32, u32) {
        self.pixels.get_size()
    }

    fn ensure_prepared(&mut self) -> Drawn {
        self.pixels.ensure_prepared()
    }

    fn present(&mut self) -> Drawn {
        self.pixels.present()
    }

    fn draw_pixel(&mut self, point: BackendCoord, color: BackendColor) -> Drawn {
        self.pixels.draw_pixel(point, color)
    }

    fn draw_line<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S) -> Drawn {
        self.pixels.draw_line(from, to, style)
    }

    fn draw_rect<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S, fill: bool) -> Drawn {
        self.pixels.draw_rect(from, to, style, fill)
    }

    fn draw_text<T: BackendTextStyle>(&mut self, text: &str, style: &T, (x, y): BackendCoord) -> Drawn {
        let em = (style.size() / SIZE_PER_EM) as f32;
        let font = if matches!(style.style(), FontStyle::Bold) { &self.fonts.bold } else { &self.fonts.normal };
        let px = scale(font, em);
        let width = advance(font, text, em);
        let mut pen = match style.anchor().h_pos {
            HPos::Left => 0.0,
            HPos::Center => -width / 2.0,
            HPos::Right => -width,
        };
        // Baselines as in plotters' SVG: 0.76 em, half an ex up or down.
        let ex = 0.547 * em;
        let baseline = match style.anchor().v_pos {
            VPos::Top => 0.76 * em,
            VPos::Center => ex / 2.0,
            VPos::Bottom => -ex / 2.0,
        };
        let (turn, color, (w, h)) = (style.transform(), style.color(), self.get_size());
        let scaled = font.as_scaled(px);
        let mut previous = None;
        for c in text.chars() {
            let id = font.glyph_id(c);
            pen += previous.replace(id).map_or(0.0, |previous| scaled.kern(previous, id));
            if let Some(outline) = font.outline_glyph(id.with_scale_and_position(px, point(pen, baseline))) {
                let corner = outline.px_bounds().min;
                let mut drawn = Ok(());
                outline.draw(|dx, dy, coverage| {
                    let (gx, gy) = turn.transform(corner.x as i32 + dx as i32, corner.y as i32 + dy as i32);
                    let (gx, gy) = (x + gx, y + gy);
                    if drawn.is_ok() && (0..w as i32).contains(&gx) && (0..h as i32).contains(&gy) {
                        drawn = self.pixels.draw_pixel((gx, gy), color.mix(f64::from(coverage.clamp(0.0, 1.0))));
                    }
                });
                drawn?;
            }
            pen += scaled.h_advance(id);
        }
        Ok(())
    }
}

/// Device pixels per pixel of the plot: sharp on dense screens, and on others after the browser has scaled it.
const DENSITY: u32 = 2;
/// Samples per device pixel, along each side; plotters does not smooth thick lines.
const SAMPLES: u32 = 2;

/// The picture as a PNG of twice its nominal width and height.
pub(super) fn png(drawing: &impl Drawing) -> Result<Vec<u8>> {
    register()?;
    let (width, height) = drawing.size();
    let (w, h) = (width * DENSITY, height * DENSITY);
    let (fine_w, fine_h) = (w * SAMPLES, h * SAMPLES);
    let mut fine = vec![255u8; (fine_w * fine_h * 3) as usize];
    {
        let backend = Bitmap { pixels: BitMapBackend::with_buffer(&mut fine, (fine_w, fine_h)), fonts: fonts()? };
        let root = backend.into_drawing_area();
        drawing.draw(&root, f64::from(DENSITY * SAMPLES))?;
        root.present().map_err(error)?;
    }
    encode(&mean_of_samples(&fine, w as usize, h as usize), w, h)
}

/// Means over squares of samples: `(h * SAMPLES, w * SAMPLES, 3)` to `(h, w, 3)`.
fn mean_of_samples(fine: &[u8], w: usize, h: usize) -> Vec<u8> {
    let n = SAMPLES as usize;
    let mut out = Vec::with_capacity(w * h * 3);
    for y in 0..h {
        for x in 0..w {
            for channel in 0..3 {
                let sum: usize = (0..n * n)
                    .map(|i| usize::from(fine[((y * n + i / n) * w * n + x * n + i % n) * 3 + channel]))
                    .sum();
                out.push(((sum + n * n / 2) / (n * n)) as u8);
            }
        }
    }
    out
}

fn encode(rgb: &[u8], width: u32, height: u32) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Best);
    let failed = |e: png::EncodingError| Error::report("encoding a PNG", e);
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(rgb).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::font::text_width;
    use super::*;

    #[test]
    fn width_grows_with_text_and_weight() -> Result<()> {
        let (short, long, bold) = (
            text_width("wanda", 13.0, false)?,
            text_width("wanda 2:4", 13.0, false)?,
            text_width("wanda", 13.0, true)?,
        );
        assert!(short > 25.0 && long > short && bold > short, "{short} {long} {bold}");
        Ok(())
    }
}
