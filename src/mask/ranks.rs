//! Which scores are among the smallest, exactly, for any number of levels from one pass over the scores.
//!
//! Scores are spread over bins of equal width up to three times their mean; the last bin takes what is beyond. Multiplying
//! and truncating keep the order, so a level's threshold lies in the bin in which its count is reached, and only the few
//! scores of that bin have to be sorted. All others are told by their bin.

use super::Ties;
use rayon::prelude::*;
use std::ops::Range;

/// Levels that one pass serves: a rank, and the slot of a bin that has to be sorted, have 7 bits.
pub(super) const MOST_LEVELS: usize = 127;
/// Scores that one pass serves: positions and counts have 32 bits.
pub(super) const MOST_SCORES: usize = u32::MAX as usize;

/// Marks the slot of a bin that has to be sorted, in the place of its scores' rank.
const SORTED: u8 = 0x80;
/// Scores beyond this many are spread over threads.
const CHUNK: usize = 1 << 16;
/// Scores whose bins are looked up together.
const GROUP: usize = 64;
/// Bins whose counts are added up together.
const BLOCK: usize = 16;
const FEWEST_BINS: usize = 64;
const MOST_BINS: usize = 4096;

/// Memory to be used again for the next row.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Per bin, its scores.
    counts: Vec<u32>,
    /// Per block of bins, the scores up to its end.
    ends: Vec<u32>,
    /// Per bin, the rank of its scores, or [`SORTED`] and its slot.
    table: Vec<u8>,
    slots: Vec<Slot>,
    /// Per level, how many scores go of the bin in which its threshold lies.
    below: Vec<usize>,
    /// The scores of bins that have to be sorted, slot after slot, as [`entry`] makes them.
    entries: Vec<u64>,
    ranks: Vec<u8>,
}

/// A bin in which thresholds lie.
#[derive(Debug)]
struct Slot {
    /// Its entries; the end moves while they are found.
    entries: Range<usize>,
    levels: Range<usize>,
}

/// For each score the first of the levels that it goes at, or their number: at level `i` the `ks[i]` smallest scores go,
/// ties by position, or with [`Ties::Reference`] all that equal the largest of them. `ks` ascend; there are at most
/// [`MOST_LEVELS`] of them, and [`MOST_SCORES`] scores.
///
/// # Errors
/// The position of a score that is not finite, or negative.
pub(super) fn ranks<'a>(scores: &[f32], ks: &[usize], ties: Ties, scratch: &'a mut Scratch) -> Result<&'a [u8], usize> {
    let bins = (scores.len() / 2).next_power_of_two().clamp(FEWEST_BINS, MOST_BINS);
    let reach = 3.0 * check(scores)? / scores.len() as f64;
    // Scores that are all 0, or nearly, go to the first bin.
    let scale = Some((bins as f64 / reach) as f32).filter(|scale| scale.is_finite()).unwrap_or(0.0);
    let Scratch { counts, ends, table, slots, below, entries, ranks } = scratch;
    count(scores, scale, bins, counts);
    let sorted = locate(ks, counts, ends, table, slots, below);
    ranks.resize(scores.len(), 0);
    entries.clear();
    entries.resize(sorted, 0);
    let mut add = |slot: usize, entry| {
        let end = &mut slots[slot].entries.end;
        entries[*end] = entry;
        *end += 1;
    };
    if scores.len() <= CHUNK {
        look_up(scores, 0, scale, table, ranks, add);
    } else {
        let chunks = scores.par_chunks(CHUNK).zip(ranks.par_chunks_mut(CHUNK)).enumerate();
        let found = chunks.map(|(i, (scores, ranks))| {
            let mut found = Vec::new();
            look_up(scores, i * CHUNK, scale, table, ranks, |slot, entry| found.push((slot, entry)));
            found
        });
        found.collect::<Vec<_>>().into_iter().flatten().for_each(|(slot, entry)| add(slot, entry));
    }
    for Slot { entries: range, levels } in slots {
        resolve(&mut entries[range.clone()], levels.clone(), below, ties, ranks);
    }
    Ok(ranks)
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

/// The bins of up to a group of scores. Each step keeps their order.
#[inline(always)]
fn spread(scores: &[f32], scale: f32, last: f32, bins: &mut [u16; GROUP]) {
    for (bin, score) in bins.iter_mut().zip(scores) {
        let at = score * scale;
        let at = if at < last { at } else { last };
        // SAFETY: from 0 to `last`, which is below 4096. A saturating conversion would not be vectorised.
        *bin = unsafe { at.to_int_unchecked::<i32>() } as u16;
    }
}

fn count(scores: &[f32], scale: f32, bins: usize, counts: &mut Vec<u32>) {
    let count = |scores: &[f32], counts: &mut [u32]| {
        let mut bins = [0; GROUP];
        for scores in scores.chunks(GROUP) {
            spread(scores, scale, (counts.len() - 1) as f32, &mut bins);
            bins[..scores.len()].iter().for_each(|&bin| counts[usize::from(bin)] += 1);
        }
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

/// Fills `table`, `slots` and `below`; returns the number of scores that have to be sorted.
fn locate(
    ks: &[usize],
    counts: &[u32],
    ends: &mut Vec<u32>,
    table: &mut Vec<u8>,
    slots: &mut Vec<Slot>,
    below: &mut Vec<usize>,
) -> usize {
    let (blocks, _) = counts.as_chunks::<BLOCK>();
    let mut end = 0;
    ends.clear();
    ends.extend(blocks.iter().map(|block| {
        end += block.iter().sum::<u32>();
        end
    }));
    slots.clear();
    below.clear();
    table.clear();
    let mut sorted = 0;
    for (level, &k) in ks.iter().enumerate() {
        // How many bins go as a whole. Without branches, which nobody could predict.
        let k = k as u32;
        let block = ends.iter().map(|&end| u32::from(end <= k)).sum::<u32>() as usize;
        let mut before = if block == 0 { 0 } else { ends[block - 1] };
        let mut bin = block * BLOCK;
        if let Some(counts) = blocks.get(block) {
            let mut end = before;
            for &count in counts {
                end += count;
                bin += usize::from(end <= k);
                before = if end <= k { end } else { before };
            }
        }
        below.push((k - before) as usize);
        match slots.last_mut() {
            Some(slot) if table.len() == bin + 1 => slot.levels.end += 1,
            _ => {
                table.resize(bin, level as u8);
                if k > before {
                    table.push(SORTED | slots.len() as u8);
                    slots.push(Slot { entries: sorted..sorted, levels: level..level + 1 });
                    sorted += counts[bin] as usize;
                }
            }
        }
    }
    table.resize(counts.len(), ks.len() as u8);
    sorted
}

/// Ranks the scores by their bins; `found` is told the slot and the entry of those in bins that have to be sorted.
fn look_up(
    scores: &[f32],
    first: usize,
    scale: f32,
    table: &[u8],
    ranks: &mut [u8],
    mut found: impl FnMut(usize, u64),
) {
    let mut bins = [0; GROUP];
    for (group, (scores, ranks)) in scores.chunks(GROUP).zip(ranks.chunks_mut(GROUP)).enumerate() {
        spread(scores, scale, (table.len() - 1) as f32, &mut bins);
        ranks.iter_mut().zip(&bins).for_each(|(rank, &bin)| *rank = table[usize::from(bin)]);
        let mut ranked = [0];
        pack(ranks, SORTED - 1, &mut ranked);
        let mut others = !ranked[0] & (u64::MAX >> (GROUP - ranks.len()));
        while others != 0 {
            let at = others.trailing_zeros() as usize;
            others &= others - 1;
            found(usize::from(ranks[at] & !SORTED), entry(scores[at], first + group * GROUP + at));
        }
    }
}

/// A score to sort: its bits order like its value, and its position decides between equals.
fn entry(score: f32, at: usize) -> u64 {
    u64::from(score.abs().to_bits()) << 32 | at as u64
}

/// Ranks the scores of one bin.
fn resolve(entries: &mut [u64], levels: Range<usize>, below: &[usize], ties: Ties, ranks: &mut [u8]) {
    let at = |entry: u64| entry as u32 as usize;
    if let ([below], Ties::ByPosition, ..=8) = (&below[levels.clone()], ties, entries.len()) {
        // Quicker than sorting, which would be one surprise after the other for the branch predictor.
        for &entry in entries.iter() {
            let smaller: usize = entries.iter().map(|&other| usize::from(other < entry)).sum();
            ranks[at(entry)] = levels.start as u8 + u8::from(smaller >= *below);
        }
        return;
    }
    entries.sort_unstable();
    let (mut from, score) = (0, |entry: u64| entry >> 32);
    for level in levels.clone() {
        let mut to = below[level].max(from);
        if ties == Ties::Reference && to > 0 {
            to += entries[to..].iter().take_while(|&&entry| score(entry) == score(entries[to - 1])).count();
        }
        entries[from..to].iter().for_each(|&entry| ranks[at(entry)] = level as u8);
        from = to;
    }
    entries[from..].iter().for_each(|&entry| ranks[at(entry)] = levels.end as u8);
}

/// Sets bit `i % 64` of word `i / 64` for each rank `i` up to `level`, and clears the others.
pub(super) fn pack(ranks: &[u8], level: u8, words: &mut [u64]) {
    let up_to =
        |ranks: &[u8]| ranks.iter().enumerate().fold(0, |word, (bit, &rank)| word | u64::from(rank <= level) << bit);
    for (word, ranks) in words.iter_mut().zip(ranks.chunks(64)) {
        *word = match <&[u8; 64]>::try_from(ranks) {
            #[cfg(target_arch = "x86_64")]
            Ok(ranks) => pack_word(ranks, level),
            _ => up_to(ranks),
        };
    }
}

#[cfg(target_arch = "x86_64")]
fn pack_word(ranks: &[u8; 64], level: u8) -> u64 {
    use std::arch::x86_64::{_mm_cmpeq_epi8, _mm_loadu_si128, _mm_min_epu8, _mm_movemask_epi8, _mm_set1_epi8};
    ranks.as_chunks::<16>().0.iter().rev().fold(0, |word, ranks| {
        // SAFETY: x86-64 has SSE2; 16 bytes are loaded from 16, and need not be aligned.
        let up_to = unsafe {
            let ranks = _mm_loadu_si128(ranks.as_ptr().cast());
            _mm_movemask_epi8(_mm_cmpeq_epi8(_mm_min_epu8(ranks, _mm_set1_epi8(level as i8)), ranks))
        };
        word << 16 | u64::from(up_to as u16)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: a stable sort, of which the first `k` go.
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
        let mut scratch = Scratch::default();
        // Used before, for something longer.
        ranks(&vec![1.0; scores.len() + 3], &[1, 2], Ties::ByPosition, &mut scratch).unwrap();
        assert_eq!(ranks(scores, ks, ties, &mut scratch), Ok(&expected(scores, ks, ties)[..]), "{ks:?}");
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

        #[test]
        fn packing_is_a_comparison(ranks in proptest::collection::vec(any::<u8>(), 0..200), level in any::<u8>()) {
            let mut words = vec![u64::MAX; ranks.len().div_ceil(64)];
            pack(&ranks, level, &mut words);
            for bit in 0..words.len() * 64 {
                let expected = ranks.get(bit).is_some_and(|rank| *rank <= level);
                prop_assert_eq!(words[bit / 64] >> (bit % 64) & 1 == 1, expected);
            }
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
        assert_eq!(ranks(&[0.0, -0.0, 1.0], &[1, 2], Ties::ByPosition, &mut Scratch::default()), Ok(&[0, 1, 2][..]));
        assert_eq!(ranks(&[], &[0], Ties::ByPosition, &mut Scratch::default()), Ok(&[][..]));
        for bad in [f32::NAN, f32::INFINITY, -1.0, f32::NEG_INFINITY, -f32::NAN] {
            let at = |scores: &[f32]| ranks(scores, &[1], Ties::ByPosition, &mut Scratch::default()).unwrap_err();
            assert_eq!(at(&[1.0, bad, 2.0]), 1, "{bad}");
            let mut many = vec![1.0; CHUNK * 2];
            many[CHUNK + 5] = bad;
            assert_eq!(at(&many), CHUNK + 5, "{bad}");
        }
    }
}
