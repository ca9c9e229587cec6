//! The page at `/`: one file, which asks nothing of any other server.

use std::sync::{Arc, LazyLock};

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::app::App;
use super::error::{ApiError, Kind, Result};

const PAGE: &str = include_str!("page.html");

/// What the page may do: run its own script, with its own style, and ask this server.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        source("script"),
        source("style")
    )
});

/// `GET /`
///
/// # Errors
/// 404 with `--no-ui`.
pub async fn page(State(app): State<Arc<App>>) -> Result<Response> {
    if !app.settings.has_page {
        return Err(ApiError::new(Kind::NotFound, "there is no page here: --no-ui"));
    }
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-cache"),
    ];
    Ok((headers, PAGE).into_response())
}

/// The hash by which the policy names the text of the page's one element of a name.
fn source(name: &str) -> String {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let text = PAGE.split_once(&open).and_then(|(_, rest)| rest.split_once(&close));
    let hash = Sha256::digest(text.map_or("", |(text, _)| text));
    format!("sha256-{}", base64(&hash))
}

/// Bytes in base64.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0, |bits, &byte| bits << 8 | u32::from(byte));
        let bits = bits << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= chunk.len() { letter.into() } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_as_rfc_4648_has_it() {
        let cases =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (text, expected) in cases {
            assert_eq!(base64(text.as_bytes()), expected);
        }
    }

    #[test]
    fn the_page_is_one_small_file_that_names_no_other() {
        assert!(PAGE.len() < 40 << 10);
        assert!(PAGE.starts_with("<!doctype html>"));
        for name in ["script", "style"] {
            assert_eq!(PAGE.matches(&format!("<{name}")).count(), 1, "{name}");
        }
        for word in ["http:", "https:", "innerHTML", "eval(", "style=", "onclick", "src="] {
            assert!(!PAGE.contains(word), "{word}");
        }
    }
}
