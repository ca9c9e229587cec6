//! Kinds of file as a user meets them: models in several files, files of other engines, widths that a
//! file merely claims.

#[path = "../../tests/editor/mod.rs"]
mod editor;
mod program;

use std::path::{Path, PathBuf};

use bitnet_runtime::file::gguf::{Array, Gguf, Value};
use editor::{Parts, sound};
use program::{answer, both, demo_model, refusal};

fn demo() -> Parts {
    Parts::of(&Gguf::open(demo_model()).unwrap())
}

/// Writes the demo model in two parts, and returns their paths.
fn split(folder: &Path) -> [PathBuf; 2] {
    let parts = demo().split(2);
    [0, 1].map(|i| {
        let path = folder.join(&parts[i].0);
        std::fs::write(&path, parts[i].1.bytes()).unwrap();
        path
    })
}

fn greedy(model: &str) -> [&str; 8] {
    ["-m", model, "-p", "KING RICHARD:", "-n", "24", "--temp", "0"]
}

#[test]
fn r5_a_model_in_parts_writes_its_text() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = split(folder.path());
    let (first, second) = (first.to_str().unwrap(), second.to_str().unwrap());
    let text = answer(&greedy(&demo_model()));
    assert_eq!(answer(&greedy(first)), text);
    assert_eq!(answer(&[&greedy(first)[..], &["--no-mmap"]].concat()), text);
    let report = answer(&[&greedy(first)[..], &["--json"]].concat());
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let bytes = [first, second].map(|path| std::fs::metadata(path).unwrap().len());
    assert_eq!(report["memory"]["file_bytes"], bytes.iter().sum::<u64>());

    let shown = answer(&["inspect", first]);
    for words in ["parts: 2", second, "tensors: 68", "of part 2"] {
        assert!(shown.contains(words), "no {words} in {shown}");
    }
    assert!(shown.contains(&format!("{} bytes", bytes.iter().sum::<u64>())), "{shown}");

    let message = refusal(&greedy(second), 3);
    for word in ["part 2 of 2", "the first part", first] {
        assert!(message.contains(word), "{message} lacks {word}");
    }
    // A part alone can be looked at.
    let (shown, notes) = both(&["inspect", second]);
    assert!(shown.contains("tensors: 34") && shown.contains("split.no"), "{shown}");
    assert!(notes.contains("this part is shown alone"), "{notes}");
    std::fs::remove_file(second).unwrap();
    let message = refusal(&greedy(first), 6);
    assert!(message.contains(second) && message.contains("part 2 of 2"), "{message}");
    let (shown, notes) = both(&["inspect", first]);
    assert!(shown.contains("general.architecture") && notes.contains(second), "{shown} {notes}");
}

#[test]
fn r8_inspect_shows_a_type_that_nobody_knows_as_a_number() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let file = path.to_str().unwrap();
    let mut parts = demo();
    parts.set("general.architecture", Value::Str("something-new".into()));
    parts.set("tokenizer.ggml.pre", Value::Str("unheard-of".into()));
    let nested = [Array::U8(vec![1, 2]), Array::Str(["a"].iter().collect())];
    parts.set("something-new.tables", Value::Array(Array::Array(nested.into())));
    parts.tensors.retain(|tensor| tensor.name != "output_norm.weight");
    std::fs::write(&path, parts.bytes_with_type("blk.2.attn_k.weight", 9999)).unwrap();
    let shown = answer(&["inspect", file]);
    let line = shown.lines().find(|line| line.contains("blk.2.attn_k.weight")).unwrap();
    assert!(line.contains("type 9999") && line.contains("[384, 128]"), "{line}");
    for words in [
        "'something-new'",
        "'unheard-of'",
        "array of 2 array: [[1, 2], ['a']]",
        "tensors: 67",
        "type 9999     1 tensors",
    ] {
        assert!(shown.contains(words), "no {words} in {shown}");
    }
    // To run the model is another matter.
    std::fs::write(&path, demo().bytes_with_type("blk.2.attn_k.weight", 9999)).unwrap();
    let message = refusal(&greedy(file), 3);
    assert!(message.contains("blk.2.attn_k.weight") && message.contains("type 9999"), "{message}");
}

/// Not a word of memory, which other programs would have to give up.
#[test]
fn h10_widths_that_a_file_merely_claims_are_the_files_fault() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let claims = [
        (1 << 24, ["feed_forward_length", "1 to 262144"]),
        (1 << 18, ["blk.0.ffn_sub_norm.weight", "[262144]"]),
    ];
    let file = path.to_str().unwrap();
    for (width, words) in claims {
        for (mut parts, architecture) in [(sound("bitnet"), "bitnet"), (demo(), "bitnet-b1.58")] {
            let mut set = |key: &str, n| parts.set(&format!("{architecture}.{key}"), Value::U32(n));
            set("feed_forward_length", width);
            set("block_count", 1024);
            std::fs::write(&path, parts.bytes()).unwrap();
            let bench = ["bench", "-p", "4", "-n", "1", "-r", "1", "-m", file];
            let run = greedy(file);
            // The tiny model has no tokenizer.
            let runs =
                if architecture == "bitnet" { vec![&bench[..]] } else { vec![&bench[..], &run] };
            for args in runs {
                let message = refusal(args, 3);
                for word in words {
                    assert!(message.contains(word), "{args:?}: {message} lacks {word}");
                }
                assert!(!message.contains("other programs"), "{message}");
            }
        }
    }
}
