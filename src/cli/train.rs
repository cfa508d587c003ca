//! `lacuna train`

use clap::ValueEnum;
use lacuna::progress::Progress;
use lacuna::settings::FloatType;
use lacuna::train::{ExpertsConfig, TrainConfig, train};
use std::path::PathBuf;

/// Train a small model from scratch: tokenizer and weights, on a CPU
///
/// The corpus is a folder with train.txt, valid.txt and test.txt, in which a line `<|endoftext|>` separates documents. A run
/// that was stopped goes on when the same command is given again, and ends in the same bytes.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Architecture
    #[arg(long)]
    family: Family,
    /// Folder with train.txt, valid.txt and test.txt
    #[arg(long, value_name = "DIR")]
    corpus: PathBuf,
    /// Directory to write; it must not exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Number of layers
    #[arg(long)]
    layers: usize,
    /// Width of the residual stream
    #[arg(long)]
    hidden: usize,
    /// Query heads
    #[arg(long)]
    heads: usize,
    /// Key/value heads, a divisor of the heads
    #[arg(long)]
    kv_heads: usize,
    /// Width of the MLP, or of one expert
    #[arg(long)]
    intermediate: usize,
    /// Experts per layer (mixtral)
    #[arg(long, required_if_eq("family", "mixtral"))]
    experts: Option<usize>,
    /// Experts per token (mixtral)
    #[arg(long, required_if_eq("family", "mixtral"))]
    top_k: Option<usize>,
    /// Let the output projection be the embedding
    #[arg(long)]
    tie: bool,
    /// Tokens of the byte-level BPE that is trained first; at least 257
    #[arg(long)]
    vocab: usize,
    /// Tokens per window, also the longest context of the model
    #[arg(long)]
    seqlen: usize,
    /// Windows per step
    #[arg(long)]
    batch: usize,
    /// Optimiser steps
    #[arg(long)]
    steps: usize,
    /// Steps of linear warm-up [default: a twentieth of the steps]
    #[arg(long)]
    warmup: Option<usize>,
    /// Peak learning rate
    #[arg(long)]
    lr: f64,
    /// Seeds the weights and the order of the windows
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Dtype of the saved weights: bf16, f16 or f32
    #[arg(long, default_value = "bf16")]
    dtype: FloatType,
    /// Files to save the weights in
    #[arg(long, default_value_t = 1)]
    shards: usize,
    /// Save the state of the run every so many steps
    #[arg(long, default_value_t = 50, value_name = "STEPS")]
    save_every: usize,
    /// Print the record as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Family {
    Llama,
    Mixtral,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    settle_process();
    let moe = match (args.family, args.experts, args.top_k) {
        (Family::Mixtral, Some(experts), Some(top_k)) => Some(ExpertsConfig { experts, top_k }),
        (Family::Llama, None, None) => None,
        _ => anyhow::bail!("--experts and --top-k belong to --family mixtral, which needs both"),
    };
    let config = TrainConfig {
        layers: args.layers,
        hidden_size: args.hidden,
        heads: args.heads,
        kv_heads: args.kv_heads,
        intermediate_size: args.intermediate,
        moe,
        tie_word_embeddings: args.tie,
        vocab_size: args.vocab,
        seqlen: args.seqlen,
        batch: args.batch,
        steps: args.steps,
        warmup: args.warmup.unwrap_or(args.steps / 20),
        learning_rate: args.lr,
        seed: args.seed,
        dtype: args.dtype,
        shards: args.shards,
    };
    let record = train(&args.corpus, &args.out, &config, args.save_every, Progress::Stderr)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&record)?);
        return Ok(());
    }
    println!("{}: {} parameters, {} tokens seen", args.out.display(), record.parameters, record.seen_tokens);
    println!("test perplexity over {} tokens:", record.test.tokens);
    println!("  unigram {:>8.2}", record.ngram.unigram);
    println!("  bigram  {:>8.2}", record.ngram.bigram);
    println!("  model   {:>8.2}", record.test.perplexity);
    Ok(())
}

/// Training makes and drops tensors of a few megabytes all the time. Two defaults cost it two thirds of its speed on two
/// cores: candle's barrier pool spins between elementwise operations, while passes already run on a thread each; and glibc
/// hands every large block back to the system, to fault it in again.
fn settle_process() {
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: besides this thread only the signal handler's runs, and it reads no environment.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: these calls change parameters of the allocator and nothing else.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}
