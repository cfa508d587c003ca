//! Arguments, then one library call each.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is the command line")]

mod bench;
mod cache;
mod compress;
mod doctor;
mod evaluate;
mod experts;
mod generate;
mod import;
mod inspect;
#[cfg(feature = "notebook")]
mod kernel;
mod masks;
#[cfg(feature = "notebook")]
mod notebook;
mod prune;
mod structured;
mod train;
mod validate;

use candle_core::{DType, Device};
use clap::{Parser, Subcommand};
use lacuna::Error;
use lacuna::allocate::{Allocation, Rule};
use lacuna::format::size;
use lacuna::model::Model;
use lacuna::progress;
use lacuna::text::{TextFile, Tokenizer, Windows};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Prune language models, evaluate them, and run Rust notebooks that do.
#[derive(Debug, Parser)]
#[command(name = "lacuna", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Inspect(inspect::Args),
    Doctor(doctor::Args),
    Import(import::Args),
    Prune(prune::Args),
    Masks(masks::Args),
    Validate(validate::Args),
    Compress(compress::Args),
    Decompress(compress::DecompressArgs),
    Evaluate(evaluate::Args),
    Experts(experts::Args),
    Generate(generate::Args),
    Train(train::Args),
    /// Results that labs keep: calibration statistics, gradients, masks, evaluations
    #[command(subcommand)]
    Cache(cache::Command),
    /// Check and time what this machine computes with
    #[command(subcommand)]
    Bench(bench::Command),
    /// Run notebooks without Jupyter
    #[cfg(feature = "notebook")]
    #[command(subcommand)]
    Notebook(notebook::Command),
    /// This binary as Jupyter's Rust kernel
    #[cfg(feature = "notebook")]
    #[command(subcommand)]
    Kernel(kernel::Command),
}

impl Command {
    /// Returns whether a closed pipe may be a child process that died, which is to be reported; for the other commands
    /// it is `| head`, which ends them quietly as it ends any Unix tool.
    #[cfg(unix)]
    fn talks_to_children(&self) -> bool {
        #[cfg(feature = "notebook")]
        return matches!(self, Command::Notebook(_) | Command::Kernel(_));
        #[cfg(not(feature = "notebook"))]
        false
    }
}

/// Parses the arguments, runs the command, and turns its result into an exit code: 0, 1 for a failure, 2 for wrong
/// arguments, 130 after an interrupt; `notebook run` documents its own.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    #[cfg(unix)]
    if !cli.command.talks_to_children() {
        // SAFETY: no other thread runs yet, and the default action needs no handler.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    }
    if let Err(error) = ctrlc::set_handler(progress::interrupt) {
        eprintln!("warning: Ctrl-C will not clean up: {error}");
    }
    let result = match cli.command {
        Command::Inspect(args) => inspect::run(args).map(|()| ExitCode::SUCCESS),
        Command::Doctor(args) => doctor::run(args),
        Command::Import(args) => import::run(args).map(|()| ExitCode::SUCCESS),
        Command::Prune(args) => prune::run(args).map(|()| ExitCode::SUCCESS),
        Command::Masks(args) => masks::run(args).map(|()| ExitCode::SUCCESS),
        Command::Validate(args) => validate::run(args),
        Command::Compress(args) => compress::run(args).map(|()| ExitCode::SUCCESS),
        Command::Decompress(args) => compress::run_decompress(args).map(|()| ExitCode::SUCCESS),
        Command::Evaluate(args) => evaluate::run(args).map(|()| ExitCode::SUCCESS),
        Command::Experts(args) => experts::run(args),
        Command::Generate(args) => generate::run(args).map(|()| ExitCode::SUCCESS),
        Command::Train(args) => train::run(args).map(|()| ExitCode::SUCCESS),
        Command::Cache(command) => cache::run(command).map(|()| ExitCode::SUCCESS),
        Command::Bench(command) => bench::run(command),
        #[cfg(feature = "notebook")]
        Command::Notebook(command) => notebook::run(command),
        #[cfg(feature = "notebook")]
        Command::Kernel(command) => kernel::run(command),
    };
    result.unwrap_or_else(|error| {
        if let Some(Error::Interrupted) = error.downcast_ref() {
            // What a command says of it replaces the general message.
            eprintln!("error: {error}");
            return ExitCode::from(130);
        }
        eprintln!("error: {}", message(&error));
        ExitCode::FAILURE
    })
}

/// An error with its causes; [`Error`] says them already, others do not.
fn message(error: &anyhow::Error) -> String {
    // candle's may end with a backtrace, and are in the message of the error above them.
    let causes = error.chain().filter(|cause| !cause.is::<candle_core::Error>() || error.is::<candle_core::Error>());
    causes.map(ToString::to_string).fold(String::new(), |message, cause| match message {
        _ if message.is_empty() => cause,
        _ if message.contains(&cause) => message,
        _ => format!("{message}: {cause}"),
    })
}

/// Device and precision of the computation.
#[derive(Debug, clap::Args)]
struct Compute {
    /// Precision of the forward pass: f32, bf16 or f16
    #[arg(long, default_value = "f32", value_parser = parse_dtype)]
    dtype: DType,
    /// Device: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu", value_parser = parse_device)]
    device: DeviceSpec,
    /// Device memory for weights, such as 20G, which stay there until others need their room [default: one layer's and the
    /// next one's]; activations of more than a quarter of it wait on the host
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    device_memory: Option<u64>,
}

impl Compute {
    /// Opens a model whose layers are read as they are needed.
    fn open(&self, spec: &str) -> anyhow::Result<Model> {
        let options = Model::options().dtype(self.dtype).device(self.device.open()?);
        let options = match self.device_memory {
            Some(bytes) => options.within(bytes),
            None => options.streaming(),
        };
        Ok(options.load(spec)?)
    }
}

/// Tokens per window: as asked, else those of the file's own windows, else the model's context, at most 2048.
fn seqlen(model: &Model, text: &TextFile, asked: Option<usize>) -> usize {
    let context = model.config().max_position_embeddings;
    let seqlen = asked.or(text.seqlen()).unwrap_or(context.min(2048));
    if seqlen > context {
        let whose = if asked.is_some() { "--seqlen" } else { "the file's windows:" };
        eprintln!("note: {whose} {seqlen} is beyond the model's context of {context} tokens (max_position_embeddings)");
    }
    seqlen
}

/// Reads a text; lines that were left out are counted.
fn read_text(path: &Path, skip_bad_lines: bool) -> lacuna::Result<TextFile> {
    let text = TextFile::read(path, skip_bad_lines)?;
    let (unit, path) = (text.unit, path.display());
    match text.skipped[..] {
        [] => {}
        [only] => eprintln!("note: {path}: {unit} {only} is bad and was skipped"),
        [first, ..] => {
            let n = text.skipped.len();
            eprintln!("note: {path}: {n} bad {unit}s were skipped, the first is {unit} {first}");
        }
    }
    Ok(text)
}

/// Windows of a calibration text.
#[derive(Debug, clap::Args)]
struct Sampling {
    /// Calibration windows
    #[arg(long, default_value_t = 128)]
    windows: usize,
    /// Tokens per window [default: those of windows of token ids; else the model's context, at most 2048]
    #[arg(long)]
    seqlen: Option<usize>,
    /// Leave out lines of the text that cannot be read
    #[arg(long)]
    skip_bad_lines: bool,
    /// Seed of the calibration windows, and of whatever else is random
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Sampling {
    /// The windows of `text`, when anything is measured on them.
    fn windows_if(&self, needed: bool, text: &Path, model: &Model) -> lacuna::Result<Option<Windows>> {
        if !needed {
            eprintln!("note: {} is not read, as nothing here depends on activations", text.display());
            return Ok(None);
        }
        self.windows(text, model).map(Some)
    }

    fn windows(&self, text: &Path, model: &Model) -> lacuna::Result<Windows> {
        let text = read_text(text, self.skip_bad_lines)?;
        let tokenizer = tokenizer_for(&text, model)?;
        let seqlen = seqlen(model, &text, self.seqlen);
        let sampling = lacuna::text::Sampling { windows: self.windows, seqlen, seed: self.seed };
        Windows::calibration_of(&text, tokenizer.as_ref(), sampling)
    }
}

/// Distribution of a sparsity over the linears.
#[derive(Debug, clap::Args)]
struct Share {
    /// uniform, owl, owl:M:LAMBDA, or global (one threshold over all linears)
    #[arg(long, default_value = "uniform")]
    allocation: Allocation,
    /// GLOB=SPARSITY or GLOB=skip for linears by name, such as '*.down_proj=0.3'; the last that matches counts
    #[arg(long = "rule", value_name = "RULE")]
    rules: Vec<Rule>,
    /// The same as a JSON object in a file, before those given here: {"*.down_proj": 0.3, "model.layers.0.*": "skip"}
    #[arg(long, value_name = "FILE")]
    rules_file: Option<PathBuf>,
}

impl Share {
    fn rules(&self) -> lacuna::Result<Vec<Rule>> {
        let mut rules = self.rules_file.as_deref().map(Rule::read).transpose()?.unwrap_or_default();
        rules.extend_from_slice(&self.rules);
        Ok(rules)
    }
}

/// The model's tokenizer, unless the text is token ids already.
fn tokenizer_for(text: &TextFile, model: &Model) -> lacuna::Result<Option<Tokenizer>> {
    if text.seqlen().is_some() { Ok(None) } else { model.tokenizer().map(Some) }
}

#[derive(Clone, Copy, Debug)]
enum DeviceSpec {
    Cpu,
    Cuda(usize),
}

impl DeviceSpec {
    fn open(self) -> lacuna::Result<Device> {
        match self {
            DeviceSpec::Cpu => Ok(Device::Cpu),
            DeviceSpec::Cuda(ordinal) => lacuna::device::open(ordinal),
        }
    }
}

fn parse_device(text: &str) -> Result<DeviceSpec, String> {
    let wrong = || format!("`{text}` is no device; write cpu, cuda or cuda:N");
    match text.split_once(':') {
        None if text == "cpu" => Ok(DeviceSpec::Cpu),
        None if text == "cuda" => Ok(DeviceSpec::Cuda(0)),
        Some(("cuda", ordinal)) => ordinal.parse().map(DeviceSpec::Cuda).map_err(|_| wrong()),
        _ => Err(wrong()),
    }
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    let bytes = lacuna::cache::parse_bytes(text.trim());
    bytes.ok_or_else(|| format!("`{text}` is no size; write a number of bytes, or such as 500M, 5GB or 1.5GiB"))
}

fn parse_dtype(text: &str) -> Result<DType, String> {
    match text {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::BF16),
        "f16" => Ok(DType::F16),
        _ => Err(format!("`{text}` is no precision that a model can be computed in; write f32, bf16 or f16")),
    }
}

/// Prints a value as pretty JSON.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Prints columns two spaces apart; those of `left` are aligned to the left.
fn print_table<const N: usize>(header: [&str; N], left: &[usize], rows: impl Iterator<Item = [String; N]>) {
    let lines: Vec<[String; N]> = std::iter::once(header.map(str::to_owned)).chain(rows).collect();
    let widths: [usize; N] = std::array::from_fn(|i| lines.iter().map(|line| line[i].len()).max().unwrap_or(0));
    for line in lines {
        let cell = |(i, text): (usize, &String)| {
            let width = widths[i];
            if left.contains(&i) { format!("{text:width$}") } else { format!("{text:>width$}") }
        };
        let cells: Vec<String> = line.iter().enumerate().map(cell).collect();
        println!("{}", cells.join("  ").trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_as_people_do() {
        for (text, bytes) in [
            ("5GB", 5_000_000_000),
            ("1.5 MiB", 1_572_864),
            ("7", 7),
            ("0", 0),
            ("2G", 2 << 30),
            (" 3k", 3072),
            ("500M", 500 << 20),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "GB", "5 XB", "-1", "1e3", "99999999T"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }
}
