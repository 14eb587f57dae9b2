//! From one CA to the next, in three steps of files. A process that is killed between any two of them leaves a folder that
//! loads.
//!
//! ```text
//!  begin    tls/next.partial ─rename─► tls/next            both CAs are trusted; certificates are issued by the next one
//!  finish   tls/next ─rename─► tls/finishing               from here on only the next CA counts
//!           tls/finishing/* ─copy─► tls/*                  each file whole
//!           tls/finishing ─rename─► tls/next.partial ─► removed
//! ```
//! While `tls/finishing` is there it is read in place of the files beside it. The next start of `run` ends the copying.

use std::path::Path;

use super::own::{FILES, OwnSet};
use super::{Identity, IdentityError, files, issue};

const NEXT: &str = "next";
const FINISHING: &str = "finishing";
const PARTIAL: &str = "next.partial";

/// Reads the CA that counts in `tls`, and the next one, if there is a rollover.
pub(super) fn load(tls: &Path) -> Result<(OwnSet, Option<OwnSet>), IdentityError> {
    let (next, finishing) = (tls.join(NEXT), tls.join(FINISHING));
    if finishing.exists() {
        return Ok((OwnSet::load(&finishing)?, None));
    }
    let next = next.exists().then(|| OwnSet::load(&next)).transpose()?;
    Ok((OwnSet::load(tls)?, next))
}

impl Identity {
    /// Makes the next CA, and certificates by it for the coordinator itself. From then on both CAs are trusted, and
    /// agents' certificates are issued by the next one. The server goes on to show the certificate of the present one,
    /// which every member trusts.
    ///
    /// # Errors
    /// There is a next one already, or a file cannot be written. Once the folder of the next one is there, that is no
    /// error.
    pub fn begin_rollover(&mut self, names: &[String], now_ms: u64) -> Result<(), IdentityError> {
        let next = self.dir.join(NEXT);
        if self.next.is_some() {
            return Err(IdentityError::Exists(next));
        }
        issue::check_clock(&self.own.ca_der, now_ms)?;
        self.next = Some(match OwnSet::create(&next, &self.dir.join(PARTIAL), names, now_ms) {
            // Whether it was renamed shows in the folder alone.
            Err(error) if next.exists() => {
                tracing::warn!(%error, "the next CA is there, but its folder may not be durable yet");
                OwnSet::load(&next)?
            }
            made => made?,
        });
        Ok(())
    }

    /// Puts the next CA in the place of the present one, which is forgotten, key included.
    ///
    /// # Errors
    /// There is no next one, or a file cannot be written. Once the rollover has ended, that is no error: the next start
    /// ends what is left to do.
    pub fn finish_rollover(&mut self) -> Result<(), IdentityError> {
        let Some(mut next) = self.next.take() else { return Err(IdentityError::NoRollover) };
        let finishing = self.dir.join(FINISHING);
        if let Err(error) = files::rename(&next.folder, &finishing) {
            // Whether it was renamed shows in the folder alone.
            if !finishing.exists() {
                self.next = Some(next);
                return Err(error);
            }
        }
        next.folder = finishing;
        self.own = next;
        if let Err(error) = self.settle() {
            tracing::warn!(%error, "the files of the new CA are not in their place yet; the next start of `run` puts them there");
        }
        Ok(())
    }

    /// Ends a rollover whose last files were not put in their place.
    ///
    /// # Errors
    /// A file cannot be written. Nothing is lost then.
    pub fn settle(&mut self) -> Result<(), IdentityError> {
        let (finishing, partial) = (self.dir.join(FINISHING), self.dir.join(PARTIAL));
        if !finishing.exists() {
            return Ok(());
        }
        for name in FILES {
            files::copy_whole(&finishing.join(name), &self.dir.join(name))?;
        }
        self.own.folder.clone_from(&self.dir);
        files::remove_folder(&partial)?;
        files::rename(&finishing, &partial)?;
        files::remove_folder(&partial)
    }
}
