//! Description of a model: its jobs, shapes and name.

pub(crate) mod demo;

use std::path::{Path, PathBuf};

use bitnet_profiles::{HeadFormat, Role, Shape};
use bitnet_runtime::arch::config::{Config, JobShapes};
use bitnet_runtime::cpu::weights::block_width_of;
use bitnet_runtime::file::bus_error;
use bitnet_runtime::file::gguf::Gguf;
use bitnet_runtime::formats::{Format, TensorType};

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
    /// Of each the columns of a block, where matrices have a scale for each.
    pub widths: Vec<Option<usize>>,
    /// Hash of the shapes, by which profiles know the jobs.
    pub shapes: String,
    /// Storage format of the head's rows.
    pub head: HeadFormat,
    /// Absolute path of the file, if it has one that a profile can hold.
    pub path: Option<PathBuf>,
}

impl ModelInfo {
    /// Reads the header, and of the first layer's matrices in blocks as many scales as it takes to see
    /// that they differ.
    ///
    /// # Errors
    /// [`bitnet_runtime::Error::Model`] where the hyperparameters are wrong, or a matrix is
    /// missing, has another shape than they ask for or is not ternary.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let config = Config::from_gguf(gguf)?;
        let jobs = config.jobs();
        for (name, shape) in config.all_matrices() {
            check(gguf, &name, shape)?;
        }
        let width = |job: &JobShapes| block_width_of(gguf, &config, job.role);
        let widths = jobs.iter().map(width).collect::<bitnet_runtime::Result<_>>()?;
        let names = &config.architecture.tensors;
        let name = if gguf.tensor(names.head).is_some() { names.head } else { names.embedding };
        let ty = gguf.tensor(name).map(|tensor| tensor.ty);
        let Some(head) = ty.and_then(|ty| ty.format().table(config.hidden)) else {
            let found = ty.map_or("no such tensor".into(), |ty: TensorType| ty.to_string());
            let expected = Format::names(|format| format.table(0).is_some());
            return Err(gguf.tensor_error(name, found, expected).into());
        };
        // A profile refuses names that are long or hold control characters.
        let name = gguf.get_str("general.name")?.unwrap_or_default();
        let name: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
        let file = || gguf.path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self {
            name: if name.is_empty() { file() } else { name },
            architecture: config.architecture.name,
            shapes: config.shapes_hash(),
            jobs,
            widths,
            config,
            head,
            path: absolute(gguf),
        })
    }

    /// Reads the header of a file, as [`ModelInfo::from_gguf`].
    ///
    /// # Errors
    /// As [`ModelInfo::from_gguf`], and those of opening the file.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_gguf(&open(path)?)
    }

    /// Returns the columns of a block of a role's matrices, where they have a scale for each.
    pub fn width(&self, role: Role) -> Option<usize> {
        let jobs = self.jobs.iter().zip(&self.widths);
        jobs.filter(|(job, _)| job.role == role).find_map(|(_, width)| *width)
    }

    /// Returns rows and columns of the head.
    pub fn head_shape(&self) -> Shape {
        Shape::new(self.config.vocab, self.config.hidden)
    }

    /// Returns the bytes of the head, which every decoded token reads.
    pub fn head_bytes(&self) -> u64 {
        (self.config.vocab * self.head.row_bytes(self.config.hidden)) as u64
    }
}

/// Maps a model's file; if it is cut short from then on, a line on stderr says so and the process ends.
pub(crate) fn open(path: &Path) -> Result<Gguf> {
    bus_error::explain(path, None, "leave it as it is while it is used");
    Ok(Gguf::open(path)?)
}

fn check(gguf: &Gguf, name: &str, shape: Shape) -> Result<()> {
    let known = Format::names(|format| format.ternary().is_some());
    let expected = format!("a ternary matrix of {shape} (rows x columns), as {known}");
    let Some(tensor) = gguf.tensor(name) else {
        return Err(gguf.tensor_error(name, "no such tensor", expected).into());
    };
    let fits = tensor.cols() == shape.cols as u64 && tensor.rows() == shape.rows as u64;
    if !fits || tensor.ty.format().ternary().is_none() {
        let found = format!("{} of {}x{}", tensor.ty, tensor.rows(), tensor.cols());
        return Err(gguf.tensor_error(name, found, expected).into());
    }
    Ok(())
}

/// Returns an absolute path of the model that a profile can hold. Links are followed, unless the model
/// is in several files, which are found by their names.
fn absolute(gguf: &Gguf) -> Option<PathBuf> {
    let path = match gguf.files().len() {
        1 => gguf.path().canonicalize(),
        _ => std::path::absolute(gguf.path()),
    };
    let path = path.ok()?;
    let fits = |text: &str| text.len() <= 4096 && !text.chars().any(char::is_control);
    path.to_str().is_some_and(fits).then_some(path)
}

#[cfg(test)]
mod tests {
    use bitnet_runtime::file::gguf::{GgufWriter, Value};

    use super::*;

    /// A model of one layer with matrices of one type, one of them left out.
    fn gguf(ty: TensorType, without: &str) -> Gguf {
        Gguf::from_bytes("folder/tiny.gguf", file(GgufWriter::new(), ty, without)).unwrap()
    }

    fn file(mut writer: GgufWriter, ty: TensorType, without: &str) -> Vec<u8> {
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
        file
    }

    #[test]
    fn a_ternary_model_is_described() {
        let info = ModelInfo::from_gguf(&gguf(TensorType::I2_S, "")).unwrap();
        assert_eq!((info.jobs.len(), info.jobs[2].parts[1]), (4, Shape::new(256, 128)));
        assert_eq!(info.head_bytes(), 2 * 1280);
        assert!(info.name.starts_with("tinytiny") && info.name.len() <= 64);
        assert_eq!((info.path, info.shapes.len()), (None, 16));
    }

    /// As caches of downloads have it: links with the names of parts to files of other names.
    #[cfg(unix)]
    #[test]
    fn a_model_in_several_files_keeps_the_names_of_its_parts() {
        let folder = tempfile::tempdir().unwrap();
        let part = |number: u16| {
            let mut writer = GgufWriter::new();
            writer.kv("split.no", &Value::U16(number));
            writer.kv("split.count", &Value::U16(2));
            match number {
                0 => file(writer, TensorType::I2_S, ""),
                _ => writer.header(),
            }
        };
        for number in [0, 1] {
            let blob = folder.path().join(format!("blob{number}"));
            std::fs::write(&blob, part(number)).unwrap();
            let link = folder.path().join(format!("m-0000{}-of-00002.gguf", number + 1));
            std::os::unix::fs::symlink(blob, link).unwrap();
        }
        let first = folder.path().join("m-00001-of-00002.gguf");
        let info = ModelInfo::from_gguf(&Gguf::open(&first).unwrap()).unwrap();
        assert_eq!(info.path, Some(first));
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
