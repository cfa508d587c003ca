//! Masks as a picture.

use super::Plot;
use crate::mask::{MaskStatistics, SPARSITY_BINS};

impl Plot {
    /// The distribution of sparsity: the share of rows (outputs) and of columns (inputs) in bins of 5%. If rows were
    /// the comparison group, all are in one bin; inputs that lose every weight are in the last.
    pub fn mask_sparsity(title: impl Into<String>, statistics: &MaskStatistics) -> Plot {
        let width = 100 / SPARSITY_BINS;
        let bins = (0..SPARSITY_BINS).map(|bin| (bin * width).to_string());
        let share = |counts: &[u64]| -> Vec<f64> {
            let all = counts.iter().sum::<u64>().max(1) as f64;
            counts.iter().map(|&count| count as f64 / all).collect()
        };
        Plot::bars(title, bins)
            .x(format!("Sparsity (%, from the number shown to {width} above it)"))
            .y("Share of all rows, of all columns (%)")
            .percent_y()
            .values("rows (outputs)", share(&statistics.row_histogram))
            .values("columns (inputs)", share(&statistics.column_histogram))
    }
}
