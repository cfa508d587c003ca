//! DSnoT (Zhang et al. 2023, "Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs"): refines a mask by
//! swapping pruned for kept weights, row by row, until what the row's output is expected to lack is small.

use crate::error::{Error, Problem, Remedy, Result};
use crate::mask::{Mask, Pattern};
pub use crate::settings::Dsnot;

use rayon::prelude::*;
use std::cmp::Ordering;

/// Statistics of a linear's input, `(in,)` each.
#[derive(Clone, Copy, Debug)]
pub struct DsnotInputs<'a> {
    /// `||X_j||_2` ([`crate::calibrate::Statistics::column_norms`]).
    pub norms: &'a [f32],
    /// Sum over the tokens of a window, averaged over windows: the mean over tokens times the tokens of a window.
    pub sums: &'a [f32],
    /// Variance over tokens.
    pub variances: &'a [f32],
}

/// Swaps pruned and kept weights of `weights (out, in)`, which are row-major and not zeroed yet, and returns how many pairs
/// were swapped. Each row keeps its number of pruned weights; with an N:M `pattern`, each group does.
///
/// A row's expected error is the sum of `W_ij * sums_j` over its pruned weights. As long as that is above the
/// threshold, the pruned weight that takes most from it is grown, judged by `W_ij * sums_j / variances_j ^ power`.
/// Another weight is pruned in its place. Unstructured: the kept weight with the lowest Wanda score among those whose
/// loss takes from the error too. N:M: the kept weight of the same group with the lowest Wanda score. No weight is
/// swapped twice.
///
/// This is the reference implementation (zyxxmu/DSnoT) with a Wanda mask, and works on any mask. It differs where the
/// reference runs out of candidates: the reference then takes weights of the wrong kind, and changes the number of
/// pruned weights; here the row ends, and a group with no weight left to prune is passed over.
///
/// # Errors
/// [`Error::Argument`] for settings out of range or inputs that `m` does not divide; [`Error::Tensor`] naming `name` for
/// shapes that do not fit each other, and weights or statistics that are not finite.
pub fn refine(
    name: &str,
    weights: &[f32],
    mask: &mut Mask,
    inputs: &DsnotInputs<'_>,
    pattern: Pattern,
    config: &Dsnot,
) -> Result<u64> {
    config.validate()?;
    let (rows, cols) = mask.shape();
    let wrong = |problem: Problem| Err(Error::tensor("DSnoT", name, problem));
    if weights.len() != rows * cols {
        return wrong(format!("has {} values, and its mask is of shape {rows} x {cols}", weights.len()).into());
    }
    for (what, values) in [("norms", inputs.norms), ("sums", inputs.sums), ("variances", inputs.variances)] {
        if values.len() != cols {
            return wrong(format!("has {cols} inputs, and there are {} {what} of them", values.len()).into());
        }
        if let Some(col) = values.iter().position(|value| !value.is_finite()) {
            return wrong(format!("the {what} of input {col} are {}", values[col]).remedy("calibrate in f32"));
        }
    }
    pattern.check_width(name, cols)?;
    if let Some(at) = weights.par_iter().position_first(|weight| !weight.is_finite()) {
        let (row, col) = (at / cols, at % cols);
        return wrong(
            format!("the weight at row {row}, column {col} is {}", weights[at]).remedy("check the checkpoint"),
        );
    }
    if cols == 0 {
        return Ok(0);
    }
    let mut words: Vec<_> = mask.rows_mut().collect();
    let swaps = words
        .par_iter_mut()
        .zip(weights.par_chunks_exact(cols))
        .with_min_len(16)
        .map_init(Candidates::default, |candidates, (words, weights)| {
            refine_row(weights, words, inputs, pattern, config, candidates)
        });
    Ok(swaps.sum())
}

/// Columns to grow or to prune, best last, by the sign of what they contribute.
#[derive(Default)]
struct Candidates {
    grow: Signed,
    prune: Signed,
}

#[derive(Default)]
struct Signed {
    negative: Vec<(f32, usize)>,
    positive: Vec<(f32, usize)>,
}

impl Signed {
    fn clear(&mut self) {
        self.negative.clear();
        self.positive.clear();
    }
}

/// Keeps the first `limit` candidates in the given order, reversed, so that `pop` gives the first.
fn first(candidates: &mut Vec<(f32, usize)>, limit: usize, order: impl Fn(&(f32, usize), &(f32, usize)) -> Ordering) {
    if limit < candidates.len() {
        candidates.select_nth_unstable_by(limit, &order);
        candidates.truncate(limit);
    }
    candidates.sort_unstable_by(|a, b| order(b, a));
}

fn ascending(a: &(f32, usize), b: &(f32, usize)) -> Ordering {
    a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))
}

fn refine_row(
    weights: &[f32],
    words: &mut [u64],
    inputs: &DsnotInputs<'_>,
    pattern: Pattern,
    config: &Dsnot,
    Candidates { grow, prune }: &mut Candidates,
) -> u64 {
    let contribution = |col: usize| weights[col] * inputs.sums[col];
    let wanda = |col: usize| weights[col].abs() * inputs.norms[col];
    let is_pruned = |words: &[u64], col: usize| words[col / 64] >> (col % 64) & 1 == 1;
    let pruned = || (0..weights.len()).filter(|&col| is_pruned(words, col));
    let mut error: f64 = pruned().map(|col| f64::from(contribution(col))).sum();
    if error.abs() <= config.threshold {
        return 0;
    }
    let sign = error.signum();
    [&mut *grow, &mut *prune].into_iter().for_each(Signed::clear);
    for col in pruned() {
        let key = contribution(col) / inputs.variances[col].powf(config.variance_power as f32);
        if key < 0.0 {
            grow.negative.push((key, col));
        } else if key > 0.0 {
            grow.positive.push((key, col));
        }
    }
    first(&mut grow.negative, config.max_cycles, ascending);
    first(&mut grow.positive, config.max_cycles, |a, b| ascending(b, a));
    if pattern == Pattern::Unstructured {
        for col in (0..weights.len()).filter(|&col| !is_pruned(words, col)) {
            let contribution = contribution(col);
            if contribution < 0.0 {
                prune.negative.push((wanda(col), col));
            } else if contribution > 0.0 {
                prune.positive.push((wanda(col), col));
            }
        }
        first(&mut prune.negative, config.max_cycles, ascending);
        first(&mut prune.positive, config.max_cycles, ascending);
    }
    // What may not be pruned any more: weights that were pruned at first, or since.
    let mut barred = match pattern {
        Pattern::Unstructured => Vec::new(),
        Pattern::NofM { .. } => words.to_vec(),
    };
    let mut swaps = 0;
    for _ in 0..config.max_cycles {
        if error.abs() <= config.threshold {
            break;
        }
        let Some((_, grown)) = (if error > 0.0 { grow.positive.pop() } else { grow.negative.pop() }) else { break };
        let dropped = match pattern {
            Pattern::Unstructured => {
                let next = if error > 0.0 { prune.negative.pop() } else { prune.positive.pop() };
                let Some((_, col)) = next else { break };
                col
            }
            Pattern::NofM { m, .. } => {
                let start = grown - grown % m;
                let free = (start..start + m).filter(|&col| !is_pruned(&barred, col));
                let Some((_, col)) = free.map(|col| (wanda(col), col)).min_by(ascending) else { continue };
                col
            }
        };
        let after = error + f64::from(contribution(dropped)) - f64::from(contribution(grown));
        if (config.keep_sign || pattern != Pattern::Unstructured) && (after == 0.0 || after.signum() != sign) {
            break;
        }
        words[grown / 64] &= !(1 << (grown % 64));
        words[dropped / 64] |= 1 << (dropped % 64);
        if let Some(word) = barred.get_mut(dropped / 64) {
            *word |= 1 << (dropped % 64);
        }
        error = after;
        swaps += 1;
    }
    swaps
}
