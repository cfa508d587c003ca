//! From records to tables, plots and reports, without a model.

#[path = "report/plots.rs"]
mod plots;

use lacuna::Error;
use lacuna::record::{
    EvaluationRecord, ModelRecord, PruningRecord, Record, SCHEMA_VERSION, StructureRecord, TensorRecord, TextRecord,
};
use lacuna::report::{Format, Plot, Report, Table, read_records, write_record};
use lacuna::settings::{
    Allocation, ComparisonGroup, Dsnot, FloatType, Form, GroupNorm, Method, Origin, Propagate, Rule, Unit, Zeros,
};
use lacuna::stats::Interval;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn text(name: &str, windows: usize, seqlen: usize) -> TextRecord {
    TextRecord { name: name.into(), sha256: "ab".repeat(32), windows, seqlen }
}

/// `zeros` of 1,000 weights; `pruning` is (method, pattern, sparsity).
fn record(pruning: Option<(&str, &str, f64)>, zeros: u64, nll_nats: f64) -> Record {
    Record {
        schema: SCHEMA_VERSION,
        model: ModelRecord {
            name: "tiny-llama".into(),
            revision: None,
            family: "llama".into(),
            parameters: 3_412_992,
            sha256: "cd".repeat(32),
        },
        pruning: pruning.map(|(method, pattern, sparsity)| {
            let (method, zeros): (Origin, Zeros) = (method.parse().unwrap(), pattern.parse().unwrap());
            PruningRecord {
                per: ComparisonGroup::Row,
                propagate: Propagate::Pruned,
                calibration: (method == Method::Wanda.into()).then(|| text("train.txt", 16, 512)),
                ..PruningRecord::new(method, zeros, sparsity)
            }
        }),
        structure: None,
        tensors: vec![TensorRecord { name: "model.layers.0.self_attn.q_proj.weight".into(), shape: [25, 40], zeros }],
        evaluation: Some(EvaluationRecord {
            text: text("test.txt", 8, 512),
            tokens: 4088,
            nll_nats,
            perplexity: nll_nats.exp(),
            nll_interval: None,
            perplexity_interval: None,
        }),
        environment: BTreeMap::from([("seconds".into(), 1.25.into())]),
    }
}

fn sweep() -> Vec<Record> {
    vec![
        record(None, 0, 3.234_567_890_123),
        record(Some(("wanda", "unstructured", 0.1)), 100, 3.2401),
        record(Some(("wanda", "unstructured", 0.5)), 500, 3.61),
        record(Some(("wanda", "unstructured", 0.9)), 900, 8.05),
        record(Some(("magnitude", "unstructured", 0.1)), 100, 3.2502),
        record(Some(("magnitude", "unstructured", 0.5)), 500, 4.4),
        record(Some(("magnitude", "unstructured", 0.9)), 900, 9.8),
        record(Some(("wanda", "2:4", 0.5)), 500, 4.1),
        record(Some(("magnitude", "2:4", 0.5)), 500, 5.2),
        record(Some(("wanda", "4:8", 0.5)), 500, 3.9),
    ]
}

#[test]
fn intervals_of_records_become_bands_of_curves() -> lacuna::Result<()> {
    let mut records = sweep();
    for evaluation in records.iter_mut().filter_map(|record| record.evaluation.as_mut()) {
        let (low, high) = (0.9 * evaluation.perplexity, 1.2 * evaluation.perplexity);
        evaluation.perplexity_interval = Some(Interval { low, high, level: 0.95, resamples: 10_000, seed: 0 });
    }
    let svg = Plot::perplexity_vs_sparsity(&records)?.svg()?;
    assert_eq!(svg.matches("<polygon opacity=\"0.18\"").count(), 2, "one for each of the two unstructured methods");
    assert!(!Plot::perplexity_vs_sparsity(&sweep())?.svg()?.contains("opacity=\"0.18\""));
    Ok(())
}

#[test]
fn table_reads_well_as_markdown_text_html_and_csv() -> lacuna::Result<()> {
    let table = Table::from_records(&sweep())?;
    insta::assert_snapshot!("records_markdown", table.markdown());
    insta::assert_snapshot!("records_text", table.text());
    insta::assert_snapshot!("records_csv", table.csv()?);
    insta::assert_snapshot!("records_html", table.select(["method", "pattern", "perplexity"])?.html());
    Ok(())
}

/// A record's interval of perplexity, from the one of its NLL.
fn with_interval(mut record: Record) -> Record {
    let evaluation = record.evaluation.as_mut().unwrap();
    let nll = evaluation.nll_nats;
    let interval = Interval { low: nll - 0.05, high: nll + 0.06, level: 0.95, resamples: 10_000, seed: 0 };
    evaluation.nll_interval = Some(interval);
    evaluation.perplexity_interval = Some(interval.map(f64::exp));
    record
}

#[test]
fn intervals_stand_beside_the_perplexity_where_there_are_any() -> lacuna::Result<()> {
    let mut records = sweep();
    records[1] = with_interval(records[1].clone());
    let table = Table::from_records(&records)?;
    assert_eq!(
        table.frame().get_column_names()[9..],
        ["perplexity", "perplexity_low", "perplexity_high", "perplexity_ratio"]
    );
    let low = table.frame().column("perplexity_low").unwrap();
    assert_eq!(low.null_count(), records.len() - 1);
    assert_eq!(low.get(1).unwrap().try_extract::<f64>().unwrap(), (3.2401_f64 - 0.05).exp());
    let shown = table.select(["perplexity", "perplexity_low", "perplexity_high"])?.markdown();
    assert!(shown.contains("| perplexity | 95% low | 95% high |"), "{shown}");
    assert!(shown.contains("|      25.54 |   24.29 |    27.12 |"), "{shown}");
    Ok(())
}

#[test]
fn records_from_before_there_were_intervals_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lacuna.json");
    let record = sweep().remove(1);
    write_record(&path, &record).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for field in ["nll_interval", "perplexity_interval"] {
        assert!(json["evaluation"].as_object_mut().unwrap().remove(field).unwrap().is_null());
    }
    fs::write(&path, json.to_string()).unwrap();
    assert_eq!(read_records(&path).unwrap(), [record]);

    let mut overflowed = with_interval(sweep().remove(1));
    overflowed.evaluation.as_mut().unwrap().perplexity_interval.as_mut().unwrap().high = f64::INFINITY;
    let error = write_record(&path, &overflowed).unwrap_err().to_string();
    assert!(error.contains("perplexity_interval.high is inf"), "{error}");
}

#[test]
fn pivot_has_a_row_per_sparsity_and_a_column_per_method() -> lacuna::Result<()> {
    let table = Table::perplexity_by_sparsity(&sweep())?;
    insta::assert_snapshot!("pivot_markdown", table.markdown());
    assert_eq!(table.frame().get_column_names(), ["pattern", "sparsity", "wanda", "magnitude"]);
    let dense = table.frame().column("magnitude").unwrap().get(0).unwrap().try_extract::<f64>().unwrap();
    assert_eq!(dense, 3.234_567_890_123_f64.exp());
    Ok(())
}

#[test]
fn two_seeds_of_one_method_are_two_columns_and_two_curves() -> lacuna::Result<()> {
    let mut records = vec![record(Some(("random", "unstructured", 0.5)), 500, 5.0); 2];
    records[1].pruning.as_mut().unwrap().seed = 7;
    let table = Table::perplexity_by_sparsity(&records)?;
    assert_eq!(table.frame().get_column_names()[2..], ["random, seed 0", "random, seed 7"]);
    let svg = Plot::perplexity_vs_sparsity(&records)?.svg()?;
    assert!(svg.contains("random, seed 0") && svg.contains("random, seed 7"));
    Ok(())
}

#[test]
fn csv_keeps_every_digit() -> lacuna::Result<()> {
    let csv = Table::from_records(&sweep())?.csv()?;
    let mut lines = csv.lines();
    let at = lines.next().unwrap().split(',').position(|name| name == "nll_nats").unwrap();
    let read: Vec<f64> = lines.map(|line| line.split(',').nth(at).unwrap().parse().unwrap()).collect();
    let exact: Vec<f64> = sweep().iter().map(|r| r.evaluation.as_ref().unwrap().nll_nats).collect();
    assert_eq!(read, exact);
    Ok(())
}

#[test]
fn a_long_table_is_shortened_on_screen_only() -> lacuna::Result<()> {
    let table = Table::from_records(&vec![sweep()[1].clone(); 1000])?;
    let bundle: BTreeMap<_, _> = table.bundle()?.into_iter().collect();
    assert!(bundle["text/html"].contains("… 980 more rows …"), "{}", bundle["text/html"]);
    assert!(bundle["text/plain"].contains("showing 20 of 1,000 rows × 11 columns"));
    assert!(bundle["text/markdown"].lines().count() < 70);
    assert_eq!(bundle["text/csv"].lines().count(), 1001);
    assert_eq!(table.markdown().lines().count(), 1002);
    let json: serde_json::Value = serde_json::from_str(&bundle["application/json"]).unwrap();
    assert_eq!(json["rows"].as_array().unwrap().len(), 1000);
    assert_eq!(json["columns"][8]["unit"], "nats/token");
    Ok(())
}

#[test]
fn markup_in_names_is_escaped() -> lacuna::Result<()> {
    let mut record = sweep().remove(0);
    record.model.name = "a|b<script>".into();
    let table = Table::from_records(&[record])?;
    assert!(table.markdown().contains("a\\|b<script>"));
    assert!(table.html().contains("a|b&lt;script&gt;") && !table.html().contains("<script>"));
    Ok(())
}

#[test]
fn columns_are_chosen_sorted_and_renamed() -> lacuna::Result<()> {
    let table = Table::tensors(&sweep()[1])?
        .with_heading("zeros", "zero weights", Some("count"))?
        .with_format("out", Format::Text)?;
    assert!(table.markdown().contains("zero weights (count)"));
    let sorted = Table::from_records(&sweep())?.sort("perplexity")?.select(["method", "perplexity"])?;
    assert!(sorted.text().lines().last().unwrap().starts_with("magnitude"));
    let error = table.select(["zero"]).unwrap_err().to_string();
    assert_eq!(error, "column = zero: there is none; the table has tensor, out, in, zeros, sparsity");
    Ok(())
}

fn report() -> lacuna::Result<Report> {
    let records = sweep();
    Ok(Report::new("Sweep")
        .records(&records)
        .text("What happens?")
        .plot("curves", Plot::perplexity_vs_sparsity(&records)?)
        .table("pivot", Table::perplexity_by_sparsity(&records)?))
}

#[test]
fn report_is_complete_and_regenerates_to_the_same_bytes() -> lacuna::Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("reports");
    let files = report()?.environment("host", "here").write(&out, "01_sweep")?;
    let names: Vec<_> = files.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    let expected = [
        "01_sweep.md",
        "01_sweep.json",
        "01_sweep.csv",
        "01_sweep_curves.svg",
        "01_sweep_curves.png",
        "01_sweep_pivot.csv",
    ];
    assert_eq!(names, expected);
    assert_eq!(fs::read_dir(&out).unwrap().count(), expected.len(), "no temporary file stays");
    assert_eq!(fs::metadata(&files[0]).unwrap().permissions().mode() & 0o400, 0o400);
    insta::assert_snapshot!("report_markdown", fs::read_to_string(&files[0]).unwrap());

    let first: Vec<_> = files.iter().map(|path| fs::read(path).unwrap()).collect();
    // Again, in place, from what the report itself holds.
    let records = read_records(out.join("01_sweep.json"))?;
    assert_eq!(records, sweep());
    let again = Report::new("Sweep")
        .records(&records)
        .text("What happens?")
        .plot("curves", Plot::perplexity_vs_sparsity(&records)?)
        .table("pivot", Table::perplexity_by_sparsity(&records)?);
    again.environment("host", "there").write(&out, "01_sweep")?;
    for ((path, first), name) in files.iter().zip(first).zip(expected) {
        let second = fs::read(path).unwrap();
        if name.ends_with(".json") {
            let without = |bytes: &[u8]| {
                let mut value: serde_json::Value = serde_json::from_slice(bytes).unwrap();
                let environment = value.as_object_mut().unwrap().shift_remove("environment").unwrap();
                (value.to_string(), environment)
            };
            let (first, second) = (without(&first), without(&second));
            assert_eq!(first.0, second.0);
            assert!(!first.0.contains("environment") && first.1["report"]["host"] == "here");
            assert_eq!(first.1["records"][0]["seconds"], 1.25);
        } else {
            assert!(first == second, "{name} differs");
        }
    }
    Ok(())
}

#[test]
fn a_report_that_fails_leaves_nothing() -> lacuna::Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("reports");
    let twice = report()?.table("curves", Table::tensors(&sweep()[0])?);
    assert!(twice.write(&out, "x").unwrap_err().to_string().contains("two parts of the report have it"));
    assert!(report()?.write(&out, "../x").unwrap_err().to_string().starts_with("stem = ../x: use letters"));
    assert!(report()?.plot("empty", Plot::curves("Empty")).write(&out, "x").is_err());
    assert!(!out.exists());
    Ok(())
}

#[test]
fn a_number_that_is_not_finite_is_an_error_not_null() {
    let dir = tempfile::tempdir().unwrap();
    let mut broken = sweep().remove(3);
    broken.evaluation.as_mut().unwrap().nll_nats = f64::NAN;
    let path = dir.path().join("lacuna.json");
    let error = write_record(&path, &broken).unwrap_err().to_string();
    assert!(
        error.contains("tiny-llama, wanda unstructured at sparsity 0.9") && error.contains("nll_nats is NaN"),
        "{error}"
    );
    assert!(!path.exists());
    // A table shows it.
    assert!(Table::from_records(&[broken]).unwrap().markdown().contains("NaN"));
}

#[test]
fn files_of_other_schemas_and_other_kinds_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let message = |content: &str| {
        let path = dir.path().join("lacuna.json");
        fs::write(&path, content).unwrap();
        let error = read_records(&path).unwrap_err();
        assert!(matches!(error, Error::File { .. }), "{error:?}");
        let message = error.to_string();
        assert!(message.contains("lacuna.json: "), "{message}");
        message
    };
    assert!(
        message(r#"{"schema": 99, "model": 1}"#)
            .ends_with("has schema 99, and this lacuna reads schema 1; use a newer lacuna")
    );
    assert!(message(r#"{"schema": 99, "records": []}"#).contains("use a newer lacuna"));
    assert!(message(r#"{"schema": 0}"#).contains("run the command that made it again"));
    assert!(message("{}").contains("has no `schema` number"));
    assert!(message(r#"{"schema": 1}"#).contains("missing field `model`"));
    assert!(message("{\"schema\": 1,").contains("not a record: EOF"));
    assert!(message(r#"[{"schema": 1, "x": 1.5, "x": 2.5}]"#).contains("names one key twice"));
    assert!(matches!(read_records(dir.path().join("none.json")).unwrap_err(), Error::Io { .. }));
}

fn any_float() -> impl Strategy<Value = f64> {
    prop_oneof![any::<f64>().prop_filter("finite", |f| f.is_finite()), 0.0..1e6f64]
}

prop_compose! {
    fn any_text()(name in "\\PC{0,12}", sha256 in "[0-9a-f]{64}", windows in 0usize..1000, seqlen in 1usize..4096) -> TextRecord {
        TextRecord { name, sha256, windows, seqlen }
    }
}

fn of<T: std::str::FromStr<Err: std::fmt::Debug> + std::fmt::Debug>(names: &'static str) -> impl Strategy<Value = T> {
    names.prop_map(|name: String| name.parse().unwrap())
}

prop_compose! {
    fn any_dsnot()(max_cycles in 0usize..100, threshold in 0.0..10.0f64, variance_power in 0.0..2.0f64, keep_sign in any::<bool>()) -> Dsnot {
        Dsnot { max_cycles, threshold, variance_power, keep_sign }
    }
}

prop_compose! {
    fn any_pruning()(
        method in of::<Origin>("magnitude|wanda|sparsegpt|and\\(a, b\\)"), pattern in of::<Zeros>("unstructured|2:4|4:8|heads|channels"),
        per in of::<ComparisonGroup>("row|layer|alpha|columns|module|model"), sparsity in 0.0..1.0f64,
        propagate in of::<Propagate>("pruned|dense"), seed in any::<u64>(), calibration in proptest::option::of(any_text()),
        allocation in of::<Allocation>("uniform|global|owl:5:0[.]08|owl:5:0[.]1"),
        rules in proptest::collection::vec(of::<Rule>("[a-z.=]{1,8}=(skip|0[.]5)"), 0..3),
        refine in proptest::option::of(any_dsnot()), reference_ties in any::<bool>(), dtype in of::<FloatType>("f32|bf16|f16|f64"),
    ) -> PruningRecord {
        PruningRecord {
            method, pattern, per, sparsity, allocation, rules, refine, reference_ties, propagate, seed, dtype, calibration,
        }
    }
}

prop_compose! {
    fn any_structure()(unit in of::<Unit>("heads|channels"), group_norm in of::<GroupNorm>("sum|l2"), form in of::<Form>("remove|zero")) -> StructureRecord {
        StructureRecord { unit, group_norm, form, parameters: 1, config: BTreeMap::new(), removed: Vec::new() }
    }
}

prop_compose! {
    fn any_interval()(low in any_float(), high in any_float(), level in 0.0..1.0f64, resamples in 1usize..99999, seed in any::<u64>()) -> Interval {
        Interval { low, high, level, resamples, seed }
    }
}

prop_compose! {
    fn any_record()(
        name in "\\PC{0,20}", parameters in any::<u64>(), sha256 in "[0-9a-f]{64}",
        pruning in proptest::option::of(any_pruning()), structure in proptest::option::of(any_structure()),
        tensors in proptest::collection::vec(("\\PC{0,12}", 1usize..9999, 1usize..9999, any::<u64>()), 0..4),
        evaluation in proptest::option::of((any_text(), any::<u64>(), any_float(), any_float())),
        intervals in (proptest::option::of(any_interval()), proptest::option::of(any_interval())),
        seconds in any_float(), note in "\\PC{0,12}",
    ) -> Record {
        Record {
            schema: SCHEMA_VERSION,
            model: ModelRecord { name, revision: None, family: "llama".into(), parameters, sha256 },
            pruning,
            structure,
            tensors: tensors.into_iter().map(|(name, out, inner, zeros)| TensorRecord { name, shape: [out, inner], zeros }).collect(),
            evaluation: evaluation
                .map(|(text, tokens, nll_nats, perplexity)| EvaluationRecord {
                    text, tokens, nll_nats, perplexity, nll_interval: intervals.0, perplexity_interval: intervals.1,
                }),
            environment: BTreeMap::from([("seconds".into(), seconds.into()), ("note".into(), note.into())]),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Every bit of every number survives, and the file's bytes do, too.
    #[test]
    fn records_round_trip(record in any_record()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lacuna.json");
        write_record(&path, &record).unwrap();
        let first = fs::read(&path).unwrap();
        let read = read_records(&path).unwrap();
        prop_assert_eq!(&read, &vec![record]);
        write_record(&path, &read[0]).unwrap();
        prop_assert_eq!(first, fs::read(&path).unwrap());
    }
}

/// One setting of `record` after another is changed; each comes with its name.
fn changed(record: &Record) -> Vec<(&'static str, Record)> {
    let pruning = record.pruning.clone().unwrap();
    let structure = record.structure.clone().unwrap();
    let other = TextRecord { sha256: "ef".repeat(32), ..text("train.txt", 16, 512) };
    let with = |pruning: PruningRecord| Record { pruning: Some(pruning), ..record.clone() };
    let dsnot = Dsnot::default();
    let settings = vec![
        ("method", PruningRecord { method: Method::Ria.into(), ..pruning.clone() }),
        ("name of masks", PruningRecord { method: "and(a, b)".parse().unwrap(), ..pruning.clone() }),
        ("per", PruningRecord { per: ComparisonGroup::Layer, ..pruning.clone() }),
        ("owl", PruningRecord { allocation: "owl:5:0.08".parse().unwrap(), ..pruning.clone() }),
        ("other owl", PruningRecord { allocation: "owl:7:0.08".parse().unwrap(), ..pruning.clone() }),
        ("global", PruningRecord { allocation: Allocation::Global, ..pruning.clone() }),
        ("rule", PruningRecord { rules: vec!["*.o_proj=skip".parse().unwrap()], ..pruning.clone() }),
        ("other rule", PruningRecord { rules: vec!["*.o_proj=0.3".parse().unwrap()], ..pruning.clone() }),
        ("dsnot", PruningRecord { refine: Some(dsnot), ..pruning.clone() }),
        ("its cycles", PruningRecord { refine: Some(Dsnot { max_cycles: 7, ..dsnot }), ..pruning.clone() }),
        ("its signs", PruningRecord { refine: Some(Dsnot { keep_sign: true, ..dsnot }), ..pruning.clone() }),
        ("ties", PruningRecord { reference_ties: true, ..pruning.clone() }),
        ("propagate", PruningRecord { propagate: Propagate::Dense, ..pruning.clone() }),
        ("seed", PruningRecord { seed: 9, ..pruning.clone() }),
        ("dtype", PruningRecord { dtype: FloatType::Bf16, ..pruning.clone() }),
        ("no calibration", PruningRecord { calibration: None, ..pruning.clone() }),
        ("windows", PruningRecord { calibration: Some(text("train.txt", 17, 512)), ..pruning.clone() }),
        ("text of that name", PruningRecord { calibration: Some(other), ..pruning.clone() }),
    ];
    let mut all: Vec<(&str, Record)> = settings.into_iter().map(|(name, pruning)| (name, with(pruning))).collect();
    let structures = [
        ("group norm", StructureRecord { group_norm: GroupNorm::Sum, ..structure.clone() }),
        ("form", StructureRecord { form: Form::Zero, ..structure }),
    ];
    all.extend(structures.map(|(name, structure)| (name, Record { structure: Some(structure), ..record.clone() })));
    let model = |change: fn(&mut ModelRecord)| {
        let mut changed = record.clone();
        change(&mut changed.model);
        changed
    };
    all.push(("model", model(|model| model.name = "other".into())));
    all.push(("weights", model(|model| model.sha256 = "01".repeat(32))));
    all.push(("revision", model(|model| model.revision = Some("main".into()))));
    let scored = |text: TextRecord| {
        let evaluation = record.evaluation.clone().unwrap();
        Record { evaluation: Some(EvaluationRecord { text, ..evaluation }), ..record.clone() }
    };
    all.push(("test text", scored(text("other.txt", 8, 512))));
    all.push(("test windows", scored(text("test.txt", 9, 512))));
    all
}

#[test]
fn every_setting_has_a_curve_and_a_column_of_its_own() -> lacuna::Result<()> {
    let mut base = record(Some(("wanda", "unstructured", 0.5)), 500, 3.5);
    base.structure = Some(StructureRecord {
        unit: Unit::Heads,
        group_norm: GroupNorm::L2,
        form: Form::Remove,
        parameters: 1,
        config: BTreeMap::new(),
        removed: Vec::new(),
    });
    let changed = changed(&base);
    // Each beside the first alone, and all together.
    let mut sets: Vec<Vec<Record>> = changed.iter().map(|(_, other)| vec![base.clone(), other.clone()]).collect();
    sets.push(std::iter::once(base.clone()).chain(changed.iter().map(|(_, other)| other.clone())).collect());
    for (i, records) in sets.iter().enumerate() {
        let name = changed.get(i).map_or("all", |(name, _)| name);
        let table = Table::perplexity_by_sparsity(records)?;
        assert_eq!(table.frame().width(), 2 + records.len(), "{name}: {table:?}");
        assert_eq!(table.frame().height(), 1, "{name}");
        let summary = Plot::perplexity_vs_sparsity(records)?.summary();
        assert_eq!(summary.matches("(1 point)").count(), records.len(), "{name}: {summary}");
        let bars = Plot::perplexity_by_pattern(records, 0.5)?.summary();
        assert_eq!(bars.matches("(1 point)").count(), records.len(), "{name}: {bars}");
    }
    let labels = |name: &str| {
        let (_, other) = changed.iter().find(|(other, _)| *other == name).unwrap();
        let table = Table::perplexity_by_sparsity(&[base.clone(), other.clone()]).unwrap();
        let names = table.frame().get_column_names();
        names[2..].iter().map(|name| name.to_string()).collect::<Vec<_>>().join(" | ")
    };
    let all: Vec<String> = changed.iter().map(|(name, _)| format!("{name}: {}", labels(name))).collect();
    insta::assert_snapshot!("labels", all.join("\n"));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Records that differ in anything but their sparsity and their results never share a label.
    #[test]
    fn different_settings_have_different_labels(records in proptest::collection::vec(any_record(), 2..5)) {
        let text = TextRecord { name: "t".into(), sha256: "aa".into(), windows: 1, seqlen: 2 };
        let settings = |record: &Record| Record {
            tensors: Vec::new(),
            evaluation: record.evaluation.as_ref().map(|e| EvaluationRecord {
                text: e.text.clone(), tokens: 1, nll_nats: 1.0, perplexity: 2.0, nll_interval: None, perplexity_interval: None,
            }),
            pruning: record.pruning.clone().map(|pruning| PruningRecord { sparsity: 0.5, pattern: Zeros::UNSTRUCTURED, ..pruning }),
            environment: BTreeMap::new(),
            ..record.clone()
        };
        let mut pruned: Vec<Record> = Vec::new();
        for record in records.iter().map(settings).filter(|record| record.pruning.is_some()) {
            let evaluation = record.evaluation.clone().unwrap_or(EvaluationRecord {
                text: text.clone(), tokens: 1, nll_nats: 1.0, perplexity: 2.0, nll_interval: None, perplexity_interval: None,
            });
            let record = Record { evaluation: Some(evaluation), ..record };
            if !pruned.contains(&record) {
                pruned.push(record);
            }
        }
        prop_assume!(!pruned.is_empty());
        let table = Table::perplexity_by_sparsity(&pruned).unwrap();
        prop_assert_eq!(table.frame().width(), 2 + pruned.len(), "{:?}", table);
        let summary = Plot::perplexity_vs_sparsity(&pruned).unwrap().summary();
        prop_assert_eq!(summary.matches("(1 point)").count(), pruned.len(), "{}", summary);
    }

    /// Whatever the settings are, each record is a row in every form, and CSV, JSON and Markdown tell the same.
    #[test]
    fn tables_have_a_row_for_every_record_in_each_form(records in proptest::collection::vec(any_record(), 1..5)) {
        let table = Table::from_records(&records).unwrap();
        let json = table.json();
        let columns = json["columns"].as_array().unwrap();
        let rows = json["rows"].as_array().unwrap();
        let csv = csv_rows(&table.csv().unwrap());
        let markdown: Vec<Vec<String>> = table.markdown().lines().map(markdown_cells).collect();
        prop_assert_eq!((table.frame().height(), rows.len()), (records.len(), records.len()));
        prop_assert_eq!((csv.len(), markdown.len()), (1 + records.len(), 2 + records.len()));
        prop_assert!(csv.iter().chain(&markdown).all(|row| row.len() == columns.len()), "{:?} {:?}", csv, markdown);
        for (at, record) in records.iter().enumerate() {
            let (row, csv, markdown) = (&rows[at], &csv[1 + at], &markdown[2 + at]);
            for ((column, csv), markdown) in columns.iter().zip(csv).zip(markdown) {
                match &row[column["name"].as_str().unwrap()] {
                    serde_json::Value::Null => prop_assert_eq!(csv, ""),
                    serde_json::Value::String(text) => {
                        prop_assert_eq!(csv, text);
                        prop_assert_eq!(markdown.trim(), text.trim());
                    }
                    // Every bit of it.
                    number => prop_assert_eq!(csv.parse::<f64>().ok(), number.as_f64(), "{}", csv),
                }
            }
            let pruning = record.pruning.as_ref();
            prop_assert_eq!(row["model"].as_str(), Some(record.model.name.as_str()));
            prop_assert_eq!(row["pattern"].as_str().map(str::to_owned), pruning.map(|p| p.pattern.to_string()));
            prop_assert_eq!(row["target_sparsity"].as_f64(), pruning.map(|p| p.sparsity));
            prop_assert_eq!(row["nll_nats"].as_f64(), record.evaluation.as_ref().map(|e| e.nll_nats));
        }
    }

}

proptest! {
    // Each writes files twice, and flushes them.
    #![proptest_config(ProptestConfig::with_cases(30))]

    /// A report of any records holds them, and the same report made of what it holds has the same bytes.
    #[test]
    fn reports_regenerate_whatever_the_settings_are(records in proptest::collection::vec(any_record(), 1..4)) {
        let dir = tempfile::tempdir().unwrap();
        let write = |records: &[Record], stem: &str| {
            let table = Table::from_records(records).unwrap();
            Report::new("R").records(records).table("t", table).write(dir.path(), stem).unwrap();
            let read = |end: &str| fs::read_to_string(dir.path().join(format!("{stem}{end}"))).unwrap();
            [".md", ".csv", "_t.csv"].map(read)
        };
        let first = write(&records, "r");
        let read = read_records(dir.path().join("r.json")).unwrap();
        prop_assert_eq!(&read, &records);
        prop_assert_eq!(write(&read, "r"), first);
    }
}

/// The fields of CSV (RFC 4180).
fn csv_rows(text: &str) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut field, mut quoted) = (Vec::new(), Vec::new(), String::new(), false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => field.extend(chars.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => row.push(std::mem::take(&mut field)),
            '\n' if !quoted => {
                row.push(std::mem::take(&mut field));
                rows.push(std::mem::take(&mut row));
            }
            c => field.push(c),
        }
    }
    assert!(field.is_empty() && row.is_empty() && !quoted, "no newline at the end");
    rows
}

/// The cells of a line of a table in Markdown, in which backslashes before a bar are escapes.
fn markdown_cells(line: &str) -> Vec<String> {
    let (mut cells, mut cell, mut backslashes) = (Vec::new(), String::new(), 0);
    for c in line.strip_prefix('|').unwrap().chars() {
        if c == '\\' {
            backslashes += 1;
            continue;
        }
        let kept = if c == '|' { backslashes / 2 } else { backslashes };
        cell.extend(std::iter::repeat_n('\\', kept));
        if c == '|' && backslashes % 2 == 0 {
            cells.push(std::mem::take(&mut cell))
        } else {
            cell.push(c)
        }
        backslashes = 0;
    }
    assert_eq!((cell.as_str(), backslashes), ("", 0), "{line}");
    cells
}

#[test]
fn records_of_older_versions_are_read() {
    let old = r#"{"schema": 1, "model": {"name": "m", "family": "llama", "parameters": 7, "sha256": ""},
        "pruning": {"method": "wanda", "pattern": "heads", "per": "module", "sparsity": 0.5, "refine": "dsnot",
                    "propagate": "dense", "seed": 0, "dtype": "f32", "calibration": null},
        "structure": {"unit": "heads", "group_norm": "l2", "form": "remove", "parameters": 3, "config": {}, "removed": []},
        "tensors": [], "evaluation": null}"#;
    let record: Record = serde_json::from_str(old).unwrap();
    let pruning = record.pruning.unwrap();
    assert_eq!((pruning.pattern, pruning.per), (Zeros::Units(Unit::Heads), ComparisonGroup::Module));
    assert_eq!((pruning.allocation, pruning.refine), (Allocation::Uniform, Some(Dsnot::default())));
    let wrong = old.replace("\"per\": \"module\"", "\"per\": \"team\"");
    let error = serde_json::from_str::<Record>(&wrong).unwrap_err().to_string();
    assert!(error.contains("per = team") && error.contains("module"), "{error}");
}
