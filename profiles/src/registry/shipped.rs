//! The text of a shipped profile, and the whole profile that it stands for.

use std::sync::OnceLock;

use serde::Deserialize;

use super::Generic;
use crate::{
    Choice, Effort, Host, Isa, KernelId, Model, Objective, Pick, Pinning, Profile, Provenance,
    Role, Run, Shape, Tool, shapes_hash,
};

/// CPUs of one vendor and family.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpus {
    /// As the CPU says it; the implementer's number on ARM.
    pub vendor: String,
    /// Family number; 8 on 64-bit ARM.
    pub family: u32,
    /// First and last model number of each run; on ARM the part number.
    pub models: Vec<(u32, u32)>,
}

/// A shipped profile, as the registry states it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shipped {
    /// Its name.
    pub name: String,
    /// The CPUs it is made for; none: any that runs `isa`.
    #[serde(default)]
    pub cpus: Vec<Cpus>,
    /// The tier that its kernels need.
    pub isa: Isa,
    /// The pairs for what it has no choice for, at most one for each format and ISA. The first is of
    /// `isa`.
    pub kernels: Vec<Generic>,
    /// The pairs for matrices with block scales, at most one for each width and ISA.
    #[serde(default)]
    pub blocks: Vec<Generic>,
    /// Kernels for heads, at most one for each format and ISA; where one is missing, the plainest of
    /// the best ISA serves.
    #[serde(default)]
    pub heads: Vec<KernelId>,
    /// Kernels that are given a list of rows or columns, at most one for each packing, direction and
    /// ISA; where one is missing, the generator's first serves.
    #[serde(default)]
    pub gathers: Vec<KernelId>,
    /// Origin of its choices, if they were not measured.
    #[serde(default)]
    modelled: Option<Modelled>,
    #[serde(skip)]
    profile: OnceLock<Profile>,
}

/// Choices for the published shapes by a model of a machine.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Modelled {
    /// The machine's CPU; where the profile serves a class, one that stands for the others.
    cpu: String,
    /// Cores, which all work.
    cores: u32,
    /// Bytes of L2 cache of a core.
    l2: u64,
    /// Bytes of L3 cache.
    l3: u64,
    /// The kernel for attention.
    attention: KernelId,
    /// The ternary jobs that take another pair than the profile's first.
    #[serde(default)]
    except: Vec<Except>,
}

/// Another pair for some jobs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Except {
    /// Their matrices; none: every job's.
    #[serde(default)]
    jobs: Vec<Vec<Shape>>,
    decode: KernelId,
    prefill: KernelId,
}

/// A published model, whose shapes every shipped profile lists.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// A short name.
    pub name: String,
    /// Layers.
    pub layers: u32,
    hidden: usize,
    ffn: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab: usize,
}

impl Published {
    /// The jobs of a token: role, matrices, and how often.
    pub fn jobs(&self) -> [(Role, Vec<Shape>, u32); 6] {
        let &Self { layers, hidden, ffn, heads, kv_heads, head_dim, vocab, .. } = self;
        let kv = Shape::new(kv_heads * head_dim, hidden);
        [
            (Role::Qkv, vec![Shape::new(heads * head_dim, hidden), kv, kv], layers),
            (Role::AttnOutput, vec![Shape::new(hidden, heads * head_dim)], layers),
            (Role::GateUp, vec![Shape::new(ffn, hidden); 2], layers),
            (Role::Down, vec![Shape::new(hidden, ffn)], layers),
            (Role::LmHead, vec![Shape::new(vocab, hidden)], 1),
            (
                Role::Attention,
                vec![Shape::new(heads, head_dim), Shape::new(kv_heads, head_dim)],
                layers,
            ),
        ]
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Registry {
    /// Day of the modelled choices, `YYYY-MM-DD`.
    modelled: String,
    published: Vec<Published>,
    profile: Vec<Shipped>,
}

fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(|| {
        let text = include_str!("../../data/registry.toml");
        toml::from_str(text).expect("the registry is tested")
    })
}

/// The published models.
pub fn published() -> &'static [Published] {
    &registry().published
}

/// Measurements, by the names of the profiles.
const MEASURED: &[(&str, &str)] = &[("zen5", include_str!("../../data/zen5.toml"))];

impl Shipped {
    /// Every shipped profile, in the order in which they are asked.
    pub fn all() -> &'static [Self] {
        &registry().profile
    }

    /// The whole profile, with a choice for every published shape; made when it is first asked for.
    pub fn profile(&self) -> &Profile {
        self.profile.get_or_init(|| match &self.modelled {
            Some(modelled) => self.expand(modelled),
            None => {
                let measured = MEASURED.iter().find(|(name, _)| *name == self.name);
                let (_, text) = measured.expect("a test asks for every profile");
                Profile::parse(text).expect("the measured profiles are tested")
            }
        })
    }

    /// True if it is made for any CPU of a class rather than a kind.
    pub fn is_class(&self) -> bool {
        self.cpus.is_empty()
    }

    /// True if it serves a CPU with those numbers, whose best tier is `best`.
    pub(super) fn fits(&self, vendor: &str, family: u32, model: u32, best: Isa) -> bool {
        let own = |cpus: &Cpus| {
            cpus.vendor == vendor
                && cpus.family == family
                && cpus.models.iter().any(|&(first, last)| (first..=last).contains(&model))
        };
        self.isa.is_within(best) && (self.is_class() || self.cpus.iter().any(own))
    }

    /// The profile of which the registry states what differs from job to job.
    fn expand(&self, modelled: &Modelled) -> Profile {
        let mut ops: Vec<Choice> = Vec::new();
        for (role, parts, count) in published().iter().flat_map(Published::jobs) {
            if !ops.iter().any(|op| op.role == role && op.parts == parts) {
                ops.push(self.choice(modelled, role, parts, count));
            }
        }
        let cpus = self.cpus.first();
        let arch = ["x86_64", "aarch64"].map(Isa::of_arch);
        let isas = arch.into_iter().find(|isas| isas.contains(&self.isa)).unwrap_or_default();
        Profile {
            schema: Profile::SCHEMA,
            tool: Tool {
                version: env!("CARGO_PKG_VERSION").into(),
                fingerprint: None,
                objective: Objective::Balanced,
                effort: Effort::Estimate,
                date: registry().modelled.clone(),
                library_sha256: None,
                provenance: Provenance::Modelled,
            },
            host: Host {
                cpu: modelled.cpu.clone(),
                vendor: cpus.map_or(String::new(), |cpus| cpus.vendor.clone()),
                family: cpus.map_or(0, |cpus| cpus.family),
                model: cpus.and_then(|cpus| cpus.models.first()).map_or(0, |models| models.0),
                stepping: 0,
                isa: isas.iter().copied().filter(|isa| self.isa.includes(*isa)).collect(),
                physical_cores: modelled.cores,
                threads: modelled.cores,
                l2: modelled.l2,
                l3: modelled.l3,
                read_gb_per_s: None,
                noise: None,
            },
            model: Model {
                name: "published shapes".into(),
                architecture: "any".into(),
                shapes: shapes_hash(ops.iter().map(|op| (op.role, &op.parts[..], op.count))),
                path: None,
            },
            run: Run { threads: modelled.cores, pinning: Pinning::None, huge_pages: true },
            ops,
        }
    }

    fn choice(&self, modelled: &Modelled, role: Role, parts: Vec<Shape>, count: u32) -> Choice {
        let kernels = match role {
            Role::Attention => [modelled.attention; 2],
            // Published files hold heads of f16.
            Role::LmHead => [self.heads[0]; 2],
            _ => {
                let own = |except: &&Except| except.jobs.is_empty() || except.jobs.contains(&parts);
                match modelled.except.iter().find(own) {
                    Some(except) => [except.decode, except.prefill],
                    None => [self.kernels[0].decode, self.kernels[0].prefill],
                }
            }
        };
        let [decode, prefill] = kernels.map(Pick::untimed);
        let layout = decode.kernel.op.packing();
        let prefill = layout.is_some().then_some(prefill);
        Choice { role, parts, count, layout, decode, prefill, sparse: None }
    }
}
