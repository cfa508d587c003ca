//! Packages that cargo need not compile and rust-analyzer can read.
//!
//! `lacuna`'s own stub points at its source. The crates whose types cells see (candle's and polars') get stubs too:
//! without them a `let` of a candle tensor would need its type spelled out. Their other dependencies are left out,
//! which saves rust-analyzer from loading six hundred packages.

use super::places::write_if_new;
use super::rust_source;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const LACUNA: &str = env!("CARGO_MANIFEST_DIR");

/// Crates that get a stub. polars' query engine is not among them: it triples what rust-analyzer reads, and a frame
/// that comes out of a query has a type of polars-core.
const VISIBLE: [&str; 12] = [
    "candle-core",
    "candle-nn",
    "half",
    "polars",
    "polars-arrow",
    "polars-buffer",
    "polars-core",
    "polars-dtype",
    "polars-error",
    "polars-io",
    "polars-schema",
    "polars-utils",
];

/// Writes the stubs of this build of lacuna and returns their directory. Later calls find them there.
pub(super) fn write(cache: &Path) -> Result<PathBuf> {
    let root = Path::new(LACUNA);
    let key = key(root)?;
    let stubs = cache.join(format!("stubs-{}", short(key.clone().chain_update(of_source(&root.join("src"))?))));
    let last = stubs.join("lacuna").join("Cargo.toml");
    if !last.is_file() {
        // Those of others are the same whatever lacuna's own source says.
        let shared = cache.join(format!("packages-{}", short(key)));
        let mut packages = packages(&metadata()?)?;
        for package in packages.values_mut() {
            let directory = package.directory();
            let copies = if package.name == "lacuna" { &stubs } else { &shared };
            package.source = lean_source(Path::new(&package.source), &copies.join(&directory))?;
            if package.name != "lacuna" {
                write_if_new(&stubs.join(directory).join("Cargo.toml"), &package.manifest())?;
            }
        }
        let lacuna =
            packages.values().find(|package| package.name == "lacuna").context("cargo metadata without lacuna")?;
        write_if_new(&last, &lacuna.manifest())?;
    }
    Ok(stubs)
}

/// Copies a package's source into `stub`, as far as types depend on it, and returns the copy of its first file `source`.
fn lean_source(source: &Path, stub: &Path) -> Result<String> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let (Some(folder), Some(file)) = (source.parent(), source.file_name()) else { return Ok(text(source)) };
    let lean = stub.join("src");
    let copy = || -> std::io::Result<()> {
        fs::create_dir_all(stub)?;
        let staged = tempfile::Builder::new().prefix(".src-").tempdir_in(stub)?;
        rust_source::copy_without_bodies(folder, staged.path())?;
        match fs::rename(staged.path(), &lean) {
            // Another session was faster.
            Err(_) if lean.is_dir() => Ok(()),
            renamed => renamed,
        }
    };
    if !lean.is_dir() {
        copy().with_context(|| format!("cannot copy {} to {}", folder.display(), lean.display()))?;
    }
    Ok(text(&lean.join(file)))
}

/// A hash of everything that the stubs of the checkout at `root` depend on, except its own source. Its path is
/// included, for they name it: checkouts that share a build directory share the cache.
fn key(root: &Path) -> Result<Sha256> {
    let mut hash = Sha256::new();
    hash.update(root.as_os_str().as_encoded_bytes());
    for name in ["Cargo.toml", "Cargo.lock"] {
        let path = root.join(name);
        let text = fs::read(&path).with_context(|| {
            format!("cannot read {}: notebooks need the source that this binary was built from", path.display())
        })?;
        hash.update(text);
    }
    hash.update(VISIBLE.concat());
    hash.update(rust_source::LEAN.to_le_bytes());
    Ok(hash)
}

/// Names, lengths and times of the files below a directory, in the order of their names.
fn of_source(directory: &Path) -> Result<String> {
    let (mut told, mut todo) = (String::new(), vec![directory.to_path_buf()]);
    while let Some(next) = todo.pop() {
        let cannot =
            || format!("cannot read {}: notebooks need the source that this binary was built from", next.display());
        let entries = fs::read_dir(&next).with_context(cannot)?;
        let mut entries: Vec<PathBuf> =
            entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>().with_context(cannot)?;
        entries.sort();
        for path in entries {
            let metadata = fs::metadata(&path).with_context(cannot)?;
            let _ = writeln!(told, "{} {} {:?}", path.display(), metadata.len(), metadata.modified().ok());
            if metadata.is_dir() {
                todo.push(path);
            }
        }
    }
    Ok(told)
}

fn short(hash: Sha256) -> String {
    hex::encode(&hash.finalize()[..6])
}

/// The output of `cargo metadata` about lacuna's dependencies on this platform.
fn metadata() -> Result<Value> {
    let manifest = Path::new(LACUNA).join("Cargo.toml");
    let ask = |more: &[&str]| {
        let mut command = Command::new("cargo");
        command.args(["metadata", "--format-version=1", "--locked", "--filter-platform", env!("LACUNA_TARGET")]);
        command.args(more).arg("--manifest-path").arg(&manifest);
        command.output().context("cannot run cargo, which compiles notebook cells")
    };
    let mut output = ask(&["--offline"])?;
    if !output.status.success() {
        // The metadata include those of the tests' dependencies, which a plain build does not download.
        output = ask(&[])?;
    }
    if !output.status.success() {
        bail!("cargo metadata of {} failed: {}", manifest.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")
}

/// A package as its stub shows it.
struct Package {
    name: String,
    version: String,
    edition: String,
    library: String,
    source: String,
    features: BTreeSet<String>,
    /// Name in the source, and the package's id.
    dependencies: BTreeMap<String, String>,
    /// Stubs of those dependencies: id to (package name, directory of its stub).
    targets: BTreeMap<String, (String, String)>,
}

impl Package {
    fn directory(&self) -> String {
        if self.name == "lacuna" { self.name.clone() } else { format!("{}-{}", self.name, self.version) }
    }

    fn manifest(&self) -> String {
        let mut text = format!(
            "[package]\nname = {}\nversion = {}\nedition = {}\n\n[lib]\nname = {}\npath = {}\ncrate-type = [{}]\n",
            toml_string(&self.name),
            toml_string(&self.version),
            toml_string(&self.edition),
            toml_string(&self.library),
            toml_string(&self.source),
            if self.name == "lacuna" { "\"dylib\"" } else { "\"lib\"" },
        );
        // Features only switch code on and off here; what they pull in is listed below.
        let quoted: Vec<String> = self.features.iter().map(|feature| toml_string(feature)).collect();
        let _ = writeln!(text, "\n[features]\ndefault = [{}]", quoted.join(", "));
        for feature in quoted {
            let _ = writeln!(text, "{feature} = []");
        }
        let _ = writeln!(text, "\n[dependencies]");
        for (name, id) in &self.dependencies {
            if let Some((package, directory)) = self.targets.get(id) {
                let path = toml_string(&format!("../{directory}"));
                let _ = writeln!(text, "{name} = {{ package = {}, path = {path} }}", toml_string(package));
            }
        }
        // Not part of whatever workspace the cache lies in.
        text.push_str("\n[workspace]\n");
        text
    }
}

/// lacuna and the visible crates that it reaches through visible crates, by id.
fn packages(metadata: &Value) -> Result<BTreeMap<String, Package>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let array = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let by_id: BTreeMap<String, Value> =
        array(&metadata["packages"]).into_iter().map(|package| (text(&package["id"]), package)).collect();
    let nodes: BTreeMap<String, Value> =
        array(&metadata["resolve"]["nodes"]).into_iter().map(|node| (text(&node["id"]), node)).collect();
    let mut found = BTreeMap::new();
    let mut todo = vec![text(&metadata["resolve"]["root"])];
    while let Some(id) = todo.pop() {
        if found.contains_key(&id) {
            continue;
        }
        let (Some(package), Some(node)) = (by_id.get(&id), nodes.get(&id)) else { continue };
        let library = array(&package["targets"]).into_iter().find(|target| {
            array(&target["kind"]).iter().any(|kind| matches!(kind.as_str(), Some("lib" | "rlib" | "dylib")))
        });
        // Procedural macros and the like have nothing to show.
        let Some(library) = library else { continue };
        let mut dependencies = BTreeMap::new();
        for dependency in array(&node["deps"]) {
            let normal = array(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
            let target = text(&dependency["pkg"]);
            let name = by_id.get(&target).map(|package| text(&package["name"])).unwrap_or_default();
            if normal && VISIBLE.contains(&name.as_str()) {
                dependencies.insert(text(&dependency["name"]), target.clone());
                todo.push(target);
            }
        }
        let features = array(&node["features"]).iter().map(text).filter(|name| name != "default").collect();
        found.insert(
            id,
            Package {
                name: text(&package["name"]),
                version: text(&package["version"]),
                edition: text(&package["edition"]),
                library: text(&library["name"]),
                source: text(&library["src_path"]),
                features,
                dependencies,
                targets: BTreeMap::new(),
            },
        );
    }
    let directories: BTreeMap<String, (String, String)> =
        found.iter().map(|(id, package)| (id.clone(), (package.name.clone(), package.directory()))).collect();
    for package in found.values_mut() {
        let targets = package.dependencies.values();
        package.targets = targets.filter_map(|id| Some((id.clone(), directories.get(id)?.clone()))).collect();
    }
    if found.is_empty() {
        bail!("cargo metadata names no packages");
    }
    Ok(found)
}

/// A TOML basic string.
pub(super) fn toml_string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", c as u32);
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn stubs_reach_what_cells_see_and_nothing_else() {
        let package = |name: &str, kind: &str| {
            json!({"id": name, "name": name, "version": "1.0.0", "edition": "2021",
                   "targets": [{"name": name.replace('-', "_"), "kind": [kind], "src_path": format!("/src/{name}.rs")}]})
        };
        let dep = |name: &str, extern_name: &str, kind: Value| json!({"name": extern_name, "pkg": name, "dep_kinds": [{"kind": kind}]});
        let metadata = json!({
            "packages": [package("lacuna", "dylib"), package("candle-core", "lib"), package("half", "lib"),
                         package("clap", "lib"), package("polars-derive", "proc-macro"), package("polars", "lib")],
            "resolve": {"root": "lacuna", "nodes": [
                {"id": "lacuna", "features": ["default", "notebook"], "deps": [
                    dep("candle-core", "candle", Value::Null), dep("clap", "clap", Value::Null), dep("polars", "polars", json!("dev"))]},
                {"id": "candle-core", "features": ["x"], "deps": [dep("half", "half", Value::Null), dep("polars-derive", "polars_derive", Value::Null)]},
                {"id": "half", "features": [], "deps": []},
                {"id": "polars-derive", "features": [], "deps": []},
            ]}
        });
        let found = packages(&metadata).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["candle-core", "half", "lacuna"]);
        let lacuna = found["lacuna"].manifest();
        assert!(lacuna.contains("candle = { package = \"candle-core\", path = \"../candle-core-1.0.0\" }"), "{lacuna}");
        assert!(lacuna.contains("default = [\"notebook\"]") && !lacuna.contains("clap"), "{lacuna}");
        assert!(!found["candle-core"].manifest().contains("derive"));
    }

    #[test]
    fn checkouts_do_not_share_stubs() {
        let checkout = || {
            let root = tempfile::tempdir().unwrap();
            fs::write(root.path().join("Cargo.toml"), "[package]").unwrap();
            fs::write(root.path().join("Cargo.lock"), "").unwrap();
            root
        };
        let (one, other) = (checkout(), checkout());
        let of = |path: &Path| short(key(path).unwrap());
        assert_eq!(of(one.path()), of(one.path()));
        assert_ne!(of(one.path()), of(other.path()));
        fs::create_dir(one.path().join("src")).unwrap();
        let told = of_source(one.path()).unwrap();
        assert_eq!(of_source(one.path()).unwrap(), told);
        fs::write(one.path().join("src/lib.rs"), "fn f() {}").unwrap();
        assert_ne!(of_source(one.path()).unwrap(), told);
        assert!(key(&one.path().join("gone")).err().unwrap().to_string().contains("source that this binary was built"));
    }

    #[test]
    fn toml_strings_are_quoted() {
        assert_eq!(toml_string("a\"b\\c\n"), "\"a\\\"b\\\\c\\u000A\"");
    }
}
