//! zstd with bounds: one frame of a length that is known beforehand, and nothing after it.

use std::cell::RefCell;

use zstd::bulk::Decompressor;
use zstd::zstd_safe;

use super::DecodeError;
use crate::limits;

/// Fast, and within a few percent of the best that zstd reaches on shuffled planes.
const LEVEL: i32 = 1;
/// The most that zstd can make of one byte: a block of 128 KiB from four bytes. Fewer bytes than this cannot hold the
/// content that is expected, so nothing is allocated for them.
pub(super) const MAX_EXPANSION: usize = 1 << 15;

/// `bytes` as one zstd frame that states its content's length.
///
/// # Panics
/// When memory runs out inside of zstd: compressing into a buffer of the bound's size cannot fail otherwise.
#[must_use]
pub fn compress(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, LEVEL).expect("a buffer of compress_bound bytes holds every frame")
}

/// The content of the frame in `bytes`, which must be the only one and hold exactly `expected` bytes. Allocates that
/// many, whatever the frame declares.
///
/// # Errors
/// Anything else.
pub fn decompress(bytes: &[u8], expected: usize) -> Result<Vec<u8>, DecodeError> {
    let frame = zstd_safe::find_frame_compressed_size(bytes).map_err(|_| DecodeError::Truncated("a zstd frame"))?;
    if frame != bytes.len() {
        return Err(DecodeError::Trailing(bytes.len().saturating_sub(frame)));
    }
    match zstd_safe::get_frame_content_size(bytes) {
        Ok(Some(declared)) if declared == expected as u64 => {}
        Ok(Some(found)) if found > expected as u64 => {
            return Err(DecodeError::TooLarge { what: "content of the zstd frame", found, max: expected as u64 });
        }
        Ok(Some(_)) => return Err(DecodeError::Truncated("the content of a zstd frame")),
        Ok(None) | Err(_) => return Err(DecodeError::Invalid("a zstd frame without its content's length")),
    }
    if expected > bytes.len().saturating_mul(MAX_EXPANSION) {
        return Err(DecodeError::Truncated("a zstd frame"));
    }
    let mut content = Vec::with_capacity(expected);
    let written = inflate(bytes, &mut content).map_err(|_| DecodeError::Invalid("a zstd frame"))?;
    if written != expected {
        return Err(DecodeError::Truncated("the content of a zstd frame"));
    }
    Ok(content)
}

thread_local! {
    /// About 100 KB, for which small frames would otherwise pay each time.
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Fills `content` up to its capacity; a decompressor that has failed is not used again.
fn inflate(bytes: &[u8], content: &mut Vec<u8>) -> std::io::Result<usize> {
    DECOMPRESSOR.with_borrow_mut(|kept| {
        let mut decompressor = match kept.take() {
            Some(decompressor) => decompressor,
            None => {
                let mut fresh = Decompressor::new()?;
                fresh.window_log_max(limits::ZSTD_WINDOW_LOG)?;
                fresh
            }
        };
        let written = decompressor.decompress_to_buffer(bytes, content)?;
        *kept = Some(decompressor);
        Ok(written)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_comes_back_and_only_at_its_own_length() {
        let content: Vec<u8> = (0..300_000u64).map(|i| (i * i % 251).to_le_bytes()[0]).collect();
        let frame = compress(&content);
        assert_eq!(decompress(&frame, content.len()), Ok(content.clone()));
        assert!(matches!(decompress(&frame, content.len() - 1), Err(DecodeError::TooLarge { .. })));
        assert!(matches!(decompress(&frame, content.len() + 1), Err(DecodeError::Truncated(_))));
    }

    #[test]
    fn a_second_frame_a_skippable_frame_and_stray_bytes_are_refused() {
        let frame = compress(b"content");
        let with = |after: &[u8]| [&frame[..], after].concat();
        assert_eq!(decompress(&with(b"x"), 7), Err(DecodeError::Trailing(1)));
        assert_eq!(decompress(&with(&frame), 7), Err(DecodeError::Trailing(frame.len())));
        let skippable = [0x50, 0x2A, 0x4D, 0x18, 3, 0, 0, 0, 1, 2, 3];
        assert_eq!(decompress(&with(&skippable), 7), Err(DecodeError::Trailing(skippable.len())));
        assert!(decompress(&[&skippable[..], &frame].concat(), 7).is_err());
        assert!(decompress(&skippable, 7).is_err());
        assert!(decompress(b"", 7).is_err());
    }

    #[test]
    fn a_frame_that_declares_more_than_it_can_hold_is_refused_before_its_buffer_exists() {
        // Magic, a single segment with an eight-byte content size of 2^50, and one empty last block.
        let mut bomb = vec![0x28, 0xB5, 0x2F, 0xFD, 0xE0];
        bomb.extend_from_slice(&(1u64 << 50).to_le_bytes());
        bomb.extend_from_slice(&[1, 0, 0]);
        assert!(matches!(decompress(&bomb, 4096), Err(DecodeError::TooLarge { .. })));
        assert_eq!(decompress(&bomb, 1 << 50), Err(DecodeError::Truncated("a zstd frame")));
    }

    #[test]
    fn the_most_compressible_content_passes() {
        let zeros = vec![0; 64 << 20];
        let frame = compress(&zeros);
        assert!(frame.len() < 16 << 10, "64 MiB of zeros take {} bytes", frame.len());
        assert_eq!(decompress(&frame, zeros.len()), Ok(zeros));
    }
}
