//! Typed fields of a request's JSON object, each checked against what is allowed.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::{ApiError, Result};

/// Values of a request's JSON, at most: what memory it takes is bounded by them.
const MAX_VALUES: usize = 1_000_000;

/// Largest number of tokens, by llama.cpp's type.
pub const MAX_I32: i64 = i32::MAX as i64;

/// The fields of an object. Absent ones and `null` are the same.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// A field that is there.
    pub fn get(self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A field that must be there.
    pub fn require(self, name: &str, expected: &str) -> Result<&'a Value> {
        self.get(name).ok_or_else(|| ApiError::text_field(name, "nothing", expected))
    }

    /// An integer within a range.
    pub fn integer(self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let found = value.as_i64().or_else(|| whole(value.as_f64()?));
        match found.filter(|found| range.contains(found)) {
            Some(found) => Ok(Some(found)),
            None => {
                let expected = format!("an integer from {} to {}", range.start(), range.end());
                Err(ApiError::field(name, value, &expected))
            }
        }
    }

    /// A number within a range.
    pub fn number(self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_f64().filter(|found| range.contains(found)) {
            Some(found) => Ok(Some(found)),
            None => {
                let expected = format!("a number from {} to {}", range.start(), range.end());
                Err(ApiError::field(name, value, &expected))
            }
        }
    }

    /// `true` or `false`; without either, false.
    pub fn is_set(self, name: &str) -> Result<bool> {
        Ok(self.boolean(name)?.unwrap_or(false))
    }

    /// `true` or `false`.
    pub fn boolean(self, name: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_bool() {
            Some(found) => Ok(Some(found)),
            None => Err(ApiError::field(name, value, "true or false")),
        }
    }

    /// A string.
    pub fn string(self, name: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_str() {
            Some(found) => Ok(Some(found)),
            None => Err(ApiError::field(name, value, "a string")),
        }
    }

    /// An object.
    pub fn object(self, name: &str) -> Result<Option<Fields<'a>>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_object() {
            Some(found) => Ok(Some(Fields(found))),
            None => Err(ApiError::field(name, value, "an object")),
        }
    }
}

/// The integer that a float is, if it is one.
fn whole(number: f64) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    (number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i64)
}

/// Reads the JSON object of a request.
///
/// # Errors
/// 400 for what is not one, or holds more values than [`MAX_VALUES`].
pub fn object(body: &[u8]) -> Result<Map<String, Value>> {
    if values(body) > MAX_VALUES {
        return Err(ApiError::invalid(format!(
            "body: more than {MAX_VALUES} values of JSON, expected at most as many"
        )));
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => {
            Err(ApiError::text_field("body", &super::error::shown(&other), "a JSON object"))
        }
        Err(error) => Err(ApiError::invalid(format!("body: {error}, expected a JSON object"))),
    }
}

/// An upper bound of the values in a JSON text.
fn values(body: &[u8]) -> usize {
    let (mut count, mut in_string, mut is_escaped) = (1, false, false);
    for &byte in body {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_string => is_escaped = true,
            b'"' => in_string = !in_string,
            b',' | b'[' | b'{' if !in_string => count += 1,
            _ => {}
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.unwrap_err().json()["error"]["message"].as_str().unwrap().to_owned()
    }

    #[test]
    fn fields_are_held_to_their_range_and_type() {
        let object = object(br#"{"a": 5, "b": 5.0, "c": 5.5, "d": null, "e": "x", "f": 1e400}"#);
        assert!(message(object).contains("number out of range"));
        let object =
            super::object(br#"{"a": 5, "b": 5.0, "c": 5.5, "d": null, "e": "x", "f": 1e300}"#);
        let object = object.unwrap();
        let fields = Fields(&object);
        assert_eq!(fields.integer("a", 0..=5), Ok(Some(5)));
        assert_eq!(fields.integer("b", 0..=5), Ok(Some(5)));
        assert_eq!(fields.integer("d", 0..=5), Ok(None));
        assert_eq!(fields.integer("none", 0..=5), Ok(None));
        assert_eq!(message(fields.integer("a", -1..=4)), "a: 5, expected an integer from -1 to 4");
        for name in ["c", "e", "f"] {
            let message = message(fields.integer(name, 0..=9));
            assert!(message.ends_with("expected an integer from 0 to 9"), "{message}");
        }
        assert_eq!(fields.number("c", 0.0..=6.0), Ok(Some(5.5)));
        assert_eq!(
            message(fields.number("f", 0.0..=1.0)),
            "f: 1e+300, expected a number from 0 to 1"
        );
        assert_eq!(message(fields.is_set("e")), "e: \"x\", expected true or false");
        assert_eq!(message(fields.string("a")), "a: 5, expected a string");
        assert_eq!(message(fields.object("a")), "a: 5, expected an object");
    }

    #[test]
    fn r19_what_is_no_json_object_is_refused() {
        let deep = "[".repeat(100_000);
        let many = format!("{{\"prompt\": [{}1]}}", "1,".repeat(MAX_VALUES));
        let cases = [
            ("", "EOF"),
            ("[]", "an array of 0"),
            ("7", "7"),
            ("{\"a\": \"\\ud800\"}", "hex escape"),
            ("{\"a\": NaN}", "expected value"),
            (&*deep, "recursion limit"),
            (&*many, "more than 1000000 values"),
        ];
        for (text, expected) in cases {
            let message = message(object(text.as_bytes()));
            assert!(message.contains(expected), "{message}");
        }
        assert!(message(object(b"{\"a\": \"\xff\"}")).contains("invalid unicode"));
        // What is in a string counts for nothing.
        let text = format!("{{\"a\": \"{}\\\",\"}}", ",".repeat(MAX_VALUES));
        object(text.as_bytes()).unwrap();
    }
}
