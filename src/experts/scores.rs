//! Scores of experts as an artifact: computed once, from which any number of experts can be chosen.

use super::layout::ExpertLayout;
use super::norms::{router_norms, weight_norms};
use super::saliency::{ExpertSaliency, saliency};
use crate::checkpoint::{Checkpoint, CheckpointWriter, Source};
use crate::error::named;
use crate::error::{Error, Remedy, Result};
use crate::model::Model;
use crate::progress::{Progress, check_interrupt};
use crate::record::TextRecord;
use crate::text::Windows;
use safetensors::Dtype;
use serde::{Deserialize, Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The metric by which an expert is scored; the higher, the more it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Metric {
    /// L2 norm of its row in the router.
    RouterNorm,
    /// Frobenius norm of its weights.
    WeightNorm,
    /// Number of tokens routed to it.
    Frequency,
    /// Sum over those tokens of `||f(x)||_2`, the norm of its output (expert activation norm).
    Ean,
    /// REAP (Lasby et al. 2025): mean over those tokens of `g * ||f(x)||_2`, with the gate `g` that the forward pass
    /// multiplies by.
    Reap,
    /// REAP with the softmax over all experts as gate, as its reference code takes it for Mixtral.
    ReapSoftmax,
    /// Largest magnitude in its output, by which super-experts are found.
    MaxActivation,
}

named!(Metric, "metric",
    RouterNorm => "router-norm", WeightNorm => "weight-norm", Frequency => "frequency", Ean => "ean",
    Reap => "reap", ReapSoftmax => "reap-softmax", MaxActivation => "max-activation");

impl Metric {
    /// Those that one pass of a text through the model measures.
    pub const CALIBRATED: [Metric; 5] =
        [Metric::Frequency, Metric::Ean, Metric::Reap, Metric::ReapSoftmax, Metric::MaxActivation];

    /// Returns whether the metric can be computed from the weights alone.
    pub fn data_free(self) -> bool {
        matches!(self, Metric::RouterNorm | Metric::WeightNorm)
    }
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Version of `scores.json`.
const SCHEMA: u32 = 1;
const DESCRIPTION: &str = "scores.json";

/// Scores of every expert of a model, by one or more metrics.
#[derive(Clone, PartialEq, Serialize)]
pub struct ExpertScores {
    /// Directory name or hub id of the model.
    pub model: String,
    /// `model_type` of its config.
    pub family: String,
    /// The text that was routed, for metrics that need one.
    pub calibration: Option<TextRecord>,
    /// [`ExpertLayout::routers_sha256`] of the model; empty for one that exists in memory only.
    pub routers_sha256: String,
    /// Layers with a mixture.
    pub layers: Vec<usize>,
    /// Experts per mixture.
    pub experts: usize,
    /// `(layers, experts)` each.
    pub metrics: BTreeMap<Metric, Vec<Vec<f64>>>,
}

crate::debug::one_line!(rich ExpertScores, |scores| {
    let by: Vec<_> = scores.metrics.keys().map(Metric::to_string).collect();
    format!("ExpertScores({}: {} experts in {} layers by {})", scores.model, scores.experts, scores.layers.len(), by.join(", "))
});

/// `scores.json`: everything but the numbers, which are tensors `(layers, experts)` in f64 in `model.safetensors` beside it.
#[derive(Serialize, Deserialize)]
struct Description {
    schema: u32,
    model: String,
    family: String,
    routers_sha256: String,
    calibration: Option<TextRecord>,
    layers: Vec<usize>,
    experts: usize,
    metrics: Vec<String>,
}

impl ExpertScores {
    /// Scores by a metric that the weights alone decide.
    ///
    /// # Errors
    /// [`Error::Argument`] when `metric` needs a text; those of [`router_norms`] and [`weight_norms`].
    pub fn data_free(source: &dyn Source, layout: &ExpertLayout, metric: Metric, progress: Progress) -> Result<Self> {
        let values = match metric {
            Metric::RouterNorm => router_norms(source, layout, progress)?,
            Metric::WeightNorm => weight_norms(source, layout, progress)?,
            _ => {
                let problem =
                    "is measured on a text".remedy("compute it with `lacuna experts score`, and name the result");
                return Err(Error::argument("metric", metric, problem));
            }
        };
        Ok(ExpertScores {
            model: source.origin(),
            family: layout.family.model_type.to_owned(),
            routers_sha256: layout.routers_sha256(source)?,
            calibration: None,
            layers: layout.mixtures.keys().copied().collect(),
            experts: layout.experts,
            metrics: BTreeMap::from([(metric, values)]),
        })
    }

    /// Scores by [`Metric::CALIBRATED`], from one forward pass of `windows` ([`saliency`]).
    ///
    /// # Errors
    /// Those of [`saliency`].
    pub fn calibrated(model: &Model, windows: &Windows, progress: Progress) -> Result<Self> {
        let layers = saliency(model, windows, progress)?;
        let list = |score: fn(&ExpertSaliency) -> Vec<f64>| -> Vec<Vec<f64>> { layers.iter().map(score).collect() };
        let values = |metric| match metric {
            Metric::Ean => list(|layer| layer.ean.clone()),
            Metric::Reap => list(|layer| layer.reap.clone()),
            Metric::ReapSoftmax => list(|layer| layer.reap_softmax.clone()),
            Metric::MaxActivation => list(|layer| layer.max_activation.clone()),
            _ => list(|layer| layer.frequency.iter().map(|&tokens| tokens as f64).collect()),
        };
        let routers_sha256 = match model.checkpoint() {
            Some(checkpoint) => ExpertLayout::find(checkpoint)?.routers_sha256(checkpoint)?,
            None => String::new(),
        };
        Ok(ExpertScores {
            model: model.name().to_owned(),
            family: model.config().family.name().to_owned(),
            routers_sha256,
            calibration: Some(windows.record()),
            layers: layers.iter().map(|layer| layer.layer).collect(),
            experts: layers.first().map_or(0, |layer| layer.frequency.len()),
            metrics: Metric::CALIBRATED.into_iter().map(|metric| (metric, values(metric))).collect(),
        })
    }

    /// [`ExpertScores::calibrated`] together with [`Metric::RouterNorm`], written to the new directory `out`. What can
    /// keep it from being written fails before the forward pass.
    ///
    /// # Errors
    /// [`Error::File`] for a model that exists in memory only; those of [`ExpertLayout::find`], [`ExpertScores::calibrated`]
    /// and [`ExpertScores::write`].
    pub fn calibrate_to(model: &Model, windows: &Windows, out: &Path, progress: Progress) -> Result<Self> {
        let Some(checkpoint) = model.checkpoint() else {
            return Err(Error::file(
                out,
                "the model exists in memory only".remedy("score the checkpoint that it came from"),
            ));
        };
        let layout = ExpertLayout::find(checkpoint)?;
        let metrics = Metric::CALIBRATED.into_iter().chain([Metric::RouterNorm]);
        let writer = writer(out, metrics, [layout.mixtures.len(), layout.experts])?;
        let data_free = Self::data_free(checkpoint, &layout, Metric::RouterNorm, progress)?;
        let mut scores = Self::calibrated(model, windows, progress)?;
        scores.metrics.extend(data_free.metrics);
        scores.check(&layout)?;
        scores.write_with(writer)?;
        Ok(scores)
    }

    /// The scores by `metric`, `(layers, experts)`.
    ///
    /// # Errors
    /// [`Error::Argument`] when there are none.
    pub fn get(&self, metric: Metric) -> Result<&[Vec<f64>]> {
        self.metrics.get(&metric).map(Vec::as_slice).ok_or_else(|| {
            let known: Vec<String> = self.metrics.keys().map(Metric::to_string).collect();
            Error::argument("metric", metric, format!("these scores hold {}", known.join(", ")))
        })
    }

    /// Fails unless the scores are of a model with this layout, and every expert has one by each metric.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the difference.
    pub fn check(&self, layout: &ExpertLayout) -> Result<()> {
        let layers: Vec<usize> = layout.mixtures.keys().copied().collect();
        if self.family == layout.family.model_type && self.layers == layers && self.experts == layout.experts {
            return self.check_values();
        }
        let describe = |family: &str, layers: &[usize], experts: usize| {
            format!("{} layers of {experts} experts ({family}, layers {layers:?})", layers.len())
        };
        let problem = format!(
            "have {}, the checkpoint has {}",
            describe(&self.family, &self.layers, self.experts),
            describe(layout.family.model_type, &layers, layout.experts)
        );
        Err(Error::argument("scores", &self.model, problem))
    }

    /// Fails unless the scores are of the very model in `source`, by the bytes of its routers: models of one shape differ
    /// in those.
    ///
    /// # Errors
    /// Those of [`ExpertScores::check`]; [`Error::Argument`] for scores of a sibling; those of reading the routers.
    pub fn check_model(&self, source: &dyn Source, layout: &ExpertLayout) -> Result<()> {
        self.check(layout)?;
        if self.routers_sha256 == layout.routers_sha256(source)? {
            return Ok(());
        }
        let problem =
            format!("were measured on a model with other routers than {}", source.origin()).remedy("score this one");
        Err(Error::argument("scores", &self.model, problem))
    }

    pub(crate) fn check_values(&self) -> Result<()> {
        for (metric, rows) in &self.metrics {
            let shaped = rows.len() == self.layers.len() && rows.iter().all(|row| row.len() == self.experts);
            if !shaped || rows.iter().flatten().any(|value| !value.is_finite()) {
                let problem = format!(
                    "needs a finite score for each of {} experts in each of {} layers",
                    self.experts,
                    self.layers.len()
                );
                return Err(Error::argument("metric", metric, problem));
            }
        }
        Ok(())
    }

    /// The super-experts (Su et al. 2025, with the thresholds of REAP's reference code): those of the first 75% of the
    /// layers whose largest activation exceeds both the 99.5th percentile over all experts and a tenth of the largest.
    /// Pairs of layer and expert.
    ///
    /// # Errors
    /// [`Error::Argument`] when the scores do not hold [`Metric::MaxActivation`].
    pub fn super_experts(&self) -> Result<Vec<(usize, usize)>> {
        let values = self.get(Metric::MaxActivation)?;
        let mut sorted: Vec<f64> = values.iter().flatten().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let Some(&largest) = sorted.last() else { return Ok(Vec::new()) };
        // Linear interpolation, as `torch.quantile`.
        let rank = 0.995 * (sorted.len() - 1) as f64;
        let (low, high) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
        let threshold = (low + (high - low) * rank.fract()).max(largest / 10.0);
        let considered = self.layers.len() * 3 / 4;
        let mut found = Vec::new();
        for (&layer, row) in self.layers.iter().zip(values).take(considered) {
            found.extend(
                row.iter().enumerate().filter(|(_, value)| **value > threshold).map(|(expert, _)| (layer, expert)),
            );
        }
        Ok(found)
    }

    /// Writes the directory `out`: `scores.json` and the numbers as tensors `(layers, experts)` in `model.safetensors`.
    ///
    /// # Errors
    /// [`Error::File`] when `out` exists or the disk is full, [`Error::Io`]; [`Error::Argument`] when a metric does not
    /// have one finite score for each expert.
    pub fn write(&self, out: &Path) -> Result<()> {
        self.write_with(writer(out, self.metrics.keys().copied(), [self.layers.len(), self.experts])?)
    }

    fn write_with(&self, mut writer: CheckpointWriter) -> Result<()> {
        self.check_values()?;
        for (metric, values) in &self.metrics {
            let bytes: Vec<u8> = values.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
            writer.write(&metric.to_string(), &bytes)?;
        }
        let description = Description {
            schema: SCHEMA,
            model: self.model.clone(),
            family: self.family.clone(),
            routers_sha256: self.routers_sha256.clone(),
            calibration: self.calibration.clone(),
            layers: self.layers.clone(),
            experts: self.experts,
            metrics: self.metrics.keys().map(Metric::to_string).collect(),
        };
        let mut text = serde_json::to_vec_pretty(&description).map_err(|error| Error::file(DESCRIPTION, error))?;
        text.push(b'\n');
        writer.add_file(DESCRIPTION, &text)?;
        check_interrupt()?;
        writer.finish()
    }

    /// Reads what [`ExpertScores::write`] wrote.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Tensor`] when `dir` holds no scores or damaged ones; [`Error::Io`].
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(DESCRIPTION);
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::file(&path, "missing".remedy("give a directory that `lacuna experts score` wrote")));
            }
            text => text.map_err(Error::io("read", &path))?,
        };
        let Description { schema, model, family, routers_sha256, calibration, layers, experts, metrics } =
            serde_json::from_slice(&text)
                .map_err(|e| Error::file(&path, format!("not a description of scores ({e})")))?;
        if schema != SCHEMA {
            return Err(Error::file(
                &path,
                format!("schema {schema} is not {SCHEMA}").remedy("compute the scores again"),
            ));
        }
        let checkpoint = Checkpoint::open(dir)?;
        let mut values = BTreeMap::new();
        for name in metrics {
            let info = checkpoint.get(&name)?;
            if info.dtype != Dtype::F64 || info.shape != [layers.len(), experts] {
                let problem = format!("is {} x {:?}, not F64 x [{}, {experts}]", info.dtype, info.shape, layers.len());
                return Err(Error::tensor(dir, name, problem));
            }
            let bytes = checkpoint.read(&name)?;
            let elements: Vec<f64> = bytes.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
            if elements.iter().any(|value| !value.is_finite()) {
                return Err(Error::tensor(dir, name, "holds NaN or infinite scores".remedy("compute them again")));
            }
            let metric = name.parse().map_err(|error: Error| Error::file(&path, error))?;
            values.insert(metric, elements.chunks(experts.max(1)).map(<[f64]>::to_vec).collect());
        }
        Ok(ExpertScores { model, family, routers_sha256, calibration, layers, experts, metrics: values })
    }
}

/// Begins the directory `out` with room for `metrics`, in the order of [`Metric`], of `shape` `(layers, experts)`.
fn writer(out: &Path, metrics: impl Iterator<Item = Metric>, shape: [usize; 2]) -> Result<CheckpointWriter> {
    let metrics: BTreeSet<Metric> = metrics.collect();
    let tensor = |metric: Metric| (metric.to_string(), Dtype::F64, shape.to_vec());
    CheckpointWriter::create(out, vec![metrics.into_iter().map(tensor).collect()])
}
