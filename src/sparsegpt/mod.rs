//! SparseGPT (Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot"):
//! weights are pruned column by column, and the columns after each make up for its error.

mod factor;
#[cfg(feature = "cuda")]
mod gpu;

pub use factor::Factor;

use crate::error::{Error, Remedy, Result};
use crate::mask::{Criterion, Mask, Pattern, Per, Ties, drop_smallest, select_levels};
use candle_core::Device;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Rows that one thread works on at a time. It does not depend on the number of threads, and neither do the sums.
const ROWS: usize = 64;

/// Settings of SparseGPT.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SparseGpt {
    /// Columns whose weights are selected together, and after which the columns behind them are brought up to date.
    pub block_size: usize,
    /// The value that is added to the diagonal of the Hessian, as a fraction of its mean.
    pub damping: f64,
}

impl Default for SparseGpt {
    /// Blocks of 128 columns and a damping of 0.01, as in the paper.
    fn default() -> Self {
        SparseGpt { block_size: 128, damping: 0.01 }
    }
}

impl SparseGpt {
    /// Checks the settings on their own.
    ///
    /// # Errors
    /// [`Error::Argument`] for blocks of no columns, or a damping that is negative or not finite.
    pub fn validate(&self) -> Result<()> {
        if self.block_size == 0 {
            return Err(Error::argument("block_size", 0, "must be at least 1".remedy("the paper uses 128")));
        }
        if !(self.damping.is_finite() && self.damping >= 0.0) {
            return Err(Error::argument(
                "damping",
                self.damping,
                "must be a number of at least 0".remedy("the paper uses 0.01"),
            ));
        }
        Ok(())
    }
}

/// As [`sparsegpt`] on `device`, where it has kernels for what is asked; otherwise `None`, and the CPU's code has to go on. Sums are rounded
/// in another order than on the CPU.
///
/// # Errors
/// As [`sparsegpt`], and what the device fails with.
pub(crate) fn sparsegpt_on_device(
    device: &Device,
    name: &str,
    weights: &mut [f32],
    factor: &Factor,
    selection: (Pattern, f64, Ties),
    config: &SparseGpt,
) -> Result<Option<Mask>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => gpu::sparsegpt(device, name, weights, factor, selection, config),
        _ => {
            let _ = (name, weights, factor, selection, config);
            Ok(None)
        }
    }
}

/// The result of SparseGPT for one linear.
#[derive(Clone, Debug)]
pub struct Reconstruction {
    /// The selected weights, which are zero now.
    pub mask: Mask,
    /// The damping that was needed; above the configured one where that did not make the Hessian positive definite.
    pub damping: f64,
}

/// Prunes `weights (out, in)`, row-major, in place: selected weights become 0, the others are updated to make up for them.
///
/// `factor` is that of the linear's input. Unstructured: of each block of `config.block_size` columns exactly
/// `floor(out * columns * sparsity)` weights are pruned, those with the lowest `w^2 / U_jj^2` over all rows, ties by
/// position (lower row, then lower column first); [`Ties::Reference`] prunes one more, and its equals, as the reference
/// implementation does. N:M: of each `m` columns, the `n` with the highest such score stay, judged by the weights as
/// they are when the first of them is reached.
///
/// Weights of dead inputs become 0, and are the first to be selected. Those that were not selected even so are no part of the
/// mask, like zeros that a linear had before.
///
/// # Errors
/// [`Error::Argument`] for a sparsity outside `[0, 1)`, or inputs or a block size that `m` does not divide;
/// [`Error::Tensor`] naming `name` for weights of another width, that are not finite, or whose update overflows. `weights` are
/// in an undefined state then.
pub fn sparsegpt(
    name: &str,
    weights: &mut [f32],
    factor: &Factor,
    pattern: Pattern,
    sparsity: f64,
    config: &SparseGpt,
    ties: Ties,
) -> Result<Reconstruction> {
    let cols = factor.width();
    check_inputs(name, weights, factor, pattern, sparsity, config)?;
    for row in weights.chunks_exact_mut(cols) {
        factor.dead().iter().for_each(|&col| row[col] = 0.0);
    }
    let rows = weights.len() / cols;
    let mut mask = Mask::none(rows, cols);
    let mut mask_rows: Vec<&mut [u64]> = mask.rows_mut().collect();
    for start in (0..cols).step_by(config.block_size) {
        let block = Block::new(factor, start, config.block_size);
        let width = block.diagonal.len();
        if pattern == Pattern::Unstructured {
            let scores = |row: usize, scores: &mut [f32]| {
                let weights = &weights[row * cols + start..][..width];
                scores.iter_mut().enumerate().for_each(|(col, score)| *score = block.score(col, weights[col]));
            };
            let criterion = Criterion { pattern, per: Per::Layer, ties };
            let selected = select_levels(name, (rows, width), criterion, &[sparsity], scores)?;
            for selected in selected {
                selected.for_each_pruned(|index| {
                    let col = start + index % width;
                    mask_rows[index / width][col / 64] |= 1 << (col % 64);
                });
            }
        }
        let end = start + width;
        let behind = MatRef::from_row_major_slice(factor.upper(), cols, cols).submatrix(start, end, width, cols - end);
        weights.par_chunks_mut(ROWS * cols).zip(mask_rows.par_chunks_mut(ROWS)).for_each_init(
            || vec![0f32; ROWS * width],
            |errors, (weights, words)| {
                let height = words.len();
                let each = weights.chunks_exact_mut(cols).zip(words.iter_mut()).zip(errors.chunks_exact_mut(width));
                for ((weights, words), errors) in each {
                    block.prune_row(pattern, &mut weights[start..end], words, errors);
                }
                let weights = MatMut::from_row_major_slice_mut(weights, height, cols).subcols_mut(end, cols - end);
                let errors = MatRef::from_row_major_slice(&errors[..height * width], height, width);
                matmul(weights, Accum::Add, errors, behind, -1.0, Par::Seq);
            },
        );
    }
    check_update(name, weights, cols)?;
    Ok(Reconstruction { mask, damping: factor.damping() })
}

/// Refuses weights that are no longer finite.
pub(crate) fn check_update(name: &str, weights: &[f32], cols: usize) -> Result<()> {
    if let Some(at) = weights.par_iter().position_first(|weight| !weight.is_finite()) {
        let (row, col) = (at / cols, at % cols);
        let problem = format!("the update of row {row}, column {col} overflows").remedy("choose a higher damping");
        return Err(Error::tensor("SparseGPT", name, problem));
    }
    Ok(())
}

/// Refuses what cannot be pruned, before anything is changed.
pub(crate) fn check_inputs(
    name: &str,
    weights: &[f32],
    factor: &Factor,
    pattern: Pattern,
    sparsity: f64,
    config: &SparseGpt,
) -> Result<()> {
    config.validate()?;
    let cols = factor.width();
    if !weights.len().is_multiple_of(cols) {
        let problem = format!("has {} values, which rows of the {cols} inputs of its gram do not make", weights.len());
        return Err(Error::tensor("SparseGPT", name, problem));
    }
    pattern.check_width(name, cols)?;
    match pattern {
        Pattern::Unstructured if !(0.0..1.0).contains(&sparsity) => {
            return Err(Error::argument("sparsity", sparsity, "must be at least 0 and below 1"));
        }
        Pattern::NofM { m, .. } if !config.block_size.is_multiple_of(m) => {
            let problem = format!("pattern {pattern} needs a multiple of {m}, so that no group is in two blocks");
            return Err(Error::argument("block_size", config.block_size, problem));
        }
        _ => {}
    }
    match weights.par_iter().position_first(|weight| !weight.is_finite()) {
        None => Ok(()),
        Some(at) => {
            let (row, col) = (at / cols, at % cols);
            let problem =
                format!("the weight at row {row}, column {col} is {}", weights[at]).remedy("check the checkpoint");
            Err(Error::tensor("SparseGPT", name, problem))
        }
    }
}

/// One block of columns: the part of `U` that acts within it.
pub(crate) struct Block {
    start: usize,
    /// `(width, width)`, row-major.
    upper: Vec<f32>,
    diagonal: Vec<f32>,
}

impl Block {
    fn new(factor: &Factor, start: usize, size: usize) -> Block {
        let cols = factor.width();
        let end = start.saturating_add(size).min(cols);
        let row = |i: usize| &factor.upper()[i * cols..][start..end];
        Block::of(start, (start..end).flat_map(row).copied().collect())
    }

    /// A block of the columns from `start` on, whose part of `U` is `upper`, square and row-major.
    pub(crate) fn of(start: usize, upper: Vec<f32>) -> Block {
        let diagonal = upper.iter().copied().step_by(upper.len().isqrt() + 1).collect();
        Block { start, upper, diagonal }
    }

    /// The growth of the loss when the weight in column `col` of the block is pruned, up to a constant.
    fn score(&self, col: usize, weight: f32) -> f32 {
        let d = self.diagonal[col];
        weight * weight / (d * d)
    }

    /// Prunes the block's columns of one row; writes the error of each pruned weight, over its diagonal, to `errors`.
    /// For N:M, this selects too.
    pub(crate) fn prune_row(&self, pattern: Pattern, weights: &mut [f32], words: &mut [u64], errors: &mut [f32]) {
        let width = weights.len();
        for i in 0..width {
            if let Pattern::NofM { n, m } = pattern
                && i % m == 0
            {
                // Errors of columns that were not reached yet have room for the group's scores.
                self.select_group(i, m - n, &weights[i..i + m], &mut errors[i..i + m], words);
            }
            let col = self.start + i;
            errors[i] = 0.0;
            if words[col / 64] >> (col % 64) & 1 == 1 {
                let error = weights[i] / self.diagonal[i];
                let upper = &self.upper[i * width..][i + 1..width];
                weights[i + 1..].iter_mut().zip(upper).for_each(|(weight, u)| *weight -= error * u);
                weights[i] = 0.0;
                errors[i] = error;
            }
        }
    }

    /// Marks the `drop` weights with the lowest scores of the group that begins at column `first`, ties by position.
    fn select_group(&self, first: usize, drop: usize, weights: &[f32], scores: &mut [f32], words: &mut [u64]) {
        scores.iter_mut().enumerate().for_each(|(i, score)| *score = self.score(first + i, weights[i]));
        drop_smallest(scores, drop, self.start + first, words);
    }
}
