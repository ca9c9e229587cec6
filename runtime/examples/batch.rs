//! Writes eight texts at once: a pass takes a token of each through the model and reads weights once for
//! all. `cargo run --release -p bitnet-runtime --example batch`

use bitnet_runtime::{Engine, Options, Sampling, Sequence, SequenceOptions, SessionOptions};

fn main() -> bitnet_runtime::Result<()> {
    let engine = Engine::open("models/bard-11m.i2_s.gguf", Options::default())?;
    let tokenizer = engine.tokenizer()?;
    let prompt = tokenizer.prompt("ROMEO:")?;
    let options = SequenceOptions { tokens: Some(24), ..SequenceOptions::default() };
    let sequence = |seed| {
        let sampling = Sampling { seed, ..Sampling::default() };
        Sequence::new(tokenizer.clone(), &prompt, sampling, options.clone())
    };
    let mut sequences = (0..8).map(sequence).collect::<Result<Vec<Sequence>, _>>()?;
    let mut session = engine.session(SessionOptions { sequences: 8, ..Default::default() })?;
    loop {
        let (mut batch, mut writers) = (Vec::new(), Vec::new());
        for (place, sequence) in sequences.iter_mut().enumerate() {
            let room = session.context() - session.position_of(place);
            if let Some(wants) = sequence.wants(usize::MAX, room)? {
                batch.extend(wants.tokens(place));
                writers.push(place);
            }
        }
        if batch.is_empty() {
            break;
        }
        session.forward(&batch)?;
        for (row, place) in writers.into_iter().enumerate() {
            sequences[place].accept(|_| session.logits(row))?;
        }
    }
    for sequence in &mut sequences {
        println!("{:?}", sequence.take_text());
    }
    Ok(())
}
