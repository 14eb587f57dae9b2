//! What every [`Blobs`] must do.

use anabranch_common::ids::Digest;

use super::{contents, run};
use anabranch_coordinator::store::Blobs;

/// Runs the suite of the blobs. `open(None)` gives empty ones; `open(Some(store))` closes `store`
/// and opens what of it was synced.
///
/// # Panics
/// When the blobs do not do what they must.
pub fn conformance<S>(open: &mut impl FnMut(Option<S>) -> S, seam: fn(&S) -> &dyn Blobs) {
    no_blob_is_there_at_first(seam(&open(None)));
    blobs_are_named_by_content(open, seam);
}

fn no_blob_is_there_at_first(blobs: &dyn Blobs) {
    run("no blobs", || {
        let absent = Digest::of(b"absent");
        assert_eq!(blobs.list()?, []);
        assert_eq!(blobs.get(absent)?, None);
        assert_eq!(blobs.bytes(absent)?, None);
        assert!(!blobs.holds(absent)?);
        blobs.delete(absent)?;
        blobs.sync()
    });
}

fn blobs_are_named_by_content<S>(open: &mut impl FnMut(Option<S>) -> S, seam: fn(&S) -> &dyn Blobs) {
    let mut store = open(None);
    let mut blobs: Vec<(Digest, Vec<u8>)> = contents().into_iter().map(|bytes| (Digest::of(&bytes), bytes)).collect();
    blobs.sort();
    run("blobs", || {
        for (id, bytes) in blobs.iter().chain(&blobs) {
            seam(&store).put(*id, bytes)?;
        }
        seam(&store).sync()
    });
    store = open(Some(store));
    run("blobs", || {
        assert_eq!(seam(&store).list()?, blobs.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        for (id, bytes) in &blobs {
            assert_eq!(seam(&store).get(*id)?.as_ref(), Some(bytes));
            assert_eq!(seam(&store).bytes(*id)?, Some(bytes.len() as u64));
        }
        Ok(())
    });
    store = open(Some(store));
    run("blobs", || {
        // None has been read since the store was opened.
        for (id, _) in blobs.iter().chain(&blobs) {
            assert!(seam(&store).holds(*id)?);
        }
        assert!(!seam(&store).holds(Digest::of(b"absent"))?);
        let (first, rest) = blobs.split_first().expect("there are contents");
        seam(&store).delete(first.0)?;
        assert!(!seam(&store).holds(first.0)?, "it has been deleted");
        assert_eq!(seam(&store).get(first.0)?, None);
        assert_eq!(seam(&store).list()?, rest.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        seam(&store).put(first.0, &first.1)?;
        assert_eq!(seam(&store).get(first.0)?.as_ref(), Some(&first.1), "a deleted blob can be stored again");
        assert!(seam(&store).holds(first.0)?);
        seam(&store).delete(blobs[1].0)?;
        seam(&store).sync()
    });
    store = open(Some(store));
    run("blobs", || {
        assert_eq!(seam(&store).get(blobs[0].0)?.as_ref(), Some(&blobs[0].1), "stored again, and synced");
        assert_eq!(seam(&store).get(blobs[1].0)?, None, "deleted, and synced");
        Ok(())
    });
}
