//! Questions of a cell to the person in front of the notebook.

use crate::error::{Error, Remedy, Result};
use crate::rich::host;

/// Asks for a line of text in the notebook, as Python's `input` does. Jupyter's clients show a field for the answer.
///
/// # Errors
/// [`Error::Argument`] where nobody can answer: `lacuna notebook run`, nbclient, papermill, a script.
pub fn input(prompt: &str) -> Result<String> {
    ask(prompt, false)
}

/// Asks for a line of text that is not shown while it is typed.
///
/// # Errors
/// As [`input`].
pub fn password(prompt: &str) -> Result<String> {
    ask(prompt, true)
}

fn ask(prompt: &str, is_secret: bool) -> Result<String> {
    let answer = host().and_then(|host| host.ask(prompt, is_secret));
    answer.ok_or_else(|| {
        Error::argument(
            "input",
            format!("{prompt:?}"),
            "nobody can answer here".remedy("make it a parameter of the notebook, which `-p name=value` sets"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_notebook_nobody_answers() {
        let error = input("name? ").unwrap_err().to_string();
        assert!(error.contains("\"name? \"") && error.contains("parameter of the notebook"), "{error}");
        assert!(password("key? ").is_err());
    }
}
