//! The thread pool: every worker runs the same closure (SPMD) and meets the others at barriers.
//!
//! Decoding one token is one `Pool::run`; inside it the phases of the forward pass are separated
//! by `Worker::barrier`. A wait spins for a bounded time, because the others are usually
//! microseconds away, and then sleeps in the kernel. When the pool has more threads than the
//! process may use CPUs, spinning would only keep the others from running, so waits sleep at once
//! (see [`Pool::warning`]).
//!
//! Workers may be bound to CPUs, one each ([`PoolOptions::pinning`]). Helpers are bound for life;
//! worker 0 is the caller's thread and is bound only for the length of a run, so that threads it
//! starts between runs, and queries for the number of CPUs, find the same as without a pool. That
//! costs a few microseconds a run: about a thousandth of a token of a model of 1 GB, and more than
//! it gains with one of a few MB.
//!
//! A worker that panics poisons the run: all others leave at the next barrier, `Pool::run` returns
//! an error, and the pool is ready for the next run.

mod affinity;
mod claims;
mod gate;
mod governor;
mod pool;
mod queue;
mod shared;

pub(crate) use pool::{Load, Worker};
pub use pool::{MAX_THREADS, Pool, PoolOptions};
pub(crate) use shared::SharedSlice;
