//! Masks in cells: counts, and a picture.

use super::card::{Card, column, percent, table};
use crate::error::Result;
use crate::format::thousands;
use crate::mask::{Comparison, Mask, MaskSet, MaskStatistics, Pattern, Sparsity, place};
use crate::prune::Masks;
use crate::report::{Format, HeatMap, MaskMap, Plot, Table};
use crate::rich::{Bundle, Rich, shown_in_cells};
use serde_json::{Value, json};

/// Sizes of groups that N:M is looked for in.
const GROUPS: [usize; 5] = [2, 4, 8, 16, 32];

/// The N:M pattern that every group of the mask has, if it has one; of several the smallest.
fn pattern_of(mask: &Mask) -> Option<Pattern> {
    let (rows, cols) = mask.shape();
    let kept = |row: usize, start: usize, m: usize| (start..start + m).filter(|&col| !mask.is_pruned(row, col)).count();
    GROUPS.into_iter().filter(|m| rows > 0 && cols > 0 && cols.is_multiple_of(*m)).find_map(|m| {
        let n = kept(0, 0, m);
        let all = || (0..rows).all(|row| (0..cols).step_by(m).all(|start| kept(row, start, m) == n));
        (0 < n && n < m && all()).then_some(Pattern::NofM { n, m })
    })
}

impl Rich for Mask {
    fn bundle(&self) -> Result<Bundle> {
        let (rows, cols) = self.shape();
        let (by_row, by_column) = (self.row_counts(), self.column_counts());
        let spread = |counts: &[u64], of: usize| {
            let share = |count: Option<&u64>| percent(count.map_or(0.0, |&count| count as f64 / of.max(1) as f64));
            let full = counts.iter().filter(|&&count| count == of as u64).count();
            format!(
                "{} to {}; {} lose nothing, {} everything",
                share(counts.iter().min()),
                share(counts.iter().max()),
                thousands(counts.iter().filter(|&&count| count == 0).count() as i128),
                thousands(full as i128)
            )
        };
        let pattern = pattern_of(self);
        let shape = format!("{} × {}", thousands(rows as i128), thousands(cols as i128));
        let name = pattern.map_or(String::new(), |pattern| format!(", {pattern}"));
        let summary = format!("Mask of {shape} weights: {} pruned{name}", percent(self.sparsity()));
        let weights = rows as u64 * cols as u64;
        let facts = vec![
            ("pruned", format!("{} of {}", thousands(i128::from(self.pruned())), thousands(i128::from(weights)))),
            ("pattern", pattern.map_or("no N:M".into(), |pattern| format!("{pattern} (kept of M)"))),
            ("rows (outputs)", spread(&by_row, cols)),
            ("columns (inputs)", spread(&by_column, rows)),
        ];
        let json = json!({
            "rows": rows, "columns": cols, "pruned": self.pruned(), "sparsity": self.sparsity(),
            "pattern": pattern.map(|pattern| pattern.to_string()),
        });
        let card = Card::new(summary, json).facts("mask", "out × in", facts)?;
        if weights == 0 {
            return card.bundle();
        }
        let map = MaskMap::new(format!("{} pruned{name}", percent(self.sparsity())), self);
        card.figure(match pattern {
            Some(Pattern::NofM { m, .. }) => map.groups_of(m),
            _ => map,
        })
        .bundle()
    }
}

/// Counts as a table; `what` names its first column.
fn counts(what: &str, of: &[Sparsity]) -> Result<Table> {
    let shares = |get: fn(&Sparsity) -> f64| of.iter().map(get).collect::<Vec<f64>>();
    let numbers = |get: fn(&Sparsity) -> u64| of.iter().map(get).collect::<Vec<u64>>();
    let mut table = table(vec![
        column(what, of.iter().map(|one| one.name.as_str()).collect::<Vec<_>>()),
        column("tensors", numbers(|one| one.tensors)),
        column("weights", numbers(|one| one.elements)),
        column("pruned", numbers(|one| one.pruned)),
        column("sparsity", shares(|one| one.sparsity)),
        column("least", shares(|one| one.min_row_sparsity)),
        column("most", shares(|one| one.max_row_sparsity)),
    ])?;
    for (name, label) in [("sparsity", "sparsity"), ("least", "least of a row"), ("most", "most of a row")] {
        table = table.with_format(name, Format::Percent)?.with_heading(name, label, Some("%"))?;
    }
    Ok(table)
}

/// Sparsity by layer and kind of tensor; `None` for tensors that are not in layers.
fn by_layer(statistics: &MaskStatistics) -> Option<HeatMap> {
    let position = |of: &[Sparsity], name: &str| of.iter().position(|one| one.name == name);
    let mut sums = vec![vec![(0u64, 0u64); statistics.kinds.len()]; statistics.layers.len()];
    for tensor in &statistics.tensors {
        let (Some(layer), kind) = place(&tensor.name) else { continue };
        let at = position(&statistics.layers, &layer).zip(position(&statistics.kinds, &kind));
        if let Some((layer, kind)) = at {
            let (pruned, elements) = &mut sums[layer][kind];
            (*pruned, *elements) = (*pruned + tensor.pruned, *elements + tensor.elements);
        }
    }
    let share = |&(pruned, elements): &(u64, u64)| (elements > 0).then(|| pruned as f64 / elements as f64);
    let names = |of: &[Sparsity]| of.iter().map(|one| one.name.clone()).collect::<Vec<_>>();
    let short = |name: String| name.rsplit('.').next().unwrap_or_default().to_owned();
    if sums.is_empty() || statistics.kinds.is_empty() {
        return None;
    }
    let map = HeatMap::new("Sparsity by layer and kind of tensor", sums.iter().map(|row| row.iter().map(share)))
        .rows("Layer")
        .columns("Tensor")
        .row_names(names(&statistics.layers))
        .column_names(names(&statistics.kinds).into_iter().map(short))
        .unit("Weights that are pruned (%)")
        .percent();
    Some(map)
}

fn summary(statistics: &MaskStatistics) -> String {
    let all = &statistics.all;
    let (tensors, weights) = (thousands(i128::from(all.tensors)), thousands(i128::from(all.elements)));
    format!("Masks of {tensors} tensors: {} of {weights} weights pruned", percent(all.sparsity))
}

impl Rich for MaskStatistics {
    fn bundle(&self) -> Result<Bundle> {
        let json = serde_json::to_value(self).unwrap_or(Value::Null);
        let groups =
            if self.kinds.is_empty() { counts("tensor", &self.tensors)? } else { counts("kind", &self.kinds)? };
        let card = Card::new(summary(self), json).table(groups);
        if self.tensors.is_empty() {
            return card.bundle();
        }
        card.figure(Plot::mask_sparsity("Spread of sparsity over rows and columns", self)).bundle()
    }
}

impl Rich for MaskSet {
    fn bundle(&self) -> Result<Bundle> {
        let statistics = self.statistics();
        let sha256 = self.sha256();
        let json =
            json!({"metadata": self.metadata, "sha256": sha256, "all": statistics.all, "kinds": statistics.kinds});
        let mut facts = Vec::new();
        if let Some(metadata) = &self.metadata {
            facts.push(("model", metadata.model.name.clone()));
            if let Some(pruning) = &metadata.pruning {
                facts.push(("method", pruning.method.to_string()));
                facts.push(("pattern", format!("{}, per {}", pruning.pattern, pruning.per)));
                facts.push(("target", format!("{}, {}", percent(pruning.sparsity), pruning.allocation)));
            }
            facts.extend(metadata.composed.clone().map(|composed| ("composed", composed)));
            if !metadata.skipped.is_empty() {
                facts.push(("left alone", format!("{} linears", metadata.skipped.len())));
            }
        }
        facts.push(("checksum", sha256[..16].to_owned()));
        let groups = if statistics.kinds.is_empty() {
            counts("tensor", &statistics.tensors)?
        } else {
            counts("kind", &statistics.kinds)?
        };
        let card = Card::new(summary(&statistics), json).facts("masks", "", facts)?.table(groups);
        match by_layer(&statistics) {
            Some(map) => card.figure(map).bundle(),
            None => card.bundle(),
        }
    }
}

impl Rich for Masks {
    fn bundle(&self) -> Result<Bundle> {
        let summary = format!("{} sets of masks", self.len());
        let json = self.iter().map(|(method, sparsity, set)| {
            json!({"method": method.to_string(), "sparsity": sparsity, "achieved": set.sparsity(), "sha256": set.sha256()})
        });
        let rows = self.iter().map(|(method, sparsity, set)| {
            (method.to_string(), sparsity, set.sparsity(), set.masks.len(), set.elements())
        });
        let sets = Table::rows(["method", "target", "sparsity", "tensors", "weights"], rows)?
            .with_heading("target", "target sparsity", Some("%"))?
            .with_format("target", Format::Percent)?
            .with_heading("sparsity", "sparsity", Some("%"))?
            .with_format("sparsity", Format::Percent)?;
        Card::new(summary, json.collect()).table(sets).bundle()
    }
}

impl Rich for Comparison {
    fn bundle(&self) -> Result<Bundle> {
        let all = &self.all;
        let nested = match (all.a_in_b, all.b_in_a) {
            (true, true) => ", the masks are the same",
            (true, false) => ", the first is nested in the second",
            (false, true) => ", the second is nested in the first",
            (false, false) => "",
        };
        let summary = format!("Jaccard index {:.3} of {} tensors{nested}", all.jaccard, self.tensors.len());
        let counts = |get: fn(&crate::mask::Overlap) -> u64| self.tensors.iter().map(get).collect::<Vec<_>>();
        let overlaps = table(vec![
            column("tensor", self.tensors.iter().map(|one| one.name.as_str()).collect::<Vec<_>>()),
            column("jaccard", self.tensors.iter().map(|one| one.jaccard).collect::<Vec<_>>()),
            column("both prune", counts(|one| one.both)),
            column("first prunes", counts(|one| one.pruned_a)),
            column("second prunes", counts(|one| one.pruned_b)),
        ])?;
        Card::new(summary, serde_json::to_value(self).unwrap_or(Value::Null)).table(overlaps).bundle()
    }
}

shown_in_cells!(Mask, MaskSet, Masks, MaskStatistics, Comparison);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_found_in_every_group_or_not_at_all() {
        let two_of_four = Mask::from_fn(8, 64, |row, col| (row + col) % 4 < 2);
        assert_eq!(pattern_of(&two_of_four), Some(Pattern::NofM { n: 2, m: 4 }));
        let two = Mask::from_fn(8, 64, |_, col| col % 2 == 0);
        assert_eq!(pattern_of(&two), Some(Pattern::NofM { n: 1, m: 2 }));
        let broken = Mask::from_fn(8, 64, |row, col| (row + col) % 4 < 2 || (row, col) == (7, 63));
        assert_eq!(pattern_of(&broken), None);
        for nothing in [Mask::none(8, 64), Mask::none(8, 64).not(), Mask::none(0, 4)] {
            assert_eq!(pattern_of(&nothing), None);
        }
    }
}
