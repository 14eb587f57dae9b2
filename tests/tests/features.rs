//! Guards the first build: whichever packages a command names, shared dependencies have the same features, so that cargo
//! builds each of them once (`common/features`).

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Selections of packages that people build, each with the edges that cargo follows for it.
const SELECTIONS: [(&[&str], &str); 10] = [
    (&["-p", "anabranch-coordinator", "-p", "anabranch-agent"], "normal,build"),
    (&["-p", "anabranch-coordinator"], "normal,build,dev"),
    (&["-p", "anabranch-agent"], "normal,build,dev"),
    (&["-p", "anabranch-common"], "normal,build,dev"),
    (&["-p", "anabranch-io"], "normal,build,dev"),
    (&["-p", "anabranch-testkit"], "normal,build"),
    (&["-p", "anabranch-testkit-store"], "normal,build"),
    (&["-p", "anabranch-tests"], "normal,build,dev"),
    (&["-p", "anabranch-examples"], "normal,build,dev"),
    (&["--workspace"], "normal,build"),
];

/// The feature sets of every dependency outside of the workspace, for one selection of packages.
fn feature_sets(packages: &[&str], edges: &str) -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .args(["tree", "--locked", "--offline", "--prefix", "none", "--format", "{p}|{f}", "--edges", edges])
        .args(packages)
        .output()
        .expect("cargo runs this test, so it can be started");
    assert!(output.status.success(), "cargo tree {packages:?}: {}", String::from_utf8_lossy(&output.stderr));
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let line = line.trim_end_matches(" (*)");
        if let Some((package, features)) = line.split_once('|').filter(|(package, _)| !package.contains("(/")) {
            found.entry(package.to_owned()).or_default().insert(features.to_owned());
        }
    }
    assert!(found.len() > 20, "cargo tree {packages:?} lists {} dependencies", found.len());
    found
}

#[test]
fn every_selection_of_packages_shares_its_builds() {
    let all = feature_sets(&["--workspace"], "normal,build,dev");
    let mut missing = Vec::new();
    for (packages, edges) in SELECTIONS {
        for (package, features) in feature_sets(packages, edges) {
            if !features.is_subset(&all[&package]) {
                missing.push(format!("{packages:?}: {package} has {features:?}, the workspace {:?}", all[&package]));
            }
        }
    }
    assert!(missing.is_empty(), "ask for the missing features in common/features/Cargo.toml:\n{}", missing.join("\n"));
}
