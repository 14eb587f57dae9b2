//! Participation weights.
