//! Slots: the sequences of a session, what their KV caches hold, and the choice of one for a prompt.

/// Tokens that a slot must share with a prompt so that it is taken for them alone.
const WORTH_KEEPING: usize = 16;
/// Tokens by which another slot's prefix must be longer so that it is copied.
const WORTH_COPYING: usize = 64;

/// One sequence of the session.
#[derive(Clone, Debug, Default)]
pub struct Slot {
    /// The tokens in its KV cache.
    pub tokens: Vec<u32>,
    /// True while a text is written in it.
    pub is_busy: bool,
    /// Count of choices when it was chosen last.
    used: u64,
}

/// A slot for a prompt, and what of the prompt need not go through the model again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of the slot.
    pub slot: usize,
    /// First tokens of the prompt that it holds, or is to be given.
    pub cached: usize,
    /// The slot whose first `cached` tokens are to be copied into it.
    pub from: Option<usize>,
}

/// All slots.
#[derive(Clone, Debug)]
pub struct Slots {
    all: Vec<Slot>,
    choices: u64,
}

impl Slots {
    /// Makes empty slots.
    pub fn new(count: usize) -> Self {
        Self { all: vec![Slot::default(); count], choices: 0 }
    }

    /// All slots, by number.
    pub fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.all.iter()
    }

    /// A slot, if there is one of this number.
    pub fn get(&self, slot: usize) -> Option<&Slot> {
        self.all.get(slot)
    }

    /// A slot, if there is one of this number.
    pub fn get_mut(&mut self, slot: usize) -> Option<&mut Slot> {
        self.all.get_mut(slot)
    }

    /// Chooses a free slot for a prompt: the one that is `wanted`, if any; one that holds its
    /// beginning, where that is most of what it holds, so that a talk goes on where it is; else the
    /// one used longest ago, with a copy of the beginning where another one, busy or not, holds more.
    /// The last token of the prompt goes through the model in any case. `None` where none is free.
    pub fn choose(&self, prompt: &[u32], wanted: Option<usize>, cache: bool) -> Option<Place> {
        let reusable = &prompt[..prompt.len().saturating_sub(1)];
        let shared = |slot: &Slot| if cache { common(&slot.tokens, reusable) } else { 0 };
        let is_free = |slot: &Slot| !slot.is_busy;
        let numbered = || self.all.iter().enumerate();
        let slot = match wanted {
            Some(slot) => self.get(slot).filter(|slot| is_free(slot)).map(|_| slot)?,
            None => {
                let own = numbered()
                    .filter(|(_, slot)| is_free(slot))
                    .map(|(number, slot)| (shared(slot), slot.tokens.len(), number))
                    .filter(|&(shared, held, _)| shared >= WORTH_KEEPING && 2 * shared >= held)
                    .max_by_key(|&(shared, held, _)| (shared, std::cmp::Reverse(held)));
                let oldest = || {
                    let free = numbered().filter(|(_, slot)| is_free(slot));
                    free.min_by_key(|(_, slot)| slot.used).map(|(number, _)| number)
                };
                own.map(|(_, _, number)| number).or_else(oldest)?
            }
        };
        let cached = shared(&self.all[slot]);
        let longest = numbered().map(|(from, other)| (shared(other), from)).max();
        match longest {
            Some((longer, from)) if longer >= cached + WORTH_COPYING => {
                Some(Place { slot, cached: longer, from: Some(from) })
            }
            _ => Some(Place { slot, cached, from: None }),
        }
    }

    /// Marks a slot as busy with a text.
    pub fn occupy(&mut self, slot: usize) {
        self.choices += 1;
        if let Some(slot) = self.all.get_mut(slot) {
            (slot.is_busy, slot.used) = (true, self.choices);
        }
    }

    /// Marks a slot as free; what it holds stays.
    pub fn free(&mut self, slot: usize) {
        if let Some(slot) = self.all.get_mut(slot) {
            slot.is_busy = false;
        }
    }
}

/// Length of the common beginning.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slots that hold these tokens, chosen in this order.
    fn slots(held: &[&[u32]]) -> Slots {
        let mut slots = Slots::new(held.len());
        for (number, tokens) in held.iter().enumerate() {
            slots.occupy(number);
            slots.free(number);
            slots.all[number].tokens = tokens.to_vec();
        }
        slots
    }

    fn text(first: u32, len: u32) -> Vec<u32> {
        (first..first + len).collect()
    }

    fn place(slot: usize, cached: usize, from: Option<usize>) -> Option<Place> {
        Some(Place { slot, cached, from })
    }

    #[test]
    fn a_talk_goes_on_where_it_is() {
        let (talk, other) = (text(0, 40), text(1000, 40));
        let slots = slots(&[&other, &talk, &[]]);
        assert_eq!(slots.choose(&text(0, 60), None, true), place(1, 40, None));
        // The same prompt again: its last token has no logits any more.
        assert_eq!(slots.choose(&talk, None, true), place(1, 39, None));
        // Nothing is taken from the cache if that is asked for, and the one used longest ago serves.
        assert_eq!(slots.choose(&talk, None, false), place(0, 0, None));
        assert_eq!(slots.choose(&[5], None, true), place(0, 0, None));
    }

    #[test]
    fn a_short_common_beginning_does_not_cost_another_talk_its_cache() {
        // A system prompt of 40 tokens, and a talk of 500: half of that would be lost.
        let long: Vec<u32> = text(0, 540);
        let slots = slots(&[&[], &long]);
        let mut prompt = text(0, 40);
        prompt.extend(text(5000, 5));
        assert_eq!(slots.choose(&prompt, None, true), place(0, 0, None));
        // From 64 tokens on they are copied.
        let mut prompt = text(0, 80);
        prompt.extend(text(5000, 5));
        assert_eq!(slots.choose(&prompt, None, true), place(0, 80, Some(1)));
    }

    #[test]
    fn a_busy_slot_is_copied_from_and_never_taken() {
        let talk = text(0, 200);
        let mut slots = slots(&[&[], &talk]);
        slots.occupy(1);
        assert_eq!(slots.choose(&talk, None, true), place(0, 199, Some(1)));
        assert_eq!(slots.choose(&talk, Some(1), true), None);
        slots.occupy(0);
        assert_eq!(slots.choose(&talk, None, true), None);
        slots.free(1);
        assert_eq!(slots.choose(&talk, None, true), place(1, 199, None));
    }

    #[test]
    fn the_slot_that_is_asked_for_serves() {
        let talk = text(0, 200);
        let slots = slots(&[&[], &talk, &[9, 9]]);
        assert_eq!(slots.choose(&talk, Some(2), true), place(2, 199, Some(1)));
        assert_eq!(slots.choose(&talk, Some(2), false), place(2, 0, None));
        assert_eq!(slots.choose(&talk, Some(3), true), None);
    }
}
