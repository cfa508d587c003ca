//! `lacuna compress` and `lacuna decompress`: zeros that take no place on disk.

use super::{print_json, print_table, size};
use lacuna::checkpoint::{Checkpoint, Share, SparseFormat, SparseSummary, compress, decompress};
use lacuna::progress::Progress;
use std::path::PathBuf;

/// Store a pruned checkpoint without its zeros; every command takes the result as it takes the dense one
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory or hub id
    model: String,
    /// Directory to make
    #[arg(long)]
    out: PathBuf,
    /// bitmask (a bit for each weight; compressed-tensors reads it), 2:4 (with the indices of sparse tensor cores), or
    /// auto: for each tensor what is smaller
    #[arg(long, default_value = "auto", value_parser = parse_format)]
    format: Choice,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Write the dense checkpoint that a compressed one stands for
#[derive(Debug, clap::Args)]
pub(crate) struct DecompressArgs {
    /// Directory or hub id
    model: String,
    /// Directory to make
    #[arg(long)]
    out: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug)]
struct Choice(Option<SparseFormat>);

fn parse_format(text: &str) -> Result<Choice, String> {
    match text {
        "auto" => Ok(Choice(None)),
        _ => text.parse().map(|format| Choice(Some(format))).map_err(|_| "write auto, bitmask or 2:4".to_owned()),
    }
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let checkpoint = Checkpoint::resolve(&args.model, Progress::Stderr)?;
    let summary = compress(&checkpoint, &args.out, args.format.0, Progress::Stderr)?;
    if args.json {
        return print_json(&summary);
    }
    print_summary(&summary);
    if summary.is_sparse() {
        println!("-> {}", args.out.display());
    } else {
        println!("-> {}, which is dense too: no tensor has zeros enough to gain by it", args.out.display());
    }
    Ok(())
}

pub(crate) fn run_decompress(args: DecompressArgs) -> anyhow::Result<()> {
    let checkpoint = Checkpoint::resolve(&args.model, Progress::Stderr)?;
    let summary = decompress(&checkpoint, &args.out, Progress::Stderr)?;
    if args.json {
        return print_json(&summary);
    }
    print_summary(&summary);
    println!("-> {}, dense", args.out.display());
    Ok(())
}

/// Prints sizes by format, and their ratios.
pub(super) fn print_summary(summary: &SparseSummary) {
    let row = |name: &str, share: &Share| {
        let ratio = format!("{:.4}", share.ratio());
        [name.to_owned(), share.tensors.to_string(), size(share.dense_bytes), size(share.stored_bytes), ratio]
    };
    let shares = [("bitmask", summary.bitmask), ("2:4", summary.two_of_four), ("dense", summary.dense)];
    let there = shares.iter().filter(|(_, share)| share.tensors > 0);
    let rows = there.map(|(name, share)| row(name, share)).chain([row("all", &summary.total())]);
    print_table(["format", "tensors", "dense", "stored", "ratio"], &[0], rows);
}
