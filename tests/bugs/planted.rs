//! Which deliberate bug is planted in this thread: part of the copy of the tree in which the bugs are made.

use std::cell::Cell;

thread_local! {
    static PLANTED: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Whether this mistake is made here.
#[must_use]
pub fn is(bug: &str) -> bool {
    PLANTED.get() == Some(bug)
}

/// A planted bug; dropping it takes it out again.
#[derive(Debug)]
pub struct Planted(());

/// Plants a bug in this thread, in place of the one that was there.
#[must_use]
pub fn plant(bug: &'static str) -> Planted {
    PLANTED.set(Some(bug));
    Planted(())
}

impl Drop for Planted {
    fn drop(&mut self) {
        PLANTED.set(None);
    }
}
