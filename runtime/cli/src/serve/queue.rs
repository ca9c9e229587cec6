//! The count of texts that are written or wait, and its bound.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use super::error::ApiError;

/// Longest time after which a client that was sent away is asked to come back, in seconds.
const LONGEST_WAIT: f64 = 60.0;
/// Weight of what was learnt before against the time of another text.
const MEMORY: f64 = 0.8;

/// The bound of texts in the server.
#[derive(Debug)]
pub struct Queue {
    /// Texts that are written at once, and texts that may wait.
    slots: usize,
    waiting: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    count: usize,
    /// Mean time of a text in its slot, in seconds.
    mean: f64,
}

impl Queue {
    /// Makes an empty queue for a number of slots, in which so many more may wait.
    pub fn new(slots: usize, waiting: usize) -> Self {
        Self { slots, waiting, state: Mutex::default() }
    }

    /// Takes the places of some texts, all or none.
    ///
    /// # Errors
    /// 503, with the time after which there may be room, if there is none.
    pub fn enter(&self, texts: usize) -> Result<(), ApiError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.count + texts > self.slots + self.waiting {
            let wait = state.count as f64 / self.slots as f64 * state.mean;
            let seconds = wait.ceil().clamp(1.0, LONGEST_WAIT);
            return Err(ApiError::busy(
                format!(
                    "{} texts are being written or wait, expected at most {} slots and {} that wait; \
                     try again later",
                    state.count, self.slots, self.waiting
                ),
                seconds as u64,
            ));
        }
        state.count += texts;
        Ok(())
    }

    /// Gives a place back, after the time that the text has taken in its slot, if it had one.
    pub fn leave(&self, time: Option<Duration>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.count = state.count.saturating_sub(1);
        if let Some(time) = time {
            state.mean = MEMORY * state.mean + (1.0 - MEMORY) * time.as_secs_f64();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_sent_away_with_a_time() {
        let queue = Queue::new(2, 1);
        queue.enter(2).unwrap();
        let error = queue.enter(2).unwrap_err().json();
        assert_eq!(error["error"]["code"], 503);
        queue.enter(1).unwrap();
        queue.enter(1).unwrap_err();
        queue.leave(Some(Duration::from_secs(100)));
        queue.enter(1).unwrap();
    }
}
