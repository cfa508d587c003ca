//! Helpers that the tests of notebooks share: notebooks, runs of the binary, and the files that these leave.

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// `lacuna notebook run` of the notebook, with reports in `out`.
pub(crate) fn lacuna(notebook: &Path, out: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    command.args(["notebook", "run"]).arg(notebook).arg("--out").arg(out).args(more).output().unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A code cell with metadata.
pub(crate) fn code(source: &str, metadata: Value) -> Value {
    json!({"cell_type": "code", "metadata": metadata, "source": source, "outputs": [], "execution_count": null})
}

pub(crate) fn tagged(source: &str, tag: &str) -> Value {
    code(source, json!({"tags": [tag]}))
}

/// Writes a notebook of cells, in the given language; cells get ids `id-0`, `id-1` and so on.
pub(crate) fn notebook_of(directory: &Path, name: &str, language: &str, mut cells: Vec<Value>) -> PathBuf {
    for (i, cell) in cells.iter_mut().enumerate() {
        cell["id"] = json!(format!("id-{i}"));
    }
    let value =
        json!({"cells": cells, "metadata": {"language_info": {"name": language}}, "nbformat": 4, "nbformat_minor": 5});
    let path = directory.join(name);
    fs::write(&path, value.to_string()).unwrap();
    path
}

/// Writes a notebook of code cells, in the given language.
pub(crate) fn notebook(directory: &Path, name: &str, language: &str, cells: &[&str]) -> PathBuf {
    notebook_of(directory, name, language, cells.iter().map(|source| code(source, json!({}))).collect())
}

pub(crate) fn read_json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

pub(crate) fn read(path: PathBuf) -> String {
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
