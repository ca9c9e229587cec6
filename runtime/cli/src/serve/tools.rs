//! Calls of functions: told from the rest of an answer, and forced upon one by a grammar.
//!
//! Two families of templates are known. One writes each call as JSON between `<tool_call>` and
//! `</tool_call>` (Qwen, Hermes; Falcon 3, whose JSON is a list); the other, Llama 3's, writes an answer
//! that is JSON and nothing else.

use bitnet_runtime::{Chat, Conversation, Ending, Json, Message};
use serde::Deserialize as _;
use serde_json::{Map, Value, json};

use super::app::new_id;
use super::error::{ApiError, Result, shown};
use super::fields::Fields;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// Functions that a model may call, at most.
const MAX_TOOLS: usize = 128;

/// How a template writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// JSON between tags.
    Tagged {
        /// True for a list of calls in one pair of tags.
        is_list: bool,
    },
    /// JSON alone, whose arguments are named `parameters`.
    Bare,
}

impl Family {
    /// That of a template, if it is known.
    pub fn of(template: &str) -> Option<Self> {
        if template.contains(OPEN) {
            let is_list = template.contains("<tool_call>[") || template.contains("<tool_call>\\n[");
            return Some(Self::Tagged { is_list });
        }
        let is_bare = template.contains("ipython") && template.contains("parameters");
        is_bare.then_some(Self::Bare)
    }

    fn arguments(self) -> &'static str {
        match self {
            Self::Tagged { .. } => "arguments",
            Self::Bare => "parameters",
        }
    }

    /// The grammar, in llguidance's Lark, of an answer that calls one of the functions, or several.
    pub fn grammar(self, tools: &[Tool], several: bool) -> String {
        let call = |tool: &Tool| {
            json!({
                "type": "object",
                "properties": {
                    "name": {"const": tool.name},
                    self.arguments(): tool.parameters,
                },
                "required": ["name", self.arguments()],
                "additionalProperties": false,
            })
        };
        let mut schema = match tools {
            [tool] => call(tool),
            tools => json!({"anyOf": tools.iter().map(call).collect::<Vec<_>>()}),
        };
        if matches!(self, Self::Tagged { is_list: true }) {
            let mut list = json!({"type": "array", "items": schema, "minItems": 1});
            if !several {
                list["maxItems"] = 1.into();
            }
            schema = list;
        }
        schema["x-guidance"] = json!({
            "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ",
        });
        let (start, call) = match self {
            Self::Tagged { .. } => ("call", "\"<tool_call>\\n\" json \"\\n</tool_call>\""),
            Self::Bare => ("call", "json"),
        };
        let more = match (self, several) {
            (Self::Tagged { is_list: false }, true) => " (\"\\n\" call)*",
            _ => "",
        };
        format!("%llguidance {{}}\nstart: {start}{more}\ncall: {call}\njson: %json {schema}\n")
    }
}

/// A function that a model may call.
#[derive(Clone, Debug)]
pub struct Tool {
    name: String,
    /// The JSON schema of its arguments.
    parameters: Value,
}

/// What a request says of tools.
#[derive(Clone, Debug, Default)]
pub struct Tools {
    /// The functions that may be called; none where the answer is not looked at for calls.
    pub callable: Vec<Tool>,
    /// True if the answer must be a call.
    pub is_forced: bool,
    /// True if it may be several.
    pub several: bool,
    /// True if the template gets to see the functions.
    pub are_shown: bool,
}

impl Tools {
    /// Reads the fields `tools`, `tool_choice` and `parallel_tool_calls`, for a template of a family. Without
    /// one no call can be told, and the model does not hear of tools: clients offer some to every model.
    ///
    /// # Errors
    /// 400 for what is malformed, and for a call that must be where none can.
    pub fn read(fields: Fields<'_>, family: Option<Family>) -> Result<Self> {
        let tools = Self::asked_for(fields)?;
        match family {
            Some(_) => Ok(tools),
            None if tools.is_forced => {
                let expected = "auto or none: this model's template has no tools";
                Err(ApiError::text_field("tool_choice", "a call", expected))
            }
            None => Ok(Self::default()),
        }
    }

    fn asked_for(fields: Fields<'_>) -> Result<Self> {
        let choice = fields.get("tool_choice");
        let Some(value) = fields.get("tools") else {
            return match choice.and_then(Value::as_str) {
                None | Some("auto" | "none") if choice.is_none_or(Value::is_string) => {
                    Ok(Self::default())
                }
                _ => Err(ApiError::text_field("tool_choice", "a call", "tools to call")),
            };
        };
        let expected = format!("an array of up to {MAX_TOOLS} functions");
        let items = value.as_array().filter(|items| items.len() <= MAX_TOOLS);
        let items = items.ok_or_else(|| ApiError::field("tools", value, &expected))?;
        let tools = items.iter().map(tool).collect::<Result<Vec<Tool>>>()?;
        let is_named = |tool: &Tool, name: &str| tool.name == name;
        let several = fields.boolean("parallel_tool_calls")?.unwrap_or(true);
        let shown_tools = Self { several, are_shown: true, ..Self::default() };
        let expected = "auto, none, required, or a function of tools";
        let wrong = |value: &Value| ApiError::text_field("tool_choice", &shown(value), expected);
        match choice {
            None => Ok(Self { callable: tools, ..shown_tools }),
            Some(Value::String(name)) => match &**name {
                "auto" => Ok(Self { callable: tools, ..shown_tools }),
                "none" => Ok(shown_tools),
                "required" if !tools.is_empty() => {
                    Ok(Self { callable: tools, is_forced: true, ..shown_tools })
                }
                _ => Err(wrong(&Value::String(name.clone()))),
            },
            Some(value) => {
                let name = value.pointer("/function/name").and_then(Value::as_str);
                let found = tools.into_iter().find(|tool| name.is_some_and(|n| is_named(tool, n)));
                let tool = found.ok_or_else(|| wrong(value))?;
                Ok(Self { callable: vec![tool], is_forced: true, several: false, are_shown: true })
            }
        }
    }
}

fn tool(value: &Value) -> Result<Tool> {
    let function = value.get("function").filter(|_| value["type"] == "function");
    let name = function.and_then(|function| function.get("name")).and_then(Value::as_str);
    let (Some(function), Some(name)) = (function, name) else {
        let expected = "an object with type function, and a function with a name";
        return Err(ApiError::field("tools", value, expected));
    };
    let parameters = function.get("parameters").filter(|schema| !schema.is_null()).cloned();
    let parameters = parameters.unwrap_or_else(|| json!({"type": "object"}));
    if !parameters.is_object() {
        return Err(ApiError::field(
            "parameters",
            &parameters,
            "a JSON schema, which is an object",
        ));
    }
    Ok(Tool { name: name.to_owned(), parameters })
}

/// A call.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    id: String,
    name: String,
    /// JSON.
    arguments: String,
}

impl Call {
    /// Reads a call; `None` for JSON that is none.
    fn read(value: &Value, family: Family) -> Option<Self> {
        let call = value.as_object()?;
        let name = call.get("name")?.as_str()?.to_owned();
        let named = [family.arguments(), "arguments", "parameters"];
        let arguments = named.into_iter().find_map(|name| call.get(name));
        let arguments = match arguments {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Null) | None => "{}".to_owned(),
            Some(value) => value.to_string(),
        };
        Some(Self { id: new_id("call_"), name, arguments })
    }

    /// The call as OpenAI has it; in a stream with its number.
    pub fn json(&self, number: Option<usize>) -> Value {
        let mut call = Map::new();
        if let Some(number) = number {
            call.insert("index".into(), number.into());
        }
        call.insert("id".into(), self.id.as_str().into());
        call.insert("type".into(), "function".into());
        let function = json!({"name": self.name, "arguments": self.arguments});
        call.insert("function".into(), function);
        call.into()
    }
}

/// True if a template writes the arguments of a call as it should only where they are an object, as Llama
/// 3.1's does. Clients send a string of JSON.
pub fn takes_objects(chat: &Chat) -> bool {
    const NAME: &str = "argument-of-a-call";
    let shows = |arguments: Value| {
        let messages = json!([
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "call00000", "type": "function", "function": {"name": "f", "arguments": arguments}},
            ]},
        ]);
        let read = |message: &Value| Message::try_from(Json::deserialize(message).ok()?).ok();
        let messages: Option<Vec<Message>> =
            messages.as_array().into_iter().flatten().map(read).collect();
        let conversation = messages.map(|messages| Conversation {
            messages,
            ending: Ending::Closed,
            ..Conversation::default()
        });
        let text = conversation.and_then(|conversation| chat.render(&conversation).ok());
        // A string that is written as JSON has a backslash before the second quotation mark.
        text.is_some_and(|text| text.contains(&format!("\"{NAME}\"")))
    };
    let object = json!({NAME: 1});
    !shows(object.to_string().into()) && shows(object)
}

/// A message with the arguments of its calls as objects, where they are strings of such.
pub fn with_objects(message: &Value) -> Value {
    let mut message = message.clone();
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        let arguments = call.pointer_mut("/function/arguments");
        if let Some(arguments) = arguments
            && let Some(Ok(object)) =
                arguments.as_str().map(serde_json::from_str::<Map<String, Value>>)
        {
            *arguments = object.into();
        }
    }
    message
}

/// Tells calls from the rest of an answer, whose text arrives in pieces.
#[derive(Clone, Debug)]
pub struct CallSplitter {
    family: Family,
    /// Text that may become a call.
    held: String,
    /// True once there was text that is no call.
    has_content: bool,
    /// True behind a call, where white space is no content.
    is_behind_call: bool,
}

impl CallSplitter {
    /// Makes one for a family of templates.
    pub fn new(family: Family) -> Self {
        Self { family, held: String::new(), has_content: false, is_behind_call: false }
    }

    /// Takes a piece of the text, and returns the text and the calls that are certain.
    pub fn push(&mut self, piece: &str) -> (String, Vec<Call>) {
        self.held += piece;
        match self.family {
            Family::Tagged { .. } => self.tagged(),
            Family::Bare => self.bare(),
        }
    }

    fn tagged(&mut self) -> (String, Vec<Call>) {
        let (mut content, mut calls) = (String::new(), Vec::new());
        self.skip_space_behind_call();
        while let Some(open) = self.held.find(OPEN) {
            let Some(length) = self.held[open..].find(CLOSE) else {
                self.take_content(open, &mut content);
                return (content, calls);
            };
            let end = open + length + CLOSE.len();
            let found = read_calls(&self.held[open + OPEN.len()..open + length], self.family);
            if found.is_empty() {
                self.take_content(end, &mut content);
            } else {
                self.take_content(open, &mut content);
                self.held.drain(..end - open);
                self.is_behind_call = true;
                self.skip_space_behind_call();
                calls.extend(found);
            }
        }
        let certain = self.held.len() - undecided(&self.held);
        // White space in front of a call is no content either, so it waits.
        let certain = self.held[..certain].trim_end().len();
        self.take_content(certain, &mut content);
        (content, calls)
    }

    fn skip_space_behind_call(&mut self) {
        if self.is_behind_call {
            self.held = self.held.trim_start().to_owned();
            self.is_behind_call = self.held.is_empty();
        }
    }

    /// Moves the first bytes of what is held to the content.
    fn take_content(&mut self, bytes: usize, content: &mut String) {
        let text: String = self.held.drain(..bytes).collect();
        if !text.trim().is_empty() || self.has_content {
            self.has_content = true;
            content.push_str(&text);
        }
    }

    fn bare(&mut self) -> (String, Vec<Call>) {
        let may_be_json = self.held.trim_start().chars().next().is_none_or(|c| c == '{');
        if may_be_json && !self.has_content {
            return (String::new(), Vec::new());
        }
        self.has_content = true;
        (std::mem::take(&mut self.held), Vec::new())
    }

    /// Returns what is left when the text has ended.
    pub fn finish(&mut self) -> (String, Vec<Call>) {
        let held = std::mem::take(&mut self.held);
        if self.family == Family::Bare && !self.has_content {
            let calls = read_calls(&held, self.family);
            if !calls.is_empty() {
                return (String::new(), calls);
            }
        }
        let is_content = self.has_content || !held.trim().is_empty();
        (if is_content { held } else { String::new() }, Vec::new())
    }
}

/// Reads JSON values, one after the other, or a list of them; empty if any is no call.
fn read_calls(text: &str, family: Family) -> Vec<Call> {
    let values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let calls: Option<Vec<Vec<Call>>> = values
        .map(|value| match value.ok()? {
            Value::Array(items) => items.iter().map(|item| Call::read(item, family)).collect(),
            value => Some(vec![Call::read(&value, family)?]),
        })
        .collect();
    calls.unwrap_or_default().concat()
}

/// The length of the longest end of a text with which the opening tag begins.
fn undecided(text: &str) -> usize {
    (1..OPEN.len()).rev().find(|&n| text.ends_with(&OPEN[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAGGED: Family = Family::Tagged { is_list: false };

    /// Content and calls of a text that arrives in pieces of at most so many characters.
    fn split(family: Family, text: &str, size: usize) -> (String, Vec<(String, String)>) {
        let mut splitter = CallSplitter::new(family);
        let (mut content, mut calls) = (String::new(), Vec::new());
        let chars: Vec<char> = text.chars().collect();
        let mut add = |(text, found): (String, Vec<Call>)| {
            content += &text;
            calls.extend(found.into_iter().map(|call| (call.name, call.arguments)));
        };
        for piece in chars.chunks(size).map(String::from_iter) {
            add(splitter.push(&piece));
        }
        add(splitter.finish());
        (content, calls)
    }

    #[test]
    fn pieces_of_any_size_give_the_same_calls() {
        let call =
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"z\": 1, \"a\": [2]}}\n</tool_call>";
        let f = ("f", "{\"z\":1,\"a\":[2]}");
        let list =
            "<tool_call>\n[{\"name\": \"f\", \"arguments\": {}}, {\"name\": \"g\"}]\n</tool_call>";
        type Case<'a> = (Family, String, &'a str, Vec<(&'a str, &'a str)>);
        let cases: Vec<Case> = vec![
            (TAGGED, "Plain <b>.".into(), "Plain <b>.", vec![]),
            (TAGGED, call.into(), "", vec![f]),
            (TAGGED, format!("\n{call}\n{call}\n"), "", vec![f, f]),
            (TAGGED, format!("So:\n{call}"), "So:\n", vec![f]),
            (TAGGED, "<tool_call>no</tool_call>!".into(), "<tool_call>no</tool_call>!", vec![]),
            (TAGGED, "<tool_call>{\"name\": \"f\"".into(), "<tool_call>{\"name\": \"f\"", vec![]),
            (TAGGED, "a <tool".into(), "a <tool", vec![]),
            (Family::Tagged { is_list: true }, list.into(), "", vec![("f", "{}"), ("g", "{}")]),
            (
                Family::Bare,
                "{\"name\": \"f\", \"parameters\": {\"x\": \"y\"}}".into(),
                "",
                vec![("f", "{\"x\":\"y\"}")],
            ),
            (Family::Bare, "{\"no\": 1}".into(), "{\"no\": 1}", vec![]),
            (Family::Bare, "Plain {}.".into(), "Plain {}.", vec![]),
            (Family::Bare, "{\"name\": \"f\"".into(), "{\"name\": \"f\"", vec![]),
        ];
        for (family, text, content, calls) in cases {
            for size in 1..=text.chars().count() {
                let (found, called) = split(family, &text, size);
                let called: Vec<(&str, &str)> =
                    called.iter().map(|(name, arguments)| (&**name, &**arguments)).collect();
                assert_eq!((&*found, called), (content, calls.clone()), "{text:?} by {size}");
            }
        }
    }

    #[test]
    fn families_are_known_by_their_templates() {
        assert_eq!(Family::of("x <tool_call>\\n{{ y }}"), Some(TAGGED));
        assert_eq!(Family::of("Environment: ipython, parameters"), Some(Family::Bare));
        assert_eq!(Family::of("{{ messages }}"), None);
    }
}
