//! Metadata values given in place of the file's.

use std::str::FromStr;

use super::header::ALIGNMENT_KEY;
use super::{Gguf, Value};
use crate::error::{Error, Result, quoted};

/// A metadata value given in place of the file's, or where the file has none.
///
/// Its text is that of llama.cpp's `--override-kv`: `KEY=TYPE:VALUE` with the types `int`, `float`,
/// `bool` and `str`.
///
/// ```
/// use bitnet_runtime::file::gguf::{Override, Value};
///
/// let given: Override = "tokenizer.ggml.pre=str:llama-bpe".parse()?;
/// assert_eq!(given.key, "tokenizer.ggml.pre");
/// assert_eq!(given.value, Value::Str("llama-bpe".into()));
/// # Ok::<(), bitnet_runtime::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    /// The metadata key.
    pub key: String,
    /// The value: [`Value::I64`], [`Value::F64`], [`Value::Bool`] or [`Value::Str`].
    pub value: Value,
}

impl FromStr for Override {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        const FORM: &str = "KEY=TYPE:VALUE, such as tokenizer.ggml.pre=str:llama-bpe";
        let wrong = |expected: &str| Error::usage("override", quoted(text), expected);
        let (key, typed) = text.split_once('=').ok_or_else(|| wrong(FORM))?;
        let (ty, value) = typed.split_once(':').ok_or_else(|| wrong(FORM))?;
        if key.is_empty() {
            return Err(wrong(FORM));
        }
        let value = match ty {
            "int" => value.parse().ok().map(Value::I64).ok_or("an integer of 64 bits after int:"),
            "float" => {
                let number = value.parse().ok().filter(|x: &f64| x.is_finite());
                number.map(Value::F64).ok_or("a finite number after float:")
            }
            "bool" => value.parse().ok().map(Value::Bool).ok_or("true or false after bool:"),
            "str" => Ok(Value::Str(value.to_owned())),
            _ => Err("a type int, float, bool or str before the colon"),
        };
        Ok(Self { key: key.to_owned(), value: value.map_err(wrong)? })
    }
}

impl Override {
    /// Parses overrides separated by commas. One that holds a comma stands in double quotes, as in
    /// llama.cpp: `"general.name=str:a,b",llama.expert_count=int:0`.
    ///
    /// # Errors
    /// [`Error::Usage`] for one that is no override.
    pub fn list(text: &str) -> Result<Vec<Self>> {
        let mut fields = vec![String::new()];
        let mut quotes = false;
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            let field = fields.last_mut().expect("there is one from the start");
            match c {
                '"' if quotes && chars.peek() == Some(&'"') => {
                    chars.next();
                    field.push('"');
                }
                '"' if quotes || field.is_empty() => quotes = !quotes,
                ',' if !quotes => fields.push(String::new()),
                c => field.push(c),
            }
        }
        fields.iter().map(|field| field.parse()).collect()
    }
}

impl Gguf {
    /// Puts values in place of the file's: all that is read from now on is of them. A value is of the
    /// type that the file has, whatever its width; a key that the file lacks is added. The same
    /// override a second time changes nothing.
    ///
    /// # Errors
    /// [`Error::Usage`] for a value of another type than the file's, or a key that says how the file
    /// itself is laid out; [`Gguf::override_notes`] then tells which came before.
    pub fn apply(&mut self, overrides: &[Override]) -> Result<()> {
        for Override { key, value } in overrides {
            let wrong = |expected: &str| {
                let found = format!("{value} for key {}", quoted(key));
                Error::usage("override", found, expected)
            };
            if key == ALIGNMENT_KEY {
                return Err(wrong("a key that does not say where the tensors of the file are"));
            }
            let Some(&at) = self.header.kv_index.get(key) else {
                let note = format!("key {key}: {value}, which the file does not have");
                self.header.kv_index.insert(key.clone(), self.header.kv.len());
                self.header.kv.push((key.clone(), value.clone()));
                self.overridden.insert(key.clone(), note);
                continue;
            };
            let own = &mut self.header.kv[at].1;
            let Some(new) = of_type(value, own) else {
                return Err(wrong(&format!("a value of the file's type, which has {own}")));
            };
            if *own != new || !self.overridden.contains_key(key) {
                let note = format!("key {key}: {new} in place of {own}");
                self.overridden.insert(key.clone(), note);
                *own = new;
            }
        }
        Ok(())
    }

    /// True if the value of a key is not the file's.
    #[must_use]
    pub fn is_overridden(&self, key: &str) -> bool {
        self.overridden.contains_key(key)
    }

    /// One line for each value that is not the file's, in the order of their keys.
    pub fn override_notes(&self) -> impl Iterator<Item = &str> {
        self.overridden.values().map(String::as_str)
    }
}

/// Returns the value of an override in the file's type; `None` if it is of another kind or does not
/// fit.
fn of_type(value: &Value, own: &Value) -> Option<Value> {
    Some(match (own, value) {
        (Value::U8(_), &Value::I64(v)) => Value::U8(v.try_into().ok()?),
        (Value::I8(_), &Value::I64(v)) => Value::I8(v.try_into().ok()?),
        (Value::U16(_), &Value::I64(v)) => Value::U16(v.try_into().ok()?),
        (Value::I16(_), &Value::I64(v)) => Value::I16(v.try_into().ok()?),
        (Value::U32(_), &Value::I64(v)) => Value::U32(v.try_into().ok()?),
        (Value::I32(_), &Value::I64(v)) => Value::I32(v.try_into().ok()?),
        (Value::U64(_), &Value::I64(v)) => Value::U64(v.try_into().ok()?),
        (Value::I64(_), &Value::I64(v)) => Value::I64(v),
        (Value::F32(_), &Value::F64(v)) => Value::F32(v as f32),
        (Value::F64(_), &Value::F64(v)) => Value::F64(v),
        (Value::Bool(_), &Value::Bool(v)) => Value::Bool(v),
        (Value::Str(_) | Value::Bytes(_), Value::Str(v)) => Value::Str(v.clone()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::GgufWriter;
    use super::*;

    fn file() -> Gguf {
        let mut writer = GgufWriter::new();
        writer.kv("a.count", &Value::U32(3));
        writer.kv("a.base", &Value::F32(1e4));
        writer.kv("a.name", &Value::Str("x".into()));
        Gguf::from_bytes("m.gguf", writer.header()).unwrap()
    }

    #[test]
    fn overrides_are_read_as_llama_cpp_reads_them() {
        let parsed = |text: &str| text.parse::<Override>().map(|o| (o.key, o.value));
        let key = || "k".to_owned();
        assert_eq!(parsed("k=int:-7").unwrap(), (key(), Value::I64(-7)));
        assert_eq!(parsed("k=float:0.5").unwrap(), (key(), Value::F64(0.5)));
        assert_eq!(parsed("k=bool:false").unwrap(), (key(), Value::Bool(false)));
        assert_eq!(parsed("k=str:a=b:c").unwrap(), (key(), Value::Str("a=b:c".into())));
        assert_eq!(parsed("k=str:").unwrap(), (key(), Value::Str(String::new())));
        let bad = [
            ("k", "KEY=TYPE:VALUE"),
            ("k=1", "KEY=TYPE:VALUE"),
            ("=int:1", "KEY=TYPE:VALUE"),
            ("k=i32:1", "int, float, bool or str"),
            ("k=int:1.5", "an integer"),
            ("k=int:", "an integer"),
            ("k=float:nan", "a finite number"),
            ("k=bool:1", "true or false"),
        ];
        for (text, words) in bad {
            let error = parsed(text).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{text}");
            let message = error.to_string();
            assert!(message.contains(words) && message.contains(&quoted(text)), "{message}");
        }
        let list = |text| Override::list(text).unwrap().into_iter().map(|o| (o.key, o.value));
        let list = |text| list(text).collect::<Vec<_>>();
        let (a, b) = ("a".to_owned(), "b".to_owned());
        assert_eq!(
            list("a=int:1,b=bool:true"),
            [(a.clone(), Value::I64(1)), (b.clone(), Value::Bool(true))]
        );
        assert_eq!(
            list(r#""a=str:x,""y""",b=str:"z""#),
            [(a, Value::Str(r#"x,"y""#.into())), (b, Value::Str(r#""z""#.into()))]
        );
        assert!(Override::list("a=int:1,").is_err());
    }

    #[test]
    fn overrides_keep_the_types_of_the_file() {
        let mut gguf = file();
        let all =
            Override::list("a.count=int:5,a.new=int:1,a.base=float:0.5,a.name=str:y").unwrap();
        gguf.apply(&all).unwrap();
        assert_eq!(gguf.get("a.count"), Some(&Value::U32(5)));
        assert_eq!(gguf.get_u32("a.new").unwrap(), Some(1));
        assert_eq!(gguf.get("a.base"), Some(&Value::F32(0.5)));
        assert_eq!(gguf.metadata().len(), 4);
        assert!(gguf.is_overridden("a.new") && !gguf.is_overridden("a.other"));
        let notes: Vec<String> = gguf.override_notes().map(str::to_owned).collect();
        assert_eq!(notes[1], "key a.count: u32 5 in place of u32 3");
        assert_eq!(notes[3], "key a.new: i64 1, which the file does not have");
        gguf.apply(&all).unwrap();
        assert!(gguf.override_notes().eq(notes), "a second time nothing changes");

        for (text, words) in [
            ("a.count=str:5", ["string '5'", "u32 3"]),
            ("a.count=float:5", ["f64 5", "u32 3"]),
            ("a.count=int:-1", ["i64 -1", "u32 3"]),
            ("a.base=int:1", ["i64 1", "f32 10000"]),
            ("a.name=bool:true", ["bool true", "string 'x'"]),
            ("general.alignment=int:64", ["i64 64", "where the tensors"]),
        ] {
            let error = file().apply(&[text.parse().unwrap()]).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{text}");
            let message = error.to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }
}
