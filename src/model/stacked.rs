//! Experts that stand in one tensor, as gpt-oss stores them: gate and up interleaved, a bias each, a clamped activation.

use super::linear::{Linear, Tap, Wanted};
use super::mxfp4;
use crate::error::Result;
use candle_core::Tensor;

/// All experts of one layer.
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
    /// Each expert's, `(out, in)`, with its bias.
    Float(Vec<Linear>),
    /// `(experts, out, in / 32, 16)` and `(experts, out, in / 32)`, in u8. They stay packed, an eighth of the memory of
    /// f32; an expert is unpacked when it runs.
    Mxfp4 { blocks: Tensor, scales: Tensor },
}

impl StackedLinear {
    /// The linears of all experts, if they stand alone.
    fn linears(&self) -> &[Linear] {
        match &self.weight {
            StackedWeight::Float(linears) => linears,
            StackedWeight::Mxfp4 { .. } => &[],
        }
    }

    fn linears_mut(&mut self) -> &mut [Linear] {
        match &mut self.weight {
            StackedWeight::Float(linears) => linears,
            StackedWeight::Mxfp4 { .. } => &mut [],
        }
    }

    /// `(tokens, in) -> (tokens, out)` of one expert. `None` when only taps are wanted.
    fn forward(&self, expert: usize, x: &Tensor, tap: &mut dyn Tap, wanted: Wanted) -> Result<Option<Tensor>> {
        match &self.weight {
            StackedWeight::Float(linears) => {
                tap.input(&[&linears[expert]], x)?;
                if wanted == Wanted::Taps { Ok(None) } else { linears[expert].forward(x).map(Some) }
            }
            // There is no linear that a tap could see.
            StackedWeight::Mxfp4 { .. } if wanted == Wanted::Taps => Ok(None),
            StackedWeight::Mxfp4 { blocks, scales } => {
                let weight = mxfp4::unpack(&blocks.get(expert)?, &scales.get(expert)?, x.dtype(), x.device())?.t()?;
                Ok(Some(x.matmul(&weight)?.broadcast_add(&self.bias.get(expert)?)?))
            }
        }
    }
}

impl Stacked {
    pub(crate) fn len(&self) -> usize {
        self.down.bias.dims()[0]
    }

    /// The linears that stand alone, expert by expert.
    pub(crate) fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.gate_up.linears().iter().zip(self.down.linears()).flat_map(|(gate_up, down)| [gate_up, down])
    }

    /// As [`Stacked::linears`], to be changed.
    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let Stacked { gate_up, down, .. } = self;
        gate_up.linears_mut().iter_mut().zip(down.linears_mut()).flat_map(|(gate_up, down)| [gate_up, down])
    }

    /// `x (tokens, hidden)` through one expert: `down((up + 1) * gate * sigmoid(alpha * gate))`.
    pub(crate) fn forward(
        &self,
        expert: usize,
        x: &Tensor,
        tap: &mut dyn Tap,
        wanted: Wanted,
    ) -> Result<Option<Tensor>> {
        // What the down projection reads is wanted too, where a tap sees it.
        let inner = if self.down.linears().is_empty() { wanted } else { Wanted::Output };
        let Some(gate_up) = self.gate_up.forward(expert, x, tap, inner)? else { return Ok(None) };
        let (tokens, width) = gate_up.dims2()?;
        let pairs = gate_up.reshape((tokens, width / 2, 2))?;
        let gate = pairs.narrow(2, 0, 1)?.squeeze(2)?.minimum(self.limit)?;
        let up = pairs.narrow(2, 1, 1)?.squeeze(2)?.clamp(-self.limit, self.limit)?;
        let glu = (&gate * candle_nn::ops::sigmoid(&(&gate * self.alpha)?)?)?;
        self.down.forward(expert, &((up + 1.0)? * glu)?, tap, wanted)
    }
}
