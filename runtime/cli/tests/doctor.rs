//! `bitnet-run doctor`, `energy`, `completions` and `man` as a user runs them.

mod program;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bitnet_runtime::file::gguf::Gguf;
use program::{answer, demo_model, refusal, run};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The exit code and the findings of a run.
fn findings(args: &[&str]) -> (i32, Vec<Value>) {
    let output = run(&[&["doctor", "--json"], args].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    let all: Vec<Value> = serde_json::from_slice(&output.stdout).expect(&errors);
    (output.status.code().unwrap(), all)
}

fn level<'v>(findings: &'v [Value], item: &str) -> Option<&'v str> {
    findings.iter().find(|finding| finding["item"] == item)?["level"].as_str()
}

/// The code is that of the worst finding, whatever this machine is like.
fn code_of(findings: &[Value]) -> i32 {
    let has = |level: &str| findings.iter().any(|finding| finding["level"] == level);
    if has("error") { 3 } else { i32::from(has("warning")) }
}

#[test]
fn a_good_model_is_found_good() {
    let demo = demo_model();
    let (code, all) = findings(&["-m", &demo]);
    assert_eq!(code, code_of(&all));
    for item in [
        "cpu",
        "memory",
        "file",
        "hyperparameters",
        "tokenizer",
        "end of text",
        "scales",
        "weights",
        "numbers",
    ] {
        assert!(level(&all, item).is_some(), "{item}: {all:?}");
    }
    for item in
        ["file", "hyperparameters", "tokenizer", "end of text", "scales", "weights", "numbers"]
    {
        assert_eq!(level(&all, item), Some("ok"), "{item}");
    }
    // It has no template, and nobody tuned it.
    for item in ["chat template", "profile"] {
        assert_eq!(level(&all, item), Some("note"), "{item}");
        let finding = all.iter().find(|finding| finding["item"] == item).unwrap();
        assert!(finding["advice"].is_string());
    }
    let output = run(&["doctor", "-m", &demo]);
    let lines = String::from_utf8(output.stdout).unwrap();
    assert!(lines.contains("bitnet-tune --model") && lines.contains("ok       numbers"), "{lines}");
    let (_, machine) = findings(&[]);
    assert!(level(&machine, "cpu").is_some() && level(&machine, "file").is_none());
}

#[test]
fn a_bad_model_is_told_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let demo = fs::read(demo_model()).unwrap();
    let gguf = Gguf::open(demo_model()).unwrap();
    let tensor = gguf.tensor("blk.2.attn_q.weight").unwrap();
    let (first, bytes) = (tensor.offset as usize, tensor.bytes as usize);
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = demo.clone();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        findings(&["-m", text(&path)])
    };
    let (code, all) = with(&|bytes| bytes.truncate(1000));
    assert_eq!((code, level(&all, "file")), (3, Some("error")));
    let (code, all) = with(&|bytes| bytes[first + 7] |= 0xc0);
    assert_eq!((code, level(&all, "weights")), (3, Some("error")));
    // A matrix of zeros runs.
    let (code, all) = with(&|data| data[first..first + bytes - 32].fill(0x55));
    assert_eq!((code, level(&all, "weights")), (1, Some("warning")));
    let scale = first + bytes - 32;
    let (code, all) = with(&|data| data[scale..scale + 4].copy_from_slice(&25f32.to_le_bytes()));
    assert_eq!((code, level(&all, "scales")), (1, Some("warning")));
    let missing = dir.path().join("none.gguf");
    let output = run(&["doctor", "-m", text(&missing)]);
    assert_eq!(output.status.code(), Some(6));
}

/// Counters of a tree that a thread counts up, two packages and one that counts them again.
#[test]
fn ev05_energy_is_read_of_the_counters() {
    let root = tempfile::tempdir().unwrap();
    let zones =
        [("intel-rapl:0", "package-0"), ("intel-rapl:1", "package-1"), ("intel-rapl:2", "psys")];
    for (folder, name) in zones {
        let folder = root.path().join(folder);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("name"), name).unwrap();
        fs::write(folder.join("max_energy_range_uj"), "1000000000").unwrap();
        fs::write(folder.join("energy_uj"), "999999000").unwrap();
    }
    let done = Arc::new(AtomicBool::new(false));
    let counting = Arc::clone(&done);
    let path = root.path().to_path_buf();
    let counter = std::thread::spawn(move || {
        let mut energy = 999_999_000u64;
        while !counting.load(Ordering::Relaxed) {
            energy = (energy + 50_000) % 1_000_000_000;
            for (folder, _) in zones {
                // As a whole, so that no reader sees half of a number.
                let next = path.join(folder).join("next");
                fs::write(&next, energy.to_string()).unwrap();
                fs::rename(next, path.join(folder).join("energy_uj")).unwrap();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let demo = demo_model();
    let args =
        ["energy", "-m", &demo, "-p", "256", "-n", "32", "-r", "2", "--idle", "1", "--sysfs"];
    let json = run(&[&args[..], &[text(root.path()), "--json"]].concat());
    let table = run(&[&args[..], &[text(root.path())]].concat());
    done.store(true, Ordering::Relaxed);
    counter.join().unwrap();
    let errors = String::from_utf8_lossy(&json.stderr);
    assert!(json.status.success() && errors.contains("package-0, package-1;"), "{errors}");
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(json["idle_watts"].as_f64().unwrap() > 0.0);
    let tests = json["tests"].as_array().unwrap();
    assert_eq!(tests.len(), 2);
    let mut spent = 0.0;
    for test in tests {
        let samples = test["samples"].as_array().unwrap();
        assert_eq!(samples.len(), 2);
        for sample in samples {
            let joules = sample["joules"].as_f64().unwrap();
            // Far below the range of a counter: one that began again is not taken for a leap.
            assert!((0.0..500.0).contains(&joules), "{joules}");
            spent += joules;
        }
    }
    assert!(spent > 0.0);
    let table = String::from_utf8(table.stdout).unwrap();
    for part in ["| pp256 |", "| tg32 |", "J/token", "at rest"] {
        assert!(table.contains(part), "{table}");
    }
}

#[test]
fn ev05_energy_is_not_estimated() {
    let root = tempfile::tempdir().unwrap();
    let demo = demo_model();
    for root in [root.path(), &root.path().join("none")] {
        let error = refusal(&["energy", "-m", &demo, "--sysfs", text(root)], 1);
        assert!(error.contains("nothing is estimated"), "{error}");
    }
}

#[test]
fn shells_and_man_know_all_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = answer(&["completions", shell]);
        for word in ["convert", "perplexity", "--temp"] {
            assert!(script.contains(word.trim_start_matches("--")), "{shell}: {word}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(answer(&["man", text(dir.path())]), "");
    let page = |name: &str| fs::read_to_string(dir.path().join(format!("{name}.1"))).unwrap();
    assert!(
        page("bitnet-run").contains("bitnet\\-run")
            && page("bitnet-run-convert").contains("FOLDER")
    );
    let help = answer(&["--help"]);
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands: Vec<&str> = commands
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.len() > 12, "{commands:?}");
    for command in &commands {
        assert!(page(&format!("bitnet-run-{command}")).contains(".TH"), "{command}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), commands.len() + 1);
    let missing = dir.path().join("none");
    assert!(refusal(&["man", text(&missing)], 6).contains("cannot write"));
}
