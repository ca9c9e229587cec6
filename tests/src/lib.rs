//! Tests that cross the crates are in `tests/`, and those of single kernels in the package
//! `bitnet-kernel-tests`; this library is empty.
#![forbid(unsafe_code)]
