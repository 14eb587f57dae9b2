//! TensorBoard's event files: TFRecords, each a protobuf `Event`.
//!
//! | TFRecord | bytes |
//! |---|---|
//! | length of the data | 8, little-endian |
//! | masked CRC-32C of these 8 bytes | 4 |
//! | data | as many |
//! | masked CRC-32C of the data | 4 |
//!
//! | message | fields that are written here: number, type |
//! |---|---|
//! | `Event` | `wall_time` 1 double, `step` 2 int64, `file_version` 3 string, `summary` 5 `Summary`, `session_log` 7 `SessionLog` |
//! | `Summary` | `value` 1 `Value`, repeated |
//! | `Value` | `tag` 1 string, `simple_value` 2 float |
//! | `SessionLog` | `status` 1 enum: 1 is START |
//!
//! Seven fields of a format that does not change any more are written by hand: a library for protobuf, its derive macro and
//! the messages in Rust would be longer than this file.

/// What an event says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum What<'a> {
    /// A file begins.
    Version,
    /// A process begins: what earlier files say of this step and later ones counts no more.
    Start,
    /// Figures at a step, each with its tag.
    Scalars(&'a [(&'a str, f64)]),
}

/// Returns an event as a record of an event file. `at_s` is Unix time in seconds.
pub(super) fn record(at_s: f64, step: u64, what: What<'_>) -> Vec<u8> {
    let mut event = Vec::new();
    key(&mut event, 1, Wire::Eight);
    event.extend(at_s.to_le_bytes());
    if step > 0 {
        key(&mut event, 2, Wire::Varint);
        varint(&mut event, step);
    }
    match what {
        What::Version => nested(&mut event, 3, b"brain.Event:2"),
        What::Start => {
            let mut log = Vec::new();
            key(&mut log, 1, Wire::Varint);
            varint(&mut log, 1);
            nested(&mut event, 7, &log);
        }
        What::Scalars(scalars) => nested(&mut event, 5, &summary(scalars)),
    }
    framed(&event)
}

fn summary(scalars: &[(&str, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in scalars {
        let mut scalar = Vec::new();
        nested(&mut scalar, 1, tag.as_bytes());
        key(&mut scalar, 2, Wire::Four);
        #[expect(clippy::cast_possible_truncation, reason = "the format has f32")]
        scalar.extend((*value as f32).to_le_bytes());
        nested(&mut summary, 1, &scalar);
    }
    summary
}

/// How a field is laid out.
#[derive(Debug, Clone, Copy)]
enum Wire {
    Varint = 0,
    Eight = 1,
    Bytes = 2,
    Four = 5,
}

fn key(out: &mut Vec<u8>, field: u8, wire: Wire) {
    out.push(field << 3 | wire as u8);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

fn nested(out: &mut Vec<u8>, field: u8, content: &[u8]) {
    key(out, field, Wire::Bytes);
    varint(out, content.len() as u64);
    out.extend(content);
}

fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), data, &masked(data)].concat()
}

/// The checksum of a TFRecord: stored checksums of checksums would be weak.
fn masked(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the `tensorboard` package writes it: `RecordWriter` with `Event(wall_time=1.5, step=300, ...)`.
    #[test]
    fn a_record_is_laid_out_as_others_lay_it_out() {
        let bytes = record(1.5, 300, What::Scalars(&[("loss", 0.25)]));
        let data = [
            &[0x09][..],
            &1.5f64.to_le_bytes(),
            &[0x10, 0xac, 0x02, 0x2a, 0x0d, 0x0a, 0x0b, 0x0a, 0x04],
            b"loss",
            &[0x15],
            &0.25f32.to_le_bytes(),
        ]
        .concat();
        assert_eq!(bytes[..8], (data.len() as u64).to_le_bytes());
        assert_eq!(bytes[12..bytes.len() - 4], data);
        assert_eq!(bytes.len(), 8 + 4 + data.len() + 4);
    }

    /// The value that TensorFlow's own test of the mask has for `crc32c` of "foo".
    #[test]
    fn checksums_are_masked() {
        let crc = crc32c::crc32c(b"foo");
        assert_eq!(u32::from_le_bytes(masked(b"foo")), ((crc >> 15) | (crc << 17)).wrapping_add(0xa282_ead8));
    }
}
