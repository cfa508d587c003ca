//! Names of tensors as they were saved, and as families call them.
//!
//! A wrapper that was still around a model when it was saved leaves its own name in every tensor's: `_orig_mod.` of
//! `torch.compile`, `module.` of data parallelism, `base_model.model.` of PEFT, in any order and number. A model that was
//! saved without its head, by its base class, lacks `model.` instead. Everything that reads a checkpoint sees the names of the
//! family; what is written has those of the input.

use super::TensorInfo;
use crate::error::{Error, Remedy, Result};
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

/// Parts that wrappers put anywhere into a name: a compiled, sharded or checkpointed module inside a model that is none.
const INNER: [&str; 5] =
    ["_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_forward_module"];
/// Prefixes that wrappers put before a name.
const OUTER: [&str; 2] = ["module.", "base_model.model."];
/// The prefix that families put before the names of all tensors but the head's.
const BASE: &str = "model.";
/// The modules of a base class.
const MODULES: [&str; 3] = ["embed_tokens", "layers", "norm"];

/// The names in a file of those tensors that families call otherwise.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    /// The family's name -> the one in the file.
    stored: HashMap<String, String>,
    note: Option<String>,
}

impl Names {
    /// Gives `tensors`, which are in the files `paths`, the names of their family.
    ///
    /// # Errors
    /// [`Error::Tensor`] when two of them would have one name.
    pub(super) fn settle(tensors: &mut [TensorInfo], paths: &[PathBuf]) -> Result<Names> {
        let plain = family_names(tensors.iter().map(|info| info.name.as_str()));
        let is_model = |name: &String| name.starts_with("model.layers.") || name.starts_with("model.embed_tokens.");
        let changed = tensors.iter().zip(&plain).filter(|(info, plain)| info.name != **plain).count();
        if changed == 0 || !plain.iter().any(is_model) {
            return Ok(Names::default());
        }
        let mut owners: HashMap<&str, &TensorInfo> = HashMap::with_capacity(tensors.len());
        for (info, plain) in tensors.iter().zip(&plain) {
            if let Some(other) = owners.insert(plain, info) {
                let problem =
                    format!("without the prefix that a wrapper has added it is `{plain}`, and so is `{}`", other.name)
                        .remedy("leave one of the two models out of the file");
                return Err(Error::tensor(&paths[info.shard], &info.name, problem));
            }
        }
        drop(owners);
        let first = tensors.iter().zip(&plain).find(|(info, plain)| info.name != **plain);
        let note = first.map(|(info, plain)| {
            let of = tensors.len();
            format!(
                "{changed} of {of} names are those of a wrapped model or a base class: `{}` is read as `{plain}`, and \
                 written as it is",
                info.name
            )
        });
        let mut stored = HashMap::with_capacity(changed);
        for (info, plain) in tensors.iter_mut().zip(plain) {
            if info.name != plain {
                stored.insert(plain.clone(), std::mem::replace(&mut info.name, plain));
            }
        }
        Ok(Names { stored, note })
    }

    /// The name in the file of what a family calls `name`, or of a part of it that has a name of its own there.
    pub(super) fn stored<'a>(&'a self, name: &'a str) -> Cow<'a, str> {
        if self.stored.is_empty() {
            return Cow::Borrowed(name);
        }
        if let Some(stored) = self.stored.get(name) {
            return Cow::Borrowed(stored);
        }
        let Some((base, part)) = name.rsplit_once('.') else { return Cow::Borrowed(name) };
        if let Some(stored) = self.stored.get(base) {
            return Cow::Owned(format!("{stored}.{part}"));
        }
        match self.stored.get(&format!("{base}.weight")).and_then(|stored| stored.strip_suffix("weight")) {
            Some(stored) => Cow::Owned(format!("{stored}{part}")),
            None => Cow::Borrowed(name),
        }
    }

    /// A remark about the names for the user, if there is one.
    pub(super) fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }
}

/// The names of their family of the tensors of a model or of a part of it.
pub(crate) fn family_names<'a>(stored: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut plain: Vec<String> = stored.map(|name| unwrapped(name).into_owned()).collect();
    let doubled = format!("{BASE}{BASE}layers.");
    if plain.iter().any(|name| name.starts_with(&doubled)) {
        // A module that holds the model as its own `model`, as training loops do.
        for name in &mut plain {
            if let Some(rest) = name.strip_prefix(BASE) {
                *name = rest.to_owned();
            }
        }
    }
    if !plain.iter().any(|name| name.starts_with(BASE)) {
        for name in &mut plain {
            if MODULES.contains(&name.split('.').next().unwrap_or_default()) {
                name.insert_str(0, BASE);
            }
        }
    }
    plain
}

/// A name without what wrappers have added.
fn unwrapped(name: &str) -> Cow<'_, str> {
    let mut plain = if name.split('.').any(|part| INNER.contains(&part)) {
        let parts: Vec<&str> = name.split('.').filter(|part| !INNER.contains(part)).collect();
        Cow::Owned(parts.join("."))
    } else {
        Cow::Borrowed(name)
    };
    while let Some(rest) = OUTER.iter().find_map(|outer| plain.strip_prefix(outer)) {
        plain = Cow::Owned(rest.to_owned());
    }
    plain
}

/// First parts of the names of `tensors`, for messages: which names a checkpoint has instead.
pub(super) fn beginnings<'a>(tensors: impl Iterator<Item = &'a TensorInfo>) -> String {
    let beginning = |info: &'a TensorInfo| {
        let parts = info.name.split('.').take(2).filter(|part| !part.bytes().all(|b| b.is_ascii_digit()));
        parts.collect::<Vec<_>>().join(".")
    };
    let all: BTreeSet<String> = tensors.map(beginning).collect();
    let few: Vec<String> = all.iter().take(4).map(|name| format!("`{name}`")).collect();
    few.join(", ") + if all.len() > 4 { ", .." } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::Dtype;

    fn settled(names: &[&str]) -> Result<(Vec<String>, Names)> {
        let info = |name: &&str| TensorInfo {
            name: (*name).to_owned(),
            dtype: Dtype::F32,
            shape: vec![1],
            shard: 0,
            range: 0..4,
        };
        let mut tensors: Vec<TensorInfo> = names.iter().map(info).collect();
        let names = Names::settle(&mut tensors, &["file".into()])?;
        Ok((tensors.into_iter().map(|info| info.name).collect(), names))
    }

    const PLAIN: [&str; 4] =
        ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"];

    #[test]
    fn wrappers_are_taken_off_and_put_on_again() {
        let wrap = |outer: &str, inner: &str, base: &str| {
            PLAIN.map(|name| match name.strip_prefix("model.") {
                Some(rest) => format!("{outer}{base}{}", rest.replace("layers.0.", &format!("layers.0.{inner}"))),
                None => format!("{outer}{name}"),
            })
        };
        for (outer, inner, base) in [
            ("_orig_mod.", "", "model."),
            ("module.", "", "model."),
            ("base_model.model.", "", "model."),
            ("", "", ""),
            ("module._orig_mod.", "", "model."),
            ("_orig_mod.module.module.base_model.model.", "", ""),
            ("", "_orig_mod.", "model."),
            ("_fsdp_wrapped_module.", "_fsdp_wrapped_module._checkpoint_wrapped_module.", "model."),
            ("model.", "", "model."),
        ] {
            let names = wrap(outer, inner, base);
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let (plain, map) = settled(&names).unwrap();
            assert_eq!(plain, PLAIN, "{names:?}");
            assert_eq!(plain.iter().map(|name| map.stored(name).into_owned()).collect::<Vec<_>>(), names);
            assert_eq!(map.note().is_some(), names != PLAIN);
            let part = map.stored("model.layers.0.mlp.up_proj.bitmask").into_owned();
            assert_eq!(part, names[1].replace("weight", "bitmask"));
            assert_eq!(map.stored("model.norm.weight.values"), format!("{}.values", names[2]));
        }
    }

    #[test]
    fn other_names_stay_and_two_models_in_one_file_are_refused() {
        for names in [&PLAIN[..], &["a", "module.b"], &["transformer.h.0.w", "layernorm.weight"], &["layer"]] {
            let (plain, map) = settled(names).unwrap();
            assert_eq!((plain, map.note()), (names.iter().map(|name| (*name).to_owned()).collect(), None));
        }
        let error = settled(&["model.layers.0.w", "module.model.layers.0.w"]).unwrap_err().to_string();
        assert!(error.contains("`module.model.layers.0.w`") && error.contains("so is `model.layers.0.w`"), "{error}");
    }
}
