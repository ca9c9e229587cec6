//! Prints the five most likely tokens after a prompt and their logits:
//! `cargo run --release -p bitnet-runtime --example logits -- MODEL.gguf "ROMEO:"`

use bitnet_runtime::{Engine, Needs, Options, SessionOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let model = args.next().unwrap_or("models/bard-11m.i2_s.gguf".into());
    let prompt = args.next().unwrap_or("ROMEO:".into());

    // All logits will be asked for, so the head is read whole.
    let engine = Engine::open(&model, Options { needs: Needs::All, ..Options::default() })?;
    let ids = engine.tokenizer()?.prompt(&prompt)?;
    let mut session = engine.session(SessionOptions::default())?;
    let logits = session.prefill(&ids)?;

    let mut best: Vec<usize> = (0..logits.len()).collect();
    best.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    for &id in &best[..5] {
        println!("{:9.4}  {:?}", logits[id], engine.tokenizer()?.decode(&[id as u32]));
    }
    Ok(())
}
