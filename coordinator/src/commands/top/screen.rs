//! The terminal: it is taken over, drawn on, and given back whatever happens.
//!
//! ```text
//!  keys     ─┐
//!  signals  ─┼─► Input ─► show ─► App ─► draw
//!  Feed     ─┘ ◄── place, and a bell when it changes
//! ```

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use anabranch_common::limits;
use anabranch_io::exit::{ExitCode, Fail};
use anabranch_io::signals::{OnSignal, Signals};
use anabranch_io::terminal::visible_line;
use anyhow::Context as _;
use parking_lot::Mutex;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEvent};

use super::app::{App, Outcome};
use super::draw::draw;
use super::feed::Feed;
use super::place::Place;
use crate::clock;
use crate::commands::status::INTERVAL;
use crate::web::Snapshot;
use crate::widgets;

/// How long the coordinator gets to hear that the view is closed.
const GOODBYE: Duration = Duration::from_millis(limits::GOODBYE_MS);

/// What the view hears.
enum Input {
    Key(KeyEvent),
    Resized,
    Answered(Box<Snapshot>),
    Unanswered(String),
    /// A signal, or a terminal that has gone.
    Stop,
    /// One of the threads has panicked, and has said so.
    Broken,
}

/// Whether the view closes by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    Quit,
    SearchIsOver,
}

/// Opens the view and returns how it stood when it was closed.
///
/// # Errors
/// The first answer fails, which is then said on the plain terminal; or there is no terminal.
pub(super) fn show(mut feed: impl Feed, home: impl FnOnce(&Snapshot) -> Place, until: Until) -> anyhow::Result<App> {
    let first = feed.next(&Place::Overview)?;
    let mut app = App::new(home(&first), first);
    let (to_view, inputs) = sync_channel(1);
    let (bell, rung) = sync_channel(1);
    let place = Arc::new(Mutex::new(app.place().clone()));
    listen(&to_view).context("cannot listen for signals")?;
    let mut screen = Screen::open()?;
    read_keys(to_view.clone())?;
    let (over, is_over) = sync_channel::<()>(1);
    let asking = Arc::clone(&place);
    let guard = Guard(to_view);
    std::thread::Builder::new().name("feed".to_owned()).spawn(move || {
        ask(feed, &asking, &guard, &rung);
        drop(over);
    })?;
    let mut heard = clock::monotonic();
    loop {
        app.heard_ago(heard.elapsed());
        screen.draw(&app)?;
        let input = match inputs.recv_timeout(INTERVAL) {
            Ok(input) => input,
            // The header says how long ago anything was heard.
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => Input::Broken,
        };
        if matches!(input, Input::Answered(_) | Input::Unanswered(_)) {
            heard = clock::monotonic();
        }
        match input {
            Input::Key(key) if app.press(key) == Outcome::Quit => break,
            Input::Key(_) | Input::Resized => {}
            Input::Answered(snapshot) => app.answered(*snapshot),
            Input::Unanswered(why) => app.unanswered(clock::unix_ms(), why),
            Input::Stop => break,
            Input::Broken => {
                drop(screen);
                return Err(Fail::new(ExitCode::Other, "a part of the view has failed; see above".to_owned()).into());
            }
        }
        if until == Until::SearchIsOver && app.is_search_over() {
            break;
        }
        if *place.lock() != *app.place() {
            place.lock().clone_from(app.place());
            // A bell that rings already says the same.
            let _ = bell.try_send(());
        }
    }
    drop(screen);
    // The feed takes its leave of the coordinator, unless it waits for an answer.
    drop((bell, inputs));
    let _ = is_over.recv_timeout(GOODBYE);
    Ok(app)
}

/// Asks once a second, and at once when another place is looked at, until the view is closed.
fn ask(mut feed: impl Feed, place: &Mutex<Place>, to_view: &Guard, bell: &Receiver<()>) {
    while !matches!(bell.recv_timeout(INTERVAL), Err(RecvTimeoutError::Disconnected)) {
        let looked_at = place.lock().clone();
        let input = match feed.next(&looked_at) {
            Ok(snapshot) => Input::Answered(Box::new(snapshot)),
            Err(error) => Input::Unanswered(visible_line(&format!("{error:#}")).into_owned()),
        };
        if to_view.0.send(input).is_err() {
            return;
        }
    }
}

fn read_keys(to_view: SyncSender<Input>) -> std::io::Result<()> {
    let guard = Guard(to_view);
    let read = move || {
        loop {
            let input = match event::read() {
                Ok(Event::Key(key)) => Input::Key(key),
                Ok(Event::Resize(..)) => Input::Resized,
                Ok(_) => continue,
                Err(_) => Input::Stop,
            };
            let is_last = matches!(input, Input::Stop);
            if guard.0.send(input).is_err() || is_last {
                return;
            }
        }
    };
    std::thread::Builder::new().name("keys".to_owned()).spawn(read).map(drop)
}

/// Tells the view of SIGTERM, SIGINT and SIGHUP.
fn listen(to_view: &SyncSender<Input>) -> std::io::Result<()> {
    let mut signals = Signals::install()?;
    signals.set(OnSignal::Tell);
    let guard = Guard(to_view.clone());
    let listen = move || {
        signals.wait();
        // A view that is closed already needs no signal.
        let _ = guard.0.send(Input::Stop);
    };
    std::thread::Builder::new().name("stop".to_owned()).spawn(listen).map(drop)
}

/// Tells the view when its thread panics.
struct Guard(SyncSender<Input>);

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.0.send(Input::Broken);
        }
    }
}

/// The terminal while it is taken over. The hook of ratatui gives it back before a panic is printed.
struct Screen {
    terminal: DefaultTerminal,
    is_colourless: bool,
}

impl Screen {
    fn open() -> anyhow::Result<Self> {
        let terminal = ratatui::try_init().context("cannot use this terminal")?;
        Ok(Self { terminal, is_colourless: widgets::is_colourless() })
    }

    fn draw(&mut self, app: &App) -> anyhow::Result<()> {
        let is_colourless = self.is_colourless;
        let draw = |frame: &mut ratatui::Frame<'_>| {
            draw(app, frame);
            if is_colourless {
                widgets::remove_colours(frame.buffer_mut());
            }
        };
        self.terminal.draw(draw).context("cannot draw")?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing back.
        let _ = ratatui::try_restore();
    }
}
