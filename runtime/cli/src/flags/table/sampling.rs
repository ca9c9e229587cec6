//! The choice of the next token.

use super::*;

const MISSING: &str = "this sampler is not there";
const INSTEAD: &str = "leave it out; --temp, --top-k, --top-p, --min-p and penalties are there";
const SAMPLER: (&str, &str) = (MISSING, INSTEAD);
const ORDER: (&str, &str) = ("the order of the samplers is fixed", INSTEAD);

pub const FLAGS: &[Flag] = &[
    done(RUNS, &["-s", "--seed"], Value::One("SEED")),
    done(RUNS, &["--temp", "--temperature"], Value::One("T")).variable("LLAMA_ARG_TEMPERATURE"),
    done(RUNS, &["--top-k"], Value::One("K")).variable("LLAMA_ARG_TOP_K"),
    done(RUNS, &["--top-p"], P).variable("LLAMA_ARG_TOP_P"),
    done(RUNS, &["--min-p"], P).variable("LLAMA_ARG_MIN_P"),
    done(RUNS, &["--repeat-last-n"], N),
    done(RUNS, &["--repeat-penalty"], Value::One("X")).variable("LLAMA_ARG_REPEAT_PENALTY"),
    done(RUNS, &["--presence-penalty"], N).variable("LLAMA_ARG_PRESENCE_PENALTY"),
    done(RUNS, &["--frequency-penalty"], N).variable("LLAMA_ARG_FREQUENCY_PENALTY"),
    refused(RUN, &["--dry-multiplier"], N, SAMPLER).unless(&["0"]),
    ignored(
        RUN,
        &["--dry-base", "--dry-allowed-length", "--dry-penalty-last-n"],
        N,
        "it counts with --dry-multiplier only",
    ),
    ignored(RUN, &["--dry-sequence-breaker"], TEXT, "it counts with --dry-multiplier only"),
    implied(RUN, &["--penalize-nl"], SWITCH),
    refused(RUN, &["--top-nsigma", "--top-n-sigma"], N, SAMPLER).unless(&["-1", "0"]),
    refused(RUN, &["--xtc-probability"], P, SAMPLER).unless(&["0"]),
    ignored(RUN, &["--xtc-threshold"], P, "it counts with --xtc-probability only"),
    refused(RUN, &["--typical", "--typical-p"], P, SAMPLER).unless(&["1"]),
    refused(RUN, &["--adaptive-target"], P, SAMPLER).unless(&["-1"]),
    ignored(RUN, &["--adaptive-decay"], N, "it counts with --adaptive-target only"),
    refused(RUN, &["--dynatemp-range"], N, SAMPLER).unless(&["0"]),
    ignored(RUN, &["--dynatemp-exp"], N, "it counts with --dynatemp-range only"),
    refused(RUN, &["--mirostat"], N, SAMPLER).unless(&["0"]),
    ignored(RUN, &["--mirostat-lr", "--mirostat-ent"], N, "it counts with --mirostat only"),
    refused(RUN, &["--samplers"], LIST, ORDER),
    refused(RUN, &["--sampler-seq", "--sampling-seq"], TEXT, ORDER),
    done(RUNS, &["-l", "--logit-bias"], Value::One("ID+BIAS")),
    done(RUN, &["--grammar"], TEXT),
    done(RUN, &["--grammar-file"], FILE),
    done(RUN, &["-j", "--json-schema"], TEXT),
    done(RUN, &["-jf", "--json-schema-file"], FILE),
    ignored(RUN, &["-bs", "--backend-sampling"], SWITCH, "no GPU is used"),
];
