//! Exact ranks: finds the smallest scores for any number of levels in one pass over the scores.
//!
//! Scores are spread over bins, of one width up to a third of their mean, of twice that up to the mean, and so on up
//! to five times the mean; the last bin takes all scores beyond. Each step keeps their order, so a level's threshold
//! lies in the bin in which its count is reached, and only the few scores of that bin have to be sorted. The rank of
//! all others follows from their bin.

use super::Ties;
use super::simd::{Cut, Simd, Starts};
use rayon::prelude::*;
use std::ops::Range;

/// Levels that one pass serves: a rank has 7 bits.
pub(super) const MOST_LEVELS: usize = 127;
/// Scores that one pass serves: positions and counts have 32 bits.
pub(super) const MOST_SCORES: usize = u32::MAX as usize;

/// The entry of [`Scratch::table`] for a bin whose scores have to be sorted, in the place of a rank.
const SORTED: u8 = 0x80;
/// Scores beyond this many are spread over threads.
const CHUNK: usize = 1 << 16;
/// Scores whose bins are looked up together.
const GROUP: usize = 64;
/// Bins whose rank is written together; the table goes on so far beyond the last.
const FILL: usize = 64;
/// Scores that are compared each with each.
const FEW: usize = 64;
const FEWEST_BINS: usize = 64;
const MOST_BINS: usize = 4096;

/// Memory to be used again for the next row.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Per bin, its scores.
    counts: Vec<u32>,
    starts: Starts,
    /// Per level, the place at which its count is reached.
    cuts: Vec<Cut>,
    /// Per bin, the rank of its scores, or [`SORTED`].
    table: Vec<u8>,
    /// Per level, the number of scores to drop among those that have to be sorted.
    ends: Vec<u32>,
    /// Positions of the scores that have to be sorted; `entries` are their sorting keys.
    found: Vec<u32>,
    entries: Vec<u64>,
    pub(super) simd: Simd,
}

/// The map from scores to bins: `2 + factor * score` is a floating-point number from 2 up to 32, whose bits are spread
/// more evenly than the scores, most of which are small. The leading bits are the number of the bin.
#[derive(Clone, Copy, Debug)]
struct Binning {
    factor: f32,
    /// Shift to the right that leaves the number of the bin of the [`Binning::BITS`] that may differ.
    shift: u32,
}

impl Binning {
    const FIRST: f32 = 2.0;
    const LAST: f32 = 32.0f32.next_down();
    /// Two of the exponent, and the mantissa.
    const BITS: u32 = 2 + 23;

    /// For so many bins, a power of two.
    fn new(mean: f64, bins: usize) -> Binning {
        // Five times the mean is where the last bin ends. Scores that are all 0, or nearly, go to the first.
        let factor = Some((6.0 / mean) as f32).filter(|factor| factor.is_finite()).unwrap_or(0.0);
        Binning { factor, shift: Binning::BITS - bins.ilog2() }
    }
}

/// Writes for each score the index of the first level that drops it, or the number of levels: level `i` drops the
/// `ks[i]` smallest scores, ties by position, or with [`Ties::Reference`] all that equal the largest of them. `ks`
/// ascend; there are at most [`MOST_LEVELS`] of them, and [`MOST_SCORES`] scores.
///
/// # Errors
/// The position of a score that is not finite, or negative.
pub(super) fn rank(
    scores: &[f32],
    ks: &[usize],
    ties: Ties,
    scratch: &mut Scratch,
    ranks: &mut [u8],
) -> Result<(), usize> {
    let bins = (scores.len() / 2).next_power_of_two().clamp(FEWEST_BINS, MOST_BINS);
    let mean = check(scores)? / scores.len() as f64;
    let scale = Binning::new(mean, bins);
    let Scratch { counts, starts, cuts, table, ends, found, entries, simd } = scratch;
    count(scores, scale, bins, counts);
    simd.cuts(counts, ks, starts, cuts);
    locate(cuts, counts, table, ends);
    found.clear();
    let table = &table[..bins];
    if scores.len() <= CHUNK {
        look_up(scores, scale, table, ranks);
        simd.marked(ranks, 0, found);
    } else {
        let chunks = scores.par_chunks(CHUNK).zip(ranks.par_chunks_mut(CHUNK)).enumerate();
        let marked = chunks.map(|(i, (scores, ranks))| {
            let mut found = Vec::new();
            look_up(scores, scale, table, ranks);
            simd.marked(ranks, (i * CHUNK) as u32, &mut found);
            found
        });
        marked.collect::<Vec<_>>().iter().for_each(|marked| found.extend_from_slice(marked));
    }
    entries.clear();
    entries.extend(found.iter().map(|&at| entry(scores[at as usize], at)));
    if ties == Ties::ByPosition && found.len() <= FEW {
        simd.compare(entries, ends, ranks);
    } else {
        sort(entries, ends, ties, ranks);
    }
    Ok(())
}

/// The sum of the scores.
///
/// # Errors
/// The position of a score that is not finite, or negative.
pub(super) fn check(scores: &[f32]) -> Result<f64, usize> {
    let (max, sum) = if scores.len() <= CHUNK {
        measure(scores)
    } else {
        let measured: Vec<(u32, f64)> = scores.par_chunks(CHUNK).map(measure).collect();
        measured.into_iter().fold((0, 0.0), |(max, sum), chunk| (chunk.0.max(max), chunk.1 + sum))
    };
    // Not below infinity are the bits of what is not finite or is negative, and those of `-0`, which is allowed.
    if max >= f32::INFINITY.to_bits()
        && let Some(at) = scores.iter().position(|score| !(score.is_finite() && *score >= 0.0))
    {
        return Err(at);
    }
    Ok(sum.min(f64::from(f32::MAX)))
}

/// The greatest bits of a score, and the sum.
fn measure(scores: &[f32]) -> (u32, f64) {
    const LANES: usize = 16;
    let (mut max, mut sum) = ([0; LANES], [0f32; LANES]);
    let (groups, rest) = scores.as_chunks::<LANES>();
    for group in groups {
        for i in 0..LANES {
            max[i] = group[i].to_bits().max(max[i]);
            sum[i] += group[i];
        }
    }
    let max = rest.iter().map(|score| score.to_bits()).chain(max).fold(0, u32::max);
    (max, sum.iter().chain(rest).map(|&score| f64::from(score)).sum())
}

/// The bins of a group of scores. Each step keeps their order.
#[inline(always)]
fn spread(scores: &[f32; GROUP], Binning { factor, shift }: Binning, bins: &mut [u32; GROUP]) {
    for (bin, score) in bins.iter_mut().zip(scores) {
        let at = Binning::FIRST + score * factor;
        let at = if at < Binning::LAST { at } else { Binning::LAST };
        *bin = (at.to_bits() - Binning::FIRST.to_bits()) >> shift;
    }
}

/// As many scores as there are, and zeros.
fn padded(scores: &[f32]) -> [f32; GROUP] {
    let mut group = [0.0; GROUP];
    group[..scores.len()].copy_from_slice(scores);
    group
}

fn count(scores: &[f32], scale: Binning, bins: usize, counts: &mut Vec<u32>) {
    let count = |scores: &[f32], counts: &mut [u32]| {
        let (groups, rest) = scores.as_chunks();
        let mut bins = [0; GROUP];
        for group in groups {
            spread(group, scale, &mut bins);
            bins.iter().for_each(|&bin| counts[bin as usize] += 1);
        }
        spread(&padded(rest), scale, &mut bins);
        bins[..rest.len()].iter().for_each(|&bin| counts[bin as usize] += 1);
    };
    counts.clear();
    counts.resize(bins, 0);
    if scores.len() <= CHUNK {
        return count(scores, counts);
    }
    let counted = |scores: &[f32]| {
        let mut counts = vec![0; bins];
        count(scores, &mut counts);
        counts
    };
    for chunk in scores.par_chunks(CHUNK).map(counted).collect::<Vec<_>>() {
        counts.iter_mut().zip(chunk).for_each(|(sum, count)| *sum += count);
    }
}

/// Fills `table` and `ends`.
fn locate(cuts: &[Cut], counts: &[u32], table: &mut Vec<u8>, ends: &mut Vec<u32>) {
    ends.resize(cuts.len(), 0);
    table.resize(counts.len() + FILL, 0);
    // Bins that have their rank; scores that have to be sorted, and those of them before the last such bin.
    let (mut filled, mut sorted, mut first) = (0, 0, 0);
    for (level, (end, &Cut { bin, below })) in ends.iter_mut().zip(cuts).enumerate() {
        let (bin, rank) = (bin as usize, level as u8);
        if filled != bin + 1 || table[bin] < SORTED {
            fill(table, filled..bin, rank);
            // Without a branch: nobody could predict whether a level ends with a bin.
            let within = below > 0;
            table[bin] = (rank + 1) | (u8::from(within) * SORTED);
            filled = bin + 1;
            first = sorted;
            sorted += counts[bin] * u32::from(within);
        }
        *end = first + below;
    }
    fill(table, filled..counts.len(), cuts.len() as u8);
}

/// Fills a range, and up to [`FILL`] more: pieces of one length, of which there is always one, take fewer branches.
fn fill(table: &mut [u8], range: Range<usize>, rank: u8) {
    let mut at = range.start;
    loop {
        table[at..at + FILL].fill(rank);
        at += FILL;
        if at >= range.end {
            break;
        }
    }
}

/// Ranks the scores by their bins.
fn look_up(scores: &[f32], scale: Binning, table: &[u8], ranks: &mut [u8]) {
    let (groups, rest) = scores.as_chunks();
    let (ranks, rest_of_ranks) = ranks.as_chunks_mut::<GROUP>();
    let mut bins = [0; GROUP];
    for (group, ranks) in groups.iter().zip(ranks) {
        spread(group, scale, &mut bins);
        ranks.iter_mut().zip(&bins).for_each(|(rank, &bin)| *rank = table[bin as usize]);
    }
    spread(&padded(rest), scale, &mut bins);
    rest_of_ranks.iter_mut().zip(&bins).for_each(|(rank, &bin)| *rank = table[bin as usize]);
}

/// The sorting key of a score: its bits order like its value, and its position decides between equals.
fn entry(score: f32, at: u32) -> u64 {
    u64::from(score.abs().to_bits()) << 32 | u64::from(at)
}

/// Ranks the scores of entries by sorting: of many, or with any [`Ties`].
fn sort(entries: &mut [u64], ends: &[u32], ties: Ties, ranks: &mut [u8]) {
    let (at, score) = (|entry: u64| entry as u32 as usize, |entry: u64| entry >> 32);
    entries.sort_unstable();
    let mut from = 0;
    for (rank, &end) in (0..).zip(ends) {
        let mut to = (end as usize).max(from);
        if ties == Ties::Reference && to > from {
            to += entries[to..].iter().take_while(|&&entry| score(entry) == score(entries[to - 1])).count();
        }
        entries[from..to].iter().for_each(|&entry| ranks[at(entry)] = rank);
        from = to;
    }
    entries[from..].iter().for_each(|&entry| ranks[at(entry)] = ends.len() as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: a stable sort, of which the first `k` are dropped.
    fn expected(scores: &[f32], ks: &[usize], ties: Ties) -> Vec<u8> {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        let mut ranks = vec![ks.len() as u8; scores.len()];
        for (level, &k) in ks.iter().enumerate().rev() {
            let equal = |&at: &&usize| ties == Ties::Reference && k > 0 && scores[*at] == scores[order[k - 1]];
            let more = order[k..].iter().take_while(equal).count();
            order[..k + more].iter().for_each(|&at| ranks[at] = level as u8);
        }
        ranks
    }

    fn run(scores: &[f32], ks: &[usize], ties: Ties) {
        let expected = expected(scores, ks, ties);
        for simd in Simd::all() {
            let mut scratch = Scratch { simd, ..Scratch::default() };
            let mut ranks = vec![77; scores.len() + 3];
            // Used before, for something longer.
            rank(&vec![1.0; ranks.len()], &[1, 2], Ties::ByPosition, &mut scratch, &mut ranks).unwrap();
            ranks.truncate(scores.len());
            assert_eq!(rank(scores, ks, ties, &mut scratch, &mut ranks), Ok(()));
            assert_eq!(ranks, expected, "{ks:?} {simd:?}");
        }
    }

    proptest! {
        #[test]
        fn ranks_are_those_of_a_stable_sort(
            n in 1usize..3000,
            levels in prop_oneof![Just(2u32), Just(50), Just(1 << 20)], // few levels make many ties
            power in prop_oneof![Just(1i32), Just(9)], // heavy tails leave most scores in one bin
            seed in any::<u32>(),
            shares in proptest::collection::vec(0.0f64..=1.0, 1..12),
            ties in prop_oneof![Just(Ties::ByPosition), Just(Ties::Reference)],
        ) {
            let score = |i: usize| {
                let hash = (i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed).rotate_left(13).wrapping_mul(0x85eb_ca6b);
                ((hash % levels) as f32 / 1e5).powi(power)
            };
            let mut ks: Vec<usize> = shares.iter().map(|share| (n as f64 * share) as usize).collect();
            ks.sort_unstable();
            run(&(0..n).map(score).collect::<Vec<_>>(), &ks, ties);
        }
    }

    #[test]
    fn many_scores_go_the_same_way_in_chunks() {
        let scores: Vec<f32> = (0..CHUNK * 2 + 77).map(|i| ((i * 7919) % 65_537) as f32).collect();
        run(&scores, &[0, 1, 1000, CHUNK, scores.len() - 1, scores.len()], Ties::ByPosition);
        let ks: Vec<usize> = (0..MOST_LEVELS).map(|i| i * 1000).collect();
        run(&scores, &ks, Ties::ByPosition);
        run(&scores, &ks, Ties::Reference);
    }

    #[test]
    fn extremes() {
        let run = |scores: &[f32], ks: &[usize]| {
            run(scores, ks, Ties::ByPosition);
            run(scores, ks, Ties::Reference);
        };
        run(&[0.0; 100], &[0, 50, 100]);
        run(&[f32::MIN_POSITIVE / 8.0, 0.0, f32::MIN_POSITIVE / 4.0], &[1, 2]);
        run(&[f32::MAX, 0.0, 1.0, f32::MAX], &[1, 2, 3, 4]);
        run(&[f32::MAX; 99], &[50]);
        run(&[1.0], &[0, 1]);
        let ranked = |scores: &[f32], ks: &[usize]| {
            let mut ranks = vec![77; scores.len()];
            rank(scores, ks, Ties::ByPosition, &mut Scratch::default(), &mut ranks).map(|()| ranks)
        };
        assert_eq!(ranked(&[0.0, -0.0, 1.0], &[1, 2]), Ok(vec![0, 1, 2]));
        assert_eq!(ranked(&[], &[0]), Ok(vec![]));
        for bad in [f32::NAN, f32::INFINITY, -1.0, f32::NEG_INFINITY, -f32::NAN] {
            let at = |scores: &[f32]| ranked(scores, &[1]).unwrap_err();
            assert_eq!(at(&[1.0, bad, 2.0]), 1, "{bad}");
            let mut many = vec![1.0; CHUNK * 2];
            many[CHUNK + 5] = bad;
            assert_eq!(at(&many), CHUNK + 5, "{bad}");
        }
    }
}
