//! An agent's figures for Prometheus, over real HTTP.

use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use anabranch_tests::clock::poll;
use anabranch_tests::process::{Cluster, DIGITS, PATIENCE, Role, example};
use anyhow::Context as _;

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");

/// What a scrape gets.
fn scrape(address: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// The value of a figure.
fn value(text: &str, name: &str) -> anyhow::Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.with_context(|| format!("no {name} in\n{text}"))?.trim().parse()?)
}

#[test]
fn an_agents_figures_are_served_and_a_taken_address_is_told() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), &DIGITS.replace("versions = 40", "versions = 1000000"))?;
    cluster.start_coordinator()?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let data = example("data/digits-train.csv.gz");
    let args: [&OsStr; 4] = ["--metrics".as_ref(), address.as_ref(), "--shard".as_ref(), data.as_os_str()];
    for name in ["one", "two"] {
        cluster.join(name)?;
    }
    cluster.start_agent(Role::Agent, "one", &args, &[])?;
    cluster.wait_for_updates(3)?;
    // What is served is as old as the latest event.
    let text = poll(PATIENCE, || {
        let text = scrape(&address)?;
        let busy = value(&text, "anabranch_agent_uplink_bytes_total")? > 0.0;
        Ok((busy && value(&text, "anabranch_agent_model_version")? > 0.0).then_some(text))
    })?;
    let text = text.context("no traffic")?;
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    assert!((value(&text, "anabranch_agent_connected")? - 1.0).abs() < f64::EPSILON, "{text}");
    let ratio = value(&text, "anabranch_agent_device_waiting_ratio")?;
    assert!((0.0..=1.0).contains(&ratio), "{text}");
    for name in [
        "device_busy_seconds_total",
        "device_waiting_seconds_total",
        "downlink_bytes_total",
        "encoded_by_trainer_total",
        "examples_per_second",
        "micro_batch_examples",
        "outbox_updates",
        "training",
    ] {
        let name = format!("anabranch_agent_{name}");
        assert!(value(&text, &name)? >= 0.0 && text.contains(&format!("# HELP {name} ")), "{text}");
    }

    let taken = cluster.start_agent(Role::Agent, "two", &args, &[])?;
    assert_eq!(taken.wait(PATIENCE)?, 2);
    let log = taken.log()?;
    assert!(log.contains(&format!("metrics cannot be served at {address}")) && log.contains("that is free"), "{log}");
    cluster.agent("one")?.signal(nix::sys::signal::Signal::SIGTERM)?;
    assert_eq!(cluster.agent("one")?.wait(PATIENCE)?, 0);
    Ok(())
}
