//! As much of the test harness as a program needs that also plays other parts: filters, and lines like the harness's own.

use std::process::ExitCode;

/// A test, by its name.
pub(crate) type Test = (&'static str, fn());

/// The names that the arguments of a test program choose, and how.
#[derive(Default)]
struct Arguments {
    filters: Vec<String>,
    skips: Vec<String>,
    exact: bool,
    list: bool,
    /// Only those tests that are ignored otherwise, of which there is none here.
    ignored: bool,
}

impl Arguments {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Self {
        let mut parsed = Arguments::default();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--exact" => parsed.exact = true,
                "--list" => parsed.list = true,
                "--ignored" => parsed.ignored = true,
                "--skip" => parsed.skips.extend(arguments.next()),
                "--test-threads" | "--format" | "--color" | "--logfile" => drop(arguments.next()),
                flag if flag.starts_with('-') => {}
                _ => parsed.filters.push(argument),
            }
        }
        parsed
    }

    fn choose(&self, name: &str) -> bool {
        let matches = |filter: &String| if self.exact { name == filter } else { name.contains(filter.as_str()) };
        let wanted = self.filters.is_empty() || self.filters.iter().any(matches);
        wanted && !self.skips.iter().any(matches) && !self.ignored
    }
}

/// Runs those of `tests` that this program's arguments choose, one after the other, each on a thread of its name.
pub(crate) fn run(tests: &[Test]) -> ExitCode {
    let arguments = Arguments::parse(std::env::args().skip(1));
    let chosen: Vec<&Test> = tests.iter().filter(|(name, _)| arguments.choose(name)).collect();
    if arguments.list {
        chosen.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    let mut failed = Vec::new();
    for &(name, test) in &chosen {
        // A panic tells what is wrong on its own.
        let passed = std::thread::Builder::new().name((*name).into()).spawn(*test).unwrap().join().is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        if !passed {
            failed.push(*name);
        }
    }
    let result = if failed.is_empty() { "ok" } else { "FAILED" };
    let (passed, left) = (chosen.len() - failed.len(), tests.len() - chosen.len());
    println!(
        "\ntest result: {result}. {passed} passed; {} failed; 0 ignored; 0 measured; {left} filtered out\n",
        failed.len()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
