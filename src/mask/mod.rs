//! Selection of the weights that are pruned: patterns, exact selection, masks of one bit a weight, and sets of them as
//! files.

mod alpha;
mod bits;
mod formats;
#[cfg(feature = "cuda")]
mod gpu;
mod ranks;
mod select;
mod set;
mod simd;
mod statistics;
mod validate;

pub use crate::settings::{Pattern, Per, Ties};
pub use alpha::select_alpha;
pub use formats::MaskFormat;
#[cfg(fuzzing)]
pub(crate) use formats::fuzzing;
pub use select::{Criterion, select, select_levels};
pub(crate) use select::{bad_score, drop_smallest};
pub use set::{Comparison, MASKS_SCHEMA, MaskMetadata, MaskSet, Overlap};
pub use statistics::{MaskStatistics, SPARSITY_BINS, Sparsity};
pub use validate::{Violation, ViolationKind};

#[cfg(feature = "report")]
pub(crate) use statistics::place;

use crate::error::{Error, Remedy, Result};
#[cfg(feature = "cuda")]
use candle_core::Device;
use candle_core::Tensor;

impl Pattern {
    /// Fails when the groups do not fill the rows of the linear `name`.
    pub(crate) fn check_width(self, name: &str, cols: usize) -> Result<()> {
        match self {
            Pattern::NofM { m, .. } if !cols.is_multiple_of(m) => {
                let problem = format!("`{name}` has {cols} inputs, which {m} does not divide")
                    .remedy("choose another pattern or skip it");
                Err(Error::argument("pattern", self, problem))
            }
            _ => Ok(()),
        }
    }
}

/// The number of weights, of `n`, that are pruned at a sparsity.
pub(crate) fn count_of(n: usize, sparsity: f64) -> usize {
    (n as f64 * sparsity) as usize
}

/// Refuses a sparsity outside `[0, 1]`.
pub(crate) fn check_sparsities(sparsities: &[f64]) -> Result<()> {
    match sparsities.iter().find(|sparsity| !(0.0..=1.0).contains(*sparsity)) {
        Some(sparsity) => Err(Error::argument("sparsity", sparsity, "must be from 0 to 1")),
        None => Ok(()),
    }
}

/// The masks of `weight (out, in)` at each of `sparsities`, by `|W| * norms` or by `|W|`, as [`select_levels`] makes them, if it is on a
/// device with kernels for what is asked; otherwise `None`, and the CPU's code has to go on.
///
/// # Errors
/// As [`select_levels`], and what the device fails with.
pub(crate) fn select_on_device(
    name: &str,
    weight: &Tensor,
    norms: Option<&[f32]>,
    criterion: Criterion,
    sparsities: &[f64],
) -> Result<Option<Vec<Mask>>> {
    match weight.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => gpu::select_levels(name, weight, norms, criterion, sparsities),
        _ => {
            let _ = (name, norms, criterion, sparsities);
            Ok(None)
        }
    }
}

/// `weight (out, in)` with zeros where the mask has them, and the number of its zeros, if it is on a device with a kernel for that.
///
/// # Errors
/// Those of the device.
pub(crate) fn apply_on_device(weight: &Tensor, mask: &Mask) -> Result<Option<(Tensor, u64)>> {
    match weight.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => gpu::apply(weight, mask),
        _ => {
            let _ = mask;
            Ok(None)
        }
    }
}

/// One bit a weight, `(rows, cols)`; a set bit is a weight that is zero after pruning.
#[derive(Clone, PartialEq, Eq)]
pub struct Mask {
    rows: usize,
    cols: usize,
    /// Each row begins a new word; bit `c % 64` of word `c / 64` is column `c`. Padding bits are 0.
    words: Vec<u64>,
}

crate::debug::one_line!(rich Mask, |mask| {
    format!("Mask({} × {}, {} pruned)", mask.rows, mask.cols, crate::debug::percent(mask.sparsity()))
});

impl Mask {
    /// A mask that prunes nothing.
    pub fn none(rows: usize, cols: usize) -> Mask {
        Mask { rows, cols, words: vec![0; rows * cols.div_ceil(64)] }
    }

    /// `(rows, cols)`, which is `(out, in)` of the weight.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// The mask whose words are these, as a kernel has packed them.
    ///
    /// # Errors
    /// [`Error::Argument`] for another number of words than the shape has.
    #[cfg(feature = "cuda")]
    pub(crate) fn from_words(rows: usize, cols: usize, words: Vec<u64>) -> Result<Mask> {
        if words.len() != rows * cols.div_ceil(64) {
            let problem = format!("({rows}, {cols}) weights have {} words", rows * cols.div_ceil(64));
            return Err(Error::argument("mask words", words.len(), problem));
        }
        Ok(Mask { rows, cols, words })
    }

    /// Marks one weight, which must be within the shape.
    #[cfg(feature = "cuda")]
    pub(crate) fn prune(&mut self, row: usize, col: usize) {
        let at = row * self.words_per_row() + col / 64;
        self.words[at] |= 1 << (col % 64);
    }

    /// All words, row after row.
    #[cfg(feature = "cuda")]
    pub(crate) fn words(&self) -> &[u64] {
        &self.words
    }

    fn words_per_row(&self) -> usize {
        self.cols.div_ceil(64)
    }

    /// Returns whether the weight at `(row, col)` is pruned; `false` outside the shape.
    pub fn is_pruned(&self, row: usize, col: usize) -> bool {
        row < self.rows && col < self.cols && self.words[row * self.words_per_row() + col / 64] >> (col % 64) & 1 == 1
    }

    /// Number of pruned weights.
    pub fn pruned(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Fraction of pruned weights.
    pub fn sparsity(&self) -> f64 {
        self.pruned() as f64 / (self.rows * self.cols).max(1) as f64
    }

    /// The words of each row, to be filled.
    pub(crate) fn rows_mut(&mut self) -> std::slice::ChunksMut<'_, u64> {
        let words = self.words_per_row().max(1);
        self.words.chunks_mut(words)
    }

    /// Calls `zero` with the flat, row-major index of each pruned weight, in order.
    pub fn for_each_pruned(&self, mut zero: impl FnMut(usize)) {
        for (row, words) in self.words.chunks(self.words_per_row().max(1)).enumerate() {
            for (i, &word) in words.iter().enumerate() {
                let mut rest = word;
                while rest != 0 {
                    zero(row * self.cols + i * 64 + rest.trailing_zeros() as usize);
                    rest &= rest - 1;
                }
            }
        }
    }

    /// The mask as NumPy's `packbits` writes it: rows joined without padding, first weight in the highest bit.
    pub fn to_packbits(&self) -> Vec<u8> {
        let mut bytes = vec![0u8; (self.rows * self.cols).div_ceil(8)];
        self.for_each_pruned(|index| bytes[index / 8] |= 0x80 >> (index % 8));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_parse_and_print() {
        for text in ["unstructured", "2:4", "4:8", "1:4"] {
            assert_eq!(text.parse::<Pattern>().unwrap().to_string(), text);
        }
        for text in ["", "4:2", "0:4", "4:4", "2:", "structured"] {
            assert!(text.parse::<Pattern>().unwrap_err().to_string().contains("kept-of-M"), "{text}");
        }
        assert_eq!(Pattern::NofM { n: 1, m: 4 }.sparsity(), Some(0.75));
    }

    #[test]
    fn packbits_is_numpys() {
        let mut mask = Mask::none(3, 3);
        for (row, bits) in mask.rows_mut().zip([0b001u64, 0b100, 0b010]) {
            row[0] = bits;
        }
        // 100 001 010 -> 10000101 0|0000000
        assert_eq!(mask.to_packbits(), [0b1000_0101, 0]);
        assert_eq!(
            (mask.pruned(), mask.is_pruned(1, 2), mask.is_pruned(1, 1), mask.is_pruned(9, 0)),
            (3, true, false, false)
        );
    }
}
