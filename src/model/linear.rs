//! A linear, an MLP of three, and the tap that sees what enters each.

use super::ops;
use crate::error::Result;
use candle_core::{Module, Tensor};

/// A linear layer `x W^T + b`, with its name in the checkpoint.
#[derive(Clone, Debug)]
pub struct Linear {
    /// The weight's name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// `(out, in)`
    pub weight: Tensor,
    /// `(out,)`
    pub bias: Option<Tensor>,
}

impl Linear {
    /// `(out, in)` of the weight.
    ///
    /// # Errors
    /// [`crate::error::Error::Compute`] when the weight is no matrix.
    pub fn shape(&self) -> Result<(usize, usize)> {
        Ok(self.weight.dims2()?)
    }

    /// `(.., in) -> (.., out)`
    ///
    /// # Errors
    /// [`crate::error::Error::Compute`] when the shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let dims = x.dims();
        let (out, input) = self.weight.dims2()?;
        let rows: usize = dims[..dims.len() - 1].iter().product();
        let y = x.reshape((rows, input))?.matmul(&self.weight.t()?)?; // (rows, out)
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        };
        Ok(y.reshape([&dims[..dims.len() - 1], &[out]].concat())?)
    }
}

impl Module for Linear {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        Linear::forward(self, x).map_err(candle_core::Error::wrap)
    }
}

/// Sees what goes through a layer. A tap that needs nothing is `()`.
pub trait Tap {
    /// `x (.., in)` is about to enter each of `linears`, which share it. In a mixture, an expert's input holds only the
    /// tokens routed to it.
    ///
    /// # Errors
    /// Whatever the tap fails with; the forward pass ends with it.
    fn input(&mut self, linears: &[&Linear], x: &Tensor) -> Result<()>;

    /// Router probabilities `probs (tokens, experts)` of one layer, and the experts chosen for each token.
    ///
    /// # Errors
    /// Whatever the tap fails with; the forward pass ends with it.
    fn router(&mut self, _probs: &Tensor, _chosen: &[Vec<u32>]) -> Result<()> {
        Ok(())
    }

    /// Receives the output of an expert for the tokens that were routed to it. Called after [`Tap::router`], once for
    /// each chosen expert, in order; never in a pass that only feeds inputs to taps, and never for shared experts.
    ///
    /// # Errors
    /// Whatever the tap fails with; the forward pass ends with it.
    fn expert(&mut self, _output: &ExpertOutput<'_>) -> Result<()> {
        Ok(())
    }
}

/// The output of one expert of a layer.
#[derive(Clone, Copy, Debug)]
pub struct ExpertOutput<'a> {
    /// Index of the expert.
    pub expert: usize,
    /// The tokens that were routed to it, ascending.
    pub tokens: &'a [u32],
    /// Factor of each token's output in the forward pass, `(tokens,)`.
    pub weights: &'a Tensor,
    /// The output before that, `(tokens, hidden)`.
    pub output: &'a Tensor,
}

impl Tap for () {
    fn input(&mut self, _: &[&Linear], _: &Tensor) -> Result<()> {
        Ok(())
    }
}

/// `down(silu(gate(x)) * up(x))`
#[derive(Clone, Debug)]
pub(crate) struct Mlp {
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

impl Mlp {
    pub(crate) fn linears(&self) -> [&Linear; 3] {
        [&self.gate, &self.up, &self.down]
    }

    pub(crate) fn linears_mut(&mut self) -> [&mut Linear; 3] {
        [&mut self.gate, &mut self.up, &mut self.down]
    }

    pub(crate) fn forward(&self, x: &Tensor, tap: &mut dyn Tap, wanted: Wanted) -> Result<Option<Tensor>> {
        tap.input(&[&self.gate, &self.up], x)?;
        let y = ops::swiglu(&self.gate.forward(x)?, &self.up.forward(x)?)?;
        tap.input(&[&self.down], &y)?;
        match wanted {
            Wanted::Output => Ok(Some(self.down.forward(&y)?)),
            Wanted::Taps => Ok(None),
        }
    }
}

/// The purpose of a pass through a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The layer's output.
    Output,
    /// Only what the tap sees: the last linears need not be computed.
    Taps,
}
