//! Layers one after another, windows on their way through them, and what of a model is kept on its device.

use super::{DecoderLayer, Model, Rope, Tap, Wanted};
use crate::device;
use crate::error::{Error, Result};
use crate::progress::Stage;
use crate::sync::locked;
use candle_core::Tensor;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, mpsc};

impl Model {
    /// Calls `f` with each layer in turn. On a GPU the next layer is read and uploaded meanwhile, so two are held; on the CPU,
    /// whose threads are busy with the first, one.
    ///
    /// # Errors
    /// Those of [`Model::layer`] and of `f`, of which the first ends it.
    pub(crate) fn each_layer(&self, f: impl FnMut(usize, DecoderLayer) -> Result<()>) -> Result<()> {
        let ahead = !self.is_resident() && !self.device().is_cpu();
        each(self.layers(), |i| self.layer(i), ahead, f)
    }

    /// Embeds windows for [`ForwardPass::through`]; if they take more than a quarter of the device's budget, they wait
    /// on the host.
    ///
    /// # Errors
    /// As [`Model::embed`].
    pub(crate) fn embed_for_pass(&self, windows: &[Vec<u32>]) -> Result<Vec<Tensor>> {
        let tokens: usize = windows.iter().map(Vec::len).sum();
        let bytes = (tokens * self.config.hidden_size * self.dtype.size_in_bytes()) as u64;
        if self.device.is_cpu() || self.device_memory.is_none_or(|budget| bytes <= budget / 4) {
            return self.embed(windows);
        }
        self.embed_to(windows, |x| Ok(device::to_host(&x)?))
    }
}

/// Calls `f` with each of `count` layers, of which the next is made meanwhile on another thread if `ahead`.
fn each<B: Send>(
    count: usize,
    layer: impl Fn(usize) -> Result<B> + Sync,
    ahead: bool,
    mut f: impl FnMut(usize, B) -> Result<()>,
) -> Result<()> {
    if !ahead {
        return (0..count).try_for_each(|i| f(i, layer(i)?));
    }
    std::thread::scope(|scope| {
        // Without room for a layer the thread waits with one in its hands.
        let (give, layers) = mpsc::sync_channel(0);
        let layer = &layer;
        scope.spawn(move || {
            for i in 0..count {
                // Nobody takes it after a failure.
                if give.send(layer(i)).is_err() {
                    return;
                }
            }
        });
        for i in 0..count {
            let taken = layers
                .recv()
                .map_err(|_| Error::internal(format!("reading layer {i}"), "the thread that reads ahead has ended"))?;
            f(i, taken?)?;
        }
        Ok(())
    })
}

/// Runs items that wait on the host, one after another on the device. `run` does not wait for what it computes: meanwhile the next
/// item is copied there, and what the last one gave is copied back into its place.
fn in_turns<H, D, G>(
    items: &mut [H],
    mut up: impl FnMut(&H) -> Result<D>,
    mut run: impl FnMut(D) -> Result<Option<G>>,
    mut down: impl FnMut(&G) -> Result<H>,
) -> Result<()> {
    let mut next = items.first().map(&mut up).transpose()?;
    let mut last = None;
    for i in 0..items.len() {
        let Some(item) = next.take() else { break };
        let given = run(item)?;
        next = items.get(i + 1).map(&mut up).transpose()?;
        if let Some((at, given)) = last.take() {
            items[at] = down(&given)?;
        }
        last = given.map(|given| (i, given));
    }
    if let Some((at, given)) = last {
        items[at] = down(&given)?;
    }
    Ok(())
}

/// Windows on their way through a model, layer by layer.
pub(crate) struct ForwardPass<'a> {
    pub(crate) model: &'a Model,
    pub(crate) rope: &'a Rope,
    /// Advances by a step for each window and layer.
    pub(crate) stage: &'a Stage,
}

impl ForwardPass<'_> {
    /// Passes each window `(1, seqlen, hidden)` through a layer, several at a time: a window is large enough for one thread, and
    /// whole windows in parallel leave no operator single-threaded. Each window has a `tap` of its own; `each` gets the taps
    /// in the order of the windows, so that sums do not depend on the number of threads. Windows become the layer's
    /// outputs, unless only taps are wanted.
    pub(crate) fn through<T: Tap + Send>(
        &self,
        layer: &DecoderLayer,
        hidden: &mut [Tensor],
        wanted: Wanted,
        tap: impl Fn() -> T + Sync,
        mut each: impl FnMut(T),
    ) -> Result<()> {
        let ForwardPass { model, rope, stage } = *self;
        if !model.device.is_cpu() && hidden.iter().all(|x| x.device().is_cpu()) {
            let run = |x: Tensor| {
                let mut tap = tap();
                let y = layer.run(&model.config, rope, &x, None, &mut tap, wanted)?;
                each(tap);
                stage.inc(1)?;
                y.map(|y| Ok((y.contiguous()?, device::mark(&model.device)?))).transpose()
            };
            let down = |(y, made): &(Tensor, device::Mark)| Ok(device::to_host_after(y, made)?);
            return in_turns(hidden, |x| Ok(device::to_device(x, &model.device)?), run, down);
        }
        let together = if model.device.is_cpu() { rayon::current_num_threads() } else { 1 };
        for windows in hidden.chunks_mut(together) {
            let taps: Vec<T> = windows
                .par_iter_mut()
                .map(|x| {
                    let mut tap = tap();
                    if let Some(y) = layer.run(&model.config, rope, x, None, &mut tap, wanted)? {
                        *x = y;
                    }
                    Ok(tap)
                })
                .collect::<Result<_>>()?;
            taps.into_iter().for_each(&mut each);
            stage.inc(windows.len() as u64)?;
        }
        Ok(())
    }
}

/// The key of a cached tensor: the id of the model or change set that it belongs to, and its name.
type Key = (u64, String);

/// The id of the checkpoint's own, unchanged tensors.
pub(super) const CHECKPOINT: u64 = 0;

/// An LRU cache of tensors on the device, of a limited number of bytes. Key: (id of the model or change set, tensor
/// name).
#[derive(Debug)]
pub(super) struct TensorCache {
    state: Mutex<State>,
    budget_bytes: u64,
}

#[derive(Debug, Default)]
struct State {
    tensors: HashMap<Key, (Tensor, u64)>,
    /// Counts uses; the count at a tensor's last use stands beside it.
    clock: u64,
    residency: Residency,
}

/// Tensors of a model on its device, and how often one had to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Residency {
    /// Tensors held.
    pub tensors: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that may be held; `None` when all of the model is.
    pub budget_bytes: Option<u64>,
    /// Uses of a tensor that was held.
    pub hits: u64,
    /// Uses of a tensor that was read.
    pub reads: u64,
    /// Tensors that were evicted to make room.
    pub evictions: u64,
}

impl TensorCache {
    pub(super) fn new(budget_bytes: u64) -> TensorCache {
        TensorCache { state: Mutex::default(), budget_bytes }
    }

    /// `owner`'s tensor called `name`, which `read` reads if it is not held.
    pub(super) fn tensor(&self, owner: u64, name: &str, read: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        if let Some(tensor) = self.held(owner, name) {
            return Ok(tensor);
        }
        // Unlocked: other tensors can be used meanwhile.
        let tensor = read()?;
        let state = &mut *self.state();
        state.residency.reads += 1;
        let bytes = bytes(&tensor);
        let key = (owner, name.to_owned());
        if bytes > self.budget_bytes || state.tensors.contains_key(&key) {
            return Ok(tensor);
        }
        while state.residency.bytes + bytes > self.budget_bytes {
            let oldest = state.tensors.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone());
            let Some((gone, _)) = oldest.and_then(|key| state.tensors.remove(&key)) else { break };
            state.residency.bytes -= self::bytes(&gone);
            state.residency.evictions += 1;
        }
        state.residency.bytes += bytes;
        state.tensors.insert(key, (tensor.clone(), state.clock));
        Ok(tensor)
    }

    /// `owner`'s tensor called `name`, if it is held.
    pub(super) fn held(&self, owner: u64, name: &str) -> Option<Tensor> {
        let state = &mut *self.state();
        state.clock += 1;
        let (tensor, used) = state.tensors.get_mut(&(owner, name.to_owned()))?;
        *used = state.clock;
        state.residency.hits += 1;
        Some(tensor.clone())
    }

    /// Removes the tensors of `owner`.
    pub(super) fn forget(&self, owner: u64) {
        let State { tensors, residency, .. } = &mut *self.state();
        tensors.retain(|(of, _), (tensor, _)| {
            let stays = *of != owner;
            residency.bytes -= if stays { 0 } else { bytes(tensor) };
            stays
        });
    }

    pub(super) fn residency(&self) -> Residency {
        let state = self.state();
        let (tensors, budget_bytes) = (state.tensors.len() as u64, Some(self.budget_bytes));
        Residency { tensors, budget_bytes, ..state.residency }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }
}

/// Bytes of a tensor's values.
pub(super) fn bytes(tensor: &Tensor) -> u64 {
    (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn reading_ahead_gives_the_same_layers_and_stops_at_a_failure() {
        for ahead in [false, true] {
            let mut seen = Vec::new();
            let push = |seen: &mut Vec<_>, i, layer| {
                seen.push((i, layer));
                Ok(())
            };
            each(5, |i| Ok(i * i), ahead, |i, layer| push(&mut seen, i, layer)).unwrap();
            assert_eq!(seen, [(0, 0), (1, 1), (2, 4), (3, 9), (4, 16)], "ahead: {ahead}");

            let read = AtomicUsize::new(0);
            let count = |i| {
                read.fetch_add(1, Ordering::Relaxed);
                Ok(i)
            };
            let stop = |i, _| if i == 1 { Err(Error::Interrupted) } else { Ok(()) };
            assert!(matches!(each(100, count, ahead, stop), Err(Error::Interrupted)));
            assert_eq!(read.into_inner(), if ahead { 3 } else { 2 });

            let mut used = 0;
            let damaged = |i| if i == 2 { Err(Error::file("layer", "is damaged")) } else { Ok(i) };
            let failed = each(5, damaged, ahead, |_, _| {
                used += 1;
                Ok(())
            });
            assert!(failed.unwrap_err().to_string().contains("is damaged"));
            assert_eq!(used, 2, "ahead: {ahead}");
        }
    }

    #[test]
    fn what_waits_on_the_host_takes_turns() {
        let log = std::cell::RefCell::new(Vec::new());
        let note = |what: &str, x: i32| log.borrow_mut().push(format!("{what} {x}"));
        let run_all = |items: &mut [i32], fails: i32, keeps: bool| {
            in_turns(
                items,
                |&x| {
                    note("up", x);
                    Ok(x)
                },
                |x| {
                    note("run", x);
                    if x == fails { Err(Error::Interrupted) } else { Ok(keeps.then_some(10 * x)) }
                },
                |&y| {
                    note("down", y);
                    Ok(y)
                },
            )
        };
        let mut items = [1, 2, 3];
        run_all(&mut items, 0, true).unwrap();
        assert_eq!(items, [10, 20, 30]);
        assert_eq!(log.take(), ["up 1", "run 1", "up 2", "run 2", "up 3", "down 10", "run 3", "down 20", "down 30"]);
        run_all(&mut items, 0, false).unwrap();
        assert_eq!(items, [10, 20, 30]);
        assert!(run_all(&mut items, 20, true).is_err());
        run_all(&mut [], 0, true).unwrap();
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let kept = TensorCache::new(24);
        let get = |name: &str| {
            let mut read = false;
            let tensor = kept.tensor(CHECKPOINT, name, || {
                read = true;
                Ok(Tensor::zeros(if name == "large" { 7 } else { 2 }, DType::F32, &Device::Cpu)?)
            });
            assert!(tensor.is_ok());
            read
        };
        assert!(get("a") && get("b") && get("c"));
        assert!(!get("a") && !get("c"));
        assert!(get("d")); // b goes
        assert!(!get("a") && !get("c") && !get("d") && get("b")); // a goes
        assert!(get("a"));
        assert!(get("large") && get("large"), "what is larger than the budget is not kept");
        let Residency { tensors, bytes, budget_bytes, hits, reads, evictions } = kept.residency();
        assert_eq!((tensors, bytes, budget_bytes), (3, 24, Some(24)));
        assert_eq!((hits, reads, evictions), (5, 8, 3));
    }
}
