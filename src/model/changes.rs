//! Weights in the place of a checkpoint's, in a model of which the device holds a part.

use super::stream::{CHECKPOINT, TensorCache};
use super::{Model, WeightSource};
use crate::device;
use crate::error::{Error, Result};
use crate::mask::{Mask, apply_on_device};
use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The replacement of a tensor.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// Zeros where the mask says so, each time the tensor is read.
    Masked(Arc<Mask>),
    /// Other values, on the host.
    Values(Tensor),
}

/// The changes of one model. When they are dropped, the tensors that they had cached on the device are dropped, too.
#[derive(Debug)]
pub(super) struct Changes {
    by_name: HashMap<String, Change>,
    owner: u64,
    kept: Arc<TensorCache>,
}

impl Changes {
    pub(super) fn new(by_name: HashMap<String, Change>, kept: Arc<TensorCache>) -> Changes {
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
            Change::Values(tensor) => self.kept.tensor(self.owner, name, || Ok(device::to_device(tensor, device)?)),
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

impl Model {
    /// This model with some tensors replaced; shapes must agree. The result is in memory; but if this model has a
    /// budget ([`Model::within`]), only the replaced tensors are, on the host, and they pass through the device like
    /// the others.
    ///
    /// # Errors
    /// As [`Model::resident`] and [`Model::from_tensors`].
    pub fn with_tensors(&self, replaced: impl IntoIterator<Item = (String, Tensor)>) -> Result<Model> {
        let shapes = self.shapes();
        let mut replaced = replaced.into_iter().map(|(name, tensor)| {
            self.check_replaced(&shapes, &name, tensor.dims())?;
            Ok((name, tensor))
        });
        if self.in_parts() {
            let to_host = |(name, tensor)| Ok((name, Change::Values(device::to_host(&tensor)?)));
            return self.with_changes(replaced.map(|replaced| replaced.and_then(to_host)).collect::<Result<_>>()?);
        }
        let model = self.resident()?;
        let WeightSource::Resident(tensors) = &model.source else { return Ok(model) };
        let mut tensors = tensors.as_ref().clone();
        replaced.try_for_each(|replaced| {
            let (name, tensor) = replaced?;
            tensors.insert(name, device::to_device(&tensor, &self.device)?);
            Ok::<_, Error>(())
        })?;
        Ok(Model { source: WeightSource::Resident(Arc::new(tensors)), changed: true, ..model })
    }

    /// This model with zeros where the masks prune. If it has a budget, the masks are in memory, and no weights.
    ///
    /// # Errors
    /// As [`Model::with_tensors`].
    pub(crate) fn with_masks(&self, masks: impl IntoIterator<Item = (String, Mask)>) -> Result<Model> {
        let shapes = self.shapes();
        let masks = masks.into_iter().map(|(name, mask)| {
            let (rows, cols) = mask.shape();
            self.check_replaced(&shapes, &name, &[rows, cols])?;
            Ok::<_, Error>((name, mask))
        });
        if !self.in_parts() {
            let weights = masks.map(|one| {
                let (name, mask) = one?;
                let weight = self.tensor(&name)?;
                Ok((name, masked(&weight, &mask)?))
            });
            return self.with_tensors(weights.collect::<Result<Vec<_>>>()?);
        }
        let changed = masks.map(|one| {
            let (name, mask) = one?;
            let before = self.changes().and_then(|changes| changes.by_name().get(&name));
            Ok((name, then_masked(before, mask)?))
        });
        self.with_changes(changed.collect::<Result<_>>()?)
    }

    fn with_changes(&self, more: Vec<(String, Change)>) -> Result<Model> {
        let WeightSource::Cached(checkpoint, kept, before) = &self.source else { return Ok(self.clone()) };
        let mut changes = before.as_ref().map(|changes| changes.by_name().clone()).unwrap_or_default();
        changes.extend(more);
        let changes = Some(Arc::new(Changes::new(changes, kept.clone())));
        Ok(Model {
            source: WeightSource::Cached(checkpoint.clone(), kept.clone(), changes),
            changed: true,
            ..self.clone()
        })
    }

    fn changes(&self) -> Option<&Changes> {
        match &self.source {
            WeightSource::Cached(_, _, changes) => changes.as_deref(),
            _ => None,
        }
    }

    fn shapes(&self) -> HashMap<String, Vec<usize>> {
        self.config.needed().into_iter().map(|needed| (needed.name, needed.shape)).collect()
    }

    fn check_replaced(&self, shapes: &HashMap<String, Vec<usize>>, name: &str, shape: &[usize]) -> Result<()> {
        match shapes.get(name) {
            Some(needed) if needed == shape => Ok(()),
            _ => Err(Error::tensor(self.location(), name, "cannot be replaced: no such tensor of that shape")),
        }
    }

    /// Returns whether the device holds at most a part of the model, within a budget.
    pub(crate) fn in_parts(&self) -> bool {
        matches!(self.source, WeightSource::Cached(..))
    }

    /// Returns whether the tensor called `name` is the same as in `other`: neither model has changed it.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Tensor`] from reading.
    pub(crate) fn shares(&self, other: &Model, name: &str) -> Result<bool> {
        if let (WeightSource::Cached(_, own, _), WeightSource::Cached(_, others, _)) = (&self.source, &other.source)
            && Arc::ptr_eq(own, others)
        {
            let changed = |model: &Model| model.changes().is_some_and(|changes| changes.by_name().contains_key(name));
            return Ok(!changed(self) && !changed(other));
        }
        Ok(self.tensor(name)?.id() == other.tensor(name)?.id())
    }
}

/// A copy of `weight (out, in)` with zeros where the mask says so.
pub(super) fn masked(weight: &Tensor, mask: &Mask) -> Result<Tensor> {
    if let Some((weight, _)) = apply_on_device(weight, mask)? {
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
