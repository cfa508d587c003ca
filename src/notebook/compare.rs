//! `lacuna notebook run --check`: what a fresh run gave against what is committed.

use super::document::text as text_of;
use super::document::{DATA, EXECUTED};
use super::export::{ENVIRONMENT, Files, take_environments};
use super::written::written;
use serde_json::{Value, json};
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Lines shown of each side of a difference.
const SHOWN: usize = 8;

/// The differences between `fresh` and the files in `directory`, as text; empty if there is none.
pub(crate) fn differences(fresh: &Files, directory: &Path, stem: &str) -> String {
    let mut text = String::new();
    for (name, new) in fresh {
        let path = directory.join(name);
        match fs::read(&path) {
            Ok(old) if old == *new => {}
            Ok(old) => differ(&mut text, &path, &old, new),
            Err(error) => {
                let _ = writeln!(text, "{}: {error}; a fresh run writes it", path.display());
            }
        }
    }
    for name in stale(fresh, directory, stem) {
        let _ = writeln!(text, "{}: a fresh run does not write it", directory.join(name).display());
    }
    text
}

/// Files that an earlier run left and this one does not: plots, further tables and HTML, relative to `directory`.
pub(crate) fn stale(fresh: &Files, directory: &Path, stem: &str) -> Vec<String> {
    let mut stale = written(directory, stem);
    stale.retain(|name| !fresh.contains_key(name) && !name.ends_with(".ipynb"));
    stale.into_iter().collect()
}

fn differ(text: &mut String, path: &Path, old: &[u8], new: &[u8]) {
    let comparable = match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => |text: &str| comparable(text, without_environment),
        Some("ipynb") => |text: &str| comparable(text, without_passing_outputs),
        _ => str::to_owned,
    };
    let (old, new) = match (std::str::from_utf8(old), std::str::from_utf8(new)) {
        (Ok(old), Ok(new)) => (comparable(old), comparable(new)),
        _ => {
            let _ =
                writeln!(text, "{}: differs ({} bytes, a fresh run writes {})", path.display(), old.len(), new.len());
            return;
        }
    };
    if old == new {
        return;
    }
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let front = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let rest = old.len().min(new.len()) - front;
    let back = old.iter().rev().zip(new.iter().rev()).take(rest).take_while(|(a, b)| a == b).count();
    let (old, new) = (&old[front..old.len() - back], &new[front..new.len() - back]);
    let _ = writeln!(text, "--- {} (committed)\n+++ fresh run\n@@ line {} @@", path.display(), front + 1);
    for (sign, lines) in [('-', old), ('+', new)] {
        for line in lines.iter().take(SHOWN) {
            let cut: String = line.chars().take(200).collect();
            let _ = writeln!(text, "{sign}{cut}");
        }
        if lines.len() > SHOWN {
            let _ = writeln!(text, "{sign}... {} more lines", lines.len() - SHOWN);
        }
    }
}

/// JSON without what may differ from run to run, which `strip` takes out.
fn comparable(text: &str, strip: fn(&mut Value)) -> String {
    match serde_json::from_str::<Value>(text) {
        Ok(mut value) => {
            strip(&mut value);
            // Outputs that --from-cell took from a notebook have their keys sorted.
            value.sort_all_objects();
            serde_json::to_string_pretty(&value).unwrap_or_else(|_| text.to_owned())
        }
        // A broken file differs from any report.
        Err(_) => text.to_owned(),
    }
}

fn without_environment(report: &mut Value) {
    if let Some(fields) = report.as_object_mut() {
        fields.shift_remove(ENVIRONMENT);
    }
}

/// Takes out of an executed notebook what is in no report either: standard error, counts, the `environment` of records.
fn without_passing_outputs(notebook: &mut Value) {
    if let Some(metadata) = notebook.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove(EXECUTED);
    }
    for cell in notebook.get_mut("cells").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(fields) = cell.as_object_mut() else { continue };
        fields.shift_remove("execution_count");
        let Some(outputs) = fields.get_mut("outputs").and_then(Value::as_array_mut) else { continue };
        let is_stream = |output: &Value, name: &str| output["output_type"] == "stream" && output["name"] == name;
        // The two streams meet as the system likes.
        let stdout: String = outputs.iter().filter(|o| is_stream(o, "stdout")).map(|o| text_of(&o["text"])).collect();
        outputs.retain(|output| output["output_type"] != "stream");
        for output in outputs.iter_mut().filter_map(Value::as_object_mut) {
            output.shift_remove("execution_count");
            if let Some(data) = output.get_mut("data").and_then(|data| data.get_mut(DATA)) {
                take_environments(data);
            }
        }
        if !stdout.is_empty() {
            outputs.insert(0, json!({"stdout": stdout.split_inclusive('\n').collect::<Vec<_>>()}));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_times_may_differ() {
        let directory = tempfile::tempdir().unwrap();
        let old = r#"{"cells": [{"data": {"x": 1}}], "environment": {"a": 1}}"#;
        fs::write(directory.path().join("n.json"), old).unwrap();
        let fresh = |text: &str| Files::from([("n.json".to_owned(), text.as_bytes().to_vec())]);
        let same = fresh(r#"{"cells": [{"data": {"x": 1}}], "environment": {"a": 2}}"#);
        assert_eq!(differences(&same, directory.path(), "n"), "");
        let other = fresh(r#"{"cells": [{"data": {"x": 2}}]}"#);
        let text = differences(&other, directory.path(), "n");
        assert!(text.contains("-        \"x\": 1") && text.contains("+        \"x\": 2"), "{text}");
    }

    #[test]
    fn executed_notebooks_are_compared_by_what_reports_show() {
        let notebook = |count: u32, outputs: Value, metadata: Value| {
            let cells = json!([{"cell_type": "code", "execution_count": count, "source": ["x"], "outputs": outputs}]);
            json!({"cells": cells, "metadata": metadata}).to_string().into_bytes()
        };
        let stream = |name: &str, text: Value| json!({"output_type": "stream", "name": name, "text": text});
        let value = |x: u32, seconds: f64| {
            let data = json!({DATA: {"x": x, "environment": {"seconds": seconds}}, "text/plain": [x.to_string()]});
            json!({"output_type": "execute_result", "execution_count": 1, "data": data})
        };
        let directory = tempfile::tempdir().unwrap();
        let old = json!([stream("stdout", json!("a\nb\n")), stream("stderr", json!("1 s\n")), value(1, 0.5)]);
        fs::write(directory.path().join("n.ipynb"), notebook(1, old, json!({}))).unwrap();
        let compare = |outputs: Value| {
            let fresh = notebook(7, outputs, json!({EXECUTED: {"executed": true}}));
            differences(&Files::from([("n.ipynb".to_owned(), fresh)]), directory.path(), "n")
        };
        let parts = |second: &str, x| {
            json!([
                stream("stdout", json!(["a\n"])),
                stream("stderr", json!("2 s\n")),
                stream("stdout", json!([second])),
                value(x, 0.7)
            ])
        };
        assert_eq!(compare(parts("b\n", 1)), "");
        let text = compare(parts("c\n", 1));
        assert!(text.contains("\"b\\n\"") && text.contains("\"c\\n\"") && !text.contains("seconds"), "{text}");
        assert!(compare(parts("b\n", 2)).contains("+      "));
    }

    #[test]
    fn missing_and_stale_files_are_differences() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("n_files")).unwrap();
        for name in ["n.csv", "n_2.csv", "n_3.csv", "n_files/plot_9.svg", "n_files/plot_8.svg", "nn.csv"] {
            fs::write(directory.path().join(name), "a\n").unwrap();
        }
        let files = json!([{"files": ["n.csv", "n_2.csv", "n_files/plot_9.svg"]}]);
        let json = json!({"notebook": "n.ipynb", "schema": 1, "cells": files}).to_string();
        fs::write(directory.path().join("n.json"), &json).unwrap();
        let fresh = Files::from([("n.csv".to_owned(), b"a\n".to_vec()), ("n.md".to_owned(), b"# n\n".to_vec())]);
        let fresh: Files = fresh.into_iter().chain([("n.json".to_owned(), json.into_bytes())]).collect();
        assert_eq!(stale(&fresh, directory.path(), "n"), ["n_2.csv", "n_files/plot_9.svg"]);
        let text = differences(&fresh, directory.path(), "n");
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("n.md") && text.contains("n_2.csv"), "{text}");
    }
}
