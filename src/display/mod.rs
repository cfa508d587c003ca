//! Representations of values in a notebook cell.
//!
//! evcxr shows the last expression of a cell by calling its method `evcxr_display`, inherent or of a trait in scope. lacuna's
//! own types have one; [`EvcxrDisplay`], which the prelude brings in, gives it to everything else that can be printed, so
//! that a cell is compiled once. The method hands over one representation per MIME type ([`Rich::bundle`], [`emit`]);
//! Jupyter, nbconvert and `lacuna notebook run` each take the ones that they understand. `text/plain` is always among
//! them.

mod card;
mod cell;
mod errors;
mod experts;
mod frames;
mod input;
mod lab;
mod masks;
mod models;
mod nested;
#[doc(hidden)]
pub mod runtime;
mod scores;

pub use cell::{EvcxrDisplay, display};
pub use input::{input, password};
pub(crate) use nested::set_aside;

use crate::error::Result;
use std::io::{self, Write};

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
                $crate::display::show($crate::display::Rich::bundle(self));
            }
        }
    )+ };
}
pub(crate) use shown_in_cells;

/// Hands one value to the notebook, as `(MIME type, content)` pairs. Binary content is base64.
///
/// Each call shows one value. Outside a notebook's process it prints the text that evcxr reads.
pub fn emit(bundle: &[(&str, &str)]) {
    if let Some(host) = runtime::host() {
        return host.show(bundle, runtime::place());
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
