//! What the tuner needs to know of a model: its jobs, and how it is called.

pub(crate) mod demo;

use std::path::{Path, PathBuf};

use bitnet_profiles::{HeadFormat, Role, Shape};
use bitnet_runtime::arch::config::{Config, JobShapes};
use bitnet_runtime::cpu::weights;
use bitnet_runtime::file::gguf::Gguf;

use crate::Result;

/// A model to tune for.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// Name from the metadata, or the file's.
    pub name: String,
    /// Architecture from the metadata.
    pub architecture: &'static str,
    /// Its hyperparameters.
    pub config: Config,
    /// Its ternary jobs.
    pub jobs: Vec<JobShapes>,
    /// What profiles know the jobs by.
    pub shapes: String,
    /// How the rows of the head are stored.
    pub head: HeadFormat,
    /// Where the file is, if it is one whose path can be written down.
    pub path: Option<PathBuf>,
}

impl ModelInfo {
    /// Reads the header; no tensor page is touched.
    ///
    /// # Errors
    /// [`bitnet_runtime::Error::Model`] where the hyperparameters are wrong, or a matrix is
    /// missing, has another shape than they ask for or is not ternary.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let config = Config::from_gguf(gguf)?;
        let jobs = config.jobs();
        for layer in 0..config.layers {
            for job in &jobs {
                for (name, &shape) in parts(job.role).iter().zip(&job.parts) {
                    check(gguf, &format!("blk.{layer}.{name}.weight"), shape)?;
                }
            }
        }
        let name = ["output.weight", "token_embd.weight"]
            .into_iter()
            .find(|name| gguf.tensor(name).is_some())
            .unwrap_or("token_embd.weight");
        let head = gguf.tensor(name).map(|tensor| (tensor, weights::head_format(tensor.ty)));
        let Some((_, Some(head))) = head else {
            let found = head.map_or("no such tensor", |(tensor, _)| tensor.ty.name());
            let expected = "f32, f16, bf16, q8_0, q6_K or q4_0";
            return Err(gguf.tensor_error(name, found, expected).into());
        };
        // A profile refuses names that are long or hold control characters.
        let name = gguf.get_str("general.name")?.unwrap_or_default();
        let name: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
        let file = || gguf.path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self {
            name: if name.is_empty() { file() } else { name },
            architecture: config.architecture.name(),
            shapes: config.shapes_hash(),
            jobs,
            config,
            head,
            path: absolute(gguf.path()),
        })
    }

    /// Rows and columns of the head.
    pub fn head_shape(&self) -> Shape {
        Shape::new(self.config.vocab, self.config.hidden)
    }

    /// Bytes of the head, which every decoded token reads.
    pub fn head_bytes(&self) -> u64 {
        (self.config.vocab * self.head.row_bytes(self.config.hidden)) as u64
    }
}

/// The tensors of a job, between `blk.N.` and `.weight`.
fn parts(role: Role) -> &'static [&'static str] {
    match role {
        Role::Qkv => &["attn_q", "attn_k", "attn_v"],
        Role::AttnOutput => &["attn_output"],
        Role::GateUp => &["ffn_gate", "ffn_up"],
        Role::Down => &["ffn_down"],
        Role::LmHead | Role::Attention => &[],
    }
}

fn check(gguf: &Gguf, name: &str, shape: Shape) -> Result<()> {
    let expected = format!("a ternary matrix of {shape} (rows x columns), as i2_s");
    let Some(tensor) = gguf.tensor(name) else {
        return Err(gguf.tensor_error(name, "no such tensor", expected).into());
    };
    let fits = tensor.cols() == shape.cols as u64 && tensor.rows() == shape.rows as u64;
    if !fits || !tensor.ty.is_ternary() {
        let found = format!("{} of {}x{}", tensor.ty, tensor.rows(), tensor.cols());
        return Err(gguf.tensor_error(name, found, expected).into());
    }
    Ok(())
}

/// An absolute path that a profile can hold.
fn absolute(path: &Path) -> Option<PathBuf> {
    let path = path.canonicalize().ok()?;
    let fits = |text: &str| text.len() <= 4096 && !text.chars().any(char::is_control);
    path.to_str().is_some_and(fits).then_some(path)
}

#[cfg(test)]
mod tests {
    use bitnet_runtime::file::gguf::{GgufWriter, TensorType, Value};

    use super::*;

    /// A model of one layer, its matrices of a type, one of them left out.
    fn gguf(ty: TensorType, without: &str) -> Gguf {
        let mut writer = GgufWriter::new();
        writer.kv("general.architecture", &Value::Str("bitnet-b1.58".into()));
        writer.kv("general.name", &Value::Str("tiny\n".repeat(50)));
        for (key, value) in [
            ("block_count", 1),
            ("embedding_length", 128),
            ("feed_forward_length", 256),
            ("context_length", 64),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
        ] {
            writer.kv(&format!("bitnet-b1.58.{key}"), &Value::U32(value));
        }
        let eps = "bitnet-b1.58.attention.layer_norm_rms_epsilon";
        writer.kv(eps, &Value::F32(1e-5));
        writer.tensor("token_embd.weight", &[128, 10], TensorType::F16).unwrap();
        for (name, dims) in [
            ("attn_q", [128, 128]),
            ("attn_k", [128, 64]),
            ("attn_v", [128, 64]),
            ("attn_output", [128, 128]),
            ("ffn_gate", [128, 256]),
            ("ffn_up", [128, 256]),
            ("ffn_down", [256, 128]),
        ] {
            if name != without {
                writer.tensor(&format!("blk.0.{name}.weight"), &dims, ty).unwrap();
            }
        }
        let mut file = writer.header();
        file.resize(file.len() + writer.data_bytes() as usize, 0);
        Gguf::from_bytes("folder/tiny.gguf", file).unwrap()
    }

    #[test]
    fn a_ternary_model_is_described() {
        let info = ModelInfo::from_gguf(&gguf(TensorType::I2_S, "")).unwrap();
        assert_eq!((info.jobs.len(), info.jobs[2].parts[1]), (4, Shape::new(256, 128)));
        assert_eq!(info.head_bytes(), 2 * 1280);
        assert!(info.name.starts_with("tinytiny") && info.name.len() <= 64);
        assert_eq!((info.path, info.shapes.len()), (None, 16));
    }

    #[test]
    fn other_models_are_refused() {
        let error = ModelInfo::from_gguf(&gguf(TensorType::F16, "")).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains("blk.0.attn_q.weight"), "{error}");
        let error = ModelInfo::from_gguf(&gguf(TensorType::I2_S, "ffn_down")).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains("blk.0.ffn_down.weight"), "{error}");
    }
}
