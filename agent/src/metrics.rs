//! What `status` shows as figures for Prometheus, over HTTP.

use std::net::SocketAddr;

use anabranch_io::web::{Bounds, Server, WebError};
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use metrics::{describe_counter, describe_gauge, with_local_recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};

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

/// Prometheus's text format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A figure.
struct Figure {
    name: &'static str,
    /// Whether it only grows; then its value is a whole number.
    grows: bool,
    what: &'static str,
    /// Of a running agent with so many updates in its outbox.
    value: fn(&LiveReport, usize) -> f64,
}

const fn gauge(name: &'static str, what: &'static str, value: fn(&LiveReport, usize) -> f64) -> Figure {
    Figure { name, grows: false, what, value }
}

const fn counter(name: &'static str, what: &'static str, value: fn(&LiveReport, usize) -> f64) -> Figure {
    Figure { name, grows: true, what, value }
}

const ALL: [Figure; 12] = [
    gauge("anabranch_agent_connected", "1 where the coordinator has welcomed this agent", |live, _| {
        f64::from(u8::from(live.connection == "connected"))
    }),
    gauge("anabranch_agent_training", "1 while a local round is computed", |live, _| {
        f64::from(u8::from(live.work == "training"))
    }),
    counter(
        "anabranch_agent_device_busy_seconds_total",
        "Whole seconds since the first round in which the device trained, evaluated or helped a pod",
        |live, _| live.busy_ms as f64 / 1e3,
    ),
    counter(
        "anabranch_agent_device_waiting_seconds_total",
        "Whole seconds since the first round in which the device waited for a verdict, a lease, a model or a connection",
        |live, _| live.waiting_ms as f64 / 1e3,
    ),
    gauge(
        "anabranch_agent_device_waiting_ratio",
        "Share of the time since the first round in which the device waited",
        |live, _| live.waits().share().unwrap_or(0.0),
    ),
    gauge("anabranch_agent_examples_per_second", "Speed of the round that is computed", |live, _| {
        live.examples_per_s.unwrap_or(0.0).into()
    }),
    gauge(
        "anabranch_agent_micro_batch_examples",
        "Examples of a step that the latest round computed at once",
        |live, _| live.micro_batch.unwrap_or(0).into(),
    ),
    gauge("anabranch_agent_outbox_updates", "Updates without a verdict", |_, outbox| outbox as f64),
    counter(
        "anabranch_agent_encoded_by_trainer_total",
        "Updates that the trainer's own encoder has made",
        |live, _| live.encoded_by_trainer as f64,
    ),
    counter("anabranch_agent_uplink_bytes_total", "Payload bytes sent", |live, _| live.uplink_bytes as f64),
    counter("anabranch_agent_downlink_bytes_total", "Payload bytes received", |live, _| live.downlink_bytes as f64),
    gauge("anabranch_agent_model_version", "The newest version of the model that is here", |live, _| {
        live.version.map_or(0.0, |version| version.0 as f64)
    }),
];

impl Metrics {
    /// Serves at `address`, from this tokio runtime, until it ends.
    ///
    /// # Errors
    /// The address is taken, or not this machine's.
    pub fn serve(address: SocketAddr) -> Result<Self, MetricsError> {
        let failed = |WebError { address, source }| MetricsError { address, problem: source.to_string() };
        let server = Server::bind(address, Bounds::default()).map_err(failed)?;
        let recorder = PrometheusBuilder::new().build_recorder();
        with_local_recorder(&recorder, || {
            for Figure { name, grows, what, .. } in ALL {
                if grows {
                    describe_counter!(name, what);
                } else {
                    describe_gauge!(name, what);
                }
            }
        });
        let figures = recorder.handle();
        let text = async move || ([(CONTENT_TYPE, TEXT_FORMAT)], figures.render());
        tokio::spawn(server.serve(Router::new().route("/metrics", get(text))));
        tracing::info!(%address, "serving metrics");
        Ok(Self(recorder))
    }

    /// Takes over how things stand.
    pub fn publish(&self, live: &LiveReport, outbox: usize) {
        with_local_recorder(&self.0, || {
            for Figure { name, grows, value, .. } in ALL {
                let value = value(live, outbox);
                if grows {
                    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts")]
                    metrics::counter!(name).absolute(value as u64);
                } else {
                    metrics::gauge!(name).set(value);
                }
            }
        });
    }
}
