//! Tests that cannot run on this machine say so on the real standard error, which the harness does not capture, and in the
//! file that `LACUNA_SKIPPED` names, a line each. Unit tests of the library use this file, too.

#![allow(dead_code, reason = "each test file uses some of these")]

use std::fmt::Display;
use std::io::Write;
use std::panic::Location;

/// Says that the calling test is skipped, as a program or file is missing that can be installed.
///
/// # Panics
/// Where `LACUNA_REQUIRE_ALL=1` demands that every test runs.
#[track_caller]
pub(crate) fn skipped(needs: impl Display) {
    let line = tell(&needs);
    assert!(
        std::env::var_os("LACUNA_REQUIRE_ALL").is_none_or(|value| value != "1"),
        "LACUNA_REQUIRE_ALL=1, but {line}"
    );
}

/// As [`skipped`], where what is missing is a device, its software or a right, which no machine can be asked to have: it is
/// told and counted, and never a failure.
#[track_caller]
pub(crate) fn skipped_without(needs: impl Display) {
    tell(&needs);
}

#[track_caller]
fn tell(needs: &dyn Display) -> String {
    let place = Location::caller();
    // The harness names the threads of tests, except where one runs after the other on the main one.
    let thread = std::thread::current();
    let name = thread.name().filter(|&name| name != "main").unwrap_or("a test");
    let line = format!("skipped: {name} ({}:{}): needs {needs}", place.file(), place.line()).replace('\n', " ");
    let told = writeln!(std::io::stderr(), "{line}");
    told.unwrap();
    if let Some(path) = std::env::var_os("LACUNA_SKIPPED") {
        let file = std::fs::File::options().create(true).append(true).open(path);
        // One write: other processes append, too.
        file.unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    }
    line
}
