//! Pruning with what is known of the dense model from earlier runs.

use super::config::{Propagate, PruneConfig};
use super::layer_loop::Subject;
use super::masks::{MasksConfig, masks_of};
use super::{Pruned, prune_subject, record};
use crate::allocate::Allocation;
use crate::calibrate::{Gather, Statistics};
use crate::error::Result;
use crate::gradients::Gradients;
use crate::importance::Method;
use crate::mask::{Mask, MaskSet};
use crate::model::Model;
use crate::progress::Progress;
use crate::record::TensorRecord;
use crate::text::Windows;
use candle_core::Tensor;
use std::time::Instant;

/// Results from earlier runs on the same model and the same calibration windows. Those that are missing are computed.
#[derive(Clone, Copy, Default)]
pub(crate) struct Known<'a> {
    /// Norms and sums of the inputs of all linears.
    pub(crate) statistics: Option<&'a Statistics>,
    /// Reads the statistics of a layer with grams, which are too large to hold for all.
    pub(crate) grams: Option<&'a dyn Fn(usize) -> Result<Statistics>>,
    pub(crate) gradients: Option<&'a Gradients>,
}

/// The kinds of data about the dense model that a configuration uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    pub(crate) statistics: bool,
    pub(crate) grams: bool,
    pub(crate) gradients: bool,
}

impl PruneConfig {
    /// The data about the dense model that the layer loop and the allocation before it use. With pruned propagation the loop
    /// itself uses none.
    pub(crate) fn needs(&self) -> Needs {
        let dense = self.propagate == Propagate::Dense;
        let allocated = match self.allocation {
            Allocation::Uniform => false,
            Allocation::Owl(_) => true,
            Allocation::Global => self.method.needs_inputs(),
        };
        let grams = dense && self.method == Method::SparseGpt;
        let scored = dense && (self.method.needs_inputs() || self.refine.is_some()) && !grams;
        Needs { statistics: allocated || scored, grams, gradients: self.method.needs_gradients() }
    }
}

impl MasksConfig {
    /// As [`PruneConfig::needs`].
    pub(crate) fn needs(&self) -> Needs {
        Needs {
            statistics: matches!(self.allocation, Allocation::Owl(_))
                || self.methods.iter().any(|method| method.needs_inputs()),
            grams: false,
            gradients: self.methods.iter().any(|method| method.needs_gradients()),
        }
    }
}

impl Known<'_> {
    /// Returns whether the statistics that `gather` names are there, so that no window has to pass through the dense model.
    pub(super) fn covers(&self, gather: Gather) -> bool {
        if gather.gram { self.grams.is_some() } else { self.statistics.is_some() }
    }

    /// Calls `f` with statistics that hold at least those of layer `i`.
    pub(super) fn with_statistics<T>(
        &self,
        i: usize,
        gather: Gather,
        f: impl FnOnce(&Statistics) -> Result<T>,
    ) -> Result<T> {
        match (self.grams, self.statistics) {
            (Some(grams), _) if gather.gram => f(&grams(i)?),
            (_, Some(statistics)) => f(statistics),
            _ => f(&Statistics::default()),
        }
    }
}

/// As [`super::prune`].
pub(crate) fn prune_knowing(
    model: &Model,
    calibration: Option<&Windows>,
    config: &PruneConfig,
    known: &Known<'_>,
    progress: Progress,
) -> Result<Pruned> {
    prune_subject(Subject { model, calibration, known, progress }, config)
}

/// As [`super::masks`].
pub(crate) fn masks_knowing(
    model: &Model,
    calibration: Option<&Windows>,
    config: &MasksConfig,
    known: &Known<'_>,
    progress: Progress,
) -> Result<Vec<MaskSet>> {
    masks_of(Subject { model, calibration, known, progress }, config)
}

/// The result of an earlier [`super::prune`], made again of what was kept: the masks, the zeros of each tensor, and the
/// weights where the method changes those that stay.
pub(crate) fn pruned_before(
    model: &Model,
    calibration: Option<&Windows>,
    config: &PruneConfig,
    masks: Vec<(String, Mask)>,
    weights: Option<Vec<(String, Tensor)>>,
    tensors: Vec<TensorRecord>,
) -> Result<Pruned> {
    let started = Instant::now();
    let pruned = match weights {
        Some(weights) => model.with_tensors(weights)?,
        None => model.with_masks(masks.iter().cloned())?,
    };
    let record = record(model, calibration, config, tensors, started)?;
    Ok(Pruned { model: pruned, masks, record })
}
