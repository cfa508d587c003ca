//! What a rewrite will take, before it is done.

use super::build::{Selection, plan_model, plan_slices};
use super::keep::Keep;
use super::layout::Layout;
use crate::checkpoint::{Rewrite, Seconds, SideFiles, Source, TensorInfo, available_bytes, parent};
use crate::progress::Progress;
use crate::{Error, Result};
use serde::Serialize;
use serde_json::Map;
use std::path::Path;

/// What pruning a checkpoint's experts will read, write and need. Bytes are exact; seconds are extrapolated.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The directory, or `owner/name@commit`.
    pub source: String,
    /// `model_type` of its config.
    pub family: String,
    /// Blocks with a mixture.
    pub layers: usize,
    /// Experts per mixture now.
    pub experts: usize,
    /// Experts per mixture that stay.
    pub kept: usize,
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
    /// How long it takes, if that was measured.
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
pub fn plan(source: &dyn Source, layout: &Layout, keep: &Keep, max_shard: u64, out: &Path) -> Result<Plan> {
    let rewrite = plan_model(source, layout, keep, max_shard)?;
    let mut plan = Plan::of(source, layout, keep, &rewrite)?;
    if !source.has_weights() {
        // Nothing can be built from headers: this plan is for another machine.
        return Ok(plan);
    }
    rewrite.check_output(out)?;
    plan.free_bytes = available_bytes(parent(out));
    if let Some(free) = plan.free_bytes.filter(|&free| free < plan.output_bytes) {
        let problem =
            format!("{} bytes are needed, {free} are free; choose a directory on another disk", plan.output_bytes);
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

impl Plan {
    /// What the headers alone say: without free bytes and time.
    ///
    /// # Errors
    /// Those of [`plan_model`].
    pub fn from_headers(source: &dyn Source, layout: &Layout, keep: &Keep, max_shard: u64) -> Result<Plan> {
        Self::of(source, layout, keep, &plan_model(source, layout, keep, max_shard)?)
    }

    fn of(source: &dyn Source, layout: &Layout, keep: &Keep, rewrite: &Rewrite) -> Result<Plan> {
        let first = layout.layers.keys().next().copied().unwrap_or_default();
        Ok(Plan {
            source: source.origin(),
            family: layout.family.model_type.to_owned(),
            layers: layout.layers.len(),
            experts: layout.experts,
            kept: keep.uniform(layout)?,
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

    /// The plan as a Markdown table.
    pub fn to_markdown(&self) -> String {
        let mut rows = vec![
            ("source", self.source.clone()),
            ("family", self.family.clone()),
            ("layers with a mixture", self.layers.to_string()),
            ("experts a layer", format!("{} of {}, {} for each token", self.kept, self.experts, self.top_k)),
            ("one expert in one layer", exact(self.expert_bytes)),
            ("all weights now", exact(self.source_bytes)),
            ("to read", format!("{}, in {} ranges", exact(self.read_bytes), thousands(self.requests as u64))),
            ("to write", format!("{}, in {} files", exact(self.output_bytes), self.output_shards)),
            ("memory beside the program", exact(self.memory_bytes)),
        ];
        if let Some(free) = self.free_bytes {
            rows.push(("free on that disk", exact(free)));
        }
        if let Some(Estimate { sample_bytes, sample_seconds, bytes_per_second, seconds }) = &self.estimate {
            let rate = bytes_per_second / 1e6;
            rows.push((
                "time",
                format!(
                    "{} at {rate:.0} MB/s ({} took {sample_seconds:.2} s)",
                    duration(*seconds),
                    exact(*sample_bytes)
                ),
            ));
        }
        markdown(["plan", ""], &rows)
    }
}

/// A table of two columns.
fn markdown([left, right]: [&str; 2], rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(left.len());
    let other = rows.iter().map(|(_, value)| value.len()).max().unwrap_or(0).max(right.len());
    let mut text = format!("| {left:width$} | {right:>other$} |\n|:{:-<width$}-|-{:->other$}:|\n", "", "");
    for (name, value) in rows {
        text += &format!("| {name:width$} | {value:>other$} |\n");
    }
    text
}

/// Seconds as an estimate: no finer than they are known.
fn duration(seconds: f64) -> String {
    match seconds {
        ..1.0 => "under 1 s".to_owned(),
        ..120.0 => format!("about {seconds:.0} s"),
        _ => format!("about {:.0} min", seconds / 60.0),
    }
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes, and for large numbers what people read: `847,134,720 (807.9 MiB)`.
fn exact(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{} bytes", thousands(bytes)),
        1_048_576..1_073_741_824 => format!("{} bytes ({:.1} MiB)", thousands(bytes), bytes as f64 / 1_048_576.0),
        _ => format!("{} bytes ({:.2} GiB)", thousands(bytes), bytes as f64 / 1_073_741_824.0),
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

/// What one layer costs, measured, and what the whole model would.
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
    /// What a program would read that opens whole shards.
    pub shard_bytes: u64,
    /// Where the time went.
    pub seconds: Seconds,
    /// Largest resident set of this process so far, in bytes, if the system says.
    pub peak_rss_bytes: Option<u64>,
    /// All layers and the rest of the model at the same rate: bytes to write.
    pub model_bytes: u64,
    /// And seconds.
    pub model_seconds: f64,
    /// What that extrapolation takes for granted.
    pub assumptions: Vec<String>,
}

/// Slices one layer into a directory beside `out`, measures it, and removes it.
///
/// # Errors
/// Those of [`plan_slices`] and [`Rewrite::run`]; [`Error::Argument`] when there is no such layer.
pub fn probe(
    source: &dyn Source,
    layout: &Layout,
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

impl Probe {
    /// The probe as two Markdown tables and its assumptions.
    pub fn to_markdown(&self) -> String {
        let Seconds { read, slice, write, flush, total } = self.seconds;
        let rate = |seconds: f64| match seconds {
            0.0 => String::new(),
            _ => format!(" ({:.0} MB/s)", self.read_bytes as f64 / 1e6 / seconds),
        };
        let mut rows = vec![
            ("experts kept", self.kept.to_string()),
            ("shards", self.shards.join(", ")),
            ("read or downloaded", exact(self.read_bytes)),
            ("those shards whole", exact(self.shard_bytes)),
            ("written", exact(self.output_bytes)),
            ("reading, all streams", format!("{read:.3} s{}", rate(read))),
            ("slicing, checksums", format!("{slice:.3} s{}", rate(slice))),
            ("writing, all streams", format!("{write:.3} s{}", rate(write))),
            ("flush to the disk", format!("{flush:.3} s")),
            ("total, streams side by side", format!("{total:.3} s{}", rate(total))),
        ];
        if let Some(bytes) = self.peak_rss_bytes {
            rows.push(("peak RSS", exact(bytes)));
        }
        let model = [("to write", exact(self.model_bytes)), ("time", duration(self.model_seconds))];
        let assumptions: String = self.assumptions.iter().map(|line| format!("- {line}\n")).collect();
        let layer = format!("layer {}", self.layer);
        format!("{}\n{}\n{assumptions}", markdown([&layer, ""], &rows), markdown(["whole model", ""], &model))
    }
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
