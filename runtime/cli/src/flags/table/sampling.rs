//! The choice of the next token.

use super::*;

const MISSING: &str = "this sampler is not there";
const INSTEAD: &str =
    "leave it out; --temp, --top-k, --top-p, --min-p and --repeat-penalty are there";
const SAMPLER: (&str, &str) = (MISSING, INSTEAD);
const ORDER: (&str, &str) = ("the order of the samplers is fixed", INSTEAD);
const PENALTY: (&str, &str) =
    ("this penalty is not there", "leave it out, or use --repeat-penalty");
const GRAMMAR: (&str, &str) = ("texts are not held to a grammar here", "leave it out");

pub const FLAGS: &[Flag] = &[
    done(RUN, &["-s", "--seed"], Value::One("SEED")),
    done(RUN, &["--temp", "--temperature"], Value::One("T")).variable("LLAMA_ARG_TEMPERATURE"),
    done(RUN, &["--top-k"], Value::One("K")).variable("LLAMA_ARG_TOP_K"),
    done(RUN, &["--top-p"], P).variable("LLAMA_ARG_TOP_P"),
    done(RUN, &["--min-p"], P).variable("LLAMA_ARG_MIN_P"),
    done(RUN, &["--repeat-last-n"], N),
    done(RUN, &["--repeat-penalty"], Value::One("X")).variable("LLAMA_ARG_REPEAT_PENALTY"),
    refused(RUN, &["--presence-penalty"], N, PENALTY)
        .unless(&["0"])
        .variable("LLAMA_ARG_PRESENCE_PENALTY"),
    refused(RUN, &["--frequency-penalty"], N, PENALTY)
        .unless(&["0"])
        .variable("LLAMA_ARG_FREQUENCY_PENALTY"),
    refused(RUN, &["--dry-multiplier"], N, PENALTY).unless(&["0"]),
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
    refused(RUN, &["-l", "--logit-bias"], Value::One("ID+BIAS"), SAMPLER),
    refused(RUN, &["--grammar"], TEXT, GRAMMAR).unless(&[""]),
    refused(RUN, &["--grammar-file"], FILE, GRAMMAR),
    refused(RUN, &["-j", "--json-schema"], TEXT, GRAMMAR),
    refused(RUN, &["-jf", "--json-schema-file"], FILE, GRAMMAR),
    ignored(RUN, &["-bs", "--backend-sampling"], SWITCH, "no GPU is used"),
];
