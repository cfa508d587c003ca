//! Model tensors that a checkpoint stores under other names or in another form: experts in one tensor, an embedding
//! that is the output head, an output head that `config.json` denies.

use super::config::{ExpertStorage, ModelConfig, MoeConfig};
use super::layout::{EMBEDDING, HEAD};
use crate::checkpoint::{Checkpoint, Part, Source, same_bytes};
use crate::error::{Error, Result};
use candle_core::Tensor;
use std::collections::HashMap;

/// The checkpoint with every tensor of the model under its name. `config` learns whether there is an output head of its own, and
/// `notes` what a person should know of all this.
///
/// # Errors
/// [`Error::Tensor`] when a tensor of experts has another shape than `config` calls for, or there is no output head; those of
/// reading.
pub(super) fn resolve(
    config: &mut ModelConfig,
    checkpoint: &Checkpoint,
    notes: &mut Vec<String>,
) -> Result<Checkpoint> {
    let mut parts = Vec::new();
    match (config.tie_word_embeddings, checkpoint.contains(EMBEDDING), checkpoint.contains(HEAD)) {
        (true, true, true) if head_differs(checkpoint)? == Some(true) => {
            config.tie_word_embeddings = false;
            notes.push(format!(
                "config.json says `tie_word_embeddings`, but `{HEAD}` differs from the embedding; it is used, as transformers 5 \
                 does"
            ));
        }
        (true, false, true) => {
            let shape = checkpoint.get(HEAD)?.shape.clone();
            parts.push(Part { name: EMBEDDING.into(), of: HEAD.into(), start: 0, shape, transposed: false });
            notes.push(format!("`{EMBEDDING}` is not stored; `{HEAD}` is both, as `tie_word_embeddings` says"));
        }
        (false, false, true) => {
            let problem = format!(
                "is missing, and config.json does not say that `{HEAD}`, which is here, is the embedding too. Set \
                 \"tie_word_embeddings\": true there if it is"
            );
            return Err(Error::tensor(checkpoint.dir(), EMBEDDING, problem));
        }
        _ => {}
    }
    let shape = |name: &str| checkpoint.get(name).ok().map(|info| info.shape.clone());
    parts.extend(experts(config, &shape).map_err(|(name, problem)| Error::tensor(checkpoint.dir(), name, problem))?);
    if parts.is_empty() { Ok(checkpoint.clone()) } else { checkpoint.with_parts(parts) }
}

/// Returns whether the output head in `source` is another matrix than the embedding; `None` where not both are there.
/// Reading stops at the first difference.
///
/// # Errors
/// Those of [`Source::stream`].
pub fn head_differs(source: &dyn Source) -> Result<Option<bool>> {
    let find = |name: &str| source.index().iter().find(|info| info.name == name);
    match (find(EMBEDDING), find(HEAD)) {
        (Some(embedding), Some(head)) => Ok(Some(!same_bytes(source, embedding, head)?)),
        _ => Ok(None),
    }
}

/// Adds the tensors of single experts to those that hold all.
///
/// # Errors
/// As [`resolve`].
pub(super) fn divide(config: &ModelConfig, tensors: &mut HashMap<String, Tensor>) -> Result<()> {
    let shape = |name: &str| tensors.get(name).map(|tensor| tensor.dims().to_vec());
    let parts = experts(config, &shape).map_err(|(name, problem)| Error::tensor("tensors in memory", name, problem))?;
    for part in parts {
        let Some(whole) = tensors.get(&part.of) else { continue };
        let elements = part.shape.iter().product();
        let own = whole.flatten_all()?.narrow(0, part.start as usize, elements)?;
        let own = match (part.transposed, part.shape.as_slice()) {
            (true, &[out, input]) => own.reshape((input, out))?.t()?.contiguous()?,
            (_, shape) => own.reshape(shape)?,
        };
        tensors.insert(part.name, own);
    }
    Ok(())
}

/// The parts of tensors that hold all experts of a layer, where there are such instead of one for each expert, `shape` being that
/// of the tensor of a name. The error is a tensor and what is wrong with it.
fn experts(config: &ModelConfig, shape: &impl Fn(&str) -> Option<Vec<usize>>) -> Result<Vec<Part>, (String, String)> {
    let mut parts = Vec::new();
    for layer in 0..config.layers {
        let Some(moe) = config.mixture(layer) else { continue };
        let prefix = |module: &str| format!("model.layers.{layer}.{module}");
        let own = prefix(moe.names.module);
        let first = match moe.storage {
            ExpertStorage::Separate => format!("{own}.experts.0.{}.weight", moe.names.linears[2]),
            ExpertStorage::Stacked { .. } => format!("{own}.experts.0.down_proj.weight"),
        };
        if shape(&first).is_some() {
            continue;
        }
        let modules = [moe.names.module, moe.names.fused_module];
        let stored =
            modules.map(prefix).into_iter().find(|module| shape(&format!("{module}.experts.down_proj")).is_some());
        let Some(stored) = stored else { continue };
        let router = [&own, &stored].map(|module| format!("{module}.{}.weight", moe.names.router));
        if let (None, Some(shape)) = (shape(&router[0]), shape(&router[1])) {
            let [name, of] = router;
            parts.push(Part { name, of, start: 0, shape, transposed: false });
        }
        let (gate_up, down) = layer_parts(moe, config.hidden_size, &own, &stored);
        for (part_of, wanted, all) in [gate_up, down] {
            match shape(&part_of) {
                Some(shape) if shape == wanted => parts.extend(all),
                Some(shape) => {
                    let problem = format!("has shape {shape:?}, but config.json calls for {wanted:?}");
                    return Err((part_of, problem));
                }
                None => return Err((part_of, "is missing, while the layer's other experts are here".into())),
            }
        }
    }
    Ok(parts)
}

/// A tensor that holds all experts, its shape, and its parts.
type Fused = (String, Vec<usize>, Vec<Part>);

/// Both tensors that hold the experts of a layer: those of gate and up projections, and of down projections.
fn layer_parts(moe: &MoeConfig, hidden: usize, own: &str, stored: &str) -> (Fused, Fused) {
    let (experts, width) = (moe.experts, moe.intermediate_size);
    let [gate_up, down] = ["gate_up_proj", "down_proj"].map(|name| format!("{stored}.experts.{name}"));
    let each = |of: &str, elements: usize, linears: &[(&str, usize, [usize; 2])], transposed: bool| {
        let part = |expert: usize, &(linear, start, shape): &(&str, usize, [usize; 2])| Part {
            name: format!("{own}.experts.{expert}.{linear}.weight"),
            of: of.to_owned(),
            start: (expert * elements + start) as u64,
            shape: shape.to_vec(),
            transposed,
        };
        (0..experts).flat_map(|expert| linears.iter().map(move |linear| part(expert, linear))).collect::<Vec<_>>()
    };
    let (both, one) = (2 * width * hidden, width * hidden);
    match moe.storage {
        ExpertStorage::Separate => {
            let [gate_proj, up_proj, down_proj] = moe.names.linears;
            let inner = [(gate_proj, 0, [width, hidden]), (up_proj, one, [width, hidden])];
            let outer = [(down_proj, 0, [hidden, width])];
            let (inner, outer) = (each(&gate_up, both, &inner, false), each(&down, one, &outer, false));
            ((gate_up, vec![experts, 2 * width, hidden], inner), (down, vec![experts, hidden, width], outer))
        }
        // The other way around, and gate and up by turns.
        ExpertStorage::Stacked { .. } => {
            let (inner, outer) = ([("gate_up_proj", 0, [2 * width, hidden])], [("down_proj", 0, [hidden, width])]);
            let (inner, outer) = (each(&gate_up, both, &inner, true), each(&down, one, &outer, true));
            ((gate_up, vec![experts, hidden, 2 * width], inner), (down, vec![experts, width, hidden], outer))
        }
    }
}
