//! The forward pass on CPUs: threads, memory, kernels, and the model they run.

pub(crate) mod attention;
pub mod blocks;
mod control_group;
mod finite;
mod forward;
pub mod gather;
pub mod head;
pub mod host;
pub mod kernels;
pub mod kv_cache;
pub mod mapped;
pub mod matmul;
pub mod memory;
pub mod model;
pub mod observe;
pub mod packing;
pub mod reference;
pub mod rope;
pub(crate) mod rows;
mod saved_kv;
pub mod session;
pub mod sparse;
mod stages;
pub mod table;
mod tensors;
pub mod threads;
pub mod weights;
