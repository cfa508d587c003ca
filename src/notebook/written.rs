//! The files that earlier runs of a notebook wrote into a directory: no other file there may be replaced or removed.

use super::document::is_executed;
use super::export::{is_extension, is_our_html, plots_directory};
use anyhow::{Result, bail};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The files in `directory` that runs of the notebook `STEM.ipynb` wrote, relative to it: the report's JSON names the
/// tables and plots, and stands for the Markdown beside it. What a run leaves that did not come to its end, the executed
/// notebook, says itself what it is.
pub(super) fn written(directory: &Path, stem: &str) -> BTreeSet<String> {
    let [json, markdown, notebook, html] = ["json", "md", "ipynb", "html"].map(|end| format!("{stem}.{end}"));
    let mut names = BTreeSet::new();
    let report = fs::read(directory.join(&json)).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    if let Some(report) = report.filter(|report| report["notebook"] == *notebook && report["schema"].is_u64()) {
        let cells = report["cells"].as_array().map(Vec::as_slice).unwrap_or_default();
        let files = cells.iter().map(|cell| &cell["files"]).chain([&report["attachments"]]);
        let files = files.flat_map(|files| files.as_array().map(Vec::as_slice).unwrap_or_default());
        // Whoever writes another path there names no file of a report.
        let files = files.filter_map(Value::as_str).filter(|name| is_table(name, stem) || is_value(name, stem));
        names.extend(files.map(str::to_owned));
        names.extend([json, markdown, notebook.clone()]);
    }
    if is_executed(&directory.join(&notebook)) {
        names.insert(notebook);
    }
    if fs::read_to_string(directory.join(&html)).is_ok_and(|text| is_our_html(&text)) {
        names.insert(html);
    }
    names.retain(|name| directory.join(name).symlink_metadata().is_ok());
    names
}

/// # Errors
/// Fails when one of the files `names` is in `directory`, and no run of the notebook wrote it.
pub(super) fn refuse_foreign(directory: &Path, stem: &str, names: &[&str]) -> Result<()> {
    let written = written(directory, stem);
    let is_foreign = |name: &&&str| !written.contains(**name) && directory.join(name).symlink_metadata().is_ok();
    if let Some(name) = names.iter().find(is_foreign) {
        bail!(
            "{} is there, and no run of {stem}.ipynb wrote it; move it away, or write to another directory with --out",
            directory.join(name).display()
        );
    }
    Ok(())
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit())
}

/// Plots, other values that are files, and pictures that were pasted into texts.
fn is_value(name: &str, stem: &str) -> bool {
    let directory = plots_directory(stem);
    let Some(name) = name.strip_prefix(&directory).and_then(|rest| rest.strip_prefix('/')) else { return false };
    let rest = ["plot_", "value_", "attached_"].iter().find_map(|start| name.strip_prefix(start));
    let number = rest.and_then(|rest| rest.split_once('.'));
    number.is_some_and(|(number, extension)| is_number(number) && is_extension(extension))
}

fn is_table(name: &str, stem: &str) -> bool {
    let rest = name.strip_prefix(stem).and_then(|rest| rest.strip_suffix(".csv"));
    rest.is_some_and(|rest| rest.is_empty() || rest.strip_prefix('_').is_some_and(is_number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_run_wrote_counts() {
        let directory = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        let names = || written(directory.path(), "n").into_iter().collect::<Vec<_>>();
        fs::create_dir(directory.path().join("n_files")).unwrap();
        for name in ["n.csv", "n_2.csv", "n_files/plot_1.svg", "n_files/plot_2.svg", "n.md", "n.html", "notes.csv"] {
            put(name, "mine");
        }
        assert!(names().is_empty());
        put("n.json", r#"{"notebook": "other.ipynb", "schema": 1, "cells": [{"files": ["n.csv"]}]}"#);
        assert!(names().is_empty());
        put("n.ipynb", r#"{"cells": [], "metadata": {}}"#);
        assert!(refuse_foreign(directory.path(), "n", &["n.ipynb"]).is_err());
        put("n.ipynb", r#"{"cells": [], "metadata": {"lacuna": {"executed": true}}}"#);
        assert_eq!(names(), ["n.ipynb"]);
        let files = r#"["n_2.csv", "n_3.csv", "n_files/plot_1.svg", "notes.csv", "../n.csv", "n_files/../n.csv"]"#;
        put("n.json", &format!(r#"{{"notebook": "n.ipynb", "schema": 1, "cells": [{{}}, {{"files": {files}}}]}}"#));
        assert_eq!(names(), ["n.ipynb", "n.json", "n.md", "n_2.csv", "n_files/plot_1.svg"]);
        let others = ["plot_3.jpg", "plot_4.webp", "value_1.html", "value_2.wav", "attached_1.png"];
        for name in others.into_iter().chain(["value_1.rs", "mine_1.png", "attached_x.png"]) {
            put(&format!("n_files/{name}"), "x");
        }
        let files: Vec<String> =
            others.iter().chain(&["value_1.rs", "mine_1.png"]).map(|name| format!("n_files/{name}")).collect();
        let (last, files) = files.split_last().unwrap();
        let report = serde_json::json!({"notebook": "n.ipynb", "schema": 1, "cells": [{"files": files}], "attachments": [last, "n_files/attached_x.png", "n_files/attached_1.png"]});
        put("n.json", &report.to_string());
        let ours = names();
        for name in others {
            assert!(ours.contains(&format!("n_files/{name}")), "{name}");
        }
        assert!(
            !ours.iter().any(|name| name.contains("mine_") || name.ends_with(".rs") || name.contains("_x")),
            "{ours:?}"
        );
        put("n.json", r#"{"notebook": "n.ipynb", "schema": 1, "cells": [{"files": ["n_2.csv"]}]}"#);
        refuse_foreign(directory.path(), "n", &["n.md", "n_2.csv", "n_3.csv"]).unwrap();
        let refused = refuse_foreign(directory.path(), "n", &["n.md", "n.csv"]).unwrap_err().to_string();
        assert!(refused.contains("n.csv is there, and no run of n.ipynb wrote it"), "{refused}");
    }
}
