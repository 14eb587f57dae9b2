//! How long it takes from the start of an agent to its first update, from what was measured.
//!
//! ```text
//!  connect   4 round trips: handshake, hello, lease, fetch
//!  model     4 bytes a parameter at the line's rate
//!  round     steps * batch * 3 * operations of a forward pass, at the speed of matrix products
//!  update    parameters * bits of the codec, at the line's rate
//! ```

use anabranch_common::wire::probe::RunFacts;
use anabranch_io::doctor::{Finding, millis_text};

use super::Known;
use super::machine::Device;

const FIRST_UPDATE: &str = "first-update";
/// Round trips before the first byte of a model.
const ROUND_TRIPS: f64 = 4.0;
/// Bits of a parameter in a model that is sent whole, at most.
const MODEL_BITS: f64 = 32.0;
/// A backward pass has twice as many operations as the forward pass before it.
const PASSES: f64 = 3.0;
/// Bytes a parameter that an agent's store takes while an update is stored, and a kept round beside it.
const STORED: u64 = 8 + 16;

/// Returns the parameters of the run's model, where they follow from its configuration or it has begun.
fn params(run: &RunFacts) -> Option<u64> {
    run.params.or_else(|| Some(run.spec.model.layers().ok()??.manifest.params() as u64))
}

/// Returns the bytes that an agent of the run keeps on its disk, at most.
pub(super) fn store_bytes(run: &RunFacts) -> Option<u64> {
    params(run).map(|params| params.saturating_mul(STORED))
}

/// Returns the operations of a round of a native model.
fn round_flops(run: &RunFacts) -> Option<f64> {
    let model = run.spec.model.layers().ok()??;
    let forward: f64 = model.layers.iter().map(|layer| layer.cost().forward_flops as f64).sum();
    let examples = f64::from(run.spec.train.local_steps) * f64::from(run.spec.train.batch_size);
    Some(PASSES * forward * examples)
}

/// Estimates the time to the first update, with its parts.
pub(super) fn first_update(known: &Known, flops_per_s: u64, device: &Device) -> Finding {
    let Some(run) = &known.run else {
        return Finding::skipped(FIRST_UPDATE, "needs a run: join first, then check with --dir");
    };
    let (Some(params), Some(round_trip), Some(bits_per_s)) = (params(run), known.round_trip, known.bits_per_s) else {
        return Finding::skipped(FIRST_UPDATE, "needs the line's rate, and a model that has begun");
    };
    let parameters = params as f64;
    let connect_s = ROUND_TRIPS * round_trip.as_secs_f64();
    let model_s = parameters * MODEL_BITS / bits_per_s;
    let update_s = parameters * run.spec.upload.codec.bits_per_value() / bits_per_s;
    let round_s = round_flops(run).filter(|_| device.is_cpu()).map(|flops| flops / flops_per_s as f64);
    let total_s = connect_s + model_s + update_s + round_s.unwrap_or(0.0);
    let text = |seconds: f64| millis_text(seconds * 1e3);
    let round = match round_s {
        Some(round_s) => format!("round at least {}", text(round_s)),
        None => "the round itself not counted".to_owned(),
    };
    let measured = format!(
        "about {} for {params} parameters: connect {}, model {}, {round}, update {}",
        text(total_s),
        text(connect_s),
        text(model_s),
        text(update_s)
    );
    Finding::ok(FIRST_UPDATE, measured).figure("seconds", total_s).figure("parameters", params)
}

#[cfg(test)]
pub(super) mod tests;
