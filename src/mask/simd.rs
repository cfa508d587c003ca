//! The innermost loops of a selection, with the widest instructions that this machine has. The result is the same with all.

use std::mem::MaybeUninit;

/// Bins of a block.
const LANES: usize = 16;
/// Entries that are compared together.
const WORDS: usize = 8;

/// The place among the bins at which a running count is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cut {
    /// The last bin with no more than the count before it.
    pub(super) bin: u32,
    /// The number of scores of that bin that are still needed.
    pub(super) below: u32,
}

/// Sums of what is before each bin, and each block of [`LANES`] bins.
#[derive(Debug, Default)]
pub(super) struct Starts {
    bins: Vec<u32>,
    blocks: Vec<u32>,
}

/// Instructions that this machine has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Simd(Isa);

/// From the narrowest to the widest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Isa {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// With BW, which compares bytes, VBMI2, which moves some of them together, and POPCNT.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Default for Simd {
    /// The widest.
    fn default() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            let avx512 = is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vbmi2")
                && is_x86_feature_detected!("popcnt");
            return Simd(if avx512 { Isa::Avx512 } else { Isa::Avx2 });
        }
        Simd(Isa::Portable)
    }
}

impl Simd {
    /// All that this machine has.
    #[cfg(test)]
    pub(super) fn all() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        let known = [Isa::Portable, Isa::Avx2, Isa::Avx512];
        #[cfg(not(target_arch = "x86_64"))]
        let known = [Isa::Portable];
        known.into_iter().filter(|isa| *isa <= Self::default().0).map(Simd).collect()
    }

    /// Finds the places at which the counts `ks` are reached. The bins, which hold `counts`, fill their blocks.
    pub(super) fn cuts(self, counts: &[u32], ks: &[usize], starts: &mut Starts, cuts: &mut Vec<Cut>) {
        let (counts, _) = counts.as_chunks::<LANES>();
        // Those that are missing in the last lanes are never reached.
        starts.blocks.clear();
        starts.blocks.resize(counts.len().next_multiple_of(LANES), u32::MAX);
        cuts.resize(ks.len(), Cut::default());
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: there is no such value where the machine has no AVX-512.
            Isa::Avx512 => unsafe { x86::cuts_avx512(counts, ks, starts, cuts) },
            _ => {
                let mut sum = 0;
                for (start, block) in starts.blocks.iter_mut().zip(counts) {
                    *start = sum;
                    sum += block.iter().sum::<u32>();
                }
                cuts.iter_mut().zip(ks).for_each(|(found, &k)| *found = cut(counts, &starts.blocks, k as u32));
            }
        }
    }

    /// Writes words, one for each 64 ranks and one for the rest: bit `i % 64` of word `i / 64` is set for each rank `i` up to
    /// `level`, and no other.
    pub(super) fn pack(self, ranks: &[u8], level: u8, words: &mut [MaybeUninit<u64>]) {
        let (groups, rest) = ranks.as_chunks::<64>();
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: there is no such value where the machine has no AVX-512.
            Isa::Avx512 => unsafe { x86::pack_avx512(groups, level, words) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: there is no such value where the machine has no AVX2.
            Isa::Avx2 => unsafe { x86::pack_avx2(groups, level, words) },
            #[cfg(target_arch = "x86_64")]
            Isa::Portable => x86::pack_sse2(groups, level, words),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Portable => {
                words.iter_mut().zip(groups).for_each(|(word, ranks)| {
                    word.write(bits(ranks, |rank| rank <= level));
                });
            }
        }
        if !rest.is_empty()
            && let Some(word) = words.get_mut(groups.len())
        {
            word.write(bits(rest, |rank| rank <= level));
        }
    }

    /// Adds to `found`, in order, where the bytes have their highest bit set, counted from `first` on.
    pub(super) fn marked(self, bytes: &[u8], mut first: u32, found: &mut Vec<u32>) {
        let (groups, rest) = bytes.as_chunks::<64>();
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: there is no such value where the machine has no AVX-512.
            Isa::Avx512 => unsafe { x86::marked_avx512(groups, first, found) },
            _ => {
                for (first, bytes) in (first..).step_by(64).zip(groups) {
                    #[cfg(target_arch = "x86_64")]
                    let marks = x86::marks_sse2(bytes);
                    #[cfg(not(target_arch = "x86_64"))]
                    let marks = bits(bytes, |byte| byte >= 0x80);
                    list(marks, first, found);
                }
            }
        }
        first += groups.len() as u32 * 64;
        list(bits(rest, |byte| byte >= 0x80), first, found);
    }

    /// Writes for each entry, whose low half is a position, how many of the `ends`, which ascend, are up to the number of smaller
    /// entries. No two entries are equal.
    pub(super) fn compare(self, entries: &mut Vec<u64>, ends: &[u32], ranks: &mut [u8]) {
        let count = entries.len();
        entries.resize(count.next_multiple_of(WORDS), u64::MAX);
        let entries = (&entries[..count], entries.as_chunks().0);
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: there is no such value where the machine has no AVX-512.
            Isa::Avx512 => unsafe { x86::compare_avx512(entries, ends, ranks) },
            _ => compare(entries, ends, ranks),
        }
    }
}

/// Compares all entries with each, a few at a time. Without branches, which nobody could predict.
#[inline(always)]
fn compare((entries, groups): (&[u64], &[[u64; WORDS]]), ends: &[u32], ranks: &mut [u8]) {
    for (group, own) in groups.iter().zip(entries.chunks(WORDS)) {
        let (mut smaller, mut rank) = ([0; WORDS], [0; WORDS]);
        for &other in entries {
            for lane in 0..WORDS {
                smaller[lane] += u64::from(other < group[lane]);
            }
        }
        for &end in ends {
            for lane in 0..WORDS {
                rank[lane] += u64::from(smaller[lane] >= u64::from(end));
            }
        }
        own.iter().zip(rank).for_each(|(&entry, rank)| ranks[entry as u32 as usize] = rank as u8);
    }
}

/// Finds the place at which `k` is reached, without branches, which nobody could predict.
fn cut(counts: &[[u32; LANES]], starts: &[u32], k: u32) -> Cut {
    let up_to = starts.iter().map(|&start| u32::from(start <= k)).sum::<u32>();
    let block = (up_to as usize).min(counts.len()) - 1;
    let (mut bin, mut start) = (block * LANES, starts[block]);
    let mut next = start;
    for count in &counts[block][..LANES - 1] {
        next += count;
        bin += usize::from(next <= k);
        start = if next <= k { next } else { start };
    }
    Cut { bin: bin as u32, below: k - start }
}

/// One bit for each of up to 64 bytes.
fn bits(bytes: &[u8], is_set: impl Fn(u8) -> bool) -> u64 {
    bytes.iter().enumerate().fold(0, |word, (bit, &byte)| word | u64::from(is_set(byte)) << bit)
}

/// Adds the numbers of the bits that are set to `found`, counted from `first` on.
#[inline(always)]
fn list(mut marks: u64, first: u32, found: &mut Vec<u32>) {
    /// So many are written whether they are there or not: how many there are nobody could predict.
    const AT_ONCE: usize = 8;
    if marks == 0 {
        return;
    }
    let end = found.len() + marks.count_ones() as usize;
    while marks != 0 {
        found.extend_from_slice(&std::array::from_fn::<u32, AT_ONCE, _>(|_| {
            let at = first + marks.trailing_zeros();
            marks &= marks.wrapping_sub(1);
            at
        }));
    }
    found.truncate(end);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Cut, LANES, Starts, WORDS};
    use std::arch::x86_64::*;
    use std::mem::{MaybeUninit, transmute};

    /// One bit for each of 64 bytes, from 16 of them.
    fn movemask(bytes: &[u8; 64], mask: impl Fn(__m128i) -> i32) -> u64 {
        bytes.as_chunks::<16>().0.iter().rev().fold(0, |word, &bytes| {
            // SAFETY: both are 16 bytes of any value.
            let bytes = unsafe { transmute::<[u8; 16], __m128i>(bytes) };
            word << 16 | u64::from(mask(bytes) as u16)
        })
    }

    pub(super) fn marks_sse2(bytes: &[u8; 64]) -> u64 {
        // SAFETY: x86-64 has SSE2.
        movemask(bytes, |bytes| unsafe { _mm_movemask_epi8(bytes) })
    }

    pub(super) fn pack_sse2(groups: &[[u8; 64]], level: u8, words: &mut [MaybeUninit<u64>]) {
        // SAFETY: x86-64 has SSE2.
        let up_to = |ranks| unsafe {
            let smaller = _mm_min_epu8(ranks, _mm_set1_epi8(level as i8));
            _mm_movemask_epi8(_mm_cmpeq_epi8(smaller, ranks))
        };
        words.iter_mut().zip(groups).for_each(|(word, ranks)| {
            word.write(movemask(ranks, up_to));
        });
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn pack_avx2(groups: &[[u8; 64]], level: u8, words: &mut [MaybeUninit<u64>]) {
        let level = _mm256_set1_epi8(level as i8);
        for (word, ranks) in words.iter_mut().zip(groups) {
            // SAFETY: both are 64 bytes of any value.
            let halves = unsafe { transmute::<[u8; 64], [__m256i; 2]>(*ranks) };
            word.write(halves.iter().rev().fold(0, |word, &ranks| {
                let up_to = _mm256_cmpeq_epi8(_mm256_min_epu8(ranks, level), ranks);
                word << 32 | u64::from(_mm256_movemask_epi8(up_to) as u32)
            }));
        }
    }

    #[target_feature(enable = "avx512bw,popcnt")]
    pub(super) fn pack_avx512(groups: &[[u8; 64]], level: u8, words: &mut [MaybeUninit<u64>]) {
        let level = _mm512_set1_epi8(level as i8);
        for (word, ranks) in words.iter_mut().zip(groups) {
            // SAFETY: both are 64 bytes of any value.
            let ranks = unsafe { transmute::<[u8; 64], __m512i>(*ranks) };
            word.write(_mm512_cmple_epu8_mask(ranks, level));
        }
    }

    #[target_feature(enable = "avx512bw,popcnt")]
    pub(super) fn cuts_avx512(counts: &[[u32; LANES]], ks: &[usize], starts: &mut Starts, cuts: &mut [Cut]) {
        let Starts { bins, blocks } = starts;
        bins.resize(counts.len() * LANES, 0);
        let (bins, _) = bins.as_chunks_mut::<LANES>();
        let (none, last) = (_mm512_setzero_si512(), _mm512_set1_epi32(15));
        let mut sum = none;
        for ((counts, starts), start) in counts.iter().zip(bins.iter_mut()).zip(blocks.iter_mut()) {
            // SAFETY: both are 64 bytes of any value.
            let counts = unsafe { transmute::<[u32; LANES], __m512i>(*counts) };
            // Each lane and those before it: one, then two, four and eight.
            let ends = _mm512_add_epi32(counts, _mm512_alignr_epi32::<15>(counts, none));
            let ends = _mm512_add_epi32(ends, _mm512_alignr_epi32::<14>(ends, none));
            let ends = _mm512_add_epi32(ends, _mm512_alignr_epi32::<12>(ends, none));
            let ends = _mm512_add_epi32(ends, _mm512_alignr_epi32::<8>(ends, none));
            // SAFETY: as above.
            *starts =
                unsafe { transmute::<__m512i, [u32; LANES]>(_mm512_add_epi32(_mm512_sub_epi32(ends, counts), sum)) };
            *start = _mm_cvtsi128_si32(_mm512_castsi512_si128(sum)) as u32;
            sum = _mm512_add_epi32(sum, _mm512_permutexvar_epi32(last, ends));
        }
        let (groups, _) = blocks.as_chunks::<LANES>();
        for (cut, &k) in cuts.iter_mut().zip(ks) {
            let limit = _mm512_set1_epi32(k as u32 as i32);
            // SAFETY: as above.
            let up_to = |starts: &[u32; LANES]| unsafe {
                let starts = transmute::<[u32; LANES], __m512i>(*starts);
                _mm512_cmple_epu32_mask(starts, limit).count_ones() as usize
            };
            let mut block = 0;
            for starts in groups {
                block += up_to(starts);
            }
            let block = block.min(bins.len()) - 1;
            let bin = up_to(&bins[block]) - 1;
            *cut = Cut { bin: (block * LANES + bin) as u32, below: k as u32 - bins[block][bin] };
        }
    }

    #[target_feature(enable = "avx512bw,popcnt")]
    pub(super) fn compare_avx512((entries, groups): (&[u64], &[[u64; WORDS]]), ends: &[u32], ranks: &mut [u8]) {
        let one = _mm512_set1_epi64(1);
        for (group, own) in groups.iter().zip(entries.chunks(WORDS)) {
            // SAFETY: both are 64 bytes of any value.
            let group = unsafe { transmute::<[u64; WORDS], __m512i>(*group) };
            let (mut smaller, mut rank) = (_mm512_setzero_si512(), _mm512_setzero_si512());
            for &other in entries {
                let is = _mm512_cmplt_epu64_mask(_mm512_set1_epi64(other as i64), group);
                smaller = _mm512_mask_add_epi64(smaller, is, smaller, one);
            }
            for &end in ends {
                let is = _mm512_cmple_epu64_mask(_mm512_set1_epi64(i64::from(end)), smaller);
                rank = _mm512_mask_add_epi64(rank, is, rank, one);
            }
            // SAFETY: as above, with 16 bytes.
            let rank = unsafe { transmute::<__m128i, [u8; 2 * WORDS]>(_mm512_cvtepi64_epi8(rank)) };
            own.iter().zip(rank).for_each(|(&entry, rank)| ranks[entry as u32 as usize] = rank);
        }
    }

    #[target_feature(enable = "avx512bw,avx512vbmi2,popcnt")]
    pub(super) fn marked_avx512(groups: &[[u8; 64]], first: u32, found: &mut Vec<u32>) {
        const AT_ONCE: usize = 16;
        // SAFETY: both are 64 bytes of any value.
        let numbers = unsafe { transmute::<[u8; 64], __m512i>(std::array::from_fn(|i| i as u8)) };
        for (first, bytes) in (first..).step_by(64).zip(groups) {
            // SAFETY: as above.
            let marks = _mm512_movepi8_mask(unsafe { transmute::<[u8; 64], __m512i>(*bytes) });
            let count = marks.count_ones() as usize;
            if count > AT_ONCE {
                super::list(marks, first, found);
                continue;
            }
            // Without asking whether there is one, which nobody could predict.
            let at = _mm512_castsi512_si128(_mm512_maskz_compress_epi8(marks, numbers));
            let at = _mm512_add_epi32(_mm512_cvtepu8_epi32(at), _mm512_set1_epi32(first as i32));
            let end = found.len() + count;
            // SAFETY: both are 64 bytes of any value.
            found.extend_from_slice(&unsafe { transmute::<__m512i, [u32; AT_ONCE]>(at) });
            found.truncate(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn packing_is_a_comparison(ranks in proptest::collection::vec(any::<u8>(), 0..300), level in any::<u8>()) {
            for simd in Simd::all() {
                let mut words = vec![MaybeUninit::new(u64::MAX); ranks.len().div_ceil(64)];
                simd.pack(&ranks, level, &mut words);
                // SAFETY: all had a value before.
                let words: Vec<u64> = words.into_iter().map(|word| unsafe { word.assume_init() }).collect();
                for bit in 0..words.len() * 64 {
                    let expected = ranks.get(bit).is_some_and(|rank| *rank <= level);
                    prop_assert_eq!(words[bit / 64] >> (bit % 64) & 1 == 1, expected, "{:?}", simd);
                }
            }
        }

        #[test]
        fn marks_are_found_in_order(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            many in prop_oneof![Just(0x80u8), Just(0xa0), Just(0xfe), Just(0xff)],
            first in 0u32..1 << 30,
        ) {
            let bytes: Vec<u8> = bytes.into_iter().map(|byte| if byte < many { byte & 0x7f } else { byte }).collect();
            let marked = (first..).zip(&bytes).filter(|(_, byte)| **byte >= 0x80).map(|(at, _)| at);
            let expected: Vec<u32> = [7].into_iter().chain(marked).collect();
            for simd in Simd::all() {
                let mut found = vec![7];
                simd.marked(&bytes, first, &mut found);
                prop_assert_eq!(&found, &expected, "{:?}", simd);
            }
        }
    }
}
