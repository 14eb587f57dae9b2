//! Where the chunks of one upload go. Shared between whoever receives them, which copies, and the policy, which counts.

use std::sync::Arc;

use parking_lot::Mutex;

use super::name::UploadName;
use super::upload::UploadId;
use crate::ids::Digest;
use crate::wire::transfer::{Assembly, Missing, TransferError, TransferManifest};

/// The buffer of an upload.
#[derive(Debug)]
pub struct Sink {
    upload: UploadId,
    name: UploadName,
    transfer: Digest,
    manifest: Arc<TransferManifest>,
    content: Arc<Mutex<Content>>,
}

#[derive(Debug)]
enum Content {
    Assembling(Assembly),
    Whole(Arc<[u8]>),
}

/// What became of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Put {
    /// Whether it was missing.
    pub is_news: bool,
    /// Whether nothing is missing.
    pub is_whole: bool,
    /// Where in the content it begins.
    pub offset: u64,
}

impl Sink {
    /// Makes an empty one: this allocates.
    ///
    /// # Errors
    /// The manifest is not valid.
    pub fn new(upload: UploadId, name: UploadName, manifest: TransferManifest) -> Result<Self, TransferError> {
        let assembly = Assembly::new(manifest.clone(), u64::MAX)?;
        let content = Arc::new(Mutex::new(Content::Assembling(assembly)));
        Ok(Self { upload, name, transfer: manifest.id(), manifest: Arc::new(manifest), content })
    }

    /// The same buffer for another upload of this content.
    pub(super) fn of(&self, upload: UploadId, name: UploadName) -> Self {
        let (manifest, content) = (Arc::clone(&self.manifest), Arc::clone(&self.content));
        Self { upload, name, transfer: self.transfer, manifest, content }
    }

    /// Which upload it is of.
    #[must_use]
    pub fn upload(&self) -> UploadId {
        self.upload
    }

    /// Under which name its half is kept.
    #[must_use]
    pub fn name(&self) -> UploadName {
        self.name
    }

    /// [`TransferManifest::id`] of its chunks.
    #[must_use]
    pub fn transfer(&self) -> Digest {
        self.transfer
    }

    /// Its chunks.
    #[must_use]
    pub fn manifest(&self) -> &TransferManifest {
        &self.manifest
    }

    /// What is missing.
    #[must_use]
    pub fn missing(&self) -> Missing {
        match &*self.content.lock() {
            Content::Assembling(assembly) => assembly.missing().clone(),
            Content::Whole(_) => Missing::all(0),
        }
    }

    /// Checks a chunk and copies it to its place. A chunk that is already here changes nothing.
    ///
    /// # Errors
    /// The chunk does not belong here or is not what was announced.
    pub fn put(&self, index: u32, chunk: &[u8]) -> Result<Put, TransferError> {
        let range = self.manifest.placed(index, chunk)?;
        let offset = range.start as u64;
        let is_missing = |content: &Content| match content {
            Content::Assembling(assembly) => assembly.missing().contains(index),
            Content::Whole(_) => false,
        };
        let is_news = is_missing(&self.content.lock());
        if is_news {
            // Beside the lock: hashing takes longer than copying.
            self.manifest.matches(index, chunk)?;
        }
        let mut content = self.content.lock();
        let is_news = is_news && is_missing(&content);
        let is_whole = match &mut *content {
            Content::Assembling(assembly) if is_news => assembly.place(index, range, chunk),
            Content::Assembling(assembly) => assembly.missing().is_empty(),
            Content::Whole(_) => true,
        };
        Ok(Put { is_news, is_whole, offset })
    }

    /// The content, once nothing is missing. It is copied once: room for decoded content stands for the copy.
    #[must_use]
    pub fn payload(&self) -> Option<Arc<[u8]>> {
        let mut content = self.content.lock();
        if let Content::Assembling(assembly) = &mut *content {
            *content = Content::Whole(assembly.take()?.into());
        }
        match &*content {
            Content::Whole(payload) => Some(Arc::clone(payload)),
            Content::Assembling(_) => None,
        }
    }
}
