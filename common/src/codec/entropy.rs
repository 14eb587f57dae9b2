//! zstd with bounds.
