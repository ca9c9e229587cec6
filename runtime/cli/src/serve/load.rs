//! The model of a server: opened, with a session that has a sequence for each slot.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bitnet_runtime::arch::config::Config;
use bitnet_runtime::cpu::kv_cache::{KvCache, KvType};
use bitnet_runtime::cpu::memory;
use bitnet_runtime::cpu::session::{Session, SessionOptions};
use bitnet_runtime::engine::sampler::Sampler;
use bitnet_runtime::engine::{Engine, Options, Start, Suggested};
use bitnet_runtime::error::{Error, Result};
use bitnet_runtime::file::gguf::{Gguf, TensorInfo};
use bitnet_runtime::numerics::CHUNK;
use bitnet_runtime::{Chat, Needs};
use tokio::sync::Semaphore;

use super::Args;
use super::app::{Loaded, ModelInfo, now};
use super::chat_answer::ReasoningFormat;
use super::grammar;
use super::tools::{self, Family};
use crate::load as open;
use crate::output::{human, note};

/// Share of the memory that is available which the contexts of all slots may take.
const MEMORY_SHARE: f64 = 0.9;
/// Positions of a slot's context where none are asked for, at most.
const DEFAULT_CONTEXT: usize = 4096;

/// Opens the model.
///
/// # Errors
/// Those of opening; [`Error::Runtime`] when the contexts do not fit into memory.
pub fn load(args: &Args) -> Result<(Session, Loaded)> {
    let start = Instant::now();
    let (path, options) = args.open.options(args.model.as_deref())?;
    let gguf = options.file(&path)?;
    let suggested = args.sampling.unsaid(Suggested::from_gguf(&gguf)?);
    let sampling = args.words.sampling(args.sampling.over(&suggested));
    let needs = match args.embeddings {
        true => Needs::Hidden,
        false => Sampler::new(sampling.clone())?.needs(&[]),
    };
    let progress = Some(open::progress(Arc::default()));
    let options = Options { needs, start: Start::Packed, progress, ..options };
    let engine = Engine::from_gguf(gguf, options)?;
    open::explain_bus_errors(&engine, open::LEAVE);
    let tokenizer = Arc::clone(engine.tokenizer()?);
    let context = context(args, engine.config());
    let session = args.session.options(Some(context))?;
    let session = SessionOptions { sequences: args.parallel, ..session };
    check_memory(engine.config(), context, &session)?;
    let session = engine.session(session)?;
    open::tell(&engine);
    note(format_args!(
        "loaded: {} in {:.2} s, {} threads, {} slots of {} positions",
        path.display(),
        start.elapsed().as_secs_f64(),
        engine.pool().threads(),
        session.sequences(),
        session.context()
    ));
    if let Some(line) = suggested.line() {
        note(format_args!("{line}"));
    }
    let chat = Chat::new(engine.gguf(), Arc::clone(&tokenizer), &args.template.choice()?);
    // A model that only continues texts serves as well, unless a template was asked for.
    let chat = match chat {
        Ok(chat) => Ok(chat),
        Err(error @ Error::Model { .. }) => Err(error.to_string()),
        Err(error) => return Err(error),
    };
    for line in chat.iter().flat_map(Chat::notes) {
        note(format_args!("{line}"));
    }
    let reasoning = args.reasoning_format.flatten().unwrap_or_else(|| match &chat {
        Ok(chat) if chat.has_reasoning_switch() => ReasoningFormat::Deepseek,
        _ => ReasoningFormat::None,
    });
    let loaded = Loaded {
        tools: chat.as_ref().ok().and_then(|chat| Family::of(chat.template())),
        takes_objects: chat.as_ref().is_ok_and(tools::takes_objects),
        grammars: OnceLock::new(),
        compiling: Arc::new(Semaphore::new(grammar::AT_ONCE)),
        chat,
        variables: args.template.variables()?,
        system: args.system()?,
        reasoning,
        tokenizer,
        context: session.context(),
        slots: session.sequences(),
        sampling,
        stop: args.words.stop(args.escapes)?,
        draft: args.draft.most(),
        seed: args.sampling.given_seed(),
        predict: usize::try_from(args.predict).ok(),
        pooling: args.embedding.pooling(&engine)?,
        normalisation: args.embedding.embd_normalize,
        no_texts: match engine.config().mask.causal {
            true => args.embeddings.then_some("the server was started with --embeddings"),
            false => Some("the model's tokens see those behind them"),
        },
        model: model_info(args, &path, &engine),
    };
    Ok((session, loaded))
}

/// Positions of the context of a slot.
fn context(args: &Args, config: &Config) -> usize {
    let asked = match args.context {
        None => return config.context.min(DEFAULT_CONTEXT),
        Some(0) => config.context,
        Some(all) => all as usize,
    };
    let each = (asked / args.parallel).max(1);
    if each > config.context {
        note(format_args!(
            "context: {} for each slot, the most this model was made for, not {each}",
            config.context
        ));
    }
    each.min(config.context)
}

/// Checks that the contexts of all slots fit into memory, so that no request can exhaust it.
fn check_memory(config: &Config, context: usize, options: &SessionOptions) -> Result<()> {
    let Some(free) = memory::available() else { return Ok(()) };
    let free = (free as f64 * MEMORY_SHARE) as u64;
    let ty = options.kv_type.unwrap_or_else(|| KvType::default_for(config));
    // Memory is taken by chunks of positions.
    let chunk = KvCache::new(config, CHUNK, ty)?.bytes(CHUNK) as u64;
    let slots = options.sequences as u64;
    let chunks = context.div_ceil(CHUNK) as u64;
    let needed = chunk * chunks * slots;
    if needed <= free {
        return Ok(());
    }
    let fitting_slots = free / (chunk * chunks);
    let fitting_context = free / (chunk * slots) * CHUNK as u64 * slots;
    Err(Error::Runtime(format!(
        "the contexts of {slots} slots of {context} positions take {}, but only {} of memory are \
         left for them; -np {fitting_slots} with as much for each, or -c {fitting_context} in all, \
         fits",
        human(needed),
        human(free)
    )))
}

fn model_info(args: &Args, path: &Path, engine: &Engine) -> ModelInfo {
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into());
    let names = args.alias.as_deref().unwrap_or_default().split(',').map(str::trim);
    let mut aliases: Vec<String> =
        names.filter(|name| !name.is_empty()).map(str::to_owned).collect();
    if aliases.is_empty() {
        aliases.push(name);
    }
    let (gguf, config) = (engine.gguf(), engine.config());
    ModelInfo {
        alias: aliases[0].clone(),
        aliases,
        path: path.display().to_string(),
        created: now(),
        is_sentence_piece: gguf.get_str("tokenizer.ggml.model").is_ok_and(|m| m == Some("llama")),
        vocabulary: config.vocab,
        trained_context: config.context,
        width: config.hidden,
        parameters: gguf.tensors().iter().map(TensorInfo::elements).sum(),
        bytes: gguf.file_bytes(),
        fingerprint: fingerprint(gguf),
    }
}

/// Name of program and model.
fn fingerprint(gguf: &Gguf) -> String {
    let hash = gguf.fingerprint();
    let hex: String = hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("b{}-{hex}", env!("CARGO_PKG_VERSION"))
}
