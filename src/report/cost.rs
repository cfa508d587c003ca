//! The cost of a rewrite of experts, as Markdown.

use crate::checkpoint::Seconds;
use crate::experts::{Estimate, ExpertPlan, Probe};
use crate::format::thousands;

impl ExpertPlan {
    /// The plan as a Markdown table.
    pub fn to_markdown(&self) -> String {
        let mut rows = vec![
            ("source", self.source.clone()),
            ("family", self.family.clone()),
            ("layers with a mixture", self.layers.to_string()),
            ("experts a layer", format!("{} of {}, {} for each token", self.kept, self.experts, self.top_k)),
            ("one expert in one layer", exact(self.expert_bytes)),
            ("all weights now", exact(self.source_bytes)),
            ("to read", format!("{}, in {} ranges", exact(self.read_bytes), thousands(self.requests as i128))),
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

/// Bytes, and for large numbers what people read: `847,134,720 (807.9 MiB)`.
fn exact(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{} bytes", thousands(i128::from(bytes))),
        1_048_576..1_073_741_824 => {
            format!("{} bytes ({:.1} MiB)", thousands(i128::from(bytes)), bytes as f64 / 1_048_576.0)
        }
        _ => format!("{} bytes ({:.2} GiB)", thousands(i128::from(bytes)), bytes as f64 / 1_073_741_824.0),
    }
}
