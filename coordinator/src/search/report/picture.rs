//! The report as an SVG: above, the metric of every trial by contributions; below, parallel coordinates: a line for each
//! trial through its value of every key, to its metric.

use std::fmt::Write as _;

use super::{SearchReport, TrialReport};

/// Size of the picture.
const SIZE: (f64, f64) = (960.0, 780.0);
/// Left and right edge of both charts.
const ACROSS: (f64, f64) = (70.0, 930.0);
/// Upper and lower edge of the curves.
const CURVES: (f64, f64) = (60.0, 380.0);
/// Upper and lower edge of the parallel coordinates.
const COORDINATES: (f64, f64) = (480.0, 740.0);
/// A colour for each trial, the first again after the last; the leader is drawn thicker and last.
const COLOURS: [&str; 6] = ["#2f7fb8", "#d05a2b", "#2e8b57", "#8a5fb5", "#d99a2b", "#5aa7a7"];
const STYLE: &str = "text { font: 12px sans-serif; fill: #333a40; } .title { font-size: 16px; } \
    line { stroke: #8b929966; } polyline { fill: none; stroke-width: 1.4; stroke-opacity: .7; } \
    .leader { stroke-width: 3.5; stroke-opacity: 1; } .closed { stroke-dasharray: 4 4; }";

pub(super) fn svg(report: &SearchReport) -> String {
    let mut svg = format!(
        "<svg width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" xmlns=\"http://www.w3.org/2000/svg\">\n\
         <style>{STYLE}</style>\n<rect width=\"{0}\" height=\"{1}\" fill=\"#ffffff\"/>\n",
        SIZE.0, SIZE.1
    );
    let metric = report.metric.as_str();
    let title = format!("{}: {metric} of {} trials by rung", report.name, report.trials.len());
    label(&mut svg, (SIZE.0 / 2.0, 28.0), "middle", &title, " class=\"title\"");
    curves(&mut svg, report);
    coordinates(&mut svg, report);
    svg + "</svg>\n"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn draw(svg: &mut String, text: std::fmt::Arguments<'_>) {
    svg.write_fmt(text).expect("a string takes everything");
}

fn label(svg: &mut String, at: (f64, f64), anchor: &str, text: &str, class: &str) {
    let (x, y) = at;
    draw(
        svg,
        format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\"{class}>{}</text>\n", escape(text)),
    );
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64)) {
    let ((x1, y1), (x2, y2)) = (from, to);
    draw(svg, format_args!("<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>\n"));
}

fn colour(trial: &TrialReport) -> &'static str {
    COLOURS[usize::try_from(trial.trial.0).unwrap_or(0) % COLOURS.len()]
}

/// One trial's line. It ends a little behind its last point, so that one with a single point is seen.
fn polyline(svg: &mut String, report: &SearchReport, trial: &TrialReport, points: &[(f64, f64)]) {
    let Some(last) = points.last() else { return };
    let points: Vec<String> =
        points.iter().chain([&(last.0 + 3.0, last.1)]).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let colour = colour(trial);
    let class = if report.leader == Some(trial.trial) {
        " class=\"leader\""
    } else if trial.closed.is_some() {
        " class=\"closed\""
    } else {
        ""
    };
    let overrides: Vec<String> = trial.overrides.iter().map(|(key, value)| format!("{key} = {value}")).collect();
    let title = escape(&format!("trial {}: {}", trial.trial, overrides.join(", ")));
    let points = points.join(" ");
    draw(
        svg,
        format_args!("<polyline{class} stroke=\"{colour}\" points=\"{points}\"><title>{title}</title></polyline>\n"),
    );
}

/// The trials in the order of drawing: the leader on top.
fn bottom_up(report: &SearchReport) -> Vec<&TrialReport> {
    let mut trials = report.ordered();
    trials.sort_by_key(|trial| report.leader == Some(trial.trial));
    trials
}

/// Where a share of 0 to 1 lies between the lower and the upper edge.
fn height(edges: (f64, f64), share: f64) -> f64 {
    edges.1 - (edges.1 - edges.0) * share
}

/// The share of `value` between `range`; the middle where that is a point.
fn share(value: f64, range: (f64, f64)) -> f64 {
    if range.1 > range.0 { ((value - range.0) / (range.1 - range.0)).clamp(0.0, 1.0) } else { 0.5 }
}

fn logarithm(contributions: u64) -> f64 {
    (contributions.max(1) as f64).ln()
}

fn curves(svg: &mut String, report: &SearchReport) {
    let Some(range) = report.range() else {
        return label(svg, (SIZE.0 / 2.0, CURVES.0 + 40.0), "middle", "nothing was measured yet", "");
    };
    let ends = |rungs: &[u64]| Some((logarithm(*rungs.first()?), logarithm(*rungs.last()?)));
    let ends = ends(&report.rungs).unwrap_or((0.0, 0.0));
    let x = |contributions: u64| ACROSS.0 + (ACROSS.1 - ACROSS.0) * share(logarithm(contributions), ends);
    for part in 0..=4 {
        let part = f64::from(part) / 4.0;
        let (metric, y) = (range.0 + (range.1 - range.0) * part, height(CURVES, part));
        line(svg, (ACROSS.0, y), (ACROSS.1, y));
        label(svg, (ACROSS.0 - 8.0, y + 4.0), "end", &format!("{metric:.4}"), "");
    }
    // A population has many rungs: a label for about ten of them.
    let every = report.rungs.len().div_ceil(10).max(1);
    for (index, rung) in report.rungs.iter().enumerate() {
        line(svg, (x(*rung), CURVES.0), (x(*rung), CURVES.1));
        if index % every == 0 || index + 1 == report.rungs.len() {
            label(svg, (x(*rung), CURVES.1 + 18.0), "middle", &rung.to_string(), "");
        }
    }
    label(svg, (SIZE.0 / 2.0, CURVES.1 + 38.0), "middle", "contributions", "");
    for trial in bottom_up(report) {
        let at = |measured: &super::MeasurementReport| {
            (x(measured.contributions), height(CURVES, share(measured.metric, range)))
        };
        let points: Vec<(f64, f64)> = trial.measured.iter().map(at).collect();
        polyline(svg, report, trial, &points);
        for (x, y) in points {
            let colour = colour(trial);
            draw(svg, format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>\n"));
        }
    }
}

/// One axis of the parallel coordinates: what its ends are called, and the share of each trial, by number.
struct Axis {
    name: String,
    ends: (String, String),
    shares: Vec<Option<f64>>,
}

fn coordinates(svg: &mut String, report: &SearchReport) {
    let keys = report.trials.first().iter().flat_map(|trial| trial.overrides.keys()).collect::<Vec<_>>();
    let mut axes: Vec<Axis> = keys.into_iter().map(|key| axis(report, key)).collect();
    if let Some(range) = report.range() {
        let of = |trial: &TrialReport| trial.measured.last().map(|newest| share(newest.metric, range));
        let ends = (format!("{:.4}", range.0), format!("{:.4}", range.1));
        axes.push(Axis {
            name: report.metric.as_str().to_owned(),
            ends,
            shares: report.trials.iter().map(of).collect(),
        });
    }
    let x =
        |index: usize| ACROSS.0 + (ACROSS.1 - ACROSS.0) * share(index as f64, (0.0, (axes.len().max(2) - 1) as f64));
    for (index, axis) in axes.iter().enumerate() {
        line(svg, (x(index), COORDINATES.0), (x(index), COORDINATES.1));
        let anchor = if index == 0 {
            "start"
        } else if index + 1 == axes.len() {
            "end"
        } else {
            "middle"
        };
        label(svg, (x(index), COORDINATES.0 - 26.0), anchor, &axis.name, "");
        label(svg, (x(index), COORDINATES.0 - 8.0), anchor, &axis.ends.1, "");
        label(svg, (x(index), COORDINATES.1 + 18.0), anchor, &axis.ends.0, "");
    }
    for trial in bottom_up(report) {
        let place = usize::try_from(trial.trial.0).unwrap_or(usize::MAX);
        let points = axes.iter().enumerate().filter_map(|(index, axis)| {
            let share = axis.shares.get(place).copied().flatten()?;
            Some((x(index), height(COORDINATES, share)))
        });
        polyline(svg, report, trial, &points.collect::<Vec<_>>());
    }
}

/// An axis for a key: numbers by size, on a logarithmic scale where they span more than a factor of 20; anything else in
/// the order in which it is first seen.
fn axis(report: &SearchReport, key: &str) -> Axis {
    let values: Vec<Option<&serde_json::Value>> = report.trials.iter().map(|trial| trial.overrides.get(key)).collect();
    let numbers: Vec<Option<f64>> = values.iter().map(|value| value.and_then(serde_json::Value::as_f64)).collect();
    if numbers.iter().all(Option::is_some) {
        let least = numbers.iter().flatten().copied().fold(f64::INFINITY, f64::min);
        let most = numbers.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
        let is_log = least > 0.0 && most / least > 20.0;
        let scaled = |value: f64| if is_log { value.ln() } else { value };
        let range = (scaled(least), scaled(most));
        let shares = numbers.iter().map(|number| number.map(|number| share(scaled(number), range))).collect();
        return Axis { name: key.to_owned(), ends: (least.to_string(), most.to_string()), shares };
    }
    let mut seen: Vec<&serde_json::Value> = Vec::new();
    for value in values.iter().flatten() {
        if !seen.contains(value) {
            seen.push(value);
        }
    }
    let place = |value: &serde_json::Value| seen.iter().position(|other| *other == value);
    let range = (0.0, seen.len().saturating_sub(1) as f64);
    let shares = values.iter().map(|value| value.and_then(place).map(|place| share(place as f64, range))).collect();
    let end = |value: Option<&&serde_json::Value>| value.map(ToString::to_string).unwrap_or_default();
    Axis { name: key.to_owned(), ends: (end(seen.first()), end(seen.last())), shares }
}
