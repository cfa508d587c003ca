//! Time and peak memory of a build that drops half of the experts, beside `cp` of the bytes that it writes.
//!
//! ```text
//! cargo bench --profile dev --bench experts -- MODEL SCRATCH
//! ```
//!
//! MODEL is a mixture's checkpoint, SCRATCH a directory on the disk to measure, with room for two outputs. Three runs each,
//! in turn, each until its bytes are on the disk, from a cold page cache where this user may drop it; the median counts.

mod common;

use common::{Run, measure, median};
use std::path::Path;
use std::process::Command;

const RUNS: usize = 3;

/// Empties the page cache, if this user may.
fn drop_caches() -> bool {
    let synced = Command::new("sync").status().is_ok_and(|status| status.success());
    synced && std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [model, scratch] = args.as_slice() else {
        println!("nothing to do: cargo bench --profile dev --bench experts -- MODEL SCRATCH");
        return;
    };
    let scratch = tempfile::tempdir_in(scratch).expect("a directory in SCRATCH");
    let (kept, out) = (scratch.path().join("kept"), scratch.path().join("out"));
    let build = |out: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
        command.args(["experts", "build", model, "--keep", "0.5", "--by", "random", "--out"]).arg(out);
        command
    };
    // What cp copies.
    measure(&mut build(&kept));
    let bytes: u64 = std::fs::read_dir(&kept)
        .expect("the output")
        .map(|entry| entry.and_then(|entry| entry.metadata()).expect("its files").len())
        .sum();
    let mut ours = build(&out);
    let mut theirs = Command::new("sh");
    theirs.args(["-c", "cp -r \"$1\" \"$2\" && sync -f \"$2\"", "sh"]).args([&kept, &out]);
    let (mut lacuna, mut cp): (Vec<Run>, Vec<Run>) = (Vec::new(), Vec::new());
    let mut cold = true;
    for _ in 0..RUNS {
        for (command, runs) in [(&mut ours, &mut lacuna), (&mut theirs, &mut cp)] {
            cold &= drop_caches();
            runs.push(measure(command));
            std::fs::remove_dir_all(&out).expect("the output can be removed");
        }
    }
    let seconds = |runs: &[Run]| median(runs.iter().map(|run| run.seconds).collect());
    let rate = |runs: &[Run]| bytes as f64 / 1e6 / seconds(runs);
    let rss = median(lacuna.iter().map(|run| run.peak_rss_mb).collect());
    println!("{:.2} GB, {} page cache", bytes as f64 / 1e9, if cold { "cold" } else { "warm" });
    println!("lacuna   {:7.2} s   {:7.0} MB/s   peak RSS {rss:.0} MB", seconds(&lacuna), rate(&lacuna));
    println!("cp       {:7.2} s   {:7.0} MB/s", seconds(&cp), rate(&cp));
    println!("ratio    {:24.2}", rate(&lacuna) / rate(&cp));
}
