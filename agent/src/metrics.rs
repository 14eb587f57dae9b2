//! What `status` shows as figures for Prometheus, over HTTP.

use std::net::SocketAddr;

use metrics::{counter, describe_counter, describe_gauge, gauge, with_local_recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};

use crate::core::Waits;
use crate::report::LiveReport;

/// The address cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("metrics cannot be served at {address}: {problem}")]
pub struct MetricsError {
    /// What was asked for.
    pub address: SocketAddr,
    /// The system's words.
    pub problem: String,
}

/// The figures, and who serves them.
pub struct Metrics(PrometheusRecorder);

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Name, whether it only grows, and what it is.
const ALL: [(&str, bool, &str); 12] = [
    ("anabranch_agent_connected", false, "1 where the coordinator has welcomed this agent"),
    ("anabranch_agent_training", false, "1 while a local round is computed"),
    (
        "anabranch_agent_device_busy_seconds_total",
        true,
        "Whole seconds since the first round in which the device trained or evaluated",
    ),
    (
        "anabranch_agent_device_waiting_seconds_total",
        true,
        "Whole seconds since the first round in which the device waited for a verdict, a lease, a model or a connection",
    ),
    (
        "anabranch_agent_device_waiting_ratio",
        false,
        "Share of the time since the first round in which the device waited",
    ),
    ("anabranch_agent_examples_per_second", false, "Speed of the round that is computed"),
    ("anabranch_agent_micro_batch_examples", false, "Examples of a step that the latest round computed at once"),
    ("anabranch_agent_outbox_updates", false, "Updates without a verdict"),
    ("anabranch_agent_encoded_by_trainer_total", true, "Updates that the trainer's own encoder has made"),
    ("anabranch_agent_uplink_bytes_total", true, "Payload bytes sent"),
    ("anabranch_agent_downlink_bytes_total", true, "Payload bytes received"),
    ("anabranch_agent_model_version", false, "The newest version of the model that is here"),
];

impl Metrics {
    /// Serves at `address`, from this tokio runtime, until it ends.
    ///
    /// # Errors
    /// The address is taken, or not this machine's.
    pub fn serve(address: SocketAddr) -> Result<Self, MetricsError> {
        let built = PrometheusBuilder::new().with_http_listener(address).build();
        let (recorder, exporter) = built.map_err(|error| MetricsError { address, problem: error.to_string() })?;
        with_local_recorder(&recorder, || {
            for (name, grows, what) in ALL {
                if grows {
                    describe_counter!(name, what);
                } else {
                    describe_gauge!(name, what);
                }
            }
        });
        tokio::spawn(async move {
            if exporter.await.is_err() {
                tracing::warn!("metrics are not served any more");
            }
        });
        tracing::info!(%address, "serving metrics");
        Ok(Self(recorder))
    }

    /// Takes over how things stand.
    pub fn publish(&self, live: &LiveReport, outbox: usize) {
        let flag = |yes: bool| if yes { 1.0 } else { 0.0 };
        let values = [
            flag(live.connection == "connected"),
            flag(live.work == "training"),
            live.busy_ms as f64 / 1e3,
            live.waiting_ms as f64 / 1e3,
            Waits { busy_ms: live.busy_ms, waiting_ms: live.waiting_ms }.share().unwrap_or(0.0),
            live.examples_per_s.unwrap_or(0.0).into(),
            live.micro_batch.unwrap_or(0).into(),
            outbox as f64,
            live.encoded_by_trainer as f64,
            live.uplink_bytes as f64,
            live.downlink_bytes as f64,
            live.version.map_or(0.0, |version| version.0 as f64),
        ];
        with_local_recorder(&self.0, || {
            for ((name, grows, _), value) in ALL.into_iter().zip(values) {
                if grows {
                    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts")]
                    counter!(name).absolute(value as u64);
                } else {
                    gauge!(name).set(value);
                }
            }
        });
    }
}
