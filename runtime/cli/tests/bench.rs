//! `bitnet-run bench` as a user, or a script made for llama-bench, runs it.

mod program;

use bitnet_profiles::registry::Generic;
use bitnet_profiles::{Isa, Role, Shape};
use bitnet_runtime::cpu::kernels;
use program::{answer, both, demo_model, package, refusal};
use serde_json::Value;

/// The name of the profile that serves the demo model by default, and its pair.
fn default_of_demo() -> (&'static str, Generic) {
    let shipped = kernels::shipped();
    let down = [Shape::new(384, 1024)];
    let (name, _) = shipped.ternary(None, Isa::best());
    (name, shipped.pair(Role::Down, &down, None, Isa::best()))
}

#[test]
fn the_table_is_llama_bench_s_with_more_columns() {
    let model = demo_model();
    let (text, errors) = both(&[
        "bench", "-m", &model, "-p", "8,16", "-n", "4", "-pg", "8,2", "-t", "1-2", "-r", "2",
    ]);
    let (name, default) = default_of_demo();
    let profile = format!("{name} for {}", default.isa());
    assert!(errors.contains(&format!("profile: {profile} (")), "{errors}");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("| model "), "{text}");
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let titles = cells(lines[0]);
    assert_eq!(titles[1..7], ["size", "params", "backend", "threads", "test", "t/s"]);
    assert!(lines[1].chars().all(|c| "|-: ".contains(c)), "{text}");
    let rows: Vec<Vec<String>> =
        lines[2..].iter().take_while(|l| l.starts_with('|')).map(|l| cells(l)).collect();
    let tests: Vec<(&str, &str)> = rows.iter().map(|row| (&*row[4], &*row[5])).collect();
    let of = |threads| ["pp8", "pp16", "tg4", "pp8+tg2"].map(|test| (threads, test));
    assert_eq!(tests, [of("1"), of("2")].concat());
    for row in &rows {
        assert_eq!(row.len(), titles.len());
        assert_eq!(row[0], "bitnet-b1.58 11M I2_S - 2 bpw ternary");
        assert_eq!(row[1..4], ["5.30 MiB", "11.02 M", "CPU"]);
        let (mean, deviation) = row[6].split_once(" ± ").unwrap();
        assert!(mean.parse::<f64>().unwrap() > 0.0 && deviation.parse::<f64>().unwrap() >= 0.0);
        // What is read is known for generations, what is multiplied for prompts.
        // One sequence has nothing to share.
        assert_eq!(row[7], "-");
        let (read, multiplied) = (&row[9], &row[10]);
        assert_eq!(read.contains("% of"), row[5].starts_with("tg"), "{row:?}");
        assert_eq!(*multiplied != "-", !row[5].contains("tg"), "{row:?}");
    }
    assert!(lines.last().unwrap().starts_with("build: "));
}

#[test]
fn json_has_llama_bench_s_keys() {
    let model = demo_model();
    let args = [
        "bench",
        "-m",
        &model,
        "-p",
        "8",
        "-n",
        "4",
        "-d",
        "16",
        "-t",
        "2",
        "-r",
        "3",
        "-o",
        "json",
        "--isa",
        "scalar",
        "-ctk",
        "f16",
        "-mmp",
        "0",
        "--cpu-strict",
        "0",
        "--huge-pages",
        "0",
    ];
    let rows: Vec<Value> = serde_json::from_str(&answer(&args)).unwrap();
    assert_eq!(rows.len(), 2);
    for (row, (n_prompt, n_gen)) in rows.iter().zip([(8, 0), (0, 4)]) {
        for key in [
            "build_commit",
            "build_number",
            "cpu_info",
            "backends",
            "n_batch",
            "n_ubatch",
            "test_time",
        ] {
            assert!(!row[key].is_null(), "{key}");
        }
        assert_eq!(row["model_filename"], model.as_str());
        assert_eq!(row["model_type"], "bitnet-b1.58 11M I2_S - 2 bpw ternary");
        assert_eq!(
            (row["n_prompt"].as_u64(), row["n_gen"].as_u64()),
            (Some(n_prompt), Some(n_gen))
        );
        assert_eq!((row["n_depth"].as_u64(), row["n_threads"].as_u64()), (Some(16), Some(2)));
        for key in ["use_mmap", "cpu_strict", "huge_pages"] {
            assert_eq!(row[key], false, "{key}");
        }
        assert_eq!((&row["type_k"], &row["isa"]), (&"f16".into(), &"scalar".into()));

        let floats = |key: &str| -> Vec<f64> {
            row[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
        };
        let (ns, ts) = (floats("samples_ns"), floats("samples_ts"));
        assert!(ns.len() == 3 && ts.len() == 3, "{row}");
        for (ns, ts) in ns.iter().zip(&ts) {
            assert!((ns * ts / 1e9 / (n_prompt + n_gen) as f64 - 1.0).abs() < 1e-9, "{row}");
        }
        let close = |key: &str, expected: f64| {
            let found = row[key].as_f64().unwrap();
            assert!((found - expected).abs() <= 1e-9 * expected.abs(), "{key}: {found} {expected}");
        };
        let mean = |values: &[f64]| values.iter().sum::<f64>() / 3.0;
        close("avg_ns", mean(&ns));
        close("avg_ts", mean(&ts));
        let squares: f64 = ts.iter().map(|t| (t - mean(&ts)).powi(2)).sum();
        close("stddev_ts", (squares / 2.0).sqrt());
        // All stages lie inside the time of a repetition.
        let stages = row["stage_ns"].as_object().unwrap();
        let total: f64 = stages.values().map(|ns| ns.as_f64().unwrap()).sum();
        assert!(stages["ternary"].as_f64().unwrap() > 0.0);
        assert!(total <= mean(&ns), "{row}");
    }
    // All weights, the head, norms, an embedding row, and on average 16 + 2.5 positions of 6
    // layers of 128 keys and 128 values of 2 bytes.
    let ternary = 6 * (384 * (384 + 128 + 128 + 384) + 3 * 384 * 1024) / 4;
    let (head, norms, row) = (4096 * 384 * 2, 4 * (6 * (3 * 384 + 1024) + 384), 384 * 2);
    let expected = f64::from(ternary + head + norms + row) + 18.5 * f64::from(6 * 2 * 128 * 2);
    let read = &rows[1]["read"];
    assert_eq!(read["per_token"], expected);
    let number = |value: &Value| value.as_f64().unwrap();
    let bytes = &rows[1]["bytes_per_token"];
    let parts = ["weights", "head", "kv", "other"].map(|part| number(&bytes[part]));
    let kv = 18.5 * f64::from(6 * 2 * 128 * 2);
    assert_eq!(parts, [f64::from(ternary), f64::from(head), kv, f64::from(norms + row)]);
    assert!(rows[0]["bytes_per_token"].is_null());
    let per_second = number(&read["per_second"]) / number(&rows[1]["avg_ts"]);
    assert!((per_second / expected - 1.0).abs() < 1e-9);
    assert!(number(&read["share"]) > 0.0 && rows[0]["read"].is_null());
    let multiply = &rows[0]["multiply_add"];
    assert_eq!(multiply["per_token"], f64::from(ternary * 4));
    // The scalar tier has no peak of its own.
    assert!(multiply["share"].is_null() && number(&multiply["per_second"]) > 0.0);
    assert!(rows[1]["multiply_add"].is_null());
}

/// Sequences in parallel: their tokens count together and each, and share what is read.
#[test]
fn sequences_go_in_parallel() {
    let model = demo_model();
    let args = ["bench", "-m", &model, "-p", "4", "-n", "3", "-r", "2", "-npl", "1,3", "-d", "2"];
    let rows: Vec<Value> =
        serde_json::from_str(&answer(&[&args[..], &["-o", "json"]].concat())).unwrap();
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap();
    let parallel: Vec<u64> = rows.iter().map(|row| row["n_parallel"].as_u64().unwrap()).collect();
    assert_eq!(parallel, [1, 1, 3, 3]);
    for row in &rows {
        let n = number(row, "n_parallel");
        assert!((number(row, "sequence_ts") * n / number(row, "avg_ts") - 1.0).abs() < 1e-9);
        let tokens = (number(row, "n_prompt") + number(row, "n_gen")) * n;
        for (ns, ts) in row["samples_ns"].as_array().unwrap().iter().zip(0..) {
            let ts = row["samples_ts"][ts].as_f64().unwrap();
            assert!((ns.as_f64().unwrap() * ts / 1e9 / tokens - 1.0).abs() < 1e-9, "{row}");
        }
    }
    let read = |row: &Value| row["read"]["per_token"].as_f64().unwrap();
    assert!(read(&rows[3]) < read(&rows[1]) / 2.9, "{} {}", read(&rows[3]), read(&rows[1]));
    let table = answer(&args);
    assert!(table.contains(" tg3 @ d2 |") && table.contains(" tg3 @ d2 x 3 |"), "{table}");
    let mistake = refusal(&["bench", "-m", &model, "-np", "0"], 2);
    assert!(mistake.contains("--parallel") && mistake.contains("1..=256"), "{mistake}");
}

#[test]
fn several_models_and_the_profile_are_named() {
    let model = demo_model();
    let args =
        ["bench", "-m", &model, "-m", &model, "-p", "4", "-n", "0", "-r", "1", "--no-warmup"];
    let text = answer(&args);
    assert_eq!(text.matches(" pp4 |").count(), 2, "{text}");
    // llama-bench takes lists.
    let list = format!("{model},{model}");
    let listed = answer(&["bench", "-m", &list, "-p", "4", "-n", "0", "-r", "1", "--no-warmup"]);
    assert_eq!(listed.matches(" pp4 |").count(), 2, "{listed}");
    let (name, default) = default_of_demo();
    assert!(text.contains(&format!("| {name} for ")), "{text}");
    assert!(text.contains(&format!("| {} ", default.layout())), "{text}");
}

/// R9: llama-bench's formats, and what its command lines carry.
#[test]
fn r9_results_come_in_llama_bench_s_formats() {
    let model = demo_model();
    let line = "-p 4,6 -n 0 -r 1 -t 1 -fa 1 -ngl 0 --no-warmup -o";
    let args: Vec<&str> = ["bench", "-m", &model].into_iter().chain(line.split(' ')).collect();
    let text = |format: &str| answer(&[&args[..], &[format]].concat());

    let csv = text("csv");
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), 3, "{csv}");
    let titles: Vec<&str> = lines[0].split(',').collect();
    assert_eq!(titles[..2], ["build_commit", "build_number"]);
    for (line, n) in lines[1..].iter().zip(["4", "6"]) {
        let values: Vec<&str> =
            line.strip_prefix('"').unwrap().strip_suffix('"').unwrap().split("\",\"").collect();
        assert_eq!(values.len(), titles.len(), "{line}");
        let of = |title| values[titles.iter().position(|known| *known == title).unwrap()];
        assert_eq!((of("n_prompt"), of("n_gen"), of("model_filename")), (n, "0", model.as_str()));
        assert_eq!((of("use_mmap"), of("embeddings"), of("n_threads")), ("1", "0", "1"));
        assert!(of("avg_ts").parse::<f64>().unwrap() > 0.0);
    }

    let lines = text("jsonl");
    let rows: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let list: Vec<Value> = serde_json::from_str(&text("json")).unwrap();
    for rows in [&rows, &list] {
        let lengths: Vec<u64> = rows.iter().map(|row| row["n_prompt"].as_u64().unwrap()).collect();
        assert_eq!(lengths, [4, 6]);
        assert!(rows.iter().all(|row| row["samples_ts"].as_array().unwrap().len() == 1));
    }
    assert_eq!(answer(&["bench", "-m", &model, "-p", "0", "-n", "0", "-o", "json"]), "[]\n");

    let sql = text("sql");
    assert!(sql.starts_with("CREATE TABLE IF NOT EXISTS llama_bench (\n  build_commit TEXT,\n"));
    for column in ["  n_prompt INTEGER,\n", "  cpu_strict INTEGER,\n", "  avg_ts REAL,\n"] {
        assert!(sql.contains(column), "{sql}");
    }
    assert_eq!(sql.matches("INSERT INTO llama_bench (build_commit, ").count(), 2, "{sql}");

    // On stderr too, in another format.
    let (table, errors) = both(&[&args[..], &["md", "-oe", "csv"]].concat());
    assert!(table.contains(" pp6 |") && errors.contains("\nbuild_commit,"), "{errors}");
}

/// R9: lists of what llama-bench has lists of, and a column that tells the results apart.
#[test]
fn r9_batches_and_cache_types_come_in_lists() {
    let model = demo_model();
    let args = ["bench", "-m", &model, "-p", "8", "-n", "0", "-r", "1", "--no-warmup"];
    let lists = ["-b", "4", "-b", "8", "-ub", "2,0", "-ctk", "f16,f32"];
    let rows = answer(&[&args[..], &lists, &["-o", "json"]].concat());
    let rows: Vec<Value> = serde_json::from_str(&rows).unwrap();
    let found: Vec<(u64, &str)> = rows
        .iter()
        .map(|row| (row["n_batch"].as_u64().unwrap(), row["type_k"].as_str().unwrap()))
        .collect();
    let of = |batch| [(batch, "f16"), (batch, "f32")];
    assert_eq!(found, [of(2), of(4), of(2), of(8)].concat());
    let table = answer(&[&args[..], &lists].concat());
    assert!(table.contains("| threads | n_batch | type_k |"), "{table}");
    assert!(table.contains(" |       4 | f16    |"), "{table}");
}

#[test]
fn mistakes_are_told() {
    let model = demo_model();
    let vocabulary = package("../tests/data/tokenizers/gpt-2.gguf");
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["-p", "2000", "-n", "0"], 2, &["test pp2000", "2000 positions", "at most 1024"]),
        (&["-p", "0", "-n", "512", "-d", "600"], 2, &["tg512 @ d600", "1112", "1024"]),
        (&["-p", "1,x"], 2, &["--n-prompt", "'x'", "0..=1048576"]),
        (&["-p", "4-1"], 2, &["'4-1' does not grow"]),
        (&["-t", "0"], 2, &["--threads", "1..=1024"]),
        (&["-r", "0"], 2, &["--repetitions", "1..=10000"]),
        (&["-o", "xml"], 2, &["--output", "md, json"]),
        (&["-pg", "5"], 2, &["512,128"]),
        (&["--isa", "mmx"], 2, &["--isa", "scalar"]),
        (&["--profile", &vocabulary], 4, &["gpt-2.gguf"]),
        (&["-m", "no such file"], 6, &["no such file"]),
        (&["-m", &vocabulary], 3, &["gpt-2.gguf"]),
    ];
    for (more, code, words) in cases {
        let base: &[&str] = if more[0] == "-m" { &["bench"] } else { &["bench", "-m", &model] };
        let message = refusal(&[base, more].concat(), *code);
        for word in *words {
            assert!(message.contains(word), "{message} lacks {word}");
        }
    }
    assert!(refusal(&["bench", "-p", "4"], 2).contains("--model"));
}

/// The demo model closes 4 of 5 gates. What is skipped is not read, and is in the report.
#[test]
fn what_is_skipped_is_not_counted_as_read() {
    let model = demo_model();
    let rows = |sparse: &str| -> Value {
        let args =
            ["bench", "-m", &model, "-p", "0", "-n", "8", "-t", "2", "-r", "2", "-o", "json"];
        let args = [&args[..], &["--sparse", sparse]].concat();
        serde_json::from_str(&answer(&args)).unwrap()
    };
    let number = |value: &Value| value.as_f64().unwrap();
    let (on, off, auto) = (rows("on"), rows("off"), rows("auto"));
    let (on, off) = (&on[0], &off[0]);
    let mut spared = 0.0;
    for (role, kernel) in [("gate_up", "rows_"), ("down", "columns_")] {
        let (kernels, skipped) = (&on["kernels"][role], &on["sparse"][role]);
        assert!(kernels["sparse"].as_str().unwrap().starts_with(kernel), "{kernels}");
        assert!((0.01..0.35).contains(&number(&skipped["density"])), "{skipped}");
        let all = number(&kernels["packed_bytes"]);
        assert!(number(&skipped["read_per_token"]) < all, "{role}: {skipped} of {all}");
        spared += all - number(&skipped["read_per_token"]);
        assert!(off["kernels"][role]["sparse"].is_null());
    }
    let read = |row: &Value| number(&row["read"]["per_token"]);
    assert!((read(off) - read(on) - spared).abs() < 1.0, "{} {} {spared}", read(off), read(on));
    assert_eq!(off["sparse"], serde_json::json!({}));
    // Matrices this small are read whole unless asked otherwise.
    assert_eq!(auto[0]["sparse"], serde_json::json!({}));
}
