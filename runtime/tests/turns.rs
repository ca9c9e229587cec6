//! Conversations with the demo model: turns give the ids of a cold start, and what does not fit is forgotten.

use std::path::Path;

use bitnet_runtime::{
    Chat, Conversation, Engine, KvType, Message, Options, ProfileChoice, Sampling, Sequence,
    SequenceOptions, SessionOptions, TemplateChoice, Turns,
};

const TEMPLATE: &str = "{% for m in messages %}{{ 'ROMEO' if m.role == 'assistant' else m.role | upper }}:\n{{ m.content | trim }}\n\n{% endfor %}ROMEO:\n";

fn engine() -> Engine {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/bard-11m.i2_s.gguf");
    let profile = ProfileChoice::Shipped;
    Engine::open(model, Options { profile, threads: Some(2), ..Options::default() }).unwrap()
}

fn chat(engine: &Engine) -> Chat {
    engine.chat(&TemplateChoice::Source(TEMPLATE.to_owned())).unwrap()
}

/// The ids of an answer, and its text.
fn answer(turns: &mut Turns<'_>, prompt: Vec<u32>, seed: Option<u64>) -> (Vec<u32>, String) {
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let sampling = seed.map_or(greedy, |seed| Sampling { seed, ..Sampling::default() });
    let options = SequenceOptions { tokens: Some(24), ..SequenceOptions::default() };
    let mut sequence: Sequence = turns.begin(prompt, sampling, options).unwrap();
    while turns.step(&mut sequence).unwrap() {}
    (sequence.ids().to_vec(), sequence.take_text())
}

#[test]
fn ch09_turns_give_the_ids_of_a_cold_start() {
    let engine = engine();
    let chat = chat(&engine);
    for (kv_type, seed) in [(None, None), (Some(KvType::Q8_0), None), (None, Some(3))] {
        let options = SessionOptions { kv_type, ..SessionOptions::default() };
        let mut turns = Turns::new(&engine, options).unwrap();
        let mut talk = Conversation::default();
        talk.messages.push(Message::new("system", "Speak of love."));
        let mut last = 0;
        for turn in 0..10 {
            talk.messages
                .push(Message::new("user", format!("What of the {turn}th moon, my lord?")));
            let prompt = chat.ids(&talk).unwrap();
            let warm = answer(&mut turns, prompt.clone(), seed);
            let held = turns.cached();
            let mut cold = Turns::new(&engine, options).unwrap();
            assert_eq!(warm, answer(&mut cold, prompt.clone(), seed), "turn {turn}");
            assert_eq!(cold.cached(), 0);
            // Only what a turn adds is new.
            assert!((last..prompt.len()).contains(&held), "{held} of {}, {last}", prompt.len());
            last = prompt.len();
            talk.messages.push(Message::new("assistant", warm.1));
        }
        // The same again: one token is computed.
        talk.messages.pop();
        let prompt = chat.ids(&talk).unwrap();
        let first = answer(&mut turns, prompt.clone(), seed);
        assert_eq!(answer(&mut turns, prompt.clone(), seed), first);
        assert_eq!(turns.cached(), prompt.len() - 1);
        // Another conversation.
        let mut cold = Turns::new(&engine, options).unwrap();
        let other = engine.tokenizer().unwrap().prompt("Once more").unwrap();
        let expected = answer(&mut cold, other.clone(), seed);
        assert_eq!(answer(&mut turns, other, seed), expected);
    }
}

#[test]
fn ch10_whole_turns_are_forgotten() {
    let engine = engine();
    let chat = chat(&engine);
    let mut talk = Conversation::default();
    talk.messages.push(Message::new("system", "Speak of love."));
    for turn in 0..6 {
        talk.messages.push(Message::new("user", format!("Question {turn}")));
        talk.messages.push(Message::new("assistant", "An answer."));
    }
    talk.messages.push(Message::new("user", "The last"));
    let whole = chat.ids(&talk).unwrap().len();
    let fit = |context, room| {
        let mut talk = talk.clone();
        let (ids, forgotten) = chat.fit(&mut talk, context, room)?;
        assert_eq!(ids, chat.ids(&talk).unwrap());
        assert_eq!(talk.messages[0].role, "system");
        assert_eq!(talk.messages.last().unwrap().content.as_deref(), Some("The last"));
        assert_eq!(forgotten % 2, 0);
        assert!(forgotten == 12 || ids.len() + room <= context);
        assert!(talk.messages.get(1).is_some_and(|message| message.role == "user"));
        Ok::<_, bitnet_runtime::Error>((ids.len(), forgotten))
    };
    assert_eq!(fit(whole + 8, 8).unwrap(), (whole, 0));
    assert_eq!(fit(whole + 7, 8).unwrap().1, 2);
    let (least, forgotten) = fit(whole / 2, whole).unwrap();
    assert_eq!(forgotten, 12);
    assert_eq!(fit(least + 1, 8).unwrap().0, least);
    let error = fit(least, 8).unwrap_err().to_string();
    assert!(
        error.contains(&format!("found {least} tokens, expected fewer than {least}")),
        "{error}"
    );
}
