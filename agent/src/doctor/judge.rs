//! What figures of the network mean, and what to do about them.

use std::net::SocketAddr;
use std::time::Duration;

use anabranch_common::limits::{KEEP_ALIVE_MS, doctor as limits};
use anabranch_io::doctor::line::{LineError, Path, Sample};
use anabranch_io::doctor::udp::{Host, Ping, Train};
use anabranch_io::doctor::{Finding, millis_text, rate_text, span_text};
use anabranch_io::exit::ExitCode;
use anabranch_io::frames::HandshakeError;
use anabranch_io::tls::ConnectProblem;

pub(super) const UDP: &str = "udp";
pub(super) const TLS: &str = "tls";
pub(super) const PROTOCOL: &str = "protocol";
pub(super) const CLOCK: &str = "clock";
pub(super) const PATH: &str = "path";
pub(super) const RATE: &str = "udp-rate";
pub(super) const LINE: &str = "line";
pub(super) const NAT: &str = "nat";

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Judges pings to all addresses of a name. `has_connected`: a handshake came about all the same.
pub(super) fn udp(pings: &[(SocketAddr, Ping)], has_connected: bool) -> Finding {
    let answered = pings.iter().find_map(|(remote, ping)| match ping {
        Ping::Answered(after) => Some((remote, *after)),
        _ => None,
    });
    if let Some((remote, after)) = answered {
        let others = pings.iter().filter(|(_, ping)| !matches!(ping, Ping::Answered(_))).count();
        let others = if others > 0 { format!("; {others} other addresses do not answer") } else { String::new() };
        let measured = format!("{remote} answers after {}{others}", millis_text(millis(after)));
        return Finding::ok(UDP, measured).figure("answer_ms", millis(after));
    }
    if has_connected {
        return Finding::ok(UDP, "no answer to pings, but to a handshake");
    }
    let port = pings.first().map_or(0, |(remote, _)| remote.port());
    let fail = |measured: String, advice: String| Finding::failure(UDP, ExitCode::Unavailable, measured, advice);
    let some = |wanted: fn(&Ping) -> bool| pings.iter().find(|(_, ping)| wanted(ping));
    if let Some((remote, _)) = some(|ping| *ping == Ping::Silent(Host::Answers)) {
        return fail(
            format!("blocked: {remote} answers TCP, and no datagram of UDP comes back"),
            format!(
                "let UDP port {port} through, out of this network and into the coordinator's (firewall, security group, \
                 router); QUIC does not use TCP. If the port is open, the coordinator does not run, or the way carries no \
                 datagrams of 1,200 bytes"
            ),
        );
    }
    if let Some((remote, _)) = some(|ping| *ping == Ping::Refused) {
        return fail(
            format!("refused: the machine at {remote} is there, and nothing listens on UDP port {port}"),
            "start the coordinator, or compare the port with `listen` in its run.toml".into(),
        );
    }
    if let Some((remote, Ping::Unreachable(why))) = some(|ping| matches!(ping, Ping::Unreachable(_))) {
        return fail(
            format!("{remote} cannot be reached: {why}"),
            "check this machine's network, its route to that address and its own firewall".into(),
        );
    }
    fail(
        "no answer, neither to UDP nor to TCP".into(),
        format!(
            "check the address and that the machine is on; then let UDP port {port} through the firewalls on the way"
        ),
    )
}

/// Judges why there is no connection, after `udp` has answered or not.
pub(super) fn no_connection(error: &LineError) -> Finding {
    let (code, help) = match error {
        LineError::Connect(problem) => (problem.exit_code(), problem.help()),
        LineError::Handshake(error) => (error.exit_code().unwrap_or(ExitCode::Protocol), error.help()),
        LineError::Frame(error) => (error.exit_code().unwrap_or(ExitCode::Protocol), None),
        LineError::Bind(error) => (ExitCode::Address, Some(error.help())),
        LineError::Tls(_) => (ExitCode::Config, None),
    };
    let help = match error {
        LineError::Connect(problem) if matches!(problem.of_one(), ConnectProblem::UnknownCa) => Some(
            "this is another coordinator than the token, agent.toml or --ca names: check the address, or ask its operator \
             for a new token"
                .to_owned(),
        ),
        LineError::Connect(problem) if matches!(problem.of_one(), ConnectProblem::WrongName) => {
            Some("use a name of the certificate, or let the operator add this one to server.names and start again".into())
        }
        _ => help,
    };
    let advice = help.unwrap_or_else(|| "try again; if it stays so, send this line to the operator".into());
    Finding::failure(TLS, code, error.to_string(), advice)
}

/// Judges why a coordinator that was reached does not answer the first question.
pub(super) fn no_answer(error: &LineError) -> Finding {
    match error {
        LineError::Handshake(mismatch @ HandshakeError::Version { .. }) => {
            let advice = mismatch.help().unwrap_or_else(|| "upgrade the older side".into());
            Finding::failure(PROTOCOL, ExitCode::Protocol, mismatch.to_string(), advice)
        }
        error => {
            let measured = format!("the coordinator does not answer this question: {error}");
            let advice = "upgrade the coordinator if it is older than this agent; otherwise try again";
            Finding::failure(PROTOCOL, ExitCode::Protocol, measured, advice)
        }
    }
}

/// Judges the versions of both sides, which have agreed on a protocol.
pub(super) fn protocol(here: &str, there: &str, protocol: u16) -> Finding {
    let measured = format!("this agent {here}, the coordinator {there}; both speak protocol {protocol}");
    Finding::ok(PROTOCOL, measured).figure("coordinator", there).figure("protocol", protocol)
}

/// Judges the difference of the clocks. `is_valid_here`: the certificates are valid at this machine's clock.
pub(super) fn clock(sample: &Sample, is_valid_here: bool) -> Finding {
    let ahead_ms = sample.ahead_ms();
    let off_ms = ahead_ms.unsigned_abs();
    let measured = match off_ms {
        0..1_000 => format!("within {off_ms} ms of the coordinator's"),
        _ if ahead_ms > 0 => format!("{} ahead of the coordinator's", span_text(off_ms)),
        _ => format!("{} behind the coordinator's", span_text(off_ms)),
    };
    let advice =
        "set this machine's clock (NTP, for example `timedatectl set-ntp true`); if it is right, tell the operator";
    let finding = if !is_valid_here {
        let measured = format!("{measured}: certificates are not valid at it");
        Finding::failure(CLOCK, ExitCode::Clock, measured, advice)
    } else if ahead_ms < 0 && off_ms >= limits::CLOCK_FAIL_MS {
        let measured = format!("{measured}: new certificates are not valid yet at it");
        Finding::failure(CLOCK, ExitCode::Clock, measured, advice)
    } else if off_ms >= limits::CLOCK_WARN_MS {
        Finding::warning(CLOCK, measured, advice)
    } else {
        Finding::ok(CLOCK, measured)
    };
    finding.figure("ahead_ms", ahead_ms).figure("uncertainty_ms", millis(sample.round_trip) / 2.0)
}

/// Judges round trip and MTU. `seen_as` is this agent's address as the coordinator sees it.
pub(super) fn path(path: Path, shortest: Duration, seen_as: &str) -> Finding {
    let Path { mtu, black_holes, .. } = path;
    let measured =
        format!("round trip {}, datagrams of up to {mtu} bytes, seen as {seen_as}", millis_text(millis(shortest)));
    let finding = if black_holes > 0 {
        let measured = format!("{measured}; large datagrams stopped passing {black_holes} times");
        Finding::warning(
            PATH,
            measured,
            "lower the MTU of the tunnel or interface, or let ICMP `packet too big` through",
        )
    } else if usize::from(mtu) <= limits::PING_BYTES {
        let advice =
            "expect a fifth more datagrams: a tunnel or VPN on the way carries the smallest ones only; raise its MTU";
        Finding::warning(PATH, measured, advice)
    } else if shortest.as_millis() >= limits::ROUND_TRIP_MS.into() {
        let advice =
            "rounds are not slowed by this, small transfers are; look for a busy queue on this line (bufferbloat)";
        Finding::warning(PATH, measured, advice)
    } else {
        Finding::ok(PATH, measured)
    };
    finding.figure("round_trip_ms", millis(shortest)).figure("mtu_bytes", mtu).figure("seen_as", seen_as)
}

/// Judges trains of datagrams, slowest first.
pub(super) fn rate(trains: &[Train]) -> Finding {
    let is_lossy = |train: &&Train| train.loss_percent() > limits::LOSS_PERCENT as f64;
    let bytes = trains.iter().map(|train| u64::from(train.sent) * limits::PING_BYTES as u64).sum::<u64>();
    let sent = anabranch_io::cli::size_text(bytes);
    let losses: Vec<String> = trains
        .iter()
        .map(|train| format!("{:.0} % at {}", train.loss_percent(), rate_text(train.bits_per_s())))
        .collect();
    let losses = losses.join(", ");
    let finding = match (trains.first(), trains.last(), trains.iter().find(is_lossy)) {
        (Some(slowest), Some(fastest), Some(lossy)) => {
            // A limit drops more the more is sent; a bad line drops its share of everything.
            let grows = !is_lossy(&slowest)
                || fastest.loss_percent() > slowest.loss_percent() + limits::LOSS_GROWS_PERCENT as f64;
            if grows {
                let passes = lossy.answered_bits_per_s().max(fastest.answered_bits_per_s());
                let measured = format!("limited to about {}: lost {losses} (sent {sent} in all)", rate_text(passes));
                let advice = "if this line carries more over TCP, a router or firewall limits UDP: ask for an exception for the \
                              coordinator's port; if not, ask the operator for a smaller upload.codec or for upload.adaptive";
                Finding::warning(RATE, measured, advice).figure("passes_bits_per_s", passes.round())
            } else {
                let measured = format!("lost {losses} (sent {sent} in all)");
                let advice = "the line loses datagrams at any rate: use a cable or a better radio link; work gets through, slowly";
                Finding::warning(RATE, measured, advice)
            }
        }
        _ => Finding::ok(RATE, format!("lost {losses} (sent {sent} in all)")),
    };
    let percents: Vec<f64> = trains.iter().map(|train| train.loss_percent()).collect();
    finding.figure("loss_percent", percents).figure("sent_bytes", bytes)
}

/// Packets that were sent and lost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Losses {
    pub(super) sent: u64,
    pub(super) lost: u64,
}

impl Losses {
    fn percent(self) -> f64 {
        100.0 * self.lost as f64 / self.sent.max(1) as f64
    }
}

/// Judges a transfer of `bytes` to the coordinator and back.
pub(super) fn line(bytes: u64, took: Duration, up: Losses, down: Losses) -> Finding {
    let bits_per_s = bits_per_s(bytes, took);
    let sent = anabranch_io::cli::size_text(bytes);
    let (lost_up, lost_down) = (up.percent(), down.percent());
    let measured = format!(
        "at least {} up and down at once, {lost_up:.1} % lost up, {lost_down:.1} % down (sent {sent}, and back)",
        rate_text(bits_per_s)
    );
    let finding = if bits_per_s < limits::THIN_BITS_PER_S as f64 {
        let advice = "ask the operator for a smaller upload.codec, or for upload.adaptive, which gives this agent one of its own";
        Finding::warning(LINE, measured, advice)
    } else if lost_up.max(lost_down) > limits::LOSS_PERCENT as f64 {
        Finding::warning(
            LINE,
            measured,
            "use a cable or a better radio link, or see to what fills the line; work gets through",
        )
    } else {
        Finding::ok(LINE, measured)
    };
    finding
        .figure("bits_per_s", bits_per_s.round())
        .figure("lost_up_percent", lost_up)
        .figure("lost_down_percent", lost_down)
}

pub(super) fn bits_per_s(bytes: u64, took: Duration) -> f64 {
    bytes as f64 * 8.0 / took.as_secs_f64().max(1e-6)
}

/// How the address of this agent, as the coordinator sees it, survived silences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Silence {
    /// How long nothing was sent, in seconds.
    pub(super) seconds: u64,
    /// Whether the address is the same after it.
    pub(super) is_kept: bool,
}

/// Judges silences, shortest first.
pub(super) fn nat(silences: &[Silence]) -> Finding {
    let kept = silences.iter().take_while(|silence| silence.is_kept).last().map(|silence| silence.seconds);
    let lost = silences.iter().find(|silence| !silence.is_kept).map(|silence| silence.seconds);
    let finding = match (kept, lost) {
        (_, Some(lost)) if lost * 1000 <= KEEP_ALIVE_MS => {
            let measured = format!("forgotten after {lost} s of silence, before the next keep-alive");
            let advice = "raise the router's timeout for UDP to 30 s or more: until then what the coordinator sends first is lost";
            Finding::warning(NAT, measured, advice)
        }
        (_, Some(lost)) => {
            let measured = format!("forgotten after {lost} s of silence; agents send a keep-alive every 5 s");
            Finding::ok(NAT, measured)
        }
        (Some(kept), None) => Finding::ok(NAT, format!("the address is kept over {kept} s of silence")),
        (None, None) => Finding::skipped(NAT, "no silence was tried"),
    };
    let finding = finding.figure("kept_s", kept.unwrap_or(0));
    match lost {
        Some(lost) => finding.figure("lost_s", lost),
        None => finding,
    }
}

#[cfg(test)]
mod tests;
