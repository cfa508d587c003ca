//! `lacuna bench`

use super::{DeviceSpec, parse_device, print_json};
use clap::Subcommand;
use lacuna::bench::{BenchConfig, LLAMA_7B, bench};
use lacuna::progress::Progress;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check each GPU kernel against its definition in f64, then time it beside a copy; with --device cpu, its reference
    /// implementation
    Gpu(Gpu),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Gpu {
    /// Device: cuda, cuda:N or cpu
    #[arg(long, default_value = "cuda", value_parser = parse_device)]
    device: DeviceSpec,
    /// Hidden size, intermediate size and layers of the model whose linears are selected [default: those of Llama 2 7B; on the
    /// CPU 4096,11008,1 says as much]
    #[arg(long, value_name = "HIDDEN,INTERMEDIATE,LAYERS", value_parser = parse_shape)]
    shape: Option<(usize, usize, usize)>,
    /// Timed runs, of which the median counts
    #[arg(long, default_value_t = 20)]
    repeats: usize,
    /// Seed of weights and activations
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

fn parse_shape(text: &str) -> Result<(usize, usize, usize), String> {
    let numbers: Option<Vec<usize>> = text.split(',').map(|number| number.trim().parse().ok()).collect();
    match numbers.as_deref() {
        Some(&[hidden, intermediate, layers]) => Ok((hidden, intermediate, layers)),
        _ => Err(format!("`{text}` is no shape; write HIDDEN,INTERMEDIATE,LAYERS such as 4096,11008,32")),
    }
}

/// Exit code 1 when a check fails.
pub(crate) fn run(command: Command) -> anyhow::Result<ExitCode> {
    let Command::Gpu(Gpu { device, shape, repeats, seed, json }) = command;
    let config = BenchConfig { device: device.open()?, shape: shape.unwrap_or(LLAMA_7B), repeats, seed };
    let report = bench(&config, Progress::Stderr)?;
    match json {
        true => print_json(&report)?,
        false => print!("{report}"),
    }
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
