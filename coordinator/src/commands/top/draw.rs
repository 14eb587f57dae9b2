//! The view as it is drawn.

use anabranch_common::status::StatusReport;
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::Widget as _;

use super::app::{App, Mode};
use super::place::{Pane, Place};
use crate::commands::{bytes, count, status_lines};
use crate::overview::attention::Note;
use crate::overview::runs::connected;
use crate::widgets::{
    self, BAD, HEADING, Item, Items, Of, QUIET, RunPanel, SearchPanel, WAITS, WELL, fit, shown, width,
};

/// Lines of `status` that a run shows above its curves: all of them are in a pane of their own.
const FACTS: usize = 2;
/// A run has its panel and a pane below it from this height on.
const BOTH: u16 = 16;
/// Lines of the pane below.
const LOWER: std::ops::RangeInclusive<u16> = 4..=12;
/// Columns from which on a list of keys has what each does beside it.
const BESIDE: u16 = 60;

/// Keys and what they do.
const KEYS: [(&str, &str); 10] = [
    ("arrows, j k", "move; PgUp, PgDn, g and G move further"),
    ("Tab, Shift-Tab", "the next part, the one before"),
    ("Enter, l", "open a run, a search, or what a line is about"),
    ("Esc, h", "go back; first gives up the filter"),
    ("/", "in a run: show the agents with a part of a name"),
    ("m", "accuracy or loss, where there is room for one"),
    ("?", "this list"),
    ("q, Ctrl-C", "quit"),
    ("", ""),
    ("", "docs/operating.md describes what is shown (\"top\")"),
];

/// Draws the view.
pub(super) fn draw(app: &App, frame: &mut Frame<'_>) {
    let area = frame.area();
    let buffer = frame.buffer_mut();
    let lines = [Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)];
    let [head, body, foot] = Layout::vertical(lines).areas(area);
    header(app, head, buffer);
    match (app.mode(), app.place()) {
        (Mode::Help, _) => help(body, buffer),
        (_, Place::Overview) => overview(app, body, buffer),
        (_, Place::Run(name)) => run(app, name, body, buffer),
        (_, Place::Search(name)) => search(app, name, body, buffer),
    }
    footer(app, foot, buffer);
}

/// What process it is, and whether it answers.
fn header(app: &App, area: Rect, buffer: &mut Buffer) {
    let (live, style) = match (app.lost_since(), app.silence_s()) {
        (Some(since), _) => (format!("no answer since {}", widgets::time_of_day(since)), BAD),
        (None, Some(seconds)) => (format!("nothing heard for {seconds} s"), BAD),
        (None, None) => ("live".to_owned(), WELL),
    };
    let view = &app.page().snapshot.view;
    let name = match app.place() {
        Place::Overview => "Anabranch".to_owned(),
        Place::Run(name) => format!("run {name}"),
        Place::Search(name) => format!("search {name}"),
    };
    let members = view.members.iter().filter(|member| !member.revoked).count();
    let network = &app.page().snapshot.network;
    let facts = format!(
        "  agents {} of {} connected  received {}  sent {}",
        count(connected(app.page()) as u64),
        count(members as u64),
        bytes(network.received.ip_bytes()),
        bytes(network.sent.ip_bytes()),
    );
    let room = usize::from(area.width).saturating_sub(width(&live) + 2);
    let name = fit(&shown(name), room);
    let facts = if matches!(app.place(), Place::Overview) { fit(&facts, room - width(&name)) } else { String::new() };
    let space = " ".repeat(room - width(&name) - width(&facts) + 2);
    let spans =
        vec![Span::styled(name, HEADING), Span::styled(facts, QUIET), Span::raw(space), Span::styled(live, style)];
    buffer.set_line(area.x, area.y, &Line::from(spans), area.width);
}

fn footer(app: &App, area: Rect, buffer: &mut Buffer) {
    let text = match (app.mode(), app.place()) {
        (Mode::Filter, _) => format!("agents with: {}_  Enter keeps it, Esc gives it up", shown(app.filter())),
        (Mode::Help, _) => "any key goes back".to_owned(),
        (Mode::Browse, place) => {
            let back = if app.is_inside() { "  Esc back" } else { "" };
            let of_place = match place {
                Place::Overview => "  Enter open",
                Place::Run(_) => "  / filter",
                Place::Search(_) if app.is_inside() => "  Enter open",
                Place::Search(_) => "",
            };
            format!("q quit  ? help{back}  Tab next{of_place}")
        }
    };
    let style = if app.mode() == Mode::Filter { WAITS } else { QUIET };
    buffer.set_string(area.x, area.y, fit(&text, usize::from(area.width)), style);
}

fn overview(app: &App, area: Rect, buffer: &mut Buffer) {
    let notes = widgets::notes(&app.notes()).select(app.selected(Pane::Notes));
    let is_nothing = app.notes().is_empty();
    let notes = if is_nothing { notes.select(None) } else { notes };
    let lines = |count: usize| u16::try_from(count).unwrap_or(u16::MAX);
    let mut wants = vec![
        (Pane::Notes, 2, lines(notes.height(area.width)).saturating_add(1).min((area.height / 3).max(2))),
        (Pane::Runs, 3, lines(app.runs().len()).saturating_add(2)),
    ];
    if !app.searches().is_empty() {
        wants.push((Pane::Searches, 3, lines(app.searches().len()).saturating_add(2)));
    }
    wants.push((Pane::Events, 2, u16::MAX));
    let heights = share(area.height, &wants, app.focus());
    let areas = Layout::vertical(heights.into_iter().map(Constraint::Length)).split(area);
    let mut notes = Some(notes);
    for ((pane, ..), area) in wants.iter().zip(areas.iter()) {
        let body = titled(app, *pane, *area, buffer);
        let selected = app.selected(*pane);
        match pane {
            Pane::Notes => notes.take().unwrap_or_default().render(body, buffer),
            Pane::Runs => widgets::runs(app.page()).select(selected).render(body, buffer),
            Pane::Searches => widgets::searches(app.searches()).select(selected).render(body, buffer),
            _ => events(app, Of::Process, body, buffer),
        }
    }
}

/// Shares lines out: to each part the least that it needs, to the focused one first; then what each needs more, from above.
fn share(mut room: u16, wants: &[(Pane, u16, u16)], focus: Pane) -> Vec<u16> {
    let mut heights = vec![0; wants.len()];
    let mut order: Vec<usize> = (0..wants.len()).collect();
    order.sort_by_key(|index| wants[*index].0 != focus);
    for need in [|want: &(Pane, u16, u16)| want.1.min(want.2), |want: &(Pane, u16, u16)| want.2] {
        for index in &order {
            let more = need(&wants[*index]).saturating_sub(heights[*index]).min(room);
            // A part that has not even a line below its title is not shown.
            if heights[*index] + more >= 2 {
                heights[*index] += more;
                room -= more;
            }
        }
        order.sort_unstable();
    }
    heights
}

/// Draws the title of a part, with a sign where keys act on it. Returns what is left of its area.
fn titled(app: &App, pane: Pane, area: Rect, buffer: &mut Buffer) -> Rect {
    if area.is_empty() {
        return area;
    }
    let sign = if app.focus() == pane { "> " } else { "  " };
    buffer.set_string(area.x, area.y, fit(&format!("{sign}{}", pane.title()), usize::from(area.width)), HEADING);
    Rect { y: area.y + 1, height: area.height - 1, ..area }
}

fn events(app: &App, of: Of, area: Rect, buffer: &mut Buffer) {
    let is_any = app.events().next().is_some();
    widgets::events(app.events(), of).select(app.selected(Pane::Events).filter(|_| is_any)).render(area, buffer);
}

fn run(app: &App, name: &str, area: Rect, buffer: &mut Buffer) {
    let Some(view) = app.run() else {
        return gone("run", name, area, buffer);
    };
    // All of them are about this run, or about the process.
    let notes: Vec<Note> = app.notes().into_iter().map(|note| Note { run: None, ..note }).collect();
    let urgent = widgets::notes(&notes);
    let height = if notes.is_empty() { 0 } else { urgent.height(area.width).min(usize::from(area.height / 6).max(1)) };
    let height = u16::try_from(height).unwrap_or(0);
    let [top, rest] = Layout::vertical([Constraint::Length(height), Constraint::Fill(1)]).areas(area);
    urgent.render(top, buffer);
    let Some(report) = view.report.as_deref() else {
        let problem = view.summary.problem.as_deref().unwrap_or("nothing is known of it yet");
        let item = Item::new(problem, BAD).after(view.summary.state.word(), widgets::standing(view.summary.state));
        return Items::new([item]).render(rest, buffer);
    };
    let (upper, lower) = if rest.height >= BOTH {
        let lower = (rest.height / 4).clamp(*LOWER.start(), *LOWER.end());
        let [upper, lower] = Layout::vertical([Constraint::Fill(1), Constraint::Length(lower)]).areas(rest);
        (upper, lower)
    } else if app.focus() == Pane::Agents {
        (rest, Rect::default())
    } else {
        (Rect::default(), rest)
    };
    let panel = RunPanel::new(report).measure(app.measure()).filter(app.filter()).facts(FACTS);
    panel.select(app.selected(Pane::Agents)).render(upper, buffer);
    below(app, report, lower, buffer);
}

/// The pane at the bottom of a run: one of three, all of which are named.
fn below(app: &App, report: &StatusReport, area: Rect, buffer: &mut Buffer) {
    if area.is_empty() {
        return;
    }
    let titles = [Pane::Events, Pane::Measured, Pane::Facts].into_iter().map(|pane| {
        let sign = if app.focus() == pane { "> " } else { "  " };
        let style = if app.lower() == pane { HEADING } else { QUIET };
        Span::styled(format!("{sign}{}  ", pane.title()), style)
    });
    buffer.set_line(area.x, area.y, &Line::from(titles.collect::<Vec<_>>()), area.width);
    let area = Rect { y: area.y + 1, height: area.height - 1, ..area };
    let selected = app.selected(app.lower());
    match app.lower() {
        Pane::Measured => widgets::measurements(report).select(selected).render(area, buffer),
        Pane::Facts => {
            let lines = status_lines(report).into_iter();
            let items = lines.map(|(key, value)| Item::new(value, Style::new()).after(format!("{key:<11}"), QUIET));
            Items::new(items).select(selected).render(area, buffer);
        }
        _ => events(app, Of::Run, area, buffer),
    }
}

fn search(app: &App, name: &str, area: Rect, buffer: &mut Buffer) {
    let Some(view) = app.search() else {
        return gone("search", name, area, buffer);
    };
    // Only that nobody answers: notes about other runs are in the overview.
    let notes = app.notes();
    let lost = widgets::notes(&notes[..notes.len().min(1)]);
    let height = if app.lost_since().is_some() { lost.height(area.width).min(usize::from(area.height)) } else { 0 };
    let height = u16::try_from(height).unwrap_or(0);
    let [top, rest] = Layout::vertical([Constraint::Length(height), Constraint::Fill(1)]).areas(area);
    lost.render(top, buffer);
    match &view.report {
        Some(report) => SearchPanel::new(report).select(app.selected(Pane::Trials)).render(rest, buffer),
        None => {
            let problem = view.summary.problem.as_deref().unwrap_or("nothing is known of it yet");
            Items::new([Item::new(problem, BAD).after(view.summary.state.word(), WAITS)]).render(rest, buffer);
        }
    }
}

fn gone(kind: &str, name: &str, area: Rect, buffer: &mut Buffer) {
    Items::new([Item::new(format!("there is no {kind} {name} here any more"), WAITS)]).render(area, buffer);
}

fn help(area: Rect, buffer: &mut Buffer) {
    let beside = area.width >= BESIDE;
    let items = KEYS.iter().map(|(key, what)| {
        let key = if beside { format!("{key:<16}") } else { (*key).to_owned() };
        Item::new(*what, Style::new()).after(key, HEADING)
    });
    Items::new(items).render(area, buffer);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use anabranch_common::limits;
    use anabranch_common::status::{RunStanding, StatusReport};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

    use super::super::compose::{self, Answers};
    use super::*;
    use crate::host::SearchView;
    use crate::overview::tests::{run as made_up, search as made_up_search, wards};
    use crate::search::report::{SearchStanding, SearchSummary};
    use crate::web::Snapshot;
    use crate::widgets::tests::lines_of;

    /// A process with three runs and a search, some of which need the operator.
    fn snapshot(at_ms: u64) -> Snapshot {
        let known = |report: StatusReport| (compose::summary(&report), Some(report));
        let unread = || *made_up("digits", Vec::new()).report.expect("a report");
        let mut old = made_up("old", Vec::new()).summary;
        (old.state, old.version) = (RunStanding::Failed, None);
        old.problem = Some("its store is damaged".to_owned());
        let runs = vec![known(wards()), known(unread()), (old, None)];
        let summary = SearchSummary {
            state: SearchStanding::Running,
            trials: 3,
            trials_planned: 4,
            leader: Some("lr-2".into()),
            metric: Some(0.75),
            ..SearchSummary::unread("lr", None)
        };
        let searches = vec![SearchView { summary, report: Some(Box::new(made_up_search())) }];
        let snapshot = compose::snapshot(Answers { is_running: true, runs, searches });
        Snapshot { at_ms, ..snapshot }
    }

    /// The view after something has happened.
    fn app() -> App {
        let mut app = App::new(Place::Overview, snapshot(1_772_368_495_000));
        let mut next = snapshot(1_772_368_496_000);
        let report = next.view.runs[0].report.as_mut().expect("a report");
        report.agents[1].connected = false;
        report.agents[2].updates_refused = [("stale".to_owned(), 2)].into();
        app.answered(next);
        app
    }

    fn press(app: &mut App, keys: &[KeyCode]) {
        keys.iter().for_each(|code| _ = app.press(KeyEvent::new(*code, KeyModifiers::NONE)));
    }

    fn drawn(app: &App, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal in memory");
        terminal.draw(|frame| draw(app, frame)).expect("drawn");
        lines_of(terminal.backend().buffer())
    }

    #[test]
    fn the_overview_begins_with_what_needs_attention() {
        insta::assert_snapshot!(drawn(&app(), 80, 24));
    }

    #[test]
    fn the_overview_on_a_narrow_terminal() {
        insta::assert_snapshot!(drawn(&app(), 40, 24));
    }

    #[test]
    fn a_run_has_its_reasons_its_curves_and_its_events() {
        let mut app = app();
        press(&mut app, &[KeyCode::Down, KeyCode::Enter]);
        insta::assert_snapshot!(drawn(&app, 80, 24));
    }

    #[test]
    fn a_run_on_a_narrow_terminal() {
        let mut app = app();
        press(&mut app, &[KeyCode::Down, KeyCode::Enter]);
        insta::assert_snapshot!(drawn(&app, 40, 24));
    }

    #[test]
    fn the_pane_below_a_run_has_its_figures_too() {
        let mut app = app();
        press(&mut app, &[KeyCode::Down, KeyCode::Enter, KeyCode::BackTab]);
        insta::assert_snapshot!(drawn(&app, 100, 40));
    }

    #[test]
    fn a_search_has_its_trials() {
        let mut app = app();
        press(&mut app, &[KeyCode::Tab, KeyCode::Enter]);
        insta::assert_snapshot!(drawn(&app, 80, 16));
    }

    #[test]
    fn the_list_of_keys() {
        let mut app = app();
        press(&mut app, &[KeyCode::Char('?')]);
        insta::assert_snapshot!(drawn(&app, 80, 24));
    }

    #[test]
    fn a_lost_coordinator_is_said_in_every_place() {
        let mut app = app();
        app.unanswered(1_772_368_499_000, "the coordinator at trainer:4433 does not answer".to_owned());
        for keys in [&[][..], &[KeyCode::Down, KeyCode::Enter], &[KeyCode::Esc, KeyCode::Tab, KeyCode::Enter]] {
            press(&mut app, keys);
            for (width, height) in [(80, 24), (40, 24)] {
                let text = drawn(&app, width, height).split_whitespace().collect::<Vec<_>>().join(" ");
                assert!(text.contains("no answer since"), "{text}");
                assert!(text.contains("trying again") && text.contains("q quit"), "{text}");
            }
        }
    }

    #[test]
    fn a_view_that_hears_nothing_does_not_say_that_it_is_live() {
        let mut app = app();
        let enough = Duration::from_millis(limits::TOP_SILENCE_MS);
        app.heard_ago(enough - Duration::from_millis(1));
        assert!(drawn(&app, 80, 24).lines().next().is_some_and(|head| head.trim_end().ends_with("live")));
        app.heard_ago(enough + Duration::from_secs(7));
        let said = format!("nothing heard for {} s", (enough + Duration::from_secs(7)).as_secs());
        for keys in [&[][..], &[KeyCode::Down, KeyCode::Enter], &[KeyCode::Esc, KeyCode::Tab, KeyCode::Enter]] {
            press(&mut app, keys);
            for (width, height) in [(80, 24), (40, 24)] {
                let text = drawn(&app, width, height);
                assert!(text.lines().next().is_some_and(|head| head.trim_end().ends_with(&said)), "{text}");
            }
        }
        app.unanswered(1_772_368_499_000, "no route to host".to_owned());
        assert!(drawn(&app, 80, 24).contains("no answer since"), "what is known of the reason comes first");
    }

    #[test]
    fn every_place_fits_every_terminal_with_every_pane_focused() {
        let mut app = app();
        for open in [&[][..], &[KeyCode::Enter], &[KeyCode::Esc, KeyCode::Down, KeyCode::Enter]] {
            press(&mut app, open);
            for _ in 0..=app.panes().len() {
                for (width, height) in [(1, 1), (2, 3), (12, 5), (40, 10), (40, 24), (80, 12), (80, 24), (240, 70)] {
                    drawn(&app, width, height);
                }
                press(&mut app, &[KeyCode::Tab, KeyCode::End]);
            }
        }
        press(&mut app, &[KeyCode::Char('?')]);
        drawn(&app, 12, 4);
    }

    #[test]
    fn parts_get_the_least_first_the_focused_one_before_all() {
        let wants = [(Pane::Notes, 2, 4), (Pane::Runs, 3, 6), (Pane::Events, 2, u16::MAX)];
        assert_eq!(share(30, &wants, Pane::Runs), [4, 6, 20]);
        assert_eq!(share(9, &wants, Pane::Runs), [4, 3, 2]);
        assert_eq!(share(7, &wants, Pane::Runs), [2, 3, 2]);
        assert_eq!(share(5, &wants, Pane::Events), [3, 0, 2]);
        assert_eq!(share(1, &wants, Pane::Events), [0, 0, 0]);
    }
}
