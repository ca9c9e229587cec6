//! Talks with a model: a line from stdin is a message, and each answer costs what is new in it.
//! `cargo run --release -p bitnet-runtime --example talk -- MODEL.gguf`

use std::io::{self, Write};

use bitnet_runtime::{
    Conversation, Engine, Message, Options, Sampling, SequenceOptions, SessionOptions,
    TemplateChoice, Turns,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let model = args.next().unwrap_or("models/bard-11m.i2_s.gguf".into());
    // A template in place of the file's, which the demo model has not.
    let choice = args.next().map(|name| TemplateChoice::parse(&name)).transpose()?;

    let engine = Engine::open(&model, Options::default())?;
    let chat = engine.chat(&choice.unwrap_or_default())?;
    let mut turns = Turns::new(&engine, SessionOptions::default())?;
    let mut talk = Conversation::default();
    for line in io::stdin().lines() {
        talk.messages.push(Message::new("user", line?));
        let options = SequenceOptions { tokens: Some(200), ..SequenceOptions::default() };
        let context = turns.session().context();
        let (ids, _) = chat.fit(&mut talk, context, 200)?;
        let mut sequence = turns.begin(ids, Sampling::default(), options)?;
        let mut answer = String::new();
        while turns.step(&mut sequence)? {
            let piece = sequence.take_text();
            print!("{piece}");
            io::stdout().flush()?;
            answer += &piece;
        }
        println!();
        talk.messages.push(Message::new("assistant", answer));
    }
    Ok(())
}
