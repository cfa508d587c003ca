//! One error for the crate: what was being done, to which file and tensor, and what to do about it.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

/// What went wrong. The message of every variant names the file, tensor or argument, and ends with a remedy
/// wherever there is one. `{:?}` writes [`Error::parts`], a line each, for `unwrap` and whatever else prints it.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// A verb, as in "cannot *read* FILE".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file does not hold what its format promises.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        problem: String,
    },
    /// A tensor is missing, misshapen or holds values that no weight can have.
    #[error("{}: tensor `{tensor}`: {problem}", path.display())]
    Tensor {
        /// The checkpoint or shard.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it and what to do.
        problem: String,
    },
    /// An argument is outside its range or does not fit another one.
    #[error("{name} = {value}: {problem}")]
    Argument {
        /// The argument, as the user wrote it.
        name: &'static str,
        /// Its value.
        value: String,
        /// What would be accepted.
        problem: String,
    },
    /// A hub did not deliver.
    #[error("hub repository `{repo}`: {problem}")]
    Hub {
        /// `owner/name`.
        repo: String,
        /// What was asked for, what came back, and what to do.
        problem: String,
    },
    /// A tensor operation failed: shapes, dtypes, or the device's memory.
    #[error("{doing}: {}", without_backtrace(source))]
    Compute {
        /// The operation, in words.
        doing: String,
        /// candle's reason.
        source: candle_core::Error,
    },
    /// A table or a plot could not be made.
    #[error("{doing}: {problem}")]
    Report {
        /// The operation, in words.
        doing: String,
        /// The reason.
        problem: String,
    },
    /// The user pressed Ctrl-C, or the process was asked to end. Nothing half-written was left.
    #[error("interrupted; nothing half-written was left")]
    Interrupted,
}

/// An error's message, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// What was being done, to which file, tensor or argument.
    pub what: String,
    /// The reason of the failure.
    pub cause: Option<String>,
    /// What to do about it, where that is known.
    pub remedy: Option<String>,
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Io`], for `map_err`.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { action, path, source }
    }

    /// An [`Error::File`].
    pub fn file(path: impl AsRef<Path>, problem: impl Display) -> Error {
        Error::File { path: path.as_ref().to_path_buf(), problem: problem.to_string() }
    }

    /// An [`Error::Tensor`].
    pub fn tensor(path: impl AsRef<Path>, tensor: impl Into<String>, problem: impl Display) -> Error {
        Error::Tensor { path: path.as_ref().to_path_buf(), tensor: tensor.into(), problem: problem.to_string() }
    }

    /// An [`Error::Argument`].
    pub fn argument(name: &'static str, value: impl Display, problem: impl Display) -> Error {
        Error::Argument { name, value: value.to_string(), problem: problem.to_string() }
    }

    /// The message, taken apart. A problem's last clause, after a semicolon, is its remedy.
    pub fn parts(&self) -> Parts {
        let with = |what: String, problem: &str| {
            let (cause, remedy) = match problem.rsplit_once("; ") {
                Some((cause, remedy)) => (cause, Some(remedy.to_owned())),
                None => (problem, None),
            };
            Parts { what, cause: Some(cause.to_owned()), remedy }
        };
        match self {
            Error::Io { action, path, source } => {
                let remedy = match source.kind() {
                    io::ErrorKind::NotFound => Some("check the path, and the directory that it starts from"),
                    io::ErrorKind::PermissionDenied => Some("check who may use it"),
                    io::ErrorKind::StorageFull => Some("free some space, or write to another disk"),
                    _ => None,
                };
                let what = format!("cannot {action} {}", path.display());
                Parts { what, cause: Some(source.to_string()), remedy: remedy.map(str::to_owned) }
            }
            Error::File { path, problem } => with(path.display().to_string(), problem),
            Error::Tensor { path, tensor, problem } => with(format!("{}: tensor `{tensor}`", path.display()), problem),
            Error::Argument { name, value, problem } => with(format!("{name} = {value}"), problem),
            Error::Hub { repo, problem } => with(format!("hub repository `{repo}`"), problem),
            Error::Compute { doing, source } => {
                Parts { what: doing.clone(), cause: Some(without_backtrace(source)), remedy: None }
            }
            Error::Report { doing, problem } => with(doing.clone(), problem),
            Error::Interrupted => {
                with("interrupted".into(), "it was asked to stop; run it again: nothing half-written was left")
            }
        }
    }

    /// An [`Error::Compute`], for `map_err`.
    pub fn compute(doing: impl Into<String>) -> impl FnOnce(candle_core::Error) -> Error {
        move |source| Error::Compute { doing: doing.into(), source }
    }
}

/// candle's message, without the backtrace that `RUST_BACKTRACE` makes it end with: that is for whoever asks for the source.
pub(crate) fn without_backtrace(error: &candle_core::Error) -> String {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } => without_backtrace(inner),
        candle_core::Error::Context { inner, context } => format!("{context}: {}", without_backtrace(inner)),
        candle_core::Error::WithPath { inner, path } => format!("{}: {}", path.display(), without_backtrace(inner)),
        other => other.to_string(),
    }
}

/// Tensor operations inside one function are distinguished by shapes, which candle prints; where a name helps, use
/// [`Error::compute`].
impl From<candle_core::Error> for Error {
    fn from(source: candle_core::Error) -> Self {
        Error::Compute { doing: "tensor operation".into(), source }
    }
}

/// Gives an enum of choices a list of them.
macro_rules! listed {
    ($type:ident, $($variant:ident),+ $(,)?) => {
        impl $type {
            #[doc = concat!("Every one, in the order of the documentation: `for one in ", stringify!($type), "::all()`.")]
            pub fn all() -> [$type; [$(stringify!($variant)),+].len()] {
                // A variant that is missing here is an error of the compiler.
                let listed = |one: &$type| match one { $($type::$variant => ()),+ };
                let all = [$($type::$variant),+];
                all.iter().for_each(listed);
                all
            }
        }
    };
}
pub(crate) use listed;

/// Gives an enum of choices the names that users write, for printing and parsing, and a list of them.
macro_rules! named {
    ($type:ident, $what:literal, $($variant:ident => $name:literal),+ $(,)?) => {
        $crate::error::listed!($type, $($variant),+);

        impl $type {
            /// Its name, as users write it.
            pub fn name(self) -> &'static str {
                match self { $($type::$variant => $name),+ }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::error::Error;

            fn from_str(text: &str) -> $crate::error::Result<Self> {
                match text {
                    $($name => Ok($type::$variant),)+
                    _ => Err($crate::error::Error::argument($what, text, concat!("must be one of", $(" ", $name),+))),
                }
            }
        }
    };
}
pub(crate) use named;
