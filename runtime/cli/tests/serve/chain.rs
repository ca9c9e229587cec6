//! The way from a Hugging Face folder to an answer: docs/convert.md shows it.

use std::path::Path;

use bitnet_runtime::file::gguf::Gguf;
use serde_json::json;

use crate::folder::{Folder, Form, text};
use crate::program::{answer, command, demo_model, layout_of, piped, profile};
use crate::server::Server;

/// Text before and after what is said; the model was not made to talk.
const TEMPLATE: &str = "{% for message in messages %}{{ message['role'] | upper }}:\n\
                        {{ message['content'] }}\n\n{% endfor %}{% if add_generation_prompt %}\
                        ASSISTANT:\n{% endif %}";
const QUESTION: &str = "What light through yonder window breaks?";

/// A folder with a template is converted and quantised, runs by a profile, talks in a terminal, and its server
/// answers the same. The profile is one that was not measured: the tuner has tests of its own.
#[test]
fn a_folder_becomes_an_answer() {
    let mut folder = Folder::demo(&Gguf::open(demo_model()).unwrap(), Form::Multiply);
    folder.tokenizer_config["chat_template"] = json!(TEMPLATE);
    let dir = folder.write();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (converted, model, tuned) = (at("model.gguf"), at("fast.gguf"), at("host.toml"));
    answer(&["convert", text(dir.path()), "-o", &converted]);
    answer(&["quantize", &converted, "--embd", "q8_0", "-o", &model]);
    profile(None).save(Path::new(&tuned)).unwrap();
    let run = ["-m", &model, "--profile", &tuned, "-p", QUESTION, "-n", "1", "--json"];
    let report = serde_json::from_str(&answer(&run)).unwrap();
    assert_eq!(layout_of(&report), "tl1_t32");

    let flags = ["-m", &model, "--profile", &tuned, "--temp", "0", "-n", "24"];
    let talk = piped(command(&[&["chat"], &flags[..]].concat()), QUESTION.as_bytes());
    assert!(talk.status.success(), "{}", String::from_utf8_lossy(&talk.stderr));
    let said = String::from_utf8(talk.stdout).unwrap();
    let server = Server::start(&flags);
    let body = json!({ "messages": [{ "role": "user", "content": QUESTION }] });
    let answered = server.ok("/v1/chat/completions", &body);
    let content = answered["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(!said.trim().is_empty());
    assert_eq!(content.trim(), said.trim());
}
