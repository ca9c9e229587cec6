//! Selection of the kernels that serve a model: the one dispatch.
//!
//! Precedence: what the user forces (a format, an ISA ceiling), the choice that the user's profile
//! holds for this role and these shapes, that of the profile shipped for this CPU, the default pair
//! beside it. A kernel that the user's profile names is built in, or in the library that was made
//! on this host with the profile. One that is neither, or that fails its self-check, is replaced by
//! the built-in one named beside it.

use std::cell::{Cell, RefCell};
use std::sync::OnceLock;

use bitnet_profiles::{
    Choice, Format, HeadFormat, Isa, KernelId, Op, Packing, Pick, Profile, Role, Shape, registry,
};

use super::{
    AttentionKernel, BlockKernel, GatherKernel, HeadKernel, Kernel, Library, Unusable, VectorOps,
    builtin, find,
};
use crate::cpu::gather::Along;
use crate::cpu::host::Host;
use crate::{Error, Result};

/// Selector of kernels, and its notes.
#[derive(Debug)]
pub struct Selection {
    ceiling: Isa,
    format: Option<Format>,
    profile: Option<Profile>,
    /// Library of the kernels made for the profile.
    library: RefCell<Option<Library>>,
    /// True if the profile's kernels are those of another version; then their fallbacks serve.
    foreign: bool,
    /// True once it was noted, once for all, why kernels of the profile are not used.
    told: Cell<bool>,
    notes: RefCell<Vec<String>>,
}

/// Returns the shipped defaults for this CPU.
pub fn shipped() -> &'static registry::Defaults {
    static SHIPPED: OnceLock<registry::Defaults> = OnceLock::new();
    SHIPPED.get_or_init(|| {
        let host = Host::detect();
        registry::Defaults::of(&host.vendor, host.family, host.model, Isa::best())
    })
}

impl Default for Selection {
    /// Selects the shipped defaults for this CPU.
    fn default() -> Self {
        Self {
            ceiling: Isa::best(),
            format: None,
            profile: None,
            library: RefCell::default(),
            foreign: false,
            told: Cell::new(false),
            notes: RefCell::default(),
        }
    }
}

impl Selection {
    /// Makes a selection. A forced `isa` ceiling or `format` overrides the profile, with a note. If
    /// the profile names a library of kernels, it is loaded from the user's cache.
    ///
    /// # Errors
    /// [`Error::Cpu`] when the CPU lacks `isa`.
    pub fn new(isa: Option<Isa>, format: Option<Format>, profile: Option<Profile>) -> Result<Self> {
        if let Some(isa) = isa.filter(|isa| !isa.is_supported()) {
            return Err(Error::Cpu {
                item: "isa".into(),
                found: isa.to_string(),
                expected: format!("one that this CPU runs: {}", Isa::supported_names()),
            });
        }
        let forced = isa.is_some() || format.is_some();
        let mut selection = Self {
            ceiling: isa.unwrap_or_else(Isa::best),
            format,
            profile: None,
            ..Self::default()
        };
        match profile {
            Some(_) if forced => {
                selection.note("isa and format override the profile".to_string());
            }
            profile => selection.profile = profile,
        }
        selection.load_library();
        Ok(selection)
    }

    /// Loads the library of the profile, if it has one, or notes why not.
    fn load_library(&mut self) {
        let Some(tool) = self.profile.as_ref().map(|profile| &profile.tool) else { return };
        let own = builtin::FINGERPRINT;
        let found = match &tool.fingerprint {
            Some(fingerprint) => fingerprint.as_str(),
            None if tool.library_sha256.is_some() => "none",
            // A shipped profile is for any version.
            None => own,
        };
        if found != own {
            self.foreign = true;
            self.tell(format!(
                "the profile's kernels are not used: they are of another version (fingerprint \
                 {found}, this program's is {own}); built-in ones instead; bitnet-tune makes a new \
                 profile"
            ));
            return;
        }
        let Some(sha256) = &tool.library_sha256 else { return };
        match open(sha256, self.ceiling) {
            Ok(library) => *self.library.get_mut() = Some(library),
            Err(reason) => self.give_up(&reason),
        }
    }

    /// The profile in use, if nothing overrides it.
    pub fn profile(&self) -> Option<&Profile> {
        self.profile.as_ref()
    }

    /// The highest ISA that may be used.
    pub fn ceiling(&self) -> Isa {
        self.ceiling
    }

    /// Returns the notes, one line each, and forgets them.
    pub fn take_notes(&self) -> Vec<String> {
        self.notes.take()
    }

    /// Returns the kernels for decode and for prefill of a ternary role.
    ///
    /// # Errors
    /// [`Error::Runtime`] when this program lacks even the default, which a test rules out.
    pub fn ternary(&self, role: Role, parts: &[Shape]) -> Result<(Kernel, Kernel)> {
        let serves = |packing| matches!(packing, Packing::Ternary(_));
        let built_in = |id: &KernelId| find(id).copied();
        let own =
            self.pair(role, parts, ("matrices with one scale", serves), (built_in, Library::find));
        if let Some(pair) = own {
            return Ok(pair);
        }
        let default = shipped().pair(role, parts, self.format, self.ceiling);
        let get = |id: &KernelId| {
            find(id).copied().ok_or_else(|| {
                Error::Runtime(format!("the default kernel {id} is not part of this program"))
            })
        };
        Ok((get(&default.decode)?, get(&default.prefill)?))
    }

    /// Returns the kernels for decode and for prefill of a ternary role whose matrices have a scale for each
    /// block of so many columns.
    ///
    /// # Errors
    /// [`Error::Runtime`] when there are none for such blocks.
    pub fn blocks(
        &self,
        role: Role,
        parts: &[Shape],
        width: usize,
    ) -> Result<(BlockKernel, BlockKernel)> {
        let what = format!("blocks of {width} weights with a scale each");
        let serves = |packing| matches!(packing, Packing::Blocks(own) if own.width() == width);
        let find = (BlockKernel::find, Library::find_blocks);
        if let Some(pair) = self.pair(role, parts, (&what, serves), find) {
            return Ok(pair);
        }
        let default = shipped().blocks(width, self.ceiling);
        let pair = default
            .and_then(|pair| BlockKernel::find(&pair.decode).zip(BlockKernel::find(&pair.prefill)));
        pair.ok_or_else(|| Error::Runtime(format!("no kernel for {what}")))
    }

    /// Returns the kernels of the profile for a ternary role: built in, or of its library. `serves` says of
    /// a packing whether the role's matrices, `what`, can have it; kernels for others are noted.
    fn pair<K>(
        &self,
        role: Role,
        parts: &[Shape],
        (what, serves): (&str, impl Fn(Packing) -> bool),
        (built_in, made): (
            impl Fn(&KernelId) -> Option<K>,
            impl Fn(&Library, &KernelId) -> Option<K>,
        ),
    ) -> Option<(K, K)> {
        let choice = self.choice(role, parts)?;
        let (prefill, part) = choice.prefill.as_ref().zip(parts.first())?;
        if !choice.layout.is_some_and(serves) {
            let kernel = choice.decode.kernel;
            self.note(format!("{role}: {kernel} is not for {what}, using the default"));
            return None;
        }
        self.verify(choice, part.cols);
        let decode = self.present(role, ids(&choice.decode), &built_in, &made);
        decode.zip(self.present(role, ids(prefill), &built_in, &made))
    }

    /// Returns the profile's choice for a role and these shapes. A missing one is noted, where a
    /// profile may be expected to have it.
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

    /// Runs the self-check of the library's kernels that serve a choice, on these columns; if one
    /// fails, the library is no longer used.
    fn verify(&self, choice: &Choice, cols: usize) {
        let picks = [Some(&choice.decode), choice.prefill.as_ref()];
        let ids = picks.into_iter().flatten().map(|pick| pick.kernel);
        let ids: Vec<KernelId> = ids.chain(choice.sparse.iter().map(|s| s.kernel)).collect();
        let checked = self.library.borrow().as_ref().map_or(Ok(()), |l| l.verify(&ids, cols));
        if let Err(reason) = checked {
            self.library.replace(None);
            self.give_up(&reason);
        }
    }

    /// Returns the kernel that skips what meets a zero in the last of a role's matrices, and the
    /// share of its lines above which skipping takes as long as reading all. Only `gate_up` and
    /// `down` have one.
    pub fn lines(&self, role: Role, parts: &[Shape]) -> Option<(GatherKernel, f64)> {
        let along = match role {
            Role::GateUp => Along::Rows,
            Role::Down => Along::Columns,
            _ => return None,
        };
        let choice = self.profile.as_ref().and_then(|profile| profile.choice(role, parts));
        if let Some(sparse) = choice.and_then(|choice| choice.sparse.as_ref()) {
            let ids = (&sparse.kernel, &sparse.built_in);
            let kernel = self.present(role, ids, GatherKernel::find, Library::find_gather);
            if let Some(kernel) = kernel {
                return Some((kernel, sparse.below));
            }
        }
        let listed = shipped().lines(role, parts, self.format, self.ceiling);
        let listed = listed.and_then(|s| Some((GatherKernel::find(&s.kernel)?, s.below)));
        if listed.is_some() {
            return listed;
        }
        let kernel = GatherKernel::default(along, self.format, self.ceiling)?;
        Some((kernel, kernel.break_even()))
    }

    /// Returns the first kernel if it is present, or else the second, its fallback.
    fn present<K>(
        &self,
        role: Role,
        (kernel, fallback): (&KernelId, &KernelId),
        built_in: impl Fn(&KernelId) -> Option<K>,
        made: impl Fn(&Library, &KernelId) -> Option<K>,
    ) -> Option<K> {
        let own = || {
            let library = self.library.borrow();
            built_in(kernel).or_else(|| made(library.as_ref()?, kernel))
        };
        if !self.foreign
            && let Some(kernel) = own()
        {
            return Some(kernel);
        }
        let found = built_in(fallback);
        if found.is_none() {
            self.note(format!(
                "{role}: neither {kernel} nor {fallback} is present here, using the default"
            ));
        } else if !self.told.get() {
            self.note(format!("{role}: {kernel} is not present here, using {fallback}"));
        }
        found
    }

    /// Returns the kernel for a head of that format.
    ///
    /// # Errors
    /// As [`Selection::ternary`].
    pub fn head(&self, format: HeadFormat, shape: Shape) -> Result<HeadKernel> {
        let pick = self.choice(Role::LmHead, &[shape]).and_then(|choice| {
            let pick = &choice.decode;
            if pick.kernel.op != Op::Head(format) || pick.built_in.op != Op::Head(format) {
                let kernel = pick.kernel;
                self.note(format!("lm_head: {kernel} is not for {format}, using the default"));
                return None;
            }
            self.verify(choice, shape.cols);
            self.present(choice.role, ids(pick), HeadKernel::find, Library::find_head)
        });
        pick.or_else(|| HeadKernel::find(&shipped().head(format, shape, self.ceiling)?))
            .or_else(|| HeadKernel::default(format, self.ceiling))
            .ok_or_else(|| Error::Runtime(format!("no kernel for a head in {format}")))
    }

    /// Returns the kernels for a head of that format, by the number of tokens that they take at
    /// once: for one token that of [`Selection::head`], for more the defaults.
    ///
    /// # Errors
    /// As [`Selection::ternary`].
    pub fn heads(&self, format: HeadFormat, shape: Shape) -> Result<Vec<HeadKernel>> {
        let mut kernels = vec![self.head(format, shape)?];
        kernels.extend(HeadKernel::for_batches(format, self.ceiling));
        Ok(kernels)
    }

    /// Returns the kernel for attention.
    ///
    /// # Errors
    /// As [`Selection::ternary`].
    pub fn attention(&self, parts: &[Shape]) -> Result<AttentionKernel> {
        let pick = self.choice(Role::Attention, parts).and_then(|choice| {
            self.verify(choice, parts.first()?.cols);
            let (built_in, made) = (AttentionKernel::find, Library::find_attention);
            self.present(choice.role, ids(&choice.decode), built_in, made)
        });
        pick.or_else(|| AttentionKernel::find(&shipped().attention(parts, self.ceiling)?))
            .or_else(|| AttentionKernel::default(self.ceiling))
            .ok_or_else(|| Error::Runtime("no kernel for attention".into()))
    }

    /// Returns the float operations.
    pub fn vector(&self) -> VectorOps {
        VectorOps::best(self.ceiling)
    }

    /// Notes that the library is not used, so that its missing kernels are not noted too.
    fn give_up(&self, reason: &Unusable) {
        self.tell(format!(
            "kernels made for this profile are not used: {reason}; built-in ones instead"
        ));
    }

    fn tell(&self, note: String) {
        self.told.set(true);
        self.note(note);
    }

    fn note(&self, note: String) {
        let mut notes = self.notes.borrow_mut();
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
}

/// Returns a pick's kernel and its fallback.
fn ids(pick: &Pick) -> (&KernelId, &KernelId) {
    (&pick.kernel, &pick.built_in)
}

/// Loads the library of that content from the user's cache.
#[cfg(unix)]
fn open(sha256: &str, ceiling: Isa) -> std::result::Result<Library, Unusable> {
    let cache = super::cache::Cache::of_user(|name| std::env::var_os(name))?;
    Library::load(&cache.open(sha256)?, ceiling)
}

/// Refuses: the trust in a library rests on checks that only Unix has.
#[cfg(not(unix))]
fn open(_: &str, _: Isa) -> std::result::Result<Library, Unusable> {
    Err(Unusable::System { reason: "this system is not supported" })
}
