//! How a process begins with a run and ends it, and what it tells of its runs.

use std::sync::Arc;

use anabranch_common::ids::RunId;
use anabranch_common::wire::runs::{RunInfo, RunsWanted};

use super::part::{self, Part};
use super::{Driver, FAREWELL};
use crate::host::Input;
use crate::report::RunReport;
use crate::session::command::Ending;
use crate::transport::{NetEvent, Op, RunsEvent};

impl Driver {
    pub(super) fn listed(&mut self, number: u64, event: RunsEvent) -> Option<Input> {
        if number != self.subscription.0 {
            return None;
        }
        Some(match event {
            RunsEvent::Listed(list) => Input::Listed(list),
            RunsEvent::Lost(problem) => {
                self.subscription.1 = None;
                Input::ListLost(problem)
            }
        })
    }

    /// Opens the store of a run beside the loop, once the store that it had before is closed.
    pub(super) fn begin(&mut self, info: RunInfo) {
        let (setting, opened) = (self.setting.clone(), Arc::clone(&self.opened));
        let before = self.closing.remove(&info.run);
        tokio::spawn(async move {
            if let Some(before) = before {
                // A panic there was reported by its own thread.
                let _ = before.await;
            }
            let (run, tell) = (info.run, setting.tell.clone());
            if let Err(panic) = tokio::task::spawn_blocking(move || setting.open(&info, &opened)).await {
                // The loop has ended: nobody waits for this run.
                let _ = tell.send(Input::NotBegun { run, problem: panic.to_string() }).await;
            }
        });
    }

    /// A run begins: what was opened for it is used from now on.
    pub(super) fn take_opened(&mut self, run: RunId) {
        let Some((part, of_run)) = self.opened.lock().remove(&run) else { return };
        self.maths.begin(run, of_run);
        self.parts.insert(run, part);
    }

    /// A run is over here.
    pub(super) fn end(&mut self, run: RunId, ending: &Ending) {
        let Some(Part { link, store, .. }) = self.parts.remove(&run) else { return };
        self.maths.forget(run);
        if let Some((link, _)) = link {
            // A link that takes no more messages has no last word to say.
            if link.ops.try_send(Op::Close).is_ok() {
                self.parting.insert(link.name);
            }
        }
        let dir = (run != self.home && *ending == Ending::Finished).then(|| self.dir.of_run(run));
        let close = tokio::task::spawn_blocking(move || {
            store.finish();
            if let Some(dir) = dir {
                part::remove(&dir);
            }
        });
        self.closing.retain(|_, close| !close.is_finished());
        self.closing.insert(run, close);
        if run == self.home {
            self.report.change(|report| {
                if let Some(live) = &mut report.live {
                    (live.connection, live.work) = ("down".to_owned(), "idle".to_owned());
                    live.last_problem = Some(format!("this run is over here: {ending}"));
                }
            });
        }
        if self.wanted.is_some() {
            match ending {
                Ending::Finished | Ending::Parked => tracing::info!(run = %run.short(), %ending, "a run is over here"),
                _ => tracing::error!(run = %run.short(), %ending, "a run has ended here; the others go on"),
            }
        }
    }

    /// Publishes the state of one run, or of all.
    pub(super) fn publish(&self, changed: Option<RunId>) {
        let changed = |run: &RunId| changed.is_none_or(|changed| changed == *run);
        self.report.change(|report| {
            report.runs.retain(|other| self.parts.contains_key(&other.run));
            for (run, node) in self.host.nodes().filter(|(run, _)| changed(run)) {
                let Some(part) = self.parts.get(&run) else { continue };
                let state = part.report(node.session());
                if run != self.home {
                    let info = self.host.info(run);
                    report.show(RunReport::of(run, info, state));
                    continue;
                }
                if let (Some(metrics), Some(live)) = (&self.metrics, &state.live) {
                    metrics.publish(live, state.outbox.len());
                }
                (report.live, report.outbox, report.branch) = (state.live, state.outbox, state.branch);
            }
        });
    }

    /// Removes what there is of runs that are not listed and have nothing to hand over, beside the loop. A list of named runs
    /// says nothing about others.
    pub(super) fn sweep(&mut self) {
        if self.wanted != Some(RunsWanted::All) {
            return;
        }
        self.closing.retain(|_, close| !close.is_finished());
        let is_here = |run: &RunId| self.parts.contains_key(run) || self.closing.contains_key(run);
        let gone = |run: &RunId| *run != self.home && self.host.info(*run).is_none() && !is_here(run);
        let gone: Vec<RunId> = self.dir.runs().into_iter().filter(gone).collect();
        for run in gone {
            let dir = self.dir.of_run(run);
            // Should it be listed meanwhile, its store is opened after this.
            self.closing.insert(run, tokio::task::spawn_blocking(move || part::sweep(&dir)));
        }
    }

    /// Ends the stream with lists of runs, and waits until it has let go of the connection: that closes with the last link,
    /// which waits for the other side.
    async fn end_subscription(&mut self) {
        let (number, link) = (self.subscription.0, self.subscription.1.take());
        if link.is_none() {
            return;
        }
        drop(link);
        let lost = async {
            while let Some((of, event)) = self.list_events.recv().await {
                if of == number && matches!(event, RunsEvent::Lost(_)) {
                    return;
                }
            }
        };
        if tokio::time::timeout(FAREWELL, lost).await.is_err() {
            tracing::debug!("the list of runs did not end in time");
        }
    }

    /// Lets the last words out, then closes what is open.
    pub(super) async fn farewell(mut self) {
        self.stop.set(true);
        self.end_subscription().await;
        // An end in order says nothing about memory. Where none was left there is none to remove.
        let _ = std::fs::remove_file(self.dir.memory());
        let runs: Vec<RunId> = self.parts.keys().copied().collect();
        runs.into_iter().for_each(|run| self.end(run, &Ending::Parked));
        let Self { mut parting, mut net_events, inputs, closing, .. } = self;
        let gone = async {
            while !parting.is_empty() {
                match net_events.recv().await {
                    Some((of, NetEvent::Disconnected(_))) => _ = parting.remove(&of),
                    Some(_) => {}
                    None => return,
                }
            }
        };
        if tokio::time::timeout(FAREWELL, gone).await.is_err() {
            tracing::debug!("the connection did not close in time");
        }
        // What the stores' threads still have to tell is for nobody: they must not wait for room in this queue.
        drop(inputs);
        let finished = async {
            for close in closing.into_values() {
                // A panic there was reported by its own thread.
                let _ = close.await;
            }
        };
        if tokio::time::timeout(FAREWELL, finished).await.is_err() {
            tracing::debug!("a store did not close in time; what it acknowledged is durable all the same");
        }
    }
}
