//! Settings of pruning, and checks of combinations that make no sense.

use crate::allocate::{Allocation, Rule};
use crate::dsnot::Dsnot;
use crate::error::{Error, Remedy, Result};
use crate::importance::Method;
use crate::mask::{Criterion, Pattern, Per, Ties};
use crate::model::Model;
use crate::record::PruningRecord;
use crate::settings::ComparisonGroup;
pub use crate::settings::Propagate;
use crate::text::Windows;
use serde::Serialize;

/// Settings of unstructured and N:M pruning.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PruneConfig {
    /// Importance metric.
    pub method: Method,
    /// Shape of the zeros.
    pub pattern: Pattern,
    /// The comparison group of an unstructured selection; N:M always compares within a group, and SparseGPT within 128
    /// columns.
    pub per: Per,
    /// Fraction of zeros over all linears, in `[0, 1)`. An N:M pattern prescribes its own.
    pub sparsity: f64,
    /// The distribution of the target sparsity over the linears.
    pub allocation: Allocation,
    /// Linears with a sparsity of their own, or none; the last rule that matches counts.
    pub rules: Vec<Rule>,
    /// The rule for equal scores.
    pub ties: Ties,
    /// Swaps that follow the selection.
    pub refine: Option<Dsnot>,
    /// The inputs of a layer during calibration.
    pub propagate: Propagate,
    /// Seed of random scores, and on record as the seed of the calibration windows.
    pub seed: u64,
}

impl PruneConfig {
    /// Unstructured pruning to `sparsity` as the method's paper does it: per row for Wanda and RIA, per layer otherwise; every
    /// linear alike, calibrated sequentially ([`Propagate::Pruned`]), seed 0.
    pub fn new(method: Method, sparsity: f64) -> Self {
        PruneConfig {
            method,
            pattern: Pattern::Unstructured,
            per: default_per(method, Allocation::Uniform),
            sparsity,
            allocation: Allocation::Uniform,
            rules: Vec::new(),
            ties: Ties::ByPosition,
            refine: None,
            propagate: Propagate::Pruned,
            seed: 0,
        }
    }

    /// [`PruneConfig::new`], but calibrated in one shot on the dense model ([`Propagate::Dense`]): statistics of one pass serve every
    /// method and sparsity. Masks differ a little from sequential ones.
    pub fn one_shot(method: Method, sparsity: f64) -> Self {
        PruneConfig::new(method, sparsity).propagating(Propagate::Dense)
    }

    /// `n:m` pruning (kept-of-M) with the sparsity that this means.
    pub fn n_of_m(method: Method, n: usize, m: usize) -> Self {
        let pattern = Pattern::NofM { n, m };
        PruneConfig { pattern, per: Per::Row, ..PruneConfig::new(method, pattern.sparsity().unwrap_or_default()) }
    }

    /// These settings with another allocation; a global one compares whole layers.
    pub fn with_allocation(self, allocation: Allocation) -> Self {
        let per = if allocation == Allocation::Global { Per::Layer } else { self.per };
        PruneConfig { allocation, per, ..self }
    }

    /// These settings with other inputs of the layers during calibration.
    pub fn propagating(self, propagate: Propagate) -> Self {
        PruneConfig { propagate, ..self }
    }

    /// Checks the settings on their own, before anything is read.
    ///
    /// # Errors
    /// [`Error::Argument`] for a sparsity outside `[0, 1)`, or another one than the pattern prescribes; for settings that
    /// contradict each other.
    pub fn validate(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.sparsity) {
            return Err(Error::argument("sparsity", self.sparsity, "must be at least 0 and below 1"));
        }
        if let Some(prescribed) = self.pattern.sparsity() {
            if (prescribed - self.sparsity).abs() > 1e-9 {
                let problem = format!("pattern {} prescribes {prescribed}", self.pattern)
                    .remedy("leave the sparsity out or choose another");
                return Err(Error::argument("sparsity", self.sparsity, problem));
            }
            if self.allocation != Allocation::Uniform {
                let problem = format!("pattern {} prescribes the sparsity of every linear", self.pattern);
                return Err(Error::argument("allocation", self.allocation, problem));
            }
            if let Some(rule) = self.rules.iter().find(|rule| !rule.is_skip()) {
                let problem =
                    format!("pattern {} prescribes the sparsity", self.pattern).remedy("a rule can only say skip");
                return Err(Error::argument("rule", rule, problem));
            }
        }
        if self.allocation == Allocation::Global && self.per != Per::Layer {
            return Err(Error::argument("per", self.per, "a global allocation compares whole layers: choose layer"));
        }
        if self.method == Method::SparseGpt {
            let contradiction = match () {
                () if self.allocation == Allocation::Global => Some(("allocation", self.allocation.to_string())),
                () if self.per != Per::Layer && self.pattern == Pattern::Unstructured => {
                    Some(("per", self.per.to_string()))
                }
                () if self.refine.is_some() => Some(("refine", "dsnot".to_owned())),
                () => None,
            };
            if let Some((name, value)) = contradiction {
                let problem = "SparseGPT compares the weights of 128 columns as it goes".remedy("leave it out");
                return Err(Error::argument(name, value, problem));
            }
        }
        if self.ties == Ties::Reference && (self.per != Per::Layer || self.pattern != Pattern::Unstructured) {
            let problem = "only differ where an unstructured selection compares a layer";
            return Err(Error::argument("ties", "reference", problem));
        }
        if self.refine.is_some() && self.per == Per::Layer && self.pattern == Pattern::Unstructured {
            return Err(Error::argument(
                "refine",
                "dsnot",
                "keeps the count of each row: choose per row, or a pattern N:M",
            ));
        }
        Ok(())
    }

    pub(super) fn validate_with(&self, calibration: Option<&Windows>) -> Result<()> {
        self.validate()?;
        if self.needs_calibration() && calibration.is_none_or(|windows| windows.ids.is_empty()) {
            let (name, value) = match self.allocation {
                _ if self.method.needs_calibration() => ("method", self.method.to_string()),
                Allocation::Owl(_) => ("allocation", self.allocation.to_string()),
                _ => ("refine", "dsnot".to_owned()),
            };
            return Err(Error::argument(name, value, "needs calibration text"));
        }
        Ok(())
    }

    /// Returns whether a text is needed: by the method, by OWL, which looks at Wanda's scores, or by DSnoT.
    pub fn needs_calibration(&self) -> bool {
        self.method.needs_calibration() || matches!(self.allocation, Allocation::Owl(_)) || self.refine.is_some()
    }

    pub(super) fn criterion(&self) -> Criterion {
        Criterion { pattern: self.pattern, per: self.per, ties: self.ties }
    }

    pub(crate) fn record(&self, model: &Model, calibration: Option<&Windows>) -> Result<PruningRecord> {
        let PruneConfig { method, pattern, per, sparsity, allocation, rules, ties, refine, propagate, seed } = self;
        Ok(PruningRecord {
            per: ComparisonGroup::of(*method, *pattern, *per),
            allocation: *allocation,
            rules: rules.clone(),
            refine: *refine,
            reference_ties: *ties == Ties::Reference,
            propagate: *propagate,
            seed: *seed,
            dtype: model.dtype().try_into()?,
            calibration: calibration.filter(|_| self.needs_calibration()).map(Windows::record),
            ..PruningRecord::new(*method, *pattern, *sparsity)
        })
    }
}

/// The comparison group of the method's paper. SparseGPT's is its own, by columns.
pub(super) fn default_per(method: Method, allocation: Allocation) -> Per {
    match (allocation, method.group()) {
        (Allocation::Uniform | Allocation::Owl(_), ComparisonGroup::Row) => Per::Row,
        _ => Per::Layer,
    }
}
