//! The flags of `lacuna prune` for whole units.

use lacuna::prune::Method;
use lacuna::record::{Record, StructureRecord};
use lacuna::structured::{Form, GroupNorm, StructuredConfig, Unit};

/// Options that belong to single weights, or to pruning layer by layer.
const CONFLICTS: [&str; 9] =
    ["masks", "pattern", "per", "propagate", "allocation", "rules", "rules_file", "refine", "reference_ties"];

/// Structured pruning.
#[derive(Debug, clap::Args)]
pub(super) struct Structure {
    /// Remove whole units, equally many in each layer: heads (key/value heads with their queries), neurons or channels (of
    /// the residual stream); with --zero also output-channels or input-channels (of each linear)
    #[arg(long, value_name = "UNIT", conflicts_with_all = CONFLICTS)]
    structure: Option<Unit>,
    /// Zero the units, and keep all shapes
    #[arg(long, requires = "structure")]
    zero: bool,
    /// Norm that joins the scores of a unit's weights: sum or l2 [default: l2]
    #[arg(long, value_name = "NORM", requires = "structure")]
    group_norm: Option<GroupNorm>,
    /// Prune one unit even where the sparsity rounds down to none of a module
    #[arg(long, requires = "structure")]
    at_least_one: bool,
}

impl Structure {
    /// The settings, if units are to be pruned.
    pub(super) fn config(&self, method: Method, sparsity: f64, seed: u64) -> lacuna::Result<Option<StructuredConfig>> {
        let Some(unit) = self.structure else { return Ok(None) };
        let base = StructuredConfig::new(unit, method, sparsity);
        let form = if self.zero { Form::Zero } else { Form::Remove };
        let (norm, at_least_one) = (self.group_norm.unwrap_or(base.norm), self.at_least_one);
        let config = StructuredConfig { form, norm, seed, at_least_one, ..base };
        config.validate()?;
        Ok(Some(config))
    }
}

/// The units that were pruned, in one line.
pub(super) fn summary(record: &Record, structure: &StructureRecord) -> String {
    let method = record.pruning.as_ref().map_or_else(String::new, |pruning| pruning.method.to_string());
    let (gone, of) = structure.removed.iter().fold((0, 0), |(gone, of), units| (gone + units.count, of + units.of));
    let verb = if structure.form == Form::Zero { "zeroed" } else { "removed" };
    let changes: Vec<_> = structure.config.iter().map(|(key, value)| format!(", {key} {value}")).collect();
    let (before, after) = (record.model.parameters, structure.parameters);
    format!("{method} {verb} {gone} of {of} {}: {before} -> {after} parameters{}", structure.unit, changes.concat())
}
