//! Exact selection of the weights to prune: counts are exact, ties are broken by position.

use super::alpha::select_alpha;
use super::ranks::{self, MOST_LEVELS, MOST_SCORES, Scratch, rank};
use super::simd::Simd;
use super::{Mask, Pattern, Per, Ties, check_sparsities, count_of};
use crate::error::{Error, Remedy, Result};
use rayon::prelude::*;
use std::ops::Range;

/// The criterion of a selection: the weights that are compared, and the shape of the zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Criterion {
    /// Shape of the zeros.
    pub pattern: Pattern,
    /// The comparison group of an unstructured selection.
    pub per: Per,
    /// The rule for ties within a linear ([`Per::Layer`]); ties of a row are broken by position.
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
/// `floor(n * sparsity)` of each row or of the layer are pruned, as in the reference implementation of Wanda, ties by
/// position (lower index first). N:M: the `n` largest of each `m` consecutive inputs stay, whatever `sparsities` says.
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
    check_sparsities(sparsities)?;
    match (criterion.pattern, criterion.per) {
        (Pattern::Unstructured, Per::Row) => for_levels(cols, 0, sparsities, |ks| {
            pack((rows, cols), ks.len(), |rows| {
                let (mut scores, mut scratch) = (vec![0f32; cols], Scratch::default());
                let mut ranks = vec![0; rows.len() * cols];
                for (row, ranks) in rows.zip(ranks.chunks_mut(cols.max(1))) {
                    score_row(row, &mut scores);
                    rank(&scores, ks, Ties::ByPosition, &mut scratch, ranks)
                        .map_err(|at| bad_score(name, row, at, scores[at]))?;
                }
                Ok(ranks)
            })
        }),
        (Pattern::Unstructured, Per::Layer) => {
            let n = rows.checked_mul(cols).filter(|&n| n <= MOST_SCORES).ok_or_else(|| {
                let problem =
                    format!("`{name}` has more than {MOST_SCORES} weights, too many to compare").remedy("use per row");
                Error::argument("per", "layer", problem)
            })?;
            let mut scores = vec![0f32; n];
            scores.par_chunks_mut(cols.max(1)).enumerate().for_each(|(row, scores)| score_row(row, scores));
            let (ties, more) = (criterion.ties, usize::from(criterion.ties == Ties::Reference));
            for_levels(n, more, sparsities, |ks| {
                let mut ranks = vec![0; n];
                rank(&scores, ks, ties, &mut Scratch::default(), &mut ranks)
                    .map_err(|at| bad_score(name, at / cols, at % cols, scores[at]))?;
                pack((rows, cols), ks.len(), |rows| Ok(&ranks[rows.start * cols..rows.end * cols]))
            })
        }
        (Pattern::Unstructured, Per::Alpha) => {
            let select = |&sparsity| Ok(select_alpha(name, (rows, cols), sparsity, &score_row)?.0);
            sparsities.iter().map(select).collect()
        }
        (Pattern::NofM { n, m }, _) => {
            criterion.pattern.check_width(name, cols)?;
            let mut mask = Mask::none(rows, cols);
            in_parallel((rows, cols), [&mut mask.words[..]], |rows, mut chunk| {
                let mut scores = vec![0f32; cols];
                for (row, words) in rows.zip(chunk[0].chunks_mut(cols.div_ceil(64).max(1))) {
                    score_row(row, &mut scores);
                    ranks::check(&scores).map_err(|at| bad_score(name, row, at, scores[at]))?;
                    for (group, scores) in scores.chunks(m).enumerate() {
                        drop_smallest(scores, m - n, group * m, words);
                    }
                }
                Ok(())
            })?;
            Ok(vec![mask; sparsities.len()])
        }
    }
}

/// The error for a score that is not a finite number, or is negative.
pub(crate) fn bad_score(name: &str, row: usize, col: usize, score: f32) -> Error {
    let problem =
        format!("the score at row {row}, column {col} is {score}: the weight or the activation there is not finite")
            .remedy("check the checkpoint, or calibrate in f32");
    Error::tensor("scores", name, problem)
}

/// Sets the bits, from bit `first` on, of the `k` smallest of the scores of one group, ties by position.
pub(crate) fn drop_smallest(scores: &[f32], k: usize, first: usize, words: &mut [u64]) {
    // The number of scores that would be dropped before this one. Without branches, which nobody could predict.
    let sooner = |scores: &[f32], i: usize| {
        let before = scores[..i].iter().map(|other| usize::from(*other <= scores[i])).sum::<usize>();
        before + scores[i + 1..].iter().map(|other| usize::from(*other < scores[i])).sum::<usize>()
    };
    match <&[f32; 4]>::try_from(scores) {
        // The hardware's patterns are of four: known to the compiler, these loops are unrolled.
        Ok(scores) if first.is_multiple_of(4) => {
            let bits = (0..4).fold(0, |bits, i| bits | u64::from(sooner(scores, i) < k) << i);
            words[first / 64] |= bits << (first % 64);
        }
        _ => (first..).zip(0..scores.len()).for_each(|(bit, i)| {
            words[bit / 64] |= u64::from(sooner(scores, i) < k) << (bit % 64);
        }),
    }
}

/// Calls `select` with ascending counts, as many at a time as one pass serves: of `n` scores, `floor(n * sparsity)` and
/// `more` are dropped. Returns the masks in the order of `sparsities`.
fn for_levels(
    n: usize,
    more: usize,
    sparsities: &[f64],
    select: impl Fn(&[usize]) -> Result<Vec<Mask>>,
) -> Result<Vec<Mask>> {
    let mut levels: Vec<(usize, usize)> =
        sparsities.iter().map(|sparsity| (count_of(n, *sparsity) + more).min(n)).zip(0..).collect();
    levels.sort_unstable();
    let mut masks = Vec::with_capacity(levels.len());
    for levels in levels.chunks(MOST_LEVELS) {
        let ks: Vec<usize> = levels.iter().map(|(k, _)| *k).collect();
        masks.extend(levels.iter().map(|(_, i)| *i).zip(select(&ks)?));
    }
    masks.sort_unstable_by_key(|(i, _)| *i);
    Ok(masks.into_iter().map(|(_, mask)| mask).collect())
}

/// The mask of each level, from the ranks of the scores of chunks of rows. Memory for many masks would take as long to clear as to
/// fill, and is not cleared.
fn pack<R: AsRef<[u8]>>(
    (rows, cols): (usize, usize),
    levels: usize,
    ranks: impl Fn(Range<usize>) -> Result<R> + Sync,
) -> Result<Vec<Mask>> {
    let (simd, width) = (Simd::default(), cols.div_ceil(64));
    let mut masks: Vec<Vec<u64>> = (0..levels).map(|_| Vec::with_capacity(rows * width)).collect();
    let words = masks.iter_mut().map(|words| &mut words.spare_capacity_mut()[..rows * width]);
    in_parallel((rows, cols), words, |rows, masks| {
        let count = rows.len();
        let ranks = ranks(rows)?;
        assert_eq!(ranks.as_ref().len(), count * cols, "one rank for each weight");
        // Without padding, rows are as one.
        let cols = if cols.is_multiple_of(64) { count * cols } else { cols }.max(1);
        for (level, words) in (0..).zip(masks) {
            let rows = words.chunks_mut(cols.div_ceil(64)).zip(ranks.as_ref().chunks(cols));
            rows.for_each(|(words, ranks)| simd.pack(ranks, level, words));
        }
        Ok(())
    })?;
    let written = |mut words: Vec<u64>| {
        // SAFETY: there is room for them, and each has been written: `in_parallel` leaves no row out, and a row has the ranks of
        // all its words.
        unsafe { words.set_len(rows * width) };
        Mask { rows, cols, words }
    };
    Ok(masks.into_iter().map(written).collect())
}

/// Rows that one task selects.
const ROWS: usize = 32;

/// Runs a fallible function in parallel over chunks of rows of several masks of one shape, of which these are the words: with the
/// rows, and the words of the chunk in each mask.
fn in_parallel<'a, T: Send + 'a>(
    (rows, cols): (usize, usize),
    masks: impl IntoIterator<Item = &'a mut [T], IntoIter: ExactSizeIterator>,
    f: impl Fn(Range<usize>, Vec<&mut [T]>) -> Result<()> + Sync,
) -> Result<()> {
    let (masks, words) = (masks.into_iter(), cols.div_ceil(64).max(1) * ROWS);
    let mut chunks: Vec<Vec<&mut [T]>> = Vec::new();
    chunks.resize_with(rows.div_ceil(ROWS), || Vec::with_capacity(masks.len()));
    for mask in masks {
        chunks.iter_mut().zip(mask.chunks_mut(words)).for_each(|(chunk, words)| chunk.push(words));
    }
    let ranges = |(i, chunk)| f(i * ROWS..rows.min((i + 1) * ROWS), chunk);
    chunks.into_par_iter().enumerate().try_for_each(ranges)
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
    fn levels_come_back_as_they_were_given_however_many() {
        let (rows, cols) = (3, 500);
        let scores: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919) % 1009) as f32).collect();
        // More than one pass serves, and in no order.
        let sparsities: Vec<f64> = (0..300).map(|i| f64::from((i * 77) % 300) / 300.0).collect();
        let fill = |row: usize, out: &mut [f32]| out.copy_from_slice(&scores[row * cols..(row + 1) * cols]);
        for per in [Per::Row, Per::Layer] {
            let criterion = Criterion { pattern: Pattern::Unstructured, per, ties: Ties::ByPosition };
            let masks = select_levels("w", (rows, cols), criterion, &sparsities, fill).unwrap();
            assert_eq!(masks.len(), sparsities.len());
            for (mask, sparsity) in masks.iter().zip(&sparsities) {
                let width = if per == Per::Row { cols } else { rows * cols };
                let k = (width as f64 * sparsity) as usize;
                let expected: Vec<bool> = scores.chunks(width).flat_map(|scores| by_sorting(scores, k)).collect();
                assert_eq!(bits(mask), expected, "{per:?} {sparsity}");
            }
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
