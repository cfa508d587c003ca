//! The outcome of a cell, and what is to be seen of it before.

use super::output::{self, Bundle, Output, Stream};

/// The outcome of a cell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// Its outputs, in order.
    pub(crate) outputs: Vec<Output>,
    /// The reason why it failed.
    pub(crate) error: Option<CellError>,
    /// The time that it took.
    pub(crate) times: Times,
    /// The value was shown while the cell ran, as text followed it.
    pub(crate) is_value_seen: bool,
}

/// The parts of a cell's time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Times {
    /// Types of its variables, compiler and linker.
    pub(crate) compile_seconds: f64,
    /// The code itself.
    pub(crate) run_seconds: f64,
}

impl Times {
    pub(crate) fn seconds(self) -> f64 {
        self.compile_seconds + self.run_seconds
    }
}

impl Outcome {
    /// The text that it printed to a stream.
    pub(crate) fn text(&self, stream: Stream) -> String {
        output::text(&self.outputs, stream)
    }

    /// Returns whether the cell has given a value.
    pub(crate) fn has_value(&self) -> bool {
        self.outputs.iter().any(|output| output.bundle().is_some())
    }
}

/// The reason why a cell failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CellError {
    pub(crate) kind: ErrorKind,
    /// The compiler's or the cell's own message.
    pub(crate) message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// It does not compile, or a `:command` was refused.
    Compile,
    Panic,
    /// A `?` met an error.
    Error,
    /// The process that runs cells is gone, and all variables with it.
    Died,
    /// It was ended, as it took longer than allowed.
    Timeout,
    /// The user stopped it.
    Interrupted,
}

impl ErrorKind {
    pub(crate) const ALL: [ErrorKind; 6] = [
        ErrorKind::Compile,
        ErrorKind::Panic,
        ErrorKind::Error,
        ErrorKind::Died,
        ErrorKind::Timeout,
        ErrorKind::Interrupted,
    ];

    /// A name, as in a notebook's error output.
    pub(crate) fn name(self) -> &'static str {
        match self {
            ErrorKind::Compile => "CompileError",
            ErrorKind::Panic => "Panic",
            ErrorKind::Error => "Error",
            ErrorKind::Died => "KernelDied",
            ErrorKind::Timeout => "Timeout",
            ErrorKind::Interrupted => "Interrupted",
        }
    }
}

/// Something to be seen while a cell runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Live<'a> {
    /// Text, which need not be whole lines.
    Text(Stream, &'a str),
    /// A line of [`lacuna::progress`], with its mark.
    Progress(&'a str),
    /// A value between other outputs.
    Display(&'a Bundle),
}
