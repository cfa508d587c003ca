//! `lacuna`: prune language models, and run the notebooks about it.

mod cli;
#[cfg(feature = "notebook")]
mod kernel;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[cfg(feature = "notebook")]
    /// Run notebooks without Jupyter
    Notebook(cli::notebook::Args),
    #[cfg(feature = "notebook")]
    /// This binary as Jupyter's Rust kernel
    Kernel(cli::kernel::Args),
}

fn main() -> ExitCode {
    #[cfg(feature = "notebook")]
    kernel::hook();
    if let Err(error) = ctrlc::set_handler(lacuna::progress::interrupt) {
        eprintln!("warning: Ctrl-C will not clean up: {error}");
    }
    let result = match Arguments::parse().command {
        #[cfg(feature = "notebook")]
        Command::Notebook(command) => cli::notebook::run(command),
        #[cfg(feature = "notebook")]
        Command::Kernel(command) => cli::kernel::run(command),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
