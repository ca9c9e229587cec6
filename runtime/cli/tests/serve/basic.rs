//! Start, addresses, and what the server says about itself.

use serde_json::json;

use crate::program::{demo_model, refusal};
use crate::server::{Server, demo, demo_with};

#[test]
fn it_tells_its_health_model_slots_and_settings() {
    let server = demo_with(&["--alias", "bard,the-bard"]);
    assert_eq!(server.get("/health").json(), json!({"status": "ok"}));
    assert_eq!(server.get("/v1/health").status, 200);
    for path in ["/models", "/v1/models"] {
        let models = server.get(path).json();
        assert_eq!(models["data"][0]["id"], "bard");
        assert_eq!(models["data"][0]["aliases"], json!(["bard", "the-bard"]));
        assert_eq!(models["data"][0]["meta"]["n_ctx"], 256);
        assert_eq!(models["models"][0]["name"], "bard");
    }
    let props = server.get("/props").json();
    assert_eq!(props["total_slots"], 2);
    assert_eq!(props["default_generation_settings"]["n_ctx"], 256);
    assert_eq!(props["model_alias"], "bard");
    let params = &props["default_generation_settings"]["params"];
    assert_eq!((&params["seed"], &params["n_predict"]), (&json!(42), &json!(64)));
    let slots = server.get("/slots").json();
    assert_eq!(slots.as_array().unwrap().len(), 2);
    assert_eq!(slots[1]["id"], 1);
    assert_eq!(slots[1]["n_ctx"], 256);
    assert_eq!(slots[1]["is_processing"], false);
    server.get("/metrics").refusal(501);
}

#[test]
fn the_page_comes_with_its_policy_and_may_be_left_out() {
    let page = demo().get("/");
    assert_eq!(page.status, 200);
    assert!(page.body.starts_with("<!doctype html>"), "{}", page.body);
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
    demo_with(&["--no-ui"]).get("/").refusal(404);
}

#[test]
fn errors_have_one_form() {
    let server = demo_with(&["--no-slots"]);
    server.get("/slots").refusal(501);
    server.get("/nothing").refusal(404);
    server.get("/completion").refusal(405);
    server.request("DELETE", "/health", &[], b"").refusal(405);
    for path in ["/infill", "/rerank", "/v1/responses", "/lora-adapters"] {
        let message = server.refused(path, &json!({}), 501);
        assert!(message.contains(path), "{message}");
    }
    server.request("POST", "/completion", &[], b"{\"prompt\": ").refusal(400);
    let message = server.refused("/completion", &json!({}), 400);
    assert!(message.starts_with("prompt: nothing, expected"), "{message}");
}

#[test]
fn texts_become_tokens_and_back() {
    let server = demo();
    let text = "ROMEO: What light\u{e9} ";
    let tokens = server.ok("/tokenize", &json!({"content": text}));
    let count = tokens["count"].as_u64().unwrap() as usize;
    assert_eq!(tokens["tokens"].as_array().unwrap().len(), count);
    assert_eq!(tokens["max_model_len"], 256);
    let back = server.ok("/detokenize", &json!({"tokens": tokens["tokens"]}));
    assert_eq!(back["content"], text);
    let pieces = server.ok("/tokenize", &json!({"content": text, "with_pieces": true}));
    let pieces = pieces["tokens"].as_array().unwrap();
    let mut bytes = Vec::new();
    for piece in pieces {
        match &piece["piece"] {
            serde_json::Value::String(text) => bytes.extend(text.as_bytes()),
            other => {
                bytes.extend(other.as_array().unwrap().iter().map(|b| b.as_u64().unwrap() as u8))
            }
        }
    }
    assert_eq!(String::from_utf8(bytes).unwrap(), text);
    for body in [json!({"tokens": [-1]}), json!({"tokens": [1u64 << 40]}), json!({"tokens": "x"})] {
        server.refused("/detokenize", &body, 400);
    }
    assert!(server.get("/tokenizer_info").json()["model_max_length"] == 256);
}

#[test]
fn numbers_have_llama_cpp_s_names_and_grow() {
    let server = demo_with(&["--metrics"]);
    assert!(server.get("/metrics").header("process-start-time-unix").is_some());
    let value = |name: &str| server.number(name);
    assert_eq!(value("llamacpp:tokens_predicted_total"), 0.0);
    server.ok("/completion", &json!({"prompt": "ROMEO: ", "n_predict": 8, "ignore_eos": true}));
    assert_eq!(value("llamacpp:tokens_predicted_total"), 8.0);
    let prompt = value("llamacpp:prompt_tokens_total");
    assert!(prompt > 0.0);
    server.ok("/completion", &json!({"prompt": "JULIET: ", "n_predict": 8, "ignore_eos": true}));
    assert_eq!(value("llamacpp:tokens_predicted_total"), 16.0);
    assert!(value("llamacpp:prompt_tokens_total") > prompt);
    assert_eq!(value("bitnet:ttft_seconds_count"), 2.0);
    assert_eq!(value("llamacpp:requests_processing"), 0.0);
    assert_eq!(value("bitnet:requests_total{route=\"/completion\",status=\"200\"}"), 2.0);
}

/// A port that is taken.
#[test]
fn r32_a_port_that_is_taken_is_named() {
    let server = demo();
    let model = demo_model();
    let port = server.port.to_string();
    let errors = refusal(&["serve", "-m", &model, "--port", &port], 6);
    assert!(errors.contains(&format!("127.0.0.1:{port}: cannot listen")), "{errors}");
}

/// Contexts that do not fit into memory are refused when the server starts.
#[cfg(target_os = "linux")]
#[test]
fn r31_contexts_that_do_not_fit_are_refused_with_what_does() {
    // What a limit leaves takes the place of a small machine's memory.
    const LIMIT: &str = "ulimit -v 700000";
    let output = std::process::Command::new("sh")
        .args(["-c", &format!("{LIMIT}; exec \"$@\""), "sh", env!("CARGO_BIN_EXE_bitnet-run")])
        .args(["serve", "-m", &demo_model(), "--port", "0", "-np", "256", "-c", "262144"])
        .output()
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("256 slots of 1024 positions take"), "{errors}");
    let number = |flag: &str| {
        let rest = errors.split_once(flag).unwrap_or_else(|| panic!("{flag}: {errors}")).1;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<usize>().unwrap()
    };
    // What it names does fit: the slots begin, and each is served.
    let (slots, context) = (number("; -np "), number(", or -c "));
    assert!((1..256).contains(&slots) && (256..262_144).contains(&context), "{errors}");
    for (slots, context) in [(slots, slots * 1024), (256, context)] {
        let [slots, context] = [slots, context].map(|number| number.to_string());
        let args = ["-m", &demo_model(), "-np", &slots, "-c", &context];
        let server = Server::start_limited(LIMIT, &args);
        let body = json!({"prompt": "ROMEO:", "n_predict": 2});
        assert_eq!(server.ok("/completion", &body)["tokens_predicted"], 2);
    }
}
