//! Fit of a profile to this CPU and build, found without loading a model.

use bitnet_profiles::{Choice, Isa, KernelId, Op, Profile, Role, Shape};
use serde::Serialize;

use super::profile::is_of;
use crate::cpu::host::Host;
#[cfg(unix)]
use crate::cpu::kernels::cache::Cache;
use crate::cpu::kernels::{self, AttentionKernel, GatherKernel, HeadKernel};

/// Fingerprint of the generator that made the built-in kernels.
pub const FINGERPRINT: &str = bitnet_kernels::FINGERPRINT;

/// Fit of a profile to this CPU and build.
#[derive(Debug, Serialize)]
pub struct ProfileFit {
    /// Reason for which the whole profile is refused.
    pub refused: Option<String>,
    /// True if the profile was made on this kind of CPU.
    #[serde(skip)]
    pub same_cpu: bool,
    /// True if this build's generator made it; none where the profile does not say.
    pub same_fingerprint: Option<bool>,
    /// Presence of the library of its host-made kernels, or why it is not used; none where it has none.
    pub library: Option<std::result::Result<(), String>>,
    /// Number of kernels that come from this library.
    pub from_library: usize,
    /// Kernels that are neither built in nor in the library.
    pub absent: Vec<AbsentKernel>,
}

/// A kernel that a profile names and that is not present.
#[derive(Debug, Serialize)]
pub struct AbsentKernel {
    /// The role of the choice that names it.
    pub role: Role,
    /// The shapes of the choice.
    pub parts: Vec<Shape>,
    /// `decode`, `prefill` or `sparse`.
    pub phase: &'static str,
    /// The kernel.
    pub kernel: KernelId,
    /// Kernel that serves instead; none where it is the default.
    pub instead: Option<KernelId>,
}

impl ProfileFit {
    /// Checks a profile as [`Engine::open`](super::Engine::open) would.
    #[must_use]
    pub fn of(profile: &Profile, host: &Host) -> Self {
        let kernels = profile.ops.iter().flat_map(Choice::kernels);
        let mut isas = kernels.flat_map(|(_, kernel, built_in)| [kernel.isa, built_in.isa]);
        let lacks = isas.find(|isa| !isa.is_supported());
        let same_fingerprint = profile.tool.fingerprint.as_ref().map(|own| own == FINGERPRINT);
        let library = profile.tool.library_sha256.as_ref().map(|sha256| {
            if same_fingerprint == Some(false) {
                return Err("another generator made it".into());
            }
            library_is_present(sha256)
        });
        let mut absent: Vec<AbsentKernel> = match lacks {
            Some(_) => Vec::new(),
            None => profile.ops.iter().flat_map(absent).collect(),
        };
        let mut from_library = 0;
        if library == Some(Ok(())) {
            from_library = absent.len();
            absent.clear();
        }
        Self {
            refused: lacks.map(|isa| {
                let runs = Isa::supported_names();
                format!("it has kernels of {isa}, and this CPU runs {runs}")
            }),
            same_cpu: is_of(profile, host),
            same_fingerprint,
            library,
            from_library,
            absent,
        }
    }
}

/// Looks for a library in the user's cache; nothing of it runs.
#[cfg(unix)]
fn library_is_present(sha256: &str) -> std::result::Result<(), String> {
    let cache = Cache::of_user(|name| std::env::var_os(name));
    cache.and_then(|cache| cache.open(sha256)).map(drop).map_err(|e| e.to_string())
}

#[cfg(not(unix))]
fn library_is_present(_: &str) -> std::result::Result<(), String> {
    Err("this system is not supported".into())
}

/// The kernels of a choice that are not built in.
fn absent(choice: &Choice) -> Vec<AbsentKernel> {
    let kernels = choice.kernels().filter(|(_, kernel, _)| !is_built_in(kernel));
    let absent = |(phase, kernel, built_in): (&'static str, KernelId, KernelId)| AbsentKernel {
        role: choice.role,
        parts: choice.parts.clone(),
        phase,
        kernel,
        instead: is_built_in(&built_in).then_some(built_in),
    };
    kernels.map(absent).collect()
}

/// True if this build holds the kernel and this CPU runs it.
fn is_built_in(id: &KernelId) -> bool {
    match id.op {
        Op::Ternary(_) => kernels::find(id).is_some(),
        Op::Head(_) => HeadKernel::find(id).is_some(),
        // A profile never names one.
        Op::Sketch(_) | Op::Blocks(_) => false,
        Op::Attention => AttentionKernel::find(id).is_some(),
        Op::Rows(_) | Op::Columns(_) => GatherKernel::find(id).is_some(),
    }
}
