//! The way to the coordinator, as anybody may check it: no certificate is shown.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anabranch_common::ids::Digest;
use anabranch_common::limits;
use anabranch_io::doctor::certificate::{Life, Remedies};
use anabranch_io::doctor::line::{Line, LineError, Sample};
use anabranch_io::doctor::udp::{self, Ping};
use anabranch_io::doctor::{Finding, Report};
use anabranch_io::exit::ExitCode;
use anabranch_io::tls;
use quinn::Endpoint;
use tokio::task::JoinSet;

use super::judge::{self, CLOCK, LINE, Losses, NAT, PATH, PROTOCOL, RATE, Silence, TLS, UDP};
use super::{Known, Target};
use crate::clock;

const ADDRESS: &str = "address";
const SERVER_CERTIFICATE: &str = "server-certificate";
/// Checks that need a connection, in their order.
const OF_A_CONNECTION: [&str; 7] = [PROTOCOL, CLOCK, SERVER_CERTIFICATE, PATH, RATE, LINE, NAT];

/// Makes all checks of the way.
pub(super) async fn check(target: &Target, nat_s: Option<u64>, report: &mut Report, known: &mut Known) {
    let found = match resolve(&target.address).await {
        Ok(found) => found,
        Err(finding) => {
            report.add(finding);
            [UDP, TLS].into_iter().chain(OF_A_CONNECTION).for_each(|check| report.add(needs(check, ADDRESS)));
            return;
        }
    };
    let shown = found.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let is_plain = shown == target.address;
    report.add(Finding::ok(ADDRESS, if is_plain { shown } else { format!("{} is {shown}", target.address) }));
    let pings = ping(&found, salt(&target.cas)).await;
    let opened = match tls::client_endpoint() {
        Ok(endpoint) => Line::open(&endpoint, &target.address, &target.cas, None).await.map(|line| (endpoint, line)),
        Err(error) => Err(error.into()),
    };
    report.add(judge::udp(&pings, opened.is_ok()));
    let (endpoint, line) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let answers = pings.iter().any(|(_, ping)| matches!(ping, Ping::Answered(_)));
            // A handshake that nobody answers says nothing that `udp` does not.
            let is_silence = !answers && matches!(&error, LineError::Connect(problem) if problem.is_transient());
            report.add(if is_silence { needs(TLS, UDP) } else { judge::no_connection(&error) });
            OF_A_CONNECTION.into_iter().for_each(|check| report.add(needs(check, TLS)));
            return;
        }
    };
    let took = anabranch_io::doctor::millis_text(line.handshake.as_secs_f64() * 1e3);
    report.add(Finding::ok(TLS, format!("the coordinator is the expected one; the handshake took {took}")));
    let remote = pings.iter().find(|(_, ping)| matches!(ping, Ping::Answered(_))).map(|(remote, _)| *remote);
    over(target, &line, remote, report, known).await;
    line.close().await;
    report.add(match nat_s {
        None => Finding::skipped(NAT, "not asked for: --nat"),
        Some(nat_s) => match silences(&endpoint, target, nat_s).await {
            Ok(silences) => judge::nat(&silences),
            Err(error) => Finding::skipped(NAT, format!("the coordinator was not reached again: {error}")),
        },
    });
}

fn needs(check: &'static str, other: &str) -> Finding {
    Finding::skipped(check, format!("needs `{other}`"))
}

/// A number that other programs do not send: what it is made of is no secret.
fn salt(cas: &[Digest]) -> u32 {
    let first = cas.first().map_or([0; 4], |ca| [ca.0[0], ca.0[1], ca.0[2], ca.0[3]]);
    u32::from_le_bytes(first) ^ std::process::id()
}

async fn resolve(address: &str) -> Result<Vec<SocketAddr>, Finding> {
    let Some((host, port)) = tls::split_address(address) else {
        let measured = format!("{address:?} is no host and port");
        let advice = "write it as host:port, for example trainer.example:4433 or [2001:db8::1]:4433";
        return Err(Finding::failure(ADDRESS, ExitCode::Config, measured, advice));
    };
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let unresolved = |why: String| {
        let advice =
            "check the spelling and the name server, or use the coordinator's IP address if its certificate lists it";
        Finding::failure(ADDRESS, ExitCode::Unavailable, format!("{host} has no address: {why}"), advice)
    };
    let mut found: Vec<SocketAddr> = match tokio::net::lookup_host((host, port)).await {
        Ok(found) => found.take(limits::CONNECT_ADDRESSES).collect(),
        Err(error) => return Err(unresolved(error.to_string())),
    };
    found.dedup();
    if found.is_empty() { Err(unresolved("the name server knows none".into())) } else { Ok(found) }
}

/// Pings all addresses at once. Returns them in their order.
async fn ping(found: &[SocketAddr], salt: u32) -> Vec<(SocketAddr, Ping)> {
    let mut pings = JoinSet::new();
    for (place, remote) in found.iter().copied().enumerate() {
        pings.spawn(async move { (place, remote, udp::ping(remote, salt).await) });
    }
    let mut ended: Vec<_> = pings.join_all().await;
    ended.sort_unstable_by_key(|(place, ..)| *place);
    ended.into_iter().map(|(_, remote, ping)| (remote, ping)).collect()
}

/// Makes the checks of an open connection.
async fn over(target: &Target, line: &Line, remote: Option<SocketAddr>, report: &mut Report, known: &mut Known) {
    let mut samples: Vec<Sample> = Vec::new();
    for _ in 0..limits::doctor::CLOCK_PROBES {
        match line.ask(clock::unix_ms).await {
            Ok(sample) => samples.push(sample),
            Err(error) if samples.is_empty() => {
                report.add(judge::no_answer(&error));
                let others = OF_A_CONNECTION.into_iter().filter(|check| ![PROTOCOL, NAT].contains(check));
                others.for_each(|check| report.add(needs(check, PROTOCOL)));
                return;
            }
            Err(_) => break,
        }
    }
    // The shortest round trip bounds the clock best.
    let Some(best) = samples.iter().min_by_key(|sample| sample.round_trip).cloned() else { return };
    known.ahead_ms = Some(best.ahead_ms());
    known.round_trip = Some(best.round_trip);
    let version = anabranch_common::schema::VERSION;
    report.add(judge::protocol(env!("CARGO_PKG_VERSION"), &best.answer.software, version));
    let lives: Vec<Life> = line.certificates().iter().filter_map(|der| Life::of(der).ok()).collect();
    // Of certificates that have expired at the coordinator's own clock `server-certificate` tells.
    let there_ms = best.answer.unix_ms;
    report.add(judge::clock(&best, lives.iter().all(|life| life.holds(best.here_ms) || !life.holds(there_ms))));
    report.add(match lives.first() {
        Some(life) => life.judge(
            SERVER_CERTIFICATE,
            there_ms,
            "the coordinator's",
            Remedies {
                expired: "tell the operator: starting `anabranch-coordinator run` again renews it",
                ends_soon: "tell the operator: the next start of `anabranch-coordinator run` renews it",
            },
        ),
        None => Finding::skipped(SERVER_CERTIFICATE, "it cannot be read"),
    });
    let before = line.path();
    let echo = line.echo().await;
    line.search_mtu().await;
    let after = line.path();
    report.add(judge::path(after, best.round_trip.min(after.round_trip), &best.answer.remote));
    report.add(match remote {
        Some(remote) => match udp::trains(remote, salt(&target.cas)).await {
            Ok(trains) => judge::rate(&trains),
            Err(error) => Finding::skipped(RATE, format!("this machine sends no such datagrams: {error}")),
        },
        None => Finding::skipped(RATE, "the coordinator does not answer pings"),
    });
    let last = line.ask(clock::unix_ms).await.ok();
    report.add(match echo {
        Ok((bytes, took)) => {
            known.bits_per_s = Some(judge::bits_per_s(bytes, took));
            let up = Losses { sent: after.sent - before.sent, lost: after.lost.saturating_sub(before.lost) };
            let answer = last.map_or(best.answer.clone(), |sample| sample.answer);
            judge::line(bytes, took, up, Losses { sent: answer.sent, lost: answer.lost })
        }
        Err(error) => {
            let measured = format!("what was sent did not come back in {} s: {error}", limits::doctor::PROBE_MS / 1000);
            let advice = "the line carries less than updates need, or breaks: use another one, and check it with `ping` and `mtr`";
            Finding::failure(LINE, ExitCode::Unavailable, measured, advice)
        }
    });
}

/// Connects from the same socket after longer and longer silences, as long as they take `total_s` at most.
async fn silences(endpoint: &Endpoint, target: &Target, total_s: u64) -> Result<Vec<Silence>, LineError> {
    let seen = async || -> Result<String, LineError> {
        let line = Line::open(endpoint, &target.address, &target.cas, None).await?;
        let sample = line.ask(clock::unix_ms).await;
        line.close().await;
        Ok(sample?.answer.remote)
    };
    let (mut silences, mut left_s, mut seconds) = (Vec::new(), total_s, limits::doctor::NAT_FIRST_S);
    let mut before = seen().await?;
    while seconds <= left_s {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let after = seen().await?;
        let is_kept = after == before;
        silences.push(Silence { seconds, is_kept });
        if !is_kept {
            break;
        }
        (before, left_s, seconds) = (after, left_s - seconds, seconds * 2);
    }
    Ok(silences)
}
