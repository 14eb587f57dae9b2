//! `search start|status|stop|list|export`.

use std::path::{Path, PathBuf};

use anabranch_common::limits;
use anabranch_common::wire::operator::SearchRequest;
use anabranch_io::cli::OutputArgs;
use anabranch_io::exit::{ExitCode, Fail};
use anabranch_io::text_file::{self, TextError};
use anyhow::Context as _;

use super::output::{self, Align, Table};
use super::reach::{self, Coordinator};
use super::status::INTERVAL;
use super::{checkpoint, top};
use crate::cli::{ReportArgs, RunTargetArgs, SearchStatusArgs, SearchVerb, TargetArgs, WhichRun};
use crate::config::ConfigError;
use crate::runs::searches::check_texts;
use crate::search::check::Impossible;
use crate::search::price::Price;
use crate::search::report::{SearchPhase, SearchReport, SearchResult, SearchStarted, SearchSummary};
use crate::search::spec::SearchSpec;

/// Impossible combinations that `search start` shows.
const WARNINGS: usize = 8;

pub(super) fn search(verb: SearchVerb) -> anyhow::Result<()> {
    match verb {
        SearchVerb::Start { target, file, output } => start(&target, &file, output),
        SearchVerb::Status(args) => status(&args),
        SearchVerb::Stop { target, name } => {
            let done = Coordinator::reach(&target)?.ask_done(SearchRequest::Stop { name })?;
            output::print_line(&done)
        }
        SearchVerb::List(args) => list(&args),
        SearchVerb::Export { target, name, out, config, force } => export(target, name, &out, config.as_deref(), force),
    }
}

/// The files are checked here first, where their paths are known.
fn start(target: &TargetArgs, path: &Path, output: OutputArgs) -> anyhow::Result<()> {
    let refused = |error: anyhow::Error| {
        let fail = Fail::new(ExitCode::Config, format!("{error:#}"));
        anyhow::Error::new(fail.help("docs/search.md describes every key of SEARCH.toml"))
    };
    let text = read(path)?;
    let spec = SearchSpec::parse(path, &text).map_err(|error| refused(error.into()))?;
    let base = read(&spec.base_path(path))?;
    let (spec, _, impossible) = check_texts((path, &text), &base).map_err(refused)?;
    warn(&impossible);
    if spec.trials > 1 && !output.json {
        output::hint(&price(&Price::of(&spec)));
    }
    let request = SearchRequest::Start { path: path.display().to_string(), search: text, base };
    let json = Coordinator::reach(target)?.ask_json(request)?;
    if output.json {
        return output::print_line(&json);
    }
    let SearchStarted { name, trials, .. } = output::read_report(&json, "the answer")?;
    output::print_line(&format!("started search {name} of {trials} trials; `search status {name} --watch` shows them"))
}

fn read(path: &Path) -> anyhow::Result<String> {
    text_file::read(path, limits::RUN_CONFIG_BYTES as u64).map_err(|error| {
        let path = path.to_owned();
        let error = match error {
            TextError::Encoding { encoding } => ConfigError::Encoding { path, encoding },
            source => ConfigError::Unreadable { path, source },
        };
        reach::config_fail(error, "check the path", "anabranch-coordinator search start")
    })
}

/// Says which combinations no trial could run with.
fn warn(impossible: &[Impossible]) {
    for Impossible { trial, overrides, problem } in impossible.iter().take(WARNINGS) {
        let values: Vec<String> = overrides.iter().map(|(key, value)| format!("{key} = {value}")).collect();
        let who = trial.map_or_else(|| "a trial near".to_owned(), |trial| format!("trial {trial} with"));
        output::hint(&format!("{who} {} would be closed: {problem}", values.join(", ")));
    }
    if impossible.len() > WARNINGS {
        output::hint(&format!("... and {} more combinations like these", impossible.len() - WARNINGS));
    }
}

/// What a search costs, in full runs.
fn price(price: &Price) -> String {
    let runs = |contributions: u64| price.in_full_runs(contributions as f64);
    format!(
        "the search costs about {:.1} full runs of {} contributions (at least {:.1}, at most {:.1})",
        price.in_full_runs(price.about),
        output::count(price.full_run),
        runs(price.least),
        runs(price.most)
    )
}

fn status(args: &SearchStatusArgs) -> anyhow::Result<()> {
    let SearchStatusArgs { watch, output, .. } = args;
    let mut source = Source::new(args);
    if *watch && !output.json && top::is_terminal() {
        return top::search(source);
    }
    loop {
        let (json, report) = source.next()?;
        if output.json {
            output::print_line(&json)?
        } else {
            output::print(&report.text())?
        }
        if !watch || report.state != SearchPhase::Running {
            return Ok(());
        }
        std::thread::sleep(INTERVAL);
    }
}

/// The reports of one search. A coordinator that was started or stopped in the meantime is found again.
pub(super) struct Source {
    target: TargetArgs,
    name: Option<String>,
    /// The picture that is written of each report.
    svg: Option<PathBuf>,
    /// The running coordinator that answered last.
    running: Option<Coordinator>,
}

impl Source {
    fn new(args: &SearchStatusArgs) -> Self {
        let SearchStatusArgs { target, name, svg, .. } = args;
        Self { target: target.clone(), name: name.clone(), svg: svg.clone(), running: None }
    }

    /// Returns the next report, as JSON too.
    pub(super) fn next(&mut self) -> anyhow::Result<(String, SearchReport)> {
        let json = self.ask()?;
        let report: SearchReport = output::read_report(&json, "the search")?;
        if let Some(path) = &self.svg {
            std::fs::write(path, report.picture()).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok((json, report))
    }

    fn ask(&mut self) -> anyhow::Result<String> {
        let request = SearchRequest::Status { name: self.name.clone() };
        if let Some(mut coordinator) = self.running.take()
            && let Ok(json) = coordinator.ask_json(request.clone())
        {
            self.running = Some(coordinator);
            return Ok(json);
        }
        let mut coordinator = Coordinator::look(&self.target)?;
        let json = coordinator.ask_json(request)?;
        if matches!(coordinator, Coordinator::Running(_)) {
            self.running = Some(coordinator);
        }
        Ok(json)
    }
}

fn list(ReportArgs { target, output }: &ReportArgs) -> anyhow::Result<()> {
    let json = Coordinator::look(target)?.ask_json(SearchRequest::List)?;
    let none = "no searches; `search start SEARCH.toml` starts one";
    output::print_list(&json, *output, ("the list of searches", none), table)
}

fn table(searches: &[SearchSummary]) -> String {
    let columns = [
        ("search", Align::Left),
        ("state", Align::Left),
        ("trials", Align::Right),
        ("leader", Align::Left),
        ("metric", Align::Right),
    ];
    let mut table = Table::new(&columns);
    for search in searches {
        table.row(vec![
            search.name.clone(),
            search.state.word().to_owned(),
            format!("{}/{}", search.trials, search.trials_planned),
            search.leader.clone().unwrap_or_else(|| "-".to_owned()),
            search.metric.map_or_else(|| "-".to_owned(), |metric| format!("{metric:.4}")),
        ]);
    }
    let mut text = table.render();
    for search in searches {
        if let Some(problem) = &search.problem {
            text.push_str(&format!("\n{}: {problem}\n", search.name));
        }
    }
    text
}

fn export(
    target: TargetArgs,
    name: Option<String>,
    out: &Path,
    config: Option<&Path>,
    force: bool,
) -> anyhow::Result<()> {
    let there = config.filter(|path| !force && path.symlink_metadata().is_ok());
    if let Some(path) = there {
        let fail = Fail::new(ExitCode::Usage, format!("{} exists already", path.display()));
        return Err(fail.help("choose another file, or replace it with --force").into());
    }
    let json = Coordinator::look(&target)?.ask_json(SearchRequest::Export { name })?;
    let result: SearchResult = output::read_report(&json, "the answer")?;
    let which = WhichRun { run: Some(result.run.clone()) };
    checkpoint::export(&RunTargetArgs { target, which }, out, Some(result.version), force)?;
    if let Some(path) = config {
        // As it is: a report is made fit for a terminal, line by line.
        let SearchResult { config, .. } = serde_json::from_str(&json).context("the answer cannot be read")?;
        std::fs::write(path, config).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let who = if result.is_over { "winner" } else { "leader so far" };
    output::print_line(&format!(
        "the {who} of search {} is trial {} (run {}), measured with {:.4}",
        result.name, result.trial, result.run, result.metric
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::report::SearchStanding;

    #[test]
    fn every_search_has_a_line_and_those_with_a_problem_a_reason() {
        let running = SearchSummary {
            state: SearchStanding::Running,
            trials: 3,
            trials_planned: 16,
            leader: Some("lr-2".into()),
            metric: Some(0.91234),
            ..SearchSummary::unread("lr", None)
        };
        let text = table(&[running, SearchSummary::unread("old", Some("its store is damaged".into()))]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["lr", "running", "3/16", "lr-2", "0.9123"]);
        assert_eq!(lines[2], ["old", "failed", "0/0", "-", "-"]);
        assert!(text.ends_with("\nold: its store is damaged\n"), "{text}");
    }
}
