//! The flags that choose the next token.

use std::hash::{BuildHasher, RandomState};

use bitnet_runtime::engine::Suggested;
use bitnet_runtime::engine::sampler::Sampling;

const SAMPLING: &str = "Sampling";

/// Settings of the sampler.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct SamplingArgs {
    /// 0 or less: always the most likely token [default: the file's, else 0.8]
    #[arg(
        long,
        alias = "temperature",
        value_name = "T",
        allow_negative_numbers = true,
        value_parser = temperature,
        help_heading = SAMPLING
    )]
    temp: Option<f32>,
    /// Only the K most likely tokens; 0 or less: all [default: the file's, else 40]
    #[arg(
        long,
        value_name = "K",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(i64).range(..=i64::from(i32::MAX)),
        help_heading = SAMPLING
    )]
    top_k: Option<i64>,
    /// Only the most likely tokens that together reach this probability; 1 or more: all [default: the
    /// file's, else 0.95]
    #[arg(
        long,
        value_name = "P",
        allow_negative_numbers = true,
        value_parser = share,
        help_heading = SAMPLING
    )]
    top_p: Option<f32>,
    /// Only tokens this likely relative to the most likely one; 0 or less: all [default: the file's,
    /// else 0.05]
    #[arg(
        long,
        value_name = "P",
        allow_negative_numbers = true,
        value_parser = share,
        help_heading = SAMPLING
    )]
    min_p: Option<f32>,
    /// Makes tokens written lately less likely; 1: off [default: the file's, else 1]
    #[arg(
        long,
        value_name = "X",
        allow_negative_numbers = true,
        value_parser = penalty,
        help_heading = SAMPLING
    )]
    repeat_penalty: Option<f32>,
    /// How many tokens are lately; -1: all of the context [default: the file's, else 64]
    #[arg(
        long,
        value_name = "N",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(i64).range(-1..=i64::from(i32::MAX)),
        help_heading = SAMPLING
    )]
    repeat_last_n: Option<i64>,
    /// The same seed, of which 32 bits count, writes the same text; -1: another each time
    #[arg(
        short,
        long,
        value_name = "SEED",
        default_value_t = -1,
        allow_negative_numbers = true,
        help_heading = SAMPLING
    )]
    seed: i64,
}

/// A temperature for clap: what is below 0 is 0.
fn temperature(text: &str) -> std::result::Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value <= 100.0 => Ok(value.max(0.0)),
        _ => Err("it is no number up to 100".into()),
    }
}

/// A probability for clap: what is below 0 or above 1 does the same as these.
fn share(text: &str) -> std::result::Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if !value.is_nan() => Ok(value.clamp(0.0, 1.0)),
        _ => Err("it is no number; a share is 0 to 1".into()),
    }
}

/// A penalty for clap.
fn penalty(text: &str) -> std::result::Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if (0.01..=100.0).contains(&value) => Ok(value),
        _ => Err("it is no number in 0.01..=100".into()),
    }
}

impl SamplingArgs {
    /// 32 bits of the seed given; all of them set, as -1 has them, are llama.cpp's word for any other.
    fn seed(&self) -> u32 {
        match self.seed as u32 {
            u32::MAX => (RandomState::new().hash_one(0) % u64::from(u32::MAX)) as u32,
            seed => seed,
        }
    }

    /// The seed that was given, of 32 bits; `None` for any other one.
    pub fn given_seed(&self) -> Option<u64> {
        let seed = self.seed as u32;
        (seed != u32::MAX).then(|| seed.into())
    }

    /// What the file suggests of the settings that no flag gives.
    pub fn unsaid(&self, suggested: Suggested) -> Suggested {
        Suggested {
            temperature: suggested.temperature.filter(|_| self.temp.is_none()),
            top_k: suggested.top_k.filter(|_| self.top_k.is_none()),
            top_p: suggested.top_p.filter(|_| self.top_p.is_none()),
            min_p: suggested.min_p.filter(|_| self.min_p.is_none()),
            repeat_penalty: suggested.repeat_penalty.filter(|_| self.repeat_penalty.is_none()),
            repeat_last_n: suggested.repeat_last_n.filter(|_| self.repeat_last_n.is_none()),
            ..suggested
        }
    }

    /// The settings of the flags; where there is none, those of the file, else the defaults.
    pub fn over(&self, suggested: &Suggested) -> Sampling {
        let defaults = suggested.over(Sampling::default());
        let count = |flag: Option<i64>, all: usize| flag.map(|n| usize::try_from(n).unwrap_or(all));
        Sampling {
            temperature: self.temp.unwrap_or(defaults.temperature),
            top_k: count(self.top_k, 0).unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            repeat_penalty: self.repeat_penalty.unwrap_or(defaults.repeat_penalty),
            repeat_last_n: count(self.repeat_last_n, usize::MAX).unwrap_or(defaults.repeat_last_n),
            seed: self.seed().into(),
            ..defaults
        }
    }
}
