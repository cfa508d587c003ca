//! What the weights alone say about an expert: the norms of its rows in the router, and of its weights.

use super::layout::{Layout, Role};
use crate::checkpoint::{Source, TensorInfo};
use crate::progress::Progress;
use crate::{Error, Result};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;
use std::path::Path;

/// Squares of the values of FP4 (E2M1) by the three bits beside its sign.
const FP4_SQUARES: [f64; 8] = [0.0, 0.25, 1.0, 2.25, 4.0, 9.0, 16.0, 36.0];
/// Bytes of an MXFP4 block, which share a scale.
const BLOCK: usize = 16;

/// L2 norm of each expert's row in the router's weight, by layer: `(layers, experts)`.
///
/// # Errors
/// [`Error::Tensor`] when the router is not of floating point; those of [`Source::stream`].
pub fn router_norms(source: &dyn Source, layout: &Layout, progress: Progress) -> Result<Vec<Vec<f64>>> {
    let is_router = |role: Role, info: &TensorInfo| role == Role::Router && info.name.ends_with(".weight");
    norms(source, layout, "router norms", progress, is_router)
}

/// Frobenius norm of each expert's weights, biases left out, by layer: `(layers, experts)`. MXFP4 weights count with their
/// scales. Reads every expert once.
///
/// # Errors
/// [`Error::Tensor`] for weights in another quantised type; those of [`Source::stream`].
pub fn weight_norms(source: &dyn Source, layout: &Layout, progress: Progress) -> Result<Vec<Vec<f64>>> {
    let is_weight = |role: Role, info: &TensorInfo| {
        role != Role::Router && !info.name.ends_with("bias") && !info.name.ends_with("_scales")
    };
    norms(source, layout, "weight norms", progress, is_weight)
}

fn norms(
    source: &dyn Source,
    layout: &Layout,
    what: &str,
    progress: Progress,
    wanted: impl Fn(Role, &TensorInfo) -> bool,
) -> Result<Vec<Vec<f64>>> {
    // One slice of one tensor is one task, and its sum of squares goes to one expert.
    let mut tasks = Vec::new();
    for (row, &layer) in layout.layers.keys().enumerate() {
        for (role, info) in layout.tensors(source, layer).filter(|(role, info)| wanted(*role, info)) {
            match role {
                Role::Expert(expert) => tasks.push((row, expert, info, 0, 1)),
                _ => tasks.extend((0..layout.experts).map(|expert| (row, expert, info, expert, layout.experts))),
            }
        }
    }
    let stage = progress.stage(what, tasks.len() as u64);
    let squares: Vec<f64> = tasks
        .par_iter()
        .map(|&(_, _, info, slice, slices)| {
            let squares = sum_of_squares(source, layout, info, slice, slices)?;
            stage.inc(1)?;
            Ok(squares)
        })
        .collect::<Result<_>>()?;
    let mut norms = vec![vec![0.0; layout.experts]; layout.layers.len()];
    for (&(row, expert, ..), squares) in tasks.iter().zip(squares) {
        norms[row][expert] += squares;
    }
    norms.iter_mut().flatten().for_each(|norm| *norm = norm.sqrt());
    Ok(norms)
}

/// Sum of squares of slice `slice` of `slices` along the dimension of the experts, which is the first.
fn sum_of_squares(source: &dyn Source, layout: &Layout, info: &TensorInfo, slice: usize, slices: usize) -> Result<f64> {
    let path = || Path::new(&source.origin()).join(&source.files()[info.shard]);
    if slices > 1 && layout.family.expert_dim != 0 {
        return Err(Error::tensor(path(), &info.name, "norms need the experts in the first dimension"));
    }
    let part = |info: &TensorInfo| {
        let bytes = info.bytes() / slices as u64;
        let start = info.range.start + slice as u64 * bytes;
        start..start + bytes
    };
    let mut sum = 0.0;
    let scales = match (info.dtype, info.name.strip_suffix("_blocks")) {
        (Dtype::U8, Some(stem)) => {
            let name = format!("{stem}_scales");
            let scales = source.index().iter().find(|other| other.name == name);
            let scales =
                scales.ok_or_else(|| Error::tensor(source.origin(), &name, "MXFP4 blocks need it, it is missing"))?;
            if scales.bytes() * BLOCK as u64 != info.bytes() {
                return Err(Error::tensor(path(), &info.name, format!("16 bytes for each scale of {name} are wanted")));
            }
            let mut bytes = Vec::new();
            source.stream(scales.shard, part(scales), &mut |piece| {
                bytes.extend_from_slice(piece);
                Ok(())
            })?;
            bytes
        }
        (Dtype::BF16 | Dtype::F16 | Dtype::F32 | Dtype::F64, _) => Vec::new(),
        (other, _) => {
            let problem = format!("norms of {other} weights are not supported; choose by router-norm");
            return Err(Error::tensor(path(), &info.name, problem));
        }
    };
    // What a piece ends with may be half an element.
    let mut rest: Vec<u8> = Vec::new();
    let mut block = 0;
    source.stream(info.shard, part(info), &mut |piece| {
        let joined;
        let bytes = if rest.is_empty() {
            piece
        } else {
            joined = [&rest[..], piece].concat();
            &joined
        };
        let used = match info.dtype {
            Dtype::BF16 => squares::<2>(bytes, |b| f64::from(bf16::from_le_bytes(b).to_f32()), &mut sum),
            Dtype::F16 => squares::<2>(bytes, |b| f64::from(f16::from_le_bytes(b).to_f32()), &mut sum),
            Dtype::F32 => squares::<4>(bytes, |b| f64::from(f32::from_le_bytes(b)), &mut sum),
            Dtype::F64 => squares::<8>(bytes, f64::from_le_bytes, &mut sum),
            _ => {
                let blocks = bytes.chunks_exact(BLOCK);
                let used = bytes.len() - blocks.remainder().len();
                for values in blocks {
                    let of = |nibble: u8| FP4_SQUARES[(nibble & 7) as usize];
                    let squares: f64 = values.iter().map(|&pair| of(pair) + of(pair >> 4)).sum();
                    sum += squares * f64::powi(4.0, i32::from(scales[block]) - 127);
                    block += 1;
                }
                used
            }
        };
        rest = bytes[used..].to_vec();
        Ok(())
    })?;
    if sum.is_finite() {
        Ok(sum)
    } else {
        Err(Error::tensor(path(), &info.name, "holds NaN or infinite values; the model is damaged"))
    }
}

/// Adds the squares of whole elements to `sum`; returns the bytes that they take.
fn squares<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f64, sum: &mut f64) -> usize {
    let (elements, rest) = bytes.as_chunks::<N>();
    *sum += elements.iter().map(|&element| value(element).powi(2)).sum::<f64>();
    bytes.len() - rest.len()
}
