//! Where a coordinator is found: tokens carry what is bound, and a name with several addresses is no obstacle.

use std::ffi::OsStr;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, Stdio};

use anabranch_tests::ledger::Settings;
use anabranch_tests::process::{Cluster, Role, compile};
use anyhow::{Context as _, ensure};

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");

/// A resolver for which `localhost` is ::1, then 127.0.0.1, as on a machine with both families.
const RESOLVER: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <string.h>

typedef int (*resolve)(const char *, const char *, const struct addrinfo *, struct addrinfo **);

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    resolve real = (resolve)dlsym(RTLD_NEXT, "getaddrinfo");
    if (!node || strcmp(node, "localhost") != 0) return real(node, service, hints, found);
    int failed = real("::1", service, hints, found);
    if (failed) return failed;
    struct addrinfo *last = *found;
    while (last->ai_next) last = last->ai_next;
    return real("127.0.0.1", service, hints, &last->ai_next);
}
"#;

#[test]
fn a_coordinator_on_the_second_address_of_its_name_is_found() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), &Settings::default().run_toml())?;
    let library = cluster.path().join("resolver.so");
    if !compile(RESOLVER, &library)? {
        ensure!(std::env::var_os("CI").is_none(), "CI needs a C compiler");
        eprintln!("not checked: there is no C compiler here");
        return Ok(());
    }
    cluster.start_coordinator()?;
    let address = format!("localhost:{}", cluster.port());
    let token = cluster.token(&["--name", "one", "--address", &address])?;
    let call = |role: Role, args: &[&OsStr]| -> anyhow::Result<()> {
        let mut command = Command::new(LAB);
        command.arg(role.arg()).args(args).env("LD_PRELOAD", &library).stdin(Stdio::null());
        let ended = command.output()?;
        ensure!(ended.status.success(), "{args:?}: {}", String::from_utf8_lossy(&ended.stderr));
        Ok(())
    };
    let (dir, tls) = (cluster.agent_dir("one"), cluster.coordinator_dir().join("tls"));
    call(Role::Agent, &["join".as_ref(), "--token".as_ref(), token.as_ref(), "--dir".as_ref(), dir.as_os_str()])?;
    let [cert, key, ca] = ["operator.crt", "operator.key", "ca.crt"].map(|name| tls.join(name));
    call(
        Role::Coordinator,
        &[
            "status".as_ref(),
            "--connect".as_ref(),
            address.as_ref(),
            "--cert".as_ref(),
            cert.as_os_str(),
            "--key".as_ref(),
            key.as_os_str(),
            "--ca".as_ref(),
            ca.as_os_str(),
        ],
    )?;
    let library = library.to_str().context("a path in UTF-8")?;
    cluster.start_ledger_agent("one", &[("LD_PRELOAD", library)])?;
    cluster.wait_for_updates(2)?;
    cluster.park_agents()
}

/// `init --listen` with one address, of either family: agents on this machine join with the token as it is.
#[test]
fn a_coordinator_on_one_address_hands_out_tokens_that_lead_to_it() -> anyhow::Result<()> {
    for host in ["[::1]", "127.0.0.2"] {
        let Ok(socket) = UdpSocket::bind(format!("{host}:0")) else {
            eprintln!("not checked: there is no {host} here");
            continue;
        };
        let listen = socket.local_addr()?.to_string();
        drop(socket);
        let mut cluster = Cluster::new(Path::new(LAB), &Settings::default().run_toml())?;
        let before = format!("127.0.0.1:{}", cluster.port());
        cluster.edit(&before, &listen)?;
        cluster.start_coordinator()?;
        cluster.join("one")?;
        cluster.start_ledger_agent("one", &[])?;
        cluster.wait_for_updates(2)?;
        cluster.park_agents()?;
        assert_eq!(cluster.park_coordinator()?, 0);
    }
    Ok(())
}
