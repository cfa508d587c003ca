//! `lacuna doctor`: what is odd about a checkpoint.

use super::print_json;
use anyhow::Result;
use lacuna::doctor::{Severity, examine};
use lacuna::progress::Progress;
use std::process::ExitCode;

/// Reads a checkpoint as every command does and lists, in plain words, what is odd about it: the answer to "it does not load".
///
/// Looks at files, links and headers, names and types of tensors, config.json, tokenizer and generation settings, and reads every
/// weight for NaN and infinity. Exit code: 0 if every command can use it (there may be notes), 1 if there is a problem, 2 for
/// wrong arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory, or `owner/name[@revision]` on a hub, which is downloaded unless it is in the cache
    model: String,
    /// Read headers only, not the values of the weights
    #[arg(long)]
    quick: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let found = examine(&args.model, !args.quick, Progress::Stderr)?;
    let code = if found.is_healthy() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if args.json {
        print_json(&found)?;
        return Ok(code);
    }
    let revision = found.revision.as_ref().map(|revision| format!(" at {revision}")).unwrap_or_default();
    let family = found.family.as_deref().unwrap_or("unknown family");
    println!("{}{revision}: {family}, {} tensors, {} parameters", found.model, found.tensors, found.parameters);
    for finding in &found.findings {
        let kind = match finding.severity {
            Severity::Note => "note   ",
            Severity::Problem => "PROBLEM",
        };
        println!("{kind}  {}: {}", finding.about, finding.text);
    }
    let values = if found.values { "" } else { " (the values of the weights were not read)" };
    let number = |severity| found.findings.iter().filter(|finding| finding.severity == severity).count();
    match (number(Severity::Problem), number(Severity::Note)) {
        (0, 0) => println!("nothing odd was found{values}"),
        (0, notes) => println!("every command can use it; {notes} to note{values}"),
        (problems, notes) => println!("{problems} in the way, {notes} to note{values}"),
    }
    Ok(code)
}
