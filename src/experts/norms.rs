//! Scores of experts from the weights alone: the norms of an expert's rows in the router, and of its weights.

use super::layout::{ExpertLayout, Role};
use crate::checkpoint::{Source, TensorInfo};
use crate::error::{Error, Remedy, Result};
use crate::model::mxfp4::{NAN_SCALE, VALUES};
use crate::progress::Progress;
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;
use std::path::Path;

/// Squares of the values of MXFP4.
const FP4_SQUARES: [f64; 16] = {
    let mut squares = [0.0; 16];
    let mut nibble = 0;
    while nibble < 16 {
        squares[nibble] = VALUES[nibble] as f64 * VALUES[nibble] as f64;
        nibble += 1;
    }
    squares
};
/// Bytes of an MXFP4 block, which share a scale.
const BLOCK: usize = 16;

/// L2 norm of each expert's row in the router's weight, by layer: `(layers, experts)`.
///
/// # Errors
/// [`Error::Tensor`] when the router is not of floating point; those of [`Source::stream`].
pub fn router_norms(source: &dyn Source, layout: &ExpertLayout, progress: Progress) -> Result<Vec<Vec<f64>>> {
    let is_router = |role: Role, info: &TensorInfo| role == Role::Router && info.name.ends_with(".weight");
    norms(source, layout, "router norms", progress, is_router)
}

/// Frobenius norm of each expert's weights, biases left out, by layer: `(layers, experts)`. MXFP4 weights count with their
/// scales. Reads every expert once.
///
/// # Errors
/// [`Error::Tensor`] for weights in another quantised type, and where one is NaN or infinite; those of [`Source::stream`].
pub fn weight_norms(source: &dyn Source, layout: &ExpertLayout, progress: Progress) -> Result<Vec<Vec<f64>>> {
    let is_weight = |role: Role, info: &TensorInfo| {
        role != Role::Router && !info.name.ends_with("bias") && !info.name.ends_with("_scales")
    };
    norms(source, layout, "weight norms", progress, is_weight)
}

fn norms(
    source: &dyn Source,
    layout: &ExpertLayout,
    what: &str,
    progress: Progress,
    wanted: impl Fn(Role, &TensorInfo) -> bool,
) -> Result<Vec<Vec<f64>>> {
    // One slice of one tensor is one task, and its sum of squares goes to one expert.
    let mut tasks = Vec::new();
    for (row, &layer) in layout.mixtures.keys().enumerate() {
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
    let mut norms = vec![vec![0.0; layout.experts]; layout.mixtures.len()];
    for (&(row, expert, ..), squares) in tasks.iter().zip(squares) {
        norms[row][expert] += squares;
    }
    norms.iter_mut().flatten().for_each(|norm| *norm = norm.sqrt());
    Ok(norms)
}

/// Sum of squares of slice `slice` of `slices` along the dimension of the experts, which is the first.
fn sum_of_squares(
    source: &dyn Source,
    layout: &ExpertLayout,
    info: &TensorInfo,
    slice: usize,
    slices: usize,
) -> Result<f64> {
    let path = |info: &TensorInfo| Path::new(&source.origin()).join(&source.files()[info.shard]);
    if slices > 1 && layout.family.expert_dim != 0 {
        return Err(Error::tensor(path(info), &info.name, "norms need the experts in the first dimension"));
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
            if scales.bytes().checked_mul(BLOCK as u64) != Some(info.bytes()) {
                return Err(Error::tensor(
                    path(info),
                    &info.name,
                    format!("16 bytes for each scale of {name} are wanted"),
                ));
            }
            let mut bytes = Vec::new();
            source.stream(scales.shard, part(scales), &mut |piece| {
                bytes.extend_from_slice(piece);
                Ok(())
            })?;
            if let Some(at) = bytes.iter().position(|&scale| scale == NAN_SCALE) {
                let at = slice * bytes.len() + at;
                let problem = format!("scale {at} is {NAN_SCALE}, which stands for NaN; the model is damaged");
                return Err(Error::tensor(path(scales), name, problem));
            }
            bytes
        }
        (Dtype::BF16 | Dtype::F16 | Dtype::F32 | Dtype::F64, _) => Vec::new(),
        (other, _) => {
            let problem = format!("norms of {other} weights are not supported").remedy("choose by router-norm");
            return Err(Error::tensor(path(info), &info.name, problem));
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
                    let of = |nibble: u8| FP4_SQUARES[usize::from(nibble)];
                    let squares: f64 = values.iter().map(|&pair| of(pair & 15) + of(pair >> 4)).sum();
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
        Err(Error::tensor(path(info), &info.name, "holds NaN or infinite values; the model is damaged"))
    }
}

/// Adds the squares of whole elements to `sum`; returns the bytes that they take.
fn squares<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f64, sum: &mut f64) -> usize {
    let (elements, rest) = bytes.as_chunks::<N>();
    *sum += elements.iter().map(|&element| value(element).powi(2)).sum::<f64>();
    bytes.len() - rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use std::path::PathBuf;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
    }

    fn of(dir: &Path) -> Result<Vec<Vec<f64>>> {
        let source = Checkpoint::open(dir).unwrap();
        weight_norms(&source, &ExpertLayout::find(&source).unwrap(), Progress::Hidden)
    }

    #[test]
    fn mxfp4_weights_have_the_norms_of_what_they_unpack_to() {
        let [packed, floats] = ["tiny-gpt-oss-mxfp4", "tiny-gpt-oss-f32"].map(|name| of(&fixture(name)).unwrap());
        assert_eq!(packed.len(), floats.len());
        for (packed, floats) in packed.iter().flatten().zip(floats.iter().flatten()) {
            assert!((packed - floats).abs() < 1e-9 * floats && *floats > 0.0, "{packed} is not {floats}");
        }
    }

    #[test]
    fn the_scale_that_stands_for_nan_is_refused_by_name() {
        let (dir, source) = (tempfile::tempdir().unwrap(), fixture("tiny-gpt-oss-mxfp4"));
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(source.join(file), dir.path().join(file)).unwrap();
        }
        let name = "model.layers.1.mlp.experts.down_proj_scales";
        let start = Checkpoint::open(&source).unwrap().get(name).unwrap().range.start;
        let weights = dir.path().join("model.safetensors");
        let mut bytes = std::fs::read(&weights).unwrap();
        let with = |scale: u8, bytes: &mut Vec<u8>| {
            bytes[start as usize + 17] = scale;
            std::fs::write(&weights, bytes).unwrap();
            of(dir.path())
        };
        let huge = with(NAN_SCALE - 1, &mut bytes).unwrap();
        assert!(huge.iter().flatten().any(|&norm| norm > f64::powi(2.0, 120)), "{huge:?}");
        let error = with(NAN_SCALE, &mut bytes).unwrap_err().to_string();
        for part in ["model.safetensors", name, "scale 17 is 255", "NaN"] {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
    }
}
