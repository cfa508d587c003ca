//! One file per subcommand: its arguments, and one call.

#[cfg(feature = "notebook")]
pub(crate) mod kernel;
#[cfg(feature = "notebook")]
pub(crate) mod notebook;
