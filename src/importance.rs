//! How much a weight matters: scores `(out, in)` from a weight and the statistics of its input.

use crate::{Error, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// An importance metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// `|W|` (Han et al. 2015).
    Magnitude,
    /// `|W_ij| * ||X_j||_2` (Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models").
    Wanda,
    /// Uniform, seeded: the baseline that any metric must beat.
    Random,
}

impl Method {
    /// Whether the method needs calibration text.
    pub fn needs_calibration(self) -> bool {
        matches!(self, Method::Wanda)
    }
}

crate::error::named!(Method, "method", Magnitude => "magnitude", Wanda => "wanda", Random => "random");

/// A metric together with what it needs for one linear.
#[derive(Clone, Debug)]
pub struct Scorer<'a> {
    kind: Kind<'a>,
}

#[derive(Clone, Debug)]
enum Kind<'a> {
    Magnitude,
    Wanda { norms: &'a [f32] },
    Random { seed: [u8; 32] },
}

impl<'a> Scorer<'a> {
    /// A scorer for the linear called `name`. `norms (in,)` are the column norms of its input
    /// ([`crate::calibrate::Statistics::column_norms`]); `seed` is that of random scores, which differ by name.
    ///
    /// # Errors
    /// [`Error::Tensor`] when the method needs statistics and there are none.
    pub fn new(method: Method, name: &str, norms: Option<&'a [f32]>, seed: u64) -> Result<Scorer<'a>> {
        let kind = match (method, norms) {
            (Method::Magnitude, _) => Kind::Magnitude,
            (Method::Wanda, Some(norms)) => Kind::Wanda { norms },
            (Method::Wanda, None) => {
                return Err(Error::tensor("statistics", name, "has none, and Wanda needs the norms of its input"));
            }
            (Method::Random, _) => Kind::Random {
                seed: Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name).finalize().into(),
            },
        };
        Ok(Scorer { kind })
    }

    /// Writes the scores `(in,)` of one output row.
    pub fn row(&self, row: usize, weights: &[f32], scores: &mut [f32]) {
        match &self.kind {
            Kind::Magnitude => scores.iter_mut().zip(weights).for_each(|(score, weight)| *score = weight.abs()),
            Kind::Wanda { norms } => {
                for ((score, weight), norm) in scores.iter_mut().zip(weights).zip(*norms) {
                    *score = weight.abs() * norm;
                }
            }
            Kind::Random { seed } => {
                // A stream a row: the same scores in whatever order the rows are taken.
                let mut rng = ChaCha8Rng::from_seed(*seed);
                rng.set_stream(row as u64);
                scores.iter_mut().for_each(|score| *score = rng.random());
                // A weight that is not a number must not pass because its score was made up.
                if let Some(i) = weights.iter().position(|weight| !weight.is_finite()) {
                    scores[i] = f32::NAN;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(method: Method, name: &str, row: usize, seed: u64) -> Vec<f32> {
        let mut scores = vec![0.0; 3];
        Scorer::new(method, name, Some(&[1.0, 2.0, 0.5]), seed).unwrap().row(row, &[-3.0, 1.0, 4.0], &mut scores);
        scores
    }

    #[test]
    fn definitions() {
        assert_eq!(scores(Method::Magnitude, "w", 0, 0), [3.0, 1.0, 4.0]);
        assert_eq!(scores(Method::Wanda, "w", 0, 0), [3.0, 2.0, 2.0]);
        assert!(Scorer::new(Method::Wanda, "w", None, 0).unwrap_err().to_string().contains("`w`"));
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
