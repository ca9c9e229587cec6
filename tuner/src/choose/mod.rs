//! Choice of kernels from measurements: a pure function, so that a choice can be repeated from a
//! record.
//!
//! Times are compared as ratios to the default timed just before and after, never as microseconds.
//! For every layout of a job the best decode and the best prefill kernel are found; the layout
//! chosen has the least
//!
//! ```text
//! decode weight * time of one token + prefill weight * time of one prompt token
//! ```
//!
//! The weights are 1 and 0 for decode, 0 and 1 for prefill, 1 and 4 for balanced: a session with
//! four prompt tokens for each token written, as in llama-bench's pp512 and tg128.
//!
//! Attention has one kernel for both phases, weighed in the same way.
//!
//! Of the kernels for activation sparsity the best takes the least time on average over the
//! densities that were timed, where no ratio counts as more than dense decode's. It serves up to
//! the density at which the upper end of its interval, interpolated linearly, reaches that of dense
//! decode.
//!
//! A difference within the noise (the hypotenuse of two 95 % half-widths) is a tie. The default
//! wins a tie, and against it the interval is that of the best of many (Bonferroni's). The default
//! also stays where the gain is less than 3 %, or less than 10 % by a change of the prefetch
//! distance from memory or of the placement. Otherwise, among those that tie within 1 %, the
//! simpler tile wins (less prefetching, unrolling, fewer activation rows, rows, columns), and among
//! layouts the one declared first.

mod choice;
mod gather;
mod job;
mod placement;
mod settle;
#[cfg(test)]
mod tests;
mod total;

pub use choice::{ChosenGather, ChosenKernel, JobChoice};
pub use job::{choose, defaults};
pub use placement::placement;
pub(crate) use settle::SIMPLICITY;
pub(crate) use total::built_in;
pub use total::{Demand, Prediction, gain_of_made, per_token_us, total_share_of_limit};
