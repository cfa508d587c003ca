//! Masks of many methods and sparsities from one pass through the dense model.

use super::config::{Propagate, PruneConfig, default_per};
use super::known::{Known, Needs, Subject};
use super::layer_loop::{Dense, Targets, check_model, note_silent, select_on_device, weights_of};
use crate::allocate::{Allocation, Rule, Target};
use crate::calibrate::Gather;
use crate::error::{Error, Remedy, Result};
use crate::importance::{Evidence, Method};
use crate::mask::{MaskMetadata, MaskSet, Pattern, Per, select_levels};
use crate::model::Model;
use crate::progress::{Progress, check_interrupt};
use crate::text::Windows;
use serde::Serialize;
use std::collections::BTreeSet;

/// The masks to be made.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MasksConfig {
    /// Importance metrics.
    pub methods: Vec<Method>,
    /// Fractions of zeros over all linears, each in `[0, 1)`. An N:M pattern prescribes one.
    pub sparsities: Vec<f64>,
    /// Shape of the zeros.
    pub pattern: Pattern,
    /// The comparison group of an unstructured selection; `None` for that of each method's paper.
    pub per: Option<Per>,
    /// The distribution of a sparsity over the linears.
    pub allocation: Allocation,
    /// Linears with a sparsity of their own, or none.
    pub rules: Vec<Rule>,
    /// Seed of random scores, and on record as the seed of the calibration windows.
    pub seed: u64,
}

impl MasksConfig {
    /// Unstructured masks, every linear alike.
    pub fn new(methods: &[Method], sparsities: &[f64]) -> Self {
        MasksConfig {
            methods: methods.to_vec(),
            sparsities: sparsities.to_vec(),
            pattern: Pattern::Unstructured,
            per: None,
            allocation: Allocation::Uniform,
            rules: Vec::new(),
            seed: 0,
        }
    }

    /// Results of the dense model that the masks rest on.
    pub(crate) fn needs(&self) -> Needs {
        Needs {
            statistics: matches!(self.allocation, Allocation::Owl(_))
                || self.methods.iter().any(|method| method.needs_inputs()),
            grams: false,
            gradients: self.methods.iter().any(|method| method.needs_gradients()),
        }
    }

    /// The equivalent configuration of one of the masks.
    fn of(&self, method: Method, sparsity: f64) -> PruneConfig {
        PruneConfig {
            pattern: self.pattern,
            per: self.per.unwrap_or_else(|| default_per(method, self.allocation)),
            allocation: self.allocation,
            rules: self.rules.clone(),
            propagate: Propagate::Dense,
            seed: self.seed,
            ..PruneConfig::new(method, sparsity)
        }
    }

    /// Returns whether a calibration text is needed.
    pub fn needs_calibration(&self) -> bool {
        self.methods.iter().any(|&method| self.of(method, 0.0).needs_calibration())
    }

    /// Checks the settings on their own, before anything is read.
    ///
    /// # Errors
    /// Those of [`PruneConfig::validate`]; [`Error::Argument`] for no method or sparsity, for one that is named twice, and for
    /// SparseGPT, which has no scores.
    pub fn validate(&self) -> Result<()> {
        if self.methods.is_empty() || self.sparsities.is_empty() {
            return Err(Error::argument("masks", "none", "name at least one method and one sparsity"));
        }
        if self.methods.contains(&Method::SparseGpt) {
            let problem = "updates the weights that stay, so a mask is not all of it".remedy("prune with it instead");
            return Err(Error::argument("method", Method::SparseGpt, problem));
        }
        let mut seen = BTreeSet::new();
        for &method in &self.methods {
            for &sparsity in &self.sparsities {
                self.of(method, sparsity).validate()?;
                if !seen.insert((method.to_string(), sparsity.to_bits())) {
                    return Err(Error::argument("masks", format!("{method} {sparsity}"), "is asked for twice"));
                }
            }
        }
        Ok(())
    }
}

/// Masks of several methods at several sparsities, by what was asked for: ordered by method, then by sparsity as given.
#[derive(Clone, PartialEq)]
pub struct Masks(Vec<(Method, f64, MaskSet)>);

crate::debug::one_line!(rich Masks, |masks| format!("Masks({})", masks.names().join(", ")));

impl Masks {
    /// `sets` in the order in which `config` asks for them.
    pub(crate) fn new(config: &MasksConfig, sets: Vec<MaskSet>) -> Masks {
        let asked = config.methods.iter().flat_map(|&method| config.sparsities.iter().map(move |&of| (method, of)));
        Masks(asked.zip(sets).map(|((method, sparsity), set)| (method, sparsity, set)).collect())
    }

    /// The masks of a method at a sparsity.
    ///
    /// # Errors
    /// [`Error::Argument`], with those that there are, for a pair that was not asked for.
    pub fn get(&self, method: Method, sparsity: f64) -> Result<&MaskSet> {
        let found = self.0.iter().find(|(of, at, _)| (*of, *at) == (method, sparsity));
        found.map(|(.., set)| set).ok_or_else(|| {
            let problem = format!("was not asked for; there are {}", self.names().join(", "));
            Error::argument("masks", format!("{method} {sparsity}"), problem)
        })
    }

    /// Method, sparsity and masks of each set.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Method, f64, &MaskSet)> {
        self.0.iter().map(|(method, sparsity, set)| (*method, *sparsity, set))
    }

    /// Number of sets.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there is no set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The sets alone.
    pub fn into_vec(self) -> Vec<MaskSet> {
        self.0.into_iter().map(|(.., set)| set).collect()
    }

    fn names(&self) -> Vec<String> {
        self.iter().map(|(method, sparsity, _)| format!("{method} {sparsity}")).collect()
    }
}

impl IntoIterator for Masks {
    type Item = (Method, f64, MaskSet);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// Masks of each method at each sparsity: scores come from the dense model, so
/// that one pass through it serves all of them, and the masks of a method are nested.
///
/// Memory: one layer's weights, the activations of the calibration windows, and the masks, 1 bit a weight each.
///
/// # Errors
/// As [`super::prune`].
pub fn masks(model: &Model, calibration: Option<&Windows>, config: &MasksConfig, progress: Progress) -> Result<Masks> {
    let sets = masks_of(Subject { model, calibration, known: &Known::default(), progress }, config)?;
    Ok(Masks::new(config, sets))
}

/// Makes the masks of [`masks`] with what is known of the model.
pub(crate) fn masks_of(subject: Subject<'_>, config: &MasksConfig) -> Result<Vec<MaskSet>> {
    let Subject { model, calibration, .. } = subject;
    config.validate()?;
    let rules = check_model(model, &config.rules)?;
    let first = config.sparsities[0];
    config.methods.iter().try_for_each(|&method| config.of(method, first).validate_with(calibration))?;
    let dense = Dense::new(subject, &config.methods, config.allocation)?;
    let targets = |&method: &Method| {
        let scored = (method, config.seed);
        Targets::new(subject, config.allocation, &rules, &config.sparsities, scored, &dense)
    };
    let targets = config.methods.iter().map(targets).collect::<Result<Vec<_>>>()?;
    let record = model.record()?;
    let mut sets: Vec<Vec<MaskSet>> = Vec::new();
    for (&method, targets) in config.methods.iter().zip(&targets) {
        let set = |(level, &sparsity): (usize, &f64)| {
            let pruning = config.of(method, sparsity).record(model, calibration)?;
            let mut metadata = MaskMetadata::new(record.clone(), pruning);
            for (name, _) in model.config().linears() {
                match (rules.get(&name), targets.get(level, &name)) {
                    (_, None) => drop(metadata.skipped.insert(name)),
                    // A global threshold promises the sparsity of all, not of one.
                    (None | Some(Target::Skip), Some(_)) if config.allocation == Allocation::Global => {}
                    (_, Some(own)) if own == sparsity => {}
                    (_, Some(own)) => drop(metadata.targets.insert(name, own)),
                }
            }
            Ok(MaskSet { metadata: Some(metadata), masks: Vec::new() })
        };
        sets.push(config.sparsities.iter().enumerate().map(set).collect::<Result<_>>()?);
    }
    let gather = config.methods.iter().any(|method| method.needs_inputs()).then(Gather::default);
    subject.for_each_layer(gather, Propagate::Dense, |layer, statistics, stage| {
        let mut silent = BTreeSet::new();
        for linear in layer.linears() {
            let shape = linear.weight.dims2()?;
            let mut weights = None;
            for ((&method, targets), sets) in config.methods.iter().zip(&targets).zip(&mut sets) {
                let levels = (0..config.sparsities.len()).map(|level| targets.get(level, &linear.name));
                // A rule skips a linear at every level or at none.
                let Some(levels) = levels.collect::<Option<Vec<f64>>>() else { continue };
                let criterion = config.of(method, first).criterion();
                let evidence =
                    Evidence::of(&linear.name, method, Some(statistics), dense.gradients.as_ref(), config.seed)?;
                if evidence.is_silent() {
                    silent.insert(linear.name.clone());
                }
                let masks = match select_on_device(linear, &evidence, criterion, &levels)? {
                    Some(masks) => masks,
                    None => {
                        let weights = match &mut weights {
                            Some(weights) => weights,
                            none => none.insert(weights_of(linear)?),
                        };
                        let scorer = evidence.scorer_within(&linear.name, weights, shape)?;
                        select_levels(&linear.name, shape, criterion, &levels, |row, scores| scorer.row(row, scores))?
                    }
                };
                for (set, mask) in sets.iter_mut().zip(masks) {
                    set.masks.push((linear.name.clone(), mask));
                }
            }
            check_interrupt()?;
        }
        note_silent(stage, &silent);
        Ok(())
    })?;
    Ok(sets.into_iter().flatten().collect())
}
