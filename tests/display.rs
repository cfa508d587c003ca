//! Values in a cell: every representation of each, and cells of the real evcxr.

use candle_core::{DType, Device, Tensor};
use lacuna::calibrate::calibrate;
use lacuna::checkpoint::Checkpoint;
use lacuna::display::{Rich, mime};
use lacuna::evaluate::{ChoiceScores, GenerationPrediction, GenerationScores, TaskRecord, evaluate};
use lacuna::experts::{ExpertLayout, ExpertScores, Metric, Ranking, Selection, SuperExperts};
use lacuna::importance::{Inputs, Method, Scorer};
use lacuna::mask::{Mask, MaskSet};
use lacuna::model::Model;
use lacuna::polars::df;
use lacuna::polars::prelude::{Column, NamedFrom, Series};
use lacuna::progress::Progress;
use lacuna::record::{ModelRecord, Record};
use lacuna::report::{MaskMap, Plot, Report, Table};
use lacuna::stats::{Interval, Score};
use lacuna::text::{Bos, BosRecord, Consecutive, Windows};
use lacuna::{Error, Result};
use std::collections::BTreeMap;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");

fn open(name: &str) -> Model {
    Model::open(&Checkpoint::open(format!("{DATA}/{name}")).unwrap(), DType::F32, &Device::Cpu).unwrap()
}

fn bundle(value: &impl Rich) -> BTreeMap<&'static str, String> {
    let bundle: BTreeMap<_, _> = value.bundle().unwrap().into_iter().collect();
    assert!(!bundle[mime::PLAIN].trim().is_empty(), "text/plain is always there");
    bundle
}

/// The HTML without its pictures, whose drawing has tests of its own.
fn without_pictures(html: &str) -> String {
    let mut out = String::new();
    let mut rest = html;
    while let Some((before, picture)) = rest.split_once("<svg ") {
        out.push_str(before);
        out.push_str("[picture]\n");
        rest = picture.split_once("</svg>").expect("a picture that ends").1.trim_start();
    }
    out + rest
}

/// Plain text, HTML and JSON, and the names of what else there is.
fn shown(value: &impl Rich) -> String {
    let bundle = bundle(value);
    let html = bundle.get(mime::HTML).map_or(String::new(), |html| without_pictures(html));
    assert!(!html.contains("background"), "themes have backgrounds: {html}");
    let json = bundle.get(mime::JSON).map_or(String::new(), |json| {
        let value: serde_json::Value = serde_json::from_str(json).unwrap();
        serde_json::to_string_pretty(&value).unwrap()
    });
    if let Some(svg) = bundle.get(mime::SVG) {
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
        assert!(bundle[mime::PNG].starts_with("iVBORw0KGgo"), "a PNG in base64");
    }
    let names: Vec<_> = bundle.keys().copied().collect();
    format!("{}\n\n{}\n\n{html}\n\n{json}", names.join(" "), bundle[mime::PLAIN])
}

#[test]
fn frames() -> Result<()> {
    let frame = df![
        "tensor" => ["q_proj", "a|b <script>alert(1)</script> & co"],
        "weights" => [12_288u64, 7],
        "size_bytes" => [49_152u64, 28],
        "nll_nats" => [Some(3.25), None],
        "seconds" => [0.5, 120.0],
    ];
    let frame = frame.unwrap();
    insta::assert_snapshot!("frame", shown(&frame));
    let html = &bundle(&frame)[mime::HTML];
    assert!(html.contains("&lt;script&gt;") && !html.contains("<script>"), "{html}");
    insta::assert_snapshot!("series", shown(&Series::new("loss_nats".into(), [1.5, 2.5])));
    assert!(bundle(&frame.head(Some(0)))[mime::PLAIN].contains("0 rows"));
    Ok(())
}

#[test]
fn large_frames_are_shown_in_part() {
    let rows = 5_000u64;
    let columns: Vec<Column> =
        (0..30).map(|i| Series::new(format!("c{i}").into(), (0..rows).collect::<Vec<_>>()).into()).collect();
    let frame = lacuna::polars::prelude::DataFrame::new_infer_height(columns).unwrap();
    let of = bundle(&frame);
    for text in [mime::PLAIN, mime::MARKDOWN, mime::HTML].map(|mime| &of[mime]) {
        assert!(text.contains("showing 20 of 5,000 rows × 20 of 30 columns"), "{text}");
        assert!(text.contains("4,999") && !text.contains("2,500"), "{text}");
    }
    // 150,000 cells stay in the session.
    assert!(!of.contains_key(mime::CSV) && of[mime::JSON].len() < 1_000);
    let few = bundle(&frame.select(["c0", "c1"]).unwrap());
    assert_eq!(few[mime::CSV].lines().count(), 5_001);
}

#[test]
fn models_and_checkpoints() -> Result<()> {
    let model = open("tiny-mixtral");
    insta::assert_snapshot!("model", shown(&model));
    assert!(bundle(&model.resident()?)[mime::PLAIN].contains("in memory"));
    insta::assert_snapshot!("checkpoint", shown(&Checkpoint::open(format!("{DATA}/tiny-mixtral"))?));
    let windows = Windows::evaluation(format!("{DATA}/tiny-mixtral/tokens.json"), None, Consecutive::of(64).first(4))?;
    insta::assert_snapshot!("windows", shown(&windows));
    let statistics = calibrate(&model, &windows, Progress::Hidden)?;
    let of = bundle(&statistics);
    let plain = &of[mime::PLAIN];
    assert!(plain.contains("over 4 windows") && plain.contains("self_attn.q_proj"), "{plain}");
    assert!(of[mime::SVG].contains("Inputs that stand out"));
    let evaluation = evaluate(&model, &windows, Progress::Hidden)?;
    let of = bundle(&evaluation);
    assert!(of[mime::PLAIN].starts_with("Perplexity ") && of[mime::SVG].contains("Loss of each window"));
    let json: serde_json::Value = serde_json::from_str(&of[mime::JSON]).unwrap();
    assert_eq!(json["tokens"], 252);
    Ok(())
}

/// Zeros of MXFP4 count as two weights a byte, and only what is in memory counts as bytes.
#[test]
fn parameters_of_packed_experts() {
    let model = open("tiny-gpt-oss-mxfp4");
    let json: serde_json::Value = serde_json::from_str(&bundle(&model)[mime::JSON]).unwrap();
    assert_eq!(json["parameters"], model.record().unwrap().parameters);
    assert!(json["bytes"].as_u64().unwrap() < 4 * json["parameters"].as_u64().unwrap());
}

#[test]
fn masks() -> Result<()> {
    let two_of_four = Mask::from_fn(64, 128, |row, col| (row + col) % 4 < 2);
    insta::assert_snapshot!("mask_2_of_4", shown(&two_of_four));
    // Rows lose more from top to bottom: the picture is another one.
    let rows = Mask::from_fn(64, 128, |row, col| (row * 31 + col * 17) % 64 < row);
    let of = bundle(&rows);
    assert!(of[mime::PLAIN].contains("no N:M"), "{}", of[mime::PLAIN]);
    assert!(of[mime::PLAIN].contains("1 lose nothing"), "{}", of[mime::PLAIN]);
    assert_ne!(of[mime::SVG], bundle(&two_of_four)[mime::SVG]);
    assert!(bundle(&two_of_four)[mime::SVG].contains("in groups of 4"));
    assert_eq!(bundle(&MaskMap::new("m", &rows))[mime::PLAIN], "m: 64 × 128 weights, 49.2% pruned");
    let name = |layer, kind| format!("model.layers.{layer}.{kind}.weight");
    let set = MaskSet {
        metadata: None,
        masks: vec![
            (name(0, "self_attn.q_proj"), two_of_four.clone()),
            (name(0, "mlp.up_proj"), rows.clone()),
            (name(1, "self_attn.q_proj"), rows),
        ],
    };
    insta::assert_snapshot!("mask_set", shown(&set));
    assert!(bundle(&set.statistics())[mime::SVG].contains("Spread of sparsity"));
    let comparison = set.compare(&set.not())?;
    assert!(bundle(&comparison)[mime::PLAIN].starts_with("Jaccard index 0.000 of 3 tensors"));
    assert!(bundle(&Mask::none(0, 4))[mime::PLAIN].contains("0 × 4"));
    Ok(())
}

#[test]
fn scores() -> Result<()> {
    let weights: Vec<f32> = (0..64).map(|i| (i as f32 - 32.0) / 8.0).collect();
    let scorer = Scorer::new(Method::Magnitude, "w", &weights, (8, 8), Inputs::default())?;
    insta::assert_snapshot!("scorer", shown(&scorer));
    let interval = |low, high| Some(Interval { low, high, level: 0.95, resamples: 10_000, seed: 0 });
    let score = |value: f64| Score { value, interval: interval(value - 0.05, value + 0.05) };
    let task = TaskRecord { name: "a<b.jsonl".into(), sha256: "ab".repeat(32), examples: 2, kind: None };
    let bos = BosRecord { asked: Bos::Auto, tokens: vec![1] };
    let choices = ChoiceScores {
        task: task.clone(),
        bos: bos.clone(),
        acc: score(0.5),
        acc_norm: score(0.625),
        chance: 0.25,
        truncated: 0,
        predictions: Vec::new(),
    };
    insta::assert_snapshot!("choice_scores", shown(&choices));
    let text = "<i>Paris</i>".to_owned();
    let predictions = vec![GenerationPrediction { line: 1, text, exact_match: false, contains: true }];
    let generation =
        GenerationScores { task, bos, exact_match: score(0.5), contains: score(0.75), truncated: 1, predictions };
    insta::assert_snapshot!("generation_scores", shown(&generation));
    assert_eq!(bundle(&score(0.5))[mime::PLAIN], "0.5000, 0.4500 to 0.5500 (95%)");
    Ok(())
}

#[test]
fn records_and_reports() -> Result<()> {
    let model = ModelRecord {
        name: "m<1>".into(),
        revision: None,
        family: "llama".into(),
        parameters: 12_345,
        sha256: "cd".repeat(32),
    };
    let record = Record { environment: BTreeMap::new(), ..Record::dense(model) };
    insta::assert_snapshot!("record", shown(&record));
    let table = Table::from_records(std::slice::from_ref(&record))?.select(["model", "method"])?;
    let plot = Plot::curves("Curve").series("s", [(0.0, 1.0), (1.0, 2.0)]);
    let report = Report::new("Title & more")
        .records(std::slice::from_ref(&record))
        .text("First <p>.\n\nSecond.")
        .table("t", table)
        .plot("p", plot);
    insta::assert_snapshot!("report", shown(&report));
    assert!(bundle(&report)[mime::MARKDOWN].starts_with("# Title & more\n\nFirst <p>."));
    Ok(())
}

#[test]
fn experts() -> Result<()> {
    let checkpoint = Checkpoint::open(format!("{DATA}/tiny-mixtral"))?;
    let layout = ExpertLayout::find(&checkpoint)?;
    let scores = ExpertScores::data_free(&checkpoint, &layout, Metric::RouterNorm, Progress::Hidden)?;
    let of = bundle(&scores);
    assert!(of[mime::PLAIN].contains("router norm median") && of[mime::SVG].contains("Scores by router-norm"));
    let ranking = Ranking::by_score(&layout, &scores, Metric::RouterNorm, SuperExperts::Ignore)?;
    assert!(bundle(&ranking)[mime::SVG].contains("Places in the ranking"));
    let keep = Ranking::first(&layout).keep(&layout, 2)?;
    insta::assert_snapshot!("keep", shown(&keep));
    let by = serde_json::Map::from_iter([("metric".to_owned(), "<first>".into())]);
    let of = bundle(&Selection { keep, by });
    assert!(of[mime::PLAIN].contains("chosen by metric <first>") && of[mime::HTML].contains("metric &lt;first&gt;"));
    Ok(())
}

#[test]
fn errors_have_parts() {
    let problem = lacuna::error::Problem { cause: "holds NaN".into(), remedy: Some("evaluate in f32".into()) };
    let error = Error::tensor("model<1>", "w", problem);
    insta::assert_snapshot!("error", shown(&error));
    assert_eq!(format!("{error:?}"), "model<1>: tensor `w`\n  cause: holds NaN\n  remedy: evaluate in f32");
    assert_eq!(error.to_string(), "model<1>: tensor `w`: holds NaN; evaluate in f32");
    let missing = Checkpoint::open("no such directory").unwrap_err();
    assert!(missing.parts().cause.is_some(), "{missing:?}");
    let io = Error::io("read", "x.txt")(std::io::ErrorKind::NotFound.into());
    assert_eq!(io.parts().what, "cannot read x.txt");
    assert!(io.parts().remedy.unwrap().contains("check the path"));
}

#[test]
fn tensors_are_shown_as_candle_prints_them() {
    let tensor = Tensor::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu).unwrap();
    assert!(bundle(&tensor)[mime::PLAIN].contains("1., 2."), "{}", bundle(&tensor)[mime::PLAIN]);
    assert_eq!(tensor.dtype(), DType::F32);
}

/// `Debug` is for `dbg!`, error messages and values beside others: a line, however large the value.
#[test]
fn debug_of_what_is_large_is_one_line() -> Result<()> {
    use lacuna::experts::{Locality, Parts};
    use lacuna::prelude::*;
    fn one(value: &dyn std::fmt::Debug) -> String {
        let text = format!("{value:?}");
        assert!(!text.contains('\n') && (1..=300).contains(&text.chars().count()), "{text}");
        assert_eq!(format!("{value:#?}"), text);
        text
    }
    let root = format!("{}/data", env!("CARGO_MANIFEST_DIR"));
    let spec = format!("{root}/tiny-llama");
    let checkpoint = Checkpoint::open(&spec)?;
    let model = Model::open(&checkpoint, DType::F32, &Device::Cpu)?;
    let tokenizer = model.tokenizer()?;
    let windows = Windows::calibration(format!("{root}/corpus/train.txt"), Some(&tokenizer), Sampling::new(2, 32))?;
    assert!(one(&model).starts_with("Model(tiny-llama: Llama, "));
    let cache = tempfile::tempdir().unwrap();
    let lab = Lab::open_on(&spec, DType::F32, &Device::Cpu, Cache::at(cache.path(), 1 << 30))?;
    let lab = lab.with_progress(Progress::Hidden).with_calibration(windows.clone());
    let evaluation = evaluate(&model, &windows, Progress::Hidden)?;
    let statistics = calibrate(&model, &windows, Progress::Hidden)?;
    let slopes = gradients(&model, &windows, Accumulate::Sum, Progress::Hidden)?;
    let pruned = prune(&model, None, &PruneConfig::new(Method::Magnitude, 0.5), Progress::Hidden)?;
    let heads = StructuredConfig::new(Unit::Neurons, Method::Magnitude, 0.25);
    let structured = prune_structured(&model, None, &heads, Progress::Hidden)?;
    let set =
        masks(&model, None, &MasksConfig::new(&[Method::Magnitude], &[0.5]), Progress::Hidden)?.into_vec().remove(0);
    assert_eq!(one(&set.masks[0].1), "Mask(192 × 192, 50.0% pruned)");
    let task = Task::choices(format!("{root}/tasks/cloze.jsonl"), Some(2))?;
    let scores = score_choices(&model, &task, Bos::Auto, &Bootstrap::default(), Progress::Hidden)?;
    let headers = HeadersOnly::open(format!("{root}/gpt-oss-120b-headers"))?;
    let mixture = Checkpoint::open(format!("{DATA}/tiny-mixtral"))?;
    let layout = ExpertLayout::find(&mixture)?;
    let experts = ExpertScores::data_free(&mixture, &layout, Metric::RouterNorm, Progress::Hidden)?;
    let ranking = Ranking::first(&layout);
    let keep = ranking.keep(&layout, 2)?;
    let tensors: Vec<_> = mixture.tensors().cloned().collect();
    let parts = Parts::of(&tensors, Some(layout.family));
    let files: Vec<String> = vec!["model.safetensors".into()];
    let locality = Locality::of(&tensors, &files, layout.family, layout.layers);
    let weights = vec![1.0f32; 64];
    let scorer = Scorer::new(Method::Magnitude, "w", &weights, (8, 8), Inputs::default())?;
    let table = Table::tensors(&pruned.record)?;
    let plot = Plot::histogram("t".repeat(1_000), "x", &weights);
    let map = HeatMap::new("m", vec![vec![1.0; 500]; 500]);
    let report = Report::new("Title").records(std::slice::from_ref(&pruned.record)).table("t", table.clone());
    let metadata = set.metadata.clone().unwrap();
    let all: [&dyn std::fmt::Debug; 36] = [
        &checkpoint,
        &model,
        &model.resident()?,
        &tokenizer,
        &windows,
        &lab,
        &lab.cache(),
        &Cache::none(),
        &evaluation,
        &statistics,
        &lab.statistics()?,
        &slopes,
        &pruned,
        &pruned.record,
        &structured,
        &set,
        &metadata,
        &set.statistics(),
        &set.compare(&set.not())?,
        &task,
        &scores,
        &headers,
        &mixture,
        &layout,
        &experts,
        &ranking,
        &keep,
        &Selection { keep: keep.clone(), by: serde_json::Map::new() },
        &parts,
        &locality,
        &scorer,
        &table,
        &plot,
        &map,
        &report,
        &MaskMap::new("m", &set.masks[0].1),
    ];
    for value in all {
        one(value);
    }
    // Those of a few fields are what `derive` makes of them.
    let small: [&dyn std::fmt::Debug; 8] = [
        &Bootstrap::default(),
        &heads,
        &Allocation::Owl(Owl::default()),
        &"*.down_proj=0.3".parse::<Rule>()?,
        &SuperExperts::Protect,
        &GenerateConfig { max_new_tokens: 1, temperature: 0.0, top_p: 1.0, seed: 0 },
        &Inputs::default(),
        &Progress::Hidden,
    ];
    for value in small {
        let text = format!("{value:?}");
        assert!(!text.contains('\n') && text.chars().count() <= 300, "{text}");
    }
    Ok(())
}

#[test]
fn enums_of_choices_can_be_listed() {
    use lacuna::prelude::*;
    use lacuna::report::Format;
    assert_eq!(Method::all().len(), 7);
    for method in Method::all() {
        assert_eq!(method.to_string().parse::<Method>().unwrap(), method);
    }
    for format in MaskFormat::all() {
        assert_eq!(format.to_string().parse::<MaskFormat>().unwrap(), format);
    }
    assert_eq!(Per::all().map(|per| per.to_string()), ["row", "layer", "alpha"]);
    assert!(Metric::CALIBRATED.iter().all(|metric| Metric::all().contains(metric)));
    assert_eq!(Unit::all().len() + GroupNorm::all().len() + Propagate::all().len() + Accumulate::all().len(), 11);
    assert_eq!(Format::all(), [Format::Text, Format::Count, Format::Number, Format::Percent]);
    assert_eq!(SuperExperts::all().len() + lacuna::structured::Form::all().len() + Join::all().len(), 6);
}

#[test]
fn frames_of_any_size_are_shown() {
    let frame = df!["tensor" => ["a"], "size_bytes" => [1u64], "ok" => [Some(true)]].unwrap();
    insta::assert_snapshot!("frame_of_no_rows", shown(&frame.head(Some(0))));
    let of = bundle(&frame.head(Some(0)));
    assert_eq!(of[mime::CSV], "tensor,size_bytes,ok\n");
    let none = lacuna::polars::prelude::DataFrame::empty();
    let of = bundle(&none);
    assert_eq!(of[mime::PLAIN].trim(), "0 rows × 0 columns");
    assert!(!of.contains_key(mime::CSV) && of[mime::JSON] == r#"{"columns":[],"rows":[]}"#);
    let odd = df!["x" => [Some(f64::NAN), None, Some(f64::INFINITY)], "b" => [Some(true), None, Some(false)]].unwrap();
    let of = bundle(&odd);
    assert!(of[mime::PLAIN].contains("NaN") && of[mime::PLAIN].contains('∞'), "{}", of[mime::PLAIN]);
    assert_eq!(of[mime::CSV], "x,b\nNaN,true\n,\ninf,false\n");
    // A list in every row has no place in CSV.
    let inner = Series::new("".into(), [1, 2]);
    let nested = lacuna::polars::prelude::DataFrame::new_infer_height(vec![Series::new("l".into(), [inner]).into()]);
    let of = bundle(&nested.unwrap());
    assert!(!of.contains_key(mime::CSV) && of[mime::PLAIN].contains("[1, 2]"), "{}", of[mime::PLAIN]);
    assert_eq!(bundle(&frame.column("ok").unwrap().clone())[mime::CSV], "ok\ntrue\n");
}

/// Cells of the real evcxr: the prelude gives polars' types a method, lacuna's own have theirs, and a failed `?` says what
/// failed and why.
#[cfg(feature = "notebook")]
#[test]
fn cells_show_values() {
    use serde_json::{Value, json};
    let directory = tempfile::tempdir().unwrap();
    let open = format!(
        "Model::open(&Checkpoint::open({:?})?, lacuna::candle_core::DType::F32, &lacuna::candle_core::Device::Cpu)?",
        format!("{DATA}/tiny-mixtral")
    );
    let cells = [
        "use lacuna::prelude::*;",
        "df![\"size_bytes\" => (0..5_000u32).collect::<Vec<_>>()]?",
        &open,
        "Mask::from_fn(16, 32, |_, col| col % 4 < 2)",
        "#[derive(Debug)]\nstruct Own { a: u32 }\n(Own { a: 3 }, 1 + 1)",
        "println!(\"nothing to show\")",
        "Checkpoint::open(\"no such <directory>\")",
        "Checkpoint::open(\"missing\")?",
    ];
    let cells: Vec<Value> = (0..)
        .zip(cells)
        .map(|(i, source)| {
            let id = format!("id-{i}");
            json!({"cell_type": "code", "id": id, "metadata": {}, "source": source, "outputs": [], "execution_count": null})
        })
        .collect();
    let metadata = json!({"language_info": {"name": "rust"}});
    let notebook = json!({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5});
    let path = directory.path().join("shows.ipynb");
    std::fs::write(&path, notebook.to_string()).unwrap();
    let out = directory.path().join("out");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_lacuna"));
    let run = command.args(["notebook", "run"]).arg(&path).arg("--out").arg(&out).output().unwrap();
    let stderr = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("\ncannot open checkpoint missing: No such file or directory"), "{stderr}");
    let executed: Value = serde_json::from_slice(&std::fs::read(out.join("shows.ipynb")).unwrap()).unwrap();
    let data = |cell: usize, mime: &str| -> String {
        let lines = executed["cells"][cell]["outputs"][0]["data"][mime].as_array();
        lines.into_iter().flatten().filter_map(Value::as_str).collect()
    };
    assert!(data(1, mime::HTML).contains("showing 20 of 5,000 rows"), "{}", data(1, mime::HTML));
    assert!(data(1, mime::PLAIN).contains("size (bytes)"));
    assert!(data(2, mime::HTML).contains("<strong>Model tiny-mixtral: mixtral, 4 layers"), "{}", data(2, mime::HTML));
    assert!(data(3, mime::PLAIN).contains("2:4 (kept of M)") && data(3, mime::HTML).contains("<svg "));
    assert_eq!(data(4, mime::PLAIN), "(Own { a: 3 }, 2)");
    let outputs = executed["cells"][5]["outputs"].as_array().unwrap();
    assert!(outputs.iter().all(|output| output["output_type"] == "stream"), "{outputs:?}");
    assert!(
        data(6, mime::HTML).contains("<dt>Cause</dt>") && data(6, mime::HTML).contains("no such &lt;directory&gt;")
    );
}
