//! Colours: a set for things that differ in kind, and a scale for things that differ in size.

use plotters::style::RGBColor;

/// Okabe and Ito's colours, which colour-blind readers tell apart, without the yellow that white paper swallows.
const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(110, 110, 110),
];

/// Viridis, whose steps look equal to every kind of eye and in grey print, at equal distances from 0 to 1.
const VIRIDIS: [RGBColor; 11] = [
    RGBColor(68, 1, 84),
    RGBColor(72, 36, 117),
    RGBColor(65, 68, 135),
    RGBColor(53, 95, 141),
    RGBColor(42, 120, 142),
    RGBColor(33, 145, 140),
    RGBColor(34, 168, 132),
    RGBColor(68, 191, 112),
    RGBColor(122, 209, 81),
    RGBColor(189, 223, 38),
    RGBColor(253, 231, 37),
];

/// The colour of the `i`-th of things that differ in kind.
pub(super) fn kind(i: usize) -> RGBColor {
    COLORS[i % COLORS.len()]
}

/// The colour of `share`, from 0 (dark) to 1 (light); outside of it the nearest.
pub(super) fn scale(share: f64) -> RGBColor {
    let at = share.clamp(0.0, 1.0) * (VIRIDIS.len() - 1) as f64;
    let i = (at as usize).min(VIRIDIS.len() - 2);
    let (RGBColor(r0, g0, b0), RGBColor(r1, g1, b1)) = (VIRIDIS[i], VIRIDIS[i + 1]);
    let mix = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * (at - i as f64)).round() as u8;
    RGBColor(mix(r0, r1), mix(g0, g1), mix(b0, b1))
}

/// The colour of the `i`-th of `of` things in an order. The scale's light end is left out: white paper swallows it.
pub(super) fn ordered(i: usize, of: usize) -> RGBColor {
    scale(0.88 * i as f64 / of.saturating_sub(1).max(1) as f64)
}

/// Returns whether light text reads better on `color` than dark text.
pub(super) fn is_dark(RGBColor(r, g, b): RGBColor) -> bool {
    // Luma of ITU-R BT.601.
    0.299 * f64::from(r) + 0.587 * f64::from(g) + 0.114 * f64::from(b) < 120.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_grows_lighter_all_the_way() {
        let luma = |RGBColor(r, g, b): RGBColor| 299 * u32::from(r) + 587 * u32::from(g) + 114 * u32::from(b);
        let steps: Vec<u32> = (0..=50).map(|i| luma(scale(f64::from(i) / 50.0))).collect();
        assert!(steps.windows(2).all(|pair| pair[0] < pair[1]), "{steps:?}");
        assert_eq!([scale(-1.0), scale(0.5), scale(2.0)], [VIRIDIS[0], VIRIDIS[5], VIRIDIS[10]]);
        assert!(is_dark(scale(0.0)) && !is_dark(scale(1.0)));
    }
}
