//! Wrong arguments, wrong configuration, wrong files: each is told with what to do about it, and loses nothing.

use std::os::unix::fs::PermissionsExt as _;

use crate::support::{Directory, call, write_safetensors};

#[test]
fn the_help_has_examples_and_every_exit_code() {
    let help = call(&["--help"]).code(0).stdout;
    for expected in
        ["init", "token", "agents", "run", "status", "pause", "checkpoint", "config", "Exit codes:", "  13  port taken"]
    {
        assert!(help.contains(expected), "{help}\ndoes not mention {expected:?}");
    }
    call(&[]).code(2);
    call(&["no-such-verb"]).code(2).says("unrecognized subcommand");
    call(&["status"]).code(2).says("--dir");
    let bash = call(&["completions", "bash"]).code(0).stdout;
    assert!(bash.contains("anabranch-coordinator"));
}

#[test]
fn a_directory_is_never_initialised_twice() {
    let directory = Directory::init();
    let ca = std::fs::read(directory.file("tls/ca.crt")).expect("a CA");
    directory.call(&["init"], &[]).code(3).says("exists already").says("help: ");
    assert_eq!(std::fs::read(directory.file("tls/ca.crt")).expect("a CA"), ca, "the CA is still the same");
    let mode = std::fs::metadata(directory.path()).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "nobody else may look into the directory");
}

#[test]
fn names_and_addresses_are_checked_before_anything_is_made() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dir = folder.path().join("d");
    let dir_text = dir.display().to_string();
    call(&["init", "--dir", &dir_text, "--san", "https://a"]).code(2).says("neither a host name nor an IP address");
    call(&["init", "--dir", &dir_text, "--name", "two words"]).code(2).says("run.name must be");
    call(&["init", "--dir", &dir_text, "--listen", "127.0.0.1:0"]).code(2).says("fixed port");
    call(&["init", "--dir", &dir_text, "--listen", "here"]).code(2).says("invalid value 'here'");
    assert!(!dir.exists(), "nothing was made");
}

#[test]
fn a_directory_without_a_configuration_is_told_apart_from_a_wrong_one() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dir = folder.path().display().to_string();
    for verb in [&["run"][..], &["status"], &["config", "check"], &["token", "create"]] {
        let args: Vec<&str> = verb.iter().copied().chain(["--dir", &dir]).collect();
        call(&args).code(3).says("cannot read").says("anabranch-coordinator init --dir");
    }
    assert!(!folder.path().join("store").exists(), "asking makes no store");
}

/// Reading a pipe waits for a writer that never comes.
#[test]
fn a_configuration_that_is_a_pipe_is_refused() {
    let directory = Directory::init();
    let path = directory.file("run.toml");
    std::fs::remove_file(&path).expect("removed");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("made");
    for verb in [&["config", "check"][..], &["run"], &["status"]] {
        directory.call(verb, &[]).code(3).says("run.toml: it is not a regular file").says("help: put a file of text");
    }
}

#[test]
fn an_unknown_key_and_a_bad_value_are_named_with_file_and_line() {
    let directory = Directory::init();
    directory.call(&["config", "check"], &[]).code(0);
    directory.edit("batch_size = 32", "batchsize = 32");
    for verb in [&["config", "check"][..], &["run"], &["status"]] {
        let ended = directory.call(verb, &[]).code(3).says("unknown field `batchsize`").says("config check --dir");
        let text = std::fs::read_to_string(directory.file("run.toml")).expect("run.toml");
        let line = text.lines().position(|line| line.starts_with("batchsize")).expect("there") + 1;
        let place = format!("d/run.toml:{line}:1: ");
        assert!(ended.stderr.contains(&place), "{place:?} is not in {}", ended.stderr);
    }
    directory.edit("batchsize = 32", "batch_size = 0");
    directory.call(&["config", "check"], &[]).code(3).says(":14: train.batch_size must be at least 1");
    directory.edit("batch_size = 0", "batch_size = \"many\"");
    directory.call(&["config", "check"], &[]).code(3).says("invalid type: string \"many\"");
}

/// What an editor did to the file is told with its place, and has nothing to do with permissions.
#[test]
fn a_configuration_that_is_no_utf_8_is_told_with_its_place_and_how_to_convert_it() {
    let directory = Directory::init();
    let path = directory.file("run.toml");
    let text = std::fs::read_to_string(&path).expect("run.toml").replacen("# For people.", "# Für Leute.", 1);
    let line = text.lines().position(|line| line.starts_with("# F\u{fc}r")).expect("there") + 1;
    let latin_1: Vec<u8> = text.chars().map(|c| u8::try_from(u32::from(c)).expect("in Latin-1")).collect();
    let utf_16 = |mark: &str| -> Vec<u8> {
        let text = format!("{mark}{text}");
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    };
    for (bytes, place, from) in [
        (latin_1, format!("run.toml:{line}:4: byte 0xFC is not UTF-8"), "-f WINDOWS-1252"),
        (utf_16("\u{feff}"), "run.toml:1:1: this is UTF-16".to_owned(), "-f UTF-16 "),
        (utf_16(""), "run.toml:1:1: this is UTF-16".to_owned(), "-f UTF-16LE "),
    ] {
        std::fs::write(&path, bytes).expect("written");
        for verb in [&["config", "check"][..], &["run"], &["status"]] {
            let ended = directory.call(verb, &[]).code(3).says(&place).says("help: save it as UTF-8").says(from);
            assert!(!ended.stderr.contains("user that owns"), "{}", ended.stderr);
        }
    }
    std::fs::write(&path, format!("\u{feff}{text}")).expect("written");
    directory.call(&["config", "check"], &[]).code(0);
    std::fs::write(&path, vec![b'#'; 2 << 20]).expect("written");
    directory
        .call(&["config", "check"], &[])
        .code(3)
        .says("more than 1048576 bytes")
        .says("help: another file is in its");
    std::fs::remove_file(&path).expect("removed");
    std::fs::create_dir(&path).expect("made");
    directory.call(&["config", "check"], &[]).code(3).says("help: a directory is in its place");
}

#[test]
fn keys_that_do_not_belong_together_are_not_used() {
    let directory = Directory::init();
    let other = Directory::init();
    std::fs::copy(other.file("tls/server.key"), directory.file("tls/server.key")).expect("copied");
    directory.call(&["run"], &[]).code(3).says("does not belong to").says("help: ");
    std::fs::remove_file(directory.file("tls/ca.key")).expect("removed");
    directory.call(&["run"], &[]).code(3).says("ca.key");
}

#[test]
fn a_taken_port_has_its_own_exit_code() {
    let (directory, _taken) = Directory::init_with_port_taken();
    directory.call(&["run"], &[]).code(13).says("cannot listen on").says("another port");
}

#[test]
fn a_store_that_may_not_be_written_is_a_storage_error() {
    let directory = Directory::init();
    std::fs::write(directory.file("store"), "a file where a folder belongs").expect("written");
    directory.call(&["run"], &[]).code(6).says("store");
    directory.call(&["status"], &[]).code(6).says("store");
}

#[test]
fn senseless_tokens_are_not_made() {
    let directory = Directory::init();
    let create = |rest: &[&str]| directory.call(&["token", "create"], rest);
    create(&["--ttl", "soon"]).code(2).says("soon");
    create(&["--name", "a b"]).code(1).says("a token's name must be");
    create(&["--uses", "0"]).code(1).says("1 to 65536 agents");
    create(&["--ttl", "10y"]).code(1).says("between a second and a year");
    create(&["--address", "no port"]).code(2).says("--address as HOST:PORT");
    directory.call(&["token", "revoke"], &["00000000"]).code(1).says("no token 00000000");
    assert!(directory.call(&["token", "list"], &[]).code(0).stdout.contains("no tokens"));
}

#[test]
fn a_coordinator_elsewhere_needs_certificates_that_can_be_read() {
    let directory = Directory::init();
    let file = |name: &str| directory.file(name).display().to_string();
    let (cert, key, ca) = (file("tls/operator.crt"), file("tls/operator.key"), file("tls/ca.crt"));
    call(&["status", "--connect", "127.0.0.1:1"]).code(2).says("--cert");
    let missing = ["status", "--connect", "127.0.0.1:1", "--cert", "nowhere", "--key", &key, "--ca", &ca];
    call(&missing).code(3).says("cannot read nowhere");
    let wrong = ["status", "--connect", "127.0.0.1:1", "--cert", &cert, "--key", &file("tls/server.key"), "--ca", &ca];
    call(&wrong).code(3).says("does not belong to");
    let address = ["status", "--connect", "nowhere", "--cert", &cert, "--key", &key, "--ca", &ca];
    call(&address).code(3).says("host:port");
}

/// The file of `safetensors.torch.save_file` is sorted by name: a run that has a model has an
/// order of its own.
#[test]
fn a_model_is_imported_by_name_and_the_first_one_gives_the_order() {
    let directory = Directory::init_custom();
    let file = directory.file("model.safetensors");
    let name = file.display().to_string();
    let import = || directory.call(&["checkpoint", "import"], &[&name]).code(0);
    let digest = |stdout: &str| stdout.rsplit(' ').next().map(str::to_owned);
    let (weight, bias) = (("weight", &[2][..], &[1.0, 2.0][..]), ("bias", &[1][..], &[3.0][..]));
    write_safetensors(&file, &[weight, bias]);
    let first = import().says("the order of the tensors in the file is the run's from now on: weight, bias;");
    write_safetensors(&file, &[bias, weight]);
    let second = import();
    assert!(second.stdout.contains("version 1") && second.stderr.is_empty(), "{second:?}");
    assert_eq!(digest(&first.stdout), digest(&second.stdout), "the same vector, whatever the file's order");
}

#[test]
fn files_that_are_no_model_are_not_imported() {
    let directory = Directory::init_custom();
    let file = directory.file("model.safetensors");
    let name = file.display().to_string();
    let import = || directory.call(&["checkpoint", "import"], &[&name]);
    import().code(2).says("cannot read");
    std::fs::write(&file, "no model").expect("written");
    import().code(10).says("is not a safetensors file");
    write_safetensors(&file, &[("w", &[2], &[1.0, f32::NAN])]);
    import().code(11).says("tensor \"w\" is not finite");
    write_safetensors(&file, &[("w", &[2], &[1.0, 2.0])]);
    import().code(0);
    let before = directory.call(&["checkpoint", "verify"], &[]).code(0).stdout;
    write_safetensors(&file, &[("w", &[3], &[1.0, 2.0, 3.0])]);
    import().code(10).says("\"w\" has shape [3] instead of [2]");
    write_safetensors(&file, &[("v", &[2], &[1.0, 2.0])]);
    import().code(10).says("\"w\" of shape [2] is missing");
    assert_eq!(directory.call(&["checkpoint", "verify"], &[]).code(0).stdout, before, "nothing was changed");
}

/// A native model's tensors are known before the run has a model.
#[test]
fn the_first_model_has_the_tensors_of_run_toml() {
    let directory = Directory::init();
    for (from, to) in [("input = [1, 28, 28]", "input = [2]"), ("classes = 10", "classes = 2"), ("[128]", "[1]")] {
        directory.edit(from, to);
    }
    let file = directory.file("model.safetensors");
    let name = file.display().to_string();
    let import = || directory.call(&["checkpoint", "import"], &[&name]);
    let tensors = [
        ("fc1.bias", &[1][..], &[1.0][..]),
        ("fc1.weight", &[1, 2], &[2.0, 3.0]),
        ("fc2.bias", &[2], &[4.0, 5.0]),
        ("fc2.weight", &[2, 1], &[6.0, 7.0]),
    ];
    let mut transposed = tensors;
    transposed[1].1 = &[2, 1];
    write_safetensors(&file, &transposed);
    import().code(10).says("tensors: \"fc1.weight\" has shape [2, 1] instead of [1, 2]").says("`[model]` in run.toml");
    let mut renamed = tensors;
    renamed[3].0 = "head.weight";
    write_safetensors(&file, &renamed);
    import().code(10).says("tensors: \"fc2.weight\" of shape [2, 1] is missing; \"head.weight\" is not part");
    let status = directory.call(&["status"], &["--json"]).code(0).stdout;
    assert!(status.contains("\"params\":null"), "something was written: {status}");
    // Their order is that of the file.
    write_safetensors(&file, &tensors);
    import().code(0).says("the run's from now on: fc1.bias, fc1.weight, fc2.bias, fc2.weight;");
    let status = directory.call(&["status"], &["--json"]).code(0).stdout;
    assert!(status.contains("\"params\":7"), "{status}");
}

#[test]
fn a_clock_before_the_certificates_is_named() {
    let directory = Directory::init_at(10);
    directory.call(&["run"], &[]).code(12).says("this machine's clock says").says("NTP");
    let expired = Directory::init_at(-3651);
    expired.call(&["run"], &[]).code(12).says("the run's CA is valid from");
}

#[test]
fn a_full_disk_is_told_at_the_start_and_loses_nothing() {
    let directory = Directory::init_custom();
    directory.call_on_full_disk(&["run"], &[]).code(6).says("no space left").says("free some space");
    directory.call(&["status"], &[]).code(0);
    let file = directory.file("model.safetensors");
    write_safetensors(&file, &[("w", &[2], &[1.0, 2.0])]);
    directory.call(&["checkpoint", "import"], &[&file.display().to_string()]).code(0);
    directory.call_on_full_disk(&["run"], &[]).code(6).says("help: ");
    assert!(directory.call(&["checkpoint", "verify"], &[]).code(0).stdout.contains("everything holds"));
}
