//! A reference implementation of each CUDA kernel on the CPU: the same results from slices, by the code that prunes without a GPU.
//!
//! Tests compare the kernels with these, run by an emulation where there is no device. Weights of 16 bits are given widened
//! to f32, which is exact.

use crate::calibrate;
use crate::checkpoint::pack_two_of_four_16;
use crate::error::{Error, Result};
use crate::importance::{Inputs, Method, Scorer};
use crate::mask::{Criterion, Mask, Pattern, Per, Ties, select_levels};
use crate::model::{CausalSoftmax, mxfp4, rotate, swiglu_values};
use crate::sparsegpt::Block;
use half::bf16;

/// Elements of a group of 2:4.
const GROUP: usize = 4;
/// Lanes of a warp.
const LANES: usize = 32;

/// The flat index of the first score of `weights (rows, cols)` that is NaN or infinite; `norms (cols,)` are those of the
/// input's columns, without which scores are `|w|`.
///
/// # Errors
/// [`Error::Tensor`] when the sizes do not fit.
pub fn first_bad(weights: &[f32], norms: Option<&[f32]>, cols: usize) -> Result<Option<u64>> {
    let scores = scorer(weights, norms, cols)?.scores();
    Ok(scores.iter().position(|score| !score.is_finite()).map(|at| at as u64))
}

/// `select_rows`: for each of `ks` a mask of the `k` smallest scores of each row, ties by position. Sizes as for
/// [`first_bad`].
///
/// # Errors
/// [`Error::Tensor`] when the sizes do not fit or a score is not finite; [`Error::Argument`] for a `k` above `cols`.
pub fn select_rows(weights: &[f32], norms: Option<&[f32]>, cols: usize, ks: &[u32]) -> Result<Vec<Mask>> {
    let ks: Vec<u64> = ks.iter().map(|&k| k.into()).collect();
    select(weights, norms, cols, Pattern::Unstructured, Per::Row, &ks)
}

/// The `layer_*` kernels: a mask of the `k` smallest scores of all, ties by position.
///
/// # Errors
/// Those of [`select_rows`].
pub fn select_layer(weights: &[f32], norms: Option<&[f32]>, cols: usize, k: u64) -> Result<Mask> {
    one(select(weights, norms, cols, Pattern::Unstructured, Per::Layer, &[k])?)
}

/// `select_nofm`: a mask that leaves the `n` largest scores of each `m` consecutive ones.
///
/// # Errors
/// Those of [`select_rows`]; [`Error::Argument`] when `m` does not divide `cols`.
pub fn select_nofm(weights: &[f32], norms: Option<&[f32]>, cols: usize, n: usize, m: usize) -> Result<Mask> {
    one(select(weights, norms, cols, Pattern::NofM { n, m }, Per::Row, &[0])?)
}

fn select(
    weights: &[f32],
    norms: Option<&[f32]>,
    cols: usize,
    pattern: Pattern,
    per: Per,
    ks: &[u64],
) -> Result<Vec<Mask>> {
    let scorer = scorer(weights, norms, cols)?;
    let of = if per == Per::Row { cols } else { weights.len() };
    // In the middle between two shares, so that rounding cannot give another count.
    let share = |&k: &u64| if k == of as u64 { 1.0 } else { (k as f64 + 0.5) / of as f64 };
    let sparsities: Vec<f64> = ks.iter().map(share).collect();
    let criterion = Criterion { pattern, per, ties: Ties::ByPosition };
    select_levels("weights", scorer.shape(), criterion, &sparsities, |row, scores| scorer.row(row, scores))
}

fn one(masks: Vec<Mask>) -> Result<Mask> {
    masks.into_iter().next().ok_or_else(|| Error::argument("levels", 0, "give no mask"))
}

fn scorer<'a>(weights: &'a [f32], norms: Option<&'a [f32]>, cols: usize) -> Result<Scorer<'a>> {
    let method = if norms.is_some() { Method::Wanda } else { Method::Magnitude };
    let shape = (weights.len() / cols.max(1), cols);
    Scorer::new(method, "weights", weights, shape, Inputs { norms, ..Inputs::default() })
}

/// `apply_mask`: sets what `mask` prunes to zero. Panics when `weights` are fewer than the mask's.
pub fn apply_mask<T: Copy + Default>(weights: &mut [T], mask: &Mask) {
    mask.for_each_pruned(|at| weights[at] = T::default());
}

/// `column_sums` and `fold_sums`: the sums of the squares and of the values of each column of `x (tokens, cols)`, `(cols,)`
/// each.
pub fn column_sums(x: &[f32], cols: usize) -> (Vec<f64>, Vec<f64>) {
    (calibrate::column_sums(x, cols, |x| x * x), calibrate::column_sums(x, cols, |x| x))
}

/// `sparsegpt_block`: prunes columns `first..first + count` of `weights (rows, cols)`, `upper (count, count)` being that part
/// of the factor, and returns the errors `(rows, count)`. Pruned are the weights that `mask` marks; for N:M they are chosen, and
/// marked there. Panics when the sizes do not fit.
pub fn sparsegpt_block(
    weights: &mut [f32],
    first: usize,
    upper: &[f32],
    pattern: Pattern,
    mask: &mut Mask,
) -> Vec<f32> {
    let (block, count, (rows, cols)) = (Block::of(first, upper.to_vec()), upper.len().isqrt(), mask.shape());
    let mut errors = vec![0.0; rows * count];
    let each = weights.chunks_exact_mut(cols).zip(mask.rows_mut()).zip(errors.chunks_exact_mut(count));
    each.for_each(|((weights, words), errors)| {
        block.prune_row(pattern, &mut weights[first..first + count], words, errors);
    });
    errors
}

/// `mxfp4_dequantise`: weights in groups of 32 from `blocks (groups, 16)` and `scales (groups,)`.
pub fn mxfp4_dequantise(blocks: &[u8], scales: &[u8]) -> Vec<f32> {
    let group = |(bytes, &scale): (&[u8; 16], &u8)| {
        let (bytes, power) = (*bytes, mxfp4::power(scale));
        let pair = move |byte: u8| [byte & 15, byte >> 4].map(|nibble| mxfp4::VALUES[usize::from(nibble)] * power);
        bytes.into_iter().flat_map(pair)
    };
    blocks.as_chunks::<16>().0.iter().zip(scales).flat_map(group).collect()
}

/// `causal_softmax`: of each row of `scores (rows, keys)` `softmax(scores * scale)` over the keys that its query sees, zeros
/// elsewhere. The query in row `r` stands at position `past + r % queries` and sees up to itself, at most `window` keys.
/// `sinks (heads,)` take part as one more key; rows are `(batch, heads, queries)`.
pub fn causal_softmax(
    scores: &[f32],
    keys: usize,
    (queries, past, window): (usize, usize, Option<usize>),
    scale: f32,
    sinks: Option<&[f32]>,
) -> Vec<f32> {
    CausalSoftmax { scale, past, window, queries }.rows(scores, keys, sinks.unwrap_or(&[f32::NEG_INFINITY]))
}

/// `rope`: the halves of each row of `x (.., seq, dim)` rotated by the angles of its position, of which the first is `first`; `cos`
/// and `sin` are `(positions, dim / 2)`.
pub fn rope(x: &[f32], (cos, sin): (&[f32], &[f32]), (seq, dim, first): (usize, usize, usize)) -> Vec<f32> {
    rotate(x, (cos, sin), (seq, dim, first))
}

/// `swiglu`: `silu(gate) * up`.
pub fn swiglu(gate: &[f32], up: &[f32]) -> Vec<f32> {
    swiglu_values(gate, up)
}

/// `compress24_16`: the kept elements `(rows, cols / 2)` of 16-bit `weights (rows, cols)` and their places `(rows, ceil(cols /
/// 8))`, as sparse checkpoints have them. What `mask` prunes counts as zero.
///
/// # Errors
/// The flat index of the first group of four that keeps more than two.
pub fn compress24(weights: &[u16], mask: Option<&Mask>, cols: usize) -> Result<(Vec<u16>, Vec<u8>), u64> {
    let mut weights = weights.to_vec();
    if let Some(mask) = mask {
        apply_mask(&mut weights, mask);
    }
    pack_two_of_four_16(&weights, cols).ok_or_else(|| {
        let full = |group: &[u16]| group.iter().filter(|bits| **bits != 0).count() > 2;
        weights.chunks(GROUP).position(full).unwrap_or_default() as u64
    })
}

/// `to_cutlass`: the metadata `(rows, cols / 16)` that CUTLASS's sparse kernels for 16-bit types read, in their order, from the
/// places that [`compress24`] gives.
///
/// # Errors
/// [`Error::Argument`] when 32 does not divide both `rows` and `cols`.
pub fn to_cutlass(index: &[u8], rows: usize, cols: usize) -> Result<Vec<u16>> {
    if !rows.is_multiple_of(32) || !cols.is_multiple_of(32) || index.len() != rows * cols / 8 {
        let problem = "must be multiples of 32 with a byte for 8 weights";
        return Err(Error::argument("rows x cols", format!("{rows} x {cols}"), problem));
    }
    let (mut meta, width) = (vec![0; rows * cols / 16], cols / 16);
    for (at, places) in index.as_chunks::<2>().0.iter().enumerate() {
        let (row, col) = (at / width, at % width);
        let row = row / 32 * 32 + row % 8 * 4 + row % 32 / 8;
        // The corners off the diagonal of each 2 x 2 block change places.
        let (row, col) = (row / 2 * 2 + col % 2, col / 2 * 2 + row % 2);
        meta[col / 2 * rows * 2 + row * 2 + col % 2] = u16::from_le_bytes(*places);
    }
    Ok(meta)
}

/// `matvec_bf16`: `y (batch, rows)` from `weights (rows, cols)` and `x (batch, cols)`, with the kernel's order of sums.
pub fn matvec(weights: &[bf16], x: &[bf16], cols: usize) -> Vec<f32> {
    products(x, cols, weights.len() / cols, 8, |row, col| Some(weights[row * cols + col]))
}

/// `matvec_24_bf16`: as [`matvec`], from what [`compress24`] gives.
pub fn matvec24(values: &[bf16], index: &[u8], x: &[bf16], cols: usize) -> Vec<f32> {
    products(x, cols, 2 * values.len() / cols, 16, |row, col| {
        let nibble = index[(row * cols + col) / 8] >> (col / GROUP % 2 * 4);
        let place = [nibble & 3, nibble >> 2 & 3].iter().position(|place| usize::from(*place) == col % GROUP)?;
        Some(values[(row * cols + col) / GROUP * 2 + place])
    })
}

/// Products of rows, where `weight` has an element, with `x (batch, cols)`: lane by lane, `each` columns of every 32nd chunk.
fn products(
    x: &[bf16],
    cols: usize,
    rows: usize,
    each: usize,
    weight: impl Fn(usize, usize) -> Option<bf16>,
) -> Vec<f32> {
    let row = |x: &[bf16], row: usize| {
        let mut sums = [0f32; LANES];
        for (chunk, x) in x.chunks(each).enumerate() {
            for (i, x) in x.iter().enumerate() {
                if let Some(weight) = weight(row, chunk * each + i) {
                    sums[chunk % LANES] = weight.to_f32().mul_add(x.to_f32(), sums[chunk % LANES]);
                }
            }
        }
        let mut half = LANES / 2;
        while half > 0 {
            (0..half).for_each(|lane| sums[lane] += sums[lane + half]);
            half /= 2;
        }
        sums[0]
    };
    x.chunks(cols).flat_map(|x| (0..rows).map(move |at| row(x, at))).collect()
}
