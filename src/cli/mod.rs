//! One file per subcommand: its arguments, and one call.
#![expect(clippy::print_stdout, reason = "this is the command line")]

#[cfg(feature = "notebook")]
pub(crate) mod kernel;
#[cfg(feature = "notebook")]
pub(crate) mod notebook;
