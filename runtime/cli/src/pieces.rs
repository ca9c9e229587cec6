//! Pieces of work that several threads do, handed over in order.

use std::sync::mpsc;
use std::thread;

use bitnet_runtime::error::{Error, Result};

/// The most threads: more than read and write a disk's data, and few enough for the memory of their pieces.
const MOST_THREADS: usize = 8;

/// Makes `count` pieces, each by `make(state, index)`, and gives them to `take` in order. Threads are as many
/// as the machine has CPUs; each has a state of its own, and is at most two pieces ahead of `take`, which runs
/// on the caller's thread.
///
/// # Errors
/// The first of `make` and `take`, in the order of the pieces.
pub fn in_order<S: Default, T: Send>(
    count: usize,
    make: impl Fn(&mut S, usize) -> Result<T> + Sync,
    mut take: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(MOST_THREADS).min(count);
    if threads <= 1 {
        let mut state = S::default();
        return (0..count).try_for_each(|index| take(make(&mut state, index)?));
    }
    thread::scope(|scope| {
        let make = &make;
        let receivers: Vec<_> = (0..threads)
            .map(|first| {
                let (send, receive) = mpsc::sync_channel(1);
                scope.spawn(move || {
                    let mut state = S::default();
                    let mut indices = (first..count).step_by(threads);
                    // Nobody receives any more after an error.
                    indices.all(|index| send.send(make(&mut state, index)).is_ok())
                });
                receive
            })
            .collect();
        (0..count).try_for_each(|index| {
            let panicked = |_| Error::Runtime("a thread that makes pieces panicked".into());
            take(receivers[index % threads].recv().map_err(panicked)??)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_in_order() {
        for count in [0, 1, 2, 100] {
            let mut taken = Vec::new();
            let make = |calls: &mut usize, index: usize| {
                *calls += 1;
                // Later pieces are made sooner.
                thread::sleep(std::time::Duration::from_micros(200 * (3 - index as u64 % 4)));
                Ok((index, *calls))
            };
            in_order(count, make, |piece| {
                taken.push(piece);
                Ok(())
            })
            .unwrap();
            let indices: Vec<usize> = taken.iter().map(|piece| piece.0).collect();
            assert_eq!(indices, (0..count).collect::<Vec<_>>());
            // A state goes from piece to piece.
            assert!(taken.iter().all(|(index, calls)| *calls >= 1 && *calls <= index + 1));
        }
    }

    #[test]
    fn the_first_error_ends_it() {
        let failed = |index: usize| Err(Error::Runtime(format!("{index}")));
        let make =
            |_: &mut (), index| if index == 5 || index == 7 { failed(index) } else { Ok(index) };
        let mut taken = Vec::new();
        let error = in_order(1000, make, |piece| {
            taken.push(piece);
            Ok(())
        });
        assert_eq!(error.unwrap_err().to_string(), "5");
        assert_eq!(taken, [0, 1, 2, 3, 4]);
        let error = in_order(
            1000,
            |_: &mut (), index| Ok(index),
            |index| {
                if index == 3 { failed(index).map(drop) } else { Ok(()) }
            },
        );
        assert_eq!(error.unwrap_err().to_string(), "3");
    }
}
