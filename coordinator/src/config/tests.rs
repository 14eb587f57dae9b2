//! Every way in which `run.toml` can be wrong is told with its line.

use anabranch_common::spec::{LrSchedule, ScheduleUnit};

use super::*;

pub(super) fn template() -> String {
    Config::template(&TemplateOptions {
        name: "mnist".into(),
        seed: 7,
        listen: "0.0.0.0:4433".parse().expect("address"),
        names: vec!["trainer.example.org".into(), "10.0.0.7".into()],
    })
}

pub(super) fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("run.toml"), text)
}

/// The error for the template with another merge rule and `from` replaced by `to`, and the line on which `to` starts.
fn broken(from: &str, to: &str) -> (String, usize) {
    let fedbuff = "strategy = \"fedbuff\"\nbuffer_size = 4\nserver_lr = 1.0";
    let text = template().replacen("strategy = \"recall\"", fedbuff, 1);
    assert!(text.contains(from), "the template no longer contains {from:?}");
    let text = text.replacen(from, to, 1);
    let line = text[..text.find(to).expect("was just put in")].matches('\n').count() + 1;
    (parse(&text).expect_err("must be refused").to_string(), line)
}

#[test]
fn the_template_is_valid_and_says_what_init_was_told() {
    let config = parse(&template()).expect("the template is valid");
    assert_eq!((config.spec.name.as_str(), config.spec.seed), ("mnist", 7));
    assert_eq!(config.server.advertised(), ["trainer.example.org:4433", "10.0.0.7:4433"]);
    assert_eq!(config.server.local().to_string(), "127.0.0.1:4433");
    assert_eq!(config.server.names, ["trainer.example.org", "10.0.0.7"]);
    assert_eq!(config.schedule, ScheduleConfig::default(), "the template shows the defaults");
    assert_eq!(config.checkpoint, CheckpointConfig::default(), "the template shows the defaults");
    assert!((f64::from(config.spec.model.input_scale) - 1.0 / 255.0).abs() < 1e-9);
    assert_eq!(config.spec.target, TargetSpec::default(), "a fresh run has no target");
}

#[test]
fn every_setting_that_is_commented_out_may_be_switched_on() {
    let text: String = template()
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let config = parse(&text).expect("every optional setting is valid as written");
    assert_eq!(config.spec.target.accuracy, Some(0.97));
    assert_eq!(config.server.agent_certificate_days, ServerConfig::default().agent_certificate_days);
    assert_eq!(config.log, LogConfig::default());
}

#[test]
fn unknown_keys_are_named_with_their_line() {
    for (from, to) in [
        ("local_steps = 20", "local_step = 20"),
        ("lease_ttl_s = 600.0", "lease_ttl = 600.0"),
        ("buffer_size = 4", "bufer_size = 4\nbuffer_size = 4"),
        ("[log]", "[logging]"),
    ] {
        let (error, line) = broken(from, to);
        let key = to.trim_start_matches('[').split([' ', ']']).next().expect("a word");
        let place = format!("run.toml:{line}:");
        assert!(error.starts_with(&place), "{error:?} does not start with {place:?}");
        assert!(error.contains(&format!("unknown field `{key}`")), "{error:?} does not name {key}");
    }
    let (error, line) = broken("lr = 0.05 }\n# Keep", "lr = 0.05, rate = 1 }\n# Keep");
    assert!(error.starts_with(&format!("run.toml:{line}:")) && error.contains("`rate`"), "{error}");
}

#[test]
fn missing_keys_and_wrong_types_are_named_with_their_line() {
    let (error, line) = broken("classes = 10", "classes = \"ten\"");
    assert!(error.starts_with(&format!("run.toml:{line}:11: model.classes: invalid type: string \"ten\"")), "{error}");
    let (error, line) = broken("classes = 10", "classes = ");
    assert!(error.starts_with(&format!("run.toml:{line}:")), "{error}");
    let (error, _) = broken("classes = 10\n", "");
    assert!(error.contains("model.classes must be at least 2, but is 0"), "{error}");
    let (error, line) = broken("strategy = \"fedbuff\"", "strategy = \"fedbuf\"");
    let expected = format!("run.toml:{line}:12: merge.strategy: unknown variant `fedbuf`, expected");
    assert!(error.starts_with(&expected) && error.contains("fedbuff"), "{error}");
}

/// A schedule may be a table of its own too, and is as strict as the rest.
#[test]
fn a_schedule_is_read_from_its_table_and_its_keys_are_checked() {
    let with = |table: &str| {
        let text = template().replacen("[upload]", &format!("[train.schedule]\n{table}\n\n[upload]"), 1);
        let line = text[..text.find("[train.schedule]").expect("was just put in")].matches('\n').count() + 1;
        (parse(&text), line)
    };
    let (config, _) = with("kind = \"cosine\"\nover = \"examples\"\nlength = 60000");
    let expected = LrSchedule::Cosine { over: ScheduleUnit::Examples, warmup: 0, length: 60_000, final_fraction: 0.0 };
    assert_eq!(config.expect("valid").spec.train.schedule, Some(expected));
    for (table, below, expected) in [
        ("kind = \"cosine\"\nlenght = 9\nlength = 9", 2, "unknown field `lenght`"),
        ("kind = \"cosin\"", 1, "train.schedule.kind: unknown variant `cosin`"),
        ("kind = \"step\"\nevery = 300\nfactor = 0.5\nover = \"epochs\"", 4, "train.schedule.over: unknown variant"),
        ("kind = \"step\"\nevery = -1\nfactor = 0.5", 2, "train.schedule.every: invalid value"),
        ("kind = \"step\"\nwarmup = 7\nevery = 0\nfactor = 0.5", 3, "train.schedule.every is 0, expected at least 1"),
        ("kind = \"step\"\nevery = 300", 0, "missing field `factor`"),
    ] {
        let (error, line) = with(table);
        let error = error.expect_err("refused").to_string();
        assert!(error.starts_with(&format!("run.toml:{}:", line + below)), "{error:?} is not on line {line} + {below}");
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
}

/// Tables that are read as one of several variants do not tell which of their values is bad.
#[test]
fn a_bad_value_in_a_table_of_variants_is_named_with_its_key_and_line() {
    for (from, to, column, expected) in [
        ("server_lr = 1.0", "server_lr = \"1\"", 13, "merge.server_lr: invalid type: string \"1\", expected f32"),
        ("buffer_size = 4", "buffer_size = -4", 15, "merge.buffer_size: invalid value: integer `-4`, expected u32"),
        ("fraction = 0.075", "fraction = [0.05]", 0, "upload.codec.fraction: invalid type: sequence, expected f32"),
        (
            "fraction = 0.075, bits = 4",
            "fraction = 0.05, bits = 5",
            0,
            "upload.codec.bits: invalid value: integer `5`, expected 8, 4 or 1",
        ),
        (
            "fraction = 0.075, bits = 4",
            "fraction = 0.05, bits = \"4\"",
            0,
            "upload.codec.bits: invalid type: string \"4\"",
        ),
        (
            "kind = \"top-k\", fraction = 0.075, bits = 4",
            "kind = \"int2\"",
            0,
            "upload.codec.kind: unknown variant `int2`",
        ),
        (
            "lr = 0.05 }\n# Keep",
            "lr = true }\n# Keep",
            0,
            "train.optimizer.lr: invalid type: boolean `true`, expected f32",
        ),
        (
            "server_lr = 1.0",
            "staleness = { fn = \"polynomial\", a = \"half\" }\nserver_lr = 1.0",
            38,
            "merge.staleness.a: invalid type: string \"half\"",
        ),
        (
            "server_lr = 1.0",
            "staleness = { fn = \"cubic\", a = 0.5 }\nserver_lr = 1.0",
            20,
            "merge.staleness.fn: unknown variant `cubic`",
        ),
    ] {
        let (error, line) = broken(from, to);
        let place = if column == 0 { format!("run.toml:{line}:") } else { format!("run.toml:{line}:{column}: ") };
        assert!(error.starts_with(&place), "{error:?} does not start with {place:?}");
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
}

#[test]
fn values_out_of_range_are_named_with_their_line() {
    for (from, to, expected) in [
        ("batch_size = 32", "batch_size = 0", "train.batch_size must be at least 1"),
        ("local_steps = 20", "local_steps = 0", "train.local_steps must be at least 1"),
        ("lr = 0.05 }\n# Keep", "lr = -1 }\n# Keep", "train.optimizer.lr must be more than 0"),
        ("#target_round_s = 5.0", "target_round_s = nan", "train.target_round_s is NaN, expected more than 0 and less"),
        (
            "#target_round_s = 5.0",
            "target_round_s = 600.0",
            "train.target_round_s is 600, expected more than 0 and less",
        ),
        (
            "#max_local_steps = 320",
            "max_local_steps = 320",
            "train.max_local_steps is 320, expected no such key without",
        ),
        ("fraction = 0.075", "fraction = 1.5", "upload.codec.fraction must be more than 0 and at most 1"),
        (
            "#adaptive = { transfer_share = 0.25,",
            "adaptive = { transfer_share = 0,",
            "upload.adaptive.transfer_share must be more than 0",
        ),
        (
            "#adaptive = { transfer_share = 0.25, harder = [{ kind = \"top-k\", fraction = 0.01",
            "adaptive = { harder = [{ kind = \"top-k\", fraction = 0",
            "upload.adaptive.harder must name fractions of more than 0",
        ),
        (
            "#adaptive = { transfer_share = 0.25, harder = [{ kind = \"top-k\", fraction = 0.01",
            "adaptive = { harder = [{ kind = \"top-k\", fraction = 0.5",
            "upload.adaptive.harder must name smaller codecs one after another, but codec 1",
        ),
        (
            "#adaptive = { transfer_share = 0.25, harder = [{ kind = \"top-k\", fraction = 0.01, bits = 4 }]",
            "adaptive = { harder = []",
            "upload.adaptive.harder must name 1 to 8 codecs, but names 0",
        ),
        (
            "#policy = [{ tensors = \"*bias\"",
            "policy = [{ tensors = \"*norm\"",
            "upload.policy entry 1 (\"*norm\") matches no tensor of the model, which has \"fc1.weight\", \"fc1.bias\"",
        ),
        (
            "#policy = [{ tensors = \"*bias\", codec = { kind = \"bf16\" } }]",
            "policy = [{ tensors = \"*bias\", codec = { kind = \"top-k\", fraction = 2 } }]",
            "upload.policy entry 1 (\"*bias\") has the fraction 2, expected a number above 0 and at most 1",
        ),
        ("feedback_decay = 1.0", "feedback_decay = nan", "upload.feedback_decay must be between 0 and 1"),
        ("buffer_size = 4", "buffer_size = 0", "merge.buffer_size is 0, expected"),
        ("server_lr = 1.0", "staleness = { fn = \"polynomial\", a = -1 }\nserver_lr = 1.0", "merge.staleness.a is -1"),
        ("server_lr = 1.0", "server_lr = 0", "merge.server_lr is 0, expected"),
        (
            "#schedule = { kind = \"cosine\", over = \"versions\", warmup = 50, length = 1000",
            "schedule = { kind = \"cosine\", warmup = 50, length = 50",
            "train.schedule.length is 50, expected more than train.schedule.warmup (50)",
        ),
        (
            "#schedule = { kind = \"cosine\", over = \"versions\", warmup = 50, length = 1000, final_fraction = 0.0 }",
            "schedule = { kind = \"cosine\", length = 9, final_fraction = 1.5 }",
            "train.schedule.final_fraction is 1.5, expected 0 to 1",
        ),
        (
            "#schedule = { kind = \"cosine\", over = \"versions\", warmup = 50, length = 1000, final_fraction = 0.0 }",
            "schedule = { kind = \"step\", every = 300, factor = 0 }",
            "train.schedule.factor is 0, expected more than 0 and at most 1",
        ),
        ("input = [1, 28, 28]", "input = [1, 0, 28]", "model.input must be"),
        ("hidden = [128]", "hidden = [4000000000]", "model.hidden makes a model of more than"),
        (
            "hidden = [128]",
            "convs = [4]\nhidden = [128]",
            "model.convs is [4], expected no such key: it belongs to a cnn",
        ),
        ("classes = 10", "classes = 1", "model.classes must be at least 2"),
        (
            "# Widths of the hidden layers",
            "context = 8 # Widths of the hidden layers",
            "model.context is 8, expected no such key: it belongs to a gpt",
        ),
        ("max_norm_ratio = 10.0", "max_norm_ratio = 0.5", "admit.max_norm_ratio must be 0"),
        ("rare_norm_ratio = 10.0", "rare_norm_ratio = 0.5", "admit.rare_norm_ratio must be 0"),
        (
            "strategy = \"fedbuff\"\nbuffer_size = 4\nserver_lr = 1.0",
            "step = 0.0\nstrategy = \"recall\"",
            "merge.step is 0, expected a number above 0 and at most 1000",
        ),
        ("max_influence = 1.5", "max_influence = nan", "admit.max_influence must be 0"),
        ("keep = 2", "keep = 1", "checkpoint.keep must be at least 2"),
        ("#accuracy = 0.97", "accuracy = 97", "target.accuracy must be more than 0 and at most 1"),
        ("#weight = 1", "weight = 0", "run.weight must be between 1 and 1000, but is 0"),
        ("#weight = 1", "weight = 1001", "run.weight must be between 1 and 1000, but is 1001"),
        ("#disk_bytes = 10000000000", "disk_bytes = 0", "quota.disk_bytes must be at least 1"),
        ("#url = \"s3://training/wards\"", "url = \"s3:///\"", "store.url must be s3://BUCKET/PREFIX"),
        ("#url = \"s3://training/wards\"", "url = \"memory://\"", "store.url must be s3://BUCKET/PREFIX"),
        ("#url = \"s3://training/wards\"", "url = \"file://run\"", "store.url must be s3://BUCKET/PREFIX"),
        (
            "#url = \"s3://training/wards\"",
            "url = \"s3://key:secret@training/wards\"",
            "store.url holds more than a bucket and a prefix",
        ),
        ("0.0.0.0:4433", "0.0.0.0:0", "server.listen needs a fixed port"),
        ("\"10.0.0.7\"", "\"10.0.0.7:4433\"", "server.names holds \"10.0.0.7:4433\""),
        ("name = \"mnist\"", "name = \"m nist\"", "run.name must be 1 to 64"),
        ("lease_ttl_s = 600.0", "lease_ttl_s = inf", "schedule.lease_ttl_s must be more than 0"),
    ] {
        let (error, line) = broken(from, to);
        assert!(error.starts_with(&format!("run.toml:{line}:")), "{error:?} does not name line {line}");
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
}

/// A base with a record every few versions: rounds would wait for it, and updates be stale before it.
#[test]
fn a_track_that_updates_could_not_reach_is_refused() {
    let with = |every: u64, merge: &str| {
        let text = template().replacen("strategy = \"recall\"", merge, 1);
        parse(&text.replacen("track = {", &format!("track = {{ every = {every},"), 1))
            .map_err(|error| error.to_string())
    };
    let recall = "strategy = \"recall\"";
    assert!(with(10_001, recall).is_ok());
    let late = with(10_002, recall).expect_err("refused");
    assert!(late.contains("downlink.track.every must be at most admit.max_staleness + 1"), "{late}");
    assert!(with(1, "strategy = \"fedavg\"").is_ok());
    let rounds = with(2, "strategy = \"fedavg\"").expect_err("refused");
    assert!(rounds.contains("downlink.track.every must be 1 or absent with a merge.strategy of rounds"), "{rounds}");
}

#[test]
fn the_step_of_recall_follows_the_optimizer_where_the_file_leaves_it_out() {
    let step = |optimizer: &str, merge: &str| {
        let text = template().replacen("{ kind = \"sgd\", lr = 0.05 }", optimizer, 1);
        match parse(&text.replacen("strategy = \"recall\"", merge, 1)).expect("valid").spec.merge {
            MergeSpec::Recall { step, .. } => step,
            other => panic!("{other:?}"),
        }
    };
    let (sgd, adamw) = ("{ kind = \"sgd\", lr = 0.1, momentum = 0.9 }", "{ kind = \"adamw\", lr = 0.001 }");
    assert_eq!(step(sgd, "strategy = \"recall\""), recall::USUAL_STEP);
    assert_eq!(step(adamw, "strategy = \"recall\""), recall::USUAL_STEP_ADAMW);
    assert_eq!(step(adamw, "strategy = \"recall\"\naverage = false"), recall::USUAL_STEP_ADAMW);
    for optimizer in [sgd, adamw] {
        assert_eq!(step(optimizer, "strategy = \"recall\"\nstep = 9.5"), 9.5, "as it is written");
    }
}

#[test]
fn every_merge_rule_names_its_keys() {
    let with = |merge: &str| {
        let template = template();
        let (head, rest) = template.split_once("[merge]").expect("a section");
        let (_, rest) = rest.split_once("[admit]").expect("a section");
        parse(&format!("{head}[merge]\n{merge}\n\n[admit]{rest}"))
    };
    let nesterov = "strategy = \"delayed-nesterov\"\nbuffer_size = 4\nserver_lr = 0.7\n";
    let fadas = "strategy = \"fadas\"\nbuffer_size = 4\nserver_lr = 0.001\n";
    let rescaled = "strategy = \"rescaled\"\nalpha = 0.6\n";
    let (fedavg, fedadam) = ("strategy = \"fedavg\"\n", "strategy = \"fedadam\"\nserver_lr = 0.1\n");
    let fedprox = "strategy = \"fedprox\"\nmu = 0.01\n";
    for whole in [nesterov, fadas, rescaled, fedavg, fedadam, fedprox, "strategy = \"fedavgm\"\n"] {
        let rule = with(whole).expect("its other keys have defaults").spec.merge;
        let averaged = with(&format!("{whole}average = true")).expect("and it may be averaged").spec.merge;
        assert!(!rule.serves_average() && averaged == rule.averaged(), "{averaged:?}");
    }
    for (merge, expected) in [
        (nesterov.replace('4', "0"), "merge.buffer_size is 0, expected"),
        (format!("{nesterov}momentum = 1.0"), "merge.momentum is 1, expected"),
        (format!("{nesterov}staleness = {{ fn = \"polynomial\", a = -1.0 }}"), "merge.staleness.a is -1, expected"),
        (fadas.replace("0.001", "0.0"), "merge.server_lr is 0, expected"),
        (format!("{fadas}beta_1 = 1.0"), "merge.beta_1 is 1, expected"),
        (format!("{fadas}beta_2 = -0.5"), "merge.beta_2 is -0.5, expected"),
        (format!("{fadas}epsilon = 0.0"), "merge.epsilon is 0, expected"),
        (format!("{fadas}tau_c = -1"), "merge.tau_c: invalid value: integer `-1`"),
        (format!("{fadas}momentum = 0.9"), "unknown field `momentum`"),
        (rescaled.replace("0.6", "1.5"), "merge.alpha is 1.5, expected"),
        (format!("{rescaled}average = 1"), "invalid type: integer `1`, expected a boolean"),
        (format!("{rescaled}average = true\nmomentum = 0.9"), "unknown field `momentum`"),
        (rescaled.replace("0.6", "1.5") + "average = true", "merge.alpha is 1.5, expected"),
        (format!("{rescaled}participation = true"), "unknown field `participation`"),
        (format!("{fedavg}barrier = {{ quorum = 0.0 }}"), "merge.barrier.quorum is 0, expected"),
        (format!("{fedavg}barrier = {{ deadline_s = -1.0 }}"), "merge.barrier.deadline_s is -1, expected"),
        (format!("{fedavg}barrier = {{ deadline = 1.0 }}"), "unknown field `deadline`"),
        (format!("{fedavg}participation = true"), "unknown field `participation`"),
        (format!("{fedadam}tau = 0.0"), "merge.tau is 0, expected"),
        (fedprox.replace("0.01", "0.0"), "merge.mu is 0, expected"),
        ("strategy = \"fedprox\"\n".to_owned(), "missing field `mu`"),
        ("strategy = \"sync-sgd\"\n".to_owned(), "train.local_steps is 20, expected 1"),
        ("strategy = \"sync-sgd\"\naverage = true".to_owned(), "train.local_steps is 20, expected 1"),
    ] {
        let error = with(&merge).expect_err("refused").to_string();
        assert!(error.starts_with("run.toml:") && error.contains(expected), "{error:?} does not say {expected:?}");
    }
}

#[test]
fn synchronous_sgd_takes_one_plain_step_a_round() {
    let with = |train: &str| {
        let template = template();
        let (head, rest) = template.split_once("[train]").expect("a section");
        let (upload, rest) = rest.split_once("[upload]").and_then(|(_, rest)| rest.split_once("[merge]")).expect("two");
        let (_, rest) = rest.split_once("[admit]").expect("a section");
        let train = format!("[train]\nbatch_size = 32\n{train}\n");
        parse(&format!("{head}{train}[upload]{upload}[merge]\nstrategy = \"sync-sgd\"\n\n[admit]{rest}"))
    };
    let plain = "local_steps = 1\noptimizer = { kind = \"sgd\", lr = 0.05 }";
    with(plain).expect("one plain step");
    for (train, expected) in [
        (plain.replace("steps = 1", "steps = 2"), "train.local_steps is 2, expected 1"),
        (plain.replace("0.05", "0.05, momentum = 0.9"), "train.optimizer.kind expected sgd without momentum"),
        (plain.replace("sgd", "adamw"), "train.optimizer.kind expected sgd without momentum"),
        (format!("{plain}\ntarget_round_s = 5.0"), "train.target_round_s expected no such key"),
        (format!("{plain}\nproximal_mu = 0.1"), "train.proximal_mu is no key of run.toml: set merge.mu"),
    ] {
        let error = with(&train).expect_err("refused").to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
}

#[test]
fn a_gpt_has_keys_of_its_own_and_none_of_the_others() {
    let with = |model: &str| {
        let template = template();
        let (head, rest) = template.split_once("[model]").expect("a section");
        let (_, rest) = rest.split_once("[train]").expect("a section");
        parse(&format!("{head}[model]\nkind = \"gpt\"\n{model}\n[train]{rest}"))
    };
    let good = "context = 64\nlayers = 2\nheads = 4\nwidth = 32";
    let model = with(good).expect("valid").spec.model;
    assert_eq!(model.gpt().expect("valid").map(|gpt| (gpt.context, gpt.heads)), Some((64, 4)));
    for (model, expected) in [
        (good.replace("64", "0"), "model.context is 0, expected 1 to 16384"),
        (good.replace("heads = 4", "heads = 5"), "model.width is 32, expected a multiple of the 5 heads"),
        (format!("{good}\ninput = [64]"), "model.input is [64], expected no such key"),
        ("context = 64".to_owned(), "model.layers is 0, expected 1 to 256"),
    ] {
        let error = with(&model).expect_err("refused").to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
}

#[test]
fn the_advertised_address_of_an_ipv6_name_has_brackets() {
    let server = ServerConfig { names: vec!["fd00::7".into()], ..ServerConfig::default() };
    assert_eq!(server.advertised(), ["[fd00::7]:4433"]);
    assert_eq!(ServerConfig::default().advertised(), ["127.0.0.1:4433"]);
    let names = (0..=limits::COORDINATOR_ADDRESSES).map(|n| format!("10.0.0.{n}")).collect();
    let many = ServerConfig { names, ..ServerConfig::default() }.advertised();
    assert_eq!((many.len(), many[1].as_str()), (limits::COORDINATOR_ADDRESSES, "10.0.0.1:4433"));
}

/// What is bound is what agents are sent to.
#[test]
fn without_a_name_tokens_carry_the_address_that_is_bound() {
    for (listen, expected) in [
        ("[::1]:4433", "[::1]:4433"),
        ("[fd00::7]:9", "[fd00::7]:9"),
        ("10.0.0.7:4433", "10.0.0.7:4433"),
        ("127.0.0.1:4433", "127.0.0.1:4433"),
        // A wildcard is no address to be sent to.
        ("0.0.0.0:4433", "127.0.0.1:4433"),
        ("[::]:4433", "127.0.0.1:4433"),
    ] {
        let server = ServerConfig { listen: listen.parse().expect("an address"), ..ServerConfig::default() };
        assert_eq!(server.advertised(), [expected], "on {listen}");
    }
}

#[test]
fn a_name_that_leads_nowhere_is_refused_with_its_line() {
    let with = |listen: &str, name: &str| {
        let text = template().replace("0.0.0.0:4433", listen).replace("\"trainer.example.org\", \"10.0.0.7\"", name);
        assert!(text.contains(listen) && text.contains(name), "the template has changed");
        let line = text.lines().position(|line| line.starts_with("names = ")).expect("a line") + 1;
        (parse(&text).map(|_| ()).map_err(|error| error.to_string()), line)
    };
    for (listen, name, part) in [
        ("[::1]:4433", "\"127.0.0.1\"", "server.listen ([::1]:4433) takes IPv6 only"),
        ("[fd00::7]:4433", "\"trainer.example.org\", \"10.0.0.7\"", "\"10.0.0.7\", an address of IPv4"),
        ("0.0.0.0:4433", "\"fd00::7\"", "\"fd00::7\", an address of IPv6"),
        ("10.0.0.7:4433", "\"::1\"", "takes IPv4 only"),
        ("10.0.0.7:4433", "\"LocalHost\"", "where nothing listens"),
        ("[fd00::7]:4433", "\"::1\"", "where nothing listens"),
        ("127.0.0.1:4433", "\"ip6-localhost\"", "\"ip6-localhost\", an address of IPv6"),
        ("0.0.0.0:4433", "\"IP6-Loopback\"", "takes IPv4 only"),
        ("[fd00::7]:4433", "\"ip6-loopback\"", "where nothing listens"),
    ] {
        let (refused, line) = with(listen, name);
        let error = refused.expect_err(name);
        assert!(error.starts_with(&format!("run.toml:{line}:")) && error.contains("server.names holds"), "{error}");
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
    for (listen, name) in [
        ("[::]:4433", "\"10.0.0.7\", \"fd00::7\", \"localhost\""),
        ("0.0.0.0:4433", "\"203.0.113.5\", \"127.0.0.1\""),
        // Another address of the family may be forwarded to this one.
        ("127.0.0.1:4433", "\"203.0.113.5\", \"localhost\""),
        ("[::1]:4433", "\"localhost\", \"ip6-localhost\", \"trainer.example.org\""),
        ("[::]:4433", "\"ip6-loopback\""),
    ] {
        assert_eq!(with(listen, name).0, Ok(()), "{listen} {name}");
    }
}

/// The error for the template with a model of 4 layers and this table, or none; and the line of the table.
fn with_pod(pod: &str, other: (&str, &str)) -> (Result<Config, ConfigError>, usize) {
    let text = template().replacen("hidden = [128]", "hidden = [32, 32, 32]", 1);
    let text = text.replacen("[evaluate]", &format!("[pod]\nkind = \"stages\"\n{pod}\n\n[evaluate]"), 1);
    assert!(text.contains(other.0), "the template no longer contains {:?}", other.0);
    let text = text.replacen(other.0, other.1, 1);
    let line = text[..text.find("\n[pod]").expect("was just put in")].matches('\n').count() + 2;
    (parse(&text), line)
}

#[test]
fn pods_are_read_from_their_table() {
    let same = ("", "");
    for pod in [
        "stages = 2",
        "stages = 3\nmicro_batches = 11",
        "stages = 4\nlabels = \"travel\"",
        "stages = 3\nschedule = \"pipelined\"\nweights = \"2bw\"\nmicro_batches = 4",
        "stages = 2\ndeadline_s = 599.0\nactivations = \"bf16\"",
        "stages = 2\nactivations = \"int8\"",
        "stages = \"auto\"\nmicro_batches = 8",
        "stages = \"auto\"\nschedule = \"pipelined\"\nweights = \"2bw\"\nmicro_batches = 2",
    ] {
        let (config, _) = with_pod(pod, same);
        assert!(config.expect(pod).spec.pod.is_some());
    }
    for merge in ["strategy = \"fedavg\"", "strategy = \"ef21\"", "strategy = \"fedprox\"\nmu = 0.01"] {
        let (config, _) = with_pod("stages = 2", ("strategy = \"recall\"", merge));
        assert!(config.is_ok(), "{merge}: a round of a pod is one update of its owner");
    }
}

#[test]
fn pods_that_could_not_be_formed_are_refused_with_key_and_line() {
    let same = ("", "");
    let keep = ("#keep_optimizer_state = false", "keep_optimizer_state = true");
    let custom = ("kind = \"mlp\"", "kind = \"custom\"");
    let rows = "kind = \"custom\"\nmodules = [{ parameters = 6, output = [2] }, { parameters = 3, output = [1] }]";
    let modules = ("kind = \"mlp\"", rows);
    for (pod, other, below, expected) in [
        ("stages = 1", same, 2, "pod.stages is 1, expected 2 to 63 members"),
        ("stages = 64", same, 2, "pod.stages is 64, expected 2 to 63 members with pod.labels"),
        ("labels = \"travel\"\nstages = 65", same, 3, "pod.stages is 65, expected 2 to 64 members"),
        ("stages = 4", same, 2, "pod.stages is 4, which makes 5 parts (with pod.labels = \"stay\""),
        ("stages = 5\nlabels = \"travel\"", same, 2, "which makes 5 parts, and the model has 4 layers"),
        ("stages = \"auto\"", same, 0, "pod.micro_batches expected a number with pod.stages = \"auto\""),
        ("stages = \"all\"\nmicro_batches = 4", same, 2, "expected a number of members or \"auto\""),
        ("stages = 2\nactivations = \"int4\"", same, 3, "pod.activations: unknown variant `int4`"),
        (
            "stages = \"auto\"\nschedule = \"pipelined\"\nweights = \"2bw\"\nmicro_batches = 1",
            same,
            5,
            "pod.micro_batches is 1, expected at least 2: pod.weights = \"2bw\" takes one less than the 3 parts",
        ),
        ("stages = 2\nweights = \"stash\"", same, 3, "pod.weights expected no such key without pod.schedule"),
        ("stages = 2\nmicro_batches = 0", same, 3, "pod.micro_batches is 0, expected 1 to train.batch_size (32)"),
        ("stages = 2\nmicro_batches = 33", same, 3, "pod.micro_batches is 33, expected 1 to train.batch_size (32)"),
        ("stages = 2\nmicro_batches = 12", same, 3, "batch_size = 32 in micro-batches of 3 makes 11"),
        ("stages = 2", ("batch_size = 32", "batch_size = 2"), 0, "pod.micro_batches is 3 where it is not said"),
        (
            "stages = 3\nschedule = \"pipelined\"\nweights = \"2bw\"\nmicro_batches = 2",
            same,
            5,
            "pod.micro_batches is 2, expected at least 3: pod.weights = \"2bw\" takes one less than the 4 parts",
        ),
        ("stages = 2\ndeadline_s = 0", same, 3, "pod.deadline_s is 0, expected more than 0 and less than"),
        ("stages = 2\ndeadline_s = nan", same, 3, "pod.deadline_s is NaN, expected more than 0"),
        ("stages = 2\ndeadline_s = 600.0", same, 3, "less than schedule.lease_ttl_s (600)"),
        ("stages = 2", custom, 0, "pod needs model.modules where model.kind = \"custom\""),
        ("stages = 2", modules, 2, "pod.stages is 2, which makes 3 parts (with pod.labels = \"stay\""),
        ("labels = \"travel\"\nstages = 2", modules, 2, "pod.labels is \"travel\", expected \"stay\" with model.kind"),
        ("stages = 2\nmembers = 3", same, 3, "unknown field `members`"),
        ("stages = 2\nschedule = \"gpipe\"", same, 3, "pod.schedule: unknown variant `gpipe`"),
    ] {
        let (error, line) = with_pod(pod, other);
        let error = error.expect_err(pod).to_string();
        assert!(error.starts_with(&format!("run.toml:{}:", line + below)), "{error:?} is not on line {line} + {below}");
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
    let text = template().replacen("[evaluate]", "[pod]\nkind = \"replicas\"\nPOD\n\n[evaluate]", 1);
    let line = text[..text.find("\nPOD").expect("was just put in")].matches('\n').count() + 2;
    let replicas = |pod: &str| parse(&text.replacen("POD", pod, 1));
    assert!(replicas("members = 3\ndeadline_s = 20.0").expect("valid").spec.pod.is_some());
    for (pod, below, expected) in [
        ("members = 1", 0, "pod.members is 1, expected 2 to 64"),
        ("members = 65", 0, "pod.members is 65, expected 2 to 64"),
        ("members = \"all\"", 0, "pod.members: invalid type: string \"all\""),
        ("members = 2\nstages = 2", 1, "unknown field `stages`, expected `members` or `deadline_s`"),
        ("members = 2\nschedule = \"flush\"", 1, "unknown field `schedule`"),
        ("members = 2\nweights = \"stash\"", 1, "unknown field `weights`"),
        ("members = 2\nmicro_batches = 2", 1, "unknown field `micro_batches`"),
        ("members = 2\nactivations = \"bf16\"", 1, "unknown field `activations`"),
        ("members = 2\nlabels = \"travel\"", 1, "unknown field `labels`"),
        ("members = 2\ndeadline_s = 0", 1, "pod.deadline_s is 0, expected more than 0"),
    ] {
        let error = replicas(pod).expect_err(pod).to_string();
        assert!(error.starts_with(&format!("run.toml:{}:", line + below)), "{error:?} is not on line {line} + {below}");
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
    let large = text.replacen("batch_size = 32", "batch_size = 40000", 1).replacen("POD", "members = 2", 1);
    let error = parse(&large).expect_err("refused").to_string();
    assert!(error.contains("pod.members is 2, which makes joined batches of 80000 examples"), "{error}");
    let of_modules = text.replacen(modules.0, modules.1, 1).replacen("POD", "members = 2", 1);
    let error = parse(&of_modules).expect_err("refused").to_string();
    assert!(error.contains("pod.kind is \"replicas\", expected \"stages\" with model.kind = \"custom\""), "{error}");
    let error = replicas("deadline_s = 2.0").expect_err("refused").to_string();
    assert!(error.contains("missing field `members`"), "{error}");
    let (error, _) = with_pod("stages = 2", keep);
    let error = error.expect_err("refused").to_string();
    assert!(error.contains("train.keep_optimizer_state expected false with [pod]"), "{error}");
}

#[test]
fn a_run_of_its_own_directory_has_its_name_and_no_table_of_the_process() {
    let text = template();
    let without = text.replacen("[server]", "[other]", 1).split("[other]").next().expect("a head").to_owned();
    let config = Config::parse_run(Path::new("run.toml"), &without, "clinics").expect("a run");
    assert_eq!((config.spec.name.as_str(), config.weight), ("clinics", 1));
    for table in ["[server]", "[log]"] {
        let text = format!("{without}{table}\n");
        let line = text.matches('\n').count();
        let error = Config::parse_run(Path::new("run.toml"), &text, "clinics").expect_err("of the process").to_string();
        let key = table.trim_matches(['[', ']']);
        assert!(
            error.starts_with(&format!("run.toml:{line}:")) && error.contains(&format!("{key} is a table")),
            "{error}"
        );
    }
}
