//! The command line as a whole.

use clap::CommandFactory as _;

use super::*;

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn examples_can_be_copied_from_a_narrow_terminal() {
    assert_eq!(cli::lines_that_break(&Cli::command()), [""; 0]);
}

/// Also where a verb's own options follow them.
#[test]
fn only_the_options_that_name_a_coordinator_stand_under_its_heading() {
    fn verbs<'a>(command: &'a clap::Command, found: &mut Vec<&'a clap::Command>) {
        found.push(command);
        command.get_subcommands().for_each(|verb| verbs(verb, found));
    }
    let (command, mut found) = (Cli::command(), Vec::new());
    verbs(&command, &mut found);
    let mut with_heading = 0;
    for verb in found {
        let under = verb.get_arguments().filter(|arg| arg.get_help_heading() == Some(TARGET_HEADING));
        let names: Vec<&str> = under.map(|arg| arg.get_id().as_str()).collect();
        let takes = |id: &str| verb.get_arguments().any(|arg| arg.get_id() == id);
        let takes_target = takes("connect");
        let mut expected = if takes_target { vec!["dir", "connect", "cert", "key", "ca"] } else { Vec::new() };
        expected.extend(takes("run").then_some("run"));
        assert_eq!(names, expected, "{}", verb.get_name());
        with_heading += usize::from(takes_target);
    }
    assert!(with_heading > 8, "{with_heading} verbs");
}

#[test]
fn a_coordinator_is_named_by_its_directory_or_by_address_and_certificates() {
    let parse = |args: &[&str]| Cli::try_parse_from(["anabranch-coordinator"].iter().chain(args)).map(|_| ());
    assert!(parse(&["status", "--dir", "d"]).is_ok());
    assert!(parse(&["pause", "--connect", "h:1", "--cert", "c", "--key", "k", "--ca", "a"]).is_ok());
    assert!(parse(&["status", "--connect", "h:1"]).is_err(), "certificates are missing");
    assert!(parse(&["status", "--dir", "d", "--cert", "c"]).is_err(), "certificates belong to --connect");
    assert!(parse(&["checkpoint", "export", "--dir", "d", "--out", "o", "--version", "3"]).is_ok());
    assert!(parse(&["token", "create", "--dir", "d", "--ttl", "soon"]).is_err());
}

#[test]
fn every_exit_code_is_in_the_help() {
    use anabranch_io::exit::ExitCode as Code;
    let codes = [
        Code::Ok,
        Code::Other,
        Code::Usage,
        Code::Config,
        Code::Unavailable,
        Code::Identity,
        Code::Storage,
        Code::Locked,
        Code::Protocol,
        Code::Model,
        Code::NotFinite,
        Code::Clock,
        Code::Address,
    ];
    for code in codes {
        let line = format!("\n{:>4}  ", code.as_u8());
        assert!(EXIT_CODES.contains(&line), "exit code {} is not in the help", code.as_u8());
    }
}
