//! Deliberate bugs: edits of the product's sources, made in a copy of the tree. The simulation of the copy must find each
//! of them; what it cannot find it does not check.
//!
//! ```text
//!  workspace ─► copy ─► tests/bugs/bugs.toml: every edit ─► common/src/bugs.rs (which bug is planted)
//!                                                       └─► tests/tests/bites.rs: plants one after another
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use serde::Deserialize;

/// What stands in an edit for the question whether its bug is planted.
const PLACEHOLDER: &str = "PLANTED";
/// Files of the copy that are not files of the product: what answers that question, and the test that asks it.
const ADDED: [(&str, &str); 2] = [
    ("common/src/bugs.rs", include_str!("../bugs/planted.rs")),
    ("tests/tests/bites.rs", include_str!("../bugs/bites.rs")),
];
/// Where the copy names the first of them.
const COMMON: &str = "common/src/lib.rs";
/// What the version of the copy's packages ends in. Cargo tells packages apart by name, version and place in their
/// workspace: without this, what was built of the copy would count as built of the product.
const VERSION_SUFFIX: &str = "+bites";
/// Folders that are not copied.
const NOT_COPIED: [&str; 2] = ["target", ".git"];

/// A mistake.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bug {
    /// Its name.
    pub name: String,
    /// What goes wrong.
    pub what: String,
    /// Whether it is looked for in worlds with pods.
    #[serde(default)]
    pub pods: bool,
    /// Whether it is looked for in worlds with a search.
    #[serde(default)]
    pub searches: bool,
    /// Where it is made.
    pub edits: Vec<Edit>,
}

/// A change of one file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// The file, from the workspace's root.
    pub file: String,
    /// What stands there, once.
    pub find: String,
    /// What stands there instead.
    pub replace: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bugs {
    bug: Vec<Bug>,
}

/// Every deliberate bug.
///
/// # Errors
/// The list is no TOML of this form.
pub fn all() -> anyhow::Result<Vec<Bug>> {
    let bugs: Bugs = toml::from_str(include_str!("../bugs/bugs.toml")).context("tests/bugs/bugs.toml")?;
    Ok(bugs.bug)
}

/// The workspace that this program was built from.
#[must_use]
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

/// The files of the workspace at `root` that the bugs are made in, as the copy has them.
///
/// # Errors
/// A file cannot be read, or an edit does not fit it: the code has changed, and the edit must follow.
pub fn edited(bugs: &[Bug], root: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for bug in bugs {
        for Edit { file, find, replace } in &bug.edits {
            let module = if file.starts_with("common/src") { "crate" } else { "anabranch_common" };
            let planted = format!("{module}::bugs::is({:?})", bug.name);
            let path = root.join(file);
            let before = match files.remove(file) {
                Some(text) => text,
                None => fs::read_to_string(&path).with_context(|| path.display().to_string())?,
            };
            let found = before.matches(find.as_str()).count();
            if found != 1 {
                bail!(
                    "{}: what it replaces stands {found} times in {file}; change tests/bugs/bugs.toml with the code:\n{find}",
                    bug.name
                );
            }
            files.insert(file.clone(), before.replacen(find, &replace.replace(PLACEHOLDER, &planted), 1));
        }
    }
    Ok(files)
}

/// Copies the workspace at `root` into `copy`, with every bug in it. Files that are the same there are left alone, so
/// that a second build is short.
///
/// # Errors
/// A file cannot be read or written, or an edit does not fit.
pub fn plant_all(root: &Path, copy: &Path) -> anyhow::Result<()> {
    let bugs = all()?;
    let mut files: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
    read_tree(root, Path::new(""), &mut files)?;
    for (file, text) in edited(&bugs, root)? {
        files.insert(file.into(), text.into_bytes());
    }
    for (file, text) in ADDED {
        files.insert(file.into(), text.into());
    }
    let common = files.get_mut(Path::new(COMMON)).with_context(|| format!("there is no {COMMON}"))?;
    common.extend_from_slice(b"\npub mod bugs;\n");
    for file in ["Cargo.toml", "Cargo.lock"] {
        let text = files.get_mut(Path::new(file)).with_context(|| format!("there is no {file}"))?;
        *text = renumbered(std::str::from_utf8(text)?).context(file)?.into_bytes();
    }
    for (file, bytes) in &files {
        let path = copy.join(file);
        if fs::read(&path).is_ok_and(|there| there == *bytes) {
            continue;
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        fs::write(&path, bytes).with_context(|| path.display().to_string())?;
    }
    let mut there = BTreeMap::new();
    read_tree(copy, Path::new(""), &mut there)?;
    for stale in there.keys().filter(|file| !files.contains_key(*file)) {
        fs::remove_file(copy.join(stale)).with_context(|| stale.display().to_string())?;
    }
    Ok(())
}

/// Gives the product's packages in a `Cargo.toml` or `Cargo.lock` the version of the copy.
fn renumbered(text: &str) -> anyhow::Result<String> {
    let version = env!("CARGO_PKG_VERSION");
    let (ours, theirs) = (format!("version = \"{version}\""), format!("version = \"{version}{VERSION_SUFFIX}\""));
    let (mut out, mut before, mut changed) = (String::with_capacity(text.len()), "", false);
    for line in text.lines() {
        let is_product = before == "[workspace.package]" || before.starts_with("name = \"anabranch-");
        let is_version = is_product && line == ours;
        out.push_str(if is_version { &theirs } else { line });
        out.push('\n');
        (before, changed) = (line, changed || is_version);
    }
    if !changed {
        bail!("the version {version} of the product's packages does not stand here");
    }
    Ok(out)
}

fn read_tree(root: &Path, folder: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) -> anyhow::Result<()> {
    let here = root.join(folder);
    for entry in fs::read_dir(&here).with_context(|| here.display().to_string())? {
        let entry = entry?;
        let (name, kind) = (entry.file_name(), entry.file_type()?);
        let path = folder.join(&name);
        if kind.is_dir() && !NOT_COPIED.iter().any(|other| name == *other) {
            read_tree(root, &path, files)?;
        } else if kind.is_file() {
            files.insert(path, fs::read(entry.path())?);
        }
    }
    Ok(())
}

/// Makes the copy below `target`, builds it, and lets its simulation look for each bug. Returns whether all were found.
///
/// # Errors
/// The copy cannot be made, or cargo cannot be run.
pub fn bite(target: &Path) -> anyhow::Result<bool> {
    let copy = target.join("bites");
    fs::create_dir_all(&copy)?;
    plant_all(&workspace(), &copy)?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["test", "--locked", "-p", "anabranch-tests", "--test", "bites", "--", "--nocapture"])
        .current_dir(&copy)
        .env("CARGO_TARGET_DIR", target)
        .status()
        .context("cargo, which builds the copy")?;
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_bug_still_fits_the_code() {
        let bugs = all().expect("well-formed");
        let names: BTreeSet<&str> = bugs.iter().map(|bug| bug.name.as_str()).collect();
        assert_eq!(names.len(), bugs.len(), "a name stands for one bug");
        let edited = edited(&bugs, &workspace()).unwrap_or_else(|error| panic!("{error:#}"));
        assert!(edited.values().all(|text| text.contains("bugs::is(") && !text.contains(PLACEHOLDER)));
        assert!(bugs.iter().all(|bug| bug.edits.iter().any(|edit| edit.replace.contains(PLACEHOLDER))));
    }

    /// Guards every build after this one: cargo would take the copy's packages for the product's, with its bugs.
    #[test]
    fn the_copy_has_packages_of_its_own() {
        let read = |file: &str| fs::read_to_string(workspace().join(file)).expect("readable");
        let manifest = renumbered(&read("Cargo.toml")).expect("it gives the version");
        let version = concat!("version = \"", env!("CARGO_PKG_VERSION"), "+bites\"");
        assert!(manifest.contains(&format!("[workspace.package]\n{version}\n")));
        let lock = renumbered(&read("Cargo.lock")).expect("it names the packages");
        let ours = lock.lines().filter(|line| line.starts_with("name = \"anabranch-")).count();
        assert!(ours > 5 && lock.lines().filter(|line| *line == version).count() == ours);
        assert!(renumbered("[package]\nversion = \"0.1.0\"\n").is_err());
    }

    #[test]
    fn an_edit_that_no_longer_fits_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("a.rs"), "let x = 1;\nlet x = 1;\n").expect("written");
        let edit = Edit { file: "a.rs".into(), find: "x = 1".into(), replace: "x = PLANTED".into() };
        let bug = Bug { name: "Twice".into(), what: String::new(), pods: false, searches: false, edits: vec![edit] };
        let error = edited(&[bug], dir.path()).expect_err("it stands twice").to_string();
        assert!(
            error.starts_with("Twice: what it replaces stands 2 times in a.rs; change tests/bugs/bugs.toml"),
            "{error}"
        );
    }
}
