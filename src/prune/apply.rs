//! Pruning with masks that exist already.

use super::{copy, write_masked};
use crate::checkpoint::{Checkpoint, CheckpointWriter, TensorInfo, float_dtype};
use crate::error::{Error, Remedy, Result};
use crate::mask::{MaskSet, Violation};
use crate::model::Model;
use crate::progress::Progress;
use crate::record::{PruningRecord, Record, TensorRecord};
use crate::settings::{Origin, Pattern};
use candle_core::Device;
use safetensors::Dtype;
use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

/// Finds masks that do not fit `model`, and promises of their metadata that are not kept ([`MaskSet::violations`]).
/// Reads the model's bytes for their hash, once; a model in memory has none to compare.
///
/// # Errors
/// [`Error::Io`] from reading, [`Error::Interrupted`].
pub fn validate(model: &Model, masks: &MaskSet) -> Result<Vec<Violation>> {
    Ok(masks.violations(&model.config().linears(), &model.record()?.sha256))
}

fn refuse_violations(model: &Model, masks: &MaskSet) -> Result<()> {
    let found = validate(model, masks)?;
    let Some(first) = found.first() else { return Ok(()) };
    let more = match found.len() - 1 {
        0 => String::new(),
        more => format!(" ({more} more)"),
    };
    let problem = format!("the masks do not fit: {first}{more}").remedy("`lacuna validate` lists everything");
    Err(Error::argument("model", model.name(), problem))
}

/// The model with zeros where the masks say so, in memory; of one that has a budget ([`Model::within`]) the masks are. The input is
/// not changed; other tensors are shared with it.
///
/// # Errors
/// [`Error::Argument`] when the masks do not fit ([`validate`]); [`Error::Tensor`] or [`Error::Io`] from reading.
pub fn apply(model: &Model, masks: &MaskSet) -> Result<Model> {
    refuse_violations(model, masks)?;
    model.with_masks(masks.masks.iter().cloned())
}

/// Writes `model`'s checkpoint to a new directory `out` with zeros where the masks say so: the same tensors, dtypes and
/// shards, every other weight bit-exact, and `lacuna.json` with the record.
///
/// Memory: the largest tensor. `out` appears when everything is in it.
///
/// # Errors
/// [`Error::Argument`] when the masks do not fit ([`validate`]); [`Error::Tensor`] for weights that are not finite;
/// [`Error::File`] when `out` exists or the model exists in memory only; [`Error::Io`], [`Error::Interrupted`].
pub fn apply_to(model: &Model, masks: &MaskSet, out: &Path, progress: Progress) -> Result<Record> {
    let started = Instant::now();
    let Some(checkpoint) = model.checkpoint() else {
        return Err(Error::file(
            out,
            "the model exists in memory only".remedy("prune the checkpoint that it came from"),
        ));
    };
    let mut writer = CheckpointWriter::like(checkpoint, out, None)?;
    refuse_violations(model, masks)?;
    let by_name: HashMap<&str, _> = masks.masks.iter().map(|(name, mask)| (name.as_str(), mask)).collect();
    let stage = progress.stage("prune", checkpoint.divided().count() as u64);
    let mut zeros = HashMap::new();
    for info in checkpoint.divided() {
        match by_name.get(info.name.as_str()) {
            Some(mask) => {
                check_finite(checkpoint, info)?;
                let written = write_masked(checkpoint, &mut writer, &info.name, mask)?;
                zeros.insert(info.name.as_str(), count_zeros(info.dtype, &written));
            }
            None => copy(checkpoint, &mut writer, info)?,
        }
        stage.inc(1)?;
    }
    let tensors = model.config().linears().into_iter().filter_map(|(name, (out, input))| {
        let zeros = *zeros.get(name.as_str())?;
        Some(TensorRecord { name, shape: [out, input], zeros })
    });
    let pruning = Some(pruning_record(model, masks)?);
    let mut record = Record { pruning, tensors: tensors.collect(), ..Record::dense(model.record()?) };
    record.environment.insert("prune_seconds".into(), started.elapsed().as_secs_f64().into());
    record.environment.insert("masks_sha256".into(), masks.sha256().into());
    writer.finish_with(checkpoint, &record)?;
    Ok(record)
}

/// Fails for a weight that is not finite: nothing was computed with these, so that it would not show.
fn check_finite(checkpoint: &Checkpoint, info: &TensorInfo) -> Result<()> {
    match float_dtype(info.dtype) {
        Some(dtype) => checkpoint.load_finite(&info.name, dtype, &Device::Cpu).map(drop),
        None => Ok(()),
    }
}

/// The settings with which the masks were selected; where those are not known, a description of the masks.
fn pruning_record(model: &Model, masks: &MaskSet) -> Result<PruningRecord> {
    let metadata = masks.metadata.as_ref();
    if let Some(pruning) = metadata.and_then(|metadata| metadata.pruning.clone()) {
        return Ok(pruning);
    }
    let name = metadata.and_then(|metadata| metadata.composed.clone()).unwrap_or_else(|| "masks".into());
    let dtype = model.dtype().try_into()?;
    Ok(PruningRecord { dtype, ..PruningRecord::new(Origin::Masks(name), Pattern::Unstructured, masks.sparsity()) })
}

/// Number of elements that are 0 or -0.
fn count_zeros(dtype: Dtype, bytes: &[u8]) -> u64 {
    let width = (dtype.bitsize() / 8).max(1);
    let is_zero = |element: &&[u8]| match element.split_last() {
        Some((sign, rest)) => sign & 0x7f == 0 && rest.iter().all(|&byte| byte == 0),
        None => false,
    };
    bytes.chunks(width).filter(is_zero).count() as u64
}
