//! Limits of the machine: bandwidth of memory and caches, and the multiply-add rate.

use bitnet_runtime::cpu::host::Host;
use bitnet_runtime::cpu::memory;
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::measure::probe::{self, Stream};

use super::workload::Rotation;
use crate::Result;
use crate::measure::Limits;
use crate::protocol::{Event, MeasureTask, Reporter};

/// Size assumed for the L3 cache where the system does not say.
const USUAL_L3: u64 = 64 << 20;

/// Passes of a probe, of which the best counts.
const PROBES: usize = 5;

/// Passes of a probe, of which the best counts.
pub(crate) const PASSES: usize = 3;

/// Probes the limits that hold for a task; `stream` probes that of decode.
pub(crate) fn probe(task: &MeasureTask, pool: &Pool, stream: &Stream) -> Result<Limits> {
    let l3 = l3();
    let cold = task.model_bytes > l3;
    let limit = stream.read_bandwidth(pool, PROBES)?;
    let read = if cold {
        limit
    } else {
        Stream::new(pool, far_bytes(l3))?.read_bandwidth(pool, PROBES)?
    };
    let multiply_adds = probe::multiply_add_rate(pool, task.ceiling, 10 * PROBES)?;
    Ok(Limits {
        threads: pool.threads() as u32,
        read_gb_per_s: read / 1e9,
        limit_gb_per_s: limit / 1e9,
        limit_gmac_per_s: multiply_adds.map(|rate| rate / 1e9),
        cold,
    })
}

/// Returns the rotation for a model, as far as memory is free, and warns where it is smaller than
/// it should be.
pub(crate) fn rotation(model_bytes: u64, reporter: &mut Reporter) -> Result<Rotation> {
    let wanted = Rotation::of(model_bytes, l3());
    // There are two at a time, and a job more of each.
    let most = memory::available().map_or(u64::MAX, |free| free / 4);
    if most < wanted.bytes {
        reporter.send(&Event::Note(format!(
            "warning: {} MB of memory would make weights as cold as they will be, and {} MB serve: \
             times may be those of the cache",
            wanted.bytes >> 20,
            most >> 20
        )))?;
    }
    Ok(Rotation { bytes: wanted.bytes.min(most), ..wanted })
}

/// Returns the bytes to read for the bandwidth of memory, of which few can be in the cache.
fn far_bytes(l3: u64) -> usize {
    let free = memory::available().map_or(u64::MAX, |free| free / 4);
    (4 * l3).clamp(64 << 20, 1 << 30).min(free) as usize
}

/// Makes the probe of the bandwidth that limits decode of such a model: memory's, or that of the
/// cache which holds it.
pub(crate) fn stream(pool: &Pool, model_bytes: u64) -> Result<Stream> {
    let l3 = l3();
    let bytes = if model_bytes > l3 { far_bytes(l3) } else { model_bytes as usize };
    Ok(Stream::new(pool, bytes)?)
}

/// Returns the bytes of the L3 cache.
pub(crate) fn l3() -> u64 {
    match Host::detect().l3 {
        0 => USUAL_L3,
        l3 => l3,
    }
}
