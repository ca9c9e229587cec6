//! Parts that answers of several routes have in common.

use std::time::Duration;

use bitnet_runtime::engine::logprobs::TokenLogprobs;
use bitnet_runtime::engine::sampler::Sampling;
use bitnet_runtime::engine::sequence::FinishReason;
use bitnet_runtime::text::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

use super::job::Timings;
use super::request::Request;

/// Counts and times, by llama.cpp's names.
pub fn timings(timings: &Timings) -> Value {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    // JSON has no infinity: nothing took no time.
    let ratio = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
    // The first token comes with the prompt, whose time it has.
    let (prompt, steps) = (timings.prompt as f64, timings.written.saturating_sub(1) as f64);
    let (prompt_ms, predicted_ms) = (ms(timings.prompt_time), ms(timings.time));
    let mut object = json!({
        "cache_n": timings.cached,
        "prompt_n": timings.prompt,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": ratio(prompt_ms, prompt),
        "prompt_per_second": ratio(prompt * 1e3, prompt_ms),
        "predicted_n": timings.written,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": ratio(predicted_ms, steps),
        "predicted_per_second": ratio(steps * 1e3, predicted_ms),
    });
    if timings.drafted > 0 {
        object["draft_n"] = timings.drafted.into();
        object["draft_n_accepted"] = timings.accepted.into();
    }
    object
}

/// The counts of tokens of a request, by OpenAI's names: `cached` are among those of the prompt.
pub fn usage(prompt: usize, cached: usize, written: usize) -> Value {
    json!({
        "completion_tokens": written,
        "prompt_tokens": prompt,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    })
}

/// The settings of a sampler, with its seed, by llama.cpp's names.
pub fn sampler_settings(sampling: &Sampling, seed: u64) -> Map<String, Value> {
    let last_n = i64::try_from(sampling.repeat_last_n).unwrap_or(-1);
    // A number that JSON does not have, minus infinity, is null.
    let biases = sampling.logit_bias.iter().map(|(id, bias)| json!({"token": id, "bias": bias}));
    let settings = json!({
        "seed": seed,
        "temperature": decimal(sampling.temperature),
        "top_k": sampling.top_k,
        "top_p": decimal(sampling.top_p),
        "min_p": decimal(sampling.min_p),
        "repeat_last_n": last_n,
        "repeat_penalty": decimal(sampling.repeat_penalty),
        "presence_penalty": decimal(sampling.presence_penalty),
        "frequency_penalty": decimal(sampling.frequency_penalty),
        "logit_bias": biases.collect::<Vec<_>>(),
        "samplers": ["logit_bias", "penalties", "top_k", "top_p", "min_p", "temperature"],
    });
    match settings {
        Value::Object(settings) => settings,
        _ => Map::new(),
    }
}

/// The settings of a text, by llama.cpp's names.
pub fn settings(request: &Request, choice: usize, tokenizer: &Tokenizer) -> Value {
    let mut sampling = request.sampling.clone();
    if request.ignore_eos {
        let ends = tokenizer.eos_ids().iter().map(|&id| (id, f32::NEG_INFINITY));
        sampling.logit_bias.extend(ends);
    }
    let tokens = request.tokens.map_or(-1, |tokens| i64::try_from(tokens).unwrap_or(i64::MAX));
    let mut settings = sampler_settings(&sampling, sampling.seed.wrapping_add(choice as u64));
    let own = [
        ("stop", json!(request.stop)),
        ("n_probs", request.logprobs.unwrap_or(0).into()),
        ("post_sampling_probs", request.after_sampling.into()),
        ("max_tokens", tokens.into()),
        ("n_predict", tokens.into()),
        ("ignore_eos", request.ignore_eos.into()),
        ("stream", request.stream.into()),
        ("timings_per_token", request.timings_per_token.into()),
    ];
    settings.extend(own.map(|(name, value)| (name.to_owned(), value)));
    settings.into()
}

/// A number as it was written: in f64 the digits beyond those of an f32 would show.
pub fn decimal(number: f32) -> f64 {
    number.to_string().parse().unwrap_or_else(|_| number.into())
}

/// A token's bytes; those of one that stands for no text are its name in the vocabulary.
pub fn token_bytes(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    tokenizer.decode_into(id, &mut bytes);
    if bytes.is_empty() {
        bytes.extend_from_slice(tokenizer.token_text(id).unwrap_or_default().as_bytes());
    }
    bytes
}

/// A token's text; bytes that are no character are U+FFFD.
pub fn token_text(tokenizer: &Tokenizer, id: u32) -> String {
    String::from_utf8_lossy(&token_bytes(tokenizer, id)).into_owned()
}

/// A token with its bytes and log probability, as OpenAI's chat and llama.cpp have it.
pub fn token_logprob(tokenizer: &Tokenizer, id: u32, logprob: f64) -> Value {
    let bytes = token_bytes(tokenizer, id);
    json!({
        "id": id,
        "token": String::from_utf8_lossy(&bytes),
        "bytes": bytes,
        "logprob": finite(logprob),
    })
}

/// A token and the likely ones in its place.
pub fn token_logprobs(tokenizer: &Tokenizer, token: &TokenLogprobs) -> Value {
    let mut object = token_logprob(tokenizer, token.id, token.logprob);
    let top = token.top.iter().map(|&(id, logprob)| token_logprob(tokenizer, id, logprob));
    object["top_logprobs"] = top.collect();
    object
}

/// A token and the likely ones in its place, with the probabilities of its draw, as llama.cpp has them.
pub fn token_probs(tokenizer: &Tokenizer, token: &TokenLogprobs) -> Value {
    let row = |id: u32, logprob: f64| {
        let bytes = token_bytes(tokenizer, id);
        json!({
            "id": id,
            "token": String::from_utf8_lossy(&bytes),
            "bytes": bytes,
            "prob": TokenLogprobs::probability(logprob),
        })
    };
    let mut object = row(token.id, token.logprob);
    object["top_probs"] = token.top.iter().map(|&(id, logprob)| row(id, logprob)).collect();
    object
}

/// A log probability as a number of JSON, which has no infinity.
pub fn finite(logprob: f64) -> f64 {
    logprob.max(f64::from(f32::MIN))
}

/// OpenAI's word for the reason of an end.
pub fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop | FinishReason::StopString => "stop",
        FinishReason::Length | FinishReason::Context | FinishReason::Interrupted => "length",
    }
}

/// The text of a prompt's tokens; those that stand for no text are written as the vocabulary has them.
pub fn prompt_text(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|&id| token_bytes(tokenizer, id)).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
