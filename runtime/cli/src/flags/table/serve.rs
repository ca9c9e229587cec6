//! Flags of the command `serve`: those that do there what they do nowhere else, and those of `run` that it
//! lacks. What becomes of all others is as in `run`.

use super::*;

const REQUEST: (&str, &str) =
    ("it is a matter of each request", "leave it out, and put it into requests");
const TERMINAL: &str = "requests are answered, there is no terminal";
const SLOTS: &str = "each slot keeps what it holds";
const NOTES: &str = "notes are few and go to stderr";
const PAGE: &str = "the page has its own settings";
const TLS: (&str, &str) = ("connections are not encrypted here", "put a proxy in front");
const MODELS: (&str, &str) = ("one model is served", "start a server for each");
const EMBEDDINGS: (&str, &str) = ("models here write texts", "leave it out");
const TOOLS: (&str, &str) = ("tools are the client's", "leave it out");

pub const FLAGS: &[Flag] = &[
    done(SERVE, &["--host"], Value::One("HOST")).variable("LLAMA_ARG_HOST"),
    done(SERVE, &["--port"], Value::One("PORT")).variable("LLAMA_ARG_PORT"),
    done(SERVE, &["-a", "--alias"], Value::One("NAME")).variable("LLAMA_ARG_ALIAS"),
    done(SERVE, &["--api-key"], Value::One("KEY")).variable("LLAMA_API_KEY"),
    done(SERVE, &["--api-key-file"], FILE).variable("LLAMA_ARG_API_KEY_FILE"),
    done(SERVE, &["--cors-origins"], LIST),
    done(SERVE, &["-np", "--parallel"], N).variable("LLAMA_ARG_N_PARALLEL"),
    done(SERVE, &["-to", "--timeout"], N).variable("LLAMA_ARG_TIMEOUT"),
    done(SERVE, &["--metrics"], SWITCH).variable("LLAMA_ARG_ENDPOINT_METRICS"),
    done(SERVE, &["--slots"], SWITCH),
    done(SERVE, &["--no-slots"], SWITCH),
    done(SERVE, &["--slot-save-path"], Value::One("DIR")),
    done(SERVE, &["--no-ui", "--no-webui"], SWITCH),
    done(SERVE, &["-p", "--prompt", "-sys", "--system-prompt"], TEXT),
    done(SERVE, &["-sysf", "--system-prompt-file"], FILE),
    done(SERVE, &["-rea", "--reasoning"], Value::OnOff),
    done(SERVE, &["--reasoning-format"], Value::One("none|deepseek|auto")),
    own(SERVE, &["--allow-host"], LIST),
    own(SERVE, &["--queue"], N),
    own(SERVE, &["--max-body"], N),
    own(SERVE, &["--max-connections"], N),
    own(SERVE, &["--drain"], N),
    own(SERVE, &["--log-requests"], SWITCH),
    implied(SERVE, &["--ui", "--webui"], SWITCH),
    implied(SERVE, &["-cb", "--cont-batching"], SWITCH),
    ignored(SERVE, &["-nocb", "--no-cont-batching"], SWITCH, "texts always share passes"),
    implied(SERVE, &["--cache-prompt", "--cache-idle-slots", "--prefill-assistant"], SWITCH),
    ignored(SERVE, &["--no-cache-prompt"], SWITCH, "a cache changes no text"),
    ignored(SERVE, &["--no-cache-idle-slots"], SWITCH, SLOTS),
    ignored(SERVE, &["-kvu", "--kv-unified", "-no-kvu", "--no-kv-unified"], SWITCH, SLOTS),
    ignored(SERVE, &["--kv-unified-per-slot"], N, SLOTS),
    ignored(SERVE, &["-cram", "--cache-ram"], N, SLOTS),
    ignored(SERVE, &["-ctxcp", "--ctx-checkpoints", "--swa-checkpoints"], N, SLOTS),
    ignored(SERVE, &["-cms", "--checkpoint-min-step"], N, SLOTS),
    ignored(SERVE, &["-dt", "--defrag-thold"], N, SLOTS),
    ignored(SERVE, &["-dkvc", "--dump-kv-cache"], SWITCH, SLOTS),
    ignored(
        SERVE,
        &["--cache-reuse"],
        N,
        "a beginning in common is always used, other parts never",
    ),
    ignored(SERVE, &["-sps", "--slot-prompt-similarity"], N, "slots are chosen by what they hold"),
    ignored(SERVE, &["--threads-http"], N, "one thread has all connections"),
    ignored(SERVE, &["--sse-ping-interval"], N, "a stream says something every 15 seconds"),
    ignored(SERVE, &["--sleep-idle-seconds"], N, "a server without requests takes no CPU"),
    ignored(SERVE, &["--props"], SWITCH, "/props tells settings, it changes none"),
    ignored(SERVE, &["--reuse-port"], SWITCH, "one server listens at a port"),
    ignored(SERVE, &["--spm-infill", "--lora-init-without-apply"], SWITCH, "it is not offered"),
    ignored(SERVE, &["--tags"], TEXT, "models have names alone"),
    ignored(
        SERVE,
        &["--ui-config", "--webui-config", "--ui-config-file", "--webui-config-file"],
        TEXT,
        PAGE,
    ),
    implied(
        SERVE,
        &[
            "--no-ui-mcp-proxy",
            "--no-webui-mcp-proxy",
            "-no-ag",
            "--no-agent",
            "--no-models-autoload",
            "--no-cors-credentials",
        ],
        SWITCH,
    ),
    refused(
        SERVE,
        &["--no-prefill-assistant"],
        SWITCH,
        ("a last answer is continued", "leave it out; requests say continue_final_message"),
    ),
    refused(
        SERVE,
        &["--cors-methods", "--cors-headers"],
        TEXT,
        ("pages get the methods and headers that there are", "leave it out"),
    ),
    refused(
        SERVE,
        &["--cors-credentials"],
        SWITCH,
        ("requests bring keys, not cookies", "leave it out"),
    ),
    refused(
        SERVE,
        &["--server-base", "--api-prefix"],
        TEXT,
        ("paths are as they are", "put a proxy in front"),
    ),
    refused(
        SERVE,
        &["--path", "--media-path"],
        TEXT,
        ("no files are served", "put a proxy in front"),
    ),
    refused(SERVE, &["--ssl-key-file", "--ssl-cert-file"], FILE, TLS),
    refused(SERVE, &["--models-dir", "--models-preset"], TEXT, MODELS),
    refused(SERVE, &["--models-max"], N, MODELS),
    refused(SERVE, &["--models-autoload"], SWITCH, MODELS),
    refused(
        SERVE,
        &["--tools", "--tools-runtime", "--mcp-servers-config", "--mcp-servers-json"],
        TEXT,
        TOOLS,
    ),
    refused(SERVE, &["-ag", "--agent", "--ui-mcp-proxy", "--webui-mcp-proxy"], SWITCH, TOOLS),
    refused(SERVE, &["--embedding", "--embeddings", "--rerank", "--reranking"], SWITCH, EMBEDDINGS),
    refused(SERVE, &["--pooling"], TEXT, EMBEDDINGS),
    refused(SERVE, &["--embd-normalize"], N, EMBEDDINGS),
    // Flags of `run` that are none here.
    ignored(SERVE, &["-cnv", "--conversation", "-st", "--single-turn"], SWITCH, TERMINAL),
    ignored(SERVE, &["-mli", "--multiline-input"], SWITCH, TERMINAL),
    ignored(SERVE, &["-co", "--color"], Value::OnOff, TERMINAL),
    ignored(SERVE, &["--show-timings", "--no-show-timings"], SWITCH, TERMINAL),
    ignored(SERVE, &["-v", "--verbose"], SWITCH, NOTES),
    ignored(
        SERVE,
        &["--skip-chat-parsing", "--no-skip-chat-parsing"],
        SWITCH,
        "requests say parse_tool_calls",
    ),
    means(SERVE, &["-cml", "--chatml"], SWITCH, &[("", &["--chat-template", "chatml"])]),
    refused(SERVE, &["-f", "--file"], FILE, REQUEST),
    refused(SERVE, &["--ignore-eos"], SWITCH, REQUEST),
    refused(SERVE, &["--grammar"], TEXT, REQUEST).unless(&[""]),
    refused(SERVE, &["--grammar-file", "-jf", "--json-schema-file"], FILE, REQUEST),
    refused(SERVE, &["-j", "--json-schema"], TEXT, REQUEST),
    refused(
        SERVE,
        &["--prompt-cache"],
        FILE,
        ("slots are kept in files by requests", "leave it out, and give --slot-save-path DIR"),
    ),
    ignored(
        SERVE,
        &["--prompt-cache-all", "--prompt-cache-ro"],
        SWITCH,
        "it counts with --prompt-cache only",
    ),
];
