//! The `lacuna` command: subcommands for checkpoints, pruning and notebooks, and the notebook kernel itself.

#![warn(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod cli;
#[cfg(feature = "notebook")]
mod notebook;

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(feature = "notebook")]
    notebook::hook();
    cli::main()
}
