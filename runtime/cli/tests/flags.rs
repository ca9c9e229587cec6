//! The table of flags: held to clap's own definitions, to llama.cpp's list and to docs/flags.md; and
//! what command lines made for llama.cpp and bitnet.cpp do.

mod program;

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{env, fs};

use bitnet_cli::arguments::Arguments;
use bitnet_cli::flags::{self, Fate, Flag, GROUPS, Given, Program, Value, flags_of};
use clap::{Arg, Command, CommandFactory};
use program::{answer, both, command, demo_model, piped, refusal};

const PROGRAMS: [Program; 3] = [Program::Run, Program::Bench, Program::Serve];

/// The program's command line as clap has it, and that of a command of it.
fn clap_of(program: Program) -> Command {
    let mut all = Arguments::command();
    all.build();
    match program {
        Program::Run => all,
        Program::Bench | Program::Serve => all.find_subcommand(word(program)).unwrap().clone(),
    }
}

/// The word that asks for a command.
fn word(program: Program) -> &'static str {
    match program {
        Program::Run => "",
        Program::Bench => "bench",
        Program::Serve => "serve",
    }
}

/// All spellings of an argument; llama.cpp's long ones may have one dash.
fn spellings(arg: &Arg) -> Vec<String> {
    let long = arg.get_long_and_visible_aliases().unwrap_or_default();
    let hidden = arg.get_all_aliases().unwrap_or_default();
    let short = arg.get_short_and_visible_aliases().unwrap_or_default();
    let long =
        long.into_iter().chain(hidden).flat_map(|name| [format!("--{name}"), format!("-{name}")]);
    long.chain(short.into_iter().map(|name| format!("-{name}"))).collect()
}

fn read(args: &str) -> Result<Given, clap::Error> {
    read_with(args, &[])
}

/// The command line `bitnet-run ARGS` where these variables are set.
fn read_with(args: &str, variables: &[(&str, &str)]) -> Result<Given, clap::Error> {
    let args = ["bitnet-run"].into_iter().chain(args.split_whitespace()).map(OsString::from);
    let variables: HashMap<&str, &str> = variables.iter().copied().collect();
    flags::read(&Arguments::command(), args, |name| variables.get(name).map(OsString::from))
}

/// The arguments that clap gets to see, without the program's name.
fn seen(given: &Given) -> String {
    let args: Vec<&str> = given.args.iter().skip(1).map(|arg| arg.to_str().unwrap()).collect();
    args.join(" ")
}

/// A command line with a flag of the table and values for it.
fn line(program: Program, name: &str, value: Value) -> String {
    let command = word(program);
    let values = match value {
        Value::Switch => "",
        Value::One(_) => "7",
        Value::OnOff => "on",
        Value::Two(_) => "7 8",
    };
    format!("{command} {name} {values}")
}

#[test]
fn the_table_is_clap_s() {
    for program in PROGRAMS {
        let clap = clap_of(program);
        let known: Vec<(&Arg, Vec<String>)> =
            clap.get_arguments().map(|arg| (arg, spellings(arg))).collect();
        for flag in flags_of(program) {
            let is_ours = matches!(flag.fate, Fate::Done | Fate::Own);
            for name in flag.names {
                let found = known.iter().find(|(_, names)| names.iter().any(|known| known == name));
                assert_eq!(found.is_some(), is_ours, "{program:?} {name} is {:?}", flag.fate);
                if let Some((arg, _)) = found {
                    let takes_value = arg.get_action().takes_values();
                    assert_eq!(takes_value, flag.value != Value::Switch, "{program:?} {name}");
                }
            }
        }
        for (arg, names) in known {
            let is_listed = flags_of(program).any(|flag| {
                matches!(flag.fate, Fate::Done | Fate::Own)
                    && flag.names.iter().any(|name| names.iter().any(|known| known == name))
            });
            assert!(is_listed || arg.is_positional(), "{program:?}: {names:?} is not in the table");
        }
    }
}

#[test]
fn no_spelling_is_in_two_rows() {
    for program in PROGRAMS {
        let mut names: Vec<&str> = flags_of(program).flat_map(|flag| flag.names).copied().collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "{program:?}");
    }
    let variables: Vec<&str> =
        GROUPS.iter().flat_map(|group| group.flags).filter_map(|flag| flag.variable).collect();
    let mut distinct = variables.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), variables.len());
}

/// R2: nothing that llama.cpp's programs take is unknown, or read with another number of values.
#[test]
fn r2_the_table_holds_llama_cpp_s_list() {
    let list = include_str!("data/llama-flags.txt");
    let mut count = 0;
    for line in list.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split(' ');
        // llama-server is among the programs of `run`.
        let programs: &[Program] = match words.next().unwrap() {
            "run" => &[Program::Run, Program::Serve],
            "bench" => &[Program::Bench],
            other => panic!("{other}"),
        };
        let values: u32 = words.next().unwrap().parse().unwrap();
        let words = words.flat_map(|name| programs.iter().map(move |&program| (program, name)));
        for (program, name) in words {
            let flag = flags_of(program).find(|flag| flag.names.contains(&name));
            let flag = flag.unwrap_or_else(|| panic!("{program:?}: {name} is not in the table"));
            let takes = match flag.value {
                Value::Switch => 0..=0,
                Value::One(_) => 1..=1,
                Value::OnOff => 0..=1,
                Value::Two(_) => 2..=2,
            };
            assert!(takes.contains(&values), "{program:?}: {name} takes {values}");
            count += 1;
        }
    }
    assert!(count > 400, "{count}");
}

/// R2: every row does what it says, with one dash and two.
#[test]
fn r2_every_row_is_ignored_or_refused_by_its_own_name() {
    for program in PROGRAMS {
        for flag in flags_of(program) {
            for name in flag.names {
                check(program, flag, name);
                if name.starts_with("--") {
                    check(program, flag, &name[1..]);
                }
            }
        }
    }

    fn check(program: Program, flag: &Flag, name: &str) {
        let line = line(program, name, flag.value);
        let given = read(&line);
        match flag.fate {
            Fate::Done | Fate::Own => {
                let seen = seen(&given.unwrap());
                let typed = seen.split_whitespace().find(|word| word.starts_with('-')).unwrap();
                let typed = typed.split('=').next().unwrap();
                let arg = clap_of(program);
                let arg = arg.get_arguments().find(|arg| spellings(arg).iter().any(|s| s == typed));
                assert!(spellings(arg.unwrap()).iter().any(|s| s == name), "{line}: {seen}");
            }
            Fate::Ignored(_) | Fate::Implied => {
                let left = word(program);
                let given = given.unwrap();
                assert_eq!(seen(&given), left, "{line}");
                let note = given.note().unwrap_or_default();
                assert_eq!(note.contains(name), flag.fate != Fate::Implied, "{line}: {note}");
            }
            Fate::Means(values) => {
                for (value, args) in values {
                    let command = word(program);
                    let seen = seen(&read(&format!("{command} {name} {value}")).unwrap());
                    let expected = format!("{command} {}", args.join(" "));
                    assert_eq!(seen, expected.trim_start(), "{line}");
                }
                if flag.value != Value::Switch {
                    let error = given.unwrap_err().to_string();
                    assert!(error.contains(name) && error.contains("mmap+mlock"), "{error}");
                }
            }
            Fate::Refused { why, instead, .. } => {
                let error = given.unwrap_err();
                assert_eq!(error.exit_code(), 2);
                let message = format!("error: {name}: {why}; {instead}\n");
                assert!(error.to_string().contains(&message), "{error}");
            }
        }
    }
}

#[test]
fn command_lines_read_as_llama_cpp_reads_them() {
    let cases = [
        ("-ctk f16 -temp 0 -json", "--ctk f16 --temp 0 --json"),
        ("-ctk=f16 -n-predict=3 --n_predict 4", "--ctk=f16 --n-predict=3 --n-predict 4"),
        ("--cache_type_k f16 --no_mmap", "--cache-type-k f16 --no-mmap"),
        ("-n -1 -n64 -n-1 -t=4 --temp 0", "-n -1 -n64 -n-1 -t=4 --temp 0"),
        ("-p -temp -temp 1", "-p -temp --temp 1"),
        ("--prompt -json -ctk -json -json", "--prompt -json --ctk -json --json"),
        ("-predict -temp -temp", "--predict -temp --temp"),
        ("-- -temp -json", "-- -temp -json"),
        ("-p bench -temp 1", "-p bench --temp 1"),
        ("- -- - -p", "- -- - -p"),
        ("-p", "-p"),
        ("-help -h", "--help -h"),
        ("--usage", "--help"),
        // Values of what is ignored are no arguments, whatever they look like.
        ("-ngl 0 -fa on -ngl=99 -fa -c 8", "-c 8"),
        ("-fa 1 -fa auto -fa -json --simple-io", "--json"),
        ("-ngl -1 -ngl all -ts 3,1 -dev none -ins", ""),
        // A value that may be left out stands with its flag.
        ("--color -json -co on -rea off", "--color --json --co=on --rea=off"),
        ("chat -co -cnv --reasoning=auto -ngl 0", "chat --co --cnv --reasoning=auto"),
        ("-cml -st", "--conversation --chat-template chatml --st"),
        ("--control-vector-layer-range 1 2 -json", "--json"),
        // A value that changes nothing is no reason to refuse.
        ("--mirostat 0 --xtc-probability 0.0 --typical 1.00 -jf x", "--jf x"),
        ("-lm mlock --load-mode=mmap", "--no-mmap --mlock --mmap"),
        ("bench -ctk f16 -o -json -fa 0,1 -ngl 0", "bench --ctk f16 -o -json"),
        ("bench -pg 5,6 -lm none -embd 0", "bench --pg 5,6 --mmap 0"),
        ("tokenize -p x -bos", "tokenize -p x --bos"),
    ];
    for (args, expected) in cases {
        assert_eq!(seen(&read(args).unwrap()), expected, "{args}");
    }
    assert!(flags::read(&Arguments::command(), [], |_| None).unwrap().args.is_empty());
}

/// W6: a flag that nobody knows is not a short flag with a text behind it.
#[test]
fn w6_no_cluster_is_made_of_a_long_flag() {
    let cases = [
        ("-frobnicate 1", &["'-frobnicate'", "-f robnicate"][..]),
        ("-pHello", &["'-pHello'", "-p Hello"]),
        ("-eh", &["'-eh'"]),
        ("bench -npx 1", &["'-npx'", "-n px"]),
        ("tokenize -fa", &["'-fa'", "-f a"]),
        ("-hf REPO/NAME", &["-hf: nothing is downloaded", "-m FILE"]),
        ("-hf", &["a value is required for '-hf'"]),
        ("-ngl", &["a value is required for '-ngl'"]),
        ("-lm swap", &["'swap'", "-lm", "mmap+mlock"]),
        ("--mirostat 2 --lora x", &["--mirostat: "]),
        ("-mirostat=1", &["-mirostat: "]),
        ("bench -embd 1", &["-embd: "]),
    ];
    for (args, words) in cases {
        let error = read(args).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{args}");
        for word in words {
            assert!(error.to_string().contains(word), "{args}: {error}");
        }
    }
}

#[test]
fn what_is_ignored_is_noted_once_with_the_reason() {
    let given = read("-ngl 0 -i -mg 0 -ngl 99 --no-cnv --no-warmup").unwrap();
    let note = given.note().unwrap();
    assert!(note.starts_with("ignored: -ngl, -mg (no GPU is used); -i ("), "{note}");
    assert!(note.ends_with("--no-warmup (nothing runs before the prompt)"), "{note}");
    assert_eq!(read("-no-cnv -n 4").unwrap().note(), None);
}

#[test]
fn variables_say_what_flags_do_not() {
    type Variables<'a> = &'a [(&'a str, &'a str)];
    let cases: &[(&str, Variables<'_>, &str)] = &[
        ("-n 3", &[("LLAMA_ARG_THREADS", "2")], "--threads=2 -n 3"),
        ("-t 1", &[("LLAMA_ARG_THREADS", "2")], "-t 1"),
        ("-threads 1", &[("LLAMA_ARG_THREADS", "2")], "--threads 1"),
        ("-ctk f16", &[("LLAMA_ARG_CACHE_TYPE_K", "f32")], "--ctk f16"),
        ("-n 3", &[("LLAMA_ARG_THREADS", "")], "-n 3"),
        ("-n 3", &[("LLAMA_ARG_MLOCK", "true"), ("LLAMA_ARG_NO_MMAP", "0")], "--mlock -n 3"),
        ("-n 3", &[("LLAMA_ARG_LOAD_MODE", "none")], "--no-mmap -n 3"),
        ("-n 3", &[("LLAMA_ARG_PRESENCE_PENALTY", "0")], "--presence-penalty=0 -n 3"),
        ("-n 3", &[("LLAMA_ARG_N_GPU_LAYERS", "99"), ("LLAMA_ARG_HOST", "x")], "-n 3"),
        // llama-bench has none.
        ("bench -n 3", &[("LLAMA_ARG_THREADS", "2")], "bench -n 3"),
        ("inspect f", &[("LLAMA_ARG_MODEL", "m")], "inspect f"),
    ];
    for (args, variables, expected) in cases {
        let given = read_with(args, variables).unwrap();
        assert_eq!(seen(&given), *expected, "{args} {variables:?}");
        assert_eq!(given.note(), None);
    }
    for (name, value) in [
        ("LLAMA_ARG_MLOCK", "maybe"),
        ("LLAMA_ARG_LOAD_MODE", "swap"),
        ("LLAMA_ARG_ROPE_FREQ_BASE", "1e6"),
    ] {
        let error = read_with("-n 3", &[(name, value)]).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains(name), "{error}");
    }

    let model = demo_model();
    let run = |variables: &[(&str, &str)], more: &[&str]| {
        let mut command = command(&[&["-p", "ROMEO:", "--json"], more].concat());
        command.env("LLAMA_ARG_MODEL", &model).envs(variables.iter().copied()).output().unwrap()
    };
    let variables = [("LLAMA_ARG_THREADS", "2"), ("LLAMA_ARG_TEMPERATURE", "0")];
    let output = run(&[&variables[..], &[("LLAMA_ARG_N_PREDICT", "5")]].concat(), &["-t", "1"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["threads"], &report["timings"]["predicted_n"]), (&1.into(), &5.into()));
    for (name, value) in [
        ("LLAMA_ARG_THREADS", "many"),
        ("LLAMA_ARG_CTX_SIZE", "-5"),
        ("LLAMA_ARG_TOP_P", "x"),
        ("LLAMA_ARG_CACHE_TYPE_V", "q2_k"),
        ("LLAMA_ARG_BATCH", "0"),
    ] {
        let output = run(&[(name, value)], &[]);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains(name) && errors.contains(value), "{errors}");
        // What is given counts, and the variable does not.
        let flag = flags_of(Program::Run).find(|flag| flag.variable == Some(name)).unwrap();
        let good = if name.contains("CACHE") { "f16" } else { "16" };
        assert!(
            run(&[(name, value)], &["-n", "1", flag.names[0], good]).status.success(),
            "{name}"
        );
    }
}

/// R1: the lines of bitnet.cpp's scripts, as they stand.
#[test]
fn r1_bitnet_cpp_s_lines_run() {
    let model = demo_model();
    let line = "-n 4 -t 2 -p ROMEO: -ngl 0 -c 512 --temp 0.8 -b 1";
    let args: Vec<&str> = ["-m", &model].into_iter().chain(line.split(' ')).collect();
    let (text, errors) = both(&args);
    assert!(!text.is_empty());
    let notes: Vec<&str> = errors.lines().filter(|line| line.starts_with("ignored: ")).collect();
    assert!(matches!(notes[..], [note] if note.contains("-ngl")), "{errors}");
    // The batch is one token, and the text another batch's.
    let seeded = |args: &[&str]| answer(&[args, &["-s", "5"]].concat());
    assert_eq!(seeded(&args), seeded(&[&args[..], &["-b", "512"]].concat()));
    // With -cnv the prompt is the system prompt. The demo model has no template.
    let talk = [&args[..], &["-cnv", "--chat-template", "chatml"]].concat();
    let output = piped(command(&talk), b"Hello");
    assert!(output.status.success() && !output.stdout.is_empty(), "{output:?}");

    let line = "-n 4 -ngl 0 -b 1 -t 2 -p 8 -r 2";
    let args: Vec<&str> = ["bench", "-m", &model].into_iter().chain(line.split(' ')).collect();
    let (table, errors) = both(&args);
    assert!(table.contains(" pp8 |") && table.contains(" tg4 |"), "{table}");
    assert!(errors.contains("ignored: -ngl"), "{errors}");
    let rows = answer(&[&args[..], &["-o", "json"]].concat());
    let rows: serde_json::Value = serde_json::from_str(&rows).unwrap();
    assert_eq!((&rows[0]["n_batch"], &rows[0]["n_threads"]), (&1.into(), &2.into()));

    // The server's is refused by name.
    let line = "-c 512 -t 2 -n 4 -ngl 0 --temp 0.8 --host 127.0.0.1 --port 8080 -cb";
    let args: Vec<&str> = ["-m", &model].into_iter().chain(line.split(' ')).collect();
    assert!(refusal(&args, 2).contains("--host: one text is written, there is no server"));
    // And taken by the server, as is what llama.cpp's own tests of its server give.
    let theirs = "--host 127.0.0.1 --port 8080 --temp 0 --seed 42 --batch-size 32 --ubatch-size 32 --ctx-size 256 \
                  --parallel 2 --n-predict 64 --alias bard --api-key one --slots --metrics --jinja \
                  --chat-template chatml --no-webui --cache-ram 0 --cont-batching -fa auto --threads 2 \
                  --threads-http 2 --offline -lv 3 --log-verbosity 3";
    for line in [&*format!("{line} -p Be-brief."), theirs] {
        let given = read(&format!("serve -m {model} {line}")).unwrap();
        Arguments::command().try_get_matches_from(&given.args).unwrap();
    }
}

/// Variables stand behind the command's name, and below what is given.
#[test]
fn r2_serve_reads_its_variables() {
    let variables =
        [("LLAMA_ARG_PORT", "1"), ("LLAMA_API_KEY", "key"), ("LLAMA_ARG_N_PARALLEL", "3")];
    let given = read_with("serve -m x --port 2", &variables).unwrap();
    assert_eq!(seen(&given), "serve --api-key=key --parallel=3 -m x --port 2");
}

/// R2: of a flag that is given twice the last one counts, as in llama.cpp.
#[test]
fn r2_the_last_of_a_flag_given_twice_counts() {
    let model = demo_model();
    let expected = answer(&["-m", &model, "-p", "ROMEO:", "-n", "5", "--temp", "0"]);
    let twice = ["-m", "none.gguf", "-p", "x", "-f", "y", "-n", "99", "--temp", "1", "--no-mmap"];
    let last = ["-m", &model, "-p", "ROMEO:", "-n", "5", "-temp", "0", "--mmap", "-e", "-e"];
    assert_eq!(answer(&[&twice[..], &last].concat()), expected);
    // Those of bench add up.
    let lists = ["bench", "-m", &model, "-p", "4", "-p", "5", "-n", "0", "-t", "1,2", "-r", "3"];
    let table = answer(&[&lists[..], &["-r", "1"]].concat());
    assert_eq!(
        (table.matches(" pp4 |").count(), table.matches(" pp5 |").count()),
        (2, 2),
        "{table}"
    );
}

/// W6: these were a file named `a`, and the help.
#[test]
fn w6_a_file_named_a_is_no_prompt() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a"), "JULIET:").unwrap();
    let model = demo_model();
    let args = ["-m", &model, "-p", "ROMEO:", "-n", "4", "--temp", "0"];
    let run = |more: &[&str]| {
        let mut command = command(&[&args[..], more].concat());
        command.current_dir(folder.path()).output().unwrap()
    };
    assert_eq!(run(&["-fa", "on"]).stdout, run(&[]).stdout);
    let output = run(&["-hf", "someone/model"]);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout), (Some(2), Vec::new()), "{errors}");
    assert!(errors.contains("-hf: nothing is downloaded here"), "{errors}");
}

#[test]
fn the_help_names_what_is_ignored_and_refused() {
    let help = answer(&["--help"]);
    for word in ["-ngl", "-fa", "-hf", "--lora", "docs/flags.md"] {
        assert!(help.contains(word), "{word}");
    }
    assert!(answer(&["bench", "--help"]).contains("-nkvo"));
    assert!(!answer(&["-h"]).contains("-nkvo"));
}

/// docs/flags.md is the table's.
#[test]
fn docs_flags_md_is_as_blessed() {
    const HOW: &str = "run `BLESS=1 cargo test --release -p bitnet-cli --test flags`, and look at \
                       the difference before it is committed";
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/flags.md");
    if env::var_os("BLESS").is_some_and(|value| value == "1") {
        fs::write(&path, flags::page()).unwrap();
        return;
    }
    let page = fs::read_to_string(&path).unwrap_or_default();
    let same = page.lines().zip(flags::page().lines()).take_while(|(a, b)| a == b).count();
    assert!(page == flags::page(), "docs/flags.md differs from line {} on: {HOW}", same + 1);
}

#[cfg(unix)]
#[test]
fn arguments_that_are_not_utf_8_pass() {
    use std::os::unix::ffi::OsStringExt;
    let odd = OsString::from_vec(b"-te\xffmp".to_vec());
    let args = ["bitnet-run".into(), odd.clone(), "-p".into(), odd.clone(), "-temp".into()];
    let given = flags::read(&Arguments::command(), args, |_| None).unwrap();
    assert_eq!(given.args, ["bitnet-run".into(), odd.clone(), "-p".into(), odd, "--temp".into()]);
    let odd = OsString::from_vec(b"\xff".to_vec());
    let args = ["bitnet-run".into(), "-ngl".into(), odd, "-json".into()];
    let given = flags::read(&Arguments::command(), args, |_| None).unwrap();
    assert_eq!(given.args, ["bitnet-run", "--json"]);
}
