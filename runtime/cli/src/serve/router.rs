//! All paths, and what every request passes on its way to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Instant;

use axum::Router;
use axum::extract::{Request as HttpRequest, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_MAX_AGE, CONNECTION, VARY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use serde_json::json;

use super::app::App;
use super::error::{ApiError, Kind, Result};
use super::guard::Passed;
use super::{about, chat, completions, embeddings, native, page, tokens};
use crate::output::note;

/// Paths of llama.cpp's server that are not served, each with what to do instead.
const NOT_OFFERED: [(&str, &str); 8] = [
    ("/infill", "there is no model for filling in: POST /completion continues a text"),
    ("/rerank", "there are no reranking models here"),
    ("/v1/rerank", "there are no reranking models here"),
    ("/reranking", "there are no reranking models here"),
    ("/v1/responses", "use POST /v1/chat/completions, or a proxy that translates"),
    ("/v1/messages", "use POST /v1/chat/completions, or a proxy that translates"),
    ("/lora-adapters", "adapters are not offered"),
    ("/v1/messages/count_tokens", "use POST /tokenize, or a proxy that translates"),
];

/// A path and its methods.
type Route = (&'static str, fn() -> MethodRouter<Arc<App>>);

/// The paths that are served.
const ROUTES: [Route; 23] = [
    ("/", || get(page::page)),
    ("/health", || get(about::health)),
    ("/v1/health", || get(about::health)),
    ("/models", || get(about::models)),
    ("/v1/models", || get(about::models)),
    ("/props", || get(about::props)),
    ("/slots", || get(about::slots)),
    ("/slots/{id}", || post(about::slot_action)),
    ("/metrics", || get(about::metrics)),
    ("/tokenizer_info", || get(tokens::tokenizer_info)),
    ("/tokenize", || post(tokens::tokenize)),
    ("/detokenize", || post(tokens::detokenize)),
    ("/completion", || post(native::completion)),
    ("/completions", || post(native::completion)),
    ("/apply-template", || post(chat::apply_template)),
    ("/chat/completions", || post(chat::completions)),
    ("/v1/chat/completions", || post(chat::completions)),
    ("/chat/completions/input_tokens", || post(chat::input_tokens)),
    ("/v1/chat/completions/input_tokens", || post(chat::input_tokens)),
    ("/v1/completions", || post(completions::completions)),
    ("/embedding", || post(embeddings::native)),
    ("/embeddings", || post(embeddings::native)),
    ("/v1/embeddings", || post(embeddings::openai)),
];

/// Makes the router.
pub fn router(app: Arc<App>) -> Router {
    let mut router = Router::new();
    for (path, methods) in ROUTES {
        router = router.route(path, methods());
    }
    for (path, instead) in NOT_OFFERED {
        let refuse = move || async move {
            ApiError::new(Kind::NotSupported, format!("{path} is not offered: {instead}"))
        };
        router = router.route(path, get(refuse).post(refuse));
    }
    router
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(&app), pass))
        .with_state(app)
}

async fn nothing_here() -> ApiError {
    ApiError::new(
        Kind::NotFound,
        "path: found one that is not served; docs/serve.md lists those that are",
    )
}

async fn wrong_method(method: Method) -> ApiError {
    let message = format!("method: {method}, expected one that this path has");
    ApiError::invalid(message).with_status(StatusCode::METHOD_NOT_ALLOWED)
}

/// The account of one request: a line on stderr when the last of it has gone out, if that is asked
/// for. It holds no word of prompts, texts or keys.
#[derive(Debug)]
pub struct Account {
    is_logged: bool,
    route: &'static str,
    begun: Instant,
    status: AtomicU16,
    prompt: AtomicUsize,
    written: AtomicUsize,
}

impl Account {
    /// Adds the tokens of a text that has ended.
    pub fn add(&self, prompt: usize, written: usize) {
        self.prompt.fetch_add(prompt, Ordering::Relaxed);
        self.written.fetch_add(written, Ordering::Relaxed);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if self.is_logged {
            let line = json!({
                "route": self.route,
                "status": self.status.load(Ordering::Relaxed),
                "prompt_tokens": self.prompt.load(Ordering::Relaxed),
                "completion_tokens": self.written.load(Ordering::Relaxed),
                "ms": self.begun.elapsed().as_secs_f64() * 1e3,
            });
            note(format_args!("{line}"));
        }
    }
}

/// The name of a request's path among those that are served: what a client wrote goes nowhere.
fn route_name(path: &str) -> &'static str {
    let known = ROUTES.iter().map(|(path, _)| *path).find(|known| *known == path);
    match known {
        Some(known) => known,
        None if path.starts_with("/slots/") => "/slots/{id}",
        None => "other",
    }
}

/// Checks a request, serves it, and counts it.
async fn pass(State(app): State<Arc<App>>, mut request: HttpRequest, next: Next) -> Response {
    let route = route_name(request.uri().path());
    let account = Arc::new(Account {
        is_logged: app.settings.logs_requests,
        route,
        begun: Instant::now(),
        status: AtomicU16::new(0),
        prompt: AtomicUsize::new(0),
        written: AtomicUsize::new(0),
    });
    request.extensions_mut().insert(Arc::clone(&account));
    let checked: Result<Passed> =
        app.settings.guard.check(request.method(), request.uri(), request.headers());
    let (passed, mut response) = match checked {
        Ok(passed) if request.method() == Method::OPTIONS => (passed, preflight()),
        Ok(passed) => (passed, next.run(request).await),
        Err(error) => {
            let mut response = error.into_response();
            // Whoever sends such a head is not asked for another one.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            (Passed::default(), response)
        }
    };
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(origin) = passed.allow_origin {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.append(VARY, HeaderValue::from_static("Origin"));
    }
    account.status.store(response.status().as_u16(), Ordering::Relaxed);
    app.metrics.answered(route, response.status().as_u16());
    response
}

/// The answer to a page's question what it may send; one of a site that is not allowed gets none.
fn preflight() -> Response {
    let headers = [
        (ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, OPTIONS"),
        (ACCESS_CONTROL_ALLOW_HEADERS, "Authorization, Content-Type, X-Api-Key"),
        (ACCESS_CONTROL_MAX_AGE, "600"),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}
