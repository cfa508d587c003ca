//! One example of a task, and the fields of a row that it is read from.

use crate::error::{Problem, Remedy};
use serde_json::{Map, Value};

/// A text and what may follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Its line in the file, or its row in a list or table, from 1.
    pub line: usize,
    /// The text before each choice.
    pub context: String,
    /// At least two, none of them empty.
    pub choices: Vec<String>,
    /// The right one, from 0.
    pub answer: usize,
    /// The text between context and choice.
    pub glue: Glue,
    /// The text after every choice, which is scored in the choice's place, as WinoGrande's sentences go on: a choice is
    /// then the text before it, and `context` is empty.
    pub ending: Option<String>,
}

/// The text between a context and a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Glue {
    /// A space, whatever the choice begins with: the `target_delimiter` of lm-evaluation-harness.
    Space,
    /// A space, unless the choice begins with white space of its own.
    UnlessSpaced,
}

impl Choice {
    /// For each choice what is given and what is scored after it.
    pub(super) fn requests(&self) -> impl Iterator<Item = (String, String)> + '_ {
        self.choices.iter().map(|choice| match &self.ending {
            Some(ending) => (choice.clone(), format!(" {ending}")),
            None => {
                let own = self.glue == Glue::UnlessSpaced && choice.starts_with(char::is_whitespace);
                (self.context.clone(), format!("{}{choice}", if own { "" } else { " " }))
            }
        })
    }
}

/// A text and what its continuation should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Its line in the file, or its row in a list or table, from 1.
    pub line: usize,
    /// The text that the model continues.
    pub prompt: String,
    /// The continuations that count as right; never empty.
    pub answers: Vec<String>,
}

/// Refuses an example with fewer than two choices, or an empty one.
pub(super) fn checked(choice: Choice) -> Result<Choice, Problem> {
    if choice.choices.len() < 2 {
        return Err(format!("`choices` has {}", choice.choices.len()).remedy("at least two are needed"));
    }
    if let Some(empty) = choice.choices.iter().position(|choice| choice.trim().is_empty()) {
        return Err(format!("choice {empty} is empty").into());
    }
    Ok(choice)
}

/// The text in a field.
pub(super) fn text<'v>(object: &'v Map<String, Value>, field: &str) -> Result<&'v str, Problem> {
    match object.get(field) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("`{field}` is {}", short(other)).remedy("a text is wanted")),
        None => Err(format!("has no field `{field}`").into()),
    }
}

/// The list of texts in a field.
pub(super) fn texts<'v>(object: &'v Map<String, Value>, field: &str) -> Result<Vec<&'v str>, Problem> {
    let wrong = |value: &Value| format!("`{field}` holds {}", short(value)).remedy("a list of texts is wanted");
    match object.get(field) {
        Some(Value::Array(list)) => list.iter().map(|item| item.as_str().ok_or_else(|| wrong(item))).collect(),
        Some(other) => Err(wrong(other)),
        None => Err(format!("has no field `{field}`").into()),
    }
}

/// JSON cut to what fits in a message.
pub(super) fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 60 { format!("{}...", text.chars().take(60).collect::<String>()) } else { text }
}

/// The index of the choice that `field` means: a position from 0 (a number, or a text of digits, as HellaSwag has it),
/// a letter, or the choice's text.
pub(super) fn position(object: &Map<String, Value>, field: &str, choices: &[String]) -> Result<usize, Problem> {
    let n = choices.len();
    let value = object.get(field).ok_or_else(|| format!("has no field `{field}`"))?;
    let wanted = || {
        format!("`{field}` is {}, of {n} choices", short(value))
            .remedy("wanted is a position from 0, a letter from A, or a choice's text")
    };
    let number = |number: u64| usize::try_from(number).ok().filter(|&at| at < n);
    match value {
        Value::Number(position) => position.as_u64().and_then(number).ok_or_else(wanted),
        Value::String(text) => {
            let text = text.trim();
            let by_text = choices.iter().position(|choice| choice.trim() == text);
            let by_place = match text.as_bytes() {
                [letter @ b'A'..=b'Z'] => number(u64::from(letter - b'A')),
                _ => text.parse().ok().and_then(number),
            };
            match (by_text, by_place) {
                (Some(a), Some(b)) if a != b => {
                    Err(format!("`{field}` is {text:?}, which is choice {a} by its text and choice {b} by its place")
                        .remedy("write the position as a number"))
                }
                (by_text, by_place) => by_text.or(by_place).ok_or_else(wanted),
            }
        }
        _ => Err(wanted()),
    }
}
