//! What every [`Catalogue`] must do.

use anabranch_common::ids::Position;

use super::{replacements, run};
use anabranch_coordinator::store::Catalogue;
use anabranch_coordinator::store::layout::SMALL_BYTES;

/// Runs the suite of the catalogue. `open(None)` gives an empty one; `open(Some(store))` closes
/// `store` and opens what of it was synced.
///
/// # Panics
/// When the catalogue does not do what it must.
pub fn conformance<S>(open: &mut impl FnMut(Option<S>) -> S, seam: fn(&S) -> &dyn Catalogue) {
    empty_catalogue_is_empty(seam(&open(None)));
    checkpoints_come_in_ascending_order(open, seam);
    items_are_replaced_and_listed(open, seam);
}

fn empty_catalogue_is_empty(catalogue: &dyn Catalogue) {
    run("an empty catalogue", || {
        assert_eq!(catalogue.checkpoints()?, []);
        catalogue.delete_checkpoint(Position(3))?;
        assert_eq!(catalogue.get("absent")?, None);
        catalogue.delete("absent")?;
        assert_eq!(catalogue.list("")?, Vec::<String>::new());
        catalogue.sync()
    });
}

fn checkpoints_come_in_ascending_order<S>(open: &mut impl FnMut(Option<S>) -> S, seam: fn(&S) -> &dyn Catalogue) {
    let mut store = open(None);
    run("checkpoints", || {
        for position in [300, 2, 70_000] {
            seam(&store).put_checkpoint(Position(position), &position.to_le_bytes())?;
        }
        seam(&store).sync()
    });
    store = open(Some(store));
    run("checkpoints", || {
        let expected = |positions: &[u64]| -> Vec<(Position, Vec<u8>)> {
            positions.iter().map(|position| (Position(*position), position.to_le_bytes().to_vec())).collect()
        };
        assert_eq!(seam(&store).checkpoints()?, expected(&[2, 300, 70_000]));
        seam(&store).delete_checkpoint(Position(300))?;
        assert_eq!(seam(&store).checkpoints()?, expected(&[2, 70_000]));
        assert!(seam(&store).put_checkpoint(Position(3), &vec![0; SMALL_BYTES + 1]).is_err());
        seam(&store).sync()
    });
    store = open(Some(store));
    run("checkpoints", || {
        let positions: Vec<u64> = seam(&store).checkpoints()?.iter().map(|(position, _)| position.0).collect();
        assert_eq!(positions, [2, 70_000], "deleted, and synced");
        Ok(())
    });
}

fn items_are_replaced_and_listed<S>(open: &mut impl FnMut(Option<S>) -> S, seam: fn(&S) -> &dyn Catalogue) {
    let mut store = open(None);
    let longest = vec![3; SMALL_BYTES];
    run("items", || {
        seam(&store).put("token/b", b"1")?;
        seam(&store).put("token/b", b"2")?;
        seam(&store).put("token/a", &longest)?;
        seam(&store).put("tokens", b"")?;
        seam(&store).sync()
    });
    store = open(Some(store));
    run("items", || {
        assert_eq!(seam(&store).get("token/b")?, Some(b"2".to_vec()));
        assert_eq!(seam(&store).get("token/a")?, Some(longest.clone()));
        assert_eq!(seam(&store).get("tokens")?, Some(Vec::new()));
        assert_eq!(seam(&store).list("token/")?, ["token/a", "token/b"]);
        seam(&store).delete("token/a")?;
        assert_eq!(seam(&store).list("")?, ["token/b", "tokens"]);
        assert!(seam(&store).put("long", &vec![0; SMALL_BYTES + 1]).is_err());
        assert_eq!(seam(&store).get("long")?, None, "a refused value is not stored");
        Ok(())
    });
    for (round, value) in replacements().into_iter().enumerate() {
        run("replaced items", || {
            seam(&store).put("book", &value)?;
            assert_eq!(seam(&store).get("book")?.as_ref(), Some(&value), "round {round}");
            seam(&store).sync()
        });
        store = open(Some(store));
        run("replaced items", || {
            assert_eq!(seam(&store).get("book")?.as_ref(), Some(&value), "round {round}, reopened");
            Ok(())
        });
    }
    run("replaced items", || {
        seam(&store).delete("book")?;
        assert_eq!(seam(&store).get("book")?, None);
        seam(&store).sync()
    });
    store = open(Some(store));
    run("replaced items", || {
        assert_eq!(seam(&store).get("book")?, None, "deleted, and synced");
        Ok(())
    });
}
