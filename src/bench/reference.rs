//! The results of operations by definition: sorts, and sums in f64.

use super::problem::{Op, Output, Problem, SOFTMAX_SCALE};
use crate::mask::Mask;
use candle_core::DType;

/// The greatest difference from the reference over its greatest value, and how much of it is rounding; for masks and bytes 0
/// when all are the same and 1 otherwise.
pub(super) fn compare(problem: &Problem, output: &Output) -> (f64, f64) {
    let expected = reference(problem);
    let different = |equal: bool| if equal { 0.0 } else { 1.0 };
    match (&expected, output) {
        (Output::F64(expected), Output::F32(output)) => {
            let output: Vec<f64> = output.iter().map(|&x| x.into()).collect();
            (relative(expected, &output), tolerance(problem))
        }
        (Output::F64(expected), Output::F64(output)) => (relative(expected, output), tolerance(problem)),
        (expected, output) => (different(expected == output), 0.0),
    }
}

/// The error that rounding to f32 may leave in sums: of chunks of 64 squares, of a column's tokens, of a block's 128 columns, of a
/// row's products.
/// A result in bf16, which has 8 bits, is rounded by up to 2^-8 of it; as much again is for partial sums that a library keeps in bf16.
fn tolerance(problem: &Problem) -> f64 {
    match problem.op {
        Op::Sums => 1e-6,
        Op::Gram => 1e-5,
        Op::SparseGpt => 1e-4,
        Op::Matvec { .. } => 1e-5,
        Op::Matmul { .. } => 1.0 / 128.0,
        // Exponentials are those of the device, and results are rounded once.
        Op::Softmax { .. } | Op::Rope { .. } | Op::SwiGlu => match problem.dtype {
            DType::BF16 => 1.0 / 256.0 + 1e-5,
            DType::F16 => 1.0 / 2048.0 + 1e-5,
            _ => 1e-5,
        },
        _ => 0.0,
    }
}

fn relative(expected: &[f64], output: &[f64]) -> f64 {
    if expected.len() != output.len() {
        return f64::INFINITY;
    }
    let greatest = expected.iter().fold(0f64, |most, x| most.max(x.abs()));
    let difference = |(a, b): (&f64, &f64)| if (a - b).is_finite() { (a - b).abs() } else { f64::INFINITY };
    let worst = expected.iter().zip(output).map(difference).fold(0.0, f64::max);
    if worst == 0.0 { 0.0 } else { worst / greatest }
}

fn reference(problem: &Problem) -> Output {
    let Problem { op, rows, cols, weights, norms, other, mask, .. } = problem;
    let (rows, cols) = (*rows, *cols);
    let wide = || weights.iter().map(|&w| f64::from(w));
    // A product of two f32 is exact in f64, so that this rounds as a product in f32 does.
    let selects = matches!(op, Op::Rows(_) | Op::Layer(_) | Op::NofM(..));
    let scores: Vec<f32> = wide()
        .take(if selects { weights.len() } else { 0 })
        .enumerate()
        .map(|(at, w)| (w.abs() * norms.as_ref().map_or(1.0, |norms| f64::from(norms[at % cols]))) as f32)
        .collect();
    if let Some(at) = scores.iter().position(|score| !score.is_finite()) {
        return Output::Bad(at as u64);
    }
    let lowest = |scores: &[f32], k: usize| {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        let mut goes = vec![false; scores.len()];
        order[..k].iter().for_each(|&at| goes[at] = true);
        goes
    };
    let mask_of = |goes: Vec<bool>| Mask::from_fn(rows, cols, |row, col| goes[row * cols + col]);
    let in_groups = |size: usize, k: usize| mask_of(scores.chunks(size).flat_map(|scores| lowest(scores, k)).collect());
    let goes = |row: usize, col: usize| mask.as_ref().is_some_and(|mask| mask.is_pruned(row, col));
    match op {
        Op::Copy => Output::F64(wide().collect()),
        Op::Rows(ks) => Output::Masks(ks.iter().map(|&k| in_groups(cols, k as usize)).collect()),
        Op::Layer(k) => Output::Masks(vec![in_groups(rows * cols, *k)]),
        Op::NofM(n, m) => Output::Masks(vec![in_groups(*m, m - n)]),
        Op::Apply => {
            Output::F64(wide().enumerate().map(|(at, w)| if goes(at / cols, at % cols) { 0.0 } else { w }).collect())
        }
        Op::Sums => {
            let mut sums = vec![0f64; cols];
            wide().enumerate().for_each(|(at, w)| sums[at % cols] += w * w);
            Output::F64(sums)
        }
        Op::Gram => {
            let x: Vec<f64> = wide().collect();
            let product = |at: usize| x.chunks(cols).map(|row| row[at / cols] * row[at % cols]).sum();
            Output::F64((0..cols * cols).map(product).collect())
        }
        Op::SparseGpt => {
            let mut weights: Vec<f64> = wide().collect();
            let upper = |i: usize, j: usize| f64::from(other[i * cols + j]);
            for (row, weights) in weights.chunks_mut(cols).enumerate() {
                for i in (0..cols).filter(|&i| goes(row, i)) {
                    let error = weights[i] / upper(i, i);
                    weights[i] = 0.0;
                    (i + 1..cols).for_each(|j| weights[j] -= error * upper(i, j));
                }
            }
            Output::F64(weights)
        }
        Op::Compress24 => {
            let (mut values, mut index) = (Vec::new(), vec![0u8; rows * cols.div_ceil(8)]);
            for (group, weights) in weights.chunks(4).enumerate() {
                let kept: Vec<usize> = (0..4).filter(|&i| weights[i].to_bits() != 0).collect();
                // Where fewer are kept, zeros stand for them, at the places that PyTorch's conversion gives.
                let (first, second) = match kept[..] {
                    [first, second, ..] => (first, second),
                    [first @ (0 | 1)] => (first, 2),
                    _ => (2, 3),
                };
                values.extend([first, second].map(|i| half::bf16::from_f32(weights[i]).to_bits()));
                let (row, group) = (group / (cols / 4), group % (cols / 4));
                index[row * cols.div_ceil(8) + group / 2] |= ((first | second << 2) as u8) << (group % 2 * 4);
            }
            Output::Compressed(values, index)
        }
        Op::Matvec { .. } | Op::Matmul { .. } => {
            let weights: Vec<f64> = wide().collect();
            let products = other.chunks(cols).flat_map(|x| {
                let product = move |row: &[f64]| row.iter().zip(x).map(|(w, &x)| w * f64::from(x)).sum::<f64>();
                weights.chunks(cols).map(product)
            });
            Output::F64(products.collect())
        }
        &Op::Softmax { queries, window } => {
            let exp = |x: f32, highest: f64| (f64::from(x) * f64::from(SOFTMAX_SCALE) - highest).exp();
            let row = |(row, scores): (usize, &[f32])| {
                let end = cols - queries + row % queries + 1;
                let seen = window.map_or(0, |window| end.saturating_sub(window))..end;
                let sink = if other.is_empty() { f64::NEG_INFINITY } else { other[row / queries % other.len()].into() };
                let own = scores[seen.clone()].iter().map(|&x| f64::from(x) * f64::from(SOFTMAX_SCALE));
                let highest = own.fold(sink, f64::max);
                let sum = scores[seen.clone()].iter().map(|&x| exp(x, highest)).sum::<f64>() + (sink - highest).exp();
                let prob = |(key, &x)| if seen.contains(&key) { exp(x, highest) / sum } else { 0.0 };
                scores.iter().enumerate().map(prob).collect::<Vec<f64>>()
            };
            Output::F64(weights.chunks(cols).enumerate().flat_map(row).collect())
        }
        &Op::Rope { seq, first } => {
            let half = cols / 2;
            let (cos, sin) = other.split_at(other.len() / 2);
            let value = |at: usize| {
                let (row, col) = (at / cols, at % cols);
                let angle = (first + row % seq) * half + col % half;
                let (low, high) =
                    (f64::from(weights[row * cols + col % half]), f64::from(weights[row * cols + col % half + half]));
                let (cos, sin) = (f64::from(cos[angle]), f64::from(sin[angle]));
                if col < half { low * cos - high * sin } else { high * cos + low * sin }
            };
            Output::F64((0..rows * cols).map(value).collect())
        }
        Op::SwiGlu => {
            let silu = |x: f64| x / (1.0 + (-x).exp());
            Output::F64(wide().zip(other).map(|(gate, &up)| silu(gate) * f64::from(up)).collect())
        }
        Op::Mxfp4 => {
            const VALUES: [f64; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
            let value =
                |nibble: u8| if nibble < 8 { VALUES[usize::from(nibble)] } else { -VALUES[usize::from(nibble - 8)] };
            let scale = |at: usize| norms.as_ref().map_or(1.0, |scales| 2f64.powi(scales[at / 16] as i32 - 127));
            let pair = |(at, &byte): (usize, &f32)| {
                let byte = byte as u8;
                [byte & 15, byte >> 4].map(|nibble| value(nibble) * scale(at))
            };
            Output::F64(weights.iter().enumerate().flat_map(pair).collect())
        }
    }
}
