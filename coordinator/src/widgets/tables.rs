//! Agents, runs, searches, measurements and trials as tables.

use std::collections::BTreeMap;

use anabranch_common::status::StatusReport;
use ratatui::style::Style;

use super::curve::spark;
use super::grid::{Column, Fill, Grid};
use super::style::{CALM, HEADING, QUIET, WAITS, doing, standing};
use crate::commands::{count, span};
use crate::host::SearchView;
use crate::overview::agents::{Agents, Row};
use crate::overview::history::Page;
use crate::overview::runs::{RunLine, ordered};
use crate::overview::words::percent;
use crate::search::report::{SearchReport, SearchStanding, TrialPhase};

/// Bars of the curve in the list of runs.
const SPARK: usize = 12;
/// Stands for what is not known.
const DASH: &str = "-";

fn plain(text: impl Into<String>) -> (String, Style) {
    (text.into(), Style::new())
}

fn known(text: Option<impl ToString>) -> (String, Style) {
    plain(text.map_or_else(|| DASH.to_owned(), |text| text.to_string()))
}

/// Returns the agents of a run; with what each is beside its name, where that is said of any.
pub(crate) fn agents(agents: &Agents, roles: Option<&BTreeMap<String, String>>) -> Grid {
    let mut columns = vec![Column::new("agent", Fill::Left, 0)];
    columns.extend(roles.map(|_| Column::new("role", Fill::Left, 1)));
    columns.extend([
        Column::new("state", Fill::Left, 0),
        Column::new("why", Fill::Sentence, 3),
        Column::new("heard", Fill::Right, 7),
        Column::new("speed", Fill::Right, 4),
        Column::new("steps", Fill::Right, 11),
        Column::new("stale", Fill::Right, 6),
        Column::new("lag", Fill::Right, 12),
        Column::new("loss", Fill::Right, 8),
        Column::new("accepted", Fill::Right, 2),
        Column::new("refused", Fill::Right, 5),
        Column::new("up", Fill::Right, 9),
        Column::new("down", Fill::Right, 10),
        Column::new("device", Fill::Left, 13),
    ]);
    let mut grid = Grid::new(columns);
    for row in &agents.rows {
        let Row { name, doing: is, why, heard, speed, steps, staleness, lag, loss, .. } = row;
        let mut cells = vec![plain(name)];
        cells.extend(roles.map(|roles| known(roles.get(name))));
        cells.extend([
            (is.word().to_owned(), doing(*is)),
            plain(why.clone().unwrap_or_default()),
            known(heard.as_ref()),
            known(speed.as_ref()),
            known(*steps),
            known(*staleness),
            known(*lag),
            known(loss.as_ref()),
            plain(&row.accepted),
            plain(&row.refused),
            plain(&row.up),
            plain(&row.down),
            plain(&row.device),
        ]);
        grid.row(cells);
    }
    grid.more(agents.more)
}

/// Returns the runs of a process, in the order of the page.
pub(crate) fn runs(page: &Page) -> Grid {
    let mut grid = Grid::new(vec![
        Column::new("run", Fill::Left, 0),
        Column::new("state", Fill::Left, 0),
        Column::new("version", Fill::Right, 2),
        Column::new("accuracy", Fill::Right, 1),
        Column::new("curve", Fill::Left, 7),
        Column::new("loss", Fill::Right, 6),
        Column::new("updates", Fill::Right, 4),
        Column::new("agents", Fill::Right, 3),
        Column::new("accepted", Fill::Right, 5),
        Column::new("refused", Fill::Right, 8),
    ]);
    for view in ordered(page) {
        let line = RunLine::of(page, view);
        let aggregates = view.report.as_ref().map_or(&[][..], |report| &report.aggregates);
        grid.row([
            (line.name, HEADING),
            (line.state.to_owned(), standing(view.summary.state)),
            known(line.version),
            known(line.accuracy),
            (spark(aggregates, SPARK), CALM),
            known(line.loss),
            known(line.rate),
            plain(line.agents),
            plain(line.accepted),
            plain(line.refused),
        ]);
    }
    grid
}

/// Returns the searches of a process.
pub(crate) fn searches(views: &[SearchView]) -> Grid {
    let mut grid = Grid::new(vec![
        Column::new("search", Fill::Left, 0),
        Column::new("state", Fill::Left, 0),
        Column::new("trials", Fill::Right, 2),
        Column::new("leader", Fill::Left, 1),
        Column::new("metric", Fill::Right, 3),
    ]);
    for SearchView { summary, .. } in views {
        let style = match summary.state {
            SearchStanding::Running => super::style::WELL,
            SearchStanding::Opening => WAITS,
            SearchStanding::Finished | SearchStanding::Stopped => CALM,
            SearchStanding::Failed => super::style::BAD,
        };
        grid.row([
            (summary.name.clone(), HEADING),
            (summary.state.word().to_owned(), style),
            plain(format!("{} of {}", summary.trials, summary.trials_planned)),
            known(summary.leader.as_ref()),
            known(summary.metric.map(|metric| format!("{metric:.4}"))),
        ]);
    }
    grid
}

/// Returns the measurements of a run, newest first.
pub(crate) fn measurements(report: &StatusReport) -> Grid {
    let mut grid = Grid::new(vec![
        Column::new("after", Fill::Right, 1),
        Column::new("version", Fill::Right, 0),
        Column::new("accuracy", Fill::Right, 0),
        Column::new("loss", Fill::Right, 0),
        Column::new("examples", Fill::Right, 3),
        Column::new("", Fill::Sentence, 2),
    ]);
    for timed in report.aggregates.iter().rev() {
        let aggregate = &timed.aggregate;
        let partial = if aggregate.covers_most() { "" } else { "covers too few examples to decide on a target" };
        grid.row([
            plain(span(timed.at_s)),
            plain(aggregate.version.to_string()),
            plain(percent(aggregate.accuracy)),
            plain(format!("{:.4}", aggregate.loss)),
            plain(count(aggregate.num_examples)),
            (partial.to_owned(), WAITS),
        ]);
    }
    grid
}

/// Returns the trials of a search from best to worst.
pub(crate) fn trials(report: &SearchReport) -> Grid {
    /// Ranks of the columns that every search has, in the order of `SearchReport::cells`.
    const RANKS: [u8; 6] = [0, 0, 3, 5, 1, 4];
    let (names, rows) = report.cells();
    let last = names.len().saturating_sub(1);
    let column = |(index, name): (usize, &String)| {
        let fill = match index {
            _ if index == last => Fill::Sentence,
            1 | 5 => Fill::Left,
            _ => Fill::Right,
        };
        // Of a key, the last part tells it from the others.
        let name = name.rsplit('.').next().unwrap_or(name).to_lowercase();
        let rank = RANKS.get(index).copied().unwrap_or(if index == last { 6 } else { 2 });
        Column::new(name, fill, rank)
    };
    let mut grid = Grid::new(names.iter().enumerate().map(column).collect());
    for (trial, row) in report.ordered().into_iter().zip(rows) {
        let style = match trial.state {
            _ if report.standing(trial) == "winner" => super::style::WELL.patch(HEADING),
            TrialPhase::Running => super::style::WELL,
            TrialPhase::Measuring => CALM,
            TrialPhase::Waiting => Style::new(),
            TrialPhase::Closed => QUIET,
        };
        grid.row(row.into_iter().enumerate().map(|(index, cell)| match index {
            1 => (cell, style),
            5 => (cell, CALM),
            _ => plain(cell),
        }));
    }
    grid
}
