//! `bitnet-run embed` as a user runs it.

mod program;

use std::path::Path;

use program::{answer, both, command, demo_model, piped, refusal};
use serde_json::Value;

const TEXTS: &str =
    "ROMEO: O, she doth teach the torches to burn bright!\nIt is the east\n\nJULIET";

/// The embeddings of the demo model, as a list of lists.
fn embed(args: &[&str]) -> Vec<Vec<f32>> {
    serde_json::from_str(&answer(&[&["embed", "-m", &demo_model()], args].concat())).unwrap()
}

fn normalised(values: &[f32]) -> Vec<f32> {
    let size = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    values.iter().map(|v| (f64::from(*v) / size) as f32).collect()
}

/// All poolings are made of the states of the tokens, which `none` gives.
#[test]
fn poolings_are_of_the_same_states() {
    let text = "It is the east, and Juliet is the sun.";
    let raw = ["-p", text, "--embd-normalize", "-1"];
    let of = |pooling| embed(&[&raw[..], &["--pooling", pooling]].concat());
    let states = of("none");
    let ids: Vec<u32> =
        serde_json::from_str(&answer(&["tokenize", "-m", &demo_model(), "--bos", "-p", text]))
            .unwrap();
    assert_eq!(states.len(), ids.len());
    assert!(states.iter().all(|state| state.len() == 384));
    assert_eq!(of("cls"), [states[0].clone()]);
    assert_eq!(of("last"), [states[states.len() - 1].clone()]);
    let mean = |column: usize| {
        let sum: f64 = states.iter().map(|state| f64::from(state[column])).sum();
        (sum / states.len() as f64) as f32
    };
    let mean: Vec<f32> = (0..384).map(mean).collect();
    assert_eq!(of("mean")[0], mean);
    // The file says nothing of a pooling.
    assert_eq!(embed(&raw), states);
    let says = ["--override-kv", "bitnet-b1.58.pooling_type=int:3"];
    assert_eq!(embed(&[&raw[..], &says].concat()), of("last"));

    let sized = |number| {
        let args = ["-p", text, "--pooling", "mean", "--embd-normalize", number];
        embed(&args).remove(0)
    };
    assert_eq!(embed(&["-p", text, "--pooling", "mean"]), [normalised(&mean)]);
    assert_eq!(sized("2"), normalised(&mean));
    let largest = |values: &[f32]| values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    assert_eq!(largest(&sized("0")), 32760.0);
    let sum: f64 = sized("1").iter().map(|v| f64::from(v.abs())).sum();
    assert!((sum - 1.0).abs() < 1e-5, "{sum}");
}

/// What a text's embedding is depends on nothing but the text: not on the texts beside it, the batch, the
/// threads or the instructions.
#[test]
fn an_embedding_depends_on_its_text_alone() {
    let all = embed(&["-p", TEXTS, "--pooling", "mean"]);
    assert_eq!(all.len(), 4);
    for (text, together) in TEXTS.lines().zip(&all) {
        assert_eq!(&embed(&["-p", text, "--pooling", "mean"])[0], together, "{text:?}");
    }
    for more in [
        &["-b", "1"][..],
        &["-b", "5", "-t", "2"],
        &["-ub", "13", "-t", "1"],
        &["--isa", "scalar"],
        &["--packed", "none"],
        &["--no-mmap"],
    ] {
        assert_eq!(embed(&[&["-p", TEXTS, "--pooling", "mean"], more].concat()), all, "{more:?}");
    }
}

#[test]
fn texts_come_from_a_flag_a_file_or_a_pipe() {
    let expected = embed(&["-p", "one\ntwo\\nthree", "--pooling", "last"]);
    assert_eq!(expected.len(), 3);
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("texts-to-embed.txt");
    std::fs::write(&path, "one\r\ntwo\nthree\n").unwrap();
    assert_eq!(embed(&["-f", path.to_str().unwrap(), "--pooling", "last"]), expected);
    let model = demo_model();
    let args = ["embed", "-m", &model, "--pooling", "last"];
    let output = piped(command(&args), b"one\ntwo\nthree\n");
    assert_eq!(serde_json::from_slice::<Vec<Vec<f32>>>(&output.stdout).unwrap(), expected);
    // Another separator, with which a line end is part of a text; in a file backslashes are text.
    let parts = ["-p", "one<#>two<#>three", "--embd-separator", "<#>", "--pooling", "last"];
    assert_eq!(embed(&parts), expected);
    std::fs::write(&path, "a\\nb").unwrap();
    assert_eq!(embed(&["-f", path.to_str().unwrap(), "--pooling", "last"]).len(), 1);
    assert_eq!(embed(&["-e", "-f", path.to_str().unwrap(), "--pooling", "last"]).len(), 2);
}

#[test]
fn every_form_has_the_same_numbers() {
    let args = ["-p", TEXTS, "--pooling", "mean"];
    let rows = embed(&args);
    let model = demo_model();
    let of = |form| both(&[&["embed", "-m", &model, "-o", form], &args[..]].concat());
    let (raw, notes) = of("raw");
    let read = |line: &str| line.split(' ').map(|n| n.parse().unwrap()).collect::<Vec<f32>>();
    assert_eq!(raw.lines().map(read).collect::<Vec<_>>(), rows);
    assert!(notes.contains("384 numbers each, pooling mean"), "{notes}");
    for form in ["json", "json+"] {
        let json: Value = serde_json::from_str(&of(form).0).unwrap();
        assert_eq!(json["object"], "list");
        let data = json["data"].as_array().unwrap();
        assert_eq!(data.len(), 4);
        for (index, (data, row)) in data.iter().zip(&rows).enumerate() {
            assert_eq!((&data["object"], &data["index"]), (&"embedding".into(), &index.into()));
            let values: Vec<f32> = serde_json::from_value(data["embedding"].clone()).unwrap();
            assert_eq!(&values, row);
        }
        let cosines = json["cosineSimilarity"].as_array();
        assert_eq!(cosines.is_some(), form == "json+");
        let Some(cosines) = cosines else { continue };
        for (i, own) in rows.iter().enumerate() {
            for (j, other) in rows.iter().enumerate() {
                let dot: f64 =
                    own.iter().zip(other).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                assert!((cosines[i][j].as_f64().unwrap() - dot).abs() < 1e-5, "{i} {j}");
            }
        }
    }
}

#[test]
fn what_cannot_be_embedded_is_refused_by_its_number() {
    let model = demo_model();
    let refused = |args: &[&str]| refusal(&[&["embed", "-m", &model], args].concat(), 2);
    let long = "It is the east. ".repeat(400);
    let error = refused(&["-p", &format!("short\n{long}")]);
    assert!(error.contains("text 2: found ") && error.contains("at most 1024"), "{error}");
    let error = refused(&["-p", "x", "--pooling", "rank"]);
    assert!(error.contains("not ranked"), "{error}");
    let error = refused(&["-p", "x", "--pooling", "max"]);
    assert!(error.contains("none, mean, cls, last"), "{error}");
    let error = refused(&["-p", "x", "--embd-normalize", "-2"]);
    assert!(error.contains("-1..=65535"), "{error}");
    let error = refused(&["-p", "x", "--embd-separator", ""]);
    assert!(error.contains("--embd-separator"), "{error}");
    let rank = ["-p", "x", "--override-kv", "bitnet-b1.58.pooling_type=int:4"];
    let error = refusal(&[&["embed", "-m", &model], &rank[..]].concat(), 3);
    assert!(error.contains("pooling_type") && error.contains("3 for last"), "{error}");
}
