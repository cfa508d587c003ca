//! The layer loop, and what has to be known of the dense model before it.

use super::config::Propagate;
use super::known::Subject;
use crate::allocate::{Allocation, GlobalThreshold, Owl, Rule, Ruled, Target};
use crate::calibrate::{Gather, Statistics, calibrate};
use crate::error::{Error, Remedy, Result};
use crate::gradients::{Accumulate, Gradients, gradients};
use crate::importance::{Evidence, Method};
use crate::mask::{Criterion, Mask};
use crate::model::{DecoderLayer, ExpertStorage, ForwardPass, Linear, Model, MoeConfig, Wanted};
use crate::progress::{Progress, Stage, check_interrupt};
use crate::text::Windows;
use candle_core::{DType, Device};
use std::collections::{BTreeMap, BTreeSet};

impl<'a> Subject<'a> {
    /// Calls `prune` with each layer and the statistics of its inputs, which are empty unless `gather` asks for some.
    /// With pruned propagation, the next layer sees the outputs of the layer as `prune` leaves it.
    pub(super) fn for_each_layer(
        self,
        gather: Option<Gather>,
        propagate: Propagate,
        mut prune: impl FnMut(&mut DecoderLayer, &Statistics, &Stage) -> Result<()>,
    ) -> Result<()> {
        let Subject { model, progress, known, .. } = self;
        if let Some(gather) = gather
            && propagate == Propagate::Dense
            && known.covers(gather)
        {
            let stage = progress.stage("prune", model.layers() as u64);
            return model.each_layer(|i, mut layer| {
                known.with_statistics(i, gather, |statistics| prune(&mut layer, statistics, &stage))?;
                stage.inc(1)
            });
        }
        let gathered = gather.and_then(|gather| Some((self.calibration?, gather)));
        let mut hidden =
            gathered.map(|(windows, _)| model.embed_for_pass(&windows.ids)).transpose()?.unwrap_or_default();
        let rope = model.rope(gathered.map_or(0, |(windows, _)| windows.seqlen));
        let gather = gathered.map(|(_, gather)| gather).unwrap_or_default();
        // A step is one window through one layer, or the selection in one layer. A layer that the windows pass through
        // dense and pruned is passed twice; of the last, only the inputs are wanted.
        let passes = match propagate {
            Propagate::Pruned => (2 * model.layers()).saturating_sub(1),
            Propagate::Dense => model.layers(),
        };
        let stage = progress.stage("prune", (model.layers() + passes * hidden.len()) as u64);
        let pass = ForwardPass { model, rope: &rope, stage: &stage };
        model.each_layer(|i, mut layer| {
            let last = i + 1 == model.layers();
            let wanted = if propagate == Propagate::Dense && !last { Wanted::Output } else { Wanted::Taps };
            let statistics = Statistics::of_layer(&pass, &layer, &mut hidden, wanted, gather)?;
            prune(&mut layer, &statistics, &stage)?;
            if propagate == Propagate::Pruned && !last {
                pass.through(&layer, &mut hidden, Wanted::Output, || (), |()| ())?;
            }
            stage.inc(1)
        })
    }
}

/// Refuses models whose weights cannot be pruned singly, and rules that match nothing.
pub(super) fn check_model(model: &Model, rules: &[Rule]) -> Result<Ruled> {
    let packed = |moe: &MoeConfig| matches!(moe.storage, ExpertStorage::Stacked { mxfp4: true, .. });
    if model.config().moe.as_ref().is_some_and(packed) {
        let problem = "its experts are packed in MXFP4, whose weights cannot be pruned singly".remedy(
            "prune whole experts (`lacuna experts`), or save the model in bf16 first (transformers: \
             `Mxfp4Config(dequantize=True)`)",
        );
        return Err(Error::argument("model", model.name(), problem));
    }
    let linears = model.config().linears();
    Ruled::new(rules, linears.iter().map(|(name, _)| name.as_str()))
}

/// The weights of a linear, `(out, in)` row-major, in f32 on the CPU.
pub(super) fn weights_of(linear: &Linear) -> Result<Vec<f32>> {
    Ok(linear.weight.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// The masks of a linear at each of `sparsities`, selected where its weights are; `None` when they are not on a GPU, or there is
/// no kernel for the metric or the criterion.
pub(super) fn select_on_device(
    linear: &Linear,
    evidence: &Evidence,
    criterion: Criterion,
    sparsities: &[f64],
) -> Result<Option<Vec<Mask>>> {
    match evidence.factors_within() {
        Some(norms) => crate::mask::select_on_device(&linear.name, &linear.weight, norms, criterion, sparsities),
        None => Ok(None),
    }
}

/// Says of which linears of a layer the calibration text said nothing, so that they are selected by magnitude.
pub(super) fn note_silent(stage: &Stage, silent: &BTreeSet<String>) {
    if let Some(first) = silent.first() {
        let (count, more) = (silent.len(), if silent.len() > 1 { " and others" } else { "" });
        stage.note(format!("{count} linears that no calibration token reached are pruned by magnitude: {first}{more}"));
    }
}

/// Statistics and gradients of the dense model, computed before the layer loop.
#[derive(Debug, Default)]
pub(super) struct Dense {
    /// Statistics of the inputs; empty unless the allocation uses them.
    statistics: Statistics,
    /// Gradients, if one of the methods uses them.
    pub(super) gradients: Option<Gradients>,
}

impl Dense {
    pub(super) fn new(subject: Subject<'_>, methods: &[Method], allocation: Allocation) -> Result<Self> {
        let Some(windows) = subject.calibration else { return Ok(Dense::default()) };
        let inputs = match allocation {
            Allocation::Uniform => false,
            Allocation::Owl(_) => true,
            Allocation::Global => methods.iter().any(|method| method.needs_inputs()),
        };
        let mut dense = Dense::default();
        if inputs {
            dense.statistics = match subject.known.statistics {
                Some(statistics) => statistics.clone(),
                None => calibrate(subject.model, windows, subject.progress)?,
            };
        }
        if methods.iter().any(|method| method.needs_gradients()) {
            dense.gradients = Some(match subject.known.gradients {
                Some(gradients) => gradients.clone(),
                None => gradients(subject.model, windows, Accumulate::Sum, subject.progress)?,
            });
        }
        Ok(dense)
    }
}

/// The sparsity of each linear at each level.
#[derive(Debug)]
pub(super) struct Targets {
    /// Per level, by name; a linear that is not there is left alone.
    levels: Vec<BTreeMap<String, f64>>,
}

impl Targets {
    /// Shares out each of `sparsities`. What an allocation has to know of scores it learns from the dense model.
    pub(super) fn new(
        subject: Subject<'_>,
        allocation: Allocation,
        rules: &Ruled,
        sparsities: &[f64],
        (method, seed): (Method, u64),
        dense: &Dense,
    ) -> Result<Self> {
        let linears = subject.model.config().linears();
        let uniform = |sparsity: f64, layer_of: &dyn Fn(&str) -> Option<f64>| {
            let target = |(name, _): &(String, (usize, usize))| match rules.get(name) {
                Some(Target::Skip) => None,
                Some(Target::Sparsity(own)) => Some((name.clone(), own)),
                None => Some((name.clone(), layer_of(name).unwrap_or(sparsity))),
            };
            linears.iter().filter_map(target).collect::<BTreeMap<_, _>>()
        };
        let levels = match allocation {
            Allocation::Uniform => sparsities.iter().map(|&sparsity| uniform(sparsity, &|_| None)).collect(),
            Allocation::Owl(owl) => {
                let outliers = outliers_from(subject.model, &dense.statistics, owl, subject.progress)?;
                let level = |&sparsity: &f64| {
                    let layers = owl.sparsities(&outliers, sparsity)?;
                    Ok(uniform(sparsity, &|name| layers.get(layer_of(name)?).copied()))
                };
                sparsities.iter().map(level).collect::<Result<_>>()?
            }
            Allocation::Global => {
                let lost = global(subject, rules, sparsities, (method, seed), dense)?;
                let sizes: BTreeMap<_, _> = linears.iter().map(|(name, (out, input))| (name, out * input)).collect();
                // Half a weight more than the count, so that rounding down gives the count.
                let own = |name: &str, level: usize| {
                    let lost = lost.get(name)?[level];
                    Some(if lost == 0 {
                        0.0
                    } else {
                        ((lost as f64 + 0.5) / *sizes.get(&name.to_owned())? as f64).min(1.0)
                    })
                };
                // One threshold may leave nothing of a linear, which then has a sparsity of 1.
                let level = |(level, &sparsity): (usize, &f64)| uniform(sparsity, &|name| own(name, level));
                sparsities.iter().enumerate().map(level).collect()
            }
        };
        Ok(Targets { levels })
    }

    /// The sparsity of a linear at a level; `None` when it is left alone.
    pub(super) fn get(&self, level: usize, linear: &str) -> Option<f64> {
        self.levels[level].get(linear).copied()
    }
}

/// The share of outliers among the Wanda scores of each layer of the dense model, in percent ([`Owl::outliers`]), from which
/// [`Owl::sparsities`] are made.
///
/// # Errors
/// As [`calibrate`].
pub fn outliers(model: &Model, calibration: &Windows, owl: Owl, progress: Progress) -> Result<Vec<f64>> {
    outliers_from(model, &calibrate(model, calibration, progress)?, owl, progress)
}

fn outliers_from(model: &Model, statistics: &Statistics, owl: Owl, progress: Progress) -> Result<Vec<f64>> {
    let stage = progress.stage("outliers", model.layers() as u64);
    let mut shares = Vec::new();
    for i in 0..model.layers() {
        let layer = model.layer(i)?;
        let score = |linear: &&Linear| {
            let evidence = Evidence::of(&linear.name, Method::Wanda, Some(statistics), None, 0)?;
            let (weights, shape) = (weights_of(linear)?, linear.weight.dims2()?);
            Ok(evidence.scorer(&linear.name, &weights, shape)?.scores())
        };
        let scores = layer.linears().iter().map(score).collect::<Result<Vec<_>>>()?;
        shares.push(owl.outliers(scores.iter().map(Vec::as_slice)));
        stage.inc(1)?;
    }
    Ok(shares)
}

/// The number in `model.layers.N.`, which every prunable linear's name begins with.
fn layer_of(linear: &str) -> Option<usize> {
    linear.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

/// The number of weights that each linear without a rule of its own loses at each sparsity under one threshold. A
/// linear whose inputs were all zero during calibration is not among them: its weights cannot be compared with others'.
fn global(
    subject: Subject<'_>,
    rules: &Ruled,
    sparsities: &[f64],
    (method, seed): (Method, u64),
    dense: &Dense,
) -> Result<BTreeMap<String, Vec<u64>>> {
    let Subject { model, progress, .. } = subject;
    let Dense { statistics, gradients } = dense;
    let mut threshold = GlobalThreshold::new(sparsities);
    let stage = progress.stage("threshold", (GlobalThreshold::PASSES * model.layers()) as u64);
    for _ in 0..GlobalThreshold::PASSES {
        for i in 0..model.layers() {
            for linear in model.layer(i)?.linears() {
                let evidence = Evidence::of(&linear.name, method, Some(statistics), gradients.as_ref(), seed)?;
                if rules.get(&linear.name).is_none() && !evidence.is_silent() {
                    let (weights, shape) = (weights_of(linear)?, linear.weight.dims2()?);
                    let scores = evidence.scorer(&linear.name, &weights, shape)?.scores();
                    threshold.add(&linear.name, shape.1, &scores)?;
                }
                check_interrupt()?;
            }
            stage.inc(1)?;
        }
        threshold.next_pass();
    }
    Ok(threshold.lost())
}
