//! Settings of loading a model.

use super::Model;
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::progress::Progress;
use candle_core::{DType, Device};
use std::path::Path;

/// Settings of loading a model: f32 on the CPU, with all weights in memory, unless something else is said.
///
/// ```
/// # fn main() -> lacuna::Result<()> {
/// use lacuna::prelude::*;
/// let path = concat!(env!("CARGO_MANIFEST_DIR"), "/data/tiny-llama");
/// let model = Model::options().dtype(DType::BF16).within(1 << 20).progress(Progress::Hidden).load(path)?;
/// assert_eq!((model.dtype(), model.is_resident()), (DType::BF16, false));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ModelOptions {
    dtype: DType,
    device: Device,
    placement: Placement,
    progress: Progress,
}

/// The place of the weights between two uses.
#[derive(Clone, Copy, Debug)]
enum Placement {
    /// In memory, on the device.
    Resident,
    /// In the files: each layer is read when it is needed.
    Files,
    /// On the device as long as this many bytes have room for them, else in the files.
    Within(u64),
}

impl Default for ModelOptions {
    fn default() -> Self {
        ModelOptions {
            dtype: DType::F32,
            device: Device::Cpu,
            placement: Placement::Resident,
            progress: Progress::Stderr,
        }
    }
}

impl ModelOptions {
    /// Computes in `dtype`: f32, bf16 or f16.
    #[must_use]
    pub fn dtype(self, dtype: DType) -> Self {
        ModelOptions { dtype, ..self }
    }

    /// Computes on `device`.
    #[must_use]
    pub fn device(self, device: Device) -> Self {
        ModelOptions { device, ..self }
    }

    /// Keeps at most `bytes` of weights on the device ([`Model::within`]); the rest is read when it is needed.
    #[must_use]
    pub fn within(self, bytes: u64) -> Self {
        ModelOptions { placement: Placement::Within(bytes), ..self }
    }

    /// Keeps no weights in memory: each layer is read from the files when it is needed.
    #[must_use]
    pub fn streaming(self) -> Self {
        ModelOptions { placement: Placement::Files, ..self }
    }

    /// Shows a download, and notes on the files, in another way than on standard error.
    #[must_use]
    pub fn progress(self, progress: Progress) -> Self {
        ModelOptions { progress, ..self }
    }

    /// Opens the model in a directory, or that of a hub id `owner/name[@revision]`, with these settings.
    ///
    /// # Errors
    /// As [`Checkpoint::resolve`] and [`Model::open`]; where the weights are held in memory, those of [`Model::resident`].
    pub fn load(&self, spec: impl AsRef<Path>) -> Result<Model> {
        let checkpoint = Checkpoint::resolve(spec, self.progress)?;
        let model = Model::open(&checkpoint, self.dtype, &self.device)?;
        self.progress.notes(&model.notes());
        match self.placement {
            Placement::Resident => model.resident(),
            Placement::Files => Ok(model),
            Placement::Within(bytes) => Ok(model.within(bytes)),
        }
    }
}
