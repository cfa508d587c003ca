//! The parameters of a notebook: `let name = literal;` in the cell tagged `parameters`, and other values for them from
//! the command line, in a cell that is put behind it.

use super::document::Document;
use super::rust_literal::{self, Binding};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;
use std::path::Path;

const TAG: &str = "parameters";
const INJECTED: &str = "injected-parameters";

/// Values from the command line: text that is read as the parameter's type, or JSON from a file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    values: Vec<(String, Given)>,
}

#[derive(Clone, Debug)]
enum Given {
    Text(String),
    Json(Value),
}

impl Overrides {
    /// Joins `name=value` arguments and the JSON object of a file; what is given as an argument wins.
    ///
    /// # Errors
    /// Fails when an argument has no `=`, a name comes twice, or the file is no JSON object.
    pub(crate) fn new(arguments: &[String], file: Option<&Path>) -> Result<Self> {
        let mut values: Vec<(String, Given)> = Vec::new();
        for argument in arguments {
            let Some((name, value)) = argument.split_once('=') else {
                bail!("-p {argument}: write it as name=value");
            };
            if values.iter().any(|(other, _)| other == name.trim()) {
                bail!("-p {}: given twice", name.trim());
            }
            values.push((name.trim().to_owned(), Given::Text(value.to_owned())));
        }
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            let json: Value = serde_json::from_str(&text)
                .with_context(|| format!("{} is not JSON; parameters are a JSON object", path.display()))?;
            let Value::Object(fields) = json else {
                bail!("{} is no JSON object of parameters, such as {{\"sparsity\": 0.5}}", path.display());
            };
            for (name, value) in fields {
                if !values.iter().any(|(other, _)| *other == name) {
                    values.push((name, Given::Json(value)));
                }
            }
        }
        Ok(Overrides { values })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Puts a cell with the values behind the notebook's parameters, and returns them as JSON. Nothing given changes
    /// nothing.
    ///
    /// # Errors
    /// Fails when the notebook has no such parameter, or a value is not of its type.
    pub(crate) fn apply(&self, document: &mut Document) -> Result<Map<String, Value>> {
        if self.is_empty() {
            return Ok(Map::new());
        }
        // What an earlier run put there would win over ours.
        document.remove_tagged(INJECTED);
        let cell = match document.tagged(TAG)[..] {
            [cell] => cell,
            [] => bail!("the notebook has no parameters: tag the cell that holds them `{TAG}`"),
            [first, second, ..] => {
                bail!("cells {} and {} are both tagged `{TAG}`; one can be", first + 1, second + 1)
            }
        };
        let (source, json) = self.injected(document.source(cell), &format!("cell {}", cell + 1))?;
        document.insert_code(cell + 1, INJECTED, INJECTED, &source);
        Ok(json)
    }

    /// The cell that sets the values, given the one that declares the parameters, which messages call `place`; and the values
    /// as JSON.
    fn injected(&self, declared: &str, place: &str) -> Result<(String, Map<String, Value>)> {
        let bindings = rust_literal::bindings(declared);
        let mut json = Map::new();
        let mut source = String::from("// Parameters of this run, in place of those above.");
        for (name, given) in &self.values {
            let Some(binding) = bindings.iter().find(|binding| binding.name == *name) else {
                let known: Vec<String> = bindings.iter().filter_map(Parameter::of).map(|p| p.to_string()).collect();
                match known.is_empty() {
                    true => bail!("the notebook has no parameter `{name}`: {place} sets none to a literal"),
                    false => bail!("the notebook has no parameter `{name}`; it has {}", known.join(", ")),
                }
            };
            let Some(parameter) = Parameter::of(binding) else {
                bail!(
                    "parameter `{name}` cannot be set from outside: {place} sets it to `{}`, which is no number, text, \
                     character, true or false, nor a list of such",
                    binding.value
                );
            };
            let value = match given {
                Given::Text(text) => parameter.kind.parse(text),
                Given::Json(value) => Some(value.clone()),
            };
            let Some((value, literal)) = value.and_then(|value| {
                let literal = parameter.kind.literal(&value, binding.annotation.is_some())?;
                Some((value, literal))
            }) else {
                let shown = match given {
                    Given::Text(text) => text.clone(),
                    Given::Json(value) => value.to_string(),
                };
                bail!("parameter `{name}` is {}, and `{shown}` is not; {place} sets it", parameter.kind);
            };
            source.push_str(&format!("\nlet {}{name}{} = {literal};", binding.mutable(), binding.annotated()));
            json.insert(name.clone(), value);
        }
        Ok((source, json))
    }
}

/// The question of papermill's translator: the cell that is tagged `parameters`, and the values for a run.
#[derive(Deserialize)]
struct Question {
    source: String,
    values: Map<String, Value>,
}

/// One of the parameters that a notebook declares.
#[derive(Serialize)]
struct Declared {
    name: String,
    /// Its type, in words.
    kind: String,
    /// Its value in the notebook, as Rust.
    value: String,
}

#[derive(Serialize)]
struct Answer {
    parameters: Vec<Declared>,
    /// The cell to put behind the one of the question.
    source: String,
}

/// Answers a question in JSON, as `clients/papermill` asks it.
///
/// # Errors
/// Fails when it is none, the cell has no such parameter, or a value is not of its type.
pub(crate) fn answer(question: &str) -> Result<String> {
    let question: Question = serde_json::from_str(question).context("no JSON with `source` and `values`")?;
    let values = question.values.into_iter().map(|(name, value)| (name, Given::Json(value))).collect();
    let (source, _) = Overrides { values }.injected(&question.source, "the cell that is tagged `parameters`")?;
    let bindings = rust_literal::bindings(&question.source);
    let declared = |binding: &Binding| {
        let kind = Parameter::of(binding)?.kind.to_string();
        Some(Declared { name: binding.name.clone(), kind, value: binding.value.clone() })
    };
    let answer = Answer { parameters: bindings.iter().filter_map(declared).collect(), source };
    Ok(serde_json::to_string(&answer)?)
}

/// A binding whose type can be set from outside.
struct Parameter<'a> {
    name: &'a str,
    kind: ParameterType,
}

impl<'a> Parameter<'a> {
    fn of(binding: &'a Binding) -> Option<Self> {
        let kind = match &binding.annotation {
            Some(annotation) => ParameterType::of_type(annotation),
            None => ParameterType::of_literal(&binding.value),
        };
        Some(Parameter { name: &binding.name, kind: kind? })
    }
}

impl fmt::Display for Parameter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ({})", self.name, self.kind)
    }
}

/// The type of a parameter.
#[derive(Clone, Debug, PartialEq)]
enum ParameterType {
    Bool,
    /// The type's name, and whether literals need it as a suffix.
    Integer(&'static str, bool),
    Float(&'static str, bool),
    /// `&str`.
    Text,
    String,
    Char,
    Option(Box<ParameterType>),
    List(Box<ParameterType>, Form),
}

/// The Rust form of a list.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// With the length that the annotation asks for.
    Array(Option<usize>),
    Slice,
    Vec,
}

const INTEGERS: [&str; 12] = ["i8", "i16", "i32", "i64", "i128", "isize", "u8", "u16", "u32", "u64", "u128", "usize"];
const FLOATS: [&str; 2] = ["f32", "f64"];

impl ParameterType {
    fn of_type(text: &str) -> Option<ParameterType> {
        let text = text.trim();
        let list =
            |item: &str, form| Some(ParameterType::List(Box::new(ParameterType::of_type(item)?.scalar()?), form));
        if let Some(name) = INTEGERS.into_iter().find(|name| *name == text) {
            return Some(ParameterType::Integer(name, false));
        }
        if let Some(name) = FLOATS.into_iter().find(|name| *name == text) {
            return Some(ParameterType::Float(name, false));
        }
        if let Some(item) = text.strip_prefix("Option<").and_then(|rest| rest.strip_suffix('>')) {
            return Some(ParameterType::Option(Box::new(ParameterType::of_type(item)?)));
        }
        if let Some(item) = text.strip_prefix("Vec<").and_then(|rest| rest.strip_suffix('>')) {
            return list(item, Form::Vec);
        }
        if let Some(referred) = text.strip_prefix('&') {
            let referred = referred.trim_start().trim_start_matches("'static ").trim();
            return match referred.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                Some(item) if !item.contains(';') => list(item, Form::Slice),
                Some(_) => None,
                None => (referred == "str").then_some(ParameterType::Text),
            };
        }
        if let Some((item, length)) =
            text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).and_then(|inner| inner.rsplit_once(';'))
        {
            return list(item, Form::Array(Some(length.trim().parse().ok()?)));
        }
        match text {
            "bool" => Some(ParameterType::Bool),
            "String" => Some(ParameterType::String),
            "char" => Some(ParameterType::Char),
            _ => None,
        }
    }

    fn of_literal(text: &str) -> Option<ParameterType> {
        let text = text.trim();
        let list = |inner: &str, form| {
            let first = rust_literal::items(inner).into_iter().next()?;
            Some(ParameterType::List(Box::new(ParameterType::of_literal(&first)?.scalar()?), form))
        };
        let inside = |text: &str, start: &str| {
            text.strip_prefix(start).and_then(|rest| rest.trim().strip_suffix(']')).map(str::to_owned)
        };
        if let Some(inner) = inside(text, "vec![") {
            return list(&inner, Form::Vec);
        }
        if let Some(inner) = inside(text, "&[") {
            return list(&inner, Form::Slice);
        }
        if let Some(inner) = inside(text, "[") {
            return list(&inner, Form::Array(None));
        }
        if let Some(inner) = text.strip_prefix("Some(").and_then(|rest| rest.strip_suffix(')')) {
            return Some(ParameterType::Option(Box::new(ParameterType::of_literal(inner)?)));
        }
        if rust_literal::is_text(text) {
            return Some(if text.starts_with('\'') { ParameterType::Char } else { ParameterType::Text });
        }
        let owned = [".to_owned()", ".to_string()", ".into()"].iter().find_map(|end| text.strip_suffix(end));
        let owned = owned.or_else(|| text.strip_prefix("String::from(").and_then(|rest| rest.strip_suffix(')')));
        if owned.is_some_and(|text| rust_literal::is_text(text.trim())) {
            return Some(ParameterType::String);
        }
        if matches!(text, "true" | "false") {
            return Some(ParameterType::Bool);
        }
        let digits: String = text.strip_prefix('-').unwrap_or(text).trim_start().replace('_', "");
        if !digits.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        let radix = ["0x", "0o", "0b"].iter().any(|start| digits.starts_with(start));
        if !radix && let Some(name) = FLOATS.into_iter().find(|name| digits.ends_with(name)) {
            return Some(ParameterType::Float(name, true));
        }
        if let Some(name) = INTEGERS.into_iter().find(|name| digits.ends_with(name)) {
            return Some(ParameterType::Integer(name, true));
        }
        // rustc's defaults: evcxr settles the type of a variable in the cell that makes it.
        if !radix && digits.contains(['.', 'e', 'E']) {
            return digits.parse::<f64>().ok().map(|_| ParameterType::Float("f64", false));
        }
        (radix || digits.bytes().all(|c| c.is_ascii_digit())).then_some(ParameterType::Integer("i32", false))
    }

    fn scalar(self) -> Option<ParameterType> {
        (!matches!(self, ParameterType::List(..) | ParameterType::Option(..))).then_some(self)
    }

    /// The value that `text` on the command line stands for.
    fn parse(&self, text: &str) -> Option<Value> {
        match self {
            ParameterType::Text | ParameterType::String => Some(Value::from(text)),
            // A blank is a character too; what stands in quotes is meant without them.
            ParameterType::Char if text.chars().count() == 1 => Some(Value::from(text)),
            ParameterType::Char => Some(Value::from(text.strip_prefix('\'')?.strip_suffix('\'')?)),
            ParameterType::Option(_) if matches!(text.trim(), "null" | "None") => Some(Value::Null),
            ParameterType::Option(some) => some.parse(text),
            ParameterType::Float(..) => text.trim().parse::<f64>().ok().map(Value::from),
            ParameterType::Bool | ParameterType::Integer(..) | ParameterType::List(..) => {
                serde_json::from_str(text.trim()).ok()
            }
        }
    }

    /// The type in Rust.
    fn rust(&self) -> String {
        match self {
            ParameterType::Bool => "bool".into(),
            ParameterType::Integer(name, _) | ParameterType::Float(name, _) => (*name).into(),
            ParameterType::Text => "&str".into(),
            ParameterType::String => "String".into(),
            ParameterType::Char => "char".into(),
            ParameterType::Option(some) => format!("Option<{}>", some.rust()),
            ParameterType::List(item, Form::Vec) => format!("Vec<{}>", item.rust()),
            ParameterType::List(item, Form::Slice) => format!("&[{}]", item.rust()),
            ParameterType::List(item, Form::Array(length)) => {
                format!("[{}; {}]", item.rust(), length.unwrap_or_default())
            }
        }
    }

    /// The value in Rust, if it is of this type. What is empty tells its type itself, unless the binding does.
    fn literal(&self, value: &Value, is_annotated: bool) -> Option<String> {
        match self {
            ParameterType::Bool => value.as_bool().map(|value| value.to_string()),
            ParameterType::Integer(name, suffix) => {
                let number = value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from))?;
                let (low, high) = range(name);
                let suffix = if *suffix { name } else { "" };
                (low..=high).contains(&number).then(|| format!("{number}{suffix}"))
            }
            ParameterType::Float(name, suffix) => {
                let number = value.as_f64().filter(|number| number.is_finite())?;
                let fits = *name == "f64" || (number as f32).is_finite();
                let suffix = if *suffix { name } else { "" };
                fits.then(|| format!("{number:?}{suffix}"))
            }
            // Rust's `Debug` of a text is a literal of it.
            ParameterType::Text => value.as_str().map(|text| format!("{text:?}")),
            ParameterType::String => value.as_str().map(|text| format!("String::from({text:?})")),
            ParameterType::Char => {
                let mut chars = value.as_str()?.chars();
                chars.next().filter(|_| chars.next().is_none()).map(|c| format!("{c:?}"))
            }
            ParameterType::Option(some) => match value {
                Value::Null if is_annotated => Some("None".into()),
                Value::Null => Some(format!("None::<{}>", some.rust())),
                value => Some(format!("Some({})", some.literal(value, is_annotated)?)),
            },
            ParameterType::List(item, form) => {
                let values = value.as_array()?;
                let items: Vec<String> =
                    values.iter().map(|value| item.literal(value, is_annotated)).collect::<Option<_>>()?;
                let list = match form {
                    Form::Array(Some(length)) if *length != values.len() => return None,
                    Form::Array(_) => format!("[{}]", items.join(", ")),
                    Form::Slice => format!("&[{}]", items.join(", ")),
                    Form::Vec if items.is_empty() => "Vec::new()".into(),
                    Form::Vec => format!("vec![{}]", items.join(", ")),
                };
                Some(if items.is_empty() && !is_annotated { format!("{list} as {}", self.rust()) } else { list })
            }
        }
    }
}

/// The least and the greatest number of an integer type, as far as JSON has them.
fn range(name: &str) -> (i128, i128) {
    match name {
        "i8" => (i8::MIN.into(), i8::MAX.into()),
        "i16" => (i16::MIN.into(), i16::MAX.into()),
        "i32" => (i32::MIN.into(), i32::MAX.into()),
        "i64" | "isize" => (i64::MIN.into(), i64::MAX.into()),
        "u8" => (0, u8::MAX.into()),
        "u16" => (0, u16::MAX.into()),
        "u32" => (0, u32::MAX.into()),
        "u64" | "usize" => (0, u64::MAX.into()),
        "u128" => (0, i128::MAX),
        _ => (i128::MIN, i128::MAX),
    }
}

impl fmt::Display for ParameterType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ParameterType::Bool => f.write_str("true or false"),
            ParameterType::Integer(name, _) => write!(f, "an integer, {name}"),
            ParameterType::Float(name, _) => write!(f, "a number, {name}"),
            ParameterType::Text | ParameterType::String => f.write_str("text"),
            ParameterType::Char => f.write_str("a character"),
            ParameterType::Option(some) => write!(f, "{some}, or null"),
            ParameterType::List(item, Form::Array(Some(length))) => write!(f, "a JSON list of {length} items ({item})"),
            ParameterType::List(item, _) => write!(f, "a JSON list (each item {item})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document(cells: &[(&str, &[&str])]) -> Document {
        let cells: Vec<Value> = (0..)
            .zip(cells)
            .map(|(i, (source, tags))| {
                json!({"cell_type": "code", "id": format!("c{i}"), "metadata": {"tags": tags}, "source": source,
                       "outputs": [], "execution_count": null})
            })
            .collect();
        let metadata = json!({"language_info": {"name": "rust"}});
        let notebook = json!({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5});
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("p.ipynb");
        std::fs::write(&path, notebook.to_string()).unwrap();
        Document::read(&path).unwrap()
    }

    const CELL: &str = "// Which model.\nlet model = \"tiny\"; // a name\nlet sparsity = 0.5;\nlet steps: usize = 4;\n\
                        let seed = 7u64;\nlet fast = false;\nlet levels = [0.1,\n    0.5];\nlet names: Vec<String> = vec![];\n\
                        let title = \"a;b // c\".to_owned();\nlet method = Method::Wanda;\nlet pair: [i32; 2] = [1, 2];\n\
                        let comma = ',';\nlet most: Option<usize> = None;\nlet least = Some(1.5);\nlet given = vec![\"a\"];\n\
                        let slice = &[1u8];";

    fn applied(arguments: &[&str]) -> Result<String> {
        let mut document = document(&[("use a;", &[]), (CELL, &[TAG]), ("x", &[])]);
        let arguments: Vec<String> = arguments.iter().map(|a| a.to_string()).collect();
        Overrides::new(&arguments, None)?.apply(&mut document)?;
        assert_eq!(document.tagged(INJECTED), [2]);
        Ok(document.source(2).lines().skip(1).collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn values_take_the_form_of_what_they_replace() {
        let source = applied(&[
            "model=say \"hi\"",
            "sparsity=1",
            "steps=8",
            "seed=18446744073709551615",
            "fast=true",
            "levels=[0.2, 1]",
            "names=[\"a\"]",
            "title=",
            "pair=[3, -4]",
        ]);
        let expected = "let model = \"say \\\"hi\\\"\";\nlet sparsity = 1.0;\nlet steps: usize = 8;\n\
                        let seed = 18446744073709551615u64;\nlet fast = true;\nlet levels = [0.2, 1.0];\n\
                        let names: Vec<String> = vec![String::from(\"a\")];\nlet title = String::from(\"\");\n\
                        let pair: [i32; 2] = [3, -4];";
        assert_eq!(source.unwrap(), expected);
    }

    #[test]
    fn what_is_empty_keeps_its_type() {
        let source =
            applied(&["comma=\u{1F34E}", "most=3", "least=null", "given=[]", "slice=[]", "levels=[]", "names=[]"]);
        let expected = "let comma = '\u{1F34E}';\nlet most: Option<usize> = Some(3);\nlet least = None::<f64>;\n\
                        let given = Vec::new() as Vec<&str>;\nlet slice = &[] as &[u8];\nlet levels = [] as [f64; 0];\n\
                        let names: Vec<String> = Vec::new();";
        assert_eq!(source.unwrap(), expected);
        for (value, literal) in [("'", r"'\''"), ("'''", r"'\''"), (" ", "' '"), ("'\t'", r"'\t'")] {
            assert_eq!(applied(&[&format!("comma={value}")]).unwrap(), format!("let comma = {literal};"));
        }
        assert_eq!(applied(&["most=None"]).unwrap(), "let most: Option<usize> = None;");
    }

    #[test]
    fn papermill_gets_the_same_cell() {
        let ask = |values: Value| answer(&json!({"source": CELL, "values": values}).to_string());
        let told: Value = serde_json::from_str(&ask(json!({"steps": 8, "sparsity": 1})).unwrap()).unwrap();
        let source = told["source"].as_str().unwrap();
        assert!(source.ends_with("\nlet steps: usize = 8;\nlet sparsity = 1.0;"), "{source}");
        let first = json!({"name": "model", "kind": "text", "value": "\"tiny\""});
        assert_eq!(told["parameters"][0], first);
        let refused = ask(json!({"steps": -1})).unwrap_err().to_string();
        assert!(refused.contains("`-1` is not; the cell that is tagged `parameters` sets it"), "{refused}");
        assert!(answer("[]").is_err());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (argument, expected) in [
            ("sparsity=abc", "parameter `sparsity` is a number, f64, and `abc` is not; cell 2 sets it"),
            ("sparsity=inf", "`inf` is not"),
            ("steps=-1", "parameter `steps` is an integer, usize, and `-1` is not"),
            ("steps=1.5", "`1.5` is not"),
            ("fast=1", "true or false"),
            ("levels=[\"a\"]", "a JSON list (each item a number, f64)"),
            ("comma=ab", "parameter `comma` is a character, and `ab` is not"),
            ("comma=", "`` is not"),
            ("most=many", "an integer, usize, or null, and `many` is not"),
            ("pair=[1]", "a JSON list of 2 items"),
            ("sparsty=0.5", "no parameter `sparsty`; it has `model` (text), `sparsity` (a number, f64), `steps`"),
            ("method=magnitude", "cell 2 sets it to `Method::Wanda`"),
            ("sparsity", "write it as name=value"),
        ] {
            let error = applied(&[argument]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(applied(&["steps=1", "steps=2"]).unwrap_err().to_string().contains("given twice"));
    }

    #[test]
    fn arguments_win_over_the_file_and_injected_cells_are_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("p.json");
        std::fs::write(&file, r#"{"sparsity": 0.9, "steps": 2}"#).unwrap();
        let overrides = Overrides::new(&["steps=3".to_owned()], Some(&file)).unwrap();
        let mut document = document(&[(CELL, &[TAG]), ("let steps: usize = 1;", &[INJECTED]), ("x", &[])]);
        let json = overrides.apply(&mut document).unwrap();
        assert_eq!(Value::Object(json), json!({"steps": 3, "sparsity": 0.9}));
        assert_eq!(document.cells().count(), 3);
        assert!(document.source(1).ends_with("let steps: usize = 3;\nlet sparsity = 0.9;"), "{}", document.source(1));
        std::fs::write(&file, "[1]").unwrap();
        assert!(Overrides::new(&[], Some(&file)).unwrap_err().to_string().contains("no JSON object"));
        let wrong = Overrides { values: vec![("sparsity".into(), Given::Json(json!("0.5")))] };
        assert!(wrong.apply(&mut document).unwrap_err().to_string().contains("`\"0.5\"` is not"));
    }
}
