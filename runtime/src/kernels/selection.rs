//! Which kernels serve a model: the one dispatch.
//!
//! In order: what the user forces (a format, an ISA ceiling), the choice that the profile holds for
//! this role and these shapes, the shipped default of the best ISA. A kernel that the profile names
//! and this program does not hold is replaced by the built-in one named beside it.

use std::cell::RefCell;
use std::sync::OnceLock;

use bitnet_profiles::{
    Choice, Format, HeadFormat, Isa, KernelId, Pick, Profile, Role, Shape, registry,
};

use super::{AttentionKernel, HeadKernel, Kernel, VectorOps, find};
use crate::host::Host;
use crate::{Error, Result};

/// What decides on kernels, and what it had to say.
#[derive(Debug)]
pub struct Selection {
    ceiling: Isa,
    format: Option<Format>,
    profile: Option<Profile>,
    notes: RefCell<Vec<String>>,
}

/// The shipped defaults for this CPU.
pub fn shipped() -> &'static registry::Defaults {
    static SHIPPED: OnceLock<registry::Defaults> = OnceLock::new();
    SHIPPED.get_or_init(|| {
        let host = Host::detect();
        registry::Defaults::of(&host.vendor, host.family)
    })
}

impl Default for Selection {
    /// The shipped defaults for this CPU.
    fn default() -> Self {
        Self { ceiling: Isa::best(), format: None, profile: None, notes: RefCell::default() }
    }
}

impl Selection {
    /// A forced `isa` ceiling or `format` overrides the profile, and says so.
    ///
    /// # Errors
    /// [`Error::Cpu`] when the CPU lacks `isa`.
    pub fn new(isa: Option<Isa>, format: Option<Format>, profile: Option<Profile>) -> Result<Self> {
        if let Some(isa) = isa.filter(|isa| !isa.is_supported()) {
            return Err(Error::Cpu {
                item: "--isa".into(),
                found: isa.to_string(),
                expected: format!("one that this CPU runs: {}", Isa::supported_names()),
            });
        }
        let forced = isa.is_some() || format.is_some();
        let mut notes = Vec::new();
        if forced && profile.is_some() {
            notes.push("--isa and --format override the profile".to_string());
        }
        Ok(Self {
            ceiling: isa.unwrap_or_else(Isa::best),
            format,
            profile: profile.filter(|_| !forced),
            notes: RefCell::new(notes),
        })
    }

    /// The profile in use, if nothing overrides it.
    pub fn profile(&self) -> Option<&Profile> {
        self.profile.as_ref()
    }

    /// The highest tier that may be used.
    pub fn ceiling(&self) -> Isa {
        self.ceiling
    }

    /// What there was to say, one line each; they are handed out once.
    pub fn take_notes(&self) -> Vec<String> {
        self.notes.take()
    }

    /// The kernels for decode and for prefill of a ternary role.
    ///
    /// # Errors
    /// [`Error::Runtime`] when this program lacks even the default, which a test rules out.
    pub fn ternary(&self, role: Role, parts: &[Shape]) -> Result<(Kernel, Kernel)> {
        let choice = self.choice(role, parts);
        if let Some(choice) = choice
            && let Some(prefill) = &choice.prefill
            && let Some(pair) = self
                .present(role, &choice.decode)
                .zip(self.present(role, prefill))
                .filter(|(decode, prefill)| decode.layout() == prefill.layout())
        {
            return Ok(pair);
        }
        let (_, default) = shipped().ternary(self.format, self.ceiling);
        let get = |id: &KernelId| {
            find(id).copied().ok_or_else(|| {
                Error::Runtime(format!("the default kernel {id} is not part of this program"))
            })
        };
        Ok((get(&default.decode)?, get(&default.prefill)?))
    }

    /// The profile's choice for a role and these shapes. That it has none is told, where a profile
    /// may be expected to have one.
    fn choice(&self, role: Role, parts: &[Shape]) -> Option<&Choice> {
        let profile = self.profile.as_ref()?;
        let choice = profile.choice(role, parts);
        let ternary = !matches!(role, Role::LmHead | Role::Attention);
        if choice.is_none() && (ternary || profile.ops.iter().any(|choice| choice.role == role)) {
            let parts: Vec<String> = parts.iter().map(Shape::to_string).collect();
            let parts = parts.join(" ");
            self.note(format!("{role}: the profile has no choice for {parts}, using the default"));
        }
        choice
    }

    /// The kernel of a pick, or its fallback.
    fn present(&self, role: Role, pick: &Pick) -> Option<Kernel> {
        find(&pick.kernel).copied().or_else(|| {
            let fallback = find(&pick.built_in).copied();
            let instead = fallback.map_or("the default".into(), |k| k.id().to_string());
            self.note(format!("{role}: {} is not present here, using {instead}", pick.kernel));
            fallback
        })
    }

    /// The kernel for a head of that format.
    ///
    /// # Errors
    /// As [`Selection::ternary`].
    pub fn head(&self, format: HeadFormat, shape: Shape) -> Result<HeadKernel> {
        self.choice(Role::LmHead, &[shape])
            .and_then(|choice| HeadKernel::find(&choice.decode.kernel))
            .filter(|kernel| kernel.format() == format)
            .or_else(|| HeadKernel::find(&shipped().head(format, self.ceiling)?))
            .or_else(|| HeadKernel::default(format, self.ceiling))
            .ok_or_else(|| Error::Runtime(format!("no kernel for a head in {format}")))
    }

    /// The kernel for attention.
    ///
    /// # Errors
    /// As [`Selection::ternary`].
    pub fn attention(&self, parts: &[Shape]) -> Result<AttentionKernel> {
        self.choice(Role::Attention, parts)
            .and_then(|choice| AttentionKernel::find(&choice.decode.kernel))
            .or_else(|| AttentionKernel::default(self.ceiling))
            .ok_or_else(|| Error::Runtime("no kernel for attention".into()))
    }

    /// The float operations.
    pub fn vector(&self) -> VectorOps {
        VectorOps::best(self.ceiling)
    }

    fn note(&self, note: String) {
        let mut notes = self.notes.borrow_mut();
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
}
