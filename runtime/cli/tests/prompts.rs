//! Sources of the prompt of `bitnet-run` and the text of `tokenize`.

mod program;

use std::fs;
use std::path::Path;
use std::process::Command;

use bitnet_runtime::file::gguf::Gguf;
use bitnet_runtime::text::tokenizer::Tokenizer;
use program::{command, demo_model, piped};
use serde_json::Value;

/// The ids that `args` make of a text which comes through a pipe, if any.
fn ids(args: &[&str], piped: Option<&[u8]>) -> Vec<u32> {
    let model = demo_model();
    let run = ["-m", &model, "-n", "0", "--json"];
    let output = run_with(command(&[&run[..], args].concat()), piped);
    let report: Value = serde_json::from_slice(&output).unwrap();
    serde_json::from_value(report["prompt_ids"].clone()).unwrap()
}

/// stdout of a command that succeeds, with a pipe as its stdin or with none.
fn run_with(mut command: Command, text: Option<&[u8]>) -> Vec<u8> {
    let output = match text {
        Some(text) => piped(command, text),
        None => command.output().unwrap(),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The ids of a prompt with this text.
fn expected(text: &str) -> Vec<u32> {
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(demo_model()).unwrap()).unwrap();
    let bos = tokenizer.bos().unwrap();
    [vec![bos], tokenizer.encode(text, false, true).unwrap()].concat()
}

/// A file with these bytes, by its path.
fn file(folder: &Path, bytes: &[u8]) -> String {
    let path = folder.join("prompt");
    fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn prompts_are_taken_as_llama_cpp_takes_them() {
    let of = |args: &[&str]| ids(args, None);
    assert_eq!(of(&["-p", "-temp"]), expected("-temp"));
    assert_eq!(of(&["-p", ""]), expected(""));
    // Neither a terminal nor /dev/null is waited for.
    assert_eq!(of(&[]), expected(""));
    // Spelled out, the first token is not put there again.
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(demo_model()).unwrap()).unwrap();
    let spelled = format!("{}x", tokenizer.token_text(tokenizer.bos().unwrap()).unwrap());
    assert_eq!(of(&["-p", &spelled]), expected("x"));

    let folder = tempfile::tempdir().unwrap();
    for (content, text) in [("a b", "a b"), ("a b\n", "a b"), ("a\n\n", "a\n")] {
        assert_eq!(of(&["-f", &file(folder.path(), content.as_bytes())]), expected(text));
    }
}

#[test]
fn w4_what_is_piped_is_the_prompt() {
    let piped = |args: &[&str]| ids(args, Some(b"KING RICHARD:\n"));
    assert_eq!(piped(&[]), expected("KING RICHARD:"));
    assert_eq!(piped(&["-f", "-"]), expected("KING RICHARD:"));
    assert_eq!(ids(&[], Some(b"")), expected(""));
    assert_eq!(ids(&[], Some(b"\n")), expected(""));
    // What is given counts, and of what is given the last.
    assert_eq!(piped(&["-p", "x"]), expected("x"));
    assert_eq!(piped(&["-p", ""]), expected(""));
    assert_eq!(piped(&["-f", "-", "-p", "x"]), expected("x"));
    assert_eq!(piped(&["-p", "x", "-f", "-"]), expected("KING RICHARD:"));
    // A file as stdin.
    let folder = tempfile::tempdir().unwrap();
    let stdin = fs::File::open(file(folder.path(), b"KING RICHARD:")).unwrap();
    let model = demo_model();
    let args = ["-m", &*model, "-n", "0", "--json"];
    let output = command(&args).stdin(stdin).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["prompt_ids"], Value::from(expected("KING RICHARD:")));

    let text = run_with(command(&["tokenize", "-m", &model, "-f", "-"]), Some(b"KING\n"));
    assert_eq!(serde_json::from_slice::<Vec<u32>>(&text).unwrap(), expected("KING\n")[1..]);
}

#[test]
fn w5_escapes_are_on_unless_turned_off() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), br"a\nb");
    for (args, text) in [
        (&["-p", r"KING RICHARD:\n"][..], "KING RICHARD:\n"),
        (&["-p", r"a\x0ab\\n"], "a\nb\\n"),
        (&["-e", "-p", r"a\tb"], "a\tb"),
        (&["--no-escape", "-p", r"a\nb"], r"a\nb"),
        (&["-p", r"a\nb", "--no-escape", "-e"], "a\nb"),
        (&["-p", r"C:\dir\q \x4"], r"C:\dir\q \x4"),
        (&["-f", &path], "a\nb"),
        (&["-f", &path, "-no-escape"], r"a\nb"),
    ] {
        assert_eq!(ids(args, None), expected(text), "{args:?}");
    }
    assert_eq!(ids(&[], Some(br"a\nb")), expected("a\nb"));
    let model = demo_model();
    let message = program::refusal(&["-m", &model, "-p", r"a\xff"], 2);
    assert!(message.contains(r"\xff at byte 1") && message.contains("--no-escape"), "{message}");

    // The ids of a text on the command line are those of such a prompt; a file is taken as it is.
    let tokenize = |args: &[&str]| -> Vec<u32> {
        let args = [&["tokenize", "-m", &*model], args].concat();
        serde_json::from_slice(&run_with(command(&args), None)).unwrap()
    };
    for (args, text) in [
        (&["-p", r"a\nb"][..], "a\nb"),
        (&["-p", r"a\nb", "--no-escape"], r"a\nb"),
        (&["-f", &path], r"a\nb"),
        (&["-f", &path, "-e"], "a\nb"),
    ] {
        assert_eq!(tokenize(args), expected(text)[1..], "{args:?}");
    }
}

#[test]
fn w9_marks_and_line_ends_of_a_file_are_no_text() {
    let folder = tempfile::tempdir().unwrap();
    for (content, text) in [
        ("\u{feff}a b\r\n", "a b"),
        ("\u{feff}a b", "a b"),
        ("a b\r\n", "a b"),
        ("a\r\nb\r\n", "a\r\nb"),
    ] {
        let path = file(folder.path(), content.as_bytes());
        assert_eq!(ids(&["-f", &path], None), expected(text), "{content:?}");
        assert_eq!(ids(&[], Some(content.as_bytes())), expected(text), "{content:?}");
    }
    let path = file(folder.path(), b"\xff\xfea\0\n\0");
    let model = demo_model();
    let message = program::refusal(&["-m", &model, "-f", &path], 6);
    assert!(message.contains("UTF-16") && message.contains("save it as UTF-8"), "{message}");
}
