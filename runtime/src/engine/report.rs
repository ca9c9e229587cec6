//! Reports of the kernels and the head work of a model and its sessions.

use std::collections::BTreeMap;

use bitnet_profiles::{KernelId, Role};
use serde::Serialize;

use crate::cpu::head::screen::HeadStats;
use crate::cpu::model::Model;

/// The kernels of one role.
#[derive(Clone, Debug, Serialize)]
pub struct RoleReport {
    /// Packing in memory, or `file` where there is none; for the head, the type in the file; for
    /// attention, `kv_cache`.
    pub layout: String,
    /// The kernel for one token.
    pub decode: KernelId,
    /// The kernel for many tokens.
    pub prefill: KernelId,
    /// Bytes of the weights in the form that is read, over all layers.
    pub packed_bytes: usize,
    /// The kernel for one token that skips the weights that meet a zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparse: Option<KernelId>,
    /// Bytes of the second packing, from which that kernel reads a part.
    #[serde(skip_serializing_if = "is_zero")]
    pub sparse_bytes: usize,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(bytes: &usize) -> bool {
    *bytes == 0
}

/// The kernels that serve a model, by the name of their role.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct KernelReport(pub BTreeMap<&'static str, RoleReport>);

impl KernelReport {
    /// Reports on a model as it is.
    #[must_use]
    pub fn of(model: &Model) -> Self {
        let head = model.weights().head.tensor().ty.name();
        let roles = model.kernels().into_iter().map(|kernels| {
            let layout = match (kernels.layout, kernels.role) {
                (Some(layout), _) => layout.name(),
                (None, Role::LmHead) => head,
                (None, Role::Attention) => "kv_cache",
                (None, _) => "file",
            };
            let report = RoleReport {
                layout: layout.to_owned(),
                decode: kernels.decode,
                prefill: kernels.prefill.unwrap_or(kernels.decode),
                packed_bytes: kernels.bytes,
                sparse: kernels.sparse,
                sparse_bytes: kernels.sparse_bytes,
            };
            (kernels.role.name(), report)
        });
        Self(roles.collect())
    }

    /// Bytes of weights packed in memory; the head is read in the file's own blocks.
    #[must_use]
    pub fn packed_bytes(&self) -> usize {
        let packed = |report: &&RoleReport| report.decode.op.packing().is_some();
        let bytes = |report: &RoleReport| report.packed_bytes + report.sparse_bytes;
        self.0.values().filter(packed).map(bytes).sum()
    }
}

/// Work of the head for the tokens of a session.
#[derive(Clone, Debug, Serialize)]
pub struct HeadReport {
    /// Kernel that scans the sketch; none where the whole head is read.
    pub scan: Option<KernelId>,
    /// Share of the tokens for which the sketch was used.
    pub scanned: f64,
    /// Among these, the mean share of the rows that were refined.
    pub refined: f64,
    /// Among these, the mean share of the rows that the full head's kernel computed.
    pub rescored: f64,
    /// Mean bytes read per token.
    pub bytes_per_token: f64,
}

impl HeadReport {
    /// Reports on the tokens between two readings of
    /// [`Session::head_stats`](crate::cpu::session::Session::head_stats).
    #[must_use]
    pub fn between(model: &Model, before: HeadStats, after: HeadStats) -> Self {
        let ratio = |a: u64, b: u64| if b == 0 { 0.0 } else { a as f64 / b as f64 };
        let tokens = after.tokens - before.tokens;
        let scanned = after.scanned - before.scanned;
        let rows = scanned * model.config().vocab as u64;
        Self {
            scan: model.sketch().map(|sketch| *sketch.kernel(1).id()),
            scanned: ratio(scanned, tokens),
            refined: ratio(after.refined - before.refined, rows),
            rescored: ratio(after.rescored - before.rescored, rows),
            bytes_per_token: ratio(after.bytes - before.bytes, tokens),
        }
    }
}
