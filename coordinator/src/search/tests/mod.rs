//! Searches without a host: what `SEARCH.toml` may say, the exact outputs of small searches, crashes at every step, and random
//! worlds in which the second implementation of the rules looks on.

mod crash;
mod population;
mod promotion;
mod random;
mod record;
mod report;
mod spec;
mod verify;
mod world;

use std::path::Path;

use anabranch_common::now::Now;

use super::base::Base;
use super::record::{RecordBody, TrialId};
use super::space::Overrides;
use super::spec::SearchSpec;
use super::{Input, Output, Search};
use crate::config::{Config, TemplateOptions};

/// A time that nothing follows from.
const NOW: Now = Now { unix_ms: 1_000, mono_ms: 0 };

/// The `run.toml` that `init` writes.
fn base() -> Base {
    let listen = "0.0.0.0:4433".parse().expect("an address");
    let options = TemplateOptions { name: "digits".into(), seed: 7, listen, names: Vec::new() };
    Base::parse(Path::new("run.toml"), &Config::template(&options)).expect("the template is valid")
}

/// A search over the learning rate.
fn text(search: &str) -> String {
    format!("config = \"run.toml\"\n[search]\n{search}\n[space]\n\"train.optimizer.lr\" = {{ log = [1e-3, 1] }}\n")
}

fn parse(text: &str) -> SearchSpec {
    SearchSpec::parse(Path::new("lr.toml"), text).unwrap_or_else(|error| panic!("{error}"))
}

fn start(text: &str) -> Search {
    Search::start(NOW, "lr.toml".to_owned(), text.to_owned(), base().text()).unwrap_or_else(|error| panic!("{error}"))
}

/// A search whose records are durable at once: what it does beside writing, by the records that it writes.
struct AtOnce(Search);

impl AtOnce {
    fn begin(text: &str) -> (Self, Vec<RecordBody>, Vec<Output>) {
        let mut search = Self(start(text));
        let (records, outputs) = search.handle(Input::Begin);
        (search, records, outputs)
    }

    fn handle(&mut self, input: Input) -> (Vec<RecordBody>, Vec<Output>) {
        let (mut records, mut outputs) = (Vec::new(), Vec::new());
        let mut written = None;
        for output in self.0.handle(NOW, input) {
            match output {
                Output::Append(record) => {
                    written = Some(record.position);
                    records.push(record.body);
                }
                output => outputs.push(output),
            }
        }
        if let Some(position) = written {
            assert_eq!(outputs, [], "an output left before its record was durable");
            outputs = self.0.handle(NOW, Input::Written { position });
        }
        (records, outputs)
    }

    /// A trial comes to the rung that it runs to and is measured there.
    fn measured(&mut self, trial: u32, accuracy: f64) -> (Vec<RecordBody>, Vec<Output>) {
        let trial = TrialId(trial);
        let state = self.0.state();
        let contributions = state.plan.spec.contributions(state.trial(trial).expect("a trial").rung);
        let version = anabranch_common::ids::ModelVersion(contributions);
        let (_, outputs) = self.handle(Input::Reached { trial, contributions, version });
        assert_eq!(outputs, [Output::Hold { trial }, Output::Measure { trial, version }]);
        self.handle(Input::Measured { trial, version, accuracy, loss: 1.0 - accuracy })
    }
}

fn overrides(pairs: &[(&str, &str)]) -> Overrides {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}
