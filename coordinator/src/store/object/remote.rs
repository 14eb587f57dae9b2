//! Buckets of object stores, by the crate `object_store`: S3 and what speaks its protocol, Google Cloud Storage, Azure Blob
//! Storage, a directory, and memory.
//!
//! The seams are synchronous. Requests run on a runtime of their own, and the caller's thread waits for the answer.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anabranch_common::limits;
use futures_util::StreamExt as _;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{
    ClientOptions, Error, ObjectStore as Remote, ObjectStoreExt as _, PutMode, PutPayload, RetryConfig,
};
use tokio::runtime::Runtime;

use super::{Bucket, BucketError, CheckError, CheckPlan, Created, Listed, Writer, check};
use crate::store::StorageError;

/// A bucket, or a prefix in one.
pub struct RemoteBucket {
    store: Arc<dyn Remote>,
    prefix: String,
    address: String,
    /// Taken when this is dropped.
    runtime: Option<Runtime>,
}

impl fmt::Debug for RemoteBucket {
    /// The address alone: credentials are nobody's business.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteBucket").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for RemoteBucket {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Never waits, as it may be dropped where waiting is not allowed.
            runtime.shutdown_background();
        }
    }
}

impl RemoteBucket {
    /// Connects to `scheme://bucket/prefix`, where the scheme is `s3`, `gs` or `az`; to `file:///directory`, in which files
    /// and directories are synced; or to `memory://`, which is gone with this value. Credentials and end points come from
    /// the environment of the process. Nothing is sent yet.
    ///
    /// # Errors
    /// The address or the environment says nothing that could be used.
    pub fn connect(url: &str) -> Result<Self, StorageError> {
        // What is not UTF-8 is no setting of an object store.
        let text = |(key, value): (OsString, OsString)| Some((key.into_string().ok()?, value.into_string().ok()?));
        Self::connect_with(url, &std::env::vars_os().filter_map(text).collect())
    }

    /// The same with another environment.
    ///
    /// # Errors
    /// The address or the environment says nothing that could be used.
    pub fn connect_with(url: &str, environment: &BTreeMap<String, String>) -> Result<Self, StorageError> {
        let unusable = |detail: String| StorageError::Remote { path: url.into(), detail };
        let (scheme, rest) = url.split_once("://").ok_or_else(|| unusable("it is no address".to_owned()))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        // Another part of the process may have chosen one: any will do.
        rustls::crypto::ring::default_provider().install_default().ok();
        let store = built(scheme, bucket, rest, environment).map_err(unusable)?;
        let prefix = if scheme == "file" { "" } else { prefix.trim_matches('/') };
        if !prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte)) {
            return Err(unusable("a prefix has letters, digits and - _ . / only".to_owned()));
        }
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("object-store")
            .enable_all()
            .build()
            .map_err(|source| StorageError::of_io(Path::new(url), source))?;
        Ok(Self { store, prefix, address: url.to_owned(), runtime: Some(runtime) })
    }

    fn key(&self, key: &str) -> Key {
        Key::from(format!("{}{key}", self.prefix))
    }

    /// Runs a request, for at most `limit`.
    fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        request: impl Future<Output = Result<T, BucketError>> + Send + 'static,
    ) -> Result<T, BucketError> {
        let (answer_in, answer) = mpsc::sync_channel(1);
        let Some(runtime) = &self.runtime else { return Err(BucketError::Refused("it is closed".to_owned())) };
        runtime.spawn(async move {
            let late = || BucketError::Transient(format!("no answer in {} ms", limit.as_millis()));
            let answered = tokio::time::timeout(limit, request).await.unwrap_or_else(|_| Err(late()));
            // Its caller waits for it.
            answer_in.send(answered).ok();
        });
        answer.recv().unwrap_or_else(|_| Err(BucketError::Refused("the request has panicked".to_owned())))
    }
}

fn built(
    scheme: &str,
    bucket: &str,
    rest: &str,
    environment: &BTreeMap<String, String>,
) -> Result<Arc<dyn Remote>, String> {
    let options = || ClientOptions::default().with_timeout_disabled();
    let retry = || RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let text = |error: Error| error.to_string();
    // Names of settings are those of the crate's builders: `AWS_ACCESS_KEY_ID` is `aws_access_key_id`.
    let settings = |prefix: &'static str| {
        let own = environment.iter().filter(move |(key, _)| key.starts_with(prefix));
        own.map(|(key, value)| (key.to_ascii_lowercase(), value.clone()))
    };
    Ok(match scheme {
        "s3" => {
            // Before the settings: options that are set as a whole replace them.
            let mut builder = AmazonS3Builder::new().with_client_options(options()).with_retry(retry());
            for (key, value) in settings("AWS_") {
                if let Ok(key) = key.parse() {
                    builder = builder.with_config(key, value);
                }
            }
            Arc::new(builder.with_bucket_name(bucket).build().map_err(text)?)
        }
        "gs" => {
            let mut builder = GoogleCloudStorageBuilder::new().with_client_options(options()).with_retry(retry());
            for (key, value) in settings("GOOGLE_") {
                if let Ok(key) = key.parse() {
                    builder = builder.with_config(key, value);
                }
            }
            Arc::new(builder.with_bucket_name(bucket).build().map_err(text)?)
        }
        "az" => {
            let mut builder = MicrosoftAzureBuilder::new().with_client_options(options()).with_retry(retry());
            for (key, value) in settings("AZURE_") {
                if let Ok(key) = key.parse() {
                    builder = builder.with_config(key, value);
                }
            }
            Arc::new(builder.with_container_name(bucket).build().map_err(text)?)
        }
        "file" => {
            let dir = Path::new(rest);
            if !dir.is_absolute() {
                return Err("the path of a directory begins with /".to_owned());
            }
            std::fs::create_dir_all(dir).map_err(|error| error.to_string())?;
            Arc::new(LocalFileSystem::new_with_prefix(dir).map_err(text)?.with_fsync(true))
        }
        "memory" => Arc::new(InMemory::new()),
        _ => return Err(format!("{scheme}:// is none of s3://, gs://, az://, file://")),
    })
}

fn sorted(error: Error) -> BucketError {
    match error {
        Error::Generic { .. } | Error::JoinError { .. } => BucketError::Transient(text(&error)),
        _ => BucketError::Refused(text(&error)),
    }
}

/// An error and its causes, each once.
fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

fn request() -> Duration {
    Duration::from_millis(limits::OBJECT_REQUEST_MS)
}

impl Bucket for RemoteBucket {
    fn create(&self, key: &str, bytes: &[u8]) -> Result<Created, BucketError> {
        let (store, key) = (Arc::clone(&self.store), self.key(key));
        let limit = request() + Duration::from_millis(bytes.len() as u64 / limits::OBJECT_PUT_BYTES_PER_MS);
        let payload = PutPayload::from(bytes.to_vec());
        self.run(limit, async move {
            match store.put_opts(&key, payload, PutMode::Create.into()).await {
                Ok(_) => Ok(Created::Created),
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotModified { .. }) => {
                    Ok(Created::Exists)
                }
                Err(error) => Err(sorted(error)),
            }
        })
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, BucketError> {
        let (store, key) = (Arc::clone(&self.store), self.key(key));
        // Each part has its own deadline.
        self.run(Duration::MAX, async move {
            let late = |_| BucketError::Transient(format!("{key} does not come"));
            let found = match tokio::time::timeout(request(), store.get(&key)).await.map_err(late)? {
                Ok(found) => found,
                Err(Error::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(sorted(error)),
            };
            let mut bytes = Vec::new();
            let mut parts = found.into_stream();
            while let Some(part) = tokio::time::timeout(request(), parts.next()).await.map_err(late)? {
                bytes.extend_from_slice(&part.map_err(sorted)?);
            }
            Ok(Some(bytes))
        })
    }

    fn exists(&self, key: &str) -> Result<bool, BucketError> {
        let (store, key) = (Arc::clone(&self.store), self.key(key));
        self.run(request(), async move {
            match store.head(&key).await {
                Ok(_) => Ok(true),
                Err(Error::NotFound { .. }) => Ok(false),
                Err(error) => Err(sorted(error)),
            }
        })
    }

    fn delete(&self, key: &str) -> Result<(), BucketError> {
        let (store, key) = (Arc::clone(&self.store), self.key(key));
        self.run(request(), async move {
            match store.delete(&key).await {
                Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(sorted(error)),
            }
        })
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, BucketError> {
        let whole = format!("{}{prefix}", self.prefix);
        let below = Key::from(whole.trim_end_matches('/'));
        let (store, own) = (Arc::clone(&self.store), self.prefix.clone());
        self.run(Duration::MAX, async move {
            let late = |_| BucketError::Transient("a listing does not come".to_owned());
            let mut listed = Vec::new();
            let mut objects = store.list(Some(&below));
            while let Some(object) = tokio::time::timeout(request(), objects.next()).await.map_err(late)? {
                let object = object.map_err(sorted)?;
                if let Some(key) = object.location.as_ref().strip_prefix(&own) {
                    listed.push(Listed { key: key.to_owned(), bytes: object.size });
                }
            }
            Ok(listed)
        })
    }

    fn rest(&self, attempt: u32) {
        let (first, longest) = limits::OBJECT_REST_MS;
        let doubled = first.saturating_mul(1 << attempt.saturating_sub(1).min(16));
        std::thread::sleep(Duration::from_millis(doubled.min(longest)));
    }

    fn address(&self) -> &str {
        &self.address
    }
}

fn drawn() -> Result<[u8; 16], StorageError> {
    let mut bytes = [0; 16];
    let filled = getrandom::fill(&mut bytes);
    filled.map(|()| bytes).map_err(|error| StorageError::of_io(Path::new("/dev/urandom"), error.into()))
}

/// Returns this process as a writer: its machine's name and its number.
///
/// # Errors
/// The system gives no random numbers.
pub fn writer() -> Result<Writer, StorageError> {
    let host = nix::sys::utsname::uname().map(|name| name.nodename().to_string_lossy().into_owned());
    let name = format!("process {} on {}", std::process::id(), host.unwrap_or_default());
    Ok(Writer { id: drawn()?, name })
}

/// Checks a bucket, and refuses one that may not be used.
///
/// # Errors
/// It cannot be used, or may not be.
pub fn check_and_refuse(bucket: &RemoteBucket, plan: CheckPlan) -> Result<(), StorageError> {
    let report = check(bucket, plan, drawn()?).map_err(|error| match error {
        CheckError::Storage(error) => error,
        CheckError::Plan => StorageError::Unfit { path: bucket.address.as_str().into(), detail: error.to_string() },
    })?;
    if report.is_usable() {
        tracing::debug!(put_ms = report.put_ms_median, "the object store keeps conditions");
        return Ok(());
    }
    let detail = format!(
        "it does not keep the condition that a key is created once: of {} races {} had several winners, in {} the object \
         was not the winner's, {} keys could be created again, {} could not be deleted",
        report.races, report.several_winners, report.overwritten, report.created_again, report.undeleted,
    );
    Err(StorageError::Unfit { path: bucket.address.as_str().into(), detail })
}
