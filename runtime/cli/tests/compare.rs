//! `bitnet-run compare`, beside a program that answers as llama-bench does.
#![cfg(unix)]

mod program;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use program::{both, demo_model, refusal};
use serde_json::Value;

/// A peer that answers by `answer`, a line of the shell that knows `$p`, `$n`, `$t` and `$m`.
fn peer(folder: &Path, answer: &str) -> String {
    let path = folder.join("llama-bench");
    let script = format!(
        "#!/bin/sh\necho \"$@\" >> \"$0.log\"\nwhile [ $# -gt 0 ]; do\ncase $1 in\n-p) p=$2;;\n\
         -n) n=$2;;\n-t) t=$2;;\n-m) m=$2;;\nesac\nshift\ndone\n{answer}\n"
    );
    // By another process: a script that a thread of this one has open for writing while another
    // thread starts a program is busy.
    let mut write = Command::new("sh");
    write.args(["-c", "printf %s \"$1\" > \"$2\" && chmod 700 \"$2\"", "sh", &script]);
    assert!(write.arg(&path).status().unwrap().success());
    path.to_str().unwrap().to_owned()
}

/// As llama-bench writes it, and as many tokens per second as threads and a half.
const GOOD: &str = r#"echo "a line of its own"
echo "[{\"build_commit\": \"abc\", \"model_type\": \"$m\", \"model_size\": 5000000, \"n_prompt\": $p,"
echo "\"n_gen\": $n, \"avg_ts\": $t.5, \"more\": []}]""#;

#[test]
fn tests_run_in_turns_and_ratios_come_out() {
    let folder = tempfile::tempdir().unwrap();
    let (peer, model) = (peer(folder.path(), GOOD), demo_model());
    let args = [
        "compare",
        "--peer",
        &peer,
        "--peer-model",
        "other.gguf",
        "--peer-arg=-fa",
        "--peer-arg=1",
        "-m",
        &model,
        "-p",
        "8",
        "-n",
        "4",
        "-t",
        "1,2",
        "-r",
        "2",
        "--",
        "--profile",
        "none",
    ];
    let (text, errors) = both(&args);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "| test | threads | this, tokens/s | peer, tokens/s | ratio |");
    for (line, (test, threads)) in
        lines[2..6].iter().zip([("pp8", 1), ("tg4", 1), ("pp8", 2), ("tg4", 2)])
    {
        assert!(line.starts_with(&format!("| {test} | {threads} | ")), "{text}");
        assert!(line.contains(&format!("| {threads}.5 ({threads}.5 to {threads}.5) |")), "{text}");
        let ratio = line.rsplit("| ").next().and_then(|cell| cell.split('x').next()).unwrap();
        let ratio: f64 = ratio.parse().unwrap();
        assert!(ratio > 0.0, "{text}");
    }
    assert_eq!(lines.last(), Some(&"2 rounds; medians and their ranges"));
    assert!(errors.contains("this: build 0.1.0, bitnet-b1.58 11M"), "{errors}");
    assert!(errors.contains("peer: build abc, other.gguf, 5.0 MB"), "{errors}");
    let log = fs::read_to_string(PathBuf::from(&peer).with_extension("log")).unwrap();
    assert_eq!(log.lines().count(), 8);
    assert_eq!(log.lines().next(), Some("-fa 1 -m other.gguf -p 8 -n 0 -t 1 -r 1 -o json"));
}

#[test]
fn json_has_every_sample() {
    let folder = tempfile::tempdir().unwrap();
    let (peer, model) = (peer(folder.path(), GOOD), demo_model());
    let (text, _) = both(&[
        "compare", "--peer", &peer, "-m", &model, "-p", "0", "-n", "2", "-t", "1", "-r", "3", "-o",
        "json",
    ]);
    let rows: Value = serde_json::from_str(&text).unwrap();
    let [row] = &rows.as_array().unwrap()[..] else { panic!("{text}") };
    assert_eq!((&row["test"], &row["threads"]), (&"tg2".into(), &1.into()));
    assert_eq!(row["peer_ts"], serde_json::json!([1.5, 1.5, 1.5]));
    let own: Vec<f64> =
        row["own_ts"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    let mut sorted = own.clone();
    sorted.sort_by(f64::total_cmp);
    let median = row["ratio"]["median"].as_f64().unwrap();
    assert!((median - sorted[1] / 1.5).abs() < 1e-9 * median, "{text}");
}

#[test]
fn what_a_peer_does_wrong_is_told_in_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let model = demo_model();
    let refused = |peer: &str, code| {
        let args =
            ["compare", "--peer", peer, "-m", &model, "-p", "8", "-n", "0", "-t", "1", "-r", "1"];
        refusal(&args, code)
    };
    for (answer, says) in [
        (
            "echo first >&2; echo 'no such model' >&2; exit 3",
            "exit status: 3 at pp8, and says: no such model",
        ),
        ("kill -9 $$", "signal: 9"),
        ("exit 1", "and says: nothing"),
        ("echo hello", "no JSON as llama-bench's -o json"),
        ("echo '[]'", "it answered without pp8"),
        (
            "echo \"[{\\\"n_prompt\\\": 8, \\\"n_gen\\\": 0, \\\"avg_ts\\\": 0}]\"",
            "pp8 at 0 tokens/s",
        ),
    ] {
        let peer = peer(folder.path(), answer);
        let errors = refused(&peer, 1);
        assert!(errors.contains(says) && errors.contains(&peer), "{answer}: {errors}");
    }
    let errors = refused("/nowhere/llama-bench", 6);
    assert!(errors.contains("/nowhere/llama-bench: cannot start"), "{errors}");
    let peer = peer(folder.path(), GOOD);
    let args = ["compare", "--peer", &peer, "-m", "/nowhere/model.gguf", "-t", "1", "-r", "1"];
    assert!(refusal(&args, 1).contains("/nowhere/model.gguf"));
}
