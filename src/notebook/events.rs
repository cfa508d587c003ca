//! Messages of the process that runs cells to the session: one JSON object a line, on its real standard error.
//! Everything that cells and their child processes print is inside these objects, so that no text can be taken for an
//! answer.

use super::output::Stream;
use serde::{Deserialize, Serialize};

/// Begins each line; a line without it comes from the system's loader, before the program runs.
const MARK: &str = "\u{1}lacuna: event ";

/// An event, and the cell that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Message {
    /// The number that the session gave to the cell that runs or ran last; `None` before the first.
    pub(super) cell: Option<u64>,
    pub(super) event: Event,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Event {
    /// The cell is compiled, and its first statement runs.
    Begins,
    Text {
        stream: Stream,
        text: String,
    },
    /// A line of [`lacuna::progress`], with its mark.
    Progress {
        line: String,
    },
    Shows {
        /// MIME type and content.
        bundle: Vec<(String, String)>,
        /// As [`lacuna::display::runtime::Place::Value`].
        is_value: bool,
    },
    /// A thread panicked.
    Panic(Panic),
    /// A `?` met an error.
    Failed {
        /// The error's message, and those of its causes.
        chain: Vec<String>,
        /// In the generated source.
        line: u32,
    },
    /// The cell waits for an answer of the user.
    Asks {
        prompt: String,
        is_secret: bool,
    },
    /// The cell is over, and everything that it printed has been told.
    Ends {
        how: How,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Panic {
    pub(super) thread: String,
    /// The thread is the one that runs cells.
    pub(super) is_cell: bool,
    pub(super) message: String,
    pub(super) file: String,
    pub(super) line: u32,
    pub(super) backtrace: Option<String>,
}

/// The end of a cell: at its last line, early, or by a panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum How {
    /// It came to its end.
    Finished,
    /// By `return`, or a `?` that met an error.
    Early,
    Panicked,
}

impl Message {
    /// The message as a line, its newline included.
    pub(super) fn line(&self) -> Vec<u8> {
        let mut line = MARK.as_bytes().to_vec();
        // Strings and numbers always become JSON.
        let _ = serde_json::to_writer(&mut line, self);
        line.push(b'\n');
        line
    }

    /// The message in a line; `None` if it is text.
    pub(super) fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line.strip_prefix(MARK)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_holds_any_text() {
        let text = "a\nb\r\n\u{1}lacuna: event {}\u{2028}\0é".to_owned();
        let message = Message { cell: Some(3), event: Event::Text { stream: Stream::Stderr, text } };
        let line = String::from_utf8(message.line()).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        assert_eq!(Message::parse(line.trim_end()), Some(message));
        assert_eq!(Message::parse("error while loading shared libraries"), None);
    }
}
