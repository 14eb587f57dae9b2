//! Every way in which `SEARCH.toml` can be wrong is told with its line, its column and its key.

use super::*;
use crate::search::check::check;
use crate::search::draw;
use crate::search::price::Price;
use crate::search::spec::{Method, Metric};

const ASHA: &str = "trials = 16\nr = 32\nmax = 2048\nseed = 3";

fn refused(text: &str) -> String {
    SearchSpec::parse(Path::new("lr.toml"), text).expect_err(text).to_string()
}

#[test]
fn what_is_left_out_has_its_default() {
    let spec = parse(&text(ASHA));
    assert_eq!((spec.name.as_str(), spec.base_path(Path::new("a/lr.toml"))), ("lr", "a/run.toml".into()));
    assert_eq!((spec.method, spec.metric, spec.trials), (Method::Asha, Metric::Accuracy, 16));
    assert_eq!((spec.eta, spec.parallel, spec.seed), (4, 2, 3));
    assert_eq!(spec.rungs, [32, 128, 512, 2048]);
    let other = parse(&text("name = \"a.b\"\nmetric = \"loss\"\ndirection = \"min\"\nr = 10\nmax = 100\ntrials = 3"));
    assert_eq!((other.name.as_str(), other.metric, other.rungs), ("a.b", Metric::Loss, vec![10, 40, 100]));
    assert_eq!(parse(&text("method = \"random\"\ntrials = 3\nmax = 9")).rungs, [9]);
    assert_eq!(parse(&text("method = \"pbt\"\ntrials = 4\nr = 4\nmax = 10")).rungs, [4, 8, 10]);
}

#[test]
fn keys_of_the_space_may_stand_with_or_without_quotes() {
    let quoted = parse(&text(ASHA));
    let nested = text(ASHA).replace("\"train.optimizer.lr\"", "train.optimizer.lr");
    assert_eq!(parse(&nested), quoted);
    let table = format!("config = \"run.toml\"\n[search]\n{ASHA}\n[space.train]\noptimizer.lr = {{ log = [1e-3, 1] }}");
    assert_eq!(parse(&table), quoted);
}

#[test]
fn a_search_that_makes_no_sense_is_refused_with_its_place() {
    for (from, to, expected) in [
        ("config = \"run.toml\"", "", "lr.toml:1:1: config is missing: name the run.toml"),
        ("trials = 16", "trials = = 16", "lr.toml:3:10: "),
        ("trials = 16", "trials = 0", "lr.toml:3:1: search.trials is 0, expected a whole number from 1 to 512"),
        ("trials = 16", "trials = \"16\"", "lr.toml:3:1: search.trials is \"16\", expected a whole number"),
        ("trials = 16\n", "", "lr.toml:2:2: search.trials is missing: set it to the number of configurations"),
        ("trials = 16", "trial = 16", "lr.toml:3:1: search.trial is not known, expected one of: name, method, trials"),
        ("r = 32", "r = 4096", "lr.toml:4:1: search.r is 4096, expected a whole number from 1 to 2048"),
        ("r = 32\n", "", "search.r is missing: set it to the contributions after which trials are compared first"),
        ("max = 2048", "max = 2048\neta = 1", "lr.toml:6:1: search.eta is 1, expected a whole number from 2 to 64"),
        ("seed = 3", "seed = -1", "lr.toml:6:1: search.seed is -1, expected a whole number from 0"),
        ("seed = 3", "method = \"bohb\"", "search.method is \"bohb\", expected \"asha\" or \"random\" or \"grid\""),
        ("seed = 3", "direction = \"min\"", "search.direction expected \"max\" with metric = \"accuracy\""),
        (
            "seed = 3",
            "name = \"a b\"",
            "lr.toml:6:1: search.name makes no directory: the name of a run must be 1 to 64",
        ),
        ("seed = 3", "name = \"..\"", "search.name makes no directory: the name of a run must not begin with a dot"),
        ("[search]", "[searching]", "lr.toml:2:2: searching is not known"),
        ("{ log = [1e-3, 1] }", "0.1", "lr.toml:8:1: space.train.optimizer.lr is 0.1, expected { log = [a, b] }"),
        ("log = [1e-3, 1]", "log = [0, 1]", "has log = [0, 1], expected bounds of more than 0"),
        ("log = [1e-3, 1]", "log = [1, 1e-3]", "expected two numbers, the smaller one first"),
        ("log = [1e-3, 1]", "log = [1e-3, 1], int = [1, 2]", "has 2 entries, expected { log = [a, b] }"),
        ("log = [1e-3, 1]", "int = [1.5, 2]", "expected two whole numbers"),
        ("log = [1e-3, 1]", "choice = []", "has 0 choices, expected 1 to 256"),
        ("log = [1e-3, 1]", "choice = [1, 2, 1]", "has the choice 1 twice"),
        ("log = [1e-3, 1]", "normal = [0, 1]", "lr.toml:8:26: space.train.optimizer.lr.normal is [0, 1], expected"),
        (
            "\"train.optimizer.lr\"",
            "\"server.names\"",
            "lr.toml:8:1: space.server.names is of the coordinator's process",
        ),
        ("\"train.optimizer.lr\"", "\"log.format\"", "is of the coordinator's process, not of a run"),
        ("\"train.optimizer.lr\"", "\"run.seed\"", "is the same in all trials"),
        ("\"train.optimizer.lr\"", "\"target.versions\"", "does not end a trial, the search does"),
        ("\"train.optimizer.lr\"", "train", "lr.toml:8:1: space.train is a table of run.toml: name a key in it"),
        ("seed = 3", "method = \"grid\"", "space.train.optimizer.lr has log, expected int or choice"),
    ] {
        let text = text(ASHA);
        assert!(text.contains(from), "{from:?} is not in the text");
        let error = refused(&text.replacen(from, to, 1));
        assert!(error.starts_with("lr.toml:") && error.contains(expected), "{error:?} does not say {expected:?}");
    }
    let model = text("method = \"pbt\"\ntrials = 4\nr = 1\nmax = 9").replace("train.optimizer.lr", "model.input_scale");
    assert!(refused(&model).contains("cannot change while a trial runs"), "{}", refused(&model));
    let twice = format!("{}train.optimizer.lr = {{ log = [1e-3, 1] }}\n", text(ASHA));
    assert!(refused(&twice).contains("is written twice"), "{}", refused(&twice));
}

#[test]
fn a_grid_takes_every_point_once_and_says_how_many_there_are() {
    let grid = |search: &str| {
        format!(
            "config = \"run.toml\"\n[search]\nmethod = \"grid\"\nmax = 8\n{search}\n[space]\n\
             \"train.batch_size\" = {{ choice = [16, 32, 64] }}\n\"train.local_steps\" = {{ int = [5, 6] }}\n"
        )
    };
    let spec = parse(&grid(""));
    assert_eq!(spec.trials, 6);
    let points: Vec<Overrides> = (0..6).map(|trial| draw::first(&spec, TrialId(trial))).collect();
    let point = |batch, steps| overrides(&[("train.batch_size", batch), ("train.local_steps", steps)]);
    let expected = [("16", "5"), ("16", "6"), ("32", "5"), ("32", "6"), ("64", "5"), ("64", "6")];
    assert_eq!(points, expected.map(|(batch, steps)| point(batch, steps)));
    assert!(refused(&grid("trials = 5")).contains("search.trials does not fit: the grid has 6 points"));
    assert_eq!(parse(&grid("trials = 6")), spec);
    let wide = grid("").replace("int = [5, 6]", "int = [1, 1000]");
    assert!(refused(&wide).contains("more than 512 points"), "{}", refused(&wide));
}

#[test]
fn draws_follow_from_seed_trial_and_key_alone() {
    let wide = text(ASHA)
        + "\"train.batch_size\" = { int = [8, 64] }\n\"merge.step\" = { uniform = [1, 30] }\n\
           \"train.keep_optimizer_state\" = { choice = [true, false] }\n";
    let (narrow, wide, other) = (parse(&text(ASHA)), parse(&wide), parse(&wide.replace("seed = 3", "seed = 4")));
    let mut distinct = std::collections::BTreeSet::new();
    for trial in (0..100).map(TrialId) {
        let drawn = draw::first(&wide, trial);
        assert_eq!(drawn.len(), 4);
        assert!(drawn.iter().all(|(key, value)| wide.space.0[key].contains(value)), "{drawn:?}");
        assert_eq!(draw::first(&narrow, trial)["train.optimizer.lr"], drawn["train.optimizer.lr"], "other keys count");
        assert_ne!(draw::first(&other, trial), drawn, "the seed does not count");
        let perturbed = draw::perturbed(&wide, trial, 2, &drawn);
        assert!(perturbed.iter().all(|(key, value)| wide.space.0[key].contains(value)), "{perturbed:?}");
        assert_ne!(perturbed, drawn);
        distinct.insert(drawn["train.optimizer.lr"].clone());
    }
    assert!(distinct.len() > 90, "{distinct:?}");
    let below = |bound: f64| distinct.iter().filter(|lr| lr.parse::<f64>().expect("a number") < bound).count();
    let (lowest, middle) = (below(0.01), below(0.1));
    assert!((20..47).contains(&lowest) && (50..84).contains(&middle), "{lowest} and {middle} of 100, not a third each");
    // What a search draws is fixed: other values would be another search.
    let values = |trial| draw::first(&narrow, TrialId(trial))["train.optimizer.lr"].clone();
    assert_eq!([values(0), values(1)], FIRST_DRAWS);
}

/// Of seed 3.
const FIRST_DRAWS: [&str; 2] = ["0.00135", "0.001088"];

#[test]
fn a_trial_is_the_base_under_another_name_with_its_values() {
    let changed = overrides(&[
        ("model.hidden", "[64, 32]"),
        ("train.optimizer", "{ kind = \"adamw\", lr = 0.01 }"),
        ("train.optimizer.weight_decay", "0.1"),
    ]);
    let text = base().trial("lr-7", &changed).expect("valid");
    let config = Config::parse(Path::new("run.toml"), &text).expect("valid");
    assert_eq!(
        (config.spec.name.as_str(), config.spec.seed, &config.spec.model.hidden[..]),
        ("lr-7", 7, &[64, 32][..])
    );
    let optimizer =
        anabranch_common::spec::OptimizerSpec::AdamW { lr: 0.01, weight_decay: 0.1, beta_1: 0.9, beta_2: 0.999 };
    assert_eq!(config.spec.train.optimizer, optimizer);
    assert!(!text.contains("[server]") && !text.contains("[log]"), "{text}");
    let problem = |key, value| base().trial("lr-7", &overrides(&[(key, value)])).expect_err("impossible");
    assert_eq!(problem("train.batch_size", "0"), "train.batch_size must be at least 1, but is 0");
    assert!(
        problem("train.batchsize", "8").contains("unknown field `batchsize`"),
        "{}",
        problem("train.batchsize", "8")
    );
    assert!(problem("train.batch_size.x", "8").contains("batch_size is no table in the base"));
}

#[test]
fn impossible_values_are_told_before_the_search_begins() {
    let with = |space: &str| format!("config = \"run.toml\"\n[search]\n{ASHA}\n[space]\n{space}\n");
    let checked = |space: &str| check(&parse(&with(space)), &base(), Path::new("lr.toml"), &with(space));
    assert_eq!(checked("\"train.optimizer.lr\" = { log = [1e-3, 1] }"), Ok(Vec::new()));
    for (space, expected) in [
        ("\"train.optimizer.rate\" = { log = [1e-3, 1] }", "lr.toml:8:1: space.train.optimizer.rate may be 0.001"),
        ("train.optimizer.rate = { log = [1e-3, 1] }", "lr.toml:8:17: space.train.optimizer.rate may be 0.001"),
        ("\"train.batch_size\" = { uniform = [8, 64] }", "which no trial could run with"),
        (
            "\"train.batch_size\" = { int = [0, 64] }",
            "may be 0, which no trial could run with: train.batch_size must be",
        ),
        (
            "\"train.batch_size\" = { int = [8, 64] }\n\"upload.feedback_decay\" = { uniform = [0, 1.5] }",
            "lr.toml:9:1: space.upload.feedback_decay may be 1.5",
        ),
        ("\"modle.hidden\" = { choice = [[8]] }", "unknown field `modle`"),
    ] {
        let error = checked(space).expect_err(space).to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
    // Each value is possible, and one combination is not.
    let impossible = checked(
        "\"train.target_round_s\" = { choice = [5.0, 50.0] }\n\"schedule.lease_ttl_s\" = { choice = [10.0, 100.0] }",
    );
    let impossible = impossible.expect("a warning");
    let corners: Vec<_> = impossible.iter().filter(|impossible| impossible.trial.is_none()).collect();
    let bad = overrides(&[("schedule.lease_ttl_s", "10.0"), ("train.target_round_s", "50.0")]);
    assert!(matches!(&corners[..], [corner] if corner.overrides == bad), "{corners:?}");
    assert!(impossible.iter().all(|impossible| impossible.overrides == bad), "{impossible:?}");
    let trials = impossible.len() - 1;
    assert!((1..16).contains(&trials), "{trials} of 16 trials were drawn from that corner");
}

#[test]
fn the_price_is_told_in_full_runs() {
    let price = |search: &str| {
        let price = Price::of(&parse(&text(search)));
        let runs = |contributions: u64| price.in_full_runs(contributions as f64);
        [runs(price.least), price.in_full_runs(price.about), runs(price.most)]
    };
    let close = |found: [f64; 3], expected: [f64; 3]| {
        assert!(found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 0.01), "{found:?}");
    };
    close(price("trials = 16\nr = 32\nmax = 2048"), [88.0 / 64.0, 1.52, 511.0 / 64.0]);
    close(price("trials = 16\nr = 128\nmax = 2048"), [2.5, 3.07, 10.94]);
    close(price("method = \"random\"\ntrials = 16\nmax = 2048"), [16.0; 3]);
    close(price("trials = 1\nr = 1\nmax = 64"), [1.0; 3]);
}
