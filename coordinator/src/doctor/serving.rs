//! Whether agents find this coordinator: port, names, socket buffers, certificates.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use anabranch_common::limits;
use anabranch_io::cli::size_text;
use anabranch_io::doctor::certificate::{Life, Remedies};
use anabranch_io::doctor::line::Line;
use anabranch_io::doctor::udp::{self, Ping};
use anabranch_io::doctor::{Finding, Report};
use anabranch_io::exit::ExitCode;
use anabranch_io::tls;

use super::store::Held;
use crate::clock;
use crate::config::Config;
use crate::identity::Identity;

const PORT: &str = "port";
const SOFTWARE: &str = "software";
const NAMES: &str = "names";
const BUFFERS: &str = "socket-buffers";

/// What is at the port that `run` listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Listener {
    /// Nothing: it can be had.
    Free,
    /// The coordinator of this directory, with this version of the software.
    Own(String),
    /// Another program, which speaks QUIC or not.
    Other,
    /// The address is not this machine's, or the port may not be had.
    Refused(io::ErrorKind, String),
}

/// Makes the checks of what `run` serves on.
pub(super) async fn check(config: &Config, identity: Option<&Identity>, held: &Held, report: &mut Report) {
    let listener = look(config, identity).await;
    report.add(judge_port(config.server.listen, &listener, held));
    report.add(judge_software(env!("CARGO_PKG_VERSION"), &listener));
    let mut found = Vec::new();
    for name in &config.server.names {
        found.push((name.clone(), resolve(name, config.server.listen.port()).await));
    }
    report.add(judge_names(config, &found));
    report.add(match udp::server_buffers() {
        Ok(buffers) => judge_buffers(buffers),
        Err(error) => Finding::skipped(BUFFERS, format!("the system gives no socket: {error}")),
    });
}

async fn look(config: &Config, identity: Option<&Identity>) -> Listener {
    let error = match UdpSocket::bind(config.server.listen) {
        Ok(_free_again) => return Listener::Free,
        Err(error) => error,
    };
    if error.kind() != io::ErrorKind::AddrInUse {
        return Listener::Refused(error.kind(), error.to_string());
    }
    let local = config.server.local();
    if !matches!(udp::ping(local, std::process::id()).await, Ping::Answered(_)) {
        return Listener::Other;
    }
    let (Some(identity), Ok(endpoint)) = (identity, tls::client_endpoint()) else { return Listener::Other };
    let Ok(line) = Line::open(&endpoint, &local.to_string(), &identity.authorities().fingerprints(), None).await else {
        return Listener::Other;
    };
    let software = line.ask(clock::unix_ms).await.map(|sample| sample.answer.software);
    line.close().await;
    Listener::Own(software.unwrap_or_else(|_| "an older version".to_owned()))
}

fn judge_port(listen: SocketAddr, listener: &Listener, held: &Held) -> Finding {
    match (listener, held) {
        (Listener::Free, Held::Free) => Finding::ok(PORT, format!("UDP {listen} is free")),
        (Listener::Free, Held::By(holder)) => {
            let measured = format!("nothing listens on UDP {listen}, and the store is {holder}");
            let advice =
                "compare `listen` in run.toml with what that process was started with, or wait for the verb to end";
            Finding::warning(PORT, measured, advice)
        }
        (Listener::Own(_), _) => Finding::ok(PORT, format!("this directory's coordinator answers on UDP {listen}")),
        (Listener::Other, _) => {
            let measured = format!("another program has UDP {listen}");
            let advice = "stop that program (`ss -ulpn` names it), or set another port in server.listen";
            Finding::failure(PORT, ExitCode::Address, measured, advice)
        }
        (Listener::Refused(kind, why), _) => {
            let advice = match kind {
                io::ErrorKind::AddrNotAvailable => {
                    "this machine does not have that address: use 0.0.0.0 or [::] in server.listen"
                }
                io::ErrorKind::PermissionDenied => {
                    "ports below 1024 need a privilege: set a higher one in server.listen"
                }
                _ => "set another address or port in server.listen",
            };
            Finding::failure(PORT, ExitCode::Address, format!("UDP {listen} cannot be had: {why}"), advice)
        }
    }
}

fn judge_software(here: &str, listener: &Listener) -> Finding {
    match listener {
        Listener::Own(there) if there != here => {
            let measured = format!("the coordinator that runs is {there}, this program {here}");
            Finding::warning(SOFTWARE, measured, "restart `run` (SIGTERM, then start it again) to use this version")
        }
        Listener::Own(_) => Finding::ok(SOFTWARE, format!("{here}, as the coordinator that runs")),
        _ => Finding::ok(SOFTWARE, here),
    }
}

/// Where a name leads.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    /// To an address of this machine.
    Here(IpAddr),
    /// To this machine's loopback alone.
    Loopback,
    /// To another machine, or to a router before this one.
    Elsewhere(IpAddr),
    /// Nowhere, for this reason.
    Nowhere(String),
}

async fn resolve(name: &str, port: u16) -> Way {
    let found: Vec<IpAddr> = match name.parse::<IpAddr>() {
        Ok(ip) => vec![ip],
        Err(_) => match tokio::net::lookup_host((name, port)).await {
            Ok(found) => found.map(|address| address.ip()).collect(),
            Err(error) => return Way::Nowhere(error.to_string()),
        },
    };
    // An address that a socket can have is this machine's.
    let is_here = |ip: &&IpAddr| UdpSocket::bind((**ip, 0)).is_ok();
    match (found.iter().filter(|ip| !ip.is_loopback()).find(is_here), found.first()) {
        (Some(ip), _) => Way::Here(*ip),
        (None, Some(_)) if found.iter().all(IpAddr::is_loopback) => Way::Loopback,
        (None, Some(ip)) => Way::Elsewhere(*ip),
        (None, None) => Way::Nowhere("the name server knows no address".to_owned()),
    }
}

fn judge_names(config: &Config, found: &[(String, Way)]) -> Finding {
    let tokens = format!("tokens carry {}", config.server.advertised().join(", "));
    let Some((first, way)) = found.first() else {
        let is_for_others = !config.server.listen.ip().is_unspecified() && !config.server.listen.ip().is_loopback();
        return if is_for_others {
            Finding::ok(NAMES, tokens)
        } else {
            let advice =
                "add a name or address that other machines reach to server.names, before tokens are handed out";
            Finding::warning(NAMES, format!("{tokens}, which leads no other machine here"), advice)
        };
    };
    let lost: Vec<String> = found
        .iter()
        .filter_map(|(name, way)| match way {
            Way::Nowhere(why) => Some(format!("{name} has no address here ({why})")),
            _ => None,
        })
        .collect();
    match way {
        Way::Loopback => {
            let advice = "put a name or address that other machines reach first in server.names";
            Finding::warning(NAMES, format!("{tokens}, and {first} leads every machine to itself"), advice)
        }
        _ if !lost.is_empty() => {
            let advice = "check the spelling and the name server; a name that only agents can resolve is fine";
            Finding::warning(NAMES, format!("{tokens}; {}", lost.join(", ")), advice)
        }
        Way::Elsewhere(ip) => {
            let measured = format!("{tokens}; {first} is {ip}, which is not an address of this machine");
            let port = config.server.listen.port();
            let advice = format!(
                "if that is a router, let it forward UDP port {port} to this machine; otherwise correct the name"
            );
            Finding::warning(NAMES, measured, advice)
        }
        Way::Here(ip) => Finding::ok(NAMES, format!("{tokens}; {first} is {ip}, an address of this machine")),
        Way::Nowhere(_) => Finding::ok(NAMES, tokens),
    }
}

fn judge_buffers((receive, send): (usize, usize)) -> Finding {
    let text = |bytes: usize| size_text(bytes as u64);
    let measured = format!("{} to receive, {} to send", text(receive), text(send));
    let wanted = limits::SOCKET_BUFFER_BYTES;
    let finding = if receive.min(send) < wanted {
        let advice = format!(
            "raise the system's limits, or many agents at once lose datagrams: sysctl -w net.core.rmem_max={wanted} \
             net.core.wmem_max={wanted}"
        );
        Finding::warning(BUFFERS, format!("{measured}; {} are asked for", text(wanted)), advice)
    } else {
        Finding::ok(BUFFERS, measured)
    };
    finding.figure("receive_bytes", receive).figure("send_bytes", send)
}

/// Judges the certificates that `run` shows and checks.
pub(super) fn judge_certificates(identity: &Identity, now_ms: u64) -> Vec<Finding> {
    let renewed = Remedies {
        expired: "start `anabranch-coordinator run` again: it renews this certificate",
        ends_soon: "the next start of `anabranch-coordinator run` renews it",
    };
    let replaced = Remedies {
        expired: "agents trust no certificate of this CA any more: make a new directory with `init`, import the model, and \
                  let agents join again",
        ends_soon: "replace it in time, while agents go on: `anabranch-coordinator ca rotate`",
    };
    let of = |check, der: &[u8], remedies| match Life::of(der) {
        Ok(life) => life.judge(check, now_ms, "this machine's", remedies),
        Err(error) => Finding::failure(check, ExitCode::Config, error.to_string(), "restore tls/ from a backup"),
    };
    let next = identity.next_ca_der().map(|der| {
        let begun =
            Remedies { expired: replaced.expired, ends_soon: "end the rollover: `anabranch-coordinator ca finish`" };
        of("next-ca-certificate", der, begun)
    });
    let present = [
        of("ca-certificate", identity.ca_der(), replaced),
        of("server-certificate", &identity.server().certificate_der, renewed),
        of("operator-certificate", &identity.operator().certificate_der, renewed),
    ];
    present.into_iter().chain(next).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use anabranch_io::doctor::Outcome;

    use super::*;
    use crate::config::TemplateOptions;

    fn config(listen: &str, names: &[&str]) -> Config {
        let options = TemplateOptions {
            name: "test".into(),
            seed: 1,
            listen: listen.parse().expect("an address"),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        Config::parse(Path::new("run.toml"), &Config::template(&options)).expect("what `init` writes")
    }

    #[test]
    fn a_port_is_free_ours_or_somebody_elses() {
        let listen: SocketAddr = ([0, 0, 0, 0], 4433).into();
        let busy = Held::By("in use by process 7".into());
        let outcome = |listener: &Listener, held: &Held| judge_port(listen, listener, held).outcome;
        assert_eq!(outcome(&Listener::Free, &Held::Free), Outcome::Ok);
        assert_eq!(outcome(&Listener::Free, &busy), Outcome::Warning);
        assert_eq!(outcome(&Listener::Own("1".into()), &busy), Outcome::Ok);
        assert_eq!(judge_port(listen, &Listener::Other, &Held::Free).exit_code, Some(13));
        let refused = Listener::Refused(io::ErrorKind::AddrNotAvailable, "no such address".into());
        let advice = judge_port(listen, &refused, &Held::Free).advice.expect("what to do");
        assert!(advice.contains("0.0.0.0"), "{advice}");
        assert_eq!(judge_software("2", &Listener::Own("1".into())).outcome, Outcome::Warning);
    }

    #[test]
    fn names_are_for_other_machines() {
        let here = Way::Here([10, 0, 0, 7].into());
        let judge = |listen: &str, names: &[(&str, &Way)]| {
            let only: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
            let found: Vec<_> = names.iter().map(|(name, way)| ((*name).to_owned(), (*way).clone())).collect();
            judge_names(&config(listen, &only), &found)
        };
        assert_eq!(judge("0.0.0.0:4433", &[]).outcome, Outcome::Warning, "tokens carry 127.0.0.1");
        assert_eq!(judge("10.0.0.7:4433", &[]).outcome, Outcome::Ok);
        assert_eq!(judge("0.0.0.0:4433", &[("trainer.example", &here)]).outcome, Outcome::Ok);
        assert_eq!(judge("0.0.0.0:4433", &[("localhost", &Way::Loopback)]).outcome, Outcome::Warning);
        let forwarded = judge("0.0.0.0:4433", &[("trainer.example", &Way::Elsewhere([192, 0, 2, 1].into()))]);
        assert!(forwarded.advice.is_some_and(|advice| advice.contains("forward UDP port 4433")));
        let lost = judge("0.0.0.0:4433", &[("trainer.example", &here), ("typo.example", &Way::Nowhere("gone".into()))]);
        assert!(lost.measured.contains("typo.example has no address"), "{lost:?}");
    }

    #[test]
    fn small_buffers_are_told_with_the_command() {
        assert_eq!(judge_buffers((4 << 20, 4 << 20)).outcome, Outcome::Ok);
        let small = judge_buffers((208 << 10, 4 << 20));
        assert!(small.advice.is_some_and(|advice| advice.contains("net.core.rmem_max=4194304")));
    }
}
