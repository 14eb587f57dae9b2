//! Trains on local shards and sends compressed, error-corrected deltas.
