//! A run under a limit of its memory writes its text, or says which limit is in the way.
#![cfg(target_os = "linux")]

mod program;

use std::ops::RangeInclusive;
use std::path::Path;
use std::process::{Command, Output};

use bitnet_runtime::file::gguf::{Array, GgufWriter, Value};
use program::{answer, demo_model};

/// Runs the program with so many KiB of address space (`v`) or of data (`d`).
fn limited(kind: char, kilobytes: u64, args: &[&str]) -> Output {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("ulimit -{kind} {kilobytes}; exec \"$0\" \"$@\""));
    shell.arg(env!("CARGO_BIN_EXE_bitnet-run")).args(args);
    let nothing = Path::new(env!("CARGO_TARGET_TMPDIR")).join("no-configuration");
    shell.env("XDG_CONFIG_HOME", nothing).output().unwrap()
}

/// Holds that every limit from one under which nothing starts to one that is enough ends in the text or in
/// an error before any of it, and that both come about. Limits are in KiB.
fn sweep(kind: char, limits: RangeInclusive<u64>, step: u64, args: &[&str]) {
    let text = answer(args);
    let (mut wrote, mut refused) = (0, 0);
    for limit in limits.step_by(usize::try_from(step).unwrap()) {
        let output = limited(kind, limit, args);
        let errors = String::from_utf8_lossy(&output.stderr);
        let found = format!("ulimit -{kind} {limit}: {:?}: {errors}", output.status);
        if output.status.success() {
            assert_eq!(String::from_utf8_lossy(&output.stdout), text, "{found}");
            wrote += 1;
            continue;
        }
        assert!(output.stdout.is_empty(), "{found}");
        // 1: memory; 6: a file that can neither be mapped nor read.
        assert!(matches!(output.status.code(), Some(1 | 6)), "{found}");
        let last = errors.lines().last().unwrap_or_default();
        assert!(last.starts_with("error: ") && !errors.contains("panicked"), "{found}");
        if output.status.code() == Some(1) {
            assert!(last.contains(&format!("(ulimit -{kind})")), "{found}");
        }
        refused += 1;
    }
    assert!(wrote > 0 && refused > 0, "{wrote} wrote, {refused} refused");
}

const MEBI: u64 = 1 << 10;

/// The least limit in KiB under which the system can load the program, its libraries and a stack: with less
/// it ends the program before the first instruction.
fn loaded() -> u64 {
    let program = std::fs::metadata(env!("CARGO_BIN_EXE_bitnet-run")).unwrap();
    program.len().div_ceil(1 << 20) * MEBI + 8 * MEBI
}

#[test]
fn h3_every_limit_of_the_address_space_gives_the_text_or_an_error() {
    let model = demo_model();
    let args = ["-m", &model, "-p", "ROMEO:", "--temp", "0", "-n", "8", "-t", "2"];
    sweep('v', loaded()..=320 * MEBI, MEBI, &args);
    sweep('v', loaded()..=loaded() + 40 * MEBI, 150, &args);
    sweep('d', 4 * MEBI..=320 * MEBI, 4 * MEBI, &args);
    let args = [&args[..], &["--no-mmap", "-c", "4096", "-ctk", "f32"]].concat();
    sweep('v', loaded()..=320 * MEBI, 3 * MEBI, &args);
}

/// A model that starts on the weights in the file: what does not fit is told before the first token.
#[test]
fn h3_a_model_that_starts_mapped_says_before_its_text_what_does_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let path = path.to_str().unwrap();
    let demo = demo_model();
    answer(&["dummy", "--shape", "125M", "--vocab", &demo, "-o", path]);
    let args = ["-m", path, "-p", "ROMEO:", "--temp", "0", "-n", "3", "--ignore-eos", "-t", "2"];
    sweep('v', loaded()..=640 * MEBI, 16 * MEBI, &args);
}

/// A file for which there is no room in the address space: what is in the way is said, and for which file.
#[test]
fn h3_a_model_that_cannot_be_mapped_is_named_with_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    std::fs::copy(demo_model(), &path).unwrap();
    // A hole, which takes no room on the disk.
    std::fs::File::options().write(true).open(&path).unwrap().set_len(1 << 30).unwrap();
    let path = path.to_str().unwrap();
    for args in [&["inspect", path][..], &["-m", path, "-p", "a"], &["-m", path, "--no-mmap"]] {
        let output = limited('v', loaded() + 300 * MEBI, args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(6), "{args:?}: {errors}");
        for words in
            [path, "1073741824 bytes do not fit into memory", "(ulimit -v) leaves", "raise"]
        {
            assert!(errors.contains(words), "{args:?}: no {words} in {errors}");
        }
    }
}

/// Every split of every piece would be a merge: half a million pairs of strings.
#[test]
fn h2_a_vocabulary_of_pieces_within_pieces_takes_little_memory() {
    const PIECES: usize = 1024;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let mut tokens: Vec<String> = (0..256).map(|byte| format!("<{byte:#04X}>")).collect();
    let mut kinds = vec![6; 256];
    tokens.extend((1..=PIECES).map(|len| "a".repeat(len)));
    kinds.resize(tokens.len(), 1);
    let scores = (0..tokens.len()).map(|id| id as f32).collect();
    let mut writer = GgufWriter::new();
    writer.kv("general.architecture", &Value::Str("llama".into()));
    writer.kv("tokenizer.ggml.model", &Value::Str("llama".into()));
    writer.kv("tokenizer.ggml.tokens", &Value::Array(Array::Str(tokens.iter().collect())));
    writer.kv("tokenizer.ggml.token_type", &Value::Array(Array::I32(kinds)));
    writer.kv("tokenizer.ggml.scores", &Value::Array(Array::F32(scores)));
    writer.write(&path, &mut |_, _| (), |_, _, _| Ok(())).unwrap();
    let text = "a".repeat(3 * PIECES);
    let args = ["tokenize", "-m", path.to_str().unwrap(), "-p", &text];
    let output = limited('v', loaded() + 40 * MEBI, &args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {errors}", output.status);
    let longest = 255 + PIECES;
    let found = String::from_utf8(output.stdout).unwrap();
    assert!(found.contains(&format!("{longest}, {longest}")), "{found}");
}
