//! The kernels' reference implementations, on the CPU.

use super::problem::{Op, Output, Problem, SOFTMAX_SCALE};
use super::twin;
use super::{Engine, Prepared};
use crate::calibrate::gram;
use crate::error::{Error, Result};
use crate::mask::{Mask, Pattern};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use std::time::Instant;

/// More would take minutes, and tell nothing about a GPU.
const MOST_TOKENS: usize = 512;

pub(super) struct Cpu;

impl Engine for Cpu {
    fn name(&self) -> String {
        format!("CPU, {} threads", rayon::current_num_threads())
    }

    fn prepare(&self, problem: &Problem, copies: usize) -> Result<Box<dyn Prepared>> {
        let stored = match problem.dtype {
            DType::BF16 => Stored::Bf16(problem.weights.iter().map(|&w| bf16::from_f32(w)).collect()),
            DType::F16 => Stored::F16(problem.weights.iter().map(|&w| f16::from_f32(w)).collect()),
            _ => Stored::F32(problem.weights.clone()),
        };
        let bytes = |values: &[f32]| values.iter().map(|&x| x as u8).collect::<Vec<u8>>();
        let packed = match problem.op {
            Op::Mxfp4 => (bytes(&problem.weights), bytes(problem.norms.as_deref().unwrap_or_default())),
            _ => Default::default(),
        };
        let bits = |values: &[f32]| values.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
        let compressed = match problem.op {
            Op::Matvec { compressed: true, .. } | Op::Matmul { compressed: true, .. } => {
                let bits: Vec<u16> = bits(&problem.weights).iter().map(|x| x.to_bits()).collect();
                let (values, index) = twin::compress24(&bits, None, problem.cols).map_err(not_two_of_four)?;
                (values.into_iter().map(bf16::from_bits).collect(), index)
            }
            _ => Default::default(),
        };
        let x = bits(&problem.other);
        Ok(Box::new(OnCpu { problem: problem.clone(), copies, stored, packed, compressed, x, output: None }))
    }

    fn lacks(&self, op: &Op) -> Option<(&'static str, String)> {
        let many = matches!(op, Op::Matmul { batch, .. } if *batch > MOST_TOKENS);
        many.then(|| ("matmul", format!("the CPU multiplies {MOST_TOKENS} tokens at most here")))
    }

    fn seconds(&self, work: &mut dyn Prepared) -> Result<f64> {
        let started = Instant::now();
        work.run()?;
        Ok(started.elapsed().as_secs_f64())
    }
}

fn not_two_of_four(group: u64) -> Error {
    Error::argument("group", group, "keeps more than two of four")
}

/// Weights as a checkpoint holds them.
#[derive(Clone)]
enum Stored {
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
    F32(Vec<f32>),
}

impl Stored {
    /// The values in f32, which the CPU computes with; made anew each time, as the layer loop does.
    fn widened(&self) -> Vec<f32> {
        match self {
            Stored::Bf16(values) => values.iter().map(|w| w.to_f32()).collect(),
            Stored::F16(values) => values.iter().map(|w| w.to_f32()).collect(),
            Stored::F32(values) => values.clone(),
        }
    }
}

struct OnCpu {
    problem: Problem,
    /// Times that a run computes: the inputs are the same each time, as no host need hold a model's worth of them.
    copies: usize,
    stored: Stored,
    /// Blocks and scales of MXFP4.
    packed: (Vec<u8>, Vec<u8>),
    compressed: (Vec<bf16>, Vec<u8>),
    x: Vec<bf16>,
    output: Option<Output>,
}

impl OnCpu {
    /// The compressed weights with their zeros, of an even number of groups a row.
    fn expanded(&self) -> Vec<f32> {
        let (values, index) = &self.compressed;
        let mut weights = vec![0.0; 2 * values.len()];
        for (group, (to, pair)) in weights.as_chunks_mut::<4>().0.iter_mut().zip(values.as_chunks::<2>().0).enumerate()
        {
            let nibble = index[group / 2] >> (group % 2 * 4);
            to[usize::from(nibble & 3)] = pair[0].to_f32();
            to[usize::from(nibble >> 2 & 3)] = pair[1].to_f32();
        }
        weights
    }

    fn compute(&self) -> Result<Output> {
        let Problem { op, rows, cols, norms, other, mask, .. } = &self.problem;
        let (norms, cols) = (norms.as_deref(), *cols);
        let selected = |select: &dyn Fn(&[f32]) -> Result<Vec<Mask>>| {
            let weights = self.stored.widened();
            match select(&weights) {
                Ok(masks) => Ok(Output::Masks(masks)),
                Err(error) => twin::first_bad(&weights, norms, cols)?.map(Output::Bad).ok_or(error),
            }
        };
        let masked = || mask.clone().unwrap_or_else(|| Mask::none(*rows, cols));
        Ok(match op {
            Op::Copy => {
                drop(std::hint::black_box(self.stored.clone()));
                Output::F32(Vec::new())
            }
            Op::Rows(ks) => selected(&|weights| twin::select_rows(weights, norms, cols, ks))?,
            Op::Layer(k) => selected(&|weights| Ok(vec![twin::select_layer(weights, norms, cols, *k as u64)?]))?,
            Op::NofM(n, m) => selected(&|weights| Ok(vec![twin::select_nofm(weights, norms, cols, *n, *m)?]))?,
            Op::Apply => {
                let mut weights = self.stored.widened();
                twin::apply_mask(&mut weights, &masked());
                Output::F32(weights)
            }
            Op::Sums => Output::F64(twin::column_sums(&self.stored.widened(), cols).0),
            Op::Gram => Output::F32(gram(&self.stored.widened(), *rows, cols)),
            Op::SparseGpt => {
                let (mut weights, mut mask) = (self.stored.widened(), masked());
                twin::sparsegpt_block(&mut weights, 0, other, Pattern::Unstructured, &mut mask);
                Output::F32(weights)
            }
            Op::Compress24 => {
                let Stored::Bf16(weights) = &self.stored else { return Err(not_two_of_four(0)) };
                let bits: Vec<u16> = weights.iter().map(|w| w.to_bits()).collect();
                let (values, index) = twin::compress24(&bits, None, cols).map_err(not_two_of_four)?;
                Output::Compressed(values, index)
            }
            Op::Matvec { compressed: false, .. } => {
                let Stored::Bf16(weights) = &self.stored else { return Err(not_two_of_four(0)) };
                Output::F32(twin::matvec(weights, &self.x, cols))
            }
            Op::Matvec { compressed: true, .. } => {
                let (values, index) = &self.compressed;
                Output::F32(twin::matvec24(values, index, &self.x, cols))
            }
            Op::Matmul { batch, compressed } => {
                let weights = if *compressed { self.expanded() } else { self.stored.widened() };
                let weights = Tensor::from_vec(weights, (*rows, cols), &Device::Cpu)?;
                let y = Tensor::from_slice(other, (*batch, cols), &Device::Cpu)?.matmul(&weights.t()?)?; // (batch, rows)
                Output::F32(y.flatten_all()?.to_dtype(DType::BF16)?.to_dtype(DType::F32)?.to_vec1()?)
            }
            &Op::Softmax { queries, window } => {
                let (scores, sinks) = (self.stored.widened(), (!other.is_empty()).then_some(other.as_slice()));
                let seen = (queries, cols - queries, window);
                Output::F32(twin::causal_softmax(&scores, cols, seen, SOFTMAX_SCALE, sinks))
            }
            &Op::Rope { seq, first } => {
                let tables = other.split_at(other.len() / 2);
                Output::F32(twin::rope(&self.stored.widened(), tables, (seq, cols, first)))
            }
            Op::SwiGlu => Output::F32(twin::swiglu(&self.stored.widened(), other)),
            Op::Mxfp4 => Output::F32(twin::mxfp4_dequantise(&self.packed.0, &self.packed.1)),
        })
    }
}

impl Prepared for OnCpu {
    fn run(&mut self) -> Result<()> {
        for _ in 0..self.copies {
            self.output = Some(self.compute()?);
        }
        Ok(())
    }

    fn output(&mut self) -> Result<Output> {
        self.output.take().ok_or_else(|| Error::argument("output", "none", "nothing was run"))
    }
}
