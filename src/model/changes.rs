//! Weights in the place of a checkpoint's, in a model of which the device holds a part.

use super::stream::{CHECKPOINT, Kept};
use crate::mask::Mask;
use crate::{Result, cuda};
use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What stands in the place of a tensor.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// Zeros where the mask says so, each time the tensor is read.
    Masked(Arc<Mask>),
    /// Other values, on the host.
    Values(Tensor),
}

/// The changes of one model. What it had on the device goes with it.
#[derive(Debug)]
pub(super) struct Changes {
    by_name: HashMap<String, Change>,
    owner: u64,
    kept: Arc<Kept>,
}

impl Changes {
    pub(super) fn new(by_name: HashMap<String, Change>, kept: Arc<Kept>) -> Changes {
        static NEXT: AtomicU64 = AtomicU64::new(CHECKPOINT + 1);
        Changes { by_name, owner: NEXT.fetch_add(1, Ordering::Relaxed), kept }
    }

    pub(super) fn by_name(&self) -> &HashMap<String, Change> {
        &self.by_name
    }

    /// The tensor called `name` on `device`, if it is a changed one; `read` reads what the checkpoint has.
    pub(super) fn tensor(
        &self,
        name: &str,
        device: &Device,
        read: impl FnOnce() -> Result<Tensor>,
    ) -> Option<Result<Tensor>> {
        Some(match self.by_name.get(name)? {
            // It is there already.
            Change::Values(tensor) if device.is_cpu() => Ok(tensor.clone()),
            Change::Values(tensor) => self.kept.tensor(self.owner, name, || Ok(cuda::to_device(tensor, device)?)),
            Change::Masked(mask) => self.kept.tensor(self.owner, name, || {
                let dense = self.kept.held(CHECKPOINT, name).map_or_else(read, Ok)?;
                masked(&dense, mask)
            }),
        })
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.kept.forget(self.owner);
    }
}

/// A copy of `weight (out, in)` with zeros where the mask says so.
pub(super) fn masked(weight: &Tensor, mask: &Mask) -> Result<Tensor> {
    if let Some((weight, _)) = cuda::apply(weight, mask)? {
        return Ok(weight);
    }
    let (rows, cols) = mask.shape();
    let mut stays = vec![1u8; rows * cols];
    mask.for_each_pruned(|index| stays[index] = 0);
    let stays = Tensor::from_vec(stays, (rows, cols), &Device::Cpu)?.to_device(weight.device())?;
    Ok(stays.where_cond(weight, &weight.zeros_like()?)?)
}

/// The change that a mask makes to what was changed before.
pub(super) fn then_masked(before: Option<&Change>, mask: Mask) -> Result<Change> {
    Ok(match before {
        None => Change::Masked(Arc::new(mask)),
        Some(Change::Masked(before)) => Change::Masked(Arc::new(before.or(&mask)?)),
        Some(Change::Values(tensor)) => Change::Values(masked(tensor, &mask)?),
    })
}
