//! Virtual time: what happens next, in one total order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A queue of things to come, ordered by time, then by when they were put in: no two are ever equal.
#[derive(Debug)]
pub struct Agenda<T> {
    heap: BinaryHeap<Reverse<Entry<T>>>,
    next: u64,
    now_ms: u64,
}

/// When a process wants to be woken next.
#[derive(Debug, Default)]
pub(super) struct Alarm(Option<u64>);

impl Alarm {
    /// Sets it, unless it is set for no later a time. Returns whether it was.
    pub(super) fn set(&mut self, at_ms: u64) -> bool {
        let is_earlier = self.0.is_none_or(|set| set > at_ms);
        if is_earlier {
            self.0 = Some(at_ms);
        }
        is_earlier
    }

    /// Whether it goes off by now. Then it is no longer set.
    pub(super) fn goes_off(&mut self, now_ms: u64) -> bool {
        self.0.take_if(|at_ms| *at_ms <= now_ms).is_some()
    }
}

#[derive(Debug)]
struct Entry<T> {
    at_ms: u64,
    number: u64,
    /// Boxed: a heap moves its entries about.
    what: Box<T>,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_ms, self.number).cmp(&(other.at_ms, other.number))
    }
}

impl<T> Default for Agenda<T> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), next: 0, now_ms: 0 }
    }
}

impl<T> Agenda<T> {
    /// The present, in milliseconds since the world began.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Puts something in; what lies in the past happens next.
    pub fn at(&mut self, at_ms: u64, what: T) {
        let entry = Entry { at_ms: at_ms.max(self.now_ms), number: self.next, what: Box::new(what) };
        self.next += 1;
        self.heap.push(Reverse(entry));
    }

    /// When the next thing happens.
    #[must_use]
    pub fn next_ms(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse(entry)| entry.at_ms)
    }

    /// Takes the next thing out and goes to its time, unless that is after `until_ms`.
    pub fn next(&mut self, until_ms: u64) -> Option<T> {
        if self.heap.peek().is_none_or(|Reverse(entry)| entry.at_ms > until_ms) {
            self.now_ms = self.now_ms.max(until_ms);
            return None;
        }
        let Reverse(entry) = self.heap.pop()?;
        self.now_ms = entry.at_ms;
        Some(*entry.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_happen_in_the_order_of_time_and_then_of_arrival() {
        let mut agenda = Agenda::default();
        for (at_ms, what) in [(5, 'c'), (3, 'a'), (5, 'd'), (3, 'b'), (9, 'e')] {
            agenda.at(at_ms, what);
        }
        let order: String = std::iter::from_fn(|| agenda.next(6)).collect();
        assert_eq!((order.as_str(), agenda.now_ms(), agenda.next_ms()), ("abcd", 6, Some(9)));
        agenda.at(1, 'f');
        assert_eq!((agenda.next(100), agenda.now_ms()), (Some('f'), 6), "nothing happens in the past");
    }
}
