//! `runs create|list|show|pause|resume|stop|delete`.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::Path;

use anabranch_common::ids::ModelVersion;
use anabranch_common::limits;
use anabranch_common::status::{RunCreated, RunStanding, RunSummary};
use anabranch_common::wire::operator::RunsRequest;
use anabranch_io::cli::OutputArgs;
use anabranch_io::exit::{ExitCode, Fail};
use anabranch_io::text_file::{self, TextError};
use anyhow::Context as _;

use super::output::{self, Align, Table};
use super::reach::{self, Coordinator};
use super::{checkpoint, control, status};
use crate::cli::{ReportArgs, RunName, RunReportArgs, RunTargetArgs, RunsVerb, TargetArgs, WhichRun};
use crate::config::{Config, ConfigError};
use crate::runs;

pub(super) fn runs(verb: RunsVerb) -> anyhow::Result<()> {
    let of =
        |target: TargetArgs, RunName { name }: RunName| RunTargetArgs { target, which: WhichRun { run: Some(name) } };
    match verb {
        RunsVerb::Create { target, name, config, submit_token, output } => {
            create(&target, name, &config, submit_token, output)
        }
        RunsVerb::List(args) => list(&args),
        RunsVerb::Show { target, name, output } => status::show(&RunReportArgs { target: of(target, name), output }),
        RunsVerb::Pause { target, name } => control::pause(&of(target, name)),
        RunsVerb::Resume { target, name } => control::resume(&of(target, name)),
        RunsVerb::Stop { target, name } => control::stop(&of(target, name)),
        RunsVerb::Delete { target, name, confirm, export } => {
            delete(&of(target, name), confirm.as_deref(), export.as_deref())
        }
    }
}

/// The file is checked here first, where its path is known.
fn create(
    target: &TargetArgs,
    name: String,
    path: &Path,
    submit_token: Option<String>,
    output: OutputArgs,
) -> anyhow::Result<()> {
    let refused = |error| reach::config_fail(error, "check the path", "anabranch-coordinator runs create");
    let config = text_file::read(path, limits::RUN_CONFIG_BYTES as u64).map_err(|error| {
        let path = path.to_owned();
        refused(match error {
            TextError::Encoding { encoding } => ConfigError::Encoding { path, encoding },
            source => ConfigError::Unreadable { path, source },
        })
    })?;
    Config::parse_run(path, &config, &name).map_err(refused)?;
    let request = RunsRequest::Create { name, config, submit_token };
    let json = Coordinator::reach(target)?.ask_json(request)?;
    if output.json {
        return output::print_line(&json);
    }
    let RunCreated { name, run } = output::read_report(&json, "the answer")?;
    output::print_line(&format!("created run {name} ({run})"))
}

fn list(ReportArgs { target, output }: &ReportArgs) -> anyhow::Result<()> {
    let json = Coordinator::look(target)?.ask_json(RunsRequest::List)?;
    if output.json {
        return output::print_line(&json);
    }
    let runs: Vec<RunSummary> = output::read_report(&json, "the list of runs")?;
    output::print(&table(&runs))
}

/// A line for each run, then the problems of some.
pub(super) fn table(runs: &[RunSummary]) -> String {
    let columns = [
        ("run", Align::Left),
        ("state", Align::Left),
        ("version", Align::Right),
        ("updates", Align::Right),
        ("agents", Align::Right),
        ("weight", Align::Right),
        ("id", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for run in runs {
        table.row(vec![
            run.name.clone(),
            run.state.word().to_owned(),
            run.version.map_or_else(|| "-".to_owned(), |version| version.to_string()),
            output::count(run.updates_accepted),
            format!("{}/{}", run.connected, run.agents.max(run.connected)),
            run.weight.to_string(),
            run.run.map_or_else(|| "-".to_owned(), |run| run.to_string()),
        ]);
    }
    let mut text = table.render();
    for run in runs {
        if let Some(problem) = &run.problem {
            text.push_str(&format!("\n{}: {problem}\n", run.name));
        }
    }
    text
}

fn delete(args: &RunTargetArgs, confirm: Option<&str>, export: Option<&Path>) -> anyhow::Result<()> {
    let name = args.which.run.as_deref().unwrap_or_default();
    let said = match confirm {
        Some(said) => said.to_owned(),
        None => ask(name)?,
    };
    if said != name {
        let fail = Fail::new(ExitCode::Usage, format!("{said:?} is not {name:?}; nothing was deleted"));
        return Err(fail.help("give the same name twice").into());
    }
    if let Some(out) = export {
        let before = deletable(&args.target, name)?;
        checkpoint::export(args, out, None, false).context("nothing was deleted: the model cannot be exported")?;
        if deletable(&args.target, name)? != before {
            let text = format!("nothing was deleted: run {name} has another version than was exported");
            let fail = Fail::new(ExitCode::Unavailable, text);
            return Err(fail.help("pause or stop it, then repeat this with another --export file").into());
        }
    }
    let done = Coordinator::reach(&args.target)?.ask_done(RunsRequest::Delete { run: said })?;
    output::print_line(&done)
}

/// Returns the version of a run that may be deleted, before a model of gigabytes is exported for that.
fn deletable(target: &TargetArgs, name: &str) -> anyhow::Result<Option<ModelVersion>> {
    let json = Coordinator::look(target)?.ask_json(RunsRequest::List)?;
    let runs: Vec<RunSummary> = output::read_report(&json, "the list of runs")?;
    check_deletable(&runs, name)
}

fn check_deletable(runs: &[RunSummary], name: &str) -> anyhow::Result<Option<ModelVersion>> {
    let is_meant = |run: &&RunSummary| run.name == name || run.run.is_some_and(|run| run.to_string() == name);
    let problem = match runs.iter().find(is_meant) {
        None => return Err(Fail::new(ExitCode::Other, format!("there is no run {name}; see `runs list`")).into()),
        Some(run) if run.own => runs::is_own(&run.name),
        Some(run) if run.state == RunStanding::Running => runs::is_running(&run.name),
        Some(run) if run.state == RunStanding::Opening => format!("run {name} is being opened; try again"),
        Some(run) => return Ok(run.version),
    };
    Err(Fail::new(ExitCode::Unavailable, format!("nothing was deleted: {problem}")).into())
}

/// Asks for the name on the terminal.
fn ask(name: &str) -> anyhow::Result<String> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        let fail = Fail::new(ExitCode::Usage, format!("deleting run {name} must be confirmed"));
        return Err(fail.help(format!("add --confirm {name}")).into());
    }
    output::hint(&format!("run {name}, its model and its journal will be gone; type its name to delete it:"));
    io::stderr().flush().ok();
    let mut line = String::new();
    stdin.lock().read_line(&mut line).context("cannot read from the terminal")?;
    Ok(line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use anabranch_common::ids::RunId;

    use super::*;

    #[test]
    fn nothing_is_exported_of_a_run_that_cannot_be_deleted() {
        let run = |name: &str, state| RunSummary { state, ..runs::unreadable(name.to_owned(), None) };
        let paused = RunSummary { version: Some(ModelVersion(7)), ..run("wards", RunStanding::Paused) };
        let own = RunSummary { own: true, ..run("mnist", RunStanding::Finished) };
        let runs = [own, paused, run("busy", RunStanding::Running), run("early", RunStanding::Opening)];
        assert_eq!(check_deletable(&runs, "wards").expect("it is paused"), Some(ModelVersion(7)));
        for (name, what) in [("mnist", "shares"), ("busy", "is running"), ("early", "opened"), ("none", "no run")] {
            let error = check_deletable(&runs, name).expect_err(name);
            assert!(error.to_string().contains(what), "{error}");
        }
    }

    #[test]
    fn every_run_has_a_line_and_those_with_a_problem_a_reason() {
        let run = |name: &str, problem: Option<&str>| RunSummary {
            name: name.into(),
            run: problem.is_none().then_some(RunId([1; 16])),
            own: false,
            weight: 2,
            state: if problem.is_some() { RunStanding::Failed } else { RunStanding::Running },
            version: problem.is_none().then_some(ModelVersion(7)),
            updates_accepted: 1_234,
            agents: 3,
            connected: 1,
            problem: problem.map(String::from),
        };
        let text = table(&[run("wards", None), run("old", Some("its store is damaged"))]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        let id = "01".repeat(16);
        assert_eq!(lines[1], ["wards", "running", "7", "1,234", "1/3", "2", id.as_str()]);
        assert_eq!(lines[2], ["old", "failed", "-", "1,234", "1/3", "2", "-"]);
        assert!(text.ends_with("\nold: its store is damaged\n"), "{text}");
    }
}
