//! Histograms: the distribution of values.

use super::Plot;
use super::numbers::Number;

/// Bins between the smallest and the largest value.
const BINS: usize = 60;
/// Values that reach so many times further than their median stand on a log axis.
const FAR: f64 = 20.0;
/// A log axis begins at most this far below the largest value.
const SPAN: f64 = 1e-6;

impl Plot {
    /// The distribution of numbers, such as the weights of a linear (`tensor.flatten_all()?.to_vec1::<f32>()?`):
    /// `label` names them, with their unit. Plots the share of `values` in each of 60 bins of equal width, on a log
    /// axis where a few are far larger than the rest, as importance scores are. Values that are not finite, and zeros
    /// on a log axis, are counted in the legend.
    pub fn histogram(
        title: impl Into<String>,
        label: impl Into<String>,
        values: impl IntoIterator<Item = impl Number>,
    ) -> Plot {
        let label = label.into();
        let all: Vec<f64> = values.into_iter().map(Number::number).collect();
        let mut sorted: Vec<f64> = all.iter().copied().filter(|value| value.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (sorted.first().copied().unwrap_or(0.0), sorted.last().copied().unwrap_or(0.0));
        let median = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
        let log = low >= 0.0 && median > 0.0 && high > FAR * median;
        let shown = if log { &sorted[sorted.partition_point(|&value| value <= high * SPAN)..] } else { &sorted };
        let at = |value: f64| if log { value.log10() } else { value };
        let start = shown.first().map_or(0.0, |&value| at(value));
        let width = (at(high) - start) / BINS as f64;
        let mut counts = [0u64; BINS];
        for &value in shown {
            let bin = if width > 0.0 { ((at(value) - start) / width) as usize } else { 0 };
            counts[bin.min(BINS - 1)] += 1;
        }
        let points = counts.iter().enumerate().map(|(bin, &count)| {
            let middle = start + width * (bin as f64 + 0.5);
            (if log { 10f64.powf(middle) } else { middle }, count as f64 / all.len().max(1) as f64)
        });
        let points: Vec<_> = if width > 0.0 { points.collect() } else { points.take(1).collect() };
        let mut name = label.clone();
        if shown.len() < sorted.len() {
            let share = (sorted.len() - shown.len()) as f64 / all.len() as f64;
            name.push_str(&format!(" ({:.1}% more are next to 0)", share * 100.0));
        }
        if sorted.len() < all.len() {
            name.push_str(&format!(" ({} are not finite)", all.len() - sorted.len()));
        }
        let plot = Plot::curves(title).x(label).y("Share of the values (%)").percent_y().series(name, points);
        if log { plot.log_x() } else { plot }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_one_bin() {
        let plot = Plot::histogram("t", "x", (0..600).map(f64::from));
        let points = &plot.series[0].points;
        assert_eq!(points.len(), BINS);
        assert!(points.iter().all(|(_, share)| (share - 1.0 / 60.0).abs() < 1e-12), "{points:?}");
        assert!(!plot.x_scale.is_log());
    }

    #[test]
    fn heavy_tails_stand_on_a_log_axis_and_the_rest_is_counted() {
        let values = [0.0, f64::NAN].into_iter().chain((0..98).map(|i| 10f64.powi(i % 4)));
        let plot = Plot::histogram("t", "score", values);
        assert!(plot.x_scale.is_log());
        assert_eq!(plot.series[0].name, "score (1.0% more are next to 0) (1 are not finite)");
        let sum: f64 = plot.series[0].points.iter().map(|point| point.1).sum();
        assert!((sum - 0.98).abs() < 1e-9, "{sum}");
        assert!(plot.svg().is_ok() && Plot::histogram("t", "x", [2.0; 5]).svg().is_ok());
    }
}
