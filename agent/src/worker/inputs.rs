//! Where the threads beside the loop tell what has happened.

use anabranch_common::ids::RunId;
use tokio::sync::mpsc::Sender;

use crate::host;
use crate::node;

/// The way to a node: to itself, or through the host that has it.
#[derive(Debug, Clone)]
pub enum Inputs {
    /// To a node that is driven by itself.
    Node(Sender<node::Input>),
    /// To the node of a run.
    Host(RunId, Sender<host::Input>),
}

impl From<Sender<node::Input>> for Inputs {
    fn from(inputs: Sender<node::Input>) -> Self {
        Self::Node(inputs)
    }
}

impl Inputs {
    /// The way to the node of another run, where there are several.
    pub(super) fn of(&self, run: RunId) -> Self {
        match self {
            Self::Node(inputs) => Self::Node(inputs.clone()),
            Self::Host(_, inputs) => Self::Host(run, inputs.clone()),
        }
    }

    /// Tells the node, and waits for room. Returns false if the loop has ended.
    pub(super) fn tell(&self, input: node::Input) -> bool {
        match self {
            Self::Node(inputs) => inputs.blocking_send(input).is_ok(),
            Self::Host(run, inputs) => inputs.blocking_send(host::Input::Run { run: *run, input }).is_ok(),
        }
    }

    /// Tells the node, unless there is no room or the loop has ended: what it tells is not worth a wait.
    pub(super) fn try_tell(&self, input: node::Input) {
        // As said.
        let _ = match self {
            Self::Node(inputs) => inputs.try_send(input).is_ok(),
            Self::Host(run, inputs) => inputs.try_send(host::Input::Run { run: *run, input }).is_ok(),
        };
    }
}
