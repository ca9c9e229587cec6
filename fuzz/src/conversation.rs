//! Conversations: chat templates, grammars that hold answers to a form, and saved conversations.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use bitnet_cli::chat::{Parameters, Saved};
use bitnet_runtime::file::gguf::Gguf;
use bitnet_runtime::random::Random;
use bitnet_runtime::{
    Chat, Conversation, Grammars, Json, Message, Sampling, Sequence, SequenceOptions,
    TemplateChoice, Tokenizer, Variables,
};
use serde::Deserialize;

use crate::seeds;

/// Most bytes of a rendered conversation that are cut into tokens here, so that it takes no time.
const MAX_TEXT: usize = 64 << 10;

/// A small file with a vocabulary of byte-level BPE, and its tokenizer.
static VOCABULARY: LazyLock<(Gguf, Arc<Tokenizer>)> = LazyLock::new(|| {
    let gguf = Gguf::from_bytes("v.gguf", seeds::byte_level()).expect("a sound file");
    let tokenizer = Tokenizer::from_gguf(&gguf).expect("a sound vocabulary");
    (gguf, Arc::new(tokenizer))
});

/// What a template makes a text of.
#[derive(Deserialize)]
struct Talk {
    #[serde(default)]
    messages: Vec<Message>,
    #[serde(default)]
    tools: Vec<Json>,
    #[serde(default)]
    variables: Variables,
}

/// A template and a conversation: two bytes for the conversation's length, the conversation in JSON,
/// the template. Accepted when the template gives a text.
pub fn template(data: &[u8]) -> bool {
    let (gguf, tokenizer) = &*VOCABULARY;
    let Some((talk, source)) = crate::part(data) else { return false };
    let Ok(source) = std::str::from_utf8(source) else { return false };
    let Ok(Talk { messages, tools, variables }) = serde_json::from_slice(talk) else {
        return false;
    };
    let choice = TemplateChoice::Source(source.to_owned());
    let Ok(chat) = Chat::new(gguf, Arc::clone(tokenizer), &choice) else { return false };
    let mut conversation = Conversation { messages, tools, variables, ..Conversation::default() };
    let Ok(text) = chat.render(&conversation) else { return false };
    if text.len() > MAX_TEXT {
        return true;
    }
    if let Ok(ids) = chat.ids(&conversation) {
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()), "{ids:?}");
    }
    let before = conversation.messages.len();
    if let Ok((ids, forgotten)) = chat.fit(&mut conversation, 128, 16) {
        assert!(ids.len() < 128, "{}", ids.len());
        assert_eq!(conversation.messages.len() + forgotten, before);
    }
    true
}

/// A JSON schema, or a grammar where the text does not begin with a brace; and a text of it.
/// Accepted when it compiles.
pub fn grammar(data: &[u8]) -> bool {
    static GRAMMARS: LazyLock<Grammars> =
        LazyLock::new(|| Grammars::new(Arc::clone(&VOCABULARY.1)).expect("a small vocabulary"));
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let grammar = match text.trim_start().starts_with('{') {
        true => GRAMMARS.json_schema(text),
        false => GRAMMARS.grammar(text),
    };
    let Ok(grammar) = grammar else { return false };
    let tokenizer = Arc::clone(&VOCABULARY.1);
    let vocab = tokenizer.vocab_size();
    let options =
        SequenceOptions { tokens: Some(16), grammar: Some(grammar), ..SequenceOptions::default() };
    let sequence = Sequence::new(tokenizer, &[0], Sampling::default(), options);
    let mut sequence = sequence.expect("sound options");
    let mut random = Random::new(data.len() as u64);
    while sequence.wants(1, 64).is_ok_and(|wants| wants.is_some()) {
        let logits: Vec<f32> = (0..vocab).map(|_| random.below(8) as f32).collect();
        if sequence.accept(|_| &logits).is_err() {
            break;
        }
    }
    assert!(sequence.ids().len() <= 16);
    true
}

/// A saved conversation. One that is accepted is written as a text that gives the same conversation, but for
/// the last bits of numbers, which JSON's reader leaves open.
pub fn talk(data: &[u8]) -> bool {
    let path = Path::new("talk.json");
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(saved) = Saved::parse(path, text) else { return false };
    let written = saved.text().expect("it has a JSON form");
    let again = Saved::parse(path, &written).expect("what was written");
    assert_eq!((&again.model, &again.template), (&saved.model, &saved.template));
    let texts = |saved: &Saved| {
        let messages = saved.messages.iter().map(|m| (m.role.clone(), m.content.clone()));
        (saved.system.clone(), messages.collect::<Vec<_>>())
    };
    assert_eq!(texts(&again), texts(&saved));
    let fresh = Parameters { sampling: Sampling::default(), tokens: None, stop: Vec::new() };
    if let Ok(parameters) = fresh.with(&saved.parameters) {
        let again = fresh.with(&parameters.to_saved()).expect("what was written");
        assert_eq!(again, parameters);
    }
    true
}
