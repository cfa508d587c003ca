//! Copies between host and device through page-locked memory, on streams of their own, so that they overlap with kernels.

use crate::sync::locked;
use bytemuck::{NoUninit, Pod};
use candle_core::Result;
use candle_core::cuda::cudarc::driver::result::{memcpy_dtoh_async, memcpy_htod_async};
use candle_core::cuda::cudarc::driver::{
    CudaEvent, CudaSlice, CudaStream, CudaView, DevicePtr, DevicePtrMut, DeviceRepr, PinnedHostSlice, sys,
};
use candle_core::cuda::{CudaDevice, DeviceId, WrapErr};
use rayon::prelude::*;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

/// Bytes of one of the two pieces of page-locked memory of a lane.
const PIECE: usize = 32 << 20;
/// Bytes that a thread copies at a time.
const CHUNK: usize = 1 << 20;

/// The direction of a copy: up to the device, or down from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Way {
    Up,
    Down,
}

/// A stream, and two pieces of memory that take turns: one is copied by the device while the host is at the other.
struct Lane {
    stream: Arc<CudaStream>,
    pieces: [Piece; 2],
}

struct Piece {
    memory: PinnedHostSlice<u8>,
    /// After the device's last copy from or to it.
    done: Option<CudaEvent>,
}

impl Piece {
    /// The memory, once the device has done with it.
    fn wait(&mut self) -> Result<&mut [u8]> {
        if let Some(done) = self.done.take() {
            done.synchronize().w()?;
        }
        self.memory.as_mut_slice().w()
    }
}

impl Lane {
    fn new(device: &CudaDevice, way: Way) -> Result<Lane> {
        let context = device.cuda_stream().context().clone();
        // What the host reads must not be write-combined memory, which it cannot cache.
        let flags = if way == Way::Up { sys::CU_MEMHOSTALLOC_WRITECOMBINED } else { 0 };
        let piece = || -> Result<Piece> {
            // SAFETY: bytes may have any value.
            let memory = unsafe { context.alloc_pinned_with_flags(PIECE, flags) }.w()?;
            Ok(Piece { memory, done: None })
        };
        Ok(Lane { stream: context.new_stream().w()?, pieces: [piece()?, piece()?] })
    }
}

/// Calls `f` with the lane of a device that goes this way, made when it is first needed.
fn with_lane<T>(device: &CudaDevice, way: Way, f: impl FnOnce(&mut Lane) -> Result<T>) -> Result<T> {
    type Lanes = Mutex<HashMap<(DeviceId, Way), Arc<Mutex<Lane>>>>;
    static LANES: LazyLock<Lanes> = LazyLock::new(Mutex::default);
    let lane = {
        let mut lanes = locked(&LANES);
        match lanes.get(&(device.id(), way)) {
            Some(lane) => lane.clone(),
            None => {
                let lane = Arc::new(Mutex::new(Lane::new(device, way)?));
                lanes.insert((device.id(), way), lane.clone());
                lane
            }
        }
    };
    f(&mut locked(&lane))
}

/// Copies values to the device. Returns when they were read; what uses the result waits for them on the device.
pub(crate) fn upload<T: DeviceRepr + NoUninit>(values: &[T], device: &CudaDevice) -> Result<CudaSlice<T>> {
    with_lane(device, Way::Up, |lane| {
        let Lane { stream, pieces } = lane;
        // SAFETY: all of it is written below.
        let mut slice = unsafe { stream.alloc::<T>(values.len()) }.w()?;
        let bytes: &[u8] = bytemuck::cast_slice(values);
        {
            let (to, _written) = slice.device_ptr_mut(stream);
            for (i, from) in bytes.chunks(PIECE).enumerate() {
                let piece = &mut pieces[i % 2];
                let memory = &mut piece.wait()?[..from.len()];
                memory
                    .par_chunks_mut(CHUNK)
                    .zip(from.par_chunks(CHUNK))
                    .for_each(|(to, from)| to.copy_from_slice(from));
                // SAFETY: the target is this long, and the piece is not touched before the event.
                unsafe { memcpy_htod_async(to + (i * PIECE) as u64, memory, stream.cu_stream()) }.w()?;
                piece.done = Some(stream.record_event(None).w()?);
            }
        }
        Ok(slice)
    })
}

/// Copies values to the host, after all that the device has been told to do so far.
pub(crate) fn download<T: DeviceRepr + Default + Pod>(view: &CudaView<'_, T>, device: &CudaDevice) -> Result<Vec<T>> {
    download_after(view, device, &device.cuda_stream().record_event(None).w()?)
}

/// Copies values to the host that were there at the event. A slice's own event does not tell: candle gives its kernels their outputs
/// as if they were inputs.
pub(crate) fn download_after<T: DeviceRepr + Default + Pod>(
    view: &CudaView<'_, T>,
    device: &CudaDevice,
    made: &CudaEvent,
) -> Result<Vec<T>> {
    with_lane(device, Way::Down, |lane| {
        let Lane { stream, pieces } = lane;
        stream.wait(made).w()?;
        let mut values = vec![T::default(); view.len()];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
        let (from, _read) = view.device_ptr(stream);
        let mut before: Option<(usize, &mut [u8])> = None;
        let copy_out = |pieces: &mut [Piece; 2], (i, to): (usize, &mut [u8])| -> Result<()> {
            let memory = &pieces[i % 2].wait()?[..to.len()];
            to.par_chunks_mut(CHUNK).zip(memory.par_chunks(CHUNK)).for_each(|(to, from)| to.copy_from_slice(from));
            Ok(())
        };
        for (i, to) in bytes.chunks_mut(PIECE).enumerate() {
            let piece = &mut pieces[i % 2];
            let memory = &mut piece.wait()?[..to.len()];
            // SAFETY: the source is this long, and the piece is not touched before the event.
            unsafe { memcpy_dtoh_async(memory, from + (i * PIECE) as u64, stream.cu_stream()) }.w()?;
            piece.done = Some(stream.record_event(None).w()?);
            if let Some(last) = before.replace((i, to)) {
                copy_out(pieces, last)?;
            }
        }
        if let Some(last) = before {
            copy_out(pieces, last)?;
        }
        Ok(values)
    })
}
