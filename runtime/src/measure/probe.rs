//! Measured limits of the machine, with which the speed of a kernel is compared.

use std::hint::black_box;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bitnet_profiles::Isa;

use crate::cpu::memory::Buffer;
use crate::cpu::threads::{Pool, Worker};
use crate::{Error, Result};

/// A buffer to read again and again: the bandwidth of memory or of a cache changes with what else
/// the machine does.
#[derive(Debug)]
pub struct Stream(Buffer);

impl Stream {
    /// Makes a buffer of so many bytes. For the bandwidth of memory, take several times the L3
    /// cache; for that of a cache, as much as fits.
    ///
    /// # Errors
    /// [`Error::Runtime`] when the system refuses the memory or a worker panicked.
    pub fn new(pool: &Pool, bytes: usize) -> Result<Self> {
        let mut buffer = Buffer::zeroed(bytes)?;
        pool.fill(&mut buffer, 1)?;
        Ok(Self(buffer))
    }

    /// Measures the bytes per second that the pool's threads read together when each streams its
    /// own part, with or without software prefetch, whichever is faster here: the best of `rounds`
    /// passes of each.
    ///
    /// # Errors
    /// [`Error::Runtime`] when a worker panicked.
    pub fn read_bandwidth(&self, pool: &Pool, rounds: usize) -> Result<f64> {
        let len = self.0.len();
        // A pass over a small buffer is repeated until it is long enough to time.
        let passes = (1_usize << 24).div_ceil(len.max(1));
        let mut best = Duration::MAX;
        for sum in sums() {
            let time = best_time(pool, rounds, |worker| {
                for _ in 0..passes {
                    black_box(sum(black_box(&self.0[worker.share(len)])));
                }
            })?;
            best = best.min(time);
        }
        Ok((len * passes) as f64 / best.as_secs_f64())
    }
}

/// Measures the multiply-adds of int8 numbers per second that the pool's threads reach together on
/// the best tier up to `isa`, with everything in registers and no widening: the best of `rounds`.
/// `None` for the scalar tier, whose limit is the compiler's.
///
/// # Errors
/// [`Error::Runtime`] when a worker panicked.
pub fn multiply_add_rate(pool: &Pool, isa: Isa, rounds: usize) -> Result<Option<f64>> {
    // Half a millisecond: the barriers around it do not count, and among some dozens a few fall
    // between two interruptions, when the clock has settled.
    const STEPS: usize = 100_000;
    const TRIES: usize = 8;
    let Some(multiply) = multiply_adds(isa) else { return Ok(None) };
    // As many for each.
    let per_worker = AtomicUsize::new(0);
    let time = best_time(pool, rounds.max(1) * TRIES, |_| {
        per_worker.store(multiply(STEPS), Ordering::Relaxed);
    })?;
    Ok(Some((pool.threads() * per_worker.into_inner()) as f64 / time.as_secs_f64()))
}

/// Returns the shortest time, of `rounds`, in which all workers have done `work`.
fn best_time<F>(pool: &Pool, rounds: usize, work: F) -> Result<Duration>
where
    F: Fn(&Worker<'_>) + Sync,
{
    let best = Mutex::new(Duration::MAX);
    pool.run(|worker| {
        for _ in 0..rounds.max(1) {
            worker.barrier();
            let start = Instant::now();
            work(worker);
            worker.barrier();
            if worker.index == 0 {
                let mut best = best.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                *best = start.elapsed().min(*best);
            }
        }
    })?;
    let best = best.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    if best.is_zero() {
        return Err(Error::Runtime("the clock stood still during a probe".into()));
    }
    Ok(best)
}

type Sum = fn(&[u8]) -> u64;
type MultiplyAdds = fn(usize) -> usize;

/// Prefetch distance in bytes: the best for streams of weights on Zen 5.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const AHEAD: usize = 8192;

/// Reads every byte; unrolled far enough that only the loads take time. Calls `begin` with the
/// address of every 256 bytes.
#[inline(always)]
fn sum(data: &[u8], begin: impl Fn(*const u8)) -> u64 {
    const WORDS: usize = 32;
    let mut sums = [0u64; WORDS];
    let (words, bytes) = data.as_chunks::<8>();
    let (chunks, words) = words.as_chunks::<WORDS>();
    for chunk in chunks {
        begin(chunk.as_ptr().cast());
        for i in 0..WORDS {
            sums[i] = sums[i].wrapping_add(u64::from_le_bytes(chunk[i]));
        }
    }
    let rest = words.iter().map(|&word| u64::from_le_bytes(word)).fold(0, u64::wrapping_add);
    let rest = bytes.iter().fold(rest, |a, &byte| a.wrapping_add(u64::from(byte)));
    sums.iter().fold(rest, |a, &b| a.wrapping_add(b))
}

/// Defines a loop that makes `steps` times so many independent products of vectors on a tier, by
/// the function of its vocabulary that does `each` multiply-adds per 32-bit lane: enough to hide
/// its latency, of 1 cycle where products are added apart and of up to 5 where one instruction does
/// both, at 2 a cycle. The loop returns the multiply-adds done.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! multiply_with {
    ($name:ident, $isa:ident, $dot:ident, $each:literal, $sums:literal, $features:literal) => {
        fn $name(steps: usize) -> usize {
            use bitnet_kernels::isa::$isa as isa;

            const SUMS: usize = $sums;
            #[target_feature(enable = $features)]
            fn inner(steps: usize) {
                let mut sums = [isa::acc_zero(); SUMS];
                let codes = black_box(isa::bytes_zero());
                let activations = [isa::bytes_zero(); SUMS];
                for _ in 0..steps {
                    // Opaque: the compiler must not see that all products are the same.
                    let activations = black_box(&activations);
                    for i in 0..SUMS {
                        sums[i] = isa::$dot(sums[i], codes, activations[i]);
                    }
                }
                black_box(sums);
            }
            // SAFETY: `multiply_adds` gives this function only to a CPU with the tier.
            unsafe { inner(steps) }
            steps * SUMS * isa::LANES * $each
        }
    };
}

#[cfg(target_arch = "x86_64")]
multiply_with!(multiply_avx2, avx2, dot, 4, 8, "avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
multiply_with!(multiply_avxvnni, avxvnni, dot, 4, 12, "avx2,fma,f16c,avxvnni");
#[cfg(target_arch = "x86_64")]
multiply_with!(
    multiply_avx512,
    avx512,
    dot,
    4,
    8,
    "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"
);
#[cfg(target_arch = "x86_64")]
multiply_with!(
    multiply_vnni,
    avx512vnni,
    dot,
    4,
    16,
    "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
);
#[cfg(target_arch = "aarch64")]
multiply_with!(multiply_neon, neon, dot, 4, 8, "neon");
#[cfg(target_arch = "aarch64")]
multiply_with!(multiply_neondot, neondot, dot, 4, 16, "neon,dotprod");
#[cfg(target_arch = "aarch64")]
multiply_with!(multiply_neoni8mm, neoni8mm, dot_2x2, 8, 16, "neon,dotprod,i8mm");

/// Returns the loop of the best tier up to `ceiling` that this CPU runs.
fn multiply_adds(ceiling: Isa) -> Option<MultiplyAdds> {
    match Isa::supported().filter(|&isa| isa <= ceiling).last()? {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => Some(multiply_avx2),
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni => Some(multiply_avxvnni),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => Some(multiply_avx512),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni | Isa::Avx512Vbmi => Some(multiply_vnni),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => Some(multiply_neon),
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDot => Some(multiply_neondot),
        #[cfg(target_arch = "aarch64")]
        Isa::NeonI8mm => Some(multiply_neoni8mm),
        _ => None,
    }
}

/// Runs [`sum`] with vectors of 32 bytes, of which every AVX2 core loads at least one a cycle, more
/// than any cache below L1 gives. (With AVX-512 the compiler gathers across iterations instead, at
/// a tenth of the speed.)
#[cfg(target_arch = "x86_64")]
fn sum_avx2(data: &[u8]) -> u64 {
    #[target_feature(enable = "avx2")]
    fn inner(data: &[u8]) -> u64 {
        sum(data, |_| {})
    }
    // SAFETY: `sums` gives this function only to a CPU with AVX2.
    unsafe { inner(data) }
}

/// Defines a sum that prefetches the lines [`AHEAD`] of its position into the cache of a level, by the
/// vocabulary of a tier.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! sum_ahead_with {
    ($name:ident, $isa:ident, $features:literal, $level:literal) => {
        fn $name(data: &[u8]) -> u64 {
            #[target_feature(enable = $features)]
            fn inner(data: &[u8]) -> u64 {
                sum(data, |at| {
                    for line in 0..4 {
                        let ahead = at.wrapping_add(AHEAD + 64 * line);
                        bitnet_kernels::isa::$isa::prefetch::<$level>(ahead);
                    }
                })
            }
            // SAFETY: `sums` gives this function only to a CPU with the tier.
            unsafe { inner(data) }
        }
    };
}

#[cfg(target_arch = "x86_64")]
sum_ahead_with!(sum_ahead_avx2, avx2, "avx2", 1);
#[cfg(target_arch = "x86_64")]
sum_ahead_with!(sum_ahead_l2_avx2, avx2, "avx2", 2);
#[cfg(target_arch = "aarch64")]
sum_ahead_with!(sum_ahead_neon, neon, "neon", 1);

/// Returns the ways to read that may be the fastest on this CPU.
fn sums() -> Vec<Sum> {
    #[cfg(target_arch = "x86_64")]
    if Isa::Avx2.is_supported() {
        return vec![sum_avx2, sum_ahead_avx2, sum_ahead_l2_avx2];
    }
    let plain: Sum = |data| sum(data, |_| {});
    #[cfg(target_arch = "aarch64")]
    if Isa::Neon.is_supported() {
        return vec![plain, sum_ahead_neon];
    }
    vec![plain]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_read() {
        let mut data = vec![0u8; 3 * 256 + 11];
        for function in sums() {
            for at in 0..data.len() {
                data[at] = 1;
                assert_ne!(function(&data), 0, "byte {at}");
                data[at] = 0;
            }
        }
    }

    /// Checks rates within wide bounds: a machine reads more than 10 MB/s and less than 100 TB/s,
    /// and one whose loop the compiler removed would seem faster.
    #[test]
    fn rates_are_of_this_world() {
        let pool = Pool::new(2).unwrap();
        for bytes in [1 << 12, 1 << 20, 1 << 24] {
            let rate = Stream::new(&pool, bytes).unwrap().read_bandwidth(&pool, 2).unwrap();
            assert!((1e7..1e14).contains(&rate), "{bytes} bytes: {rate}");
        }
        for &isa in Isa::ALL.iter().filter(|isa| isa.is_supported()) {
            match multiply_add_rate(&pool, isa, 2).unwrap() {
                Some(rate) => assert!((1e8..1e14).contains(&rate), "{isa}: {rate}"),
                None => assert_eq!(isa, Isa::Scalar),
            }
        }
    }
}
