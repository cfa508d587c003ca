//! `lacuna notebook`: notebooks without Jupyter.

use crate::notebook::runner::{self, Options, Status};
use crate::notebook::{document, skeleton};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// The subcommands.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Run notebooks from top to bottom and write their reports
    #[command(after_help = "Tags of cells: `parameters` (what -p can set: `let name = literal;`), `skip` or \
                      `skip-execution` (not run), `raises-exception` (may fail), `no-check` (--check runs it, and does \
                      not compare its outputs). In .md and .html `hide-input`, `hide-output` and `hide-cell` fold a part \
                      away, `remove-input`, `remove-output` and `remove-cell` leave it out.\n\nExit codes: 0 done; 1 a cell failed; 2 nothing was run (a \
                      notebook cannot be read, a parameter does not fit, the report cannot be written); 3 the process \
                      that runs cells died; 4 a report differs (--check); 5 a cell took too long (--timeout); 6 no \
                      session could be started, or a file could not be written; 130 interrupted")]
    Run(RunArgs),
    /// Write a notebook to begin with: question, parameters, load, prune, picture, meaning
    New {
        /// Path; `.ipynb` is added if it is missing
        name: PathBuf,
    },
    /// Take the outputs out of notebooks, in place; a clean one is not touched
    Clean {
        /// Notebooks of any language (.ipynb)
        #[arg(required = true, value_name = "NOTEBOOK")]
        notebooks: Vec<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// Notebooks in Rust (.ipynb); each runs in its own directory
    #[arg(required = true, value_name = "NOTEBOOK")]
    notebooks: Vec<PathBuf>,
    /// Directory for executed notebooks and reports [default: `reports` beside `notebooks`]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Set a parameter: text, number, true or false, or a JSON list. It goes into a cell of its own behind that of the
    /// parameters
    #[arg(short = 'p', long = "parameter", value_name = "NAME=VALUE")]
    parameters: Vec<String>,
    /// Set parameters from a JSON object; -p wins
    #[arg(long, value_name = "FILE")]
    params: Option<PathBuf>,
    /// Write nothing; compare with the reports that are there
    #[arg(long)]
    check: bool,
    /// Longest time for a cell, its compilation included
    #[arg(long, value_name = "SECONDS", value_parser = parse_timeout)]
    timeout: Option<Duration>,
    /// Keep the outputs of the last run for the cells before N. They run again, for later cells need their variables
    /// (cached stages are quick), but those that only name a value do not
    #[arg(long, value_name = "N", conflicts_with = "check")]
    from_cell: Option<usize>,
    /// Go on after a cell that fails, and show its error in the report; the exit code is still 1
    #[arg(long)]
    allow_errors: bool,
    /// Write the report as one HTML file too, pictures inside
    #[arg(long)]
    html: bool,
    /// Leave the code of cells out of the reports that people read (.md, .html)
    #[arg(long)]
    no_input: bool,
    /// Notebooks at a time, each in a process of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
}

/// Runs the subcommand.
pub(crate) fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => {
            let options = Options {
                out: args.out,
                check: args.check,
                parameters: args.parameters,
                parameters_file: args.params,
                timeout: args.timeout,
                from_cell: args.from_cell,
                allow_errors: args.allow_errors,
                html: args.html,
                no_input: args.no_input,
                jobs: args.jobs.into(),
            };
            let status = runner::run(&args.notebooks, &options).unwrap_or_else(|error| {
                eprintln!("error: {}", super::message(&error));
                Status::Failed
            });
            Ok(status.into())
        }
        Command::New { name } => {
            let path = skeleton::write(&name)?;
            println!("{}", path.display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Clean { notebooks } => {
            for path in &notebooks {
                match document::clean(path) {
                    Ok(true) => println!("{}: outputs removed", path.display()),
                    Ok(false) => {}
                    Err(error) => {
                        eprintln!("error: {}", super::message(&error));
                        return Ok(Status::Unreadable.into());
                    }
                }
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| *seconds > 0.0);
    let timeout = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    timeout.ok_or_else(|| format!("`{text}` is no time; write a number of seconds above 0"))
}
