//! What ends and shapes a text: stop strings, penalties, biases, schemas, grammars; and what is kept of it.

mod program;

use std::fs;

use program::{answer, demo_model, refusal};
use serde_json::Value;

/// The command line of a greedy text, with what else is asked for.
fn greedy<'a>(model: &'a str, prompt: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["-m", model, "-p", prompt, "--temp", "0"], more].concat()
}

/// What a run reports with --json.
fn json(args: &[&str]) -> Value {
    serde_json::from_str(&answer(&[args, &["--json"]].concat())).unwrap()
}

#[test]
fn stop_strings_end_the_text() {
    let model = demo_model();
    let whole = json(&greedy(&model, "ROMEO:", &["-n", "30"]))["text"].as_str().unwrap().to_owned();
    let stop = &whole[20..24];
    assert!(!stop.contains('\n'), "{stop:?}");
    let report = json(&greedy(&model, "ROMEO:", &["-n", "30", "-r", "never", "-r", stop]));
    assert_eq!(report["text"], whole[..whole.find(stop).unwrap()]);
    assert_eq!((&report["finish_reason"], &report["stop"]), (&"stop_string".into(), &stop.into()));
    // Escapes count as in the prompt.
    let report = json(&greedy(&model, "ROMEO:", &["-n", "99", "--reverse-prompt", r"\n"]));
    assert_eq!(report["stop"], "\n");
    assert!(!report["text"].as_str().unwrap().contains('\n'));
}

#[test]
fn biases_and_penalties_change_the_text() {
    let model = demo_model();
    let text = |more: &[&str]| {
        let report = json(&greedy(&model, "ROMEO:", &[&["-n", "20"], more].concat()));
        report["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect::<Vec<_>>()
    };
    let plain = text(&[]);
    let ban = format!("{}-inf", plain[0]);
    let other = format!("{}-inf", text(&["-l", &ban])[0]);
    let banned = text(&["-l", &ban, "-l", &other]);
    assert!(!banned.contains(&plain[0]) && banned[0].to_string() + "-inf" != other);
    assert_eq!(text(&["--logit-bias", "7+100"]), [7; 20]);
    assert_ne!(text(&["--presence-penalty", "3"]), plain);
    assert_ne!(text(&["--frequency-penalty", "3"]), plain);
    assert_eq!(text(&["--frequency-penalty", "3", "--repeat-last-n", "0"]), plain);
    for (flags, words) in [
        (["-l", "5000+1"], "--logit-bias: found 5000, expected token ids below 4096"),
        (["-l", "7+inf"], "--logit-bias: found inf for token 7"),
        (["-l", "7"], "15043+1"),
        (["--presence-penalty", "101"], "--presence-penalty: found 101"),
    ] {
        let line = refusal(&greedy(&model, "x", &flags), 2);
        assert!(line.contains(words), "{words}: {line}");
    }
}

#[test]
fn log_probabilities_are_part_of_the_report() {
    let model = demo_model();
    let report = json(&greedy(&model, "ROMEO:", &["-n", "9", "--logprobs", "2"]));
    let tokens = report["logprobs"].as_array().unwrap();
    assert_eq!(tokens.len(), 9);
    for (token, id) in tokens.iter().zip(report["ids"].as_array().unwrap()) {
        assert_eq!(&token["id"], id);
        let logprob = token["logprob"].as_f64().unwrap();
        let top = token["top_logprobs"].as_array().unwrap();
        // Greedy: the most likely one.
        assert!(logprob < 0.0 && top.len() == 2 && top[0]["id"] == *id);
        assert_eq!(top[0]["logprob"].as_f64().unwrap(), logprob);
        let bytes = token["bytes"].as_array().unwrap();
        assert_eq!(token["token"].as_str().unwrap().len(), bytes.len());
    }
    assert!(json(&greedy(&model, "x", &["-n", "1"])).get("logprobs").is_none());
    let line = refusal(&["-m", &model, "-p", "x", "-n", "1", "--logprobs", "2"], 2);
    assert!(line.contains("--json"), "{line}");
}

#[test]
fn schemas_and_grammars_hold_the_text() {
    let model = demo_model();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let schema = r#"{"type": "object", "properties": {"n": {"type": "integer", "maximum": 99},
        "b": {"type": "boolean"}}, "required": ["n", "b"], "additionalProperties": false}"#;
    let grammar = "root ::= (\"to \" | \"be \"){3} [0-9]";
    let (schema_file, grammar_file) = (file("s.json", schema), file("g.gbnf", grammar));
    let text = |flags: &[&str], seed: &str| {
        answer(&[&["-m", &model, "-p", "x", "-n", "60", "-s", seed], flags].concat())
    };
    for seed in ["1", "2", "3"] {
        let written = text(&["-j", schema], seed);
        let value: Value = serde_json::from_str(&written).unwrap();
        assert!(value["n"].as_i64().unwrap() <= 99 && value["b"].is_boolean(), "{written}");
        assert_eq!(text(&["-jf", &schema_file], seed), written);
        let written = text(&["--grammar", grammar], seed);
        assert_eq!(written.len(), 10, "{written:?}");
        assert!(written.ends_with(|c: char| c.is_ascii_digit()), "{written:?}");
        // The last one counts, and an empty one is none.
        assert_eq!(text(&["-j", "{}", "--grammar-file", &grammar_file], seed), written);
        assert_eq!(text(&["--grammar", grammar, "--grammar="], seed), text(&[], seed));
    }
    for (flags, words) in [
        (["-j", "{\"type\": \"hiccup\"}"], "--json-schema: found"),
        (["--grammar", "root ::= other"], "--grammar: found none, expected a rule 'other'"),
        (["--grammar-file", "/nowhere/g.gbnf"], "/nowhere/g.gbnf: cannot open"),
    ] {
        let args = [&["-m", &model, "-p", "x"], &flags[..]].concat();
        let code = if flags[1].starts_with('/') { 6 } else { 2 };
        let line = refusal(&args, code);
        assert!(line.contains(words), "{words}: {line}");
    }
}

#[test]
fn the_prompt_is_kept_and_its_beginning_used() {
    let model = demo_model();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache").to_str().unwrap().to_owned();
    let run = |prompt: &str, more: &[&str]| {
        json(&greedy(&model, prompt, &[&["-n", "12", "--prompt-cache", &path], more].concat()))
    };
    let first = "KING RICHARD: My lord, the duke is dead.";
    let cold = run(first, &[]);
    let held = cold["prompt_ids"].as_array().unwrap().len();
    assert_eq!(cold["timings"]["cache_n"], 0);
    assert_eq!(cold["timings"]["prompt_n"], held);
    let kept = fs::read(&path).unwrap();
    let warm = run(first, &[]);
    assert_eq!((&warm["text"], &warm["ids"]), (&cold["text"], &cold["ids"]));
    assert_eq!(warm["timings"]["cache_n"], held - 1);
    assert_eq!(warm["timings"]["prompt_n"], 1);
    assert_eq!(fs::read(&path).unwrap(), kept);
    // A longer prompt goes on from it, is the same as without, and is kept unless that is not wanted.
    let longer = format!("{first} Long live");
    let expected = json(&greedy(&model, &longer, &["-n", "12"]));
    let ro = run(&longer, &["--prompt-cache-ro"]);
    assert_eq!(ro["ids"], expected["ids"]);
    assert_eq!(ro["timings"]["cache_n"], held);
    assert_eq!(fs::read(&path).unwrap(), kept);
    assert_eq!(run(&longer, &["--prompt-cache-all"])["ids"], expected["ids"]);
    assert!(fs::read(&path).unwrap().len() > kept.len());
    let all = longer + expected["text"].as_str().unwrap();
    assert!(run(&all, &[])["timings"]["cache_n"].as_u64().unwrap() > held as u64 + 2);
    // Another text, and a file that is something else.
    let other = run("Quite another", &[]);
    assert!(other["timings"]["cache_n"].as_u64().unwrap() <= 1);
    fs::write(&path, "a text").unwrap();
    let args = ["-m", &model, "-p", "x", "-n", "1", "--prompt-cache", &path];
    assert!(refusal(&args, 6).contains("no saved KV cache"));
    assert_eq!(fs::read(&path).unwrap(), b"a text");
}
