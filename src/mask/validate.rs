//! Validation of masks: against their own metadata, and against a model.

use super::{Mask, MaskMetadata, MaskSet, Pattern};
use crate::settings::{Allocation, ComparisonGroup};
use serde::Serialize;
use std::collections::HashMap;
use std::fmt;

/// Something about masks that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The tensor; `None` for the set as a whole.
    pub tensor: Option<String>,
    /// Its kind.
    pub kind: ViolationKind,
    /// The expectation and the finding.
    pub problem: String,
}

/// The kinds of [`Violation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ViolationKind {
    /// A prunable linear of the model has no mask.
    Missing,
    /// A mask is of no prunable linear of the model.
    Extra,
    /// A mask has another shape than the weight.
    Shape,
    /// The masks were made for another model.
    Model,
    /// A row, layer or the whole has not the target sparsity.
    Sparsity,
    /// A group of M does not keep N.
    Pattern,
}

crate::error::named!(
    ViolationKind, "kind of violation",
    Missing => "missing", Extra => "extra", Shape => "shape", Model => "model", Sparsity => "sparsity",
    Pattern => "pattern",
);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tensor {
            Some(tensor) => write!(f, "tensor `{tensor}`: {}", self.problem),
            None => f.write_str(&self.problem),
        }
    }
}

impl Violation {
    fn of(tensor: &str, kind: ViolationKind, problem: String) -> Violation {
        Violation { tensor: Some(tensor.to_owned()), kind, problem }
    }
}

impl MaskSet {
    /// Compares the masks with the prunable linears of a model, `(name, (out, in))` in model order
    /// ([`ModelConfig::linears`](crate::model::ModelConfig::linears)), and with what their metadata promise; `sha256` is
    /// the model's, or empty when it has none.
    ///
    /// A count is as promised when it is the target times the number of weights, rounded down or to within half a weight a
    /// row: in every row when rows were compared, in each layer or in the whole when those were, in every group for N:M.
    /// Selections whose counts are not exact (`alpha`, ties as in the reference implementation) promise none.
    pub fn violations(&self, linears: &[(String, (usize, usize))], sha256: &str) -> Vec<Violation> {
        let mut found = Vec::new();
        if let Some(MaskMetadata { model, .. }) = &self.metadata
            && ![model.sha256.as_str(), sha256].contains(&"")
            && model.sha256 != sha256
        {
            let problem = format!(
                "the masks are of model {} with SHA-256 {}, this one has {sha256}; make masks from this model",
                model.name, model.sha256
            );
            found.push(Violation { tensor: None, kind: ViolationKind::Model, problem });
        }
        let masks: HashMap<&str, &Mask> = self.masks.iter().map(|(name, mask)| (name.as_str(), mask)).collect();
        for (name, shape) in linears {
            match masks.get(name.as_str()) {
                None if self.metadata.as_ref().is_some_and(|about| about.skipped.contains(name)) => {}
                None => found.push(Violation::of(name, ViolationKind::Missing, "has no mask".into())),
                Some(mask) if mask.shape() != *shape => {
                    let problem = format!("its mask is {:?}, its weight {shape:?}", mask.shape());
                    found.push(Violation::of(name, ViolationKind::Shape, problem));
                }
                Some(mask) => found.extend(self.metadata.as_ref().and_then(|about| broken_promise(about, name, mask))),
            }
        }
        let known: HashMap<&str, ()> = linears.iter().map(|(name, _)| (name.as_str(), ())).collect();
        let extra = self.masks.iter().filter(|(name, _)| !known.contains_key(name.as_str()));
        let problem = "has a mask, but is no prunable linear of the model";
        found.extend(extra.map(|(name, _)| Violation::of(name, ViolationKind::Extra, problem.into())));
        found.extend(self.metadata.as_ref().and_then(|about| self.broken_total(about)));
        found
    }

    /// The sparsity of the whole, where only that was prescribed.
    fn broken_total(&self, about: &MaskMetadata) -> Option<Violation> {
        let pruning = about.pruning.as_ref().filter(|pruning| pruning.allocation == Allocation::Global)?;
        let shared = self.masks.iter().filter(|(name, _)| !about.targets.contains_key(name));
        let (pruned, elements, rows) = shared.fold((0, 0, 0), |(pruned, elements, rows), (_, mask)| {
            (pruned + mask.pruned(), elements + super::set::elements(mask), rows + mask.shape().0 as u64)
        });
        let problem = off_target(pruned, elements, rows, pruning.sparsity)?;
        Some(Violation {
            tensor: None,
            kind: ViolationKind::Sparsity,
            problem: format!("all masks together: {problem}"),
        })
    }
}

/// The first contradiction between a mask and its own metadata.
fn broken_promise(about: &MaskMetadata, name: &str, mask: &Mask) -> Option<Violation> {
    let pruning = about.pruning.as_ref()?;
    let (rows, cols) = mask.shape();
    if let Pattern::NofM { n, m } = about.pattern() {
        // A tensor that was skipped.
        let skipped = about.target(name) == Some(0.0);
        let dropped = if skipped { 0 } else { m - n };
        return broken_group(mask, m, dropped).map(|problem| Violation::of(name, ViolationKind::Pattern, problem));
    }
    // Wanda's alpha variant and the reference's ties promise no count.
    if pruning.per == ComparisonGroup::Alpha || pruning.reference_ties {
        return None;
    }
    let target = about.target(name)?;
    let problem = if pruning.per == ComparisonGroup::Row {
        let counts = mask.row_counts();
        let mut off = counts
            .iter()
            .enumerate()
            .filter_map(|(row, &count)| Some((row, off_target(count, cols as u64, 1, target)?)));
        off.next().map(|(row, problem)| match off.count() {
            0 => format!("row {row}: {problem}"),
            more => format!("row {row}: {problem}; so with {more} other rows"),
        })
    } else {
        off_target(mask.pruned(), rows as u64 * cols as u64, rows as u64, target)
    };
    problem.map(|problem| Violation::of(name, ViolationKind::Sparsity, problem))
}

/// Describes how `pruned` of `elements` weights in `rows` rows miss a target sparsity; `None` if they meet it.
fn off_target(pruned: u64, elements: u64, rows: u64, target: f64) -> Option<String> {
    let wanted = elements as f64 * target;
    let off = pruned as f64 - wanted;
    if off.abs() <= rows as f64 / 2.0 || pruned == wanted as u64 {
        return None;
    }
    let is = pruned as f64 / elements.max(1) as f64;
    Some(format!("{pruned} of {elements} weights are pruned, sparsity {is:.6}; the target {target} means {wanted:.1}"))
}

/// Describes a group of `m` consecutive inputs of which not exactly `dropped` are pruned; `None` if there is none.
fn broken_group(mask: &Mask, m: usize, dropped: usize) -> Option<String> {
    let (rows, cols) = mask.shape();
    if cols % m != 0 {
        return Some(format!("{m} does not divide its {cols} columns"));
    }
    let pruned =
        |row: usize, group: usize| (group * m..(group + 1) * m).filter(|&col| mask.is_pruned(row, col)).count();
    let groups = (0..rows).flat_map(|row| (0..cols / m).map(move |group| (row, group)));
    let mut off = groups.filter(|&(row, group)| pruned(row, group) != dropped);
    let (row, group) = off.next()?;
    let problem = format!(
        "row {row}, columns {}..{}: {} of {m} weights are pruned, the pattern asks for {dropped}",
        group * m,
        (group + 1) * m,
        pruned(row, group)
    );
    Some(match off.count() {
        0 => problem,
        more => format!("{problem}; so with {more} other groups"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{ModelRecord, PruningRecord};

    const NAME: &str = "model.layers.0.mlp.up_proj.weight";

    fn set(mask: Mask, pattern: &str, per: &str, sparsity: f64) -> MaskSet {
        let model = ModelRecord {
            name: "m".into(),
            revision: None,
            family: "llama".into(),
            parameters: 1,
            sha256: "aa".into(),
        };
        let pruning = serde_json::json!({
            "method": "wanda", "pattern": pattern, "per": per, "sparsity": sparsity, "propagate": "dense", "seed": 0,
            "dtype": "f32", "calibration": null,
        });
        let pruning: PruningRecord = serde_json::from_value(pruning).unwrap();
        MaskSet { metadata: Some(MaskMetadata::new(model, pruning)), masks: vec![(NAME.into(), mask)] }
    }

    fn kinds(set: &MaskSet, shape: (usize, usize)) -> Vec<ViolationKind> {
        set.violations(&[(NAME.into(), shape)], "aa").iter().map(|violation| violation.kind).collect()
    }

    #[test]
    fn rows_layers_and_groups() {
        use ViolationKind::{Pattern, Shape, Sparsity};
        // 5 of 9 in each row: floor(9 * 0.6), and within half a weight of 9 * 0.5.
        let five = Mask::from_fn(4, 9, |_, col| col < 5);
        for (sparsity, expected) in
            [(0.6, vec![]), (0.5, vec![]), (0.5555, vec![]), (0.4, vec![Sparsity]), (0.7, vec![Sparsity])]
        {
            assert_eq!(kinds(&set(five.clone(), "unstructured", "row", sparsity), (4, 9)), expected, "{sparsity}");
        }
        // One row loses all: 9 + 3 * 5 is 24 of 36.
        let uneven = five.or(&Mask::from_fn(4, 9, |row, _| row == 2)).unwrap();
        assert_eq!(kinds(&set(uneven.clone(), "unstructured", "layer", 24.0 / 36.0), (4, 9)), []);
        let by_row = set(uneven.clone(), "unstructured", "row", 0.6);
        let problem = by_row.violations(&[(NAME.into(), (4, 9))], "aa").remove(0);
        assert!(problem.to_string().contains(NAME) && problem.problem.starts_with("row 2: 9 of 9"), "{problem}");
        assert_eq!(kinds(&set(uneven, "unstructured", "layer", 0.5), (4, 9)), [Sparsity]);
        assert_eq!(kinds(&set(five, "unstructured", "row", 0.5), (9, 4)), [Shape]);

        let groups = Mask::from_fn(2, 8, |_, col| col % 4 < 2);
        assert_eq!(kinds(&set(groups.clone(), "2:4", "row", 0.5), (2, 8)), []);
        assert_eq!(kinds(&set(groups.clone(), "1:4", "row", 0.75), (2, 8)), [Pattern]);
        // Still half of each row, and of each 8.
        let shifted = Mask::from_fn(2, 8, |_, col| col < 4);
        assert_eq!(kinds(&set(shifted.clone(), "4:8", "row", 0.5), (2, 8)), []);
        assert_eq!(kinds(&set(shifted, "2:4", "row", 0.5), (2, 8)), [Pattern]);
    }

    #[test]
    fn targets_of_their_own_and_global() {
        let mask = Mask::from_fn(4, 10, |row, _| row == 0);
        let mut set = set(mask, "unstructured", "layer", 0.5);
        assert_eq!(kinds(&set, (4, 10)), [ViolationKind::Sparsity]);
        set.metadata.as_mut().unwrap().targets.insert(NAME.into(), 0.25);
        assert_eq!(kinds(&set, (4, 10)), []);
        let metadata = set.metadata.as_mut().unwrap();
        metadata.targets.clear();
        metadata.pruning.as_mut().unwrap().allocation = Allocation::Global;
        let found = set.violations(&[(NAME.into(), (4, 10))], "aa");
        assert!(matches!(&found[..], [Violation { tensor: None, kind: ViolationKind::Sparsity, .. }]), "{found:?}");
    }

    #[test]
    fn another_model_and_other_tensors() {
        let set = set(Mask::none(2, 2), "unstructured", "row", 0.0);
        let linears = [("model.layers.0.mlp.gate_proj.weight".to_owned(), (2, 2))];
        let found = set.violations(&linears, "bb");
        let kinds: Vec<_> = found.iter().map(|violation| violation.kind).collect();
        assert_eq!(kinds, [ViolationKind::Model, ViolationKind::Missing, ViolationKind::Extra]);
        // A model in memory has no hash to compare.
        assert_eq!(set.violations(&[(NAME.into(), (2, 2))], ""), []);
    }
}
