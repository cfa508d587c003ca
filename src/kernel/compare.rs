//! `lacuna notebook run --check`: what a fresh run gave against what is committed.

use super::report::{ENVIRONMENT, Files, is_our_html, plots_directory};
use serde_json::Value;
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
    let names = |directory: &Path| -> Vec<String> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    let plots = plots_directory(stem);
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    let is_plot = |name: &str| {
        let number = name.strip_prefix("plot_").and_then(|rest| rest.split_once('.'));
        number.is_some_and(|(number, extension)| is_number(number) && matches!(extension, "svg" | "png"))
    };
    let is_table = |name: &str| {
        let rest = name.strip_prefix(stem).and_then(|rest| rest.strip_suffix(".csv"));
        rest.is_some_and(|rest| rest.is_empty() || rest.strip_prefix('_').is_some_and(is_number))
    };
    let mut stale: Vec<String> = names(&directory.join(&plots))
        .into_iter()
        .filter(|name| is_plot(name))
        .map(|name| format!("{plots}/{name}"))
        .collect();
    stale.extend(names(directory).into_iter().filter(|name| is_table(name)));
    let html = format!("{stem}.html");
    if fs::read_to_string(directory.join(&html)).is_ok_and(|text| is_our_html(&text)) {
        stale.push(html);
    }
    stale.retain(|name| !fresh.contains_key(name));
    stale.sort();
    stale
}

fn differ(text: &mut String, path: &Path, old: &[u8], new: &[u8]) {
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    let (old, new) = match (std::str::from_utf8(old), std::str::from_utf8(new)) {
        (Ok(old), Ok(new)) if is_json => (comparable(old), comparable(new)),
        (Ok(old), Ok(new)) => (old.to_owned(), new.to_owned()),
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

/// A report's JSON without what may differ from run to run.
fn comparable(text: &str) -> String {
    match serde_json::from_str::<Value>(text) {
        Ok(mut value) => {
            if let Some(fields) = value.as_object_mut() {
                fields.shift_remove(ENVIRONMENT);
            }
            // Outputs that --from-cell took from a notebook have their keys sorted.
            value.sort_all_objects();
            serde_json::to_string_pretty(&value).unwrap_or_else(|_| text.to_owned())
        }
        // A broken file differs from any report.
        Err(_) => text.to_owned(),
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
    fn missing_and_stale_files_are_differences() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("n_files")).unwrap();
        for name in ["n.csv", "n_2.csv", "n_files/plot_9.svg", "n_files/notes.txt", "nn.csv"] {
            fs::write(directory.path().join(name), "a\n").unwrap();
        }
        let fresh = Files::from([("n.csv".to_owned(), b"a\n".to_vec()), ("n.md".to_owned(), b"# n\n".to_vec())]);
        assert_eq!(stale(&fresh, directory.path(), "n"), ["n_2.csv", "n_files/plot_9.svg"]);
        let text = differences(&fresh, directory.path(), "n");
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("n.md") && text.contains("n_2.csv"), "{text}");
    }
}
