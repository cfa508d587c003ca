//! Entry points of fuzz targets (`fuzz/`), compiled with `--cfg fuzzing` only: each gives bytes to a parser that is not public,
//! and panics when what the parser promises does not hold.

pub use crate::checkpoint::fuzzing::{content_range, safetensors_header};
pub use crate::mask::fuzzing::pickle;
