//! Which experts of a mixture matter.

pub mod saliency;
