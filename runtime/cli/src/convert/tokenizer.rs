//! A Hugging Face tokenizer as the metadata of a GGUF file.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bitnet_runtime::arch::{self, Architecture};
use bitnet_runtime::error::{Error, Result, quoted};
use bitnet_runtime::file::gguf::{Array, StrArray, Value};
use bitnet_runtime::text::pretokenize::{self, GPT2_PATTERN};
use serde::Deserialize;
use serde_json::Value as Json;

use super::json::{self, Object};
use super::model::is_bitnet;
use super::sentencepiece;

/// Longest files.
const MAX_TOKENIZER: u64 = 64 << 20;
const MAX_CONFIG: u64 = 4 << 20;
const MAX_TEMPLATE: u64 = 256 << 10;
/// Types of tokens in `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;
/// The score of a piece that joining does not give, as converters of llama.cpp write it.
const NEVER: f32 = -1000.0;
/// The token behind a text that a Qwen model embeds.
const END_OF_QWEN: &str = "<|endoftext|>";
/// Tokens that end a turn where the text's end is another.
const ENDS_OF_TURN: [&str; 3] = ["<|eot_id|>", "<|im_end|>", "<end_of_turn>"];

/// Settings of a conversion that concern the tokenizer.
#[derive(Clone, Debug)]
pub struct Settings<'a> {
    /// The folder.
    pub folder: &'a Path,
    /// `config.json`, for ids of tokens.
    pub config: &'a Object,
    /// The architecture of the model.
    pub architecture: &'static Architecture,
    /// True for a model that gives embeddings.
    pub embeds: bool,
    /// Rows of the embedding: as many tokens are written.
    pub vocab: usize,
    /// Name of the pre-tokenizer, whatever `tokenizer.json` says.
    pub pre: Option<&'a str>,
    /// A file with the chat template.
    pub template: Option<&'a Path>,
}

/// A tokenizer as metadata.
#[derive(Debug)]
pub struct Metadata {
    /// Keys and values.
    pub keys: Vec<(String, Value)>,
    /// The contents of `tokenizer.json` and its path, to check by.
    pub json: Option<(PathBuf, Vec<u8>)>,
    /// One line that says what it is.
    pub summary: String,
    /// Lines for the user.
    pub notes: Vec<String>,
}

/// `tokenizer.json`, as far as it matters here.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<Json>,
    pre_tokenizer: Option<Json>,
    post_processor: Option<Json>,
    decoder: Option<Json>,
    model: Model,
}

/// A token that is matched in the text.
#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    unk_token: Option<String>,
}

/// Two pieces that join, as older and as newer files have them.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Line(String),
    Pair(String, String),
}

/// The kind of model, which is looked at first, as others have vocabularies of another form.
#[derive(Deserialize)]
struct OnlyKind {
    model: Kind,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    name: Option<String>,
}

/// Tokens by id.
#[derive(Default)]
struct Tokens {
    /// Text, type, score; `None` where no token has the id.
    slots: Vec<Option<(String, i32, f32)>>,
}

impl Tokens {
    fn put(
        &mut self,
        id: u32,
        text: &str,
        kind: i32,
        score: f32,
    ) -> std::result::Result<(), String> {
        match self.slots.get_mut(id as usize) {
            None => Err(format!("id {id} of {}", quoted(text))),
            Some(slot) => {
                *slot = Some((text.to_owned(), kind, score));
                Ok(())
            }
        }
    }

    fn id_of(&self, text: &str) -> Option<u32> {
        let found = self.slots.iter().position(|slot| slot.as_ref().is_some_and(|s| s.0 == text));
        found.map(|id| id as u32)
    }
}

/// Reads the tokenizer of a folder.
///
/// # Errors
/// [`Error::Io`] for what cannot be read, [`Error::Model`] for files that are malformed, or whose kind of
/// tokenizer is not run here.
pub fn read(settings: &Settings<'_>) -> Result<Metadata> {
    let config = Object::read_optional(&settings.folder.join("tokenizer_config.json"), MAX_CONFIG)?;
    let path = settings.folder.join("tokenizer.json");
    let model = settings.folder.join("tokenizer.model");
    let mut reader =
        Reader { settings, config, tokens: Tokens::default(), keys: Vec::new(), notes: Vec::new() };
    reader.tokens.slots.resize(settings.vocab, None);
    if path.exists() {
        let contents = json::bytes(&path, MAX_TOKENIZER)?;
        let kind: OnlyKind = json::parse(&path, &contents)?;
        if !matches!(kind.model.name.as_deref(), None | Some("BPE")) {
            let found = quoted(kind.model.name.as_deref().unwrap_or_default());
            return Err(Error::model(&path, "key model.type", found, "BPE"));
        }
        let file: File = json::parse(&path, &contents)?;
        let vocabulary = model.exists().then(|| sentencepiece::read(&model)).transpose()?;
        let summary = reader.take_json(&path, &file, vocabulary)?;
        let Reader { keys, notes, .. } = reader;
        return Ok(Metadata { keys, json: Some((path, contents)), summary, notes });
    }
    if model.exists() {
        let vocabulary = sentencepiece::read(&model)?;
        let summary = reader.take_pieces(&model, &vocabulary)?;
        let Reader { keys, notes, .. } = reader;
        return Ok(Metadata { keys, json: None, summary, notes });
    }
    let expected = "tokenizer.json or tokenizer.model";
    Err(Error::model(settings.folder, "tokenizer", "none", expected))
}

struct Reader<'a> {
    settings: &'a Settings<'a>,
    /// `tokenizer_config.json`.
    config: Object,
    tokens: Tokens,
    keys: Vec<(String, Value)>,
    notes: Vec<String>,
}

impl Reader<'_> {
    fn key(&mut self, name: &str, value: Value) {
        self.keys.push((format!("tokenizer.ggml.{name}"), value));
    }

    /// Takes a tokenizer from `tokenizer.json`, scores from `tokenizer.model` where that is there.
    fn take_json(
        &mut self,
        path: &Path,
        file: &File,
        pieces: Option<sentencepiece::Vocabulary>,
    ) -> Result<String> {
        let byte_level = [&file.pre_tokenizer, &file.decoder]
            .into_iter()
            .flatten()
            .any(|value| has_type(value, "ByteLevel"));
        if !byte_level && !file.model.byte_fallback {
            let expected = "ByteLevel, or a model with byte_fallback: others are not run here";
            return Err(Error::model(path, "key pre_tokenizer", "neither", expected));
        }
        let scores = if byte_level { None } else { Some(scores(&file.model, pieces.as_ref())) };
        let too_many = |what: String| {
            let expected = format!("ids below the embedding's rows, {}", self.settings.vocab);
            Error::model(path, "vocabulary", what, expected)
        };
        let rows = self.settings.vocab;
        // Models of pictures and of texts share tokens that the latter have no embedding of.
        let beyond =
            |id: u32| id as usize >= rows && file.added_tokens.iter().any(|own| own.id == id);
        for (text, &id) in file.model.vocab.iter().filter(|(_, id)| !beyond(**id)) {
            let kind = match text {
                _ if Some(text) == file.model.unk_token.as_ref() => UNKNOWN,
                _ if !byte_level && is_byte(text) => BYTE,
                _ => NORMAL,
            };
            let score = scores.as_ref().and_then(|scores| scores.get(text.as_str()).copied());
            self.tokens.put(id, text, kind, score.unwrap_or(NEVER)).map_err(too_many)?;
        }
        for Added { id, content, special } in &file.added_tokens {
            if beyond(*id) {
                let content = quoted(content);
                self.notes.push(format!(
                    "token {content}, id {id}, is left out: the embedding has {rows} rows"
                ));
                continue;
            }
            let kind = match special {
                _ if !byte_level && Some(content) == file.model.unk_token.as_ref() => UNKNOWN,
                true => CONTROL,
                false => USER_DEFINED,
            };
            self.tokens.put(*id, content, kind, NEVER).map_err(too_many)?;
        }
        let bos = self.named_id("bos")?;
        let begins = begins_with(file.post_processor.as_ref());
        let begins = begins.map(|text| bos.is_some() && self.tokens.id_of(&text) == bos);
        let ends = ends_with(file.post_processor.as_ref());
        let ends = ends.and_then(|text| self.tokens.id_of(&text));
        let summary = if byte_level {
            let pre = self.pre(path, file)?;
            self.key("model", Value::Str("gpt2".into()));
            self.key("pre", Value::Str(pre.clone()));
            self.vocabulary(false);
            let merge = |merge: &Merge| match merge {
                Merge::Line(line) => line.clone(),
                Merge::Pair(a, b) => format!("{} {}", spaceless(a), spaceless(b)),
            };
            let merges: StrArray = file.model.merges.iter().map(merge).collect();
            self.key("merges", Value::Array(Array::Str(merges)));
            format!("byte-level BPE, words cut as in {pre}")
        } else {
            self.key("model", Value::Str("llama".into()));
            self.key("pre", Value::Str("default".into()));
            self.vocabulary(true);
            let prefix = has_space_prefix(file);
            self.key("add_space_prefix", Value::Bool(prefix));
            "SentencePiece BPE".into()
        };
        self.special(bos, begins, ends)?;
        Ok(summary)
    }

    /// Takes a tokenizer from `tokenizer.model` alone.
    fn take_pieces(
        &mut self,
        path: &Path,
        vocabulary: &sentencepiece::Vocabulary,
    ) -> Result<String> {
        for (piece, id) in vocabulary.pieces.iter().zip(0..) {
            self.tokens.put(id, &piece.text, piece.kind, piece.score).map_err(|what| {
                let expected = format!("ids below the embedding's rows, {}", self.settings.vocab);
                Error::model(path, "vocabulary", what, expected)
            })?;
        }
        let added = Object::read_optional(&path.with_file_name("added_tokens.json"), MAX_CONFIG)?;
        let decoder = self.config.object("added_tokens_decoder")?;
        let mut more: Vec<(u32, String, bool)> = Vec::new();
        for (text, id) in added.entries() {
            more.extend(id.as_u64().and_then(|id| Some((id.try_into().ok()?, text.clone(), true))));
        }
        for (id, token) in decoder.iter().flat_map(Object::entries) {
            let content = token.get("content").and_then(Json::as_str);
            let special = token.get("special").and_then(Json::as_bool).unwrap_or(false);
            more.extend(id.parse().ok().zip(content).map(|(id, c)| (id, c.to_owned(), special)));
        }
        for (id, text, special) in more {
            let kind = if special { CONTROL } else { USER_DEFINED };
            if self.tokens.slots.get(id as usize).is_some_and(Option::is_none) {
                self.tokens.put(id, &text, kind, NEVER).unwrap_or_default();
            }
        }
        self.key("model", Value::Str("llama".into()));
        self.key("pre", Value::Str("default".into()));
        self.vocabulary(true);
        self.key("add_space_prefix", Value::Bool(vocabulary.space_prefix));
        let bos = self.named_id("bos")?;
        self.special(bos, None, None)?;
        Ok("SentencePiece BPE".into())
    }

    /// Adds tokens and types; scores, too, where pieces join by them. Ids without a token get a text of
    /// their own.
    fn vocabulary(&mut self, scored: bool) {
        let filler = |id: usize| (format!("[PAD{id}]"), UNUSED, NEVER);
        let slots = std::mem::take(&mut self.tokens.slots);
        let all: Vec<(String, i32, f32)> =
            slots.into_iter().enumerate().map(|(id, slot)| slot.unwrap_or(filler(id))).collect();
        let texts: StrArray = all.iter().map(|(text, ..)| text).collect();
        let kinds = all.iter().map(|(_, kind, _)| *kind).collect();
        let scores: Vec<f32> = all.iter().map(|(.., score)| *score).collect();
        self.key("tokens", Value::Array(Array::Str(texts)));
        self.key("token_type", Value::Array(Array::I32(kinds)));
        if scored {
            self.key("scores", Value::Array(Array::F32(scores)));
        }
        self.tokens.slots = all.into_iter().map(Some).collect();
    }

    /// The id of a special token: by its text in `tokenizer_config.json`, else by `config.json`.
    fn named_id(&self, name: &str) -> Result<Option<u32>> {
        let key = format!("{name}_token");
        let text = self.config.get(&key).and_then(|own| match own {
            Json::String(text) => Some(text.as_str()),
            other => other.get("content").and_then(Json::as_str),
        });
        if let Some(text) = text {
            let id = self.tokens.id_of(text);
            let expected = "a token of the vocabulary";
            return id.map(Some).ok_or_else(|| self.config.error(&key, quoted(text), expected));
        }
        let key = format!("{name}_token_id");
        let config = self.settings.config;
        let Some(own) = config.get(&key) else { return Ok(None) };
        let first = own.get(0).unwrap_or(own);
        // -1 stands for none.
        if first.as_i64() == Some(-1) {
            return Ok(None);
        }
        let id = first.as_u64().and_then(|id| u32::try_from(id).ok());
        let fits = id.filter(|&id| (id as usize) < self.settings.vocab);
        fits.map(Some).ok_or_else(|| {
            let expected = format!("an id below the embedding's rows, {}", self.settings.vocab);
            config.error(&key, quoted(&own.to_string()), expected)
        })
    }

    /// Adds special tokens, whether a text begins or ends with one, and the chat template. `begins` is what
    /// the post-processor says of the former, `end` the token that it puts behind a text.
    fn special(&mut self, bos: Option<u32>, begins: Option<bool>, end: Option<u32>) -> Result<()> {
        // Only a text that is embedded has its end behind it: one that goes on has none.
        let end = match end.filter(|_| self.settings.embeds) {
            // BitNet's embedding model of 0.6B, whose converter knows the token.
            None if self.settings.embeds && self.settings.architecture.name == arch::QWEN3.name => {
                self.tokens.id_of(END_OF_QWEN)
            }
            end => end,
        };
        let eos = end.map_or_else(|| self.named_id("eos"), |id| Ok(Some(id)))?;
        let ends = ENDS_OF_TURN.iter().filter_map(|text| self.tokens.id_of(text));
        let eot = ends.filter(|id| Some(*id) != eos).min_by_key(|id| {
            ENDS_OF_TURN.iter().position(|text| self.tokens.id_of(text) == Some(*id))
        });
        let ids = [
            ("bos_token_id", bos),
            ("eos_token_id", eos),
            ("eot_token_id", eot),
            ("padding_token_id", self.named_id("pad")?),
            ("unknown_token_id", self.named_id("unk")?),
        ];
        for (name, id) in ids {
            if let Some(id) = id {
                self.key(name, Value::U32(id));
            }
        }
        // bitnet.cpp's files of BitNet models all say so.
        let is_bitnet = is_bitnet(self.settings.architecture);
        let said = self.config.truth("add_bos_token")?.or(begins);
        // Where nothing says so the rule of the vocabulary's family counts.
        if let Some(adds) = said.or(is_bitnet.then_some(true)) {
            self.key("add_bos_token", Value::Bool(adds && bos.is_some()));
        }
        if self.settings.embeds {
            let adds = self.config.truth("add_eos_token")?.unwrap_or(false);
            self.key("add_eos_token", Value::Bool(end.is_some() || adds && eos.is_some()));
        }
        self.template()
    }

    fn template(&mut self) -> Result<()> {
        let beside = self.settings.folder.join("chat_template.jinja");
        let file = self.settings.template.map(Path::to_path_buf);
        let file = file.or_else(|| beside.exists().then_some(beside));
        if let Some(path) = file {
            let text = String::from_utf8(json::bytes(&path, MAX_TEMPLATE)?)
                .map_err(|_| Error::model(&path, "chat template", "text", "UTF-8"))?;
            self.keys.push(("tokenizer.chat_template".into(), Value::Str(text)));
            return Ok(());
        }
        let key = "chat_template";
        match self.config.get(key) {
            None => {}
            Some(Json::String(text)) => {
                self.keys.push(("tokenizer.chat_template".into(), Value::Str(text.clone())));
            }
            Some(Json::Array(list)) => {
                let named = |entry: &Json| {
                    let text = |key| entry.get(key).and_then(Json::as_str).map(str::to_owned);
                    text("name").zip(text("template"))
                };
                let expected = "a text, or a list of names and templates";
                let wrong = || self.config.error(key, "another list", expected);
                let all: Option<Vec<_>> = list.iter().map(named).collect();
                for (name, text) in all.ok_or_else(wrong)? {
                    let key = match name.as_str() {
                        "default" => "tokenizer.chat_template".to_owned(),
                        name => format!("tokenizer.chat_template.{name}"),
                    };
                    self.keys.push((key, Value::Str(text)));
                }
            }
            Some(other) => {
                let found = quoted(&other.to_string());
                return Err(self.config.error(key, found, "a text, or a list of templates"));
            }
        }
        Ok(())
    }

    /// The name of the pre-tokenizer.
    fn pre(&self, path: &Path, file: &File) -> Result<String> {
        if let Some(name) = self.settings.pre {
            return Ok(name.to_owned());
        }
        let texts = self.tokens.slots.iter().flatten().map(|(text, ..)| text);
        let tokens: StrArray = texts.collect();
        let found = match file.pre_tokenizer.as_ref().map(patterns) {
            None => Err("none".to_owned()),
            Some(patterns) => patterns.and_then(|patterns| {
                let ignore_merges = file.model.ignore_merges;
                let name = pretokenize::name_of(&patterns, ignore_merges, &tokens);
                name.ok_or_else(|| {
                    let merges = if ignore_merges { ", merges ignored" } else { "" };
                    format!("{}{merges}", patterns.join("  then  "))
                })
            }),
        };
        found.map(str::to_owned).map_err(|found| {
            let expected = format!(
                "the patterns of a vocabulary that is known; name the nearest with --pre NAME, one of \
                 {}, and 2,000 texts will show whether it is the one",
                pretokenize::names()
            );
            Error::model(path, "key pre_tokenizer", found.escape_debug(), expected)
        })
    }
}

/// The patterns that a pre-tokenizer cuts by, in order.
///
/// # Errors
/// A kind of cutting that has no pattern: its description.
fn patterns(pre: &Json) -> std::result::Result<Vec<String>, String> {
    let flag = |key: &str| pre.get(key).and_then(Json::as_bool).unwrap_or(false);
    match pre.get("type").and_then(Json::as_str).unwrap_or_default() {
        "Sequence" => {
            let parts = pre.get("pretokenizers").and_then(Json::as_array);
            let parts = parts.into_iter().flatten().map(patterns);
            parts.collect::<std::result::Result<Vec<_>, _>>().map(|parts| parts.concat())
        }
        "ByteLevel" if flag("add_prefix_space") => Err("ByteLevel with add_prefix_space".into()),
        // It is the default.
        "ByteLevel" if pre.get("use_regex").is_none() || flag("use_regex") => {
            Ok(vec![GPT2_PATTERN.into()])
        }
        "ByteLevel" => Ok(Vec::new()),
        "Digits" if flag("individual_digits") => Ok(vec![r"\p{N}".into()]),
        "Digits" => Ok(vec![r"\p{N}+".into()]),
        "Split" => {
            let behavior = pre.get("behavior").and_then(Json::as_str).unwrap_or_default();
            let whole = behavior == "Isolated" && !flag("invert")
                || behavior == "Removed" && flag("invert");
            let regex = pre.get("pattern").and_then(|own| own.get("Regex")).and_then(Json::as_str);
            match regex.filter(|_| whole) {
                Some(regex) => Ok(vec![regex.into()]),
                None => Err(pre.to_string()),
            }
        }
        _ => Err(pre.to_string()),
    }
}

/// True if a part of a tokenizer, or one within it, has this type.
fn has_type(part: &Json, name: &str) -> bool {
    let within =
        ["pretokenizers", "decoders", "normalizers"].iter().filter_map(|key| part.get(key));
    let mut within = within.filter_map(Json::as_array).flatten();
    part.get("type").and_then(Json::as_str) == Some(name) || within.any(|p| has_type(p, name))
}

/// True if a text is given a space in front.
fn has_space_prefix(file: &File) -> bool {
    let prepends = file.normalizer.as_ref().is_some_and(|own| has_type(own, "Prepend"));
    let metaspace = file.pre_tokenizer.as_ref().is_some_and(|own| {
        let scheme = own.get("prepend_scheme").and_then(Json::as_str);
        let older = own.get("add_prefix_space").and_then(Json::as_bool).unwrap_or(true);
        has_type(own, "Metaspace") && scheme.map_or(older, |scheme| scheme != "never")
    });
    prepends || metaspace
}

/// The text of the special token that a post-processor puts before a text: "" for another beginning;
/// `None` where it says nothing.
fn begins_with(post: Option<&Json>) -> Option<String> {
    in_template(post?, |parts| Some(special(parts.first()?).unwrap_or_default()))
}

/// The text of the special token that a post-processor puts behind a text, if it does.
fn ends_with(post: Option<&Json>) -> Option<String> {
    in_template(post?, |parts| special(parts.last()?))
}

/// The first thing that is found in the template for one text of a post-processor, or of one within it.
fn in_template<T>(post: &Json, find: fn(&[Json]) -> Option<T>) -> Option<T> {
    if let Some(parts) = post.get("processors").and_then(Json::as_array) {
        return parts.iter().find_map(|part| in_template(part, find));
    }
    find(post.get("single").and_then(Json::as_array)?)
}

/// The text of a part of a template that is a special token.
fn special(part: &Json) -> Option<String> {
    part.get("SpecialToken")?.get("id")?.as_str().map(str::to_owned)
}

/// The scores of pieces: those of `tokenizer.model`, else falling with the place of the merge that gives
/// them; pieces of one character come first, as nothing gives them.
fn scores<'a>(
    model: &'a Model,
    pieces: Option<&'a sentencepiece::Vocabulary>,
) -> HashMap<&'a str, f32> {
    if let Some(vocabulary) = pieces {
        return vocabulary.pieces.iter().map(|piece| (piece.text.as_str(), piece.score)).collect();
    }
    let mut scores = HashMap::new();
    for (merge, rank) in model.merges.iter().zip(1u32..) {
        let whole = match merge {
            Merge::Line(line) => line.replacen(' ', "", 1),
            Merge::Pair(a, b) => format!("{a}{b}"),
        };
        if let Some((text, _)) = model.vocab.get_key_value(&whole) {
            scores.entry(text.as_str()).or_insert(-(rank as f32));
        }
    }
    scores
}

/// True for the text of a byte token, `<0x00>` to `<0xFF>`.
fn is_byte(text: &str) -> bool {
    let hex = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// A piece of a merge with its spaces as another character: a space parts the two.
fn spaceless(piece: &str) -> String {
    piece.chars().map(|c| if c == ' ' { '\u{120}' } else { c }).collect()
}
