//! Scoring experts, choosing the best and building the model that has only those, against PyTorch; and what scores look
//! like on a disk (tests/data/README.md says how the numbers were made).

mod common;
#[path = "common/fixtures.rs"]
mod fixtures;

use common::{assert_says, fingerprint, names};
use fixtures::{DATA, FIXTURES, logits, open, open_dir, reference, windows, worst_logit};
use lacuna::checkpoint::{Checkpoint, CheckpointWriter, Manifest};
use lacuna::experts::{self, ExpertLayout, ExpertScores, Keep, Metric, Ranking, SuperExperts};
use lacuna::model::Model;
use lacuna::progress::Progress;
use lacuna::report::Table;
use safetensors::Dtype;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn layout(name: &str) -> ExpertLayout {
    ExpertLayout::find(&Checkpoint::open(format!("{DATA}/{name}")).unwrap()).unwrap()
}

fn score(name: &str) -> ExpertScores {
    let &(_, count, seqlen) = FIXTURES.iter().find(|(fixture, ..)| *fixture == name).unwrap();
    ExpertScores::calibrated(&open(name), &windows(name, count, seqlen), Progress::Hidden).unwrap()
}

fn lists(keep: &Keep) -> Vec<Vec<usize>> {
    keep.layers().map(|(_, list)| list.to_vec()).collect()
}

/// Builds the model that has only `keep`, verifies it, and opens it.
fn built(name: &str, keep: &Keep, out: &Path) -> Model {
    let base = Checkpoint::open(format!("{DATA}/{name}")).unwrap();
    experts::prune_experts_to(&base, &keep.clone().into(), 20 << 10, out, Progress::Hidden).unwrap();
    let found = experts::verify(&base, out, Progress::Hidden).unwrap();
    assert_eq!(found.mismatch_count, 0, "{name}: {found:?}");
    let built = open_dir(out);
    // In memory, from the files and from a model that is in memory already, it is the same model bit for bit.
    for model in [open(name), open(name).resident().unwrap()] {
        let pruned = experts::prune_experts(&model, keep).unwrap();
        assert_eq!(pruned.config(), built.config(), "{name}");
        let bits = |model: &Model| -> Vec<u32> {
            let logits = model.forward(&[1, 5, 2, 7, 3, 11, 4]).unwrap();
            logits.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|logit| logit.to_bits()).collect()
        };
        assert_eq!(bits(&pruned), bits(&built), "{name}");
    }
    built
}

#[test]
fn the_best_experts_are_pytorchs_and_alone_give_its_logits() {
    for (name, count, seqlen) in FIXTURES.into_iter().chain([("tiny-gpt-oss-mxfp4", 3, 40)]) {
        let oracle = name.replace("mxfp4", "f32");
        let (layout, windows) = (layout(name), windows(&oracle, count, seqlen));
        let scores = ExpertScores::calibrated(&open(name), &windows, Progress::Hidden).unwrap();
        scores.check(&layout).unwrap();
        assert_eq!((scores.model.as_str(), scores.calibration.as_ref()), (name, Some(&windows.record())));
        let best = |metric, count| {
            Ranking::by_score(&layout, &scores, metric, SuperExperts::Ignore).unwrap().keep(&layout, count).unwrap()
        };
        let expected = reference(&oracle);
        for (metric, key) in [
            (Metric::Reap, "kept_by_reap"),
            (Metric::ReapSoftmax, "kept_by_reap_softmax"),
            (Metric::Frequency, "kept_by_frequency"),
        ] {
            assert_eq!(json!(lists(&best(metric, 4))), expected[key], "{name}: {key}");
        }

        let dir = tempfile::tempdir().unwrap();
        let whole = built(name, &best(Metric::Reap, 8), &dir.path().join("8"));
        let pruned = built(name, &best(Metric::Reap, 4), &dir.path().join("4"));
        assert_eq!(pruned.config().moe.as_ref().unwrap().experts, 4, "{name}");
        let (before, after) = (logits(&oracle, "logits.npz"), logits(&oracle, "logits_reap4.npz"));
        for (model, what, expected) in [(&whole, "all", &before), (&pruned, "four", &after)] {
            let worst = worst_logit(model, &windows, expected);
            println!("{name}: logits of {what} experts differ by {worst:.1e}");
            assert!(worst < 1e-4, "{name}: logits of {what} experts differ by {worst}");
        }
        let other = built(name, &best(Metric::Frequency, 4), &dir.path().join("other"));
        let same = lists(&best(Metric::Frequency, 4)) == lists(&best(Metric::Reap, 4));
        assert!(same || worst_logit(&other, &windows, &after) > 1e-2, "{name}: it matters which experts stay");
        assert!(worst_logit(&pruned, &windows, &before) > 1e-2, "{name}: pruning matters");
    }
}

#[test]
fn scores_are_read_as_they_were_written() {
    let dir = tempfile::tempdir().unwrap();
    let model = open("tiny-qwen2-moe");
    let windows = windows("tiny-qwen2-moe", 3, 40);
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let scores = ExpertScores::calibrate_to(&model, &windows, &one, Progress::Hidden).unwrap();
    assert_eq!(ExpertScores::read(&one).unwrap(), scores);
    scores.write(&two).unwrap();
    let bytes =
        |dir: &Path| -> Vec<_> { fingerprint(dir).into_iter().map(|(name, (bytes, _))| (name, bytes)).collect() };
    assert!(bytes(&one) == bytes(&two));
    assert_eq!(names(&one), ["model.safetensors", "scores.json"]);
    assert_eq!((scores.family.as_str(), &scores.layers[..], scores.experts), ("qwen2_moe", &[1, 3][..], 8));

    // What is not measured on a text is what the weights give.
    let checkpoint = model.checkpoint().unwrap();
    let layout = ExpertLayout::find(checkpoint).unwrap();
    let data_free = ExpertScores::data_free(checkpoint, &layout, Metric::RouterNorm, Progress::Hidden).unwrap();
    assert_eq!(scores.get(Metric::RouterNorm).unwrap(), data_free.get(Metric::RouterNorm).unwrap());
    let mut calibrated = scores.clone();
    calibrated.metrics.remove(&Metric::RouterNorm);
    assert_eq!(calibrated, score("tiny-qwen2-moe"));
    assert_says(scores.get(Metric::WeightNorm).unwrap_err(), &["weight-norm", "these scores hold router-norm, freq"]);
}

#[test]
fn a_table_sums_up_each_layer() {
    let frequency = vec![vec![3.0, 0.0, 5.0, 0.0], vec![1.0, 4.0, 1.0, 4.0]];
    let reap = vec![vec![0.5, 0.0, 2.0, 0.25], vec![4.0, 3.0, 2.0, 1.0]];
    let metrics = BTreeMap::from([(Metric::Frequency, frequency), (Metric::Reap, reap)]);
    let (model, family) = ("m".to_owned(), "mixtral".to_owned());
    let routers_sha256 = String::new();
    let layers = vec![2, 5];
    let mut scores = ExpertScores { model, family, routers_sha256, calibration: None, layers, experts: 4, metrics };
    let table = Table::expert_scores(&scores, Metric::Reap).unwrap();
    assert_eq!(
        table.csv().unwrap(),
        "layer,reap_min,reap_median,reap_max,most_routed,most_tokens,least_routed,least_tokens,never_routed\n\
         2,0.0,0.375,2.0,2,5,1,0,2\n5,1.0,2.5,4.0,1,4,0,1,0\n"
    );
    assert_says(table.text(), &["reap median", "0.3750", "never routed"]);
    scores.metrics.remove(&Metric::Frequency);
    assert_eq!(Table::expert_scores(&scores, Metric::Reap).unwrap().frame().width(), 4);
    assert_says(Table::expert_scores(&scores, Metric::Ean).unwrap_err(), &["ean", "these scores hold reap"]);
}

/// Scores of `shape` with one metric, as a writer that is wrong would leave them.
fn foreign(dir: &Path, shape: [usize; 2], dtype: Dtype, bytes: &[u8]) {
    let description = std::fs::read(dir.join("scores.json")).unwrap();
    std::fs::remove_dir_all(dir).unwrap();
    let mut writer = CheckpointWriter::create(dir, vec![vec![("reap".into(), dtype, shape.to_vec())]]).unwrap();
    writer.write("reap", bytes).unwrap();
    writer.add_file("scores.json", &description).unwrap();
    writer.finish().unwrap();
}

fn edit(dir: &Path, change: impl Fn(&mut Value)) {
    let path = dir.join("scores.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
}

#[test]
fn damaged_scores_are_named() {
    type Damage = fn(&Path);
    let cases: &[(Damage, &[&str])] = &[
        (|dir| std::fs::remove_file(dir.join("scores.json")).unwrap(), &["scores.json", "missing", "experts score"]),
        (|dir| std::fs::write(dir.join("scores.json"), "{").unwrap(), &["scores.json", "not a description of scores"]),
        (|dir| edit(dir, |json| json["schema"] = 9.into()), &["scores.json", "schema 9 is not 1"]),
        (|dir| edit(dir, |json| json["experts"] = 7.into()), &["`reap`", "F64 x [2, 8], not F64 x [2, 7]"]),
        (|dir| edit(dir, |json| json["layers"] = json!([0])), &["`reap`", "[2, 8], not F64 x [1, 8]"]),
        (|dir| edit(dir, |json| json["metrics"] = json!(["ean"])), &["`ean`"]),
        (
            |dir| {
                foreign(dir, [2, 8], Dtype::F64, &[0; 128]);
                let (from, to) = ("\"reap\":", "\"fame\":");
                let path = dir.join("model.safetensors");
                let mut bytes = std::fs::read(&path).unwrap();
                let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
                bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
                std::fs::write(path, bytes).unwrap();
                edit(dir, |json| json["metrics"] = json!(["fame"]));
            },
            &["scores.json", "fame", "must be one of router-norm"],
        ),
        (|dir| foreign(dir, [2, 8], Dtype::F32, &[0; 64]), &["`reap`", "F32 x [2, 8], not F64 x [2, 8]"]),
        (|dir| foreign(dir, [8, 2], Dtype::F64, &[0; 128]), &["`reap`", "F64 x [8, 2], not F64 x [2, 8]"]),
        (|dir| foreign(dir, [2, 8], Dtype::F64, &[0xff; 128]), &["`reap`", "NaN", "compute them again"]),
        (
            |dir| {
                let path = dir.join("model.safetensors");
                let bytes = std::fs::read(&path).unwrap();
                std::fs::write(path, &bytes[..bytes.len() - 8]).unwrap();
            },
            &["model.safetensors"],
        ),
    ];
    let mut scores = score("tiny-olmoe");
    scores.metrics.retain(|metric, _| *metric == Metric::Reap);
    for (damage, says) in cases {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("scores");
        scores.write(&out).unwrap();
        assert_eq!(ExpertScores::read(&out).unwrap(), scores);
        damage(&out);
        assert_says(ExpertScores::read(&out).unwrap_err(), says);
    }
}

#[test]
fn scores_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("scores");
    let scores = score("tiny-olmoe");
    let refused = |scores: &ExpertScores, name: &str, says: &[&str]| {
        let ranking = Ranking::by_score(&layout(name), scores, Metric::Reap, SuperExperts::Ignore);
        assert_says(ranking.unwrap_err(), says);
    };
    let checkpoint = Checkpoint::open(Path::new(DATA).join("tiny-olmoe")).unwrap();
    scores.check_model(&checkpoint, &layout("tiny-olmoe")).unwrap();
    let sibling = ExpertScores { routers_sha256: "0".repeat(64), ..scores.clone() };
    let error = sibling.check_model(&checkpoint, &layout("tiny-olmoe")).unwrap_err();
    assert_says(error, &["scores = tiny-olmoe", "other routers", "score this one"]);
    refused(&scores, "tiny-qwen3-moe", &["tiny-olmoe", "(olmoe, layers [0, 1])", "(qwen3_moe, layers [0, 2])"]);
    for spoil in [
        |rows: &mut Vec<Vec<f64>>| rows[1][3] = f64::NAN,
        |rows: &mut Vec<Vec<f64>>| rows[0][0] = f64::INFINITY,
        |rows: &mut Vec<Vec<f64>>| drop(rows.pop()),
        // As many numbers as there should be, in other places.
        |rows: &mut Vec<Vec<f64>>| {
            let moved = rows[0].pop().unwrap();
            rows[1].push(moved);
        },
    ] {
        let mut spoilt = scores.clone();
        spoil(spoilt.metrics.get_mut(&Metric::Reap).unwrap());
        let says = ["metric = reap", "8 experts in each of 2 layers"];
        refused(&spoilt, "tiny-olmoe", &says);
        assert_says(spoilt.write(&out).unwrap_err(), &says);
        assert_says(Table::expert_scores(&spoilt, Metric::Reap).unwrap_err(), &says);
    }
    assert_eq!(names(dir.path()), [""; 0]);
    std::fs::write(&out, "mine").unwrap();
    assert_says(scores.write(&out).unwrap_err(), &["scores", "already exists"]);
    let resident = open("tiny-olmoe").with_tensors([]).unwrap();
    let error = ExpertScores::calibrate_to(&resident, &windows("tiny-olmoe", 3, 40), &out, Progress::Hidden);
    assert_says(error.unwrap_err(), &["exists in memory only"]);
}

/// A command line, run in `dir`, with `MODEL` and `TOKENS` standing for the fixture's.
fn command(dir: &Path, line: &str) -> Command {
    let (model, tokens) = (format!("{DATA}/tiny-mixtral"), format!("{DATA}/tiny-mixtral/tokens.json"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    let words = line.split_whitespace().map(|word| match word {
        "MODEL" => model.as_str(),
        "TOKENS" => tokens.as_str(),
        word => word,
    });
    command.current_dir(dir).arg("experts").args(words).stdin(Stdio::null());
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

fn succeeds(dir: &Path, line: &str) -> String {
    let output = command(dir, line).output().unwrap();
    assert!(output.status.success(), "{line}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

const SCORE: &str = "score MODEL --calib TOKENS --windows 4 --seqlen 64";

#[test]
fn one_run_of_score_serves_every_build() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let printed = succeeds(dir, &format!("{SCORE} --out scores --json"));
    let scores = ExpertScores::read(&dir.join("scores")).unwrap();
    assert_eq!(printed, serde_json::to_string_pretty(&scores).unwrap() + "\n");
    assert_eq!(scores.metrics.len(), 6);
    let printed: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(printed["metrics"]["frequency"], json!(scores.get(Metric::Frequency).unwrap()));
    let table = succeeds(dir, &format!("{SCORE} --out again"));
    assert_says(&table, &["reap min", "least routed", "never routed", "4 layers of 8 experts -> again"]);
    assert_eq!(table.lines().count(), 2 + 4 + scores.super_experts().unwrap().len().min(1) + 1, "{table}");
    let bytes = |name: &str| std::fs::read(dir.join(name).join("model.safetensors")).unwrap();
    assert!(bytes("scores") == bytes("again"));

    // Every fraction from one measurement, and each keeps what a smaller one keeps.
    let about = |out: &str| Manifest::read(&dir.join(out)).unwrap().unwrap().about;
    let kept = |out: &str| serde_json::from_value::<BTreeMap<usize, Vec<usize>>>(about(out)["keep"].clone()).unwrap();
    let mut smaller: Option<BTreeMap<usize, Vec<usize>>> = None;
    for (fraction, count) in [("0.25", 2), ("0.5", 4), ("0.75", 6)] {
        let choice = format!("--keep {fraction} --by reap --scores scores --ignore-super-experts");
        succeeds(dir, &format!("build MODEL {choice} --out reap{count}"));
        assert_says(succeeds(dir, &format!("verify MODEL reap{count}")), &["mismatch_count 0"]);
        let kept = kept(&format!("reap{count}"));
        assert!(kept.values().all(|list| list.len() == count));
        for (layer, list) in smaller.iter().flatten() {
            assert!(list.iter().all(|expert| kept[layer].contains(expert)), "{list:?} of layer {layer} in {kept:?}");
        }
        smaller = Some(kept);
    }
    assert_eq!(json!(kept("reap4").values().collect::<Vec<_>>()), reference("tiny-mixtral")["kept_by_reap"]);
    let by = &about("reap4")["by"];
    assert_eq!((&by["choice"], &by["super_experts_protected"]), (&json!("reap"), &json!(false)));
    assert_eq!(by["calibration"]["sha256"], windows("tiny-mixtral", 4, 64).sha256());
    let worst = worst_logit(
        &open_dir(dir.join("reap4")),
        &windows("tiny-mixtral", 4, 64),
        &logits("tiny-mixtral", "logits_reap4.npz"),
    );
    assert!(worst < 1e-4, "{worst}");
    // The router's norms are among the scores, and need no text.
    succeeds(dir, "slice MODEL --count 4 --by router-norm --scores scores --out with");
    succeeds(dir, "slice MODEL --count 4 --by router-norm --out without");
    assert_eq!(about("with")["keep"], about("without")["keep"]);
}

#[test]
fn a_super_expert_stays_unless_told_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut scores = score("tiny-mixtral");
    // The expert that the oracle would drop first has the largest activation.
    let reap = &scores.get(Metric::Reap).unwrap()[1];
    let worst = (0..8).min_by(|&a, &b| reap[a].total_cmp(&reap[b])).unwrap();
    scores.metrics.get_mut(&Metric::MaxActivation).unwrap()[1][worst] = 1e4;
    assert_eq!(scores.super_experts().unwrap(), [(1, worst)]);
    scores.write(&dir.join("scores")).unwrap();
    for (option, stays) in [("", true), ("--ignore-super-experts", false)] {
        let out = if stays { "kept" } else { "dropped" };
        let choice = format!("MODEL --count 4 --by reap --scores scores {option} --out {out}");
        let [keep, go] = if stays { [json!([[1, worst]]), json!([])] } else { [json!([]), json!([[1, worst]])] };
        let expected = json!({"kept": keep, "dropped": go});
        let planned: Value = serde_json::from_str(&succeeds(dir, &format!("plan {choice} --json"))).unwrap();
        assert_eq!(planned["by"]["super_experts"], expected);
        let table = succeeds(dir, &format!("plan {choice}"));
        let line = match stays {
            true => format!("super-experts (layer/expert): 1/{worst} would stay; none would be dropped"),
            false => format!("super-experts (layer/expert): none would stay; 1/{worst} would be dropped"),
        };
        assert_says(&table, &["The experts that would stay:", "layer  experts", &line]);
        let built: Value = serde_json::from_str(&succeeds(dir, &format!("build {choice} --json"))).unwrap();
        assert_eq!(built["super_experts"], expected);
        let by_layer = Manifest::read(&dir.join(out)).unwrap().unwrap().about["keep"].clone();
        assert_eq!(planned["keep"], by_layer, "what was planned is what was built");
        std::fs::remove_dir_all(dir.join(out)).unwrap();
        let said = succeeds(dir, &format!("build {choice}"));
        assert_says(said, &[&line.replace("would be", "are").replace("would ", "")]);
        assert_says(succeeds(dir, &format!("verify MODEL {out}")), &["mismatch_count 0"]);
        let about = Manifest::read(&dir.join(out)).unwrap().unwrap().about;
        assert_eq!(about["keep"]["1"].as_array().unwrap().contains(&worst.into()), stays, "{about:?}");
        assert_eq!(about["by"]["super_experts_protected"], stays);
    }
}

#[test]
fn what_cannot_be_scored_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::create_dir(dir.join("there")).unwrap();
    std::fs::write(dir.join("there/mine"), "mine").unwrap();
    std::fs::write(dir.join("text.txt"), "no tokenizer reads this").unwrap();
    let dense = concat!(env!("CARGO_MANIFEST_DIR"), "/data/tiny-llama");
    let no_mixture = format!("score {dense} --calib TOKENS --windows 4 --seqlen 64 --out out");
    let cases: &[(&str, &[&str])] = &[
        // Before the model is even looked for.
        ("score nobody/nothing --calib TOKENS --out there", &["there", "already exists"]),
        (&format!("{SCORE} --out nowhere/out"), &["nowhere", "no such directory"]),
        (&no_mixture, &["config.json", "`llama`", "no mixture of experts"]),
        ("score MODEL --calib TOKENS --windows 5 --seqlen 64 --out out", &["tokens.json", "lower --windows"]),
        ("score MODEL --calib TOKENS --windows 4 --seqlen 65 --out out", &["tokens.json", "lower --seqlen"]),
        ("score MODEL --calib none.txt --out out", &["none.txt"]),
        ("score MODEL --calib text.txt --out out", &["tokenizer.json"]),
        ("score MODEL --calib none.json --out out", &["none.json"]),
        ("score MODEL --out out", &["--calib"]),
        ("build MODEL --count 4 --by reap --scores there --out out", &["scores.json", "missing"]),
    ];
    let before = names(dir);
    for (line, says) in cases {
        let output = command(dir, line).output().unwrap();
        assert!(matches!(output.status.code(), Some(1 | 2)), "{line}: {}", said(&output));
        assert_says(said(&output), says);
        assert_eq!(names(dir), before, "{line}");
    }
    assert_eq!(names(&dir.join("there")), ["mine"]);
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let rows: Vec<Vec<u32>> = (0..2000).map(|row| (0..256).map(|at| (row * 7 + at * at) % 512).collect()).collect();
    std::fs::write(dir.join("long.json"), json!(rows).to_string()).unwrap();
    let mut child = command(dir, "score MODEL --calib long.json --windows 2000 --out out")
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let started = Instant::now();
    while names(dir).len() == 1 {
        assert!(started.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none(), "it has not begun");
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(Duration::from_millis(100));
    assert!(child.try_wait().unwrap().is_none(), "it was over before the signal");
    // SAFETY: a plain system call; the child has not been waited for, so its id is its own.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    assert_says(said(&output), &["interrupted; nothing half-written was left"]);
    assert_eq!(names(dir), ["long.json"]);
}
