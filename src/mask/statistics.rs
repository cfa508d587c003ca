//! Numbers of pruned weights: by tensor, by layer, by kind of tensor, and over rows and columns.

use super::{Mask, MaskSet};
use rayon::prelude::*;
use serde::Serialize;

/// Bins of a histogram over sparsities: `[0, 5%)`, `[5%, 10%)`, ..., `[95%, 100%]`.
pub const SPARSITY_BINS: usize = 20;

/// Counts over a set of masks.
#[derive(Clone, PartialEq, Serialize)]
pub struct MaskStatistics {
    /// All tensors.
    pub all: Sparsity,
    /// The tensors of each layer, called `0`, `1`, ...
    #[serde(rename = "blocks")]
    pub layers: Vec<Sparsity>,
    /// The tensors of one kind in all layers, called `self_attn.q_proj`, `mlp.experts.*.down_proj`, ...
    pub kinds: Vec<Sparsity>,
    /// Each tensor.
    pub tensors: Vec<Sparsity>,
    /// Number of rows (outputs) whose sparsity falls into each of [`SPARSITY_BINS`] bins.
    pub row_histogram: Vec<u64>,
    /// Number of columns (inputs) whose sparsity falls into each bin.
    pub column_histogram: Vec<u64>,
}

crate::debug::one_line!(rich MaskStatistics, |statistics| {
    let all = &statistics.all;
    format!("MaskStatistics({} tensors, {} of {} weights pruned)", all.tensors, all.pruned, all.elements)
});

/// Counts over one tensor or several.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sparsity {
    /// The tensor, layer or kind.
    pub name: String,
    /// Number of tensors.
    pub tensors: u64,
    /// Number of pruned weights.
    pub pruned: u64,
    /// Number of weights.
    pub elements: u64,
    /// `pruned / elements`.
    pub sparsity: f64,
    /// Sparsity of the row (output) that loses least.
    pub min_row_sparsity: f64,
    /// Sparsity of the row that loses most.
    pub max_row_sparsity: f64,
}

impl Sparsity {
    fn sum<'a>(name: &str, of: impl Iterator<Item = &'a Sparsity>) -> Sparsity {
        let mut sum = Sparsity {
            name: name.to_owned(),
            tensors: 0,
            pruned: 0,
            elements: 0,
            sparsity: 0.0,
            min_row_sparsity: f64::INFINITY,
            max_row_sparsity: 0.0,
        };
        for one in of {
            sum.tensors += one.tensors;
            sum.pruned += one.pruned;
            sum.elements += one.elements;
            sum.min_row_sparsity = sum.min_row_sparsity.min(one.min_row_sparsity);
            sum.max_row_sparsity = sum.max_row_sparsity.max(one.max_row_sparsity);
        }
        sum.sparsity = sum.pruned as f64 / sum.elements.max(1) as f64;
        if sum.tensors == 0 {
            sum.min_row_sparsity = 0.0;
        }
        sum
    }
}

type Histogram = [u64; SPARSITY_BINS];

/// Counts of one tensor, and its histograms over rows and columns.
fn count(name: &str, mask: &Mask) -> (Sparsity, Histogram, Histogram) {
    let (rows, cols) = mask.shape();
    let row_counts = mask.row_counts();
    let histogram = |counts: &[u64], of: usize| {
        let mut bins = [0; SPARSITY_BINS];
        for count in counts {
            let bin = count * SPARSITY_BINS as u64 / (of as u64).max(1);
            bins[(bin as usize).min(SPARSITY_BINS - 1)] += 1;
        }
        bins
    };
    let row = |count: Option<&u64>| count.map_or(0.0, |&count| count as f64 / cols.max(1) as f64);
    let sparsity = Sparsity {
        name: name.to_owned(),
        tensors: 1,
        pruned: row_counts.iter().sum(),
        elements: super::set::elements(mask),
        sparsity: mask.sparsity(),
        min_row_sparsity: row(row_counts.iter().min()),
        max_row_sparsity: row(row_counts.iter().max()),
    };
    (sparsity, histogram(&row_counts, cols), histogram(&mask.column_counts(), rows))
}

impl MaskSet {
    /// Counts by tensor, layer and kind of tensor.
    pub fn statistics(&self) -> MaskStatistics {
        let counted: Vec<_> = self.masks.par_iter().map(|(name, mask)| count(name, mask)).collect();
        let (mut row_histogram, mut column_histogram) = (vec![0; SPARSITY_BINS], vec![0; SPARSITY_BINS]);
        let mut tensors = Vec::with_capacity(counted.len());
        for (tensor, rows, columns) in counted {
            row_histogram.iter_mut().zip(rows).for_each(|(sum, n)| *sum += n);
            column_histogram.iter_mut().zip(columns).for_each(|(sum, n)| *sum += n);
            tensors.push(tensor);
        }
        let places: Vec<(Option<String>, String)> = tensors.iter().map(|tensor| place(&tensor.name)).collect();
        let layer = |i: usize| places[i].0.as_deref();
        let kind = |i: usize| places[i].0.as_ref().map(|_| places[i].1.as_str());
        MaskStatistics {
            all: Sparsity::sum("all", tensors.iter()),
            layers: grouped(&tensors, layer),
            kinds: grouped(&tensors, kind),
            row_histogram,
            column_histogram,
            tensors,
        }
    }
}

/// Sums over the tensors of one key, in the order of their first.
fn grouped<'a>(tensors: &[Sparsity], key: impl Fn(usize) -> Option<&'a str>) -> Vec<Sparsity> {
    let mut groups: Vec<(&str, Vec<&Sparsity>)> = Vec::new();
    for (i, tensor) in tensors.iter().enumerate() {
        let Some(key) = key(i) else { continue };
        match groups.iter_mut().find(|(other, _)| *other == key) {
            Some((_, group)) => group.push(tensor),
            None => groups.push((key, vec![tensor])),
        }
    }
    groups.into_iter().map(|(key, group)| Sparsity::sum(key, group.into_iter())).collect()
}

/// Layer and kind of a tensor: `model.layers.3.mlp.experts.7.up_proj.weight` is `mlp.experts.*.up_proj` in layer 3.
pub(crate) fn place(name: &str) -> (Option<String>, String) {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<&str> = name.strip_suffix(".weight").unwrap_or(name).split('.').collect();
    match parts.iter().position(|part| is_number(part)) {
        None => (None, name.to_owned()),
        Some(at) => {
            let kind: Vec<&str> = parts[at + 1..].iter().map(|part| if is_number(part) { "*" } else { part }).collect();
            (Some(parts[at].to_owned()), kind.join("."))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_layer_and_kind() {
        let half = Mask::from_fn(2, 10, |_, col| col < 5);
        let one_row = Mask::from_fn(4, 10, |row, _| row == 0);
        let masks = [
            ("model.layers.0.self_attn.q_proj.weight", half.clone()),
            ("model.layers.0.mlp.experts.7.up_proj.weight", one_row),
            ("model.layers.10.self_attn.q_proj.weight", half),
        ];
        let masks = masks.into_iter().map(|(name, mask)| (name.to_owned(), mask)).collect();
        let statistics = MaskSet { metadata: None, masks }.statistics();
        let short = |groups: &[Sparsity]| -> Vec<(String, u64, u64, f64, f64)> {
            let tuple = |s: &Sparsity| (s.name.clone(), s.pruned, s.elements, s.min_row_sparsity, s.max_row_sparsity);
            groups.iter().map(tuple).collect()
        };
        assert_eq!(short(&statistics.layers), [("0".into(), 20, 60, 0.0, 1.0), ("10".into(), 10, 20, 0.5, 0.5)]);
        let kinds = [("self_attn.q_proj".into(), 20, 40, 0.5, 0.5), ("mlp.experts.*.up_proj".into(), 10, 40, 0.0, 1.0)];
        assert_eq!(short(&statistics.kinds), kinds);
        assert_eq!((statistics.all.pruned, statistics.all.sparsity), (30, 0.375));
        // 3 of 8 rows are empty, 4 half, 1 full; columns: 10 are empty, 10 a quarter, 10 full.
        let at = |histogram: &[u64]| [0, 5, 10, 19].map(|bin: usize| histogram[bin]);
        assert_eq!((at(&statistics.row_histogram), at(&statistics.column_histogram)), ([3, 0, 4, 1], [10, 10, 0, 10]));
    }
}
