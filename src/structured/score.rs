//! The scores of units, from those of their weights, and the choice of those that are pruned.

use super::layout::{self, Group};
use super::{GroupNorm, Module, StructuredConfig, Unit};
use crate::calibrate::Statistics;
use crate::error::{Error, Remedy, Result};
use crate::gradients::Gradients;
use crate::importance::Evidence;
use crate::model::{Model, ModelConfig};
use crate::progress::Progress;
use candle_core::{DType, Device};
use rayon::prelude::*;
use std::collections::HashMap;

/// The statistics and gradients of the dense model that the method uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct DenseData<'a> {
    pub(super) statistics: Option<&'a Statistics>,
    pub(super) gradients: Option<&'a Gradients>,
}

/// A linear whose weights are scored: its name, its shape, and the units that each of its dimensions counts.
type Scored = (String, (usize, usize), [Option<Group>; 2]);

/// The linears that have such units, in model order.
fn linears(config: &ModelConfig, unit: Unit) -> impl Iterator<Item = Scored> {
    config.tensors().into_iter().filter_map(move |(name, shape)| {
        let groups = layout::place(config, &name).filter(layout::Place::is_linear)?.groups(config, unit);
        match shape[..] {
            [rows, cols] if groups.iter().any(Option::is_some) => Some((name, (rows, cols), groups)),
            _ => None,
        }
    })
}

/// The number of such units in each linear that has some.
pub(super) fn sizes(config: &ModelConfig, unit: Unit) -> impl Iterator<Item = usize> {
    linears(config, unit).flat_map(|(_, (rows, cols), groups)| {
        groups.into_iter().zip([rows, cols]).filter_map(|(group, dim)| Some(dim / group?.span))
    })
}

/// The modules that have such units, in model order, with the units that score lowest in each.
pub(super) fn choose(
    model: &Model,
    known: DenseData<'_>,
    settings: &StructuredConfig,
    progress: Progress,
) -> Result<Vec<Module>> {
    let config = model.config();
    let scored: Vec<Scored> = linears(config, settings.unit).collect();
    let stage = progress.stage("score", scored.len() as u64);
    let mut modules: Vec<(String, Vec<f64>)> = Vec::new();
    let mut by_name: HashMap<String, usize> = HashMap::new();
    for (name, shape, groups) in scored {
        let weights: Vec<f32> =
            model.tensor(&name)?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let evidence = Evidence::of(&name, settings.method, known.statistics, known.gradients, settings.seed)?;
        // Channels are those of the whole model, so that a linear must not be scored in other units than the rest.
        let scorer = match settings.unit {
            Unit::Channels => evidence.scorer(&name, &weights, shape)?,
            _ => evidence.scorer_within(&name, &weights, shape)?,
        };
        let elements = scorer.scores();
        let (rows, cols) = sums(&elements, shape.1, settings.norm);
        if rows.iter().any(|sum| !sum.is_finite()) {
            let problem = "a weight or an activation is not finite".remedy("check the checkpoint, or calibrate in f32");
            return Err(Error::tensor("scores", name, problem));
        }
        for (group, sums) in groups.into_iter().zip([rows, cols]) {
            let Some(group) = group else { continue };
            let module = *by_name.entry(group.module.clone()).or_insert_with(|| {
                modules.push((group.module, vec![0.0; sums.len() / group.span]));
                modules.len() - 1
            });
            for (score, sums) in modules[module].1.iter_mut().zip(sums.chunks(group.span)) {
                *score += sums.iter().sum::<f64>();
            }
        }
        stage.inc(1)?;
    }
    // An L2 norm is ordered like its square.
    let lowest = |(name, scores): (String, Vec<f64>)| {
        let gone = lowest(&scores, settings.count(scores.len()));
        Module { name, units: scores.len(), gone }
    };
    Ok(modules.into_iter().map(lowest).collect())
}

/// Sums over each row and each column of `elements (.., cols)`, of squares for the L2 norm; in a fixed order on any number
/// of threads.
fn sums(elements: &[f32], cols: usize, norm: GroupNorm) -> (Vec<f64>, Vec<f64>) {
    const ROWS: usize = 64;
    let value = |element: f32| match norm {
        GroupNorm::Sum => f64::from(element),
        GroupNorm::L2 => f64::from(element) * f64::from(element),
    };
    let partial: Vec<(Vec<f64>, Vec<f64>)> = elements
        .par_chunks(ROWS * cols)
        .map(|elements| {
            let mut columns = vec![0.0; cols];
            let row = |row: &[f32]| {
                let mut sum = 0.0;
                for (column, &element) in columns.iter_mut().zip(row) {
                    let value = value(element);
                    *column += value;
                    sum += value;
                }
                sum
            };
            let rows = elements.chunks_exact(cols).map(row).collect();
            (rows, columns)
        })
        .collect();
    let mut rows = Vec::with_capacity(elements.len() / cols);
    let mut columns = vec![0.0; cols];
    for (part, partial) in partial {
        rows.extend(part);
        columns.iter_mut().zip(partial).for_each(|(sum, part)| *sum += part);
    }
    (rows, columns)
}

/// The `k` lowest, ties by position; ascending.
fn lowest(scores: &[f64], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
    order.truncate(k);
    order.sort_unstable();
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_by_position() {
        assert_eq!(lowest(&[2.0, 1.0, 2.0, 1.0, 2.0], 3), [0, 1, 3]);
        assert_eq!(lowest(&[0.0; 4], 2), [0, 1]);
    }

    #[test]
    fn rows_and_columns_are_summed_over_all_chunks() {
        let elements: Vec<f32> = (0..130 * 3).map(|i| i as f32).collect();
        let (rows, columns) = sums(&elements, 3, GroupNorm::Sum);
        assert_eq!((rows.len(), rows[129], columns[0]), (130, 3.0 * 388.0, (0..130).map(|i| 3.0 * f64::from(i)).sum()));
        let (rows, columns) = sums(&[1.0, 2.0, 3.0, 4.0], 2, GroupNorm::L2);
        assert_eq!((rows, columns), (vec![5.0, 25.0], vec![10.0, 20.0]));
    }
}
