//! P3: nobody is told of anything before it is durable, and what is durable is found again.

use anabranch_common::ids::Position;
use anabranch_common::update::{UpdateKey, Verdict};

use super::{Checked, ensure};

const P3: &str = "P3";

#[derive(Debug, Default)]
pub(super) struct Durable(Option<Position>);

impl Durable {
    pub(super) fn synced(&mut self, upto: Position) {
        self.0 = self.0.max(Some(upto));
    }

    pub(super) fn told(&self, position: Option<Position>, key: UpdateKey, verdict: &Verdict) -> Checked {
        ensure(position.is_none() || position <= self.0, P3, || {
            format!("{key:?} is told {verdict:?}, decided at {position:?}, durable up to {:?}", self.0)
        })
    }

    pub(super) fn recovered(&self, position: Position) -> Checked {
        ensure(self.0 <= Some(position), P3, || format!("recovered up to {position}, durable up to {:?}", self.0))
    }

    pub(super) fn nothing(&self) -> Checked {
        ensure(self.0.is_none(), P3, || format!("recovered nothing, durable up to {:?}", self.0))
    }
}
