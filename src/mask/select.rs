//! Exact selection of the weights to drop: counts are exact, ties go by position.

use super::alpha::select_alpha;
use super::cut::{Cut, Scratch, cuts, key, pack_below};
use super::{Mask, Pattern, Per};
use crate::{Error, Result};
use rayon::prelude::*;

/// What an unstructured selection does with scores that equal its threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Ties {
    /// The counts are exact, and the first of the equals go.
    #[default]
    ByPosition,
    /// As in the reference implementation of magnitude pruning and of SparseGPT, `score <= sorted[int(n * sparsity)]` goes:
    /// one more than asked for, and all its equals.
    Reference,
}

/// What is selected by: which weights are compared, and which shape the zeros have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Criterion {
    /// Shape of the zeros.
    pub pattern: Pattern,
    /// What an unstructured selection compares.
    pub per: Per,
    /// What becomes of ties within a layer; a row's go by position.
    pub ties: Ties,
}

/// Drops the weights with the lowest scores; [`select_levels`] with one level and exact counts.
///
/// # Errors
/// Those of [`select_levels`].
pub fn select(
    name: &str,
    shape: (usize, usize),
    pattern: Pattern,
    per: Per,
    sparsity: f64,
    score_row: impl Fn(usize, &mut [f32]) + Sync,
) -> Result<Mask> {
    let criterion = Criterion { pattern, per, ties: Ties::ByPosition };
    let mut masks = select_levels(name, shape, criterion, &[sparsity], score_row)?;
    masks.pop().ok_or_else(|| Error::argument("sparsity", sparsity, "gives no mask"))
}

/// Drops the weights with the lowest scores, for each of `sparsities`: one pass over the scores serves all of them, and
/// the masks are nested.
///
/// `score_row` writes the scores `(in,)` of one output row; they must be finite and not negative. Unstructured: exactly
/// `floor(n * sparsity)` of each row or of the layer go, as in the reference implementation of Wanda, ties by position
/// (lower index first). N:M: the `n` largest of each `m` consecutive inputs stay, whatever `sparsities` says.
///
/// # Errors
/// [`Error::Argument`] for a sparsity outside `[0, 1]` or an input width that `m` does not divide; [`Error::Tensor`]
/// naming `name` for a score that is not a finite number, or negative.
pub fn select_levels(
    name: &str,
    (rows, cols): (usize, usize),
    criterion: Criterion,
    sparsities: &[f64],
    score_row: impl Fn(usize, &mut [f32]) + Sync,
) -> Result<Vec<Mask>> {
    if let Some(sparsity) = sparsities.iter().find(|sparsity| !(0.0..=1.0).contains(*sparsity)) {
        return Err(Error::argument("sparsity", sparsity, "must be from 0 to 1"));
    }
    let count = |n: usize, sparsity: &f64| (n as f64 * sparsity) as usize;
    let mut masks = vec![Mask::none(rows, cols); sparsities.len()];
    match (criterion.pattern, criterion.per) {
        (Pattern::Unstructured, Per::Row) => {
            let ks: Vec<usize> = sparsities.iter().map(|sparsity| count(cols, sparsity)).collect();
            in_parallel(&mut masks, |first, rows, mut chunk| {
                let (mut scores, mut scratch, words) = (vec![0f32; cols], Scratch::default(), cols.div_ceil(64));
                for i in 0..rows {
                    score_row(first + i, &mut scores);
                    let cuts =
                        cuts(&mut scores, &ks, &mut scratch).map_err(|at| bad(name, first + i, at, scores[at]))?;
                    for (cut, words_of) in cuts.iter().zip(&mut chunk) {
                        pack_row(&scores, *cut, &mut words_of[i * words..(i + 1) * words]);
                    }
                }
                Ok(())
            })?;
        }
        (Pattern::Unstructured, Per::Layer) => {
            let mut scores = vec![0f32; rows * cols];
            scores.par_chunks_mut(cols.max(1)).enumerate().for_each(|(row, scores)| score_row(row, scores));
            let n = scores.len();
            let more = usize::from(criterion.ties == Ties::Reference);
            let ks: Vec<usize> = sparsities.iter().map(|sparsity| (count(n, sparsity) + more).min(n)).collect();
            let mut scratch = Scratch::default();
            let cuts =
                cuts(&mut scores, &ks, &mut scratch).map_err(|at| bad(name, at / cols, at % cols, scores[at]))?;
            let cuts = cuts.iter().map(|cut| match criterion.ties {
                Ties::ByPosition => *cut,
                Ties::Reference => Cut { ties: cut.equals, ..*cut },
            });
            for (cut, mask) in cuts.zip(&mut masks) {
                // Ties go by position over the whole layer: the rows get their share of them first.
                let mut ties = vec![0; rows];
                if cut.bound().is_none() {
                    let equals = scores.iter().enumerate().filter(|(_, score)| key(**score) == cut.key);
                    equals.take(cut.ties).for_each(|(index, _)| ties[index / cols] += 1);
                }
                let words = mask.words.par_chunks_mut(cols.div_ceil(64).max(1));
                words.zip(scores.par_chunks(cols.max(1))).zip(ties).with_min_len(64).for_each(
                    |((words, scores), ties)| {
                        let cut = if cut.bound().is_none() { Cut { ties, equals: usize::MAX, ..cut } } else { cut };
                        pack_row(scores, cut, words);
                    },
                );
            }
        }
        (Pattern::Unstructured, Per::Alpha) => {
            for (mask, &sparsity) in masks.iter_mut().zip(sparsities) {
                *mask = select_alpha(name, (rows, cols), sparsity, &score_row)?.0;
            }
        }
        (Pattern::NofM { n, m }, _) => {
            if cols % m != 0 {
                let problem =
                    format!("`{name}` has {cols} inputs, which {m} does not divide; choose another pattern or skip it");
                return Err(Error::argument("pattern", criterion.pattern, problem));
            }
            let Some((mask, others)) = masks.split_first_mut() else { return Ok(masks) };
            in_parallel(std::slice::from_mut(mask), |first, rows, mut chunk| {
                let (mut scores, words) = (vec![0f32; cols], cols.div_ceil(64));
                for i in 0..rows {
                    score_row(first + i, &mut scores);
                    if let Some(at) = scores.iter().position(|score| !(score.is_finite() && *score >= 0.0)) {
                        return Err(bad(name, first + i, at, scores[at]));
                    }
                    let words = &mut chunk[0][i * words..(i + 1) * words];
                    for (group, scores) in scores.chunks(m).enumerate() {
                        drop_smallest(scores, m - n, |at| {
                            let col = group * m + at;
                            words[col / 64] |= 1 << (col % 64);
                        });
                    }
                }
                Ok(())
            })?;
            others.iter_mut().for_each(|other| other.clone_from(mask));
        }
    }
    Ok(masks)
}

fn bad(name: &str, row: usize, col: usize, score: f32) -> Error {
    let problem = format!(
        "the score at row {row}, column {col} is {score}: the weight or the activation there is not finite; \
         check the checkpoint, or calibrate in f32"
    );
    Error::tensor("scores", name, problem)
}

/// Calls `dropped` with the position of each of the `k` smallest scores, ties by position.
fn drop_smallest(scores: &[f32], k: usize, mut dropped: impl FnMut(usize)) {
    for (i, &score) in scores.iter().enumerate() {
        // The number of weights that would be dropped before this one.
        let sooner = |(j, &other): (usize, &f32)| other < score || (other == score && j < i);
        if scores.iter().enumerate().filter(|&other| sooner(other)).count() < k {
            dropped(i);
        }
    }
}

/// Sets the bits of the scores of one row before `cut`.
fn pack_row(scores: &[f32], cut: Cut, words: &mut [u64]) {
    pack_below(scores, cut.bound().unwrap_or(cut.key), words);
    if cut.bound().is_none() {
        let equals = scores.iter().enumerate().filter(|(_, score)| key(**score) == cut.key);
        equals.take(cut.ties).for_each(|(col, _)| words[col / 64] |= 1 << (col % 64));
    }
}

/// Rows that one task selects.
const ROWS: usize = 32;

/// Runs a fallible function in parallel over chunks of rows of several masks of one shape: with the first row, the number of
/// rows, and the words of the chunk in each mask.
fn in_parallel(masks: &mut [Mask], f: impl Fn(usize, usize, Vec<&mut [u64]>) -> Result<()> + Sync) -> Result<()> {
    let Some(&Mask { rows, cols, .. }) = masks.first() else { return Ok(()) };
    let words = cols.div_ceil(64).max(1) * ROWS;
    let mut chunks: Vec<Vec<&mut [u64]>> = Vec::new();
    chunks.resize_with(rows.div_ceil(ROWS), Vec::new);
    for mask in masks {
        chunks.iter_mut().zip(mask.words.chunks_mut(words)).for_each(|(chunk, words)| chunk.push(words));
    }
    chunks.into_par_iter().enumerate().try_for_each(|(i, chunk)| f(i * ROWS, ROWS.min(rows - i * ROWS), chunk))
}

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
        assert!(run(4, Pattern::Unstructured, 1.1).contains("sparsity = 1.1: must be from 0 to 1"));
        assert!(run(4, Pattern::Unstructured, f64::NAN).contains("sparsity = NaN"));
        assert!(run(6, Pattern::NofM { n: 2, m: 4 }, 0.5).contains("`w` has 6 inputs, which 4 does not divide"));
        assert!(run(4, Pattern::Unstructured, 0.5).contains("`w`: the score at row 0, column 0 is NaN"));
    }
}
