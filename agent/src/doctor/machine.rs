//! Memory and device, against what a run needs where that is known.

use anabranch_common::pod::memory::{example_bytes, one_example_bytes};
use anabranch_common::wire::probe::RunFacts;
use anabranch_io::cli::size_text;
use anabranch_io::doctor::Finding;
use anabranch_io::exit::ExitCode;

const MEMORY: &str = "memory";
const DEVICE: &str = "device";

/// Memory of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Bytes that could be had, the limits of cgroups counted; none where the system does not say.
    pub(crate) available_bytes: Option<u64>,
    /// What the owner allows, in bytes.
    pub(crate) max_bytes: Option<u64>,
}

impl Memory {
    /// Judges the memory. `run`: what it has to be enough for.
    pub(super) fn judge(self, run: Option<&RunFacts>) -> Finding {
        let Some(bytes) = self.available_bytes.into_iter().chain(self.max_bytes).min() else {
            return Finding::skipped(MEMORY, "this system does not say how much is free");
        };
        let free = match self.max_bytes {
            Some(max_bytes) if max_bytes == bytes => format!("{} allowed (max_memory)", size_text(bytes)),
            _ => format!("{} available", size_text(bytes)),
        };
        let Some(facts) = run else {
            return Finding::ok(MEMORY, free).figure("bytes", bytes);
        };
        // As for a round: an eighth of what is free is left alone.
        let usable = bytes - bytes / 8;
        let finding = match facts.spec.model.layers().ok().flatten() {
            Some(model) => {
                let one = one_example_bytes(&model, &facts.spec.train);
                let further =
                    example_bytes(&model).saturating_mul(u64::from(facts.spec.train.batch_size).saturating_sub(1));
                let batch = one.saturating_add(further);
                let needs = format!("{free}; a step of run {} takes {}", facts.spec.name, size_text(batch));
                let finding = if usable < one {
                    let measured = format!("{needs}, one example at a time {}", size_text(one));
                    let advice =
                        "free memory or raise max_memory: not even one example fits, and no round can be computed";
                    Finding::failure(MEMORY, ExitCode::Other, measured, advice)
                } else if usable < batch {
                    let advice = "expect slower rounds: batches are computed in parts; more memory makes them whole";
                    Finding::warning(MEMORY, needs, advice)
                } else {
                    Finding::ok(MEMORY, needs)
                };
                finding.figure("needed_bytes", batch)
            }
            None => Finding::ok(MEMORY, format!("{free}; what the run's own trainer takes is not known here")),
        };
        finding.figure("bytes", bytes)
    }
}

/// The device that would train.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Device {
    /// The processor: its name, and cores that this process may use.
    Cpu {
        /// Name.
        name: String,
        /// Cores.
        cores: usize,
        /// Why no GPU is used, where one is here.
        instead_of: Option<String>,
    },
    /// A GPU that has computed.
    Gpu {
        /// Id and name.
        name: String,
    },
    /// The chosen device does not compute.
    Unusable {
        /// Why.
        problem: String,
    },
}

impl Device {
    /// Judges the device.
    pub(super) fn judge(&self) -> Finding {
        match self {
            Self::Cpu { name, cores, instead_of: None } => Finding::ok(DEVICE, format!("{name}, {cores} cores")),
            Self::Cpu { name, cores, instead_of: Some(why) } => Finding::warning(
                DEVICE,
                format!("{name}, {cores} cores; there is a GPU that is not used: {why}"),
                "see `anabranch-agent devices`, and docs/hardware.md for builds with GPU backends",
            ),
            Self::Gpu { name } => Finding::ok(DEVICE, format!("{name}, which has computed")),
            Self::Unusable { problem } => Finding::failure(
                DEVICE,
                ExitCode::Trainer,
                format!("the chosen device does not compute: {problem}"),
                "see `anabranch-agent devices`, or take the key `device` out of agent.toml",
            ),
        }
    }

    /// Whether the processor trains, whose speed is known.
    pub(super) fn is_cpu(&self) -> bool {
        matches!(self, Self::Cpu { .. })
    }
}

#[cfg(test)]
mod tests {
    use anabranch_io::doctor::Outcome;

    use super::super::estimate::tests::facts;
    use super::*;

    #[test]
    fn memory_is_held_against_the_model_and_its_batch() {
        let memory = |available_bytes| Memory { available_bytes: Some(available_bytes), max_bytes: None };
        let run = facts(4096);
        assert_eq!(memory(1 << 40).judge(Some(&run)).outcome, Outcome::Ok);
        let model = run.spec.model.layers().expect("sound").expect("native");
        let one = one_example_bytes(&model, &run.spec.train);
        let tight = memory(one + one / 4).judge(Some(&run));
        assert_eq!(tight.outcome, Outcome::Warning, "{tight:?}");
        let short = memory(one / 2).judge(Some(&run));
        assert!(short.has_failed() && short.measured.contains("one example at a time"), "{short:?}");
        let capped = Memory { available_bytes: Some(1 << 40), max_bytes: Some(1 << 20) };
        assert!(capped.judge(Some(&run)).has_failed(), "what the owner allows counts");
        assert_eq!(memory(1).judge(None).outcome, Outcome::Ok, "nothing is known of the run");
    }

    #[test]
    fn a_gpu_that_is_not_used_is_told() {
        let cpu = |instead_of| Device::Cpu { name: "A".into(), cores: 2, instead_of };
        assert_eq!(cpu(None).judge().outcome, Outcome::Ok);
        assert_eq!(cpu(Some("no backend".into())).judge().outcome, Outcome::Warning);
        assert_eq!(Device::Unusable { problem: "no driver".into() }.judge().exit_code, Some(14));
    }
}
