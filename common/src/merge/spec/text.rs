//! How `[merge]` is written: the keys of the rule, and beside them `average` for every rule.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::MergeSpec;

/// The table as it is read. `recall` leaves its own key `average` to this one.
#[derive(Deserialize)]
struct Read {
    average: Option<bool>,
    #[serde(flatten, deserialize_with = "MergeSpec::deserialize")]
    rule: MergeSpec,
}

/// The table of a rule with an average beside it.
#[derive(Serialize)]
struct Averaged<'a> {
    average: bool,
    #[serde(flatten, serialize_with = "keys")]
    rule: &'a MergeSpec,
}

/// The rule's own keys. There is no average below another one.
fn keys<S: Serializer>(rule: &&MergeSpec, serializer: S) -> Result<S::Ok, S::Error> {
    MergeSpec::serialize(rule, serializer)
}

impl<'de> Deserialize<'de> for MergeSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Read { average, rule } = <Read as Deserialize>::deserialize(deserializer)?;
        Ok(match (average, rule) {
            (Some(average), Self::Recall { step, recall, .. }) => Self::Recall { step, recall, average },
            (Some(true), rule) => rule.averaged(),
            (Some(false) | None, rule) => rule,
        })
    }
}

impl Serialize for MergeSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Averaged(rule) => Serialize::serialize(&Averaged { average: true, rule }, serializer),
            rule => Self::serialize(rule, serializer),
        }
    }
}
