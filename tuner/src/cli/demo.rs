//! `bitnet-tune demo`: the whole way on a small model that is part of the program.

use std::fs::DirBuilder;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitnet_profiles::{Objective, Profile, registry};
use bitnet_runtime::Error;
use bitnet_runtime::gguf::Gguf;
use bitnet_runtime::kernels::Selection;
use bitnet_runtime::model::{LoadOptions, Model, Session, SessionOptions};
use bitnet_runtime::sampler::{Sampler, SamplerConfig, argmax};
use bitnet_runtime::tokenizer::Tokenizer;

use super::{Bar, answer, note, pool};
use crate::choose::Gain;
use crate::{ModelInfo, Options, Result, stats};

/// The model, inside the crate by a link so that it is packaged with it.
const MODEL: &[u8] =
    include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/models/bard-11m.i2_s.gguf"));
const NAME: &str = "the built-in demo model";
/// What its training text has thousands of.
const PROMPT: &str = "KING RICHARD:\n";
/// Tokens that are streamed.
const TOKENS: usize = 200;
/// Times that both models are loaded anew to be compared: where their pages come to lie can make
/// one a few per cent faster for as long as it lives.
const LOADS: usize = 15;
/// Rounds of default against tuned after each load, tokens of a round's prompt and tokens written
/// after it.
const ROUNDS: usize = 3;
const ROUND_PROMPT: usize = 128;
const ROUND_TOKENS: usize = 64;

/// Tune for a small built-in model, run it, and show before and after
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the profile goes; by default where bitnet-run finds it, in the user's configuration
    /// folder
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Threads; the physical cores by default
    #[arg(long, short, value_name = "N")]
    threads: Option<usize>,
    /// What to weigh: decode, prefill, or four prompt tokens for each token written (balanced)
    #[arg(long = "for", value_name = "OBJECTIVE", default_value = "balanced")]
    objective: Objective,
    /// How long to measure
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = super::duration)]
    budget: Duration,
}

/// Tunes, writes the profile, streams text with it, and compares it with the defaults.
///
/// # Errors
/// A flag does not fit this host, a file cannot be written, a worker panicked.
pub fn run(args: &Args) -> Result<()> {
    let gguf = || Gguf::from_bytes(NAME, MODEL);
    // The model is in no file that the profile could name.
    let info = ModelInfo { path: None, ..ModelInfo::from_gguf(&gguf()?)? };
    if let Some(path) = &args.output {
        super::tune::writable(path)?;
    }
    let pool = Arc::new(pool(args.threads)?);
    note(format_args!("tuning for {} on {} threads", info.name, pool.threads()));
    let options = Options {
        ceiling: Selection::default().ceiling(),
        objective: args.objective,
        effort: bitnet_profiles::Effort::Measure,
        budget: args.budget,
    };
    let tuned = {
        let bar = Bar::new();
        crate::tune(&info, &pool, options, &mut |progress| bar.show(progress))?
    };
    // What was written is what is run.
    let profile = match save(&tuned.profile, args.output.as_deref())? {
        Some(path) => {
            note(format_args!("wrote {}\n", path.display()));
            Profile::load(&path)?
        }
        None => {
            note(format_args!(
                "no profile was written: neither XDG_CONFIG_HOME nor HOME is an absolute path; \
                 name a file with -o\n"
            ));
            tuned.profile.clone()
        }
    };

    let load = |selection: &Selection| -> Result<Session> {
        let model = Model::from_gguf(gguf()?, &LoadOptions::new(&pool, selection))?;
        Ok(Session::new(Arc::new(model), Arc::clone(&pool), SessionOptions::default())?)
    };
    let tuned_kernels = Selection::new(None, None, Some(profile))?;
    let tokenizer = Tokenizer::from_gguf(&gguf()?)?;
    let ids = stream(&mut load(&tuned_kernels)?, &tokenizer)?;
    let speeds = race(|| Ok([load(&Selection::default())?, load(&tuned_kernels)?]), &ids)?;
    answer(|out| {
        writeln!(out, "\n\n{tuned}\nwhole model, measured before and after, {LOADS} times")?;
        for (name, speed) in [("decode", &speeds.decode), ("prefill", &speeds.prefill)] {
            let (before, after) = (speed.before, speed.after);
            let gain = speed.gain;
            writeln!(out, "  {name:<8} {before:.0} tokens/s before, {after:.0} after: {gain}")?;
        }
        Ok(())
    })
}

/// Writes the profile where it was asked for, or where `bitnet-run` looks for it.
fn save(profile: &Profile, path: Option<&Path>) -> Result<Option<PathBuf>> {
    let path = match path {
        Some(path) => path.to_path_buf(),
        None => {
            let Some(folder) = registry::user_folder(|name| std::env::var_os(name)) else {
                return Ok(None);
            };
            let mut builder = DirBuilder::new();
            builder.recursive(true);
            #[cfg(unix)]
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            builder.create(&folder).map_err(|e| Error::io(&folder, "create", e))?;
            folder.join(profile.user_file_name())
        }
    };
    profile.save(&path)?;
    Ok(Some(path))
}

/// Streams text to stdout and gives its tokens, the prompt's first.
fn stream(session: &mut Session, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let mut sampler = Sampler::new(SamplerConfig { seed: 1, ..SamplerConfig::default() })?;
    let mut out = io::stdout().lock();
    let mut show = |text: &str| -> Result<()> {
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        Ok(written.map_err(|e| Error::io(Path::new("stdout"), "write", e))?)
    };
    let mut ids = tokenizer.encode(PROMPT, tokenizer.add_bos(), false)?;
    ids.iter().for_each(|&id| sampler.accept(id));
    show(PROMPT)?;
    let mut decoder = tokenizer.stream();
    let mut next = sampler.sample(session.prefill(&ids)?);
    for _ in 0..TOKENS {
        if tokenizer.eos_ids().contains(&next) {
            break;
        }
        ids.push(next);
        sampler.accept(next);
        show(&decoder.push(next))?;
        next = sampler.sample(session.decode(next)?);
    }
    show(&decoder.finish())?;
    Ok(ids)
}

/// Tokens per second of one phase, and the tuned speed over the default's.
struct Speed {
    before: f64,
    after: f64,
    gain: Gain,
}

struct Speeds {
    decode: Speed,
    prefill: Speed,
}

/// Runs a session with the defaults and one with the tuned kernels in turns, a prompt and some
/// tokens each, and compares load by load.
fn race(load: impl Fn() -> Result<[Session; 2]>, ids: &[u32]) -> Result<Speeds> {
    let prompt: Vec<u32> = ids.iter().copied().cycle().take(ROUND_PROMPT).collect();
    // Of every load the median seconds: decode and prefill, before and after.
    let mut times: [[Vec<f64>; 2]; 2] = Default::default();
    for number in 0..LOADS {
        let mut sessions = load()?;
        let mut own: [[Vec<f64>; 2]; 2] = Default::default();
        // One round to warm up.
        for round in 0..=ROUNDS {
            let mut written = [Vec::new(), Vec::new()];
            // Nobody is always first.
            let first = (number + round) % 2;
            for turn in [first, 1 - first] {
                let (seconds, ids) = run_round(&mut sessions[turn], &prompt)?;
                written[turn] = ids;
                if round > 0 {
                    own[0][turn].push(seconds[0]);
                    own[1][turn].push(seconds[1]);
                }
            }
            if written[0] != written[1] {
                let message =
                    "the tuned kernels changed the text, which none may; please report it";
                return Err(Error::Runtime(message.into()).into());
            }
        }
        for (times, own) in times.iter_mut().flatten().zip(own.iter().flatten()) {
            times.push(stats::median(own));
        }
    }
    let speed = |[before, after]: &[Vec<f64>; 2], tokens: usize| {
        let ratios: Vec<f64> = after.iter().zip(before).map(|(a, b)| a / b).collect();
        Speed {
            before: tokens as f64 / stats::median(before),
            after: tokens as f64 / stats::median(after),
            gain: Gain::of(stats::median(&ratios), stats::half_width(&ratios, 0.005)),
        }
    };
    Ok(Speeds { decode: speed(&times[0], ROUND_TOKENS), prefill: speed(&times[1], ROUND_PROMPT) })
}

/// Seconds of decode and of prefill, and the tokens that were written.
fn run_round(session: &mut Session, prompt: &[u32]) -> Result<([f64; 2], Vec<u32>)> {
    session.truncate(0);
    let start = Instant::now();
    let mut next = argmax(session.prefill(prompt)?);
    let prefill = start.elapsed().as_secs_f64();
    let mut ids = vec![next];
    let start = Instant::now();
    for _ in 0..ROUND_TOKENS {
        next = argmax(session.decode(next)?);
        ids.push(next);
    }
    let decode = start.elapsed().as_secs_f64();
    Ok(([decode, prefill], ids))
}
