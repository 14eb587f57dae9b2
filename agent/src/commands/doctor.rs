//! `doctor`: finds out whom to check, and looks at the devices; the checks themselves are in `crate::doctor`.

use anabranch_common::ids::Digest;
use anabranch_common::limits;
use anabranch_common::token::JoinToken;
use anabranch_io::exit::{ExitCode, Fail};
use anabranch_io::text_file;

use super::device::attempt;
use super::{config_fail, identity_fail, join};
use crate::cli::DoctorArgs;
use crate::config::{AgentConfig, AgentDir};
use crate::device::gpu::GpuReport;
use crate::device::probe::{Found, Probe};
use crate::device::{self, Choice, GpuBackend, GpuId};
use crate::doctor::{self, Device, Machine, Member, Memory, Target};
use crate::identity::{self, AgentKey};
use crate::worker;

/// The verb that probes of GPUs stand in for.
const VERB: &str = "doctor";

/// Runs `doctor`.
pub(super) fn doctor(args: &DoctorArgs) -> anyhow::Result<()> {
    let dir = args.dir.as_ref().map(AgentDir::new);
    let config = match &dir {
        Some(dir) if !is_before_joining(args) || dir.config().exists() => {
            Some(AgentConfig::read(&dir.config()).map_err(|error| not_joined(config_fail(error), args))?)
        }
        _ => None,
    };
    let target = target(args, dir, config.as_ref())?;
    let machine = look(config.as_ref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let report = runtime.block_on(doctor::check(&target, &machine, args.nat));
    report.finish(args.output.json)
}

fn is_before_joining(args: &DoctorArgs) -> bool {
    args.token.is_some() || args.token_file.is_some() || args.connect.is_some()
}

fn not_joined(fail: Fail, args: &DoctorArgs) -> Fail {
    match &args.dir {
        Some(dir) if !AgentDir::new(dir).config().exists() => {
            fail.help("before joining, name the coordinator with --token-file FILE, or with --connect and --ca")
        }
        _ => fail,
    }
}

/// Whom to check: the coordinator that is named, else that of the directory.
fn target(args: &DoctorArgs, dir: Option<AgentDir>, config: Option<&AgentConfig>) -> anyhow::Result<Target> {
    let named = match (&args.token, &args.token_file, &args.connect, &args.ca) {
        (Some(token), ..) => Some(of_token(&join::read_token(token)?)),
        (None, Some(file), ..) => {
            let text = text_file::read(file, limits::CONFIG_FILE_BYTES).map_err(|error| {
                let fail = Fail::new(ExitCode::Usage, format!("{} cannot be read", file.display()));
                fail.help(error.help(file)).because(error)
            })?;
            Some(of_token(&join::read_token(&text)?))
        }
        (None, None, Some(address), Some(ca)) => {
            let der = identity::read_certificate(ca).map_err(|error| {
                Fail::new(ExitCode::Config, error.to_string()).help("give the coordinator's tls/ca.crt, as PEM")
            })?;
            Some((address.clone(), vec![Digest::of(&der)]))
        }
        _ => None,
    };
    let member = match (&dir, config) {
        (Some(dir), Some(config)) => Some(member(dir, config)?),
        _ => None,
    };
    let trusted = match &dir {
        Some(dir) if config.is_some() => {
            identity::read_authorities(&dir.ca()).map_err(|error| identity_fail(&error))?.fingerprints()
        }
        _ => Vec::new(),
    };
    let of_config = || config.map(|config| (config.address.first().to_owned(), trusted.clone()));
    let Some((address, cas)) = named.or_else(of_config) else {
        let fail = Fail::new(ExitCode::Usage, "which coordinator?");
        return Err(fail
            .help("name it with --token-file, --connect and --ca, or the --dir of an agent that has joined")
            .into());
    };
    // An agent of another coordinator is a stranger to this one.
    let member = member.filter(|_| cas.iter().any(|ca| trusted.contains(ca)));
    Ok(Target { address, cas, dir, member })
}

fn of_token(token: &JoinToken) -> (String, Vec<Digest>) {
    (token.addresses.first().cloned().unwrap_or_default(), token.ca_fingerprints.clone())
}

fn member(dir: &AgentDir, config: &AgentConfig) -> anyhow::Result<Member> {
    let certificate = identity::own_certificate(dir).map_err(|error| identity_fail(&error))?;
    let key = AgentKey::read(dir).map_err(|error| identity_fail(&error))?;
    Ok(Member {
        run: config.run,
        name: config.name.clone(),
        certificate_der: certificate.to_vec(),
        key_der: key.to_der(),
    })
}

/// Looks at this machine, as an agent with this configuration would use it.
fn look(config: Option<&AgentConfig>) -> anyhow::Result<Machine> {
    let manners = config.map(|config| &config.manners);
    let max_bytes = manners.and_then(|manners| manners.max_memory).map(|size| size.bytes());
    let memory = Memory { available_bytes: device::memory::available_bytes(), max_bytes };
    let choice = config.map_or(Choice::Auto, |config| config.device);
    let threads = config.and_then(|config| config.threads);
    Ok(Machine { memory, device: look_at_devices(choice), flops_per_s: worker::flops_per_s(threads)? })
}

fn look_at_devices(choice: Choice) -> Device {
    let processor = device::processor();
    let cpu = |instead_of| Device::Cpu { name: processor.name.clone(), cores: processor.cores, instead_of };
    let try_out =
        |id: GpuId| attempt(VERB, id).map(|Found { name, software, .. }| (format!("{name} ({id})"), software));
    match choice {
        Choice::Cpu => cpu(None),
        Choice::Gpu(id) => match try_out(id) {
            Ok((name, _)) => Device::Gpu { name },
            Err(problem) => Device::Unusable { problem },
        },
        Choice::Auto => {
            let built = GpuBackend::ALL.into_iter().filter(|backend| backend.is_built());
            let mut problems = Vec::new();
            for backend in built {
                match try_out(backend.first()) {
                    Ok((name, false)) => return Device::Gpu { name },
                    Ok((_, true)) => {}
                    Err(problem) => problems.push(problem),
                }
            }
            cpu(unused_gpu(problems))
        }
    }
}

/// Why a GPU that this machine has does not train.
fn unused_gpu(problems: Vec<String>) -> Option<String> {
    let report: Option<GpuReport> = Probe::of_gpus(VERB).ok().and_then(|probe| probe.run().ok());
    let has_gpu = report.is_some_and(|report| !report.gpus.is_empty());
    let why = if problems.is_empty() { "this build has no backend for it".to_owned() } else { problems.join("; ") };
    has_gpu.then_some(why)
}
