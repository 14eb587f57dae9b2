//! The order of a type's bytes, and the macro that states it.

use super::SchemaError;

/// A type with bytes.
pub trait Layout: Sized {
    /// Appends the bytes of this value.
    ///
    /// # Errors
    /// The writer's version has no such variant.
    fn write(&self, out: &mut Writer) -> Result<(), SchemaError>;

    /// Reads a value of the reader's version.
    ///
    /// # Errors
    /// The bytes end too soon or are not valid.
    fn read(input: &mut Reader<'_>) -> Result<Self, SchemaError>;
}

/// Bytes that are being written, in one version of the schema.
#[derive(Debug)]
pub struct Writer {
    version: u16,
    bytes: Vec<u8>,
}

impl Writer {
    pub(super) fn new(version: u16) -> Self {
        Self { version, bytes: Vec::new() }
    }

    /// Returns whether what exists since `version` is part of these bytes.
    #[must_use]
    pub fn has(&self, version: u16) -> bool {
        self.version >= version
    }

    /// Appends raw bytes.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends a variant's tag.
    ///
    /// # Errors
    /// The variant exists only since a newer version than the one that is written.
    pub fn tag(&mut self, kind: &'static str, variant: &'static str, tag: u32, since: u16) -> Result<(), SchemaError> {
        if !self.has(since) {
            return Err(SchemaError::Newer { kind, variant, version: self.version });
        }
        tag.write(self)
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Bytes that are being read, of one version of the schema.
#[derive(Debug)]
pub struct Reader<'a> {
    version: u16,
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(version: u16, bytes: &'a [u8]) -> Self {
        Self { version, bytes }
    }

    /// Returns whether what exists since `version` is part of these bytes.
    #[must_use]
    pub fn has(&self, version: u16) -> bool {
        self.version >= version
    }

    /// Bytes that are left.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.bytes.len()
    }

    /// Takes the next `count` bytes.
    ///
    /// # Errors
    /// Fewer are left.
    pub fn raw(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], SchemaError> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(SchemaError::Truncated(what))?;
        self.bytes = rest;
        Ok(taken)
    }
}

/// States the bytes of types: a struct's fields in their order, an enum's variants with their tags (u32).
///
/// ```text
///  layout! {
///      newtype Position;
///      struct Plan { local_steps, lr_factor, codec since 6 or None }
///      enum LeaseEnd { 0 = Expired, 1 = Returned, 2 = Superseded, 3 = Revoked since 6 }
///      enum Verdict { 0 = Accepted { position, version }, 1 = Refused { reason } }
///  }
/// ```
/// `since N or VALUE`: the field exists since schema version N, and `VALUE` is what older bytes mean.
#[macro_export]
macro_rules! layout {
    () => {};

    (newtype $($name:ident),+ $(,)?; $($rest:tt)*) => {
        $(
            impl $crate::schema::Layout for $name {
                fn write(&self, out: &mut $crate::schema::Writer) -> Result<(), $crate::schema::SchemaError> {
                    $crate::schema::Layout::write(&self.0, out)
                }

                fn read(input: &mut $crate::schema::Reader<'_>) -> Result<Self, $crate::schema::SchemaError> {
                    Ok(Self($crate::schema::Layout::read(input)?))
                }
            }
        )+
        $crate::layout! { $($rest)* }
    };

    (struct $name:ident { $($field:ident $(since $since:literal or $older:expr)?),* $(,)? } $($rest:tt)*) => {
        impl $crate::schema::Layout for $name {
            fn write(&self, out: &mut $crate::schema::Writer) -> Result<(), $crate::schema::SchemaError> {
                let Self { $($field),* } = self;
                $($crate::layout!(@write out, $field $(, $since)?);)*
                Ok(())
            }

            fn read(input: &mut $crate::schema::Reader<'_>) -> Result<Self, $crate::schema::SchemaError> {
                $(let $field = $crate::layout!(@read input $(, $since, $older)?);)*
                Ok(Self { $($field),* })
            }
        }
        $crate::layout! { $($rest)* }
    };

    (enum $name:ident {
        $($tag:literal = $variant:ident
            $(($inner:ident))?
            $({ $($field:ident $(since $since:literal or $older:expr)?),* $(,)? })?
            $(since $born:literal)?),* $(,)?
    } $($rest:tt)*) => {
        impl $crate::schema::Layout for $name {
            fn write(&self, out: &mut $crate::schema::Writer) -> Result<(), $crate::schema::SchemaError> {
                match self {
                    $(Self::$variant $(($inner))? $({ $($field),* })? => {
                        out.tag(stringify!($name), stringify!($variant), $tag, $crate::layout!(@born $($born)?))?;
                        $($crate::schema::Layout::write($inner, out)?;)?
                        $($($crate::layout!(@write out, $field $(, $since)?);)*)?
                    })*
                }
                Ok(())
            }

            fn read(input: &mut $crate::schema::Reader<'_>) -> Result<Self, $crate::schema::SchemaError> {
                let tag = <u32 as $crate::schema::Layout>::read(input)?;
                match tag {
                    $($tag if input.has($crate::layout!(@born $($born)?)) => {
                        $(let $inner = $crate::schema::Layout::read(input)?;)?
                        $($(let $field = $crate::layout!(@read input $(, $since, $older)?);)*)?
                        Ok(Self::$variant $(($inner))? $({ $($field),* })?)
                    })*
                    tag => Err($crate::schema::SchemaError::UnknownVariant { kind: stringify!($name), tag }),
                }
            }
        }
        $crate::layout! { $($rest)* }
    };

    (@write $out:ident, $field:ident) => { $crate::schema::Layout::write($field, $out)? };
    (@write $out:ident, $field:ident, $since:literal) => {
        if $out.has($since) { $crate::schema::Layout::write($field, $out)?; }
    };
    (@read $input:ident) => { $crate::schema::Layout::read($input)? };
    (@read $input:ident, $since:literal, $older:expr) => {
        if $input.has($since) { $crate::schema::Layout::read($input)? } else { $older }
    };
    (@born) => { 0 };
    (@born $born:literal) => { $born };
}
