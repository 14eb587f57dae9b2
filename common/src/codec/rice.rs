//! rice
