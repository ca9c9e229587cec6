//! A folder as large as BitNet b1.58 2B-4T's masters, 4.8 GB of holes, is converted in little memory, and a
//! conversion that is killed leaves nothing.
//!
//! Both tests are slow, and run by name: `cargo test --workspace --release --test large -- --ignored`.
#![cfg(target_os = "linux")]

#[path = "convert/folder.rs"]
#[allow(dead_code, reason = "it makes other folders, too")]
mod folder;
mod program;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use bitnet_runtime::file::gguf::{Gguf, TensorType};
use folder::{Folder, Form, raw, text};
use program::command;
use rustix::process::Signal;
use serde_json::{Map, json};
use tempfile::TempDir;

/// Layers and tokens of the model.
const WHOLE: (usize, usize) = (30, 128_256);
/// The same widths, in a 25th of the bytes.
const PART: (usize, usize) = (1, 8192);
const HIDDEN: usize = 2560;
const FFN: usize = 6912;
const KEYS: usize = 640;
/// The most memory that a conversion may take, in KiB: an eighth of the file.
const MOST_MEMORY: u64 = 600 << 10;
/// Moments at which a conversion is killed.
const KILLS: u64 = 50;

/// Writes a folder; its weights are zeros that fill no disk.
fn folder((layers, vocab): (usize, usize)) -> TempDir {
    let mut small = Folder::small("BitNetForCausalLM", Form::Floats);
    for (key, value) in [
        ("hidden_size", HIDDEN),
        ("intermediate_size", FFN),
        ("num_hidden_layers", layers),
        ("num_attention_heads", 20),
        ("num_key_value_heads", 5),
        ("vocab_size", vocab),
        ("max_position_embeddings", 4096),
    ] {
        small.config.insert(key.into(), json!(value));
    }
    let mut tensors = vec![
        ("model.embed_tokens".to_owned(), vec![vocab, HIDDEN]),
        ("model.norm".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..layers {
        let shapes: [(&str, &[usize]); 11] = [
            ("input_layernorm", &[HIDDEN]),
            ("post_attention_layernorm", &[HIDDEN]),
            ("self_attn.attn_sub_norm", &[HIDDEN]),
            ("mlp.ffn_sub_norm", &[FFN]),
            ("self_attn.q_proj", &[HIDDEN, HIDDEN]),
            ("self_attn.k_proj", &[KEYS, HIDDEN]),
            ("self_attn.v_proj", &[KEYS, HIDDEN]),
            ("self_attn.o_proj", &[HIDDEN, HIDDEN]),
            ("mlp.gate_proj", &[FFN, HIDDEN]),
            ("mlp.up_proj", &[FFN, HIDDEN]),
            ("mlp.down_proj", &[HIDDEN, FFN]),
        ];
        let named =
            shapes.map(|(name, shape)| (format!("model.layers.{layer}.{name}"), shape.into()));
        tensors.extend(named);
    }
    let mut header = Map::new();
    let mut at = 0;
    for (name, shape) in tensors {
        let end = at + 2 * shape.iter().product::<usize>() as u64;
        let entry = json!({ "dtype": "BF16", "shape": shape, "data_offsets": [at, end] });
        header.insert(format!("{name}.weight"), entry);
        at = end;
    }
    let dir = small.write_without_weights();
    let mut file = File::create(dir.path().join("model.safetensors")).unwrap();
    let head = raw(&serde_json::Value::Object(header).to_string());
    file.write_all(&head).unwrap();
    file.set_len(head.len() as u64 + at).unwrap();
    dir
}

fn start(folder: &Path, output: &Path, more: &[&str]) -> Child {
    let mut convert = command(&[&["convert", text(folder), "-o", text(output)], more].concat());
    convert.stderr(Stdio::null()).spawn().unwrap()
}

/// A number that the system counts of a process: of a line `name: number` of a file in its folder in `/proc`;
/// none once it has ended.
fn counted(child: &Child, file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{}/{file}", child.id())).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// CV09, S26: peak memory.
#[test]
#[ignore = "writes 1.2 GB and reads 9.6"]
fn cv09_a_large_folder_takes_little_memory() {
    let folder = folder(WHOLE);
    let weights = fs::metadata(folder.path().join("model.safetensors")).unwrap().len();
    assert!(weights > 4_800_000_000, "{weights}");
    let output = folder.path().join("m.gguf");
    let mut child = start(folder.path(), &output, &[]);
    let mut most = 0;
    let status = loop {
        most = most.max(counted(&child, "status", "VmHWM:").unwrap_or_default());
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None => sleep(Duration::from_millis(2)),
        }
    };
    assert!(status.success(), "{status}");
    assert!(most > 0 && most < MOST_MEMORY, "{most} KiB");
    println!("peak memory: {} MiB", most >> 10);
    let gguf = Gguf::open(&output).unwrap();
    gguf.check_whole().unwrap();
    let ternary = gguf.tensors().iter().filter(|tensor| tensor.ty == TensorType::I2_S);
    assert_eq!(ternary.count(), WHOLE.0 * 7);
}

/// CV09, S25: from before the first byte to behind the last, there is the old file or none, and nothing
/// beside it.
#[test]
#[ignore = "converts 0.2 GB fifty times"]
fn cv09_a_conversion_that_is_killed_anywhere_leaves_nothing() {
    let folder = folder(PART);
    let target = tempfile::tempdir().unwrap();
    let output = target.path().join("m.gguf");
    // What a whole conversion writes: header, tensors, and some lines for people.
    let mut whole = start(folder.path(), &output, &[]);
    let mut all = 0;
    while whole.try_wait().unwrap().is_none() {
        all = all.max(counted(&whole, "io", "wchar:").unwrap_or_default());
        sleep(Duration::from_millis(2));
    }
    assert!(whole.wait().unwrap().success());
    let size = fs::metadata(&output).unwrap().len();
    assert!(all >= size, "{all} of {size} bytes");
    fs::remove_file(&output).unwrap();
    for kill in 0..KILLS {
        // Every second time there is a file to be replaced.
        let old = kill % 2 == 1;
        if old {
            fs::write(&output, "precious").unwrap();
        }
        let mut child = start(folder.path(), &output, &["--force"]);
        // The last point is the last byte: what follows is the disk's work and the new name.
        let point = size * kill / (KILLS - 1);
        let begin = Instant::now();
        let mut ended = None;
        while ended.is_none() && counted(&child, "io", "wchar:").unwrap_or_default() < point {
            assert!(begin.elapsed() < Duration::from_secs(600), "{point} is not reached");
            sleep(Duration::from_micros(200));
            ended = child.try_wait().unwrap();
        }
        child.kill().unwrap();
        let status = child.wait().unwrap();
        let names: Vec<_> =
            fs::read_dir(target.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        if status.success() {
            // It was done before the signal came.
            assert_eq!(fs::metadata(&output).unwrap().len(), size);
            fs::remove_file(&output).unwrap();
            continue;
        }
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{status}");
        if old {
            assert_eq!(names, ["m.gguf"], "killed at {point}");
            assert_eq!(fs::read_to_string(&output).unwrap(), "precious", "killed at {point}");
            fs::remove_file(&output).unwrap();
        } else {
            assert!(names.is_empty(), "killed at {point}: {names:?}");
        }
    }
}
