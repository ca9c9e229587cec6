//! Embeddings: OpenAI's route and llama.cpp's.

use std::thread;

use serde_json::{Value, json};

use crate::program::{answer, demo_model};
use crate::server::{Server, demo, demo_with};

const TEXTS: [&str; 3] = ["ROMEO: It is the east", "and Juliet is the sun.", ""];

/// The embeddings that the command makes.
fn of_command(texts: &[&str], pooling: &str) -> Vec<Vec<f32>> {
    let args = ["embed", "-m", &demo_model(), "-p", &texts.join("\n"), "--pooling", pooling];
    serde_json::from_str(&answer(&args)).unwrap()
}

fn rows(answer: &Value) -> Vec<Vec<f32>> {
    let data = answer["data"].as_array().unwrap();
    data.iter().map(|row| serde_json::from_value(row["embedding"].clone()).unwrap()).collect()
}

#[test]
fn openai_s_form_has_the_numbers_of_the_command() {
    let server = demo_with(&["--pooling", "mean"]);
    let expected = of_command(&TEXTS, "mean");
    let answer = server.ok("/v1/embeddings", &json!({"model": "any", "input": TEXTS}));
    assert_eq!(rows(&answer), expected);
    assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("any")));
    for (index, row) in answer["data"].as_array().unwrap().iter().enumerate() {
        assert_eq!((&row["object"], &row["index"]), (&json!("embedding"), &json!(index)));
    }
    let tokens = |text: &str| {
        let body = json!({"content": text, "add_special": true});
        server.ok("/tokenize", &body)["tokens"].clone()
    };
    let ids: Vec<Value> = TEXTS.into_iter().map(tokens).collect();
    let count: usize = ids.iter().map(|ids| ids.as_array().unwrap().len()).sum();
    assert_eq!(answer["usage"], json!({"prompt_tokens": count, "total_tokens": count}));
    // Ids are as they are; one text, or one list of ids, stands for itself.
    let answer = server.ok("/v1/embeddings", &json!({"input": ids}));
    assert_eq!(rows(&answer), expected);
    let (begin, end) = TEXTS[0].split_at(6);
    let parts = json!([{"type": "text", "text": begin}, {"type": "text", "text": end}]);
    let objects = [json!({"prompt_string": TEXTS[0]}), json!({"content": parts})];
    for input in [json!(TEXTS[0]), ids[0].clone()].into_iter().chain(objects) {
        assert_eq!(rows(&server.ok("/v1/embeddings", &json!({"input": input}))), expected[..1]);
    }
    // Numbers as bytes.
    let body = json!({"input": TEXTS, "encoding_format": "base64"});
    let answer = server.ok("/v1/embeddings", &body);
    for (row, expected) in answer["data"].as_array().unwrap().iter().zip(&expected) {
        let bytes = bytes_of(row["embedding"].as_str().unwrap());
        let values: Vec<f32> =
            bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        assert_eq!(&values, expected);
    }
}

/// The bytes of a text in base64, by its definition.
fn bytes_of(text: &str) -> Vec<u8> {
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = text.bytes().filter(|&byte| byte != b'=');
    let digits: Vec<u32> = digits
        .map(|byte| letters.iter().position(|&letter| letter == byte).unwrap() as u32)
        .collect();
    let four = |digits: &[u32]| {
        let bits =
            digits.iter().fold(0, |bits, digit| bits << 6 | digit) << (6 * (4 - digits.len()));
        bits.to_be_bytes()[1..digits.len()].to_vec()
    };
    digits.chunks(4).flat_map(four).collect()
}

#[test]
fn llama_cpp_s_form_is_a_list() {
    let server = demo();
    let expected = {
        let args = ["embed", "-m", &demo_model(), "-p", TEXTS[0], "--embd-normalize", "-1"];
        serde_json::from_str::<Vec<Vec<f32>>>(&answer(&args)).unwrap()
    };
    for path in ["/embedding", "/embeddings"] {
        for field in ["content", "input"] {
            let answer = server.ok(path, &json!({field: TEXTS[0]}));
            assert_eq!(answer[0]["index"], 0);
            let rows: Vec<Vec<f32>> =
                serde_json::from_value(answer[0]["embedding"].clone()).unwrap();
            // The file names no pooling: the state of each token, as it is.
            assert_eq!(rows, expected);
        }
    }
    // Of several texts each has its row.
    let server = demo_with(&["--pooling", "cls", "--embd-normalize", "-1"]);
    let answer = server.ok("/embedding", &json!({"content": TEXTS}));
    assert_eq!(answer.as_array().unwrap().len(), 3);
    assert_eq!(answer[1]["embedding"].as_array().unwrap().len(), 1);
    let own = server.ok("/embedding", &json!({"content": TEXTS[0], "embd_normalize": 2}));
    let values: Vec<f32> = serde_json::from_value(own[0]["embedding"][0].clone()).unwrap();
    assert_eq!(values, of_command(&TEXTS[..1], "cls")[0]);
}

/// Texts are written meanwhile, and more texts come than there are slots.
#[test]
fn embeddings_do_not_depend_on_the_load() {
    let server = demo_with(&["--pooling", "mean"]);
    let texts: Vec<String> =
        (0..9).map(|i| format!("{} {i}", TEXTS[i % 2].repeat(1 + i))).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let expected = of_command(&texts, "mean");
    let prompt =
        json!({"prompt": "ROMEO: ", "n_predict": 48, "temperature": 0, "ignore_eos": true});
    let text = server.ok("/completion", &prompt)["content"].clone();
    thread::scope(|scope| {
        let server: &Server = &server;
        for _ in 0..4 {
            scope.spawn(|| {
                assert_eq!(server.ok("/completion", &prompt)["content"], text);
            });
            scope.spawn(|| {
                let answer = server.ok("/v1/embeddings", &json!({"input": texts}));
                assert_eq!(rows(&answer), expected);
            });
        }
    });
    for slot in server.get("/slots").json().as_array().unwrap() {
        assert_eq!(slot["is_processing"], false);
    }
}

#[test]
fn what_is_no_text_is_refused() {
    let server = demo_with(&["--pooling", "last"]);
    let refused = |body: Value| server.refused("/v1/embeddings", &body, 400);
    assert!(refused(json!({})).starts_with("input: nothing, expected"));
    for input in [json!([]), json!(7), json!([[]]), json!([1.5]), json!([-1]), json!([70_000])] {
        refused(json!({"input": input}));
    }
    for content in
        [json!("x"), json!([{"type": "text"}]), json!([{"type": "image_url", "text": "x"}])]
    {
        let message = refused(json!({"input": {"content": content}}));
        assert!(message.contains("a content of texts"), "{message}");
    }
    let message = refused(json!({"input": vec!["x"; 2049]}));
    assert!(message.contains("2049 texts, expected at most 2048"), "{message}");
    let message = refused(json!({"input": ["short", "It is the east. ".repeat(100)]}));
    assert!(message.contains("is too large to process"), "{message}");
    let message = refused(json!({"input": "x", "encoding_format": "int8"}));
    assert!(message.contains("float or base64"), "{message}");
    refused(json!({"input": "x", "dimensions": 128}));
    server.ok("/v1/embeddings", &json!({"input": "x", "dimensions": 384}));
    server.refused("/embedding", &json!({"content": "x", "embd_normalize": -2}), 400);
    // Without a pooling OpenAI's route has no form for the states.
    let server = demo();
    let message = server.refused("/v1/embeddings", &json!({"input": "x"}), 400);
    assert!(message.starts_with("pooling: none"), "{message}");
    // So many numbers are not one answer's.
    let many = vec![vec![5; 250]; 200];
    let message = server.refused("/embeddings", &json!({"input": many}), 400);
    assert!(message.contains("50000 embeddings of 384 numbers"), "{message}");
}

#[test]
fn a_server_of_embeddings_writes_no_texts() {
    for flag in ["--embedding", "--embeddings"] {
        let server = demo_with(&[flag, "--pooling", "mean"]);
        let answer = server.ok("/v1/embeddings", &json!({"input": TEXTS}));
        assert_eq!(rows(&answer), of_command(&TEXTS, "mean"));
        for path in ["/completion", "/v1/completions", "/v1/chat/completions"] {
            let message = server.refused(path, &json!({"prompt": "x"}), 501);
            assert!(message.contains("--embeddings"), "{message}");
        }
        let model = &server.get("/v1/models").json()["models"][0];
        assert_eq!(model["capabilities"], json!(["embedding"]));
    }
}
