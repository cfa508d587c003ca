//! `lacuna generate`

use super::{Compute, print_json};
use lacuna::generate::{GenerateConfig, generate_after};
use lacuna::text::Bos;

/// Continue a text
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory or hub id
    model: String,
    /// Text to continue
    #[arg(long)]
    prompt: String,
    /// Tokens to add at most
    #[arg(long, default_value_t = 64)]
    max_new_tokens: usize,
    /// 0 takes the most likely token; above, tokens are drawn
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Draw from the smallest set of tokens with this total probability
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// The token for the beginning of a text in front: auto (as the tokenizer does), yes or no
    #[arg(long, default_value_t = Bos::Auto)]
    bos: Bos,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    compute: Compute,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let model = args.compute.open(&args.model)?.resident()?;
    let config = GenerateConfig {
        max_new_tokens: args.max_new_tokens,
        temperature: args.temperature,
        top_p: args.top_p,
        seed: args.seed,
    };
    let (continuation, bos) = generate_after(&model, &args.prompt, args.bos, &config)?;
    if args.json {
        return print_json(&serde_json::json!({ "prompt": args.prompt, "continuation": continuation, "bos": bos }));
    }
    println!("{}{continuation}", args.prompt);
    Ok(())
}
