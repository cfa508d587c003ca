//! One error for the crate: what was being done, to which file and tensor, and what to do about it.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

/// What went wrong. The message of every variant names the file, tensor or argument, and ends with a remedy
/// wherever there is one.
#[derive(Debug, thiserror::Error)]
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
    #[error("{doing}: {source}")]
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

    /// An [`Error::Compute`], for `map_err`.
    pub fn compute(doing: impl Into<String>) -> impl FnOnce(candle_core::Error) -> Error {
        move |source| Error::Compute { doing: doing.into(), source }
    }
}

/// Tensor operations inside one function are told apart by shapes, which candle prints; where a name helps, use
/// [`Error::compute`].
impl From<candle_core::Error> for Error {
    fn from(source: candle_core::Error) -> Self {
        Error::Compute { doing: "tensor operation".into(), source }
    }
}

/// Gives an enum of choices the names that users write, for printing and parsing.
macro_rules! named {
    ($type:ident, $what:literal, $($variant:ident => $name:literal),+ $(,)?) => {
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(match self { $($type::$variant => $name),+ })
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::Error;

            fn from_str(text: &str) -> $crate::Result<Self> {
                match text {
                    $($name => Ok($type::$variant),)+
                    _ => Err($crate::Error::argument($what, text, concat!("must be one of", $(" ", $name),+))),
                }
            }
        }
    };
}
pub(crate) use named;
