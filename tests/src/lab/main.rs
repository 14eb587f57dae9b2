//! `anabranch-lab`: faults and benchmarks, by hand. Executes itself as every daemon it needs.

mod chaos;
mod race;
mod sim;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anabranch_common::limits;
use anabranch_tests::process::Role;
use anabranch_tests::report::Report;
use anabranch_tests::{bench, bugs, kills, power, scale};
use clap::{Parser, Subcommand};

/// Breaks things on purpose, and measures what is left.
#[derive(Debug, Parser)]
#[command(name = "anabranch-lab", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Kill -9 real daemons at named points and at random moments, and audit what is left after each
    #[command(after_help = "The named points are in builds with --features faults only:
  cargo run --release -p anabranch-tests --features faults --bin anabranch-lab -- kills --count 2000 --seed 1")]
    Kills {
        /// Kills, at least
        #[arg(long, default_value_t = 100)]
        count: u64,
        #[command(flatten)]
        common: Common,
    },
    /// Record every write and sync of the stores, and open what a power loss would have left at any moment
    #[command(after_help = "Two states are opened at each sync (at most as many syncs as states are drawn), and the
states that are drawn in between. Files go to the system's temporary directory: TMPDIR=/dev/shm is faster.")]
    Power {
        /// States drawn at random, beside those at every sync
        #[arg(long, default_value_t = 1000)]
        states: u64,
        /// Rounds of work that are recorded; a round is two or three commits
        #[arg(long, default_value_t = 60)]
        rounds: u64,
        #[command(flatten)]
        common: Common,
    },
    /// Run a coordinator and agents as real processes while things go wrong, as scenario files say
    #[command(
        after_help = "Scenarios that come with the lab: tests/scenarios/chaos/. Each is run without faults first, to
compare with. Needs no privileges; faults of disks and clocks need a C compiler."
    )]
    Chaos {
        /// What goes wrong, and what must hold
        #[arg(required = true, value_name = "SCENARIO.toml")]
        scenarios: Vec<PathBuf>,
        #[command(flatten)]
        output: chaos::Output,
    },
    /// Let something fail every 15 seconds, for hours, and audit what is left
    Soak {
        /// How long
        #[arg(long)]
        hours: f64,
        #[command(flatten)]
        output: chaos::Output,
    },
    /// Run the real cores in simulated worlds, one a seed, with faults that each seed draws
    #[command(after_help = "A seed that fails prints the command that shows it again, event by event.")]
    Sim {
        /// Which seeds: from A to below B
        #[arg(long, value_name = "A..B", value_parser = sim::seeds)]
        seeds: std::ops::Range<u64>,
        /// A world that is written down, instead of the one that each seed draws
        #[arg(long, value_name = "FILE", conflicts_with_all = ["pods", "searches"])]
        scenario: Option<PathBuf>,
        /// Worlds in which agents compute in pods
        #[arg(long, conflicts_with = "searches")]
        pods: bool,
        /// Worlds with a search over configurations
        #[arg(long)]
        searches: bool,
        /// Worlds at a time; as many as there are cores when absent
        #[arg(long)]
        jobs: Option<usize>,
        /// Write the figures as JSON to this file
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Run one simulated world again
    Replay {
        /// Its seed
        seed: u64,
        /// The world, if it was written down
        #[arg(long, value_name = "FILE", conflicts_with_all = ["pods", "searches"])]
        scenario: Option<PathBuf>,
        /// The world with pods that the seed draws
        #[arg(long, conflicts_with = "searches")]
        pods: bool,
        /// The world with a search that the seed draws
        #[arg(long)]
        searches: bool,
        /// Print every event in words
        #[arg(long)]
        trace: bool,
        /// Draw the world as one HTML page
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
        /// Reduce a world that fails, and print the smaller one as a scenario
        #[arg(long)]
        shrink: bool,
    },
    /// Train for real in virtual time, and compare merge strategies by the time and the bytes to an accuracy
    #[command(
        after_help = "Workloads that come with the lab: tests/workloads/. The same seed gives the same figures, bit for bit,
on one build."
    )]
    Race {
        #[command(flatten)]
        args: race::RaceArgs,
    },
    /// Tell rates, staleness and bytes of a fleet that no machine holds, flat and with regions, by its statistics
    #[command(
        after_help = "A model of queues, without weights: an agent's round takes so long, a line carries so many bytes. Its figures for
100 agents are held against the simulation of the real coordinator and agents."
    )]
    Scale {
        #[command(flatten)]
        options: scale::Options,
        #[command(flatten)]
        common: Common,
    },
    /// Make every deliberate bug in a copy of the sources, and let the simulation find each of them
    #[command(
        after_help = "The bugs: tests/bugs/bugs.toml. The copy is built below the target directory; it takes about
as long as a build of the workspace's own packages."
    )]
    Bites,
    /// Show that the simulation is what it claims to be: the same seed twice gives the same bytes
    Meta {
        #[command(flatten)]
        common: Common,
    },
    /// Measure
    #[command(subcommand)]
    Bench(Bench),
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Durable updates a second, latency, and bytes on disk
    Store {
        /// A directory on the disk to measure; the system's temporary one when absent
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
    /// Checkpoints and recovery of a run whose agents all have full histories
    Fleet {
        /// How many agents
        #[arg(long, default_value_t = limits::AGENTS)]
        agents: usize,
        /// A directory on the disk to measure; the system's temporary one when absent
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
    /// An agent's outbox and error feedback on disk: time of an update, bytes written, bytes kept; in files and in sled
    #[command(after_help = "Both kinds take the same updates in turn in one run; 'sled' is how agents did it before.")]
    Ledger {
        #[command(flatten)]
        options: bench::ledger::Options,
        #[command(flatten)]
        common: Common,
    },
    /// Workload W1 with eleven real processes: time to accuracy, bytes, memory, and what a fault costs
    W1 {
        #[command(flatten)]
        options: bench::w1::Options,
        #[command(flatten)]
        common: Common,
    },
    /// Many agents without training against a real coordinator: updates a second, latency, memory
    Swarm {
        #[command(flatten)]
        options: bench::swarm::Options,
        #[command(flatten)]
        common: Common,
    },
    /// What an idle run costs a coordinator that serves many: memory, processor time
    Runs {
        #[command(flatten)]
        options: bench::runs::Options,
        #[command(flatten)]
        common: Common,
    },
    /// What it takes to watch a coordinator with many agents: time and size of a scrape
    Page {
        #[command(flatten)]
        options: bench::page::Options,
        #[command(flatten)]
        common: Common,
    },
    /// Many agents without training against a coordinator with a slow disk: its peak memory
    /// against its ceiling
    #[command(after_help = "Every sync of the coordinator's disk is slowed by a library in C: this needs `cc`.")]
    SlowDisk {
        #[command(flatten)]
        options: bench::slow_disk::Options,
        #[command(flatten)]
        common: Common,
    },
    /// What honest agents notice of strangers who flood the port: Ack latency without them, and under them
    #[command(
        after_help = "The flood comes from the loopback network 127.66.0.0/16 (Linux has all of 127.0.0.0/8), half of
it first packets of connections that never go on, half of it garbage, and shares this machine's cores with the
coordinator and its agents."
    )]
    Flood {
        #[command(flatten)]
        options: bench::flood::Options,
        #[command(flatten)]
        common: Common,
    },
    /// Training steps of the native models next to the same in PyTorch: examples a second
    #[command(
        after_help = "Both sides take turns in one run. PyTorch from PyPI multiplies matrices with MKL; a build with
a plain BLAS, as some distributions have, is many times slower and says little."
    )]
    Trainer {
        #[command(flatten)]
        options: bench::trainer::Options,
        #[command(flatten)]
        common: Common,
    },
    /// How long devices wait for a thin line while they train a gpt, with and without the next round made ready in time
    Overlap {
        #[command(flatten)]
        options: bench::overlap::Options,
        #[command(flatten)]
        common: Common,
    },
    /// Every codec next to a copy of the same vector and to zstd, on one thread: speed and size
    Codec {
        #[command(flatten)]
        options: bench::codec::Options,
        #[command(flatten)]
        common: Common,
    },
    /// What models cost on their way down, by form and size of the fleet, and what an agent costs that comes back
    Downlink {
        #[command(flatten)]
        options: bench::downlink::Options,
        #[command(flatten)]
        common: Common,
    },
    /// The share of time that devices compute behind thin lines, in virtual time and with made-up deltas
    Utilisation {
        #[command(flatten)]
        options: bench::utilisation::Options,
        #[command(flatten)]
        common: Common,
    },
    /// How busy the members of a pod are, by schedule and line, with real links and made-up times of devices
    Pipeline {
        #[command(flatten)]
        options: bench::pipeline::Options,
        #[command(flatten)]
        common: Common,
    },
    /// What replicas of a model send in a step, next to the least that a ring can, and how long a step takes next to its maths
    Replicas {
        #[command(flatten)]
        options: bench::replicas::Options,
        #[command(flatten)]
        common: Common,
    },
    /// An NVIDIA GPU's encoder next to copies on that GPU and to the CPU's encoder: bytes a second, and the same payloads
    Encoder {
        #[command(flatten)]
        options: bench::encoder::Options,
        #[command(flatten)]
        common: Common,
    },
    /// Time from kill -9 to serving again, replay speed, memory
    Recovery {
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, clap::Args)]
struct Common {
    /// Seed of everything drawn at random
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the figures as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if let Some(role) = args.next().and_then(|first| Role::from_arg(&first)) {
        return role.main(args);
    }
    let cli = Cli::parse();
    match run(cli.verb) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:?}");
            ExitCode::FAILURE
        }
    }
}

/// Where cargo builds: as it was told, or where this program was built to.
fn target_dir(lab: &Path) -> PathBuf {
    let built = || lab.ancestors().nth(2).map_or_else(PathBuf::new, Path::to_path_buf);
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(built, PathBuf::from)
}

fn run(verb: Verb) -> anyhow::Result<bool> {
    let lab = kills::this_binary()?;
    let (report, common): (Report, Common) = match verb {
        Verb::Sim { seeds, scenario, pods, searches, jobs, json } => {
            let common = Common { seed: seeds.start, json };
            (sim::swarm(seeds, sim::worlds(scenario.as_deref(), pods, searches)?, jobs), common)
        }
        Verb::Chaos { scenarios, output } => return chaos::run(&scenarios, &output),
        Verb::Soak { hours, output } => return chaos::soak(hours, &output),
        Verb::Replay { seed, scenario, pods, searches, trace, html, shrink } => {
            let worlds = sim::worlds(scenario.as_deref(), pods, searches)?;
            return sim::replay(seed, &worlds, trace, html.as_deref(), shrink);
        }
        Verb::Race { args } => return race::run(&lab, &args),
        Verb::Bites => return bugs::bite(&target_dir(&lab)),
        Verb::Meta { common } => (sim::meta(common.seed), common),
        Verb::Kills { count, common } => {
            let options = kills::Options { lab, count, seed: common.seed, verbose: true };
            (kills::run(&options)?, common)
        }
        Verb::Power { states, rounds, common } => {
            let options = power::Options { lab, states, rounds, seed: common.seed, lying: false };
            let Some(report) = power::run(&options)? else { anyhow::bail!(power::NO_COMPILER) };
            (report, common)
        }
        Verb::Bench(Bench::Store { dir, common }) => {
            let dir = dir.unwrap_or_else(std::env::temp_dir);
            (bench::store::run(&dir, common.seed)?, common)
        }
        Verb::Bench(Bench::Fleet { agents, dir, common }) => {
            let dir = dir.unwrap_or_else(std::env::temp_dir);
            (bench::fleet::run(&dir, agents, common.seed)?, common)
        }
        Verb::Scale { options, common } => (scale::run(&options, common.seed)?, common),
        Verb::Bench(Bench::Ledger { options, common }) => (bench::ledger::run(&options, common.seed)?, common),
        Verb::Bench(Bench::W1 { options, common }) => (bench::w1::run(&lab, &options, common.seed)?, common),
        Verb::Bench(Bench::Swarm { options, common }) => (bench::swarm::run(&lab, &options, common.seed)?, common),
        Verb::Bench(Bench::Runs { options, common }) => (bench::runs::run(&lab, &options, common.seed)?, common),
        Verb::Bench(Bench::Page { options, common }) => (bench::page::run(&lab, &options, common.seed)?, common),
        Verb::Bench(Bench::SlowDisk { options, common }) => {
            (bench::slow_disk::run(&lab, &options, common.seed)?, common)
        }
        Verb::Bench(Bench::Flood { options, common }) => (bench::flood::run(&lab, &options, common.seed)?, common),
        Verb::Bench(Bench::Trainer { options, common }) => (bench::trainer::run(&options, common.seed)?, common),
        Verb::Bench(Bench::Overlap { options, common }) => (bench::overlap::run(&lab, &options, common.seed)?, common),
        Verb::Bench(Bench::Codec { options, common }) => (bench::codec::run(&options, common.seed)?, common),
        Verb::Bench(Bench::Downlink { options, common }) => (bench::downlink::run(&options, common.seed)?, common),
        Verb::Bench(Bench::Utilisation { options, common }) => {
            (bench::utilisation::run(&options, common.seed)?, common)
        }
        Verb::Bench(Bench::Pipeline { options, common }) => (bench::pipeline::run(&options, common.seed)?, common),
        Verb::Bench(Bench::Replicas { options, common }) => (bench::replicas::run(&options, common.seed)?, common),
        Verb::Bench(Bench::Encoder { options, common }) => (bench::encoder::run(&options, common.seed)?, common),
        Verb::Bench(Bench::Recovery { common }) => (bench::recovery::run(&lab, common.seed)?, common),
    };
    report.finish(common.json.as_deref())?;
    Ok(report.pass)
}
