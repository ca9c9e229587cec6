//! `bitnet-tune demo`: tunes for a small model that is part of the program, and runs it.

use std::fs::DirBuilder;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bitnet_profiles::{Effort, Profile, destination, paths, patient};
use bitnet_runtime::Error;
use bitnet_runtime::cpu::kernels::Selection;
use bitnet_runtime::cpu::model::SessionOptions;
use bitnet_runtime::engine::Engine;
use bitnet_runtime::engine::sampler::Sampling;
use bitnet_runtime::engine::sequence::{Sequence, SequenceOptions};

use super::output::{self, Kind};
use super::{Bar, answer, note};
use crate::timing::comparison;
use crate::{ModelInfo, Result};

/// A line that opens many passages of its training text.
const PROMPT: &str = "KING RICHARD:\n";
/// Tokens to write.
const TOKENS: usize = 200;
/// Tune for a small built-in model, run it, and show before and after
#[derive(Debug, clap::Args)]
pub struct Args {
    /// File to write the profile to; by default where bitnet-run finds it, in the user's
    /// configuration folder
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    common: super::Common,
    /// Time for all of it
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = super::duration)]
    budget: Duration,
}

/// Tunes, writes the profile, streams text with it, and compares it with the defaults.
///
/// # Errors
/// A flag does not fit this host, a file cannot be written, a worker panicked.
pub fn run(args: &Args) -> Result<()> {
    // The model is in no file that the profile could name.
    let info = ModelInfo { path: None, ..ModelInfo::from_gguf(&comparison::open(None)?)? };
    if let Some(path) = &args.output {
        output::check(&[(Kind::Profile, path)])?;
    }
    let options =
        args.common.options(Selection::default().ceiling(), Effort::Measure, args.budget)?;
    note(format_args!("tuning for {} on {} threads", info.name, options.threads));
    let tuned = {
        let bar = Bar::new();
        crate::tune(&info, &options, &mut |notice| bar.show(notice))?
    };
    // The profile that runs is the one that was written.
    let profile = match save(&tuned.profile, args.output.as_deref()) {
        Ok(path) => {
            note(format_args!("wrote {}\n", path.display()));
            // What went into a pipe is not there to be read.
            if destination::holds_contents(&path) {
                Profile::load(&path)?
            } else {
                tuned.profile.clone()
            }
        }
        Err(why) if args.output.is_none() => {
            note(format_args!("no profile was written: {why}; name a file with -o\n"));
            tuned.profile.clone()
        }
        Err(why) => return Err(why),
    };

    let engine = comparison::engine(None, comparison::tuned(profile))?;
    stream(&engine, &options.stop)?;
    answer(|out| writeln!(out, "\n\n{tuned}next       bitnet-tune --model MODEL.gguf -o host.toml"))
}

/// Writes the profile to `path`, or to where `bitnet-run` looks for it, and returns where.
fn save(profile: &Profile, path: Option<&Path>) -> Result<PathBuf> {
    let path = match path {
        Some(path) => path.to_path_buf(),
        None => {
            let folder = paths::user_folder(|name| std::env::var_os(name)).ok_or_else(|| {
                let why = "neither XDG_CONFIG_HOME nor HOME is an absolute path";
                Error::Runtime(why.into())
            })?;
            let mut builder = DirBuilder::new();
            builder.recursive(true);
            #[cfg(unix)]
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            builder.create(&folder).map_err(|e| Error::io(&folder, "create", e))?;
            folder.join(profile.user_file_name())
        }
    };
    profile.save(&path)?;
    Ok(path)
}

/// Streams text to stdout.
fn stream(engine: &Engine, stop: &AtomicBool) -> Result<()> {
    let mut out = patient::stdout();
    let mut show = |text: &str| -> Result<()> {
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        Ok(written.map_err(|e| Error::io(Path::new("stdout"), "write", e))?)
    };
    let tokenizer = engine.tokenizer()?;
    let prompt = tokenizer.prompt(PROMPT)?;
    let sampling = Sampling { seed: 1, ..Sampling::default() };
    let options = SequenceOptions { tokens: Some(TOKENS), ..SequenceOptions::default() };
    let mut sequence = Sequence::new(Arc::clone(tokenizer), &prompt, sampling, options)?;
    let mut session = engine.session_for(prompt.len(), SessionOptions::default())?;
    show(PROMPT)?;
    while engine.step(&mut session, &mut sequence)? {
        if stop.load(Ordering::Relaxed) {
            return Err(crate::Error::stopped());
        }
        show(&sequence.take_text())?;
    }
    show(&sequence.take_text())
}
