//! The text, its context, and other files than the model.

use super::*;

const SHIFT: &str = "the context does not shift: a text ends where it is full";
const KEEP: (&str, &str) =
    ("the context does not shift, so there is nothing of it to keep", "leave it out");
const STDOUT: &str = "stdout is the continuation alone";
const ROPE: (&str, &str) = ("positions are turned as the file says", "leave it out");
const EXTEND: (&str, &str) = ("group attention is not there", "leave it out");
const NET: (&str, &str) =
    ("nothing is downloaded here", "download the GGUF file and give it with -m FILE");
const ADAPTER: (&str, &str) = ("adapters are not applied here", "merge it into the model");
const CONTROL: (&str, &str) = ("control vectors are not applied here", "leave it out");
const MEDIA: &str = "models here read text alone";

pub const FLAGS: &[Flag] = &[
    done(RUNS, &["-m", "--model"], FILE).variable("LLAMA_ARG_MODEL"),
    done(RUN, &["-p", "--prompt"], TEXT),
    done(RUN, &["-f", "--file"], FILE),
    refused(RUN, &["-bf", "--binary-file"], FILE, ("a prompt is UTF-8", "give it with -f FILE")),
    done(RUNS, &["-e", "--escape"], SWITCH),
    done(RUNS, &["--no-escape"], SWITCH),
    done(RUNS, &["-n", "--predict", "--n-predict"], N).variable("LLAMA_ARG_N_PREDICT"),
    done(RUNS, &["-c", "--ctx-size"], N).variable("LLAMA_ARG_CTX_SIZE"),
    done(RUN, &["--ignore-eos"], SWITCH),
    done(RUNS, &["--override-kv"], Value::One("KEY=TYPE:VALUE")),
    done(RUNS, &["-r", "--reverse-prompt"], TEXT),
    refused(
        RUN,
        &["-sp", "--special"],
        SWITCH,
        ("special tokens are not written", "leave it out, and take the ids that --json gives"),
    ),
    refused(
        RUN,
        &["-o", "--output", "--output-file"],
        FILE,
        ("the text goes to stdout", "write > FILE at the end of the line"),
    ),
    refused(RUN, &["--keep"], N, KEEP).unless(&["0"]),
    ignored(RUN, &["--context-shift"], SWITCH, SHIFT),
    implied(RUN, &["--no-context-shift"], SWITCH),
    ignored(RUN, &["--swa-full"], SWITCH, "the cache holds the whole context"),
    ignored(RUN, &["--display-prompt"], SWITCH, STDOUT),
    implied(RUN, &["--no-display-prompt"], SWITCH),
    ignored(RUN, &["--verbose-prompt"], SWITCH, "--json gives the prompt's ids"),
    ignored(RUN, &["-ptc", "--print-token-count"], N, "the summary counts tokens"),
    done(RUN, &["--prompt-cache"], FILE),
    done(RUN, &["--prompt-cache-all"], SWITCH),
    done(RUN, &["--prompt-cache-ro"], SWITCH),
    refused(RUN, &["--rope-scaling"], TYPE, ROPE).variable("LLAMA_ARG_ROPE_SCALING_TYPE"),
    refused(RUN, &["--rope-scale"], N, ROPE).variable("LLAMA_ARG_ROPE_SCALE"),
    refused(RUN, &["--rope-freq-base"], N, ROPE)
        .unless(&["0"])
        .variable("LLAMA_ARG_ROPE_FREQ_BASE"),
    refused(RUN, &["--rope-freq-scale"], N, ROPE)
        .unless(&["0"])
        .variable("LLAMA_ARG_ROPE_FREQ_SCALE"),
    refused(RUN, &["--yarn-orig-ctx"], N, ROPE).unless(&["0"]).variable("LLAMA_ARG_YARN_ORIG_CTX"),
    refused(RUN, &["--yarn-ext-factor"], N, ROPE)
        .unless(&["-1"])
        .variable("LLAMA_ARG_YARN_EXT_FACTOR"),
    refused(RUN, &["--yarn-attn-factor"], N, ROPE)
        .unless(&["-1"])
        .variable("LLAMA_ARG_YARN_ATTN_FACTOR"),
    refused(RUN, &["--yarn-beta-slow"], N, ROPE)
        .unless(&["-1"])
        .variable("LLAMA_ARG_YARN_BETA_SLOW"),
    refused(RUN, &["--yarn-beta-fast"], N, ROPE)
        .unless(&["-1"])
        .variable("LLAMA_ARG_YARN_BETA_FAST"),
    refused(RUN, &["-gan", "--grp-attn-n"], N, EXTEND)
        .unless(&["1"])
        .variable("LLAMA_ARG_GRP_ATTN_N"),
    ignored(RUN, &["-gaw", "--grp-attn-w"], N, "it counts with --grp-attn-n only"),
];

pub const FILES: &[Flag] = &[
    refused(BOTH, &["-hf", "-hfr", "--hf-repo"], Value::One("REPO"), NET),
    refused(BOTH, &["-hff", "--hf-file"], FILE, NET),
    refused(BOTH, &["-hft", "--hf-token"], TEXT, NET),
    refused(RUN, &["-mu", "--model-url"], Value::One("URL"), NET),
    refused(RUN, &["-dr", "--docker-repo"], Value::One("REPO"), NET),
    refused(RUN, &["-cl", "--cache-list"], SWITCH, NET),
    refused(
        RUN,
        &[
            "--embd-gemma-default",
            "--fim-qwen-1.5b-default",
            "--fim-qwen-3b-default",
            "--fim-qwen-7b-default",
            "--fim-qwen-7b-spec",
            "--fim-qwen-14b-spec",
            "--fim-qwen-30b-default",
            "--gpt-oss-20b-default",
            "--gpt-oss-120b-default",
            "--vision-gemma-4b-default",
            "--vision-gemma-12b-default",
        ],
        SWITCH,
        NET,
    ),
    implied(BOTH, &["--offline"], SWITCH),
    refused(RUN, &["--lora"], FILE, ADAPTER),
    refused(RUN, &["--lora-scaled"], Value::One("FILE:SCALE"), ADAPTER),
    refused(RUN, &["--control-vector"], FILE, CONTROL),
    refused(RUN, &["--control-vector-scaled"], Value::One("FILE:SCALE"), CONTROL),
    ignored(
        RUN,
        &["--control-vector-layer-range"],
        Value::Two("FIRST LAST"),
        "it counts with --control-vector only",
    ),
    refused(RUN, &["--image", "--audio", "--video"], FILE, (MEDIA, "leave it out")),
    refused(RUN, &["-mm", "--mmproj"], FILE, (MEDIA, "leave it out")),
    refused(RUN, &["-mmu", "--mmproj-url"], Value::One("URL"), (MEDIA, "leave it out")),
    ignored(RUN, &["--mmproj-auto", "--mmproj-offload"], SWITCH, MEDIA),
    implied(RUN, &["--no-mmproj", "--no-mmproj-auto", "--no-mmproj-offload"], SWITCH),
    ignored(RUN, &["-mmdev", "--mmproj-device"], Value::One("DEVICE"), MEDIA),
    ignored(
        RUN,
        &[
            "--image-min-tokens",
            "--image-max-tokens",
            "--mtmd-batch-max-tokens",
            "--video-fps",
            "--video-timestamp-interval",
        ],
        N,
        MEDIA,
    ),
    ignored(RUN, &["--video-ffmpeg-dir"], Value::One("DIR"), MEDIA),
];
