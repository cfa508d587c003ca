//! Pictures of any kind, for reports and notebook cells.

use crate::error::Result;
use crate::rich::{Bundle, Rich, mime};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use std::fmt::Debug;

/// A picture that a report can hold: [`Report::plot`](super::Report::plot) takes any.
pub trait Figure: Debug + Send + Sync {
    /// One line that says what the picture shows.
    fn summary(&self) -> String;

    /// The picture as an SVG document.
    ///
    /// # Errors
    /// Fails when there is nothing to draw, or a value cannot be placed.
    fn svg(&self) -> Result<String>;

    /// The picture as a PNG of twice its nominal width and height.
    ///
    /// # Errors
    /// Fails when there is nothing to draw, or a value cannot be placed.
    fn png(&self) -> Result<Vec<u8>>;
}

impl Rich for dyn Figure {
    fn bundle(&self) -> Result<Bundle> {
        bundle(self)
    }
}

/// The representations of a picture in a notebook, by MIME type.
pub(super) fn bundle(figure: &dyn Figure) -> Result<Bundle> {
    Ok(vec![
        (mime::PLAIN, figure.summary()),
        (mime::SVG, figure.svg()?),
        (mime::PNG, BASE64_STANDARD.encode(figure.png()?)),
    ])
}

/// Makes [`Figure`]s of types that have its methods as their own, and shows them in cells.
macro_rules! figure {
    ($type:ty) => {
        impl $crate::report::Figure for $type {
            fn summary(&self) -> String {
                self.summary()
            }

            fn svg(&self) -> $crate::error::Result<String> {
                self.svg()
            }

            fn png(&self) -> $crate::error::Result<Vec<u8>> {
                self.png()
            }
        }

        impl $crate::rich::Rich for $type {
            fn bundle(&self) -> $crate::error::Result<$crate::rich::Bundle> {
                super::figure::bundle(self)
            }
        }

        $crate::rich::shown_in_cells!($type);
    };
}
pub(super) use figure;
