//! Measures of the experts' work on calibration text: routing frequency, expert activation norm (EAN) and
//! router-weighted activation (REAP, Lasby et al. 2025).

use crate::error::{Error, Remedy, Result};
use crate::model::{ExpertOutput, ForwardPass, Linear, Model, Tap, Wanted};
use crate::progress::Progress;
use crate::text::Windows;
use candle_core::{DType, Device, Tensor};

/// Measures of the experts of one mixture over the calibration tokens; the lists have one element an expert. An expert
/// that was never chosen has zeros.
#[derive(Clone, PartialEq)]
pub struct ExpertSaliency {
    /// The layer.
    pub layer: usize,
    /// Tokens that passed, each of them through `top_k` experts.
    pub tokens: u64,
    /// Number of tokens routed to the expert.
    pub frequency: Vec<u64>,
    /// EAN: sum over those tokens of `||f(x)||_2`, `f(x)` being the expert's output before the router's weight.
    pub ean: Vec<f64>,
    /// REAP: mean over those tokens of `g * ||f(x)||_2`, `g` the weight that the forward pass multiplies `f(x)` by.
    pub reap: Vec<f64>,
    /// REAP with the probability among all experts for `g`, as the public code computes it where the model's config has no
    /// `norm_topk_prob`.
    pub reap_softmax: Vec<f64>,
    /// Largest absolute element of `f(x)`.
    pub max_activation: Vec<f64>,
}

crate::debug::one_line!(ExpertSaliency, |saliency| {
    format!(
        "ExpertSaliency(layer {}: {} experts, {} tokens)",
        saliency.layer,
        saliency.frequency.len(),
        saliency.tokens
    )
});

/// Scores the experts of every mixture, layer by layer: one forward pass through the dense model. Memory is one layer and
/// the activations of all windows. Sums are in f64 and in the order of the windows, whatever the number of threads.
///
/// Layers with an MLP are left out. Shared experts are not scored.
///
/// # Errors
/// [`Error::Argument`] for a model without mixtures, no windows, or ids outside the vocabulary; [`Error::Tensor`] when an
/// expert's output is not finite; [`Error::Interrupted`]; what reading a layer fails with.
pub fn saliency(model: &Model, windows: &Windows, progress: Progress) -> Result<Vec<ExpertSaliency>> {
    let config = model.config();
    let Some(last) = (0..model.layers()).rev().find(|&i| config.mixture(i).is_some()) else {
        let problem = format!("a {} model of this configuration has no mixture of experts", config.family.name());
        return Err(Error::argument("model", model.name(), problem));
    };
    if windows.ids.is_empty() {
        return Err(Error::argument("windows", 0, "scoring experts needs calibration text"));
    }
    let mut hidden = model.embed_for_pass(&windows.ids)?; // (1, seqlen, hidden) each
    let rope = model.rope(windows.seqlen);
    let stage = progress.stage("experts", ((last + 1) * hidden.len()) as u64);
    let pass = ForwardPass { model, rope: &rope, stage: &stage };
    let mut layers = Vec::new();
    for i in 0..=last {
        let layer = model.layer(i)?;
        let mut sums = Sums::default();
        pass.through(&layer, &mut hidden, Wanted::Output, Window::default, |window: Window| sums.add(&window.sums))?;
        if config.mixture(i).is_some() {
            layers.push(sums.finish(model, i)?);
        }
    }
    Ok(layers)
}

/// Sums over tokens, one element an expert.
#[derive(Debug, Default)]
struct Sums {
    tokens: u64,
    experts: Vec<Expert>,
}

#[derive(Clone, Debug, Default)]
struct Expert {
    frequency: u64,
    norms: f64,
    weighted: f64,
    weighted_softmax: f64,
    max: f64,
}

impl Sums {
    fn add(&mut self, other: &Sums) {
        self.tokens += other.tokens;
        self.experts.resize(other.experts.len(), Expert::default());
        for (sum, expert) in self.experts.iter_mut().zip(&other.experts) {
            sum.frequency += expert.frequency;
            sum.norms += expert.norms;
            sum.weighted += expert.weighted;
            sum.weighted_softmax += expert.weighted_softmax;
            sum.max = sum.max.max(expert.max);
        }
    }

    fn finish(self, model: &Model, layer: usize) -> Result<ExpertSaliency> {
        if let Some(expert) = self.experts.iter().position(|expert| !expert.norms.is_finite()) {
            let problem = format!("its output is not finite in {:?}", model.dtype()).remedy("score experts in f32");
            return Err(Error::tensor(model.name(), format!("model.layers.{layer} expert {expert}"), problem));
        }
        let list = |value: fn(&Expert) -> f64| self.experts.iter().map(value).collect();
        let mean = |sum: f64, expert: &Expert| sum / expert.frequency.max(1) as f64;
        Ok(ExpertSaliency {
            layer,
            tokens: self.tokens,
            frequency: self.experts.iter().map(|expert| expert.frequency).collect(),
            ean: list(|expert| expert.norms),
            reap: self.experts.iter().map(|expert| mean(expert.weighted, expert)).collect(),
            reap_softmax: self.experts.iter().map(|expert| mean(expert.weighted_softmax, expert)).collect(),
            max_activation: list(|expert| expert.max),
        })
    }
}

/// One window's sums, gathered in one layer.
#[derive(Debug, Default)]
struct Window {
    sums: Sums,
    probs: Vec<f32>, // (tokens, experts)
}

fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

impl Tap for Window {
    fn input(&mut self, _: &[&Linear], _: &Tensor) -> Result<()> {
        Ok(())
    }

    fn router(&mut self, probs: &Tensor, _: &[Vec<u32>]) -> Result<()> {
        let (tokens, experts) = probs.dims2()?;
        self.sums.tokens += tokens as u64;
        self.sums.experts.resize(experts, Expert::default());
        self.probs = floats(probs)?;
        Ok(())
    }

    fn expert(&mut self, of: &ExpertOutput<'_>) -> Result<()> {
        let (_, width) = of.output.dims2()?;
        let (output, weights) = (floats(of.output)?, floats(of.weights)?);
        let experts = self.sums.experts.len();
        let sums = &mut self.sums.experts[of.expert];
        sums.frequency += of.tokens.len() as u64;
        for ((row, &weight), &token) in output.chunks_exact(width).zip(&weights).zip(of.tokens) {
            let norm = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
            sums.norms += norm;
            sums.weighted += f64::from(weight) * norm;
            sums.weighted_softmax += f64::from(self.probs[token as usize * experts + of.expert]) * norm;
            sums.max = row.iter().fold(sums.max, |max, &x| max.max(f64::from(x).abs()));
        }
        Ok(())
    }
}
