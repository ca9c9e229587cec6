//! What a request says of the form of its texts: a JSON schema or a grammar.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use bitnet_runtime::{Grammar, Grammars};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::app::Loaded;
use super::error::{ApiError, Kind, Result, shown};
use super::fields::Fields;

/// Grammars that are being compiled at once, at most; those whose time is over count until they end.
pub const AT_ONCE: usize = 8;
/// Time for compiling a grammar.
const TIME: Duration = Duration::from_secs(2);

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
    let grammar = grammar.unwrap_or_default().to_owned();
    let compile = move |grammars: &Grammars| match schema {
        Some(schema) => grammars.json_schema(&schema.to_string()),
        None => grammars.grammar(&grammar),
    };
    compiled(loaded, compile).map(Some)
}

/// Compiles a grammar on a thread of its own, and waits a set time for it.
///
/// # Errors
/// 400 for what is malformed, too large or takes too long; 503 while too many are being compiled.
pub fn compiled(
    loaded: &Loaded,
    compile: impl FnOnce(&Grammars) -> bitnet_runtime::Result<Grammar> + Send + 'static,
) -> Result<Grammar> {
    let grammars = Arc::clone(loaded.grammars()?);
    Ok(within(TIME, &loaded.compiling, move || compile(&grammars))??)
}

/// Does something on a thread of its own, which has one of some places until it ends. Whoever asked waits
/// for a set time only.
fn within<T: Send + 'static>(
    time: Duration,
    places: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let place = Arc::clone(places).try_acquire_owned();
    let place = place.map_err(|_| ApiError::busy("grammars of others are being compiled", 2))?;
    let (sender, done) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name("grammar".into()).spawn(move || {
        // Who asked may have stopped waiting.
        drop(sender.send(work()));
        drop(place);
    });
    let failed = || ApiError::new(Kind::Server, "the grammar was not compiled");
    thread.map_err(|_| failed())?;
    done.recv_timeout(time).map_err(|error| match error {
        mpsc::RecvTimeoutError::Timeout => {
            let found = format!("more than {} s of compiling", time.as_secs_f64());
            ApiError::text_field("grammar", &found, "a simpler one")
        }
        mpsc::RecvTimeoutError::Disconnected => failed(),
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_too_long_is_refused_and_keeps_its_place() {
        let places = Arc::new(Semaphore::new(1));
        assert_eq!(within(Duration::from_secs(3600), &places, || 7).unwrap(), 7);
        while places.available_permits() == 0 {
            thread::yield_now();
        }
        let (go, may_go) = mpsc::channel::<()>();
        let bomb = move || may_go.recv();
        let error = within(Duration::from_millis(1), &places, bomb).unwrap_err();
        assert_eq!(error.status(), 400);
        let error = within(Duration::from_secs(3600), &places, || ()).unwrap_err();
        assert_eq!(error.status(), 503);
        go.send(()).unwrap();
        while places.available_permits() == 0 {
            thread::yield_now();
        }
        // A panic is no answer.
        let error = within(Duration::from_secs(3600), &places, || panic!("x")).unwrap_err();
        assert_eq!(error.status(), 500);
    }
}
