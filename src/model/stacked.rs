//! Experts that stand in one tensor, as gpt-oss stores them: gate and up interleaved, a bias each, a clamped activation.

use super::mxfp4;
use crate::Result;
use candle_core::{DType, Device, Tensor};

/// All experts of one block.
#[derive(Clone, Debug)]
pub(crate) struct Stacked {
    /// Its outputs are gate and up by turns.
    pub(crate) gate_up: StackedLinear,
    pub(crate) down: StackedLinear,
    /// Bound of the gate from above, and of `up` on both sides.
    pub(crate) limit: f64,
    /// Slope of the sigmoid.
    pub(crate) alpha: f64,
}

/// One linear of every expert.
#[derive(Clone, Debug)]
pub(crate) struct StackedLinear {
    pub(crate) weight: StackedWeight,
    pub(crate) bias: Tensor, // (experts, out)
}

#[derive(Clone, Debug)]
pub(crate) enum StackedWeight {
    /// `(experts, in, out)`
    Float(Tensor),
    /// `(experts, out, in / 32, 16)` and `(experts, out, in / 32)`, in u8. They stay packed, an eighth of the memory of
    /// f32; an expert is unpacked when it runs.
    Mxfp4 { blocks: Tensor, scales: Tensor },
}

impl StackedWeight {
    /// One expert's weights `(in, out)`.
    fn expert(&self, expert: usize, dtype: DType, device: &Device) -> Result<Tensor> {
        Ok(match self {
            StackedWeight::Float(weight) => weight.get(expert)?,
            StackedWeight::Mxfp4 { blocks, scales } => {
                mxfp4::unpack(&blocks.get(expert)?, &scales.get(expert)?, dtype, device)?.t()?
            }
        })
    }
}

impl StackedLinear {
    /// `(tokens, in) -> (tokens, out)` of one expert.
    fn forward(&self, expert: usize, x: &Tensor) -> Result<Tensor> {
        let weight = self.weight.expert(expert, x.dtype(), x.device())?;
        Ok(x.matmul(&weight)?.broadcast_add(&self.bias.get(expert)?)?)
    }
}

impl Stacked {
    pub(crate) fn len(&self) -> usize {
        self.down.bias.dims()[0]
    }

    /// `x (tokens, hidden)` through one expert: `down((up + 1) * gate * sigmoid(alpha * gate))`.
    pub(crate) fn forward(&self, expert: usize, x: &Tensor) -> Result<Tensor> {
        let gate_up = self.gate_up.forward(expert, x)?;
        let (tokens, width) = gate_up.dims2()?;
        let pairs = gate_up.reshape((tokens, width / 2, 2))?;
        let gate = pairs.narrow(2, 0, 1)?.squeeze(2)?.minimum(self.limit)?;
        let up = pairs.narrow(2, 1, 1)?.squeeze(2)?.clamp(-self.limit, self.limit)?;
        let glu = (&gate * candle_nn::ops::sigmoid(&(&gate * self.alpha)?)?)?;
        self.down.forward(expert, &((up + 1.0)? * glu)?)
    }
}
