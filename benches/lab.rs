//! The cost of a notebook's cell with a lab: the first evaluation of a pruned model, one at another sparsity, the same again, and
//! both after a restart, which finds nothing in memory. Every line begins with an empty cache.
//!
//! ```text
//! cargo bench --profile dev --bench lab -- [MODEL TRAIN.txt TEST.txt]
//! ```
//!
//! 128 windows of 256 tokens are calibrated on, as many windows as the papers take, and 8 are evaluated; `sequential` is the
//! papers' calibration, on the outputs of the layers that are pruned already.

use candle_core::{DType, Device};
use lacuna::cache::Cache;
use lacuna::prelude::*;
use std::path::Path;
use std::time::Instant;

const SEQLEN: usize = 256;
const CALIBRATION: usize = 128;
const EVALUATION: usize = 8;

fn main() -> Result<()> {
    let root = env!("CARGO_MANIFEST_DIR");
    let committed =
        ["data/tiny-llama", "data/corpus/train.txt", "data/corpus/test.txt"].map(|path| format!("{root}/{path}"));
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [model, train, test] = <[String; 3]>::try_from(args).unwrap_or(committed);
    let opened = |cache: &Path| -> Result<(Lab, Windows)> {
        let lab = Lab::open_on(&model, DType::F32, &Device::Cpu, Cache::at(cache, 10 << 30))?;
        let lab = lab.with_progress(Progress::Hidden).calibrate_on(&train, Sampling::new(CALIBRATION, SEQLEN))?;
        let test = lab.windows(&test, Consecutive::of(SEQLEN).first(EVALUATION))?;
        Ok((lab, test))
    };
    println!("{CALIBRATION} calibration and {EVALUATION} evaluation windows of {SEQLEN} tokens; seconds");
    println!(
        "{:24} {:>8} {:>8} {:>7} {:>8} | {:>7} {:>8} {:>8} | perplexity at 50%, 60%",
        "", "first", "other", "ratio", "again", "restart", "again", "other"
    );
    for (name, method, propagate) in [
        ("wanda", Method::Wanda, Propagate::Dense),
        ("taylor", Method::Taylor, Propagate::Dense),
        ("sparsegpt", Method::SparseGpt, Propagate::Dense),
        ("wanda, sequential", Method::Wanda, Propagate::Pruned),
        ("sparsegpt, sequential", Method::SparseGpt, Propagate::Pruned),
    ] {
        let cache = tempfile::tempdir().map_err(Error::io("create", "a temporary directory"))?;
        let evaluate = |lab: &Lab, test: &Windows, sparsity: f64| -> Result<(f64, f64)> {
            let started = Instant::now();
            let config = PruneConfig::one_shot(method, sparsity).propagating(propagate);
            let perplexity = lab.evaluate(&config, test)?.perplexity;
            Ok((started.elapsed().as_secs_f64(), perplexity))
        };
        let (lab, test) = opened(cache.path())?;
        let (first, at_50) = evaluate(&lab, &test, 0.5)?;
        let (other, at_60) = evaluate(&lab, &test, 0.6)?;
        let (again, _) = evaluate(&lab, &test, 0.6)?;
        drop(lab);
        let started = Instant::now();
        let (lab, test) = opened(cache.path())?;
        let restart = started.elapsed().as_secs_f64();
        let (found, same) = evaluate(&lab, &test, 0.6)?;
        assert_eq!(same, at_60, "what is kept is what was computed");
        let (after, _) = evaluate(&lab, &test, 0.7)?;
        let ratio = first / other;
        println!(
            "{name:24} {first:8.2} {other:8.2} {ratio:6.1}x {again:8.3} | {restart:7.2} {found:8.3} {after:8.2} | \
             {at_50:.2}, {at_60:.2}"
        );
    }
    Ok(())
}
