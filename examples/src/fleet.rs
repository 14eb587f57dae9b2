//! A coordinator and its agents while they are under way: what is shown of them, and what happens to the coordinator.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::daemon::{Daemon, now};
use crate::run_dir::RunDir;
use crate::view::{Picture, View};
use crate::watch::Watch;

/// Time between two looks at the daemons.
const LOOK: Duration = Duration::from_millis(200);
/// What a coordinator logs when it serves, and how long that takes at most.
const SERVING: &str = " serving";
const START: Duration = Duration::from_secs(30);
/// Agents end this long after their coordinator at most.
const END: Duration = Duration::from_secs(10);

/// A coordinator and its agents.
#[derive(Debug)]
pub struct Fleet<P: Picture> {
    /// The agents.
    pub agents: Vec<Daemon>,
    run: RunDir,
    view: View<P>,
    started: Instant,
    patience: Duration,
    coordinator: Daemon,
    /// None while there is no coordinator: reading its directory would be in the way of its start.
    watch: Option<Watch<P>>,
    last: Option<(Box<P::Report>, Instant)>,
}

impl<P: Picture> Fleet<P> {
    /// Starts the coordinator. The example is given up when `patience` has passed since `started`.
    ///
    /// # Errors
    /// The coordinator does not serve.
    pub fn start(run: &RunDir, view: View<P>, started: Instant, patience: Duration) -> anyhow::Result<Self> {
        let mut coordinator = run.start_coordinator()?;
        coordinator.wait_for_log(SERVING, START)?;
        let (run, agents) = (run.clone(), Vec::new());
        Ok(Self { agents, run, view, started, patience, coordinator, watch: None, last: None })
    }

    /// Shows an event.
    pub fn say(&mut self, what: &str) {
        self.view.say(what);
    }

    /// Returns the latest report, and how long ago it came.
    #[must_use]
    pub fn last(&self) -> Option<(&P::Report, Duration)> {
        self.last.as_ref().map(|(report, at)| (&**report, at.elapsed()))
    }

    /// Shows reports until one fulfils `done`.
    ///
    /// # Errors
    /// The coordinator ends, or patience does.
    pub fn until(&mut self, what: &str, done: impl Fn(&P::Report) -> bool) -> anyhow::Result<()> {
        while self.coordinator.try_wait()?.is_none() {
            if self.look(what)?.is_some_and(&done) {
                return Ok(());
            }
        }
        bail!("the coordinator ended before {what}; logs are in {}", self.run.logs().display());
    }

    /// Shows reports for `span`, or until the coordinator ends.
    ///
    /// # Errors
    /// Patience ends.
    pub fn for_a_while(&mut self, span: Duration) -> anyhow::Result<()> {
        let from = now();
        while from.elapsed() < span && self.coordinator.try_wait()?.is_none() {
            self.look("a killed process was started again")?;
        }
        Ok(())
    }

    /// Shows the next report, if one comes soon.
    fn look(&mut self, what: &str) -> anyhow::Result<Option<&P::Report>> {
        if self.started.elapsed() > self.patience {
            let logs = self.run.logs();
            bail!("{} s have passed before {what}; logs are in {}", self.patience.as_secs(), logs.display());
        }
        let watch = match &mut self.watch {
            Some(watch) => watch,
            none => none.insert(Watch::start(&self.run.coordinator())?),
        };
        let Some(report) = watch.next(LOOK) else {
            // What it asks for may be known a little later.
            if watch.has_ended()? {
                self.watch = None;
            }
            return Ok(None);
        };
        self.view.show(&report);
        self.last = Some((Box::new(report), now()));
        Ok(self.last.as_ref().map(|(report, _)| &**report))
    }

    /// Kills the coordinator with SIGKILL, and starts it again after `span`.
    ///
    /// # Errors
    /// It does not serve again.
    pub fn kill_coordinator(&mut self, span: Duration, news: [&str; 2]) -> anyhow::Result<()> {
        self.watch = None;
        self.coordinator.kill()?;
        self.say(news[0]);
        std::thread::sleep(span);
        self.coordinator = self.run.start_coordinator()?;
        self.coordinator.wait_for_log(SERVING, START)?;
        self.say(news[1]);
        Ok(())
    }

    /// Asks all processes to end, and waits for that. Returns the last report.
    ///
    /// # Errors
    /// The coordinator fails, or patience ends.
    pub fn stop(self) -> anyhow::Result<P::Report> {
        for daemon in self.agents.iter().chain([&self.coordinator]) {
            daemon.ask_to_end()?;
        }
        self.end()
    }

    /// Shows reports to the end of all processes. Returns the last one.
    ///
    /// # Errors
    /// The coordinator fails, or patience ends.
    pub fn end(mut self) -> anyhow::Result<P::Report> {
        while self.coordinator.try_wait()?.is_none() {
            self.look("the end")?;
        }
        let code = self.coordinator.wait()?;
        if code != Some(0) {
            bail!("the coordinator ended with exit code {code:?}; its log is {}", self.coordinator.log().display());
        }
        self.view.close();
        self.agents.iter_mut().try_for_each(|agent| agent.end(END))?;
        let (report, _) = self.last.context("the coordinator ended before its first report")?;
        Ok(*report)
    }
}
