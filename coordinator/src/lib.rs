//! Admits, journals and merges updates as they arrive; survives kill -9 with the same bits.
