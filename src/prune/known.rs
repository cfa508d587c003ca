//! A model to prune, with what earlier runs have found out about it.

use super::config::{Propagate, PruneConfig};
use crate::allocate::Allocation;
use crate::calibrate::{Gather, Statistics};
use crate::error::Result;
use crate::gradients::Gradients;
use crate::importance::Method;
use crate::model::Model;
use crate::progress::Progress;
use crate::text::Windows;

/// A model, the text that it is calibrated on, and what is known of them from before.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) model: &'a Model,
    pub(crate) calibration: Option<&'a Windows>,
    pub(crate) known: &'a Known<'a>,
    pub(crate) progress: Progress,
}

/// Results of earlier runs of the same model and the same calibration windows. Those that are missing are computed.
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
