//! What the program writes: answers to stdout, everything else to stderr.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::process;

use bitnet_profiles::patient;
use bitnet_runtime::error::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};

/// Writes an answer to stdout, buffered; a reader that has gone is an error that
/// [`Error::is_broken_pipe`] tells apart.
pub fn answer(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let mut out = io::BufWriter::new(patient::stdout());
    write(&mut out)
        .and_then(|()| out.flush())
        .map_err(|e| Error::io(Path::new("stdout"), "write", e))
}

/// Writes a line to stderr; a closed stderr is no reason to stop.
pub fn note(line: fmt::Arguments<'_>) {
    drop(writeln!(patient::stderr(), "{line}"));
}

/// Prints what clap has to say, help or what is wrong with the arguments, and ends the program.
pub fn end(message: &clap::Error) -> ! {
    let text = message.render();
    patient::show(message.use_stderr(), text.ansi(), &text);
    process::exit(message.exit_code())
}

/// The flags for parameters of the library that an error may name.
const FLAGS: [(&str, &str); 21] = [
    ("isa", "--isa"),
    ("activations", "--activations"),
    ("pooling", "--pooling"),
    ("temperature", "--temp"),
    ("top_p", "--top-p"),
    ("min_p", "--min-p"),
    ("repeat_penalty", "--repeat-penalty"),
    ("presence_penalty", "--presence-penalty"),
    ("frequency_penalty", "--frequency-penalty"),
    ("logit_bias", "--logit-bias"),
    ("json_schema", "--json-schema"),
    ("grammar", "--grammar"),
    ("context", "context (-c)"),
    ("batch", "batch (-b)"),
    ("threads", "--threads"),
    ("model", "--model"),
    ("seed", "--seed"),
    ("override", "--override-kv"),
    ("pre", "--pre"),
    ("chat_template", "--chat-template"),
    ("chat_template_kwargs", "--chat-template-kwargs"),
];

/// Advice of the library, and the flags to follow it with.
const ADVICE: [(&str, &str); 7] = [
    ("a smaller context", "-c"),
    ("a larger context", "-c"),
    ("name the pre-tokenizer", "--pre"),
    ("choose a template", "--chat-template"),
    ("choose another template", "--chat-template"),
    ("choose the template gguf", "--chat-template gguf"),
    ("let it continue text", "leave -cnv out"),
];

/// An error or a note of the library as a user of the program reads it: with flags where it names
/// parameters.
pub fn with_flags(line: &str) -> String {
    let named = FLAGS.into_iter().find_map(|(parameter, flag)| {
        let rest = line.strip_prefix(parameter).filter(|rest| rest.starts_with(": found "))?;
        Some(format!("{flag}{rest}"))
    });
    let line = named.unwrap_or_else(|| line.to_owned());
    ADVICE
        .into_iter()
        .fold(line, |line, (advice, flag)| line.replace(advice, &format!("{advice} ({flag})")))
}

/// A bar of bytes written, on a terminal; its length is set with the first of them.
pub fn byte_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let template = "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}";
    // The default style serves should the template be refused.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// 1234567 as `1.2 MB`.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    #[test]
    fn parameters_read_as_flags() {
        let cases = [
            ("isa: found avx512, expected avx2", "--isa: found avx512, expected avx2"),
            ("context: found 0, expected 1 to 9", "context (-c): found 0, expected 1 to 9"),
            (
                "prompt: found 9, expected a larger context",
                "prompt: found 9, expected a larger context (-c)",
            ),
            ("m.gguf: isa: found 1", "m.gguf: isa: found 1"),
            ("threads: 2, all there are", "threads: 2, all there are"),
        ];
        for (line, expected) in cases {
            assert_eq!(super::with_flags(line), expected);
        }
    }

    #[test]
    fn sizes_read_well() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (999_949, "999.9 kB"),
            (999_960, "1.0 MB"),
            (5_690_976, "5.7 MB"),
            (25_000_000_000, "25.0 GB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(super::human(bytes), text);
        }
    }
}
