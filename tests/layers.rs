//! The modules of `src/` form layers: a module imports only modules that `src/lib.rs` declares above it, and within a module no two files
//! import each other, by whatever way round. Tests may import anything.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A source file: where it lies, its module path, its code without comments and tests.
struct File {
    path: PathBuf,
    module: Vec<String>,
    code: String,
}

/// Code without comments, and without what is compiled for tests only: by the house's custom the last item of a file.
fn stripped(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests").next().expect("one part");
    code.lines().map(|line| line.split("//").next().expect("one part")).collect::<Vec<_>>().join("\n")
}

/// Every file below `folder`, but for modules of tests.
fn files(folder: &Path, module: &[String], found: &mut Vec<File>) {
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let root = ["mod.rs", "lib.rs"].map(|name| folder.join(name)).into_iter().find(|path| path.is_file());
    let for_tests = |name: &str| {
        // A module that has a file and a folder is declared beside the file.
        root.as_ref().is_some_and(|root| read(root).contains(&format!("#[cfg(test)]\nmod {name};"))) || name == "tests"
    };
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if for_tests(&name) || name == "bin" || name == "main" {
            continue;
        }
        let is_root = ["mod", "lib"].contains(&name.as_str());
        let module: Vec<String> = module.iter().cloned().chain((!is_root).then_some(name)).collect();
        if path.is_dir() {
            files(&path, &module, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let code = stripped(&read(&path));
            found.push(File { path, module, code });
        }
    }
}

fn is_name(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// The paths that begin with `crate` or `super` in code, groups in braces taken apart.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            // Not the middle of a path.
            if !code[..at].ends_with(|before| is_name(before) || before == ':') {
                expand(&mut code[at..].chars().peekable(), &mut Vec::new(), &mut all);
            }
        }
    }
    all
}

/// Reads one path, or the paths of a group, behind `prefix`.
fn expand(code: &mut std::iter::Peekable<std::str::Chars<'_>>, prefix: &mut Vec<String>, all: &mut Vec<Vec<String>>) {
    let depth = prefix.len();
    loop {
        while code.next_if(|next| next.is_whitespace()).is_some() {}
        if code.next_if_eq(&'{').is_some() {
            while code.peek().is_some_and(|next| *next != '}') {
                expand(code, prefix, all);
                while code.next_if(|next| next.is_whitespace() || *next == ',').is_some() {}
            }
            code.next();
            break;
        }
        let name: String = std::iter::from_fn(|| code.next_if(|next| is_name(*next))).collect();
        if name.is_empty() {
            // A `*`, or the end.
            code.next();
            all.push(prefix.clone());
            break;
        }
        prefix.push(name);
        let goes_on = code.next_if_eq(&':').is_some() && code.next_if_eq(&':').is_some();
        if !goes_on {
            all.push(prefix.clone());
            // `name as other`.
            while code.next_if(|next| next.is_whitespace() || is_name(*next)).is_some() {}
            break;
        }
    }
    prefix.truncate(depth);
}

/// A path from the crate's root.
fn resolved(module: &[String], path: &[String]) -> Vec<String> {
    let mut base = if path[0] == "crate" { Vec::new() } else { module.to_vec() };
    let ups = path.iter().take_while(|part| *part == "super").count();
    base.truncate(base.len().saturating_sub(ups));
    base.extend(path[ups.max(1)..].iter().cloned());
    base
}

/// What a module's root file re-exports: name to the child that has it.
fn exports(code: &str) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for item in code.split("pub use ").skip(1) {
        let mut found = Vec::new();
        expand(&mut item.chars().peekable(), &mut Vec::new(), &mut found);
        for path in found.into_iter().filter(|path| path.len() > 1) {
            names.insert(path[path.len() - 1].clone(), path[0].clone());
        }
    }
    names
}

/// A cycle of the graph, if there is one.
fn cycle(graph: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn visit<'a>(
        graph: &'a BTreeMap<String, BTreeSet<String>>,
        node: &'a str,
        trail: &mut Vec<&'a str>,
        done: &mut BTreeSet<&'a str>,
    ) -> Option<Vec<String>> {
        if let Some(at) = trail.iter().position(|known| *known == node) {
            return Some(trail[at..].iter().map(|name| (*name).to_owned()).collect());
        }
        if done.contains(node) {
            return None;
        }
        trail.push(node);
        let found = graph.get(node).into_iter().flatten().find_map(|next| visit(graph, next, trail, done));
        trail.pop();
        done.insert(node);
        found
    }
    let mut done = BTreeSet::new();
    graph.keys().find_map(|node| visit(graph, node, &mut Vec::new(), &mut done))
}

fn source() -> Vec<File> {
    let mut found = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &[], &mut found);
    found
}

#[test]
fn a_module_imports_only_modules_declared_above_it() {
    let files = source();
    let root = files.iter().find(|file| file.path.ends_with("src/lib.rs")).unwrap();
    let declared = |line: &str| line.trim().strip_prefix("pub mod ")?.strip_suffix(';').map(str::to_owned);
    let order: Vec<String> = root.code.lines().filter_map(declared).collect();
    let layer = |name: &str| order.iter().position(|module| module == name);
    assert!(order.len() > 20, "{order:?}");
    let mut imports = 0;
    let mut wrong = Vec::new();
    for file in files.iter().filter(|file| !file.module.is_empty()) {
        let own = layer(&file.module[0]).unwrap_or_else(|| panic!("lib.rs does not declare {:?}", file.module));
        for path in paths(&file.code) {
            let path = resolved(&file.module, &path);
            if let Some(other) = path.first().and_then(|name| layer(name)) {
                imports += usize::from(other != own);
                if other > own {
                    wrong.push(format!("{} imports {}", file.path.display(), path.join("::")));
                }
            }
        }
    }
    assert!(imports > 200, "{imports}");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files_of_a_module_do_not_import_each_other_in_a_circle() {
    let files = source();
    let modules: BTreeSet<&[String]> = files.iter().map(|file| &file.module[..]).collect();
    let mut circles = Vec::new();
    for parent in files.iter().filter(|file| file.path.ends_with("mod.rs")) {
        let (depth, exports) = (parent.module.len(), exports(&parent.code));
        let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for file in files.iter().filter(|file| file.module.len() > depth && file.module.starts_with(&parent.module)) {
            let own = &file.module[depth];
            for path in paths(&file.code).iter().map(|path| resolved(&file.module, path)) {
                if !path.starts_with(&parent.module) || path.len() == depth {
                    continue;
                }
                let name = &path[depth];
                let is_child = modules.contains(&path[..=depth]);
                let child = if is_child { Some(name) } else { exports.get(name) };
                if let Some(child) = child.filter(|child| *child != own) {
                    graph.entry(own.clone()).or_default().insert(child.clone());
                }
            }
        }
        circles.extend(cycle(&graph).map(|circle| format!("{}: {}", parent.module.join("::"), circle.join(" → "))));
    }
    assert!(circles.is_empty(), "{circles:#?}");
}

/// A name may hold control characters, which would reach a terminal or forge a line of the log: `escape::escaped` shows it.
#[test]
fn no_path_is_shown_as_it_is() {
    let files = source();
    let shown = files.iter().filter(|file| file.code.contains(".display()") && !file.path.ends_with("fixtures.rs"));
    let shown: Vec<&PathBuf> = shown.map(|file| &file.path).collect();
    assert!(shown.is_empty(), "{shown:?}");
}

#[test]
fn paths_are_read_and_circles_found() {
    let code = "use crate::{a::{B, c as d}, e};\nuse super::f;\nlet x = super::super::g(crate::h::I);";
    let read: Vec<String> = paths(code).iter().map(|path| path.join("::")).collect();
    assert_eq!(read, ["crate::a::B", "crate::a::c", "crate::e", "crate::h::I", "super::f", "super::super::g"]);
    let graph = |edges: &[(&str, &str)]| {
        let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, to) in edges {
            graph.entry((*from).to_owned()).or_default().insert((*to).to_owned());
        }
        graph
    };
    assert_eq!(cycle(&graph(&[("a", "b"), ("a", "c"), ("b", "c")])), None);
    assert_eq!(cycle(&graph(&[("a", "b"), ("b", "c"), ("c", "b")])).unwrap(), ["b", "c"]);
}
