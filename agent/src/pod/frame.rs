//! How parcels lie on a stream: a head in a frame, and the values behind it as they are.
//!
//! ```text
//!  ParcelHead { from, to, content, checksum } │ values of the first vector │ values of the second one │ ...
//!  a frame, with a checksum of its own        │ 4 bytes each, little endian; 2 where activations travel as bf16; bytes as they are
//! ```
//! Activations that travel as int8 are two vectors: a scale for each row in 4 bytes, and a code for each value in one.
//!
//! Neither side keeps the bytes of a parcel beside its values: they are written and read a piece at a time, and memory for values
//! is taken as they arrive.

use std::time::Duration;

use anabranch_common::codec::dense;
use anabranch_common::limits;
use anabranch_common::spec::Activations;
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::pod::{ParcelContent, ParcelHead};
use anabranch_io::frames::{self, Format, FrameIoError};
use quinn::{RecvStream, SendStream};

use super::{Address, LayerContent, Parcel, rows};

/// Why a parcel was not sent or received.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ParcelError {
    /// The stream broke, or brought something else.
    #[error(transparent)]
    Frame(#[from] FrameIoError),
    /// Damaged on the way.
    #[error("a parcel does not match its checksum")]
    Checksum,
    /// Longer than any such parcel of the round.
    #[error("a parcel of {found} values, more than the {most} that such a parcel can have in this round")]
    TooLarge {
        /// What its head says.
        found: u64,
        /// The bound.
        most: usize,
    },
    /// More than the order of the round allows waits already.
    #[error("sends more than the order of the round allows: {parcels} parcels of {values} values wait")]
    Flood {
        /// Parcels that wait, and the one too many.
        parcels: usize,
        /// Their values.
        values: usize,
    },
    /// Not between a part of the sender and a part of this member.
    #[error("a parcel from part {from} to part {to}, which are not its sender's and this member's")]
    Route {
        /// The part that it says it is from.
        from: u32,
        /// The part that it says it is for.
        to: u32,
    },
    /// Activations in another form than the run's.
    #[error("activations in another form than pod.activations says")]
    Form,
}

/// The values of a vector, as they travel.
#[derive(Debug, Clone, Copy)]
enum Values<'a> {
    F32(&'a [f32]),
    Bf16(&'a [f32]),
    U32(&'a [u32]),
    Bytes(&'a [u8]),
    /// The scale of each row of so many columns.
    Scales(&'a [f32], usize),
    /// The code of each value in such rows.
    Codes(&'a [f32], usize),
}

/// Values of a piece, which has at most `limits::FRAME_READ_BYTES`.
const PIECE: usize = limits::FRAME_READ_BYTES / BYTES_PER_VALUE;
/// Bytes of a value.
pub(super) const BYTES_PER_VALUE: usize = 4;

impl Values<'_> {
    fn len(self) -> usize {
        match self {
            Self::F32(values) | Self::Bf16(values) | Self::Codes(values, _) => values.len(),
            Self::U32(values) => values.len(),
            Self::Bytes(bytes) => bytes.len(),
            Self::Scales(values, columns) => values.len().div_ceil(columns),
        }
    }

    /// Puts the bytes of the piece that begins at the value `at` into `piece`.
    fn fill(self, at: usize, piece: &mut Vec<u8>) {
        piece.clear();
        let end = self.len().min(at + PIECE);
        match self {
            Self::F32(values) => values[at..end].iter().for_each(|value| piece.extend(value.to_le_bytes())),
            Self::Bf16(values) => values[at..end].iter().for_each(|value| piece.extend(to_half(*value).to_le_bytes())),
            Self::U32(values) => values[at..end].iter().for_each(|value| piece.extend(value.to_le_bytes())),
            Self::Bytes(bytes) => piece.extend(&bytes[at..end]),
            Self::Scales(values, columns) => {
                let rows = values.chunks(columns).skip(at).take(end - at);
                rows.for_each(|row| piece.extend(rows::scale(row).to_le_bytes()));
            }
            Self::Codes(values, columns) => {
                // Whole rows, of which the first and the last one may lie in other pieces too.
                for (row, start) in values.chunks(columns).zip((0..).step_by(columns)).skip(at / columns) {
                    if start >= end {
                        break;
                    }
                    let scale = rows::scale(row);
                    let here = &row[at.saturating_sub(start)..row.len().min(end - start)];
                    piece.extend(here.iter().flat_map(|value| rows::code(*value, scale).to_le_bytes()));
                }
            }
        }
    }
}

/// The bf16 of a value. Stages have rounded what they send as bf16, so that nothing is lost here, also of a value that is not
/// finite; one that was not rounded is rounded to the nearest.
fn to_half(value: f32) -> u16 {
    let [low, mid, high, top] = value.to_bits().to_le_bytes();
    let upper = u16::from_le_bytes([high, top]);
    match (low, mid) {
        (0, 0) => upper,
        // A quiet one, lest it become an infinity.
        _ if value.is_nan() => upper | 0x40,
        _ => dense::to_bf16(value),
    }
}

fn of_activations(values: &[f32], columns: usize, form: Activations) -> [Values<'_>; 2] {
    let (none, columns) = (Values::F32(&[]), columns.max(1));
    match form {
        Activations::F32 => [Values::F32(values), none],
        Activations::Bf16 => [Values::Bf16(values), none],
        Activations::Int8 => [Values::Scales(values, columns), Values::Codes(values, columns)],
    }
}

fn vectors(parcel: &Parcel, form: Activations) -> [Values<'_>; 3] {
    let none = Values::F32(&[]);
    match parcel {
        Parcel::Weights { own, tied, held } => [Values::F32(own), Values::F32(tied), Values::F32(held)],
        Parcel::Activations { values, shape } | Parcel::Gradient { values, shape } => {
            let [scales, codes] = of_activations(values, shape[1], form);
            [scales, codes, none]
        }
        Parcel::Labels(labels) => [Values::U32(labels), none, none],
        Parcel::Loss(_) | Parcel::Ended(_) => [none; 3],
        Parcel::TiedSum(values) | Parcel::Base { values, .. } | Parcel::Chunk { values, .. } => {
            [Values::F32(values), none, none]
        }
        Parcel::Tied { values, moved, .. } => [Values::F32(values), Values::F32(moved), none],
        Parcel::Layer(LayerContent { left_out, payload, .. }) => [Values::F32(left_out), Values::Bytes(payload), none],
    }
}

/// Values in a parcel; four bytes of a payload count as one.
pub(super) fn values_of(parcel: &Parcel) -> usize {
    match parcel {
        Parcel::Layer(LayerContent { left_out, payload, .. }) => {
            left_out.len() + payload.len().div_ceil(BYTES_PER_VALUE)
        }
        parcel => vectors(parcel, Activations::F32).iter().map(|values| values.len()).sum(),
    }
}

/// Values behind a head.
pub(super) fn values_behind(content: &ParcelContent) -> u64 {
    match *content {
        ParcelContent::Weights { own, tied, held } => own.saturating_add(tied).saturating_add(held),
        ParcelContent::Tied { values, moved, .. } => values.saturating_add(moved),
        ParcelContent::Layer { left_out, bytes, .. } => left_out.saturating_add(bytes.div_ceil(BYTES_PER_VALUE as u64)),
        // Rows without columns have scales.
        ParcelContent::Activations { rows, columns, .. } | ParcelContent::Gradient { rows, columns, .. } => {
            rows.saturating_mul(columns.max(1))
        }
        ParcelContent::Labels { labels: values }
        | ParcelContent::TiedSum { values }
        | ParcelContent::Base { values, .. }
        | ParcelContent::Chunk { values, .. } => values,
        ParcelContent::Loss { .. } | ParcelContent::Ended { .. } => 0,
    }
}

/// The form that a head gives for activations, if it is of such.
pub(super) fn form_of(content: &ParcelContent) -> Option<Activations> {
    match *content {
        ParcelContent::Activations { form, .. } | ParcelContent::Gradient { form, .. } => Some(form),
        _ => None,
    }
}

pub(super) fn content_of(parcel: &Parcel, form: Activations) -> ParcelContent {
    let count = |values: &[f32]| values.len() as u64;
    match parcel {
        Parcel::Weights { own, tied, held } => {
            ParcelContent::Weights { own: count(own), tied: count(tied), held: count(held) }
        }
        Parcel::Activations { shape: [rows, columns], .. } => {
            ParcelContent::Activations { rows: *rows as u64, columns: *columns as u64, form }
        }
        Parcel::Gradient { shape: [rows, columns], .. } => {
            ParcelContent::Gradient { rows: *rows as u64, columns: *columns as u64, form }
        }
        Parcel::Labels(labels) => ParcelContent::Labels { labels: labels.len() as u64 },
        Parcel::Loss(sum) => ParcelContent::Loss { sum: *sum },
        Parcel::TiedSum(values) => ParcelContent::TiedSum { values: count(values) },
        Parcel::Tied { version, values, moved } => {
            ParcelContent::Tied { version: *version, values: count(values), moved: count(moved) }
        }
        Parcel::Layer(LayerContent { layer, payload, left_out, figures }) => ParcelContent::Layer {
            layer: *layer,
            left_out: count(left_out),
            bytes: payload.len() as u64,
            figures: *figures,
        },
        Parcel::Base { seed, values } => ParcelContent::Base { seed: *seed, values: count(values) },
        Parcel::Chunk { number, values } => ParcelContent::Chunk { number: *number, values: count(values) },
        Parcel::Ended(digest) => ParcelContent::Ended { digest: *digest },
    }
}

fn part(index: usize) -> u32 {
    u32::try_from(index).expect("a round has few parts")
}

/// Sends a parcel. Each piece of it has to be taken within `patience`; `moved` is called after each.
///
/// # Errors
/// The stream broke, or a piece was not taken.
pub(super) async fn send(
    stream: &mut SendStream,
    version: u16,
    (address, parcel): (Address, &Parcel),
    form: Activations,
    patience: Duration,
    moved: impl Fn(),
) -> Result<(), ParcelError> {
    let vectors = vectors(parcel, form);
    let mut piece = Vec::with_capacity(limits::FRAME_READ_BYTES);
    let mut checksum = 0;
    for values in vectors {
        for at in (0..values.len()).step_by(PIECE) {
            values.fill(at, &mut piece);
            checksum = crc32c::crc32c_append(checksum, &piece);
        }
    }
    let head =
        ParcelHead { from: part(address.from), to: part(address.to), content: content_of(parcel, form), checksum };
    let format = Format { kind: FrameKind::Parcel, version };
    frames::send(stream, format, &head, limits::POD_PARCEL_HEAD_BYTES, patience).await?;
    for values in vectors {
        for at in (0..values.len()).step_by(PIECE) {
            values.fill(at, &mut piece);
            let written = tokio::time::timeout(patience, stream.write_all(&piece)).await;
            written.map_err(|_| FrameIoError::TimedOut)?.map_err(FrameIoError::from)?;
            moved();
        }
    }
    Ok(())
}

/// Receives the values behind `head`, whose lengths were checked. Each piece has to come within `patience`, and all of them at
/// `limits::UPLOAD_MIN_BYTES_PER_S` at least.
///
/// # Errors
/// The stream ended or brought damaged values, or they do not come.
pub(super) async fn receive(
    stream: &mut RecvStream,
    head: &ParcelHead,
    patience: Duration,
) -> Result<Parcel, ParcelError> {
    let bytes = values_behind(&head.content).saturating_mul(4);
    let all = patience.saturating_add(Duration::from_secs(bytes / limits::UPLOAD_MIN_BYTES_PER_S));
    let mut values = Arriving { stream, patience, checksum: 0, piece: vec![0; limits::FRAME_READ_BYTES] };
    let received = tokio::time::timeout(all, parcel(&head.content, &mut values)).await;
    let parcel = received.map_err(|_| FrameIoError::TimedOut)??;
    if values.checksum == head.checksum { Ok(parcel) } else { Err(ParcelError::Checksum) }
}

async fn parcel(content: &ParcelContent, arriving: &mut Arriving<'_>) -> Result<Parcel, ParcelError> {
    Ok(match *content {
        ParcelContent::Weights { own, tied, held } => Parcel::Weights {
            own: arriving.f32(own).await?,
            tied: arriving.f32(tied).await?,
            held: arriving.f32(held).await?,
        },
        ParcelContent::Activations { rows, columns, form } => Parcel::Activations {
            values: arriving.activations(rows, columns, form).await?,
            shape: [index(rows)?, index(columns)?],
        },
        ParcelContent::Gradient { rows, columns, form } => Parcel::Gradient {
            values: arriving.activations(rows, columns, form).await?,
            shape: [index(rows)?, index(columns)?],
        },
        ParcelContent::Labels { labels } => Parcel::Labels(arriving.take(labels, u32::from_le_bytes).await?),
        ParcelContent::Loss { sum } => Parcel::Loss(sum),
        ParcelContent::TiedSum { values } => Parcel::TiedSum(arriving.f32(values).await?),
        ParcelContent::Tied { version, values, moved } => {
            Parcel::Tied { version, values: arriving.f32(values).await?, moved: arriving.f32(moved).await? }
        }
        ParcelContent::Layer { layer, left_out, bytes, figures } => {
            let left_out = arriving.f32(left_out).await?;
            let payload = arriving.take(bytes, |[byte]: [u8; 1]| byte).await?;
            Parcel::Layer(LayerContent { layer, payload, left_out, figures })
        }
        ParcelContent::Base { seed, values } => Parcel::Base { seed, values: arriving.f32(values).await? },
        ParcelContent::Chunk { number, values } => Parcel::Chunk { number, values: arriving.f32(values).await? },
        ParcelContent::Ended { digest } => Parcel::Ended(digest),
    })
}

fn index(count: u64) -> Result<usize, ParcelError> {
    usize::try_from(count).map_err(|_| ParcelError::TooLarge { found: count, most: usize::MAX })
}

/// Values that are on their way.
struct Arriving<'a> {
    stream: &'a mut RecvStream,
    patience: Duration,
    checksum: u32,
    piece: Vec<u8>,
}

impl Arriving<'_> {
    async fn f32(&mut self, count: u64) -> Result<Vec<f32>, ParcelError> {
        self.take(count, f32::from_le_bytes).await
    }

    async fn activations(&mut self, rows: u64, columns: u64, form: Activations) -> Result<Vec<f32>, ParcelError> {
        let count = rows.saturating_mul(columns);
        match form {
            Activations::F32 => self.f32(count).await,
            Activations::Bf16 => self.take(count, |half| dense::from_bf16(u16::from_le_bytes(half))).await,
            Activations::Int8 => {
                let scales = self.f32(rows).await?;
                let mut values = self.take(count, |code| f32::from(i8::from_le_bytes(code))).await?;
                for (row, scale) in values.chunks_mut(index(columns)?.max(1)).zip(scales) {
                    row.iter_mut().for_each(|value| *value *= scale);
                }
                Ok(values)
            }
        }
    }

    async fn take<T, const N: usize>(
        &mut self,
        count: u64,
        value: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>, ParcelError> {
        let count = index(count)?;
        let mut values = Vec::new();
        while values.len() < count {
            let left = count - values.len();
            let piece = &mut self.piece[..N * left.min(PIECE)];
            let read = tokio::time::timeout(self.patience, self.stream.read_exact(piece)).await;
            read.map_err(|_| FrameIoError::TimedOut)?.map_err(FrameIoError::from)?;
            self.checksum = crc32c::crc32c_append(self.checksum, piece);
            // Twice what is there, and never more than there will be.
            if values.capacity() - values.len() < piece.len() / N {
                values.reserve_exact(left.min(values.len().max(PIECE)));
            }
            values.extend(piece.as_chunks().0.iter().map(|bytes| value(*bytes)));
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_bf16_already_travels_as_it_is() {
        for half in 0..=u16::MAX {
            assert_eq!(to_half(dense::from_bf16(half)), half);
        }
        assert_eq!(to_half(f32::from_bits(0x3F80_8001)), 0x3F81, "rounded to the nearest");
        let nan = f32::from_bits(0x7F80_0001);
        assert!(dense::from_bf16(to_half(nan)).is_nan(), "and no infinity");
    }
}
