//! Statistics of what enters each linear, gathered by a tap while calibration windows pass through.

mod file;
#[cfg(feature = "cuda")]
mod gpu;

pub(crate) use file::SavedStatistics;

use crate::device;
use crate::error::{Error, Result};
use crate::model::{DecoderLayer, ForwardPass, Linear, Model, Tap, Wanted};
use crate::progress::Progress;
use crate::text::Windows;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

/// Statistics that a pass gathers besides the squared column norms, which cost next to nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gather {
    /// Sums of the columns, for [`Statistics::column_sums`] and [`Statistics::column_variances`].
    pub sums: bool,
    /// Gram matrices, for [`Statistics::gram`]: `(in, in)` in f32 for each distinct input of a layer.
    pub gram: bool,
}

/// Statistics of each linear's input, by the weight's name. Linears that share an input share its statistics.
#[derive(Clone, Default, PartialEq)]
pub struct Statistics {
    inputs: BTreeMap<String, Arc<Input>>,
    /// Windows that pass.
    windows: usize,
}

crate::debug::one_line!(rich Statistics, |statistics| {
    format!("Statistics({} linears, {} windows)", statistics.inputs.len(), statistics.windows)
});

/// Sums over the tokens that entered a linear.
#[derive(Clone, Debug, Default, PartialEq)]
struct Input {
    tokens: u64,
    /// Sums of the squares, `(in,)`.
    squares: Vec<f64>,
    /// Sums of the values, `(in,)`; empty unless gathered.
    sums: Vec<f64>,
    /// Sums of the squared differences from the mean over the window, `(in,)` (the M2 of Welford's method); gathered
    /// with the sums.
    deviations: Vec<f64>,
    /// `X^T X`, `(in, in)`; empty unless gathered.
    gram: Vec<f32>,
}

/// Sums over the rows of an activation `(tokens, in)`, on its device: nothing has waited for them.
#[derive(Clone, Debug)]
struct ColumnSums {
    /// Sums of the squares of each column, `(in,)` in f64.
    squares: Tensor,
    /// Sums of the values of each column, `(in,)` in f64, if gathered.
    sums: Option<Tensor>,
    /// `X^T X`, `(in, in)` in f32, if gathered.
    gram: Option<Tensor>,
}

impl Input {
    fn none(width: usize, gather: Gather) -> Self {
        Input {
            tokens: 0,
            squares: vec![0.0; width],
            sums: vec![0.0; if gather.sums { width } else { 0 }],
            deviations: vec![0.0; if gather.sums { width } else { 0 }],
            gram: vec![0.0; if gather.gram { width * width } else { 0 }],
        }
    }

    /// The deviations of one window, from its sums.
    fn deviate(&mut self) {
        let tokens = self.tokens.max(1) as f64;
        let deviation = |(squares, sum): (&f64, &f64)| (squares - sum * sum / tokens).max(0.0);
        self.deviations = self.squares.iter().zip(&self.sums).map(deviation).collect();
    }

    fn add(&mut self, other: &Input) {
        self.tokens += other.tokens;
        self.squares.iter_mut().zip(&other.squares).for_each(|(sum, x)| *sum += x);
        self.sums.iter_mut().zip(&other.sums).for_each(|(sum, x)| *sum += x);
        self.deviations.iter_mut().zip(&other.deviations).for_each(|(sum, x)| *sum += x);
        self.gram.par_iter_mut().zip(&other.gram).with_min_len(1 << 14).for_each(|(sum, x)| *sum += x);
    }
}

impl Statistics {
    /// The linears that have statistics, by the names of their weights.
    pub fn linears(&self) -> impl Iterator<Item = &str> {
        self.inputs.keys().map(String::as_str)
    }

    /// Number of windows that passed.
    pub fn windows(&self) -> usize {
        self.windows
    }

    /// Returns whether sums of the columns were gathered for `linear`.
    pub fn has_sums(&self, linear: &str) -> bool {
        self.inputs.get(linear).is_some_and(|input| !input.sums.is_empty())
    }

    /// Returns whether the gram matrix of `linear` was gathered.
    pub fn has_gram(&self, linear: &str) -> bool {
        self.inputs.get(linear).is_some_and(|input| !input.gram.is_empty())
    }

    /// `||X_j||_2` as Wanda's reference code defines it: the square root of the mean over windows of each window's squared
    /// column norm, `(in,)`. `None` for a linear that saw nothing (an expert that was never chosen sees zeros instead).
    pub fn column_norms(&self, linear: &str) -> Option<Vec<f32>> {
        let windows = self.windows.max(1) as f64;
        let input = self.inputs.get(linear)?;
        // The reference keeps the mean in f32 and takes the root of that.
        Some(input.squares.iter().map(|sum| ((sum / windows) as f32).sqrt()).collect())
    }

    /// Sum of each column over the tokens of a window, averaged over windows, `(in,)`, if sums were gathered.
    pub fn column_sums(&self, linear: &str) -> Option<Vec<f32>> {
        let input = self.inputs.get(linear).filter(|input| !input.sums.is_empty())?;
        let windows = self.windows.max(1) as f64;
        Some(input.sums.iter().map(|sum| (sum / windows) as f32).collect())
    }

    /// Variance of each column over the tokens of a window (biased), averaged over tokens, `(in,)`, if sums were gathered: how
    /// far the means of windows are apart does not count, as in DSnoT's reference code.
    pub fn column_variances(&self, linear: &str) -> Option<Vec<f32>> {
        let input = self.inputs.get(linear).filter(|input| !input.deviations.is_empty())?;
        let tokens = input.tokens.max(1) as f64;
        Some(input.deviations.iter().map(|sum| (sum / tokens) as f32).collect())
    }

    /// `H = 2 / windows * X^T X`, `(in, in)` row-major, as SparseGPT's reference code scales it, if it was gathered.
    pub fn gram(&self, linear: &str) -> Option<Vec<f32>> {
        let input = self.inputs.get(linear).filter(|input| !input.gram.is_empty())?;
        let scale = 2.0 / self.windows.max(1) as f32;
        Some(input.gram.iter().map(|x| x * scale).collect())
    }

    /// Returns whether two linears share one input, so that anything derived from it need be computed only once.
    pub fn same_input(&self, linear: &str, other: &str) -> bool {
        match (self.inputs.get(linear), self.inputs.get(other)) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// Empty statistics for `windows` windows to come.
    pub(crate) fn new(windows: usize) -> Self {
        Statistics { inputs: BTreeMap::new(), windows }
    }

    /// Passes windows through a layer, and gathers what enters its linears; those which no token reaches have statistics of
    /// zeros.
    pub(crate) fn of_layer(
        pass: &ForwardPass<'_>,
        layer: &DecoderLayer,
        hidden: &mut [Tensor],
        wanted: Wanted,
        gather: Gather,
    ) -> Result<Statistics> {
        let mut sums = Sums::default();
        pass.through(layer, hidden, wanted, || InputTap::new(gather), |tap| sums.add(tap))?;
        sums.into_statistics(hidden.len(), &layer.linears(), gather)
    }
}

/// Sums over the inputs that taps have seen, by the names of the linears that share an input. After a failure to add on
/// a device, the error stands in the place of the sum.
#[derive(Debug, Default)]
struct Sums(BTreeMap<Vec<String>, Result<InputSums>>);

impl Sums {
    /// Adds what a tap saw of one window.
    fn add(&mut self, tap: InputTap) {
        for (names, seen) in tap.seen {
            match self.0.entry(names) {
                Entry::Vacant(entry) => drop(entry.insert(Ok(seen))),
                Entry::Occupied(mut entry) => {
                    if let Ok(sums) = entry.get_mut()
                        && let Err(error) = sums.add(seen)
                    {
                        drop(entry.insert(Err(error)));
                    }
                }
            }
        }
    }

    /// The statistics of `linears`, of zeros for those that no tap saw.
    fn into_statistics(self, windows: usize, linears: &[&Linear], gather: Gather) -> Result<Statistics> {
        let mut statistics = Statistics::new(windows);
        for (names, seen) in self.0 {
            let input = Arc::new(seen?.into_input()?);
            statistics.inputs.extend(names.into_iter().map(|name| (name, input.clone())));
        }
        for linear in linears {
            if !statistics.inputs.contains_key(&linear.name) {
                let (_, width) = linear.weight.dims2()?;
                statistics.inputs.insert(linear.name.clone(), Arc::new(Input::none(width, gather)));
            }
        }
        Ok(statistics)
    }
}

/// Sums where the activations are.
#[derive(Debug)]
enum InputSums {
    Host(Input),
    /// Asking a device for its sums would wait until it has them.
    Device(OnDevice),
}

#[derive(Debug)]
struct OnDevice {
    tokens: u64,
    sums: ColumnSums,
    /// As [`Input::deviations`]; gathered with the sums.
    deviations: Option<Tensor>,
}

impl InputSums {
    fn add(&mut self, other: InputSums) -> Result<()> {
        match (self, other) {
            (InputSums::Host(sums), other) => sums.add(&other.into_input()?),
            (InputSums::Device(sums), InputSums::Device(other)) => {
                let add = |sum: &Option<Tensor>, x: &Option<Tensor>| match (sum, x) {
                    (Some(sum), Some(x)) => (sum + x).map(Some),
                    _ => Ok(None),
                };
                sums.tokens += other.tokens;
                sums.sums.squares = (&sums.sums.squares + &other.sums.squares)?;
                sums.sums.sums = add(&sums.sums.sums, &other.sums.sums)?;
                sums.sums.gram = add(&sums.sums.gram, &other.sums.gram)?;
                sums.deviations = add(&sums.deviations, &other.deviations)?;
            }
            (seen, other) => {
                // An input of a few tokens may have gone the other way.
                let mut sums = std::mem::replace(seen, InputSums::Host(Input::default())).into_input()?;
                sums.add(&other.into_input()?);
                *seen = InputSums::Host(sums);
            }
        }
        Ok(())
    }

    fn into_input(self) -> Result<Input> {
        let OnDevice { tokens, sums, deviations } = match self {
            InputSums::Host(input) => return Ok(input),
            InputSums::Device(sums) => sums,
        };
        let column = |x: Option<Tensor>| -> Result<Vec<f64>> { Ok(x.map_or(Ok(Vec::new()), |x| x.to_vec1())?) };
        Ok(Input {
            tokens,
            squares: column(Some(sums.squares))?,
            sums: column(sums.sums)?,
            deviations: column(deviations)?,
            gram: sums.gram.map_or(Ok(Vec::new()), |gram| device::to_host(&gram)?.flatten_all()?.to_vec1())?,
        })
    }
}

/// Column norms of every prunable linear of the dense model, from one forward pass that holds one layer at a time.
///
/// # Errors
/// [`crate::error::Error::Argument`] for ids outside the vocabulary, [`crate::error::Error::Interrupted`], or what reading a layer fails
/// with.
pub fn calibrate(model: &Model, windows: &Windows, progress: Progress) -> Result<Statistics> {
    calibrate_with(model, windows, Gather::default(), progress)
}

/// As [`calibrate`], with more than column norms if `gather` says so. Grams of all layers are much to hold at a time.
pub(crate) fn calibrate_with(
    model: &Model,
    windows: &Windows,
    gather: Gather,
    progress: Progress,
) -> Result<Statistics> {
    let mut all = Statistics::new(windows.ids.len());
    calibrate_each(model, windows, gather, progress, |_, layer| {
        all.inputs.extend(layer.inputs);
        Ok(())
    })?;
    Ok(all)
}

/// As [`calibrate_with`], layer by layer: `each` gets a layer's number and the statistics of its linears.
pub(crate) fn calibrate_each(
    model: &Model,
    windows: &Windows,
    gather: Gather,
    progress: Progress,
    mut each: impl FnMut(usize, Statistics) -> Result<()>,
) -> Result<()> {
    let mut hidden = model.embed_for_pass(&windows.ids)?; // (1, seqlen, hidden) each
    let rope = model.rope(windows.seqlen);
    let stage = progress.stage("calibrate", (model.layers() * hidden.len()) as u64);
    let pass = ForwardPass { model, rope: &rope, stage: &stage };
    model.each_layer(|i, layer| {
        let wanted = if i + 1 == model.layers() { Wanted::Taps } else { Wanted::Output };
        each(i, Statistics::of_layer(&pass, &layer, &mut hidden, wanted, gather)?)
    })
}

/// A tap (hook) that sums the inputs of each linear over one window.
#[derive(Debug)]
pub(crate) struct InputTap {
    gather: Gather,
    /// The linears that share an input, and its sums.
    seen: Vec<(Vec<String>, InputSums)>,
}

impl InputTap {
    pub(crate) fn new(gather: Gather) -> Self {
        InputTap { gather, seen: Vec::new() }
    }
}

impl Tap for InputTap {
    fn input(&mut self, linears: &[&Linear], x: &Tensor) -> Result<()> {
        let names = linears.iter().map(|linear| linear.name.clone()).collect();
        self.seen.push((names, sums(x, self.gather)?));
        Ok(())
    }
}

/// The sums of `x (.., in)`.
fn sums(x: &Tensor, gather: Gather) -> Result<InputSums> {
    let dims = x.dims();
    let width = dims[dims.len() - 1];
    let rows: usize = dims[..dims.len() - 1].iter().product();
    let (x, tokens) = (x.reshape((rows, width))?.contiguous()?, rows as u64);
    if let Some(sums) = sums_on_device(&x, gather)? {
        return Ok(InputSums::Device(OnDevice { tokens, deviations: deviations(&sums, tokens)?, sums }));
    }
    let x = x.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
    let (storage, layout) = x.storage_and_layout();
    let candle_core::Storage::Cpu(storage) = &*storage else {
        return Err(Error::internal("calibrating", "a CPU tensor without CPU storage"));
    };
    let values = &storage.as_slice::<f32>()?[layout.start_offset()..layout.start_offset() + rows * width];
    let mut input = Input { tokens, squares: column_sums(values, width, |x| x * x), ..Input::default() };
    if gather.sums {
        input.sums = column_sums(values, width, |x| x);
        input.deviate();
    }
    if gather.gram {
        input.gram = gram(values, rows, width);
    }
    Ok(InputSums::Host(input))
}

/// The sums of `x (tokens, in)`, without gaps, if it is on a device with kernels for them.
fn sums_on_device(x: &Tensor, gather: Gather) -> Result<Option<ColumnSums>> {
    match x.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => gpu::column_sums(x, gather),
        _ => {
            let _ = gather;
            Ok(None)
        }
    }
}

/// The deviations of one window, as [`Input::deviate`] has them.
fn deviations(sums: &ColumnSums, tokens: u64) -> Result<Option<Tensor>> {
    let Some(values) = &sums.sums else { return Ok(None) };
    let squared_mean = (values.sqr()? / tokens.max(1) as f64)?;
    Ok(Some((&sums.squares - squared_mean)?.maximum(0.0)?))
}

/// Sums of `f(x)` over each column of `values (rows, width)`, in f64 and in a fixed order on any number of threads.
pub(crate) fn column_sums(values: &[f32], width: usize, f: impl Fn(f32) -> f32 + Sync) -> Vec<f64> {
    const ROWS: usize = 64;
    let partial: Vec<Vec<f32>> = values
        .par_chunks(ROWS * width)
        .map(|rows| {
            let mut sums = vec![0f32; width];
            for row in rows.chunks_exact(width) {
                for (sum, &x) in sums.iter_mut().zip(row) {
                    *sum += f(x);
                }
            }
            sums
        })
        .collect();
    let mut sums = vec![0f64; width];
    for partial in partial {
        sums.iter_mut().zip(partial).for_each(|(sum, part)| *sum += f64::from(part));
    }
    sums
}

/// `X^T X`, `(width, width)`, of `values (rows, width)`, row-major. Half of it is computed, by one thread: windows are what is
/// parallel. Panics when `values` has another length.
pub fn gram(values: &[f32], rows: usize, width: usize) -> Vec<f32> {
    use faer::linalg::matmul::triangular::{BlockStructure, matmul};
    let x = faer::MatRef::from_row_major_slice(values, rows, width);
    let mut gram = vec![0f32; width * width];
    let lower = faer::MatMut::from_row_major_slice_mut(&mut gram, width, width);
    let (triangle, all) = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
    matmul(lower, triangle, faer::Accum::Replace, x.transpose(), all, x, all, 1.0, faer::Par::Seq);
    for row in 1..width {
        let (above, below) = gram.split_at_mut(row * width);
        for (col, above) in above.chunks_exact_mut(width).enumerate() {
            above[row] = below[col];
        }
    }
    gram
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_over_tokens_and_norms_root_mean_over_windows() {
        let weight = Tensor::zeros((1, 3), DType::F32, &Device::Cpu).unwrap();
        let [w, v, unseen] =
            ["w", "v", "u"].map(|name| Linear { name: name.into(), weight: weight.clone(), bias: None });
        let gather = Gather { sums: true, gram: true };
        let windows = [[[1f32, 2.0, 0.0], [3.0, 0.0, 0.0]], [[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]];
        let taps = windows.map(|window| {
            let mut tap = InputTap::new(gather);
            tap.input(&[&w, &v], &Tensor::new(&[window], &Device::Cpu).unwrap()).unwrap();
            tap
        });
        let sums = |taps: Vec<InputTap>| {
            let mut sums = Sums::default();
            taps.into_iter().for_each(|tap| sums.add(tap));
            sums.into_statistics(2, &[&w, &v, &unseen], gather).unwrap()
        };
        // As a GPU would give them.
        let on_device = windows.map(|window| {
            let x = Tensor::new(&window, &Device::Cpu).unwrap();
            let wide = x.to_dtype(DType::F64).unwrap();
            let (squares, values) = (wide.sqr().unwrap().sum(0).unwrap(), wide.sum(0).unwrap());
            let gram = Some(x.t().unwrap().matmul(&x).unwrap());
            let sums = ColumnSums { squares, sums: Some(values), gram };
            let seen = OnDevice { tokens: 2, deviations: deviations(&sums, 2).unwrap(), sums };
            InputTap { gather, seen: vec![(vec!["w".into(), "v".into()], InputSums::Device(seen))] }
        });
        let statistics = sums(taps.into());
        assert_eq!(sums(on_device.into()), statistics);
        for name in ["w", "v"] {
            assert_eq!(statistics.column_norms(name).unwrap(), [5f32.sqrt(), 2.0, 0.0]);
            assert_eq!(statistics.column_sums(name).unwrap(), [2.0, 2.0, 0.0]);
            assert_eq!(statistics.column_variances(name).unwrap(), [0.5, 1.0, 0.0]);
            assert_eq!(statistics.gram(name).unwrap(), [10.0, 2.0, 0.0, 2.0, 8.0, 0.0, 0.0, 0.0, 0.0]);
        }
        assert!(statistics.same_input("w", "v") && !statistics.same_input("w", "u"));
        assert_eq!(statistics.column_norms("u").unwrap(), [0.0; 3]);
        assert_eq!(statistics.column_norms("no such linear"), None);
    }

    #[test]
    fn a_gram_matrix_is_the_product() {
        let (rows, width) = (70, 45);
        let values: Vec<f32> = (0..rows * width).map(|i| ((i * 37 % 101) as f32 - 50.0) / 9.0).collect();
        let x = Tensor::from_slice(&values, (rows, width), &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
        let product = x.t().unwrap().matmul(&x).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for (ours, theirs) in gram(&values, rows, width).iter().zip(product) {
            assert!((f64::from(*ours) - theirs).abs() < 1e-2, "{ours} {theirs}");
        }
    }
}
