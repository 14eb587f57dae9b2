//! Figures of the process: health, certificates, network, queues.

use anabranch_common::limits;
use anabranch_common::status::RunStanding;
use metrics::Label;

use super::{Family, Look, Points, Run, counter, gauge, single};
use crate::host::RunQueues;
use crate::web::Snapshot;

pub(super) const ALL: [Family; 15] = [
    gauge("anabranch_build_info", "1, with the version of the software as a label", |_| {
        vec![(vec![Label::new("version", env!("CARGO_PKG_VERSION"))], 1.0)]
    }),
    gauge("anabranch_start_time_seconds", "Unix time at which the process began to serve", |look| {
        single(look.snapshot.started_at_ms as f64 / 1e3)
    }),
    gauge("anabranch_snapshot_time_seconds", "Unix time at which these figures were taken", |look| {
        single(look.snapshot.at_ms as f64 / 1e3)
    }),
    gauge("anabranch_healthy", "1 where the process serves its runs", |look| {
        single(f64::from(u8::from(look.snapshot.problem(look.snapshot.taken).is_none())))
    }),
    gauge("anabranch_runs", "Runs by state, ended ones included", |look| {
        let runs = |state| look.runs.iter().filter(|run| run.view.summary.state == state).count();
        RunStanding::ALL.map(|state| (vec![Label::new("state", state.word())], runs(state) as f64)).into()
    }),
    gauge("anabranch_members", "Agents that have joined and are not revoked", |look| {
        single(look.snapshot.view.members.iter().filter(|member| !member.revoked).count() as f64)
    }),
    gauge("anabranch_members_revoked", "Agents whose certificates were revoked", |look| {
        single(look.snapshot.view.members.iter().filter(|member| member.revoked).count() as f64)
    }),
    gauge("anabranch_certificate_expiry_time_seconds", "Unix time at which a certificate in tls/ expires", |look| {
        let certificates = look.snapshot.certificates.iter();
        let point = |name, at: i64| (vec![Label::new("certificate", name)], at as f64);
        certificates.map(|certificate| point(certificate.name, certificate.expires_at_s)).collect()
    }),
    counter("anabranch_network_bytes_total", "Bytes of agents' datagrams, with QUIC's overhead", |look| {
        let network = &look.snapshot.network;
        directions(network.received.bytes, network.sent.bytes)
    }),
    counter("anabranch_network_datagrams_total", "Datagrams of agents' connections", |look| {
        let network = &look.snapshot.network;
        directions(network.received.datagrams, network.sent.datagrams)
    }),
    counter("anabranch_connections_turned_away_total", "Connections that were refused, closed or put off", |look| {
        let network = &look.snapshot.network;
        let reasons = [
            ("retry", network.asked_to_retry),
            ("displaced", network.displaced),
            ("refused", network.refused),
            ("surplus", network.surplus),
        ];
        reasons.map(|(reason, count)| (vec![Label::new("reason", reason)], count as f64)).into()
    }),
    gauge("anabranch_queue_entries", "Entries of a queue", |look| queues(look, &ENTRIES, &RUN_ENTRIES, Side::Filled)),
    gauge("anabranch_queue_entries_limit", "Entries that a queue may have", |look| {
        queues(look, &ENTRIES, &RUN_ENTRIES, Side::Limit)
    }),
    gauge("anabranch_queue_bytes", "Bytes of a budget that are taken", |look| {
        queues(look, &BYTES, &RUN_BYTES, Side::Filled)
    }),
    gauge("anabranch_queue_bytes_limit", "Bytes of a budget", |look| queues(look, &BYTES, &RUN_BYTES, Side::Limit)),
];

fn directions(received: u64, sent: u64) -> Points {
    let point = |direction, value: u64| (vec![Label::new("direction", direction)], value as f64);
    vec![point("received", received), point("sent", sent)]
}

/// What is shown of a queue.
#[derive(Debug, Clone, Copy)]
enum Side {
    Filled,
    Limit,
}

/// A queue of `T`: its name, what is in it, and what may be.
struct Queue<T> {
    name: &'static str,
    filled: fn(&T) -> u64,
    limit: u64,
}

const fn queue<T>(name: &'static str, limit: u64, filled: fn(&T) -> u64) -> Queue<T> {
    Queue { name, filled, limit }
}

impl<T> Queue<T> {
    fn value(&self, of: &T, side: Side) -> f64 {
        match side {
            Side::Filled => (self.filled)(of) as f64,
            Side::Limit => self.limit as f64,
        }
    }
}

/// Queues of the process that count entries.
const ENTRIES: [Queue<Snapshot>; 4] = [
    queue("loop_events", limits::COORDINATOR_QUEUE_EVENTS as u64, |snapshot| snapshot.waiting.events as u64),
    queue("connections", limits::CONNECTIONS as u64, |snapshot| snapshot.waiting.connections as u64),
    queue("handshakes", limits::PENDING_HANDSHAKES as u64, |snapshot| snapshot.network.handshakes),
    queue("joins", limits::JOINS_WAITING as u64, |snapshot| snapshot.view.joins_waiting as u64),
];

/// Budgets of the process in bytes.
const BYTES: [Queue<Snapshot>; 1] =
    [queue("agent_messages", limits::AGENT_MESSAGES_BYTES as u64, |snapshot| snapshot.waiting.message_bytes as u64)];

/// Queues of a run that count entries.
const RUN_ENTRIES: [Queue<RunQueues>; 1] =
    [queue("undurable_records", limits::UNWRITTEN_RECORDS, |queues| queues.undurable_records)];

/// Budgets of a run in bytes.
const RUN_BYTES: [Queue<RunQueues>; 3] = [
    queue("payloads", limits::UPLOADS_IN_FLIGHT_BYTES, |queues| queues.payload_bytes),
    queue("decoded_updates", limits::DECODED_UPLOADS_BYTES, |queues| queues.decoded_bytes),
    queue("models_sending", limits::SENDING_BYTES, |queues| queues.sending_bytes),
];

fn queues(look: &Look<'_>, of_process: &[Queue<Snapshot>], of_run: &[Queue<RunQueues>], side: Side) -> Points {
    let label = |name: &'static str| Label::new("queue", name);
    let mut points: Points =
        of_process.iter().map(|queue| (vec![label(queue.name)], queue.value(look.snapshot, side))).collect();
    let served = look.runs.iter().filter_map(|run: &Run<'_>| Some((run, run.view.queues.as_ref()?)));
    for (run, filled) in served {
        points.extend(of_run.iter().map(|queue| (vec![run.label(), label(queue.name)], queue.value(filled, side))));
    }
    points
}
