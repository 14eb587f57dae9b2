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
    let names = check(args, &text)?;
    let file = dir.join(config::FILE_NAME);
    for taken in [&file, &dir.join(identity::FOLDER)] {
        if taken.symlink_metadata().is_ok() {
            return Err(reach::identity_fail(IdentityError::Exists(taken.clone())));
        }
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(unwritable(dir))?;
    // The configuration first: whoever finds keys in a directory finds a configuration beside them.
    write_new(&file, &text)?;
    let made = Identity::create(dir, &names, clock::unix_ms());
    let identity = made.inspect_err(|_| drop(fs::remove_file(&file))).map_err(reach::identity_fail)?;
    let shown = dir.display();
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

fn write_new(path: &Path, text: &str) -> anyhow::Result<()> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(unwritable(path))
}

#[cfg(test)]
mod tests {
    use super::*;

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
