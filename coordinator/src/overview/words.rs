//! Measurements, shares and health as people read them.

use anabranch_common::status::TimedAggregate;

use crate::host::Health;

/// Returns at most so many of some measurements, evenly spread: the first and the newest are among them.
pub(crate) fn thinned(all: &[TimedAggregate], most: usize) -> impl Iterator<Item = &TimedAggregate> {
    let points = all.len().min(most);
    let last = all.len().saturating_sub(1);
    (0..points).filter_map(move |nth| all.get(if points > 1 { nth * last / (points - 1) } else { last }))
}

/// `91.20 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// Whether the process does its work, in words.
pub(crate) fn health(health: &Health) -> String {
    match health {
        Health::Starting => "the process is starting: it reads what is stored".to_owned(),
        Health::Serving => "the process serves its runs".to_owned(),
        Health::Leaving(why) | Health::Failed(why) => why.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::measured;
    use super::*;

    #[test]
    fn curves_are_thinned_between_their_ends() {
        let all: Vec<TimedAggregate> = (0..101).map(measured).collect();
        let versions = |most| thinned(&all, most).map(|timed| timed.aggregate.version.0).collect::<Vec<_>>();
        assert_eq!(versions(5), [0, 25, 50, 75, 100]);
        assert_eq!(versions(1), [100]);
        assert_eq!(versions(200).len(), 101);
        assert_eq!(thinned(&[], 5).count(), 0);
    }
}
