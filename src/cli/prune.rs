//! `lacuna prune`

use super::structured::{self, Structure};
use super::{Compute, Sampling, Share, print_json};
use lacuna::dsnot::Dsnot;
use lacuna::mask::{Pattern, Per, Ties};
use lacuna::progress::Progress;
use lacuna::prune::{Method, Propagate, PruneConfig, prune_to};
use lacuna::structured::prune_structured_to;
use std::path::PathBuf;

/// Prune a checkpoint to a new directory
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory or hub id
    model: String,
    /// Importance metric: magnitude, wanda, ria, gradient, taylor, random or sparsegpt
    #[arg(long)]
    method: Method,
    /// Fraction of zeros, from 0 to below 1; a pattern such as 2:4 prescribes its own
    #[arg(long, required_unless_present = "pattern", allow_negative_numbers = true)]
    sparsity: Option<f64>,
    /// unstructured, or kept-of-M such as 2:4
    #[arg(long, default_value = "unstructured")]
    pattern: Pattern,
    /// What an unstructured selection compares: row, layer or alpha (Wanda's variant) [default: row for wanda and ria,
    /// otherwise layer]
    #[arg(long)]
    per: Option<Per>,
    #[command(flatten)]
    share: Share,
    /// Swaps after the selection: dsnot
    #[arg(long, value_parser = parse_refine)]
    refine: Option<Dsnot>,
    /// Drop ties as the reference implementations of magnitude pruning and SparseGPT do: one weight more, and its equals
    #[arg(long)]
    reference_ties: bool,
    /// Calibrate each block on the outputs of the pruned or of the dense blocks before it
    #[arg(long, default_value = "pruned")]
    propagate: Propagate,
    /// Calibration text: .txt, .jsonl (field `text`) or .json (windows of token ids)
    #[arg(long)]
    calib: Option<PathBuf>,
    #[command(flatten)]
    structure: Structure,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    compute: Compute,
    /// Directory to make
    #[arg(long)]
    out: PathBuf,
    /// Print the record as JSON
    #[arg(long)]
    json: bool,
}

fn parse_refine(text: &str) -> Result<Dsnot, String> {
    match text {
        "dsnot" => Ok(Dsnot::default()),
        _ => Err(format!("`{text}` is no refinement; write dsnot")),
    }
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let sparsity = match (args.sparsity, args.pattern.sparsity()) {
        (Some(sparsity), _) | (None, Some(sparsity)) => sparsity,
        (None, None) => anyhow::bail!("--pattern unstructured needs --sparsity"),
    };
    let base = PruneConfig::new(args.method, sparsity).with_allocation(args.share.allocation);
    let config = PruneConfig {
        pattern: args.pattern,
        per: args.per.unwrap_or(base.per),
        rules: args.share.rules()?,
        ties: if args.reference_ties { Ties::Reference } else { Ties::ByPosition },
        refine: args.refine,
        propagate: args.propagate,
        seed: args.sampling.seed,
        ..base
    };
    config.validate()?;
    let structured = args.structure.config(args.method, sparsity, args.sampling.seed)?;
    let model = args.compute.open(&args.model)?;
    let calibration = match &args.calib {
        Some(path) if config.needs_calibration() => Some(args.sampling.windows(path, &model)?),
        None if args.method.needs_calibration() => anyhow::bail!("--method {} needs --calib FILE", args.method),
        None if config.needs_calibration() => anyhow::bail!("--allocation owl and --refine dsnot need --calib FILE"),
        _ => None,
    };
    let record = match &structured {
        Some(config) => prune_structured_to(&model, calibration.as_ref(), config, &args.out, Progress::Stderr)?,
        None => prune_to(&model, calibration.as_ref(), &config, &args.out, Progress::Stderr)?,
    };
    if args.json {
        return print_json(&record);
    }
    if structured.is_some() {
        println!("{}: {} {} -> {}", record.model.name, args.method, structured::summary(&record), args.out.display());
        return Ok(());
    }
    println!(
        "{}: {} {} at {:.4} sparsity over {} linears -> {}",
        record.model.name,
        args.method,
        args.pattern,
        record.sparsity(),
        record.tensors.len(),
        args.out.display()
    );
    Ok(())
}
