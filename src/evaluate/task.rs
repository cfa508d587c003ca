//! Tasks: files with one example a row, in the shapes that public data sets have.

use super::example::{Choice, Glue, Prompt, checked, position, short, text, texts};
use super::hub::{self, TaskKind};
use crate::error::{Error, Problem, Remedy, Result};
use crate::text::{Input, Rows, read as read_input};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Examples of one kind, from one file.
#[derive(Clone, PartialEq, Eq)]
pub struct Task<E> {
    /// File name, without its folder.
    pub name: String,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// The examples, in the order of the file; never empty.
    pub examples: Vec<E>,
    /// The data set whose shape all examples have.
    pub kind: Option<TaskKind>,
    path: PathBuf,
    /// The unit of an example's number, such as `line`.
    unit: &'static str,
}

impl<E> std::fmt::Debug for Task<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&crate::debug::short(&format!("Task({}: {} examples)", self.name, self.examples.len())))
    }
}

/// A task's identity and how much of it was scored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// File name.
    pub name: String,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// Number of examples, from the beginning of the file.
    pub examples: usize,
    /// The data set whose shape all examples have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<TaskKind>,
}

/// Fields that hold what comes first, of which an example has one.
const CONTEXT: [&str; 4] = ["question", "context", "prompt", "query"];
/// Fields that hold the right choice.
const ANSWER: [&str; 3] = ["answer", "label", "gold"];
/// Fields that hold a right continuation, or a list of them.
const ANSWERS: [&str; 3] = ["answer", "target", "answers"];

impl Task<Choice> {
    /// Reads a multiple-choice task, the first `limit` examples or all. A line is one of
    /// - `{"question": TEXT, "choices": [TEXT, ...], "answer": RIGHT}`, where the first may also be called `context`,
    ///   `prompt` or `query`, and the last `label` or `gold`. RIGHT is a position from 0, a letter from A, or the choice's
    ///   text. Texts are taken as they stand;
    /// - a row of a data set in [`TaskKind`], as its authors or the hub have it, with the prompt of lm-evaluation-harness.
    ///
    /// The rows are JSON lines, a JSON list or a parquet table, which may be compressed.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read; [`Error::File`] with the line and the field of an example that has none
    /// of these shapes, and for a file without examples; [`Error::Argument`] for a limit of 0.
    pub fn choices(path: impl AsRef<Path>, limit: Option<usize>) -> Result<Self> {
        read(path.as_ref(), limit, |line, object| {
            choice(object).map(|(choice, kind)| (Choice { line, ..choice }, kind))
        })
    }
}

impl Task<Prompt> {
    /// Reads a task for generation, the first `limit` examples or all: `{"prompt": TEXT, "answer": RIGHT}`, where the first
    /// may also be called `question`, `context` or `query`, and the last `target` or `answers`; RIGHT is a text, a number
    /// or a list of them, any of which counts. A multiple-choice example ([`Task::choices`]) is one whose right choice must
    /// be generated.
    ///
    /// # Errors
    /// As [`Task::choices`].
    pub fn prompts(path: impl AsRef<Path>, limit: Option<usize>) -> Result<Self> {
        read(path.as_ref(), limit, |line, object| {
            if object.contains_key("choices") || hub::recognised(object).is_some() {
                let (Choice { context, mut choices, answer, ending, .. }, kind) = choice(object)?;
                let right = choices.swap_remove(answer);
                let (prompt, right) = ending.map_or((context, right.clone()), |ending| (right, ending));
                return Ok((Prompt { line, prompt, answers: vec![right] }, kind));
            }
            let prompt = text(object, one_of(object, &CONTEXT)?)?.to_owned();
            Ok((Prompt { line, prompt, answers: answers(object)? }, None))
        })
    }
}

impl<E> Task<E> {
    /// The task's entry in a record.
    pub fn record(&self) -> TaskRecord {
        TaskRecord {
            name: self.name.clone(),
            sha256: self.sha256.clone(),
            examples: self.examples.len(),
            kind: self.kind,
        }
    }

    /// An error about an example.
    pub(super) fn problem(&self, line: usize, problem: impl Into<Problem>) -> Error {
        Error::file(&self.path, problem.into().map(|cause| format!("{} {line}: {cause}", self.unit)))
    }
}

fn read<E>(
    path: &Path,
    limit: Option<usize>,
    example: impl Fn(usize, &Map<String, Value>) -> Result<(E, Option<TaskKind>), Problem>,
) -> Result<Task<E>> {
    if limit == Some(0) {
        return Err(Error::argument("limit", 0, "at least one example is needed"));
    }
    let Rows { unit, rows } = match read_input(path, None)? {
        Input::Rows(rows) => rows,
        // What is called neither is read as lines.
        Input::Text(text) => {
            let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
            let row = |(i, line)| (i + 1, serde_json::from_str(line).map_err(|_| "is not JSON".to_owned()));
            Rows { unit: "line", rows: lines.map(row).collect() }
        }
    };
    let examples = rows
        .into_iter()
        .take(limit.unwrap_or(usize::MAX))
        .map(|(line, row)| {
            let parse = || {
                example(
                    line,
                    row?.as_object()
                        .ok_or_else(|| "is no JSON object".remedy(format!("each {unit} is one example")))?,
                )
            };
            parse()
                .map_err(|problem: Problem| Error::file(path, problem.map(|cause| format!("{unit} {line}: {cause}"))))
        })
        .collect::<Result<Vec<(E, Option<TaskKind>)>>>()?;
    let Some(&(_, first)) = examples.first() else {
        return Err(Error::file(
            path,
            "holds no example"
                .remedy("a task is JSON lines, one example a line, a JSON list or a parquet table of them"),
        ));
    };
    let kind = first.filter(|_| examples.iter().all(|(_, kind)| *kind == first));
    Ok(Task {
        name: path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        sha256: hex::encode(Sha256::digest(std::fs::read(path).map_err(Error::io("read", path))?)),
        examples: examples.into_iter().map(|(example, _)| example).collect(),
        kind,
        path: path.to_path_buf(),
        unit,
    })
}

/// An example of multiple choice in any of its shapes; its line is not known here.
fn choice(object: &Map<String, Value>) -> Result<(Choice, Option<TaskKind>), Problem> {
    if let Some(kind) = hub::recognised(object) {
        return Ok((hub::choice(object, kind)?, Some(kind)));
    }
    if object.contains_key("choices") {
        let choices: Vec<String> = texts(object, "choices")?.into_iter().map(str::to_owned).collect();
        let context = text(object, one_of(object, &CONTEXT)?)?.to_owned();
        let answer = position(object, one_of(object, &ANSWER)?, &choices)?;
        let choice = Choice { line: 0, context, choices, answer, glue: Glue::UnlessSpaced, ending: None };
        return Ok((checked(choice)?, None));
    }
    let fields: Vec<&str> = object.keys().map(String::as_str).collect();
    let wanted = "`question`, `choices` and `answer`, or the fields of BoolQ, RTE, HellaSwag, WinoGrande, ARC, \
                  OpenBookQA or PIQA (docs/record.md)";
    Err(format!("is no multiple-choice example: it has {fields:?}").remedy(format!("wanted are {wanted}")))
}

/// The one of `fields` that the example has.
fn one_of<'f>(object: &Map<String, Value>, fields: &[&'f str]) -> Result<&'f str, Problem> {
    let mut there = fields.iter().filter(|&&field| object.contains_key(field));
    match (there.next(), there.next()) {
        (Some(one), None) => Ok(one),
        (Some(one), Some(other)) => Err(format!("has both `{one}` and `{other}`").remedy("leave the one that counts")),
        (None, _) => Err(format!("has none of the fields `{}`", fields.join("`, `")).into()),
    }
}

/// The continuations that count as right.
fn answers(object: &Map<String, Value>) -> Result<Vec<String>, Problem> {
    let field = one_of(object, &ANSWERS)?;
    let one = |value: &Value| match value {
        Value::String(text) if !text.trim().is_empty() => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        other => {
            Err(format!("`{field}` holds {}", short(other)).remedy("a text, or a list of accepted texts, is wanted"))
        }
    };
    match &object[field] {
        Value::Array(list) if list.is_empty() => {
            Err(format!("`{field}` is an empty list; nothing would be right").into())
        }
        Value::Array(list) => list.iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parsed(value: Value) -> Result<Choice, Problem> {
        choice(value.as_object().unwrap()).map(|(choice, _)| choice)
    }

    #[test]
    fn shapes_of_public_data_sets() {
        let hellaswag = parsed(json!({
            "ind": 24, "activity_label": "Roof shingle removal", "ctx_a": "A man is sitting on a roof.", "ctx_b": "he",
            "ctx": "A man is sitting on a roof. he", "label": "3",
            "endings": ["is using wrap.", "is ripping [step] level tiles  off.", "is holding a cube [title]", "starts."],
        }))
        .unwrap();
        assert_eq!(hellaswag.context, "Roof shingle removal: A man is sitting on a roof. He");
        assert_eq!(hellaswag.choices[1..3], ["is ripping level tiles off.", "is holding a cube. "]);
        assert_eq!(hellaswag.answer, 3);
        let short = parsed(json!({"ctx": "He", "endings": ["runs", "sits"], "label": 1})).unwrap();
        assert_eq!((short.context.as_str(), short.answer), ("He", 1));

        let piqa = parsed(json!({"goal": "Open a jar", "sol1": "Twist", "sol2": "Sing", "label": 0})).unwrap();
        assert_eq!(piqa.context, "Question: Open a jar\nAnswer:");
        assert_eq!((piqa.choices, piqa.answer), (vec!["Twist".into(), "Sing".into()], 0));

        let arc = json!({
            "id": "x", "question": "Which?", "choices": {"text": ["dry", "wet", "hot"], "label": ["1", "2", "3"]},
            "answerKey": "2",
        });
        let arc = parsed(arc).unwrap();
        assert_eq!((arc.context.as_str(), arc.answer), ("Question: Which?\nAnswer:", 1));
    }

    #[test]
    fn an_answer_is_a_position_a_letter_or_a_text() {
        let with = |answer: Value, choices: [&str; 3]| {
            parsed(json!({"query": "x ", "choices": choices, "gold": answer})).map(|example| example.answer)
        };
        let words = ["red", "green", "blue"];
        for answer in [json!(1), json!("1"), json!("B"), json!("green"), json!(" green ")] {
            assert_eq!(with(answer.clone(), words), Ok(1), "{answer}");
        }
        assert_eq!(with(json!("4"), ["3", "4", "5"]), Ok(1), "no choice has position 4");
        assert_eq!(with(json!("B"), ["A", "B", "C"]), Ok(1), "text and letter agree");
        let ambiguous = with(json!("1"), ["1", "2", "3"]).unwrap_err().sentence();
        assert!(ambiguous.contains("choice 0 by its text and choice 1 by its place"), "{ambiguous}");
        for answer in [json!(3), json!(-1), json!(1.5), json!("D"), json!("pink"), json!(null), json!("")] {
            let problem = with(answer.clone(), words).unwrap_err().sentence();
            assert!(problem.starts_with(&format!("`gold` is {answer}, of 3 choices; wanted is")), "{problem}");
        }
        assert_eq!(parsed(json!({"query": "x ", "choices": words, "gold": 0})).unwrap().context, "x ", "as it stands");
    }

    #[test]
    fn problems_name_the_field() {
        for (value, says) in [
            (json!({"text": "x"}), "is no multiple-choice example: it has [\"text\"]; wanted are `question`"),
            (
                json!({"choices": ["a", "b"], "answer": 0}),
                "none of the fields `question`, `context`, `prompt`, `query`",
            ),
            (json!({"question": "x", "choices": ["a", "b"]}), "none of the fields `answer`, `label`, `gold`"),
            (
                json!({"question": "x", "prompt": "y", "choices": ["a", "b"], "answer": 0}),
                "both `question` and `prompt`",
            ),
            (json!({"question": 7, "choices": ["a", "b"], "answer": 0}), "`question` is 7; a text is wanted"),
            (json!({"question": "x", "choices": ["a", 2], "answer": 0}), "`choices` holds 2; a list of texts"),
            (json!({"question": "x", "choices": "ab", "answer": 0}), "`choices` holds \"ab\"; a list of texts"),
            (json!({"question": "x", "choices": ["a"], "answer": 0}), "at least two"),
            (json!({"question": "x", "choices": ["a", " "], "answer": 0}), "choice 1 is empty"),
            (json!({"ctx": "x", "endings": ["a", "b"], "label": ""}), "`label` is \"\": the answers of a test part"),
            (json!({"ctx": "x", "endings": ["a", "b"]}), "has no field `label`"),
            (
                json!({"question": "x", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "E"}),
                "`answerKey` is \"E\", which is not in `choices.label` [\"A\", \"B\"]",
            ),
        ] {
            let problem = parsed(value.clone()).unwrap_err().sentence();
            assert!(problem.contains(says), "{value}: {problem}");
        }
    }

    #[test]
    fn accepted_answers() {
        let of = |value: Value| answers(value.as_object().unwrap());
        assert_eq!(of(json!({"answer": "a"})), Ok(vec!["a".into()]));
        assert_eq!(of(json!({"target": ["a", 7]})), Ok(vec!["a".into(), "7".into()]));
        assert!(of(json!({"answers": []})).unwrap_err().sentence().contains("empty list"));
        assert!(of(json!({"answer": {"x": 1}})).unwrap_err().sentence().contains("`answer` holds {\"x\":1}"));
        assert!(of(json!({})).unwrap_err().sentence().contains("none of the fields `answer`, `target`, `answers`"));
    }
}
