//! Sets of characters.

use std::fmt::Write as _;

/// Characters, as ranges of code points, ascending, with gaps between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CharSet(Vec<(u32, u32)>);

impl CharSet {
    /// All characters.
    pub(super) fn all() -> Self {
        Self(vec![(0, u32::from(char::MAX))])
    }

    /// The characters from `first` to `last`.
    pub(super) fn of(first: char, last: char) -> Self {
        Self(vec![(first.into(), last.into())])
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the characters of another set. Returns true if any of them is new.
    pub(super) fn add(&mut self, other: &Self) -> bool {
        if other.0.iter().all(|&(first, last)| {
            let at = self.0.partition_point(|range| range.1 < first);
            self.0.get(at).is_some_and(|range| range.0 <= first && last <= range.1)
        }) {
            return false;
        }
        self.0.extend(&other.0);
        self.0.sort_unstable();
        self.0.dedup_by(|next, range| {
            let joins = next.0 <= range.1 + 1;
            if joins {
                range.1 = range.1.max(next.1);
            }
            joins
        });
        true
    }

    /// The characters that are not in the set.
    pub(super) fn complement(&self) -> Self {
        let mut next = 0;
        let mut gaps = Vec::new();
        for &(first, last) in &self.0 {
            if next < first {
                gaps.push((next, first - 1));
            }
            next = last + 1;
        }
        if next <= char::MAX.into() {
            gaps.push((next, char::MAX.into()));
        }
        Self(gaps)
    }

    /// True if a character is in both sets.
    pub(super) fn meets(&self, other: &Self) -> bool {
        let (mut own, mut theirs) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let (Some(a), Some(b)) = (own.peek(), theirs.peek()) {
            if a.1 < b.0 {
                own.next();
            } else if b.1 < a.0 {
                theirs.next();
            } else {
                return true;
            }
        }
        false
    }

    /// The set as a regular expression.
    pub(super) fn regex(&self) -> String {
        // Half of a pair of UTF-16 is no character.
        let from = |code: u32| if (0xd800..0xe000).contains(&code) { 0xe000 } else { code };
        let to = |code: u32| if (0xd800..0xe000).contains(&code) { 0xd7ff } else { code };
        match self.0[..] {
            [(first, last)] if first == last => escaped(first),
            _ => {
                let mut regex = String::from("[");
                for &(first, last) in &self.0 {
                    let (first, last) = (from(first), to(last));
                    if first <= last {
                        _ = write!(regex, "{}-{}", escaped(first), escaped(last));
                    }
                }
                regex.push(']');
                regex
            }
        }
    }
}

/// A character as a regular expression has it, also within a set.
fn escaped(code: u32) -> String {
    match char::from_u32(code) {
        Some(c) if c.is_ascii_alphanumeric() => c.to_string(),
        _ => format!(r"\x{{{code:X}}}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_joined_and_inverted() {
        let mut set = CharSet::of('c', 'f');
        assert!(set.add(&CharSet::of('a', 'b')) && set.add(&CharSet::of('x', 'x')));
        assert!(!set.add(&CharSet::of('b', 'e')) && !set.add(&CharSet::default()));
        assert_eq!(set.regex(), "[a-fx-x]");
        let rest = set.complement();
        assert!(!rest.meets(&set) && rest.meets(&CharSet::of('f', 'g')));
        assert_eq!(rest.complement(), set);
        let mut all = rest.clone();
        all.add(&set);
        assert_eq!(all, CharSet::all());
        assert_eq!(CharSet::default().complement(), CharSet::all());
        assert!(CharSet::all().complement().is_empty());
        let around = CharSet::of('\u{e000}', char::MAX).complement();
        assert_eq!(around.regex(), r"[\x{0}-\x{D7FF}]");
        assert_eq!(CharSet::of('/', '/').regex(), r"\x{2F}");
    }
}
