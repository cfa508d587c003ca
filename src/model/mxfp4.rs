//! MXFP4, as the OCP microscaling formats define it: 4-bit floats (E2M1) in groups of 32 that share a power of two.

use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

/// Weights that share a scale; they stand in half as many bytes, the even ones in the low nibbles.
pub(super) const GROUP: usize = 32;

/// The scale that stands for NaN.
pub(crate) const NAN_SCALE: u8 = u8::MAX;

/// Values of the 4-bit floats; the upper half are the negative ones.
pub(crate) const VALUES: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Both values of every byte.
const PAIRS: [[f32; 2]; 256] = {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [VALUES[byte & 15], VALUES[byte >> 4]];
        byte += 1;
    }
    pairs
};

/// The largest scale with which every 4-bit float is finite as `dtype`, below [`NAN_SCALE`].
pub(super) fn largest_scale(dtype: DType) -> u8 {
    // 6 * 2^(252 - 127) and 6 * 2^(140 - 127) are the last below the largest f32 (or bf16) and f16.
    if dtype == DType::F16 { 140 } else { 252 }
}

/// `2^(scale - 127)`
pub(crate) fn power(scale: u8) -> f32 {
    match scale {
        0 => f32::from_bits(1 << 22), // 2^-127 is subnormal
        scale => f32::from_bits(u32::from(scale) << 23),
    }
}

/// Weights `(out, in)` as `dtype` on `device`, exactly, from `blocks (out, in / 32, 16)` and `scales (out, in / 32)` in u8.
pub(super) fn unpack(blocks: &Tensor, scales: &Tensor, dtype: DType, device: &Device) -> Result<Tensor> {
    let (out, groups, half) = blocks.dims3()?;
    match blocks.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => {
            if let Some(weights) = super::gpu::mxfp4(blocks, scales, dtype)? {
                return Ok(weights.reshape((out, groups * GROUP))?.to_device(device)?);
            }
        }
        _ => {}
    }
    let bytes = |tensor: &Tensor| tensor.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<u8>();
    let (blocks, scales) = (bytes(blocks)?, bytes(scales)?);
    if 2 * half != GROUP || blocks.len() != scales.len() * half {
        let problem = format!("{} MXFP4 bytes for {} scales", blocks.len(), scales.len());
        return Err(Error::internal("decoding MXFP4", problem));
    }
    let mut values = vec![0f32; 2 * blocks.len()];
    values.par_chunks_mut(GROUP).zip(blocks.par_chunks(half).zip(&scales)).with_min_len(1 << 10).for_each(
        |(values, (bytes, &scale))| {
            let scale = power(scale);
            for (pair, &byte) in values.chunks_exact_mut(2).zip(bytes) {
                let [low, high] = PAIRS[usize::from(byte)];
                pair[0] = low * scale;
                pair[1] = high * scale;
            }
        },
    );
    Ok(Tensor::from_vec(values, (out, groups * GROUP), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nibbles_and_scales_have_their_values() {
        let mut bytes = [0u8; 32];
        bytes[0] = 0x71; // 0.5, then 6
        bytes[15] = 0xf8; // -0, then -6
        bytes[16] = 0x29; // -0.5, then 1
        let blocks = Tensor::from_slice(&bytes, (1, 2, 16), &Device::Cpu).unwrap();
        let scales = Tensor::new(&[[128u8, 0]], &Device::Cpu).unwrap();
        let weights = unpack(&blocks, &scales, DType::F32, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        let mut expected = [0.0; 64];
        (expected[0], expected[1], expected[31]) = (1.0, 12.0, -12.0);
        (expected[32], expected[33]) = (-(2f32.powi(-126) / 4.0), 2f32.powi(-126) / 2.0);
        assert_eq!(weights, [expected]);
        assert!(unpack(&blocks, &blocks, DType::F32, &Device::Cpu).is_err(), "as many scales as bytes");
    }

    #[test]
    fn the_largest_scale_is_the_last_that_is_finite() {
        for (dtype, as_f64) in [(DType::F16, 65504.0), (DType::F32, f64::from(f32::MAX)), (DType::BF16, 3.3895e38)] {
            let largest = |scale: u8| 6.0 * 2f64.powi(i32::from(scale) - 127);
            let scale = largest_scale(dtype);
            assert!(largest(scale) <= as_f64 && largest(scale + 1) > as_f64, "{dtype:?}");
        }
    }
}
