//! The report's JSON. `docs/report.md` explains it, and `docs/notebook-report.schema.json` is made from these types.

use super::take_environments;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Version of the JSON; another number means that readers must change.
pub(super) const SCHEMA: u32 = 1;

/// The results of a notebook's cells, as `lacuna notebook run` writes them to `STEM.json`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(title = "Report of a notebook")]
pub(super) struct Report {
    /// Version of this format: 1.
    pub(super) schema: u32,
    /// File name of the notebook.
    pub(super) notebook: String,
    /// SHA-256, in hexadecimal, over kinds and sources of its cells.
    pub(super) sha256: String,
    /// Parameters that were set from outside, by name; absent when none was.
    #[serde(skip_serializing_if = "Map::is_empty")]
    #[schemars(default)]
    pub(super) parameters: Map<String, Value>,
    /// Code cells, from the top.
    pub(super) cells: Vec<Cell>,
    /// Files of pictures that were pasted into texts, as relative paths; absent when there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub(super) attachments: Vec<String>,
    /// Whatever may differ between two runs with the same results. Comparisons leave it out.
    pub(super) environment: Environment,
}

/// One code cell.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(super) struct Cell {
    /// Its place among all cells of the notebook, from 1.
    pub(super) cell: usize,
    /// True for a cell that is tagged `skip` and was not run; absent otherwise.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    pub(super) skipped: bool,
    /// Text that it printed, without terminal escape sequences; absent when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stdout: Option<String>,
    /// The reason why it failed; absent when it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<Failure>,
    /// Its value (of several, the last) as data (`application/json`): a table, records. The parts of records that may differ from run to run
    /// stand in `environment.cells`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) data: Option<Value>,
    /// Its value (of several, the last) as text, where there are no data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<String>,
    /// Files beside this one that hold its plots and tables, as relative paths; the one that the report shows is first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub(super) files: Vec<String>,
    /// Forms of its value that have no other place, by MIME type: HTML that has no better form, and what reports do not
    /// draw. JSON types are structured, others are text; absent when there are none.
    #[serde(skip_serializing_if = "Map::is_empty")]
    #[schemars(default)]
    pub(super) other: Map<String, Value>,
    /// Of a cell that showed several values: these and what it printed between them, in order; absent otherwise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub(super) outputs: Vec<Output>,
}

/// One of several outputs of a cell: either text that it printed, or a value.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub(super) struct Output {
    /// Text that it printed before the next value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stdout: Option<String>,
    /// A value as data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) data: Option<Value>,
    /// A value as text, where there are no data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<String>,
    /// Files that hold the value, as in the cell's own list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub(super) files: Vec<String>,
    /// Forms of the value that have no other place, by MIME type.
    #[serde(skip_serializing_if = "Map::is_empty")]
    #[schemars(default)]
    pub(super) other: Map<String, Value>,
}

impl Cell {
    /// Takes the `environment` of each record out of its values, and returns them in the order in which they stand there.
    pub(super) fn take_environments(&mut self) -> Vec<Value> {
        let of_value = self.data.as_mut().map(take_environments).unwrap_or_default();
        if self.outputs.is_empty() {
            return of_value;
        }
        self.outputs.iter_mut().filter_map(|output| output.data.as_mut()).flat_map(take_environments).collect()
    }
}

/// The reason why a cell failed.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Failure {
    /// `CompileError`, `Panic` or `Error` (a `?`).
    pub(super) kind: String,
    /// The compiler's or the cell's own message.
    pub(super) message: String,
}

/// Times, hosts, versions.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Environment {
    /// Version of lacuna.
    pub(super) lacuna: String,
    /// Operating system.
    pub(super) os: String,
    /// Processor architecture.
    pub(super) arch: String,
    /// Number of threads that the machine runs at a time.
    pub(super) threads: usize,
    /// Seconds before the first cell.
    pub(super) startup_seconds: f64,
    /// By the cell's number.
    pub(super) cells: BTreeMap<usize, CellEnvironment>,
}

/// The facts about one cell that may differ between runs.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct CellEnvironment {
    /// Time that it took, its compilation included.
    pub(super) seconds: f64,
    /// Of these, for the types of its variables, the compiler and the linker.
    pub(super) compile_seconds: f64,
    /// Of these, for its code; the rest of `seconds` is rounding.
    pub(super) run_seconds: f64,
    /// The `environment` of each record in its data, in the order in which they stand there; absent without any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub(super) records: Vec<Value>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{env, fs};

    /// `LACUNA_UPDATE_SCHEMAS=1 cargo test schema` writes the schemas again.
    #[test]
    fn schema_of_notebook_reports_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/notebook-report.schema.json");
        let fresh = serde_json::to_string_pretty(&schemars::schema_for!(Report)).unwrap() + "\n";
        if env::var_os("LACUNA_UPDATE_SCHEMAS").is_some() {
            fs::write(path, &fresh).unwrap();
        }
        let committed = fs::read_to_string(path).unwrap_or_default();
        assert!(committed == fresh, "{path} is old: LACUNA_UPDATE_SCHEMAS=1 cargo test schema");
    }
}
