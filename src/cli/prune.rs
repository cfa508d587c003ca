//! `lacuna prune`

use super::structured::{self, Structure};
use super::{Compute, Sampling, Share, print_json};
use lacuna::dsnot::Dsnot;
use lacuna::mask::{MaskSet, Pattern, Per, Ties};
use lacuna::progress::Progress;
use lacuna::prune::{Method, Propagate, PruneConfig, apply_to, prune_to};
use lacuna::record::Record;
use lacuna::structured::prune_structured_to;
use std::path::PathBuf;

/// Prune a checkpoint to a new directory
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory or hub id
    model: String,
    /// Importance metric: magnitude, wanda, ria, gradient, taylor, random or sparsegpt
    #[arg(long, required_unless_present = "masks")]
    method: Option<Method>,
    /// Fraction of zeros, from 0 to below 1; a pattern such as 2:4 prescribes its own
    #[arg(long, required_unless_present_any = ["pattern", "masks"], allow_negative_numbers = true)]
    sparsity: Option<f64>,
    /// unstructured, or kept-of-M such as 2:4
    #[arg(long, default_value = "unstructured")]
    pattern: Pattern,
    /// Comparison group of an unstructured selection: row, layer or alpha (Wanda's variant) [default: row for wanda and
    /// ria, otherwise layer]
    #[arg(long)]
    per: Option<Per>,
    #[command(flatten)]
    share: Share,
    /// Swaps after the selection: dsnot, or dsnot:MAX_CYCLES:THRESHOLD:VARIANCE_POWER
    #[arg(long)]
    refine: Option<Dsnot>,
    /// Drop ties as the reference implementations of magnitude pruning and SparseGPT do: one weight more, and its equals
    #[arg(long)]
    reference_ties: bool,
    /// Calibrate each layer on the outputs of the pruned or of the dense layers before it
    #[arg(long, default_value = "pruned")]
    propagate: Propagate,
    /// Calibration text: plain, or JSON or parquet with the field `text` or `input_ids` (token ids); .gz and .zst too
    #[arg(long)]
    calib: Option<PathBuf>,
    /// Masks to apply, instead of selecting: .safetensors, .npz or .pt
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "method", "sparsity", "pattern", "per", "propagate", "calib", "windows", "seqlen", "seed", "dtype", "device",
        "device_memory",
        "allocation", "rules", "rules_file", "refine", "reference_ties", "structure", "zero", "group_norm",
        "at_least_one",
    ])]
    masks: Option<PathBuf>,
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

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let record = match (&args.masks, args.method) {
        (Some(masks), _) => {
            let masks = MaskSet::load(masks)?;
            apply_to(&args.compute.open(&args.model)?, &masks, &args.out, Progress::Stderr)?
        }
        (None, Some(method)) => select(&args, method)?,
        (None, None) => anyhow::bail!("what to prune? give --method METHOD or --masks FILE"),
    };
    if args.json {
        return print_json(&record);
    }
    if let Some(structure) = &record.structure {
        println!("{}: {} -> {}", record.model.name, structured::summary(&record, structure), args.out.display());
        return Ok(());
    }
    let how = record.pruning.as_ref().map_or_else(String::new, |how| format!("{} {}", how.method, how.pattern));
    println!(
        "{}: {how} at {:.4} sparsity over {} linears -> {}",
        record.model.name,
        record.sparsity(),
        record.tensors.len(),
        args.out.display()
    );
    Ok(())
}

fn select(args: &Args, method: Method) -> anyhow::Result<Record> {
    let sparsity = match (args.sparsity, args.pattern.sparsity()) {
        (Some(sparsity), _) | (None, Some(sparsity)) => sparsity,
        (None, None) => anyhow::bail!("--pattern unstructured needs --sparsity"),
    };
    let base = PruneConfig::new(method, sparsity).with_allocation(args.share.allocation);
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
    let structured = args.structure.config(method, sparsity, args.sampling.seed)?;
    let model = args.compute.open(&args.model)?;
    let calibration = match &args.calib {
        Some(path) => args.sampling.windows_if(config.needs_calibration(), path, &model)?,
        None if method.needs_calibration() => anyhow::bail!("--method {method} needs --calib FILE"),
        None if config.needs_calibration() => anyhow::bail!("--allocation owl and --refine dsnot need --calib FILE"),
        None => None,
    };
    Ok(match &structured {
        Some(config) => prune_structured_to(&model, calibration.as_ref(), config, &args.out, Progress::Stderr)?,
        None => prune_to(&model, calibration.as_ref(), &config, &args.out, Progress::Stderr)?,
    })
}
