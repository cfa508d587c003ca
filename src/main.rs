//! The `lacuna` command: subcommands for checkpoints, pruning and notebooks, and the notebook kernel itself.

mod cli;
#[cfg(feature = "notebook")]
mod kernel;

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(feature = "notebook")]
    if let Some(code) = kernel::entry() {
        return code;
    }
    cli::main()
}
