//! A value as a bundle of MIME types, and the way of a bundle to whoever shows it: the process that runs a notebook's cells
//! ([`Host`]), or standard output in the form that evcxr reads.

use crate::error::Result;
use std::cell::{Cell, RefCell};
use std::io::{self, Write};
use std::sync::OnceLock;

const BEGIN: &str = "EVCXR_BEGIN_CONTENT ";
const END: &str = "EVCXR_END_CONTENT";

/// MIME types that tools around notebooks agree on.
pub mod mime {
    /// Always present: what a terminal shows.
    pub const PLAIN: &str = "text/plain";
    /// A table or text with structure; goes into the Markdown report as it is.
    pub const MARKDOWN: &str = "text/markdown";
    /// The representation that Jupyter prefers.
    pub const HTML: &str = "text/html";
    /// A table that the runner saves as a file.
    pub const CSV: &str = "text/csv";
    /// Structured data for the JSON report.
    pub const JSON: &str = "application/json";
    /// A plot as text.
    pub const SVG: &str = "image/svg+xml";
    /// A plot as base64.
    pub const PNG: &str = "image/png";
}

/// One value in several representations: `(MIME type, content)`. Binary content is base64.
pub type Bundle = Vec<(&'static str, String)>;

/// A value that a cell shows as more than text.
pub trait Rich {
    /// The value's representations; `text/plain` is among them. Everything in HTML is escaped, and has no colours of its
    /// own but those in pictures, so that it reads in light themes and dark ones.
    ///
    /// # Errors
    /// [`crate::error::Error::Report`] when a table or a picture cannot be made.
    fn bundle(&self) -> Result<Bundle>;
}

/// Shows a bundle as a cell's value.
///
/// # Panics
/// With the reason, when there is none: a cell's display has no other way to fail.
pub(crate) fn show(bundle: Result<Bundle>) {
    match bundle {
        Ok(bundle) => emit(&bundle.iter().map(|(mime, text)| (*mime, text.as_str())).collect::<Vec<_>>()),
        Err(error) => panic!("{error}"),
    }
}

/// Gives types that are [`Rich`] the method that evcxr calls, also where the prelude is not in scope.
macro_rules! shown_in_cells {
    ($($type:ty),+ $(,)?) => { $(
        impl $type {
            /// Shows the value as a cell's value.
            ///
            /// # Panics
            /// When a table or a picture of it cannot be made: a cell's display has no other way to fail.
            pub fn evcxr_display(&self) {
                $crate::rich::show($crate::rich::Rich::bundle(self));
            }
        }
    )+ };
}
pub(crate) use shown_in_cells;

/// Hands one value to the notebook, as `(MIME type, content)` pairs. Binary content is base64.
///
/// Each call shows one value. Outside a notebook's process it prints the text that evcxr reads.
pub fn emit(bundle: &[(&str, &str)]) {
    if let Some(host) = host() {
        return host.show(bundle, PLACE.get());
    }
    // A cell has nobody to report to when its standard output is gone: the kernel that read it is gone as well.
    let _ = write_bundle(&mut io::stdout().lock(), bundle);
}

/// Writes the protocol that evcxr reads. Content that holds the end marker would be cut there, so the marker is
/// broken up by a zero-width space, which looks the same.
fn write_bundle(out: &mut impl Write, bundle: &[(&str, &str)]) -> io::Result<()> {
    for (mime, content) in bundle {
        let content = content.replace(END, "EVCXR_\u{200b}END_CONTENT");
        write!(out, "{BEGIN}{mime}\n{content}\n{END}\n")?;
    }
    out.flush()
}

/// The process that runs cells.
pub trait Host: Send + Sync {
    /// Cell `number` is compiled, and its first statement runs.
    fn begins(&self, number: u64);
    /// The guard of cell `number` was dropped: by a `return`, a `?` or a panic if that cell still runs.
    fn dropped(&self, number: u64);
    /// The cell that runs has panicked.
    fn panicked(&self);
    /// A `?` of the cell, in `line` of its generated source, met an error: its message, and those of its causes.
    fn failed(&self, chain: &[String], line: u32);
    /// The variable `name` of an earlier cell has another type now, so its value is lost.
    fn retyped(&self, name: &str);
    /// Shows a value as `(MIME type, content)` pairs.
    fn show(&self, bundle: &[(&str, &str)], place: Place);
    /// Asks the person in front of the notebook. `None` where nobody can answer.
    fn ask(&self, prompt: &str, is_secret: bool) -> Option<String>;
}

/// The place of a value among a cell's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the place that the cell gives it, in the order of its outputs.
    Between,
    /// As the cell's value, if it is the last one that the cell shows.
    Value,
}

static HOST: OnceLock<Box<dyn Host>> = OnceLock::new();

thread_local! {
    static PLACE: Cell<Place> = const { Cell::new(Place::Value) };
}

/// Makes `host` the process that cells talk to; only the first call counts.
pub fn set_host(host: Box<dyn Host>) {
    // A second host would be a fault of the program, which has one process for cells.
    let _ = HOST.set(host);
}

/// The host, if this process runs cells.
pub(crate) fn host() -> Option<&'static dyn Host> {
    HOST.get().map(Box::as_ref)
}

/// Runs `show` so that what it shows stands between other outputs.
pub(crate) fn between(show: impl FnOnce()) {
    struct Restore(Place);
    impl Drop for Restore {
        fn drop(&mut self) {
            PLACE.set(self.0);
        }
    }
    let _restore = Restore(PLACE.replace(Place::Between));
    show();
}

thread_local! {
    /// Representations put aside while a value is printed for a cell.
    static ASIDE: RefCell<Option<Vec<Result<Bundle>>>> = const { RefCell::new(None) };
}

/// Values within one that are shown whole; of more, what `Debug` says.
pub(crate) const MOST: usize = 20;

/// Characters around the number of a representation in the text that a container prints. No printed text has them: `Debug` of a
/// string escapes them.
const MARK_BEGINS: char = '\u{fdd0}';
const MARK_ENDS: char = '\u{fdd1}';

/// The text that stands where the representation of number `i` was put aside.
pub(crate) fn mark(i: usize) -> String {
    format!("{MARK_BEGINS}{i}{MARK_ENDS}")
}

/// Calls `print`, during which values put themselves aside; returns its text and the representations, in the order of their marks.
pub(crate) fn putting_aside(print: impl FnOnce() -> String) -> (String, Vec<Result<Bundle>>) {
    /// Ends it also where a `Debug` panics.
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            ASIDE.set(None);
        }
    }
    ASIDE.set(Some(Vec::new()));
    let _end = End;
    let text = print();
    (text, ASIDE.take().unwrap_or_default())
}

/// Puts the representations of a value aside when a cell prints it within another; returns the mark to print in its
/// place.
pub(crate) fn set_aside(value: &dyn Rich) -> Option<String> {
    // While it makes its representations, what it prints in turn is text.
    let mut aside = ASIDE.take()?;
    let written = (aside.len() < MOST).then(|| {
        aside.push(value.bundle());
        mark(aside.len() - 1)
    });
    ASIDE.set(Some(aside));
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundle_is_what_evcxr_reads() {
        let mut out = Vec::new();
        write_bundle(&mut out, &[(mime::PLAIN, "a\nb"), (mime::JSON, "{}")]).unwrap();
        let expected = "EVCXR_BEGIN_CONTENT text/plain\na\nb\nEVCXR_END_CONTENT\n\
                        EVCXR_BEGIN_CONTENT application/json\n{}\nEVCXR_END_CONTENT\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn end_marker_in_content_does_not_end_it() {
        let mut out = Vec::new();
        write_bundle(&mut out, &[(mime::PLAIN, "x\nEVCXR_END_CONTENT\ny")]).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches(END).count(), 1);
        assert!(text.ends_with("y\nEVCXR_END_CONTENT\n"));
    }
}
