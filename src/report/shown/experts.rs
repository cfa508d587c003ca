//! Scores of experts as a table.

use super::Table;
use crate::error::{Error, Result};
use crate::experts::{ExpertScores, Metric};
use polars::prelude::{Column, DataFrame};

impl Table {
    /// One row per layer: `layer`, the least, median and largest score by `metric` (`reap_min`, `reap_median`,
    /// `reap_max`), and, where [`Metric::Frequency`] was measured, `most_routed` and `least_routed` (experts; the first
    /// of several), `most_tokens` and `least_tokens` (what was routed to them), `never_routed` (how many experts got no
    /// token).
    ///
    /// # Errors
    /// [`Error::Argument`] when there are no scores by `metric`, or not one for each expert.
    pub fn expert_scores(scores: &ExpertScores, metric: Metric) -> Result<Table> {
        scores.check_values()?;
        let sorted = |row: &Vec<f64>| {
            let mut row = row.clone();
            row.sort_by(f64::total_cmp);
            row
        };
        let rows: Vec<Vec<f64>> = scores.get(metric)?.iter().map(sorted).collect();
        let name = |of: &str| format!("{}_{of}", metric.to_string().replace('-', "_")).into();
        let summary = |of: &str, score: fn(&[f64]) -> f64| {
            Column::new(name(of), rows.iter().map(|row| score(row)).collect::<Vec<f64>>())
        };
        let layers: Vec<u64> = scores.layers.iter().map(|&layer| layer as u64).collect();
        let mut columns = vec![
            Column::new("layer".into(), layers),
            summary("min", |row| row.first().copied().unwrap_or_default()),
            summary("median", |row| {
                let middle = |of: usize| row.get(of / 2).copied().unwrap_or_default();
                f64::midpoint(middle(row.len().saturating_sub(1)), middle(row.len()))
            }),
            summary("max", |row| row.last().copied().unwrap_or_default()),
        ];
        if let Some(frequency) = scores.metrics.get(&Metric::Frequency) {
            let counts = |name: &str, count: fn(&[f64]) -> usize| {
                Column::new(name.into(), frequency.iter().map(|row| count(row) as u64).collect::<Vec<u64>>())
            };
            columns.extend([
                counts("most_routed", |row| position(row, f64::max)),
                counts("most_tokens", |row| row.iter().copied().fold(0.0, f64::max) as usize),
                counts("least_routed", |row| position(row, f64::min)),
                counts("least_tokens", |row| row.iter().copied().reduce(f64::min).unwrap_or_default() as usize),
                counts("never_routed", |row| row.iter().filter(|&&tokens| tokens == 0.0).count()),
            ]);
        }
        let frame = DataFrame::new_infer_height(columns);
        let frame = frame.map_err(|error| Error::report("making a table", error));
        Ok(frame?.into())
    }
}

/// The first expert with the score that `best` chooses.
fn position(row: &[f64], best: fn(f64, f64) -> f64) -> usize {
    let best = row.iter().copied().reduce(best);
    row.iter().position(|score| Some(*score) == best).unwrap_or_default()
}
