//! Products of many tokens with the expanded form of the packing, which is made chunk by chunk.

use std::ops::Range;

use super::{Job, Part, Scratch, rows_of};
use crate::cpu::memory::ALIGN;
use crate::cpu::threads::{SharedSlice, Worker};

/// Bytes of the expanded form in the workspace at a time: they stay in the caches. The ternary
/// products of 128 tokens took 268 to 287 ms with 6 MiB, 271 to 306 ms with 16 MiB.
const CHUNK_BYTES: usize = 6 << 20;

/// Smallest number of tiles in a band of rows: each band builds the tables of all tokens again.
const BAND_TILES: usize = 40;

/// Parts of the work on a chunk for each member of a team, enough to balance the load. Fewer where
/// a part would have less than `PART_TILES` tiles.
const PARTS: usize = 4;
const PART_TILES: usize = 24;

/// Workers that share a band of the rows. A team is one worker where there are rows enough, since a
/// core reads slowly what another core has expanded.
pub(super) struct Team {
    /// Number of bands, and the band of this team.
    bands: usize,
    band: usize,
    /// Number of workers in a team, and this worker's number in it.
    members: usize,
    member: usize,
}

impl Team {
    /// Returns this worker's part of `0..n`, split as by [`Worker::share`].
    fn share(&self, n: usize) -> Range<usize> {
        n * self.member / self.members..n * (self.member + 1) / self.members
    }
}

impl Job {
    /// Returns the number of bands of rows for so many workers: that number or a divisor of it.
    pub(super) fn bands(&self, threads: usize) -> usize {
        let most = (self.tiles() / BAND_TILES).clamp(1, threads);
        (1..=most).rev().find(|bands| threads.is_multiple_of(*bands)).unwrap_or(1)
    }

    pub(super) fn team(&self, worker: &Worker<'_>) -> Team {
        let bands = self.bands(worker.threads);
        let members = worker.threads / bands;
        let (band, member) = (worker.index / members, worker.index % members);
        Team { bands, band, members, member }
    }

    /// Returns the tiles of a band: whole steps, except in the last band.
    fn band(&self, bands: usize, band: usize) -> Range<usize> {
        let start = |band: usize| {
            let tile = self.tiles() * band / bands;
            tile.next_multiple_of(self.prefill.step_tiles()).min(self.tiles())
        };
        start(band)..start(band + 1)
    }

    /// Returns the tiles of a band that are expanded at a time, a whole number of steps, for so
    /// many bands.
    pub(super) fn chunk_tiles(&self, bands: usize) -> usize {
        let step = self.prefill.step_tiles();
        let most = CHUNK_BYTES / bands / self.prefill.expanded_bytes(1, self.cols) / step * step;
        most.clamp(step, self.tiles().div_ceil(bands).next_multiple_of(step) + step)
    }

    /// Returns the bytes of a chunk in the workspace.
    pub(super) fn chunk_bytes(&self, bands: usize) -> usize {
        self.prefill.expanded_bytes(self.chunk_tiles(bands), self.cols).next_multiple_of(ALIGN)
    }

    /// Returns the number of tiles of all parts, which are the steps of a kernel that expands.
    fn tiles(&self) -> usize {
        self.steps(self.prefill.layout().tile_rows())
    }

    /// [`Job::prefill_prepared`] from the expanded form, chunk by chunk: every team has a band of
    /// the rows, and every member of it some of the tokens.
    ///
    /// # Safety
    /// As [`Job::prefill_prepared`]; `groups` are those in front of the chunks in `workspace`.
    pub(super) unsafe fn prefill_expanded(
        &self,
        worker: &Worker<'_>,
        (groups, workspace): (&[u8], &SharedSlice<'_, u8>),
        scales: &[f32],
        scratch: &mut Scratch,
        out: &SharedSlice<'_, f32>,
    ) {
        let kernel = &self.prefill;
        let team = self.team(worker);
        let bytes = kernel.group_bytes(self.cols);
        let count = scales.len().div_ceil(kernel.tokens());
        let bands = (0..team.bands).map(|band| self.band(team.bands, band).len());
        let chunks = bands.max().unwrap_or(0).div_ceil(self.chunk_tiles(team.bands));
        for index in 0..chunks {
            if index > 0 {
                if team.members > 1 {
                    worker.barrier();
                }
                // SAFETY: the members have done with the chunk before: a barrier lies between, or there
                // is one member only.
                unsafe { self.expand(&team, index, scales.len(), workspace) };
                if team.members > 1 {
                    worker.barrier();
                }
            }
            let chunk = self.chunk(&team, index);
            let expanded = self.chunk_range(&team, chunk.len(), scales.len());
            // SAFETY: written by this worker, or before the barrier, and read-only until the next one.
            let expanded = (unsafe { workspace.read(expanded) }, chunk.len(), self.cols);
            let wanted = if team.members == 1 { 1 } else { (PARTS * team.members).div_ceil(count) };
            let parts = wanted.clamp(1, chunk.len().div_ceil(PART_TILES).max(1));
            for unit in team.share(parts * count) {
                let (part, index) = (unit / count, unit % count);
                let tile = |part: usize| {
                    (chunk.len() * part / parts).next_multiple_of(kernel.step_tiles())
                };
                let tiles = tile(part).min(chunk.len())..tile(part + 1).min(chunk.len());
                let group = &groups[index * bytes..(index + 1) * bytes];
                let stride = tiles.len() * kernel.step_rows();
                let dots = scratch.dots.as_i32_mut();
                kernel.run_expanded(expanded, tiles.clone(), group, dots, stride);
                let (from, to) = (chunk.start + tiles.start, chunk.start + tiles.end);
                let step_rows = kernel.step_rows();
                self.for_steps(from..to, step_rows, |part, own, at| {
                    let Part { matrix, offset, .. } = part;
                    let rows = rows_of(matrix, step_rows, &own);
                    let at = (at - from) * step_rows;
                    let tokens = scales.chunks(kernel.tokens()).nth(index).unwrap_or(&[]);
                    for (i, &s) in tokens.iter().enumerate() {
                        let token = (index * kernel.tokens() + i) * self.rows + offset;
                        // SAFETY: units are disjoint, and so are bands; nothing else accesses them,
                        // as the caller promises.
                        let out = unsafe { out.write(token + rows.start..token + rows.end) };
                        let dots = &dots[i * stride + at..][..rows.len()];
                        self.write_out(part, &rows, (dots, s), out);
                    }
                });
            }
        }
    }

    /// Returns the tiles of a team's chunk.
    fn chunk(&self, team: &Team, index: usize) -> Range<usize> {
        let band = self.band(team.bands, team.band);
        let most = self.chunk_tiles(team.bands);
        let start = (band.start + index * most).min(band.end);
        start..(start + most).min(band.end)
    }

    /// Expands the member's share of a chunk.
    ///
    /// # Safety
    /// The members of the team call it, each at most once in a phase, with the same chunk. Until the next
    /// barrier, or the end of the call where the team has one member, nothing else reads or writes the
    /// team's chunk in `workspace`.
    pub(super) unsafe fn expand(
        &self,
        team: &Team,
        index: usize,
        tokens: usize,
        workspace: &SharedSlice<'_, u8>,
    ) {
        let chunk = self.chunk(team, index);
        let share = team.share(chunk.len());
        let expanded = workspace.part(self.chunk_range(team, chunk.len(), tokens));
        let (from, to) = (chunk.start + share.start, chunk.start + share.end);
        self.for_steps(from..to, self.prefill.step_rows(), |part, tiles, at| {
            let place = (at - chunk.start, chunk.len());
            // SAFETY: shares of a chunk are disjoint, and nothing else accesses them, as the caller
            // promises.
            unsafe { self.prefill.expand(part.matrix, tiles, place, &expanded) };
        });
    }

    /// Returns the range in the workspace of a team's chunk of so many tiles.
    fn chunk_range(&self, team: &Team, tiles: usize, tokens: usize) -> Range<usize> {
        let start = self.groups_bytes(tokens) + team.band * self.chunk_bytes(team.bands);
        start..start + self.prefill.expanded_bytes(tiles, self.cols)
    }
}
