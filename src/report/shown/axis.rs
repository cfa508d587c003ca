//! The range of an axis, and the positions of its labels.

/// The labels of an axis and the spacing of its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AxisScale {
    Linear,
    /// Fractions, labelled in percent.
    Percent,
    Log,
    /// Fractions on a log scale, labelled in percent.
    LogPercent,
}

impl AxisScale {
    pub(super) fn is_log(self) -> bool {
        matches!(self, AxisScale::Log | AxisScale::LogPercent)
    }

    pub(super) fn is_percent(self) -> bool {
        matches!(self, AxisScale::Percent | AxisScale::LogPercent)
    }

    pub(super) fn with_log(self) -> AxisScale {
        if self.is_percent() { AxisScale::LogPercent } else { AxisScale::Log }
    }

    pub(super) fn with_percent(self) -> AxisScale {
        if self.is_log() { AxisScale::LogPercent } else { AxisScale::Percent }
    }
}

/// A laid-out axis. Positions are values, or their decimal logarithms on a log scale.
#[derive(Debug)]
pub(super) struct Axis {
    scale: AxisScale,
    pub(super) range: std::ops::Range<f64>,
    pub(super) ticks: Vec<(f64, String)>,
}

/// Labels at most, on either axis.
const MAX_TICKS: usize = 9;

impl Axis {
    /// An axis over `values`, which are finite, not empty, and positive on a log scale.
    pub(super) fn over(scale: AxisScale, values: impl IntoIterator<Item = f64>) -> Axis {
        let (low, high) =
            values.into_iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        match scale {
            AxisScale::Log => Axis::log(low, high),
            AxisScale::LogPercent => Axis::log(low * 100.0, high * 100.0).percent_of_fractions(),
            AxisScale::Linear => Axis::linear(scale, low, high, 1.0, ""),
            AxisScale::Percent => Axis::linear(scale, low, high, 100.0, "%"),
        }
    }

    /// Like [`Axis::over`], and it ends where the values do, unless they are all the same.
    pub(super) fn tight(scale: AxisScale, low: f64, high: f64) -> Axis {
        let mut axis = Axis::over(scale, [low, high]);
        let (low, high) = (axis.position(low), axis.position(high));
        if high > low {
            let slack = (high - low) * 1e-9;
            axis.ticks.retain(|(at, _)| (low - slack..=high + slack).contains(at));
            axis.range = low..high;
        }
        axis
    }

    /// The position of `value` between the ends, from 0 to 1.
    pub(super) fn share(&self, value: f64) -> f64 {
        ((self.position(value) - self.range.start) / (self.range.end - self.range.start)).clamp(0.0, 1.0)
    }

    /// One place per category, labelled where there is room for every `step`-th.
    pub(super) fn categories(names: &[String], step: usize) -> Axis {
        let ticks = names.iter().enumerate().step_by(step.max(1)).map(|(i, name)| (i as f64, name.clone())).collect();
        Axis { scale: AxisScale::Linear, range: -0.5..names.len() as f64 - 0.5, ticks }
    }

    /// The position of `value` on the axis.
    pub(super) fn position(&self, value: f64) -> f64 {
        if self.scale.is_log() { value.log10() } else { value }
    }

    /// An axis over percentages as one over fractions.
    fn percent_of_fractions(self) -> Axis {
        // 1% stands at log10(0.01).
        let (range, ticks) = (self.range.start - 2.0..self.range.end - 2.0, self.ticks.into_iter());
        Axis { scale: AxisScale::LogPercent, range, ticks: ticks.map(|(at, label)| (at - 2.0, label + "%")).collect() }
    }

    fn linear(scale: AxisScale, low: f64, high: f64, factor: f64, suffix: &str) -> Axis {
        let (low, high) = if high > low {
            (low, high)
        } else {
            let half = if low == 0.0 { 0.5 } else { low.abs() * 0.1 };
            (low - half, high + half)
        };
        let pad = (high - low) * 0.04;
        let range = low - pad..high + pad;
        let step = nice_step((range.end - range.start) * factor / (MAX_TICKS - 1) as f64);
        let decimals = (-step.log10().floor()).clamp(0.0, 12.0) as usize;
        let first = (range.start * factor / step).ceil() as i64;
        let last = (range.end * factor / step).floor() as i64;
        let ticks = (first..=last)
            .map(|k| k as f64 * step)
            .map(|shown| (shown / factor, format!("{}{suffix}", tick(shown, decimals))))
            .collect();
        Axis { scale, range, ticks }
    }

    fn log(low: f64, high: f64) -> Axis {
        let (low, high) = (low.log10(), high.log10());
        let pad = if high > low { (high - low) * 0.05 } else { 0.1 };
        let range = low - pad..high + pad;
        let decades = range.start.floor() as i32..=range.end.floor() as i32;
        let inside = |mantissas: &[f64]| -> Vec<f64> {
            decades
                .clone()
                .flat_map(|decade| mantissas.iter().map(move |m| m * 10f64.powi(decade)))
                .filter(|v| range.contains(&v.log10()))
                .collect()
        };
        // The densest set that still leaves air between its labels.
        let sets: [&[f64]; 5] = [
            &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
            &[1.0, 2.0, 3.0, 5.0, 7.0],
            &[1.0, 2.0, 5.0],
            &[1.0, 3.0],
            &[1.0],
        ];
        let mut values = sets.iter().map(|set| inside(set)).find(|values| values.len() <= MAX_TICKS);
        if let Some(few) = values.as_ref().filter(|few| few.len() < 3) {
            // Less than a third of a decade: linear labels are the readable ones.
            let linear = Axis::linear(AxisScale::Linear, 10f64.powf(low), 10f64.powf(high), 1.0, "");
            let ticks: Vec<_> = linear
                .ticks
                .into_iter()
                .filter(|(v, _)| *v > 0.0)
                .map(|(v, label)| (v.log10(), label))
                .filter(|(v, _)| range.contains(v))
                .collect();
            if ticks.len() > few.len() {
                return Axis { scale: AxisScale::Log, range, ticks };
            }
        }
        let values = values.take().unwrap_or_else(|| {
            let powers = inside(&[1.0]);
            let step = powers.len().div_ceil(MAX_TICKS);
            powers.into_iter().step_by(step).collect()
        });
        let label = |v: f64| {
            let decimals = if v < 10.0 { (1.0 - v.log10().floor()) as usize } else { 1 };
            let text = tick(v, decimals);
            if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
        };
        Axis { scale: AxisScale::Log, ticks: values.into_iter().map(|v| (v.log10(), label(v))).collect(), range }
    }
}

/// The smallest of 1, 2, 5 times a power of ten that is at least `raw`.
fn nice_step(raw: f64) -> f64 {
    let power = 10f64.powf(raw.log10().floor());
    let mantissa = raw / power;
    power * [1.0, 2.0, 5.0].into_iter().find(|m| mantissa <= m * (1.0 + 1e-9)).unwrap_or(10.0)
}

/// An axis label: `0.5`, `20`, `1k`, `2.5M`, `1e13`; `decimals` is what the step between labels needs.
fn tick(value: f64, decimals: usize) -> String {
    let magnitude = value.abs();
    for (unit, suffix) in [(1e9, "G"), (1e6, "M"), (1e3, "k")] {
        if magnitude >= unit && magnitude < 1e12 {
            let scaled = value / unit;
            let text = format!("{scaled:.3}");
            return format!("{}{suffix}", text.trim_end_matches('0').trim_end_matches('.'));
        }
    }
    if magnitude >= 1e12 || (magnitude > 0.0 && magnitude < 1e-4) {
        format!("{value:e}")
    } else {
        format!("{value:.decimals$}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_short() {
        assert_eq!(
            [(20.0, 0), (0.5, 1), (1e3, 0), (2.5e6, 0), (1e13, 0)].map(|(v, d)| tick(v, d)),
            ["20", "0.5", "1k", "2.5M", "1e13"]
        );
    }

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| label.as_str()).collect()
    }

    #[test]
    fn log_labels_read_naturally() {
        assert_eq!(
            labels(&Axis::over(AxisScale::Log, [12.0, 4000.0])),
            ["10", "20", "50", "100", "200", "500", "1k", "2k", "5k"]
        );
        assert_eq!(labels(&Axis::over(AxisScale::Log, [25.0, 60.0])), ["30", "40", "50", "60"]);
        assert_eq!(labels(&Axis::over(AxisScale::Log, [3.0, 3e6])), ["10", "100", "1k", "10k", "100k", "1M"]);
    }

    #[test]
    fn a_wide_log_axis_has_few_labels_and_a_narrow_one_some() {
        assert!((3..=MAX_TICKS).contains(&Axis::over(AxisScale::Log, [1e-3, 1e30]).ticks.len()));
        assert!(Axis::over(AxisScale::Log, [25.0, 26.0]).ticks.len() >= 3);
        assert!(!Axis::over(AxisScale::Log, [25.0, 25.0]).ticks.is_empty());
    }

    #[test]
    fn percent_labels() {
        let axis = Axis::over(AxisScale::Percent, [0.0, 0.9]);
        assert_eq!(labels(&axis), ["0%", "20%", "40%", "60%", "80%"]);
        assert!(axis.range.start < 0.0 && axis.range.end > 0.9);
    }

    #[test]
    fn fractions_on_a_log_scale_are_labelled_in_percent() {
        let axis = Axis::over(AxisScale::Linear.with_percent().with_log(), [0.001, 0.5]);
        assert_eq!(labels(&axis), ["0.1%", "0.2%", "0.5%", "1%", "2%", "5%", "10%", "20%", "50%"]);
        assert_eq!(axis.position(0.01), -2.0);
    }

    #[test]
    fn a_tight_axis_ends_with_its_values() {
        let axis = Axis::tight(AxisScale::Linear, 0.0, 0.3);
        assert_eq!((axis.range.start, axis.range.end), (0.0, 0.3));
        assert!(labels(&axis).starts_with(&["0.00"]) && labels(&axis).ends_with(&["0.30"]), "{:?}", axis.ticks);
        assert_eq!([0.0, 0.15, 0.3].map(|v| axis.share(v)), [0.0, 0.5, 1.0]);
        let middle =
            [Axis::tight(AxisScale::Linear, 2.0, 2.0).share(2.0), Axis::tight(AxisScale::Log, 1.0, 100.0).share(10.0)];
        assert!(middle.iter().all(|share| (share - 0.5).abs() < 1e-9), "{middle:?}");
    }

    #[test]
    fn one_value_still_has_an_axis() {
        assert!(Axis::over(AxisScale::Linear, [0.0]).ticks.len() > 2);
    }
}
