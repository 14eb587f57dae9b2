//! Bounds of parameters, and what follows from them.

use super::*;

fn fed_async(alpha: f32) -> MergeSpec {
    MergeSpec::FedAsync { alpha, staleness: Staleness::Polynomial { a: 1.0 }, participation: true }
}

fn fed_buff(buffer_size: u32, server_lr: f32) -> MergeSpec {
    MergeSpec::FedBuff { buffer_size, server_lr, staleness: Staleness::Constant, participation: false }
}

fn nesterov(buffer_size: u32, momentum: f32) -> MergeSpec {
    let (server_lr, staleness, participation) = (1.0, Staleness::Constant, false);
    MergeSpec::DelayedNesterov { buffer_size, server_lr, momentum, staleness, participation }
}

fn fedavg(deadline_s: Option<f64>) -> MergeSpec {
    MergeSpec::FedAvg { server_lr: 1.0, barrier: Barrier { quorum: 0.5, deadline_s } }
}

fn fedadam([beta_1, beta_2]: [f64; 2], tau: f64) -> MergeSpec {
    MergeSpec::FedAdam { server_lr: 0.1, beta_1, beta_2, tau, barrier: Barrier::default() }
}

fn fadas(buffer_size: u32, [beta_1, beta_2]: [f64; 2], epsilon: f64) -> MergeSpec {
    MergeSpec::Fadas { buffer_size, server_lr: 0.001, beta_1, beta_2, epsilon, tau_c: 1 }
}

#[test]
fn a_buffer_is_full_when_its_contributions_make_a_version() {
    assert_eq!([0, 1, 2].map(|waiting| fed_async(0.5).is_full(waiting)), [false, true, true]);
    assert_eq!([0, 3, 4].map(|waiting| fed_buff(4, 1.0).is_full(waiting)), [false, false, true]);
    assert_eq!([0, 1].map(|waiting| nesterov(4, 0.9).is_full(waiting)), [false, true], "every update makes a version");
}

#[test]
fn no_number_of_contributions_fills_a_barrier() {
    let [fedavg, fedadam] = [fedavg(None), fedadam([0.9, 0.99], 1e-3)];
    assert!(!fedavg.is_full(u32::MAX) && !fedadam.is_full(1));
    assert_eq!(fedavg.barrier(), Some(Barrier::default()));
    assert_eq!(fed_buff(4, 1.0).barrier(), None);
}

#[test]
fn a_mean_counts_examples_held_and_that_of_sync_sgd_those_of_the_batch() {
    let sync_sgd = MergeSpec::SyncSgd { barrier: Barrier::default() };
    let weights = [fedavg(None), fedadam([0.9, 0.99], 1e-3), sync_sgd, fed_buff(4, 1.0)]
        .map(|spec| [(600, 32), (0, 0)].map(|(held, trained)| spec.mean_weight(held, trained)));
    assert_eq!(weights, [[600, 1], [600, 1], [32, 1], [0, 0]]);
}

#[test]
fn only_the_same_rule_with_the_same_buffer_keeps_what_waits() {
    assert!(fed_buff(4, 0.5).keeps_waiting(&fed_buff(4, 1.0)) && fed_async(0.1).keeps_waiting(&fed_async(0.2)));
    assert!(!fed_buff(3, 1.0).keeps_waiting(&fed_buff(4, 1.0)) && !fed_buff(1, 1.0).keeps_waiting(&fed_async(0.2)));
    assert!(nesterov(4, 0.5).keeps_waiting(&nesterov(4, 0.9)) && !nesterov(3, 0.9).keeps_waiting(&nesterov(4, 0.9)));
}

#[test]
fn a_weight_is_the_product_of_its_parts() {
    let inputs = WeightInputs { staleness: 3, participation: 2.0 };
    assert_eq!(fed_async(0.5).weight(inputs), 0.25);
    assert_eq!(fed_buff(4, 1.0).weight(inputs), 0.25, "participation is ignored where the rule does not use it");
}

#[test]
fn validation_names_the_field() {
    let field = |spec: MergeSpec| spec.validate().map_err(|error| error.field);
    assert_eq!(field(fed_async(1.0)), Ok(()));
    assert_eq!(field(fed_buff(10, 1.0)), Ok(()));
    for alpha in [0.0, -1.0, 1.1, f32::NAN] {
        assert_eq!(field(fed_async(alpha)), Err("alpha"));
        assert_eq!(field(MergeSpec::Rescaled { alpha, staleness: Staleness::Constant }), Err("alpha"));
    }
    for server_lr in [0.0, f32::INFINITY, f32::NAN] {
        assert_eq!(field(fed_buff(10, server_lr)), Err("server_lr"));
    }
    for buffer_size in [0, limits::MERGE_BUFFER_UPDATES + 1] {
        assert_eq!(field(fed_buff(buffer_size, 1.0)), Err("buffer_size"));
    }
    for step in [0.0, -1.0, f32::NAN, f32::INFINITY, 1_001.0] {
        assert_eq!(field(MergeSpec::Recall { step, recall: true, average: true }), Err("step"));
    }
    for beta in [-0.1, 1.0, f32::NAN] {
        assert_eq!(field(nesterov(4, beta)), Err("momentum"));
    }
    assert_eq!(field(nesterov(0, 0.9)), Err("buffer_size"));
    for bad in [-0.1, 1.0, f64::NAN] {
        assert_eq!(field(fadas(4, [bad, 0.99], 1e-8)), Err("beta_1"));
        assert_eq!(field(fadas(4, [0.9, bad], 1e-8)), Err("beta_2"));
    }
    for epsilon in [0.0, -1.0, f64::INFINITY] {
        assert_eq!(field(fadas(4, [0.9, 0.99], epsilon)), Err("epsilon"));
    }
    assert_eq!(field(fadas(0, [0.9, 0.99], 1e-8)), Err("buffer_size"));
    assert_eq!(field(fedavg(Some(-1.0))), Err("barrier.deadline_s"));
    let barrier = Barrier::default();
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert_eq!(field(MergeSpec::FedAvg { server_lr: bad, barrier }), Err("server_lr"));
        assert_eq!(field(MergeSpec::FedProx { mu: bad, server_lr: 1.0, barrier }), Err("mu"));
        assert_eq!(field(MergeSpec::FedAvgM { server_lr: bad, momentum: 0.9, barrier }), Err("server_lr"));
        assert_eq!(field(fedadam([0.9, 0.99], bad.into())), Err("tau"));
    }
    for bad in [-0.1, 1.0, f64::NAN] {
        assert_eq!(field(fedadam([bad, 0.99], 1e-3)), Err("beta_1"));
        assert_eq!(field(fedadam([0.9, bad], 1e-3)), Err("beta_2"));
    }
    assert_eq!(field(MergeSpec::FedAvgM { server_lr: 1.0, momentum: 1.0, barrier }), Err("momentum"));
    let staleness = Staleness::Hinge { a: -1.0, b: 0 };
    let error = MergeSpec::FedAsync { alpha: 0.6, staleness, participation: false }.validate();
    let text = error.expect_err("a negative slope").to_string();
    assert_eq!(text, "merge.staleness.a is -1, expected a number of at least 0");
}

#[test]
fn it_reads_well_in_toml() {
    let text = "strategy = \"fedbuff\"\nbuffer_size = 4\nserver_lr = 1.0\nstaleness = { fn = \"constant\" }\n";
    assert_eq!(toml::from_str(text), Ok(fed_buff(4, 1.0)));
    let recall = MergeSpec::Recall { step: 23.0, recall: true, average: true };
    assert_eq!(toml::from_str("strategy = \"recall\"\n"), Ok(recall.clone()));
    assert_eq!(toml::from_str(&toml::to_string(&recall).expect("serializable")), Ok(recall));
    let text = "strategy = \"delayed-nesterov\"\nbuffer_size = 4\nserver_lr = 1.0\n";
    assert_eq!(toml::from_str(text), Ok(nesterov(4, 0.9)));
    let rescaled = MergeSpec::Rescaled { alpha: 0.6, staleness: Staleness::Constant };
    assert_eq!(toml::from_str("strategy = \"rescaled\"\nalpha = 0.6\n"), Ok(rescaled));
    let text = "strategy = \"fadas\"\nbuffer_size = 4\nserver_lr = 0.001\n";
    assert_eq!(toml::from_str(text), Ok(fadas(4, [0.9, 0.99], 1e-8)));
    assert_eq!(toml::from_str("strategy = \"fedavg\"\n"), Ok(fedavg(None)));
    let text = "strategy = \"fedavg\"\nbarrier = { deadline_s = 2.5 }\n";
    assert_eq!(toml::from_str(text), Ok(fedavg(Some(2.5))));
    assert_eq!(toml::from_str(&toml::to_string(&fedavg(Some(2.5))).expect("serializable")), Ok(fedavg(Some(2.5))));
    let text = "strategy = \"fedadam\"\nserver_lr = 0.1\n";
    assert_eq!(toml::from_str(text), Ok(fedadam([0.9, 0.99], 1e-3)));
    for text in ["strategy = \"fedprox\"\nmu = 0.01\n", "strategy = \"fedavgm\"\n", "strategy = \"sync-sgd\"\n"] {
        let spec: MergeSpec = toml::from_str(text).expect(text);
        assert_eq!(spec.barrier(), Some(Barrier::default()), "{text}");
    }
    let error = toml::from_str::<MergeSpec>("strategy = \"fedasync\"\nalpha = 0.6\nalhpa = 1.0\n");
    assert!(error.expect_err("a misspelt field").to_string().contains("alhpa"));
}

#[test]
fn every_rule_may_be_averaged_in_toml() {
    let averaged = fedavg(Some(2.5)).averaged();
    let text = toml::to_string(&averaged).expect("serializable");
    assert_eq!(
        text,
        "average = true\nstrategy = \"fedavg\"\nserver_lr = 1.0\n\n[barrier]\nquorum = 0.5\ndeadline_s = 2.5\n"
    );
    assert_eq!(toml::from_str(&text), Ok(averaged.clone()));
    assert_eq!(averaged.clone().averaged(), averaged, "once is enough");
    for (average, expected) in [(true, fed_buff(4, 0.5).averaged()), (false, fed_buff(4, 0.5))] {
        let text = format!(
            "strategy = \"fedbuff\"\nbuffer_size = 4\nserver_lr = 0.5\naverage = {average}\nstaleness = {{ fn = \"constant\" }}\n"
        );
        assert_eq!(toml::from_str(&text), Ok(expected));
    }
    let recall = |average: bool| MergeSpec::Recall { step: 4.0, recall: true, average };
    for average in [false, true] {
        let text = toml::to_string(&recall(average)).expect("serializable");
        assert_eq!(toml::from_str(&text), Ok(recall(average)), "{text}");
    }
    for (text, expected) in [
        ("strategy = \"fedavg\"\naverage = 1\n", "invalid type: integer `1`, expected a boolean"),
        ("strategy = \"fedavg\"\naverage = true\nalhpa = 1.0\n", "unknown field `alhpa`"),
        ("average = true\n", "missing field `strategy`"),
    ] {
        let error = toml::from_str::<MergeSpec>(text).expect_err(text).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn an_average_leaves_everything_else_to_its_rule() {
    let inputs = WeightInputs { staleness: 3, participation: 2.0 };
    for rule in [fed_async(0.5), fed_buff(4, 1.0), nesterov(4, 0.9), fedavg(Some(1.0)), fadas(3, [0.9, 0.99], 1e-8)] {
        let averaged = rule.clone().averaged();
        assert_eq!((averaged.unaveraged(), rule.unaveraged()), (&rule, &rule));
        assert_eq!((averaged.weight(inputs), averaged.closing()), (rule.weight(inputs), rule.closing()));
        assert_eq!(averaged.mean_weight(7, 8), rule.mean_weight(7, 8));
        assert_eq!(averaged.saved_vectors(1), rule.saved_vectors(1) + 1);
        assert_eq!(averaged.uses_participation(), rule.uses_participation());
    }
    assert_eq!(fedavg(Some(-1.0)).averaged().validate().map_err(|error| error.field), Err("barrier.deadline_s"));
    assert_eq!(
        MergeSpec::FedProx { mu: 0.1, server_lr: 1.0, barrier: Barrier::default() }.averaged().proximal_mu(),
        0.1
    );
}
