//! What every request must pass before it is served: size and form of its head, the host it names,
//! the site it comes from, and the key it brings.

use std::net::IpAddr;

use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST, ORIGIN, TRANSFER_ENCODING};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::error::{ApiError, Kind, Result, quoted};

/// Bytes of a request's line and headers, at most.
pub const MAX_HEAD: usize = 64 << 10;

/// Paths that need no key.
const PUBLIC: [&str; 5] = ["/", "/health", "/v1/health", "/models", "/v1/models"];

/// The keys that requests may bring, none of which is kept: only their hashes are.
#[derive(Clone, Debug, Default)]
pub struct Keys(Vec<[u8; 32]>);

impl Keys {
    /// Takes keys; empty ones count for nothing.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a str>) -> Self {
        let keys = keys.into_iter().map(str::trim).filter(|key| !key.is_empty());
        Self(keys.map(|key| Sha256::digest(key).into()).collect())
    }

    /// True if no key is needed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Compares with all keys, in a time that says nothing about any.
    fn contains(&self, key: &[u8]) -> bool {
        let hash: [u8; 32] = Sha256::digest(key).into();
        let found = self.0.iter().fold(Choice::from(0), |found, own| found | own.ct_eq(&hash));
        found.into()
    }
}

/// The rules of a server.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    pub keys: Keys,
    /// True if the server is bound to loopback, and so is reached by its names alone, unless a page
    /// somewhere has a name that stands for a loopback address.
    pub is_loopback: bool,
    /// Further names of the server.
    pub hosts: Vec<String>,
    /// Sites whose pages may use the server; `*`: all.
    pub origins: Vec<String>,
}

/// A request that has passed: the headers that allow its site to read the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Value of `Access-Control-Allow-Origin`.
    pub allow_origin: Option<HeaderValue>,
}

impl Guard {
    /// Checks a request's head.
    ///
    /// # Errors
    /// 400, 401, 403 or 431.
    pub fn check(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Passed> {
        check_size(method, uri, headers)?;
        if headers.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH) {
            return Err(ApiError::invalid(
                "content-length: found beside transfer-encoding, expected one of both",
            ));
        }
        let host = self.check_host(uri, headers)?;
        let passed = self.check_origin(host, headers)?;
        let is_public =
            PUBLIC.contains(&uri.path()) && [Method::GET, Method::HEAD].contains(method);
        if !is_public && method != Method::OPTIONS {
            self.check_key(headers)?;
        }
        Ok(passed)
    }

    /// Returns the host that the request names.
    fn check_host<'a>(&self, uri: &'a Uri, headers: &'a HeaderMap) -> Result<&'a str> {
        let mut named = headers.get_all(HOST).iter();
        let host = match (named.next(), named.next()) {
            (Some(host), None) => host.to_str().ok(),
            _ => None,
        };
        let Some(host) = host else {
            return Err(ApiError::invalid("host: expected one header that names the server"));
        };
        let host = uri.authority().map_or(host, |authority| authority.as_str());
        let name = without_port(host);
        let is_checked = self.is_loopback || !self.hosts.is_empty();
        let is_own = self.is_loopback && is_loopback_name(name);
        let is_listed = || self.hosts.iter().any(|own| own.eq_ignore_ascii_case(name));
        if is_checked && !is_own && !is_listed() {
            let message = format!(
                "host: {}, expected a name of this server; --allow-host adds one",
                quoted(name)
            );
            return Err(ApiError::new(Kind::Permission, message));
        }
        Ok(host)
    }

    fn check_origin(&self, host: &str, headers: &HeaderMap) -> Result<Passed> {
        let Some(origin) = headers.get(ORIGIN) else { return Ok(Passed::default()) };
        let text = origin.to_str().unwrap_or_default();
        let is_own = text
            .split_once("://")
            .is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host));
        if is_own {
            return Ok(Passed::default());
        }
        let is_of_this_machine =
            || text.split_once("://").is_some_and(|(_, host)| is_loopback_name(without_port(host)));
        let is_listed = |own: &&String| {
            *own == "*"
                || own.eq_ignore_ascii_case(text)
                || *own == "localhost" && is_of_this_machine()
        };
        match self.origins.iter().find(is_listed) {
            Some(own) if own == "*" => {
                Ok(Passed { allow_origin: Some(HeaderValue::from_static("*")) })
            }
            Some(_) => Ok(Passed { allow_origin: Some(origin.clone()) }),
            None => {
                let message = format!(
                    "origin: {}, expected a page of this server; --cors-origins adds sites",
                    quoted(text)
                );
                Err(ApiError::new(Kind::Permission, message))
            }
        }
    }

    fn check_key(&self, headers: &HeaderMap) -> Result<()> {
        if self.keys.is_empty() {
            return Ok(());
        }
        let bearer = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).and_then(|value| {
            let (scheme, key) = value.split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
        });
        let key = bearer.or_else(|| headers.get("x-api-key").map(HeaderValue::as_bytes));
        // A missing key takes as long as a wrong one.
        if self.keys.contains(key.unwrap_or_default().trim_ascii()) {
            Ok(())
        } else {
            Err(ApiError::new(Kind::Authentication, "Invalid API Key"))
        }
    }
}

fn check_size(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<()> {
    /// ` ` and ` HTTP/1.1\r\n` of the line; `: ` and `\r\n` of a header.
    const LINE: usize = 12;
    const HEADER: usize = 4;
    let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
    let fields = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + HEADER);
    let size = method.as_str().len() + path + LINE + fields.sum::<usize>();
    if size > MAX_HEAD {
        let message = format!("headers: {size} bytes, expected at most {MAX_HEAD}");
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        return Err(ApiError::invalid(message).with_status(status));
    }
    Ok(())
}

/// A host without its port; an address in brackets keeps them.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => {
            if name.contains(':') && !name.ends_with(']') {
                host
            } else {
                name
            }
        }
        _ => host,
    }
}

fn is_loopback_name(name: &str) -> bool {
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(guard: &Guard, method: Method, uri: &str, headers: &[(&str, &str)]) -> Result<Passed> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name: axum::http::HeaderName = name.parse().unwrap();
            map.append(name, value.parse().unwrap());
        }
        guard.check(&method, &uri.parse().unwrap(), &map)
    }

    fn status(guard: &Guard, uri: &str, headers: &[(&str, &str)]) -> u16 {
        check(guard, Method::POST, uri, headers).map_or_else(|e| e.status().as_u16(), |_| 200)
    }

    #[test]
    fn r24_a_server_on_loopback_knows_its_names_alone() {
        let mut guard = Guard { is_loopback: true, ..Guard::default() };
        for host in ["localhost", "LOCALHOST:1", "127.0.0.1:8080", "127.1.2.3", "[::1]", "[::1]:80"]
        {
            assert_eq!(status(&guard, "/x", &[("host", host)]), 200, "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:80", "10.0.0.1", "", "[::1"] {
            assert_eq!(status(&guard, "/x", &[("host", host)]), 403, "{host}");
        }
        let absolute = [("host", "localhost")];
        assert_eq!(status(&guard, "http://evil.example/x", &absolute), 403);
        assert_eq!(status(&guard, "/x", &[]), 400);
        assert_eq!(status(&guard, "/x", &[("host", "localhost"), ("host", "localhost")]), 400);
        guard.hosts = vec!["box.lan".into()];
        assert_eq!(status(&guard, "/x", &[("host", "box.lan:8080")]), 200);
        guard.is_loopback = false;
        assert_eq!(status(&guard, "/x", &[("host", "localhost")]), 403);
        guard.hosts.clear();
        assert_eq!(status(&guard, "/x", &[("host", "anything")]), 200);
    }

    #[test]
    fn r23_foreign_sites_are_refused() {
        let mut guard = Guard::default();
        let with = |origin| [("host", "localhost:8080"), ("origin", origin)];
        assert_eq!(status(&guard, "/x", &with("http://localhost:8080")), 200);
        for origin in ["http://evil.example", "null", "http://localhost:9", "localhost:8080", ""] {
            assert_eq!(status(&guard, "/x", &with(origin)), 403, "{origin}");
            assert!(check(&guard, Method::OPTIONS, "/x", &with(origin)).is_err());
        }
        guard.origins = vec!["https://a.example".into()];
        let passed = check(&guard, Method::POST, "/x", &with("https://a.example")).unwrap();
        assert_eq!(passed.allow_origin.unwrap(), "https://a.example");
        guard.origins = vec!["*".into()];
        let passed = check(&guard, Method::POST, "/x", &with("null")).unwrap();
        assert_eq!(passed.allow_origin.unwrap(), "*");
    }

    #[test]
    fn r22_keys_are_compared_as_a_whole() {
        let guard = Guard { keys: Keys::new(["one", " two ", ""]), ..Guard::default() };
        let with = |name, value| [("host", "x"), (name, value)];
        for (name, value) in
            [("authorization", "Bearer one"), ("authorization", "bearer two"), ("x-api-key", "two")]
        {
            assert_eq!(status(&guard, "/x", &with(name, value)), 200, "{value}");
        }
        for (name, value) in [
            ("authorization", "one"),
            ("authorization", "Bearer "),
            ("authorization", "Bearer on"),
            ("authorization", "Bearer onee"),
            ("authorization", "Basic one"),
            ("x-api-key", ""),
            ("cookie", "one"),
        ] {
            assert_eq!(status(&guard, "/x", &with(name, value)), 401, "{value}");
        }
        // The public paths may be read, and nothing else.
        assert!(check(&guard, Method::GET, "/v1/models", &[("host", "x")]).is_ok());
        assert_eq!(status(&guard, "/v1/models", &[("host", "x")]), 401);
        assert!(check(&guard, Method::GET, "/slots", &[("host", "x")]).is_err());
    }

    #[test]
    fn a_head_is_bounded_and_says_one_length() {
        let guard = Guard::default();
        let long = "x".repeat(MAX_HEAD);
        assert_eq!(status(&guard, "/x", &[("host", "x"), ("a", &long)]), 431);
        let path = format!("/{}", &long[..60_000]);
        assert_eq!(status(&guard, &path, &[("host", "x"), ("a", &long[..6_000])]), 431);
        let both = [("host", "x"), ("content-length", "3"), ("transfer-encoding", "chunked")];
        assert_eq!(status(&guard, "/x", &both), 400);
    }
}
