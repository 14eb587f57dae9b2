//! The operator's page of a real coordinator: over HTTP, and in Chromium without a window.
//!
//! | test | guards |
//! |---|---|
//! | the page is that of the status, and follows it | docs/operating.md, "The page": what is shown, and where it is served |
//! | an operator finds in the page what is wrong | docs/page.md: by clicking and by keyboard, at both widths, light and dark |
//! | text that others chose stays text | a hostile device, a hostile link; nothing is loaded from elsewhere, and other sites change nothing |
//! | a run is operated with a token (`operate`) | pause, resume, stop, models as files; wrong tokens, tokens to view; kills |
//! | a pod on the page (`pods`) | the members, their layers, and why no pod can be formed |
//! | the page on the network (`network`) | HTTPS, and nothing without a token |

mod network;
mod operate;
mod pods;
mod scene;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use anabranch_common::wire::message::RunPhase;
use anabranch_tests::clock::poll;
use anabranch_tests::hostile::{Identity, Member};
use anabranch_tests::ledger::Settings;
use anabranch_tests::process::{Cluster, PATIENCE, http_get, http_post};
use anyhow::Context as _;
use scene::{DESK, Scene, free_address, tab_to};
use serde_json::{Value, json};

pub(crate) const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");
/// What a hostile agent calls its device.
const MARKUP: &str = "<img src=x onerror=\"window.hacked=1\"><script>window.hacked=2</script>";

/// The state that is served for a query.
fn state(address: &str, query: &str) -> anyhow::Result<Value> {
    let text = http_get(address, &format!("/api/state{query}"))?;
    let (head, body) = text.split_once("\r\n\r\n").context("no body")?;
    anyhow::ensure!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    Ok(serde_json::from_str(body)?)
}

#[test]
fn the_page_is_that_of_the_status_and_follows_it() -> anyhow::Result<()> {
    let mut cluster = Cluster::new(Path::new(LAB), &Settings::default().run_toml())?;
    let address = free_address()?;
    cluster.serve_with(&["--page", &address]);
    cluster.start_coordinator()?;
    let asks_for_agents = json!("no agent has taken part yet: `token create` makes a token for one");
    let asks = || Ok((state(&address, "")?["notes"][0]["text"] == asks_for_agents).then_some(()));
    poll(PATIENCE, asks)?.context("it does not ask for agents")?;
    for name in ["one", "two"] {
        cluster.join(name)?;
        cluster.start_ledger_agent(name, &[])?;
    }
    cluster.wait_for_updates(20)?;
    let mut events = TcpStream::connect(&address)?;
    events.set_read_timeout(Some(PATIENCE))?;
    write!(events, "GET /api/events?run=ledger HTTP/1.1\r\nHost: {address}\r\n\r\n")?;
    cluster.coordinate(&["pause"], &[])?.code(0)?;
    let mut heard = Vec::new();
    while !String::from_utf8_lossy(&heard).contains("the run is paused") {
        let mut part = [0; 4096];
        let bytes = events.read(&mut part)?;
        assert!(bytes > 0, "the events end");
        heard.extend_from_slice(&part[..bytes]);
    }

    let at_rest = poll(PATIENCE, || {
        let (status, state) = (cluster.status()?, state(&address, "?run=ledger")?);
        let counts = |name: &str| -> anyhow::Result<u64> {
            let rows = state["run"]["agents"]["rows"].as_array().context("rows")?;
            let row = rows.iter().find(|row| row["name"] == name).context("the agent")?;
            Ok(row["accepted"].as_str().context("text")?.replace(',', "").parse()?)
        };
        let is_same = status.leases_outstanding == 0
            && state["runs"][0]["version"] == status.version.0
            && status.agents.iter().all(|agent| counts(&agent.name).is_ok_and(|count| count == agent.updates_accepted));
        Ok(is_same.then_some((status, state)))
    })?;
    let (status, state) = at_rest.context("page and status differ")?;
    assert_eq!((&state["runs"][0]["state"], &state["health"]), (&json!("paused"), &json!("serving")));
    assert_eq!(state["run"]["staleness"], json!(status.staleness_histogram));
    let kinds: Vec<&Value> = state["log"].as_array().context("a log")?.iter().map(|entry| &entry["kind"]).collect();
    assert!(kinds.contains(&&json!("checkpoint")) && kinds.contains(&&json!("agent")), "{kinds:?}");

    assert_eq!(cluster.park_coordinator()?, 0, "{}", cluster.logs());
    let _taken = TcpListener::bind(&address)?;
    let code = cluster.spawn_coordinator(&[])?.wait(PATIENCE)?;
    let log = cluster.coordinator()?.log()?;
    assert_eq!(code, 13, "{log}");
    assert!(log.contains(&format!("the page cannot be served at {address}")), "{log}");
    Ok(())
}

#[test]
fn an_operator_finds_in_the_page_what_is_wrong() -> anyhow::Result<()> {
    let Some(mut scene) = Scene::new(&[])? else { return Ok(()) };
    let page = scene.page();
    scene.browser.look(DESK)?;
    scene.browser.open(&page)?;
    scene.browser.wait_for("document.querySelector('#live.now') && document.querySelector('#runs .spark')")?;
    scene.browser.wait_for_text("Nothing: everything does its work.")?;

    // What is wrong comes first, without a reload.
    scene.cluster.agent("factory")?.kill()?;
    scene.browser.wait_for_text("factory is away")?;
    scene.look_at("overview")?;

    // By a click to the run, whose agents begin with the one that is away.
    scene.browser.click("#runs a[href='#/run/digits']")?;
    scene.browser.wait_for("document.querySelectorAll('.curve path').length === 2")?;
    let first = scene.browser.eval("document.querySelector('#agents tbody tr').innerText")?;
    assert!(first.as_str().is_some_and(|row| row.contains("factory") && row.contains("heard of")), "{first}");
    let focus = scene.browser.eval("document.activeElement.id")?;
    assert_eq!(focus, "subject", "a reader of the screen hears where the link led");
    scene.look_at("run")?;

    // By keyboard: a curve says an earlier point, the link back leads to all runs.
    let said = "document.getElementById('accuracy-said').innerText";
    scene.browser.eval("document.querySelector('#accuracy-name + svg').focus()")?;
    let newest = scene.browser.eval(said)?;
    scene.browser.press("ArrowLeft")?;
    scene.browser.wait_for(&format!("{said} !== {newest} && document.querySelector('.cursor') !== null"))?;
    // Values that differ by their last bits have no round values between them, and are no reason to look for ever.
    let pairs = "[[0.1, 0.10000000000000002], [1e17, 1e17 + 16], [0, 1]]";
    let ticks = format!("{pairs}.map(([low, high]) => ticks(low, high).length).join()");
    scene.browser.eval(&format!("void import('/chart.js').then(({{ ticks }}) => {{ window.found = {ticks}; }})"))?;
    scene.browser.wait_for("window.found === '0,0,6'")?;
    scene.browser.eval("document.getElementById('subject').focus()")?;
    tab_to(&mut scene.browser, ".back a")?;
    scene.browser.press("Enter")?;
    scene.browser.wait_for("location.hash === '#/' && document.querySelector('#runs') !== null")?;
    tab_to(&mut scene.browser, "#runs a")?;
    // The state is brought up to date about once a second; the focus stays.
    let before = scene.browser.eval("document.querySelector('#log li').innerText")?;
    scene.cluster.coordinate(&["pause"], &[])?.code(0)?;
    scene.browser.wait_for(&format!("document.querySelector('#log li').innerText !== {before}"))?;
    assert_eq!(scene.browser.eval("document.activeElement.matches('#runs a')")?, true);
    scene.browser.wait_for("document.querySelector('#runs .state').innerText === 'paused'")?;

    // An old page does not look alive, and lives again by itself.
    scene.cluster.coordinator()?.kill()?;
    scene.browser.wait_for("document.getElementById('live').className === 'lost'")?;
    assert_eq!(scene.browser.complaints.iter().filter(|text| !text.contains("ERR_")).count(), 0);
    scene.cluster.start_coordinator()?;
    scene.browser.wait_for("document.getElementById('live').className === 'now'")?;
    Ok(())
}

#[test]
fn text_that_others_chose_stays_text() -> anyhow::Result<()> {
    let Some(mut scene) = Scene::new(&[])? else { return Ok(()) };
    scene.cluster.join("mallory")?;
    let identity = Identity::read(&scene.cluster.agent_dir("mallory"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let port = scene.cluster.port();
    let _member = runtime.block_on(Member::connect_with(port, &identity, 1, MARKUP))?;
    let page = scene.page();
    scene.browser.look(DESK)?;
    scene.browser.open(&format!("{page}#/run/digits"))?;
    scene.browser.wait_for_text(MARKUP)?;
    scene.look_at("hostile")?;
    scene.browser.open("about:blank")?;
    scene.browser.open(&format!("{page}#/run/<img src=x onerror=window.hacked=3>"))?;
    scene.browser.wait_for_text("Not here")?;
    assert_eq!(scene.browser.eval("typeof window.hacked")?, "undefined");
    assert_eq!(scene.browser.eval("document.querySelectorAll('img, main script').length")?, 0);

    assert_eq!(scene.browser.complaints, [] as [String; 0]);
    let elsewhere = |address: &&String| !address.starts_with(&page) && *address != "about:blank";
    assert_eq!(scene.browser.requests.iter().find(elsewhere), None, "everything comes from the coordinator");

    // Another site, on this machine too, can neither frame the page nor read its state, whatever it tries.
    let other = other_site(&format!("<iframe src={page}></iframe><script src={page}api/state></script>"))?;
    scene.browser.open(&format!("http://{other}/"))?;
    let reading = format!("fetch('{page}api/state').then(() => window.told = 'read', () => window.told = 'refused')");
    scene.browser.eval(&format!("void {reading}"))?;
    assert_eq!(scene.browser.wait_for("window.told")?, "refused");
    // Nor can it change anything, by a request or by a form: it has no token, and the browser says where it comes from.
    let id = scene.run_id()?;
    let stop = format!("{page}api/runs/{id}/stop");
    let sending = format!(
        "fetch('{stop}', {{ method: 'POST', mode: 'no-cors' }}).then((a) => window.sent = a.type, () => window.sent = 'failed')"
    );
    scene.browser.eval(&format!("void {sending}"))?;
    scene.browser.wait_for("window.sent")?;
    let (_, refused) =
        http_post(&scene.address, &format!("/api/runs/{id}/stop"), &format!("Origin: http://{other}\r\n"))?;
    assert!(refused.contains("other sites"), "{refused}");
    let (status, _) = http_post(&scene.address, &format!("/api/runs/{id}/stop"), "")?;
    assert_eq!(status, 401, "no token");
    let all_blocked = poll(PATIENCE, || {
        scene.browser.eval("1")?;
        let blocked = |what: &str| scene.browser.complaints.iter().any(|text| text.contains(what));
        Ok((blocked("frame-ancestors") && blocked("NotSameOrigin")).then_some(()))
    })?;
    all_blocked.with_context(|| format!("{:?}", scene.browser.complaints))?;
    let form = format!("<form method=post action={stop}></form><p>other</p>");
    let other = other_site(&form)?;
    scene.browser.open(&format!("http://{other}/"))?;
    scene.browser.wait_for("document.forms.length === 1 && document.readyState === 'complete'")?;
    scene.browser.eval("document.forms[0].submit()")?;
    scene.browser.wait_for_text("requests of other sites are refused")?;
    assert_eq!(scene.cluster.status()?.state, RunPhase::Running);
    Ok(())
}

/// Serves one document to whoever asks, as another site; where.
fn other_site(document: &str) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n";
    let answer = format!("{head}Content-Length: {}\r\n\r\n{document}", document.len());
    std::thread::spawn(move || {
        for mut client in listener.incoming().filter_map(Result::ok) {
            // A browser that has gone is no problem of the test.
            let _ = client.read(&mut [0; 4096]);
            let _ = client.write_all(answer.as_bytes());
        }
    });
    Ok(address)
}
