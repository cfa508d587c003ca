//! Checkpoints as people have them, and what is not quite as usual about them: each row of `data/situations.json` is evaluated, and
//! its loss is transformers' to 1e-6 nats; or it is refused, and a snapshot holds the words. The table and its values are made by
//! `data/make_situations.py`, which describes the rows.

mod common;

use common::file_of;
use lacuna::checkpoint::{Checkpoint, Source, compress};
use lacuna::evaluate::evaluate;
use lacuna::experts::{ExpertLayout, ExpertScores, Keep, Metric, prune_experts_to, verify};
use lacuna::gradients::{Accumulate, gradients};
use lacuna::importance::Method;
use lacuna::mask::Mask;
use lacuna::model::{Model, ModelConfig, MoeFamily};
use lacuna::progress::Progress;
use lacuna::prune::{PruneConfig, prune, prune_to};
use lacuna::structured::{StructuredConfig, Unit, prune_structured, prune_structured_to};
use lacuna::text::Windows;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// A checkpoint, what is done to it, and what the result scores.
#[derive(Clone, Deserialize)]
struct Row {
    name: String,
    config: Map<String, Value>,
    /// `own`, `equal` to the embedding, `none`, or `only`: there is no embedding.
    head: String,
    /// `separate`, or `fused`: all experts of a layer in one tensor.
    experts: String,
    /// Their number, and the tokens of each.
    windows: (usize, usize),
    /// Sparsity of magnitude pruning, for rows of which the checkpoint was pruned in Python.
    prune: Option<f64>,
    /// The experts of each layer that stay.
    keep: Option<Vec<usize>>,
    /// Mean loss in nats; `None` for a row that is refused.
    nll: Option<f64>,
}

#[derive(Deserialize)]
struct Table {
    rows: Vec<Row>,
}

fn rows() -> Vec<Row> {
    let table: Table = serde_json::from_str(include_str!("data/situations.json")).unwrap();
    table.rows
}

fn row(name: &str) -> Row {
    rows().into_iter().find(|row| row.name == name).unwrap()
}

/// `count` numbers of [-1, 1) that follow from `name`, as the script draws them.
fn uniform(name: &str, count: usize) -> impl Iterator<Item = f32> {
    let seed = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |seed: u64, byte| (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (1..=count as u64).map(move |i| {
        let x = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    })
}

fn values(name: &str, count: usize) -> Vec<f32> {
    let value = |u: f32| match name {
        _ if name.ends_with("norm.weight") => 1.0 + u / 4.0,
        _ if name.ends_with("bias") || name.ends_with("sinks") => u / 4.0,
        EMBEDDING | HEAD => u,
        _ => u / 2.0,
    };
    uniform(name, count).map(value).collect()
}

fn windows(count: usize, length: usize, vocab: usize) -> Windows {
    let ids: Vec<u32> = uniform("tokens", count * length).map(|u| ((u + 1.0) / 2.0 * vocab as f32) as u32).collect();
    Windows { name: "tokens".into(), seqlen: length, ids: ids.chunks(length).map(<[u32]>::to_vec).collect() }
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Puts the experts of each layer into one tensor, as transformers 5 does: gates before ups.
fn fuse(family: &MoeFamily, experts: usize, tensors: &mut Tensors) {
    let of_expert = |name: &str| -> Option<(String, String)> {
        let (before, after) = name.split_once(".experts.")?;
        let linear = after.split('.').nth(1)?.to_owned();
        Some((before.to_owned(), linear))
    };
    let [gate, up, down] = family.linears;
    let layers: Vec<String> = tensors
        .keys()
        .filter_map(|name| of_expert(name).filter(|(_, linear)| linear == down).map(|(before, _)| before))
        .collect();
    for module in layers.into_iter().collect::<std::collections::BTreeSet<_>>() {
        let target = module.replace(family.module, family.fused_module);
        for (fused, linears) in [("gate_up_proj", vec![gate, up]), ("down_proj", vec![down])] {
            let (mut values, mut cols) = (Vec::new(), 0);
            for expert in 0..experts {
                for linear in &linears {
                    let (shape, own) = tensors.remove(&format!("{module}.experts.{expert}.{linear}.weight")).unwrap();
                    cols = shape[1];
                    values.extend(own);
                }
            }
            let shape = vec![experts, values.len() / experts / cols, cols];
            tensors.insert(format!("{target}.experts.{fused}"), (shape, values));
        }
        let router = tensors.remove(&format!("{module}.gate.weight")).unwrap();
        tensors.insert(format!("{target}.gate.weight"), router);
    }
}

/// Writes the row's checkpoint, before anything is done to it.
fn write(row: &Row, dir: &Path) -> PathBuf {
    let dir = dir.join("model");
    std::fs::create_dir_all(&dir).unwrap();
    let mut untied = row.config.clone();
    untied.insert("tie_word_embeddings".into(), false.into());
    let config = ModelConfig::from_json(&dir.join("config.json"), &untied).unwrap();
    let mut tensors: Tensors = config
        .tensors()
        .into_iter()
        .map(|(name, shape)| {
            let values = values(&name, shape.iter().product());
            (name, (shape, values))
        })
        .collect();
    match row.head.as_str() {
        "own" => {}
        "equal" => drop(tensors.insert(HEAD.into(), tensors[EMBEDDING].clone())),
        "none" => drop(tensors.remove(HEAD)),
        "only" => {
            let embedding = tensors.remove(EMBEDDING).unwrap();
            tensors.insert(HEAD.into(), embedding);
        }
        other => panic!("{other}"),
    }
    let family = row.config["model_type"].as_str().unwrap();
    if row.experts == "fused" && family != "gpt_oss" {
        fuse(MoeFamily::find(family).unwrap(), config.moe.unwrap().experts, &mut tensors);
    }
    let list: Vec<(&str, &[usize], &[f32])> =
        tensors.iter().map(|(name, (shape, values))| (name.as_str(), shape.as_slice(), values.as_slice())).collect();
    std::fs::write(dir.join("model.safetensors"), file_of(&list)).unwrap();
    std::fs::write(dir.join("config.json"), Value::Object(row.config.clone()).to_string()).unwrap();
    dir
}

fn model(dir: &Path) -> lacuna::Result<Model> {
    Model::open(&Checkpoint::open(dir)?, candle_core::DType::F32, &candle_core::Device::Cpu)
}

fn nll(dir: &Path, row: &Row) -> lacuna::Result<f64> {
    let model = model(dir)?;
    let (count, length) = row.windows;
    Ok(evaluate(&model, &windows(count, length, model.config().vocab_size), Progress::Hidden)?.nll_nats)
}

/// The checkpoint of the row once everything is done to it.
fn prepared(row: &Row, dir: &Path) -> lacuna::Result<PathBuf> {
    let mut at = write(row, dir);
    if let Some(sparsity) = row.prune {
        let out = dir.join("pruned");
        prune_to(&model(&at)?, None, &PruneConfig::new(Method::Magnitude, sparsity), &out, Progress::Hidden)?;
        at = out;
    }
    if let Some(kept) = &row.keep {
        let out = dir.join("built");
        let source = Checkpoint::open(&at)?;
        let layout = ExpertLayout::find(&source)?;
        let keep = Keep::new(&layout, layout.mixtures.keys().map(|&layer| (layer, kept.clone())).collect())?;
        prune_experts_to(&source, &keep.into(), u64::MAX, &out, Progress::Hidden)?;
        assert_eq!(verify(&source, &out, Progress::Hidden)?.mismatch_count, 0, "{}", row.name);
        at = out;
    }
    Ok(at)
}

#[test]
fn every_row_scores_what_transformers_says_or_is_refused_in_plain_words() {
    let (mut refused, mut wrong) = (String::new(), Vec::new());
    for row in rows() {
        let dir = tempfile::tempdir().unwrap();
        let scored = prepared(&row, dir.path()).and_then(|at| nll(&at, &row));
        match (scored, row.nll) {
            (Ok(ours), Some(theirs)) if (ours - theirs).abs() < 1e-6 => {}
            (Err(error), None) => {
                let error = error.to_string().replace(&dir.path().display().to_string(), "DIR");
                refused += &format!("{}\n    {error}\n", row.name);
            }
            (scored, theirs) => wrong.push(format!("{}: {scored:?}, transformers {theirs:?}", row.name)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    insta::assert_snapshot!("refused", refused);
}

/// An output head that config.json denies, beside the same weights of a config that does not.
fn denied(family: &str, dir: &Path) -> [PathBuf; 2] {
    ["tied, head own", "not tied, head own"].map(|name| {
        let dir = dir.join(name.split(',').next().unwrap());
        std::fs::create_dir(&dir).unwrap();
        write(&row(&format!("{family}: {name}")), &dir)
    })
}

#[test]
fn a_head_that_the_config_denies_counts_in_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let row = row("qwen2: not tied, head own");
    let [tied, untied] = denied("qwen2", dir.path());
    let (denied, plain) = (model(&tied).unwrap(), model(&untied).unwrap());
    assert!(denied.notes().iter().any(|note| note.contains("`lm_head.weight` differs from the embedding")));
    assert_eq!(plain.notes(), &[] as &[String]);
    let text = windows(2, 32, 128);

    let loss = |model: &Model| gradients(model, &text, Accumulate::Sum, Progress::Hidden).unwrap().loss_nats;
    assert_eq!(loss(&denied), loss(&plain));
    for method in [Method::Gradient, Method::Taylor] {
        let masks =
            |model: &Model| prune(model, Some(&text), &PruneConfig::new(method, 0.5), Progress::Hidden).unwrap().masks;
        assert_eq!(masks(&denied), masks(&plain), "{method}");
    }
    let channels = StructuredConfig::new(Unit::Channels, Method::Magnitude, 0.25);
    let narrow = |model: &Model, out: &str| {
        let out = dir.path().join(out);
        prune_structured_to(model, None, &channels, &out, Progress::Hidden).unwrap();
        nll(&out, &row).unwrap()
    };
    assert_eq!(narrow(&denied, "narrow-denied"), narrow(&plain, "narrow-plain"));
    let pruned = |model: &Model, out: &str| {
        let out = dir.path().join(out);
        prune_to(model, None, &PruneConfig::new(Method::Magnitude, 0.5), &out, Progress::Hidden).unwrap();
        out
    };
    let packed = dir.path().join("packed");
    let stored = Checkpoint::open(pruned(&denied, "pruned-denied")).unwrap();
    assert!(compress(&stored, &packed, None, Progress::Hidden).unwrap().is_sparse());
    assert_eq!(nll(&packed, &row).unwrap(), nll(&pruned(&plain, "pruned-plain"), &row).unwrap());

    let inspect = |dir: &Path, json: bool| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
        command.arg("inspect").arg(dir).args(json.then_some("--json"));
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let json: Value = serde_json::from_str(&inspect(&tied, true)).unwrap();
    assert_eq!(json["tied_embeddings"], false);
    assert!(inspect(&tied, false).contains("no: config.json says so, but lm_head.weight differs"));
    assert!(inspect(&untied, false).contains("tied embeddings  no\n"));
}

#[test]
fn experts_in_one_tensor_are_pruned_as_those_that_stand_alone() {
    let (text, calibrated) = (windows(4, 32, 128), [Method::Wanda, Method::Gradient, Method::SparseGpt]);
    for family in ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"] {
        let dir = tempfile::tempdir().unwrap();
        let [separate, fused] = ["separate", "fused"].map(|experts| {
            let dir = dir.path().join(experts);
            std::fs::create_dir(&dir).unwrap();
            write(&row(&format!("{family}: experts {experts}")), &dir)
        });
        let row = row(&format!("{family}: experts fused"));
        let scores = |dir: &Path| {
            let source = Checkpoint::open(dir).unwrap();
            let layout = ExpertLayout::find(&source).unwrap();
            let measured = ExpertScores::calibrated(&model(dir).unwrap(), &text, Progress::Hidden).unwrap();
            let by_weights = [Metric::RouterNorm, Metric::WeightNorm].map(|metric| {
                ExpertScores::data_free(&source, &layout, metric, Progress::Hidden).unwrap().metrics.remove(&metric)
            });
            (measured.metrics, by_weights, layout.expert_bytes(&source, 0))
        };
        let [(measured, by_weights, bytes), fused_scores] = [&separate, &fused].map(|dir| scores(dir));
        assert_eq!((measured, bytes), (fused_scores.0, fused_scores.2), "{family}");
        for (ours, theirs) in
            by_weights.iter().flatten().flatten().flatten().zip(fused_scores.1.iter().flatten().flatten().flatten())
        {
            assert!((ours - theirs).abs() < 1e-12 * ours, "{family}: sums in another order");
        }
        for method in calibrated {
            let pruned = |from: &Path| -> (Vec<(String, Mask)>, f64) {
                let model = model(from).unwrap();
                let config = PruneConfig::new(method, 0.5);
                let masks = prune(&model, Some(&text), &config, Progress::Hidden).unwrap().masks;
                let out =
                    dir.path().join(format!("{method}-{}", from.parent().unwrap().file_name().unwrap().display()));
                prune_to(&model, Some(&text), &config, &out, Progress::Hidden).unwrap();
                let [before, after] = [from, &out].map(|dir| {
                    let checkpoint = Checkpoint::open(dir).unwrap();
                    checkpoint.index().iter().map(|info| (info.name.clone(), info.shape.clone())).collect::<Vec<_>>()
                });
                assert_eq!(before, after, "the output is stored as the input is");
                (masks, nll(&out, &row).unwrap())
            };
            assert_eq!(pruned(&separate), pruned(&fused), "{family} {method}");
        }
        for unit in [Unit::Heads, Unit::Neurons, Unit::Channels] {
            let config = StructuredConfig::new(unit, Method::Magnitude, 0.5);
            let smaller = |from: &Path| {
                let model = model(from).unwrap();
                let memory = prune_structured(&model, None, &config, Progress::Hidden).unwrap();
                let out = dir.path().join(format!("{unit}-{}", from.parent().unwrap().file_name().unwrap().display()));
                let record = prune_structured_to(&model, None, &config, &out, Progress::Hidden).unwrap();
                assert_eq!((&memory.record.tensors, &memory.record.structure), (&record.tensors, &record.structure));
                let scored = evaluate(&memory.model, &windows(2, 48, 128), Progress::Hidden).unwrap().nll_nats;
                assert!((scored - nll(&out, &row).unwrap()).abs() < 1e-6, "{family} {unit}");
                (record.tensors, record.structure, scored)
            };
            assert_eq!(smaller(&separate), smaller(&fused), "{family} {unit}");
        }
    }
}

#[test]
fn what_takes_no_part_is_noted_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut row = row("llama: not tied, head own");
    row.config
        .insert("rope_scaling".into(), serde_json::json!({"rope_type": "linear", "factor": 2.0, "beta_fast": 32.0}));
    let at = write(&row, dir.path());
    let [extra, own] = ["model.layers.7.self_attn.q_proj.weight", "model.norm.weight"];
    let mut tensors = candle_core::safetensors::load(at.join("model.safetensors"), &candle_core::Device::Cpu).unwrap();
    tensors.insert(extra.into(), tensors[own].clone());
    candle_core::safetensors::save(&tensors, at.join("model.safetensors")).unwrap();
    let notes = model(&at).unwrap().notes().join("\n");
    assert!(notes.contains(&format!("not read, `{extra}`")) && notes.contains("`rope_scaling.beta_fast`"), "{notes}");
}
