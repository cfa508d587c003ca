//! Records as files: versioned, complete, replaced in one step.

use crate::error::{Error, Remedy, Result};
use crate::exact_json::exact_floats;
use crate::files;
use crate::record::{Record, SCHEMA_VERSION};
use serde::Serialize;
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::Path;

/// Reads the records of a file: one record (`lacuna.json`), a list of them, or a whole report.
///
/// # Errors
/// Fails when the file cannot be read, is no JSON, holds no records, or was written with another schema version.
pub fn read_records(path: impl AsRef<Path>) -> Result<Vec<Record>> {
    let path = path.as_ref();
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    let mut value: Value = serde_json::from_str(&text).map_err(|e| Error::file(path, format!("not a record: {e}")))?;
    exact_floats(&text, &mut value)
        .ok_or_else(|| Error::file(path, "an object names one key twice".remedy("remove one of the two")))?;
    match value {
        Value::Array(records) => records.into_iter().map(|record| one(path, record)).collect(),
        Value::Object(mut report) if report.contains_key("records") => {
            check_schema(path, report.get("schema"))?;
            let environments = report.get("environment").and_then(|e| e.get("records")).cloned();
            let Some(Value::Array(records)) = report.remove("records") else {
                return Err(Error::file(path, "`records` is not a list"));
            };
            let place = |(i, mut record): (usize, Value)| {
                let environment = environments.as_ref().and_then(|list| list.get(i)).cloned();
                if let (Some(object), Some(environment)) = (record.as_object_mut(), environment) {
                    object.insert("environment".into(), environment);
                }
                one(path, record)
            };
            records.into_iter().enumerate().map(place).collect()
        }
        record => Ok(vec![one(path, record)?]),
    }
}

/// Writes one record; an existing file is replaced in one step.
///
/// # Errors
/// Fails when the file cannot be written or a number of the record is not finite.
pub fn write_record(path: impl AsRef<Path>, record: &Record) -> Result<()> {
    write_atomic(path.as_ref(), pretty(&record_json(record)?)?.as_bytes())
}

/// The record as JSON.
///
/// # Errors
/// Fails when a number is not finite: JSON has no such numbers, and null would hide it.
pub(crate) fn record_json(record: &Record) -> Result<Value> {
    let doing = || format!("writing the record of {}", describe(record));
    let mut numbers = Vec::new();
    numbers.extend(record.pruning.iter().map(|p| ("pruning.sparsity", p.sparsity)));
    if let Some(evaluation) = &record.evaluation {
        numbers.push(("evaluation.nll_nats", evaluation.nll_nats));
        numbers.push(("evaluation.perplexity", evaluation.perplexity));
        numbers.extend(evaluation.nll_interval.iter().map(|i| ("evaluation.nll_interval.low", i.low)));
        numbers.extend(evaluation.nll_interval.iter().map(|i| ("evaluation.nll_interval.high", i.high)));
        numbers.extend(evaluation.perplexity_interval.iter().map(|i| ("evaluation.perplexity_interval.high", i.high)));
    }
    if let Some((name, value)) = numbers.into_iter().find(|(_, value)| !value.is_finite()) {
        let problem = format!("{name} is {value}, which JSON cannot hold")
            .remedy("the model is broken or overflowed: evaluate in f32, or leave the evaluation out of the record");
        return Err(Error::report(doing(), problem));
    }
    serde_json::to_value(record).map_err(|e| Error::report(doing(), e))
}

/// Two-space indented JSON with a final newline.
pub(super) fn pretty(value: &impl Serialize) -> Result<String> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Error::report("writing JSON", e))?;
    text.push('\n');
    Ok(text)
}

/// Writes a hidden sibling, flushes it to disk and renames it.
pub(super) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    files::replace(path, |file| file.write_all(bytes).map_err(files::write_error(path)))
}

fn one(path: &Path, record: Value) -> Result<Record> {
    check_schema(path, record.get("schema"))?;
    serde_json::from_value(record).map_err(|e| Error::file(path, format!("not a record: {e}")))
}

fn check_schema(path: &Path, schema: Option<&Value>) -> Result<()> {
    match schema.and_then(Value::as_u64) {
        Some(version) if version == u64::from(SCHEMA_VERSION) => Ok(()),
        Some(version) if version > u64::from(SCHEMA_VERSION) => Err(Error::file(
            path,
            format!("has schema {version}, and this lacuna reads schema {SCHEMA_VERSION}").remedy("use a newer lacuna"),
        )),
        Some(version) => Err(Error::file(
            path,
            format!("has schema {version}, and this lacuna reads schema {SCHEMA_VERSION}")
                .remedy("run the command that made it again"),
        )),
        None => Err(Error::file(path, "has no `schema` number, so it is not a record of lacuna")),
    }
}

fn describe(record: &Record) -> String {
    match &record.pruning {
        None => format!("{}, dense", record.model.name),
        Some(p) => format!("{}, {} {} at sparsity {}", record.model.name, p.method, p.pattern, p.sparsity),
    }
}

#[cfg(all(test, feature = "report"))]
mod tests {
    use super::*;
    use crate::report::shown::Document;
    use std::env;

    /// `LACUNA_UPDATE_SCHEMAS=1 cargo test schema` writes the schemas again.
    #[test]
    fn schemas_of_records_and_reports_are_current() {
        let schemas = [("record", schemars::schema_for!(Record)), ("report", schemars::schema_for!(Document))];
        for (name, schema) in schemas {
            let path = format!("{}/docs/{name}.schema.json", env!("CARGO_MANIFEST_DIR"));
            let fresh = serde_json::to_string_pretty(&schema).unwrap() + "\n";
            if env::var_os("LACUNA_UPDATE_SCHEMAS").is_some() {
                fs::write(&path, &fresh).unwrap();
            }
            let committed = fs::read_to_string(&path).unwrap_or_default();
            assert!(committed == fresh, "{path} is old: LACUNA_UPDATE_SCHEMAS=1 cargo test schema");
        }
    }
}
