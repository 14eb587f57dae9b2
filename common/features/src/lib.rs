//! Empty: the manifest of this package is its content.
