//! Correctness and speed of the kernels: `lacuna bench gpu` compares their results with definitions in f64, and times them.
//!
//! An `Engine` runs the same operations on a GPU, by the kernels, or on the CPU, by their reference implementations, so that both
//! are checked and timed in the same way.

mod cpu;
#[cfg(feature = "cuda")]
mod gpu;
#[cfg(feature = "cuda")]
mod kernels;
#[cfg(feature = "cuda")]
mod matmul;
mod problem;
mod reference;
#[cfg(feature = "cuda")]
mod sparselt;
pub mod twin;

pub use crate::cuda::shape;

use crate::error::{Error, Result};
use crate::progress::{Progress, check_interrupt};
use candle_core::{DType, Device};
use problem::{Case, Op, Output, Problem};
use serde::Serialize;
use std::fmt;

/// Settings of a benchmark.
#[derive(Clone, Debug)]
pub struct BenchConfig {
    /// A GPU ([`crate::device::open`]), or the CPU.
    pub device: Device,
    /// Hidden size, intermediate size and number of layers of the model whose linears are selected ([`LLAMA_7B`]); its weights are
    /// random and in bf16.
    pub shape: (usize, usize, usize),
    /// Timed runs, of which the median counts.
    pub repeats: usize,
    /// Seed of everything random.
    pub seed: u64,
}

/// Llama 2 7B: hidden size, intermediate size and number of layers.
pub const LLAMA_7B: (usize, usize, usize) = (4096, 11_008, 32);

/// The comparison of a kernel's result with the definition's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// The kernel and what it was given.
    pub case: String,
    /// Greatest difference over the greatest value; for masks and bytes 0 or 1.
    pub error: f64,
    /// The greatest error that passes: 0 where the result must be the same bit for bit.
    pub tolerance: f64,
}

impl Check {
    /// Returns whether the error is within the tolerance.
    pub fn passed(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// The time that a kernel takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Timing {
    /// The operation, its shape and its type.
    pub case: String,
    /// Median of the runs.
    pub seconds: f64,
    /// Fastest and slowest run.
    pub range_seconds: [f64; 2],
    /// The fewest bytes that must be read and written.
    pub bytes: u64,
    /// Bytes a second over those of a copy in the same run, which is timed in the same way.
    pub share_of_copy: f64,
    /// For a product with compressed weights: the seconds of the dense product of the same weights and vectors in the same run, over
    /// its own.
    pub speed_up: Option<f64>,
}

/// An operation that was neither checked nor timed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NotRun {
    /// The operation.
    pub case: String,
    /// The reason, and the remedy.
    pub reason: String,
    /// True if it failed, false if something that it needs is missing.
    pub failed: bool,
}

/// The results of a benchmark.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BenchReport {
    /// The device's name.
    pub device: String,
    /// Correctness.
    pub checks: Vec<Check>,
    /// Times.
    pub timings: Vec<Timing>,
    /// Operations without a check or a time.
    pub not_run: Vec<NotRun>,
}

impl BenchReport {
    /// Returns whether all checks passed, and nothing failed.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(Check::passed) && !self.not_run.iter().any(|case| case.failed)
    }

    /// One operation that fails does not take the results of the others with it.
    fn keep_failure(&mut self, case: String, error: Error) -> Result<()> {
        match error {
            Error::Interrupted => Err(error),
            error => {
                // candle's errors go on with where they came from.
                let reason = error.to_string().lines().next().unwrap_or_default().to_owned();
                self.not_run.push(NotRun { case, reason, failed: true });
                Ok(())
            }
        }
    }

    /// Returns whether something that an operation needs is missing, and lists it once.
    fn lacks(&mut self, missing: Option<(&'static str, String)>) -> bool {
        let Some((case, reason)) = missing else { return false };
        if !self.not_run.iter().any(|known| known.case == case && known.reason == reason) {
            self.not_run.push(NotRun { case: case.into(), reason, failed: false });
        }
        true
    }
}

impl fmt::Display for BenchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in self.checks.iter().filter(|check| !check.passed()) {
            writeln!(f, "WRONG: {}: error {:.1e}, allowed {:.1e}", check.case, check.error, check.tolerance)?;
        }
        for NotRun { case, reason, failed } in &self.not_run {
            writeln!(f, "{}: {case}: {reason}", if *failed { "FAILED" } else { "not run" })?;
        }
        let passed = self.checks.iter().filter(|check| check.passed()).count();
        writeln!(f, "{}: {passed} of {} checks passed", self.device, self.checks.len())?;
        let width = self.timings.iter().map(|timing| timing.case.len()).max().unwrap_or(0);
        writeln!(f, "{:width$} {:>10} {:>21} {:>9} {:>9} {:>8}", "", "ms", "range", "GB", "GB/s", "of copy")?;
        for Timing { case, seconds, range_seconds: [low, high], bytes, share_of_copy, speed_up } in &self.timings {
            let (ms, gb) = (seconds * 1e3, *bytes as f64 / 1e9);
            let range = format!("{:.3} .. {:.3}", low * 1e3, high * 1e3);
            let (rate, share) = (gb / seconds, share_of_copy * 100.0);
            write!(f, "{case:width$} {ms:>10.3} {range:>21} {gb:>9.3} {rate:>9.1} {share:>7.1}%")?;
            speed_up.map_or(Ok(()), |ratio| write!(f, "  {ratio:.2} x dense"))?;
            writeln!(f)?;
        }
        Ok(())
    }
}

/// An operation with its inputs where it runs.
trait Prepared {
    /// Runs it on each copy of its inputs, without waiting for the results.
    fn run(&mut self) -> Result<()>;
    /// Gives back the inputs that a run changes.
    fn reset(&mut self) -> Result<()> {
        Ok(())
    }
    /// The result of the last run.
    fn output(&mut self) -> Result<Output>;
}

/// A device with implementations of the operations.
trait Engine {
    /// The device's name.
    fn name(&self) -> String;
    /// Puts the inputs of a problem there, `copies` times so that no cache holds them.
    fn prepare(&self, problem: &Problem, copies: usize) -> Result<Box<dyn Prepared>>;
    /// The missing part that an operation needs: its name, and the reason.
    fn lacks(&self, op: &Op) -> Option<(&'static str, String)>;
    /// Seconds that one run takes.
    fn seconds(&self, work: &mut dyn Prepared) -> Result<f64>;
}

/// Checks and times all kernels.
///
/// # Errors
/// [`Error::Argument`] for a shape that is no model's or a device without an engine; [`Error::Interrupted`]. All other failures are
/// in [`BenchReport::not_run`].
pub fn bench(config: &BenchConfig, progress: Progress) -> Result<BenchReport> {
    let (hidden, intermediate, blocks) = config.shape;
    if hidden == 0 || intermediate == 0 || blocks == 0 || config.repeats == 0 || hidden % 32 + intermediate % 32 != 0 {
        let problem = "hidden and intermediate size must be multiples of 32, with at least one block and one run";
        return Err(Error::argument("shape", format!("{:?}", config.shape), problem));
    }
    let engine: Box<dyn Engine> = match &config.device {
        Device::Cpu => Box::new(cpu::Cpu),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => Box::new(gpu::Gpu::new(device)?),
        other => return Err(Error::argument("device", format!("{:?}", other.location()), "has no kernels")),
    };
    let problems = problem::checks(config.seed);
    let cases = problem::timings(config.shape, config.seed);
    let stage = progress.stage("bench", (problems.len() + cases.len()) as u64);
    let (device, mut copy, mut dense) = (engine.name(), f64::NAN, None);
    let mut report = BenchReport { device, checks: Vec::new(), timings: Vec::new(), not_run: Vec::new() };
    for problem in problems {
        if !report.lacks(engine.lacks(&problem.op)) {
            match check(&*engine, &problem) {
                Ok(check) => report.checks.push(check),
                Err(error) => report.keep_failure(problem.to_string(), error)?,
            }
        }
        stage.inc(1)?;
    }
    for case in cases {
        stage.inc(1)?;
        let op = &case.problems[0].op;
        if report.lacks(engine.lacks(op)) {
            continue;
        }
        let seconds = match time(&*engine, &case, config.repeats) {
            Ok(seconds) => seconds,
            Err(error) => {
                report.keep_failure(case.name, error)?;
                continue;
            }
        };
        let bytes = case.problems.iter().map(Problem::bytes).sum::<u64>() * case.copies as u64;
        let median = seconds[seconds.len() / 2];
        let rate = bytes as f64 / median;
        if *op == Op::Copy {
            copy = rate;
        }
        let speed_up =
            dense.filter(|(dense, _)| op.dense().as_ref() == Some(dense)).map(|(_, seconds)| seconds / median);
        dense = Some((op.clone(), median));
        report.timings.push(Timing {
            case: case.name,
            seconds: median,
            range_seconds: [seconds[0], seconds[seconds.len() - 1]],
            bytes,
            share_of_copy: rate / copy,
            speed_up,
        });
    }
    Ok(report)
}

fn check(engine: &dyn Engine, problem: &Problem) -> Result<Check> {
    let mut prepared = engine.prepare(problem, 1)?;
    prepared.run()?;
    let (error, tolerance) = reference::compare(problem, &prepared.output()?);
    Ok(Check { case: problem.to_string(), error, tolerance })
}

/// Seconds of each run, ascending.
fn time(engine: &dyn Engine, case: &Case, repeats: usize) -> Result<Vec<f64>> {
    let work = case.problems.iter().map(|problem| engine.prepare(problem, case.copies));
    let mut work = work.collect::<Result<Vec<_>>>()?;
    let mut once = || -> Result<f64> {
        check_interrupt()?;
        let seconds = |work: &mut Box<dyn Prepared>| {
            work.reset()?;
            engine.seconds(&mut **work)
        };
        work.iter_mut().map(seconds).sum()
    };
    once()?; // loads kernels and warms up
    let mut seconds = (0..repeats).map(|_| once()).collect::<Result<Vec<f64>>>()?;
    seconds.sort_by(f64::total_cmp);
    Ok(seconds)
}

/// Values of a problem rounded to what its weights are stored in.
fn rounded(dtype: DType, value: f32) -> f32 {
    match dtype {
        DType::BF16 => half::bf16::from_f32(value).to_f32(),
        DType::F16 => half::f16::from_f32(value).to_f32(),
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skip::skipped_without;

    #[test]
    fn reference_implementations_pass_what_kernels_must() {
        let config = BenchConfig { device: Device::Cpu, shape: (64, 96, 1), repeats: 1, seed: 3 };
        let report = bench(&config, Progress::Hidden).unwrap();
        assert!(report.checks.len() > 100 && report.passed(), "{report}");
        assert!(report.timings.iter().all(|timing| timing.seconds > 0.0 && timing.bytes > 0));
        assert_eq!(report.timings[0].share_of_copy, 1.0);
        assert!(bench(&BenchConfig { shape: (63, 96, 1), ..config }, Progress::Hidden).is_err());
    }

    #[test]
    fn a_failure_is_told_beside_the_rest() {
        let config = BenchConfig { device: Device::Cpu, shape: (32, 32, 1), repeats: 1, seed: 3 };
        let mut report = bench(&config, Progress::Hidden).unwrap();
        let before = report.not_run.len(); // 4096 tokens are too many for a CPU, which is no failure
        assert!(before == 1 && report.passed() && report.to_string().starts_with("not run: matmul: "), "{report}");
        report.keep_failure("2:4 matmul".into(), Error::argument("a", "b", "c")).unwrap();
        assert!(!report.passed() && report.to_string().contains("FAILED: 2:4 matmul: a = b: c\n"), "{report}");
        assert!(matches!(report.keep_failure("dense".into(), Error::Interrupted), Err(Error::Interrupted)));
        let compressed = report.timings.iter().filter(|timing| timing.speed_up.is_some());
        assert!(compressed.clone().count() == 4 && compressed.clone().all(|timing| timing.case.starts_with("2:4 ")));
    }

    #[test]
    fn kernels_pass_on_a_gpu() {
        match crate::device::open(0) {
            Err(error) => skipped_without(format!("a GPU: {error}")),
            Ok(device) => {
                let config = BenchConfig { device, shape: (64, 96, 2), repeats: 1, seed: 4 };
                let report = bench(&config, Progress::Hidden).unwrap();
                assert!(report.passed(), "{report}");
            }
        }
    }

    #[test]
    fn a_wrong_result_is_found() {
        let mut failed = 0;
        for problem in problem::checks(5) {
            let mut prepared = cpu::Cpu.prepare(&problem, 1).unwrap();
            prepared.run().unwrap();
            let mut output = prepared.output().unwrap();
            output.spoil();
            let (error, tolerance) = reference::compare(&problem, &output);
            assert!(error > tolerance, "{problem}: {error}");
            failed += 1;
        }
        assert!(failed > 100);
    }
}
