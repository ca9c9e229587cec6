//! Measures, chooses, writes a profile.
#![forbid(unsafe_code)]
