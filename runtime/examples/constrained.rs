//! Holds a text to a JSON schema, ends it at a stop string, and prints how likely its tokens were:
//! `cargo run --release -p bitnet-runtime --features grammar --example constrained`

use bitnet_runtime::{Engine, GenerateOptions, Needs, Options, SequenceOptions};

fn main() -> bitnet_runtime::Result<()> {
    // Log probabilities need all logits, so the head is read whole.
    let options = Options { needs: Needs::All, ..Options::default() };
    let engine = Engine::open("models/bard-11m.i2_s.gguf", options)?;
    let grammar = engine.grammars()?.json_schema(
        r#"{"type": "object", "properties": {
            "speaker": {"enum": ["ROMEO", "JULIET"]}, "acts": {"type": "integer", "maximum": 5},
            "line": {"type": "string", "maxLength": 40}
        }, "required": ["speaker", "acts", "line"], "additionalProperties": false}"#,
    )?;
    let options = GenerateOptions {
        sequence: SequenceOptions {
            tokens: Some(80),
            grammar: Some(grammar),
            stop: vec!["death".into()],
            logprobs: Some(3),
            ..SequenceOptions::default()
        },
        ..GenerateOptions::default()
    };
    let written = engine.generate("The play as JSON: ", &options, |piece| print!("{piece}"))?;
    println!("\nended by {}, {:?}", written.finish_reason.name(), written.stop);
    for token in &written.logprobs {
        let text = engine.tokenizer()?.decode(&[token.id]);
        println!("{:9.4}  {text:?}, best {:?}", token.logprob, token.top);
    }
    Ok(())
}
