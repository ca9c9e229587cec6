//! Stop strings: texts that end a generation where they appear, and are not part of it.
#![forbid(unsafe_code)]

/// Finds stop strings in a text that arrives in pieces. What may be the beginning of one is held back until
/// that is decided, so what is given out is the same however the text is cut into pieces.
///
/// The stop string that begins first counts; of several that begin there, the one that is complete first. The
/// text ends where it begins.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    stops: Vec<Stop>,
    /// Text that is not given out yet: from the beginning of what may be a stop string.
    held: String,
    /// Bytes of text before `held`.
    given: usize,
    found: Option<usize>,
}

/// One stop string, as an automaton (Knuth, Morris and Pratt) that reads the text byte by byte.
#[derive(Clone, Debug)]
struct Stop {
    text: String,
    /// For each number of matching bytes, the number that still match if the next one does not.
    fallback: Vec<usize>,
    /// Bytes of the string with which the text so far ends.
    matching: usize,
    /// Place in the text where the string begins, once it is complete.
    found: Option<usize>,
}

impl Stop {
    fn new(text: String) -> Self {
        let bytes = text.as_bytes();
        let mut fallback = vec![0; bytes.len()];
        let mut matching = 0;
        for i in 1..bytes.len() {
            while matching > 0 && bytes[i] != bytes[matching] {
                matching = fallback[matching - 1];
            }
            matching += usize::from(bytes[i] == bytes[matching]);
            fallback[i] = matching;
        }
        Self { text, fallback, matching: 0, found: None }
    }

    /// Reads the byte of the text that ends at `end`.
    fn read(&mut self, byte: u8, end: usize) {
        if self.found.is_some() {
            return;
        }
        let bytes = self.text.as_bytes();
        while self.matching > 0 && bytes[self.matching] != byte {
            self.matching = self.fallback[self.matching - 1];
        }
        self.matching += usize::from(bytes[self.matching] == byte);
        if self.matching == bytes.len() {
            self.found = Some(end - bytes.len());
            self.matching = 0;
        }
    }
}

impl StopStrings {
    /// Makes a search for these strings; empty ones are left out.
    #[must_use]
    pub fn new(strings: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let strings = strings.into_iter().map(Into::into);
        let stops = strings.filter(|string: &String| !string.is_empty()).map(Stop::new);
        Self { stops: stops.collect(), ..Self::default() }
    }

    /// Takes the next piece of the text, of whole characters, and appends to `out` what is no part of a stop
    /// string. Returns true once one is found; whatever follows is dropped.
    pub fn push(&mut self, piece: &str, out: &mut String) -> bool {
        if self.stops.is_empty() {
            out.push_str(piece);
            return false;
        }
        if self.found.is_some() {
            return true;
        }
        let mut end = self.given + self.held.len();
        self.held.push_str(piece);
        for byte in piece.bytes() {
            end += 1;
            self.stops.iter_mut().for_each(|stop| stop.read(byte, end));
            if let (Some((at, stop)), begun) = (self.first_found(), self.first_begun(end))
                && begun >= at
            {
                self.stop(at, stop, out);
                return true;
            }
        }
        let undecided = self.first_found().map_or(end, |(at, _)| at).min(self.first_begun(end));
        self.give(undecided, out);
        false
    }

    /// Ends the text: appends to `out` what was held back. Returns true if a stop string is found: one that
    /// was complete, while another that had begun before it was not.
    pub fn finish(&mut self, out: &mut String) -> bool {
        match self.first_found() {
            _ if self.found.is_some() => {}
            Some((at, stop)) => self.stop(at, stop, out),
            None => self.give(self.given + self.held.len(), out),
        }
        self.found.is_some()
    }

    /// The stop string that was found.
    #[must_use]
    pub fn found(&self) -> Option<&str> {
        self.found.map(|stop| self.stops[stop].text.as_str())
    }

    /// Place and number of the complete stop string that begins first; the shortest of several.
    fn first_found(&self) -> Option<(usize, usize)> {
        let complete = self.stops.iter().enumerate().filter_map(|(i, s)| Some((s.found?, i)));
        complete.min_by_key(|&(at, i)| (at, self.stops[i].text.len()))
    }

    /// The first place from which the text up to `end` may become a stop string; `end` if there is none.
    fn first_begun(&self, end: usize) -> usize {
        self.stops.iter().map(|stop| end - stop.matching).min().unwrap_or(end)
    }

    fn stop(&mut self, at: usize, stop: usize, out: &mut String) {
        self.give(at, out);
        self.held.clear();
        self.found = Some(stop);
    }

    /// Gives out the text before `place`, which is where a character begins, as stop strings do.
    fn give(&mut self, place: usize, out: &mut String) {
        out.extend(self.held.drain(..place - self.given));
        self.given = place;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// The text before the first stop string and that string, by the definition.
    fn defined<'a>(text: &'a str, stops: &[&'a str]) -> (&'a str, Option<&'a str>) {
        let found = stops.iter().filter(|stop| !stop.is_empty());
        let found = found.filter_map(|stop| Some((text.find(stop)?, stop.len(), *stop)));
        match found.min() {
            Some((at, _, stop)) => (&text[..at], Some(stop)),
            None => (text, None),
        }
    }

    /// What is given out for a text in pieces, and the stop string.
    fn streamed(pieces: &[&str], stops: &[&str]) -> (String, Option<String>) {
        let mut search = StopStrings::new(stops.iter().copied());
        let mut out = String::new();
        for piece in pieces {
            if search.push(piece, &mut out) {
                break;
            }
        }
        assert_eq!(search.finish(&mut out), search.found().is_some());
        (out, search.found().map(str::to_owned))
    }

    #[test]
    fn strings_are_found_at_every_split() {
        let cases: [(&str, &[&str]); 10] = [
            ("one two three", &["two"]),
            ("one two three", &["tw", "two"]),
            ("aaab", &["aab"]),
            ("abcabd", &["abd"]),
            // The later end begins first.
            ("xabcdy", &["bc", "abcd"]),
            // What begins first is never complete.
            ("xabcey", &["bc", "abcd"]),
            ("xabc", &["bc", "abcd"]),
            ("a €€ b", &["€ "]),
            ("text", &["", "none"]),
            ("", &["a"]),
        ];
        for (text, stops) in cases {
            let (before, stop) = defined(text, stops);
            let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).skip(1).collect();
            // Every subset of the places between characters.
            for cuts in 0..1u32 << ends.len() {
                let mut pieces = Vec::new();
                let mut last = 0;
                for (i, &end) in ends.iter().enumerate() {
                    if cuts >> i & 1 == 1 {
                        pieces.push(&text[last..end]);
                        last = end;
                    }
                }
                pieces.push(&text[last..]);
                let found = streamed(&pieces, stops);
                assert_eq!((found.0.as_str(), found.1.as_deref()), (before, stop), "{pieces:?}");
            }
        }
    }

    /// Random texts, stop strings and pieces over few letters, so that most nearly match.
    #[test]
    fn random_texts_stop_where_they_should() {
        let mut random = Random::new(7);
        let mut words = |most: u64, longest: u64| -> Vec<String> {
            let mut word = || -> String {
                let letters = ['a', 'b', 'é'];
                (0..random.below(longest + 1)).map(|_| letters[random.below(3) as usize]).collect()
            };
            (0..most).map(|_| word()).collect()
        };
        let mut stopped = 0;
        for turn in 0..20_000 {
            let (stops, pieces) = (words(turn % 4, 5), words(turn % 9, 4));
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let parts: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let text = pieces.concat();
            let (before, stop) = defined(&text, &stops);
            let found = streamed(&parts, &stops);
            assert_eq!(
                (found.0.as_str(), found.1.as_deref()),
                (before, stop),
                "{parts:?} {stops:?}"
            );
            stopped += usize::from(stop.is_some());
        }
        assert!((2000..18_000).contains(&stopped), "{stopped}");
    }

    #[test]
    fn only_what_may_become_a_stop_string_is_held_back() {
        let mut search = StopStrings::new(["STOP"]);
        let mut given = |piece: &str| {
            let mut out = String::new();
            search.push(piece, &mut out);
            out
        };
        let pieces =
            [("one S", "one "), ("T", ""), ("AT", "STAT"), ("S", ""), ("STO", "S"), ("", "")];
        for (piece, expected) in pieces {
            assert_eq!(given(piece), expected, "{piece:?}");
        }
        let mut rest = String::new();
        assert!(!search.finish(&mut rest));
        assert_eq!(rest, "STO");
    }
}
