//! `lacuna import`: a GGUF file becomes a checkpoint.

use anyhow::Result;
use candle_core::DType;
use clap::ValueEnum;
use lacuna::checkpoint::import_gguf;
use lacuna::progress::Progress;
use std::path::PathBuf;

/// Makes a safetensors checkpoint of a GGUF file of the Llama family.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The GGUF file
    #[arg(value_name = "FILE.gguf")]
    file: PathBuf,
    /// Directory to write; it must not exist
    #[arg(value_name = "DIR")]
    out: PathBuf,
    /// Type of the weights written
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    dtype: Dtype,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Dtype {
    F32,
    Bf16,
    F16,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let dtype = match args.dtype {
        Dtype::F32 => DType::F32,
        Dtype::Bf16 => DType::BF16,
        Dtype::F16 => DType::F16,
    };
    let summary = import_gguf(&args.file, &args.out, dtype, Progress::Stderr)?;
    let sources: Vec<String> =
        summary.source_dtypes.iter().map(|(dtype, count)| format!("{count} x {dtype}")).collect();
    println!(
        "{}: {} layers, {} parameters in {} tensors ({}) -> {} as {}",
        summary.architecture,
        summary.layers,
        summary.parameters,
        summary.tensors,
        sources.join(", "),
        args.out.display(),
        dtype.as_str()
    );
    Ok(())
}
