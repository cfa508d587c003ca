//! Several tasks that belong to one table.

use super::example::Choice;
use super::hub::{self, TaskKind};
use super::task::Task;
use super::{ChoiceScores, score_choices};
use crate::error::{Error, Remedy, Result};
use crate::model::Model;
use crate::progress::Progress;
use crate::stats::Bootstrap;
use crate::text::{Bos, Input, read};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A named set of tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// The seven of the tables of Wanda (Sun et al. 2023): BoolQ, RTE, HellaSwag, WinoGrande, ARC-e, ARC-c, OBQA, by `acc`.
    Wanda7,
}

crate::error::named!(Suite, "suite", Wanda7 => "wanda7");

/// A column of the table.
struct Column {
    name: &'static str,
    kind: TaskKind,
    /// Words of which the file's path, in lower case, has one; empty where the kind of task is enough.
    path: &'static [&'static str],
    /// Names of the part that lm-evaluation-harness scores.
    part: &'static [&'static str],
}

const VALIDATION: &[&str] = &["validation", "valid", "val", "dev"];
const TEST: &[&str] = &["test"];
const EASY: &[&str] = &["easy", "arc-e", "arc_e", "arce"];
const CHALLENGE: &[&str] = &["challenge", "arc-c", "arc_c", "arcc"];
const WANDA7: [Column; 7] = [
    Column { name: "BoolQ", kind: TaskKind::BoolQ, path: &[], part: VALIDATION },
    Column { name: "RTE", kind: TaskKind::Rte, path: &[], part: VALIDATION },
    Column { name: "HellaSwag", kind: TaskKind::HellaSwag, path: &[], part: VALIDATION },
    Column { name: "WinoGrande", kind: TaskKind::WinoGrande, path: &[], part: VALIDATION },
    Column { name: "ARC-e", kind: TaskKind::Arc, path: EASY, part: TEST },
    Column { name: "ARC-c", kind: TaskKind::Arc, path: CHALLENGE, part: TEST },
    Column { name: "OBQA", kind: TaskKind::OpenBookQa, path: &[], part: TEST },
];

/// The scores of a model on a suite.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct SuiteScores {
    /// Name of the suite.
    pub suite: String,
    /// Mean of the tasks' `acc`.
    pub mean: f64,
    /// In the order of the papers.
    pub rows: Vec<SuiteRow>,
}

crate::debug::one_line!(SuiteScores, |scores| {
    format!("SuiteScores({}: mean acc {:.4} of {} tasks)", scores.suite, scores.mean, scores.rows.len())
});

/// A task of a suite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SuiteRow {
    /// Its name in the table.
    pub name: String,
    /// True if lm-evaluation-harness reports `acc_norm` for it.
    pub normed: bool,
    /// Its scores.
    pub scores: ChoiceScores,
}

/// The tasks of `suite` with their names, out of the files under `dir`, the first `limit` examples of each or all. Which file is
/// which task its rows say; ARC's two parts are distinguished by the path, which says `easy` or `challenge`. Of several parts of a
/// task the one is taken that lm-evaluation-harness scores.
///
/// # Errors
/// [`Error::File`] for a task that is missing, or there twice; as [`Task::choices`] for an example that cannot be read.
pub fn suite_tasks(suite: Suite, dir: &Path, limit: Option<usize>) -> Result<Vec<(&'static str, Task<Choice>)>> {
    let Suite::Wanda7 = suite;
    let mut files = Vec::new();
    collect(dir, 4, &mut files)?;
    files.sort();
    let (mut found, mut unread) = (Vec::new(), None);
    for path in files {
        let name = path.strip_prefix(dir).unwrap_or(&path).to_string_lossy().to_lowercase();
        match kind(&path) {
            Ok(Some(kind)) => found.push((name, path, kind)),
            // A file of something else may lie beside the tasks.
            Ok(None) => {}
            Err(error) => unread = unread.or(Some(error)),
        }
    }
    let mut tasks = Vec::new();
    let mut missing = Vec::new();
    for column in &WANDA7 {
        let fits = |(name, _, kind): &&(String, PathBuf, TaskKind)| {
            *kind == column.kind && (column.path.is_empty() || column.path.iter().any(|part| name.contains(part)))
        };
        let mut files: Vec<_> = found.iter().filter(fits).collect();
        if files.len() > 1 && files.iter().any(|(name, ..)| says(name, column.part)) {
            files.retain(|(name, ..)| says(name, column.part));
        }
        match files[..] {
            [] => missing.push(column.name),
            [(_, path, _)] => tasks.push((column.name, Task::choices(path, limit)?)),
            [(first, ..), (second, ..), ..] => {
                let problem =
                    format!("{} is there twice, in {first} and {second}", column.name).remedy("leave one of them");
                return Err(Error::file(dir, problem));
            }
        }
    }
    if missing.is_empty() {
        return Ok(tasks);
    }
    // It may be the one that is missing.
    if let Some(error) = unread {
        return Err(error);
    }
    let problem = format!("has no {}", missing.join(", ")).remedy(
        "give the rows of each, JSON lines or parquet, as the hub or the authors have them (docs/record.md), and \
         ARC's under a path that says `easy` or `challenge`",
    );
    Err(Error::file(dir, problem))
}

/// The task that the first row of a file belongs to.
fn kind(path: &Path) -> Result<Option<TaskKind>> {
    let Input::Rows(rows) = read(path, None)? else { return Ok(None) };
    let first = rows.rows.into_iter().find_map(|(_, row)| row.ok());
    Ok(first.as_ref().and_then(serde_json::Value::as_object).and_then(hub::recognised))
}

/// Returns whether one of the words of a path is one of `words`.
fn says(path: &str, words: &[&str]) -> bool {
    path.split(|c: char| !c.is_alphanumeric()).any(|word| words.contains(&word))
}

/// Scores the tasks of a suite.
///
/// # Errors
/// As [`score_choices`].
pub fn score_suite(
    model: &Model,
    suite: Suite,
    tasks: &[(&'static str, Task<Choice>)],
    bos: Bos,
    bootstrap: &Bootstrap,
    progress: Progress,
) -> Result<SuiteScores> {
    let Suite::Wanda7 = suite;
    let row = |(name, task): &(&str, Task<Choice>)| -> Result<SuiteRow> {
        let normed = task.kind.is_some_and(TaskKind::normed);
        let scores = score_choices(model, task, bos, bootstrap, progress)?;
        Ok(SuiteRow { name: (*name).to_owned(), normed, scores })
    };
    let rows = tasks.iter().map(row).collect::<Result<Vec<_>>>()?;
    let mean = rows.iter().map(|row| row.scores.acc.value).sum::<f64>() / rows.len().max(1) as f64;
    Ok(SuiteScores { suite: suite.to_string(), mean, rows })
}

/// Files that may be tasks, `depth` directories deep: JSON and parquet, but for parts to train on.
fn collect(dir: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let path = entry.map_err(Error::io("read", dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if says(&name, &["train"]) {
            continue;
        }
        if path.is_dir() {
            if depth > 1 {
                collect(&path, depth - 1, files)?;
            }
            continue;
        }
        let plain = name.trim_end_matches(".gz").trim_end_matches(".zst");
        let rows = [".jsonl", ".json", ".ndjson", ".parquet"].iter().any(|ending| plain.ends_with(ending));
        if rows {
            files.push(path);
        }
    }
    Ok(())
}
