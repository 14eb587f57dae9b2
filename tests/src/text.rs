//! Text that is worth learning from, and needs no file.

use anabranch_common::rng::SplitMix64;

/// Sentences of one small grammar, a line each: most of a sentence follows from its first letters.
#[must_use]
pub fn sentences(count: usize, seed: u64) -> String {
    let mut rng = SplitMix64::new(seed);
    let mut pick = |words: [&'static str; 3]| match rng.below(3) {
        0 => words[0],
        1 => words[1],
        _ => words[2],
    };
    let mut text = String::new();
    for _ in 0..count {
        let subject = pick(["the old sailor", "a young painter", "my neighbour"]);
        let verb = pick(["remembers", "looks for", "draws"]);
        let object = pick(["the quiet harbour", "a broken lantern", "the last ferry"]);
        text.push_str(&format!("{subject} {verb} {object}.\n"));
    }
    text
}
