//! How many members a pod has.

use std::fmt;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// Members of a pod of stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StageCount {
    /// As few as the model fits, of those that are free.
    Auto,
    /// So many.
    Exactly(u32),
}

/// How [`StageCount::Auto`] is written.
const AUTO: &str = "auto";

impl Serialize for StageCount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str(AUTO),
            Self::Exactly(count) => serializer.serialize_u32(*count),
        }
    }
}

impl<'de> Deserialize<'de> for StageCount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl Visitor<'_> for Reader {
    type Value = StageCount;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a number of members or {AUTO:?}")
    }

    fn visit_u64<E: de::Error>(self, count: u64) -> Result<StageCount, E> {
        let invalid = |_| E::invalid_value(de::Unexpected::Unsigned(count), &self);
        u32::try_from(count).map(StageCount::Exactly).map_err(invalid)
    }

    fn visit_i64<E: de::Error>(self, count: i64) -> Result<StageCount, E> {
        let invalid = |_| E::invalid_value(de::Unexpected::Signed(count), &self);
        u32::try_from(count).map(StageCount::Exactly).map_err(invalid)
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<StageCount, E> {
        if word == AUTO { Ok(StageCount::Auto) } else { Err(E::invalid_value(de::Unexpected::Str(word), &self)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Table {
        stages: StageCount,
    }

    #[test]
    fn a_number_and_a_word_are_read_as_they_are_written() {
        for stages in [StageCount::Auto, StageCount::Exactly(0), StageCount::Exactly(7)] {
            let text = toml::to_string(&Table { stages }).expect("serializable");
            assert_eq!(toml::from_str(&text), Ok(Table { stages }), "{text}");
        }
        for wrong in ["-1", "4294967296", "2.0", "\"Auto\"", "\"2\"", "true"] {
            let refused = toml::from_str::<Table>(&format!("stages = {wrong}")).expect_err(wrong).to_string();
            assert!(refused.contains("expected a number of members or \"auto\""), "{wrong}: {refused}");
        }
    }
}
