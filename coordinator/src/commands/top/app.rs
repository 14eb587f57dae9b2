//! What the view shows and how keys change it: no terminal, no clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anabranch_common::limits;
use anabranch_common::status::StatusReport;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::place::{Pane, Place};
use crate::host::{RunView, SearchView};
use crate::overview::agents::Agents;
use crate::overview::attention::{self, Note};
use crate::overview::changes::Entry;
use crate::overview::history::{History, Page};
use crate::overview::runs::ordered;
use crate::search::report::SearchPhase;
use crate::web::Snapshot;
use crate::widgets::{Measure, time_of_day};

/// Lines that a key for pages moves.
const PAGE: usize = 10;

/// What follows from a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    GoOn,
    Quit,
}

/// What keys mean at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// They move and open.
    Browse,
    /// They write the part of a name.
    Filter,
    /// The next one leaves the list of keys.
    Help,
}

/// The chosen line of a pane. It is found again by what it is about, wherever it has moved to.
#[derive(Debug, Clone, Default)]
struct Chosen {
    index: usize,
    key: String,
}

/// The view.
#[derive(Debug)]
pub(super) struct App {
    /// Where it was opened, and what is behind the present place.
    trail: Vec<Place>,
    place: Place,
    history: History,
    page: Page,
    /// Since when nobody answers, in Unix milliseconds, and why.
    lost: Option<(u64, String)>,
    /// How long ago anything was heard.
    quiet: Duration,
    focus: Pane,
    /// The pane at the bottom of a run.
    lower: Pane,
    chosen: BTreeMap<Pane, Chosen>,
    filter: String,
    mode: Mode,
    measure: Measure,
}

impl App {
    /// Opens the view at a place. Keys lead no further back.
    pub(super) fn new(home: Place, first: Snapshot) -> Self {
        let mut history = History::default();
        let page = history.take(Arc::new(first));
        let focus = first_pane(&home);
        Self {
            trail: Vec::new(),
            place: home,
            history,
            page,
            lost: None,
            quiet: Duration::ZERO,
            focus,
            lower: Pane::Events,
            chosen: BTreeMap::new(),
            filter: String::new(),
            mode: Mode::Browse,
            measure: Measure::Accuracy,
        }
    }

    /// Takes what the coordinator has answered.
    pub(super) fn answered(&mut self, snapshot: Snapshot) {
        self.lost = None;
        self.page = self.history.take(Arc::new(snapshot));
        for pane in self.panes() {
            let keys = self.keys(pane);
            if let Some(chosen) = self.chosen.get_mut(&pane) {
                let found = keys.iter().position(|key| *key == chosen.key);
                chosen.index = found.unwrap_or(chosen.index).min(keys.len().saturating_sub(1));
                chosen.key = keys.get(chosen.index).cloned().unwrap_or_default();
            }
        }
    }

    /// Takes that nobody answers at `at_ms`. What was answered last stays in sight.
    pub(super) fn unanswered(&mut self, at_ms: u64, why: String) {
        let since = self.lost.take().map_or(at_ms, |(since, _)| since);
        self.lost = Some((since, why));
    }

    /// Takes how long ago the last answer came, or the news that there is none.
    pub(super) fn heard_ago(&mut self, quiet: Duration) {
        self.quiet = quiet;
    }

    /// Does what a key says.
    pub(super) fn press(&mut self, key: KeyEvent) -> Outcome {
        if key.kind == KeyEventKind::Release {
            return Outcome::GoOn;
        }
        if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
            return Outcome::Quit;
        }
        match self.mode {
            Mode::Help => self.mode = Mode::Browse,
            Mode::Filter => self.write(key.code),
            Mode::Browse if key.modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT) => {}
            Mode::Browse => return self.browse(key.code),
        }
        Outcome::GoOn
    }

    fn browse(&mut self, code: KeyCode) -> Outcome {
        let lines = self.keys(self.focus).len();
        match code {
            KeyCode::Char('q') => return Outcome::Quit,
            KeyCode::Char('?') => self.mode = Mode::Help,
            KeyCode::Char('m') => self.measure = self.measure.other(),
            KeyCode::Char('/') if matches!(self.place, Place::Run(_)) => {
                (self.mode, self.focus) = (Mode::Filter, Pane::Agents);
            }
            KeyCode::Tab => self.turn(1),
            KeyCode::BackTab => self.turn(self.panes().len().saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.choose(|index| index.saturating_add(1)),
            KeyCode::Up | KeyCode::Char('k') => self.choose(|index| index.saturating_sub(1)),
            KeyCode::PageDown => self.choose(|index| index.saturating_add(PAGE)),
            KeyCode::PageUp => self.choose(|index| index.saturating_sub(PAGE)),
            KeyCode::Home | KeyCode::Char('g') => self.choose(|_| 0),
            KeyCode::End | KeyCode::Char('G') => self.choose(|_| lines),
            KeyCode::Enter | KeyCode::Right | KeyCode::Char('l') => self.open(),
            KeyCode::Esc | KeyCode::Backspace | KeyCode::Left | KeyCode::Char('h') => self.back(),
            _ => {}
        }
        Outcome::GoOn
    }

    /// Writes the part of the names of agents that are shown.
    fn write(&mut self, code: KeyCode) {
        match code {
            KeyCode::Char(character) if self.filter.chars().count() < limits::TOP_FILTER_CHARS => {
                self.filter.push(character);
            }
            KeyCode::Backspace => _ = self.filter.pop(),
            KeyCode::Enter => self.mode = Mode::Browse,
            KeyCode::Esc => {
                self.filter.clear();
                self.mode = Mode::Browse;
            }
            _ => return,
        }
        self.choose(|_| 0);
    }

    fn turn(&mut self, by: usize) {
        let panes = self.panes();
        let place = panes.iter().position(|pane| *pane == self.focus).unwrap_or(0);
        self.focus = panes.get((place + by) % panes.len().max(1)).copied().unwrap_or(self.focus);
        if matches!(self.focus, Pane::Events | Pane::Measured | Pane::Facts) {
            self.lower = self.focus;
        }
    }

    fn choose(&mut self, next: impl Fn(usize) -> usize) {
        let keys = self.keys(self.focus);
        let chosen = self.chosen.entry(self.focus).or_default();
        chosen.index = next(chosen.index).min(keys.len().saturating_sub(1));
        chosen.key = keys.get(chosen.index).cloned().unwrap_or_default();
    }

    /// Goes to what the chosen line is about.
    fn open(&mut self) {
        let index = self.chosen.get(&self.focus).map_or(0, |chosen| chosen.index);
        let place = match self.focus {
            Pane::Notes => self
                .notes()
                .into_iter()
                .nth(index)
                .and_then(|note| note.run.map(Place::Run).or(note.search.map(Place::Search))),
            Pane::Runs => ordered(&self.page).get(index).map(|view| Place::Run(view.summary.name.clone())),
            Pane::Searches => self.searches().get(index).map(|view| Place::Search(view.summary.name.clone())),
            Pane::Events => self.events().nth(index).and_then(|entry| entry.run.clone()).map(Place::Run),
            Pane::Trials => self.keys(Pane::Trials).into_iter().nth(index).map(Place::Run),
            Pane::Agents | Pane::Measured | Pane::Facts => None,
        };
        let Some(place) = place.filter(|place| *place != self.place && self.has(place)) else { return };
        self.trail.push(std::mem::replace(&mut self.place, place));
        self.arrive();
    }

    /// Whether the process has it.
    fn has(&self, place: &Place) -> bool {
        match place {
            Place::Overview => true,
            Place::Run(name) => self.runs().iter().any(|view| view.summary.name == *name),
            Place::Search(name) => self.searches().iter().any(|view| view.summary.name == *name),
        }
    }

    fn back(&mut self) {
        if !self.filter.is_empty() {
            self.filter.clear();
        } else if let Some(place) = self.trail.pop() {
            self.place = place;
            self.arrive();
        }
    }

    fn arrive(&mut self) {
        (self.focus, self.lower) = (first_pane(&self.place), Pane::Events);
        self.filter.clear();
        // Those of the overview keep what is chosen in them.
        self.chosen.retain(|pane, _| matches!(pane, Pane::Runs | Pane::Searches));
    }

    /// Returns the panes of the place, in the order of Tab.
    pub(super) fn panes(&self) -> Vec<Pane> {
        match self.place {
            Place::Overview if self.searches().is_empty() => vec![Pane::Notes, Pane::Runs, Pane::Events],
            Place::Overview => vec![Pane::Notes, Pane::Runs, Pane::Searches, Pane::Events],
            Place::Run(_) => vec![Pane::Agents, Pane::Events, Pane::Measured, Pane::Facts],
            Place::Search(_) => vec![Pane::Trials],
        }
    }

    /// Returns what the lines of a pane are about.
    fn keys(&self, pane: Pane) -> Vec<String> {
        let report = self.report();
        match pane {
            Pane::Notes => self.notes().into_iter().map(|note| note.text).collect(),
            Pane::Runs => ordered(&self.page).into_iter().map(|view| view.summary.name.clone()).collect(),
            Pane::Searches => self.searches().iter().map(|view| view.summary.name.clone()).collect(),
            Pane::Events => self.events().map(|entry| format!("{} {}", entry.at_ms, entry.text)).collect(),
            Pane::Agents => {
                let agents = report.map(|report| Agents::named(report, &self.filter)).unwrap_or_default();
                agents.rows.into_iter().map(|row| row.name).collect()
            }
            Pane::Measured => {
                let aggregates = report.map_or(&[][..], |report| &report.aggregates);
                aggregates.iter().rev().map(|timed| timed.aggregate.version.to_string()).collect()
            }
            Pane::Facts => {
                let lines = report.map(crate::commands::status_lines).unwrap_or_default();
                lines.into_iter().map(|(key, _)| key.to_owned()).collect()
            }
            Pane::Trials => {
                let report = self.search().and_then(|view| view.report.as_ref());
                let trials = report.map(|report| report.ordered()).unwrap_or_default();
                trials.into_iter().map(|trial| trial.run.clone()).collect()
            }
        }
    }

    /// Returns the chosen line of a pane that keys act on.
    pub(super) fn selected(&self, pane: Pane) -> Option<usize> {
        (self.focus == pane).then(|| self.chosen.get(&pane).map_or(0, |chosen| chosen.index))
    }

    /// Returns what needs the operator of the place.
    pub(super) fn notes(&self) -> Vec<Note> {
        let mut notes = attention::notes(&self.page);
        if let Place::Run(name) = &self.place {
            notes.retain(|note| note.run.as_ref() == Some(name) || (note.run.is_none() && note.search.is_none()));
        }
        if let Some((since, why)) = &self.lost {
            let text = format!("no answer since {}, trying again: {why}", time_of_day(*since));
            notes.insert(0, Note { urgent: true, run: None, search: None, text });
        }
        notes
    }

    /// Returns the events of the place, newest first.
    pub(super) fn events(&self) -> impl Iterator<Item = &Entry> {
        let run = match &self.place {
            Place::Run(name) => Some(name),
            Place::Overview | Place::Search(_) => None,
        };
        let entries = self.page.log.iter().rev().map(AsRef::as_ref);
        entries.filter(move |entry: &&Entry| run.is_none() || entry.run.as_ref() == run)
    }

    pub(super) fn runs(&self) -> &[RunView] {
        &self.page.snapshot.view.runs
    }

    pub(super) fn searches(&self) -> &[SearchView] {
        &self.page.snapshot.view.searches
    }

    /// Returns the run that is looked at.
    pub(super) fn run(&self) -> Option<&RunView> {
        self.runs().iter().find(|view| matches!(&self.place, Place::Run(name) if *name == view.summary.name))
    }

    /// Returns what is known of that run.
    pub(super) fn report(&self) -> Option<&StatusReport> {
        self.run()?.report.as_deref()
    }

    /// Returns the search that is looked at.
    pub(super) fn search(&self) -> Option<&SearchView> {
        self.searches().iter().find(|view| matches!(&self.place, Place::Search(name) if *name == view.summary.name))
    }

    /// Whether the search that is looked at has ended.
    pub(super) fn is_search_over(&self) -> bool {
        let report = self.search().and_then(|view| view.report.as_ref());
        report.is_some_and(|report| report.state != SearchPhase::Running)
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    pub(super) fn page(&self) -> &Page {
        &self.page
    }

    pub(super) fn focus(&self) -> Pane {
        self.focus
    }

    pub(super) fn lower(&self) -> Pane {
        self.lower
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    pub(super) fn filter(&self) -> &str {
        &self.filter
    }

    pub(super) fn measure(&self) -> Measure {
        self.measure
    }

    /// Returns since when nobody answers, in Unix milliseconds.
    pub(super) fn lost_since(&self) -> Option<u64> {
        self.lost.as_ref().map(|(since, _)| *since)
    }

    /// Returns for how long nothing was heard, in seconds, where that is so long that what is shown is not live.
    pub(super) fn silence_s(&self) -> Option<u64> {
        (self.quiet >= Duration::from_millis(limits::TOP_SILENCE_MS)).then_some(self.quiet.as_secs())
    }

    /// Whether keys lead further back.
    pub(super) fn is_inside(&self) -> bool {
        !self.trail.is_empty()
    }
}

fn first_pane(place: &Place) -> Pane {
    match place {
        Place::Overview => Pane::Runs,
        Place::Run(_) => Pane::Agents,
        Place::Search(_) => Pane::Trials,
    }
}

#[cfg(test)]
mod tests;
