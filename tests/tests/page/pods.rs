//! The pods of a run on its page: who computes which layers, and why none can be formed.

use std::ffi::OsStr;
use std::path::Path;

use anabranch_tests::process::{Browser, Cluster, DIGITS, Role};

use crate::LAB;
use crate::scene::{DESK, free_address, look_at, pictures};

#[test]
fn the_page_shows_the_members_of_a_pod_and_what_each_computes() -> anyhow::Result<()> {
    let Some(mut browser) = Browser::start()? else {
        println!("not done: there is no chromium to open the page with");
        return Ok(());
    };
    let settings = DIGITS
        .replace("buffer_size = 2", "buffer_size = 1")
        .replace("hidden = [32]", "hidden = [64, 64, 64]")
        .replace("local_steps = 5", "local_steps = 200")
        .replace("versions = 40", "versions = 1000000");
    let pod = "[pod]\nkind = \"stages\"\nstages = 2\nlabels = \"travel\"\n";
    let mut cluster = Cluster::new(Path::new(LAB), &format!("{settings}\n{pod}"))?;
    let address = free_address()?;
    cluster.serve_with(&["--page", &address]);
    cluster.start_coordinator()?;
    let (shards, _) = cluster.split_digits(1)?;
    let shard = shards.join("agent-0");
    let joins = [OsStr::new("--pod-listen=127.0.0.1:0"), OsStr::new("--threads=1")];
    for name in ["ward", "lab"] {
        cluster.join(name)?;
    }
    let owner = [&joins[..], &[OsStr::new("--shard"), shard.as_os_str()]].concat();
    cluster.start_agent(Role::Agent, "ward", &owner, &[])?;
    cluster.start_agent(Role::Agent, "lab", &joins, &[])?;

    browser.look(DESK)?;
    browser.open(&format!("http://{address}/#/run/digits"))?;
    browser.wait_for("document.querySelectorAll('#pods .stages .state.computing').length === 2")?;
    let stages = browser.eval("[...document.querySelectorAll('#pods .stages li')].map((stage) => stage.innerText)")?;
    let stages = stages.as_array().cloned().unwrap_or_default();
    let stages: Vec<&str> = stages.iter().filter_map(serde_json::Value::as_str).collect();
    let [first, second] = stages[..] else { panic!("{stages:?}") };
    assert!(first.starts_with("ward") && first.contains("layer") && first.contains('1'), "{first}");
    assert!(second.starts_with("lab") && second.contains('4'), "the last of four layers: {second}");
    look_at(&mut browser, &pictures()?, "pods")?;

    cluster.agent("lab")?.kill()?;
    browser.wait_for(
        "document.querySelector('#pods .stages .state.away') && document.querySelector('#pods li .problem')",
    )?;
    browser.wait_for_text("a pod takes 1 helpers")?;
    look_at(&mut browser, &pictures()?, "pods-waiting")
}
