//! Guards `ops/` and docs/operating.md: what they say of figures is what a coordinator serves.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anabranch_coordinator::web::{Kind, names};
use serde_json::Value;

const ALERTS: &str = "ops/prometheus/alerts.yml";
const DASHBOARD: &str = "ops/grafana/anabranch.json";
const OPERATING: &str = "docs/operating.md";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every name of a series that can be asked for, with the kind of its family.
fn served() -> BTreeMap<String, Kind> {
    let of_name = |name: &str, kind| match kind {
        Kind::Histogram => ["_bucket", "_sum", "_count"].map(|end| (format!("{name}{end}"), kind)).to_vec(),
        Kind::Counter | Kind::Gauge => vec![(name.to_owned(), kind)],
    };
    names().flat_map(|name| of_name(name.name, name.kind)).collect()
}

/// The names of series in a text.
fn asked(text: &str) -> BTreeSet<&str> {
    let is_word = |char: char| char.is_ascii_alphanumeric() || char == '_';
    let words = text.split(|char: char| !is_word(char));
    words.filter(|word| word.starts_with("anabranch_")).collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&read(DASHBOARD)).expect("JSON")
}

/// Every expression of the dashboard.
fn expressions() -> Vec<String> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    targets.map(|target| target["expr"].as_str().expect("an expression").to_owned()).collect()
}

#[test]
fn alerts_and_dashboard_ask_for_series_that_are_served() {
    let served = served();
    for path in [ALERTS, "ops/prometheus/alerts_test.yml", DASHBOARD] {
        let text = read(path);
        let asked = asked(&text);
        assert!(asked.len() > 10, "{path} was not read: {asked:?}");
        let unknown: Vec<_> = asked.iter().filter(|name| !served.contains_key(**name)).collect();
        assert!(unknown.is_empty(), "{path} asks for {unknown:?}");
    }
}

/// The growth of a gauge by `rate`, or the value of a counter since who knows when, would be drawn all the same.
#[test]
fn counters_are_drawn_as_rates_and_gauges_are_not() {
    let served = served();
    let alerts = read(ALERTS);
    for expression in expressions().iter().map(String::as_str).chain(alerts.split("- alert:")) {
        for name in asked(expression) {
            for (at, _) in expression.match_indices(name) {
                let before = &expression[..at];
                let is_rate = ["rate(", "increase("].iter().any(|call| before.ends_with(call));
                let is_ratio = name.contains("raw_bytes") || (expression.contains("raw_bytes") && !is_rate);
                let grows = served[name] != Kind::Gauge;
                assert!(grows == is_rate || is_ratio, "{name} in {expression}");
            }
        }
    }
}

#[test]
fn every_alert_has_its_section_and_every_section_its_alert() {
    let (alerts, operating) = (read(ALERTS), read(OPERATING));
    let alerts: Vec<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let sections: Vec<&str> = operating.lines().filter_map(|line| line.strip_prefix("#### ")).collect();
    let sections: Vec<&str> = sections.into_iter().filter(|title| title.starts_with("Anabranch")).collect();
    assert!(alerts.len() > 10);
    assert_eq!(alerts, sections);
    let text = read(ALERTS);
    for alert in alerts {
        assert!(text.contains(&format!("runbook: docs/operating.md, \"{alert}\"")), "{alert}");
    }
}

#[test]
fn the_tables_of_figures_have_every_name_with_its_kind_and_no_other() {
    let text = read(OPERATING);
    let begin = text.find("## Metrics of the coordinator").expect("the section");
    let section = &text[begin..];
    let section = &section[..section.find("```yaml").expect("the end of the tables")];
    let mut documented = BTreeMap::new();
    for line in section.lines().filter(|line| line.starts_with("| `anabranch_")) {
        let mut cells = line.split(" | ");
        let (cell, kind) = (cells.next().expect("names"), cells.next().expect("a kind"));
        documented.extend(asked(cell).into_iter().map(|name| (name.to_owned(), kind.to_owned())));
    }
    let kind = |kind| match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    let served: BTreeMap<String, String> =
        names().map(|name| (name.name.to_owned(), kind(name.kind).to_owned())).collect();
    assert_eq!(documented, served);
}

#[test]
fn the_panels_of_the_dashboard_lie_beside_each_other() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().expect("panels");
    let number = |panel: &Value, key: &str| panel["gridPos"][key].as_u64().expect("a number");
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64()), "{panel}");
        let (x, y) = (number(panel, "x"), number(panel, "y"));
        assert!(x + number(panel, "w") <= 24, "{panel}");
        for column in x..x + number(panel, "w") {
            for row in y..y + number(panel, "h") {
                assert!(taken.insert((column, row)), "{panel}");
            }
        }
    }
}

/// Whether Prometheus's own checker is here. Where it is not, that is said.
fn has_promtool() -> bool {
    let has = Command::new("promtool").arg("--version").output().is_ok_and(|output| output.status.success());
    if !has {
        assert!(std::env::var_os("CI").is_none(), "CI needs promtool");
        eprintln!("not checked: there is no promtool here");
    }
    has
}

fn promtool(args: &[&str]) {
    let output = Command::new("promtool").args(args).current_dir(root()).output().expect("it was there before");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "promtool {args:?}: {}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn prometheus_takes_the_alerts_and_each_fires_on_what_it_is_for() {
    if has_promtool() {
        promtool(&["check", "rules", ALERTS]);
        promtool(&["test", "rules", "ops/prometheus/alerts_test.yml"]);
    }
    let (alerts, test) = (read(ALERTS), read("ops/prometheus/alerts_test.yml"));
    for alert in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        let fires = format!("alertname: {alert}\n        exp_alerts:");
        assert!(test.contains(&fires), "no test has {alert} fire");
    }
}

#[test]
fn prometheus_takes_the_expressions_of_the_dashboard() {
    if !has_promtool() {
        return;
    }
    let rules: Vec<Value> =
        expressions().iter().map(|expr| serde_json::json!({ "record": "dashboard:panel", "expr": expr })).collect();
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("panels.yml");
    // JSON is YAML.
    let text = serde_json::json!({ "groups": [{ "name": "dashboard", "rules": rules }] }).to_string();
    std::fs::write(&file, text).expect("written");
    promtool(&["check", "rules", "--lint=none", &file.display().to_string()]);
}
