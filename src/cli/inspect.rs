//! `lacuna inspect`: what is in a checkpoint, from its headers alone.

use super::size;
use anyhow::Result;
use lacuna::checkpoint::Checkpoint;
use lacuna::progress::Progress;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Describes a model: family, sizes, types, and its tensors by kind.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory of a checkpoint, or `owner/name[@revision]` on a hub
    model: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is printed.
#[derive(Serialize)]
struct Inspection {
    family: Option<String>,
    parameters: u64,
    bytes: u64,
    /// Bytes by type of element.
    dtypes: BTreeMap<String, u64>,
    layers: Option<u64>,
    hidden_size: Option<u64>,
    heads: Option<u64>,
    kv_heads: Option<u64>,
    vocab_size: Option<u64>,
    tied_embeddings: bool,
    experts: Option<u64>,
    experts_per_token: Option<u64>,
    shards: usize,
    tensors: Vec<Kind>,
}

/// Tensors that differ in their numbers only: layer, expert.
#[derive(Serialize)]
struct Kind {
    /// The name with `*` for numbers.
    name: String,
    dtype: String,
    shape: Vec<usize>,
    count: u64,
    parameters: u64,
    bytes: u64,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let checkpoint = Checkpoint::resolve(&args.model, Progress::Stderr)?;
    let inspection = inspect(&checkpoint, &checkpoint.config()?);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&inspection)?);
    } else {
        print(&inspection);
    }
    Ok(())
}

fn inspect(checkpoint: &Checkpoint, config: &Map<String, Value>) -> Inspection {
    let number = |names: &[&str]| names.iter().find_map(|name| config.get(*name)?.as_u64());
    let mut dtypes = BTreeMap::new();
    let mut tensors: Vec<Kind> = Vec::new();
    for info in checkpoint.tensors() {
        *dtypes.entry(info.dtype.to_string()).or_default() += info.bytes();
        let (name, dtype) = (kind(&info.name), info.dtype.to_string());
        // There are a few dozen kinds at most.
        let known = tensors.iter().position(|k| k.name == name && k.dtype == dtype && k.shape == info.shape);
        let at = known.unwrap_or_else(|| {
            tensors.push(Kind { name, dtype, shape: info.shape.clone(), count: 0, parameters: 0, bytes: 0 });
            tensors.len() - 1
        });
        tensors[at].count += 1;
        tensors[at].parameters += info.elements();
        tensors[at].bytes += info.bytes();
    }
    let heads = number(&["num_attention_heads"]);
    Inspection {
        family: config.get("model_type").and_then(Value::as_str).map(str::to_owned),
        parameters: checkpoint.parameters(),
        bytes: checkpoint.bytes(),
        dtypes,
        layers: number(&["num_hidden_layers"]),
        hidden_size: number(&["hidden_size"]),
        heads,
        kv_heads: number(&["num_key_value_heads"]).or(heads),
        vocab_size: number(&["vocab_size"]),
        tied_embeddings: config
            .get("tie_word_embeddings")
            .and_then(Value::as_bool)
            .unwrap_or_else(|| !checkpoint.contains("lm_head.weight")),
        experts: number(&["num_local_experts", "num_experts", "n_routed_experts"]),
        experts_per_token: number(&["num_experts_per_tok", "experts_per_token"]),
        shards: checkpoint.shards().len(),
        tensors,
    }
}

/// `model.layers.3.mlp.up_proj.weight` -> `model.layers.*.mlp.up_proj.weight`.
fn kind(name: &str) -> String {
    let part = |part: &str| if part.bytes().all(|b| b.is_ascii_digit()) { "*".to_owned() } else { part.to_owned() };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

fn print(inspection: &Inspection) {
    let known = |number: Option<u64>| number.map_or_else(|| "unknown".into(), |number| number.to_string());
    let dtypes: Vec<String> =
        inspection.dtypes.iter().map(|(dtype, bytes)| format!("{dtype} {}", size(*bytes))).collect();
    println!("family           {}", inspection.family.as_deref().unwrap_or("unknown"));
    println!("parameters       {}", inspection.parameters);
    println!("size             {} ({}), {} shard(s)", size(inspection.bytes), dtypes.join(", "), inspection.shards);
    println!("layers           {}", known(inspection.layers));
    println!("hidden size      {}", known(inspection.hidden_size));
    println!("heads            {}, {} of keys and values", known(inspection.heads), known(inspection.kv_heads));
    println!("vocabulary       {}", known(inspection.vocab_size));
    println!("tied embeddings  {}", if inspection.tied_embeddings { "yes" } else { "no" });
    if let Some(experts) = inspection.experts {
        println!("experts          {experts} a layer, {} for each token", known(inspection.experts_per_token));
    }
    println!();
    let rows: Vec<[String; 6]> = inspection.tensors.iter().map(row).collect();
    let header = ["tensor", "count", "shape", "dtype", "parameters", "bytes"].map(str::to_owned);
    let lines: Vec<&[String; 6]> = std::iter::once(&header).chain(&rows).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    for [name, count, shape, dtype, parameters, bytes] in lines {
        let [w0, w1, w2, w3, w4, w5] = widths;
        println!("{name:w0$}  {count:>w1$}  {shape:>w2$}  {dtype:>w3$}  {parameters:>w4$}  {bytes:>w5$}");
    }
}

fn row(kind: &Kind) -> [String; 6] {
    let shape: Vec<String> = kind.shape.iter().map(usize::to_string).collect();
    [
        kind.name.clone(),
        kind.count.to_string(),
        shape.join(" x "),
        kind.dtype.clone(),
        kind.parameters.to_string(),
        kind.bytes.to_string(),
    ]
}
