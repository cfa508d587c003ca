//! Dense checkpoints to sparse ones and back, some rows at a time.

use super::codec::{self, Count, Packed, Width};
use super::layout::{BITMASK, COMPRESSED, INDICES, ROW_OFFSETS, SHAPE, VALUES, WEIGHT, is_part};
use super::marker::with_marker;
use super::{SparseFormat, SparseSummary, Stored};
use crate::checkpoint::writer::refuse_existing;
use crate::checkpoint::{Checkpoint, CheckpointWriter, TensorInfo, TensorPlan, header};
use crate::error::{Error, Remedy, Result};
use crate::progress::{Progress, Stage, check_interrupt};
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::{Map, Value};
use std::io::ErrorKind;
use std::ops::Range;
use std::path::Path;

/// Dense bytes that a thread holds at a time, unless a row is longer.
const CHUNK_BYTES: u64 = 1 << 20;

/// Writes `checkpoint` to the new directory `out` with the zeros left out of every matrix of floating point that gets
/// smaller by it: as `format`, or as whichever is smaller. A tensor that `format` cannot hold, and every other one, stays as
/// it is. The result opens as the same checkpoint, with the same [`Checkpoint::sha256`].
///
/// Reads the matrices twice; holds a few chunks of a mebibyte a thread. `out` appears when everything is in it.
///
/// # Errors
/// [`Error::File`] when `out` exists, the disk is full, or there is no `config.json`; [`Error::Tensor`] when a tensor has a
/// name that parts of sparse tensors have; [`Error::Io`] when reading or writing fails; [`Error::Interrupted`].
pub fn compress(
    checkpoint: &Checkpoint,
    out: &Path,
    format: Option<SparseFormat>,
    progress: Progress,
) -> Result<SparseSummary> {
    refuse_existing(out)?;
    let config = checkpoint.config()?;
    if let Some(info) = checkpoint.tensors().find(|info| is_part(&info.name)) {
        let problem = "its name ends like that of a part of a sparse tensor, and could not be distinguished from one";
        return Err(Error::tensor(checkpoint.dir(), &info.name, problem));
    }
    let matrices: Vec<&TensorInfo> = checkpoint.tensors().filter(|info| matrix(info).is_some()).collect();
    let bytes = matrices.iter().map(|info| info.bytes()).sum();
    let stage = progress.stage("count zeros", bytes);
    let mut zeros = 0;
    let mut choices = Vec::with_capacity(matrices.len());
    for info in matrices {
        let count = count(checkpoint, info, &stage)?;
        zeros += info.elements() - count.nonzeros;
        if let Some(chosen) = choose(checkpoint, info, count, format) {
            choices.push((info, chosen, count.nonzeros));
        }
    }
    drop(stage);
    let mut chosen = choices.iter().peekable();
    let mut shards = vec![Vec::new(); checkpoint.shards().len()];
    let mut summary = SparseSummary::default();
    for info in checkpoint.tensors() {
        let choice = chosen.next_if(|(matrix, ..)| matrix.name == info.name);
        let (plans, format) = match choice {
            Some((_, format, nonzeros)) => (parts(info, *format, *nonzeros), Some(*format)),
            None => (vec![dense(info)], None),
        };
        summary.add(info, Stored { format, bytes: data_bytes(&plans) });
        shards[info.shard].extend(plans);
    }
    shards.retain(|shard| !shard.is_empty());
    let mut writer = CheckpointWriter::create_from(checkpoint, out, shards)?;
    let stage = progress.stage("compress", checkpoint.bytes());
    let mut chosen = choices.iter().peekable();
    for info in checkpoint.tensors() {
        match chosen.next_if(|(matrix, ..)| matrix.name == info.name) {
            Some((_, format, _)) => write_sparse(checkpoint, &mut writer, info, *format, &stage)?,
            None => copy(checkpoint, &mut writer, info, &stage)?,
        }
    }
    // As the file has the names, which is where others look.
    let names: Vec<_> = choices.iter().map(|(info, ..)| checkpoint.stored_name(&info.name)).collect();
    let sparse: Vec<(&str, SparseFormat)> =
        names.iter().zip(&choices).map(|(name, (_, format, _))| (&**name, *format)).collect();
    let config = match sparse.is_empty() {
        true => config,
        false => with_marker(config, &sparse, zeros as f64 / checkpoint.parameters() as f64),
    };
    finish(checkpoint, writer, config)?;
    Ok(summary)
}

/// Writes the dense checkpoint that the sparse `checkpoint` stands for to the new directory `out`, in the same shards.
///
/// Holds a few mebibytes. `out` appears when everything is in it.
///
/// # Errors
/// [`Error::File`] when `checkpoint` is dense, `out` exists or the disk is full; [`Error::Tensor`] when positions and values
/// contradict each other; [`Error::Io`] when reading or writing fails; [`Error::Interrupted`].
pub fn decompress(checkpoint: &Checkpoint, out: &Path, progress: Progress) -> Result<SparseSummary> {
    refuse_existing(out)?;
    let summary = SparseSummary::of(checkpoint);
    if !summary.is_sparse() {
        return Err(Error::file(checkpoint.dir(), "none of its tensors is stored sparse".remedy("use it as it is")));
    }
    let mut writer = CheckpointWriter::like(checkpoint, out, None)?;
    let stage = progress.stage("decompress", checkpoint.bytes());
    for info in checkpoint.tensors() {
        copy(checkpoint, &mut writer, info, &stage)?;
    }
    finish(checkpoint, writer, checkpoint.config()?)?;
    Ok(summary)
}

/// Adds the other files: also the record of how the weights came to be, which are the same.
fn finish(checkpoint: &Checkpoint, mut writer: CheckpointWriter, config: Map<String, Value>) -> Result<()> {
    writer.add_file("config.json", format!("{:#}\n", Value::Object(config)).as_bytes())?;
    let record = checkpoint.dir().join("lacuna.json");
    match std::fs::read(&record) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        bytes => writer.add_file("lacuna.json", &bytes.map_err(Error::io("read", &record))?)?,
    }
    writer.copy_others(checkpoint)?;
    check_interrupt()?;
    writer.finish()
}

/// Rows, columns and element width of a tensor that may be stored sparse.
fn matrix(info: &TensorInfo) -> Option<(usize, usize, Width)> {
    let floating =
        matches!(info.dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F8_E4M3 | Dtype::F8_E5M2);
    match info.shape[..] {
        [rows, cols] if floating && rows > 0 && cols > 0 => Some((rows, cols, Width::of(info.dtype)?)),
        _ => None,
    }
}

fn dense(info: &TensorInfo) -> TensorPlan {
    (info.name.clone(), info.dtype, info.shape.clone())
}

/// The name without what follows a module's.
fn module(name: &str) -> &str {
    name.strip_suffix(WEIGHT).unwrap_or(name)
}

/// The tensors that a matrix is stored as in `format`.
fn parts(info: &TensorInfo, format: SparseFormat, nonzeros: u64) -> Vec<TensorPlan> {
    let (rows, cols) = (info.shape[0], info.shape[1]);
    match format {
        SparseFormat::Bitmask => {
            let base = module(&info.name);
            vec![
                (format!("{base}{COMPRESSED}"), info.dtype, vec![nonzeros as usize]),
                (format!("{base}{BITMASK}"), Dtype::U8, vec![rows, codec::stride(cols)]),
                (format!("{base}{ROW_OFFSETS}"), Dtype::I64, vec![rows]),
                (format!("{base}{SHAPE}"), Dtype::I64, vec![2]),
            ]
        }
        SparseFormat::TwoOfFour => {
            let base = &info.name;
            vec![
                (format!("{base}{VALUES}"), info.dtype, vec![rows, cols / 2]),
                (format!("{base}{INDICES}"), Dtype::U8, vec![rows, codec::stride(cols)]),
            ]
        }
    }
}

fn data_bytes(plans: &[TensorPlan]) -> u64 {
    plans.iter().filter_map(|(_, dtype, shape)| header::byte_len(*dtype, shape)).sum()
}

/// The smallest way to store a matrix, of those that can hold it; `None` if that is as it is. The header counts.
fn choose(
    checkpoint: &Checkpoint,
    info: &TensorInfo,
    count: Count,
    format: Option<SparseFormat>,
) -> Option<SparseFormat> {
    let size = |plans: &[TensorPlan]| Some(header::write(plans).ok()?.len() as u64 + data_bytes(plans));
    let can = |candidate: &SparseFormat| {
        let holds = match candidate {
            SparseFormat::TwoOfFour => count.two_of_four,
            // Only a module's weight has a name there.
            SparseFormat::Bitmask => info.name.ends_with(WEIGHT),
        };
        let free = || parts(info, *candidate, 0).iter().all(|(name, ..)| !checkpoint.contains(name));
        format.is_none_or(|format| format == *candidate) && holds && free()
    };
    let candidates = [SparseFormat::TwoOfFour, SparseFormat::Bitmask].into_iter().filter(can);
    let sized = candidates.filter_map(|candidate| Some((size(&parts(info, candidate, count.nonzeros))?, candidate)));
    // The first of equals: 2:4.
    let (bytes, smallest) = sized.min_by_key(|(bytes, _)| *bytes)?;
    (bytes < size(&[dense(info)])?).then_some(smallest)
}

/// A matrix's bytes in chunks of whole rows.
fn chunks(info: &TensorInfo, cols: usize, width: Width) -> Vec<Range<u64>> {
    let row = (cols * width.bytes()) as u64;
    let step = (CHUNK_BYTES / row).max(1) * row;
    (0..info.bytes()).step_by(step as usize).map(|from| from..(from + step).min(info.bytes())).collect()
}

fn read(checkpoint: &Checkpoint, info: &TensorInfo, chunk: &Range<u64>) -> Result<Vec<u8>> {
    check_interrupt()?;
    let mut bytes = vec![0; (chunk.end - chunk.start) as usize];
    checkpoint.read_at(info, chunk.start, &mut bytes)?;
    Ok(bytes)
}

fn count(checkpoint: &Checkpoint, info: &TensorInfo, stage: &Stage) -> Result<Count> {
    let Some((_, cols, width)) = matrix(info) else { return Ok(Count::NONE) };
    let counts = chunks(info, cols, width).into_par_iter().map(|chunk| {
        let count = codec::count(width, &read(checkpoint, info, &chunk)?, cols);
        stage.inc(chunk.end - chunk.start)?;
        Ok(count)
    });
    counts.try_reduce(|| Count::NONE, |a, b| Ok(a.and(b)))
}

fn write_sparse(
    checkpoint: &Checkpoint,
    writer: &mut CheckpointWriter,
    info: &TensorInfo,
    format: SparseFormat,
    stage: &Stage,
) -> Result<()> {
    let Some((rows, cols, width)) = matrix(info) else { return Ok(()) };
    let base = match format {
        SparseFormat::Bitmask => module(&info.name),
        SparseFormat::TwoOfFour => &info.name,
    };
    let name = |suffix: &str| format!("{base}{suffix}");
    let pack = |chunk: &Range<u64>| -> Result<Packed> {
        let bytes = read(checkpoint, info, chunk)?;
        match format {
            SparseFormat::Bitmask => Ok(codec::pack_bitmask(width, &bytes, cols)),
            SparseFormat::TwoOfFour => codec::pack_two_of_four(width, &bytes, cols).ok_or_else(|| {
                let problem = "it has changed while it was read".remedy("compress it when nothing writes to it");
                Error::tensor(checkpoint.dir(), &info.name, problem)
            }),
        }
    };
    let (values, positions) = match format {
        SparseFormat::Bitmask => (name(COMPRESSED), name(BITMASK)),
        SparseFormat::TwoOfFour => (name(VALUES), name(INDICES)),
    };
    let mut start = 0u64;
    for batch in chunks(info, cols, width).chunks(2 * rayon::current_num_threads()) {
        for packed in batch.par_iter().map(pack).collect::<Result<Vec<Packed>>>()? {
            writer.append(&values, &packed.values)?;
            writer.append(&positions, &packed.positions)?;
            if format == SparseFormat::Bitmask {
                let mut offsets = Vec::with_capacity(packed.kept.len() * 8);
                for kept in packed.kept {
                    offsets.extend(start.to_le_bytes());
                    start += kept;
                }
                writer.append(&name(ROW_OFFSETS), &offsets)?;
            }
        }
        stage.inc(batch.iter().map(|chunk| chunk.end - chunk.start).sum())?;
    }
    if format == SparseFormat::Bitmask {
        writer.write(&name(SHAPE), &[rows as u64, cols as u64].map(u64::to_le_bytes).concat())?;
    }
    Ok(())
}

/// Writes a tensor as it is when dense.
fn copy(checkpoint: &Checkpoint, writer: &mut CheckpointWriter, info: &TensorInfo, stage: &Stage) -> Result<()> {
    let mut buffer = vec![0; (8 * CHUNK_BYTES).min(info.bytes()) as usize];
    let mut at = 0;
    loop {
        let piece = (info.bytes() - at).min(buffer.len() as u64);
        let buffer = &mut buffer[..piece as usize];
        checkpoint.read_at(info, at, buffer)?;
        writer.append(&info.name, buffer)?;
        stage.inc(piece)?;
        at += piece;
        if at == info.bytes() {
            return Ok(());
        }
    }
}
