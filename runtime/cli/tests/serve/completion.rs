//! Texts that continue a prompt, by both routes.

use std::collections::HashSet;
use std::thread;

use serde_json::{Value, json};

use crate::program::{answer, demo_model, package};
use crate::server::{Server, demo, demo_with};

const PROMPT: &str = "ROMEO:\nWhat light";

fn text(server: &Server, extra: &Value) -> String {
    let mut body = json!({"prompt": PROMPT, "n_predict": 32, "temperature": 0});
    let fields = body.as_object_mut().unwrap();
    fields.extend(extra.as_object().unwrap().clone());
    server.ok("/completion", &body)["content"].as_str().unwrap().to_owned()
}

#[test]
fn a_text_is_that_of_run() {
    let server = demo();
    let model = demo_model();
    for (temperature, seed) in [("0", 1), ("0.8", 7), ("1.5", 123)] {
        let seed_text = seed.to_string();
        let args =
            ["-m", &model, "-p", PROMPT, "-n", "32", "--temp", temperature, "-s", &seed_text];
        let alone = answer(&args);
        let number: f64 = temperature.parse().unwrap();
        let served = text(&server, &json!({"temperature": number, "seed": seed}));
        assert_eq!(served, alone, "{temperature}");
    }
}

#[test]
fn counts_and_reasons_are_llama_cpp_s() {
    let server = demo();
    let body = json!({"prompt": PROMPT, "n_predict": 8, "temperature": 0, "return_tokens": true});
    let found = server.ok("/completion", &body);
    let prompt = server.ok("/tokenize", &json!({"content": PROMPT, "add_special": true}));
    assert_eq!(found["timings"]["prompt_n"], prompt["count"]);
    assert_eq!(found["tokens_evaluated"], prompt["count"]);
    assert_eq!(found["timings"]["predicted_n"], 8);
    assert_eq!(found["tokens_predicted"], 8);
    assert_eq!(found["tokens"].as_array().unwrap().len(), 8);
    assert_eq!(found["stop_type"], "limit");
    assert_eq!(found["truncated"], false);
    assert!(found["prompt"].as_str().unwrap().ends_with(PROMPT));
    assert_eq!(found["generation_settings"]["temperature"], 0.0);
    // The context of a slot ends a text, prompt and text together.
    let body = json!({"prompt": PROMPT, "n_predict": -1, "ignore_eos": true, "temperature": 0});
    let all = demo_with(&["-n", "-1"]).ok("/completion", &body);
    assert_eq!(all["truncated"], true);
    assert_eq!(all["stop_type"], "limit");
    let total =
        all["tokens_evaluated"].as_u64().unwrap() + all["tokens_predicted"].as_u64().unwrap();
    assert_eq!(total, 256);
    // The server's own limit is not passed.
    assert_eq!(server.ok("/completion", &body)["tokens_predicted"], 64);
    // Nothing is written where nothing is asked for.
    let none = server.ok("/completion", &json!({"prompt": PROMPT, "n_predict": 0}));
    assert_eq!((&none["content"], &none["tokens_predicted"]), (&json!(""), &json!(0)));
}

#[test]
fn a_stream_is_the_text_in_pieces() {
    let server = demo();
    let body = json!({"prompt": PROMPT, "n_predict": 24, "temperature": 0, "return_tokens": true});
    let plain = server.ok("/completion", &body);
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let (events, is_done) = server.stream("/completion", &streamed);
    assert!(!is_done);
    let content: String = events.iter().map(|event| event["content"].as_str().unwrap()).collect();
    assert_eq!(plain["content"], content);
    let tokens: Vec<&Value> =
        events.iter().flat_map(|event| event["tokens"].as_array().unwrap()).collect();
    assert_eq!(json!(tokens), plain["tokens"]);
    let (last, before) = events.split_last().unwrap();
    assert!(before.iter().all(|event| event["stop"] == false && event["content"] != ""));
    assert_eq!(last["stop"], true);
    assert_eq!(last["timings"]["predicted_n"], 24);
    for end in [last, &plain] {
        assert_eq!(end["has_new_line"], content.contains('\n'));
    }

    let (chunks, is_done) = server.stream(
        "/v1/completions",
        &json!({
            "prompt": PROMPT, "max_tokens": 24, "temperature": 0, "stream": true,
            "stream_options": {"include_usage": true},
        }),
    );
    assert!(is_done);
    let (usage, chunks) = chunks.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 24);
    let content: String =
        chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(plain["content"], content);
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
    assert_eq!(chunks.iter().map(|chunk| &chunk["id"]).collect::<HashSet<_>>().len(), 1);
}

#[test]
fn a_seed_gives_one_text_and_choices_have_seeds_in_turn() {
    let server = demo_with(&["-np", "4", "-c", "1024"]);
    let hot = |seed: i64| text(&server, &json!({"temperature": 1.5, "seed": seed}));
    assert_eq!(hot(5), hot(5));
    assert_ne!(hot(5), hot(6));
    assert_ne!(hot(-1), hot(-1));
    let body = json!({"prompt": PROMPT, "max_tokens": 32, "temperature": 1.5, "seed": 5, "n": 3});
    let choices = server.ok("/v1/completions", &body);
    let texts: Vec<&str> = choices["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["text"].as_str().unwrap())
        .collect();
    assert_eq!(texts, [hot(5), hot(6), hot(7)]);
    assert_eq!(choices["usage"]["completion_tokens"], 96);
}

/// llama.cpp's own suite leaves this test out, since it does not hold there.
#[test]
fn what_is_cached_changes_no_text() {
    let server = demo();
    let long = format!("{}{PROMPT}", "To be, or not to be, that is the question. ".repeat(6));
    let run = |cache: bool| {
        let body =
            json!({"prompt": long, "n_predict": 32, "temperature": 0, "cache_prompt": cache});
        server.ok("/completion", &body)
    };
    let (fresh, cached, again) = (run(false), run(true), run(false));
    assert_eq!(fresh["timings"]["cache_n"], 0);
    assert_eq!(again["timings"]["cache_n"], 0);
    assert_eq!(cached["timings"]["prompt_n"], 1);
    assert_eq!(cached["content"], fresh["content"]);
    assert_eq!(again["content"], fresh["content"]);
    // Another slot gets a copy of the beginning.
    let other = json!({
        "prompt": long, "n_predict": 32, "temperature": 0,
        "id_slot": 1 - fresh["id_slot"].as_u64().unwrap(),
    });
    let other = server.ok("/completion", &other);
    assert_ne!(other["id_slot"], fresh["id_slot"]);
    assert_eq!(other["timings"]["prompt_n"], 1);
    assert_eq!(other["content"], fresh["content"]);
}

#[test]
fn the_batch_changes_no_text() {
    let prompt = "JULIET:\nO Romeo, ".repeat(8);
    let body = json!({"prompt": prompt, "n_predict": 24, "temperature": 0});
    let texts: HashSet<String> = ["3", "32", "2048"]
        .iter()
        .map(|batch| demo_with(&["-b", batch]).ok("/completion", &body)["content"].to_string())
        .collect();
    assert_eq!(texts.len(), 1, "{texts:?}");
}

#[test]
fn prompts_are_texts_tokens_mixtures_and_lists_of_these() {
    let server = demo();
    let plain = text(&server, &json!({}));
    let ids =
        server.ok("/tokenize", &json!({"content": PROMPT, "add_special": true}))["tokens"].clone();
    assert_eq!(text(&server, &json!({"prompt": ids})), plain);
    let (first, rest) = ids.as_array().unwrap().split_at(2);
    let begin = server.ok("/detokenize", &json!({"tokens": first[1..]}))["content"].clone();
    let mixed: Vec<Value> = [begin].into_iter().chain(rest.iter().cloned()).collect();
    assert_eq!(text(&server, &json!({"prompt": mixed})), plain);
    assert_eq!(text(&server, &json!({"prompt": {"prompt_string": PROMPT}})), plain);
    for prompt in
        [json!({"prompt_string": 5}), json!({"prompt_string": "x", "multimodal_data": ["x"]})]
    {
        server.refused("/completion", &json!({"prompt": prompt}), 400);
    }
    let both = json!({"prompt": [PROMPT, ids], "n_predict": 32, "temperature": 0});
    let both = server.ok("/completion", &both);
    assert_eq!(both.as_array().unwrap().len(), 2);
    assert!(both.as_array().unwrap().iter().all(|one| one["content"] == plain.as_str()), "{both}");
    let message = server.refused("/completion", &json!({"prompt": ["a", "b", "c"]}), 400);
    assert!(message.contains("3 prompts") && message.contains("at most 2"), "{message}");
}

#[test]
fn stop_strings_end_a_text_and_are_no_part_of_it() {
    let server = demo();
    let whole = text(&server, &json!({}));
    let (before, _) = whole.split_at(whole.char_indices().nth(9).unwrap().0);
    let stop: String = whole.chars().skip(9).take(4).collect();
    for stream in [false, true] {
        let body = json!({
            "prompt": PROMPT, "n_predict": 32, "temperature": 0, "stop": ["\u{0}none", stop, ""],
            "stream": stream,
        });
        let (content, last) = match stream {
            false => {
                let found = server.ok("/completion", &body);
                (found["content"].as_str().unwrap().to_owned(), found)
            }
            true => {
                let (events, _) = server.stream("/completion", &body);
                let content = events.iter().map(|event| event["content"].as_str().unwrap());
                (content.collect(), events.last().unwrap().clone())
            }
        };
        assert_eq!(content, before);
        assert_eq!(last["stop_type"], "word");
        assert_eq!(last["stopping_word"], stop);
    }
    let body = json!({"prompt": PROMPT, "max_tokens": 32, "temperature": 0, "stop": stop});
    assert_eq!(server.ok("/v1/completions", &body)["choices"][0]["finish_reason"], "stop");
}

#[test]
fn biases_have_four_forms() {
    let server = demo();
    let body = json!({"prompt": PROMPT, "n_predict": 1, "temperature": 0, "return_tokens": true});
    let first = server.ok("/completion", &body)["tokens"][0].as_u64().unwrap();
    let piece = server.ok("/detokenize", &json!({"tokens": [first]}))["content"].clone();
    let is_one = server.ok("/tokenize", &json!({"content": piece}))["count"] == 1;
    let mut forms =
        vec![json!({first.to_string(): false}), json!([[first, false]]), json!([[first, -1000.0]])];
    if is_one {
        forms.push(json!({piece.as_str().unwrap(): false}));
        forms.push(json!([[piece, false]]));
    }
    for form in forms {
        let mut biased = body.clone();
        biased["logit_bias"] = form.clone();
        assert_ne!(server.ok("/completion", &biased)["tokens"][0], first, "{form}");
    }
    let mut biased = body.clone();
    biased["logit_bias"] = json!({"7": 1000});
    assert_eq!(server.ok("/completion", &biased)["tokens"][0], 7);
}

#[test]
fn probabilities_are_told() {
    let server = demo();
    let body = json!({"prompt": PROMPT, "n_predict": 6, "temperature": 0, "n_probs": 5, "return_tokens": true});
    let found = server.ok("/completion", &body);
    let rows = found["completion_probabilities"].as_array().unwrap();
    assert_eq!(rows.len(), 6);
    for (row, id) in rows.iter().zip(found["tokens"].as_array().unwrap()) {
        assert_eq!(&row["id"], id);
        let top = row["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 5);
        // The most likely one is written.
        assert_eq!(top[0]["id"], row["id"]);
        assert!(row["logprob"].as_f64().unwrap() <= 0.0);
    }
    let joined: String = rows.iter().map(|row| row["token"].as_str().unwrap()).collect();
    assert_eq!(found["content"], joined);
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let (events, _) = server.stream("/completion", &streamed);
    let all: Vec<Value> = events
        .iter()
        .filter_map(|event| event["completion_probabilities"].as_array())
        .flatten()
        .cloned()
        .collect();
    assert_eq!(json!(all), found["completion_probabilities"]);
}

/// Those of the draw, where these are asked for.
#[test]
fn probabilities_behind_the_sampler_are_told() {
    let server = demo();
    let mut body = json!({
        "prompt": PROMPT, "n_predict": 6, "temperature": 1.0, "top_k": 4, "top_p": 1, "min_p": 0,
        "n_probs": 9, "post_sampling_probs": true, "seed": 5, "return_tokens": true,
    });
    let found = server.ok("/completion", &body);
    let rows = found["completion_probabilities"].as_array().unwrap();
    assert_eq!(rows.len(), 6);
    for (row, id) in rows.iter().zip(found["tokens"].as_array().unwrap()) {
        assert_eq!(&row["id"], id);
        let top = row["top_probs"].as_array().unwrap();
        assert_eq!(top.len(), 4);
        let probs: Vec<f64> = top.iter().map(|top| top["prob"].as_f64().unwrap()).collect();
        assert!(
            (probs.iter().sum::<f64>() - 1.0).abs() < 1e-9 && probs.is_sorted_by(|a, b| a >= b)
        );
        let own = top.iter().find(|top| top["id"] == *id).unwrap();
        assert_eq!(own["prob"], row["prob"]);
        assert!(row.get("logprob").is_none(), "{row}");
    }
    // A text does not depend on what is told of it.
    body["n_probs"] = 0.into();
    assert_eq!(server.ok("/completion", &body)["content"], found["content"]);
    let greedy = json!({
        "prompt": PROMPT, "n_predict": 2, "temperature": 0, "n_probs": 5, "post_sampling_probs": true,
    });
    let row = server.ok("/completion", &greedy)["completion_probabilities"][0].clone();
    assert_eq!((&row["prob"], row["top_probs"].as_array().unwrap().len()), (&json!(1.0), 1));
}

#[test]
fn flags_say_what_requests_do_not() {
    let plain = demo();
    let body = json!({"prompt": PROMPT, "n_predict": 24, "temperature": 0, "return_tokens": true});
    let whole = plain.ok("/completion", &body);
    let first = whole["tokens"][0].as_u64().unwrap();
    let stop: String = whole["content"].as_str().unwrap().chars().skip(9).take(4).collect();
    let server = demo_with(&["-r", &stop]);
    let stopped = server.ok("/completion", &body);
    assert_eq!((&stopped["stop_type"], &stopped["stopping_word"]), (&json!("word"), &json!(stop)));
    let mut own = body.clone();
    own["stop"] = json!([]);
    assert_eq!(server.ok("/completion", &own)["content"], whole["content"]);

    let ban = format!("{first}-inf");
    let server =
        demo_with(&["-l", &ban, "--presence-penalty", "0.5", "--frequency-penalty", "0.25"]);
    let settings = server.ok("/completion", &body)["generation_settings"].clone();
    assert_eq!(settings["logit_bias"], json!([{"token": first, "bias": null}]));
    assert_eq!(settings["presence_penalty"], 0.5);
    let [flags, fields] = [
        (&server, json!({})),
        (
            &plain,
            json!({
                "presence_penalty": 0.5, "frequency_penalty": 0.25, "logit_bias": [[first, false]],
            }),
        ),
    ]
    .map(|(server, extra)| text(server, &extra));
    assert_eq!(flags, fields);
    let off = json!({"presence_penalty": 0, "frequency_penalty": 0, "logit_bias": []});
    assert_eq!(text(&server, &off), text(&plain, &json!({})));
    // A bias for each token that would end the text shows too.
    let ignore = json!({"prompt": PROMPT, "n_predict": 1, "ignore_eos": true});
    let settings = plain.ok("/completion", &ignore)["generation_settings"].clone();
    assert!(!settings["logit_bias"].as_array().unwrap().is_empty(), "{settings}");
}

/// Drafts are made while a text is alone, and change none.
#[test]
fn drafts_change_no_text() {
    let (plain, drafting) =
        (demo_with(&["-n", "-1"]), demo_with(&["-n", "-1", "--lookup", "--metrics"]));
    let prompt = "To be, or not to be, that is the question. ".repeat(4);
    for (temperature, n) in [(0.0, 1), (0.7, 1), (0.7, 2)] {
        let body = json!({
            "prompt": prompt, "max_tokens": 100, "temperature": temperature, "seed": 3, "n": n,
            "logit_bias": {"1": false},
        });
        let [one, other] = [&plain, &drafting]
            .map(|server| server.ok("/v1/completions", &body)["choices"].clone());
        assert_eq!(one, other, "{temperature}, {n}");
    }
    let number = |name: &str| drafting.number(&format!("llamacpp:spec_decode_num_{name}_total"));
    // Whether a draft pays is measured; the first ones are tried in any case.
    assert!(number("drafts") > 0.0 && number("draft_tokens") >= number("accepted_tokens"));
}

/// What lm-eval asks for: the probabilities of the prompt's own tokens.
#[test]
fn a_prompt_is_echoed_with_its_probabilities() {
    let server = demo();
    let prompt = format!("{}{PROMPT}", "O! ".repeat(50));
    let body =
        json!({"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": true});
    let found = server.ok("/v1/completions", &body);
    let choice = &found["choices"][0];
    let rows = &choice["logprobs"];
    let count = found["usage"]["total_tokens"].as_u64().unwrap() as usize;
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(rows[name].as_array().unwrap().len(), count, "{name}");
    }
    assert!(rows["token_logprobs"][0].is_null());
    let joined: String =
        rows["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(choice["text"], joined);
    assert!(joined.contains(&prompt));
    // Again, in other pieces and by a stream, the numbers are the same.
    let other = demo_with(&["-b", "7"]);
    assert_eq!(&other.ok("/v1/completions", &body)["choices"][0]["logprobs"], rows);
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let (chunks, _) = other.stream("/v1/completions", &streamed);
    for name in ["tokens", "token_logprobs", "text_offset"] {
        let all: Vec<Value> = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["logprobs"][name].as_array())
            .flatten()
            .cloned()
            .collect();
        assert_eq!(json!(all), rows[name], "{name}");
    }
    // What is written after a part of the prompt has the probability that it has in the prompt.
    let short = json!({"prompt": prompt, "max_tokens": 3, "temperature": 0, "logprobs": 0});
    let written = server.ok("/v1/completions", &short)["choices"][0].clone();
    let longer = format!("{prompt}{}", written["text"].as_str().unwrap());
    let body = json!({"prompt": longer, "max_tokens": 0, "logprobs": 0, "echo": true});
    let echoed = server.ok("/v1/completions", &body)["choices"][0]["logprobs"].clone();
    if echoed["tokens"]
        .as_array()
        .unwrap()
        .ends_with(written["logprobs"]["tokens"].as_array().unwrap())
    {
        let numbers = echoed["token_logprobs"].as_array().unwrap();
        assert!(numbers.ends_with(written["logprobs"]["token_logprobs"].as_array().unwrap()));
    }
}

/// The probabilities that the requests of lm-eval's `local-completions` get, a list of ids each, add up to
/// the perplexity of the same windows.
#[test]
fn ev06_echoed_probabilities_are_those_of_perplexity() {
    const CONTEXT: usize = 64;
    let server = demo();
    let path = package("tests/data/coriolanus.txt");
    let model = demo_model();
    let windows = ["perplexity", "-m", &model, "-f", &path, "-c", "64", "--chunks", "8", "--json"];
    let expected: Value = serde_json::from_str(&answer(&windows)).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let ids = server.ok("/tokenize", &json!({"content": text, "add_special": true}));
    let ids: Vec<u64> =
        ids["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    let (mut sum, mut count) = (0.0, 0);
    for (number, window) in ids.chunks_exact(CONTEXT).take(8).enumerate() {
        // Every window begins a text.
        let prompt = [&ids[..1], &window[1..]].concat();
        let body = json!({ "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 1,
                           "echo": true, "seed": 1234 });
        let found = server.ok("/v1/completions", &body);
        let rows = found["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap();
        assert_eq!(rows.len(), CONTEXT + 1);
        let scored = &rows[CONTEXT / 2 + 1..CONTEXT];
        sum -= scored.iter().map(|x| x.as_f64().unwrap()).sum::<f64>();
        count += scored.len();
        let expected = expected["perplexities"][number].as_f64().unwrap();
        let found = (sum / count as f64).exp();
        assert!((found / expected - 1.0).abs() < 1e-6, "window {number}: {found}, {expected}");
    }
}

#[test]
fn an_answer_is_narrowed_to_the_fields_that_are_asked_for() {
    let server = demo();
    let body = json!({
        "prompt": PROMPT, "n_predict": 4,
        "response_fields": ["content", "generation_settings/n_predict", "none"],
    });
    let found = server.ok("/completion", &body);
    assert_eq!(found.as_object().unwrap().len(), 2, "{found}");
    assert_eq!(found["n_predict"], 4);
}

#[test]
fn parallel_requests_get_the_texts_that_they_get_alone() {
    let prompts: Vec<String> =
        (0..12).map(|i| format!("{}:\n{}", "ROMEO ".repeat(i + 1), "Oh, ".repeat(i))).collect();
    let body = |i: usize| {
        json!({
            "prompt": prompts[i], "n_predict": 24, "seed": i,
            "temperature": if i.is_multiple_of(2) { 0.0 } else { 0.9 },
        })
    };
    let alone: Vec<Value> = {
        let server = demo_with(&["-np", "1", "-c", "256"]);
        (0..prompts.len()).map(|i| server.ok("/completion", &body(i))["content"].clone()).collect()
    };
    for slots in ["1", "2", "4"] {
        let server = demo_with(&["-np", slots, "-c", "1024"]);
        thread::scope(|scope| {
            for (i, alone) in alone.iter().enumerate() {
                let (server, body) = (&server, &body);
                scope.spawn(move || {
                    assert_eq!(
                        &server.ok("/completion", &body(i))["content"],
                        alone,
                        "{slots}: {i}"
                    );
                });
            }
        });
    }
}

/// Characters of several tokens come whole.
#[test]
fn r33_no_piece_splits_a_character() {
    let server = demo_with(&["--chat-template", "chatml"]);
    let texts = [
        "\u{1f3ad}\u{e9}",
        "\u{e9}\u{e8}\u{ea}",
        "\u{6f22}\u{5b57}x",
        "\u{1f468}\u{200d}\u{1f469}",
    ];
    for text in texts {
        // A grammar says what is written; which tokens spell it is the model's choice.
        let grammar = format!("root ::= {}", json!(text.repeat(3)));
        for (path, stream) in [
            ("/completion", true),
            ("/completion", false),
            ("/v1/completions", true),
            ("/v1/chat/completions", true),
        ] {
            let body = json!({
                "prompt": PROMPT, "messages": [{"role": "user", "content": "x"}], "n_predict": 200,
                "temperature": 1.0, "seed": 3, "grammar": grammar, "stream": stream, "n_probs": 1,
            });
            let written: String = match stream {
                false => server.ok(path, &body)["content"].as_str().unwrap().to_owned(),
                true => {
                    let (events, _) = server.stream(path, &body);
                    let piece = |event: &Value| {
                        let choice = &event["choices"][0];
                        [&event["content"], &choice["text"], &choice["delta"]["content"]]
                            .into_iter()
                            .find_map(|piece| piece.as_str().map(str::to_owned))
                            .unwrap_or_default()
                    };
                    events.iter().map(piece).collect()
                }
            };
            // Bytes that are no character would be U+FFFD.
            assert_eq!(written, text.repeat(3), "{path}, {stream}");
        }
    }
    let ids = server.ok("/tokenize", &json!({"content": texts[0]}))["tokens"].clone();
    assert!(ids.as_array().unwrap().len() >= 4, "its characters are no tokens of their own: {ids}");
}

/// What a slot holds is kept in a file, and files that are none harm nothing.
#[test]
fn slots_are_saved_restored_and_erased() {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("slots");
    std::fs::create_dir_all(&folder).unwrap();
    let server = demo_with(&["--slot-save-path", folder.to_str().unwrap()]);
    let body = json!({"prompt": PROMPT, "n_predict": 12, "temperature": 0, "id_slot": 1});
    let first = server.ok("/completion", &body);
    let prompt = first["timings"]["prompt_n"].as_u64().unwrap();
    let file = json!({"filename": "slot1.bin"});
    let saved = server.ok("/slots/1?action=save", &file);
    // The last token that is written does not go through the model.
    assert_eq!(saved["n_saved"], prompt + 11);
    assert_eq!(saved["n_written"], std::fs::metadata(folder.join("slot1.bin")).unwrap().len());
    assert_eq!(server.ok("/slots/1?action=erase", &json!({}))["n_erased"], prompt + 11);
    let again = json!({"prompt": "something else", "n_predict": 2, "id_slot": 1});
    assert_eq!(server.ok("/completion", &again)["timings"]["cache_n"], 0);
    let restored = server.ok("/slots/0?action=restore", &file);
    assert_eq!(restored["n_restored"], prompt + 11);
    let body = json!({"prompt": PROMPT, "n_predict": 12, "temperature": 0, "id_slot": 0});
    let cached = server.ok("/completion", &body);
    assert_eq!(cached["timings"]["prompt_n"], 1);
    assert_eq!(cached["content"], first["content"]);

    let bytes = std::fs::read(folder.join("slot1.bin")).unwrap();
    let mut wrong_version = bytes.clone();
    wrong_version[4] ^= 1;
    let mut damaged = bytes.clone();
    *damaged.last_mut().unwrap() ^= 1;
    for (name, bytes) in
        [("cut", &bytes[..bytes.len() / 2]), ("version", &wrong_version), ("damaged", &damaged)]
    {
        std::fs::write(folder.join(name), bytes).unwrap();
        let message = server.refused("/slots/0?action=restore", &json!({"filename": name}), 400);
        assert!(message.contains(name) && !message.contains("tmp"), "{message}");
    }
    for name in ["../slot1.bin", "/etc/passwd", ".hidden", "", "a b", "none", "x\u{0}", "a/b"] {
        for action in ["save", "restore"] {
            if (name, action) != ("none", "save") {
                let path = format!("/slots/0?action={action}");
                server.refused(&path, &json!({"filename": name}), 400);
            }
        }
    }
    assert_eq!(server.ok("/completion", &body)["content"], first["content"]);
    demo().refused("/slots/0?action=save", &file, 501);
}
