//! Time and peak memory of a whole pruning run at 50%, beside the PyTorch reference in the same run.
//!
//! ```text
//! cargo bench --profile dev --bench prune -- METHOD MODEL CALIB.json [PYTHON]
//! ```
//!
//! METHOD is wanda or sparsegpt, MODEL is a checkpoint directory, CALIB.json holds at least 16 windows of 512 token ids, PYTHON an interpreter with torch
//! and transformers; without it only our figures are printed. Three runs each, in turn; the median counts.

mod common;

use common::{Run, measure, median};
use std::path::Path;
use std::process::Command;

const RUNS: usize = 3;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [method, model, calib, python @ ..] = args.as_slice() else {
        println!("nothing to do: cargo bench --profile dev --bench prune -- METHOD MODEL CALIB.json [PYTHON]");
        return;
    };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let out = dir.path().join("out");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/prune_torch.py");
    let mut ours = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    ours.args(["prune", model, "--method", method, "--sparsity", "0.5", "--windows", "16", "--seqlen", "512"]);
    ours.args(["--calib", calib, "--out"]).arg(&out);
    let mut theirs = python.first().map(|python| {
        let mut theirs = Command::new(python);
        theirs
            .arg(script)
            .args(["--method", method, "--model", model, "--calib", calib, "--sparsity", "0.5", "--out"])
            .arg(&out);
        theirs
    });
    let (mut lacuna, mut torch) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        for (command, runs) in [(Some(&mut ours), &mut lacuna), (theirs.as_mut(), &mut torch)] {
            if let Some(command) = command {
                runs.push(measure(command));
                std::fs::remove_dir_all(&out).expect("the output can be removed");
            }
        }
    }
    let figures = |runs: &[Run]| {
        (median(runs.iter().map(|run| run.seconds).collect()), median(runs.iter().map(|run| run.peak_rss_mb).collect()))
    };
    let (seconds, rss) = figures(&lacuna);
    println!("lacuna   {seconds:7.2} s   peak RSS {rss:7.0} MB");
    if !torch.is_empty() {
        let (torch_seconds, torch_rss) = figures(&torch);
        println!("PyTorch  {torch_seconds:7.2} s   peak RSS {torch_rss:7.0} MB");
        println!("ratio    {:7.2}     {:16.2}", seconds / torch_seconds, rss / torch_rss);
    }
}
