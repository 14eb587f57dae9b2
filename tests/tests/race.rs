//! The race: real training in virtual time.
//!
//! | test | guards |
//! |---|---|
//! | the same race twice | one seed decides everything: curves, figures and the journal have the same bits |
//! | rounds take their virtual time | as many updates as rounds fit, and bytes of updates alone |
//! | kills | nothing that was acknowledged is lost, and the run goes on |
//! | rare data | a rule that weighs agents by speed forgets what a slow agent alone holds, and the report shows it |
//! | a search | kills after every record of its journal change no winner, and its figures follow from full runs |
//! | files and options | what makes no sense is refused by file, line and key; every workload that ships is sound |

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anabranch_tests::race::pipeline::{PipelineOptions, PipelineWorkload};
use anabranch_tests::race::search::{SearchOptions, SearchWorkload};
use anabranch_tests::race::{self, Clock, Finish, Options, Override, RaceReport, Reference, Strategy, Workload};

/// The digits of the examples, four agents, two of them slow.
const DIGITS: &str = r#"
about = "digits"
seconds = 6.0
targets = [0.5, 0.999]
watch = [3]
data = "digits"
split = { kind = "iid", seed = 1 }

[model]
kind = "mlp"
input = [64]
classes = 10
hidden = [32]
input_scale = 0.0625

[train]
local_steps = 5
batch_size = 16
optimizer = { kind = "sgd", lr = 0.1 }

[[agents]]
count = 2
round_s = 0.2

[[agents]]
count = 2
round_s = 1.5
"#;
/// Bad lines, and kills of everybody.
const CHURN: &str = r#"
[line]
up = { kbit_s = 500.0, delay_ms = 20, loss = 0.05 }
down = { delay_ms = 20, loss = 0.05 }

[faults]
agents = { mean_s = 8.0, down_s = 1.0 }
coordinator = { at_s = [7.0, 15.0], down_s = 1.0 }
"#;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data")
}

fn options(workload: &str, strategies: &[&str], seeds: u64, jobs: usize) -> anyhow::Result<Options> {
    Ok(Options {
        command: "anabranch-lab race".to_owned(),
        workload: Workload::parse(Path::new("w.toml"), workload)?,
        strategies: strategies.iter().map(|text| Strategy::parse(text)).collect::<anyhow::Result<_>>()?,
        overrides: Vec::new(),
        seed: 1,
        seeds,
        data: Some(data()),
        jobs,
        references: BTreeSet::new(),
        clock: Clock::Virtual,
    })
}

/// Models are sent without loss, without a published track.
fn exact_models() -> anyhow::Result<Vec<Override>> {
    Ok(vec![Override::parse("downlink={}")?])
}

fn only(report: &RaceReport) -> &Finish {
    &report.runs[0].races[0]
}

fn problem(workload: &str) -> String {
    format!("{:#}", Workload::parse(Path::new("w.toml"), workload).expect_err("it makes no sense"))
}

#[test]
fn the_same_race_twice_has_the_same_bits() -> anyhow::Result<()> {
    let workload = format!("{DIGITS}{CHURN}").replace("seconds = 6.0", "seconds = 10.0");
    let strategies = ["init", "fedasync"];
    let [first, second] =
        [race::run(&options(&workload, &strategies, 2, 1)?)?, race::run(&options(&workload, &strategies, 2, 2)?)?];
    for (one, other) in first.runs.iter().zip(&second.runs) {
        assert_eq!(one.races, other.races, "{} differs", one.strategy);
        assert_ne!(one.races[0].journal, one.races[1].journal, "another seed is another race");
    }
    assert_ne!(first.runs[0].races[0].journal, first.runs[1].races[0].journal, "another rule is another race");
    assert_eq!(serde_json::to_string(&first.runs)?, serde_json::to_string(&second.runs)?);
    Ok(())
}

#[test]
fn rounds_take_their_virtual_time_and_nothing_else_takes_any() -> anyhow::Result<()> {
    let report = race::run(&options(DIGITS, &["fedasync"], 1, 1)?)?;
    let finish = only(&report);
    assert!(finish.holds(), "{:?}", finish.broken);
    let updates: Vec<u64> = finish.agents.iter().map(|agent| agent.updates).collect();
    assert_eq!(updates, [30, 30, 4, 4], "6 s of rounds of 0.2 s and of 1.5 s");
    assert_eq!(finish.agents.iter().map(|agent| agent.share).sum::<f64>(), 1.0);
    let metric = |name: &str| finish.metrics.get(name).copied().unwrap_or_else(|| panic!("{name} is missing"));
    assert_eq!((metric("updates_accepted"), metric("versions")), (68.0, 68.0));
    // 64 * 32 + 32 + 32 * 10 + 10 parameters. Of an update and of a step of the track goes less than a tenth.
    let model_bytes = 2_410.0 * 4.0;
    assert_eq!(metric("raw_f32_uplink_bytes"), 68.0 * model_bytes);
    assert!(metric("uplink_bytes") < 68.0 * model_bytes / 10.0, "{}", metric("uplink_bytes"));
    assert!((1.0..68.0 * model_bytes / 10.0).contains(&metric("downlink_bytes")), "{}", metric("downlink_bytes"));
    let whole = race::run(&Options { overrides: exact_models()?, ..options(DIGITS, &["fedasync"], 1, 1)? })?;
    let models = only(&whole).metrics["downlink_bytes"] / model_bytes;
    assert!((3.0..73.0).contains(&models), "{models} models for 68 rounds");
    assert!(models * model_bytes > metric("downlink_bytes"), "{models} models, and the track takes more");
    // The targets: one is reached and one is not.
    let (time, look) = (metric("time_to_50_s"), finish.looks.iter().find(|look| look.score.accuracy >= 0.5));
    assert_eq!(Some(time * 1_000.0), look.map(|look| look.at_ms as f64));
    assert_eq!(Some(metric("uplink_bytes_to_50")), look.map(|look| look.uplink_bytes as f64));
    assert!(!finish.metrics.contains_key("time_to_99_9_s"), "{:?}", finish.metrics);
    // An update of a quick agent is behind by what the other quick one has made in the meantime.
    assert_eq!(metric("staleness_p50_versions"), 1.0);
    // 250 ms between looks until the first target is reached, whole seconds afterwards.
    let times: Vec<u64> = finish.looks.iter().map(|look| look.at_ms).collect();
    assert!(times.iter().all(|at_ms| at_ms.is_multiple_of(if *at_ms as f64 <= time * 1e3 { 250 } else { 1_000 })));
    assert_eq!(times.last(), Some(&6_000));
    // Each class by its examples is the whole.
    let last = &finish.looks[finish.looks.len() - 1].score;
    assert_eq!((last.by_class.len(), finish.accuracy_by_class.as_slice()), (10, last.by_class.as_slice()));
    assert_eq!((metric("class_3_accuracy"), metric("final_accuracy")), (last.by_class[3], last.accuracy));
    Ok(())
}

#[test]
fn a_race_with_kills_loses_nothing_and_goes_on() -> anyhow::Result<()> {
    let workload = format!("{DIGITS}{CHURN}").replace("seconds = 6.0", "seconds = 30.0");
    let report = race::run(&options(&workload, &["fedbuff"], 3, 1)?)?;
    assert!(report.report.pass);
    for finish in &report.runs[0].races {
        assert!(finish.holds(), "seed {}: {:?}", finish.seed, finish.broken);
        let metric = |name: &str| finish.metrics.get(name).copied().unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(metric("recoveries"), 2.0);
        assert!(metric("faults") > 6.0, "only {} faults", metric("faults"));
        assert!(metric("final_accuracy") > 0.5, "it learns all the same: {}", metric("final_accuracy"));
        assert!(metric("updates_accepted") > 60.0, "{}", metric("updates_accepted"));
        assert!(finish.looks.iter().any(|look| look.at_ms > 16_000), "it was looked at after the last kill");
    }
    Ok(())
}

/// The kills come at the same times; who only stands still loses no round and needs no new connection.
#[test]
fn a_race_is_compared_with_one_whose_processes_stand_still() -> anyhow::Result<()> {
    let workload = format!("{DIGITS}{CHURN}").replace("seconds = 6.0", "seconds = 30.0");
    let references = BTreeSet::from([Reference::Pauses]);
    let report = race::run(&Options { references, ..options(&workload, &["fedbuff"], 1, 1)? })?;
    assert!(report.report.pass);
    let [killed, paused] = [0, 1].map(|run| &report.runs[run].races[0].metrics);
    assert_eq!((report.runs[1].strategy.as_str(), paused["recoveries"]), ("fedbuff, pauses", 0.0));
    assert_eq!(killed["faults"], paused["faults"], "the same times");
    assert_eq!(killed["time_to_50_ratio_to_pauses"], killed["time_to_50_s"] / paused["time_to_50_s"]);
    assert!(!paused.contains_key("time_to_50_ratio_to_pauses"));
    // 30 s less the kills of 1 s: two of four agents are quick, and none loses a round.
    let rounds = |report: &RaceReport, run: usize| report.runs[run].races[0].metrics["updates_accepted"];
    assert!(rounds(&report, 1) > rounds(&report, 0), "{} and {}", rounds(&report, 1), rounds(&report, 0));
    Ok(())
}

/// Bytes of a thin line count as they leave it: halfway through a model half of it has been sent.
#[test]
fn bytes_count_when_they_leave_the_line() -> anyhow::Result<()> {
    let line = "\n[line]\ndown = { kbit_s = 1.0 }\n";
    let workload = format!("{DIGITS}{line}").replace("count = 2\nround_s = 1.5", "round_s = 1.5");
    let workload = workload.replace("count = 2\nround_s = 0.2", "round_s = 0.2");
    let report = race::run(&Options { overrides: exact_models()?, ..options(&workload, &["fedasync"], 1, 1)? })?;
    // A line sends 125 bytes a second. The bits in which a version differs from version 0 take more than 6 s of that. One agent
    // needs them from the first version on, and the other one from its second round on.
    let sent: Vec<u64> = only(&report).looks.iter().map(|look| look.downlink_bytes).collect();
    assert!(sent.len() > 20 && sent.windows(2).all(|pair| (31..=64).contains(&(pair[1] - pair[0]))), "{sent:?}");
    assert!(sent[0] < 33 && sent.iter().any(|sent| (500..800).contains(sent)), "{sent:?}");
    Ok(())
}

/// The same workload with real daemons, mutual TLS, relays that delay every datagram, and a kill of the coordinator.
#[test]
fn real_processes_race_on_the_same_workload() -> anyhow::Result<()> {
    let rest = r#"
[line]
up = { delay_ms = 5 }
down = { delay_ms = 5 }

[faults]
coordinator = { at_s = [4.0], down_s = 0.5 }
"#;
    let workload = format!("{DIGITS}{rest}").replace("seconds = 6.0", "seconds = 10.0");
    let clock = Clock::Real { lab: env!("CARGO_BIN_EXE_anabranch-lab").into(), evaluator: Some(0) };
    let report = race::run(&Options { clock, ..options(&workload, &["fedasync"], 1, 1)? })?;
    let finish = only(&report);
    assert!(report.report.pass && finish.holds(), "{:?}", finish.broken);
    let metric = |name: &str| finish.metrics.get(name).copied().unwrap_or_else(|| panic!("{name} is missing"));
    assert_eq!((report.clock, metric("recoveries"), metric("faults"), metric("updates_lost")), ("real", 1.0, 1.0, 0.0));
    // Of 10 s of rounds of 0.2 s and of 1.5 s: 50 and 6 an agent at most.
    let updates: Vec<u64> = finish.agents.iter().map(|agent| agent.updates).collect();
    assert!(updates.iter().zip([50, 50, 6, 6]).all(|(updates, most)| (1..=most).contains(updates)), "{updates:?}");
    assert_eq!(metric("updates_accepted"), updates.iter().sum::<u64>() as f64);
    assert!(metric("final_accuracy") > 0.5 && metric("time_to_50_s") < 10.0, "{:?}", finish.metrics);
    assert!(metric("startup_s") < metric("time_to_50_s"), "{:?}", finish.metrics);
    let raw = metric("raw_f32_uplink_bytes");
    assert!((1.0..raw / 5.0).contains(&metric("uplink_bytes")), "{:?}", finish.metrics);
    assert!((1.0..raw / 2.0).contains(&metric("downlink_bytes")), "{:?}", finish.metrics);
    // The first agent evaluates as agents of users do, and what it is sent for that is counted apart.
    assert!(metric("evaluations") >= 1.0 && metric("updates_duplicated") == 0.0, "{:?}", finish.metrics);
    assert!(metric("quick_round_p50_ms") >= 200.0, "{:?}", finish.metrics);
    assert!(metric("quick_period_p50_ms") >= metric("quick_round_p50_ms"), "{:?}", finish.metrics);
    assert!(metric("coordinator_peak_rss_bytes") > 1e6, "{:?}", finish.metrics);
    assert!(metric("agents_peak_pss_bytes") > 1e6 && metric("agents_cpu_s") > 0.0, "{:?}", finish.metrics);
    assert!(finish.looks.iter().all(|look| !(4_000..4_500).contains(&look.at_ms)), "there was no coordinator");
    assert_eq!(
        finish.looks.last().map(|look| (look.at_ms, look.updates as f64)),
        Some((10_000, metric("updates_accepted")))
    );
    Ok(())
}

/// Two folders of text, and a model that is far too small: its loss falls all the same.
#[test]
fn a_language_model_is_compared_with_one_machine_that_holds_all_text() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    for (agent, line) in [("one", "def one(a): return a + 1\n"), ("two", "class Two: pass  # nothing\n")] {
        std::fs::create_dir(folder.path().join(agent))?;
        for file in 0..4 {
            std::fs::write(folder.path().join(agent).join(format!("{file}.py")), line.repeat(20))?;
        }
    }
    let workload = r#"
about = "text"
seconds = 8.0
loss_targets = [5.0, 0.001]
data = "text"
split = { kind = "folders", agents = ["one", "two"], extension = "py", held_out_every = 4, held_out_bytes = 256 }

[model]
kind = "gpt"
context = 16
layers = 1
heads = 2
width = 16

[train]
local_steps = 5
batch_size = 4
optimizer = { kind = "adamw", lr = 0.01 }

[[agents]]
round_s = 0.5

[[agents]]
round_s = 2.0
"#;
    let (references, data) = (BTreeSet::from([Reference::Pooled]), Some(folder.path().to_owned()));
    let report = race::run(&Options { references, data, ..options(workload, &["fedasync"], 1, 1)? })?;
    let [race, pooled] = [0, 1].map(|run| &report.runs[run].races[0].metrics);
    assert_eq!((report.runs[1].strategy.as_str(), report.runs[1].agents.len()), ("fedasync, pooled", 1));
    assert_eq!((race["updates_accepted"], pooled["updates_accepted"]), (20.0, 20.0), "as many local rounds");
    assert!(race["final_loss"] < 5.0 && pooled["final_loss"] < 4.0, "{race:?} {pooled:?}");
    assert_eq!(race["final_loss_ratio_to_pooled"], race["final_loss"] / pooled["final_loss"]);
    let looks = &only(&report).looks;
    let first = looks.iter().find(|look| look.score.loss <= 5.0).map(|look| look.at_ms as f64 / 1e3);
    assert_eq!((Some(&race["time_to_loss_5_s"]), race.get("time_to_loss_0_001_s")), (first.as_ref(), None));
    Ok(())
}

/// The race is there to show what merging by arrival forgets.
#[test]
fn what_a_slow_agent_alone_holds_is_forgotten_by_a_rule_that_weighs_by_speed() -> anyhow::Result<()> {
    let alone = "split = { kind = \"rare\", seed = 1, holders = [{ class = 3, agent = 3 }] }";
    let workload = DIGITS.replace("split = { kind = \"iid\", seed = 1 }", alone);
    let class_3 = |workload: &str| -> anyhow::Result<f64> {
        let report = race::run(&options(workload, &["fedasync"], 1, 1)?)?;
        Ok(only(&report).metrics.get("class_3_accuracy").copied().unwrap_or(-1.0))
    };
    let (rare, even) = (class_3(&workload)?, class_3(DIGITS)?);
    assert!(rare < 0.3 && even > 0.6, "class 3: {rare} where one slow agent holds it, {even} where all do");
    Ok(())
}

#[test]
fn what_makes_no_sense_is_refused_by_file_line_and_key() {
    let line = |key: &str| {
        let found = DIGITS.lines().position(|line| line.starts_with(key));
        format!("w.toml:{}:", 1 + found.unwrap_or_else(|| panic!("{key} is not in the file")))
    };
    for (key, wrong, expected) in [
        ("seconds", "seconds = -1.0", "seconds must be more than 0"),
        ("seconds", "secondes = 6.0", "unknown field `secondes`"),
        ("targets", "targets = [0.9, 0.5]", "targets must be rising"),
        ("targets", "targets = []", "targets must be rising"),
        ("targets", "loss_targets = [1.0, 2.0]", "loss_targets must be falling"),
        ("watch", "watch = [10]", "watch names a class beyond model.classes (10)"),
        ("data", "data = \"imagenet\"", "unknown variant `imagenet`"),
        ("split", "split = { kind = \"iid\" }", "missing field `seed`"),
        (
            "split",
            "split = { kind = \"rare\", seed = 1, holders = [{ class = 3, agent = 4 }] }",
            "split.holders.0.agent must be less than the number of agents (4)",
        ),
        ("kind", "kind = \"gpt\"\nlayers = 1", "model.kind must be mlp or cnn, but is gpt"),
        ("hidden", "hidden = [0]", "model.hidden holds a layer of width 0"),
        ("batch_size", "batch_size = 0", "train.batch_size must be at least 1"),
        ("optimizer", "optimizer = { kind = \"sgd\", lr = 0.0 }", "train.optimizer.lr must be more than 0"),
        ("round_s", "round_s = 0.0", "agents.0.round_s must be at least 0.001"),
        ("count", "count = 2000", "agents must be 1 to 1000"),
    ] {
        let (at, text) = (line(key), DIGITS.lines());
        let mut replaced = false;
        let text: Vec<&str> = text
            .map(|line| if line.starts_with(key) && !std::mem::replace(&mut replaced, true) { wrong } else { line })
            .collect();
        let problem = problem(&text.join("\n"));
        assert!(problem.contains(expected), "{wrong}: {problem}");
        assert!(problem.starts_with(&at) || key == "count", "{wrong}, {at}: {problem}");
    }
    let text = problem(&DIGITS.replace("data = \"digits\"", "data = \"text\""));
    assert!(text.contains("model.kind must be gpt for text, but is mlp"), "{text}");
    let churn = |from: &str, to: &str| problem(&format!("{DIGITS}{CHURN}").replace(from, to));
    assert!(churn("kbit_s = 500.0", "kbit_s = 0.5").contains("line.up.kbit_s must be at least 1"));
    assert!(churn("delay_ms = 20, loss = 0.05 }\ndown", "loss = 1.0 }\ndown").contains("line.up.loss"));
    assert!(churn("mean_s = 8.0", "mean_s = 0.0").contains("faults.agents.mean_s must be at least"));
    assert!(churn("[7.0, 15.0]", "[nan]").contains("faults.coordinator.at_s must be at least"));
}

#[test]
fn strategies_and_overrides_that_make_no_sense_and_missing_data_are_refused_before_anything_runs() -> anyhow::Result<()>
{
    let refused = |options: &Options| race::run(options).expect_err("it makes no sense").to_string();
    let error = refused(&options(DIGITS, &["strategy = \"fedasync\"\nalpha = 7.0"], 1, 1)?);
    assert!(error.contains("merge.alpha is 7, expected a number above 0"), "{error}");
    let error = refused(&options(DIGITS, &["strategy = \"fedasink\""], 1, 1)?);
    assert!(error.contains("unknown variant `fedasink`"), "{error}");
    let overrides = vec![Override::parse("admit.max_influence=0.5")?];
    let error = refused(&Options { overrides, ..options(DIGITS, &["init"], 1, 1)? });
    assert!(error.contains("admit.max_influence must be 0"), "{error}");
    for unread in ["checkpoint.every_s=5.0", "run.seed=7", "evaluate.every_s=1.0", "schedule.tick_ms=50"] {
        let overrides = vec![Override::parse("upload.feedback_decay=0.5")?, Override::parse(unread)?];
        let error = refused(&Options { overrides, ..options(DIGITS, &["init"], 1, 1)? });
        assert!(error.contains(unread.split('=').next().unwrap_or_default()) && error.contains("not read"), "{error}");
    }
    let error =
        refused(&Options { references: BTreeSet::from([Reference::Pauses]), ..options(DIGITS, &["init"], 1, 1)? });
    assert!(error.contains("kills no process"), "{error}");
    let error = refused(&Options { data: Some(PathBuf::from("/nowhere")), ..options(DIGITS, &["init"], 1, 1)? });
    assert!(error.contains("/nowhere/digits-train.csv.gz is missing"), "{error}");
    Ok(())
}

#[test]
fn an_override_holds_for_every_strategy() -> anyhow::Result<()> {
    let overrides =
        vec![Override::parse("upload.codec={ kind = \"f32\" }")?, Override::parse("upload.feedback_decay=0.0")?];
    let report = race::run(&Options { overrides, ..options(DIGITS, &["fedasync"], 1, 1)? })?;
    let metric = |name: &str| report.report.metrics.get(name).copied().unwrap_or(0.0);
    let ratio = metric("raw_f32_uplink_bytes") / metric("uplink_bytes");
    assert!((0.9..1.5).contains(&ratio), "dense updates are about as long as raw f32: {ratio}");
    Ok(())
}

#[test]
fn every_workload_that_ships_is_sound() -> anyhow::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads");
    for (name, params, agents) in [
        ("nvflare-edge", 101_770, 16),
        ("w1", 101_770, 10),
        ("w1-adamw", 101_770, 10),
        ("w1-apart", 101_770, 10),
        ("w1-hostile", 101_770, 10),
        ("w2", 101_770, 10),
        ("w3", 101_770, 10),
        ("w3-100", 101_770, 100),
        ("w3b", 101_770, 10),
        ("w4", 101_770, 10),
        ("w5", 421_642, 10),
        ("w5b", 421_642, 10),
        ("w6", 120_576, 8),
    ] {
        let workload = Workload::read(&folder.join(format!("{name}.toml")))?;
        assert_eq!((workload.name.as_str(), workload.agent_count()), (name, agents));
        let layers = workload.model.layers()?.expect("a native model");
        assert_eq!(layers.manifest.params(), params, "{name}");
    }
    let search = folder.join("search.toml");
    assert!(SearchWorkload::is_at(&search) && !SearchWorkload::is_at(&folder.join("w1.toml")));
    SearchWorkload::read(&search)?;
    let schedules = folder.join("pipeline.toml");
    assert!(PipelineWorkload::is_at(&schedules) && !PipelineWorkload::is_at(&folder.join("w1.toml")));
    assert_eq!(PipelineWorkload::read(&schedules)?.models.len(), 2);
    Ok(())
}

/// Real training of digits in three stages: one machine is the measure, the figures are there for each schedule, and the same again
/// gives the same.
#[test]
fn the_schedules_of_a_pod_are_compared_with_one_machine() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("small.toml");
    std::fs::write(
        &path,
        r#"
about = "digits in stages"
stages = [3]
most_times = 2
window_steps = 10

[[models]]
name = "mlp"
data = "digits"
steps = 60
batch_size = 30
model = { kind = "mlp", input = [64], classes = 10, hidden = [16, 16], input_scale = 0.0625 }
optimizers = [{ kind = "sgd", lr = 0.05, momentum = 0.9 }]
"#,
    )?;
    let run = || {
        race::pipeline::run(&PipelineOptions {
            command: "race".to_owned(),
            workload: PipelineWorkload::read(&path)?,
            seed: 1,
            seeds: 2,
            data: Some(data()),
            jobs: 2,
        })
    };
    let report = run()?;
    let figure = |name: &str| report.metrics.get(name).copied();
    assert_eq!(figure("slowdown_mlp_sgd_synchronous"), Some(1.0));
    assert!(figure("final_accuracy_mlp_sgd_synchronous") > Some(0.5), "{:?}", report.metrics);
    // With an update a micro-batch the first stage is two updates late, and with as many micro-batches as stages one.
    for turn in ["stale_3_m1", "stash_3_m1", "predict_3_m1", "stale_3_m3", "stash_3_m3", "2bw_3_m3", "predict_3_m3"] {
        let slowdown = figure(&format!("slowdown_mlp_sgd_{turn}"));
        assert!(slowdown.is_some_and(|times| (0.5..=2.0).contains(&times)), "{turn}: {slowdown:?}");
        assert_eq!(figure(&format!("diverged_mlp_sgd_{turn}")), Some(0.0), "{turn}");
    }
    assert!(figure("slowdown_mlp_sgd_predict_3_m3") < figure("slowdown_mlp_sgd_stale_3_m1"), "{:?}", report.metrics);
    assert!(figure("slowdown_mlp_sgd_2bw_3_m1").is_none());
    assert!(figure("final_accuracy_mlp_sgd_predict_3_m3") > Some(0.5), "{:?}", report.metrics);
    assert_eq!(figure("flush_bits_equal"), Some(1.0));
    assert_eq!(run()?.metrics, report.metrics);

    // Figures of one name would be taken for those of other seeds.
    let text = std::fs::read_to_string(&path)?;
    let sgd = "{ kind = \"sgd\", lr = 0.05, momentum = 0.9 }";
    for (from, to, told) in [
        (sgd, format!("{sgd}, {sgd}"), "models.mlp.optimizers must each be of another kind"),
        ("[3]", "[3, 3]".to_owned(), "stages must differ: [3, 3]"),
        (
            "batch_size",
            "initial_scale = 0.0\nbatch_size".to_owned(),
            "models.mlp.initial_scale is 0, expected more than 0",
        ),
    ] {
        std::fs::write(&path, text.replace(from, &to))?;
        let error = PipelineWorkload::read(&path).expect_err("no comparison");
        assert_eq!(error.root_cause().to_string(), told);
    }
    Ok(())
}

/// Four trials of which one goes on. Coordinators and search are killed after each of the first records.
const SEARCH: &str = r#"
about = "four configurations on the digits"
workload = "w.toml"
truth = "truth.json"
kills_after = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]

[search]
name = "digits"
method = "asha"
trials = 4
eta = 4
r = 6
max = 24
parallel = 2
seed = 1
metric = "accuracy"

[space]
"train.optimizer.lr" = { log = [0.0001, 0.3] }
"#;

#[test]
fn a_search_finds_the_same_winner_through_kills_and_is_held_against_full_runs() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("search.toml");
    std::fs::write(dir.path().join("w.toml"), DIGITS)?;
    std::fs::write(&path, SEARCH)?;
    let options = |exhaustive| -> anyhow::Result<SearchOptions> {
        Ok(SearchOptions {
            command: "anabranch-lab race search.toml".to_owned(),
            made_by: "anabranch-lab race search.toml --exhaustive".to_owned(),
            workload: SearchWorkload::read(&path)?,
            seed: 1,
            seeds: 1,
            data: Some(data()),
            jobs: 2,
            exhaustive,
        })
    };
    let missing = race::search::run(&options(false)?).expect_err("there are no full runs yet");
    assert!(format!("{missing:#}").contains("--exhaustive"), "{missing:#}");
    assert_eq!(race::search::run(&options(true)?)?.runs.len(), 4, "a full run of each configuration");
    let report = race::search::run(&options(false)?)?;
    let metric = |name: &str| report.metrics.get(name).copied().unwrap_or(f64::NAN);
    assert_eq!((metric("same_winner"), metric("same_journal")), (1.0, 1.0), "{:?}", report.metrics);
    // Three trials run to 6 contributions and one to 24, give or take what was under way when they were held.
    let price = metric("search_contributions_ratio");
    assert!((1.75..2.5).contains(&price), "{price} full runs");
    let (regret, random) = (metric("search_regret_points"), metric("random_regret_points"));
    assert!(regret >= 0.0 && random >= 0.0 && metric("search_time_ratio") > 1.0, "{:?}", report.metrics);
    Ok(())
}
