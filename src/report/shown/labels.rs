//! What to call a record among others: its method, and only those settings that tell it from the rest.

use crate::record::{PruningRecord, Record};
use std::collections::{BTreeMap, BTreeSet};

/// The settings that vary among some records.
pub(super) struct Labels {
    /// Among all records.
    models: bool,
    texts: bool,
    /// Setting by setting, the methods within which it varies.
    varying: BTreeSet<(usize, String)>,
}

impl Labels {
    pub(super) fn of(records: &[Record]) -> Labels {
        let mut values: BTreeMap<(usize, String), BTreeSet<String>> = BTreeMap::new();
        for pruning in records.iter().filter_map(|record| record.pruning.as_ref()) {
            for (i, value) in settings(pruning).into_iter().enumerate() {
                values.entry((i, pruning.method.clone())).or_default().extend(value);
            }
        }
        let models: BTreeSet<_> = records.iter().map(|r| (&r.model.name, &r.model.sha256)).collect();
        let texts: BTreeSet<_> =
            records.iter().filter_map(|r| r.evaluation.as_ref()).map(|e| (&e.text.name, &e.text.sha256)).collect();
        Labels {
            models: models.len() > 1,
            texts: texts.len() > 1,
            varying: values.into_iter().filter(|(_, set)| set.len() > 1).map(|(key, _)| key).collect(),
        }
    }

    /// `wanda`, `wanda 2:4`, `random, seed 3`, `dense`, with model and text in front or behind where they vary.
    pub(super) fn of_record(&self, record: &Record) -> String {
        let mut name = match &record.pruning {
            None => "dense".to_owned(),
            Some(pruning) if pruning.pattern == "unstructured" => pruning.method.clone(),
            Some(pruning) => format!("{} {}", pruning.method, pruning.pattern),
        };
        self.qualify(record, &mut name);
        name
    }

    /// Like [`Labels::of_record`], without the pattern.
    pub(super) fn of_method(&self, record: &Record) -> String {
        let mut name = record.pruning.as_ref().map_or("dense", |pruning| &pruning.method).to_owned();
        self.qualify(record, &mut name);
        name
    }

    fn qualify(&self, record: &Record, name: &mut String) {
        if let Some(pruning) = &record.pruning {
            for (i, value) in settings(pruning).into_iter().enumerate() {
                if let Some(value) = value.filter(|_| self.varying.contains(&(i, pruning.method.clone()))) {
                    name.push_str(", ");
                    name.push_str(&value);
                }
            }
        }
        if self.models {
            name.insert_str(0, &format!("{}: ", record.model.name));
        }
        if let Some(evaluation) = record.evaluation.as_ref().filter(|_| self.texts) {
            name.push_str(&format!(" on {}", evaluation.text.name));
        }
    }
}

/// The settings beside method, pattern and sparsity; `None` where one has no meaning.
fn settings(pruning: &PruningRecord) -> [Option<String>; 5] {
    let unstructured = pruning.pattern == "unstructured";
    [
        unstructured.then(|| format!("per {}", pruning.per)),
        Some(format!("{} inputs", pruning.propagate)),
        Some(pruning.dtype.clone()),
        Some(format!("seed {}", pruning.seed)),
        pruning.calibration.as_ref().map(|text| format!("{} × {} tokens of {}", text.windows, text.seqlen, text.name)),
    ]
}
