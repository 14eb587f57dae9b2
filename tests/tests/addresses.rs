//! Where a coordinator is found: tokens carry what is bound, and a name with several addresses is no obstacle.

use std::ffi::OsStr;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, Stdio};

use anabranch_tests::chaos::link::Conditions;
use anabranch_tests::chaos::proxy::{Proxy, Shape};
use anabranch_tests::ledger::Settings;
use anabranch_tests::process::{Cluster, DIGITS, Role, compile, example};
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

/// An agent goes on over its second address when the first one falls silent, and over others that it is given later.
#[test]
fn an_agent_with_several_addresses_goes_on_over_the_one_that_answers() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), &DIGITS.replace("versions = 40", "versions = 1000000"))?;
    cluster.start_coordinator()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let proxy = Proxy::start(runtime.handle(), cluster.port(), 1, Shape::default())?;
    let (first, second) = (format!("127.0.0.1:{}", proxy.port()), format!("127.0.0.1:{}", cluster.port()));
    let token = cluster.token(&["--name", "one", "--address", &first, "--address", &second])?;
    assert!(token.starts_with("anb2-"), "{token}");
    cluster.join_with(&token, "one")?.code(0)?;
    let data = example("data/digits-train.csv.gz");
    let args = ["--shard".as_ref(), data.as_os_str(), "--threads=1".as_ref(), "--min-round=50".as_ref()];
    cluster.start_agent(Role::Agent, "one", &args, &[])?;
    cluster.wait_for_updates(2)?;
    let status = cluster.agent_status("one")?;
    assert_eq!((&status.address, &status.addresses), (&first, &vec![first.clone(), second.clone()]));

    let cut = Conditions { cut: true, ..Conditions::default() };
    proxy.shape(Shape { up: cut.clone(), down: cut, rebind_ms: 0 });
    let before = cluster.status()?.updates_accepted;
    // One may have been on its way.
    cluster.wait_for_updates(before + 3)?;
    assert_eq!(cluster.agent_status("one")?.address, second);

    // It begins with the one that worked last.
    cluster.park_agents()?;
    assert_eq!(cluster.agent_status("one")?.address, second);
    let before = cluster.status()?.updates_accepted;
    cluster.start_agent(Role::Agent, "one", &args, &[])?;
    cluster.wait_for_updates(before + 2)?;
    cluster.park_agents()?;
    let dir = cluster.agent_dir("one");
    let third = format!("localhost:{}", cluster.port());
    let set = |addresses: &[&str]| {
        let own = ["set-coordinators".as_ref(), "--dir".as_ref(), dir.as_os_str()];
        let args: Vec<&OsStr> = own.into_iter().chain(addresses.iter().map(OsStr::new)).collect();
        cluster.call(Role::Agent, &args)
    };
    set(&["nowhere"])?.code(2)?.says(&["is not a host and a port"])?;
    set(&[&first, &third])?.code(0)?;
    let before = cluster.status()?.updates_accepted;
    cluster.start_agent(Role::Agent, "one", &args, &[])?;
    cluster.wait_for_updates(before + 2)?;
    let status = cluster.agent_status("one")?;
    assert_eq!((&status.address, &status.addresses), (&third, &vec![first, third.clone()]));
    cluster.park_agents()?;
    drop(proxy);
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    Ok(())
}
