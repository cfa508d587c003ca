//! Pruning language models, in Rust notebooks.
//!
//! Data goes one way, as a `Statistics`, a `Mask`, a `Record`:
//!
//! ```text
//! checkpoint -> model -> calibrate -> importance -> mask -> prune -> evaluate -> record -> report
//!  (bytes)    (tensors) (statistics)  (scores)    (bits)  (weights) (numbers)   (JSON)   (md, svg)
//! ```
//!
//! `ARCHITECTURE.md` has the modules in reading order; a module imports from those before it. Invariants:
//! - A weight file that was read is never written. Output goes to a sibling, is flushed, then renamed into place.
//! - Pruning holds one layer's weights and its activations, not the model's: memory does not grow with depth.
//! - The same seed, inputs and configuration give the same bytes on any number of threads. Times and hosts stand
//!   apart from results, in [`record::Record::environment`].
//! - Reports regenerate from records without a model.
//! - N:M is written as kept-of-M: 2:4 keeps two of four.

#![warn(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

pub mod cache;
pub mod checkpoint;
mod cuda;
mod debug;
pub mod device;
mod entries;
pub mod error;
mod exact_json;
mod files;
pub mod format;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
pub mod model;
pub mod prelude;
pub mod progress;
mod random;
pub mod record;
#[cfg(feature = "report")]
mod rich;
mod scratch;
pub mod settings;
#[cfg(test)]
#[path = "../tests/common/skip.rs"]
mod skip;
pub mod stats;
#[doc(hidden)]
pub mod sync;
pub mod text;

pub mod allocate;
#[doc(hidden)]
pub mod bench;
pub mod calibrate;
pub mod doctor;
pub mod dsnot;
pub mod evaluate;
pub mod experts;
pub mod generate;
pub mod gradients;
pub mod importance;
pub mod mask;
pub mod prune;
pub mod sparsegpt;
pub mod structured;
pub mod train;

#[cfg(feature = "report")]
pub mod display;
#[cfg(feature = "report")]
pub mod frames;
pub mod lab;
pub mod report;

pub use error::{Error, Result};

/// The tensor library of the notebooks: cells share the crate's own copy.
pub use candle_core;
/// The table library of the notebooks: cells share the crate's own copy.
#[cfg(feature = "report")]
pub use polars;
/// JSON as configurations and manifests have it: cells share the crate's own copy.
pub use serde_json;
/// Directories that are gone when they are dropped: cells share the crate's own copy.
pub use tempfile;
