//! Making masks, packing them, and what two of them have in common.

use super::Mask;
use crate::error::{Error, Remedy, Result};

impl Mask {
    /// A mask of the weights `(row, col)` for which `pruned` is true.
    pub fn from_fn(rows: usize, cols: usize, pruned: impl Fn(usize, usize) -> bool) -> Mask {
        let mut mask = Mask::none(rows, cols);
        for (row, words) in mask.rows_mut().enumerate() {
            for col in 0..cols {
                words[col / 64] |= u64::from(pruned(row, col)) << (col % 64);
            }
        }
        mask
    }

    /// Number of pruned weights of each row, `(out,)`.
    pub fn row_counts(&self) -> Vec<u64> {
        if self.cols == 0 {
            return vec![0; self.rows];
        }
        let count = |words: &[u64]| words.iter().map(|word| u64::from(word.count_ones())).sum();
        self.words.chunks(self.words_per_row()).map(count).collect()
    }

    /// Number of pruned weights of each column, `(in,)`.
    pub fn column_counts(&self) -> Vec<u64> {
        let mut counts = vec![0; self.cols];
        self.for_each_pruned(|index| counts[index % self.cols] += 1);
        counts
    }

    /// The weights that both masks prune.
    ///
    /// # Errors
    /// [`Error::Argument`] when the shapes differ; so with the other operations on two masks.
    pub fn and(&self, other: &Mask) -> Result<Mask> {
        self.zip(other, |a, b| a & b)
    }

    /// The weights that either mask prunes.
    ///
    /// # Errors
    /// As [`Mask::and`].
    pub fn or(&self, other: &Mask) -> Result<Mask> {
        self.zip(other, |a, b| a | b)
    }

    /// The complement: prunes the weights that this mask keeps.
    pub fn not(&self) -> Mask {
        let mut mask = Mask { words: self.words.iter().map(|word| !word).collect(), ..*self };
        mask.clear_padding();
        mask
    }

    /// Jaccard index of the pruned weights: those that both prune over those that either prunes; 1 when none is.
    ///
    /// # Errors
    /// As [`Mask::and`].
    pub fn jaccard(&self, other: &Mask) -> Result<f64> {
        let (both, either) = self.overlap(other)?;
        Ok(jaccard(both, either))
    }

    /// Returns whether `other` prunes every weight that this mask prunes.
    ///
    /// # Errors
    /// As [`Mask::and`].
    pub fn is_nested_in(&self, other: &Mask) -> Result<bool> {
        self.check_shape(other)?;
        Ok(self.words.iter().zip(&other.words).all(|(a, b)| a & !b == 0))
    }

    /// Number of weights that both prune, and that either prunes.
    pub(super) fn overlap(&self, other: &Mask) -> Result<(u64, u64)> {
        self.check_shape(other)?;
        Ok(self.words.iter().zip(&other.words).fold((0, 0), |(both, either), (a, b)| {
            (both + u64::from((a & b).count_ones()), either + u64::from((a | b).count_ones()))
        }))
    }

    fn check_shape(&self, other: &Mask) -> Result<()> {
        if self.shape() == other.shape() {
            return Ok(());
        }
        let problem = format!("the other mask has {:?}", other.shape()).remedy("both must be of the same linear");
        Err(Error::argument("mask shape", format!("{:?}", self.shape()), problem))
    }

    fn zip(&self, other: &Mask, op: impl Fn(u64, u64) -> u64) -> Result<Mask> {
        self.check_shape(other)?;
        let words = self.words.iter().zip(&other.words).map(|(a, b)| op(*a, *b)).collect();
        Ok(Mask { words, ..*self })
    }

    fn clear_padding(&mut self) {
        let used = self.cols % 64;
        if used != 0 {
            for words in self.rows_mut() {
                if let Some(last) = words.last_mut() {
                    *last &= (1 << used) - 1;
                }
            }
        }
    }

    /// One bit a weight, each row from a new byte on: `(rows, ceil(cols / 8))` bytes, column `c` is bit `c % 8` (the lowest
    /// is 0) of byte `c / 8`, unused bits are 0. NumPy: `packbits(mask, axis=1, bitorder="little")`.
    pub fn to_packed(&self) -> Vec<u8> {
        let width = self.cols.div_ceil(8);
        let mut bytes = Vec::with_capacity(self.rows * width);
        if width > 0 {
            for words in self.words.chunks(self.words_per_row()) {
                let end = bytes.len() + width;
                words.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
                bytes.truncate(end);
            }
        }
        bytes
    }

    /// The mask that [`Mask::to_packed`] gave as `bytes`.
    pub(super) fn from_packed(rows: usize, cols: usize, bytes: &[u8]) -> Result<Mask, String> {
        let width = cols.div_ceil(8);
        if rows.checked_mul(width) != Some(bytes.len()) {
            return Err(format!("{} bytes are not the {rows} rows of {width} that {cols} columns need", bytes.len()));
        }
        let mut mask = Mask::none(rows, cols);
        if width == 0 {
            return Ok(mask);
        }
        for (words, bytes) in mask.rows_mut().zip(bytes.chunks(width)) {
            for (word, bytes) in words.iter_mut().zip(bytes.chunks(8)) {
                let mut eight = [0; 8];
                eight[..bytes.len()].copy_from_slice(bytes);
                *word = u64::from_le_bytes(eight);
            }
        }
        let unpadded = mask.clone();
        mask.clear_padding();
        let same = mask == unpadded;
        same.then_some(mask).ok_or_else(|| "bits beyond the last column are set".to_owned())
    }

    /// One byte a weight, `(rows, cols)`, 1 for pruned.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.rows * self.cols];
        self.for_each_pruned(|index| bytes[index] = 1);
        bytes
    }

    /// The mask of one byte a weight, the one at `(row, col)` at `offset + row * strides[0] + col * strides[1]`; all must
    /// be 0 or 1.
    pub(super) fn from_bytes(
        (rows, cols): (usize, usize),
        bytes: &[u8],
        offset: usize,
        strides: [usize; 2],
    ) -> Result<Mask, String> {
        if rows == 0 || cols == 0 {
            return Ok(Mask::none(rows, cols));
        }
        let end = |n: usize, stride: usize| (n - 1).checked_mul(stride);
        let last =
            end(rows, strides[0]).zip(end(cols, strides[1])).and_then(|(a, b)| a.checked_add(b)?.checked_add(offset));
        if last.is_none_or(|last| last >= bytes.len()) {
            return Err(format!("{} bytes are too few for ({rows}, {cols})", bytes.len()));
        }
        let mut mask = Mask::none(rows, cols);
        for (row, words) in mask.rows_mut().enumerate() {
            let start = offset + row * strides[0];
            let mut or = 0;
            for (i, word) in words.iter_mut().enumerate() {
                for bit in 0..64.min(cols - i * 64) {
                    let byte = bytes[start + (i * 64 + bit) * strides[1]];
                    or |= byte;
                    *word |= u64::from(byte & 1) << bit;
                }
            }
            if or > 1 {
                let col = (0..cols).find(|col| bytes[start + col * strides[1]] > 1).unwrap_or_default();
                let value = bytes[start + col * strides[1]];
                return Err(format!("holds {value} at row {row}, column {col}; a mask is 0 (kept) or 1 (pruned)"));
            }
        }
        Ok(mask)
    }
}

/// Jaccard index of two sets, by the sizes of their intersection and union.
pub(super) fn jaccard(both: u64, either: u64) -> f64 {
    if either == 0 { 1.0 } else { both as f64 / either as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stripes(cols: usize) -> Mask {
        Mask::from_fn(3, cols, |row, col| (row + col) % 3 == 0)
    }

    #[test]
    fn set_algebra_at_word_borders() {
        for cols in [1, 7, 8, 63, 64, 65, 130] {
            let (a, b) = (stripes(cols), Mask::from_fn(3, cols, |_, col| col % 2 == 0));
            let by_bit = |f: fn(bool, bool) -> bool| {
                Mask::from_fn(3, cols, |row, col| f(a.is_pruned(row, col), b.is_pruned(row, col)))
            };
            assert_eq!(a.and(&b).unwrap(), by_bit(|a, b| a && b));
            assert_eq!(a.or(&b).unwrap(), by_bit(|a, b| a || b));
            assert_eq!((a.not(), a.not().not()), (by_bit(|a, _| !a), a.clone()));
            assert_eq!(a.pruned() + a.not().pruned(), 3 * cols as u64);
            assert!(a.and(&b).unwrap().is_nested_in(&a).unwrap() && !a.is_nested_in(&a.not()).unwrap());
            assert_eq!((a.jaccard(&a).unwrap(), a.jaccard(&a.not()).unwrap()), (1.0, 0.0));
        }
        let (a, b) = (Mask::from_fn(1, 4, |_, c| c < 3), Mask::from_fn(1, 4, |_, c| c > 0));
        assert_eq!(a.jaccard(&b).unwrap(), 0.5);
        assert_eq!(Mask::none(1, 4).jaccard(&Mask::none(1, 4)).unwrap(), 1.0);
        let error = a.and(&Mask::none(4, 1)).unwrap_err().to_string();
        assert!(error.contains("mask shape = (1, 4)") && error.contains("(4, 1)"), "{error}");
    }

    #[test]
    fn counts_by_row_and_column() {
        let mask = Mask::from_fn(2, 70, |row, col| row == 1 && col >= 60);
        assert_eq!(mask.row_counts(), [0, 10]);
        let columns = mask.column_counts();
        assert_eq!((columns.len(), columns[59], columns[60], columns[69]), (70, 0, 1, 1));
    }

    #[test]
    fn packed_rows() {
        let mask = Mask::from_fn(2, 9, |row, col| row == 0 && col == 1 || row == 1 && col == 8);
        assert_eq!(mask.to_packed(), [0b10, 0, 0, 1]);
        assert_eq!(Mask::from_packed(2, 9, &[0b10, 0, 0, 1]).unwrap(), mask);
        assert!(Mask::from_packed(2, 9, &[0b10, 2, 0, 1]).unwrap_err().contains("beyond the last column"));
        assert!(Mask::from_packed(2, 9, &[0; 3]).unwrap_err().contains("3 bytes"));
        assert!(Mask::from_packed(usize::MAX, 9, &[0; 3]).is_err());
    }

    #[test]
    fn strided_bytes() {
        let bytes = [9, 0, 1, 1, 0, 1, 0];
        let mask = Mask::from_bytes((2, 3), &bytes, 1, [1, 2]).unwrap(); // columns first
        assert_eq!(mask.to_bytes(), [0, 1, 1, 1, 0, 0]);
        let problem = Mask::from_bytes((1, 3), &[0, 1, 2], 0, [3, 1]).unwrap_err();
        assert!(problem.contains("holds 2 at row 0, column 2"), "{problem}");
        for (offset, strides) in [(2, [1, 2]), (0, [usize::MAX, 1]), (usize::MAX, [1, 1])] {
            assert!(Mask::from_bytes((2, 3), &bytes, offset, strides).is_err());
        }
    }
}
