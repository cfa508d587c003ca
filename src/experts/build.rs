//! Fewer experts: of a model in memory, in a new checkpoint, or in files of single layers.

use super::keep::Keep;
use super::layout::{ExpertLayout, Role, place, renumbered};
use crate::checkpoint::{
    Copied, OutputFile, OutputTensor, Rewrite, SideFiles, Source, deal_out, index_text, shard_name,
};
use crate::error::{Error, Result};
use crate::model::{Model, ModelConfig, MoeConfig};
use crate::progress::Progress;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::Path;

/// The experts that stay, and an account of the choice for the manifest.
#[derive(Clone)]
pub struct Selection {
    /// The experts that stay.
    pub keep: Keep,
    /// The account of the choice: a metric's name and its settings.
    pub by: Map<String, Value>,
}

crate::debug::one_line!(rich Selection, |selection| format!("Selection({:?})", selection.keep));

impl From<Keep> for Selection {
    /// A selection without an account of the choice.
    fn from(keep: Keep) -> Self {
        Selection { keep, by: Map::new() }
    }
}

/// The fate of super-experts, as pairs of layer and expert.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuperExpertsKept {
    /// Experts that stay.
    pub kept: Vec<(usize, usize)>,
    /// Experts that are dropped.
    pub dropped: Vec<(usize, usize)>,
}

/// The entry of [`Selection::by`] that tells what becomes of super-experts.
const SUPER_EXPERTS: &str = "super_experts";

impl Selection {
    /// This selection with an account of super-experts, the pairs of layer and expert in `found`
    /// ([`ExpertScores::super_experts`](super::ExpertScores::super_experts)): those that stay, and those that are
    /// dropped.
    #[must_use]
    pub fn with_super_experts(mut self, found: &[(usize, usize)]) -> Self {
        let stays = |&(layer, expert): &(usize, usize)| self.keep.get(layer).is_some_and(|kept| kept.contains(&expert));
        let (kept, dropped): (Vec<_>, Vec<_>) = found.iter().copied().partition(stays);
        self.by.insert(SUPER_EXPERTS.to_owned(), json!({ "kept": kept, "dropped": dropped }));
        self
    }

    /// The super-experts that stay and that are dropped; `None` where it is not known which experts they are.
    pub fn super_experts(&self) -> Option<SuperExpertsKept> {
        serde_json::from_value(self.by.get(SUPER_EXPERTS)?.clone()).ok()
    }

    /// The entries of the manifest that describe the selection.
    pub(super) fn about(&self, what: &str) -> Result<Map<String, Value>> {
        let keep = serde_json::to_value(&self.keep).map_err(|error| Error::file("manifest.json", error))?;
        Ok(Map::from_iter([
            ("output".to_owned(), what.into()),
            ("by".to_owned(), Value::Object(self.by.clone())),
            ("keep".to_owned(), keep),
        ]))
    }
}

/// The names of the kinds of output in a manifest.
pub(super) const MODEL: &str = "model";
pub(super) const SLICES: &str = "slices";

/// The tensors of the layers in `keep` that belong to mixtures, as they will be: in the order of the source.
fn sliced(source: &dyn Source, layout: &ExpertLayout, keep: &Keep) -> Result<HashMap<usize, Option<OutputTensor>>> {
    let mut outputs = HashMap::new();
    for (layer, kept) in keep.layers() {
        for &(role, position) in layout.mixtures.get(&layer).map_or(&[][..], Vec::as_slice) {
            let info = &source.index()[position];
            let output = match role {
                Role::Shared => continue,
                Role::Router => Some(OutputTensor::slices(info, 0, kept)?),
                Role::Stacked => Some(OutputTensor::slices(info, layout.family.expert_dim, kept)?),
                Role::Expert(expert) => kept
                    .binary_search(&expert)
                    .ok()
                    .map(|number| OutputTensor { name: renumbered(&info.name, number), ..OutputTensor::whole(info) }),
            };
            outputs.insert(position, output);
        }
    }
    Ok(outputs)
}

/// Every tensor of the pruned model, in the order of the source.
pub(super) fn model_tensors(source: &dyn Source, layout: &ExpertLayout, keep: &Keep) -> Result<Vec<OutputTensor>> {
    let mut sliced = sliced(source, layout, keep)?;
    let tensor = |(position, info)| sliced.remove(&position).unwrap_or_else(|| Some(OutputTensor::whole(info)));
    Ok(source.index().iter().enumerate().filter_map(tensor).collect())
}

/// The sliced tensors of each layer in `keep`, by the name of their file, in the order of the source.
pub(super) fn slice_files(source: &dyn Source, layout: &ExpertLayout, keep: &Keep) -> Result<Vec<OutputFile>> {
    let mut sliced = sliced(source, layout, keep)?;
    let file = |(layer, kept): (usize, &[usize])| OutputFile {
        name: format!("layer{layer}_keep{}.safetensors", kept.len()),
        tensors: layout.mixtures[&layer].iter().filter_map(|(_, position)| sliced.remove(position)?).collect(),
    };
    Ok(keep.layers().map(file).collect())
}

/// `config.json` of the pruned model.
pub(super) fn pruned_config(source: &dyn Source, layout: &ExpertLayout, kept: usize) -> Result<Map<String, Value>> {
    let mut config = source.config_json()?;
    for key in layout.family.experts_keys() {
        if let Some(value) = config.get_mut(key) {
            *value = kept.into();
        }
    }
    Ok(config)
}

/// Plans the pruned model, in shards of at most `max_shard` bytes (a larger tensor gets one of its own).
///
/// # Errors
/// Those of [`Keep::uniform`] and [`Rewrite::new`].
pub fn plan_model(source: &dyn Source, layout: &ExpertLayout, keep: &Keep, max_shard: u64) -> Result<Rewrite> {
    keep.uniform(layout)?;
    let shards = deal_out(model_tensors(source, layout, keep)?, max_shard, OutputTensor::bytes);
    let of = shards.len();
    let file = |(number, tensors)| OutputFile { name: shard_name(number, of), tensors };
    Rewrite::new(source, shards.into_iter().enumerate().map(file).collect())
}

/// Plans one file for each layer in `keep`, with its kept experts and router rows.
///
/// # Errors
/// Those of [`Rewrite::new`].
pub fn plan_slices(source: &dyn Source, layout: &ExpertLayout, keep: &Keep) -> Result<Rewrite> {
    Rewrite::new(source, slice_files(source, layout, keep)?)
}

/// The model without the experts that `keep` does not name, in memory: what [`prune_experts_to`] writes, loaded. The input is not
/// changed, and tensors that lose nothing are shared with it. Packed experts (gpt-oss) stay packed.
///
/// Memory: the whole model that is returned, even where `model` has a budget ([`Model::within`]).
///
/// # Errors
/// [`Error::Argument`] for a model without mixtures; those of [`Keep::new`] and [`Keep::uniform`] where `keep` does not fit the
/// model; [`Error::Io`] or [`Error::Tensor`] from reading.
pub fn prune_experts(model: &Model, keep: &Keep) -> Result<Model> {
    let config = model.config();
    let Some(moe) = &config.moe else {
        return Err(Error::argument("model", model.name(), "has no mixtures of experts"));
    };
    let layout = ExpertLayout {
        family: moe.names,
        layers: config.layers,
        experts: moe.experts,
        top_k: moe.top_k,
        groups: None,
        // The tensors of a model are found by their names.
        mixtures: (0..config.layers).filter(|&i| config.mixture(i).is_some()).map(|i| (i, Vec::new())).collect(),
    };
    // It may have been made for another model.
    let keep = Keep::new(&layout, keep.layers().map(|(layer, kept)| (layer, kept.to_vec())).collect())?;
    let moe = Some(MoeConfig { experts: keep.uniform(&layout)?, ..moe.clone() });
    model.parts(ModelConfig { moe, ..config.clone() }, |name| {
        let whole = Some((name.to_owned(), None));
        let Some((layer, role)) = place(layout.family, layout.layers, name) else { return whole };
        let Some(kept) = keep.get(layer) else { return whole };
        match role {
            Role::Shared => whole,
            // Experts are the first dimension of what holds all of them, in every family that a model can be of.
            Role::Router | Role::Stacked => Some((name.to_owned(), Some(kept.iter().map(|&e| e as u32).collect()))),
            Role::Expert(expert) => Some((renumbered(name, kept.binary_search(&expert).ok()?), None)),
        }
    })
}

/// Writes a loadable checkpoint without the other experts to the new directory `out`: weights and index, `config.json`
/// with the new number of experts, tokenizer and every other file of the source, and `manifest.json`. Bytes are copied by
/// ranges, to shards of at most `max_shard` bytes (a larger tensor gets one of its own); see [`Rewrite::run`] for memory,
/// interruption and resumption. [`prune_experts`] is the same in memory.
///
/// # Errors
/// Those of [`ExpertLayout::find`], [`plan_model`] and [`Rewrite::run`].
pub fn prune_experts_to(
    source: &dyn Source,
    selection: &Selection,
    max_shard: u64,
    out: &Path,
    progress: Progress,
) -> Result<Copied> {
    let layout = &ExpertLayout::find(source)?;
    let rewrite = plan_model(source, layout, &selection.keep, max_shard)?;
    let kept = selection.keep.uniform(layout)?;
    let mut config = serde_json::to_vec_pretty(&pruned_config(source, layout, kept)?)
        .map_err(|error| Error::file(out.join("config.json"), error))?;
    config.push(b'\n');
    let mut generated = vec![("config.json".to_owned(), config)];
    generated.extend(index_text(source, rewrite.files()));
    rewrite.run(source, out, &selection.about(MODEL)?, &generated, SideFiles::Copied, progress)
}

/// Writes the kept experts and router rows of each layer in the selection to `layer{L}_keep{K}.safetensors` in the new
/// directory `out`. Each shard is read once, from front to back, however layers and shards interleave.
///
/// # Errors
/// Those of [`plan_slices`] and [`Rewrite::run`].
pub fn slice(
    source: &dyn Source,
    layout: &ExpertLayout,
    selection: &Selection,
    out: &Path,
    progress: Progress,
) -> Result<Copied> {
    let rewrite = plan_slices(source, layout, &selection.keep)?;
    rewrite.run(source, out, &selection.about(SLICES)?, &[], SideFiles::Left, progress)
}
