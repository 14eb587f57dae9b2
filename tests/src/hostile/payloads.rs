//! Payloads that no codec makes. The zstd frames are written by hand, since no compressor would.

const MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];
/// A single segment whose content's length stands in four bytes.
const DESCRIPTOR: u8 = 0xA0;
/// The most that one block may hold.
const BLOCK_BYTES: u32 = 128 << 10;

fn frame(content_bytes: u32) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.push(DESCRIPTOR);
    out.extend_from_slice(&content_bytes.to_le_bytes());
    out
}

/// `kind` 0: raw, 1: one byte repeated.
fn block(out: &mut Vec<u8>, last: bool, kind: u32, bytes: u32) {
    let head = u32::from(last) | kind << 1 | bytes << 3;
    out.extend_from_slice(&head.to_le_bytes()[..3]);
}

/// A zstd frame that says that its content has `declared` bytes, and holds `actual` times `byte`: four bytes for each 128
/// KiB.
#[must_use]
pub fn bomb(declared: u32, actual: u32, byte: u8) -> Vec<u8> {
    let mut out = frame(declared);
    let mut left = actual;
    loop {
        let bytes = left.min(BLOCK_BYTES);
        left -= bytes;
        block(&mut out, left == 0, 1, bytes);
        out.push(byte);
        if left == 0 {
            return out;
        }
    }
}

/// A zstd frame around `content` as it is.
#[must_use]
pub fn stored(content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
    let mut out = frame(length);
    let blocks = content.chunks(BLOCK_BYTES as usize);
    let last = blocks.len().saturating_sub(1);
    for (index, part) in blocks.enumerate() {
        block(&mut out, index == last, 0, u32::try_from(part.len()).unwrap_or(u32::MAX));
        out.extend_from_slice(part);
    }
    out
}

/// A payload of codec 0 whatever the values are: NaN and infinities too, which the codec's encoder refuses.
#[must_use]
pub fn planes(values: &[f32]) -> Vec<u8> {
    let plane = |byte: usize| values.iter().map(move |value| value.to_le_bytes()[byte]);
    stored(&(0..4).flat_map(plane).collect::<Vec<u8>>())
}

#[cfg(test)]
mod tests {
    use anabranch_common::codec::{CodecId, decode};
    use anabranch_common::manifest::{ModelManifest, TensorSpec};

    use super::*;

    /// A payload that is refused for being badly written would show nothing.
    #[test]
    fn what_is_written_by_hand_is_read_as_meant() {
        let params = 100_000;
        let tensor = TensorSpec { name: "w".into(), shape: vec![params as u64] };
        let manifest = ModelManifest::new(vec![tensor]).expect("valid");
        let mut values = vec![1.5; params];
        values[7] = f32::INFINITY;
        let decoded = decode(CodecId(0), &manifest, &planes(&values)).expect("a payload").into_dense();
        assert_eq!(decoded, values);
        let bytes = 4 * u32::try_from(params).expect("small");
        let decoded = decode(CodecId(0), &manifest, &bomb(bytes, bytes, 0xFF)).expect("a payload").into_dense();
        assert!(decoded.iter().all(|value| value.is_nan()));
        assert!(decode(CodecId(0), &manifest, &bomb(bytes, 64 * bytes, 0)).is_err());
    }
}
