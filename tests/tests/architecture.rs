//! Guards the architecture: what is pure stays pure, dependencies point one way, the coordinator knows no machine
//! learning, files stay small, no test is switched off, and no binary for people has kill points in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What logic never touches: sockets, clocks, disks, entropy, threads.
const IMPURE: [&str; 15] = [
    "tokio",
    "quinn",
    "sled",
    "burn",
    "cudarc",
    "std::fs",
    "std::net",
    "std::thread",
    "std::process",
    "std::env",
    "Instant::now",
    "SystemTime::now",
    "rand::rng",
    "getrandom",
    "thread::spawn",
];
/// Machine learning, and what would triple the coordinator's build.
const NOT_IN_THE_COORDINATOR: [&str; 10] =
    ["burn", "cubecl", "cudarc", "candle", "tch", "ndarray", "gemm", "wgpu", "rayon", "aws-lc"];
/// Lines of a source file.
const MAX_LINES: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace is there")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// Every Rust file below a folder of the workspace.
fn sources(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for entry in entries {
            let path = entry.expect("an entry").path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn all_sources() -> Vec<PathBuf> {
    ["common", "coordinator", "agent", "tests", "examples"].into_iter().flat_map(sources).collect()
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// The code of a line: without comments, and without text in quotes.
fn code(line: &str) -> String {
    let mut out = String::new();
    let mut in_text = false;
    let mut chars = line.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\\' if in_text => {
                chars.next();
            }
            '"' => in_text = !in_text,
            '/' if !in_text && chars.peek() == Some(&'/') => break,
            _ if !in_text => out.push(char),
            _ => {}
        }
    }
    out
}

/// Whether `code` uses `name`, which is not merely a part of a longer one.
fn uses(code: &str, name: &str) -> bool {
    let is_word = |char: char| char.is_alphanumeric() || char == '_';
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + name.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

#[test]
fn the_check_itself_sees_uses_and_passes_over_words_and_comments() {
    assert!(uses(&code("use tokio::sync::mpsc; // channels"), "tokio"));
    assert!(uses(&code("let now = std::time::Instant::now();"), "Instant::now"));
    assert!(!uses(&code("// not even tokio"), "tokio"));
    assert!(!uses(&code("let text = \"no \\\"tokio\\\" here\";"), "tokio"));
    assert!(!uses(&code("let sledge = burned(quinns);"), "sled") && !uses("let burned = 1;", "burn"));
}

#[test]
fn common_both_cores_node_registry_host_and_search_are_pure() {
    let pure = [
        "common/src",
        "coordinator/src/core",
        "coordinator/src/node",
        "coordinator/src/registry",
        "coordinator/src/host",
        "coordinator/src/search",
        "agent/src/session",
        "agent/src/host",
    ];
    let pure = pure.into_iter().flat_map(sources);
    let mut files = 0;
    let mut found = Vec::new();
    for path in pure {
        files += 1;
        for (number, line) in read(&path).lines().enumerate() {
            let code = code(line);
            let impure = IMPURE.iter().filter(|name| uses(&code, name));
            found.extend(impure.map(|name| format!("{}:{}: {name}", shown(&path), number + 1)));
        }
    }
    assert!(files > 40, "only {files} files were looked at");
    assert!(found.is_empty(), "logic touches the world outside:\n{}", found.join("\n"));
}

/// Name and dependencies of a package, those for its tests apart.
fn dependencies(manifest: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let text = read(&root().join(manifest).join("Cargo.toml"));
    let table: toml::Table = text.parse().expect("a manifest");
    let names = |key: &str| match table.get(key).and_then(toml::Value::as_table) {
        Some(table) => table.keys().cloned().collect(),
        None => BTreeSet::new(),
    };
    (names("dependencies"), names("dev-dependencies"))
}

#[test]
fn dependencies_point_one_way() {
    // What a package depends on, and what its tests depend on beside that.
    let allowed: [(&str, &[&str], &[&str]); 7] = [
        ("common", &[], &["anabranch-testkit"]),
        ("common/features", &[], &[]),
        ("common/io", &["anabranch-common"], &[]),
        ("coordinator", &["anabranch-common", "anabranch-io"], &["anabranch-testkit", "anabranch-testkit-store"]),
        ("agent", &["anabranch-common", "anabranch-io"], &["anabranch-testkit"]),
        ("tests/kit", &["anabranch-common"], &[]),
        ("tests/kit/store", &["anabranch-common", "anabranch-coordinator"], &[]),
    ];
    // `common/features` is a manifest without code.
    let is_ours = |name: &&String| name.starts_with("anabranch-") && *name != "anabranch-features";
    for (package, allowed, for_tests) in allowed {
        let (normal, dev) = dependencies(package);
        let wrong = normal.iter().filter(is_ours).filter(|name| !allowed.contains(&name.as_str()));
        let wrong = wrong.chain(dev.iter().filter(is_ours).filter(|name| !for_tests.contains(&name.as_str())));
        let wrong: Vec<&String> = wrong.collect();
        assert!(wrong.is_empty(), "{package} must not depend on {wrong:?}");
    }
    let (normal, dev) = dependencies("examples");
    assert!(!normal.contains("anabranch-tests") && !dev.contains("anabranch-tests"), "examples do without the tests");
}

/// Every package in Cargo.lock, with what it depends on.
fn lock() -> BTreeMap<String, BTreeSet<String>> {
    let table: toml::Table = read(&root().join("Cargo.lock")).parse().expect("a lock file");
    let packages = table["package"].as_array().expect("packages");
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in packages {
        let name = package["name"].as_str().expect("a name").to_owned();
        let dependencies = package.get("dependencies").and_then(toml::Value::as_array).into_iter().flatten();
        // "name", or "name version" where there are several: taken together, which can only find more.
        let names = dependencies.filter_map(toml::Value::as_str).filter_map(|text| text.split(' ').next());
        found.entry(name).or_default().extend(names.map(str::to_owned));
    }
    found
}

#[test]
fn the_coordinator_has_no_machine_learning_in_its_tree() {
    let lock = lock();
    let mut tree = BTreeSet::new();
    let mut open = vec!["anabranch-coordinator".to_owned()];
    while let Some(name) = open.pop() {
        if tree.insert(name.clone()) {
            open.extend(lock.get(&name).into_iter().flatten().cloned());
        }
    }
    assert!(tree.contains("quinn") && tree.contains("sled"), "the tree was not followed: {tree:?}");
    let is = |name: &str, family: &str| name == family || name.starts_with(&format!("{family}-"));
    let wrong: Vec<&String> =
        tree.iter().filter(|name| NOT_IN_THE_COORDINATOR.iter().any(|family| is(name, family))).collect();
    assert!(wrong.is_empty(), "the coordinator depends on {wrong:?}");
    assert!(!tree.contains("anabranch-agent"), "coordinator and agent never depend on each other");
    assert!(lock.contains_key("burn-flex"), "the check would not notice the agent's own trainer");
}

#[test]
fn no_file_is_too_long_to_be_read() {
    let long: Vec<String> = all_sources()
        .iter()
        .map(|path| (shown(path), read(path).lines().count()))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .map(|(path, lines)| format!("{path}: {lines} lines, more than {MAX_LINES}"))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn no_test_is_switched_off_and_nothing_is_left_to_do() {
    let mut found = Vec::new();
    for path in all_sources() {
        for (number, line) in read(&path).lines().enumerate() {
            let code = code(line);
            let ignored = code.contains("#[ignore") || code.contains("#![ignore");
            let unfinished = ["todo!", "unimplemented!"].iter().any(|name| code.contains(name));
            let silenced = code.contains("#[allow(") || code.contains("#![allow(");
            if ignored || unfinished || silenced {
                found.push(format!("{}:{}: {}", shown(&path), number + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "switched off, unfinished or silenced without a reason:\n{}", found.join("\n"));
}

/// The kill points of `anabranch_io::faults` and the list that the tests visit are the same.
#[test]
fn every_kill_point_is_visited_and_every_visit_has_a_point() {
    use anabranch_tests::kills::{AGENT, COORDINATOR, GENESIS, RECOVERY};
    let visited: BTreeSet<&str> =
        COORDINATOR.iter().chain(&RECOVERY).chain(&AGENT).chain([&GENESIS]).map(|point| point.name).collect();
    let mut named = BTreeSet::new();
    let call = "faults::point(\"";
    for path in ["common/io/src", "coordinator/src", "agent/src"].into_iter().flat_map(sources) {
        let text = read(&path);
        let names = text.split(call).skip(1).filter_map(|rest| rest.split('"').next());
        named.extend(names.map(str::to_owned));
    }
    // These are chosen by what was sent.
    named.extend(["verdict-sent", "upload-asked-for", "lease-sent"].map(str::to_owned));
    let named: BTreeSet<&str> = named.iter().map(String::as_str).collect();
    assert_eq!(named, visited);
    for package in ["common/io", "coordinator", "agent"] {
        let table: toml::Table = read(&root().join(package).join("Cargo.toml")).parse().expect("a manifest");
        assert!(table["features"].get("default").is_none(), "{package} has the kill points switched off by default");
    }
}
