//! Masks of many methods and sparsities from one pass over a model.

use super::PruneConfig;
use crate::Result;
use crate::calibrate::calibrate;
use crate::importance::{Method, Scorer};
use crate::mask::{Mask, MaskMetadata, MaskSet, Pattern, Per, select};
use crate::model::Model;
use crate::progress::Progress;
use crate::prune::Propagate;
use crate::text::Windows;
use candle_core::{DType, Device};

/// Which masks to make.
#[derive(Clone, Debug, PartialEq)]
pub struct MasksConfig {
    /// Importance metrics.
    pub methods: Vec<Method>,
    /// Fractions of zeros, each in `[0, 1)`. An N:M pattern prescribes its own.
    pub sparsities: Vec<f64>,
    /// Shape of the zeros.
    pub pattern: Pattern,
    /// What an unstructured selection compares; `None` for what each method's paper does.
    pub per: Option<Per>,
    /// Seed of random scores, and on record as the seed of the calibration windows.
    pub seed: u64,
}

/// Masks for every method and sparsity, from one pass over the dense model. The sets come by method, then by sparsity; the
/// levels of one method are nested.
///
/// # Errors
/// [`Error::Argument`] for a configuration that makes no sense or does not fit the model; [`Error::Tensor`] for weights that
/// are not finite; [`Error::Interrupted`].
pub fn masks(
    model: &Model,
    calibration: Option<&Windows>,
    config: &MasksConfig,
    progress: Progress,
) -> Result<Vec<MaskSet>> {
    let mut configs = Vec::new();
    for &method in &config.methods {
        for &sparsity in &config.sparsities {
            let base = PruneConfig::new(method, sparsity);
            let per = config.per.unwrap_or(base.per);
            let (pattern, seed) = (config.pattern, config.seed);
            let one = PruneConfig { pattern, per, seed, propagate: Propagate::Dense, ..base };
            one.validate_with(calibration)?;
            configs.push(one);
        }
    }
    let calibrated = config.methods.iter().any(|method| method.needs_calibration());
    let statistics = match calibration.filter(|_| calibrated) {
        Some(windows) => Some(calibrate(model, windows, progress)?),
        None => None,
    };
    let stage = progress.stage("select", model.config().linears().len() as u64);
    let mut sets: Vec<Vec<(String, Mask)>> = vec![Vec::new(); configs.len()];
    for i in 0..model.blocks() {
        for linear in model.block(i)?.linears() {
            let (name, shape) = (&linear.name, linear.weight.dims2()?);
            let weights: Vec<f32> =
                linear.weight.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            let norms = statistics.as_ref().and_then(|statistics| statistics.column_norms(name));
            for (config, set) in configs.iter().zip(&mut sets) {
                let scorer = Scorer::new(config.method, name, norms.as_deref(), config.seed)?;
                let mask = select(name, shape, config.pattern, config.per, config.sparsity, |row, scores| {
                    scorer.row(row, &weights[row * shape.1..(row + 1) * shape.1], scores);
                })?;
                set.push((name.clone(), mask));
            }
            stage.inc(1)?;
        }
    }
    let record = model.record()?;
    let metadata = |config: &PruneConfig| Some(MaskMetadata::new(record.clone(), config.record(model, calibration)));
    Ok(configs.iter().zip(sets).map(|(config, masks)| MaskSet { metadata: metadata(config), masks }).collect())
}
