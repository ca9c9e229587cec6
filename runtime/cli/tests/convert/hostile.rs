//! Folders that are malformed, by the numbers of the list of hostile inputs: each is refused in one line that
//! names the file and what is wrong, and nothing is written.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use bitnet_trials::Suite;
use serde_json::{Value, json};

use crate::folder::{Folder, Form, Tensor, raw, text};
use crate::program::{answer, command, refusal, run};

pub fn add(suite: &mut Suite) {
    for (name, weights, says) in weights() {
        suite.add(name, move || weights_are_refused(weights, &says));
    }
    for (name, change, says) in changes() {
        suite.add(name, move || a_changed_folder_is_refused(change, &says));
    }
    suite.add("s16_no_config", s16_no_config);
    suite.add("s20_s21_shards", s20_s21_shards);
    suite.add("s22_python_objects", s22_python_objects);
    suite.add("s23_output_is_an_input", s23_output_is_an_input);
    suite.add("cv06_a_file_cut_anywhere_is_refused", cv06_a_file_cut_anywhere_is_refused);
    suite.add("cv06_bytes_changed_anywhere_never_panic", cv06_bytes_changed_anywhere_never_panic);
    #[cfg(target_os = "linux")]
    {
        suite.add("s24_a_full_disk", linux::s24_a_full_disk);
        suite.add("s25_a_killed_conversion_leaves_nothing", linux::s25_killed);
        suite.add("s26_memory_is_bounded", linux::s26_memory_is_bounded);
    }
}

/// Contents of `model.safetensors` and what the error says.
type Case<T> = (&'static str, T, Vec<&'static str>);

/// One tensor of 4 bytes.
fn one(dtype: &str, shape: &str, offsets: &str) -> Vec<u8> {
    let header =
        format!(r#"{{"x":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#);
    let mut bytes = raw(&header);
    bytes.extend([0; 4]);
    bytes
}

/// Two tensors of 4 bytes at these places, in `data` bytes.
fn two(first: &str, second: &str, data: usize) -> Vec<u8> {
    let entry = |at: &str| format!(r#"{{"dtype":"F32","shape":[1],"data_offsets":{at}}}"#);
    let mut bytes = raw(&format!(r#"{{"a":{},"b":{}}}"#, entry(first), entry(second)));
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn weights() -> Vec<Case<Vec<u8>>> {
    let length = |n: u64| n.to_le_bytes().to_vec();
    let deep = format!("{{\"__metadata__\":{}", "[".repeat(100_000));
    vec![
        ("s01_less_than_8_bytes", vec![1, 2, 3], vec!["3 bytes", "at least 8"]),
        ("s01_empty", vec![], vec!["0 bytes"]),
        ("s02_header_beyond_the_file", length(100), vec!["100 bytes", "file of 8"]),
        ("s03_header_too_long", length(100_000_001), vec!["100000001", "100,000,000"]),
        ("s03_header_of_all_bytes", length(u64::MAX), vec!["18446744073709551615"]),
        ("s04_no_object", raw("[1]"), vec!["'[1]'", "'{'"]),
        (
            "s05_not_utf_8",
            {
                let mut bytes = raw("{\"a\":1}");
                bytes[10] = 0xff;
                bytes
            },
            vec!["UTF-8"],
        ),
        ("s06_not_json", raw("{x}"), vec!["JSON", "line 1"]),
        ("s07_deep_json", raw(&deep), vec!["JSON that breaks a rule"]),
        (
            "s08_a_name_twice",
            raw(
                r#"{"x":{"dtype":"F32","shape":[],"data_offsets":[0,0]},"x":{"dtype":"F32","shape":[],"data_offsets":[0,0]}}"#,
            ),
            vec!["'x' twice"],
        ),
        ("s09_unknown_type", one("F31", "[1]", "[0,4]"), vec!["'x'", "F31"]),
        (
            "s10_shape_overflows",
            one("F32", "[9223372036854775807,3]", "[0,4]"),
            vec!["'x'", "9223372036854775807"],
        ),
        (
            "s10_shape_too_large_a_number",
            one("F32", "[99999999999999999999]", "[0,4]"),
            vec!["'x'"],
        ),
        ("s10_negative_shape", one("F32", "[-1]", "[0,4]"), vec!["'x'"]),
        ("s11_begin_behind_end", one("F32", "[1]", "[4,0]"), vec!["'x'", "[4, 0]"]),
        ("s12_beyond_the_end", one("F32", "[2]", "[0,8]"), vec!["'x'", "[0, 8]", "4 bytes"]),
        (
            "s12_at_the_end_of_numbers",
            one("F32", "[1]", "[18446744073709551612,18446744073709551615]"),
            vec!["'x'"],
        ),
        ("s13_overlap", two("[0,4]", "[2,6]", 6), vec!["'b'", "overlap"]),
        ("s14_hole", two("[0,4]", "[8,12]", 12), vec!["'b'", "hole"]),
        ("s14_bytes_behind", one("F32", "[0]", "[0,0]"), vec!["4 bytes", "no tensor"]),
        (
            "s15_size_and_shape_differ",
            one("F32", "[2]", "[0,4]"),
            vec!["'x'", "8 bytes for F32 [2]"],
        ),
    ]
}

fn weights_are_refused(weights: Vec<u8>, says: &[&str]) {
    let dir = Folder::small("BitNetForCausalLM", Form::Multiply).write_without_weights();
    fs::write(dir.path().join("model.safetensors"), weights).unwrap();
    assert_refused(dir.path(), says);
}

/// Asserts that a folder is refused in one line that says these, and that nothing is written.
fn assert_refused(folder: &Path, says: &[&str]) {
    let before = fs::read_dir(folder).unwrap().count();
    let error = refusal(&["convert", text(folder)], 3);
    let line = error.lines().find(|line| line.starts_with("error: ")).unwrap();
    assert!(line.contains(text(folder)), "{error}");
    for part in says {
        assert!(line.contains(part), "{part}: {error}");
    }
    assert_eq!(error.lines().count(), 1, "{error}");
    assert_eq!(fs::read_dir(folder).unwrap().count(), before);
}

const Q: &str = "model.layers.0.self_attn.q_proj.weight";

fn changes() -> Vec<Case<fn(&mut Folder)>> {
    fn remove(folder: &mut Folder, name: &str) {
        folder.tensors.retain(|tensor| tensor.0 != name);
    }
    fn extra(folder: &mut Folder, name: &str, bytes: Vec<u8>) {
        folder.tensors.push((name.into(), "F32", vec![bytes.len() / 4], bytes));
    }
    fn number(folder: &mut Folder, name: &str, value: f32) {
        folder.tensor(name).3 = value.to_le_bytes().into();
    }
    vec![
        (
            "s17_width",
            |f| f.config["hidden_size"] = json!(256),
            vec!["embed_tokens", "[300, 128]", "[300, 256]"],
        ),
        (
            "s17_layers",
            |f| f.config["num_hidden_layers"] = json!(2),
            vec!["model.layers.1.input_layernorm", "no such tensor"],
        ),
        (
            "s17_a_layer_more_than_said",
            |f| extra(f, "model.layers.1.input_layernorm.weight", vec![0; 512]),
            vec!["model.layers.1.input_layernorm", "no place", "--ignore"],
        ),
        (
            "s17_heads",
            |f| f.config["num_attention_heads"] = json!(4),
            vec!["k_proj", "[16, 128]", "[8, 128]"],
        ),
        (
            "s17_no_heads",
            |f| drop(f.config.remove("num_attention_heads")),
            vec!["num_attention_heads", "no such key"],
        ),
        (
            "s17_heads_as_text",
            |f| f.config["num_attention_heads"] = json!("2"),
            vec!["num_attention_heads", "whole number"],
        ),
        (
            "s17_zero_heads",
            |f| f.config["num_attention_heads"] = json!(0),
            vec!["num_attention_heads", "'0'"],
        ),
        (
            "s17_key_heads",
            |f| f.config["num_key_value_heads"] = json!(3),
            vec!["num_key_value_heads", "divisor"],
        ),
        (
            "s17_huge_width",
            |f| f.config["intermediate_size"] = json!(1u64 << 60),
            vec!["intermediate_size"],
        ),
        ("s17_no_epsilon", |f| drop(f.config.remove("rms_norm_eps")), vec!["rms_norm_eps"]),
        (
            "s17_architecture",
            |f| f.config["architectures"] = json!(["GPT2LMHeadModel"]),
            vec!["'GPT2LMHeadModel'", "LlamaForCausalLM"],
        ),
        (
            "s17_activation",
            |f| f.config["hidden_act"] = json!("gelu"),
            vec!["'gelu'", "relu2, silu or gelu_pytorch_tanh"],
        ),
        (
            "s17_method",
            |f| f.config["quantization_config"]["quant_method"] = json!("awq"),
            vec!["quantization_config.quant_method", "'awq'"],
        ),
        (
            "s17_rotary_scaling",
            |f| drop(f.config.insert("rope_scaling".into(), json!({ "rope_type": "longrope" }))),
            vec!["rope_scaling.rope_type", "'longrope'"],
        ),
        (
            "s17_window",
            |f| drop(f.config.insert("sliding_window".into(), json!(64))),
            vec!["sliding_window", "64"],
        ),
        (
            "s17_norm_missing",
            |f| remove(f, "model.norm.weight"),
            vec!["model.norm.weight", "no such tensor"],
        ),
        (
            "s17_head_missing",
            |f| f.config["tie_word_embeddings"] = json!(false),
            vec!["tie_word_embeddings", "lm_head"],
        ),
        (
            "s18_rows_of_packed_codes",
            |f| f.tensor(Q).2 = vec![16, 256],
            vec!["q_proj.weight", "[16, 256]", "[32, 128]"],
        ),
        (
            "s18_rows_that_are_not_packed",
            |f| {
                let tensor = f.tensor(Q);
                (tensor.1, tensor.2) = ("F32", vec![8, 128]);
            },
            vec!["q_proj.weight", "F32 [8, 128]", "U8"],
        ),
        (
            "s18_code_3",
            |f| f.tensor(Q).3[5 * 128 + 7] |= 0xc0,
            vec!["q_proj.weight", "code 3 at [101, 7]"],
        ),
        (
            "s19_scale_missing",
            |f| remove(f, &format!("{Q}_scale")),
            vec!["q_proj.weight_scale", "no such tensor"],
        ),
        (
            "s19_scale_of_two",
            |f| {
                let tensor = f.tensor("model.layers.0.self_attn.q_proj.weight_scale");
                (tensor.2, tensor.3) = (vec![2], vec![0; 8]);
            },
            vec!["q_proj.weight_scale", "F32 [2]", "one number"],
        ),
        (
            "s19_scale_zero",
            |f| number(f, &format!("{Q}_scale"), 0.0),
            vec!["q_proj.weight_scale", "--scale"],
        ),
        (
            "s19_scale_not_a_number",
            |f| number(f, &format!("{Q}_scale"), f32::NAN),
            vec!["q_proj.weight_scale"],
        ),
        (
            "s19_scale_of_the_other_meaning",
            |f| number(f, &format!("{Q}_scale"), 40.0),
            vec!["q_proj.weight_scale", "4e1", "2.5e-2", "--scale"],
        ),
        (
            "a_norm_of_integers",
            |f| f.tensor("model.norm.weight").1 = "I16",
            vec!["model.norm.weight", "I16"],
        ),
        (
            "a_norm_that_is_not_finite",
            |f| f.tensor("model.norm.weight").3[6..8].copy_from_slice(&[0x80, 0x7f]),
            vec!["model.norm.weight", "inf at 3"],
        ),
        (
            "no_tokenizer_type",
            |f| f.tokenizer["model"]["type"] = json!("Unigram"),
            vec!["tokenizer.json", "'Unigram'"],
        ),
        (
            "tokenizer_id_beyond_the_embedding",
            |f| f.tokenizer["model"]["vocab"]["the"] = json!(300),
            vec!["tokenizer.json", "id 300 of 'the'", "300"],
        ),
        ("tokenizer_of_a_list", |f| f.tokenizer = json!([]), vec!["tokenizer.json", "JSON"]),
        (
            "bos_that_is_no_token",
            |f| f.tokenizer_config["bos_token"] = json!("<none>"),
            vec!["tokenizer_config.json", "bos_token", "'<none>'"],
        ),
        (
            "merges_of_unknown_parts",
            |f| f.tokenizer["model"]["merges"] = json!(["q z"]),
            vec!["merges"],
        ),
        (
            "a_template_of_numbers",
            |f| f.tokenizer_config["chat_template"] = json!(5),
            vec!["chat_template"],
        ),
    ]
}

fn a_changed_folder_is_refused(change: fn(&mut Folder), says: &[&str]) {
    let mut folder = Folder::small("BitNetForCausalLM", Form::Multiply);
    change(&mut folder);
    assert_refused(folder.write().path(), says);
}

fn s16_no_config() {
    let dir = Folder::small("BitNetForCausalLM", Form::Multiply).write();
    let config = dir.path().join("config.json");
    for (contents, says) in
        [("[]", "JSON"), ("{", "JSON"), ("\u{feff}{}", "JSON"), ("{}", "architectures")]
    {
        fs::write(&config, contents).unwrap();
        assert_refused(dir.path(), &["config.json", says]);
    }
    fs::write(&config, vec![b' '; (1 << 20) + 1]).unwrap();
    assert_refused(dir.path(), &["config.json", "1048576"]);
    fs::remove_file(&config).unwrap();
    let error = refusal(&["convert", text(dir.path())], 6);
    assert!(error.contains("config.json: cannot open"), "{error}");
    fs::create_dir(&config).unwrap();
    let error = refusal(&["convert", text(dir.path())], 6);
    assert!(error.contains("not a regular file"), "{error}");
}

fn s20_s21_shards() {
    let folder = Folder::small("BitNetForCausalLM", Form::Multiply);
    let dir = folder.write_sharded(2);
    let path = dir.path().join("model.safetensors.index.json");
    let index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut changed = index.clone();
        change(&mut changed["weight_map"]);
        fs::write(&path, changed.to_string()).unwrap();
    };
    for name in ["../../x", "/etc/passwd", "a/b", ".", "..", "", "a\\b", "./x"] {
        with(&|map| map[Q] = json!(name));
        assert_refused(dir.path(), &["index.json", "weight_map", "same folder"]);
    }
    with(&|map| map[Q] = json!("model-00002-of-00002.safetensors"));
    let own = index["weight_map"][Q].as_str().unwrap();
    assert!(own.contains("00001"));
    assert_refused(dir.path(), &["index.json", Q, "which does not hold it"]);
    with(&|map| drop(map.as_object_mut().unwrap().remove(Q)));
    assert_refused(dir.path(), &["index.json", Q, "no such name"]);
    with(&|map| map["model.more"] = json!(own));
    assert_refused(dir.path(), &["index.json", "model.more"]);
    fs::write(&path, r#"{"weight_map":5}"#).unwrap();
    assert_refused(dir.path(), &["index.json", "JSON"]);
    // A tensor in two files.
    with(&|_| ());
    let (half, rest) = folder.tensors.split_at(folder.tensors.len().div_ceil(2));
    let twice: Vec<Tensor> = half[..1].iter().chain(rest).cloned().collect();
    let second = dir.path().join("model-00002-of-00002.safetensors");
    fs::write(&second, Folder::file(&twice)).unwrap();
    assert_refused(dir.path(), &["00002-of-00002", "it again, after"]);
    fs::remove_file(&second).unwrap();
    let error = refusal(&["convert", text(dir.path())], 6);
    assert!(error.contains("model-00002-of-00002.safetensors: cannot open"), "{error}");
}

fn s22_python_objects() {
    let dir = Folder::small("BitNetForCausalLM", Form::Multiply).write_without_weights();
    assert_refused(dir.path(), &["no safetensors file"]);
    fs::write(dir.path().join("pytorch_model.bin"), "x").unwrap();
    assert_refused(dir.path(), &["'pytorch_model.bin'", "not read", "save_pretrained"]);
}

fn s23_output_is_an_input() {
    let dir = Folder::small("BitNetForCausalLM", Form::Multiply).write();
    for name in ["model.safetensors", "config.json", "tokenizer.json", "new.json"] {
        let output = dir.path().join(name);
        let before = fs::read(&output).ok();
        let args = ["convert", text(dir.path()), "-o", text(&output), "--force"];
        assert!(refusal(&args, 2).contains("which is read"), "{name}");
        assert!(fs::read(&output).ok() == before);
    }
    let output = dir.path().join("m.gguf");
    fs::write(&output, "mine").unwrap();
    let error = refusal(&["convert", text(dir.path()), "-o", text(&output)], 2);
    assert!(error.contains("--force"), "{error}");
    assert_eq!(fs::read(&output).unwrap(), b"mine");
}

fn cv06_a_file_cut_anywhere_is_refused() {
    let folder = Folder::small("BitNetForCausalLM", Form::Multiply);
    let dir = folder.write();
    let path = dir.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let ends = [0, 7, 8, 9, header / 2, header - 1, header, header + 1, whole.len() - 1];
    for end in ends {
        fs::write(&path, &whole[..end]).unwrap();
        assert_refused(dir.path(), &["model.safetensors"]);
    }
}

/// Whatever a byte of a header or of a file of JSON is changed to, the program ends with an answer.
fn cv06_bytes_changed_anywhere_never_panic() {
    let dir = Folder::small("LlamaForCausalLM", Form::Divide).write();
    let output = dir.path().join("out.gguf");
    let mut random = bitnet_runtime::random::Random::new(22);
    for name in ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"] {
        let path = dir.path().join(name);
        let whole = fs::read(&path).unwrap();
        let end = whole.len().min(3000) as u64;
        for _ in 0..25 {
            let mut changed = whole.clone();
            for _ in 0..1 + random.below(3) {
                changed[random.below(end) as usize] = random.below(256) as u8;
            }
            fs::write(&path, changed).unwrap();
            let output = run(&["convert", text(dir.path()), "-o", text(&output), "--force"]);
            let errors = String::from_utf8_lossy(&output.stderr);
            let code = output.status.code();
            assert!(matches!(code, Some(0 | 2 | 3 | 6)), "{name}: {code:?} {errors}");
            assert!(!errors.contains("panicked"), "{name}: {errors}");
        }
        fs::write(&path, whole).unwrap();
    }
    answer(&["convert", text(dir.path()), "-o", text(&output), "--force"]);
}

#[cfg(target_os = "linux")]
mod linux {
    use std::os::unix::process::ExitStatusExt;
    use std::time::Duration;

    use bitnet_runtime::file::gguf::Gguf;
    use rustix::process::Signal;

    use super::*;
    use crate::program::demo_model;

    /// The device that is always full, and a limit on the size of files.
    pub fn s24_a_full_disk() {
        let dir = Folder::small("BitNetForCausalLM", Form::Multiply).write();
        let error = refusal(&["convert", text(dir.path()), "-o", "/dev/full"], 6);
        assert!(error.contains("/dev/full: cannot write"), "{error}");
        let before = fs::read_dir(dir.path()).unwrap().count();
        let program = env!("CARGO_BIN_EXE_bitnet-run");
        // Files of at most 16 blocks of 512 or 1024 bytes; the signal that says so is ignored.
        let script = "trap '' XFSZ; ulimit -f 16; exec \"$0\" convert \"$1\"";
        let output = std::process::Command::new("sh")
            .args(["-c", script, program, text(dir.path())])
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(6), "{errors}");
        assert!(errors.contains("cannot write"), "{errors}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), before);
    }

    /// At whatever moment a conversion is killed, there is the whole file, or none.
    pub fn s25_killed() {
        let demo = Gguf::open(demo_model()).unwrap();
        let dir = Folder::demo(&demo, Form::Multiply).write();
        let output = dir.path().join("m.gguf");
        let before = fs::read_dir(dir.path()).unwrap().count();
        let (mut killed, mut whole) = (0, 0);
        for moment in 0..50 {
            let args = ["convert", text(dir.path()), "-o", text(&output)];
            let mut child = command(&args).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(moment * 8));
            child.kill().unwrap();
            let status = child.wait().unwrap();
            killed += usize::from(status.signal() == Some(Signal::KILL.as_raw()));
            let names: Vec<_> =
                fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            if output.exists() {
                assert_eq!(names.len(), before + 1, "{names:?}");
                let found = Gguf::open(&output).unwrap();
                assert_eq!(found.tensors().len(), demo.tensors().len());
                fs::remove_file(&output).unwrap();
                whole += 1;
            } else {
                assert_eq!(names.len(), before, "{names:?}");
            }
        }
        assert!(killed > 0 && killed + whole >= 50, "{killed} killed, {whole} whole");
    }

    /// A folder of masters, 32 matrices of 16 MB in a file that is nearly all holes, is converted in far
    /// less memory than it has bytes.
    pub fn s26_memory_is_bounded() {
        let mut folder = Folder::small("BitNetForCausalLM", Form::Floats);
        folder.tensors.clear();
        let (hidden, ffn, layers) = (2048, 4096, 8);
        for (key, value) in [
            ("hidden_size", hidden),
            ("intermediate_size", ffn),
            ("num_hidden_layers", layers),
            ("num_attention_heads", 16),
            ("num_key_value_heads", 16),
        ] {
            folder.config[key] = json!(value);
        }
        let mut shapes: Vec<(String, Vec<usize>)> = vec![
            ("model.embed_tokens.weight".into(), vec![300, hidden]),
            ("model.norm.weight".into(), vec![hidden]),
        ];
        for layer in 0..layers {
            let mut add = |name: &str, shape: &[usize]| {
                shapes.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
            };
            for name in ["input_layernorm", "post_attention_layernorm", "self_attn.attn_sub_norm"] {
                add(name, &[hidden]);
            }
            add("mlp.ffn_sub_norm", &[ffn]);
            for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
                add(&format!("self_attn.{name}"), &[hidden, hidden]);
            }
            add("mlp.gate_proj", &[ffn, hidden]);
            add("mlp.up_proj", &[ffn, hidden]);
            add("mlp.down_proj", &[hidden, ffn]);
        }
        let (mut header, mut at) = (serde_json::Map::new(), 0);
        for (name, shape) in shapes {
            let bytes = 2 * shape.iter().product::<usize>();
            let entry =
                json!({ "dtype": "BF16", "shape": shape, "data_offsets": [at, at + bytes] });
            header.insert(name, entry);
            at += bytes;
        }
        let dir = folder.write_without_weights();
        let path = dir.path().join("model.safetensors");
        let header = raw(&Value::Object(header).to_string());
        fs::write(&path, &header).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len((header.len() + at) as u64).unwrap();
        assert!(at > 600 << 20);
        // Memory that a process may take at all.
        let script = "ulimit -v 400000; exec \"$0\" convert \"$1\" -o \"$1/m.gguf\"";
        let output = std::process::Command::new("sh")
            .args(["-c", script, env!("CARGO_BIN_EXE_bitnet-run"), text(dir.path())])
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        // All are zeros.
        assert!(errors.contains("warning"), "{errors}");
    }
}
