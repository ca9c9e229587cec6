//! Numbers about the server, in the text format of Prometheus, by llama.cpp's names and our own.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::job::Timings;

/// Upper bounds of the buckets of a histogram, in seconds.
const BOUNDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0];

/// Times, counted by length.
#[derive(Clone, Copy, Debug, Default)]
struct Histogram {
    /// Observations up to each bound, and beyond the last.
    counts: [u64; BOUNDS.len() + 1],
    sum: f64,
}

impl Histogram {
    fn observe(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        self.counts[BOUNDS.partition_point(|&bound| bound < seconds)] += 1;
        self.sum += seconds;
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        head(out, name, help, "histogram");
        let mut total = 0;
        for (i, count) in self.counts.iter().enumerate() {
            total += count;
            let bound = BOUNDS.get(i).map_or("+Inf".to_owned(), f64::to_string);
            line(out, format_args!("{name}_bucket{{le=\"{bound}\"}} {total}"));
        }
        line(out, format_args!("{name}_sum {}", self.sum));
        line(out, format_args!("{name}_count {total}"));
    }
}

#[derive(Debug, Default)]
struct Numbers {
    prompt_tokens: usize,
    cached_tokens: usize,
    prompt_seconds: f64,
    written: usize,
    written_seconds: f64,
    passes: usize,
    drafts: usize,
    drafted: usize,
    accepted: usize,
    busy: usize,
    longest: usize,
    processing: usize,
    waiting: usize,
    kv_bytes: usize,
    cancelled: usize,
    first_token: Histogram,
    between_tokens: Histogram,
    queued: Histogram,
    /// Requests by route and status.
    requests: BTreeMap<(&'static str, u16), u64>,
}

/// The numbers since the server began.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<Numbers>);

impl Metrics {
    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a text that got its slot after a time, with so many tokens of prompt, some of which
    /// were in the cache.
    pub fn begun(&self, queued: Duration, prompt: usize, cached: usize) {
        let mut numbers = self.numbers();
        numbers.queued.observe(queued);
        numbers.prompt_tokens += prompt - cached;
        numbers.cached_tokens += cached;
    }

    /// Counts a pass through the model for some texts, with so many tokens of prompts, and drafts.
    pub fn passed(&self, texts: usize, prompt: usize, drafts: usize, took: Duration) {
        let mut numbers = self.numbers();
        numbers.passes += 1;
        numbers.drafts += drafts;
        numbers.busy += texts;
        if prompt > 0 {
            numbers.prompt_seconds += took.as_secs_f64();
        }
    }

    /// Notes a text's first token, after the time since its request.
    pub fn first_token(&self, time: Duration) {
        self.numbers().first_token.observe(time);
    }

    /// Notes another token of a text, after the time since the one before.
    pub fn token(&self, time: Duration) {
        self.numbers().between_tokens.observe(time);
    }

    /// Counts a text that has ended, and the tokens that its slot holds.
    pub fn finished(&self, timings: &Timings, held: usize) {
        let mut numbers = self.numbers();
        numbers.written += timings.written;
        numbers.written_seconds += timings.time.as_secs_f64();
        numbers.drafted += timings.drafted;
        numbers.accepted += timings.accepted;
        numbers.longest = numbers.longest.max(held);
    }

    /// Counts a text that nobody waited for any more.
    pub fn cancelled(&self) {
        self.numbers().cancelled += 1;
    }

    /// Notes texts in slots, texts that wait, and the bytes of KV cache in use.
    pub fn now(&self, processing: usize, waiting: usize, kv_bytes: usize) {
        let mut numbers = self.numbers();
        (numbers.processing, numbers.waiting) = (processing, waiting);
        numbers.kv_bytes = kv_bytes;
    }

    /// Counts a request that was answered.
    pub fn answered(&self, route: &'static str, status: u16) {
        *self.numbers().requests.entry((route, status)).or_default() += 1;
    }

    /// The numbers as text.
    pub fn text(&self) -> String {
        let n = self.numbers();
        let ratio = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
        let mut out = String::new();
        let counters = [
            (
                "llamacpp:prompt_tokens_total",
                "Tokens of prompts that went through the model.",
                n.prompt_tokens as f64,
            ),
            ("llamacpp:prompt_seconds_total", "Time of passes with prompts.", n.prompt_seconds),
            (
                "llamacpp:prompt_tokens_cached_total",
                "Tokens of prompts that were in the cache.",
                n.cached_tokens as f64,
            ),
            ("llamacpp:tokens_predicted_total", "Tokens written.", n.written as f64),
            (
                "llamacpp:tokens_predicted_seconds_total",
                "Time of texts from their first token to their last.",
                n.written_seconds,
            ),
            ("llamacpp:n_decode_total", "Passes through the model.", n.passes as f64),
            ("llamacpp:n_tokens_max", "Most tokens that a slot held.", n.longest as f64),
            ("llamacpp:spec_decode_num_drafts_total", "Drafts.", n.drafts as f64),
            (
                "llamacpp:spec_decode_num_draft_tokens_total",
                "Tokens that were drafted.",
                n.drafted as f64,
            ),
            (
                "llamacpp:spec_decode_num_accepted_tokens_total",
                "Tokens that were drafted and written.",
                n.accepted as f64,
            ),
            (
                "bitnet:cancelled_total",
                "Texts whose readers went away or stalled.",
                n.cancelled as f64,
            ),
        ];
        for (name, help, value) in counters {
            head(&mut out, name, help, "counter");
            line(&mut out, format_args!("{name} {value}"));
        }
        let gauges = [
            (
                "llamacpp:prompt_tokens_seconds",
                "Tokens of prompts per second.",
                ratio(n.prompt_tokens as f64, n.prompt_seconds),
            ),
            (
                "llamacpp:predicted_tokens_seconds",
                "Tokens of a text per second.",
                ratio(n.written as f64, n.written_seconds),
            ),
            ("llamacpp:requests_processing", "Texts in slots.", n.processing as f64),
            ("llamacpp:requests_deferred", "Texts that wait for a slot.", n.waiting as f64),
            (
                "llamacpp:n_busy_slots_per_decode",
                "Texts in a pass.",
                ratio(n.busy as f64, n.passes as f64),
            ),
            (
                "llamacpp:prompt_cache_hit_ratio",
                "Share of the prompts' tokens that were in the cache.",
                ratio(n.cached_tokens as f64, (n.cached_tokens + n.prompt_tokens) as f64),
            ),
            ("bitnet:kv_bytes", "Bytes of KV cache in use.", n.kv_bytes as f64),
        ];
        for (name, help, value) in gauges {
            head(&mut out, name, help, "gauge");
            line(&mut out, format_args!("{name} {value}"));
        }
        n.first_token.write(
            &mut out,
            "bitnet:ttft_seconds",
            "Time from a request to its first token.",
        );
        n.between_tokens.write(
            &mut out,
            "bitnet:inter_token_seconds",
            "Time between two tokens of a text.",
        );
        n.queued.write(&mut out, "bitnet:queue_seconds", "Time from a request to its slot.");
        head(&mut out, "bitnet:requests_total", "Requests answered.", "counter");
        for ((route, status), count) in &n.requests {
            line(
                &mut out,
                format_args!(
                    "bitnet:requests_total{{route=\"{route}\",status=\"{status}\"}} {count}"
                ),
            );
        }
        out
    }
}

fn head(out: &mut String, name: &str, help: &str, kind: &str) {
    line(out, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_up_to_each_bound() {
        let metrics = Metrics::default();
        for ms in [5, 6, 100, 70_000] {
            metrics.first_token(Duration::from_millis(ms));
        }
        let text = metrics.text();
        for line in [
            "bitnet:ttft_seconds_bucket{le=\"0.005\"} 1",
            "bitnet:ttft_seconds_bucket{le=\"0.01\"} 2",
            "bitnet:ttft_seconds_bucket{le=\"0.1\"} 3",
            "bitnet:ttft_seconds_bucket{le=\"60\"} 3",
            "bitnet:ttft_seconds_bucket{le=\"+Inf\"} 4",
            "bitnet:ttft_seconds_count 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
}
