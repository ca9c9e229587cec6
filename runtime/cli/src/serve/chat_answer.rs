//! The form of answers in a conversation.

use std::str::FromStr;
use std::sync::Arc;

use bitnet_runtime::engine::logprobs::TokenLogprobs;
use bitnet_runtime::engine::sequence::FinishReason;
use bitnet_runtime::text::tokenizer::Tokenizer;
use bitnet_runtime::{Part, ReasoningSplitter};
use serde_json::{Value, json};

use super::answer::{finish_reason, timings, token_logprobs, usage};
use super::app::{Loaded, new_id, now};
use super::job::{Ending, Piece, Progress, Timings};
use super::request::Request;
use super::stream::{Form, Written};
use super::tools::{Call, CallSplitter, Family};

/// Treatment of what a model thinks before it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningFormat {
    /// It stays in the content, with its tags.
    None,
    /// It goes to a field of its own, `reasoning_content`.
    Deepseek,
}

impl FromStr for ReasoningFormat {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "none" => Ok(Self::None),
            "deepseek" => Ok(Self::Deepseek),
            _ => Err(()),
        }
    }
}

/// The answers to a request.
pub struct Answers {
    request: Request,
    id: String,
    created: u64,
    fingerprint: String,
    tokenizer: Arc<Tokenizer>,
    /// One for each answer.
    open: Vec<Open>,
    /// Sums over the answers that have ended.
    written: usize,
    cached: usize,
    last: Timings,
}

/// An answer that is being written.
struct Open {
    /// Tells reasoning from the answer; none where both stay together.
    splitter: Option<ReasoningSplitter>,
    /// Tells calls from the rest; none where none are looked for.
    calls: Option<CallSplitter>,
    /// Number of calls so far.
    called: usize,
    /// Probabilities of tokens whose text is not certain yet.
    logprobs: Vec<TokenLogprobs>,
}

/// What a piece of text is made of.
#[derive(Debug, Default)]
struct Parts {
    reasoning: String,
    content: String,
    calls: Vec<Call>,
}

impl Open {
    /// Takes a piece of text, the last one perhaps, and returns its parts.
    fn split(&mut self, text: &str, is_last: bool) -> Parts {
        let [reasoning, answer] = match &mut self.splitter {
            None => [String::new(), text.to_owned()],
            Some(splitter) => {
                let mut parts = splitter.push(text);
                if is_last {
                    parts.extend(splitter.finish());
                }
                [Part::Reasoning, Part::Answer].map(|wanted| {
                    let of = parts.iter().filter(|(part, _)| *part == wanted);
                    of.map(|(_, text)| text.as_str()).collect()
                })
            }
        };
        let Some(splitter) = &mut self.calls else {
            return Parts { reasoning, content: answer, calls: Vec::new() };
        };
        let (mut content, mut calls) = splitter.push(&answer);
        if is_last {
            let (rest, last) = splitter.finish();
            content += &rest;
            calls.extend(last);
        }
        Parts { reasoning, content, calls }
    }

    /// OpenAI's word for the reason of an end.
    fn reason(&self, reason: FinishReason) -> &'static str {
        if self.called > 0 { "tool_calls" } else { finish_reason(reason) }
    }
}

impl Answers {
    /// Makes the form of the answers to a request whose conversation was rendered so.
    pub fn new(
        request: Request,
        rendered: &str,
        (reasoning, calls): (ReasoningFormat, Option<Family>),
        loaded: &Loaded,
    ) -> Self {
        let splits = reasoning == ReasoningFormat::Deepseek;
        let open = (0..request.choices).map(|_| Open {
            splitter: splits.then(|| ReasoningSplitter::after(rendered)),
            calls: calls.map(CallSplitter::new),
            called: 0,
            logprobs: Vec::new(),
        });
        Self {
            open: open.collect(),
            request,
            id: new_id("chatcmpl-"),
            created: now(),
            fingerprint: loaded.model.fingerprint.clone(),
            tokenizer: Arc::clone(&loaded.tokenizer),
            written: 0,
            cached: 0,
            last: Timings::default(),
        }
    }

    /// The request.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Tokens of the prompt.
    fn prompt_tokens(&self) -> usize {
        self.request.prompts.iter().map(Vec::len).sum()
    }

    fn object(&self, kind: &str, choices: Value) -> Value {
        json!({
            "choices": choices,
            "created": self.created,
            "model": self.request.model,
            "system_fingerprint": self.fingerprint,
            "object": kind,
            "id": self.id,
        })
    }

    fn chunk(&self, index: usize, delta: Value, reason: Option<&str>) -> Value {
        let choice = json!({
            "finish_reason": reason,
            "index": index,
            "delta": delta,
        });
        self.object("chat.completion.chunk", json!([choice]))
    }

    fn logprobs(&self, rows: &[TokenLogprobs]) -> Value {
        let rows: Value = rows.iter().map(|row| token_logprobs(&self.tokenizer, row)).collect();
        json!({"content": rows})
    }

    /// The chunks for a piece of an answer.
    fn deltas(&mut self, index: usize, piece: Piece, is_last: bool) -> Vec<Value> {
        let open = &mut self.open[index];
        let Parts { reasoning, content, calls } = open.split(&piece.text, is_last);
        open.logprobs.extend(piece.logprobs);
        let first = open.called;
        open.called += calls.len();
        let mut chunks = Vec::new();
        for (name, text) in [("reasoning_content", reasoning), ("content", content)] {
            if !text.is_empty() {
                chunks.push(self.chunk(index, json!({ name: text }), None));
            }
        }
        for (number, call) in calls.iter().enumerate() {
            let delta = json!({"tool_calls": [call.json(Some(first + number))]});
            chunks.push(self.chunk(index, delta, None));
        }
        let rows = match chunks.is_empty() && !is_last {
            true => return chunks,
            false => std::mem::take(&mut self.open[index].logprobs),
        };
        if self.request.logprobs.is_some() && !rows.is_empty() {
            if chunks.is_empty() {
                chunks.push(self.chunk(index, json!({"content": ""}), None));
            }
            let logprobs = self.logprobs(&rows);
            if let Some(last) = chunks.last_mut() {
                last["choices"][0]["logprobs"] = logprobs;
            }
        }
        if self.request.timings_per_token {
            chunks.iter_mut().for_each(|chunk| chunk["timings"] = timings(&piece.timings));
        }
        chunks
    }

    /// The whole answer.
    pub fn whole(mut self, written: Vec<Written>) -> Value {
        let mut choices = Vec::with_capacity(written.len());
        for (index, written) in written.into_iter().enumerate() {
            let counts = written.ending.piece.timings;
            self.written += counts.written;
            self.cached += counts.cached;
            self.last = counts;
            let open = &mut self.open[index];
            let Parts { reasoning, content, calls } = open.split(&written.text, true);
            open.called = calls.len();
            let reason = open.reason(written.ending.reason);
            let mut message = json!({"role": "assistant", "content": content});
            if !calls.is_empty() {
                message["tool_calls"] = calls.iter().map(|call| call.json(None)).collect();
                if content.is_empty() {
                    message["content"] = Value::Null;
                }
            }
            if !reasoning.is_empty() {
                message["reasoning_content"] = reasoning.into();
            }
            let mut choice = json!({
                "finish_reason": reason,
                "index": index,
                "message": message,
            });
            if self.request.logprobs.is_some() {
                choice["logprobs"] = self.logprobs(&written.logprobs);
            }
            choices.push(choice);
        }
        let mut object = self.object("chat.completion", choices.into());
        object["usage"] = usage(self.prompt_tokens(), self.cached, self.written);
        object["timings"] = timings(&self.last);
        object
    }
}

impl Form for Answers {
    fn started(&mut self, text: usize, _: usize) -> Option<Value> {
        Some(self.chunk(text, json!({"role": "assistant", "content": null}), None))
    }

    fn progress(&mut self, text: usize, progress: Progress) -> Option<Value> {
        let mut chunk = self.chunk(text, json!({}), None);
        chunk["prompt_progress"] = json!(progress);
        if self.request.timings_per_token {
            chunk["timings"] = timings(&progress.timings);
        }
        Some(chunk)
    }

    fn prompt(&mut self, _: usize, _: Vec<TokenLogprobs>) -> Option<Value> {
        None
    }

    fn piece(&mut self, text: usize, piece: Piece) -> Vec<Value> {
        self.deltas(text, piece, false)
    }

    fn done(&mut self, text: usize, ending: Ending) -> Vec<Value> {
        let counts = ending.piece.timings;
        self.written += counts.written;
        self.cached += counts.cached;
        self.last = counts;
        let mut chunks = self.deltas(text, ending.piece, true);
        let reason = self.open[text].reason(ending.reason);
        let mut last = self.chunk(text, json!({}), Some(reason));
        last["timings"] = timings(&counts);
        chunks.push(last);
        chunks
    }

    fn end(&mut self) -> Vec<Value> {
        if !self.request.include_usage {
            return Vec::new();
        }
        let mut chunk = self.object("chat.completion.chunk", json!([]));
        chunk["usage"] = usage(self.prompt_tokens(), self.cached, self.written);
        chunk["timings"] = timings(&self.last);
        vec![chunk]
    }

    fn says_done(&self) -> bool {
        true
    }
}
