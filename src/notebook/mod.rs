//! Rust cells: the evcxr kernel, for Jupyter and headless, inside this binary.
//!
//! Nothing is compiled twice. A cell links the `liblacuna` that `cargo build` made beside this binary:
//!
//! - evcxr gets one dependency, a *stub* of lacuna ([`stubs`]): a package without code that cargo must compile, whose
//!   library path is the real source, so that rust-analyzer (which finds the types of `let`) reads that.
//! - cargo compiles cells with this binary as `RUSTC_WRAPPER` ([`rustc_wrapper`]): stubs are not compiled at all, and
//!   the cell's own crate gets the real shared library in the stub's place; its source is changed a little
//!   ([`cell_source`]), and what rustc says of it is kept ([`diagnostics`]).
//! - evcxr runs cells in a child process, which is this binary again ([`child`]); `liblacuna` is already loaded there,
//!   so all cells share one copy of its statics. What they print and show it tells as [`events`].
//! - [`session`] is evcxr with its outputs in order; [`runner`] feeds it a notebook, [`jupyter`] what clients send.
//! - A session keeps the build that it began with ([`built`]), whatever cargo does meanwhile.
//! - evcxr's working directory is a *slot* ([`environment`]), kept between sessions and locked while in use.

mod built;
mod cell_source;
mod child;
mod compare;
pub(crate) mod compiled;
mod diagnostics;
pub(crate) mod doctor;
pub(crate) mod document;
mod encoding;
mod environment;
mod events;
mod export;
pub(crate) mod install;
mod jobs;
mod json_text;
mod jupyter;
mod lock;
mod outcome;
mod output;
pub(crate) mod parameters;
mod places;
mod printed;
mod processes;
pub(crate) mod runner;
mod rust_literal;
mod rust_source;
mod rustc_message;
mod rustc_wrapper;
mod screen;
mod session;
pub(crate) mod skeleton;
mod stored;
mod stubs;
mod watch;
mod written;

use std::path::Path;

/// The first thing in `main`: takes over, and does not return, when this process is a part of a notebook session (the
/// child that runs cells, or the wrapper around rustc) and not a command that a person typed.
pub(crate) fn hook() {
    if child::is_child() {
        child::run();
    } else if rustc_wrapper::is_wrapper() {
        rustc_wrapper::run();
    }
}

/// Serves Jupyter's clients until one of them ends the kernel.
///
/// # Errors
/// Fails when the connection file cannot be used.
pub(crate) fn serve(connection_file: &Path) -> anyhow::Result<()> {
    jupyter::serve(connection_file)
}
