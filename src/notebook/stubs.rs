//! Packages that cargo need not compile and rust-analyzer can read.
//!
//! `lacuna`'s own stub points at its source. The crates whose types cells see (candle's and polars') get stubs too:
//! without them a `let` of a candle tensor would need its type spelled out. Their other dependencies are left out,
//! which saves rust-analyzer from loading six hundred packages.

use super::places::write_if_new;
use super::rust_source;
use anyhow::{Context, Result, bail};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Node, PackageId, TargetKind};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

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
fn metadata() -> Result<Metadata> {
    let manifest = Path::new(LACUNA).join("Cargo.toml");
    let ask = |more: &[&str]| {
        let options = ["--locked", "--filter-platform", env!("LACUNA_TARGET")].iter().chain(more);
        let options: Vec<String> = options.map(|&option| option.to_owned()).collect();
        MetadataCommand::new().manifest_path(&manifest).other_options(options).exec()
    };
    // The metadata include those of the tests' dependencies, which a plain build does not download.
    let metadata = ask(&["--offline"]).or_else(|_| ask(&[]));
    metadata.with_context(|| format!("cannot tell the packages of {}, which notebook cells see", manifest.display()))
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
fn packages(metadata: &Metadata) -> Result<BTreeMap<String, Package>> {
    let by_id: BTreeMap<&PackageId, &cargo_metadata::Package> =
        metadata.packages.iter().map(|package| (&package.id, package)).collect();
    let resolve = metadata.resolve.as_ref().context("cargo metadata resolves no dependencies")?;
    let nodes: BTreeMap<&PackageId, &Node> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let mut found = BTreeMap::new();
    let mut todo: Vec<&PackageId> = resolve.root.iter().collect();
    while let Some(id) = todo.pop() {
        if found.contains_key(&id.repr) {
            continue;
        }
        let (Some(package), Some(node)) = (by_id.get(id), nodes.get(id)) else { continue };
        let is_library = |kind: &TargetKind| matches!(kind, TargetKind::Lib | TargetKind::RLib | TargetKind::DyLib);
        // Procedural macros and the like have nothing to show.
        let Some(library) = package.targets.iter().find(|target| target.kind.iter().any(is_library)) else { continue };
        let mut dependencies = BTreeMap::new();
        for dependency in &node.deps {
            let normal = dependency.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal);
            let is_visible = by_id.get(&dependency.pkg).is_some_and(|package| VISIBLE.contains(&package.name.as_str()));
            if normal && is_visible {
                dependencies.insert(dependency.name.clone(), dependency.pkg.repr.clone());
                todo.push(&dependency.pkg);
            }
        }
        let features = node.features.iter().map(|name| name.to_string()).filter(|name| name != "default").collect();
        found.insert(
            id.repr.clone(),
            Package {
                name: package.name.to_string(),
                version: package.version.to_string(),
                edition: package.edition.to_string(),
                library: library.name.clone(),
                source: library.src_path.to_string(),
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

/// A TOML string.
pub(super) fn toml_string(text: &str) -> String {
    toml::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn stubs_reach_what_cells_see_and_nothing_else() {
        let package = |name: &str, kind: &str| {
            let library =
                json!({"name": name.replace('-', "_"), "kind": [kind], "src_path": format!("/src/{name}.rs")});
            json!({"id": name, "name": name, "version": "1.0.0", "edition": "2021", "manifest_path": "/Cargo.toml",
                   "dependencies": [], "features": {}, "targets": [library]})
        };
        let dep = |name: &str, extern_name: &str, kind: Value| json!({"name": extern_name, "pkg": name, "dep_kinds": [{"kind": kind, "target": null}]});
        let node = |id: &str, features: &[&str], deps: Vec<Value>| json!({"id": id, "features": features, "deps": deps, "dependencies": []});
        let metadata = json!({
            "packages": [package("lacuna", "dylib"), package("candle-core", "lib"), package("half", "lib"),
                         package("clap", "lib"), package("polars-derive", "proc-macro"), package("polars", "lib")],
            "workspace_members": ["lacuna"], "workspace_root": "/", "target_directory": "/target", "version": 1,
            "resolve": {"root": "lacuna", "nodes": [
                node("lacuna", &["default", "notebook"], vec![
                    dep("candle-core", "candle", Value::Null), dep("clap", "clap", Value::Null), dep("polars", "polars", json!("dev"))]),
                node("candle-core", &["x"], vec![dep("half", "half", Value::Null), dep("polars-derive", "polars_derive", Value::Null)]),
                node("half", &[], vec![]),
                node("polars-derive", &[], vec![]),
            ]}
        });
        let metadata: Metadata = serde_json::from_value(metadata).unwrap();
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
        for text in ["a\"b\\c", "it's \"so\"", "", "Ä b"] {
            let line = format!("x = {}", toml_string(text));
            assert_eq!(toml::from_str::<toml::Table>(&line).unwrap()["x"].as_str(), Some(text), "{line}");
        }
    }
}
