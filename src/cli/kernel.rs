//! `lacuna kernel`: this binary as Jupyter's Rust kernel.

use crate::notebook::doctor::{self, Status};
use crate::notebook::install::{self, Place, Uninstalled};
use anyhow::Context;
use std::path::PathBuf;
use std::process::ExitCode;

/// The subcommands.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make the kernel "Lacuna (Rust)" known to Jupyter, and prepare its first start
    Install(PlaceArgs),
    /// Look at everything that cells need, and say what to type where it is missing
    #[command(after_help = "Exit codes: 0 cells can run (there may be warnings); 1 they cannot")]
    Doctor(DoctorArgs),
    /// Compile a first cell for several notebooks at once, so that each of them starts quickly
    Warm(WarmArgs),
    /// Undo `install`: remove the kernel from Jupyter, and what it has compiled, except for what sessions use
    Uninstall(PlaceArgs),
    /// Be the kernel: what the kernelspec starts
    Serve(ServeArgs),
    /// Write the cell of parameters that papermill puts into a notebook: what clients/papermill asks, JSON to JSON
    #[command(hide = true)]
    Parameters,
}

#[derive(Debug, clap::Args)]
pub(crate) struct PlaceArgs {
    /// For this user (the default)
    #[arg(long, conflicts_with_all = ["prefix", "sys_prefix"])]
    user: bool,
    /// Below PREFIX/share/jupyter
    #[arg(long, value_name = "PREFIX", conflicts_with = "sys_prefix")]
    prefix: Option<PathBuf>,
    /// In the active virtual environment (VIRTUAL_ENV or CONDA_PREFIX)
    #[arg(long)]
    sys_prefix: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// As a JSON list of checks
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct WarmArgs {
    /// Notebooks that will run at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=32))]
    slots: u8,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// Connection file with the addresses to listen on, as Jupyter writes it
    connection_file: PathBuf,
}

impl PlaceArgs {
    fn place(self) -> anyhow::Result<Place> {
        Ok(match self {
            PlaceArgs { prefix: Some(prefix), .. } => Place::Prefix(prefix),
            PlaceArgs { sys_prefix: true, .. } => {
                let prefix = std::env::var_os("VIRTUAL_ENV").or_else(|| std::env::var_os("CONDA_PREFIX"));
                Place::Prefix(prefix.context("--sys-prefix: no virtual environment is active; use --prefix")?.into())
            }
            _ => Place::User,
        })
    }
}

/// Runs the subcommand.
pub(crate) fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Install(place) => {
            let directory = install::install(&place.place()?)?;
            println!("installed {}", directory.display());
        }
        Command::Doctor(DoctorArgs { json }) => return diagnose(json),
        Command::Warm(WarmArgs { slots }) => {
            install::warm(slots.into())?;
            println!("{slots} {} warm", if slots == 1 { "slot is" } else { "slots are" });
        }
        Command::Uninstall(place) => match install::uninstall(&place.place()?)? {
            Some(uninstalled) => tell(&uninstalled),
            None => println!("no lacuna kernel is installed there"),
        },
        Command::Serve(ServeArgs { connection_file }) => crate::notebook::serve(&connection_file)?,
        Command::Parameters => {
            let question = std::io::read_to_string(std::io::stdin()).context("cannot read the question")?;
            println!("{}", crate::notebook::parameters::answer(&question)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn tell(Uninstalled { directory, compiled, other }: &Uninstalled) {
    println!("removed {}", directory.display());
    if let Some(other) = other {
        println!("compiled cells stay, for {}", other.display());
    }
    for (compiled, freed) in compiled {
        println!("removed {} of compiled cells in {}", super::size(*freed), compiled.path.display());
        if compiled.path.is_dir() {
            println!("sessions run: what they use stays there, until `lacuna cache gc --older-than 0s`");
        }
    }
}

fn diagnose(json: bool) -> anyhow::Result<ExitCode> {
    let checks = doctor::checks();
    if json {
        super::print_json(&checks)?;
    } else {
        for check in &checks {
            let status = match check.status {
                Status::Ok => "ok",
                Status::Warning => "warning",
                Status::Failure => "FAILURE",
            };
            println!("{status:<8} {:<10} {}", check.name, check.found);
            if let Some(remedy) = &check.remedy {
                println!("{:<19} -> {remedy}", "");
            }
        }
    }
    let failed = checks.iter().any(|check| check.status == Status::Failure);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
