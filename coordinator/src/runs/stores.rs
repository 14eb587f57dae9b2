//! Where the store of a run is: in its directory, or in a bucket that `[store] url` names.
//!
//! The lock of `DIR/store` is held in both cases, so that two processes on one machine never use one run. Between machines
//! the later process has the store of a bucket, and the earlier one stops ([`ObjectStore`](crate::store::ObjectStore)).

use std::path::Path;
use std::sync::Arc;

use anabranch_io::durable::StorageError;

use super::STORE_DIR;
use crate::store::copy::is_incomplete;
use crate::store::{SledStore, Store};

/// Opens the store of the run in `dir` to write.
///
/// # Errors
/// Another process has it, it is damaged, `url` names no store that may be used, or the storage fails.
pub fn open(dir: &Path, url: Option<&str>) -> Result<Arc<dyn Store>, StorageError> {
    let path = dir.join(STORE_DIR);
    let store: Arc<dyn Store> = match url {
        None => Arc::new(SledStore::open_dir(&path)?),
        Some(url) => remote::open(&path, url)?,
    };
    whole(store, &path)
}

/// Opens the store of the run in `dir` to read: nothing in it is changed.
///
/// # Errors
/// Another process writes to it, it is damaged, or the storage fails.
pub fn open_copy(dir: &Path, url: Option<&str>) -> Result<Arc<dyn Store>, StorageError> {
    let path = dir.join(STORE_DIR);
    let store: Arc<dyn Store> = match url {
        None => Arc::new(SledStore::open_copy(&path)?),
        Some(url) => remote::open_copy(&path, url)?,
    };
    whole(store, &path)
}

/// Refuses what a copy that was cut short has left.
fn whole(store: Arc<dyn Store>, path: &Path) -> Result<Arc<dyn Store>, StorageError> {
    if is_incomplete(store.catalogue())? {
        let detail = "a copy into it was cut short: remove what is there and copy again".to_owned();
        return Err(StorageError::Corrupt { path: path.to_owned(), detail });
    }
    Ok(store)
}

#[cfg(feature = "object-store")]
mod remote {
    use std::path::Path;
    use std::sync::Arc;

    use anabranch_io::durable::{Lock, ReadLock, StorageError, create_private_dir};

    use crate::store::object::remote::{self, RemoteBucket};
    use crate::store::object::{CheckPlan, ObjectStore};
    use crate::store::{Blobs, Catalogue, Journal, Store, StoreUsage};

    /// A store in a bucket, and the lock of the directory of its run.
    #[derive(Debug)]
    struct Locked {
        store: ObjectStore,
        // After the store: it is free when the store is closed.
        _lock: Lock,
    }

    impl Store for Locked {
        fn journal(&self) -> &dyn Journal {
            self.store.journal()
        }

        fn blobs(&self) -> &dyn Blobs {
            self.store.blobs()
        }

        fn catalogue(&self) -> &dyn Catalogue {
            self.store.catalogue()
        }

        fn usage(&self) -> Result<StoreUsage, StorageError> {
            self.store.usage()
        }
    }

    pub(super) fn open(path: &Path, url: &str) -> Result<Arc<dyn Store>, StorageError> {
        create_private_dir(path)?;
        let lock = Lock::acquire(path)?;
        if path.join("db").exists() {
            let detail =
                format!("{} holds a run already; `store copy` moves it, then remove that directory", path.display());
            return Err(StorageError::Remote { path: url.into(), detail });
        }
        let bucket = RemoteBucket::connect(url)?;
        remote::check_and_refuse(&bucket, CheckPlan::SHORT)?;
        Ok(Arc::new(Locked { store: ObjectStore::open(Arc::new(bucket), &remote::writer()?)?, _lock: lock }))
    }

    pub(super) fn open_copy(path: &Path, url: &str) -> Result<Arc<dyn Store>, StorageError> {
        // Only to learn whether a process here has the run: a reader of a bucket is in no writer's way.
        drop(ReadLock::acquire(path)?);
        let bucket = RemoteBucket::connect(url)?;
        Ok(Arc::new(ObjectStore::open_copy(Arc::new(bucket))?))
    }
}

#[cfg(not(feature = "object-store"))]
mod remote {
    use std::path::Path;
    use std::sync::Arc;

    use anabranch_io::durable::StorageError;

    use crate::store::Store;

    pub(super) fn open(_path: &Path, url: &str) -> Result<Arc<dyn Store>, StorageError> {
        let detail = "this program was built without the feature `object-store`".to_owned();
        Err(StorageError::Unfit { path: url.into(), detail })
    }

    pub(super) fn open_copy(path: &Path, url: &str) -> Result<Arc<dyn Store>, StorageError> {
        open(path, url)
    }
}
