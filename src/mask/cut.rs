//! Where the smallest scores end: exact thresholds for any number of levels from one pass over the scores.
//!
//! Scores are spread over bins of equal width up to their maximum. Multiplying and truncating keep the order, so a level's
//! threshold lies in the bin in which its count is reached, and only the few scores of that bin have to be sorted.

use rayon::prelude::*;

/// The `k` smallest scores: those with a key below `key`, and of its equals the first `ties`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) key: u32,
    pub(super) ties: usize,
    /// How many scores have this key.
    pub(super) equals: usize,
}

impl Cut {
    /// The cut that leaves everything.
    const NOTHING: Cut = Cut { key: 0, ties: 0, equals: 0 };

    /// The smallest key that stays when all equals go, or none does; `None` when only some do.
    pub(super) fn bound(self) -> Option<u32> {
        match self.ties {
            0 => Some(self.key),
            ties if ties == self.equals => Some(self.key + 1),
            _ => None,
        }
    }
}

/// Scores are compared as integers: the bits of a non-negative float order like its value.
pub(super) fn key(score: f32) -> u32 {
    score.to_bits()
}

/// Keys from here on are not finite numbers, or negative.
const BAD: u32 = 0x7f80_0000;

/// The greatest key, or the position of a score that is not finite or below 0. A `-0` becomes `0`.
fn greatest(scores: &mut [f32]) -> Result<u32, usize> {
    let max = |scores: &[f32]| scores.iter().fold(0, |max, &score| key(score).max(max));
    match max(scores) {
        max if max < BAD => Ok(max),
        _ => match scores.iter().position(|score| !(score.is_finite() && *score >= 0.0)) {
            Some(at) => Err(at),
            None => {
                scores.iter_mut().for_each(|score| *score = score.abs());
                Ok(max(scores))
            }
        },
    }
}

/// Scores beyond this many are spread over threads.
const CHUNK: usize = 1 << 16;
const FEWEST_BINS: usize = 64;
const MOST_BINS: usize = 4096;

/// Memory to be used again for the next row.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    bins: Vec<u16>,
    counts: Vec<u32>,
    /// 1 + the index of the first level whose threshold lies in the bin; 0 for a bin without one.
    slots: Vec<u8>,
    gathered: Vec<Vec<u32>>,
    /// The levels by count.
    order: Vec<usize>,
    /// Per level, the bin in which its count is reached, and the number of scores in the bins before.
    places: Vec<(usize, usize)>,
    cuts: Vec<Cut>,
}

/// The cuts after the `ks` smallest of `scores`, which may be given in any order.
///
/// # Errors
/// The position of a score that is not finite, or negative.
pub(super) fn cuts<'a>(scores: &mut [f32], ks: &[usize], scratch: &'a mut Scratch) -> Result<&'a [Cut], usize> {
    let max = if scores.len() <= CHUNK {
        greatest(scores)?
    } else {
        let chunks = scores.par_chunks_mut(CHUNK).enumerate();
        let maxima = chunks.map(|(i, chunk)| greatest(chunk).map_err(|at| i * CHUNK + at));
        maxima.collect::<Vec<_>>().into_iter().try_fold(0, |max, chunk| chunk.map(|chunk| max.max(chunk)))?
    };
    let bins = (scores.len() / 2).next_power_of_two().clamp(FEWEST_BINS, MOST_BINS);
    let scale = (bins as f32 - 0.5) / f32::from_bits(max);
    scratch.cuts.clear();
    if scale.is_finite() {
        ks.chunks(usize::from(u8::MAX)).for_each(|ks| binned(scores, ks, bins, scale, scratch));
    } else {
        // All scores are 0, or so small that the scale is none.
        let mut keys: Vec<u32> = scores.iter().map(|&score| key(score)).collect();
        scratch.cuts.extend(ks.iter().map(|&k| of_sorted(&mut keys, k)));
    }
    Ok(&scratch.cuts)
}

/// The cut after the `k` smallest of `keys`, which it reorders.
fn of_sorted(keys: &mut [u32], k: usize) -> Cut {
    if k == 0 {
        return Cut::NOTHING;
    }
    let (less, &mut kth, more) = keys.select_nth_unstable(k - 1);
    let equal = |keys: &[u32]| keys.iter().filter(|&&key| key == kth).count();
    let before = equal(less);
    Cut { key: kth, ties: before + 1, equals: before + 1 + equal(more) }
}

/// Adds the cuts of at most 255 levels.
fn binned(scores: &[f32], ks: &[usize], bins: usize, scale: f32, scratch: &mut Scratch) {
    let Scratch { bins: of, counts, slots, gathered, order, places, cuts } = scratch;
    of.clear();
    of.resize(scores.len(), 0);
    counts.clear();
    if scores.len() <= CHUNK {
        counts.resize(bins, 0);
        spread(scores, scale, of);
        of.iter().for_each(|&bin| counts[usize::from(bin)] += 1);
    } else {
        let chunks = of.par_chunks_mut(CHUNK).zip(scores.par_chunks(CHUNK));
        let count = |(of, scores): (&mut [u16], &[f32])| {
            let mut counts = vec![0u32; bins];
            spread(scores, scale, of);
            of.iter().for_each(|&bin| counts[usize::from(bin)] += 1);
            counts
        };
        let add = |mut sums: Vec<u32>, counts: Vec<u32>| {
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
            sums
        };
        *counts = chunks.map(count).reduce(|| vec![0; bins], add);
    }
    order.clear();
    order.extend(0..ks.len());
    order.sort_unstable_by_key(|&level| ks[level]);
    places.clear();
    places.resize(ks.len(), (0, 0));
    let (mut bin, mut before) = (0, 0);
    for &level in order.iter() {
        while ks[level] > before + counts[bin] as usize {
            before += counts[bin] as usize;
            bin += 1;
        }
        places[level] = (bin, before);
    }
    slots.clear();
    slots.resize(bins, 0);
    gathered.iter_mut().for_each(Vec::clear);
    gathered.resize_with(ks.len().max(gathered.len()), Vec::new);
    for (level, &(bin, _)) in places.iter().enumerate().filter(|(level, _)| ks[*level] > 0) {
        if slots[bin] == 0 {
            slots[bin] = level as u8 + 1;
        }
    }
    if scores.len() <= CHUNK {
        gather(scores, of, slots, |slot, key| gathered[slot].push(key));
    } else {
        let chunks = of.par_chunks(CHUNK).zip(scores.par_chunks(CHUNK));
        let found: Vec<Vec<(usize, u32)>> = chunks
            .map(|(of, scores)| {
                let mut found = Vec::new();
                gather(scores, of, slots, |slot, key| found.push((slot, key)));
                found
            })
            .collect();
        found.into_iter().flatten().for_each(|(slot, key)| gathered[slot].push(key));
    }
    gathered.iter_mut().for_each(|keys| keys.sort_unstable());
    let cut = |(level, &(bin, before)): (usize, &(usize, usize))| {
        if ks[level] == 0 {
            return Cut::NOTHING;
        }
        let keys = &gathered[usize::from(slots[bin]) - 1];
        let key = keys[ks[level] - before - 1];
        let (first, end) = (keys.partition_point(|&other| other < key), keys.partition_point(|&other| other <= key));
        Cut { key, ties: ks[level] - before - first, equals: end - first }
    };
    cuts.extend(places.iter().enumerate().map(cut));
}

/// The bin of each score. Both steps keep the order of scores.
fn spread(scores: &[f32], scale: f32, bins: &mut [u16]) {
    // Below 4096, so that the conversion cannot saturate, which would keep the loop from being vectorised.
    bins.iter_mut().zip(scores).for_each(|(bin, score)| {
        // SAFETY: a finite score in [0, max] times (bins - 0.5) / max is in [0, 4096].
        *bin = unsafe { (score * scale).to_int_unchecked::<i32>() } as u16;
    });
}

fn gather(scores: &[f32], bins: &[u16], slots: &[u8], mut found: impl FnMut(usize, u32)) {
    for (&bin, &score) in bins.iter().zip(scores) {
        let slot = slots[usize::from(bin)];
        if slot != 0 {
            found(usize::from(slot) - 1, key(score));
        }
    }
}

/// Sets bit `i % 64` of word `i / 64` for each score `i` with a key below `bound`, and clears the others.
pub(super) fn pack_below(scores: &[f32], bound: u32, words: &mut [u64]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, as just asked.
        return unsafe { pack_below_avx2(scores, bound, words) };
    }
    for (word, scores) in words.iter_mut().zip(scores.chunks(64)) {
        *word = pack_word(scores, bound);
    }
}

fn pack_word(scores: &[f32], bound: u32) -> u64 {
    scores.iter().enumerate().fold(0, |word, (bit, &score)| word | u64::from(key(score) < bound) << bit)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn pack_below_avx2(scores: &[f32], bound: u32, words: &mut [u64]) {
    use std::arch::x86_64::{
        _mm256_castsi256_ps, _mm256_cmpgt_epi32, _mm256_loadu_si256, _mm256_movemask_ps, _mm256_set1_epi32,
    };
    // Keys and bounds are below 2^31, so that a signed comparison serves.
    let bounds = _mm256_set1_epi32(bound as i32);
    for (word, scores) in words.iter_mut().zip(scores.chunks(64)) {
        let Ok(scores) = <&[f32; 64]>::try_from(scores) else {
            *word = pack_word(scores, bound);
            continue;
        };
        let mut packed = 0u64;
        for i in 0..8 {
            // SAFETY: lanes 8 i to 8 i + 7 of 64; the load needs no alignment.
            let keys = unsafe { _mm256_loadu_si256(scores.as_ptr().add(8 * i).cast()) };
            let below = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(bounds, keys)));
            packed |= u64::from(below as u8) << (8 * i);
        }
        *word = packed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn expected(scores: &[f32], k: usize) -> Cut {
        of_sorted(&mut scores.iter().map(|&score| key(score)).collect::<Vec<_>>(), k)
    }

    fn check(mut scores: Vec<f32>, ks: &[usize]) {
        let mut scratch = Scratch::default();
        let cuts = cuts(&mut scores, ks, &mut scratch).unwrap();
        for (&k, &cut) in ks.iter().zip(cuts) {
            assert_eq!(cut, expected(&scores, k), "{k} of {}", scores.len());
        }
    }

    proptest! {
        #[test]
        fn cuts_are_exact(
            n in 1usize..3000,
            levels in prop_oneof![Just(2u32), Just(50), Just(1 << 20)], // few levels make many ties
            power in prop_oneof![Just(1i32), Just(9)], // heavy tails leave most scores in one bin
            seed in any::<u32>(),
            shares in proptest::collection::vec(0.0f64..1.0, 1..12),
        ) {
            let score = |i: usize| {
                let hash = (i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed).rotate_left(13).wrapping_mul(0x85eb_ca6b);
                ((hash % levels) as f32 / 1e5).powi(power)
            };
            let ks: Vec<usize> = shares.iter().map(|share| (n as f64 * share) as usize).collect();
            check((0..n).map(score).collect(), &ks);
        }

        #[test]
        fn packing_is_a_comparison(scores in proptest::collection::vec(0f32..2.0, 0..200), bound in 0f32..2.0) {
            let mut words = vec![u64::MAX; scores.len().div_ceil(64)];
            pack_below(&scores, key(bound), &mut words);
            for (i, &score) in scores.iter().enumerate() {
                prop_assert_eq!(words[i / 64] >> (i % 64) & 1 == 1, score < bound);
            }
            prop_assert!(words.last().is_none_or(|word| scores.len() % 64 == 0 || word >> (scores.len() % 64) == 0));
        }
    }

    #[test]
    fn many_scores_go_the_same_way_in_chunks() {
        let scores: Vec<f32> = (0..CHUNK * 2 + 77).map(|i| ((i * 7919) % 65_537) as f32).collect();
        check(scores.clone(), &[0, 1, 1000, CHUNK, scores.len() - 1, scores.len()]);
        let ks: Vec<usize> = (0..300).map(|i| i * 100).collect();
        check(scores, &ks);
    }

    #[test]
    fn extremes() {
        check(vec![0.0; 100], &[0, 50, 100]);
        check(vec![f32::MIN_POSITIVE / 8.0, 0.0, f32::MIN_POSITIVE / 4.0], &[1, 2]);
        check(vec![f32::MAX, 0.0, 1.0, f32::MAX], &[1, 2, 3, 4]);
        check(vec![-0.0, 0.0, 1.0], &[1, 2]);
        for bad in [f32::NAN, f32::INFINITY, -1.0, f32::NEG_INFINITY, -f32::NAN] {
            assert_eq!(cuts(&mut [1.0, bad, 2.0], &[1], &mut Scratch::default()), Err(1), "{bad}");
            let mut many = vec![1.0; CHUNK * 2];
            many[CHUNK + 5] = bad;
            assert_eq!(cuts(&mut many, &[1], &mut Scratch::default()), Err(CHUNK + 5), "{bad}");
        }
    }
}
