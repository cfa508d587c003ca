//! Models, checkpoints and what goes through them, in cells.

use super::card::{Card, column, percent, shape, table};
use super::facts::{count, losses, record_facts, record_json, spread};
use crate::calibrate::Statistics;
use crate::checkpoint::{Checkpoint, HeadersOnly, Remote, Source, SparseSummary, TensorInfo, TensorKind};
use crate::error::Result;
use crate::experts::Parts;
use crate::format::{number, size};
use crate::gradients::Gradients;
use crate::mask::place;
use crate::model::{Model, MoeFamily};
use crate::report::{Format, HeatMap, Table};
use crate::rich::{Bundle, Rich, mime, shown_in_cells};
use crate::structured::Structured;
use crate::text::{Tokenizer, Windows};
use candle_core::Tensor;
use serde_json::{Value, json};

fn kinds_table(kinds: &[TensorKind]) -> Result<Table> {
    let numbers = |get: fn(&TensorKind) -> u64| kinds.iter().map(get).collect::<Vec<_>>();
    let all = kinds.iter().map(|kind| kind.bytes).sum::<u64>().max(1) as f64;
    let table = table(vec![
        column("tensor", kinds.iter().map(|kind| kind.name.as_str()).collect::<Vec<_>>()),
        column("dtype", kinds.iter().map(|kind| kind.dtype.as_str()).collect::<Vec<_>>()),
        column("shape", kinds.iter().map(|kind| shape(&kind.shape)).collect::<Vec<_>>()),
        column("count", numbers(|kind| kind.count)),
        column("parameters", numbers(|kind| kind.parameters)),
        column("size_bytes", numbers(|kind| kind.bytes)),
        column("share", kinds.iter().map(|kind| kind.bytes as f64 / all).collect::<Vec<_>>()),
    ])?;
    table.with_format("share", Format::Percent)?.with_heading("share", "share", Some("%"))
}

impl Rich for Model {
    fn bundle(&self) -> Result<Bundle> {
        let config = self.config();
        let sizes = config.sizes(self.dtype()).into_iter();
        let tensors = TensorKind::group(sizes.map(|tensor| TensorKind {
            dtype: tensor.dtype.as_str().to_owned(),
            name: tensor.name,
            shape: tensor.shape,
            count: 1,
            parameters: tensor.parameters,
            bytes: tensor.bytes,
            stored_bytes: None,
        }));
        let sum = |get: fn(&TensorKind) -> u64| tensors.iter().map(get).sum::<u64>();
        let (parameters, bytes) = (sum(|kind| kind.parameters), sum(|kind| kind.bytes));
        let (dtype, device) = (self.dtype().as_str(), if self.device().is_cpu() { "CPU" } else { "GPU" });
        let mut facts = vec![
            ("family", config.family.name().to_owned()),
            ("parameters", count(parameters)),
            ("layers", count(config.layers)),
            ("hidden size", count(config.hidden_size)),
            ("heads", format!("{} of width {}, {} of keys and values", config.heads, config.head_dim, config.kv_heads)),
        ];
        match &config.moe {
            Some(moe) => {
                facts.push(("experts", format!("{}, {} for each token", moe.experts, moe.top_k)));
                facts.push(("expert width", count(moe.intermediate_size)));
            }
            None => facts.push(("MLP width", count(config.intermediate_size))),
        }
        let tied = if config.tie_word_embeddings { ", tied to the output" } else { "" };
        let place = if self.is_resident() { "in memory" } else { "read layer by layer" };
        facts.extend([
            ("vocabulary", format!("{}{tied}", count(config.vocab_size))),
            ("context", format!("{} tokens", count(config.max_position_embeddings))),
            ("weights", format!("{} as {dtype} on the {device}, {place}", size(bytes))),
        ]);
        facts.extend(self.notes().iter().map(|note| ("note", note.clone())));
        let summary = format!(
            "Model {}: {}, {} layers, {} parameters, {}",
            self.name(),
            config.family.name(),
            config.layers,
            count(parameters),
            size(bytes)
        );
        let json = json!({
            "name": self.name(), "family": config.family.name(), "parameters": parameters, "bytes": bytes,
            "dtype": dtype, "blocks": config.layers, "hidden_size": config.hidden_size, "heads": config.heads,
            "kv_heads": config.kv_heads, "vocab_size": config.vocab_size, "resident": self.is_resident(),
        });
        Card::new(summary, json).facts("model", self.name(), facts)?.table(kinds_table(&tensors)?).bundle()
    }
}

/// The facts about a checkpoint that its headers tell.
fn source_card(source: &dyn Source) -> Result<Card> {
    let (name, index, files) = (source.name(), source.index(), source.files());
    let sum = |get: fn(&TensorInfo) -> u64| index.iter().map(get).sum::<u64>();
    let (parameters, bytes) = (sum(TensorInfo::elements), sum(TensorInfo::bytes));
    let files = format!("{} {}", files.len(), if files.len() == 1 { "file" } else { "files" });
    let summary = format!("Checkpoint {name}: {} elements, {} in {files}", count(parameters), size(bytes));
    // Weights without a config can be looked at as well.
    let config = source.config_json().unwrap_or_default();
    let model_type = config.get("model_type").and_then(Value::as_str);
    let number = |key: &str| config.get(key).and_then(Value::as_u64);
    let mut facts: Vec<(&str, String)> = model_type.map(|family| ("family", family.to_owned())).into_iter().collect();
    for (fact, key) in [("layers", "num_hidden_layers"), ("hidden size", "hidden_size"), ("vocabulary", "vocab_size")] {
        facts.extend(number(key).map(|value| (fact, count(value))));
    }
    facts.extend([("elements", count(parameters)), ("tensors", count(index.len())), ("files", files)]);
    let stored = Some(SparseSummary::of(source)).filter(SparseSummary::is_sparse);
    if stored.is_some() {
        let stored: u64 = index.iter().map(|info| source.stored(info).bytes).sum();
        facts.push((
            "stored sparse",
            format!("{}, {} of the dense", size(stored), percent(stored as f64 / bytes.max(1) as f64)),
        ));
    }
    let parts = Parts::of(index, model_type.and_then(MoeFamily::find));
    let sizes: Vec<u64> = parts.0.iter().map(|part| part.bytes).collect();
    let by_part = table(vec![
        column("part", parts.0.iter().map(|part| part.part.to_string()).collect::<Vec<_>>()),
        column("tensors", parts.0.iter().map(|part| part.tensors).collect::<Vec<_>>()),
        column("share", sizes.iter().map(|&part| part as f64 / bytes.max(1) as f64).collect::<Vec<_>>()),
        column("size_bytes", sizes),
    ])?;
    let by_part = by_part.with_format("share", Format::Percent)?.with_heading("share", "share", Some("%"))?;
    let tensors = TensorKind::of(source, false);
    let json = json!({
        "name": name, "family": model_type, "parameters": parameters, "bytes": bytes, "tensors": index.len(),
        "files": source.files(), "parts": parts,
    });
    Ok(Card::new(summary, json).facts("checkpoint", &name, facts)?.table(by_part).table(kinds_table(&tensors)?))
}

impl Rich for Checkpoint {
    fn bundle(&self) -> Result<Bundle> {
        source_card(self)?.bundle()
    }
}

impl Rich for HeadersOnly {
    fn bundle(&self) -> Result<Bundle> {
        source_card(self)?.bundle()
    }
}

impl Rich for Remote {
    fn bundle(&self) -> Result<Bundle> {
        source_card(self)?.bundle()
    }
}

impl Rich for Statistics {
    fn bundle(&self) -> Result<Bundle> {
        // By kind of linear, in the order of the model: names sort layer 10 before layer 2.
        let layer_number = |name: &str| place(name).0.and_then(|layer| layer.parse::<usize>().ok());
        let mut linears: Vec<&str> = self.linears().collect();
        linears.sort_by_key(|name| layer_number(name));
        let norms = |name: &str| -> Vec<f64> {
            self.column_norms(name).unwrap_or_default().into_iter().map(f64::from).collect()
        };
        let mut kinds: Vec<(String, Vec<&str>)> = Vec::new();
        for name in &linears {
            let kind = place(name).1;
            match kinds.iter_mut().find(|(other, _)| *other == kind) {
                Some((_, names)) => names.push(name),
                None => kinds.push((kind, vec![name])),
            }
        }
        let spreads: Vec<[f64; 3]> =
            kinds.iter().map(|(_, names)| spread(names.iter().flat_map(|name| norms(name)).collect())).collect();
        let part = |i: usize| spreads.iter().map(|spread| spread[i]).collect::<Vec<_>>();
        let by_kind = table(vec![
            column("input of", kinds.iter().map(|(kind, _)| kind.as_str()).collect::<Vec<_>>()),
            column("linears", kinds.iter().map(|(_, names)| names.len() as u64).collect::<Vec<_>>()),
            column("width", kinds.iter().map(|(_, names)| norms(names[0]).len() as u64).collect::<Vec<_>>()),
            column("least norm", part(0)),
            column("median norm", part(1)),
            column("largest norm", part(2)),
        ])?;
        let has = |what: &str, gathered: bool| gathered.then(|| what.to_owned());
        let first = linears.first().copied().unwrap_or_default();
        let gathered = [
            has("column norms", true),
            has("column sums", self.has_sums(first)),
            has("gram matrices", self.has_gram(first)),
        ];
        let gathered = gathered.into_iter().flatten().collect::<Vec<_>>().join(", ");
        let windows = count(self.windows());
        let summary = format!("Calibration: inputs of {} linears over {windows} windows", count(linears.len()));
        let json = json!({"linears": linears.len(), "windows": self.windows(), "gathered": gathered});
        let facts = vec![("windows", windows), ("linears", count(linears.len())), ("gathered", gathered)];
        let card = Card::new(summary, json).facts("calibration", "", facts)?.table(by_kind);
        // How far the largest input stands out of the median: what magnitude alone does not see.
        let mut layers: Vec<usize> = linears.iter().filter_map(|name| layer_number(name)).collect();
        layers.dedup();
        let outlier = |layer: usize, kind: &str| {
            let of: Vec<f64> = linears
                .iter()
                .filter(|name| layer_number(name) == Some(layer) && place(name).1 == kind)
                .map(|name| spread(norms(name)))
                .filter(|[_, median, largest]| *median > 0.0 && largest.is_finite())
                .map(|[_, median, largest]| largest / median)
                .collect();
            of.into_iter().reduce(f64::max)
        };
        let rows: Vec<Vec<Option<f64>>> =
            layers.iter().map(|&layer| kinds.iter().map(|(kind, _)| outlier(layer, kind)).collect()).collect();
        if rows.iter().flatten().all(Option::is_none) {
            return card.bundle();
        }
        let short = |kind: &str| kind.rsplit('.').next().unwrap_or_default().to_owned();
        let map = HeatMap::new("Inputs that stand out", rows)
            .rows("Layer")
            .columns("Linear")
            .row_names(layers.iter().map(usize::to_string))
            .column_names(kinds.iter().map(|(kind, _)| short(kind)))
            .unit("Largest norm of an input over the median")
            .log();
        card.figure(map).bundle()
    }
}

impl Rich for Gradients {
    fn bundle(&self) -> Result<Bundle> {
        let (windows, linears) = (self.losses.len(), self.names().count());
        let summary = format!("Gradients of {} linears over {} windows", count(linears), count(windows));
        let facts = vec![
            ("loss", format!("{} nats per token", number(self.loss_nats))),
            ("windows", count(windows)),
            ("linears", count(linears)),
        ];
        let json = json!({"loss_nats": self.loss_nats, "windows": windows, "linears": linears});
        let card = Card::new(summary, json).facts("gradients", "", facts)?;
        match self.losses[..] {
            [_, _, ..] => card.figure(losses(&self.losses)).bundle(),
            _ => card.bundle(),
        }
    }
}

impl Rich for Structured {
    fn bundle(&self) -> Result<Bundle> {
        let before = self.record.model.parameters;
        let Some(structure) = &self.record.structure else { return self.record.bundle() };
        let after = structure.parameters;
        let left = percent(after as f64 / before.max(1) as f64);
        let summary = format!(
            "{}: {} pruned, {} of {} parameters left ({left})",
            self.record.model.name,
            structure.unit,
            count(after),
            count(before)
        );
        let removed = &structure.removed;
        let modules = table(vec![
            column("module", removed.iter().map(|module| module.module.as_str()).collect::<Vec<_>>()),
            column("units", removed.iter().map(|module| module.of as u64).collect::<Vec<_>>()),
            column("gone", removed.iter().map(|module| module.count as u64).collect::<Vec<_>>()),
            column("which", removed.iter().map(|module| module.units.as_str()).collect::<Vec<_>>()),
        ])?;
        Card::new(summary, record_json(&self.record))
            .facts("structured pruning", &self.record.model.name, record_facts(&self.record))?
            .table(modules)
            .bundle()
    }
}

impl Rich for Windows {
    fn bundle(&self) -> Result<Bundle> {
        let windows = self.ids.len();
        let tokens = count(windows * self.seqlen);
        let summary =
            format!("{}: {} windows of {} tokens, {tokens} in all", self.name, count(windows), count(self.seqlen));
        let record = self.record();
        let json = json!({"name": self.name, "windows": windows, "seqlen": self.seqlen, "sha256": record.sha256});
        let facts = vec![
            ("windows", count(windows)),
            ("tokens a window", count(self.seqlen)),
            ("tokens", tokens),
            ("checksum", record.sha256[..16].to_owned()),
        ];
        Card::new(summary, json).facts("text", &self.name, facts)?.bundle()
    }
}

impl Rich for Tokenizer {
    fn bundle(&self) -> Result<Bundle> {
        let words = self.vocab_size();
        let json = json!({"vocab_size": words});
        Ok(vec![(mime::PLAIN, format!("Tokenizer of {} tokens", count(words))), (mime::JSON, json.to_string())])
    }
}

/// candle prints its tensors well, large ones in part.
impl Rich for Tensor {
    fn bundle(&self) -> Result<Bundle> {
        Ok(vec![(mime::PLAIN, self.to_string())])
    }
}

shown_in_cells!(Model, Checkpoint, HeadersOnly, Remote, Statistics, Gradients, Structured, Windows, Tokenizer,);
