//! Control messages on the wire. `Propose` and `Agree`, `PodGreeting` and `PodAnswer` come before any version is agreed: their
//! tables never change, but for a purpose that is added.

use crate::downlink::{FetchPurpose, ModelForm};
use crate::merge::Served;
use crate::pod::{PodMark, PodOffer, PodPart, PodPeer, PodProblem, PodRound, PodSections};
use crate::spec::Activations;
use crate::wire::handshake::{Agree, Propose, Purpose};
use crate::wire::message::{
    AgentHello, AgentMessage, CoordinatorMessage, JoinRefusal, JoinRequest, JoinResponse, Rejection, RenewalKey,
    RunPhase, Welcome,
};
use crate::wire::operator::{
    OperatorRequest, OperatorResponse, RegistryRequest, RunRequest, RunsRequest, SearchRequest,
};
use crate::wire::pod::{LayerFigures, ParcelContent, ParcelHead, PodAnswer, PodGreeting};
use crate::wire::probe::{Facts, FactsWanted, ProbeAnswer, RunFacts};
use crate::wire::runs::{RunInfo, RunsListed, RunsWanted};

layout! {
    struct Propose { min, max, purpose }
    enum Purpose { 0 = Join, 1 = Agent, 2 = Operator, 3 = Runs, 4 = Probe, 5 = Facts }
    enum Agree { 0 = Version(version), 1 = Unsupported { min, max }, 2 = Forbidden }

    enum Served { 0 = Model, 1 = Average }

    struct JoinRequest { token_secret, csr_der }
    enum JoinResponse {
        0 = Enrolled { run, agent, name, certificate_der, ca_der, next_ca_der since 7 or None },
        1 = Refused(why),
    }
    enum JoinRefusal {
        0 = UnknownToken, 1 = UsedToken, 2 = ExpiredToken, 3 = BadRequest, 4 = Revoked, 5 = Full, 6 = SeveralRuns,
    }

    struct AgentHello { run, branch, incarnation, software, train_examples, eval_examples, device, pod }
    enum AgentMessage {
        0 = Hello(hello),
        1 = OfferModel { manifest, digest, transfer },
        2 = RequestLease,
        3 = FetchModel { version, digest, purpose, held, missing },
        4 = OfferUpdate { meta, transfer, sections },
        5 = ReturnLease { lease, why },
        6 = Evaluated { evaluation, cost_ms },
        7 = Progress { lease, steps, examples_per_s },
        8 = Renew { csr_der },
        9 = Goodbye { reason },
        10 = EvaluationFailed { version, reason },
        11 = PodEnded { mark, problem },
        12 = PartNotHere { transfer },
    }

    enum RunsWanted { 0 = All, 1 = Named(names) }
    struct RunsListed { runs }
    struct RunInfo { run, name, weight }

    struct ProbeAnswer { unix_ms, software, remote, sent, lost }
    struct FactsWanted { run }
    enum Facts { 0 = Rejected(why), 1 = Run(facts) }
    struct RunFacts { spec, params, state }

    struct PodMark { lease, attempt }
    struct PodOffer { address, memory_bytes, flops_per_s, site, at_work }
    struct PodRound { mark, owner, parts, peers, plan, spec }
    struct PodPart { end, agent }
    struct PodPeer { agent, address }
    struct PodProblem { member, reason }
    struct PodSections { mark, parts }

    struct PodGreeting { min, max, run, mark }
    enum PodAnswer { 0 = Ready { version }, 1 = NotYet, 2 = Refused(why) }
    struct ParcelHead { from, to, content, checksum }
    enum ParcelContent {
        0 = Weights { own, tied, held },
        1 = Activations { rows, columns, form },
        2 = Gradient { rows, columns, form },
        3 = Labels { labels },
        4 = Loss { sum },
        5 = TiedSum { values },
        6 = Tied { version, values, moved },
        7 = Layer { layer, left_out, bytes, figures },
        8 = Base { seed, values },
        9 = Chunk { number, values },
        10 = Ended { digest },
    }
    struct LayerFigures { base_dot, delta_square, left_out_square }
    enum Activations { 0 = F32, 1 = Bf16, 2 = Int8 }

    enum FetchPurpose { 0 = Train, 1 = Evaluate }
    enum ModelForm { 0 = Snapshot, 1 = Track { from }, 2 = Xor { from }, 3 = Chain { from } }

    enum CoordinatorMessage {
        0 = Welcome(welcome),
        1 = Rejected(why),
        2 = NeedChunks { transfer, missing },
        3 = ModelReady { manifest, digest },
        4 = Lease { lease, evaluate },
        5 = NoLease { state },
        6 = Evaluate { version, digest },
        7 = Model { version, digest, form, transfer },
        8 = ModelGone { version, digest },
        9 = Verdict { key, verdict },
        10 = StateChanged { state },
        11 = Renewed { certificate_der, ca_ders since 7 or Vec::new() },
        12 = LeaseDeferred,
        13 = Pod(round),
        14 = PodOver { mark },
        15 = NeedPart { mark, part, transfer, bytes, first, missing },
        16 = PartDone { mark },
        17 = RenewNow { key } since 7,
    }
    enum RenewalKey { 0 = Same, 1 = New }
    struct Welcome { run, branch, agent, name, epoch, spec, model, state }
    enum Rejection {
        0 = Revoked,
        1 = WrongRun { run },
        2 = Unknown,
        3 = Replaced,
        4 = Protocol(text),
        5 = Busy,
        6 = OtherModel(text),
        7 = OldCertificate since 7,
    }
    enum RunPhase { 0 = Pending, 1 = Running, 2 = Paused, 3 = Finished }

    enum OperatorRequest { 0 = Run { run, request }, 1 = Registry(request), 2 = Runs(request), 3 = Search(request) }
    enum SearchRequest {
        0 = Start { path, search, base },
        1 = Status { name },
        2 = Stop { name },
        3 = List,
        4 = Export { name },
    }
    enum RunsRequest { 0 = Create { name, config, submit_token }, 1 = List, 2 = Delete { run } }
    enum RunRequest {
        0 = Status,
        1 = Pause,
        2 = Resume,
        3 = Stop,
        4 = AgentsList,
        5 = CheckpointList,
        6 = CheckpointVerify,
        7 = CheckpointExport { version },
    }
    enum RegistryRequest {
        0 = AgentRevoke { agent },
        1 = TokenCreate { name, ttl_ms, uses, secret_digest, runs },
        2 = TokenList,
        3 = TokenRevoke { id },
        4 = AgentRotate { agent } since 7,
        5 = CaRotate since 7,
        6 = CaStatus since 7,
        7 = CaFinish { force } since 7,
    }
    enum OperatorResponse {
        0 = Done(text),
        1 = Json(text),
        2 = ModelFollows { served, version, manifest_json, bytes },
        3 = Failed(text),
        4 = NotFound(text),
        5 = Conflict(text),
    }
}
