//! The masks of a model, and where they come from.

use super::bits::jaccard;
use super::{Mask, Pattern};
use crate::error::{Error, Remedy, Result};
use crate::record::{ModelRecord, PruningRecord};
use crate::settings::{Allocation, Zeros};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{SystemTime, UNIX_EPOCH};

/// Version of the metadata that mask files carry (documented in `docs/masks.md`).
pub const MASKS_SCHEMA: u32 = 1;

/// The masks of a model's linears.
#[derive(Clone, PartialEq)]
pub struct MaskSet {
    /// The origin of the masks; `None` when that is not known, as for a file that other software wrote.
    pub metadata: Option<MaskMetadata>,
    /// The mask of each linear by its weight's name (`model.layers.0.self_attn.q_proj.weight`), in model order.
    pub masks: Vec<(String, Mask)>,
}

crate::debug::one_line!(rich MaskSet, |set| {
    let (pruned, weights) = set.masks.iter().fold((0, 0), |(pruned, weights), (_, mask)| {
        (pruned + mask.pruned(), weights + mask.shape().0 * mask.shape().1)
    });
    format!("MaskSet({} masks, {} pruned)", set.masks.len(), crate::debug::percent(pruned as f64 / weights.max(1) as f64))
});

/// The origin of masks.
#[derive(Clone, Serialize, Deserialize)]
pub struct MaskMetadata {
    /// [`MASKS_SCHEMA`] of the writer.
    pub schema: u32,
    /// The model whose weights were compared. Its `sha256` is empty when that existed in memory only.
    pub model: ModelRecord,
    /// The settings of the selection; `None` for masks that were composed of others.
    pub pruning: Option<PruningRecord>,
    /// Target sparsity of each tensor whose own differs from that of `pruning`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub targets: BTreeMap<String, f64>,
    /// Prunable linears that were left alone on purpose: they have no mask.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub skipped: BTreeSet<String>,
    /// The composition, such as `and(wanda 0.5, magnitude 0.5)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub composed: Option<String>,
    /// Date and version: whatever may differ between two runs with the same masks. Comparisons and the checksum leave it
    /// out.
    #[serde(default)]
    pub environment: BTreeMap<String, Value>,
}

crate::debug::one_line!(MaskMetadata, |metadata| {
    let how = metadata.pruning.as_ref().map_or("of unknown origin".into(), |pruning| {
        format!("{} {}, {}", pruning.method, pruning.pattern, crate::debug::percent(pruning.sparsity))
    });
    format!("MaskMetadata({}: {how})", metadata.model.name)
});

impl MaskMetadata {
    /// Metadata of masks that were selected from `model` as `pruning` says, no linear differently.
    pub fn new(model: ModelRecord, pruning: PruningRecord) -> MaskMetadata {
        MaskMetadata {
            schema: MASKS_SCHEMA,
            model,
            pruning: Some(pruning),
            targets: BTreeMap::new(),
            skipped: BTreeSet::new(),
            composed: None,
            environment: environment(),
        }
    }

    /// Target sparsity of the tensor called `name`; `None` when it has none of its own.
    pub fn target(&self, name: &str) -> Option<f64> {
        let common =
            || Some(self.pruning.as_ref().filter(|pruning| pruning.allocation != Allocation::Global)?.sparsity);
        self.targets.get(name).copied().or_else(common)
    }

    /// Shape of the zeros; unstructured when the masks were not selected by a pattern.
    pub fn pattern(&self) -> Pattern {
        match self.pruning.as_ref().map(|pruning| pruning.pattern) {
            Some(Zeros::Pattern(pattern)) => pattern,
            Some(Zeros::Units(_)) | None => Pattern::Unstructured,
        }
    }

    /// The fields that checksums and comparisons cover.
    fn results(&self) -> Value {
        // Maps with strings for keys and finite numbers always serialise.
        let mut value = serde_json::to_value(self).unwrap_or_default();
        strip(&mut value);
        value
    }

    fn describe(&self) -> String {
        match (&self.composed, &self.pruning) {
            (Some(composed), _) => composed.clone(),
            (None, Some(pruning)) if pruning.pattern == Zeros::UNSTRUCTURED => {
                format!("{} {}", pruning.method, pruning.sparsity)
            }
            (None, Some(pruning)) => format!("{} {}", pruning.method, pruning.pattern),
            (None, None) => "unknown".into(),
        }
    }
}

impl PartialEq for MaskMetadata {
    fn eq(&self, other: &Self) -> bool {
        self.results() == other.results()
    }
}

/// Takes out what the checksum leaves out.
pub(super) fn strip(metadata: &mut Value) {
    if let Some(object) = metadata.as_object_mut() {
        object.shift_remove("environment");
        object.shift_remove("sha256");
    }
}

/// The version and the day, in UTC. No time of day: two runs of a day then leave the same bytes.
fn environment() -> BTreeMap<String, Value> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    BTreeMap::from([
        ("lacuna".to_owned(), env!("CARGO_PKG_VERSION").into()),
        ("date".to_owned(), date(seconds / 86_400).into()),
    ])
}

/// `YYYY-MM-DD` of a number of days since 1970-01-01, in the Gregorian calendar.
fn date(mut days: u64) -> String {
    let leap = |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year:04}-{month:02}-{:02}", days + 1)
}

/// SHA-256 in hexadecimal of masks and of what is known about them, however they are stored (`docs/masks.md`). `results`
/// is the metadata without what the checksum leaves out.
pub(super) fn sha256(results: Option<&Value>, masks: &[(String, Mask)]) -> String {
    let mut hash = Sha256::new();
    let mut update = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    update(results.map(Value::to_string).unwrap_or_default().as_bytes());
    let mut order: Vec<&(String, Mask)> = masks.iter().collect();
    order.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, mask) in order {
        let (rows, cols) = mask.shape();
        update(name.as_bytes());
        update(&[(rows as u64).to_le_bytes(), (cols as u64).to_le_bytes()].concat());
        update(&mask.to_packed());
    }
    hex::encode(hash.finalize())
}

/// The overlap of two sets of masks.
#[derive(Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Over all tensors.
    pub all: Overlap,
    /// The overlap of each tensor, in the order of the first set.
    pub tensors: Vec<Overlap>,
}

crate::debug::one_line!(rich Comparison, |comparison| {
    format!("Comparison({} tensors, Jaccard index {:.3})", comparison.tensors.len(), comparison.all.jaccard)
});

/// The overlap of two masks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Overlap {
    /// The tensor's name; `all` for all of them.
    pub name: String,
    /// Weights that both prune over those that either prunes; 1 when none is pruned.
    pub jaccard: f64,
    /// Number of weights that the first prunes.
    pub pruned_a: u64,
    /// Number of weights that the second prunes.
    pub pruned_b: u64,
    /// Number of weights that both prune.
    pub both: u64,
    /// True if the second prunes all that the first prunes.
    pub a_in_b: bool,
    /// True if the first prunes all that the second prunes.
    pub b_in_a: bool,
}

impl Overlap {
    fn new(name: &str, pruned_a: u64, pruned_b: u64, both: u64) -> Overlap {
        let (a_in_b, b_in_a) = (both == pruned_a, both == pruned_b);
        let jaccard = jaccard(both, pruned_a + pruned_b - both);
        Overlap { name: name.to_owned(), jaccard, pruned_a, pruned_b, both, a_in_b, b_in_a }
    }
}

impl MaskSet {
    /// The mask of the weight called `name`.
    pub fn get(&self, name: &str) -> Option<&Mask> {
        self.masks.iter().find(|(other, _)| other == name).map(|(_, mask)| mask)
    }

    /// Number of pruned weights.
    pub fn pruned(&self) -> u64 {
        self.masks.iter().map(|(_, mask)| mask.pruned()).sum()
    }

    /// Number of weights.
    pub fn elements(&self) -> u64 {
        self.masks.iter().map(|(_, mask)| elements(mask)).sum()
    }

    /// Fraction of pruned weights.
    pub fn sparsity(&self) -> f64 {
        self.pruned() as f64 / self.elements().max(1) as f64
    }

    /// SHA-256 in hexadecimal over names, shapes, bits and metadata but for the environment; the same in every format.
    pub fn sha256(&self) -> String {
        sha256(self.metadata.as_ref().map(MaskMetadata::results).as_ref(), &self.masks)
    }

    /// The weights that both sets prune.
    ///
    /// # Errors
    /// [`Error::Tensor`] when the sets are not of the same tensors and shapes; so with the other operations on two sets.
    pub fn and(&self, other: &MaskSet) -> Result<MaskSet> {
        self.combine(other, "and", Mask::and)
    }

    /// The weights that either set prunes.
    ///
    /// # Errors
    /// As [`MaskSet::and`].
    pub fn or(&self, other: &MaskSet) -> Result<MaskSet> {
        self.combine(other, "or", Mask::or)
    }

    /// The complement: prunes the weights that this set keeps.
    pub fn not(&self) -> MaskSet {
        let metadata = self.metadata.as_ref().map(|of| composed(of, format!("not({})", of.describe())));
        let masks = self.masks.iter().map(|(name, mask)| (name.clone(), mask.not())).collect();
        MaskSet { metadata, masks }
    }

    /// Overlap of each tensor's masks and of all.
    ///
    /// # Errors
    /// As [`MaskSet::and`].
    pub fn compare(&self, other: &MaskSet) -> Result<Comparison> {
        self.check_model(other)?;
        let tensors = self.pairs(other)?.into_iter().map(|(name, a, b)| {
            let (both, _) = a.overlap(b)?;
            Ok(Overlap::new(name, a.pruned(), b.pruned(), both))
        });
        let tensors: Vec<Overlap> = tensors.collect::<Result<_>>()?;
        let both = tensors.iter().map(|tensor| tensor.both).sum();
        Ok(Comparison { all: Overlap::new("all", self.pruned(), other.pruned(), both), tensors })
    }

    /// Jaccard index of all pruned weights.
    ///
    /// # Errors
    /// As [`MaskSet::and`].
    pub fn jaccard(&self, other: &MaskSet) -> Result<f64> {
        Ok(self.compare(other)?.all.jaccard)
    }

    /// Returns whether `other` prunes every weight that this set prunes.
    ///
    /// # Errors
    /// As [`MaskSet::and`].
    pub fn is_nested_in(&self, other: &MaskSet) -> Result<bool> {
        Ok(self.compare(other)?.all.a_in_b)
    }

    fn check_model(&self, other: &MaskSet) -> Result<()> {
        let (Some(a), Some(b)) = (&self.metadata, &other.metadata) else { return Ok(()) };
        // Of a model in memory no hash is known; names and shapes are compared all the same.
        if a.model.sha256 == b.model.sha256 || a.model.sha256.is_empty() || b.model.sha256.is_empty() {
            return Ok(());
        }
        let problem =
            format!("the other set is of {} ({})", b.model.name, b.model.sha256).remedy("both must be of one model");
        Err(Error::argument("model of the masks", format!("{} ({})", a.model.name, a.model.sha256), problem))
    }

    /// The masks of the same tensor in both sets.
    fn pairs<'a>(&'a self, other: &'a MaskSet) -> Result<Vec<(&'a str, &'a Mask, &'a Mask)>> {
        let mut others: HashMap<&str, &Mask> = other.masks.iter().map(|(name, mask)| (name.as_str(), mask)).collect();
        let pair = |(name, mask): &'a (String, Mask)| {
            let Some(other) = others.remove(name.as_str()) else {
                return Err(Error::tensor(
                    "masks",
                    name,
                    "is in the first set only".remedy("both must be of the same model"),
                ));
            };
            if mask.shape() != other.shape() {
                let problem = format!("is {:?} in the first set and {:?} in the second", mask.shape(), other.shape())
                    .remedy("both must be of the same model");
                return Err(Error::tensor("masks", name, problem));
            }
            Ok((name.as_str(), mask, other))
        };
        let pairs = self.masks.iter().map(pair).collect::<Result<_>>()?;
        match others.keys().min() {
            Some(name) => {
                Err(Error::tensor("masks", *name, "is in the second set only".remedy("both must be of the same model")))
            }
            None => Ok(pairs),
        }
    }

    fn combine(&self, other: &MaskSet, name: &str, op: fn(&Mask, &Mask) -> Result<Mask>) -> Result<MaskSet> {
        self.check_model(other)?;
        let metadata = match (&self.metadata, &other.metadata) {
            (Some(a), Some(b)) => Some(composed(a, format!("{name}({}, {})", a.describe(), b.describe()))),
            (Some(a), None) => Some(composed(a, format!("{name}({}, unknown)", a.describe()))),
            (None, Some(b)) => Some(composed(b, format!("{name}(unknown, {})", b.describe()))),
            (None, None) => None,
        };
        let combined = |(name, a, b): (&str, &Mask, &Mask)| Ok((name.to_owned(), op(a, b)?));
        let masks = self.pairs(other)?.into_iter().map(combined).collect::<Result<_>>()?;
        Ok(MaskSet { metadata, masks })
    }
}

/// Metadata of what was composed of masks for the model of `of`.
fn composed(of: &MaskMetadata, composed: String) -> MaskMetadata {
    MaskMetadata {
        schema: MASKS_SCHEMA,
        model: of.model.clone(),
        pruning: None,
        targets: BTreeMap::new(),
        skipped: of.skipped.clone(),
        composed: Some(composed),
        environment: environment(),
    }
}

pub(super) fn elements(mask: &Mask) -> u64 {
    let (rows, cols) = mask.shape();
    rows as u64 * cols as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let days = [
            (0, "1970-01-01"),
            (59, "1970-03-01"),
            (789, "1972-02-29"),
            (11_016, "2000-02-29"),
            (20_788, "2026-12-01"),
        ];
        for (days, text) in days {
            assert_eq!(date(days), text);
        }
    }

    #[test]
    fn sets_of_different_tensors_do_not_compare() {
        let set = |name: &str, cols| MaskSet { metadata: None, masks: vec![(name.to_owned(), Mask::none(2, cols))] };
        for other in [set("v", 3), set("w", 4)] {
            let error = set("w", 3).and(&other).unwrap_err().to_string();
            assert!(error.contains("`w`") && error.contains("same model"), "{error}");
        }
        let mut more = set("w", 3);
        more.masks.push(("x".into(), Mask::none(1, 1)));
        assert!(set("w", 3).compare(&more).unwrap_err().to_string().contains("`x`: is in the second set only"));
    }
}
