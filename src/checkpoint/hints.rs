//! Advice about directories and repositories that do not hold the weights that this library reads: their contents, and
//! the remedy.

use super::{INDEX, SINGLE};
use crate::error::{Problem, Remedy};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// Explains what can be done about the directory `dir`, which has neither [`SINGLE`] nor [`INDEX`].
pub(super) fn of_directory(dir: &Path) -> Problem {
    if let Some(hint) = [SINGLE, INDEX].iter().find_map(|name| dangling(&dir.join(name))) {
        return hint;
    }
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let (mut files, mut folders) = (BTreeSet::new(), BTreeSet::new());
    for entry in entries {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let is_folder = entry.path().is_dir();
        if is_folder {
            folders.insert(name)
        } else {
            files.insert(name)
        };
    }
    let read = |name: &str| std::fs::read(dir.join(name)).ok();
    if let Some(hint) = of_files(&files, &read) {
        return hint;
    }
    let has_weights = |folder: &&String| {
        let folder = dir.join(folder);
        folder.join(SINGLE).exists() || folder.join(INDEX).exists()
    };
    if let Some(folder) = folders.iter().find(has_weights) {
        return format!("`{folder}` in it has weights").remedy(format!("give {}", dir.join(folder).display()));
    }
    if folders.contains("snapshots") {
        let newest = std::fs::read_to_string(dir.join("refs/main")).ok().map(|commit| commit.trim().to_owned());
        let snapshots = std::fs::read_dir(dir.join("snapshots")).into_iter().flatten().flatten();
        let mut snapshots: Vec<String> = snapshots.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        snapshots.sort();
        let commit = newest.filter(|commit| snapshots.contains(commit)).or(snapshots.pop());
        if let Some(commit) = commit {
            let name = super::hub_name(dir).map(|name| format!("`{name}`, or ")).unwrap_or_default();
            let snapshot = dir.join("snapshots").join(commit);
            return "this is a model's folder in a hub's cache".remedy(format!("give {name}{}", snapshot.display()));
        }
    }
    match (files.is_empty(), folders.is_empty()) {
        (true, true) => "it is empty".remedy("copy or download the model into it"),
        _ => "is it the right one?".into(),
    }
}

/// As [`of_directory`], for a repository on a hub that has these files.
pub(super) fn of_listing(files: &BTreeSet<String>) -> Problem {
    of_files(files, &|_| None).unwrap_or_else(|| "look for a converted copy".into())
}

/// A sentence on `path` if it is a link to nothing, with the remedy.
pub(crate) fn dangling(path: &Path) -> Option<Problem> {
    if path.exists() {
        return None;
    }
    let target = std::fs::read_link(path).ok()?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let remedy = match path.parent().and_then(super::hub_name) {
        Some(repo) => format!("delete this folder of the hub's cache and give `{repo}`, which downloads it again"),
        None => "restore that file, or download the model again (where a hub's cache was cleaned, or copied without \
                 its `blobs`, its links are left)"
            .into(),
    };
    Some(format!("{name} is a link to {}, which is not there", target.display()).remedy(remedy))
}

/// Names the format of the files of a directory or repository, if it is a known one. `read` returns the bytes of a
/// file.
fn of_files(files: &BTreeSet<String>, read: &dyn Fn(&str) -> Option<Vec<u8>>) -> Option<Problem> {
    let has = |name: &str| files.contains(name);
    let json = |name: &str| serde_json::from_slice::<Value>(&read(name)?).ok();
    let ends = |ends: &[&str]| files.iter().find(|file| ends.iter().any(|end| file.ends_with(end)));
    if has("adapter_config.json") || files.iter().any(|file| file.starts_with("adapter_model.")) {
        let config = json("adapter_config.json").unwrap_or_default();
        let text = |key: &str| config.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let kind = text("peft_type").map(|kind| format!(" ({kind})")).unwrap_or_default();
        let base = text("base_model_name_or_path").map_or_else(String::new, |base| format!(" of `{base}`"));
        return Some(format!("this is a PEFT adapter{kind}{base}, a change to a model and no model").remedy(
            "merge it with peft's \
             `AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload().save_pretrained(OUT)` and give OUT",
        ));
    }
    if let Some(file) = files.iter().find(|file| file.starts_with("consolidated") && file.ends_with(".safetensors")) {
        return Some(format!("{file} has the weights in Mistral's own format, under other names").remedy(format!(
            "take the same model in Hugging Face's format ({SINGLE} or {INDEX}), or convert it with transformers' \
             `convert_mistral_weights_to_hf.py`"
        )));
    }
    if let Some(file) = files.iter().find(|file| file.starts_with("consolidated.") && file.ends_with(".pth")) {
        return Some(format!("{file} has the weights in Meta's own format, under other names").remedy(
            "take the same model in Hugging Face's format (its name often ends in `-hf`), or convert it with \
             transformers' `convert_llama_weights_to_hf.py`",
        ));
    }
    if let Some((file, variant, usual)) = files.iter().find_map(|file| variant(file)) {
        return Some(
            format!("its weights are there as a variant only, `{variant}`, in {file}")
                .remedy(format!("give it the usual name: `ln -s {file} {usual}`")),
        );
    }
    if let Some(file) = ends(&[".gguf"]) {
        return Some(format!("make a checkpoint of its GGUF file with `lacuna import {file} DIR`").into());
    }
    if has("model_index.json") || files.iter().any(|file| file.starts_with("diffusion_pytorch_model")) {
        return Some(
            "this is a pipeline of diffusers, which makes images and is no language model"
                .remedy("give a language model"),
        );
    }
    if let Some(file) = ends(&[".distcp", "_model_states.pt", "_optim_states.pt"]).or(files.get("zero_to_fp32.py")) {
        return Some(
            format!("{file} is part of the state of a training run (FSDP or DeepSpeed), spread over its processes")
                .remedy(
                    "collect it with accelerate's `merge-weights` or DeepSpeed's `zero_to_fp32.py`, and save the model",
                ),
        );
    }
    let weights = |file: &&String| {
        let name = file.as_str();
        [".bin", ".pt", ".pth", ".ckpt"].iter().any(|end| name.ends_with(end))
            && !["training_args.bin", "optimizer.pt", "scheduler.pt"].contains(&name)
    };
    let torch = files.iter().find(|file| file.starts_with("pytorch_model")).or_else(|| files.iter().find(weights));
    let other = [
        (torch, "PyTorch", "from_pretrained(DIR)"),
        (ends(&[".h5"]), "TensorFlow", "from_pretrained(DIR, from_tf=True)` (transformers 4) `"),
        (ends(&[".msgpack"]), "Flax", "from_pretrained(DIR, from_flax=True)` (transformers 4) `"),
    ];
    if let Some((file, what, load)) = other.into_iter().find_map(|(file, what, load)| Some((file?, what, load))) {
        // Not with ".safetensors" beside it, which is nearer.
        if ends(&[".safetensors"]).is_none() {
            return Some(format!("its weights are {what}'s, in {file}, and only safetensors are read").remedy(
                format!(
                    "convert its {what} weights with transformers: `AutoModelForCausalLM.{load}.save_pretrained(OUT)`"
                ),
            ));
        }
    }
    if let Some(file) = ends(&[".onnx", ".npz", ".tflite", ".ot", ".nemo", ".mlmodel"]) {
        return Some(
            format!("{file} holds the weights in a form that is not read here").remedy("take the model as safetensors"),
        );
    }
    let own: Vec<&String> = files.iter().filter(|file| file.ends_with(".safetensors") && !file.contains('/')).collect();
    match own[..] {
        [] => None,
        [file] if !file.contains("-of-") => Some(
            format!("its only weights are {file}, a name that nothing looks for")
                .remedy(format!("rename it: `mv {file} {SINGLE}`")),
        ),
        [file, ..] => Some(
            format!("its safetensors files ({file} ..) need an index beside them")
                .remedy(format!("download {INDEX} too")),
        ),
    }
}

/// A weight file or index of a variant, as transformers names them: the file, the variant, and the name without it.
fn variant(file: &str) -> Option<(&str, &str, &'static str)> {
    let between = |before: &str, after: &str| file.strip_prefix(before)?.strip_suffix(after);
    let index = between("model.safetensors.index.", ".json").or_else(|| between("model.", ".safetensors.index.json"));
    let (variant, usual) = match index {
        Some(variant) => (variant, INDEX),
        // A shard's name tells less than its index.
        None => (between("model.", ".safetensors").filter(|variant| !variant.contains("-of-"))?, SINGLE),
    };
    (!variant.is_empty() && !variant.contains(['/', '.'])).then_some((file, variant, usual))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_are_told_apart() {
        for (files, says) in [
            (&["adapter_model.bin", "README.md"][..], "PEFT adapter"),
            (&["consolidated.safetensors", "params.json", "tekken.json"], "Mistral's own format"),
            (&["consolidated-00001-of-00002.safetensors"], "Mistral's own format"),
            (&["consolidated.00.pth", "params.json"], "Meta's own format"),
            (&["model.fp16.safetensors"], "`ln -s model.fp16.safetensors model.safetensors`"),
            (
                &["model.safetensors.index.fp16.json", "model.fp16-00001-of-00002.safetensors"],
                "as a variant only, `fp16`",
            ),
            (&["model.bf16.safetensors.index.json"], "as a variant only, `bf16`"),
            (&["m.gguf", "config.json"], "lacuna import m.gguf DIR"),
            (&["pytorch_model.bin"], "convert its PyTorch weights"),
            (&["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], "convert its PyTorch weights"),
            (&["tf_model.h5"], "from_tf=True"),
            (&["flax_model.msgpack"], "from_flax=True"),
            (&["model_index.json", "unet.safetensors"], "diffusers"),
            (&["__0_0.distcp", ".metadata"], "FSDP or DeepSpeed"),
            (&["mp_rank_00_model_states.pt"], "FSDP or DeepSpeed"),
            (&["my.safetensors"], "`mv my.safetensors model.safetensors`"),
            (&["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], "need an index"),
            (&["model.onnx"], "model.onnx holds the weights"),
            (&["optimizer.pt", "training_args.bin"], "converted copy"),
            (&["README.md"], "converted copy"),
        ] {
            let hint = of_listing(&files.iter().map(|file| (*file).to_owned()).collect()).sentence();
            assert!(hint.contains(says), "{files:?}: {hint}");
        }
    }
}
