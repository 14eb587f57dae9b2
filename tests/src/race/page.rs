//! The page of a race: accuracy over virtual time of every strategy and seed, and their figures. It loads nothing.

use std::fmt::Write as _;

use crate::picture::escape;

use super::report::figure;
use super::{Finish, RaceReport, StrategyReport};

/// Size of the chart, and of the room for its labels on the left and below.
const SIZE: (f64, f64) = (960.0, 480.0);
const LABELS: (f64, f64) = (50.0, 30.0);
/// A colour for each strategy, the first again after the last.
const COLOURS: [&str; 6] = ["#2f7fb8", "#d05a2b", "#2e8b57", "#8a5fb5", "#d99a2b", "#5aa7a7"];
const STYLE: &str = ":root { color-scheme: light dark; --faint: #8b9299; --rule: #8b929944; }
body { margin: 0; padding: 1.5rem 2rem 3rem; font: 15px/1.45 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
h1 { font-size: 1.35rem; margin: 0 0 .25rem; }
code { color: var(--faint); font-size: .85rem; overflow-wrap: anywhere; }
svg { display: block; width: 100%; max-width: 960px; margin: 1rem 0; }
svg text { fill: currentColor; font-size: 12px; }
svg .grid { stroke: var(--rule); }
svg .target { stroke: var(--faint); stroke-dasharray: 4 4; }
svg polyline { fill: none; stroke-width: 1.6; stroke-opacity: .85; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid var(--rule); text-align: right; }
th:first-child, td:first-child { text-align: left; }
i { display: inline-block; width: .7rem; height: .7rem; border-radius: .15rem; margin-right: .35rem; }";

/// Returns the page. The same report gives the same bytes.
pub(super) fn page(report: &RaceReport) -> String {
    let title = escape(&format!("{}: {}", report.workload, report.about));
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\n<style>{STYLE}</style>\n\
         <h1>{title}</h1>\n<code>{}</code>\n{}{}{}</html>\n",
        escape(&report.report.command),
        chart(report),
        figures(report),
        classes(report)
    )
}

fn colour(run: usize) -> &'static str {
    COLOURS[run % COLOURS.len()]
}

fn x(report: &RaceReport, at_s: f64) -> f64 {
    LABELS.0 + (SIZE.0 - LABELS.0 - 10.0) * at_s / report.seconds
}

fn y(accuracy: f64) -> f64 {
    10.0 + (SIZE.1 - LABELS.1 - 10.0) * (1.0 - accuracy)
}

fn chart(report: &RaceReport) -> String {
    let (left, right, bottom) = (x(report, 0.0), x(report, report.seconds), y(0.0));
    let mut svg =
        format!("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"accuracy over time\">\n", SIZE.0, SIZE.1);
    let mut draw = |text: std::fmt::Arguments<'_>| svg.write_fmt(text).expect("a string takes everything");
    for tenth in 0..=10 {
        let (share, at) = (f64::from(tenth) / 10.0, y(f64::from(tenth) / 10.0));
        draw(format_args!("<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>"));
        let percent = 100.0 * share;
        draw(format_args!(
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{percent:.0} %</text>\n",
            left - 6.0,
            at + 4.0
        ));
    }
    for part in 0..=8 {
        let at_s = report.seconds * f64::from(part) / 8.0;
        let at = x(report, at_s);
        draw(format_args!("<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{}\" y2=\"{bottom}\"/>", y(1.0)));
        draw(format_args!("<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{at_s} s</text>\n", bottom + 18.0));
    }
    for target in &report.targets {
        let at = y(*target);
        draw(format_args!("<line class=\"target\" x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\n"));
    }
    for (run, StrategyReport { strategy, races, .. }) in report.runs.iter().enumerate() {
        for race in races {
            let (colour, title) = (colour(run), escape(&format!("{strategy}, seed {}", race.seed)));
            let points = points(report, race);
            draw(format_args!("<polyline stroke=\"{colour}\" points=\"{points}\"><title>{title}</title></polyline>\n"));
        }
    }
    svg + "</svg>\n"
}

fn points(report: &RaceReport, race: &Finish) -> String {
    let point = |look: &super::Look| format!("{:.1},{:.1}", x(report, look.at_ms as f64 / 1e3), y(look.score.accuracy));
    race.looks.iter().map(point).collect::<Vec<_>>().join(" ")
}

fn head(report: &RaceReport, first: &str) -> String {
    let name = |(run, of): (usize, &StrategyReport)| {
        format!("<th><i style=\"background:{}\"></i>{}</th>", colour(run), escape(&of.strategy))
    };
    let names: String = report.runs.iter().enumerate().map(name).collect();
    format!("<table>\n<tr><th>{first}</th>{names}</tr>\n")
}

/// Medians over seeds, with least and most where there are several.
fn figures(report: &RaceReport) -> String {
    let mut names: Vec<&String> = report.runs.iter().flat_map(|run| run.spread.keys()).collect();
    names.sort();
    names.dedup();
    let cell = |run: &StrategyReport, name: &str| {
        let median = run.metrics.get(name).map_or("not reached".to_owned(), |median| figure(*median));
        match run.spread.get(name) {
            Some([least, most]) if run.races.len() > 1 && most.is_finite() => {
                format!("<td>{median} ({} to {})</td>", figure(*least), figure(*most))
            }
            _ => format!("<td>{median}</td>"),
        }
    };
    let row = |name: &&String| {
        let cells: String = report.runs.iter().map(|run| cell(run, name)).collect();
        format!("<tr><td>{}</td>{cells}</tr>\n", escape(name))
    };
    let rows: String = names.iter().map(row).collect();
    format!("{}{rows}</table>\n", head(report, "median over seeds"))
}

fn classes(report: &RaceReport) -> String {
    let (classes, agents) = report.runs.first().map_or((0, 0), |run| (run.accuracy_by_class.len(), run.agents.len()));
    let row = |name: String, of: &dyn Fn(&StrategyReport) -> f64| {
        let cells: String = report.runs.iter().map(|run| format!("<td>{:.3}</td>", of(run))).collect();
        format!("<tr><td>{name}</td>{cells}</tr>\n")
    };
    let accuracy: String = (0..classes)
        .map(|class| row(format!("accuracy of class {class}"), &|run| run.accuracy_by_class[class]))
        .collect();
    let shares: String =
        (0..agents).map(|agent| row(format!("share of agent {agent}"), &|run| run.agents[agent].share)).collect();
    format!("{}{accuracy}</table>\n{}{shares}</table>\n", head(report, "at the end"), head(report, "updates merged"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::race::{Look, Participation, Score};
    use crate::report::Report;

    #[test]
    fn the_page_shows_every_curve_and_loads_nothing() {
        let look = |at_ms, accuracy| Look {
            at_ms,
            score: Score { accuracy, by_class: vec![accuracy], loss: 0.5 },
            updates: 1,
            uplink_bytes: 2,
            downlink_bytes: 3,
        };
        let race = |seed| Finish {
            seed,
            journal: String::new(),
            records: 0,
            broken: None,
            metrics: BTreeMap::new(),
            accuracy_by_class: vec![0.5],
            refused: BTreeMap::new(),
            agents: vec![Participation::default()],
            agents_downlink_bytes: Vec::new(),
            looks: vec![look(0, 0.0), look(10_000, 1.0)],
        };
        let run = StrategyReport {
            strategy: "</table><script>".to_owned(),
            configuration: String::new(),
            metrics: BTreeMap::from([("final_accuracy".to_owned(), 0.5)]),
            spread: BTreeMap::from([("final_accuracy".to_owned(), [0.25, 0.75])]),
            agents: vec![Participation::default()],
            accuracy_by_class: vec![0.5],
            refused: BTreeMap::new(),
            races: vec![race(1), race(2)],
        };
        let page = page(&RaceReport {
            report: Report::new("anabranch-lab race w1.toml", 1),
            clock: "virtual",
            workload: "w1".to_owned(),
            about: "a race".to_owned(),
            seconds: 10.0,
            targets: vec![0.9],
            runs: vec![run],
        });
        assert_eq!(page.matches("points=\"50.0,450.0 950.0,10.0\"").count(), 2, "from corner to corner: {page}");
        assert!(page.contains("0.5000 (0.2500 to 0.7500)") && !page.contains("<script"), "{page}");
        assert!(!page.contains("http") && !page.contains("src="), "it loads something: {page}");
    }
}
