//! OpenAI's route for answers in a conversation, `/v1/chat/completions`.

use std::sync::Arc;

use axum::extract::{Request as HttpRequest, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json as JsonAnswer};
use bitnet_runtime::{Chat, Conversation, Ending, Json, Message, Variables};
use serde::Deserialize;
use serde_json::{Value, json};

use super::app::{App, Loaded, aside};
use super::chat_answer::Answers;
use super::error::{ApiError, Result};
use super::fields::{Fields, object};
use super::grammar;
use super::request::Request;
use super::router::Account;
use super::stream::{collect, events};
use super::tools::{Tools, with_objects};

/// Messages of a conversation, at most.
const MAX_MESSAGES: usize = 10_000;
/// Likely tokens to tell for each token, at most.
const MAX_LOGPROBS: i64 = 20;

/// `POST /v1/chat/completions`
///
/// # Errors
/// 400 for a malformed request, or a model without a template; 503 where there is no room.
pub async fn completions(
    State(app): State<Arc<App>>,
    Extension(account): Extension<Arc<Account>>,
    request: HttpRequest,
) -> Result<Response> {
    app.writer()?;
    let body = app.body(request).await?;
    let (answers, texts) = {
        let app = Arc::clone(&app);
        aside(move || {
            let answers = read(&app, &body.bytes)?;
            let texts = app.submit(answers.request())?;
            Ok((answers, texts))
        })
        .await?
    };
    if answers.request().stream {
        return events(texts, answers, account).await;
    }
    let written = collect(texts, &account).await?;
    Ok(JsonAnswer(answers.whole(written)).into_response())
}

/// `POST /apply-template`
///
/// # Errors
/// 400 for a malformed request, or a model without a template.
pub async fn apply_template(
    State(app): State<Arc<App>>,
    request: HttpRequest,
) -> Result<JsonAnswer<Value>> {
    let prompt = |chat: &Chat, conversation: &_| Ok(json!({"prompt": chat.render(conversation)?}));
    of_conversation(app, request, prompt).await
}

/// `POST /chat/completions/input_tokens`: how many tokens the prompt of a conversation has.
///
/// # Errors
/// As [`apply_template`].
pub async fn input_tokens(
    State(app): State<Arc<App>>,
    request: HttpRequest,
) -> Result<JsonAnswer<Value>> {
    let count =
        |chat: &Chat, conversation: &_| Ok(json!({"input_tokens": chat.ids(conversation)?.len()}));
    of_conversation(app, request, count).await
}

/// Answers what `answer` makes of the template and of the conversation of a request.
async fn of_conversation(
    app: Arc<App>,
    request: HttpRequest,
    answer: impl FnOnce(&Chat, &Conversation) -> Result<Value> + Send + 'static,
) -> Result<JsonAnswer<Value>> {
    app.loaded()?;
    let body = app.body(request).await?;
    let answer = aside(move || {
        let loaded = app.loaded()?;
        let object = object(&body.bytes)?;
        let fields = Fields(&object);
        let conversation = conversation(fields, &Tools::read(fields, loaded.tools)?, loaded)?;
        answer(chat(loaded)?, &conversation)
    });
    answer.await.map(JsonAnswer)
}

/// The template of the model.
fn chat(loaded: &Loaded) -> Result<&Chat> {
    loaded.chat.as_ref().map_err(|reason| ApiError::invalid(reason.clone()))
}

fn read(app: &App, body: &[u8]) -> Result<Answers> {
    let loaded = app.loaded()?;
    let object = object(body)?;
    let fields = Fields(&object);
    let chat = chat(loaded)?;
    let tools = Tools::read(fields, loaded.tools)?;
    let conversation = conversation(fields, &tools, loaded)?;
    let rendered = chat.render(&conversation)?;
    let mut request = Request::new(fields, vec![chat.ids(&conversation)?], loaded)?;
    let family = loaded.tools.filter(|_| !tools.callable.is_empty());
    if let Some(family) = family.filter(|_| tools.is_forced) {
        if request.grammar.is_some() {
            let expected = "auto or none beside a response_format or grammar";
            return Err(ApiError::text_field("tool_choice", "a call", expected));
        }
        let lark = family.grammar(&tools.callable, tools.several);
        let grammar = grammar::compiled(loaded, move |grammars| grammars.grammar(&lark));
        request.grammar = Some(grammar?);
    }
    let calls = family.filter(|_| fields.boolean("parse_tool_calls").ok().flatten() != Some(false));
    let top = fields.integer("top_logprobs", 0..=MAX_LOGPROBS)?;
    let top = top.and_then(|top| usize::try_from(top).ok());
    request.logprobs = match (fields.is_set("logprobs")?, top) {
        (true, top) => Some(top.unwrap_or(0)),
        (false, Some(top)) if top > 0 => {
            let expected = "nothing, unless logprobs is true";
            return Err(ApiError::text_field("top_logprobs", &top.to_string(), expected));
        }
        (false, _) => None,
    };
    let reasoning = match fields.string("reasoning_format")?.unwrap_or("auto") {
        "auto" => loaded.reasoning,
        name => name.parse().map_err(|()| {
            let found = super::error::quoted(name);
            ApiError::text_field("reasoning_format", &found, "none, deepseek or auto")
        })?,
    };
    if calls.is_some() && request.logprobs.is_some() && request.stream {
        let expected = "false in a stream with tools";
        return Err(ApiError::text_field("logprobs", "true", expected));
    }
    Ok(Answers::new(request, &rendered, (reasoning, calls), loaded))
}

/// Reads the conversation of a request.
fn conversation(fields: Fields<'_>, tools: &Tools, loaded: &Loaded) -> Result<Conversation> {
    let expected = format!("an array of 1 to {MAX_MESSAGES} messages");
    let messages = fields.require("messages", &expected)?;
    let count = messages.as_array().map_or(0, Vec::len);
    if !(1..=MAX_MESSAGES).contains(&count) {
        return Err(ApiError::field("messages", messages, &expected));
    }
    fields.object("chat_template_kwargs")?;
    let messages = messages.as_array().into_iter().flatten().enumerate();
    let messages = messages.map(|(number, message)| {
        let message = match loaded.takes_objects {
            true => &with_objects(message),
            false => message,
        };
        Message::try_from(ordered(message)?).map_err(|error| {
            ApiError::invalid(format!("messages: message {number}: {error}")).of("messages")
        })
    });
    let mut messages = messages.collect::<Result<Vec<Message>>>()?;
    check_answers(&messages)?;
    if let Some(system) = &loaded.system
        && messages.iter().all(|message| message.role != "system")
    {
        messages.insert(0, Message::new("system", system));
    }
    let mut variables = loaded.variables.clone();
    if let Some(own) = fields.get("chat_template_kwargs") {
        for (name, value) in Variables::try_from(ordered(own)?)?.iter() {
            variables.set(name, value.clone())?;
        }
    }
    let tools = fields.get("tools").and_then(Value::as_array).filter(|_| tools.are_shown);
    Ok(Conversation {
        ending: ending(fields, &messages)?,
        messages,
        tools: tools.into_iter().flatten().map(ordered).collect::<Result<_>>()?,
        variables,
    })
}

/// A value whose keys keep their order, as templates write them out.
fn ordered(value: &Value) -> Result<Json> {
    Json::deserialize(value).map_err(|error| ApiError::invalid(error.to_string()))
}

/// Checks that each answer has a text or calls functions, and that an open one is not behind another.
fn check_answers(messages: &[Message]) -> Result<()> {
    for (number, message) in messages.iter().enumerate() {
        let calls = message.fields.iter().any(|(name, _)| name == "tool_calls");
        if message.content.is_none() && !(message.role == "assistant" && calls) {
            return Err(ApiError::text_field(
                "messages",
                &format!("message {number} without content"),
                "a content, or an answer with tool_calls",
            ));
        }
    }
    let is_answer = |message: &Message| message.role == "assistant";
    match messages {
        [.., before, last] if is_answer(before) && is_answer(last) => Err(ApiError::text_field(
            "messages",
            "two answers at the end",
            "at most one, which is continued",
        )),
        _ => Ok(()),
    }
}

/// The end of the conversation: a last answer is continued.
fn ending(fields: Fields<'_>, messages: &[Message]) -> Result<Ending> {
    let last_is_answer = messages.last().is_some_and(|message| message.role == "assistant");
    let continues = fields.boolean("continue_final_message")?.unwrap_or(last_is_answer);
    let begins = fields.boolean("add_generation_prompt")?.unwrap_or(!continues);
    match (continues, begins) {
        (true, true) => Err(ApiError::text_field(
            "add_generation_prompt",
            "true, beside continue_final_message",
            "one of both",
        )),
        (true, false) => Ok(Ending::Open),
        (false, true) => Ok(Ending::Answer),
        (false, false) => Ok(Ending::Closed),
    }
}
