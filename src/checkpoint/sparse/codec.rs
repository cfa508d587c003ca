//! Dense rows to kept values and their positions, and back. Bytes only: an element is zero if all its bits are, so that
//! `-0.0` and every NaN keep theirs.

use safetensors::Dtype;

/// Elements of a group of 2:4.
pub(super) const GROUP: usize = 4;
/// The metadata of a group, two bits for each of its two kept positions, by which of its four elements are not zero, as
/// PyTorch's and CUTLASS's conversions choose them; `None` where there are more than two.
const KEPT: [Option<u8>; 16] = {
    const fn of(first: u8, second: u8) -> Option<u8> {
        Some(first | second << 2)
    }
    [
        of(2, 3),
        of(0, 2),
        of(1, 2),
        of(0, 1),
        of(2, 3),
        of(0, 2),
        of(1, 2),
        None,
        of(2, 3),
        of(0, 3),
        of(1, 3),
        None,
        of(2, 3),
        None,
        None,
        None,
    ]
};

/// Bytes of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    One,
    Two,
    Four,
    Eight,
}

impl Width {
    /// `None` for types of less than a byte.
    pub(super) fn of(dtype: Dtype) -> Option<Self> {
        match dtype.bitsize() {
            8 => Some(Width::One),
            16 => Some(Width::Two),
            32 => Some(Width::Four),
            64 => Some(Width::Eight),
            _ => None,
        }
    }

    pub(super) fn bytes(self) -> usize {
        match self {
            Width::One => 1,
            Width::Two => 2,
            Width::Four => 4,
            Width::Eight => 8,
        }
    }
}

/// Calls a function that is generic over the bytes of an element.
macro_rules! by_width {
    ($width:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match $width {
            Width::One => $function::<1>($($argument),*),
            Width::Two => $function::<2>($($argument),*),
            Width::Four => $function::<4>($($argument),*),
            Width::Eight => $function::<8>($($argument),*),
        }
    };
}

/// Bytes of a row of a bitmask or of 2:4 indices: one bit an element.
pub(super) fn stride(cols: usize) -> usize {
    cols.div_ceil(8)
}

/// Counts over rows of a matrix that decide how it can be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) nonzeros: u64,
    /// Every group of four consecutive elements of a row has at most two that are not zero.
    pub(super) two_of_four: bool,
}

impl Count {
    pub(super) const NONE: Count = Count { nonzeros: 0, two_of_four: true };

    pub(super) fn and(self, other: Count) -> Count {
        Count { nonzeros: self.nonzeros + other.nonzeros, two_of_four: self.two_of_four && other.two_of_four }
    }
}

/// Counts what is not zero in whole rows of `cols` elements.
pub(super) fn count(width: Width, rows: &[u8], cols: usize) -> Count {
    by_width!(width, count_of(rows, cols))
}

fn count_of<const W: usize>(rows: &[u8], cols: usize) -> Count {
    let elements = rows.as_chunks::<W>().0;
    // Rows are whole groups, or there is no row of groups.
    let (groups, rest) = elements.as_chunks::<GROUP>();
    let (mut nonzeros, mut two_of_four) = (0, cols.is_multiple_of(GROUP));
    for group in groups {
        let kept: u64 = group.iter().map(|element| u64::from(*element != [0; W])).sum();
        nonzeros += kept;
        two_of_four &= kept <= 2;
    }
    nonzeros += rest.iter().filter(|element| **element != [0; W]).count() as u64;
    Count { nonzeros, two_of_four }
}

/// Rows as they are stored.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Packed {
    /// Kept elements, in order.
    pub(super) values: Vec<u8>,
    /// Bitmask or indices.
    pub(super) positions: Vec<u8>,
    /// Kept elements of each row; of a bitmask only.
    pub(super) kept: Vec<u64>,
}

/// Packs whole rows of `cols` elements: bit `i % 8` of byte `i / 8` of a row's mask is set where element `i` is not zero, as
/// `numpy.packbits(bitorder="little")` has it.
pub(super) fn pack_bitmask(width: Width, rows: &[u8], cols: usize) -> Packed {
    by_width!(width, pack_bitmask_of(rows, cols))
}

fn pack_bitmask_of<const W: usize>(rows: &[u8], cols: usize) -> Packed {
    let count = rows.len() / (cols * W).max(1);
    let mut packed = Packed { kept: Vec::with_capacity(count), ..Packed::default() };
    packed.positions.reserve(count * stride(cols));
    // A slot more than there are elements, so that every element can be written before it is known to stay.
    packed.values = vec![0; rows.len() + W];
    let slots = packed.values.as_chunks_mut::<W>().0;
    let mut filled = 0;
    for row in rows.chunks_exact((cols * W).max(1)) {
        let before = filled;
        for eight in row.as_chunks::<W>().0.chunks(8) {
            let mut byte = 0;
            for (bit, element) in eight.iter().enumerate() {
                let keep = *element != [0; W];
                slots[filled] = *element;
                filled += usize::from(keep);
                byte |= u8::from(keep) << bit;
            }
            packed.positions.push(byte);
        }
        packed.kept.push((filled - before) as u64);
    }
    packed.values.truncate(filled * W);
    packed
}

/// Packs whole rows of `cols` elements, at most two of each four of which are not zero ([`Count::two_of_four`]); `None` if
/// more are.
pub(super) fn pack_two_of_four(width: Width, rows: &[u8], cols: usize) -> Option<Packed> {
    by_width!(width, pack_two_of_four_of(rows, cols))
}

/// [`pack_two_of_four`] of 16-bit elements: values, and indices.
pub(crate) fn pack_two_of_four_16(rows: &[u16], cols: usize) -> Option<(Vec<u16>, Vec<u8>)> {
    let bytes: Vec<u8> = rows.iter().flat_map(|element| element.to_le_bytes()).collect();
    let packed = pack_two_of_four(Width::Two, &bytes, cols)?;
    let values = packed.values.as_chunks::<2>().0.iter().map(|element| u16::from_le_bytes(*element)).collect();
    Some((values, packed.positions))
}

fn pack_two_of_four_of<const W: usize>(rows: &[u8], cols: usize) -> Option<Packed> {
    let mut packed = Packed::default();
    packed.values.reserve(rows.len() / 2);
    packed.positions.reserve(rows.len() / (cols * W).max(1) * stride(cols));
    for row in rows.chunks_exact((cols * W).max(1)) {
        for pair in row.as_chunks::<W>().0.as_chunks::<GROUP>().0.chunks(2) {
            let mut byte = 0;
            for (half, group) in pair.iter().enumerate() {
                let nonzero = group.iter().enumerate().fold(0, |set, (i, e)| set | usize::from(*e != [0; W]) << i);
                let nibble = KEPT[nonzero]?;
                packed.values.extend_from_slice(&group[usize::from(nibble & 3)]);
                packed.values.extend_from_slice(&group[usize::from(nibble >> 2)]);
                byte |= nibble << (4 * half);
            }
            packed.positions.push(byte);
        }
    }
    Some(packed)
}

/// The number of set bits among the first `count`.
pub(super) fn ones_before(bits: &[u8], count: usize) -> usize {
    let (whole, rest) = bits.split_at((count / 8).min(bits.len()));
    let whole: usize = whole.iter().map(|byte| byte.count_ones() as usize).sum();
    let rest = rest.first().map_or(0, |byte| byte & ((1u8 << (count % 8)) - 1));
    whole + rest.count_ones() as usize
}

/// Writes elements `first..first + n` of a row, whose mask is `bits`, to the `n` elements of `out`, which are zero; `values`
/// begins with the first of them that is kept. Returns how many were.
pub(super) fn unpack_bitmask(width: Width, bits: &[u8], first: usize, values: &[u8], out: &mut [u8]) -> usize {
    by_width!(width, unpack_bitmask_of(bits, first, values, out))
}

fn unpack_bitmask_of<const W: usize>(bits: &[u8], first: usize, values: &[u8], out: &mut [u8]) -> usize {
    let (out, values) = (out.as_chunks_mut::<W>().0, values.as_chunks::<W>().0);
    let end = first + out.len();
    let mut used = 0;
    for (at, &byte) in bits.iter().enumerate().take(stride(end)).skip(first / 8) {
        let mut byte = byte;
        if at * 8 < first {
            byte &= u8::MAX << (first - at * 8);
        }
        if at * 8 + 8 > end {
            byte &= ((1u16 << (end - at * 8)) - 1) as u8;
        }
        while byte != 0 {
            let Some(value) = values.get(used) else { return used };
            out[at * 8 + byte.trailing_zeros() as usize - first] = *value;
            used += 1;
            byte &= byte - 1;
        }
    }
    used
}

/// Writes elements `first..first + n` of a row with `indices` to the `n` elements of `out`, which are zero; `values` begins
/// with those of the group of the first. Fails with the first group whose positions do not ascend.
pub(super) fn unpack_two_of_four(
    width: Width,
    indices: &[u8],
    first: usize,
    values: &[u8],
    out: &mut [u8],
) -> Result<(), usize> {
    by_width!(width, unpack_two_of_four_of(indices, first, values, out))
}

fn unpack_two_of_four_of<const W: usize>(
    indices: &[u8],
    first: usize,
    values: &[u8],
    out: &mut [u8],
) -> Result<(), usize> {
    let (out, values) = (out.as_chunks_mut::<W>().0, values.as_chunks::<W>().0);
    let groups = first / GROUP..(first + out.len()).div_ceil(GROUP);
    for (group, pair) in groups.zip(values.as_chunks::<2>().0) {
        let nibble = indices[group / 2] >> (4 * (group % 2)) & 0xf;
        let places = [nibble & 3, nibble >> 2];
        if places[0] >= places[1] {
            return Err(group);
        }
        for (place, value) in places.into_iter().zip(pair) {
            let place = (group * GROUP + usize::from(place)).checked_sub(first);
            if let Some(slot) = place.and_then(|place| out.get_mut(place)) {
                *slot = *value;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Rows of elements of which about a share is zero, one byte of the others at least is not.
    fn rows(width: Width, rows: usize, cols: usize, zeros: u8, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        let element = |_| match next() {
            random if random[7] < zeros => vec![0; width.bytes()],
            random => random[..width.bytes()].to_vec(),
        };
        (0..rows * cols).flat_map(element).collect()
    }

    const WIDTHS: [Width; 4] = [Width::One, Width::Two, Width::Four, Width::Eight];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn any_part_of_a_row_comes_back(
            width in 0..4usize, cols in 0..70usize, zeros: u8, seed: u64, cut in (0..70usize, 0..70usize),
        ) {
            let width = WIDTHS[width];
            let row = rows(width, 1, cols, zeros, seed);
            let packed = pack_bitmask(width, &row, cols);
            let counted = count(width, &row, cols);
            prop_assert_eq!(packed.values.len(), counted.nonzeros as usize * width.bytes());
            prop_assert_eq!(packed.positions.len(), if cols == 0 { 0 } else { stride(cols) });
            let (first, end) = (cut.0.min(cut.1).min(cols), cut.0.max(cut.1).min(cols));
            let (from, to) = (ones_before(&packed.positions, first), ones_before(&packed.positions, end));
            let mut out = vec![0; (end - first) * width.bytes()];
            let values = &packed.values[from * width.bytes()..to * width.bytes()];
            prop_assert_eq!(unpack_bitmask(width, &packed.positions, first, values, &mut out), to - from);
            prop_assert_eq!(&out[..], &row[first * width.bytes()..end * width.bytes()]);
        }

        #[test]
        fn any_part_of_a_2_of_4_row_comes_back(
            width in 0..4usize, groups in 1..20usize, zeros: u8, seed: u64, cut in (0..80usize, 0..80usize),
        ) {
            let (width, cols) = (WIDTHS[width], groups * GROUP);
            let mut row = rows(width, 1, cols, zeros, seed);
            for (group, bytes) in row.chunks_mut(GROUP * width.bytes()).enumerate() {
                // Zeroes two of four, in all six ways.
                let (a, b) = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)][(seed as usize >> 3).wrapping_add(group) % 6];
                for place in [a, b] {
                    bytes[place * width.bytes()..(place + 1) * width.bytes()].fill(0);
                }
            }
            prop_assert!(count(width, &row, cols).two_of_four);
            let packed = pack_two_of_four(width, &row, cols).unwrap();
            prop_assert_eq!((packed.values.len(), packed.positions.len()), (row.len() / 2, stride(cols)));
            let (first, end) = (cut.0.min(cut.1).min(cols), cut.0.max(cut.1).min(cols));
            let values = &packed.values[first / GROUP * 2 * width.bytes()..];
            let mut out = vec![0; (end - first) * width.bytes()];
            prop_assert_eq!(unpack_two_of_four(width, &packed.positions, first, values, &mut out), Ok(()));
            prop_assert_eq!(&out[..], &row[first * width.bytes()..end * width.bytes()]);
        }
    }

    #[test]
    fn what_only_looks_like_zero_is_kept() {
        let row: Vec<u8> = [0f32, -0.0, f32::from_bits(1), f32::from_bits(0x7f80_0001), 0.0, 0.0, 0.0, 0.0, 2.0]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let packed = pack_bitmask(Width::Four, &row, 9);
        assert_eq!((packed.positions.as_slice(), packed.kept.as_slice()), (&[0b1110, 1][..], &[4][..]));
        assert_eq!(packed.values, [&row[4..16], &row[32..]].concat());
        assert!(!count(Width::Four, &row, 9).two_of_four, "9 is no multiple of 4");
        assert!(!count(Width::Four, &row[..32], 8).two_of_four, "three of the first four are there");
    }

    #[test]
    fn positions_that_do_not_ascend_are_told() {
        let mut out = [0; 8];
        assert_eq!(unpack_two_of_four(Width::One, &[0b0101_0100], 0, &[1, 2, 3, 4], &mut out), Err(1));
        let mut out = [0; 8];
        assert_eq!(unpack_two_of_four(Width::One, &[0b1110_0001], 0, &[1, 2, 3, 4], &mut out), Err(0));
    }
}
