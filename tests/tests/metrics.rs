//! Figures for Prometheus, over real HTTP: an agent's, and the coordinator's.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anabranch_common::journal::Aggregate;
use anabranch_common::status::StatusReport;
use anabranch_tests::chaos::shim::{Setting, Shim};
use anabranch_tests::clock::poll;
use anabranch_tests::ledger::Settings;
use anabranch_tests::process::{Cluster, DIGITS, PATIENCE, Role, example, http_get, python_has, series};
use anyhow::Context as _;

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");

/// What a scrape gets.
fn scrape(address: &str) -> anyhow::Result<String> {
    http_get(address, "/metrics")
}

/// The value of a series.
fn value(text: &str, name: &str) -> anyhow::Result<f64> {
    series(text, name).with_context(|| format!("no {name} in\n{text}"))
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

/// The figures and the status of a run that stands still, once the figures are those of the status.
fn at_rest(cluster: &Cluster, address: &str) -> anyhow::Result<(String, StatusReport)> {
    let mut last = String::new();
    let found = poll(PATIENCE, || {
        // It may be starting. A figure is as old as the latest snapshot.
        let (Ok(text), Ok(status)) = (scrape(address), cluster.status()) else { return Ok(None) };
        if status.leases_outstanding > 0 || !status.serving {
            return Ok(None);
        }
        last = same_as_status(&text, &status).err().map(|error| error.to_string()).unwrap_or_default();
        Ok(last.is_empty().then_some((text, status)))
    })?;
    found.with_context(|| format!("figures and status differ: {last}\n{}", cluster.logs()))
}

/// A series of the run `ledger`, with more labels.
fn run_series(name: &str, more: &str) -> String {
    format!("{name}{{run=\"ledger\"{more}}}")
}

/// Has Prometheus's own checker read a scrape, where it is installed.
fn check_with_promtool(text: &str) -> anyhow::Result<()> {
    let (_, body) = text.split_once("\r\n\r\n").context("no body")?;
    let mut check = Command::new("promtool");
    check.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut check = match check.spawn() {
        Ok(check) => check,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "CI needs promtool: {error}");
            eprintln!("not checked: there is no promtool here");
            return Ok(());
        }
    };
    check.stdin.take().context("a pipe")?.write_all(body.as_bytes())?;
    let output = check.wait_with_output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Holds the figures of a run at rest against its status.
fn same_as_status(text: &str, status: &StatusReport) -> anyhow::Result<()> {
    let expect = |series: &str, expected: u64| -> anyhow::Result<()> {
        let found = value(text, series)?;
        anyhow::ensure!(found == expected as f64, "{series} is {found}, not {expected}, in\n{text}");
        Ok(())
    };
    let of_run = |name: &str, expected| expect(&run_series(name, ""), expected);
    of_run("anabranch_updates_accepted_total", status.updates_accepted)?;
    of_run("anabranch_run_version", status.version.0)?;
    of_run("anabranch_run_journal_records", status.position.0)?;
    of_run("anabranch_uplink_bytes_total", status.uplink_bytes)?;
    of_run("anabranch_uplink_raw_bytes_total", status.raw_f32_uplink_bytes)?;
    of_run("anabranch_run_checkpoint_version", status.checkpoint_version.context("a checkpoint")?.0)?;
    of_run("anabranch_run_leases", 0)?;
    for (reason, count) in &status.updates_refused {
        expect(&run_series("anabranch_updates_refused_total", &format!(",reason=\"{reason}\"")), *count)?;
    }
    expect(&run_series("anabranch_downlink_bytes_total", ",purpose=\"train\""), status.downlink_bytes)?;
    for agent in &status.agents {
        let labels = format!(",agent=\"{}\",agent_id=\"{}\"", agent.name, agent.agent);
        let of_agent = |name: &str, expected| expect(&run_series(name, &labels), expected);
        of_agent("anabranch_run_agent_updates_accepted_total", agent.updates_accepted)?;
        of_agent("anabranch_run_agent_uplink_bytes_total", agent.uplink_bytes)?;
    }
    let uploads = status.uploads.context("it serves")?;
    of_run("anabranch_upload_chunks_received_total", uploads.chunks_received)
}

#[test]
fn a_coordinators_figures_are_those_of_its_status_also_after_a_kill() -> anyhow::Result<()> {
    let settings = Settings { checkpoint_every: 7, ..Settings::default() };
    let mut cluster = Cluster::new(Path::new(LAB), &settings.run_toml())?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    cluster.serve_with(&["--metrics", &address]);
    cluster.start_coordinator()?;
    for name in ["one", "two"] {
        cluster.join(name)?;
        cluster.start_ledger_agent(name, &[])?;
    }
    cluster.wait_for_updates(30)?;
    assert!(http_get(&address, "/healthz")?.starts_with("HTTP/1.1 200 OK"));
    cluster.coordinate(&["pause"], &[])?.code(0)?;
    let (text, status) = at_rest(&cluster, &address)?;
    check_with_promtool(&text)?;
    assert_eq!(value(&text, &run_series("anabranch_run_state", ",state=\"paused\""))?, 1.0, "{text}");
    assert_eq!(value(&text, "anabranch_members")?, 2.0);
    // What happened in this process, which is all of the run so far.
    let accepted = status.updates_accepted as f64;
    assert_eq!(value(&text, &run_series("anabranch_staleness_versions_count", ""))?, accepted, "{text}");
    let fresh: u64 = status.staleness_histogram[..=4].iter().sum();
    assert_eq!(value(&text, &run_series("anabranch_staleness_versions_bucket", ",le=\"4\""))?, fresh as f64, "{text}");
    let sum = |name: &str| -> f64 {
        let values = text.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit_once(' '));
        values.filter_map(|(_, value)| value.parse::<f64>().ok()).sum()
    };
    assert_eq!(sum("anabranch_uplink_form_bytes_total{"), status.uplink_bytes as f64, "{text}");
    let downlink = status.downlink_bytes + status.evaluation_downlink_bytes;
    assert_eq!(sum("anabranch_downlink_form_bytes_total{"), downlink as f64, "{text}");
    assert!(value(&text, "anabranch_journal_sync_seconds_count")? > 0.0, "{text}");
    assert!(value(&text, "anabranch_checkpoint_seconds_count")? > 0.0, "{text}");

    cluster.coordinator()?.kill()?;
    cluster.start_coordinator()?;
    let (_, status) = at_rest(&cluster, &address)?;
    assert_eq!(status.updates_accepted as f64, accepted, "a paused run stays paused");
    cluster.coordinate(&["resume"], &[])?.code(0)?;
    cluster.wait_for_updates(status.updates_accepted + 20)?;
    cluster.coordinate(&["pause"], &[])?.code(0)?;
    let (text, status) = at_rest(&cluster, &address)?;
    let since = status.updates_accepted as f64 - accepted;
    assert_eq!(value(&text, &run_series("anabranch_staleness_versions_count", ""))?, since, "{text}");
    assert_eq!(cluster.park_coordinator()?, 0, "{}", cluster.logs());

    let _taken = TcpListener::bind(&address)?;
    let code = cluster.spawn_coordinator(&[])?.wait(PATIENCE)?;
    let log = cluster.coordinator()?.log()?;
    assert_eq!(code, 13, "{log}");
    assert!(log.contains(&format!("figures cannot be served at {address}")) && log.contains("that is free"), "{log}");
    Ok(())
}

/// Every scalar of a folder of event files as `tensorboard` reads it: by tag, steps and values.
const READ_EVENTS: &str = r#"
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0})
events.Reload()
scalars = {tag: [[event.step, event.value] for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
print(json.dumps(scalars))
"#;

type Scalars = BTreeMap<String, Vec<(u64, f64)>>;

#[test]
fn tensorboard_shows_the_curve_of_the_status_also_after_a_kill() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), &DIGITS.replace("versions = 40", "versions = 1000000"))?;
    let folder = cluster.path().join("curves");
    cluster.serve_with(&["--tensorboard", &folder.display().to_string()]);
    cluster.start_coordinator()?;
    let (train, test) = (example("data/digits-train.csv.gz"), example("data/digits-test.csv.gz"));
    let train: [&OsStr; 2] = ["--shard".as_ref(), train.as_os_str()];
    let judge: [&OsStr; 2] = ["--eval-shard".as_ref(), test.as_os_str()];
    for (name, args) in [("one", train), ("judge", judge)] {
        cluster.join(name)?;
        cluster.start_agent(Role::Agent, name, &args, &[])?;
    }
    let killed = cluster.wait_until("a measurement", PATIENCE, |status| !status.aggregates.is_empty())?;
    cluster.coordinator()?.kill()?;
    cluster.start_coordinator()?;
    let newest = |status: &StatusReport| status.aggregates.last().map(|timed| timed.aggregate.version);
    cluster.wait_until("a measurement after the kill", PATIENCE, |status| newest(status) > newest(&killed))?;
    // Agents have none before their first update: it is in a later sample.
    let run = folder.join("digits");
    let shows = |path: &Path| std::fs::read(path).is_ok_and(|bytes| bytes.windows(9).any(|part| part == b"staleness"));
    let files = || -> anyhow::Result<Vec<PathBuf>> {
        let paths: std::io::Result<Vec<_>> = std::fs::read_dir(&run)?.map(|entry| Ok(entry?.path())).collect();
        let is_of_events =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().contains(".tfevents."));
        Ok(paths?.into_iter().filter(is_of_events).collect())
    };
    let shown = poll(PATIENCE, || Ok(files()?.iter().any(|path| shows(path)).then_some(())))?;
    shown.with_context(|| format!("no staleness\n{}", cluster.logs()))?;
    cluster.coordinate(&["stop"], &[])?.code(0)?;
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    let status = cluster.status()?;
    assert_eq!(files()?.len(), 2, "one for each process");
    if !python_has("tensorboard") {
        return Ok(());
    }
    let read = Command::new("python3").args(["-c", READ_EVENTS]).arg(&run).output()?;
    anyhow::ensure!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let scalars: Scalars = serde_json::from_slice(&read.stdout)?;
    for (tag, value) in
        [("accuracy", (|aggregate| aggregate.accuracy) as fn(&Aggregate) -> f64), ("loss", |aggregate| aggregate.loss)]
    {
        // Event files have single precision.
        let single = |value: f64| -> anyhow::Result<f32> { Ok(format!("{value}").parse()?) };
        let aggregates = status.aggregates.iter().map(|timed| &timed.aggregate);
        let expected = aggregates.map(|aggregate| Ok((aggregate.version.0, single(value(aggregate))?)));
        let expected: Vec<_> = expected.collect::<anyhow::Result<_>>()?;
        let found = scalars[tag].iter().map(|(step, value)| Ok((*step, single(*value)?)));
        let found: Vec<_> = found.collect::<anyhow::Result<_>>()?;
        assert_eq!(found, expected, "{tag}");
    }
    let versions = &scalars["version"];
    assert!(versions.len() >= 2 && versions.iter().all(|(step, value)| *step as f64 == *value), "{versions:?}");
    assert!(scalars["staleness"].iter().all(|(_, value)| *value >= 0.0), "{scalars:?}");
    Ok(())
}

/// Waits until `/healthz` answers so. Returns the answer.
fn health(cluster: &Cluster, address: &str, status: &str, says: &str) -> anyhow::Result<String> {
    let mut last = String::new();
    let found = poll(PATIENCE, || {
        // It may be starting.
        last = http_get(address, "/healthz").unwrap_or_else(|error| error.to_string());
        Ok((last.starts_with(&format!("HTTP/1.1 {status} ")) && last.contains(says)).then(|| last.clone()))
    })?;
    found.with_context(|| format!("not {status} {says:?} but {last:?}\n{}", cluster.logs()))
}

#[test]
fn health_tells_of_a_journal_that_fails_and_of_a_process_that_shuts_down() -> anyhow::Result<()> {
    let settings = Settings::default();
    let mut cluster = Cluster::new(Path::new(LAB), &settings.run_toml())?;
    let Some(shim) = Shim::new(cluster.path())? else {
        assert!(std::env::var_os("CI").is_none(), "CI needs a C compiler");
        eprintln!("not checked: there is no C compiler here");
        return Ok(());
    };
    let config = cluster.path().join("wards.toml");
    std::fs::write(&config, settings.run_toml())?;
    cluster.coordinate(&["runs", "create"], &["wards", "--config", &config.display().to_string()])?.code(0)?;
    // The disk of one run alone.
    let disk = shim.switches("coordinator", &cluster.coordinator_dir().join("runs/wards"))?;
    let environment = disk.environment();
    let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    cluster.serve_with(&["--metrics", &address]);
    // A token for a run is made once that run is open.
    cluster.spawn_coordinator(&environment)?.wait_for_log(" serving a run", PATIENCE)?;
    let token = cluster.token(&["--name", "one", "--runs", "wards"])?;
    cluster.join_with(&token, "one")?.code(0)?;
    cluster.start_ledger_agent("one", &[])?;
    health(&cluster, &address, "200", "ok")?;
    let merged = |text: &str| series(text, "anabranch_updates_accepted_total{run=\"wards\"}");
    let works = || Ok(scrape(&address).ok().filter(|text| merged(text) > Some(5.0)));
    poll(PATIENCE, works)?.with_context(|| cluster.logs())?;

    disk.set(Setting { error: true, ..Setting::default() })?;
    let text = health(&cluster, &address, "503", "run wards has failed: ")?;
    assert_eq!(text.split_once("\r\n\r\n").map(|(_, body)| body.lines().count()), Some(1), "{text}");
    let text = scrape(&address)?;
    for (labels, runs) in [("run=\"wards\",state=\"failed\"", 1.0), ("run=\"ledger\",state=\"pending\"", 1.0)] {
        assert_eq!(value(&text, &format!("anabranch_run_state{{{labels}}}"))?, runs, "{text}");
    }
    assert_eq!(cluster.park_coordinator()?, 6, "{}", cluster.logs());

    disk.set(Setting::default())?;
    cluster.spawn_coordinator(&environment)?.wait_for_log(" serving listen=", PATIENCE)?;
    poll(PATIENCE, works)?.with_context(|| cluster.logs())?;
    health(&cluster, &address, "200", "ok")?;
    // What is being written is waited for.
    disk.set(Setting { sync_ms: 5_000, ..Setting::default() })?;
    let undurable = "anabranch_queue_entries{run=\"wards\",queue=\"undurable_records\"}";
    let writes = || Ok(scrape(&address).ok().filter(|text| series(text, undurable) > Some(0.0)));
    poll(PATIENCE, writes)?.with_context(|| cluster.logs())?;
    cluster.coordinator()?.signal(nix::sys::signal::Signal::SIGTERM)?;
    health(&cluster, &address, "503", "shutting down")?;
    disk.set(Setting::default())?;
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    Ok(())
}
