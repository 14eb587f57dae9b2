//! The pages that are published: one of each snapshot.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tokio::sync::watch;

use crate::overview::history::{History, Page};
use crate::web::Snapshots;

/// The newest page.
pub(super) type Pages = watch::Receiver<Arc<Page>>;

/// Returns where pages are published, beginning with that of the newest snapshot.
pub(super) fn channel(snapshots: &Snapshots) -> (watch::Sender<Arc<Page>>, Pages) {
    let snapshot = Arc::clone(&snapshots.borrow());
    let page = Page { number: 0, snapshot, log: VecDeque::new(), rates: BTreeMap::new() };
    watch::channel(Arc::new(page))
}

/// Makes a page of each snapshot, until there are no more.
pub(super) async fn follow(mut snapshots: Snapshots, out: watch::Sender<Arc<Page>>) {
    let mut history = History::default();
    loop {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        out.send_replace(Arc::new(history.take(snapshot)));
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}
