//! Wanda's variant: each row loses the same share of its score instead of the same number of weights.

use super::{Mask, bad_score};
use crate::error::{Error, Result};
use rayon::prelude::*;

/// The largest difference between target and sparsity, and the width at which the bracket around alpha is no longer
/// halved.
const TOLERANCE: f64 = 0.001;

/// The scores of one row in ascending order, and the sums of the first of them.
struct Row {
    sorted: Vec<f32>,
    sums: Vec<f32>,
}

impl Row {
    fn new(scores: &[f32]) -> Row {
        let mut sorted = scores.to_vec();
        sorted.sort_unstable_by(f32::total_cmp);
        let mut sum = 0f64;
        let sums = sorted.iter().map(|&score| {
            sum += f64::from(score);
            sum as f32
        });
        Row { sums: sums.collect(), sorted }
    }

    /// The largest score that is pruned: the last of the longest run whose sum is at most `alpha` of all.
    fn threshold(&self, alpha: f64) -> Option<f32> {
        let bound = self.sums.last()? * alpha as f32;
        let within = self.sums.partition_point(|&sum| sum <= bound);
        Some(self.sorted[within.checked_sub(1)?])
    }

    fn pruned(&self, alpha: f64) -> usize {
        self.threshold(alpha).map_or(0, |threshold| self.sorted.partition_point(|&score| score <= threshold))
    }
}

/// Drops, in each row, the weights with the lowest scores that together hold at most `alpha` of the row's score, and all that
/// equal the largest of them. Returns that `alpha`, found by bisection from 0.4 in `[0, 0.8]` as in the reference
/// implementation of Wanda (Sun et al. 2023): until the sparsity of the whole linear is within 0.001 of `sparsity`, or the
/// bracket is narrower than 0.001. So the sparsity is not exact, and where scores are so even that 0.8 of them does not
/// reach the target it falls short; [`Mask::sparsity`] tells. A row none of whose weights is small enough keeps all of them.
///
/// `score_row` writes the scores `(in,)` of one output row; they must be finite and not negative. Memory: twice the scores.
///
/// # Errors
/// [`Error::Argument`] for a sparsity outside `[0, 1)`; [`Error::Tensor`] naming `name` for a score that is negative or not a
/// finite number.
pub fn select_alpha(
    name: &str,
    (rows, cols): (usize, usize),
    sparsity: f64,
    score_row: impl Fn(usize, &mut [f32]) + Sync,
) -> Result<(Mask, f64)> {
    if !(0.0..1.0).contains(&sparsity) {
        return Err(Error::argument("sparsity", sparsity, "must be at least 0 and below 1"));
    }
    let scored = |row: usize, scores: &mut Vec<f32>| -> Result<Row> {
        score_row(row, scores);
        match scores.iter().position(|score| !(score.is_finite() && *score >= 0.0)) {
            None => Ok(Row::new(scores)),
            Some(col) => Err(bad_score(name, row, col, scores[col])),
        }
    };
    let sorted: Vec<Row> = (0..rows)
        .into_par_iter()
        .map_init(|| vec![0f32; cols], |scores, row| scored(row, scores))
        .collect::<Result<_>>()?;
    let reached = |alpha: f64| {
        let pruned: usize = sorted.par_iter().map(|row| row.pruned(alpha)).sum();
        pruned as f64 / (rows * cols).max(1) as f64
    };
    let (mut alpha, mut low, mut high) = (0.4, 0.0, 0.8);
    let mut current = reached(alpha);
    while (current - sparsity).abs() > TOLERANCE && high - low >= TOLERANCE {
        if current > sparsity {
            high = alpha;
        } else {
            low = alpha;
        }
        alpha = (low + high) / 2.0;
        current = reached(alpha);
    }
    let mut mask = Mask::none(rows, cols);
    let mut words: Vec<_> = mask.rows_mut().zip(&sorted).enumerate().collect();
    words.par_iter_mut().for_each_init(
        || vec![0f32; cols],
        |scores, (row, (words, sorted))| {
            let Some(threshold) = sorted.threshold(alpha) else { return };
            score_row(*row, scores);
            for (word, scores) in words.iter_mut().zip(scores.chunks(64)) {
                *word = scores.iter().enumerate().fold(0, |word, (bit, &s)| word | u64::from(s <= threshold) << bit);
            }
        },
    );
    Ok((mask, alpha))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores of uneven rows; the first has many small ones.
    fn score(row: usize, col: usize) -> f32 {
        let hash = ((row * 1009 + col) as u32).wrapping_mul(2_654_435_761).rotate_left(11).wrapping_mul(0x85eb_ca6b);
        ((hash >> 8) as f32 / (1 << 24) as f32).powi(1 + 3 * i32::from(row == 0))
    }

    /// The reference's definition for one alpha, with a full sort and sums in f64.
    fn reference(rows: usize, cols: usize, alpha: f64) -> Vec<bool> {
        let mut pruned = Vec::new();
        for row in 0..rows {
            let scores: Vec<f32> = (0..cols).map(|col| score(row, col)).collect();
            let mut sorted = scores.clone();
            sorted.sort_by(f32::total_cmp);
            let total: f64 = sorted.iter().map(|&s| f64::from(s)).sum();
            let mut sum = 0.0;
            let within = sorted.iter().take_while(|&&s| (sum += f64::from(s), sum <= alpha * total).1).count();
            pruned.extend(scores.iter().map(|&s| within > 0 && s <= sorted[within - 1]));
        }
        pruned
    }

    #[test]
    fn bisection_finds_the_share_that_gives_the_sparsity() {
        let (rows, cols) = (20, 301);
        for sparsity in [0.1, 0.5, 0.7, 0.85] {
            let fill = |row: usize, out: &mut [f32]| (0..cols).for_each(|col| out[col] = score(row, col));
            let (mask, alpha) = select_alpha("w", (rows, cols), sparsity, fill).unwrap();
            assert!((mask.sparsity() - sparsity).abs() <= TOLERANCE, "{sparsity}: {}", mask.sparsity());
            let ours: Vec<bool> = (0..rows * cols).map(|i| mask.is_pruned(i / cols, i % cols)).collect();
            assert_eq!(ours, reference(rows, cols, alpha), "{sparsity}: alpha {alpha}");
            // The row with many small scores loses more weights than the others.
            let lost = |row: usize| ours[row * cols..][..cols].iter().filter(|&&pruned| pruned).count();
            assert!((1..rows).all(|row| lost(0) > lost(row)), "{sparsity}");
        }
    }

    #[test]
    fn even_scores_fall_short_and_ties_go_together() {
        // Ten equal scores go together or not at all, so the bisection ends where one tenth of the sum is.
        let (mask, alpha) = select_alpha("w", (1, 10), 0.9, |_, out| out.fill(1.0)).unwrap();
        assert!((mask.pruned() == 0 || mask.pruned() == 10) && (alpha - 0.1).abs() < 0.001, "{mask:?} {alpha}");
        // One score holds more than any alpha allows: nothing is small enough, up to the end of the bracket.
        let (mask, alpha) = select_alpha("w", (2, 1), 0.5, |_, out| out.fill(1.0)).unwrap();
        assert_eq!(mask.pruned(), 0);
        assert!(alpha > 0.799, "{alpha}");
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        let run =
            |sparsity, value| select_alpha("w", (1, 4), sparsity, |_, out| out.fill(value)).unwrap_err().to_string();
        assert!(run(1.0, 1.0).contains("sparsity = 1"));
        assert!(run(0.5, f32::NAN).contains("`w`: the score at row 0, column 0 is NaN"));
        assert!(run(0.5, -1.0).contains("is -1"));
    }
}
