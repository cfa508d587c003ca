//! The kernels, timed by events on their stream.

use super::matmul::Matmul;
use super::problem::{Op, Output, Problem, SOFTMAX_SCALE};
use super::sparselt::Library;
use super::{Engine, Prepared};
use crate::cuda::Seen;
use crate::cuda::{Kernels, Matrix};
use crate::device::Element;
use crate::error::{Error, Result};
use crate::mask::Mask;
use candle_core::DType;
use candle_core::cuda::cudarc::driver::sys::CUevent_flags;
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaStream, DeviceRepr};
use candle_core::cuda::{CudaDevice, WrapErr};
use half::{bf16, f16};
use std::sync::Arc;

pub(super) struct Gpu {
    kernels: Arc<Kernels>,
    /// cuSPARSELt, or why it is not used.
    sparselt: Result<Library>,
}

impl Gpu {
    pub(super) fn new(device: &CudaDevice) -> Result<Gpu> {
        Ok(Gpu { kernels: Kernels::on(device)?, sparselt: Library::load() })
    }
}

impl Engine for Gpu {
    fn name(&self) -> String {
        let gpu = self.kernels.stream().context().name().unwrap_or_else(|_| "GPU".into());
        match &self.sparselt {
            Ok(library) => format!("{gpu}, {library}"),
            Err(_) => gpu,
        }
    }

    fn prepare(&self, problem: &Problem, copies: usize) -> Result<Box<dyn Prepared>> {
        let kernels = self.kernels.clone();
        if let Op::Matmul { batch, compressed } = problem.op {
            let library = match (compressed, &self.sparselt) {
                (false, _) => None,
                (true, Ok(library)) => Some(*library),
                (true, Err(error)) => return Err(Error::argument("operation", "2:4 matmul", error)),
            };
            return Ok(Box::new(Matmul::new(kernels, problem, batch, library, copies)?));
        }
        Ok(match problem.dtype {
            DType::BF16 => Box::new(OnGpu::new(kernels, problem, copies, bf16::from_f32)?),
            DType::F16 => Box::new(OnGpu::new(kernels, problem, copies, f16::from_f32)?),
            _ => Box::new(OnGpu::new(kernels, problem, copies, |w| w)?),
        })
    }

    fn lacks(&self, op: &Op) -> Option<(&'static str, String)> {
        match (op, &self.sparselt) {
            (Op::Matmul { compressed: true, .. }, Err(error)) => Some(("2:4 matmul", error.to_string())),
            _ => None,
        }
    }

    fn seconds(&self, work: &mut dyn Prepared) -> Result<f64> {
        let stream = self.kernels.stream();
        let start = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).w()?;
        work.run()?;
        let end = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).w()?;
        Ok(f64::from(start.elapsed_ms(&end).w()?) / 1e3)
    }
}

/// Inputs and room for outputs of one copy.
struct Buffers<T> {
    weights: CudaSlice<T>,
    /// Weights as bits, for what does not look at their values.
    bits: CudaSlice<u16>,
    masks: CudaSlice<u64>,
    /// Another result of the kernel, or a copy of the weights where it changes them.
    made: CudaSlice<T>,
    values: CudaSlice<u16>,
    index: CudaSlice<u8>,
}

struct OnGpu<T> {
    kernels: Arc<Kernels>,
    problem: Problem,
    copies: Vec<Buffers<T>>,
    norms: Option<CudaSlice<f32>>,
    ks: CudaSlice<u32>,
    bad: CudaSlice<u64>,
    /// Vectors of a product, and what a product gives.
    x: CudaSlice<u16>,
    y: CudaSlice<f32>,
    /// A factor, sinks, or rotary tables.
    other: CudaSlice<f32>,
    /// The values that gates multiply.
    gated: CudaSlice<T>,
    /// Blocks and scales of MXFP4.
    packed: [CudaSlice<u8>; 2],
    sums: Option<CudaSlice<f64>>,
}

/// On the device; room for one where there is nothing, as a driver need not allocate that.
fn upload<T: DeviceRepr>(stream: &Arc<CudaStream>, values: &[T]) -> Result<CudaSlice<T>> {
    Ok(match values {
        // SAFETY: nothing reads it.
        [] => unsafe { stream.alloc(1) }.w()?,
        values => stream.clone_htod(values).w()?,
    })
}

impl<T: Element> OnGpu<T> {
    fn new(kernels: Arc<Kernels>, problem: &Problem, copies: usize, narrow: fn(f32) -> T) -> Result<OnGpu<T>> {
        let stream = kernels.stream().clone();
        let Problem { op, rows, cols, weights, norms, other, mask, .. } = problem;
        let (rows, cols, words) = (*rows, *cols, rows * cols.div_ceil(64));
        let bytes = |values: &[f32]| values.iter().map(|&x| x as u8).collect::<Vec<u8>>();
        let bits_of = |values: &[f32]| values.iter().map(|&x| bf16::from_f32(x).to_bits()).collect::<Vec<u16>>();
        let is_mxfp4 = *op == Op::Mxfp4;
        let narrowed: Vec<T> = if is_mxfp4 { Vec::new() } else { weights.iter().map(|&w| narrow(w)).collect() };
        let (wants_bits, wants_compressed) = match op {
            Op::Compress24 => (true, true),
            Op::Matvec { compressed, .. } => (true, *compressed),
            _ => (false, false),
        };
        let levels = match op {
            Op::Rows(ks) => ks.len(),
            Op::Layer(_) | Op::NofM(..) => 1,
            _ => 0,
        };
        let made = match op {
            Op::Copy | Op::Mxfp4 => std::iter::repeat_with(|| narrow(f32::NAN)).take(rows * cols).collect(),
            Op::Apply | Op::SparseGpt => weights.iter().map(|&w| narrow(w)).collect(),
            _ => Vec::new(),
        };
        let (values, index) = if wants_compressed { (rows * cols / 2, rows * cols.div_ceil(8)) } else { (0, 0) };
        // Whatever a kernel does not write must show: masks begin as ones.
        let masks = match mask {
            Some(mask) => mask.words().to_vec(),
            None => vec![u64::MAX; levels * words],
        };
        let one = Buffers {
            weights: upload(&stream, &narrowed)?,
            bits: upload(&stream, &if wants_bits { bits_of(weights) } else { Vec::new() })?,
            masks: upload(&stream, &masks)?,
            made: upload(&stream, &made)?,
            values: upload(&stream, &vec![u16::MAX; values])?,
            index: upload(&stream, &vec![u8::MAX; index])?,
        };
        let is_product = matches!(op, Op::Matvec { .. });
        let y = if is_product { other.len() / cols.max(1) * rows } else { 0 };
        let packed =
            if is_mxfp4 { [bytes(weights), bytes(norms.as_deref().unwrap_or_default())] } else { Default::default() };
        let mut gpu = OnGpu {
            ks: upload(&stream, if let Op::Rows(ks) = op { ks } else { &[] })?,
            bad: upload(&stream, &[u64::MAX])?,
            x: upload(&stream, &if is_product { bits_of(other) } else { Vec::new() })?,
            y: upload(&stream, &vec![f32::NAN; y])?,
            other: upload(&stream, if is_product { &[] } else { other })?,
            gated: upload(
                &stream,
                &if *op == Op::SwiGlu { other.iter().map(|&x| narrow(x)).collect() } else { Vec::new() },
            )?,
            packed: [upload(&stream, &packed[0])?, upload(&stream, &packed[1])?],
            norms: match norms {
                Some(norms) if !is_mxfp4 => Some(upload(&stream, norms)?),
                _ => None,
            },
            sums: None,
            copies: vec![one],
            problem: problem.clone(),
            kernels,
        };
        if let Op::Matvec { compressed: true, .. } = op {
            let Buffers { bits, values, index, .. } = &mut gpu.copies[0];
            let matrix = Matrix { values: &bits.as_view(), rows, cols };
            gpu.kernels.compress24(matrix, values, index, &mut gpu.bad)?;
        }
        for _ in 1..copies {
            let Buffers { weights, bits, masks, made, values, index } = &gpu.copies[0];
            let copy = Buffers {
                weights: stream.clone_dtod(weights).w()?,
                bits: stream.clone_dtod(bits).w()?,
                masks: stream.clone_dtod(masks).w()?,
                made: stream.clone_dtod(made).w()?,
                values: stream.clone_dtod(values).w()?,
                index: stream.clone_dtod(index).w()?,
            };
            gpu.copies.push(copy);
        }
        Ok(gpu)
    }
}

impl<T: Element + Copy + Into<f32>> Prepared for OnGpu<T> {
    fn run(&mut self) -> Result<()> {
        let OnGpu { kernels, problem, copies, norms, ks, bad, x, y, other, gated, packed, sums } = self;
        let (rows, cols, norms) = (problem.rows, problem.cols, norms.as_ref());
        for Buffers { weights, bits, masks, made, values, index } in copies {
            let view = weights.as_view();
            let matrix = Matrix { values: &view, rows, cols };
            match &problem.op {
                Op::Copy => kernels.stream().memcpy_dtod(weights, made).w()?,
                Op::Rows(_) => kernels.select_rows(matrix, norms, ks, masks, bad)?,
                Op::Layer(k) => kernels.select_layer(matrix, norms, *k, &mut masks.as_view_mut(), bad)?,
                Op::NofM(n, m) => kernels.select_nofm(matrix, norms, (*n, *m), masks, bad)?,
                Op::Apply => kernels.apply_mask(&mut weights.as_view_mut(), (rows, cols), masks)?,
                Op::Sums => *sums = Some(kernels.column_sums(matrix, false)?.0),
                Op::Gram => *y = kernels.gram(matrix)?,
                Op::SparseGpt => {
                    // SAFETY: problems of this kind have weights in f32.
                    let mut view = weights.as_view_mut();
                    let Some(mut view) = (unsafe { view.transmute_mut::<f32>(rows * cols) }) else {
                        return Err(Error::argument("dtype", problem.dtype.as_str(), "SparseGPT computes in f32"));
                    };
                    drop(kernels.sparsegpt_block(&mut view, (rows, cols), other, None, masks)?);
                }
                Op::Compress24 => {
                    let matrix = Matrix { values: &bits.as_view(), rows, cols };
                    kernels.compress24(matrix, values, index, bad)?;
                }
                Op::Matvec { compressed: true, .. } => kernels.matvec((values, Some(index)), (rows, cols), x, y)?,
                Op::Matvec { .. } => kernels.matvec((bits, None), (rows, cols), x, y)?,
                Op::Matmul { .. } => {} // is `Matmul`'s
                &Op::Softmax { queries, window } => {
                    let (past, window, scale) = (cols - queries, window.unwrap_or(0), SOFTMAX_SCALE);
                    let seen = Seen { queries, past, window, scale };
                    let sinks = (!problem.other.is_empty()).then(|| other.as_view());
                    *made = kernels.causal_softmax(matrix, seen, sinks.as_ref())?;
                }
                &Op::Rope { seq, first } => {
                    let (cos, sin) = other.split_at(other.len() / 2);
                    *made = kernels.rope(matrix, [&cos, &sin], (seq, first))?;
                }
                Op::SwiGlu => *made = kernels.swiglu(&view, &gated.as_view())?,
                Op::Mxfp4 => *made = kernels.mxfp4::<T>(&packed[0].as_view(), &packed[1].as_view())?,
            }
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<()> {
        if matches!(self.problem.op, Op::Apply | Op::SparseGpt) {
            for Buffers { weights, made, .. } in &mut self.copies {
                self.kernels.stream().memcpy_dtod(made, weights).w()?;
            }
        }
        Ok(())
    }

    fn output(&mut self) -> Result<Output> {
        let stream = self.kernels.stream().clone();
        let wait = || stream.synchronize().w();
        let bad = stream.clone_dtoh(&self.bad).w()?;
        wait()?;
        if bad[0] != u64::MAX {
            return Ok(Output::Bad(bad[0]));
        }
        let Problem { op, rows, cols, .. } = &self.problem;
        let last = self.copies.len() - 1;
        let Buffers { weights, masks, made, values, index, .. } = &self.copies[last];
        let wide = |slice: &CudaSlice<T>| -> Result<Output> {
            let values = stream.clone_dtoh(slice).w()?;
            wait()?;
            Ok(Output::F32(values.into_iter().map(Into::into).collect()))
        };
        match op {
            Op::Rows(_) | Op::Layer(_) | Op::NofM(..) => {
                let words = stream.clone_dtoh(masks).w()?;
                wait()?;
                let size = (rows * cols.div_ceil(64)).max(1);
                let masks = words.chunks(size).map(|words| Mask::from_words(*rows, *cols, words.to_vec()));
                Ok(Output::Masks(masks.collect::<Result<_>>()?))
            }
            Op::Copy | Op::Mxfp4 | Op::Softmax { .. } | Op::Rope { .. } | Op::SwiGlu => wide(made),
            Op::Apply | Op::SparseGpt => wide(weights),
            Op::Sums => {
                let Some(sums) = &self.sums else { return Err(Error::argument("output", "none", "nothing was run")) };
                let sums = stream.clone_dtoh(sums).w()?;
                wait()?;
                Ok(Output::F64(sums))
            }
            Op::Compress24 => {
                let (values, index) = (stream.clone_dtoh(values).w()?, stream.clone_dtoh(index).w()?);
                wait()?;
                Ok(Output::Compressed(values, index))
            }
            Op::Matvec { .. } | Op::Matmul { .. } | Op::Gram => {
                let y = stream.clone_dtoh(&self.y).w()?;
                wait()?;
                Ok(Output::F32(y))
            }
        }
    }
}
