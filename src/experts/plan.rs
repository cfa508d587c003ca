//! Estimates of bytes and time for expert pruning, before it is done.

use super::build::{Selection, plan_model, plan_slices};
use super::keep::Keep;
use super::layout::ExpertLayout;
use crate::checkpoint::{Rewrite, Seconds, SideFiles, Source, TensorInfo, available_bytes, parent};
use crate::error::{Error, Remedy, Result};
use crate::progress::Progress;
use serde::Serialize;
use serde_json::Map;
use std::path::Path;

/// The bytes that pruning a checkpoint's experts will read, write and need, and the time. Bytes are exact; seconds are
/// extrapolated.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExpertPlan {
    /// The directory, or `owner/name@commit`.
    pub source: String,
    /// `model_type` of its config.
    pub family: String,
    /// Layers with a mixture.
    pub layers: usize,
    /// Experts per mixture now.
    pub experts: usize,
    /// Experts per mixture that stay.
    pub kept: usize,
    /// The experts that stay, by layer.
    pub keep: Keep,
    /// Experts per token.
    pub top_k: usize,
    /// Bytes of one expert in one layer.
    pub expert_bytes: u64,
    /// Bytes of all weight files of the source.
    pub source_bytes: u64,
    /// Bytes that are read or downloaded.
    pub read_bytes: u64,
    /// Ranges that they are read in.
    pub requests: usize,
    /// Bytes of the new weight files, headers included.
    pub output_bytes: u64,
    /// New weight files.
    pub output_shards: usize,
    /// Memory in bytes that the rewrite takes beyond the program itself.
    pub memory_bytes: u64,
    /// Free bytes where the output goes, if the system says.
    pub free_bytes: Option<u64>,
    /// The estimated time, if it was measured.
    pub estimate: Option<Estimate>,
}

/// A measured rate, and what follows from it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Bytes that were copied to measure.
    pub sample_bytes: u64,
    /// Seconds that took.
    pub sample_seconds: f64,
    /// `sample_bytes / sample_seconds`.
    pub bytes_per_second: f64,
    /// Seconds for the whole output at that rate.
    pub seconds: f64,
}

/// Bytes that are copied to measure a rate.
const SAMPLE_BYTES: u64 = 32 << 20;

/// Plans a pruned model in `out`, whose parent must exist, and copies a sample of at most 32 MiB there to measure how long
/// the rest will take; where only headers are at hand, it measures nothing.
///
/// # Errors
/// Everything that would fail later: those of [`plan_model`], and [`Error::File`] when the disk is too small; those of
/// [`Rewrite::run`] from the sample.
pub fn plan(source: &dyn Source, layout: &ExpertLayout, keep: &Keep, max_shard: u64, out: &Path) -> Result<ExpertPlan> {
    let rewrite = plan_model(source, layout, keep, max_shard)?;
    let mut plan = ExpertPlan::of(source, layout, keep, &rewrite)?;
    if !source.has_weights() {
        // Nothing can be built from headers: this plan is for another machine.
        return Ok(plan);
    }
    rewrite.check_output(out)?;
    plan.free_bytes = available_bytes(parent(out));
    if let Some(free) = plan.free_bytes.filter(|&free| free < plan.output_bytes) {
        let problem = format!("{} bytes are needed, {free} are free", plan.output_bytes)
            .remedy("choose a directory on another disk");
        return Err(Error::file(out, problem));
    }
    let sample = rewrite.sample(source, SAMPLE_BYTES)?;
    let seconds = measure(source, &sample, out, Progress::Hidden)?.total;
    let bytes_per_second = sample.data_bytes() as f64 / seconds.max(1e-9);
    plan.estimate = Some(Estimate {
        sample_bytes: sample.data_bytes(),
        sample_seconds: seconds,
        bytes_per_second,
        seconds: plan.output_bytes as f64 / bytes_per_second,
    });
    Ok(plan)
}

impl ExpertPlan {
    /// Makes a plan from the headers alone: without free bytes and time.
    ///
    /// # Errors
    /// Those of [`plan_model`].
    pub fn from_headers(source: &dyn Source, layout: &ExpertLayout, keep: &Keep, max_shard: u64) -> Result<ExpertPlan> {
        Self::of(source, layout, keep, &plan_model(source, layout, keep, max_shard)?)
    }

    fn of(source: &dyn Source, layout: &ExpertLayout, keep: &Keep, rewrite: &Rewrite) -> Result<ExpertPlan> {
        let first = layout.mixtures.keys().next().copied().unwrap_or_default();
        Ok(ExpertPlan {
            source: source.origin(),
            family: layout.family.model_type.to_owned(),
            layers: layout.mixtures.len(),
            experts: layout.experts,
            kept: keep.uniform(layout)?,
            keep: keep.clone(),
            top_k: layout.top_k,
            expert_bytes: layout.expert_bytes(source, first),
            source_bytes: source.index().iter().map(TensorInfo::bytes).sum(),
            read_bytes: rewrite.read_bytes(source),
            requests: rewrite.requests(source),
            output_bytes: rewrite.file_bytes(),
            output_shards: rewrite.files().len(),
            memory_bytes: rewrite.memory_bytes(source),
            free_bytes: None,
            estimate: None,
        })
    }
}

/// Runs a rewrite beside `out`, and removes what it wrote.
fn measure(source: &dyn Source, rewrite: &Rewrite, out: &Path, progress: Progress) -> Result<Seconds> {
    let parent = parent(out);
    let scratch = tempfile::Builder::new().prefix(".lacuna-probe-").tempdir_in(parent);
    let scratch = scratch.map_err(Error::io("create a directory in", parent))?;
    let copied = rewrite.run(source, &scratch.path().join("probe"), &Map::new(), &[], SideFiles::Left, progress)?;
    Ok(copied.seconds)
}

/// The measured cost of one layer, and the extrapolated cost of the whole model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Probe {
    /// The layer.
    pub layer: usize,
    /// Its experts that stay.
    pub kept: usize,
    /// Shards that hold it.
    pub shards: Vec<String>,
    /// Bytes that were read or downloaded.
    pub read_bytes: u64,
    /// Bytes that were written.
    pub output_bytes: u64,
    /// Bytes that a program would read which opens whole shards.
    pub shard_bytes: u64,
    /// Seconds that the copy spent, by task.
    pub seconds: Seconds,
    /// Largest resident set of this process so far, in bytes, if the system says.
    pub peak_rss_bytes: Option<u64>,
    /// All layers and the rest of the model at the same rate: bytes to write.
    pub model_bytes: u64,
    /// And seconds.
    pub model_seconds: f64,
    /// The assumptions of the extrapolation.
    pub assumptions: Vec<String>,
}

/// Slices one layer into a directory beside `out`, measures it, and removes it.
///
/// # Errors
/// Those of [`plan_slices`] and [`Rewrite::run`]; [`Error::Argument`] when there is no such layer.
pub fn probe(
    source: &dyn Source,
    layout: &ExpertLayout,
    selection: &Selection,
    max_shard: u64,
    layer: usize,
    out: &Path,
    progress: Progress,
) -> Result<Probe> {
    let keep = selection.keep.only(&[layer])?;
    let rewrite = plan_slices(source, layout, &keep)?;
    let model_bytes = plan_model(source, layout, &selection.keep, max_shard)?.data_bytes();
    let seconds = measure(source, &rewrite, out, progress)?;
    let segments = || rewrite.files().iter().flat_map(|file| &file.tensors).flat_map(|tensor| &tensor.segments);
    let mut shards: Vec<usize> = segments().map(|segment| segment.shard).collect();
    shards.sort_unstable();
    shards.dedup();
    let in_shards = source.index().iter().filter(|info| shards.contains(&info.shard));
    let (bytes, files) = (rewrite.data_bytes(), source.files());
    let rate = bytes as f64 / seconds.total.max(1e-9);
    Ok(Probe {
        layer,
        kept: keep.get(layer).map_or(0, <[usize]>::len),
        shard_bytes: in_shards.map(TensorInfo::bytes).sum(),
        shards: shards.into_iter().map(|shard| files[shard].clone()).collect(),
        read_bytes: rewrite.read_bytes(source),
        output_bytes: rewrite.file_bytes(),
        seconds,
        peak_rss_bytes: peak_rss_bytes(),
        model_bytes,
        model_seconds: model_bytes as f64 / rate,
        assumptions: vec![
            format!("the whole model is copied at this layer's {:.0} MB/s, its flush to the disk included", rate / 1e6),
            "layers have equally long ranges, and the other tensors cost what experts cost, byte for byte".into(),
            "what the page cache holds of a local source is read from memory; a first read may be slower".into(),
        ],
    })
}

/// Largest resident set of this process so far, in bytes.
fn peak_rss_bytes() -> Option<u64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: `usage` is large enough, and is read only if the call filled it.
    let usage = unsafe {
        if libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) != 0 {
            return None;
        }
        usage.assume_init()
    };
    // Kibibytes, except on macOS.
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    u64::try_from(usage.ru_maxrss).ok().map(|rss| rss * unit)
}
