//! `lacuna notebook`: run notebooks without Jupyter.

use crate::kernel::runner::{self, Options};
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `lacuna notebook`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run notebooks from top to bottom and write their reports
    #[command(
        after_help = "Exit codes: 0 done; 1 a cell failed; 2 a notebook cannot be read; 3 the process that runs \
                            cells died; 4 a report differs (--check); 130 interrupted"
    )]
    Run(RunArgs),
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// Notebooks in Rust (.ipynb); each runs in its own directory
    #[arg(required = true, value_name = "NOTEBOOK")]
    notebooks: Vec<PathBuf>,
    /// Directory for executed notebooks and reports [default: `reports` beside `notebooks`]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write nothing; compare with the reports that are there
    #[arg(long)]
    check: bool,
}

/// Runs the subcommand.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Command::Run(RunArgs { notebooks, out, check }) = args.command;
    Ok(runner::run(&notebooks, &Options { out, check })?.into())
}
