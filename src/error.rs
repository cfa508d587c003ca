//! One error for the crate: what was being done, to which file and tensor, and what to do about it.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

/// What went wrong. The message of every variant names the file, tensor or argument, and ends with the remedy where
/// one is known. `{:?}` writes [`Error::parts`], a line each, for `unwrap` and whatever else prints it.
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
    #[error("{}: {}", path.display(), sentence(problem, remedy))]
    File {
        /// The file.
        path: PathBuf,
        /// The fault.
        problem: String,
        /// The remedy, where one is known.
        remedy: Option<String>,
    },
    /// A tensor is missing, misshapen or holds values that no weight can have.
    #[error("{}: tensor `{tensor}`: {}", path.display(), sentence(problem, remedy))]
    Tensor {
        /// The checkpoint or shard.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The fault.
        problem: String,
        /// The remedy, where one is known.
        remedy: Option<String>,
    },
    /// An argument is outside its range or does not fit another one.
    #[error("{name} = {value}: {}", sentence(problem, remedy))]
    Argument {
        /// The argument, as the user wrote it.
        name: &'static str,
        /// Its value.
        value: String,
        /// The reason why it is refused.
        problem: String,
        /// The remedy, where one is known.
        remedy: Option<String>,
    },
    /// A hub did not deliver.
    #[error("hub repository `{repo}`: {}", sentence(problem, remedy))]
    Hub {
        /// `owner/name`.
        repo: String,
        /// The request, and what came back.
        problem: String,
        /// The remedy, where one is known.
        remedy: Option<String>,
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
    #[error("{doing}: {}", sentence(problem, remedy))]
    Report {
        /// The operation, in words.
        doing: String,
        /// The reason.
        problem: String,
        /// The remedy, where one is known.
        remedy: Option<String>,
    },
    /// The library itself is at fault: a state that its own code rules out, or a thread that ended too early.
    #[error("{doing}: {problem}")]
    Internal {
        /// The operation, in words.
        doing: String,
        /// The state that was met.
        problem: String,
    },
    /// The user pressed Ctrl-C, or the process was asked to end. Nothing half-written was left.
    #[error("interrupted; nothing half-written was left")]
    Interrupted,
}

/// The reason of a failure, and its remedy where one is known: the argument of [`Error::file`] and its siblings. Every
/// text is a problem without a remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The reason.
    pub cause: String,
    /// The remedy.
    pub remedy: Option<String>,
}

// Not `Display`: as a part of another text, a problem would lose its remedy.
impl<T: Display> From<T> for Problem {
    fn from(cause: T) -> Problem {
        Problem { cause: cause.to_string(), remedy: None }
    }
}

impl Problem {
    /// The problem in one sentence, as messages have it.
    pub fn sentence(&self) -> String {
        sentence(&self.cause, &self.remedy)
    }

    /// The problem with another `cause`, made of its own.
    pub(crate) fn map(self, cause: impl FnOnce(&str) -> String) -> Problem {
        Problem { cause: cause(&self.cause), ..self }
    }
}

/// Texts that become a [`Problem`] with a remedy: `"has no text".remedy("give another file")`.
pub(crate) trait Remedy {
    fn remedy(self, remedy: impl Display) -> Problem;
}

impl<T: Display> Remedy for T {
    fn remedy(self, remedy: impl Display) -> Problem {
        Problem { cause: self.to_string(), remedy: Some(remedy.to_string()) }
    }
}

fn sentence(problem: &str, remedy: &Option<String>) -> String {
    match remedy {
        Some(remedy) => format!("{problem}; {remedy}"),
        None => problem.to_owned(),
    }
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
    pub fn file(path: impl AsRef<Path>, problem: impl Into<Problem>) -> Error {
        let Problem { cause: problem, remedy } = problem.into();
        Error::File { path: path.as_ref().to_path_buf(), problem, remedy }
    }

    /// An [`Error::Tensor`].
    pub fn tensor(path: impl AsRef<Path>, tensor: impl Into<String>, problem: impl Into<Problem>) -> Error {
        let Problem { cause: problem, remedy } = problem.into();
        Error::Tensor { path: path.as_ref().to_path_buf(), tensor: tensor.into(), problem, remedy }
    }

    /// An [`Error::Argument`].
    pub fn argument(name: &'static str, value: impl Display, problem: impl Into<Problem>) -> Error {
        let Problem { cause: problem, remedy } = problem.into();
        Error::Argument { name, value: value.to_string(), problem, remedy }
    }

    /// An [`Error::Hub`].
    pub(crate) fn hub(repo: impl Into<String>, problem: impl Into<Problem>) -> Error {
        let Problem { cause: problem, remedy } = problem.into();
        Error::Hub { repo: repo.into(), problem, remedy }
    }

    /// An [`Error::Report`].
    pub(crate) fn report(doing: impl Into<String>, problem: impl Into<Problem>) -> Error {
        let Problem { cause: problem, remedy } = problem.into();
        Error::Report { doing: doing.into(), problem, remedy }
    }

    /// An [`Error::Internal`].
    pub(crate) fn internal(doing: impl Into<String>, problem: impl Display) -> Error {
        Error::Internal { doing: doing.into(), problem: problem.to_string() }
    }

    /// The message, taken apart.
    pub fn parts(&self) -> Parts {
        let parts = |what: String, cause: &str, remedy: &Option<String>| Parts {
            what,
            cause: Some(cause.to_owned()),
            remedy: remedy.clone(),
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
                parts(what, &source.to_string(), &remedy.map(str::to_owned))
            }
            Error::File { path, problem, remedy } => parts(path.display().to_string(), problem, remedy),
            Error::Tensor { path, tensor, problem, remedy } => {
                parts(format!("{}: tensor `{tensor}`", path.display()), problem, remedy)
            }
            Error::Argument { name, value, problem, remedy } => parts(format!("{name} = {value}"), problem, remedy),
            Error::Hub { repo, problem, remedy } => parts(format!("hub repository `{repo}`"), problem, remedy),
            Error::Compute { doing, source } => parts(doing.clone(), &without_backtrace(source), &None),
            Error::Report { doing, problem, remedy } => parts(doing.clone(), problem, remedy),
            Error::Internal { doing, problem } => parts(doing.clone(), problem, &None),
            Error::Interrupted => {
                let remedy = "run it again: nothing half-written was left";
                parts("interrupted".into(), "it was asked to stop", &Some(remedy.to_owned()))
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

/// Gives an enum of choices the names that users write, for printing and parsing, and a list of them. Other names of a choice, which
/// are read and never written, stand behind its own.
macro_rules! named {
    ($type:ident, $what:literal, $($variant:ident => $name:literal $(| $alias:literal)*),+ $(,)?) => {
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
                    $($name $(| $alias)* => Ok($type::$variant),)+
                    _ => Err($crate::error::Error::argument($what, text, concat!("must be one of", $(" ", $name),+))),
                }
            }
        }
    };
}
pub(crate) use named;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;

    #[test]
    fn a_remedy_is_no_part_of_the_cause() {
        let error = Error::file("a/b.json", "two causes; both of them told");
        assert_eq!(error.to_string(), "a/b.json: two causes; both of them told");
        let told = |cause: &str, remedy: Option<&str>| Parts {
            what: "a/b.json".into(),
            cause: Some(cause.into()),
            remedy: remedy.map(str::to_owned),
        };
        assert_eq!(error.parts(), told("two causes; both of them told", None));
        let error = Error::file("a/b.json", "one; two".remedy("do this; or that"));
        assert_eq!(error.to_string(), "a/b.json: one; two; do this; or that");
        assert_eq!(error.parts(), told("one; two", Some("do this; or that")));
        assert_eq!(format!("{error:?}"), "a/b.json\n  cause: one; two\n  remedy: do this; or that");
    }

    #[test]
    fn every_variant_shows_its_parts() {
        let problem = || "cause".remedy("remedy");
        for error in [
            Error::file("f", problem()),
            Error::tensor("f", "t", problem()),
            Error::argument("a", 1, problem()),
            Error::hub("o/n", problem()),
            Error::report("drawing", problem()),
        ] {
            let Parts { what, cause, remedy } = error.parts();
            assert_eq!((cause.as_deref(), remedy.as_deref()), (Some("cause"), Some("remedy")));
            assert_eq!(error.to_string(), format!("{what}: cause; remedy"));
        }
        let error = Error::internal("reading", "it ended");
        assert_eq!(error.to_string(), "reading: it ended");
        assert_eq!(error.parts().remedy, None);
    }

    #[test]
    fn real_errors_know_their_remedies() {
        let dir = tempfile::tempdir().unwrap();
        let remedy = |error: Error| error.parts().remedy.unwrap_or_default();
        let open = || Checkpoint::open(dir.path()).err().unwrap();
        assert_eq!(remedy(open()), "copy or download the model into it");
        std::fs::write(dir.path().join("model.gguf"), "GGUF").unwrap();
        // Advice that is all of the cause stays there.
        assert!(open().parts().cause.unwrap().ends_with("with `lacuna import model.gguf DIR`"));
        let file = dir.path().join("model.safetensors");
        std::fs::write(&file, "version https://git-lfs.github.com/spec/v1").unwrap();
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        assert_eq!(remedy(open()), "run `git lfs pull` in its directory");
        let exists = crate::files::check_output(&file).err().unwrap();
        assert_eq!(remedy(exists), "remove it, or choose another output");
    }
}
