//! `lacuna kernel`: this binary as Jupyter's Rust kernel.

use crate::kernel::install::{self, Place};
use anyhow::Context;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `lacuna kernel`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make the kernel "Lacuna (Rust)" known to Jupyter
    Install(PlaceArgs),
    /// Undo `install`
    Uninstall(PlaceArgs),
}

#[derive(Debug, clap::Args)]
struct PlaceArgs {
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
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Install(place) => {
            let directory = install::install(&place.place()?)?;
            println!("installed {}", directory.display());
        }
        Command::Uninstall(place) => match install::uninstall(&place.place()?)? {
            Some(directory) => println!("removed {}", directory.display()),
            None => println!("no lacuna kernel is installed there"),
        },
    }
    Ok(ExitCode::SUCCESS)
}
