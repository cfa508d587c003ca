//! The cells of docs/cookbook.md, in one session of the real kernel.
#![cfg(feature = "notebook")]

#[expect(dead_code, reason = "the tests of notebooks use the rest")]
mod notebook_runs;

use notebook_runs::{lacuna, notebook, read, read_json, stderr};
use serde_json::Value;
use std::path::Path;

/// The fenced blocks of Rust.
fn blocks(markdown: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut block: Option<Vec<&str>> = None;
    for line in markdown.lines() {
        match (&mut block, line) {
            (None, "```rust") => block = Some(Vec::new()),
            (Some(lines), "```") => {
                blocks.push(lines.join("\n"));
                block = None;
            }
            (Some(lines), line) => lines.push(line),
            (None, _) => {}
        }
    }
    assert!(block.is_none(), "a block that does not end");
    blocks
}

#[test]
fn every_cell_of_the_cookbook_runs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = read(root.join("docs/cookbook.md"));
    let data = format!("{}/data/", root.display());
    let mut cells: Vec<String> = blocks(&text).iter().map(|cell| cell.replace("../data/", &data)).collect();
    assert!(cells.len() > 15, "{} cells", cells.len());
    let own = cells.len();
    // A cell's own names go before the prelude's, and values that hold others are shown.
    cells.push(
        "#[derive(Debug)]\nstruct Order { n: u32 }\n#[derive(Debug)]\nstruct Score(f64);\n(Order { n: 3 }, Score(0.5))"
            .into(),
    );
    cells.push("Some(vec![runs.clone(), runs.head(Some(0))])".into());
    cells.push(
        "#[derive(Debug)]\nstruct Run { table: Table, n: u32 }\nRun { table: Table::from(runs.clone()), n: 7 }".into(),
    );
    let directory = tempfile::tempdir().unwrap();
    let cells: Vec<&str> = cells.iter().map(String::as_str).collect();
    let path = notebook(directory.path(), "cookbook.ipynb", "rust", &cells);
    let out = directory.path().join("out");
    let run = lacuna(&path, &out, &[]);
    assert!(run.status.success(), "{}", stderr(&run));
    let executed = read_json(&out.join("cookbook.ipynb"));
    let outputs = |cell: usize| executed["cells"][cell]["outputs"].as_array().unwrap().clone();
    for (cell, source) in cells[..own].iter().enumerate() {
        assert!(!outputs(cell).is_empty(), "shows nothing:\n{source}");
    }
    let shown = |cell: usize| outputs(cell).iter().map(Value::to_string).collect::<String>();
    assert!(shown(1).contains("perplexity against sparsity"), "{}", shown(1));
    assert!(shown(own).contains("(Order { n: 3 }, Score(0.5))"), "{}", shown(own));
    assert!(shown(own + 1).contains("0 rows × 3 columns"), "{}", shown(own + 1));
    assert!(shown(own + 2).contains("text/html"), "{}", shown(own + 2));
}
