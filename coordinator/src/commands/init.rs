//! `init`: a directory for a run.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use anabranch_io::exit::{ExitCode, Fail};

use super::{output, reach};
use crate::cli::InitArgs;
use crate::clock;
use crate::config::{self, Config, TemplateOptions};
use crate::identity::{self, Identity, IdentityError};

pub(super) fn init(args: &InitArgs) -> anyhow::Result<()> {
    let dir = args.dir.as_path();
    let options =
        TemplateOptions { name: args.name.clone(), seed: args.seed, listen: args.listen, names: args.names.clone() };
    let text = Config::template(&options);
    let mut names = check(args, &text)?;
    let (file, keys) = (dir.join(config::FILE_NAME), dir.join(identity::FOLDER));
    let is_there = |path: &Path| path.symlink_metadata().is_ok();
    let shown = dir.display();
    let has_file = is_there(&file);
    match (has_file, is_there(&keys)) {
        (true, true) if args.if_missing => {
            output::hint(&format!("{shown} has run.toml and keys already: nothing is changed"));
            return Ok(());
        }
        (true, false) if args.if_missing => names = reach::load_config(dir)?.server.certificate_names(),
        (true, _) => return Err(reach::identity_fail(IdentityError::Exists(file))),
        (false, true) => return Err(reach::identity_fail(IdentityError::Exists(keys))),
        (false, false) => {
            DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(unwritable(dir))?;
            // The configuration first: whoever finds keys in a directory finds a configuration beside them.
            write_new(&file, &text)?;
        }
    }
    let made = Identity::create(dir, &names, clock::unix_ms());
    if made.is_err() && !has_file {
        drop(fs::remove_file(&file));
    }
    let identity = made.map_err(reach::identity_fail)?;
    output::print(&format!(
        "{shown}/run.toml     what the run computes: look through it before the first start\n\
         {shown}/tls/         CA {}, server and operator certificates\n",
        identity.ca_fingerprint().short(),
    ))?;
    output::hint(&format!(
        "\nnext:\n  anabranch-coordinator run --dir {shown}\n  anabranch-coordinator token create --dir {shown} --name NAME"
    ));
    if let Some(hint) = names_hint(args.listen, &args.names) {
        output::hint(hint);
    }
    Ok(())
}

/// What to say about an address or names under which no other machine finds this one.
fn names_hint(listen: SocketAddr, names: &[String]) -> Option<&'static str> {
    let is_here = |name: &String| {
        name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    match names {
        [] if listen.ip().is_loopback() => {
            Some("--listen names this machine's loopback: no other machine can reach it")
        }
        // The address that agents are sent to.
        [] if !listen.ip().is_unspecified() => None,
        [] => Some("no --san was given: agents on other machines need one (`names` in run.toml)"),
        [first, ..] if is_here(first) => Some(
            "the first --san leads back to the machine that uses it, and tokens carry it: agents on other machines need a \
             name or address of this one first (`names` in run.toml)",
        ),
        _ => None,
    }
}

/// Arguments that would make a file that is refused later are refused now, by the same rules. Returns the names for the
/// server's certificate.
fn check(args: &InitArgs, text: &str) -> anyhow::Result<Vec<String>> {
    if let Some(bad) = args.names.iter().find(|name| !identity::is_server_name(name)) {
        return Err(reach::identity_fail(IdentityError::BadName(bad.clone())));
    }
    Config::parse(Path::new("run.toml"), text).map(|config| config.server.certificate_names()).map_err(|error| {
        let message = match error {
            config::ConfigError::Value { key, problem, .. } => format!("{key} {problem}"),
            other => other.to_string(),
        };
        Fail::new(ExitCode::Usage, message).help("see `anabranch-coordinator init --help`").into()
    })
}

fn unwritable(path: &Path) -> impl FnOnce(std::io::Error) -> anyhow::Error {
    let path = path.to_owned();
    |source| reach::identity_fail(IdentityError::Unwritable { path, source })
}

/// Writes a file as a whole or not at all: `--if-missing` keeps the one that it finds.
fn write_new(path: &Path, text: &str) -> anyhow::Result<()> {
    let partial = path.with_extension("toml.partial");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&partial)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&partial))).map_err(unwritable(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: &Path, if_missing: bool, names: &[&str]) -> InitArgs {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let listen = "0.0.0.0:4433".parse().expect("an address");
        InitArgs { dir: dir.to_owned(), listen, names, name: "wards".to_owned(), seed: 1, if_missing }
    }

    fn code(result: anyhow::Result<()>) -> ExitCode {
        let error = result.expect_err("a refusal");
        error.downcast_ref::<Fail>().expect("an error with a code").code()
    }

    /// Guards a CA: a container calls `init --if-missing` at each start.
    #[test]
    fn a_repeated_init_changes_nothing() {
        let parent = tempfile::tempdir().expect("a folder");
        let dir = parent.path().join("trainer");
        init(&args(&dir, true, &["trainer.example.org"])).expect("made");
        let read =
            || ["run.toml", "tls/ca.key", "tls/server.crt"].map(|name| fs::read(dir.join(name)).expect("a file"));
        let before = read();
        init(&args(&dir, true, &["other.example.org"])).expect("left as it is");
        assert_eq!(code(init(&args(&dir, false, &[]))), ExitCode::Config, "without the option it is refused");
        assert_eq!(read(), before);
        fs::remove_file(dir.join("run.toml")).expect("removed");
        assert_eq!(code(init(&args(&dir, true, &[]))), ExitCode::Config, "keys of a run whose configuration is lost");
    }

    #[test]
    fn keys_are_made_for_the_names_of_a_configuration_that_is_there() {
        let dir = tempfile::tempdir().expect("a folder");
        let options = TemplateOptions {
            name: "wards".to_owned(),
            seed: 7,
            listen: "0.0.0.0:4433".parse().expect("an address"),
            names: vec!["ward.example.org".to_owned()],
        };
        let file = dir.path().join(config::FILE_NAME);
        let text = Config::template(&options);
        fs::write(&file, &text).expect("written");
        assert_eq!(code(init(&args(dir.path(), false, &[]))), ExitCode::Config);
        init(&args(dir.path(), true, &["other.example.org"])).expect("made");
        assert_eq!(fs::read_to_string(&file).expect("a file"), text);
        let identity = Identity::load(dir.path()).expect("keys");
        let certificate = String::from_utf8_lossy(&identity.server().certificate_der).into_owned();
        assert!(certificate.contains("ward.example.org") && !certificate.contains("other.example.org"));
    }

    #[test]
    fn a_wrong_configuration_gets_no_keys() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join(config::FILE_NAME), "[run]\nname = 7\n").expect("written");
        assert_eq!(code(init(&args(dir.path(), true, &[]))), ExitCode::Config);
        assert!(!dir.path().join(identity::FOLDER).exists() && dir.path().join(config::FILE_NAME).exists());
    }

    /// A token carries the first name: one that leads an agent back to its own machine is worth a word.
    #[test]
    fn names_that_only_this_machine_understands_are_hinted_at() {
        let hint_at = |listen: &str, names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            names_hint(listen.parse().expect("an address"), &names)
        };
        let hint = |names: &[&str]| hint_at("0.0.0.0:4433", names);
        assert!(hint(&[]).is_some_and(|hint| hint.contains("no --san")));
        assert!(hint_at("[::1]:4433", &[]).is_some_and(|hint| hint.contains("loopback")));
        assert_eq!(hint_at("10.0.0.7:4433", &[]), None, "tokens carry the address");
        for loopback in ["127.0.0.1", "::1", "LocalHost", "127.1.2.3"] {
            assert!(hint(&[loopback, "10.0.0.7"]).is_some_and(|hint| hint.contains("other machines")), "{loopback}");
        }
        assert_eq!(hint(&["trainer.example.org", "127.0.0.1"]), None);
    }
}
