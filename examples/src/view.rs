//! The live view on a terminal, and plain lines elsewhere.

mod run;

use std::fmt::Debug;
use std::io::IsTerminal;

use anabranch_coordinator::widgets::{is_colourless, remove_colours};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Stylize as _;
use ratatui::text::Line;
use ratatui::widgets::Paragraph;
use ratatui::{DefaultTerminal, Frame};

pub use anabranch_coordinator::widgets::Measure;
pub use run::Subject;

/// Lines of news that stay in sight.
const NEWS: u16 = 4;

/// What a view shows, and where it comes from.
pub trait Picture {
    /// What the coordinator says, again and again.
    type Report: Clone + Debug + Send + 'static;

    /// Command of the coordinator that prints reports; `--watch --json --dir DIR` follow.
    const COMMAND: &'static [&'static str];

    /// Returns a report that the command has printed as a line; `None` where the line is no report.
    fn parse(line: &str) -> Option<Self::Report>;

    /// Returns what a report says, as lines for where there is no terminal. `before` is the report before it.
    fn lines(&self, before: Option<&Self::Report>, report: &Self::Report) -> Vec<String>;

    /// Draws a report; none before the first one.
    fn draw(&self, frame: &mut Frame<'_>, area: Rect, report: Option<&Self::Report>);
}

/// Where progress is shown.
#[derive(Debug)]
pub struct View<P: Picture = Subject> {
    picture: P,
    news: Vec<String>,
    last: Option<Box<P::Report>>,
    /// None where plain lines are printed.
    terminal: Option<Box<DefaultTerminal>>,
}

impl<P: Picture> View<P> {
    /// Opens a live view on a terminal; elsewhere, and with `plain`, the view prints lines.
    #[must_use]
    pub fn open(picture: P, plain: bool) -> Self {
        let terminal = (!plain && std::io::stdout().is_terminal()).then(|| Box::new(ratatui::init()));
        Self { picture, news: Vec::new(), last: None, terminal }
    }

    /// Shows an event.
    pub fn say(&mut self, what: &str) {
        if self.terminal.is_none() {
            println!("{what}");
            return;
        }
        self.news.push(what.to_owned());
        self.draw();
    }

    /// Shows a report.
    pub fn show(&mut self, report: &P::Report) {
        if self.terminal.is_none() {
            self.picture.lines(self.last.as_deref(), report).iter().for_each(|line| println!("{line}"));
        }
        self.last = Some(Box::new(report.clone()));
        self.draw();
    }

    fn draw(&mut self) {
        let Self { picture, news, last, terminal } = self;
        if let Some(terminal) = terminal {
            // A terminal that went away is no reason to stop training.
            let _ = terminal.draw(|frame| draw(frame, picture, news, last.as_deref()));
        }
    }

    /// Gives the terminal back.
    pub fn close(&mut self) {
        if self.terminal.take().is_some() {
            ratatui::restore();
        }
    }
}

impl<P: Picture> Drop for View<P> {
    fn drop(&mut self) {
        self.close();
    }
}

fn draw<P: Picture>(frame: &mut Frame<'_>, picture: &P, news: &[String], report: Option<&P::Report>) {
    let [area, log] = Layout::vertical([Constraint::Min(5), Constraint::Length(1 + NEWS)]).areas(frame.area());
    picture.draw(frame, area, report);
    let newest = news.iter().rev().take(usize::from(NEWS)).rev();
    let lines = std::iter::once(Line::from("News").bold()).chain(newest.map(|what| Line::from(what.as_str())));
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), log);
    if is_colourless() {
        remove_colours(frame.buffer_mut());
    }
}
