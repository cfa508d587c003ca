//! Gradients as files.

use super::{Gradients, Stored, Values};
use crate::checkpoint::{Array, Checkpoint, CheckpointWriter};
use crate::error::{Error, Remedy, Result};
use safetensors::Dtype;
use std::path::Path;
use std::sync::Arc;

/// The array of the windows' losses; the others have the names of linears.
const LOSSES: &str = "losses";
/// The linears' names, in the order in which a token meets them.
const NAMES: &str = "linears.json";

impl Gradients {
    /// Writes them to a new directory: `model.safetensors` with an array of f32 for each linear, `(out * in,)`, and the losses.
    ///
    /// # Errors
    /// [`Error::File`] when `dir` exists or the disk is full; [`Error::Io`].
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        let Stored { names, values } = &*self.stored;
        let mut plan = vec![(LOSSES.to_owned(), Dtype::F64, vec![self.losses.len()])];
        for name in names {
            let len = match values {
                Values::Scratch { places, .. } => places.get(name).map_or(0, |&(_, len)| len),
                Values::Saved(saved) => saved.get(name)?.elements() as usize,
            };
            plan.push((name.clone(), Dtype::F32, vec![len]));
        }
        let mut writer = CheckpointWriter::arrays(dir, plan)?;
        writer.write_array(LOSSES, Array::F64(&self.losses))?;
        for name in names {
            writer.write_array(name, Array::F32(&self.get(name)?.unwrap_or_default()))?;
        }
        let json = serde_json::to_vec(names).map_err(|error| Error::file(dir, error))?;
        writer.add_file(NAMES, &json)?;
        writer.finish()
    }

    /// Opens what [`Gradients::save`] wrote; [`Gradients::get`] reads from there.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Tensor`] for a directory that holds something else or is damaged; [`Error::Io`].
    pub fn load(dir: impl AsRef<Path>) -> Result<Gradients> {
        let dir = dir.as_ref();
        let path = dir.join(NAMES);
        let json = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let wrong =
            |error| Error::file(&path, format!("does not name linears ({error})").remedy("take the gradients again"));
        let names: Vec<String> = serde_json::from_slice(&json).map_err(wrong)?;
        let saved = Checkpoint::open_arrays(dir)?;
        names.iter().try_for_each(|name| saved.get(name).map(drop))?;
        let losses = saved.array(LOSSES, f64::from_le_bytes)?;
        let loss_nats = losses.iter().sum::<f64>() / losses.len() as f64;
        Ok(Gradients { losses, loss_nats, stored: Arc::new(Stored { names, values: Values::Saved(saved) }) })
    }
}
