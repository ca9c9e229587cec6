//! Errors that a client is told, all in OpenAI's form.

use std::fmt::Write as _;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bitnet_runtime::error::Error;
use serde_json::{Value, json};

/// Characters of a client's own value that a message repeats, at most.
const SHOWN: usize = 200;

/// Kind of an error, from which its status follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request asks for what is not offered, or is malformed.
    Invalid,
    /// The prompt is longer than the context of a slot.
    TooLong,
    /// No key, or a wrong one.
    Authentication,
    /// The request comes from a site, or names a host, that is not served.
    Permission,
    /// There is nothing at this path.
    NotFound,
    /// The server failed.
    Server,
    /// The server offers this in another setting, or not yet.
    NotSupported,
    /// The server is loading, full or about to end.
    Unavailable,
}

impl Kind {
    fn status(self) -> StatusCode {
        match self {
            Self::Invalid | Self::TooLong => StatusCode::BAD_REQUEST,
            Self::Authentication => StatusCode::UNAUTHORIZED,
            Self::Permission => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Server => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NotSupported => StatusCode::NOT_IMPLEMENTED,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid_request_error",
            Self::TooLong => "exceed_context_size_error",
            Self::Authentication => "authentication_error",
            Self::Permission => "permission_error",
            Self::NotFound => "not_found_error",
            Self::Server => "server_error",
            Self::NotSupported => "not_supported_error",
            Self::Unavailable => "unavailable_error",
        }
    }
}

/// An error as a client is told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    kind: Kind,
    status: StatusCode,
    message: String,
    /// The field of the request that is wrong.
    param: Option<String>,
    /// Tokens of a prompt that is too long, and of the context.
    sizes: Option<(usize, usize)>,
    /// Seconds after which another try may succeed.
    retry_after: Option<u64>,
}

/// `Result` with an [`ApiError`].
pub type Result<T> = std::result::Result<T, ApiError>;

impl ApiError {
    /// Makes an error of a kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            status: kind.status(),
            message: message.into(),
            param: None,
            sizes: None,
            retry_after: None,
        }
    }

    /// Makes an error about a whole request.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// Makes an error about a field: its name, the value found and what is allowed.
    pub fn field(name: &str, found: &Value, expected: &str) -> Self {
        Self::text_field(name, &shown(found), expected)
    }

    /// The error as one about a field.
    #[must_use]
    pub fn of(self, name: &str) -> Self {
        Self { param: Some(name.to_owned()), ..self }
    }

    /// Makes an error about a field, whose value is told in words.
    pub fn text_field(name: &str, found: &str, expected: &str) -> Self {
        let message = format!("{name}: {found}, expected {expected}");
        Self { param: Some(name.to_owned()), ..Self::invalid(message) }
    }

    /// Makes the error of a prompt of so many tokens that does not fit into a context.
    pub fn too_long(prompt: usize, context: usize) -> Self {
        let message = format!(
            "prompt: {prompt} tokens, expected at most {}: the request exceeds the available \
             context size ({context} tokens, one of which is to be written); shorten it, or start \
             the server with a larger -c",
            context.saturating_sub(1)
        );
        Self { sizes: Some((prompt, context)), ..Self::new(Kind::TooLong, message) }
    }

    /// Makes the error of a text in a field, of so many tokens, that does not fit into a context.
    pub fn too_large(name: &str, tokens: usize, context: usize) -> Self {
        let message = format!(
            "{name}: {tokens} tokens, expected at most {context}: the text is too large to process in a \
             slot; shorten it, or start the server with a larger -c"
        );
        Self { sizes: Some((tokens, context)), ..Self::new(Kind::TooLong, message) }
    }

    /// Makes an error of a server that is busy, with the seconds after which to try again.
    pub fn busy(message: impl Into<String>, retry_after: u64) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(Kind::Unavailable, message) }
    }

    /// The error with another status than that of its kind.
    #[must_use]
    pub fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// The status of the answer.
    #[cfg(test)]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The body of the answer.
    pub fn json(&self) -> Value {
        let mut error = json!({
            "code": self.status.as_u16(),
            "message": self.message,
            "type": self.kind.name(),
        });
        if let Some(param) = &self.param {
            error["param"] = param.as_str().into();
        }
        if let Some((prompt, context)) = self.sizes {
            error["n_prompt_tokens"] = prompt.into();
            error["n_ctx"] = context.into();
        }
        json!({ "error": error })
    }
}

/// An error of the library about a request is the client's where it names a parameter.
impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        match &error {
            Error::Usage { item, found, expected } => Self::text_field(item, found, expected),
            _ => Self::new(Kind::Server, error.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.json())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.kind == Kind::Authentication {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A client's value as a message repeats it: short, on one line, and no terminal's command.
pub fn shown(value: &Value) -> String {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) => quoted(text),
        Value::Array(items) => format!("an array of {}", items.len()),
        Value::Object(fields) => format!("an object of {} fields", fields.len()),
    }
}

/// A client's text as a message repeats it.
pub fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for (count, c) in text.chars().enumerate() {
        if count == SHOWN {
            out.push_str("...");
            break;
        }
        // Writing to a string cannot fail.
        let _ = write!(out, "{}", c.escape_debug());
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_field_value_and_what_is_allowed_on_one_line() {
        let error = ApiError::field("max_tokens", &json!(-5), "an integer from -1 to 2147483647");
        assert_eq!(
            error.json(),
            json!({"error": {
                "code": 400,
                "message": "max_tokens: -5, expected an integer from -1 to 2147483647",
                "type": "invalid_request_error",
                "param": "max_tokens",
            }})
        );
        let long = "\u{1b}[2J\r\n".to_owned() + &"x".repeat(10_000);
        for value in [json!(long), json!(vec![1; 10_000]), json!({long.clone(): 1})] {
            let error = ApiError::field("stop", &value, "a string");
            let message = error.json()["error"]["message"].as_str().unwrap().to_owned();
            assert!(message.len() < 300, "{message}");
            assert!(!message.contains(char::is_control), "{message}");
        }
    }
}
