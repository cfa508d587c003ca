use std::process::ExitCode;
#[derive(clap::Subcommand)]
pub(crate) enum Command { Install }
pub(crate) fn run(_: Command) -> anyhow::Result<ExitCode> { Ok(ExitCode::SUCCESS) }
