//! Whatever happens in whatever order, an agent and its coordinator agree on what the agent is at work on.

use anabranch_common::pod::{PodMark, PodProblem, PodRound};
use proptest::prelude::*;

use super::pods::{OTHER, attempt, back, joins, mark, ready};
use super::*;

/// A coordinator as far as one agent sees it, and the rest of that agent's process.
struct World {
    session: Session,
    now_ms: u64,
    is_connected: bool,
    /// What the agent is at work on, as the coordinator sees it.
    at_work: Option<PodMark>,
    /// Whether the coordinator has said that this is over.
    told_over: bool,
    /// Whether a request for a lease stands.
    request: bool,
    /// The agent's lease, and the latest attempt at its round.
    lease: Option<(u64, u32)>,
    /// Every lease that it has had.
    own: Vec<LeaseId>,
    next_lease: u64,
    /// What the device computes: an own round, or another agent's.
    device: Option<PodRound>,
    /// Whether the device was told to stop.
    stopping: bool,
    /// The update that becomes durable next.
    storing: Option<OutboxEntry>,
    /// Attempts that were computed to their end.
    computed: u32,
}

impl World {
    fn new(train_examples: u64) -> Self {
        let mut session = ready(joins(train_examples, 0));
        let request = train_examples > 0;
        // Version 0 is here from the first round on.
        if request {
            session.handle(0, grant(1, 0));
            session.handle(0, announce(0));
            session.handle(0, chunk(0));
            session.handle(0, unpacked(0));
            session.handle(0, say(CoordinatorMessage::PodOver { mark: mark(1, 1) }));
        }
        Self {
            session,
            now_ms: 0,
            is_connected: true,
            at_work: None,
            told_over: false,
            request,
            lease: None,
            own: Vec::new(),
            next_lease: 2,
            device: None,
            stopping: false,
            storing: None,
            computed: 0,
        }
    }

    fn happens(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let commands = self.session.handle(self.now_ms, event);
            events.extend(commands.into_iter().filter_map(|command| self.carried_out(command)));
        }
    }

    fn carried_out(&mut self, command: Command) -> Option<Event> {
        match command {
            Command::Train { lease, pod: Some(round), .. } => {
                assert_eq!(lease.id, round.mark.lease);
                self.computes(*round);
            }
            Command::Serve { round, .. } => self.computes(*round),
            Command::StopTraining => {
                assert!(self.device.is_some() && !self.stopping, "there is nothing to stop");
                self.stopping = true;
            }
            Command::Bank(bank) => {
                let update = entry(bank.seq.0, &bank.lease);
                assert!(self.storing.replace(update).is_none(), "one update is stored at a time");
            }
            Command::Settle { key, .. } => return Some(Event::Settled { key }),
            Command::Send(message) => return self.heard(message),
            Command::Connect { .. } => {}
            other => panic!("nothing asks for {other:?}"),
        }
        None
    }

    fn computes(&mut self, round: PodRound) {
        assert!(self.device.replace(round).is_none(), "the device computes one thing at a time");
    }

    /// The coordinator takes a message.
    fn heard(&mut self, message: AgentMessage) -> Option<Event> {
        assert!(self.is_connected, "there is no connection");
        match message {
            AgentMessage::RequestLease => {
                assert!(!self.request, "one request stands");
                self.request = true;
                // It computes no round of its own.
                self.at_work.take_if(|at_work| self.lease.is_some_and(|(lease, _)| at_work.lease == LeaseId(lease)));
            }
            AgentMessage::ReturnLease { lease: id, .. } => {
                self.lease.take_if(|(lease, _)| LeaseId(*lease) == id);
            }
            AgentMessage::PodEnded { mark, .. } => {
                let is_stored = self.storing.as_ref().is_none_or(|update| update.meta.lease != mark.lease);
                assert!(is_stored || self.told_over, "the update of {mark:?} is not durable");
                if self.at_work.take_if(|at_work| *at_work == mark).is_some() {
                    self.told_over = false;
                }
            }
            AgentMessage::OfferUpdate { meta, .. } => {
                self.lease.take_if(|(lease, _)| LeaseId(*lease) == meta.lease);
                return Some(decide(meta.key.seq.0, accepted()));
            }
            other => panic!("nothing leads to {other:?}"),
        }
        None
    }

    /// The coordinator forms an attempt with this agent, if it may.
    fn forms(&mut self, own: bool) {
        let is_owner_at_work =
            self.lease.is_some_and(|(id, _)| self.at_work.is_some_and(|mark| mark.lease == LeaseId(id)));
        let round = match (own, self.lease) {
            (true, None) if self.request && self.at_work.is_none() => {
                self.lease = Some((self.next_lease, 0));
                self.own.push(LeaseId(self.next_lease));
                self.next_lease += 1;
                return self.forms(own);
            }
            (true, Some((id, number))) if !self.told_over && (self.at_work.is_none() || is_owner_at_work) => {
                if std::mem::take(&mut self.request) {
                    self.happens(grant(id, 0));
                }
                self.lease = Some((id, number + 1));
                attempt(AGENT, OTHER, mark(id, number + 1))
            }
            (false, None) if self.at_work.is_none() => {
                self.next_lease += 1;
                attempt(OTHER, AGENT, mark(self.next_lease - 1, 1))
            }
            _ => return,
        };
        self.at_work = Some(round.mark);
        self.happens(say(CoordinatorMessage::Pod(round)));
    }

    /// Another attempt at the round that this agent helps with.
    fn forms_again(&mut self) {
        let others = self.at_work.filter(|mark| !self.own.contains(&mark.lease));
        let Some(PodMark { lease, attempt: number }) = others else { return };
        let round = attempt(OTHER, AGENT, PodMark { lease, attempt: number + 1 });
        (self.at_work, self.told_over) = (Some(round.mark), false);
        self.happens(say(CoordinatorMessage::Pod(round)));
    }

    fn ends(&mut self) {
        let Some(mark) = self.at_work.filter(|_| !self.told_over) else { return };
        self.lease.take_if(|(lease, _)| LeaseId(*lease) == mark.lease);
        self.told_over = true;
        self.happens(say(CoordinatorMessage::PodOver { mark }));
    }

    /// What is computed comes to its end, or stops if it was told to and `fails`.
    fn computed(&mut self, fails: bool) {
        let Some(PodRound { mark, owner, .. }) = self.device.take() else { return };
        let stopped = std::mem::take(&mut self.stopping) && fails;
        let problem = PodProblem { member: Some(OTHER), reason: "it is silent".into() };
        let id = mark.lease;
        self.computed += u32::from(!fails);
        self.happens(match (owner == AGENT, fails) {
            (true, true) if stopped => Event::TrainingStopped { lease: id },
            (true, true) => Event::PodFailed { mark, problem },
            (true, false) => Event::Trained(Box::new(outcome(&lease(id.0, 0)))),
            (false, _) => Event::Served { mark, problem: (fails && !stopped).then_some(problem), parts: vec![] },
        });
    }

    fn stored(&mut self) {
        if let Some(update) = self.storing.take() {
            self.happens(Event::Banked(update));
        }
    }

    fn disconnects(&mut self) {
        if std::mem::take(&mut self.is_connected) {
            (self.request, self.told_over) = (false, false);
            self.happens(lost());
        }
    }

    fn reconnects(&mut self) {
        if !std::mem::replace(&mut self.is_connected, true) {
            let (at_work, commands) = back(&mut self.session, self.now_ms);
            self.at_work = at_work;
            for command in commands {
                if let Some(event) = self.carried_out(command) {
                    self.happens(event);
                }
            }
        }
    }

    fn step(&mut self, step: u8) {
        match step % 18 {
            0..=2 if self.is_connected => self.forms(true),
            3 | 4 if self.is_connected => self.forms(false),
            5 if self.is_connected => self.forms_again(),
            6 if self.is_connected => self.ends(),
            7 | 8 => self.computed(false),
            9 | 10 => self.computed(true),
            11 => self.disconnects(),
            12 => self.reconnects(),
            13 => {
                self.now_ms += 900;
                self.happens(Event::Tick);
            }
            16 | 17 => self.stored(),
            14 => self.happens(Event::Hold { reason: Some("battery".into()) }),
            _ => self.happens(Event::Hold { reason: None }),
        }
        self.check();
    }

    /// The agent is at work on nothing that the coordinator does not know of, and stops what it was told to.
    fn check(&self) {
        if !self.is_connected {
            return;
        }
        let here = self.session.pod_offer().expect("it joins pods").at_work;
        if here != self.at_work {
            assert_eq!(here, None, "the coordinator counts {:?}", self.at_work);
            assert!(self.stopping, "nobody tells the coordinator of the end of {:?}", self.at_work);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn agent_and_coordinator_agree_on_what_the_agent_is_at_work_on(
        trains in any::<bool>(),
        steps in prop::collection::vec(any::<u8>(), 1..64),
    ) {
        let mut world = World::new(if trains { 100 } else { 0 });
        steps.iter().for_each(|step| world.step(*step));

        // Once nothing fails any more, the next attempt is computed to its end.
        world.reconnects();
        world.happens(Event::Hold { reason: None });
        world.computed(false);
        world.computed(false);
        world.stored();
        world.now_ms += 2 * limits::AGENT_RETRY_MS;
        world.happens(Event::Tick);
        world.check();
        let before = world.computed;
        world.forms(trains);
        world.now_ms += limits::AGENT_RETRY_MS;
        world.happens(Event::Tick);
        world.computed(false);
        world.stored();
        world.check();
        prop_assert!(world.computed > before, "nothing is computed");
        prop_assert_eq!(world.session.pod_offer().and_then(|offer| offer.at_work), None);
    }
}
