//! Figures of what happens, recorded where it happens: since the process began, which for Prometheus is a restart of the
//! counters. What the journal keeps counting is in the snapshots.

use std::sync::Arc;
use std::time::Duration;

use anabranch_common::codec::sparse::TopK;
use anabranch_common::codec::{CodecId, blocks, dense, segments};
use anabranch_common::downlink::ModelForm;
use anabranch_common::journal::{Record, RecordBody};
use anabranch_common::limits;
use metrics::{SharedString, counter, describe_counter, describe_histogram, histogram, with_local_recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusRecorder};
use metrics_util::MetricKindMask;

use super::names::{Kind, Name};
use super::timed::Timed;
use crate::clock;
use crate::core::event::Event;
use crate::node::JobError;
use crate::node::checkpoint::{CheckpointJob, Keep};
use crate::node::write::{self, WriteJob};
use crate::store::Store;

const STALENESS: &str = "anabranch_staleness_versions";
const APPEND: &str = "anabranch_journal_append_seconds";
const SYNC: &str = "anabranch_journal_sync_seconds";
const CHECKPOINT: &str = "anabranch_checkpoint_seconds";
const UPLINK: &str = "anabranch_uplink_form_bytes_total";
const DOWNLINK: &str = "anabranch_downlink_form_bytes_total";

/// Every name, with its line of help.
pub(super) const ALL: [Name; 6] = [
    Name {
        name: STALENESS,
        kind: Kind::Histogram,
        help: "Versions between the base of a merged update and its merge, since the process began",
    },
    Name {
        name: APPEND,
        kind: Kind::Histogram,
        help: "Time to append a group of records to a journal, before it is synced",
    },
    Name {
        name: SYNC,
        kind: Kind::Histogram,
        help: "Time until a group of records was durable, after it was appended",
    },
    Name { name: CHECKPOINT, kind: Kind::Histogram, help: "Time to write a checkpoint and to prune older ones" },
    Name {
        name: UPLINK,
        kind: Kind::Counter,
        help: "Payload bytes of merged updates by their form, since the process began",
    },
    Name {
        name: DOWNLINK,
        kind: Kind::Counter,
        help: "Payload bytes of models sent by their form, since the process began",
    },
];

/// Upper bounds of the buckets of staleness, in versions: up to 22 as in `status`.
const VERSIONS: [f64; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 11.0, 16.0, 22.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];
/// Upper bounds of the buckets of times, in seconds.
const SECONDS: [f64; 15] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// The recorder of one process. It is nobody's global: tests and several processes in one have their own.
#[derive(Debug)]
pub struct Events(PrometheusRecorder);

impl Default for Events {
    /// A recorder of which nothing was told.
    fn default() -> Self {
        // Runs come and go: what has said nothing for long is forgotten.
        let idle = Some(Duration::from_millis(limits::METRICS_IDLE_MS));
        let mut builder = PrometheusBuilder::new().idle_timeout(MetricKindMask::ALL, idle);
        for (name, buckets) in
            [(STALENESS, &VERSIONS[..]), (APPEND, &SECONDS[..]), (SYNC, &SECONDS[..]), (CHECKPOINT, &SECONDS[..])]
        {
            let name = Matcher::Full(name.to_owned());
            builder = builder.set_buckets_for_metric(name, buckets).expect("there are buckets");
        }
        let recorder = builder.build_recorder();
        with_local_recorder(&recorder, || {
            for Name { name, kind, help } in ALL {
                match kind {
                    Kind::Histogram => describe_histogram!(name, help),
                    Kind::Counter | Kind::Gauge => describe_counter!(name, help),
                }
            }
        });
        Self(recorder)
    }
}

impl Events {
    /// Notes what happens to a run that is called so in labels.
    #[must_use]
    pub(crate) fn of_run(self: &Arc<Self>, run: &str) -> RunEvents {
        RunEvents { events: Arc::clone(self), run: run.into() }
    }

    /// Notes how long it took to append a group of records to a journal.
    pub(super) fn appended(&self, took: Duration) {
        with_local_recorder(&self.0, || histogram!(APPEND).record(took));
    }

    /// Notes how long it took to make it durable.
    pub(super) fn synced(&self, took: Duration) {
        with_local_recorder(&self.0, || histogram!(SYNC).record(took));
    }

    /// Returns the figures in Prometheus's text format.
    pub(super) fn text(&self) -> String {
        self.0.handle().render()
    }

    /// Sums up what happened, now and then, and forgets series that have said nothing for long, until it is dropped.
    pub(crate) async fn sum_up(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(Duration::from_millis(limits::METRICS_SUM_MS));
        loop {
            ticks.tick().await;
            drop(self.text());
        }
    }
}

/// Where what happens to one run is noted.
#[derive(Debug, Clone)]
pub(crate) struct RunEvents {
    events: Arc<Events>,
    /// What the run is called in labels.
    run: Arc<str>,
}

impl RunEvents {
    /// Makes a group of jobs durable, as [`write::write`] does.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn write(&self, store: &dyn Store, jobs: Vec<WriteJob>) -> Result<Vec<Event>, JobError> {
        let records: Vec<Arc<Record>> = jobs.iter().map(|job| Arc::clone(job.record())).collect();
        let done = write::write(&Timed { store, events: &self.events }, jobs)?;
        self.journalled(&records);
        Ok(done)
    }

    /// Writes a checkpoint, as [`CheckpointJob::run`] does.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn checkpoint(&self, job: CheckpointJob, store: &dyn Store, keep: Keep) -> Result<Event, JobError> {
        let began = clock::monotonic();
        let done = job.run(store, keep)?;
        with_local_recorder(&self.events.0, || histogram!(CHECKPOINT).record(began.elapsed()));
        Ok(done)
    }

    /// Notes that records are durable.
    fn journalled(&self, records: &[Arc<Record>]) {
        let contributions = records.iter().filter_map(|record| match &record.body {
            RecordBody::Contribution(contribution) => Some(contribution),
            _ => None,
        });
        with_local_recorder(&self.events.0, || {
            for contribution in contributions {
                histogram!(STALENESS, "run" => self.label()).record(contribution.staleness as f64);
                let meta = &contribution.meta;
                counter!(UPLINK, "run" => self.label(), "form" => codec(meta.codec)).increment(meta.payload_bytes);
            }
        });
    }

    /// Notes that so many bytes of a model were sent in a form.
    pub(crate) fn sent(&self, form: ModelForm, bytes: u64) {
        let form = match form {
            ModelForm::Snapshot => "snapshot",
            ModelForm::Track { .. } => "track",
            ModelForm::Chain { .. } => "chain",
            ModelForm::Xor { .. } => "xor",
        };
        let count = || counter!(DOWNLINK, "run" => self.label(), "form" => form).increment(bytes);
        with_local_recorder(&self.events.0, count);
    }

    fn label(&self) -> SharedString {
        SharedString::from_shared(Arc::clone(&self.run))
    }
}

/// What the codec of an update is called in `run.toml`; `policy` where tensors have codecs of their own.
fn codec(id: CodecId) -> &'static str {
    match id {
        dense::Planes32::ID => "f32",
        dense::Planes16::ID => "bf16",
        blocks::Int8::ID => "int8",
        blocks::Int4::ID => "int4",
        segments::ID => "policy",
        TopK::ID => "top-k",
        TopK::NIBBLES_ID => "top-k-4",
        TopK::SIGNS_ID => "top-k-1",
        _ => "unknown",
    }
}
