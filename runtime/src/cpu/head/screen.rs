//! Screening of the head: the logits that are needed, without reading all of it.
//!
//! A scan of a low-bit copy ([`HeadSketch`]) estimates every logit. The full head's own kernel
//! computes the rows with the best estimates; the smallest of these logits is a lower bound of what
//! a row needs to be among the best. Every other row is a survivor unless its estimate, plus the
//! bound of its error, is below that. Survivors are checked again: first with the refinement copy,
//! then by the full head's kernel. So the best k logits, and all that equal the k-th, are those of
//! the full head, bit for bit.
//!
//! One scan serves several tokens. It takes five phases of the pool, with four barriers between
//! them. Checking estimates band by band, while they are in the L2 cache, was tried and does not
//! pay: the head of 8 sequences took 0.5 to 0.8 ms more, of 10.6, both with a bound kept for each
//! tile and with a list of the rows that may still be among the best.

use std::ops::Range;

use crate::cpu::head::sketch::{HeadSketch, Query, TILE_ROWS};
use crate::cpu::kernels::{HeadKernel, SketchInput, VectorOps};
use crate::cpu::session::BatchToken;
use crate::cpu::table::Table;
use crate::cpu::threads::{SharedSlice, Worker};
use crate::error::Result;
use crate::file::gguf::Gguf;

/// What a caller of [`Session`](crate::Session) needs to know after a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Needs {
    /// All logits.
    All,
    /// Exactly the `count` largest logits, all that equal the smallest of these, and those of `ids`. Any
    /// other may be minus infinity instead.
    Best {
        /// Number of largest logits, at least 1.
        count: usize,
        /// Ids of other logits that are needed; ids beyond the vocabulary are ignored, and
        /// duplicates are allowed.
        ids: Vec<u32>,
    },
    /// No logits, but the hidden state after the last norm, which the head would read, `[hidden]`:
    /// [`Session::hidden`](crate::Session::hidden). The head is not read.
    Hidden,
}

impl Needs {
    /// All logits.
    pub const ALL: &'static Self = &Self::All;
    /// The largest logit.
    pub const GREEDY: &'static Self = &Self::Best { count: 1, ids: Vec::new() };
}

/// Most of the best logits that a scan looks for; for more it is no longer cheap, and the full head
/// is read.
pub(crate) fn most(rows: usize) -> usize {
    1024.min(rows / 4)
}

/// True if a scan of a head of so many rows can find the logits that are needed.
pub(crate) fn scannable(needs: &Needs, rows: usize) -> bool {
    match needs {
        Needs::All | Needs::Hidden => false,
        Needs::Best { count, ids } => *count <= most(rows) && ids.len() <= most(rows),
    }
}

/// Survivors checked with the refinement copy at once.
const REFINED: usize = 256;
/// Cost of a byte of a refinement row, which is read alone, relative to a byte of a scan: one core
/// takes 3.2 ms for 33 MB of such rows, and 4.0 ms for the 172 MB of a sketch.
pub(crate) const ALONE: f64 = 4.0;
/// As [`ALONE`], for rows of the head; higher if the system reads them out of the file, at 1.3
/// microseconds for 2 kB.
pub(crate) fn alone(head: &Table) -> f64 {
    if head.stays_in_file() { 25.0 } else { ALONE }
}
/// Number of recent tokens over which costs are averaged, roughly.
const MEMORY: f64 = 8.0;
/// Tokens for which the full head is used after scans did not pay: the first number, doubled each
/// time up to the second.
const REST: (usize, usize) = (32, 1024);

/// Statistics of what the head read for the tokens of a session that needed logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadStats {
    /// Tokens that needed logits.
    pub tokens: u64,
    /// Tokens served by a scan.
    pub scanned: u64,
    /// Survivors of scans, whose refinement rows were read, of all tokens.
    pub refined: u64,
    /// Rows that the full head's kernel computed after a scan.
    pub rescored: u64,
    /// Bytes read, of all tokens.
    pub bytes: u64,
}

/// A head that can be scanned.
#[derive(Clone, Copy)]
pub(crate) struct ScreenedHead<'a> {
    pub(crate) gguf: &'a Gguf,
    pub(crate) table: &'a Table,
    pub(crate) kernel: &'a HeadKernel,
    pub(crate) vector: &'a VectorOps,
    pub(crate) sketch: &'a HeadSketch,
}

impl ScreenedHead<'_> {
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

/// A session's buffers and state for scans of the head. Buffers by row are split into the workers'
/// parts, `[token][rows]` each: see [`Part`].
#[derive(Debug)]
pub(crate) struct Screen {
    estimates: Vec<f32>,
    /// Rows that were not ruled out by the scan.
    survivors: Vec<u32>,
    /// Number of survivors, `[worker][token]`.
    found: Vec<usize>,
    /// The best estimates of each worker, `[worker][token][count]`.
    best: Vec<(f32, u32)>,
    /// Logits of the chosen rows, `[token][count and ids]`.
    exact: Vec<f32>,
    /// The activations of each token, and true if bounds hold for it; otherwise all its logits are
    /// computed.
    queries: Vec<(Query, bool)>,
    workers: Vec<Own>,
    policy: Policy,
}

/// State of one worker.
#[derive(Debug, Default)]
struct Own {
    input: SketchInput,
    /// For each token the rows that are computed first, the same for all workers.
    chosen: Vec<Vec<u32>>,
    sorted: Vec<(f32, u32)>,
    /// Products of refinement rows.
    dots: Vec<i32>,
    /// For each token a lower bound of the logits that are among the best.
    least: Vec<f32>,
    /// A row of the full head.
    row: Vec<u8>,
    read: Read,
}

/// Rows that a worker read in addition to the scan.
#[derive(Clone, Copy, Debug, Default)]
struct Read {
    refined: usize,
    rescored: usize,
}

/// A worker's part of the rows, with the padding of the last tile.
struct Part {
    padded: Range<usize>,
    /// The rows without padding.
    rows: Range<usize>,
    tokens: usize,
}

impl Part {
    fn new(tiles: &Range<usize>, rows: usize, tokens: usize) -> Self {
        let padded = tiles.start * TILE_ROWS..tiles.end * TILE_ROWS;
        let rows = padded.start.min(rows)..padded.end.min(rows);
        Self { padded, rows, tokens }
    }

    /// Returns the range of the part, for all tokens.
    fn whole(&self) -> Range<usize> {
        self.tokens * self.padded.start..self.tokens * self.padded.end
    }

    /// Returns the range of a token's rows.
    fn of(&self, token: usize) -> Range<usize> {
        let padded = self.padded_of(token);
        padded.start..padded.start + self.rows.len()
    }

    /// Returns the range of a token's rows with the padding of the last tile.
    fn padded_of(&self, token: usize) -> Range<usize> {
        let first = self.tokens * self.padded.start + token * self.padded.len();
        first..first + self.padded.len()
    }
}

/// Policy that decides whether to scan, from recent costs.
#[derive(Debug)]
struct Policy {
    /// Cost of a scan relative to the full head.
    cost: Option<f64>,
    resting: usize,
    rest: usize,
}

impl Policy {
    /// True if the next token is to be served by a scan.
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

impl Screen {
    pub(crate) fn new(sketch: &HeadSketch, threads: usize) -> Result<Self> {
        let query = |_| Ok((Query::new(sketch)?, false));
        Ok(Self {
            estimates: Vec::new(),
            survivors: Vec::new(),
            found: Vec::new(),
            best: Vec::new(),
            exact: Vec::new(),
            queries: (0..sketch.tokens()).map(query).collect::<Result<_>>()?,
            workers: (0..threads).map(|_| Own::default()).collect(),
            policy: Policy { cost: None, resting: 0, rest: REST.0 },
        })
    }

    /// True if scans pay at present. Call it once for each pass that could use them.
    pub(crate) fn scans(&mut self) -> bool {
        self.policy.scans()
    }

    /// Sets up the shared state of the workers for scans for the tokens of a batch that `order`
    /// names, at least one. The needs of each are [`scannable`].
    pub(crate) fn share<'a>(
        &'a mut self,
        head: ScreenedHead<'a>,
        batch: &'a [BatchToken<'a>],
        order: &'a [usize],
    ) -> Scan<'a> {
        let wanted = Wanted { batch, order };
        let sketch = head.sketch;
        let needs = || (0..order.len()).map(|row| wanted.of(row));
        let count = needs().map(|(count, _)| count).max().unwrap_or(1);
        let places = needs().map(|(count, ids)| count + ids.len()).max().unwrap_or(1);
        // Tokens of one scan: the kernel may take more than there are, and needs room for all that
        // it takes.
        let tokens = sketch.kernel(order.len().min(sketch.tokens())).tokens();
        let rows = sketch.tile_count() * TILE_ROWS;
        self.estimates.resize(self.estimates.len().max(tokens * rows), 0.0);
        self.survivors.resize(self.survivors.len().max(tokens * rows), 0);
        self.found.resize(tokens * self.workers.len(), 0);
        self.best.resize(tokens * count * self.workers.len(), (0.0, 0));
        self.exact.resize(tokens * places, 0.0);
        for own in &mut self.workers {
            own.read = Read::default();
            own.chosen.resize_with(tokens, Vec::new);
            own.least.resize(tokens, 0.0);
            own.dots.resize(REFINED, 0);
        }
        Scan {
            head,
            wanted,
            count,
            places,
            tokens,
            estimates: SharedSlice::new(&mut self.estimates),
            survivors: SharedSlice::new(&mut self.survivors),
            found: SharedSlice::new(&mut self.found),
            best: SharedSlice::new(&mut self.best),
            exact: SharedSlice::new(&mut self.exact),
            queries: SharedSlice::new(&mut self.queries),
            workers: SharedSlice::new(&mut self.workers),
        }
    }

    /// Updates the policy and `stats` after scans for `tokens` tokens, at most `at_once` at a time.
    pub(crate) fn finish(
        &mut self,
        head: ScreenedHead<'_>,
        (tokens, at_once): (usize, usize),
        stats: &mut HeadStats,
    ) {
        let (sketch, head_bytes) = (head.sketch, head.bytes());
        let refined: usize = self.workers.iter().map(|own| own.read.refined).sum();
        let rescored: usize = self.workers.iter().map(|own| own.read.rescored).sum();
        let scans = tokens.div_ceil(at_once);
        let scanned = scans * sketch.scan_bytes();
        let (refinement, rows) =
            (refined * sketch.refinement_row_bytes(), rescored * (head_bytes / sketch.rows()));
        stats.scanned += tokens as u64;
        stats.refined += refined as u64;
        stats.rescored += rescored as u64;
        stats.bytes += (scanned + refinement + rows) as u64;
        let cost = scanned as f64 + ALONE * refinement as f64 + alone(head.table) * rows as f64;
        self.policy.learn(cost / (scans * head_bytes) as f64);
    }
}

/// The tokens that scans serve.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    batch: &'a [BatchToken<'a>],
    order: &'a [usize],
}

impl<'a> Wanted<'a> {
    /// Returns how many of the best logits a row needs, and the ids of others. For a row beyond the
    /// last these are 1 and none.
    fn of(self, row: usize) -> (usize, &'a [u32]) {
        match self.order.get(row).and_then(|&token| self.batch[token].needs) {
            Some(Needs::Best { count, ids }) => ((*count).max(1), ids),
            _ => (1, &[]),
        }
    }
}

/// State that the workers share for scans.
pub(crate) struct Scan<'a> {
    head: ScreenedHead<'a>,
    wanted: Wanted<'a>,
    /// Largest number that any row needs, of the best logits, and of these and other ids.
    count: usize,
    places: usize,
    tokens: usize,
    estimates: SharedSlice<'a, f32>,
    survivors: SharedSlice<'a, u32>,
    found: SharedSlice<'a, usize>,
    best: SharedSlice<'a, (f32, u32)>,
    exact: SharedSlice<'a, f32>,
    queries: SharedSlice<'a, (Query, bool)>,
    workers: SharedSlice<'a, Own>,
}

impl Scan<'_> {
    /// Most tokens that a scan serves.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Does a worker's part for the next [`Scan::tokens`] rows at most, from `first` on: `x`,
    /// `[tokens][cols]`, is the input of the head, the same for all workers; `prepared` is for its
    /// kernel for one token; `logits` is `[tokens][vocab]`.
    ///
    /// # Safety
    /// All workers of one run call it, with the same scan, `x`, number of tokens and `logits`, and the same
    /// number of barriers behind them; a barrier lies between two calls. From the call to the barrier after
    /// it nothing else reads or writes the elements of `logits`.
    pub(crate) unsafe fn work(
        &self,
        worker: &Worker<'_>,
        first: usize,
        (x, tokens): (&[f32], usize),
        prepared: &mut [u8],
        logits: &SharedSlice<'_, f32>,
    ) {
        let needs = |token: usize| self.wanted.of(first + token);
        let (head, sketch) = (self.head, self.head.sketch);
        let (cols, vocab) = (x.len() / tokens, sketch.rows());
        let x = |token: usize| &x[token * cols..(token + 1) * cols];
        // SAFETY: each worker's own.
        let own = unsafe { &mut self.workers.write(worker.index..worker.index + 1)[0] };
        for token in worker.share(tokens) {
            // SAFETY: shares are disjoint.
            let (query, bound) = unsafe { &mut self.queries.write(token..token + 1)[0] };
            *bound = query.set(sketch, head.vector, x(token), sketch.has_residual_row(tokens));
        }
        worker.barrier();

        // SAFETY: written before the barrier, and not again.
        let queries = unsafe { self.queries.read(0..tokens) };
        let bound = || (0..tokens).filter(|&token| queries[token].1);
        let tiles = worker.share(sketch.tile_count());
        let at_once = sketch.kernel(tokens).tokens();
        let part = Part::new(&tiles, vocab, at_once);
        sketch.set(&mut own.input, queries.iter().map(|(query, _)| query));
        // SAFETY: parts are disjoint.
        sketch.scan(tokens, tiles, &own.input, unsafe { self.estimates.write(part.whole()) });
        for token in bound() {
            // SAFETY: as above, and now only read.
            let (estimates, best) = unsafe {
                (
                    self.estimates.read(part.of(token)),
                    self.best.write(self.best_of(worker.index, token, needs(token).0)),
                )
            };
            find_best(estimates, part.rows.start, best);
        }
        worker.barrier();

        let places = self.places;
        for token in bound() {
            let needs = needs(token);
            let best = (0..worker.threads).flat_map(|worker| {
                // SAFETY: written before the barrier, and not again.
                unsafe { self.best.read(self.best_of(worker, token, needs.0)) }
            });
            own.choose(token, best, needs, vocab);
            let chosen = &own.chosen[token];
            let share = worker.share(chosen.len());
            if share.is_empty() {
                continue;
            }
            head.kernel.prepare((x(token), 1), head.table.scale(), prepared);
            let first = token * places;
            // SAFETY: shares are disjoint.
            let exact = unsafe { self.exact.write(first + share.start..first + share.end) };
            own.read.rescored += share.len();
            for (exact, &row) in exact.iter_mut().zip(&chosen[share]) {
                *exact = head.logit(row, cols, prepared, &mut own.row);
            }
        }
        worker.barrier();

        for (token, (query, bound)) in queries.iter().enumerate() {
            let of_token = logits.part(token * vocab..(token + 1) * vocab);
            if !bound {
                let rows = (head.table.rows(head.gguf, 0..vocab), head.table.scale());
                own.read.rescored += part.rows.len();
                // SAFETY: every worker finds the same tokens without a bound, and calls it once for the
                // logits of each, which nobody reads before the barrier.
                unsafe { head.kernel.run_share(worker, rows, (x(token), 1), prepared, &of_token) };
                continue;
            }
            let exact = token * places..token * places + own.chosen[token].len();
            // SAFETY: written before the barrier, and not again.
            let exact = unsafe { self.exact.read(exact) };
            let least = own.kth(exact, needs(token).0);
            // SAFETY: parts are disjoint; estimates are only read from here on.
            let (estimates, survivors, own_logits, found) = unsafe {
                (
                    self.estimates.read(part.of(token)),
                    self.survivors.write(part.padded_of(token)),
                    of_token.write(part.rows.clone()),
                    &mut self.found.write(self.found_at(worker.index, token))[0],
                )
            };
            let estimates = (part.rows.start, estimates);
            *found = sketch.survivors(estimates, head.vector, query, least, survivors);
            own_logits.fill(f32::NEG_INFINITY);
            for (&row, &exact) in own.chosen[token].iter().zip(exact) {
                let own = (row as usize).checked_sub(part.rows.start);
                if let Some(logit) = own.and_then(|row| own_logits.get_mut(row)) {
                    *logit = exact;
                }
            }
            own.least[token] = least;
        }
        worker.barrier();

        for token in bound() {
            let query = &queries[token].0;
            let scanned = (token, at_once, query);
            // SAFETY: all workers look at the same tokens, after the barrier that follows the first look.
            unsafe { self.look_again(worker, own, scanned, x(token), prepared, logits) };
        }
    }

    /// Checks the survivors of a token again; the scan served `at_once` tokens. Those of all
    /// workers together are shared out in equal parts.
    ///
    /// # Safety
    /// Workers of one run call it, each at most once for a token, in a phase in which nothing writes what
    /// [`Scan::work`] found of it and nothing else reads or writes its logits.
    unsafe fn look_again(
        &self,
        worker: &Worker<'_>,
        own: &mut Own,
        (token, at_once, query): (usize, usize, &Query),
        x: &[f32],
        prepared: &mut [u8],
        logits: &SharedSlice<'_, f32>,
    ) {
        let (head, sketch) = (self.head, self.head.sketch);
        let vocab = sketch.rows();
        let found = |index: usize| {
            // SAFETY: written before the barrier, and not again.
            unsafe { self.found.read(self.found_at(index, token))[0] }
        };
        let share = worker.share((0..worker.threads).map(found).sum());
        if share.is_empty() {
            return;
        }
        head.kernel.prepare((x, 1), head.table.scale(), prepared);
        own.read.refined += share.len();
        let mut before = 0;
        for index in 0..worker.threads {
            let tiles = worker.share_of(index, sketch.tile_count());
            let part = Part::new(&tiles, vocab, at_once);
            let places = part.of(token);
            let count = found(index);
            let from = share.start.clamp(before, before + count) - before;
            let to = share.end.clamp(before, before + count) - before;
            before += count;
            // SAFETY: written before the barrier, read-only now.
            let (rows, estimates) = unsafe {
                (
                    self.survivors.read(places.start + from..places.start + to),
                    self.estimates.read(places),
                )
            };
            for rows in rows.chunks(REFINED) {
                sketch.refinement_dots(rows, query, &mut own.dots);
                for (&id, &dot) in rows.iter().zip(&own.dots) {
                    let row = id as usize;
                    let estimate = estimates[row - part.rows.start];
                    if sketch.survives(row, (estimate, dot), query, own.least[token]) {
                        let at = token * vocab + row;
                        // SAFETY: a row is in one share only.
                        let out = unsafe { &mut logits.write(at..at + 1)[0] };
                        *out = head.logit(id, x.len(), prepared, &mut own.row);
                        own.read.rescored += 1;
                    }
                }
            }
        }
    }

    /// Returns the range of a worker's `count` best estimates for a token.
    fn best_of(&self, worker: usize, token: usize, count: usize) -> Range<usize> {
        let first = (worker * self.tokens + token) * self.count;
        first..first + count
    }

    /// Returns the place of a worker's number of survivors for a token.
    fn found_at(&self, worker: usize, token: usize) -> Range<usize> {
        let at = worker * self.tokens + token;
        at..at + 1
    }
}
/// Writes the largest estimates, in descending order, and their rows to `best`; of equal ones the
/// first. Unused places hold no row (`u32::MAX`). `first` is the row of the first estimate.
fn find_best(estimates: &[f32], first: usize, best: &mut [(f32, u32)]) {
    const CHUNK: usize = 16;
    best.fill((f32::NEG_INFINITY, u32::MAX));
    let mut found = 0;
    for (chunk, values) in estimates.chunks(CHUNK).enumerate() {
        let last = if found < best.len() { f32::NEG_INFINITY } else { best[found - 1].0 };
        // Most chunks have none, which a vector comparison shows at once.
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
    /// Collects the best rows of all workers and those of `ids`, each once.
    fn choose<'a>(
        &mut self,
        token: usize,
        best: impl Iterator<Item = &'a (f32, u32)>,
        (count, ids): (usize, &[u32]),
        rows: usize,
    ) {
        self.sorted.clear();
        self.sorted.extend(best.filter(|best| best.1 != u32::MAX));
        self.sorted.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let chosen = &mut self.chosen[token];
        chosen.clear();
        chosen.extend(self.sorted.iter().take(count).map(|best| best.1));
        chosen.extend(ids.iter().filter(|&&id| (id as usize) < rows));
        chosen.sort_unstable();
        chosen.dedup();
    }

    /// Returns the `count`-th largest of some logits; minus infinity where there are fewer numbers.
    fn kth(&mut self, logits: &[f32], count: usize) -> f32 {
        self.sorted.clear();
        self.sorted.extend(logits.iter().filter(|l| !l.is_nan()).map(|&l| (l, 0)));
        self.sorted.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        self.sorted.get(count - 1).map_or(f32::NEG_INFINITY, |kept| kept.0)
    }
}

#[cfg(test)]
mod tests {
    use bitnet_profiles::SketchFormat;

    use super::*;
    use crate::cpu::head::sketch::tests::{Case, cases, input, logits, sketch};
    use crate::cpu::memory::Buffer;
    use crate::cpu::threads::Pool;
    use crate::random::Random;

    /// Returns the logits that scans give for some tokens, `[token][vocab]`, or `None` if there was
    /// no scan. Tokens take their needs from the list in turns.
    fn scanned(
        exact: &mut Screen,
        head: ScreenedHead<'_>,
        pool: &Pool,
        (x, tokens): (&[f32], usize),
        needs: &[Needs],
    ) -> Option<(Vec<f32>, HeadStats)> {
        let (cols, vocab) = (x.len() / tokens, head.sketch.rows());
        let mut out = vec![f32::NAN; tokens * vocab];
        let prepared = head.kernel.prepared_bytes(cols);
        let mut prepared: Vec<Buffer> =
            (0..pool.threads()).map(|_| Buffer::zeroed(prepared).unwrap()).collect();
        let at_once;
        {
            if !needs.iter().all(|needs| scannable(needs, vocab)) || !exact.scans() {
                return None;
            }
            let needs = needs.iter().cycle().take(tokens);
            let batch: Vec<BatchToken<'_>> =
                needs.map(|needs| BatchToken { sequence: 0, id: 0, needs: Some(needs) }).collect();
            let order: Vec<usize> = (0..tokens).collect();
            let scan = exact.share(head, &batch, &order);
            at_once = scan.tokens();
            let logits = SharedSlice::new(&mut out);
            let prepared = SharedSlice::new(&mut prepared);
            pool.run(|worker| {
                // SAFETY: each worker's own.
                let prepared = unsafe { prepared.write(worker.index..worker.index + 1) };
                for (i, x) in x.chunks(at_once * cols).enumerate() {
                    let (first, tokens) = (i * at_once * vocab, x.len() / cols);
                    let logits = logits.part(first..first + tokens * vocab);
                    // SAFETY: all workers call it, between barriers, and logits are read after the run.
                    unsafe {
                        scan.work(worker, i * at_once, (x, tokens), &mut prepared[0], &logits)
                    };
                    worker.barrier();
                }
            })
            .unwrap();
        }
        let mut stats = HeadStats::default();
        exact.finish(head, (tokens, at_once), &mut stats);
        Some((out, stats))
    }

    /// Asserts that needed logits equal those of the full head, and that all others do too or are
    /// ruled out.
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

    /// Covers every kind of head and input, several numbers of workers, and numbers of rows that do
    /// and do not fill tiles.
    #[test]
    fn the_best_are_those_of_the_full_head() {
        let vector = VectorOps::best(bitnet_profiles::Isa::best());
        let pools: Vec<Pool> = (1..=4).map(|threads| Pool::new(threads).unwrap()).collect();
        for (rows, format) in [
            (161, SketchFormat::P4),
            (256, SketchFormat::P5),
            (17, SketchFormat::P5),
            (4, SketchFormat::P4),
        ] {
            for case in &cases(rows) {
                let (kernel, sketch) = sketch(case, format, &pools[1]);
                let Case { gguf, table, .. } = case;
                let (kernel, vector, sketch) = (&kernel, &vector, &sketch);
                let head = ScreenedHead { gguf, table, kernel, vector, sketch };
                for (i, x) in case.inputs.iter().enumerate() {
                    let expected = logits(case, kernel, x);
                    for needs in [
                        Needs::GREEDY.clone(),
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
                            let mut exact = Screen::new(sketch, pool.threads()).unwrap();
                            let scanned = scanned(
                                &mut exact,
                                head,
                                pool,
                                (x, 1),
                                std::slice::from_ref(&needs),
                            );
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

    /// Tokens together, including some without a bound, have the logits that each has alone,
    /// whether or not they fill scans.
    #[test]
    fn tokens_together_are_what_they_are_alone() {
        let vector = VectorOps::best(bitnet_profiles::Isa::best());
        let pools: Vec<Pool> = (1..=3).map(|threads| Pool::new(threads).unwrap()).collect();
        for case in &cases(161) {
            let (kernel, sketch) = sketch(case, SketchFormat::P4, &pools[1]);
            let Case { gguf, table, cols, .. } = case;
            let (kernel, vector, sketch) = (&kernel, &vector, &sketch);
            let head = ScreenedHead { gguf, table, kernel, vector, sketch };
            let (greedy, more) = (Needs::GREEDY.clone(), best(5, &[160, 7]));
            for needs in
                [vec![greedy.clone()], vec![more.clone()], vec![greedy, more, best(40, &[])]]
            {
                for tokens in [2, 3, 8, 9, case.inputs.len()] {
                    let inputs = || case.inputs.iter().rev().take(tokens);
                    let x: Vec<f32> = inputs().flatten().copied().collect();
                    let mut found = Vec::new();
                    for pool in &pools {
                        let mut exact = Screen::new(sketch, pool.threads()).unwrap();
                        let (got, stats) =
                            scanned(&mut exact, head, pool, (&x, tokens), &needs).unwrap();
                        for (i, (x, got)) in inputs().zip(got.chunks(161)).enumerate() {
                            let what = format!(
                                "{} {}, {cols} columns, {} workers, token {i} of {tokens}, {needs:?}",
                                case.name,
                                table.format(),
                                pool.threads()
                            );
                            check(&logits(case, kernel, x), got, &needs[i % needs.len()], &what);
                        }
                        assert_eq!(stats.scanned, tokens as u64);
                        let bits: Vec<u32> = got.iter().map(|l| l.to_bits()).collect();
                        found.push((bits, stats));
                    }
                    assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "{}", case.name);
                }
            }
        }
    }

    /// Builds a head of 4000 rows, of which one stands out.
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
        let (kernel, sketch) = sketch(&case, SketchFormat::P4, &pool);
        let Case { gguf, table, .. } = &case;
        let head = ScreenedHead { gguf, table, kernel: &kernel, vector: &vector, sketch: &sketch };
        let mut exact = Screen::new(&sketch, 2).unwrap();
        let (_, stats) =
            scanned(&mut exact, head, &pool, (&x, 1), std::slice::from_ref(Needs::GREEDY)).unwrap();
        assert!(stats.refined <= 4 && stats.rescored <= 4, "{stats:?}");
        assert!(stats.bytes < table.rows(gguf, 0..4000).len() as u64 / 6, "{stats:?}");
        // All logits are 0, and so all are among the best: after that the full head is used for a
        // while.
        let nothing = vec![0.0; x.len()];
        let (_, stats) =
            scanned(&mut exact, head, &pool, (&nothing, 1), std::slice::from_ref(Needs::GREEDY))
                .unwrap();
        assert_eq!((stats.refined, stats.rescored), (4000, 4001));
        let mut turns = Vec::new();
        for _ in 0..3 * REST.0 + 10 {
            turns.push(
                scanned(
                    &mut exact,
                    head,
                    &pool,
                    (&nothing, 1),
                    std::slice::from_ref(Needs::GREEDY),
                )
                .is_some(),
            );
        }
        let scans: Vec<usize> = (0..turns.len()).filter(|&i| turns[i]).collect();
        assert!(scans.len() >= 2 && scans.len() <= 9, "{scans:?}");
        let pause = scans.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert!(pause >= Some(REST.0), "{scans:?}");
    }
}
