//! R01 to R38: what hostile clients and faults do, each a test by its number.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::server::{Answer, PATIENCE, Server, demo, demo_with, head};

const PROMPT: &str = "ROMEO:";

/// Flags for one slot of so many positions as make a text last far longer than any test waits.
const LONG: [&str; 10] = [
    "-np",
    "1",
    "-t",
    "1",
    "-n",
    "-1",
    "-c",
    "32768",
    "--override-kv",
    "bitnet-b1.58.context_length=int:32768",
];
/// Tokens of such a text, or prompt.
const LONG_TOKENS: usize = 30_000;

/// A server with one slot of 1024 positions, whose readers may take their time.
fn patient(args: &[&str]) -> Server {
    let base = ["-np", "1", "-c", "1024", "-n", "-1", "-t", "1", "--timeout", "3600", "--metrics"];
    demo_with(&[&base, args].concat())
}

/// A text that stands still while its client does not read: its 18 MB fit into no buffer between.
fn held() -> Value {
    json!({
        "prompt": PROMPT, "n_predict": 1000, "ignore_eos": true, "temperature": 0, "stream": true,
        "n_probs": 200,
    })
}

/// Sends a request that has to wait, and returns its connection once it does.
fn wait_in_queue(server: &mut Server, body: &Value) -> TcpStream {
    let mut stream = server.connect();
    stream.write_all(&post("/completion", &[], body.to_string().as_bytes())).unwrap();
    server
        .wait("queue", |server| (server.number("llamacpp:requests_deferred") == 1.0).then_some(()));
    stream
}

fn post(path: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    head("POST", path, headers, Some(body))
}

fn is_alive(server: &Server) {
    let found = server.ok("/completion", &json!({"prompt": PROMPT, "n_predict": 4}));
    assert_eq!(found["tokens_predicted"], 4);
}

#[test]
fn r01_a_body_that_is_too_large() {
    let server = demo_with(&["--max-body", "10000"]);
    let message = server.raw(&post("/completion", &[], &[b' '; 10_001])).refusal(413);
    assert!(message.contains("at most 10000 bytes"), "{message}");
    // Its length alone is enough.
    let bytes =
        b"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n";
    server.raw(bytes).refusal(413);
    is_alive(&server);
}

#[test]
fn r02_chunks_without_end() {
    let server = demo_with(&["--max-body", "10000"]);
    let mut stream = server.connect();
    let head = "POST /completion HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = format!("400\r\n{}\r\n", " ".repeat(1024));
    // The server closes before long.
    let start = Instant::now();
    while stream.write_all(chunk.as_bytes()).is_ok() {
        assert!(start.elapsed() < PATIENCE);
    }
    let mut stream = server.connect();
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(chunk.repeat(10).as_bytes()).unwrap();
    Answer::read(&mut stream).refusal(413);
    is_alive(&server);
}

/// Bytes that come one by one, until the server closes; returns what it said.
fn drip(server: &Server, first: &[u8]) -> (Answer, Duration) {
    let mut stream = server.connect();
    stream.write_all(first).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let start = Instant::now();
    let dripping = thread::spawn(move || {
        while start.elapsed() < PATIENCE && writer.write_all(b"a").is_ok() {
            thread::sleep(Duration::from_millis(100));
        }
    });
    let answer = Answer::read(&mut stream);
    let took = start.elapsed();
    drop(stream.shutdown(Shutdown::Both));
    dripping.join().unwrap();
    (answer, took)
}

#[test]
fn r03_a_head_that_comes_slowly() {
    let server = demo_with(&["--timeout", "1"]);
    for first in [&b""[..], b"GET /hea", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: "] {
        let (answer, took) = drip(&server, first);
        assert!([0, 408].contains(&answer.status), "{answer:?}");
        assert!(took < PATIENCE / 2, "{took:?}");
    }
    is_alive(&server);
}

#[test]
fn r04_a_body_that_comes_slowly() {
    let server = demo_with(&["--timeout", "1"]);
    let head = b"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n";
    let (answer, took) = drip(&server, head);
    answer.refusal(408);
    assert!(took < PATIENCE / 2, "{took:?}");
    is_alive(&server);
}

#[test]
fn r05_a_client_that_does_not_read() {
    let mut server = patient(&["--timeout", "1"]);
    let stream = server.begin("/completion", &held());
    frees_its_slot(&mut server);
    is_alive(&server);
    drop(stream);
}

#[test]
fn r06_a_client_goes_while_its_prompt_goes_in() {
    let mut server = demo_with(&[&LONG[..], &["-b", "1", "--metrics"]].concat());
    let mut stream = server.connect();
    let body = json!({
        "prompt": vec![9; LONG_TOKENS], "n_predict": 4, "return_progress": true, "stream": true,
    });
    stream.write_all(&post("/completion", &[], body.to_string().as_bytes())).unwrap();
    server.wait("busy slot", |server| (server.busy() == 1).then_some(()));
    drop(stream);
    frees_its_slot(&mut server);
    assert_eq!(server.number("bitnet:ttft_seconds_count"), 0.0, "the prompt went in all the same");
    is_alive(&server);
}

#[test]
fn r07_a_client_goes_while_its_text_is_written() {
    for stream in [true, false] {
        let mut server = demo_with(&[&LONG[..], &["--timeout", "3600", "--metrics"]].concat());
        let body = json!({
            "prompt": PROMPT, "n_predict": LONG_TOKENS, "ignore_eos": true, "temperature": 0,
            "stream": stream,
        });
        let mut connection = server.connect();
        connection.write_all(&post("/completion", &[], body.to_string().as_bytes())).unwrap();
        server.wait("text", |server| {
            let slots = server.get("/slots").json();
            (slots[0]["n_decoded"].as_u64().unwrap() > 2).then_some(())
        });
        drop(connection);
        frees_its_slot(&mut server);
        is_alive(&server);
    }
}

/// Checks that the one text of a server is cancelled, which frees its slot. That this comes before
/// the next pass is the engine's own test.
fn frees_its_slot(server: &mut Server) {
    server.wait("free slot", |server| (server.busy() == 0).then_some(()));
    assert_eq!(server.number("bitnet:cancelled_total"), 1.0, "the text has ended by itself");
}

#[test]
fn r08_a_prompt_longer_than_the_context() {
    let server = demo();
    for (count, stream) in [(256, false), (256, true), (5000, false), (5000, true)] {
        let body = json!({"prompt": vec![9; count], "stream": stream});
        for path in ["/completion", "/v1/completions"] {
            let answer = server.post(path, &body);
            let message = answer.refusal(400);
            assert!(message.contains("exceeds the available context size"), "{message}");
            let error = &answer.json()["error"];
            assert_eq!(error["type"], "exceed_context_size_error");
            assert_eq!((&error["n_prompt_tokens"], &error["n_ctx"]), (&json!(count), &json!(256)));
        }
    }
    let most = server.ok("/completion", &json!({"prompt": vec![9; 255]}));
    assert_eq!(most["tokens_predicted"], 1);
}

/// Checks that each value of a field is refused by the field's name, with the value.
fn refuses(field: &str, values: &[Value]) {
    let server = demo();
    for value in values {
        for (path, stream) in
            [("/completion", false), ("/completion", true), ("/v1/completions", false)]
        {
            let body = json!({"prompt": PROMPT, field: value, "stream": stream});
            let answer = server.post(path, &body);
            let message = answer.refusal(400);
            assert!(message.contains(", expected "), "{message}");
            let names = answer.json()["error"]["param"].as_str().unwrap_or_default().to_owned();
            assert!(names == field || message.contains(field), "{field} {value}: {message}");
        }
    }
    is_alive(&server);
}

#[test]
fn r09_max_tokens_out_of_range() {
    let values = [json!(-2), json!(1u64 << 63), json!(2_147_483_648u64), json!("7"), json!(1.5)];
    refuses("max_tokens", &values);
    refuses("n_predict", &values[..2]);
}

#[test]
fn r10_no_max_tokens() {
    let server = demo_with(&["-n", "-1"]);
    for body in [json!({"prompt": PROMPT}), json!({"prompt": PROMPT, "n_predict": null})] {
        let mut body = body;
        body["ignore_eos"] = true.into();
        let found = server.ok("/completion", &body);
        assert_eq!(found["truncated"], true);
    }
}

#[test]
fn r11_temperatures_out_of_range() {
    refuses("temperature", &[json!(-1), json!(999_999), json!("hot"), json!(true), json!([])]);
    let server = demo();
    for number in ["NaN", "Infinity", "-Infinity", "1e999"] {
        let body = format!("{{\"prompt\": \"x\", \"temperature\": {number}}}");
        server.raw(&post("/completion", &[], body.as_bytes())).refusal(400);
    }
}

#[test]
fn r12_other_numbers_out_of_range() {
    refuses("top_p", &[json!(-1), json!(1.1)]);
    refuses("top_k", &[json!(2_147_483_648u64), json!(-2)]);
    refuses("min_p", &[json!(2)]);
    refuses("repeat_penalty", &[json!(0), json!(-1), json!(101)]);
    refuses("repeat_last_n", &[json!(-2), json!(1_000_000)]);
    refuses("presence_penalty", &[json!(1000)]);
    refuses("mirostat", &[json!(2)]);
    refuses("dry_multiplier", &[json!(0.8)]);
    refuses("lora", &[json!([{"id": 0}])]);
}

#[test]
fn r14_tokens_that_do_not_exist() {
    let server = demo();
    for ids in [json!([-1]), json!([4096]), json!([1u64 << 40]), json!([1.5]), json!([[9, -1]])] {
        let message = server.refused("/completion", &json!({"prompt": ids}), 400);
        assert!(message.contains("an integer from 0 to 4095"), "{message}");
    }
    for prompt in [json!([]), json!({}), json!(7), json!([[]]), json!([{}]), json!([[["x"]]])] {
        server.refused("/completion", &json!({"prompt": prompt}), 400);
    }
    is_alive(&server);
}

#[test]
fn r15_biases_of_tokens_that_do_not_exist() {
    let many: serde_json::Map<String, Value> =
        (0..1025).map(|id| (id.to_string(), json!(1))).collect();
    let values = [
        json!([[4096, 1]]),
        json!([[-1, 1]]),
        json!({"4096": 1}),
        json!([[9, "x"]]),
        json!([[9, true]]),
        json!([[9]]),
        json!([9]),
        json!("x"),
        json!(many),
    ];
    let server = demo();
    for value in values {
        let message =
            server.refused("/completion", &json!({"prompt": "x", "logit_bias": value}), 400);
        assert!(message.contains("expected"), "{message}");
    }
    is_alive(&server);
}

#[test]
fn r16_stop_strings_in_number() {
    refuses(
        "stop",
        &[json!(vec!["x"; 100_000]), json!(["x".repeat(257)]), json!([1]), json!({}), json!(5)],
    );
    let server = demo();
    let empty = json!({"prompt": PROMPT, "n_predict": 4, "stop": ["", ""]});
    assert_eq!(server.ok("/completion", &empty)["tokens_predicted"], 4);
}

#[test]
fn r17_texts_in_number() {
    refuses("n", &[json!(1_000_000), json!(0), json!(-1), json!(3)]);
}

#[test]
fn r18_seeds_out_of_range() {
    refuses("seed", &[json!(-2), json!(1u64 << 63), json!("x"), json!(0.5)]);
}

#[test]
fn r19_what_is_no_json() {
    let server = demo();
    let deep = [b"{\"prompt\": ".as_slice(), &b"[".repeat(1_000_000)].concat();
    let bodies: [&[u8]; 6] = [
        b"",
        b"{\"prompt\": \"\xff\xfe\"}",
        b"{\"prompt\": \"\\ud800\"}",
        b"[1, 2]",
        b"{\"prompt\": \"x\"} x",
        &deep,
    ];
    for body in bodies {
        server.raw(&post("/completion", &[], body)).refusal(400);
        server.raw(&post("/tokenize", &[], body)).refusal(400);
    }
    is_alive(&server);
}

#[test]
fn r22_keys() {
    let server = demo_with(&["--api-key", "one,two"]);
    for path in ["/health", "/v1/health", "/models", "/v1/models"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    let body = json!({"prompt": PROMPT, "n_predict": 2}).to_string();
    let with = |header: &str| server.raw(&post("/completion", &[header], body.as_bytes()));
    for header in ["Authorization: Bearer one", "X-Api-Key: two"] {
        assert_eq!(with(header).status, 200, "{header}");
    }
    let missing = server.raw(&post("/completion", &[], body.as_bytes()));
    let wrong = with("Authorization: Bearer three");
    missing.refusal(401);
    assert_eq!(missing.json()["error"]["type"], "authentication_error");
    assert_eq!(missing.body, wrong.body);
    for path in ["/slots", "/props", "/metrics", "/nothing"] {
        server.get(path).refusal(401);
    }
}

#[test]
fn r23_pages_of_other_sites() {
    let server = demo_with(&["--cors-origins", "https://a.example"]);
    let body = json!({"prompt": PROMPT, "n_predict": 2}).to_string();
    let with = |origin: &str| {
        // As a form of a page sends it, without a question before.
        let headers = [&*format!("Origin: {origin}"), "Content-Type: text/plain"];
        server.raw(&post("/completion", &headers, body.as_bytes()))
    };
    with("https://evil.example").refusal(403);
    with("null").refusal(403);
    let allowed = with("https://a.example");
    assert_eq!(allowed.status, 200);
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://a.example"));
    let own = with("http://localhost");
    assert_eq!((own.status, own.header("access-control-allow-origin")), (200, None));
    let ask = |headers: &[&str]| server.raw(&head("OPTIONS", "/completion", headers, None));
    let preflight = ask(&["Origin: https://a.example"]);
    assert_eq!(preflight.status, 204);
    assert_eq!(preflight.header("access-control-allow-origin"), Some("https://a.example"));
    ask(&["Origin: https://evil.example"]).refusal(403);
    assert_eq!(ask(&[]).status, 204);
    let local = demo_with(&["--cors-origins", "localhost"]);
    for (origin, status) in [
        ("http://localhost:3000", 200),
        ("http://127.0.0.1", 200),
        ("http://[::1]:3000", 200),
        ("http://localhost.evil.example", 403),
        ("http://notlocalhost", 403),
    ] {
        let origin = format!("Origin: {origin}");
        assert_eq!(local.raw(&head("GET", "/health", &[&origin], None)).status, status, "{origin}");
    }
}

#[test]
fn r24_other_hosts() {
    let server = demo();
    let ask = |host: &str| server.raw(&head("GET", "/health", &[host], None));
    for host in ["Host: evil.example", "Host: evil.example:80", "Host: 10.0.0.1", "Host:"] {
        assert!([400, 403].contains(&ask(host).status), "{host}");
    }
    assert_eq!(ask("Host: 127.0.0.1:1").status, 200);
    server.raw(b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n").refusal(400);
    let listed = demo_with(&["--allow-host", "box.lan"]);
    let answer = listed.raw(&head("GET", "/health", &["Host: box.lan:8080"], None));
    assert_eq!(answer.status, 200);
}

#[test]
fn r25_paths_that_lead_elsewhere() {
    let server = demo();
    for path in ["/../../etc/passwd", "/..%2f..%2fetc/passwd", "//etc/passwd", "/slots/../../x"] {
        server.get(path).refusal(404);
    }
    for id in ["-1", "2", "99999999999999999999", "..", "x"] {
        let path = format!("/slots/{id}?action=erase");
        assert!([400, 404].contains(&server.post(&path, &json!({})).status), "{path}");
    }
}

#[test]
fn r26_line_ends_in_what_is_logged() {
    let server = demo_with(&["--log-requests"]);
    let secret = "the prompt\n{\"route\": \"forged\"}";
    let body = json!({"prompt": secret, "n_predict": 2, "model": "m\nforged", "user": "forged"});
    server.ok("/completion", &body);
    server.get("/forged%0aforged?forged").refusal(404);
    server.refused(
        "/completion",
        &json!({"prompt": PROMPT, "max_tokens": "\n\u{1b}[2J forged"}),
        400,
    );
    let mut server = server;
    server.wait("account", |server| (server.log().matches("\"route\"").count() >= 3).then_some(()));
    let log = server.log();
    assert!(!log.contains("forged") && !log.contains("the prompt"), "{log}");
    assert!(
        log.lines()
            .filter(|line| line.contains("\"route\""))
            .all(|line| { serde_json::from_str::<Value>(line).is_ok() })
    );
}

#[test]
fn r27_a_queue_that_is_full() {
    let mut server = patient(&["--queue", "1"]);
    let first = server.begin("/completion", &held());
    let second = wait_in_queue(&mut server, &held());
    let answer = server.post("/completion", &json!({"prompt": PROMPT, "n_predict": 1}));
    answer.refusal(503);
    let seconds: u32 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds));
    // One that has waited begins when the one before is gone, and its place is free again.
    drop(first);
    server.wait("empty queue", |server| {
        (server.number("llamacpp:requests_deferred") == 0.0).then_some(())
    });
    let third = wait_in_queue(&mut server, &held());
    drop((second, third));
    server.wait("free slot", |server| (server.busy() == 0).then_some(()));
    is_alive(&server);
}

#[test]
fn r28_a_thousand_idle_connections() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    }
    let server = demo_with(&["--max-connections", "1100"]);
    let idle: Vec<TcpStream> = (0..1000).map(|_| server.connect()).collect();
    is_alive(&server);
    let full = demo_with(&["--max-connections", "3", "--timeout", "1"]);
    let held: Vec<TcpStream> = (0..3).map(|_| full.connect()).collect();
    // It is served once one of them has been closed for its silence.
    is_alive(&full);
    drop((idle, held));
}

#[test]
fn r29_a_signal_lets_texts_end() {
    for (drain, whole) in [("3600", true), ("0", false)] {
        let mut server = patient(&["--drain", drain]);
        let mut reader = server.begin("/completion", &held());
        let mut second = wait_in_queue(&mut server, &held());
        server.signal("TERM");
        // What waits is sent away.
        Answer::read(&mut second).refusal(503);
        let mut rest = Vec::new();
        // Without time to end, the connection may be cut.
        assert!(reader.read_to_end(&mut rest).is_ok() || !whole);
        assert_eq!(String::from_utf8_lossy(&rest).contains("\"stop\":true"), whole, "{drain}");
        assert!(server.ended().success());
    }
}

#[test]
fn r29_a_second_signal_ends_it_at_once() {
    let mut server = patient(&["--drain", "3600"]);
    let reader = server.begin("/completion", &held());
    server.signal("INT");
    server.wait("end", |server| server.logged("SIGINT").map(drop));
    server.signal("TERM");
    assert_eq!(server.ended().code(), Some(143));
    drop(reader);
}

/// Two lengths, and one that is none.
#[test]
fn requests_that_say_two_lengths_are_refused() {
    let server = demo();
    let start = "POST /completion HTTP/1.1\r\nHost: localhost\r\n";
    for lengths in [
        "Content-Length: 2\r\nContent-Length: 3\r\n",
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n",
        "Content-Length: -2\r\n",
        "Content-Length: x\r\n",
    ] {
        let bytes = format!(
            "{start}{lengths}\r\n{{}}0\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        );
        let answer = server.raw(bytes.as_bytes());
        assert_eq!(answer.status, 400, "{lengths:?}: {answer:?}");
        assert!(!answer.body.contains("HTTP/1.1"), "{lengths:?}: a second answer: {answer:?}");
    }
}

#[test]
fn a_head_without_end_is_refused() {
    let server = demo();
    let long =
        format!("GET /health HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    assert!([0, 431].contains(&server.raw(long.as_bytes()).status));
    let long =
        format!("GET /health HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    assert_eq!(server.raw(long.as_bytes()).status, 431);
    let many = format!("GET /health HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X: x\r\n".repeat(200));
    assert_eq!(server.raw(many.as_bytes()).status, 431);
    is_alive(&server);
}

/// Health while the model is loading.
#[cfg(unix)]
#[test]
fn r35_health_while_loading() {
    use std::os::unix::net::UnixStream;

    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("r35");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let (socket, template) = (folder.join("socket"), folder.join("template"));
    // A pipe holds it up until somebody writes.
    let status = std::process::Command::new("mkfifo").arg(&template).status();
    assert!(status.unwrap().success());
    let address = format!("unix:{}", socket.display());
    let model = crate::program::demo_model();
    let mut child =
        crate::program::command(&["serve", "-m", &model, "--host", &address, "-t", "1"])
            .arg("--chat-template-file")
            .arg(&template)
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
    let ask = || {
        let mut stream = UnixStream::connect(&socket).ok()?;
        stream.write_all(&head("GET", "/health", &[], None)).ok()?;
        Some(Answer::read(&mut stream))
    };
    let start = Instant::now();
    let wait = |status: u16| loop {
        assert!(start.elapsed() < PATIENCE, "no {status}");
        match ask() {
            Some(answer) if answer.status == status => return answer,
            _ => thread::sleep(Duration::from_millis(1)),
        }
    };
    assert_eq!(wait(503).refusal(503), "Loading model");
    std::fs::write(&template, "{{ messages }}").unwrap();
    wait(200);
    // Only this user may connect.
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").arg(&pid).status().unwrap().success());
    assert!(child.wait().unwrap().success());
    assert!(!socket.exists());
}

/// Out of file descriptors: connections wait, and are served.
#[cfg(target_os = "linux")]
#[test]
fn r36_out_of_file_descriptors() {
    let mut server = Server::start_limited(
        "ulimit -n 40",
        &["-m", &crate::program::demo_model(), "-np", "1", "-c", "256", "--timeout", "2"],
    );
    let idle: Vec<TcpStream> = (0..100).filter_map(|_| server.try_connect()).collect();
    server.wait("word of it", |server| server.logged("refused by the system").map(drop));
    drop(idle);
    is_alive(&server);
    assert_eq!(server.log().matches("refused by the system").count(), 1);
}

/// Checks that many clients, each of which asks so many times, get the texts that they get alone.
fn texts_do_not_depend_on_others(clients: usize, turns: usize) {
    let body = |client: usize| {
        json!({
            "prompt": format!("{}\nROMEO: {}", "Enter. ".repeat(client % 9), "O! ".repeat(client % 13)),
            "n_predict": 2 + client % 11, "temperature": if client.is_multiple_of(3) { 0.0 } else { 1.0 },
            "seed": client, "n_probs": if client.is_multiple_of(5) { 2 } else { 0 },
        })
    };
    let content =
        |server: &Server, client: usize| server.ok("/completion", &body(client))["content"].clone();
    let alone: Vec<Value> = {
        let server = demo_with(&["-np", "1", "-c", "256"]);
        (0..clients).map(|client| content(&server, client)).collect()
    };
    let server = demo_with(&["-np", "8", "-c", "2048", "--lookup"]);
    thread::scope(|scope| {
        for client in 0..clients {
            let (server, alone) = (&server, &alone);
            scope.spawn(move || {
                for turn in 0..turns {
                    let own = (client + turn * 7) % clients;
                    assert_eq!(content(server, own), alone[own], "{client}, {turn}");
                }
            });
        }
    });
}

#[test]
fn r37_texts_of_64_clients_are_those_that_they_get_alone() {
    texts_do_not_depend_on_others(64, 4);
}

#[test]
#[ignore = "it takes minutes"]
fn long_r37_texts_of_64_clients_are_those_that_they_get_alone_a_thousand_times() {
    texts_do_not_depend_on_others(64, 1000);
}

/// How long refusals of keys take does not tell how near they are.
#[test]
#[ignore = "it takes minutes, and counts on a machine that does nothing else"]
fn long_r22_refusals_take_the_same_time() {
    let server = demo_with(&["--api-key", "0123456789abcdef0123456789abcdef"]);
    let headers = [
        "X: none",
        "X-Api-Key: x",
        "X-Api-Key: x123456789abcdef0123456789abcdef",
        "X-Api-Key: 0123456789abcdef0123456789abcdex",
    ];
    let mut times = vec![Vec::new(); headers.len()];
    for turn in 0..20_000usize {
        // In turn, so that what the machine does else falls on all alike.
        let kind = (turn * 7 + turn / 4) % headers.len();
        let request = head("GET", "/slots", &[headers[kind]], None);
        let start = Instant::now();
        assert_eq!(server.raw(&request).status, 401);
        times[kind].push(start.elapsed().as_secs_f64());
    }
    let quartile = |times: &[f64], quarters: usize| times[times.len() * quarters / 4];
    let spread = |times: &[f64]| quartile(times, 3) - quartile(times, 1);
    times.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
    let first = quartile(&times[0], 2);
    for times in &times[1..] {
        let difference = (quartile(times, 2) - first).abs();
        assert!(difference < spread(times) / 4.0, "{difference} s of {first}");
    }
}

/// Bytes of memory that a process has.
#[cfg(target_os = "linux")]
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Mixed clients, each for as many turns as `goes_on` says; returns the memory of the server after the
/// first so many turns of each, and at the end.
#[cfg(target_os = "linux")]
fn soak(first: usize, goes_on: impl Fn(usize) -> bool + Sync) -> (u64, u64) {
    const CLIENTS: usize = 8;
    let server = demo_with(&["-np", "4", "-c", "1024"]);
    let pause = std::sync::Barrier::new(CLIENTS + 1);
    let mut early = 0;
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (server, pause, goes_on) = (&server, &pause, &goes_on);
            scope.spawn(move || {
                for turn in 0.. {
                    if turn == first {
                        // Twice: before the memory is looked at, and after.
                        pause.wait();
                        pause.wait();
                    } else if turn > first && !goes_on(turn) {
                        break;
                    }
                    mixed(server, client + turn);
                }
            });
        }
        pause.wait();
        early = resident(server.pid());
        pause.wait();
    });
    is_alive(&server);
    (early, resident(server.pid()))
}

/// One of the things that clients do.
#[cfg(target_os = "linux")]
fn mixed(server: &Server, turn: usize) {
    let mut body = json!({
        "prompt": "Alas! ".repeat(turn % 30 + 1), "n_predict": turn % 40 + 1,
        "stream": turn.is_multiple_of(2), "n_probs": if turn.is_multiple_of(7) { 5 } else { 0 },
    });
    match turn % 6 {
        0 => {
            body["stream"] = true.into();
            drop(server.begin("/completion", &body));
        }
        1 => drop(server.post("/completion", &json!({"prompt": turn}))),
        2 => drop(server.get("/slots")),
        _ => assert_eq!(server.post("/completion", &body).status, 200),
    }
}

#[cfg(target_os = "linux")]
fn stays_within_5_percent((early, late): (u64, u64)) {
    assert!(late < early + early / 20, "{early} bytes became {late}");
}

#[cfg(target_os = "linux")]
#[test]
fn r34_memory_stays_as_it_is() {
    stays_within_5_percent(soak(60, |turn| turn < 180));
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "it takes 10 minutes"]
fn long_r34_memory_stays_as_it_is() {
    let start = Instant::now();
    stays_within_5_percent(soak(400, |_| start.elapsed() < Duration::from_secs(600)));
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "it takes 24 hours"]
fn r34_memory_stays_as_it_is_for_a_day() {
    let start = Instant::now();
    stays_within_5_percent(soak(4000, |_| start.elapsed() < Duration::from_secs(24 * 3600)));
}
