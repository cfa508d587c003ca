//! Deriving every tensor of an output again from its base, and comparing.

use super::build::{MODEL, SLICES, model_tensors, pruned_config, slice_files};
use super::keep::Keep;
use super::layout::ExpertLayout;
use crate::checkpoint::{
    Checkpoint, MANIFEST, Manifest, ManifestTensor, OutputTensor, Segment, Source, TensorInfo, is_free_name, sum_of,
    sum_of_file,
};
use crate::error::{Error, Problem, Remedy, Result};
use crate::progress::{Progress, Stage};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// The outcome of a verification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// Tensors that were compared.
    pub tensors: usize,
    /// Bytes that were compared.
    pub bytes: u64,
    /// Length of `mismatches`; 0 when the output is what it should be.
    pub mismatch_count: usize,
    /// The differences that were found.
    pub mismatches: Vec<Mismatch>,
}

/// A tensor or file of the output that is not what its base and its manifest make of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mismatch {
    /// The tensor, or the file.
    pub name: String,
    /// The problem.
    pub problem: String,
}

/// Reads the headers of an output, derives each of its tensors from `base` and the kept experts that the manifest lists, and
/// compares shapes, types and every byte; for a model, also `config.json`. Then the manifest: its sources, files and
/// checksums, and the files beside the weights. For bytes that differ, the checksums tell the cause: either the output was
/// changed, or the base was. What cannot be derived is how the experts were chosen (`by`), and
/// the manifest's `identity`, which depends on when the base was last touched.
///
/// # Errors
/// [`Error::File`] when `out` has no manifest or its headers are broken; [`Error::Argument`] when the manifest does not fit
/// the base; those of reading. A difference is no error but a [`Mismatch`].
pub fn verify(base: &dyn Source, out: &Path, progress: Progress) -> Result<Verification> {
    std::fs::metadata(out).map_err(Error::io("open", out))?;
    let manifest = Manifest::read(out)?.ok_or_else(|| {
        Error::file(
            out.join(MANIFEST),
            "missing".remedy("`verify` checks what `lacuna experts build` or `slice` wrote"),
        )
    })?;
    let Derived { tensors, output, model, mut mismatches } = derive(base, out, &manifest)?;
    let (pairs, unpaired) = pair(&tensors, &output);
    mismatches.extend(unpaired);
    mismatches.extend(check_sources(base, &manifest, &pairs, &output));
    mismatches.extend(check_files(&manifest, &output)?);
    mismatches.extend(check_others(base, out, &manifest, model)?);
    mismatches.extend(compare_all(base, &manifest, &pairs, &output, progress)?);
    let bytes = pairs.iter().map(|(tensor, _)| tensor.bytes()).sum();
    Ok(Verification { tensors: pairs.len(), bytes, mismatch_count: mismatches.len(), mismatches })
}

/// An output, and the tensors that it should hold.
struct Derived {
    tensors: Vec<OutputTensor>,
    output: Checkpoint,
    /// True for a model, false for slices.
    model: bool,
    /// The problems of its config.
    mismatches: Vec<Mismatch>,
}

/// Derives the tensors of an output from its base and the experts that were kept.
fn derive(base: &dyn Source, out: &Path, manifest: &Manifest) -> Result<Derived> {
    let wrong = |problem: Problem| Error::file(out.join(MANIFEST), problem);
    let layout = ExpertLayout::find(base)?;
    let lists: BTreeMap<usize, Vec<usize>> =
        serde_json::from_value(manifest.about.get("keep").cloned().unwrap_or_default())
            .map_err(|_| wrong("does not list the experts that were kept".remedy("build the output again")))?;
    let keep = Keep::new(&layout, lists)?;
    match manifest.about.get("output").and_then(Value::as_str) {
        Some(MODEL) => {
            let output = Checkpoint::open(out)?;
            let same = output.config()? == pruned_config(base, &layout, keep.uniform(&layout)?)?;
            let problem = "differs from the base's in more than the number of experts, or not in that";
            let mismatches = if same { Vec::new() } else { vec![mismatch("config.json", problem)] };
            Ok(Derived { tensors: model_tensors(base, &layout, &keep)?, output, model: true, mismatches })
        }
        Some(SLICES) => {
            let files = slice_files(base, &layout, &keep)?;
            let paths = files.iter().map(|file| out.join(&file.name)).collect();
            let output = Checkpoint::open_files(out, paths)?;
            let tensors = files.into_iter().flat_map(|file| file.tensors).collect();
            Ok(Derived { tensors, output, model: false, mismatches: Vec::new() })
        }
        _ => Err(wrong("does not say what the output is".remedy("build it again"))),
    }
}

/// A tensor as it should be, and as the output's header has it.
type Pair<'a> = (&'a OutputTensor, &'a TensorInfo);

/// Finds each tensor in the output. Those that are missing, of another type or shape, or too many, are mismatches.
fn pair<'a>(tensors: &'a [OutputTensor], output: &'a Checkpoint) -> (Vec<Pair<'a>>, Vec<Mismatch>) {
    let mut found: BTreeMap<&str, &TensorInfo> = output.index().iter().map(|info| (info.name.as_str(), info)).collect();
    let (mut pairs, mut mismatches) = (Vec::new(), Vec::new());
    for tensor in tensors {
        match found.remove(tensor.name.as_str()) {
            None => mismatches.push(mismatch(&tensor.name, "is missing in the output")),
            Some(info) if info.dtype != tensor.dtype || info.shape != tensor.shape => {
                let (is, should) = ((info.dtype, &info.shape), (tensor.dtype, &tensor.shape));
                let problem =
                    format!("is {} x {:?} in the output, should be {} x {:?}", is.0, is.1, should.0, should.1);
                mismatches.push(mismatch(&tensor.name, problem));
            }
            Some(info) => pairs.push((tensor, info)),
        }
    }
    mismatches.extend(found.into_keys().map(|name| mismatch(name, "is in the output only")));
    (pairs, mismatches)
}

/// The manifest's entries by the tensor's name, with the name of their file.
fn recorded(manifest: &Manifest) -> HashMap<&str, (&str, &ManifestTensor)> {
    let tensors = manifest.files.iter().flat_map(|file| file.tensors.iter().map(move |tensor| (file, tensor)));
    tensors.map(|(file, tensor)| (tensor.name.as_str(), (file.name.as_str(), tensor))).collect()
}

/// Compares where the manifest says that tensors are and came from with where they are and should come from.
fn check_sources(base: &dyn Source, manifest: &Manifest, pairs: &[Pair], output: &Checkpoint) -> Vec<Mismatch> {
    let mut mismatches = Vec::new();
    if manifest.shards != base.files() {
        mismatches.push(mismatch(MANIFEST, "names other weight files than the base has"));
    }
    let (recorded, files) = (recorded(manifest), output.files());
    for (tensor, info) in pairs {
        let place = &files[info.shard];
        let told = recorded.get(tensor.name.as_str()).is_some_and(|(file, told)| {
            let segments = tensor.segments.iter().map(|s| (s.shard, s.range.start, s.range.end));
            file == place && segments.eq(told.source.iter().copied())
        });
        if !told {
            let problem = format!("{MANIFEST} does not list it in {place} with the byte ranges that it was made of");
            mismatches.push(mismatch(&tensor.name, problem));
        }
    }
    mismatches
}

/// Compares the bytes of all tensors.
fn compare_all(
    base: &dyn Source,
    manifest: &Manifest,
    pairs: &[Pair],
    output: &Checkpoint,
    progress: Progress,
) -> Result<Vec<Mismatch>> {
    let recorded = recorded(manifest);
    let stage = progress.stage("verify", pairs.len() as u64);
    let compare = |(tensor, info): &Pair| {
        let place = Segment { shard: info.shard, range: info.range.clone() };
        let sum = recorded.get(tensor.name.as_str()).map(|(_, tensor)| tensor.crc32.as_str());
        let found = compare(base, tensor, output, &place, sum, &stage)?;
        stage.inc(1)?;
        Ok(found.map(|problem| mismatch(&tensor.name, problem)))
    };
    let different: Vec<Option<Mismatch>> = pairs.par_iter().map(compare).collect::<Result<_>>()?;
    Ok(different.into_iter().flatten().collect())
}

fn mismatch(name: &str, problem: impl Into<String>) -> Mismatch {
    Mismatch { name: name.to_owned(), problem: problem.into() }
}

/// Compares what the manifest says of the weight files with their headers.
fn check_files(manifest: &Manifest, output: &Checkpoint) -> Result<Vec<Mismatch>> {
    let mut mismatches = Vec::new();
    let names = output.files();
    for (shard, name) in names.iter().enumerate() {
        let path = &output.shards()[shard];
        let length = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
        let there = output.index().iter().filter(|info| info.shard == shard);
        let there = there.map(|info| (info.name.as_str(), info.dtype.to_string(), &info.shape));
        let told = manifest.files.iter().find(|file| file.name == *name).is_some_and(|file| {
            let tensors = file.tensors.iter().map(|t| (t.name.as_str(), t.dtype.clone(), &t.shape));
            file.bytes == length && tensors.eq(there)
        });
        if !told {
            mismatches.push(mismatch(name, format!("{MANIFEST} says otherwise of its length or its tensors")));
        }
    }
    let ghosts = manifest.files.iter().filter(|file| !names.contains(&file.name));
    mismatches.extend(ghosts.map(|file| mismatch(&file.name, "is in the manifest only")));
    Ok(mismatches)
}

/// Compares the files beside the weights with what the manifest says of them, and those that were copied with the base's.
fn check_others(base: &dyn Source, out: &Path, manifest: &Manifest, model: bool) -> Result<Vec<Mismatch>> {
    let mut mismatches = Vec::new();
    let mut differs = |name: &str, problem: &str| mismatches.push(mismatch(name, problem));
    let mut wanted = if model { base.side_files()? } else { Vec::new() };
    let copied = wanted.clone();
    if model {
        wanted.push("config.json".to_owned());
    }
    let listed = |name: &str| manifest.others.iter().any(|other| other.name == name);
    for name in wanted.iter().filter(|name| !listed(name)) {
        differs(name, "belongs beside the weights, and is not in the manifest");
    }
    for entry in std::fs::read_dir(out).map_err(Error::io("read", out))? {
        let name = entry.map_err(Error::io("read", out))?.file_name().to_string_lossy().into_owned();
        if name != MANIFEST && !listed(&name) && manifest.files.iter().all(|file| file.name != name) {
            differs(&name, "is in the output only");
        }
    }
    for other in &manifest.others {
        let told = (other.bytes, other.crc32.clone());
        let found = match is_free_name(&other.name) {
            true => sum_of_file(&out.join(&other.name))?.map(|(bytes, sum)| (bytes, format!("{sum:08x}"))),
            false => None,
        };
        match found {
            None => differs(&other.name, "is missing in the output"),
            Some(found) if found != told => differs(&other.name, "has changed since it was written"),
            Some(_) if copied.contains(&other.name) => {
                let (bytes, sum) = sum_of(|sink| base.side_file(&other.name, sink))?;
                if (bytes, format!("{sum:08x}")) != told {
                    differs(&other.name, "is as it was written: the base's has changed since");
                }
            }
            Some(_) => {}
        }
    }
    Ok(mismatches)
}

/// Describes the difference between a tensor as derived from the base and the bytes at `place` of the output, if there
/// is one.
fn compare(
    base: &dyn Source,
    tensor: &OutputTensor,
    output: &Checkpoint,
    place: &Segment,
    recorded: Option<&str>,
    stage: &Stage,
) -> Result<Option<String>> {
    let mut first = None;
    let mut at = place.range.start;
    let mut own = crc32fast::Hasher::new();
    let mut buffer = Vec::new();
    for segment in &tensor.segments {
        base.stream(segment.shard, segment.range.clone(), &mut |bytes| {
            buffer.clear();
            output.stream(place.shard, at..at + bytes.len() as u64, &mut |piece| {
                buffer.extend_from_slice(piece);
                Ok(())
            })?;
            own.update(&buffer);
            if first.is_none()
                && let Some(offset) = buffer.iter().zip(bytes).position(|(a, b)| a != b)
            {
                first = Some(at + offset as u64 - place.range.start);
            }
            at += bytes.len() as u64;
            stage.inc(0)
        })?;
    }
    let sum = format!("{:08x}", own.finalize());
    let file = output.shards()[place.shard].file_name().unwrap_or_default().to_string_lossy().into_owned();
    let unchanged = recorded == Some(sum.as_str());
    Ok(match first {
        Some(byte) if unchanged => Some(format!(
            "byte {byte} differs from the base, but is as it was written to {file}: the base has changed since"
        )),
        Some(byte) => Some(format!("byte {byte} differs from the base: {file} has changed since it was written")),
        None if !unchanged => Some(format!(
            "equals the base, but its CRC-32 is {sum} and not {}, as the manifest says",
            recorded.unwrap_or("recorded")
        )),
        None => None,
    })
}
