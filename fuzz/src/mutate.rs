//! Mutants of seeds: what breaks parsers is rarely a random byte, but a length one too large, an
//! integer at its edge, half a file, or a part of another one.

use bitnet_runtime::random::Random;

/// The longest mutant.
const MAX_BYTES: usize = 16 << 10;

/// Integers at which something ends: of 8, 16, 32 and 64 bits, and limits of the formats.
const EDGES: [u64; 18] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x1_0000,
    0x1_0001,
    16 << 20,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 40,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

/// Replacements for a number or a word of a text.
const WORDS: [&str; 22] = [
    "0",
    "-1",
    "1e999",
    "-0.0",
    "nan",
    "inf",
    "null",
    "true",
    "255",
    "65536",
    "16777217",
    "4294967296",
    "18446744073709551616",
    "\"\"",
    "\"\u{e9}\\u0000\"",
    "[",
    "{",
    "}]",
    "\n",
    "\u{2581}",
    "<|eot_id|>",
    "<0xFF>",
];

/// The mutant with a number: the same for the same `seed`, `number` and seeds, whatever came before.
pub fn mutant(seed: u64, number: u64, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut mutation = Mutation {
        random: Random::new(seed.wrapping_mul(0x0001_0000_0001_b3a5) ^ number.wrapping_add(1)),
        bytes: Vec::new(),
    };
    // Neighbouring numbers begin with similar states.
    for _ in 0..8 {
        mutation.random.below(2);
    }
    let first = mutation.below(seeds.len());
    mutation.bytes.clone_from(&seeds[first]);
    // Most have few faults: with many the first hides the others.
    let count = 1 + mutation.below(2) * mutation.below(6);
    for _ in 0..count {
        let donor = &seeds[mutation.below(seeds.len())];
        mutation.change(donor);
        mutation.bytes.truncate(MAX_BYTES);
    }
    mutation.bytes
}

struct Mutation {
    random: Random,
    bytes: Vec<u8>,
}

impl Mutation {
    /// A number below `n`; 0 where `n` is.
    fn below(&mut self, n: usize) -> usize {
        self.random.below(n as u64) as usize
    }

    fn edge(&mut self) -> u64 {
        let edge = EDGES[self.below(EDGES.len())];
        edge.wrapping_add(self.below(3) as u64).wrapping_sub(1)
    }

    /// A part of `0..len`, rarely a long one.
    fn part(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.below(len + 1);
        let most = if self.below(8) == 0 { len } else { 32 };
        let end = start + self.below(most.min(len - start) + 1);
        start..end
    }

    fn overwrite(&mut self, at: usize, new: &[u8]) {
        let n = new.len().min(self.bytes.len() - at);
        self.bytes[at..at + n].copy_from_slice(&new[..n]);
    }

    fn change(&mut self, donor: &[u8]) {
        let len = self.bytes.len();
        if len == 0 {
            let part = self.part(donor.len());
            return self.bytes.extend_from_slice(&donor[part]);
        }
        let at = self.below(len);
        match self.below(10) {
            0 => self.bytes[at] ^= 1 << self.below(8),
            1 => self.bytes[at] = self.edge() as u8,
            2 => {
                let (edge, width) = (self.edge(), 2 << self.below(3));
                self.overwrite(at, &edge.to_le_bytes()[..width]);
            }
            3 => self.change_length(at),
            4 => {
                let range = self.part(len);
                self.bytes.drain(range);
            }
            5 => {
                let range = self.part(len);
                let copy = self.bytes[range].to_vec();
                self.bytes.splice(at..at, copy);
            }
            6 => {
                let range = self.part(donor.len());
                let end = at + self.below((len - at).min(32) + 1);
                self.bytes.splice(at..end, donor[range].iter().copied());
            }
            // The same place in both, so that fields stay where they are.
            7 => {
                let range = self.part(donor.len().min(len));
                let start = range.start;
                self.overwrite(start.min(len - 1), &donor[range]);
            }
            8 => self.change_word(at),
            _ if self.below(4) == 0 => self.bytes.truncate(at),
            _ => {
                let word = WORDS[self.below(WORDS.len())];
                self.bytes.splice(at..at, word.bytes());
            }
        }
    }

    /// Changes what may be a length: the next 8 bytes that hold a number no larger than what follows
    /// them.
    fn change_length(&mut self, from: usize) {
        let fits = |at: &usize| {
            let field = self.bytes.get(*at..at + 8)?;
            let value = u64::from_le_bytes(field.try_into().ok()?);
            (1..=(self.bytes.len() - at - 8) as u64).contains(&value).then_some((*at, value))
        };
        let Some((at, value)) = (from..self.bytes.len()).find_map(|at| fits(&at)) else { return };
        let new = match self.below(4) {
            0 => value + 1,
            1 => value - 1,
            2 => (self.bytes.len() - at - 8) as u64 + self.below(2) as u64,
            _ => self.edge(),
        };
        self.overwrite(at, &new.to_le_bytes());
    }

    /// Puts a word in the place of the next run of letters and digits.
    fn change_word(&mut self, from: usize) {
        let is_in_word = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        let rest = &self.bytes[from..];
        let Some(start) = rest.iter().position(is_in_word) else { return };
        let len = rest[start..].iter().position(|b| !is_in_word(b)).unwrap_or(rest.len() - start);
        let word = WORDS[self.below(WORDS.len())];
        self.bytes.splice(from + start..from + start + len, word.bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn mutants_differ_and_can_be_made_again() {
        let seeds = ["{\"seconds\": 12.5, \"threads\": 2}", "[run]\nthreads = 1\nisa = \"avx2\"\n"];
        let seeds = seeds.map(|seed| seed.as_bytes().to_vec());
        let all: HashSet<Vec<u8>> = (0..2000).map(|n| mutant(1, n, &seeds)).collect();
        assert!(all.len() > 1000, "{}", all.len());
        for number in [0, 7, 1999] {
            assert_eq!(mutant(1, number, &seeds), mutant(1, number, &seeds));
            assert!(all.contains(&mutant(1, number, &seeds)));
        }
        let other: HashSet<Vec<u8>> = (0..2000).map(|n| mutant(2, n, &seeds)).collect();
        assert!(other.difference(&all).count() > 500, "{}", other.difference(&all).count());
    }
}
