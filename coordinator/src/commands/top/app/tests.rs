//! Keys, and what becomes of what is chosen when answers come.

use anabranch_common::status::AgentStatus;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::*;
use crate::overview::tests::{agent, run, search, snapshot_at};
use crate::search::report::SearchSummary;

fn snapshot(at_ms: u64) -> Snapshot {
    let mut snapshot =
        snapshot_at(at_ms, vec![run("digits", vec![agent(1), agent(2)]), run("wards", vec![agent(1), agent(3)])]);
    let summary = SearchSummary::unread("lr", None);
    snapshot.view.searches = vec![SearchView { summary, report: Some(Box::new(search())) }];
    snapshot
}

fn app() -> App {
    App::new(Place::Overview, snapshot(1_000))
}

fn press(app: &mut App, keys: &[KeyCode]) -> Outcome {
    keys.iter().fold(Outcome::GoOn, |_, code| app.press(KeyEvent::new(*code, KeyModifiers::NONE)))
}

fn text(app: &mut App, text: &str) {
    text.chars().for_each(|character| _ = press(app, &[KeyCode::Char(character)]));
}

#[test]
fn enter_opens_a_run_and_escape_leads_back_to_the_line() {
    let mut app = app();
    assert_eq!((app.focus(), app.selected(Pane::Runs)), (Pane::Runs, Some(0)));
    press(&mut app, &[KeyCode::Char('j'), KeyCode::Enter]);
    assert_eq!(app.place(), &Place::Run("wards".into()));
    assert_eq!(app.report().map(|report| report.agents.len()), Some(2));
    press(&mut app, &[KeyCode::Esc]);
    assert_eq!((app.place(), app.selected(Pane::Runs)), (&Place::Overview, Some(1)));
    press(&mut app, &[KeyCode::Esc]);
    assert_eq!(app.place(), &Place::Overview, "nothing is behind it");
}

#[test]
fn tab_goes_round_the_parts_of_a_place() {
    let mut app = app();
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(app.focus());
        press(&mut app, &[KeyCode::Tab]);
    }
    assert_eq!(seen, [Pane::Runs, Pane::Searches, Pane::Events, Pane::Notes, Pane::Runs]);
    press(&mut app, &[KeyCode::BackTab]);
    assert_eq!(app.focus(), Pane::Runs);
    press(&mut app, &[KeyCode::Enter, KeyCode::Tab, KeyCode::Tab]);
    assert_eq!((app.focus(), app.lower()), (Pane::Measured, Pane::Measured));
    press(&mut app, &[KeyCode::BackTab, KeyCode::BackTab]);
    assert_eq!((app.focus(), app.lower()), (Pane::Agents, Pane::Events));
}

#[test]
fn a_line_is_chosen_within_its_part_and_found_again_where_it_has_moved_to() {
    let mut app = app();
    press(&mut app, &[KeyCode::Up, KeyCode::PageUp]);
    assert_eq!(app.selected(Pane::Runs), Some(0));
    press(&mut app, &[KeyCode::End]);
    assert_eq!(app.selected(Pane::Runs), Some(1), "wards");
    let mut next = snapshot(2_000);
    next.view.runs.insert(0, run("abacus", Vec::new()));
    app.answered(next);
    assert_eq!(app.selected(Pane::Runs), Some(2), "wards");
    let mut next = snapshot(3_000);
    next.view.runs.truncate(1);
    app.answered(next);
    assert_eq!(app.selected(Pane::Runs), Some(0), "wards was deleted");
    assert_eq!(app.selected(Pane::Notes), None, "keys do not act on it");
}

#[test]
fn a_filter_shows_the_agents_with_a_part_of_a_name() {
    let mut app = app();
    text(&mut app, "/");
    assert_eq!(app.mode(), Mode::Browse, "there are no agents in the overview");
    press(&mut app, &[KeyCode::Enter]);
    text(&mut app, "/T-2q");
    assert_eq!((app.mode(), app.filter()), (Mode::Filter, "T-2q"), "letters are no commands");
    press(&mut app, &[KeyCode::Backspace, KeyCode::Enter]);
    assert_eq!((app.mode(), app.filter(), app.focus()), (Mode::Browse, "T-2", Pane::Agents));
    press(&mut app, &[KeyCode::Down]);
    assert_eq!(app.selected(Pane::Agents), Some(0), "one is left");
    press(&mut app, &[KeyCode::Esc]);
    assert_eq!((app.filter(), app.place()), ("", &Place::Run("digits".into())), "the filter goes first");
    text(&mut app, "/x");
    press(&mut app, &[KeyCode::Esc]);
    assert_eq!((app.filter(), app.mode()), ("", Mode::Browse));
    text(&mut app, &format!("/{}", "a".repeat(limits::TOP_FILTER_CHARS + 1)));
    assert_eq!(app.filter().len(), limits::TOP_FILTER_CHARS);
}

#[test]
fn lines_open_what_they_are_about() {
    let mut app = app();
    press(&mut app, &[KeyCode::Tab, KeyCode::Enter]);
    assert_eq!(app.place(), &Place::Search("lr".into()));
    press(&mut app, &[KeyCode::Enter]);
    assert_eq!(app.place(), &Place::Search("lr".into()), "its trials have no runs here");
    let mut next = snapshot(2_000);
    next.view.runs.push(run("lr-2", Vec::new()));
    next.view.runs[1] = run("wards", vec![agent(1), AgentStatus { connected: false, ..agent(3) }]);
    app.answered(next);
    press(&mut app, &[KeyCode::Enter]);
    assert_eq!(app.place(), &Place::Run("lr-2".into()), "the best trial's");
    press(&mut app, &[KeyCode::Esc]);
    assert_eq!(app.place(), &Place::Search("lr".into()));
    press(&mut app, &[KeyCode::Esc, KeyCode::BackTab]);
    let notes = app.notes();
    assert_eq!((app.focus(), notes[0].run.as_deref()), (Pane::Notes, Some("lr-2")), "{notes:?}");
    press(&mut app, &[KeyCode::Down, KeyCode::Enter]);
    assert_eq!(app.place(), &Place::Run("wards".into()));
    let texts: Vec<&str> = app.events().map(|entry| entry.text.as_str()).collect();
    assert_eq!(texts, ["agent-3 is away: not heard of since the coordinator was started"]);
}

#[test]
fn a_lost_coordinator_is_the_first_note_until_it_answers() {
    let mut app = app();
    app.unanswered(1_772_368_496_000, "no route to host".to_owned());
    app.unanswered(1_772_368_499_000, "no coordinator".to_owned());
    let first = app.notes()[0].clone();
    assert!(first.urgent && first.text == "no answer since 12:34:56Z, trying again: no coordinator", "{first:?}");
    assert_eq!(app.runs().len(), 2, "what was said last stays");
    app.answered(snapshot(2_000));
    assert_eq!((app.lost_since(), app.notes().len()), (None, 0));
}

#[test]
fn quitting_and_help() {
    let mut app = app();
    text(&mut app, "?q");
    assert_eq!(app.mode(), Mode::Browse, "a key leaves the list and does no more");
    let control = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(app.press(control), Outcome::Quit);
    let other = KeyEvent::new(KeyCode::Char('q'), KeyModifiers::CONTROL);
    assert_eq!(app.press(other), Outcome::GoOn);
    let mut released = KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE);
    released.kind = KeyEventKind::Release;
    assert_eq!(app.press(released), Outcome::GoOn);
    assert_eq!(press(&mut app, &[KeyCode::Char('q')]), Outcome::Quit);
    press(&mut app, &[KeyCode::Enter]);
    text(&mut app, "/");
    assert_eq!(app.press(control), Outcome::Quit, "from the filter too");
}

#[test]
fn a_view_of_one_run_leads_nowhere_else() {
    let mut app = App::new(Place::Run("wards".into()), snapshot(1_000));
    press(&mut app, &[KeyCode::Esc, KeyCode::Char('h'), KeyCode::Enter]);
    assert_eq!(app.place(), &Place::Run("wards".into()));
    assert!(!app.is_inside());
}
