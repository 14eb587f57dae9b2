//! The suite of the merge rules, for each rule.

use anabranch_common::merge::MergeSpec;
use anabranch_common::merge::barrier::Barrier;
use anabranch_common::merge::staleness::Staleness;
use anabranch_testkit::merge;

/// Checks a rule, and the same rule with its average served.
fn conforms(spec: &MergeSpec) {
    merge::conformance(spec);
    merge::conformance(&spec.clone().averaged());
}

#[test]
fn fedasync_conforms() {
    for participation in [false, true] {
        let staleness = Staleness::Hinge { a: 10.0, b: 4 };
        conforms(&MergeSpec::FedAsync { alpha: 0.6, staleness, participation });
    }
}

#[test]
fn fedbuff_conforms() {
    for buffer_size in [1, 4] {
        let staleness = Staleness::Polynomial { a: 0.5 };
        conforms(&MergeSpec::FedBuff { buffer_size, server_lr: 1.0, staleness, participation: true });
    }
}

#[test]
fn delayed_nesterov_conforms() {
    for (buffer_size, momentum) in [(1, 0.5), (4, 0.9), (5, 0.0)] {
        let (server_lr, staleness, participation) = (0.7, Staleness::Polynomial { a: 0.5 }, true);
        conforms(&MergeSpec::DelayedNesterov { buffer_size, server_lr, momentum, staleness, participation });
    }
}

#[test]
fn fadas_conforms() {
    for (buffer_size, tau_c) in [(1, 1), (4, 1), (3, 10)] {
        let (server_lr, beta_1, beta_2, epsilon) = (0.2, 0.9, 0.99, 1e-8);
        conforms(&MergeSpec::Fadas { buffer_size, server_lr, beta_1, beta_2, epsilon, tau_c });
    }
}

#[test]
fn rescaled_conforms() {
    for staleness in [Staleness::Constant, Staleness::Polynomial { a: 0.5 }] {
        conforms(&MergeSpec::Rescaled { alpha: 0.6, staleness });
    }
}

#[test]
fn federated_averaging_conforms() {
    let barrier = Barrier::default();
    conforms(&MergeSpec::FedAvg { server_lr: 1.0, barrier });
    conforms(&MergeSpec::FedAvg { server_lr: 0.5, barrier: Barrier { quorum: 0.5, deadline_s: Some(2.5) } });
    conforms(&MergeSpec::FedProx { mu: 0.01, server_lr: 1.0, barrier });
    conforms(&MergeSpec::SyncSgd { barrier });
}

#[test]
fn fedavgm_conforms() {
    for (server_lr, momentum) in [(1.0, 0.9), (0.3, 0.0)] {
        conforms(&MergeSpec::FedAvgM { server_lr, momentum, barrier: Barrier::default() });
    }
}

#[test]
fn fedadam_conforms() {
    for (beta_1, beta_2, tau) in [(0.9, 0.99, 1e-3), (0.0, 0.5, 0.1)] {
        conforms(&MergeSpec::FedAdam { server_lr: 0.1, beta_1, beta_2, tau, barrier: Barrier::default() });
    }
}

#[test]
fn ef21_conforms() {
    for server_lr in [1.0, 0.3] {
        conforms(&MergeSpec::Ef21 { server_lr });
    }
}

#[test]
fn recall_conforms() {
    for (recall, average) in [(true, true), (true, false), (false, true)] {
        merge::conformance(&MergeSpec::Recall { step: 23.0, recall, average });
    }
}
