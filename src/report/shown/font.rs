//! The shipped font, and the width of text in it.

use super::error;
use crate::error::{Remedy, Result};
use ab_glyph::{Font, FontRef, PxScale, ScaleFont};
use plotters::style::{FontStyle, register_font};
use std::sync::OnceLock;

static NORMAL: &[u8] = include_bytes!("../../../data/fonts/DejaVuSans.ttf");
static BOLD: &[u8] = include_bytes!("../../../data/fonts/DejaVuSans-Bold.ttf");

/// The family as SVG names it: the shipped font, then fonts of the same metrics, then any.
pub(super) const FAMILY: &str = "DejaVu Sans, Verdana, sans-serif";

/// plotters' sizes are this many times the em that SVG gets.
pub(super) const SIZE_PER_EM: f64 = 1.24;

pub(super) struct Fonts {
    pub(super) normal: FontRef<'static>,
    pub(super) bold: FontRef<'static>,
}

/// The shipped fonts, which are made known to plotters on first use.
pub(super) fn fonts() -> Result<&'static Fonts> {
    static FONTS: OnceLock<Option<Fonts>> = OnceLock::new();
    FONTS
        .get_or_init(|| {
            register_font(FAMILY, FontStyle::Normal, NORMAL).ok()?;
            register_font(FAMILY, FontStyle::Bold, BOLD).ok()?;
            Some(Fonts { normal: FontRef::try_from_slice(NORMAL).ok()?, bold: FontRef::try_from_slice(BOLD).ok()? })
        })
        .as_ref()
        .ok_or_else(|| error("the font in data/fonts is damaged".remedy("build again from a clean checkout")))
}

/// Makes the fonts known to plotters.
pub(super) fn register() -> Result<()> {
    fonts().map(|_| ())
}

/// Width of `text` in pixels at `em` pixels per em.
pub(super) fn text_width(text: &str, em: f64, bold: bool) -> Result<f64> {
    let fonts = fonts()?;
    Ok(f64::from(advance(if bold { &fonts.bold } else { &fonts.normal }, text, em as f32)))
}

pub(super) fn scale(font: &FontRef<'static>, em: f32) -> PxScale {
    let units = font.units_per_em().unwrap_or(2048.0);
    PxScale::from(em * font.height_unscaled() / units)
}

pub(super) fn advance(font: &FontRef<'static>, text: &str, em: f32) -> f32 {
    let font = font.as_scaled(scale(font, em));
    let mut previous = None;
    text.chars()
        .map(|c| {
            let id = font.glyph_id(c);
            let kern = previous.replace(id).map_or(0.0, |previous| font.kern(previous, id));
            kern + font.h_advance(id)
        })
        .sum()
}
