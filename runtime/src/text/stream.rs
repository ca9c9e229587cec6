//! Decodes tokens that arrive one by one.

use super::tokenizer::Tokenizer;

/// Turns tokens into text as they arrive and never splits a UTF-8 character: the bytes of an
/// unfinished one wait for the next token.
#[derive(Clone, Debug, Default)]
pub struct StreamDecoder {
    /// At most 3 bytes between calls.
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// Returns the text that `id` completes, perhaps none. Bytes that can never become UTF-8 are
    /// U+FFFD.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        tokenizer.decode_into(id, &mut self.pending);
        let mut out = String::new();
        let mut waiting = 0;
        let mut chunks = self.pending.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            out.push_str(chunk.valid());
            let invalid = chunk.invalid();
            if chunks.peek().is_none() && is_prefix(invalid) {
                // An earlier chunk is followed by a byte that broke it off.
                waiting = invalid.len();
            } else if !invalid.is_empty() {
                out.push(char::REPLACEMENT_CHARACTER);
            }
        }
        let done = self.pending.len() - waiting;
        self.pending.drain(..done);
        out
    }

    /// Ends the stream; an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let out = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        out
    }
}

/// True if the bytes are the beginning of a UTF-8 character.
fn is_prefix(bytes: &[u8]) -> bool {
    matches!(std::str::from_utf8(bytes), Err(e) if e.error_len().is_none())
}
