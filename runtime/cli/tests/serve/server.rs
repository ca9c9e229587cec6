//! A server under test, and a client by hand, so that bytes can be wrong.

#![allow(dead_code, reason = "every part of the suite takes what it needs")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::program::{command, demo_model};

/// Longest time for what takes no time, on a machine that does much else.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Server {
    child: Child,
    pub port: u16,
    log: Arc<Mutex<Vec<String>>>,
}

/// A server on the demo model, of two slots with 256 positions each.
pub fn demo() -> Server {
    demo_with(&[])
}

/// The same, with further flags; of those that are given twice the last counts.
pub fn demo_with(args: &[&str]) -> Server {
    let model = demo_model();
    let base = ["-m", &model, "-c", "512", "-np", "2", "-b", "32", "-n", "64", "--seed", "42"];
    Server::start(&[&base, args].concat())
}

impl Server {
    /// Starts `bitnet-run serve` at a free port, and waits until it listens.
    pub fn start(args: &[&str]) -> Self {
        Self::of(command(&[&["serve", "--port", "0"], args].concat()))
    }

    /// The same below limits that a shell sets.
    pub fn start_limited(limits: &str, args: &[&str]) -> Self {
        let line = format!("{limits} && exec \"$@\"");
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &line, "sh", env!("CARGO_BIN_EXE_bitnet-run"), "serve", "--port", "0"]);
        shell.args(args);
        Self::of(shell)
    }

    fn of(mut command: std::process::Command) -> Self {
        let mut child = command
            .env_remove("LLAMA_API_KEY")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        {
            let log = Arc::clone(&log);
            thread::spawn(move || {
                for line in lines.map_while(Result::ok) {
                    log.lock().unwrap().push(line);
                }
            });
        }
        let mut server = Self { child, port: 0, log };
        server.port = server.wait("its address", |server| {
            let address = server.logged("listening on http://")?;
            Some(address.rsplit_once(':').unwrap().1.parse().unwrap())
        });
        server
    }

    /// The first line of its log that holds a text.
    pub fn logged(&self, text: &str) -> Option<String> {
        self.log.lock().unwrap().iter().find(|line| line.contains(text)).cloned()
    }

    /// All that it has written to stderr.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// Waits until something is so.
    pub fn wait<T>(&mut self, what: &str, mut is: impl FnMut(&mut Self) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(found) = is(self) {
                return found;
            }
            assert!(start.elapsed() < PATIENCE, "no {what}: {}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let status = std::process::Command::new("kill").args(["-s", name, &pid]).status();
        assert!(status.unwrap().success());
    }

    /// Waits until it has ended.
    pub fn ended(&mut self) -> ExitStatus {
        self.wait("end", |server| server.child.try_wait().unwrap())
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn connect(&self) -> TcpStream {
        self.try_connect().unwrap()
    }

    pub fn try_connect(&self) -> Option<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        Some(stream)
    }

    /// Sends bytes, and reads until the server closes.
    pub fn raw(&self, bytes: &[u8]) -> Answer {
        let mut stream = self.connect();
        // It may have answered and closed before it has read all.
        let _ = stream.write_all(bytes);
        Answer::read(&mut stream)
    }

    pub fn request(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Answer {
        self.raw(&head(method, path, headers, Some(body)))
    }

    pub fn get(&self, path: &str) -> Answer {
        self.raw(&head("GET", path, &[], None))
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, &[], body.to_string().as_bytes())
    }

    /// The JSON object of an answer that succeeds.
    pub fn ok(&self, path: &str, body: &Value) -> Value {
        let answer = self.post(path, body);
        assert_eq!(answer.status, 200, "{path} {body}: {}", answer.body);
        answer.json()
    }

    /// The message of an answer that is refused with a status.
    pub fn refused(&self, path: &str, body: &Value, status: u16) -> String {
        let answer = self.post(path, body);
        answer.refusal(status)
    }

    /// The objects of a stream, and whether `[DONE]` ended it.
    pub fn stream(&self, path: &str, body: &Value) -> (Vec<Value>, bool) {
        let answer = self.post(path, body);
        assert_eq!(answer.status, 200, "{path} {body}: {}", answer.body);
        assert_eq!(answer.header("content-type"), Some("text/event-stream"));
        answer.events()
    }

    /// Begins a stream, and returns its connection when the first event has come.
    pub fn begin(&self, path: &str, body: &Value) -> BufReader<TcpStream> {
        let mut stream = self.connect();
        let body = body.to_string();
        stream.write_all(&head("POST", path, &[], Some(body.as_bytes()))).unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        while !line.starts_with("data: ") {
            line.clear();
            assert!(reader.read_line(&mut line).unwrap() > 0, "the stream has ended");
        }
        reader
    }

    /// A number of `/metrics`, by its name and labels.
    pub fn number(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name}: {text}")).parse().unwrap()
    }

    /// The number of slots that are busy.
    pub fn busy(&self) -> usize {
        let slots = self.get("/slots").json();
        slots.as_array().unwrap().iter().filter(|slot| slot["is_processing"] == true).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The head of a request, with its body.
pub fn head(method: &str, path: &str, headers: &[&str], body: Option<&[u8]>) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    if !headers.iter().any(|header| header.to_ascii_lowercase().starts_with("host:")) {
        head += "Host: localhost\r\n";
    }
    for header in headers {
        head += header;
        head += "\r\n";
    }
    if let Some(body) = body {
        head += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    }
    head += "\r\n";
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body.unwrap_or_default());
    bytes
}

/// An answer; of a connection that was closed without one the status is 0.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn read(stream: &mut impl Read) -> Self {
        let mut bytes = Vec::new();
        // A connection that is reset has said what it had to say.
        let _ = stream.read_to_end(&mut bytes);
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            return Self { status: 0, headers: Vec::new(), body: String::new() };
        };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_ascii_lowercase(), value.to_owned())
        });
        let headers: Vec<(String, String)> = headers.collect();
        let rest = &bytes[end + 4..];
        let is_chunked = headers.iter().any(|(name, _)| name == "transfer-encoding");
        let body = if is_chunked { dechunk(rest) } else { rest.to_vec() };
        Self { status, headers, body: String::from_utf8(body).unwrap() }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| &**value)
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// Checks the form of an error, and returns its message.
    pub fn refusal(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.body);
        let json = self.json();
        let error = &json["error"];
        assert_eq!(error["code"], status, "{json}");
        assert!(error["type"].as_str().unwrap().ends_with("_error"), "{json}");
        let message = error["message"].as_str().unwrap().to_owned();
        assert!(!message.is_empty() && !message.contains(char::is_control), "{json}");
        message
    }

    /// The objects of a stream, and whether `[DONE]` ended it.
    pub fn events(&self) -> (Vec<Value>, bool) {
        let events = self.body.split("\n\n").filter(|event| !event.is_empty() && *event != ":");
        let mut events: Vec<&str> = events
            .map(|event| event.strip_prefix("data: ").unwrap_or_else(|| panic!("{event}")))
            .collect();
        let is_done = events.last() == Some(&"[DONE]");
        if is_done {
            events.pop();
        }
        (events.iter().map(|event| serde_json::from_str(event).unwrap()).collect(), is_done)
    }
}

fn dechunk(mut rest: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(end) = rest.windows(2).position(|window| window == b"\r\n") {
        let size = std::str::from_utf8(&rest[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        let chunk = rest.get(end + 2..end + 2 + size).unwrap_or_default();
        out.extend_from_slice(chunk);
        rest = rest.get(end + 4 + size..).unwrap_or_default();
        if size == 0 {
            break;
        }
    }
    out
}
