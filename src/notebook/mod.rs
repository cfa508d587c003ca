//! TODO

/// Stub until the notebook module is merged.
pub fn emit(_bundle: &[(&str, &str)]) {}
