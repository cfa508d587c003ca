//! Gradients of the loss with respect to every prunable linear, by reverse mode one layer at a time.
//!
//! Whole-model autograd keeps everything that every layer computed until it is walked backwards. Here the forward pass
//! keeps only what enters each layer; then, from the last layer to the first, each is run again with a graph of its own,
//! which is dropped before the next (activation recomputation, Chen et al. 2016). Inputs and gradients are kept in
//! temporary files: memory is one layer, its gradients, the hidden states of all windows (twice while the loss is taken), and
//! the graph of one layer for a few windows, whatever the depth.

mod file;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Remedy, Result};
use crate::model::{DecoderLayer, ForwardPass, Head, LOGIT_ROWS, Model, Rope, Wanted, cross_entropy};
use crate::progress::Progress;
use crate::scratch::Scratch;
use crate::text::Windows;
use candle_core::{DType, Device, Tensor, Var};
use rayon::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;

/// The way in which the gradients of the windows become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulate {
    /// Their sum, as a gradient or Taylor metric takes it.
    Sum,
    /// The largest absolute value of each element over the windows.
    Max,
}

crate::error::listed!(Accumulate, Sum, Max);

impl Accumulate {
    /// Takes one window's gradient into `total`.
    fn add(self, total: &mut [f32], window: &[f32]) {
        let pairs = total.iter_mut().zip(window);
        match self {
            Accumulate::Sum => pairs.for_each(|(total, x)| *total += x),
            // Written so that a NaN stays.
            Accumulate::Max => pairs.for_each(|(total, x)| {
                let x = x.abs();
                *total = if x <= *total { *total } else { x };
            }),
        }
    }
}

/// Gradients of every prunable linear. They lie in a temporary file, which is gone with the last clone, or in the files that
/// they were saved to.
#[derive(Clone)]
pub struct Gradients {
    /// Mean cross entropy of each window's `seqlen - 1` predicted tokens in nats, `(windows,)`.
    pub losses: Vec<f64>,
    /// Mean of `losses`.
    pub loss_nats: f64,
    stored: Arc<Stored>,
}

crate::debug::one_line!(rich Gradients, |gradients| {
    let (linears, windows) = (gradients.names().count(), gradients.losses.len());
    format!("Gradients({linears} linears, {windows} windows, loss {:.4} nats)", gradients.loss_nats)
});

#[derive(Debug)]
struct Stored {
    names: Vec<String>,
    values: Values,
}

#[derive(Debug)]
enum Values {
    /// Offset and length of each linear's values, by name.
    Scratch { places: HashMap<String, (u64, usize)>, scratch: Scratch },
    /// A tensor of each linear's name.
    Saved(Checkpoint),
}

impl Gradients {
    /// The accumulated gradient of a linear's weight, `(out, in)` row-major, read from the disk; `None` for a name that is
    /// not that of a prunable linear. An expert that no token reached has a gradient of zero.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read.
    pub fn get(&self, linear: &str) -> Result<Option<Vec<f32>>> {
        match &self.stored.values {
            Values::Scratch { places, scratch } => {
                places.get(linear).map(|&(start, len)| scratch.read(start, len)).transpose()
            }
            Values::Saved(saved) => saved.contains(linear).then(|| saved.array(linear, f32::from_le_bytes)).transpose(),
        }
    }

    /// The linears' names, in the order in which a token meets them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.stored.names.iter().map(String::as_str)
    }
}

/// Bytes of weight gradients that windows may hold before they are added.
const IN_FLIGHT: usize = 2 << 30;

/// Gradients of the loss of `windows` with respect to the weights of every prunable linear of the dense model: the loss
/// of a window is the mean cross entropy of its tokens after the first, and `accumulate` joins the windows' gradients.
/// The result has the same bytes on any number of threads.
///
/// Temporary files (`TMPDIR`) take `4 * layers * windows * seqlen * hidden_size` bytes while this runs, and 4 bytes a
/// weight for as long as the result lives. Each layer is read twice, and takes four times the arithmetic of a forward pass.
///
/// # Errors
/// [`Error::Argument`] for no windows, windows of fewer than two tokens or of unequal length, ids outside the vocabulary,
/// or a model in f16, where gradients underflow; [`Error::Tensor`] where an activation, a loss or a gradient is not a
/// finite number, naming layer and window; [`Error::File`] when the disk is full; [`Error::Interrupted`].
pub fn gradients(model: &Model, windows: &Windows, accumulate: Accumulate, progress: Progress) -> Result<Gradients> {
    check(model, windows)?;
    let config = model.config();
    let (layers, count, hidden_size) = (model.layers(), windows.ids.len(), config.hidden_size);
    let elements = windows.seqlen * hidden_size; // of one window's activations
    // Routers are among them, which is too little to matter.
    let weights = config.divided().into_iter().filter(|(name, shape)| name.contains(".layers.") && shape.len() == 2);
    let weights: usize = weights.map(|(_, shape)| shape.iter().product::<usize>()).sum();
    let bytes = |elements: usize| (elements * size_of::<f32>()) as u64;
    let mut inputs = Scratch::create(bytes(layers * count * elements + weights))?;
    let mut scratch = Scratch::create(bytes(weights))?;

    let mut hidden = model.embed(&windows.ids)?; // (1, seqlen, hidden) each
    let rope = model.rope(windows.seqlen);
    let stage = progress.stage("gradients", ((2 * layers + 1) * count) as u64);
    let pass = ForwardPass { model, rope: &rope, stage: &stage };
    let mut names = Vec::new();
    for i in 0..layers {
        for (window, x) in hidden.iter().enumerate() {
            inputs.append(&activations(model, i, window, x)?)?;
        }
        let layer = model.layer(i)?;
        names.extend(layer.linears().into_iter().map(|linear| linear.name.clone()));
        pass.through(&layer, &mut hidden, Wanted::Output, || (), |()| ())?;
    }

    // From here on, `hidden` holds gradients of the loss with respect to what it held before.
    let head = model.head()?;
    let mut losses = Vec::with_capacity(count);
    let numbered: Vec<(usize, Tensor)> = hidden.into_iter().enumerate().collect();
    let mut hidden = Vec::with_capacity(count);
    for chunk in numbered.chunks(together(model, 0)) {
        let results = chunk.par_iter().map(|(window, x)| {
            activations(model, layers, *window, x)?;
            let (loss, gradient) = through_head(&head, &x.squeeze(0)?, &windows.ids[*window])?;
            if !loss.is_finite() {
                let problem = format!("the loss of window {window} is {loss} in {:?}", model.dtype());
                return Err(Error::tensor(model.name(), "logits", problem));
            }
            Ok((loss, gradient))
        });
        for (loss, gradient) in results.collect::<Result<Vec<_>>>()? {
            losses.push(loss);
            hidden.push(gradient);
        }
        stage.inc(chunk.len() as u64)?;
    }
    drop((head, numbered));

    let mut places = HashMap::with_capacity(names.len());
    for i in (0..layers).rev() {
        let (layer, weights) = differentiable(model.layer(i)?)?;
        let sizes: Vec<usize> = weights.iter().map(|(_, weight)| weight.elem_count()).collect();
        let mut totals: Vec<Vec<f32>> = sizes.iter().map(|&size| vec![0.0; size]).collect();
        let at_once = together(model, sizes.iter().sum::<usize>() * size_of::<f32>());
        for (first, chunk) in (0..count).step_by(at_once).zip(hidden.chunks_mut(at_once)) {
            let results = chunk.par_iter_mut().enumerate().map(|(offset, gradient)| {
                let start = bytes((i * count + first + offset) * elements);
                let x = Tensor::from_vec(inputs.read(start, elements)?, gradient.shape(), &Device::Cpu)?;
                let x = Var::from_tensor(&x.to_dtype(model.dtype())?.to_device(model.device())?)?;
                let (input, weights) = through_layer(model, &layer, &weights, &rope, &x, gradient)?;
                *gradient = input;
                Ok(weights)
            });
            for window in results.collect::<Result<Vec<_>>>()? {
                totals.par_iter_mut().zip(window).for_each(|(total, window)| {
                    // What no token reached adds nothing.
                    window.iter().for_each(|window| accumulate.add(total, window));
                });
            }
            stage.inc(chunk.len() as u64)?;
        }
        for ((name, _), total) in weights.into_iter().zip(totals) {
            if let Some(at) = total.iter().position(|x| !x.is_finite()) {
                let problem = format!("its gradient is {} at element {at} in {:?}", total[at], model.dtype());
                return Err(Error::tensor(model.name(), name, problem));
            }
            places.insert(name, (scratch.append(&total)?, total.len()));
        }
    }
    let loss_nats = losses.iter().sum::<f64>() / count as f64;
    Ok(Gradients { losses, loss_nats, stored: Arc::new(Stored { names, values: Values::Scratch { places, scratch } }) })
}

fn check(model: &Model, windows: &Windows) -> Result<()> {
    let (count, seqlen) = (windows.ids.len(), windows.seqlen);
    if count == 0 || seqlen < 2 || windows.ids.iter().any(|ids| ids.len() != seqlen) {
        let problem = "gradients need at least one window, and two tokens or more in each, as many in all";
        return Err(Error::argument("windows", format!("{count} x {seqlen}"), problem));
    }
    if model.dtype() == DType::F16 {
        return Err(Error::argument(
            "dtype",
            "f16",
            "gradients underflow in it".remedy("open the model in f32 or bf16"),
        ));
    }
    windows.check_vocab(model.config().vocab_size)
}

/// Windows that are worked on at a time, where each makes `bytes` of weight gradients.
fn together(model: &Model, bytes: usize) -> usize {
    if !model.device().is_cpu() {
        return 1;
    }
    IN_FLIGHT.checked_div(bytes).unwrap_or(usize::MAX).clamp(1, rayon::current_num_threads())
}

/// The inputs of layer `i` in one window, or the outputs of the last layer, `(seqlen * hidden,)`.
fn activations(model: &Model, i: usize, window: usize, x: &Tensor) -> Result<Vec<f32>> {
    let values: Vec<f32> = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    if values.iter().all(|x| x.is_finite()) {
        return Ok(values);
    }
    let from = i.checked_sub(1).map_or_else(|| "model.embed_tokens".into(), |layer| format!("model.layers.{layer}"));
    let problem = format!(
        "its output is not finite for window {window} in {:?}; the weights are damaged, or need f32",
        model.dtype()
    );
    Err(Error::tensor(model.name(), from, problem))
}

/// Loss of a window, and its gradient `(1, seqlen, hidden)` with respect to the last hidden states `x (seqlen, hidden)`.
fn through_head(head: &Head, x: &Tensor, ids: &[u32]) -> Result<(f64, Tensor)> {
    let predicted = ids.len() - 1;
    let (mut loss, mut gradients) = (0.0, Vec::new());
    for (start, targets) in (0..).step_by(LOGIT_ROWS).zip(ids[1..].chunks(LOGIT_ROWS)) {
        let rows = targets.len();
        let share = rows as f64 / predicted as f64;
        let x = Var::from_tensor(&x.narrow(0, start, rows)?)?;
        let normed = head.normed(&x)?;
        let logits = Var::from_tensor(&head.project(&normed.detach())?.to_device(&Device::Cpu)?)?; // (rows, vocab)
        let mean = cross_entropy(&logits, targets.to_vec())?;
        loss += f64::from(mean.to_scalar::<f32>()?) * share;
        let gradient = gradient_of(&(mean * share)?, &logits)?;
        drop(logits);
        let gradient = head.project_back(&gradient)?; // (rows, hidden)
        gradients.push(gradient_of(&pulled(&normed, &gradient)?, &x)?);
    }
    // Nothing is predicted from the last token.
    let (_, hidden) = x.dims2()?;
    gradients.push(Tensor::zeros((1, hidden), x.dtype(), x.device())?);
    Ok((loss, Tensor::cat(&gradients, 0)?.unsqueeze(0)?))
}

/// The layer with weights that can be differentiated, and those with their names, in the order of [`DecoderLayer::linears`].
fn differentiable(mut layer: DecoderLayer) -> Result<(DecoderLayer, Vec<(String, Var)>)> {
    let mut weights = Vec::new();
    for linear in layer.linears_mut() {
        let weight = Var::from_tensor(&linear.weight)?;
        linear.weight = weight.as_tensor().clone();
        weights.push((linear.name.clone(), weight));
    }
    Ok((layer, weights))
}

/// From the gradient of a layer's output to that of its input `x`, and to that of each weight, `None` where no token came.
fn through_layer(
    model: &Model,
    layer: &DecoderLayer,
    weights: &[(String, Var)],
    rope: &Rope,
    x: &Var, // (1, seqlen, hidden), as is `gradient`
    gradient: &Tensor,
) -> Result<(Tensor, Vec<Option<Vec<f32>>>)> {
    let Some(y) = layer.run(model.config(), rope, x, None, &mut (), Wanted::Output)? else {
        return Err(Error::internal("gradients", "a layer without an output"));
    };
    let mut store = pulled(&y, gradient)?.backward()?;
    let input = store.remove(x).map_or_else(|| x.zeros_like(), Ok)?;
    let flat = |weight: Tensor| -> Result<Vec<f32>> { Ok(weight.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?) };
    let weights =
        weights.iter().map(|(_, weight)| store.remove(weight).map(flat).transpose()).collect::<Result<_>>()?;
    Ok((input.detach(), weights))
}

/// A scalar whose gradient with respect to `y` is `gradient`.
fn pulled(y: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    Ok((y * gradient)?.sum_all()?)
}

/// Gradient of the scalar `loss` with respect to `x`, zero where it does not depend on it.
fn gradient_of(loss: &Tensor, x: &Var) -> Result<Tensor> {
    Ok(loss.backward()?.remove(x).map_or_else(|| x.zeros_like(), Ok)?)
}
