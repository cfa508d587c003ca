//! `lacuna notebook new`: a notebook that runs as it is, to be changed into one's own.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Writes the skeleton, and returns its path: `name`, with its extension.
///
/// # Errors
/// Fails when the file exists or cannot be written.
pub(crate) fn write(name: &Path) -> Result<PathBuf> {
    let path = if name.extension().is_some_and(|extension| extension == "ipynb") {
        name.to_owned()
    } else {
        let mut path = name.as_os_str().to_owned();
        path.push(".ipynb");
        PathBuf::from(path)
    };
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
    if stem.is_empty() {
        bail!("{} is no name for a notebook", name.display());
    }
    let absolute = std::path::absolute(&path)?;
    let directory = absolute.parent().unwrap_or(Path::new("/"));
    if !directory.is_dir() {
        let shown = path.parent().unwrap_or(directory).display();
        bail!("cannot create {}: there is no directory {shown}; make it first", path.display());
    }
    let mut text = serde_json::to_string_pretty(&notebook(&title(&stem), &parameters(directory, CHECKOUT)))?;
    text.push('\n');
    let create = || -> std::io::Result<()> {
        let file = tempfile::Builder::new().prefix(".lacuna-").tempfile_in(directory);
        // Its own message names a file that nobody knows.
        let mut file = file.map_err(|error| std::io::Error::from(error.kind()))?;
        file.write_all(text.as_bytes())?;
        std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        file.as_file().sync_all()?;
        file.persist_noclobber(&path)?;
        Ok(())
    };
    create().with_context(|| format!("cannot create {}", path.display()))?;
    Ok(path)
}

/// `05_which_heads-matter` is about "Which heads matter".
fn title(stem: &str) -> String {
    let words = stem.trim_start_matches(|c: char| c.is_ascii_digit() || matches!(c, '_' | '-'));
    let words = if words.is_empty() { stem } else { words };
    let mut chars = words.replace(['_', '-'], " ").chars().collect::<Vec<_>>().into_iter();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// The source that this binary was built from.
const CHECKOUT: &str = env!("CARGO_MANIFEST_DIR");

/// The first parameters of a notebook in `directory`: the model and the texts of the checkout around it, else of
/// `checkout`, else a word on what to put there.
fn parameters(directory: &Path, checkout: &str) -> String {
    let holds_data = |root: &Path| root.join("data/tiny-llama").is_dir();
    let data = match directory.ancestors().position(holds_data) {
        Some(up) => format!("{}data", "../".repeat(up)),
        None if holds_data(Path::new(checkout)) => format!("{checkout}/data"),
        None => {
            return "let model_path = \"\"; // a directory with config.json and model.safetensors, or a hub id: HuggingFaceTB/SmolLM2-135M\n\
                    let calibration_path = \"\"; // a text file to calibrate on\n\
                    let test_path = \"\"; // another one to measure on\n"
                .to_owned();
        }
    };
    [("model_path", "tiny-llama"), ("calibration_path", "corpus/train.txt"), ("test_path", "corpus/test.txt")]
        .map(|(name, file)| format!("let {name} = {:?};\n", format!("{data}/{file}")))
        .concat()
}

fn notebook(title: &str, parameters: &str) -> Value {
    let cells = [
        ("markdown", &[][..], format!("# {title}\n\nHow much worse does a small language model get when a share of its weights is set to zero? (Put your own\nquestion here; the first sentence and the first picture go into the gallery of reports.)")),
        ("code", &["parameters"][..], format!("// Parameters: `lacuna notebook run -p windows=32` sets another value\n{parameters}let sparsities = [0.3, 0.5, 0.7];\nlet windows: usize = 8;\nlet seed: u64 = 0;")),
        ("markdown", &[][..], "## Load\n\nThe model, text to calibrate on, and other text to measure on.".to_owned()),
        ("code", &[][..], "use lacuna::prelude::*;\n\nlet model = Model::load(model_path)?;\nlet tokenizer = model.tokenizer()?;\nlet calibration = Windows::calibration(calibration_path, Some(&tokenizer), Sampling::new(windows, 256).seed(seed))?;\nlet test = Windows::evaluation(test_path, Some(&tokenizer), Consecutive::of(256).first(windows))?;".to_owned()),
        ("markdown", &[][..], "## Prune\n\nOne record a model: what was done to it, and what it scored.".to_owned()),
        ("code", &[][..], "let dense = evaluate(&model, &test, Progress::Hidden)?;\nlet mut records = vec![Record::dense(model.record()?).with_evaluation(dense.record())];\nfor method in [Method::Magnitude, Method::Wanda] {\n    for sparsity in sparsities {\n        let pruned = prune(&model, Some(&calibration), &PruneConfig::new(method, sparsity), Progress::Hidden)?;\n        let scored = evaluate(&pruned.model, &test, Progress::Hidden)?;\n        records.push(pruned.record.with_evaluation(scored.record()));\n    }\n}\nprintln!(\"{} models measured\", records.len());".to_owned()),
        ("markdown", &[][..], "## What comes out".to_owned()),
        ("code", &[][..], "Plot::perplexity_vs_sparsity(&records)?".to_owned()),
        ("code", &[][..], "Table::perplexity_by_sparsity(&records)?".to_owned()),
        ("markdown", &[][..], "## What it means\n\nWhat the picture shows, what it does not, and what to try next.".to_owned()),
    ];
    let cells: Vec<Value> = (1..)
        .zip(cells)
        .map(|(number, (kind, tags, source))| {
            let lines: Vec<&str> = source.split_inclusive('\n').collect();
            let metadata = if tags.is_empty() { json!({}) } else { json!({"tags": tags}) };
            let mut cell =
                json!({"cell_type": kind, "id": format!("c{number:02}"), "metadata": metadata, "source": lines});
            if kind == "code" {
                cell["execution_count"] = Value::Null;
                cell["outputs"] = json!([]);
            }
            cell
        })
        .collect();
    json!({
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Lacuna (Rust)", "language": "rust", "name": "lacuna"},
            "language_info": {"file_extension": ".rs", "mimetype": "text/rust", "name": "rust"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_titles() {
        for (stem, expected) in [("05_which_heads-matter", "Which heads matter"), ("über", "Über"), ("7", "7")] {
            assert_eq!(title(stem), expected);
        }
    }

    #[test]
    fn paths_lead_to_data_or_say_what_to_put() {
        let directory = tempfile::tempdir().unwrap();
        let (outside, checkout) = (directory.path().join("a"), directory.path().join("b"));
        let text = parameters(&outside, checkout.to_str().unwrap());
        assert!(
            text.starts_with("let model_path = \"\"; // a directory with config.json") && !text.contains("data/"),
            "{text}"
        );
        std::fs::create_dir_all(checkout.join("data/tiny-llama")).unwrap();
        let text = parameters(&outside, checkout.to_str().unwrap());
        assert!(
            text.contains(&format!("let test_path = \"{}/data/corpus/test.txt\";\n", checkout.display())),
            "{text}"
        );
        let text = parameters(&checkout.join("notebooks"), "/nowhere");
        assert!(text.starts_with("let model_path = \"../data/tiny-llama\";\nlet calibration_path"), "{text}");
    }

    #[test]
    fn an_existing_file_stays() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("data/tiny-llama")).unwrap();
        std::fs::create_dir_all(directory.path().join("a/b")).unwrap();
        let path = write(&directory.path().join("a/b/first_try")).unwrap();
        assert!(path.ends_with("a/b/first_try.ipynb"));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"# First try\\n\"") && text.contains("../../data/tiny-llama"), "{text}");
        assert!(write(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
}
