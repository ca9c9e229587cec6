//! Messages and conversations, in the form of OpenAI's API.

use serde::{Deserialize, Serialize};

use super::json::Json;
use crate::error::{Error, Result, quoted};

/// A message of a conversation. In JSON it is an object; its content may be an array of parts, which must
/// be texts and are joined by newlines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Json", into = "Json")]
pub struct Message {
    /// Whose message it is: `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// The text; `None` for an answer that only calls tools.
    pub content: Option<String>,
    /// Further fields that templates know, such as `tool_calls`, `tool_call_id` and `reasoning_content`.
    pub fields: Vec<(String, Json)>,
}

impl Message {
    /// Makes a message of a text.
    #[must_use]
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(content.into()), fields: Vec::new() }
    }
}

impl TryFrom<Json> for Message {
    type Error = Error;

    fn try_from(json: Json) -> Result<Self> {
        let pairs = json.pairs().ok_or_else(|| {
            Error::usage("message", "no object", "an object with a role and a content")
        })?;
        let (mut role, mut content, mut fields) = (None, None, Vec::new());
        for (name, value) in pairs {
            match name.as_str() {
                "role" => role = value.as_str().map(str::to_owned),
                "content" => content = text_of(&value)?,
                _ => fields.push((name, value)),
            }
        }
        let role = role.ok_or_else(|| Error::usage("role of a message", "none", "a string"))?;
        Ok(Self { role, content, fields })
    }
}

impl From<Message> for Json {
    fn from(message: Message) -> Self {
        let content = message.content.map_or(Json(().into()), Json::from);
        let own = [("role".to_owned(), message.role.into()), ("content".to_owned(), content)];
        Json::object(own.into_iter().chain(message.fields))
    }
}

/// The text of a message's content; `None` for null.
fn text_of(content: &Json) -> Result<Option<String>> {
    if content.is_null() {
        return Ok(None);
    }
    if let Some(text) = content.as_str() {
        return Ok(Some(text.to_owned()));
    }
    let expected = "a string, null, or an array of texts";
    let parts = content.items();
    let parts = parts.ok_or_else(|| Error::usage("content of a message", "neither", expected))?;
    let texts = parts.iter().map(|part| {
        let pairs = part.pairs().unwrap_or_default();
        let get = |key| pairs.iter().find(|(name, _)| name == key).and_then(|(_, v)| v.as_str());
        match (get("type"), get("text")) {
            (Some("text"), Some(text)) => Ok(text.to_owned()),
            (kind, _) => {
                let found = kind.map_or("no type".to_owned(), quoted);
                let expected = "type 'text' with a text: this model reads text only";
                Err(Error::usage("part of a message", found, expected))
            }
        }
    });
    Ok(Some(texts.collect::<Result<Vec<String>>>()?.join("\n")))
}

/// The end of a rendered conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// What begins an answer, so that the model gives it.
    #[default]
    Answer,
    /// The last message.
    Closed,
    /// The last message, which is an answer, left open so that the model goes on with it.
    Open,
}

/// A conversation: what a chat template makes a text of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// The messages, the oldest first.
    pub messages: Vec<Message>,
    /// JSON schemas of the functions that the model may call; with none, templates see no tools.
    pub tools: Vec<Json>,
    /// Further variables for the template.
    pub variables: Variables,
    /// The end.
    pub ending: Ending,
}

/// Variables for a template, as `chat_template_kwargs` of a request has them: `enable_thinking`, for
/// example. Read them from a JSON object with serde or [`Variables::parse`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Json", into = "Json")]
pub struct Variables(Vec<(String, Json)>);

impl Variables {
    /// Most variables of a conversation.
    const MOST: usize = 64;
    /// Names that mean something else.
    const TAKEN: &[&str] = &["messages", "tools", "documents", "add_generation_prompt"];

    /// Reads a JSON object.
    ///
    /// # Errors
    /// [`Error::Usage`] for other JSON, too many variables, or a name that is none or means something else.
    pub fn parse(text: &str) -> Result<Self> {
        text.parse::<Json>()
            .map_err(|e| Error::usage("chat_template_kwargs", quoted(text), e))?
            .try_into()
    }

    /// Sets a variable.
    ///
    /// # Errors
    /// [`Error::Usage`] for one too many, or a name that is none or means something else.
    pub fn set(&mut self, name: &str, value: impl Into<Json>) -> Result<()> {
        let refused = |found: String, expected: &str| {
            Err(Error::usage("chat_template_kwargs", found, expected))
        };
        let is_first = |c: char| c.is_ascii_alphabetic() || c == '_';
        if !name.starts_with(is_first) || !name.chars().all(|c| is_first(c) || c.is_ascii_digit()) {
            return refused(quoted(name), "names of letters, digits and _");
        }
        if Self::TAKEN.contains(&name) || name.ends_with("_token") {
            return refused(quoted(name), "names of variables that are not set anyway");
        }
        let value = value.into();
        if let Some((_, own)) = self.0.iter_mut().find(|(own, _)| own == name) {
            *own = value;
        } else if self.0.len() == Self::MOST {
            return refused(format!("more than {}", Self::MOST), "fewer variables");
        } else {
            self.0.push((name.to_owned(), value));
        }
        Ok(())
    }

    /// The variables, in the order in which they were set.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Json)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }
}

impl TryFrom<Json> for Variables {
    type Error = Error;

    fn try_from(json: Json) -> Result<Self> {
        let pairs = json.pairs().ok_or_else(|| {
            Error::usage("chat_template_kwargs", "no object", "a JSON object of variables")
        })?;
        let mut variables = Self::default();
        pairs.into_iter().try_for_each(|(name, value)| variables.set(&name, value))?;
        Ok(variables)
    }
}

impl From<Variables> for Json {
    fn from(variables: Variables) -> Self {
        Json::object(variables.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_text_in_one_piece_or_in_parts() {
        let read = |text: &str| serde_json::from_str::<Message>(text);
        let parts =
            r#"{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}"#;
        assert_eq!(read(parts).unwrap(), Message::new("user", "a\nb"));
        let call = r#"{"role":"assistant","content":null,"tool_calls":[{"z":1,"a":2}]}"#;
        let message = read(call).unwrap();
        assert_eq!((message.content.as_deref(), message.fields.len()), (None, 1));
        assert_eq!(serde_json::to_string(&message).unwrap(), call);
        for (text, words) in [
            (r#"{"role":"user","content":[{"type":"image_url","image_url":{}}]}"#, "'image_url'"),
            (r#"{"role":"user","content":7}"#, "content of a message"),
            (r#"{"role":3,"content":""}"#, "role of a message"),
            (r#"{"content":""}"#, "role of a message"),
            ("[]", "message: found no object"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn variables_have_names_of_their_own() {
        let read = Variables::parse(r#"{"enable_thinking": false, "x_1": [1]}"#).unwrap();
        assert_eq!(
            read.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            ["enable_thinking", "x_1"]
        );
        let many: Vec<String> = (0..65).map(|i| format!(r#""v{i}":{i}"#)).collect();
        for text in [
            "[]",
            "{",
            r#"{"messages":[]}"#,
            r#"{"bos_token":"x"}"#,
            r#"{"1x":0}"#,
            r#"{"":0}"#,
            r#"{"a b":0}"#,
            &format!("{{{}}}", many.join(",")),
        ] {
            let error = Variables::parse(text).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{text}");
            assert!(error.to_string().contains("chat_template_kwargs"), "{error}");
        }
    }
}
