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
    #[command(subcommand)]
    Notebook(cli::notebook::Command),
    #[cfg(feature = "notebook")]
    #[command(subcommand)]
    Kernel(cli::kernel::Command),
}

fn main() -> ExitCode {
    #[cfg(feature = "notebook")]
    kernel::hook();
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
