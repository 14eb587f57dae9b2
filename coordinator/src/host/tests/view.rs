//! What the process is seen to do.

use anabranch_common::status::RunStanding;

use super::*;

#[test]
fn a_view_has_every_run_with_its_report_and_every_member() {
    let world = World::started();
    let view = world.host.view();
    assert_eq!(view.health, Health::Serving);
    let runs: Vec<_> = view.runs.iter().map(|run| (run.summary.name.as_str(), run.summary.state)).collect();
    assert_eq!(runs, [("a", RunStanding::Running), ("b", RunStanding::Running)]);
    let members: Vec<_> = view.members.iter().map(|member| (member.agent, member.revoked)).collect();
    assert_eq!(members, [(AGENT, false), (OTHER, false)]);
    for (run, agent) in view.runs.iter().zip([AGENT, OTHER]) {
        let report = run.report.as_ref().expect("it is served");
        assert!(report.serving && report.uploads.is_some() && run.queues.is_some(), "{report:?}");
        let agents: Vec<_> = report.agents.iter().map(|known| (known.agent, known.connected)).collect();
        assert_eq!(agents, [(agent, true)], "the agents of this run alone");
        let named = view.members.iter().find(|member| member.agent == agent).map(|member| &member.name);
        assert_eq!(named, Some(&report.agents[0].name));
    }
}

#[test]
fn records_that_wait_for_the_disk_are_seen() {
    let mut world = World::started();
    let waiting = |world: &World| world.host.view().runs[0].queues.map(|queues| queues.undurable_records);
    assert_eq!(waiting(&world), Some(0));
    world.ask(Some("a"), RunRequest::Pause);
    assert_eq!(waiting(&world), Some(1));
    world.work();
    assert_eq!(waiting(&world), Some(0));
}

#[test]
fn a_run_that_fails_while_it_is_served_makes_the_process_unwell_and_one_that_cannot_be_opened_does_not() {
    let mut world = World::started();
    world.host.cannot_serve("old", false, "its store is damaged".into());
    assert_eq!(world.host.view().health, Health::Serving);
    let error = StorageError::NoSpace { path: "somewhere".into() };
    let why = error.to_string();
    world.handle(Input::Done { run: B, done: Done::Write(Err(JobError::Storage(error))) });
    let view = world.host.view();
    assert_eq!(view.health, Health::Failed(format!("run b has failed: {why}")));
    let failed = view.runs.iter().find(|run| run.summary.name == "b").expect("it stays listed");
    assert!(failed.report.is_none() && failed.queues.is_none(), "what it did last may not be durable");
}

#[test]
fn a_process_that_parks_is_leaving_and_a_run_that_has_ended_keeps_a_short_report() {
    let mut world = World::started();
    world.park(B);
    world.work();
    let view = world.host.view();
    assert_eq!(view.health, Health::Serving);
    let report = view.runs[1].report.as_ref().expect("it has not failed");
    assert!(!report.serving && report.agents.is_empty() && view.runs[1].queues.is_none(), "{report:?}");
    world.handle(Input::Park);
    assert!(matches!(world.host.view().health, Health::Leaving(why) if why.contains("shutting down")));
}
