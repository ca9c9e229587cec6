//! Joins the characters of a text into pieces of a SentencePiece vocabulary: always the two neighbours
//! whose pieces together are the piece of the highest score.
//!
//! A list of merges, as byte-level BPE has it, would hold every split of every piece into two pieces: for
//! a vocabulary of `a`, `aa`, `aaa` ... that is the square of its size. So the whole is looked up where
//! two pieces meet, and only ids and places are kept.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use tokenizers::models::bpe::Vocab;

use super::vocabulary::{Kind, MAX_TOKEN};
use crate::file::gguf::StrArray;

/// A place that is none: before the first symbol, behind the last.
const NONE: u32 = u32::MAX;

/// The pieces of a vocabulary, and how they join.
pub(super) struct Pieces {
    ids: Vocab,
    /// For each id: how many pieces come before it; none for one that joining never gives.
    ranks: Vec<Option<u32>>,
    /// For each id: true if it is an ordinary piece. Control and byte tokens never join.
    joins: Vec<bool>,
    /// The id of what is no piece and has no byte tokens.
    unknown: Option<u32>,
}

/// A part of a text; joined ones grow, and their right neighbours are left empty.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    start: u32,
    /// Bytes of the text.
    len: u32,
    previous: u32,
    next: u32,
    joins: bool,
}

/// Two neighbours that can be joined. The order is that in which they are: by rank, then the shorter left
/// part, then the place in the text.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    rank: u32,
    left_len: u32,
    /// The left symbol's number.
    left: u32,
    /// Bytes of both: another number says that one of them has changed since.
    len: u32,
}

impl Pieces {
    /// Pieces of a vocabulary. `order` lists the ids of ordinary ones by falling score; of two tokens with
    /// one text `ids` holds the last.
    pub(super) fn new(
        ids: Vocab,
        tokens: &StrArray,
        kinds: &[Kind],
        order: &[usize],
        unknown: Option<u32>,
    ) -> Self {
        let mut ranks = vec![None; tokens.len()];
        for (&piece, rank) in order.iter().zip(0..) {
            let id = tokens.get(piece).and_then(|text| ids.get(text));
            if let Some(of_id) = id.and_then(|&id| ranks.get_mut(id as usize)) {
                *of_id = Some(rank);
            }
        }
        let joins = kinds.iter().map(|kind| kind.joins()).collect();
        Self { ids, ranks, joins, unknown }
    }

    /// Appends the ids of `word`, of less than 4 GiB; none where it holds a character that the
    /// vocabulary cannot express.
    pub(super) fn encode(&self, word: &str, ids: &mut Vec<u32>) -> Option<()> {
        let mut symbols = self.symbols(word)?;
        let pair = |symbols: &[Symbol], left| self.pair(word, symbols, left).map(Reverse);
        let all = 0..symbols.len() as u32;
        let mut pairs: BinaryHeap<_> = all.filter_map(|left| pair(&symbols, left)).collect();
        while let Some(Reverse(Pair { left, len, .. })) = pairs.pop() {
            let own = symbols[left as usize];
            let Some(&right) = symbols.get(own.next as usize) else { continue };
            if own.len == 0 || own.len + right.len != len {
                continue;
            }
            // Both may be other pieces than they were, of the same length together.
            let Some((id, _)) = self.joined(word, own, right) else { continue };
            symbols[own.next as usize].len = 0;
            if let Some(next) = symbols.get_mut(right.next as usize) {
                next.previous = left;
            }
            let joins = self.joins[id as usize];
            symbols[left as usize] = Symbol { id, len, next: right.next, joins, ..own };
            pairs.extend([own.previous, left].into_iter().filter_map(|left| pair(&symbols, left)));
        }
        ids.extend(symbols.iter().filter(|symbol| symbol.len > 0).map(|symbol| symbol.id));
        Some(())
    }

    /// One symbol for each character, or for each of its bytes where it is no piece.
    fn symbols(&self, word: &str) -> Option<Vec<Symbol>> {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(word.len());
        let mut add = |id, start: usize, len: usize, joins| {
            let number = symbols.len() as u32;
            let (start, len) = (start as u32, len as u32);
            let previous = number.checked_sub(1).unwrap_or(NONE);
            symbols.push(Symbol { id, start, len, previous, next: number + 1, joins });
        };
        for (start, c) in word.char_indices() {
            let text = &word[start..start + c.len_utf8()];
            if let Some(&id) = self.ids.get(text) {
                add(id, start, text.len(), self.joins[id as usize]);
                continue;
            }
            let byte_id = |byte: u8| self.ids.get(&format!("<{byte:#04X}>")).copied();
            match text.bytes().map(byte_id).collect::<Option<Vec<u32>>>() {
                Some(bytes) => {
                    for (id, at) in bytes.into_iter().zip(start..) {
                        add(id, at, 1, false);
                    }
                }
                None => add(self.unknown?, start, text.len(), false),
            }
        }
        Some(symbols)
    }

    /// The pair of a symbol and its right neighbour, if they can be joined.
    fn pair(&self, word: &str, symbols: &[Symbol], left: u32) -> Option<Pair> {
        let own = *symbols.get(left as usize)?;
        let right = *symbols.get(own.next as usize)?;
        let (_, rank) = self.joined(word, own, right)?;
        Some(Pair { rank, left_len: own.len, left, len: own.len + right.len })
    }

    /// The piece that two neighbours are together, and its rank.
    fn joined(&self, word: &str, left: Symbol, right: Symbol) -> Option<(u32, u32)> {
        let len = (left.len + right.len) as usize;
        if !(left.joins && right.joins) || len > MAX_TOKEN {
            return None;
        }
        let start = left.start as usize;
        let id = *self.ids.get(word.get(start..start + len)?)?;
        Some((id, self.ranks[id as usize]?))
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::Model;
    use tokenizers::models::bpe::BPE;

    use super::*;
    use crate::engine::sampler::Rng;

    /// The pieces of a vocabulary whose scores fall as its ids rise.
    fn pieces(tokens: &[(&str, Kind)], unknown: Option<u32>) -> Pieces {
        let ids = tokens.iter().zip(0..).map(|((text, _), id)| (text.to_string(), id)).collect();
        let kinds: Vec<Kind> = tokens.iter().map(|&(_, kind)| kind).collect();
        let order: Vec<usize> = (0..tokens.len()).filter(|&id| kinds[id].joins()).collect();
        let texts = tokens.iter().map(|&(text, _)| text).collect();
        Pieces::new(ids, &texts, &kinds, &order, unknown)
    }

    fn encode(pieces: &Pieces, word: &str) -> Option<Vec<u32>> {
        let mut ids = Vec::new();
        pieces.encode(word, &mut ids).map(|()| ids)
    }

    /// Byte-level BPE with every split of every piece as a merge writes the same.
    #[test]
    fn pieces_join_as_by_a_list_of_all_merges() {
        let mut random = Rng::new(1);
        let mut joined = 0;
        for _ in 0..300 {
            let mut texts = vec!["a".to_owned(), "b".to_owned(), "é".to_owned()];
            for _ in 0..12 {
                let len = 2 + random.next_u64() % 4;
                let letter = |_| ["a", "b", "é"][(random.next_u64() % 3) as usize];
                texts.push((0..len).map(letter).collect());
            }
            let tokens: Vec<(&str, Kind)> =
                texts.iter().map(|text| (text.as_str(), Kind::Normal)).collect();
            let own = pieces(&tokens, None);
            // Of two tokens with one text the last counts.
            let mut merges = Vec::new();
            for text in &texts {
                for (at, _) in text.char_indices().skip(1) {
                    let (a, b) = text.split_at(at);
                    if own.ids.contains_key(a) && own.ids.contains_key(b) {
                        merges.push((a.to_owned(), b.to_owned()));
                    }
                }
            }
            let bpe = BPE::builder().vocab_and_merges(own.ids.clone(), merges).build().unwrap();
            for _ in 0..20 {
                let len = random.next_u64() % 40;
                let letter = |_| ["a", "b", "é"][(random.next_u64() % 3) as usize];
                let word: String = (0..len).map(letter).collect();
                let expected: Vec<u32> =
                    bpe.tokenize(&word).unwrap().iter().map(|token| token.id).collect();
                joined += usize::from(expected.len() < word.chars().count());
                assert_eq!(encode(&own, &word).unwrap(), expected, "{word} of {texts:?}");
            }
        }
        assert!(joined > 1000);
    }

    #[test]
    fn what_is_no_piece_is_its_bytes_or_unknown_or_refused() {
        let tokens = [
            ("a", Kind::Normal),
            ("<0xC3>", Kind::Byte),
            ("<0xA9>", Kind::Byte),
            ("<unk>", Kind::Unknown),
            ("aa", Kind::Control),
            ("<0xC3><0xA9>", Kind::Normal),
        ];
        let own = pieces(&tokens, Some(3));
        assert_eq!(encode(&own, "aaé\u{a1}a"), Some(vec![0, 0, 1, 2, 3, 0]));
        let own = pieces(&tokens, None);
        assert_eq!(encode(&own, "é"), Some(vec![1, 2]));
        assert_eq!(encode(&own, "a\u{a1}"), None);
        assert_eq!(encode(&own, ""), Some(vec![]));
    }
}
