//! Measurements in, choices out: pure, so that a choice can be repeated from a record.
//!
//! Times are compared as ratios to the default that was timed just before and after, never as bare
//! microseconds. For every layout of a job the best decode and prefill kernel are found, and the
//! layout is the one with the least
//!
//! ```text
//! decode weight * time of one token + prefill weight * time of one prompt token
//! ```
//!
//! The weights are 1 and 0 for decode, 0 and 1 for prefill. Balanced weighs 1 and 4: a session with
//! four prompt tokens for each token that is written, as in llama-bench's pp512 and tg128.
//!
//! Attention has one kernel for both phases, weighed in the same way.
//!
//! Of the kernels that skip what meets a zero the best is the one that takes the least on average over
//! the shares of lines needed that were timed, where no more counts than reading all takes. It serves up
//! to the share at which the upper end of its interval, in a straight line from one to the next, says
//! that reading all takes as long.
//!
//! What lies within the noise (the hypotenuse of two 95 % half-widths) is a tie. The default wins a
//! tie, and against it the interval is that of the best of many (Bonferroni's); a gain of less than 3 %
//! is no reason to leave it, nor one of less than 10 % by another distance to prefetch from memory,
//! or by another way to run. Else, among those that tie within 1 %, the simpler tile does (less
//! prefetching, unrolling, fewer activation rows, rows, columns), and among layouts the one declared
//! first.

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
