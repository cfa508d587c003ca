//! Products on tensor cores: dense by cuBLAS, 2:4 by cuSPARSELt.

use super::Prepared;
use super::problem::{Output, Problem};
use super::sparselt::{Compressed, Library, Product};
use crate::cuda::Kernels;
use crate::error::{Error, Result};
use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::cublas::{result::gemm_ex, sys};
use candle_core::cuda::cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};
use half::bf16;
use std::sync::Arc;

/// `y (batch, rows)` of `x (batch, cols)` and copies of weights `(rows, cols)`, all in bf16.
pub(super) struct Matmul {
    kernels: Arc<Kernels>,
    weights: Weights,
    x: CudaSlice<u16>,
    y: CudaSlice<u16>,
    /// Rows, columns, batch.
    shape: [i32; 3],
}

enum Weights {
    Dense(Vec<CudaSlice<u16>>),
    Sparse(Box<Product>, Vec<Compressed>),
}

impl Matmul {
    /// With `library`, the 2:4 product.
    pub(super) fn new(
        kernels: Arc<Kernels>,
        problem: &Problem,
        batch: usize,
        library: Option<Library>,
        copies: usize,
    ) -> Result<Matmul> {
        let Problem { rows, cols, weights, other, .. } = problem;
        let stream = kernels.stream().clone();
        let upload = |values: &[f32]| {
            let bits: Vec<u16> = values.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
            stream.clone_htod(&bits).w()
        };
        let size = |size: usize| i32::try_from(size).map_err(|e| Error::argument("size", size, e));
        let shape = [size(*rows)?, size(*cols)?, size(batch)?];
        let (dense, x) = (upload(weights)?, upload(other)?);
        // What is not written must show.
        let y = upload(&vec![f32::NAN; batch * rows])?;
        let weights = match library {
            None => Weights::Dense((0..copies).map(|_| stream.clone_dtod(&dense)).collect::<Result<_, _>>().w()?),
            Some(library) => {
                let mut product = Product::new(library, &stream, (*rows, *cols, batch))?;
                let compressed = (0..copies).map(|_| product.compress(&dense)).collect::<Result<Vec<_>>>()?;
                let mut scratch = stream.clone_dtod(&y).w()?;
                if let Some(weights) = compressed.first() {
                    product.search(weights, &x, &mut scratch)?;
                }
                Weights::Sparse(Box::new(product), compressed)
            }
        };
        Ok(Matmul { kernels, weights, x, y, shape })
    }

    /// `y = x W^T`, with sums in f32.
    fn dense(&mut self) -> Result<()> {
        let Matmul { kernels, weights: Weights::Dense(copies), x, y, shape: [rows, cols, batch] } = self else {
            return Ok(());
        };
        let (stream, blas, one, zero) = (kernels.stream(), kernels.device().cublas_handle(), 1f32, 0f32);
        let ((x, _x), (y, _y)) = (x.device_ptr(stream), y.device_ptr_mut(stream));
        for weights in copies {
            let (weights, _weights) = weights.device_ptr(stream);
            let bf16 = sys::cudaDataType_t::CUDA_R_16BF;
            // By columns it is y^T = W x^T, where W is the transpose of what lies there.
            // SAFETY: the pointers are of matrices of these sizes, on the stream's device.
            unsafe {
                gemm_ex(
                    *blas.handle(),
                    sys::cublasOperation_t::CUBLAS_OP_T,
                    sys::cublasOperation_t::CUBLAS_OP_N,
                    *rows,
                    *batch,
                    *cols,
                    (&raw const one).cast(),
                    weights as *const _,
                    bf16,
                    *cols,
                    x as *const _,
                    bf16,
                    *cols,
                    (&raw const zero).cast(),
                    y as *mut _,
                    bf16,
                    *rows,
                    sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                    sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
                )
            }
            .w()?;
        }
        Ok(())
    }
}

impl Prepared for Matmul {
    fn run(&mut self) -> Result<()> {
        let Matmul { weights: Weights::Sparse(product, copies), x, y, .. } = self else { return self.dense() };
        copies.iter().try_for_each(|weights| product.run(weights, x, y))
    }

    fn output(&mut self) -> Result<Output> {
        let stream = self.kernels.stream();
        let bits = stream.clone_dtoh(&self.y).w()?;
        stream.synchronize().w()?;
        Ok(Output::F32(bits.into_iter().map(|bits| bf16::from_bits(bits).to_f32()).collect()))
    }
}
