//! The experts of each layer that stay.

use super::layout::ExpertLayout;
use crate::entries::Entries;
use crate::error::{Error, Problem, Remedy, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// The experts that stay, by layer, in ascending order. The order of experts does not change what a mixture computes, so
/// lists are sorted; an expert named twice is an error.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Keep(BTreeMap<usize, Vec<usize>>);

crate::debug::one_line!(rich Keep, |keep| {
    let kept: usize = keep.0.values().map(Vec::len).sum();
    format!("Keep({kept} experts of {} layers)", keep.0.len())
});

/// The number of experts that stay of `experts` at `fraction`: all but the `floor(experts * (1 - fraction))` of REAP's
/// reference code.
///
/// # Errors
/// [`Error::Argument`] unless `0 < fraction <= 1`.
pub fn count(experts: usize, fraction: f64) -> Result<usize> {
    if !(fraction > 0.0 && fraction <= 1.0) {
        return Err(Error::argument("keep", fraction, "is the fraction of experts that stay: above 0, at most 1"));
    }
    // 10 * 0.7 is 7.000000000000001: one expert more is not meant.
    Ok(((experts as f64 * fraction - 1e-9).ceil() as usize).clamp(1, experts))
}

impl Keep {
    /// Lists of experts by layer, sorted and checked.
    ///
    /// # Errors
    /// [`Error::Argument`] when a list is empty, names an expert twice or one of `experts` or above, or a layer is not one
    /// with a mixture.
    pub fn new(layout: &ExpertLayout, mut lists: BTreeMap<usize, Vec<usize>>) -> Result<Self> {
        for (layer, list) in &mut lists {
            let wrong = |problem: Problem| Error::argument("keep", format!("layer {layer}"), problem);
            if !layout.mixtures.contains_key(layer) {
                return Err(wrong("has no mixture of experts".into()));
            }
            list.sort_unstable();
            if list.is_empty() {
                return Err(wrong("keeps no expert".remedy("name at least one")));
            }
            if let Some(twice) = list.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(wrong(format!("names expert {} twice", twice[0]).into()));
            }
            if let Some(beyond) = list.iter().find(|&&expert| expert >= layout.experts) {
                return Err(wrong(
                    format!("names expert {beyond}").remedy(format!("there are {}, counted from 0", layout.experts)),
                ));
            }
        }
        if lists.is_empty() {
            return Err(Error::argument("keep", "{}", "names no layer"));
        }
        Ok(Keep(lists))
    }

    /// Reads a JSON file: an object from layer to list, or a list of lists, one for each layer with a mixture.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::File`] when the file is neither; those of [`Keep::new`].
    pub fn read(layout: &ExpertLayout, path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(Error::io("read", path))?;
        let form = |error| {
            let forms = "neither {\"0\": [1, 5], ..} nor [[1, 5], ..], lists of the experts that stay";
            Error::file(path, format!("{forms} ({error})"))
        };
        let json: Value = serde_json::from_slice(&text).map_err(form)?;
        let lists = if json.is_object() {
            // Again, for a value has forgotten a layer that stands there twice.
            let Entries(lists) = serde_json::from_slice(&text).map_err(form)?;
            lists.into_iter().collect()
        } else {
            let lists: Vec<Vec<usize>> = serde_json::from_value(json).map_err(form)?;
            if lists.len() != layout.mixtures.len() {
                let problem = format!("{} lists for {} layers with a mixture", lists.len(), layout.mixtures.len());
                return Err(Error::file(path, problem));
            }
            layout.mixtures.keys().copied().zip(lists).collect()
        };
        Self::new(layout, lists)
    }

    /// The experts of `layer` that stay.
    pub fn get(&self, layer: usize) -> Option<&[usize]> {
        self.0.get(&layer).map(Vec::as_slice)
    }

    /// Layers and the experts of each that stay.
    pub fn layers(&self) -> impl Iterator<Item = (usize, &[usize])> {
        self.0.iter().map(|(&layer, list)| (layer, list.as_slice()))
    }

    /// Only the given layers.
    ///
    /// # Errors
    /// [`Error::Argument`] for a layer that is not there.
    pub fn only(&self, layers: &[usize]) -> Result<Self> {
        let get = |&layer: &usize| {
            let list = self.0.get(&layer).ok_or_else(|| {
                let known: Vec<String> = self.0.keys().map(usize::to_string).collect();
                Error::argument("layer", layer, format!("is none of those with a mixture: {}", known.join(", ")))
            })?;
            Ok((layer, list.clone()))
        };
        layers.iter().map(get).collect::<Result<_>>().map(Keep)
    }

    /// Checks that a model can be made of what stays, and returns how many experts each mixture has then.
    ///
    /// # Errors
    /// [`Error::Argument`] when a layer is missing, the counts differ, fewer experts stay than a token needs, or groups
    /// lose unequally or too much.
    pub fn uniform(&self, layout: &ExpertLayout) -> Result<usize> {
        if let Some(layer) = layout.mixtures.keys().find(|layer| !self.0.contains_key(layer)) {
            return Err(Error::argument(
                "keep",
                format!("layer {layer}"),
                "has no list".remedy("a model needs one for every layer"),
            ));
        }
        let (first, kept) = self.layers().next().map_or((0, 0), |(layer, list)| (layer, list.len()));
        if let Some((layer, list)) = self.layers().find(|(_, list)| list.len() != kept) {
            let problem = format!(
                "keeps {} experts and layer {first} keeps {kept}; `{}` in config.json is one number for all layers",
                list.len(),
                layout.family.experts_key
            );
            return Err(Error::argument("keep", format!("layer {layer}"), problem));
        }
        if kept < layout.top_k {
            let problem = format!("each token needs {} (`{}`)", layout.top_k, layout.family.top_k_keys[0])
                .remedy("keep at least that");
            return Err(Error::argument("keep", format!("{kept} experts"), problem));
        }
        if let Some(groups) = layout.groups {
            let size = layout.experts / groups.groups;
            for (layer, list) in self.layers() {
                let mut counts = vec![0; groups.groups];
                list.iter().for_each(|expert| counts[expert / size] += 1);
                if counts.iter().any(|&count| count != counts[0]) {
                    let problem = format!("groups of experts must lose equally, they would keep {counts:?}");
                    return Err(Error::argument("keep", format!("layer {layer}"), problem));
                }
            }
            if !layout.routable(kept) {
                let (reached, best) = (groups.reachable * kept / groups.groups, layout.family.group_best);
                let least = (kept..=layout.experts).find(|&count| layout.routable(count)).unwrap_or(layout.experts);
                let problem = format!(
                    "a token reaches {} of {} groups, so {reached} experts, and needs {}; a group needs {best} to be \
                     judged by",
                    groups.reachable, groups.groups, layout.top_k
                )
                .remedy(format!("keep at least {least}"));
                return Err(Error::argument("keep", format!("{kept} experts"), problem));
            }
        }
        Ok(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experts::layout::Groups;
    use crate::model::MoeFamily;

    fn layout(experts: usize, groups: Option<Groups>) -> ExpertLayout {
        let mixtures = (1..3).map(|layer| (layer, Vec::new())).collect();
        ExpertLayout { family: MoeFamily::find("deepseek_v3").unwrap(), layers: 4, experts, top_k: 2, groups, mixtures }
    }

    fn keep(layout: &ExpertLayout, lists: &[(usize, &[usize])]) -> Result<Keep> {
        Keep::new(layout, lists.iter().map(|(layer, list)| (*layer, list.to_vec())).collect())
    }

    #[test]
    fn fractions_keep_what_reap_does_not_drop() {
        for (experts, fraction, expected) in
            [(128, 0.5, 64), (8, 0.75, 6), (10, 0.7, 7), (10, 0.9, 9), (60, 0.33, 20), (8, 1.0, 8), (8, 0.01, 1)]
        {
            assert_eq!(count(experts, fraction).unwrap(), expected, "{experts} x {fraction}");
        }
        for fraction in [0.0, -0.5, 1.01, f64::NAN] {
            assert!(count(8, fraction).is_err());
        }
    }

    #[test]
    fn lists_are_sorted_and_checked() {
        let layout = layout(8, None);
        assert_eq!(keep(&layout, &[(1, &[5, 0, 3])]).unwrap().get(1).unwrap(), [0, 3, 5]);
        for (lists, message) in [
            (&[(1, &[1, 2, 1][..])][..], "expert 1 twice"),
            (&[(1, &[8])], "names expert 8"),
            (&[(0, &[1])], "no mixture"),
            (&[(1, &[])], "keeps no expert"),
            (&[], "no layer"),
        ] {
            let error = keep(&layout, lists).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn a_model_needs_equal_counts_and_enough_experts() {
        let plain = layout(8, None);
        assert_eq!(keep(&plain, &[(1, &[0, 1, 2]), (2, &[5, 6, 7])]).unwrap().uniform(&plain).unwrap(), 3);
        let grouped = layout(8, Some(Groups { groups: 2, reachable: 1 }));
        assert_eq!(keep(&grouped, &[(1, &[0, 1, 4, 5]), (2, &[2, 3, 6, 7])]).unwrap().uniform(&grouped).unwrap(), 4);
        for (layout, lists, message) in [
            (&plain, &[(1, &[0, 1][..])][..], "layer 2: has no list"),
            (&plain, &[(1, &[0, 1]), (2, &[0, 1, 2])], "one number for all layers"),
            (&plain, &[(1, &[0]), (2, &[1])], "each token needs 2"),
            (&grouped, &[(1, &[0, 1, 2, 5]), (2, &[2, 3, 6, 7])], "lose equally"),
            (&grouped, &[(1, &[0, 4]), (2, &[2, 6])], "to be judged by"),
        ] {
            let error = keep(layout, lists)
                .unwrap()
                .uniform(layout)
                .unwrap_err()
                .to_string()
                .replace(" = ", " ")
                .replace("keep layer", "layer");
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn files_hold_an_object_or_a_list() {
        let layout = layout(8, None);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keep.json");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Keep::read(&layout, &path)
        };
        assert_eq!(read(r#"{"1": [3, 0], "2": [1, 2]}"#).unwrap(), read("[[0, 3], [2, 1]]").unwrap());
        for text in
            ["{\"1\": [0, 1], \"1\": [2, 3], \"2\": [0, 1]}", "[[0]]", "{\"1\": 3}", "nonsense", "[[0, -1], [1]]"]
        {
            assert!(read(text).unwrap_err().to_string().contains("keep.json"), "{text}");
        }
    }
}
