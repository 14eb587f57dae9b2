//! A gpt on folders of text, with the real daemons.
//!
//! | test | guards |
//! |---|---|
//! | two agents learn a language | `[model]` of a gpt, `shard split` and `inspect` of text, training here and in a child, the target's loss per byte; a shard that is no text is refused with exit code 8 |

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use anabranch_tests::process::{Cluster, DIGITS, PATIENCE, Role, example};
use anabranch_tests::text::sentences;
use anyhow::Context as _;

const LAB: &str = env!("CARGO_BIN_EXE_anabranch-lab");

/// Instead of the digits' `[model]` and `[train]`.
const GPT: &str = r#"
[model]
kind = "gpt"
context = 32
layers = 2
heads = 2
width = 32

[train]
local_steps = 15
batch_size = 8
optimizer = { kind = "adamw", lr = 0.005 }
keep_optimizer_state = true

[upload]
codec = { kind = "bf16" }
"#;
/// Nats a byte, of 5.5 at chance: below it are models that know words and their order.
const TARGET: &str = "loss = 1.0";

#[test]
fn two_agents_learn_a_language_from_folders_of_text() -> anyhow::Result<()> {
    let (head, rest) = DIGITS.split_once("[model]").context("a section")?;
    let rest = rest.split_once("feedback_decay").context("a key")?.1;
    let settings = format!("{head}{GPT}feedback_decay{rest}").replace("versions = 40", TARGET);
    let mut cluster = Cluster::new(Path::new(LAB), &settings)?;
    let (books, shards, eval) =
        (cluster.path().join("books"), cluster.path().join("shards"), cluster.path().join("eval"));
    fs::create_dir_all(&books)?;
    for book in 0..6 {
        fs::write(books.join(format!("{book}.txt")), sentences(60, book))?;
    }
    fs::create_dir_all(&eval)?;
    fs::write(eval.join("unseen.txt"), sentences(60, 100))?;
    let split = ["shard", "split", "--agents=2", "--iid", "--seed=1", "--out"].map(OsStr::new);
    let printed = cluster.call(Role::Agent, &[&split[..], &[shards.as_os_str(), books.as_os_str()]].concat())?;
    let printed = printed.code(0)?.stdout;
    assert!(printed.contains("bytes of text in 3 files"), "{printed}");
    let part = shards.join("agent-0");
    let inspect = ["shard", "inspect", "--context=32"].map(OsStr::new);
    let printed = cluster.call(Role::Agent, &[&inspect[..], &[part.as_os_str()]].concat())?.code(0)?.stdout;
    assert!(printed.contains("(text)") && printed.contains("of 32 bytes"), "{printed}");

    cluster.start_coordinator()?;
    cluster.join("stranger")?;
    let digits = example("data/digits-train.csv.gz");
    let stranger = cluster.start_agent(Role::Agent, "stranger", &["--shard".as_ref(), digits.as_os_str()], &[])?;
    assert_eq!(stranger.wait(PATIENCE)?, 8);
    let log = stranger.log()?;
    assert!(log.contains("the shard holds labelled examples, a gpt takes text"), "{log}");

    for (index, name) in ["here", "child"].into_iter().enumerate() {
        cluster.join(name)?;
        let shard = shards.join(format!("agent-{index}"));
        let mut args: Vec<&OsStr> = ["--shard".as_ref(), shard.as_os_str(), "--threads=1".as_ref()].to_vec();
        if index == 0 {
            args.extend([OsStr::new("--eval-shard"), eval.as_os_str()]);
        } else {
            args.push("--isolate".as_ref());
        }
        cluster.start_agent(Role::Agent, name, &args, &[])?;
    }
    assert_eq!(cluster.coordinator()?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    for name in ["here", "child"] {
        assert_eq!(cluster.agent(name)?.wait(PATIENCE)?, 0, "{}", cluster.logs());
    }
    let status = cluster.status()?;
    // 256 and 32 positions of width 32, two blocks, the last layer norm.
    assert_eq!(status.params, Some((256 + 32) * 32 + 2 * (12 * 32 * 32 + 13 * 32) + 2 * 32));
    // What was on its way when the target was reached comes too late, and nothing else is refused.
    let refused = &status.updates_refused;
    assert!(status.updates_accepted > 0 && refused.keys().all(|reason| reason == "finished"), "{refused:?}");
    assert!(cluster.verify()?.holds);
    Ok(())
}
