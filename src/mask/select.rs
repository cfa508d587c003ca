//! Exact selection of the weights to drop: counts are exact, ties go by position.

use super::{Mask, Pattern, Per};
use crate::{Error, Result};
use rayon::prelude::*;

/// Scores are compared as integers: the bits of a non-negative float order like its value.
fn order(score: f32) -> u32 {
    score.to_bits()
}

/// The `k`-th smallest of `keys` (1-based), and how many of its equals are among the `k` smallest. Reorders `keys`.
fn threshold(keys: &mut [u32], k: usize) -> (u32, usize) {
    let (less, &mut kth, _) = keys.select_nth_unstable(k - 1);
    let below = less.iter().filter(|&&key| key < kth).count();
    (kth, k - below)
}

/// Sets the bit of every score below `kth`, and of the first `ties` equal to it.
fn pack(scores: &[f32], kth: u32, ties: &mut usize, words: &mut [u64]) {
    for (word, scores) in words.iter_mut().zip(scores.chunks(64)) {
        for (bit, &score) in scores.iter().enumerate() {
            let key = order(score);
            let tied = key == kth && *ties > 0;
            *ties -= usize::from(tied);
            *word |= u64::from(key < kth || tied) << bit;
        }
    }
}

/// Drops the weights with the lowest scores.
///
/// `score_row` writes the scores `(in,)` of one output row; they must be finite and not negative. Unstructured: exactly
/// `floor(n * sparsity)` of each row or of the layer go, as in the reference implementation of Wanda, ties by position
/// (lower index first). N:M: the `n` largest of each `m` consecutive inputs stay, whatever `sparsity` says.
///
/// # Errors
/// [`Error::Argument`] for a sparsity outside `[0, 1)` or an input width that `m` does not divide; [`Error::Tensor`]
/// naming `name` for a score that is not a finite number.
pub fn select(
    name: &str,
    (rows, cols): (usize, usize),
    pattern: Pattern,
    per: Per,
    sparsity: f64,
    score_row: impl Fn(usize, &mut [f32]) + Sync,
) -> Result<Mask> {
    if !(0.0..1.0).contains(&sparsity) {
        return Err(Error::argument("sparsity", sparsity, "must be at least 0 and below 1"));
    }
    if let Pattern::NofM { m, .. } = pattern
        && cols % m != 0
    {
        let problem =
            format!("`{name}` has {cols} inputs, which {m} does not divide; choose another pattern or skip it");
        return Err(Error::argument("pattern", pattern, problem));
    }
    let scored = |row: usize, scores: &mut [f32]| -> Result<()> {
        score_row(row, scores);
        match scores.iter().position(|score| !score.is_finite()) {
            None => Ok(()),
            Some(col) => {
                let problem = format!(
                    "the score at row {row}, column {col} is {}: the weight or the activation there is not finite; \
                     check the checkpoint, or calibrate in f32",
                    scores[col]
                );
                Err(Error::tensor("scores", name, problem))
            }
        }
    };
    let mut mask = Mask::none(rows, cols);
    match (pattern, per) {
        (Pattern::Unstructured, Per::Row) => {
            let k = (cols as f64 * sparsity) as usize;
            mask.rows_mut().enumerate().in_parallel(cols, |row, words, scores, keys| {
                scored(row, scores)?;
                if k > 0 {
                    keys.iter_mut().zip(scores.iter()).for_each(|(key, &score)| *key = order(score));
                    let (kth, mut ties) = threshold(keys, k);
                    pack(scores, kth, &mut ties, words);
                }
                Ok(())
            })?;
        }
        (Pattern::Unstructured, Per::Layer) => {
            let k = ((rows * cols) as f64 * sparsity) as usize;
            let mut scores = vec![0f32; rows * cols];
            scores.par_chunks_mut(cols).enumerate().try_for_each(|(row, scores)| scored(row, scores))?;
            if k > 0 {
                let mut keys: Vec<u32> = scores.par_iter().map(|&score| order(score)).collect();
                let (kth, mut ties) = threshold(&mut keys, k);
                // Ties go by position over the whole layer, so the rows are packed in order.
                for (words, scores) in mask.rows_mut().zip(scores.chunks(cols)) {
                    pack(scores, kth, &mut ties, words);
                }
            }
        }
        (Pattern::NofM { n, m }, _) => {
            mask.rows_mut().enumerate().in_parallel(cols, |row, words, scores, _| {
                scored(row, scores)?;
                for (group, scores) in scores.chunks(m).enumerate() {
                    for (i, &score) in scores.iter().enumerate() {
                        // The number of weights that would be dropped before this one.
                        let before = scores
                            .iter()
                            .enumerate()
                            .filter(|&(j, &other)| order(other) < order(score) || (other == score && j < i))
                            .count();
                        let col = group * m + i;
                        words[col / 64] |= u64::from(before < m - n) << (col % 64);
                    }
                }
                Ok(())
            })?;
        }
    }
    Ok(mask)
}

/// Runs a fallible function over the rows of a mask in parallel, with scratch space for one row's scores and keys.
trait ParRows<'a>: Iterator<Item = (usize, &'a mut [u64])> + Sized {
    fn in_parallel(
        self,
        cols: usize,
        f: impl Fn(usize, &mut [u64], &mut [f32], &mut [u32]) -> Result<()> + Sync,
    ) -> Result<()> {
        let mut rows: Vec<_> = self.collect();
        rows.par_iter_mut().with_min_len(16).try_for_each_init(
            || (vec![0f32; cols], vec![0u32; cols]),
            |(scores, keys), (row, words)| f(*row, words, scores, keys),
        )
    }
}

impl<'a, I: Iterator<Item = (usize, &'a mut [u64])>> ParRows<'a> for I {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: a stable sort, then the first `k`.
    fn by_sorting(scores: &[f32], k: usize) -> Vec<bool> {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        let mut pruned = vec![false; scores.len()];
        order[..k].iter().for_each(|&i| pruned[i] = true);
        pruned
    }

    fn bits(mask: &Mask) -> Vec<bool> {
        let (rows, cols) = mask.shape();
        (0..rows * cols).map(|i| mask.is_pruned(i / cols, i % cols)).collect()
    }

    proptest! {
        #[test]
        fn selection_equals_a_stable_sort(
            rows in 1usize..6,
            groups in 1usize..40,
            sparsity in 0.0f64..0.999,
            levels in 1u32..50, // few levels make many ties
            seed in any::<u32>(),
        ) {
            let cols = groups * 4;
            let score = |i: usize| {
                let hash = (i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed).rotate_left(13).wrapping_mul(0x85eb_ca6b);
                (hash % levels) as f32 / 7.0
            };
            let scores: Vec<f32> = (0..rows * cols).map(score).collect();
            let fill = |row: usize, out: &mut [f32]| out.copy_from_slice(&scores[row * cols..(row + 1) * cols]);
            let run = |pattern, per| bits(&select("w", (rows, cols), pattern, per, sparsity, fill).unwrap());

            let k = (cols as f64 * sparsity) as usize;
            let expected: Vec<bool> = scores.chunks(cols).flat_map(|row| by_sorting(row, k)).collect();
            prop_assert_eq!(run(Pattern::Unstructured, Per::Row), expected);

            let k = (scores.len() as f64 * sparsity) as usize;
            prop_assert_eq!(run(Pattern::Unstructured, Per::Layer), by_sorting(&scores, k));

            let expected: Vec<bool> = scores.chunks(4).flat_map(|group| by_sorting(group, 3)).collect();
            prop_assert_eq!(run(Pattern::NofM { n: 1, m: 4 }, Per::Row), expected);
        }
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        let run = |cols, pattern, sparsity| {
            select("w", (1, cols), pattern, Per::Row, sparsity, |_, out| out.fill(f32::NAN)).unwrap_err().to_string()
        };
        assert!(run(4, Pattern::Unstructured, 1.0).contains("sparsity = 1: must be at least 0 and below 1"));
        assert!(run(4, Pattern::Unstructured, f64::NAN).contains("sparsity = NaN"));
        assert!(run(6, Pattern::NofM { n: 2, m: 4 }, 0.5).contains("`w` has 6 inputs, which 4 does not divide"));
        assert!(run(4, Pattern::Unstructured, 0.5).contains("`w`: the score at row 0, column 0 is NaN"));
    }
}
