//! `Lab`: what is computed once, what is looked up, and that neither shows in the results; and the cache below it, when it is
//! damaged, full, shared, or left by a process that was killed.

use candle_core::{DType, Device, Tensor};
use lacuna::cache::{Cache, CachedResult, Collect, Uses};
use lacuna::display::Rich;
use lacuna::dsnot::Dsnot;
use lacuna::evaluate::GenerationConfig;
use lacuna::gradients::{Accumulate, gradients};
use lacuna::lab::Lab;
use lacuna::lab::Stage;
use lacuna::prelude::*;
use lacuna::prune::apply;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn tiny() -> String {
    format!("{ROOT}/data/tiny-llama")
}

fn train() -> String {
    format!("{ROOT}/data/corpus/train.txt")
}

fn lab_of(model: &str, cache: Cache) -> Lab {
    let lab = Lab::open_on(model, DType::F32, &Device::Cpu, cache).unwrap().with_progress(Progress::Hidden);
    lab.calibrate_on(train(), Sampling::new(4, 64)).unwrap()
}

fn lab_within(bytes: u64, cache: Cache) -> Lab {
    Lab::open_within(&tiny(), DType::F32, &Device::Cpu, bytes, cache).unwrap().with_progress(Progress::Hidden)
}

/// A lab as a new session would open it.
fn lab(cache: &Path) -> Lab {
    lab_of(&tiny(), Cache::at(cache, 1 << 30))
}

fn test_windows(lab: &Lab) -> Windows {
    lab.windows(format!("{ROOT}/data/corpus/test.txt"), Consecutive::of(64).first(3)).unwrap()
}

fn uses(lab: &Lab, stage: &str) -> [u64; 3] {
    let Uses { computed, disk_hits, memory_hits } = lab.cache().of_stage(stage.parse().unwrap()).uses;
    [computed, disk_hits, memory_hits]
}

/// Every tensor's bits.
fn bits(model: &Model) -> BTreeMap<String, Vec<u32>> {
    let of = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    (0..model.layers())
        .flat_map(|i| model.layer(i).unwrap().linears().into_iter().cloned().collect::<Vec<_>>())
        .map(|linear| (linear.name.clone(), of(&linear.weight).into_iter().map(f32::to_bits).collect()))
        .collect()
}

fn loss_bits(evaluation: &Evaluation) -> Vec<u64> {
    evaluation.losses.iter().flatten().map(|loss| loss.to_bits()).collect()
}

/// The record as JSON, without times and hosts.
fn told(record: &Record) -> String {
    serde_json::to_string(&Record { environment: BTreeMap::new(), ..record.clone() }).unwrap()
}

/// Entries of a stage.
fn entries(cache: &Path, stage: &str) -> Vec<PathBuf> {
    let prefix = format!("{stage}-");
    let list = fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path());
    list.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&prefix)).collect()
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let list = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    list.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    let at = at.min(bytes.len() - 1);
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

fn configs() -> Vec<PruneConfig> {
    vec![
        PruneConfig::one_shot(Method::Wanda, 0.5),
        PruneConfig::new(Method::Wanda, 0.5),
        PruneConfig { propagate: Propagate::Dense, ..PruneConfig::n_of_m(Method::Wanda, 2, 4) },
        PruneConfig::one_shot(Method::Taylor, 0.4).with_allocation(Allocation::Global),
        PruneConfig::one_shot(Method::Ria, 0.6).with_allocation(Allocation::Owl(Owl::default())),
        PruneConfig { refine: Some(Dsnot::default()), ..PruneConfig::one_shot(Method::Wanda, 0.5) },
        PruneConfig {
            rules: vec!["*.down_proj=skip".parse().unwrap()],
            ..PruneConfig::one_shot(Method::Magnitude, 0.5)
        },
        PruneConfig::one_shot(Method::SparseGpt, 0.5),
        PruneConfig::new(Method::SparseGpt, 0.5),
    ]
}

#[test]
fn computed_kept_and_plain_results_are_the_same_bytes() {
    let cache = tempfile::tempdir().unwrap();
    let first = lab(cache.path());
    let test = test_windows(&first);
    let model = Model::load(tiny()).unwrap();
    for config in configs() {
        let plain = prune(&model, first.calibration(), &config, Progress::Hidden).unwrap();
        let plain_evaluation = evaluate(&plain.model, &test, Progress::Hidden).unwrap();
        let computed = first.prune(&config).unwrap();
        let again = lab(cache.path());
        let kept = again.prune(&config).unwrap();
        assert_eq!(uses(&again, "pruned"), [0, 1, 0], "{config:?}");
        for pruned in [&computed, &kept] {
            assert!(bits(&pruned.model) == bits(&plain.model), "{config:?}");
            assert_eq!(pruned.masks, plain.masks, "{config:?}");
            assert_eq!(told(&pruned.record), told(&plain.record), "{config:?}");
        }
        let evaluated = first.evaluate(&computed, &test).unwrap();
        let looked_up = again.evaluate(&config, &test).unwrap();
        assert_eq!(uses(&again, "evaluation"), [0, 1, 0], "{config:?}");
        for evaluation in [&evaluated, &looked_up] {
            assert_eq!(loss_bits(evaluation), loss_bits(&plain_evaluation), "{config:?}");
            assert_eq!(*evaluation, plain_evaluation, "{config:?}");
        }
        let record = again.record(&config, &test).unwrap();
        assert_eq!(told(&record), told(&plain.record.with_evaluation(plain_evaluation.record())), "{config:?}");
    }
    // The dense model's statistics, grams and gradients served all of them.
    assert_eq!(["statistics", "grams", "gradients"].map(|stage| uses(&first, stage)[0]), [1, 1, 1]);
    assert_eq!(uses(&first, "pruned")[0], configs().len() as u64);
}

#[test]
fn another_sparsity_selects_and_evaluates_only_and_an_unchanged_cell_does_nothing() {
    let cache = tempfile::tempdir().unwrap();
    let session = lab(cache.path());
    let test = test_windows(&session);
    let sweep = |lab: &Lab| -> Vec<String> {
        let records =
            [0.3, 0.5, 0.7].map(|sparsity| lab.record(&PruneConfig::one_shot(Method::Wanda, sparsity), &test).unwrap());
        records.iter().map(told).collect()
    };
    let first = sweep(&session);
    assert_eq!(uses(&session, "statistics"), [1, 0, 2]);
    assert_eq!((uses(&session, "pruned"), uses(&session, "evaluation")), ([3, 0, 0], [3, 0, 0]));
    assert_eq!(sweep(&session), first);
    assert_eq!(uses(&session, "statistics"), [1, 0, 2]);
    assert_eq!((uses(&session, "pruned"), uses(&session, "evaluation")), ([3, 0, 0], [3, 0, 3]));

    // After a restart: nothing but the look-ups; then one more sparsity, and still no calibration.
    let restarted = lab(cache.path());
    assert_eq!(sweep(&restarted), first);
    assert_eq!((uses(&restarted, "pruned"), uses(&restarted, "evaluation")), ([0, 0, 0], [0, 3, 0]));
    assert_eq!(uses(&restarted, "statistics"), [0, 0, 0]);
    restarted.evaluate(&PruneConfig::one_shot(Method::Wanda, 0.6), &test).unwrap();
    assert_eq!(uses(&restarted, "statistics"), [0, 1, 0]);
    // Gradients come back from the disk as well.
    session.prune(&PruneConfig::one_shot(Method::Taylor, 0.5)).unwrap();
    restarted.prune(&PruneConfig::one_shot(Method::Gradient, 0.5)).unwrap();
    assert_eq!((uses(&session, "gradients"), uses(&restarted, "gradients")), ([1, 0, 0], [0, 1, 0]));
    let shown = |value: &dyn Rich| value.bundle().unwrap().into_iter().map(|(_, text)| text).collect::<Vec<_>>();
    let cells = shown(&restarted.cache());
    assert!(cells[0].starts_with("Cache: ") && cells[0].contains("from disk"), "{}", cells[0]);
    // What a lab shows is the same whatever is kept, so that reports are.
    assert_eq!(shown(&restarted), shown(&session));
    assert!(shown(&session)[0].contains("4 windows of 64 tokens of train.txt"));
    let summary = restarted.cache().to_string();
    assert!(
        summary.contains("statistics") && summary.contains("from disk") && summary.contains("1.0 GiB"),
        "{summary}"
    );
}

#[test]
fn units_tasks_text_and_experts_are_computed_once() {
    let cache = tempfile::tempdir().unwrap();
    let (session, bootstrap) = (lab(cache.path()), Bootstrap::default());
    let task = Task::choices(format!("{ROOT}/data/tasks/cloze.jsonl"), Some(6)).unwrap();
    let prompts = Task::prompts(format!("{ROOT}/data/tasks/cloze.jsonl"), Some(2)).unwrap();
    let answers = GenerationConfig { max_new_tokens: 4, ..GenerationConfig::default() };
    let wanda = PruneConfig::one_shot(Method::Wanda, 0.5);
    let neurons = StructuredConfig::new(Unit::Neurons, Method::Wanda, 0.25);
    let all = |lab: &Lab| {
        let structured = lab.prune_structured(&neurons).unwrap();
        let choices = lab.score_choices(&wanda, &task, Bos::Auto, &bootstrap).unwrap();
        let generated = lab.score_generation(&wanda, &prompts, &answers, &bootstrap).unwrap();
        let text = lab.generate(&structured, "Once upon", &GenerateConfig::greedy(8)).unwrap();
        (structured.record.structure, choices.predictions, choices.acc, generated.predictions, text)
    };
    let first = all(&session);
    // Statistics serve pruning and units alike.
    assert_eq!(uses(&session, "statistics"), [1, 0, 1]);
    let stages = ["choices", "answers", "text"];
    assert_eq!(stages.map(|stage| uses(&session, stage)), [[1, 0, 0]; 3]);
    assert_eq!(all(&session), first);
    let restarted = lab(cache.path());
    assert_eq!(all(&restarted), first);
    assert_eq!(stages.map(|stage| uses(&restarted, stage)), [[0, 1, 0]; 3]);
    assert_eq!((uses(&restarted, "pruned"), uses(&restarted, "statistics")), ([0, 0, 0], [0, 1, 0]));

    // The same without a lab.
    let pruned = prune(session.model(), session.calibration(), &wanda, Progress::Hidden).unwrap();
    let plain = score_choices(&pruned.model, &task, Bos::Auto, &bootstrap, Progress::Hidden).unwrap();
    assert_eq!(plain.predictions, first.1);
    let plain = prune_structured(session.model(), session.calibration(), &neurons, Progress::Hidden).unwrap();
    assert_eq!(plain.record.structure, first.0);

    let moe = || lab_of(&format!("{ROOT}/data/tiny-moe"), Cache::at(cache.path(), 1 << 30));
    let (one, two) = (moe(), moe());
    let scores = one.expert_scores().unwrap();
    assert_eq!(two.expert_scores().unwrap().metrics, scores.metrics);
    assert_eq!((uses(&one, "experts"), uses(&two, "experts")), ([1, 0, 0], [0, 1, 0]));
    let plain = ExpertScores::calibrated(one.model(), one.calibration().unwrap(), Progress::Hidden).unwrap();
    assert_eq!(plain.metrics, scores.metrics);
    assert!(session.expert_scores().is_err(), "a dense model has no experts");
}

#[test]
fn models_and_masks_are_known_by_their_content() {
    let cache = tempfile::tempdir().unwrap();
    let lab = lab(cache.path());
    let test = test_windows(&lab);
    let config = PruneConfig::one_shot(Method::Wanda, 0.5);
    let evaluation = lab.evaluate(&config, &test).unwrap();
    let pruned = lab.prune(&config).unwrap();
    assert_eq!(lab.evaluate(&pruned, &test).unwrap(), evaluation);
    let masks = lab.masks(&MasksConfig::new(&[Method::Wanda, Method::Magnitude], &[0.5, 0.7])).unwrap();
    assert_eq!(lab.evaluate(&masks[0], &test).unwrap(), evaluation);
    assert_eq!(uses(&lab, "evaluation")[0], 1, "the three are the same weights");
    // What was changed behind its back is another model.
    let mut changed = pruned.clone();
    let name = &changed.masks[0].0;
    let weight = changed.model.layer(0).unwrap().linears()[0].weight.clone();
    changed.model = changed.model.with_tensors([(name.clone(), (weight * 1.01).unwrap())]).unwrap();
    assert_ne!(lab.evaluate(&changed, &test).unwrap().nll_nats, evaluation.nll_nats);
    // The dense model, and the same one opened again.
    let dense_nll = lab.evaluate(lab.model(), &test).unwrap().nll_nats;
    assert_eq!(lab.evaluate(&Model::load(tiny()).unwrap(), &test).unwrap().nll_nats, dense_nll);
    assert_eq!(uses(&lab, "evaluation")[0], 3);

    let plain = MasksConfig::new(&[Method::Wanda, Method::Magnitude], &[0.5, 0.7]);
    let again = self::lab(cache.path());
    let kept = again.masks(&plain).unwrap();
    assert_eq!(uses(&again, "masks"), [0, 1, 0]);
    assert_eq!(kept, lacuna::prune::masks(lab.model(), lab.calibration(), &plain, Progress::Hidden).unwrap());
}

#[test]
fn what_is_wrong_is_refused_as_without_a_lab() {
    let cache = tempfile::tempdir().unwrap();
    let lab = Lab::open_on(&tiny(), DType::F32, &Device::Cpu, Cache::at(cache.path(), 1 << 30)).unwrap();
    let lab = lab.with_progress(Progress::Hidden);
    let error = lab.prune(&PruneConfig::one_shot(Method::Wanda, 0.5)).unwrap_err().to_string();
    assert!(error.contains("needs calibration text"), "{error}");
    let error = lab.statistics().unwrap_err().to_string();
    assert!(error.contains("calibrate_on"), "{error}");
    let error = lab.prune(&PruneConfig::new(Method::Magnitude, 1.5)).unwrap_err().to_string();
    assert!(error.contains("below 1"), "{error}");
    let error = lab.calibrate_on("no/such/text.txt", Sampling::new(4, 64)).unwrap_err().to_string();
    assert!(error.contains("no/such/text.txt"), "{error}");
    assert!(entries(cache.path(), "pruned").is_empty());
}

#[test]
fn damaged_entries_are_made_again() {
    let cache = tempfile::tempdir().unwrap();
    let config = PruneConfig::one_shot(Method::Taylor, 0.5).with_allocation(Allocation::Owl(Owl::default()));
    let first = lab(cache.path());
    let test = test_windows(&first);
    let expected = (bits(&first.prune(&config).unwrap().model), loss_bits(&first.evaluate(&config, &test).unwrap()));
    for stage in ["tokens", "statistics", "gradients", "pruned", "evaluation"] {
        let [entry] = &entries(cache.path(), stage)[..1] else { panic!("{stage}") };
        let files = files_below(entry);
        assert!(files.len() >= 2, "{files:?}");
        for (i, file) in files.iter().enumerate() {
            let size = file.metadata().unwrap().len();
            match i % 3 {
                0 => flip(file, size as usize / 2),
                1 => File::options().write(true).open(file).unwrap().set_len(size / 2).unwrap(),
                _ => fs::remove_file(file).unwrap(),
            }
            // What comes after it must ask for it.
            for later in ["pruned", "evaluation"].iter().filter(|later| **later != stage) {
                entries(cache.path(), later).iter().for_each(|entry| fs::remove_dir_all(entry).unwrap());
            }
            let again = lab(cache.path());
            let test = test_windows(&again);
            let result =
                (bits(&again.prune(&config).unwrap().model), loss_bits(&again.evaluate(&config, &test).unwrap()));
            assert!(result == expected, "{stage} {file:?}");
            assert_eq!(uses(&again, stage)[0], 1, "{stage} {file:?}");
            // It was replaced by a good one.
            let after = lab(cache.path());
            after.evaluate(&config, &test_windows(&after)).unwrap();
            assert_eq!(
                after.cache().stages.values().map(|stage| stage.uses.computed).sum::<u64>(),
                0,
                "{stage} {file:?}"
            );
        }
    }
}

#[test]
fn other_weights_another_config_and_another_text_are_not_found() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, model) = (dir.path().join("cache"), dir.path().join("model"));
    let copy = |to: &Path| {
        fs::create_dir(to).unwrap();
        for file in fs::read_dir(tiny()).unwrap().map(|file| file.unwrap()) {
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    };
    copy(&model);
    let open = |model: &Path| lab_of(model.to_str().unwrap(), Cache::at(&cache, 1 << 30));
    let computed = |lab: &Lab| {
        let config = PruneConfig::one_shot(Method::Wanda, 0.5);
        let nll = lab.evaluate(&config, &test_windows(lab)).unwrap().nll_nats;
        (nll, ["statistics", "pruned", "evaluation"].map(|stage| uses(lab, stage)[0]))
    };
    let (nll, counts) = computed(&open(&model));
    assert_eq!(counts, [1, 1, 1]);
    // The same bytes under another name are the same model.
    let moved = dir.path().join("moved");
    copy(&moved);
    let other = open(&moved);
    assert_eq!(computed(&other), (nll, [0, 0, 0]));
    assert_eq!(
        other.record(&PruneConfig::one_shot(Method::Wanda, 0.5), &test_windows(&other)).unwrap().model.name,
        "moved"
    );

    // One byte of one weight, with the file's time put back.
    let weights = model.join("model.safetensors");
    let modified = weights.metadata().unwrap().modified().unwrap();
    flip(&weights, 3_000_001);
    File::options().write(true).open(&weights).unwrap().set_modified(modified).unwrap();
    let (changed, counts) = computed(&open(&model));
    assert!(changed != nll && counts == [1, 1, 1], "{counts:?}");

    let config = fs::read_to_string(moved.join("config.json")).unwrap();
    fs::write(moved.join("config.json"), config.replace("\"rope_theta\": 10000.0", "\"rope_theta\": 9000.0")).unwrap();
    let (changed, counts) = computed(&open(&moved));
    assert!(changed != nll && counts == [1, 1, 1], "{counts:?}");

    let lab = lab(&cache).calibrate_on(train(), Sampling::new(4, 64).seed(1)).unwrap();
    assert_eq!(computed(&lab).1, [1, 1, 1]);
}

#[test]
fn saved_statistics_and_gradients_are_equal() {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::load(tiny()).unwrap();
    let windows = Windows::calibration(train(), Some(&model.tokenizer().unwrap()), Sampling::new(2, 64)).unwrap();
    let statistics = calibrate(&model, &windows, Progress::Hidden).unwrap();
    statistics.save(dir.path().join("statistics")).unwrap();
    let loaded = Statistics::load(dir.path().join("statistics")).unwrap();
    assert_eq!(loaded, statistics);
    let [q, k, o] = ["q", "k", "o"].map(|name| format!("model.layers.0.self_attn.{name}_proj.weight"));
    assert!(loaded.same_input(&q, &k) && !loaded.same_input(&q, &o));
    assert!(statistics.save(dir.path().join("statistics")).unwrap_err().to_string().contains("already exists"));

    let all = gradients(&model, &windows, Accumulate::Sum, Progress::Hidden).unwrap();
    all.save(dir.path().join("gradients")).unwrap();
    let loaded = Gradients::load(dir.path().join("gradients")).unwrap();
    assert_eq!((&loaded.losses, loaded.loss_nats), (&all.losses, all.loss_nats));
    assert!(loaded.names().eq(all.names()));
    for name in all.names() {
        assert_eq!(loaded.get(name).unwrap(), all.get(name).unwrap());
    }
    assert_eq!(loaded.get("no such linear").unwrap(), None);
    let error = Gradients::load(dir.path().join("statistics")).unwrap_err().to_string();
    assert!(error.contains("linears.json"), "{error}");
}

#[test]
fn results_are_right_where_nothing_can_be_kept() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let (sparsegpt, wanda) = (PruneConfig::one_shot(Method::SparseGpt, 0.5), PruneConfig::one_shot(Method::Wanda, 0.5));
    let model = Model::load(tiny()).unwrap();
    // No cache, one in the place of a file, one that is too small for anything.
    for cache in [Cache::none(), Cache::at(dir.path().join("file/cache"), 1 << 30), Cache::at(dir.path().join("c"), 9)]
    {
        let lab = lab_of(&tiny(), cache);
        for config in [&wanda, &sparsegpt] {
            let plain = prune(&model, lab.calibration(), config, Progress::Hidden).unwrap();
            assert!(bits(&lab.prune(config).unwrap().model) == bits(&plain.model));
        }
        let test = test_windows(&lab);
        for _ in 0..2 {
            lab.evaluate(&wanda, &test).unwrap();
        }
        // In memory there is still what this session knows.
        assert_eq!((uses(&lab, "statistics")[0], uses(&lab, "evaluation")), (1, [1, 0, 1]));
        assert!(entries_of(&lab).is_empty());
    }
}

fn entries_of(lab: &Lab) -> Vec<CachedResult> {
    lab.cache().dir.map(|dir| Cache::at(dir, 0).entries().unwrap_or_default()).unwrap_or_default()
}

#[test]
fn what_was_used_least_recently_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path(), 1 << 30);
    let lab = lab_of(&tiny(), cache.clone());
    let test = test_windows(&lab);
    for sparsity in [0.1, 0.2, 0.3, 0.4] {
        lab.record(&PruneConfig::one_shot(Method::Wanda, sparsity), &test).unwrap();
    }
    let pruned = |cache: &Cache| cache.entries().unwrap().into_iter().filter(|kept| kept.stage == "pruned").count();
    let all = cache.entries().unwrap();
    assert_eq!(pruned(&cache), 4);
    assert!(all.iter().all(|kept| kept.bytes > 0 && kept.age() < Duration::from_secs(600)), "{all:?}");
    // All were used an hour ago, but for one that is looked up now.
    for kept in &all {
        let entry = File::open(dir.path().join(&kept.name).join("entry")).unwrap();
        entry.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
    }
    lab_of(&tiny(), cache.clone()).prune(&PruneConfig::one_shot(Method::Wanda, 0.2)).unwrap();
    let old = Collect { older_than: Some(Duration::from_secs(1800)), dry_run: true, ..Collect::default() };
    let would = cache.collect(&old).unwrap();
    assert_eq!(cache.entries().unwrap().len(), all.len(), "a dry run");
    let gone = cache.collect(&Collect { dry_run: false, ..old }).unwrap();
    assert_eq!(would, gone);
    assert!(gone.iter().filter(|kept| kept.stage == "pruned").count() == 3 && pruned(&cache) == 1, "{gone:?}");
    let fresh = self::lab(dir.path());
    fresh.prune(&PruneConfig::one_shot(Method::Wanda, 0.2)).unwrap();
    assert_eq!(uses(&fresh, "pruned"), [0, 1, 0]);

    // By size: a cache that holds little makes room by itself, and never for nothing.
    let bytes = cache.entries().unwrap().iter().map(|kept| kept.bytes).max().unwrap();
    let small = Cache::at(dir.path(), 3 * bytes);
    let lab = lab_of(&tiny(), small.clone());
    for sparsity in [0.5, 0.6, 0.7, 0.8, 0.9] {
        lab.record(&PruneConfig::one_shot(Method::Wanda, sparsity), &test).unwrap();
        let kept = small.entries().unwrap();
        assert!(kept.iter().map(|kept| kept.bytes).sum::<u64>() <= 3 * bytes, "{kept:?}");
        assert!(lab_of(&tiny(), small.clone()).cache().of_stage(Stage::Pruned).kept > 0);
    }
    let gone = small.collect(&Collect { max_bytes: Some(0), ..Collect::default() }).unwrap();
    assert!(!gone.is_empty() && small.entries().unwrap().is_empty());
    assert!(fs::read_dir(dir.path()).unwrap().next().is_none(), "nothing is left over");
}

#[test]
fn the_command_lists_and_collects() {
    let dir = tempfile::tempdir().unwrap();
    let lacuna = |args: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
        command.arg("cache").args(args.split(' ')).env("LACUNA_CACHE_DIR", dir.path());
        // Compiled cells are looked for there, and not in the user's cache.
        command.env("XDG_CACHE_HOME", dir.path());
        let output = command.env("LACUNA_CACHE_MAX_BYTES", "2M").output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout) + &text(output.stderr))
    };
    let (code, text) = lacuna("ls");
    assert!(code == 0 && text.starts_with("0 kept, 0 B of 2.0 MiB in "), "{text}");
    let lab = lab(&dir.path().join("stages"));
    lab.record(&PruneConfig::one_shot(Method::Wanda, 0.5), &test_windows(&lab)).unwrap();
    let count = entries_of(&lab).len();
    let (code, text) = lacuna("ls");
    assert!(code == 0 && text.contains("tiny-llama: wanda unstructured 0.5"), "{text}");
    assert!(text.contains("tiny-llama: 4 x 64 of train.txt") && text.contains(&format!("{count} kept, ")), "{text}");
    let (_, text) = lacuna("ls --json");
    let list: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(list.as_array().unwrap().len(), count);
    let (code, text) = lacuna("gc --max-bytes 0 --dry-run");
    assert!(code == 0 && text.contains(&format!("{count} would be removed, ")), "{text}");
    assert!(lacuna("gc --older-than 1h").1.contains("0 removed, 0 B"));
    assert!(lacuna("gc --max-bytes 0").1.contains(&format!("{count} removed, ")));
    assert!(entries_of(&lab).is_empty());
    for (args, problem) in [("gc --older-than soon", "no age"), ("gc --max-bytes much", "no size")] {
        let (code, text) = lacuna(args);
        assert!(code == 2 && text.contains(problem), "{text}");
    }
}

#[test]
fn a_lab_with_less_memory_than_its_model_gives_the_same() {
    let cache = tempfile::tempdir().unwrap();
    let all = lab(cache.path()).calibrate_on(train(), Sampling::new(2, 32)).unwrap();
    let held = all.device_memory();
    assert_eq!((held.device.as_str(), held.weights.budget_bytes, held.memory), ("cpu", None, None));
    assert!(held.weights.bytes > 0 && held.to_string().contains("all of the model"), "{held}");

    let budget = held.weights.bytes / 3;
    let other = tempfile::tempdir().unwrap();
    let part =
        lab_within(budget, Cache::at(other.path(), 1 << 30)).calibrate_on(train(), Sampling::new(2, 32)).unwrap();
    assert_eq!(part.device_memory().weights.bytes, 0);
    let config = MasksConfig::new(&[Method::Wanda], &[0.5]);
    assert_eq!(part.masks(&config).unwrap()[0].masks, all.masks(&config).unwrap()[0].masks);
    let test = all.windows(train(), Consecutive::of(32).first(2)).unwrap();
    let dense = |lab: &Lab| lab.evaluate(lab.model(), &test).unwrap().losses;
    assert_eq!(dense(&part), dense(&all));
    let weights = part.device_memory().weights;
    assert!(0 < weights.bytes && weights.bytes <= budget, "{weights:?}");
    assert!(weights.evictions > 0 && weights.reads > weights.tensors, "{weights:?}");
}

#[test]
fn what_is_pruned_in_parts_is_the_same_and_stays_in_parts() {
    let caches = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let all = lab(caches[0].path()).calibrate_on(train(), Sampling::new(2, 32)).unwrap();
    let test = all.windows(train(), Consecutive::of(32).first(2)).unwrap();
    let bytes = all.device_memory().weights.bytes;
    let losses = |lab: &Lab, model: &Model| lab.evaluate(model, &test).unwrap().losses;
    for (budget, room) in [(bytes / 3, "a third"), (2 * bytes, "more than all")] {
        let open = || {
            let cache = Cache::at(caches[1].path().join(room), 1 << 30);
            lab_within(budget, cache).calibrate_on(train(), Sampling::new(2, 32)).unwrap()
        };
        let part = open();
        for method in [Method::Wanda, Method::SparseGpt] {
            let config = PruneConfig::one_shot(method, 0.5);
            let (whole, pruned) = (all.prune(&config).unwrap(), part.prune(&config).unwrap());
            assert_eq!(
                (&pruned.masks, &pruned.record.tensors),
                (&whole.masks, &whole.record.tensors),
                "{method} {room}"
            );
            assert!(whole.model.is_resident() && !pruned.model.is_resident());
            let expected = losses(&all, &whole.model);
            assert_ne!(expected, losses(&all, all.model()));
            assert_eq!(losses(&part, &pruned.model), expected, "{method} {room}");
            assert_eq!(
                losses(&part, part.model()),
                losses(&all, all.model()),
                "the dense one changed: {method} {room}"
            );
            assert!(part.device_memory().weights.bytes <= budget);
            // A second mask on top, and all of it in memory.
            let more = all.masks(&MasksConfig::new(&[Method::Magnitude], &[0.3])).unwrap().remove(0);
            let twice = |model: &Model| apply(model, &MaskSet { metadata: None, ..more.clone() }).unwrap();
            assert_eq!(losses(&all, &twice(&whole.model)), losses(&part, &twice(&pruned.model)));
            assert_eq!(losses(&all, &pruned.model.resident().unwrap()), expected);
            // From the cache, by another lab.
            let again = open().prune(&config).unwrap();
            assert_eq!(losses(&part, &again.model), expected, "{method} {room}");
        }
        // What belonged to models that are gone has gone with them.
        assert!(part.device_memory().weights.bytes <= bytes, "{}", part.device_memory());
    }
}

#[test]
fn what_does_not_fit_cannot_stand_in_a_place() {
    let cache = tempfile::tempdir().unwrap();
    let lab = lab_within(1 << 20, Cache::at(cache.path(), 1 << 30));
    let name = "model.layers.0.mlp.up_proj.weight";
    for (name, shape) in [(name, (1, 2)), ("model.layers.0.mlp.sideways.weight", (1, 2))] {
        let tensor = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        for model in [lab.model().clone(), lab.model().resident().unwrap()] {
            let error = model.with_tensors([(name.to_owned(), tensor.clone())]).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("no such tensor of that shape"), "{error}");
        }
    }
}
