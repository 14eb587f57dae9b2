//! Stores in buckets of real servers on loopback, which the tests start: two implementations of S3 that know nothing of
//! each other, and a directory.
//!
//! Both servers check the condition of a put and write later. So each stands behind a proxy that lets one request through
//! at a time, as their documentation does not promise and a real object store does.

mod process;
mod proxy;
mod seams;
mod servers;
mod verbs;
