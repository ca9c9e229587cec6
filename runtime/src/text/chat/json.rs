//! JSON values whose objects keep the order of their keys, and the way Python's `json.dumps` writes them.

use std::fmt::Write as _;
use std::str::FromStr;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error as TemplateError, ErrorKind, State};
use serde::{Deserialize, Serialize};

use super::guard::MARK;
use crate::error::{Error, Result, quoted};

/// The result of writing a part of a value.
type Written = std::result::Result<(), TemplateError>;

/// Nested arrays and objects of a value that a template may write: as deep as JSON that is read.
const MAX_DEPTH: usize = 128;

/// A JSON value whose objects keep the order of their keys, as templates write them out: a tool, the
/// arguments of a call, a variable of a template. Read it with serde or [`str::parse`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Json(pub(super) Value);

impl Json {
    /// Returns the text, if it is one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        self.0.as_str()
    }

    /// Returns true if it is `null`.
    #[must_use]
    pub fn is_null(&self) -> bool {
        self.0.is_none()
    }

    /// The pairs of an object, in order; `None` for anything else.
    pub(super) fn pairs(&self) -> Option<Vec<(String, Json)>> {
        if self.0.kind() != ValueKind::Map {
            return None;
        }
        let pair = |key: Value| Some((key.as_str()?.to_owned(), Json(self.0.get_item(&key).ok()?)));
        self.0.try_iter().ok()?.map(pair).collect()
    }

    /// The items of an array; `None` for anything else.
    pub(super) fn items(&self) -> Option<Vec<Json>> {
        let is_array = self.0.kind() == ValueKind::Seq;
        is_array.then(|| self.0.try_iter().ok()).flatten().map(|items| items.map(Json).collect())
    }

    /// An object of these pairs.
    pub(super) fn object(pairs: impl IntoIterator<Item = (String, Json)>) -> Self {
        Self(Value::from_pairs(pairs.into_iter().map(|(key, Json(value))| (key, value))))
    }

    /// The same value with `change` made to each of its texts, keys included.
    pub(super) fn map_texts(&self, change: &impl Fn(&str) -> String) -> Self {
        if let Some(text) = self.as_str() {
            return change(text).into();
        }
        if let Some(pairs) = self.pairs() {
            let pairs = pairs.into_iter();
            return Self::object(pairs.map(|(key, value)| (change(&key), value.map_texts(change))));
        }
        match self.items() {
            Some(items) => Self(items.iter().map(|item| item.map_texts(change).0).collect()),
            None => self.clone(),
        }
    }
}

impl From<String> for Json {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<bool> for Json {
    fn from(value: bool) -> Self {
        Self(value.into())
    }
}

impl FromStr for Json {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        serde_json::from_str(text)
            .map_err(|e| Error::usage("JSON", quoted(text), format_args!("JSON: {e}")))
    }
}

/// The filter `tojson` of templates: transformers' call of `json.dumps`, with its arguments.
pub(super) fn tojson(
    state: &State<'_, '_>,
    value: &Value,
    ensure_ascii: Option<Value>,
    kwargs: Kwargs,
) -> std::result::Result<Value, TemplateError> {
    let given = |name| kwargs.get::<Option<Value>>(name);
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let indent = given("indent")?.filter(|value| !value.is_none());
    let indent = match &indent {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(str::to_owned),
        Some(number) => Some(" ".repeat(usize::try_from(number.clone())?.min(64))),
    };
    let separators = given("separators")?.filter(|value| !value.is_none());
    let [item, key] = match separators {
        Some(pair) => [0, 1].map(|i| pair.get_item_by_index(i).map(|text| text.to_string())),
        None => [Ok(if indent.is_some() { "," } else { ", " }.into()), Ok(": ".into())],
    };
    let mut writer = Writer {
        state,
        out: String::new(),
        paid: 0,
        ensure_ascii: is_true(given("ensure_ascii")?.or(ensure_ascii)),
        sort_keys: is_true(given("sort_keys")?),
        indent,
        item: item?,
        key: key?,
    };
    kwargs.assert_all_used()?;
    writer.write(value, 0)?;
    Ok(Value::from(writer.out))
}

/// Writes JSON as Python does.
struct Writer<'a, 't, 'e> {
    state: &'a State<'t, 'e>,
    out: String,
    /// Bytes of `out` that fuel was paid for.
    paid: usize,
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    /// What separates items, and a key from its value.
    item: String,
    key: String,
}

impl Writer<'_, '_, '_> {
    fn write(&mut self, value: &Value, depth: usize) -> Written {
        // A value may hold another many times, so what is written is paid for as it is written.
        let cost = 1 + (self.out.len() - self.paid) / 64;
        self.paid = self.out.len();
        self.state.consume_fuel(cost as u64)?;
        if depth > MAX_DEPTH {
            return Err(invalid(format!("the value is nested deeper than {MAX_DEPTH}")));
        }
        match value.kind() {
            ValueKind::None => self.out += "null",
            ValueKind::Bool => self.out += if value.is_true() { "true" } else { "false" },
            ValueKind::Number if value.is_integer() => self.out += &value.to_string(),
            ValueKind::Number => self.out += &python_float(f64::try_from(value.clone())?),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Map => {
                let mut pairs = Vec::new();
                for key in value.try_iter()? {
                    let text = match key.kind() {
                        ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
                        ValueKind::None => "null".into(),
                        ValueKind::Bool | ValueKind::Number => key.to_string(),
                        other => return Err(invalid(format!("a key is {other}, not a string"))),
                    };
                    pairs.push((text, value.get_item(&key)?));
                }
                if self.sort_keys {
                    pairs.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.list(['{', '}'], pairs, depth, |writer, (key, value)| {
                    writer.string(&key);
                    writer.out += &writer.key;
                    writer.write(&value, depth + 1)
                })?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?;
                self.list(['[', ']'], items, depth, |writer, item| writer.write(&item, depth + 1))?;
            }
            other => return Err(invalid(format!("{other} is no JSON"))),
        }
        Ok(())
    }

    fn list<T>(
        &mut self,
        [open, close]: [char; 2],
        items: impl IntoIterator<Item = T>,
        depth: usize,
        mut write: impl FnMut(&mut Self, T) -> Written,
    ) -> Written {
        self.out.push(open);
        let mut is_empty = true;
        for item in items {
            if !is_empty {
                self.out += &self.item;
            }
            is_empty = false;
            self.new_line(depth + 1);
            write(self, item)?;
        }
        if !is_empty {
            self.new_line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            (0..depth).for_each(|_| self.out += indent);
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out += "\\\"",
                '\\' => self.out += "\\\\",
                '\n' => self.out += "\\n",
                '\r' => self.out += "\\r",
                '\t' => self.out += "\\t",
                '\u{8}' => self.out += "\\b",
                '\u{c}' => self.out += "\\f",
                // A mark is taken out of the text again, so it must stay what it is.
                MARK => self.out.push(c),
                _ if c < ' ' || self.ensure_ascii && !matches!(c, ' '..='~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Writing to a string does not fail.
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                _ => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

fn invalid(message: String) -> TemplateError {
    TemplateError::new(ErrorKind::InvalidOperation, format!("tojson: {message}"))
}

/// A float as Python's `repr` writes it.
fn python_float(x: f64) -> String {
    if !x.is_finite() {
        let name = if x.is_nan() { "NaN" } else { "Infinity" };
        return if x < 0.0 { format!("-{name}") } else { name.into() };
    }
    let shortest = format!("{x:e}");
    let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    match exponent.parse().unwrap_or(0) {
        -4..16 if x.fract() == 0.0 => format!("{x:.1}"),
        -4..16 => x.to_string(),
        exponent => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", i32::abs(exponent))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (x, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1.5e-5, "1.5e-05"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e300, "1.25e+300"),
            (f64::NEG_INFINITY, "-Infinity"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(python_float(x), expected);
        }
    }

    #[test]
    fn objects_keep_their_order() {
        let text = r#"{"z":1,"a":[true,null,{"y":"é","b":-2.5}]}"#;
        let json: Json = text.parse().unwrap();
        assert_eq!(serde_json::to_string(&json).unwrap(), text);
        let upper = json.map_texts(&|text| text.to_uppercase());
        let expected = r#"{"Z":1,"A":[true,null,{"Y":"É","B":-2.5}]}"#;
        assert_eq!(serde_json::to_string(&upper).unwrap(), expected);
        let error = "{".parse::<Json>().unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }
}
