//! Headers without weights: saved, opened, checked, inspected.

mod common;

use common::{assert_says, file_of, fingerprint, names, two_shards};
use lacuna::checkpoint::{Checkpoint, HeadersOnly, Source, open_source};
use lacuna::progress::Progress;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn tiny_moe() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny-moe")
}

fn inspect(model: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lacuna")).arg("inspect").arg(model).args(more).output().unwrap()
}

fn json_of(model: &Path) -> Value {
    let output = inspect(model, &["--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn saved_headers_say_what_the_checkpoint_says() {
    let dir = tempfile::tempdir().unwrap();
    let (out, source) = (dir.path().join("headers"), Checkpoint::open(tiny_moe()).unwrap());
    HeadersOnly::save(&source, &out).unwrap();
    assert_eq!(names(dir.path()), ["headers"], "no temporary directory stays");
    assert_eq!(names(&out), ["config.json", "headers.json"]);
    let headers = open_source(out.to_str().unwrap(), Progress::Hidden).unwrap();
    assert_eq!(headers.index(), source.index());
    assert_eq!(headers.files(), source.files());
    assert_eq!(headers.config_json().unwrap(), source.config().unwrap());
    // Saved from what was saved: the same bytes.
    let again = dir.path().join("again");
    HeadersOnly::save(headers.as_ref(), &again).unwrap();
    for name in names(&out) {
        assert_eq!(std::fs::read(out.join(&name)).unwrap(), std::fs::read(again.join(&name)).unwrap(), "{name}");
    }
    let range = headers.index()[0].range.clone();
    let error = headers.stream(0, range, &mut |_| panic!("there is nothing to hand over")).unwrap_err();
    assert_says(error, &["model-00001-of-00003.safetensors", "only headers are here", "give the checkpoint itself"]);
    assert_says(Checkpoint::open(&out).unwrap_err(), &["only headers are here"]);
}

#[test]
fn nothing_is_overwritten_and_weights_come_first() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    two_shards(&model);
    let before = fingerprint(&model);
    let source = Checkpoint::open(&model).unwrap();
    assert_says(HeadersOnly::save(&source, &model).unwrap_err(), &["model", "already exists"]);
    assert_says(HeadersOnly::save(&source, &dir.path().join("no/where")).unwrap_err(), &["no"]);
    assert_eq!(fingerprint(&model), before);
    // A stray file of that name does not hide weights.
    std::fs::write(model.join("headers.json"), "{}").unwrap();
    assert!(!HeadersOnly::is_at(&model));
    assert!(open_source(model.to_str().unwrap(), Progress::Hidden).is_ok());
}

#[test]
fn headers_that_lie_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("headers");
    HeadersOnly::save(&Checkpoint::open(tiny_moe()).unwrap(), &out).unwrap();
    let good: Value = serde_json::from_slice(&std::fs::read(out.join("headers.json")).unwrap()).unwrap();
    let message = |change: &dyn Fn(&mut Value)| {
        let mut lie = good.clone();
        change(&mut lie);
        std::fs::write(out.join("headers.json"), lie.to_string()).unwrap();
        HeadersOnly::open(&out).unwrap_err().to_string()
    };
    let tensor = "model.norm.weight";
    let file = good["files"].as_array().unwrap().iter().position(|file| file["header"].get(tensor).is_some()).unwrap();
    let bytes = good["files"][file]["bytes"].as_u64().unwrap();
    assert_says(message(&|lie| lie["files"][file]["bytes"] = json!(bytes + 8)), &["last 8 bytes belong to no tensor"]);
    assert_says(message(&|lie| lie["files"][file]["bytes"] = json!(bytes - 8)), &["8 bytes are missing"]);
    assert_says(message(&|lie| lie["files"][file]["header_bytes"] = json!(64)), &["do not fit into 64"]);
    assert_says(message(&|lie| lie["files"][file]["header_bytes"] = json!(u64::MAX)), &["the format allows"]);
    for short in 0..8 {
        let error = message(&|lie| lie["files"][file]["bytes"] = json!(short));
        assert_says(error, &["safetensors", &format!("{short} bytes are too few")]);
    }
    let error = message(&|lie| {
        lie["files"][file] = json!({"name": "x.safetensors", "bytes": 3, "header_bytes": 64, "header": {}});
    });
    assert_says(error, &["x.safetensors", "3 bytes are too few"]);
    let error = message(&|lie| lie["files"][file]["bytes"] = json!(1u64 << 63));
    assert_says(error, &["9223372036854775808 bytes are more than a file can have"]);
    let error = message(&|lie| {
        let shard = |number: u64| {
            let header =
                json!({format!("t{number}"): {"dtype": "U8", "shape": [1u64 << 60], "data_offsets": [0, 1u64 << 60]}});
            json!({"name": format!("{number}.safetensors"), "bytes": (1u64 << 60) + 1032, "header_bytes": 1024, "header": header})
        };
        lie["files"] = (0..16).map(shard).collect();
    });
    assert_says(error, &["7.safetensors", "`t7`", "the tensors have more than 9223372036854775807 bytes"]);
    assert_says(message(&|lie| lie["files"][file]["header"][tensor]["shape"] = json!([129])), &[tensor, "258 bytes"]);
    assert_says(message(&|lie| lie["files"][file]["header"][tensor]["dtype"] = json!("X9")), &[tensor, "invalid"]);
    assert_says(message(&|lie| lie["files"][0]["name"] = json!("../model.safetensors")), &["is no file name"]);
    assert_says(message(&|lie| lie["files"][0]["name"] = lie["files"][1]["name"].clone()), &["stands there twice"]);
    assert_says(message(&|lie| lie["schema"] = json!(2)), &["headers.json", "schema 2", "reads schema 1"]);
    assert_says(message(&|lie| *lie = json!([])), &["headers.json", "holds no headers"]);
    std::fs::write(out.join("headers.json"), good.to_string()).unwrap();
    assert!(HeadersOnly::open(&out).is_ok(), "the JSON may be laid out otherwise");
}

#[test]
fn inspect_saves_headers_and_reads_them() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("headers");
    let output = inspect(&tiny_moe(), &["--save-headers", out.to_str().unwrap()]);
    assert!(output.status.success());
    assert_eq!(json_of(&out), json_of(&tiny_moe()));
    assert_eq!(inspect(&out, &[]).stdout, output.stdout);
    let text = String::from_utf8(output.stdout).unwrap();
    for part in
        ["experts          8 a layer, 2 for each token", "mixtures         in 4 layers", "2 (1.0 MiB), 3 (282.0 KiB)"]
    {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    let again = inspect(&tiny_moe(), &["--save-headers", out.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(1));
    assert_says(String::from_utf8(again.stderr).unwrap(), &["already exists"]);
}

#[test]
fn a_plan_needs_headers_only_and_a_build_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let run = |command: &str, more: &[&str]| {
        let mut lacuna = Command::new(env!("CARGO_BIN_EXE_lacuna"));
        let headers = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/gpt-oss-120b-headers");
        lacuna.current_dir(&dir).args(["experts", command]).arg(headers);
        lacuna.args(["--keep", "0.5", "--by", "first"]).args(more).output().unwrap()
    };
    let output = run("plan", &["--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&plan["expert_bytes"], &plan["estimate"]), (&json!(13_236_480), &Value::Null));
    assert_eq!(plan["read_bytes"], 34_738_690_176u64);
    for command in ["build", "slice"] {
        let output = run(command, &["--out", "pruned"]);
        assert_eq!(output.status.code(), Some(1));
        assert_says(String::from_utf8_lossy(&output.stderr), &["only headers are here", "give the checkpoint itself"]);
    }
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0, "nothing is left");
}

/// A checkpoint in one file with `model_type` and these tensors, four bytes each.
fn model(dir: &Path, config: &Value, tensors: &[&str]) {
    std::fs::create_dir_all(dir).unwrap();
    let tensors: Vec<(&str, &[usize], &[f32])> = tensors.iter().map(|name| (*name, &[1][..], &[0.0][..])).collect();
    std::fs::write(dir.join("model.safetensors"), file_of(&tensors)).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn families_without_a_forward_pass_are_inspected() {
    let dir = tempfile::tempdir().unwrap();
    let parts = |name: &str, config: Value, tensors: &[&str]| {
        let path = dir.path().join(name);
        model(&path, &config, tensors);
        let json = json_of(&path);
        let parts: Vec<(String, u64)> = json["parts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|part| (part["part"].as_str().unwrap().to_owned(), part["bytes"].as_u64().unwrap()))
            .collect();
        let layers = json["locality"]["layers"].as_array().map_or(0, Vec::len);
        (parts, json["experts"].as_u64(), json["experts_per_token"].as_u64(), layers)
    };
    let deepseek = json!({
        "model_type": "deepseek_v3", "num_hidden_layers": 3, "n_routed_experts": 256, "num_experts_per_tok": 8,
    });
    let expected = [("experts", 8), ("shared_experts", 4), ("router", 8), ("attention", 4), ("feed_forward", 4)];
    let expected = expected.map(|(part, bytes)| (part.to_owned(), bytes)).to_vec();
    let tensors = [
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.self_attn.kv_a_layernorm.weight",
        "model.layers.1.mlp.gate.weight",
        "model.layers.1.mlp.gate.e_score_correction_bias",
        "model.layers.1.mlp.experts.0.up_proj.weight",
        "model.layers.2.mlp.experts.0.up_proj.weight",
        "model.layers.1.mlp.shared_experts.up_proj.weight",
    ];
    assert_eq!(parts("deepseek", deepseek, &tensors), (expected.clone(), Some(256), Some(8), 2));
    let glm = json!({
        "model_type": "glm4_moe", "num_hidden_layers": 3, "n_routed_experts": 128, "num_experts_per_tok": 8,
    });
    assert_eq!(parts("glm", glm, &tensors), (expected, Some(128), Some(8), 2));
    let next = json!({
        "model_type": "qwen3_next", "num_hidden_layers": 1, "num_experts": 512, "num_experts_per_tok": 10,
    });
    let tensors = ["model.layers.0.linear_attn.A_log", "mtp.layers.0.mlp.experts.0.up_proj.weight"];
    let expected = vec![("experts".to_owned(), 4), ("attention".to_owned(), 4)];
    assert_eq!(parts("next", next, &tensors), (expected, Some(512), Some(10), 1));
    // The key that transformers 5 writes for Qwen3-MoE. Without the number of layers there is no table of them.
    let other_key = json!({"model_type": "qwen3_moe", "num_local_experts": 128, "num_experts_per_tok": 8});
    let tensors = ["model.layers.0.mlp.experts.0.up_proj.weight"];
    assert_eq!(parts("qwen3", other_key, &tensors), (vec![("experts".to_owned(), 4)], Some(128), Some(8), 0));
    // Of a family that nobody knows, what the config says.
    let strange = json!({"model_type": "strange", "num_experts": 7});
    let other = vec![("attention".to_owned(), 4), ("other".to_owned(), 4)];
    let tensors = ["model.layers.0.attention.q.weight", "something.weight"];
    assert_eq!(parts("strange", strange, &tensors), (other, Some(7), None, 0));
}

#[test]
fn many_kinds_of_tensors_are_told_apart_quickly() {
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..160_000).map(|i| format!("model.layers.{}.kind{}.weight", i % 2, i / 2)).collect();
    model(dir.path(), &json!({}), &names.iter().map(String::as_str).collect::<Vec<_>>());
    let start = std::time::Instant::now();
    let json = json_of(dir.path());
    let time = start.elapsed();
    let kinds = json["tensors"].as_array().unwrap();
    assert_eq!((kinds.len(), &kinds[0]["count"], &kinds[0]["bytes"]), (80_000, &json!(2), &json!(8)));
    assert!(kinds.iter().enumerate().all(|(i, kind)| kind["name"] == format!("model.layers.*.kind{i}.weight")));
    assert!(time < std::time::Duration::from_secs(6), "{time:?}");
}

/// Inspects a model whose only file has this header and 8 bytes of data, with 128 MiB of memory to write to: of that, and not of
/// address space, which libraries and each thread's arena take as well.
#[cfg(target_os = "linux")]
fn inspect_in_little_memory(dir: &Path, header: &str) -> Output {
    std::fs::write(dir.join("model.safetensors"), common::safetensors(header, &[0; 8])).unwrap();
    std::fs::write(dir.join("config.json"), "{}").unwrap();
    let script = "ulimit -d 131072; exec \"$0\" inspect \"$1\"";
    let mut shell = Command::new("sh");
    shell.args(["-c", script, env!("CARGO_BIN_EXE_lacuna")]).arg(dir);
    shell.output().unwrap()
}

/// A tree of JSON values takes 16 times the memory of `0,`.
#[cfg(target_os = "linux")]
#[test]
fn a_header_takes_memory_of_the_order_of_its_text() {
    let dir = tempfile::tempdir().unwrap();
    let zeros = "0,".repeat(10 << 20) + "0";
    let entry = |more: &str| format!(r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]{more}}}}}"#);
    let output = inspect_in_little_memory(dir.path(), &entry(&format!(r#","note":[{zeros}]"#)));
    assert!(output.status.success(), "{:?} {}", output.status, String::from_utf8_lossy(&output.stderr));
    for (header, parts) in [
        (format!(r#"{{"a":{{"dtype":[{zeros}]}}}}"#), ["`a`", "header entry is invalid"]),
        (format!(r#"{{"a":[{zeros}]}}"#), ["`a`", "header entry is invalid"]),
        (format!(r#"{{"__metadata__":[{zeros}]}}"#), ["`__metadata__`", "strings to strings"]),
        (format!(r#"{{"__metadata__":{{"format":[{zeros}]}}}}"#), ["`__metadata__`", "strings to strings"]),
    ] {
        let output = inspect_in_little_memory(dir.path(), &header);
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        assert_says(String::from_utf8(output.stderr).unwrap(), &[&["model.safetensors"], &parts[..]].concat());
    }
    // As with weights, so without.
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let file =
        format!(r#"{{"name": "model.safetensors", "bytes": 9, "header_bytes": 1, "header": {{"a": [{zeros}]}}}}"#);
    std::fs::write(dir.path().join("headers.json"), format!(r#"{{"schema": 1, "files": [{file}]}}"#)).unwrap();
    assert_says(HeadersOnly::open(dir.path()).unwrap_err(), &["headers.json", "entry `a` is invalid"]);
}
