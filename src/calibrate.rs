//! Statistics of what enters each linear, gathered by a tap while calibration windows pass through.

use crate::Result;
use crate::model::{Linear, Model, Tap, Wanted, pass};
use crate::progress::Progress;
use crate::text::Windows;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Column statistics of each linear's input, by the weight's name.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// Sums over all tokens of the squared input, `(in,)`.
    sums: BTreeMap<String, Vec<f64>>,
    /// Windows that pass.
    windows: usize,
}

impl Statistics {
    /// `||X_j||_2` as Wanda's reference code defines it: the square root of the mean over windows of each window's squared
    /// column norm, `(in,)`. `None` for a linear that saw nothing (an expert that was never chosen sees zeros instead).
    pub fn column_norms(&self, linear: &str) -> Option<Vec<f32>> {
        let windows = self.windows.max(1) as f64;
        let sums = self.sums.get(linear)?;
        // The reference keeps the mean in f32 and takes the root of that.
        Some(sums.iter().map(|sum| ((sum / windows) as f32).sqrt()).collect())
    }

    /// Empty statistics for `windows` windows to come.
    pub(crate) fn new(windows: usize) -> Self {
        Statistics { sums: BTreeMap::new(), windows }
    }

    /// Adds the sums of one window.
    pub(crate) fn add(&mut self, window: WindowSquares) {
        for (name, squares) in window.0 {
            match self.sums.get_mut(&name) {
                Some(sums) => sums.iter_mut().zip(&squares).for_each(|(sum, square)| *sum += square),
                None => drop(self.sums.insert(name, squares)),
            }
        }
    }

    /// Declares linears, so that those which no token reaches have norms of zero.
    pub(crate) fn expect(&mut self, linears: &[&Linear]) -> Result<()> {
        for linear in linears {
            let (_, input) = linear.weight.dims2()?;
            self.sums.entry(linear.name.clone()).or_insert_with(|| vec![0.0; input]);
        }
        Ok(())
    }
}

/// Statistics of every prunable linear of the dense model, from one forward pass that holds one block at a time.
///
/// # Errors
/// [`crate::Error::Argument`] for ids outside the vocabulary, [`crate::Error::Interrupted`], or what reading a block fails
/// with.
pub fn calibrate(model: &Model, windows: &Windows, progress: Progress) -> Result<Statistics> {
    let mut hidden = model.embed(&windows.ids)?; // (1, seqlen, hidden) each
    let rope = model.rope(windows.seqlen);
    let stage = progress.stage("calibrate", (model.blocks() * hidden.len()) as u64);
    let mut statistics = Statistics::new(windows.ids.len());
    for i in 0..model.blocks() {
        let block = model.block(i)?;
        statistics.expect(&block.linears())?;
        let wanted = if i + 1 == model.blocks() { Wanted::Taps } else { Wanted::Output };
        pass(model, &block, &rope, &mut hidden, wanted, &stage, |window| statistics.add(window))?;
    }
    Ok(statistics)
}

/// Sums of squares of the columns of `x (tokens, in)`, in f64 and in a fixed order on any number of threads.
fn column_squares(x: &Tensor) -> Result<Vec<f64>> {
    let dims = x.dims();
    let width = dims[dims.len() - 1];
    let rows: usize = dims[..dims.len() - 1].iter().product();
    if !x.device().is_cpu() {
        let sums = x.reshape((rows, width))?.to_dtype(DType::F32)?.sqr()?.sum(0)?;
        return Ok(sums.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec1()?);
    }
    let values = x.flatten_all()?.to_dtype(DType::F32)?;
    let (storage, layout) = values.storage_and_layout();
    let candle_core::Storage::Cpu(storage) = &*storage else {
        return Err(candle_core::Error::Msg("a CPU tensor without CPU storage".into()).into());
    };
    let values = &storage.as_slice::<f32>()?[layout.start_offset()..layout.start_offset() + rows * width];
    const ROWS: usize = 64;
    let partial: Vec<Vec<f32>> = values
        .par_chunks(ROWS * width)
        .map(|rows| {
            let mut sums = vec![0f32; width];
            for row in rows.chunks_exact(width) {
                for (sum, x) in sums.iter_mut().zip(row) {
                    *sum += x * x;
                }
            }
            sums
        })
        .collect();
    let mut sums = vec![0f64; width];
    for partial in partial {
        sums.iter_mut().zip(partial).for_each(|(sum, part)| *sum += f64::from(part));
    }
    Ok(sums)
}

/// The squared column norms of one window, by the weight's name.
#[derive(Debug, Default)]
pub(crate) struct WindowSquares(Vec<(String, Vec<f64>)>);

impl Tap for WindowSquares {
    fn input(&mut self, linears: &[&Linear], x: &Tensor) -> Result<()> {
        let squares = column_squares(x)?;
        self.0.extend(linears.iter().map(|linear| (linear.name.clone(), squares.clone())));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_are_root_mean_over_windows() {
        let weight = Tensor::zeros((1, 3), DType::F32, &Device::Cpu).unwrap();
        let linear = Linear { name: "w".into(), weight, bias: None };
        let mut statistics = Statistics::new(2);
        for window in [[[1f32, 2.0, 0.0], [3.0, 0.0, 0.0]], [[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]] {
            let mut tap = WindowSquares::default();
            tap.input(&[&linear], &Tensor::new(&[window], &Device::Cpu).unwrap()).unwrap();
            statistics.add(tap);
        }
        assert_eq!(statistics.column_norms("w").unwrap(), [5f32.sqrt(), 2.0, 0.0]);
        assert_eq!(statistics.column_norms("v"), None);
    }
}
