//! Cutting units out of a tensor, or zeroing them in place.

use super::{Form, Module};
use crate::error::Result;
use candle_core::{DType, Device, Tensor};

/// The cut of one tensor: the elements that stay, and the form of the result.
#[derive(Clone, Debug)]
pub(super) struct Cut {
    form: Form,
    /// True if the tensor is the scale of a norm over the dimension that is cut.
    norm: bool,
    /// For each dimension with units, whether an element stays.
    stays: [Option<Vec<bool>>; 2],
}

impl Cut {
    /// Nothing yet.
    pub(super) fn new(form: Form, norm: bool) -> Cut {
        Cut { form, norm, stays: [None, None] }
    }

    /// Removes the module's pruned units from `dim`, each of which is `span` elements there.
    pub(super) fn along(&mut self, dim: usize, module: &Module, span: usize) {
        let mut stays = vec![true; module.units * span];
        for &unit in &module.gone {
            stays[unit * span..(unit + 1) * span].fill(false);
        }
        self.stays[dim] = Some(stays);
    }

    /// Returns whether the tensor has units at all, even if none of them is pruned.
    pub(super) fn has_units(&self) -> bool {
        self.stays.iter().any(Option::is_some)
    }

    /// The dimensions along which units are pruned.
    fn dims(&self) -> impl Iterator<Item = (usize, &Vec<bool>)> {
        let dims = self.stays.iter().enumerate().filter_map(|(dim, stays)| Some((dim, stays.as_ref()?)));
        dims.filter(|(_, stays)| stays.contains(&false))
    }

    /// The shape of a tensor of `shape` afterwards.
    pub(super) fn shape(&self, shape: &[usize]) -> Vec<usize> {
        let mut shape = shape.to_vec();
        if self.form == Form::Remove {
            for (dim, stays) in self.dims() {
                shape[dim] = stays.iter().filter(|&&stays| stays).count();
            }
        }
        shape
    }

    /// The tensor afterwards. A norm's scale grows by the root of what its mean grows by, and comes in f64.
    pub(super) fn apply(&self, tensor: &Tensor) -> Result<Tensor> {
        let mut result = tensor.clone();
        for (dim, stays) in self.dims() {
            result = match self.form {
                Form::Remove => {
                    let kept: Vec<u32> = (0..).zip(stays).filter(|(_, stays)| **stays).map(|(i, _)| i).collect();
                    let count = kept.len();
                    let kept = Tensor::from_vec(kept, count, tensor.device())?;
                    let narrow = result.contiguous()?.index_select(&kept, dim)?;
                    if self.norm {
                        (narrow.to_dtype(DType::F64)? * (stays.len() as f64 / count as f64).sqrt())?
                    } else {
                        narrow
                    }
                }
                Form::Zero => {
                    let mut shape = vec![1; result.rank()];
                    shape[dim] = stays.len();
                    let stays: Vec<u8> = stays.iter().map(|&stays| u8::from(stays)).collect();
                    let stays = Tensor::from_vec(stays, shape, tensor.device())?.broadcast_as(result.shape())?;
                    stays.where_cond(&result, &result.zeros_like()?)?
                }
            };
        }
        Ok(result)
    }
}

/// The number of elements of a tensor that had `shape` which are now zero or were cut.
pub(super) fn zeros(tensor: &Tensor, shape: &[usize]) -> Result<u64> {
    // A copy of a few rows at a time.
    const ELEMENTS: usize = 1 << 20;
    let values = tensor.flatten_all()?;
    let (mut at, len, mut others) = (0, values.elem_count(), 0);
    while at < len {
        let count = ELEMENTS.min(len - at);
        let values = values.narrow(0, at, count)?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        others += values.iter().filter(|&&value| value != 0.0).count();
        at += count;
    }
    Ok((shape.iter().product::<usize>() - others) as u64)
}
