//! The machine's limits, measured: what share of them a kernel reaches is what its speed means.

use std::hint::black_box;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bitnet_profiles::Isa;

use crate::memory::Buffer;
use crate::threads::{Pool, Worker};
use crate::{Error, Result};

/// Bytes per second that the pool's threads read together when each streams its own part of a
/// buffer of `bytes`: the best of `rounds` passes. For the speed of memory, take several times the
/// L3 cache; for that of a cache, as much as fits.
///
/// # Errors
/// [`Error::Runtime`] when the system refuses the memory or a worker panicked.
pub fn read_bandwidth(pool: &Pool, bytes: usize, rounds: usize) -> Result<f64> {
    let mut buffer = Buffer::zeroed(bytes)?;
    pool.fill(&mut buffer, 1)?;
    let len = buffer.len();
    let sum = best_sum();
    // A pass over a small buffer is repeated until a clock can time it.
    let passes = (1_usize << 24).div_ceil(len.max(1));
    let time = best_time(pool, rounds, |worker| {
        for _ in 0..passes {
            black_box(sum(black_box(&buffer[worker.share(len)])));
        }
    })?;
    Ok((len * passes) as f64 / time.as_secs_f64())
}

/// Multiply-adds of int8 numbers per second that the pool's threads reach together on the best
/// tier up to `isa`, with everything in registers and no widening: the best of `rounds`. Nothing
/// for the scalar tier, whose limit is the compiler's.
///
/// # Errors
/// [`Error::Runtime`] when a worker panicked.
pub fn multiply_add_rate(pool: &Pool, isa: Isa, rounds: usize) -> Result<Option<f64>> {
    // Half a millisecond: the barriers around it do not count, and among some dozens a few fall
    // between two interruptions, when the clock has settled.
    const STEPS: usize = 100_000;
    const TRIES: usize = 8;
    let Some(multiply) = multiply_adds(isa) else { return Ok(None) };
    let per_worker = Mutex::new(0);
    let time = best_time(pool, rounds.max(1) * TRIES, |_| {
        *per_worker.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = multiply(STEPS);
    })?;
    let per_worker = per_worker.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(Some((pool.threads() * per_worker) as f64 / time.as_secs_f64()))
}

/// The shortest time, of `rounds`, in which all workers have done `work`.
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

/// Reads every byte; unrolled far enough that loads are all that takes time.
#[inline(always)]
fn sum(data: &[u8]) -> u64 {
    const WORDS: usize = 32;
    let mut sums = [0u64; WORDS];
    let (words, bytes) = data.as_chunks::<8>();
    let (chunks, words) = words.as_chunks::<WORDS>();
    for chunk in chunks {
        for i in 0..WORDS {
            sums[i] = sums[i].wrapping_add(u64::from_le_bytes(chunk[i]));
        }
    }
    let rest = words.iter().map(|&word| u64::from_le_bytes(word)).fold(0, u64::wrapping_add);
    let rest = bytes.iter().fold(rest, |a, &byte| a.wrapping_add(u64::from(byte)));
    sums.iter().fold(rest, |a, &b| a.wrapping_add(b))
}

#[cfg(not(target_arch = "x86_64"))]
fn best_sum() -> Sum {
    sum
}

#[cfg(not(target_arch = "x86_64"))]
fn multiply_adds(_ceiling: Isa) -> Option<MultiplyAdds> {
    None
}

#[cfg(target_arch = "x86_64")]
use x86::{best_sum, multiply_adds};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::hint::black_box;

    use bitnet_profiles::Isa;

    use super::{MultiplyAdds, Sum};
    use crate::kernels::builtin::isa;

    /// [`super::sum`] with vectors of 32 bytes, of which every AVX2 core loads at least one a
    /// cycle, more than any cache below L1 gives. (With AVX-512 the compiler gathers across
    /// iterations instead, at a tenth of the speed.)
    fn sum_avx2(data: &[u8]) -> u64 {
        #[target_feature(enable = "avx2")]
        fn inner(data: &[u8]) -> u64 {
            super::sum(data)
        }
        // SAFETY: `best_sum` gives this function only to a CPU with AVX2.
        unsafe { inner(data) }
    }

    pub(super) fn best_sum() -> Sum {
        if Isa::Avx2.is_supported() { sum_avx2 } else { super::sum }
    }

    /// `steps` times so many independent `dot`s of a tier: enough to hide its latency, of 1 cycle
    /// where products are added apart and of 5 with VNNI, at 2 a cycle. Gives the multiply-adds
    /// done.
    macro_rules! multiply_with {
        ($name:ident, $isa:ident, $sums:literal, $features:literal) => {
            fn $name(steps: usize) -> usize {
                const SUMS: usize = $sums;
                #[target_feature(enable = $features)]
                fn inner(steps: usize) {
                    let mut sums = [isa::$isa::acc_zero(); SUMS];
                    let codes = black_box(isa::$isa::bytes_zero());
                    let activations = [isa::$isa::bytes_zero(); SUMS];
                    for _ in 0..steps {
                        // Opaque: the compiler must not see that all products are the same.
                        let activations = black_box(&activations);
                        for i in 0..SUMS {
                            sums[i] = isa::$isa::dot(sums[i], codes, activations[i]);
                        }
                    }
                    black_box(sums);
                }
                // SAFETY: `multiply_adds` gives this function only to a CPU with the tier.
                unsafe { inner(steps) }
                steps * SUMS * isa::$isa::LANES * 4
            }
        };
    }
    multiply_with!(multiply_avx2, avx2, 8, "avx2,fma,f16c");
    multiply_with!(multiply_avxvnni, avxvnni, 12, "avx2,fma,f16c,avxvnni");
    multiply_with!(multiply_avx512, avx512, 8, "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl");
    multiply_with!(
        multiply_vnni,
        avx512vnni,
        16,
        "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
    );

    pub(super) fn multiply_adds(ceiling: Isa) -> Option<MultiplyAdds> {
        let supported = Isa::supported().filter(|&isa| isa <= ceiling);
        match supported.last().unwrap_or(Isa::Scalar) {
            Isa::Scalar => None,
            Isa::Avx2 => Some(multiply_avx2),
            Isa::AvxVnni => Some(multiply_avxvnni),
            Isa::Avx512 => Some(multiply_avx512),
            Isa::Avx512Vnni | Isa::Avx512Vbmi => Some(multiply_vnni),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_read() {
        let mut data = vec![0u8; 3 * 256 + 11];
        for function in [sum as Sum, best_sum()] {
            for at in 0..data.len() {
                data[at] = 1;
                assert_ne!(function(&data), 0, "byte {at}");
                data[at] = 0;
            }
        }
    }

    /// Wide bounds: a machine reads more than 10 MB/s and less than 100 TB/s, and one whose loop
    /// the compiler removed would seem faster.
    #[test]
    fn rates_are_of_this_world() {
        let pool = Pool::new(2).unwrap();
        for bytes in [1 << 12, 1 << 20, 1 << 24] {
            let rate = read_bandwidth(&pool, bytes, 2).unwrap();
            assert!((1e7..1e14).contains(&rate), "{bytes} bytes: {rate}");
        }
        for &isa in Isa::ALL.iter().filter(|isa| isa.is_supported()) {
            match multiply_add_rate(&pool, isa, 2).unwrap() {
                Some(rate) => assert!((1e8..1e14).contains(&rate), "{isa}: {rate}"),
                None => assert!(isa == Isa::Scalar, "{isa}"),
            }
        }
    }
}
