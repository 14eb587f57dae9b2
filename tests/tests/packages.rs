//! Guards what people install: units, containers, packages and the chart call the programs as the command lines are, and
//! the quick reference has every verb.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anabranch_tests::process::python_for_packages;
use clap::{Command, CommandFactory as _, Parser as _};
use serde_json::Value;

/// The two programs.
const DAEMONS: [&str; 2] = ["anabranch-coordinator", "anabranch-agent"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace is there")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("cannot read {path}: {error}"))
}

fn command(daemon: &str) -> Command {
    match daemon {
        "anabranch-coordinator" => anabranch_coordinator::cli::Cli::command(),
        "anabranch-agent" => anabranch_agent::cli::Cli::command(),
        other => panic!("no program {other}"),
    }
}

/// Refuses arguments that the program would refuse.
fn check_arguments(daemon: &str, arguments: &[&str]) {
    let line = [&[daemon], arguments].concat();
    let result = match daemon {
        "anabranch-coordinator" => anabranch_coordinator::cli::Cli::try_parse_from(&line).map(drop),
        _ => anabranch_agent::cli::Cli::try_parse_from(&line).map(drop),
    };
    if let Err(error) = result {
        panic!("{}: {error}", line.join(" "));
    }
}

/// Verbs that the help shows, without those that only group others.
fn verbs(command: &Command, path: &str, found: &mut BTreeSet<String>) {
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        let path = format!("{path} {}", verb.get_name()).trim_start().to_owned();
        if verb.has_subcommands() {
            verbs(verb, &path, found);
        } else {
            found.insert(path);
        }
    }
}

/// Cells of the table rows of a text, the rows of headings and lines left out.
fn rows(text: &str) -> Vec<Vec<String>> {
    let rows = text.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix('|'));
    rows.map(|row| row.split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// Text from one heading to the next of the same depth.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let (_, rest) = text.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no heading {heading}"));
    let depth = heading.split(' ').next().expect("a heading has hashes");
    rest.split(&format!("\n{depth} ")).next().expect("a first part")
}

#[test]
fn the_quick_reference_and_the_manual_have_every_verb() {
    let reference = read("docs/reference.md");
    for daemon in DAEMONS {
        let mut expected = BTreeSet::new();
        verbs(&command(daemon), "", &mut expected);
        let is_word = |word: &&str| word.starts_with(|first: char| first.is_ascii_lowercase());
        let told: BTreeSet<String> = rows(section(&reference, &format!("## {daemon}")))
            .iter()
            .filter_map(|row| row[0].strip_prefix('`')?.strip_suffix('`'))
            .map(|call| call.split(' ').take_while(is_word).collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(told, expected, "docs/reference.md, {daemon}");
        let pages: BTreeSet<String> =
            anabranch_io::manual::pages(command(daemon)).into_iter().map(|p| p.file).collect();
        for verb in &expected {
            let page = format!("{daemon}-{}.1", verb.replace(' ', "-"));
            assert!(pages.contains(&page), "no manual page {page}");
        }
    }
}

/// Exit codes are told in two places, and the units rest on one column of them.
#[test]
fn exit_codes_are_the_same_in_both_documents_and_in_the_units() {
    let operating = read("docs/operating.md");
    let codes = rows(section(&operating, "### Exit codes"));
    assert!(codes.len() > 10, "{codes:?}");
    let reference = read("docs/reference.md");
    assert_eq!(rows(section(&reference, "## Exit codes")), codes);
    // Each but success has a remedy.
    let first = |rows: &[Vec<String>]| rows.iter().map(|row| row[0].clone()).collect::<Vec<_>>();
    assert_eq!(first(&rows(section(&operating, "### After an exit code")))[1..], first(&codes)[2..]);
    let hopeless: Vec<&str> = codes.iter().filter(|row| row[2] == "no").map(|row| row[0].as_str()).collect();
    for daemon in DAEMONS {
        let unit = unit(daemon);
        assert_eq!(unit["Service"]["RestartPreventExitStatus"], [hopeless.join(" ")], "{daemon}");
    }
    let packaging = read("docs/packaging.md");
    let (last, first) = hopeless.split_last().expect("codes");
    let told = format!("{} and {last}", first.join(", "));
    assert!(packaging.contains(&told), "docs/packaging.md does not name {told}");
}

/// A unit's sections, with all values of each key.
fn unit(daemon: &str) -> BTreeMap<String, BTreeMap<String, Vec<String>>> {
    let mut sections: BTreeMap<String, BTreeMap<String, Vec<String>>> = BTreeMap::new();
    let mut section = String::new();
    for line in read(&format!("ops/systemd/{daemon}.service")).lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            name.clone_into(&mut section);
        } else if let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
            let keys = sections.entry(section.clone()).or_default();
            keys.entry(key.to_owned()).or_default().push(value.to_owned());
        }
    }
    sections
}

#[test]
fn units_call_the_programs_as_they_are() {
    for (daemon, made) in DAEMONS.into_iter().zip(["run.toml", "agent.toml"]) {
        let unit = unit(daemon);
        let service = &unit["Service"];
        let state = format!("/var/lib/{daemon}");
        assert_eq!(unit["Unit"]["ConditionPathExists"], [format!("{state}/{made}")]);
        assert_eq!(
            (&service["User"], &service["StateDirectory"]),
            (&vec![daemon.to_owned()], &vec![daemon.to_owned()])
        );
        assert_eq!(service["EnvironmentFile"], [format!("-/etc/default/{daemon}")]);
        let sysusers = read(&format!("ops/sysusers.d/{daemon}.conf"));
        assert!(sysusers.contains(&format!("\nu {daemon} - ")) && sysusers.contains(&state), "{sysusers}");
        // The options that the environment file has as an example.
        let variable = format!("{}_OPTIONS", daemon.replace('-', "_").to_uppercase());
        let defaults = read(&format!("ops/default/{daemon}"));
        let options = defaults.lines().find_map(|line| line.strip_prefix(&format!("#{variable}=\"")));
        let options = options.and_then(|line| line.strip_suffix('"')).expect("an example of options");
        let [start] = service["ExecStart"].as_slice() else { panic!("one process") };
        let line = start.replace(&format!("${variable}"), options);
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!(words[0], format!("/usr/bin/{daemon}"));
        assert!(words.windows(2).any(|pair| pair == ["--dir", &state]), "{line}");
        check_arguments(daemon, &words[1..]);
    }
}

#[test]
fn every_file_of_a_debian_package_is_there() {
    for (folder, daemon) in ["coordinator", "agent"].into_iter().zip(DAEMONS) {
        let manifest: toml::Table = read(&format!("{folder}/Cargo.toml")).parse().expect("a manifest");
        let deb = &manifest["package"]["metadata"]["deb"];
        let assets = deb["assets"].as_array().expect("assets");
        let mut made = 0;
        for asset in assets {
            let source = asset[0].as_str().expect("a path");
            if source.starts_with("../target/packages/") || source == format!("target/release/{daemon}") {
                made += 1;
            } else {
                assert!(root().join(folder).join(source).is_file(), "{folder}: {source}");
            }
        }
        assert_eq!(made, 5, "{daemon}: the program, manual pages and completions of three shells");
        let scripts = deb["maintainer-scripts"].as_str().expect("a folder");
        for script in ["postinst", "prerm", "postrm"] {
            let text = read(&format!("{folder}/{scripts}/{script}"));
            assert!(text.starts_with("#!/bin/sh\n") && text.contains(daemon), "{script} of {daemon}");
        }
    }
}

#[test]
fn images_start_the_programs_that_they_hold() {
    for (name, daemon) in ["coordinator", "agent"].into_iter().zip(DAEMONS) {
        let text = read(&format!("ops/container/{name}.Containerfile"));
        let last = text.rsplit("\nFROM ").next().expect("a stage");
        let value = |key: &str| last.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        assert_eq!(value("ENTRYPOINT"), Some(format!("[\"/usr/bin/{daemon}\"]").as_str()));
        let verb: Vec<String> = serde_json::from_str(value("CMD").expect("a verb")).expect("a list");
        let (variable, dir) = value("ENV").and_then(|text| text.split_once('=')).expect("the directory");
        assert_eq!(dir, format!("/data/{name}"));
        let mut command = command(daemon);
        let run = command.find_subcommand_mut(&verb[0]).expect("a verb");
        let named = run.get_arguments().find(|argument| argument.get_id() == "dir").and_then(clap::Arg::get_env);
        assert_eq!(named, Some(variable.as_ref()), "the variable that stands for --dir");
        if name == "coordinator" {
            let port = anabranch_coordinator::config::DEFAULT_PORT;
            assert!(value("EXPOSE").is_some_and(|ports| ports.contains(&format!("{port}/udp"))));
        }
    }
}

#[test]
fn everything_has_one_version() {
    let version = env!("CARGO_PKG_VERSION");
    let chart = read("ops/helm/anabranch/Chart.yaml");
    assert!(
        chart.contains(&format!("\nversion: {version}\n")) && chart.contains(&format!("\nappVersion: \"{version}\"\n"))
    );
    let python: toml::Table = read("agent/python/pyproject.toml").parse().expect("a manifest");
    assert_eq!(python["project"]["version"].as_str(), Some(version));
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no {pointer} in {value:#}"))
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Checks one container of the chart: its arguments, and that probes and ports are those of `--metrics`.
fn check_container(container: &Value) {
    let daemon = text(container, "/image").split(':').next().expect("a name");
    let arguments: Vec<&str> = list(container, "/args").iter().filter_map(Value::as_str).collect();
    if arguments[0] == "join" {
        assert_eq!(text(container, "/env/0/name"), "ANABRANCH_TOKEN");
    }
    check_arguments(daemon, &arguments);
    let after = |option: &str| arguments.iter().skip_while(|word| **word != option).nth(1).copied();
    assert_eq!(after("--dir"), Some(format!("/data/{}", daemon.trim_start_matches("anabranch-")).as_str()));
    let Some(metrics) = after("--metrics") else { return };
    let port = list(container, "/ports").iter().find(|port| text(port, "/name") == "metrics").expect("a port");
    assert!(metrics.ends_with(&format!(":{}", port["containerPort"])), "{metrics}, {port}");
    if daemon == "anabranch-coordinator" {
        for (probe, path) in
            [("startupProbe", "/healthz"), ("livenessProbe", "/healthz/live"), ("readinessProbe", "/healthz")]
        {
            let get = &container[probe]["httpGet"];
            assert_eq!((text(get, "/path"), text(get, "/port")), (path, "metrics"), "{probe}");
        }
    }
}

/// The chart as Helm renders it: with the linter's and Kubernetes' own opinion before (ops/helm/check).
#[test]
fn the_chart_calls_the_programs_as_they_are() {
    let Some(python) = python_for_packages() else { return };
    let script = root().join("ops/helm/check");
    let output = std::process::Command::new(python).arg(script).arg("--json").output().expect("Python starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rendered: BTreeMap<String, Vec<Value>> = serde_json::from_slice(&output.stdout).expect("rendered objects");
    let mut containers = 0;
    for object in rendered.values().flatten().filter(|object| text(object, "/kind") == "StatefulSet") {
        let pod = &object["spec"]["template"]["spec"];
        assert_eq!(object["spec"]["replicas"], 1, "a journal and an identity have one process");
        for container in list(pod, "/initContainers").iter().chain(list(pod, "/containers")) {
            check_container(container);
            containers += 1;
        }
    }
    assert_eq!(containers, 14, "two in each pod: four coordinators and three agents");
}
