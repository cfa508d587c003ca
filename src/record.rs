//! What a run leaves behind: plain data, versioned, with times and hosts apart from results.

use crate::stats::Interval;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the JSON that [`Record`] serialises to (documented in `docs/record.md`; `docs/record.schema.json`).
pub const SCHEMA_VERSION: u32 = 1;

/// One run: which model, what was done to it, what came out.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Record {
    /// [`SCHEMA_VERSION`] of the writer.
    pub schema: u32,
    /// The model that went in.
    pub model: ModelRecord,
    /// How it was pruned; `None` for the dense model.
    pub pruning: Option<PruningRecord>,
    /// Which units went; `None` unless whole ones were pruned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub structure: Option<StructureRecord>,
    /// Zeros per pruned tensor, in model order.
    pub tensors: Vec<TensorRecord>,
    /// What it scored, if it was evaluated.
    pub evaluation: Option<EvaluationRecord>,
    /// Times, hosts, versions: whatever may differ between two runs with the same results. Comparisons leave it out.
    #[serde(default)]
    pub environment: BTreeMap<String, serde_json::Value>,
}

crate::debug::one_line!(rich Record, |record| {
    let how = record.pruning.as_ref().map_or("dense".into(), |p| format!("{} {} at {}", p.method, p.pattern, p.sparsity));
    let perplexity = record.perplexity().map_or(String::new(), |value| format!(", perplexity {value:.4}"));
    format!("Record({}: {how}{perplexity})", record.model.name)
});

/// A model's identity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelRecord {
    /// Directory name or hub id, as given.
    pub name: String,
    /// `model_type` of its config.
    pub family: String,
    /// Number of parameters.
    pub parameters: u64,
    /// SHA-256 over its tensors, in hexadecimal; empty for weights that exist in memory only.
    pub sha256: String,
}

/// A text's identity and the windows taken from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TextRecord {
    /// File name.
    pub name: String,
    /// SHA-256 of the token windows, in hexadecimal.
    pub sha256: String,
    /// Number of windows.
    pub windows: usize,
    /// Tokens per window.
    pub seqlen: usize,
}

/// A pruning run's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PruningRecord {
    /// `magnitude`, `wanda`, `ria`, `gradient`, `taylor`, `random`, `sparsegpt`.
    pub method: String,
    /// `unstructured`, `n:m` as kept-of-M, or the unit of structured pruning: `heads`, `neurons` and so on.
    pub pattern: String,
    /// `row`, `layer` or `alpha`; what an unstructured selection compares. `row` for N:M, `columns` for SparseGPT; for
    /// units `module`, `layer` or `model`.
    pub per: String,
    /// Target fraction of zeros.
    pub sparsity: f64,
    /// How it was shared out: `uniform`, `owl:M:LAMBDA`, `global`.
    #[serde(default = "uniform")]
    pub allocation: String,
    /// Linears with a target of their own: `GLOB=SPARSITY` or `GLOB=skip`; the last that matches counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<String>,
    /// `dsnot` where the mask was refined by swaps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refine: Option<String>,
    /// Whether ties went as in the reference implementation.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reference_ties: bool,
    /// `pruned` or `dense`.
    pub propagate: String,
    /// Seed of the calibration windows and of random scores.
    pub seed: u64,
    /// Arithmetic of the forward pass: `f32`, `bf16`, `f16`.
    pub dtype: String,
    /// Calibration text; `None` when the method needs none.
    pub calibration: Option<TextRecord>,
}

/// What records say that were written before there was a choice.
fn uniform() -> String {
    "uniform".to_owned()
}

/// Which units structured pruning took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StructureRecord {
    /// `heads`, `neurons`, `channels`, `output-channels` or `input-channels`.
    pub unit: String,
    /// `sum` or `l2`: how the scores of a unit's weights join.
    pub group_norm: String,
    /// `remove` or `zero`.
    pub form: String,
    /// Number of parameters afterwards.
    pub parameters: u64,
    /// The values that changed in `config.json`; none when units were only zeroed.
    pub config: BTreeMap<String, serde_json::Value>,
    /// The units that went, module by module, in model order.
    pub removed: Vec<UnitsRecord>,
}

/// The units that one module lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UnitsRecord {
    /// `model.layers.0.self_attn`, `model.layers.0.mlp`, `model`; for the channels of one linear its weight.
    pub module: String,
    /// Number of units that it had. Heads count as key/value heads, each with the query heads that read it.
    pub of: usize,
    /// Number of units that went.
    pub count: usize,
    /// Which ones, from 0, as ranges with both ends: `0,3-5`.
    pub units: String,
}

/// Zeros of one tensor after pruning. Weights that were removed count as zeros of the tensor that they were removed from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TensorRecord {
    /// The tensor's name in the checkpoint.
    pub name: String,
    /// `(out, in)` in the model that went in.
    pub shape: [usize; 2],
    /// Number of zeros.
    pub zeros: u64,
}

/// A perplexity measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EvaluationRecord {
    /// The text.
    pub text: TextRecord,
    /// Number of predicted tokens: `windows * (seqlen - 1)`.
    pub tokens: u64,
    /// Mean negative log-likelihood per predicted token, in nats.
    pub nll_nats: f64,
    /// `exp(nll_nats)`.
    pub perplexity: f64,
    /// Bootstrap interval of `nll_nats` over windows; `None` for a single window, and in records of older versions.
    #[serde(default)]
    pub nll_interval: Option<Interval>,
    /// `exp` of `nll_interval`.
    #[serde(default)]
    pub perplexity_interval: Option<Interval>,
}

impl Record {
    /// The record of a model that was not pruned.
    pub fn dense(model: ModelRecord) -> Self {
        Record {
            schema: SCHEMA_VERSION,
            model,
            pruning: None,
            structure: None,
            tensors: Vec::new(),
            evaluation: None,
            environment: environment(),
        }
    }

    /// The same record with what the model scored.
    pub fn with_evaluation(self, evaluation: EvaluationRecord) -> Self {
        Record { evaluation: Some(evaluation), ..self }
    }

    /// Perplexity, if the model was evaluated.
    pub fn perplexity(&self) -> Option<f64> {
        self.evaluation.as_ref().map(|evaluation| evaluation.perplexity)
    }

    /// Pattern of the zeros, if the model was pruned.
    pub fn pattern(&self) -> Option<&str> {
        self.pruning.as_ref().map(|pruning| pruning.pattern.as_str())
    }

    /// Fraction of zeros over all pruned tensors; 0 when nothing was pruned.
    pub fn sparsity(&self) -> f64 {
        let (zeros, elements) = self
            .tensors
            .iter()
            .fold((0u64, 0u64), |(zeros, elements), tensor| (zeros + tensor.zeros, elements + tensor.elements()));
        if elements == 0 { 0.0 } else { zeros as f64 / elements as f64 }
    }
}

impl TensorRecord {
    /// `out * in`.
    pub fn elements(&self) -> u64 {
        self.shape[0] as u64 * self.shape[1] as u64
    }
}

/// What may differ between two runs with the same results: the crate's version, the host's threads.
pub fn environment() -> BTreeMap<String, serde_json::Value> {
    BTreeMap::from([
        ("lacuna".to_owned(), env!("CARGO_PKG_VERSION").into()),
        ("threads".to_owned(), rayon::current_num_threads().into()),
    ])
}
