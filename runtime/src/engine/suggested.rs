//! Sampling as the maker of a model suggests it in the file.

use super::sampler::Sampling;
use crate::error::Result;
use crate::file::gguf::{Gguf, Value};

/// The sampling that a file suggests, by llama.cpp's keys `general.sampling.*`: for what the user says
/// nothing about. Fields are those of [`Sampling`]; `None` where the file says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(missing_docs, reason = "each field is that of Sampling of its name")]
pub struct Suggested {
    pub temperature: Option<f32>,
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repeat_penalty: Option<f32>,
    pub repeat_last_n: Option<usize>,
    /// Keys that suggest samplers which are not offered.
    pub left_out: Vec<&'static str>,
}

impl Suggested {
    /// Reads the keys of a file.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) for a value out of range.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let number = |name: &str, min: f32, max: f32| {
            let key = format!("general.sampling.{name}");
            match gguf.get_f32(&key)? {
                Some(x) if !(min..=max).contains(&x) => {
                    Err(gguf.key_error(&key, x, format_args!("{min} to {max}")))
                }
                x => Ok(x),
            }
        };
        // Below 0 is llama.cpp's word for all.
        let count = |name: &str, all: usize| {
            let key = format!("general.sampling.{name}");
            let Some(value) = gguf.get(&key) else { return Ok(None) };
            let whole = value.as_i128().or(value.as_u32().map(i128::from));
            let whole = whole.ok_or_else(|| gguf.key_error(&key, value, "an integer"))?;
            Ok(Some(if whole < 0 { all } else { usize::try_from(whole).unwrap_or(usize::MAX) }))
        };
        let changes = |key: &&str| {
            let is_off = |value: Value| value.as_f32() == Some(0.0) || value.as_str() == Some("");
            gguf.get(key).is_some_and(|value| !value.items().all(is_off))
        };
        let others = [
            "general.sampling.sequence",
            "general.sampling.xtc_probability",
            "general.sampling.mirostat",
        ];
        Ok(Self {
            temperature: number("temp", f32::MIN, 100.0)?.map(|t| t.max(0.0)),
            top_k: count("top_k", 0)?,
            top_p: number("top_p", 0.0, 1.0)?,
            min_p: number("min_p", 0.0, 1.0)?,
            repeat_penalty: number("penalty_repeat", 0.01, 100.0)?,
            repeat_last_n: count("penalty_last_n", usize::MAX)?,
            left_out: others.into_iter().filter(changes).collect(),
        })
    }

    /// Returns `sampling` with what the file suggests in place of its own.
    #[must_use]
    pub fn over(&self, sampling: Sampling) -> Sampling {
        Sampling {
            temperature: self.temperature.unwrap_or(sampling.temperature),
            top_k: self.top_k.unwrap_or(sampling.top_k),
            top_p: self.top_p.unwrap_or(sampling.top_p),
            min_p: self.min_p.unwrap_or(sampling.min_p),
            repeat_penalty: self.repeat_penalty.unwrap_or(sampling.repeat_penalty),
            repeat_last_n: self.repeat_last_n.unwrap_or(sampling.repeat_last_n),
            ..sampling
        }
    }

    /// One line that tells what is taken from the file and what is left out; `None` if it suggests
    /// nothing.
    #[must_use]
    pub fn line(&self) -> Option<String> {
        fn shown<T: ToString>(name: &str, value: Option<T>) -> Option<String> {
            Some(format!("{name} {}", value?.to_string()))
        }
        let all = self.repeat_last_n.filter(|&n| n == usize::MAX).map(|_| "all".to_owned());
        let taken: Vec<String> = [
            shown("temperature", self.temperature),
            shown("top_k", self.top_k),
            shown("top_p", self.top_p),
            shown("min_p", self.min_p),
            shown("repeat_penalty", self.repeat_penalty),
            shown("repeat_last_n", all.or(self.repeat_last_n.map(|n| n.to_string()))),
        ]
        .into_iter()
        .flatten()
        .collect();
        let taken =
            (!taken.is_empty()).then(|| format!("{}, as the file suggests", taken.join(", ")));
        let left_out = (!self.left_out.is_empty())
            .then(|| format!("not offered, and left out: {}", self.left_out.join(", ")));
        let parts: Vec<String> = taken.into_iter().chain(left_out).collect();
        (!parts.is_empty()).then(|| format!("sampling: {}", parts.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::gguf::GgufWriter;

    fn read(values: &[(&str, Value)]) -> Result<Suggested> {
        let mut writer = GgufWriter::new();
        for (name, value) in values {
            writer.kv(&format!("general.sampling.{name}"), value);
        }
        Suggested::from_gguf(&Gguf::from_bytes("m.gguf", writer.header())?)
    }

    #[test]
    fn w3_sampling_of_the_file_is_taken() {
        let nothing = read(&[]).unwrap();
        assert_eq!(
            (nothing.line(), nothing.over(Sampling::default())),
            (None, Sampling::default())
        );
        let suggested = read(&[
            ("temp", Value::F32(0.5)),
            ("top_k", Value::I32(20)),
            ("top_p", Value::F64(0.75)),
            ("min_p", Value::U32(0)),
            ("penalty_repeat", Value::F32(1.5)),
            ("penalty_last_n", Value::I32(-1)),
            ("mirostat", Value::I32(2)),
            ("mirostat_tau", Value::F32(5.0)),
            ("xtc_probability", Value::F32(0.0)),
        ])
        .unwrap();
        let expected = Sampling {
            temperature: 0.5,
            top_k: 20,
            top_p: 0.75,
            min_p: 0.0,
            repeat_penalty: 1.5,
            repeat_last_n: usize::MAX,
            seed: 3,
            ..Sampling::default()
        };
        assert_eq!(suggested.over(Sampling { seed: 3, ..Sampling::default() }), expected);
        let line = suggested.line().unwrap();
        for words in [
            "temperature 0.5, top_k 20",
            "repeat_last_n all",
            "left out: general.sampling.mirostat",
        ] {
            assert!(line.contains(words), "{line}");
        }
        let greedy = read(&[("temp", Value::F32(-1.0)), ("top_k", Value::I32(-1))]).unwrap();
        assert_eq!((greedy.temperature, greedy.top_k), (Some(0.0), Some(0)));
        for (name, value) in [
            ("temp", Value::F32(f32::NAN)),
            ("top_k", Value::F32(1.5)),
            ("top_p", Value::F32(1.5)),
            ("penalty_repeat", Value::Str("x".into())),
        ] {
            let error = read(&[(name, value)]).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
