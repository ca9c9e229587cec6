//! What a request says of the form of its texts: a JSON schema or a grammar.

use bitnet_runtime::Grammar;
use serde_json::{Value, json};

use super::app::Loaded;
use super::error::{ApiError, Result, shown};
use super::fields::Fields;

/// Reads the fields `response_format`, `json_schema` and `grammar`, of which at most one may be there.
///
/// # Errors
/// 400 for what is malformed, does not compile, or is too large.
pub fn read(fields: Fields<'_>, loaded: &Loaded) -> Result<Option<Grammar>> {
    let format = fields.get("response_format").map(schema_of).transpose()?.flatten();
    let schema = fields.get("json_schema").cloned();
    let grammar = fields.string("grammar")?.filter(|grammar| !grammar.is_empty());
    let (schema, grammar) = match (format, schema, grammar) {
        (None, None, None) => return Ok(None),
        (Some(schema), None, None) | (None, Some(schema), None) => (Some(schema), None),
        (None, None, Some(grammar)) => (None, Some(grammar)),
        _ => {
            return Err(ApiError::text_field(
                "response_format",
                "several forms of a text",
                "one of response_format, json_schema and grammar",
            ));
        }
    };
    let grammars = loaded.grammars()?;
    let compiled = match (schema, grammar) {
        (Some(schema), _) => grammars.json_schema(&schema.to_string())?,
        (None, grammar) => grammars.grammar(grammar.unwrap_or_default())?,
    };
    Ok(Some(compiled))
}

/// The schema that a `response_format` asks for; `None` for any text.
fn schema_of(format: &Value) -> Result<Option<Value>> {
    let expected = "type text, json_object, or json_schema with a json_schema";
    let wrong = |found: &str| Err(ApiError::text_field("response_format", found, expected));
    let Some(object) = format.as_object() else { return wrong(&shown(format)) };
    let schema = || object.get("schema").filter(|schema| !schema.is_null()).cloned();
    match object.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(schema().unwrap_or_else(|| json!({"type": "object"})))),
        Some("json_schema") => {
            let nested = object.get("json_schema").and_then(|nested| nested.get("schema")).cloned();
            match nested.or_else(schema) {
                Some(schema) => Ok(Some(schema)),
                None => wrong("json_schema without a schema"),
            }
        }
        Some(other) => wrong(&super::error::quoted(other)),
        None => wrong("no type"),
    }
}
