//! One of NVIDIA's GPUs as a device.

use super::dtypes::{Element, by_dtype};
use super::{Memory, libraries, transfer};
use crate::error::{Error, Remedy, Result};
use candle_core::cuda::cudarc::driver::{CudaEvent, CudaSlice};
use candle_core::cuda::{CudaDType, CudaDevice, CudaStorage, WrapErr};
use candle_core::{CpuStorage, Device, Result as CandleResult, Storage, Tensor};

pub(super) type Event = CudaEvent;

/// The GPU with this number.
///
/// # Errors
/// [`Error::Argument`] without the feature `cuda`, without a driver, and when there is no such GPU or it cannot be used.
pub(super) fn open(ordinal: usize) -> Result<Device> {
    libraries::load()?;
    // One stream for all threads: with a stream for each, windows that change threads would not wait for each other.
    Device::new_cuda_with_stream(ordinal).map_err(|error| {
        // A backtrace may follow.
        let text = error.to_string();
        let cause = text.lines().next().unwrap_or_default();
        let problem =
            format!("cannot be used: {cause}").remedy("nvidia-smi lists GPUs, and CUDA_VISIBLE_DEVICES may hide them");
        Error::argument("device", format!("cuda:{ordinal}"), problem)
    })
}

/// A copy of `tensor` on `device`, from page-locked memory where that helps.
pub(super) fn upload_tensor(tensor: &Tensor, device: &Device, cuda: &CudaDevice) -> CandleResult<Tensor> {
    if !tensor.device().is_cpu() || tensor.elem_count() == 0 {
        return tensor.to_device(device);
    }
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { return tensor.to_device(device) };
    let range = layout.start_offset()..layout.start_offset() + tensor.elem_count();
    let storage = match storage {
        CpuStorage::U8(values) => wrap(transfer::upload(&values[range], cuda)?, cuda),
        CpuStorage::BF16(values) => wrap(transfer::upload(&values[range], cuda)?, cuda),
        CpuStorage::F16(values) => wrap(transfer::upload(&values[range], cuda)?, cuda),
        CpuStorage::F32(values) => wrap(transfer::upload(&values[range], cuda)?, cuda),
        _ => return tensor.to_device(device),
    };
    Ok(Tensor::from((storage, tensor.shape())))
}

/// A copy on the CPU of a tensor on the GPU, as it was at the event.
pub(super) fn download_tensor(tensor: &Tensor, made: &Event) -> CandleResult<Tensor> {
    fn download<T: Element + candle_core::WithDType + Default + bytemuck::Pod>(
        tensor: &Tensor,
        made: &CudaEvent,
    ) -> CandleResult<Tensor> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { return tensor.to_device(&Device::Cpu) };
        let start = layout.start_offset();
        let view = storage.as_cuda_slice::<T>()?.slice(start..start + tensor.elem_count());
        Tensor::from_vec(transfer::download_after(&view, &storage.device, made)?, tensor.shape(), &Device::Cpu)
    }
    if tensor.elem_count() == 0 || !tensor.is_contiguous() {
        return tensor.to_device(&Device::Cpu);
    }
    by_dtype!(tensor, download(tensor, made))?.map_or_else(|| tensor.to_device(&Device::Cpu), Ok)
}

/// An event behind all that the device has been told to do so far.
pub(super) fn event(device: &CudaDevice) -> CandleResult<Event> {
    device.cuda_stream().record_event(None).w()
}

pub(super) fn memory(device: &CudaDevice) -> Option<Memory> {
    let (free, total) = device.cuda_stream().context().mem_get_info().ok()?;
    Some(Memory { total_bytes: total as u64, free_bytes: free as u64 })
}

/// A slice on the device as the storage of a tensor.
pub(crate) fn wrap<T: CudaDType>(slice: CudaSlice<T>, device: &CudaDevice) -> Storage {
    Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, device.clone()))
}
