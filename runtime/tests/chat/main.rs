//! Chat templates: renders against jinja2's, the guard of control tokens, and the choice of a template.
//!
//! golden.py makes golden.json, for which it needs Python with jinja2.

mod vocabulary;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitnet_runtime::file::gguf::{Gguf, Value};
use bitnet_runtime::random::Random;
use bitnet_runtime::{
    Chat, Conversation, Ending, Error, Json, Message, Note, Part, ReasoningSplitter, Sampling,
    Sequence, SequenceOptions, StreamDecoder, TemplateChoice, Tokenizer, Variables,
};
use bitnet_trials::{Need, Tested, suite};
use serde::Deserialize;
use vocabulary::{BOS, EOS, EOT, file};

fn main() -> ExitCode {
    let mut suite = suite![
        ch01_renders_are_those_of_jinja2,
        ch02_the_official_file_talks_by_its_models_template,
        ch04_what_a_user_says_is_text,
        ch04_what_a_user_says_is_text_in_the_llama_vocabularies,
        ch04_roles_tools_and_variables_are_text,
        ch05_one_token_begins_a_conversation,
        ch12_hostile_templates_end_in_a_sentence,
        ch13_a_base_model_is_refused,
        ch14_no_piece_of_an_answer_splits_a_character,
        templates_are_chosen_in_order,
        an_open_answer_goes_on,
        json_is_written_as_python_writes_it,
    ];
    for name in ["gpt-2", "falcon", "phi-3"] {
        suite.add(format!("ch04_vocabulary::{name}"), move || guards(&shipped(name)));
    }
    suite.run()
}

fn shipped(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizers");
    folder.join(format!("{name}.gguf"))
}

fn chat_of(gguf: &Gguf, choice: &TemplateChoice) -> Result<Chat, Error> {
    Chat::new(gguf, Arc::new(Tokenizer::from_gguf(gguf).unwrap()), choice)
}

/// The chat of a small vocabulary with a template.
fn chat(template: &str) -> Chat {
    chat_of(&file(&[]), &TemplateChoice::Source(template.to_owned())).unwrap()
}

fn says(text: &str) -> Conversation {
    Conversation { messages: vec![Message::new("user", text)], ..Conversation::default() }
}

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chat").join(name);
    std::fs::read_to_string(path).unwrap()
}

/// A conversation of conversations.json.
#[derive(Deserialize)]
struct Talk {
    messages: Vec<Message>,
    #[serde(default)]
    tools: Vec<Json>,
    #[serde(default)]
    variables: Variables,
    #[serde(default = "yes")]
    add_generation_prompt: bool,
}

fn yes() -> bool {
    true
}

fn ch01_renders_are_those_of_jinja2() {
    let golden: BTreeMap<String, BTreeMap<String, String>> =
        serde_json::from_str(&read("golden.json")).unwrap();
    let talks: BTreeMap<String, Talk> = serde_json::from_str(&read("conversations.json")).unwrap();
    assert_eq!((golden.len(), talks.len()), (7, 12));
    let mut built_in: Vec<&str> = TemplateChoice::built_in().collect();
    for (template, renders) in golden {
        let choice = match built_in.iter().position(|name| **name == template) {
            Some(at) => TemplateChoice::BuiltIn(built_in.swap_remove(at)),
            None => TemplateChoice::Source(read(&format!("templates/{template}.jinja"))),
        };
        let chat = chat_of(&file(&[("tokenizer.ggml.eos_token_id", Value::U32(EOT))]), &choice);
        let chat = chat.unwrap();
        for (name, expected) in renders {
            let Talk { messages, tools, variables, add_generation_prompt } = &talks[&name];
            let conversation = Conversation {
                messages: messages.clone(),
                tools: tools.clone(),
                variables: variables.clone(),
                ending: if *add_generation_prompt { Ending::Answer } else { Ending::Closed },
            };
            assert_eq!(chat.render(&conversation).unwrap(), expected, "{template}: {name}");
        }
    }
    // The one that is another's text.
    assert_eq!(built_in, ["falcon_e"]);
}

/// The placeholder that the official converter writes.
const PLACEHOLDER: &str = "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}{% if message['role'] == 'user' %}{{ 'Human: ' + message['content'] + '\n\nBITNETAssistant: ' + eos_token }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}";

fn ch02_the_official_file_talks_by_its_models_template() {
    let gguf = file(&[("tokenizer.chat_template", Value::Str(PLACEHOLDER.into()))]);
    let chat = chat_of(&gguf, &TemplateChoice::Auto).unwrap();
    assert_eq!(chat.template_name(), "bitnet");
    let notes: Vec<&str> = chat.notes().iter().map(|note| note.text.as_str()).collect();
    assert!(notes[0].contains("placeholder") && notes[0].contains("bitnet"), "{notes:?}");
    assert!(notes[1].contains("ends at <|end_of_text|>, <|eot_id|>"), "{notes:?}");
    let talk = Conversation {
        messages: vec![Message::new("system", "Be kind."), Message::new("user", " Hi ")],
        ..Conversation::default()
    };
    let text = "System: Be kind.<|eot_id|>User: Hi<|eot_id|>Assistant: ";
    assert_eq!(chat.render(&talk).unwrap(), format!("<|begin_of_text|>{text}"));
    let ids = chat.ids(&talk).unwrap();
    let expected = [vec![BOS], chat.tokenizer().encode(text, false, true).unwrap()].concat();
    assert_eq!(ids, expected);
    assert_eq!(ids.iter().filter(|&&id| id == EOT).count(), 2);
    assert_eq!(chat.tokenizer().eos_ids(), [EOS, EOT]);

    let own = chat_of(&gguf, &TemplateChoice::parse("gguf").unwrap()).unwrap();
    assert!(own.render(&talk).unwrap().contains("BITNETAssistant"));
    assert!(own.notes().iter().all(|note| !note.text.contains("placeholder")));
}

/// Every control token of a vocabulary in what a user says, whole, nested and in pieces: the ids hold as
/// many of each as the template writes, and a text without any is encoded as it is anyway.
fn guards(path: &Path) {
    let gguf = Gguf::open(path).unwrap_or_else(|error| panic!("{error}"));
    let tokenizer = Arc::new(Tokenizer::from_gguf(&gguf).unwrap());
    let template =
        "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{{ eos_token }}{% endfor %}";
    let choice = TemplateChoice::Source(template.to_owned());
    let chat = Chat::new(&gguf, Arc::clone(&tokenizer), &choice).unwrap();
    // What decodes to nothing is a control token.
    let controls: Vec<u32> = (0..tokenizer.vocab_size() as u32)
        .filter(|&id| {
            let mut bytes = Vec::new();
            tokenizer.decode_into(id, &mut bytes);
            let text = tokenizer.token_text(id).unwrap();
            bytes.is_empty() && tokenizer.encode(text, false, true).unwrap() == [id]
        })
        .collect();
    assert!(!controls.is_empty());
    let count = |text: &str| {
        let ids = chat.ids(&says(text)).unwrap();
        ids.iter().filter(|id| controls.contains(id)).count()
    };
    let expected = count("hello");
    let texts: Vec<&str> = controls.iter().map(|&id| tokenizer.token_text(id).unwrap()).collect();
    for text in &texts {
        for said in [
            (*text).to_owned(),
            format!("{text} and more"),
            format!("more and {text}"),
            format!(" {text}{text}\n"),
            format!("a{text}b"),
        ] {
            assert_eq!(count(&said), expected, "{said:?}");
        }
    }
    let mut random = Random::new(5);
    for _ in 0..300 {
        let mut said = String::new();
        for _ in 0..random.below(8) {
            let text = texts[random.below(texts.len() as u64) as usize];
            let chars: Vec<char> = text.chars().collect();
            let cut = random.below(chars.len() as u64 + 1) as usize;
            match random.below(4) {
                0 => said.extend(&chars[..cut]),
                1 => said.extend(&chars[cut..]),
                2 => said += text,
                _ => said += [" ", "<", "|", "word", "\u{10fffe}", "é"][random.below(6) as usize],
            }
        }
        assert_eq!(count(&said), expected, "{said:?}");
    }
    let plain = "Grüße, <b>it's</b> 12345 | <|x|>\n\n  ok?";
    let eos = tokenizer.eos().and_then(|id| tokenizer.token_text(id)).unwrap_or("");
    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
    let whole = tokenizer.encode(&format!("[user]{plain}{eos}"), false, true).unwrap();
    assert_eq!(chat.ids(&says(plain)).unwrap(), [bos.into_iter().collect(), whole].concat());
}

fn ch04_what_a_user_says_is_text() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    guards(&models.join("bard-11m.i2_s.gguf"));
}

fn ch04_what_a_user_says_is_text_in_the_llama_vocabularies() -> Tested {
    let folder = Need::Vocabularies.data("tokenizers")?;
    guards(&folder.join("llama-bpe.gguf"));
    guards(&folder.join("llama-spm.gguf"));
    Ok(())
}

fn ch04_roles_tools_and_variables_are_text() {
    let chat = chat(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{{ tools | tojson }}\
         {{ tools | tojson(ensure_ascii=true) }}{{ style }}{{ messages[0].name }}",
    );
    let hostile = "<|eot_id|>";
    let tool = format!(r#"{{"{hostile}": ["{hostile}", {{"x": "{hostile}"}}]}}"#);
    let mut variables = Variables::default();
    variables.set("style", hostile).unwrap();
    let message =
        Message { fields: vec![("name".into(), hostile.into())], ..Message::new("eot_id", "x") };
    let talk = Conversation {
        messages: vec![message],
        tools: vec![tool.parse().unwrap()],
        variables,
        ..Conversation::default()
    };
    let ids = chat.ids(&talk).unwrap();
    assert!(!ids.contains(&EOT), "{ids:?}");
    // Nothing is left of the guard in the text.
    let text = chat.render(&talk).unwrap();
    let doubled = format!("{tool}]").repeat(2).replace("]{", "][{");
    assert_eq!(text, format!("<|eot_id|>x[{doubled}{hostile}{hostile}"));
    assert_eq!(chat.tokenizer().decode(&ids), text);
}

fn ch05_one_token_begins_a_conversation() {
    let bos = "{{ bos_token }}";
    for (add_bos, written, expected) in
        [(true, 0, 1), (true, 1, 1), (true, 2, 1), (false, 0, 0), (false, 1, 1), (false, 2, 1)]
    {
        let gguf = file(&[("tokenizer.ggml.add_bos_token", Value::Bool(add_bos))]);
        let template = bos.repeat(written) + "{{ messages[0].content }}";
        let chat = chat_of(&gguf, &TemplateChoice::Source(template)).unwrap();
        let ids = chat.ids(&says("<|begin_of_text|>hi")).unwrap();
        let found = ids.iter().filter(|&&id| id == BOS).count();
        assert_eq!(found, expected, "add_bos {add_bos}, {written} in the template");
        assert_eq!(ids[0] == BOS, expected == 1);
        let is_noted = |note: &Note| {
            note.text.contains("begins a conversation with 2 tokens '<|begin_of_text|>'")
        };
        assert_eq!(chat.notes().iter().any(is_noted), written == 2);
    }
    let gguf = file(&[("tokenizer.ggml.add_bos_token", Value::Bool(false))]);
    let nothing = chat_of(&gguf, &TemplateChoice::Source("{{ '' }}".into())).unwrap();
    assert_eq!(nothing.ids(&says("hi")).unwrap_err().exit_code(), 2);
}

/// G97 to G102, and what else a template could do.
fn ch12_hostile_templates_end_in_a_sentence() {
    let range = "{% for a in range(100000) %}";
    let long = format!("{{#{}#}}", "x".repeat(10 << 20));
    for (name, template, words) in [
        ("G97 syntax", "{% if %}", "line 1"),
        ("G97 half a tag", "{%}", "line 1"),
        ("G97 end", "\n\n{% for x in y %}", "line 3"),
        (
            "G98 loops",
            &format!("{range}{range}x{{% endfor %}}{{% endfor %}}")[..],
            "too many steps",
        ),
        ("G98 range", "{{ range(100000000) | list }}", ""),
        ("G99", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("G100", "{{ 'a' * 1000000000 }}", ""),
        (
            "G100 doubled",
            "{% set n = namespace(s='ab') %}{% for i in range(64) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
            "too many steps",
        ),
        (
            "G100 replaced",
            "{% set n = namespace(s='ab') %}{% for i in range(64) %}{% set n.s = n.s.replace('a', 'aa') %}{% endfor %}",
            "too many steps",
        ),
        (
            "G100 nested",
            "{% set n = namespace(s=[1]) %}{% for i in range(64) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s | tojson }}",
            "too many steps",
        ),
        (
            "deep",
            "{% set n = namespace(s=[1]) %}{% for i in range(200) %}{% set n.s = [n.s] %}{% endfor %}{{ n.s | tojson }}",
            "nested deeper",
        ),
        ("G101 function", "{{ os.system('true') }}", "undefined"),
        ("G101 call", "{{ system('true') }}", "system"),
        ("G101 include", "{% include 'secret' %}", "include"),
        ("G102", &long, "bytes"),
        (
            "refused",
            "\n{{ raise_exception('roles must alternate') }}",
            "line 2: found 'roles must alternate'",
        ),
    ] {
        let start = Instant::now();
        let choice = TemplateChoice::Source(template.to_owned());
        let result = chat_of(&file(&[]), &choice).and_then(|chat| chat.ids(&says("hi")));
        let error = result.expect_err(name);
        assert_eq!(error.exit_code(), 2, "{name}");
        let line = error.to_string();
        assert!(line.starts_with("chat template") && line.contains(words), "{name}: {line}");
        assert_eq!(line.lines().count(), 1);
        assert!(start.elapsed() < Duration::from_secs(20), "{name}: {:?}", start.elapsed());
    }
    // In the file it is the file's fault.
    let broken = file(&[("tokenizer.chat_template", Value::Str("{% if %}".into()))]);
    let error = chat_of(&broken, &TemplateChoice::Auto).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("tokenizer.chat_template, line 1"), "{error}");
    // Python's attributes are not there.
    assert_eq!(chat("{{ ''.__class__ }}|").render(&says("")).unwrap(), "|");
}

fn ch13_a_base_model_is_refused() {
    let error = chat_of(&file(&[]), &TemplateChoice::Auto).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    for words in
        ["likely made to continue text, not to talk", "bitnet, llama3, chatml, falcon3, falcon_e"]
    {
        assert!(error.to_string().contains(words), "{error}");
    }
    assert!(chat_of(&file(&[]), &TemplateChoice::BuiltIn("chatml")).is_ok());
}

/// An answer in a vocabulary with a token for each byte: a character comes with its last token, through
/// stop strings and the splitter of reasoning, too.
fn ch14_no_piece_of_an_answer_splits_a_character() {
    let tokenizer = Arc::new(Tokenizer::from_gguf(&file(&[])).unwrap());
    let answer = "<think>\u{1f914}</think>Gr\u{fc}\u{df}e, \u{65e5}\u{672c} \u{1f600}\u{1f680}.";
    let ids = tokenizer.encode(answer, false, false).unwrap();
    let emoji = tokenizer.encode("\u{1f600}", false, false).unwrap();
    assert_eq!(emoji.len(), 4);
    let options = SequenceOptions { stop: vec!["\u{1f680}!".into()], ..SequenceOptions::default() };
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let mut sequence = Sequence::new(Arc::clone(&tokenizer), &[0], greedy, options).unwrap();
    let mut splitter = ReasoningSplitter::after("");
    let (mut shown, mut pieces) = (String::new(), Vec::new());
    for &id in ids.iter().chain([&EOT]) {
        sequence.wants(1, 512).unwrap().unwrap();
        let mut logits = vec![0.0; tokenizer.vocab_size()];
        logits[id as usize] = 1.0;
        sequence.accept(|_| &logits).unwrap();
        let piece = sequence.take_text();
        shown += &piece;
        pieces.extend(splitter.push(&piece));
    }
    pieces.extend(splitter.finish());
    assert_eq!(shown, answer);
    assert!(pieces.iter().all(|(_, text)| !text.contains(char::REPLACEMENT_CHARACTER)));
    let of = |part: Part| -> String {
        pieces.iter().filter(|(own, _)| *own == part).map(|(_, text)| &**text).collect()
    };
    assert_eq!(of(Part::Reasoning), "\u{1f914}");
    assert_eq!(of(Part::Answer), &answer[answer.find("Gr").unwrap()..]);
    // Each byte but the last of a character gives nothing.
    let mut decoder = StreamDecoder::default();
    let pieces: Vec<String> = emoji.iter().map(|&id| decoder.push(&tokenizer, id)).collect();
    assert_eq!(pieces, ["", "", "", "\u{1f600}"]);
}

fn templates_are_chosen_in_order() {
    let text = |text: &str| Value::Str(text.into());
    let gguf = file(&[
        ("tokenizer.chat_template", text("plain {{ tools is defined }}")),
        ("tokenizer.chat_template.tool_use", text("tools {{ tools | length }}")),
    ]);
    let render = |choice: &TemplateChoice, tools: &[&str]| {
        let tools = tools.iter().map(|tool| tool.parse().unwrap()).collect();
        chat_of(&gguf, choice).unwrap().render(&Conversation { tools, ..says("") }).unwrap()
    };
    assert_eq!(render(&TemplateChoice::Auto, &[]), "plain False");
    assert_eq!(render(&TemplateChoice::Auto, &["{}", "{}"]), "tools 2");
    let given = TemplateChoice::parse("given {{ tools | length }}").unwrap();
    assert_eq!(render(&given, &["{}"]), "given 1");
    assert_eq!(TemplateChoice::parse("chatml").unwrap(), TemplateChoice::BuiltIn("chatml"));
    let error = TemplateChoice::parse("llama9").unwrap_err();
    assert!(error.to_string().contains("chat_template: found 'llama9', expected bitnet, llama3"));
    let switch = chat("{% if enable_thinking is defined and not enable_thinking %}no{% endif %}");
    assert!(switch.has_reasoning_switch() && !chat("x").has_reasoning_switch());
    let variables = Variables::parse(r#"{"enable_thinking": false}"#).unwrap();
    assert_eq!(switch.render(&Conversation { variables, ..says("") }).unwrap(), "no");
}

fn an_open_answer_goes_on() {
    let chat = chat_of(&file(&[]), &TemplateChoice::BuiltIn("chatml")).unwrap();
    let mut talk = says("Count.");
    talk.messages.push(Message::new("assistant", "One, <|eot_id|>"));
    talk.ending = Ending::Open;
    let expected = "<|im_start|>user\nCount.<|im_end|>\n<|im_start|>assistant\nOne, <|eot_id|>";
    assert_eq!(chat.render(&talk).unwrap(), expected);
    assert!(!chat.ids(&talk).unwrap().contains(&EOT));
}

fn json_is_written_as_python_writes_it() {
    let tool = r#"{"b": 1, "a": [1.0, 1e20, "é\n\u0001\"", null, true, {}, []], "c": 18446744073709551615}"#;
    let render = |arguments: &str| {
        let chat = chat(&format!("{{{{ tools[0] | tojson({arguments}) }}}}"));
        let tools = vec![tool.parse().unwrap()];
        chat.render(&Conversation { tools, ..says("") }).unwrap()
    };
    let a = r#"[1.0, 1e+20, "é\n\u0001\"", null, true, {}, []]"#;
    let c = "18446744073709551615";
    assert_eq!(render(""), format!(r#"{{"b": 1, "a": {a}, "c": {c}}}"#));
    assert_eq!(render("sort_keys=true"), format!(r#"{{"a": {a}, "b": 1, "c": {c}}}"#));
    assert_eq!(
        render("separators=(',', ':')"),
        format!(r#"{{"b":1,"a":{},"c":{c}}}"#, a.replace(", ", ","))
    );
    assert!(render("ensure_ascii=true").contains(r#""\u00e9\n\u0001\"""#));
    assert!(render("indent=1").starts_with("{\n \"b\": 1,\n \"a\": [\n  1.0,\n  1e+20,"));
    assert!(render("indent=1").contains("{},\n  []\n ],\n \"c\""));
}
