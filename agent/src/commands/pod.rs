//! What `run` offers to pods.

use std::net::SocketAddr;

use anabranch_io::exit::{ExitCode, Fail};
use anyhow::Context as _;

use crate::cli::PodArgs;
use crate::config::{AgentConfig, advertise_problem, site_problem};
use crate::device::{self, GpuId, memory};
use crate::size;
use crate::worker::{self, PodSetup};

/// Where an agent listens for other members of pods, and where they reach it.
#[derive(Debug)]
pub(super) struct PodAddress {
    listen: SocketAddr,
    advertise: Option<String>,
    site: String,
}

/// Returns the address that was asked for on the command line or in `agent.toml`, if one was.
///
/// # Errors
/// Others could not reach it.
pub(super) fn address(args: &PodArgs, config: &AgentConfig) -> Result<Option<PodAddress>, Fail> {
    let fail = |problem: String, help: &str| Fail::new(ExitCode::Usage, problem).help(help.to_owned());
    if let Some(problem) = args.pod_advertise.as_deref().and_then(advertise_problem) {
        return Err(fail(format!("--pod-advertise {problem}"), "name the host and the port that other agents reach"));
    }
    if let Some(problem) = args.site.as_deref().and_then(site_problem) {
        return Err(fail(
            format!("--site {problem}"),
            "name the site in a few letters, the same ones at each of its agents",
        ));
    }
    let advertise = args.pod_advertise.clone().or_else(|| config.pod_advertise.clone());
    let Some(listen) = args.pod_listen.or(config.pod_listen) else {
        if args.pod_advertise.is_some() {
            let problem = "--pod-advertise says where an agent is reached that listens nowhere".to_owned();
            return Err(fail(problem, "add --pod-listen ADDRESS, or set `pod_listen` in agent.toml"));
        }
        if args.site.is_some() {
            let problem = "--site says with whom an agent forms pods that joins none".to_owned();
            return Err(fail(problem, "add --pod-listen ADDRESS, or set `pod_listen` in agent.toml"));
        }
        return Ok(None);
    };
    if listen.ip().is_unspecified() && advertise.is_none() {
        let problem = format!("other members of pods cannot reach this agent at {listen}, which names no address");
        let help = "add --pod-advertise HOST:PORT (`pod_advertise` in agent.toml) with the address that they reach";
        return Err(fail(problem, help));
    }
    let site = args.site.clone().or_else(|| config.site.clone()).unwrap_or_default();
    Ok(Some(PodAddress { listen, advertise, site }))
}

/// The error for an agent that joins pods and trains a native model in another process, on this GPU if on one, or with a trainer in
/// Rust of its own.
pub(super) fn refuse_processes(gpu: Option<GpuId>) -> Fail {
    let help = match gpu {
        Some(_) => "add --device cpu, or leave out --pod-listen (`pod_listen` in agent.toml)",
        None => "leave out --isolate (`isolate` in agent.toml), or --pod-listen (`pod_listen`)",
    };
    let problem = "pods are computed by the native models in the agent's own process, on its processor, or by a program that \
                   computes parts of its model, such as one that calls anabranch.torch.run_stages";
    Fail::new(ExitCode::Usage, problem).help(help)
}

impl PodAddress {
    /// Measures how fast this machine is, and returns what is offered with that, with so many threads for the maths and at
    /// most so much memory.
    ///
    /// # Errors
    /// The system has no threads to give, or does not say how much memory it has.
    pub(super) fn offered(self, max_memory_bytes: Option<u64>, threads: Option<usize>) -> anyhow::Result<PodSetup> {
        let Self { listen, advertise, site } = self;
        let of_machine =
            || memory::available_bytes().or(Some(device::processor().memory_bytes).filter(|bytes| *bytes > 0));
        let memory_bytes = max_memory_bytes.or_else(of_machine).ok_or_else(|| {
            let problem = "this system does not say how much memory it has, which pods are planned with";
            Fail::new(ExitCode::Usage, problem).help("say it with --max-memory SIZE")
        })?;
        let flops_per_s = worker::flops_per_s(threads).context("no threads to measure this machine's speed with")?;
        tracing::info!(%listen, advertise, site, memory = size::text(memory_bytes), flops_per_s, "offering to join pods");
        Ok(PodSetup { listen, advertise, site, memory_bytes, flops_per_s, threads: threads.unwrap_or(0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(listen: Option<&str>, advertise: Option<&str>) -> PodArgs {
        let pod_listen = listen.map(|address| address.parse().expect("an address"));
        PodArgs { pod_listen, pod_advertise: advertise.map(str::to_owned), site: None }
    }

    fn config(more: &str) -> AgentConfig {
        let text = format!(
            "address = \"127.0.0.1:4433\"\nrun = \"{run}\"\nagent = \"{run}\"\nname = \"north\"\nca_fingerprint = \"{ca}\"\n{more}",
            run = "01".repeat(16),
            ca = "02".repeat(32),
        );
        toml::from_str(&text).expect("a configuration")
    }

    #[test]
    fn an_address_that_nobody_reaches_is_refused_with_what_to_do() {
        let refused = |args: &PodArgs| {
            let fail = address(args, &config("")).expect_err("refused");
            format!("{fail:#} {fail:?}")
        };
        for anywhere in ["0.0.0.0:4440", "[::]:4440"] {
            let text = refused(&args(Some(anywhere), None));
            assert!(text.contains("names no address") && text.contains("--pod-advertise HOST:PORT"), "{text}");
            let told = address(&args(Some(anywhere), Some("clinic.example:4440")), &config("")).expect("reached");
            assert_eq!(told.expect("given").advertise.as_deref(), Some("clinic.example:4440"));
        }
        assert!(refused(&args(None, Some("clinic.example:4440"))).contains("listens nowhere"));
        assert!(refused(&args(Some("10.0.0.7:4440"), Some("clinic"))).contains("not a host and a port"));
        assert!(address(&args(None, None), &config("")).expect("none").is_none());
        let of_site = |listen, site: &str| PodArgs { site: Some(site.to_owned()), ..args(listen, None) };
        assert!(refused(&of_site(None, "clinic")).contains("joins none"));
        let text = refused(&of_site(Some("10.0.0.7:4440"), &"x".repeat(65)));
        assert!(text.contains("--site") && text.contains("longer than 64 bytes"), "{text}");
    }

    #[test]
    fn the_command_line_wins_over_the_file_and_the_offer_names_the_address_that_is_bound() {
        let file = config("pod_listen = \"10.0.0.7:4440\"\npod_advertise = \"old.example:1\"\nsite = \"east\"\n");
        let given = address(&args(Some("10.0.0.8:4441"), Some("new.example:2")), &file).expect("valid").expect("given");
        assert_eq!((given.listen.port(), given.advertise.as_deref()), (4441, Some("new.example:2")));
        let of_site = PodArgs { site: Some("west".to_owned()), ..args(None, None) };
        assert_eq!(address(&of_site, &file).expect("valid").expect("given").site, "west");
        let read = address(&args(None, None), &file).expect("valid").expect("given");
        assert_eq!(read.site, "east");
        assert_eq!((read.listen.port(), read.advertise.as_deref()), (4440, Some("old.example:1")));

        let plain = address(&args(Some("10.0.0.8:4441"), None), &config("")).expect("valid").expect("given");
        let setup = plain.offered(Some(1 << 30), Some(1)).expect("measured");
        let offer = setup.offer(setup.listen);
        assert_eq!(offer.site, "");
        assert_eq!((offer.address.as_str(), offer.memory_bytes, offer.at_work), ("10.0.0.8:4441", 1 << 30, None));
        assert!(offer.flops_per_s > 0);
    }
}
