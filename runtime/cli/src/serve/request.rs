//! What all requests for a text have in common: its prompts, sampler, end and form of answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bitnet_runtime::Grammar;
use bitnet_runtime::engine::sampler::Sampling;
use bitnet_runtime::engine::sequence::{Sequence, SequenceOptions};
use bitnet_runtime::error::Error;
use bitnet_runtime::text::tokenizer::Tokenizer;
use serde_json::Value;

use super::app::Loaded;
use super::error::{ApiError, Result, shown};
use super::fields::{Fields, MAX_I32};
use super::grammar;

/// Fields of llama.cpp's that would change the text, each with the value that does not. They are not
/// offered.
const NOT_OFFERED: [(&str, f64); 8] = [
    ("mirostat", 0.0),
    ("typical_p", 1.0),
    ("dynatemp_range", 0.0),
    ("dry_multiplier", 0.0),
    ("xtc_probability", 0.0),
    ("top_n_sigma", -1.0),
    ("adaptive_target", -1.0),
    ("speculative.n_max", 0.0),
];

/// Texts that end a text, and bytes of each, at most.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 256;
/// Biases of tokens, at most.
const MAX_BIASES: usize = 1024;

/// A request for one or several texts, validated.
#[derive(Clone, Debug)]
pub struct Request {
    /// Tokens of each prompt.
    pub prompts: Vec<Vec<u32>>,
    /// Texts for each prompt, with seeds that follow each other.
    pub choices: usize,
    /// Sampler of the first.
    pub sampling: Sampling,
    /// Most tokens of a text that the client asked for; `None`: what the context has room for.
    pub tokens: Option<usize>,
    pub ignore_eos: bool,
    /// Texts that end a text, and are no part of it.
    pub stop: Vec<String>,
    /// The form that texts are held to.
    pub grammar: Option<Grammar>,
    /// Likely tokens to tell for each token, with its own probability; `None`: nothing.
    pub logprobs: Option<usize>,
    /// True if they are those of the draw, behind all that a sampler does.
    pub after_sampling: bool,
    /// True to tell the probabilities of the prompt's tokens too.
    pub prompt_logprobs: bool,
    /// True to take what slots hold of a prompt.
    pub cache: bool,
    pub slot: Option<usize>,
    pub most_time: Option<Duration>,
    pub stream: bool,
    /// True for a last event with the count of tokens.
    pub include_usage: bool,
    pub timings_per_token: bool,
    pub progress: bool,
    /// Name of the model, as the client wrote it.
    pub model: String,
}

impl Request {
    /// Reads what is common to all routes; `prompts` are already tokens.
    ///
    /// # Errors
    /// 400 for a field out of range.
    pub fn new(fields: Fields<'_>, prompts: Vec<Vec<u32>>, loaded: &Loaded) -> Result<Self> {
        refuse_what_is_not_offered(fields)?;
        let most = i64::try_from(loaded.slots).unwrap_or(i64::MAX);
        let slot = fields.integer("id_slot", -1..=most - 1)?;
        let most_time = fields.integer("t_max_predict_ms", -1..=MAX_I32)?;
        let options = fields.object("stream_options")?;
        let include_usage = options.map_or(Ok(false), |options| options.is_set("include_usage"))?;
        let choices = ["n", "n_cmpl"].map(|name| fields.integer(name, 1..=most));
        let [n, n_cmpl] = choices;
        let choices = n?.or(n_cmpl?).unwrap_or(1) as usize;
        let limit = prompts.len() * choices;
        if limit > loaded.slots {
            return Err(ApiError::text_field(
                "prompt",
                &format!("{} prompts, with {choices} texts for each", prompts.len()),
                &format!("at most {} texts in all, the slots of this server", loaded.slots),
            ));
        }
        Ok(Self {
            prompts,
            choices,
            sampling: sampling(fields, loaded)?,
            tokens: tokens(fields, loaded)?,
            ignore_eos: fields.is_set("ignore_eos")?,
            stop: stop(fields)?.unwrap_or_else(|| loaded.stop.clone()),
            grammar: grammar::read(fields, loaded)?,
            logprobs: None,
            after_sampling: false,
            prompt_logprobs: false,
            cache: fields.boolean("cache_prompt")?.unwrap_or(true),
            slot: slot.and_then(|slot| usize::try_from(slot).ok()),
            most_time: most_time
                .and_then(|ms| u64::try_from(ms).ok())
                .filter(|&ms| ms > 0)
                .map(Duration::from_millis),
            stream: fields.is_set("stream")?,
            include_usage,
            timings_per_token: fields.is_set("timings_per_token")?,
            progress: fields.is_set("return_progress")?,
            model: fields.string("model")?.unwrap_or(&loaded.model.alias).to_owned(),
        })
    }

    /// The text of a prompt's choice, at its beginning.
    ///
    /// # Errors
    /// 400 where the prompt leaves no room in the context.
    pub fn sequence(&self, prompt: &[u32], choice: usize, loaded: &Loaded) -> Result<Sequence> {
        let room = loaded.context.saturating_sub(prompt.len());
        if room == 0 {
            return Err(ApiError::too_long(prompt.len(), loaded.context));
        }
        let sampling = Sampling {
            seed: self.sampling.seed.wrapping_add(choice as u64),
            ..self.sampling.clone()
        };
        let options = SequenceOptions {
            tokens: Some(self.tokens.map_or(room, |tokens| tokens.min(room))),
            ignore_eos: self.ignore_eos,
            stop: self.stop.clone(),
            logprobs: self.logprobs,
            after_sampling: self.after_sampling,
            draft: loaded.draft,
            grammar: self.grammar.clone(),
        };
        Ok(Sequence::new(Arc::clone(&loaded.tokenizer), prompt, sampling, options)?)
    }

    /// True if a text of so many tokens after a prompt ended because the context was full.
    pub fn is_truncated(&self, prompt: usize, written: usize, loaded: &Loaded) -> bool {
        prompt + written >= loaded.context && self.tokens.is_none_or(|tokens| written < tokens)
    }
}

fn refuse_what_is_not_offered(fields: Fields<'_>) -> Result<()> {
    for (name, neutral) in NOT_OFFERED {
        let is_neutral = |found: f64| found == neutral || (neutral < 0.0 && found < 0.0);
        match fields.get(name) {
            Some(value) if !value.as_f64().is_some_and(is_neutral) => {
                let expected = format!("{neutral}, or nothing: it is not offered");
                return Err(ApiError::field(name, value, &expected));
            }
            _ => {}
        }
    }
    let lora = fields.get("lora");
    if let Some(value) = lora.filter(|value| value.as_array().is_none_or(|list| !list.is_empty())) {
        return Err(ApiError::field("lora", value, "nothing: adapters are not offered"));
    }
    if fields.is_set("grammar_lazy")? {
        return Err(ApiError::text_field("grammar_lazy", "true", "false: it is not offered"));
    }
    Ok(())
}

/// The most tokens that a client asks for, never more than the server's own limit.
fn tokens(fields: Fields<'_>, loaded: &Loaded) -> Result<Option<usize>> {
    let mut asked = None;
    for name in ["max_completion_tokens", "max_tokens", "n_predict"] {
        let found = fields.integer(name, -1..=MAX_I32)?;
        asked = asked.or(found);
    }
    let asked = asked.and_then(|tokens| usize::try_from(tokens).ok());
    Ok(asked.into_iter().chain(loaded.predict).min())
}

fn sampling(fields: Fields<'_>, loaded: &Loaded) -> Result<Sampling> {
    let defaults = &loaded.sampling;
    let number = |name: &str, range, default: f32| {
        Ok::<f32, ApiError>(fields.number(name, range)?.map_or(default, |found| found as f32))
    };
    let repeat_penalty = number("repeat_penalty", 0.0..=100.0, defaults.repeat_penalty)?;
    if repeat_penalty == 0.0 {
        return Err(ApiError::text_field("repeat_penalty", "0", "a number above 0, up to 100"));
    }
    let top_k = fields.integer("top_k", -1..=MAX_I32)?;
    let last_n = fields.integer("repeat_last_n", -1..=loaded.context as i64)?;
    let seed = fields.integer("seed", -1..=i64::MAX)?;
    Ok(Sampling {
        temperature: number("temperature", 0.0..=100.0, defaults.temperature)?,
        top_k: top_k.map_or(defaults.top_k, |k| usize::try_from(k).unwrap_or(0)),
        top_p: number("top_p", 0.0..=1.0, defaults.top_p)?,
        min_p: number("min_p", 0.0..=1.0, defaults.min_p)?,
        repeat_penalty,
        presence_penalty: number("presence_penalty", -100.0..=100.0, defaults.presence_penalty)?,
        frequency_penalty: number("frequency_penalty", -100.0..=100.0, defaults.frequency_penalty)?,
        logit_bias: logit_bias(fields, &loaded.tokenizer)?
            .unwrap_or_else(|| defaults.logit_bias.clone()),
        repeat_last_n: last_n
            .map_or(defaults.repeat_last_n, |n| usize::try_from(n).unwrap_or(usize::MAX)),
        seed: seed.map_or(loaded.seed, |seed| u64::try_from(seed).ok()).unwrap_or_else(random_seed),
    })
}

/// Texts that end a text, where the request says so: one or several; empty ones count for nothing.
fn stop(fields: Fields<'_>) -> Result<Option<Vec<String>>> {
    let Some(value) = fields.get("stop") else { return Ok(None) };
    let expected =
        format!("a string or up to {MAX_STOPS} strings, each of up to {MAX_STOP_BYTES} bytes");
    let fits = |text: &str| text.len() <= MAX_STOP_BYTES;
    let texts: Option<Vec<String>> = match value {
        Value::String(text) => fits(text).then(|| vec![text.clone()]),
        Value::Array(items) if items.len() <= MAX_STOPS => {
            let text = |item: &Value| item.as_str().filter(|text| fits(text)).map(str::to_owned);
            items.iter().map(text).collect()
        }
        _ => None,
    };
    let texts = texts.ok_or_else(|| ApiError::field("stop", value, &expected))?;
    Ok(Some(texts.into_iter().filter(|text| !text.is_empty()).collect()))
}

/// Biases of tokens, where the request has any: an object or a list of pairs, by ids or by texts, each of whose tokens is meant;
/// `false` bans a token.
fn logit_bias(fields: Fields<'_>, tokenizer: &Tokenizer) -> Result<Option<BTreeMap<u32, f32>>> {
    let name = "logit_bias";
    let Some(value) = fields.get(name) else { return Ok(None) };
    let expected = format!("an object or a list of pairs, of up to {MAX_BIASES} tokens and biases");
    let wrong = || ApiError::field(name, value, &expected);
    let pairs: Option<Vec<(Value, &Value)>> = match value {
        Value::Object(object) => {
            Some(object.iter().map(|(key, bias)| (key_token(key), bias)).collect())
        }
        Value::Array(items) => items
            .iter()
            .map(|item| match item.as_array().map(Vec::as_slice) {
                Some([token, bias]) => Some((token.clone(), bias)),
                _ => None,
            })
            .collect(),
        _ => None,
    };
    let pairs = pairs.filter(|pairs| pairs.len() <= MAX_BIASES).ok_or_else(wrong)?;
    let mut biases = BTreeMap::new();
    for (key, bias) in pairs {
        let bias = match bias {
            Value::Bool(false) => f32::NEG_INFINITY,
            _ => {
                let number = bias.as_f64().map(|bias| bias as f32).filter(|bias| bias.is_finite());
                number.ok_or_else(|| ApiError::field(name, bias, "a number, or false"))?
            }
        };
        match key {
            Value::String(text) => {
                let ids = tokenizer.encode(&text, false, true)?;
                biases.extend(ids.into_iter().map(|id| (id, bias)));
            }
            id => drop(biases.insert(token(&id, tokenizer)?, bias)),
        }
    }
    Ok(Some(biases))
}

/// The token that the key of an object means: an id, or a text.
fn key_token(key: &str) -> Value {
    key.parse::<i64>().map_or_else(|_| key.into(), Value::from)
}

/// A seed that nobody chose, of 32 bits, as clients of llama.cpp expect.
fn random_seed() -> u64 {
    super::app::random() & u64::from(u32::MAX)
}

/// Reads the field `prompt`: see [`texts`].
///
/// # Errors
/// As [`texts`].
pub fn prompts(value: &Value, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>> {
    texts("prompt", value, tokenizer, Tokenizer::prompt)
}

/// The function that makes the tokens of a whole text.
pub type Tokenize = fn(&Tokenizer, &str) -> bitnet_runtime::Result<Vec<u32>>;

/// Reads a field of texts: a text, tokens, a mixture, or a list of these; a text may be the
/// `prompt_string` of an object, or its `content` in parts, as llama.cpp has it. `tokenize` makes the
/// tokens of a text, or of one that a mixture begins with.
///
/// # Errors
/// 400 for anything else, a token that does not exist, or no token at all.
pub fn texts(
    name: &str,
    value: &Value,
    tokenizer: &Tokenizer,
    tokenize: Tokenize,
) -> Result<Vec<Vec<u32>>> {
    let expected = "a text, token ids, a list of both, or a list of these";
    let text = |value| text(name, value, tokenizer, tokenize);
    match value {
        Value::String(_) | Value::Object(_) => Ok(vec![text(value)?]),
        Value::Array(items) if items.iter().any(Value::is_number) => Ok(vec![text(value)?]),
        Value::Array(items) if !items.is_empty() => items.iter().map(text).collect(),
        _ => Err(ApiError::field(name, value, expected)),
    }
}

/// One text, or a list of texts and tokens.
fn text(name: &str, value: &Value, tokenizer: &Tokenizer, tokenize: Tokenize) -> Result<Vec<u32>> {
    let tokens = |text: &str| tokenize(tokenizer, text).map_err(|error| of_field(name, error));
    let items = match value {
        Value::String(text) => return tokens(text),
        Value::Object(object) => {
            let fields = Fields(object);
            if let Some(media) = fields.get("multimodal_data") {
                let expected = "nothing: pictures and sound are not offered";
                return Err(ApiError::field("multimodal_data", media, expected));
            }
            let text = match fields.get("content") {
                Some(Value::Array(parts)) => parts.iter().map(text_of_part).collect(),
                _ => fields.string("prompt_string")?.map(str::to_owned),
            };
            let expected = "an object with a prompt_string, or a content of texts";
            return tokens(&text.ok_or_else(|| ApiError::field(name, value, expected))?);
        }
        Value::Array(items) if !items.is_empty() => items,
        _ => return Err(ApiError::field(name, value, "a text, or a list with token ids")),
    };
    let mut ids = Vec::new();
    for (number, item) in items.iter().enumerate() {
        match item {
            Value::String(text) if number == 0 => ids.extend(tokens(text)?),
            Value::String(text) => ids.extend(tokenizer.encode(text, false, true)?),
            _ => ids.push(token(item, tokenizer)?),
        }
    }
    Ok(ids)
}

/// The text of a part of a content; `None` for a picture and the like.
fn text_of_part(part: &Value) -> Option<&str> {
    part["text"].as_str().filter(|_| part["type"] == "text")
}

/// An error of the library about a text, as one about the field that it stands in.
fn of_field(name: &str, error: Error) -> ApiError {
    match error {
        Error::Usage { found, expected, .. } => ApiError::text_field(name, &found, &expected),
        other => other.into(),
    }
}

/// A token of the vocabulary.
///
/// # Errors
/// 400 for what is none.
pub fn token(value: &Value, tokenizer: &Tokenizer) -> Result<u32> {
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
    id.filter(|&id| (id as usize) < tokenizer.vocab_size()).ok_or_else(|| {
        let expected = format!("an integer from 0 to {}", tokenizer.vocab_size() - 1);
        ApiError::text_field("token id", &shown(value), &expected)
    })
}
