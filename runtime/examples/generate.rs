//! Continues a prompt and prints the text as it is written:
//! `cargo run --release -p bitnet-runtime --example generate -- MODEL.gguf "ROMEO:"`

use std::io::{Write, stdout};

use bitnet_runtime::{Engine, GenerateOptions, Options, Sampling, SequenceOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let model = args.next().unwrap_or("models/bard-11m.i2_s.gguf".into());
    let prompt = args.next().unwrap_or("ROMEO:".into());

    let engine = Engine::open(&model, Options::default())?;
    for note in engine.take_notes() {
        eprintln!("{note}");
    }
    let options = GenerateOptions {
        sampling: Sampling { seed: 7, ..Sampling::default() },
        sequence: SequenceOptions { tokens: Some(64), ..SequenceOptions::default() },
        ..GenerateOptions::default()
    };
    let mut shown = Ok(());
    let written = engine.generate(&prompt, &options, |piece| {
        if shown.is_ok() {
            shown = write!(stdout(), "{piece}").and_then(|()| stdout().flush());
        }
    })?;
    shown.and_then(|()| writeln!(stdout()))?;
    eprintln!("{} tokens, ended by {}", written.ids.len(), written.finish_reason.name());
    Ok(())
}
