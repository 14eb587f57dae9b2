//! Fault injection, scenarios and benchmarks against the real parts.
