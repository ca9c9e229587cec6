//! Use of a Hugging Face model for embeddings, as the files of sentence-transformers beside it say.
#![forbid(unsafe_code)]

use std::path::Path;

use bitnet_runtime::Pooling;
use bitnet_runtime::error::{Error, Result, quoted};
use serde::Deserialize;

use super::json::{self, Object};

/// Longest files.
const MAX_MODULES: u64 = 1 << 20;
const MODULES: &str = "modules.json";

/// An embedding model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Embedding {
    /// What of its states becomes an embedding.
    pub pooling: Pooling,
    /// True if no file says so.
    pub assumed: bool,
    /// True if it writes no text.
    pub alone: bool,
}

/// An entry of `modules.json`: a stage of the computation.
#[derive(Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

/// Modes of pooling by the keys that older files have for them, and by their names in newer ones; `None`:
/// not run here.
const MODES: [(&str, &str, Option<Pooling>); 6] = [
    ("pooling_mode_cls_token", "cls", Some(Pooling::Cls)),
    ("pooling_mode_mean_tokens", "mean", Some(Pooling::Mean)),
    ("pooling_mode_lasttoken", "lasttoken", Some(Pooling::Last)),
    ("pooling_mode_max_tokens", "max", None),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens", None),
    ("pooling_mode_weightedmean_tokens", "weightedmean", None),
];

/// Reads how a folder's model makes embeddings; `None`: it has a head and no `modules.json`. One without
/// either takes the mean, as the converter of BitNet's embedding models has it.
///
/// # Errors
/// [`Error::Io`] for files that cannot be read, [`Error::Model`] for malformed ones, and for stages that
/// are not run here.
pub fn read(folder: &Path, has_head: bool) -> Result<Option<Embedding>> {
    let path = folder.join(MODULES);
    if !path.exists() {
        let mean = Embedding { pooling: Pooling::Mean, assumed: true, alone: true };
        return Ok((!has_head).then_some(mean));
    }
    let modules: Vec<Module> = json::read(&path, MAX_MODULES)?;
    let mut pooling = None;
    for (place, Module { path: own, kind }) in modules.iter().enumerate() {
        let refused = |found: String, expected: &str| {
            Error::model(&path, format_args!("module {place}"), found, expected)
        };
        match kind.rsplit('.').next().unwrap_or_default() {
            "Transformer" | "Normalize" => {}
            "Pooling" if pooling.is_some() => {
                return Err(refused("a second Pooling".into(), "one"));
            }
            "Pooling" => {
                if !json::is_file_name(own) {
                    let expected = "the name of a folder in the same folder";
                    return Err(refused(format!("path {}", quoted(own)), expected));
                }
                let own = Object::read(&folder.join(own).join("config.json"), MAX_MODULES)?;
                pooling = Some(mode(&own)?);
            }
            _ => {
                let expected = "Transformer, Pooling or Normalize: others are not run here; without its \
                                entry embeddings are those of the stages before";
                return Err(refused(quoted(kind), expected));
            }
        }
    }
    let expected = "one, such as 1_Pooling";
    let pooling = pooling.ok_or_else(|| Error::model(&path, "module Pooling", "none", expected))?;
    Ok(Some(Embedding { pooling, assumed: false, alone: !has_head }))
}

/// Reads the mode of a pooling.
fn mode(file: &Object) -> Result<Pooling> {
    if file.truth("include_prompt")? == Some(false) {
        let expected = "true: tokens are not left out of the pooling here";
        return Err(file.error("include_prompt", false, expected));
    }
    let expected = "one of cls, mean and lasttoken, which are run here";
    if let Some(name) = file.text("pooling_mode")? {
        let known = MODES.iter().find(|(_, own, _)| *own == name).and_then(|mode| mode.2);
        return known.ok_or_else(|| file.error("pooling_mode", quoted(name), expected));
    }
    let mut found = Vec::new();
    for mode in MODES {
        if file.truth(mode.0)? == Some(true) {
            found.push(mode);
        }
    }
    match found[..] {
        [(_, _, Some(pooling))] => Ok(pooling),
        [] => Err(file.error("pooling_mode", "none", expected)),
        [(key, ..), ..] => {
            Err(file.error(key, format_args!("true, of {} modes", found.len()), expected))
        }
    }
}
