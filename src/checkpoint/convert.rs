//! Numbers between weight files and tensors: positional reads and writes of raw little-endian bytes, with a conversion
//! between floating-point types on the way, in parallel over pieces that stay in a core's cache.

use crate::error::Error;
use bytemuck::{Pod, cast_slice, cast_slice_mut};
use candle_core::{CpuStorage, DType, Device, Storage, Tensor, WithDType};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

#[cfg(target_endian = "big")]
compile_error!("safetensors files are little-endian and are read without swapping bytes");

/// Elements that one thread converts at a time: 256 KiB of f32, which fits a core's second-level cache.
const PIECE: usize = 1 << 16;

/// A floating-point type that weights come in.
trait Number: WithDType + Default + Pod {
    fn from_singles(src: &[f32], dst: &mut [Self]);
    fn from_doubles(src: &[f64], dst: &mut [Self]);
    fn convert<D: Number>(src: &[Self], dst: &mut [D]);
    fn finite(self) -> bool;
}

impl Number for f32 {
    fn from_singles(src: &[f32], dst: &mut [Self]) {
        dst.copy_from_slice(src);
    }
    fn from_doubles(src: &[f64], dst: &mut [Self]) {
        dst.iter_mut().zip(src).for_each(|(dst, src)| *dst = *src as f32);
    }
    fn convert<D: Number>(src: &[Self], dst: &mut [D]) {
        D::from_singles(src, dst);
    }
    fn finite(self) -> bool {
        self.is_finite()
    }
}

impl Number for f64 {
    fn from_singles(src: &[f32], dst: &mut [Self]) {
        dst.iter_mut().zip(src).for_each(|(dst, src)| *dst = f64::from(*src));
    }
    fn from_doubles(src: &[f64], dst: &mut [Self]) {
        dst.copy_from_slice(src);
    }
    fn convert<D: Number>(src: &[Self], dst: &mut [D]) {
        D::from_doubles(src, dst);
    }
    fn finite(self) -> bool {
        self.is_finite()
    }
}

/// Widens `src` to f32, which is exact for both 16-bit types, a few lines of cache at a time, and narrows from there.
fn through_f32<S: Copy, D: Number>(src: &[S], dst: &mut [D], widen: impl Fn(&[S], &mut [f32])) {
    let mut wide = [0f32; 1024];
    for (src, dst) in src.chunks(wide.len()).zip(dst.chunks_mut(1024)) {
        let wide = &mut wide[..src.len()];
        widen(src, wide);
        D::from_singles(wide, dst);
    }
}

impl Number for f16 {
    fn from_singles(src: &[f32], dst: &mut [Self]) {
        dst.convert_from_f32_slice(src);
    }
    fn from_doubles(src: &[f64], dst: &mut [Self]) {
        dst.convert_from_f64_slice(src);
    }
    fn convert<D: Number>(src: &[Self], dst: &mut [D]) {
        through_f32(src, dst, |src, wide| src.convert_to_f32_slice(wide));
    }
    fn finite(self) -> bool {
        self.is_finite()
    }
}

impl Number for bf16 {
    // Without half's branch on NaN, so that the compiler can vectorise it.
    fn from_singles(src: &[f32], dst: &mut [Self]) {
        for (dst, src) in dst.iter_mut().zip(src) {
            let bits = src.to_bits();
            let even = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
            let quiet = (bits >> 16) | 0x40;
            *dst = bf16::from_bits(if src.is_nan() { quiet } else { even } as u16);
        }
    }
    fn from_doubles(src: &[f64], dst: &mut [Self]) {
        dst.convert_from_f64_slice(src);
    }
    fn convert<D: Number>(src: &[Self], dst: &mut [D]) {
        through_f32(src, dst, |src, wide| {
            wide.iter_mut().zip(src).for_each(|(wide, src)| *wide = f32::from_bits(u32::from(src.to_bits()) << 16));
        });
    }
    fn finite(self) -> bool {
        self.is_finite()
    }
}

/// The reason why a read or write of numbers failed.
pub(super) enum ConversionFailure {
    Io(io::Error),
    /// From whoever reads.
    Read(Error),
    /// The file's type, the memory's type.
    Unsupported(String, String),
    /// Index of the first NaN or infinity, in elements.
    NotFinite(usize),
    Candle(candle_core::Error),
}

impl From<io::Error> for ConversionFailure {
    fn from(error: io::Error) -> Self {
        ConversionFailure::Io(error)
    }
}

impl From<candle_core::Error> for ConversionFailure {
    fn from(error: candle_core::Error) -> Self {
        ConversionFailure::Candle(error)
    }
}

/// Fills a buffer with the bytes of a tensor that begin so many bytes into it.
pub(super) type ReadAt<'a> = &'a (dyn Fn(u64, &mut [u8]) -> Result<(), Error> + Sync);

/// Reads a tensor of `shape`, whose elements come as `src`, as `dst` on the CPU.
pub(super) fn read(
    bytes: ReadAt<'_>,
    src: Dtype,
    shape: &[usize],
    dst: DType,
    finite: bool,
) -> Result<Tensor, ConversionFailure> {
    fn to<S: Number>(
        bytes: ReadAt<'_>,
        shape: &[usize],
        dst: DType,
        finite: bool,
    ) -> Result<Tensor, ConversionFailure> {
        match dst {
            DType::F32 => fill::<S, f32>(bytes, shape, finite),
            DType::F64 => fill::<S, f64>(bytes, shape, finite),
            DType::F16 => fill::<S, f16>(bytes, shape, finite),
            DType::BF16 => fill::<S, bf16>(bytes, shape, finite),
            other => Err(ConversionFailure::Unsupported(S::DTYPE.as_str().into(), other.as_str().into())),
        }
    }
    match src {
        Dtype::F32 => to::<f32>(bytes, shape, dst, finite),
        Dtype::F64 => to::<f64>(bytes, shape, dst, finite),
        Dtype::F16 => to::<f16>(bytes, shape, dst, finite),
        Dtype::BF16 => to::<bf16>(bytes, shape, dst, finite),
        other => Err(ConversionFailure::Unsupported(other.to_string(), dst.as_str().into())),
    }
}

fn fill<S: Number, D: Number>(bytes: ReadAt<'_>, shape: &[usize], finite: bool) -> Result<Tensor, ConversionFailure> {
    let mut values = vec![D::default(); shape.iter().product()];
    values.par_chunks_mut(PIECE).enumerate().try_for_each_init(Vec::<S>::new, |raw, (piece, values)| {
        let at = (piece * PIECE * size_of::<S>()) as u64;
        if S::DTYPE == D::DTYPE {
            bytes(at, cast_slice_mut(values)).map_err(ConversionFailure::Read)?;
        } else {
            raw.resize(values.len(), S::default());
            bytes(at, cast_slice_mut(raw)).map_err(ConversionFailure::Read)?;
            S::convert(raw, values);
        }
        // `all` over the whole piece vectorises, a search for the place does not.
        if finite && !values.iter().fold(true, |all, value| all & value.finite()) {
            let place = values.iter().position(|value| !value.finite()).unwrap_or(0);
            return Err(ConversionFailure::NotFinite(piece * PIECE + place));
        }
        Ok(())
    })?;
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// Writes `tensor` as `dst` at byte `start` of `file`.
pub(super) fn write(file: &File, start: u64, tensor: &Tensor, dst: Dtype) -> Result<(), ConversionFailure> {
    fn to<S: Number>(file: &File, start: u64, values: &[S], dst: Dtype) -> Result<(), ConversionFailure> {
        match dst {
            Dtype::F32 => put::<S, f32>(file, start, values),
            Dtype::F64 => put::<S, f64>(file, start, values),
            Dtype::F16 => put::<S, f16>(file, start, values),
            Dtype::BF16 => put::<S, bf16>(file, start, values),
            other => Err(ConversionFailure::Unsupported(other.to_string(), S::DTYPE.as_str().into())),
        }
    }
    let tensor = tensor.to_device(&Device::Cpu)?.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        return Err(ConversionFailure::Unsupported(dst.to_string(), "a device's".into()));
    };
    let range = layout.start_offset()..layout.start_offset() + tensor.elem_count();
    match storage {
        CpuStorage::F32(values) => to(file, start, &values[range], dst),
        CpuStorage::F64(values) => to(file, start, &values[range], dst),
        CpuStorage::F16(values) => to(file, start, &values[range], dst),
        CpuStorage::BF16(values) => to(file, start, &values[range], dst),
        _ => Err(ConversionFailure::Unsupported(dst.to_string(), tensor.dtype().as_str().into())),
    }
}

fn put<S: Number, D: Number>(file: &File, start: u64, values: &[S]) -> Result<(), ConversionFailure> {
    if S::DTYPE == D::DTYPE {
        return Ok(file.write_all_at(cast_slice(values), start)?);
    }
    Ok(values.par_chunks(PIECE).enumerate().try_for_each_init(Vec::<D>::new, |out, (piece, values)| {
        out.resize(values.len(), D::default());
        S::convert(values, out);
        file.write_all_at(cast_slice(out), start + (piece * PIECE * size_of::<D>()) as u64)
    })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every bf16 and f16 value widens exactly, and narrows back to itself.
    #[test]
    fn sixteen_bit_types_round_trip_through_f32_and_f64() {
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).filter(|v| !v.is_nan()).collect();
        let brains: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).filter(|v| !v.is_nan()).collect();
        fn check<T: Number>(values: &[T]) {
            let (mut singles, mut doubles) = (vec![0f32; values.len()], vec![0f64; values.len()]);
            T::convert(values, &mut singles);
            T::convert(values, &mut doubles);
            for ((value, single), double) in values.iter().zip(&singles).zip(&doubles) {
                assert_eq!((value.to_f64(), value.to_f64()), (f64::from(*single), *double));
            }
            let mut back = vec![T::default(); values.len()];
            f32::convert(&singles, &mut back);
            assert!(cast_slice::<T, u8>(&back) == cast_slice::<T, u8>(values), "from f32");
            back.fill(T::default());
            f64::convert(&doubles, &mut back);
            assert!(cast_slice::<T, u8>(&back) == cast_slice::<T, u8>(values), "from f64");
        }
        check(&halves);
        check(&brains);
    }

    /// Round to nearest, ties to even, as `half` does; NaN stays NaN and a large value becomes infinite.
    #[test]
    fn bf16_rounds_as_half_does() {
        let values: Vec<f32> = (0..200_000u32)
            .map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761)))
            .chain([
                1.003_906_2,
                1.011_718_8,
                f32::MAX,
                f32::NAN,
                -f32::NAN,
                f32::INFINITY,
                f32::from_bits(0x7f80_0001),
            ])
            .collect();
        let mut narrow = vec![bf16::default(); values.len()];
        bf16::from_singles(&values, &mut narrow);
        for (value, narrow) in values.iter().zip(&narrow) {
            assert_eq!(narrow.to_bits(), bf16::from_f32_const(*value).to_bits(), "{value:e}");
        }
    }
}
