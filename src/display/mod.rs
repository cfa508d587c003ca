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
mod facts;
mod frames;
mod input;
mod lab;
mod masks;
mod models;
mod nested;
mod printed;
#[doc(hidden)]
pub mod runtime;
mod scores;

pub use crate::rich::{Bundle, Rich, emit, mime};
pub use cell::{EvcxrDisplay, display};
pub use input::{input, password};
