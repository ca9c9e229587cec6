//! Files that say more, or less, than the demo model does, as a user runs them.

#[path = "../../tests/editor/mod.rs"]
mod editor;
mod program;

use std::path::Path;

use bitnet_runtime::file::gguf::{Array, Gguf, Value};
use editor::Parts;
use program::{answer, both, demo_model, refusal};

const PRE: &str = "tokenizer.ggml.pre";

/// A changed copy of the demo model.
fn file(folder: &Path, name: &str, change: impl FnOnce(&mut Parts)) -> String {
    let mut parts = Parts::of(&Gguf::open(demo_model()).unwrap());
    change(&mut parts);
    let path = folder.join(name);
    std::fs::write(&path, parts.bytes()).unwrap();
    path.to_str().unwrap().to_owned()
}

fn greedy<'a>(path: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let args = ["-m", path, "-p", "KING RICHARD:", "-n", "8", "--temp", "0"];
    args.iter().chain(more).copied().collect()
}

#[test]
fn w1_pre_is_named_by_the_user_where_the_file_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "no-pre.gguf", |file| file.remove(PRE));
    let demo = demo_model();
    let expected = answer(&greedy(&demo, &[]));
    // A text that the default rule cuts otherwise.
    let text = ["-p", "don't 1234!?"];
    let ids =
        |path: &str, more: &[&str]| both(&[&["tokenize", "-m", path], &text[..], more].concat());
    let (own, notes) = ids(&demo, &[]);
    assert!(!notes.contains(PRE), "{notes}");
    let (cut_otherwise, notes) = ids(&path, &[]);
    assert_ne!(cut_otherwise, own);
    assert!(notes.contains("warning: ") && notes.contains("name the pre-tokenizer (--pre)"));
    let name = Gguf::open(&demo).unwrap();
    let name = name.get_str(PRE).unwrap().unwrap().to_owned();
    let by_key = format!("{PRE}=str:{name}");
    for more in [["--pre", name.as_str()], ["--override-kv", by_key.as_str()]] {
        let (found, notes) = ids(&path, &more);
        assert_eq!(found, own);
        assert!(!notes.contains("warning: "), "{notes}");
        let line = format!("key {PRE}: string '{name}', which the file does not have");
        assert!(notes.contains(&line), "{notes}");
        let (text, notes) = both(&greedy(&path, &more));
        assert_eq!(text, expected);
        assert_eq!(notes.matches(&line).count(), 1, "{notes}");
        let shown = answer(&[&["inspect", path.as_str()][..], &more].concat());
        assert!(shown.contains(&format!("string '{name}'")), "{shown}");
    }
    let bench = ["bench", "-m", &path, "--pre", &name, "-p", "1", "-n", "0", "-r", "1"];
    assert!(both(&bench).1.contains("which the file does not have"));
    let message = refusal(&greedy(&path, &["--pre", "klingon"]), 2);
    assert!(
        message.contains("--pre: found 'klingon'") && message.contains("llama-bpe"),
        "{message}"
    );
}

#[test]
fn w1_metadata_is_overridden_as_in_llama_cpp() {
    let demo = demo_model();
    let expected = answer(&greedy(&demo, &[]));
    let base = "bitnet-b1.58.rope.freq_base";
    let other = format!("{base}=float:50");
    let (text, notes) = both(&greedy(&demo, &["--override-kv", &other]));
    assert_ne!(text, expected);
    assert!(notes.contains(&format!("key {base}: f32 50 in place of f32")), "{notes}");
    // Several, by commas and by flags; what changes nothing changes nothing.
    let two = "bitnet-b1.58.expert_count=int:0,general.name=str:other";
    let more = ["--override-kv", two, "--override-kv", "bitnet-b1.58.attention.causal=bool:true"];
    let (text, notes) = both(&greedy(&demo, &more));
    assert_eq!(text, expected);
    assert_eq!(notes.matches("key bitnet-b1.58.").count(), 2, "{notes}");
    for (given, words, code) in [
        ("x", "KEY=TYPE:VALUE", 2),
        ("tokenizer.ggml.pre=int:5", "--override-kv: found i64 5 for key 'tokenizer.ggml.pre'", 2),
        ("bitnet-b1.58.block_count=str:x", "string 'x'", 2),
        ("bitnet-b1.58.logit_scale=float:2", "bitnet-b1.58.logit_scale", 3),
    ] {
        let message = refusal(&greedy(&demo, &["--override-kv", given]), code);
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn w2_the_activation_of_the_file_is_honoured() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "hidden-activation.gguf", |file| {
        for (key, _) in &mut file.kv {
            if let Some(name) = key.strip_prefix("bitnet-b1.58.") {
                *key = format!("bitnet.{name}");
            }
        }
        file.set("general.architecture", Value::Str("bitnet".into()));
        file.set("bitnet.hidden_activation", Value::Str("relu2".into()));
    });
    assert_eq!(answer(&greedy(&path, &[])), answer(&greedy(&demo_model(), &[])));
}

#[test]
fn w3_what_is_not_computed_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let key = "bitnet-b1.58.logit_scale";
    let path = file(folder.path(), "logit-scale.gguf", |file| file.set(key, Value::F32(2.0)));
    let message = refusal(&greedy(&path, &[]), 3);
    assert!(message.contains(&format!("key {key}: found f32 2, expected 1")), "{message}");

    // Tokens that see the last 512 of 1024 positions only.
    let key = "bitnet-b1.58.attention.sliding_window";
    let window = |positions: u32| {
        file(folder.path(), "window.gguf", |file| file.set(key, Value::U32(positions)))
    };
    let message = refusal(&greedy(&window(512), &[]), 3);
    assert!(message.contains(&format!("key {key}: found u32 512")), "{message}");
    assert!(message.contains("this architecture has no window here"), "{message}");
    assert_eq!(answer(&greedy(&window(1024), &[])), answer(&greedy(&demo_model(), &[])));

    // Nothing adds a bias to a norm.
    let bias = |value: f32| {
        file(folder.path(), "norm-bias.gguf", |file| {
            file.add("blk.0.attn_norm.bias", vec![value; 384]);
        })
    };
    let message = refusal(&greedy(&bias(3.0), &[]), 3);
    assert!(message.contains("tensor 'blk.0.attn_norm.bias'"), "{message}");
    assert_eq!(answer(&greedy(&bias(0.0), &[])), answer(&greedy(&demo_model(), &[])));

    let path = file(folder.path(), "new.gguf", |file| {
        file.set("bitnet-b1.58.new", Value::Bool(true));
    });
    let (text, notes) = both(&greedy(&path, &[]));
    assert_eq!(text, answer(&greedy(&demo_model(), &[])));
    assert_eq!(notes.matches("not used: 'bitnet-b1.58.new'").count(), 1, "{notes}");
}

/// The maker's sampling counts where the user says nothing.
#[test]
fn w3_the_sampling_of_the_file_is_the_default() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "sampling.gguf", |file| {
        file.set("general.sampling.temp", Value::F32(0.0));
        file.set("general.sampling.top_k", Value::I32(20));
        file.set("general.sampling.mirostat", Value::I32(1));
    });
    let demo = demo_model();
    let prompt = |path: &'static str| ["-m", path, "-p", "KING RICHARD:", "-n", "24"];
    let path: &'static str = path.leak();
    let demo: &'static str = demo.leak();
    let (text, notes) = both(&prompt(path));
    assert_eq!(text, answer(&[&prompt(demo)[..], &["--temp", "0"]].concat()));
    let line = "sampling: temperature 0, top_k 20, as the file suggests; not offered, and left out: \
                general.sampling.mirostat";
    assert_eq!(notes.matches(line).count(), 1, "{notes}");
    let flags = ["--temp", "1.5", "--seed", "3"];
    let (text, notes) = both(&[&prompt(path)[..], &flags].concat());
    let by_hand = [&prompt(demo)[..], &flags, &["--top-k", "20"]].concat();
    assert_eq!(text, answer(&by_hand));
    assert!(notes.contains("sampling: top_k 20, as the file suggests"), "{notes}");
    assert!(!both(&prompt(demo)).1.contains("sampling:"));
}

#[test]
fn r6_metadata_as_people_have_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let expected = answer(&greedy(&demo_model(), &[]));
    let latin = Value::Bytes(b"J\xf6rg".to_vec());
    let arrays = Value::Array(Array::U32(vec![1024; 6]));
    let cases = [
        ("author-latin1", "general.author", latin, ""),
        ("eot-minus-one", "tokenizer.ggml.eot_token_id", Value::I32(-1), "there is no such token"),
        ("ffn-array", "bitnet-b1.58.feed_forward_length", arrays, ""),
    ];
    for (name, key, value, note) in cases {
        let path = file(folder.path(), &format!("{name}.gguf"), |file| file.set(key, value));
        let (text, notes) = both(&greedy(&path, &[]));
        assert_eq!(text, expected, "{name}");
        let told = notes.lines().filter(|line| !note.is_empty() && line.contains(note)).count();
        assert_eq!(told, usize::from(!note.is_empty()), "{name}: {notes}");
        assert!(answer(&["inspect", &path]).contains(key), "{name}");
    }
    let key = "bitnet-b1.58.feed_forward_length";
    let path = file(folder.path(), "ffn-arrays.gguf", |file| {
        file.set(key, Value::Array(Array::U32(vec![1024, 1024, 512, 1024, 1024, 1024])));
    });
    let message = refusal(&greedy(&path, &[]), 3);
    assert!(message.contains(key) && message.contains("u32 512 for layer 2"), "{message}");
}

/// W7: a row of the embedding that is no number: as input, and as a logit beside others.
#[test]
fn w7_a_row_that_is_no_number_ends_the_text() {
    let folder = tempfile::tempdir().unwrap();
    let row = |id: usize| {
        file(folder.path(), &format!("row-{id}.gguf"), |file| {
            let embedding = &mut file.tensor("token_embd.weight").data;
            for half in embedding[id * 768..(id + 1) * 768].chunks_exact_mut(2) {
                half.copy_from_slice(&0x7e00u16.to_le_bytes());
            }
        })
    };
    // The begin-of-text token is read first.
    let message = refusal(&greedy(&row(0), &[]), 1);
    assert!(message.contains("layer 0, input of attention"), "{message}");
    let path = row(4000);
    for more in [&[][..], &["--temp", "1"], &["--lm-head", "exact"], &["--lm-head", "full"]] {
        let args = ["-m", &path, "-p", "KING RICHARD:", "-n", "8"];
        let message = refusal(&[&args[..], more].concat(), 1);
        assert!(message.contains("gives no numbers any more"), "{message}");
    }
}
