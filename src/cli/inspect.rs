//! `lacuna inspect`: what is in a checkpoint, from its headers alone.

use super::compress::print_summary;
use super::{print_table, size};
use anyhow::Result;
use lacuna::checkpoint::{HeadersOnly, Source, SparseSummary, TensorInfo, TensorKind, open_source};
use lacuna::experts::{LayerShards, Locality, PartSize, Parts};
use lacuna::model::{MoeFamily, head_differs};
use lacuna::progress::Progress;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Describes a model: family, sizes, types, its parts, which shards hold which mixture of experts, and its tensors by
/// kind. Reads headers only, and of a directory that has an output head beside a tied embedding, both of these.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory of a checkpoint or of saved headers, or `owner/name[@revision]` on a hub
    model: String,
    /// Save config.json and the headers to a new directory, which `inspect` and plans take instead of the checkpoint
    #[arg(long, value_name = "DIR")]
    save_headers: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The output of `inspect`.
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
    /// True if the output head is the embedding. `None` where only headers are at hand, `config.json` says that it is,
    /// and a head is stored all the same: that one counts if it differs.
    tied_embeddings: Option<bool>,
    #[serde(skip)]
    tied_by_config: bool,
    experts: Option<u64>,
    experts_per_token: Option<u64>,
    shards: usize,
    /// Stored bytes of a sparse checkpoint; all other numbers of bytes are those of its tensors if they were dense.
    #[serde(skip_serializing_if = "Option::is_none")]
    stored: Option<SparseSummary>,
    parts: Parts,
    /// The table for a mixture of experts whose config has the number of layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    locality: Option<Locality>,
    tensors: Vec<TensorKind>,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let source = open_source(&args.model, Progress::Stderr)?;
    let inspection = inspect(source.as_ref(), &source.config_json()?)?;
    if let Some(dir) = &args.save_headers {
        HeadersOnly::save(source.as_ref(), dir)?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&inspection)?);
    } else {
        print(&inspection);
    }
    Ok(())
}

/// Returns whether the output head is the embedding, by `config.json` and by the tensors that are stored.
fn tied(source: &dyn Source, config: &Map<String, Value>) -> Result<Option<bool>> {
    let stored = source.index().iter().any(|tensor| tensor.name == "lm_head.weight");
    Ok(match config.get("tie_word_embeddings").and_then(Value::as_bool) {
        // Over a network, two matrices are more than a look is worth.
        Some(true) if stored && !(source.has_weights() && source.worth_skipping() == 0) => None,
        Some(true) => Some(head_differs(source)? != Some(true)),
        said => Some(said.unwrap_or(!stored)),
    })
}

fn inspect(source: &dyn Source, config: &Map<String, Value>) -> Result<Inspection> {
    let model_type = config.get("model_type").and_then(Value::as_str);
    let (index, files, family) = (source.index(), source.files(), model_type.and_then(MoeFamily::find));
    let number = |names: &[&str]| names.iter().find_map(|name| config.get(*name)?.as_u64());
    let mut dtypes = BTreeMap::new();
    for info in index {
        // Sums of sizes fit: no source has tensors of more than 2^63 bytes.
        *dtypes.entry(info.dtype.to_string()).or_default() += info.bytes();
    }
    let stored = Some(SparseSummary::of(source)).filter(SparseSummary::is_sparse);
    let layers = number(&["num_hidden_layers"]);
    let depth = layers.and_then(|layers| usize::try_from(layers).ok());
    let heads = number(&["num_attention_heads"]);
    Ok(Inspection {
        family: model_type.map(str::to_owned),
        parameters: index.iter().map(TensorInfo::elements).sum(),
        bytes: index.iter().map(TensorInfo::bytes).sum(),
        dtypes,
        layers,
        hidden_size: number(&["hidden_size"]),
        heads,
        kv_heads: number(&["num_key_value_heads"]).or(heads),
        vocab_size: number(&["vocab_size"]),
        tied_embeddings: tied(source, config)?,
        tied_by_config: config.get("tie_word_embeddings").and_then(Value::as_bool) == Some(true),
        // Of a family that is not known, what is usual.
        experts: family.map_or_else(
            || number(&["num_local_experts", "num_experts", "n_routed_experts"]),
            |family| number(&family.experts_keys()),
        ),
        experts_per_token: number(family.map_or(&["num_experts_per_tok", "experts_per_token"], |f| f.top_k_keys)),
        shards: files.len(),
        stored,
        parts: Parts::of(index, family),
        locality: family.zip(depth).map(|(family, depth)| Locality::of(index, &files, family, depth)),
        tensors: TensorKind::of(source, stored.is_some()),
    })
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
    let tied = match inspection.tied_embeddings {
        Some(true) => "yes",
        Some(false) if inspection.tied_by_config => {
            "no: config.json says so, but lm_head.weight differs from the embedding, and it is used"
        }
        Some(false) => "no",
        None => "if lm_head.weight, which is stored too, does not differ from the embedding; headers do not tell",
    };
    println!("tied embeddings  {tied}");
    if let Some(experts) = inspection.experts {
        println!("experts          {experts} a layer, {} for each token", known(inspection.experts_per_token));
        if let Some(locality) = &inspection.locality {
            println!("mixtures         in {} layers", locality.layers.len());
        }
    }
    if let Some(stored) = &inspection.stored {
        println!("\nStored sparse; all other sizes are those of the dense tensors:\n");
        print_summary(stored);
    }
    println!();
    let parts = inspection.parts.0.iter().map(|size| part(size, inspection.bytes));
    print_table(["part", "tensors", "bytes", "", "share"], &[0], parts);
    if let Some(locality) = &inspection.locality {
        println!("\nShards, by the numbers of their files, that hold the experts and the router of a layer:\n");
        let names = locality.shard_names();
        print_table(["layer", "bytes", "shards"], &[2], locality.layers.iter().map(|layer| shards(layer, &names)));
    }
    println!();
    let header = ["tensor", "count", "shape", "dtype", "parameters", "bytes", "stored"];
    if inspection.stored.is_some() {
        print_table(header, &[0], inspection.tensors.iter().map(row));
    } else {
        let [header @ .., _] = header;
        let row = |[row @ .., _]: [String; 7]| row;
        print_table(header, &[0], inspection.tensors.iter().map(|kind| row(self::row(kind))));
    }
}

fn part(part: &PartSize, of: u64) -> [String; 5] {
    let share = format!("{:.1}%", 100.0 * part.bytes as f64 / of.max(1) as f64);
    [part.part.to_string(), part.tensors.to_string(), part.bytes.to_string(), size(part.bytes), share]
}

fn shards(layer: &LayerShards, names: &[String]) -> [String; 3] {
    let shards: Vec<String> =
        layer.shards.iter().map(|shard| format!("{} ({})", names[shard.shard], size(shard.bytes))).collect();
    [layer.layer.to_string(), layer.bytes.to_string(), shards.join(", ")]
}

fn row(kind: &TensorKind) -> [String; 7] {
    let shape: Vec<String> = kind.shape.iter().map(usize::to_string).collect();
    [
        kind.name.clone(),
        kind.count.to_string(),
        shape.join(" x "),
        kind.dtype.clone(),
        kind.parameters.to_string(),
        kind.bytes.to_string(),
        kind.stored_bytes.map_or_else(String::new, |bytes| bytes.to_string()),
    ]
}
