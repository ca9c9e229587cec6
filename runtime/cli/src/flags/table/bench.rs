//! Flags that llama-bench spells in its own way.

use super::*;

pub const FLAGS: &[Flag] = &[
    done(BENCH, &["-m", "--model"], FILE),
    done(BENCH, &["-p", "--n-prompt"], LIST),
    done(BENCH, &["-n", "--n-gen"], LIST),
    done(BENCH, &["-pg"], Value::One("PP,TG")),
    done(BENCH, &["-d", "--n-depth"], LIST),
    done(BENCH, &["-b", "--batch-size"], LIST),
    done(BENCH, &["-ub", "--ubatch-size"], LIST),
    done(BENCH, &["-ctk", "--cache-type-k"], LIST),
    done(BENCH, &["-ctv", "--cache-type-v"], LIST),
    done(BENCH, &["-t", "--threads"], LIST),
    done(BENCH, &["-r", "--repetitions"], N),
    done(BENCH, &["-o", "--output"], Value::One("FORMAT")),
    done(BENCH, &["-oe", "--output-err"], Value::One("FORMAT")),
    done(BENCH, &["--no-warmup"], SWITCH),
    done(BENCH, &["-mmp", "--mmap"], ZERO_ONE),
    means(
        BENCH,
        &["-lm", "--load-mode"],
        Value::One("MODE"),
        &[
            ("auto", &["--mmap", "1"]),
            ("mmap", &["--mmap", "1"]),
            ("mmap+mlock", &["--mmap", "1", "--mlock"]),
            ("mlock", &["--mmap", "0", "--mlock"]),
            ("none", &["--mmap", "0"]),
            ("dio", &["--mmap", "0"]),
        ],
    ),
    ignored(BENCH, &["-dio", "--direct-io"], ZERO_ONE, "--mmap 0 reads the file into memory"),
    ignored(BENCH, &["--delay"], N, "tests follow each other at once"),
    ignored(BENCH, &["--progress"], SWITCH, "each result is written as it comes"),
    refused(
        BENCH,
        &["-embd", "--embeddings"],
        ZERO_ONE,
        ("the time of embeddings is not measured here", "leave it out"),
    )
    .unless(&["0"]),
];
