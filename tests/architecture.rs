//! The rooms of `src/` stand in the order that ARCHITECTURE.md gives them: the imports are read, and none runs upward.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A module's path within a crate, such as `["mask", "formats", "npz"]`.
type Module = Vec<String>;

/// The Rust files below `src/`, by module.
fn files() -> BTreeMap<Module, PathBuf> {
    fn add(directory: &Path, module: &[String], files: &mut BTreeMap<Module, PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                add(&path, &[module, &[name]].concat(), files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let module = if name == "mod" { module.to_vec() } else { [module, &[name]].concat() };
                files.insert(module, path);
            }
        }
    }
    let mut files = BTreeMap::new();
    add(&root().join("src"), &[], &mut files);
    files
}

/// The code of a file, without comments, strings and the module of unit tests.
fn code(text: &str) -> String {
    let text = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['/', '"', '\'']) {
        code.push_str(&rest[..at]);
        rest = &rest[at..];
        let raw = code.ends_with(['r', '#']) && rest.starts_with('"');
        let hashes = code.len() - code.trim_end_matches('#').len();
        let end = match rest.as_bytes() {
            [b'/', b'/', ..] => rest.find('\n').unwrap_or(rest.len()),
            [b'"', ..] if raw => {
                let close = format!("\"{}", "#".repeat(hashes));
                rest[1..].find(&close).map_or(rest.len(), |end| end + 1 + close.len())
            }
            [b'"', ..] => {
                let mut escaped = false;
                let close = rest[1..].find(|c| {
                    let ends = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    ends
                });
                close.map_or(rest.len(), |end| end + 2)
            }
            // A character; else a lifetime, or a division.
            [b'\'', b'\\', ..] => rest[2..].find('\'').map_or(rest.len(), |end| end + 3),
            [b'\'', b'"', b'\'', ..] => 3,
            _ => {
                code.push_str(&rest[..1]);
                1
            }
        };
        rest = &rest[end..];
    }
    code + rest
}

/// The paths of a use tree: `a::{b, c::{d, e}}` is `a::b`, `a::c::d` and `a::c::e`.
fn paths(tree: &str) -> Vec<Module> {
    let tree = tree.trim();
    let segments = |path: &str| -> Module {
        let path = path.split(" as ").next().unwrap_or_default();
        path.split("::").map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
    };
    let Some((before, group)) = tree.split_once('{') else { return vec![segments(tree)] };
    let group = group.rsplit_once('}').map_or(group, |(group, _)| group);
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, c) in group.char_indices().chain([(group.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if !group[start..at].trim().is_empty() {
                    found.extend(paths(&group[start..at]).into_iter().map(|path| [segments(before), path].concat()));
                }
                start = at + 1;
            }
            _ => {}
        }
    }
    found
}

/// The end of the path or use tree that `text` begins with.
fn tree_end(text: &str) -> usize {
    let mut depth = 0usize;
    for (at, c) in text.char_indices() {
        match c {
            '{' if depth > 0 || at == 0 || text[..at].ends_with("::") => depth += 1,
            '}' if depth > 0 => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            _ if depth > 0 || c == ':' || c == '_' || c.is_alphanumeric() => {}
            _ => return at,
        }
    }
    text.len()
}

/// What the file of `module` names of its crate, as paths from the crate's root: by `crate::` and `super::`, and children by
/// their own names.
fn named(module: &Module, code: &str) -> Vec<Module> {
    let mut found = Vec::new();
    let is_name = |c: char| c == '_' || c.is_alphanumeric();
    for (word, from) in [("crate::", Some(0)), ("super::", None)] {
        for (at, _) in code.match_indices(word) {
            if code[..at].ends_with(is_name) || code[..at].ends_with("::") {
                continue;
            }
            let mut rest = &code[at + word.len()..];
            let mut up = 1;
            while let Some(further) = rest.strip_prefix("super::") {
                (rest, up) = (further, up + 1);
            }
            let base = &module[..from.unwrap_or(module.len().saturating_sub(up))];
            found.extend(paths(&rest[..tree_end(rest)]).into_iter().map(|path| [base, &path].concat()));
        }
    }
    found
}

/// The longest module that `path` begins with.
fn owner(path: &Module, files: &BTreeMap<Module, PathBuf>) -> Option<Module> {
    (1..=path.len()).rev().map(|n| path[..n].to_vec()).find(|module| files.contains_key(module))
}

/// Imports between files, each with the path that names it.
fn imports() -> Vec<(Module, Module, String)> {
    let files = files();
    let mut imports = Vec::new();
    for (module, file) in &files {
        let code = code(&fs::read_to_string(file).unwrap());
        for path in named(module, &code) {
            if let Some(to) = owner(&path, &files).filter(|to| to != module) {
                imports.push((module.clone(), to, path.join("::")));
            }
        }
    }
    assert!(imports.len() > 1000, "only {} imports were found", imports.len());
    imports
}

/// The rooms of ARCHITECTURE.md as `(floor, room)`, in their order; a room is called as its module.
fn rooms() -> Vec<(String, String)> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, table) = text.split_once("## Rooms, from the ground up").expect("the heading of the rooms");
    let table = table.split("\n## ").next().unwrap_or_default();
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        let (floor, room) = (cells.next()?, cells.next()?.trim().strip_prefix('`')?.strip_suffix('`')?);
        Some((floor.to_owned(), room.trim_end_matches('/').trim_end_matches(".rs").to_owned()))
    };
    table.lines().filter_map(row).collect()
}

#[test]
fn rooms_are_the_modules_and_imports_run_down() {
    let rooms = rooms();
    let names: Vec<&str> = rooms.iter().map(|(_, room)| room.as_str()).collect();
    let listed: BTreeSet<&str> = names.iter().copied().collect();
    assert_eq!(listed.len(), names.len(), "a room stands there twice");
    let there = files();
    let there: BTreeSet<&str> = there.keys().map(|module| module[0].as_str()).collect();
    assert_eq!(listed, there, "ARCHITECTURE.md's rooms, and the modules of src/");
    let floors: Vec<&str> = rooms.iter().map(|(floor, _)| floor.as_str()).collect();
    let mut closed = BTreeSet::new();
    for pair in floors.windows(2).filter(|pair| pair[0] != pair[1]) {
        assert!(closed.insert(pair[0]) && !closed.contains(pair[1]), "the floor {} stands there twice", pair[1]);
    }
    let place = |room: &str| names.iter().position(|name| *name == room).unwrap();
    let upward: BTreeSet<String> = imports()
        .iter()
        .filter(|(from, to, _)| from[0] != to[0] && place(&from[0]) < place(&to[0]))
        .map(|(from, _, path)| format!("{} imports {path}, whose room stands below it", from.join("/")))
        .collect();
    assert!(upward.is_empty(), "{}", upward.into_iter().collect::<Vec<_>>().join("\n"));
}

#[test]
fn files_of_a_room_form_no_circle() {
    let mut arrows: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
    for (from, to, _) in imports() {
        // A parent lists its children, which may use what it defines.
        let related = from.starts_with(&to) || to.starts_with(&from);
        if from[0] == to[0] && !related {
            arrows.entry(from).or_default().insert(to);
        }
    }
    let mut left: BTreeSet<Module> = arrows.keys().cloned().collect();
    // Takes away what imports only what was taken away; a circle stays.
    while let Some(free) = left.iter().find(|from| arrows[*from].is_disjoint(&left)).cloned() {
        left.remove(&free);
    }
    let circle: Vec<String> = left.iter().map(|module| module.join("/")).collect();
    assert!(circle.is_empty(), "files that import each other, or what does: {circle:?}");
}

#[test]
fn the_gpu_stands_at_its_level() {
    let (mut halves, mut kernels) = (BTreeSet::new(), BTreeSet::new());
    for (from, to, _) in imports() {
        if to[0] == "cuda" && from[0] != "cuda" {
            let is_half = from.last().is_some_and(|name| name == "gpu");
            assert!(is_half || from[0] == "bench", "{} names the kernels; its GPU half may", from.join("/"));
            halves.insert(from);
        } else if from[0] == "cuda" && to[0] != "cuda" {
            kernels.insert(to[0].clone());
        }
    }
    assert!(halves.len() >= 4, "{halves:?}");
    let ground: BTreeSet<String> =
        rooms().into_iter().filter(|(floor, _)| floor == "ground").map(|(_, room)| room).collect();
    for room in kernels {
        assert!(room == "device" || ground.contains(&room), "cuda/ imports {room}");
    }
}

#[test]
fn the_library_knows_no_command_line() {
    let mut checked = 0;
    for (module, file) in files() {
        if ["cli", "notebook", "main"].contains(&module[0].as_str()) {
            continue;
        }
        let code = code(&fs::read_to_string(&file).unwrap());
        for name in ["clap::", "anyhow::", "ctrlc::", "evcxr::", "process::exit"] {
            assert!(!code.contains(name), "{} uses {name}", file.display());
        }
        checked += 1;
    }
    assert!(checked > 100);
}

#[test]
fn imports_are_found_in_every_form() {
    let text = r##"
use crate::error::{Error, Result};
use crate::{mask::{Mask, set::{self, MaskSet as Set}}, stats};
// use crate::comment::Gone;
/* kept simple */ fn f<'a>(x: &'a str) -> char { crate::random::below(1); '"' }
const S: &str = "crate::string::Gone \" crate::string::Gone";
const R: &str = r#"crate::raw::Gone "quoted" "#;
use super::sibling::Thing;
use super::super::uncle;
fn g() { $crate::rich::show(1); notcrate::x(); }

#[cfg(test)]
mod tests { use crate::tests_only::Gone; }
"##;
    let module: Module = ["a", "b", "c"].map(String::from).into();
    let mut found: Vec<String> = named(&module, &code(text)).iter().map(|path| path.join("::")).collect();
    found.sort();
    let expected = [
        "a::b::sibling::Thing",
        "a::uncle",
        "error::Error",
        "error::Result",
        "mask::Mask",
        "mask::set::MaskSet",
        "mask::set::self",
        "random::below",
        "rich::show",
        "stats",
    ];
    assert_eq!(found, expected);
}
