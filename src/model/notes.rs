//! Remarks on parts of a checkpoint that its model does not read: said once, since a misspelt name would look the same.

use super::Model;
use super::layout::HEAD;
use serde_json::{Map, Value};
use std::collections::HashSet;

/// Fields of rotary embeddings that every type has.
const ROPE: [&str; 4] = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
/// The fields that each other type reads, as in `RopeConfig::from_fields`.
const ROPE_OF_TYPE: [(&str, &[&str]); 4] = [
    ("linear", &["factor"]),
    ("dynamic", &["factor"]),
    ("llama3", &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]),
    (
        "yarn",
        &[
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ],
    ),
];
/// Keys of rotary embeddings in `config.json`; the first one that is there and not empty is read.
const ROPE_KEYS: [&str; 2] = ["rope_scaling", "rope_parameters"];

impl Model {
    /// Remarks on how the checkpoint was read, one sentence each: an output head that `config.json` denies, tensors
    /// that are no part of the model, fields of the rotary embedding without effect. Oddities of the files are in
    /// [`Checkpoint::notes`](crate::checkpoint::Checkpoint::notes).
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.notes.to_vec();
        let Some(checkpoint) = &self.checkpoint else { return notes };
        let needed: HashSet<String> = self.config.needed().into_iter().map(|needed| needed.name).collect();
        let is_spare = |name: &&str| !needed.contains(*name) && !is_known(name);
        let spare: Vec<&str> = checkpoint.divided().map(|info| info.name.as_str()).filter(is_spare).collect();
        notes.extend(spare.first().map(|first| match spare.len() {
            1 => format!("1 tensor is not part of the model and not read, `{first}`"),
            number => format!("{number} tensors are not part of the model and not read, such as `{first}`"),
        }));
        notes.extend(checkpoint.config().ok().and_then(|config| ignored_rope(&config)));
        notes
    }
}

/// Returns whether a tensor is the copy of a tied embedding, or a buffer that older versions of transformers saved.
fn is_known(name: &str) -> bool {
    name == HEAD || [".inv_freq", ".masked_bias", ".attn.bias", ".rope.freqs"].iter().any(|end| name.ends_with(end))
}

/// The fields of rotary embeddings that have no effect, if there are any.
fn ignored_rope(config: &Map<String, Value>) -> Option<String> {
    let maps = ROPE_KEYS.iter().filter_map(|key| Some((*key, config.get(*key)?.as_object()?)));
    let mut maps = maps.filter(|(_, map)| !map.is_empty());
    let (key, map) = maps.next()?;
    let kind = ["rope_type", "type"].iter().find_map(|key| map.get(*key)?.as_str()).unwrap_or("default");
    let own = ROPE_OF_TYPE.iter().find(|(known, _)| *known == kind).map_or(&[][..], |(_, own)| own);
    let spare = map
        .iter()
        .filter(|(field, value)| !value.is_null() && !ROPE.contains(&field.as_str()) && !own.contains(&field.as_str()));
    let mut ignored: Vec<String> = spare.map(|(field, _)| format!("`{key}.{field}`")).collect();
    ignored.extend(maps.filter(|(_, other)| *other != map).map(|(other, _)| format!("all of `{other}`")));
    (!ignored.is_empty()).then(|| {
        let (verb, it) = if ignored.len() == 1 { ("is", "it") } else { ("are", "them") };
        format!(
            "{} in config.json {verb} ignored: the rotary embedding is of type `{kind}`, which does not have {it}",
            ignored.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_has_no_effect_is_named() {
        let ignored = |config: Value| ignored_rope(config.as_object().unwrap());
        for quiet in [
            json!({"rope_theta": 1e4}),
            json!({"rope_scaling": null, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "factor": null}}),
            json!({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 32, "truncate": false}}),
            json!({"rope_scaling": {"rope_type": "llama3", "low_freq_factor": 1, "original_max_position_embeddings": 8}}),
        ] {
            assert_eq!(ignored(quiet.clone()), None, "{quiet}");
        }
        let said = ignored(json!({"rope_scaling": {"factor": 8.0, "rope_theta": 1e4}})).unwrap();
        assert!(
            said.starts_with("`rope_scaling.factor` in config.json is ignored") && said.contains("`default`"),
            "{said}"
        );
        let said = ignored(json!({
            "rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta_fast": 1, "beta_slow": 1},
            "rope_parameters": {"rope_type": "yarn", "factor": 2.0},
        }));
        let said = said.unwrap();
        assert!(
            said.starts_with("`rope_scaling.beta_fast`, `rope_scaling.beta_slow`, all of `rope_parameters`"),
            "{said}"
        );
    }
}
