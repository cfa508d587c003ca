//! The source of a cell as evcxr generates it, changed before rustc sees it. Lines keep their numbers.
//!
//! In the places where evcxr's code would print a line for its parent, the cell calls [`lacuna::display::runtime`]
//! instead, which text of the cell cannot imitate. And a panic of a value that is dropped when the cell is over unwinds
//! into the process that runs cells, where evcxr's code would abort it.

use super::rustc_message::{Code, Diagnostic, Span};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// The variable that the session puts before a cell's first statement: [`lacuna::display::runtime::Running`].
pub(super) const GUARD: &str = "lacuna_cell_started";

/// The path of the library's module in a cell.
const RUNTIME: &str = "::lacuna::display::runtime";

/// Begins the function of a cell.
const FUNCTION: &str = "pub extern \"C\" fn run_user_code_";
const UNWINDING: &str = "pub extern \"C-unwind\" fn run_user_code_";

/// Begins the module of variables that evcxr writes into each cell.
const STORE: &str = "mod evcxr_internal_runtime {";

/// Begins evcxr's function for values that have no `evcxr_display`.
const SENDS_TEXT: &str = "fn evcxr_send_text_plain(text: &str)";

/// evcxr's error of a cell, to which `?` converts.
const ERROR: &str = "struct EvcxrUserCodeError {}";

/// The first code of a session, after which evcxr knows that cells use `?`.
pub(super) const FIRST: &str = "Ok::<(), String>(())?;";

/// The diagnostic that rustc would give for [`FIRST`] without the error type that evcxr adds when it sees it. Compiling
/// that code has no other purpose, so rustc need not be run.
pub(super) fn first_failure(source: &str) -> Option<Diagnostic> {
    if source.contains(ERROR) {
        return None;
    }
    let line = source.lines().position(|line| line.trim() == FIRST)? + 1;
    Some(Diagnostic {
        message: "the `?` operator can only be used in a function that returns `Result`".to_owned(),
        code: Some(Code { code: "E0277".to_owned() }),
        level: "error".to_owned(),
        spans: vec![Span::primary(line, FIRST.len() - 1, FIRST.len())],
        children: Vec::new(),
    })
}

/// Returns whether the line begins the function of a cell.
pub(super) fn is_function(line: &str) -> bool {
    line.starts_with(FUNCTION) || line.starts_with(UNWINDING)
}

/// Changes a generated source; calls of the library only where the cell links it.
pub(super) fn changed(source: &str, links_library: bool) -> String {
    let types = error_types(source);
    let mut changed = String::with_capacity(source.len() + 1024);
    let (mut in_error, mut in_store, mut in_text, mut before) = (false, false, false, "");
    for line in source.split_inclusive('\n') {
        let text = line.trim();
        in_error = (in_error || text == ERROR) && !is_function(line);
        let new = match text {
            _ if line.starts_with(FUNCTION) => Some(line.trim_end().replacen(FUNCTION, UNWINDING, 1)),
            _ if !links_library => None,
            STORE => {
                in_store = true;
                Some(format!("use {RUNTIME}::store as evcxr_internal_runtime;"))
            }
            // The module ends where the function begins, whose first line is an attribute.
            "#[unsafe(no_mangle)]" if in_store => {
                in_store = false;
                None
            }
            _ if in_store => Some(String::new()),
            "println!(\"EVCXR_PANIC_NOTIFICATION\");" if matches!(before, "Err(_) => {" | "}).is_err() {") => {
                Some(format!("{RUNTIME}::panicked();"))
            }
            "fn from(error: T) -> Self {" if in_error => Some(format!("#[track_caller] {text}")),
            "eprintln!(\"{}\", error);" if in_error => Some(format!("{RUNTIME}::failed(&error, &[{types}]);")),
            // What `:efmt` chooses.
            "eprintln!(\"{:?}\", error);" | "eprintln!(\"{:#?}\", error);" if in_error => {
                Some(format!("{RUNTIME}::failed_as({});", text.replacen("eprintln", "format", 1).trim_end_matches(';')))
            }
            // Whether a cell came to its end, its guard tells.
            "println!(\"{}\", evcxr_internal_runtime::USER_ERROR_OCCURRED);" if in_error => Some(String::new()),
            _ if text.starts_with(SENDS_TEXT) => {
                in_text = !text.ends_with('}');
                Some(format!("{SENDS_TEXT} {{ {RUNTIME}::plain(text) }}"))
            }
            _ if in_text => {
                in_text = line.trim_end() != "}";
                Some(String::new())
            }
            // What evcxr falls back on where a value is made of variables that the cell moves into it.
            "evcxr_send_text_plain(&format!(\"{:?}\",&(" => Some(format!("{RUNTIME}::value(std::convert::identity(&(")),
            _ => None,
        };
        match new {
            Some(new) => {
                changed.push_str(&new);
                changed.push('\n');
            }
            None => changed.push_str(line),
        }
        before = text;
    }
    changed
}

/// The error types that cells define, so that their causes can be told: those without parameters at the top of a cell.
fn error_types(source: &str) -> String {
    let mut names = BTreeSet::new();
    let mut derives = false;
    for line in source.lines() {
        if let Some((_, rest)) = line.split_once("Error for ")
            && line.starts_with("impl ")
        {
            names.extend(type_name(rest));
        }
        if let Some(list) = line.strip_prefix("#[derive(") {
            derives |= list.contains("thiserror::Error")
                || source.contains("use thiserror::Error") && list.split([',', ')']).any(|name| name.trim() == "Error");
        } else if let Some(rest) =
            ["struct ", "enum "].into_iter().find_map(|kind| line.trim_start_matches("pub ").strip_prefix(kind))
            && std::mem::take(&mut derives)
        {
            names.extend(type_name(rest));
        }
    }
    let mut list = String::new();
    for name in names {
        let _ = write!(list, "{RUNTIME}::ErrorType::of::<{name}>(), ");
    }
    list
}

/// The name that the text begins with, if it is that of a type without parameters.
fn type_name(text: &str) -> Option<&str> {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let is_type = name.starts_with(char::is_uppercase)
        && matches!(rest.trim_start().chars().next(), None | Some('{' | '(' | ';'));
    is_type.then_some(name)
}

/// The reason why a compiled cell must not run, if there is one: it calls `std::process::exit`, and all variables would
/// be lost with the process.
/// The call is found in the library, whatever name the source has for it; that what others have compiled into the cell makes it is not
/// its fault.
pub(super) fn refusal(source: &str, library: &Path) -> Option<Diagnostic> {
    const SYMBOL: &[u8] = b"3std7process4exit";
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    source.split(|c: char| !is_name(c)).find(|word| *word == "exit")?;
    let library = fs::read(library).ok()?;
    library.windows(SYMBOL.len()).find(|window| *window == SYMBOL)?;
    let spans = source.lines().enumerate().filter_map(|(index, line)| {
        let column = line.find("exit(").or_else(|| line.find("process::exit"))?;
        let column = line[..column].chars().count() + 1;
        (!line.contains("evcxr_")).then(|| Span::primary(index + 1, column, column + "exit".len()))
    });
    Some(Diagnostic {
        message:
            "the cell calls `std::process::exit`, which would end the process that holds the variables of all cells"
                .to_owned(),
        code: None,
        level: "error".to_owned(),
        spans: spans.collect(),
        children: vec![Diagnostic {
            message: "`return Ok(());` ends a cell early, and `Err(\"why\")?;` makes it fail".to_owned(),
            code: None,
            level: "help".to_owned(),
            spans: Vec::new(),
            children: Vec::new(),
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GENERATED: &str = r#"#![allow(unused_imports, unused_mut, dead_code)]
impl std::error::Error for Mine {}
#[derive(Debug, thiserror::Error)]
pub enum Other { A }
impl std::error::Error for Generic<u8> {}

            struct EvcxrUserCodeError {}
            impl<T: std::fmt::Display> From<T> for EvcxrUserCodeError {
                fn from(error: T) -> Self {
                    eprintln!("{}", error);
                    println!("{}", evcxr_internal_runtime::USER_ERROR_OCCURRED);
                    EvcxrUserCodeError {}
                }
            }
mod evcxr_internal_runtime {
pub struct VariableStore {
}
}
#[unsafe(no_mangle)]
pub extern "C" fn run_user_code_3(
eprintln!("{}", error);
println!("EVCXR_PANIC_NOTIFICATION");
  Err(_) => {
    println!("EVCXR_PANIC_NOTIFICATION");
}}
fn evcxr_send_text_plain(text: &str)
{
    if let Err(error) = try_send_text(text)
    {
        std::process::exit(1);
    }
}
evcxr_send_text_plain(&format!("{:?}",&(
(a, b)
)));
"#;

    #[test]
    fn lines_for_the_parent_become_calls() {
        let changed = changed(GENERATED, true);
        assert_eq!(changed.lines().count(), GENERATED.lines().count());
        let different: Vec<&str> =
            GENERATED.lines().zip(changed.lines()).filter(|(old, new)| old != new).map(|(_, new)| new).collect();
        let types = "::lacuna::display::runtime::ErrorType::of::<Mine>(), ::lacuna::display::runtime::ErrorType::of::<Other>(), ";
        assert_eq!(
            different,
            [
                "#[track_caller] fn from(error: T) -> Self {",
                &format!("::lacuna::display::runtime::failed(&error, &[{types}]);"),
                "",
                "use ::lacuna::display::runtime::store as evcxr_internal_runtime;",
                "",
                "",
                "",
                "pub extern \"C-unwind\" fn run_user_code_3(",
                "::lacuna::display::runtime::panicked();",
                "fn evcxr_send_text_plain(text: &str) { ::lacuna::display::runtime::plain(text) }",
                "",
                "",
                "",
                "",
                "",
                "",
                "::lacuna::display::runtime::value(std::convert::identity(&(",
            ]
        );
    }

    #[test]
    fn evcxr_is_told_at_once_that_cells_use_question_marks() {
        let source = format!("use a;\nfn f() {{\n{FIRST}\n}}");
        let failure = first_failure(&source).unwrap();
        assert_eq!((failure.code.unwrap().code.as_str(), failure.spans[0].line_start), ("E0277", 3));
        assert!(first_failure(&format!("{ERROR}\n{source}")).is_none() && first_failure("f()?").is_none());
    }

    #[test]
    fn without_the_library_only_the_abi_changes() {
        let changed = changed(GENERATED, false);
        assert_eq!(changed, GENERATED.replace("extern \"C\"", "extern \"C-unwind\""));
    }
}
