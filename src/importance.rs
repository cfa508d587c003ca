//! The importance of weights: scores `(out, in)` from a weight, the statistics of its input, and its gradient.

use crate::calibrate::Statistics;
use crate::error::{Error, Remedy, Result};
use crate::gradients::Gradients;
use crate::model::Linear;
pub use crate::settings::Method;
use candle_core::{DType, Device};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

/// The data that a metric may use besides the weights.
#[derive(Clone, Copy, Default)]
pub struct Inputs<'a> {
    /// Column norms of the linear's input, `(in,)`: [`crate::calibrate::Statistics::column_norms`].
    pub norms: Option<&'a [f32]>,
    /// Gradient of the loss, `(out, in)`: [`crate::gradients::Gradients::get`].
    pub gradient: Option<&'a [f32]>,
    /// Seed of random scores, which differ by the weight's name.
    pub seed: u64,
}

crate::debug::one_line!(Inputs<'_>, |inputs| {
    let count = |values: Option<&[f32]>| values.map_or("no".into(), |values| values.len().to_string());
    format!("Inputs({} norms, {} gradients, seed {})", count(inputs.norms), count(inputs.gradient), inputs.seed)
});

/// Power of the norms in [`Method::Ria`], as the paper chose it.
const RIA_POWER: f32 = 0.5;

/// A metric together with what it needs for one linear.
#[derive(Clone)]
pub struct Scorer<'a> {
    method: Method,
    weights: &'a [f32],
    width: usize,
    kind: Formula<'a>,
}

crate::debug::one_line!(rich Scorer<'_>, |scorer| {
    let (rows, cols) = scorer.shape();
    format!("Scorer({}, {rows} × {cols} weights)", scorer.method)
});

#[derive(Clone, Debug)]
enum Formula<'a> {
    Magnitude,
    Wanda { norms: &'a [f32] },
    Ria { columns: Vec<f32>, activations: Vec<f32> },
    Gradient { gradient: &'a [f32] },
    Taylor { gradient: &'a [f32] },
    Random { seed: [u8; 32] },
}

impl<'a> Scorer<'a> {
    /// A scorer for the linear called `name` with `weights` of `shape (out, in)`, row-major.
    ///
    /// # Errors
    /// [`Error::Tensor`] when the method needs what `inputs` lacks or has in another size; [`Error::Argument`] for a method
    /// that gives no scores.
    pub fn new(
        method: Method,
        name: &str,
        weights: &'a [f32],
        shape: (usize, usize),
        inputs: Inputs<'a>,
    ) -> Result<Scorer<'a>> {
        let needed = |values: Option<&'a [f32]>, size: usize, what: &str| match values {
            Some(values) if values.len() == size => Ok(values),
            Some(values) => {
                Err(Error::tensor("statistics", name, format!("has {} values of {what}, not {size}", values.len())))
            }
            None => Err(Error::tensor("statistics", name, format!("has none, and {method} needs {what}"))),
        };
        let norms = || needed(inputs.norms, shape.1, "the norms of its input");
        let gradient = || needed(inputs.gradient, shape.0 * shape.1, "its gradient");
        if weights.len() != shape.0 * shape.1 {
            return Err(Error::tensor("weights", name, format!("has {} values, not {shape:?}", weights.len())));
        }
        let kind = match method {
            Method::Magnitude => Formula::Magnitude,
            Method::Wanda => Formula::Wanda { norms: norms()? },
            Method::Ria => Formula::Ria {
                columns: absolute_column_sums(weights, shape.1),
                activations: norms()?.iter().map(|norm| norm.powf(RIA_POWER)).collect(),
            },
            Method::Gradient => Formula::Gradient { gradient: gradient()? },
            Method::Taylor => Formula::Taylor { gradient: gradient()? },
            Method::Random => Formula::Random {
                seed: Sha256::new().chain_update(inputs.seed.to_le_bytes()).chain_update(name).finalize().into(),
            },
            Method::SparseGpt => {
                let problem = "changes the weights that stay, so it has no scores".remedy("prune with it instead");
                return Err(Error::argument("method", method, problem));
            }
        };
        Ok(Scorer { method, weights, width: shape.1, kind })
    }

    /// The metric.
    pub fn method(&self) -> Method {
        self.method
    }

    /// `(out, in)` of the weight.
    pub fn shape(&self) -> (usize, usize) {
        (self.weights.len() / self.width.max(1), self.width)
    }

    /// All scores, `(out, in)`, row-major.
    pub fn scores(&self) -> Vec<f32> {
        let mut scores = vec![0.0; self.weights.len()];
        scores.par_chunks_mut(self.width.max(1)).enumerate().for_each(|(row, scores)| self.row(row, scores));
        scores
    }

    /// Writes the scores `(in,)` of one output row: never negative, and not finite where a weight or what it is scored by
    /// is not.
    pub fn row(&self, row: usize, scores: &mut [f32]) {
        let at = row * self.width..(row + 1) * self.width;
        let weights = &self.weights[at.clone()];
        match &self.kind {
            Formula::Magnitude => scores.iter_mut().zip(weights).for_each(|(score, weight)| *score = weight.abs()),
            Formula::Wanda { norms } => {
                for ((score, weight), norm) in scores.iter_mut().zip(weights).zip(*norms) {
                    *score = weight.abs() * norm;
                }
            }
            Formula::Ria { columns, activations } => {
                let sum = weights.iter().map(|weight| weight.abs()).sum::<f32>();
                // A sum of zero has only zeros under it.
                let share = |weight: f32, sum: f32| if sum == 0.0 { 0.0 } else { weight / sum };
                for (((score, weight), column), activation) in
                    scores.iter_mut().zip(weights).zip(columns).zip(activations)
                {
                    let weight = weight.abs();
                    *score = (share(weight, *column) + share(weight, sum)) * activation;
                }
            }
            Formula::Gradient { gradient } => {
                scores.iter_mut().zip(&gradient[at]).for_each(|(score, gradient)| *score = gradient.abs());
                spot_damage(weights, scores);
            }
            Formula::Taylor { gradient } => {
                for ((score, weight), gradient) in scores.iter_mut().zip(weights).zip(&gradient[at]) {
                    *score = (weight * gradient).abs();
                }
            }
            Formula::Random { seed } => {
                // A stream a row: the same scores in whatever order the rows are taken.
                let mut rng = ChaCha8Rng::from_seed(*seed);
                rng.set_stream(row as u64);
                scores.iter_mut().for_each(|score| *score = rng.random());
                spot_damage(weights, scores);
            }
        }
    }
}

impl Linear {
    /// Scores `(out, in)` of its weights, row-major, by `method` with what is known of its inputs and of the loss. Random scores
    /// are those of seed 0.
    ///
    /// # Errors
    /// As [`Scorer::new`].
    pub fn scores(&self, method: Method, statistics: &Statistics, gradients: Option<&Gradients>) -> Result<Vec<f32>> {
        let weights: Vec<f32> = self.weight.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let norms = statistics.column_norms(&self.name);
        let gradient = gradients.map(|gradients| gradients.get(&self.name)).transpose()?.flatten();
        let inputs = Inputs { norms: norms.as_deref(), gradient: gradient.as_deref(), seed: 0 };
        Ok(Scorer::new(method, &self.name, &weights, self.shape()?, inputs)?.scores())
    }
}

/// The data that a metric uses besides the weights of one linear.
#[derive(Debug)]
pub(crate) struct Evidence {
    method: Method,
    norms: Option<Vec<f32>>,
    gradient: Option<Vec<f32>>,
    seed: u64,
}

impl Evidence {
    /// Takes the data that `method` uses for the linear called `name`.
    pub(crate) fn of(
        name: &str,
        method: Method,
        statistics: Option<&Statistics>,
        gradients: Option<&Gradients>,
        seed: u64,
    ) -> Result<Self> {
        let norms = statistics.filter(|_| method.needs_inputs()).and_then(|statistics| statistics.column_norms(name));
        let gradient = match gradients.filter(|_| method.needs_gradients()) {
            Some(gradients) => gradients.get(name)?,
            None => None,
        };
        Ok(Evidence { method, norms, gradient, seed })
    }

    /// Returns whether the linear's inputs were all zero during calibration, as for an expert that no token reached:
    /// all its scores are 0.
    pub(crate) fn is_silent(&self) -> bool {
        let zero = |values: &Option<Vec<f32>>| values.as_ref().is_some_and(|values| values.iter().all(|x| *x == 0.0));
        zero(&self.norms) || zero(&self.gradient)
    }

    /// For comparisons within the linear: the norms, if the metric is `|W|` times them or times 1, and nothing else.
    pub(crate) fn factors_within(&self) -> Option<Option<&[f32]>> {
        match self.method {
            Method::Magnitude => Some(None),
            Method::Wanda if self.is_silent() => Some(None),
            Method::Wanda => self.norms.as_deref().map(Some),
            _ => None,
        }
    }

    /// The metric itself.
    pub(crate) fn scorer<'a>(&'a self, name: &str, weights: &'a [f32], shape: (usize, usize)) -> Result<Scorer<'a>> {
        self.scorer_by(self.method, name, weights, shape)
    }

    /// For comparisons within the linear: the metric, or magnitude where it is silent and position would decide.
    pub(crate) fn scorer_within<'a>(
        &'a self,
        name: &str,
        weights: &'a [f32],
        shape: (usize, usize),
    ) -> Result<Scorer<'a>> {
        self.scorer_by(if self.is_silent() { Method::Magnitude } else { self.method }, name, weights, shape)
    }

    fn scorer_by<'a>(
        &'a self,
        method: Method,
        name: &str,
        weights: &'a [f32],
        shape: (usize, usize),
    ) -> Result<Scorer<'a>> {
        let inputs = Inputs { norms: self.norms.as_deref(), gradient: self.gradient.as_deref(), seed: self.seed };
        Scorer::new(method, name, weights, shape, inputs)
    }
}

/// A weight that is not a number must not pass because its score does not look at it.
fn spot_damage(weights: &[f32], scores: &mut [f32]) {
    if let Some(i) = weights.iter().position(|weight| !weight.is_finite()) {
        scores[i] = f32::NAN;
    }
}

/// `sum_i |W_ij|` of each column, `(in,)`, in f64 as the order of the rows would show in f32.
fn absolute_column_sums(weights: &[f32], width: usize) -> Vec<f32> {
    let mut sums = vec![0f64; width];
    for row in weights.chunks_exact(width.max(1)) {
        sums.iter_mut().zip(row).for_each(|(sum, weight)| *sum += f64::from(weight.abs()));
    }
    sums.into_iter().map(|sum| sum as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEIGHTS: [f32; 6] = [-3.0, 1.0, 4.0, 1.0, 0.0, 4.0];

    fn scores(method: Method, name: &str, row: usize, seed: u64) -> Vec<f32> {
        let gradient = [0.5, -1.0, 0.0, 2.0, 1.0, -1.0];
        let inputs = Inputs { norms: Some(&[1.0, 4.0, 0.25]), gradient: Some(&gradient), seed };
        let mut scores = vec![0.0; 3];
        Scorer::new(method, name, &WEIGHTS, (2, 3), inputs).unwrap().row(row, &mut scores);
        scores
    }

    #[test]
    fn definitions() {
        assert_eq!(scores(Method::Magnitude, "w", 0, 0), [3.0, 1.0, 4.0]);
        assert_eq!(scores(Method::Wanda, "w", 0, 0), [3.0, 4.0, 1.0]);
        assert_eq!(scores(Method::Gradient, "w", 1, 0), [2.0, 1.0, 1.0]);
        assert_eq!(scores(Method::Taylor, "w", 0, 0), [1.5, 1.0, 0.0]);
        assert_eq!(scores(Method::Ria, "w", 0, 0), [3.0 / 4.0 + 3.0 / 8.0, 2.0 + 2.0 / 8.0, 0.25 + 0.25]);
        assert_eq!(scores(Method::Ria, "w", 1, 0)[1], 0.0);
    }

    #[test]
    fn what_is_missing_is_said() {
        let new = |method, inputs| Scorer::new(method, "w", &WEIGHTS, (2, 3), inputs).unwrap_err().to_string();
        for method in [Method::Wanda, Method::Ria, Method::Gradient, Method::Taylor] {
            let error = new(method, Inputs::default());
            assert!(error.contains("`w`") && error.contains(&format!("{method} needs")), "{error}");
        }
        let error = new(Method::Wanda, Inputs { norms: Some(&[1.0]), ..Inputs::default() });
        assert!(error.contains("1 values of the norms of its input, not 3"), "{error}");
        assert!(new(Method::SparseGpt, Inputs::default()).contains("prune with it"));
    }

    #[test]
    fn damaged_weights_show_in_every_metric() {
        let weights = [1.0, f32::NAN, 1.0];
        let inputs = Inputs { norms: Some(&[1.0; 3]), gradient: Some(&[1.0; 3]), seed: 0 };
        for method in [Method::Magnitude, Method::Wanda, Method::Ria, Method::Gradient, Method::Taylor, Method::Random]
        {
            let mut scores = [0.0; 3];
            Scorer::new(method, "w", &weights, (1, 3), inputs).unwrap().row(0, &mut scores);
            assert!(scores.iter().any(|score| !score.is_finite()), "{method}: {scores:?}");
        }
    }

    #[test]
    fn random_scores_depend_on_seed_name_and_row_only() {
        let base = scores(Method::Random, "w", 0, 0);
        assert_eq!(base, scores(Method::Random, "w", 0, 0));
        for other in
            [scores(Method::Random, "v", 0, 0), scores(Method::Random, "w", 1, 0), scores(Method::Random, "w", 0, 1)]
        {
            assert_ne!(base, other);
        }
    }
}
