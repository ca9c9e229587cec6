//! A model as `bitnet-run` runs it: opened, its kernels chosen, its weights packed.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bitnet_profiles::{Isa, Pinning};

use super::options::{Options, PackedWeights, Start};
use super::packed::PackedStore;
use super::profile::{self, ProfileInUse};
use super::sequence::Sequence;
use crate::arch::config::Config;
use crate::arch::policy;
use crate::cancel::Cancel;
use crate::cpu::float::Activations;
use crate::cpu::head::choose::{HeadMode, HeadOptions};
use crate::cpu::head::screen::Needs;
use crate::cpu::host::Host;
use crate::cpu::kernels::Selection;
use crate::cpu::kv_cache::KvType;
use crate::cpu::mapped;
use crate::cpu::memory::{self, Pages};
use crate::cpu::model::{LoadOptions, Model};
use crate::cpu::session::{Session, SessionOptions};
use crate::cpu::threads::{MAX_THREADS, Pool, PoolOptions};
use crate::error::{Error, Result, quoted};
use crate::file::gguf::{Gguf, Likeness};
use crate::file::packed::PackedFile;
use crate::note::Note;
use crate::text::chat::{Chat, TemplateChoice};
#[cfg(feature = "grammar")]
use crate::text::grammar::Grammars;
use crate::text::tokenizer::Tokenizer;

/// Longest prompt, in tokens, that starts on the weights in the file: 46 tokens of a 2B-4T shape
/// with an f16 head take 0.3 s there and 0.15 s packed, but packing takes 0.8 to 3 s.
const FEW_TOKENS: usize = 64;
/// Steps on the weights in the file after which packing them pays if as many are still to come: a
/// step of a 2B-4T shape takes 46 ms there and 37 ms packed, and packing takes 1 s (two cores of
/// Zen 3). Until then it would cost a text that ends soon more than it gains; later it has cost at
/// most about what the text could have saved.
const PAYS_AFTER: usize = 128;
/// Bytes of ternary weights in the file for which starting there pays: fewer are packed in no time,
/// and more take so long that a line of progress is needed, which cannot be shown amid the text.
const MAPPED_BYTES: RangeInclusive<u64> = 16 << 20..=1 << 30;

/// Bytes of a tokenizer's tables, while they are built, for a byte of the file's header, at most: 10 of a
/// vocabulary of 128,000 tokens with merges.
const TABLES: u64 = 12;
/// The file's size, taken so many times, is more than packing needs: packed weights, their sparse form,
/// two copies of the head, buffers.
const PACKED_TIMES: u64 = 4;

/// A model ready to run, shared by any number of [`Session`]s and threads.
pub struct Engine {
    gguf: Arc<Gguf>,
    config: Config,
    tokenizer: OnceLock<Arc<Tokenizer>>,
    #[cfg(feature = "grammar")]
    grammars: OnceLock<Grammars>,
    host: Host,
    options: Options,
    profile: ProfileInUse,
    placement: Placement,
    pool: Arc<Pool>,
    state: Mutex<State>,
}

/// Placement of threads and weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Binding of workers to CPUs.
    pub pinning: Pinning,
    /// Kind of pages of the weights.
    pub pages: Pages,
}

/// State that changes while the engine runs.
struct State {
    selection: Selection,
    /// The model on the weights in the file, until they are packed.
    mapped: Option<Arc<Model>>,
    packed: Option<Arc<Model>>,
    pack_time: Option<Duration>,
    /// File of packed weights in use.
    packed_file: Option<PathBuf>,
    /// Steps that were run on the weights in the file.
    mapped_steps: usize,
    notes: Vec<Note>,
    /// Number of notes already handed out.
    told: usize,
    /// True if a note says that fewer workers took part.
    told_of_spared: bool,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = self.gguf.path();
        f.debug_struct("Engine").field("path", &path).finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens a GGUF file.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) when a file cannot be read, [`Error::Model`](crate::Error::Model) when it is no model that this library
    /// runs, [`Error::Profile`](crate::Error::Profile) for a named profile that is refused, [`Error::Cpu`](crate::Error::Cpu) when the CPU lacks the
    /// ISA asked for, [`Error::Usage`](crate::Error::Usage) for options out of range, [`Error::Runtime`](crate::Error::Runtime)
    /// when there is not enough memory.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Self> {
        Selection::new(options.isa, options.format, None)?;
        memory::require(0, "the tables of a model")?;
        Self::from_gguf(options.file(path)?, options)
    }

    /// Opens a model from a GGUF file that is already open.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn from_gguf(mut gguf: Gguf, options: Options) -> Result<Self> {
        options.apply(&mut gguf)?;
        let config = Config::from_gguf(&gguf)?;
        let tokenizer = OnceLock::new();
        let mut notes: Vec<Note> = gguf.override_notes().map(Note::info).collect();
        notes.extend(unknown_keys(&gguf, &config));
        if options.tokenizer {
            memory::require(TABLES * gguf.data_start(), "the tables of the tokenizer")?;
            let read = Tokenizer::from_gguf(&gguf)?;
            notes.extend(read.notes().iter().cloned());
            drop(tokenizer.set(Arc::new(read)));
        }
        let host = Host::detect();
        let forced = (options.isa, options.format);
        let profile = profile::choose(&options.profile, forced, &config, &host, &mut notes)?;
        let run = profile.profile.as_ref().map(|profile| &profile.run);
        let pinning = options.pinning.or(run.map(|run| run.pinning)).unwrap_or(Pinning::None);
        let huge = options.huge_pages.or(run.map(|run| run.huge_pages)).unwrap_or(true);
        let pages = if huge { Pages::Huge } else { Pages::Small };
        let threads = thread_count(options.threads, &profile, &host, &mut notes);
        let spare = !options.fixed_threads;
        let pool = Arc::new(Pool::with(PoolOptions { threads, pinning, spare })?);
        notes.push(Note::info(format!("profile: {} ({})", profile.name, profile.reason)));
        if options.activations != Activations::Auto {
            let name = options.activations.name();
            notes.push(Note::info(format!(
                "note: activations are rounded otherwise ({name}), which changes numbers, and so may \
                 change the text"
            )));
        }
        let selection = Selection::new(options.isa, options.format, profile.profile.clone())?;
        let engine = Self {
            gguf: Arc::new(gguf),
            config,
            tokenizer,
            #[cfg(feature = "grammar")]
            grammars: OnceLock::new(),
            host,
            options,
            profile,
            placement: Placement { pinning, pages },
            pool,
            state: Mutex::new(State {
                selection,
                mapped: None,
                packed: None,
                pack_time: None,
                packed_file: None,
                mapped_steps: 0,
                notes,
                told: 0,
                told_of_spared: false,
            }),
        };
        engine.take_packed()?;
        if engine.packed_file().is_none() && !engine.may_start_mapped() {
            engine.model()?;
        }
        Ok(engine)
    }

    /// Takes the weights out of a file where they were packed before, if there is one that fits; notes
    /// why one does not.
    fn take_packed(&self) -> Result<()> {
        if !self.gguf.is_mapped() || self.options.mlock || !self.packs_as_ever() {
            return Ok(());
        }
        let pages = self.placement.pages;
        let file = match &self.options.packed {
            PackedWeights::Never => return Ok(()),
            PackedWeights::File(path) => match PackedFile::open(path, pages) {
                Err(error @ Error::Io { .. }) => return Err(error),
                file => file.map(Some),
            },
            PackedWeights::Auto => match PackedStore::of_user(|name| std::env::var_os(name)) {
                Ok(store) => store.open(&self.gguf, pages),
                Err(_) => Ok(None),
            },
        };
        let mut state = self.state();
        let model = file.and_then(|file| {
            let Some(file) = file else { return Ok(None) };
            let model = self.packed_model(&mut state, &file)?;
            Ok(Some((model, file)))
        });
        match model {
            Ok(Some((model, file))) => {
                state.note(Note::info(format!("packed weights: {}", file.path().display())));
                state.packed = Some(self.loaded(&mut state, model));
                state.packed_file = Some(file.path().to_path_buf());
            }
            Ok(None) => {}
            Err(error) => {
                state.note(Note::warning(format!("packed weights are not used: {error}")))
            }
        }
        Ok(())
    }

    /// True if weights are packed as they are without [`Options::activations`].
    fn packs_as_ever(&self) -> bool {
        matches!(self.options.activations, Activations::Auto | Activations::Token)
    }

    /// Makes the model of packed weights in a file, which must have been packed from this model.
    fn packed_model(&self, state: &mut State, file: &PackedFile) -> Result<Model> {
        let path = file.path().display();
        match self.gguf.likeness(&file.table().source)? {
            Likeness::Same => {}
            Likeness::Touched => state.note(Note::info(format!(
                "{path}: the model was read whole, since it was copied or touched since it was packed; \
                 `bitnet-run pack` again spares that"
            ))),
            Likeness::Other(what) => {
                let found = format!("packed from {}", file.table().model.display());
                let expected = format!(
                    "packed from this model, which has {what}; make it anew with `bitnet-run pack -m MODEL`"
                );
                return Err(Error::model(file.path(), "source", found, expected));
            }
        }
        self.load(state, true, (Some(file), None))?.packed_head(
            file,
            &self.pool,
            &self.head_options(),
        )
    }

    /// Keeps the packed weights in a file, for later runs: the one that [`PackedWeights::Auto`] finds, or
    /// `path`. Returns its path and length. The engine must not have taken them out of a file itself.
    ///
    /// # Errors
    /// Those of [`Engine::model`]; [`Error::Io`] when the file cannot be written, [`Error::Usage`] where
    /// [`Options::activations`] has them packed in another way.
    pub fn keep_packed(&self, path: Option<&Path>) -> Result<(PathBuf, u64)> {
        if !self.packs_as_ever() {
            let found = self.options.activations.name();
            return Err(Error::usage("activations", found, "auto, where weights are to be kept"));
        }
        let model = self.model()?;
        let own = self.gguf.path();
        let own = own.canonicalize().map_err(|error| Error::io(own, "open", error))?;
        let write = |path: &Path| model.packed().write(path, &own, self.gguf.source()?);
        if let Some(path) = path {
            return Ok((path.to_path_buf(), write(path)?));
        }
        let store = PackedStore::of_user(|name| std::env::var_os(name))?;
        store.create()?;
        let path = store.path_of(&self.gguf);
        let bytes = write(&path)?;
        store.bound(&path);
        Ok((path, bytes))
    }

    /// Returns the path of the file of packed weights in use.
    #[must_use]
    pub fn packed_file(&self) -> Option<PathBuf> {
        self.state().packed_file.clone()
    }

    /// True if weights may at first be multiplied as they lie in the file. Not if a format was
    /// asked for, nor where memory is scarce, which is to be told before anything is written.
    fn may_start_mapped(&self) -> bool {
        let matrices = self.config.all_matrices();
        let bytes = matrices.filter_map(|(name, _)| Some(self.gguf.tensor(&name)?.bytes)).sum();
        self.options.start == Start::Auto
            && self.packs_as_ever()
            && self.options.format.is_none()
            && mapped::serves(&self.gguf, &self.config)
            && MAPPED_BYTES.contains(&bytes)
            && memory::available().is_none_or(|free| free >= 2 * self.gguf.file_bytes())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the model with packed weights, packing them now if they are not yet.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) for weights that this library does not run,
    /// [`Error::Runtime`](crate::Error::Runtime) when there is not
    /// enough memory, [`Error::Interrupted`](crate::Error::Interrupted) where [`Options::cancel`] asks for it.
    pub fn model(&self) -> Result<Arc<Model>> {
        self.model_unless(self.options.cancel.as_ref())
    }

    /// As [`Engine::model`], unless `cancel` asks for the end before weights are packed.
    fn model_unless(&self, cancel: Option<&Cancel>) -> Result<Arc<Model>> {
        let mut state = self.state();
        if let Some(model) = &state.packed {
            return Ok(Arc::clone(model));
        }
        let start = Instant::now();
        let head = self.head_options();
        let model = self.load(&state, true, (None, cancel))?;
        let model = match self.options.needs {
            // Who asks for logits all the same has them out of the file.
            Needs::Hidden => model,
            _ if !self.config.mask.causal => model,
            _ => model.choose_head(&self.pool, &head)?,
        };
        let model = self.loaded(&mut state, model);
        state.mapped = None;
        state.packed = Some(Arc::clone(&model));
        state.pack_time = Some(start.elapsed());
        Ok(model)
    }

    /// Returns the model on the weights in the file.
    fn mapped(&self) -> Result<Arc<Model>> {
        let mut state = self.state();
        if let Some(model) = &state.mapped {
            return Ok(Arc::clone(model));
        }
        let model = self.load(&state, false, (None, None))?;
        let model = self.loaded(&mut state, model);
        state.mapped = Some(Arc::clone(&model));
        Ok(model)
    }

    fn head_options(&self) -> HeadOptions {
        let (mode, count) = match &self.options.needs {
            Needs::All | Needs::Hidden => (HeadMode::Full, 0),
            Needs::Best { count, .. } => (self.options.lm_head, *count),
        };
        HeadOptions {
            mode,
            count,
            ceiling: self.ceiling(),
            pages: self.placement.pages,
            lock: self.options.mlock,
        }
    }

    fn load(
        &self,
        state: &State,
        pack: bool,
        (packed, cancel): (Option<&PackedFile>, Option<&Cancel>),
    ) -> Result<Model> {
        let silent = |_: usize, _: usize| ();
        let progress: &dyn Fn(usize, usize) = match &self.options.progress {
            Some(progress) if pack => &**progress,
            _ => &silent,
        };
        Model::from_gguf(
            Arc::clone(&self.gguf),
            &LoadOptions {
                pool: &self.pool,
                selection: &state.selection,
                pages: self.placement.pages,
                lock: self.options.mlock && pack,
                copy_head: false,
                pack,
                packed,
                sparse: self.options.sparse,
                activations: self.options.activations,
                progress,
                cancel,
            },
        )
    }

    /// Notes the warnings of loading a model, once.
    fn loaded(&self, state: &mut State, model: Model) -> Arc<Model> {
        let warnings = model.warnings().iter().cloned().chain(self.pool.warning());
        let notes = state.selection.take_notes().into_iter().map(Note::info);
        for note in notes.chain(warnings.map(Note::warning)) {
            state.note(note);
        }
        Arc::new(model)
    }

    /// Starts a session with empty KV caches on the packed model.
    ///
    /// # Errors
    /// Those of [`Engine::model`] and [`Session::new`].
    pub fn session(&self, options: SessionOptions) -> Result<Session> {
        self.start(self.model()?, options)
    }

    /// Checks that the model writes texts: one whose tokens see those behind them gives embeddings alone.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) naming the key that says so.
    pub fn check_writes(&self) -> Result<()> {
        if self.config.mask.causal {
            return Ok(());
        }
        let key = format!("{}.attention.causal", self.config.architecture.name);
        let expected = "true, to write texts; this model gives embeddings alone";
        Err(self.gguf.key_error(&key, false, expected))
    }

    /// Starts a session for a prompt of so many tokens: a short one on the weights in the file, if
    /// these are not packed yet. [`Engine::step`] then packs them once that pays.
    ///
    /// # Errors
    /// As [`Engine::session`]; those of [`Engine::check_writes`].
    pub fn session_for(&self, prompt: usize, options: SessionOptions) -> Result<Session> {
        self.check_writes()?;
        let waits = self.is_packed_for(prompt);
        if !waits {
            let session = self.start(self.mapped()?, options)?;
            // Under a limit, what does not fit is to be told before anything is written.
            let packing = PACKED_TIMES.saturating_mul(self.gguf.file_bytes());
            if memory::require(packing, "the weights").is_ok() {
                return Ok(session);
            }
        }
        self.start(self.model()?, options)
    }

    /// True if a prompt of so many tokens is to run on packed weights.
    fn is_packed_for(&self, prompt: usize) -> bool {
        prompt > FEW_TOKENS || self.state().packed.is_some()
    }

    /// Makes a session that began on the weights in the file go on with packed ones, if so many tokens of
    /// a prompt are to come.
    ///
    /// # Errors
    /// Those of [`Engine::model`] and [`Session::continue_with`]; [`Error::Interrupted`] where
    /// [`Session::cancel_with`] asks for it.
    pub(super) fn prepare(&self, session: &mut Session, prompt: usize) -> Result<()> {
        if !session.model().is_packed() && self.is_packed_for(prompt) {
            session.continue_with(self.model_unless(session.cancel())?)?;
        }
        Ok(())
    }

    fn start(&self, model: Arc<Model>, options: SessionOptions) -> Result<Session> {
        let free = memory::available();
        let session = Session::new(model, Arc::clone(&self.pool), options)?;
        let mut state = self.state();
        if options.kv_type == Some(KvType::Q8_0) {
            state.note(Note::info(
                "note: the KV cache is q8_0, which changes numbers, and so may change the text",
            ));
        }
        let full = session.kv_reserved_bytes() as u64;
        if let Some(free) = free.filter(|&free| free < full) {
            state.note(Note::warning(format!(
                "the KV cache of all {} positions takes {} MB, but only {} MB of memory are available; \
                 ask for a smaller context",
                session.context(),
                full / 1_000_000,
                free / 1_000_000
            )));
        }
        Ok(session)
    }

    /// Runs [`Sequence::step`]. Where the session began on the weights in the file, they are packed
    /// after 128 steps if the text may become twice as long; [`Session::cancel_with`] ends that, too.
    ///
    /// # Errors
    /// Those of [`Sequence::step`] and [`Engine::model`].
    pub fn step(&self, session: &mut Session, sequence: &mut Sequence) -> Result<bool> {
        let goes_on = sequence.finish_reason().is_none() && session.position() < session.context();
        if goes_on && !session.model().is_packed() {
            let room = session.context() - session.position();
            let remaining = sequence.remaining().map_or(room, |most| most.min(room));
            let steps = {
                let mut state = self.state();
                state.mapped_steps += 1;
                state.mapped_steps
            };
            if steps > PAYS_AFTER && remaining >= PAYS_AFTER {
                match self.model_unless(session.cancel()) {
                    Err(Error::Interrupted) => sequence.interrupt(),
                    model => session.continue_with(model?)?,
                }
            }
        }
        sequence.step(session)
    }

    /// Returns the notes that were not handed out yet, in the order in which they arose.
    pub fn take_notes(&self) -> Vec<Note> {
        let mut state = self.state();
        let (threads, fewest) = (self.pool.threads(), self.pool.fewest());
        if fewest < threads && !state.told_of_spared {
            state.told_of_spared = true;
            state.note(Note::info(format!(
                "threads: down to {fewest} of {threads} at times, which was faster beside other programs"
            )));
        }
        let new = state.notes[state.told..].to_vec();
        state.told = state.notes.len();
        new
    }

    /// Returns the time packing took; none while the weights are in the file.
    #[must_use]
    pub fn pack_time(&self) -> Option<Duration> {
        self.state().pack_time
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) when the file has none that this library runs, which
    /// [`Engine::open`] found out before unless [`Options::tokenizer`] is off.
    pub fn tokenizer(&self) -> Result<&Arc<Tokenizer>> {
        if let Some(tokenizer) = self.tokenizer.get() {
            return Ok(tokenizer);
        }
        let tokenizer = Arc::new(Tokenizer::from_gguf(&self.gguf)?);
        Ok(self.tokenizer.get_or_init(|| tokenizer))
    }

    /// The compiler of grammars for the model's vocabulary, which is made on first use.
    ///
    /// # Errors
    /// Those of [`Engine::tokenizer`] and [`Grammars::new`].
    #[cfg(feature = "grammar")]
    pub fn grammars(&self) -> Result<&Grammars> {
        if let Some(grammars) = self.grammars.get() {
            return Ok(grammars);
        }
        let grammars = Grammars::new(Arc::clone(self.tokenizer()?))?;
        Ok(self.grammars.get_or_init(|| grammars))
    }

    /// Takes a chat template of the model.
    ///
    /// # Errors
    /// Those of [`Engine::tokenizer`] and [`Chat::new`].
    pub fn chat(&self, choice: &TemplateChoice) -> Result<Chat> {
        Chat::new(&self.gguf, Arc::clone(self.tokenizer()?), choice)
    }

    /// The hyperparameters.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The file.
    #[must_use]
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// The profile that chose the kernels.
    #[must_use]
    pub fn profile(&self) -> &ProfileInUse {
        &self.profile
    }

    /// The placement of threads and weights.
    #[must_use]
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// The worker threads.
    #[must_use]
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// The host machine.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The best ISA that may be used.
    #[must_use]
    pub fn ceiling(&self) -> Isa {
        self.options.isa.unwrap_or_else(Isa::best)
    }
}

impl State {
    /// Adds a note unless it was made before.
    fn note(&mut self, note: Note) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}

/// Notes the keys of a file that are not known, in one line.
fn unknown_keys(gguf: &Gguf, config: &Config) -> Option<Note> {
    /// Keys that are named.
    const SHOWN: usize = 8;
    let keys = policy::unknown_keys(gguf, config);
    let shown: Vec<String> = keys.iter().take(SHOWN).map(|key| quoted(key)).collect();
    let more = match keys.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let line = || {
        let (path, keys) = (gguf.path().display(), shown.join(", "));
        format!("{path}: keys that are not known here, and not used: {keys}{more}")
    };
    (!keys.is_empty()).then(|| Note::info(line()))
}

/// Returns the number of threads: the number asked for; or the profile's, limited to what this
/// process may use, which is noted; or one for each physical core.
fn thread_count(
    asked: Option<usize>,
    profile: &ProfileInUse,
    host: &Host,
    notes: &mut Vec<Note>,
) -> usize {
    match (asked, profile.threads()) {
        (Some(threads), _) => threads,
        (None, Some(threads)) if threads > host.threads => {
            notes.push(Note::info(format!(
                "threads: {}, all the CPUs that this process may use, not the profile's {threads}",
                host.threads
            )));
            host.threads
        }
        (None, Some(threads)) => threads,
        (None, None) => host.physical_cores.min(MAX_THREADS),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_engine_serves_threads() {
        fn is_shared<T: Send + Sync>() {}
        is_shared::<super::Engine>();
    }
}
