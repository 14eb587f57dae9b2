//! `top` and `status --watch` on a pseudo-terminal, beside a real coordinator.
//!
//! | test | guards |
//! |---|---|
//! | top shows what the page shows, follows it, and gives the terminal back | docs/operating.md, "top": keys, sizes, a coordinator that is lost and found again |
//! | signals, pipes and terminals without colours | SIGTERM and Ctrl-C restore; a pipe is refused with what to use instead; `NO_COLOR` |

use std::ffi::OsStr;
use std::path::Path;

use anabranch_tests::ledger::Settings;
use anabranch_tests::process::{Cluster, OnTerminal, PATIENCE, Role};
use nix::sys::signal::Signal;

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");
const DESK: (u16, u16) = (80, 24);
const PHONE: (u16, u16) = (40, 24);
const ESCAPE: &str = "\u{1b}";

fn open(cluster: &Cluster, verb: &[&str], env: &[(&str, &str)]) -> anyhow::Result<OnTerminal> {
    let dir = cluster.coordinator_dir();
    let mut args: Vec<&OsStr> = verb.iter().map(OsStr::new).collect();
    args.extend([OsStr::new("--dir"), dir.as_os_str()]);
    OnTerminal::start(Path::new(LAB), Role::Coordinator, &args, env, DESK)
}

/// Whether a screen shows something, wherever its lines are broken.
fn says(screen: &str, text: &str) -> bool {
    screen.split_whitespace().collect::<Vec<_>>().join(" ").contains(text)
}

#[test]
fn top_shows_what_needs_attention_follows_it_and_gives_the_terminal_back() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), &Settings::default().run_toml())?;
    cluster.start_coordinator()?;
    let mut top = open(&cluster, &["top"], &[])?;
    let screen = top.wait_for("no agent has taken part yet")?;
    assert!(screen.contains("Needs attention") && screen.contains("[!] ledger") && screen.contains("live"), "{screen}");
    assert!(top.has_colours() && !top.is_restored()?);

    cluster.join("clinic")?;
    cluster.start_ledger_agent("clinic", &[])?;
    cluster.wait_for_updates(5)?;
    top.wait_for("clinic is connected")?;
    top.wait_for("nothing needs you")?;
    top.press("\r")?;
    top.wait_for("run ledger")?;
    top.wait_until("the agent has a verdict", |screen| {
        says(screen, "Agents 1 training") || says(screen, "Agents 1 connected")
    })?;
    top.press("/x")?;
    top.wait_for("0 with \"x\"")?;
    top.press("\u{7f}CLI\r")?;
    top.wait_for("1 with \"CLI\"")?;
    top.press(ESCAPE)?;
    top.wait_until("the filter stays", |screen| !screen.contains("with \""))?;
    top.press("?")?;
    top.wait_for("PgUp, PgDn")?;
    top.press("?\t\t\t")?;
    top.wait_for("> Status")?;

    top.resize(PHONE)?;
    let screen =
        top.wait_until("it is not drawn in the new size", |screen| says(screen, "> Status") && says(screen, "q quit"))?;
    assert!(screen.lines().all(|line| line.chars().count() <= usize::from(PHONE.0)), "{screen}");
    top.resize(DESK)?;

    cluster.coordinator()?.kill()?;
    top.wait_until("nothing is said of the end", |screen| {
        says(screen, "no answer since") || says(screen, "no coordinator is running here")
    })?;
    cluster.start_coordinator()?;
    top.wait_until("the coordinator is not found again", |screen| {
        screen.lines().next().is_some_and(|head| head.ends_with("live")) && !says(screen, "no coordinator is running")
    })?;
    top.press(ESCAPE)?;
    top.wait_for("Needs attention")?;
    top.press("q")?;
    assert_eq!(top.wait(PATIENCE)?, 0, "{}", top.text());
    top.wait_until_restored()?;
    Ok(())
}

#[test]
fn signals_pipes_and_terminals_without_colours() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), &Settings::default().run_toml())?;
    cluster.coordinate(&["top"], &[])?.code(2)?.says(&["needs a terminal", "status --watch"])?;
    cluster.start_coordinator()?;
    let ends: [(&[&str], &str, Option<Signal>); 4] = [
        (&["top"], "Needs attention", Some(Signal::SIGTERM)),
        (&["top"], "Needs attention", Some(Signal::SIGINT)),
        (&["top"], "Needs attention", None),
        (&["status", "--watch"], "run ledger", None),
    ];
    for (verb, shown, signal) in ends {
        let mut view = open(&cluster, verb, &[("NO_COLOR", "1")])?;
        view.wait_for(shown)?;
        view.wait_for("live")?;
        assert!(!view.is_restored()?, "keys are still echoed");
        match signal {
            Some(signal) => view.signal(signal)?,
            None => view.press("\u{3}")?,
        }
        assert_eq!(view.wait(PATIENCE)?, 0, "{}", view.text());
        view.wait_until_restored()?;
        assert!(!view.has_colours());
        if verb[0] == "status" {
            view.wait_until("the report does not stay", |screen| says(screen, "state pending"))?;
        }
    }
    Ok(())
}
