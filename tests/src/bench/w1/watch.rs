//! What agents say in their logs while they run.

use serde_json::Value;

/// Whether an agent's log (JSON lines) says that it was granted a lease.
pub(super) fn has_lease(log: &str) -> bool {
    log.lines().any(|line| message(line).is_some_and(|entry| entry["message"] == "lease"))
}

/// The accuracies in an agent's log, oldest first.
pub(super) fn accuracies(log: &str) -> Vec<f64> {
    let entries = log.lines().filter(|line| line.contains("\"evaluated\"")).filter_map(message);
    entries.filter(|entry| entry["message"] == "evaluated").filter_map(|entry| entry["accuracy"].as_f64()).collect()
}

fn message(line: &str) -> Option<Value> {
    serde_json::from_str(line).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_says_when_work_began_and_how_good_it_was() {
        let log = "{\"message\":\"connected as a\"}\n{\"message\":\"lease\",\"lease\":3}\n\
                   {\"message\":\"evaluated\",\"accuracy\":0.5}\n{\"message\":\"evalua";
        assert!(has_lease(log) && !has_lease("{\"message\":\"connected as lease\"}"));
        assert_eq!(accuracies(log), [0.5]);
    }
}
