//! Names for records among others: the method, and those settings that tell a record from the rest.

use crate::record::{EvaluationRecord, ModelRecord, PruningRecord, Record, StructureRecord, TextRecord};
use crate::settings::{ComparisonGroup, Dsnot, Form, Origin, Zeros};
use std::collections::{BTreeMap, BTreeSet};

/// Names for some records. Two that differ in a setting other than the sparsity never share one.
pub(super) struct Labels {
    /// By [`identity`], with and without the pattern.
    with_pattern: BTreeMap<String, String>,
    without_pattern: BTreeMap<String, String>,
}

impl Labels {
    pub(super) fn of(records: &[Record]) -> Labels {
        let facets: Vec<Vec<Facet>> = records.iter().map(facets).collect();
        let varying = Varying::among(&facets);
        let named = |pattern: bool| {
            told_apart(records.iter().zip(&facets).map(|(record, facets)| {
                let zeros = record.zeros().map(|zeros| zeros.to_string());
                (identity(record), zeros, varying.name(&method(record, pattern), facets))
            }))
        };
        Labels { with_pattern: named(true), without_pattern: named(false) }
    }

    /// `wanda`, `wanda 2:4`, `random, seed 3`, `dense`, with model and text in front or behind where they vary.
    pub(super) fn of_record(&self, record: &Record) -> String {
        self.with_pattern.get(&identity(record)).cloned().unwrap_or_default()
    }

    /// Like [`Labels::of_record`], without the pattern.
    pub(super) fn of_method(&self, record: &Record) -> String {
        self.without_pattern.get(&identity(record)).cloned().unwrap_or_default()
    }
}

fn method(record: &Record, pattern: bool) -> String {
    match &record.pruning {
        None => "dense".to_owned(),
        Some(pruning) if pattern && pruning.pattern != Zeros::UNSTRUCTURED => {
            format!("{} {}", pruning.method, pruning.pattern)
        }
        Some(pruning) => pruning.method.to_string(),
    }
}

/// All that makes a record what it is but its sparsity and its results.
fn identity(record: &Record) -> String {
    let facets: Vec<(Place, String)> = facets(record).into_iter().map(|facet| (facet.place, facet.key)).collect();
    format!("{} {facets:?}", method(record, true))
}

/// The place of a setting in a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// In front: the model.
    Model,
    /// Behind the method; the number orders them.
    Setting(usize),
    /// At the end: the text that was scored.
    Text,
}

/// One setting of a record.
struct Facet {
    place: Place,
    /// Records among which it is compared: settings of one method are no news beside another method.
    among: String,
    /// Its value, complete.
    key: String,
    /// The names of the setting, from the shortest to the complete; `None` where no name is needed.
    shown: Vec<Option<String>>,
}

/// The settings of a record. Patterns without `..`: a new field does not compile before it has a name here.
fn facets(record: &Record) -> Vec<Facet> {
    let Record { schema: _, model, pruning, structure, tensors: _, evaluation, environment: _ } = record;
    let ModelRecord { name, revision, family, parameters, sha256 } = model;
    let revision = revision.as_deref().unwrap_or_default();
    let mut facets = vec![Facet {
        place: Place::Model,
        among: String::new(),
        key: format!("{name:?} {revision:?} {family:?} {parameters} {sha256}"),
        shown: [
            name.clone(),
            if revision.is_empty() { name.clone() } else { format!("{name}@{revision}") },
            format!("{name} {sha256:.8}"),
            format!("{name}@{revision} {family} {parameters} {sha256}"),
        ]
        .map(Some)
        .into(),
    }];
    if let Some(pruning) = pruning {
        let settings = settings(pruning).into_iter().chain(structure.iter().flat_map(structure_settings));
        let numbered = settings.enumerate().filter_map(|(i, setting)| Some((i, setting?)));
        let among = pruning.method.to_string();
        facets.extend(numbered.map(|(i, (key, shown))| Facet {
            place: Place::Setting(i),
            among: among.clone(),
            key,
            shown,
        }));
    }
    if let Some(EvaluationRecord {
        text,
        tokens: _,
        nll_nats: _,
        perplexity: _,
        nll_interval: _,
        perplexity_interval: _,
    }) = evaluation
    {
        let (key, shown) = text_setting(text, |TextRecord { name, .. }| name.clone());
        facets.push(Facet { place: Place::Text, among: String::new(), key, shown });
    }
    facets
}

/// A setting's value, and what it is called.
type Setting = (String, Vec<Option<String>>);

/// The settings beside method, pattern and sparsity; `None` where the pattern leaves no choice.
fn settings(pruning: &PruningRecord) -> Vec<Option<Setting>> {
    let PruningRecord {
        method,
        pattern,
        per,
        sparsity: _, // the axis, or the row
        allocation,
        rules,
        refine,
        reference_ties,
        propagate,
        seed,
        dtype,
        calibration,
    } = pruning;
    // Of a pattern N:M and of units nothing else can be compared.
    let implied = match (pattern, method) {
        (Zeros::Pattern(pattern), _) => pattern.sparsity().is_some() && *per == ComparisonGroup::Row,
        (Zeros::Units(unit), Origin::Method(_) | Origin::Masks(_)) => *per == unit.per(),
    };
    let said = |text: String| Some((text.clone(), vec![Some(text)]));
    let if_set = |text: Option<String>| Some((format!("{text:?}"), vec![text]));
    let rules: Vec<String> = rules.iter().map(ToString::to_string).collect();
    let refine = refine.map(|refine| if refine == Dsnot::default() { "DSnoT".to_owned() } else { refine.to_string() });
    vec![
        if implied { None } else { said(format!("per {per}")) },
        said(format!("{propagate} inputs")),
        said(dtype.to_string()),
        said(format!("seed {seed}")),
        match calibration {
            Some(text) => {
                let short = |text: &TextRecord| format!("{} × {} tokens of {}", text.windows, text.seqlen, text.name);
                Some(text_setting(text, short))
            }
            None => if_set(None),
        },
        said(allocation.to_string()),
        if_set((!rules.is_empty()).then(|| rules.join(" "))),
        if_set(refine.map(|refine| format!("refined by {refine}"))),
        if_set(reference_ties.then(|| "ties as in the reference".to_owned())),
    ]
}

fn structure_settings(structure: &StructureRecord) -> [Option<Setting>; 2] {
    // The unit is the pattern; what went, and what is left, are results.
    let StructureRecord { unit: _, group_norm, form, parameters: _, config: _, removed: _ } = structure;
    let form = match form {
        Form::Remove => "units removed",
        Form::Zero => "units zeroed",
    };
    [format!("{group_norm} of scores"), form.to_owned()].map(|text| Some((text.clone(), vec![Some(text)])))
}

/// A text by its `short` name, with the beginning of its checksum, and with all of it.
fn text_setting(text: &TextRecord, short: impl Fn(&TextRecord) -> String) -> Setting {
    let TextRecord { name, sha256, windows, seqlen } = text;
    let complete = format!("{windows} × {seqlen} tokens of {name}");
    let shown = [short(text), complete.clone(), format!("{complete} ({sha256:.8})"), format!("{complete} ({sha256})")];
    (format!("{name:?} {sha256} {windows} {seqlen}"), shown.map(Some).into())
}

/// The settings that have several values, and how much of each must be said to tell these apart.
struct Varying(BTreeMap<(Place, String), usize>);

impl Varying {
    fn among(records: &[Vec<Facet>]) -> Varying {
        let mut values: BTreeMap<(Place, String), BTreeMap<&str, &Facet>> = BTreeMap::new();
        for facet in records.iter().flatten() {
            values.entry((facet.place, facet.among.clone())).or_default().insert(&facet.key, facet);
        }
        let enough = |facets: BTreeMap<&str, &Facet>| {
            let longest = facets.values().map(|facet| facet.shown.len()).max().unwrap_or(1) - 1;
            let distinct = |level: &usize| {
                let names: BTreeSet<_> = facets.values().map(|facet| facet.at(*level)).collect();
                names.len() == facets.len()
            };
            (0..longest).find(distinct).unwrap_or(longest)
        };
        Varying(values.into_iter().filter(|(_, set)| set.len() > 1).map(|(place, set)| (place, enough(set))).collect())
    }

    fn name(&self, method: &str, facets: &[Facet]) -> String {
        let mut name = method.to_owned();
        for facet in facets {
            let Some(&level) = self.0.get(&(facet.place, facet.among.clone())) else { continue };
            let Some(shown) = facet.at(level) else { continue };
            name = match facet.place {
                Place::Model => format!("{shown}: {name}"),
                Place::Setting(_) => format!("{name}, {shown}"),
                Place::Text => format!("{name} on {shown}"),
            };
        }
        name
    }
}

impl Facet {
    fn at(&self, level: usize) -> Option<&str> {
        self.shown.get(level).or(self.shown.last())?.as_deref()
    }
}

/// The names by identity. Where two identities with the same zeros have one name all the same (names of files may hold anything),
/// they get numbers.
fn told_apart(names: impl Iterator<Item = (String, Option<String>, String)>) -> BTreeMap<String, String> {
    let (mut by_identity, mut taken) = (BTreeMap::new(), BTreeSet::new());
    for (identity, zeros, name) in names {
        by_identity.entry(identity).or_insert_with(|| {
            let numbered = (2..).map(|number| format!("{name} [{number}]"));
            let mut free = std::iter::once(name.clone()).chain(numbered);
            let name = free.find(|name| taken.insert((zeros.clone(), name.clone())));
            name.unwrap_or_default()
        });
    }
    by_identity
}
