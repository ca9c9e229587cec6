//! Conversations: `bitnet-run chat` and `bitnet-run -cnv`, through pipes and in a terminal.

mod program;
#[cfg(target_os = "linux")]
mod terminal;

use std::path::Path;
use std::process::{Command, Stdio};

use bitnet_runtime::Tokenizer;
use bitnet_runtime::file::gguf::Gguf;
use program::{command, demo_model, piped, refusal};
use serde_json::Value;

/// A template for the demo model, which has none and has not learnt to end an answer: a line ends one.
const TEMPLATE: &str = "{% for m in messages %}{{ 'ROMEO' if m.role == 'assistant' else m.role | upper }}:\n{{ m.content | trim }}\n\n{% endfor %}ROMEO:\n";

/// A command line with the demo model and its template, in an environment of its own.
fn chat(folder: &Path, args: &[&str]) -> Command {
    let model = demo_model();
    let start = if args[0] == "chat" { &["chat"][..] } else { &[] };
    let rest = &args[start.len()..];
    let own =
        ["-m", &model, "--chat-template", TEMPLATE, "--temp", "0", "-t", "2", "--fixed-threads"];
    let mut command = command(&[start, &own[..], rest].concat());
    command.env("XDG_STATE_HOME", folder).env_remove("NO_COLOR");
    command
}

/// stdout and stderr of one turn.
fn turn(args: &[&str], text: &str) -> (String, String) {
    let folder = tempfile::tempdir().unwrap();
    let output = piped(chat(folder.path(), args), text.as_bytes());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{args:?}: {errors}");
    (String::from_utf8(output.stdout).unwrap(), errors)
}

fn json(args: &[&str], text: &str) -> Value {
    serde_json::from_str(&turn(&[args, &["--json"]].concat(), text).0).unwrap()
}

/// Roles and contents of the messages of a report.
fn messages(report: &Value) -> Vec<(&str, &str)> {
    let messages = report["messages"].as_array().unwrap().iter();
    messages.map(|m| (m["role"].as_str().unwrap(), m["content"].as_str().unwrap())).collect()
}

#[test]
fn ch06_the_prompt_is_the_system_prompt_or_the_first_message() {
    let short = ["-n", "4"];
    let cnv = json(&[&["-cnv", "-p", "Be kind.\\n"], &short[..]].concat(), "Who\nare you?\n");
    assert_eq!(messages(&cnv), [("system", "Be kind.\n"), ("user", "Who\nare you?")]);
    let first = json(&[&["chat", "-p", "Hello"], &short[..]].concat(), "");
    assert_eq!(messages(&first), [("user", "Hello")]);
    let both =
        json(&[&["chat", "-p", "Hello", "-sys", "Be brief."], &short[..]].concat(), "there\n");
    assert_eq!(messages(&both), [("system", "Be brief."), ("user", "Hello\nthere")]);
    let (_, errors) = turn(&["-cnv", "-p", "Be kind.", "-n", "1"], "Hi");
    assert!(errors.contains("the prompt is the system prompt"), "{errors}");

    let model = demo_model();
    let of =
        |more: &[&str]| refusal(&[&["-m", &model, "--chat-template", "chatml"], more].concat(), 2);
    let twice = of(&["-cnv", "-p", "a", "-sys", "b"]);
    assert!(twice.contains("--system-prompt: found it beside --prompt"), "{twice}");
    let alone = of(&["-p", "a", "-sys", "b"]);
    assert!(alone.contains("-cnv or the command chat"), "{alone}");
    let none = of(&["-cnv", "-st"]);
    assert!(none.contains("message: found none"), "{none}");
    let template = of(&["-cnv", "--chat-template", "llama9"]);
    assert!(
        template.contains("--chat-template: found 'llama9', expected bitnet, llama3"),
        "{template}"
    );
    let variables = of(&["-cnv", "--chat-template-kwargs", "[]"]);
    assert!(variables.contains("--chat-template-kwargs: found no object"), "{variables}");
}

#[test]
fn ch07_a_pipe_gets_the_answer_alone() {
    let report = json(&["chat", "-n", "24"], "Speak, my lord.");
    assert_eq!(report["finish_reason"], "length");
    assert_eq!(report["ids"].as_array().unwrap().len(), 24);
    for args in [&["chat", "-n", "24"][..], &["-cnv", "-n", "24"], &["chat", "-st", "-n", "24"]] {
        let (text, _) = turn(args, "Speak, my lord.\n");
        assert_eq!(text, format!("{}\n", report["content"].as_str().unwrap()));
    }
    // Nothing to answer is no error where nobody asked for an answer.
    let (text, errors) = turn(&["-cnv", "-p", "Be kind."], "");
    assert!(text.is_empty() && errors.contains("stdin holds no message"), "{errors}");
    // Times are told when they are asked for, and where answers are not.
    let (_, times) = turn(&["chat", "-n", "2", "-v", "--show-timings"], "Hi");
    for words in ["prompt eval count:", "eval rate:", "[ Prompt: ", "| Generation: "] {
        assert!(times.contains(words), "{times}");
    }
    // What only counts in a conversation is told elsewhere.
    let model = demo_model();
    let line = ["-m", &model, "-p", "ROMEO:", "-n", "1", "-st", "--color", "-t", "2"];
    let (_, errors) = program::both(&line);
    assert!(errors.contains("ignored: --single-turn, --color (for conversations"), "{errors}");
}

/// F06: a reader that goes is no error.
#[test]
fn f06_an_answer_that_nobody_reads_ends_quietly() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = chat(folder.path(), &["chat", "-p", "Speak.", "--ignore-eos", "-n", "400"]);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && !errors.contains("error"), "{errors}");
}

/// CH11: what was computed of a conversation is kept, and gives the same answer.
#[test]
fn ch11_a_prompt_cache_keeps_a_conversation() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let cache = cache.to_str().unwrap();
    let args = ["chat", "-p", "What is the matter, my good lord?", "-n", "20"];
    let with = |more: &[&str]| json(&[&args[..], more].concat(), "");
    let plain = with(&[]);
    let first = with(&["--prompt-cache", cache]);
    let second = with(&["--prompt-cache", cache, "--prompt-cache-ro"]);
    for report in [&first, &second] {
        assert_eq!((&report["ids"], &report["content"]), (&plain["ids"], &plain["content"]));
    }
    assert!(plain["timings"].get("cache_n").is_none());
    assert_eq!(
        (&first["timings"]["cache_n"], &second["timings"]["prompt_n"]),
        (&0.into(), &1.into())
    );
}

#[test]
fn ch13_a_base_model_is_refused() {
    for args in [&["-cnv"][..], &["chat", "-p", "Hi"]] {
        let model = demo_model();
        let start = if args[0] == "chat" { args } else { &args[..0] };
        let rest = &args[start.len()..];
        let error = refusal(&[start, &["-m", &model], rest].concat(), 3);
        for words in
            ["likely made to continue text", "leave -cnv out", "--chat-template", "falcon_e"]
        {
            assert!(error.contains(words), "{error}");
        }
    }
}

#[test]
fn words_without_a_flag_are_explained() {
    for (line, words) in [
        (&["chat", "m.gguf"][..], "given with -m FILE"),
        (&["run", "m.gguf"], "bitnet-run chat -m FILE"),
        (&["-m", "m.gguf", "Hello"], "a text with -p TEXT"),
    ] {
        let error = refusal(line, 2);
        assert!(error.contains(words), "{line:?}: {error}");
    }
}

#[test]
fn reasoning_is_told_from_the_answer() {
    // The prompt ends with the tag that opens the reasoning, which the model never closes.
    let open = "{{ messages[0].content }}<think>\n";
    let args = ["chat", "-p", "Why?", "-n", "8", "--chat-template", open];
    let report = json(&args, "");
    assert_eq!(report["content"], "");
    assert!(!report["reasoning_content"].as_str().unwrap().is_empty());
    let plain = json(&[&args[..], &["--reasoning-format", "none"]].concat(), "");
    assert!(!plain["content"].as_str().unwrap().is_empty());
    assert!(plain.get("reasoning_content").is_none());
    let (text, _) = turn(&args, "");
    assert!(text.starts_with("<think>\n") && text.ends_with("\n</think>\n\n"), "{text:?}");
    // The switch is a variable of the template.
    let switch = "{{ 'yes' if enable_thinking is defined and enable_thinking else 'no' }}";
    let ids = |more: &[&str]| {
        let args = [&["chat", "-p", "x", "-n", "1", "--chat-template", switch], more].concat();
        json(&args, "")["prompt_ids"].clone()
    };
    assert_eq!(ids(&[]), ids(&["--reasoning", "off"]));
    assert_ne!(ids(&[]), ids(&["-rea", "on"]));
    let variables = r#"{"enable_thinking": true}"#;
    assert_eq!(ids(&["--chat-template-kwargs", variables]), ids(&["--reasoning"]));
}

#[cfg(target_os = "linux")]
mod in_a_terminal {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::terminal::{CTRL_C, CTRL_D, Terminal};
    use super::*;

    /// A conversation in a terminal, at its first prompt.
    fn start(folder: &Path, more: &[&str]) -> Terminal {
        let mut terminal = Terminal::start(chat(folder, &[&["chat"], more].concat()));
        terminal.prompt();
        terminal
    }

    /// The answer to a line: what is written behind the line itself.
    fn say(terminal: &mut Terminal, line: &str) -> String {
        terminal.line(line);
        // The line itself may be drawn more than once.
        terminal.wait_for("\n");
        // How long packing takes, and so if there is a word of it, is the machine's affair.
        terminal.prompt().replace("packing weights: the answer waits for that\n", "")
    }

    #[test]
    fn ch08_commands() {
        let folder = tempfile::tempdir().unwrap();
        let terminal = &mut start(folder.path(), &["-n", "12"]);
        let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();

        let first = say(terminal, "Speak, my lord.");
        assert!(first.contains("cut after 12 tokens"), "{first}");
        let expected = turn(&["chat", "-n", "12"], "Speak, my lord.").0;
        assert!(first.starts_with(&expected), "{first:?}, {expected:?}");
        assert!(say(terminal, "/show messages").contains("Speak, my lord."));
        assert_eq!(say(terminal, "/regen"), first, "greedy answers have no seed");
        assert!(say(terminal, "/undo").contains("taken back"));
        assert!(say(terminal, "/undo").contains("no message"));
        assert!(say(terminal, "/regen").contains("no message"));
        assert!(!say(terminal, "/show messages").contains("lord"));

        assert!(say(terminal, "/set system Be kind.").contains("set"));
        assert!(say(terminal, "/show system").contains("Be kind."));
        assert!(say(terminal, "/set parameter num_predict 3").contains("num_predict is 3"));
        assert!(say(terminal, "/set parameter top_p 7").contains("--top-p: found 7"));
        assert!(say(terminal, "/set parameter num_ctx 7").contains("begin again with -c"));
        assert!(say(terminal, "/show parameters").contains("num_predict        3"));
        assert!(say(terminal, "/show template").contains("m.role | upper"));
        assert!(say(terminal, "/show info").contains("bitnet-b1.58"));
        assert!(say(terminal, "/show license").contains("there is none"));
        for (command, words) in [
            ("/?", "/regen"),
            ("/help", "/save FILE"),
            ("/? set", "num_predict"),
            ("/set", "wordwrap"),
            ("/show", "messages"),
            ("/klingon", "unknown command '/klingon'"),
            ("/set verbose", "on"),
            ("/set quiet", "off"),
            ("/set wordwrap", "on"),
            ("/set nowordwrap", "off"),
            ("/set think", "no switch"),
            ("/read", "name of a file"),
            ("/read /nowhere", "cannot open"),
            ("/load llama3", "a model is chosen at the start"),
        ] {
            let said = say(terminal, command);
            assert!(said.contains(words), "{command}: {said}");
        }

        // CH14: characters of several bytes are typed, sent and shown whole.
        let typed = "Gr\u{fc}\u{df}e, \u{65e5}\u{672c} \u{1f600}";
        let said = say(terminal, typed);
        assert!(!said.contains("error"), "{said}");
        assert!(say(terminal, "/show messages").contains(typed));
        say(terminal, "/undo");

        // A slash behind a space is text, and so are several lines.
        say(terminal, " /etc is a folder");
        assert!(say(terminal, "/show messages").contains("\n/etc is a folder"));
        terminal.line("one\\");
        terminal.wait_for("... ");
        say(terminal, "two");
        assert!(say(terminal, "/show messages").contains("one\ntwo\n"));
        terminal.line("\"\"\"/three");
        terminal.wait_for("... ");
        terminal.line("four");
        terminal.wait_for("... ");
        say(terminal, "five\"\"\"");
        assert!(say(terminal, "/show messages").contains("\n/three\nfour\nfive\n"));
        // A paste is one message.
        terminal.send("\x1b[200~six\nseven\x1b[201~");
        terminal.wait_for("seven");
        say(terminal, "");
        assert!(say(terminal, "/show messages").contains("six\nseven\n"));
        fs::write(file("text"), "from a file\n").unwrap();
        assert!(say(terminal, &format!("/read {}", file("text"))).contains("11 B"));
        say(terminal, "eight");
        assert!(say(terminal, "/show messages").contains("from a file\n\neight\n"));

        // CH11: a conversation that is saved and loaded is the same.
        let before = say(terminal, "/show messages");
        assert!(say(terminal, &format!("/save {}", file("talk.json"))).contains("saved"));
        assert!(say(terminal, &format!("/save {}", file("text"))).contains("file of another kind"));
        assert_eq!(fs::read_to_string(file("text")).unwrap(), "from a file\n");
        assert!(say(terminal, "/clear").contains("forgotten"));
        assert!(!say(terminal, "/show messages").contains("eight"));
        assert!(say(terminal, "/show system").contains("Be kind."));
        say(terminal, "/set parameter num_predict 9");
        let loaded = say(terminal, &format!("/load {}", file("talk.json")));
        assert!(loaded.contains("loaded: 10 messages") && !loaded.contains("another"), "{loaded}");
        assert_eq!(say(terminal, "/show messages"), before);
        assert!(say(terminal, "/show parameters").contains("num_predict        3"));
        let saved: Value =
            serde_json::from_str(&fs::read_to_string(file("talk.json")).unwrap()).unwrap();
        assert_eq!((&saved["format"], &saved["version"]), (&"bitnet-chat".into(), &1.into()));
        assert_eq!((&saved["template"], &saved["system"]), (&"given".into(), &"Be kind.".into()));
        // Over itself it may be saved, and of another model it is told.
        assert!(say(terminal, &format!("/save {}", file("talk.json"))).contains("saved"));
        let other = fs::read_to_string(file("talk.json")).unwrap();
        let print = saved["model"]["fingerprint"].as_str().unwrap();
        assert_eq!(print.len(), 64);
        fs::write(file("other.json"), other.replace(print, &print.replace('a', "b"))).unwrap();
        assert!(
            say(terminal, &format!("/load {}", file("other.json"))).contains("model was another")
        );
        fs::write(file("broken.json"), "{}").unwrap();
        assert!(
            say(terminal, &format!("/load {}", file("broken.json"))).contains("/save has written")
        );
        terminal.line("/bye");
        terminal.wait_for("/bye");
    }

    /// A second Ctrl+C before the first is obeyed, here by an answer that cannot be written, ends the program.
    #[test]
    fn ch08_a_second_interrupt_ends_the_program() {
        let folder = tempfile::tempdir().unwrap();
        // The first thing on stdout is the answer: no prompt is read before it.
        let terminal = Terminal::start_stopped(chat(folder.path(), &["chat", "-p", "Why?"]));
        let slept = terminal.wait_for_a_write();
        terminal.interrupt();
        terminal.wait_until_taken(slept);
        // That only asks the answer to end.
        terminal.wait_for_a_write();
        terminal.interrupt();
        assert_eq!(terminal.end().0.code(), Some(130));
    }

    /// Says the first line of a conversation, and interrupts the answer behind its first words.
    fn interrupted(terminal: &mut Terminal, line: &str) {
        let words = turn(&["chat", "--ignore-eos", "-n", "4"], line).0;
        terminal.line(line);
        // The line itself may be drawn more than once: only words of the answer tell that there is one.
        terminal.wait_for(words.trim());
        terminal.send(CTRL_C);
        terminal.prompt();
    }

    #[test]
    fn ch08_keys() {
        let folder = tempfile::tempdir().unwrap();
        // Without an end of its own, an answer goes on for the whole context.
        let endless = ["--ignore-eos", "-c", "0"];
        let mut terminal = start(folder.path(), &endless);
        terminal.send(CTRL_C);
        terminal.wait_for("Use Ctrl + d or /bye to exit.");
        terminal.prompt();
        terminal.send("half a line");
        terminal.wait_for("half a line");
        terminal.send(CTRL_C);
        let cleared = terminal.prompt();
        assert!(!cleared.contains("Use Ctrl"), "{cleared}");
        // In an answer it ends the answer, which stays.
        interrupted(&mut terminal, "Speak for ever.");
        let shown = say(&mut terminal, "/show messages");
        assert!(shown.contains("user:") && shown.contains("assistant:"), "{shown}");
        // It may be used again.
        say(&mut terminal, "/clear");
        interrupted(&mut terminal, "And again.");
        terminal.send(CTRL_D);
        let (status, _) = terminal.end();
        assert!(status.success(), "{status}");

        // What was typed is known the next time, and to nobody else.
        let history = folder.path().join("bitnet/chat-history");
        assert!(fs::read_to_string(&history).unwrap().contains("Speak for ever."));
        assert_eq!(fs::metadata(&history).unwrap().permissions().mode() & 0o777, 0o600);
        let mut terminal = start(folder.path(), &["-n", "1"]);
        terminal.send("\x1b[A");
        terminal.wait_for("And again.");
        terminal.send(CTRL_C);
        terminal.prompt();
        terminal.line("/exit");
        assert!(terminal.end().0.success());

        let mut terminal = start(folder.path(), &["-n", "1", "--no-history"]);
        say(&mut terminal, "A secret.");
        terminal.line("/quit");
        assert!(terminal.end().0.success());
        assert!(!fs::read_to_string(&history).unwrap().contains("secret"));
    }

    #[test]
    fn ch10_what_does_not_fit_is_forgotten_and_said() {
        let folder = tempfile::tempdir().unwrap();
        let terminal = &mut start(folder.path(), &["-c", "128", "-n", "24"]);
        let long = "What is the matter, my good lord?";
        let mut forgotten = 0;
        for _ in 0..6 {
            let said = say(terminal, long);
            if said.contains("forgot the 2 oldest messages (-c 256 would keep more)") {
                forgotten += 1;
            }
        }
        assert!(forgotten > 0);
        let shown = say(terminal, "/show messages");
        assert!((1..6).contains(&shown.matches("user:").count()), "{shown}");
        // A message that is too long for itself is refused, and forgotten.
        let said = say(terminal, &"never ".repeat(200));
        assert!(
            said.contains("message: found ") && said.contains("expected fewer than 128"),
            "{said}"
        );
        assert!(!say(terminal, "/show messages").contains("never never"));
    }

    #[test]
    fn ch15_answers_are_json() {
        let folder = tempfile::tempdir().unwrap();
        // The model has seen no JSON and would never end a text: what ends one is made likely.
        let tokenizer = Tokenizer::from_gguf(&Gguf::open(demo_model()).unwrap()).unwrap();
        let bias = |text: &str| {
            let ids = tokenizer.encode(text, false, false).unwrap();
            format!("{}+9", ids.last().unwrap())
        };
        let end = format!("{}+9", tokenizer.eos().unwrap());
        let biases = [bias("\""), bias("]"), bias("}"), end];
        let biases: Vec<&str> = biases.iter().flat_map(|bias| ["-l", bias]).collect();
        let more = ["--temp", "1", "--top-k", "0", "-n", "600", "--color", "off"];
        let terminal = &mut start(folder.path(), &[&more[..], &biases].concat());
        assert!(say(terminal, "/set format json").contains("JSON"));
        for seed in 0..50 {
            say(terminal, "/clear");
            say(terminal, &format!("/set parameter seed {seed}"));
            let said = say(terminal, "A value");
            serde_json::from_str::<Value>(said.trim()).unwrap_or_else(|e| panic!("{said:?}: {e}"));
        }
        assert!(say(terminal, "/set noformat").contains("text"));
    }
}
