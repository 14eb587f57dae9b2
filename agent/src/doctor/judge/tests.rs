//! Figures of good and bad networks, and what is made of them.

use anabranch_common::wire::probe::ProbeAnswer;
use anabranch_io::doctor::Outcome;

use super::*;

fn remote(last: u8) -> SocketAddr {
    ([192, 0, 2, last], 4433).into()
}

fn is_told(finding: &Finding, outcome: Outcome, words: &str) {
    assert_eq!(finding.outcome, outcome, "{finding:?}");
    let text = format!("{} {}", finding.measured, finding.advice.as_deref().unwrap_or_default());
    assert!(text.contains(words), "{words:?} is not in {text:?}");
    let needs_advice = matches!(outcome, Outcome::Warning | Outcome::Failure);
    assert_eq!(finding.advice.is_some(), needs_advice, "{finding:?}");
}

#[test]
fn silence_refusal_and_a_dead_machine_are_told_apart() {
    let told = |pings: Vec<Ping>| {
        let pings: Vec<_> = (1..).map(remote).zip(pings).collect();
        udp(&pings, false)
    };
    let answered = Ping::Answered(Duration::from_millis(12));
    let (blocked, dead) = (Ping::Silent(Host::Answers), Ping::Silent(Host::IsSilent));
    is_told(&told(vec![answered.clone()]), Outcome::Ok, "answers after 12 ms");
    is_told(&told(vec![dead.clone(), answered]), Outcome::Ok, "1 other addresses do not answer");
    is_told(&told(vec![blocked.clone()]), Outcome::Failure, "let UDP port 4433 through");
    is_told(&told(vec![Ping::Refused]), Outcome::Failure, "nothing listens on UDP port 4433");
    is_told(&told(vec![Ping::Refused, blocked]), Outcome::Failure, "blocked");
    is_told(&told(vec![Ping::Unreachable("no route".into())]), Outcome::Failure, "no route");
    is_told(&told(vec![dead.clone()]), Outcome::Failure, "neither to UDP nor to TCP");
    assert_eq!(told(vec![dead.clone()]).exit_code, Some(4));
    is_told(&udp(&[(remote(1), dead)], true), Outcome::Ok, "to a handshake");
}

#[test]
fn each_problem_of_a_handshake_has_its_code_and_remedy() {
    let code = |problem: ConnectProblem| no_connection(&problem.into()).exit_code;
    assert_eq!(code(ConnectProblem::UnknownCa), Some(5));
    assert_eq!(code(ConnectProblem::OtherProtocol), Some(9));
    assert_eq!(code(ConnectProblem::TimedOut), Some(4));
    is_told(&no_connection(&ConnectProblem::UnknownCa.into()), Outcome::Failure, "another coordinator than the token");
    is_told(&no_connection(&ConnectProblem::WrongName.into()), Outcome::Failure, "server.names");
    is_told(&no_answer(&HandshakeError::Version { min: 70, max: 71 }.into()), Outcome::Failure, "upgrade this side");
    is_told(&no_answer(&HandshakeError::Version { min: 1, max: 2 }.into()), Outcome::Failure, "upgrade the other side");
    is_told(&protocol("1.0.0", "1.1.0", 6), Outcome::Ok, "the coordinator 1.1.0");
}

#[test]
fn a_clock_fails_where_certificates_do() {
    let sample = |here_ms: u64| Sample {
        answer: ProbeAnswer { unix_ms: 1_000_000_000, software: "1".into(), remote: String::new(), sent: 1, lost: 0 },
        here_ms,
        round_trip: Duration::from_millis(40),
    };
    let judge = |off_ms: i64, is_valid| clock(&sample(1_000_000_020_u64.saturating_add_signed(off_ms)), is_valid);
    is_told(&judge(150, true), Outcome::Ok, "within 150 ms");
    is_told(&judge(29_000, true), Outcome::Ok, "29 s ahead");
    is_told(&judge(45_000, true), Outcome::Warning, "45 s ahead");
    is_told(&judge(-45_000, true), Outcome::Warning, "45 s behind");
    is_told(&judge(600_000, true), Outcome::Warning, "10 min ahead");
    is_told(&judge(-600_000, true), Outcome::Failure, "not valid yet");
    is_told(&judge(400 * 86_400_000, false), Outcome::Failure, "400 days ahead");
    assert_eq!(judge(-600_000, true).exit_code, Some(12));
}

#[test]
fn a_path_is_told_by_what_is_tight() {
    let good = Path { mtu: 1_452, sent: 100, lost: 0, black_holes: 0, round_trip: Duration::from_millis(20) };
    let judge = |path_of: Path, millis: u64| path(path_of, Duration::from_millis(millis), "192.0.2.9:50000");
    is_told(&judge(good, 20), Outcome::Ok, "seen as 192.0.2.9:50000");
    is_told(&judge(Path { mtu: 1_392, ..good }, 20), Outcome::Ok, "up to 1392 bytes");
    is_told(&judge(Path { mtu: 1_200, ..good }, 20), Outcome::Warning, "raise its MTU");
    is_told(&judge(Path { black_holes: 2, ..good }, 20), Outcome::Warning, "stopped passing 2 times");
    is_told(&judge(good, 700), Outcome::Warning, "bufferbloat");
}

#[test]
fn a_limit_is_told_from_a_line_that_loses_its_share() {
    let trains = |answered: [u32; 3], span_ms: u64| {
        let sent = limits::TRAIN_DATAGRAMS.into_iter().zip(limits::TRAIN_PER_S);
        let of = |((sent, per_s), answered)| Train { per_s, sent, answered, span: Duration::from_millis(span_ms) };
        sent.zip(answered).map(of).collect::<Vec<_>>()
    };
    is_told(&rate(&trains([25, 100, 300], 400)), Outcome::Ok, "0 % at 7.7 Mbit/s (sent 498.0 KiB in all)");
    is_told(&rate(&trains([25, 100, 296], 400)), Outcome::Ok, "1 % at 7.7 Mbit/s");
    let limited = rate(&trains([25, 100, 101], 1_000));
    is_told(&limited, Outcome::Warning, "limited to about 960 kbit/s");
    assert_eq!(limited.figures["passes_bits_per_s"], 960_000.0);
    is_told(&rate(&trains([23, 89, 270], 400)), Outcome::Warning, "at any rate");
    is_told(&rate(&trains([10, 10, 10], 400)), Outcome::Warning, "limited to about");
}

#[test]
fn a_thin_or_lossy_line_is_told_with_the_codec_or_the_cable() {
    let judge = |seconds: f64, lost: u64| {
        let losses = Losses { sent: 200, lost };
        line(256 << 10, Duration::from_secs_f64(seconds), losses, Losses { sent: 200, lost: 0 })
    };
    is_told(&judge(0.5, 0), Outcome::Ok, "at least 4.2 Mbit/s");
    is_told(&judge(10.0, 0), Outcome::Warning, "upload.adaptive");
    is_told(&judge(0.5, 20), Outcome::Warning, "10.0 % lost up, 0.0 % down");
}

#[test]
fn a_router_that_forgets_before_a_keep_alive_is_told() {
    let silence = |seconds, is_kept| Silence { seconds, is_kept };
    is_told(&nat(&[silence(5, true), silence(10, true)]), Outcome::Ok, "kept over 10 s");
    is_told(&nat(&[silence(5, true), silence(10, false)]), Outcome::Ok, "forgotten after 10 s");
    is_told(&nat(&[silence(5, false)]), Outcome::Warning, "router's timeout");
    assert_eq!(nat(&[]).outcome, Outcome::Skipped);
}
