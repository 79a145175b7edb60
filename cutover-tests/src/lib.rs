//! Nothing: this package is its tests. See `tests/joint`.
