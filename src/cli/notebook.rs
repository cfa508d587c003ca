use std::process::ExitCode;
#[derive(clap::Subcommand)]
pub(crate) enum Command { Run { code: Vec<String> } }
pub(crate) fn run(command: Command) -> anyhow::Result<ExitCode> {
    let Command::Run { code } = command;
    let t = std::time::Instant::now();
    let mut s = crate::kernel::Session::start(Box::new(|s, l| eprintln!("{s:?} {l}")))?;
    eprintln!("start {:?}", t.elapsed());
    for c in code { let o = s.run(&c); eprintln!("{c}\n{o:#?}"); }
    Ok(ExitCode::SUCCESS)
}
