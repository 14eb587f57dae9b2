//! A run is operated from its page: with a token, by clicks and by keyboard.

use std::fs;
use std::path::Path;

use anabranch_common::status::{CheckpointStatus, PageTokenStatus};
use anabranch_common::wire::message::RunPhase;
use anabranch_io::model_file;
use anabranch_tests::clock::poll;
use anabranch_tests::ledger::Settings;
use anabranch_tests::process::{Browser, Cluster, PATIENCE, http_post};
use anyhow::Context as _;
use serde_json::json;

use crate::LAB;
use crate::scene::{DESK, PHONE, Scene, free_address, page_token, tab_to};

/// What the page says about the last request.
const TOLD: &str = "document.getElementById('told').innerText";

fn wait_until_told(browser: &mut Browser, kind: &str, text: &str) -> anyhow::Result<()> {
    let is_told = format!("document.getElementById('told').className === '{kind}' && {TOLD}.includes({})", json!(text));
    browser.wait_for(&is_told).map(drop)
}

/// Types a token into the dialog that is open.
fn enter(browser: &mut Browser, token: &str) -> anyhow::Result<()> {
    browser.wait_for("document.getElementById('ask').open && document.activeElement.id === 'ask-field'")?;
    browser.eval("document.getElementById('ask-field').select()")?;
    browser.type_text(token)?;
    browser.press("Enter")
}

#[test]
fn a_token_outlives_a_kill_and_the_answer_to_a_stop_comes_before_the_process_ends() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), &Settings::default().run_toml())?;
    let address = free_address()?;
    cluster.serve_with(&["--page", &address]);
    cluster.start_coordinator()?;
    cluster.join("one")?;
    cluster.start_ledger_agent("one", &[])?;
    cluster.wait_for_updates(2)?;
    let head = format!("Authorization: Bearer {}\r\n", page_token(&cluster, &["--operate"])?);
    cluster.coordinator()?.kill()?;
    cluster.start_coordinator()?;
    let run = cluster.status()?.run;
    let (status, text) = http_post(&address, &format!("/api/runs/{run}/stop"), &head)?;
    assert!(status == 200 && text.starts_with("stopped at version "), "{status}: {text}");
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    assert_eq!(cluster.status()?.state, RunPhase::Finished);
    Ok(())
}

#[test]
fn a_run_is_operated_with_a_token() -> anyhow::Result<()> {
    let Some(mut scene) = Scene::new(&["--stay"])? else { return Ok(()) };
    let viewer = scene.token(&["--name", "vera"])?;
    let operator = scene.token(&["--name", "otto", "--operate", "--expires", "2h"])?;
    let page = scene.page();
    scene.browser.look(DESK)?;
    scene.browser.open(&format!("{page}#/run/digits"))?;
    scene.browser.wait_for("document.querySelector('#live.now') && document.querySelector('#pause-run')")?;
    wrong_tokens_do_nothing(&mut scene, &viewer)?;

    // By keyboard from here: the button stays what it is when its word changes.
    scene.browser.eval("document.getElementById('subject').focus()")?;
    tab_to(&mut scene.browser, "#pause-run")?;
    scene.browser.press("Enter")?;
    enter(&mut scene.browser, &operator)?;
    wait_until_told(&mut scene.browser, "done", "digits: paused")?;
    scene.browser.wait_for("document.querySelector('.head .state').innerText === 'paused'")?;
    assert_eq!(scene.cluster.status()?.state, RunPhase::Paused);
    scene
        .browser
        .wait_for("document.activeElement.id === 'pause-run' && document.activeElement.innerText === 'Resume'")?;
    scene.look_at("operated")?;
    scene.browser.press("Enter")?;
    wait_until_told(&mut scene.browser, "done", "digits: resumed")?;
    scene.browser.wait_for("document.getElementById('pause-run').innerText === 'Pause'")?;

    // At a phone's width, by clicks.
    scene.browser.look(PHONE)?;
    for (word, told) in [("Resume", "digits: paused"), ("Pause", "digits: resumed")] {
        scene.browser.click("#pause-run")?;
        wait_until_told(&mut scene.browser, "done", told)?;
        scene.browser.wait_for(&format!("document.getElementById('pause-run').innerText === '{word}'"))?;
    }
    scene.browser.look(DESK)?;
    let stored = "[localStorage.length, sessionStorage.length, document.cookie.length]";
    assert_eq!(scene.browser.eval(stored)?, json!([0, 0, 0]), "the token is in memory alone");

    models_are_saved_as_files(&mut scene)?;
    a_run_is_stopped_once_that_is_confirmed(&mut scene)?;
    the_log_says_which_token_did_what(&mut scene, &operator, &viewer)
}

fn wrong_tokens_do_nothing(scene: &mut Scene, viewer: &str) -> anyhow::Result<()> {
    let browser = &mut scene.browser;
    browser.click("#pause-run")?;
    // One that nobody has made, one that is mistyped, and what is none.
    let stranger = anabranch_common::token::PageToken { secret: [7; 32] }.to_string();
    for (token, why) in
        [(stranger.as_str(), "is not good"), (&viewer[1..], "is not good"), ("tökén", "letters, digits")]
    {
        enter(browser, token)?;
        browser.wait_for(&format!("document.getElementById('ask-problem').innerText.includes({})", json!(why)))?;
        browser.wait_for("document.getElementById('ask').open")?;
        browser.eval("document.getElementById('ask-problem').textContent = ''")?;
    }
    scene.look_at("token")?;
    let browser = &mut scene.browser;
    browser.press("Escape")?;
    browser.wait_for("!document.getElementById('ask').open && document.activeElement.id === 'pause-run'")?;
    assert_eq!(browser.eval(TOLD)?, "", "nothing was asked for");

    browser.press("Enter")?;
    enter(browser, viewer)?;
    wait_until_told(browser, "refused", "to view alone")?;
    browser.wait_for_text("vera, to view")?;
    assert_eq!(scene.cluster.status()?.state, RunPhase::Running);
    scene.browser.click("#who button")?;
    scene.browser.wait_for_text("Use a token")
}

fn models_are_saved_as_files(scene: &mut Scene) -> anyhow::Result<()> {
    let folder = scene.cluster.path().join("saved");
    fs::create_dir(&folder)?;
    scene.browser.save_files_in(&folder)?;
    let list = |scene: &Scene| -> anyhow::Result<Vec<CheckpointStatus>> {
        Ok(serde_json::from_str(&scene.cluster.coordinate(&["checkpoint", "list"], &["--json"])?.code(0)?.stdout)?)
    };
    poll(PATIENCE, || Ok((list(scene)?.len() >= 2).then_some(())))?.context("two checkpoints")?;
    // A paused run forgets no version while its models are fetched.
    scene.cluster.coordinate(&["pause"], &[])?.code(0)?;
    scene.cluster.wait_until("it rests", PATIENCE, |status| status.leases_outstanding == 0)?;
    let newest = list(scene)?.last().context("a checkpoint")?.version;
    let button = format!("[aria-label='Download version {newest}']");
    scene.browser.click(&button)?;
    wait_until_told(&mut scene.browser, "done", "bytes")?;
    is_as_exported(scene, &folder, newest.0)?;
    // Any version between checkpoints, too, and by keyboard.
    let other = newest.0 - 1;
    scene.browser.eval("document.getElementById('version').focus()")?;
    scene.browser.type_text(&other.to_string())?;
    scene.browser.press("Enter")?;
    wait_until_told(&mut scene.browser, "done", &format!("digits-v{other}.safetensors"))?;
    is_as_exported(scene, &folder, other)?;
    scene.browser.eval("document.getElementById('version').value = '9999999'")?;
    scene.browser.press("Enter")?;
    wait_until_told(&mut scene.browser, "refused", "9999999")?;
    scene.cluster.coordinate(&["resume"], &[])?.code(0)?;
    Ok(())
}

/// A file that was saved is a safetensors file, and byte for byte what `checkpoint export` writes.
fn is_as_exported(scene: &Scene, folder: &Path, version: u64) -> anyhow::Result<()> {
    let saved = folder.join(format!("digits-v{version}.safetensors"));
    let found = poll(PATIENCE, || Ok(saved.exists().then_some(())))?;
    found.with_context(|| format!("{} is not saved", saved.display()))?;
    let exported = scene.cluster.path().join(format!("exported-{version}.safetensors"));
    let out = exported.to_str().context("a path")?;
    let options = ["--out", out, "--version", &version.to_string()];
    scene.cluster.coordinate(&["checkpoint", "export"], &options)?.code(0)?;
    let (manifest, values) = model_file::read(&saved, None)?;
    assert_eq!((manifest.tensors().len(), values.len()), (4, 64 * 32 + 32 + 32 * 10 + 10));
    assert!(fs::read(&saved)? == fs::read(&exported)?, "version {version} differs from its export");
    Ok(())
}

fn a_run_is_stopped_once_that_is_confirmed(scene: &mut Scene) -> anyhow::Result<()> {
    let browser = &mut scene.browser;
    browser.click("#stop-run")?;
    browser.wait_for("document.getElementById('confirm').open && document.activeElement.id === 'confirm-no'")?;
    scene.look_at("confirm")?;
    let browser = &mut scene.browser;
    browser.press("Enter")?;
    browser.wait_for("!document.getElementById('confirm').open && document.activeElement.id === 'stop-run'")?;
    assert_ne!(scene.cluster.status()?.state, RunPhase::Finished, "nothing was confirmed");
    browser.press("Enter")?;
    browser.wait_for("document.activeElement.id === 'confirm-no'")?;
    tab_to(browser, "#confirm-yes")?;
    browser.press("Enter")?;
    wait_until_told(browser, "done", "digits: stopped at version")?;
    browser.wait_for("document.querySelector('.head .state').innerText === 'finished'")?;
    browser.wait_for("document.getElementById('stop-run') === null && document.activeElement.id === 'subject'")?;
    assert_eq!(scene.cluster.status()?.state, RunPhase::Finished);
    Ok(())
}

fn the_log_says_which_token_did_what(scene: &mut Scene, operator: &str, viewer: &str) -> anyhow::Result<()> {
    let list = || -> anyhow::Result<Vec<PageTokenStatus>> {
        Ok(serde_json::from_str(&scene.cluster.coordinate(&["page", "token", "list"], &["--json"])?.code(0)?.stdout)?)
    };
    let tokens = list()?;
    let otto = tokens.iter().find(|token| token.name.as_deref() == Some("otto")).context("otto's token")?.clone();
    assert!(tokens.iter().all(|token| token.last_used_at_ms.is_some() && !token.revoked), "{tokens:?}");
    let log = scene.cluster.coordinator()?.log()?;
    for verb in ["pause", "resume", "stop"] {
        let is_of = |line: &&str| {
            line.contains(&otto.id) && line.contains("otto") && line.contains(&format!("verb=\"{verb}\""))
        };
        let times = if verb == "stop" { 1 } else { 2 };
        assert_eq!(log.lines().filter(is_of).count(), times, "{verb}: {log}");
    }
    for secret in [operator, viewer] {
        assert!(!log.contains(secret) && !log.contains(&secret[5..]), "no secret is in the log");
    }
    // A page hears at once that its token was revoked, and goes on with what needs none.
    scene.cluster.coordinate(&["page", "token", "revoke", &otto.id], &[])?.code(0)?;
    scene.browser.wait_for_text("Use a token")?;
    scene.browser.wait_for("document.querySelector('#live.now') !== null")?;
    Ok(())
}
