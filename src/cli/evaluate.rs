//! `lacuna evaluate`

use super::{Compute, print_json, seqlen, tokenizer_for};
use lacuna::evaluate::evaluate;
use lacuna::progress::Progress;
use lacuna::text::Windows;
use std::path::PathBuf;

/// Score a model's perplexity on a text
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory or hub id
    model: String,
    /// Text: .txt, .jsonl (field `text`) or .json (windows of token ids)
    #[arg(long)]
    text: PathBuf,
    /// Windows to score, from the beginning [default: all]
    #[arg(long)]
    windows: Option<usize>,
    /// Tokens per window [default: the model's context, at most 2048]
    #[arg(long)]
    seqlen: Option<usize>,
    #[command(flatten)]
    compute: Compute,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let model = args.compute.open(&args.model)?;
    let seqlen = seqlen(&model, args.seqlen);
    let tokenizer = tokenizer_for(&args.text, &model)?;
    let windows = Windows::evaluation(&args.text, tokenizer.as_ref(), args.windows, seqlen)?;
    let evaluation = evaluate(&model, &windows, Progress::Stderr)?.record();
    if args.json {
        return print_json(&evaluation);
    }
    println!("nll_nats    {:.6}", evaluation.nll_nats);
    println!("perplexity  {:.4}", evaluation.perplexity);
    println!("tokens      {}", evaluation.tokens);
    Ok(())
}
