//! A result of `bitnet-run bench`: llama-bench's keys, and what share of the machine's limits it is.

use std::collections::{BTreeMap, BTreeSet};

use bitnet_profiles::{Isa, KernelId, Op};
use bitnet_runtime::arch::config::{Config, JobShapes};
use bitnet_runtime::engine::ProfileInUse;
use bitnet_runtime::engine::report::{HeadReport, RoleReport};
use bitnet_runtime::file::gguf::Gguf;
use bitnet_runtime::measure::bench::{mean, median};
use serde::Serialize;

/// Multiply-adds of the ternary matrices for one token.
pub fn multiply_adds(config: &Config) -> f64 {
    let weights = |job: JobShapes| {
        job.count as usize * job.parts.iter().map(|part| part.weights()).sum::<usize>()
    };
    config.jobs().into_iter().map(weights).sum::<usize>() as f64
}

/// Bytes that a token of a generation reads, on average.
#[derive(Clone, Copy, Serialize)]
pub struct DecodeBytes {
    /// The ternary matrices, as they are packed.
    pub weights: f64,
    pub head: f64,
    /// Keys and values of its position and those before.
    pub kv: f64,
    /// Norms, and a row of the embedding.
    pub other: f64,
}

impl DecodeBytes {
    pub fn all(self) -> f64 {
        self.weights + self.head + self.kv + self.other
    }
}

/// Weights that were not skipped in a role, per token on average.
#[derive(Clone, Copy, Serialize)]
pub struct Skipped {
    /// Share of open gates, or of inputs other than zero.
    pub density: f64,
    /// Bytes of weights.
    pub read_per_token: f64,
}

/// Use of a resource of the machine in a test: what a token costs, what the test reached on
/// average, the median of the limits that were probed beside its repetitions, and the median of what
/// share each repetition reached of its own.
#[derive(Clone, Copy, Serialize)]
pub struct Reached {
    pub per_token: f64,
    pub per_second: f64,
    pub probe_per_second: Option<f64>,
    pub share: Option<f64>,
}

impl Reached {
    pub fn of(per_token: f64, tokens_per_second: &[f64], limits: &[f64]) -> Self {
        let pairs = tokens_per_second.iter().zip(limits);
        let shares: Vec<f64> = pairs.map(|(rate, limit)| per_token * rate / limit).collect();
        let middle = |values: &[f64]| (!values.is_empty()).then(|| median(values));
        Self {
            per_token,
            per_second: per_token * mean(tokens_per_second),
            probe_per_second: middle(limits),
            share: middle(&shares),
        }
    }

    /// `24.3, 81 % of 30.1`, in units of `unit`.
    pub fn text(self, unit: f64, decimals: usize) -> String {
        let reached = format!("{:.decimals$}", self.per_second / unit);
        match (self.probe_per_second, self.share) {
            (Some(probe), Some(share)) => {
                format!("{reached}, {:.0} % of {:.decimals$}", share * 100.0, probe / unit)
            }
            _ => reached,
        }
    }
}

/// The format of the ternary weights as llama.cpp names it, such as `TQ2_0 - 2.06 bpw ternary`.
pub fn ternary_type(gguf: &Gguf) -> String {
    // An embedding or a head may be ternary too.
    let mut layers = gguf.tensors().iter().filter(|tensor| tensor.name.starts_with("blk."));
    let Some(tensor) = layers.find(|tensor| tensor.ty.is_ternary()) else { return String::new() };
    let format = tensor.ty.format();
    let bytes = tensor.bytes - format.size.tail_bytes();
    let bits = (800.0 * bytes as f64 / tensor.elements() as f64).round() / 100.0;
    format!("{} - {bits} bpw ternary", format.name.to_uppercase())
}

/// 2412820480 as `2.4B`, 10989696 as `11M`.
pub fn short_count(n: u64) -> String {
    if n >= 1_000_000_000 {
        format!("{:.1}B", n as f64 / 1e9)
    } else {
        format!("{}M", n / 1_000_000)
    }
}

/// A result: llama-bench's keys, then ours.
#[derive(Serialize)]
pub struct Row {
    pub build_commit: &'static str,
    pub build_number: u32,
    pub cpu_info: String,
    pub gpu_info: &'static str,
    pub backends: &'static str,
    pub model_filename: String,
    pub model_type: String,
    pub model_size: u64,
    pub model_n_params: u64,
    pub n_batch: usize,
    pub n_ubatch: usize,
    pub n_threads: usize,
    pub type_k: &'static str,
    pub type_v: &'static str,
    pub n_gpu_layers: u32,
    pub cpu_strict: bool,
    pub use_mmap: bool,
    pub embeddings: bool,
    pub n_prompt: usize,
    pub n_gen: usize,
    pub n_depth: usize,
    pub test_time: String,
    pub avg_ns: f64,
    pub stddev_ns: f64,
    pub avg_ts: f64,
    pub stddev_ts: f64,
    pub samples_ns: Vec<u64>,
    pub samples_ts: Vec<f64>,

    /// Sequences, and the tokens per second of each.
    pub n_parallel: usize,
    pub sequence_ts: f64,
    pub isa: Isa,
    pub huge_pages: bool,
    pub profile: ProfileInUse,
    pub kernels: BTreeMap<&'static str, RoleReport>,
    pub lm_head: HeadReport,
    /// Of a repetition, on average.
    pub stage_ns: BTreeMap<&'static str, f64>,
    /// Weights that single tokens did not skip, of the roles that skip.
    pub sparse: BTreeMap<&'static str, Skipped>,
    /// Bytes that a token of a generation reads.
    pub bytes_per_token: Option<DecodeBytes>,
    /// Bytes that the tokens of a generation read.
    pub read: Option<Reached>,
    /// Multiply-adds in the ternary products of a prompt, while these run.
    pub multiply_add: Option<Reached>,
    #[serde(skip)]
    pub name: String,
}

impl Row {
    /// Layout and ISA of the ternary kernels, each pair once.
    pub fn ternary_kernels(&self) -> String {
        let ternary = |kernel: KernelId| matches!(kernel.op, Op::Ternary(_)).then_some(kernel);
        let kernels = self.kernels.values().filter_map(|kernels| {
            ternary(if self.n_gen == 0 { kernels.prefill } else { kernels.decode })
        });
        let names: BTreeSet<String> =
            kernels.map(|kernel| format!("{} {}", kernel.op, kernel.isa)).collect();
        names.into_iter().collect::<Vec<_>>().join(", ")
    }
}
