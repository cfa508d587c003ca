//! `lacuna import`: a GGUF file becomes a checkpoint.

use super::parse_dtype;
use anyhow::Result;
use candle_core::DType;
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
    /// Dtype of the weights written: f32, bf16 or f16
    #[arg(long, default_value = "f32", value_parser = parse_dtype)]
    dtype: DType,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let summary = import_gguf(&args.file, &args.out, args.dtype, Progress::Stderr)?;
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
        args.dtype.as_str()
    );
    Ok(())
}
