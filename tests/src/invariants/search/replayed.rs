//! A journal holds every input that decisions rest on. Given to a fresh search, they lead to the same records and the same
//! state, over however many processes the journal was written.

use anabranch_common::now::Now;
use anabranch_coordinator::search::record::{CloseReason, Record, RecordBody};
use anabranch_coordinator::search::{Input, Output, Search, SearchState};

use crate::invariants::journal::{Checked, broken, ensure};

const NAME: &str = "search replay";

pub(super) fn check(records: &[Record]) -> Checked {
    let Some(Record { at_ms, body: RecordBody::Started { path, search, base }, .. }) = records.first() else {
        return broken(NAME, "a journal does not begin with the start of a search");
    };
    let now = Now { unix_ms: *at_ms, mono_ms: 0 };
    let mut search = match Search::start(now, path.clone(), search.clone(), base.clone()) {
        Ok(search) => search,
        Err(error) => return broken(NAME, format!("a search cannot be started again: {error}")),
    };
    let mut made = Vec::new();
    let mut take = |search: &mut Search, input| {
        let records = search.handle(now, input).into_iter().filter_map(|output| match output {
            Output::Append(record) => Some(record.body),
            _ => None,
        });
        made.extend(records);
        made.len()
    };
    let mut count = take(&mut search, Input::Begin);
    for (index, record) in records.iter().enumerate() {
        // It has followed from an input before it.
        if index < count {
            continue;
        }
        let Some(input) = input(&record.body) else {
            return broken(NAME, format!("{:?} does not follow from the inputs before it", record.body));
        };
        count = take(&mut search, input);
    }
    let differs = records.iter().zip(&made).find(|(record, made)| record.body != **made);
    if let Some((record, made)) = differs {
        return broken(NAME, format!("record {} is {:?}, and {made:?} follows", record.position, record.body));
    }
    ensure(made.len() >= records.len(), NAME, || format!("only {} of {} records follow", made.len(), records.len()))?;
    if made.len() > records.len() {
        return Ok(());
    }
    match SearchState::fold(records) {
        Ok(fold) => {
            let same = fold.trials == search.state().trials && fold.outcome == search.state().outcome;
            ensure(same, NAME, || "the fold over a journal is another state than its search was in".into())
        }
        Err(error) => broken(NAME, error.to_string()),
    }
}

/// The input that a record is the decision on, if it is of that kind.
fn input(body: &RecordBody) -> Option<Input> {
    match body.clone() {
        RecordBody::Reached { trial, contributions, version, .. } => {
            Some(Input::Reached { trial, contributions, version })
        }
        RecordBody::Measured { trial, version, metric, .. } => {
            Some(Input::Measured { trial, version, accuracy: metric, loss: metric })
        }
        RecordBody::Closed { trial, why: CloseReason::Diverged, reason } => Some(Input::Diverged { trial, reason }),
        RecordBody::Closed { trial, why: CloseReason::Failed, reason } => Some(Input::Failed { trial, reason }),
        RecordBody::Closed { trial, why: CloseReason::Gone, reason } => Some(Input::Gone { trial, reason }),
        RecordBody::Finished { stopped: true, .. } => Some(Input::Stop),
        _ => None,
    }
}
