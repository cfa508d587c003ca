//! Rows of public data sets as their authors or the hub have them, with the prompts of lm-evaluation-harness 0.4.13.

use super::example::{Choice, Glue, checked, position, short, text, texts};
use crate::error::{Problem, Remedy};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;

type Fields = Map<String, Value>;

/// A data set that is recognised by the fields of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskKind {
    /// `passage`, `question`, and `answer` (true, false) or `label` (1, 0): the passage, `Question: QUESTION?`, `Answer:`.
    BoolQ,
    /// `sentence1`, `sentence2` or `premise`, `hypothesis`, and `label` (0 or `entailment`, 1 or `not_entailment`): the first,
    /// `Question: SECOND True or False?`, `Answer:`. Other tasks of GLUE have the same fields; they are not distinguished.
    Rte,
    /// `ctx_a`, `ctx_b`, `activity_label` or `ctx`; `endings`, `label`. Marks in brackets are removed.
    HellaSwag,
    /// `sentence` with a `_`, `option1`, `option2`, `answer` (1, 2): the rest of the sentence is scored after each option.
    WinoGrande,
    /// `question`, `choices` with the lists `text` and `label`, `answerKey`; or as AI2's files have it, `question` with `stem`
    /// and `choices`: `Question: QUESTION`, `Answer:`.
    Arc,
    /// `question_stem`, `choices` with the lists `text` and `label`, `answerKey`; or as AI2's files have it, which is that of
    /// ARC with another form of `id`, such as `7-980`: the question as it stands.
    OpenBookQa,
    /// `goal`, `sol1`, `sol2`, `label`: `Question: GOAL`, `Answer:`.
    Piqa,
}

impl TaskKind {
    /// Returns whether the harness reports `acc_norm` for the task, too.
    pub fn normed(self) -> bool {
        !matches!(self, TaskKind::BoolQ | TaskKind::Rte | TaskKind::WinoGrande)
    }
}

impl fmt::Display for TaskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TaskKind::BoolQ => "BoolQ",
            TaskKind::Rte => "RTE",
            TaskKind::HellaSwag => "HellaSwag",
            TaskKind::WinoGrande => "WinoGrande",
            TaskKind::Arc => "ARC",
            TaskKind::OpenBookQa => "OpenBookQA",
            TaskKind::Piqa => "PIQA",
        })
    }
}

/// The data set whose fields a row has.
pub(super) fn recognised(row: &Fields) -> Option<TaskKind> {
    let has = |fields: &[&str]| fields.iter().all(|&field| row.contains_key(field));
    let labelled = row.get("choices").is_some_and(|choices| {
        choices.is_object() || choices.as_array().is_some_and(|list| list.first().is_some_and(Value::is_object))
    });
    if has(&["ctx", "endings"]) || has(&["ctx_a", "ctx_b", "endings"]) {
        Some(TaskKind::HellaSwag)
    } else if has(&["goal", "sol1", "sol2"]) {
        Some(TaskKind::Piqa)
    } else if has(&["sentence", "option1", "option2"]) {
        Some(TaskKind::WinoGrande)
    } else if has(&["question_stem", "choices"]) {
        Some(TaskKind::OpenBookQa)
    } else if row.get("question").is_some_and(Value::is_object) {
        // AI2 wrote both data sets alike. ARC's ids begin with the name of an exam.
        let id = row.get("id").and_then(Value::as_str).unwrap_or_default();
        Some(if id.starts_with(|c: char| c.is_ascii_digit()) { TaskKind::OpenBookQa } else { TaskKind::Arc })
    } else if labelled && row.contains_key("question") {
        Some(TaskKind::Arc)
    } else if row.contains_key("choices") {
        None
    } else if has(&["passage", "question"]) {
        Some(TaskKind::BoolQ)
    } else if has(&["sentence1", "sentence2"]) || has(&["premise", "hypothesis"]) {
        Some(TaskKind::Rte)
    } else {
        None
    }
}

/// A row as a multiple-choice example.
pub(super) fn choice(row: &Fields, kind: TaskKind) -> Result<Choice, Problem> {
    let owned = |texts: Vec<&str>| -> Vec<String> { texts.into_iter().map(str::to_owned).collect() };
    let made = |context: String, choices: Vec<String>, answer: usize| {
        checked(Choice { line: 0, context, choices, answer, glue: Glue::Space, ending: None })
    };
    match kind {
        TaskKind::HellaSwag => {
            let choices: Vec<String> = texts(row, "endings")?.into_iter().map(hellaswag).collect();
            let context = if ["ctx_a", "ctx_b", "activity_label"].iter().all(|&field| row.contains_key(field)) {
                let [activity, a, b] = ["activity_label", "ctx_a", "ctx_b"].map(|field| text(row, field));
                hellaswag(format!("{}: {} {}", activity?, a?, capitalised(b?)))
            } else {
                hellaswag(text(row, "ctx")?)
            };
            let answer = label(row, "label", &choices)?;
            made(context, choices, answer)
        }
        TaskKind::Piqa => {
            let choices = owned(vec![text(row, "sol1")?, text(row, "sol2")?]);
            let answer = label(row, "label", &choices)?;
            made(question(text(row, "goal")?), choices, answer)
        }
        TaskKind::BoolQ => {
            let context = format!("{}\nQuestion: {}?\nAnswer:", text(row, "passage")?, text(row, "question")?);
            let field = if row.contains_key("label") { "label" } else { "answer" };
            let answer = named(row, field, &[&["false", "no", "0"], &["true", "yes", "1"]])?;
            made(context, owned(vec!["no", "yes"]), answer)
        }
        TaskKind::Rte => {
            let [first, second] =
                if row.contains_key("sentence1") { ["sentence1", "sentence2"] } else { ["premise", "hypothesis"] };
            let context = format!("{}\nQuestion: {} True or False?\nAnswer:", text(row, first)?, text(row, second)?);
            let answer = named(row, "label", &[&["0", "entailment"], &["1", "not_entailment"]])?;
            made(context, owned(vec!["True", "False"]), answer)
        }
        TaskKind::WinoGrande => {
            let sentence = text(row, "sentence")?;
            let (before, after) = sentence.split_once('_').ok_or("`sentence` has no `_` where an option belongs")?;
            let options = [text(row, "option1")?, text(row, "option2")?];
            let answer = named(row, "answer", &[&["1"], &["2"]])?;
            let choices = options.iter().map(|option| format!("{before}{option}")).collect();
            let ending = Some(after.trim().to_owned());
            checked(Choice { line: 0, context: String::new(), choices, answer, glue: Glue::Space, ending })
        }
        TaskKind::Arc | TaskKind::OpenBookQa => {
            let nested = row.get("question").and_then(Value::as_object);
            let stem = match (nested, kind) {
                (Some(nested), _) => text(nested, "stem")?,
                (None, TaskKind::OpenBookQa) => text(row, "question_stem")?,
                (None, _) => text(row, "question")?,
            };
            let (choices, labels) = labelled(nested.unwrap_or(row))?;
            let key = match row.get("answerKey") {
                Some(Value::Number(number)) => number.to_string(),
                _ => text(row, "answerKey")?.trim_start().to_owned(),
            };
            if key.is_empty() {
                return Err(hidden("answerKey", "\"\""));
            }
            let answer = labels.iter().position(|label| *label == key);
            let answer =
                answer.ok_or_else(|| format!("`answerKey` is {key:?}, which is not in `choices.label` {labels:?}"))?;
            made(if kind == TaskKind::Arc { question(stem) } else { stem.to_owned() }, choices, answer)
        }
    }
}

/// Choices and their labels: two lists, or a list of pairs.
fn labelled(row: &Fields) -> Result<(Vec<String>, Vec<String>), Problem> {
    let owned = |texts: Vec<&str>| -> Vec<String> { texts.into_iter().map(str::to_owned).collect() };
    match row.get("choices") {
        Some(Value::Object(lists)) => {
            let (choices, labels) = (owned(texts(lists, "text")?), owned(texts(lists, "label")?));
            if choices.len() != labels.len() {
                return Err(format!("`choices` has {} texts and {} labels", choices.len(), labels.len()).into());
            }
            Ok((choices, labels))
        }
        Some(Value::Array(pairs)) => {
            let pair = |pair: &Value| -> Result<(String, String), Problem> {
                let pair =
                    pair.as_object().ok_or("`choices` holds something else than objects of `text` and `label`")?;
                Ok((text(pair, "text")?.to_owned(), text(pair, "label")?.to_owned()))
            };
            Ok(pairs.iter().map(pair).collect::<Result<Vec<_>, Problem>>()?.into_iter().unzip())
        }
        Some(other) => Err(format!("`choices` is {}", short(other)).remedy("texts with labels are wanted")),
        None => Err("has no field `choices`".into()),
    }
}

/// The index of a label among the names of the choices.
fn named(row: &Fields, field: &str, names: &[&[&str]]) -> Result<usize, Problem> {
    let value = row.get(field).ok_or_else(|| format!("has no field `{field}`"))?;
    let said = match value {
        Value::String(text) => text.trim().to_lowercase(),
        other => other.to_string(),
    };
    let wanted = || names.iter().map(|names| names.join(", ")).collect::<Vec<_>>().join(" or ");
    names.iter().position(|names| names.contains(&said.as_str())).ok_or_else(|| match said.as_str() {
        "" | "-1" | "null" => hidden(field, &short(value)),
        _ => format!("`{field}` is {}", short(value)).remedy(format!("wanted is {}", wanted())),
    })
}

/// The position of the right choice.
fn label(row: &Fields, field: &str, choices: &[String]) -> Result<usize, Problem> {
    match row.get(field) {
        Some(value) if [Value::from(-1), Value::from("-1"), Value::from("")].contains(value) => {
            Err(hidden(field, &short(value)))
        }
        _ => position(row, field, choices),
    }
}

fn hidden(field: &str, value: &str) -> Problem {
    format!("`{field}` is {value}: the answers of a test part are not public").remedy("take the validation part")
}

/// The context that lm-evaluation-harness gives PIQA and ARC.
fn question(text: &str) -> String {
    format!("Question: {text}\nAnswer:")
}

/// A text of HellaSwag as lm-evaluation-harness cleans it of the marks that its WikiHow part has: `[title]` becomes the
/// end of a sentence, any other text in brackets is dropped.
fn hellaswag(text: impl AsRef<str>) -> String {
    let text = text.as_ref().trim().replace(" [title]", ". ");
    let (mut clean, mut rest) = (String::new(), text.as_str());
    while let Some((before, after)) = rest.split_once('[') {
        clean.push_str(before);
        match after.split_once(']') {
            Some((inside, after)) if !inside.contains('\n') => rest = after,
            _ => {
                clean.push('[');
                rest = after;
            }
        }
    }
    clean.push_str(rest);
    clean.replace("  ", " ")
}

/// The first character in upper case, all others in lower case.
fn capitalised(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().into_iter().flat_map(char::to_uppercase).chain(rest.flat_map(char::to_lowercase)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::Task;

    #[test]
    fn brackets_of_hellaswag_go() {
        assert_eq!(hellaswag(" a [b] c  d [ e"), "a c d [ e");
        assert_eq!(hellaswag("x [title] y"), "x. y");
        assert_eq!(capitalised("tHE End"), "The end");
        assert_eq!(capitalised(""), "");
    }

    /// The pairs of given and scored text, as the harness's own tasks ask them.
    #[test]
    fn prompts_are_those_of_lm_evaluation_harness() {
        let folder = format!("{}/tests/data/tasks/hub", env!("CARGO_MANIFEST_DIR"));
        let theirs: Value = serde_json::from_slice(&std::fs::read(format!("{folder}/scores.json")).unwrap()).unwrap();
        for name in ["boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"] {
            let task = Task::choices(format!("{folder}/{name}.jsonl"), None).unwrap();
            let ours: Vec<Vec<(String, String)>> = task.examples.iter().map(|row| row.requests().collect()).collect();
            assert_eq!(serde_json::to_value(ours).unwrap(), theirs["plain"][name]["requests"], "{name}");
        }
    }
}
