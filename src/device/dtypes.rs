//! The dtypes of weights and activations on a GPU.

use candle_core::cuda::CudaDType;
use candle_core::cuda::cudarc::driver::DeviceRepr;
use half::{bf16, f16};

/// A type of weights and activations on a GPU.
pub(crate) trait Element: CudaDType + DeviceRepr {
    /// The last part of the names of its kernels.
    const NAME: &'static str;
}

impl Element for bf16 {
    const NAME: &'static str = "bf16";
}

impl Element for f16 {
    const NAME: &'static str = "f16";
}

impl Element for f32 {
    const NAME: &'static str = "f32";
}

/// Calls `$f::<T>` with the element type of `$tensor`, or returns `Ok(None)`.
macro_rules! by_dtype {
    ($tensor:expr, $f:ident($($argument:expr),*)) => {
        match $tensor.dtype() {
            candle_core::DType::BF16 => $f::<half::bf16>($($argument),*).map(Some),
            candle_core::DType::F16 => $f::<half::f16>($($argument),*).map(Some),
            candle_core::DType::F32 => $f::<f32>($($argument),*).map(Some),
            _ => Ok(None),
        }
    };
}
pub(crate) use by_dtype;
