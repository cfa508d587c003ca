//! Records of runs: plain data, versioned, with times and hosts apart from results.

use crate::settings::{
    Allocation, ComparisonGroup, Dsnot, FloatType, Form, GroupNorm, Origin, Pattern, Propagate, Rule, Unit, Zeros,
};
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
    /// Settings of the pruning; `None` for the dense model.
    pub pruning: Option<PruningRecord>,
    /// The units that were pruned; `None` unless whole ones were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub structure: Option<StructureRecord>,
    /// Zeros per pruned tensor, in model order.
    pub tensors: Vec<TensorRecord>,
    /// Scores of the model, if it was evaluated.
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
    /// Commit of a model from a hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
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
    pub method: Origin,
    /// `unstructured`, `n:m` as kept-of-M, or the unit of structured pruning: `heads`, `neurons` and so on.
    pub pattern: Zeros,
    /// `row`, `layer` or `alpha`; what an unstructured selection compares. `row` for N:M, `columns` for SparseGPT; for
    /// units `module`, `layer` or `model`.
    pub per: ComparisonGroup,
    /// Target fraction of zeros.
    pub sparsity: f64,
    /// Distribution of the sparsity over the linears: `uniform`, `owl:M:LAMBDA`, `global`.
    #[serde(default)]
    pub allocation: Allocation,
    /// Linears with a target of their own: `GLOB=SPARSITY` or `GLOB=skip`; the last that matches counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// `dsnot:MAX_CYCLES:THRESHOLD:VARIANCE_POWER`, with `:keep-sign` where signs were kept, where the mask was refined by swaps;
    /// `dsnot` in records of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refine: Option<Dsnot>,
    /// True if ties were broken as in the reference implementation.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reference_ties: bool,
    /// `pruned` or `dense`.
    pub propagate: Propagate,
    /// Seed of the calibration windows and of random scores.
    pub seed: u64,
    /// Arithmetic of the forward pass: `f32`, `bf16`, `f16`.
    pub dtype: FloatType,
    /// Calibration text; `None` when the method needs none.
    pub calibration: Option<TextRecord>,
}

impl PruningRecord {
    /// Pruning by `method` to a fraction of zeros, as it is without further choices: scores compared in the group that is usual for
    /// the zeros, every linear alike, exact counts, dense inputs, f32, seed 0 and no calibration.
    pub fn new(method: impl Into<Origin>, zeros: impl Into<Zeros>, sparsity: f64) -> Self {
        let (method, pattern) = (method.into(), zeros.into());
        let per = match (pattern, &method) {
            (Zeros::Units(unit), _) => unit.per(),
            (Zeros::Pattern(Pattern::NofM { .. }), _) => ComparisonGroup::Row,
            (Zeros::Pattern(Pattern::Unstructured), Origin::Method(method)) => method.group(),
            (Zeros::Pattern(Pattern::Unstructured), Origin::Masks(_)) => ComparisonGroup::Layer,
        };
        PruningRecord {
            method,
            pattern,
            per,
            sparsity,
            allocation: Allocation::Uniform,
            rules: Vec::new(),
            refine: None,
            reference_ties: false,
            propagate: Propagate::Dense,
            seed: 0,
            dtype: FloatType::F32,
            calibration: None,
        }
    }
}

/// The units that structured pruning removed or zeroed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StructureRecord {
    /// `heads`, `neurons`, `channels`, `output-channels` or `input-channels`.
    pub unit: Unit,
    /// `sum` or `l2`: the norm that joins the scores of a unit's weights.
    pub group_norm: GroupNorm,
    /// `remove` or `zero`.
    pub form: Form,
    /// Number of parameters afterwards.
    pub parameters: u64,
    /// The values that changed in `config.json`; none when units were only zeroed.
    pub config: BTreeMap<String, serde_json::Value>,
    /// The pruned units, module by module, in model order.
    pub removed: Vec<UnitsRecord>,
}

/// The units that one module lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UnitsRecord {
    /// `model.layers.0.self_attn`, `model.layers.0.mlp`, `model`; for the channels of one linear its weight.
    pub module: String,
    /// Number of units that it had. Heads count as key/value heads, each with the query heads that read it.
    pub of: usize,
    /// Number of pruned units.
    pub count: usize,
    /// Indices of the pruned units, from 0, as ranges with both ends: `0,3-5`.
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

    /// Numbers of zeros, if the model was pruned.
    pub fn zeros(&self) -> Option<Zeros> {
        self.pruning.as_ref().map(|pruning| pruning.pattern)
    }

    /// Returns whether the model could have any sparsity, because neither whole units nor an N:M pattern were pruned:
    /// true of dense models and unstructured ones.
    pub fn is_unstructured(&self) -> bool {
        self.zeros().is_none_or(|zeros| zeros == Zeros::UNSTRUCTURED)
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

/// Facts that may differ between two runs with the same results: the crate's version, the host's threads.
pub fn environment() -> BTreeMap<String, serde_json::Value> {
    BTreeMap::from([
        ("lacuna".to_owned(), env!("CARGO_PKG_VERSION").into()),
        ("threads".to_owned(), rayon::current_num_threads().into()),
    ])
}

/// Ascending numbers as ranges with both ends, as records write them: `0,3-5`.
///
/// ```
/// assert_eq!(lacuna::record::ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
/// assert_eq!(lacuna::record::ranges(&[]), "");
/// ```
pub fn ranges(ascending: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &number in ascending {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let range = |&(first, last): &(usize, usize)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    ranges.iter().map(range).collect::<Vec<_>>().join(",")
}
