//! The shipped profiles: what the model chooses for the published shapes on a kind of CPU.

use bitnet_cli::dummy::DummyShape;
use bitnet_profiles::registry::Shipped;
use bitnet_profiles::{
    self as profiles, Choice, Effort, HeadFormat, Isa, KernelId, Objective, Op, Pinning, Profile,
    Provenance, Role, Run, Tool, shapes_hash,
};

use super::{Cpu, estimate, kinds::Kind};
use crate::choose::{choose, defaults};
use crate::plan::{JobPlan, JobTask, placement, plan};
use crate::{ModelInfo, tune};

/// The shapes that shipped profiles list, by the names of [`DummyShape`].
pub const PUBLISHED: [&str; 9] = [
    "2b4t",
    "large",
    "3b",
    "llama8b",
    "falcon3-1b",
    "falcon3-3b",
    "falcon3-7b",
    "falcon3-10b",
    "100B",
];

/// The day of the model's last change: what the modelled profiles are dated.
const DATE: &str = "2026-11-20";

/// How the heads of published files are stored. A head of another type takes the kernel that the registry
/// names for it.
const HEAD: HeadFormat = HeadFormat::F16;

/// The architecture that the tier is of, as in `CARGO_CFG_TARGET_ARCH`.
fn arch(isa: Isa) -> &'static str {
    let all = ["x86_64", "aarch64"];
    all.into_iter().find(|arch| Isa::of_arch(arch).contains(&isa)).unwrap_or("x86_64")
}

/// The published models.
fn models() -> impl Iterator<Item = ModelInfo> {
    PUBLISHED.iter().filter_map(|name| {
        let shape = DummyShape::find(name)?;
        let config = shape.config();
        Some(ModelInfo {
            name: shape.name.into(),
            architecture: config.architecture.name,
            jobs: config.jobs(),
            shapes: config.shapes_hash(),
            config,
            head: HEAD,
            path: None,
        })
    })
}

/// The jobs of a model, with the pairs that the registry names as their defaults.
fn tasks(shipped: &Shipped, model: &ModelInfo) -> Vec<JobTask> {
    let isa = shipped.isa;
    // The same on every host, whatever that runs.
    let mut grid = bitnet_codegen::grid(Isa::of_arch(arch(isa)));
    grid.retain(|id| isa.includes(id.isa));
    let plans = plan(model, &grid, isa, Effort::Measure);
    let pair = shipped.kernels.iter().find(|pair| pair.isa() == isa);
    let task = |plan: JobPlan| {
        let plainest = |ids: &[KernelId]| {
            // As the runtime chooses where nothing is said.
            ids.iter().copied().max_by_key(|id| match id.op {
                Op::Attention => (id.isa, id.tile.rows, 0),
                _ => (id.isa, usize::from(id.tile.rows == 1), usize::MAX - id.tile.prefetch),
            })
        };
        let head = shipped.heads.iter().find(|id| id.op == Op::Head(HEAD) && isa.includes(id.isa));
        let first = plainest(&plan.layouts.first()?.decode)?;
        let (default_decode, default_prefill) = match plan.role {
            Role::LmHead => (head.copied().unwrap_or(first), None),
            Role::Attention => (first, Some(first)),
            _ => (pair?.decode, Some(pair?.prefill)),
        };
        Some(JobTask { plan, default_decode, default_prefill })
    };
    plans.into_iter().filter_map(task).collect()
}

/// What the model chooses for the published shapes, on a usual machine of the kind. The same text on
/// every host.
pub fn modelled(shipped: &Shipped) -> Profile {
    let kind = Kind::of_profile(&shipped.name);
    let cpu = Cpu::usual(kind);
    let threads = kind.cores as usize;
    let mut ops: Vec<Choice> = Vec::new();
    for model in models() {
        let measurements = estimate(&tasks(shipped, &model), &cpu, threads);
        // What the compiler makes of plain code is not modelled.
        let choices = match shipped.isa {
            Isa::Scalar => defaults(&measurements),
            _ => choose(&measurements, Objective::Balanced),
        };
        for choice in choices {
            let choice = tune::profile_choice(&measurements, &choice);
            if !ops.iter().any(|op| op.role == choice.role && op.parts == choice.parts) {
                ops.push(choice);
            }
        }
    }
    let cpus = shipped.cpus.first();
    Profile {
        schema: Profile::SCHEMA,
        tool: Tool {
            version: env!("CARGO_PKG_VERSION").into(),
            fingerprint: None,
            objective: Objective::Balanced,
            effort: Effort::Estimate,
            date: DATE.into(),
            library_sha256: None,
            provenance: Provenance::Modelled,
        },
        host: profiles::Host {
            cpu: kind.cpu.into(),
            vendor: cpus.map_or(String::new(), |cpus| cpus.vendor.clone()),
            family: cpus.map_or(0, |cpus| cpus.family),
            model: cpus.and_then(|cpus| cpus.models.first()).map_or(0, |models| models.0),
            stepping: 0,
            isa: Isa::of_arch(arch(shipped.isa))
                .iter()
                .copied()
                .filter(|isa| shipped.isa.includes(*isa))
                .collect(),
            physical_cores: kind.cores,
            threads: kind.cores,
            l2: kind.l2,
            l3: kind.l3,
            read_gb_per_s: kind.socket_gb_per_s,
            noise: 0.0,
        },
        model: profiles::Model {
            name: "published shapes".into(),
            architecture: "any".into(),
            shapes: shapes_of(&ops),
            path: None,
        },
        run: Run { threads: kind.cores, pinning: Pinning::None, huge_pages: true },
        ops,
    }
}

/// One profile of all shapes from measured ones of single models on one host: the first one's host and
/// tool, and every job once. Host-made kernels give way to their built-in fallbacks.
///
/// Nothing where there are none.
pub fn joined(measured: &[Profile]) -> Option<Profile> {
    let mut all = measured.first()?.clone();
    all.ops.clear();
    for op in measured.iter().flat_map(|profile| &profile.ops) {
        if all.ops.iter().any(|own| own.role == op.role && own.parts == op.parts) {
            continue;
        }
        let mut op = op.clone();
        if let Some(sparse) = &mut op.sparse {
            sparse.kernel = sparse.built_in;
        }
        for pick in [Some(&mut op.decode), op.prefill.as_mut()].into_iter().flatten() {
            if pick.kernel.shape.is_some() {
                pick.kernel = pick.built_in;
            }
            pick.runner_up = pick.runner_up.filter(|id| id.shape.is_none());
            pick.runner_up_ratio = pick.runner_up.and(pick.runner_up_ratio);
        }
        all.ops.push(op);
    }
    all.tool.fingerprint = None;
    all.tool.library_sha256 = None;
    // How to run is every machine's own affair.
    all.run = placement::untuned(all.run.threads as usize);
    all.model = profiles::Model {
        name: "published shapes".into(),
        architecture: "any".into(),
        shapes: shapes_of(&all.ops),
        path: None,
    };
    Some(all)
}

fn shapes_of(ops: &[Choice]) -> String {
    shapes_hash(ops.iter().map(|op| (op.role, &op.parts[..], op.count)))
}
