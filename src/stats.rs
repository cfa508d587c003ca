//! The uncertainty of scores: seeded bootstrap intervals, and differences of two models on the same examples.
//!
//! The *unit* that is resampled is the one that was drawn from a population: an example of a task, a window of a text.
//! Tokens of one window predict each other, so that resampling them would count one piece of evidence many times and
//! give an interval that is too narrow; a window's mean loss is one observation.

use crate::error::{Error, Remedy, Result};
use crate::random::below;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Percentile bootstrap (Efron 1979) of a mean: how many resamples, which level, which seed. The same numbers come out on
/// any number of threads.
///
/// ```
/// # fn main() -> lacuna::Result<()> {
/// use lacuna::stats::Bootstrap;
/// let right = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0];
/// let score = Bootstrap::default().score(&right)?;
/// let interval = score.interval.unwrap();
/// assert!(interval.low < score.value && score.value < interval.high);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bootstrap {
    /// Resamples of the units, each as many units as there are, drawn with replacement.
    pub resamples: usize,
    /// Probability that the interval stands for, in `(0, 1)`.
    pub level: f64,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Bootstrap {
    /// 10,000 resamples, 95%, seed 0.
    fn default() -> Self {
        Bootstrap { resamples: 10_000, level: 0.95, seed: 0 }
    }
}

/// A bootstrap interval and how it was made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Probability that it stands for: 0.95.
    pub level: f64,
    /// Resamples behind it.
    pub resamples: usize,
    /// Seed of the draws.
    pub seed: u64,
}

impl Interval {
    /// The interval of `f` of the value, for an increasing `f`: percentiles go along with it.
    pub fn map(self, f: impl Fn(f64) -> f64) -> Interval {
        Interval { low: f(self.low), high: f(self.high), ..self }
    }

    /// Returns whether `value` lies in the interval, ends included.
    pub fn contains(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// A mean over units with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The mean.
    pub value: f64,
    /// `None` for a single unit, which says nothing about its spread.
    pub interval: Option<Interval>,
}

impl Bootstrap {
    /// The mean of `units`, and its interval.
    ///
    /// Units that are all equal give an interval of no width: nothing in the sample tells how far it may be off.
    ///
    /// # Errors
    /// [`Error::Argument`] for no unit, a unit that is not finite, no resamples, or a level outside `(0, 1)`.
    pub fn score(&self, units: &[f64]) -> Result<Score> {
        if self.resamples == 0 {
            return Err(Error::argument("resamples", 0, "at least one is needed".remedy("10000 are usual")));
        }
        if !(self.level > 0.0 && self.level < 1.0) {
            return Err(Error::argument("level", self.level, "must be above 0 and below 1, such as 0.95"));
        }
        if units.is_empty() {
            return Err(Error::argument("units", "[]", "a score needs at least one example or window"));
        }
        if let Some(at) = units.iter().position(|unit| !unit.is_finite()) {
            let problem =
                format!("unit {at} of {} is no finite number; the model overflowed or is broken", units.len());
            return Err(Error::argument("units", units[at], problem));
        }
        let value = mean(units.iter().copied(), units.len());
        Ok(Score { value, interval: (units.len() > 1).then(|| self.interval(units)) })
    }

    /// Mean of `a - b`, the scores of two models on the same units in the same order, and its interval. Both models are
    /// resampled with the same draws, so that what makes a unit hard for both cancels; an interval without 0 is a
    /// difference at this level.
    ///
    /// # Errors
    /// [`Error::Argument`] when the numbers of units differ, and as [`Bootstrap::score`].
    pub fn paired_difference(&self, a: &[f64], b: &[f64]) -> Result<Score> {
        if a.len() != b.len() {
            let problem = format!("the other model has {}", b.len()).remedy("score both on the same examples");
            return Err(Error::argument("units", a.len(), problem));
        }
        // The difference of two means over the same draws is the mean of the differences.
        let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
        self.score(&differences)
    }

    fn interval(&self, units: &[f64]) -> Interval {
        let mut means: Vec<f64> = (0..self.resamples).into_par_iter().map(|i| self.resample(units, i)).collect();
        means.par_sort_unstable_by(f64::total_cmp);
        let tail = (1.0 - self.level) / 2.0;
        Interval {
            low: quantile(&means, tail),
            high: quantile(&means, 1.0 - tail),
            level: self.level,
            resamples: self.resamples,
            seed: self.seed,
        }
    }

    /// The mean of resample `i`, which has a stream of its own: threads may take resamples in any order.
    fn resample(&self, units: &[f64], i: usize) -> f64 {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(i as u64);
        mean((0..units.len()).map(|_| units[below(&mut rng, units.len())]), units.len())
    }
}

fn mean(units: impl Iterator<Item = f64>, n: usize) -> f64 {
    units.sum::<f64>() / n as f64
}

/// Quantile of ascending numbers, linear between neighbours, as NumPy's `quantile` does unless told otherwise.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(n: usize, seed: u64) -> Vec<f64> {
        // Sums of twelve uniforms: nearly normal, mean 0, variance 1.
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..n)
            .map(|_| (0..12).map(|_| below(&mut rng, 1 << 20) as f64 / f64::from(1 << 20)).sum::<f64>() - 6.0)
            .collect()
    }

    /// For zeros and ones a resample's sum is binomial, so its quantiles are known exactly.
    #[test]
    fn accuracy_has_the_quantiles_of_the_binomial() {
        for (n, right) in [(40usize, 30usize), (12, 5), (200, 190)] {
            let units: Vec<f64> = (0..n).map(|i| f64::from(u8::from(i < right))).collect();
            let p = right as f64 / n as f64;
            let mut probability = (1.0 - p).powi(n as i32);
            let (mut sum, mut low, mut high) = (0.0, None, None);
            for k in 0..=n {
                sum += probability;
                low = low.or((sum > 0.025).then_some(k));
                high = high.or((sum > 0.975).then_some(k));
                probability *= (n - k) as f64 / (k + 1) as f64 * p / (1.0 - p);
            }
            let score = Bootstrap { resamples: 40_000, ..Bootstrap::default() }.score(&units).unwrap();
            let interval = score.interval.unwrap();
            assert_eq!(score.value, p);
            assert_eq!(interval.low, low.unwrap() as f64 / n as f64, "{n} {right}");
            assert_eq!(interval.high, high.unwrap() as f64 / n as f64, "{n} {right}");
        }
    }

    /// Four million resamples of NumPy 2: `quantile(units[rng.integers(0, 12, (n, 12))].mean(1), [...])`. Their spread over
    /// seeds is 0.0003, that of 200,000 some 0.0015.
    #[test]
    fn intervals_equal_those_of_numpy() {
        let units = [3.31, 3.58, 2.94, 4.12, 3.77, 3.05, 3.49, 5.20, 3.66, 2.71, 3.93, 3.40];
        let many = Bootstrap { resamples: 200_000, ..Bootstrap::default() };
        let ninety = Bootstrap { level: 0.9, ..many };
        for (bootstrap, low, high) in [(many, 3.274_17, 3.974_17), (ninety, 3.319_17, 3.908_33)] {
            let interval = bootstrap.score(&units).unwrap().interval.unwrap();
            assert!((interval.low - low).abs() < 4e-3 && (interval.high - high).abs() < 4e-3, "{interval:?}");
        }
    }

    #[test]
    fn intervals_cover_the_mean_about_as_often_as_they_say() {
        let bootstrap = Bootstrap { resamples: 500, ..Bootstrap::default() };
        let covered =
            (0..600).filter(|&i| bootstrap.score(&units(40, i)).unwrap().interval.unwrap().contains(0.0)).count();
        // Of 600 at 95% some 570 do, give or take 5; the percentile method is a little short of it with 40 units.
        assert!((545..=585).contains(&covered), "{covered} of 600");
    }

    #[test]
    fn the_same_seed_gives_the_same_interval_on_any_number_of_threads() {
        let units = units(300, 7);
        let with = |threads: usize, seed: u64| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| Bootstrap { seed, ..Bootstrap::default() }.score(&units).unwrap().interval.unwrap())
        };
        assert_eq!(with(1, 0), with(3, 0));
        assert_ne!(with(1, 0).low, with(1, 1).low);
    }

    /// Two models that find the same windows hard differ by little each time; apart, their intervals overlap.
    #[test]
    fn a_paired_difference_is_narrower_than_two_intervals() {
        let dense = units(60, 1);
        let pruned: Vec<f64> = dense.iter().zip(units(60, 2)).map(|(unit, noise)| unit + 0.1 + 0.05 * noise).collect();
        let bootstrap = Bootstrap::default();
        let difference = bootstrap.paired_difference(&pruned, &dense).unwrap();
        assert!((difference.value - 0.1).abs() < 0.02 && difference.interval.unwrap().low > 0.0, "{difference:?}");
        let [a, b] = [&dense, &pruned].map(|units| bootstrap.score(units).unwrap().interval.unwrap());
        assert!(a.high > b.low, "{a:?} {b:?}");
        // The same draws for both: the difference of two scores of one seed, exactly.
        let same = bootstrap.paired_difference(&dense, &dense).unwrap();
        assert_eq!((same.value, same.interval.unwrap().low, same.interval.unwrap().high), (0.0, 0.0, 0.0));
    }

    #[test]
    fn what_has_no_interval_is_said_or_refused() {
        let bootstrap = Bootstrap::default();
        assert_eq!(bootstrap.score(&[0.5]).unwrap(), Score { value: 0.5, interval: None });
        let all_right = bootstrap.score(&[1.0; 9]).unwrap().interval.unwrap();
        assert_eq!((all_right.low, all_right.high), (1.0, 1.0));
        let problem = |bootstrap: Bootstrap, units: &[f64]| bootstrap.score(units).unwrap_err().to_string();
        assert!(problem(bootstrap, &[1.0, f64::NAN]).starts_with("units = NaN: unit 1 of 2"));
        assert!(problem(bootstrap, &[f64::INFINITY]).contains("no finite number"));
        assert!(problem(bootstrap, &[]).contains("at least one"));
        assert!(problem(Bootstrap { level: 1.0, ..bootstrap }, &[1.0]).starts_with("level = 1"));
        assert!(problem(Bootstrap { resamples: 0, ..bootstrap }, &[1.0]).starts_with("resamples = 0"));
        let error = bootstrap.paired_difference(&[1.0, 2.0], &[1.0]).unwrap_err().to_string();
        assert!(error.starts_with("units = 2: the other model has 1"), "{error}");
    }

    #[test]
    fn quantiles_are_linear_between_neighbours() {
        assert_eq!([0.0, 0.1, 0.5, 1.0].map(|q| quantile(&[1.0, 2.0, 4.0], q)), [1.0, 1.2, 2.0, 4.0]);
    }
}
