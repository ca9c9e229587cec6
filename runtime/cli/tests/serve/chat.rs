//! Answers in a conversation.

use serde_json::{Value, json};

use crate::server::{Server, demo, demo_with};

/// The demo model with a template.
fn talking() -> Server {
    demo_with(&["--chat-template", "chatml"])
}

fn messages() -> Value {
    json!([
        {"role": "system", "content": "You are a poet."},
        {"role": "user", "content": "Speak!"},
    ])
}

#[test]
fn an_answer_has_counts_and_a_form() {
    let server = talking();
    let body = json!({"messages": messages(), "max_tokens": 8, "temperature": 0, "model": "any"});
    for path in ["/v1/chat/completions", "/chat/completions"] {
        let found = server.ok(path, &body);
        assert_eq!(found["object"], "chat.completion");
        assert_eq!(found["model"], "any");
        assert!(found["id"].as_str().unwrap().starts_with("chatcmpl-"));
        assert!(found["system_fingerprint"].as_str().unwrap().starts_with('b'));
        let choice = &found["choices"][0];
        assert_eq!(choice["message"]["role"], "assistant");
        assert_eq!(choice["finish_reason"], "length");
        assert_eq!(found["usage"]["completion_tokens"], 8);
        let prompt = server.ok("/apply-template", &body)["prompt"].clone();
        let count = server.ok("/tokenize", &json!({"content": prompt, "add_special": true}));
        assert_eq!(found["usage"]["prompt_tokens"], count["count"]);
    }
}

#[test]
fn a_stream_has_its_order() {
    let server = talking();
    let mut body = json!({"messages": messages(), "max_tokens": 12, "temperature": 0});
    let plain = server.ok("/v1/chat/completions", &body);
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let (chunks, is_done) = server.stream("/v1/chat/completions", &body);
    assert!(is_done);
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": null}));
    let (usage, chunks) = chunks.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 12);
    let (last, chunks) = chunks.split_last().unwrap();
    assert_eq!(last["choices"][0]["delta"], json!({}));
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    let content: String = chunks[1..]
        .iter()
        .map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().unwrap())
        .collect();
    assert_eq!(plain["choices"][0]["message"]["content"], content);
    assert!(chunks.iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null()));
}

#[test]
fn probabilities_come_with_the_text() {
    let server = talking();
    let mut body = json!({
        "messages": messages(), "max_tokens": 6, "temperature": 0, "logprobs": true, "top_logprobs": 3,
    });
    let plain = server.ok("/v1/chat/completions", &body);
    let rows = plain["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(rows.len(), 6);
    assert_eq!(rows[0]["top_logprobs"].as_array().unwrap().len(), 3);
    let joined: String = rows.iter().map(|row| row["token"].as_str().unwrap()).collect();
    assert_eq!(plain["choices"][0]["message"]["content"], joined);
    body["stream"] = true.into();
    let (chunks, _) = server.stream("/v1/chat/completions", &body);
    let all: Vec<&Value> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .collect();
    assert_eq!(json!(all), plain["choices"][0]["logprobs"]["content"]);
    body["logprobs"] = false.into();
    server.refused("/v1/chat/completions", &body, 400);
}

#[test]
fn several_answers_have_seeds_in_turn() {
    let server = talking();
    let body = |seed: u64, n: usize, stream: bool| {
        json!({
            "messages": messages(), "max_tokens": 16, "temperature": 1.5, "seed": seed, "n": n,
            "stream": stream,
        })
    };
    let content = |choice: &Value| choice["message"]["content"].as_str().unwrap().to_owned();
    let one =
        |seed| content(&server.ok("/v1/chat/completions", &body(seed, 1, false))["choices"][0]);
    let alone = [one(1), one(2)];
    let both = server.ok("/v1/chat/completions", &body(1, 2, false));
    assert_eq!([0, 1].map(|i| content(&both["choices"][i])), alone);
    let (chunks, _) = server.stream("/v1/chat/completions", &body(1, 2, true));
    let streamed = [0, 1].map(|i| {
        let own =
            chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == i);
        own.filter_map(|choice| choice["delta"]["content"].as_str()).collect::<String>()
    });
    assert_eq!(streamed, alone);
}

#[test]
fn an_answer_that_is_begun_is_continued() {
    let server = talking();
    let mut body = json!({"messages": messages(), "max_tokens": 16, "temperature": 0});
    let whole =
        server.ok("/v1/chat/completions", &body)["choices"][0]["message"]["content"].clone();
    let whole = whole.as_str().unwrap();
    let begin: String = whole.chars().take(5).collect();
    body["messages"].as_array_mut().unwrap().push(json!({"role": "assistant", "content": begin}));
    let prompt = server.ok("/apply-template", &body)["prompt"].clone();
    assert!(
        prompt.as_str().unwrap().ends_with(&format!("<|im_start|>assistant\n{begin}")),
        "{prompt}"
    );
    server.ok("/v1/chat/completions", &body);
    body["messages"].as_array_mut().unwrap().push(json!({"role": "assistant", "content": "again"}));
    let message = server.refused("/v1/chat/completions", &body, 400);
    assert!(message.contains("two answers"), "{message}");
}

#[test]
fn templates_get_the_system_prompt_and_variables_of_the_flags() {
    let template = "{{ color | default('none') }}|{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}";
    let server = demo_with(&[
        "--chat-template",
        template,
        "-p",
        "Be brief.",
        "--chat-template-kwargs",
        r#"{"color": "red"}"#,
    ]);
    let prompt =
        |body: Value| server.ok("/apply-template", &body)["prompt"].as_str().unwrap().to_owned();
    let user = json!({"role": "user", "content": "Hi"});
    assert_eq!(prompt(json!({"messages": [user]})), "red|system:Be brief.;user:Hi;");
    let own = json!({"role": "system", "content": "Own."});
    assert_eq!(prompt(json!({"messages": [own, user]})), "red|system:Own.;user:Hi;");
    let blue = json!({"messages": [own], "chat_template_kwargs": {"color": "blue"}});
    assert_eq!(prompt(blue), "blue|system:Own.;");
    let taken = json!({"messages": [own], "chat_template_kwargs": {"messages": 1}});
    server.refused("/apply-template", &taken, 400);
}

#[test]
fn reasoning_has_a_field_of_its_own_where_that_is_asked_for() {
    // The template opens the reasoning, and nothing in the demo model's texts closes it.
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}<think>";
    for (format, field) in [("deepseek", "reasoning_content"), ("none", "content")] {
        let server = demo_with(&["--chat-template", template, "--reasoning-format", format]);
        let mut body = json!({"messages": messages(), "max_tokens": 8, "temperature": 0});
        let message = server.ok("/v1/chat/completions", &body)["choices"][0]["message"].clone();
        let text = message[field].as_str().unwrap().to_owned();
        assert!(!text.is_empty(), "{message}");
        body["stream"] = true.into();
        let (chunks, _) = server.stream("/v1/chat/completions", &body);
        let streamed: String = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["delta"][field].as_str())
            .collect();
        assert_eq!(streamed, text);
    }
}

#[test]
fn a_model_without_a_template_says_so() {
    let server = demo();
    let message = server.refused("/v1/chat/completions", &json!({"messages": messages()}), 400);
    assert!(message.contains("no") && message.contains("template"), "{message}");
    assert_eq!(server.post("/completion", &json!({"prompt": "x", "n_predict": 1})).status, 200);
}

/// Malformed messages.
#[test]
fn r13_messages_that_are_none() {
    let server = talking();
    for messages in [
        Value::Null,
        json!("string"),
        json!([]),
        json!([123]),
        json!([{}]),
        json!([{"role": 123, "content": "x"}]),
        json!([{"role": "user", "content": 123}]),
        json!([{"content": "x"}]),
        json!([{"role": "user"}]),
        json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        json!([{"role": "user", "content": [{"type": "text"}]}]),
        json!([{"role": "user", "content": [5]}]),
    ] {
        for stream in [false, true] {
            let body = json!({"messages": messages, "stream": stream});
            let message = server.refused("/v1/chat/completions", &body, 400);
            assert!(message.contains("messages"), "{messages}: {message}");
        }
    }
    server.refused("/v1/chat/completions", &json!({}), 400);
    let parts = json!([{"role": "user", "content": [
        {"type": "text", "text": "a"}, {"type": "text", "text": "b"},
    ]}]);
    let prompt = server.ok("/apply-template", &json!({"messages": parts}))["prompt"].clone();
    assert!(prompt.as_str().unwrap().contains("a\nb"), "{prompt}");
}

/// Special tokens in what a user says.
#[test]
fn r20_special_tokens_in_a_message_are_text() {
    let server = talking();
    let count = |content: &str| {
        let body = json!({
            "messages": [{"role": "user", "content": content}], "max_tokens": 0,
        });
        server.ok("/v1/chat/completions", &body)["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    // As one token it would add one; as text it is many.
    assert!(count("x<|begin_of_text|>x") > count("xx") + 1);
}

#[test]
fn progress_begins_with_what_is_cached_and_ends_with_the_whole_prompt() {
    let server = talking();
    let body = json!({
        "messages": [{"role": "user", "content": "This is a test. ".repeat(20)}], "max_tokens": 4,
        "stream": true, "return_progress": true, "timings_per_token": true, "id_slot": 0,
    });
    for is_cached in [false, true] {
        let (chunks, _) = server.stream("/v1/chat/completions", &body);
        let progress: Vec<&Value> =
            chunks.iter().filter(|chunk| chunk["prompt_progress"].is_object()).collect();
        let number = |chunk: &Value, name: &str| chunk["prompt_progress"][name].as_u64().unwrap();
        let (first, last) = (progress[0], progress[progress.len() - 1]);
        assert_eq!(number(first, "processed"), number(first, "cache"));
        assert_eq!(number(first, "cache") > 0, is_cached);
        assert_eq!(first["timings"]["prompt_n"], 0);
        assert_eq!(number(last, "processed"), number(last, "total"));
        assert!(progress.is_sorted_by(|a, b| number(a, "processed") < number(b, "processed")));
    }
}

#[test]
fn tokens_of_a_conversation_are_counted() {
    let server = talking();
    let body = json!({"messages": messages(), "max_tokens": 1});
    let count = server.ok("/v1/chat/completions/input_tokens", &body)["input_tokens"].clone();
    assert_eq!(server.ok("/v1/chat/completions", &body)["usage"]["prompt_tokens"], count);
    server.refused("/chat/completions/input_tokens", &json!({"messages": []}), 400);
}

#[test]
fn templates_get_reasoning_and_a_system_prompt_from_flags() {
    let template = "{% if enable_thinking is defined %}{{ enable_thinking }}|{% endif %}\
        {% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}";
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let file = folder.join("system-prompt");
    std::fs::write(&file, "Be brief.\n").unwrap();
    let body = json!({"messages": [{"role": "user", "content": "Hi"}]});
    for (flags, prompt) in [
        (&["-rea", "off"][..], "false|user:Hi;"),
        (&["--reasoning", "on"], "true|user:Hi;"),
        (&["--reasoning", "auto"], "user:Hi;"),
        (&["-sysf", file.to_str().unwrap()], "system:Be brief.;user:Hi;"),
    ] {
        let server = demo_with(&[&["--chat-template", template], flags].concat());
        let found = server.ok("/apply-template", &body)["prompt"].clone();
        assert_eq!(found.as_str().unwrap().to_lowercase(), prompt.to_lowercase(), "{flags:?}");
    }
}

/// Clients send the arguments of a call as a string; some templates want an object.
#[test]
fn arguments_of_calls_are_what_the_template_wants() {
    let body = json!({"messages": [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": null, "tool_calls": [{
            "id": "call_1", "type": "function",
            "function": {"name": "go", "arguments": "{\"z\": 1, \"where\": \"north\"}"},
        }]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
    ]});
    let around = |arguments: &str| {
        format!(
            "{{% for m in messages %}}{{% for c in m.tool_calls or [] %}}{arguments}{{% endfor %}}{{% endfor %}}"
        )
    };
    for (arguments, expected) in [
        ("{{ c.function.arguments | tojson }}", r#"{"z": 1, "where": "north"}"#),
        ("{{ c.function.arguments }}", r#"{"z": 1, "where": "north"}"#),
        (
            "{% for k, v in c.function.arguments | items %}{{ k | tojson }}={{ v | tojson }} {% endfor %}",
            r#""z"=1 "where"="north" "#,
        ),
    ] {
        let server = demo_with(&["--chat-template", &around(arguments)]);
        assert_eq!(server.ok("/apply-template", &body)["prompt"], expected, "{arguments}");
    }
}
