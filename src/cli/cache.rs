//! `lacuna cache`

use super::{parse_bytes, print_json, print_table, size};
use lacuna::cache::{Cache, CachedResult, Collect};
use std::time::Duration;

/// The subcommands.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List what is kept, used last first, and what notebooks have compiled
    Ls {
        /// Print what is kept as JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove results that were not used for long, down to a size. Damaged results, and compiled cells of builds that
    /// no longer exist, are removed in any case
    Gc {
        /// Remove results that were not used for this long: 90s, 30m, 12h, 30d or 4w. Compiled cells that sessions use
        /// stay
        #[arg(long, value_name = "AGE", value_parser = parse_age)]
        older_than: Option<Duration>,
        /// Remove the least recently used results until this much is left: bytes, or 500M, 2G (powers of 1024)
        /// [default: the cache's limit]
        #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
        max_bytes: Option<u64>,
        /// List the results that would be removed, and remove nothing
        #[arg(long)]
        dry_run: bool,
    },
}

pub(crate) fn run(command: Command) -> anyhow::Result<()> {
    let cache = Cache::from_env()?;
    match command {
        Command::Ls { json: true } => print_json(&cache.entries()?),
        Command::Ls { json: false } => {
            let entries = cache.entries()?;
            if !entries.is_empty() {
                list(&entries);
            }
            let (bytes, max) = (entries.iter().map(|entry| entry.bytes).sum(), cache.max_bytes());
            println!("{} kept, {} of {}{}", entries.len(), size(bytes), size(max), place(&cache));
            #[cfg(feature = "notebook")]
            compiled::list()?;
            Ok(())
        }
        Command::Gc { older_than, max_bytes, dry_run } => {
            // Without any rule, what the cache would do by itself.
            let max_bytes = max_bytes.or(older_than.is_none().then(|| cache.max_bytes()));
            let gone = cache.collect(&Collect { older_than, max_bytes, dry_run })?;
            if !gone.is_empty() {
                list(&gone);
            }
            let bytes = gone.iter().map(|entry| entry.bytes).sum();
            let verb = if dry_run { "would be removed" } else { "removed" };
            println!("{} {verb}, {}{}", gone.len(), size(bytes), place(&cache));
            #[cfg(feature = "notebook")]
            compiled::collect(older_than, dry_run)?;
            Ok(())
        }
    }
}

/// Compiled cells, a line a build.
#[cfg(feature = "notebook")]
mod compiled {
    use super::{Duration, age, size};
    use crate::notebook::compiled::{self, Compiled};

    pub(super) fn list() -> anyhow::Result<()> {
        for found in compiled::all()? {
            let slots = if found.slots == 1 { "slot" } else { "slots" };
            let in_use = if found.in_use > 0 { format!(" ({} in use)", found.in_use) } else { String::new() };
            println!("compiled cells: {}, {} {slots}{in_use}{}", size(found.bytes), found.slots, rest(&found));
        }
        Ok(())
    }

    pub(super) fn collect(older_than: Option<Duration>, dry_run: bool) -> anyhow::Result<()> {
        for found in compiled::all()? {
            let goes = found.is_orphan || older_than.is_some_and(|older_than| found.age() >= older_than);
            let (verb, freed) = match (goes, dry_run) {
                (true, true) => ("would be removed", found.bytes),
                (true, false) => ("removed", compiled::remove(&found)?),
                (false, true) => continue,
                (false, false) => ("removed", compiled::trim(&found)?),
            };
            if goes || freed > 0 {
                println!("compiled cells: {} {verb}{}", size(freed), rest(&found));
            }
        }
        Ok(())
    }

    fn rest(found: &Compiled) -> String {
        let gone = if found.is_orphan { ", of a build that is gone" } else { "" };
        format!("{gone}, used {} ago, in {}", age(found.age()), found.path.display())
    }
}

fn place(cache: &Cache) -> String {
    cache.dir().map(|dir| format!(" in {}", dir.display())).unwrap_or_default()
}

fn list(entries: &[CachedResult]) {
    let rows = entries.iter().map(|entry| {
        [
            entry.stage.clone(),
            size(entry.bytes),
            format!("{} ago", age(entry.age())),
            entry.title.clone(),
            entry.name.clone(),
        ]
    });
    print_table(["stage", "size", "used", "of", "name"], &[0, 3, 4], rows);
}

/// The largest unit of an age.
fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    let unit = UNITS.iter().rev().find(|(_, unit)| seconds >= *unit).unwrap_or(&UNITS[0]);
    format!("{} {}", seconds / unit.1, unit.0)
}

const UNITS: [(&str, u64); 5] = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400), ("w", 604_800)];

fn parse_age(text: &str) -> Result<Duration, String> {
    let age = UNITS.iter().find_map(|(name, seconds)| {
        let count: u64 = text.strip_suffix(name)?.trim().parse().ok()?;
        count.checked_mul(*seconds)
    });
    age.map(Duration::from_secs).ok_or_else(|| format!("`{text}` is no age; write a number and s, m, h, d or w: 30d"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        for (text, seconds) in [("90s", 90), ("30m", 1800), ("12h", 43_200), ("30d", 2_592_000), ("0w", 0)] {
            assert_eq!(parse_age(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for wrong in ["", "d", "-1d", "1.5h", "3 years", "99999999999999999999s"] {
            assert!(parse_age(wrong).is_err(), "{wrong}");
        }
        assert_eq!(
            [0, 59, 60, 7200, 200_000].map(|s| age(Duration::from_secs(s))),
            ["0 s", "59 s", "1 m", "2 h", "2 d"]
        );
    }
}
