//! The flags of a conversation, and a conversation of one turn.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use bitnet_runtime::error::{Error, Result};
use bitnet_runtime::{FinishReason, Message, Turns};
use serde::Serialize;

use super::parameters::Parameters;
use super::repl;
use super::screen::{Screen, is_colored};
use super::talk::{Answer, Talk};
use super::template::{CHAT, OnOff, TemplateArgs, on_off_auto};
use crate::interrupt::Interrupt;
use crate::load;
use crate::output::{answer, note};
use crate::prompt::{self, LastLineEnd};
use crate::run::{self, Likely, Timings};

/// Hold a conversation with a model
///
/// In a terminal until Ctrl+D or /bye; with a pipe on stdin, or --single-turn, one answer.
#[derive(Debug, clap::Args)]
#[command(args_override_self = true)]
pub struct Args {
    #[command(flatten)]
    pub(crate) run: run::Args,
    #[command(flatten)]
    pub(crate) chat: ChatArgs,
}

/// Flags of a conversation.
#[derive(Debug, clap::Args)]
pub struct ChatArgs {
    /// Hold a conversation, as bitnet.cpp's scripts ask for it: --prompt is the system prompt. The
    /// command chat does the same, but there --prompt is the first message
    #[arg(long, alias = "cnv", help_heading = CHAT)]
    pub conversation: bool,
    /// The system prompt
    #[arg(
        long,
        alias = "sys",
        value_name = "TEXT",
        allow_hyphen_values = true,
        overrides_with = "system_prompt_file",
        help_heading = CHAT
    )]
    system_prompt: Option<String>,
    /// A file with the system prompt
    #[arg(
        long,
        alias = "sysf",
        value_name = "FILE",
        overrides_with = "system_prompt",
        help_heading = CHAT
    )]
    system_prompt_file: Option<PathBuf>,
    /// End after the first answer
    #[arg(long, alias = "st", help_heading = CHAT)]
    single_turn: bool,
    /// A line goes on with the next one unless a \ ends it
    #[arg(long, alias = "mli", help_heading = CHAT)]
    multiline_input: bool,
    #[command(flatten)]
    template: TemplateArgs,
    /// deepseek: tell the reasoning between think tags from the answer; none: leave it in the answer
    #[arg(long, value_name = "deepseek|none", default_value = "deepseek", help_heading = CHAT)]
    reasoning_format: ReasoningFormat,
    /// Dim the reasoning; auto: in a terminal, unless NO_COLOR is set
    #[arg(
        long,
        alias = "co",
        value_name = "on|off|auto",
        default_value = "auto",
        num_args = 0..=1,
        default_missing_value = "on",
        value_parser = on_off_auto,
        help_heading = CHAT
    )]
    color: OnOff,
    /// Times after each answer, as ollama writes them
    #[arg(short, long, help_heading = CHAT)]
    verbose: bool,
    /// Times after each answer, in one line
    #[arg(long, overrides_with = "no_show_timings", help_heading = CHAT)]
    show_timings: bool,
    /// No times after an answer
    #[arg(long, overrides_with = "show_timings", help_heading = CHAT)]
    no_show_timings: bool,
    /// Do not keep what is typed for the next time
    #[arg(long, help_heading = CHAT)]
    no_history: bool,
}

/// `--reasoning-format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ReasoningFormat {
    #[value(alias = "auto")]
    Deepseek,
    None,
}

impl ChatArgs {
    /// The flags that were given although there is no conversation.
    ///
    /// # Errors
    /// [`Error::Usage`] for a system prompt, without which the text would be another one.
    pub fn unused(&self) -> Result<Vec<&'static str>> {
        if self.system_prompt.is_some() || self.system_prompt_file.is_some() {
            let expected =
                "-cnv or the command chat, or the text in --prompt as the model's template has it";
            return Err(Error::usage("--system-prompt", "no conversation", expected));
        }
        let given = [
            ("--single-turn", self.single_turn),
            ("--multiline-input", self.multiline_input),
            ("--reasoning-format", self.reasoning_format != ReasoningFormat::Deepseek),
            ("--color", self.color != OnOff(None)),
            ("--verbose", self.verbose),
            ("--show-timings", self.show_timings),
            ("--no-show-timings", self.no_show_timings),
            ("--no-history", self.no_history),
        ];
        let given = given.into_iter().chain(self.template.given());
        Ok(given.filter(|(_, given)| *given).map(|(name, _)| name).collect())
    }

    /// The system prompt of its flags.
    fn system(&self) -> Result<Option<String>> {
        match (&self.system_prompt, &self.system_prompt_file) {
            (Some(text), _) => Ok(Some(text.clone())),
            (None, Some(path)) => prompt::from_path(path, LastLineEnd::Dropped).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// The way answers are written.
#[derive(Clone, Debug)]
pub struct Style {
    pub color: bool,
    pub word_wrap: bool,
    /// Times after an answer: as ollama, or in one line.
    pub verbose: bool,
    pub show_timings: bool,
    pub keeps_history: bool,
    pub multi_line: bool,
    pub load_time: Duration,
}

impl Style {
    /// Writes the answer to the last message as it comes.
    ///
    /// # Errors
    /// Those of [`Talk::answer`].
    pub fn answer(&self, talk: &mut Talk<'_>) -> Result<Answer> {
        let width = terminal_width().filter(|_| self.word_wrap);
        let mut screen = Screen::new(self.color, width);
        let answer = talk.answer(&mut |part, text| screen.push(part, text))?;
        screen.finish()?;
        // While weights are packed the engine has no answer to anything.
        if !talk.is_packing() {
            load::tell(talk.turns().engine());
        }
        tell_forgotten(talk, &answer);
        self.times(&answer);
        Ok(answer)
    }

    fn times(&self, answer: &Answer) {
        let stats = &answer.stats;
        let rate = |n: usize, time: Duration| n as f64 / time.as_secs_f64().max(1e-9);
        let prompt_n = answer.prompt.len() - answer.cached;
        let (prompt, written) =
            (rate(prompt_n, stats.prompt_time), rate(answer.ids.len(), stats.generation_time));
        if self.verbose {
            let total = stats.prompt_time + stats.generation_time;
            for (name, value) in [
                ("total duration", format!("{total:.3?}")),
                ("load duration", format!("{:.3?}", self.load_time)),
                ("prompt eval count", format!("{prompt_n} token(s)")),
                ("prompt eval duration", format!("{:.3?}", stats.prompt_time)),
                ("prompt eval rate", format!("{prompt:.2} tokens/s")),
                ("eval count", format!("{} token(s)", answer.ids.len())),
                ("eval duration", format!("{:.3?}", stats.generation_time)),
                ("eval rate", format!("{written:.2} tokens/s")),
            ] {
                note(format_args!("{:22}{value}", format!("{name}:")));
            }
        }
        if self.show_timings {
            note(format_args!("[ Prompt: {prompt:.1} t/s | Generation: {written:.1} t/s ]"));
        }
    }
}

/// Columns of the terminal that stdout is.
fn terminal_width() -> Option<usize> {
    #[cfg(unix)]
    {
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
        Some(usize::from(size.ws_col)).filter(|&width| width > 0)
    }
    #[cfg(not(unix))]
    None
}

/// Tells of messages that the context did not hold.
fn tell_forgotten(talk: &Talk<'_>, answer: &Answer) {
    if answer.forgotten > 0 {
        let context = talk.turns().session().context();
        let most = talk.turns().engine().config().context;
        let advice = match most.min(2 * context) {
            larger if larger > context => format!("-c {larger} would keep more"),
            _ => "the model's context is not larger".to_owned(),
        };
        note(format_args!("forgot the {} oldest messages ({advice})", answer.forgotten));
    }
}

/// Holds a conversation; `is_cnv` if it was asked for by the flag, where --prompt is the system prompt.
/// Returns the program's exit code.
///
/// # Errors
/// Those of loading the model; [`Error::Model`] for one without a template; [`Error::Usage`] for flags that
/// contradict each other, or a message that does not fit.
pub fn run(args: &run::Args, chat_args: &ChatArgs, is_cnv: bool) -> Result<ExitCode> {
    let start = Instant::now();
    let (path, options) = args.options()?;
    let choice = chat_args.template.choice()?;
    let variables = chat_args.template.variables()?;
    let given = args.prompt.given()?;
    let (system, mut message) = match (chat_args.system()?, given, is_cnv) {
        (Some(_), Some(_), true) => {
            let expected = "one of both: with -cnv --prompt is the system prompt";
            return Err(Error::usage("--system-prompt", "it beside --prompt", expected));
        }
        (None, Some(text), true) => {
            note(format_args!("with -cnv the prompt is the system prompt"));
            (Some(text), None)
        }
        (system, message, _) => (system, message),
    };
    let is_piped = !io::stdin().is_terminal();
    let is_single = chat_args.single_turn || is_piped || args.json;

    let opened = args.open(path, options)?;
    let engine = &*opened.engine;
    let chat = engine.chat(&choice)?;
    let session = args.session.options(args.context(engine.config()))?;
    let mut turns = Turns::new(engine, session)?;
    if let Some(path) = &args.prompt_cache
        && path.try_exists().map_err(|e| Error::io(path, "open", e))?
    {
        let held = turns.restore(path)?;
        note(format_args!("prompt cache: {held} tokens"));
    }
    load::tell(engine);
    chat.notes()
        .iter()
        .for_each(|line| note(format_args!("{}", crate::output::with_flags(&line.text))));
    let load_time = start.elapsed();
    opened.tell(turns.session().context(), load_time);
    let limits = args.limits(engine)?;
    let parameters = Parameters {
        sampling: opened.sampling.clone(),
        tokens: args.most_tokens(None),
        stop: limits.stop.clone(),
    };
    let mut talk = Talk::new(chat, turns, parameters, limits);
    talk.system = system;
    talk.variables = variables;
    talk.splits_reasoning = chat_args.reasoning_format == ReasoningFormat::Deepseek;
    let style = Style {
        color: is_colored(chat_args.color.0),
        word_wrap: false,
        verbose: chat_args.verbose,
        show_timings: chat_args.show_timings,
        keeps_history: !chat_args.no_history,
        multi_line: chat_args.multiline_input,
        load_time,
    };

    if !is_single {
        talk.interrupt_by(Interrupt::watch_answers());
        // A user types longer than that takes. An error is found again where the weights are needed, and a
        // line of progress would get between the words.
        opened.silenced.store(true, Ordering::Relaxed);
        let engine = Arc::clone(&opened.engine);
        talk.packing = Some(thread::spawn(move || drop(engine.model())));
        repl::run(&mut talk, style, message)?;
        keep_cache(args, &talk)?;
        if !talk.is_packing() {
            opened.tell_of_packing();
        }
        return Ok(ExitCode::SUCCESS);
    }
    if is_piped {
        let piped = prompt::from_path(Path::new("-"), LastLineEnd::Dropped)?;
        message = match message {
            Some(text) if piped.is_empty() => Some(text),
            Some(text) => Some(format!("{text}\n{piped}")),
            None => Some(piped).filter(|text| !text.is_empty()),
        };
    }
    let Some(message) = message else {
        if is_piped && !chat_args.single_turn && !args.json {
            note(format_args!("stdin holds no message"));
            return Ok(ExitCode::SUCCESS);
        }
        let expected = "one through a pipe, or with bitnet-run chat --prompt TEXT";
        return Err(Error::usage("message", "none", expected));
    };
    talk.interrupt_by(Interrupt::watch());
    // Amid the answer a line of progress would get between its words.
    opened.silenced.store(io::stdout().is_terminal(), Ordering::Relaxed);
    talk.say(&message);
    if args.json {
        let messages = talk.all();
        let reply = talk.answer(&mut |_, _| Ok(()))?;
        load::tell(engine);
        tell_forgotten(&talk, &reply);
        let report = Report {
            messages: &messages[..],
            content: &reply.content,
            reasoning_content: Some(reply.reasoning.as_str()).filter(|text| !text.is_empty()),
            finish_reason: reply.finish.name(),
            stop: reply.stop.as_deref(),
            logprobs: args.logprobs.map(|_| {
                let tokens = reply.logprobs.iter();
                tokens.map(|token| Likely::token(talk.chat.tokenizer(), token)).collect()
            }),
            prompt_ids: &reply.prompt,
            ids: &reply.ids,
            seed: talk.parameters.sampling.seed,
            template: talk.chat.template_name(),
            timings: Timings::new(
                (load_time, reply.pack_time),
                (reply.prompt.len(), args.prompt_cache.is_some().then_some(reply.cached)),
                &reply.stats,
                reply.ids.len(),
                args.draft.lookup,
            ),
        };
        let json = serde_json::to_string(&report)
            .map_err(|e| Error::Runtime(format!("cannot write the report: {e}")))?;
        answer(|out| writeln!(out, "{json}"))?;
    } else {
        let reply = style.answer(&mut talk)?;
        if reply.finish == FinishReason::Context {
            note(format_args!(
                "the context is full, which cut the answer; -c asks for a larger one"
            ));
        }
    }
    keep_cache(args, &talk)?;
    opened.tell_of_packing();
    Ok(talk.interrupt().exit_code())
}

/// Writes what was computed of a conversation to the file of --prompt-cache.
fn keep_cache(args: &run::Args, talk: &Talk<'_>) -> Result<()> {
    match &args.prompt_cache {
        Some(path) if !args.prompt_cache_ro && talk.turns().session().position() > 0 => {
            talk.turns().save(path)
        }
        _ => Ok(()),
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    messages: &'a [Message],
    content: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    finish_reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<Likely>>,
    prompt_ids: &'a [u32],
    ids: &'a [u32],
    seed: u64,
    template: &'a str,
    timings: Timings,
}
