//! Numbers, texts and collections. bincode encodes numbers; counts are 64 bits wide and checked against what is left.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::{Layout, Reader, SchemaError, Writer};

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_little_endian().with_fixed_int_encoding()
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Layout for $number {
            fn write(&self, out: &mut Writer) -> Result<(), SchemaError> {
                let mut bytes = [0; size_of::<Self>()];
                bincode::encode_into_slice(self, &mut bytes, config()).map_err(malformed)?;
                out.raw(&bytes);
                Ok(())
            }

            fn read(input: &mut Reader<'_>) -> Result<Self, SchemaError> {
                let bytes = input.raw(size_of::<Self>(), stringify!($number))?;
                bincode::decode_from_slice(bytes, config()).map(|(value, _)| value).map_err(malformed)
            }
        }
    )*};
}

numbers!(u8, u16, u32, u64, i64, f32, f64, bool);

fn malformed(error: impl std::fmt::Display) -> SchemaError {
    SchemaError::Malformed(error.to_string())
}

/// Reads a count of items, each of which takes at least one byte.
fn count(input: &mut Reader<'_>, what: &'static str) -> Result<usize, SchemaError> {
    let claimed = u64::read(input)?;
    match usize::try_from(claimed) {
        Ok(count) if count <= input.remaining() => Ok(count),
        _ => Err(SchemaError::Truncated(what)),
    }
}

fn items<T: Layout, C: Default + Extend<T>>(input: &mut Reader<'_>) -> Result<C, SchemaError> {
    let mut collection = C::default();
    for _ in 0..count(input, "a list")? {
        collection.extend([T::read(input)?]);
    }
    Ok(collection)
}

fn write_items<'a, T: Layout + 'a>(
    items: impl ExactSizeIterator<Item = &'a T>,
    out: &mut Writer,
) -> Result<(), SchemaError> {
    (items.len() as u64).write(out)?;
    items.into_iter().try_for_each(|item| item.write(out))
}

impl Layout for String {
    fn write(&self, out: &mut Writer) -> Result<(), SchemaError> {
        (self.len() as u64).write(out)?;
        out.raw(self.as_bytes());
        Ok(())
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, SchemaError> {
        let count = count(input, "a text")?;
        let bytes = input.raw(count, "a text")?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(malformed)
    }
}

impl<const N: usize> Layout for [u8; N] {
    fn write(&self, out: &mut Writer) -> Result<(), SchemaError> {
        out.raw(self);
        Ok(())
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, SchemaError> {
        let mut array = [0; N];
        array.copy_from_slice(input.raw(N, "an array")?);
        Ok(array)
    }
}

impl<T: Layout> Layout for Vec<T> {
    fn write(&self, out: &mut Writer) -> Result<(), SchemaError> {
        write_items(self.iter(), out)
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, SchemaError> {
        items(input)
    }
}

impl<T: Layout> Layout for VecDeque<T> {
    fn write(&self, out: &mut Writer) -> Result<(), SchemaError> {
        write_items(self.iter(), out)
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, SchemaError> {
        items(input)
    }
}

impl<T: Layout + Ord> Layout for BTreeSet<T> {
    fn write(&self, out: &mut Writer) -> Result<(), SchemaError> {
        write_items(self.iter(), out)
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, SchemaError> {
        let entries: Vec<T> = items(input)?;
        ascending(&entries, |entry| entry)?;
        Ok(entries.into_iter().collect())
    }
}

impl<K: Layout + Ord, V: Layout> Layout for BTreeMap<K, V> {
    fn write(&self, out: &mut Writer) -> Result<(), SchemaError> {
        (self.len() as u64).write(out)?;
        for (key, value) in self {
            key.write(out)?;
            value.write(out)?;
        }
        Ok(())
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, SchemaError> {
        let entries: Vec<(K, V)> = items(input)?;
        ascending(&entries, |(key, _)| key)?;
        Ok(entries.into_iter().collect())
    }
}

/// Checks that keys ascend, so that a map has one form in bytes.
fn ascending<T, K: Ord>(entries: &[T], key: impl Fn(&T) -> &K) -> Result<(), SchemaError> {
    match entries.is_sorted_by(|before, after| key(before) < key(after)) {
        true => Ok(()),
        false => Err(SchemaError::Malformed("the keys of a map do not ascend".into())),
    }
}

impl<T: Layout> Layout for Option<T> {
    fn write(&self, out: &mut Writer) -> Result<(), SchemaError> {
        self.is_some().write(out)?;
        self.as_ref().map_or(Ok(()), |value| value.write(out))
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, SchemaError> {
        if bool::read(input)? { T::read(input).map(Some) } else { Ok(None) }
    }
}

impl Layout for [u64; 2] {
    fn write(&self, out: &mut Writer) -> Result<(), SchemaError> {
        self.iter().try_for_each(|number| number.write(out))
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, SchemaError> {
        Ok([u64::read(input)?, u64::read(input)?])
    }
}

macro_rules! pointers {
    ($($pointer:ident),*) => {$(
        impl<T: Layout> Layout for $pointer<T> {
            fn write(&self, out: &mut Writer) -> Result<(), SchemaError> {
                (**self).write(out)
            }

            fn read(input: &mut Reader<'_>) -> Result<Self, SchemaError> {
                T::read(input).map(Self::new)
            }
        }
    )*};
}

pointers!(Box, Arc);

macro_rules! tuples {
    ($(($($part:ident),+)),*) => {$(
        impl<$($part: Layout),+> Layout for ($($part,)+) {
            fn write(&self, out: &mut Writer) -> Result<(), SchemaError> {
                #[expect(non_snake_case, reason = "a variable for each type parameter")]
                let ($($part,)+) = self;
                $($part.write(out)?;)+
                Ok(())
            }

            fn read(input: &mut Reader<'_>) -> Result<Self, SchemaError> {
                Ok(($($part::read(input)?,)+))
            }
        }
    )*};
}

tuples!((A, B), (A, B, C), (A, B, C, D));
