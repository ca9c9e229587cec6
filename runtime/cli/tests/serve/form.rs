//! Texts held to a form: schemas, grammars, and calls of functions.

use serde_json::{Value, json};

use crate::server::{Server, demo_with};

/// A template that shows tools as Qwen's does.
const TAGGED: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
    {% if tools %}Call <tool_call>{{ tools | tojson }}</tool_call>\n{% endif %}assistant:";
/// And as Llama 3's does.
const BARE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
    {% if tools %}Environment: ipython, parameters: {{ tools | tojson }}\n{% endif %}assistant:";

fn talking(template: &str) -> Server {
    demo_with(&["--chat-template", template, "-c", "1024"])
}

fn chat(server: &Server, extra: Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": "Speak!"}], "max_tokens": 64, "temperature": 0,
    });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    server.ok("/v1/chat/completions", &body)["choices"][0].clone()
}

fn refused(server: &Server, extra: Value) -> String {
    let mut body = json!({"messages": [{"role": "user", "content": "Speak!"}], "max_tokens": 8});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    server.refused("/v1/chat/completions", &body, 400)
}

fn content(choice: &Value) -> &str {
    choice["message"]["content"].as_str().unwrap()
}

#[test]
fn answers_keep_to_schemas_and_grammars() {
    let server = talking("chatml");
    let schema = json!({
        "type": "object",
        "properties": {"yes": {"type": "boolean"}, "count": {"enum": [3, 4]}},
        "required": ["yes", "count"],
        "additionalProperties": false,
    });
    let formats = [
        json!({"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}),
        json!({"response_format": {"type": "json_schema", "schema": schema}}),
        json!({"response_format": {"type": "json_object", "schema": schema}}),
        json!({"json_schema": schema}),
    ];
    for format in formats {
        let choice = chat(&server, format);
        let found: Value = serde_json::from_str(content(&choice)).unwrap();
        assert!(found["yes"].is_boolean() && [3, 4].contains(&found["count"].as_i64().unwrap()));
        // In the order in which the schema has them.
        assert!(content(&choice).starts_with("{\"yes\": "), "{choice}");
        assert_eq!(choice["finish_reason"], "stop");
    }
    let choice = chat(&server, json!({"grammar": "root ::= \"a\"{5,5}"}));
    assert_eq!((content(&choice), &choice["finish_reason"]), ("aaaaa", &json!("stop")));
    let text = json!({"prompt": "x", "grammar": "root ::= [b-c]{3}", "n_predict": 9});
    let found = server.ok("/completion", &text);
    assert_eq!(found["stop_type"], "eos");
    assert!(
        ["b", "c"].iter().any(|c| found["content"].as_str().unwrap().starts_with(c)),
        "{found}"
    );
    let free = chat(&server, json!({"response_format": {"type": "text"}}));
    assert_eq!(content(&free), content(&chat(&server, json!({}))));
    let object = chat(&server, json!({"response_format": {"type": "json_object"}}));
    assert!(content(&object).starts_with('{'), "{object}");
}

/// Bad schemas, and grammars that grow without end.
#[test]
fn r21_schemas_and_grammars_that_are_none() {
    let server = talking("chatml");
    let formats = [
        json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "hiccup"}}}}),
        json!({"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}}),
        json!({"response_format": {"type": "json_schema"}}),
        json!({"response_format": {"type": "sound"}}),
        json!({"response_format": "json"}),
        json!({"response_format": {}}),
        json!({"json_schema": 123}),
        json!({"grammar": "root ::= ("}),
        json!({"grammar": "root ::= none"}),
        json!({"grammar": 5}),
        json!({"grammar": "(".repeat(300_000)}),
        json!({"grammar": "root ::= \"a\"", "json_schema": {}}),
    ];
    for format in formats {
        refused(&server, format);
    }
}

/// What compiles and is too much work ends that text alone: those beside it are as ever.
#[test]
fn r21_bombs_beside_a_text() {
    let laughs: String = (0..40).map(|i| format!("r{i} ::= r{} r{}\n", i + 1, i + 1)).collect();
    let words: Vec<String> = (0..2000).map(|i| format!("{i}{}", "x".repeat(i % 50))).collect();
    let bombs = [
        json!({"grammar": "%llguidance {}\nstart: /(a{1,1000}){1,1000}(b|.){1,1000}/"}),
        json!({"grammar": format!("root ::= r0\n{laughs}r40 ::= \"lol\"")}),
        json!({"grammar": "root ::= root root root | \"a\" | \"aa\" | root? root? root?"}),
        json!({"grammar": "root ::= t\nt ::= [^x] t | [^y] t | [^z] t | ."}),
        json!({"grammar": "root ::= ((((\"a\"{1,1000}){1,1000}){1,1000}){1,1000}){1,1000}"}),
        json!({"json_schema": {"type": "array", "minItems": 100_000_000, "items": {"type": "string"}}}),
        json!({"json_schema": {"type": "string", "pattern": "^(a|b|ab)*(.*x){30}$"}}),
        json!({"json_schema": {"type": "string", "maxLength": 1_000_000_000, "minLength": 999_999_999}}),
        json!({"json_schema": {"enum": words}}),
        json!({"json_schema": {"anyOf": vec![json!({"type": "object", "properties": {"a": {}}}); 500]}}),
    ];
    let server = demo_with(&["-np", "2", "-c", "2048", "-n", "-1"]);
    let text = json!({
        "prompt": "ROMEO:", "n_predict": 900, "temperature": 0, "ignore_eos": true, "id_slot": 0,
    });
    let alone = server.ok("/completion", &text)["content"].clone();
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| server.ok("/completion", &text)["content"].clone());
        for bomb in &bombs {
            let mut body = json!({"prompt": "x", "n_predict": 32, "id_slot": 1});
            body.as_object_mut().unwrap().extend(bomb.as_object().unwrap().clone());
            let answer = server.post("/completion", &body);
            assert!([200, 400].contains(&answer.status), "{}", answer.body);
        }
        assert_eq!(beside.join().unwrap(), alone);
    });
    let ok = json!({"prompt": "x", "grammar": "root ::= \"ok\""});
    assert_eq!(server.ok("/completion", &ok)["content"], "ok");
}

fn tools() -> Value {
    let tool = |name: &str, field: &str| {
        json!({"type": "function", "function": {"name": name, "parameters": {
            "type": "object",
            "properties": {field: {"enum": ["north", "south"]}},
            "required": [field],
            "additionalProperties": false,
        }}})
    };
    json!([tool("go", "where"), tool("look", "there")])
}

#[test]
fn a_call_that_is_asked_for_comes_in_both_families() {
    for template in [TAGGED, BARE] {
        let server = talking(template);
        let named = json!({"type": "function", "function": {"name": "look"}});
        let choices = [(json!("required"), None), (named, Some("look"))];
        for (choice, name) in choices {
            let body = json!({
                "tools": tools(), "tool_choice": choice, "parallel_tool_calls": false,
            });
            let answer = chat(&server, body.clone());
            let calls = answer["message"]["tool_calls"].as_array().unwrap();
            assert_eq!(calls.len(), 1, "{answer}");
            assert!(calls[0]["id"].as_str().unwrap().starts_with("call_"));
            assert_eq!(calls[0]["type"], "function");
            let called = calls[0]["function"]["name"].as_str().unwrap();
            assert!(name.map_or(["go", "look"].contains(&called), |name| name == called));
            let arguments: Value =
                serde_json::from_str(calls[0]["function"]["arguments"].as_str().unwrap()).unwrap();
            let field = if called == "go" { "where" } else { "there" };
            assert!(["north", "south"].contains(&arguments[field].as_str().unwrap()));
            assert_eq!(answer["finish_reason"], "tool_calls");
            assert!(answer["message"]["content"].is_null(), "{answer}");

            let mut streamed = json!({
                "messages": [{"role": "user", "content": "Speak!"}], "max_tokens": 64,
                "temperature": 0, "stream": true,
            });
            streamed.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
            let (chunks, _) = server.stream("/v1/chat/completions", &streamed);
            let deltas: Vec<&Value> =
                chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]["tool_calls"]).collect();
            let calls: Vec<&&Value> = deltas.iter().filter(|calls| calls.is_array()).collect();
            assert_eq!(calls.len(), 1, "{chunks:?}");
            assert_eq!(calls[0][0]["index"], 0);
            assert_eq!(calls[0][0]["function"]["name"], called);
            assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
        }
    }
}

#[test]
fn tools_that_are_not_to_be_called_change_nothing_but_the_prompt() {
    let server = talking(TAGGED);
    let none = chat(&server, json!({"tools": tools(), "tool_choice": "none"}));
    assert!(none["message"].get("tool_calls").is_none(), "{none}");
    let body = json!({
        "messages": [{"role": "user", "content": "Speak!"}], "tools": tools(),
    });
    let prompt = server.ok("/apply-template", &body)["prompt"].as_str().unwrap().to_owned();
    // Keys keep their order.
    assert!(
        prompt.contains("{\"type\": \"function\", \"function\": {\"name\": \"go\""),
        "{prompt}"
    );
}

#[test]
fn malformed_tools_are_refused() {
    let server = talking(TAGGED);
    for extra in [
        json!({"tools": "x"}),
        json!({"tools": [1]}),
        json!({"tools": [{"type": "function"}]}),
        json!({"tools": [{"type": "function", "function": {"name": 5}}]}),
        json!({"tools": tools(), "tool_choice": "maybe"}),
        json!({"tools": tools(), "tool_choice": {"type": "function", "function": {"name": "none"}}}),
        json!({"tool_choice": "required"}),
        json!({"tools": vec![tools()[0].clone(); 129]}),
        json!({"tools": tools(), "logprobs": true, "stream": true}),
    ] {
        refused(&server, extra);
    }
}

#[test]
fn tools_are_offered_in_vain_to_a_template_without_them() {
    let server = talking("chatml");
    let alone = chat(&server, json!({}));
    for choice in [json!("auto"), json!("none"), Value::Null] {
        let beside = chat(&server, json!({"tools": tools(), "tool_choice": choice}));
        assert_eq!(beside["message"], alone["message"]);
    }
    let named = json!({"type": "function", "function": {"name": "look"}});
    for choice in [json!("required"), named] {
        let message = refused(&server, json!({"tools": tools(), "tool_choice": choice}));
        assert!(message.contains("template has no tools"), "{message}");
    }
}
