//! How hard an agent's updates are compressed, so that its line keeps up with its rounds.
//!
//! A part of the fold: the level of a lease follows from records alone, so that a coordinator
//! that was killed grants the same ones. Only `+ - * /` in f64, for the same bits on any machine.
//!
//! ```text
//!   an upload   transfer_ms = fixed_ms + byte_ms * payload_bytes   two sizes tell both figures apart
//!   a round     round_ms = max(compute_ms, time between two updates - transfer_ms)
//!   fits        byte_ms * payload_bytes <= transfer_share * round_ms
//!   level       harder: the mildest that fits, once the present one does not
//!               milder: the mildest that fits HYSTERESIS times
//! ```
//! Latency (`fixed_ms`) is the same at every level, so it does not count. A round includes what
//! an agent waits for beside its upload: while models come down slowly, smaller updates would not
//! make it any faster.
//!
//! A level above 0 does not become harder while the residual grows beside the delta: the agent
//! has not yet shown what the present level costs. At level 0 the residual of a new agent grows
//! in any case.
//!
//! # What an agent can gain by lying
//! It changes the codec of its own leases, within those that are configured. The coordinator's
//! clock measures transfers.

use anabranch_common::codec::CodecSpec;
use anabranch_common::journal::Contribution;
use anabranch_common::spec::{AdaptiveSpec, UpdateSizes, UploadSpec};

/// What the newest update counts for in a moving figure.
const BLEND: f64 = 0.25;
/// A figure that is this many times larger or smaller than before is taken for just that.
const TRUST: f64 = 4.0;
/// A milder level must fit this many times: a line at the border would change it with every
/// update.
const HYSTERESIS: f64 = 1.5;
/// A residual grows if it is this many times its moving mean.
const GROWTH: f64 = 1.05;
/// Payloads differ in size if one is this many times the other.
const OTHER_SIZE: f64 = 1.25;
/// The most of an upload that is latency.
const LATENCY_SHARE: f64 = 0.9;

/// The level of an agent, and what it follows from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Compression {
    /// Level of its next lease.
    pub(crate) level: u32,
    /// Milliseconds of a round beside its upload.
    pub(crate) round_ms: Option<f64>,
    /// Milliseconds that its line takes for a byte.
    pub(crate) byte_ms: Option<f64>,
    /// Milliseconds that its line takes for an upload of any size.
    pub(crate) fixed_ms: f64,
    /// Payload bytes and milliseconds of its latest upload.
    pub(crate) latest: Option<(u64, u64)>,
    /// When its latest update was accepted, in this incarnation.
    pub(crate) accepted_ms: Option<u64>,
    /// Moving mean of the residual's norm over the delta's.
    pub(crate) residual_ratio: Option<f64>,
}

impl Compression {
    /// Returns the level of the next lease.
    #[must_use]
    pub fn level(&self) -> usize {
        self.level as usize
    }

    /// The agent's process has started: the time since its latest update is no round.
    pub(super) fn restarted(&mut self) {
        self.accepted_ms = None;
    }

    /// An update was too old when it came. Its line may be too thin for it, although no upload
    /// could show that.
    pub(super) fn stale(&mut self, upload: &UploadSpec) {
        self.level = number((self.level() + 1).min(upload.levels() - 1));
    }

    /// An update that was encoded with `sent`, beside what the policy names, was accepted at a Unix time in milliseconds.
    pub(super) fn accepted(
        &mut self,
        update: &Contribution,
        (sent, sizes): (&CodecSpec, UpdateSizes),
        at_ms: u64,
        adaptive: &AdaptiveSpec,
        upload: &UploadSpec,
    ) {
        let grows = self.observe_residual(update.meta.residual_ratio);
        let passed_ms = self.accepted_ms.replace(at_ms).and_then(|before_ms| at_ms.checked_sub(before_ms));
        let Some(transfer_ms) = update.transfer_ms else { return };
        let bytes = update.meta.payload_bytes;
        let byte_ms = self.observe_line(bytes, transfer_ms);
        // What an agent waits for beside its upload is known from its second update on.
        let Some(passed_ms) = passed_ms else { return };
        let round_ms = update.meta.compute_ms.max(passed_ms.saturating_sub(transfer_ms)).max(1);
        self.round_ms = Some(blended(self.round_ms, round_ms as f64));
        let a_bit_ms = byte_ms * bytes as f64 / sizes.with(sent);
        let takes_ms = |level| a_bit_ms * sizes.with(&upload.level(level));
        let allowed_ms = adaptive.transfer_share * self.round_ms.unwrap_or_default();
        let hardest = upload.levels() - 1;
        let mildest_within = |ms| (0..hardest).find(|level| takes_ms(*level) <= ms).unwrap_or(hardest);
        // The second is never milder than the first.
        let (fits, fits_well) = (mildest_within(allowed_ms), mildest_within(allowed_ms / HYSTERESIS));
        let level = self.level();
        if level > fits_well {
            self.level = number(fits_well);
        } else if level < fits && (level == 0 || !grows) {
            self.level = number(fits);
        }
    }

    /// Returns whether the residual grows.
    fn observe_residual(&mut self, ratio: Option<f32>) -> bool {
        let Some(ratio) = ratio.map(f64::from) else { return false };
        let mean = *self.residual_ratio.get_or_insert(ratio);
        self.residual_ratio = Some(mean + BLEND * (ratio - mean));
        ratio > GROWTH * mean
    }

    /// Returns what a byte takes by now.
    fn observe_line(&mut self, payload_bytes: u64, transfer_ms: u64) -> f64 {
        let (bytes, ms) = (payload_bytes.max(1) as f64, transfer_ms as f64);
        if let Some((other_bytes, other_ms)) = self.latest.map(|(bytes, ms)| (bytes.max(1) as f64, ms as f64)) {
            let differ = bytes > OTHER_SIZE * other_bytes || other_bytes > OTHER_SIZE * bytes;
            let byte_ms = (ms - other_ms) / (bytes - other_bytes);
            // A larger payload that took less time says that the line has changed.
            if differ && byte_ms > 0.0 {
                self.fixed_ms = (ms - byte_ms * bytes).max(0.0);
            }
        }
        self.latest = Some((payload_bytes, transfer_ms));
        self.fixed_ms = self.fixed_ms.min(LATENCY_SHARE * ms);
        let byte_ms = blended(self.byte_ms, (ms - self.fixed_ms) / bytes);
        self.byte_ms = Some(byte_ms);
        byte_ms
    }
}

/// The moving mean with the newest figure.
fn blended(mean: Option<f64>, newest: f64) -> f64 {
    let Some(mean) = mean else { return newest };
    // A line that took no time at all would stay one for ever.
    let trusted = if mean > 0.0 { newest.clamp(mean / TRUST, mean * TRUST) } else { newest };
    mean + BLEND * (trusted - mean)
}

#[expect(clippy::cast_possible_truncation, reason = "levels are few")]
fn number(level: usize) -> u32 {
    level as u32
}

#[cfg(test)]
mod tests {
    use anabranch_common::codec::CodecId;
    use anabranch_common::ids::{AgentId, BranchId, Digest, Epoch, LeaseId, ModelVersion, RunId, UpdateSeq};
    use anabranch_common::manifest::{ModelManifest, TensorSpec};
    use anabranch_common::spec::{TensorCodec, TensorPolicy};
    use anabranch_common::update::{UpdateKey, UpdateMeta};

    use super::*;

    /// A line with a latency, and an agent behind it.
    #[derive(Clone, Copy)]
    struct Line {
        bytes_per_ms: f64,
        latency_ms: u64,
        compute_ms: u64,
        /// Milliseconds of a round that go into the model.
        download_ms: u64,
    }

    const PARAMS: f64 = 1e6;
    const LINE: Line = Line { bytes_per_ms: 32.0, latency_ms: 300, compute_ms: 10_000, download_ms: 0 };

    fn upload() -> UploadSpec {
        UploadSpec { adaptive: Some(AdaptiveSpec::default()), ..UploadSpec::fixed(CodecSpec::top_k(0.05), 1.0) }
    }

    fn update(
        payload_bytes: u64,
        compute_ms: u64,
        residual_ratio: Option<f32>,
        transfer_ms: Option<u64>,
    ) -> Contribution {
        let key = UpdateKey { run: RunId([1; 16]), agent: AgentId([3; 16]), epoch: Epoch(1), seq: UpdateSeq(1) };
        let meta = UpdateMeta {
            key,
            branch: BranchId([2; 16]),
            lease: LeaseId(1),
            base_version: ModelVersion(0),
            base_digest: Digest::default(),
            codec: CodecId(2),
            payload_bytes,
            payload_digest: Digest::default(),
            num_examples: 8,
            local_steps: 1,
            train_loss: 0.5,
            compute_ms,
            base_dot: None,
            residual_ratio,
            memory: None,
        };
        let (credited_examples, staleness, weight, norm) = (8, 0, 1.0, 1.0);
        Contribution {
            meta,
            credited_examples,
            staleness,
            weight,
            mean_weight: 0,
            norm,
            recall: None,
            memory: None,
            transfer_ms,
        }
    }

    /// The levels that so many rounds have, one after another without overlap. `line` and
    /// `residual` are those of each round.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "sizes and times are small")]
    fn levels_with(
        rounds: u64,
        line: impl Fn(u64) -> Line,
        residual: impl Fn(u64) -> Option<f32>,
    ) -> (Vec<usize>, Compression) {
        let (upload, mut compression, mut at_ms, mut levels) = (upload(), Compression::default(), 0, Vec::new());
        let adaptive = upload.adaptive.clone().expect("it is");
        for round in 0..rounds {
            let Line { bytes_per_ms, latency_ms, compute_ms, download_ms } = line(round);
            let codec = upload.level(compression.level());
            levels.push(compression.level());
            let bytes = (PARAMS * codec.bits_per_value() / 8.0) as u64;
            let transfer_ms = latency_ms + (bytes as f64 / bytes_per_ms) as u64;
            at_ms += compute_ms + download_ms + transfer_ms;
            let update = update(bytes, compute_ms, residual(round), Some(transfer_ms));
            compression.accepted(&update, (&codec, UpdateSizes::default()), at_ms, &adaptive, &upload);
        }
        (levels, compression)
    }

    fn levels(rounds: u64, line: impl Fn(u64) -> Line) -> Vec<usize> {
        levels_with(rounds, line, |_| None).0
    }

    fn payload_ms(level: usize) -> f64 {
        PARAMS * upload().level(level).bits_per_value() / 8.0 / LINE.bytes_per_ms
    }

    #[test]
    fn a_line_that_is_wide_enough_keeps_the_mildest_codec() {
        assert_eq!(levels(4, |_| Line { bytes_per_ms: 1e6, latency_ms: 0, ..LINE }), [0; 4], "no time at all");
        assert_eq!(levels(4, |_| Line { bytes_per_ms: 40.0, ..LINE }), [0; 4], "{} of 2,500 ms", payload_ms(0));
    }

    #[test]
    fn a_thin_line_gets_the_mildest_codec_that_fits_at_once() {
        assert!(payload_ms(0) > 2_500.0 && payload_ms(1) < 2_500.0);
        assert_eq!(levels(4, |_| LINE), [0, 0, 1, 1], "two updates make a round");
        assert!(payload_ms(3) > 225.0 && payload_ms(4) < 225.0);
        assert_eq!(levels(4, |_| Line { compute_ms: 900, ..LINE }), [0, 0, 4, 4]);
        assert_eq!(levels(4, |_| Line { compute_ms: 1, ..LINE }), [0, 0, 4, 4], "nothing fits: the hardest");
    }

    /// What the policy names has the same size at every level: levels save less than their codecs alone would.
    #[test]
    fn what_the_policy_names_is_no_smaller_at_a_harder_level() {
        let tensor = |name: &str, elements| TensorSpec { name: name.into(), shape: vec![elements] };
        let manifest = ModelManifest::new(vec![tensor("w", 990_000), tensor("b", 10_000)]).expect("valid");
        let policy = TensorPolicy::new(vec![TensorCodec { tensors: "b".into(), codec: CodecSpec::F32 }]);
        let sizes = policy.sizes(&manifest);
        let (upload, mut compression) = (upload(), Compression { level: 4, ..Compression::default() });
        let adaptive = upload.adaptive.clone().expect("it is");
        let codec = upload.level(4);
        // A line that takes 2 s for 40 KB takes 4.4 s for the mildest level, of which 2 s are the policy's.
        #[expect(clippy::cast_possible_truncation, reason = "a size")]
        let payload_bytes = (sizes.with(&codec) / 8.0) as u64;
        for at_ms in [20_000, 40_000] {
            let update = update(payload_bytes, 17_000, None, Some(2_000));
            compression.accepted(&update, (&codec, sizes), at_ms, &adaptive, &upload);
        }
        let bytes = |level: usize| sizes.with(&upload.level(level)) / 8.0;
        let takes_s = |level| 2.0 * bytes(level) / payload_bytes as f64;
        let allowed_s = 0.25 * 18.0 / 1.5;
        let mildest = (0..5).find(|level| takes_s(*level) <= allowed_s).expect("the hardest fits");
        assert_eq!((compression.level(), takes_s(mildest) > 2.0), (mildest, true));
        assert!(mildest < 4, "the line has room for more than the hardest level");
    }

    #[test]
    fn latency_is_the_same_at_every_level_and_drives_to_none() {
        let far = Line { bytes_per_ms: 1_000.0, latency_ms: 4_000, ..LINE };
        let found = levels(12, |_| far);
        assert_eq!((found[2], found[11]), (1, 0), "the second size tells latency and rate apart: {found:?}");
    }

    #[test]
    fn time_that_is_lost_to_downloads_is_not_made_up_for_by_smaller_updates() {
        let quick = Line { compute_ms: 900, ..LINE };
        assert_eq!(levels(12, |_| Line { download_ms: 20_000, ..quick }), [0; 12]);
        assert_eq!(levels(12, |_| quick).last(), Some(&4));
    }

    #[test]
    fn a_line_at_the_border_does_not_change_its_level_back_and_forth() {
        // At level 1 an update of level 0 would just fit.
        let border = |round: u64| Line { compute_ms: if round.is_multiple_of(2) { 13_000 } else { 10_500 }, ..LINE };
        let found = levels(40, border);
        let changes = found.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert_eq!((changes, found[39]), (1, 1), "{found:?}");
        let wider = levels(40, |round| if round < 5 { LINE } else { Line { bytes_per_ms: 64.0, ..LINE } });
        assert_eq!((wider[4], wider[39]), (1, 0), "one that is wide enough twice over does: {wider:?}");
    }

    #[test]
    fn one_slow_upload_among_many_moves_little() {
        let wide = Line { bytes_per_ms: 100.0, ..LINE };
        let found = levels(20, |round| if round == 9 { Line { bytes_per_ms: 1.0, ..wide } } else { wide });
        assert_eq!(found, [0; 20]);
    }

    #[test]
    fn a_residual_that_grows_holds_the_level_until_it_has_settled() {
        let settled = |round: u64| Some(10.0 - 10.0 * 0.5f32.powi(i32::try_from(round).expect("few")));
        let thinner = |round: u64| if round < 2 { LINE } else { Line { bytes_per_ms: 8.0, ..LINE } };
        let (found, _) = levels_with(20, thinner, settled);
        let free = levels(20, thinner);
        let first = |levels: &[usize], level| levels.iter().position(|found| *found >= level);
        assert!(first(&found, 2) > first(&free, 2).map(|round| round + 2), "{found:?}, and {free:?} without a guard");
        assert!(first(&found, 2).is_some());
        let (held, _) = levels_with(20, thinner, |round| Some(1.2f32.powi(i32::try_from(round).expect("few"))));
        assert_eq!(held.iter().max(), Some(&1), "level 0 is left whatever the residual does: {held:?}");
        let (milder, _) = levels_with(
            20,
            |round| if round < 5 { LINE } else { Line { bytes_per_ms: 1e3, ..LINE } },
            |round| Some(1.2f32.powi(i32::try_from(round).expect("few"))),
        );
        assert_eq!(milder[19], 0, "a milder level is always allowed");
    }

    #[test]
    fn an_update_that_came_too_late_makes_the_next_one_smaller() {
        let (upload, mut compression) = (upload(), Compression::default());
        (0..9).for_each(|_| compression.stale(&upload));
        assert_eq!(compression.level(), 4, "the hardest");
        let adaptive = upload.adaptive.clone().expect("it is");
        let codec = upload.level(4);
        for at_ms in [20_000, 40_000] {
            compression.accepted(
                &update(2_000, 10_000, None, Some(10)),
                (&codec, UpdateSizes::default()),
                at_ms,
                &adaptive,
                &upload,
            );
        }
        assert_eq!(compression.level(), 0, "the line is wide");
    }

    #[test]
    fn what_was_not_measured_changes_nothing_and_extremes_are_borne() {
        let (upload, mut compression) = (upload(), Compression::default());
        let adaptive = upload.adaptive.clone().expect("it is");
        let codec = upload.level(0);
        compression.accepted(&update(1_000, 10, None, None), (&codec, UpdateSizes::default()), 5, &adaptive, &upload);
        assert_eq!(compression, Compression { accepted_ms: Some(5), ..Compression::default() });
        for (bytes, compute_ms, transfer_ms) in [(0, 0, 0), (u64::MAX, u64::MAX, u64::MAX), (1, 0, u64::MAX), (0, 7, 3)]
        {
            for at_ms in [0, u64::MAX, 3] {
                let update = update(bytes, compute_ms, Some(f32::MAX), Some(transfer_ms));
                compression.accepted(&update, (&codec, UpdateSizes::default()), at_ms, &adaptive, &upload);
                let Compression { round_ms, byte_ms, fixed_ms, residual_ratio, .. } = &compression;
                let figures = [round_ms, byte_ms, residual_ratio].into_iter().flatten().chain([fixed_ms]);
                assert!(figures.into_iter().all(|figure| figure.is_finite() && *figure >= 0.0), "{compression:?}");
                assert!(compression.level() < upload.levels());
            }
        }
        compression.restarted();
        assert_eq!(compression.accepted_ms, None);
    }
}
