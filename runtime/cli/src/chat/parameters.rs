//! The settings that a user may change in a conversation, by the names that ollama gives them.

use bitnet_runtime::Sampling;
use bitnet_runtime::error::{Error, Result, quoted};
use serde_json::{Map, Value};

/// Sampling and length of answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters {
    /// Sampling.
    pub sampling: Sampling,
    /// Most tokens of an answer; `None`: until it ends.
    pub tokens: Option<usize>,
    /// Texts that end an answer.
    pub stop: Vec<String>,
}

impl Parameters {
    /// The names of all parameters.
    pub const NAMES: [&str; 11] = [
        "seed",
        "num_predict",
        "top_k",
        "top_p",
        "min_p",
        "temperature",
        "repeat_penalty",
        "repeat_last_n",
        "presence_penalty",
        "frequency_penalty",
        "stop",
    ];

    /// Sets a parameter; `stop` adds one.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name that is not known or a value out of range.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let mut new = self.clone();
        let number = || value.parse::<f32>().map_err(|_| not_a(name, value, "a number"));
        let whole = || value.parse::<i64>().map_err(|_| not_a(name, value, "a whole number"));
        let sampling = &mut new.sampling;
        match name {
            // A negative number is the seed of the same bits, which is written as one that is not.
            "seed" => sampling.seed = value.parse().or_else(|_| whole().map(|n| n as u64))?,
            "num_predict" => new.tokens = usize::try_from(whole()?).ok(),
            "top_k" => sampling.top_k = usize::try_from(whole()?).unwrap_or(0),
            "top_p" => sampling.top_p = number()?,
            "min_p" => sampling.min_p = number()?,
            "temperature" => sampling.temperature = number()?,
            "repeat_penalty" => sampling.repeat_penalty = number()?,
            "repeat_last_n" => {
                sampling.repeat_last_n = usize::try_from(whole()?).unwrap_or(usize::MAX);
            }
            "presence_penalty" => sampling.presence_penalty = number()?,
            "frequency_penalty" => sampling.frequency_penalty = number()?,
            "stop" => new.stop.push(value.trim_matches('"').to_owned()),
            "num_ctx" => {
                let expected =
                    "another parameter: the context is that of the start; begin again with -c";
                return Err(Error::usage("parameter", name, expected));
            }
            _ => {
                let expected = format!("one of {}", Self::NAMES.join(", "));
                return Err(Error::usage("parameter", quoted(name), expected));
            }
        }
        new.sampling.validate()?;
        *self = new;
        Ok(())
    }

    /// Returns the parameters with those of a saved conversation in place of their own: of stop strings
    /// only the saved ones.
    ///
    /// # Errors
    /// As [`Parameters::set`].
    pub fn with(&self, saved: &Map<String, Value>) -> Result<Self> {
        let mut new = Self { stop: Vec::new(), ..self.clone() };
        for (name, value) in saved {
            let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            for value in values {
                match (name.as_str(), value.as_str()) {
                    ("stop", Some(text)) => new.stop.push(text.to_owned()),
                    (_, Some(text)) => new.set(name, text)?,
                    (_, None) => new.set(name, &value.to_string())?,
                }
            }
        }
        Ok(new)
    }

    /// The parameters as a saved conversation holds them.
    pub fn to_saved(&self) -> Map<String, Value> {
        let mut saved = Map::new();
        for (name, value) in self.pairs() {
            if name == "stop" {
                let stops = saved.entry(name).or_insert_with(|| Vec::<String>::new().into());
                stops.as_array_mut().into_iter().for_each(|all| all.push(value.clone().into()));
            } else {
                let number = serde_json::from_str(&value).unwrap_or_else(|_| value.into());
                saved.insert(name.to_owned(), number);
            }
        }
        saved
    }

    /// Names and values, in the order of [`Parameters::NAMES`]; `stop` once for each text.
    pub fn pairs(&self) -> Vec<(&'static str, String)> {
        let sampling = &self.sampling;
        let count = |n: usize| if n == usize::MAX { "-1".into() } else { n.to_string() };
        let single = [
            ("seed", sampling.seed.to_string()),
            ("num_predict", self.tokens.map_or("-1".into(), |n| n.to_string())),
            ("top_k", sampling.top_k.to_string()),
            ("top_p", sampling.top_p.to_string()),
            ("min_p", sampling.min_p.to_string()),
            ("temperature", sampling.temperature.to_string()),
            ("repeat_penalty", sampling.repeat_penalty.to_string()),
            ("repeat_last_n", count(sampling.repeat_last_n)),
            ("presence_penalty", sampling.presence_penalty.to_string()),
            ("frequency_penalty", sampling.frequency_penalty.to_string()),
        ];
        single.into_iter().chain(self.stop.iter().map(|stop| ("stop", stop.clone()))).collect()
    }
}

fn not_a(name: &str, value: &str, expected: &str) -> Error {
    Error::usage(name, quoted(value), expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_set() {
        let mut changed = Parameters { sampling: Sampling::default(), tokens: None, stop: vec![] };
        let first = changed.clone();
        for (name, value) in [
            ("seed", "7"),
            ("num_predict", "20"),
            ("top_k", "0"),
            ("top_p", "0.5"),
            ("min_p", "0.25"),
            ("temperature", "1.5"),
            ("repeat_penalty", "1.25"),
            ("repeat_last_n", "-1"),
            ("presence_penalty", "0.5"),
            ("frequency_penalty", "-0.5"),
            ("stop", "\"END\""),
        ] {
            changed.set(name, value).unwrap();
        }
        let mut copied = first.clone();
        let pairs = changed.pairs();
        assert_eq!(pairs.iter().map(|pair| pair.0).collect::<Vec<_>>(), Parameters::NAMES);
        pairs.iter().for_each(|(name, value)| copied.set(name, value).unwrap());
        assert_eq!(copied, changed);
        assert_eq!((&copied.stop, copied.tokens), (&vec!["END".to_owned()], Some(20)));
        assert_eq!(first.with(&copied.to_saved()).unwrap(), copied);
        for (given, kept) in [("-1", u64::MAX), ("18446744073709551599", u64::MAX - 16)] {
            changed.set("seed", given).unwrap();
            assert_eq!(changed.sampling.seed, kept);
            assert_eq!(first.with(&changed.to_saved()).unwrap(), changed);
        }
        let unknown = [("mirostat".to_owned(), 1.into())].into_iter().collect();
        assert!(first.with(&unknown).is_err());
        for (name, value, words) in [
            ("top_p", "2", "top_p: found 2"),
            ("top_p", "x", "top_p: found 'x', expected a number"),
            ("top_k", "1.5", "a whole number"),
            ("num_ctx", "9", "-c"),
            ("mirostat", "1", "num_predict"),
        ] {
            let mut same = first.clone();
            let error = same.set(name, value).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
            assert_eq!(same, first);
        }
    }
}
