//! Verbs on a stopped coordinator read and write its store.

use std::process::Stdio;

use anabranch_coordinator::store::SledStore;

use crate::support::{Directory, write_safetensors};

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn tokens_are_made_listed_and_revoked() {
    let directory = Directory::init();
    let made = directory.call(&["token", "create"], &["--name", "clinic", "--ttl", "1h"]).code(0);
    assert_eq!(made.stdout.lines().count(), 1, "standard output is the token and nothing else");
    let token: anabranch_common::token::JoinToken = made.stdout.trim().parse().expect("a token");
    assert_eq!(token.addresses, [format!("127.0.0.1:{}", directory.port)]);
    assert!(made.stderr.contains("one agent until"), "{}", made.stderr);
    let listed = directory.call(&["token", "list"], &["--json"]).code(0).stdout;
    let id = json(&listed)[0]["id"].as_str().expect("an id").to_owned();
    assert_eq!(json(&listed)[0]["name"], "clinic");
    assert!(!listed.contains(&made.stdout.trim()[5..]), "the secret is not kept");
    assert!(directory.call(&["token", "list"], &[]).stdout.contains("good"));
    directory.call(&["token", "revoke"], &[&id]).code(0);
    assert!(directory.call(&["token", "list"], &[]).stdout.contains("revoked"));
    let other =
        directory.call(&["token", "create"], &["--json", "--uses", "3", "--address", "a.example.org:9"]).code(0);
    let token = json(&other.stdout)["token"].as_str().expect("a token").parse::<anabranch_common::token::JoinToken>();
    assert_eq!(token.expect("a token").addresses, ["a.example.org:9"]);
}

#[test]
fn status_of_a_fresh_directory_is_pending_and_stays_the_same_run() {
    let directory = Directory::init();
    let first = json(&directory.call(&["status"], &["--json"]).code(0).stdout);
    assert_eq!((first["state"].as_str(), first["serving"].as_bool()), (Some("pending"), Some(false)));
    assert_eq!(json(&directory.call(&["status"], &["--json"]).code(0).stdout)["run"], first["run"]);
    let text = directory.call(&["status"], &[]).code(0).stdout;
    assert!(text.contains("pending") && text.contains("no coordinator is running"), "{text}");
    assert!(directory.call(&["agents", "list"], &[]).code(0).stdout.contains("no agents"));
    directory.call(&["agents", "revoke"], &["clinic"]).code(1).says("clinic");
}

/// Ctrl-C, and a kill, end a verb before it can remove its copy of the database.
#[test]
fn what_an_interrupted_verb_leaves_the_next_one_removes() {
    let directory = Directory::init();
    directory.call(&["token", "create"], &[]).code(0);
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let copies = || std::fs::read_dir(temporary.path()).expect("listed").count();
    let status = || {
        let mut verb = directory.command(&["status"], &[]);
        verb.env("TMPDIR", temporary.path()).stdout(Stdio::null()).stderr(Stdio::null());
        verb
    };
    let mut left = 0;
    for _ in 0..20 {
        let mut verb = status().spawn().expect("starts");
        while copies() == left && verb.try_wait().expect("asked").is_none() {}
        verb.kill().expect("killed");
        verb.wait().expect("ends");
        left = copies();
        if left > 0 {
            break;
        }
    }
    assert!(left > 0, "each verb had ended before it was killed");
    assert!(status().status().expect("runs").success());
    assert_eq!(copies(), 0, "copies are left");
}

/// Files beside the database are read in place: `run` must not remove them under a reader.
#[test]
fn a_reader_keeps_the_directory_until_it_has_ended() {
    let directory = Directory::init_custom();
    directory.call(&["token", "create"], &[]).code(0);
    let reader = SledStore::open_copy(&directory.file("store")).expect("opens");
    assert!(directory.call(&["token", "list"], &[]).code(0).stdout.contains("good"), "readers share");
    for verb in [&["run"][..], &["token", "create"]] {
        let ended = directory.call(verb, &[]).code(7).says("being read by another process").says("help: wait until");
        assert!(!ended.stderr.contains("in use by process"), "{}", ended.stderr);
    }
    drop(reader);
    let (code, log) = directory.serve().terminate();
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn what_needs_a_running_coordinator_says_so() {
    let directory = Directory::init();
    for verb in ["pause", "resume", "stop"] {
        directory.call(&[verb], &[]).code(4).says("no coordinator is running");
    }
    directory.call(&["checkpoint", "export"], &["--out", "never"]).code(4).says("holds no run");
    directory.call(&["checkpoint", "verify"], &[]).code(4).says("holds no run");
}

#[test]
fn a_model_goes_in_and_comes_out_with_the_same_bits() {
    let directory = Directory::init_custom();
    let (input, output) = (directory.file("in.safetensors"), directory.file("out.safetensors"));
    let (input_name, output_name) = (input.display().to_string(), output.display().to_string());
    let values = [0.5, -1.25, f32::MIN_POSITIVE, -0.0, 3.0e38];
    write_safetensors(&input, &[("layer.weight", &[2, 2], &values[..4]), ("layer.bias", &[1], &values[4..])]);
    let imported = directory.call(&["checkpoint", "import"], &[&input_name]).code(0).stdout;
    assert!(imported.contains("5 parameters in 2 tensors as version 0"), "{imported}");
    let exported = directory.call(&["checkpoint", "export"], &["--out", &output_name]).code(0).stdout;
    let digest = anabranch_common::ids::Digest::of_f32(&values).to_string();
    assert!(exported.contains("version 0") && exported.contains(&digest), "{exported}");
    let bytes = std::fs::read(&output).expect("exported");
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    assert!(bytes.ends_with(&data), "the same bits in the same order");

    directory.call(&["checkpoint", "export"], &["--out", &output_name]).code(2).says("exists already").says("--force");
    directory.call(&["checkpoint", "export"], &["--out", &output_name, "--force"]).code(0);
    assert_eq!(std::fs::read(&output).expect("exported"), bytes, "the same model gives the same file");
    directory.call(&["checkpoint", "export"], &["--out", "never", "--version", "7"]).code(4).says("version 7");
    directory.call(&["checkpoint", "export"], &["--out", "/no/such/folder/file"]).code(2).says("/no/such/folder");

    write_safetensors(&input, &[("layer.bias", &[1], &[9.0]), ("layer.weight", &[2, 2], &[1.0, 2.0, 3.0, 4.0])]);
    let imported = directory.call(&["checkpoint", "import"], &[&input_name]).code(0).stdout;
    assert!(imported.contains("as version 1"), "{imported}");
    directory.call(&["checkpoint", "export"], &["--out", &output_name, "--force"]).code(0);
    let swapped: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0, 9.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    assert!(std::fs::read(&output).expect("exported").ends_with(&swapped), "in the run's order, not in the file's");
    let verified = directory.call(&["checkpoint", "verify"], &[]).code(0).stdout;
    assert!(verified.contains("everything holds"), "{verified}");
    let status = directory.call(&["status"], &[]).code(0).stdout;
    assert!(status.contains("version 1 at position 1, 5 parameters"), "{status}");
}
