//! Runs ternary language models (BitNet b1.58: weights -1, 0, +1; int8 activations) on CPUs.
//!
//! An [`Engine`] is a model ready to run: [`Engine::open`] reads a GGUF file, takes the tuning profile
//! made for this CPU or the one that ships for it, and packs the weights for the kernels that it names.
//! [`Engine::generate`] is one call from a prompt to its text; a [`Chat`], from [`Engine::chat`], makes
//! prompts of conversations, and [`Turns`] computes of each turn only what is new. Below it, a [`Session`] holds KV caches
//! and takes tokens through the model, and a [`Sequence`] is one text, which says which tokens it wants
//! next and takes logits: a program that serves many texts loops over many sequences. A text depends on
//! the model, the prompt and the [`Sampling`] only, not on the CPU, the threads or the texts beside it.
//!
//! What a text may be, and what ends it, are options of each sequence ([`SequenceOptions`]): stop strings,
//! tokens that are never chosen, a JSON schema or a grammar (`Engine::grammars`, with the feature `grammar`).
//! It can be cancelled ([`GenerateOptions::cancel`]), its log probabilities kept ([`TokenLogprobs`]), and
//! [`Session::save`] keeps in a file what the model computed of it. [`Session::embed`] makes embeddings of
//! texts in place of continuing them.
//!
//! ```
//! use bitnet_runtime::{Engine, GenerateOptions, Options, Sampling, SequenceOptions};
//!
//! # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/bard-11m.i2_s.gguf");
//! let engine = Engine::open(path, Options::default())?;
//! let options = GenerateOptions {
//!     sampling: Sampling { temperature: 0.0, ..Sampling::default() },
//!     sequence: SequenceOptions { tokens: Some(16), ..SequenceOptions::default() },
//!     ..GenerateOptions::default()
//! };
//! let written = engine.generate("ROMEO:", &options, |piece| print!("{piece}"))?;
//! assert_eq!(written.ids.len(), 16);
//! # Ok::<(), bitnet_runtime::Error>(())
//! ```
//!
//! # What runs
//!
//! | | |
//! |---|---|
//! | files | GGUF |
//! | architectures | `bitnet-b1.58`, `bitnet-25`, `bitnet`, `llama`, `qwen3`, `qwen2`, `gemma3`, `gemma-embedding` |
//! | ternary weights | I2_S, TL1, TL2, TQ1_0, TQ2_0, Q2_0, PQ2_0, PTQ1_0, IQ1_BN, IQ2_BN, IQ2_BN_R4; F32, F16, BF16 of one magnitude |
//! | embedding and head | F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q3_K, Q4_K, Q5_K, Q6_K, I2_S, TQ2_0, TQ1_0, Q2_0, PQ2_0, PTQ1_0 |
//! | KV cache | f16, f32, q8_0 |
//! | sampling | biases; repeat, presence and frequency penalties; top-k, top-p, min-p, temperature |
//! | grammars | JSON schema, llama.cpp's GBNF, llguidance's Lark |
//! | x86-64 | scalar, AVX2, AVX-VNNI, AVX-512, AVX-512 VNNI, AVX-512 VBMI |
//! | ARM | scalar, NEON, dot products, int8 matrix products |
//! | systems | Linux; others without huge pages, pinned threads and the cache of tuned kernels |
//!
//! Modules that are not documented here serve the tuner and the tests of this project and may change in
//! any version.

#[doc(hidden)]
pub mod arch;
mod cancel;
#[doc(hidden)]
pub mod cpu;
#[doc(hidden)]
pub mod engine;
#[doc(hidden)]
pub mod error;
#[doc(hidden)]
pub mod file;
#[doc(hidden)]
pub mod formats;
#[doc(hidden)]
pub mod measure;
mod note;
#[doc(hidden)]
pub mod numerics;
#[doc(hidden)]
pub mod random;
#[doc(hidden)]
pub mod text;

#[cfg(feature = "grammar")]
#[doc(inline)]
pub use crate::text::grammar::{Grammar, Grammars};
#[doc(inline)]
pub use crate::{
    cancel::Cancel,
    cpu::{
        float::Activations,
        head::{choose::HeadMode, screen::Needs},
        kv_cache::KvType,
        model::Model,
        session::{BatchToken, MAX_SEQUENCES, Session, SessionOptions},
        sparse::Mode as ActivationSparsity,
    },
    engine::{
        Embedding, Engine, GenerateOptions, Generation, NamedProfile, Normalisation, Note, Options,
        PackedWeights, Pooling, ProfileChoice, ProfileInUse, ProfileSource, Progress, Start,
        Suggested, Turns,
        logprobs::{TokenLogprobs, logprobs},
        sampler::Sampling,
        sequence::{FinishReason, Sequence, SequenceOptions, SequenceStats, Wants},
    },
    error::{Error, Result},
    file::gguf::Override,
    text::{
        chat::{
            Chat, Conversation, Ending, Json, Message, Part, ReasoningSplitter, TemplateChoice,
            Variables,
        },
        stop::StopStrings,
        tokenizer::{StreamDecoder, Tokenizer},
    },
};
