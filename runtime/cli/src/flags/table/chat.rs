//! Chat, what the screen shows, and the log.

use super::*;

const CHAT: &str = "the text is continued as it is, there is no chat";
const SYSTEM: (&str, &str) = (CHAT, "put it into the prompt, as the model's template has it");
const SCREEN: &str = "the text is written as it is";
const TIMES: &str = "the summary is always written";
const NOTES: &str = "notes are few and go to stderr";

pub const FLAGS: &[Flag] = &[
    ignored(RUN, &["-cnv", "--conversation"], SWITCH, CHAT),
    implied(RUN, &["-no-cnv", "--no-conversation"], SWITCH),
    refused(RUN, &["-sys", "--system-prompt"], TEXT, SYSTEM),
    refused(RUN, &["-sysf", "--system-prompt-file"], FILE, SYSTEM),
    ignored(RUN, &["-st", "--single-turn"], SWITCH, CHAT),
    ignored(
        RUN,
        &["-i", "--interactive", "-if", "--interactive-first", "-ins", "--instruct"],
        SWITCH,
        CHAT,
    ),
    ignored(RUN, &["-mli", "--multiline-input", "--in-prefix-bos"], SWITCH, CHAT),
    ignored(RUN, &["--in-prefix", "--in-suffix"], TEXT, CHAT),
    ignored(RUN, &["-cml", "--chatml"], SWITCH, CHAT),
    ignored(RUN, &["--jinja", "--no-jinja"], SWITCH, CHAT),
    ignored(RUN, &["--chat-template", "--chat-template-kwargs"], TEXT, CHAT),
    ignored(RUN, &["--chat-template-file"], FILE, CHAT),
    ignored(RUN, &["--skip-chat-parsing", "--no-skip-chat-parsing"], SWITCH, CHAT),
    ignored(RUN, &["-rea", "--reasoning"], Value::OnOff, CHAT),
    ignored(
        RUN,
        &["--reasoning-format", "--reasoning-effort", "--reasoning-budget-message"],
        TEXT,
        CHAT,
    ),
    ignored(RUN, &["--reasoning-budget"], N, CHAT),
    ignored(RUN, &["--reasoning-preserve", "--no-reasoning-preserve"], SWITCH, CHAT),
    ignored(RUN, &["-co", "--color"], Value::OnOff, SCREEN),
    ignored(RUN, &["--simple-io"], SWITCH, SCREEN),
    ignored(RUN, &["--perf", "--no-perf", "--show-timings", "--no-show-timings"], SWITCH, TIMES),
];

pub const LOG: &[Flag] = &[
    done(BOTH, &["-h", "--help"], SWITCH),
    means(RUN, &["--usage"], SWITCH, &[("", &["--help"])]),
    done(BOTH, &["--version"], SWITCH),
    refused(RUN, &["--completion-bash"], SWITCH, ("there is no completion script", "leave it out")),
    ignored(BOTH, &["-v", "--verbose"], SWITCH, NOTES),
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
