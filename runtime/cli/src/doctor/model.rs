//! A model: its file, its vocabulary and template, its weights, the profile that serves it, and whether it
//! gives numbers.

use std::path::Path;
use std::sync::Arc;

use bitnet_profiles::Shape;
use bitnet_runtime::arch::config::Config;
use bitnet_runtime::engine::{Engine, Options, ProfileSource, Start};
use bitnet_runtime::error::{Result, quoted};
use bitnet_runtime::file::bus_error;
use bitnet_runtime::file::gguf::Gguf;
use bitnet_runtime::formats::Codes;
use bitnet_runtime::text::chat::{Chat, TemplateChoice};
use bitnet_runtime::text::tokenizer::Tokenizer;
use bitnet_runtime::{Needs, SessionOptions};

use super::{Findings, Level};
use crate::load;
use crate::output::human;

/// Scales of trained matrices lie within.
const SCALES: std::ops::RangeInclusive<f32> = 1e-4..=10.0;
/// Tokens of the pass through the model.
const TOKENS: usize = 16;

pub(super) fn look(path: &Path, findings: &mut Findings) {
    bus_error::explain(path, None, "leave it as it is while it is checked");
    // The later checks need what the earlier ones read.
    if let Err((item, error)) = steps(path, findings) {
        findings.error(item, &error);
    }
}

/// All steps, until one fails: what was looked at, and the error.
fn steps(
    path: &Path,
    findings: &mut Findings,
) -> std::result::Result<(), (&'static str, bitnet_runtime::Error)> {
    let gguf = Gguf::open(path).map_err(|e| ("file", e))?;
    let parts = gguf.files().len();
    let whole = if parts == 1 { String::new() } else { format!(" in {parts} parts") };
    let size = human(gguf.file_bytes());
    let tensors = gguf.tensors().len();
    findings.add(Level::Ok, "file", format_args!("{size}{whole}, {tensors} tensors"));
    let config = Config::from_gguf(&gguf).map_err(|e| ("hyperparameters", e))?;
    findings.add(
        Level::Ok,
        "hyperparameters",
        format_args!(
            "{}, {} layers of {}, {} tokens, context {}",
            config.architecture.name, config.layers, config.hidden, config.vocab, config.context
        ),
    );
    let tokenizer = Tokenizer::from_gguf(&gguf).map_err(|e| ("tokenizer", e))?;
    vocabulary(&gguf, tokenizer, findings).map_err(|e| ("tokenizer", e))?;
    scales(&gguf, &config, findings).map_err(|e| ("scales", e))?;
    drop(gguf);
    weights(path, findings)
}

/// Vocabulary, tokens that end a text, chat template.
fn vocabulary(gguf: &Gguf, tokenizer: Tokenizer, findings: &mut Findings) -> Result<()> {
    let count = tokenizer.vocab_size();
    for line in tokenizer.notes() {
        let level = if line.is_warning { Level::Warning } else { Level::Note };
        findings.add(level, "tokenizer", &line.text);
    }
    let texts = tokenizer.eos_ids().iter().filter_map(|&id| tokenizer.token_text(id));
    let ends: Vec<String> = texts.map(quoted).collect();
    let begins = if tokenizer.add_bos() {
        "a text begins with a token of its own"
    } else {
        "no token begins a text"
    };
    findings.add(Level::Ok, "tokenizer", format_args!("{count} tokens; {begins}"));
    // Without one the tokenizer warns.
    if !ends.is_empty() {
        findings.add(Level::Ok, "end of text", ends.join(", "));
    }
    match Chat::new(gguf, Arc::new(tokenizer), &TemplateChoice::Auto) {
        Ok(chat) => {
            for line in chat.notes() {
                findings.add(Level::Note, "chat template", &line.text);
            }
            findings.add(Level::Ok, "chat template", chat.template_name());
        }
        Err(_) if gguf.get_str("tokenizer.chat_template")?.is_none() => findings.advise(
            Level::Note,
            "chat template",
            "none: the model is likely made to continue text, not to talk",
            "for a conversation choose one with --chat-template",
        ),
        Err(error) => findings.advise(
            Level::Warning,
            "chat template",
            error,
            "for a conversation choose another with --chat-template",
        ),
    }
    Ok(())
}

/// Scales of the ternary matrices.
fn scales(gguf: &Gguf, config: &Config, findings: &mut Findings) -> Result<()> {
    let (mut least, mut greatest) = (f32::INFINITY, 0.0f32);
    for (name, Shape { rows, cols }) in config.all_matrices() {
        let Some(tensor) = gguf.tensor(&name) else { continue };
        let shape = Shape::new(rows, cols);
        // What is wrong with it is told by loading it.
        let Ok(Some(codes)) = Codes::of(gguf, tensor, shape) else { continue };
        if !codes.fits() {
            continue;
        }
        let scales = codes.scales();
        for &scale in scales.values().iter().filter(|scale| **scale != 0.0) {
            least = least.min(scale);
            greatest = greatest.max(scale);
        }
    }
    if least > greatest {
        return Ok(());
    }
    let found = format!("{least:.2e} to {greatest:.2e}");
    if SCALES.contains(&least) && SCALES.contains(&greatest) {
        findings.add(Level::Ok, "scales", found);
    } else {
        findings.advise(
            Level::Warning,
            "scales",
            format_args!(
                "{found}, where trained models have {:e} to {}",
                SCALES.start(),
                SCALES.end()
            ),
            "the converter may have taken a divisor for a factor: convert the model again",
        );
    }
    Ok(())
}

/// Weights as they are packed, the profile, and a pass through the model.
fn weights(
    path: &Path,
    findings: &mut Findings,
) -> std::result::Result<(), (&'static str, bitnet_runtime::Error)> {
    let options = Options {
        start: Start::Packed,
        needs: Needs::All,
        progress: Some(load::progress(Arc::default())),
        ..Options::default()
    };
    let engine = Engine::open(path, options).map_err(|e| ("weights", e))?;
    let warnings = engine.take_notes().into_iter().filter(|line| line.is_warning);
    let mut warned = false;
    for line in warnings {
        findings.add(Level::Warning, "weights", line.text);
        warned = true;
    }
    if !warned {
        findings.add(Level::Ok, "weights", "all codes are weights, and no matrix is zero");
    }
    let profile = engine.profile();
    let found = format!("{} ({})", profile.short_name(), profile.reason);
    match profile.source {
        ProfileSource::Shipped => findings.advise(
            Level::Note,
            "profile",
            found,
            &format!(
                "bitnet-tune --model {} measures whether other kernels are faster here",
                path.display()
            ),
        ),
        ProfileSource::User | ProfileSource::File => findings.add(Level::Ok, "profile", found),
    }
    let ids: Vec<u32> = (0..TOKENS.min(engine.config().vocab) as u32).collect();
    let options = SessionOptions { context: Some(TOKENS), ..SessionOptions::default() };
    let mut session = engine.session(options).map_err(|e| ("numbers", e))?;
    let logits = session.prefill(&ids).map_err(|e| ("numbers", e))?;
    if logits.iter().all(|logit| logit.is_finite()) {
        findings.add(Level::Ok, "numbers", format_args!("finite after {} tokens", ids.len()));
    } else {
        findings.advise(
            Level::Warning,
            "numbers",
            "some logits are not finite",
            "the file is damaged, or not meant for this architecture: get it again",
        );
    }
    Ok(())
}
