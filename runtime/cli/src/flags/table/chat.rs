//! Chat, what the screen shows, and the log.

use super::*;

const CHAT: &str = "a conversation is asked for with -cnv, or by the command chat";
const AROUND: &str = "the template says what stands around a message";
const JINJA: &str = "templates are always Jinja here";
const CALLS: &str = "calls of tools are not read out of an answer";
const EFFORT: &str = "--chat-template-kwargs sets what a template knows of it";
const BUDGET: &str = "reasoning is as long as the model makes it";
const SCREEN: &str = "the text is written as it is";
const TIMES: &str = "the summary is always written";
const NOTES: &str = "notes are few and go to stderr";

pub const FLAGS: &[Flag] = &[
    done(RUN, &["-cnv", "--conversation"], SWITCH),
    implied(RUN, &["-no-cnv", "--no-conversation"], SWITCH),
    done(RUN, &["-sys", "--system-prompt"], TEXT),
    done(RUN, &["-sysf", "--system-prompt-file"], FILE),
    done(RUN, &["-st", "--single-turn"], SWITCH),
    ignored(
        RUN,
        &["-i", "--interactive", "-if", "--interactive-first", "-ins", "--instruct"],
        SWITCH,
        CHAT,
    ),
    done(RUN, &["-mli", "--multiline-input"], SWITCH),
    ignored(RUN, &["--in-prefix-bos"], SWITCH, AROUND),
    ignored(RUN, &["--in-prefix", "--in-suffix"], TEXT, AROUND),
    means(
        RUN,
        &["-cml", "--chatml"],
        SWITCH,
        &[("", &["--conversation", "--chat-template", "chatml"])],
    ),
    implied(RUN, &["--jinja"], SWITCH),
    ignored(RUN, &["--no-jinja"], SWITCH, JINJA),
    done(RUNS, &["--chat-template"], Value::One("NAME|JINJA")).variable("LLAMA_ARG_CHAT_TEMPLATE"),
    done(RUNS, &["--chat-template-kwargs"], Value::One("JSON"))
        .variable("LLAMA_ARG_CHAT_TEMPLATE_KWARGS"),
    done(RUNS, &["--chat-template-file"], FILE).variable("LLAMA_ARG_CHAT_TEMPLATE_FILE"),
    ignored(RUN, &["--skip-chat-parsing", "--no-skip-chat-parsing"], SWITCH, CALLS),
    done(RUN, &["-rea", "--reasoning"], Value::OnOff),
    done(RUN, &["--reasoning-format"], Value::One("deepseek|none")),
    ignored(RUN, &["--reasoning-effort"], TEXT, EFFORT),
    ignored(RUN, &["--reasoning-budget-message"], TEXT, BUDGET),
    ignored(RUN, &["--reasoning-budget"], N, BUDGET),
    ignored(RUN, &["--reasoning-preserve", "--no-reasoning-preserve"], SWITCH, EFFORT),
    done(RUN, &["-co", "--color"], Value::OnOff),
    ignored(RUN, &["--simple-io"], SWITCH, SCREEN),
    ignored(RUN, &["--perf", "--no-perf"], SWITCH, TIMES),
    done(RUN, &["--show-timings"], SWITCH),
    done(RUN, &["--no-show-timings"], SWITCH),
];

pub const LOG: &[Flag] = &[
    done(ALL, &["-h", "--help"], SWITCH),
    means(RUN, &["--usage"], SWITCH, &[("", &["--help"])]),
    done(ALL, &["--version"], SWITCH),
    refused(RUN, &["--completion-bash"], SWITCH, ("there is no completion script", "leave it out")),
    done(RUN, &["-v", "--verbose"], SWITCH),
    ignored(BENCH, &["-v", "--verbose"], SWITCH, NOTES),
    ignored(RUN, &["--log-verbose"], SWITCH, NOTES),
    ignored(RUN, &["-lv", "--verbosity", "--log-verbosity"], N, NOTES),
    ignored(RUN, &["--log-disable", "--log-enable", "--log-new", "--log-append"], SWITCH, NOTES),
    ignored(RUN, &["--log-file"], FILE, NOTES),
    ignored(RUN, &["-ld", "--logdir", "--log-prompts-dir"], Value::One("DIR"), NOTES),
    ignored(RUN, &["--log-jsonl", "--no-log-jsonl"], SWITCH, NOTES),
    ignored(RUN, &["--log-colors"], Value::OnOff, NOTES),
    ignored(RUN, &["--log-prefix", "--no-log-prefix"], SWITCH, NOTES),
    ignored(RUN, &["--log-timestamps", "--no-log-timestamps"], SWITCH, NOTES),
];
