//! Guards `common/src/limits.rs`: a bound that is not there does not exist. Product code is read
//! for constants that are named like bounds, and for capacities and times that are written as
//! numbers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Where product code is.
const SOURCES: [&str; 4] = ["common/src", "common/io/src", "coordinator/src", "agent/src"];
/// The only place for bounds, and ...
const LIMITS: &str = "common/src/limits.rs";
/// ... its parts.
const LIMITS_DIR: &str = "common/src/limits/";
/// Words of a constant's name that make it a bound.
const WORDS: [&str; 11] =
    ["MAX", "LIMIT", "KEPT", "QUEUE", "TIMEOUT", "TRIES", "ATTEMPTS", "MOST", "LONGEST", "PATIENCE", "WINDOW"];
/// Units at the end of a constant's name that make it a bound.
const UNITS: [&str; 3] = ["_MS", "_S", "_BYTES"];
/// Calls whose first argument is a capacity or a time.
const CALLS: [&str; 6] = [
    "channel(",
    "Semaphore::new(",
    "Duration::from_secs(",
    "Duration::from_millis(",
    "Duration::from_secs_f64(",
    "Duration::from_micros(",
];

/// What looks like a bound and is none: file, name of the constant (or the call), reason.
const ALLOWED: [(&str, &str, &str); 58] = [
    ("common/src/codec/blocks.rs", "SCALE_BYTES", LAYOUT),
    ("common/src/codec/entropy.rs", "MAX_EXPANSION", "a fact of zstd's format"),
    ("common/src/codec/rice.rs", "MAX_PARAMETER", LAYOUT),
    ("common/src/downlink/chain.rs", "HEADER_BYTES", LAYOUT),
    ("common/src/downlink/track.rs", "HEADER_BYTES", LAYOUT),
    ("common/src/journal.rs", "HEADER_BYTES", LAYOUT),
    ("common/src/token.rs", "CHECKSUM_BYTES", LAYOUT),
    ("common/src/token.rs", "FIXED_BYTES", LAYOUT),
    ("common/src/merge/participation.rs", "MAX_WEIGHT", RULE),
    ("common/src/merge/participation.rs", "WINDOW_PER_AGENT", RULE),
    ("common/src/merge/participation.rs", "WINDOW_MIN", RULE),
    ("common/src/merge/recall/mod.rs", "MOST_LAG_PER_AGENT", RULE),
    ("common/src/merge/recall/mod.rs", "MOST_MOVED", RULE),
    ("common/src/merge/recall/mod.rs", "SIGMA_WINDOW_PER_AGENT", RULE),
    ("common/src/merge/shares.rs", "WINDOW_PER_AGENT", RULE),
    ("common/io/src/control.rs", "SOCKET_PATH_BYTES", "the kernel's"),
    ("common/io/src/control.rs", "Duration::from_millis(", PAUSE),
    ("common/io/src/durable/flusher.rs", "LOOK_EVERY", PAUSE),
    ("common/io/src/durable/look.rs", "PAUSE", PAUSE),
    ("common/io/src/durable/mod.rs", "CLEAN_EVERY_MS", PAUSE),
    ("common/io/src/durable/mod.rs", "REOPEN_PAUSE", PAUSE),
    ("agent/src/commands/run.rs", "PAUSE", PAUSE),
    ("common/io/src/model_file.rs", "ALIGNMENT_BYTES", LAYOUT),
    ("common/io/src/tls/reset.rs", "SIGNATURE_BYTES", LAYOUT),
    ("coordinator/src/commands/reach.rs", "REST", PAUSE),
    ("coordinator/src/commands/run.rs", "PAUSE", PAUSE),
    ("coordinator/src/commands/status/source.rs", "INTERVAL", PAUSE),
    ("coordinator/src/commands/status/table.rs", "NOW_MS", "how a time is shown"),
    ("coordinator/src/core/recent.rs", "COUNTS_KEPT", RULE),
    ("coordinator/src/identity/issue.rs", "DAY", "a unit"),
    ("coordinator/src/identity/issue.rs", "AUTHORITY_LIFE", CERTIFICATE),
    ("coordinator/src/identity/issue.rs", "SERVICE_LIFE", CERTIFICATE),
    ("coordinator/src/identity/issue.rs", "BACKDATED", CERTIFICATE),
    ("coordinator/src/registry/tokens.rs", "DEFAULT_TTL_MS", "a default; the bound is TOKEN_TTL_MS"),
    ("coordinator/src/recovery/checkpoint.rs", "HEADER_BYTES", LAYOUT),
    ("coordinator/src/recovery/pins.rs", "POINT_BYTES", LAYOUT),
    ("coordinator/src/recovery/saved/mod.rs", "HEADER_BYTES", LAYOUT),
    ("coordinator/src/store/bulk.rs", "NUMBER_BYTES", LAYOUT),
    ("coordinator/src/store/layout.rs", "HEAD_BYTES", LAYOUT),
    ("coordinator/src/store/layout.rs", "INLINE_BYTES", LAYOUT),
    ("coordinator/src/store/object/format.rs", "HEAD_BYTES", LAYOUT),
    ("coordinator/src/store/sled.rs", "FILE_BYTES", LAYOUT),
    ("coordinator/src/driver.rs", "Duration::from_millis(", PAUSE),
    ("agent/src/clock.rs", "Duration::from_secs(", "a moment that is never reached"),
    ("agent/src/session/tempo.rs", "QUICK_MS", RULE),
    ("common/io/src/memory.rs", "NO_LIMIT_BYTES", "the kernel's"),
    ("agent/src/device/probe.rs", "POLL", PAUSE),
    ("agent/src/store/head.rs", "HEAD_PREFIX_BYTES", LAYOUT),
    ("agent/src/store/mod.rs", "BLOB_KEY_BYTES", LAYOUT),
    ("agent/src/store/shelf.rs", "PIECE_BYTES", "the size of a buffer"),
    ("agent/src/train/bound.rs", "PATIENCE_ROUNDS", RULE),
    ("agent/src/train/bound.rs", "LONGEST_ROUNDS", RULE),
    ("common/src/pod/memory.rs", "OVERHEAD_BYTES", "an estimate"),
    ("agent/src/train/process/child.rs", "POLL", PAUSE),
    ("agent/src/train/process/child.rs", "Duration::from_millis(", PAUSE),
    ("agent/src/train/process/kin.rs", "POLL", PAUSE),
    ("agent/src/train/process/mod.rs", "Duration::from_millis(", PAUSE),
    ("agent/src/transport/uplink.rs", "LOOK", PAUSE),
];
const LAYOUT: &str = "part of a byte layout, or chooses one";
const RULE: &str = "a parameter of a rule, not a bound of a resource";
const PAUSE: &str = "a pause between two looks; what is waited for has its own bound";
const CERTIFICATE: &str = "the life of a certificate";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace is there")
}

/// Whether a file is the place for bounds.
fn is_limits(path: &str) -> bool {
    path == LIMITS || path.starts_with(LIMITS_DIR)
}

/// Every file of product code below a folder of the workspace, by its path in the workspace.
fn sources(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root().join(folder)).unwrap_or_else(|error| panic!("{folder}: {error}")) {
        let entry = entry.expect("an entry");
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{folder}/{name}");
        if entry.path().is_dir() {
            found.extend(if name == "tests" { vec![] } else { sources(&path) });
        } else if name.ends_with(".rs") && !name.ends_with("tests.rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The product code of a file: without comments, without text in quotes, without the tests at its
/// end.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    let mut out = String::new();
    for line in text.lines() {
        let mut in_text = false;
        let mut chars = line.chars().peekable();
        while let Some(char) = chars.next() {
            match char {
                '\\' if in_text => _ = chars.next(),
                '"' => in_text = !in_text,
                '/' if !in_text && chars.peek() == Some(&'/') => break,
                _ if !in_text => out.push(char),
                _ => {}
            }
        }
        out.push('\n');
    }
    out
}

fn is_word(char: char) -> bool {
    char.is_alphanumeric() || char == '_'
}

/// Whether an expression states a number; names, types and the fields of tuples do not count, nor
/// does 0.
fn states_a_number(expression: &str) -> bool {
    let expression = expression.replace(".0", "").replace(".1", "");
    let mut words = expression.split(|char| !is_word(char));
    words.any(|word| word.starts_with(|first: char| first.is_ascii_digit()) && word != "0")
}

/// The constants of a file that are bounds, by name.
fn constants(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, keyword) in code.match_indices("const ").chain(code.match_indices("static ")) {
        let rest = &code[at + keyword.len()..];
        let Some((name, rest)) = rest.split_once(':') else { continue };
        let constant = name.chars().all(|char| char.is_ascii_uppercase() || char.is_ascii_digit() || char == '_');
        let Some((of, value)) = rest.split_once(';').and_then(|(rest, _)| rest.split_once('=')) else { continue };
        let named = name.split('_').any(|word| WORDS.contains(&word)) || UNITS.iter().any(|unit| name.ends_with(unit));
        if constant && (named || of.contains("Duration")) && states_a_number(value) {
            found.push(name.to_owned());
        }
    }
    found
}

/// The calls of a file with a capacity or a time that is written as a number, except in constants.
fn calls(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in code.lines().filter(|line| !line.contains("const ")) {
        for call in CALLS {
            let arguments = line.match_indices(call).map(|(at, _)| &line[at + call.len()..]);
            // One at a time is no bound that could be another.
            let is_one = |argument: &str| !call.starts_with("Duration") && argument == "1";
            let argument = |rest: &str| rest.split([')', ',']).next().unwrap_or_default().to_owned();
            let stated = arguments.map(argument).filter(|argument| states_a_number(argument) && !is_one(argument));
            found.extend(stated.map(|_| call.to_owned()));
        }
    }
    found
}

#[test]
fn the_check_itself_sees_bounds_and_passes_over_names() {
    for bound in [
        "const QUEUE_JOBS: usize = 4096;",
        "pub(super) const KEPT_BYTES: usize = 32 << 20;",
        "const LOOK: Duration = Duration::from_secs(3);",
        "const STATE_BYTES: usize = 64 * limits::CONTROL_MESSAGE_BYTES;",
        "const ANSWER_MS: u64 = 4 *\n    SOMETHING;",
    ] {
        assert_eq!(constants(&code(bound)).len(), 1, "{bound}");
    }
    for none in [
        "const SEND: Duration = Duration::from_millis(limits::IDLE_TIMEOUT_MS);",
        "const SHARE_BYTES: u32 = limits::UPLOAD_BYTES_PER_AGENT as u32;",
        "const MAGIC: [u8; 4] = *b\"ANBJ\";",
        "// const QUEUE_JOBS: usize = 4096;",
        "#[cfg(test)]\nmod tests {\n    const WAIT_MS: u64 = 5;\n}",
    ] {
        assert_eq!(constants(&code(none)), [""; 0], "{none}");
    }
    for bound in ["Semaphore::new(8)", "mpsc::channel(64)", "sleep(Duration::from_secs(2))", "sync_channel(1 << 4)"] {
        assert_eq!(calls(&code(bound)).len(), 1, "{bound}");
    }
    for none in ["Semaphore::new(1)", "mpsc::channel(limits::AGENT_JOBS)", "Duration::from_millis(self.wait_ms)"] {
        assert_eq!(calls(&code(none)), [""; 0], "{none}");
    }
}

#[test]
fn every_bound_is_in_limits() {
    let (mut files, mut found, mut needed) = (0, Vec::new(), BTreeSet::new());
    for path in SOURCES.into_iter().flat_map(sources).filter(|path| !is_limits(path)) {
        files += 1;
        let text = std::fs::read_to_string(root().join(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        let code = code(&text);
        for name in constants(&code).into_iter().chain(calls(&code)) {
            match ALLOWED.iter().position(|(file, allowed, _)| (*file, *allowed) == (path.as_str(), name.as_str())) {
                Some(line) => _ = needed.insert(line),
                None => found.push(format!("{path}: {name}")),
            }
        }
    }
    assert!(files > 150, "only {files} files were looked at");
    assert!(found.is_empty(), "bounds outside of {LIMITS}:\n{}", found.join("\n"));
    let superfluous: Vec<_> =
        (0..ALLOWED.len()).filter(|line| !needed.contains(line)).map(|line| ALLOWED[line]).collect();
    assert!(superfluous.is_empty(), "nothing needs these lines any more: {superfluous:?}");
}

/// A bound without its unit or its reason is a number.
#[test]
fn every_bound_is_documented() {
    for path in sources("common/src").into_iter().filter(|path| is_limits(path)) {
        let text = std::fs::read_to_string(root().join(path)).expect("the bounds");
        let mut before = "";
        for line in text.lines() {
            if line.starts_with("pub const ") {
                assert!(before.starts_with("///"), "without a word: {line}");
            }
            if !line.starts_with("#[") {
                before = line;
            }
        }
    }
}
