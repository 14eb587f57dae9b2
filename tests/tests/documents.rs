//! Guards the documents: links lead somewhere, the book has every page, and a place that a text names is there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

/// Folders that texts are in, and the files beside them.
const FOLDERS: [&str; 7] = ["docs", "common", "coordinator", "agent", "tests", "examples", "ops"];
/// Endings of files that people read.
const ENDINGS: [&str; 8] = ["md", "rs", "py", "toml", "yaml", "service", "conf", "txt"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace is there")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// Every file that people read, by its path in the workspace.
fn texts() -> BTreeMap<PathBuf, String> {
    let mut folders: Vec<PathBuf> = FOLDERS.iter().map(|folder| root().join(folder)).collect();
    let top = std::fs::read_dir(root()).expect("the workspace").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<PathBuf> = top.filter(|path| path.is_file()).collect();
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for path in entries.map(|entry| entry.expect("an entry").path()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() && name != "target" && name != "shards" && !name.starts_with('.') {
                folders.push(path);
            } else if path.is_file() {
                files.push(path);
            }
        }
    }
    let is_text = |path: &PathBuf| path.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known));
    let short = |path: PathBuf| path.strip_prefix(root()).expect("in the workspace").to_owned();
    files.into_iter().filter(is_text).map(|path| (short(path.clone()), read(&path))).collect()
}

fn is_markdown(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "md")
}

/// Text between a pair of marks, at each place where it stands.
fn between<'a>(text: &'a str, open: &str, close: char) -> Vec<&'a str> {
    text.split(open).skip(1).filter_map(|rest| rest.split(close).next()).collect()
}

/// A path without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

/// The headings of a page, and the words in bold that begin its paragraphs, without marks.
fn headings(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let bold = between(page, "**", '*').into_iter().map(|text| text.trim_end_matches('.'));
    headings.chain(bold).map(|text| text.replace('`', "")).collect()
}

/// What a heading is in a link: small letters and hyphens.
fn anchor(heading: &str) -> String {
    let letters = heading.chars().filter(|char| char.is_alphanumeric() || matches!(char, ' ' | '-' | '_'));
    letters.collect::<String>().trim().to_lowercase().replace(' ', "-")
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading() {
    let texts = texts();
    let mut links = 0;
    let mut broken = Vec::new();
    for (path, text) in texts.iter().filter(|(path, _)| is_markdown(path)) {
        for link in between(text, "](", ')').into_iter().filter(|link| !link.contains("://")) {
            links += 1;
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let folder = path.parent().unwrap_or(Path::new(""));
            let target = if file.is_empty() { path.clone() } else { plain(&folder.join(file)) };
            let has_heading =
                |page: &String| heading.is_empty() || headings(page).iter().any(|found| anchor(found) == heading);
            if !root().join(&target).exists() || !texts.get(&target).is_none_or(has_heading) {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(links > 80, "only {links} links were looked at");
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
}

#[test]
fn the_book_has_every_page_once() {
    let summary = read(&root().join("docs/SUMMARY.md"));
    let mut listed = between(&summary, "](", ')');
    listed.sort_unstable();
    let texts = texts();
    let pages = texts.keys().filter(|path| is_markdown(path)).filter_map(|path| path.strip_prefix("docs").ok());
    let mut pages: Vec<&str> = pages.filter_map(Path::to_str).filter(|page| *page != "SUMMARY.md").collect();
    pages.sort_unstable();
    assert_eq!(listed, pages, "docs/SUMMARY.md");
    for (title, page) in summary.lines().filter_map(|line| line.split_once("](")) {
        let title = title.rsplit('[').next().expect("a last part");
        let page = page.trim_end_matches(')');
        let first = read(&root().join("docs").join(page)).lines().next().map(str::to_owned);
        assert_eq!(first, Some(format!("# {title}")), "docs/SUMMARY.md, {page}");
    }
}

/// Most places are named in prose: `docs/faults.md`, or `docs/hardware.md, "Memory"`.
#[test]
fn every_page_and_heading_that_a_text_names_is_there() {
    let texts = texts();
    let mut places = 0;
    let mut missing = Vec::new();
    for (path, text) in &texts {
        // A place may go over the end of a line, and of a line of a comment.
        let joined: Vec<&str> =
            text.lines().map(|line| line.trim().trim_start_matches(['/', '!', '#']).trim_start()).collect();
        let joined = joined.join(" ");
        for (at, _) in joined.match_indices("docs/") {
            let is_inside = joined[..at].ends_with(|char: char| char.is_alphanumeric() || "/-_.".contains(char));
            let rest = &joined[at..];
            let Some(end) = rest.find(".md").filter(|end| !is_inside && rest[..*end].chars().all(is_of_a_path)) else {
                continue;
            };
            places += 1;
            let (page, rest) = rest.split_at(end + ".md".len());
            let heading = rest.strip_prefix(", \"").and_then(|rest| rest.split('"').next());
            let is_there = texts
                .get(Path::new(page))
                .is_some_and(|page| heading.is_none_or(|heading| headings(page).contains(&heading.replace('`', ""))));
            if !is_there {
                missing.push(format!("{}: {page} {}", path.display(), heading.unwrap_or_default()));
            }
        }
    }
    assert!(places > 300, "only {places} places were looked at");
    assert!(missing.is_empty(), "places that are not there:\n{}", missing.join("\n"));
}

fn is_of_a_path(char: char) -> bool {
    char.is_ascii_alphanumeric() || "/-_".contains(char)
}
