//! The logits that matter, without reading all of the head.
//!
//! A scan of a low-bit copy ([`Planes`]) estimates every logit. The rows with the best estimates are
//! computed by the full head's own kernel; the worst of these bounds from below what a row needs to
//! be among the best. Every other row whose estimate, plus the most that it can be wrong by, does
//! not stay below is looked at again: first with the fine copy, then by the full head's kernel.
//! So the best k logits, and all that equal the k-th, are those of the full head, bit for bit.
//!
//! The head takes four phases of the pool, with three barriers between them.

use super::planes::{Planes, Query, TILE_ROWS};
use super::weights::Table;
use crate::error::Result;
use crate::gguf::Gguf;
use crate::kernels::{HeadKernel, VectorOps};
use crate::threads::{SharedSlice, Worker};

/// The logits that a caller of [`Session`](super::Session) needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Needs {
    /// All of them.
    All,
    /// Exactly the `count` largest, and all that equal the last of these, and those of `ids`. Any
    /// other may read minus infinity instead.
    Best {
        /// How many, at least 1.
        count: usize,
        /// Those of `ids` that are in the vocabulary; each may stand here more than once.
        ids: Vec<u32>,
    },
}

impl Needs {
    /// The largest logit.
    pub const GREEDY: Self = Self::Best { count: 1, ids: Vec::new() };
}

/// How many of the best are looked for at most; beyond that it is no longer cheap, and all of the
/// head is read.
pub(super) fn most(rows: usize) -> usize {
    1024.min(rows / 4)
}

/// Rows that are looked at again at once.
const REFINED: usize = 256;
/// A fine row read alone costs more than as many bytes of a scan: one core of Zen 5 takes 3.2 ms for
/// 33 MB of them, and 4.0 for the 172 MB of a plane.
pub(super) const ALONE: f64 = 4.0;
/// As [`ALONE`], for rows of a head: if the system reads them out of the file, 2 kB take 1.3
/// microseconds.
pub(super) fn alone(head: &Table) -> f64 {
    if head.stays_in_file() { 25.0 } else { ALONE }
}
/// Tokens of which costs are averaged, roughly.
const MEMORY: f64 = 8.0;
/// Tokens for which the full head serves when the scan did not pay; it doubles up to the second.
const REST: (usize, usize) = (32, 1024);

/// What the head read for the tokens of a session whose logits were asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadStats {
    /// Tokens.
    pub tokens: u64,
    /// Tokens of which the copies of the head were scanned.
    pub scanned: u64,
    /// Rows that were looked at again after a scan, of all tokens.
    pub refined: u64,
    /// Rows that the full head's kernel computed after a scan.
    pub rescored: u64,
    /// Bytes read, of all tokens.
    pub bytes: u64,
}

/// A head that can be scanned.
#[derive(Clone, Copy)]
pub(super) struct ScannedHead<'a> {
    pub(super) gguf: &'a Gguf,
    pub(super) table: &'a Table,
    pub(super) kernel: &'a HeadKernel,
    pub(super) vector: &'a VectorOps,
    pub(super) planes: &'a Planes,
}

impl ScannedHead<'_> {
    /// Bytes of all its rows.
    fn bytes(&self) -> usize {
        self.table.rows(self.gguf, 0..self.table.row_count()).len()
    }

    /// The logit of one row, by the full head's kernel.
    fn logit(&self, row: u32, cols: usize, prepared: &[u8], buffer: &mut Vec<u8>) -> f32 {
        let mut out = [0.0];
        let row = self.table.row(self.gguf, row as usize, buffer);
        self.kernel.run(row, cols, prepared, &mut out, 1);
        out[0]
    }
}

/// What a session keeps for the head.
#[derive(Debug)]
pub(super) struct ExactHead {
    /// `[tiles][16]`
    estimates: Vec<f32>,
    /// Rows that were not ruled out by the scan: a worker's own begin where its share does.
    survivors: Vec<u32>,
    /// The best estimates of each worker.
    best: Vec<(f32, u32)>,
    /// Logits of the chosen rows.
    exact: Vec<f32>,
    /// Where the survivors of each worker begin, and how many there are.
    found: Vec<(usize, usize)>,
    workers: Vec<Own>,
    policy: Policy,
}

/// What one worker keeps.
#[derive(Debug)]
struct Own {
    query: Query,
    /// The rows that are computed first, the same for all workers.
    chosen: Vec<u32>,
    sorted: Vec<(f32, u32)>,
    /// Products of fine rows.
    dots: [i32; REFINED],
    /// A row of the full head.
    row: Vec<u8>,
    rescored: usize,
    /// Whether no bound held for the activations, so that all logits were computed.
    full: bool,
}

/// Whether to scan, from what it cost of late.
#[derive(Debug)]
struct Policy {
    /// Cost of a scan relative to the full head.
    cost: Option<f64>,
    resting: usize,
    rest: usize,
}

impl Policy {
    /// Whether the next token is to be scanned.
    fn scans(&mut self) -> bool {
        if self.resting == 0 {
            return true;
        }
        self.resting -= 1;
        if self.resting == 0 {
            self.cost = None;
        }
        false
    }

    fn learn(&mut self, cost: f64) {
        let mean = self.cost.map_or(cost, |mean| mean + (cost - mean) / MEMORY);
        self.cost = Some(mean);
        if mean > 1.0 {
            self.resting = self.rest;
            self.rest = (self.rest * 2).min(REST.1);
        } else {
            self.rest = REST.0;
        }
    }
}

impl ExactHead {
    pub(super) fn new(planes: &Planes, threads: usize) -> Result<Self> {
        let own = |_| {
            Ok(Own {
                query: Query::new(planes)?,
                chosen: Vec::new(),
                sorted: Vec::new(),
                dots: [0; REFINED],
                row: Vec::new(),
                rescored: 0,
                full: false,
            })
        };
        Ok(Self {
            estimates: vec![0.0; planes.tile_count() * TILE_ROWS],
            survivors: vec![0; planes.tile_count() * TILE_ROWS],
            best: Vec::new(),
            exact: Vec::new(),
            found: vec![(0, 0); threads],
            workers: (0..threads).map(own).collect::<Result<_>>()?,
            policy: Policy { cost: None, resting: 0, rest: REST.0 },
        })
    }

    /// What the workers share for the next token, if its logits are to be found by a scan.
    pub(super) fn share<'a>(
        &'a mut self,
        head: ScannedHead<'a>,
        needs: &'a Needs,
    ) -> Option<Scan<'a>> {
        let Needs::Best { count, ids } = needs else { return None };
        let count = (*count).max(1);
        let most = most(head.planes.rows());
        if count > most || ids.len() > most || !self.policy.scans() {
            return None;
        }
        self.best.clear();
        self.best.resize(count * self.workers.len(), (f32::NEG_INFINITY, u32::MAX));
        self.exact.clear();
        self.exact.resize(count + ids.len(), 0.0);
        Some(Scan {
            head,
            count,
            ids,
            estimates: SharedSlice::new(&mut self.estimates),
            survivors: SharedSlice::new(&mut self.survivors),
            best: SharedSlice::new(&mut self.best),
            exact: SharedSlice::new(&mut self.exact),
            found: SharedSlice::new(&mut self.found),
            workers: SharedSlice::new(&mut self.workers),
        })
    }

    /// After a scan: puts the logits of the rows that were computed first in their places, and
    /// learns what the scan cost.
    pub(super) fn finish(
        &mut self,
        head: ScannedHead<'_>,
        logits: &mut [f32],
        stats: &mut HeadStats,
    ) {
        let Some(first) = self.workers.first() else { return };
        let (planes, head_bytes) = (head.planes, head.bytes());
        let row_bytes = head_bytes / planes.rows();
        stats.scanned += 1;
        if first.full {
            stats.bytes += head_bytes as u64;
            return;
        }
        for (&row, &exact) in first.chosen.iter().zip(&self.exact) {
            logits[row as usize] = exact;
        }
        let refined: usize = self.found.iter().map(|found| found.1).sum();
        let rescored =
            first.chosen.len() + self.workers.iter().map(|own| own.rescored).sum::<usize>();
        let (fine, rows) = (refined * planes.fine_row_bytes(), rescored * row_bytes);
        stats.refined += refined as u64;
        stats.rescored += rescored as u64;
        stats.bytes += (planes.scan_bytes() + fine + rows) as u64;
        let cost =
            planes.scan_bytes() as f64 + ALONE * fine as f64 + alone(head.table) * rows as f64;
        self.policy.learn(cost / head_bytes as f64);
    }
}

/// One token's scan: what the workers share.
pub(super) struct Scan<'a> {
    head: ScannedHead<'a>,
    count: usize,
    ids: &'a [u32],
    estimates: SharedSlice<'a, f32>,
    survivors: SharedSlice<'a, u32>,
    best: SharedSlice<'a, (f32, u32)>,
    exact: SharedSlice<'a, f32>,
    found: SharedSlice<'a, (usize, usize)>,
    workers: SharedSlice<'a, Own>,
}

impl Scan<'_> {
    /// What each worker does: `x` is the input of the head, the same for all; `prepared` is for its
    /// kernel, `logits` `[vocab]`. What is left to do for [`ExactHead::finish`] waits until all
    /// workers are done.
    pub(super) fn work(
        &self,
        worker: &Worker<'_>,
        x: &[f32],
        prepared: &mut [u8],
        logits: &SharedSlice<'_, f32>,
    ) {
        let (head, planes) = (self.head, self.head.planes);
        // SAFETY: each worker's own.
        let own = unsafe { &mut self.workers.write(worker.index..worker.index + 1)[0] };
        own.rescored = 0;
        own.full = !own.query.set(planes, head.vector, x);
        if own.full {
            // All workers come to this conclusion.
            let rows = head.table.rows(head.gguf, 0..planes.rows());
            return head.kernel.run_share(worker, rows, (x, 1), prepared, logits);
        }
        let tiles = worker.share(planes.tile_count());
        let padded = tiles.start * TILE_ROWS..tiles.end * TILE_ROWS;
        let rows = padded.start.min(planes.rows())..padded.end.min(planes.rows());
        // SAFETY: shares are disjoint.
        let (estimates, best) = unsafe {
            let best = worker.index * self.count..(worker.index + 1) * self.count;
            (self.estimates.write(padded.clone()), self.best.write(best))
        };
        planes.scan(tiles, &own.query, estimates);
        find_best(&estimates[..rows.len()], rows.start, best);
        worker.barrier();

        // SAFETY: written before the barrier, and not again.
        own.choose(unsafe { self.best.read(0..self.best.len()) }, self, planes.rows());
        head.kernel.prepare((x, 1), prepared);
        let share = worker.share(own.chosen.len());
        // SAFETY: shares are disjoint.
        let exact = unsafe { self.exact.write(share.clone()) };
        for (exact, &row) in exact.iter_mut().zip(&own.chosen[share]) {
            *exact = head.logit(row, x.len(), prepared, &mut own.row);
        }
        worker.barrier();

        // SAFETY: written before the barrier, and not again.
        let exact = unsafe { self.exact.read(0..own.chosen.len()) };
        let least = own.kth(exact, self.count);
        // SAFETY: shares are disjoint; estimates are only read from here on.
        let (estimates, survivors, own_logits, found) = unsafe {
            (
                self.estimates.read(rows.clone()),
                self.survivors.write(padded),
                logits.write(rows.clone()),
                &mut self.found.write(worker.index..worker.index + 1)[0],
            )
        };
        own_logits.fill(f32::NEG_INFINITY);
        let estimates = (rows.start, estimates);
        *found = (rows.start, planes.survivors(estimates, &own.query, least, survivors));
        worker.barrier();

        // The survivors of all, in equal parts.
        // SAFETY: written before the barrier, read-only now.
        let found = unsafe { self.found.read(0..self.found.len()) };
        let part = worker.share(found.iter().map(|found| found.1).sum());
        let mut before = 0;
        for &(start, count) in found {
            let from = part.start.clamp(before, before + count) - before;
            let to = part.end.clamp(before, before + count) - before;
            before += count;
            // SAFETY: written before the barrier, read-only now.
            let rows = unsafe { self.survivors.read(start + from..start + to) };
            for rows in rows.chunks(REFINED) {
                planes.fine_dots(rows, &own.query, &mut own.dots);
                for (&id, &dot) in rows.iter().zip(&own.dots) {
                    let row = id as usize;
                    // SAFETY: as above.
                    let estimate = unsafe { self.estimates.read(row..row + 1)[0] };
                    if planes.survives(row, (estimate, dot), &own.query, least) {
                        // SAFETY: a row is in one part only.
                        let out = unsafe { &mut logits.write(row..row + 1)[0] };
                        *out = head.logit(id, x.len(), prepared, &mut own.row);
                        own.rescored += 1;
                    }
                }
            }
        }
    }
}

/// Puts the largest estimates, in falling order, and their rows into `best`; the first of equal
/// ones. `first` is the row of the first estimate.
fn find_best(estimates: &[f32], first: usize, best: &mut [(f32, u32)]) {
    const CHUNK: usize = 16;
    let mut found = 0;
    for (chunk, values) in estimates.chunks(CHUNK).enumerate() {
        let last = if found < best.len() { f32::NEG_INFINITY } else { best[found - 1].0 };
        // Most chunks have none, which vectors see at once.
        if found == best.len() && values.iter().fold(true, |none, &v| none & (v <= last)) {
            continue;
        }
        for (i, &value) in values.iter().enumerate() {
            if found == best.len() && value <= best[found - 1].0 {
                continue;
            }
            let at = best[..found].partition_point(|kept| kept.0 >= value);
            found = (found + 1).min(best.len());
            best[at..found].rotate_right(1);
            best[at] = (value, (first + chunk * CHUNK + i) as u32);
        }
    }
}

impl Own {
    /// The best rows of all workers, and those asked for, each once.
    fn choose(&mut self, best: &[(f32, u32)], scan: &Scan<'_>, rows: usize) {
        self.sorted.clear();
        self.sorted.extend(best.iter().filter(|best| best.1 != u32::MAX));
        self.sorted.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        self.chosen.clear();
        self.chosen.extend(self.sorted.iter().take(scan.count).map(|best| best.1));
        self.chosen.extend(scan.ids.iter().filter(|&&id| (id as usize) < rows));
        self.chosen.sort_unstable();
        self.chosen.dedup();
    }

    /// The `count`-th largest of some logits; minus infinity where there are fewer numbers.
    fn kth(&mut self, logits: &[f32], count: usize) -> f32 {
        self.sorted.clear();
        self.sorted.extend(logits.iter().filter(|l| !l.is_nan()).map(|&l| (l, 0)));
        self.sorted.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        self.sorted.get(count - 1).map_or(f32::NEG_INFINITY, |kept| kept.0)
    }
}

#[cfg(test)]
mod tests {
    use bitnet_profiles::PlaneFormat;

    use super::super::planes::tests::{Case, cases, input, logits, planes};
    use super::*;
    use crate::memory::Buffer;
    use crate::random::Random;
    use crate::threads::Pool;

    /// The logits that a scan gives, if there is one.
    fn scanned(
        exact: &mut ExactHead,
        head: ScannedHead<'_>,
        pool: &Pool,
        x: &[f32],
        needs: &Needs,
    ) -> Option<(Vec<f32>, HeadStats)> {
        let mut out = vec![f32::NAN; head.planes.rows()];
        let prepared = head.kernel.prepared_bytes(x.len());
        let mut prepared: Vec<Buffer> =
            (0..pool.threads()).map(|_| Buffer::zeroed(prepared).unwrap()).collect();
        {
            let scan = exact.share(head, needs)?;
            let logits = SharedSlice::new(&mut out);
            let prepared = SharedSlice::new(&mut prepared);
            pool.run(|worker| {
                // SAFETY: each worker's own.
                let prepared = unsafe { prepared.write(worker.index..worker.index + 1) };
                scan.work(worker, x, &mut prepared[0], &logits);
            })
            .unwrap();
        }
        let mut stats = HeadStats::default();
        exact.finish(head, &mut out, &mut stats);
        Some((out, stats))
    }

    /// What was asked for is that of the full head, and all else is too, or is ruled out.
    fn check(expected: &[f32], got: &[f32], needs: &Needs, what: &str) {
        let Needs::Best { count, ids } = needs else { panic!("{needs:?}") };
        let mut sorted: Vec<f32> = expected.iter().copied().filter(|l| !l.is_nan()).collect();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let least = sorted.get(count - 1).copied().unwrap_or(f32::NEG_INFINITY);
        for (row, (&expected, &got)) in expected.iter().zip(got).enumerate() {
            let same = expected.to_bits() == got.to_bits() || expected.is_nan() && got.is_nan();
            let needed = expected >= least || ids.contains(&(row as u32));
            let ruled_out = got == f32::NEG_INFINITY && !needed;
            assert!(same || ruled_out, "{what}, row {row}: {got} for {expected} with {least}");
        }
    }

    fn best(count: usize, ids: &[u32]) -> Needs {
        Needs::Best { count, ids: ids.to_vec() }
    }

    /// On every kind of head and input, with every number of workers; rows that fill tiles, and that
    /// do not.
    #[test]
    fn the_best_are_those_of_the_full_head() {
        let vector = VectorOps::best(bitnet_profiles::Isa::best());
        let pools: Vec<Pool> = (1..=4).map(|threads| Pool::new(threads).unwrap()).collect();
        for (rows, format) in [
            (161, PlaneFormat::P4),
            (256, PlaneFormat::P5),
            (17, PlaneFormat::P5),
            (4, PlaneFormat::P4),
        ] {
            for case in &cases(rows) {
                let (kernel, planes) = planes(case, format, &pools[1]);
                let Case { gguf, table, .. } = case;
                let (kernel, vector, planes) = (&kernel, &vector, &planes);
                let head = ScannedHead { gguf, table, kernel, vector, planes };
                for (i, x) in case.inputs.iter().enumerate() {
                    let expected = logits(case, kernel, x);
                    for needs in [
                        Needs::GREEDY,
                        best(rows / 4, &[]),
                        best(1, &[0, rows as u32 - 1, 3, 3]),
                        best(rows / 4, &[2, rows as u32, u32::MAX]),
                    ] {
                        let mut found = Vec::new();
                        for pool in &pools {
                            let what = format!(
                                "{} {}, {rows} rows, {format}, {} workers, input {i}, {needs:?}",
                                case.name,
                                table.format(),
                                pool.threads()
                            );
                            let mut exact = ExactHead::new(planes, pool.threads()).unwrap();
                            let scanned = scanned(&mut exact, head, pool, x, &needs);
                            let most = most(rows);
                            let Some((got, stats)) = scanned else {
                                let Needs::Best { count, ids } = needs else { unreachable!() };
                                assert!(count > most || ids.len() > most, "{what}");
                                break;
                            };
                            check(&expected, &got, &needs, &what);
                            let bits: Vec<u32> = got.iter().map(|l| l.to_bits()).collect();
                            found.push((bits, stats));
                        }
                        assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "{}", case.name);
                    }
                }
            }
        }
    }

    /// A head with a row that stands out, and 4000 that do not.
    fn trained(random: &mut Random) -> (Case, Vec<f32>) {
        let cols = 256;
        let x = input(cols, random);
        let mut weights: Vec<f32> = (0..4000).flat_map(|_| input(cols, random)).collect();
        for (w, x) in weights[2000 * cols..2001 * cols].iter_mut().zip(&x) {
            *w = 2.0 * x;
        }
        let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
        let (gguf, table) = Table::alone(bitnet_profiles::HeadFormat::F32, cols, &bytes);
        (Case { name: "trained", gguf, table, cols, inputs: Vec::new() }, x)
    }

    #[test]
    fn few_rows_are_read_where_one_stands_out_and_all_is_read_where_none_does() {
        let random = &mut Random::new(5);
        let (pool, vector) = (Pool::new(2).unwrap(), VectorOps::best(bitnet_profiles::Isa::best()));
        let (case, x) = trained(random);
        let (kernel, planes) = planes(&case, PlaneFormat::P4, &pool);
        let Case { gguf, table, .. } = &case;
        let head = ScannedHead { gguf, table, kernel: &kernel, vector: &vector, planes: &planes };
        let mut exact = ExactHead::new(&planes, 2).unwrap();
        let (_, stats) = scanned(&mut exact, head, &pool, &x, &Needs::GREEDY).unwrap();
        assert!(stats.refined <= 4 && stats.rescored <= 4, "{stats:?}");
        assert!(stats.bytes < table.rows(gguf, 0..4000).len() as u64 / 6, "{stats:?}");
        // All logits are 0, and so among the best: after that the full head serves for a while.
        let nothing = vec![0.0; x.len()];
        let (_, stats) = scanned(&mut exact, head, &pool, &nothing, &Needs::GREEDY).unwrap();
        assert_eq!((stats.refined, stats.rescored), (4000, 4001));
        let mut turns = Vec::new();
        for _ in 0..3 * REST.0 + 10 {
            turns.push(scanned(&mut exact, head, &pool, &nothing, &Needs::GREEDY).is_some());
        }
        let scans: Vec<usize> = (0..turns.len()).filter(|&i| turns[i]).collect();
        assert!(scans.len() >= 2 && scans.len() <= 9, "{scans:?}");
        let pause = scans.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert!(pause >= Some(REST.0), "{scans:?}");
    }
}
