//! Runnable examples, the quickstart first.
